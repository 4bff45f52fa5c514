//! Reads the log when it is opened.

use bytes::Bytes;
use paxos::storage::{Finding, StorageError};

use super::{
    blocks::BLOCK_BYTES,
    frame::{self, Change, Frame, Frames},
    log::{Log, Place, Segment, whole_blocks},
    spares,
};
use crate::durable::{Key, Opening, Visit};

const SEGMENT_PREFIX: &str = "segment-";

/// The frame that was found last. It is taken in when a later one is found, which proves that it is durable.
struct Last {
    at: u64,
    /// Which of the segments it is in.
    segment: usize,
    frame: Frame,
}

impl Log {
    /// Shows all records that frames hold, in the order of the log, and finds its end.
    ///
    /// The last frame may have been torn by a crash: then it is dropped as a whole. If it is whole, it may still be
    /// that only the system's cache holds it, so it is written and synced again before anybody relies on it.
    pub(super) fn replay(
        &mut self,
        opening: Opening,
        visit: &mut Visit<'_>,
    ) -> Result<Vec<Finding>, StorageError> {
        let frames = Frames::new(opening.identity);
        self.frames = Some(frames);
        self.open_files(opening)?;
        let mut last: Option<Last> = None;
        // Whether somebody began to write the frame after the last one.
        let mut begun = None;
        for segment in 0..self.segments.len() {
            let contents = self.disk.read_all(&self.segments[segment].file)?;
            let mut at = 0;
            while at < contents.len() {
                let number = self.segments[segment].number;
                let found = frames.parse(number, &contents, at);
                let Some(frame) = found.filter(|frame| frame.position.sequence > self.sequence) else {
                    at += BLOCK_BYTES;
                    continue;
                };
                self.sequence = frame.position.sequence;
                let next = at + frame::padded(frame.bytes.len());
                let found = Last {
                    at: at as u64,
                    segment,
                    frame,
                };
                if let Some(durable) = last.replace(found) {
                    self.take_in_frame(durable, visit);
                }
                at = next;
            }
            let begins_here = match &last {
                Some(last) if last.segment == segment => {
                    begun = None;
                    self.begun_frame(
                        segment,
                        &contents,
                        last.at as usize + frame::padded(last.frame.bytes.len()),
                    )
                }
                _ => self.begun_frame(segment, &contents, 0),
            };
            begun = begun.or(begins_here);
        }
        let is_torn = last.as_ref().is_some_and(|last| {
            last.frame.position.commit > opening.last_synced && !frames.is_whole(&last.frame)
        });
        let torn = if is_torn {
            self.drop_torn(last)?
        } else {
            self.keep_last(last, visit)?;
            begun
        };
        self.drop_unused()?;
        self.select_moves();
        let finding = torn.map(|detail| Finding::TornTail { detail });
        Ok(finding.into_iter().collect())
    }

    /// Opens the segments that follow each other without a gap up to the newest; other files are spare.
    fn open_files(&mut self, opening: Opening) -> Result<(), StorageError> {
        if opening.is_new() {
            self.disk.create_directory(&self.path)?;
        } else if !self.path.is_dir() {
            let at = self.path.display();
            return Err(StorageError::Corrupt(format!("{at}: the log is missing")));
        }
        let mut numbers = Vec::new();
        let mut spare = Vec::new();
        for (name, bytes) in self.disk.list(&self.path)? {
            let number = |prefix| u64::from_str_radix(name.strip_prefix(prefix)?, 16).ok();
            if let Some(number) = number(SEGMENT_PREFIX) {
                numbers.push((number, bytes));
            } else if let Some(number) = number(spares::PREFIX) {
                spare.push((number, bytes));
            }
        }
        numbers.sort_unstable();
        let run = numbers
            .windows(2)
            .rposition(|pair| pair[0].0.checked_add(1) != Some(pair[1].0))
            .map_or(0, |gap| gap + 1);
        for (number, bytes) in numbers.drain(run..) {
            let file = self.disk.open(self.segment_path(number))?;
            self.segments.push_back(Segment {
                number,
                file,
                capacity: whole_blocks(bytes),
                end: 0,
                live_records: 0,
                live_bytes: 0,
            });
        }
        let wanted = self.wanted_bytes();
        for (number, bytes) in spare {
            self.spares.found(&mut self.disk, number, bytes, wanted)?;
        }
        for (number, bytes) in numbers {
            let path = self.segment_path(number);
            self.spares.recycle(&mut self.disk, &path, bytes, wanted)?;
        }
        Ok(())
    }

    fn take_in_frame(&mut self, found: Last, visit: &mut Visit<'_>) {
        let Last { at, segment, frame } = found;
        let segment = &mut self.segments[segment];
        segment.end = at + frame::padded(frame.bytes.len()) as u64;
        let number = segment.number;
        for change in frame.changes {
            match change {
                Change::Put(key, range) => {
                    let place = Place {
                        segment: number,
                        at: at + range.start as u64,
                        bytes: range.len(),
                    };
                    // A copy of what is kept: a slice would keep the whole segment in memory.
                    let copied = || Bytes::copy_from_slice(&frame.bytes[range.clone()]);
                    match key {
                        Key::Store => visit(key, Some(copied())),
                        Key::Group(group) => {
                            let record = copied();
                            self.put_group(group, record.clone());
                            visit(key, Some(record));
                        }
                        Key::Slot(group, slot) => {
                            self.put(group, slot, place);
                            visit(key, Some(frame.bytes.slice(range)));
                        }
                    }
                }
                Change::RemoveGroup(group) => {
                    self.remove_group(group);
                    visit(Key::Group(group), None);
                }
                Change::RemoveSlots(group, slots) => {
                    for slot in self.held_slots(group, *slots.start(), *slots.end()) {
                        self.remove_slot(group, slot);
                        visit(Key::Slot(group, slot), None);
                    }
                }
            }
        }
    }

    /// The last frame is whole, or was acknowledged: it stays, durable from now on at the latest.
    fn keep_last(&mut self, last: Option<Last>, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        let Some(last) = last else {
            return Ok(());
        };
        let file = &mut self.segments[last.segment].file;
        self.disk.write(file, &last.frame.bytes, last.at)?;
        self.disk.sync(file)?;
        self.take_in_frame(last, visit);
        Ok(())
    }

    /// The last frame was torn: it must never be found again.
    fn drop_torn(&mut self, last: Option<Last>) -> Result<Option<String>, StorageError> {
        let Some(last) = last else {
            return Ok(None);
        };
        let file = &mut self.segments[last.segment].file;
        self.disk.write(file, &[0; BLOCK_BYTES], last.at)?;
        self.disk.sync(file)?;
        self.sequence -= 1;
        let at = file.path.display();
        Ok(Some(format!(
            "{at}: the frame at byte {} lacks some of its {} bytes",
            last.at,
            last.frame.bytes.len()
        )))
    }

    /// What is to be said if the frame after the last one was begun here.
    fn begun_frame(&self, segment: usize, contents: &[u8], at: usize) -> Option<String> {
        let segment = &self.segments[segment];
        let path = segment.file.path.display();
        let is_begun = frame::is_begun(contents, at, segment.number, self.sequence + 1);
        is_begun.then(|| format!("{path}: the frame at byte {at} is cut off"))
    }

    /// Segments after the last frame hold nothing. Their numbers are given away again.
    fn drop_unused(&mut self) -> Result<(), StorageError> {
        while let Some(unused) = self.segments.pop_back_if(|segment| segment.end == 0) {
            let wanted = self.wanted_bytes();
            self.spares
                .recycle(&mut self.disk, &unused.file.path, unused.capacity, wanted)?;
        }
        Ok(())
    }
}
