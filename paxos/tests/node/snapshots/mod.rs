//! Snapshots: taken, trimmed behind, sent, resumed, installed, and started from.

mod failures;
mod restoring;
mod taking;
mod transfers;

use std::time::Duration;

use bytes::Bytes;
use paxos::{Group, Read, Slot, node::Config};

use crate::cluster::{Cluster, config, text};

/// A snapshot every 20 entries, 5 of them kept behind it, and pieces of 100 bytes.
fn eager() -> Config {
    let mut config = config();
    config.replica.snapshot_entries = 20;
    config.replica.keep_entries = 5;
    config.replica.max_laggard_entries = 10;
    config.replica.snapshot_chunk_bytes = 100;
    // What is trimmed is not in memory either.
    config.replica.max_cache_bytes = 100;
    config
}

async fn write(group: &Group, numbers: std::ops::Range<u32>) {
    for number in numbers {
        group.propose(text(&format!("command-{number}"))).await.unwrap();
    }
}

/// Waits until the node has applied all that the other has.
async fn catches_up(behind: &Group, with: &Group) {
    let upto = with.status().await.applied;
    while behind.status().await.applied < upto {
        assert_eq!(behind.halted(), None);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn local_list(group: &Group) -> String {
    let read = Read::Stale { at_least: Slot::ZERO };
    String::from_utf8(group.query(read, Bytes::new()).await.unwrap().to_vec()).unwrap()
}

/// Crashes a follower, and makes the others trim what it lacks.
async fn leave_behind(cluster: &mut Cluster) -> (u64, u64) {
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    write(&cluster.group(leader), 0..10).await;
    cluster.crash(follower).await;
    write(&cluster.group(leader), 10..200).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let trimmed = cluster.group(leader).status().await.replica.trimmed;
    assert!(trimmed > Slot(100), "trimmed up to {trimmed} only");
    (leader, follower)
}
