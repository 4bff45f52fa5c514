//! The handle of a group: what users of a replicated service call.

use std::{
    boxed::Box,
    fmt,
    string::String,
    sync::{Arc, Mutex, OnceLock},
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
    Clock, Config, InSync,
    admission::{Lane, Refusal, Weight},
    ask::{Ask, Places},
    event::{Event, EventSender},
    lock,
    waiting::{Burst, Callback, Outcome, Queries, ReadRequest, Reply},
};
use crate::{
    core::Status,
    error::{ChangeError, ProposeError, ReadError, TransferError},
    metrics::GroupMetrics,
    snapshot::SnapshotError,
    types::{Ballot, Change, GroupId, Membership, NodeId, Slot, Time},
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
    /// As linearizable, and answered by a leader without a word to anybody while it holds a lease
    /// ([`core::Config::lease`](crate::core::Config::lease)). On other nodes, and when the leader holds none (leases are
    /// off, it is new, it hands over, a quorum has been silent), this is the same as [`Read::Linearizable`].
    ///
    /// **This trusts clocks**: if the monotonic clocks of two nodes drift apart by more than
    /// [`Lease::max_drift_permille`](crate::core::Lease::max_drift_permille) allows for, or a clock stands still while
    /// its machine is suspended, a leader that was replaced may answer from a state that is no longer the newest. A
    /// process that merely stands still is safe: the clock is looked at again after the query has run.
    Lease,
    /// Answered locally once this slot has been applied here: sees at least that.
    Stale {
        /// Wait for this slot; [`Slot::ZERO`] waits for nothing.
        at_least: Slot,
    },
}

/// The answers to a burst of reads; see [`Group::query_all`].
#[derive(Clone, Debug)]
pub struct Answers {
    /// To the first queries, in order, all from the same state.
    pub answers: Vec<Bytes>,
    /// The other queries, in order.
    pub unanswered: Vec<Bytes>,
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
    /// The snapshot, by its slot, that the state machine is being restored from. Applying and reading wait for it; voting
    /// does not.
    pub restoring: Option<Slot>,
    /// Why the group takes no snapshots any more: the state machine gave none, or the snapshot store has failed for good.
    /// Its log grows without bound.
    pub snapshots_off: Option<String>,
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
}

/// What handles and the task of a group share.
pub(super) struct Shared {
    pub(super) id: GroupId,
    pub(super) node: NodeId,
    pub(super) clock: Clock,
    pub(super) queue: Queue,
    pub(super) places: Places,
    pub(super) events: EventSender,
    pub(super) leader: watch::Sender<Option<Ballot>>,
    pub(super) membership: watch::Sender<Membership>,
    pub(super) metrics: Arc<GroupMetrics>,
    /// Why the group stopped.
    pub(super) stopped: OnceLock<String>,
    /// As of a moment ago.
    pub(super) last_status: Mutex<GroupStatus>,
    pub(super) read_timeout: Duration,
    pub(super) change_timeout: Duration,
}

impl Shared {
    pub(super) fn stop_reason(&self) -> String {
        self.stopped
            .get()
            .cloned()
            .unwrap_or_else(|| "the group has stopped".into())
    }

    pub(super) fn last_status(&self) -> GroupStatus {
        GroupStatus {
            halted: self.stopped.get().cloned(),
            ..lock(&self.last_status).clone()
        }
    }

    pub(super) fn keep_status(&self, status: GroupStatus) {
        *lock(&self.last_status) = status;
    }

    /// Counts refused requests, and says what their user is told.
    fn refused(&self, refusal: Refusal, count: usize) -> ProposeError {
        let rejected = &self.metrics.rejected;
        let counter = match refusal {
            Refusal::Full => &rejected.queue_full,
            Refusal::Bytes => &rejected.bytes,
            Refusal::Delay => &rejected.delay,
            Refusal::Deadline => &rejected.deadline,
            Refusal::Stopped => &rejected.stopped,
        };
        counter.add(count as u64);
        if refusal == Refusal::Stopped {
            ProposeError::Stopped(self.stop_reason())
        } else {
            let retry_after = self.queue.commands.retry_after();
            ProposeError::Overloaded { retry_after }
        }
    }

    /// As [`refused`](Self::refused), of reads.
    fn refused_reads(&self, refusal: Refusal, count: usize) -> ReadError {
        match self.refused(refusal, count) {
            ProposeError::Stopped(why) => ReadError::Stopped(why),
            _ => ReadError::Overloaded {
                retry_after: self.queue.reads.retry_after(),
            },
        }
    }

    /// Answers a request that was let in but has not reached the replica, because the group has stopped: nothing
    /// happened.
    pub(super) fn refuse_stopped(&self, request: Request) {
        match request {
            Request::Propose { command, reply, .. } => {
                self.queue
                    .commands
                    .ended(Weight::of(std::slice::from_ref(&command)));
                reply.send(Err(self.refused(Refusal::Stopped, 1)));
            }
            Request::ProposeAll { commands, burst, .. } => {
                self.queue.commands.ended(Weight::of(&commands));
                burst.set_all(&Err(self.refused(Refusal::Stopped, commands.len())));
            }
            Request::Read(read) => {
                self.queue.reads.ended(read.queries.weight());
                self.refuse_read(read);
            }
        }
    }

    /// Answers a read that is not open any more, because the group has stopped.
    pub(super) fn refuse_read(&self, read: ReadRequest) {
        let error = self.refused_reads(Refusal::Stopped, read.queries.weight().count);
        read.queries.refuse(error);
    }

    /// Hands a request that was let in to the task.
    fn hand_over(&self, request: Request) {
        if let Err(mpsc::error::SendError(request)) = self.queue.requests.send(request) {
            self.refuse_stopped(request);
        }
    }
}

/// Users' requests on their way to the task, in the order of the calls. Nothing waits; what is open is bounded before it
/// gets here.
pub(super) struct Queue {
    requests: mpsc::UnboundedSender<Request>,
    pub(super) commands: Lane,
    pub(super) reads: Lane,
}

impl Queue {
    pub(super) fn new(config: &Config) -> (Self, mpsc::UnboundedReceiver<Request>) {
        let (requests, receiver) = mpsc::unbounded_channel();
        let lane = |count, bytes| Lane::new(Weight { count, bytes });
        let queue = Self {
            requests,
            commands: lane(
                config.replica.max_pending_commands,
                config.replica.max_pending_bytes,
            ),
            reads: lane(config.replica.max_pending_reads, config.max_pending_read_bytes),
        };
        (queue, receiver)
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
        let admitted = self
            .0
            .queue
            .commands
            .admit(std::slice::from_ref(&command), timeout);
        if let (_, Some(refusal)) = admitted {
            return reply.send(Err(self.0.refused(refusal, 1)));
        }
        self.0.hand_over(Request::Propose {
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
    /// Each has its own outcome; the outcomes come in the order of the commands, when all are there. An overloaded group
    /// refuses the end of the burst, never something in front of a command that it takes.
    pub fn propose_all(
        &self,
        commands: Vec<Bytes>,
        timeout: Option<Duration>,
    ) -> impl Future<Output = Vec<Result<Bytes, ProposeError>>> + Send + use<> {
        let asked = match <[Bytes; 1]>::try_from(commands) {
            // Most bursts have one command: a client that waits for each reply.
            Ok([command]) => Ok(self.propose_one(command, timeout)),
            Err(commands) => Err(self.propose_burst(commands, timeout)),
        };
        async move {
            match asked {
                Ok(one) => vec![one.await],
                Err(burst) => burst.await,
            }
        }
    }

    fn propose_burst(
        &self,
        mut commands: Vec<Bytes>,
        timeout: Option<Duration>,
    ) -> impl Future<Output = Vec<Outcome>> + Send + use<> {
        let count = commands.len();
        let (reply, outcomes) = oneshot::channel();
        let since = Instant::now();
        let deadline = self.deadline(since, timeout);
        let burst = Burst::new(count, reply);
        let (admitted, refusal) = self.0.queue.commands.admit(&commands, timeout);
        if let Some(refusal) = refusal {
            burst.set_from(admitted, &Err(self.0.refused(refusal, count - admitted)));
            commands.truncate(admitted);
        }
        if !commands.is_empty() {
            self.0.hand_over(Request::ProposeAll {
                commands,
                burst,
                since,
                deadline,
            });
        }
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
    ///
    /// Answers are made until they have `max_answer_bytes` together or more; the first one is always made. Queries behind
    /// that come back unanswered, to be asked again: a burst has one answer more in memory than it may, whatever is asked.
    pub fn query_all(
        &self,
        read: Read,
        queries: Vec<Bytes>,
        max_answer_bytes: usize,
    ) -> impl Future<Output = Result<Answers, ReadError>> + Send + use<> {
        let (reply, answers) = oneshot::channel();
        let queries = Queries::Many {
            queries,
            max_answer_bytes,
            reply,
        };
        self.ask(read, queries, answers)
    }

    fn ask<T: Send>(
        &self,
        read: Read,
        queries: Queries,
        answer: oneshot::Receiver<Result<T, ReadError>>,
    ) -> impl Future<Output = Result<T, ReadError>> + Send + use<T> {
        let since = Instant::now();
        let deadline = self.0.clock.time_of(since).plus(self.0.read_timeout);
        let timeout = (read == Read::Linearizable).then_some(self.0.read_timeout);
        match self.0.queue.reads.admit_together(queries.all(), timeout) {
            Ok(()) => self.0.hand_over(Request::Read(ReadRequest {
                read,
                queries,
                since,
                deadline,
            })),
            Err(refusal) => {
                let error = self.0.refused_reads(refusal, queries.weight().count);
                queries.refuse(error);
            }
        }
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
    /// From then on `to` leads, whatever the priorities and the balance say, until it is gone or hands over, or the voters
    /// or their priorities change.
    ///
    /// # Errors
    ///
    /// [`Rejected`](TransferError::Rejected) says why `to` does not lead.
    pub fn transfer_leadership(
        &self,
        to: NodeId,
    ) -> impl Future<Output = Result<NodeId, TransferError>> + Send + use<> {
        self.transfer(Some(to))
    }

    /// If this node leads the group, hands leadership to the voter that is best fit for it: alive, and with most of the
    /// log. Costs what [`transfer_leadership`](Self::transfer_leadership) costs. Returns who leads, at once if that is
    /// another node already.
    ///
    /// # Errors
    ///
    /// [`Rejected`](TransferError::Rejected) says why this node still leads, or that no leader is known.
    pub fn retire(&self) -> impl Future<Output = Result<NodeId, TransferError>> + Send + use<> {
        self.transfer(None)
    }

    fn transfer(
        &self,
        to: Option<NodeId>,
    ) -> impl Future<Output = Result<NodeId, TransferError>> + Send + use<> {
        let asked = self.ask_group(|reply| Event::Transfer { to, reply });
        let shared = self.0.clone();
        async move {
            match asked {
                Ok(result) => result
                    .await
                    .unwrap_or_else(|_| Err(TransferError::Stopped(shared.stop_reason()))),
                Err(retry_after) => Err(TransferError::Overloaded { retry_after }),
            }
        }
    }

    /// Asks something of the group itself, unless too many do: then it says when to try again. If no answer comes the
    /// group has stopped.
    fn ask_group<T>(&self, event: impl FnOnce(Ask<T>) -> Event) -> Result<oneshot::Receiver<T>, Duration> {
        let Some((ask, answer)) = self.0.places.take() else {
            return Err(self.0.queue.commands.retry_after());
        };
        self.0.events.send(event(ask));
        Ok(answer)
    }

    /// Changes who belongs to the group: all of `changes`, in order, or nothing. Any member may be asked.
    ///
    /// `expected_version` is the version of the membership that the caller has looked at: the change is refused if there
    /// is another one by now, so that two operators never undo each other's work, and a retry never changes anything
    /// twice. Without `force` a change is refused after which the group could choose nothing at once: add a node as
    /// learner, wait until it has caught up, then promote it. `force` makes it all the same; never an invalid one.
    ///
    /// A node that is taken out takes no more commands from when the leader has checked the change: it answers
    /// [`Leaving`](ProposeError::Leaving), which is definite, and clients should go to another node. The change is made
    /// when all that it had taken has ended, or after [`Config::election_timeout`](crate::core::Config) if that
    /// takes longer, so that nobody hears [`Unknown`](ProposeError::Unknown) because of it as long as the node is
    /// there. Nodes that the leader does not hear are taken out at once.
    ///
    /// Returns the new membership once it is in force. Ends [`Unknown`](ChangeError::Unknown) after
    /// [`Config::change_timeout`](super::Config::change_timeout).
    ///
    /// # Errors
    ///
    /// [`ChangeError::Refused`] says why nothing was changed, and what to do.
    pub fn change_membership(
        &self,
        expected_version: u64,
        changes: Vec<Change>,
        force: bool,
    ) -> impl Future<Output = Result<Membership, ChangeError>> + Send + use<> {
        let deadline = self.0.clock.now().plus(self.0.change_timeout);
        let asked = self.ask_group(|reply| Event::ChangeMembership {
            expected: expected_version,
            changes,
            force,
            reply,
            deadline,
        });
        let shared = self.0.clone();
        async move {
            match asked {
                Ok(outcome) => outcome
                    .await
                    .unwrap_or_else(|_| Err(ChangeError::Stopped(shared.stop_reason()))),
                Err(retry_after) => Err(ChangeError::Overloaded { retry_after }),
            }
        }
    }

    /// Who belongs to the group, as far as this node has learned; changes only when it changes. Version 0 is that of a
    /// node that joins and has learned nothing yet.
    pub fn membership(&self) -> watch::Receiver<Membership> {
        self.0.membership.subscribe()
    }

    /// What the group is now. Always answers: with the last known state if the group is overloaded or has stopped.
    pub async fn status(&self) -> GroupStatus {
        match self.ask_group(Event::Status) {
            Ok(status) => status.await.unwrap_or_else(|_| self.0.last_status()),
            Err(_) => self.0.last_status(),
        }
    }

    /// Saves a snapshot of what is applied on this node now, or later, and returns as of which slot it is; at once if the
    /// newest one is as new as that. Snapshots are taken automatically too: see
    /// [`snapshot_entries`](crate::core::Config::snapshot_entries). Takes as long as writing one takes.
    ///
    /// # Errors
    ///
    /// Says why there is none now. After [`Unready`](SnapshotError::Unready) and
    /// [`Overloaded`](SnapshotError::Overloaded) another try makes sense.
    pub async fn save_snapshot(&self) -> Result<Slot, SnapshotError> {
        match self.ask_group(Event::SaveSnapshot) {
            Ok(saved) => saved
                .await
                .unwrap_or_else(|_| Err(SnapshotError::Stopped(self.0.stop_reason()))),
            Err(retry_after) => Err(SnapshotError::Overloaded { retry_after }),
        }
    }

    /// Stops dropping old entries of the log on this node (true), say while it is being copied, or goes on with it
    /// (false). Counts until the node stops.
    pub fn pause_trimming(&self, paused: bool) {
        self.0.events.send(Event::PauseTrimming(paused));
    }

    /// Whether this node is in step with the group now: see [`GroupStatus::in_sync`].
    pub async fn in_sync(&self, max_lag_slots: u64) -> InSync {
        self.status().await.in_sync(max_lag_slots)
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
