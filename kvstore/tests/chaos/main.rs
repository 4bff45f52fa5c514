//! Chaos: real nodes on real disks are killed, stopped, cut off and slowed down, while clients note what they are
//! answered. What they noted must be linearizable, and in the end every node must answer and hold the same state.
//!
//! | variable | default | |
//! |---|---|---|
//! | `KVSTORE_CHAOS_SECONDS` | 8 | how long harm is done, in each run |
//! | `KVSTORE_CHAOS_SEED` | one for each storage | the first seed: which faults, and what clients ask for |
//! | `KVSTORE_CHAOS_SEEDS` | 1 | how many seeds, one run after the other |

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod full_disk;
mod links;
mod nemesis;
mod nodes;
mod register;
mod replace;
mod run;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use run::Run;

/// Runs would disturb each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is '{text}', a number is expected")),
        Err(_) => default,
    }
}

/// Runs on threads that live as long as the nodes, which end with the thread that started them.
fn block_on(scenario: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(scenario);
}

fn chaos(storage: &str, default_seed: u64) {
    let _alone = alone();
    let first = number("KVSTORE_CHAOS_SEED", default_seed);
    let length = Duration::from_secs(number("KVSTORE_CHAOS_SECONDS", 8));
    for seed in first..first + number("KVSTORE_CHAOS_SEEDS", 1) {
        block_on(async {
            let mut run = Run::start(storage, seed, run::directory()).await;
            let outcome = match run.until_it_works().await {
                Ok(()) => run.torment(length).await,
                Err(text) => Err(text),
            };
            run.finish(outcome).await;
        });
    }
}

#[cfg(feature = "leveldb")]
#[test]
fn leveldb_survives_chaos() {
    chaos("leveldb", 1);
}

#[cfg(feature = "sqlite")]
#[test]
fn sqlite_survives_chaos() {
    chaos("sqlite", 2);
}

#[cfg(feature = "wal")]
#[test]
fn wal_survives_chaos() {
    chaos("wal", 3);
}
