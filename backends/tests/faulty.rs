//! `FaultyStorage` fails as it was told, and the conformance suite notices what no sound storage does.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use paxos::{
    GroupId, Slot, Storage, StorageError,
    storage::{Owner, WriteBatch},
    testing::storage::{Fault, FaultyStorage, Place, run_all},
};
use paxos_backends::{Memory, MemoryDisk};
use support::{OWNER, accept, block_on, write};

async fn faulty(disk: &MemoryDisk) -> FaultyStorage<Memory> {
    let mut storage = FaultyStorage::new(Memory::open(disk, OWNER).expect("a disk"));
    storage.recover().await.expect("a sound disk");
    storage
}

async fn slots(disk: &MemoryDisk) -> Vec<u64> {
    let mut storage = Memory::open(disk, OWNER).expect("a disk");
    let recovered = storage.recover().await.expect("a sound disk");
    let group = recovered.groups.get(&GroupId(1));
    group.map_or_else(Vec::new, |group| group.index.keys().map(|slot| slot.0).collect())
}

fn entry(slot: u64) -> paxos::WriteOp {
    accept(1, slot, 1, Bytes::from_static(b"payload"))
}

#[test]
fn without_faults_it_is_as_good_as_what_it_wraps() {
    let report = block_on(run_all(|| {
        let disk = MemoryDisk::default();
        move |owner| Memory::open(&disk, owner).map(FaultyStorage::new)
    }));
    assert_eq!(report.failed, [], "{report}");
}

#[test]
fn lies_and_flips_are_caught_by_the_suite() {
    for fault in [Fault::Lie, Fault::Flip] {
        let report = block_on(run_all(|| {
            let disk = MemoryDisk::default();
            move |owner| {
                Memory::open(&disk, owner).map(|memory| FaultyStorage::new(memory).at_random(1, 2, &[fault]))
            }
        }));
        assert!(
            report.has_failed("random_histories_match_the_model"),
            "{fault:?} is not caught: {report}"
        );
        assert!(
            report.has_failed("thousands_of_entries_come_back"),
            "{fault:?} is not caught: {report}"
        );
    }
}

/// Memory that damage does nothing to, or that writes nothing any more once it is damaged.
#[derive(Default)]
struct Careless {
    disk: MemoryDisk,
    loses_repairs: bool,
    is_damaged: bool,
}

impl Place for Careless {
    fn open(&mut self, owner: Owner) -> Result<Box<dyn Storage>, StorageError> {
        let storage = FaultyStorage::new(Memory::open(&self.disk, owner)?);
        Ok(Box::new(if self.is_damaged {
            storage.at_random(1, 1, &[Fault::Lie])
        } else {
            storage
        }))
    }

    fn damage(&mut self, group: GroupId, slot: Slot, _: &[u8]) -> bool {
        self.is_damaged = self.loses_repairs && self.disk.damage(group, slot);
        true
    }
}

#[test]
fn unnoticed_damage_and_lost_repairs_are_caught_by_the_suite() {
    for loses_repairs in [false, true] {
        let report = block_on(run_all(|| Careless {
            loses_repairs,
            ..Careless::default()
        }));
        assert_eq!(
            report.has_failed("a_damaged_slot_is_reported_and_never_read"),
            !loses_repairs,
            "{report}"
        );
        assert!(
            report.has_failed("a_damaged_slot_that_is_written_again_is_whole")
                && report.has_failed("a_damaged_slot_that_is_trimmed_is_forgotten"),
            "{report}"
        );
    }
}

#[test]
fn a_failed_call_is_the_last() {
    for (fault, expected) in [
        (Fault::Fail, vec![1]),
        (Fault::Full, vec![1]),
        (Fault::FailAfterwards, vec![1, 2, 3]),
        (Fault::Tear, vec![1, 2]),
    ] {
        block_on(async {
            let disk = MemoryDisk::default();
            let mut storage = faulty(&disk).await.at(1, fault);
            write(&mut storage, vec![entry(1)])
                .await
                .expect("the first call is fine");
            let error = write(&mut storage, vec![entry(2), entry(3)])
                .await
                .expect_err("the second is not");
            assert_eq!(
                matches!(error, StorageError::Full { .. }),
                fault == Fault::Full,
                "{error:?}"
            );
            let read = storage.read(GroupId(1), Slot(1)..Slot(2), 0).await;
            assert!(matches!(read, Err(StorageError::Poisoned(_))), "{read:?}");
            drop(storage);
            assert_eq!(slots(&disk).await, expected, "{fault:?}");
        });
    }
}

#[test]
fn a_power_failure_keeps_a_prefix_of_what_was_not_synced() {
    let mut kept = std::collections::BTreeSet::new();
    for seed in 0..40 {
        block_on(async {
            let disk = MemoryDisk::default();
            let mut storage = faulty(&disk).await;
            write(&mut storage, vec![entry(1)]).await.expect("a sound write");
            for slot in 2..=4 {
                let ops = vec![entry(slot)];
                storage
                    .write(WriteBatch { sync: false, ops })
                    .await
                    .expect("a sound write");
            }
            drop(storage.drop_unsynced(seed).await.expect("a sound disk"));
            let held = slots(&disk).await;
            assert_eq!(held, (1..=held.len() as u64).collect::<Vec<_>>());
            kept.insert(held.len());
        });
    }
    assert_eq!(
        kept.into_iter().collect::<Vec<_>>(),
        [1, 2, 3, 4],
        "every prefix is possible"
    );
}

#[test]
fn a_memory_disk_crashes_to_what_was_synced() {
    block_on(async {
        for kept in 0..=3 {
            let disk = MemoryDisk::default();
            let mut storage = Memory::open(&disk, OWNER).expect("a disk");
            storage.recover().await.expect("a sound disk");
            write(&mut storage, vec![entry(1)]).await.expect("a sound write");
            for slot in 2..=4 {
                let ops = vec![entry(slot)];
                storage
                    .write(WriteBatch { sync: false, ops })
                    .await
                    .expect("a sound write");
            }
            assert_eq!(disk.unsynced_batches(), 3);
            disk.crash(kept);
            let refused = write(&mut storage, vec![entry(9)]).await;
            assert!(matches!(refused, Err(StorageError::Poisoned(_))), "{refused:?}");
            assert_eq!(slots(&disk).await, (1..=1 + kept as u64).collect::<Vec<_>>());
        }
    });
}

#[test]
fn storages_can_be_sent_to_their_thread() {
    fn is_send<T: Send + 'static>() {}
    is_send::<Memory>();
    is_send::<FaultyStorage<Memory>>();
    is_send::<paxos_backends::Wal>();
    is_send::<paxos_backends::LevelDb>();
    is_send::<paxos_backends::Sqlite>();
    is_send::<Arc<StorageError>>();
}
