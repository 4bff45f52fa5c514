//! Slow operations, for the log: at most one line a second for each kind and group, so that a group which is slow all
//! the time is not made slower by saying so.

use std::time::Duration;

use tokio::time::Instant;

use super::Config;

/// How long nothing more is said of a kind.
const PAUSE: Duration = Duration::from_secs(1);

/// One kind of operations.
#[derive(Debug)]
pub(super) struct SlowLog {
    threshold: Duration,
    said: Option<Instant>,
    unsaid: u64,
}

/// The kinds of operations of a group.
#[derive(Debug)]
pub(super) struct SlowLogs {
    pub(super) proposals: SlowLog,
    pub(super) applies: SlowLog,
    pub(super) reads: SlowLog,
}

impl SlowLogs {
    pub(super) const fn new(config: &Config) -> Self {
        Self {
            proposals: SlowLog::new(config.slow_proposal),
            applies: SlowLog::new(config.slow_apply),
            reads: SlowLog::new(config.slow_read),
        }
    }
}

impl SlowLog {
    const fn new(threshold: Duration) -> Self {
        Self {
            threshold,
            said: None,
            unsaid: 0,
        }
    }

    /// An operation took so long. If that is to be said: how many other slow ones went unsaid before it.
    pub(super) fn note(&mut self, took: Duration, now: Instant) -> Option<u64> {
        if took < self.threshold {
            return None;
        }
        if self.said.is_some_and(|said| now.duration_since(said) < PAUSE) {
            self.unsaid += 1;
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slow_ones_are_said_once_a_second_and_the_others_are_counted() {
        let mut log = SlowLog::new(Duration::from_millis(10));
        let (fast, slow) = (Duration::from_millis(9), Duration::from_millis(10));
        let begin = Instant::now();
        assert_eq!(log.note(fast, begin), None);
        assert_eq!(log.note(slow, begin), Some(0));
        assert_eq!(log.note(slow, begin), None);
        assert_eq!(log.note(slow, begin + PAUSE / 2), None);
        assert_eq!(log.note(fast, begin + PAUSE), None);
        assert_eq!(log.note(slow, begin + PAUSE), Some(2));
        assert_eq!(log.note(slow, begin + PAUSE * 3), Some(0));
    }
}
