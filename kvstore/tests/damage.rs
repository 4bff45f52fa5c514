//! A node whose log was damaged comes back in step by itself: what it lost it gets from the others, and writes go on
//! meanwhile.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::JoinHandle,
};

use common::{Cluster, eventually};
use redis::cmd;
use serde_json::Value;

/// How many keys are written before anything goes wrong.
const KEYS: usize = 120;

/// Whose entries are hit: some in the middle of the log, decided long ago.
const HIT: [usize; 3] = [30, 31, 70];

fn value(key: usize) -> String {
    format!("the value of key {key}, and of no other one")
}

fn set(connection: &mut redis::Connection, key: &str, value: &str) -> redis::RedisResult<()> {
    cmd("SET").arg(key).arg(value).query(connection)
}

fn write_keys(cluster: &Cluster) {
    let mut connection = cluster.connect(1);
    for key in 0..KEYS {
        eventually("a write", || {
            set(&mut connection, &format!("key-{key}"), &value(key))
        });
    }
}

/// Somebody who writes one key after the other, to one node, until he is told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Writer {
    fn start(cluster: &Cluster, node: usize) -> Self {
        let mut connection = cluster.connect(node);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut written = 0;
            while !stopped.load(SeqCst) {
                let key = format!("later-{written}");
                eventually("writes go on", || set(&mut connection, &key, "there"));
                written += 1;
            }
            written
        });
        Self { stop, thread }
    }

    /// How many keys it has written.
    fn finish(self) -> usize {
        self.stop.store(true, SeqCst);
        self.thread.join().expect("nothing that was written has failed")
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Where in a file the bytes are.
fn places(contents: &[u8], wanted: &[u8]) -> Vec<usize> {
    let windows = contents.windows(wanted.len()).enumerate();
    windows
        .filter(|(_, window)| *window == wanted)
        .map(|(at, _)| at)
        .collect()
}

/// Flips a bit of every copy of the entries that are hit; `byte` says which, of a file and where in it an entry is.
fn flip_bits(directory: &Path, byte: impl Fn(&[u8], usize) -> usize) {
    for key in HIT {
        let wanted = value(key);
        let mut hit = 0;
        for file in files(directory) {
            let mut contents = fs::read(&file).expect("a file");
            let places = places(&contents, wanted.as_bytes());
            for at in &places {
                let byte = byte(&contents, *at);
                contents[byte] ^= 4;
            }
            if !places.is_empty() {
                fs::write(&file, contents).expect("a file");
            }
            hit += places.len();
        }
        assert!(hit > 0, "the value of key {key} is nowhere in the log");
    }
}

fn group(status: &Value) -> &Value {
    &status["groups"][0]
}

/// The digests of replicas that have applied the same are the same.
fn until_the_replicas_agree(cluster: &Cluster) {
    eventually("the replicas agree", || {
        let states: Vec<_> = (1..=cluster.size())
            .map(|node| {
                let status = cluster.status(node).map_err(|error| error.to_string())?;
                let group = group(&status);
                Ok((group["applied"].clone(), group["digest"].clone()))
            })
            .collect::<Result<_, String>>()?;
        let same = states.windows(2).all(|pair| pair[0] == pair[1]);
        if same { Ok(()) } else { Err(format!("{states:?}")) }
    });
}

/// Waits until the node is in step and its log is whole; returns how many entries it has repaired in this life.
fn until_whole(cluster: &Cluster, node: usize) -> u64 {
    let status = eventually("the log is whole", || {
        let status = cluster.status(node).map_err(|error| error.to_string())?;
        let is_whole = status["ready"] == true && group(&status)["damaged"] == 0;
        if is_whole {
            Ok(status)
        } else {
            Err(status.to_string())
        }
    });
    group(&status)["repaired"].as_u64().expect("a count")
}

fn a_damaged_log_is_repaired(storage: &str, byte: impl Fn(&[u8], usize) -> usize) {
    let mut cluster = Cluster::start(3, &["--storage", storage]);
    write_keys(&cluster);
    until_the_replicas_agree(&cluster);
    let leader = cluster.leader();
    let (victim, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    // LevelDB cannot read its newest file beyond damage; when it is opened it makes a table of that.
    cluster.kill(victim);
    cluster.start_node(victim);
    cluster.wait_until_it_reads(victim);
    write_keys_again(&cluster, other);

    let writer = Writer::start(&cluster, other);
    cluster.kill(victim);
    flip_bits(&cluster.data_dir(victim), byte);
    cluster.start_node(victim);
    cluster.wait_until_it_reads(victim);
    let repaired = until_whole(&cluster, victim);
    assert!(
        repaired >= HIT.len() as u64,
        "{repaired} entries were repaired\n{}",
        cluster.log(victim)
    );
    let written = writer.finish();

    let mut connection = cluster.connect(victim);
    let mut get = |key: String| {
        eventually("a read", || {
            cmd("GET").arg(&key).query::<Option<String>>(&mut connection)
        })
    };
    for key in 0..KEYS {
        assert_eq!(get(format!("key-{key}")), Some(value(key)), "key {key} is lost");
    }
    for key in 0..written {
        assert!(get(format!("later-{key}")).is_some(), "key later-{key} is lost");
    }
    until_the_replicas_agree(&cluster);

    // What was repaired is on the disk.
    cluster.kill(victim);
    cluster.start_node(victim);
    cluster.wait_until_it_reads(victim);
    assert_eq!(until_whole(&cluster, victim), 0, "{}", cluster.log(victim));
    until_the_replicas_agree(&cluster);
}

/// Other keys, behind the ones that are hit.
fn write_keys_again(cluster: &Cluster, node: usize) {
    let mut connection = cluster.connect(node);
    for key in 0..KEYS / 4 {
        eventually("a write", || set(&mut connection, &format!("more-{key}"), "more"));
    }
}

#[cfg(feature = "wal")]
#[test]
fn wal_entries() {
    a_damaged_log_is_repaired("wal", |_, at| at + 5);
}

/// The head of the frame that an entry is in: the whole frame is unreadable then.
#[cfg(feature = "wal")]
#[test]
fn wal_frame_heads() {
    const BLOCK_BYTES: usize = 4_096;
    a_damaged_log_is_repaired("wal", |contents, at| {
        let blocks = (0..=at / BLOCK_BYTES).rev().map(|block| block * BLOCK_BYTES);
        let mut heads = blocks.filter(|block| contents[*block..].starts_with(b"PXWL"));
        heads.next().expect("an entry is in a frame") + 20
    });
}

#[cfg(feature = "leveldb")]
#[test]
fn leveldb_entries() {
    a_damaged_log_is_repaired("leveldb", |_, at| at + 5);
}

/// A running node notices by itself: nobody reads what is damaged.
#[cfg(feature = "wal")]
#[test]
fn wal_entries_of_a_node_that_goes_on_running() {
    let flags = ["--storage", "wal", "--scrub-interval", "200ms"];
    let cluster = Cluster::start(3, &flags);
    write_keys(&cluster);
    until_the_replicas_agree(&cluster);
    let victim = cluster.leader() % 3 + 1;
    flip_bits(&cluster.data_dir(victim), |_, at| at + 5);
    eventually("the damage is found and repaired", || {
        let status = cluster.status(victim).map_err(|error| error.to_string())?;
        let repaired = group(&status)["repaired"].as_u64().unwrap_or_default();
        if repaired >= HIT.len() as u64 {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    until_whole(&cluster, victim);
    until_the_replicas_agree(&cluster);
}

/// All snapshots of a node whose log begins behind them.
#[cfg(feature = "wal")]
#[test]
fn wal_snapshots() {
    let snapshots = "--snapshot-entries 40 --snapshot-tail 5 --snapshot-keep 2 --storage wal";
    let mut cluster = Cluster::start(3, &snapshots.split(' ').collect::<Vec<_>>());
    write_keys(&cluster);
    until_the_replicas_agree(&cluster);
    let leader = cluster.leader();
    let (victim, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    eventually("the log is trimmed", || {
        let status = cluster.status(victim).map_err(|error| error.to_string())?;
        let first = group(&status)["first_slot"].as_u64().unwrap_or_default();
        if first > 40 {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    let writer = Writer::start(&cluster, other);
    cluster.kill(victim);
    let files = files(&cluster.data_dir(victim).join("snapshots"));
    let files = files
        .iter()
        .filter(|file| fs::metadata(file).expect("a file").len() > 100);
    let damaged = files.map(|file| {
        let mut contents = fs::read(file).expect("a file");
        let middle = contents.len() / 2;
        contents[middle] ^= 4;
        fs::write(file, contents).expect("a file");
    });
    assert!(damaged.count() > 0, "there are snapshots");
    cluster.start_node(victim);
    cluster.wait_until_it_reads(victim);
    until_whole(&cluster, victim);
    assert!(
        cluster.log(victim).contains("the state is lost"),
        "{}",
        cluster.log(victim)
    );
    let written = writer.finish();
    let mut connection = cluster.connect(victim);
    for key in 0..KEYS {
        let found: Option<String> = eventually("a read", || {
            cmd("GET").arg(format!("key-{key}")).query(&mut connection)
        });
        assert_eq!(found, Some(value(key)), "key {key} is lost");
    }
    assert!(written > 0);
    until_the_replicas_agree(&cluster);
}
