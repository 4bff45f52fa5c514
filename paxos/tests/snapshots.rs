//! The project's snapshot stores pass the conformance suite, and the suite finds stores that are wrong.
#![cfg(feature = "testing")]

use paxos::{
    GroupId, Slot, SnapshotSource,
    snapshot::{
        Chunk, FileSnapshots, Found, MemorySnapshots, Received, SnapshotError, SnapshotHeader, SnapshotStore,
    },
    testing::snapshots::CHECKS,
};

paxos::snapshot_conformance!(memory, || {
    let kept = MemorySnapshots::new();
    move || Ok(kept.clone())
});

paxos::snapshot_conformance!(files, || {
    let directory = tempfile::tempdir().unwrap();
    move || FileSnapshots::open(directory.path())
});

#[test]
fn two_stores_cannot_share_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let first = FileSnapshots::open(directory.path()).unwrap();
    let second = FileSnapshots::open(directory.path()).unwrap_err();
    assert!(
        second.to_string().contains("in use by another process"),
        "{second}"
    );
    drop(first);
    FileSnapshots::open(directory.path()).unwrap();
}

/// What a wrong store does wrongly.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    KeepsAll,
    ForgetsOnRestart,
    BelievesPeers,
    MixesGroups,
    TakesAnyPiece,
    DropsWhatIsFetched,
}

#[derive(Clone)]
struct Planted {
    inner: MemorySnapshots,
    wrong: Wrong,
}

impl Planted {
    fn group(&self, group: GroupId) -> GroupId {
        if self.wrong == Wrong::MixesGroups {
            GroupId(1)
        } else {
            group
        }
    }
}

impl SnapshotStore for Planted {
    fn newest(&self, group: GroupId) -> Result<Found, SnapshotError> {
        self.inner.newest(self.group(group))
    }

    fn save(&self, header: &SnapshotHeader, source: Box<dyn SnapshotSource>) -> Result<(), SnapshotError> {
        self.inner.save(header, source)
    }

    fn open(&self, group: GroupId, upto: Slot) -> Result<Box<dyn std::io::Read + Send>, SnapshotError> {
        self.inner.open(group, upto)
    }

    fn read_chunk(
        &self,
        group: GroupId,
        upto: Slot,
        offset: u64,
        max: usize,
    ) -> Result<Chunk, SnapshotError> {
        if self.wrong == Wrong::DropsWhatIsFetched
            && self
                .inner
                .newest(group)?
                .newest
                .is_some_and(|newest| newest.upto != upto)
        {
            return Err(SnapshotError::Missing { group, upto });
        }
        self.inner.read_chunk(group, upto, offset, max)
    }

    fn store_chunk(
        &self,
        group: GroupId,
        upto: Slot,
        offset: u64,
        chunk: Chunk,
    ) -> Result<Received, SnapshotError> {
        let end = offset + chunk.data.len() as u64;
        let last = end >= chunk.total;
        match self.inner.store_chunk(group, upto, offset, chunk) {
            Err(_) if self.wrong == Wrong::BelievesPeers && last => {
                Ok(Received::Whole(Box::new(SnapshotHeader {
                    group,
                    upto,
                    ..SnapshotHeader::default()
                })))
            }
            Ok(Received::UpTo(_)) if self.wrong == Wrong::TakesAnyPiece => Ok(Received::UpTo(end)),
            stored => stored,
        }
    }

    fn remove_group(&self, group: GroupId) -> Result<(), SnapshotError> {
        self.inner.remove_group(group)
    }
}

#[test]
fn the_suite_finds_stores_that_are_wrong() {
    for (wrong, found_by) in [
        (Wrong::KeepsAll, "the_newest_two_are_kept"),
        (Wrong::ForgetsOnRestart, "a_saved_snapshot_comes_back_as_it_was"),
        (Wrong::BelievesPeers, "a_damaged_transfer_is_never_a_snapshot"),
        (Wrong::MixesGroups, "groups_are_apart"),
        (
            Wrong::TakesAnyPiece,
            "a_piece_that_does_not_follow_changes_nothing",
        ),
        (
            Wrong::DropsWhatIsFetched,
            "what_a_peer_fetches_is_not_dropped_under_it",
        ),
    ] {
        let check = CHECKS.iter().find(|check| check.name == found_by).unwrap();
        let found = check.run(|| {
            let keep = if wrong == Wrong::KeepsAll { 9 } else { 2 };
            let kept = MemorySnapshots::new().keep(keep);
            move || {
                let inner = match wrong {
                    Wrong::ForgetsOnRestart => MemorySnapshots::new(),
                    _ => kept.clone(),
                };
                Ok(Planted { inner, wrong })
            }
        });
        assert!(found.is_err(), "{found_by}");
    }
}
