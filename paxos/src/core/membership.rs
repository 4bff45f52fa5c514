//! Which membership is in force at which slot: the one rule of who may vote for what.

use alloc::vec::Vec;

use crate::types::{Membership, NodeId, Slot, StorageId};

/// The memberships of a group, each with the slot whose entry it is; the first one is at [`Slot::ZERO`].
#[derive(Debug)]
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

    /// The entry at `slot`, a membership, is chosen.
    pub(super) fn chosen(&mut self, slot: Slot, membership: Membership) {
        if self.history.last().is_some_and(|(last, _)| *last < slot) {
            self.history.push((slot, membership));
        }
    }

    /// Whether `node`, with this disk, belongs to the group now.
    pub(super) fn is_member(&self, node: NodeId, storage: StorageId) -> bool {
        self.current()
            .member(node)
            .is_some_and(|member| member.storage.is_none_or(|admitted| admitted == storage))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Member;

    #[test]
    fn a_membership_is_in_force_above_its_own_slot() {
        let one = Membership::new([Member::voter(NodeId(1), "a")]);
        let two = Membership {
            version: 2,
            ..Membership::new([Member::voter(NodeId(2), "b")])
        };
        let mut memberships = Memberships::new(one.clone());
        memberships.chosen(Slot(10), two.clone());
        assert_eq!(memberships.at(Slot(1)), &one);
        assert_eq!(memberships.at(Slot(10)), &one);
        assert_eq!(memberships.at(Slot(11)), &two);
        assert_eq!(memberships.current(), &two);
    }
}
