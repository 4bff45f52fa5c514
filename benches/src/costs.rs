//! Work whose cost is counted, not timed: allocations and instructions per command are the same on every machine, so a
//! test may compare them with what they were (`benches/costs.txt`).
//!
//! `cargo test -p paxos-benches --test costs` counts allocations; `.ci/costs` counts instructions too, if it finds
//! `valgrind`, and writes the file anew with `.ci/costs --update`.

use std::{fmt, hint::black_box};

use bytes::Bytes;
use paxos::{
    Ballot, ClusterId, Entry, EntryKind, GroupId, NodeId, Slot, StorageId,
    core::{Config, Message},
    wire::{self, Envelope, Outgoing},
};

use crate::lockstep::Lockstep;

/// Something that is done again and again.
pub struct Work {
    /// What is done.
    pub name: &'static str,
    /// How many commands, or log entries, one run counts for.
    pub per_run: u64,
    run: Box<dyn FnMut()>,
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Work {
    /// Does it so many times.
    pub fn run(&mut self, times: u64) {
        for _ in 0..times {
            (self.run)();
        }
    }
}

/// All of it, each ready to run.
pub fn all() -> Vec<Work> {
    vec![
        commit("commit window 1", 1),
        commit("commit window 64", 64),
        commit("commit window 1000", 1_000),
        encode("encode accept 1", 1),
        encode("encode accept 64", 64),
        decode("decode accept 1", 1),
        decode("decode accept 64", 64),
    ]
}

/// Bursts of commands through three replicas.
fn commit(name: &'static str, window: usize) -> Work {
    let mut cluster = Lockstep::new(3, &Config::default());
    let leader = cluster.leader().unwrap_or(NodeId(1));
    let command = Bytes::from_static(b"sixteen byte cmd");
    Work {
        name,
        per_run: window as u64,
        run: Box::new(move || {
            cluster.propose(leader, window, &command);
            cluster.settle();
        }),
    }
}

fn encode(name: &'static str, entries: usize) -> Work {
    let envelope = accept(entries);
    Work {
        name,
        per_run: entries as u64,
        run: Box::new(move || drop(black_box(Outgoing::encode(black_box(&envelope))))),
    }
}

fn decode(name: &'static str, entries: usize) -> Work {
    let frame = Outgoing::encode(&accept(entries)).map(|frame| frame.to_bytes());
    let frame = frame.expect("the message is small");
    Work {
        name,
        per_run: entries as u64,
        run: Box::new(move || drop(black_box(wire::decode(black_box(frame.clone()))))),
    }
}

/// A frame of so many entries of 256 bytes.
fn accept(entries: usize) -> Envelope {
    let entry = Entry {
        kind: EntryKind::Commands,
        payload: Bytes::from(vec![b'v'; 256]),
    };
    Envelope {
        cluster: ClusterId::from_name("bench"),
        from: NodeId(2),
        storage: StorageId(0xfedc_ba98_7654_3210),
        group: GroupId(1),
        message: Message::Accept {
            ballot: Ballot {
                round: 12,
                node: NodeId(2),
            },
            start: Slot(1_000_000),
            first: Slot(2_000_000),
            entries: vec![entry; entries],
            chosen: Slot(1_999_990),
        },
    }
}
