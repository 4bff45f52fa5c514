//! What a message costs on its way to and from bytes.
//!
//! `cargo bench -p paxos-benches --bench codec`. "elements" are log entries (or heartbeats), "bytes" whole frames.

use std::{hint::black_box, time::Duration};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use paxos::{
    Ballot, ClusterId, Entry, EntryKind, GroupId, NodeId, Slot, StorageId,
    core::{Checkpoint, Message},
    wire::{self, Envelope, Outgoing},
};

const BALLOT: Ballot = Ballot {
    round: 12,
    node: NodeId(2),
};

fn envelope(message: Message) -> Envelope {
    Envelope {
        cluster: ClusterId::from_name("bench"),
        from: NodeId(2),
        storage: StorageId(0xfedc_ba98_7654_3210),
        group: GroupId(1),
        message,
    }
}

fn accept(entries: usize) -> Message {
    let entry = Entry {
        kind: EntryKind::Commands,
        payload: Bytes::from(vec![b'v'; 256]),
    };
    Message::Accept {
        ballot: BALLOT,
        start: Slot(1_000_000),
        first: Slot(2_000_000),
        entries: vec![entry; entries],
        chosen: Slot(1_999_990),
    }
}

fn heartbeat() -> Message {
    Message::Heartbeat {
        ballot: BALLOT,
        start: Slot(1_000_000),
        chosen: Slot(2_000_000),
        round: 100_000,
        lease: Duration::from_millis(400),
        checkpoint: Checkpoint {
            slot: Slot(2_000_000),
            hash: 0x0123_4567_89ab_cdef,
        },
    }
}

fn codec(c: &mut Criterion) {
    for (name, entries, message) in [
        ("accept 1 x 256 B", 1_u32, accept(1)),
        ("accept 64 x 256 B", 64, accept(64)),
        ("heartbeat", 1, heartbeat()),
    ] {
        let envelope = envelope(message);
        let frame = Outgoing::encode(&envelope)
            .expect("the message is small")
            .to_bytes();
        println!(
            "{name}: {} bytes, {:.0} per element",
            frame.len(),
            frame.len() as f64 / f64::from(entries)
        );
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(u64::from(entries)));
        group.bench_function("encode", |b| b.iter(|| Outgoing::encode(black_box(&envelope))));
        group.bench_function("decode", |b| b.iter(|| wire::decode(black_box(frame.clone()))));
        group.finish();
    }
}

criterion_group!(benches, codec);
criterion_main!(benches);
