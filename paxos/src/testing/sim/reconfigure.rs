//! Membership changes and lost disks: what operators do to a cluster, and what is done to them.

use std::{string::String, vec, vec::Vec};

use super::{
    cluster::{Cluster, Event},
    coverage::Event as Sometimes,
    faults::Fault,
    files::Files,
    machine::Workload,
    node::{Node, group_id},
    oracle::{Violation, ensure},
};
use crate::{
    core::{Input, Phase, Standing, Status, Token},
    types::{Change, ChangeRejection, Membership, NodeId, Role, Slot, StorageId},
};

type Check = Result<(), Violation>;

impl<W: Workload> Cluster<'_, W> {
    /// A user of some node wants the members of some group changed.
    pub(super) fn change_membership(&mut self) {
        let group = self.random.index(self.groups.len());
        let node = self.random.index(self.nodes.len());
        let leader = (0..self.nodes.len()).find(|node| self.nodes[*node].leads(group));
        let node = if self.random.chance(800) {
            leader.unwrap_or(node)
        } else {
            node
        };
        for _ in 0..self.random.pick(&[1, 1, 1, 2]) {
            self.ask_for_change(group, node);
        }
    }

    pub(super) fn ask_for_change(&mut self, group: usize, node: usize) {
        let present = self.groups[group].oracle.membership().clone();
        let (changes, force) = self.draw_changes(&present);
        let wrong = u64::from(self.random.chance(50));
        self.last_token += 1;
        let token = Token(self.last_token);
        if self.nodes[node].life.is_none() || changes.is_empty() {
            return;
        }
        self.groups[group].changes.insert(token, self.nodes[node].id);
        let input = Input::ChangeMembership {
            token,
            expected: present.version + wrong,
            changes,
            force,
        };
        self.input(node, group, input);
        let input = Input::Cancel { token };
        self.after(self.plan.patience, Event::Hint { node, group, input });
    }

    fn draw_changes(&mut self, present: &Membership) -> (Vec<Change>, bool) {
        let all: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        let outside = |node: &NodeId| present.member(*node).is_none();
        let others: Vec<NodeId> = all.iter().copied().filter(outside).collect();
        let node = self.random.pick(&all);
        let other = if others.is_empty() {
            node
        } else {
            self.random.pick(&others)
        };
        let address = self.address_of(other);
        let force = self.random.chance(300);
        let learner = present.members.iter().find(|member| member.role == Role::Learner);
        if let Some(learner) = learner.filter(|_| self.random.chance(300)) {
            return (vec![Change::Promote { node: learner.node }], force);
        }
        let member = present.member(node);
        let change = match self.random.below(10) {
            0 | 1 => Change::AddLearner { node: other, address },
            2 | 3 => match member.map(|member| member.role) {
                None => Change::AddLearner {
                    node,
                    address: self.address_of(node),
                },
                Some(Role::Learner) => Change::Promote { node },
                Some(Role::Voter) => Change::Demote { node },
            },
            4 => Change::Remove { node },
            5 => Change::Replace {
                node,
                by: other,
                address,
            },
            // Groups that disagree about where a node is would be a mistake of the operator. Of two voters that lose each
            // other, only those find each other again who can ask elsewhere.
            6 if self.groups.len() == 1 && present.voters().count() > 2 => Change::SetAddress {
                node,
                address: std::format!("{node}, place {}", self.last_token),
            },
            6 => Change::SetAddress {
                node,
                address: self.address_of(node),
            },
            7 => Change::SetPriority {
                node,
                priority: self.random.below(3) as u8,
            },
            _ => return (self.draw_other_voters(present, &all), true),
        };
        (vec![change], force)
    }

    /// Where a node is.
    fn address_of(&self, node: NodeId) -> String {
        self.node(node)
            .map(|node| node.address.clone())
            .unwrap_or_default()
    }

    /// Makes a random set of nodes the voters, which may have nothing in common with those before; removes the others.
    fn draw_other_voters(&mut self, present: &Membership, all: &[NodeId]) -> Vec<Change> {
        let disjoint = self.random.chance(600);
        let mut wanted: Vec<NodeId> = all.to_vec();
        wanted.retain(|node| {
            let votes = present.voters().any(|voter| voter == *node);
            self.random.chance(600) && !(disjoint && votes)
        });
        if wanted.is_empty() {
            return Vec::new();
        }
        let mut changes = Vec::new();
        for node in all {
            let (node, address) = (*node, self.address_of(*node));
            match (present.member(node), wanted.contains(&node)) {
                (None, true) => {
                    changes.push(Change::AddLearner { node, address });
                    changes.push(Change::Promote { node });
                }
                (Some(member), true) if member.role == Role::Learner => {
                    changes.push(Change::Promote { node });
                }
                (Some(_), false) => changes.push(Change::Remove { node }),
                _ => {}
            }
        }
        changes
    }

    /// A request for another membership has ended.
    pub(super) fn membership_changed(
        &mut self,
        node: usize,
        group: usize,
        token: Token,
        result: &Result<Membership, ChangeRejection>,
    ) -> Check {
        let id = self.nodes[node].id;
        ensure!(
            self.groups[group].changes.remove(&token) == Some(id),
            "exactly once",
            "{id} ends change {token:?}, which is not open there"
        );
        let reason = match result {
            Ok(membership) => {
                let oracle = &self.groups[group].oracle;
                ensure!(
                    oracle.memberships().any(|(_, truly)| truly == membership),
                    "membership",
                    "{id} answers with a membership that was never chosen: {membership:?}"
                );
                Sometimes::ChangeAnswered
            }
            Err(ChangeRejection::VersionMismatch { .. }) => Sometimes::ChangeOfOldVersion,
            Err(ChangeRejection::UnderWay) => Sometimes::ChangeWhileAnother,
            Err(ChangeRejection::NotReady) => Sometimes::ChangeAtNewLeader,
            Err(ChangeRejection::NoLeader) => Sometimes::ChangeWithoutLeader,
            Err(ChangeRejection::Unreachable { .. } | ChangeRejection::Behind { .. }) => {
                Sometimes::ChangeNotReady
            }
            Err(_) => Sometimes::ChangeInvalid,
        };
        self.coverage.meet(reason);
        Ok(())
    }

    /// New memberships have been truly chosen.
    pub(super) fn observe_memberships(&mut self, group: usize) {
        let seen = self.groups[group].memberships_seen;
        let known: Vec<Membership> = {
            let oracle = &self.groups[group].oracle;
            let later = oracle.memberships().skip(seen - 1);
            later.map(|(_, membership)| membership.clone()).collect()
        };
        let damaged = known.len() > 1 && self.has_damage(group);
        for pair in known.windows(2) {
            self.groups[group].memberships_seen += 1;
            let [before, after] = pair else { continue };
            let coverage = &mut self.coverage;
            coverage.meet(Sometimes::MembershipChosen);
            coverage.meet_if(damaged, Sometimes::MembershipBesideDamage);
            coverage.meet_if(self.network.has_cuts(), Sometimes::ChangeAcrossCut);
            let disk =
                |membership: &Membership, node| membership.member(node).and_then(|member| member.storage);
            for member in &after.members {
                let node = self.nodes.iter_mut().find(|node| node.id == member.node);
                if let Some(node) = node.filter(|node| node.address != member.address) {
                    // It moves when that has been decided.
                    node.address.clone_from(&member.address);
                    coverage.meet(Sometimes::Moved);
                }
                let (old, new) = (disk(before, member.node), member.storage);
                let was_member = before.member(member.node).is_some();
                coverage.meet_if(
                    was_member && old.is_none() && new.is_some(),
                    Sometimes::DiskPinned,
                );
                coverage.meet_if(
                    old.is_some() && new.is_some() && old != new,
                    Sometimes::DiskReadmitted,
                );
            }
            let stays = before
                .voters()
                .any(|voter| after.voters().any(|other| other == voter));
            coverage.meet_if(!stays, Sometimes::DisjointChange);
        }
    }

    pub(super) fn observe_standing(&mut self, before: &Status, now: &Status) {
        let coverage = &mut self.coverage;
        let told = now.standing == Standing::Removed && before.standing != Standing::Removed;
        coverage.meet_if(told, Sometimes::RemovedTold);
        let drained = before.draining && before.pending_commands == 0;
        coverage.meet_if(told && drained, Sometimes::DrainedBeforeRemoval);
        let stays = now.standing != Standing::Removed && !now.draining;
        coverage.meet_if(before.draining && stays, Sometimes::DrainGivenUp);
        let left = before.phase == Phase::Leader && now.phase != Phase::Leader;
        coverage.meet_if(
            left && now.standing != Standing::Voter,
            Sometimes::LeaderRemovedItself,
        );
    }

    /// A node loses its disk, if that is survivable: the others have recorded the disk, know that, and are a quorum
    /// without it.
    pub(super) fn lose_disk(&mut self, victim: usize) -> Check {
        if self.plan.faults.has(Fault::Damage) && self.nodes.len() > 3 && self.random.chance(700) {
            let other = self.random.index(self.nodes.len());
            self.damage(other)?;
        }
        let survivable = (0..self.groups.len())
            .all(|group| self.can_lose(victim, group) && self.makes_up_for_damage(victim, group));
        if !survivable || self.nodes[victim].store.is_some() {
            return Ok(());
        }
        self.coverage.meet(Sometimes::DiskLost);
        let damaged = (0..self.groups.len()).any(|group| self.has_damage(group));
        self.coverage.meet_if(damaged, Sometimes::DiskLostBesideDamage);
        let id = self.nodes[victim].id;
        self.say(|| std::format!("-- n{id} loses its disk"));
        self.replace_disk(victim)?;
        let joins = self.random.chance(400);
        self.nodes[victim].joins = joins;
        self.coverage.meet_if(joins, Sometimes::DiskLostAndJoined);
        self.restart_later(victim);
        Ok(())
    }

    /// A node dies, and its disk with it; an empty one takes its place.
    pub(super) fn replace_disk(&mut self, victim: usize) -> Check {
        self.crash(victim)?;
        let Node {
            disk, files, storage, ..
        } = &mut self.nodes[victim];
        disk.replace();
        files.fill_with(Files::default);
        *storage = StorageId(storage.0 + 1_000);
        Ok(())
    }

    pub(super) fn can_lose(&self, victim: usize, group: usize) -> bool {
        let (id, storage) = self.nodes[victim].acceptor();
        let oracle = &self.groups[group].oracle;
        let pinned = |membership: &Membership| {
            membership
                .member(id)
                .is_some_and(|member| member.storage == Some(storage))
        };
        let known: Vec<(Slot, &Membership)> = oracle.memberships().collect();
        let since = known
            .iter()
            .rev()
            .take_while(|(_, membership)| pinned(membership))
            .last();
        let Some((since, _)) = since.copied() else {
            return false;
        };
        // Whoever may still take the memberships before that for the present one would count the new disk.
        let is_unaware = |node: NodeId| {
            let disk = self
                .node(node)
                .map(|node| node.disk.durable.group(group_id(group)));
            node == id || disk.is_none_or(|disk| disk.hard.membership < since)
        };
        let forgets = |(at, membership): &(Slot, &Membership)| {
            let counts = membership
                .member(id)
                .is_some_and(|member| member.role == Role::Voter && member.storage.is_none());
            let unaware = membership.voters().filter(|node| is_unaware(*node)).count();
            *at < since && counts && unaware >= membership.quorum()
        };
        let lives = |membership: &Membership| {
            membership.is_quorum(|voter| {
                let has = self.node(voter.node).map(|node| node.storage);
                voter.node != id && voter.storage.is_none_or(|storage| has == Some(storage))
            })
        };
        // What nobody who is left knows to be chosen must be chosen again by the voters before it.
        let latest = known.last().map_or(Slot::ZERO, |(at, _)| *at);
        let aware = oracle.membership().is_quorum(|voter| {
            let disk = self
                .node(voter.node)
                .map(|node| node.disk.durable.group(group_id(group)));
            voter.node != id && disk.is_some_and(|disk| disk.hard.membership >= latest)
        });
        let mut proposed = oracle.proposed_memberships();
        aware && !known.iter().any(forgets) && lives(oracle.membership()) && proposed.all(|next| lives(&next))
    }

    fn node(&self, id: NodeId) -> Option<&Node<W::Machine>> {
        self.nodes.iter().find(|node| node.id == id)
    }

    pub(super) fn is_member(&self, node: usize, group: usize) -> bool {
        let membership = self.groups[group].oracle.membership();
        membership.member(self.nodes[node].id).is_some()
    }

    /// Users of nodes that belong to a group no more, or not yet, wait no longer.
    pub(super) fn cancel_outside(&mut self) {
        for group in 0..self.groups.len() {
            for node in 0..self.nodes.len() {
                if !self.is_member(node, group) {
                    for token in self.groups[group].history.open_at(self.nodes[node].id) {
                        self.input(node, group, Input::Cancel { token });
                    }
                }
            }
        }
    }

    /// Whether every member has the disk that it was admitted with.
    pub(super) fn all_admitted(&self, group: usize) -> Check {
        for member in &self.groups[group].oracle.membership().members {
            let has = self.node(member.node).map(|node| node.storage);
            ensure!(
                member.storage.is_none() || member.storage == has || !self.plan.faults.has(Fault::LostDisk),
                "L2",
                "{} has not been admitted with its new disk at the end",
                member.node
            );
        }
        Ok(())
    }
}
