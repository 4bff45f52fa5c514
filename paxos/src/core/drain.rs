//! Draining: a node that a change of the membership takes out first ends what its users have under way, so that none of
//! them is left in doubt. Once it is out, nobody would tell it what became of a command that it had sent to the leader.
//!
//! A leader that is asked for such a change tells the nodes that leave, itself included, to take no more commands. From
//! then on they reject what is proposed there and what waits to be sent to the leader: that certainly does not happen.
//! What may be on its way they let end. When all have said that nothing is open, or an election timeout is over, the
//! change is checked again and proposed. Nodes that the leader does not hear are not waited for.
//!
//! They are told again with each heartbeat, until the membership is chosen. A node that hears the leader's heartbeats
//! and is told nothing any more takes commands again, and so does one that follows another leader, or none. A node that
//! is out hears no more heartbeats, so it is drained until it knows.

use alloc::{collections::BTreeMap, vec::Vec};

use super::{Message, Output, Rejection, Replica, Standing, changes::ChangeRequest, election::Role};
use crate::planted;
use crate::types::{Ballot, Membership, NodeId, Time};

/// How many heartbeats a node hears without being told to drain until it takes commands again: messages may be lost,
/// and overtake each other.
const MAX_UNTOLD_HEARTBEATS: u32 = 3;

/// A leader's part: the nodes that a change takes out.
#[derive(Clone, Debug, Hash)]
pub(super) struct Drain {
    /// Names it among those of this leadership.
    number: u64,
    /// What is to be proposed when nothing is open; `None` once it is.
    change: Option<ChangeRequest>,
    /// The other nodes that leave, and whether they have said that nothing is open there.
    told: BTreeMap<NodeId, bool>,
    give_up_at: Time,
}

impl Drain {
    /// Whether the change is not proposed yet.
    pub(super) const fn has_to_come(&self) -> bool {
        self.change.is_some()
    }

    /// What those of these nodes are told that leave.
    pub(super) fn message(&self, ballot: Ballot, among: &[NodeId]) -> (Vec<NodeId>, Message) {
        let number = self.number;
        let leaves = |node: &&NodeId| self.told.contains_key(*node);
        let to = among.iter().filter(leaves).copied().collect();
        (to, Message::Drain { ballot, number })
    }
}

/// The part of a node that is told to drain.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Draining {
    /// The leader that says so.
    ballot: Ballot,
    /// As [`Drain::number`].
    number: u64,
    /// How many of that leader's heartbeats came since it said so last.
    untold_heartbeats: u32,
    answer_due: bool,
}

impl Draining {
    const fn at(ballot: Ballot, number: u64, answer_due: bool) -> Self {
        Self {
            ballot,
            number,
            untold_heartbeats: 0,
            answer_due,
        }
    }
}

impl Replica {
    /// The members that the next membership lacks and that can be told: this node, and those that it hears as leader.
    pub(super) fn leaving(&self, next: &Membership) -> Vec<NodeId> {
        let Role::Leader(leadership) = &self.role else {
            return Vec::new();
        };
        let timeout = self.config.election_timeout;
        let is_heard = |node| {
            let peer = leadership.peers.get(&node);
            peer.is_some_and(|peer| peer.heard && self.now.since(peer.contact) < timeout)
        };
        let members = self.memberships.current().members.iter();
        let leaves = members
            .map(|member| member.node)
            .filter(|node| next.member(*node).is_none() && !planted::is("removal_without_drain"));
        leaves
            .filter(|node| *node == self.identity.node || is_heard(*node))
            .collect()
    }

    /// Tells these nodes to drain, and keeps the change until they have.
    pub(super) fn drain(&mut self, leaving: Vec<NodeId>, change: ChangeRequest) {
        let own = self.identity.node;
        let give_up_at = self.now.plus(self.config.election_timeout);
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        leadership.drains += 1;
        let (ballot, number) = (leadership.ballot, leadership.drains);
        if leaving.contains(&own) {
            self.draining = Some(Draining::at(ballot, number, false));
        }
        let others = leaving.iter().filter(|node| **node != own);
        let drain = Drain {
            number,
            change: Some(change),
            told: others.map(|node| (*node, false)).collect(),
            give_up_at,
        };
        let (to, message) = drain.message(ballot, &leaving);
        leadership.drain = Some(drain);
        self.send_all(to, message);
    }

    /// A node that this leader takes out has nothing open.
    pub(super) fn on_drained(&mut self, from: NodeId, ballot: Ballot, number: u64) {
        if let Role::Leader(leadership) = &mut self.role
            && leadership.ballot == ballot
            && let Some(drain) = &mut leadership.drain
            && drain.number == number
            && let Some(is_drained) = drain.told.get_mut(&from)
        {
            *is_drained = true;
        }
    }

    /// Proposes the change that waits, if nothing is open any more at those who leave or they have had their time.
    pub(super) fn tend_drain(&mut self) {
        let own_open = self.draining.is_some() && self.proposals.has_numbered();
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        let Some(drain) = &mut leadership.drain else {
            return;
        };
        let is_open = own_open || drain.told.values().any(|is_drained| !is_drained);
        if is_open && self.now < drain.give_up_at {
            return;
        }
        if let Some(change) = drain.change.take() {
            self.complete_drain(&change);
        }
    }

    /// What a leader drained for has come to nothing: those who were told notice by themselves.
    pub(super) fn drop_drain(&mut self) {
        self.draining = None;
        if let Role::Leader(leadership) = &mut self.role {
            leadership.drain = None;
        }
    }

    /// The leader takes this node out.
    pub(super) fn on_drain(&mut self, from: NodeId, ballot: Ballot, number: u64) {
        let is_old = |known: Draining| known.ballot == ballot && known.number > number;
        if ballot.node == from && self.leader == Some(ballot) && !self.draining.is_some_and(is_old) {
            self.draining = Some(Draining::at(ballot, number, true));
        }
    }

    /// A heartbeat of the leader that this node follows has come.
    pub(super) fn count_untold_heartbeat(&mut self) {
        if let Some(draining) = &mut self.draining {
            draining.untold_heartbeats += 1;
            if draining.untold_heartbeats > MAX_UNTOLD_HEARTBEATS {
                self.draining = None;
            }
        }
    }

    /// Who leads is known anew.
    pub(super) fn drain_for(&mut self, leader: Option<Ballot>) {
        self.draining = self.draining.filter(|draining| Some(draining.ballot) == leader);
    }

    /// A node that leaves, or has left, takes no commands. One that has left and hears a leader may have been added again.
    pub(super) fn refuse_when_leaving(&mut self) {
        let may_stay = || self.leader.is_some() || self.standing() != Standing::Removed;
        if !self.proposals.has_waiting() || (self.draining.is_none() && may_stay()) {
            return;
        }
        let reason = Rejection::Leaving;
        let refused = self.proposals.take_waiting();
        let refused = refused.map(|token| Output::Rejected { token, reason });
        self.outputs.extend(refused);
    }

    /// Tells the leader when nothing is open here.
    pub(super) fn answer_drain(&mut self) {
        let is_open = self.proposals.count() > 0;
        if let Some(draining) = &mut self.draining
            && draining.answer_due
            && !is_open
        {
            draining.answer_due = false;
            let Draining { ballot, number, .. } = *draining;
            self.send(ballot.node, Message::Drained { ballot, number });
        }
    }
}
