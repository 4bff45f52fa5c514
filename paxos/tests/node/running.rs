//! Starting, stopping, configuring and watching nodes and groups.

use std::time::Duration;

use bytes::Bytes;
use paxos::{
    ClusterId, Group, GroupId, Node, NodeError, NodeId, ProposeError, Read, ReadError, Slot, StorageId,
    core::Message, node::Config, wire,
};

use crate::{
    cluster::{Cluster, GROUP, config, members, text},
    doubles::{Disk, Network},
    list::List,
};

#[tokio::test(start_paused = true)]
async fn shutdown_answers_everything_and_closes_the_store() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    for node in 1..=3 {
        if node != leader {
            cluster.crash(node).await;
        }
    }
    let node = cluster.nodes.remove(&leader).unwrap();
    let group = node.group(GROUP).unwrap();
    let sent = group.propose(text("sent"));
    let read = group.query(Read::Linearizable, Bytes::new());
    let parked = group.query(Read::Stale { at_least: Slot::MAX }, Bytes::new());
    let (done, called) = tokio::sync::oneshot::channel();
    group.propose_with(
        text("called"),
        None,
        Box::new(move |outcome| done.send(outcome).unwrap()),
    );
    tokio::task::yield_now().await;
    let not_taken = group.propose(text("not taken"));
    node.shutdown().await.unwrap();
    for outcome in [sent.await, not_taken.await, called.await.unwrap()] {
        assert!(
            matches!(outcome, Err(ProposeError::Unknown | ProposeError::Stopped(_))),
            "{outcome:?}"
        );
    }
    assert!(matches!(read.await, Err(ReadError::Stopped(_))));
    assert!(matches!(parked.await, Err(ReadError::Stopped(_))));
    assert!(matches!(
        group.propose(text("late")).await,
        Err(ProposeError::Stopped(_))
    ));
    assert!(group.status().await.halted.is_some());
    assert!(cluster.disks[&leader].is_closed());
}

#[tokio::test(start_paused = true)]
async fn groups_may_be_added_in_any_order_and_before_their_peers_know_them() {
    let cluster = Cluster::start().await;
    let late = GroupId(7);
    for node in [3, 1, 2] {
        cluster.nodes[&node]
            .add_group(late, members(1..=3), List::default())
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(cluster.nodes[&2].metrics().unknown_group_frames.get() > 0);
    let group = cluster.nodes[&2].group(late).unwrap();
    assert_eq!(group.propose(text("a")).await.unwrap(), "1");
    let twice = cluster.nodes[&2]
        .add_group(late, members(1..=3), List::default())
        .await;
    assert!(matches!(twice, Err(NodeError::Configuration(why)) if why.contains("added already")));
    let empty = cluster.nodes[&2]
        .add_group(GroupId(8), members([]), List::default())
        .await;
    assert!(matches!(empty, Err(NodeError::Configuration(why)) if why.contains("no voter")));
    let ids: Vec<_> = cluster.nodes[&2].groups().iter().map(Group::id).collect();
    assert_eq!(ids, [GROUP, late]);
}

#[tokio::test(start_paused = true)]
async fn strangers_and_garbage_are_counted_and_disturb_nobody() {
    let cluster = Cluster::start().await;
    let stranger = wire::Envelope {
        cluster: ClusterId::from_name("another"),
        from: NodeId(2),
        storage: StorageId(2),
        group: GROUP,
        message: Message::ReadIndex { token: 1 },
    };
    let frame = |envelope: &wire::Envelope| wire::Outgoing::encode(envelope).unwrap().to_bytes();
    cluster.network.inject(1, frame(&stranger));
    let myself = wire::Envelope {
        cluster: ClusterId::from_name("test"),
        from: NodeId(1),
        ..stranger.clone()
    };
    cluster.network.inject(1, frame(&myself));
    cluster.network.inject(1, text("garbage"));
    let elsewhere = wire::Envelope {
        from: NodeId(2),
        group: GroupId(99),
        ..myself
    };
    cluster.network.inject(1, frame(&elsewhere));
    cluster.group(1).propose(text("a")).await.unwrap();
    let metrics = cluster.nodes[&1].metrics();
    assert_eq!(metrics.stranger_frames.get(), 2);
    assert_eq!(metrics.malformed_frames.get(), 1);
    assert_eq!(metrics.unknown_group_frames.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_leader_watch_tells_changes_only() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let follower = cluster.follower().await;
    let mut watch = cluster.group(follower).leader();
    watch
        .wait_for(|ballot| ballot.is_some_and(|ballot| ballot.node == NodeId(leader)))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert!(!watch.has_changed().unwrap(), "heartbeats are no changes");
    cluster.crash(leader).await;
    watch
        .wait_for(|ballot| ballot.is_some_and(|ballot| ballot.node != NodeId(leader)))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_cannot_work_is_refused_with_what_to_do() {
    let mut bad = config();
    bad.replica.election_timeout = bad.replica.heartbeat_interval;
    let refused = Node::spawn(bad, Disk::new(1), Network::default().transport())
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("at least twice"), "{refused}");
    let bad = Config {
        max_turn_inputs: 0,
        ..config()
    };
    let refused = Node::spawn(bad, Disk::new(1), Network::default().transport())
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("max_turn_inputs is 0"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn what_happens_is_counted() {
    let cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let group = cluster.group(leader);
    group.propose_all(vec![text("a"); 10], None).await;
    group.query(Read::Linearizable, Bytes::new()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let text = cluster.nodes[&leader].prometheus();
    for line in [
        "paxos_is_leader{group=\"1\"} 1",
        "paxos_has_leader{group=\"1\"} 1",
        "paxos_proposals_committed_total{group=\"1\"} 10",
        "paxos_proposals_applied_total{group=\"1\"} 10",
        "paxos_batch_entries_sum{group=\"1\"} 10",
        "paxos_read_index_duration_seconds_count{group=\"1\"} 1",
        "paxos_apply_lag{group=\"1\"} 0",
        "paxos_node_halted 0",
    ] {
        assert!(
            text.contains(&format!("\n{line}\n")),
            "{line} is missing in:\n{text}"
        );
    }
    assert_eq!(
        text.matches("paxos_peer_active{group=\"1\",peer=").count(),
        2,
        "{text}"
    );
}
