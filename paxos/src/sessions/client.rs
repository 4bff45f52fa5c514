//! The client's side of a session.

use std::{
    collections::BTreeSet,
    marker::PhantomData,
    string::String,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
    vec,
    vec::Vec,
};

use bytes::Bytes;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout_at},
};

use super::wire::{Answer, Call, Command, SessionId};
use crate::{
    error::ProposeError,
    node::Group,
    typed::{TypedStateMachine, encode, understand},
    types::NodeId,
};

type Outcome = Result<Bytes, ProposeError>;

/// Where a [`SessionClient`] proposes: a [`Group`] handle, or any `Fn(Vec<Bytes>, Duration) -> Future`, over a network
/// of yours say.
pub trait Proposer: Send + Sync + 'static {
    /// Proposes commands in order, for at most `timeout`; one outcome for each. An error other than
    /// [`Unknown`](ProposeError::Unknown) must mean that the command certainly did not happen and never will.
    fn propose_all(
        &self,
        commands: Vec<Bytes>,
        timeout: Duration,
    ) -> impl Future<Output = Vec<Outcome>> + Send;

    /// As [`propose_all`](Self::propose_all), for a single command.
    fn propose(&self, command: Bytes, timeout: Duration) -> impl Future<Output = Outcome> + Send {
        let outcomes = self.propose_all(vec![command], timeout);
        async { outcomes.await.pop().unwrap_or(Err(ProposeError::Unknown)) }
    }

    /// The node that it proposes at, if that is known: so that the client can follow hints of who leads.
    fn node(&self) -> Option<NodeId> {
        None
    }
}

impl Proposer for Group {
    fn propose_all(
        &self,
        commands: Vec<Bytes>,
        timeout: Duration,
    ) -> impl Future<Output = Vec<Outcome>> + Send {
        Self::propose_all(self, commands, Some(timeout))
    }

    fn propose(&self, command: Bytes, timeout: Duration) -> impl Future<Output = Outcome> + Send {
        self.propose_within(command, timeout)
    }

    fn node(&self) -> Option<NodeId> {
        Some(Self::node(self))
    }
}

impl<F, R> Proposer for F
where
    F: Fn(Vec<Bytes>, Duration) -> R + Send + Sync + 'static,
    R: Future<Output = Vec<Outcome>> + Send,
{
    fn propose_all(
        &self,
        commands: Vec<Bytes>,
        timeout: Duration,
    ) -> impl Future<Output = Vec<Outcome>> + Send {
        self(commands, timeout)
    }
}

/// How patient a [`SessionClient`] is.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// For how long a session lives without a command. Default one hour.
    pub ttl: Duration,
    /// For how long a call is tried in all. Default 10 s.
    pub deadline: Duration,
    /// For how long one node is waited for, before the next one is tried. Default 2 s.
    pub attempt: Duration,
    /// How many commands may be on their way; at most the [`max_window`](super::Limits::max_window) of the group. Calls
    /// beyond it wait. Default 4 096.
    pub window: u64,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            ttl: Duration::from_hours(1),
            deadline: Duration::from_secs(10),
            attempt: Duration::from_secs(2),
            window: 4_096,
        }
    }
}

/// Why a call has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Did not happen, and never will: no node took the command before the deadline, or it is too large. The last
    /// refusal is inside.
    #[error("the command did not happen: {0}")]
    NotExecuted(ProposeError),
    /// May have happened, or may happen yet. It is settled when every call that began before it has ended and one that
    /// was made after that is answered: what has not happened by then never will.
    #[error("the outcome is unknown: the command may have happened")]
    Unknown,
    /// Happened, once, but its reply is lost: it did not reach this client, and the group keeps it no longer.
    #[error("the command happened, but its reply is not kept any more")]
    ReplyDropped,
    /// Did not happen: the group does not run a [`Sessions`](super::Sessions) machine of this version, or one whose
    /// window is smaller than this client's.
    #[error("the group does not take this client's commands: {0}")]
    Misfit(String),
}

impl SessionError {
    /// Whether the command certainly did not happen and never will.
    pub const fn is_definite(&self) -> bool {
        matches!(self, Self::NotExecuted(_) | Self::Misfit(_))
    }
}

/// A client with a session: each call has one effect, however many nodes fail on the way.
///
/// Any number of calls may be under way at once; clones share the session. The session is opened by the first call, and
/// a new one when that has expired and the command at hand certainly has not happened. The first proposer is used until
/// it fails, then the next one (or the one whose node leads, if the failure tells).
///
/// Dropping the future of a call gives up on it: it may have happened, as with [`SessionError::Unknown`].
#[derive(Debug)]
pub struct SessionClient<P>(Arc<Inner<P>>);

impl<P> Clone for SessionClient<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inner<P> {
    proposers: Vec<P>,
    options: ClientOptions,
    /// Counts moves from one proposer to the next.
    at: AtomicUsize,
    state: Mutex<State>,
    /// Something that a burst may wait for has changed.
    changed: Notify,
    opening: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    session: Option<SessionId>,
    next: u64,
    /// The first sequence of each burst under way.
    open: BTreeSet<u64>,
}

impl State {
    fn acked(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next)
    }
}

/// A burst's sequences; when it is dropped the burst is over, well or not.
struct Places<'a, P> {
    client: &'a Inner<P>,
    session: SessionId,
    first: u64,
}

impl<P> Drop for Places<'_, P> {
    fn drop(&mut self) {
        let mut state = self.client.state();
        if state.session == Some(self.session) {
            state.open.remove(&self.first);
        }
        drop(state);
        self.client.changed.notify_waiters();
    }
}

/// A command of a burst that has no answer yet.
struct Pending {
    /// Its place in the burst.
    index: usize,
    sequence: u64,
    /// A copy of it may have been executed, or may be yet.
    maybe: bool,
    last: ProposeError,
}

impl Pending {
    fn give_up(self) -> SessionError {
        if self.maybe {
            SessionError::Unknown
        } else {
            SessionError::NotExecuted(self.last)
        }
    }
}

type Results = Vec<Option<Result<Bytes, SessionError>>>;

impl<P: Proposer> SessionClient<P> {
    /// A client that proposes at these, in this order of preference. Does nothing yet.
    ///
    /// # Panics
    ///
    /// If there is no proposer.
    pub fn new(proposers: impl IntoIterator<Item = P>, options: ClientOptions) -> Self {
        let proposers: Vec<P> = proposers.into_iter().collect();
        assert!(
            !proposers.is_empty(),
            "a session client needs somewhere to propose"
        );
        Self(Arc::new(Inner {
            proposers,
            options: ClientOptions {
                window: options.window.max(1),
                ..options
            },
            at: AtomicUsize::new(0),
            state: Mutex::default(),
            changed: Notify::new(),
            opening: tokio::sync::Mutex::new(()),
        }))
    }

    /// Replicates a command, with exactly one effect, and returns the machine's reply.
    pub async fn call(&self, command: impl Into<Bytes>) -> Result<Bytes, SessionError> {
        let mut results = self.call_all(vec![command.into()]).await;
        results.pop().unwrap_or(Err(SessionError::Unknown))
    }

    /// Replicates a burst of commands, at the cost of little more than one; each has its own result, in their order.
    ///
    /// What is repeated is repeated in order. So a proposer that takes the commands of a burst in order, and without
    /// a gap, as [`Group`] does, executes them in order. A burst that is larger than the window goes in parts, one after
    /// the other.
    pub async fn call_all(&self, commands: Vec<Bytes>) -> Vec<Result<Bytes, SessionError>> {
        let deadline = Instant::now() + self.0.options.deadline;
        let window = usize::try_from(self.0.options.window).unwrap_or(usize::MAX);
        let mut all = Vec::with_capacity(commands.len());
        for part in commands.chunks(window) {
            all.extend(self.0.burst(part, deadline).await);
        }
        all
    }

    /// Ends the session, so that it need not be kept until it expires. Later calls open another one. An error means that it
    /// may live on until then.
    pub async fn close(&self) -> Result<(), SessionError> {
        let deadline = Instant::now() + self.0.options.deadline;
        let Some(session) = self.0.state().session.take() else {
            return Ok(());
        };
        let close = || Command::Close {
            session,
            stamp_ms: stamp_ms(),
        };
        self.0.insist(close, deadline).await.map(drop)
    }

    /// The session, once it is open.
    pub fn session(&self) -> Option<SessionId> {
        self.0.state().session
    }
}

impl<P> Inner<P> {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Proposer> Inner<P> {
    async fn burst(&self, commands: &[Bytes], deadline: Instant) -> Vec<Result<Bytes, SessionError>> {
        let mut results: Results = vec![None; commands.len()];
        let mut pending: Vec<Pending> = (0..commands.len())
            .map(|index| Pending {
                index,
                sequence: 0,
                maybe: false,
                last: ProposeError::Expired,
            })
            .collect();
        let mut ended = None;
        while !pending.is_empty() {
            // What is pending has not happened in the session that has ended.
            if let Err(error) = self.session(ended, deadline).await {
                for item in pending.drain(..) {
                    results[item.index] = Some(Err(error.clone()));
                }
                break;
            }
            // A session that another burst has just found to be over is opened again.
            if let Some(places) = self.take_places(&mut pending, deadline).await {
                ended = Some(places.session);
                self.settle(commands, &places, &mut pending, &mut results, deadline)
                    .await;
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        for item in pending {
            let index = item.index;
            results[index] = Some(Err(item.give_up()));
        }
        let unsettled = || Err(SessionError::Unknown);
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(unsettled))
            .collect()
    }

    /// A session other than the one that has ended.
    async fn session(&self, ended: Option<SessionId>, deadline: Instant) -> Result<(), SessionError> {
        let late = |_| SessionError::NotExecuted(ProposeError::Expired);
        let _one = timeout_at(deadline, self.opening.lock()).await.map_err(late)?;
        if self.state().session.is_some_and(|session| Some(session) != ended) {
            return Ok(());
        }
        let open = || Command::Open {
            ttl_ms: self.options.ttl.as_millis().try_into().unwrap_or(u64::MAX),
            stamp_ms: stamp_ms(),
        };
        match self.insist(open, deadline).await? {
            Answer::Opened(session) => {
                *self.state() = State {
                    session: Some(session),
                    next: 1,
                    open: BTreeSet::new(),
                };
                self.changed.notify_waiters();
                Ok(())
            }
            other => Err(misfit(&other)),
        }
    }

    /// Repeats a command that may happen more than once, until it is answered.
    async fn insist(&self, command: impl Fn() -> Command, deadline: Instant) -> Result<Answer, SessionError> {
        for attempt in 0.. {
            let (at, mut outcomes) = self.attempt(vec![command().encode()], deadline).await;
            match outcomes.pop().unwrap_or(Err(ProposeError::Unknown)) {
                Ok(bytes) => return Answer::decode(&bytes).ok_or_else(no_answer),
                Err(error)
                    if matches!(error, ProposeError::TooLarge { .. }) || Instant::now() >= deadline =>
                {
                    return Err(SessionError::NotExecuted(error));
                }
                Err(error) => self.pause(at, attempt, &error, deadline).await,
            }
        }
        Err(SessionError::Unknown)
    }

    /// Numbers what is pending, once the window has room. `None`: there is no session, or no time left.
    async fn take_places(&self, pending: &mut [Pending], deadline: Instant) -> Option<Places<'_, P>> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state();
                let session = state.session?;
                let end = state.next + pending.len() as u64;
                if end <= state.acked().saturating_add(self.options.window) {
                    let first = state.next;
                    state.next = end;
                    state.open.insert(first);
                    for (item, sequence) in pending.iter_mut().zip(first..) {
                        item.sequence = sequence;
                    }
                    return Some(Places {
                        client: self,
                        session,
                        first,
                    });
                }
            }
            timeout_at(deadline, changed).await.ok()?;
        }
    }

    /// The lowest sequence of this session that is still under way.
    fn acked(&self, places: &Places<'_, P>) -> u64 {
        let state = self.state();
        let current = state.session == Some(places.session);
        if current { state.acked() } else { 0 }
    }

    /// Repeats what is pending until all of it is settled, the session has ended, or there is no time left.
    async fn settle(
        &self,
        commands: &[Bytes],
        places: &Places<'_, P>,
        pending: &mut Vec<Pending>,
        results: &mut Results,
        deadline: Instant,
    ) {
        for attempt in 0.. {
            let (acked, stamp_ms) = (self.acked(places), stamp_ms());
            let calls = pending.iter().map(|item| {
                let call = Call {
                    session: places.session,
                    sequence: item.sequence,
                    acked,
                    stamp_ms,
                };
                call.encode(&commands[item.index])
            });
            let (at, outcomes) = self.attempt(calls.collect(), deadline).await;
            let mut expired = false;
            let open = pending.drain(..).zip(outcomes).filter_map(|(item, outcome)| {
                let index = item.index;
                let (item, result) = judge(item, outcome, &mut expired);
                results[index] = result;
                item
            });
            *pending = open.collect();
            if expired {
                // Another session would execute again what this one may have executed.
                for item in pending.extract_if(.., |item| item.maybe) {
                    results[item.index] = Some(Err(SessionError::Unknown));
                }
            }
            if pending.is_empty() || expired || Instant::now() >= deadline {
                return;
            }
            let error = pending[0].last.clone();
            self.pause(at, attempt, &error, deadline).await;
        }
    }

    /// Proposes at the current proposer, and says which move brought the client there.
    async fn attempt(&self, commands: Vec<Bytes>, deadline: Instant) -> (usize, Vec<Outcome>) {
        let at = self.at.load(Relaxed);
        let proposer = &self.proposers[at % self.proposers.len()];
        let count = commands.len();
        let until = deadline.min(Instant::now() + self.options.attempt);
        let timeout = until.saturating_duration_since(Instant::now());
        // A group ends its proposals in time; it is given a moment for saying how.
        let grace = Duration::from_millis(100);
        let outcomes = timeout_at(until + grace, proposer.propose_all(commands, timeout)).await;
        let mut outcomes = outcomes.unwrap_or_default();
        outcomes.resize(count, Err(ProposeError::Unknown));
        (at, outcomes)
    }

    /// Moves on from the proposer that has failed, and waits for a moment.
    async fn pause(&self, at: usize, attempt: u32, error: &ProposeError, deadline: Instant) {
        let hint = match error {
            ProposeError::NotLeader { leader } => *leader,
            _ => None,
        };
        let hinted = hint.and_then(|leader| {
            let count = self.proposers.len();
            (at + 1..=at + count).find(|at| self.proposers[at % count].node() == Some(leader))
        });
        // Of many calls that failed there, one moves; an overloaded node is not at fault.
        if !matches!(error, ProposeError::Overloaded { .. }) {
            let to = hinted.unwrap_or(at + 1);
            let _ = self.at.compare_exchange(at, to, Relaxed, Relaxed);
        }
        let wait = match error {
            ProposeError::Overloaded { retry_after } => *retry_after,
            _ => Duration::from_millis(5 << attempt.min(5)),
        };
        sleep_until(deadline.min(Instant::now() + wait)).await;
    }
}

/// What an outcome means for its command: it stays pending, or it has a result.
fn judge(
    mut item: Pending,
    outcome: Outcome,
    expired: &mut bool,
) -> (Option<Pending>, Option<Result<Bytes, SessionError>>) {
    let settled = |result| (None, Some(result));
    let answer = match outcome {
        Ok(bytes) => Answer::decode(&bytes),
        Err(error @ ProposeError::TooLarge { .. }) => {
            item.last = error;
            return settled(Err(item.give_up()));
        }
        Err(error) => {
            item.maybe |= !error.is_definite();
            item.last = error;
            return (Some(item), None);
        }
    };
    match answer {
        Some(Answer::Reply(reply)) => settled(Ok(reply)),
        Some(Answer::ReplyDropped) => settled(Err(SessionError::ReplyDropped)),
        // This copy was not executed. If no other can have been, another session may have it.
        Some(Answer::Expired) => {
            *expired = true;
            if item.maybe {
                settled(Err(SessionError::Unknown))
            } else {
                (Some(item), None)
            }
        }
        _ if item.maybe => settled(Err(SessionError::Unknown)),
        Some(other) => settled(Err(misfit(&other))),
        None => settled(Err(no_answer())),
    }
}

fn misfit(answer: &Answer) -> SessionError {
    SessionError::Misfit(std::format!("it answers {answer:?}"))
}

fn no_answer() -> SessionError {
    SessionError::Misfit("it answers with bytes that are no answer of a machine with sessions".into())
}

fn stamp_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
}

/// A [`SessionClient`] of a group that runs a [`Sessions`](super::Sessions)`<`[`Typed<M>`](crate::typed::Typed)`>`.
#[derive(Debug)]
pub struct TypedSessionClient<M, P> {
    client: SessionClient<P>,
    machine: PhantomData<fn(M)>,
}

impl<M, P> Clone for TypedSessionClient<M, P> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            machine: PhantomData,
        }
    }
}

impl<M: TypedStateMachine, P: Proposer> TypedSessionClient<M, P> {
    /// As [`SessionClient::new`].
    pub fn new(proposers: impl IntoIterator<Item = P>, options: ClientOptions) -> Self {
        Self {
            client: SessionClient::new(proposers, options),
            machine: PhantomData,
        }
    }

    /// The untyped client.
    pub const fn client(&self) -> &SessionClient<P> {
        &self.client
    }

    /// As [`SessionClient::call`]. A command or reply that one side does not understand is a
    /// [`Misfit`](SessionError::Misfit): it changed nothing.
    pub async fn call(&self, command: &M::Command) -> Result<M::Reply, SessionError> {
        let command = encode(command).map_err(SessionError::Misfit)?;
        let reply = self.client.call(command).await?;
        understand(&reply).map_err(|error| SessionError::Misfit(std::format!("{error}")))
    }
}
