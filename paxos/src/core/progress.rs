//! What a leader knows of each peer, and how much it sends to it: flow control.

use alloc::collections::VecDeque;
use core::time::Duration;

use super::{Checkpoint, rollback::Testimony};
use crate::planted;
use crate::types::{Slot, StorageId, Time};

/// How many heartbeats are remembered for telling what was lost before them.
const MAX_PROBES: usize = 16;

/// One peer as the leader sees it.
#[derive(Clone, Debug, Hash)]
pub(super) struct Progress {
    /// The disk that all of the following is about, once the peer has been heard.
    pub(super) storage: Option<StorageId>,
    /// The peer has durably accepted everything from the leader's start up to here at the leader's ballot...
    pub(super) matched: Slot,
    /// ...except that it claims nothing of the slots up to here, which it knew chosen.
    pub(super) unclaimed: Slot,
    /// The next slot to send.
    pub(super) next: Slot,
    /// Nothing is sent until the peer answers a later heartbeat than this one: the transport refused, or the connection
    /// broke.
    paused: Option<u64>,
    /// What is on the way: the last slot and the bytes of each message.
    in_flight: VecDeque<(Slot, usize)>,
    in_flight_bytes: usize,
    /// The oldest heartbeats that were sent and not answered, each with `next` at that time.
    probes: VecDeque<(u64, Slot)>,
    /// The oldest heartbeat that was sent and not answered, and when.
    asked: Option<(u64, Time)>,
    /// How long the last heartbeat that was answered took.
    answered_after: Duration,
    /// The highest heartbeat round answered.
    pub(super) answered: u64,
    /// When it was last heard, or when this leadership began.
    pub(super) contact: Time,
    /// Whether it was heard in this leadership.
    pub(super) heard: bool,
    /// When the newest heartbeat was sent for which it granted a lease.
    pub(super) granted: Option<Time>,
    /// Whether it could lead, as it said last.
    pub(super) ready: bool,
    /// The highest watermark that was sent.
    pub(super) told: Slot,
    /// The last round in which it said that it rests.
    pub(super) rests_in: u64,
    /// Its hash at the last slot that was compared; and whether it has ever been another one than this leader's.
    pub(super) compared: Checkpoint,
    pub(super) differs: bool,
    /// What it has said of its disk.
    pub(super) testimony: Testimony,
}

impl Progress {
    /// A peer of a leader that begins at `start` now: optimistic, it is sent everything at once.
    pub(super) const fn new(start: Slot, now: Time) -> Self {
        Self {
            storage: None,
            matched: Slot::ZERO,
            unclaimed: Slot::ZERO,
            next: start,
            paused: None,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            probes: VecDeque::new(),
            asked: None,
            answered_after: Duration::MAX,
            answered: 0,
            contact: now,
            heard: false,
            granted: None,
            ready: false,
            told: Slot::ZERO,
            rests_in: 0,
            compared: Checkpoint {
                slot: Slot::ZERO,
                hash: 0,
            },
            differs: false,
            testimony: Testimony::since(0),
        }
    }

    /// A peer that turned out to have another disk than was known.
    pub(super) fn of_disk(storage: StorageId, start: Slot, now: Time) -> Self {
        Self {
            storage: Some(storage),
            ..Self::new(start, now)
        }
    }

    /// Whether the peer has forgotten nothing that it had said to hold.
    pub(super) fn counts(&self) -> bool {
        self.testimony.lost.is_none() || planted::is("rolled_back_counts")
    }

    /// Whether the peer has accepted at the leader's ballot what that proposed for `slot`.
    pub(super) fn voted(&self, slot: Slot) -> bool {
        self.unclaimed < slot && slot <= self.matched
    }

    /// Whether the peer knows that everything up to `chosen` is chosen, is sent things, and has applied the same.
    pub(super) fn is_in_step(&self, chosen: Slot) -> bool {
        self.unclaimed >= chosen && self.paused.is_none() && !self.differs
    }

    /// Whether the transport takes messages to it, as far as is known.
    pub(super) const fn is_sent_things(&self) -> bool {
        self.paused.is_none()
    }

    /// Whether more may be sent.
    pub(super) const fn may_send(&self, max_in_flight_bytes: usize) -> bool {
        self.paused.is_none() && self.in_flight_bytes < max_in_flight_bytes
    }

    /// An `Accept` for the slots up to `upto` was sent.
    pub(super) fn sent(&mut self, upto: Slot, bytes: usize) {
        self.next = upto.next();
        self.in_flight.push_back((upto, bytes));
        self.in_flight_bytes += bytes;
    }

    /// A heartbeat is sent.
    pub(super) fn probe(&mut self, round: u64, now: Time) {
        self.asked.get_or_insert((round, now));
        if self.probes.len() < MAX_PROBES {
            self.probes.push_back((round, self.next));
        }
    }

    /// How long an answer takes: as long as the last one, or as the one that is missing.
    pub(super) fn answers_after(&self, now: Time) -> Duration {
        let missing = self.asked.map_or(Duration::ZERO, |(_, at)| now.since(at));
        self.answered_after.max(missing)
    }

    /// The peer has said something to this leader.
    pub(super) const fn heard_at(&mut self, now: Time) {
        self.contact = now;
        self.heard = true;
    }

    /// Sends nothing more until the peer has said what it has.
    pub(super) const fn pause(&mut self, last_heartbeat: u64) {
        self.paused = Some(last_heartbeat);
    }

    /// The peer's cumulative acknowledgement.
    pub(super) fn acknowledged(&mut self, upto: Slot, chosen: Slot) {
        self.matched = self.matched.max(upto);
        self.unclaimed = self.unclaimed.max(chosen);
        self.next = self.next.max(upto.next()).max(chosen.next());
        let done = upto.max(chosen);
        while let Some((last, bytes)) = self.in_flight.front().copied()
            && last <= done
        {
            self.in_flight.pop_front();
            self.in_flight_bytes -= bytes;
        }
    }

    /// The peer answered a heartbeat: everything up to `received` has arrived there; what was sent before that
    /// heartbeat and has not arrived is lost, and is sent again.
    pub(super) fn heartbeat_answered(&mut self, round: u64, received: Slot, now: Time) {
        if let Some((asked, at)) = self.asked
            && asked <= round
        {
            self.asked = None;
            self.answered_after = now.since(at);
        }
        let mut sent_before = None;
        while let Some((probe, next)) = self.probes.front().copied()
            && probe <= round
        {
            sent_before = Some(next);
            self.probes.pop_front();
        }
        let lost = sent_before.is_some_and(|next| received.next() < next);
        let resumed = self.paused.is_some_and(|last| round > last);
        if resumed || (lost && self.paused.is_none()) {
            self.paused = None;
            self.next = received.next();
            self.in_flight.clear();
            self.in_flight_bytes = 0;
            self.probes.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sent_before_the_heartbeat_counts_as_lost() {
        let mut peer = Progress::new(Slot(1), Time::default());
        peer.sent(Slot(3), 10);
        peer.probe(1, Time::default());
        peer.sent(Slot(5), 10);
        peer.heartbeat_answered(1, Slot(3), Time::default());
        assert_eq!(peer.next, Slot(6), "4 and 5 may still be on the way");
        peer.probe(2, Time::default());
        peer.heartbeat_answered(2, Slot(4), Time::default());
        assert_eq!(
            peer.next,
            Slot(5),
            "5 was sent before heartbeat 2 and did not arrive"
        );
    }

    #[test]
    fn a_paused_peer_is_sent_nothing_until_it_answers() {
        let mut peer = Progress::new(Slot(1), Time::default());
        peer.sent(Slot(9), 10);
        peer.pause(6);
        assert!(!peer.may_send(100));
        peer.heartbeat_answered(6, Slot(0), Time::default());
        assert!(!peer.may_send(100), "that heartbeat was sent before the refusal");
        peer.probe(7, Time::default());
        peer.heartbeat_answered(7, Slot(2), Time::default());
        assert!(peer.may_send(1));
        assert_eq!(peer.next, Slot(3));
    }

    #[test]
    fn slots_that_a_peer_knew_chosen_are_no_votes() {
        let mut peer = Progress::new(Slot(1), Time::default());
        peer.acknowledged(Slot(9), Slot(4));
        assert!(!peer.voted(Slot(4)) && peer.voted(Slot(5)) && peer.voted(Slot(9)) && !peer.voted(Slot(10)));
    }

    #[test]
    fn a_peer_is_as_quick_as_its_last_answer_and_slower_while_one_is_missing() {
        let at = |millis| Time(Duration::from_millis(millis));
        let mut peer = Progress::new(Slot(1), at(0));
        assert_eq!(
            peer.answers_after(at(0)),
            Duration::MAX,
            "it has not answered yet"
        );
        peer.probe(1, at(10));
        peer.probe(2, at(20));
        peer.heartbeat_answered(1, Slot(0), at(30));
        assert_eq!(peer.answers_after(at(90)), Duration::from_millis(20));
        peer.probe(3, at(100));
        assert_eq!(peer.answers_after(at(105)), Duration::from_millis(20));
        assert_eq!(peer.answers_after(at(150)), Duration::from_millis(50));
        peer.heartbeat_answered(3, Slot(0), at(150));
        peer.probe(4, at(200));
        peer.heartbeat_answered(4, Slot(0), at(201));
        assert_eq!(peer.answers_after(at(300)), Duration::from_millis(1));
    }
}
