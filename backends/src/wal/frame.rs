//! A frame: one commit in the log, of all groups.
//!
//! ```text
//! frame   = header, entries, records, zeros up to the next block of 4 KiB
//! header  = magic u32, checksum u32, segment u64, sequence u64, commit u64, entries u64, bytes u64
//! entry   = type u8, group u32, first u64, second u64
//! ```
//!
//! All integers are little-endian. `checksum` is the crc32c of the store's identity, the rest of the header and the
//! entries; `bytes` is the length of the frame without the zeros. The checksum covers the records too, by way of their
//! own: every record carries one, over itself, its key and the identity (see [`paxos::record`]), so no byte is summed
//! up twice. The segment's number tells a frame from those that the file held in an earlier use.

use std::ops::{Range, RangeInclusive};

use bytes::{Buf, BufMut, Bytes};
use paxos::{
    GroupId, Identity, Slot,
    record::{Records, checksum},
};

use super::blocks::{BLOCK_BYTES, Blocks};
use crate::durable::{Changes, Key};

const MAGIC: u32 = u32::from_le_bytes(*b"PXWL");
const HEADER_BYTES: usize = 4 + 4 + 5 * 8;
const ENTRY_BYTES: usize = 1 + 4 + 8 + 8;

const STORE: u8 = 1;
const GROUP: u8 = 2;
const SLOT: u8 = 3;
const GROUP_REMOVED: u8 = 4;
const SLOTS_REMOVED: u8 = 5;

/// Where in the log a frame belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The segment's number.
    pub(super) segment: u64,
    /// The frame's own number: that of the frame before it, plus 1, over all segments.
    pub(super) sequence: u64,
    /// The number of the last commit in it.
    pub(super) commit: u64,
}

/// One change, as a frame tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A record; its place in the frame.
    Put(Key, Range<usize>),
    RemoveGroup(GroupId),
    RemoveSlots(GroupId, RangeInclusive<Slot>),
}

/// A frame that was found, and whose header and entries are sound.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) position: Position,
    pub(super) changes: Vec<Change>,
    /// From the header to the last record.
    pub(super) bytes: Bytes,
}

/// Writes and reads the frames of one store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frames {
    /// The checksum so far: over the store's identity.
    identity: u32,
    records: Records,
}

/// An entry before it is put into the frame.
struct Entry {
    kind: u8,
    group: GroupId,
    first: u64,
    second: u64,
}

impl Frames {
    pub(super) fn new(identity: Identity) -> Self {
        let mut key = [0; 24];
        let mut rest = &mut key[..];
        rest.put_u64_le(identity.cluster.0);
        rest.put_u64_le(identity.node.0);
        rest.put_u64_le(identity.storage.0);
        Self {
            identity: crc32c::crc32c(&key),
            records: Records::new(identity),
        }
    }

    /// Makes the frame of these changes, padding included, in blocks whose contents are replaced. Returns where in
    /// it the records begin: they follow each other in the order of the changes.
    pub(super) fn encode(self, blocks: &mut Blocks, position: Position, changes: &Changes) -> usize {
        let frame = blocks.zeroed(frame_bytes(changes));
        let whole = frame.len();
        let mut rest = &mut frame[HEADER_BYTES..];
        let mut entries = 0_u64;
        for_each_entry(changes, |entry| {
            entries += 1;
            rest.put_u8(entry.kind);
            rest.put_u32_le(entry.group.0);
            rest.put_u64_le(entry.first);
            rest.put_u64_le(entry.second);
        });
        let records_at = whole - rest.len();
        for record in changes.values().flatten() {
            rest.put_slice(record);
        }
        let bytes = whole - rest.len();
        let mut header = &mut frame[..HEADER_BYTES];
        header.put_u32_le(MAGIC);
        header.put_u32_le(0);
        for field in [
            position.segment,
            position.sequence,
            position.commit,
            entries,
            bytes as u64,
        ] {
            header.put_u64_le(field);
        }
        let checksum = self.checksum(&frame[..records_at]);
        frame[4..8].copy_from_slice(&checksum.to_le_bytes());
        // Runs of removed slots take less room than was reckoned with.
        blocks.truncate(padded(bytes));
        records_at
    }

    /// The frame that begins at this place of a segment, if one does.
    pub(super) fn parse(self, segment: u64, contents: &Bytes, at: usize) -> Option<Frame> {
        let (found, entries, length) = parse_header(contents.get(at..)?)?;
        if found.segment != segment {
            return None;
        }
        let length = usize::try_from(length).ok()?;
        let bytes = contents.slice(at..at.checked_add(length).filter(|end| *end <= contents.len())?);
        let table_bytes = usize::try_from(entries).ok()?.checked_mul(ENTRY_BYTES)?;
        let records_at = table_bytes.checked_add(HEADER_BYTES)?;
        let head = bytes.get(..records_at)?;
        if checksum(head) != Some(self.checksum(head)) {
            return None;
        }
        let mut table = &head[HEADER_BYTES..];
        let mut changes = Vec::with_capacity(table.len() / ENTRY_BYTES);
        let mut next_record = records_at;
        while !table.is_empty() {
            changes.push(get_change(&mut table, &mut next_record)?);
        }
        (next_record == length).then_some(Frame {
            position: found,
            changes,
            bytes,
        })
    }

    /// Whether all records of the frame are as they were written.
    pub(super) fn is_whole(self, frame: &Frame) -> bool {
        frame.changes.iter().all(|change| {
            let Change::Put(key, place) = change else {
                return true;
            };
            let record = frame.bytes.slice(place.clone());
            match *key {
                Key::Store => self.records.decode_store(&record).is_ok(),
                Key::Group(group) => self.records.decode_group(group, &record).is_ok(),
                Key::Slot(group, slot) => self.records.decode_slot(group, slot, &record).is_ok(),
            }
        })
    }

    /// Of a frame's header and entries; the place of the checksum itself is left out.
    fn checksum(self, head: &[u8]) -> u32 {
        crc32c::crc32c_append(self.identity, &head[8..])
    }
}

/// How long the frame of these changes is at most, with its padding.
pub(super) fn frame_bytes(changes: &Changes) -> usize {
    let records: usize = changes.values().flatten().map(Bytes::len).sum();
    padded(HEADER_BYTES + changes.len() * ENTRY_BYTES + records)
}

/// Whether somebody began to write this frame at this place, however far he came.
pub(super) fn is_begun(contents: &[u8], at: usize, segment: u64, sequence: u64) -> bool {
    let header = contents.get(at..).and_then(parse_header);
    header.is_some_and(|(found, ..)| found.segment == segment && found.sequence == sequence)
}

pub(super) fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK_BYTES)
}

/// Runs of removed slots become one entry.
fn for_each_entry(changes: &Changes, mut put: impl FnMut(Entry)) {
    let entry = |kind, group, first: u64, second: u64| Entry {
        kind,
        group,
        first,
        second,
    };
    let mut removed: Option<(GroupId, Slot, Slot)> = None;
    for (key, record) in changes {
        let is_next = |group, slot: Slot| {
            removed.filter(|(of, _, last)| *of == group && last.0.checked_add(1) == Some(slot.0))
        };
        if let (Key::Slot(group, slot), None) = (*key, record) {
            if let Some((_, first, _)) = is_next(group, slot) {
                removed = Some((group, first, slot));
                continue;
            }
            if let Some((group, first, last)) = removed.replace((group, slot, slot)) {
                put(entry(SLOTS_REMOVED, group, first.0, last.0));
            }
            continue;
        }
        if let Some((group, first, last)) = removed.take() {
            put(entry(SLOTS_REMOVED, group, first.0, last.0));
        }
        let length = record.as_ref().map(|record| record.len() as u64);
        put(match (*key, length) {
            (Key::Store, length) => entry(STORE, GroupId(0), 0, length.unwrap_or(0)),
            (Key::Group(group), Some(length)) => entry(GROUP, group, 0, length),
            (Key::Group(group), None) => entry(GROUP_REMOVED, group, 0, 0),
            (Key::Slot(group, slot), length) => entry(SLOT, group, slot.0, length.unwrap_or(0)),
        });
    }
    if let Some((group, first, last)) = removed {
        put(entry(SLOTS_REMOVED, group, first.0, last.0));
    }
}

fn parse_header(mut bytes: &[u8]) -> Option<(Position, u64, u64)> {
    if bytes.len() < HEADER_BYTES || bytes.get_u32_le() != MAGIC {
        return None;
    }
    let _checksum = bytes.get_u32_le();
    let position = Position {
        segment: bytes.get_u64_le(),
        sequence: bytes.get_u64_le(),
        commit: bytes.get_u64_le(),
    };
    Some((position, bytes.get_u64_le(), bytes.get_u64_le()))
}

/// The next entry; the caller has checked that there is a whole one.
fn get_change(table: &mut &[u8], next_record: &mut usize) -> Option<Change> {
    let kind = table.get_u8();
    let group = GroupId(table.get_u32_le());
    let (first, second) = (table.get_u64_le(), table.get_u64_le());
    let key = match kind {
        STORE => Key::Store,
        GROUP => Key::Group(group),
        SLOT => Key::Slot(group, Slot(first)),
        GROUP_REMOVED => return Some(Change::RemoveGroup(group)),
        SLOTS_REMOVED if first <= second => {
            return Some(Change::RemoveSlots(group, Slot(first)..=Slot(second)));
        }
        _ => return None,
    };
    let at = *next_record;
    *next_record = at.checked_add(usize::try_from(second).ok()?)?;
    Some(Change::Put(key, at..*next_record))
}
