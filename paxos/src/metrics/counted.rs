//! What groups and nodes count.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::{Counter, Gauge, Histogram};
use crate::{
    core::PeerStatus,
    error::{ProposeError, ReadError},
    types::NodeId,
};

/// What one group on one node has counted.
#[derive(Debug)]
pub struct GroupMetrics {
    /// 1 if a leader is known, else 0.
    pub has_leader: Gauge,
    /// 1 if this node leads, else 0.
    pub is_leader: Gauge,
    /// How often the known leader has changed to another one.
    pub leader_changes: Counter,
    /// 1 while the group rests: nothing is to be done, so nothing is said.
    pub resting: Gauge,
    /// The round of the highest ballot promised.
    pub ballot_round: Gauge,
    /// Commands of this node's users, waiting or in flight.
    pub proposals_pending: Gauge,
    /// Commands of this node's users that were chosen, applied and answered.
    pub proposals_committed: Counter,
    /// Commands that the state machine has applied, whoever proposed them.
    pub proposals_applied: Counter,
    /// Commands of this node's users whose outcome is unknown.
    pub proposals_failed: Counter,
    /// Commands and reads of this node's users that were refused, by reason.
    pub rejected: RejectedCounters,
    /// Commands of this node's users that may be open at the pace of late.
    pub proposals_limit: Gauge,
    /// From the call of a command or read until the group's task takes it in.
    pub queue_delay: Histogram,
    /// Bytes of commands of this node's users, waiting or in flight.
    pub inflight_bytes: Gauge,
    /// The chosen watermark.
    pub commit_index: Gauge,
    /// The last slot that the state machine has applied.
    pub applied_index: Gauge,
    /// The first slot that the log still holds.
    pub log_first_index: Gauge,
    /// The last slot that holds an entry.
    pub log_last_index: Gauge,
    /// From the call of a proposal to its reply.
    pub commit_duration: Histogram,
    /// One run of the state machine's `apply`.
    pub apply_duration: Histogram,
    /// From the call of a linearizable read to its answer.
    pub read_index_duration: Histogram,
    /// Reads that a lease answered.
    pub lease_reads: Counter,
    /// Reads that asked for a lease and were answered without one.
    pub lease_fallbacks: Counter,
    /// Commands in each applied entry that held any.
    pub batch_entries: Histogram,
    /// As of which slot the newest durable snapshot is.
    pub snapshot_index: Gauge,
    /// From freezing the state machine to a durable snapshot.
    pub snapshot_save_duration: Histogram,
    /// Restoring the state machine from a peer's snapshot.
    pub snapshot_install_duration: Histogram,
    /// Bytes of snapshots sent to peers.
    pub snapshot_sent_bytes: Counter,
    /// Bytes of snapshots received from peers.
    pub snapshot_received_bytes: Counter,
    /// Snapshots that could not be saved, read, or stored, or were found damaged.
    pub snapshot_failures: Counter,
    /// Messages of peers that were dropped because the group did not keep up with them.
    pub dropped_messages: Counter,
    /// Messages that the transport refused to send.
    pub refused_sends: Counter,
    /// Reads of the store that found damage.
    pub damaged_reads: Counter,
    /// Slots of the log that are damaged on this node's disk and not repaired yet.
    pub damaged_slots: Gauge,
    /// Damaged slots that were repaired from peers, from memory, or by a snapshot.
    pub repaired_slots: Counter,
    /// Things seen that must never happen (see [`Alarm`](crate::core::Alarm)).
    pub alarms: Counter,
    /// 1 if the group has halted, else 0.
    pub halted: Gauge,
    /// 1 if this node's replica is quarantined ([`Quarantine`](crate::Quarantine)), else 0.
    pub quarantined: Gauge,
    peers: Mutex<BTreeMap<NodeId, PeerStatus>>,
}

impl Default for GroupMetrics {
    fn default() -> Self {
        Self {
            has_leader: Gauge::default(),
            is_leader: Gauge::default(),
            leader_changes: Counter::default(),
            resting: Gauge::default(),
            ballot_round: Gauge::default(),
            proposals_pending: Gauge::default(),
            proposals_committed: Counter::default(),
            proposals_applied: Counter::default(),
            proposals_failed: Counter::default(),
            rejected: RejectedCounters::default(),
            proposals_limit: Gauge::default(),
            inflight_bytes: Gauge::default(),
            queue_delay: Histogram::of_durations(),
            commit_index: Gauge::default(),
            applied_index: Gauge::default(),
            log_first_index: Gauge::default(),
            log_last_index: Gauge::default(),
            commit_duration: Histogram::of_durations(),
            apply_duration: Histogram::of_durations(),
            read_index_duration: Histogram::of_durations(),
            lease_reads: Counter::default(),
            lease_fallbacks: Counter::default(),
            batch_entries: Histogram::of_counts(),
            snapshot_index: Gauge::default(),
            snapshot_save_duration: Histogram::of_durations(),
            snapshot_install_duration: Histogram::of_durations(),
            snapshot_sent_bytes: Counter::default(),
            snapshot_received_bytes: Counter::default(),
            snapshot_failures: Counter::default(),
            dropped_messages: Counter::default(),
            refused_sends: Counter::default(),
            damaged_reads: Counter::default(),
            damaged_slots: Gauge::default(),
            repaired_slots: Counter::default(),
            alarms: Counter::default(),
            halted: Gauge::default(),
            quarantined: Gauge::default(),
            peers: Mutex::default(),
        }
    }
}

impl GroupMetrics {
    /// What the leader knew of its peers a moment ago; empty on other nodes.
    pub fn peers(&self) -> BTreeMap<NodeId, PeerStatus> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_peers(&self, peers: BTreeMap<NodeId, PeerStatus>) {
        *self.peers.lock().unwrap_or_else(PoisonError::into_inner) = peers;
    }
}

/// Refused commands and reads, by reason.
#[derive(Debug, Default)]
pub struct RejectedCounters {
    /// This node is not leader and does not forward.
    pub not_leader: Counter,
    /// As many commands (or reads) were open as ever may be.
    pub queue_full: Counter,
    /// As many bytes were open as ever may be.
    pub bytes: Counter,
    /// As many were open as can be completed in good time.
    pub delay: Counter,
    /// It could not be completed before its deadline.
    pub deadline: Counter,
    /// The command was too large.
    pub too_large: Counter,
    /// The deadline passed before anything was sent, or before a read was answered.
    pub expired: Counter,
    /// This node leaves the group, or has left it.
    pub leaving: Counter,
    /// The node or the group was stopping or had halted.
    pub stopped: Counter,
    /// The state machine could not answer a read.
    pub failed: Counter,
}

impl RejectedCounters {
    /// All of them, with the reason's name.
    pub fn by_reason(&self) -> [(&'static str, &Counter); 10] {
        [
            ("not_leader", &self.not_leader),
            ("queue_full", &self.queue_full),
            ("bytes", &self.bytes),
            ("delay", &self.delay),
            ("deadline", &self.deadline),
            ("too_large", &self.too_large),
            ("expired", &self.expired),
            ("leaving", &self.leaving),
            ("stopped", &self.stopped),
            ("failed", &self.failed),
        ]
    }

    /// The counter that belongs to a proposal's error; `None` for an unknown outcome, which is no refusal.
    pub(crate) const fn of_proposal(&self, error: &ProposeError) -> Option<&Counter> {
        match error {
            ProposeError::NotLeader { .. } => Some(&self.not_leader),
            ProposeError::Overloaded { .. } => Some(&self.queue_full),
            ProposeError::TooLarge { .. } => Some(&self.too_large),
            ProposeError::Expired => Some(&self.expired),
            ProposeError::Leaving => Some(&self.leaving),
            ProposeError::Stopped(_) => Some(&self.stopped),
            ProposeError::Unknown => None,
        }
    }

    pub(crate) const fn of_read(&self, error: &ReadError) -> &Counter {
        match error {
            ReadError::NotLeader { .. } => &self.not_leader,
            ReadError::Overloaded { .. } => &self.queue_full,
            ReadError::Expired => &self.expired,
            ReadError::Stopped(_) => &self.stopped,
            ReadError::Failed(_) => &self.failed,
        }
    }
}

/// What one node has counted over all of its groups.
#[derive(Debug)]
pub struct NodeMetrics {
    /// One synced write of the store, of any number of groups.
    pub log_sync_duration: Histogram,
    /// Groups' writes in each synced write of the store.
    pub log_sync_writes: Histogram,
    /// Bytes of entries written to the store.
    pub log_written_bytes: Counter,
    /// Bytes of entries that were read in search of damage.
    pub scrubbed_bytes: Counter,
    /// Damaged slots that were found so, each time that they were.
    pub scrub_damaged_slots: Counter,
    /// How often all logs were read so, to their ends.
    pub scrubs: Counter,
    /// Frames that could not be decoded.
    pub malformed_frames: Counter,
    /// Frames of another cluster, or of a node that claims to be this one.
    pub stranger_frames: Counter,
    /// Frames for groups that this node does not serve (any more).
    pub unknown_group_frames: Counter,
    /// 1 if the node has halted, else 0.
    pub halted: Gauge,
}

impl Default for NodeMetrics {
    fn default() -> Self {
        Self {
            log_sync_duration: Histogram::of_durations(),
            log_sync_writes: Histogram::of_counts(),
            log_written_bytes: Counter::default(),
            scrubbed_bytes: Counter::default(),
            scrub_damaged_slots: Counter::default(),
            scrubs: Counter::default(),
            malformed_frames: Counter::default(),
            stranger_frames: Counter::default(),
            unknown_group_frames: Counter::default(),
            halted: Gauge::default(),
        }
    }
}
