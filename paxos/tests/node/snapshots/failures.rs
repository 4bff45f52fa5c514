//! What goes wrong with a snapshot costs the snapshot, and is told.

use std::time::Duration;

use bytes::Bytes;
use paxos::{
    Chosen, MachineError, MemorySnapshots, Node, Slot, SnapshotError, SnapshotSource, StateMachine,
    node::Config,
};

use super::{catches_up, eager, leave_behind, write};
use crate::{
    cluster::{Cluster, GROUP, config, members},
    doubles::{Breakage, Disk, Network},
    list::List,
};

#[tokio::test(start_paused = true)]
async fn a_full_disk_costs_a_snapshot_and_nothing_else() {
    let cluster = Cluster::start_with_snapshots(eager()).await;
    let leader = cluster.leader().await;
    let group = cluster.group(leader);
    cluster.snapshots[&leader].fail(true);
    write(&group, 0..100).await;
    let asked = group.save_snapshot().await.unwrap_err();
    assert!(
        asked.to_string().contains("disk full while writing a snapshot"),
        "{asked}"
    );
    assert!(group.metrics().snapshot_failures.get() >= 4);
    assert_eq!(
        group.status().await.replica.trimmed,
        Slot::ZERO,
        "nothing to trim behind"
    );

    cluster.snapshots[&leader].fail(false);
    write(&group, 100..200).await;
    let status = group.status().await;
    assert!(status.replica.snapshot > Slot(150), "{status:?}");
    assert!(status.replica.trimmed > Slot(100), "{status:?}");
    assert_eq!(status.halted, None);
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_tried_with_a_peers_snapshot_less_and_less_often() {
    let mut cluster = Cluster::start_with_snapshots(eager()).await;
    let (leader, follower) = leave_behind(&mut cluster).await;
    let store = cluster.snapshots[&follower].clone();
    store.fail(true);
    cluster.start_node(follower).await;
    tokio::time::sleep(Duration::from_mins(5)).await;
    assert!((2..20).contains(&store.tries()), "{} tries", store.tries());
    store.fail(false);
    catches_up(&cluster.group(follower), &cluster.group(leader)).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_has_failed_for_good_is_left_alone_and_shown() {
    let cluster = Cluster::start_with_snapshots(eager()).await;
    let leader = cluster.leader().await;
    let store = cluster.snapshots[&leader].clone();
    store.break_down(Breakage::Poisoned);
    write(&cluster.group(leader), 0..100).await;
    let off = cluster.group(leader).status().await.snapshots_off.unwrap();
    assert!(off.contains("a failed sync") && off.contains("restart"), "{off}");
    assert_eq!(store.tries(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_store_has_failed_for_good_fetches_nothing() {
    let mut cluster = Cluster::start_with_snapshots(eager()).await;
    let (_, follower) = leave_behind(&mut cluster).await;
    let store = cluster.snapshots[&follower].clone();
    store.break_down(Breakage::Poisoned);
    let before = store.tries();
    cluster.start_node(follower).await;
    tokio::time::sleep(Duration::from_mins(1)).await;
    let status = cluster.group(follower).status().await;
    assert!(status.snapshots_off.is_some() && status.replica.fetch.is_none());
    assert!(status.replica.stranded > Some(Slot(100)), "{status:?}");
    assert_eq!(store.tries() - before, 1);
}

#[tokio::test]
async fn whoever_waits_for_a_snapshot_hears_that_the_store_fails_for_good_meanwhile() {
    let config = Config {
        storage_thread: true,
        ..eager()
    };
    let mut cluster = Cluster::start_with_snapshots(config).await;
    let (leader, follower) = leave_behind(&mut cluster).await;
    let third = (1..=3).find(|node| ![leader, follower].contains(node)).unwrap();
    let (group, store) = (cluster.group(leader), cluster.snapshots[&leader].clone());
    let gate = store.hold_saves();
    write(&group, 200..201).await;
    let asks = async {
        gate.somebody_waits().await;
        write(&group, 201..202).await;
        let breaks = async {
            // Nothing is wrong before a piece is read for the follower, who has nobody else to ask.
            store.break_down(Breakage::Poisoned);
            cluster.crash(third).await;
            cluster.start_node(follower).await;
            while group.status().await.snapshots_off.is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            gate.open();
        };
        tokio::join!(group.save_snapshot(), breaks).0
    };
    let asks = async { tokio::join!(group.save_snapshot(), asks).1 };
    let second = tokio::time::timeout(Duration::from_secs(20), asks).await;
    gate.open();
    let second = second.expect("an answer");
    assert!(
        matches!(&second, Err(SnapshotError::Off(why)) if why.contains("a failed sync")),
        "{second:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_place_for_snapshots_says_that_it_cannot_catch_up() {
    let mut cluster = Cluster::start_with_snapshots(eager()).await;
    let (leader, follower) = leave_behind(&mut cluster).await;
    cluster.snapshots.remove(&follower);
    cluster.disks.insert(follower, Disk::another(follower));
    cluster.start_node(follower).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let group = cluster.group(follower);
    let status = group.status().await.replica;
    assert_eq!(
        status.stranded,
        Some(cluster.group(leader).status().await.replica.snapshot)
    );
    assert_eq!(group.metrics().alarms.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_store_that_panics_is_named() {
    let cluster = Cluster::start_with_snapshots(config()).await;
    write(&cluster.group(1), 0..5).await;
    cluster.snapshots[&1].break_down(Breakage::Panics);
    let failed = cluster.group(1).save_snapshot().await;
    assert!(
        matches!(&failed, Err(SnapshotError::Panicked(why)) if why.contains("told to panic")),
        "{failed:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_a_machine_that_is_ahead_of_the_log_is_refused_not_waited_for() {
    /// A list that has been kept on a disk of its own.
    struct Kept(Slot);
    impl StateMachine for Kept {
        fn applied(&self) -> Slot {
            self.0
        }
        fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
            replies.extend(chosen.commands.iter().map(|_| Bytes::new()));
            self.0 = chosen.upto;
            Ok(())
        }
        fn query(&self, _: Bytes) -> Bytes {
            Bytes::new()
        }
        fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
            List::default().snapshot()
        }
        fn restore(&mut self, upto: Slot, _: &mut dyn std::io::Read) -> Result<(), MachineError> {
            self.0 = upto;
            Ok(())
        }
    }
    let mut cluster = Cluster::start_with_snapshots(config()).await;
    write(&cluster.group(1), 0..20).await;
    cluster.group(1).save_snapshot().await.unwrap();
    write(&cluster.group(1), 20..50).await;
    let applied = cluster.group(1).status().await.applied;
    for node in 1..=3 {
        cluster.crash(node).await;
    }
    // Alone it cannot know that anything is chosen.
    let node = cluster.spawn_node(1).await.unwrap();
    let group = node
        .add_group(GROUP, members(1..=3), Kept(Slot(applied.0 + 100)))
        .await
        .unwrap();
    let saved = tokio::time::timeout(Duration::from_mins(1), group.save_snapshot()).await;
    assert!(
        matches!(saved, Ok(Err(SnapshotError::Unready { .. }))),
        "{saved:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_machine_without_snapshots_runs_on_without_them() {
    struct Unfrozen(List);
    impl StateMachine for Unfrozen {
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
            Err(MachineError::new("this service has none"))
        }
        fn restore(&mut self, _: Slot, _: &mut dyn std::io::Read) -> Result<(), MachineError> {
            Err(MachineError::new("this service has none"))
        }
    }
    let node = Node::builder(Disk::new(1), Network::default().transport())
        .config(eager())
        .snapshots(MemorySnapshots::new())
        .spawn()
        .await
        .unwrap();
    let group = node
        .add_group(GROUP, members([1]), Unfrozen(List::default()))
        .await
        .unwrap();
    write(&group, 0..100).await;
    let status = group.status().await;
    assert!(status.snapshots_off.unwrap().contains("this service has none"));
    assert_eq!((status.halted, status.replica.trimmed), (None, Slot::ZERO));
    assert_eq!(group.metrics().snapshot_failures.get(), 1, "it is asked once");
    assert!(matches!(group.save_snapshot().await, Err(SnapshotError::Off(_))));
}

#[tokio::test(start_paused = true)]
async fn a_pace_slower_than_a_chunk_a_second_is_refused() {
    let bad = Config {
        max_snapshot_bytes_per_second: 99,
        ..eager()
    };
    let refused = Node::spawn(bad, Disk::new(1), Network::default().transport())
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("less than one chunk"), "{refused}");
}
