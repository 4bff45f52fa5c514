//! Stores whose process is killed, whose disk fails, or is full: nothing acknowledged is lost, no batch is there in part.
//!
//! The writer is a process of its own: this test program again, with the directory in the environment.

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use paxos::{GroupId, Slot, Storage, StorageError, WriteOp, storage::Finding};
use paxos_backends::Backend;
use support::{DURABLE, accept, amount, ballot, block_on, hard_state, recover, skip, write};
use tempfile::TempDir;

const GROUPS: u32 = 4;
const DIRECTORY: &str = "PAXOS_TEST_DIRECTORY";
const BACKEND: &str = "PAXOS_TEST_BACKEND";
const BATCHES: &str = "PAXOS_TEST_BATCHES";

fn payload(group: u32, number: u64) -> Bytes {
    let length = (number * 37 + u64::from(group)) % 700;
    Bytes::from(format!("{group}/{number}/").repeat(1 + length as usize / 8))
}

/// Batch number `number` touches every group, so a batch that is there in part shows.
fn batch(number: u64) -> Vec<WriteOp> {
    let mut ops: Vec<_> = (0..GROUPS)
        .map(|group| accept(group, number, number, payload(group, number)))
        .collect();
    ops.push(hard_state((number % u64::from(GROUPS)) as u32, number, number));
    ops
}

/// How many batches there are, whole and unaltered; panics if one is there in part.
fn whole_batches(backend: Backend, directory: &Path) -> u64 {
    block_on(async {
        let (mut storage, recovered) = recover(backend, directory).await.expect("the store opens");
        let is_torn = |finding: &Finding| matches!(finding, Finding::TornTail { .. });
        assert!(
            recovered.findings.iter().all(is_torn),
            "a crash damages nothing: {:?}",
            recovered.findings
        );
        let last = |group| {
            let held = recovered.groups.get(&GroupId(group));
            held.and_then(|held| held.index.last_key_value())
                .map_or(0, |(slot, _)| slot.0)
        };
        let count = last(0);
        for group in 0..GROUPS {
            assert_eq!(
                last(group),
                count,
                "group {group} has another part of the last batch than group 0"
            );
            let entries = storage.read(GroupId(group), Slot(1)..Slot::MAX, usize::MAX).await;
            let entries = entries.expect("all entries are readable");
            assert_eq!(entries.len() as u64, count, "group {group} has holes");
            for (slot, accepted) in entries {
                assert_eq!(accepted.ballot, ballot(slot.0));
                assert_eq!(
                    accepted.entry.payload,
                    payload(group, slot.0),
                    "group {group}, slot {slot}"
                );
            }
            let newest = (1..=count)
                .rev()
                .find(|number| number % u64::from(GROUPS) == u64::from(group));
            let promised = recovered
                .groups
                .get(&GroupId(group))
                .map(|held| held.hard_state.promised.round);
            assert_eq!(
                promised.unwrap_or(0),
                newest.unwrap_or(0),
                "the promise of group {group}"
            );
        }
        storage.close().await.expect("the store closes");
        count
    })
}

/// Not a test: the process that writes. It says `ready`, then the number of each batch as soon as it is acknowledged.
#[test]
fn writer_process() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let backend: Backend = std::env::var(BACKEND)
        .expect("a backend")
        .parse()
        .expect("a known backend");
    let limit = amount(BATCHES, usize::MAX) as u64;
    block_on(async {
        let say = |word: &str| {
            let mut out = std::io::stdout().lock();
            writeln!(out, "\n{word}")
                .and_then(|()| out.flush())
                .expect("somebody listens");
        };
        let (mut storage, recovered) = recover(backend, directory.as_ref())
            .await
            .expect("the store opens");
        let last = recovered
            .groups
            .get(&GroupId(0))
            .and_then(|group| group.index.last_key_value());
        let first = last.map_or(0, |(slot, _)| slot.0) + 1;
        say("ready");
        for number in first..first.saturating_add(limit) {
            match write(&mut *storage, batch(number)).await {
                Ok(()) => say(&number.to_string()),
                Err(error) => {
                    say(&format!("error {error}"));
                    let again = write(&mut *storage, batch(number + 1)).await;
                    assert!(
                        matches!(again, Err(StorageError::Poisoned(_))),
                        "after an error: {again:?}"
                    );
                    return;
                }
            }
        }
        storage.close().await.expect("the store closes");
    });
}

fn writer(mut command: Command, backend: Backend, directory: &Path) -> Command {
    command
        .args(["writer_process", "--exact", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .env(BACKEND, backend.name())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

fn this_program() -> PathBuf {
    std::env::current_exe().expect("this program has a path")
}

/// Interrupts the writer once it has acknowledged batch `wanted`. Returns the last batch that it acknowledged at all.
fn interrupted(child: &mut Child, before: u64, wanted: u64, interrupt: impl Fn(&mut Child)) -> u64 {
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut acknowledged = before;
    let mut is_interrupted = false;
    while let Some(Ok(line)) = lines.next() {
        if let Ok(number) = line.parse() {
            acknowledged = number;
        }
        if acknowledged >= wanted && !is_interrupted {
            interrupt(child);
            is_interrupted = true;
        }
    }
    assert!(
        is_interrupted,
        "the writer ended by itself after batch {acknowledged}"
    );
    acknowledged
}

#[test]
fn a_killed_writer_loses_nothing_that_it_acknowledged() {
    for backend in DURABLE {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut before = 0;
        for cycle in 0..amount("PAXOS_KILL_CYCLES", 4) as u64 {
            let mut child = writer(Command::new(this_program()), backend, directory.path())
                .spawn()
                .expect("a writer");
            let wanted = before + 5 + fastrand::Rng::with_seed(cycle).u64(..150);
            let acknowledged = interrupted(&mut child, before, wanted, |child| {
                child.kill().expect("the writer can be killed");
            });
            child.wait().expect("the writer ends");
            let found = whole_batches(backend, directory.path());
            assert!(
                found >= acknowledged,
                "{backend}: {acknowledged} acknowledged, {found} found"
            );
            assert!(
                found <= acknowledged + 1,
                "{backend}: {acknowledged} acknowledged, {found} found"
            );
            before = found;
        }
    }
}

fn has_strace() -> bool {
    let works = Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .status()
        .is_ok_and(|status| status.success());
    if !works {
        skip("strace is missing, or may not trace here");
    }
    works
}

/// Runs a writer of so many batches under strace. Returns the number of the last acknowledged batch, the error that it
/// ended with, and strace's log.
fn traced(
    backend: Backend,
    directory: &Path,
    options: &[&str],
    batches: usize,
) -> (u64, Option<String>, String) {
    let log = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut command = Command::new("strace");
    command
        .arg("-f")
        .args(options)
        .arg("-o")
        .arg(log.path())
        .arg(this_program());
    command.env(BATCHES, batches.to_string());
    let output = writer(command, backend, directory).output().expect("strace runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{backend}: the writer failed: {said}");
    let acknowledged = said
        .lines()
        .filter_map(|line| line.parse().ok())
        .max()
        .unwrap_or(0);
    let error = said
        .lines()
        .find_map(|line| line.strip_prefix("error "))
        .map(str::to_owned);
    (
        acknowledged,
        error,
        fs::read_to_string(log.path()).expect("strace's log"),
    )
}

#[test]
fn every_acknowledged_batch_has_a_sync_of_its_own() {
    const SYNCS: [&str; 2] = ["-e", "trace=fdatasync,fsync"];
    if !has_strace() {
        return;
    }
    for backend in DURABLE {
        let count = |batches| {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let (acknowledged, error, log) = traced(backend, directory.path(), &SYNCS, batches);
            assert_eq!((acknowledged, error), (batches as u64, None));
            log.lines()
                .filter(|line| line.contains("sync(") && !line.contains("= -1"))
                .count()
        };
        let batches = amount("PAXOS_SYNC_BATCHES", 100);
        let idle = count(0);
        let syncs = count(batches) - idle;
        assert!(syncs >= batches, "{backend}: {syncs} syncs for {batches} batches");
        assert!(
            syncs <= batches + batches / 10 + 2,
            "{backend}: {syncs} syncs for {batches} batches, one is enough"
        );
    }
}

#[test]
fn the_log_costs_one_write_and_one_sync_per_batch() {
    // With the files' names.
    const CALLS: [&str; 3] = ["-y", "-e", "trace=fdatasync,pwrite64,rename,ftruncate,openat"];
    if !has_strace() {
        return;
    }
    // Few enough for the first segment; the next one is prepared meanwhile, whenever it is.
    let batches = 25;
    let count = |batches: usize| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (acknowledged, error, log) = traced(Backend::Wal, directory.path(), &CALLS, batches);
        assert_eq!((acknowledged, error), (batches as u64, None));
        let is_of_log = |line: &&str| {
            !line.contains("/wal/spare") && (!line.contains("openat(") || line.contains("/wal/segment"))
        };
        let names = ["fdatasync(", "pwrite64(", "rename(", "ftruncate(", "openat("];
        names.map(|name| {
            let lines = log.lines().filter(is_of_log);
            lines.filter(|line| line.contains(name)).count()
        })
    };
    let (idle, busy) = (count(0), count(batches));
    let cost: Vec<_> = idle.iter().zip(busy).map(|(idle, busy)| busy - idle).collect();
    // The second write notes, in another file and without a sync, which commit is durable.
    assert_eq!(cost, [batches, 2 * batches, 0, 0, 0]);
}

#[test]
fn a_failed_sync_ends_the_store_and_loses_nothing_acknowledged() {
    if !has_strace() {
        return;
    }
    for backend in DURABLE {
        for at in [30, 31, 47] {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let inject = format!("inject=fdatasync,fsync:error=EIO:when={at}");
            let options = ["-e", "trace=fdatasync,fsync", "-e", &inject];
            let (acknowledged, error, log) = traced(backend, directory.path(), &options, 200);
            assert!(log.contains("(INJECTED)"), "{backend}: no sync was made to fail");
            assert!(error.is_some(), "{backend}: a failed sync went unnoticed");
            assert!(
                acknowledged > 0,
                "{backend}: the sync failed too early to tell anything"
            );
            let found = whole_batches(backend, directory.path());
            assert!(
                found >= acknowledged && found <= acknowledged + 1,
                "{backend}: {acknowledged} acknowledged, {found} found"
            );
        }
    }
}

/// A small filesystem, unmounted when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(mebibytes: usize) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"])
            .arg(directory.path())
            .stderr(Stdio::null())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(directory));
        }
        skip("no small filesystem can be mounted here");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0.path()).status();
        assert!(
            unmounted.is_ok_and(|status| status.success()),
            "the small filesystem is still mounted"
        );
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-r").arg(from).arg(to).status();
    assert!(
        copied.is_ok_and(|status| status.success()),
        "a directory can be copied"
    );
}

#[test]
fn a_full_disk_is_told_apart_and_loses_nothing_acknowledged() {
    for backend in DURABLE {
        // With the larger one the disk fills up while the engine tidies up.
        for mebibytes in [3, 28] {
            let Some(disk) = SmallDisk::mount(mebibytes) else {
                return;
            };
            let store = disk.0.path().join("store");
            let acknowledged = block_on(fill(backend, &store));
            let elsewhere = tempfile::tempdir().expect("a temporary directory");
            copy(&store, elsewhere.path());
            let (_, recovered) =
                block_on(recover(backend, &elsewhere.path().join("store"))).expect("the store opens");
            assert_eq!(recovered.findings, []);
            let found = recovered
                .groups
                .get(&GroupId(0))
                .map_or(0, |group| group.index.len() as u64);
            assert!(
                found >= acknowledged && found <= acknowledged + 1,
                "{backend}: {acknowledged} acknowledged, {found} found"
            );
        }
    }
}

/// Writes until the disk is full; returns how many batches were acknowledged.
async fn fill(backend: Backend, store: &Path) -> u64 {
    let (mut storage, _) = recover(backend, store).await.expect("the store opens");
    let payload = Bytes::from(vec![7; 50_000]);
    for number in 1.. {
        let ops = vec![accept(0, number, 1, payload.clone()), hard_state(0, 1, number)];
        let Err(error) = write(&mut *storage, ops).await else {
            assert!(number < 10_000, "{backend}: the disk never fills up");
            continue;
        };
        assert!(
            matches!(error, StorageError::Full { .. }),
            "{backend}: a full disk gave {error:?}"
        );
        let again = write(&mut *storage, vec![hard_state(1, 1, 1)]).await;
        assert!(
            matches!(again, Err(StorageError::Poisoned(_))),
            "{backend}: after a full disk: {again:?}"
        );
        return number - 1;
    }
    unreachable!("the numbers do not end")
}

#[test]
fn the_writer_process_is_found_by_its_name() {
    // The other tests run it by name; a writer that is never run would let them all pass.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(this_program());
    command.env(BATCHES, "3");
    let output = writer(command, Backend::LevelDb, directory.path())
        .output()
        .expect("a writer");
    assert!(output.status.success());
    assert_eq!(whole_batches(Backend::LevelDb, directory.path()), 3);
}
