//! What the oracle demands of what a replica says of itself, and of what it comes back with.

use std::format;

use super::{super::disk::DiskState, Acceptor, Check, Oracle, Violation, ensure};
use crate::{
    core::{Alarm, Checkpoint, Config, Phase, Status},
    types::{NodeId, Slot},
};

impl Oracle {
    /// A node comes back. I5: its disk holds at least all that it ever said. I7: what it trimmed is in its newest snapshot, which is at least as new as any that it said to have.
    pub(in super::super) fn restarted(&self, acceptor: Acceptor, disk: &DiskState, snapshot: Slot) -> Check {
        let node = acceptor.0;
        let said = self.said.get(&acceptor);
        ensure!(
            disk.trimmed <= snapshot || said.is_some_and(|said| said.lost_snapshots),
            "I7",
            "{node} came back with a log trimmed up to {} and a snapshot of {snapshot}",
            disk.trimmed
        );
        let Some(said) = said else {
            return Ok(());
        };
        ensure!(
            snapshot >= said.snapshot,
            "I7",
            "{node} came back with a snapshot of {snapshot}, it had one of {}",
            said.snapshot
        );
        ensure!(
            disk.hard.promised >= said.promised,
            "I5",
            "{node} came back with promise {}, it had promised {}",
            disk.hard.promised,
            said.promised
        );
        for (slot, ballot) in &said.accepted {
            let held = disk.entries.get(slot);
            let kept = held.is_some_and(|accepted| {
                accepted.ballot >= *ballot || self.decided(*slot) == Some(&accepted.entry)
            });
            ensure!(
                kept || *slot <= disk.trimmed || disk.damaged.contains(slot),
                "I5",
                "{node} came back without slot {slot}, which it had accepted at {ballot}"
            );
        }
        Ok(())
    }

    /// I14: replicas that have applied as much have the same running hash, and know it.
    pub(in super::super) fn hashed(&mut self, node: NodeId, checkpoint: Checkpoint) -> Check {
        let Checkpoint { slot, hash } = checkpoint;
        ensure!(hash != 0, "I14", "{node} does not know its hash at slot {slot}");
        let known = *self.hashes.entry(slot).or_insert(hash);
        ensure!(
            known == hash,
            "I14",
            "{node} has hash {hash:016x} at slot {slot}, another replica has {known:016x}"
        );
        Ok(())
    }

    /// A node that is down has lost its newer snapshots.
    pub(in super::super) fn lost_snapshots(&mut self, acceptor: Acceptor, newest: Slot) {
        let said = self.said.entry(acceptor).or_default();
        said.snapshot = said.snapshot.min(newest);
        said.lost_snapshots = true;
    }

    /// What a replica says of itself after a round, against what it said after the round before.
    pub(in super::super) fn status(&self, node: NodeId, now: &Status, before: Option<&Status>) -> Check {
        self.learned(node, now.chosen)?;
        let in_force = &self.in_force(now.chosen.next()).membership;
        ensure!(
            now.membership == *in_force || now.membership.version == 0,
            "membership",
            "{node} takes {:?} for the members after slot {}, truly they are {in_force:?}",
            now.membership,
            now.chosen
        );
        ensure!(
            now.applied <= now.chosen,
            "I4",
            "{node} applied {} but knows only {} chosen",
            now.applied,
            now.chosen
        );
        if let Some(before) = before {
            let forward = now.promised >= before.promised
                && now.chosen >= before.chosen
                && now.applied >= before.applied
                && now.snapshot >= before.snapshot
                && now.trimmed >= before.trimmed;
            ensure!(forward, "I6", "{node} went back: {before:?} to {now:?}");
        }
        Ok(())
    }

    /// I7: trimmed <= durable snapshot <= applied <= chosen, as a replica says with this newest snapshot on its disk.
    pub(in super::super) fn snapshots(&mut self, acceptor: Acceptor, now: &Status, newest: Slot) -> Check {
        let node = acceptor.0;
        let said = self.said.entry(acceptor).or_default();
        let reaches = now.trimmed <= now.snapshot;
        said.lost_snapshots &= !reaches;
        ensure!(
            (reaches || said.lost_snapshots) && now.snapshot <= newest && now.snapshot <= now.applied,
            "I7",
            "{node} says: trimmed {}, snapshot {}, applied {}; its newest snapshot is of {newest}",
            now.trimmed,
            now.snapshot,
            now.applied
        );
        said.snapshot = said.snapshot.max(now.snapshot);
        Ok(())
    }
}

/// Checks that a replica keeps its own bounds (I13). What a new leader inherits may exceed its window; it must not add
/// to that.
pub(in super::super) fn within_bounds(node: NodeId, now: &Status, before: &Status, config: &Config) -> Check {
    let inherited = before.phase != Phase::Leader
        || before.undecided.is_some()
        || now.window_entries <= before.window_entries;
    let within = now.pending_commands <= config.max_pending_commands
        && now.pending_bytes <= config.max_pending_bytes
        // A membership is proposed whatever the window holds.
        && (now.window_entries <= config.max_window_entries + 1 || inherited);
    ensure!(
        within,
        "I13",
        "{node} exceeds a bound: {} commands, {} bytes pending, {} entries in flight",
        now.pending_commands,
        now.pending_bytes,
        now.window_entries
    );
    Ok(())
}

pub(in super::super) fn alarm(node: NodeId, alarm: &Alarm) -> Violation {
    Violation::new("alarm", format!("{node} raises {alarm:?}"))
}
