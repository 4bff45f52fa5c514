//! Every backend keeps the contract of `Storage`.

use paxos::{
    Storage,
    storage::{Owner, StorageError},
    testing::storage::Place,
};
use paxos_backends::{LevelDb, Memory, MemoryDisk, Sqlite, Wal, WalOptions};
use tempfile::TempDir;

paxos::storage_conformance!(memory, || {
    let disk = MemoryDisk::default();
    move |owner| Memory::open(&disk, owner)
});

paxos::storage_conformance!(leveldb, LevelDbPlace::default);

paxos::storage_conformance!(sqlite, || {
    let directory = tempfile::tempdir().expect("a temporary directory");
    move |owner| Sqlite::open(directory.path(), owner)
});

paxos::storage_conformance!(wal, || {
    let directory = tempfile::tempdir().expect("a temporary directory");
    move |owner| Wal::open(directory.path(), owner)
});

paxos::storage_conformance!(wal_of_small_segments, SmallSegments::default);

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
}
