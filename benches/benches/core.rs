//! What does the protocol itself cost? Three replicas of one group in one thread, in memory: commands per second, for
//! bursts (the window of a closed loop) of 1, 64 and 1 000 commands of 16 bytes.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use paxos::core::Config;
use paxos_benches::lockstep::Lockstep;

fn commits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("core: three replicas, commands");
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    for window in [1_usize, 64, 1_000] {
        let mut cluster = Lockstep::new(3, &Config::default());
        let leader = cluster.leader().expect("a cluster begins with a leader");
        let command = Bytes::from_static(b"sixteen byte cmd");
        group.throughput(Throughput::Elements(window as u64));
        group.bench_function(format!("window {window}"), |bencher| {
            bencher.iter(|| {
                cluster.propose(leader, window, &command);
                cluster.settle();
            });
        });
        assert!(cluster.answered > 0, "the benchmark commits what it proposes");
    }
    group.finish();
}

criterion_group!(benches, commits);
criterion_main!(benches);
