//! What all tasks of a transport share.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use paxos::{
    NodeId,
    transport::{Inbox, Lane, Outgoing, Peer, SendError, TransportCounters, TransportError},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot, watch},
    task::JoinSet,
    time::Instant,
};
use tracing::warn;

use super::{
    TcpConfig, inbound, outbound,
    queue::{LaneQueue, Written},
};

/// A peer, once known, is remembered for ever, without an address when it is none any more: so there is one task per
/// peer at any time, and its events come in order.
#[derive(Debug)]
pub(super) struct PeerState {
    pub(super) node: NodeId,
    pub(super) counters: Counters,
    /// The peer has connected to us, so it is worth while to dial now.
    pub(super) has_called: Notify,
    lanes: [LaneQueue; 2],
    address: watch::Sender<Option<String>>,
    has_task: AtomicBool,
}

impl PeerState {
    fn new(node: NodeId, config: &TcpConfig) -> Self {
        Self {
            node,
            counters: Counters::default(),
            has_called: Notify::new(),
            lanes: [
                LaneQueue::new(config.max_control_queue_bytes),
                LaneQueue::new(config.max_bulk_queue_bytes),
            ],
            address: watch::Sender::new(None),
            has_task: AtomicBool::new(false),
        }
    }

    pub(super) fn queue(&self, lane: Lane) -> &LaneQueue {
        match lane {
            Lane::Control => &self.lanes[0],
            Lane::Bulk => &self.lanes[1],
        }
    }

    fn move_to(&self, address: Option<&str>) {
        self.address.send_if_modified(|now| {
            if now.as_deref() == address {
                return false;
            }
            let refusal = if address.is_some() {
                SendError::NotConnected
            } else {
                SendError::UnknownPeer
            };
            self.refuse(refusal);
            *now = address.map(str::to_owned);
            true
        });
    }

    fn refuse(&self, refusal: SendError) {
        for lane in &self.lanes {
            lane.refuse(refusal);
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) sent_bytes: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    pub(super) refused_sends: AtomicU64,
    pub(super) refused_strangers: AtomicU64,
    pub(super) connects: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self) -> TransportCounters {
        TransportCounters {
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            received_bytes: self.received_bytes.load(Ordering::Relaxed),
            refused_sends: self.refused_sends.load(Ordering::Relaxed),
            refused_strangers: self.refused_strangers.load(Ordering::Relaxed),
            connects: self.connects.load(Ordering::Relaxed),
        }
    }
}

#[derive(Debug)]
enum Tasks {
    NotStarted(TcpListener),
    Running(JoinSet<()>, Handle),
    Closed,
}

/// The newest inbound connection of each peer and lane: its number, and what ends it when dropped.
type Inbound = BTreeMap<(NodeId, Lane), (u64, oneshot::Sender<()>)>;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: TcpConfig,
    pub(super) totals: Counters,
    pub(super) warnings: Warnings,
    pub(super) running: AtomicBool,
    peers: RwLock<BTreeMap<NodeId, Arc<PeerState>>>,
    tasks: Mutex<Tasks>,
    inbox: Mutex<Option<Inbox>>,
    inbound: Mutex<Inbound>,
    last_inbound: AtomicU64,
}

impl Shared {
    pub(super) fn new(config: TcpConfig, listener: TcpListener) -> Self {
        Self {
            config,
            totals: Counters::default(),
            warnings: Warnings::default(),
            running: AtomicBool::new(false),
            peers: RwLock::default(),
            tasks: Mutex::new(Tasks::NotStarted(listener)),
            inbox: Mutex::new(None),
            inbound: Mutex::default(),
            last_inbound: AtomicU64::new(0),
        }
    }

    pub(super) fn start(shared: &Arc<Self>, inbox: Inbox) -> Result<(), TransportError> {
        let mut tasks = locked(&shared.tasks);
        let listener = match std::mem::replace(&mut *tasks, Tasks::Closed) {
            Tasks::NotStarted(listener) => listener,
            other => {
                *tasks = other;
                return Err(TransportError::Misuse(
                    "started twice, or after it was closed".into(),
                ));
            }
        };
        let listener =
            tokio::net::TcpListener::from_std(listener).map_err(|cause| TransportError::Listen {
                address: shared.config.listen.clone(),
                cause: Arc::new(cause),
            })?;
        *tasks = Tasks::Running(JoinSet::new(), Handle::current());
        drop(tasks);

        shared
            .peers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&inbox.identity.node);
        *locked(&shared.inbox) = Some(inbox.clone());
        shared.running.store(true, Ordering::Release);
        shared.spawn(inbound::listen(shared.clone(), listener, inbox));
        shared.start_missing_tasks();
        Ok(())
    }

    /// Ends the transport; returns its tasks, to be waited for or dropped.
    pub(super) fn stop(&self) -> Option<JoinSet<()>> {
        self.running.store(false, Ordering::Release);
        for peer in self.all_peers() {
            peer.refuse(SendError::Closed);
        }
        match std::mem::replace(&mut *locked(&self.tasks), Tasks::Closed) {
            Tasks::Running(tasks, _) => Some(tasks),
            Tasks::NotStarted(_) | Tasks::Closed => None,
        }
    }

    /// Runs a task as long as the transport is open.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Tasks::Running(tasks, runtime) = &mut *locked(&self.tasks) {
            while tasks.try_join_next().is_some() {}
            tasks.spawn_on(task, runtime);
        }
    }

    pub(super) fn send(&self, to: NodeId, message: &Outgoing) -> Result<(), SendError> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let (queue, idle) = self.put(&peers, to, message)?;
        if idle {
            queue.tell();
        }
        Ok(())
    }

    /// Writes here and now what the sockets take; the rest is left to the connections' tasks.
    pub(super) fn send_all(&self, frames: &[(NodeId, Outgoing)]) -> Vec<(usize, SendError)> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let mut refused = Vec::new();
        let mut filled = BTreeSet::new();
        for (at, (to, frame)) in frames.iter().enumerate() {
            match self.put(&peers, *to, frame) {
                Ok(_) => _ = filled.insert((frame.lane(), *to)),
                Err(error) => refused.push((at, error)),
            }
        }
        for (lane, to) in filled {
            if let Some(peer) = peers.get(&to) {
                self.write(peer, lane);
            }
        }
        refused
    }

    fn write(&self, peer: &PeerState, lane: Lane) {
        loop {
            match peer.queue(lane).write() {
                Ok(Written::Some(bytes)) => self.count_sent(peer, bytes),
                Ok(Written::Nothing) => return,
                // The connection's task waits for the socket, or meets the same error and ends the connection.
                Ok(Written::Blocked) | Err(_) => return peer.queue(lane).tell(),
            }
        }
    }

    /// Queues a frame; says whether the queue was empty.
    fn put<'a>(
        &self,
        peers: &'a BTreeMap<NodeId, Arc<PeerState>>,
        to: NodeId,
        message: &Outgoing,
    ) -> Result<(&'a LaneQueue, bool), SendError> {
        if !self.running.load(Ordering::Acquire) {
            return Err(SendError::Closed);
        }
        let peer = peers.get(&to);
        let sent = match peer {
            None => Err(SendError::UnknownPeer),
            Some(_) if message.len() > self.config.max_frame_bytes => Err(SendError::TooLarge),
            Some(peer) => {
                let queue = peer.queue(message.lane());
                queue.put(message).map(|idle| (queue, idle))
            }
        };
        if sent.is_err() {
            self.count(peer.map(|peer| &**peer), |counters| &counters.refused_sends, 1);
        }
        sent
    }

    pub(super) fn set_peers(shared: &Arc<Self>, wanted: &[Peer]) {
        let own = locked(&shared.inbox).as_ref().map(|inbox| inbox.identity.node);
        let wanted: BTreeMap<NodeId, &str> = wanted
            .iter()
            .filter(|peer| Some(peer.node) != own)
            .map(|peer| (peer.node, peer.address.as_str()))
            .collect();
        {
            let mut peers = shared.peers.write().unwrap_or_else(PoisonError::into_inner);
            for node in wanted.keys() {
                peers
                    .entry(*node)
                    .or_insert_with(|| Arc::new(PeerState::new(*node, &shared.config)));
            }
            for peer in peers.values() {
                peer.move_to(wanted.get(&peer.node).copied());
            }
        }
        shared.start_missing_tasks();
    }

    fn start_missing_tasks(self: &Arc<Self>) {
        if !self.running.load(Ordering::Acquire) {
            return;
        }
        let Some(inbox) = locked(&self.inbox).clone() else {
            return;
        };
        for peer in self.all_peers() {
            if !peer.has_task.swap(true, Ordering::AcqRel) {
                let address = peer.address.subscribe();
                self.spawn(outbound::keep_connected(
                    self.clone(),
                    peer,
                    inbox.clone(),
                    address,
                ));
            }
        }
    }

    pub(super) fn peer(&self, node: NodeId) -> Option<Arc<PeerState>> {
        self.peers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&node)
            .cloned()
    }

    fn all_peers(&self) -> Vec<Arc<PeerState>> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.values().cloned().collect()
    }

    /// Counts for all, and for the peer if there is one.
    pub(super) fn count(
        &self,
        peer: Option<&PeerState>,
        counter: impl Fn(&Counters) -> &AtomicU64,
        amount: u64,
    ) {
        counter(&self.totals).fetch_add(amount, Ordering::Relaxed);
        if let Some(peer) = peer {
            counter(&peer.counters).fetch_add(amount, Ordering::Relaxed);
        }
    }

    pub(super) fn count_sent(&self, peer: &PeerState, bytes: usize) {
        self.count(Some(peer), |counters| &counters.sent_bytes, bytes as u64);
    }

    /// Counts and logs somebody whose connection ends because of what he sent, or did not send.
    pub(super) fn refuse_stranger(&self, remote: SocketAddr, why: &str) {
        self.totals.refused_strangers.fetch_add(1, Ordering::Relaxed);
        self.warnings
            .warn(&format!("refused a connection of {remote}: {why}"));
    }

    /// Notes an inbound connection and ends the older one of the same peer and lane. The receiver ends when a newer
    /// one comes.
    pub(super) fn register(&self, node: NodeId, lane: Lane) -> (u64, oneshot::Receiver<()>) {
        let id = self.last_inbound.fetch_add(1, Ordering::Relaxed);
        let (end, superseded) = oneshot::channel();
        locked(&self.inbound).insert((node, lane), (id, end));
        (id, superseded)
    }

    pub(super) fn unregister(&self, node: NodeId, lane: Lane, id: u64) {
        let mut inbound = locked(&self.inbound);
        if inbound
            .get(&(node, lane))
            .is_some_and(|(newest, _)| *newest == id)
        {
            inbound.remove(&(node, lane));
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Warnings that others can provoke: not more than one line a second.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    last: Mutex<(Option<Instant>, u64)>,
}

impl Warnings {
    const INTERVAL: Duration = Duration::from_secs(1);

    pub(super) fn warn(&self, what: &str) {
        let mut last = locked(&self.last);
        if last.0.is_some_and(|at| at.elapsed() < Self::INTERVAL) {
            last.1 += 1;
            return;
        }
        let left_out = std::mem::take(&mut last.1);
        last.0 = Some(Instant::now());
        drop(last);
        warn!(left_out, "{what}");
    }
}
