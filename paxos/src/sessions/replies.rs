//! The replies that clients may ask for again, within bounds in bytes.
//!
//! Replies are kept, released and dropped in the order of the log, after a run has been executed: what is kept does not
//! depend on where a run begins. When a bound is reached the oldest reply goes: of the session, or of all.

use alloc::collections::VecDeque;
use std::vec::Vec;

use bytes::Bytes;

use super::{Limits, pages::Pages, table::Place};

/// What a kept reply costs beside its bytes, for the bounds.
pub(super) const OVERHEAD_BYTES: usize = 64;

/// So many places in the queue may be stale before it is looked through.
const STALE_SLACK: usize = 1_024;

#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) sequence: u64,
    /// When it was kept among all replies.
    pub(super) age: u64,
    pub(super) reply: Bytes,
}

/// The kept replies of one session, by sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct OfSession {
    pub(super) kept: VecDeque<Kept>,
    bytes: usize,
}

impl OfSession {
    fn index_of(&self, sequence: u64) -> Option<usize> {
        let first = self.kept.front()?.sequence;
        // Without gaps, as nearly always, that is the place.
        let guess = usize::try_from(sequence.checked_sub(first)?).ok()?;
        match self.kept.get(guess) {
            Some(kept) if kept.sequence == sequence => Some(guess),
            _ => self
                .kept
                .binary_search_by_key(&sequence, |kept| kept.sequence)
                .ok(),
        }
    }

    fn find(&self, sequence: u64) -> Option<&Kept> {
        self.kept.get(self.index_of(sequence)?)
    }

    /// Removes the reply to the lowest sequence; returns what it cost.
    fn pop(&mut self) -> usize {
        let bytes = self.kept.pop_front().map_or(0, |kept| cost(&kept.reply));
        self.bytes -= bytes;
        bytes
    }

    fn insert(&mut self, kept: Kept) {
        self.bytes += cost(&kept.reply);
        if self.kept.back().is_none_or(|last| last.sequence < kept.sequence) {
            self.kept.push_back(kept);
        } else {
            let index = self.kept.partition_point(|other| other.sequence < kept.sequence);
            self.kept.insert(index, kept);
        }
    }

    /// Removes a reply; returns what it cost, zero if it was not there.
    fn remove(&mut self, sequence: u64) -> usize {
        let removed = self.index_of(sequence).and_then(|index| self.kept.remove(index));
        let bytes = removed.map_or(0, |kept| cost(&kept.reply));
        self.bytes -= bytes;
        bytes
    }

    fn first(&self) -> Option<u64> {
        self.kept.front().map(|kept| kept.sequence)
    }
}

fn cost(reply: &Bytes) -> usize {
    reply.len() + OVERHEAD_BYTES
}

/// All kept replies.
#[derive(Clone, Debug)]
pub(super) struct Replies {
    limits: Limits,
    pub(super) sessions: Pages<OfSession>,
    /// All kept replies by age, and some that are not kept any more.
    queue: VecDeque<(u64, Place, u64)>,
    ages: u64,
    count: usize,
    bytes: usize,
}

impl Replies {
    pub(super) const fn new(limits: Limits) -> Self {
        Self {
            limits,
            sessions: Pages::new(),
            queue: VecDeque::new(),
            ages: 0,
            count: 0,
            bytes: 0,
        }
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    fn of(&mut self, place: Place) -> &mut OfSession {
        self.sessions.get_mut(place)
    }

    fn bytes_of(&self, place: Place) -> usize {
        self.sessions.get(place).map_or(0, |session| session.bytes)
    }

    pub(super) fn get(&self, place: Place, sequence: u64) -> Option<&Bytes> {
        let session = self.sessions.get(place)?;
        session.find(sequence).map(|kept| &kept.reply)
    }

    /// A session's client needs nothing below `acked` any more.
    pub(super) fn release(&mut self, place: Place, acked: u64) {
        let session = self.of(place);
        let (mut bytes, mut count) = (0, 0);
        while session.first().is_some_and(|first| first < acked) {
            bytes += session.pop();
            count += 1;
        }
        self.bytes -= bytes;
        self.count -= count;
    }

    /// A session has ended.
    pub(super) fn forget(&mut self, place: Place) {
        self.release(place, u64::MAX);
        *self.of(place) = OfSession::default();
    }

    pub(super) fn keep(&mut self, place: Place, sequence: u64, reply: Bytes) {
        let most = self
            .limits
            .max_session_reply_bytes
            .min(self.limits.max_reply_bytes);
        if cost(&reply) > most {
            return;
        }
        self.ages += 1;
        self.insert(
            place,
            Kept {
                sequence,
                age: self.ages,
                reply,
            },
        );
        while self.bytes_of(place) > self.limits.max_session_reply_bytes {
            self.bytes -= self.of(place).pop();
            self.count -= 1;
        }
        while self.bytes > self.limits.max_reply_bytes
            && let Some((age, place, sequence)) = self.queue.pop_front()
        {
            self.drop_if_kept(age, place, sequence);
        }
        if self.queue.len() > 2 * self.count + STALE_SLACK {
            let (queue, sessions) = (&mut self.queue, &self.sessions);
            queue.retain(|entry| is_kept(sessions, *entry));
        }
    }

    fn insert(&mut self, place: Place, kept: Kept) {
        self.bytes += cost(&kept.reply);
        self.count += 1;
        self.queue.push_back((kept.age, place, kept.sequence));
        self.of(place).insert(kept);
    }

    fn drop_if_kept(&mut self, age: u64, place: Place, sequence: u64) {
        if is_kept(&self.sessions, (age, place, sequence)) {
            self.bytes -= self.of(place).remove(sequence);
            self.count -= 1;
        }
    }

    /// Everything that a snapshot holds; false if that is more than the bounds allow.
    pub(super) fn restore(&mut self, mut all: Vec<(Place, Kept)>) -> bool {
        all.sort_unstable_by_key(|(_, kept)| kept.age);
        for (place, kept) in all {
            if kept.age <= self.ages {
                return false;
            }
            self.ages = kept.age;
            self.insert(place, kept);
            if self.bytes_of(place) > self.limits.max_session_reply_bytes {
                return false;
            }
        }
        self.bytes <= self.limits.max_reply_bytes
    }
}

fn is_kept(sessions: &Pages<OfSession>, (age, place, sequence): (u64, Place, u64)) -> bool {
    let session = sessions.get(place);
    session
        .and_then(|session| session.find(sequence))
        .is_some_and(|kept| kept.age == age)
}
