//! Which membership is in force at which slot: the one rule of who may vote for what.

use alloc::vec::Vec;

use super::{Alarm, Output, Replica};
use crate::types::{Accepted, ChosenMembership, EntryKind, Membership, NodeId, Slot, StorageId};

/// The chosen memberships of a group, the oldest first. The ones that nothing needs any more are forgotten.
#[derive(Clone, Debug, Hash)]
pub(super) struct Memberships {
    /// Never empty.
    history: Vec<ChosenMembership>,
}

impl Memberships {
    pub(super) fn new(first: ChosenMembership) -> Self {
        Self {
            history: alloc::vec![first],
        }
    }

    /// The latest one that is chosen: in force after the chosen watermark.
    pub(super) fn latest(&self) -> &ChosenMembership {
        self.history
            .last()
            .expect("the history begins with one membership and never becomes empty")
    }

    /// The members now: as [`Self::latest`].
    pub(super) fn current(&self) -> &Membership {
        &self.latest().membership
    }

    /// The one in force after `slot`, which is the last one chosen at or below it; what a snapshot as of `slot` must
    /// carry. `None` if it has not been read back from the log yet, or has been forgotten.
    pub(super) fn as_of(&self, slot: Slot) -> Option<&ChosenMembership> {
        self.history.iter().rev().find(|chosen| chosen.at <= slot)
    }

    /// A snapshot's membership is in force from before the log that is left.
    pub(super) fn begin_with(&mut self, of_snapshot: ChosenMembership) {
        let at = of_snapshot.at;
        if at > self.latest().at {
            self.history.clear();
        }
        self.history.retain(|known| known.at > at);
        self.history.insert(0, of_snapshot);
    }

    /// A membership was found in the log.
    fn add(&mut self, chosen: ChosenMembership) {
        let place = self.history.partition_point(|known| known.at < chosen.at);
        if self.history.get(place).is_none_or(|known| known.at != chosen.at) {
            self.history.insert(place, chosen);
        }
    }

    /// Nothing below `slot` is asked for any more.
    fn forget_below(&mut self, slot: Slot) {
        let later = self.history.partition_point(|known| known.at <= slot);
        self.history.drain(..later.saturating_sub(1));
    }
}

impl Replica {
    /// Whether `node`, with this disk, belongs to the group now.
    pub(super) fn is_member(&self, node: NodeId, storage: StorageId) -> bool {
        let member = self.memberships.current().member(node);
        member.is_some_and(|member| member.admits(storage))
    }

    /// The entry at the new watermark is chosen: if it holds a membership, that is in force from the next slot on.
    pub(super) fn note_membership(&mut self, slot: Slot) {
        let Some(accepted) = self.window.get(slot) else {
            return;
        };
        if accepted.entry.kind != EntryKind::Membership {
            return;
        }
        let Some(membership) = Membership::from_entry(&accepted.entry) else {
            let detail = "a membership that cannot be read or has no voter".into();
            self.outputs
                .push_back(Output::Alarm(Alarm::Malformed { slot, detail }));
            return;
        };
        let ballot = accepted.ballot;
        self.note_ballot(ballot);
        self.memberships.add(ChosenMembership {
            at: slot,
            ballot,
            membership: membership.clone(),
        });
        // A restart must know who its peers are.
        self.write_hard_state();
        self.outputs
            .push_back(Output::Membership { at: slot, membership });
    }

    /// A snapshot's membership is in force now.
    pub(super) fn install_membership(&mut self, of_snapshot: ChosenMembership) {
        let ChosenMembership {
            at,
            ballot,
            membership,
        } = of_snapshot.clone();
        let before = self.memberships.latest().at;
        self.memberships.begin_with(of_snapshot);
        self.note_ballot(ballot);
        if at > before {
            self.outputs.push_back(Output::Membership { at, membership });
        }
    }

    /// The state machine is about to pass a membership: snapshots from there on carry it.
    pub(super) fn apply_membership(&mut self, slot: Slot, accepted: &Accepted) {
        if let Some(membership) = Membership::from_entry(&accepted.entry) {
            self.memberships.add(ChosenMembership {
                at: slot,
                ballot: accepted.ballot,
                membership,
            });
        }
        self.memberships.forget_below(slot);
    }
}
