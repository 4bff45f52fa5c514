//! What the log's own files go through: torn frames, old contents, damage, recycling.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use paxos::{
    Ballot, ClusterId, Entry, EntryKind, GroupId, HardState, Identity, NodeId, Slot, Storage, StorageError,
    StorageId, WriteOp,
    storage::{Finding, Owner, Recovered, WriteBatch},
    testing::storage::Model,
};
use tempfile::TempDir;

use super::{
    Wal, WalOptions,
    blocks::{BLOCK_BYTES, Blocks},
    disk::Disk,
    frame::{Change, Frame, Frames, Position, frame_bytes, padded},
    log::Log,
};
use crate::durable::{Changes, Engine, Key, Opening};

const A: GroupId = GroupId(1);
const IDLE: GroupId = GroupId(2);
const OWNER: Owner = Owner {
    cluster: ClusterId(1),
    node: NodeId(1),
};

fn ballot(round: u64) -> Ballot {
    Ballot {
        round,
        node: NodeId(1),
    }
}

fn accept(group: GroupId, slot: u64, bytes: usize) -> WriteOp {
    WriteOp::Accept {
        group,
        slot: Slot(slot),
        ballot: ballot(slot),
        entry: Entry {
            kind: EntryKind::Commands,
            payload: Bytes::from(vec![slot as u8; bytes]),
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

fn trim(group: GroupId, upto: u64) -> WriteOp {
    WriteOp::Trim {
        group,
        upto: Slot(upto),
    }
}

/// A log in a directory of its own, and what it must hold.
struct Bed {
    directory: TempDir,
    segment_bytes: u64,
    model: Model,
}

impl Bed {
    fn new(segment_bytes: u64) -> Self {
        Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
            segment_bytes,
            model: Model::default(),
        }
    }

    async fn open(&self) -> Result<(Wal, Recovered), StorageError> {
        self.open_failing(u64::MAX).await
    }

    async fn open_failing(&self, call: u64) -> Result<(Wal, Recovered), StorageError> {
        let options = WalOptions::default().segment_bytes(self.segment_bytes);
        let mut wal = Wal::open_with_fault(self.directory.path(), OWNER, options, call)?;
        let recovered = wal.recover().await?;
        Ok((wal, recovered))
    }

    async fn write(&mut self, wal: &mut Wal, ops: Vec<WriteOp>) {
        self.model.apply(&ops);
        let written = wal.write(WriteBatch { sync: true, ops }).await;
        written.expect("a sound disk");
    }

    /// The store opens, and holds what it must, to the last byte.
    async fn is_sound(&self) {
        let (mut wal, recovered) = self.open().await.expect("a sound store");
        assert_eq!(recovered.findings, []);
        assert_eq!(self.model.difference(&recovered), None);
        for group in self.model.groups.keys() {
            let all = Slot(1)..Slot::MAX;
            let read = wal.read(*group, all.clone(), usize::MAX).await;
            assert_eq!(
                read.expect("sound entries"),
                self.model.read(*group, all, usize::MAX)
            );
        }
    }

    fn files(&self) -> BTreeMap<String, PathBuf> {
        let listed = fs::read_dir(self.directory.path().join("wal")).expect("the log's directory");
        let paths = listed.map(|entry| entry.expect("an entry").path());
        paths
            .map(|path| {
                (
                    path.file_name().expect("a name").to_string_lossy().into_owned(),
                    path,
                )
            })
            .collect()
    }

    fn segments(&self) -> Vec<(u64, PathBuf)> {
        let number = |name: &str| u64::from_str_radix(name.strip_prefix("segment-")?, 16).ok();
        let files = self.files().into_iter();
        files
            .filter_map(|(name, path)| Some((number(&name)?, path)))
            .collect()
    }

    fn identity(&self) -> Identity {
        let text = fs::read_to_string(self.directory.path().join("identity")).expect("an identity");
        let storage = text.lines().find_map(|line| line.strip_prefix("storage "));
        let storage = u64::from_str_radix(storage.expect("a storage id"), 16).expect("a number");
        Identity {
            cluster: OWNER.cluster,
            node: OWNER.node,
            storage: StorageId(storage),
        }
    }

    fn frames(&self) -> Frames {
        Frames::new(self.identity())
    }

    /// The frames of a segment, with their places.
    fn frames_in(&self, number: u64, path: &Path) -> Vec<(usize, Frame)> {
        let contents = Bytes::from(fs::read(path).expect("a segment"));
        let places = (0..contents.len()).step_by(BLOCK_BYTES);
        places
            .filter_map(|at| Some((at, self.frames().parse(number, &contents, at)?)))
            .collect()
    }

    fn last_frame(&self) -> (PathBuf, usize, Frame) {
        let (number, path) = self.segments().pop().expect("a segment");
        let (at, frame) = self.frames_in(number, &path).pop().expect("a frame");
        (path, at, frame)
    }

    fn note(&self) -> PathBuf {
        self.directory.path().join("last-commit")
    }
}

/// A store whose last write was being made when it crashed: what the segment and the note of the last durable commit
/// were before, and are after it.
struct Torn {
    bed: Bed,
    path: PathBuf,
    at: usize,
    frame: Frame,
    before: (Vec<u8>, Vec<u8>),
    after: (Vec<u8>, Vec<u8>),
}

impl Torn {
    /// `used`: the file has been a segment before, so there are old frames below the last one.
    async fn new(used: bool) -> Self {
        let mut bed = Bed::new(16 << 10);
        let (mut wal, _) = bed.open().await.expect("a new store");
        if used {
            for slot in 1..=40 {
                bed.write(&mut wal, vec![accept(A, slot, 3_000), trim(A, slot - 1)])
                    .await;
            }
        }
        bed.write(&mut wal, vec![accept(A, 50, 10), promise(A, 50)]).await;
        // The last frame must not be the first of its segment: that case is another one.
        while bed.last_frame().1 + 3 * BLOCK_BYTES > 16 << 10 {
            bed.write(&mut wal, vec![promise(A, 51)]).await;
        }
        let files = |bed: &Bed, path: &Path| {
            (
                fs::read(path).expect("a segment"),
                fs::read(bed.note()).expect("a note"),
            )
        };
        let path = bed.last_frame().0;
        let before = files(&bed, &path);
        let last = vec![
            accept(A, 52, 300),
            accept(IDLE, 1, 4_000),
            promise(A, 60),
            promise(IDLE, 9),
        ];
        let written = wal
            .write(WriteBatch {
                sync: true,
                ops: last,
            })
            .await;
        written.expect("a sound disk");
        let after = files(&bed, &path);
        let (same, at, frame) = bed.last_frame();
        assert_eq!(same, path);
        Self {
            bed,
            path,
            at,
            frame,
            before,
            after,
        }
    }

    /// Leaves the first `bytes` of the last frame on the disk, and this note.
    fn tear(&self, bytes: usize, note: &[u8]) {
        let mut contents = self.after.0[..self.at + bytes].to_vec();
        contents.extend_from_slice(&self.before.0[self.at + bytes..]);
        fs::write(&self.path, contents).expect("a segment");
        fs::write(self.bed.note(), note).expect("a note");
    }
}

#[tokio::test]
async fn a_frame_that_is_torn_at_any_byte_is_dropped_as_a_whole() {
    for used in [false, true] {
        let torn = Torn::new(used).await;
        let mut reported = 0;
        // Every byte of the header and the entries, and some of the records.
        let bytes = torn.frame.bytes.len();
        for cut in (0..400).chain((400..bytes).step_by(97)) {
            torn.tear(cut, &torn.before.1);
            let (_, recovered) = torn.bed.open().await.expect("a torn frame is no damage");
            assert_eq!(torn.bed.model.difference(&recovered), None, "cut at byte {cut}");
            match &recovered.findings[..] {
                [] => assert!(cut < 32, "cut at byte {cut} went unnoticed"),
                [Finding::TornTail { .. }] => reported += 1,
                others => panic!("cut at byte {cut}: {others:?}"),
            }
            torn.bed.is_sound().await;
        }
        assert!(reported > 300);
        // The whole frame, not noted yet.
        torn.tear(bytes, &torn.before.1);
        let (_, recovered) = torn.bed.open().await.expect("a sound store");
        assert!(recovered.groups[&A].index.contains_key(&Slot(52)));
    }
}

#[tokio::test]
async fn a_torn_frame_is_wiped_out_before_anything_is_written() {
    // The next frame may go to another segment; then this one would be found in the middle of the log.
    let torn = Torn::new(true).await;
    torn.tear(torn.frame.bytes.len() - 1, &torn.before.1);
    assert_eq!(torn.bed.last_frame().1, torn.at, "header and entries are sound");
    let path = torn.bed.directory.path().join("wal");
    let mut log = Log::new(path, 16 << 10, Disk::failing_at(u64::MAX));
    let opening = Opening {
        identity: torn.bed.identity(),
        last_synced: torn.frame.position.commit - 1,
    };
    let findings = log.load(opening, &mut |_, _| {}).await.expect("a sound disk");
    assert!(
        matches!(&findings[..], [Finding::TornTail { .. }]),
        "{findings:?}"
    );
    assert!(torn.bed.last_frame().1 < torn.at, "the torn frame is still there");
}

#[tokio::test]
async fn a_frame_that_was_acknowledged_is_never_taken_for_torn() {
    let torn = Torn::new(true).await;
    for cut in (0..torn.frame.bytes.len()).step_by(61) {
        torn.tear(cut, &torn.after.1);
        match torn.bed.open().await {
            Err(StorageError::Corrupt(_)) => {}
            Ok((_, recovered)) => {
                let lost = recovered.groups.values().map(|group| group.damaged.len());
                assert!(lost.sum::<usize>() > 0, "cut at byte {cut}: nothing was reported");
                assert_eq!(recovered.groups[&A].hard_state.promised, ballot(60));
            }
            Err(error) => panic!("cut at byte {cut}: {error:?}"),
        }
    }
}

#[tokio::test]
async fn a_closed_log_has_no_torn_frames() {
    let mut bed = Bed::new(16 << 10);
    let (mut wal, _) = bed.open().await.expect("a new store");
    bed.write(&mut wal, vec![promise(A, 1)]).await;
    wal.close().await.expect("a sound disk");
    drop(wal);
    let (path, at, frame) = bed.last_frame();
    let mut contents = fs::read(&path).expect("a segment");
    contents[at + frame.bytes.len() / 2..].fill(0);
    fs::write(&path, contents).expect("a segment");
    let opened = bed.open().await.map(drop);
    assert!(matches!(opened, Err(StorageError::Corrupt(_))), "{opened:?}");
}

#[tokio::test]
async fn segments_are_used_again_and_what_they_held_stays_gone() {
    let mut bed = Bed::new(16 << 10);
    for life in 0..6_u64 {
        let (mut wal, _) = bed.open().await.expect("a sound store");
        for slot in life * 40 + 1..=life * 40 + 40 {
            let mut ops = vec![
                accept(A, slot, 2_000),
                promise(A, slot),
                trim(A, slot.saturating_sub(5)),
            ];
            if slot % 7 == 0 {
                // Removed and made anew: what the old one held must not come back.
                ops.extend([accept(IDLE, slot, 100), WriteOp::RemoveGroup { group: IDLE }]);
                ops.push(accept(IDLE, slot % 5 + 1, 10));
            }
            bed.write(&mut wal, ops).await;
            let files = bed.files().len();
            assert!(files <= 12, "{files} files for at most 6 entries");
        }
        drop(wal);
        bed.is_sound().await;
    }
    let (mut wal, _) = bed.open().await.expect("a sound store");
    while bed.last_frame().1 > 0 {
        bed.write(&mut wal, vec![promise(A, 1_000)]).await;
    }
    let segments = bed.segments();
    assert!(segments[0].0 > 20, "no segment was ever let go: {segments:?}");
    let (number, path) = segments.last().expect("a segment");
    let earlier = (1..*number).any(|earlier| !bed.frames_in(earlier, path).is_empty());
    assert!(earlier, "the file of the last segment is not a used one");
}

#[tokio::test]
async fn entries_of_idle_groups_do_not_pin_the_log() {
    let mut bed = Bed::new(16 << 10);
    let (mut wal, _) = bed.open().await.expect("a new store");
    let idle = (1..=20).map(|slot| accept(IDLE, slot, 200)).collect();
    bed.write(&mut wal, idle).await;
    for slot in 1..=200 {
        bed.write(&mut wal, vec![accept(A, slot, 2_000), trim(A, slot)])
            .await;
        let segments = bed.segments().len();
        assert!(segments <= 8, "{segments} segments for 20 small entries");
    }
    assert!(bed.segments()[0].0 > 20);
    drop(wal);
    bed.is_sound().await;
}

#[tokio::test]
async fn the_first_frame_of_a_segment_has_the_records_of_all_groups() {
    let mut bed = Bed::new(16 << 10);
    let (mut wal, _) = bed.open().await.expect("a new store");
    bed.write(
        &mut wal,
        (10..30).map(|group| promise(GroupId(group), 1)).collect(),
    )
    .await;
    for slot in 1..=20 {
        bed.write(&mut wal, vec![accept(A, slot, 2_000)]).await;
    }
    let segments = bed.segments();
    assert!(segments.len() > 3);
    for (number, path) in &segments[1..] {
        let (at, first) = bed.frames_in(*number, path).swap_remove(0);
        assert_eq!(at, 0);
        let mut groups = 0;
        let mut stores = 0;
        for change in &first.changes {
            match change {
                Change::Put(Key::Group(_), _) => groups += 1,
                Change::Put(Key::Store, _) => stores += 1,
                _ => {}
            }
        }
        assert_eq!((groups, stores), (21, 1), "segment {number}");
    }
}

#[tokio::test]
async fn a_flipped_bit_in_any_frame_is_found() {
    let mut bed = Bed::new(32 << 10);
    let (mut wal, _) = bed.open().await.expect("a new store");
    for slot in 1..=24 {
        let ops = vec![
            accept(A, slot, 700),
            accept(IDLE, slot % 6 + 1, 300),
            promise(A, slot),
            trim(A, slot / 3),
        ];
        bed.write(&mut wal, ops).await;
    }
    drop(wal);
    let note = fs::read(bed.note()).expect("a note");
    let original: Vec<_> = bed
        .segments()
        .into_iter()
        .map(|(number, path)| (number, fs::read(&path).expect("a segment"), path))
        .collect();
    let restore = || {
        for (_, contents, path) in &original {
            fs::write(path, contents).expect("a segment");
        }
        let known = |path: &Path| original.iter().any(|(_, _, known)| known == path);
        for (_, path) in bed.segments() {
            if !known(&path) {
                fs::remove_file(path).expect("a segment");
            }
        }
        fs::write(bed.note(), &note).expect("a note");
    };
    let (mut refused, mut reported) = (0, 0);
    for (number, contents, path) in &original {
        for (at, frame) in bed.frames_in(*number, path) {
            for byte in (at..at + frame.bytes.len()).step_by(53) {
                restore();
                let mut flipped = contents.clone();
                flipped[byte] ^= 1 << (byte % 8);
                fs::write(path, flipped).expect("a segment");
                match bed.open().await {
                    Err(StorageError::Corrupt(_)) => refused += 1,
                    Err(error) => panic!("segment {number}, byte {byte}: {error:?}"),
                    Ok((_, recovered)) => {
                        let lost = differs_by_damage_only(&bed.model, &recovered);
                        reported += usize::from(lost > 0);
                    }
                }
            }
        }
    }
    assert!(
        refused > 0 && reported > 100,
        "{refused} refused, {reported} reported"
    );
    // Most frames' loss is known by what later ones say.
    assert!(reported > refused, "{refused} refused, {reported} reported");
}

/// Everything is as it must be but for slots that are said to be damaged; returns their number.
fn differs_by_damage_only(model: &Model, recovered: &Recovered) -> usize {
    let mut lost = 0;
    let expected = model.recovered();
    assert!(expected.keys().eq(recovered.groups.keys()));
    for (group, expected) in expected {
        let found = &recovered.groups[&group];
        assert_eq!(found.hard_state, expected.hard_state);
        assert_eq!(found.trimmed, expected.trimmed);
        for (slot, entry) in &expected.index {
            let is_damaged = found.damaged.contains(slot);
            assert!(
                is_damaged || found.index.get(slot) == Some(entry),
                "group {group}, slot {slot}"
            );
        }
        assert!(found.index.keys().all(|slot| expected.index.contains_key(slot)));
        lost += found.damaged.len();
    }
    lost
}

#[tokio::test]
async fn a_disk_that_fails_while_the_log_is_opened_loses_nothing() {
    let mut bed = Bed::new(16 << 10);
    let (mut wal, _) = bed.open().await.expect("a new store");
    for slot in 1..=30 {
        bed.write(&mut wal, vec![accept(A, slot, 1_500), promise(A, slot)])
            .await;
    }
    drop(wal);
    for call in 0..1_000 {
        let opened = bed.open_failing(call).await;
        let has_failed = opened.is_err();
        drop(opened);
        bed.is_sound().await;
        if !has_failed {
            assert!(call > 10, "opening takes more than {call} calls");
            return;
        }
    }
    panic!("opening never succeeds");
}

#[tokio::test]
async fn what_is_held_back_is_bounded() {
    let mut bed = Bed::new(1 << 20);
    let (mut wal, _) = bed.open().await.expect("a new store");
    for slot in 1..=30 {
        let ops = vec![accept(A, slot, 100 << 10)];
        bed.model.apply(&ops);
        wal.write(WriteBatch { sync: false, ops })
            .await
            .expect("a sound disk");
    }
    drop(wal);
    let (_, recovered) = bed.open().await.expect("a sound store");
    let held = recovered.groups[&A].index.len();
    assert!((20..=30).contains(&held), "{held} of 30 batches were written");
}

#[tokio::test]
async fn segments_that_are_too_small_are_misuse() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = WalOptions::default().segment_bytes(8 << 10);
    let refused = Wal::open_with(directory.path(), OWNER, options).map(drop);
    assert!(matches!(refused, Err(StorageError::Misuse(_))), "{refused:?}");
}

mod frames {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Key> {
        let group = (0..3_u32).prop_map(GroupId);
        prop_oneof![
            Just(Key::Store),
            group.clone().prop_map(Key::Group),
            (group, 1..9_u64).prop_map(|(group, slot)| Key::Slot(group, Slot(slot))),
        ]
    }

    fn changes() -> impl Strategy<Value = Changes> {
        let record = prop::collection::vec(any::<u8>(), 0..600).prop_map(Bytes::from);
        let record = prop::option::of(record);
        prop::collection::btree_map(key(), record, 0..12).prop_map(|mut changes| {
            // The store's record is never removed.
            changes.retain(|key, record| *key != Key::Store || record.is_some());
            changes
        })
    }

    fn decoded(frame: &Frame) -> Changes {
        let mut changes = Changes::new();
        for change in &frame.changes {
            match change {
                Change::Put(key, range) => {
                    changes.insert(*key, Some(frame.bytes.slice(range.clone())));
                }
                Change::RemoveGroup(group) => {
                    changes.insert(Key::Group(*group), None);
                }
                Change::RemoveSlots(group, slots) => {
                    for slot in slots.start().0..=slots.end().0 {
                        changes.insert(Key::Slot(*group, Slot(slot)), None);
                    }
                }
            }
        }
        changes
    }

    proptest! {
        #[test]
        fn come_back_as_they_were_written(changes in changes(), at in 0..3_usize) {
            let frames = Frames::new(Identity::default());
            let position = Position { segment: 3, sequence: 8, commit: 9 };
            let mut blocks = Blocks::default();
            frames.encode(&mut blocks, position, &changes);
            let buffer = blocks.as_slice();
            prop_assert!(buffer.len() <= frame_bytes(&changes));
            prop_assert_eq!(buffer.len(), padded(buffer.len()));
            let at = at * BLOCK_BYTES;
            let mut contents = vec![0; at];
            contents.extend_from_slice(buffer);
            let contents = Bytes::from(contents);
            let frame = frames.parse(3, &contents, at).expect("the frame");
            prop_assert_eq!(frame.position, position);
            prop_assert_eq!(decoded(&frame), changes);
            prop_assert!(frames.parse(4, &contents, at).is_none(), "another segment's");
            let other = Frames::new(Identity { storage: StorageId(1), ..Identity::default() });
            prop_assert!(other.parse(3, &contents, at).is_none(), "another store's");
        }

        #[test]
        fn any_bytes_are_no_frame(bytes in prop::collection::vec(any::<u8>(), 0..5_000)) {
            let mut bytes = bytes;
            if bytes.len() > 8 {
                bytes[..4].copy_from_slice(b"PXWL");
            }
            prop_assert!(Frames::new(Identity::default()).parse(0, &Bytes::from(bytes), 0).is_none());
        }
    }
}
