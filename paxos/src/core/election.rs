//! Leadership: failure detection, canvass (pre-vote), candidacy, step-down.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use super::{
    Alarm, Message, Output, Phase, Replica, Sender, Standing,
    barrier::{Barrier, Promises, Reported},
    gate::After,
    proposer::Leadership,
};
use crate::planted;
use crate::types::{Ballot, Membership, NodeId, Slot, StorageId, Time};

/// How far above its watermark a replica may plausibly hold entries, beside its window: the watermark on a disk lags
/// behind after a crash.
const MAX_PLAUSIBLE_TAIL: u64 = 1 << 20;

/// The replica's part in its group, with what belongs to that part only.
#[derive(Clone, Debug, Hash)]
pub(super) enum Role {
    Follower,
    Canvassing(Canvass),
    Candidate(Candidacy),
    Leader(Box<Leadership>),
}

/// A question to all voters whether a candidacy has a chance.
#[derive(Clone, Debug, Hash)]
pub(super) struct Canvass {
    ballot: Ballot,
    /// Who said yes, with which disk.
    granted: BTreeMap<NodeId, StorageId>,
}

/// Phase 1.
#[derive(Clone, Debug, Hash)]
pub(super) struct Candidacy {
    pub(super) ballot: Ballot,
    /// What each voter has reported so far, this node included once its own promise is durable.
    pub(super) promises: Promises,
    ask_again_at: Time,
    /// The leader that has asked for this candidacy.
    released: Option<Ballot>,
    /// A user wants this node to lead.
    pub(super) by_hand: bool,
}

#[derive(Clone, Debug, Hash)]
pub(super) struct Report {
    /// The reporter's disk.
    pub(super) storage: StorageId,
    /// Everything up to this slot has been reported; [`Slot::MAX`] when all has.
    pub(super) covered: Slot,
    /// The reporter's watermark.
    pub(super) chosen: Slot,
    /// The slots of which it cannot tell what it has accepted.
    pub(super) damaged: BTreeSet<Slot>,
}

/// Whether a quorum of the voters takes part: `with` tells with which disk a node does, if it does.
pub(super) fn is_quorum(membership: &Membership, with: impl Fn(NodeId) -> Option<StorageId>) -> bool {
    membership.is_quorum(|member| with(member.node).is_some_and(|storage| member.admits(storage)))
}

impl Replica {
    pub(super) fn phase(&self) -> Phase {
        match self.role {
            Role::Follower => Phase::Follower,
            Role::Canvassing(_) => Phase::Canvassing,
            Role::Candidate(_) => Phase::Candidate,
            Role::Leader(_) => Phase::Leader,
        }
    }

    pub(super) const fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// Whether this node, with its disk, is a voter.
    fn is_voter(&self) -> bool {
        self.standing() == Standing::Voter
    }

    pub(super) fn other_members(&self) -> Vec<NodeId> {
        let own = self.identity.node;
        self.memberships
            .current()
            .members
            .iter()
            .map(|member| member.node)
            .filter(|node| *node != own)
            .collect()
    }

    fn other_voters(&self) -> Vec<NodeId> {
        let own = self.identity.node;
        self.memberships
            .current()
            .voters()
            .filter(|node| *node != own)
            .collect()
    }

    /// Remembers the highest ballot seen, so that the next own one is above it.
    pub(super) fn note_ballot(&mut self, ballot: Ballot) {
        self.highest = self.highest.max(ballot);
    }

    /// The ballot to stand with: above every ballot seen.
    fn next_ballot(&mut self) -> Option<Ballot> {
        let round = self.highest.max(self.promised).round.checked_add(1);
        if round.is_none() {
            self.outputs.push_back(Output::Alarm(Alarm::NoBallotLeft));
        }
        let member = self.memberships.current().member(self.identity.node);
        let first = member.map_or(0, |member| member.first_round);
        Some(Ballot {
            round: round?.max(first),
            node: self.identity.node,
        })
    }

    /// Gives the present leader, or a candidate that asks, time.
    pub(super) fn postpone_election(&mut self) {
        let timeout = self.config.election_timeout;
        self.election_at = Some(self.now.plus(timeout + self.rng.up_to(timeout)));
    }

    /// Canvasses soon, with a little randomness against duels.
    pub(super) fn hasten_election(&mut self) {
        let from = self.bound_until(None).unwrap_or(self.now);
        let soon = self.rng.up_to(self.config.heartbeat_interval / 2);
        self.election_at = Some(from.plus(soon));
    }

    pub(super) fn set_leader(&mut self, leader: Option<Ballot>) {
        if self.leader != leader {
            self.leader = leader;
            self.outputs.push_back(Output::Leader(leader));
            self.drain_for(leader);
            self.rewind_forwards();
            self.ask_reads_again();
            if let Some(leader) = leader {
                self.preference.has_led(leader.node);
                self.give_up_changes(leader);
                self.answer_transfers(leader);
            }
        }
    }

    /// Ends any own candidacy or leadership.
    pub(super) fn become_follower(&mut self, leader: Option<Ballot>) {
        if let Role::Leader(leadership) = core::mem::replace(&mut self.role, Role::Follower) {
            self.give_up_change(&leadership);
            if matches!(leadership.barrier, Some(Barrier::Proposed(_))) {
                // It may come to nothing, and with it where it says the members are.
                self.outputs
                    .push_back(Output::Peers(self.memberships.known().clone()));
            }
            self.give_up_reads(*leadership);
        }
        self.set_leader(leader);
    }

    pub(super) fn step_down(&mut self) {
        self.become_follower(None);
        self.postpone_election();
    }

    /// Whether a leader has been heard so recently that nobody should try to replace it.
    fn hears_leader(&self) -> bool {
        let recently = || self.now.since(self.heard_at) < self.config.election_timeout;
        self.is_leader() || (self.leader.is_some() && (self.is_resting() || recently()))
    }

    /// Whether this node would be a leader of use. One that still replays its log could not take commands; one that
    /// cannot read it must never lead.
    pub(super) fn could_lead(&self) -> bool {
        self.is_voter() && !self.is_replaying() && !self.lacks_what_others_may_need()
    }

    /// All that is due by the clock.
    pub(super) fn on_time(&mut self) {
        self.tend_transfers();
        match &self.role {
            Role::Leader(_) if self.is_resting() => {}
            Role::Leader(leadership) => {
                let contact = leadership.quorum_contact(self.memberships.current(), self.own(), self.now);
                if self.now.since(contact) >= self.config.election_timeout {
                    return self.step_down();
                }
                if self.now >= leadership.heartbeat_at {
                    self.tend_membership();
                    self.heartbeat_or_rest();
                    self.follow_preference();
                }
            }
            // A new ballot would not become durable any sooner.
            Role::Candidate(candidacy) if !candidacy.promises.reports.contains_key(&self.identity.node) => {}
            _ if self.election_at.is_some_and(|at| self.now >= at) => self.canvass(),
            Role::Candidate(candidacy) if self.now >= candidacy.ask_again_at => self.ask_for_promises(),
            _ => {}
        }
    }

    fn canvass(&mut self) {
        let in_vain = matches!(self.role, Role::Canvassing(_));
        self.postpone_election();
        self.become_follower(None);
        if !self.is_voter() {
            return self.nudge_voters();
        }
        if self.bound_until(None).is_some() {
            return self.hasten_election();
        }
        if !self.could_lead() {
            return;
        }
        if in_vain {
            // Whoever was removed, and is not known any more, is answered when it has told where it was.
            self.nudge_voters();
        }
        let Some(ballot) = self.next_ballot() else { return };
        self.role = Role::Canvassing(Canvass {
            ballot,
            granted: BTreeMap::from([(self.identity.node, self.identity.storage)]),
        });
        let voters = self.other_voters();
        let chosen = self.chosen;
        self.send_all(voters, Message::Canvass { ballot, chosen });
        self.finish_canvass();
    }

    pub(super) fn on_canvass(&mut self, from: NodeId, ballot: Ballot, chosen: Slot) {
        if self.is_resting() {
            self.on_canvass_at_rest(from, ballot);
        }
        let free = !self.hears_leader() && self.bound_until(None).is_none();
        // Whoever lacks what is trimmed here would lead only after a snapshot: this node can lead at once.
        let granted = free && ballot > self.floor() && self.trimmed <= chosen;
        let highest = self.highest.max(self.promised);
        self.send(
            from,
            Message::CanvassReply {
                ballot,
                granted,
                highest,
                chosen: self.chosen,
            },
        );
    }

    pub(super) fn on_canvass_reply(
        &mut self,
        (from, storage): Sender,
        ballot: Ballot,
        granted: bool,
        highest: Ballot,
        chosen: Slot,
    ) {
        self.note_ballot(highest);
        self.note_watermark(from, chosen);
        if let Role::Canvassing(canvass) = &mut self.role
            && canvass.ballot == ballot
            && granted
        {
            canvass.granted.insert(from, storage);
            self.finish_canvass();
        }
    }

    fn finish_canvass(&mut self) {
        if let Role::Canvassing(canvass) = &self.role
            && is_quorum(self.memberships.current(), |node| {
                canvass.granted.get(&node).copied()
            })
        {
            self.stand(None, false);
        }
    }

    /// Begins phase 1 at a new ballot; `released` is the leader that asks for it, `by_hand` tells that a user does.
    pub(super) fn stand(&mut self, released: Option<Ballot>, by_hand: bool) {
        if self.bound_until(released).is_some() {
            return;
        }
        self.postpone_election();
        let Some(ballot) = self.next_ballot() else {
            return;
        };
        if planted::is("own_ballot_not_durable") {
            self.promised = ballot;
        } else {
            self.promise(ballot);
        }
        self.role = Role::Candidate(Candidacy {
            ballot,
            promises: Promises::default(),
            ask_again_at: self.now.plus(self.config.heartbeat_interval * 2),
            released,
            by_hand,
        });
        let from = self.chosen.next();
        for voter in self.other_voters() {
            let message = Message::Prepare {
                ballot,
                from,
                released,
            };
            self.send_when_durable(voter, message);
        }
        let released = self.gate.after(After::OwnPromise { ballot });
        self.release(released);
    }

    /// This node's own promise is durable: it reports to itself.
    pub(super) fn on_own_promise(&mut self, ballot: Ballot) {
        if let Role::Candidate(candidacy) = &mut self.role
            && candidacy.ballot == ballot
        {
            let report = Report {
                storage: self.identity.storage,
                covered: Slot::MAX,
                chosen: self.chosen,
                damaged: self.damage.lost_from(self.chosen.next()).collect(),
            };
            candidacy.promises.reports.insert(self.identity.node, report);
            self.finish_candidacy();
        }
    }

    /// Some promises, or chunks of them, did not come: asks for what is missing.
    fn ask_for_promises(&mut self) {
        let Role::Candidate(candidacy) = &mut self.role else {
            return;
        };
        candidacy.ask_again_at = self.now.plus(self.config.heartbeat_interval * 2);
        let Candidacy { ballot, released, .. } = *candidacy;
        let missing = candidacy
            .promises
            .missing(self.memberships.current(), self.chosen);
        self.ask_promises_of(ballot, missing, released);
    }

    pub(super) fn ask_promises_of(
        &mut self,
        ballot: Ballot,
        voters: Vec<(NodeId, Slot)>,
        released: Option<Ballot>,
    ) {
        for (voter, from) in voters {
            if voter != self.identity.node {
                let message = Message::Prepare {
                    ballot,
                    from,
                    released,
                };
                self.send_when_durable(voter, message);
            }
        }
    }

    pub(super) fn on_promise(&mut self, from: Sender, ballot: Ballot, chosen: Slot, reported: Reported) {
        let known = self.chosen;
        let plausible = chosen.plus(MAX_PLAUSIBLE_TAIL + 4 * self.config.max_window_entries as u64);
        if let Some(slot) = reported.slots().find(|slot| *slot > plausible) {
            let from = from.0;
            self.outputs
                .push_back(Output::Alarm(Alarm::Implausible { from, slot }));
            return;
        }
        let timeout = self.config.election_timeout;
        let patience = self.now.plus(timeout + self.rng.up_to(timeout));
        let Role::Candidate(candidacy) = &mut self.role else {
            return self.on_promise_to_leader(from, ballot, chosen, reported);
        };
        if candidacy.ballot != ballot {
            return;
        }
        if candidacy.promises.take(from, chosen, known, reported) {
            candidacy.ask_again_at = self.now.plus(self.config.heartbeat_interval * 2);
            self.election_at = Some(patience);
        }
        self.note_watermark(from.0, chosen);
        self.finish_candidacy();
    }

    /// Becomes leader once a quorum has reported everything and all that any of them knows chosen is known here.
    pub(super) fn finish_candidacy(&mut self) {
        let Role::Candidate(candidacy) = &self.role else {
            return;
        };
        if !candidacy
            .promises
            .are_complete(self.memberships.current(), self.chosen)
        {
            return;
        }
        if candidacy.ballot < self.memberships.latest().ballot || !self.is_voter() {
            // The membership became known after the ballot was chosen.
            self.step_down();
            return self.hasten_election();
        }
        let Role::Candidate(candidacy) = core::mem::replace(&mut self.role, Role::Follower) else {
            unreachable!("the role was matched above")
        };
        self.lead(candidacy);
    }

    pub(super) fn on_refuse(&mut self, ballot: Ballot, promised: Ballot) {
        self.note_ballot(promised);
        if promised <= ballot {
            return;
        }
        let own = match &self.role {
            Role::Candidate(candidacy) => candidacy.ballot,
            Role::Leader(leadership) => leadership.ballot,
            Role::Follower | Role::Canvassing(_) => return,
        };
        if own == ballot {
            self.step_down();
        }
    }

    /// The connection to a peer broke. If it leads, it may be dead: ask the others at once.
    pub(super) fn on_disconnected(&mut self, peer: NodeId) {
        self.nodes.unheard.remove(&peer);
        if let Role::Leader(leadership) = &mut self.role {
            leadership.pause(peer);
        } else if self.leader.is_some_and(|ballot| ballot.node == peer) {
            self.become_follower(None);
            self.hasten_election();
        }
    }

    pub(super) fn election_deadline(&self) -> Option<Time> {
        match &self.role {
            _ if self.is_resting() => None,
            Role::Leader(leadership) => Some(leadership.heartbeat_at),
            Role::Candidate(candidacy) if !candidacy.promises.reports.contains_key(&self.identity.node) => {
                None
            }
            Role::Candidate(candidacy) => {
                let election_at = self.election_at.unwrap_or(candidacy.ask_again_at);
                Some(candidacy.ask_again_at.min(election_at))
            }
            Role::Follower | Role::Canvassing(_) => self.election_at,
        }
    }
}
