//! Disks that hold something else than was written to them, with checksums that are right: an entry was altered, or the
//! whole disk was set back. It happens at the end of a run, when nothing else goes wrong: the one node must find itself
//! in quarantine, no other, the rest of the group goes on, and with an empty disk the node comes back.

use std::{format, vec::Vec};

use super::{
    cluster::Cluster,
    coverage::Event as Sometimes,
    faults::{Fault, MS},
    files::Files,
    history::{Outcome, Request},
    machine::Workload,
    node::group_id,
    oracle::{Violation, ensure},
};
use crate::{
    core::Alarm,
    types::{EntryKind, Quarantine, Slot},
};

/// How long a replica may take to be found out, in tenths of a second.
const PATIENCE_STEPS: u64 = 200;

type Check = Result<(), Violation>;

impl<W: Workload> Cluster<'_, W> {
    /// Plays it for a random group and one of its members, if the group survives that.
    pub(super) fn tamper(&mut self) -> Check {
        let group = self.random.index(self.groups.len());
        let victims: Vec<usize> = (0..self.nodes.len())
            .filter(|node| self.may_be_altered(*node, group))
            .collect();
        if victims.is_empty() || !self.plan.faults.has(Fault::Alteration) {
            return Ok(());
        }
        let victim = self.random.pick(&victims);
        let altered = if self.random.chance(500) {
            self.alter_an_entry(victim, group)?
        } else {
            self.set_back(victim, group)?
        };
        if !altered {
            // It may have been started again for it.
            return self.align();
        }
        self.must_be_found_out(victim, group)?;
        self.others_go_on(victim, group)?;
        self.replace_disk(victim)?;
        self.nodes[victim].altered = false;
        self.start(victim)?;
        self.align()?;
        for _ in 0..PATIENCE_STEPS {
            if (0..self.groups.len()).any(|group| self.all_admitted(group).is_err()) {
                self.run_for(100 * MS)?;
            }
        }
        // It may have led other groups.
        let election = self.plan.config.election_timeout.as_micros() as u64;
        self.run_for(4 * election)?;
        self.probe("L1")?;
        self.run_for(2 * election)?;
        self.align()
    }

    /// Whether the node lives, all groups survive the loss of its disk, and a quorum of this one lives without it.
    fn may_be_altered(&self, victim: usize, group: usize) -> bool {
        let node = &self.nodes[victim];
        let lives = |id| self.nodes.iter().any(|node| node.id == id && node.life.is_some());
        let membership = self.groups[group].oracle.membership();
        let others = membership.is_quorum(|voter| voter.node != node.id && lives(voter.node));
        let survivable = (0..self.groups.len()).all(|group| self.can_lose(victim, group));
        node.life.is_some() && node.store.is_none() && survivable && others
    }

    /// Alters a random entry that will be read again. False if there is none.
    fn alter_an_entry(&mut self, victim: usize, group: usize) -> Result<bool, Violation> {
        self.crash(victim)?;
        let node = &self.nodes[victim];
        let state = node.disk.durable.group(group_id(group));
        let snapshot = node.files[group].newest();
        let commands = state.entries.iter().filter(|(slot, held)| {
            snapshot < **slot && **slot <= state.hard.chosen && held.entry.kind == EntryKind::Commands
        });
        let slots: Vec<Slot> = commands.map(|(slot, _)| *slot).collect();
        if !slots.is_empty() {
            let slot = self.random.pick(&slots);
            self.say(|| format!("-- n{} holds something else in slot {slot}", victim + 1));
            let node = &mut self.nodes[victim];
            node.altered = node.disk.alter(group_id(group), slot);
        }
        self.start(victim)?;
        Ok(self.nodes[victim].altered)
    }

    /// Sets the disk of a voter that follows back behind something that it has acknowledged. False if that cannot be
    /// arranged.
    fn set_back(&mut self, victim: usize, group: usize) -> Result<bool, Violation> {
        let leader = (0..self.nodes.len()).find(|node| self.nodes[*node].leads(group));
        let (id, storage) = self.nodes[victim].acceptor();
        let votes = self.groups[group].oracle.membership().may_vote(id, storage);
        let Some(leader) = leader.filter(|leader| *leader != victim && votes) else {
            return Ok(false);
        };
        let led_by = |cluster: &Self| {
            let seat = cluster.nodes[leader].seat(group);
            seat.and_then(|seat| seat.status.leader)
        };
        let ballot = led_by(self);
        let copy = self.nodes[victim].disk.durable.clone();
        let files: Vec<Files> = self.nodes[victim].files.clone();
        let lives = self.nodes[victim].disk.incarnation;
        for _ in 0..self.random.below(3) {
            self.crash(victim)?;
            self.start(victim)?;
        }
        let command = self.command();
        self.request(leader, group, Request::Write(command));
        let election = self.plan.config.election_timeout.as_micros() as u64;
        self.run_for(4 * election)?;
        let disk = &self.nodes[victim].disk;
        let last = |state: &super::disk::DiskState| state.entries.keys().next_back().copied();
        let forgets = last(disk.durable.group(group_id(group))) > last(copy.group(group_id(group)));
        let spares_others = (0..self.groups.len())
            .filter(|other| *other != group)
            .all(|other| {
                let (now, then) = (disk.durable.group(group_id(other)), copy.group(group_id(other)));
                now.entries == then.entries && now.hard.promised == then.hard.promised
            });
        if !forgets || !spares_others || led_by(self) != ballot {
            return Ok(false);
        }
        self.say(|| format!("-- the disk of n{} is set back", victim + 1));
        self.crash(victim)?;
        let node = &mut self.nodes[victim];
        node.disk.set_back(&copy);
        node.files = files;
        node.altered = true;
        if self.random.chance(300) {
            // The clock is behind, too, so that lives are numbered again from there. Nothing is left of those before.
            self.coverage.meet(Sometimes::LivesNumberedAgain);
            self.nodes[victim].disk.incarnation = lives;
            self.run_for(8 * election)?;
        }
        self.start(victim)?;
        Ok(true)
    }

    fn quarantine(&self, node: usize, group: usize) -> Option<Quarantine> {
        self.nodes[node]
            .seat(group)
            .and_then(|seat| seat.status.quarantine)
    }

    fn must_be_found_out(&mut self, victim: usize, group: usize) -> Check {
        for _ in 0..PATIENCE_STEPS {
            if self.quarantine(victim, group).is_none() {
                self.run_for(100 * MS)?;
            }
        }
        let id = self.nodes[victim].id;
        let Some(why) = self.quarantine(victim, group) else {
            return Err(Violation::new(
                "quarantine",
                format!("{id} holds something else than its group, and nobody notices"),
            ));
        };
        let event = match why {
            Quarantine::Diverged { .. } => Sometimes::DivergedQuarantined,
            Quarantine::RolledBack { .. } => Sometimes::RolledBackQuarantined,
        };
        self.coverage.meet(event);
        for node in 0..self.nodes.len() {
            for other in 0..self.groups.len() {
                ensure!(
                    (node, other) == (victim, group) || self.quarantine(node, other).is_none(),
                    "quarantine",
                    "{} is quarantined in group {}, but nothing is wrong with it",
                    self.nodes[node].id,
                    other + 1
                );
            }
        }
        Ok(())
    }

    fn others_go_on(&mut self, victim: usize, group: usize) -> Check {
        for _ in 0..PATIENCE_STEPS {
            let leader = (0..self.nodes.len()).find(|node| *node != victim && self.nodes[*node].leads(group));
            let Some(leader) = leader else {
                self.run_for(100 * MS)?;
                continue;
            };
            let command = self.command();
            let token = self.request(leader, group, Request::Write(command));
            self.run_for(500 * MS)?;
            if token.is_some_and(|token| self.outcome(token) == Some(Outcome::Answered)) {
                return Ok(());
            }
        }
        let detail = format!(
            "group {} does not go on without {}, which is quarantined",
            group + 1,
            self.nodes[victim].id
        );
        Err(Violation::new("quarantine", detail))
    }

    /// What an oracle finds at a node counts unless its disk was altered.
    pub(super) fn demand_of(&self, node: usize, check: Check) -> Check {
        if self.nodes[node].altered { Ok(()) } else { check }
    }

    /// What a replica raises is right if a disk was altered, and the replica says just that.
    pub(super) fn is_expected(&self, node: usize, alarm: &Alarm) -> bool {
        let finds_out = matches!(alarm, Alarm::HashesDiffer { .. } | Alarm::RolledBack { .. });
        let somewhere = self.nodes.iter().any(|node| node.altered);
        self.nodes[node].altered || (finds_out && somewhere)
    }
}
