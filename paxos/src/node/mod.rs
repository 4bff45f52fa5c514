//! The tokio driver: runs replicas on real storage, a real network and a real clock.
//!
//! A [`Node`] owns one store and one transport. Each of its groups has a task that owns the group's
//! [`Replica`](crate::core::Replica) and [`StateMachine`](crate::StateMachine); the store has a thread. A task works in turns: it takes in
//! everything that waits (peers' messages, users' requests, the store's answers), then carries out what the replica
//! wants: messages leave at once, the writes of the turn go to the store's thread in one piece, chosen entries are
//! applied in runs as far as there is time (the rest in the next turns), and whoever waited is answered. The store's thread merges what all groups have handed it while
//! it was busy into one write with one sync. Afterwards it hands the replicas the good news itself, and lets the messages
//! leave that waited for it; what else follows is done in the groups' next turns.
//!
//! Nothing in a turn waits for the store, the network or a user: a slow disk does not stop heartbeats. A state machine
//! runs in its group's task, so a slow one delays its own group; on a runtime with several threads it delays no other.

mod admission;
mod ask;
mod builder;
mod config;
mod discovery;
mod event;
mod group;
mod in_sync;
mod liveness;
mod machine;
mod removing;
mod router;
mod scrub;
mod slow;
mod snapshots;
mod starting;
mod storage;
mod task;
mod waiting;

use std::{
    collections::BTreeMap,
    fmt, format,
    panic::{AssertUnwindSafe, catch_unwind},
    string::{String, ToString},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool, atomic::Ordering::Relaxed},
    time::Duration,
    vec::Vec,
};

use tokio::{
    sync::{broadcast, watch},
    task::JoinHandle,
    time::Instant,
};

pub use self::{
    builder::NodeBuilder,
    config::Config,
    discovery::Discovery,
    group::{Answers, Group, GroupStatus, Read},
    in_sync::{InSync, Obstacle},
    liveness::{PeerEvent, PeerHealth},
};
use self::{liveness::Liveness, removing::Changes, router::Router};
use crate::{
    core::address_book::AddressBook,
    metrics::{Exposition, Kind, NodeMetrics, expose},
    snapshot::SnapshotError,
    state_machine::MachineError,
    storage::{Finding, RecoveredGroup, Storage, StorageError},
    transport::{Peer, Transport, TransportError},
    types::{GroupId, Identity, Incarnation, Membership, NodeId, Time},
};

/// What a frame may need beside commands, in bytes: headers, tables, and the table of a full batch.
const FRAME_HEADROOM: usize = 1 << 20;

/// A running node. [`shutdown`](Self::shutdown) stops it in order; dropping it stops it too, without waiting, as a crash
/// would: the store may then stay open for a moment.
pub struct Node {
    environment: Arc<Environment>,
    router: Arc<Router>,
    incarnation: Incarnation,
    findings: Vec<Finding>,
    metrics: Arc<NodeMetrics>,
    halt: Halt,
    /// Send beats to the peers, look for them, and search the logs for damage.
    background: Vec<JoinHandle<()>>,
    /// What the store held for groups that have not been added yet.
    recovered: Mutex<BTreeMap<GroupId, RecoveredGroup>>,
    groups: Mutex<BTreeMap<GroupId, (Group, JoinHandle<()>)>>,
    /// Groups that are being added or removed.
    changes: Changes,
    /// How often each group was served and removed in this life of the node.
    removals: Mutex<BTreeMap<GroupId, u64>>,
    is_down: AtomicBool,
}

/// Why a node did not start, or a group could not be added.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The store could not be opened, or what it holds for the group cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The transport could not be started.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The snapshots could not be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The state machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The configuration, or the call, makes no sense.
    #[error("{0}")]
    Configuration(String),
    /// The node has stopped.
    #[error("the node has stopped: {0}")]
    Stopped(String),
}

/// What all groups of a node use.
struct Environment {
    config: Config,
    identity: Identity,
    clock: Clock,
    transport: Arc<dyn Transport>,
    storage: storage::Handle,
    /// Without a store no snapshots are taken, and nothing is trimmed.
    snapshots: Option<snapshots::Snapshots>,
    address_book: Mutex<AddressBook>,
    liveness: Arc<Liveness>,
}

impl Environment {
    /// The transport shall reach the members of all groups.
    fn set_membership(&self, group: GroupId, membership: Membership) {
        self.reach(|book| book.put_in_force(group, membership));
    }

    /// The transport shall reach these nodes too, until the group's next membership is in force.
    fn hear_of(&self, group: GroupId, membership: Membership) {
        self.reach(|book| book.hear_of(group, membership));
    }

    /// A node that was removed asks from there: it shall be answered.
    fn answer_departed(&self, node: NodeId, address: String) {
        self.reach(|book| book.note_departed(node, address));
    }

    /// The group is gone, and so are peers that were members of no other.
    fn forget_membership(&self, group: GroupId) {
        self.reach(|book| book.forget(group));
    }

    fn reach(&self, update: impl FnOnce(&mut AddressBook) -> bool) {
        // Kept locked, so that an older set of peers never replaces a newer one.
        let mut book = lock(&self.address_book);
        if !update(&mut book) {
            return;
        }
        let peer = |(node, address): (&NodeId, &String)| Peer {
            node: *node,
            address: address.clone(),
        };
        let reached: Vec<Peer> = book.reached().iter().map(peer).collect();
        self.transport.set_peers(&reached);
        let mut others = book.members().clone();
        others.remove(&self.identity.node);
        self.liveness.watch(others);
    }
}

/// The node's clock: monotonic, and the tests' clock in tests.
#[derive(Clone, Copy, Debug)]
struct Clock {
    origin: Instant,
}

impl Clock {
    fn now(self) -> Time {
        self.time_of(Instant::now())
    }

    fn time_of(self, instant: Instant) -> Time {
        Time(instant.saturating_duration_since(self.origin))
    }

    fn instant_of(self, time: Time) -> Instant {
        // A day is as good as never, and no clock overflows.
        self.origin
            .checked_add(time.0)
            .unwrap_or_else(|| Instant::now() + Duration::from_hours(24))
    }
}

/// The node's emergency stop: the first reason counts, and every group sees it before its next turn.
#[derive(Clone)]
struct Halt {
    reason: watch::Sender<Option<String>>,
    metrics: Arc<NodeMetrics>,
}

impl Halt {
    fn halt(&self, why: &str) {
        let first = self.reason.send_if_modified(|reason| {
            let first = reason.is_none();
            if first {
                *reason = Some(why.to_string());
            }
            first
        });
        if first {
            self.metrics.halted.set(1);
            tracing::error!(
                why,
                "node halted: it votes no more; restart it when the cause is gone"
            );
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// Puts a node together: `Node::builder(storage, transport).config(..).spawn().await`.
    pub fn builder<S: Storage, T: Transport>(storage: S, transport: T) -> NodeBuilder<S, T> {
        NodeBuilder::new(storage, transport)
    }

    /// As [`builder`](Self::builder) with nothing beside this configuration.
    pub async fn spawn<S: Storage, T: Transport>(
        config: Config,
        storage: S,
        transport: T,
    ) -> Result<Self, NodeError> {
        Self::builder(storage, transport).config(config).spawn().await
    }

    fn stop_reason(&self) -> String {
        let reason = self.halt.reason.borrow().clone();
        reason.unwrap_or_else(|| "the store is closed".into())
    }

    /// The handle of a group that was added.
    pub fn group(&self, group: GroupId) -> Option<Group> {
        lock(&self.groups).get(&group).map(|(group, _)| group.clone())
    }

    /// The handles of all groups that were added, by id.
    pub fn groups(&self) -> Vec<Group> {
        lock(&self.groups)
            .values()
            .map(|(group, _)| group.clone())
            .collect()
    }

    /// Cluster, node and disk, as the store says.
    pub fn identity(&self) -> Identity {
        self.environment.identity
    }

    /// Which life of the node this is.
    pub const fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// What the store noticed about itself when it was opened.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What this node knows of each of its peers. A beat goes to every peer each
    /// [`heartbeat_interval`](crate::core::Config::heartbeat_interval), whatever the number of groups.
    pub fn peers(&self) -> Vec<PeerHealth> {
        self.environment.liveness.health()
    }

    /// What happens to the links with the peers from now on. A receiver that falls more than 256 events behind misses
    /// the oldest and is told how many ([`RecvError::Lagged`](broadcast::error::RecvError::Lagged)).
    pub fn peer_events(&self) -> broadcast::Receiver<PeerEvent> {
        self.environment.liveness.events()
    }

    /// What the node has counted over all groups.
    pub const fn metrics(&self) -> &Arc<NodeMetrics> {
        &self.metrics
    }

    /// Everything that the node, its groups and its transport have counted, in Prometheus' text format.
    pub fn prometheus(&self) -> String {
        let groups = self
            .groups()
            .iter()
            .map(|group| (group.id(), group.metrics().clone()))
            .collect();
        let mut to = Exposition::default();
        expose(&mut to, &self.metrics, &groups);
        self.expose_transport(&mut to);
        to.into_text()
    }

    fn expose_transport(&self, to: &mut Exposition) {
        let own = self.environment.identity.node;
        let members = lock(&self.environment.address_book).members().clone();
        let counters: Vec<_> = members
            .into_keys()
            .filter(|node| *node != own)
            .map(|peer| (peer, self.environment.transport.counters(Some(peer))))
            .collect();
        to.family(
            "paxos_peer_sent_bytes_total",
            Kind::Counter,
            "Bytes of frames sent to the peer",
        );
        for (peer, counters) in &counters {
            to.value(&[("peer", peer)], counters.sent_bytes);
        }
        to.family(
            "paxos_peer_received_bytes_total",
            Kind::Counter,
            "Bytes of frames received from the peer",
        );
        for (peer, counters) in &counters {
            to.value(&[("peer", peer)], counters.received_bytes);
        }
        let health = self.peers();
        to.family("paxos_peer_alive", Kind::Gauge, "1 if this node hears the peer");
        for peer in &health {
            to.value(&[("peer", &peer.node)], u8::from(peer.alive == Some(true)));
        }
        to.family(
            "paxos_peer_connected",
            Kind::Gauge,
            "1 if the transport can send to the peer",
        );
        for peer in &health {
            to.value(&[("peer", &peer.node)], u8::from(peer.connected));
        }
        to.family(
            "paxos_peer_rtt_seconds",
            Kind::Gauge,
            "How long a small message to the peer and its answer take",
        );
        for peer in &health {
            if let Some(round_trip) = peer.round_trip {
                to.value(&[("peer", &peer.node)], round_trip.as_secs_f64());
            }
        }
        to.family(
            "paxos_peer_connects_total",
            Kind::Counter,
            "Connections made with the peer",
        );
        for (peer, counters) in &counters {
            to.value(&[("peer", peer)], counters.connects);
        }
        to.family(
            "paxos_refused_strangers_total",
            Kind::Counter,
            "Connections and frames of strangers refused",
        );
        to.value(&[], self.environment.transport.counters(None).refused_strangers);
    }

    /// Waits until the node halts by itself (a failed disk, as a rule), and says why. From then on every group answers
    /// with that reason. A group that halts alone (its state machine failed) does not end this.
    pub async fn halted(&self) -> String {
        let mut reason = self.halt.reason.subscribe();
        let halted = reason.wait_for(Option::is_some).await;
        halted
            .ok()
            .and_then(|reason| reason.clone())
            .unwrap_or_else(|| "the node is gone".into())
    }

    /// Stops: the groups that this node leads are handed to other nodes (for at most [`Config::max_hand_over`]), no group
    /// takes proposals any more, what waits is answered, the transport and the store are closed, in this order. On
    /// return another node may use the store.
    pub async fn shutdown(self) -> Result<(), NodeError> {
        self.hand_groups_over().await;
        self.is_down.store(true, Relaxed);
        self.stop_background();
        self.router.close();
        let groups = std::mem::take(&mut *lock(&self.groups));
        for (_, task) in groups.into_values() {
            // A task catches its panics; one that was aborted with its runtime has nothing left to do.
            let _ = task.await;
        }
        self.environment.transport.close().await;
        let closed = self.environment.storage.close().await;
        tracing::info!(node = %self.environment.identity.node, "node stopped");
        if let Some(why) = &*self.halt.reason.borrow() {
            return Err(NodeError::Stopped(why.clone()));
        }
        Ok(closed?)
    }
}

impl Node {
    fn stop_background(&self) {
        for task in &self.background {
            task.abort();
        }
    }

    /// A clean stop shall not cost an election timeout.
    async fn hand_groups_over(&self) {
        let limit = self.environment.config.max_hand_over;
        if limit.is_zero() {
            return;
        }
        // Each is asked at the call, so they go on side by side.
        let led = self.groups().into_iter().filter(Group::is_leader);
        let asked: Vec<_> = led.map(|group| (group.id(), group.retire())).collect();
        let all = async {
            for (group, retired) in asked {
                if let Err(error) = retired.await {
                    tracing::info!(node = %self.environment.identity.node, %group, %error, "still leads at its end");
                }
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::info!(node = %self.environment.identity.node, ?limit, "not all groups were handed over in time");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.is_down.load(Relaxed) {
            return;
        }
        self.stop_background();
        self.router.close();
        let transport = self.environment.transport.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { transport.close().await });
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("identity", &self.environment.identity)
            .field("incarnation", &self.incarnation)
            .field("groups", &self.groups())
            .field("halted", &*self.halt.reason.borrow())
            .finish_non_exhaustive()
    }
}

/// The result of a call, or what it was that panicked and what the panic said.
fn caught<T>(what: &str, call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let said = panic.downcast_ref::<&str>().copied();
        let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        format!("{what}: {}", said.unwrap_or("no message"))
    })
}

fn already_added(group: GroupId) -> NodeError {
    NodeError::Configuration(format!(
        "group {group} was added already; use Node::group for its handle"
    ))
}
