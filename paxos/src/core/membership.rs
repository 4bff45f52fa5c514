//! Which membership is in force at which slot: the one rule of who may vote for what.

use alloc::vec::Vec;

use crate::types::{Membership, NodeId, Slot, StorageId};

/// The memberships of a group, each with the slot whose entry it is; the first one is at [`Slot::ZERO`].
#[derive(Clone, Debug, Hash)]
pub(super) struct Memberships {
    history: Vec<(Slot, Membership)>,
}

impl Memberships {
    pub(super) fn new(first: Membership) -> Self {
        Self {
            history: alloc::vec![(Slot::ZERO, first)],
        }
    }

    /// The membership in force at `slot`: the last one chosen below it.
    pub(super) fn at(&self, slot: Slot) -> &Membership {
        self.history
            .iter()
            .rev()
            .find(|(chosen_at, _)| *chosen_at < slot)
            .or_else(|| self.history.first())
            .map(|(_, membership)| membership)
            .expect("the history begins with the group's first membership and never shrinks")
    }

    /// The latest membership that is chosen.
    pub(super) fn current(&self) -> &Membership {
        self.at(Slot::MAX)
    }

    /// Whether `node`, with this disk, belongs to the group now.
    pub(super) fn is_member(&self, node: NodeId, storage: StorageId) -> bool {
        self.current()
            .member(node)
            .is_some_and(|member| member.storage.is_none_or(|admitted| admitted == storage))
    }
}
