//! A user's storage under the simulated disks: it is given every write, loses its process at every crash, and must
//! come back with what the simulator knows to be on the disk.

use std::{boxed::Box, format, vec::Vec};

use super::{
    disk::{Contents, DiskState, Write},
    oracle::{Violation, ensure},
};
use crate::{
    storage::{Finding, IndexEntry, Owner, Recovered, RecoveredGroup, Storage, StorageError, WriteBatch},
    testing::storage::Place,
    types::{Accepted, ClusterId, GroupId, Incarnation, NodeId, Slot, StorageId, WriteOp},
};

/// The storage of one node, and the place where it is opened again and again.
pub(super) struct Store {
    owner: Owner,
    place: Box<dyn Place>,
    storage: Box<dyn Storage>,
    recovered: Recovered,
    identity: Option<StorageId>,
    /// Storages are called inside a tokio runtime.
    runtime: tokio::runtime::Runtime,
}

impl Store {
    pub(super) fn new(
        cluster: ClusterId,
        node: NodeId,
        mut place: Box<dyn Place>,
    ) -> Result<Self, Violation> {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.map_err(|error| Violation::new("storage", format!("no runtime: {error}")))?;
        let owner = Owner { cluster, node };
        let storage = place
            .open(owner)
            .map_err(|error| failed(node, "opening its empty storage", &error))?;
        let mut store = Self {
            owner,
            place,
            storage,
            recovered: Recovered::default(),
            identity: None,
            runtime,
        };
        store.recover()?;
        store.holds(&Contents::default())?;
        Ok(store)
    }

    /// This life of the node and its disk, as the storage says.
    pub(super) const fn life(&self) -> (StorageId, Incarnation) {
        (self.recovered.identity.storage, self.recovered.incarnation)
    }

    fn recover(&mut self) -> Result<(), Violation> {
        let node = self.owner.node;
        let recovered = self
            .runtime
            .block_on(self.storage.recover())
            .map_err(|error| failed(node, "recovering", &error))?;
        let identity = recovered.identity;
        ensure!(
            identity.cluster == self.owner.cluster && identity.node == node,
            "storage",
            "{node}'s storage says that it belongs to {identity:?}"
        );
        ensure!(
            *self.identity.get_or_insert(identity.storage) == identity.storage,
            "storage",
            "{node}'s storage has another storage id after a restart"
        );
        ensure!(
            recovered.incarnation > self.recovered.incarnation,
            "storage",
            "{node}'s storage counts {:?} after {:?}",
            recovered.incarnation,
            self.recovered.incarnation
        );
        let damage = |finding: &&Finding| matches!(finding, Finding::Damaged { .. });
        let damaged = recovered.findings.iter().find(damage);
        ensure!(
            damaged.is_none(),
            "storage",
            "{node}'s storage reports {damaged:?}"
        );
        self.recovered = recovered;
        Ok(())
    }

    /// All writes under way become durable, as one.
    pub(super) fn write<'a>(
        &mut self,
        writes: impl Iterator<Item = &'a Write>,
        sync: bool,
    ) -> Result<(), Violation> {
        let ops: Vec<WriteOp> = writes.flat_map(|write| write.ops.iter().cloned()).collect();
        self.runtime
            .block_on(self.storage.write(WriteBatch { sync, ops }))
            .map_err(|error| failed(self.owner.node, "writing", &error))
    }

    /// Reads a group's slots, which the disk knows to hold `expected`.
    pub(super) fn read(
        &mut self,
        group: GroupId,
        (from, upto): (Slot, Slot),
        max_bytes: usize,
        expected: &[(Slot, Accepted)],
    ) -> Result<(), Violation> {
        let node = self.owner.node;
        let read = self
            .runtime
            .block_on(self.storage.read(group, from..upto.next(), max_bytes))
            .map_err(|error| failed(node, "reading", &error))?;
        let same = read == expected;
        ensure!(
            same,
            "I5",
            "{node}'s storage reads other entries in slots {from} to {upto} of group {group} than were written: \
             {} instead of {}",
            read.len(),
            expected.len()
        );
        Ok(())
    }

    /// The process dies after having handed over these writes, not all of them durably; the storage is opened anew.
    /// Returns how many it kept.
    pub(super) fn crash<'a>(
        &mut self,
        durable: &Contents,
        unsynced: impl Iterator<Item = &'a Write>,
    ) -> Result<usize, Violation> {
        let mut candidates = std::vec![durable.clone()];
        for write in unsynced {
            self.write(core::iter::once(write), false)?;
            let mut next = candidates.last().cloned().unwrap_or_default();
            write.ops.iter().for_each(|op| next.apply(op));
            candidates.push(next);
        }
        self.reopen()?;
        let kept = candidates.iter().rposition(|contents| self.resembles(contents));
        let kept = kept.unwrap_or(0);
        self.holds(&candidates[kept])?;
        Ok(kept)
    }

    /// Ends in order and comes back.
    pub(super) fn close(&mut self, durable: &Contents) -> Result<(), Violation> {
        self.runtime
            .block_on(self.storage.close())
            .map_err(|error| failed(self.owner.node, "closing", &error))?;
        self.reopen()?;
        self.holds(durable)
    }

    fn reopen(&mut self) -> Result<(), Violation> {
        // The old one first: it may hold a lock.
        self.storage = Box::new(Gone);
        self.storage = self
            .place
            .open(self.owner)
            .map_err(|error| failed(self.owner.node, "opening its storage again", &error))?;
        self.recover()
    }

    fn resembles(&self, contents: &Contents) -> bool {
        let known = contents.groups().chain(self.recovered.groups.keys().copied());
        known.into_iter().all(|group| {
            let found = self.recovered.groups.get(&group).cloned().unwrap_or_default();
            found == outline(contents.group(group))
        })
    }

    /// I5: what was recovered is what was written, entry by entry.
    fn holds(&mut self, contents: &Contents) -> Result<(), Violation> {
        let node = self.owner.node;
        let groups: Vec<GroupId> = contents
            .groups()
            .chain(self.recovered.groups.keys().copied())
            .collect();
        for group in groups {
            let found = self.recovered.groups.get(&group).cloned().unwrap_or_default();
            let expected = outline(contents.group(group));
            ensure!(
                found == expected,
                "I5",
                "{node}'s storage came back with other contents of group {group} than were made durable: {}",
                difference(&found, &expected)
            );
            let entries = contents.group(group).read(Slot(1), Slot::MAX, usize::MAX);
            self.read(group, (Slot(1), Slot::MAX), usize::MAX, &entries)?;
        }
        Ok(())
    }
}

/// What a storage should tell of this when it recovers.
fn outline(state: &DiskState) -> RecoveredGroup {
    let index = state.entries.iter().map(|(slot, accepted)| {
        let bytes = u32::try_from(accepted.entry.payload.len()).unwrap_or(u32::MAX);
        let ballot = accepted.ballot;
        (*slot, IndexEntry { ballot, bytes })
    });
    RecoveredGroup {
        hard_state: state.hard,
        trimmed: state.trimmed,
        index: index.collect(),
        damaged: state.damaged.iter().copied().collect(),
    }
}

fn difference(found: &RecoveredGroup, expected: &RecoveredGroup) -> std::string::String {
    let (a, b) = (&found.index, &expected.index);
    let slot = a.keys().chain(b.keys()).find(|slot| a.get(slot) != b.get(slot));
    match slot {
        Some(slot) => format!("slot {slot} is {:?}, it should be {:?}", a.get(slot), b.get(slot)),
        None => format!(
            "{:?} and {:?} trimmed, it should be {:?} and {:?}",
            found.hard_state, found.trimmed, expected.hard_state, expected.trimmed
        ),
    }
}

fn failed(node: NodeId, doing: &str, error: &StorageError) -> Violation {
    Violation::new("storage", format!("{node} failed while {doing}: {error}"))
}

/// Stands in while a storage is opened again.
struct Gone;

fn gone() -> StorageError {
    StorageError::Misuse("this store is gone".into())
}

#[async_trait::async_trait]
impl Storage for Gone {
    async fn recover(&mut self) -> Result<Recovered, StorageError> {
        Err(gone())
    }

    async fn write(&mut self, _: WriteBatch) -> Result<(), StorageError> {
        Err(gone())
    }

    async fn read(
        &mut self,
        _: GroupId,
        _: core::ops::Range<Slot>,
        _: usize,
    ) -> Result<Vec<(Slot, Accepted)>, StorageError> {
        Err(gone())
    }
}
