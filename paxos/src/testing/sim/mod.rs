//! A seeded simulator of whole clusters.
//!
//! It runs the protocol core under a network that loses, repeats, delays, reorders and cuts, on disks that forget what
//! was not synced, on clocks that drift, with nodes that crash, pause and come back, and checks the invariants of the
//! protocol from the inside: after every write, every message and every applied slot. One seed is one run, always the
//! same. Virtual time costs nothing, so a second of a CPU is minutes of a cluster's life.
//!
//! ```
//! use paxos::testing::sim::{Checking, Options, run};
//!
//! let report = run(7, &Options::default(), &Checking);
//! assert!(report.failure.is_none(), "{}", report.failure.unwrap());
//! ```
//!
//! # Bring your own machine
//!
//! Implement [`Workload`]: how to make your [`StateMachine`](crate::StateMachine), and what its clients ask. Then call
//! [`run`] for as many seeds as you have patience for. Beside the protocol that checks that your machine is
//! deterministic (equal replies and, if it has a [digest](crate::StateMachine::digest), equal states on all replicas) and
//! that a machine restored from a snapshot goes on like the one that wrote it. The example `simulate_your_machine` does
//! it for a small bank, in 30 lines, and finds two bugs that can be planted there.
//!
//! # Bring your own storage
//!
//! The simulator has disks of its own, which say exactly what a crash may lose. To put your
//! [`Storage`](crate::Storage) on them, hand [`run`] a workload with a [place](crate::testing::storage::Place) to open it
//! at, the same as for the conformance suite:
//!
//! ```no_run
//! # use paxos::{storage::{Owner, StorageError}, testing::sim::{OnStorage, Options, run}};
//! # fn open(directory: &std::path::Path, owner: Owner) -> Result<Box<dyn paxos::Storage>, StorageError> { todo!() }
//! let place = || {
//!     let directory = tempfile::tempdir().unwrap();
//!     move |owner| open(directory.path(), owner)
//! };
//! let report = run(7, &Options::default(), &OnStorage(place));
//! ```
//!
//! It is then given every write when the simulated disk syncs it, several groups' changes and several writes in one batch.
//! When its node crashes it is given some of the writes that were under way, unsynced, is dropped without
//! [`close`](crate::Storage::close) and opened again: it must come back with everything that was synced and a whole prefix
//! of the rest, entry by entry, and the run goes on with just that. Reads are compared too. What cannot be played inside
//! one process (the death of the process itself, a power failure, bytes that rot) is the conformance suite's part
//! ([`crate::testing::storage`]). The storage is called inside a tokio runtime that belongs to the run, so call [`run`] from
//! a thread that is not inside another one. The example `custom_storage` has it all.
//!
//! # A run that fails
//!
//! [`Failure`] names the seed and the oracle; the same seed and [`Options`] fail again, with a line for everything that
//! happens if [`Options::trace`] asks for it. [`shrink`] looks for a smaller run that fails in the same way: fewer
//! classes of faults, nodes, groups, clients.
//!
//! # What is checked
//!
//! | | |
//! |---|---|
//! | I1 | at most one value is chosen per slot, for ever |
//! | I2 | at most one value per slot and ballot |
//! | I3 | what is chosen was proposed by a client, or is a membership or a no-op |
//! | I4 | what a replica holds for chosen, or applies, is durably chosen; slots are applied in order |
//! | I5 | everything a node ever said is on its disk, at once and after every restart |
//! | I6 | promises never go back; a ballot has one owner, one life and a quorum of promises |
//! | I7 | trimmed <= durable snapshot <= applied <= chosen, and none goes back |
//! | I8 | equal states and replies at equal slots, also of machines restored from a snapshot |
//! | I9 | one effect and one answer for each command of a session (the workload [`Retrying`]) |
//! | I11 | votes count in the membership in force at their slot only, with the disk that it admitted |
//! | I10 | linearizable, by log positions |
//! | I12 | no two nodes would answer a read by lease at one moment, nor does a node begin to lead then, as long as clocks drift no more than the lease allows for |
//! | I13 | queues keep their bounds |
//! | I14 | the same running hash on all replicas that have applied as much |
//! | quarantine | who holds something else than its group, because its disk was altered or set back, finds itself in quarantine, nobody else, and the group goes on |
//! | L1 | after a while without faults, every node answers writes and reads |
//! | L2 | at the end all replicas have applied the same |
//!
//! and that every proposal ends exactly once, happens once at the most, never after it was rejected, and in the order
//! of its node.

mod alteration;
mod apply;
mod clients;
mod cluster;
mod coverage;
mod damage;
mod disk;
mod drive;
mod faults;
mod files;
mod history;
mod leadership;
mod machine;
mod nemesis;
mod network;
mod node;
mod observe;
mod oracle;
pub(in crate::testing) mod random;
mod reconfigure;
mod rig;
mod sessions;
mod shrink;
mod snapshots;
mod store;
pub mod trace;

use core::fmt::{self, Write};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    string::String,
};

pub use self::{
    coverage::{Coverage, Event},
    disk::DiskState,
    faults::{Fault, FaultSet},
    machine::{Auditor, Checking, Ledger, OnStorage, Script, Workload},
    oracle::{Oracle, Violation},
    random::Random,
    rig::{DiskCopy, Ending, Letter, NodeCopy, Rig},
    sessions::Retrying,
    shrink::{Shrunk, shrink},
};

/// What may differ between two runs of one seed.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many nodes belong to the groups at first; drawn from the seed if `None`.
    pub nodes: Option<usize>,
    /// How many groups share each node's disk; drawn from the seed if `None`.
    pub groups: Option<usize>,
    /// How many clients work at a time; drawn from the seed if `None`.
    pub clients: Option<usize>,
    /// How many times faults come and go; drawn from the seed if `None`.
    pub storms: Option<u32>,
    /// The fault classes that may be drawn.
    pub faults: FaultSet,
    /// Gets a line for everything that happens.
    pub trace: Option<fn(&str)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: None,
            groups: None,
            clients: None,
            storms: None,
            faults: FaultSet::ALL,
            trace: None,
        }
    }
}

impl Options {
    /// What is fixed here, as flags of the `simulate` example, each after a space.
    pub fn flags(&self) -> String {
        let mut flags = String::new();
        let numbers = [
            ("nodes", self.nodes),
            ("groups", self.groups),
            ("clients", self.clients),
            ("storms", self.storms.map(|storms| storms as usize)),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                let _ = write!(flags, " --{name} {number}");
            }
        }
        if self.faults != FaultSet::ALL {
            let _ = write!(flags, " --faults {}", self.faults);
        }
        flags
    }
}

/// A run that ended badly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The seed of the run.
    pub seed: u64,
    /// What was broken; the oracle `panic` for an assertion of the code itself.
    pub violation: Violation,
    /// When, in microseconds of virtual time; `None` after a panic.
    pub at: Option<u64>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { oracle, detail } = &self.violation;
        write!(f, "seed {} failed: {oracle}: {detail}", self.seed)?;
        match self.at {
            Some(at) => write!(f, " (at {}.{:06} s)", at / 1_000_000, at % 1_000_000),
            None => Ok(()),
        }
    }
}

/// What came out of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// A fingerprint of everything that happened: equal for equal seeds and options.
    pub hash: u64,
    /// How the run failed, if it did.
    pub failure: Option<Failure>,
    /// How many nodes belonged to the groups at first.
    pub nodes: usize,
    /// How many groups shared their disks.
    pub groups: usize,
    /// What the run met.
    pub coverage: Coverage,
    /// How many messages were sent.
    pub messages: u64,
    /// How many slots were chosen.
    pub chosen: u64,
    /// How many commands and reads had been answered, counted as commands applied before the last answer.
    pub answered: u64,
    /// How long the run was, in microseconds of virtual time.
    pub virtual_micros: u64,
}

/// Runs one seed. A panic in the code under test is a failure like any other.
pub fn run<W: Workload>(seed: u64, options: &Options, workload: &W) -> Report {
    let attempt = catch_unwind(AssertUnwindSafe(|| {
        let mut cluster = cluster::Cluster::new(seed, options, workload);
        let failure = cluster.live().err().map(|violation| Failure {
            seed,
            violation,
            at: Some(cluster.now),
        });
        Report {
            hash: cluster.hash(),
            failure,
            nodes: cluster.plan.nodes,
            groups: cluster.groups.len(),
            coverage: cluster.coverage.clone(),
            messages: cluster.messages,
            chosen: cluster.sum(|group| group.oracle.chosen().0),
            answered: cluster.sum(|group| group.history.answered()),
            virtual_micros: cluster.now,
        }
    }));
    attempt.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without a message");
        let failure = Failure {
            seed,
            violation: Violation::new("panic", text),
            at: None,
        };
        Report {
            failure: Some(failure),
            ..Report::default()
        }
    })
}
