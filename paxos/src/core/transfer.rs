//! Handing leadership over on purpose (Ongaro: *Consensus: Bridging Theory and Practice*, section 3.10): the leader
//! waits until its successor holds the whole log, durably, and tells it to stand at once, without a canvass.
//!
//! While the successor still catches up, commands go on. They wait only for the last stretch: two message rounds and two
//! disk writes, as a rule. No timer is involved, unless something fails: then the transfer is given up after an election
//! timeout and the leader goes on.
//!
//! A successor that a user has named keeps the leadership, whoever else is preferred: see [`preference`](super::preference).

use alloc::vec::Vec;

use super::{Message, Output, Replica, Token, TransferRejection, election::Role as Part, progress::Progress};
use crate::types::{Ballot, NodeId, Role, Slot, Time};

/// How many requests of this node's users may be open.
const MAX_OPEN_REQUESTS: usize = 16;

/// A leader's open transfer.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Transfer {
    pub(super) to: NodeId,
    /// A user has named the successor.
    by_hand: bool,
    /// What the log held when the transfer began: once the successor has that, commands wait.
    goal: Slot,
    commands_wait: bool,
    /// When the successor, which holds everything, was last told to take over. From the first time on it may, at any
    /// time.
    told_at: Option<Time>,
    give_up_at: Time,
}

/// A request of a user of this node.
#[derive(Clone, Copy, Debug, Hash)]
struct Request {
    token: Token,
    to: NodeId,
    /// The leader that was asked.
    of: Ballot,
    /// When a leader that shall lead on is asked again: nothing else shows whether it has heard of it.
    ask_again_at: Option<Time>,
    give_up_at: Time,
}

/// The open requests of this node's users.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Requests(Vec<Request>);

impl Transfer {
    /// Whether commands wait for the end of the transfer.
    pub(super) const fn commands_wait(&self) -> bool {
        self.commands_wait
    }
}

/// The last slot that the peer holds durably.
fn held(peer: &Progress) -> Slot {
    peer.matched.max(peer.unclaimed)
}

impl Replica {
    pub(super) fn on_transfer_leadership(&mut self, token: Token, to: Option<NodeId>) {
        match self.ask_to_transfer(token, to) {
            Ok(None) => {}
            Ok(Some(leader)) => self.end_transfer(token, Ok(leader)),
            Err(reason) => self.end_transfer(token, Err(reason)),
        }
    }

    /// `Ok(Some(_))` when it is so already.
    fn ask_to_transfer(
        &mut self,
        token: Token,
        to: Option<NodeId>,
    ) -> Result<Option<NodeId>, TransferRejection> {
        let own = self.identity.node;
        let of = self.leader.ok_or(TransferRejection::NoLeader)?;
        match to {
            None if of.node != own => return Ok(Some(of.node)),
            Some(to) if to == own && to == of.node => {
                self.keep_leading();
                return Ok(Some(own));
            }
            _ => {}
        }
        if self.requests.0.len() >= MAX_OPEN_REQUESTS {
            return Err(TransferRejection::TooMany);
        }
        let to = match to {
            Some(to) if of.node != own => {
                let request = token.0;
                self.send(of.node, Message::TransferLeadership { request, to });
                to
            }
            _ => self.begin_transfer(to, to.is_some())?,
        };
        let ask_again_at = self.now.plus(self.config.heartbeat_interval * 2);
        // The leader gives up after one election timeout; it has to hear of this first.
        let give_up_at = self.now.plus(self.config.election_timeout * 2);
        self.requests.0.push(Request {
            token,
            to,
            of,
            ask_again_at: (to == of.node).then_some(ask_again_at),
            give_up_at,
        });
        Ok(None)
    }

    fn end_transfer(&mut self, token: Token, result: Result<NodeId, TransferRejection>) {
        self.outputs.push_back(Output::Transferred { token, result });
    }

    /// Another node's user asks.
    pub(super) fn on_transfer_request(&mut self, from: NodeId, request: u64, to: NodeId) {
        match self.begin_transfer(Some(to), true) {
            Err(reason) => self.send(from, Message::TransferRefused { request, reason }),
            Ok(leader) if leader == self.identity.node => self.send(from, Message::LeadsOn { request }),
            // Success shows in the change of leader.
            Ok(_) => {}
        }
    }

    /// The leader that this node asked to lead on will do so.
    pub(super) fn on_leads_on(&mut self, from: NodeId, request: u64) {
        let heard = |open: &mut Request| open.token.0 == request && open.of.node == from && open.to == from;
        let ended: Vec<Request> = self.requests.0.extract_if(.., heard).collect();
        for request in ended {
            self.end_transfer(request.token, Ok(from));
        }
    }

    pub(super) fn on_transfer_refused(&mut self, from: NodeId, request: u64, reason: TransferRejection) {
        let refused = |open: &mut Request| open.token.0 == request && open.of.node == from;
        let ended: Vec<Request> = self.requests.0.extract_if(.., refused).collect();
        for request in ended {
            self.end_transfer(request.token, Err(reason));
        }
    }

    /// Who leads is known anew: that ends every request, one way or the other.
    pub(super) fn answer_transfers(&mut self, leader: Ballot) {
        let ended: Vec<Request> = self
            .requests
            .0
            .extract_if(.., |request| request.of != leader)
            .collect();
        for request in ended {
            let result = if request.to == leader.node {
                Ok(leader.node)
            } else {
                Err(TransferRejection::OtherLeader { node: leader.node })
            };
            self.end_transfer(request.token, result);
        }
    }

    /// Opens a transfer to this node, or to the one that is best fit. Returns to whom. `by_hand` tells that a user has
    /// named it.
    pub(super) fn begin_transfer(
        &mut self,
        to: Option<NodeId>,
        by_hand: bool,
    ) -> Result<NodeId, TransferRejection> {
        let Part::Leader(leadership) = &mut self.role else {
            return Err(TransferRejection::NoLeader);
        };
        if let Some(open) = &mut leadership.transfer {
            return if to.is_none_or(|to| to == open.to) {
                open.by_hand |= by_hand;
                Ok(open.to)
            } else {
                Err(TransferRejection::UnderWay { to: open.to })
            };
        }
        let to = match to {
            Some(node) if node == self.identity.node => {
                if by_hand {
                    self.keep_leading();
                }
                return Ok(node);
            }
            Some(node) => self.may_succeed(node).map(|_| node)?,
            None => self.best_successor().ok_or(TransferRejection::NobodyElse)?,
        };
        let give_up_at = self.now.plus(self.config.election_timeout);
        if let Part::Leader(leadership) = &mut self.role {
            leadership.transfer = Some(Transfer {
                to,
                by_hand,
                goal: leadership.next.previous(),
                commands_wait: false,
                told_at: None,
                give_up_at,
            });
        }
        Ok(to)
    }

    /// How far this peer of the leader has the log, if it could lead.
    pub(super) fn may_succeed(&self, node: NodeId) -> Result<Slot, TransferRejection> {
        let Part::Leader(leadership) = &self.role else {
            return Err(TransferRejection::NoLeader);
        };
        let voter = self.memberships.current().member(node);
        let voter = voter.filter(|member| member.role == Role::Voter);
        let voter = voter.ok_or(TransferRejection::NotVoter { node })?;
        let timeout = self.config.election_timeout;
        let peer = leadership.peers.get(&node);
        let peer = peer.filter(|peer| peer.storage.is_some_and(|storage| voter.admits(storage)));
        match peer.filter(|peer| peer.heard && self.now.since(peer.contact) < timeout) {
            None => Err(TransferRejection::NotAlive { node }),
            Some(peer) if !peer.ready => Err(TransferRejection::NotReady { node }),
            Some(peer) => Ok(held(peer)),
        }
    }

    /// Of the voters that could lead, and of these the ones of the highest priority, the one that has most of the log.
    fn best_successor(&self) -> Option<NodeId> {
        let members = self.memberships.current().members.iter();
        members
            .filter_map(|member| {
                let held = self.may_succeed(member.node).ok()?;
                Some((member.priority, held, member.node))
            })
            .max()
            .map(|(.., node)| node)
    }

    /// This leader is no voter any more: whoever is best fit takes over at once, also from its lease.
    pub(super) fn hand_over_and_leave(&mut self) {
        let Some(to) = self.best_successor() else { return };
        let Part::Leader(leadership) = &mut self.role else {
            return;
        };
        leadership.released = true;
        let message = Message::TakeOver {
            ballot: leadership.ballot,
            start: leadership.start,
            chosen: self.chosen,
            by_hand: false,
        };
        self.send(to, message);
    }

    /// Moves an open transfer on: called when all that has come in is acted on.
    pub(super) fn hand_over(&mut self) {
        let now = self.now;
        let again = self.config.heartbeat_interval;
        let Part::Leader(leadership) = &mut self.role else {
            return;
        };
        let Some(transfer) = &mut leadership.transfer else {
            return;
        };
        if now >= transfer.give_up_at {
            return self.give_up_transfer();
        }
        let held = leadership.peers.get(&transfer.to).map_or(Slot::ZERO, held);
        transfer.commands_wait |= held >= transfer.goal;
        let has_all = held >= leadership.next.previous();
        // At a membership it is not known yet who may lead.
        if !transfer.commands_wait || !has_all || leadership.barrier.is_some() {
            // It may have been told, and have lost its disk since.
            transfer.told_at = None;
            return;
        }
        if transfer.told_at.is_some_and(|told| now < told.plus(again)) {
            return;
        }
        transfer.told_at = Some(now);
        leadership.released = true;
        let Transfer { to, by_hand, .. } = *transfer;
        let message = Message::TakeOver {
            ballot: leadership.ballot,
            start: leadership.start,
            chosen: self.chosen,
            by_hand,
        };
        self.send(to, message);
    }

    /// The successor did not take over in time: this node leads on.
    fn give_up_transfer(&mut self) {
        let Part::Leader(leadership) = &mut self.role else {
            return;
        };
        if let Some(transfer) = leadership.transfer.take() {
            let membership = self.memberships.current();
            self.preference.has_failed(transfer.to, membership);
        }
        let (of, released) = (leadership.ballot, leadership.released);
        let by_hand = leadership.kept_among.is_some();
        let given_up: Vec<Request> = self
            .requests
            .0
            .extract_if(.., |request| request.of == of)
            .collect();
        for request in given_up {
            self.end_transfer(request.token, Err(TransferRejection::TimedOut));
        }
        if released && self.config.lease.is_some() {
            // The successor may still take over, so this ballot holds no lease any more. The next one can.
            self.become_follower(None);
            if self.could_lead() {
                self.stand(Some(of), by_hand);
            } else {
                self.postpone_election();
            }
        }
    }

    /// Asks again what may not have been heard, and ends the requests that wait in vain.
    pub(super) fn tend_transfers(&mut self) {
        let now = self.now;
        let again_at = now.plus(self.config.heartbeat_interval * 2);
        let mut asked = Vec::new();
        for open in &mut self.requests.0 {
            if open.ask_again_at.is_some_and(|at| at <= now) {
                open.ask_again_at = Some(again_at);
                asked.push((open.to, open.token.0));
            }
        }
        for (to, request) in asked {
            self.send(to, Message::TransferLeadership { request, to });
        }
        let expired: Vec<Request> = self
            .requests
            .0
            .extract_if(.., |request| request.give_up_at <= now)
            .collect();
        for request in expired {
            self.end_transfer(request.token, Err(TransferRejection::TimedOut));
        }
    }

    /// The leader that this node follows wants to be succeeded by it.
    pub(super) fn on_take_over(
        &mut self,
        from: NodeId,
        ballot: Ballot,
        (start, chosen): (Slot, Slot),
        by_hand: bool,
    ) {
        // It may have left already, by a membership that this node knows.
        let has_left = self.leader.is_none() && self.following.ballot == ballot && self.floor() <= ballot;
        let is_followed = self.leader == Some(ballot);
        // A leader that is not followed (any more) has nothing to give.
        if ballot.node != from || !(is_followed || has_left) || !self.could_lead() {
            return;
        }
        if is_followed {
            self.follow(ballot, start);
        }
        self.note_leader_watermark(from, ballot, chosen);
        self.become_follower(None);
        self.stand(Some(ballot), by_hand);
    }

    pub(super) fn transfer_deadline(&self) -> Option<Time> {
        let open = match &self.role {
            Part::Leader(leadership) => leadership.transfer,
            _ => None,
        };
        let again = self.config.heartbeat_interval;
        let open = open.map(|transfer| {
            let again_at = transfer.told_at.map(|told| told.plus(again));
            again_at.map_or(transfer.give_up_at, |again_at| again_at.min(transfer.give_up_at))
        });
        let requests = self.requests.0.iter();
        let requests = requests.map(|open| {
            let again_at = open.ask_again_at.unwrap_or(open.give_up_at);
            again_at.min(open.give_up_at)
        });
        requests.chain(open).min()
    }
}
