//! What goes wrong, and when it is right again.

use std::{format, string::String, vec, vec::Vec};

use super::{
    cluster::{Cluster, Event},
    coverage::Event as Sometimes,
    faults::{Fault, MS, SECOND},
    history::{Outcome, Request},
    machine::Workload,
    node::Node,
    oracle::{Violation, ensure},
};
use crate::core::Token;

/// The end of a fault, or its next step.
#[derive(Debug)]
pub(super) enum Undo {
    Mend(Vec<(usize, usize)>),
    /// These links are cut in their turn, for so long.
    Cut(Vec<(usize, usize)>, u64),
    Resume(usize),
    Restart(usize),
    FastDisk(usize),
    FreeDisk(usize),
    /// The leader is heard again, and goes on.
    BridgeGap(usize),
    Crash(usize),
}

type Check = Result<(), Violation>;

/// The faults that strike now and then (the others are there all the time), each as often as it stands here.
const STRIKES: &[Fault] = &[
    Fault::Clog,
    Fault::Partition,
    Fault::Cut,
    Fault::OneWayCut,
    Fault::Isolation,
    Fault::Isolation,
    Fault::Isolation,
    Fault::Isolation,
    Fault::Crash,
    Fault::Crash,
    Fault::Crash,
    Fault::CrashAll,
    Fault::Pause,
    Fault::Pause,
    Fault::SlowDisk,
    Fault::FullDisk,
    Fault::Damage,
    Fault::Succession,
    Fault::Succession,
    Fault::Gap,
    Fault::Gap,
    Fault::LateAnswers,
    Fault::LateAnswers,
    Fault::LateAnswers,
    Fault::LateAnswers,
    Fault::Transfer,
    Fault::Transfer,
    Fault::Transfer,
    Fault::Reconfiguration,
    Fault::Reconfiguration,
    Fault::Reconfiguration,
    Fault::Reconfiguration,
    Fault::Reconfiguration,
    Fault::LostDisk,
    Fault::LostDisk,
    Fault::LostDisk,
];

/// How long a probe waits at the most, in tenths of a second: bursts may have left much to do.
const PROBE_STEPS: u64 = 200;

impl<W: Workload> Cluster<'_, W> {
    /// The whole run.
    pub(super) fn live(&mut self) -> Check {
        let plan = self.plan.clone();
        self.say(|| format!("{plan:?}"));
        for node in 0..self.nodes.len() {
            self.start(node)?;
        }
        for _ in 0..self.plan.storms {
            self.storm()?;
            self.calm("L1")?;
        }
        self.tamper()?;
        self.converge()
    }

    fn storm(&mut self) -> Check {
        self.say(|| String::from("-- storm"));
        self.epoch += 1;
        self.network.calm = false;
        let loses_disks = self.plan.faults.has(Fault::LostDisk) && self.random.chance(400);
        self.reconfigures = self.plan.faults.has(Fault::Reconfiguration) && !loses_disks;
        self.clients_begin();
        self.schedule_fault();
        let duration = SECOND / 2 + self.random.exponential(self.plan.storm_mean).min(10 * SECOND);
        self.run_for(duration)
    }

    /// Everything is repaired; after a while every node must answer.
    fn calm(&mut self, oracle: &'static str) -> Check {
        self.say(|| String::from("-- calm"));
        self.epoch += 1;
        self.network.calm = true;
        self.network.mend_all();
        for node in 0..self.nodes.len() {
            self.nodes[node].slow_disk = false;
            self.nodes[node].full_disk = false;
            self.resume(node);
            self.start(node)?;
        }
        self.scrub();
        let election = self.plan.config.election_timeout.as_micros() as u64;
        if self.random.chance(500) {
            self.run_for(election * 2)?;
        }
        self.clients_active = false;
        self.run_for(self.plan.patience + election * 4)?;
        self.cancel_outside();
        self.align()?;
        self.disturb_rest()?;
        self.probe(oracle)?;
        if self.plan.faults.has(Fault::Transfer) {
            self.probe_transfer(oracle)?;
            self.probe(oracle)?;
        }
        self.run_for(election * 2)
    }

    /// Without anybody asking for anything all replicas come to hold the same, and know it.
    pub(super) fn align(&mut self) -> Check {
        for _ in 0..PROBE_STEPS {
            if self.is_aligned().is_err() {
                self.run_for(100 * MS)?;
            }
        }
        self.is_aligned()
    }

    fn is_aligned(&self) -> Check {
        for (index, group) in self.groups.iter().enumerate() {
            let chosen = group.oracle.chosen();
            let is_member = |node: &&Node<W::Machine>| group.oracle.membership().member(node.id).is_some();
            for node in self.nodes.iter().filter(is_member) {
                let applied = node.seat(index).map(|seat| seat.applied);
                ensure!(
                    applied == Some(chosen),
                    "L2",
                    "{} has applied {applied:?} of group {} after a while without faults and requests, chosen is {chosen}",
                    node.id,
                    index + 1
                );
            }
        }
        Ok(())
    }

    /// A leader that rests is given something to do while it cannot reach one peer, for less than an election timeout and
    /// with or without hearing it: that peer must not be forgotten when the group rests again.
    fn disturb_rest(&mut self) -> Check {
        let group = self.random.index(self.groups.len());
        let rests = |node: &usize| {
            self.nodes[*node]
                .seat(group)
                .is_some_and(|seat| seat.status.resting)
        };
        let leader = (0..self.nodes.len()).find(|node| self.nodes[*node].leads(group) && rests(node));
        let Some(leader) = leader.filter(|_| self.plan.faults.has(Fault::Lull)) else {
            return Ok(());
        };
        let members: Vec<usize> = (0..self.nodes.len())
            .filter(|node| self.is_member(*node, group))
            .collect();
        let peer = self.random.pick(&members);
        let election = self.plan.config.election_timeout.as_micros() as u64;
        self.say(|| {
            format!(
                "-- n{} cannot reach n{}, and has something to do",
                leader + 1,
                peer + 1
            )
        });
        if self.random.chance(500) {
            self.network.cut(peer, leader);
            self.run_for(2 * election)?;
        }
        self.network.cut(leader, peer);
        let command = self.command();
        self.request(leader, group, Request::Write(command));
        self.run_for(election * 6 / 10)?;
        self.network.mend_all();
        self.run_for(2 * election)?;
        self.align()
    }

    /// A write and a read of each group at each node.
    pub(super) fn probe(&mut self, oracle: &'static str) -> Check {
        for group in 0..self.groups.len() {
            self.probe_group(group, oracle)?;
        }
        Ok(())
    }

    fn probe_group(&mut self, group: usize, oracle: &'static str) -> Check {
        let mut tokens: Vec<(Token, bool)> = Vec::new();
        for node in 0..self.nodes.len() {
            if !self.is_member(node, group) {
                continue;
            }
            let unique = self.last_token + 1;
            let command = self.workload.command(&mut self.random, unique);
            let write = self.request(node, group, Request::Write(command));
            tokens.extend(write.map(|token| (token, true)));
            let read = self.request(node, group, Request::Read);
            tokens.extend(read.map(|token| (token, false)));
        }
        for _ in 0..PROBE_STEPS {
            if tokens.iter().any(|(token, _)| self.is_open(*token)) {
                self.run_for(100 * MS)?;
            }
        }
        let mut answered = [0, 0];
        for (token, is_write) in tokens {
            let outcome = self.outcome(token);
            let cancelled = self.plan.faults.has(Fault::Oddities) && outcome.is_some();
            // Without a tail of the log a follower that is the least behind gets a snapshot.
            let covered = self.plan.config.snapshots && self.plan.config.keep_entries == 0;
            let unknown = covered && outcome == Some(Outcome::Unknown);
            let referred = !self.plan.config.forward && outcome == Some(Outcome::Rejected);
            answered[usize::from(is_write)] += usize::from(outcome == Some(Outcome::Answered));
            if outcome != Some(Outcome::Answered) && !cancelled && !referred && !unknown {
                let what = if is_write { "write" } else { "read" };
                let operation = self.operation(token);
                let detail = format!("no fault for a while, but the {what} {operation:?} is not answered");
                return Err(Violation { oracle, detail });
            }
        }
        let progress = answered.iter().all(|count| *count > 0) || self.plan.faults.has(Fault::Oddities);
        if progress {
            return Ok(());
        }
        let detail = format!("no fault for a while, but no node answers ({answered:?} reads and writes)");
        Err(Violation { oracle, detail })
    }

    /// At the end everybody holds and has applied the same, and nothing is open.
    fn converge(&mut self) -> Check {
        self.is_aligned()?;
        for (index, group) in self.groups.iter().enumerate() {
            self.all_admitted(index)?;
            let open = group.history.any_open();
            ensure!(
                open.is_none(),
                "exactly once",
                "{open:?} has not ended: {:?}",
                open.and_then(|token| group.history.operation(token))
            );
        }
        self.all_repaired()?;
        self.all_transfers_ended()?;
        for node in &mut self.nodes {
            if let Some(store) = &mut node.store {
                store.close(&node.disk.durable)?;
            }
        }
        Ok(())
    }

    fn schedule_fault(&mut self) {
        let delay = self.random.exponential(self.plan.fault_gap_mean);
        self.after(delay, Event::Fault);
    }

    pub(super) fn next_fault(&mut self) -> Check {
        if self.network.calm {
            return Ok(());
        }
        self.schedule_fault();
        if self.random.chance(200) {
            let absent = self.random.index(self.nodes.len());
            self.strike(Fault::Absence, absent)?;
        }
        let fault = self.random.pick(STRIKES);
        let leader = (0..self.nodes.len()).find(|node| self.nodes[*node].leads_any());
        let victim = match (fault, leader) {
            // Whom everybody else replaces at once, while it believes for a while that it leads on.
            (Fault::Isolation | Fault::LateAnswers | Fault::Gap, Some(leader)) => leader,
            _ => self.victim(),
        };
        self.strike(fault, victim)
    }

    /// Takes the leader of a group away, out of turn.
    pub(super) fn strike_leader(&mut self, group: usize) -> Check {
        let fault = self.random.pick(&[Fault::Crash, Fault::Crash, Fault::Isolation]);
        let leader = (0..self.nodes.len()).find(|node| self.nodes[*node].leads(group));
        leader.map_or(Ok(()), |leader| self.strike(fault, leader))
    }

    pub(super) fn strike(&mut self, fault: Fault, victim: usize) -> Check {
        let leads = fault == Fault::Absence && self.nodes[victim].leads_any();
        if self.network.calm || leads || !self.plan.faults.has(fault) {
            return Ok(());
        }
        self.say(|| format!("-- {}", fault.name()));
        // Most isolated leaders come back while they still believe that they lead.
        let mean = if fault == Fault::Isolation && self.random.chance(700) {
            SECOND / 4
        } else {
            SECOND
        };
        let least = if fault == Fault::Absence {
            SECOND / 2
        } else {
            20 * MS
        };
        let duration = least + self.random.exponential(mean);
        match fault {
            Fault::Crash => return self.crash_minority(victim),
            Fault::CrashAll => return self.crash_all(),
            Fault::Pause => {
                self.coverage
                    .meet_if(self.nodes[victim].leads_any(), Sometimes::LeaderPaused);
                self.nodes[victim].paused = true;
                self.undo_after(duration, Undo::Resume(victim));
            }
            Fault::SlowDisk => {
                self.nodes[victim].slow_disk = true;
                self.undo_after(duration, Undo::FastDisk(victim));
            }
            Fault::FullDisk => {
                self.nodes[victim].full_disk = true;
                self.undo_after(duration, Undo::FreeDisk(victim));
            }
            Fault::Damage => return self.damage(victim),
            Fault::LateAnswers => self.answer_late(victim),
            Fault::Gap => self.leave_gap(victim),
            Fault::Transfer => self.ask_for_transfer(victim),
            Fault::Reconfiguration if self.reconfigures => self.change_membership(),
            Fault::LostDisk if !self.reconfigures => return self.lose_disk(victim),
            Fault::Reconfiguration | Fault::LostDisk => {}
            Fault::Succession => {
                let group = self.random.index(self.groups.len());
                self.succeed(group, Vec::new());
            }
            Fault::Clog => {
                let other = self.random.index(self.nodes.len());
                let until = self.now + duration;
                self.network.clog(victim, other, until);
            }
            _ => {
                let links = self.links_to_cut(fault, victim);
                self.say(|| format!("-- cut {links:?} (counted from 0)"));
                for (from, to) in &links {
                    self.network.cut(*from, *to);
                    self.notice(*to, *from);
                }
                self.undo_after(duration, Undo::Mend(links));
            }
        }
        Ok(())
    }

    /// What others say to a leader waits, then what it says is cut off. The answers arrive about when the others look
    /// for a new leader: they tell of the past.
    fn answer_late(&mut self, leader: usize) {
        let heartbeat = self.plan.config.heartbeat_interval.as_micros() as u64;
        let election = self.plan.config.election_timeout.as_micros() as u64;
        let cut_after = self.random.between(heartbeat, heartbeat * 2);
        let late = cut_after + election * self.random.between(700, 950) / 1_000;
        let words = self.words_of(leader);
        for (_, other) in &words {
            self.network.clog(*other, leader, self.now + late);
        }
        self.undo_after(cut_after, Undo::Cut(words, 2 * election));
    }

    /// What the leader proposes now reaches nobody.
    fn leave_gap(&mut self, leader: usize) {
        let words = self.words_of(leader);
        for (from, to) in &words {
            self.network.cut(*from, *to);
        }
        self.propose_at(leader);
        self.undo_after(2 * MS, Undo::BridgeGap(leader));
    }

    /// What it proposes next does, for about as long as a message takes: some of the others hold that when it crashes, and
    /// nobody what came before.
    fn bridge_gap(&mut self, leader: usize) {
        for (from, to) in self.words_of(leader) {
            self.network.mend(from, to);
        }
        self.propose_at(leader);
        let soon = MS + self.random.exponential(self.plan.delay_mean);
        self.undo_after(soon, Undo::Crash(leader));
    }

    fn words_of(&self, node: usize) -> Vec<(usize, usize)> {
        let others = (0..self.nodes.len()).filter(|other| *other != node);
        others.map(|other| (node, other)).collect()
    }

    /// A few commands, in the groups that this node leads.
    fn propose_at(&mut self, leader: usize) {
        for group in 0..self.groups.len() {
            if self.nodes[leader].leads(group) {
                for _ in 0..self.random.between(1, 3) {
                    let command = self.command();
                    self.request(leader, group, Request::Write(command));
                }
            }
        }
    }

    /// Often the leader, else anybody.
    fn victim(&mut self) -> usize {
        let leader = self.some_leader();
        let anybody = self.random.index(self.nodes.len());
        if self.random.chance(400) {
            leader.unwrap_or(anybody)
        } else {
            anybody
        }
    }

    fn links_to_cut(&mut self, fault: Fault, victim: usize) -> Vec<(usize, usize)> {
        let count = self.nodes.len();
        let other = self.random.index(count);
        match fault {
            Fault::Cut => vec![(victim, other), (other, victim)],
            Fault::OneWayCut => vec![(victim, other)],
            Fault::Isolation | Fault::Absence => (0..count)
                .flat_map(|peer| [(victim, peer), (peer, victim)])
                .collect(),
            _ => {
                let sides: Vec<bool> = (0..count).map(|_| self.random.chance(500)).collect();
                (0..count)
                    .flat_map(|from| (0..count).map(move |to| (from, to)))
                    .filter(|(from, to)| sides[*from] != sides[*to])
                    .collect()
            }
        }
    }

    /// A new leader of a group is left with one other node, is given something to propose, and is cut off from that one
    /// too; then the next leader. At the end all but those leaders meet: they hold values of different ballots for the
    /// same slots. `past` are the leaders so far, each with its one node.
    pub(super) fn succeed(&mut self, group: usize, mut past: Vec<(usize, usize)>) {
        let count = self.nodes.len();
        let leaders = (0..count).filter(|node| self.nodes[*node].leads(group));
        let ballot = |node: &usize| self.nodes[*node].seat(group).and_then(|seat| seat.status.leader);
        let leader = leaders.max_by_key(ballot);
        let fresh = leader.filter(|leader| past.iter().all(|(before, _)| before != leader));
        let election = self.plan.config.election_timeout.as_micros() as u64;
        let mut delay = 20 * MS;
        if past.len() == 2 {
            return self.meet_after_succession(&past, election);
        } else if let Some(leader) = fresh {
            let spent =
                |node: &usize| *node == leader || past.iter().any(|pair| pair.0 == *node || pair.1 == *node);
            let friends: Vec<usize> = (0..count).filter(|node| !spent(node)).collect();
            if friends.is_empty() {
                return;
            }
            let friend = self.random.pick(&friends);
            self.say(|| {
                format!(
                    "-- n{} reaches n{} only, and not for long",
                    leader + 1,
                    friend + 1
                )
            });
            for (from, to) in pair_links(count, (leader, friend)) {
                self.network.cut(from, to);
            }
            let between = vec![(leader, friend), (friend, leader)];
            let soon = 2 * MS + self.random.exponential(20 * MS);
            self.undo_after(soon, Undo::Cut(between, 8 * election));
            for _ in 0..self.random.between(1, 5) {
                let command = self.command();
                self.request(leader, group, Request::Write(command));
            }
            past.push((leader, friend));
            if past.len() == 2 {
                delay = 50 * MS + self.random.exponential(50 * MS);
            }
        }
        let epoch = self.epoch;
        self.after(delay, Event::Succeed { epoch, group, past });
    }

    /// All meet but the past leaders, which stay away for a while.
    fn meet_after_succession(&mut self, past: &[(usize, usize)], election: u64) {
        let count = self.nodes.len();
        for pair in past {
            for (from, to) in pair_links(count, *pair) {
                self.network.mend(from, to);
            }
            let away = self.links_to_cut(Fault::Isolation, pair.0);
            for (from, to) in &away {
                self.network.cut(*from, *to);
            }
            self.undo_after(3 * election, Undo::Mend(away));
        }
    }

    fn undo_after(&mut self, delay: u64, undo: Undo) {
        let epoch = self.epoch;
        self.after(delay, Event::Undo { epoch, undo });
    }

    pub(super) fn undo(&mut self, undo: Undo) -> Check {
        self.say(|| format!("-- {undo:?}"));
        match undo {
            Undo::Mend(links) => {
                for (from, to) in links {
                    self.network.mend(from, to);
                }
            }
            Undo::Cut(links, duration) => {
                for (from, to) in &links {
                    self.network.cut(*from, *to);
                    self.notice(*to, *from);
                }
                self.undo_after(duration, Undo::Mend(links));
            }
            Undo::Resume(node) => self.resume(node),
            Undo::Restart(node) => {
                self.start(node)?;
                if self.nodes[node].full_disk {
                    self.restart_later(node);
                }
            }
            Undo::FastDisk(node) => self.nodes[node].slow_disk = false,
            Undo::FreeDisk(node) => self.nodes[node].full_disk = false,
            Undo::BridgeGap(leader) => self.bridge_gap(leader),
            Undo::Crash(node) => return self.crash_minority(node),
        }
        Ok(())
    }

    pub(super) fn resume(&mut self, node: usize) {
        if core::mem::take(&mut self.nodes[node].paused)
            && let Some(life) = &mut self.nodes[node].life
        {
            life.round_due = true;
            let life = life.number;
            self.after(1, Event::Round { node, life });
        }
    }

    /// How many nodes may be down without the others losing their quorum; at least one.
    pub(super) fn minority(&self) -> usize {
        ((self.nodes.len() - 1) / 2).max(1)
    }

    fn crash_minority(&mut self, victim: usize) -> Check {
        let down = self.nodes.iter().filter(|node| node.life.is_none()).count();
        if down < self.minority() {
            self.crash_for_a_while(victim)
        } else {
            Ok(())
        }
    }

    pub(super) fn restart_later(&mut self, node: usize) {
        let delay = 10 * MS + self.random.exponential(SECOND / 2);
        self.undo_after(delay, Undo::Restart(node));
    }

    fn crash_all(&mut self) -> Check {
        if self.random.chance(500) {
            return Ok(());
        }
        self.coverage.meet(Sometimes::AllCrashed);
        for node in 0..self.nodes.len() {
            self.crash_for_a_while(node)?;
        }
        Ok(())
    }
}

/// All links between these two and everybody else.
fn pair_links(count: usize, (one, other): (usize, usize)) -> Vec<(usize, usize)> {
    let others = (0..count).filter(|node| *node != one && *node != other);
    others
        .flat_map(|node| [(one, node), (node, one), (other, node), (node, other)])
        .collect()
}
