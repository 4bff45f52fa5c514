//! Tells whether a [`SnapshotStore`] is right: a conformance suite.
//!
//! Every check becomes a test of its own:
//!
//! ```
//! # use paxos::snapshot::MemorySnapshots;
//! paxos::snapshot_conformance!(my_snapshots, || {
//!     let kept = MemorySnapshots::new(); // an empty place to keep snapshots in, a temporary directory as a rule
//!     move || Ok(kept.clone()) // opens the store that is there, keeping two snapshots of each group
//! });
//! ```

use std::{boxed::Box, format, io, string::String, sync::Arc, thread, vec, vec::Vec};

use bytes::Bytes;

use crate::{
    snapshot::{Chunk, Received, SnapshotError, SnapshotHeader, SnapshotStore},
    state_machine::SnapshotSource,
    types::{ChosenMembership, GroupId, Member, Membership, NodeId, Slot},
};

/// Why a check failed, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(String);

impl core::fmt::Display for Failure {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        Self(format!("an unexpected error: {error}"))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self(format!("an unexpected error: {error}"))
    }
}

type Outcome<T = ()> = Result<T, Failure>;

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(Failure(format!($($message)+)));
        }
    };
}

type Open = dyn FnMut() -> Result<Box<dyn SnapshotStore>, SnapshotError>;

/// One named property of a snapshot store.
#[derive(Clone, Copy)]
pub struct Check {
    /// What holds, with underscores.
    pub name: &'static str,
    property: fn(&mut Bed<'_>) -> Outcome,
}

impl Check {
    /// Runs it on places of its own, each made by `new_place`, which returns what opens the store there.
    pub fn run<P, S>(&self, mut new_place: impl FnMut() -> P) -> Result<(), Failure>
    where
        P: FnMut() -> Result<S, SnapshotError> + 'static,
        S: SnapshotStore,
    {
        let mut new_place = || -> Box<Open> {
            let mut open = new_place();
            Box::new(move || Ok(Box::new(open()?)))
        };
        let mut open = new_place();
        let store = Some(open()?);
        (self.property)(&mut Bed {
            new_place: &mut new_place,
            open,
            store,
            places: Vec::new(),
        })
    }
}

impl core::fmt::Debug for Check {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name)
    }
}

/// Runs the check with this name; panics if it fails. What
/// [`snapshot_conformance!`](crate::snapshot_conformance) calls.
pub fn run_check<P, S>(name: &str, new_place: impl FnMut() -> P)
where
    P: FnMut() -> Result<S, SnapshotError> + 'static,
    S: SnapshotStore,
{
    let check = CHECKS.iter().find(|check| check.name == name);
    let check = check.unwrap_or_else(|| panic!("there is no check named {name}"));
    if let Err(failure) = check.run(new_place) {
        panic!("{name}: {failure}");
    }
}

/// Where a check takes place.
struct Bed<'a> {
    new_place: &'a mut dyn FnMut() -> Box<Open>,
    open: Box<Open>,
    store: Option<Box<dyn SnapshotStore>>,
    /// Those of other nodes: they last as long as what opens them.
    places: Vec<Box<Open>>,
}

impl Bed<'_> {
    fn store(&self) -> &dyn SnapshotStore {
        self.store
            .as_deref()
            .expect("only `reopen` takes it away, for a moment")
    }

    /// As a restart of the node.
    fn reopen(&mut self) -> Outcome {
        self.store = None;
        self.store = Some((self.open)()?);
        Ok(())
    }

    /// Another node's store.
    fn another(&mut self) -> Outcome<Box<dyn SnapshotStore>> {
        let mut open = (self.new_place)();
        let store = open()?;
        self.places.push(open);
        Ok(store)
    }

    /// What a store at a peer gives out of this snapshot.
    fn transferred(&mut self, group: GroupId, upto: u64, bytes: usize) -> Outcome<Bytes> {
        let peer = self.another()?;
        save(&*peer, group, upto, bytes)?;
        whole(&*peer, group, upto)
    }
}

const A: GroupId = GroupId(1);
const B: GroupId = GroupId(2);

/// Writes in pieces of an odd length.
struct State(Vec<u8>);

impl SnapshotSource for State {
    fn write_to(self: Box<Self>, to: &mut dyn io::Write) -> io::Result<()> {
        self.0.chunks(1_009).try_for_each(|piece| to.write_all(piece))
    }
}

struct Failing;

impl SnapshotSource for Failing {
    fn write_to(self: Box<Self>, to: &mut dyn io::Write) -> io::Result<()> {
        to.write_all(&vec![7; 100_000])?;
        Err(io::Error::other("told to fail"))
    }
}

fn header(group: GroupId, upto: u64) -> SnapshotHeader {
    SnapshotHeader {
        group,
        upto: Slot(upto),
        membership: ChosenMembership::first(Membership::new([Member::voter(NodeId(1), "here")])),
        hash: upto.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        ..SnapshotHeader::default()
    }
}

/// Differs between groups, slots and places.
fn state(group: GroupId, upto: u64, bytes: usize) -> Vec<u8> {
    let seed = upto ^ u64::from(group.0) << 32;
    let word = |index: u64| (seed ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    (0..).flat_map(word).take(bytes).collect()
}

fn save(store: &dyn SnapshotStore, group: GroupId, upto: u64, bytes: usize) -> Outcome {
    let source = Box::new(State(state(group, upto, bytes)));
    Ok(store.save(&header(group, upto), source)?)
}

/// The store's newest snapshot is this one, and its state is what was saved.
fn holds(store: &dyn SnapshotStore, group: GroupId, upto: u64, bytes: usize) -> Outcome {
    let found = store.newest(group)?;
    ensure!(
        found.damaged.is_empty(),
        "a sound store reports {:?}",
        found.damaged
    );
    let newest = found.newest.map(|header| header.upto);
    ensure!(
        newest == Some(Slot(upto)),
        "the newest is {newest:?} instead of {upto}"
    );
    gives(store, group, upto, bytes)
}

fn gives(store: &dyn SnapshotStore, group: GroupId, upto: u64, bytes: usize) -> Outcome {
    let mut read = Vec::new();
    store.open(group, Slot(upto))?.read_to_end(&mut read)?;
    ensure!(
        read == state(group, upto, bytes),
        "the state as of {upto} has changed ({} bytes instead of {bytes})",
        read.len()
    );
    Ok(())
}

fn holds_nothing(store: &dyn SnapshotStore, group: GroupId) -> Outcome {
    let found = store.newest(group)?;
    ensure!(found.newest.is_none(), "{found:?} instead of nothing");
    Ok(())
}

/// All bytes, as a peer would fetch them.
fn whole(store: &dyn SnapshotStore, group: GroupId, upto: u64) -> Outcome<Bytes> {
    let Chunk { total, data } = store.read_chunk(group, Slot(upto), 0, usize::MAX)?;
    ensure!(data.len() as u64 == total, "{} bytes of {total}", data.len());
    Ok(data)
}

fn store_piece(
    store: &dyn SnapshotStore,
    upto: u64,
    bytes: &Bytes,
    piece: core::ops::Range<usize>,
) -> Result<Received, SnapshotError> {
    let chunk = Chunk {
        total: bytes.len() as u64,
        data: bytes.slice(piece.clone()),
    };
    store.store_chunk(A, Slot(upto), piece.start as u64, chunk)
}

/// Stores the bytes in pieces of this length, from where the store says.
fn store_all(
    store: &dyn SnapshotStore,
    upto: u64,
    bytes: &Bytes,
    piece: usize,
) -> Result<Received, SnapshotError> {
    let mut from = 0;
    loop {
        match store_piece(store, upto, bytes, from..(from + piece).min(bytes.len()))? {
            Received::UpTo(next) if next > from as u64 => from = next as usize,
            end => return Ok(end),
        }
    }
}

fn a_new_store_is_empty(bed: &mut Bed<'_>) -> Outcome {
    holds_nothing(bed.store(), A)?;
    let missing = bed.store().open(A, Slot(1)).map(|_| ());
    ensure!(
        matches!(missing, Err(SnapshotError::Missing { .. })),
        "{missing:?}"
    );
    let missing = bed.store().read_chunk(A, Slot(1), 0, 10);
    ensure!(
        matches!(missing, Err(SnapshotError::Missing { .. })),
        "{missing:?}"
    );
    Ok(())
}

fn a_saved_snapshot_comes_back_as_it_was(bed: &mut Bed<'_>) -> Outcome {
    let sizes = [0, 1, 1_000, 65_535, 65_536, 65_537, 1_000_000];
    for (upto, bytes) in (1..).zip(sizes) {
        save(bed.store(), A, upto, bytes)?;
        holds(bed.store(), A, upto, bytes)?;
        let found = bed.store().newest(A)?.newest;
        ensure!(found == Some(header(A, upto)), "the header is {found:?}");
        bed.reopen()?;
        holds(bed.store(), A, upto, bytes)?;
    }
    Ok(())
}

fn the_newest_counts_whatever_the_order(bed: &mut Bed<'_>) -> Outcome {
    save(bed.store(), A, 300, 10)?;
    save(bed.store(), A, 20, 10)?;
    holds(bed.store(), A, 300, 10)?;
    bed.reopen()?;
    holds(bed.store(), A, 300, 10)
}

fn a_snapshot_may_be_saved_twice(bed: &mut Bed<'_>) -> Outcome {
    save(bed.store(), A, 5, 10)?;
    save(bed.store(), A, 5, 1_000)?;
    holds(bed.store(), A, 5, 1_000)
}

fn groups_are_apart(bed: &mut Bed<'_>) -> Outcome {
    save(bed.store(), A, 5, 100)?;
    save(bed.store(), B, 7, 200)?;
    holds(bed.store(), A, 5, 100)?;
    holds(bed.store(), B, 7, 200)?;
    bed.store().remove_group(A)?;
    holds_nothing(bed.store(), A)?;
    holds(bed.store(), B, 7, 200)?;
    bed.reopen()?;
    holds_nothing(bed.store(), A)?;
    holds(bed.store(), B, 7, 200)?;
    bed.store().remove_group(GroupId(99))?;
    save(bed.store(), A, 1, 10)?;
    holds(bed.store(), A, 1, 10)
}

fn a_source_that_fails_leaves_nothing(bed: &mut Bed<'_>) -> Outcome {
    save(bed.store(), A, 5, 100)?;
    let failed = bed.store().save(&header(A, 9), Box::new(Failing));
    ensure!(
        matches!(&failed, Err(SnapshotError::Source(why)) if why.contains("told to fail")),
        "{failed:?}"
    );
    holds(bed.store(), A, 5, 100)?;
    bed.reopen()?;
    holds(bed.store(), A, 5, 100)?;
    save(bed.store(), A, 9, 100)?;
    holds(bed.store(), A, 9, 100)
}

fn the_newest_two_are_kept(bed: &mut Bed<'_>) -> Outcome {
    for upto in 1..=5 {
        save(bed.store(), A, upto, 100)?;
    }
    gives(bed.store(), A, 5, 100)?;
    gives(bed.store(), A, 4, 100)?;
    for upto in 1..=3 {
        let gone = bed.store().open(A, Slot(upto)).map(|_| ());
        ensure!(
            matches!(gone, Err(SnapshotError::Missing { .. })),
            "{upto}: {gone:?}"
        );
    }
    Ok(())
}

fn what_a_peer_fetches_is_not_dropped_under_it(bed: &mut Bed<'_>) -> Outcome {
    save(bed.store(), A, 1, 10_000)?;
    let bytes = whole(bed.store(), A, 1)?;
    let mut fetched = Vec::new();
    for upto in 2..=10 {
        let chunk = bed.store().read_chunk(A, Slot(1), fetched.len() as u64, 1_500)?;
        fetched.extend(chunk.data);
        save(bed.store(), A, upto, 100)?;
    }
    ensure!(
        fetched == bytes,
        "{} bytes fetched of {}",
        fetched.len(),
        bytes.len()
    );
    save(bed.store(), A, 11, 100)?;
    let gone = bed.store().read_chunk(A, Slot(1), 0, 1);
    ensure!(gone.is_err(), "nobody fetches it any more, and it is kept");
    Ok(())
}

fn what_is_being_read_stays_readable(bed: &mut Bed<'_>) -> Outcome {
    save(bed.store(), A, 1, 200_000)?;
    let mut reader = bed.store().open(A, Slot(1))?;
    let mut read = vec![0; 10];
    reader.read_exact(&mut read)?;
    for upto in 2..=5 {
        save(bed.store(), A, upto, 100)?;
    }
    reader.read_to_end(&mut read)?;
    ensure!(read == state(A, 1, 200_000), "{} bytes", read.len());
    Ok(())
}

fn pieces_of_any_length_make_the_whole(bed: &mut Bed<'_>) -> Outcome {
    save(bed.store(), A, 3, 3_000)?;
    let bytes = whole(bed.store(), A, 3)?;
    for length in [1, 7, 1_000, bytes.len(), bytes.len() + 1] {
        let mut pieces = Vec::new();
        while pieces.len() < bytes.len() {
            let chunk = bed.store().read_chunk(A, Slot(3), pieces.len() as u64, length)?;
            ensure!(chunk.total == bytes.len() as u64, "a total of {}", chunk.total);
            ensure!(!chunk.data.is_empty(), "nothing at {}", pieces.len());
            pieces.extend(chunk.data);
        }
        ensure!(pieces == bytes, "pieces of {length} bytes make something else");
    }
    for beyond in [bytes.len() as u64, u64::MAX] {
        let chunk = bed.store().read_chunk(A, Slot(3), beyond, 10)?;
        ensure!(chunk.data.is_empty(), "{} bytes beyond the end", chunk.data.len());
    }
    Ok(())
}

fn a_transferred_snapshot_is_the_same(bed: &mut Bed<'_>) -> Outcome {
    for (upto, (bytes, piece)) in (1..).zip([(0, 1), (100, 7), (200_000, 4_096), (200_000, 1 << 30)]) {
        let sent = bed.transferred(A, upto, bytes)?;
        let stored = store_all(bed.store(), upto, &sent, piece)?;
        ensure!(
            stored == Received::Whole(Box::new(header(A, upto))),
            "{stored:?} at the end"
        );
        holds(bed.store(), A, upto, bytes)?;
        ensure!(whole(bed.store(), A, upto)? == sent, "the bytes have changed");
        bed.reopen()?;
        holds(bed.store(), A, upto, bytes)?;
    }
    Ok(())
}

fn an_incomplete_transfer_is_no_snapshot(bed: &mut Bed<'_>) -> Outcome {
    let sent = bed.transferred(A, 9, 1_000)?;
    let stored = store_piece(bed.store(), 9, &sent, 0..sent.len() - 1)?;
    ensure!(stored == Received::UpTo(sent.len() as u64 - 1), "{stored:?}");
    holds_nothing(bed.store(), A)?;
    let missing = bed.store().open(A, Slot(9)).map(|_| ());
    ensure!(missing.is_err(), "an incomplete snapshot can be read");
    save(bed.store(), A, 5, 10)?;
    bed.reopen()?;
    holds(bed.store(), A, 5, 10)
}

fn a_transfer_goes_on_after_a_restart(bed: &mut Bed<'_>) -> Outcome {
    let sent = bed.transferred(A, 9, 300_000)?;
    store_piece(bed.store(), 9, &sent, 0..200_000)?;
    bed.reopen()?;
    let Received::UpTo(next) = store_piece(bed.store(), 9, &sent, 0..10)? else {
        return Err(Failure("complete after two thirds".into()));
    };
    ensure!(
        (100_000..=200_000).contains(&next),
        "it goes on from {next} of 200000 stored bytes"
    );
    let next = next as usize;
    let stored = store_piece(bed.store(), 9, &sent, next..sent.len())?;
    ensure!(matches!(stored, Received::Whole(_)), "{stored:?}");
    holds(bed.store(), A, 9, 300_000)
}

fn a_piece_that_does_not_follow_changes_nothing(bed: &mut Bed<'_>) -> Outcome {
    let sent = bed.transferred(A, 9, 1_000)?;
    let stored = store_piece(bed.store(), 9, &sent, 50..100)?;
    ensure!(stored == Received::UpTo(0), "without a beginning: {stored:?}");
    store_piece(bed.store(), 9, &sent, 0..100)?;
    for (piece, what) in [
        (0..100, "repeated"),
        (50..150, "overlapping"),
        (200..300, "beyond a gap"),
    ] {
        let stored = store_piece(bed.store(), 9, &sent, piece)?;
        ensure!(stored == Received::UpTo(100), "{what}: {stored:?}");
    }
    let stored = store_piece(bed.store(), 9, &sent, 100..sent.len())?;
    ensure!(matches!(stored, Received::Whole(_)), "{stored:?}");
    holds(bed.store(), A, 9, 1_000)
}

fn another_snapshot_begins_anew(bed: &mut Bed<'_>) -> Outcome {
    let (old, new) = (bed.transferred(A, 9, 1_000)?, bed.transferred(A, 12, 2_000)?);
    store_piece(bed.store(), 9, &old, 0..500)?;
    let stored = store_piece(bed.store(), 12, &new, 500..600)?;
    ensure!(
        stored == Received::UpTo(0),
        "nothing of it is stored yet: {stored:?}"
    );
    let stored = store_all(bed.store(), 12, &new, 700)?;
    ensure!(matches!(stored, Received::Whole(_)), "{stored:?}");
    holds(bed.store(), A, 12, 2_000)?;
    let stored = store_piece(bed.store(), 9, &old, 500..600)?;
    ensure!(
        stored == Received::UpTo(0),
        "the older one was dropped: {stored:?}"
    );
    Ok(())
}

fn a_damaged_transfer_is_never_a_snapshot(bed: &mut Bed<'_>) -> Outcome {
    let sent = bed.transferred(A, 9, 150)?;
    for at in 0..sent.len() {
        let mut damaged = sent.to_vec();
        damaged[at] ^= 1 << (at % 8);
        let stored = store_all(bed.store(), 9, &damaged.into(), 64);
        ensure!(
            matches!(stored, Err(SnapshotError::Damaged { .. })),
            "with a bit of byte {at} flipped: {stored:?}"
        );
        holds_nothing(bed.store(), A)?;
    }
    for length in 0..sent.len() {
        let stored = store_all(bed.store(), 9, &sent.slice(..length), 1 << 20);
        ensure!(
            matches!(stored, Err(SnapshotError::Damaged { .. })),
            "cut off after {length} bytes: {stored:?}"
        );
    }
    let longer: Bytes = [&sent[..], b"!"].concat().into();
    ensure!(
        store_all(bed.store(), 9, &longer, 64).is_err(),
        "a byte follows its end"
    );
    holds_nothing(bed.store(), A)?;
    bed.reopen()?;
    holds_nothing(bed.store(), A)?;
    let stored = store_all(bed.store(), 9, &sent, 64)?;
    ensure!(matches!(stored, Received::Whole(_)), "sent again: {stored:?}");
    holds(bed.store(), A, 9, 150)
}

fn exchanged_parts_are_noticed(bed: &mut Bed<'_>) -> Outcome {
    // Each part is good by itself, and the two snapshots are equally long.
    let (one, other) = (bed.transferred(A, 20, 300_000)?, bed.transferred(A, 21, 300_000)?);
    ensure!(
        one.len() == other.len(),
        "{} and {} bytes",
        one.len(),
        other.len()
    );
    for cut in (0..one.len()).step_by(10_007).skip(1) {
        let mixed: Bytes = [&one[..cut], &other[cut..]].concat().into();
        let stored = store_all(bed.store(), 20, &mixed, 50_000);
        ensure!(
            matches!(stored, Err(SnapshotError::Damaged { .. })),
            "from byte {cut} on of another snapshot: {stored:?}"
        );
    }
    holds_nothing(bed.store(), A)
}

fn a_snapshot_of_something_else_is_refused(bed: &mut Bed<'_>) -> Outcome {
    let elsewhere = bed.transferred(B, 9, 100)?;
    let stored = store_all(bed.store(), 9, &elsewhere, 1 << 20);
    ensure!(stored.is_err(), "of another group: {stored:?}");
    let older = bed.transferred(A, 8, 100)?;
    let stored = store_all(bed.store(), 9, &older, 1 << 20);
    ensure!(stored.is_err(), "as of another slot: {stored:?}");
    let too_much = Chunk {
        total: 10,
        data: older.slice(..20),
    };
    let stored = bed.store().store_chunk(A, Slot(8), 0, too_much);
    ensure!(stored.is_err(), "longer than its total: {stored:?}");
    let nothing = bed.store().store_chunk(A, Slot(8), 0, Chunk::default());
    ensure!(nothing.is_err(), "empty: {nothing:?}");
    holds_nothing(bed.store(), A)
}

fn a_transfer_does_not_touch_what_is_there(bed: &mut Bed<'_>) -> Outcome {
    save(bed.store(), A, 5, 100)?;
    let sent = bed.transferred(A, 9, 1_000)?;
    let mut damaged = sent.to_vec();
    damaged[500] ^= 1;
    ensure!(
        store_all(bed.store(), 9, &damaged.into(), 100).is_err(),
        "damage went unnoticed"
    );
    holds(bed.store(), A, 5, 100)?;
    store_all(bed.store(), 9, &sent, 100)?;
    holds(bed.store(), A, 9, 1_000)?;
    gives(bed.store(), A, 5, 100)
}

fn threads_may_save_send_and_receive_at_once(bed: &mut Bed<'_>) -> Outcome {
    let sent = bed.transferred(A, 1_000, 100_000)?;
    save(bed.store(), B, 1, 50_000)?;
    let store: Arc<dyn SnapshotStore> =
        Arc::from(bed.store.take().expect("bed.store() has just given it out"));
    let worker = |work: fn(&dyn SnapshotStore, &Bytes) -> Outcome| {
        let (store, sent) = (store.clone(), sent.clone());
        thread::spawn(move || work(&*store, &sent))
    };
    let workers = [
        worker(|store, _| (1..20).try_for_each(|upto| save(store, A, upto, 50_000))),
        worker(|store, sent| {
            store_all(store, 1_000, sent, 5_000)
                .map(|_| ())
                .map_err(Failure::from)
        }),
        worker(|store, _| (1..20).try_for_each(|_| whole(store, B, 1).map(|_| ()))),
        worker(|store, _| (1..20).try_for_each(|_| gives(store, B, 1, 50_000))),
    ];
    for worker in workers {
        worker.join().map_err(|_| Failure("a thread panicked".into()))??;
    }
    holds(&*store, A, 1_000, 100_000)?;
    holds(&*store, B, 1, 50_000)
}

/// Declares the suite: the list [`CHECKS`] and the macro that makes a test of each.
macro_rules! suite {
    (($d:tt) $($name:ident,)*) => {
        /// All checks of the suite.
        pub static CHECKS: &[Check] = &[$(Check { name: stringify!($name), property: $name },)*];

        /// Tests a snapshot store: `snapshot_conformance!(name, new_place)` expands to a module with one `#[test]` for
        /// every check of [`paxos::testing::snapshots`](crate::testing::snapshots). `new_place` is a function without
        /// arguments that returns a closure, which opens the store at a new place, empty at first; the store is to keep
        /// two snapshots of each group.
        #[macro_export]
        macro_rules! snapshot_conformance {
            ($d module:ident, $d new_place:expr) => {
                mod $d module {
                    #[allow(unused_imports, reason = "for the expression that opens the store")]
                    use super::*;

                    $(
                        #[test]
                        fn $name() {
                            $d crate::testing::snapshots::run_check(stringify!($name), $d new_place);
                        }
                    )*
                }
            };
        }
    };
}

suite! { ($)
    a_new_store_is_empty,
    a_saved_snapshot_comes_back_as_it_was,
    the_newest_counts_whatever_the_order,
    a_snapshot_may_be_saved_twice,
    groups_are_apart,
    a_source_that_fails_leaves_nothing,
    the_newest_two_are_kept,
    what_a_peer_fetches_is_not_dropped_under_it,
    what_is_being_read_stays_readable,
    pieces_of_any_length_make_the_whole,
    a_transferred_snapshot_is_the_same,
    an_incomplete_transfer_is_no_snapshot,
    a_transfer_goes_on_after_a_restart,
    a_piece_that_does_not_follow_changes_nothing,
    another_snapshot_begins_anew,
    a_damaged_transfer_is_never_a_snapshot,
    exchanged_parts_are_noticed,
    a_snapshot_of_something_else_is_refused,
    a_transfer_does_not_touch_what_is_there,
    threads_may_save_send_and_receive_at_once,
}
