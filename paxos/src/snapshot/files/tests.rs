//! Crashes, damage and full disks.

use alloc::{
    borrow::ToOwned, boxed::Box, collections::BTreeSet, format, string::String, sync::Arc, vec::Vec,
};
use core::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    time::Duration,
};
use std::{
    fs, io,
    path::Path,
    sync::{Mutex, mpsc},
    thread,
};

use tempfile::{TempDir, tempdir};

use super::{
    super::{Received, SnapshotError, SnapshotHeader, SnapshotStore},
    Chunk, FileSnapshots,
    disk::{Disk, Step},
};
use crate::{
    state_machine::SnapshotSource,
    types::{GroupId, Slot},
};

const GROUP: GroupId = GroupId(1);

struct State(u64);

impl SnapshotSource for State {
    fn write_to(self: Box<Self>, to: &mut dyn io::Write) -> io::Result<()> {
        to.write_all(&state(self.0))
    }
}

fn state(upto: u64) -> Vec<u8> {
    upto.to_be_bytes().repeat(10_000)
}

fn save(store: &FileSnapshots, upto: u64) -> Result<(), SnapshotError> {
    let header = SnapshotHeader {
        group: GROUP,
        upto: Slot(upto),
        ..SnapshotHeader::default()
    };
    store.save(&header, Box::new(State(upto)))
}

fn newest(store: &FileSnapshots) -> Option<u64> {
    store.newest(GROUP).unwrap().newest.map(|header| header.upto.0)
}

/// The newest one, which must be what was saved.
fn read_newest(store: &FileSnapshots) -> Option<u64> {
    let upto = newest(store)?;
    let mut bytes = Vec::new();
    store
        .open(GROUP, Slot(upto))
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    assert!(bytes == state(upto), "the state as of {upto} has changed");
    Some(upto)
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory.join("group-1")).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// The bytes of a snapshot, as a peer sends them.
fn sent(upto: u64) -> Chunk {
    let peer = tempdir().unwrap();
    let store = FileSnapshots::open(peer.path()).unwrap();
    save(&store, upto).unwrap();
    store.read_chunk(GROUP, Slot(upto), 0, usize::MAX).unwrap()
}

fn receive(store: &FileSnapshots, upto: u64, whole: &Chunk) -> Result<(), SnapshotError> {
    let mut next = 0;
    loop {
        let end = (next + 30_000).min(whole.data.len());
        let chunk = Chunk {
            total: whole.total,
            data: whole.data.slice(next..end),
        };
        match store.store_chunk(GROUP, Slot(upto), next as u64, chunk)? {
            Received::UpTo(upto) => next = upto as usize,
            Received::Whole(_) => return Ok(()),
        }
    }
}

/// Fails at step `at`, and at all later ones if it is a crash. The counter tells how many steps there were.
fn failing(at: u64, crash: bool, kind: io::ErrorKind) -> (Disk, Arc<AtomicU64>) {
    let steps = Arc::new(AtomicU64::new(0));
    let counted = steps.clone();
    let faults = move |_: Step| {
        let step = counted.fetch_add(1, SeqCst);
        if step == at || (crash && step > at) {
            return Err(io::Error::from(kind));
        }
        Ok(())
    };
    let disk = Disk {
        faults: Some(Box::new(faults)),
    };
    (disk, steps)
}

/// Saves three, receives one, saves one more; returns the last one that was acknowledged.
fn history(store: &FileSnapshots, transferred: &Chunk) -> (u64, Vec<SnapshotError>) {
    let mut acknowledged = 0;
    let mut errors = Vec::new();
    for upto in 1..=5 {
        let done = match upto {
            4 => receive(store, upto, transferred),
            _ => save(store, upto),
        };
        match done {
            Ok(()) => acknowledged = upto,
            Err(error) => errors.push(error),
        }
    }
    (acknowledged, errors)
}

#[test]
fn a_crash_at_any_step_leaves_all_or_nothing() {
    let transferred = sent(4);
    for at in 0.. {
        let directory = tempdir().unwrap();
        let (disk, steps) = failing(at, true, io::ErrorKind::Other);
        let acknowledged = match FileSnapshots::open_on(disk, directory.path().into()) {
            Ok(store) => history(&store, &transferred).0,
            Err(_) => 0,
        };
        let store = FileSnapshots::open(directory.path()).unwrap();
        let newest = read_newest(&store).unwrap_or_default();
        assert!(
            newest >= acknowledged,
            "step {at}: {acknowledged} was acknowledged, {newest} is there"
        );
        let left = names(directory.path());
        assert!(
            !left.iter().any(|name| name.ends_with(".saving")),
            "step {at}: {left:?}"
        );
        assert_eq!(history(&store, &transferred).0, 5, "step {at}: it goes on");
        assert_eq!(read_newest(&store), Some(5));
        if steps.load(SeqCst) <= at {
            assert!(at > 20, "only {at} steps were made to fail");
            return;
        }
    }
}

#[test]
fn a_full_disk_at_any_step_costs_that_snapshot_only() {
    let transferred = sent(4);
    for at in 0.. {
        let directory = tempdir().unwrap();
        let (disk, steps) = failing(at, false, io::ErrorKind::StorageFull);
        if let Ok(store) = FileSnapshots::open_on(disk, directory.path().into()) {
            let (acknowledged, errors) = history(&store, &transferred);
            for error in &errors {
                let said = format!("{error}");
                assert!(
                    said.contains("disk full while") || said.contains("earlier failure"),
                    "step {at}: {said}"
                );
            }
            assert!(
                read_newest(&store).unwrap_or_default() >= acknowledged,
                "step {at}"
            );
            let left = names(directory.path());
            assert!(
                !left.iter().any(|name| name.ends_with(".partial")),
                "step {at}: {left:?}"
            );
            // A directory that could not be synced is not believed any more; all else is tried again.
            let is_poisoned = matches!(errors.last(), Some(SnapshotError::Poisoned(_)));
            assert!(is_poisoned || errors.len() <= 1, "step {at}: {errors:?}");
        }
        if steps.load(SeqCst) <= at {
            return;
        }
    }
}

#[test]
fn a_directory_that_could_not_be_synced_is_never_synced_again() {
    let directory = tempdir().unwrap();
    let breaks = Arc::new(AtomicBool::new(false));
    let broken = breaks.clone();
    let disk = Disk {
        faults: Some(Box::new(move |step| match step {
            Step::SyncDirectory if broken.load(SeqCst) => Err(io::ErrorKind::Other.into()),
            _ => Ok(()),
        })),
    };
    fs::create_dir_all(directory.path().join("group-1")).unwrap();
    let store = FileSnapshots::open_on(disk, directory.path().into()).unwrap();
    breaks.store(true, SeqCst);
    assert!(matches!(save(&store, 1), Err(SnapshotError::Io { .. })));
    assert!(matches!(save(&store, 2), Err(SnapshotError::Poisoned(_))));
    let chunk = sent(4);
    assert!(matches!(
        receive(&store, 4, &chunk),
        Err(SnapshotError::Poisoned(_))
    ));
}

#[test]
fn a_removal_that_could_not_be_synced_is_not_taken_for_durable_when_it_is_tried_again() {
    let directory = tempdir().unwrap();
    let breaks = Arc::new(AtomicBool::new(false));
    let broken = breaks.clone();
    let disk = Disk {
        faults: Some(Box::new(move |step| match step {
            // A kernel reports a failed sync once.
            Step::SyncDirectory if broken.swap(false, SeqCst) => Err(io::ErrorKind::Other.into()),
            _ => Ok(()),
        })),
    };
    let store = FileSnapshots::open_on(disk, directory.path().into()).unwrap();
    save(&store, 1).unwrap();
    breaks.store(true, SeqCst);
    assert!(matches!(store.remove_group(GROUP), Err(SnapshotError::Io { .. })));
    for _ in 0..2 {
        assert!(matches!(
            store.remove_group(GROUP),
            Err(SnapshotError::Poisoned(_))
        ));
    }
}

#[test]
fn a_group_that_could_not_be_removed_is_there_and_can_be_removed_later() {
    let directory = tempdir().unwrap();
    let breaks = Arc::new(AtomicBool::new(false));
    let broken = breaks.clone();
    let disk = Disk {
        faults: Some(Box::new(move |step| match step {
            Step::Remove if broken.load(SeqCst) => Err(io::ErrorKind::PermissionDenied.into()),
            _ => Ok(()),
        })),
    };
    let store = FileSnapshots::open_on(disk, directory.path().into()).unwrap();
    save(&store, 1).unwrap();
    breaks.store(true, SeqCst);
    store.remove_group(GROUP).unwrap_err();
    assert_eq!(read_newest(&store), Some(1));
    breaks.store(false, SeqCst);
    store.remove_group(GROUP).unwrap();
    assert!(!directory.path().join("group-1").exists());
}

/// Two snapshots in files; the second one is to be damaged.
fn two() -> (TempDir, FileSnapshots, std::path::PathBuf) {
    let directory = tempdir().unwrap();
    let store = FileSnapshots::open(directory.path()).unwrap();
    for upto in [1, 2] {
        let header = SnapshotHeader {
            group: GROUP,
            upto: Slot(upto),
            ..SnapshotHeader::default()
        };
        store.save(&header, Box::new(Short)).unwrap();
    }
    let path = directory.path().join("group-1/00000000000000000002.snapshot");
    (directory, store, path)
}

struct Short;

impl SnapshotSource for Short {
    fn write_to(self: Box<Self>, to: &mut dyn io::Write) -> io::Result<()> {
        to.write_all(b"a short state")
    }
}

/// Damages the newest snapshot; the older one must be found instead, and the damage be told.
fn falls_back(store: &FileSnapshots, path: &Path, damaged: &[u8], what: &str) {
    fs::write(path, damaged).unwrap();
    let mut state = Vec::new();
    let read = store
        .open(GROUP, Slot(2))
        .map_err(|_| ())
        .and_then(|mut from| from.read_to_end(&mut state).map_err(|_| ()));
    assert!(read.is_err(), "{what}: the damaged one can be read");
    let found = store.newest(GROUP).unwrap();
    assert_eq!(found.newest.map(|header| header.upto), Some(Slot(1)), "{what}");
    assert_eq!(
        found.damaged.iter().map(|(upto, _)| upto.0).collect::<Vec<_>>(),
        [2],
        "{what}"
    );
    assert!(path.with_extension("damaged").exists(), "{what}: it is set aside");
}

#[test]
fn a_flipped_bit_anywhere_falls_back_to_the_older_one() {
    let (_directory, store, path) = two();
    let sound = fs::read(&path).unwrap();
    for at in 0..sound.len() {
        for bit in 0..8 {
            let mut damaged = sound.clone();
            damaged[at] ^= 1 << bit;
            falls_back(&store, &path, &damaged, &format!("bit {bit} of byte {at}"));
        }
    }
    fs::write(&path, &sound).unwrap();
    assert_eq!(newest(&store), Some(2));
}

#[test]
fn a_file_cut_off_anywhere_falls_back_to_the_older_one() {
    let (_directory, store, path) = two();
    let sound = fs::read(&path).unwrap();
    for length in 0..sound.len() {
        falls_back(
            &store,
            &path,
            &sound[..length],
            &format!("cut off after {length} bytes"),
        );
    }
    falls_back(
        &store,
        &path,
        &[&sound[..], &[0; 4_096]].concat(),
        "with zeros behind it",
    );
    falls_back(&store, &path, &std::vec![0; sound.len()], "all zeros");
}

#[test]
fn a_newer_format_is_no_damage_and_is_left_alone() {
    let (directory, store, path) = two();
    let newer = b"paxsnap\x09 and what only a later version knows how to read".to_vec();
    fs::write(&path, &newer).unwrap();
    let before = names(directory.path());
    let refused = store.newest(GROUP).unwrap_err();
    assert!(
        matches!(
            refused,
            SnapshotError::WrongFormat {
                found: 9,
                expected: 1,
                ..
            }
        ),
        "{refused}"
    );
    assert_eq!(names(directory.path()), before);
    assert_eq!(fs::read(&path).unwrap(), newer);
}

/// A disk that works, and what it was asked to do.
fn recording() -> (Disk, Arc<Mutex<Vec<Step>>>) {
    let steps = Arc::new(Mutex::new(Vec::new()));
    let recorded = steps.clone();
    let record = move |step: Step| {
        recorded.lock().unwrap().push(step);
        Ok(())
    };
    let disk = Disk {
        faults: Some(Box::new(record)),
    };
    (disk, steps)
}

#[test]
fn each_directory_that_is_created_is_synced_into_its_parent() {
    let directory = tempdir().unwrap();
    let (disk, steps) = recording();
    let store = FileSnapshots::open_on(disk, directory.path().join("a/b/c")).unwrap();
    let created = [Step::CreateDirectory, Step::SyncDirectory].repeat(3);
    assert_eq!(steps.lock().unwrap()[..6], created);
    steps.lock().unwrap().clear();
    save(&store, 1).unwrap();
    assert_eq!(
        steps.lock().unwrap()[..3],
        [Step::CreateDirectory, Step::SyncDirectory, Step::Create]
    );
    steps.lock().unwrap().clear();
    save(&store, 2).unwrap();
    assert_eq!(steps.lock().unwrap()[0], Step::Create, "once is enough");
}

#[test]
fn what_an_earlier_life_may_not_have_synced_is_synced_before_it_is_believed() {
    let directory = tempdir().unwrap();
    let store = FileSnapshots::open(directory.path()).unwrap();
    for upto in [1, 2] {
        save(&store, upto).unwrap();
    }
    drop(store);
    let (disk, steps) = recording();
    let store = FileSnapshots::open_on(disk, directory.path().to_owned()).unwrap();
    assert_eq!(
        *steps.lock().unwrap(),
        [Step::SyncDirectory; 3],
        "its parent, itself, and the group's"
    );
    assert_eq!(newest(&store), Some(2));
}

#[test]
fn a_group_whose_directory_could_not_be_synced_is_given_no_snapshot() {
    let directory = tempdir().unwrap();
    let (disk, steps) = failing(u64::MAX, false, io::ErrorKind::Other);
    drop(FileSnapshots::open_on(disk, directory.path().to_owned()).unwrap());
    // Behind what opening takes, and the creation of the group's directory.
    let (disk, _) = failing(steps.load(SeqCst) + 1, false, io::ErrorKind::Other);
    let store = FileSnapshots::open_on(disk, directory.path().to_owned()).unwrap();
    for _ in 0..2 {
        save(&store, 1).unwrap_err();
        assert_eq!(names(directory.path()), BTreeSet::new());
    }
}

#[test]
fn a_transfer_goes_on_from_what_is_good_of_it() {
    let whole = sent(4);
    let directory = tempdir().unwrap();
    let first = Chunk {
        total: whole.total,
        data: whole.data.slice(..70_000),
    };
    let store = FileSnapshots::open(directory.path()).unwrap();
    assert_eq!(
        store.store_chunk(GROUP, Slot(4), 0, first.clone()).unwrap(),
        Received::UpTo(70_000)
    );
    drop(store);
    // A power failure: what was never synced is zeros, or nothing.
    let path = directory
        .path()
        .join(format!("group-1/00000000000000000004-{}.partial", whole.total));
    let mut stored = fs::read(&path).unwrap();
    stored[69_000..].fill(0);
    fs::write(&path, stored).unwrap();

    let store = FileSnapshots::open(directory.path()).unwrap();
    let Received::UpTo(next) = store.store_chunk(GROUP, Slot(4), 0, first).unwrap() else {
        panic!("it is not complete");
    };
    assert!((60_000..=69_000).contains(&next), "{next}");
    receive(&store, 4, &whole).unwrap();
    assert_eq!(read_newest(&store), Some(4));
}

#[test]
fn a_transfer_that_a_saved_snapshot_has_overtaken_is_removed() {
    let directory = tempdir().unwrap();
    let store = FileSnapshots::open(directory.path()).unwrap();
    let mut chunk = sent(4);
    chunk.data.truncate(100);
    store.store_chunk(GROUP, Slot(4), 0, chunk).unwrap();
    save(&store, 5).unwrap();
    let left = names(directory.path());
    assert_eq!(left.len(), 1, "{left:?}");
    let held = store.shelf(GROUP).partial.lock().unwrap().is_some();
    assert!(!held, "its space is not free before it is closed");
}

#[test]
fn a_transfer_that_is_overtaken_while_it_is_completed_is_completed() {
    let whole = sent(4);
    let directory = tempdir().unwrap();
    let (completes, completing) = mpsc::channel();
    let (saved, is_saved) = mpsc::channel();
    let (completes, is_saved) = (Mutex::new(completes), Mutex::new(is_saved));
    let completed_once = AtomicBool::new(false);
    let disk = Disk {
        faults: Some(Box::new(move |step| {
            if step == Step::Sync && !completed_once.swap(true, SeqCst) {
                completes.lock().unwrap().send(()).unwrap();
                // It may well wait for this transfer to end.
                let _ = is_saved.lock().unwrap().recv_timeout(Duration::from_millis(300));
            }
            Ok(())
        })),
    };
    let store = FileSnapshots::open_on(disk, directory.path().into()).unwrap();
    thread::scope(|scope| {
        let transfer = scope.spawn(|| receive(&store, 4, &whole));
        completing.recv().unwrap();
        save(&store, 5).unwrap();
        let _ = saved.send(());
        transfer.join().unwrap().unwrap();
    });
    assert_eq!(read_newest(&store), Some(5));
}

#[test]
fn strangers_in_the_directory_are_left_alone() {
    let directory = tempdir().unwrap();
    for path in ["group-1", "group-x", "notes"] {
        fs::create_dir_all(directory.path().join(path)).unwrap();
    }
    fs::write(directory.path().join("group-1/readme.txt"), "hello").unwrap();
    let store = FileSnapshots::open(directory.path()).unwrap();
    assert_eq!(newest(&store), None);
    for upto in 1..=5 {
        save(&store, upto).unwrap();
    }
    assert!(names(directory.path()).contains("readme.txt"));
}
