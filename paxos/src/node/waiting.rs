//! Who waits for what: users' open proposals and reads, and their deadlines.

use std::{
    boxed::Box,
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    hash::{BuildHasherDefault, Hasher},
    mem,
    sync::{Arc, Mutex, PoisonError},
    vec::Vec,
};

use bytes::Bytes;
use tokio::{sync::oneshot, time::Instant};

use super::{
    admission::Weight,
    ask::Ask,
    caught,
    group::{Answers, Queue, Read},
    lock,
};
use crate::{
    core::Token,
    error::{ChangeError, ProposeError, ReadError, TransferError},
    types::{Ballot, Membership, NodeId, Slot, Time},
};

pub(super) type Outcome = Result<Bytes, ProposeError>;

/// Gets the outcome of one proposal. If it is dropped without one, whoever waits is told that it is unknown.
pub(super) enum Reply {
    One(oneshot::Sender<Outcome>),
    Callback(Callback),
    Burst { burst: Arc<Burst>, position: usize },
}

impl Reply {
    pub(super) fn send(self, outcome: Outcome) {
        match self {
            Self::One(reply) => {
                // Nobody listens any more: fine.
                let _ = reply.send(outcome);
            }
            Self::Callback(callback) => callback.call(outcome),
            Self::Burst { burst, position } => burst.set(position, outcome),
        }
    }
}

/// Calls back exactly once, whatever happens.
pub(super) struct Callback(Option<Box<dyn FnOnce(Outcome) + Send>>);

impl Callback {
    pub(super) fn new(done: Box<dyn FnOnce(Outcome) + Send>) -> Self {
        Self(Some(done))
    }

    fn call(mut self, outcome: Outcome) {
        self.call_once(outcome);
    }

    fn call_once(&mut self, outcome: Outcome) {
        if let Some(done) = self.0.take()
            && let Err(why) = caught("the callback of a proposal panicked", || done(outcome))
        {
            tracing::error!("{why}");
        }
    }
}

impl Drop for Callback {
    fn drop(&mut self) {
        self.call_once(Err(ProposeError::Unknown));
    }
}

/// Collects the outcomes of a burst of proposals, and hands them over when the last proposal lets go of it.
pub(super) struct Burst {
    outcomes: Mutex<Vec<Outcome>>,
    reply: Option<oneshot::Sender<Vec<Outcome>>>,
}

impl Burst {
    pub(super) fn new(commands: usize, reply: oneshot::Sender<Vec<Outcome>>) -> Arc<Self> {
        Arc::new(Self {
            outcomes: Mutex::new(std::vec![Err(ProposeError::Unknown); commands]),
            reply: Some(reply),
        })
    }

    fn set(&self, position: usize, outcome: Outcome) {
        let mut outcomes = lock(&self.outcomes);
        if let Some(place) = outcomes.get_mut(position) {
            *place = outcome;
        }
    }

    pub(super) fn set_all(&self, outcome: &Outcome) {
        self.set_from(0, outcome);
    }

    /// Sets the outcome of the command at this position and of all behind it.
    pub(super) fn set_from(&self, position: usize, outcome: &Outcome) {
        let mut outcomes = lock(&self.outcomes);
        if let Some(places) = outcomes.get_mut(position..) {
            places.fill(outcome.clone());
        }
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        let outcomes = mem::take(self.outcomes.get_mut().unwrap_or_else(PoisonError::into_inner));
        if let Some(reply) = self.reply.take() {
            let _ = reply.send(outcomes);
        }
    }
}

/// One read, or several that are answered from the same state.
pub(super) enum Queries {
    One(Bytes, oneshot::Sender<Result<Bytes, ReadError>>),
    Many {
        queries: Vec<Bytes>,
        max_answer_bytes: usize,
        reply: oneshot::Sender<Result<Answers, ReadError>>,
    },
}

impl Queries {
    pub(super) fn all(&self) -> &[Bytes] {
        match self {
            Self::One(query, _) => std::slice::from_ref(query),
            Self::Many { queries, .. } => queries,
        }
    }

    pub(super) fn weight(&self) -> Weight {
        Weight::of(self.all())
    }

    pub(super) fn refuse(self, error: ReadError) {
        match self {
            Self::One(_, reply) => drop(reply.send(Err(error))),
            Self::Many { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

pub(super) struct ReadRequest {
    pub(super) read: Read,
    pub(super) queries: Queries,
    pub(super) since: Instant,
    pub(super) deadline: Time,
}

/// Somebody who waits.
pub(super) enum Waiter {
    /// A membership change.
    Change(Ask<Result<Membership, ChangeError>>),
    Proposal {
        reply: Reply,
        since: Instant,
        bytes: usize,
    },
    /// A read; `slot` once it is known what it waits for.
    Read {
        request: ReadRequest,
        slot: Option<Slot>,
        /// Whose lease must last until the query has run.
        lease: Option<Ballot>,
    },
    /// A transfer of leadership.
    Transfer(Ask<Result<NodeId, TransferError>>),
}

/// All who wait, by token. Tokens ascend, as the replica wants it.
#[derive(Default)]
pub(super) struct Waiting {
    last: u64,
    waiters: HashMap<Token, Waiter, BuildHasherDefault<TokenHasher>>,
    deadlines: BinaryHeap<Reverse<(Time, Token)>>,
}

/// Tokens are numbers of our own making: spreading them needs no more than a multiplication.
#[derive(Default)]
struct TokenHasher(u64);

impl Hasher for TokenHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(32);
    }
}

impl Waiting {
    pub(super) fn add(&mut self, waiter: Waiter, deadline: Option<Time>) -> Token {
        self.last += 1;
        let token = Token(self.last);
        self.waiters.insert(token, waiter);
        if let Some(deadline) = deadline {
            self.deadlines.push(Reverse((deadline, token)));
            self.forget_deadlines_of_the_past();
        }
        token
    }

    pub(super) fn get_mut(&mut self, token: Token) -> Option<&mut Waiter> {
        self.waiters.get_mut(&token)
    }

    /// Takes a waiter out; what it asked for does not count as open any more.
    pub(super) fn remove(&mut self, token: Token, queue: &Queue) -> Option<Waiter> {
        let waiter = self.waiters.remove(&token)?;
        match &waiter {
            Waiter::Proposal { bytes, .. } => queue.commands.ended(Weight {
                count: 1,
                bytes: *bytes,
            }),
            Waiter::Read { request, .. } => queue.reads.ended(request.queries.weight()),
            // They give their places back by themselves.
            Waiter::Change(_) | Waiter::Transfer(_) => {}
        }
        Some(waiter)
    }

    /// In the order in which they came.
    pub(super) fn tokens(&self) -> Vec<Token> {
        let mut tokens: Vec<_> = self.waiters.keys().copied().collect();
        tokens.sort_unstable();
        tokens
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.peek().map(|Reverse((deadline, _))| *deadline)
    }

    /// Someone whose deadline has passed, each once.
    pub(super) fn pop_expired(&mut self, now: Time) -> Option<Token> {
        while self.next_deadline().is_some_and(|deadline| deadline <= now) {
            let Reverse((_, token)) = self.deadlines.pop()?;
            if self.waiters.contains_key(&token) {
                return Some(token);
            }
        }
        None
    }

    /// Keeps the deadlines of those who were answered from piling up; constant time on average.
    fn forget_deadlines_of_the_past(&mut self) {
        if self.deadlines.len() > 2 * self.waiters.len() + 1_024 {
            self.deadlines
                .retain(|Reverse((_, token))| self.waiters.contains_key(token));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::node::Config;

    fn proposal() -> (Waiter, oneshot::Receiver<Outcome>) {
        let (reply, outcome) = oneshot::channel();
        let waiter = Waiter::Proposal {
            reply: Reply::One(reply),
            since: Instant::now(),
            bytes: 0,
        };
        (waiter, outcome)
    }

    fn queue() -> Queue {
        let (queue, _) = Queue::new(&Config::default());
        queue
    }

    const fn at(millis: u64) -> Time {
        Time(Duration::from_millis(millis))
    }

    #[test]
    fn a_token_means_one_waiter_for_ever_and_tokens_ascend() {
        let (mut waiting, queue) = (Waiting::default(), queue());
        let first = waiting.add(proposal().0, None);
        assert!(waiting.remove(first, &queue).is_some());
        assert!(waiting.remove(first, &queue).is_none());
        let second = waiting.add(proposal().0, None);
        assert!(second > first);
        assert!(waiting.get_mut(first).is_none());
        assert_eq!(waiting.tokens(), [second]);
    }

    #[test]
    fn only_those_who_still_wait_expire() {
        let (mut waiting, queue) = (Waiting::default(), queue());
        let late = waiting.add(proposal().0, Some(at(20)));
        let early = waiting.add(proposal().0, Some(at(10)));
        let answered = waiting.add(proposal().0, Some(at(5)));
        waiting.remove(answered, &queue);
        assert_eq!(waiting.pop_expired(at(10)), Some(early));
        assert_eq!(waiting.pop_expired(at(10)), None);
        assert_eq!(waiting.next_deadline(), Some(at(20)));
        assert_eq!(waiting.pop_expired(at(20)), Some(late));
    }

    #[test]
    fn deadlines_of_answered_proposals_do_not_pile_up() {
        let (mut waiting, queue) = (Waiting::default(), queue());
        for _ in 0..100_000 {
            let token = waiting.add(proposal().0, Some(at(1_000_000)));
            waiting.remove(token, &queue);
        }
        assert!(waiting.deadlines.len() <= 1_026, "{}", waiting.deadlines.len());
    }

    #[test]
    fn whoever_is_forgotten_hears_that_the_outcome_is_unknown() {
        let (called, heard) = std::sync::mpsc::channel();
        let callback = Callback::new(Box::new(move |outcome| called.send(outcome).unwrap()));
        drop(Reply::Callback(callback));
        assert_eq!(heard.try_recv(), Ok(Err(ProposeError::Unknown)));

        let (reply, mut outcomes) = oneshot::channel();
        let burst = Burst::new(2, reply);
        Reply::Burst {
            burst: burst.clone(),
            position: 1,
        }
        .send(Ok(Bytes::from_static(b"done")));
        assert!(outcomes.try_recv().is_err(), "one of the burst is still open");
        drop(Reply::Burst { burst, position: 0 });
        let expected = std::vec![Err(ProposeError::Unknown), Ok(Bytes::from_static(b"done"))];
        assert_eq!(outcomes.try_recv(), Ok(expected));
    }
}
