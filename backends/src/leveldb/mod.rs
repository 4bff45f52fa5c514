//! Storage in LevelDB (the `rusty-leveldb` crate).
//!
//! As shipped, that crate never syncs, and it carries on after errors. [`env`] is what makes it durable: the files that
//! we give it sync when it flushes, and refuse everything after the first error. What it cannot do (notice missing,
//! outdated or damaged records) is done above it, for all engines alike.
//!
//! Keys: `group u32, 'h'` for the record of a group, `group u32, 'a', slot u64` for the record of a slot, and
//! `0xFFFFFFFF, "store"` for the record of the store, all big-endian, so that a group's slots are in order.

mod env;

use std::{
    any::Any,
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use bytes::{BufMut, Bytes};
use paxos::{
    GroupId, Slot,
    storage::{Finding, Owner, StorageError},
};
use rusty_leveldb::{DB, DBIterator, LdbIterator, Options, Status, infolog::Logger};

use self::env::{DurableEnv, Health, Messages};
use crate::durable::{Changes, Engine, Key, Opening, Store, Visit, storage_by_store};

/// How much is written before LevelDB sorts it into a table, in bytes.
const MEMTABLE_BYTES: usize = 8 << 20;

const GROUP: u8 = b'h';
const SLOT: u8 = b'a';
const STORE_KEY: &[u8] = b"\xff\xff\xff\xffstore";

/// Storage in LevelDB, made durable: one synced log append per write.
///
/// Survives `kill -9` and power failures. LevelDB tidies up (compaction) inside [`write`](paxos::Storage::write) now
/// and then, which delays that call by tens to hundreds of milliseconds.
#[derive(Debug)]
pub struct LevelDb(Store<LevelDbEngine>);

storage_by_store!(LevelDb);

impl LevelDb {
    /// Claims the directory, which is created if it does not exist, for this owner; the files are opened by
    /// [`recover`](paxos::Storage::recover).
    pub fn open(directory: impl AsRef<Path>, owner: Owner) -> Result<Self, StorageError> {
        Self::open_with_fault(directory, owner, u64::MAX)
    }

    /// For tests: as [`open`](Self::open), but LevelDB's `call`-th operation on its files, counted from 0, fails as
    /// if the disk did.
    #[doc(hidden)]
    pub fn open_with_fault(
        directory: impl AsRef<Path>,
        owner: Owner,
        call: u64,
    ) -> Result<Self, StorageError> {
        let directory = directory.as_ref();
        let engine = LevelDbEngine {
            path: directory.join("leveldb"),
            health: Health::failing_at(call),
            db: None,
        };
        Store::open(directory, "leveldb", owner, engine).map(Self)
    }
}

/// The database, and whether its files still work.
pub(crate) struct LevelDbEngine {
    path: PathBuf,
    health: Arc<Health>,
    db: Option<DB>,
}

impl LevelDbEngine {
    /// Runs one operation. What the files have to say about a failure comes before what LevelDB made of it; and
    /// LevelDB may panic on damaged tables.
    fn run<T>(
        &mut self,
        doing: &str,
        operation: impl FnOnce(&mut DB) -> Result<T, Status>,
    ) -> Result<T, StorageError> {
        let Some(db) = &mut self.db else {
            return Err(StorageError::Misuse(format!("{doing} a closed database")));
        };
        let result = catch_unwind(AssertUnwindSafe(|| operation(db)));
        self.outcome(doing, result)
    }

    fn outcome<T>(
        &self,
        doing: &str,
        result: std::thread::Result<Result<T, Status>>,
    ) -> Result<T, StorageError> {
        let at = self.path.display();
        let error = match (self.health.failure(), result) {
            (Some(failure), _) => return Err(failure),
            (None, Ok(Ok(value))) => return Ok(value),
            (None, Ok(Err(status))) => StorageError::Corrupt(format!("{doing} {at}: {status}")),
            (None, Err(panic)) => {
                StorageError::Corrupt(format!("{doing} {at}: LevelDB panicked: {}", message(&*panic)))
            }
        };
        // Whatever the database is now, it must not write any more, not even when it is dropped.
        self.health.fail(error.clone());
        Err(error)
    }
}

impl Drop for LevelDbEngine {
    fn drop(&mut self) {
        // After a crash of its own it may panic once more.
        let db = self.db.take();
        drop(catch_unwind(AssertUnwindSafe(|| drop(db))));
    }
}

impl Engine for LevelDbEngine {
    async fn load(&mut self, opening: Opening, visit: &mut Visit<'_>) -> Result<Vec<Finding>, StorageError> {
        let path = self.path.clone();
        if !opening.is_new() && !path.join("CURRENT").exists() {
            let error = format!(
                "{}: the database, or its file CURRENT, is missing",
                path.display()
            );
            return Err(StorageError::Corrupt(error));
        }
        let options = options(&self.health);
        let opened = catch_unwind(AssertUnwindSafe(|| DB::open(&path, options)));
        self.db = Some(self.outcome("opening", opened)?);
        self.run("scanning", |db| {
            let mut records = db.new_iter()?;
            records.seek_to_first();
            while let Some((key, record)) = records.current() {
                if let Some(key) = decode_key(&key) {
                    visit(key, Some(record));
                }
                records.advance();
            }
            Ok(Vec::new())
        })
    }

    async fn commit(&mut self, changes: Changes, _: u64, sync: bool) -> Result<(), StorageError> {
        let mut batch = rusty_leveldb::WriteBatch::default();
        for (key, record) in changes {
            let key = encode_key(key);
            match record {
                Some(record) => batch.put(&key, &record),
                None => batch.delete(&key),
            }
        }
        self.run("writing to", |db| db.write(batch, sync))
    }

    async fn read(&mut self, group: GroupId, slots: &[Slot]) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.run("reading", |db| {
            let mut records = db.new_iter()?;
            let mut found = Vec::with_capacity(slots.len());
            for slot in slots {
                let wanted = encode_key(Key::Slot(group, *slot));
                let at = |records: &DBIterator| records.current().filter(|(key, _)| *key == wanted);
                // Neighbours as a rule: the iterator is there already.
                let mut record = at(&records);
                if record.is_none() {
                    records.seek(&wanted);
                    record = at(&records);
                }
                found.push(record.map(|(_, record)| record));
                records.advance();
            }
            Ok(found)
        })
    }

    async fn close(&mut self) -> Result<(), StorageError> {
        self.run("closing", DB::close)?;
        let db = self.db.take();
        self.outcome("closing", catch_unwind(AssertUnwindSafe(|| drop(db))).map(Ok))
    }
}

fn options(health: &Arc<Health>) -> Options {
    Options {
        env: Rc::new(Box::new(DurableEnv::new(Arc::clone(health)))),
        log: Some(Rc::new(RefCell::new(Logger(Box::new(Messages::new(
            Arc::clone(health),
        )))))),
        // An old log may end in a torn record, behind which nothing would ever be found.
        reuse_logs: false,
        reuse_manifest: false,
        write_buffer_size: MEMTABLE_BYTES,
        ..Options::default()
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

fn encode_key(key: Key) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + 1 + 8);
    match key {
        Key::Store => bytes.put_slice(STORE_KEY),
        Key::Group(group) => {
            bytes.put_u32(group.0);
            bytes.put_u8(GROUP);
        }
        Key::Slot(group, slot) => {
            bytes.put_u32(group.0);
            bytes.put_u8(SLOT);
            bytes.put_u64(slot.0);
        }
    }
    bytes
}

/// A key that is none of ours is passed over: if it was one once, the summaries miss it.
fn decode_key(key: &[u8]) -> Option<Key> {
    if key == STORE_KEY {
        return Some(Key::Store);
    }
    let (group, rest) = key.split_first_chunk::<4>()?;
    let group = GroupId(u32::from_be_bytes(*group));
    match *rest {
        [GROUP] => Some(Key::Group(group)),
        [SLOT, ref slot @ ..] => {
            let slot = u64::from_be_bytes(slot.try_into().ok()?);
            Some(Key::Slot(group, Slot(slot)))
        }
        _ => None,
    }
}
