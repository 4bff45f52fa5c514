//! Damage of simulated disks.

use std::{format, vec::Vec};

use super::{
    cluster::Cluster,
    coverage::Event as Sometimes,
    faults::Fault,
    machine::Workload,
    node::{Node, group_id},
    oracle::{Violation, ensure},
};
use crate::{
    core::Input,
    types::{Member, Slot},
};

type Check = Result<(), Violation>;

impl<W: Workload> Cluster<'_, W> {
    /// Records of a node's logs go bad: of a node that is down any, of one that lives only such as it knows to be chosen,
    /// which it may have to read again. Nothing is lost for good.
    pub(super) fn damage(&mut self, victim: usize) -> Check {
        if self.nodes.len() < 3 || self.nodes[victim].store.is_some() {
            return Ok(());
        }
        let goes_down = self.nodes[victim].life.is_some() && self.random.chance(500);
        if goes_down {
            self.crash_for_a_while(victim)?;
        }
        if self.plan.faults.has(Fault::LostDisk) && self.random.chance(700) {
            self.lose_snapshots(victim);
        }
        for group in 0..self.groups.len() {
            for slot in self.slots_to_damage(victim, group) {
                self.say(|| format!("-- the disk of n{} is damaged at slot {slot}", victim + 1));
                self.nodes[victim].disk.damage(group_id(group), slot);
            }
        }
        Ok(())
    }

    /// A node that is down loses all of its snapshots, unless something would be lost for good.
    fn lose_snapshots(&mut self, victim: usize) {
        if self.nodes[victim].life.is_some() {
            return;
        }
        for group in 0..self.groups.len() {
            let trimmed = self.nodes[victim].disk.durable.group(group_id(group)).trimmed;
            let mut slots = (1..=trimmed.0).map(Slot);
            if trimmed == Slot::ZERO || !slots.all(|slot| self.can_spare(victim, group, slot)) {
                continue;
            }
            self.say(|| format!("-- n{} loses its snapshots of group {}", victim + 1, group + 1));
            self.coverage.meet(Sometimes::SnapshotsLost);
            self.nodes[victim].files[group].lose_above(Slot::ZERO);
            let acceptor = self.nodes[victim].acceptor();
            self.groups[group].oracle.lost_snapshots(acceptor, Slot::ZERO);
        }
    }

    fn slots_to_damage(&mut self, victim: usize, group: usize) -> Vec<Slot> {
        let id = group_id(group);
        let node = &self.nodes[victim];
        let known = node.seat(group).map_or(Slot::MAX, |seat| seat.status.chosen);
        let state = node.disk.durable.group(id);
        let held: Vec<Slot> = state.entries.range(..=known).map(|(slot, _)| *slot).collect();
        let membership = state.hard.membership;
        if held.is_empty() {
            return Vec::new();
        }
        let newest = self.random.chance(500);
        // What a node that is behind will ask for.
        let behind = self
            .nodes
            .iter()
            .filter_map(|node| node.seat(group))
            .map(|seat| seat.status.chosen);
        let behind = behind.min().filter(|_| known < Slot::MAX).unwrap_or_default();
        let needed = held.iter().position(|slot| *slot > behind);
        let first = if let Some(needed) = needed.filter(|_| behind > Slot::ZERO && newest) {
            needed
        } else if newest {
            held.len() - 1 - self.random.index(held.len().min(8))
        } else {
            self.random.index(held.len())
        };
        let count = self.random.between(1, 4) as usize;
        let mut slots: Vec<Slot> = held.into_iter().skip(first).take(count).collect();
        if self.random.chance(200) && membership > Slot::ZERO {
            slots.push(membership);
        }
        slots.retain(|slot| self.can_spare(victim, group, *slot));
        slots
    }

    /// Whether nothing is lost for good if this node does not have its record of a slot any more: the voters whose record
    /// is whole are a quorum, so that they find whatever was chosen there; and where that was chosen by earlier voters, a
    /// quorum of the present ones holds it. Those of a membership that may be the next one must be as good.
    fn can_spare(&self, victim: usize, group: usize, slot: Slot) -> bool {
        let oracle = &self.groups[group].oracle;
        let is_later = oracle.memberships().all(|(at, _)| at < slot);
        let is_whole = |voter: &Member| {
            let node = self.nodes.iter().find(|node| node.id == voter.node);
            node.filter(|node| node.id != self.nodes[victim].id && voter.admits(node.storage))
                .is_some_and(|node| {
                    let disk = node.disk.durable.group(group_id(group));
                    let covered = slot <= disk.trimmed && node.files[group].newest() >= disk.trimmed;
                    let held = covered || disk.entries.contains_key(&slot);
                    !disk.damaged.contains(&slot) && (held || is_later)
                })
        };
        let next = oracle.proposed_memberships();
        oracle.membership().is_quorum(is_whole) && next.into_iter().all(|next| next.is_quorum(is_whole))
    }

    /// Whether a disk holds a damaged record of the group.
    pub(super) fn has_damage(&self, group: usize) -> bool {
        let damaged = |node: &Node<W::Machine>| !node.disk.durable.group(group_id(group)).damaged.is_empty();
        self.nodes.iter().any(damaged)
    }

    /// Whether the others make up for everything of a group that is damaged anywhere, if this node loses its disk.
    pub(super) fn makes_up_for_damage(&self, victim: usize, group: usize) -> bool {
        let damaged = self
            .nodes
            .iter()
            .flat_map(|node| &node.disk.durable.group(group_id(group)).damaged);
        damaged
            .into_iter()
            .all(|slot| self.can_spare(victim, group, *slot))
    }

    pub(super) fn observe_damage_at_start(&mut self, node: usize, group: usize) {
        let state = self.nodes[node].disk.durable.group(group_id(group));
        let chosen = state.hard.chosen;
        let below = state.damaged.first().is_some_and(|slot| *slot <= chosen);
        let above = state.damaged.last().is_some_and(|slot| *slot > chosen);
        let membership = state.damaged.contains(&state.hard.membership);
        self.coverage.meet_if(below, Sometimes::DamageAtStart);
        self.coverage.meet_if(above, Sometimes::DamagedVoteAtStart);
        self.coverage.meet_if(membership, Sometimes::DamagedMembership);
    }

    /// All living nodes read all of their logs.
    pub(super) fn scrub(&mut self) {
        for node in 0..self.nodes.len() {
            for group in 0..self.groups.len() {
                let damaged = &self.nodes[node].disk.view.group(group_id(group)).damaged;
                let slots: Vec<Slot> = damaged.iter().copied().collect();
                if !slots.is_empty() && self.nodes[node].life.is_some() {
                    self.coverage.meet(Sometimes::DamageAtRead);
                    self.input(node, group, Input::Damaged { slots });
                }
            }
        }
    }

    /// At the end no member's disk has a damaged record of a chosen entry, or a log without the snapshot before it.
    pub(super) fn all_repaired(&self) -> Check {
        for (index, node) in self.nodes.iter().enumerate() {
            for group in (0..self.groups.len()).filter(|group| self.is_member(index, *group)) {
                let lacking = node.seat(group).is_some_and(|seat| seat.status.lacks_snapshot);
                ensure!(
                    !lacking,
                    "repair",
                    "{} has got no snapshot of group {}",
                    node.id,
                    group + 1
                );
                let chosen = node.seat(group).map_or(Slot::ZERO, |seat| seat.status.chosen);
                let state = node.disk.view.group(group_id(group));
                let damaged = state.damaged.first().filter(|slot| **slot <= chosen);
                ensure!(
                    damaged.is_none(),
                    "repair",
                    "{}'s record of slot {damaged:?} of group {} is still damaged",
                    node.id,
                    group + 1
                );
            }
        }
        Ok(())
    }
}
