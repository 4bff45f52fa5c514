//! What is counted and timed, in one place, and how it is written for Prometheus.
//!
//! A [`Node`](crate::Node) owns one [`NodeMetrics`] and, for each group, one [`GroupMetrics`]; all of it is plain atomics
//! that anybody may read at any time without disturbing anyone. [`Node::prometheus`](crate::Node::prometheus) writes
//! everything as text; a service adds its own metrics with the same [`Counter`], [`Gauge`], [`Histogram`] and
//! [`Exposition`].

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
    string::String,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
    vec::Vec,
};

use crate::{
    core::PeerStatus,
    error::{ProposeError, ReadError},
    types::{GroupId, NodeId},
};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Counts `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the number.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the buckets of durations, in microseconds.
const DURATION_BOUNDS_MICROS: &[u64] = &[
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000, 10_000_000,
];

/// Upper bounds of the buckets of counts.
const COUNT_BOUNDS: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024];

/// How often which sizes occurred, in fixed buckets.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    units_per_one: f64,
    /// One for each bound and one for everything above the last.
    buckets: Vec<AtomicU64>,
    sum: AtomicU64,
}

impl Histogram {
    /// A histogram of durations: buckets from 10 microseconds to 10 seconds, exposed in seconds.
    pub fn of_durations() -> Self {
        Self::new(DURATION_BOUNDS_MICROS, 1e6)
    }

    /// A histogram of counts: buckets from 1 to 1024.
    pub fn of_counts() -> Self {
        Self::new(COUNT_BOUNDS, 1.0)
    }

    fn new(bounds: &'static [u64], units_per_one: f64) -> Self {
        Self {
            bounds,
            units_per_one,
            buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        self.record_value(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts one value, in the histogram's unit (microseconds for durations).
    pub fn record_value(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add(value, Relaxed);
    }

    /// What has been counted so far. Taken while others count, it may miss the very last of them.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let mut count = 0;
        let bounds = self.bounds.iter().map(|bound| *bound as f64 / self.units_per_one);
        let buckets = bounds
            .chain([f64::INFINITY])
            .zip(&self.buckets)
            .map(|(bound, bucket)| {
                count += bucket.load(Relaxed);
                (bound, count)
            })
            .collect();
        HistogramSnapshot {
            buckets,
            sum: self.sum.load(Relaxed) as f64 / self.units_per_one,
            count,
        }
    }
}

/// A histogram at one moment, in the unit in which it is exposed (seconds for durations).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramSnapshot {
    /// Upper bounds, ascending, the last one infinite; and how many values were not above each.
    pub buckets: Vec<(f64, u64)>,
    /// The sum of all values.
    pub sum: f64,
    /// How many values there were.
    pub count: u64,
}

impl HistogramSnapshot {
    /// The value below which the share `quantile` (0 to 1) of all values lies, interpolated within its bucket; zero
    /// without any values, the last finite bound for values above it.
    pub fn quantile(&self, quantile: f64) -> f64 {
        let wanted = quantile.clamp(0.0, 1.0) * self.count as f64;
        let (mut lower, mut below) = (0.0, 0);
        for &(upper, upto) in &self.buckets {
            if upto > 0 && upto as f64 >= wanted {
                let inside = (wanted - below as f64) / (upto - below).max(1) as f64;
                return if upper.is_finite() {
                    lower + (upper - lower) * inside
                } else {
                    lower
                };
            }
            (lower, below) = (upper, upto);
        }
        0.0
    }

    /// What was counted since `earlier`, a snapshot of the same histogram: for rates and recent quantiles.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |index: usize| earlier.buckets.get(index).map_or(0, |(_, upto)| *upto);
        Self {
            buckets: self
                .buckets
                .iter()
                .enumerate()
                .map(|(index, (bound, upto))| (*bound, upto.saturating_sub(before(index))))
                .collect(),
            sum: self.sum - earlier.sum,
            count: self.count.saturating_sub(earlier.count),
        }
    }
}

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
    /// Things seen that must never happen (see [`Alarm`](crate::core::Alarm)).
    pub alarms: Counter,
    /// 1 if the group has halted, else 0.
    pub halted: Gauge,
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
            alarms: Counter::default(),
            halted: Gauge::default(),
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
    /// The node or the group was stopping or had halted.
    pub stopped: Counter,
    /// The state machine could not answer a read.
    pub failed: Counter,
}

impl RejectedCounters {
    /// All of them, with the reason's name.
    pub fn by_reason(&self) -> [(&'static str, &Counter); 9] {
        [
            ("not_leader", &self.not_leader),
            ("queue_full", &self.queue_full),
            ("bytes", &self.bytes),
            ("delay", &self.delay),
            ("deadline", &self.deadline),
            ("too_large", &self.too_large),
            ("expired", &self.expired),
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
            malformed_frames: Counter::default(),
            stranger_frames: Counter::default(),
            unknown_group_frames: Counter::default(),
            halted: Gauge::default(),
        }
    }
}

/// What kind of numbers a metric has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets, sum and count.
    Histogram,
}

/// Writes metrics in Prometheus' text format: for each metric [`family`](Self::family) once, then all of its values.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    name: &'static str,
}

/// Names and values of labels.
pub type Labels<'a> = &'a [(&'a str, &'a dyn Display)];

impl Exposition {
    /// Begins a metric.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.name = name;
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One value of the metric begun last.
    pub fn value(&mut self, labels: Labels<'_>, value: impl Display) {
        self.sample("", labels, None, value);
    }

    /// One histogram of the metric begun last.
    pub fn histogram(&mut self, labels: Labels<'_>, histogram: &HistogramSnapshot) {
        for (bound, upto) in &histogram.buckets {
            self.sample("_bucket", labels, Some(*bound), upto);
        }
        self.sample("_sum", labels, None, histogram.sum);
        self.sample("_count", labels, None, histogram.count);
    }

    fn sample(&mut self, suffix: &str, labels: Labels<'_>, bound: Option<f64>, value: impl Display) {
        let _ = write!(self.text, "{}{suffix}", self.name);
        let mut separator = '{';
        for (name, value) in labels {
            let value = std::format!("{value}")
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.text, "{separator}{name}=\"{value}\"");
            separator = ',';
        }
        if let Some(bound) = bound {
            let bound: &dyn Display = if bound.is_finite() { &bound } else { &"+Inf" };
            let _ = write!(self.text, "{separator}le=\"{bound}\"");
            separator = ',';
        }
        let close = if separator == ',' { "}" } else { "" };
        let _ = writeln!(self.text, "{close} {value}");
    }

    /// The text.
    pub fn into_text(self) -> String {
        self.text
    }
}

type Groups<'a> = &'a BTreeMap<GroupId, Arc<GroupMetrics>>;

/// Writes everything that a node and its groups have counted.
pub(crate) fn expose(to: &mut Exposition, node: &NodeMetrics, groups: Groups<'_>) {
    for (name, kind, help, number) in NUMBERS {
        to.family(name, *kind, help);
        for (group, metrics) in groups {
            to.value(&[("group", group)], number(metrics));
        }
    }
    to.family(
        "paxos_proposals_rejected_total",
        Kind::Counter,
        "Commands and reads refused",
    );
    for (group, metrics) in groups {
        for (reason, counter) in metrics.rejected.by_reason() {
            to.value(&[("group", group), ("reason", &reason)], counter.get());
        }
    }
    for (name, help, histogram) in HISTOGRAMS {
        to.family(name, Kind::Histogram, help);
        for (group, metrics) in groups {
            to.histogram(&[("group", group)], &histogram(metrics).snapshot());
        }
    }
    expose_peers(to, groups);
    expose_node(to, node);
}

type Number = (&'static str, Kind, &'static str, fn(&GroupMetrics) -> u64);

const NUMBERS: &[Number] = &[
    ("paxos_has_leader", Kind::Gauge, "1 if a leader is known", |m| {
        m.has_leader.get()
    }),
    ("paxos_is_leader", Kind::Gauge, "1 if this node leads", |m| {
        m.is_leader.get()
    }),
    (
        "paxos_leader_changes_total",
        Kind::Counter,
        "Changes of the known leader",
        |m| m.leader_changes.get(),
    ),
    (
        "paxos_group_resting",
        Kind::Gauge,
        "1 while the group has nothing to do",
        |m| m.resting.get(),
    ),
    (
        "paxos_lease_reads_total",
        Kind::Counter,
        "Reads that a lease answered",
        |m| m.lease_reads.get(),
    ),
    (
        "paxos_lease_fallbacks_total",
        Kind::Counter,
        "Reads that asked for a lease and were answered without one",
        |m| m.lease_fallbacks.get(),
    ),
    (
        "paxos_ballot_round",
        Kind::Gauge,
        "Round of the highest ballot promised",
        |m| m.ballot_round.get(),
    ),
    (
        "paxos_proposals_pending",
        Kind::Gauge,
        "Commands of this node's users waiting or in flight",
        |m| m.proposals_pending.get(),
    ),
    (
        "paxos_proposals_committed_total",
        Kind::Counter,
        "Commands of this node's users applied",
        |m| m.proposals_committed.get(),
    ),
    (
        "paxos_proposals_applied_total",
        Kind::Counter,
        "Commands applied, of any node's users",
        |m| m.proposals_applied.get(),
    ),
    (
        "paxos_proposals_failed_total",
        Kind::Counter,
        "Commands whose outcome is unknown",
        |m| m.proposals_failed.get(),
    ),
    (
        "paxos_proposals_limit",
        Kind::Gauge,
        "Commands of this node's users that may be open at the pace of late",
        |m| m.proposals_limit.get(),
    ),
    (
        "paxos_inflight_bytes",
        Kind::Gauge,
        "Bytes of commands waiting or in flight",
        |m| m.inflight_bytes.get(),
    ),
    ("paxos_commit_index", Kind::Gauge, "Chosen watermark", |m| {
        m.commit_index.get()
    }),
    ("paxos_applied_index", Kind::Gauge, "Last slot applied", |m| {
        m.applied_index.get()
    }),
    (
        "paxos_apply_lag",
        Kind::Gauge,
        "Slots chosen and not yet applied",
        |m| m.commit_index.get().saturating_sub(m.applied_index.get()),
    ),
    (
        "paxos_log_first_index",
        Kind::Gauge,
        "First slot that the log holds",
        |m| m.log_first_index.get(),
    ),
    (
        "paxos_log_last_index",
        Kind::Gauge,
        "Last slot that holds an entry",
        |m| m.log_last_index.get(),
    ),
    (
        "paxos_snapshot_index",
        Kind::Gauge,
        "Slot of the newest durable snapshot",
        |m| m.snapshot_index.get(),
    ),
    (
        "paxos_snapshot_sent_bytes_total",
        Kind::Counter,
        "Bytes of snapshots sent to peers",
        |m| m.snapshot_sent_bytes.get(),
    ),
    (
        "paxos_snapshot_received_bytes_total",
        Kind::Counter,
        "Bytes of snapshots received from peers",
        |m| m.snapshot_received_bytes.get(),
    ),
    (
        "paxos_snapshot_failures_total",
        Kind::Counter,
        "Snapshots that could not be saved, read or stored, or were damaged",
        |m| m.snapshot_failures.get(),
    ),
    (
        "paxos_dropped_messages_total",
        Kind::Counter,
        "Messages of peers dropped by a busy group",
        |m| m.dropped_messages.get(),
    ),
    (
        "paxos_refused_sends_total",
        Kind::Counter,
        "Messages that the transport refused",
        |m| m.refused_sends.get(),
    ),
    (
        "paxos_damaged_reads_total",
        Kind::Counter,
        "Reads of the store that found damage",
        |m| m.damaged_reads.get(),
    ),
    (
        "paxos_alarms_total",
        Kind::Counter,
        "Things seen that must never happen",
        |m| m.alarms.get(),
    ),
    (
        "paxos_group_halted",
        Kind::Gauge,
        "1 if the group has halted",
        |m| m.halted.get(),
    ),
];

type NamedHistogram = (&'static str, &'static str, fn(&GroupMetrics) -> &Histogram);

const HISTOGRAMS: &[NamedHistogram] = &[
    (
        "paxos_queue_delay_seconds",
        "From the call of a command or read until the group's task takes it in",
        |m| &m.queue_delay,
    ),
    (
        "paxos_commit_duration_seconds",
        "From a proposal's call to its reply",
        |m| &m.commit_duration,
    ),
    (
        "paxos_apply_duration_seconds",
        "One run of the state machine's apply",
        |m| &m.apply_duration,
    ),
    (
        "paxos_read_index_duration_seconds",
        "From a linearizable read's call to its answer",
        |m| &m.read_index_duration,
    ),
    (
        "paxos_snapshot_save_duration_seconds",
        "From freezing the state machine to a durable snapshot",
        |m| &m.snapshot_save_duration,
    ),
    (
        "paxos_snapshot_install_duration_seconds",
        "Restoring the state machine from a peer's snapshot",
        |m| &m.snapshot_install_duration,
    ),
    ("paxos_batch_entries", "Commands in each applied entry", |m| {
        &m.batch_entries
    }),
];

fn expose_peers(to: &mut Exposition, groups: Groups<'_>) {
    let peers: Vec<_> = groups
        .iter()
        .map(|(group, metrics)| (group, metrics.peers()))
        .collect();
    to.family(
        "paxos_peer_active",
        Kind::Gauge,
        "1 if the peer answers the leader (told by the leader)",
    );
    for (group, peers) in &peers {
        for (peer, status) in peers {
            to.value(&[("group", group), ("peer", peer)], u8::from(status.alive));
        }
    }
    to.family(
        "paxos_peer_match_index",
        Kind::Gauge,
        "Last slot the peer holds durably (told by the leader)",
    );
    for (group, peers) in &peers {
        for (peer, status) in peers {
            to.value(&[("group", group), ("peer", peer)], status.matched);
        }
    }
}

fn expose_node(to: &mut Exposition, node: &NodeMetrics) {
    to.family(
        "paxos_log_sync_duration_seconds",
        Kind::Histogram,
        "One synced write of the store",
    );
    to.histogram(&[], &node.log_sync_duration.snapshot());
    to.family(
        "paxos_log_sync_writes",
        Kind::Histogram,
        "Groups' writes in each synced write of the store",
    );
    to.histogram(&[], &node.log_sync_writes.snapshot());
    to.family(
        "paxos_log_written_bytes_total",
        Kind::Counter,
        "Bytes of entries written to the store",
    );
    to.value(&[], node.log_written_bytes.get());
    to.family(
        "paxos_dropped_frames_total",
        Kind::Counter,
        "Frames received and dropped",
    );
    to.value(&[("reason", &"malformed")], node.malformed_frames.get());
    to.value(&[("reason", &"stranger")], node.stranger_frames.get());
    to.value(&[("reason", &"unknown_group")], node.unknown_group_frames.get());
    to.family("paxos_node_halted", Kind::Gauge, "1 if the node has halted");
    to.value(&[], node.halted.get());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_belongs_to_that_bucket() {
        let histogram = Histogram::of_durations();
        histogram.record(Duration::from_micros(10));
        histogram.record(Duration::from_micros(11));
        histogram.record(Duration::from_mins(1));
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.buckets[..2], [(10e-6, 1), (20e-6, 2)]);
        assert_eq!(snapshot.buckets.last(), Some(&(f64::INFINITY, 3)));
        assert_eq!(snapshot.count, 3);
    }

    #[test]
    fn quantiles_lie_in_the_bucket_of_their_value() {
        let histogram = Histogram::of_durations();
        assert_eq!(histogram.snapshot().quantile(0.5).to_bits(), 0.0_f64.to_bits());
        for millis in 1..=100 {
            histogram.record(Duration::from_millis(millis));
        }
        let median = histogram.snapshot().quantile(0.5);
        assert!((0.049..=0.051).contains(&median), "{median}");
        let earlier = histogram.snapshot();
        histogram.record(Duration::from_secs(1));
        let recent = histogram.snapshot().since(&earlier);
        assert_eq!(recent.count, 1);
        assert!((0.5..=1.0).contains(&recent.quantile(0.5)));
    }

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut to = Exposition::default();
        to.family("requests_total", Kind::Counter, "Requests");
        to.value(&[], 7);
        to.value(&[("path", &"a\"b\\c\n")], 8);
        let histogram = Histogram::of_counts();
        histogram.record_value(2_000);
        to.family("size", Kind::Histogram, "Sizes");
        to.histogram(&[("group", &1)], &histogram.snapshot());
        let text = to.into_text();
        assert!(
            text.starts_with("# HELP requests_total Requests\n# TYPE requests_total counter\n"),
            "{text}"
        );
        assert!(text.contains("\nrequests_total 7\n"), "{text}");
        assert!(
            text.contains("\nrequests_total{path=\"a\\\"b\\\\c\\n\"} 8\n"),
            "{text}"
        );
        assert!(
            text.contains("\nsize_bucket{group=\"1\",le=\"1024\"} 0\n"),
            "{text}"
        );
        assert!(
            text.contains("\nsize_bucket{group=\"1\",le=\"+Inf\"} 1\n"),
            "{text}"
        );
        assert!(
            text.ends_with("size_sum{group=\"1\"} 2000\nsize_count{group=\"1\"} 1\n"),
            "{text}"
        );
    }

    #[test]
    fn every_family_appears_once() {
        let groups = BTreeMap::from([
            (GroupId(1), Arc::new(GroupMetrics::default())),
            (GroupId(2), Arc::new(GroupMetrics::default())),
        ]);
        let mut to = Exposition::default();
        expose(&mut to, &NodeMetrics::default(), &groups);
        let text = to.into_text();
        let mut families: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let all = families.len();
        families.sort_unstable();
        families.dedup();
        assert_eq!(families.len(), all);
        assert!(text.contains("paxos_commit_index{group=\"2\"} 0"), "{text}");
    }
}
