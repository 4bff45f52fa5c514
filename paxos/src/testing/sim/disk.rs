//! A disk that forgets what was not synced, shared by the groups of a node.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    vec::Vec,
};

use crate::{
    core::PersistId,
    types::{Accepted, Ballot, ChosenMembership, GroupId, HardState, Membership, Slot, WriteOp},
};

/// What a store of one group holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskState {
    /// Promise and chosen watermark.
    pub hard: HardState,
    /// All slots up to this one are trimmed.
    pub trimmed: Slot,
    /// What the slots hold.
    pub entries: BTreeMap<Slot, Accepted>,
    /// Slots whose records are damaged.
    pub damaged: BTreeSet<Slot>,
}

/// What a disk holds of a group that has never written anything.
static NOTHING: DiskState = DiskState {
    hard: HardState {
        promised: Ballot::ZERO,
        chosen: Slot::ZERO,
        membership: Slot::ZERO,
        quarantine: None,
    },
    trimmed: Slot::ZERO,
    entries: BTreeMap::new(),
    damaged: BTreeSet::new(),
};

impl DiskState {
    fn apply(&mut self, op: &WriteOp) {
        match op {
            WriteOp::HardState { state, .. } => self.hard = *state,
            WriteOp::Accept {
                slot, ballot, entry, ..
            } => {
                let accepted = Accepted {
                    ballot: *ballot,
                    entry: entry.clone(),
                };
                self.damaged.remove(slot);
                self.entries.insert(*slot, accepted);
            }
            WriteOp::Trim { upto, .. } => {
                self.entries = self.entries.split_off(&upto.next());
                self.damaged = self.damaged.split_off(&upto.next());
                self.trimmed = self.trimmed.max(*upto);
            }
            WriteOp::RemoveGroup { .. } => *self = Self::default(),
        }
    }

    /// The record of a slot goes bad, if there is one.
    pub(super) fn damage(&mut self, slot: Slot) {
        if self.entries.remove(&slot).is_some() {
            self.damaged.insert(slot);
        }
    }

    /// The first damaged slots, side by side, among these.
    pub(super) fn damaged_run(&self, from: Slot, upto: Slot) -> Vec<Slot> {
        let Some(first) = self.damaged.range(from..).next().filter(|first| **first <= upto) else {
            return Vec::new();
        };
        let run = (first.0..=upto.0).map(Slot);
        run.take_while(|slot| self.damaged.contains(slot)).collect()
    }

    /// As [`Storage::read`](crate::Storage::read), with an inclusive end; ends before a damaged slot.
    pub fn read(&self, from: Slot, upto: Slot, max_bytes: usize) -> Vec<(Slot, Accepted)> {
        let mut bytes = 0;
        let mut found = Vec::new();
        let damaged = self.damaged.range(from..).next();
        let upto = damaged.map_or(upto, |damaged| upto.min(damaged.previous()));
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

    /// The membership in force at the watermark: `first` if the log has had none, an unknown one if the log
    /// does not hold it any more.
    pub fn membership(&self, first: &Membership) -> ChosenMembership {
        let at = self.hard.membership;
        let trimmed = at > Slot::ZERO && at <= self.trimmed;
        if trimmed || self.damaged.contains(&at) {
            return ChosenMembership {
                at,
                ballot: Ballot::ZERO,
                membership: Membership::default(),
            };
        }
        let held = self.entries.get(&at);
        let found = held.and_then(|accepted| {
            Some(ChosenMembership {
                at,
                ballot: accepted.ballot,
                membership: Membership::from_entry(&accepted.entry)?,
            })
        });
        found.unwrap_or_else(|| ChosenMembership::first(first.clone()))
    }

    /// What a restarted replica is told: everything above the chosen watermark.
    pub fn tail(&self) -> Vec<(Slot, Accepted)> {
        self.entries
            .range(self.hard.chosen.next()..)
            .map(|(slot, accepted)| (*slot, accepted.clone()))
            .collect()
    }
}

/// What a disk holds, for each group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents(BTreeMap<GroupId, DiskState>);

impl Contents {
    pub(super) fn group(&self, group: GroupId) -> &DiskState {
        self.0.get(&group).unwrap_or(&NOTHING)
    }

    /// The hard states as they are now, for comparison later.
    pub(super) fn hard_states(&self) -> BTreeMap<GroupId, HardState> {
        let states = self.0.iter();
        states.map(|(group, state)| (*group, state.hard)).collect()
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.0.keys().copied()
    }

    pub(super) fn apply(&mut self, op: &WriteOp) {
        self.0.entry(op.group()).or_default().apply(op);
    }
}

/// One atomic write. It may carry changes of several groups.
#[derive(Clone, Debug)]
pub(super) struct Write {
    /// Whose writes it carries.
    pub(super) ids: Vec<(GroupId, PersistId)>,
    pub(super) ops: Vec<WriteOp>,
    sync: bool,
    /// In which round of its node it was made: writes of one round are one.
    round: u64,
}

/// The disk of one node: what is durable, and the writes that a crash may lose.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// How often the store was opened; durable at once.
    pub(super) incarnation: u64,
    /// Survives every crash.
    pub(super) durable: Contents,
    /// What a read sees: all writes, synced or not.
    pub(super) view: Contents,
    pending: VecDeque<Write>,
    syncing: usize,
}

impl Disk {
    /// The disk is lost; another one takes its place, empty. Lives go on being counted.
    pub(super) fn replace(&mut self) {
        *self = Self {
            incarnation: self.incarnation,
            ..Self::default()
        };
    }

    /// The disk is as it was when it held this. Nothing is being written.
    pub(super) fn set_back(&mut self, to: &Contents) {
        self.durable = to.clone();
        self.view = to.clone();
    }

    /// The last byte of what is stored in a slot changes, unnoticed. False if there is none. Nothing is being written.
    pub(super) fn alter(&mut self, group: GroupId, slot: Slot) -> bool {
        let held = self.durable.0.get_mut(&group);
        let Some(accepted) = held.and_then(|state| state.entries.get_mut(&slot)) else {
            return false;
        };
        let mut payload = accepted.entry.payload.to_vec();
        let Some(last) = payload.last_mut() else {
            return false;
        };
        *last ^= 1;
        accepted.entry.payload = payload.into();
        self.view = self.durable.clone();
        true
    }

    /// The record of a slot goes bad, unless it is just being overwritten.
    pub(super) fn damage(&mut self, group: GroupId, slot: Slot) {
        let overwrites = |op: &WriteOp| matches!(op, WriteOp::Accept { group: of, slot: at, .. } if *of == group && *at == slot);
        if !self.pending.iter().flat_map(|write| &write.ops).any(overwrites) {
            for contents in [&mut self.durable, &mut self.view] {
                contents.0.entry(group).or_default().damage(slot);
            }
        }
    }

    /// The record of a slot can be read again, as it was.
    pub(super) fn recover(&mut self, group: GroupId, slot: Slot, from: &Contents) {
        for contents in [&mut self.durable, &mut self.view] {
            let state = contents.0.entry(group).or_default();
            if let Some(accepted) = from.group(group).entries.get(&slot)
                && state.damaged.remove(&slot)
            {
                state.entries.insert(slot, accepted.clone());
            }
        }
    }

    /// Takes a write of a group; joins it to what other groups write in the same round.
    pub(super) fn submit(
        &mut self,
        group: GroupId,
        id: PersistId,
        ops: Vec<WriteOp>,
        sync: bool,
        round: u64,
    ) {
        for op in &ops {
            self.view.apply(op);
        }
        let joinable = self.pending.len() > self.syncing;
        match self.pending.back_mut() {
            Some(last) if joinable && last.round == round => {
                last.ids.push((group, id));
                last.ops.extend(ops);
                last.sync |= sync;
            }
            _ => self.pending.push_back(Write {
                ids: std::vec![(group, id)],
                ops,
                sync,
                round,
            }),
        }
    }

    /// Begins to sync everything that waits, if something asks for it and no sync is under way.
    pub(super) fn begin_sync(&mut self) -> bool {
        let wanted = self.syncing == 0 && self.pending.iter().any(|write| write.sync);
        if wanted {
            self.syncing = self.pending.len();
        }
        wanted
    }

    /// Something asks for all that waits to be durable.
    pub(super) fn want_sync(&mut self) {
        for write in &mut self.pending {
            write.sync = true;
        }
    }

    /// What the sync under way writes.
    pub(super) fn under_way(&self) -> impl Iterator<Item = &Write> {
        self.pending.iter().take(self.syncing)
    }

    /// The sync under way succeeded: its writes, in order, are durable now.
    pub(super) fn finish_sync(&mut self) -> Vec<Write> {
        let count = core::mem::take(&mut self.syncing);
        self.make_durable(count)
    }

    /// What a crash now could lose.
    pub(super) const fn unsynced(&self) -> &VecDeque<Write> {
        &self.pending
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
