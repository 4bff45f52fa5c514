//! Proposals, reads and what they are answered with.

use std::time::Duration;

use bytes::Bytes;
use paxos::{ProposeError, Read, ReadError, Slot};

use crate::cluster::{Cluster, config, text};

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
    let burst = group.query_all(Read::Linearizable, vec![Bytes::new(); 2], usize::MAX);
    let answers = burst.await.unwrap().answers;
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].ends_with(b"50 last"));
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_reads_is_answered_as_far_as_the_bytes_go_and_at_least_the_first() {
    let cluster = Cluster::start().await;
    let group = cluster.group(1);
    group.propose(text("four")).await.unwrap();
    for (max_answer_bytes, answered) in [(0, 1), (4, 1), (5, 2), (8, 2), (12, 3), (usize::MAX, 3)] {
        let queries = vec![text("a"), text("b"), text("c")];
        let burst = group.query_all(Read::Linearizable, queries.clone(), max_answer_bytes);
        let burst = burst.await.unwrap();
        assert_eq!(burst.answers, vec!["four"; answered], "{max_answer_bytes}");
        assert_eq!(burst.unanswered, queries[answered..], "{max_answer_bytes}");
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_the_future_does_not_take_the_command_back() {
    let cluster = Cluster::start().await;
    drop(cluster.group(1).propose(text("kept")));
    assert_eq!(cluster.group(1).propose(text("next")).await.unwrap(), "2");
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
async fn a_command_that_is_too_large_is_refused_with_its_size() {
    let mut config = config();
    config.replica.max_command_bytes = 10;
    let cluster = Cluster::start_with(config).await;
    let refused = cluster.group(1).propose(text("eleven char")).await;
    assert_eq!(refused, Err(ProposeError::TooLarge { bytes: 11, max: 10 }));
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
