//! Damaged files: found, never returned as data and never as absence.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use paxos::{
    GroupId, Slot, Storage, StorageError, WriteOp,
    storage::{Finding, Recovered},
    testing::storage::Model,
};
use paxos_backends::Backend;
use support::{DURABLE, accept, amount, block_on, hard_state, open, recover, write};
use tempfile::TempDir;

fn payload(group: u32, slot: u64) -> Bytes {
    Bytes::from(format!("group {group}, slot {slot}; ").repeat(1 + (slot % 20) as usize))
}

/// How the store was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Crashed,
    Closed,
}

/// A store with a bit of everything (old tables, a live log, entries written twice, trims, a removed group); and what
/// it holds, all of it acknowledged.
fn a_store(backend: Backend, left: Left) -> (TempDir, Model) {
    let live = tempfile::tempdir().expect("a temporary directory");
    let copied = tempfile::tempdir().expect("a temporary directory");
    let mut model = Model::default();
    block_on(async {
        for life in 0..3_u64 {
            let (mut storage, _) = recover(backend, live.path()).await.expect("a sound store opens");
            for round in 0..12 {
                let slot = life * 20 + round + 1;
                let mut ops: Vec<_> = (0..3)
                    .map(|group| accept(group, slot, life + 1, payload(group, slot)))
                    .collect();
                ops.push(hard_state((slot % 3) as u32, slot, slot));
                if round == 5 {
                    // A new leader writes the last few slots anew.
                    ops.extend((slot - 3..slot).map(|slot| accept(0, slot, life + 9, payload(9, slot))));
                    ops.push(WriteOp::Trim {
                        group: GroupId(1),
                        upto: Slot(slot / 2),
                    });
                    ops.push(WriteOp::RemoveGroup { group: GroupId(7) });
                }
                if round == 2 {
                    ops.push(accept(7, 1, 1, payload(7, 1)));
                }
                model.apply(&ops);
                write(&mut *storage, ops).await.expect("a sound store is written");
            }
            if life == 2 && left == Left::Closed {
                storage.close().await.expect("a sound store closes");
            }
            if life == 2 {
                copy(live.path(), copied.path());
            }
            drop(storage);
        }
    });
    (copied, model)
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            fs::create_dir(&target).expect("a directory");
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a copy");
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if fs::metadata(&path).expect("metadata").len() > 0 {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What a damaged store may do.
#[derive(Debug, Default)]
struct Outcomes {
    refused: usize,
    reported: usize,
    unaltered: usize,
}

/// Opens a damaged store. It must refuse, or give back everything but what it reports.
fn examine(backend: Backend, directory: &Path, model: &Model, outcomes: &mut Outcomes, what: &str) {
    block_on(async {
        let (mut storage, recovered) = match recover(backend, directory).await {
            Ok(opened) => opened,
            Err(StorageError::Corrupt(_) | StorageError::WrongFormat { .. } | StorageError::Io { .. }) => {
                outcomes.refused += 1;
                return;
            }
            Err(error) => panic!("{what}: damage became {error:?}"),
        };
        let damaged = damaged_slots(&recovered, model, what);
        read_all(&mut *storage, &recovered, model, what).await;
        if damaged == 0 {
            outcomes.unaltered += 1;
        } else {
            outcomes.reported += 1;
        }
        drop(storage);
        // Damage that was found once is not forgotten.
        if damaged > 0 {
            let (_, again) = recover(backend, directory).await.expect("the store opens again");
            assert_eq!(
                damaged_slots(&again, model, what),
                damaged,
                "{what}: opened twice"
            );
        }
    });
}

/// How many slots are damaged; panics if anything is wrong and not reported.
fn damaged_slots(recovered: &Recovered, model: &Model, what: &str) -> usize {
    let expected = model.recovered();
    assert_eq!(
        recovered.groups.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>(),
        "{what}"
    );
    let mut damaged = 0;
    for (id, expected) in &expected {
        let found = &recovered.groups[id];
        assert_eq!(
            found.hard_state, expected.hard_state,
            "{what}: hard state of group {id}"
        );
        assert_eq!(
            found.trimmed, expected.trimmed,
            "{what}: trimmed mark of group {id}"
        );
        for (slot, entry) in &found.index {
            assert_eq!(
                Some(entry),
                expected.index.get(slot),
                "{what}: group {id}, slot {slot}"
            );
        }
        for slot in expected.index.keys() {
            assert!(
                found.index.contains_key(slot) || found.damaged.contains(slot),
                "{what}: group {id}, slot {slot} is absent"
            );
        }
        let reports = recovered
            .findings
            .iter()
            .any(|finding| matches!(finding, Finding::Damaged { group, .. } if group == id));
        assert_eq!(
            reports,
            !found.damaged.is_empty(),
            "{what}: findings of group {id}"
        );
        damaged += found.damaged.len();
    }
    damaged
}

async fn read_all(storage: &mut dyn Storage, recovered: &Recovered, model: &Model, what: &str) {
    for (id, group) in &recovered.groups {
        for slot in group.index.keys() {
            match storage.read(*id, *slot..slot.next(), usize::MAX).await {
                Ok(read) => {
                    let expected = model.read(*id, *slot..slot.next(), usize::MAX);
                    assert_eq!(read, expected, "{what}: group {id}, slot {slot}");
                }
                Err(StorageError::Corrupt(_)) => {}
                Err(error) => panic!("{what}: group {id}, slot {slot}: {error:?}"),
            }
        }
        for slot in &group.damaged {
            let read = storage.read(*id, *slot..slot.next(), usize::MAX).await;
            assert!(
                matches!(read, Err(StorageError::Corrupt(_))),
                "{what}: group {id}, slot {slot}: {read:?}"
            );
        }
    }
}

/// Applies `damage` to a copy of every file in turn, so many times each.
fn every_file(backend: Backend, times: usize, damage: impl Fn(&mut Vec<u8>, usize, usize)) -> Outcomes {
    let mut outcomes = Outcomes::default();
    for left in [Left::Crashed, Left::Closed] {
        let (store, model) = a_store(backend, left);
        for file in files(store.path()) {
            let name = file.strip_prefix(store.path()).expect("a file of the store");
            for time in 0..times {
                let copied = tempfile::tempdir().expect("a temporary directory");
                copy(store.path(), copied.path());
                let mut bytes = fs::read(&file).expect("a readable file");
                damage(&mut bytes, time, times);
                fs::write(copied.path().join(name), bytes).expect("a writable file");
                let what = format!(
                    "{backend}, {left:?}, {}, damage {time} of {times}",
                    name.display()
                );
                examine(backend, copied.path(), &model, &mut outcomes, &what);
            }
        }
    }
    eprintln!("{backend}: {outcomes:?}");
    outcomes
}

#[test]
fn a_sound_copy_reads_unaltered() {
    for backend in DURABLE {
        let outcomes = every_file(backend, 1, |_, _, _| {});
        assert_eq!((outcomes.refused, outcomes.reported), (0, 0), "{backend}");
    }
}

#[test]
fn flipped_bits_are_found() {
    for backend in DURABLE {
        let outcomes = every_file(backend, amount("PAXOS_FLIPS", 24), |bytes, time, times| {
            let at = (bytes.len() - 1) * time / (times - 1).max(1);
            bytes[at] ^= 1 << (time % 8);
        });
        assert!(
            outcomes.refused > 0 && outcomes.reported > 0,
            "{backend}: {outcomes:?}"
        );
    }
}

#[test]
fn overwritten_sectors_are_found() {
    for backend in DURABLE {
        let outcomes = every_file(backend, amount("PAXOS_SECTORS", 12), |bytes, time, times| {
            let at = bytes.len() * time / times;
            let end = (at + 512).min(bytes.len());
            bytes[at..end].fill(if time % 2 == 0 { 0 } else { 0xFF });
        });
        assert!(outcomes.refused > 0, "{backend}: {outcomes:?}");
    }
}

#[test]
fn files_cut_short_are_found() {
    for backend in DURABLE {
        let outcomes = every_file(backend, amount("PAXOS_CUTS", 8), |bytes, time, times| {
            bytes.truncate(bytes.len() * time / times);
        });
        assert!(outcomes.refused > 0, "{backend}: {outcomes:?}");
    }
}

#[test]
fn missing_files_are_found() {
    for backend in DURABLE {
        let (store, model) = a_store(backend, Left::Closed);
        for file in files(store.path()) {
            let name = file.strip_prefix(store.path()).expect("a file of the store");
            let copied = tempfile::tempdir().expect("a temporary directory");
            copy(store.path(), copied.path());
            fs::remove_file(copied.path().join(name)).expect("a file");
            let what = format!("{backend}, {} missing", name.display());
            examine(backend, copied.path(), &model, &mut Outcomes::default(), &what);
        }
    }
}

#[test]
fn damaged_slots_are_repaired_by_writing_them_again() {
    let backend = Backend::Sqlite;
    let (store, model) = a_store(backend, Left::Closed);
    let wanted = payload(2, 45);
    let mut hit = 0;
    for file in files(store.path()) {
        let mut bytes = fs::read(&file).expect("a readable file");
        let places: Vec<_> = (0..bytes.len().saturating_sub(wanted.len()))
            .filter(|at| bytes[*at..].starts_with(&wanted))
            .collect();
        for at in &places {
            bytes[at + 5] ^= 4;
        }
        hit += places.len();
        fs::write(&file, bytes).expect("a writable file");
    }
    assert!(hit > 0, "the entry is nowhere on the disk");
    block_on(async {
        let opened = recover(backend, store.path()).await;
        let (mut storage, recovered) = opened.expect("the other entries are sound");
        let damaged = damaged_slots(&recovered, &model, "one entry hit");
        for (id, group) in &recovered.groups {
            for slot in &group.damaged {
                let accepted = &model.groups[id].slots[slot];
                let op = WriteOp::Accept {
                    group: *id,
                    slot: *slot,
                    ballot: accepted.ballot,
                    entry: accepted.entry.clone(),
                };
                write(&mut *storage, vec![op])
                    .await
                    .expect("a damaged slot can be written");
            }
        }
        assert_eq!(damaged, 1, "one entry was hit");
        drop(storage);
        let (_, repaired) = recover(backend, store.path()).await.expect("the store opens");
        assert_eq!(model.difference(&repaired), None);
        assert_eq!(repaired.findings, []);
    });
}

#[test]
fn a_store_that_was_rolled_back_is_refused() {
    for backend in DURABLE {
        let (store, _) = a_store(backend, Left::Crashed);
        let later = tempfile::tempdir().expect("a temporary directory");
        copy(store.path(), later.path());
        block_on(async {
            let (mut storage, _) = recover(backend, later.path()).await.expect("the store opens");
            write(&mut *storage, vec![hard_state(0, 1_000, 0)])
                .await
                .expect("the store is written");
            storage.close().await.expect("the store closes");
        });
        // The engine's files as they were before, from a backup perhaps; what is beside them is of today.
        fs::copy(later.path().join("last-commit"), store.path().join("last-commit")).expect("a copy");
        let opened = block_on(recover(backend, store.path())).map(drop);
        assert!(
            matches!(opened, Err(StorageError::Corrupt(_))),
            "{backend}: {opened:?}"
        );
    }
}

#[test]
fn records_of_another_store_are_not_taken_for_its_own() {
    for backend in DURABLE {
        let (one, _) = a_store(backend, Left::Crashed);
        let (other, _) = a_store(backend, Left::Crashed);
        for name in ["identity", "last-commit"] {
            fs::copy(other.path().join(name), one.path().join(name)).expect("a copy");
        }
        let opened = block_on(recover(backend, one.path())).map(drop);
        assert!(
            matches!(opened, Err(StorageError::Corrupt(_))),
            "{backend}: {opened:?}"
        );
    }
}

#[test]
fn another_backend_is_refused() {
    let (store, _) = a_store(Backend::Sqlite, Left::Crashed);
    let error = open(Backend::LevelDb, store.path())
        .map(drop)
        .expect_err("SQLite's directory");
    assert!(matches!(error, StorageError::WrongFormat { .. }), "{error:?}");
    assert!(error.to_string().contains("sqlite"), "{error}");
}
