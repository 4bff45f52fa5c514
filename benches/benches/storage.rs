//! How many writes does each backend make durable in a second? Batches of 1, 10 and 100 entries of 256 bytes over 16
//! groups; every write is one atomic, synced batch. How long does it take until a store with a log of 100 MiB has been
//! recovered? What does a trim cost? Set `PAXOS_BENCH_DIR` to measure another disk than that of the temporary directory.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use paxos::{ClusterId, NodeId, storage::Owner};
use paxos_backends::Backend;
use paxos_benches::storage;

fn backends(criterion: &mut Criterion) {
    let owner = Owner {
        cluster: ClusterId(1),
        node: NodeId(1),
    };
    for backend in Backend::built_in() {
        let open = |directory: &Path| {
            paxos_backends::open(backend, directory, owner).expect("a store that was let go opens")
        };
        storage::durable_commits(criterion, backend.name(), open);
        storage::trimming(criterion, backend.name(), open);
        // What is in memory is gone when it is let go.
        if backend != Backend::Memory {
            storage::recovery(criterion, backend.name(), open);
        }
    }
}

criterion_group!(benches, backends);
criterion_main!(benches);
