//! What the tests of the durable backends share.

#![allow(dead_code, reason = "every test uses a part of it")]

use std::{future::Future, io::Write, path::Path};

use bytes::Bytes;
use paxos::{
    Ballot, ClusterId, Entry, EntryKind, GroupId, HardState, NodeId, Slot, Storage, WriteOp,
    storage::{Owner, Recovered, StorageError, WriteBatch},
};
use paxos_backends::Backend;

pub(crate) const OWNER: Owner = Owner {
    cluster: ClusterId(0xBEEF),
    node: NodeId(2),
};

pub(crate) const DURABLE: [Backend; 3] = [Backend::Wal, Backend::LevelDb, Backend::Sqlite];

/// A number from the environment: how much of something a test does.
pub(crate) fn amount(name: &str, default: usize) -> usize {
    std::env::var(name)
        .ok()
        .and_then(|number| number.parse().ok())
        .unwrap_or(default)
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be built").block_on(future)
}

pub(crate) fn open(backend: Backend, directory: &Path) -> Result<Box<dyn Storage>, StorageError> {
    paxos_backends::open(backend, directory, OWNER)
}

pub(crate) async fn recover(
    backend: Backend,
    directory: &Path,
) -> Result<(Box<dyn Storage>, Recovered), StorageError> {
    let mut storage = open(backend, directory)?;
    let recovered = storage.recover().await?;
    Ok((storage, recovered))
}

pub(crate) async fn write(storage: &mut dyn Storage, ops: Vec<WriteOp>) -> Result<(), StorageError> {
    storage.write(WriteBatch { sync: true, ops }).await
}

pub(crate) fn ballot(round: u64) -> Ballot {
    Ballot {
        round,
        node: NodeId(1),
    }
}

pub(crate) fn accept(group: u32, slot: u64, round: u64, payload: Bytes) -> WriteOp {
    WriteOp::Accept {
        group: GroupId(group),
        slot: Slot(slot),
        ballot: ballot(round),
        entry: Entry {
            kind: EntryKind::Commands,
            payload,
        },
    }
}

pub(crate) fn hard_state(group: u32, round: u64, chosen: u64) -> WriteOp {
    WriteOp::HardState {
        group: GroupId(group),
        state: HardState {
            promised: ballot(round),
            chosen: Slot(chosen),
            membership: Slot::ZERO,
            quarantine: None,
        },
    }
}

/// Says that a test could not do its work; nobody shall take that for a pass.
pub(crate) fn skip(why: impl std::fmt::Display) {
    // Not by a macro: the output of tests that pass is swallowed.
    let said = writeln!(std::io::stderr(), "\n*** SKIPPED: {why} ***\n");
    said.expect("standard error is open");
}
