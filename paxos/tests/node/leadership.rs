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

mod leases {
    use paxos::{Read, core::Lease};

    use super::*;

    async fn leased_cluster() -> Cluster {
        let mut config = config();
        config.replica.lease = Some(Lease {
            duration: Duration::from_millis(400),
            max_drift_permille: 10,
        });
        let cluster = Cluster::start_with(config).await;
        cluster.leader().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_answers_alone_while_its_lease_lasts_and_no_longer() {
        let cluster = leased_cluster().await;
        let leader = cluster.leader().await;
        let group = cluster.group(leader);
        group.propose(text("a")).await.unwrap();
        cluster.network.cut_off(leader);
        assert_eq!(group.query(Read::Lease, text("")).await.unwrap(), "a");
        let burst = group.query_all(Read::Lease, vec![text("")], usize::MAX);
        assert_eq!(burst.await.unwrap().answers, ["a"]);
        assert_eq!(group.metrics().lease_reads.get(), 2);
        tokio::time::sleep(Duration::from_millis(400)).await;
        let late = group.query(Read::Lease, text(""));
        assert!(late.await.is_err(), "nobody confirms that it still leads");
    }

    #[tokio::test(start_paused = true)]
    async fn every_node_answers_and_counts_how() {
        let cluster = leased_cluster().await;
        let leader = cluster.leader().await;
        let follower = cluster.follower().await;
        cluster.group(leader).propose(text("a")).await.unwrap();
        for node in [leader, follower] {
            let answer = cluster.group(node).query(Read::Lease, text("")).await;
            assert_eq!(answer.unwrap(), "a");
        }
        assert_eq!(cluster.group(leader).metrics().lease_reads.get(), 1);
        assert_eq!(cluster.group(follower).metrics().lease_fallbacks.get(), 1);
    }
}

mod balance {
    use std::collections::BTreeMap;

    use paxos::{Ballot, GroupId};

    use super::*;
    use crate::{cluster::members, list::List};

    const GROUPS: u32 = 64;

    async fn add_groups(cluster: &Cluster, node: u64) {
        for group in 2..=GROUPS {
            let added = cluster.nodes[&node].add_group(GroupId(group), members(1..=3), List::default());
            added.await.unwrap();
        }
    }

    /// The leader of every group, as some node sees it.
    fn leaders(cluster: &Cluster) -> BTreeMap<GroupId, Ballot> {
        let node = cluster.nodes.values().next().unwrap();
        let leaders = node.groups().into_iter();
        leaders
            .map(|group| (group.id(), group.leader().borrow().expect("a leader is known")))
            .collect()
    }

    fn shares(leaders: &BTreeMap<GroupId, Ballot>) -> Vec<usize> {
        let mut shares = BTreeMap::new();
        for ballot in leaders.values() {
            *shares.entry(ballot.node).or_insert(0) += 1;
        }
        shares.into_values().collect()
    }

    #[tokio::test(start_paused = true)]
    async fn many_groups_have_their_leaders_on_all_nodes_and_keep_them() {
        let mut config = config();
        config.replica.balance_leaders = true;
        let mut cluster = Cluster::start_with(config).await;
        for node in 1..=3 {
            add_groups(&cluster, node).await;
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        let balanced = leaders(&cluster);
        assert_eq!(shares(&balanced), [21, 22, 21]);
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!(leaders(&cluster), balanced, "leaders stay where they are");
        cluster.crash(3).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        let without = leaders(&cluster);
        let share = shares(&without);
        assert!(share.len() == 2 && share[0].abs_diff(share[1]) <= 2, "{share:?}");
        let moved = balanced
            .iter()
            .filter(|(group, before)| without[group] != **before);
        assert!(
            moved.clone().all(|(_, before)| before.node == NodeId(3)),
            "only the groups of the lost node move"
        );
        cluster.start_node(3).await;
        add_groups(&cluster, 3).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(shares(&leaders(&cluster)), [21, 22, 21]);
    }
}
