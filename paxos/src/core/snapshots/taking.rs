//! When a snapshot of the own state is taken.

use alloc::collections::VecDeque;

use super::super::{Output, Replica};
use crate::planted;
use crate::snapshot::{Origins, SnapshotHeader};
use crate::types::{ChosenMembership, Slot};

/// How many points of the log are remembered for keeping a tail of so many bytes; the tail is that exact.
const TAIL_POINTS: usize = 32;

/// How many bytes of entries were applied up to which slot, at some points of the log.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct AppliedBytes {
    pub(super) total: u64,
    points: VecDeque<(Slot, u64)>,
}

impl AppliedBytes {
    fn add(&mut self, slot: Slot, bytes: usize, tail_bytes: u64) {
        self.total += bytes as u64;
        let last = self.points.back().map_or(0, |(_, total)| *total);
        if self.total - last > tail_bytes / TAIL_POINTS as u64 {
            self.points.push_back((slot, self.total));
        }
        if self.points.len() > 4 * TAIL_POINTS {
            self.points.pop_front();
        }
    }

    /// A slot with at least so many bytes between it and `upto`; [`Slot::ZERO`] if none is known.
    pub(super) fn behind(&self, upto: Slot, bytes: u64) -> Slot {
        let at = |limit: &dyn Fn(&(Slot, u64)) -> bool| {
            self.points.iter().rev().find(|point| limit(point)).copied()
        };
        let Some((_, total)) = at(&|(slot, _)| *slot <= upto) else {
            return Slot::ZERO;
        };
        at(&|(_, before)| before + bytes <= total).map_or(Slot::ZERO, |(slot, _)| slot)
    }
}

impl Replica {
    /// An entry of this size was applied.
    pub(in crate::core) fn count_applied(&mut self, slot: Slot, bytes: usize) {
        self.snapshots.applied.add(slot, bytes, self.config.keep_bytes);
        self.take_snapshot_if_due();
    }

    pub(in crate::core) fn on_take_snapshot(&mut self) {
        self.snapshots.wanted = true;
        self.take_snapshot_if_due();
    }

    fn take_snapshot_if_due(&mut self) {
        let applied = self.learner.applied;
        let snapshots = &mut self.snapshots;
        if !self.config.snapshots || snapshots.saving.is_some() {
            return;
        }
        if applied <= snapshots.newest {
            snapshots.wanted = false;
            return;
        }
        let entries = applied.since(snapshots.begun);
        let bytes = snapshots.applied.total - snapshots.begun_bytes;
        let reached = |count: u64, limit: u64| limit > 0 && count >= limit;
        let due =
            reached(entries, self.config.snapshot_entries) || reached(bytes, self.config.snapshot_bytes);
        if !snapshots.wanted && (!due || self.is_newest_fetched()) {
            return;
        }
        let known = |chosen: &&ChosenMembership| chosen.membership.version > 0;
        let Some(membership) = self.memberships.as_of(applied).filter(known).cloned() else {
            // Not known while the log is replayed up to it, or on a node that joins.
            return;
        };
        let header = SnapshotHeader {
            group: self.group,
            upto: applied,
            membership,
            origins: if planted::is("origins_not_in_snapshot") {
                Origins::default()
            } else {
                self.learner.origins.clone()
            },
            hash: self.history.latest.hash,
        };
        let snapshots = &mut self.snapshots;
        snapshots.wanted = false;
        snapshots.saving = Some(applied);
        snapshots.begun = applied;
        snapshots.begun_bytes = snapshots.applied.total;
        self.outputs.push_back(Output::TakeSnapshot(header));
        if planted::is("trim_before_snapshot") {
            self.snapshots.newest = applied;
            self.snapshots.trim_due = true;
        }
    }

    /// Whether a snapshot that has everything up to `slot` is about to be taken here.
    pub(in crate::core) fn is_about_to_cover(&self, slot: Slot) -> bool {
        let snapshots = &self.snapshots;
        let wanted = snapshots.wanted && slot <= self.learner.applied;
        let saving = snapshots.saving.is_some_and(|saving| slot <= saving);
        self.config.snapshots && (wanted || saving)
    }

    /// Whether a peer is about to have the newest snapshot. Then another one waits, for a bounded stretch of the log: the
    /// peer would find that it fetches an old one, and that the entries behind that are gone, again and again.
    fn is_newest_fetched(&self) -> bool {
        let newest = self.snapshots.newest;
        let bounded = self.learner.applied.since(newest) <= self.config.max_laggard_entries;
        let mut readers = self.snapshots.readers.values();
        bounded && readers.any(|reader| reader.fetches && reader.has == newest && self.is_recent(reader))
    }

    pub(in crate::core) fn on_snapshot_taken(&mut self, upto: Slot) {
        if self.snapshots.saving == Some(upto) {
            self.snapshots.saving = None;
        }
        if upto <= self.learner.applied {
            self.snapshots.newest = self.snapshots.newest.max(upto);
            self.snapshots.trim_due = true;
        }
        self.take_snapshot_if_due();
    }

    pub(in crate::core) fn on_snapshot_failed(&mut self, upto: Slot) {
        if self.snapshots.saving == Some(upto) {
            self.snapshots.saving = None;
        }
        let fetched = self.snapshots.fetch.as_ref();
        if fetched.is_some_and(|fetch| fetch.upto == upto) {
            self.fail_fetch();
        }
        self.take_snapshot_if_due();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_of_bytes_is_kept_to_within_a_part_of_it() {
        let mut applied = AppliedBytes::default();
        for slot in 1..=1_000 {
            applied.add(Slot(slot), 10, 3_200);
        }
        let kept = |upto, bytes| Slot(upto).since(applied.behind(Slot(upto), bytes)) * 10;
        assert!(
            (3_200..=3_500).contains(&kept(1_000, 3_200)),
            "{}",
            kept(1_000, 3_200)
        );
        assert!(
            (3_200..=3_500).contains(&kept(800, 3_200)),
            "{}",
            kept(800, 3_200)
        );
        assert_eq!(
            applied.behind(Slot(1_000), 1_000_000),
            Slot::ZERO,
            "unknown: keep all"
        );
        assert!(applied.points.len() <= 4 * TAIL_POINTS);
    }
}
