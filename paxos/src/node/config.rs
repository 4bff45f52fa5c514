//! How a node runs.

use std::{format, string::String, time::Duration};

use super::admission::Weight;
use crate::core;

/// How a node runs. Every bound is per group unless it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bounds and times of every replica.
    pub replica: core::Config,
    /// How many bytes of queries of this node's users may be waiting for their answers. Commands are bounded by
    /// [`max_pending_commands`](core::Config::max_pending_commands) and
    /// [`max_pending_bytes`](core::Config::max_pending_bytes), reads also by
    /// [`max_pending_reads`](core::Config::max_pending_reads).
    pub max_pending_read_bytes: usize,
    /// How long commands and reads may take under overload. While even the fastest take longer, and longer than twice
    /// what the fastest took before the overload, no more are let in than of late were completed in this time; the others
    /// are refused at once. [`Duration::MAX`] turns that off.
    pub target_delay: Duration,
    /// How many bytes of peers' messages may wait for the group's task.
    pub max_inbox_bytes: usize,
    /// How long a transport is kept waiting for a group whose inbox is full, before the group's messages are dropped
    /// until it has caught up.
    pub max_inbox_wait: Duration,
    /// How many commands and reads, and how many messages, the group's task takes in before it acts on them. The last
    /// burst is taken in whole.
    pub max_turn_inputs: usize,
    /// How many bytes of chosen commands, about 100 for each and what they carry, may wait for a state machine that is
    /// slower than the log. While there are more, the group's task does nothing but apply, and its heartbeats may be
    /// late; 0: it always applies everything at once.
    pub max_unapplied_bytes: usize,
    /// How many bytes of entries one merged write of the store may hold, over all groups (a single larger write goes
    /// alone).
    pub max_write_bytes: usize,
    /// A read that is not answered within this time ends [`Expired`](crate::ReadError::Expired).
    pub read_timeout: Duration,
    /// How long a node that is shut down tries to hand the groups that it leads to other nodes; zero: it does not try. A
    /// hand-over costs the group a pause of about two message rounds and three disk writes, its lack an election
    /// timeout.
    pub max_hand_over: Duration,
    /// The outcome of a membership change that is not complete within this time is unknown.
    pub change_timeout: Duration,
    /// A write of the store that takes longer is logged.
    pub slow_sync: Duration,
    /// A proposal whose reply takes longer is logged with its id; at most one a second for each group.
    pub slow_proposal: Duration,
    /// A run of the state machine's `apply` that takes longer is logged; at most one a second for each group.
    pub slow_apply: Duration,
    /// A linearizable read that takes longer is logged; at most one a second for each group.
    pub slow_read: Duration,
    /// Whether the store has a thread of its own (the default). Without one it runs as a task of the node's runtime, and
    /// each of its calls that blocks stops everything else there: for stores in memory, and for tests whose clock is
    /// paused. The same goes for work on snapshots, which otherwise is done on the runtime's threads for blocking calls.
    pub storage_thread: bool,
    /// How many bytes of snapshots the node sends to its peers in a second, over all groups and peers; 0 for no bound.
    pub max_snapshot_bytes_per_second: u64,
    /// How fast the node reads its logs in the background, in bytes of entries a second over all groups, in search of
    /// damaged records, which the peers then repair; 0: not at all. It reads what the store reads: a record that the
    /// system's cache still holds is found sound whatever the disk has become.
    pub scrub_bytes_per_second: u64,
    /// How often all logs are read so. If one round takes longer, the next one begins at its end.
    pub scrub_interval: Duration,
    /// Seeds the randomness of all replicas (election timeouts); `None` draws a seed.
    pub seed: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            replica: core::Config::default(),
            max_pending_read_bytes: 16 << 20,
            target_delay: Duration::from_secs(1),
            max_inbox_bytes: 64 << 20,
            max_inbox_wait: Duration::from_millis(50),
            max_turn_inputs: 1_024,
            max_unapplied_bytes: 32 << 20,
            max_write_bytes: 8 << 20,
            read_timeout: Duration::from_secs(5),
            max_hand_over: Duration::from_secs(1),
            change_timeout: Duration::from_secs(10),
            slow_sync: Duration::from_secs(1),
            slow_proposal: Duration::from_secs(1),
            slow_apply: Duration::from_millis(250),
            slow_read: Duration::from_secs(1),
            storage_thread: true,
            max_snapshot_bytes_per_second: 64 << 20,
            scrub_bytes_per_second: 1 << 20,
            scrub_interval: Duration::from_hours(1),
            seed: None,
        }
    }
}

impl Config {
    /// What is wrong with this configuration, and what to write instead.
    pub(super) fn check(&self) -> Result<(), String> {
        self.replica.check().map_err(|error| format!("replica.{error}"))?;
        let counts = [
            ("max_pending_read_bytes", self.max_pending_read_bytes),
            ("max_inbox_bytes", self.max_inbox_bytes),
            ("max_turn_inputs", self.max_turn_inputs),
            ("max_write_bytes", self.max_write_bytes),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, value)| *value == 0) {
            return Err(format!(
                "{name} is 0: nothing could ever be done; set it to at least 1"
            ));
        }
        let Weight { count, bytes } = Weight::MAX;
        let replica = &self.replica;
        let bounds = [
            (
                "replica.max_pending_commands",
                replica.max_pending_commands,
                count,
            ),
            ("replica.max_pending_reads", replica.max_pending_reads, count),
            ("replica.max_pending_bytes", replica.max_pending_bytes, bytes),
            ("max_pending_read_bytes", self.max_pending_read_bytes, bytes),
        ];
        if let Some((name, value, max)) = bounds.iter().find(|(_, value, max)| value > max) {
            return Err(format!("{name} is {value}: set it to at most {max}"));
        }
        let (rate, chunk) = (
            self.max_snapshot_bytes_per_second,
            self.replica.snapshot_chunk_bytes,
        );
        if rate != 0 && rate < chunk as u64 {
            return Err(format!(
                "max_snapshot_bytes_per_second is {rate}, less than one chunk (replica.snapshot_chunk_bytes, {chunk}): \
                 whoever waits for it would think that this node is gone; raise it, or set it to 0 for no bound"
            ));
        }
        if self.scrub_bytes_per_second > 0 && self.scrub_interval.is_zero() {
            return Err(
                "scrub_interval is 0: the node would do nothing else than read its logs; set it to an hour, say, or \
                 turn the scrub off with scrub_bytes_per_second = 0"
                    .into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_that_cannot_be_counted_are_refused() {
        assert_eq!(Config::default().check(), Ok(()));
        let mut config = Config::default();
        config.replica.max_pending_commands = 1 << 24;
        let refused = config.check().unwrap_err();
        assert!(
            refused.contains("replica.max_pending_commands is 16777216: set it to at most"),
            "{refused}"
        );
        let config = Config {
            max_pending_read_bytes: usize::MAX,
            ..Config::default()
        };
        assert!(config.check().is_err());
    }

    #[test]
    fn a_scrub_without_a_pause_is_refused() {
        let config = Config {
            scrub_interval: Duration::ZERO,
            ..Config::default()
        };
        let refused = config.check().unwrap_err();
        assert!(refused.contains("scrub_interval is 0"), "{refused}");
        let off = Config {
            scrub_bytes_per_second: 0,
            ..config
        };
        assert_eq!(off.check(), Ok(()));
    }
}
