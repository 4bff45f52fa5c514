//! Linearizable reads by read index (Ongaro: *Consensus: Bridging Theory and Practice*, section 6.4): the leader takes
//! its watermark, proves by a heartbeat round that it still was leader then, and the read waits until the reading node
//! has applied that far. One round is shared by all reads that wait, and asks as many voters as are needed: those that
//! answered fastest of late, and all of them if that takes long.

use alloc::{
    collections::{BTreeSet, VecDeque},
    vec::Vec,
};

use super::{
    Message, Output, Rejection, Replica, Sender, Token, election::Role, progress::Progress,
    proposer::Leadership,
};
use crate::planted;
use crate::types::{Incarnation, Member, Membership, NodeId, Slot, Time};

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
    /// Of other nodes; this node's own ones wait elsewhere.
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
    /// When everybody is asked, if only some were.
    widen_at: Option<Time>,
}

impl Leadership {
    /// So many voters that their answers prove that this node leads, the quickest ones; `None` if there are not so many, or
    /// if the voters are about to change.
    fn quickest_quorum(&self, membership: &Membership, own: Sender, now: Time) -> Option<Vec<NodeId>> {
        if self.barrier.is_some() {
            return None;
        }
        let votes = |voter: &Member| self.of(voter, own, |_| false, || true);
        let needed = membership.quorum() - usize::from(membership.voting().any(votes));
        let mut voters: Vec<_> = membership
            .voting()
            .filter(|voter| self.of(voter, own, Progress::is_sent_things, || false))
            .filter_map(|voter| Some((self.peers.get(&voter.node)?.answers_after(now), voter.node)))
            .collect();
        voters.sort_unstable();
        (voters.len() >= needed).then(|| voters.into_iter().take(needed).map(|(_, node)| node).collect())
    }
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
            // Nothing else drops cancelled reads while no round begins.
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
            self.widen_read_round();
            self.begin_read_round();
        } else {
            self.ask_leader();
        }
    }

    fn begin_read_round(&mut self) {
        let (index, own) = (self.chosen, self.own());
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        let asked = self.reads.questions.drain(..).flat_map(|question| question.reads);
        self.reads.waiting.extend(asked);
        if (leadership.reads.waiting.is_empty() && self.reads.waiting.is_empty())
            || leadership.reads.round.is_some()
            || (index < leadership.inherited && !planted::is("read_before_inherited"))
        {
            return;
        }
        let mut askers = core::mem::take(&mut leadership.reads.waiting);
        let waiting = self.reads.waiting.drain(..);
        askers.extend(
            waiting
                .filter(|read| self.reads.open.contains(read))
                .map(Asker::Own),
        );
        let enough = leadership.quickest_quorum(self.memberships.current(), own, self.now);
        let widen_at = enough
            .as_ref()
            .map(|_| self.now.plus(self.config.heartbeat_interval / 10));
        leadership.reads.round = Some(Round {
            heartbeat: leadership.round + 1,
            index,
            askers,
            widen_at,
        });
        match enough {
            Some(voters) => self.heartbeat_to(|node| voters.contains(&node)),
            None => self.heartbeat(),
        }
        self.confirm_reads();
    }

    /// The voters that were asked have not answered in time: perhaps others do.
    fn widen_read_round(&mut self) {
        if let Role::Leader(leadership) = &mut self.role
            && let Some(round) = &mut leadership.reads.round
            && round.widen_at.is_some_and(|at| at <= self.now)
        {
            round.widen_at = None;
            self.heartbeat();
        }
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
                Asker::Own(token) if self.reads.open.contains(&token) => self.reads.waiting.push(token),
                Asker::Own(_) => {}
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
        if let Role::Leader(leadership) = &self.role {
            return leadership.reads.round.as_ref()?.widen_at;
        }
        self.leader.filter(|ballot| ballot.node != self.identity.node)?;
        self.reads
            .questions
            .iter()
            .map(|question| question.again_at)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use core::time::Duration;

    use super::*;
    use crate::{
        core::{Checkpoint, Config, Input, Life, Pulse, Reported, Start},
        types::{
            Ballot, ChosenMembership, ClusterId, GroupId, HardState, Identity, Member, Membership, StorageId,
        },
    };

    fn step(replica: &mut Replica, input: Input) {
        let now = Time(Duration::from_mins(1));
        replica.step(now, input);
        while let Some(output) = replica.poll() {
            if let Output::Persist { id, .. } = output {
                replica.step(now, Input::Persisted(id));
            }
        }
    }

    /// Node 1 of three, elected with node 2's help; nobody has said anything since.
    fn leader() -> Replica {
        let members = (1..=3).map(|node| Member::voter(NodeId(node), ""));
        let start = Start {
            group: GroupId(1),
            identity: Identity {
                cluster: ClusterId(1),
                node: NodeId(1),
                storage: StorageId(1),
            },
            incarnation: Incarnation(1),
            seed: 1,
            membership: ChosenMembership::first(Membership::new(members)),
            hard_state: HardState::default(),
            trimmed: Slot::ZERO,
            tail: vec![],
            damaged: vec![],
            snapshot: None,
        };
        let mut replica = Replica::new(Config::default(), start, Time::default());
        step(&mut replica, Input::Tick);
        let ballot = Ballot {
            round: 1,
            node: NodeId(1),
        };
        let yes = Message::CanvassReply {
            ballot,
            granted: true,
            highest: Ballot::ZERO,
            chosen: Slot::ZERO,
        };
        let promise = Message::Promise {
            ballot,
            chosen: Slot::ZERO,
            reported: Reported {
                first: Slot(1),
                last: Slot::MAX,
                entries: vec![],
                damaged: vec![],
            },
        };
        for message in [yes, promise] {
            let (from, storage) = (NodeId(2), StorageId(2));
            let input = Input::Message {
                from,
                storage,
                message,
            };
            step(&mut replica, input);
        }
        replica
    }

    #[test]
    fn reads_that_are_cancelled_while_no_quorum_answers_take_no_room() {
        let mut replica = leader();
        for token in (0..1_000).map(Token) {
            step(&mut replica, Input::Read { token });
            step(&mut replica, Input::Cancel { token });
        }
        let Role::Leader(leadership) = &replica.role else {
            panic!("it leads");
        };
        assert!(replica.reads.waiting.len() + leadership.reads.waiting.len() < 10);
    }

    /// What the replica sends to whom, when this comes in at this time.
    fn sent(replica: &mut Replica, millis: u64, input: Input) -> Vec<(Vec<NodeId>, Message)> {
        replica.step(Time(Duration::from_millis(60_000 + millis)), input);
        core::iter::from_fn(|| replica.poll())
            .filter_map(|output| match output {
                Output::Send { to, message } => Some((to, message)),
                _ => None,
            })
            .collect()
    }

    /// Who is asked by the one round of heartbeats among these messages.
    fn asked(sent: &[(Vec<NodeId>, Message)]) -> Option<(u64, Vec<NodeId>)> {
        sent.iter().find_map(|(to, message)| match message {
            Message::Heartbeat { round, .. } => Some((*round, to.clone())),
            _ => None,
        })
    }

    /// The node answers the heartbeats up to this one, and has every entry.
    fn answers(replica: &mut Replica, millis: u64, node: u64, round: u64) -> Vec<(Vec<NodeId>, Message)> {
        let ballot = Ballot {
            round: 1,
            node: NodeId(1),
        };
        let pulse = Pulse {
            round,
            received: Slot(1),
            accepted: Slot(1),
            chosen: Slot(1),
            ready: true,
            leased: false,
            checkpoint: Checkpoint::default(),
            life: Life::default(),
        };
        let message = Message::HeartbeatReply { ballot, pulse };
        let (from, storage) = (NodeId(node), StorageId(node));
        let input = Input::Message {
            from,
            storage,
            message,
        };
        sent(replica, millis, input)
    }

    #[test]
    fn a_read_asks_the_voter_that_answers_fastest_and_the_others_when_that_takes_long() {
        let mut replica = leader();
        let (round, everybody) = asked(&sent(&mut replica, 100, Input::Tick)).expect("a heartbeat was due");
        assert_eq!(everybody, [NodeId(2), NodeId(3)]);
        answers(&mut replica, 103, 3, round);
        answers(&mut replica, 107, 2, round);

        let read = Input::Read { token: Token(1) };
        let (round, quickest) = asked(&sent(&mut replica, 110, read)).expect("a round for the read");
        assert_eq!(quickest, [NodeId(3)], "it took 3 ms, node 2 took 7");
        assert_eq!(replica.deadline(), Some(Time(Duration::from_millis(60_120))));
        let (_, everybody) = asked(&sent(&mut replica, 120, Input::Tick)).expect("no answer has come");
        assert_eq!(everybody, [NodeId(2), NodeId(3)]);
        answers(&mut replica, 121, 2, round + 1);
        assert!(replica.reads.open.is_empty(), "the read is answered");

        let read = Input::Read { token: Token(2) };
        let (_, quickest) = asked(&sent(&mut replica, 122, read)).expect("a round for the read");
        assert_eq!(quickest, [NodeId(2)], "node 3 has not answered for 12 ms");
    }

    #[test]
    fn reads_do_not_take_the_place_of_the_heartbeats_that_keep_the_others_from_an_election() {
        let mut replica = leader();
        let (round, _) = asked(&sent(&mut replica, 100, Input::Tick)).expect("a heartbeat was due");
        for node in [2, 3] {
            answers(&mut replica, 101, node, round);
        }
        for millis in 102..200 {
            let read = Input::Read { token: Token(millis) };
            let (round, quickest) = asked(&sent(&mut replica, millis, read)).expect("a round for the read");
            let [NodeId(node)] = quickest[..] else {
                panic!("one voter is enough beside the leader, not {quickest:?}")
            };
            answers(&mut replica, millis, node, round);
        }
        let (_, everybody) =
            asked(&sent(&mut replica, 200, Input::Tick)).expect("100 ms after the last regular one");
        assert_eq!(everybody, [NodeId(2), NodeId(3)]);
    }
}
