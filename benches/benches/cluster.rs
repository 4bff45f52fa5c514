//! How many writes does a cluster of three nodes answer in a second, over each backend, in process and over TCP, for 1, 64
//! and 256 clients? A write of 256 bytes is answered once a majority of the stores have it durably and the leader has
//! applied it. Set `PAXOS_BENCH_DIR` to measure another disk than that of the temporary directory.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use criterion::{Criterion, criterion_group, criterion_main};
use paxos_backends::Backend;
use paxos_benches::{
    Directories,
    cluster::{Wire, answered_writes},
};

fn clusters(criterion: &mut Criterion) {
    for wire in [Wire::InProcess, Wire::Tcp] {
        for backend in Backend::built_in() {
            let mut directories = Directories::default();
            answered_writes(criterion, backend.name(), wire, |owner| {
                paxos_backends::open(backend, directories.create(), owner).expect("an empty store opens")
            });
        }
    }
}

criterion_group!(benches, clusters);
criterion_main!(benches);
