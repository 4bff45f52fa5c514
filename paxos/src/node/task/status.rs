//! What the task tells of itself: leader, status, gauges.

use std::vec::Vec;

use super::{
    super::group::{GroupStatus, Shared},
    REFRESH, Task,
};
use crate::{
    core::{Alarm, Input},
    types::{Ballot, Slot, Time},
};

impl Task {
    pub(super) fn note_leader(&mut self, leader: Option<Ballot>) {
        let before = *self.shared.leader.borrow();
        if before == leader {
            return;
        }
        self.refreshed = None;
        self.shared.leader.send_replace(leader);
        let (group, node) = (self.shared.id, self.shared.node);
        if let Some(ballot) = leader {
            self.shared.metrics.leader_changes.increment();
            tracing::info!(%group, %node, leader = %ballot.node, %ballot, "leader changed");
        } else {
            tracing::info!(%group, %node, "no leader");
        }
    }

    pub(super) fn note_alarm(&self, alarm: &Alarm) {
        self.shared.metrics.alarms.increment();
        if matches!(alarm, Alarm::Quarantined(_)) {
            self.shared.metrics.quarantined.set(1);
        }
        tracing::error!(group = %self.shared.id, node = %self.shared.node, ?alarm, "alarm");
    }

    pub(super) fn status(&self, now: Time) -> GroupStatus {
        GroupStatus {
            digest: self.machine.digest(),
            ..self.status_without_digest(now)
        }
    }

    /// The store could not give these slots back: they are to be repaired.
    pub(super) fn note_damage(&mut self, now: Time, slots: Vec<Slot>, why: &str) {
        let (Some(first), Some(last)) = (slots.first(), slots.last()) else {
            return;
        };
        self.shared.metrics.damaged_reads.increment();
        tracing::error!(
            group = %self.shared.id, node = %self.shared.node, %first, %last, why,
            "the log is damaged; the peers are asked for what it held"
        );
        self.replica.step(now, Input::Damaged { slots });
    }

    fn status_without_digest(&self, now: Time) -> GroupStatus {
        GroupStatus {
            replica: self.replica.status(now),
            applied: self.machine.applied(),
            digest: None,
            restoring: self.snapshots.restoring.map(|(upto, _)| upto),
            snapshots_off: self.snapshots.off.clone(),
            halted: self.shared.stopped.get().cloned(),
        }
    }

    pub(super) fn refresh(&mut self, now: Time) {
        // A replica that falls asleep may have no turn for hours.
        let rests = self.replica.is_resting();
        if self
            .refreshed
            .is_some_and(|(at, rested)| now.since(at) < REFRESH && rested == rests)
        {
            return;
        }
        self.refreshed = Some((now, rests));
        // A digest may be costly: it is for those who ask for the status.
        let status = self.status_without_digest(now);
        set_gauges(&self.shared, &status);
        self.shared.keep_status(status);
    }
}

fn set_gauges(shared: &Shared, status: &GroupStatus) {
    let metrics = &shared.metrics;
    let replica = &status.replica;
    let leads = replica.leader.is_some_and(|ballot| ballot.node == shared.node);
    metrics.has_leader.set(u64::from(replica.leader.is_some()));
    metrics.is_leader.set(u64::from(leads));
    metrics.resting.set(u64::from(replica.resting));
    metrics.ballot_round.set(replica.promised.round);
    metrics.proposals_pending.set(replica.pending_commands as u64);
    metrics.inflight_bytes.set(replica.pending_bytes as u64);
    metrics.commit_index.set(replica.chosen.0);
    metrics.applied_index.set(status.applied.0);
    metrics.snapshot_index.set(replica.snapshot.0);
    metrics.log_first_index.set(replica.trimmed.next().0);
    metrics.log_last_index.set(replica.last.0);
    metrics.damaged_slots.set(replica.damaged as u64);
    let repaired = metrics.repaired_slots.get();
    metrics
        .repaired_slots
        .add(replica.repaired.saturating_sub(repaired));
    metrics.set_peers(replica.peers.clone());
}
