//! How many batches a storage makes durable in a second. Generic: a plug-in author runs it on his own.
//!
//! ```no_run
//! use criterion::Criterion;
//! # fn open_mine() -> Box<dyn paxos::Storage> { unimplemented!() }
//! let mut criterion = Criterion::default();
//! paxos_benches::storage::durable_commits(&mut criterion, "mine", open_mine);
//! ```

use std::{
    fmt,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use paxos::{
    Ballot, Entry, EntryKind, GroupId, HardState, NodeId, Slot, Storage, WriteOp, storage::WriteBatch,
};
use tokio::runtime::{Builder, Runtime};

/// How many groups share the store.
pub const GROUPS: u64 = 16;
/// How large an entry's payload is, in bytes.
pub const PAYLOAD_BYTES: usize = 256;
/// How many entries share a durable write.
pub const BATCHES: [u64; 3] = [1, 10, 100];
/// Every group keeps this many entries when it is trimmed.
const KEPT_SLOTS: u64 = 1_000;

/// A store that is written like a busy node writes it: entries over all groups in turn, now and then a new watermark
/// and a trim.
pub struct Writer {
    storage: Box<dyn Storage>,
    payload: Bytes,
    runtime: Runtime,
    /// Entries written so far.
    written: u64,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// Recovers an empty store, which will be written inside a tokio runtime of one thread.
    pub fn new(mut storage: Box<dyn Storage>) -> Self {
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
            payload: std::iter::repeat_with(rand_byte()).take(PAYLOAD_BYTES).collect(),
            runtime,
            written: 0,
        }
    }

    /// Writes this many durable batches of this many entries, and says how long that took.
    pub fn commit(&mut self, batches: u64, entries: u64) -> Duration {
        let start = Instant::now();
        for _ in 0..batches {
            let ops = (0..entries).flat_map(|_| self.next_ops()).collect();
            let written = self.storage.write(WriteBatch { sync: true, ops });
            self.runtime.block_on(written).expect("the store is written");
        }
        start.elapsed()
    }

    fn next_ops(&mut self) -> impl Iterator<Item = WriteOp> + use<> {
        let group = GroupId((self.written % GROUPS) as u32);
        let slot = self.written / GROUPS + 1;
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
                payload: self.payload.clone(),
            },
        };
        let is_tidying = slot.is_multiple_of(KEPT_SLOTS);
        let tidying = is_tidying.then(|| {
            let state = HardState {
                promised: ballot,
                chosen: Slot(slot - 1),
                membership: Slot::ZERO,
            };
            let upto = Slot(slot - KEPT_SLOTS);
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

/// Measures a storage with each of [`BATCHES`]; `open` opens an empty store. The result counts entries per second; one
/// iteration is one durable write.
pub fn durable_commits<S: Storage>(criterion: &mut Criterion, name: &str, mut open: impl FnMut() -> S) {
    let mut group = criterion.benchmark_group(format!("storage: durable writes, {name}"));
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    for entries in BATCHES {
        let mut writer = Writer::new(Box::new(open()));
        group.throughput(Throughput::Elements(entries));
        group.bench_function(format!("batches of {entries}"), |bencher| {
            bencher.iter_custom(|batches| writer.commit(batches, entries));
        });
    }
    group.finish();
}
