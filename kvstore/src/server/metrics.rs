//! What the server has counted.

use std::time::Duration;

use paxos::{
    Slot,
    metrics::{Counter, Exposition, Histogram, Kind},
    node::{Group, Read},
};

use super::Shared;
use crate::{command::table::COMMANDS, machine::operations as op, resp::Value};

/// What has been counted of one command.
#[derive(Debug)]
pub struct CommandMetrics {
    /// Answered well.
    pub done: Counter,
    /// Answered with an error.
    pub failed: Counter,
    /// From the read of the command to its reply.
    pub duration: Histogram,
}

impl CommandMetrics {
    /// Counts commands that had the same outcome at the same time.
    pub fn count(&self, failed: bool, duration: Duration, commands: u64) {
        if failed { &self.failed } else { &self.done }.add(commands);
        self.duration.record_times(duration, commands);
    }
}

/// What the server has counted.
#[derive(Debug)]
pub struct Metrics {
    /// By position in the table of commands.
    pub commands: Vec<CommandMetrics>,
    /// Commands for groups that another node led.
    pub forwarded: Counter,
    /// Commands that do not exist.
    pub unknown_commands: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let command = |_| CommandMetrics {
            done: Counter::default(),
            failed: Counter::default(),
            duration: Histogram::of_durations(),
        };
        Self {
            commands: COMMANDS.iter().map(command).collect(),
            forwarded: Counter::default(),
            unknown_commands: Counter::default(),
        }
    }
}

impl Metrics {
    /// How many commands have been answered, well or not.
    pub fn answered(&self) -> u64 {
        self.commands
            .iter()
            .map(|command| command.done.get() + command.failed.get())
            .sum()
    }

    fn expose(&self, shared: &Shared, sizes: &[Option<Sizes>]) -> String {
        let mut to = Exposition::default();
        let used = || {
            let named = COMMANDS.iter().zip(&self.commands);
            named.filter(|(_, counted)| counted.done.get() + counted.failed.get() > 0)
        };
        to.family("kvstore_commands_total", Kind::Counter, "Commands answered");
        for (command, counted) in used() {
            to.value(&[("cmd", &command.name), ("result", &"ok")], counted.done.get());
            to.value(
                &[("cmd", &command.name), ("result", &"error")],
                counted.failed.get(),
            );
        }
        to.value(
            &[("cmd", &"unknown"), ("result", &"error")],
            self.unknown_commands.get(),
        );
        to.family(
            "kvstore_command_duration_seconds",
            Kind::Histogram,
            "From the read of a command to its reply",
        );
        for (command, counted) in used() {
            to.histogram(&[("cmd", &command.name)], &counted.duration.snapshot());
        }
        to.family(
            "kvstore_forwarded_total",
            Kind::Counter,
            "Commands that this node took for groups that another node led",
        );
        to.value(&[], self.forwarded.get());
        for (name, help, value) in [
            (
                "kvstore_connected_clients",
                "Clients connected",
                shared.clients.len() as u64,
            ),
            (
                "kvstore_parked_requests",
                "Commands that wait for a leader",
                shared.parked(),
            ),
            (
                "kvstore_expires",
                "Keys with a time to live: none, this version has no times to live",
                0,
            ),
        ] {
            to.family(name, Kind::Gauge, help);
            to.value(&[], value);
        }
        let held = || shared.groups.iter().map(Group::id).zip(sizes);
        to.family(
            "kvstore_keys",
            Kind::Gauge,
            "Keys that this node's replica of the group holds",
        );
        for (group, sizes) in held() {
            to.value(&[("group", &group)], sizes.map_or(0, |sizes| sizes.keys));
        }
        to.family(
            "kvstore_data_bytes",
            Kind::Gauge,
            "Bytes of those keys and their values",
        );
        for (group, sizes) in held() {
            to.value(&[("group", &group)], sizes.map_or(0, |sizes| sizes.bytes));
        }
        to.family("build_info", Kind::Gauge, "The program's version");
        to.value(&[("version", &env!("CARGO_PKG_VERSION"))], 1);
        process(&mut to, shared);
        to.into_text()
    }
}

/// What a replica holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Keys.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

impl Shared {
    /// What this node's replicas hold now, by group; `None` of a group that does not answer.
    pub async fn sizes(&self) -> Vec<Option<Sizes>> {
        let local = Read::Stale { at_least: Slot::ZERO };
        let answers = self.ask_all(local, op::SIZES, &[]).await;
        let sizes = |answer| match answer {
            Ok(Value::Array(numbers)) => match numbers[..] {
                [Value::Integer(keys), Value::Integer(bytes), ..] => Some(Sizes {
                    keys: keys.unsigned_abs(),
                    bytes: bytes.unsigned_abs(),
                }),
                _ => None,
            },
            _ => None,
        };
        answers.into_iter().map(sizes).collect()
    }

    /// Everything that the server has counted, in Prometheus' text format.
    pub async fn prometheus(&self) -> String {
        self.metrics.expose(self, &self.sizes().await)
    }

    /// Notes that `count` commands go to this group.
    pub(super) fn count_forwarded(&self, group: &Group, count: usize) {
        if count > 0 && group.metrics().is_leader.get() == 0 {
            self.metrics.forwarded.add(count as u64);
        }
    }

    /// How many commands wait for a leader on this node.
    fn parked(&self) -> u64 {
        let leaderless = self
            .groups
            .iter()
            .filter(|group| group.metrics().has_leader.get() == 0);
        leaderless
            .map(|group| group.metrics().proposals_pending.get())
            .sum()
    }
}

/// The process, as Linux tells of it; nothing elsewhere.
fn process(to: &mut Exposition, shared: &Shared) {
    to.family(
        "process_uptime_seconds",
        Kind::Gauge,
        "Since the server was started",
    );
    to.value(&[], shared.uptime().as_secs());
    let Some((cpu_seconds, resident_bytes)) = process_usage() else {
        return;
    };
    to.family("process_cpu_seconds_total", Kind::Counter, "CPU time used");
    to.value(&[], cpu_seconds);
    to.family("process_resident_memory_bytes", Kind::Gauge, "Memory in use");
    to.value(&[], resident_bytes);
}

/// CPU time in seconds and resident memory in bytes.
pub(super) fn process_usage() -> Option<(f64, u64)> {
    // Linux counts the time of processes in hundredths of a second for its users, and pages of 4 KiB on the machines
    // that this is built for.
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let ticks = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some((ticks / 100.0, pages * 4096))
}
