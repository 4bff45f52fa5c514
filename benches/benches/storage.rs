//! How many writes does each backend make durable in a second? Batches of 1, 10 and 100 entries of 256 bytes over 16
//! groups; every write is one atomic, synced batch. Set `PAXOS_BENCH_DIR` to measure another disk than that of the
//! temporary directory.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::{env, path::PathBuf};

use criterion::{Criterion, criterion_group, criterion_main};
use paxos::{ClusterId, NodeId, storage::Owner};
use paxos_backends::Backend;
use paxos_benches::storage::durable_commits;

fn backends(criterion: &mut Criterion) {
    let owner = Owner {
        cluster: ClusterId(1),
        node: NodeId(1),
    };
    let parent = env::var_os("PAXOS_BENCH_DIR").map_or_else(env::temp_dir, PathBuf::from);
    for backend in Backend::built_in() {
        let mut directories = Vec::new();
        durable_commits(criterion, backend.name(), || {
            let directory = tempfile::tempdir_in(&parent).expect("a temporary directory");
            let storage =
                paxos_backends::open(backend, directory.path(), owner).expect("an empty store opens");
            directories.push(directory);
            storage
        });
    }
}

criterion_group!(benches, backends);
criterion_main!(benches);
