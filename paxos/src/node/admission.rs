//! Overload protection: which requests of users are let in.
//!
//! Everything that is let in and has not ended is *open*. What is open is bounded in number and bytes, which bounds
//! memory; and while the group is slower than its users want it to be, by a limit that follows its pace, which bounds the
//! wait. Whoever is refused hears so at once, with a time after which another try makes sense.
//!
//! The limit needs no rate set by hand. As in `CoDel` (Nichols and Jacobson, RFC 8289) the signal is the *least* delay
//! over an interval: many requests at once, or one slow write of the disk, leave some of them fast; a standing queue
//! leaves none. How many may be open then follows from Little's law: as many as are completed, at the best pace of late,
//! in the time that a request may take.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;

use crate::types::Time;

/// Requests and their bytes, packed so that one atomic operation counts both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    pub(super) count: usize,
    pub(super) bytes: usize,
}

impl Weight {
    const BYTES_BITS: u32 = 40;
    /// Of those, so many can be in use.
    const HELD_BITS: u32 = if usize::BITS < Self::BYTES_BITS {
        usize::BITS
    } else {
        Self::BYTES_BITS
    };

    /// The most that may ever be open: half of what can be counted, for what is about to be refused is counted first.
    pub(super) const MAX: Self = Self {
        count: 1 << (63 - Self::BYTES_BITS),
        bytes: 1 << (Self::HELD_BITS - 1),
    };

    pub(super) fn of(requests: &[Bytes]) -> Self {
        Self {
            count: requests.len(),
            bytes: requests.iter().map(Bytes::len).sum(),
        }
    }

    const fn packed(self) -> u64 {
        ((self.count as u64) << Self::BYTES_BITS) | self.bytes as u64
    }

    const fn unpacked(packed: u64) -> Self {
        Self {
            count: (packed >> Self::BYTES_BITS) as usize,
            bytes: (packed & ((1 << Self::BYTES_BITS) - 1)) as usize,
        }
    }
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// As many requests are open as ever may be.
    Full,
    /// As many bytes are open as ever may be.
    Bytes,
    /// As many requests are open as can be completed in good time.
    Delay,
    /// It could not be completed before its deadline.
    Deadline,
    /// The group has stopped.
    Stopped,
}

/// What the limiter has found out, for those who let requests in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// How many may be open.
    pub(super) limit: usize,
    /// The time between two completions.
    pub(super) each: Duration,
    /// What the fastest took of late.
    pub(super) fastest: Duration,
}

/// The open requests of one kind, of one group. Requests are let in by any thread, and end on the group's task.
#[derive(Debug)]
pub(super) struct Lane {
    open: AtomicU64,
    max: Weight,
    limit: AtomicUsize,
    each_nanos: AtomicU64,
    fastest_nanos: AtomicU64,
}

impl Lane {
    pub(super) const fn new(max: Weight) -> Self {
        Self {
            open: AtomicU64::new(0),
            max,
            limit: AtomicUsize::new(max.count),
            each_nanos: AtomicU64::new(0),
            fastest_nanos: AtomicU64::new(0),
        }
    }

    pub(super) fn open(&self) -> Weight {
        Weight::unpacked(self.open.load(Relaxed))
    }

    /// Lets in the first so many of `requests`, as there is room for, and says why not the others. When nothing is open
    /// the first is let in whatever it weighs.
    pub(super) fn admit(&self, requests: &[Bytes], timeout: Option<Duration>) -> (usize, Option<Refusal>) {
        let wanted = Weight::of(requests);
        let before = Weight::unpacked(self.open.fetch_add(wanted.packed(), Relaxed));
        if timeout.is_some_and(|timeout| self.expected_wait(before.count) > timeout) {
            self.ended(wanted);
            return (0, Some(Refusal::Deadline));
        }
        let limit = self.limit.load(Relaxed);
        if before.count + wanted.count <= limit && before.bytes + wanted.bytes <= self.max.bytes {
            return (wanted.count, None);
        }
        let (admitted, refusal) = self.first_that_fit(requests, before, limit);
        let (_, refused) = requests.split_at(admitted);
        self.ended(Weight::of(refused));
        (admitted, (!refused.is_empty()).then_some(refusal))
    }

    fn first_that_fit(&self, requests: &[Bytes], before: Weight, limit: usize) -> (usize, Refusal) {
        let mut open = before;
        for (index, request) in requests.iter().enumerate() {
            let refusal = if open.count >= limit {
                if limit < self.max.count {
                    Refusal::Delay
                } else {
                    Refusal::Full
                }
            } else if open.bytes + request.len() > self.max.bytes {
                Refusal::Bytes
            } else {
                open.count += 1;
                open.bytes += request.len();
                continue;
            };
            if open.count > 0 {
                return (index, refusal);
            }
            open.count += 1;
            open.bytes += request.len();
        }
        (requests.len(), Refusal::Full)
    }

    /// As [`admit`](Self::admit), all of them or none.
    pub(super) fn admit_together(
        &self,
        requests: &[Bytes],
        timeout: Option<Duration>,
    ) -> Result<(), Refusal> {
        let was_empty = self.open().count == 0;
        match self.admit(requests, timeout) {
            (_, None) => Ok(()),
            (admitted, Some(_)) if was_empty => {
                self.open
                    .fetch_add(Weight::of(requests.split_at(admitted).1).packed(), Relaxed);
                Ok(())
            }
            (admitted, Some(refusal)) => {
                self.ended(Weight::of(requests.split_at(admitted).0));
                Err(refusal)
            }
        }
    }

    /// Requests of this weight, which had ended, are open again: they were admitted once.
    pub(super) fn resumed(&self, weight: Weight) {
        self.open.fetch_add(weight.packed(), Relaxed);
    }

    /// Requests of this weight are open no longer. To be called before their users hear so, who may come again at once.
    pub(super) fn ended(&self, weight: Weight) {
        self.open.fetch_sub(weight.packed(), Relaxed);
    }

    /// From now on admits at this pace.
    pub(super) fn follow(&self, pace: Pace) {
        self.limit.store(pace.limit, Relaxed);
        self.each_nanos.store(nanos(pace.each), Relaxed);
        self.fastest_nanos.store(nanos(pace.fastest), Relaxed);
    }

    /// How long a request takes at the least if so many are before it: as the present pace has it, but not longer than
    /// the fastest took of late.
    fn expected_wait(&self, before: usize) -> Duration {
        let fastest = Duration::from_nanos(self.fastest_nanos.load(Relaxed));
        self.time_for(before).min(fastest)
    }

    /// At the pace of late.
    fn time_for(&self, requests: usize) -> Duration {
        let each = self.each_nanos.load(Relaxed);
        Duration::from_nanos(each.saturating_mul(requests as u64))
    }

    /// When another try makes sense: when about half of what is open now will have ended.
    pub(super) fn retry_after(&self) -> Duration {
        if self.each_nanos.load(Relaxed) == 0 {
            return UNKNOWN_PACE;
        }
        let half = self.time_for(self.open().count / 2);
        half.clamp(Duration::from_millis(5), Duration::from_secs(1))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// When to try again if nothing has ever been completed.
const UNKNOWN_PACE: Duration = Duration::from_millis(100);
/// The shortest interval over which delays are looked at.
const INTERVAL: Duration = Duration::from_millis(100);
/// So few requests are let in whatever the pace: each may be needed to notice that it has changed.
const MIN_LIMIT: usize = 64;
/// How long the least delay ever seen counts as what a request takes without a queue.
const BASE_LASTS: Duration = Duration::from_secs(30);

/// Finds out how many requests may be open, from when they end. On the group's task.
#[derive(Debug)]
pub(super) struct Limiter {
    target: Duration,
    max: usize,
    limit: usize,
    began: Time,
    completed: usize,
    fastest: Duration,
    /// When it will be known what came of the last change.
    settled_at: Time,
    /// Even the fastest of the interval before took too long: the pace since then is all that the group can do.
    was_slow: bool,
    /// The best of late, in completions per second.
    pace: f64,
    base: Base,
}

/// What a request takes without a queue: the least delay of the last half to one minute.
#[derive(Debug)]
struct Base {
    least: Duration,
    /// Since `began`: takes over when `least` is too old.
    next: Duration,
    began: Time,
}

impl Base {
    fn note(&mut self, now: Time, delay: Duration, may_forget: bool) {
        self.least = self.least.min(delay);
        self.next = self.next.min(delay);
        if may_forget && now.since(self.began) >= BASE_LASTS {
            *self = Self {
                least: self.next,
                next: delay,
                began: now,
            };
        }
    }
}

impl Limiter {
    /// Aims at delays of `target`; never lets in more than `max`.
    pub(super) fn new(target: Duration, max: usize, now: Time) -> Self {
        Self {
            target,
            max,
            limit: max,
            began: now,
            completed: 0,
            fastest: Duration::MAX,
            settled_at: now,
            was_slow: false,
            pace: 0.0,
            base: Base {
                least: Duration::MAX,
                next: Duration::MAX,
                began: now,
            },
        }
    }

    /// Requests have been completed, the fastest of them in `fastest`; `open` still are open. Says so if an interval has
    /// ended and with it the pace may have changed.
    pub(super) fn completed(
        &mut self,
        now: Time,
        count: usize,
        fastest: Duration,
        open: usize,
    ) -> Option<Pace> {
        self.completed += count;
        self.fastest = self.fastest.min(fastest);
        let elapsed = now.since(self.began);
        if elapsed < INTERVAL {
            return None;
        }
        let rate = self.completed as f64 / elapsed.as_secs_f64();
        let fastest = std::mem::replace(&mut self.fastest, Duration::MAX);
        self.began = now;
        self.completed = 0;
        self.pace = rate.max(self.pace * 0.9);
        self.adjust(now, fastest, open);
        Some(Pace {
            limit: self.limit,
            each: Duration::from_secs_f64(1.0 / self.pace.max(1e-3)),
            fastest,
        })
    }

    fn adjust(&mut self, now: Time, fastest: Duration, open: usize) {
        // Under overload there is no telling a slower network from a queue.
        self.base.note(now, fastest, self.limit == self.max);
        let bearable = self.target.max(self.base.least.saturating_mul(2));
        let is_slow = fastest > bearable && open >= MIN_LIMIT;
        if is_slow && self.was_slow {
            let in_good_time = (self.pace * bearable.as_secs_f64()) as usize;
            let limit = in_good_time.min(self.limit).max(MIN_LIMIT).min(self.max);
            if limit < self.limit {
                self.limit = limit;
                self.settled_at = now.plus(fastest);
            }
        } else if !is_slow && now >= self.settled_at {
            self.limit = (self.limit + self.limit / 8 + 1).min(self.max);
            self.settled_at = now.plus(fastest.min(self.target));
        }
        self.was_slow = is_slow;
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, vec, vec::Vec};

    use super::*;

    const TARGET: Duration = Duration::from_millis(500);
    const STEP: Duration = Duration::from_millis(5);

    fn requests(sizes: &[usize]) -> Vec<Bytes> {
        sizes.iter().map(|size| vec![0; *size].into()).collect()
    }

    fn lane(count: usize, bytes: usize) -> Lane {
        Lane::new(Weight { count, bytes })
    }

    #[test]
    fn the_beginning_of_a_burst_is_let_in_as_far_as_there_is_room() {
        let lane = lane(3, 100);
        assert_eq!(lane.admit(&requests(&[10, 10]), None), (2, None));
        assert_eq!(lane.admit(&requests(&[10, 10]), None), (1, Some(Refusal::Full)));
        assert_eq!(lane.open(), Weight { count: 3, bytes: 30 });
        lane.ended(Weight { count: 2, bytes: 20 });
        assert_eq!(lane.admit(&requests(&[80, 20]), None), (1, Some(Refusal::Bytes)));
        lane.ended(lane.open());
        assert_eq!(
            lane.admit(&requests(&[500]), None),
            (1, None),
            "alone it is let in"
        );
        assert_eq!(lane.admit(&requests(&[1]), None), (0, Some(Refusal::Bytes)));
        lane.ended(lane.open());
        assert_eq!(lane.open(), Weight::default());
    }

    #[test]
    fn reads_of_one_burst_are_let_in_together_or_not_at_all() {
        let lane = lane(3, 100);
        assert_eq!(
            lane.admit_together(&requests(&[1; 5]), None),
            Ok(()),
            "alone they are let in"
        );
        assert_eq!(lane.open(), Weight { count: 5, bytes: 5 });
        lane.ended(lane.open());
        assert_eq!(lane.admit_together(&requests(&[1; 2]), None), Ok(()));
        assert_eq!(lane.admit_together(&requests(&[1; 2]), None), Err(Refusal::Full));
        assert_eq!(lane.open(), Weight { count: 2, bytes: 2 });
    }

    #[test]
    fn what_cannot_be_in_time_is_refused_at_once_unless_nothing_is_open() {
        let lane = lane(1_000, 1_000);
        lane.follow(Pace {
            limit: 1_000,
            each: Duration::from_millis(10),
            fastest: Duration::from_millis(300),
        });
        let in_time = |millis| lane.admit(&requests(&[0]), Some(Duration::from_millis(millis)));
        assert_eq!(in_time(1), (1, None));
        assert_eq!(in_time(1), (0, Some(Refusal::Deadline)));
        assert_eq!(in_time(10), (1, None));
        assert_eq!(lane.admit(&requests(&[0; 500]), None), (500, None));
        assert_eq!(in_time(299), (0, Some(Refusal::Deadline)));
        assert_eq!(in_time(300), (1, None), "some were that fast of late");
        assert_eq!(lane.retry_after(), Duration::from_secs(1));
    }

    /// A server that does one request after the other, and its users.
    struct World {
        lane: Lane,
        limiter: Limiter,
        now: Duration,
        queue: VecDeque<Duration>,
        /// What a request takes beside its turn.
        base: Duration,
        admitted: usize,
        refused: usize,
        completed: usize,
        /// The longest of late.
        slowest: Duration,
    }

    impl World {
        fn new() -> Self {
            let max = 16_384;
            Self {
                lane: lane(max, usize::MAX >> 30),
                limiter: Limiter::new(TARGET, max, Time::default()),
                now: Duration::ZERO,
                queue: VecDeque::new(),
                base: Duration::from_millis(2),
                admitted: 0,
                refused: 0,
                completed: 0,
                slowest: Duration::ZERO,
            }
        }

        fn arrive(&mut self, count: usize) {
            let (admitted, _) = self.lane.admit(&vec![Bytes::new(); count], None);
            self.queue.extend(vec![self.now; admitted]);
            self.admitted += admitted;
            self.refused += count - admitted;
        }

        /// One step of time in which the server can do so many; returns how many it did.
        fn serve(&mut self, capacity: usize) -> usize {
            self.now += STEP;
            let (mut done, mut fastest) = (0, Duration::MAX);
            while done < capacity
                && let Some(since) = self.queue.pop_front_if(|since| self.now >= *since + self.base)
            {
                let took = self.now.saturating_sub(since);
                fastest = fastest.min(took);
                self.slowest = self.slowest.max(took);
                done += 1;
            }
            self.lane.ended(Weight {
                count: done,
                bytes: 0,
            });
            let open = self.lane.open().count;
            if done > 0
                && let Some(pace) = self.limiter.completed(Time(self.now), done, fastest, open)
            {
                self.lane.follow(pace);
            }
            self.completed += done;
            done
        }

        fn forget(&mut self) {
            (self.admitted, self.refused, self.completed, self.slowest) = (0, 0, 0, Duration::ZERO);
        }

        fn offer(&mut self, seconds: u32, arrivals: usize, capacity: usize) {
            for _ in 0..seconds * 200 {
                self.arrive(arrivals);
                self.serve(capacity);
            }
        }
    }

    #[test]
    fn ten_times_too_much_is_served_at_full_pace_with_a_bounded_wait() {
        let mut world = World::new();
        world.offer(10, 100, 10);
        world.forget();
        world.offer(120, 100, 10);
        assert_eq!(world.completed, 120 * 200 * 10, "the server never idles");
        assert!(world.slowest < TARGET * 2, "{:?}", world.slowest);
        assert!(world.slowest > TARGET / 2, "{:?}", world.slowest);
    }

    #[test]
    fn many_clients_that_wait_for_their_answers_are_no_overload() {
        let mut world = World::new();
        world.arrive(16_000);
        for _ in 0..60 * 200 {
            let done = world.serve(200);
            world.arrive(done);
        }
        assert_eq!(world.refused, 0);
    }

    #[test]
    fn a_stall_or_a_burst_is_no_overload() {
        let mut world = World::new();
        for _ in 0..30 {
            world.offer(2, 10, 20);
            // The disk stops for a second; then there is a burst.
            world.offer(1, 10, 0);
            world.offer(1, 10, 60);
            world.arrive(5_000);
            world.offer(2, 10, 60);
        }
        assert_eq!(world.refused, 0);
    }

    #[test]
    fn a_slow_network_is_no_overload() {
        let mut world = World::new();
        world.base = Duration::from_millis(800);
        world.offer(60, 20, 40);
        assert_eq!(world.refused, 0);
    }

    #[test]
    fn a_network_that_becomes_slower_than_the_target_under_overload_costs_no_more_than_in_proportion() {
        let mut world = World::new();
        world.offer(20, 100, 10);
        world.base = Duration::from_millis(900);
        world.offer(30, 100, 10);
        world.forget();
        world.offer(30, 100, 10);
        let share = TARGET.as_secs_f64() / world.base.as_secs_f64();
        let at_least = 30.0 * 200.0 * 10.0 * share * 0.8;
        assert!(
            world.completed as f64 > at_least,
            "{} of {at_least}",
            world.completed
        );
    }

    #[test]
    fn when_the_overload_ends_everything_is_let_in_again() {
        let mut world = World::new();
        world.offer(20, 100, 10);
        assert!(world.limiter.limit < 2_000);
        world.offer(10, 5, 100);
        world.forget();
        world.arrive(16_000);
        world.offer(5, 5, 200);
        assert_eq!(world.refused, 0);
    }
}
