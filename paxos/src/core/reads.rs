//! Linearizable reads by read index (Ongaro: *Consensus: Bridging Theory and Practice*, section 6.4): the leader takes
//! its watermark, proves by a heartbeat round that it still was leader then, and the read waits until the reading node
//! has applied that far. One round is shared by all reads that wait.

use alloc::{
    collections::{BTreeSet, VecDeque},
    vec::Vec,
};

use super::{Message, Output, Rejection, Replica, Token, election::Role, proposer::Leadership};
use crate::planted;
use crate::types::{Incarnation, NodeId, Slot, Time};

/// How many questions to the leader may be open; further reads share the next one.
const MAX_OPEN_QUESTIONS: usize = 8;

/// Reads of this node's users.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Reads {
    /// All that have not ended.
    open: BTreeSet<Token>,
    /// Those that have not been asked for.
    waiting: Vec<Token>,
    questions: VecDeque<Question>,
    /// Larger than in every earlier life: an answer to a question of that life is old.
    last_question: u64,
}

#[derive(Clone, Debug, Hash)]
struct Question {
    number: u64,
    reads: Vec<Token>,
    again_at: Time,
}

/// Reads that a leader confirms.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct LeaderReads {
    waiting: Vec<Asker>,
    round: Option<Round>,
}

impl LeaderReads {
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.round.is_none()
    }
}

#[derive(Clone, Debug, Hash)]
enum Asker {
    Own(Token),
    Peer { node: NodeId, number: u64 },
}

#[derive(Clone, Debug, Hash)]
struct Round {
    /// The heartbeat that proves it.
    heartbeat: u64,
    index: Slot,
    askers: Vec<Asker>,
}

impl Reads {
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_empty() && self.questions.is_empty()
    }

    pub(super) fn new(incarnation: Incarnation) -> Self {
        Self {
            last_question: incarnation.0 << 20,
            ..Self::default()
        }
    }
}

impl Replica {
    pub(super) fn on_read(&mut self, token: Token) {
        let reason = if !self.config.forward && !self.is_leader() {
            Rejection::NotLeader {
                leader: self.leader.map(|ballot| ballot.node),
            }
        } else if self.reads.open.len() >= self.config.max_pending_reads {
            Rejection::Overloaded
        } else {
            self.reads.open.insert(token);
            self.reads.waiting.push(token);
            return;
        };
        self.outputs.push_back(Output::Rejected { token, reason });
    }

    pub(super) fn cancel_read(&mut self, token: Token) {
        if self.reads.open.remove(&token) {
            // Without a leader nothing else drops cancelled reads.
            if self.reads.waiting.len() > 2 * self.reads.open.len() {
                self.reads.waiting.retain(|token| self.reads.open.contains(token));
            }
            self.outputs.push_back(Output::Rejected {
                token,
                reason: Rejection::Expired,
            });
        }
    }

    fn read_ready(&mut self, token: Token, slot: Slot) {
        if self.reads.open.remove(&token) {
            self.outputs.push_back(Output::ReadReady {
                token,
                slot,
                lease: None,
            });
        }
    }

    /// The leader has changed: what was asked of the old one is asked again.
    pub(super) fn ask_reads_again(&mut self) {
        for question in &mut self.reads.questions {
            question.again_at = self.now;
        }
    }

    /// Begins rounds and asks questions for the reads that wait.
    pub(super) fn serve_reads(&mut self) {
        if self.is_leader() {
            self.begin_read_round();
        } else {
            self.ask_leader();
        }
    }

    fn begin_read_round(&mut self) {
        let index = self.chosen;
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        let asked = self.reads.questions.drain(..).flat_map(|question| question.reads);
        let own = asked.chain(self.reads.waiting.drain(..)).map(Asker::Own);
        leadership.reads.waiting.extend(own);
        if leadership.reads.waiting.is_empty()
            || leadership.reads.round.is_some()
            || (index < leadership.inherited && !planted::is("read_before_inherited"))
        {
            return;
        }
        let askers = core::mem::take(&mut leadership.reads.waiting);
        leadership.reads.round = Some(Round {
            heartbeat: leadership.round + 1,
            index,
            askers,
        });
        self.heartbeat();
        self.confirm_reads();
    }

    /// Answers the reads of the open round if a quorum has answered its heartbeat.
    pub(super) fn confirm_reads(&mut self) {
        let own = self.own();
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        let Some(open) = &leadership.reads.round else {
            return;
        };
        let confirmed = leadership
            .electorates(self.memberships.current())
            .all(|voters| leadership.is_confirmed(open.heartbeat, voters, own));
        if !confirmed && !planted::is("read_without_quorum") {
            return;
        }
        let Some(Round { index, askers, .. }) = leadership.reads.round.take() else {
            return;
        };
        for asker in askers {
            match asker {
                Asker::Own(token) => self.read_ready(token, index),
                Asker::Peer { node, number } => {
                    self.told_now.insert(node);
                    self.send(
                        node,
                        Message::ReadIndexReply {
                            token: number,
                            slot: Some(index),
                        },
                    );
                }
            }
        }
    }

    /// A leadership ended: own reads wait for the next leader, peers are told to.
    pub(super) fn give_up_reads(&mut self, mut leadership: Leadership) {
        let LeaderReads { waiting, round } = core::mem::take(&mut leadership.reads);
        for asker in round
            .map(|round| round.askers)
            .into_iter()
            .flatten()
            .chain(waiting)
        {
            match asker {
                Asker::Own(token) => self.reads.waiting.push(token),
                Asker::Peer { node, number } => {
                    self.send(
                        node,
                        Message::ReadIndexReply {
                            token: number,
                            slot: None,
                        },
                    );
                }
            }
        }
    }

    /// Asks for all reads that wait, and again for what has not been answered.
    fn ask_leader(&mut self) {
        let Some(leader) = self.leader.map(|ballot| ballot.node) else {
            return;
        };
        let now = self.now;
        let again_at = now.plus(self.config.heartbeat_interval * 2);
        let mut numbers = Vec::new();
        for question in self
            .reads
            .questions
            .iter_mut()
            .filter(|question| question.again_at <= now)
        {
            question.again_at = again_at;
            numbers.push(question.number);
        }
        if !self.reads.waiting.is_empty() && self.reads.questions.len() < MAX_OPEN_QUESTIONS {
            self.reads.last_question += 1;
            let number = self.reads.last_question;
            let reads = core::mem::take(&mut self.reads.waiting);
            self.reads.questions.push_back(Question {
                number,
                reads,
                again_at,
            });
            numbers.push(number);
        }
        for token in numbers {
            self.send(leader, Message::ReadIndex { token });
        }
    }

    pub(super) fn on_read_index(&mut self, from: NodeId, number: u64) {
        let max = self.config.max_pending_reads;
        if let Role::Leader(leadership) = &mut self.role
            && leadership.reads.waiting.len() < max
        {
            leadership.reads.waiting.push(Asker::Peer { node: from, number });
        } else {
            self.send(
                from,
                Message::ReadIndexReply {
                    token: number,
                    slot: None,
                },
            );
        }
    }

    pub(super) fn on_read_index_reply(&mut self, number: u64, slot: Option<Slot>) {
        let questions = &mut self.reads.questions;
        let Some(at) = questions.iter().position(|question| question.number == number) else {
            return;
        };
        let Some(slot) = slot else {
            questions[at].again_at = self.now.plus(self.config.heartbeat_interval);
            return;
        };
        if let Some(question) = questions.remove(at) {
            for token in question.reads {
                self.read_ready(token, slot);
            }
        }
    }

    pub(super) fn reads_deadline(&self) -> Option<Time> {
        self.leader.filter(|ballot| ballot.node != self.identity.node)?;
        self.reads
            .questions
            .iter()
            .map(|question| question.again_at)
            .min()
    }
}
