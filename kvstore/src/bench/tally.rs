//! What is counted while the load runs.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

/// The longest time that is told apart from longer ones, in microseconds: ten minutes.
const MAX_MICROS: u64 = 600_000_000;
/// Errors of more kinds than this share one.
const MAX_KINDS: usize = 32;

/// What everybody may look at while the load runs.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) commands: AtomicU64,
    pub(super) errors: AtomicU64,
}

/// What one thread has counted. Rates count what *ended* within the measured time, times what was *due* within it.
#[derive(Debug)]
pub(super) struct Tally {
    measured: Range<Instant>,
    pub(super) writes: u64,
    pub(super) reads: u64,
    /// Commands that were due.
    pub(super) due: u64,
    /// Commands of which no connection could take any more when they were due.
    pub(super) unsent: u64,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) first_error: Option<String>,
    /// Of commands that were answered well, in microseconds.
    pub(super) latency: Histogram<u64>,
    /// Of commands that were answered with an error, in microseconds.
    pub(super) error_latency: Histogram<u64>,
    /// Commands answered well in each second.
    pub(super) timeline: Vec<u64>,
}

impl Tally {
    pub(super) fn new(measured: Range<Instant>) -> Self {
        let histogram =
            || Histogram::new_with_bounds(1, MAX_MICROS, 3).expect("the bounds are constants that fit");
        Self {
            measured,
            writes: 0,
            reads: 0,
            due: 0,
            unsent: 0,
            errors: BTreeMap::new(),
            first_error: None,
            latency: histogram(),
            error_latency: histogram(),
            timeline: Vec::new(),
        }
    }

    pub(super) fn due(&mut self, from: Instant, count: u64) {
        if self.measured.contains(&from) {
            self.due += count;
        }
    }

    pub(super) fn unsent(&mut self, from: Instant, count: u64) {
        if self.measured.contains(&from) {
            self.unsent += count;
        }
    }

    /// A command that was due at `from` was answered well.
    pub(super) fn done(&mut self, from: Instant, now: Instant, is_read: bool, live: &Live) {
        if self.measured.contains(&now) {
            *(if is_read {
                &mut self.reads
            } else {
                &mut self.writes
            }) += 1;
            let second = now.duration_since(self.measured.start).as_secs() as usize;
            if self.timeline.len() <= second {
                self.timeline.resize(second + 1, 0);
            }
            self.timeline[second] += 1;
        }
        if self.measured.contains(&from) {
            self.latency.saturating_record(micros(now.duration_since(from)));
        }
        live.commands.fetch_add(1, Relaxed);
    }

    /// Commands that were due at `from` ended otherwise. `text` begins with the kind of the error.
    pub(super) fn failed(&mut self, from: Instant, now: Instant, count: u64, text: &str, live: &Live) {
        live.errors.fetch_add(count, Relaxed);
        if !self.measured.contains(&from) {
            return;
        }
        let kind = text.split_ascii_whitespace().next().unwrap_or("ERR");
        if let Some(errors) = self.errors.get_mut(kind) {
            *errors += count;
        } else {
            let kind = if self.errors.len() < MAX_KINDS {
                kind
            } else {
                "other"
            };
            *self.errors.entry(kind.to_owned()).or_default() += count;
        }
        if self.first_error.is_none() {
            self.first_error = Some(text.to_owned());
        }
        let took = micros(now.saturating_duration_since(from));
        let _ = self.error_latency.record_n(took.clamp(1, MAX_MICROS), count);
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.writes += other.writes;
        self.reads += other.reads;
        self.due += other.due;
        self.unsent += other.unsent;
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        if self.first_error.is_none() {
            self.first_error.clone_from(&other.first_error);
        }
        let _ = self.latency.add(&other.latency);
        let _ = self.error_latency.add(&other.error_latency);
        let seconds = self.timeline.len().max(other.timeline.len());
        self.timeline.resize(seconds, 0);
        for (second, commands) in self.timeline.iter_mut().zip(&other.timeline) {
            *second += commands;
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_count_what_ended_in_time_and_latencies_what_was_due_in_time() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let live = Live::default();
        let mut tally = Tally::new(at(1_000)..at(3_000));
        tally.done(at(900), at(1_100), false, &live);
        tally.done(at(1_200), at(2_200), true, &live);
        tally.done(at(2_900), at(5_900), false, &live);
        tally.failed(at(100), at(1_500), 1, "BUSY before it counts", &live);
        tally.failed(at(1_500), at(1_600), 3, "BUSY retry", &live);
        assert_eq!((tally.writes, tally.reads), (1, 1));
        assert_eq!(tally.latency.len(), 2);
        assert!(
            tally.latency.max() >= 2_999_000,
            "the last one waited three seconds"
        );
        assert_eq!(tally.timeline, [1, 1]);
        assert_eq!(tally.errors, BTreeMap::from([("BUSY".to_owned(), 3)]));
        assert_eq!(tally.first_error.as_deref(), Some("BUSY retry"));
        assert_eq!(live.errors.load(Relaxed), 4);
    }

    #[test]
    fn a_server_of_endless_kinds_of_errors_fills_no_memory() {
        let start = Instant::now();
        let mut tally = Tally::new(start..start + Duration::from_secs(1));
        for kind in 0..1_000 {
            tally.failed(start, start, 1, &format!("E{kind} x"), &Live::default());
        }
        assert_eq!(tally.errors.values().sum::<u64>(), 1_000);
        assert!(tally.errors.len() <= MAX_KINDS + 1);
    }
}
