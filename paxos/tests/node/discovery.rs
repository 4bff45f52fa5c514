//! Looking for peers that have moved.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use paxos::{Node, NodeId, transport::Peer};

use crate::{
    cluster::{Cluster, GROUP, members, text},
    list::List,
};

/// Starts node 3 again, with this to find the others by; tells how often it was asked.
async fn restart_with(
    cluster: &mut Cluster,
    found: impl Fn() -> Vec<Peer> + Send + Sync + 'static,
) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let node = Node::builder(cluster.disks[&3].clone(), cluster.network.transport())
        .config(cluster.config.clone())
        .discovery(move || {
            count.fetch_add(1, Relaxed);
            let found = found();
            async move { found }
        })
        .spawn()
        .await
        .unwrap();
    node.add_group(GROUP, members(1..=3), List::default())
        .await
        .unwrap();
    cluster.nodes.insert(3, node);
    asked
}

fn at(place: &str, node: u64) -> Peer {
    Peer {
        node: NodeId(node),
        address: format!("{place}-{node}"),
    }
}

/// While node 3 was down the others have moved there.
async fn left_behind(place: &'static str) -> Cluster {
    let mut cluster = Cluster::start().await;
    cluster.leader().await;
    cluster.crash(3).await;
    for other in [1, 2] {
        cluster.network.is_at(3, other, &at(place, other).address);
    }
    cluster
}

/// Whether node 3 takes part: reads need a quorum that answers it.
async fn reads(cluster: &Cluster) -> bool {
    let read = tokio::time::timeout(Duration::from_secs(5), cluster.list(3));
    read.await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_peers_have_moved_finds_them() {
    let mut cluster = left_behind("moved").await;
    let asked = restart_with(&mut cluster, || {
        vec![at("moved", 1), at("moved", 2), at("moved", 9)]
    })
    .await;
    while !reads(&cluster).await {}
    let leader = cluster.leader().await;
    cluster.group(leader).propose(text("a")).await.unwrap();
    assert_eq!(cluster.list(3).await, "a");
    let membership = cluster.group(3).membership().borrow().clone();
    assert!(membership.member(NodeId(9)).is_none(), "{membership:?}");
    let asked_before = asked.load(Relaxed);
    assert!(asked_before > 0);
    tokio::time::sleep(Duration::from_mins(10)).await;
    assert_eq!(
        asked.load(Relaxed),
        asked_before,
        "nobody is looked for who is there"
    );
}

#[tokio::test(start_paused = true)]
async fn a_search_in_vain_goes_on_less_and_less_often() {
    let mut cluster = left_behind("moved").await;
    let asked = restart_with(&mut cluster, Vec::new).await;
    tokio::time::sleep(Duration::from_mins(1)).await;
    let at_first = asked.load(Relaxed);
    assert!((3..=10).contains(&at_first), "{at_first}");
    tokio::time::sleep(Duration::from_mins(10)).await;
    let later = asked.load(Relaxed) - at_first;
    assert!(
        (8..=12).contains(&later),
        "{later}: every 30 seconds, and as long in between"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_found_hides_no_address_that_is_right() {
    let mut cluster = left_behind("node").await;
    cluster.network.cut_off(3);
    let asked = restart_with(&mut cluster, || vec![at("nowhere", 1), at("nowhere", 2)]).await;
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert!(asked.load(Relaxed) > 0);
    cluster.network.reconnect(3);
    while !reads(&cluster).await {}
}

#[tokio::test(start_paused = true)]
async fn where_a_node_is_not_is_not_held_against_it_because_another_one_was_found() {
    let mut cluster = left_behind("moved").await;
    // One has moved, and the other one is only away for a while.
    cluster.network.is_at(3, 2, "node-2");
    cluster.network.cut_off(2);
    restart_with(&mut cluster, || vec![at("moved", 1), at("nowhere", 2)]).await;
    let has = async |node| {
        let peers = cluster.nodes[&3].peers();
        let found = peers.iter().find(|peer| peer.node == NodeId(node));
        found.is_some_and(|peer| peer.connected && peer.alive == Some(true))
    };
    let found = async |node| {
        while !has(node).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    found(1).await;
    cluster.network.reconnect(2);
    let came_back = tokio::time::timeout(Duration::from_mins(10), found(2)).await;
    assert!(came_back.is_ok(), "it is where the membership says");
}

#[tokio::test(start_paused = true)]
async fn a_search_that_panics_is_repeated() {
    let mut cluster = left_behind("moved").await;
    let first = Arc::new(AtomicBool::new(true));
    restart_with(&mut cluster, move || {
        assert!(!first.swap(false, Relaxed), "told to panic");
        vec![at("moved", 1), at("moved", 2)]
    })
    .await;
    let found = async { while !reads(&cluster).await {} };
    let found = tokio::time::timeout(Duration::from_mins(10), found).await;
    assert!(found.is_ok());
}
