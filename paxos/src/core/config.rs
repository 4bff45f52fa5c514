//! Bounds and times of a replica.

use core::time::Duration;

use super::Lease;

/// Bounds and times of one replica. Every bound is per group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// How often a leader tells its peers that it lives.
    pub heartbeat_interval: Duration,
    /// A follower that has heard nothing from its leader for this long, and up to twice as long (drawn at random),
    /// canvasses; a leader that has heard no quorum for this long steps down.
    pub election_timeout: Duration,
    /// After how many heartbeats in a row without anything to do a group rests: it says nothing until there is something
    /// to do. Only with a driver that watches the peers' nodes ([`Input::PeerAlive`](super::Input::PeerAlive)). 0: never.
    pub rest_after_heartbeats: u32,
    /// How many slots may be in flight, above the chosen watermark, beside those that a new leader inherits.
    pub max_window_entries: usize,
    /// How many bytes of entries may be in flight, above the chosen watermark; and how many may wait for this node's own
    /// disk before it takes no more.
    pub max_window_bytes: usize,
    /// How many commands may share an entry.
    pub max_batch_commands: usize,
    /// How many bytes of commands may share an entry; a single larger command travels alone.
    pub max_batch_bytes: usize,
    /// The largest command, in bytes.
    pub max_command_bytes: usize,
    /// How many commands of this node's users may be waiting or in flight.
    pub max_pending_commands: usize,
    /// How many bytes of commands of this node's users may be waiting or in flight.
    pub max_pending_bytes: usize,
    /// How many reads of this node's users may be waiting.
    pub max_pending_reads: usize,
    /// How many bytes of entries one message carries at the most (a single larger entry travels alone).
    pub max_message_bytes: usize,
    /// How many bytes of entries may be on the way to one peer without an answer.
    pub max_peer_inflight_bytes: usize,
    /// How many bytes of chosen entries are kept in memory for peers that are a little behind.
    pub max_cache_bytes: usize,
    /// How long the leader may wait for a message that carries an advanced watermark before it sends it alone. Nodes
    /// whose users wait for it are told at once.
    pub max_watermark_delay: Duration,
    /// Whether the driver keeps snapshots. Without, this replica takes none, trims nothing, and cannot follow peers that
    /// have trimmed what it lacks. A node sets it when it is given a place for snapshots.
    pub snapshots: bool,
    /// After how many applied entries the next snapshot is taken; 0 for never by count.
    pub snapshot_entries: u64,
    /// After how many bytes of applied entries the next snapshot is taken; 0 for never by bytes.
    pub snapshot_bytes: u64,
    /// How many entries are kept behind the newest snapshot at the most, so that peers which were away for a short time
    /// need no snapshot.
    pub keep_entries: u64,
    /// How many bytes of entries are kept behind the newest snapshot at the most, to within a thirtieth.
    pub keep_bytes: u64,
    /// How many further entries are kept for peers that are alive and still need them; further behind, they get a
    /// snapshot. For so many entries a new snapshot also waits while a peer fetches the last one.
    pub max_laggard_entries: u64,
    /// How many bytes of a snapshot one message carries.
    pub snapshot_chunk_bytes: usize,
    /// Whether each voter of the highest [priority](crate::types::Member::priority) shall lead its share of many groups:
    /// the group's id says which. A leader that is not the one hands over when things have been quiet for a while, unless a
    /// user has made it leader. Off by default.
    pub balance_leaders: bool,
    /// Whether leaders are granted leases, for reads without a round of heartbeats ([`Input::ReadByLease`]); off by
    /// default. Mind what [`Lease`] assumes of clocks, and that a leader whose connections break is replaced only when
    /// its lease is over.
    ///
    /// [`Input::ReadByLease`]: super::Input::ReadByLease
    pub lease: Option<Lease>,
    /// Whether commands proposed, and reads begun, on a node that is not leader are forwarded (or rejected with a
    /// hint). What a leader took is forwarded in any case when it is deposed.
    pub forward: bool,
    /// Whether the leader records the disk of each member in the membership once it has heard it, so that a disk that
    /// was lost is noticed: the node that comes back without it has no vote until it is admitted anew.
    pub pin_storages: bool,
    /// Whether the leader admits a member that has lost its disk anew, with the new disk, once it has caught up.
    pub readmit: bool,
    /// Whether the leader makes learners voters once they have caught up.
    pub promote_learners: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(100),
            election_timeout: Duration::from_millis(500),
            rest_after_heartbeats: 5,
            max_window_entries: 1_024,
            max_window_bytes: 32 << 20,
            max_batch_commands: 1_024,
            max_batch_bytes: 1 << 20,
            max_command_bytes: 16 << 20,
            max_pending_commands: 16_384,
            max_pending_bytes: 64 << 20,
            max_pending_reads: 65_536,
            max_message_bytes: 1 << 20,
            max_peer_inflight_bytes: 16 << 20,
            max_cache_bytes: 16 << 20,
            max_watermark_delay: Duration::from_millis(2),
            snapshots: false,
            snapshot_entries: 100_000,
            snapshot_bytes: 256 << 20,
            keep_entries: 10_000,
            keep_bytes: 64 << 20,
            max_laggard_entries: 100_000,
            snapshot_chunk_bytes: 1 << 20,
            balance_leaders: false,
            lease: None,
            forward: true,
            pin_storages: true,
            readmit: true,
            promote_learners: false,
        }
    }
}

/// A bound or interval that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} must be {expected}")]
pub struct ConfigError {
    /// The field of [`Config`].
    pub field: &'static str,
    /// What it must be.
    pub expected: &'static str,
}

impl Config {
    /// The most bytes of commands, entries or a snapshot that one message may carry.
    pub fn max_frame_bytes(&self) -> usize {
        // A message takes one entry, and a batch one command, of any size.
        self.max_message_bytes
            .max(self.max_batch_bytes)
            .max(self.max_command_bytes)
            .max(self.snapshot_chunk_bytes)
    }

    /// Whether a replica can work with these bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        let bounds = [
            ("max_window_entries", self.max_window_entries),
            ("max_window_bytes", self.max_window_bytes),
            ("max_batch_commands", self.max_batch_commands),
            ("max_batch_bytes", self.max_batch_bytes),
            ("max_command_bytes", self.max_command_bytes),
            ("max_pending_commands", self.max_pending_commands),
            ("max_pending_bytes", self.max_pending_bytes),
            ("max_pending_reads", self.max_pending_reads),
            ("max_message_bytes", self.max_message_bytes),
            ("max_peer_inflight_bytes", self.max_peer_inflight_bytes),
            ("snapshot_chunk_bytes", self.snapshot_chunk_bytes),
        ];
        if let Some((field, _)) = bounds.into_iter().find(|(_, bound)| *bound == 0) {
            return Err(ConfigError {
                field,
                expected: "at least 1",
            });
        }
        if self.heartbeat_interval.is_zero() {
            return Err(ConfigError {
                field: "heartbeat_interval",
                expected: "longer than nothing",
            });
        }
        if self.election_timeout < self.heartbeat_interval * 2 {
            return Err(ConfigError {
                field: "election_timeout",
                expected: "at least twice heartbeat_interval",
            });
        }
        let Some(lease) = self.lease else { return Ok(()) };
        if lease.duration < self.heartbeat_interval * 2 || lease.duration > self.election_timeout {
            return Err(ConfigError {
                field: "lease.duration",
                expected: "at least twice heartbeat_interval and at most election_timeout",
            });
        }
        if lease.max_drift_permille >= 1_000 {
            return Err(ConfigError {
                field: "lease.max_drift_permille",
                expected: "less than 1000",
            });
        }
        Ok(())
    }
}
