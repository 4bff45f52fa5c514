//! The log while it is open: where every record is, and the next frame.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
    mem,
    path::PathBuf,
};

use bytes::Bytes;
use paxos::{
    GroupId, Slot,
    storage::{Finding, StorageError},
};

use super::{
    blocks::{BLOCK_BYTES, Blocks},
    disk::{Disk, OpenFile},
    frame::{self, Frames, Position},
    spares::Spares,
};
use crate::durable::{Changes, Engine, Key, Opening, Visit};

/// The first segment of a log is this small, in bytes; each later one is twice as large until they are as large as
/// wanted. Stores that hold little need not fill large files.
const FIRST_SEGMENT_BYTES: u64 = 256 << 10;
/// How much may be held back, in bytes of records, until a commit that must be durable takes it along.
const MAX_HELD_BYTES: usize = 1 << 20;
/// So many segments are no reason to write anything again.
const FEW_SEGMENTS: usize = 4;
/// How much of what is written again goes with one commit, in bytes of records; more only if the commit itself is larger.
const MIN_MOVED_BYTES: usize = 16 << 10;

/// Where a record is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The segment's number.
    pub(super) segment: u64,
    pub(super) at: u64,
    pub(super) bytes: usize,
}

/// A part of the log.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) file: OpenFile,
    /// The length of the file, in whole blocks.
    pub(super) capacity: u64,
    /// Where the next frame goes.
    pub(super) end: u64,
    /// How many of the slots' records in it are the latest of their slot.
    pub(super) live_records: u64,
    /// Their length in bytes.
    pub(super) live_bytes: u64,
}

/// The log, as an engine.
#[derive(Debug)]
pub(crate) struct Log {
    pub(super) path: PathBuf,
    max_segment_bytes: u64,
    pub(super) disk: Disk,
    /// Known once the log is loaded.
    pub(super) frames: Option<Frames>,
    /// Without gaps in their numbers. Empty before the first frame.
    pub(super) segments: VecDeque<Segment>,
    /// The number of the last frame.
    pub(super) sequence: u64,
    slots: HashMap<GroupId, BTreeMap<Slot, Place>>,
    /// The latest record of every group.
    groups: BTreeMap<GroupId, Bytes>,
    held: Changes,
    held_bytes: usize,
    /// The number of the last commit that is held back.
    held_number: u64,
    /// Slots of the oldest segment that must be written again, the last in its file first.
    to_move: Vec<(GroupId, Slot)>,
    pub(super) spares: Spares,
    /// The last frame, kept for its allocation.
    buffer: Blocks,
}

impl Log {
    pub(super) fn new(path: PathBuf, max_segment_bytes: u64, disk: Disk) -> Self {
        Self {
            spares: Spares::new(path.clone()),
            path,
            max_segment_bytes,
            disk,
            frames: None,
            segments: VecDeque::new(),
            sequence: 0,
            slots: HashMap::new(),
            groups: BTreeMap::new(),
            held: Changes::new(),
            held_bytes: 0,
            held_number: 0,
            to_move: Vec::new(),
            buffer: Blocks::default(),
        }
    }

    pub(super) fn segment_path(&self, number: u64) -> PathBuf {
        self.path.join(format!("segment-{number:016x}"))
    }

    /// How large the next segment should be.
    pub(super) fn wanted_bytes(&self) -> u64 {
        let doubled = self.segments.back().map(|last| last.capacity.saturating_mul(2));
        doubled.unwrap_or(FIRST_SEGMENT_BYTES).min(self.max_segment_bytes)
    }

    /// Notes that a slot's latest record is here.
    pub(super) fn put(&mut self, group: GroupId, slot: Slot, place: Place) {
        let old = self.slots.entry(group).or_default().insert(slot, place);
        if let Some(old) = old {
            self.release(old);
        }
        if let Some(segment) = self.segment(place.segment) {
            segment.live_records += 1;
            segment.live_bytes += place.bytes as u64;
        }
    }

    pub(super) fn put_group(&mut self, group: GroupId, record: Bytes) {
        self.groups.insert(group, record);
    }

    pub(super) fn remove_group(&mut self, group: GroupId) {
        self.groups.remove(&group);
    }

    pub(super) fn remove_slot(&mut self, group: GroupId, slot: Slot) {
        let Some(slots) = self.slots.get_mut(&group) else {
            return;
        };
        let removed = slots.remove(&slot);
        if slots.is_empty() {
            self.slots.remove(&group);
        }
        if let Some(place) = removed {
            self.release(place);
        }
    }

    /// The slots of a group that have a record, within a range.
    pub(super) fn held_slots(&self, group: GroupId, first: Slot, last: Slot) -> Vec<Slot> {
        let slots = self.slots.get(&group);
        slots.map_or_else(Vec::new, |slots| {
            slots.range(first..=last).map(|(slot, _)| *slot).collect()
        })
    }

    fn release(&mut self, place: Place) {
        if let Some(segment) = self.segment(place.segment) {
            segment.live_records -= 1;
            segment.live_bytes -= place.bytes as u64;
        }
    }

    fn place_of_segment(&self, number: u64) -> Option<usize> {
        let first = self.segments.front()?.number;
        usize::try_from(number.checked_sub(first)?).ok()
    }

    fn segment(&mut self, number: u64) -> Option<&mut Segment> {
        let at = self.place_of_segment(number)?;
        self.segments.get_mut(at)
    }

    /// Writes one frame and syncs it.
    fn append(&mut self, mut changes: Changes, commit: u64) -> Result<(), StorageError> {
        let frames = self
            .frames
            .ok_or_else(|| StorageError::Misuse("a log is loaded before it is written".into()))?;
        self.add_moved(&mut changes)?;
        let bytes = frame::frame_bytes(&changes) as u64;
        let fits = |last: &Segment| last.capacity.saturating_sub(last.end) >= bytes;
        if !self.segments.back().is_some_and(fits) {
            self.begin_segment(&mut changes)?;
        }
        let last = self
            .segments
            .back_mut()
            .expect("`begin_segment` makes one of at least twice the frame");
        let position = Position {
            segment: last.number,
            sequence: self.sequence + 1,
            commit,
        };
        let records_at = frames.encode(&mut self.buffer, position, &changes);
        let frame = self.buffer.as_slice();
        self.disk.write(&mut last.file, frame, last.end)?;
        self.disk.sync(&last.file)?;
        let records_at = last.end + records_at as u64;
        last.end += frame.len() as u64;
        self.sequence += 1;
        self.take_in(changes, position.segment, records_at);
        self.recycle()
    }

    fn append_held(&mut self) -> Result<(), StorageError> {
        self.held_bytes = 0;
        let held = mem::take(&mut self.held);
        self.append(held, self.held_number)
    }

    /// Notes what a frame, durable now, has changed.
    fn take_in(&mut self, changes: Changes, segment: u64, records_at: u64) {
        let mut at = records_at;
        for (key, record) in changes {
            let bytes = record.as_ref().map_or(0, Bytes::len);
            match (key, record) {
                (Key::Store, _) => {}
                (Key::Group(group), Some(record)) => self.put_group(group, record),
                (Key::Group(group), None) => self.remove_group(group),
                (Key::Slot(group, slot), Some(_)) => self.put(group, slot, Place { segment, at, bytes }),
                (Key::Slot(group, slot), None) => self.remove_slot(group, slot),
            }
            at += bytes as u64;
        }
    }

    /// Goes on in a new segment, whose first frame must repeat the records of all groups.
    fn begin_segment(&mut self, changes: &mut Changes) -> Result<(), StorageError> {
        for (group, record) in &self.groups {
            let repeated = || Some(record.clone());
            changes.entry(Key::Group(*group)).or_insert_with(repeated);
        }
        // Twice the frame: a segment is not for the records of groups alone.
        let min_bytes = 2 * frame::frame_bytes(changes) as u64;
        let wanted = self.wanted_bytes();
        let spare = self.spares.take(min_bytes, wanted)?;
        let number = self.segments.back().map_or(1, |last| last.number + 1);
        let path = self.segment_path(number);
        self.disk.rename(&spare.path, &path)?;
        self.disk.sync_directory(&self.path)?;
        self.segments.push_back(Segment {
            number,
            file: self.disk.open(path)?,
            capacity: whole_blocks(spare.bytes),
            end: 0,
            live_records: 0,
            live_bytes: 0,
        });
        self.spares.prepare(self.wanted_bytes());
        self.select_moves();
        Ok(())
    }

    /// If most of the log is not needed any more, but its oldest segment is: notes what must be moved from there.
    pub(super) fn select_moves(&mut self) {
        self.to_move.clear();
        let held: u64 = self.segments.iter().map(|segment| segment.capacity).sum();
        let live: u64 = self.segments.iter().map(|segment| segment.live_bytes).sum();
        if self.segments.len() <= FEW_SEGMENTS || live > held / 2 {
            return;
        }
        let Some(oldest) = self.segments.front().map(|segment| segment.number) else {
            return;
        };
        let mut found = Vec::new();
        for (group, slots) in &self.slots {
            let there = slots.iter().filter(|(_, place)| place.segment == oldest);
            found.extend(there.map(|(slot, place)| (place.at, *group, *slot)));
        }
        // The first in the file is taken first: the disk is read as it likes best.
        found.sort_unstable_by_key(|(at, ..)| Reverse(*at));
        self.to_move
            .extend(found.into_iter().map(|(_, group, slot)| (group, slot)));
    }

    /// Lets some of the records that must be moved ride along.
    fn add_moved(&mut self, changes: &mut Changes) -> Result<(), StorageError> {
        if self.to_move.is_empty() {
            return Ok(());
        }
        let max_bytes = frame::frame_bytes(changes).max(MIN_MOVED_BYTES);
        let mut moved = 0;
        while moved < max_bytes
            && let Some((group, slot)) = self.to_move.pop()
        {
            let key = Key::Slot(group, slot);
            let place = self.slots.get(&group).and_then(|slots| slots.get(&slot)).copied();
            let (Some(place), Some(oldest)) = (place, self.segments.front()) else {
                continue;
            };
            if place.segment == oldest.number && !changes.contains_key(&key) {
                let record = self.disk.read(&oldest.file, place.at, place.bytes)?;
                moved += record.len();
                changes.insert(key, Some(record));
            }
        }
        Ok(())
    }

    /// Lets go of segments from the oldest on, as long as nothing in them is needed.
    fn recycle(&mut self) -> Result<(), StorageError> {
        let before = self.segments.len();
        while self.segments.len() > 1
            && let Some(oldest) = self.segments.front()
            && oldest.live_records == 0
        {
            let wanted = self.wanted_bytes();
            let oldest = self.segments.pop_front().expect("the loop has just looked at it");
            self.spares
                .recycle(&mut self.disk, &oldest.file.path, oldest.capacity, wanted)?;
        }
        if self.segments.len() < before {
            self.select_moves();
        }
        Ok(())
    }

    fn read_record(&mut self, group: GroupId, slot: Slot) -> Result<Option<Bytes>, StorageError> {
        if let Some(held) = self.held.get(&Key::Slot(group, slot)) {
            return Ok(held.clone());
        }
        let Some(place) = self.slots.get(&group).and_then(|slots| slots.get(&slot)).copied() else {
            return Ok(None);
        };
        let at = self.place_of_segment(place.segment);
        let segment = at.and_then(|at| self.segments.get(at));
        let segment = segment.expect("a segment stays as long as a slot's record is in it");
        self.disk.read(&segment.file, place.at, place.bytes).map(Some)
    }
}

/// A file that was cut short may end within a block.
pub(super) fn whole_blocks(bytes: u64) -> u64 {
    bytes - bytes % BLOCK_BYTES as u64
}

impl Engine for Log {
    async fn load(&mut self, opening: Opening, visit: &mut Visit<'_>) -> Result<Vec<Finding>, StorageError> {
        self.replay(opening, visit)
    }

    async fn commit(&mut self, mut changes: Changes, number: u64, sync: bool) -> Result<(), StorageError> {
        if !sync {
            let bytes: usize = changes.values().flatten().map(Bytes::len).sum();
            self.held_bytes += bytes + changes.len() * size_of::<(Key, Option<Bytes>)>();
        }
        if !self.held.is_empty() || !sync {
            // What is later replaces what is earlier.
            self.held.append(&mut changes);
            self.held_number = number;
            if !sync && self.held_bytes < MAX_HELD_BYTES {
                return Ok(());
            }
            return self.append_held();
        }
        self.append(changes, number)
    }

    async fn read(&mut self, group: GroupId, slots: &[Slot]) -> Result<Vec<Option<Bytes>>, StorageError> {
        slots.iter().map(|slot| self.read_record(group, *slot)).collect()
    }

    async fn close(&mut self) -> Result<(), StorageError> {
        if !self.held.is_empty() {
            self.append_held()?;
        }
        // Ends the thread that prepares files, and closes all of them.
        self.spares = Spares::new(self.path.clone());
        self.segments.clear();
        Ok(())
    }
}
