//! How many batches a storage makes durable in a second, how long it takes to recover a log, and to trim one. Generic: a
//! plug-in author runs it on his own.
//!
//! ```no_run
//! use std::path::Path;
//! use criterion::Criterion;
//! use paxos_benches::storage;
//! # fn open_mine(directory: &Path) -> Box<dyn paxos::Storage> { unimplemented!() }
//! let mut criterion = Criterion::default();
//! storage::durable_commits(&mut criterion, "mine", open_mine);
//! storage::recovery(&mut criterion, "mine", open_mine);
//! storage::trimming(&mut criterion, "mine", open_mine);
//! ```

use std::{
    fmt,
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use paxos::{
    Ballot, Entry, EntryKind, GroupId, HardState, NodeId, Slot, Storage, WriteOp, storage::WriteBatch,
};
use tokio::runtime::{Builder, Runtime};

use crate::Directories;

/// How many groups share the store.
pub const GROUPS: u64 = 16;
/// How large an entry's payload is, in bytes.
pub const PAYLOAD_BYTES: usize = 256;
/// So many entries in a row differ: more than any engine compresses together.
const PAYLOADS: usize = 4_099;
/// How many entries share a durable write.
pub const BATCHES: [u64; 3] = [1, 10, 100];
/// Every group keeps this many entries when it is trimmed.
const KEPT_SLOTS: u64 = 1_000;
/// How large the log is that is recovered, in bytes of payloads.
pub const RECOVERED_BYTES: usize = 100 << 20;
/// How many entries share a write while a log is made that is recovered or trimmed later.
const FILLING_BATCH: u64 = 1_000;
/// How many entries are trimmed at once.
pub const TRIMMED_SLOTS: u64 = 10_000;

/// A store that is written like a busy node writes it: entries over all groups in turn, now and then a new watermark
/// and a trim.
pub struct Writer {
    storage: Box<dyn Storage>,
    /// What the entries hold, one behind the other.
    payloads: Bytes,
    runtime: Runtime,
    /// Entries written so far.
    written: u64,
    /// How many entries each group keeps when it is trimmed now and then; `None`: it is not.
    kept_slots: Option<u64>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// Recovers an empty store, which will be written inside a tokio runtime of one thread. Each group keeps so many
    /// entries when it is trimmed now and then; `None`: it is not.
    ///
    /// # Panics
    ///
    /// If the store fails, here and below: there is nothing to measure then.
    pub fn new(mut storage: Box<dyn Storage>, kept_slots: Option<u64>) -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be built");
        runtime
            .block_on(storage.recover())
            .expect("an empty store recovers");
        Self {
            storage,
            // Like compressed data: no engine shall profit from its being regular.
            payloads: std::iter::repeat_with(rand_byte())
                .take(PAYLOADS * PAYLOAD_BYTES)
                .collect(),
            runtime,
            written: 0,
            kept_slots,
        }
    }

    /// Writes this many durable batches of this many entries, and says how long that took.
    pub fn commit(&mut self, batches: u64, entries: u64) -> Duration {
        let start = Instant::now();
        for _ in 0..batches {
            let ops = (0..entries).flat_map(|_| self.next_ops()).collect();
            self.write(ops);
        }
        start.elapsed()
    }

    /// Trims all that has been written, and says how long that took.
    pub fn trim(&mut self) -> Duration {
        let upto = Slot(self.written / GROUPS);
        let trim = |group| WriteOp::Trim {
            group: GroupId(group as u32),
            upto,
        };
        let ops = (0..GROUPS).map(trim).collect();
        let start = Instant::now();
        self.write(ops);
        start.elapsed()
    }

    fn write(&mut self, ops: Vec<WriteOp>) {
        let written = self.storage.write(WriteBatch { sync: true, ops });
        self.runtime.block_on(written).expect("the store is written");
    }

    fn next_ops(&mut self) -> impl Iterator<Item = WriteOp> + use<> {
        let group = GroupId((self.written % GROUPS) as u32);
        let slot = self.written / GROUPS + 1;
        let payload = (self.written % PAYLOADS as u64) as usize * PAYLOAD_BYTES;
        self.written += 1;
        let ballot = Ballot {
            round: 1,
            node: NodeId(1),
        };
        let accept = WriteOp::Accept {
            group,
            slot: Slot(slot),
            ballot,
            entry: Entry {
                kind: EntryKind::Commands,
                payload: self.payloads.slice(payload..payload + PAYLOAD_BYTES),
            },
        };
        let kept_slots = self
            .kept_slots
            .filter(|kept_slots| slot.is_multiple_of(*kept_slots));
        let tidying = kept_slots.map(|kept_slots| {
            let state = HardState {
                promised: ballot,
                chosen: Slot(slot - 1),
                membership: Slot::ZERO,
                quarantine: None,
            };
            let upto = Slot(slot - kept_slots);
            [WriteOp::HardState { group, state }, WriteOp::Trim { group, upto }]
        });
        std::iter::once(accept).chain(tidying.into_iter().flatten())
    }
}

fn rand_byte() -> impl FnMut() -> u8 {
    let mut state = 0x9e37_79b9_u32;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    }
}

fn short(criterion: &mut Criterion, name: String) -> BenchmarkGroup<'_, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    group
}

/// Measures a storage with each of [`BATCHES`]; `open` opens the store in a directory. The result counts entries per
/// second; one iteration is one durable write.
pub fn durable_commits<S: Storage>(criterion: &mut Criterion, name: &str, mut open: impl FnMut(&Path) -> S) {
    let mut directories = Directories::default();
    let mut group = short(criterion, format!("storage: durable writes, {name}"));
    for entries in BATCHES {
        let mut writer = Writer::new(Box::new(open(directories.create())), Some(KEPT_SLOTS));
        group.throughput(Throughput::Elements(entries));
        group.bench_function(format!("batches of {entries}"), |bencher| {
            bencher.iter_custom(|batches| writer.commit(batches, entries));
        });
    }
    group.finish();
}

/// Measures how long a store of [`RECOVERED_BYTES`] takes until it is recovered, from when it is opened. It has not been
/// closed before.
pub fn recovery<S: Storage>(criterion: &mut Criterion, name: &str, mut open: impl FnMut(&Path) -> S) {
    let batches = RECOVERED_BYTES as u64 / PAYLOAD_BYTES as u64 / FILLING_BATCH;
    let mut directories = Directories::default();
    let directory = directories.create().to_owned();
    // Filled only if any of it is to be measured.
    let mut runtime = None;
    let mut group = short(criterion, format!("storage: recovery of 100 MiB, {name}"));
    group.throughput(Throughput::Bytes(RECOVERED_BYTES as u64));
    group.bench_function("open and recover", |bencher| {
        let runtime = runtime.get_or_insert_with(|| {
            let mut writer = Writer::new(Box::new(open(&directory)), None);
            writer.commit(batches, FILLING_BATCH);
            writer.runtime
        });
        bencher.iter_custom(|times| {
            let mut took = Duration::ZERO;
            for _ in 0..times {
                let start = Instant::now();
                let mut storage = open(&directory);
                let recovered = runtime.block_on(storage.recover()).expect("the store recovers");
                took += start.elapsed();
                let entries: usize = recovered.groups.values().map(|group| group.index.len()).sum();
                assert_eq!(entries as u64, batches * FILLING_BATCH, "everything is recovered");
            }
            took
        });
    });
    group.finish();
}

/// Measures how long a durable write takes that trims [`TRIMMED_SLOTS`] entries over all groups.
pub fn trimming<S: Storage>(criterion: &mut Criterion, name: &str, mut open: impl FnMut(&Path) -> S) {
    let mut directories = Directories::default();
    let mut writer = Writer::new(Box::new(open(directories.create())), None);
    let mut group = short(criterion, format!("storage: trimming, {name}"));
    group.throughput(Throughput::Elements(TRIMMED_SLOTS));
    group.bench_function(format!("{TRIMMED_SLOTS} entries at once"), |bencher| {
        bencher.iter_custom(|times| {
            let trimmed = (0..times).map(|_| {
                writer.commit(TRIMMED_SLOTS / FILLING_BATCH, FILLING_BATCH);
                writer.trim()
            });
            trimmed.sum()
        });
    });
    group.finish();
}
