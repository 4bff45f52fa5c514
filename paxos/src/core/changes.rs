//! Membership changes: those that users ask for, and those that a leader makes by itself.

use alloc::{collections::BTreeMap, vec::Vec};

use super::{
    Message, Output, Replica, Token, drain::Drain, election::Role, progress::Progress, proposer::Leadership,
};
use crate::planted;
use crate::types::{
    Ballot, Change, ChangeRejection, Incarnation, Member, Membership, NodeId, Role as MemberRole,
};

/// How far above all known rounds the rounds of a member begin that has lost its disk: that may have used some that
/// nobody has seen. Each took it a canvass that a quorum granted and an election that failed.
const ROUND_GAP: u64 = 1 << 20;

/// How many requests of this node's users may be on their way to the leader.
const MAX_ASKED: usize = 16;

/// Requests of this node's users to a leader elsewhere.
#[derive(Clone, Debug, Hash)]
pub(super) struct Changes {
    /// By the number that names each to the leader: the user's token, and the leader asked.
    asked: BTreeMap<u64, (Token, Ballot)>,
    /// Larger than in every earlier life.
    last: u64,
}

/// Who waits for a change that this leader makes.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) enum ChangeAsker {
    Own(Token),
    Peer { node: NodeId, number: u64 },
}

/// A change that was asked for.
#[derive(Clone, Debug, Hash)]
pub(super) struct ChangeRequest {
    /// The version of the membership that it is for.
    pub(super) expected: u64,
    pub(super) changes: Vec<Change>,
    pub(super) force: bool,
}

impl Changes {
    pub(super) const fn new(incarnation: Incarnation) -> Self {
        Self {
            asked: BTreeMap::new(),
            last: incarnation.0 << 20,
        }
    }
}

impl Leadership {
    /// Whether this voter has been heard of late, with the disk that it was admitted with.
    fn is_reached(&self, replica: &Replica, voter: &Member) -> bool {
        let timeout = replica.config.election_timeout;
        let hears = |peer: &Progress| peer.heard && replica.now.since(peer.contact) < timeout;
        self.of(voter, replica.own(), hears, || true)
    }

    /// Whether this member has about all that is chosen.
    fn has_caught_up(&self, replica: &Replica, node: NodeId) -> bool {
        // What a peer has accepted of this leader says nothing of the slots before.
        let has = |peer: &Progress| match peer.unclaimed {
            chosen if chosen.next() >= self.start => peer.matched.max(chosen),
            chosen => chosen,
        };
        let lag = |peer: &Progress| replica.chosen.since(has(peer));
        node == replica.identity.node
            || self
                .peers
                .get(&node)
                .is_some_and(|peer| lag(peer) <= replica.max_ahead())
    }
}

impl Replica {
    /// A user of this node wants another membership.
    pub(super) fn on_change_request(
        &mut self,
        token: Token,
        expected: u64,
        changes: Vec<Change>,
        force: bool,
    ) {
        if self.is_leader() {
            let change = ChangeRequest {
                expected,
                changes,
                force,
            };
            return self.begin_change(ChangeAsker::Own(token), change);
        }
        let refusal = match self.leader {
            None => ChangeRejection::NoLeader,
            Some(_) if self.changes.asked.len() >= MAX_ASKED => ChangeRejection::UnderWay,
            Some(ballot) => {
                self.changes.last += 1;
                let number = self.changes.last;
                self.changes.asked.insert(number, (token, ballot));
                let message = Message::ChangeMembership {
                    token: number,
                    expected,
                    changes,
                    force,
                };
                return self.send(ballot.node, message);
            }
        };
        let result = Err(refusal);
        self.outputs
            .push_back(Output::MembershipChanged { token, result });
    }

    pub(super) fn on_change_membership(&mut self, from: NodeId, number: u64, change: ChangeRequest) {
        let asker = ChangeAsker::Peer { node: from, number };
        if self.is_leader() {
            self.begin_change(asker, change);
        } else {
            self.answer_change(asker, Err(ChangeRejection::NoLeader));
        }
    }

    pub(super) fn on_membership_changed(
        &mut self,
        from: NodeId,
        number: u64,
        result: Result<Membership, ChangeRejection>,
    ) {
        let asked = self.changes.asked.get(&number);
        if asked.is_some_and(|(_, ballot)| ballot.node == from)
            && let Some((token, _)) = self.changes.asked.remove(&number)
        {
            self.outputs
                .push_back(Output::MembershipChanged { token, result });
        }
    }

    /// Another leader: what became of the requests to the one before, nobody says any more. (A leader that leaves because
    /// of the change itself still answers, so nothing is given up before there is another one.)
    pub(super) fn give_up_changes(&mut self, leader: Ballot) {
        let lost = |_: &u64, (_, asked): &mut (Token, Ballot)| *asked != leader;
        for (_, (token, _)) in self.changes.asked.extract_if(.., lost) {
            self.outputs.push_back(Output::Unknown { token });
        }
    }

    /// A user waits for its change no longer; false if it was none.
    pub(super) fn cancel_change(&mut self, token: Token) -> bool {
        let before = self.changes.asked.len();
        self.changes.asked.retain(|_, (asked, _)| *asked != token);
        let mut found = self.changes.asked.len() < before;
        if let Role::Leader(leadership) = &mut self.role
            && matches!(leadership.change_asker, Some(ChangeAsker::Own(own)) if own == token)
        {
            leadership.change_asker = None;
            found = true;
        }
        if found {
            self.outputs.push_back(Output::Unknown { token });
        }
        found
    }

    fn answer_change(&mut self, asker: ChangeAsker, result: Result<Membership, ChangeRejection>) {
        match asker {
            ChangeAsker::Own(token) => self
                .outputs
                .push_back(Output::MembershipChanged { token, result }),
            ChangeAsker::Peer { node, number } => self.send(
                node,
                Message::MembershipChanged {
                    token: number,
                    result,
                },
            ),
        }
    }

    /// The change under way is complete: whoever waits for it is told.
    pub(super) fn finish_change(&mut self) {
        if let Role::Leader(leadership) = &mut self.role
            && let Some(asker) = leadership.change_asker.take()
        {
            let membership = self.memberships.current().clone();
            self.answer_change(asker, Ok(membership));
        }
    }

    /// A leadership ended with a change under way: it is known to have happened once its membership is chosen, and not
    /// to have happened as long as it is not proposed.
    pub(super) fn give_up_change(&mut self, leadership: &Leadership) {
        let Some(asker) = leadership.change_asker else {
            return;
        };
        if leadership.drain.as_ref().is_some_and(Drain::has_to_come) {
            self.answer_change(asker, Err(ChangeRejection::NoLeader));
        } else if leadership.awaits_promises() {
            let membership = self.memberships.current().clone();
            self.answer_change(asker, Ok(membership));
        } else if let ChangeAsker::Own(token) = asker {
            self.outputs.push_back(Output::Unknown { token });
        }
    }

    /// Makes a change that was asked for, unless there is something against it; the nodes that it takes out are
    /// drained before.
    fn begin_change(&mut self, asker: ChangeAsker, change: ChangeRequest) {
        let next = match self.checked(&change) {
            Ok(next) => next,
            Err(refusal) => return self.answer_change(asker, Err(refusal)),
        };
        if let Role::Leader(leadership) = &mut self.role {
            leadership.change_asker = Some(asker);
        }
        let leaving = self.leaving(&next);
        if leaving.is_empty() {
            self.propose_membership(&next);
        } else {
            self.drain(leaving, change);
        }
    }

    /// The nodes that a change takes out have been drained: makes it, unless there is something against it by now.
    pub(super) fn complete_drain(&mut self, change: &ChangeRequest) {
        match self.checked(change) {
            Ok(next) => self.propose_membership(&next),
            Err(refusal) => {
                self.drop_drain();
                if let Role::Leader(leadership) = &mut self.role
                    && let Some(asker) = leadership.change_asker.take()
                {
                    self.answer_change(asker, Err(refusal));
                }
            }
        }
    }

    /// The membership that a change leads to.
    fn checked(&mut self, change: &ChangeRequest) -> Result<Membership, ChangeRejection> {
        let first_round = self.next_first_round();
        let next =
            self.with_leadership(|replica, leadership| replica.check_change(leadership, change, first_round));
        next.unwrap_or(Err(ChangeRejection::NoLeader))
    }

    fn next_first_round(&self) -> u64 {
        let highest = self.highest.max(self.promised).round;
        highest.saturating_add(ROUND_GAP)
    }

    fn check_change(
        &self,
        leadership: &Leadership,
        change: &ChangeRequest,
        first_round: u64,
    ) -> Result<Membership, ChangeRejection> {
        let expected = change.expected;
        let current = self.memberships.current();
        if current.version != expected {
            let present = current.version;
            return Err(ChangeRejection::VersionMismatch { expected, present });
        }
        let drains = leadership.drain.as_ref().is_some_and(Drain::has_to_come);
        if drains || leadership.barrier.is_some() || leadership.transfer.is_some() {
            return Err(ChangeRejection::UnderWay);
        }
        if !leadership.has_adopted() || self.chosen < leadership.inherited {
            return Err(ChangeRejection::NotReady);
        }
        let mut next = current.changed(&change.changes, first_round)?;
        self.pin(leadership, &mut next);
        if !change.force {
            self.check_voters(leadership, current, &next)?;
        }
        Ok(next)
    }

    /// Refuses a change after which nothing could be chosen at once.
    fn check_voters(
        &self,
        leadership: &Leadership,
        current: &Membership,
        next: &Membership,
    ) -> Result<(), ChangeRejection> {
        let (reached, unreached): (Vec<&Member>, Vec<&Member>) = next
            .voting()
            .partition(|voter| leadership.is_reached(self, voter));
        let (ready, behind): (Vec<&Member>, Vec<&Member>) = reached
            .into_iter()
            .partition(|voter| leadership.has_caught_up(self, voter.node));
        let enough = ready.len() >= next.quorum();
        let is_new = |voter: &&Member| !current.voters().any(|node| node == voter.node);
        let blamed = |voters: Vec<&Member>| -> Vec<NodeId> {
            let counts = |voter: &&Member| !enough || is_new(voter);
            voters
                .into_iter()
                .filter(counts)
                .map(|voter| voter.node)
                .collect()
        };
        match (blamed(unreached), blamed(behind)) {
            (nodes, _) if !nodes.is_empty() => Err(ChangeRejection::Unreachable { nodes }),
            (_, nodes) if !nodes.is_empty() => Err(ChangeRejection::Behind { nodes }),
            _ => Ok(()),
        }
    }

    /// Proposes a membership, above everything else.
    fn propose_membership(&mut self, next: &Membership) {
        let entry = next.to_entry();
        self.with_leadership(|replica, leadership| replica.assign_at_barrier(leadership, entry));
        self.advance_received();
        self.acknowledge();
    }

    /// The disk that a member has now, as far as this leader has heard.
    fn disk_of(&self, leadership: &Leadership, node: NodeId) -> Option<crate::types::StorageId> {
        if node == self.identity.node {
            return Some(self.identity.storage);
        }
        let peer = leadership.peers.get(&node)?;
        let alive = peer.heard && self.now.since(peer.contact) < self.config.election_timeout;
        peer.storage.filter(|_| alive)
    }

    /// Records the disks of members that were admitted with any.
    fn pin(&self, leadership: &Leadership, membership: &mut Membership) {
        if self.config.pin_storages {
            for member in &mut membership.members {
                member.storage = member.storage.or_else(|| self.disk_of(leadership, member.node));
            }
        }
    }

    /// Makes the changes that need nobody's word: records disks, admits members with new ones, promotes learners.
    pub(super) fn tend_membership(&mut self) {
        let next = self.with_leadership(|replica, leadership| replica.own_change(leadership));
        if let Some(Some(next)) = next {
            self.propose_membership(&next);
        }
    }

    fn own_change(&self, leadership: &Leadership) -> Option<Membership> {
        let current = self.memberships.current();
        let drains = leadership.drain.is_some();
        let busy = drains || leadership.transfer.is_some() || !leadership.has_adopted();
        if busy || self.chosen < leadership.inherited {
            return None;
        }
        let mut next = current.clone();
        let waited = self.now.since(leadership.since) >= self.config.election_timeout;
        let is_known =
            |member: &Member| member.storage.is_some() || self.disk_of(leadership, member.node).is_some();
        if waited || current.members.iter().all(is_known) {
            self.pin(leadership, &mut next);
        }
        for member in &mut next.members {
            let Some(storage) = self.disk_of(leadership, member.node) else {
                continue;
            };
            let caught_up = leadership.has_caught_up(self, member.node);
            if self.config.readmit && caught_up && !member.admits(storage) {
                member.storage = Some(storage);
                if !planted::is("first_round_ignored") {
                    member.first_round = self.next_first_round();
                }
            }
            let admitted = member.storage == Some(storage) || !self.config.pin_storages;
            if self.config.promote_learners && caught_up && admitted && member.role == MemberRole::Learner {
                member.role = MemberRole::Voter;
            }
        }
        if next == *current {
            return None;
        }
        next.version += 1;
        Some(next)
    }
}
