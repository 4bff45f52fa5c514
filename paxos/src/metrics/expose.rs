//! Everything that a node and its groups have counted, with the names and labels that Prometheus sees.

use std::{collections::BTreeMap, sync::Arc, vec::Vec};

use super::{Exposition, GroupMetrics, Histogram, Kind, NodeMetrics};
use crate::types::GroupId;

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
        "paxos_damaged_slots",
        Kind::Gauge,
        "Slots of the log that are damaged on disk and not repaired yet",
        |m| m.damaged_slots.get(),
    ),
    (
        "paxos_repaired_slots_total",
        Kind::Counter,
        "Damaged slots of the log that were repaired",
        |m| m.repaired_slots.get(),
    ),
    (
        "paxos_alarms_total",
        Kind::Counter,
        "Things seen that must never happen",
        |m| m.alarms.get(),
    ),
    (
        "paxos_group_quarantined",
        Kind::Gauge,
        "1 if this node's replica was found to hold something else than its group",
        |m| m.quarantined.get(),
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
    let scrub = [
        (
            "paxos_scrubbed_bytes_total",
            "Bytes of entries read in search of damage",
            &node.scrubbed_bytes,
        ),
        (
            "paxos_scrub_damaged_slots_total",
            "Damaged slots found by reading the logs in search of damage",
            &node.scrub_damaged_slots,
        ),
        (
            "paxos_scrubs_total",
            "How often all logs were read in search of damage",
            &node.scrubs,
        ),
    ];
    for (name, help, counter) in scrub {
        to.family(name, Kind::Counter, help);
        to.value(&[], counter.get());
    }
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
