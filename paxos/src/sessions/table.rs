//! Which sessions live, and which of their sequences have been executed.
//!
//! Nothing here depends on the machine's replies: so it is settled for a whole run of commands, before the machine
//! executes any of them, which of them it is to execute.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use std::collections::HashMap;

use super::{
    Limits,
    pages::Pages,
    wire::{Answer, Call, SessionId},
};

/// The group's clock stops here, in the year 10889: a stamp cannot make the ids run out.
pub(super) const MAX_CLOCK_MS: u64 = 1 << 48;
/// Stamps move the group's clock by what passes between them, if that is not more: else nobody has used a session
/// meanwhile, or a client's clock was set.
const MAX_PAUSE_MS: u64 = 60_000;
/// No session lives for less.
const MIN_TTL_MS: u64 = 1_000;

/// How a client's clock reads against the group's. Only the passing of its time counts, not which time it shows: clocks
/// that are wrong by years pass time as well as others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pace {
    /// By how much the group's clock was ahead of the client's, and [`MAX_CLOCK_MS`].
    pub(super) lead_ms: u64,
}

impl Pace {
    /// Of a client whose stamp comes while the group's clock shows `clock_ms`.
    fn new(stamp_ms: u64, clock_ms: u64) -> Self {
        Self {
            lead_ms: MAX_CLOCK_MS + clock_ms - stamp_ms.min(MAX_CLOCK_MS),
        }
    }

    /// What the group's clock shows after this stamp.
    fn advance(&mut self, stamp_ms: u64, clock_ms: u64) -> u64 {
        let now = (stamp_ms.min(MAX_CLOCK_MS) + self.lead_ms).saturating_sub(MAX_CLOCK_MS);
        if now.saturating_sub(clock_ms) > MAX_PAUSE_MS {
            *self = Self::new(stamp_ms, clock_ms);
            return clock_ms;
        }
        clock_ms.max(now.min(MAX_CLOCK_MS))
    }
}

/// Where a session is in the table, and its replies in [`Replies`](super::replies::Replies). Used again for another
/// session when it has ended.
pub(super) type Place = u32;

#[derive(Clone, Debug, Default)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) ttl_ms: u64,
    /// The group's clock when it was last used.
    pub(super) used_ms: u64,
    /// Of its client.
    pub(super) pace: Pace,
    /// When it was last used among all sessions; [`Table::insert`] sets it.
    pub(super) used: u64,
    pub(super) acked: u64,
    /// Everything below has been executed or given up.
    pub(super) next: u64,
    /// What has been executed above `next`.
    pub(super) ahead: BTreeSet<u64>,
}

impl Session {
    fn is_executed(&self, sequence: u64) -> bool {
        sequence < self.next || self.ahead.contains(&sequence)
    }

    fn ack(&mut self, acked: u64) {
        if acked > self.acked {
            self.acked = acked;
            if acked > self.next {
                self.next = acked;
                self.ahead = self.ahead.split_off(&acked);
                self.catch_up();
            }
        }
    }

    fn execute(&mut self, sequence: u64) {
        if sequence == self.next {
            self.next += 1;
            self.catch_up();
        } else {
            self.ahead.insert(sequence);
        }
    }

    fn catch_up(&mut self) {
        while !self.ahead.is_empty() && self.ahead.remove(&self.next) {
            self.next += 1;
        }
    }
}

/// What is to be done for a command, and in this order for the commands of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The machine's next reply is its answer.
    Execute { place: Place, sequence: u64, acked: u64 },
    /// It was executed before, in this run or an earlier one.
    Repeat { place: Place, sequence: u64, acked: u64 },
    /// The machine's next reply is its answer, and nobody will ask again.
    Bare,
    /// The machine is not concerned.
    Answer(Answer),
    /// A session has ended, no answer.
    Forget(Place),
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    limits: Limits,
    /// 0 until a session is opened.
    pub(super) clock_ms: u64,
    /// Of those who open sessions, taken together.
    pub(super) opening: Pace,
    /// The last id that was given out.
    pub(super) last_id: SessionId,
    /// Counts the uses of sessions.
    uses: u64,
    places: HashMap<SessionId, Place>,
    /// Those that have ended have the id zero, which is never given out.
    pub(super) sessions: Pages<Session>,
    free: Vec<Place>,
    /// All places below have been used.
    next_place: Place,
    /// The living sessions, the least recently used first.
    by_use: BTreeMap<u64, Place>,
    /// The session that was used last: it is used again, as a rule.
    recent: Option<Place>,
}

impl Table {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            clock_ms: 0,
            opening: Pace::default(),
            last_id: SessionId(0),
            uses: 0,
            places: HashMap::new(),
            sessions: Pages::new(),
            free: Vec::new(),
            next_place: 0,
            by_use: BTreeMap::new(),
            recent: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_use.len()
    }

    fn session(&self, place: Place) -> &Session {
        let session = self.sessions.get(place);
        session.expect("a place is given out when its session is written")
    }

    pub(super) fn contains(&self, id: SessionId) -> bool {
        self.places.contains_key(&id)
    }

    /// Adds a session as the most recently used one.
    pub(super) fn insert(&mut self, session: Session) -> Place {
        let place = self.free.pop().unwrap_or(self.next_place);
        self.next_place = self.next_place.max(place + 1);
        self.uses += 1;
        self.places.insert(session.id, place);
        self.by_use.insert(self.uses, place);
        *self.sessions.get_mut(place) = Session {
            used: self.uses,
            ..session
        };
        self.recent = Some(place);
        place
    }

    fn remove(&mut self, place: Place, steps: &mut Vec<Step>) {
        let session = core::mem::take(self.sessions.get_mut(place));
        self.places.remove(&session.id);
        self.by_use.remove(&session.used);
        self.free.push(place);
        self.recent = None;
        steps.push(Step::Forget(place));
    }

    fn is_expired(&self, place: Place) -> bool {
        let session = self.session(place);
        self.clock_ms - session.used_ms > session.ttl_ms
    }

    /// The place of a living session, after its client's stamp has passed time; one that has expired is removed.
    fn find(&mut self, id: SessionId, stamp_ms: u64, steps: &mut Vec<Step>) -> Option<Place> {
        let place = match self.recent {
            Some(recent) if self.session(recent).id == id => recent,
            _ => *self.places.get(&id)?,
        };
        let session = self.sessions.get_mut(place);
        self.clock_ms = session.pace.advance(stamp_ms, self.clock_ms);
        if self.is_expired(place) {
            self.remove(place, steps);
            return None;
        }
        Some(place)
    }

    /// Opens a session, after those that have expired, or had to make room, have gone.
    pub(super) fn open(&mut self, ttl_ms: u64, stamp_ms: u64, steps: &mut Vec<Step>) {
        if self.clock_ms == 0 {
            self.clock_ms = stamp_ms.clamp(1, MAX_CLOCK_MS);
            self.opening = Pace::new(stamp_ms, self.clock_ms);
        }
        self.clock_ms = self.opening.advance(stamp_ms, self.clock_ms);
        while let Some(oldest) = self.by_use.first_key_value().map(|(_, place)| *place)
            && (self.len() >= self.limits.max_sessions || self.is_expired(oldest))
        {
            self.remove(oldest, steps);
        }
        // Higher than all before it, and above those of a group that had this group's id in an earlier life.
        self.last_id = SessionId(self.clock_ms.max(self.last_id.0 + 1));
        self.insert(Session {
            id: self.last_id,
            ttl_ms: ttl_ms.clamp(MIN_TTL_MS, self.limits.max_ttl_ms.max(MIN_TTL_MS)),
            used_ms: self.clock_ms,
            pace: Pace::new(stamp_ms, self.clock_ms),
            acked: 1,
            next: 1,
            ..Session::default()
        });
        steps.push(Step::Answer(Answer::Opened(self.last_id)));
    }

    pub(super) fn close(&mut self, id: SessionId, stamp_ms: u64, steps: &mut Vec<Step>) {
        if let Some(place) = self.find(id, stamp_ms, steps) {
            self.remove(place, steps);
        }
        steps.push(Step::Answer(Answer::Closed));
    }

    pub(super) fn call(&mut self, call: &Call, steps: &mut Vec<Step>) {
        let Some(place) = self.find(call.session, call.stamp_ms, steps) else {
            return steps.push(Step::Answer(Answer::Expired));
        };
        self.touch(place);
        let max_window = self.limits.max_window;
        let session = self.sessions.get_mut(place);
        let (sequence, acked) = (call.sequence, session.acked.max(call.acked));
        if sequence < acked {
            return steps.push(Step::Answer(Answer::Stale));
        }
        let end = acked.saturating_add(max_window);
        if sequence >= end {
            return steps.push(Step::Answer(Answer::BeyondWindow { end }));
        }
        session.ack(acked);
        steps.push(if session.is_executed(sequence) {
            Step::Repeat {
                place,
                sequence,
                acked,
            }
        } else {
            session.execute(sequence);
            Step::Execute {
                place,
                sequence,
                acked,
            }
        });
    }

    fn touch(&mut self, place: Place) {
        let (clock_ms, newest) = (self.clock_ms, self.uses);
        let session = self.sessions.get_mut(place);
        session.used_ms = clock_ms;
        self.recent = Some(place);
        if session.used != newest {
            self.by_use.remove(&session.used);
            self.uses += 1;
            session.used = self.uses;
            self.by_use.insert(self.uses, place);
        }
    }
}
