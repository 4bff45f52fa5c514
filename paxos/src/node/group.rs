//! The handle of a group: what users of a replicated service call.

use std::{
    boxed::Box,
    fmt,
    string::String,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
    vec,
    vec::Vec,
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    Clock, Config,
    waiting::{Burst, Callback, Outcome, Queries, ReadRequest, Reply},
};
use crate::{
    core::Status,
    error::{ProposeError, ReadError, TransferError},
    metrics::GroupMetrics,
    types::{Ballot, GroupId, NodeId, Slot, Time},
};

/// A handle to one group of a node. Cloned freely; used from any task or thread.
///
/// Every call after the group or its node has stopped is answered with the reason.
#[derive(Clone)]
pub struct Group(pub(super) Arc<Shared>);

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Read {
    /// Sees every write acknowledged before the read began, on any node.
    #[default]
    Linearizable,
    /// Answered locally once this slot has been applied here: sees at least that.
    Stale {
        /// Wait for this slot; [`Slot::ZERO`] waits for nothing.
        at_least: Slot,
    },
}

/// What a group's state is now.
#[derive(Clone, Debug)]
pub struct GroupStatus {
    /// The replica's view.
    pub replica: Status,
    /// The last slot that the state machine has applied.
    pub applied: Slot,
    /// The state machine's digest at `applied`, if it has one.
    pub digest: Option<u64>,
    /// Why the group stopped or halted, if it did; then the rest tells of the last moment before.
    pub halted: Option<String>,
}

/// What users ask of a group's task.
pub(super) enum Request {
    Propose {
        command: Bytes,
        reply: Reply,
        since: Instant,
        deadline: Option<Time>,
    },
    ProposeAll {
        commands: Vec<Bytes>,
        burst: Arc<Burst>,
        since: Instant,
        deadline: Option<Time>,
    },
    Read(ReadRequest),
    Transfer {
        to: Option<NodeId>,
        reply: oneshot::Sender<Result<NodeId, TransferError>>,
    },
    Status(oneshot::Sender<GroupStatus>),
}

impl Request {
    /// How many requests it counts for, and how many bytes.
    pub(super) fn weight(&self) -> (usize, usize) {
        let sum = |many: &[Bytes]| (many.len(), many.iter().map(Bytes::len).sum());
        match self {
            Self::Propose { command, .. } => (1, command.len()),
            Self::ProposeAll { commands, .. } => sum(commands),
            Self::Read(ReadRequest {
                queries: Queries::One(query, _),
                ..
            }) => (1, query.len()),
            Self::Read(ReadRequest {
                queries: Queries::Many(queries, _),
                ..
            }) => sum(queries),
            Self::Transfer { .. } | Self::Status(_) => (1, 0),
        }
    }
}

/// What handles and the task of a group share.
pub(super) struct Shared {
    pub(super) id: GroupId,
    pub(super) node: NodeId,
    pub(super) clock: Clock,
    pub(super) queue: Queue,
    pub(super) leader: watch::Sender<Option<Ballot>>,
    pub(super) metrics: Arc<GroupMetrics>,
    /// Why the group stopped.
    pub(super) stopped: OnceLock<String>,
    /// As of a moment ago.
    pub(super) last_status: Mutex<GroupStatus>,
    pub(super) read_timeout: Duration,
}

impl Shared {
    pub(super) fn stop_reason(&self) -> String {
        self.stopped
            .get()
            .cloned()
            .unwrap_or_else(|| "the group has stopped".into())
    }

    pub(super) fn last_status(&self) -> GroupStatus {
        let last = self
            .last_status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        GroupStatus {
            halted: self.stopped.get().cloned(),
            ..last
        }
    }

    fn push(&self, request: Request) {
        if let Err((refusal, request)) = self.queue.push(request) {
            self.refuse(refusal, request);
        }
    }

    /// Answers a request that has not reached the replica: nothing happened.
    pub(super) fn refuse(&self, refusal: Refusal, request: Request) {
        let retry_after = self.queue.retry_after();
        let rejected = &self.metrics.rejected;
        let proposal_error = || match refusal {
            Refusal::Full => ProposeError::Overloaded { retry_after },
            Refusal::Stopped => ProposeError::Stopped(self.stop_reason()),
        };
        let counter = match refusal {
            Refusal::Full => &rejected.overloaded,
            Refusal::Stopped => &rejected.stopped,
        };
        counter.add(request.weight().0 as u64);
        match request {
            Request::Propose { reply, .. } => reply.send(Err(proposal_error())),
            Request::ProposeAll { burst, .. } => burst.set_all(&Err(proposal_error())),
            Request::Read(read) => read.queries.refuse(match refusal {
                Refusal::Full => ReadError::Overloaded { retry_after },
                Refusal::Stopped => ReadError::Stopped(self.stop_reason()),
            }),
            Request::Transfer { reply, .. } => {
                let _ = reply.send(Err(match refusal {
                    Refusal::Full => TransferError::Overloaded { retry_after },
                    Refusal::Stopped => TransferError::Stopped(self.stop_reason()),
                }));
            }
            Request::Status(_) => {}
        }
    }
}

/// Users' requests on their way to the task: bounded in number and bytes, in the order of the calls. Nothing waits.
pub(super) struct Queue {
    requests: mpsc::UnboundedSender<Request>,
    queued: AtomicUsize,
    queued_bytes: AtomicUsize,
    max_requests: usize,
    max_bytes: usize,
    /// How long a proposal takes of late.
    pace_micros: AtomicU64,
}

/// Why a request does not reach the replica.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refusal {
    Full,
    Stopped,
}

impl Queue {
    pub(super) fn new(config: &Config) -> (Self, mpsc::UnboundedReceiver<Request>) {
        let (requests, receiver) = mpsc::unbounded_channel();
        let queue = Self {
            requests,
            queued: AtomicUsize::new(0),
            queued_bytes: AtomicUsize::new(0),
            max_requests: config.max_queued_requests,
            max_bytes: config.max_queued_bytes,
            pace_micros: AtomicU64::new(0),
        };
        (queue, receiver)
    }

    /// A request larger than the whole queue is taken when the queue is empty.
    fn push(&self, request: Request) -> Result<(), (Refusal, Request)> {
        let weight @ (count, bytes) = request.weight();
        let queued = self.queued.fetch_add(count, Relaxed);
        let queued_bytes = self.queued_bytes.fetch_add(bytes, Relaxed);
        let too_many = queued > 0 && queued + count > self.max_requests;
        let too_large = queued_bytes > 0 && queued_bytes + bytes > self.max_bytes;
        if too_many || too_large {
            self.taken(weight);
            return Err((Refusal::Full, request));
        }
        self.requests
            .send(request)
            .map_err(|mpsc::error::SendError(request)| {
                self.taken(weight);
                (Refusal::Stopped, request)
            })
    }

    /// The task has taken requests of this weight out.
    pub(super) fn taken(&self, (count, bytes): (usize, usize)) {
        self.queued.fetch_sub(count, Relaxed);
        self.queued_bytes.fetch_sub(bytes, Relaxed);
    }

    /// The task tells how long a proposal took.
    pub(super) fn set_pace(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let before = self.pace_micros.load(Relaxed);
        self.pace_micros
            .store(before.saturating_mul(7).saturating_add(took) / 8, Relaxed);
    }

    /// When it makes sense to try again: about when what is pending now will be done.
    pub(super) fn retry_after(&self) -> Duration {
        Duration::from_micros(self.pace_micros.load(Relaxed))
            .clamp(Duration::from_millis(5), Duration::from_secs(1))
    }
}

impl Group {
    /// Which group.
    pub fn id(&self) -> GroupId {
        self.0.id
    }

    /// The node that this handle belongs to.
    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// Replicates a command and returns the state machine's reply.
    ///
    /// The command takes its place in the order at the *call*, not at the first poll: what one node proposes to one
    /// group is applied in the order of the calls. Dropping the future does not take the command back. Without a leader
    /// it waits; see [`propose_within`](Self::propose_within).
    pub fn propose(
        &self,
        command: Bytes,
    ) -> impl Future<Output = Result<Bytes, ProposeError>> + Send + use<> {
        self.propose_one(command, None)
    }

    /// As [`propose`](Self::propose), for at most `timeout`: then it ends [`Expired`](ProposeError::Expired) (it did
    /// not happen) or [`Unknown`](ProposeError::Unknown).
    pub fn propose_within(
        &self,
        command: Bytes,
        timeout: Duration,
    ) -> impl Future<Output = Result<Bytes, ProposeError>> + Send + use<> {
        self.propose_one(command, Some(timeout))
    }

    fn propose_one(
        &self,
        command: Bytes,
        timeout: Option<Duration>,
    ) -> impl Future<Output = Outcome> + Send + use<> {
        let (reply, outcome) = oneshot::channel();
        self.push_proposal(command, timeout, Reply::One(reply));
        // Without an outcome the task went away with its runtime.
        async move { outcome.await.unwrap_or(Err(ProposeError::Unknown)) }
    }

    fn push_proposal(&self, command: Bytes, timeout: Option<Duration>, reply: Reply) {
        let since = Instant::now();
        let deadline = self.deadline(since, timeout);
        self.0.push(Request::Propose {
            command,
            reply,
            since,
            deadline,
        });
    }

    fn deadline(&self, since: Instant, timeout: Option<Duration>) -> Option<Time> {
        timeout.map(|timeout| self.0.clock.time_of(since).plus(timeout))
    }

    /// As [`propose`](Self::propose), with a callback that is called exactly once, as a rule from the group's task: it
    /// must not block.
    pub fn propose_with(
        &self,
        command: Bytes,
        timeout: Option<Duration>,
        done: Box<dyn FnOnce(Result<Bytes, ProposeError>) + Send>,
    ) {
        self.push_proposal(command, timeout, Reply::Callback(Callback::new(done)));
    }

    /// Proposes a burst of commands, in order, at the cost of little more than one; `timeout` counts for all of them.
    /// Each has its own outcome; the outcomes come in the order of the commands, when all are there.
    pub fn propose_all(
        &self,
        commands: Vec<Bytes>,
        timeout: Option<Duration>,
    ) -> impl Future<Output = Vec<Result<Bytes, ProposeError>>> + Send + use<> {
        let count = commands.len();
        let (reply, outcomes) = oneshot::channel();
        let since = Instant::now();
        let deadline = self.deadline(since, timeout);
        let burst = Burst::new(count, reply);
        self.0.push(Request::ProposeAll {
            commands,
            burst,
            since,
            deadline,
        });
        async move {
            outcomes
                .await
                .unwrap_or_else(|_| vec![Err(ProposeError::Unknown); count])
        }
    }

    /// Answers a read from the state machine of this node. Ends [`Expired`](ReadError::Expired) after
    /// [`Config::read_timeout`](super::Config::read_timeout).
    pub fn query(
        &self,
        read: Read,
        query: Bytes,
    ) -> impl Future<Output = Result<Bytes, ReadError>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        self.ask(read, Queries::One(query, reply), answer)
    }

    /// Answers a burst of reads, all from the same state, at the cost of little more than one.
    pub fn query_all(
        &self,
        read: Read,
        queries: Vec<Bytes>,
    ) -> impl Future<Output = Result<Vec<Bytes>, ReadError>> + Send + use<> {
        let (reply, answers) = oneshot::channel();
        self.ask(read, Queries::Many(queries, reply), answers)
    }

    fn ask<T: Send>(
        &self,
        read: Read,
        queries: Queries,
        answer: oneshot::Receiver<Result<T, ReadError>>,
    ) -> impl Future<Output = Result<T, ReadError>> + Send + use<T> {
        let since = Instant::now();
        let deadline = self.0.clock.time_of(since).plus(self.0.read_timeout);
        self.0.push(Request::Read(ReadRequest {
            read,
            queries,
            since,
            deadline,
        }));
        async move {
            answer
                .await
                .unwrap_or_else(|_| Err(ReadError::Stopped("the node's runtime has ended".into())))
        }
    }

    /// Makes this voter the group's leader; any node may be asked. Returns who leads, within two election timeouts.
    ///
    /// The leader waits until `to` holds the whole log durably, and tells it to stand at once. Commands go on until
    /// that is nearly so and wait for the rest: nothing is lost, repeated or reordered, and writes pause for about two
    /// message rounds and three disk writes. If `to` does not take over within an election timeout, the leader goes on.
    ///
    /// # Errors
    ///
    /// [`Rejected`](TransferError::Rejected) says why `to` does not lead.
    pub fn transfer_leadership(
        &self,
        to: NodeId,
    ) -> impl Future<Output = Result<NodeId, TransferError>> + Send + use<> {
        self.hand_over(Some(to))
    }

    /// If this node leads the group, hands leadership to the voter that is best fit for it: alive, and with most of the
    /// log. Costs what [`transfer_leadership`](Self::transfer_leadership) costs. Returns who leads, at once if that is
    /// another node already.
    ///
    /// # Errors
    ///
    /// [`Rejected`](TransferError::Rejected) says why this node still leads, or that no leader is known.
    pub fn retire(&self) -> impl Future<Output = Result<NodeId, TransferError>> + Send + use<> {
        self.hand_over(None)
    }

    fn hand_over(
        &self,
        to: Option<NodeId>,
    ) -> impl Future<Output = Result<NodeId, TransferError>> + Send + use<> {
        let (reply, result) = oneshot::channel();
        self.0.push(Request::Transfer { to, reply });
        async move {
            result
                .await
                .unwrap_or_else(|_| Err(TransferError::Stopped("the node's runtime has ended".into())))
        }
    }

    /// What the group is now. Always answers: with the last known state if the group is overloaded or has stopped.
    pub async fn status(&self) -> GroupStatus {
        let (reply, status) = oneshot::channel();
        self.0.push(Request::Status(reply));
        status.await.unwrap_or_else(|_| self.0.last_status())
    }

    /// The leader's ballot as this node knows it; changes only when it changes. `ballot.node` leads, and the ballot is
    /// the fencing token of its leadership.
    pub fn leader(&self) -> watch::Receiver<Option<Ballot>> {
        self.0.leader.subscribe()
    }

    /// Whether this node leads the group, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.0
            .leader
            .borrow()
            .is_some_and(|ballot| ballot.node == self.0.node)
    }

    /// Why the group stopped or halted, if it did.
    pub fn halted(&self) -> Option<String> {
        self.0.stopped.get().cloned()
    }

    /// What the group has counted on this node.
    pub fn metrics(&self) -> &Arc<GroupMetrics> {
        &self.0.metrics
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("id", &self.0.id)
            .field("node", &self.0.node)
            .field("leader", &*self.0.leader.borrow())
            .field("halted", &self.0.stopped.get())
            .finish_non_exhaustive()
    }
}
