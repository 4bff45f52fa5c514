//! The protocol: one replica of one group, as a pure state machine.
//!
//! A [`Replica`] is acceptor, proposer and learner of one group on one node. It does no IO, knows no clock, has no
//! thread and draws its randomness from a seed, so the same inputs give the same outputs, always. A *driver* owns it:
//! the tokio [`node`](crate::node) in production, the simulator in tests.
//!
//! # The contract between driver and replica
//!
//! 1. The driver calls [`Replica::step`] with the time and an [`Input`]; as many as are waiting.
//! 2. Then it calls [`Replica::poll`] until that returns `None`, and carries out each [`Output`] in order.
//! 3. It calls `step` with [`Input::Tick`] no later than at [`Replica::deadline`].
//!
//! Commands that were stepped before one round of polling share an entry; writes that came out of one round of polling
//! are one [`Output::Persist`].
//!
//! **Writes**: persists are made durable in order. When one is, the driver steps [`Input::Persisted`] with its
//! number; that acknowledges all earlier ones too. The driver may merge several into one write. If a write fails, the
//! driver must stop the replica for good.
//!
//! **Messages**: an output message may be sent at once: what it asserts is durable by the time it exists. Messages may
//! be lost, repeated, delayed and reordered by the network.
//!
//! **Time** is monotonic. A driver that was held up steps what came in meanwhile before it polls, so that a pause is not
//! taken for silence.
//!
//! **Replay**: a new replica hands out [`Output::Apply`] for every entry of the log from the first one held, because what
//! earlier entries held decides which later commands are duplicates. A driver whose state machine is ahead skips what
//! the machine has.
//!
//! **Crash**: a replica is made anew from what the store holds, [`Replica::new`].

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod acceptor;
pub mod batch;
mod election;
mod gate;
mod learner;
mod membership;
mod message;
mod progress;
mod proposals;
mod proposer;
mod reads;
mod rng;
mod window;

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    string::String,
    vec::Vec,
};
use core::time::Duration;

use bytes::Bytes;

use self::{
    acceptor::Following,
    election::Role,
    gate::{After, Gate},
    learner::Learner,
    membership::Memberships,
    proposals::Proposals,
    reads::Reads,
    rng::Rng,
    window::Window,
};
pub use self::{batch::Command, message::Message};
use crate::types::{
    Accepted, Ballot, GroupId, HardState, Identity, Incarnation, Membership, NodeId, Slot, StorageId, Time,
    WriteOp,
};

/// Bounds and times of one replica. Every bound is per group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How often a leader tells its peers that it lives.
    pub heartbeat_interval: Duration,
    /// A follower that has heard nothing from its leader for this long, and up to twice as long (drawn at random),
    /// canvasses; a leader that has heard no quorum for this long steps down.
    pub election_timeout: Duration,
    /// How many slots may be in flight, above the chosen watermark, beside those that a new leader inherits.
    pub max_window_entries: usize,
    /// How many bytes of entries may be in flight, above the chosen watermark.
    pub max_window_bytes: usize,
    /// How many commands may share an entry.
    pub max_batch_commands: usize,
    /// How many bytes of commands may share an entry; a single larger command travels alone.
    pub max_batch_bytes: usize,
    /// The largest command, in bytes.
    pub max_command_bytes: usize,
    /// How many commands of this node's users may be waiting or in flight.
    pub max_pending_commands: usize,
    /// How many bytes of commands of this node's users may be waiting or in flight.
    pub max_pending_bytes: usize,
    /// How many reads of this node's users may be waiting.
    pub max_pending_reads: usize,
    /// How many bytes of entries one message carries at the most (a single larger entry travels alone).
    pub max_message_bytes: usize,
    /// How many bytes of entries may be on the way to one peer without an answer.
    pub max_peer_inflight_bytes: usize,
    /// How many bytes of chosen entries are kept in memory for peers that are a little behind.
    pub max_cache_bytes: usize,
    /// How long the leader may wait for a message that carries an advanced watermark before it sends it alone. Nodes
    /// whose users wait for it are told at once.
    pub max_watermark_delay: Duration,
    /// Whether commands proposed, and reads begun, on a node that is not leader are forwarded (or rejected with a
    /// hint). What a leader took is forwarded in any case when it is deposed.
    pub forward: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(100),
            election_timeout: Duration::from_millis(500),
            max_window_entries: 1_024,
            max_window_bytes: 32 << 20,
            max_batch_commands: 1_024,
            max_batch_bytes: 1 << 20,
            max_command_bytes: 16 << 20,
            max_pending_commands: 16_384,
            max_pending_bytes: 64 << 20,
            max_pending_reads: 65_536,
            max_message_bytes: 1 << 20,
            max_peer_inflight_bytes: 16 << 20,
            max_cache_bytes: 16 << 20,
            max_watermark_delay: Duration::from_millis(2),
            forward: true,
        }
    }
}

/// A bound or interval that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} must be {expected}")]
pub struct ConfigError {
    /// The field of [`Config`].
    pub field: &'static str,
    /// What it must be.
    pub expected: &'static str,
}

impl Config {
    /// Whether a replica can work with these bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        let bounds = [
            ("max_window_entries", self.max_window_entries),
            ("max_window_bytes", self.max_window_bytes),
            ("max_batch_commands", self.max_batch_commands),
            ("max_batch_bytes", self.max_batch_bytes),
            ("max_command_bytes", self.max_command_bytes),
            ("max_pending_commands", self.max_pending_commands),
            ("max_pending_bytes", self.max_pending_bytes),
            ("max_pending_reads", self.max_pending_reads),
            ("max_message_bytes", self.max_message_bytes),
            ("max_peer_inflight_bytes", self.max_peer_inflight_bytes),
        ];
        if let Some((field, _)) = bounds.into_iter().find(|(_, bound)| *bound == 0) {
            return Err(ConfigError {
                field,
                expected: "at least 1",
            });
        }
        if self.heartbeat_interval.is_zero() {
            return Err(ConfigError {
                field: "heartbeat_interval",
                expected: "longer than nothing",
            });
        }
        if self.election_timeout < self.heartbeat_interval * 2 {
            return Err(ConfigError {
                field: "election_timeout",
                expected: "at least twice heartbeat_interval",
            });
        }
        Ok(())
    }
}

/// What a replica is made from: who it is and what its store holds.
#[derive(Clone, Debug)]
pub struct Start {
    /// The group.
    pub group: GroupId,
    /// Cluster, node and disk.
    pub identity: Identity,
    /// This life of the node; larger than in every earlier one, and durable.
    pub incarnation: Incarnation,
    /// Seeds all of the replica's randomness (election timeouts).
    pub seed: u64,
    /// The membership in force from slot 1 on.
    pub membership: Membership,
    /// As recovered.
    pub hard_state: HardState,
    /// As recovered: all slots up to this one are trimmed.
    pub trimmed: Slot,
    /// All entries held above `hard_state.chosen`, in order.
    pub tail: Vec<(Slot, Accepted)>,
}

/// Numbers the writes of one replica, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PersistId(pub u64);

/// Names a proposal or a read of this node's user; chosen by the driver, larger each time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// What happens to a replica.
#[derive(Clone, Debug)]
pub enum Input {
    /// Only time has passed.
    Tick,
    /// A message came in.
    Message {
        /// The node that sent it.
        from: NodeId,
        /// That node's disk.
        storage: StorageId,
        /// What it said.
        message: Message,
    },
    /// This write, and all before it, are durable. A write that did not ask for a sync may be reported once the store
    /// has taken it, or never.
    Persisted(PersistId),
    /// A user of this node proposes a command. Ends in exactly one of [`Output::Apply`] with its token,
    /// [`Output::Rejected`] or [`Output::Unknown`].
    Propose {
        /// Names the proposal in the answer.
        token: Token,
        /// The command.
        command: Bytes,
    },
    /// A user of this node wants to read linearizably. Ends in exactly one of [`Output::ReadReady`],
    /// [`Output::Rejected`] or, after a cancellation, [`Output::Rejected`] too.
    Read {
        /// Names the read in the answer.
        token: Token,
    },
    /// The user waits no longer. A proposal that may already have left this queue ends [`Output::Unknown`], everything
    /// else ends [`Output::Rejected`] with [`Rejection::Expired`]. Does nothing if the token has ended already.
    Cancel {
        /// The proposal or read.
        token: Token,
    },
    /// Answers [`Output::Load`]: what the store holds in these slots.
    Loaded {
        /// The first slot asked for.
        from: Slot,
        /// The entries found, in order.
        entries: Vec<(Slot, Accepted)>,
    },
    /// The connection to a peer broke: a hint that it may be gone.
    Disconnected(NodeId),
    /// The transport refused a message to this peer (its queue is full or there is no connection).
    SendRefused(NodeId),
}

/// What a replica wants done.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send this message to each of these nodes, at once. To refuse is allowed ([`Input::SendRefused`]).
    Send {
        /// Receivers; at least one, never the replica's own node.
        to: Vec<NodeId>,
        /// What to say.
        message: Message,
    },
    /// Make these changes durable, atomically, after all earlier ones; then step [`Input::Persisted`].
    Persist {
        /// The number of this write.
        id: PersistId,
        /// The changes, in order.
        ops: Vec<WriteOp>,
        /// False when nothing waits for it: it may ride along with a later write.
        sync: bool,
    },
    /// Apply the next chosen entry. Slots come in order, without gaps, once per life, from the first one held.
    Apply(ChosenEntry),
    /// Read the entries of these slots from the store and step [`Input::Loaded`]. One load is open at a time.
    Load {
        /// The first slot.
        from: Slot,
        /// The last slot.
        upto: Slot,
        /// As in [`Storage::read`](crate::Storage::read).
        max_bytes: usize,
    },
    /// The read may be answered once this slot has been applied.
    ReadReady {
        /// Which read.
        token: Token,
        /// Wait for this slot.
        slot: Slot,
    },
    /// The proposal or read certainly did not happen.
    Rejected {
        /// Which.
        token: Token,
        /// Why.
        reason: Rejection,
    },
    /// The proposal may or may not happen later.
    Unknown {
        /// Which.
        token: Token,
    },
    /// Who leads has changed, as far as this replica knows.
    Leader(Option<Ballot>),
    /// Something that must never happen was seen; the replica has refused it and goes on.
    Alarm(Alarm),
}

/// Why a proposal or read certainly did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// This node is not leader and does not forward.
    NotLeader {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
    /// A bound on pending work is reached.
    Overloaded,
    /// The command exceeds [`Config::max_command_bytes`].
    TooLarge,
    /// It was cancelled before it left this node.
    Expired,
}

/// Something that cannot happen unless a node, a disk or this library is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// A second value was offered for a slot at a ballot at which another was accepted.
    TwoValues {
        /// Where.
        slot: Slot,
        /// At which ballot.
        ballot: Ballot,
    },
    /// The store does not hold a slot that it was told to keep. The replica applies nothing from there on; the driver
    /// should halt it.
    Missing {
        /// Where.
        slot: Slot,
    },
    /// A peer reported an entry that cannot be: the report was ignored.
    Implausible {
        /// Who said so.
        from: NodeId,
        /// Where it claims to have accepted something.
        slot: Slot,
    },
    /// No ballot is left that is above all that were seen, so this node cannot lead any more.
    NoBallotLeft,
    /// A chosen entry cannot be decoded; it is treated as a no-op, the same on every replica.
    Malformed {
        /// Where.
        slot: Slot,
        /// What is wrong.
        detail: String,
    },
}

/// A chosen entry on its way to the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChosenEntry {
    /// Where.
    pub slot: Slot,
    /// The ballot of the leader that first proposed the commands: the same on every replica. Zero without commands.
    pub ballot: Ballot,
    /// The commands to apply, in order: none for a no-op or a membership, and none that an earlier slot already held.
    pub commands: Vec<ChosenCommand>,
}

/// A command on its way to the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChosenCommand {
    /// Who proposed it.
    pub command: Command,
    /// The proposal of this node's user that this command is, if any still waits: its reply goes there.
    pub token: Option<Token>,
}

/// What a replica is, for people and tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The group.
    pub group: GroupId,
    /// The replica's part.
    pub phase: Phase,
    /// The leader's ballot, as far as known.
    pub leader: Option<Ballot>,
    /// The highest ballot promised, durable or not yet.
    pub promised: Ballot,
    /// The chosen watermark.
    pub chosen: Slot,
    /// The last entry handed out to apply.
    pub applied: Slot,
    /// All slots up to this one are trimmed.
    pub trimmed: Slot,
    /// The highest slot that holds an entry.
    pub last: Slot,
    /// The membership in force at the slot after the watermark.
    pub membership: Membership,
    /// What a leader knows of its peers; empty elsewhere.
    pub peers: BTreeMap<NodeId, PeerStatus>,
    /// Commands of this node's users, waiting or in flight.
    pub pending_commands: usize,
    /// Their bytes.
    pub pending_bytes: usize,
    /// Slots in flight (leader).
    pub window_entries: usize,
}

/// A replica's part in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Follows a leader, or waits for one.
    #[default]
    Follower,
    /// Asks whether its candidacy has a chance.
    Canvassing,
    /// Collects promises (phase 1).
    Candidate,
    /// Leads (phase 2).
    Leader,
}

/// What a leader knows of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer has durably accepted everything up to this slot, or knows it chosen.
    pub matched: Slot,
    /// Whether it answered a heartbeat within the election timeout.
    pub alive: bool,
    /// How long ago the last answered heartbeat was sent, at the time of the status.
    pub heard_before: Option<Duration>,
}

/// One replica of one group. See the [module's contract](self).
#[derive(Debug)]
pub struct Replica {
    config: Config,
    group: GroupId,
    identity: Identity,
    incarnation: Incarnation,
    rng: Rng,
    now: Time,

    /// The highest ballot promised; its write may still be under way.
    promised: Ballot,
    /// The highest ballot seen anywhere.
    highest: Ballot,
    /// Every slot up to this one is chosen, and known to be.
    chosen: Slot,
    /// The watermark as last handed to the store, and when.
    chosen_written: Slot,
    chosen_written_at: Time,
    trimmed: Slot,
    memberships: Memberships,
    window: Window,
    gate: Gate,

    role: Role,
    /// Whom this node follows, itself included.
    leader: Option<Ballot>,
    following: Following,
    acknowledgement_due: bool,
    heard_at: Time,
    /// When this node canvasses if it hears of no leader.
    election_at: Time,

    learner: Learner,
    proposals: Proposals,
    reads: Reads,
    /// Peers that wait for the watermark and should be told at once.
    told_now: BTreeSet<NodeId>,
    outputs: VecDeque<Output>,
}

impl Replica {
    /// A replica as its store remembers it, at this time. It follows nobody yet.
    ///
    /// # Panics
    ///
    /// If a bound or interval of the configuration is zero ([`Config::check`]), or the recovered state contradicts
    /// itself.
    pub fn new(config: Config, start: Start, now: Time) -> Self {
        if let Err(error) = config.check() {
            panic!("{error}");
        }
        let Start {
            group,
            identity,
            incarnation,
            seed,
            membership,
            hard_state,
            trimmed,
            tail,
        } = start;
        let HardState { promised, chosen } = hard_state;
        assert!(trimmed <= chosen, "only chosen slots are trimmed");
        let mut window = Window::new(chosen.next());
        for (slot, accepted) in tail {
            window.set(slot, accepted, PersistId(0));
        }
        let mut replica = Self {
            config,
            group,
            identity,
            incarnation,
            rng: Rng::new(seed),
            now,
            promised,
            highest: promised,
            chosen,
            chosen_written: chosen,
            chosen_written_at: now,
            trimmed,
            memberships: Memberships::new(membership),
            window,
            gate: Gate::new(),
            role: Role::Follower,
            leader: None,
            following: Following {
                ballot: Ballot::ZERO,
                start: Slot::MAX,
                received: chosen,
                durable: chosen,
            },
            acknowledgement_due: false,
            heard_at: now,
            election_at: now,
            learner: Learner::new(trimmed, chosen),
            proposals: Proposals::new(),
            reads: Reads::new(incarnation),
            told_now: BTreeSet::new(),
            outputs: VecDeque::new(),
        };
        replica.postpone_election();
        replica
    }

    /// Takes one input in. Cheap; all effects come out of [`Self::poll`]. A time before an earlier one counts as that.
    pub fn step(&mut self, now: Time, input: Input) {
        self.now = self.now.max(now);
        match input {
            Input::Tick => {}
            Input::Message {
                from,
                storage,
                message,
            } => {
                if from != self.identity.node && self.memberships.is_member(from, storage) {
                    self.on_message(from, message);
                }
            }
            Input::Persisted(id) => {
                self.gate.persisted(id);
                while let Some(released) = self.gate.released() {
                    self.release(Some(released));
                }
            }
            Input::Propose { token, command } => self.on_propose(token, command),
            Input::Read { token } => self.on_read(token),
            Input::Cancel { token } => self.on_cancel(token),
            Input::Loaded { from, entries } => self.on_loaded(from, entries),
            Input::Disconnected(peer) => self.on_disconnected(peer),
            Input::SendRefused(peer) => {
                if let Role::Leader(leadership) = &mut self.role {
                    leadership.pause(peer);
                }
            }
        }
    }

    fn on_message(&mut self, from: NodeId, message: Message) {
        match message {
            Message::Canvass { ballot } => self.on_canvass(from, ballot),
            Message::CanvassReply {
                ballot,
                granted,
                highest,
            } => {
                self.on_canvass_reply(from, ballot, granted, highest);
            }
            Message::Prepare { ballot, from: first } => self.on_prepare(from, ballot, first),
            Message::Promise {
                ballot,
                chosen,
                from: first,
                to,
                entries,
            } => {
                self.on_promise(from, ballot, chosen, (first, to), entries);
            }
            Message::Refuse { ballot, promised } => self.on_refuse(ballot, promised),
            Message::Accept {
                ballot,
                start,
                first,
                entries,
                chosen,
            } => {
                self.on_accept(from, ballot, start, first, entries, chosen);
            }
            Message::Accepted { ballot, upto, chosen } => self.on_accepted(from, ballot, upto, chosen),
            Message::Heartbeat {
                ballot,
                start,
                chosen,
                round,
            } => {
                self.on_heartbeat(from, ballot, start, chosen, Some(round));
            }
            Message::HeartbeatReply {
                ballot,
                round,
                received,
                accepted,
                chosen,
            } => {
                self.on_heartbeat_reply(from, ballot, round, received, accepted, chosen);
            }
            Message::Chosen {
                ballot,
                start,
                chosen,
            } => self.on_heartbeat(from, ballot, start, chosen, None),
            Message::Learn { from: first, upto } => self.on_learn(from, first, upto),
            Message::Learned {
                from: first,
                entries,
                chosen,
            } => self.on_learned(from, first, entries, chosen),
            Message::Forward {
                ballot,
                incarnation,
                first,
                commands,
            } => {
                self.on_forward(from, ballot, incarnation, first, commands);
            }
            Message::Forwarded {
                ballot,
                incarnation,
                expected,
            } => {
                self.on_forwarded(ballot, incarnation, expected);
            }
            Message::ReadIndex { token } => self.on_read_index(from, token),
            Message::ReadIndexReply { token, slot } => self.on_read_index_reply(token, slot),
        }
    }

    /// The next thing to do, until `None`.
    pub fn poll(&mut self) -> Option<Output> {
        if self.outputs.is_empty() {
            self.flush();
        }
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        let (id, ops, sync) = self.gate.take()?;
        Some(Output::Persist { id, ops, sync })
    }

    /// Turns what was stepped into outputs: once for all inputs of a round, so that they share entries, messages and
    /// writes.
    fn flush(&mut self) {
        self.on_time();
        self.propose_waiting();
        self.replicate();
        self.forward_waiting();
        self.flush_acknowledgement();
        self.learn_and_apply();
        self.serve_reads();
        self.tell_watermark();
        self.write_watermark();
    }

    /// The watermark is written now and then, so that a restart finds most of the log chosen: with whatever else is
    /// written, or alone when nothing is.
    fn write_watermark(&mut self) {
        let due = self.now.since(self.chosen_written_at) >= self.config.heartbeat_interval;
        if self.chosen > self.chosen_written && due && (self.gate.has_ops() || self.gate.is_idle()) {
            self.chosen_written = self.chosen;
            self.chosen_written_at = self.now;
            let state = self.hard_state();
            self.gate.write_lazily(WriteOp::HardState {
                group: self.group,
                state,
            });
        }
    }

    /// What the gate let pass.
    fn release(&mut self, released: Option<After>) {
        match released {
            None => {}
            Some(After::Send { to, message }) => self.send_all(to, message),
            Some(After::Accepted { ballot, upto }) => self.on_accepted_durable(ballot, upto),
            Some(After::OwnPromise { ballot }) => self.on_own_promise(ballot),
        }
    }

    fn send(&mut self, to: NodeId, message: Message) {
        self.send_all(alloc::vec![to], message);
    }

    fn send_all(&mut self, to: Vec<NodeId>, message: Message) {
        if !to.is_empty() {
            self.outputs.push_back(Output::Send { to, message });
        }
    }

    /// When [`Input::Tick`] is due at the latest. Valid after `poll` has returned `None`, until the next `step`.
    pub fn deadline(&self) -> Option<Time> {
        let tell_at = match &self.role {
            Role::Leader(leadership) => leadership.tell_at,
            _ => None,
        };
        [
            self.election_deadline(),
            tell_at,
            self.learner_deadline(),
            self.forward_deadline(),
            self.reads_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What the replica is now.
    pub fn status(&self, now: Time) -> Status {
        let (peers, window_entries) = match &self.role {
            Role::Leader(leadership) => {
                let peers = leadership.peers.iter().map(|(node, peer)| {
                    let heard_before = peer.heard.then(|| now.since(peer.contact));
                    let alive = heard_before.is_some_and(|before| before < self.config.election_timeout);
                    let matched = peer.matched.max(peer.unclaimed);
                    (
                        *node,
                        PeerStatus {
                            matched,
                            alive,
                            heard_before,
                        },
                    )
                });
                (
                    peers.collect(),
                    leadership.next.previous().since(self.chosen) as usize,
                )
            }
            _ => (BTreeMap::new(), 0),
        };
        Status {
            group: self.group,
            phase: self.phase(),
            leader: self.leader,
            promised: self.promised,
            chosen: self.chosen,
            applied: self.learner.applied,
            trimmed: self.trimmed,
            last: self.window.last().max(self.chosen),
            membership: self.memberships.current().clone(),
            peers,
            pending_commands: self.proposals.count(),
            pending_bytes: self.proposals.bytes(),
            window_entries,
        }
    }
}
