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
//! **Time** is monotonic. The driver looks at the clock after it has taken in what it steps, or a lease might be counted
//! from before it was asked for. A driver that was held up steps what came in meanwhile before it polls, so that a pause
//! is not taken for silence.
//!
//! **Replay**: a new replica hands out [`Output::Apply`] for every entry of the log from the first one held, because what
//! earlier entries held decides which later commands are duplicates; from the first one above its snapshot, if it began
//! with one. A driver whose state machine is ahead skips what the machine has.
//!
//! **Snapshots** exist only with a driver that keeps them ([`Config::snapshots`]).
//!
//! **Crash**: a replica is made anew from what the store holds, [`Replica::new`].

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod acceptor;
pub mod address_book;
mod audit;
mod barrier;
pub mod batch;
mod changes;
mod config;
mod damage;
mod drain;
mod election;
#[cfg(feature = "testing")]
mod exploration;
mod gate;
mod hash;
mod heartbeat;
mod io;
mod learner;
mod lease;
mod membership;
mod message;
pub mod peers;
mod preference;
mod progress;
mod proposals;
mod proposer;
mod quiet;
mod reads;
mod rng;
mod rollback;
mod snapshots;
mod transfer;
mod window;

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    vec::Vec,
};

#[cfg(feature = "testing")]
pub use self::exploration::Timer;
use self::{
    acceptor::Following,
    audit::History,
    changes::{ChangeRequest, Changes},
    damage::Damage,
    drain::Draining,
    election::Role,
    gate::{After, Gate},
    learner::Learner,
    membership::Memberships,
    preference::Preference,
    proposals::Proposals,
    quiet::Nodes,
    reads::Reads,
    rng::Rng,
    snapshots::Snapshots,
    window::Window,
};
pub use self::{
    audit::Checkpoint,
    barrier::Reported,
    batch::Command,
    config::{Config, ConfigError},
    heartbeat::Pulse,
    io::{
        Alarm, ChosenCommand, ChosenEntry, FetchStatus, Input, Output, PeerStatus, PersistId, Phase,
        Rejection, Standing, Start, Status, Token, TransferRejection,
    },
    lease::Lease,
    message::Message,
    rollback::{Holding, Life},
};
use crate::types::{
    Ballot, GroupId, HardState, Identity, Incarnation, NodeId, Quarantine, Slot, StorageId, Time, WriteOp,
};

/// Who says something: a node, and its disk. A node with another disk is another acceptor.
type Sender = (NodeId, StorageId);

/// One replica of one group. See the [module's contract](self).
#[derive(Clone, Debug, Hash)]
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
    history: History,
    quarantine: Option<Quarantine>,
    /// What the store held when this life began.
    began: Holding,

    role: Role,
    /// Whom this node follows, itself included.
    leader: Option<Ballot>,
    following: Following,
    acknowledgement_due: bool,
    heard_at: Time,
    /// When this node canvasses if it hears of no leader; `None` while it rests.
    election_at: Option<Time>,
    granted: lease::Granted,
    nodes: Nodes,

    learner: Learner,
    snapshots: Snapshots,
    damage: Damage,
    proposals: Proposals,
    reads: Reads,
    requests: transfer::Requests,
    preference: Preference,
    changes: Changes,
    /// The leader is about to take this node out of the group.
    draining: Option<Draining>,
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
            damaged,
            snapshot,
        } = start;
        let HardState {
            promised,
            chosen: stored,
            quarantine,
            ..
        } = hard_state;
        assert!(trimmed <= stored, "only chosen slots are trimmed");
        let snapshot = snapshot.unwrap_or_default();
        let upto = snapshot.upto;
        assert!(
            trimmed <= upto || config.snapshots,
            "the log is trimmed up to slot {trimmed}, but the newest snapshot is of slot {upto}, and none can be fetched"
        );
        let chosen = stored.max(upto);
        let mut memberships = Memberships::new(membership);
        if upto > Slot::ZERO {
            memberships.begin_with(snapshot.membership);
        }
        assert!(
            hard_state.membership <= memberships.latest().at && memberships.latest().at <= chosen,
            "the membership is that of the watermark"
        );
        let mut window = Window::new(chosen.next());
        for (slot, accepted) in tail {
            window.set(slot, accepted, PersistId(0));
        }
        let damage = Damage::new(damaged.into_iter().filter(|slot| *slot > trimmed));
        let mut snapshots = Snapshots::new(upto);
        snapshots.trim_due = damage.count() > 0;
        let mut replica = Self {
            granted: lease::Granted::new(config.lease, now),
            config,
            group,
            identity,
            incarnation,
            rng: Rng::new(seed),
            now,
            promised,
            highest: promised.max(memberships.latest().ballot),
            chosen,
            chosen_written: chosen,
            chosen_written_at: now,
            trimmed,
            memberships,
            began: Holding::found(&hard_state, window.last().max(upto).max(damage.last())),
            window,
            gate: Gate::new(),
            history: match upto {
                Slot::ZERO => History::new(group),
                slot => History::after(Checkpoint {
                    slot,
                    hash: snapshot.hash,
                }),
            },
            quarantine,
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
            election_at: Some(now),
            nodes: Nodes::default(),
            learner: Learner::new(upto, snapshot.origins, chosen),
            snapshots,
            damage,
            proposals: Proposals::new(),
            reads: Reads::new(incarnation),
            requests: transfer::Requests::default(),
            preference: Preference::default(),
            changes: Changes::new(incarnation),
            draining: None,
            told_now: BTreeSet::new(),
            outputs: VecDeque::new(),
        };
        replica.postpone_election();
        if quarantine.is_some() {
            replica.on_quarantined();
        } else if upto > stored {
            replica.trimmed = upto;
            replica.damage.trimmed(upto);
            replica.write_hard_state();
            replica.gate.write(WriteOp::Trim { group, upto });
        }
        replica
    }

    /// Takes one input in. Cheap; all effects come out of [`Self::poll`]. A time before an earlier one counts as that.
    pub fn step(&mut self, now: Time, input: Input) {
        self.now = self.now.max(now);
        if self.quarantine.is_some() && !Self::passes_quarantine(&input) {
            return;
        }
        self.wake_for(&input);
        match input {
            Input::Tick => {}
            Input::Message {
                from,
                storage,
                message,
            } => {
                if from == self.identity.node {
                } else if self.is_barred(from, storage) || self.leads_no_more(from, storage, &message) {
                    self.on_message_of_barred(from, storage, message);
                } else {
                    self.on_message(from, storage, message);
                }
            }
            Input::Persisted(id) => {
                self.gate.persisted(id);
                self.damage.persisted(id);
                while let Some(released) = self.gate.released() {
                    self.release(Some(released));
                }
            }
            Input::Propose { token, command } => self.on_propose(token, command),
            Input::Read { token } => self.on_read(token),
            Input::ReadByLease { token } => self.on_read_by_lease(token),
            Input::TransferLeadership { token, to } => self.on_transfer_leadership(token, to),
            Input::ChangeMembership {
                token,
                expected,
                changes,
                force,
            } => self.on_change_request(token, expected, changes, force),
            Input::Cancel { token } => self.on_cancel(token),
            Input::Loaded { from, entries } => self.on_loaded(from, entries),
            Input::TakeSnapshot => self.on_take_snapshot(),
            Input::SnapshotTaken { upto } => self.on_snapshot_taken(upto),
            Input::SnapshotFailed { upto } => self.on_snapshot_failed(upto),
            Input::HoldApply(held) => self.learner.held = held,
            Input::PauseTrimming(paused) => self.on_pause_trimming(paused),
            Input::SnapshotsOff => self.on_snapshots_off(),
            Input::ChunkLoaded {
                to,
                upto,
                total,
                offset,
                data,
            } => self.on_chunk_loaded(to, upto, total, offset, data),
            Input::ChunkStored { upto, next_offset } => self.on_chunk_stored(upto, next_offset),
            Input::SnapshotReceived(header) => self.on_snapshot_received(header),
            Input::Damaged { slots } => self.on_damaged(slots),
            Input::Connected(peer) => self.on_connected(peer),
            Input::Disconnected(peer) => self.on_disconnected(peer),
            Input::PeerAlive(peer) => self.on_peer_alive(peer),
            Input::PeerSilent(peer) => self.on_peer_silent(peer),
            Input::SendRefused(peer) => {
                if let Role::Leader(leadership) = &mut self.role {
                    leadership.pause(peer);
                }
            }
        }
    }

    /// This node and its disk.
    const fn own(&self) -> Sender {
        (self.identity.node, self.identity.storage)
    }

    fn on_message(&mut self, from: NodeId, storage: StorageId, message: Message) {
        match message {
            Message::Canvass { ballot, chosen } => self.on_canvass(from, ballot, chosen),
            Message::CanvassReply {
                ballot,
                granted,
                highest,
                chosen,
            } => {
                self.on_canvass_reply((from, storage), ballot, granted, highest, chosen);
            }
            Message::Prepare {
                ballot,
                from: first,
                released,
            } => self.on_prepare(from, ballot, first, released),
            Message::Promise {
                ballot,
                chosen,
                reported,
            } => self.on_promise((from, storage), ballot, chosen, reported),
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
            Message::Accepted { ballot, upto, chosen } => {
                self.on_accepted((from, storage), ballot, upto, chosen);
            }
            Message::Heartbeat {
                ballot,
                start,
                chosen,
                round,
                lease,
                checkpoint,
            } => {
                self.on_heartbeat(from, ballot, start, chosen);
                self.answer_heartbeat(from, ballot, round, lease, checkpoint);
            }
            Message::HeartbeatReply { ballot, pulse } => {
                self.on_heartbeat_reply((from, storage), ballot, pulse);
            }
            Message::Chosen {
                ballot,
                start,
                chosen,
            } => self.on_heartbeat(from, ballot, start, chosen),
            Message::Learn { from: first, upto } => self.on_learn(from, first, upto),
            Message::Learned {
                from: first,
                entries,
                chosen,
            } => self.on_learned(from, first, entries, chosen),
            Message::Trimmed { snapshot } => self.on_trimmed(from, snapshot),
            Message::FetchSnapshot { upto, offset } => self.on_fetch_snapshot(from, upto, offset),
            Message::SnapshotChunk {
                upto,
                total,
                offset,
                data,
            } => {
                self.on_snapshot_chunk(from, upto, total, offset, data);
            }
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
            Message::TakeOver {
                ballot,
                start,
                chosen,
                by_hand,
            } => self.on_take_over(from, ballot, (start, chosen), by_hand),
            Message::TransferLeadership { request, to } => self.on_transfer_request(from, request, to),
            Message::TransferRefused { request, reason } => self.on_transfer_refused(from, request, reason),
            Message::LeadsOn { request } => self.on_leads_on(from, request),
            Message::Rest {
                ballot,
                start,
                chosen,
                round,
                checkpoint,
            } => self.on_rest(from, ballot, start, chosen, round, checkpoint),
            Message::Rests { ballot, round } => self.on_rests(from, ballot, round),
            Message::ChangeMembership {
                token,
                expected,
                changes,
                force,
            } => {
                let change = ChangeRequest {
                    expected,
                    changes,
                    force,
                };
                self.on_change_membership(from, token, change);
            }
            Message::MembershipChanged { token, result } => self.on_membership_changed(from, token, result),
            Message::Drain { ballot, number } => self.on_drain(from, ballot, number),
            Message::Drained { ballot, number } => self.on_drained(from, ballot, number),
            Message::NotAdmitted { at, membership } => self.on_not_admitted((from, storage), at, &membership),
            Message::Members { at, membership } => self.on_members(from, at, membership),
            Message::RolledBack {
                ballot,
                incarnation,
                lost,
            } => self.on_rolled_back(from, ballot, incarnation, lost),
            Message::Diverged { ballot, right } => self.on_diverged(from, ballot, right),
        }
    }

    /// The next thing to do, until `None`.
    pub fn poll(&mut self) -> Option<Output> {
        if self.outputs.is_empty() && self.quarantine.is_none() {
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
        self.tend_barrier();
        self.tend_drain();
        self.refuse_when_leaving();
        self.propose_waiting();
        self.replicate();
        self.hand_over();
        self.forward_waiting();
        self.flush_acknowledgement();
        self.learn_and_apply();
        self.end_proposals_of_removed();
        self.answer_drain();
        self.trim();
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
            Some(After::Quarantined) => self.on_quarantined(),
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
        if self.quarantine.is_some() {
            return None;
        }
        let tell_at = match &self.role {
            Role::Leader(leadership) => leadership.tell_at,
            _ => None,
        };
        let ask_at = self.change_deadline();
        [
            self.election_deadline(),
            tell_at,
            ask_at,
            self.learner_deadline(),
            self.forward_deadline(),
            self.reads_deadline(),
            self.transfer_deadline(),
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
                    let alive = peer.heard && self.is_alive(*node, peer.contact, now);
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
            resting: self.is_resting(),
            leader: self.leader,
            promised: self.promised,
            chosen: self.chosen,
            known: self.learner.known(),
            applied: self.learner.applied,
            checkpoint: self.history.latest,
            quarantine: self.quarantine,
            snapshot: self.snapshots.newest,
            fetch: self.fetch_status(),
            stranded: self.stranded(),
            trimmed: self.trimmed,
            lacks_snapshot: self.lacks_snapshot(),
            damaged: self.damage.count(),
            undecided: self.undecided(),
            repaired: self.damage.repaired,
            last: self.window.last().max(self.chosen),
            membership: self.memberships.current().clone(),
            standing: self.standing(),
            draining: self.draining.is_some(),
            peers,
            pending_commands: self.proposals.count(),
            pending_bytes: self.proposals.bytes(),
            window_entries,
        }
    }
}
