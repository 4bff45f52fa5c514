//! A cluster driven by hand, for scenarios that a person writes and reads.

mod disks;
mod network;
mod snapshots;

use core::fmt::Write;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    format,
    string::String,
    vec::Vec,
};

use bytes::Bytes;

use super::{
    disk::{Disk, DiskState},
    files::Files,
    oracle::Oracle,
    oracle::Violation,
    trace,
};
use crate::{
    core::{
        Alarm, Config, Input, Message, Output, Phase, Rejection, Replica, Start, Status, Token,
        TransferRejection, address_book::AddressBook,
    },
    snapshot::SnapshotHeader,
    types::{
        Change, ChangeRejection, ClusterId, GroupId, Identity, Incarnation, Member, Membership, NodeId, Slot,
        StorageId, Time,
    },
};

pub use self::disks::{DiskCopy, NodeCopy};
use self::snapshots::thaw;

/// A message on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The sender.
    pub from: u64,
    /// The receiver.
    pub to: u64,
    /// What it says.
    pub message: Message,
}

/// How a proposal or read ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The command was applied in this slot.
    Applied(Slot),
    /// The read was answered after this slot had been applied.
    Read(Slot),
    /// The transfer of leadership ended so.
    Transferred(Result<NodeId, TransferRejection>),
    /// The membership was changed; it has this version now.
    Changed(u64),
    /// The membership was certainly not changed.
    Refused(ChangeRejection),
    /// It certainly did not happen.
    Rejected(Rejection),
    /// It may have happened.
    Unknown,
}

#[derive(Debug, Default)]
struct Seat {
    disk: Disk,
    /// How many disks it had before.
    disks_lost: u64,
    /// Whether it begins without knowing any member.
    joins: bool,
    disk_held: bool,
    writes: u64,
    replica: Option<Replica>,
    /// Where it can be reached, if that matters.
    address: Option<String>,
    /// Whom it can reach.
    book: AddressBook,
    applied_upto: Slot,
    applied: Vec<Bytes>,
    reads: Vec<(Slot, Token)>,
    files: Files,
    /// The frozen state that is not written yet, while snapshots are held.
    saving: Option<(SnapshotHeader, Vec<u8>)>,
    snapshots_held: bool,
    /// A peer's snapshot that is whole, but not verified yet, while snapshots are held.
    received: Option<SnapshotHeader>,
    snapshots_unreadable: bool,
    /// What the disk has to say when the outputs of this round are carried out.
    answers: VecDeque<Input>,
    /// Its disk was altered behind its back: the oracles do not look at it.
    altered: bool,
}

const GROUP: GroupId = GroupId(1);

impl Seat {
    fn durable(&self) -> &DiskState {
        self.disk.durable.group(GROUP)
    }
}

/// Replicas 1 to n, with a network that delivers when it is told to, disks that sync at once unless held, and a clock
/// that stands still unless moved. The safety oracles watch every write and every message: a violation panics.
#[derive(Debug)]
pub struct Rig {
    config: Config,
    membership: Membership,
    now: Time,
    seats: BTreeMap<u64, Seat>,
    letters: Vec<Letter>,
    cuts: BTreeSet<(u64, u64)>,
    endings: BTreeMap<Token, Ending>,
    by_lease: BTreeSet<Token>,
    tokens: u64,
    undecidable: Option<Slot>,
    oracle: Oracle,
    /// What was raised, by whom, since a disk was altered.
    alarms: Vec<(u64, Alarm)>,
    transcript: String,
}

impl Rig {
    /// So many replicas with the default configuration, started, without a leader yet.
    pub fn new(nodes: u64) -> Self {
        Self::with(nodes, Config::default())
    }

    /// So many replicas with this configuration, started, without a leader yet. Leaders make no membership changes by
    /// themselves.
    pub fn with(nodes: u64, config: Config) -> Self {
        let config = Config {
            pin_storages: false,
            readmit: false,
            ..config
        };
        Self::tending(nodes, config)
    }

    /// As [`Self::with`], but leaders record disks and admit new ones, as configured.
    pub fn tending(nodes: u64, config: Config) -> Self {
        let members = (1..=nodes).map(|id| Member::voter(NodeId(id), ""));
        Self::of(Membership::new(members), config)
    }

    /// The replicas of this membership, whose nodes are 1 to n, with this configuration, started, without a leader yet.
    pub fn of(membership: Membership, config: Config) -> Self {
        let nodes = membership.members.len() as u64;
        let mut rig = Self {
            config,
            oracle: Oracle::new(membership.clone()),
            membership,
            now: Time::default(),
            seats: (1..=nodes).map(|id| (id, Seat::default())).collect(),
            letters: Vec::new(),
            cuts: BTreeSet::new(),
            endings: BTreeMap::new(),
            by_lease: BTreeSet::new(),
            tokens: 0,
            alarms: Vec::new(),
            undecidable: None,
            transcript: String::new(),
        };
        for node in 1..=nodes {
            rig.restart(node);
        }
        rig
    }

    fn seat(&mut self, node: u64) -> &mut Seat {
        self.seats
            .get_mut(&node)
            .expect("scenarios name nodes of the rig")
    }

    fn say(&mut self, line: &str) {
        let millis = self.now.0.as_millis();
        let _ = writeln!(self.transcript, "{millis:>6} {line}");
    }

    fn demand(&self, check: Result<(), Violation>) {
        if let Err(Violation { oracle, detail }) = check {
            panic!("{oracle}: {detail}\n{}", self.transcript);
        }
    }

    /// What an oracle finds at a node counts unless its disk was altered.
    fn demand_of(&self, node: u64, check: Result<(), Violation>) {
        if !self.is_altered(node) {
            self.demand(check);
        }
    }

    /// All that has happened so far, a line each.
    pub fn transcript(&self) -> &str {
        &self.transcript
    }

    /// Starts a node with what its disk holds.
    pub fn restart(&mut self, node: u64) {
        let disk = self.seat(node).durable().clone();
        let acceptor = self.acceptor(node);
        let snapshot = self.seat(node).files.open_newest();
        let (snapshot, state) = snapshot.unzip();
        let upto = snapshot.as_ref().map_or(Slot::ZERO, |header| header.upto);
        let check = self.oracle.restarted(acceptor, &disk, upto);
        self.demand_of(node, check);
        let (now, config, mut membership) = (self.now, self.config.clone(), self.membership.clone());
        if self.seat(node).joins {
            membership = Membership::default();
        }
        let seat = self.seat(node);
        seat.disk.incarnation += 1;
        let start = Start {
            group: GROUP,
            identity: Identity {
                cluster: ClusterId(1),
                node: NodeId(node),
                storage: acceptor.1,
            },
            incarnation: Incarnation(seat.disk.incarnation),
            seed: node << 8 | seat.disk.incarnation,
            membership: seat.durable().membership(&membership),
            hard_state: seat.durable().hard,
            trimmed: seat.durable().trimmed,
            tail: seat.durable().tail(),
            damaged: seat.durable().damaged.iter().copied().collect(),
            snapshot,
        };
        let replica = Replica::new(config, start, now);
        seat.book = AddressBook::default();
        seat.book.put_in_force(GROUP, replica.status(now).membership);
        seat.replica = Some(replica);
        seat.applied_upto = upto;
        seat.applied = thaw(state.unwrap_or_default());
        seat.reads.clear();
        self.say(&format!("n{node} starts"));
        self.step(node, Input::Tick);
    }

    /// The node and its disk.
    fn acceptor(&self, node: u64) -> (NodeId, StorageId) {
        let lost = self.seats.get(&node).map_or(0, |seat| seat.disks_lost);
        (NodeId(node), StorageId(node + 1_000 * lost))
    }

    /// Starts a node that knows no member yet, if it has no disk.
    pub fn join(&mut self, node: u64) {
        self.seats.entry(node).or_default().joins = true;
        self.restart(node);
    }

    /// From now on a node can be reached at this address only.
    pub fn relocate(&mut self, node: u64, address: &str) {
        self.seat(node).address = Some(address.into());
    }

    fn is_altered(&self, node: u64) -> bool {
        self.seats[&node].altered
    }

    /// What was raised since a disk was altered: by which node, and what.
    pub fn alarms(&self) -> &[(u64, Alarm)] {
        &self.alarms
    }

    /// A user of this node wants the truly chosen membership changed.
    pub fn change(&mut self, node: u64, changes: &[Change], force: bool) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        let input = Input::ChangeMembership {
            token,
            expected: self.oracle.membership().version,
            changes: changes.to_vec(),
            force,
        };
        self.step(node, input);
        token
    }

    /// The membership in force after everything that is truly chosen.
    pub fn membership(&self) -> &Membership {
        self.oracle.membership()
    }

    /// Kills a node; writes that were not synced are lost, letters that it sent are still on their way.
    pub fn crash(&mut self, node: u64) {
        self.say(&format!("n{node} crashes"));
        let seat = self.seat(node);
        seat.replica = None;
        seat.disk.crash(0);
        seat.files.crash();
        seat.saving = None;
        seat.received = None;
        seat.answers.clear();
    }

    /// The slot of the last alarm that nobody can tell what was chosen there.
    pub const fn undecidable(&self) -> Option<Slot> {
        self.undecidable
    }

    /// Gives a living replica an input and carries out what comes of it.
    pub fn step(&mut self, node: u64, input: Input) {
        let now = self.now;
        let line = trace::input(&input);
        let Some(replica) = &mut self.seat(node).replica else {
            return;
        };
        replica.step(now, input);
        let outputs: Vec<Output> = core::iter::from_fn(|| replica.poll()).collect();
        let idle = line != "tick" || replica.deadline().is_none_or(|deadline| deadline > now);
        assert!(idle, "n{node} wants another tick at once\n{}", self.transcript);
        if line != "tick" || !outputs.is_empty() {
            self.say(&format!("n{node} {line}"));
        }
        for output in outputs {
            self.say(&format!("n{node}   {}", trace::output(&output)));
            self.carry_out(node, output);
        }
        self.check_status(node);
        self.sync(node);
        self.take_answers(node);
    }

    fn check_status(&mut self, node: u64) {
        let status = self.status(node);
        let check = self.oracle.status(NodeId(node), &status, None);
        self.demand_of(node, check);
        let newest = self.seat(node).files.newest();
        let acceptor = self.acceptor(node);
        let check = self.oracle.snapshots(acceptor, &status, newest);
        self.demand_of(node, check);
        if !self.is_altered(node) {
            let check = self.oracle.hashed(NodeId(node), status.checkpoint);
            self.demand(check);
        }
    }

    fn take_answers(&mut self, node: u64) {
        while let Some(answer) = self.seat(node).answers.pop_front() {
            self.step(node, answer);
        }
    }

    fn carry_out(&mut self, node: u64, output: Output) {
        let acceptor = self.acceptor(node);
        match output {
            Output::Send { to, message } => {
                let life = Incarnation(self.seat(node).disk.incarnation);
                let disk = self.seat(node).durable().clone();
                let check = self.oracle.sent(acceptor, life, &message, &disk);
                self.demand_of(node, check);
                for to in to {
                    self.post(node, to.0, message.clone());
                }
            }
            Output::Persist { id, ops, sync } => {
                for op in &ops {
                    let view = self.seat(node).disk.view.group(GROUP).clone();
                    let check = self.oracle.submitted(acceptor, &view, op);
                    self.demand_of(node, check);
                }
                let seat = self.seat(node);
                seat.writes += 1;
                seat.disk.submit(GROUP, id, ops, sync, seat.writes);
            }
            Output::Load {
                from,
                upto,
                max_bytes,
            } => {
                let seat = self.seat(node);
                let view = seat.disk.view.group(GROUP);
                let slots = view.damaged_run(from, upto);
                let entries = view.read(from, upto, max_bytes);
                if !slots.is_empty() {
                    seat.answers.push_back(Input::Damaged { slots });
                }
                seat.answers.push_back(Input::Loaded { from, entries });
            }
            Output::Apply(chosen) => {
                assert!(
                    chosen.slot <= self.oracle.chosen(),
                    "applied before it was chosen"
                );
                let seat = self.seat(node);
                assert_eq!(
                    chosen.slot,
                    seat.applied_upto.next(),
                    "slots are applied in order"
                );
                seat.applied_upto = chosen.slot;
                for command in chosen.commands {
                    self.seat(node).applied.push(command.command.payload);
                    self.end(command.token, Ending::Applied(chosen.slot));
                }
                self.answer_reads(node);
            }
            Output::ReadReady { token, slot, lease } => {
                if lease.is_some() {
                    self.by_lease.insert(token);
                }
                self.seat(node).reads.push((slot, token));
                self.answer_reads(node);
            }
            Output::Rejected { token, reason } => self.end(Some(token), Ending::Rejected(reason)),
            Output::Unknown { token } => self.end(Some(token), Ending::Unknown),
            Output::TakeSnapshot(_)
            | Output::InstallSnapshot { .. }
            | Output::LoadChunk { .. }
            | Output::StoreChunk { .. } => self.carry_out_snapshot(node, output),
            Output::Transferred { token, result } => self.end(Some(token), Ending::Transferred(result)),
            Output::MembershipChanged { token, result } => {
                let ending = match result {
                    Ok(membership) => Ending::Changed(membership.version),
                    Err(refusal) => Ending::Refused(refusal),
                };
                self.end(Some(token), ending);
            }
            Output::Membership { membership, .. } => {
                self.seat(node).book.put_in_force(GROUP, membership);
            }
            Output::Peers(membership) => {
                self.seat(node).book.hear_of(GROUP, membership);
            }
            Output::Departed {
                node: departed,
                address,
            } => {
                self.seat(node).book.note_departed(departed, address);
            }
            Output::Leader(_) => {}
            Output::Alarm(Alarm::Undecidable { slot }) => self.undecidable = Some(slot),
            Output::Alarm(alarm) => {
                let expected = self.seats.values().any(|seat| seat.altered);
                assert!(expected, "n{node} raises {alarm:?}\n{}", self.transcript);
                self.alarms.push((node, alarm));
            }
        }
    }

    fn answer_reads(&mut self, node: u64) {
        let seat = self.seat(node);
        let upto = seat.applied_upto;
        let ready: Vec<Token> = seat
            .reads
            .extract_if(.., |(slot, _)| *slot <= upto)
            .map(|(_, token)| token)
            .collect();
        for token in ready {
            self.end(Some(token), Ending::Read(upto));
        }
    }

    fn end(&mut self, token: Option<Token>, ending: Ending) {
        let Some(token) = token else { return };
        let before = self.endings.insert(token, ending);
        assert!(before.is_none(), "{token:?} ended twice\n{}", self.transcript);
    }

    /// A user of this node proposes a command.
    pub fn propose(&mut self, node: u64, command: &[u8]) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        let command = Bytes::copy_from_slice(command);
        self.step(node, Input::Propose { token, command });
        token
    }

    /// A user of this node wants to read linearizably.
    pub fn read(&mut self, node: u64) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        self.step(node, Input::Read { token });
        token
    }

    /// A user of this node wants to read by lease.
    pub fn read_by_lease(&mut self, node: u64) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        self.step(node, Input::ReadByLease { token });
        token
    }

    /// Whether a read was answered by a lease.
    pub fn was_by_lease(&self, token: Token) -> bool {
        self.by_lease.contains(&token)
    }

    /// Whether a living node holds a lease now.
    pub fn holds_lease(&self, node: u64) -> bool {
        let replica = self.seats.get(&node).and_then(|seat| seat.replica.as_ref());
        let lease = replica.and_then(Replica::lease);
        lease.is_some_and(|(_, until)| self.now < until)
    }

    /// A user of this node wants that node to lead; `None`: anybody but this one.
    pub fn transfer(&mut self, node: u64, to: Option<u64>) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        let to = to.map(NodeId);
        self.step(node, Input::TransferLeadership { token, to });
        token
    }

    /// How a proposal or read ended, if it has.
    pub fn ending(&self, token: Token) -> Option<Ending> {
        self.endings.get(&token).cloned()
    }

    /// The commands that this life of a node has applied, in order, as text.
    pub fn applied(&self, node: u64) -> Vec<&str> {
        let text = |command| core::str::from_utf8(command).unwrap_or("?");
        self.seats[&node]
            .applied
            .iter()
            .map(|command| text(command))
            .collect()
    }

    /// What is truly chosen: the last slot that a quorum has durably accepted, like all below it.
    pub fn chosen(&self) -> Slot {
        self.oracle.chosen()
    }

    /// What a living replica says of itself.
    pub fn status(&self, node: u64) -> Status {
        let replica = self.seats.get(&node).and_then(|seat| seat.replica.as_ref());
        replica.expect("scenarios ask only living nodes").status(self.now)
    }

    /// The node that leads at the highest ballot.
    pub fn leader(&self) -> Option<u64> {
        let living = self.seats.iter().filter(|(_, seat)| seat.replica.is_some());
        living
            .map(|(node, _)| (self.status(*node), *node))
            .filter(|(status, _)| status.phase == Phase::Leader)
            .max_by_key(|(status, _)| status.leader)
            .map(|(_, node)| node)
    }
}
