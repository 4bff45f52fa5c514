//! What must be in the engine, kept in memory: the index, and the checksums that make up the summaries.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use bytes::Bytes;
use paxos::{
    Accepted, Ballot, Entry, GroupId, Incarnation, Slot, WriteOp,
    record::{GroupRecord, Records, StoreRecord, checksum},
    storage::{IndexEntry, RecoveredGroup, StorageError, WriteBatch},
};

use super::{Changes, Key};

/// How many trimmed slots one commit deletes at the most, so that a large trim delays nobody for long.
const MAX_SWEPT_SLOTS: usize = 1_000;

/// What a slot holds, beside its payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotState {
    /// `None` if the entry has been lost to damage.
    pub(super) entry: Option<IndexEntry>,
    /// Of the slot's record.
    pub(super) checksum: u32,
}

#[derive(Debug, Default)]
pub(super) struct GroupState {
    pub(super) record: GroupRecord,
    /// Of the group's record as it is stored; `None` if it is not stored yet.
    pub(super) checksum: Option<u32>,
    /// Everything above the trimmed mark.
    pub(super) slots: BTreeMap<Slot, SlotState>,
    /// Trimmed slots that are still stored.
    pub(super) unswept: BTreeSet<Slot>,
}

impl GroupState {
    /// Notes that a slot has a new record.
    pub(super) fn put(&mut self, slot: Slot, state: SlotState) {
        let contents = &mut self.record.contents;
        contents.digest.add(slot.0, state.checksum);
        contents.last = contents.last.max(slot);
        if let Some(old) = self.slots.insert(slot, state) {
            contents.digest.remove(slot.0, old.checksum);
            contents.overwritten = contents.overwritten.max(slot);
        } else {
            contents.entries += 1;
        }
    }

    fn trim(&mut self, upto: Slot) {
        if upto <= self.record.trimmed {
            return;
        }
        self.record.trimmed = upto;
        let kept = if upto == Slot::MAX {
            BTreeMap::new()
        } else {
            self.slots.split_off(&upto.next())
        };
        let contents = &mut self.record.contents;
        for (slot, state) in std::mem::replace(&mut self.slots, kept) {
            contents.digest.remove(slot.0, state.checksum);
            contents.entries -= 1;
            self.unswept.insert(slot);
        }
    }

    fn recovered(&self) -> RecoveredGroup {
        let mut group = RecoveredGroup {
            hard_state: self.record.hard_state,
            trimmed: self.record.trimmed,
            ..RecoveredGroup::default()
        };
        for (slot, state) in &self.slots {
            match state.entry {
                Some(entry) => {
                    group.index.insert(*slot, entry);
                }
                None => group.damaged.push(*slot),
            }
        }
        group
    }
}

#[derive(Debug)]
pub(super) struct Ledger {
    records: Records,
    store: StoreRecord,
    groups: BTreeMap<GroupId, GroupState>,
    /// Groups with slots to sweep.
    unswept: BTreeSet<GroupId>,
}

impl Ledger {
    pub(super) fn new(records: Records, store: StoreRecord, groups: BTreeMap<GroupId, GroupState>) -> Self {
        let unswept = groups
            .iter()
            .filter(|(_, group)| !group.unswept.is_empty())
            .map(|(id, _)| *id)
            .collect();
        Self {
            records,
            store,
            groups,
            unswept,
        }
    }

    pub(super) fn records(&self) -> Records {
        self.records
    }

    /// The number of the last commit.
    pub(super) fn commit(&self) -> u64 {
        self.store.commit
    }

    pub(super) fn begin_life(&mut self, incarnation: Incarnation) {
        self.store.incarnation = incarnation;
    }

    pub(super) fn recovered(&self) -> BTreeMap<GroupId, RecoveredGroup> {
        self.groups
            .iter()
            .map(|(id, group)| (*id, group.recovered()))
            .collect()
    }

    /// Whether the batch keeps to the contract; nothing is changed.
    pub(super) fn check(&self, batch: &WriteBatch) -> Result<(), StorageError> {
        let mut promises: BTreeMap<GroupId, Ballot> = BTreeMap::new();
        for op in &batch.ops {
            match op {
                WriteOp::HardState { group, state } => {
                    let promised = promises.entry(*group).or_insert_with(|| {
                        let stored = self.groups.get(group);
                        stored.map_or(Ballot::ZERO, |group| group.record.hard_state.promised)
                    });
                    if state.promised < *promised {
                        return Err(StorageError::Misuse(format!(
                            "group {group} has promised {promised}, which cannot go down to {}",
                            state.promised
                        )));
                    }
                    *promised = state.promised;
                }
                WriteOp::Accept { group, slot, .. } if *slot == Slot::ZERO => {
                    return Err(StorageError::Misuse(format!(
                        "group {group}: no entry can be at slot 0, the first slot is 1"
                    )));
                }
                WriteOp::Accept {
                    group, slot, entry, ..
                } => {
                    if u32::try_from(entry.payload.len()).is_err() {
                        let bytes = entry.payload.len();
                        return Err(StorageError::Misuse(format!(
                            "group {group}, slot {slot}: a payload of {bytes} bytes; less than 4 GiB are allowed"
                        )));
                    }
                }
                WriteOp::Trim { .. } => {}
                WriteOp::RemoveGroup { group } => {
                    promises.insert(*group, Ballot::ZERO);
                }
            }
        }
        Ok(())
    }

    /// Takes a batch in and says what the engine must do, summaries and some sweeping included.
    pub(super) fn apply(&mut self, batch: &WriteBatch) -> Changes {
        let mut changes = Changes::new();
        let mut touched = BTreeSet::new();
        for op in &batch.ops {
            touched.insert(op.group());
            match op {
                WriteOp::HardState { group, state } => {
                    self.group(*group).record.hard_state = *state;
                }
                WriteOp::Accept {
                    group,
                    slot,
                    ballot,
                    entry,
                } => {
                    self.accept(&mut changes, *group, *slot, *ballot, entry);
                }
                WriteOp::Trim { group, upto } => {
                    self.group(*group).trim(*upto);
                    self.unswept.insert(*group);
                }
                WriteOp::RemoveGroup { group } => self.remove(&mut changes, *group),
            }
        }
        for group in touched {
            self.seal_group(&mut changes, group);
        }
        self.sweep(&mut changes);
        self.seal(&mut changes);
        changes
    }

    /// Ends a set of changes with the store's own record. Every commit has one, and with it a number.
    pub(super) fn seal(&mut self, changes: &mut Changes) {
        self.store.commit += 1;
        let record = self.records.encode_store(&self.store);
        changes.insert(Key::Store, Some(record.into()));
    }

    /// Brings a group's record, and the store's summary of it, up to date.
    pub(super) fn seal_group(&mut self, changes: &mut Changes, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let record = self.records.encode_group(id, &group.record);
        let new = checksum(&record).expect("an encoded record has a checksum");
        match group.checksum.replace(new) {
            Some(old) => self.store.digest.remove(id.0.into(), old),
            None => self.store.groups += 1,
        }
        self.store.digest.add(id.0.into(), new);
        changes.insert(Key::Group(id), Some(record.into()));
    }

    fn group(&mut self, group: GroupId) -> &mut GroupState {
        self.groups.entry(group).or_default()
    }

    fn accept(&mut self, changes: &mut Changes, id: GroupId, slot: Slot, ballot: Ballot, entry: &Entry) {
        let records = self.records;
        let group = self.group(id);
        if slot <= group.record.trimmed {
            return;
        }
        let accepted = Accepted {
            ballot,
            entry: entry.clone(),
        };
        let record = Bytes::from(records.encode_entry(id, slot, &accepted));
        let bytes = u32::try_from(entry.payload.len()).expect("checked before the batch was taken in");
        let state = SlotState {
            entry: Some(IndexEntry { ballot, bytes }),
            checksum: checksum(&record).expect("an encoded record has a checksum"),
        };
        group.put(slot, state);
        changes.insert(Key::Slot(id, slot), Some(record));
    }

    fn remove(&mut self, changes: &mut Changes, id: GroupId) {
        self.unswept.remove(&id);
        let Some(group) = self.groups.remove(&id) else {
            return;
        };
        if let Some(old) = group.checksum {
            self.store.digest.remove(id.0.into(), old);
            self.store.groups -= 1;
        }
        changes.insert(Key::Group(id), None);
        for slot in group.slots.into_keys().chain(group.unswept) {
            changes.insert(Key::Slot(id, slot), None);
        }
    }

    fn sweep(&mut self, changes: &mut Changes) {
        let mut left = MAX_SWEPT_SLOTS;
        while left > 0
            && let Some(id) = self.unswept.first().copied()
        {
            let next = self
                .groups
                .get_mut(&id)
                .and_then(|group| group.unswept.pop_first());
            match next {
                Some(slot) => {
                    changes.insert(Key::Slot(id, slot), None);
                    left -= 1;
                }
                None => {
                    self.unswept.remove(&id);
                }
            }
        }
    }

    /// The slots that a read returns, with the checksums of their records.
    pub(super) fn select(
        &self,
        group: GroupId,
        slots: Range<Slot>,
        max_bytes: usize,
    ) -> Result<Vec<(Slot, u32)>, StorageError> {
        let mut wanted = Vec::new();
        let Some(group_state) = self.groups.get(&group) else {
            return Ok(wanted);
        };
        if slots.is_empty() {
            return Ok(wanted);
        }
        let mut bytes = 0_usize;
        for (slot, state) in group_state.slots.range(slots) {
            let Some(entry) = state.entry else {
                return Err(super::damaged(group, *slot, "lost to earlier damage"));
            };
            bytes = bytes.saturating_add(entry.bytes as usize + Entry::OVERHEAD);
            if bytes > max_bytes && !wanted.is_empty() {
                break;
            }
            wanted.push((*slot, state.checksum));
        }
        Ok(wanted)
    }
}
