//! Commands of this node's users: their order, their numbers, and their way to the leader.

use alloc::{collections::VecDeque, vec::Vec};

use bytes::Bytes;

use super::{Command, Message, Output, Rejection, Replica, Standing, Token};
use crate::types::{Ballot, Entry, Incarnation, NodeId, ProposalId, Time};

/// How many full messages of forwarded commands may be on the way without an answer.
const MAX_FORWARDS: usize = 4;

#[derive(Clone, Debug, Hash)]
struct Pending {
    token: Token,
    command: Bytes,
    /// The user waits no longer.
    cancelled: bool,
}

impl Pending {
    /// What it counts for on its way to the leader.
    fn size(&self) -> usize {
        self.command.len() + Entry::OVERHEAD
    }
}

/// All pending commands, oldest first: those that have a number may be on their way, those that wait have none.
#[derive(Clone, Debug, Hash)]
pub(super) struct Proposals {
    numbered: VecDeque<Pending>,
    waiting: VecDeque<Pending>,
    /// The sequence number of the first of `numbered`: the next one to be applied.
    first: u64,
    /// The next one that this node, as leader, puts into an entry.
    propose_next: u64,
    /// The next one to forward to the present leader.
    forward_next: u64,
    /// The present leader has all below.
    forward_acked: u64,
    /// Bytes of the commands from `forward_acked` up to `forward_next`.
    forwarding_bytes: usize,
    /// When those are sent again.
    forward_again_at: Time,
    bytes: usize,
}

impl Proposals {
    pub(super) fn new() -> Self {
        Self {
            numbered: VecDeque::new(),
            waiting: VecDeque::new(),
            first: 1,
            propose_next: 1,
            forward_next: 1,
            forward_acked: 1,
            forwarding_bytes: 0,
            forward_again_at: Time::default(),
            bytes: 0,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.numbered.len() + self.waiting.len()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number that the next waiting command will get.
    pub(super) fn end(&self) -> u64 {
        self.first + self.numbered.len() as u64
    }

    /// Whether any command has a number, and may be on its way.
    pub(super) fn has_numbered(&self) -> bool {
        !self.numbered.is_empty()
    }

    /// Whether any command waits for its number.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn numbered(&self, sequence: u64) -> Option<&Pending> {
        let index = sequence.checked_sub(self.first)?;
        self.numbered.get(usize::try_from(index).ok()?)
    }

    fn drop_cancelled(&mut self) {
        while self.waiting.front().is_some_and(|pending| pending.cancelled) {
            if let Some(pending) = self.waiting.pop_front() {
                self.bytes -= pending.command.len();
            }
        }
    }

    /// Gives the next waiting command its number.
    fn number_next(&mut self) {
        self.drop_cancelled();
        if let Some(pending) = self.waiting.pop_front() {
            self.numbered.push_back(pending);
        }
    }

    /// The log holds, or will hold, all own commands below `next`: a new leadership proposes from there.
    pub(super) fn propose_from(&mut self, next: u64) {
        self.propose_next = next.clamp(self.first, self.end());
    }

    pub(super) fn has_unproposed(&self) -> bool {
        self.propose_next < self.end() || !self.waiting.is_empty()
    }

    /// The next command that this node, as leader, must put into an entry.
    pub(super) fn peek_unproposed(&mut self, node: NodeId, incarnation: Incarnation) -> Option<Command> {
        self.drop_cancelled();
        let sequence = self.propose_next;
        let pending = self.numbered(sequence).or_else(|| self.waiting.front())?;
        Some(Command {
            id: ProposalId {
                node,
                incarnation,
                sequence,
            },
            payload: pending.command.clone(),
        })
    }

    /// The command that was peeked is in an entry now.
    pub(super) fn proposed(&mut self) {
        if self.propose_next == self.end() {
            self.number_next();
        }
        self.propose_next += 1;
    }

    /// The leader has all commands below `expected`.
    fn forwarded_upto(&mut self, expected: u64) {
        while self.forward_acked < expected.min(self.forward_next) {
            let bytes = self.numbered(self.forward_acked).map_or(0, Pending::size);
            self.forwarding_bytes -= bytes;
            self.forward_acked += 1;
        }
    }

    /// Nothing is on its way to a leader.
    fn rewind_forwards(&mut self, to: u64) {
        self.forward_next = to;
        self.forward_acked = to;
        self.forwarding_bytes = 0;
    }

    /// The own command with this number is applied: it is the oldest one.
    pub(super) fn applied(&mut self, sequence: u64) -> Option<Token> {
        if sequence != self.first {
            return None;
        }
        self.forwarded_upto(sequence + 1);
        let pending = self.numbered.pop_front()?;
        self.first += 1;
        self.bytes -= pending.command.len();
        self.propose_next = self.propose_next.max(self.first);
        if self.forward_next < self.first {
            self.rewind_forwards(self.first);
        }
        (!pending.cancelled).then_some(pending.token)
    }

    /// Takes out the commands that wait for a number.
    pub(super) fn take_waiting(&mut self) -> impl Iterator<Item = Token> + use<> {
        let waiting = core::mem::take(&mut self.waiting);
        self.bytes -= waiting.iter().map(|pending| pending.command.len()).sum::<usize>();
        let open = waiting.into_iter().filter(|pending| !pending.cancelled);
        open.map(|pending| pending.token)
    }

    /// Nobody will tell what becomes of the commands that may be on their way.
    fn give_up(&mut self) -> impl Iterator<Item = Token> {
        let numbered = self.numbered.iter_mut().filter(|pending| !pending.cancelled);
        numbered.map(|pending| {
            pending.cancelled = true;
            pending.token
        })
    }

    /// All own commands below `next` are in the log already; returns those whose users still wait.
    pub(super) fn covered(&mut self, next: u64) -> Vec<Token> {
        let mut waiting = Vec::new();
        while self.first < next && !self.numbered.is_empty() {
            waiting.extend(self.applied(self.first));
        }
        waiting
    }
}

impl Replica {
    pub(super) fn on_propose(&mut self, token: Token, command: Bytes) {
        let reason = if command.len() > self.config.max_command_bytes {
            Rejection::TooLarge
        } else if !self.config.forward && !self.is_leader() {
            Rejection::NotLeader {
                leader: self.leader.map(|ballot| ballot.node),
            }
        } else if self.proposals.count() >= self.config.max_pending_commands
            || self.proposals.bytes + command.len() > self.config.max_pending_bytes
        {
            Rejection::Overloaded
        } else {
            self.proposals.bytes += command.len();
            self.proposals.waiting.push_back(Pending {
                token,
                command,
                cancelled: false,
            });
            return;
        };
        self.outputs.push_back(Output::Rejected { token, reason });
    }

    pub(super) fn on_cancel(&mut self, token: Token) {
        let cancel = |pending: &mut VecDeque<Pending>| {
            let index = pending
                .binary_search_by_key(&token, |pending| pending.token)
                .ok()?;
            let found = pending.get_mut(index).filter(|pending| !pending.cancelled)?;
            found.cancelled = true;
            Some(())
        };
        if cancel(&mut self.proposals.waiting).is_some() {
            self.proposals.drop_cancelled();
            self.outputs.push_back(Output::Rejected {
                token,
                reason: Rejection::Expired,
            });
        } else if cancel(&mut self.proposals.numbered).is_some() {
            self.outputs.push_back(Output::Unknown { token });
        } else if !self.cancel_change(token) {
            self.cancel_read(token);
        }
    }

    /// A node that was removed hears of no leader any more: its users shall not wait for one. What it knows to be chosen
    /// it still learns and applies.
    pub(super) fn end_proposals_of_removed(&mut self) {
        let hears_more = self.leader.is_some() || self.learner.applied < self.learner.known();
        if hears_more || !self.proposals.has_numbered() || self.standing() != Standing::Removed {
            return;
        }
        let unknown = self.proposals.give_up();
        self.outputs
            .extend(unknown.map(|token| Output::Unknown { token }));
    }

    /// A new leader knows nothing of what the old one was sent.
    pub(super) fn rewind_forwards(&mut self) {
        self.proposals.rewind_forwards(self.proposals.first);
    }

    /// Sends the leader what it has not been sent, and again what it does not acknowledge.
    pub(super) fn forward_waiting(&mut self) {
        let Some(ballot) = self.leader.filter(|ballot| ballot.node != self.identity.node) else {
            return;
        };
        let again_at = self.now.plus(self.config.heartbeat_interval * 2);
        let max_message_bytes = self.config.max_message_bytes;
        let proposals = &mut self.proposals;
        if proposals.forward_next > proposals.forward_acked && self.now >= proposals.forward_again_at {
            proposals.rewind_forwards(proposals.forward_acked);
        }
        loop {
            let proposals = &mut self.proposals;
            if proposals.forwarding_bytes >= max_message_bytes * MAX_FORWARDS {
                return;
            }
            if proposals.forward_next == proposals.forward_acked {
                proposals.forward_again_at = again_at;
            }
            let first = proposals.forward_next;
            let mut commands = Vec::new();
            let mut bytes = 0;
            loop {
                if proposals.forward_next == proposals.end() {
                    proposals.number_next();
                }
                let Some(pending) = proposals.numbered(proposals.forward_next) else {
                    break;
                };
                let size = pending.size();
                if !commands.is_empty() && bytes + size > max_message_bytes {
                    break;
                }
                bytes += size;
                commands.push(pending.command.clone());
                proposals.forward_next += 1;
            }
            if commands.is_empty() {
                return;
            }
            proposals.forwarding_bytes += bytes;
            let incarnation = self.incarnation;
            self.send(
                ballot.node,
                Message::Forward {
                    ballot,
                    incarnation,
                    first,
                    commands,
                },
            );
        }
    }

    pub(super) fn on_forwarded(&mut self, ballot: Ballot, incarnation: Incarnation, expected: u64) {
        let again_at = self.now.plus(self.config.heartbeat_interval * 2);
        let proposals = &mut self.proposals;
        if incarnation == self.incarnation
            && self.leader == Some(ballot)
            && expected > proposals.forward_acked
        {
            proposals.forwarded_upto(expected);
            proposals.forward_again_at = again_at;
        }
    }

    pub(super) fn forward_deadline(&self) -> Option<Time> {
        let proposals = &self.proposals;
        let to_other = self
            .leader
            .is_some_and(|ballot| ballot.node != self.identity.node);
        (to_other && proposals.forward_next > proposals.forward_acked).then_some(proposals.forward_again_at)
    }
}
