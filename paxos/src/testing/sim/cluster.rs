//! A whole cluster in one thread: nodes, virtual time, and the queue of everything that is going to happen.

use core::cmp::Reverse;
use std::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    format,
    string::String,
    vec,
    vec::Vec,
};

use super::{
    Options,
    clients::Client,
    coverage::{Coverage, Event as Sometimes},
    faults::{Fault, Plan, SECOND},
    history::{History, Operation, Outcome},
    leadership::Asked,
    machine::{Auditor, Script, Workload},
    nemesis::Undo,
    network::Network,
    node::Node,
    observe::waker,
    oracle::{Oracle, Violation, ensure, within_bounds},
    random::Random,
    snapshots::Work,
};
use crate::{
    core::{Input, Message, Token, peers::Beat},
    types::{ClusterId, Incarnation, Member, Membership, NodeId, Slot, StorageId, Time},
};

/// Something that is going to happen.
#[derive(Debug)]
pub(super) enum Event {
    /// A message arrives. `sent_under` is the highest ballot that was known when it was sent, for late copies.
    Deliver {
        to: usize,
        from: usize,
        group: usize,
        message: Message,
        /// The sender's disk when it was sent.
        storage: StorageId,
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
        group: usize,
        at: u64,
    },
    Synced {
        node: usize,
        life: u64,
    },
    Loaded {
        node: usize,
        life: u64,
        group: usize,
        from: Slot,
        upto: Slot,
        max_bytes: usize,
    },
    Snapshot {
        node: usize,
        life: u64,
        group: usize,
        work: Work,
    },
    Hint {
        node: usize,
        group: usize,
        input: Input,
    },
    /// A node's beats to all others are due.
    Watch {
        node: usize,
        life: u64,
    },
    /// A node's beat arrives.
    Heard {
        to: usize,
        from: usize,
        beat: Beat,
    },
    Client(usize),
    Impatient(Token),
    Fault,
    /// A user of this node wants another membership.
    Reconfigure {
        node: usize,
        group: usize,
    },
    /// The next step of a succession.
    Succeed {
        epoch: u64,
        group: usize,
        past: Vec<(usize, usize)>,
    },
    /// A fault strikes a node out of turn.
    StrikeNode {
        node: usize,
        fault: Fault,
    },
    /// The leader of a group goes, out of turn.
    Strike {
        group: usize,
    },
    /// A query has run under a lease of this ballot, on a machine that had applied so much; its answer is ready.
    Answer {
        node: usize,
        life: u64,
        group: usize,
        token: Token,
        queried: (Slot, crate::Ballot),
    },
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

/// One group, seen from above all its replicas.
pub(super) struct Group {
    pub(super) oracle: Oracle,
    pub(super) history: History,
    /// What the promises to the latest candidate have reported: for each slot the first ballot.
    pub(super) reported: (crate::Ballot, BTreeMap<Slot, crate::Ballot>),
    /// Commands that have been forwarded: node, life, sequence number.
    pub(super) forwarded: BTreeSet<(NodeId, Incarnation, u64)>,
    pub(super) auditor: Option<Box<dyn Auditor>>,
    /// The last slot that the auditor has seen.
    pub(super) audited: Slot,
    /// Requests for other memberships that have not ended, each with the node that was asked.
    pub(super) changes: BTreeMap<Token, NodeId>,
    pub(super) memberships_seen: usize,
}

pub(super) struct Cluster<'a, W: Workload> {
    pub(super) workload: &'a W,
    pub(super) plan: Plan,
    pub(super) random: Random,
    pub(super) now: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    pub(super) events: u64,
    pub(super) membership: Membership,
    pub(super) nodes: Vec<Node<W::Machine>>,
    pub(super) network: Network,
    pub(super) groups: Vec<Group>,
    pub(super) clients: Vec<Client>,
    pub(super) transfers: BTreeMap<Token, Asked>,
    /// Who was last seen to hold a lease in each group, and when.
    pub(super) last_lease: BTreeMap<usize, (usize, u64)>,
    pub(super) clients_active: bool,
    /// Of each client one for each group, if the workload has them.
    pub(super) scripts: Vec<Box<dyn Script>>,
    /// Clients ask little before this time.
    pub(super) lull_until: u64,
    /// Whether this storm changes memberships; else it may take disks away. Both at once could leave no quorum.
    pub(super) reconfigures: bool,
    pub(super) last_token: u64,
    pub(super) epoch: u64,
    pub(super) coverage: Coverage,
    pub(super) messages: u64,
    hash: u64,
    trace: Option<fn(&str)>,
}

pub(super) const CLUSTER: ClusterId = ClusterId(0x7e57);
/// More events than any healthy run has.
const MAX_EVENTS: u64 = 3_000_000;
/// How many inputs a paused node's inbox holds before the network drops what comes in.
const MAX_INBOX: usize = 20_000;

impl<'a, W: Workload> Cluster<'a, W> {
    pub(super) fn new(seed: u64, options: &Options, workload: &'a W) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random, options);
        let members = (1..=plan.nodes as u64).map(|id| Member::voter(NodeId(id), format!("{}", NodeId(id))));
        let membership = Membership::new(members);
        let nodes = plan
            .clock_rates
            .iter()
            .zip(1..)
            .map(|(rate, id)| {
                let joins = id > plan.nodes as u64;
                let clock_base = Self::clock_base(&mut random);
                Node::new(NodeId(id), plan.groups, clock_base, *rate, joins)
            })
            .collect();
        let groups = (0..plan.groups).map(|_| Group {
            oracle: Oracle::new(membership.clone()),
            history: History::default(),
            reported: Default::default(),
            forwarded: BTreeSet::new(),
            auditor: workload.auditor(),
            audited: Slot::ZERO,
            changes: BTreeMap::new(),
            memberships_seen: 1,
        });
        Self {
            workload,
            network: Network::new(plan.nodes + plan.spares),
            groups: groups.collect(),
            clients: vec![Client::default(); plan.clients],
            transfers: BTreeMap::new(),
            last_lease: BTreeMap::new(),
            scripts: (0..plan.clients * plan.groups)
                .map_while(|_| workload.script())
                .collect(),
            plan,
            random,
            now: 0,
            queue: BinaryHeap::new(),
            scheduled: 0,
            events: 0,
            membership,
            nodes,
            clients_active: false,
            lull_until: 0,
            reconfigures: false,
            last_token: 0,
            epoch: 0,
            coverage: Coverage::default(),
            messages: 0,
            hash: 0,
            trace: options.trace,
        }
    }

    /// What so many groups have in sum.
    pub(super) fn sum(&self, of: impl Fn(&Group) -> u64) -> u64 {
        self.groups.iter().map(of).sum()
    }

    pub(super) const fn hash(&self) -> u64 {
        self.hash
    }

    /// Mixes something that happened into the fingerprint of the run.
    pub(super) fn note(&mut self, what: u64) {
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
                group,
                message,
                storage,
                sent_under,
            } => self.deliver((from, to), group, (message, storage), sent_under),
            Event::Round { node, life } if self.lives(node, life) => return self.round(node),
            Event::Tick {
                node,
                life,
                group,
                at,
            } if self.lives(node, life) => self.tick(node, group, at),
            Event::Synced { node, life } if self.lives(node, life) => return self.synced(node),
            Event::Loaded {
                node,
                life,
                group,
                from,
                upto,
                max_bytes,
            } if self.lives(node, life) => return self.loaded(node, group, (from, upto), max_bytes),
            Event::Snapshot {
                node,
                life,
                group,
                work,
            } if self.lives(node, life) => return self.snapshot_work(node, group, work),
            Event::Hint { node, group, input } => self.input(node, group, input),
            Event::Watch { node, life } if self.lives(node, life) => self.watch(node),
            Event::Heard { to, from, beat } => self.heard(to, from, beat),
            Event::Client(client) => self.client_acts(client),
            Event::Impatient(token) => self.client_gives_up(token),
            Event::Fault => return self.next_fault(),
            Event::Reconfigure { node, group } => self.ask_for_change(group, node),
            Event::StrikeNode { node, fault } => return self.strike(fault, node),
            Event::Strike { group } => return self.strike_leader(group),
            Event::Answer {
                node,
                life,
                group,
                token,
                queried,
            } if self.lives(node, life) => {
                self.resume(node);
                return self.answer_by_lease(node, group, token, queried);
            }
            Event::Succeed { epoch, group, past } if epoch == self.epoch && !self.network.calm => {
                self.succeed(group, past);
            }
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

    fn deliver(
        &mut self,
        (from, to): (usize, usize),
        group: usize,
        (message, storage): (Message, StorageId),
        sent_under: Option<crate::Ballot>,
    ) {
        if self.network.is_cut(from, to) {
            self.coverage.meet(Sometimes::Cut);
            return;
        }
        let highest = self.groups[group].oracle.highest_ballot();
        let late = sent_under.is_some_and(|ballot| highest > ballot);
        self.coverage.meet_if(late, Sometimes::ReplayAcrossElection);
        let input = Input::Message {
            from: self.nodes[from].id,
            storage,
            message,
        };
        self.input(to, group, input);
    }

    /// Puts an input into a node's inbox, if it is alive.
    pub(super) fn input(&mut self, node: usize, group: usize, input: Input) {
        let paused = self.nodes[node].paused;
        let Some(life) = &mut self.nodes[node].life else {
            return;
        };
        let droppable = matches!(input, Input::Message { .. });
        if droppable && life.inbox.len() >= MAX_INBOX {
            return;
        }
        life.inbox.push_back((group, input));
        if !paused && !life.round_due {
            life.round_due = true;
            let life = life.number;
            let delay = self.random.below(100);
            self.after(delay, Event::Round { node, life });
        }
    }

    fn tick(&mut self, node: usize, group: usize, at: u64) {
        if let Some(seat) = self.nodes[node].seat_mut(group)
            && seat.tick_at == Some(at)
        {
            seat.tick_at = None;
            self.input(node, group, Input::Tick);
        }
    }

    /// One round of a node: steps all that waits, then does all that comes out. What its groups write is one write.
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
        let mut stepped = vec![None; self.groups.len()];
        for (group, input) in inputs {
            let ticked = matches!(input, Input::Tick);
            stepped[group] = Some(ticked || stepped[group] == Some(true));
            if let Input::Cancel { token } = &input {
                self.give_up_parked(node, group, *token)?;
            }
            self.observe_input(node, group, &input);
            let Some(seat) = self.nodes[node].seat_mut(group) else {
                continue;
            };
            let waker = seat.replica.is_resting().then(|| waker(&input)).flatten();
            seat.replica.step(now, input);
            if let Some(waker) = waker
                && !seat.replica.is_resting()
            {
                self.coverage.meet(waker);
            }
        }
        for (group, ticked) in stepped.into_iter().enumerate() {
            let (Some(ticked), Some(seat)) = (ticked, self.nodes[node].seat_mut(group)) else {
                continue;
            };
            let outputs: Vec<_> = core::iter::from_fn(|| seat.replica.poll()).collect();
            for output in outputs {
                self.carry_out(node, group, output)?;
            }
            self.end_round(node, group, now, ticked)?;
        }
        self.sync(node);
        Ok(())
    }

    /// Checks what the replica says of itself, and arranges its next tick.
    fn end_round(&mut self, node: usize, group: usize, now: Time, ticked: bool) -> Result<(), Violation> {
        let (id, lateness) = (self.nodes[node].id, self.plan.tick_lateness);
        let newest = self.nodes[node].files[group].newest();
        let (acceptor, altered) = (self.nodes[node].acceptor(), self.nodes[node].altered);
        let Some(life) = self.nodes[node].seat_mut(group) else {
            return Ok(());
        };
        let status = life.replica.status(now);
        if !altered {
            let oracle = &mut self.groups[group].oracle;
            oracle.status(id, &status, Some(&life.status))?;
            oracle.snapshots(acceptor, &status, newest)?;
            oracle.hashed(id, status.checkpoint)?;
        }
        within_bounds(id, &status, &life.status, &self.plan.config)?;
        let before = core::mem::replace(&mut life.status, status);
        let (deadline, tick_at) = (life.replica.deadline(), life.tick_at);
        self.observe_status(node, group, &before);
        self.one_lease_at_a_time(node, group, &before)?;
        let Some(deadline) = deadline else { return Ok(()) };
        ensure!(
            !ticked || deadline > now,
            "deadline",
            "{id} wants another tick at {deadline}, although it is {now} and was just ticked"
        );
        let at = self.nodes[node].when(deadline).max(self.now + 1) + self.random.below(lateness);
        if tick_at.is_none_or(|before| before > at) {
            let Some(life) = &mut self.nodes[node].life else {
                return Ok(());
            };
            life.seats[group].tick_at = Some(at);
            let life = life.number;
            let tick = Event::Tick {
                node,
                life,
                group,
                at,
            };
            self.at(at, tick);
        }
        Ok(())
    }

    /// Which group a line of the trace is about, if there are several.
    pub(super) fn tag(&self, group: usize) -> String {
        if self.groups.len() > 1 {
            format!(" g{}", group + 1)
        } else {
            String::new()
        }
    }

    /// The group that an operation belongs to.
    pub(super) fn group_of(&self, token: Token) -> Option<usize> {
        self.groups
            .iter()
            .position(|group| group.history.operation(token).is_some())
    }

    pub(super) fn is_open(&self, token: Token) -> bool {
        self.groups.iter().any(|group| group.history.is_open(token))
    }

    pub(super) fn operation(&self, token: Token) -> Option<&Operation> {
        self.groups
            .iter()
            .find_map(|group| group.history.operation(token))
    }

    /// How an operation has ended, if it has.
    pub(super) fn outcome(&self, token: Token) -> Option<Outcome> {
        let operation = self.operation(token)?;
        (operation.outcome != Outcome::Open).then_some(operation.outcome)
    }
}
