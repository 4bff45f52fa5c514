//! A whole cluster in one thread: nodes, virtual time, and the queue of everything that is going to happen.

use core::{cmp::Reverse, time::Duration};
use std::{
    collections::{BTreeSet, BinaryHeap, VecDeque},
    format,
    string::String,
    vec,
    vec::Vec,
};

use super::{
    Options,
    clients::Client,
    coverage::{Coverage, Event as Sometimes},
    disk::Disk,
    faults::{Fault, Plan, SECOND},
    history::{History, Outcome},
    machine::Workload,
    nemesis::Undo,
    network::Network,
    oracle::{Oracle, Violation, ensure, within_bounds},
    random::Random,
    trace,
};
use crate::{
    core::{Input, Message, Phase, Replica, Start, Status, Token},
    types::{ClusterId, GroupId, Identity, Incarnation, Member, Membership, NodeId, Slot, StorageId, Time},
};

/// Something that is going to happen.
#[derive(Debug)]
pub(super) enum Event {
    /// A message arrives. `sent_under` is the highest ballot that was known when it was sent, for late copies.
    Deliver {
        to: usize,
        from: usize,
        message: Message,
        sent_under: Option<crate::Ballot>,
    },
    /// A node finds time for what waits in its inbox.
    Round {
        node: usize,
        life: u64,
    },
    Tick {
        node: usize,
        life: u64,
        at: u64,
    },
    Synced {
        node: usize,
        life: u64,
    },
    Loaded {
        node: usize,
        life: u64,
        from: Slot,
        upto: Slot,
        max_bytes: usize,
    },
    Hint {
        node: usize,
        input: Input,
    },
    Client(usize),
    Impatient(Token),
    Fault,
    /// The leader goes, out of turn.
    Strike,
    Undo {
        epoch: u64,
        undo: Undo,
    },
}

/// An event in the queue, ordered by time and then by the order of scheduling.
#[derive(Debug)]
struct Scheduled {
    at: u64,
    sequence: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// A node's time between a start and a crash.
pub(super) struct Life<M> {
    pub(super) number: u64,
    pub(super) replica: Replica,
    pub(super) machine: M,
    pub(super) inbox: VecDeque<Input>,
    pub(super) round_due: bool,
    tick_at: Option<u64>,
    pub(super) applied: Slot,
    pub(super) reads: Vec<(Slot, Token)>,
    pub(super) status: Status,
}

pub(super) struct Node<M> {
    pub(super) id: NodeId,
    pub(super) storage: StorageId,
    pub(super) disk: Disk,
    clock_base: u64,
    clock_rate: u64,
    pub(super) life: Option<Life<M>>,
    pub(super) paused: bool,
    pub(super) slow_disk: bool,
}

impl<M> Node<M> {
    pub(super) fn clock(&self, now: u64) -> Time {
        Time(Duration::from_micros(
            self.clock_base + now * self.clock_rate / 1_000,
        ))
    }

    /// The first moment at which this node's clock shows at least `time`.
    fn when(&self, time: Time) -> u64 {
        let nanos = time.0.as_nanos() as u64;
        let micros = nanos.div_ceil(1_000).saturating_sub(self.clock_base);
        (micros * 1_000).div_ceil(self.clock_rate)
    }
}

pub(super) struct Cluster<'a, W: Workload> {
    pub(super) workload: &'a W,
    pub(super) plan: Plan,
    pub(super) random: Random,
    pub(super) now: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    events: u64,
    pub(super) membership: Membership,
    pub(super) nodes: Vec<Node<W::Machine>>,
    pub(super) network: Network,
    pub(super) oracle: Oracle,
    pub(super) history: History,
    pub(super) clients: Vec<Client>,
    pub(super) clients_active: bool,
    pub(super) last_token: u64,
    pub(super) epoch: u64,
    pub(super) coverage: Coverage,
    /// Commands that have been forwarded: node, life, sequence number.
    pub(super) forwarded: BTreeSet<(NodeId, Incarnation, u64)>,
    pub(super) messages: u64,
    hash: u64,
    trace: Option<fn(&str)>,
}

pub(super) const GROUP: GroupId = GroupId(1);
const CLUSTER: ClusterId = ClusterId(0x7e57);
/// More events than any healthy run has.
const MAX_EVENTS: u64 = 3_000_000;
/// How many inputs a paused node's inbox holds before the network drops what comes in.
const MAX_INBOX: usize = 20_000;

impl<'a, W: Workload> Cluster<'a, W> {
    pub(super) fn new(seed: u64, options: &Options, workload: &'a W) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random, options.nodes, options.faults);
        let members = (1..=plan.nodes as u64).map(|id| Member::voter(NodeId(id), ""));
        let membership = Membership::new(members);
        let nodes = plan
            .clock_rates
            .iter()
            .zip(1..)
            .map(|(rate, id)| Node {
                id: NodeId(id),
                storage: StorageId(1_000 + id),
                disk: Disk::default(),
                clock_base: random.below(100 * SECOND),
                clock_rate: *rate,
                life: None,
                paused: false,
                slow_disk: false,
            })
            .collect();
        Self {
            workload,
            network: Network::new(plan.nodes),
            oracle: Oracle::new(membership.clone()),
            history: History::default(),
            clients: vec![Client::default(); plan.clients],
            plan,
            random,
            now: 0,
            queue: BinaryHeap::new(),
            scheduled: 0,
            events: 0,
            membership,
            nodes,
            clients_active: false,
            last_token: 0,
            epoch: 0,
            coverage: Coverage::default(),
            forwarded: BTreeSet::new(),
            messages: 0,
            hash: 0,
            trace: options.trace,
        }
    }

    pub(super) const fn hash(&self) -> u64 {
        self.hash
    }

    /// Mixes something that happened into the fingerprint of the run.
    fn note(&mut self, what: u64) {
        self.hash = (self.hash.rotate_left(23) ^ what).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    pub(super) const fn is_traced(&self) -> bool {
        self.trace.is_some()
    }

    pub(super) fn say(&self, line: impl FnOnce() -> String) {
        if let Some(print) = self.trace {
            print(&format!(
                "{:>4}.{:06} {}",
                self.now / SECOND,
                self.now % SECOND,
                line()
            ));
        }
    }

    pub(super) fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.scheduled += 1;
        let sequence = self.scheduled;
        self.queue.push(Reverse(Scheduled { at, sequence, event }));
    }

    /// Lives through a stretch of time.
    pub(super) fn run_for(&mut self, duration: u64) -> Result<(), Violation> {
        let end = self.now + duration;
        while self.queue.peek().is_some_and(|next| next.0.at <= end) {
            let Some(Reverse(next)) = self.queue.pop() else {
                break;
            };
            self.now = next.at;
            self.events += 1;
            ensure!(
                self.events < MAX_EVENTS,
                "events",
                "more than {MAX_EVENTS} events: something spins"
            );
            self.happen(next.event)?;
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Deliver {
                to,
                from,
                message,
                sent_under,
            } => self.deliver(to, from, message, sent_under),
            Event::Round { node, life } if self.lives(node, life) => return self.round(node),
            Event::Tick { node, life, at } if self.lives(node, life) => self.tick(node, at),
            Event::Synced { node, life } if self.lives(node, life) => return self.synced(node),
            Event::Loaded {
                node,
                life,
                from,
                upto,
                max_bytes,
            } if self.lives(node, life) => {
                let entries = self.nodes[node].disk.view.read(from, upto, max_bytes);
                self.input(node, Input::Loaded { from, entries });
            }
            Event::Hint { node, input } => self.input(node, input),
            Event::Client(client) => self.client_acts(client),
            Event::Impatient(token) => self.client_gives_up(token),
            Event::Fault => return self.next_fault(),
            Event::Strike => return self.strike_leader(),
            Event::Undo { epoch, undo } if epoch == self.epoch => return self.undo(undo),
            // Events of an earlier life or epoch.
            _ => {}
        }
        Ok(())
    }

    fn lives(&self, node: usize, life: u64) -> bool {
        self.nodes[node]
            .life
            .as_ref()
            .is_some_and(|now| now.number == life)
    }

    pub(super) fn is_leader(&self, node: usize) -> bool {
        let life = self.nodes[node].life.as_ref();
        life.is_some_and(|life| life.status.phase == Phase::Leader)
    }

    fn deliver(&mut self, to: usize, from: usize, message: Message, sent_under: Option<crate::Ballot>) {
        if self.network.is_cut(from, to) {
            self.coverage.meet(Sometimes::Cut);
            return;
        }
        let late = sent_under.is_some_and(|ballot| self.oracle.highest_ballot() > ballot);
        self.coverage.meet_if(late, Sometimes::ReplayAcrossElection);
        let input = Input::Message {
            from: self.nodes[from].id,
            storage: self.nodes[from].storage,
            message,
        };
        self.input(to, input);
    }

    /// Puts an input into a node's inbox, if it is alive.
    pub(super) fn input(&mut self, node: usize, input: Input) {
        let paused = self.nodes[node].paused;
        let Some(life) = &mut self.nodes[node].life else {
            return;
        };
        let droppable = matches!(input, Input::Message { .. });
        if droppable && life.inbox.len() >= MAX_INBOX {
            return;
        }
        life.inbox.push_back(input);
        if !paused && !life.round_due {
            life.round_due = true;
            let life = life.number;
            let delay = self.random.below(100);
            self.after(delay, Event::Round { node, life });
        }
    }

    fn tick(&mut self, node: usize, at: u64) {
        if let Some(life) = &mut self.nodes[node].life
            && life.tick_at == Some(at)
        {
            life.tick_at = None;
            self.input(node, Input::Tick);
        }
    }

    /// One round of a node: steps all that waits, then does all that comes out.
    fn round(&mut self, node: usize) -> Result<(), Violation> {
        if self.nodes[node].paused {
            return Ok(());
        }
        let now = self.nodes[node].clock(self.now);
        let Some(life) = &mut self.nodes[node].life else {
            return Ok(());
        };
        life.round_due = false;
        let inputs = core::mem::take(&mut life.inbox);
        let mut ticked = false;
        for input in inputs {
            ticked |= matches!(input, Input::Tick);
            self.observe_input(node, &input);
            let Some(life) = &mut self.nodes[node].life else {
                return Ok(());
            };
            life.replica.step(now, input);
        }
        let Some(life) = &mut self.nodes[node].life else {
            return Ok(());
        };
        let outputs: Vec<_> = core::iter::from_fn(|| life.replica.poll()).collect();
        for output in outputs {
            self.carry_out(node, output)?;
        }
        self.end_round(node, now, ticked)
    }

    fn observe_input(&mut self, node: usize, input: &Input) {
        self.note(self.now << 3 | node as u64);
        let Some(life) = &self.nodes[node].life else {
            return;
        };
        let phase = life.status.phase;
        match input {
            Input::Message { message, .. } => {
                let candidate = matches!(phase, Phase::Canvassing | Phase::Candidate);
                match message {
                    Message::Refuse { .. } => {
                        self.coverage
                            .meet_if(phase == Phase::Leader, Sometimes::RefusedLeader);
                    }
                    Message::Promise { chosen, .. } => {
                        let behind = candidate && *chosen > life.status.chosen;
                        self.coverage.meet_if(behind, Sometimes::LeaderBehind);
                    }
                    Message::Learned { entries, .. } => {
                        self.coverage.meet_if(!entries.is_empty(), Sometimes::Learned);
                    }
                    _ => {}
                }
            }
            Input::Read { .. } if phase == Phase::Leader => {
                let inherited = life.status.chosen < life.status.last && life.status.window_entries > 0;
                self.coverage.meet_if(inherited, Sometimes::ReadAtNewLeader);
            }
            Input::Disconnected(_) => self.coverage.meet(Sometimes::Disconnected),
            _ => {}
        }
        if self.is_traced() {
            self.say(|| format!("n{} {}", node + 1, trace::input(input)));
        }
    }

    /// Checks what the replica says of itself, and arranges its next tick.
    fn end_round(&mut self, node: usize, now: Time, ticked: bool) -> Result<(), Violation> {
        let (id, lateness) = (self.nodes[node].id, self.plan.tick_lateness);
        let Some(life) = &mut self.nodes[node].life else {
            return Ok(());
        };
        let status = life.replica.status(now);
        self.oracle.status(id, &status, Some(&life.status))?;
        within_bounds(id, &status, &life.status, &self.plan.config)?;
        let before = core::mem::replace(&mut life.status, status);
        let (deadline, tick_at, number) = (life.replica.deadline(), life.tick_at, life.number);
        self.observe_status(node, &before);
        let Some(deadline) = deadline else { return Ok(()) };
        ensure!(
            !ticked || deadline > now,
            "deadline",
            "{id} wants another tick at {deadline}, although it is {now} and was just ticked"
        );
        let at = self.nodes[node].when(deadline).max(self.now + 1) + self.random.below(lateness);
        if tick_at.is_none_or(|before| before > at) {
            if let Some(life) = &mut self.nodes[node].life {
                life.tick_at = Some(at);
            }
            self.at(
                at,
                Event::Tick {
                    node,
                    life: number,
                    at,
                },
            );
        }
        Ok(())
    }

    fn observe_status(&mut self, node: usize, before: &Status) {
        let Some(life) = &self.nodes[node].life else {
            return;
        };
        let now = &life.status;
        let fingerprint = now.chosen.0 << 32 ^ now.promised.round << 8 ^ now.phase as u64;
        let leads = now.phase == Phase::Leader;
        let led = before.phase == Phase::Leader;
        let coverage = &mut self.coverage;
        coverage.meet_if(
            leads && !led && now.last > now.chosen,
            Sometimes::LeaderWithPendingSlots,
        );
        coverage.meet_if(led && !leads, Sometimes::LeaderSteppedDown);
        coverage.meet_if(leads && now.window_entries > 1, Sometimes::WindowOfMany);
        let full = now.window_entries == self.plan.config.max_window_entries;
        coverage.meet_if(leads && full, Sometimes::WindowFull);
        self.note(fingerprint);
    }

    /// A node comes to life with what its disk holds.
    pub(super) fn start(&mut self, node: usize) -> Result<(), Violation> {
        if self.nodes[node].life.is_some() {
            return Ok(());
        }
        let now = self.nodes[node].clock(self.now);
        let machine = self.workload.machine();
        let seed = self.random.bits();
        let Node {
            id, storage, disk, ..
        } = &mut self.nodes[node];
        self.oracle.restarted(*id, &disk.durable)?;
        disk.incarnation += 1;
        let tail = disk.durable.tail();
        self.coverage
            .meet_if(!tail.is_empty(), Sometimes::RestartedWithTail);
        let start = Start {
            group: GROUP,
            identity: Identity {
                cluster: CLUSTER,
                node: *id,
                storage: *storage,
            },
            incarnation: Incarnation(disk.incarnation),
            seed,
            membership: self.membership.clone(),
            hard_state: disk.durable.hard,
            trimmed: disk.durable.trimmed,
            tail,
        };
        let replica = Replica::new(self.plan.config.clone(), start, now);
        let status = replica.status(now);
        self.oracle.status(*id, &status, None)?;
        ensure!(
            status.promised >= disk.durable.hard.promised,
            "I6",
            "{id} came back with a lower promise than its disk holds"
        );
        let (id, number) = (*id, disk.incarnation);
        self.nodes[node].life = Some(Life {
            number,
            replica,
            machine,
            inbox: VecDeque::from([Input::Tick]),
            round_due: true,
            tick_at: None,
            applied: Slot::ZERO,
            reads: Vec::new(),
            status,
        });
        self.say(|| format!("n{id} starts, life {number}"));
        let delay = self.random.below(1_000);
        self.after(delay, Event::Round { node, life: number });
        Ok(())
    }

    /// A node dies; its disk keeps some prefix of the writes that were not synced.
    pub(super) fn crash(&mut self, node: usize) -> Result<(), Violation> {
        if self.nodes[node].life.take().is_none() {
            return Ok(());
        }
        let unsynced = self.nodes[node].disk.unsynced();
        let keep = self.random.index(unsynced + 1);
        self.coverage.meet_if(keep < unsynced, Sometimes::WritesLost);
        self.coverage.meet_if(keep > 0, Sometimes::WritesKept);
        self.coverage
            .meet_if(keep > 0 && keep < unsynced, Sometimes::WritesCut);
        let id = self.nodes[node].id;
        self.say(|| format!("n{id} crashes, keeps {keep} of {unsynced} unsynced writes"));
        let before = self.nodes[node].disk.durable.hard;
        let writes = self.nodes[node].disk.crash(keep);
        self.now_durable(node, &writes, before)?;
        self.nodes[node].paused = false;
        self.history.crashed(id);
        self.hang_up(node);
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
            let input = Input::Disconnected(self.nodes[gone].id);
            self.after(delay, Event::Hint { node, input });
        }
    }

    /// How an operation has ended, if it has.
    pub(super) fn outcome(&self, token: Token) -> Option<Outcome> {
        let operation = self.history.operation(token)?;
        (operation.outcome != Outcome::Open).then_some(operation.outcome)
    }
}
