//! What was acknowledged survives `kill -9`, and happened once.

#![allow(clippy::cast_possible_wrap, reason = "counts are far below 2^63")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use common::{Cluster, eventually};
use redis::cmd;

/// How often the leader is killed; `KVSTORE_TEST_KILLS` asks for more.
fn kills() -> usize {
    std::env::var("KVSTORE_TEST_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(2)
}

/// What one client knows of its increments.
#[derive(Debug, Default)]
struct Tally {
    acknowledged: Vec<i64>,
    unknown: usize,
}

/// Whether the counter can be what these clients made of it: every acknowledged increment counted once, and those of
/// unknown outcome at most once.
fn check(tallies: &[Tally], count: i64) -> Result<(), String> {
    let mut acknowledged: Vec<i64> = tallies
        .iter()
        .flat_map(|tally| tally.acknowledged.clone())
        .collect();
    let unknown: usize = tallies.iter().map(|tally| tally.unknown).sum();
    let all = acknowledged.len();
    let possible = all as i64..=(all + unknown) as i64;
    if !possible.contains(&count) {
        return Err(format!("{count} increments counted, {possible:?} are possible"));
    }
    acknowledged.sort_unstable();
    acknowledged.dedup();
    if acknowledged.len() < all || acknowledged.iter().any(|number| !(1..=count).contains(number)) {
        return Err("two increments were given the same number, or one that was lost".to_owned());
    }
    if all == 0 {
        Err("nothing was acknowledged".to_owned())
    } else {
        Ok(())
    }
}

#[test]
fn the_check_notices_lost_and_repeated_increments() {
    let tallies = |numbers: &[i64], unknown| {
        [Tally {
            acknowledged: numbers.to_vec(),
            unknown,
        }]
    };
    assert_eq!(check(&tallies(&[1, 2, 3], 0), 3), Ok(()));
    assert_eq!(check(&tallies(&[1, 3], 1), 3), Ok(()));
    for (numbers, unknown, count) in [
        (&[1, 2, 3][..], 0, 2),
        (&[1, 2, 3], 0, 4),
        (&[1, 2, 2], 0, 3),
        (&[1, 2, 5], 1, 4),
        (&[], 3, 0),
    ] {
        assert!(
            check(&tallies(numbers, unknown), count).is_err(),
            "{numbers:?} {unknown} {count}"
        );
    }
}

/// Increments until told to stop. Only what certainly did not happen is tried again.
fn increment(ports: Vec<u16>, first: usize, stop: &AtomicBool) -> Tally {
    let mut tally = Tally::default();
    let mut turn = first;
    'connect: while !stop.load(SeqCst) {
        turn += 1;
        let client =
            redis::Client::open(format!("redis://127.0.0.1:{}/", ports[turn % ports.len()])).unwrap();
        let Ok(mut connection) = client.get_connection_with_timeout(Duration::from_secs(1)) else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        connection
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        while !stop.load(SeqCst) {
            match cmd("INCR").arg("n").query::<i64>(&mut connection) {
                Ok(count) => tally.acknowledged.push(count),
                Err(error)
                    if ["LOADING", "BUSY"].contains(&error.code().unwrap_or_default())
                        || error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::BusyLoading) =>
                {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(_) => {
                    tally.unknown += 1;
                    continue 'connect;
                }
            }
        }
    }
    tally
}

fn leaders_are_killed_under_load(storage: &str) {
    let mut cluster = Cluster::start(3, &["--storage", storage]);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..6)
        .map(|index| {
            let (ports, stop) = (cluster.resp.clone(), Arc::clone(&stop));
            std::thread::spawn(move || increment(ports, index, &stop))
        })
        .collect();
    for _ in 0..kills() {
        std::thread::sleep(Duration::from_millis(400));
        let leader = cluster.leader();
        let before: i64 = cmd("GET").arg("n").query(&mut cluster.connect(leader)).unwrap();
        cluster.kill(leader);
        // The load goes on without it.
        let survivor = leader % 3 + 1;
        eventually("writes go on", || {
            let read = cluster
                .client(survivor)
                .and_then(|mut client| cmd("GET").arg("n").query::<i64>(&mut client));
            if read.as_ref().is_ok_and(|count| *count > before) {
                Ok(())
            } else {
                Err(read)
            }
        });
        cluster.start_node(leader);
        cluster.wait_until_it_reads(leader);
    }
    stop.store(true, SeqCst);
    let tallies: Vec<Tally> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    for node in 1..=3 {
        let count: i64 = eventually("a read", || cmd("GET").arg("n").query(&mut cluster.client(node)?));
        check(&tallies, count).unwrap();
    }
    the_replicas_agree(&cluster);
}

/// The digests of replicas that have applied the same are the same.
fn the_replicas_agree(cluster: &Cluster) {
    eventually("the replicas agree", || {
        let states: Vec<_> = (1..=cluster.size())
            .map(|node| {
                let status = cluster.status(node).map_err(|error| error.to_string())?;
                let group = &status["groups"][0];
                Ok((group["applied"].clone(), group["digest"].clone()))
            })
            .collect::<Result<_, String>>()?;
        if states.windows(2).all(|pair| pair[0] == pair[1]) {
            Ok(())
        } else {
            Err(format!("{states:?}"))
        }
    });
}

fn all_nodes_are_killed_at_once(storage: &str) {
    let mut cluster = Cluster::start(3, &["--storage", storage]);
    let keys = 300;
    for round in 1..=2 {
        for index in 0..keys {
            let node = index % 3 + 1;
            let set = format!("value {round}.{index}");
            let _: () = cmd("SET")
                .arg(format!("key{index}"))
                .arg(set)
                .query(&mut cluster.connect(node))
                .unwrap();
        }
        for node in 1..=3 {
            cluster.kill(node);
        }
        for node in 1..=3 {
            cluster.start_node(node);
        }
        for node in 1..=3 {
            cluster.wait_until_it_reads(node);
        }
        let mut client = cluster.connect(round);
        for index in 0..keys {
            let found: Option<String> = cmd("GET").arg(format!("key{index}")).query(&mut client).unwrap();
            let acknowledged = format!("value {round}.{index}");
            assert_eq!(found, Some(acknowledged), "an acknowledged write is lost");
        }
    }
    the_replicas_agree(&cluster);
    for node in 1..=3 {
        assert!(cluster.terminate(node).success(), "{}", cluster.log(node));
    }
}

#[cfg(feature = "wal")]
#[test]
fn wal_leaders_killed_under_load() {
    leaders_are_killed_under_load("wal");
}

#[cfg(feature = "leveldb")]
#[test]
fn leveldb_leaders_killed_under_load() {
    leaders_are_killed_under_load("leveldb");
}

#[cfg(feature = "sqlite")]
#[test]
fn sqlite_leaders_killed_under_load() {
    leaders_are_killed_under_load("sqlite");
}

#[cfg(feature = "wal")]
#[test]
fn wal_all_nodes_killed_at_once() {
    all_nodes_are_killed_at_once("wal");
}

#[cfg(feature = "leveldb")]
#[test]
fn leveldb_all_nodes_killed_at_once() {
    all_nodes_are_killed_at_once("leveldb");
}

#[cfg(feature = "sqlite")]
#[test]
fn sqlite_all_nodes_killed_at_once() {
    all_nodes_are_killed_at_once("sqlite");
}

#[cfg(feature = "memory")]
#[test]
#[should_panic(expected = "an acknowledged write is lost")]
fn the_check_notices_a_store_that_forgets() {
    all_nodes_are_killed_at_once("memory");
}
