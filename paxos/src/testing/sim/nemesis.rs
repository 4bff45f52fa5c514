//! What goes wrong, and when it is right again.

use std::{format, string::String, vec, vec::Vec};

use super::{
    cluster::{Cluster, Event},
    coverage::Event as Sometimes,
    faults::{Fault, MS, SECOND},
    history::{Outcome, Request},
    machine::Workload,
    oracle::{Violation, ensure},
};
use crate::core::Token;

/// The end of a fault.
#[derive(Debug)]
pub(super) enum Undo {
    Mend(Vec<(usize, usize)>),
    Resume(usize),
    Restart(usize),
    FastDisk(usize),
    FreeDisk(usize),
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
    Fault::Crash,
    Fault::Crash,
    Fault::Crash,
    Fault::CrashAll,
    Fault::Pause,
    Fault::Pause,
    Fault::SlowDisk,
    Fault::FullDisk,
    Fault::Damage,
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
        self.converge()
    }

    fn storm(&mut self) -> Check {
        self.say(|| String::from("-- storm"));
        self.epoch += 1;
        self.network.calm = false;
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
        let election = self.plan.config.election_timeout.as_micros() as u64;
        self.run_for(election * 2)?;
        self.clients_active = false;
        self.run_for(self.plan.patience + election * 4)?;
        self.probe(oracle)?;
        self.run_for(election * 2)
    }

    /// A write and a read of each group at each node.
    fn probe(&mut self, oracle: &'static str) -> Check {
        for group in 0..self.groups.len() {
            self.probe_group(group, oracle)?;
        }
        Ok(())
    }

    fn probe_group(&mut self, group: usize, oracle: &'static str) -> Check {
        let mut tokens: Vec<(Token, bool)> = Vec::new();
        for node in 0..self.nodes.len() {
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
            let referred = !self.plan.config.forward && outcome == Some(Outcome::Rejected);
            answered[usize::from(is_write)] += usize::from(outcome == Some(Outcome::Answered));
            if outcome != Some(Outcome::Answered) && !cancelled && !referred {
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
        for (index, group) in self.groups.iter().enumerate() {
            let chosen = group.oracle.chosen();
            for node in self.nodes.iter().filter(|node| !node.damaged) {
                let applied = node.seat(index).map(|seat| seat.applied);
                ensure!(
                    applied == Some(chosen),
                    "L2",
                    "{} has applied {applied:?} of group {} at the end, chosen is {chosen}",
                    node.id,
                    index + 1
                );
            }
            let open = group.history.any_open();
            ensure!(
                open.is_none(),
                "exactly once",
                "{open:?} has not ended: {:?}",
                open.and_then(|token| group.history.operation(token))
            );
        }
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
        let fault = self.random.pick(STRIKES);
        let victim = self.victim();
        self.strike(fault, victim)
    }

    /// Takes the leader of a group away, out of turn.
    pub(super) fn strike_leader(&mut self, group: usize) -> Check {
        let fault = self.random.pick(&[Fault::Crash, Fault::Crash, Fault::Isolation]);
        let leader = (0..self.nodes.len()).find(|node| self.nodes[*node].leads(group));
        leader.map_or(Ok(()), |leader| self.strike(fault, leader))
    }

    fn strike(&mut self, fault: Fault, victim: usize) -> Check {
        if self.network.calm || !self.plan.faults.has(fault) {
            return Ok(());
        }
        self.say(|| format!("-- {}", fault.name()));
        let duration = 20 * MS + self.random.exponential(SECOND);
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
            Fault::Isolation => (0..count)
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
            Undo::Resume(node) => self.resume(node),
            Undo::Restart(node) => {
                self.start(node)?;
                if self.nodes[node].full_disk {
                    self.restart_later(node);
                }
            }
            Undo::FastDisk(node) => self.nodes[node].slow_disk = false,
            Undo::FreeDisk(node) => self.nodes[node].full_disk = false,
        }
        Ok(())
    }

    fn resume(&mut self, node: usize) {
        if core::mem::take(&mut self.nodes[node].paused)
            && let Some(life) = &mut self.nodes[node].life
        {
            life.round_due = true;
            let life = life.number;
            self.after(1, Event::Round { node, life });
        }
    }

    /// How many nodes may be down without the others losing their quorum; at least one.
    fn minority(&self) -> usize {
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

    /// A record goes bad while a node is down. It refuses to start with that and stays away for good; of three nodes or
    /// more a minority may be lost so.
    fn damage(&mut self, victim: usize) -> Check {
        let damaged = self.nodes.iter().filter(|node| node.damaged).count();
        if self.nodes.len() < 3 || damaged >= self.minority() || !self.random.chance(200) {
            return Ok(());
        }
        self.nodes[victim].damaged = true;
        self.crash_for_a_while(victim)
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
