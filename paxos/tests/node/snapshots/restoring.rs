//! While a machine is restored its node goes on.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use paxos::{
    Chosen, Group, GroupId, MachineError, Node, Read, Slot, SnapshotSource, StateMachine, node::Config,
};

use super::{catches_up, eager, leave_behind, local_list, write};
use crate::{
    cluster::{Cluster, GROUP, members, text},
    doubles::Gate,
    list::List,
};

/// A list that is restored slowly: when the gate is opened.
struct Slow(List, Arc<Gate>);

impl StateMachine for Slow {
    fn applied(&self) -> Slot {
        self.0.applied()
    }

    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        self.0.apply(chosen, replies)
    }

    fn query(&self, query: Bytes) -> Bytes {
        self.0.query(query)
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        self.0.snapshot()
    }

    fn restore(&mut self, upto: Slot, from: &mut dyn std::io::Read) -> Result<(), MachineError> {
        self.1.pass();
        self.0.restore(upto, from)
    }
}

/// Starts a node that is behind, with a machine that is being restored until the gate is opened.
async fn restoring(cluster: &Cluster, follower: u64) -> (Node, Group, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let node = cluster.spawn_node(follower).await.unwrap();
    let group = node
        .add_group(GROUP, members(1..=3), Slow(List::default(), gate.clone()))
        .await
        .unwrap();
    gate.somebody_waits().await;
    (node, group, gate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_machine_is_restored_its_node_votes_and_other_groups_go_on() {
    let config = Config {
        storage_thread: true,
        ..eager()
    };
    let mut cluster = Cluster::start_with_snapshots(config).await;
    let (leader, follower) = leave_behind(&mut cluster).await;
    let third = (1..=3).find(|node| ![leader, follower].contains(node)).unwrap();
    let other = GroupId(2);
    for node in [leader, third] {
        let node = &cluster.nodes[&node];
        node.add_group(other, members(1..=3), List::default())
            .await
            .unwrap();
    }
    let (node, restoring, gate) = restoring(&cluster, follower).await;
    let quick = node
        .add_group(other, members(1..=3), List::default())
        .await
        .unwrap();
    assert!(restoring.status().await.restoring.is_some());

    // Without this node's votes nothing would be chosen any more, in either group.
    cluster.crash(third).await;
    let group = cluster.group(leader);
    write(&group, 200..300).await;
    quick.propose(text("elsewhere")).await.unwrap();
    let waits = tokio::spawn(restoring.query(Read::Linearizable, Bytes::new()));
    write(&group, 300..310).await;
    assert!(!waits.is_finished(), "a read waits for the machine");
    assert!(restoring.status().await.restoring.is_some());

    gate.open();
    assert!(waits.await.unwrap().unwrap().starts_with(b"command-0 command-1 "));
    catches_up(&restoring, &group).await;
    assert_eq!(local_list(&restoring).await, local_list(&group).await);
    assert_eq!(restoring.status().await.restoring, None);
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_does_not_wait_for_a_machine_to_be_restored() {
    let config = Config {
        storage_thread: true,
        ..eager()
    };
    let mut cluster = Cluster::start_with_snapshots(config).await;
    let (_, follower) = leave_behind(&mut cluster).await;
    let (node, restoring, gate) = restoring(&cluster, follower).await;
    let read = tokio::spawn(restoring.query(Read::Linearizable, Bytes::new()));
    let down = tokio::spawn(node.shutdown());
    // Whoever waits is answered at once; the machine's next read of the snapshot fails.
    assert!(read.await.unwrap().is_err());
    gate.open();
    down.await.unwrap().unwrap();
}

/// Two groups, of which one is being restored, on a runtime with a single thread: nothing happens between two awaits.
#[tokio::test]
async fn whoever_asks_a_group_that_ends_is_answered_at_once() {
    let config = Config {
        storage_thread: true,
        // What is asked behind the stop is not taken in any more.
        max_turn_inputs: 1,
        ..eager()
    };
    let mut cluster = Cluster::start_with_snapshots(config).await;
    let (_, follower) = leave_behind(&mut cluster).await;
    let (node, restoring, gate) = restoring(&cluster, follower).await;
    drop(node);
    let asked = tokio::time::timeout(Duration::from_secs(10), restoring.status()).await;
    gate.open();
    assert!(
        asked
            .expect("an answer while the machine is away")
            .halted
            .is_some()
    );
}
