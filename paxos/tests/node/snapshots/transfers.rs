//! Nodes that are behind are sent a snapshot, and go on from it.

use std::time::Duration;

use paxos::{
    GroupId, Read, Slot,
    node::Config,
    typed::{Typed, TypedGroup, TypedStateMachine},
};

use super::{catches_up, eager, leave_behind, local_list, write};
use crate::{
    cluster::{Cluster, members, text},
    doubles::Snapshots,
    list::List,
};

#[tokio::test(start_paused = true)]
async fn a_node_that_was_down_is_back_by_snapshot_while_writes_go_on() {
    let mut cluster = Cluster::start_with_snapshots(eager()).await;
    let (leader, follower) = leave_behind(&mut cluster).await;
    let group = cluster.group(leader);
    let writer = tokio::spawn(async move { write(&group, 200..500).await });
    cluster.start_node(follower).await;
    writer.await.unwrap();
    let (group, behind) = (cluster.group(leader), cluster.group(follower));
    catches_up(&behind, &group).await;
    assert_eq!(local_list(&behind).await, local_list(&group).await);
    let metrics = behind.metrics();
    assert!(metrics.snapshot_install_duration.snapshot().count > 0);
    assert!(metrics.snapshot_received_bytes.get() > 0);
    assert_eq!(metrics.snapshot_failures.get(), 0);
    assert!(behind.status().await.replica.snapshot > Slot(100));
}

#[tokio::test(start_paused = true)]
async fn a_node_starts_from_its_snapshot_and_the_tail() {
    let mut cluster = Cluster::start_with_snapshots(eager()).await;
    write(&cluster.group(1), 0..210).await;
    let list = cluster.list(1).await;
    for node in 1..=3 {
        cluster.crash(node).await;
    }
    for node in 1..=3 {
        cluster.start_node(node).await;
    }
    for node in 1..=3 {
        assert_eq!(cluster.list(node).await, list);
        let applied = cluster.group(node).metrics().proposals_applied.get();
        assert!(
            (1..100).contains(&applied),
            "{applied} of 210 commands were applied again"
        );
        assert_eq!(
            cluster
                .group(node)
                .metrics()
                .snapshot_install_duration
                .snapshot()
                .count,
            0
        );
    }
    assert_eq!(cluster.group(2).propose(text("next")).await.unwrap(), "211");
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_restarts_goes_on_where_it_was() {
    let mut config = eager();
    // It takes half a minute.
    config.max_snapshot_bytes_per_second = 100;
    let mut cluster = Cluster::start_with_snapshots(config).await;
    let (_, follower) = leave_behind(&mut cluster).await;
    cluster.start_node(follower).await;
    let received = |cluster: &Cluster| cluster.group(follower).metrics().snapshot_received_bytes.get();
    while received(&cluster) < 1_000 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.crash(follower).await;
    cluster.start_node(follower).await;
    let leader = cluster.leader().await;
    catches_up(&cluster.group(follower), &cluster.group(leader)).await;
    let sent_again = received(&cluster);
    assert!(
        cluster
            .group(follower)
            .metrics()
            .snapshot_install_duration
            .snapshot()
            .count
            > 0
    );
    assert!(
        sent_again < 2_000,
        "{sent_again} bytes were sent to the second life, after 1000 to the first one"
    );
}

/// `groups` groups of which node 3 lacks more than the log of the others reaches back to.
async fn leave_behind_in(groups: std::ops::RangeInclusive<u32>, commands: u32, config: Config) -> Cluster {
    let mut cluster = Cluster::start_with_snapshots(config).await;
    cluster.crash(3).await;
    for id in groups.clone() {
        for node in cluster.nodes.values() {
            node.add_group(GroupId(id), members(1..=3), List::default())
                .await
                .unwrap();
        }
        write(&cluster.nodes[&1].group(GroupId(id)).unwrap(), 0..commands).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    for id in groups.clone() {
        let group = cluster.nodes[&1].group(GroupId(id)).unwrap();
        write(&group, commands..commands + 50).await;
    }
    let node = cluster.spawn_node(3).await.unwrap();
    for id in groups {
        node.add_group(GroupId(id), members(1..=3), List::default())
            .await
            .unwrap();
    }
    cluster.nodes.insert(3, node);
    cluster
}

async fn all_caught_up(cluster: &Cluster, groups: std::ops::RangeInclusive<u32>) {
    for id in groups {
        let at = |node| cluster.nodes[&node].group(GroupId(id)).unwrap();
        catches_up(&at(3), &at(1)).await;
        assert!(at(3).metrics().snapshot_install_duration.snapshot().count > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn transfers_that_share_a_pace_so_slow_that_their_receivers_give_up_all_come_to_an_end() {
    let mut config = eager();
    // Each of two peers serves six groups: a piece in six seconds for each.
    config.max_snapshot_bytes_per_second = 100;
    let cluster = leave_behind_in(10..=21, 30, config).await;
    tokio::time::timeout(Duration::from_mins(10), all_caught_up(&cluster, 10..=21))
        .await
        .expect("every transfer advances");
}

#[tokio::test(start_paused = true)]
async fn a_small_snapshot_costs_the_pace_no_more_than_its_bytes() {
    let mut config = eager();
    config.replica.snapshot_chunk_bytes = 1 << 20;
    config.max_snapshot_bytes_per_second = 1 << 20;
    let cluster = leave_behind_in(10..=29, 30, config).await;
    let began = tokio::time::Instant::now();
    all_caught_up(&cluster, 10..=29).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_typed_machine_is_snapshotted_by_itself() {
    #[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
    struct Sums(std::collections::BTreeMap<String, i64>);

    impl TypedStateMachine for Sums {
        type Command = (String, i64);
        type Reply = i64;
        type Query = String;
        type Answer = i64;

        fn apply(&mut self, (name, add): (String, i64)) -> i64 {
            let sum = self.0.entry(name).or_default();
            *sum += add;
            *sum
        }

        fn query(&self, name: String) -> i64 {
            self.0.get(&name).copied().unwrap_or_default()
        }
    }

    let mut cluster = Cluster::start_with_snapshots(eager()).await;
    let typed = GroupId(5);
    let mut groups = Vec::new();
    for node in 1..=3 {
        let machine = Typed::new(Sums::default());
        let group = cluster.nodes[&node]
            .add_group(typed, members(1..=3), machine)
            .await
            .unwrap();
        groups.push(TypedGroup::<Sums>::new(group));
    }
    cluster.crash(3).await;
    for number in 0..200 {
        let name = format!("sum-{}", number % 7);
        groups[0].propose(&(name, number)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    for number in 0..50 {
        groups[0].propose(&("late".into(), number)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let status = groups[0].group().status().await;
    assert!(status.replica.trimmed > Slot(100), "{status:?}");
    cluster.start_node(3).await;
    let machine = Typed::new(Sums::default());
    let group = cluster.nodes[&3]
        .add_group(typed, members(1..=3), machine)
        .await
        .unwrap();
    let back = TypedGroup::<Sums>::new(group);
    for name in (0..7).map(|name| format!("sum-{name}")) {
        let expected = groups[0].query(Read::Linearizable, &name).await.unwrap();
        assert_eq!(back.query(Read::Linearizable, &name).await.unwrap(), expected);
    }
    assert!(back.group().metrics().snapshot_install_duration.snapshot().count > 0);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_lost_its_snapshots_gets_one_from_a_peer() {
    let mut cluster = Cluster::start_with_snapshots(eager()).await;
    write(&cluster.group(1), 0..100).await;
    let victim = cluster.follower().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(cluster.group(victim).status().await.replica.trimmed > Slot::ZERO);
    cluster.crash(victim).await;
    cluster.snapshots.insert(victim, Snapshots::default());
    cluster.start_node(victim).await;
    assert!(cluster.group(victim).status().await.replica.lacks_snapshot);
    let list = cluster.list(victim).await;
    assert_eq!(list.split(' ').count(), 100);
    assert_eq!(list, cluster.list(cluster.leader().await).await);
    assert!(!cluster.group(victim).status().await.replica.lacks_snapshot);
}
