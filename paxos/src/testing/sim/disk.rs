//! A disk that forgets what was not synced.

use std::{
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};

use crate::{
    core::PersistId,
    types::{Accepted, HardState, Slot, WriteOp},
};

/// What a store of one group holds.
#[derive(Clone, Debug, Default)]
pub struct DiskState {
    /// Promise and chosen watermark.
    pub hard: HardState,
    /// All slots up to this one are trimmed.
    pub trimmed: Slot,
    /// What the slots hold.
    pub entries: BTreeMap<Slot, Accepted>,
}

impl DiskState {
    pub(super) fn apply(&mut self, op: &WriteOp) {
        match op {
            WriteOp::HardState { state, .. } => self.hard = *state,
            WriteOp::Accept {
                slot, ballot, entry, ..
            } => {
                let accepted = Accepted {
                    ballot: *ballot,
                    entry: entry.clone(),
                };
                self.entries.insert(*slot, accepted);
            }
            WriteOp::Trim { upto, .. } => {
                self.entries = self.entries.split_off(&upto.next());
                self.trimmed = self.trimmed.max(*upto);
            }
            WriteOp::RemoveGroup { .. } => *self = Self::default(),
        }
    }

    /// As [`Storage::read`](crate::Storage::read), with an inclusive end.
    pub fn read(&self, from: Slot, upto: Slot, max_bytes: usize) -> Vec<(Slot, Accepted)> {
        let mut bytes = 0;
        let mut found = Vec::new();
        if from > upto {
            return found;
        }
        for (slot, accepted) in self.entries.range(from..=upto) {
            bytes += accepted.entry.size();
            if !found.is_empty() && bytes > max_bytes {
                break;
            }
            found.push((*slot, accepted.clone()));
        }
        found
    }

    /// What a restarted replica is told: everything above the chosen watermark.
    pub fn tail(&self) -> Vec<(Slot, Accepted)> {
        self.entries
            .range(self.hard.chosen.next()..)
            .map(|(slot, accepted)| (*slot, accepted.clone()))
            .collect()
    }
}

/// One atomic write.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) id: PersistId,
    pub(super) ops: Vec<WriteOp>,
    sync: bool,
}

/// The disk of one node: what is durable, and the writes that a crash may lose.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// How often the store was opened; durable at once.
    pub(super) incarnation: u64,
    /// Survives every crash.
    pub(super) durable: DiskState,
    /// What a read sees: all writes, synced or not.
    pub(super) view: DiskState,
    pending: VecDeque<Write>,
    syncing: usize,
}

impl Disk {
    pub(super) fn submit(&mut self, id: PersistId, ops: Vec<WriteOp>, sync: bool) {
        for op in &ops {
            self.view.apply(op);
        }
        self.pending.push_back(Write { id, ops, sync });
    }

    /// Begins to sync everything that waits, if something asks for it and no sync is under way.
    pub(super) fn begin_sync(&mut self) -> bool {
        let wanted = self.syncing == 0 && self.pending.iter().any(|write| write.sync);
        if wanted {
            self.syncing = self.pending.len();
        }
        wanted
    }

    /// The sync under way succeeded: its writes, in order, are durable now.
    pub(super) fn finish_sync(&mut self) -> Vec<Write> {
        let count = core::mem::take(&mut self.syncing);
        self.make_durable(count)
    }

    /// How many writes a crash now could lose.
    pub(super) fn unsynced(&self) -> usize {
        self.pending.len()
    }

    /// The node dies. The first `keep` unsynced writes happen to have reached the disk; the others are lost.
    pub(super) fn crash(&mut self, keep: usize) -> Vec<Write> {
        let kept = self.make_durable(keep);
        self.pending.clear();
        self.syncing = 0;
        self.view = self.durable.clone();
        kept
    }

    fn make_durable(&mut self, count: usize) -> Vec<Write> {
        let writes: Vec<Write> = self.pending.drain(..count).collect();
        for op in writes.iter().flat_map(|write| &write.ops) {
            self.durable.apply(op);
        }
        writes
    }
}
