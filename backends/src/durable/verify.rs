//! Finds out, when a store is opened, whether everything that must be there is there, whole and up to date.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use paxos::{
    GroupId, Slot,
    record::{Digest, GroupRecord, RecordError, Records, SlotRecord, StoreRecord, checksum},
    storage::{Finding, IndexEntry, StorageError},
};

use super::{
    Changes, Key,
    directory::Directory,
    ledger::{GroupState, Ledger, SlotState},
};

/// How many slots of one group may be reported as damaged. A store with more is beyond repair slot by slot.
const MAX_DAMAGED_SLOTS: u64 = 1 << 20;

/// What an engine holds, record by record.
pub(super) struct Loaded {
    records: Records,
    store: Option<Bytes>,
    groups: BTreeMap<GroupId, Bytes>,
    slots: BTreeMap<GroupId, BTreeMap<Slot, FoundSlot>>,
}

/// A good record's state, or the checksum that a damaged one carries.
type FoundSlot = Result<SlotState, Option<u32>>;

/// What came out of it.
pub(super) struct Verified {
    pub(super) ledger: Ledger,
    /// Changes that write the damage down, so that it is not forgotten, and delete what belongs to no group.
    pub(super) repairs: Changes,
    pub(super) findings: Vec<Finding>,
}

impl Loaded {
    pub(super) fn new(records: Records) -> Self {
        Self {
            records,
            store: None,
            groups: BTreeMap::new(),
            slots: BTreeMap::new(),
        }
    }

    /// Takes in what the engine holds under a key; later calls replace, or take back, what earlier ones showed.
    pub(super) fn visit(&mut self, key: Key, record: Option<Bytes>) {
        match (key, record) {
            (Key::Store, record) => self.store = record,
            (Key::Group(group), Some(record)) => {
                self.groups.insert(group, record);
            }
            (Key::Group(group), None) => {
                self.groups.remove(&group);
            }
            (Key::Slot(group, slot), Some(record)) => {
                let state = self.slot_state(group, slot, &record).ok_or(checksum(&record));
                self.slots.entry(group).or_default().insert(slot, state);
            }
            (Key::Slot(group, slot), None) => {
                if let Some(slots) = self.slots.get_mut(&group) {
                    slots.remove(&slot);
                }
            }
        }
    }

    fn slot_state(&self, group: GroupId, slot: Slot, record: &Bytes) -> Option<SlotState> {
        let decoded = self.records.decode_slot(group, slot, record).ok()?;
        let entry = match decoded {
            SlotRecord::Damaged => None,
            SlotRecord::Entry(accepted) => Some(IndexEntry {
                ballot: accepted.ballot,
                bytes: u32::try_from(accepted.entry.payload.len()).ok()?,
            }),
        };
        Some(SlotState {
            entry,
            checksum: checksum(record)?,
        })
    }

    /// The store's own record: there, whole, and not older than what the directory remembers.
    pub(super) fn store(&self, directory: &Directory) -> Result<StoreRecord, StorageError> {
        let last_synced = directory.last_synced();
        let Some(record) = &self.store else {
            if last_synced == 0 && self.groups.is_empty() && self.slots.is_empty() {
                return Ok(StoreRecord::default());
            }
            return Err(StorageError::Corrupt(format!(
                "{directory}: the record of the store itself is missing"
            )));
        };
        let store = match self.records.decode_store(record) {
            Err(RecordError::Version { found }) => return Err(directory.wrong_version(found)),
            Err(error) => {
                return Err(StorageError::Corrupt(format!(
                    "{directory}: the record of the store itself: {error}"
                )));
            }
            Ok(store) => store,
        };
        if store.commit < last_synced {
            return Err(StorageError::Corrupt(format!(
                "{directory} has gone back in time: commit {last_synced} was durable, the last one found is {}",
                store.commit
            )));
        }
        Ok(store)
    }

    pub(super) fn verify(mut self, store: StoreRecord) -> Result<Verified, StorageError> {
        let mut repairs = Changes::new();
        let mut findings = Vec::new();
        let mut damaged_groups = Vec::new();
        let mut groups = BTreeMap::new();
        for (id, record, checksum) in self.verify_groups(store)? {
            let slots = self.slots.remove(&id).unwrap_or_default();
            let (mut group, damaged) = verify_slots(id, record, slots)?;
            group.checksum = Some(checksum);
            if !damaged.is_empty() {
                self.mark_damaged(id, &mut group, &damaged, &mut repairs);
                damaged_groups.push(id);
            }
            let lost = group.slots.values().filter(|slot| slot.entry.is_none()).count();
            if lost > 0 {
                let detail = format!("{lost} slots are lost, {} of them newly found", damaged.len());
                findings.push(Finding::Damaged { group: id, detail });
            }
            groups.insert(id, group);
        }
        for (group, slots) in self.slots {
            for slot in slots.into_keys() {
                repairs.insert(Key::Slot(group, slot), None);
            }
        }
        let mut ledger = Ledger::new(self.records, store, groups);
        for group in damaged_groups {
            ledger.seal_group(&mut repairs, group);
        }
        Ok(Verified {
            ledger,
            repairs,
            findings,
        })
    }

    /// Promises are in the groups' records: if one is missing or out of date, nothing may be voted on.
    fn verify_groups(&self, store: StoreRecord) -> Result<Vec<(GroupId, GroupRecord, u32)>, StorageError> {
        let mut digest = Digest::default();
        let mut groups = Vec::with_capacity(self.groups.len());
        for (id, record) in &self.groups {
            let state = self
                .records
                .decode_group(*id, record)
                .map_err(|error| StorageError::Corrupt(format!("the hard state of group {id}: {error}")))?;
            let checksum = checksum(record).expect("a decoded record has a checksum");
            digest.add(id.0.into(), checksum);
            groups.push((*id, state, checksum));
        }
        if groups.len() as u64 != store.groups || digest != store.digest {
            return Err(StorageError::Corrupt(format!(
                "the hard state of some group is missing or out of date ({} groups found, {} written)",
                groups.len(),
                store.groups
            )));
        }
        Ok(groups)
    }

    fn mark_damaged(
        &self,
        id: GroupId,
        group: &mut GroupState,
        damaged: &BTreeSet<Slot>,
        repairs: &mut Changes,
    ) {
        for slot in damaged {
            let record = Bytes::from(self.records.encode_damaged(id, *slot));
            let checksum = checksum(&record).expect("an encoded record has a checksum");
            let state = SlotState {
                entry: None,
                checksum,
            };
            group.put(*slot, state);
            repairs.insert(Key::Slot(id, *slot), Some(record));
        }
    }
}

/// A group's slots as far as they are good, summarised anew, and those that must be taken for damaged.
fn verify_slots(
    id: GroupId,
    expected: GroupRecord,
    found: BTreeMap<Slot, FoundSlot>,
) -> Result<(GroupState, BTreeSet<Slot>), StorageError> {
    let mut group = GroupState::default();
    group.record.hard_state = expected.hard_state;
    group.record.trimmed = expected.trimmed;
    let mut damaged = BTreeSet::new();
    // Of the damaged records: as a rule it is not the checksum itself that was hit.
    let mut digest = Digest::default();
    for (slot, state) in found {
        match state {
            _ if slot <= expected.trimmed => {
                group.unswept.insert(slot);
            }
            Ok(state) => group.put(slot, state),
            Err(checksum) => {
                damaged.insert(slot);
                digest.add(slot.0, checksum.unwrap_or_default());
            }
        }
    }
    let contents = group.record.contents;
    digest.0 = digest.0.wrapping_add(contents.digest.0);
    let present = contents.entries + damaged.len() as u64;
    if digest != expected.contents.digest || present != expected.contents.entries {
        suspect(id, &expected, &group, &mut damaged)?;
    }
    for slot in &damaged {
        forget(&mut group, *slot);
    }
    // Nothing has been overwritten since the group was summarised, so its marks stay.
    group.record.contents.last = expected.contents.last.max(contents.last);
    group.record.contents.overwritten = expected.contents.overwritten;
    Ok((group, damaged))
}

/// The summary does not fit. Adds every slot that may be the reason: it is safe to take a good slot for damaged (it is
/// fetched from a peer), never the other way round.
fn suspect(
    id: GroupId,
    expected: &GroupRecord,
    group: &GroupState,
    damaged: &mut BTreeSet<Slot>,
) -> Result<(), StorageError> {
    let present = group.slots.len() as u64 + damaged.len() as u64;
    let last = expected.contents.last;
    if present < expected.contents.entries {
        let span = last.since(expected.trimmed);
        if span.saturating_sub(present) > MAX_DAMAGED_SLOTS {
            return Err(StorageError::Corrupt(format!(
                "group {id} misses {} entries between slots {} and {last}",
                expected.contents.entries - present,
                expected.trimmed.next(),
            )));
        }
        let absent = (expected.trimmed.next().0..=last.0)
            .map(Slot)
            .filter(|slot| !group.slots.contains_key(slot));
        damaged.extend(absent);
    }
    // A slot that was written twice may show its first entry.
    let outdated = group
        .slots
        .keys()
        .take_while(|slot| **slot <= expected.contents.overwritten);
    damaged.extend(outdated);
    if damaged.is_empty() || present > expected.contents.entries {
        damaged.extend(group.slots.keys());
    }
    Ok(())
}

fn forget(group: &mut GroupState, slot: Slot) {
    if let Some(state) = group.slots.remove(&slot) {
        group.record.contents.digest.remove(slot.0, state.checksum);
        group.record.contents.entries -= 1;
    }
}
