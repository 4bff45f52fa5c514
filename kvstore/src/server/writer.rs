//! How this process writes to a group: in a session of its own, so that whatever is proposed again has one effect.
//!
//! A proposal can end without the engine knowing what became of it: a snapshot that held its effect was installed over
//! it, say. It is then proposed again, under the same session and number, until its answer is here or the client's
//! patience is at its end. So `UNKNOWN` is told for want of time, and in two cases that are rare: the session ended
//! while the outcome was unknown, or the command was carried out but its reply is not kept any more. What is given up is
//! never executed later, as soon as a further write of this process has been applied.
//!
//! One session for each group and process is enough for any number of clients: the numbers say which copies are the same
//! command, and nothing about the order in which commands of different bursts are executed. A burst is one client's, and
//! is always proposed, and proposed again, in its order.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use paxos::{
    ProposeError,
    node::Group,
    sessions::{Answer, Call, Command, Limits, Proposer, SessionId},
};

use crate::command::codec;

/// For how long this process's session lives without a write. Others' clocks count, so it outlives long pauses.
const SESSION_TTL: Duration = Duration::from_hours(1);
/// The pause before the first command whose outcome is unknown is proposed again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// No command waits longer before it is proposed again, give or take half.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// The bounds of the groups' session tables: the same on all nodes, for ever. One session serves all clients of a
/// process, so it has room for the short replies to everything that may be under way in it.
pub fn limits() -> Limits {
    let max_window = 1 << 18;
    Limits {
        max_window,
        max_session_reply_bytes: max_window as usize * 128,
        ..Limits::default()
    }
}

/// A command with room in front for its number.
#[derive(Debug)]
pub(super) struct Draft(BytesMut);

impl Draft {
    /// Encodes an operation.
    pub(super) fn encode<'a>(code: u8, args: impl IntoIterator<Item = &'a [u8], IntoIter: Clone>) -> Self {
        Self(codec::encoded(Call::MAX_BYTES, code, args))
    }

    fn number(self, call: &Call) -> Bytes {
        let mut header = [0; Call::MAX_BYTES];
        let mut room = &mut header[..];
        call.put(&mut room);
        let unused = room.remaining_mut();
        let Self(mut bytes) = self;
        bytes.advance(unused);
        bytes[..Call::MAX_BYTES - unused].copy_from_slice(&header[..Call::MAX_BYTES - unused]);
        bytes.freeze()
    }
}

/// Why a write has no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WriteError {
    /// As the engine says.
    Proposal(ProposeError),
    /// It was carried out, once, but its reply is not kept any more.
    ReplyLost,
    /// It was not carried out: the group's machine is of another kind.
    Misfit,
}

impl WriteError {
    /// Whether the command certainly did not happen and never will.
    pub(super) const fn is_definite(&self) -> bool {
        match self {
            Self::Proposal(error) => error.is_definite(),
            Self::ReplyLost => false,
            Self::Misfit => true,
        }
    }
}

type Outcome = Result<Bytes, ProposeError>;
type Written = Result<Bytes, WriteError>;

/// Writes to one group, in this process's session.
#[derive(Debug)]
pub(super) struct Writer<P = Group> {
    group: P,
    state: Mutex<State>,
    opening: tokio::sync::Mutex<()>,
}

/// The session and what is under way in it.
#[derive(Debug, Default)]
struct State {
    session: Option<SessionId>,
    /// The next number.
    next: u64,
    /// The bursts under way, and later ones that are over, oldest first: the first number of each, and whether it is over.
    bursts: VecDeque<(u64, bool)>,
    /// How many bursts have left the front of `bursts`.
    gone: u64,
}

impl State {
    fn open(session: SessionId) -> Self {
        Self {
            session: Some(session),
            next: 1,
            ..Self::default()
        }
    }

    /// All below is over.
    fn acked(&self) -> u64 {
        self.bursts.front().map_or(self.next, |(first, _)| *first)
    }

    fn end(&mut self, burst: u64) {
        let index = burst
            .checked_sub(self.gone)
            .and_then(|at| usize::try_from(at).ok());
        if let Some((_, is_over)) = index.and_then(|at| self.bursts.get_mut(at)) {
            *is_over = true;
        }
        while let Some((_, true)) = self.bursts.front() {
            self.bursts.pop_front();
            self.gone += 1;
        }
    }
}

/// The numbers of a burst; over when it is dropped, whatever came out.
#[derive(Debug)]
struct Places<'a, P: Proposer> {
    writer: &'a Writer<P>,
    session: SessionId,
    burst: u64,
    first: u64,
    acked: u64,
}

impl<P: Proposer> Places<'_, P> {
    fn call(&self, index: usize, stamp_ms: u64) -> Call {
        Call {
            session: self.session,
            sequence: self.first + index as u64,
            acked: self.acked,
            stamp_ms,
        }
    }
}

impl<P: Proposer> Drop for Places<'_, P> {
    fn drop(&mut self) {
        let mut state = self.writer.state();
        if state.session == Some(self.session) {
            state.end(self.burst);
        }
    }
}

/// What became of a copy of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Settled(Written),
    /// Nothing happened; the end of a burst may be proposed again, after this time.
    Refused(Duration),
    /// This copy was not carried out: the session is gone.
    Expired,
    /// It may have been carried out, or may be yet.
    Unknown,
}

fn fate(outcome: Outcome) -> Fate {
    let bytes = match outcome {
        Ok(bytes) => bytes,
        Err(ProposeError::Overloaded { retry_after }) => return Fate::Refused(retry_after),
        Err(ProposeError::Unknown) => return Fate::Unknown,
        Err(error) => return Fate::Settled(Err(WriteError::Proposal(error))),
    };
    match Answer::decode(&bytes) {
        Some(Answer::Reply(reply)) => Fate::Settled(Ok(reply)),
        Some(Answer::ReplyDropped) => Fate::Settled(Err(WriteError::ReplyLost)),
        Some(Answer::Expired) => Fate::Expired,
        Some(Answer::BeyondWindow { .. }) => Fate::Refused(FIRST_PAUSE),
        Some(Answer::Stale) => Fate::Settled(Err(WriteError::Proposal(ProposeError::Unknown))),
        _ => Fate::Settled(Err(WriteError::Misfit)),
    }
}

impl<P: Proposer> Writer<P> {
    pub(super) fn new(group: P) -> Self {
        Self {
            group,
            state: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out one client's commands, in order; each has its own outcome. They take their places in the group's order
    /// at the call, unless there is no session yet.
    pub(super) fn write(&self, drafts: Vec<Draft>, patience: Duration) -> impl Future<Output = Vec<Written>> {
        let deadline = Instant::now() + patience;
        let numbered = match self.take_places(drafts.len()) {
            Some(places) => {
                let commands = numbered(drafts, &places);
                let outcomes = self.group.propose_all(commands.clone(), patience);
                Ok((places, commands, outcomes))
            }
            None => Err(drafts),
        };
        async move {
            match numbered {
                Ok((places, commands, outcomes)) => {
                    let fates: Vec<Fate> = outcomes.await.into_iter().map(fate).collect();
                    self.settle(places, commands, fates, deadline).await
                }
                Err(drafts) => self.write_first(drafts, deadline).await,
            }
        }
    }

    /// As [`write`](Self::write), for a single command: most are written so.
    pub(super) fn write_one(&self, draft: Draft, patience: Duration) -> impl Future<Output = Written> {
        let deadline = Instant::now() + patience;
        let numbered = match self.take_places(1) {
            Some(places) => {
                let command = draft.number(&places.call(0, stamp_ms()));
                let outcome = self.group.propose(command.clone(), patience);
                Ok((places, command, outcome))
            }
            None => Err(draft),
        };
        async move {
            // What is rarely needed has its room elsewhere: this future is moved for each command.
            let mut written = match numbered {
                Ok((places, command, outcome)) => match fate(outcome.await) {
                    Fate::Settled(written) => return written,
                    open => Box::pin(self.settle(places, vec![command], vec![open], deadline)).await,
                },
                Err(draft) => Box::pin(self.write_first(vec![draft], deadline)).await,
            };
            let unknown = || Err(WriteError::Proposal(ProposeError::Unknown));
            written.pop().unwrap_or_else(unknown)
        }
    }

    fn propose(&self, commands: Vec<Bytes>, deadline: Instant) -> impl Future<Output = Vec<Outcome>> + Send {
        let timeout = deadline.saturating_duration_since(Instant::now());
        self.group.propose_all(commands, timeout)
    }

    fn take_places(&self, count: usize) -> Option<Places<'_, P>> {
        let mut state = self.state();
        let session = state.session?;
        let first = state.next;
        state.next += count as u64;
        state.bursts.push_back((first, false));
        Some(Places {
            writer: self,
            session,
            burst: state.gone + state.bursts.len() as u64 - 1,
            first,
            acked: state.acked(),
        })
    }

    /// A burst for which there was no session: none of it has been proposed.
    async fn write_first(&self, drafts: Vec<Draft>, deadline: Instant) -> Vec<Written> {
        if let Err(error) = self.open(None, deadline).await {
            return vec![Err(WriteError::Proposal(error)); drafts.len()];
        }
        // A session that is open stays in place until another one is.
        let Some(places) = self.take_places(drafts.len()) else {
            return vec![Err(WriteError::Misfit); drafts.len()];
        };
        let commands = numbered(drafts, &places);
        let outcomes = self.propose(commands.clone(), deadline).await;
        let fates = outcomes.into_iter().map(fate).collect();
        self.settle(places, commands, fates, deadline).await
    }

    /// Opens a session, unless there is one other than `ended`. An error says that nothing happened.
    async fn open(&self, ended: Option<SessionId>, deadline: Instant) -> Result<(), ProposeError> {
        let lock = tokio::time::timeout_at(deadline.into(), self.opening.lock()).await;
        let _one_at_a_time = lock.map_err(|_| ProposeError::Expired)?;
        if self.state().session.is_some_and(|session| Some(session) != ended) {
            return Ok(());
        }
        let mut pause = FIRST_PAUSE;
        loop {
            let open = Command::Open {
                ttl_ms: SESSION_TTL.as_millis() as u64,
                stamp_ms: stamp_ms(),
            };
            let outcome = self.propose(vec![open.encode()], deadline).await.pop();
            let error = match outcome.unwrap_or(Err(ProposeError::Unknown)) {
                Ok(answer) => {
                    if let Some(Answer::Opened(session)) = Answer::decode(&answer) {
                        *self.state() = State::open(session);
                        return Ok(());
                    }
                    return Err(ProposeError::Stopped("the group keeps no sessions".into()));
                }
                Err(ProposeError::Unknown) => ProposeError::Expired,
                Err(error @ ProposeError::Overloaded { .. }) => error,
                Err(error) => return Err(error),
            };
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Proposes again what has to be, until all is settled or there is no time left.
    async fn settle(
        &self,
        mut places: Places<'_, P>,
        mut commands: Vec<Bytes>,
        mut fates: Vec<Fate>,
        deadline: Instant,
    ) -> Vec<Written> {
        let mut maybe = vec![false; fates.len()];
        let mut pause = FIRST_PAUSE;
        let started = Instant::now();
        let patience = deadline.saturating_duration_since(started);
        while let Some((again, wait)) = to_repeat(&fates, &mut maybe) {
            // A client whose commands find no room among those of others is slowed down, and hears of it if that lasts.
            let is_refused = wait.is_some() && !again.iter().any(|at| maybe[*at]);
            let patience = if is_refused { patience / 2 } else { patience };
            // All who were refused at once should not come back at once.
            let wait = wait.map_or(pause, |wait| wait.min(MAX_PAUSE).mul_f64(0.5 + fastrand::f64()));
            if started.elapsed() + wait >= patience {
                break;
            }
            if again.iter().any(|at| fates[*at] == Fate::Expired) {
                let opened = self.open(Some(places.session), deadline).await;
                let Some(new) = opened.ok().and_then(|()| self.take_places(commands.len())) else {
                    break;
                };
                places = new;
                // What may have happened in the session that is gone must not get another number.
                renumber(&mut commands, again.iter().filter(|at| !maybe[**at]), &places);
            } else {
                tokio::time::sleep(wait).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
            let repeated = again.iter().map(|at| commands[*at].clone()).collect();
            let outcomes = self.propose(repeated, deadline).await;
            for (at, outcome) in again.into_iter().zip(outcomes) {
                fates[at] = fate(outcome);
            }
        }
        let fates = fates.into_iter().zip(maybe);
        fates.map(|(fate, maybe)| told(fate, maybe)).collect()
    }
}

/// Which commands to propose again, in order, and how long to wait if a group that is overloaded says so; `None` if
/// there are none. Notes which of them may have been carried out.
///
/// What was refused is tried again at the end of a burst only, after the last command that did not certainly not happen,
/// so that nothing is done out of order. What is unknown is repeated wherever it stands: the engine takes a node's
/// proposals in order and without gaps, so if a later one has happened it has happened too.
fn to_repeat(fates: &[Fate], maybe: &mut [bool]) -> Option<(Vec<usize>, Option<Duration>)> {
    let mut end = 0;
    for (at, (fate, maybe)) in fates.iter().zip(&mut *maybe).enumerate() {
        *maybe |= *fate == Fate::Unknown;
        if *maybe || matches!(fate, Fate::Settled(_)) {
            end = at + 1;
        }
    }
    let mut again = Vec::new();
    let mut wait = None;
    for (at, fate) in fates.iter().enumerate() {
        match fate {
            Fate::Unknown => {}
            // An earlier copy of it may have been carried out in the session that is gone.
            Fate::Expired if maybe[at] => continue,
            Fate::Refused(retry_after) if at >= end || maybe[at] => {
                wait = Some((*retry_after).max(Duration::from_millis(1)));
            }
            Fate::Expired if at >= end => {}
            _ => continue,
        }
        again.push(at);
    }
    (!again.is_empty()).then_some((again, wait))
}

/// What the client is told.
fn told(fate: Fate, maybe: bool) -> Written {
    match fate {
        Fate::Settled(Err(WriteError::Proposal(_))) | Fate::Refused(_) | Fate::Expired if maybe => {
            Err(WriteError::Proposal(ProposeError::Unknown))
        }
        Fate::Settled(written) => written,
        Fate::Refused(retry_after) => Err(WriteError::Proposal(ProposeError::Overloaded { retry_after })),
        Fate::Expired => Err(WriteError::Proposal(ProposeError::Expired)),
        Fate::Unknown => Err(WriteError::Proposal(ProposeError::Unknown)),
    }
}

fn numbered<P: Proposer>(drafts: Vec<Draft>, places: &Places<'_, P>) -> Vec<Bytes> {
    let stamp_ms = stamp_ms();
    let numbered = |(index, draft): (usize, Draft)| draft.number(&places.call(index, stamp_ms));
    drafts.into_iter().enumerate().map(numbered).collect()
}

/// Puts commands that have not happened under the numbers of another session.
fn renumber<'a, P: Proposer>(
    commands: &mut [Bytes],
    which: impl Iterator<Item = &'a usize>,
    places: &Places<'_, P>,
) {
    for at in which {
        if let Some(Command::Call(_, payload)) = Command::decode(&commands[*at]) {
            commands[*at] = places.call(*at, stamp_ms()).encode(&payload);
        }
    }
}

fn stamp_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
