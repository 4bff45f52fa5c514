//! Faults at random; every user must have been told the truth.

use std::time::Duration;

use paxos::{ProposeError, node::Config};

use crate::{
    cluster::{Cluster, config, text},
    doubles::Fault,
};

/// Crashes, cuts and failing disks at random, three proposing users; returns how many snapshots were installed by
/// the nodes that are left.
async fn storm(seed: u64) -> u64 {
    let mut config = Config {
        seed: Some(seed),
        ..config()
    };
    // Half of the storms rage over nodes that take snapshots all the time.
    config.replica.snapshot_entries = 5;
    config.replica.keep_entries = 2;
    config.replica.max_laggard_entries = 5;
    config.replica.snapshot_chunk_bytes = 64;
    config.replica.max_cache_bytes = 100;
    let mut cluster = match seed % 2 {
        0 => Cluster::start_with(config).await,
        _ => Cluster::start_with_snapshots(config).await,
    };
    let mut random = Random(seed);
    let mut open = Vec::new();
    for round in 0..30 {
        for node in cluster.nodes.keys() {
            let command = format!("{round}.{node}");
            let timeout = Duration::from_millis(random.below(1_500));
            let proposal = cluster.group(*node).propose_within(text(&command), timeout);
            open.push((command, proposal));
        }
        let node = 1 + random.below(3);
        match random.below(10) {
            0 => {
                cluster.crash(node).await;
                cluster.start_node(node).await;
            }
            1 => cluster.network.cut_off(node),
            2 => (1..=3).for_each(|node| cluster.network.reconnect(node)),
            3 => {
                cluster.disks[&node].fail(Fault::Broken);
                tokio::time::sleep(Duration::from_millis(random.below(700))).await;
                cluster.disks[&node].mend();
                cluster.crash(node).await;
                cluster.start_node(node).await;
            }
            4 => cluster.disks[&node].write_takes(Duration::from_millis(random.below(50))),
            5 | 6 => {
                if let Some(snapshots) = cluster.snapshots.get(&node) {
                    snapshots.fail(random.below(2) == 0);
                }
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(random.below(400))).await;
    }
    (1..=3).for_each(|node| cluster.network.reconnect(node));
    cluster
        .snapshots
        .values()
        .for_each(|snapshots| snapshots.fail(false));
    let mut outcomes = Vec::new();
    for (command, proposal) in open {
        outcomes.push((command, proposal.await));
    }
    let list = cluster.list(1).await;
    for node in [2, 3] {
        assert_eq!(
            cluster.list(node).await,
            list,
            "seed {seed}: all nodes hold the same"
        );
    }
    let list: Vec<_> = list.split(' ').collect();
    for (command, outcome) in outcomes {
        let places: Vec<_> = (1..)
            .zip(&list)
            .filter(|(_, held)| **held == command)
            .map(|(place, _)| place)
            .collect();
        assert!(
            places.len() <= 1,
            "seed {seed}: {command} was applied at {places:?}"
        );
        match outcome {
            Ok(place) => assert_eq!(
                places.first().map(u64::to_string).unwrap_or_default(),
                place,
                "seed {seed}"
            ),
            Err(ProposeError::Unknown) => {}
            Err(error) => assert!(
                places.is_empty(),
                "seed {seed}: {command} happened, but the user heard: {error}"
            ),
        }
    }
    let groups = (1..=3).map(|node| cluster.group(node));
    groups
        .map(|group| group.metrics().snapshot_install_duration.snapshot().count)
        .sum()
}

/// A small generator of random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33) % bound
    }
}

/// `PAXOS_NODE_SEEDS` sets how many (20).
#[tokio::test(start_paused = true)]
async fn in_a_storm_every_user_is_told_the_truth() {
    let seeds = std::env::var("PAXOS_NODE_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(20);
    let mut installed = 0;
    for seed in 0..seeds {
        installed += storm(seed).await;
    }
    assert!(
        seeds < 20 || installed > 0,
        "in no storm a peer's snapshot was installed"
    );
}
