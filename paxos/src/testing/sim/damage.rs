//! Damage of simulated disks.

use std::{format, vec::Vec};

use super::{
    cluster::Cluster,
    coverage::Event as Sometimes,
    machine::Workload,
    node::group_id,
    oracle::{Violation, ensure},
};
use crate::{core::Input, types::Slot};

type Check = Result<(), Violation>;

impl<W: Workload> Cluster<'_, W> {
    /// Records of a node's logs go bad: of a node that is down any, of one that lives only such as it knows to be chosen,
    /// which it may have to read again. Of each slot a minority of the nodes has a damaged record at the most, so
    /// that nothing is lost for good.
    pub(super) fn damage(&mut self, victim: usize) -> Check {
        if self.nodes.len() < 3 || self.nodes[victim].store.is_some() {
            return Ok(());
        }
        let goes_down = self.nodes[victim].life.is_some() && self.random.chance(500);
        if goes_down {
            self.crash_for_a_while(victim)?;
        }
        for group in 0..self.groups.len() {
            for slot in self.slots_to_damage(victim, group) {
                self.say(|| format!("-- the disk of n{} is damaged at slot {slot}", victim + 1));
                self.nodes[victim].disk.damage(group_id(group), slot);
            }
        }
        Ok(())
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
        let copies = |slot: &Slot| {
            let damaged =
                |node: &&super::node::Node<W::Machine>| node.disk.durable.group(id).damaged.contains(slot);
            self.nodes.iter().filter(damaged).count()
        };
        slots.retain(|slot| copies(slot) < self.minority());
        slots
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

    /// At the end no disk has a damaged record of a chosen entry.
    pub(super) fn all_repaired(&self) -> Check {
        for node in &self.nodes {
            for group in 0..self.groups.len() {
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
