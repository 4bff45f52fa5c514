//! The benchmarks' pieces: use them to measure a plug-in of your own beside those of this project.
//!
//! | `cargo bench -p paxos-benches --bench` | asks |
//! |---|---|
//! | `codec` | What does a message cost on its way to and from bytes? |
//! | `core` | What does the protocol itself cost: three replicas in one thread, in memory? |
//! | `sessions` | What does exactly-once cost a command? |
//! | `storage` | How many writes does each backend make durable in a second? How long does it take to recover a log, and to trim one? |
//! | `cluster` | How many writes does a cluster of three nodes answer, over each backend and transport? |
//! | `kv` | How many commands do three `kvstore` processes answer to clients of the Redis protocol? |
//!
//! All of them together take less than 15 minutes. Stores are made in the temporary directory, or in `PAXOS_BENCH_DIR`.
//! Timings belong to the machine: compare what ran on the same one, quiet, in one run. What does not depend on the machine,
//! allocations and instructions per command, is in [`costs`], and guarded by a test.

use std::{
    env,
    path::{Path, PathBuf},
};

pub mod cluster;
pub mod costs;
pub mod kv;
pub mod lockstep;
pub mod storage;

/// Directories for stores, removed with it.
#[derive(Debug, Default)]
pub struct Directories(Vec<tempfile::TempDir>);

impl Directories {
    /// A new one, in `PAXOS_BENCH_DIR` or else where temporary files are.
    ///
    /// # Panics
    ///
    /// If there can be none.
    pub fn create(&mut self) -> &Path {
        let parent = env::var_os("PAXOS_BENCH_DIR").map_or_else(env::temp_dir, PathBuf::from);
        self.0
            .push(tempfile::tempdir_in(parent).expect("a temporary directory"));
        self.0.last().map_or(Path::new("."), tempfile::TempDir::path)
    }
}
