//! One node: the real replica, its disk, and what came of one event at it.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use paxos::{
    Accepted, Ballot, ChosenMembership, ClusterId, Entry, GroupId, HardState, Identity, Incarnation, Member,
    Membership, NodeId, Slot, StorageId, Time, WriteOp,
    core::{
        ChosenEntry, Command, Config, Input, Message, Output, PersistId, Phase, Replica, Start, Timer, Token,
    },
};

use crate::Bounds;

/// The time at which everything happens: late enough that time zero is long ago.
const NOW: Time = Time(Duration::from_secs(1_000));

/// A fingerprint that is the same in every run.
pub(crate) fn fingerprint(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// A message from one node to another.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Letter {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) message: Message,
}

/// What can happen at one node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// A letter arrives.
    Deliver(Arc<Letter>),
    /// The node stops waiting for a leader, and nobody objects to its candidacy.
    Stand,
    /// A leader's next heartbeat is due.
    Heartbeat,
    /// The oldest write under way becomes durable.
    Sync,
    /// The user asks for another membership, and for a command.
    Change,
    /// The node crashes, forgets what was not durable, and starts again.
    Restart,
}

/// A durable accept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Vote {
    pub(crate) slot: Slot,
    pub(crate) ballot: Ballot,
    /// The entry's payload: empty for a no-op.
    pub(crate) value: Bytes,
    pub(crate) voter: u64,
}

/// What came of an event.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) sent: Vec<Letter>,
    pub(crate) votes: Vec<Vote>,
    /// Something that must not be, seen at the node itself.
    pub(crate) fault: Option<String>,
}

/// A change on its way to the disk, and whether it is a vote: what was learned is none.
#[derive(Clone, Debug, Hash)]
struct Change {
    op: WriteOp,
    is_vote: bool,
}

#[derive(Clone, Debug, Hash)]
pub(crate) struct Seat {
    node: u64,
    replica: Replica,
    lives: u64,
    pub(crate) durable: HardState,
    entries: BTreeMap<Slot, Accepted>,
    /// Writes under way, oldest first.
    writing: VecDeque<Vec<Change>>,
    /// What this life has applied, from slot 1 on.
    pub(crate) applied: Vec<(Ballot, Vec<Command>)>,
    pub(crate) candidacies: usize,
    pub(crate) heartbeats: usize,
    pub(crate) has_changed: bool,
}

/// The commands that users of a node propose.
pub(crate) fn command(node: u64, count: u64) -> Bytes {
    Bytes::from(format!("n{node} c{count}"))
}

/// The first members.
pub(crate) fn founders() -> Membership {
    Membership::new((1..=3).map(|id| Member::voter(NodeId(id), "")))
}

/// The membership in force at the stored watermark.
fn in_force(hard_state: HardState, entries: &BTreeMap<Slot, Accepted>) -> ChosenMembership {
    let at = hard_state.membership;
    let stored = entries.get(&at).and_then(|Accepted { ballot, entry }| {
        Some(ChosenMembership {
            at,
            ballot: *ballot,
            membership: Membership::from_entry(entry)?,
        })
    });
    stored.unwrap_or_else(|| ChosenMembership::first(founders()))
}

fn replica(node: u64, lives: u64, hard_state: HardState, entries: &BTreeMap<Slot, Accepted>) -> Replica {
    let config = Config {
        // The watermark is told as soon as it moves: no timer stands between.
        max_watermark_delay: Duration::ZERO,
        ..Config::default()
    };
    let tail = entries.range(hard_state.chosen.next()..);
    let start = Start {
        group: GroupId(1),
        identity: Identity {
            cluster: ClusterId(1),
            node: NodeId(node),
            storage: StorageId(node),
        },
        incarnation: Incarnation(lives),
        seed: 0,
        membership: in_force(hard_state, entries),
        hard_state,
        trimmed: Slot::ZERO,
        tail: tail.map(|(slot, accepted)| (*slot, accepted.clone())).collect(),
        damaged: Vec::new(),
        snapshot: None,
    };
    Replica::new(config, start, NOW)
}

impl Seat {
    /// A node that has never run, and whose users have proposed so many commands.
    pub(crate) fn new(node: u64, proposals: usize) -> Self {
        let mut seat = Self {
            node,
            replica: replica(node, 1, HardState::default(), &BTreeMap::new()),
            lives: 1,
            durable: HardState::default(),
            entries: BTreeMap::new(),
            writing: VecDeque::new(),
            applied: Vec::new(),
            candidacies: 0,
            heartbeats: 0,
            has_changed: false,
        };
        for count in 1..=proposals as u64 {
            let input = Input::Propose {
                token: Token(count),
                command: command(node, count),
            };
            seat.step(input, &mut Effects::default());
        }
        seat.replica.normalize();
        seat
    }

    pub(crate) fn phase(&self) -> Phase {
        self.replica.status(NOW).phase
    }

    pub(crate) fn is_writing(&self) -> bool {
        !self.writing.is_empty()
    }

    /// The node after this event.
    pub(crate) fn after(&self, event: &Event, bounds: &Bounds) -> (Self, Effects) {
        let mut next = self.clone();
        let mut effects = Effects::default();
        let attempt = catch_unwind(AssertUnwindSafe(|| next.happen(event, bounds, &mut effects)));
        if attempt.is_err() {
            effects.fault = Some(format!("n{} panics", self.node));
        }
        effects.sent.retain(|letter| bounds.carries(&letter.message));
        (next, effects)
    }

    fn happen(&mut self, event: &Event, bounds: &Bounds, effects: &mut Effects) {
        match event {
            Event::Deliver(letter) => {
                let message = letter.message.clone();
                self.receive(letter.from, message, effects);
            }
            Event::Stand => {
                self.candidacies += 1;
                self.replica.expire(Timer::Election);
                self.step(Input::Tick, effects);
                self.grant_canvass(effects);
            }
            Event::Heartbeat => {
                self.heartbeats += 1;
                self.replica.expire(Timer::Heartbeat);
                self.step(Input::Tick, effects);
            }
            Event::Sync => self.sync(effects),
            Event::Change => self.change(bounds, effects),
            Event::Restart => {
                self.writing.clear();
                self.applied.clear();
                self.lives += 1;
                self.replica = replica(self.node, self.lives, self.durable, &self.entries);
                self.step(Input::Tick, effects);
            }
        }
        while !bounds.disks_lag[self.node as usize - 1] && self.is_writing() {
            self.sync(effects);
        }
        self.replica.normalize();
    }

    fn change(&mut self, bounds: &Bounds, effects: &mut Effects) {
        self.has_changed = true;
        let leaves = |node: &u64| Some(*node) != bounds.last_voter;
        // A leader that removed itself would take no command after that.
        let changes = (1..=3).filter(leaves).map(|node| match node {
            1 => paxos::Change::Demote { node: NodeId(node) },
            _ => paxos::Change::Remove { node: NodeId(node) },
        });
        let change = Input::ChangeMembership {
            token: Token(100),
            expected: founders().version,
            changes: changes.collect(),
            force: true,
        };
        self.step(change, effects);
        let next = bounds.proposals[self.node as usize - 1] as u64 + 1;
        let propose = Input::Propose {
            token: Token(next),
            command: command(self.node, next),
        };
        self.step(propose, effects);
    }

    fn receive(&mut self, from: u64, message: Message, effects: &mut Effects) {
        let input = Input::Message {
            from: NodeId(from),
            storage: StorageId(from),
            message,
        };
        self.step(input, effects);
    }

    /// Canvassing promises nothing, so a candidacy must be safe whatever the others say: here they always agree, and
    /// keep to themselves what ballots they have seen.
    fn grant_canvass(&mut self, effects: &mut Effects) {
        let canvass = effects.sent.iter().find_map(|letter| match letter.message {
            Message::Canvass { ballot, .. } => Some((letter.to, ballot)),
            _ => None,
        });
        let Some((peer, ballot)) = canvass else { return };
        let message = Message::CanvassReply {
            ballot,
            granted: true,
            highest: Ballot::ZERO,
            chosen: Slot::ZERO,
        };
        self.receive(peer, message, effects);
    }

    fn step(&mut self, input: Input, effects: &mut Effects) {
        let learned = matches!(
            &input,
            Input::Message {
                message: Message::Learned { .. },
                ..
            }
        );
        self.replica.step(NOW, input);
        while let Some(output) = self.replica.poll() {
            self.carry_out(output, learned, effects);
        }
    }

    fn carry_out(&mut self, output: Output, learned: bool, effects: &mut Effects) {
        match output {
            Output::Send { to, message } => {
                let said = match message {
                    Message::Prepare { ballot, .. } | Message::Promise { ballot, .. } => ballot,
                    _ => Ballot::ZERO,
                };
                if said > self.durable.promised {
                    effects.fault = Some(format!(
                        "n{} says {message:?} and has not promised it durably",
                        self.node
                    ));
                }
                effects.sent.extend(to.into_iter().map(|to| Letter {
                    from: self.node,
                    to: to.0,
                    message: message.clone(),
                }));
            }
            Output::Persist { ops, .. } => {
                let own = self.replica.status(NOW).leader;
                let own = own.filter(|ballot| ballot.node.0 == self.node);
                let changes = ops.into_iter().map(|op| {
                    let is_vote = match &op {
                        WriteOp::Accept { ballot, .. } => !learned || own == Some(*ballot),
                        _ => false,
                    };
                    Change { op, is_vote }
                });
                self.writing.push_back(changes.collect());
            }
            Output::Apply(entry) => self.apply(entry, effects),
            Output::Load { from, upto, .. } => {
                let entries = self.entries.range(from..=upto);
                let entries = entries
                    .map(|(slot, accepted)| (*slot, accepted.clone()))
                    .collect();
                self.replica.step(NOW, Input::Loaded { from, entries });
            }
            Output::TakeSnapshot(_)
            | Output::InstallSnapshot { .. }
            | Output::LoadChunk { .. }
            | Output::StoreChunk { .. } => {
                effects.fault = Some(format!("n{} wants a snapshot without being told to", self.node));
            }
            Output::Alarm(alarm) => effects.fault = Some(format!("n{} raises {alarm:?}", self.node)),
            Output::Rejected { .. }
            | Output::Unknown { .. }
            | Output::ReadReady { .. }
            | Output::Transferred { .. }
            | Output::Leader(_)
            | Output::Membership { .. }
            | Output::Peers(_)
            | Output::Departed { .. }
            | Output::MembershipChanged { .. } => {}
        }
    }

    fn apply(&mut self, entry: ChosenEntry, effects: &mut Effects) {
        if entry.slot != Slot(self.applied.len() as u64 + 1) {
            effects.fault = Some(format!("n{} applies {} out of order", self.node, entry.slot));
        }
        let commands: Vec<Command> = entry.commands.into_iter().map(|chosen| chosen.command).collect();
        let again = commands
            .iter()
            .any(|command| self.applied.iter().any(|(_, earlier)| earlier.contains(command)));
        if again {
            effects.fault = Some(format!(
                "n{} applies a command of {} again",
                self.node, entry.slot
            ));
        }
        self.applied.push((entry.ballot, commands));
    }

    /// Writes are numbered from 1 since the last normalisation.
    fn sync(&mut self, effects: &mut Effects) {
        let Some(changes) = self.writing.pop_front() else {
            return;
        };
        for Change { op, is_vote } in changes {
            match op {
                WriteOp::HardState { state, .. } => {
                    if state.promised < self.durable.promised || state.chosen < self.durable.chosen {
                        effects.fault = Some(format!("n{} goes back to {state:?}", self.node));
                    }
                    self.durable = state;
                }
                WriteOp::Accept {
                    slot, ballot, entry, ..
                } => {
                    if is_vote {
                        effects.votes.push(Vote {
                            slot,
                            ballot,
                            value: value(&entry),
                            voter: self.node,
                        });
                    }
                    self.entries.insert(slot, Accepted { ballot, entry });
                }
                WriteOp::Trim { .. } | WriteOp::RemoveGroup { .. } => {
                    effects.fault = Some(format!("n{} drops what it was not told to drop", self.node));
                }
            }
        }
        self.replica.normalize();
        self.step(Input::Persisted(PersistId(1)), effects);
    }
}

/// What a vote is for.
fn value(entry: &Entry) -> Bytes {
    entry.payload.clone()
}
