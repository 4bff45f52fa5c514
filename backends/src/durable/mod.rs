//! What the backends on disk have in common.
//!
//! An [`Engine`] is a small thing: it keeps bytes under keys and commits sets of changes atomically. Everything that
//! makes a [`Storage`] of it is here, once: identity, lock and rollback detection ([`directory`]), the index and the
//! checksums by which missing and outdated records are noticed ([`ledger`], [`verify`]), poisoning, and misuse.

mod directory;
mod ledger;
#[cfg(test)]
mod tests;
mod verify;

use std::{collections::BTreeMap, fmt, ops::Range, path::Path};

use async_trait::async_trait;
use bytes::Bytes;
use paxos::{
    Accepted, GroupId, Identity, Slot,
    record::{Records, SlotRecord},
    storage::{Finding, Owner, Recovered, Storage, StorageError, WriteBatch, next_incarnation},
};

use self::{directory::Directory, ledger::Ledger, verify::Loaded};

/// Where a record is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// The one record about the store.
    Store,
    /// The record of a group.
    Group(GroupId),
    /// The record of a slot.
    Slot(GroupId, Slot),
}

/// What a commit does to each key: a new record, or none any more.
pub(crate) type Changes = BTreeMap<Key, Option<Bytes>>;

/// What an engine is told when it opens its files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    /// Whose store it is.
    #[cfg_attr(
        not(feature = "wal"),
        allow(dead_code, reason = "records are checked by the caller")
    )]
    pub(crate) identity: Identity,
    /// The last commit known to have been durable; 0 if nothing has ever been, and then alone new files are made.
    pub(crate) last_synced: u64,
}

impl Opening {
    /// Whether nothing has ever been durable here.
    pub(crate) fn is_new(&self) -> bool {
        self.last_synced == 0
    }
}

/// What an engine shows its records to: the latest of a key counts, `None` takes back what was shown of it.
pub(crate) type Visit<'a> = dyn FnMut(Key, Option<Bytes>) + Send + 'a;

/// A key-value engine with atomic, durable commits. After an error of any call but `read` it is never called again.
pub(crate) trait Engine: Send + 'static {
    /// Opens the engine's files and shows every record to `visit`. Returns what it noticed about the files; records
    /// that are damaged, missing or out of date are found by the caller.
    fn load(
        &mut self,
        opening: Opening,
        visit: &mut Visit<'_>,
    ) -> impl Future<Output = Result<Vec<Finding>, StorageError>> + Send;

    /// Makes all changes or, after a crash, none; durable on return if `sync`, together with all earlier commits.
    /// `number` is the commit's, the last one's plus 1. The store's own record is in every commit.
    fn commit(
        &mut self,
        changes: Changes,
        number: u64,
        sync: bool,
    ) -> impl Future<Output = Result<(), StorageError>> + Send;

    /// The records of these slots, in order; `None` where the engine finds nothing.
    fn read(
        &mut self,
        group: GroupId,
        slots: &[Slot],
    ) -> impl Future<Output = Result<Vec<Option<Bytes>>, StorageError>> + Send;

    /// Makes everything durable and lets go of the files.
    fn close(&mut self) -> impl Future<Output = Result<(), StorageError>> + Send;
}

/// A [`Storage`] on an engine.
pub(crate) struct Store<E> {
    engine: E,
    state: State,
    /// Dropped, and with it unlocked, after the engine.
    directory: Directory,
}

enum State {
    /// Before `recover`.
    Opened,
    /// Between `recover` and `close`.
    Running(Ledger),
    /// After the first error.
    Failed(StorageError),
    /// After `close`.
    Closed,
}

impl<E> fmt::Debug for Store<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl<E: Engine> Store<E> {
    /// Claims the directory for this owner and backend; the engine's files are opened by `recover`.
    pub(crate) fn open(
        path: &Path,
        backend: &'static str,
        owner: Owner,
        engine: E,
    ) -> Result<Self, StorageError> {
        Ok(Self {
            directory: Directory::open(path, backend, owner)?,
            engine,
            state: State::Opened,
        })
    }

    async fn load(&mut self) -> Result<(Recovered, Ledger), StorageError> {
        let identity = self.directory.identity();
        let mut loaded = Loaded::new(Records::new(identity));
        let opening = Opening {
            identity,
            last_synced: self.directory.last_synced(),
        };
        let mut findings = self
            .engine
            .load(opening, &mut |key, record| loaded.visit(key, record))
            .await?;
        let store = loaded.store(&self.directory)?;
        let mut verified = loaded.verify(store)?;
        let incarnation = next_incarnation(store.incarnation);
        let ledger = &mut verified.ledger;
        ledger.begin_life(incarnation);
        ledger.seal(&mut verified.repairs);
        let number = ledger.commit();
        self.engine.commit(verified.repairs, number, true).await?;
        self.directory.synced(number)?;
        self.directory.sync()?;
        for finding in &findings {
            tracing::warn!(directory = %self.directory, ?finding, "the last write was cut off");
        }
        for finding in &verified.findings {
            tracing::error!(directory = %self.directory, ?finding, "storage is damaged");
        }
        findings.append(&mut verified.findings);
        let recovered = Recovered {
            identity,
            incarnation,
            groups: verified.ledger.recovered(),
            findings,
        };
        Ok((recovered, verified.ledger))
    }

    async fn commit(&mut self, batch: &WriteBatch) -> Result<(), StorageError> {
        let State::Running(ledger) = &mut self.state else {
            return Err(misuse("written to"));
        };
        let changes = ledger.apply(batch);
        let number = ledger.commit();
        self.engine.commit(changes, number, batch.sync).await?;
        if batch.sync {
            self.directory.synced(number)?;
        }
        Ok(())
    }

    fn running(&mut self, used: &str) -> Result<&mut Ledger, StorageError> {
        match &mut self.state {
            State::Running(ledger) => Ok(ledger),
            State::Failed(first) => Err(first.poisoned()),
            State::Opened | State::Closed => Err(misuse(used)),
        }
    }

    /// The first error is the last.
    fn fail<T>(&mut self, error: StorageError) -> Result<T, StorageError> {
        self.state = State::Failed(error.clone());
        Err(error)
    }
}

fn misuse(used: &str) -> StorageError {
    StorageError::Misuse(format!("a store is {used} between recover and close only"))
}

/// Of a record that was good when the store was opened, or written since.
fn damaged(group: GroupId, slot: Slot, what: impl fmt::Display) -> StorageError {
    StorageError::Corrupt(format!("group {group}, slot {slot}: {what}"))
}

#[async_trait]
impl<E: Engine> Storage for Store<E> {
    async fn recover(&mut self) -> Result<Recovered, StorageError> {
        match &self.state {
            State::Opened => {}
            State::Failed(first) => return Err(first.poisoned()),
            State::Running(_) | State::Closed => {
                return Err(StorageError::Misuse("recover is called once, first".into()));
            }
        }
        match self.load().await {
            Ok((recovered, ledger)) => {
                self.state = State::Running(ledger);
                Ok(recovered)
            }
            Err(error) => self.fail(error),
        }
    }

    async fn write(&mut self, batch: WriteBatch) -> Result<(), StorageError> {
        self.running("written to")?.check(&batch)?;
        match self.commit(&batch).await {
            Ok(()) => Ok(()),
            Err(error) => self.fail(error),
        }
    }

    async fn read(
        &mut self,
        group: GroupId,
        slots: Range<Slot>,
        max_bytes: usize,
    ) -> Result<Vec<(Slot, Accepted)>, StorageError> {
        let ledger = self.running("read")?;
        let records = ledger.records();
        let wanted = ledger.select(group, slots, max_bytes)?;
        let slots: Vec<Slot> = wanted.iter().map(|(slot, _)| *slot).collect();
        if slots.is_empty() {
            return Ok(Vec::new());
        }
        let found = match self.engine.read(group, &slots).await {
            Ok(found) => found,
            Err(error @ StorageError::Corrupt(_)) => return Err(error),
            Err(error) => return self.fail(error),
        };
        let mut entries = Vec::with_capacity(wanted.len());
        let mut found = found.into_iter();
        for (slot, checksum) in wanted {
            let record = found
                .next()
                .flatten()
                .ok_or_else(|| damaged(group, slot, "the record is missing"))?;
            if paxos::record::checksum(&record) != Some(checksum) {
                return Err(damaged(group, slot, "the record is not the last one written"));
            }
            match records.decode_slot(group, slot, &record) {
                Ok(SlotRecord::Entry(accepted)) => entries.push((slot, accepted)),
                Ok(SlotRecord::Damaged) => return Err(damaged(group, slot, "lost to earlier damage")),
                Err(error) => return Err(damaged(group, slot, error)),
            }
        }
        Ok(entries)
    }

    async fn close(&mut self) -> Result<(), StorageError> {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Running(ledger) => {
                let closed = match self.engine.close().await {
                    Ok(()) => self
                        .directory
                        .synced(ledger.commit())
                        .and_then(|()| self.directory.sync()),
                    Err(error) => Err(error),
                };
                self.directory.unlock();
                closed.or_else(|error| self.fail(error))
            }
            State::Failed(first) => {
                let error = first.poisoned();
                self.state = State::Failed(first);
                Err(error)
            }
            State::Opened | State::Closed => {
                self.directory.unlock();
                Ok(())
            }
        }
    }
}

/// Makes a newtype over a [`Store`] a [`Storage`].
macro_rules! storage_by_store {
    ($name:ident) => {
        #[async_trait::async_trait]
        impl paxos::Storage for $name {
            async fn recover(&mut self) -> Result<paxos::storage::Recovered, paxos::StorageError> {
                self.0.recover().await
            }

            async fn write(&mut self, batch: paxos::storage::WriteBatch) -> Result<(), paxos::StorageError> {
                self.0.write(batch).await
            }

            async fn read(
                &mut self,
                group: paxos::GroupId,
                slots: std::ops::Range<paxos::Slot>,
                max_bytes: usize,
            ) -> Result<Vec<(paxos::Slot, paxos::Accepted)>, paxos::StorageError> {
                self.0.read(group, slots, max_bytes).await
            }

            async fn close(&mut self) -> Result<(), paxos::StorageError> {
                self.0.close().await
            }
        }
    };
}
pub(crate) use storage_by_store;
