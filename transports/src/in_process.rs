//! Nodes of one process, connected by queues, with partitions, loss, repetition and delay on request.
//!
//! A [`Network`] makes one transport per node. It is a whole network in memory, so tests of clusters can cut and heal
//! it; it also serves programs that run several nodes side by side.
//!
//! ```
//! use paxos::NodeId;
//! use paxos_transports::in_process::Network;
//!
//! let network = Network::new();
//! let transport = network.transport(NodeId(1));    // for `Node::spawn`
//! network.isolate(NodeId(1));                      // nobody reaches node 1 any more
//! network.heal();
//! # drop(transport);
//! ```
//!
//! Randomness comes from a seed and time from tokio's clock, which a test may pause.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use paxos::{
    NodeId,
    transport::{
        Inbox, Incoming, Lane, Outgoing, Peer, SendError, Transport, TransportCounters, TransportError,
    },
};
use tokio::{sync::Notify, task::JoinHandle, time::Instant};

/// How the frames of a network fare. The default loses, repeats and delays nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    /// The share of frames that vanish, 0 to 1.
    pub drop_rate: f64,
    /// The share of frames that arrive twice, 0 to 1.
    pub duplicate_rate: f64,
    /// How long frames are under way, drawn evenly from this range. The frames of one lane never overtake each other.
    pub delay: Range<Duration>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            drop_rate: 0.0,
            duplicate_rate: 0.0,
            delay: Duration::ZERO..Duration::ZERO,
        }
    }
}

/// A network in memory. Cloning gives another handle of the same network.
#[derive(Clone, Debug)]
pub struct Network {
    state: Arc<Mutex<State>>,
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Network {
    /// The bound of the queue from one node to another, per lane, in bytes, unless another one is set.
    pub const DEFAULT_QUEUE_BYTES: usize = 8 << 20;

    /// A network without faults.
    pub fn new() -> Self {
        Self::with_seed(0)
    }

    /// A network whose random decisions follow from `seed`.
    pub fn with_seed(seed: u64) -> Self {
        let state = State {
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            cuts: BTreeSet::new(),
            losses: BTreeSet::new(),
            faults: Faults::default(),
            queue_bytes: Self::DEFAULT_QUEUE_BYTES,
            random: fastrand::Rng::with_seed(seed),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The transport of a node, not started yet. A node that was closed or dropped may get a new one.
    pub fn transport(&self, node: NodeId) -> InProcess {
        InProcess {
            network: self.clone(),
            node,
            life: Mutex::new(Life::New {
                peers: BTreeSet::new(),
            }),
        }
    }

    /// Bounds the queue from one node to another, per lane, in bytes.
    pub fn set_queue_bytes(&self, queue_bytes: usize) {
        self.lock().queue_bytes = queue_bytes;
    }

    /// Changes how frames fare from now on; those under way keep what was drawn for them.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Breaks the connection between two nodes, in both directions; both are told.
    pub fn cut(&self, one: NodeId, other: NodeId) {
        let mut state = self.lock();
        state.cuts.insert(pair(one, other));
        state.reconnect();
    }

    /// Loses everything that `from` sends to `to`, silently: nobody is told, and the other direction works.
    pub fn cut_one_way(&self, from: NodeId, to: NodeId) {
        self.lock().losses.insert((from, to));
    }

    /// Cuts a node from all others that have been started.
    pub fn isolate(&self, node: NodeId) {
        let mut state = self.lock();
        let others: Vec<NodeId> = state
            .nodes
            .keys()
            .copied()
            .filter(|other| *other != node)
            .collect();
        state
            .cuts
            .extend(others.into_iter().map(|other| pair(node, other)));
        state.reconnect();
    }

    /// Splits the network: nodes of different sides cannot reach each other, nodes of one side can. Heals other cuts.
    pub fn partition(&self, sides: &[&[NodeId]]) {
        let mut state = self.lock();
        state.cuts.clear();
        state.losses.clear();
        for (index, side) in sides.iter().enumerate() {
            for other_side in &sides[index + 1..] {
                for one in *side {
                    state
                        .cuts
                        .extend(other_side.iter().map(|other| pair(*one, *other)));
                }
            }
        }
        state.reconnect();
    }

    /// Undoes all cuts. Faults stay.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.cuts.clear();
        state.losses.clear();
        state.reconnect();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pair(one: NodeId, other: NodeId) -> (NodeId, NodeId) {
    (one.min(other), one.max(other))
}

#[derive(Debug)]
struct State {
    /// The nodes that have been started and not closed.
    nodes: BTreeMap<NodeId, Running>,
    /// The connections that exist now, by sender and receiver.
    links: BTreeMap<(NodeId, NodeId), Link>,
    cuts: BTreeSet<(NodeId, NodeId)>,
    losses: BTreeSet<(NodeId, NodeId)>,
    faults: Faults,
    queue_bytes: usize,
    random: fastrand::Rng,
}

#[derive(Debug)]
struct Running {
    inbox: Inbox,
    peers: BTreeSet<NodeId>,
    /// Connections made and broken, to be delivered before any frame. At most one per peer and change of the network.
    events: VecDeque<Incoming>,
    wake: Arc<Notify>,
    counters: BTreeMap<NodeId, TransportCounters>,
}

#[derive(Debug, Default)]
struct Link {
    lanes: [LaneQueue; 2],
}

#[derive(Debug, Default)]
struct LaneQueue {
    frames: VecDeque<(Instant, Bytes)>,
    bytes: usize,
}

impl State {
    /// Makes and breaks connections until they are what nodes, peers and cuts say.
    fn reconnect(&mut self) {
        let mut wanted = BTreeSet::new();
        for (from, running) in &self.nodes {
            for to in running.peers.iter().filter(|to| *to != from) {
                let same_cluster = self
                    .nodes
                    .get(to)
                    .is_some_and(|other| other.inbox.identity.cluster == running.inbox.identity.cluster);
                if same_cluster && !self.cuts.contains(&pair(*from, *to)) {
                    wanted.insert((*from, *to));
                }
            }
        }
        let broken: Vec<_> = self
            .links
            .keys()
            .copied()
            .filter(|link| !wanted.contains(link))
            .collect();
        for (from, to) in broken {
            self.links.remove(&(from, to));
            self.tell(from, Incoming::Disconnected(to));
        }
        for (from, to) in wanted {
            if let Entry::Vacant(link) = self.links.entry((from, to)) {
                link.insert(Link::default());
                self.count(from, to, |counters| counters.connects += 1);
                self.tell(from, Incoming::Connected(to));
            }
        }
    }

    fn tell(&mut self, node: NodeId, event: Incoming) {
        if let Some(running) = self.nodes.get_mut(&node) {
            running.events.push_back(event);
            running.wake.notify_one();
        }
    }

    fn count(&mut self, node: NodeId, peer: NodeId, add: impl FnOnce(&mut TransportCounters)) {
        if let Some(running) = self.nodes.get_mut(&node) {
            add(running.counters.entry(peer).or_default());
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, message: &Outgoing) -> Result<(), SendError> {
        let running = self.nodes.get(&from).ok_or(SendError::Closed)?;
        if !running.peers.contains(&to) || to == from {
            return Err(SendError::UnknownPeer);
        }
        let link = self.links.get_mut(&(from, to)).ok_or(SendError::NotConnected)?;
        let queue = &mut link.lanes[message.lane() as usize];
        // An empty queue takes a frame of any size, or a large one would never get through.
        if queue.bytes > 0 && queue.bytes + message.len() > self.queue_bytes {
            return Err(SendError::Full);
        }
        let lost = self.losses.contains(&(from, to)) || self.random.f64() < self.faults.drop_rate;
        let copies = if lost {
            0
        } else {
            1 + usize::from(self.random.f64() < self.faults.duplicate_rate)
        };
        let frame = if lost { Bytes::new() } else { message.to_bytes() };
        for _ in 0..copies {
            let spread = self.faults.delay.end.saturating_sub(self.faults.delay.start);
            let arrives = Instant::now() + self.faults.delay.start + spread.mul_f64(self.random.f64());
            let arrives = queue
                .frames
                .back()
                .map_or(arrives, |(before, _)| arrives.max(*before));
            queue.frames.push_back((arrives, frame.clone()));
            queue.bytes += frame.len();
        }
        if let Some(receiver) = self.nodes.get(&to) {
            receiver.wake.notify_one();
        }
        self.count(from, to, |counters| counters.sent_bytes += message.len() as u64);
        Ok(())
    }

    /// What `node` receives next, or when to ask again.
    fn receive(&mut self, node: NodeId, turn: &mut u64) -> Result<(Inbox, Incoming), Option<Instant>> {
        let running = self.nodes.get_mut(&node).ok_or(None)?;
        if let Some(event) = running.events.pop_front() {
            return Ok((running.inbox.clone(), event));
        }
        let inbox = running.inbox.clone();
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for lane in Lane::ALL {
            // Peers take turns: the search begins behind the one that was served last.
            let mut senders: Vec<NodeId> = self
                .links
                .keys()
                .filter(|(_, to)| *to == node)
                .map(|(from, _)| *from)
                .collect();
            let served = senders.partition_point(|sender| sender.0 <= *turn);
            senders.rotate_left(served);
            for from in senders {
                let Some(link) = self.links.get_mut(&(from, node)) else {
                    continue;
                };
                let queue = &mut link.lanes[lane as usize];
                match queue.frames.front() {
                    Some((arrives, _)) if *arrives > now => {
                        next = Some(next.map_or(*arrives, |other| other.min(*arrives)));
                    }
                    Some(_) => {
                        let (_, frame) = queue.frames.pop_front().expect("the queue has a front");
                        queue.bytes -= frame.len();
                        *turn = from.0;
                        let bytes = frame.len() as u64;
                        self.count(node, from, |counters| counters.received_bytes += bytes);
                        return Ok((inbox, Incoming::Frame(frame)));
                    }
                    None => {}
                }
            }
        }
        Err(next)
    }
}

/// The transport of one node of a [`Network`]. Dropping it takes the node off the network, as a crash does.
#[derive(Debug)]
pub struct InProcess {
    network: Network,
    node: NodeId,
    life: Mutex<Life>,
}

#[derive(Debug)]
enum Life {
    New { peers: BTreeSet<NodeId> },
    Started(JoinHandle<()>),
    Closed,
}

impl InProcess {
    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the node off the network; returns the task that delivers, if there is one.
    fn leave(&self) -> Option<JoinHandle<()>> {
        let task = match std::mem::replace(&mut *self.life(), Life::Closed) {
            Life::Started(task) => task,
            Life::New { .. } | Life::Closed => return None,
        };
        task.abort();
        let mut state = self.network.lock();
        state.nodes.remove(&self.node);
        state.reconnect();
        Some(task)
    }
}

async fn deliver_all(network: Network, node: NodeId, wake: Arc<Notify>) {
    let mut turn = 0;
    loop {
        let received = network.lock().receive(node, &mut turn);
        match received {
            Ok((inbox, incoming)) => {
                if inbox.deliver(incoming).await.is_err() {
                    return;
                }
            }
            Err(None) => wake.notified().await,
            Err(Some(next)) => {
                tokio::select! {
                    () = wake.notified() => {}
                    () = tokio::time::sleep_until(next) => {}
                }
            }
        }
    }
}

#[async_trait]
impl Transport for InProcess {
    async fn start(&self, inbox: Inbox) -> Result<(), TransportError> {
        if inbox.identity.node != self.node {
            return Err(TransportError::Configuration(format!(
                "this transport belongs to node {}, it was started by node {}",
                self.node, inbox.identity.node
            )));
        }
        let mut life = self.life();
        let Life::New { peers } = &*life else {
            return Err(TransportError::Misuse(
                "started twice, or after it was closed".into(),
            ));
        };
        let mut state = self.network.lock();
        if state.nodes.contains_key(&self.node) {
            return Err(TransportError::Misuse(format!(
                "another transport of node {} runs in this network",
                self.node
            )));
        }
        let wake = Arc::new(Notify::new());
        let running = Running {
            inbox,
            peers: peers.clone(),
            events: VecDeque::new(),
            wake: wake.clone(),
            counters: BTreeMap::new(),
        };
        state.nodes.insert(self.node, running);
        state.reconnect();
        *life = Life::Started(tokio::spawn(deliver_all(self.network.clone(), self.node, wake)));
        Ok(())
    }

    fn send(&self, to: NodeId, message: &Outgoing) -> Result<(), SendError> {
        if !matches!(*self.life(), Life::Started(_)) {
            return Err(SendError::Closed);
        }
        let mut state = self.network.lock();
        let sent = state.send(self.node, to, message);
        if sent.is_err() {
            state.count(self.node, to, |counters| counters.refused_sends += 1);
        }
        sent
    }

    fn set_peers(&self, peers: &[Peer]) {
        let new: BTreeSet<NodeId> = peers.iter().map(|peer| peer.node).collect();
        match &mut *self.life() {
            Life::New { peers } => *peers = new,
            Life::Started(_) => {
                let mut state = self.network.lock();
                if let Some(running) = state.nodes.get_mut(&self.node) {
                    running.peers = new;
                }
                state.reconnect();
            }
            Life::Closed => {}
        }
    }

    fn counters(&self, peer: Option<NodeId>) -> TransportCounters {
        let state = self.network.lock();
        let mut sum = TransportCounters::default();
        let Some(running) = state.nodes.get(&self.node) else {
            return sum;
        };
        let counted = running
            .counters
            .iter()
            .filter(|(node, _)| peer.is_none_or(|peer| peer == **node));
        for (_, counters) in counted {
            sum.sent_bytes += counters.sent_bytes;
            sum.received_bytes += counters.received_bytes;
            sum.refused_sends += counters.refused_sends;
            sum.connects += counters.connects;
        }
        sum
    }

    async fn close(&self) {
        if let Some(task) = self.leave() {
            // Ends with the news that it was aborted; only that it has ended matters.
            let _ = task.await;
        }
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.leave();
    }
}
