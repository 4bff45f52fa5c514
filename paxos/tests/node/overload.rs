//! More work than a group can do.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use paxos::{Group, ProposeError, Read, ReadError};
use tokio::time::Instant;

use crate::cluster::{Cluster, config, text};

fn is_overloaded<T>(outcome: &Result<T, ProposeError>) -> bool {
    matches!(outcome, Err(ProposeError::Overloaded { .. }))
}

#[tokio::test(start_paused = true)]
async fn too_much_at_once_is_refused_and_nothing_is_lost() {
    let mut config = config();
    config.replica.max_pending_commands = 10;
    let cluster = Cluster::start_with(config).await;
    let group = cluster.group(cluster.leader().await);
    // Nothing else runs between these calls.
    let open: Vec<_> = (0..15)
        .map(|index| group.propose(text(&index.to_string())))
        .collect();
    let burst = group.propose_all(vec![text("x"); 20], None);
    let mut outcomes = Vec::new();
    for proposal in open {
        outcomes.push(proposal.await);
    }
    assert!(outcomes[..10].iter().all(Result::is_ok));
    assert!(outcomes[10..].iter().all(is_overloaded));
    assert!(burst.await.iter().all(is_overloaded));
    let burst = group.propose_all(vec![text("x"); 20], None).await;
    assert!(
        burst[..10].iter().all(Result::is_ok),
        "as many as there is room for"
    );
    assert!(burst[10..].iter().all(is_overloaded));
    assert_eq!(group.metrics().rejected.queue_full.get(), 35);
    assert_eq!(group.metrics().proposals_committed.get(), 20);
}

#[tokio::test(start_paused = true)]
async fn commands_and_queries_that_wait_are_bounded_in_bytes() {
    let mut config = config();
    config.replica.max_pending_bytes = 1_000;
    config.max_pending_read_bytes = 1_000;
    let cluster = Cluster::start_with(config).await;
    let group = cluster.group(cluster.leader().await);
    let large = Bytes::from(vec![b'x'; 400]);
    let mut writes: Vec<_> = (0..3).map(|_| group.propose(large.clone())).collect();
    let mut reads: Vec<_> = (0..3)
        .map(|_| group.query(Read::Linearizable, large.clone()))
        .collect();
    assert!(is_overloaded(&writes.pop().unwrap().await));
    let refused = reads.pop().unwrap().await;
    assert!(
        matches!(refused, Err(ReadError::Overloaded { .. })),
        "{refused:?}"
    );
    for write in writes {
        assert!(write.await.is_ok());
    }
    for read in reads {
        assert!(read.await.is_ok());
    }
    assert_eq!(group.metrics().rejected.bytes.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_status_is_told_however_many_requests_wait() {
    let cluster = Cluster::start().await;
    let group = cluster.group(cluster.leader().await);
    let open: Vec<_> = (0..20_000).map(|_| group.propose(text("x"))).collect();
    let status = group.status().await;
    assert!(status.replica.leader.is_some());
    assert!(
        status.replica.pending_commands < 16_384,
        "it came before the commands"
    );
    drop(open);
}

/// What became of the commands of an open loop.
#[derive(Clone, Default)]
struct Outcomes(Arc<Mutex<Counts>>);

#[derive(Clone, Copy, Default)]
struct Counts {
    offered: u32,
    done: u32,
    refused: u32,
    other: u32,
    /// Of those done.
    slowest: Duration,
    /// Of those refused.
    slowest_refusal: Duration,
    most_bytes_pending: u64,
}

impl Outcomes {
    /// Proposes at this rate for so long, whatever the answers take.
    async fn offer(&self, group: &Group, per_second: u32, duration: Duration) {
        const STEPS: u32 = 100;
        let start = Instant::now();
        while start.elapsed() < duration {
            for _ in 0..per_second / STEPS {
                self.propose(group);
            }
            tokio::time::sleep(Duration::from_secs(1) / STEPS).await;
            let pending = group.metrics().inflight_bytes.get();
            let mut counts = self.0.lock().unwrap();
            counts.most_bytes_pending = counts.most_bytes_pending.max(pending);
        }
    }

    fn propose(&self, group: &Group) {
        let since = Instant::now();
        let counts = self.0.clone();
        counts.lock().unwrap().offered += 1;
        let count = move |outcome| {
            let mut counts = counts.lock().unwrap();
            match outcome {
                Ok(_) => {
                    counts.done += 1;
                    counts.slowest = counts.slowest.max(since.elapsed());
                }
                Err(ProposeError::Overloaded { retry_after }) => {
                    assert!(!retry_after.is_zero());
                    counts.refused += 1;
                    counts.slowest_refusal = counts.slowest_refusal.max(since.elapsed());
                }
                Err(_) => counts.other += 1,
            }
        };
        group.propose_with(Bytes::from(vec![b'x'; 1_000]), None, Box::new(count));
    }

    fn take(&self) -> Counts {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_disk_that_is_offered_ten_times_its_pace_keeps_the_pace_the_leader_and_a_bounded_queue() {
    let mut config = config();
    config.target_delay = Duration::from_millis(500);
    config.replica.max_window_bytes = 32 << 10;
    config.replica.max_batch_bytes = 16 << 10;
    let cluster = Cluster::start_with(config).await;
    let leader = cluster.leader().await;
    let group = cluster.group(leader);
    let ballot = *group.leader().borrow();
    // 250 commands of 1 000 bytes per second.
    for disk in cluster.disks.values() {
        disk.byte_takes(Duration::from_micros(4));
    }
    let outcomes = Outcomes::default();
    // Until it has found its pace.
    outcomes.offer(&group, 2_500, Duration::from_secs(10)).await;
    outcomes.take();
    outcomes.offer(&group, 2_500, Duration::from_secs(20)).await;
    let Counts {
        offered,
        done,
        refused,
        other,
        slowest,
        slowest_refusal,
        most_bytes_pending,
    } = outcomes.take();
    assert!(offered > 45_000);
    assert!(done > 20 * 250 * 8 / 10, "{done} were done");
    assert!(refused > 35_000, "{refused} were refused");
    assert_eq!(other, 0);
    assert!(slowest < Duration::from_millis(1_500), "{slowest:?}");
    assert_eq!(slowest_refusal, Duration::ZERO, "who is refused hears so at once");
    assert!(most_bytes_pending < 300 * 1_000, "{most_bytes_pending}");
    assert!(group.metrics().rejected.delay.get() > u64::from(refused));
    for node in 1..=3 {
        assert_eq!(
            *cluster.group(node).leader().borrow(),
            ballot,
            "nobody else stood"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_that_cannot_be_in_time_is_refused_at_once() {
    let cluster = Cluster::start().await;
    let group = cluster.group(cluster.leader().await);
    for disk in cluster.disks.values() {
        disk.byte_takes(Duration::from_micros(4));
    }
    let outcomes = Outcomes::default();
    outcomes.offer(&group, 300, Duration::from_secs(5)).await;
    let asked = Instant::now();
    let refused = group
        .propose_within(text("hurry"), Duration::from_millis(10))
        .await;
    assert!(is_overloaded(&refused), "{refused:?}");
    assert_eq!(asked.elapsed(), Duration::ZERO);
    assert_eq!(group.metrics().rejected.deadline.get(), 1);
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert!(
        group
            .propose_within(text("calm"), Duration::from_millis(10))
            .await
            .is_ok()
    );
}
