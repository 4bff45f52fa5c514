//! Which node should lead a group: the one that a user has named; else one of those with the highest priority, and of
//! many groups each node its share.
//!
//! What a user has said holds while that node leads, and until the voters or their priorities change: then somebody has
//! said something newer.

use alloc::{collections::BTreeMap, vec::Vec};
use core::time::Duration;

use super::{Replica, election::Role};
use crate::types::{Member, Membership, NodeId, Time};

/// For how many election timeouts another node has to be the better one before it is made leader.
const PATIENCE: u32 = 4;
/// How often that is doubled when hand-overs come to nothing.
const MAX_DOUBLINGS: u32 = 6;

/// The node that a leader would rather see in its place.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Preference {
    node: Option<NodeId>,
    since: Time,
    /// How many hand-overs to each member have come to nothing since it led: over several leaderships, because a
    /// hand-over that fails may end one.
    failures: BTreeMap<NodeId, u32>,
}

impl Preference {
    fn patience(&self, node: NodeId, election_timeout: Duration) -> Duration {
        let failures = self.failures.get(&node).copied().unwrap_or_default();
        election_timeout * (PATIENCE << failures.min(MAX_DOUBLINGS))
    }

    /// This node begins to lead.
    pub(super) const fn begin(&mut self) {
        self.node = None;
    }

    /// That node leads.
    pub(super) fn has_led(&mut self, node: NodeId) {
        self.failures.remove(&node);
    }

    /// A hand-over to that node has come to nothing.
    pub(super) fn has_failed(&mut self, node: NodeId, membership: &Membership) {
        self.failures.retain(|node, _| membership.member(*node).is_some());
        *self.failures.entry(node).or_default() += 1;
    }
}

impl Membership {
    /// The voters, each with its priority.
    fn priorities(&self) -> Vec<(NodeId, u8)> {
        self.voting()
            .map(|member| (member.node, member.priority))
            .collect()
    }
}

impl Replica {
    /// Called with every heartbeat: hands over to a node that should lead instead, if that has been so for a while.
    pub(super) fn follow_preference(&mut self) {
        let better = self.preferred_leader().filter(|node| *node != self.identity.node);
        let (now, timeout) = (self.now, self.config.election_timeout);
        match &self.role {
            // A change that waits for its nodes would be refused for it.
            Role::Leader(leadership) if leadership.drain.is_none() => {}
            _ => return,
        }
        let preference = &mut self.preference;
        if preference.node != better {
            preference.node = better;
            preference.since = now;
        }
        let patience = better.map(|node| preference.patience(node, timeout));
        if patience.is_none_or(|patience| now.since(preference.since) < patience) {
            return;
        }
        preference.since = now;
        // Refused: then it is not so any more, or a transfer is open.
        let _ = self.begin_transfer(better, false);
    }

    /// Whether nobody should lead in place of this leader, as far as it knows.
    pub(super) fn is_preferred(&self) -> bool {
        self.preferred_leader()
            .is_none_or(|node| node == self.identity.node)
    }

    /// A user wants this node to lead, which does.
    pub(super) fn keep_leading(&mut self) {
        let voters = self.memberships.current().priorities();
        if let Role::Leader(leadership) = &mut self.role {
            leadership.kept_among = Some(voters);
        }
    }

    /// Whether a user wants this node to lead, as far as it matters still.
    fn is_kept(&self) -> bool {
        let Role::Leader(leadership) = &self.role else {
            return false;
        };
        let kept_among = leadership.kept_among.as_ref();
        kept_among.is_some_and(|voters| *voters == self.memberships.current().priorities())
    }

    /// The voter that should lead: this one if a user wants it; else of those that could, the ones of the highest priority; of these this node, or with
    /// balanced leaders the one that the group's id draws. Whoever cannot lead now is drawn and passed over, so that the
    /// groups of the others stay where they are.
    fn preferred_leader(&self) -> Option<NodeId> {
        let own = self.identity.node;
        if self.is_kept() {
            return Some(own);
        }
        let voters = self.memberships.current().voting();
        let fit = |member: &&Member| member.node == own || self.is_in_step(member.node);
        let highest = voters.clone().filter(fit).map(|member| member.priority).max()?;
        let mut drawn: Vec<&Member> = voters.filter(|member| member.priority == highest).collect();
        if !self.config.balance_leaders && drawn.iter().any(|member| member.node == own) {
            return Some(own);
        }
        let mut ticket = self.group.0 as usize;
        while !drawn.is_empty() {
            let place = ticket % drawn.len();
            ticket /= drawn.len();
            let member = drawn.remove(place);
            if fit(&member) {
                return Some(member.node);
            }
        }
        None
    }

    /// Whether this peer could lead and lacks no more than what is in flight.
    fn is_in_step(&self, node: NodeId) -> bool {
        let max_lag = self.config.max_window_entries as u64;
        self.may_succeed(node)
            .is_ok_and(|held| self.chosen.since(held) <= max_lag)
    }
}
