//! Crashes, failing and slow disks, machines that fail.

use std::time::Duration;

use bytes::Bytes;
use paxos::{
    ChangeError, GroupId, Node, NodeError, ProposeError, Read, ReadError, Slot, SnapshotError, TransferError,
    node::Config,
};

use crate::{
    cluster::{Cluster, GROUP, alone, config, members, text},
    doubles::{Disk, Fault, Network},
    list::List,
};

#[tokio::test(start_paused = true)]
async fn a_crashed_leader_is_replaced_and_comes_back_with_its_disk() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    cluster.group(leader).propose(text("before")).await.unwrap();
    cluster.crash(leader).await;
    let other = cluster.leader().await;
    assert_ne!(other, leader);
    assert_eq!(cluster.group(other).propose(text("after")).await.unwrap(), "2");
    cluster.start_node(leader).await;
    assert_eq!(cluster.list(leader).await, "before after");
}

#[tokio::test(start_paused = true)]
async fn everything_acknowledged_survives_a_crash_of_all_nodes() {
    let mut cluster = Cluster::start().await;
    for index in 1..=20 {
        cluster
            .group(1 + index % 3)
            .propose(text(&index.to_string()))
            .await
            .unwrap();
    }
    let list = cluster.list(1).await;
    for node in 1..=3 {
        cluster.crash(node).await;
    }
    for node in 1..=3 {
        cluster.start_node(node).await;
        assert_eq!(cluster.nodes[&node].incarnation().0, 2);
    }
    for node in 1..=3 {
        assert_eq!(cluster.list(node).await, list);
    }
    assert_eq!(cluster.group(2).propose(text("more")).await.unwrap(), "21");
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_kept_its_state_is_given_only_what_it_lacks() {
    /// Counts what it is given, beginning from what it says it holds.
    struct Kept(Slot, u64);
    impl paxos::StateMachine for Kept {
        fn applied(&self) -> Slot {
            self.0
        }
        fn apply(
            &mut self,
            chosen: paxos::Chosen<'_>,
            replies: &mut Vec<Bytes>,
        ) -> Result<(), paxos::MachineError> {
            self.1 += chosen.commands.len() as u64;
            replies.extend(chosen.commands.iter().map(|_| Bytes::from(self.1.to_string())));
            self.0 = chosen.upto;
            Ok(())
        }
        fn query(&self, _: Bytes) -> Bytes {
            Bytes::from(self.1.to_string())
        }
        fn snapshot(&self) -> Result<Box<dyn paxos::SnapshotSource>, paxos::MachineError> {
            Err(paxos::MachineError::new("none"))
        }
        fn restore(&mut self, _: Slot, _: &mut dyn std::io::Read) -> Result<(), paxos::MachineError> {
            Err(paxos::MachineError::new("none"))
        }
    }

    let disk = Disk::new(1);
    let (node, group) = alone(config(), &disk).await;
    for index in 0..5 {
        group.propose(text(&index.to_string())).await.unwrap();
    }
    let applied = group.status().await.applied;
    node.shutdown().await.unwrap();

    let node = Node::spawn(config(), disk, Network::default().transport())
        .await
        .unwrap();
    let group = node
        .add_group(GROUP, members([1]), Kept(applied, 5))
        .await
        .unwrap();
    assert_eq!(group.query(Read::Linearizable, Bytes::new()).await.unwrap(), "5");
    assert_eq!(group.propose(text("sixth")).await.unwrap(), "6");
}

#[tokio::test(start_paused = true)]
async fn a_failed_disk_halts_its_node_and_no_other() {
    for (fault, reason) in [
        (Fault::Full, "disk full while writing the log"),
        (Fault::Broken, "the store failed"),
    ] {
        let cluster = Cluster::start().await;
        let leader = cluster.leader().await;
        cluster.group(leader).propose(text("safe")).await.unwrap();
        cluster.disks[&leader].fail(fault);
        let lost = cluster.group(leader).propose(text("lost?")).await;
        assert_eq!(lost, Err(ProposeError::Unknown), "it had been sent to the others");
        let halted = cluster.nodes[&leader].halted().await;
        assert!(halted.contains(reason), "{halted}");

        let group = cluster.group(leader);
        let later = group.propose(text("later")).await.unwrap_err();
        assert_eq!(later, ProposeError::Stopped(halted.clone()));
        let read = group
            .query(Read::Stale { at_least: Slot::ZERO }, Bytes::new())
            .await
            .unwrap_err();
        assert_eq!(read, ReadError::Stopped(halted.clone()));
        assert_eq!(group.status().await.halted.as_ref(), Some(&halted));
        assert!(!group.is_leader());
        let refused = cluster.nodes[&leader]
            .add_group(GroupId(9), members(1..=3), List::default())
            .await;
        assert!(matches!(refused, Err(NodeError::Stopped(why)) if why == halted));

        let other = cluster.leader().await;
        assert_ne!(other, leader);
        cluster.group(other).propose(text("goes on")).await.unwrap();
        assert!(cluster.list(other).await.ends_with("goes on"));
    }
}

#[tokio::test]
async fn a_storage_that_panics_halts_its_node() {
    let disk = Disk::new(1);
    let config = Config {
        storage_thread: true,
        ..config()
    };
    let (node, group) = alone(config, &disk).await;
    group.propose(text("fine")).await.unwrap();
    disk.fail(Fault::Panic);
    assert!(group.propose(text("lost")).await.is_err());
    assert_eq!(node.halted().await, "the storage panicked");
    assert!(matches!(node.shutdown().await, Err(NodeError::Stopped(_))));
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_takes_two_seconds_a_write_does_not_cost_the_leadership() {
    let cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let ballot = *cluster.group(leader).leader().borrow();
    for disk in cluster.disks.values() {
        disk.write_takes(Duration::from_secs(2));
    }
    for index in 0..5 {
        cluster
            .group(leader)
            .propose(text(&index.to_string()))
            .await
            .unwrap();
    }
    for node in 1..=3 {
        assert_eq!(*cluster.group(node).leader().borrow(), ballot);
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_fails_halts_its_group_only() {
    for command in ["fail", "panic"] {
        let node = Node::spawn(config(), Disk::new(1), Network::default().transport())
            .await
            .unwrap();
        let sick = node
            .add_group(GroupId(1), members([1]), List::default())
            .await
            .unwrap();
        let well = node
            .add_group(GroupId(2), members([1]), List::default())
            .await
            .unwrap();
        assert_eq!(
            sick.propose(text(command)).await,
            Err(ProposeError::Unknown),
            "it was chosen"
        );
        let why = sick.status().await.halted.unwrap();
        assert!(why.contains(&format!("told to {command}")), "{why}");
        assert_eq!(
            sick.propose(text("more")).await,
            Err(ProposeError::Stopped(why.clone()))
        );
        assert_eq!(well.propose(text("fine")).await.unwrap(), "1");
        assert_eq!(well.halted(), None);
        assert!(node.prometheus().contains("paxos_group_halted{group=\"1\"} 1"));
        node.shutdown().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_that_has_halted_says_why_however_often_it_is_asked() {
    let mut config = config();
    config.replica.max_pending_commands = 20;
    config.replica.max_pending_reads = 20;
    let (_node, group) = alone(config, &Disk::new(1)).await;
    group.propose(text("fail")).await.unwrap_err();
    let why = group.status().await.halted.unwrap();
    for _ in 0..1_100 {
        assert_eq!(
            group.propose(text("x")).await,
            Err(ProposeError::Stopped(why.clone()))
        );
        let burst = group.propose_all(vec![text("x"); 2], None).await;
        assert!(
            burst
                .iter()
                .all(|outcome| *outcome == Err(ProposeError::Stopped(why.clone())))
        );
        let read = group.query(Read::Linearizable, Bytes::new()).await;
        assert_eq!(read, Err(ReadError::Stopped(why.clone())));
        let transferred = group.transfer_leadership(paxos::NodeId(1)).await;
        assert!(
            matches!(&transferred, Err(TransferError::Stopped(said)) if *said == why),
            "{transferred:?}"
        );
        let changed = group.change_membership(1, Vec::new(), false).await;
        assert!(
            matches!(&changed, Err(ChangeError::Stopped(said)) if *said == why),
            "{changed:?}"
        );
        let saved = group.save_snapshot().await;
        assert!(
            matches!(&saved, Err(SnapshotError::Stopped(said)) if *said == why),
            "{saved:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_machine_that_blocks_delays_its_group_only() {
    let config = Config {
        storage_thread: true,
        ..config()
    };
    let node = Node::spawn(config, Disk::new(1), Network::default().transport())
        .await
        .unwrap();
    let slow = node
        .add_group(GroupId(1), members([1]), List::default())
        .await
        .unwrap();
    let fast = node
        .add_group(GroupId(2), members([1]), List::default())
        .await
        .unwrap();
    fast.propose(text("ready")).await.unwrap();
    let blocked = tokio::spawn(slow.propose(text("block")));
    for index in 0..20 {
        fast.propose(text(&index.to_string())).await.unwrap();
    }
    // No time is measured: the fast group was done while the slow one was not, or there was nothing to see.
    blocked.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_group_with_damaged_entries_is_repaired_from_its_peers() {
    let mut cluster = Cluster::start().await;
    let victim = cluster.follower().await;
    for index in 0..10 {
        cluster
            .group(victim)
            .propose(text(&index.to_string()))
            .await
            .unwrap();
    }
    let before = cluster.list(victim).await;
    cluster.crash(victim).await;
    for slot in [2, 5, 6, 9] {
        cluster.disks[&victim].damage(GROUP, Slot(slot));
    }
    cluster.start_node(victim).await;
    assert_eq!(cluster.list(victim).await, before);
    let status = cluster.group(victim).status().await;
    assert_eq!((status.replica.damaged, status.replica.repaired), (0, 4));
    cluster.crash(victim).await;
    cluster.start_node(victim).await;
    assert_eq!(
        cluster.group(victim).status().await.replica.damaged,
        0,
        "for good"
    );
}

/// Three nodes that keep no entry in memory, a few entries, and damage on one disk that nobody has noticed.
async fn with_unnoticed_damage(mut config: Config) -> (Cluster, u64) {
    config.replica.max_cache_bytes = 1;
    let cluster = Cluster::start_with(config).await;
    for index in 0..20 {
        cluster.group(1).propose(text(&index.to_string())).await.unwrap();
    }
    let victim = cluster.follower().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(cluster.group(victim).status().await.replica.resting);
    for slot in [4, 5, 17] {
        cluster.disks[&victim].rot(GROUP, Slot(slot));
    }
    (cluster, victim)
}

#[tokio::test(start_paused = true)]
async fn damage_that_nobody_reads_is_found_by_the_scrub_and_repaired() {
    let config = Config {
        scrub_interval: Duration::from_mins(1),
        ..config()
    };
    let (cluster, victim) = with_unnoticed_damage(config).await;
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert!(!cluster.disks[&victim].is_rotten(), "the disk is whole again");
    let status = cluster.group(victim).status().await;
    assert_eq!((status.replica.damaged, status.replica.repaired), (0, 3));
    let metrics = cluster.nodes[&victim].metrics();
    assert_eq!(metrics.scrub_damaged_slots.get(), 3);
    assert!(metrics.scrubs.get() >= 1 && metrics.scrubbed_bytes.get() > 0);
    let well = cluster.nodes[&cluster.leader().await].metrics();
    assert_eq!(well.scrub_damaged_slots.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_scrub_damage_that_nobody_reads_stays() {
    let config = Config {
        scrub_bytes_per_second: 0,
        scrub_interval: Duration::from_mins(1),
        ..config()
    };
    let (cluster, victim) = with_unnoticed_damage(config).await;
    tokio::time::sleep(Duration::from_mins(5)).await;
    assert!(cluster.disks[&victim].is_rotten());
}

#[tokio::test(start_paused = true)]
async fn the_scrub_reads_no_faster_than_it_may() {
    let config = Config {
        scrub_bytes_per_second: 10_000,
        scrub_interval: Duration::from_mins(1),
        ..config()
    };
    let cluster = Cluster::start_with(config).await;
    let large = "x".repeat(100_000);
    for _ in 0..40 {
        cluster.group(1).propose(text(&large)).await.unwrap();
    }
    let metrics = cluster.nodes[&1].metrics();
    let before = metrics.scrubbed_bytes.get();
    tokio::time::sleep(Duration::from_mins(5)).await;
    let read = metrics.scrubbed_bytes.get() - before;
    // One entry may have been read just before.
    assert!(
        (2_000_000..=3_100_000).contains(&read),
        "{read} bytes in five minutes"
    );
}

#[tokio::test(start_paused = true)]
async fn a_group_whose_damage_nobody_can_repair_waits_and_hinders_no_other() {
    let disk = Disk::new(1);
    disk.damage(GROUP, Slot(3));
    let (node, damaged) = alone(config(), &disk).await;
    node.add_group(GroupId(2), members([1]), List::default())
        .await
        .unwrap()
        .propose(text("a"))
        .await
        .unwrap();
    let proposed = tokio::time::timeout(Duration::from_mins(1), damaged.propose(text("b"))).await;
    assert!(
        !matches!(proposed, Ok(Ok(_))),
        "slot 3 may hold something: {proposed:?}"
    );
    assert_eq!(damaged.status().await.replica.damaged, 1);
    assert!(damaged.metrics().alarms.get() > 0);
}
