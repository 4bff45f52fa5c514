//! What no checksum shows: records that are missing, out of date, or come back from the dead.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use paxos::{
    Ballot, ClusterId, Entry, EntryKind, GroupId, HardState, NodeId, Slot, Storage, StorageError, WriteOp,
    storage::{Finding, Owner, Recovered, WriteBatch},
};

use super::{Changes, Engine, Key, Opening, Store, Visit};

const A: GroupId = GroupId(1);
const B: GroupId = GroupId(2);

/// An engine that tests can tamper with.
#[derive(Clone, Default)]
struct Tampered {
    records: Arc<Mutex<BTreeMap<Key, Bytes>>>,
    /// The largest number of deletions in a commit.
    most_deletions: Arc<Mutex<usize>>,
}

impl Tampered {
    fn get(&self, key: Key) -> Bytes {
        self.records
            .lock()
            .expect("one thread")
            .get(&key)
            .cloned()
            .expect("a record")
    }

    fn set(&self, key: Key, record: Bytes) {
        self.records.lock().expect("one thread").insert(key, record);
    }

    fn lose(&self, key: Key) {
        self.records
            .lock()
            .expect("one thread")
            .remove(&key)
            .expect("a record");
    }

    fn len(&self) -> usize {
        self.records.lock().expect("one thread").len()
    }
}

impl Engine for Tampered {
    async fn load(&mut self, _: Opening, visit: &mut Visit<'_>) -> Result<Vec<Finding>, StorageError> {
        for (key, record) in self.records.lock().expect("one thread").clone() {
            visit(key, Some(record));
        }
        Ok(Vec::new())
    }

    async fn commit(&mut self, changes: Changes, _: u64, _: bool) -> Result<(), StorageError> {
        let mut records = self.records.lock().expect("one thread");
        let mut most_deletions = self.most_deletions.lock().expect("one thread");
        *most_deletions = changes
            .values()
            .filter(|record| record.is_none())
            .count()
            .max(*most_deletions);
        for (key, record) in changes {
            match record {
                Some(record) => records.insert(key, record),
                None => records.remove(&key),
            };
        }
        Ok(())
    }

    async fn read(&mut self, group: GroupId, slots: &[Slot]) -> Result<Vec<Option<Bytes>>, StorageError> {
        let records = self.records.lock().expect("one thread");
        Ok(slots
            .iter()
            .map(|slot| records.get(&Key::Slot(group, *slot)).cloned())
            .collect())
    }

    async fn close(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
}

async fn open(directory: &Path, engine: &Tampered) -> Result<(Store<Tampered>, Recovered), StorageError> {
    let owner = Owner {
        cluster: ClusterId(1),
        node: NodeId(1),
    };
    let mut store = Store::open(directory, "leveldb", owner, engine.clone())?;
    let recovered = store.recover().await?;
    Ok((store, recovered))
}

fn ballot(round: u64) -> Ballot {
    Ballot {
        round,
        node: NodeId(1),
    }
}

fn accept(group: GroupId, slot: u64, round: u64) -> WriteOp {
    WriteOp::Accept {
        group,
        slot: Slot(slot),
        ballot: ballot(round),
        entry: Entry {
            kind: EntryKind::Commands,
            payload: Bytes::from(format!("{slot}@{round}")),
        },
    }
}

fn promise(group: GroupId, round: u64) -> WriteOp {
    let state = HardState {
        promised: ballot(round),
        chosen: Slot::ZERO,
        membership: Slot::ZERO,
        quarantine: None,
    };
    WriteOp::HardState { group, state }
}

/// A store whose slots 3 and 4 were written twice, tampered with by `tamper`, which gets slot 3's and the group's first
/// records.
async fn tampered(
    tamper: impl FnOnce(&Tampered, Bytes, Bytes),
) -> Result<(Store<Tampered>, Recovered), StorageError> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let engine = Tampered::default();
    let (mut store, _) = open(directory.path(), &engine).await?;
    let mut write = async |ops| store.write(WriteBatch { sync: true, ops }).await;
    let mut ops: Vec<_> = (1..=9).map(|slot| accept(A, slot, 1)).collect();
    ops.extend([promise(A, 1), accept(B, 1, 1)]);
    write(ops).await?;
    let slot = engine.get(Key::Slot(A, Slot(3)));
    let group = engine.get(Key::Group(A));
    write(vec![promise(A, 2), accept(A, 3, 2), accept(A, 4, 2)]).await?;
    drop(store);
    tamper(&engine, slot, group);
    open(directory.path(), &engine).await
}

async fn damaged(tamper: impl FnOnce(&Tampered, Bytes, Bytes)) -> Vec<u64> {
    let (_, recovered) = tampered(tamper).await.expect("entries can be repaired");
    let group = &recovered.groups[&A];
    assert_eq!(group.hard_state.promised, ballot(2));
    assert_eq!(
        group.index.len() + group.damaged.len(),
        9,
        "every slot is accounted for"
    );
    assert!(
        recovered.groups[&B].damaged.is_empty(),
        "the other group is sound"
    );
    let is_reported = matches!(&recovered.findings[..], [Finding::Damaged { group: A, .. }]);
    assert_eq!(is_reported, !group.damaged.is_empty());
    group.damaged.iter().map(|slot| slot.0).collect()
}

#[tokio::test]
async fn an_untouched_store_is_sound() {
    assert!(damaged(|_, _, _| {}).await.is_empty());
}

#[tokio::test]
async fn a_missing_record_is_found() {
    let lost = damaged(|engine, _, _| engine.lose(Key::Slot(A, Slot(7)))).await;
    assert!(lost.contains(&7), "{lost:?}");
    assert!(
        lost.iter().all(|slot| [3, 4, 7].contains(slot) || *slot < 4),
        "{lost:?}"
    );
}

#[tokio::test]
async fn an_outdated_record_is_found() {
    let lost = damaged(|engine, slot, _| engine.set(Key::Slot(A, Slot(3)), slot)).await;
    assert_eq!(
        lost,
        [1, 2, 3, 4],
        "any of the slots up to the last that was written twice may be out of date"
    );
}

#[tokio::test]
async fn an_altered_record_alone_is_damaged() {
    let lost = damaged(|engine, _, _| {
        let key = Key::Slot(A, Slot(6));
        let mut record = engine.get(key).to_vec();
        *record.last_mut().expect("a payload") ^= 1;
        engine.set(key, record.into());
    })
    .await;
    assert_eq!(lost, [6]);
}

#[tokio::test]
async fn a_record_in_the_place_of_another_is_damaged() {
    let lost = damaged(|engine, _, _| {
        let other = engine.get(Key::Slot(A, Slot(5)));
        engine.set(Key::Slot(A, Slot(6)), other);
    })
    .await;
    assert!(lost.contains(&6) && !lost.contains(&5), "{lost:?}");
}

#[tokio::test]
async fn an_outdated_or_missing_promise_is_refused() {
    let outdated = tampered(|engine, _, group| engine.set(Key::Group(A), group)).await;
    assert!(matches!(outdated, Err(StorageError::Corrupt(_))), "{outdated:?}");
    let missing = tampered(|engine, _, _| engine.lose(Key::Group(B))).await;
    assert!(matches!(missing, Err(StorageError::Corrupt(_))), "{missing:?}");
}

#[tokio::test]
async fn a_store_without_its_own_record_is_refused() {
    let missing = tampered(|engine, _, _| engine.lose(Key::Store)).await;
    assert!(matches!(missing, Err(StorageError::Corrupt(_))), "{missing:?}");
}

#[tokio::test]
async fn a_record_that_turns_bad_while_the_store_is_open_is_an_error() {
    for tamper in [
        (|engine: &Tampered, _| engine.lose(Key::Slot(A, Slot(3)))) as fn(&Tampered, Bytes),
        |engine, old| engine.set(Key::Slot(A, Slot(3)), old),
        |engine, _| engine.set(Key::Slot(A, Slot(3)), Bytes::from_static(b"short")),
    ] {
        let mut kept = None;
        let opened = tampered(|engine, old, _| kept = Some((engine.clone(), old))).await;
        let (mut store, _) = opened.expect("a sound store");
        let (engine, old) = kept.expect("tampering came first");
        tamper(&engine, old);
        let read = store.read(A, Slot(1)..Slot(9), usize::MAX).await;
        assert!(matches!(read, Err(StorageError::Corrupt(_))), "{read:?}");
        let others = store
            .read(A, Slot(4)..Slot(9), usize::MAX)
            .await
            .expect("the others are sound");
        assert_eq!(others.len(), 5);
    }
}

#[tokio::test]
async fn large_trims_are_swept_in_steps_and_completely() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let engine = Tampered::default();
    let (mut store, _) = open(directory.path(), &engine).await.expect("a new store");
    let mut write = async |ops| {
        store
            .write(WriteBatch { sync: true, ops })
            .await
            .expect("a sound store");
    };
    write((1..=3_500).map(|slot| accept(A, slot, 1)).collect()).await;
    write(vec![WriteOp::Trim {
        group: A,
        upto: Slot(3_400),
    }])
    .await;
    assert_eq!(*engine.most_deletions.lock().expect("one thread"), 1_000);
    drop(store);
    // What is left is swept in the next life.
    let (mut store, recovered) = open(directory.path(), &engine).await.expect("a sound store");
    assert_eq!(recovered.groups[&A].index.len(), 100);
    for _ in 0..4 {
        store
            .write(WriteBatch {
                sync: true,
                ops: Vec::new(),
            })
            .await
            .expect("a sound store");
    }
    assert_eq!(
        engine.len(),
        100 + 2,
        "the entries, their group and the store are left"
    );
    assert_eq!(*engine.most_deletions.lock().expect("one thread"), 1_000);
}
