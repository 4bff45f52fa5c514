//! What a store must hold, as simply as it can be said.

use std::{collections::BTreeMap, format, string::String, vec::Vec};

use crate::{
    storage::{IndexEntry, Recovered, RecoveredGroup},
    types::{Accepted, Ballot, Entry, GroupId, HardState, Slot, WriteOp},
};

/// The contract of [`Storage`](crate::Storage) as a data structure: apply batches to it, and compare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// Every group that has anything stored.
    pub groups: BTreeMap<GroupId, ModelGroup>,
}

/// What a group holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelGroup {
    /// The last one written.
    pub hard_state: HardState,
    /// All slots up to this one are trimmed.
    pub trimmed: Slot,
    /// The entries above it.
    pub slots: BTreeMap<Slot, Accepted>,
}

impl Model {
    /// The effect of a batch.
    pub fn apply(&mut self, ops: &[WriteOp]) {
        for op in ops {
            match op {
                WriteOp::HardState { group, state } => self.group(*group).hard_state = *state,
                WriteOp::Accept {
                    group,
                    slot,
                    ballot,
                    entry,
                } => {
                    let group = self.group(*group);
                    if *slot > group.trimmed {
                        let accepted = Accepted {
                            ballot: *ballot,
                            entry: entry.clone(),
                        };
                        group.slots.insert(*slot, accepted);
                    }
                }
                WriteOp::Trim { group, upto } => {
                    let group = self.group(*group);
                    group.trimmed = group.trimmed.max(*upto);
                    let trimmed = group.trimmed;
                    group.slots.retain(|slot, _| *slot > trimmed);
                }
                WriteOp::RemoveGroup { group } => {
                    self.groups.remove(group);
                }
            }
        }
    }

    fn group(&mut self, group: GroupId) -> &mut ModelGroup {
        self.groups.entry(group).or_default()
    }

    /// The highest promise of a group.
    pub fn promised(&self, group: GroupId) -> Ballot {
        self.groups
            .get(&group)
            .map_or(Ballot::ZERO, |group| group.hard_state.promised)
    }

    /// What `recover` must return of the groups.
    pub fn recovered(&self) -> BTreeMap<GroupId, RecoveredGroup> {
        let group = |group: &ModelGroup| RecoveredGroup {
            hard_state: group.hard_state,
            trimmed: group.trimmed,
            index: group.slots.iter().map(index_entry).collect(),
            damaged: Vec::new(),
        };
        self.groups.iter().map(|(id, held)| (*id, group(held))).collect()
    }

    /// What `read` must return.
    pub fn read(
        &self,
        group: GroupId,
        slots: core::ops::Range<Slot>,
        max_bytes: usize,
    ) -> Vec<(Slot, Accepted)> {
        let mut bytes = 0_usize;
        let mut read = Vec::new();
        let held = self.groups.get(&group).into_iter().flat_map(|group| &group.slots);
        for (slot, accepted) in held.filter(|(slot, _)| slots.contains(slot)) {
            bytes = bytes.saturating_add(Entry::size(&accepted.entry));
            if bytes > max_bytes && !read.is_empty() {
                break;
            }
            read.push((*slot, accepted.clone()));
        }
        read
    }

    /// The first difference to what a store recovered, in words.
    pub fn difference(&self, recovered: &Recovered) -> Option<String> {
        let expected = self.recovered();
        let found = &recovered.groups;
        let ids = expected.keys().chain(found.keys());
        let id = ids.copied().find(|id| expected.get(id) != found.get(id))?;
        let (Some(expected), Some(found)) = (expected.get(&id), found.get(&id)) else {
            let what = if found.contains_key(&id) {
                "is there but should not be"
            } else {
                "is missing"
            };
            return Some(format!("group {id} {what}"));
        };
        if expected.hard_state != found.hard_state {
            return Some(format!(
                "group {id} has hard state {:?} instead of {:?}",
                found.hard_state, expected.hard_state
            ));
        }
        if expected.trimmed != found.trimmed {
            return Some(format!(
                "group {id} is trimmed up to {} instead of {}",
                found.trimmed, expected.trimmed
            ));
        }
        if !found.damaged.is_empty() {
            return Some(format!("group {id} reports damaged slots: {:?}", found.damaged));
        }
        let mut slots = expected.index.keys().chain(found.index.keys());
        let slot = slots.find(|slot| expected.index.get(slot) != found.index.get(slot))?;
        Some(format!(
            "group {id}, slot {slot}: the index says {:?} instead of {:?}",
            found.index.get(slot),
            expected.index.get(slot)
        ))
    }
}

fn index_entry((slot, accepted): (&Slot, &Accepted)) -> (Slot, IndexEntry) {
    let entry = IndexEntry {
        ballot: accepted.ballot,
        bytes: u32::try_from(accepted.entry.payload.len()).unwrap_or(u32::MAX),
    };
    (*slot, entry)
}
