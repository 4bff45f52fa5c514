//! Every backend keeps the contract of `Storage`.

use std::path::Path;

use paxos::{
    GroupId, Slot, Storage,
    storage::{Owner, StorageError},
    testing::storage::{Place, flip_in_files},
};
use paxos_backends::{LevelDb, Memory, MemoryDisk, Sqlite, Wal, WalOptions};
use tempfile::TempDir;

paxos::storage_conformance!(memory, InMemory::default);

paxos::storage_conformance!(leveldb, LevelDbPlace::default);

paxos::storage_conformance!(sqlite, || Directory::new(|path, owner| Ok(Box::new(
    Sqlite::open(path, owner)?
))));

paxos::storage_conformance!(wal, || Directory::new(|path, owner| Ok(Box::new(Wal::open(
    path, owner
)?))));

paxos::storage_conformance!(wal_of_small_segments, SmallSegments::default);

/// Every one of these stores keeps payloads as they are, but a long one perhaps in several pieces.
fn flip(directory: &Path, payload: &[u8]) -> bool {
    let is_hit = flip_in_files(directory, &payload[..64]).expect("files that can be written");
    assert!(is_hit, "the payload is nowhere in {}", directory.display());
    is_hit
}

/// Memory that outlives its store.
#[derive(Default)]
struct InMemory(MemoryDisk);

impl Place for InMemory {
    fn open(&mut self, owner: Owner) -> Result<Box<dyn Storage>, StorageError> {
        Ok(Box::new(Memory::open(&self.0, owner)?))
    }

    fn damage(&mut self, group: GroupId, slot: Slot, _: &[u8]) -> bool {
        self.0.damage(group, slot)
    }
}

type Open = fn(&Path, Owner) -> Result<Box<dyn Storage>, StorageError>;

/// A directory that a store is opened in.
struct Directory {
    directory: TempDir,
    open: Open,
}

impl Directory {
    fn new(open: Open) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self { directory, open }
    }
}

impl Place for Directory {
    fn open(&mut self, owner: Owner) -> Result<Box<dyn Storage>, StorageError> {
        (self.open)(self.directory.path(), owner)
    }

    fn damage(&mut self, _: GroupId, _: Slot, payload: &[u8]) -> bool {
        flip(self.directory.path(), payload)
    }
}

/// A directory whose log turns over all the time, and can be made to fail at any operation on its files.
struct SmallSegments(TempDir);

impl Default for SmallSegments {
    fn default() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }
}

impl Place for SmallSegments {
    fn open(&mut self, owner: Owner) -> Result<Box<dyn Storage>, StorageError> {
        let options = WalOptions::default().segment_bytes(16 << 10);
        Ok(Box::new(Wal::open_with(self.0.path(), owner, options)?))
    }

    fn open_failing(&mut self, owner: Owner, call: u64) -> Option<Result<Box<dyn Storage>, StorageError>> {
        let options = WalOptions::default().segment_bytes(16 << 10);
        let opened = Wal::open_with_fault(self.0.path(), owner, options, call);
        Some(opened.map(|storage| -> Box<dyn Storage> { Box::new(storage) }))
    }

    fn damage(&mut self, _: GroupId, _: Slot, payload: &[u8]) -> bool {
        flip(self.0.path(), payload)
    }
}

/// A directory whose LevelDB can be made to fail at any operation on its files.
struct LevelDbPlace(TempDir);

impl Default for LevelDbPlace {
    fn default() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }
}

impl Place for LevelDbPlace {
    fn open(&mut self, owner: Owner) -> Result<Box<dyn Storage>, StorageError> {
        Ok(Box::new(LevelDb::open(self.0.path(), owner)?))
    }

    fn open_failing(&mut self, owner: Owner, call: u64) -> Option<Result<Box<dyn Storage>, StorageError>> {
        let opened = LevelDb::open_with_fault(self.0.path(), owner, call);
        Some(opened.map(|storage| -> Box<dyn Storage> { Box::new(storage) }))
    }

    fn damage(&mut self, _: GroupId, _: Slot, payload: &[u8]) -> bool {
        flip(self.0.path(), payload)
    }
}
