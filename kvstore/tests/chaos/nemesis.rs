//! What goes wrong, in an order that the seed decides.

use std::{collections::BTreeMap, time::Duration};

use fastrand::Rng;
use tokio::time::{Instant, sleep};

use crate::{links::Condition, nodes::Nodes};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    KillOne,
    KillLeader,
    KillAll,
    /// Killed and started at once.
    Restart,
    PauseOne,
    PauseLeader,
    IsolateOne,
    IsolateLeader,
    /// One direction of one pair.
    OneWay,
    /// The leader hears nobody.
    LeaderDeaf,
    /// Nobody hears the leader.
    LeaderMute,
    /// Two nodes do not hear each other; the third hears both.
    Bridge,
    /// A follower is cut off until it lags; then it comes back and the leader is cut off in its stead, so that it may
    /// well become leader itself.
    Exchange,
    /// The same, and the leader is killed.
    Usurp,
    Delay,
    Throttle,
}

const FAULTS: [Fault; 16] = [
    Fault::KillOne,
    Fault::KillLeader,
    Fault::KillAll,
    Fault::Restart,
    Fault::PauseOne,
    Fault::PauseLeader,
    Fault::IsolateOne,
    Fault::IsolateLeader,
    Fault::OneWay,
    Fault::LeaderDeaf,
    Fault::LeaderMute,
    Fault::Bridge,
    Fault::Exchange,
    Fault::Usurp,
    Fault::Delay,
    Fault::Throttle,
];

/// How long a fault stays, and how long the cluster is then left alone; milliseconds.
const FAULT_MILLIS: std::ops::Range<u64> = 200..2_000;
const CALM_MILLIS: std::ops::Range<u64> = 100..1_200;
/// How long a follower is left behind.
const LAG_MILLIS: std::ops::Range<u64> = 100..1_000;
/// In so many of a hundred cases the next fault comes on top.
const ON_TOP_PERCENT: u8 = 25;

#[derive(Debug)]
pub(crate) struct Nemesis {
    random: Rng,
    /// Every fault comes once before one comes again.
    deck: Vec<Fault>,
    pub(crate) counts: BTreeMap<Fault, usize>,
    start: Instant,
    /// What was done when, a line each.
    pub(crate) diary: Vec<String>,
}

impl Nemesis {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Rng::with_seed(seed),
            deck: Vec::new(),
            counts: BTreeMap::new(),
            start: Instant::now(),
            diary: Vec::new(),
        }
    }

    /// Does harm for so long, then heals everything. Fails if a node ends by itself.
    pub(crate) async fn torment(&mut self, nodes: &mut Nodes, length: Duration) -> Result<(), String> {
        let end = Instant::now() + length;
        while Instant::now() < end {
            if self.deck.is_empty() {
                self.deck = FAULTS.to_vec();
                self.random.shuffle(&mut self.deck);
            }
            let fault = self.deck.pop().unwrap_or(Fault::KillOne);
            self.strike(fault, nodes).await;
            *self.counts.entry(fault).or_default() += 1;
            sleep(Duration::from_millis(self.random.u64(FAULT_MILLIS))).await;
            none_has_ended(nodes)?;
            if self.random.u8(..100) >= ON_TOP_PERCENT {
                self.heal(nodes);
                sleep(Duration::from_millis(self.random.u64(CALM_MILLIS))).await;
            }
        }
        self.heal(nodes);
        Ok(())
    }

    fn heal(&mut self, nodes: &mut Nodes) {
        nodes.heal();
        self.note("heal");
    }

    /// Writes into the diary.
    pub(crate) fn note(&mut self, what: &str) {
        let at = self.start.elapsed().as_secs_f64();
        self.diary.push(format!("{at:8.4} {what}"));
    }

    async fn strike(&mut self, fault: Fault, nodes: &mut Nodes) {
        let any = self.random.usize(nodes.ids());
        let other = any % nodes.ids().count() + 1;
        let leader = nodes.leader().await.unwrap_or(any);
        let cut = if self.random.bool() {
            Condition::Cut
        } else {
            Condition::Held
        };
        let (one, how) = match fault {
            Fault::KillOne | Fault::Restart | Fault::PauseOne | Fault::IsolateOne => (any, String::new()),
            Fault::KillAll => (0, String::new()),
            Fault::OneWay | Fault::Bridge | Fault::Delay | Fault::Throttle => {
                (any, format!("to {other} {cut:?}"))
            }
            _ => (leader, format!("{cut:?}")),
        };
        self.note(&format!("{fault:?} {one} {how}"));
        match fault {
            Fault::KillOne | Fault::KillLeader => nodes.kill(one),
            Fault::KillAll => nodes.ids().for_each(|node| nodes.kill(node)),
            Fault::Restart => {
                nodes.kill(one);
                nodes.start_node(one);
            }
            Fault::PauseOne | Fault::PauseLeader => nodes.pause(one),
            Fault::IsolateOne | Fault::IsolateLeader => isolate(nodes, one, cut),
            Fault::Exchange | Fault::Usurp => {
                let follower = one % nodes.ids().count() + 1;
                isolate(nodes, follower, cut);
                sleep(Duration::from_millis(self.random.u64(LAG_MILLIS))).await;
                nodes.links.heal();
                if fault == Fault::Usurp {
                    nodes.kill(one);
                } else {
                    isolate(nodes, one, cut);
                }
            }
            Fault::OneWay => nodes.links.set(one, other, cut),
            Fault::LeaderDeaf => others(nodes, one).for_each(|other| nodes.links.set(other, one, cut)),
            Fault::LeaderMute => others(nodes, one).for_each(|other| nodes.links.set(one, other, cut)),
            Fault::Bridge => nodes.links.set_both(one, other, cut),
            Fault::Delay => {
                let delay = Duration::from_millis(self.random.u64(5..300));
                nodes.links.set_both(one, other, Condition::Delayed(delay));
            }
            Fault::Throttle => {
                let bytes_per_second = self.random.u32(2_000..50_000);
                let slow = Condition::Throttled(bytes_per_second);
                nodes.links.set_both(one, other, slow);
            }
        }
    }
}

fn isolate(nodes: &Nodes, one: usize, how: Condition) {
    others(nodes, one).for_each(|other| nodes.links.set_both(one, other, how));
}

fn others(nodes: &Nodes, one: usize) -> impl Iterator<Item = usize> + use<> {
    nodes.ids().filter(move |node| *node != one)
}

/// Fails if a node has ended that nobody killed.
pub(crate) fn none_has_ended(nodes: &mut Nodes) -> Result<(), String> {
    for node in nodes.ids() {
        if nodes.has_ended(node) {
            let log = std::fs::read_to_string(nodes.log(node)).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(10).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            return Err(format!("node {node} has ended by itself:\n{}", tail.join("\n")));
        }
    }
    Ok(())
}
