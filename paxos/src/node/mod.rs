//! The tokio driver: runs replicas on real storage, a real network and a real clock.
//!
//! A [`Node`] owns one store and one transport. Each of its groups has a task that owns the group's
//! [`Replica`] and [`StateMachine`]; the store has a thread. A task works in turns: it takes in
//! everything that waits (peers' messages, users' requests, the store's answers), then carries out what the replica
//! wants: messages leave at once, the writes of the turn go to the store's thread in one piece, chosen entries are
//! applied in one run, and whoever waited is answered. The store's thread merges what all groups have handed it while
//! it was busy into one write with one sync.
//!
//! Nothing in a turn waits for the store, the network or a user: a slow disk does not stop heartbeats. A state machine
//! runs in its group's task, so a slow one delays its own group; on a runtime with several threads it delays no other.

mod config;
mod event;
mod group;
mod machine;
mod router;
mod storage;
mod task;
mod waiting;

use std::{
    boxed::Box,
    collections::BTreeMap,
    fmt, format,
    panic::{AssertUnwindSafe, catch_unwind},
    string::{String, ToString},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool, atomic::Ordering::Relaxed},
    time::Duration,
    vec::Vec,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

pub use self::{
    config::Config,
    group::{Group, GroupStatus, Read},
};
use self::{
    event::{EventSender, Inbox, Room},
    group::{Queue, Shared},
    machine::Machine,
    router::{Route, Router},
    task::{Parts, Task},
};
use crate::{
    core::{Replica, Start},
    metrics::{Exposition, GroupMetrics, Kind, NodeMetrics, expose},
    state_machine::{MachineError, StateMachine},
    storage::{Finding, RecoveredGroup, Storage, StorageError},
    transport::{self, Peer, Transport, TransportError},
    types::{Accepted, GroupId, Identity, Incarnation, Membership, NodeId, Slot, Time},
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
    /// What the store held for groups that have not been added yet.
    recovered: Mutex<BTreeMap<GroupId, RecoveredGroup>>,
    groups: Mutex<BTreeMap<GroupId, (Group, JoinHandle<()>)>>,
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
    memberships: Mutex<BTreeMap<GroupId, Membership>>,
}

impl Environment {
    /// The transport shall reach the members of all groups.
    fn set_membership(&self, group: GroupId, membership: Membership) {
        let mut memberships = lock(&self.memberships);
        memberships.insert(group, membership);
        let members = memberships.values().flat_map(|membership| &membership.members);
        let addresses: BTreeMap<NodeId, &String> =
            members.map(|member| (member.node, &member.address)).collect();
        let peers: Vec<Peer> = addresses
            .into_iter()
            .map(|(node, address)| Peer {
                node,
                address: address.clone(),
            })
            .collect();
        // Under the lock, so that an older set never replaces a newer one.
        self.transport.set_peers(&peers);
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
    /// Opens the store, starts the transport, and serves groups from then on. Called inside a tokio runtime, which the
    /// node's tasks then use.
    ///
    /// An error leaves nothing behind: store and transport are closed.
    pub async fn spawn<S: Storage, T: Transport>(
        config: Config,
        storage: S,
        transport: T,
    ) -> Result<Self, NodeError> {
        config.check().map_err(NodeError::Configuration)?;
        let frame = config.replica.max_frame_bytes().saturating_add(FRAME_HEADROOM);
        if frame > transport.max_frame_bytes() {
            return Err(NodeError::Configuration(format!(
                "the transport takes frames of up to {} bytes, but the replica's max_command_bytes, max_batch_bytes and \
                 max_message_bytes make frames of up to {frame}; lower those or raise the transport's bound",
                transport.max_frame_bytes()
            )));
        }
        let metrics = Arc::new(NodeMetrics::default());
        let halt = Halt {
            reason: watch::Sender::new(None),
            metrics: metrics.clone(),
        };
        let (storage, recovered) = storage::start(&config, storage, metrics.clone(), halt.clone()).await?;
        let identity = recovered.identity;
        for finding in &recovered.findings {
            tracing::warn!(node = %identity.node, ?finding, "the store has noticed something");
        }
        let router = Arc::new(Router::new(identity, metrics.clone()));
        let transport: Arc<dyn Transport> = Arc::new(transport);
        let inbox = transport::Inbox::new(identity, router.clone());
        if let Err(error) = transport.start(inbox).await {
            let _ = storage.close().await;
            return Err(error.into());
        }
        tracing::info!(
            node = %identity.node, cluster = %identity.cluster, storage = %identity.storage,
            incarnation = recovered.incarnation.0, "node started"
        );
        let environment = Environment {
            config,
            identity,
            clock: Clock {
                origin: Instant::now(),
            },
            transport,
            storage,
            memberships: Mutex::default(),
        };
        Ok(Self {
            environment: Arc::new(environment),
            router,
            incarnation: recovered.incarnation,
            findings: recovered.findings,
            metrics,
            halt,
            recovered: Mutex::new(recovered.groups),
            groups: Mutex::default(),
            is_down: AtomicBool::new(false),
        })
    }

    /// Begins to serve a group: brings its machine up to date from the store, then takes part. `membership` is the
    /// group's first membership, the same on every node. Groups may be added in any order and at any time; until then
    /// peers' messages for the group are dropped.
    ///
    /// The machine is given everything that it does not hold ([`StateMachine::applied`]), as the log is read: the group
    /// answers before that is done, linearizable reads wait for it.
    ///
    /// # Errors
    ///
    /// The group is not added, and nothing has changed, if it exists already, if the store reports damage in it, if
    /// `membership` has no voter, or if the log no longer reaches back to what the machine holds.
    pub async fn add_group<M: StateMachine>(
        &self,
        group: GroupId,
        membership: Membership,
        machine: M,
    ) -> Result<Group, NodeError> {
        let machine = Machine::new(Box::new(machine));
        if let Some(why) = &*self.halt.reason.borrow() {
            return Err(NodeError::Stopped(why.clone()));
        }
        let recovered = self.check_group(group, &membership, &machine)?;
        let tail = self.load_tail(group, &recovered).await?;
        let start = Start {
            group,
            identity: self.environment.identity,
            incarnation: self.incarnation,
            seed: self.seed(group),
            membership: membership.clone(),
            hard_state: recovered.hard_state,
            trimmed: recovered.trimmed,
            tail,
        };
        let now = self.environment.clock.now();
        let config = self.environment.config.replica.clone();
        let replica = caught("the recovered state contradicts itself", || {
            Replica::new(config, start, now)
        })
        .map_err(|why| StorageError::Corrupt(format!("group {group}: {why}")))?;
        let mut groups = lock(&self.groups);
        if groups.contains_key(&group) {
            return Err(already_added(group));
        }
        lock(&self.recovered).remove(&group);
        self.environment.set_membership(group, membership);
        let (handle, task) = self.start_task(group, replica, machine);
        groups.insert(group, (handle.clone(), task));
        Ok(handle)
    }

    fn check_group(
        &self,
        group: GroupId,
        membership: &Membership,
        machine: &Machine,
    ) -> Result<RecoveredGroup, NodeError> {
        if lock(&self.groups).contains_key(&group) {
            return Err(already_added(group));
        }
        if membership.voters().next().is_none() {
            return Err(NodeError::Configuration(format!(
                "the membership of group {group} has no voter; name at least one member with the role voter"
            )));
        }
        if membership.member(self.environment.identity.node).is_none() {
            tracing::warn!(%group, node = %self.environment.identity.node, "not a member of the group");
        }
        let recovered = lock(&self.recovered).get(&group).cloned().unwrap_or_default();
        if !recovered.damaged.is_empty() {
            return Err(NodeError::Storage(StorageError::Corrupt(format!(
                "group {group} has damaged entries at the slots {:?}; the node does not take part in the group with \
                 them: move its data directory away and let the node join anew",
                recovered.damaged.iter().map(|slot| slot.0).collect::<Vec<_>>()
            ))));
        }
        if machine.applied() < recovered.trimmed {
            return Err(NodeError::Machine(MachineError(format!(
                "the log of group {group} begins after slot {}, but the state machine holds nothing beyond slot {}",
                recovered.trimmed,
                machine.applied()
            ))));
        }
        Ok(recovered)
    }

    /// Differs between the nodes and groups of one seed, or they would all stand for election at the same moment.
    fn seed(&self, group: GroupId) -> u64 {
        let seed = self.environment.config.seed.unwrap_or_else(|| fastrand::u64(..));
        let place = self.environment.identity.node.0 << 32 ^ u64::from(group.0);
        seed ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// The entries above the stored watermark.
    async fn load_tail(
        &self,
        group: GroupId,
        recovered: &RecoveredGroup,
    ) -> Result<Vec<(Slot, Accepted)>, NodeError> {
        let first = recovered.hard_state.chosen.next();
        let expected = recovered.index.range(first..).count();
        let Some(last) = recovered.index.keys().next_back().copied() else {
            return Ok(Vec::new());
        };
        let mut tail: Vec<(Slot, Accepted)> = Vec::with_capacity(expected);
        while tail.len() < expected {
            let (reply, loaded) = oneshot::channel();
            self.environment.storage.load(storage::Load {
                group,
                first: tail.last().map_or(first, |(slot, _)| slot.next()),
                last,
                max_bytes: self.environment.config.max_write_bytes,
                done: Box::new(move |entries| drop(reply.send(entries))),
            });
            let Ok(entries) = loaded.await else {
                return Err(NodeError::Stopped(self.stop_reason()));
            };
            if entries.is_empty() {
                return Err(NodeError::Storage(StorageError::Corrupt(format!(
                    "group {group}: the store's index names {expected} entries above slot {}, but it gave back {}",
                    recovered.hard_state.chosen,
                    tail.len()
                ))));
            }
            tail.extend(entries);
        }
        Ok(tail)
    }

    fn start_task(&self, id: GroupId, replica: Replica, machine: Machine) -> (Group, JoinHandle<()>) {
        let config = &self.environment.config;
        let (event_sender, events) = mpsc::unbounded_channel();
        let event_sender = EventSender(event_sender);
        let (queue, requests) = Queue::new(config);
        let room = Room::new(config.max_inbox_bytes);
        let metrics = Arc::new(GroupMetrics::default());
        let status = GroupStatus {
            replica: replica.status(self.environment.clock.now()),
            applied: machine.applied(),
            digest: None,
            halted: None,
        };
        let shared = Arc::new(Shared {
            id,
            node: self.environment.identity.node,
            clock: self.environment.clock,
            queue,
            leader: watch::Sender::new(None),
            metrics: metrics.clone(),
            stopped: std::sync::OnceLock::new(),
            last_status: Mutex::new(status),
            read_timeout: config.read_timeout,
        });
        let inbox = Inbox::new(event_sender.clone(), room.clone(), config.max_inbox_wait);
        self.router.add(id, Route { inbox, metrics });
        let task = Task::new(Parts {
            environment: self.environment.clone(),
            shared: shared.clone(),
            replica,
            machine,
            event_sender,
            events,
            requests,
            room,
            halt: self.halt.reason.subscribe(),
        });
        tracing::info!(group = %id, node = %self.environment.identity.node, "group started");
        (Group(shared), tokio::spawn(task.run()))
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
        let memberships = lock(&self.environment.memberships).clone();
        let members = memberships.values().flat_map(|membership| &membership.members);
        let peers: std::collections::BTreeSet<NodeId> = members
            .map(|member| member.node)
            .filter(|node| *node != own)
            .collect();
        let counters: Vec<_> = peers
            .into_iter()
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

    /// Stops: no group takes proposals any more, what waits is answered, the transport and the store are closed, in this
    /// order. On return another node may use the store.
    pub async fn shutdown(self) -> Result<(), NodeError> {
        self.is_down.store(true, Relaxed);
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

impl Drop for Node {
    fn drop(&mut self) {
        if self.is_down.load(Relaxed) {
            return;
        }
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
