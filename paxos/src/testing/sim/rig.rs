//! A cluster driven by hand, for scenarios that a person writes and reads.

use core::{fmt::Write, time::Duration};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    format,
    string::String,
    vec::Vec,
};

use bytes::{Buf, Bytes};

use super::{
    disk::{Contents, Disk, DiskState},
    files::{Files, Stored},
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
        StorageId, Time, WriteOp,
    },
};

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

/// How many snapshots a node keeps.
const KEPT_SNAPSHOTS: usize = 2;

/// The state of the machine, which is all commands that it has applied.
fn freeze(applied: &[Bytes]) -> Vec<u8> {
    let sized = |command: &Bytes| [&(command.len() as u32).to_le_bytes()[..], command].concat();
    applied.iter().flat_map(sized).collect()
}

fn thaw(mut state: Bytes) -> Vec<Bytes> {
    let mut applied = Vec::new();
    while !state.is_empty() {
        let length = state.get_u32_le() as usize;
        applied.push(state.split_to(length));
    }
    applied
}

/// What a node's disk held once.
#[derive(Clone, Debug)]
pub struct DiskCopy {
    contents: Contents,
    files: Files,
    incarnation: u64,
}

/// What a living node's memory and disk held once.
#[derive(Clone, Debug)]
pub struct NodeCopy {
    disk: DiskCopy,
    replica: Replica,
    applied_upto: Slot,
    applied: Vec<Bytes>,
}

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

    /// Kills a node and gives it an empty disk.
    pub fn lose_disk(&mut self, node: u64) {
        self.crash(node);
        let seat = self.seat(node);
        seat.disks_lost += 1;
        seat.altered = false;
        seat.disk.replace();
        seat.files = Files::default();
    }

    /// A node that is down: the last byte of what its disk holds in this slot changes, with a checksum to match. From now
    /// on the oracles do not look at it, and alarms are [noted](Self::alarms).
    pub fn alter(&mut self, node: u64, slot: Slot) {
        let seat = self.seat(node);
        assert!(seat.replica.is_none(), "a living node does not read it again");
        seat.altered = true;
        let altered = seat.disk.alter(GROUP, slot);
        assert!(altered, "the slot holds bytes");
    }

    /// What is durable on a node's disk.
    pub fn copy_disk(&mut self, node: u64) -> DiskCopy {
        let seat = self.seat(node);
        DiskCopy {
            contents: seat.disk.durable.clone(),
            files: seat.files.clone(),
            incarnation: seat.disk.incarnation,
        }
    }

    /// What a living node holds in memory and on its disk.
    pub fn copy_node(&mut self, node: u64) -> NodeCopy {
        let disk = self.copy_disk(node);
        let seat = self.seat(node);
        NodeCopy {
            disk,
            replica: seat.replica.clone().expect("only a living node is copied"),
            applied_upto: seat.applied_upto,
            applied: seat.applied.clone(),
        }
    }

    /// A node that is down: its disk goes back to what it held once, but for the number of its lives, which follows the
    /// clock. From now on as after [`Self::alter`].
    pub fn set_disk_back(&mut self, node: u64, to: &DiskCopy) {
        let seat = self.seat(node);
        assert!(seat.replica.is_none(), "a living node does not read it again");
        seat.altered = true;
        seat.disk.set_back(&to.contents);
        seat.files = to.files.clone();
    }

    /// As [`Self::set_disk_back`] with a clock that stands behind the number of its lives, so that this goes back, too.
    pub fn set_disk_and_clock_back(&mut self, node: u64, to: &DiskCopy) {
        self.set_disk_back(node, to);
        self.seat(node).disk.incarnation = to.incarnation;
    }

    /// A node goes back to what its memory and its disk held once, and lives on from there: a virtual machine that is
    /// set back. From now on as after [`Self::alter`].
    pub fn set_node_back(&mut self, node: u64, to: &NodeCopy) {
        self.crash(node);
        self.set_disk_and_clock_back(node, &to.disk);
        let seat = self.seat(node);
        seat.replica = Some(to.replica.clone());
        seat.applied_upto = to.applied_upto;
        seat.applied.clone_from(&to.applied);
    }

    /// A node that is down has its group removed: its disk forgets it, and it begins anew as one that joins. From now on
    /// as after [`Self::alter`].
    pub fn remove_group(&mut self, node: u64) {
        let seat = self.seat(node);
        assert!(seat.replica.is_none(), "a living node does not read it again");
        seat.altered = true;
        seat.joins = true;
        seat.disk.replace();
        seat.files = Files::default();
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

    /// The record of a slot on a node's disk goes bad.
    pub fn damage(&mut self, node: u64, slot: u64) {
        self.say(&format!("the disk of n{node} is damaged at slot {slot}"));
        let seat = self.seat(node);
        assert!(
            seat.durable().entries.contains_key(&Slot(slot)),
            "there is a record"
        );
        seat.disk.damage(GROUP, Slot(slot));
    }

    /// The record of a slot that went bad on a node's disk can be read again, as it was once.
    pub fn recover(&mut self, node: u64, slot: u64, from: &DiskCopy) {
        self.say(&format!("the disk of n{node} gives slot {slot} back"));
        self.seat(node).disk.recover(GROUP, Slot(slot), &from.contents);
    }

    /// A node that is down loses its snapshots but for those as of `kept` and before.
    pub fn lose_snapshots(&mut self, node: u64, kept: Slot) {
        self.say(&format!("n{node} loses its snapshots above {kept}"));
        let acceptor = self.acceptor(node);
        let seat = self.seat(node);
        assert!(seat.replica.is_none(), "a living node has read it");
        seat.files.lose_above(kept);
        let newest = seat.files.newest();
        self.oracle.lost_snapshots(acceptor, newest);
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

    /// Sends a letter, unless the sender does not know where the receiver is.
    fn post(&mut self, from: u64, to: u64, message: Message) {
        let known = self.seats[&from].book.reached();
        let known = known.get(&NodeId(to));
        let is_there = |address: &String| {
            let place = self.seats.get(&to).and_then(|seat| seat.address.as_ref());
            place.is_none_or(|place| place == address)
        };
        if known.is_some_and(is_there) {
            self.letters.push(Letter { from, to, message });
        } else {
            self.say(&format!("n{from}   does not know where n{to} is"));
        }
    }

    fn carry_out_snapshot(&mut self, node: u64, output: Output) {
        let seat = self.seat(node);
        match output {
            Output::TakeSnapshot(header) => {
                assert_eq!(header.upto, seat.applied_upto, "it is the state of now");
                seat.saving = Some((header, freeze(&seat.applied)));
                self.save(node);
            }
            Output::InstallSnapshot { upto } => {
                assert!(upto > seat.applied_upto, "never backwards");
                let state = seat
                    .files
                    .open(upto)
                    .expect("a snapshot is kept from its receipt until it is installed");
                seat.applied = thaw(state);
                seat.applied_upto = upto;
                self.answer_reads(node);
            }
            Output::LoadChunk {
                to,
                upto,
                offset,
                max_bytes,
            } => {
                let (total, data) = if seat.snapshots_unreadable {
                    (0, Bytes::new())
                } else {
                    seat.files.read(upto, offset, max_bytes)
                };
                let input = Input::ChunkLoaded {
                    to,
                    upto,
                    total,
                    offset,
                    data,
                };
                seat.answers.push_back(input);
            }
            Output::StoreChunk {
                upto,
                total,
                offset,
                data,
            } => {
                let input = match seat.files.store(upto, total, offset, &data, KEPT_SNAPSHOTS) {
                    Stored::Whole(header) if seat.snapshots_held => {
                        seat.received = Some(header);
                        return;
                    }
                    Stored::Upto(next_offset) => Input::ChunkStored { upto, next_offset },
                    Stored::Whole(header) => Input::SnapshotReceived(header),
                    Stored::Damaged => Input::SnapshotFailed { upto },
                };
                seat.answers.push_back(input);
            }
            other => unreachable!("{other:?} is no output of snapshots"),
        }
    }

    /// Writes the frozen state, unless snapshots are held.
    fn save(&mut self, node: u64) {
        let seat = self.seat(node);
        if !seat.snapshots_held
            && let Some((header, state)) = seat.saving.take()
        {
            seat.files.save(&header, &state, KEPT_SNAPSHOTS);
            let upto = header.upto;
            seat.answers.push_back(Input::SnapshotTaken { upto });
        }
    }

    /// From now on no snapshot that this node takes becomes durable, and none that it receives is reported whole, until
    /// [`Self::release_snapshots`].
    pub fn hold_snapshots(&mut self, node: u64) {
        self.seat(node).snapshots_held = true;
    }

    /// The snapshot that this node has taken becomes durable, the one that it has received is whole, and all later ones
    /// are at once.
    pub fn release_snapshots(&mut self, node: u64) {
        self.seat(node).snapshots_held = false;
        self.save(node);
        let seat = self.seat(node);
        let received = seat.received.take().map(Input::SnapshotReceived);
        seat.answers.extend(received);
        self.take_answers(node);
    }

    /// From now on this node cannot read its snapshots when a peer asks for them.
    pub fn spoil_snapshots(&mut self, node: u64) {
        self.seat(node).snapshots_unreadable = true;
    }

    /// As of which slot the newest snapshot on this node's disk is.
    pub fn snapshot(&self, node: u64) -> Slot {
        self.seats[&node].files.newest()
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

    fn sync(&mut self, node: u64) {
        if self.seat(node).disk_held || !self.seat(node).disk.begin_sync() {
            return;
        }
        let mut before = self.seat(node).durable().hard;
        let writes = self.seat(node).disk.finish_sync();
        let disk = self.seat(node).durable().clone();
        for op in writes.iter().flat_map(|write| &write.ops) {
            let check = self.oracle.durable(self.acceptor(node), op, &disk, before);
            self.demand_of(node, check);
            if let WriteOp::HardState { state, .. } = op {
                before = *state;
            }
        }
        if let Some(last) = writes.last() {
            self.step(node, Input::Persisted(last.ids[0].1));
        }
    }

    /// From now on nothing that this node writes becomes durable, until [`Self::release_disk`].
    pub fn hold_disk(&mut self, node: u64) {
        self.seat(node).disk_held = true;
    }

    /// What this node has written so far becomes durable, whether anything waits for it or not.
    pub fn flush(&mut self, node: u64) {
        self.seat(node).disk.want_sync();
        self.sync(node);
    }

    /// Everything that this node has written becomes durable, at once and from now on.
    pub fn release_disk(&mut self, node: u64) {
        self.seat(node).disk_held = false;
        self.sync(node);
    }

    /// Two nodes cannot reach each other any more.
    pub fn cut(&mut self, a: u64, b: u64) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// What one node sends does not reach the other any more.
    pub fn cut_one_way(&mut self, from: u64, to: u64) {
        self.cuts.insert((from, to));
    }

    /// Cuts a node off from all others.
    pub fn isolate(&mut self, node: u64) {
        let others: Vec<u64> = self
            .seats
            .keys()
            .copied()
            .filter(|other| *other != node)
            .collect();
        for other in others {
            self.cut(node, other);
        }
    }

    /// Undoes all cuts.
    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    /// Takes letters off the network, in the order of sending.
    pub fn take(&mut self, which: impl Fn(&Letter) -> bool) -> Vec<Letter> {
        self.letters.extract_if(.., |letter| which(letter)).collect()
    }

    /// Delivers one letter now, whether it was ever sent or not.
    pub fn deliver(&mut self, letter: Letter) {
        let Letter { from, to, message } = letter;
        if !self.cuts.contains(&(from, to)) {
            let input = Input::Message {
                from: NodeId(from),
                storage: self.acceptor(from).1,
                message,
            };
            self.step(to, input);
        }
    }

    /// Delivers everything, and everything that comes of it, until the network is silent.
    pub fn settle(&mut self) {
        self.settle_where(|_| true);
    }

    /// Delivers these letters and those of the kind that come of them; others stay on the network.
    pub fn settle_where(&mut self, which: impl Fn(&Letter) -> bool) {
        for _ in 0..100_000 {
            let Some(place) = self.letters.iter().position(&which) else {
                return;
            };
            let letter = self.letters.remove(place);
            self.deliver(letter);
        }
        panic!("the network does not fall silent\n{}", self.transcript);
    }

    /// Lets time pass for all nodes, with everything delivered.
    pub fn pass(&mut self, millis: u64) {
        let nodes: Vec<u64> = self.seats.keys().copied().collect();
        self.pass_for(&nodes, millis);
    }

    /// Lets time pass, with everything delivered; only these nodes are ticked when they are due.
    pub fn pass_for(&mut self, nodes: &[u64], millis: u64) {
        self.pass_for_where(nodes, millis, |_| true);
    }

    /// As [`Self::pass_for`], but only these letters are delivered; others stay on the network.
    pub fn pass_for_where(&mut self, nodes: &[u64], millis: u64, which: impl Fn(&Letter) -> bool) {
        self.settle_where(&which);
        for _ in 0..millis {
            self.now = self.now.plus(Duration::from_millis(1));
            for node in nodes {
                let deadline = self.seats[node].replica.as_ref().and_then(Replica::deadline);
                if deadline.is_some_and(|deadline| deadline <= self.now) {
                    self.step(*node, Input::Tick);
                }
            }
            self.settle_where(&which);
        }
    }

    /// Lets time pass until this node leads; nobody else stands for election meanwhile.
    pub fn elect(&mut self, node: u64) {
        for _ in 0..10_000 {
            if self.status(node).phase == Phase::Leader {
                return self.settle();
            }
            self.now = self.now.plus(Duration::from_millis(1));
            self.step(node, Input::Tick);
            let stands =
                |message: &Message| matches!(message, Message::Canvass { .. } | Message::Prepare { .. });
            let rival = |letter: &Letter| letter.from != node && stands(&letter.message);
            self.settle_where(|letter| !rival(letter));
            self.take(rival);
        }
        panic!("n{node} cannot be elected\n{}", self.transcript);
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

    /// What is durable on a node's disk.
    pub fn disk(&mut self, node: u64) -> &DiskState {
        self.seat(node).durable()
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
