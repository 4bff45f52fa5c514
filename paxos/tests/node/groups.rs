//! Many groups on a node: they rest, go and come, and what goes wrong in one stays in it.

use std::time::Duration;

use paxos::{
    GroupId, Node, NodeId, ProposeError, Slot,
    core::peers::Beat,
    node::{Config, PeerEvent},
};
use tokio::time::sleep;

use crate::{
    cluster::{Cluster, GROUP, alone, config, members, text},
    doubles::{Disk, Network},
    list::List,
};

const OTHER: GroupId = GroupId(2);

async fn with_two_groups(config: Config) -> Cluster {
    let cluster = Cluster::start_with(config).await;
    for node in cluster.nodes.values() {
        node.add_group(OTHER, members(1..=3), List::default())
            .await
            .unwrap();
    }
    cluster
}

async fn resting(cluster: &Cluster) {
    for group in cluster.nodes.values().flat_map(Node::groups) {
        while !group.status().await.replica.resting {
            sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn idle_groups_send_nothing_and_are_there_when_they_are_needed() {
    let cluster = with_two_groups(config()).await;
    cluster.group(1).propose(text("a")).await.unwrap();
    resting(&cluster).await;
    let sent = cluster.network.messages();
    sleep(Duration::from_mins(10)).await;
    assert_eq!(cluster.network.messages(), sent, "beats of nodes aside");
    for node in 1..=3 {
        cluster.group(node).propose(text("b")).await.unwrap();
    }
    assert_eq!(cluster.list(2).await, "a b b b");
}

#[tokio::test(start_paused = true)]
async fn what_a_write_of_many_groups_makes_durable_is_acknowledged_in_one_burst() {
    const GROUPS: u32 = 20;
    let cluster = Cluster::start().await;
    for node in cluster.nodes.values() {
        for group in 2..=GROUPS {
            let added = node.add_group(GroupId(group), members(1..=3), List::default());
            added.await.unwrap();
        }
    }
    let node = &cluster.nodes[&1];
    for group in node.groups() {
        group.propose(text("a")).await.unwrap();
    }
    let before = cluster.network.acknowledgements();
    let proposals: Vec<_> = node
        .groups()
        .iter()
        .map(|group| group.propose(text("b")))
        .collect();
    for outcome in proposals {
        outcome.await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    let after = cluster.network.acknowledgements();
    assert_eq!(after.alone, before.alone, "each after a write, none from a turn");
    let in_bursts = after.in_bursts - before.in_bursts;
    assert!(in_bursts >= 2 * u64::from(GROUPS), "{after:?}");
    let bursts = after.bursts - before.bursts;
    assert!(bursts <= in_bursts / 2, "{bursts} for {in_bursts}");
}

#[tokio::test(start_paused = true)]
async fn a_resting_group_whose_leader_is_cut_off_has_another_one_soon() {
    let cluster = with_two_groups(config()).await;
    let leader = cluster.leader().await;
    resting(&cluster).await;
    cluster.network.cut_off(leader);
    let follower = 1 + leader % 3;
    let mut known = cluster.group(follower).leader();
    let replaced = known.wait_for(|ballot| ballot.is_some_and(|ballot| ballot.node != NodeId(leader)));
    // Silence is noticed after an election timeout, and the rest takes no longer than in a busy group.
    tokio::time::timeout(Duration::from_secs(2), replaced)
        .await
        .expect("a new leader")
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_node_knows_how_its_peers_are_and_tells_of_changes() {
    let mut cluster = Cluster::start().await;
    let watcher = 1;
    let mut events = cluster.nodes[&watcher].peer_events();
    sleep(Duration::from_secs(1)).await;
    let health = cluster.nodes[&watcher].peers();
    assert_eq!(health.len(), 2);
    for peer in &health {
        assert_eq!(peer.alive, Some(true));
        assert_eq!(peer.address, format!("node-{}", peer.node));
        assert!(peer.round_trip.is_some() && peer.heard_before.is_some());
    }
    while events.try_recv().is_ok() {}
    cluster.crash(3).await;
    assert_eq!(events.recv().await, Ok(PeerEvent::Disconnected(NodeId(3))));
    assert_eq!(events.recv().await, Ok(PeerEvent::Silent(NodeId(3))));
    assert_eq!(cluster.nodes[&watcher].peers()[1].alive, Some(false));
    cluster.start_node(3).await;
    assert_eq!(events.recv().await, Ok(PeerEvent::Alive(NodeId(3))));
    let text = cluster.nodes[&watcher].prometheus();
    assert!(text.contains("paxos_peer_alive{peer=\"3\"} 1"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn beats_of_strangers_are_refused() {
    let cluster = Cluster::start().await;
    let mut stranger = cluster.nodes[&2].identity();
    stranger.cluster = paxos::ClusterId::from_name("elsewhere");
    let beat = Beat {
        incarnation: paxos::Incarnation(99),
        sent_micros: 1,
        echo: None,
    };
    let frame = paxos::wire::Outgoing::encode_beat(stranger, &beat).unwrap();
    cluster.network.inject(1, frame.to_bytes());
    sleep(Duration::from_millis(10)).await;
    let node = &cluster.nodes[&1];
    assert_eq!(node.metrics().stranger_frames.get(), 1);
    let lives = node.peers().into_iter().filter_map(|peer| peer.incarnation);
    assert!(lives.into_iter().all(|life| life.0 < 99));
}

#[tokio::test(start_paused = true)]
async fn a_removed_group_is_gone_for_good_and_may_be_added_afresh() {
    let disk = Disk::new(1);
    let (node, removed) = alone(config(), &disk).await;
    let kept = node
        .add_group(OTHER, members([1]), List::default())
        .await
        .unwrap();
    removed.propose(text("a")).await.unwrap();
    kept.propose(text("b")).await.unwrap();
    node.remove_group(GROUP).await.unwrap();
    assert!(node.group(GROUP).is_none());
    assert_eq!(
        removed.propose(text("late")).await,
        Err(ProposeError::Stopped("the group was removed".into()))
    );
    assert_eq!(kept.propose(text("c")).await.unwrap(), "2");
    node.shutdown().await.unwrap();

    let (node, fresh) = alone(config(), &disk).await;
    assert_eq!(fresh.propose(text("first")).await.unwrap(), "1");
    assert_eq!(fresh.status().await.replica.trimmed, Slot::ZERO);
    node.remove_group(GROUP).await.unwrap();
    let fresh = node
        .add_group(GROUP, members([1]), List::default())
        .await
        .unwrap();
    assert_eq!(
        fresh.propose(text("first")).await.unwrap(),
        "1",
        "in the same life, too"
    );
    let kept = node
        .add_group(OTHER, members([1]), List::default())
        .await
        .unwrap();
    assert_eq!(kept.propose(text("d")).await.unwrap(), "3");
    node.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_group_whose_removal_failed_is_not_added_before_it_is_removed() {
    let mut cluster = Cluster::start_with_snapshots(config()).await;
    let node = cluster.nodes.remove(&1).unwrap();
    cluster.group(2).propose(text("a")).await.unwrap();
    cluster.snapshots[&1].fail(true);
    node.remove_group(GROUP).await.unwrap_err();
    assert!(node.group(GROUP).is_none());
    let refused = node
        .add_group(GROUP, members(1..=3), List::default())
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("call Node::remove_group once more"),
        "the store still holds its promises: {refused}"
    );
    cluster.snapshots[&1].fail(false);
    node.remove_group(GROUP).await.unwrap();
    node.add_group(GROUP, members([1]), List::default())
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn removing_answers_what_is_open_and_needs_no_group_that_was_added() {
    let cluster = with_two_groups(config()).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
    for node in &others {
        cluster.network.cut_off(*node);
    }
    let group = cluster.group(leader);
    let open = group.propose(text("open"));
    tokio::task::yield_now().await;
    cluster.nodes[&leader].remove_group(GROUP).await.unwrap();
    assert!(matches!(
        open.await,
        Err(ProposeError::Unknown | ProposeError::Stopped(_))
    ));
    cluster.nodes[&leader].remove_group(GroupId(99)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_group_that_could_not_be_added_can_be_added_later() {
    let disk = Disk::new(1);
    let (node, group) = alone(config(), &disk).await;
    group.propose(text("a")).await.unwrap();
    node.shutdown().await.unwrap();
    let node = Node::spawn(config(), disk, Network::default().transport())
        .await
        .unwrap();
    node.add_group(GROUP, members([]), List::default())
        .await
        .unwrap_err();
    let group = node
        .add_group(GROUP, members([1]), List::default())
        .await
        .unwrap();
    assert_eq!(
        group.propose(text("b")).await.unwrap(),
        "2",
        "nothing was forgotten"
    );
}

#[tokio::test(start_paused = true)]
async fn a_damaged_read_for_a_peer_halts_nothing_and_the_peer_asks_another() {
    let config = Config {
        replica: paxos::core::Config {
            max_cache_bytes: 1,
            ..config().replica
        },
        ..config()
    };
    let cluster = with_two_groups(config).await;
    let leader = cluster.leader().await;
    let behind = 1 + leader % 3;
    cluster.network.cut_off(behind);
    for index in 0..20 {
        let command = text(&index.to_string());
        cluster.group(leader).propose(command).await.unwrap();
    }
    cluster.disks[&leader].rot(GROUP, Slot(3));
    cluster.network.reconnect(behind);
    while cluster.group(behind).status().await.applied < cluster.group(leader).status().await.applied {
        sleep(Duration::from_millis(100)).await;
    }
    assert!(cluster.group(leader).metrics().damaged_reads.get() > 0);
    for group in cluster.nodes.values().flat_map(Node::groups) {
        assert_eq!(group.halted(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn damage_that_the_machine_runs_into_is_repaired_before_it_goes_on() {
    let mut cluster = with_two_groups(config()).await;
    for index in 0..20 {
        cluster.group(1).propose(text(&index.to_string())).await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    cluster.crash(2).await;
    cluster.disks[&2].rot(GROUP, Slot(3));
    cluster.start_node(2).await;
    let node = &cluster.nodes[&2];
    node.add_group(OTHER, members(1..=3), List::default())
        .await
        .unwrap();
    assert_eq!(cluster.list(2).await, cluster.list(1).await);
    assert_eq!(cluster.group(2).status().await.replica.repaired, 1);
    assert_eq!(cluster.group(2).metrics().damaged_reads.get(), 1);
    node.group(OTHER).unwrap().propose(text("fine")).await.unwrap();
    cluster.group(1).propose(text("fine")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_machine_that_blocks_on_all_nodes_leaves_the_other_groups_alone() {
    let cluster = with_two_groups(config()).await;
    let other = cluster.nodes[&1].group(OTHER).unwrap();
    other.propose(text("ready")).await.unwrap();
    let blocked = tokio::spawn(cluster.group(1).propose(text("block")));
    for index in 0..20 {
        other.propose(text(&index.to_string())).await.unwrap();
    }
    blocked.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_node_says_whether_it_is_in_step_with_numbers() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let behind = 1 + leader % 3;
    cluster.group(behind).propose(text("a")).await.unwrap();
    let sync = cluster.group(behind).in_sync(0).await;
    assert!(sync.in_sync && sync.lag_slots == 0, "{sync:?}");
    assert_eq!(sync.leader, Some(NodeId(leader)));
    assert_eq!(sync.applied, sync.known);
    for node in 1..=3 {
        if node != behind {
            cluster.crash(node).await;
        }
    }
    sleep(Duration::from_secs(3)).await;
    let sync = cluster.group(behind).in_sync(u64::MAX).await;
    assert!(!sync.in_sync && sync.leader.is_none(), "{sync:?}");
}
