//! Snapshots: taken, trimmed behind, sent, resumed, installed, and started from.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use paxos::{
    Chosen, FileSnapshots, Group, GroupId, MachineError, MemorySnapshots, Node, NodeError, Read, Slot,
    SnapshotError, SnapshotSource, StateMachine,
    node::Config,
    typed::{Typed, TypedGroup, TypedStateMachine},
};

use crate::{
    cluster::{Cluster, GROUP, config, members, text},
    doubles::{Breakage, Disk, Gate, List, Network, Snapshots},
};

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
    let gate = Arc::new(Gate::default());
    let node = cluster.spawn_node(follower).await.unwrap();
    let restoring = node
        .add_group(GROUP, members(1..=3), Slow(List::default(), gate.clone()))
        .await
        .unwrap();
    let quick = node
        .add_group(other, members(1..=3), List::default())
        .await
        .unwrap();
    gate.somebody_waits().await;
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
    let gate = Arc::new(Gate::default());
    let node = cluster.spawn_node(follower).await.unwrap();
    let restoring = node
        .add_group(GROUP, members(1..=3), Slow(List::default(), gate.clone()))
        .await
        .unwrap();
    gate.somebody_waits().await;
    let read = tokio::spawn(restoring.query(Read::Linearizable, Bytes::new()));
    let down = tokio::spawn(node.shutdown());
    // Whoever waits is answered at once; the machine's next read of the snapshot fails.
    assert!(read.await.unwrap().is_err());
    gate.open();
    down.await.unwrap().unwrap();
}

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
    let gate = Arc::new(Gate::default());
    let node = cluster.spawn_node(follower).await.unwrap();
    let restoring = node
        .add_group(GROUP, members(1..=3), Slow(List::default(), gate.clone()))
        .await
        .unwrap();
    gate.somebody_waits().await;
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
async fn a_snapshot_can_be_asked_for() {
    let mut config = eager();
    config.replica.snapshot_entries = 0;
    config.replica.snapshot_bytes = 0;
    let cluster = Cluster::start_with_snapshots(config).await;
    let group = cluster.group(cluster.leader().await);
    write(&group, 0..50).await;
    assert_eq!(
        group.status().await.replica.snapshot,
        Slot::ZERO,
        "none by themselves"
    );
    let applied = group.status().await.applied;
    let (one, other) = tokio::join!(group.save_snapshot(), group.save_snapshot());
    assert_eq!((one.unwrap(), other.unwrap()), (applied, applied));
    assert_eq!(
        group.save_snapshot().await.unwrap(),
        applied,
        "it is there already"
    );
    assert_eq!(group.metrics().snapshot_save_duration.snapshot().count, 1);
    write(&group, 50..60).await;
    assert!(group.save_snapshot().await.unwrap() > applied);

    let without = Cluster::start().await;
    let refused = without.group(1).save_snapshot().await.unwrap_err();
    assert!(
        refused.to_string().contains("Node::builder(..).snapshots(..)"),
        "{refused}"
    );
}

#[tokio::test(start_paused = true)]
async fn trimming_can_be_paused() {
    let cluster = Cluster::start_with_snapshots(eager()).await;
    for node in 1..=3 {
        cluster.group(node).pause_trimming(true);
    }
    let group = cluster.group(cluster.leader().await);
    write(&group, 0..100).await;
    let status = group.status().await;
    assert!(status.replica.snapshot > Slot(50), "snapshots go on");
    assert_eq!(status.replica.trimmed, Slot::ZERO);
    group.pause_trimming(false);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(group.status().await.replica.trimmed > Slot(50));
}

/// One node with its snapshots in files.
async fn node_with_files(disk: &Disk, directory: &std::path::Path, config: &Config) -> Node {
    Node::builder(disk.clone(), Network::default().transport())
        .config(config.clone())
        .snapshots(FileSnapshots::open(directory).unwrap())
        .spawn()
        .await
        .unwrap()
}

/// The files, newest first.
fn snapshot_files(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(directory.join("group-1")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.reverse();
    files
}

#[tokio::test(start_paused = true)]
async fn a_damaged_snapshot_falls_back_to_the_older_one_and_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::new(1);
    let mut config = eager();
    config.replica.keep_entries = 30;
    let node = node_with_files(&disk, directory.path(), &config).await;
    let group = node
        .add_group(GROUP, members([1]), List::default())
        .await
        .unwrap();
    write(&group, 0..100).await;
    let before = local_list(&group).await;
    node.shutdown().await.unwrap();

    let files = snapshot_files(directory.path());
    let mut bytes = std::fs::read(&files[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&files[0], bytes).unwrap();
    let node = node_with_files(&disk, directory.path(), &config).await;
    let group = node
        .add_group(GROUP, members([1]), List::default())
        .await
        .unwrap();
    let after = group.query(Read::Linearizable, Bytes::new()).await.unwrap();
    assert_eq!(after, before.as_bytes());
    assert_eq!(group.metrics().snapshot_failures.get(), 1);
    node.shutdown().await.unwrap();

    for file in snapshot_files(directory.path()) {
        std::fs::write(file, "damaged").unwrap();
    }
    let node = node_with_files(&disk, directory.path(), &config).await;
    let refused = node
        .add_group(GROUP, members([1]), List::default())
        .await
        .unwrap_err();
    let refused = refused.to_string();
    assert!(
        refused.contains("there is no whole snapshot") && refused.contains("is damaged: "),
        "{refused}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_trimmed_log_is_not_opened_without_its_snapshots() {
    let mut cluster = Cluster::start_with_snapshots(eager()).await;
    write(&cluster.group(1), 0..100).await;
    cluster.crash(1).await;
    cluster.snapshots.clear();
    let node = cluster.spawn_node(1).await.unwrap();
    let refused = node
        .add_group(GROUP, members(1..=3), List::default())
        .await
        .unwrap_err();
    assert!(matches!(refused, NodeError::Storage(_)), "{refused}");
    assert!(refused.to_string().contains("has no snapshot store"), "{refused}");
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

#[tokio::test(start_paused = true)]
async fn a_removed_group_leaves_no_snapshot_behind() {
    let node = Node::builder(Disk::new(1), Network::default().transport())
        .config(eager())
        .snapshots(MemorySnapshots::new())
        .spawn()
        .await
        .unwrap();
    let group = node
        .add_group(GROUP, members([1]), List::default())
        .await
        .unwrap();
    write(&group, 0..100).await;
    group.save_snapshot().await.unwrap();
    node.remove_group(GROUP).await.unwrap();
    assert!(matches!(
        group.save_snapshot().await,
        Err(SnapshotError::Stopped(_))
    ));
    let group = node
        .add_group(GROUP, members([1]), List::default())
        .await
        .unwrap();
    assert_eq!(group.propose(text("first")).await.unwrap(), "1");
    assert_eq!(group.status().await.replica.snapshot, Slot::ZERO);
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
