//! Snapshots in memory.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    vec::Vec,
};
use core::mem;
use std::{
    io::{self, Cursor},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::{
    Chunk, Found, Received, SnapshotError, SnapshotHeader, SnapshotStore,
    files::KEEP,
    format::{self as encoding, Decoder},
    progress::Progress,
};
use crate::{
    state_machine::SnapshotSource,
    types::{GroupId, Slot},
};

/// Snapshots in memory, for tests and for stores in memory: they survive a crash of the node as long as a clone of this
/// lives, and no longer. Clones are the same store.
#[derive(Clone, Debug)]
pub struct MemorySnapshots {
    groups: Arc<Mutex<BTreeMap<GroupId, Held>>>,
    keep: usize,
}

#[derive(Debug, Default)]
struct Held {
    whole: BTreeMap<Slot, Bytes>,
    /// As for files: those of which a piece was read since some were last dropped.
    read: BTreeSet<Slot>,
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    progress: Progress,
    bytes: Vec<u8>,
}

impl Default for MemorySnapshots {
    fn default() -> Self {
        Self {
            groups: Arc::default(),
            keep: KEEP,
        }
    }
}

impl MemorySnapshots {
    /// A store without any snapshots.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps so many snapshots of each group (at least 1; 2 unless told otherwise).
    #[must_use]
    pub fn keep(mut self, count: usize) -> Self {
        self.keep = count.max(1);
        self
    }

    fn groups(&self) -> MutexGuard<'_, BTreeMap<GroupId, Held>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn whole(&self, group: GroupId, upto: Slot) -> Result<Bytes, SnapshotError> {
        let groups = self.groups();
        let bytes = groups.get(&group).and_then(|held| held.whole.get(&upto));
        bytes.cloned().ok_or(SnapshotError::Missing { group, upto })
    }
}

impl Held {
    fn add(&mut self, upto: Slot, bytes: Bytes, keep: usize) {
        self.whole.insert(upto, bytes);
        let old = self.whole.len().saturating_sub(keep);
        let old: Vec<Slot> = self.whole.keys().take(old).copied().collect();
        let read = mem::take(&mut self.read);
        for upto in old {
            if !read.contains(&upto) {
                self.whole.remove(&upto);
            }
        }
    }

    fn store(
        &mut self,
        group: GroupId,
        upto: Slot,
        offset: u64,
        chunk: &Chunk,
        keep: usize,
    ) -> Result<Received, SnapshotError> {
        let is_of = |partial: &Partial| partial.progress.is_of(upto, chunk);
        if !self.partial.as_ref().is_some_and(is_of) && offset == 0 {
            let (total, bytes) = (chunk.total, 0);
            self.partial = Some(Partial {
                progress: Progress { upto, total, bytes },
                bytes: Vec::new(),
            });
        }
        let Some(Partial { progress, bytes }) = self.partial.as_mut().filter(|partial| is_of(partial)) else {
            return Ok(Received::UpTo(0));
        };
        if progress.continues(group, offset, chunk)? {
            bytes.extend_from_slice(&chunk.data);
            progress.bytes = bytes.len() as u64;
        }
        if let Some(unfinished) = progress.unfinished() {
            return Ok(unfinished);
        }
        let header =
            encoding::verify(&**bytes, group, upto).map_err(|error| unreadable(group, upto, error))?;
        let whole = mem::take(bytes);
        self.partial = None;
        self.add(upto, whole.into(), keep);
        Ok(Received::Whole(Box::new(header)))
    }
}

fn unreadable(group: GroupId, upto: Slot, error: io::Error) -> SnapshotError {
    encoding::finding(group, upto, &error)
        .unwrap_or_else(|| SnapshotError::io("reading a snapshot in memory", error))
}

impl SnapshotStore for MemorySnapshots {
    fn newest(&self, group: GroupId) -> Result<Found, SnapshotError> {
        let newest = {
            let groups = self.groups();
            let held = groups.get(&group).and_then(|held| held.whole.last_key_value());
            held.map(|(upto, bytes)| (*upto, bytes.clone()))
        };
        let newest = newest.map(|(upto, bytes)| {
            encoding::verify(&*bytes, group, upto).map_err(|error| unreadable(group, upto, error))
        });
        Ok(Found {
            newest: newest.transpose()?,
            damaged: Vec::new(),
        })
    }

    fn save(&self, header: &SnapshotHeader, source: Box<dyn SnapshotSource>) -> Result<(), SnapshotError> {
        let mut bytes = Vec::new();
        encoding::encode(header, source, &mut bytes)
            .map_err(|error| error.when(|| "writing to memory".into()))?;
        let mut groups = self.groups();
        let held = groups.entry(header.group).or_default();
        held.add(header.upto, bytes.into(), self.keep);
        held.partial
            .take_if(|partial| partial.progress.upto <= header.upto);
        Ok(())
    }

    fn open(&self, group: GroupId, upto: Slot) -> Result<Box<dyn io::Read + Send>, SnapshotError> {
        let bytes = self.whole(group, upto)?;
        let opened = Decoder::open(Cursor::new(bytes), group, upto);
        let (decoder, _) = opened.map_err(|error| unreadable(group, upto, error))?;
        Ok(Box::new(decoder))
    }

    fn read_chunk(
        &self,
        group: GroupId,
        upto: Slot,
        offset: u64,
        max_bytes: usize,
    ) -> Result<Chunk, SnapshotError> {
        let bytes = self.whole(group, upto)?;
        if let Some(held) = self.groups().get_mut(&group) {
            held.read.insert(upto);
        }
        let first = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let last = first.saturating_add(max_bytes).min(bytes.len());
        Ok(Chunk {
            total: bytes.len() as u64,
            data: bytes.slice(first..last),
        })
    }

    fn store_chunk(
        &self,
        group: GroupId,
        upto: Slot,
        offset: u64,
        chunk: Chunk,
    ) -> Result<Received, SnapshotError> {
        let mut groups = self.groups();
        let held = groups.entry(group).or_default();
        let stored = held.store(group, upto, offset, &chunk, self.keep);
        if stored.is_err() {
            held.partial = None;
        }
        stored
    }

    fn remove_group(&self, group: GroupId) -> Result<(), SnapshotError> {
        self.groups().remove(&group);
        Ok(())
    }
}
