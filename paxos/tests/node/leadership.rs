//! Handing leadership over: what users see of it. Times are those of the paused clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use paxos::{Group, NodeId, TransferError, core::TransferRejection, node::Config};
use tokio::time::Instant;

use crate::cluster::{Cluster, config, text};

/// What a transfer under load may cost, with disks that take 5 ms for a write.
const PAUSE: Duration = Duration::from_millis(100);

/// Writes one after the other through this node until told to stop; returns the longest time between two replies.
async fn write(group: Group, stop: Arc<AtomicBool>) -> Duration {
    let mut longest = Duration::ZERO;
    let mut last = Instant::now();
    while !stop.load(Relaxed) {
        group.propose(text("x")).await.unwrap();
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    longest
}

async fn loaded_cluster() -> Cluster {
    let cluster = Cluster::start_with(Config {
        seed: Some(7),
        ..config()
    })
    .await;
    for disk in cluster.disks.values() {
        disk.write_takes(Duration::from_millis(5));
    }
    cluster.leader().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster
}

#[tokio::test(start_paused = true)]
async fn writes_pause_for_less_than_a_tenth_of_a_second_while_leadership_moves() {
    let cluster = loaded_cluster().await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (1..=3)
        .map(|node| tokio::spawn(write(cluster.group(node), stop.clone())))
        .collect();
    for to in [2, 3, 1, 3, 2, 1] {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let leader = cluster.group(1).transfer_leadership(NodeId(to)).await;
        assert_eq!(leader, Ok(NodeId(to)));
    }
    stop.store(true, Relaxed);
    for writer in writers {
        let longest = writer.await.unwrap();
        assert!(longest < PAUSE, "no write for {longest:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_hands_over_first() {
    let mut cluster = loaded_cluster().await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = others
        .iter()
        .map(|node| tokio::spawn(write(cluster.group(*node), stop.clone())))
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let node = cluster.nodes.remove(&leader).unwrap();
    node.shutdown().await.unwrap();
    cluster.start_node(leader).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Relaxed);
    for writer in writers {
        let longest = writer.await.unwrap();
        assert!(longest < PAUSE, "no write for {longest:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_retires_leads_no_longer() {
    let cluster = loaded_cluster().await;
    let leader = cluster.leader().await;
    let next = cluster.group(leader).retire().await.unwrap();
    assert_ne!(next, NodeId(leader));
    assert!(!cluster.group(leader).is_leader());
    assert_eq!(cluster.group(leader).retire().await, Ok(next), "already so");
}

#[tokio::test(start_paused = true)]
async fn a_transfer_that_cannot_be_says_why() {
    let mut cluster = loaded_cluster().await;
    let leader = cluster.leader().await;
    let gone = cluster.follower().await;
    let group = cluster.group(leader);
    cluster.crash(gone).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let node = NodeId(gone);
    let refused = group.transfer_leadership(node).await;
    let not_alive = TransferError::Rejected(TransferRejection::NotAlive { node });
    assert_eq!(refused, Err(not_alive));
    let node = NodeId(9);
    let refused = group.transfer_leadership(node).await;
    let not_voter = TransferError::Rejected(TransferRejection::NotVoter { node });
    assert_eq!(refused, Err(not_voter));
}
