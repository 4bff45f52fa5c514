//! Which membership is in force at which slot: the one rule of who may vote for what. And what a node does that finds
//! itself outside, or meets others who are.

use alloc::{collections::BTreeSet, vec::Vec};
use core::cmp::Ordering;

use super::{Alarm, Message, Output, Replica, Standing, election::Role};
use crate::planted;
use crate::types::{ChosenMembership, EntryKind, Membership, NodeId, Role as MemberRole, Slot, StorageId};

/// The chosen memberships of a group, the oldest first. The ones that nothing needs any more are forgotten.
#[derive(Clone, Debug, Hash)]
pub(super) struct Memberships {
    /// Never empty.
    history: Vec<ChosenMembership>,
    /// A later membership than this node has learned bars it from voting: the slot of its entry, and what this node is
    /// in it.
    barred: Option<(Slot, Standing)>,
    /// Voters that have shown that they know the latest membership: a node that has left need not tell them.
    informed: BTreeSet<NodeId>,
    /// Who the members are, as far as a node has been told that lags behind or joins; and the slot of that entry.
    told: (Slot, Membership),
}

impl Memberships {
    pub(super) fn new(first: ChosenMembership) -> Self {
        Self {
            history: alloc::vec![first],
            barred: None,
            informed: BTreeSet::new(),
            told: Default::default(),
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

    /// The latest one that is chosen, known here or not: as far as this node has been told.
    pub(super) fn known(&self) -> &Membership {
        let (at, told) = &self.told;
        if *at > self.latest().at {
            told
        } else {
            self.current()
        }
    }

    /// The one before the latest, or the latest if there was none.
    pub(super) fn previous(&self) -> &Membership {
        let before = self.history.len().saturating_sub(2);
        &self.history[before].membership
    }

    /// The one in force after `slot`, which is the last one chosen at or below it; what a snapshot as of `slot` must
    /// carry. `None` if that is not known: a restart remembers none from before its watermark.
    pub(super) fn as_of(&self, slot: Slot) -> Option<&ChosenMembership> {
        self.history.iter().rev().find(|chosen| chosen.at <= slot)
    }

    /// A snapshot's membership is in force from before the log that is left. If a later one is known already, it is not
    /// known what came in between.
    pub(super) fn begin_with(&mut self, of_snapshot: ChosenMembership) {
        if of_snapshot.at >= self.latest().at {
            self.history = alloc::vec![of_snapshot];
        }
    }

    /// The next membership is chosen.
    fn add(&mut self, chosen: ChosenMembership) {
        self.history.push(chosen);
    }

    /// Nothing below `slot` is asked for any more.
    fn forget_below(&mut self, slot: Slot) {
        let later = self.history.partition_point(|known| known.at <= slot);
        self.history.drain(..later.saturating_sub(1));
    }
}

/// What `node` is in a membership.
fn standing_in(membership: &Membership, (node, storage): super::Sender) -> Standing {
    match membership.member(node) {
        Some(member) if !member.admits(storage) => Standing::NotAdmitted,
        Some(member) if member.role == MemberRole::Voter => Standing::Voter,
        Some(_) => Standing::Learner,
        None if membership.removed.contains(&node) => Standing::Removed,
        None => Standing::Joining,
    }
}

impl Replica {
    /// What this node is in its group, as far as it knows.
    pub(super) fn standing(&self) -> Standing {
        let latest = self.memberships.latest();
        match self.memberships.barred {
            Some((at, standing)) if at > latest.at => standing,
            _ => standing_in(&latest.membership, self.own()),
        }
    }

    /// Whether this node knows that `node`, with this disk, belongs to the group no more or does not yet: such a node may
    /// not lead. Of nodes that were never members nothing is known: they may be members of a later membership.
    pub(super) fn is_barred(&self, node: NodeId, storage: StorageId) -> bool {
        matches!(
            standing_in(self.memberships.current(), (node, storage)),
            Standing::NotAdmitted | Standing::Removed
        )
    }

    /// Whether a node speaks as leader that is no voter, and knows of no later membership than this node. Of one that knows
    /// more it may be a voter.
    pub(super) fn leads_no_more(&self, node: NodeId, storage: StorageId, message: &Message) -> bool {
        let current = self.memberships.current();
        let is_behind = |watermark| watermark <= self.chosen;
        message.watermark_of_leader().is_some_and(is_behind)
            && current.version > 0
            && !current.may_vote(node, storage)
    }

    /// A node that may not lead, as far as this node knows, is told so when it tries, or asks what has become of the
    /// members that it knows. What it knows chosen is chosen all the same, and shows this node that it is itself behind.
    pub(super) fn on_message_of_barred(&mut self, from: NodeId, storage: StorageId, message: Message) {
        let watermark = match message {
            Message::Members { at, ref membership } if at < self.memberships.latest().at => {
                // The members may have forgotten where it is.
                if let Some(member) = membership.member(from) {
                    let address = member.address.clone();
                    self.outputs.push_back(Output::Departed { node: from, address });
                }
                Slot::ZERO
            }
            Message::Canvass { .. } | Message::Prepare { .. } => Slot::ZERO,
            Message::Accept { chosen, .. }
            | Message::Heartbeat { chosen, .. }
            | Message::Rest { chosen, .. }
            | Message::Chosen { chosen, .. } => chosen,
            _ => return self.on_message(from, storage, message),
        };
        self.note_watermark(from, watermark);
        if watermark <= self.chosen {
            self.tell_membership(from);
        }
    }

    /// Tells a node of the membership by which it may not lead.
    pub(super) fn tell_membership(&mut self, to: NodeId) {
        let ChosenMembership { at, membership, .. } = self.memberships.latest().clone();
        self.send(to, Message::NotAdmitted { at, membership });
    }

    /// A peer knows a membership by which this node may not lead.
    pub(super) fn on_not_admitted(
        &mut self,
        (from, storage): super::Sender,
        at: Slot,
        membership: &Membership,
    ) {
        match at.cmp(&self.memberships.latest().at) {
            Ordering::Less => return self.hint_watermark(from),
            Ordering::Equal => return self.note_farewell((from, storage)),
            Ordering::Greater => {}
        }
        self.note_watermark(from, at);
        let standing = standing_in(membership, self.own());
        if matches!(standing, Standing::NotAdmitted | Standing::Removed) {
            self.memberships.barred = Some((at, standing));
        }
        if standing != Standing::Voter && !matches!(self.role, Role::Follower) {
            self.become_follower(None);
            self.postpone_election();
        }
    }

    /// Tells a peer how much is chosen, so that it asks for it.
    fn hint_watermark(&mut self, to: NodeId) {
        let hint = Message::Learned {
            from: self.chosen.next(),
            entries: Vec::new(),
            chosen: self.chosen,
        };
        self.send(to, hint);
    }

    /// Somebody tells who belongs to the group.
    pub(super) fn on_members(&mut self, from: NodeId, at: Slot, membership: Membership) {
        let latest = self.memberships.latest();
        if at <= latest.at && latest.membership.version > 0 {
            return self.hint_watermark(from);
        }
        self.note_watermark(from, at);
        if at > self.memberships.told.0 {
            self.memberships.told = (at, membership.clone());
            self.outputs.push_back(Output::Peers(membership));
        }
    }

    /// Whom to ask for entries: the members, and whoever else is known to have some. When all members are new, nobody else
    /// has.
    pub(super) fn teachers(&self, source: Option<NodeId>) -> Vec<NodeId> {
        let mut teachers = match self.memberships.current().version {
            0 => self
                .memberships
                .told
                .1
                .members
                .iter()
                .map(|member| member.node)
                .collect(),
            _ => self.other_members(),
        };
        teachers.extend(source.into_iter().chain(self.leader.map(|ballot| ballot.node)));
        teachers.retain(|node| *node != self.identity.node);
        teachers.sort_unstable();
        teachers.dedup();
        teachers
    }

    /// No leader is heard, and this node cannot become one. Perhaps the voters do not know yet that they are; perhaps this
    /// node is a member no more, and was not told.
    pub(super) fn nudge_voters(&mut self) {
        let ChosenMembership { at, membership, .. } = self.memberships.latest();
        let own = self.identity.node;
        let knows_better = |(told, standing)| told > *at && standing == Standing::Removed;
        if self.memberships.barred.is_some_and(knows_better) {
            return;
        }
        let has_left = membership.member(own).is_none();
        let asked = |node: &NodeId| *node != own && !(has_left && self.memberships.informed.contains(node));
        let to: Vec<NodeId> = membership.voters().filter(asked).collect();
        let message = Message::Members {
            at: *at,
            membership: membership.clone(),
        };
        self.send_all(to, message);
    }

    /// `node` knows everything up to `chosen`.
    pub(super) fn note_informed(&mut self, node: NodeId, chosen: Slot) {
        if chosen >= self.memberships.latest().at {
            self.memberships.informed.insert(node);
        }
    }

    /// Whether a membership in the next entry would count. One that was made from another membership than the present
    /// one, and came up again after that was replaced, is a no-op: changes are compare-and-set, in the log too.
    pub(super) fn takes_effect(&self, membership: &Membership) -> bool {
        let present = self.memberships.current().version;
        present == 0 || membership.version == present + 1
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
        if !self.takes_effect(&membership) {
            return;
        }
        let ballot = accepted.ballot;
        self.note_ballot(ballot);
        self.memberships.add(ChosenMembership {
            at: slot,
            ballot,
            membership: membership.clone(),
        });
        self.memberships.informed.clear();
        // A restart must know who its peers are.
        self.write_hard_state();
        self.outputs
            .push_back(Output::Membership { at: slot, membership });
        self.change_chosen(slot);
    }

    /// A snapshot's membership is in force now.
    pub(super) fn install_membership(&mut self, of_snapshot: ChosenMembership) {
        let ChosenMembership {
            at,
            ballot,
            membership,
        } = of_snapshot.clone();
        let before = self.memberships.latest().at;
        let was_lacking = self.lacks_membership();
        self.memberships.begin_with(of_snapshot);
        self.note_ballot(ballot);
        if at > before || (was_lacking && at == before) {
            self.memberships.informed.clear();
            self.outputs.push_back(Output::Membership { at, membership });
            self.change_chosen(at);
        }
    }

    /// The state machine has passed everything up to `slot`: later snapshots need no earlier membership.
    pub(super) fn forget_memberships_below(&mut self, slot: Slot) {
        if !planted::is("old_quorum_after_change") {
            self.memberships.forget_below(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(at: u64, version: u64) -> ChosenMembership {
        let mut chosen = ChosenMembership::first(Membership::default());
        chosen.at = Slot(at);
        chosen.membership.version = version;
        chosen
    }

    #[test]
    fn a_restart_takes_no_membership_for_the_one_of_a_slot_that_it_has_not_replayed() {
        // The snapshot is of slot 10; the log behind it changed the membership at 15 and at 16.
        let mut memberships = Memberships::new(chosen(16, 4));
        memberships.begin_with(chosen(4, 2));
        assert_eq!(memberships.as_of(Slot(15)), None, "it may have changed since");
        assert_eq!(memberships.as_of(Slot(16)), Some(&chosen(16, 4)));
    }

    #[test]
    fn a_snapshot_ahead_of_the_log_brings_its_membership() {
        let mut memberships = Memberships::new(chosen(16, 4));
        memberships.begin_with(chosen(20, 5));
        assert_eq!(memberships.latest(), &chosen(20, 5));
        assert_eq!(memberships.as_of(Slot(17)), None);
    }
}
