//! The nodes of a simulated cluster: how they come to life, and how they die.

use core::time::Duration;
use std::{
    boxed::Box,
    collections::{BTreeMap, VecDeque},
    format,
    string::String,
    vec::Vec,
};

use bytes::Bytes;

use super::{
    cluster::{CLUSTER, Cluster, Event},
    coverage::Event as Sometimes,
    disk::Disk,
    faults::{Fault, MS, SECOND},
    files::Files,
    machine::Workload,
    network::{Arrival, Fate},
    oracle::{Violation, ensure},
    snapshots::Source,
    store::Store,
};
use crate::{
    core::{
        Config, Input, Output, Phase, Replica, Start, Status, Token,
        address_book::AddressBook,
        peers::{Beat, Change, Peers},
    },
    snapshot::SnapshotHeader,
    state_machine::SnapshotSource,
    types::{Ballot, GroupId, Identity, Incarnation, Membership, NodeId, Slot, StorageId, Time},
};

/// A group's replica on a node, as long as that lives.
pub(super) struct Seat<M> {
    pub(super) replica: Replica,
    pub(super) machine: M,
    pub(super) tick_at: Option<u64>,
    pub(super) applied: Slot,
    pub(super) reads: Vec<(Slot, Token, Option<Ballot>)>,
    pub(super) status: Status,
    /// The frozen machine that is being written.
    pub(super) saving: Option<(SnapshotHeader, Box<dyn SnapshotSource>)>,
    /// The snapshot that the machine is being restored from, and what must wait for that.
    pub(super) restoring: Option<(Slot, Bytes)>,
    pub(super) backlog: VecDeque<Output>,
    /// What is to be installed after that: it is kept, however many newer ones come.
    pub(super) next_installs: VecDeque<Bytes>,
    /// In which round of the node a snapshot was last installed.
    pub(super) installed_in: u64,
    /// It has told the leader that it is drained, and has taken no command since.
    pub(super) is_drained: bool,
    pub(super) source: Option<Source>,
}

/// A node's time between a start and a crash.
pub(super) struct Life<M> {
    pub(super) number: u64,
    /// One for each group.
    pub(super) seats: Vec<Seat<M>>,
    /// What waits, each for the group with this index.
    pub(super) inbox: VecDeque<(usize, Input)>,
    pub(super) round_due: bool,
    /// What it knows of the other nodes.
    pub(super) peers: Peers,
    /// Whom it can reach.
    pub(super) book: AddressBook,
    /// To which lives of which other nodes its transport has a connection.
    connected: BTreeMap<usize, u64>,
}

pub(super) struct Node<M> {
    pub(super) id: NodeId,
    pub(super) storage: StorageId,
    /// Where it can be reached.
    pub(super) address: String,
    pub(super) disk: Disk,
    /// For each group its snapshots.
    pub(super) files: Vec<Files>,
    /// The user's storage, if the workload has one.
    pub(super) store: Option<Store>,
    clock_base: u64,
    clock_rate: u64,
    pub(super) life: Option<Life<M>>,
    pub(super) paused: bool,
    pub(super) slow_disk: bool,
    pub(super) full_disk: bool,
    /// Its disk holds something else than was written: the oracles do not look at it.
    pub(super) altered: bool,
    /// It belongs to no group at first, and knows no member.
    pub(super) joins: bool,
}

impl<M> Node<M> {
    pub(super) fn new(id: NodeId, groups: usize, clock_base: u64, clock_rate: u64, joins: bool) -> Self {
        Self {
            id,
            storage: StorageId(1_000 + id.0),
            address: format!("{id}"),
            disk: Disk::default(),
            files: (0..groups).map(|_| Files::default()).collect(),
            store: None,
            clock_base,
            clock_rate,
            life: None,
            paused: false,
            slow_disk: false,
            full_disk: false,
            altered: false,
            joins,
        }
    }

    pub(super) const fn acceptor(&self) -> (NodeId, StorageId) {
        (self.id, self.storage)
    }

    pub(super) fn clock(&self, now: u64) -> Time {
        Time(Duration::from_micros(
            self.clock_base + now * self.clock_rate / 1_000,
        ))
    }

    /// The first moment at which this node's clock shows at least `time`.
    pub(super) fn when(&self, time: Time) -> u64 {
        let nanos = time.0.as_nanos() as u64;
        let micros = nanos.div_ceil(1_000).saturating_sub(self.clock_base);
        (micros * 1_000).div_ceil(self.clock_rate)
    }

    pub(super) fn seat(&self, group: usize) -> Option<&Seat<M>> {
        self.life.as_ref().map(|life| &life.seats[group])
    }

    pub(super) fn seat_mut(&mut self, group: usize) -> Option<&mut Seat<M>> {
        self.life.as_mut().map(|life| &mut life.seats[group])
    }

    pub(super) fn leads(&self, group: usize) -> bool {
        self.seat(group)
            .is_some_and(|seat| seat.status.phase == Phase::Leader)
    }

    pub(super) fn leads_any(&self) -> bool {
        let seats = self.life.iter().flat_map(|life| &life.seats);
        seats.into_iter().any(|seat| seat.status.phase == Phase::Leader)
    }
}

/// The group with this index.
pub(super) const fn group_id(index: usize) -> GroupId {
    GroupId(index as u32 + 1)
}

type Check = Result<(), Violation>;

impl<W: Workload> Cluster<'_, W> {
    /// A node comes to life with what its disk holds, unless that cannot be.
    pub(super) fn start(&mut self, node: usize) -> Check {
        let Node {
            id, life, full_disk, ..
        } = &self.nodes[node];
        let id = *id;
        if life.is_some() {
            return Ok(());
        }
        if *full_disk {
            self.coverage.meet(Sometimes::FullAtStart);
            self.say(|| format!("n{id} cannot start: its disk is full"));
            return Ok(());
        }
        self.open(node)?;
        let incarnation = Incarnation(self.nodes[node].disk.incarnation);
        let seats = (0..self.groups.len()).map(|group| self.seat(node, group, incarnation));
        let seats = seats.collect::<Result<Vec<_>, Violation>>()?;
        let inbox = (0..seats.len()).map(|group| (group, Input::Tick)).collect();
        self.nodes[node].life = Some(Life {
            number: incarnation.0,
            seats,
            inbox,
            round_due: true,
            peers: self.peers(node, incarnation),
            book: AddressBook::default(),
            connected: BTreeMap::new(),
        });
        for group in 0..self.groups.len() {
            let in_force = self.nodes[node]
                .seat(group)
                .map(|seat| seat.status.membership.clone());
            if let Some(in_force) = in_force {
                self.update_book(node, |book| book.put_in_force(group_id(group), in_force));
            }
        }
        self.say(|| format!("n{id} starts, life {}", incarnation.0));
        let delay = self.random.below(1_000);
        let life = incarnation.0;
        self.after(delay, Event::Round { node, life });
        self.after(delay, Event::Watch { node, life });
        Ok(())
    }

    /// Opens the disk, and the user's storage if there is one: that says which life this is.
    fn open(&mut self, node: usize) -> Check {
        let place = self.workload.place();
        let Node {
            id,
            storage,
            disk,
            store,
            ..
        } = &mut self.nodes[node];
        if let (None, Some(place)) = (&store, place) {
            *store = Some(Store::new(CLUSTER, *id, place)?);
        }
        disk.incarnation += 1;
        if let Some(store) = store {
            (*storage, Incarnation(disk.incarnation)) = store.life();
        }
        Ok(())
    }

    fn seat(
        &mut self,
        node: usize,
        group: usize,
        incarnation: Incarnation,
    ) -> Result<Seat<W::Machine>, Violation> {
        self.observe_damage_at_start(node, group);
        let seed = self.random.bits();
        let (machine, snapshot) = self.restored_machine(node, group)?;
        let upto = snapshot.as_ref().map_or(Slot::ZERO, |header| header.upto);
        let Node {
            id, storage, disk, ..
        } = &self.nodes[node];
        let now = self.nodes[node].clock(self.now);
        let oracle = &self.groups[group].oracle;
        let state = disk.durable.group(group_id(group));
        self.demand_of(node, oracle.restarted((*id, *storage), state, upto))?;
        let tail = state.tail();
        let nobody = Membership::default();
        let first = if self.nodes[node].joins {
            &nobody
        } else {
            &self.membership
        };
        self.coverage
            .meet_if(!tail.is_empty(), Sometimes::RestartedWithTail);
        let replays = upto > Slot::ZERO && upto < state.hard.chosen;
        self.coverage.meet_if(replays, Sometimes::RestartedFromSnapshot);
        self.coverage
            .meet_if(upto > state.hard.chosen, Sometimes::RestartedHalfInstalled);
        let start = Start {
            group: group_id(group),
            identity: Identity {
                cluster: CLUSTER,
                node: *id,
                storage: *storage,
            },
            incarnation,
            seed,
            membership: state.membership(first),
            hard_state: state.hard,
            trimmed: state.trimmed,
            tail,
            damaged: state.damaged.iter().copied().collect(),
            snapshot,
        };
        let replica = Replica::new(self.plan.config.clone(), start, now);
        let status = replica.status(now);
        self.demand_of(node, oracle.status(*id, &status, None))?;
        ensure!(
            status.promised >= state.hard.promised,
            "I6",
            "{id} came back with a lower promise than its disk holds"
        );
        Ok(Seat {
            replica,
            machine,
            tick_at: None,
            applied: upto,
            reads: Vec::new(),
            status,
            saving: None,
            restoring: None,
            backlog: VecDeque::new(),
            next_installs: VecDeque::new(),
            installed_in: 0,
            is_drained: false,
            source: None,
        })
    }

    /// A node dies; its disk keeps some prefix of the writes that were not synced.
    pub(super) fn crash(&mut self, node: usize) -> Check {
        if self.nodes[node].life.take().is_none() {
            return Ok(());
        }
        let Node {
            id,
            disk,
            files,
            store,
            ..
        } = &mut self.nodes[node];
        let id = *id;
        let unsynced = disk.unsynced().len();
        let under_way = disk.under_way().count();
        let mut keep = self.random.index(unsynced + 1);
        if let Some(store) = store {
            keep = store.crash(&disk.durable, disk.unsynced().iter().take(keep))?;
        }
        let lost = disk.unsynced().iter().skip(keep);
        let shared = lost.filter(|write| write.ids.len() > 1).count() > 0;
        self.coverage.meet_if(shared, Sometimes::SharedWriteLost);
        self.coverage.meet_if(keep < under_way, Sometimes::WriteTorn);
        self.coverage.meet_if(keep < unsynced, Sometimes::WritesLost);
        self.coverage.meet_if(keep > 0, Sometimes::WritesKept);
        self.coverage
            .meet_if(keep > 0 && keep < unsynced, Sometimes::WritesCut);
        let before = disk.durable.hard_states();
        let writes = disk.crash(keep);
        for files in files {
            self.coverage
                .meet_if(files.is_receiving(), Sometimes::ReceiverCrashed);
            files.crash();
        }
        self.say(|| format!("n{id} crashes, keeps {keep} of {unsynced} unsynced writes"));
        self.now_durable(node, &writes, &before)?;
        self.nodes[node].paused = false;
        self.forget_transfers(node);
        for group in &mut self.groups {
            group.history.crashed(id);
            group.changes.retain(|_, asked| *asked != id);
        }
        self.hang_up(node);
        Ok(())
    }

    pub(super) fn crash_for_a_while(&mut self, node: usize) -> Check {
        self.coverage
            .meet_if(self.nodes[node].leads_any(), Sometimes::LeaderCrashed);
        self.crash(node)?;
        self.restart_later(node);
        Ok(())
    }

    /// The peers of a node that is gone may notice.
    fn hang_up(&mut self, gone: usize) {
        for node in 0..self.nodes.len() {
            self.notice(node, gone);
        }
    }

    /// A node may notice that its connection to a peer broke.
    pub(super) fn notice(&mut self, node: usize, gone: usize) {
        if node != gone && self.plan.faults.has(Fault::Hangup) && self.random.chance(700) {
            let delay = self.random.below(5_000);
            for group in 0..self.groups.len() {
                let input = Input::Disconnected(self.nodes[gone].id);
                self.after(delay, Event::Hint { node, group, input });
            }
        }
    }

    fn peers(&self, node: usize, incarnation: Incarnation) -> Peers {
        let now = self.nodes[node].clock(self.now);
        let Config {
            heartbeat_interval,
            election_timeout,
            ..
        } = self.plan.config;
        Peers::new(incarnation, heartbeat_interval, election_timeout, now)
    }

    /// A node hears who its peers are: it reaches and watches those.
    pub(super) fn update_book(&mut self, node: usize, update: impl FnOnce(&mut AddressBook) -> bool) {
        let (id, now) = (self.nodes[node].id, self.nodes[node].clock(self.now));
        if let Some(life) = &mut self.nodes[node].life
            && update(&mut life.book)
        {
            let others = life.book.members().keys().copied();
            life.peers.watch(others.filter(|other| *other != id), now);
        }
    }

    /// Whether a node knows where another one is.
    pub(super) fn knows(&self, node: usize, other: usize) -> bool {
        let Node { id, address, .. } = &self.nodes[other];
        let life = self.nodes[node].life.as_ref();
        life.is_some_and(|life| life.book.reached().get(id) == Some(address))
    }

    /// A node's transport makes connections to the nodes that it knows, and finds out whom it can reach.
    fn connect(&mut self, node: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let cut = self.network.is_cut(node, other) || self.network.is_cut(other, node);
            let reached = !cut && self.knows(node, other) && !self.nodes[other].paused;
            let other_life = self.nodes[other].life.as_ref().map(|life| life.number);
            let other_life = other_life.filter(|_| reached);
            let Some(life) = &mut self.nodes[node].life else {
                return;
            };
            let before = match other_life {
                Some(now) => life.connected.insert(other, now),
                None => life.connected.remove(&other),
            };
            if other_life.is_some() && other_life != before {
                let peer = self.nodes[other].id;
                for group in 0..self.groups.len() {
                    self.input(node, group, Input::Connected(peer));
                }
            }
        }
    }

    /// A node tells the others that it lives, and looks who has fallen silent.
    pub(super) fn watch(&mut self, node: usize) {
        let now = self.nodes[node].clock(self.now);
        let paused = self.nodes[node].paused;
        let Some(life) = &mut self.nodes[node].life else {
            return;
        };
        let number = life.number;
        if !paused {
            let (beats, changes) = life.peers.tick(now);
            self.connect(node);
            for (to, beat) in beats {
                self.beat(node, to.0 as usize - 1, beat);
            }
            self.tell(node, changes);
        }
        let Some(life) = &self.nodes[node].life else {
            return;
        };
        let next = self.nodes[node].when(life.peers.deadline());
        let late = self.random.below(self.plan.tick_lateness);
        let watch = Event::Watch { node, life: number };
        self.at(next.max(self.now + MS) + late, watch);
    }

    fn beat(&mut self, from: usize, to: usize, beat: Beat) {
        if !self.knows(from, to) {
            return;
        }
        let fate = self
            .network
            .fate(&self.plan, &mut self.random, self.now, from, to);
        if let Fate::Delivered(arrivals) = fate {
            for arrival in arrivals {
                let (Arrival::At(at) | Arrival::Replay(at)) = arrival;
                self.at(at, Event::Heard { to, from, beat });
            }
        }
    }

    /// A beat has arrived; at a node that stands still it waits.
    pub(super) fn heard(&mut self, to: usize, from: usize, beat: Beat) {
        let (now, id) = (self.nodes[to].clock(self.now), self.nodes[from].id);
        if self.network.is_cut(from, to) {
            return;
        }
        if self.nodes[to].paused {
            return self.after(10 * MS, Event::Heard { to, from, beat });
        }
        if let Some(life) = &mut self.nodes[to].life {
            let changes = life.peers.heard(id, beat, now);
            self.tell(to, changes);
        }
    }

    /// Tells all replicas of a node what it has found out about its peers.
    fn tell(&mut self, node: usize, changes: Vec<Change>) {
        for change in changes {
            for group in 0..self.groups.len() {
                self.input(node, group, change.into());
            }
        }
    }

    /// The leader of some group.
    pub(super) fn some_leader(&mut self) -> Option<usize> {
        let group = self.random.index(self.groups.len());
        (0..self.nodes.len()).find(|node| self.nodes[*node].leads(group))
    }

    /// The first moment of a node's clock, anywhere in the first minutes.
    pub(super) fn clock_base(random: &mut super::random::Random) -> u64 {
        random.below(100 * SECOND)
    }
}
