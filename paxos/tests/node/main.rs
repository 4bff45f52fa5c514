//! The tokio driver with real replicas, on disks and a network that do what the test tells them to.
//!
//! All tests but those that need several threads run with a paused clock: timeouts take no time, and nothing depends on
//! the speed of the machine.

mod doubles;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use paxos::{
    ClusterId, Group, GroupId, Member, Membership, Node, NodeError, NodeId, ProposeError, Read, ReadError,
    Slot, StorageId, core::Message, node::Config, wire,
};

use crate::doubles::{Disk, Fault, List, Network};

const GROUP: GroupId = GroupId(1);

fn config() -> Config {
    Config {
        storage_thread: false,
        seed: Some(1),
        ..Config::default()
    }
}

fn members(nodes: impl IntoIterator<Item = u64>) -> Membership {
    Membership::new(
        nodes
            .into_iter()
            .map(|node| Member::voter(NodeId(node), format!("node-{node}"))),
    )
}

/// Three nodes with one group each, unless a test wants it otherwise.
struct Cluster {
    network: Network,
    disks: BTreeMap<u64, Disk>,
    nodes: BTreeMap<u64, Node>,
    config: Config,
}

impl Cluster {
    async fn start() -> Self {
        Self::start_with(config()).await
    }

    async fn start_with(config: Config) -> Self {
        let disks = (1..=3).map(|node| (node, Disk::new(node))).collect();
        let mut cluster = Self {
            network: Network::default(),
            disks,
            nodes: BTreeMap::new(),
            config,
        };
        for node in 1..=3 {
            cluster.start_node(node).await;
        }
        cluster
    }

    async fn start_node(&mut self, node: u64) {
        let started = self.spawn_node(node).await.unwrap();
        started
            .add_group(GROUP, members(1..=3), List::default())
            .await
            .unwrap();
        self.nodes.insert(node, started);
    }

    async fn spawn_node(&self, node: u64) -> Result<Node, NodeError> {
        Node::spawn(
            self.config.clone(),
            self.disks[&node].clone(),
            self.network.transport(),
        )
        .await
    }

    /// As `kill -9`: nothing is closed.
    async fn crash(&mut self, node: u64) {
        drop(self.nodes.remove(&node));
        // The tasks end at their next turn.
        tokio::task::yield_now().await;
    }

    fn group(&self, node: u64) -> Group {
        self.nodes[&node].group(GROUP).unwrap()
    }

    /// The leader that some node sees.
    async fn leader(&self) -> u64 {
        loop {
            for node in self.nodes.keys() {
                if self.group(*node).is_leader() {
                    return *node;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        *self.nodes.keys().find(|node| **node != leader).unwrap()
    }

    async fn list(&self, node: u64) -> String {
        let list = self
            .group(node)
            .query(Read::Linearizable, Bytes::new())
            .await
            .unwrap();
        String::from_utf8(list.to_vec()).unwrap()
    }
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

#[tokio::test(start_paused = true)]
async fn every_node_takes_proposals_and_all_apply_the_same() {
    let cluster = Cluster::start().await;
    for node in 1..=3 {
        let reply = cluster
            .group(node)
            .propose(text(&format!("from-{node}")))
            .await
            .unwrap();
        assert_eq!(reply, node.to_string(), "the position in the list");
    }
    for node in 1..=3 {
        assert_eq!(cluster.list(node).await, "from-1 from-2 from-3");
    }
    let mut digests = Vec::new();
    for node in 1..=3 {
        digests.push(cluster.group(node).status().await.digest.unwrap());
    }
    assert_eq!(digests, [digests[0]; 3]);
}

#[tokio::test(start_paused = true)]
async fn proposals_keep_the_order_of_the_calls_however_they_are_polled() {
    let cluster = Cluster::start().await;
    let follower = cluster.follower().await;
    let group = cluster.group(follower);
    let mut open: Vec<_> = (1..=100)
        .map(|index| group.propose(text(&index.to_string())))
        .collect();
    open.reverse();
    for (index, proposal) in (1..=100).rev().zip(open) {
        assert_eq!(proposal.await.unwrap(), index.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_answered_in_order_and_so_is_a_callback() {
    let cluster = Cluster::start().await;
    let group = cluster.group(1);
    let burst = group.propose_all((1..=50).map(|index| text(&index.to_string())).collect(), None);
    let (done, called) = tokio::sync::oneshot::channel();
    group.propose_with(
        text("last"),
        None,
        Box::new(move |outcome| done.send(outcome).unwrap()),
    );
    let replies = burst.await.into_iter().map(|reply| reply.unwrap());
    assert!(replies.eq((1..=50).map(|index: u32| index.to_string())));
    assert_eq!(called.await.unwrap().unwrap(), "51");
    assert!(group.propose_all(Vec::new(), None).await.is_empty());
    let answers = group
        .query_all(Read::Linearizable, vec![Bytes::new(); 2])
        .await
        .unwrap();
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].ends_with(b"50 last"));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_future_does_not_take_the_command_back() {
    let cluster = Cluster::start().await;
    drop(cluster.group(1).propose(text("kept")));
    assert_eq!(cluster.group(1).propose(text("next")).await.unwrap(), "2");
}

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
    let node = Node::spawn(config(), disk.clone(), Network::default().transport())
        .await
        .unwrap();
    let group = node
        .add_group(GROUP, members([1]), List::default())
        .await
        .unwrap();
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
    let node = Node::spawn(config, disk.clone(), Network::default().transport())
        .await
        .unwrap();
    let group = node
        .add_group(GROUP, members([1]), List::default())
        .await
        .unwrap();
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
async fn writes_that_wait_share_a_sync() {
    let cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let disk = &cluster.disks[&leader];
    disk.write_takes(Duration::from_millis(10));
    let before = disk.syncs();
    let group = cluster.group(leader);
    let mut open = Vec::new();
    for index in 0..100 {
        open.push(group.propose(text(&index.to_string())));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for proposal in open {
        proposal.await.unwrap();
    }
    let syncs = disk.syncs() - before;
    assert!(
        (2..=30).contains(&syncs),
        "100 proposals, one a millisecond, 10 ms a sync: {syncs} syncs"
    );
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
async fn a_query_that_panics_is_that_query_only() {
    let cluster = Cluster::start().await;
    let group = cluster.group(1);
    group.propose(text("a")).await.unwrap();
    let failed = group.query(Read::Linearizable, text("panic")).await;
    assert!(matches!(failed, Err(ReadError::Failed(why)) if why.contains("told to panic")));
    assert_eq!(cluster.list(1).await, "a");
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_everything_ends_at_its_deadline() {
    let cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    cluster.network.cut_off(leader);
    let group = cluster.group(leader);
    let sent = group.propose_within(text("sent"), Duration::from_secs(1));
    let read = group.query(Read::Linearizable, Bytes::new());
    assert_eq!(
        sent.await,
        Err(ProposeError::Unknown),
        "the leader had begun to replicate it"
    );
    assert_eq!(read.await, Err(ReadError::Expired));

    // By now it knows that it leads no more: what it takes now stays here.
    let kept = group.propose_within(text("kept"), Duration::from_secs(1)).await;
    assert_eq!(kept, Err(ProposeError::Expired));
    let burst = group
        .propose_all(vec![text("a"), text("b")], Some(Duration::from_secs(1)))
        .await;
    assert_eq!(burst, [Err(ProposeError::Expired), Err(ProposeError::Expired)]);
    let stale = group
        .query(
            Read::Stale {
                at_least: Slot(1_000),
            },
            Bytes::new(),
        )
        .await;
    assert_eq!(stale, Err(ReadError::Expired));

    cluster.network.reconnect(leader);
    let after = group.propose(text("after")).await.unwrap();
    let list = cluster.list(leader).await;
    assert!(!list.contains("kept") && list.ends_with("after"), "{list}");
    assert_eq!(after, list.split(' ').count().to_string());
    assert_eq!(group.metrics().rejected.expired.get(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_stale_read_waits_for_its_slot_and_sees_at_least_that() {
    let cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    cluster.group(leader).propose(text("a")).await.unwrap();
    let at_least = cluster.group(leader).status().await.applied;
    for node in 1..=3 {
        let answer = cluster
            .group(node)
            .query(Read::Stale { at_least }, Bytes::new())
            .await
            .unwrap();
        assert_eq!(answer, "a");
    }
}

#[tokio::test(start_paused = true)]
async fn too_much_at_once_is_refused_and_nothing_is_lost() {
    let mut config = config();
    config.max_queued_requests = 10;
    let cluster = Cluster::start_with(config).await;
    let group = cluster.group(cluster.leader().await);
    // Nothing else runs between these calls.
    let open: Vec<_> = (0..15)
        .map(|index| group.propose(text(&index.to_string())))
        .collect();
    let large = group.propose_all(vec![text("x"); 20], None);
    let mut outcomes = Vec::new();
    for proposal in open {
        outcomes.push(proposal.await);
    }
    assert!(outcomes[..10].iter().all(Result::is_ok));
    assert!(
        outcomes[10..]
            .iter()
            .all(|outcome| matches!(outcome, Err(ProposeError::Overloaded { .. })))
    );
    assert!(
        large
            .await
            .iter()
            .all(|outcome| matches!(outcome, Err(ProposeError::Overloaded { .. })))
    );
    let large = group.propose_all(vec![text("x"); 20], None).await;
    assert!(
        large.iter().all(Result::is_ok),
        "a burst larger than the queue is taken when the queue is empty"
    );
    assert_eq!(group.metrics().rejected.overloaded.get(), 25);
    assert_eq!(group.metrics().proposals_committed.get(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_is_too_large_is_refused_with_its_size() {
    let mut config = config();
    config.replica.max_command_bytes = 10;
    let cluster = Cluster::start_with(config).await;
    let refused = cluster.group(1).propose(text("eleven char")).await;
    assert_eq!(refused, Err(ProposeError::TooLarge { bytes: 11, max: 10 }));
}

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
async fn a_group_with_damaged_entries_is_refused() {
    let disk = Disk::new(1);
    disk.damage(GROUP, Slot(3));
    let node = Node::spawn(config(), disk, Network::default().transport())
        .await
        .unwrap();
    let refused = node
        .add_group(GROUP, members([1]), List::default())
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("damaged entries at the slots [3]"),
        "{refused}"
    );
    node.add_group(GroupId(2), members([1]), List::default())
        .await
        .unwrap()
        .propose(text("a"))
        .await
        .unwrap();
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

/// Crashes, cuts and failing disks at random, three proposing users; returns what they were told.
async fn storm(seed: u64) {
    let mut cluster = Cluster::start_with(Config {
        seed: Some(seed),
        ..config()
    })
    .await;
    let mut random = Random(seed);
    let mut open = Vec::new();
    for round in 0..30 {
        for node in cluster.nodes.keys() {
            let command = format!("{round}.{node}");
            let timeout = Duration::from_millis(random.below(1_500));
            let proposal = cluster.group(*node).propose_within(text(&command), timeout);
            open.push((command, proposal));
        }
        let node = 1 + random.below(3);
        match random.below(8) {
            0 => {
                cluster.crash(node).await;
                cluster.start_node(node).await;
            }
            1 => cluster.network.cut_off(node),
            2 => (1..=3).for_each(|node| cluster.network.reconnect(node)),
            3 => {
                cluster.disks[&node].fail(Fault::Broken);
                tokio::time::sleep(Duration::from_millis(random.below(700))).await;
                cluster.disks[&node].mend();
                cluster.crash(node).await;
                cluster.start_node(node).await;
            }
            4 => cluster.disks[&node].write_takes(Duration::from_millis(random.below(50))),
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(random.below(400))).await;
    }
    (1..=3).for_each(|node| cluster.network.reconnect(node));
    let mut outcomes = Vec::new();
    for (command, proposal) in open {
        outcomes.push((command, proposal.await));
    }
    let list = cluster.list(1).await;
    for node in [2, 3] {
        assert_eq!(
            cluster.list(node).await,
            list,
            "seed {seed}: all nodes hold the same"
        );
    }
    let list: Vec<_> = list.split(' ').collect();
    for (command, outcome) in outcomes {
        let places: Vec<_> = (1..)
            .zip(&list)
            .filter(|(_, held)| **held == command)
            .map(|(place, _)| place)
            .collect();
        assert!(
            places.len() <= 1,
            "seed {seed}: {command} was applied at {places:?}"
        );
        match outcome {
            Ok(place) => assert_eq!(
                places.first().map(u64::to_string).unwrap_or_default(),
                place,
                "seed {seed}"
            ),
            Err(ProposeError::Unknown) => {}
            Err(error) => assert!(
                places.is_empty(),
                "seed {seed}: {command} happened, but the user heard: {error}"
            ),
        }
    }
}

/// A small generator of random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33) % bound
    }
}

/// `PAXOS_NODE_SEEDS` sets how many (20).
#[tokio::test(start_paused = true)]
async fn in_a_storm_every_user_is_told_the_truth() {
    let seeds = std::env::var("PAXOS_NODE_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(20);
    for seed in 0..seeds {
        storm(seed).await;
    }
}
