//! Some seeds of the cluster simulator, and proof that a seed is a run.
//!
//! `PAXOS_SEEDS` sets how many; the `simulate` example runs more of them, faster, in release.
#![cfg(feature = "testing")]

use paxos::testing::sim::{Checking, Event, Fault, FaultSet, Options, Retrying, run};

fn amount() -> u64 {
    std::env::var("PAXOS_SEEDS").map_or(40, |text| text.parse().expect("PAXOS_SEEDS is a number of seeds"))
}

#[test]
fn seeds_pass() {
    for seed in 1..=amount() {
        let report = run(seed, &Options::default(), &Checking);
        if let Some(failure) = report.failure {
            panic!(
                "{failure}\nreplay: cargo run --release -p paxos --features testing --example simulate -- --seed {seed} --trace"
            );
        }
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..=10 {
        let (first, second) = (
            run(seed, &Options::default(), &Checking),
            run(seed, &Options::default(), &Checking),
        );
        assert_eq!(first, second);
    }
    let hash = |seed| run(seed, &Options::default(), &Checking).hash;
    assert_ne!(
        hash(1),
        hash(2),
        "a fingerprint that never differs proves nothing"
    );
}

#[test]
fn without_faults_nothing_is_lost_and_nobody_is_deposed() {
    let options = Options {
        nodes: Some(3),
        faults: FaultSet::NONE,
        ..Options::default()
    };
    for seed in 1..=10 {
        let report = run(seed, &options, &Checking);
        assert_eq!(report.failure, None);
        assert!(report.answered > 0);
        assert_eq!(
            report.coverage.count(Event::Lost) + report.coverage.count(Event::LeaderCrashed),
            0
        );
    }
}

#[test]
fn a_fault_class_can_be_tried_alone() {
    let options = Options {
        faults: FaultSet::NONE.with(Fault::CrashAll),
        ..Options::default()
    };
    let crashes: u64 = (1..=40)
        .map(|seed| {
            let report = run(seed, &options, &Checking);
            assert_eq!(report.failure, None);
            assert_eq!(report.coverage.count(Event::Cut), 0);
            report.coverage.count(Event::AllCrashed)
        })
        .sum();
    assert!(crashes > 0);
}

#[test]
fn groups_share_disks_and_fail_apart() {
    let options = Options {
        nodes: Some(3),
        groups: Some(3),
        ..Options::default()
    };
    let mut shared = 0;
    for seed in 1..=20 {
        let report = run(seed, &options, &Checking);
        assert_eq!(report.failure, None);
        shared += report.coverage.count(Event::SharedWrite);
    }
    assert!(shared > 0, "no write carried several groups");
}

#[test]
fn spelling_out_what_a_seed_draws_changes_nothing() {
    for seed in 1..=5 {
        let drawn = run(seed, &Options::default(), &Checking);
        let spelled_out = Options {
            nodes: Some(drawn.nodes),
            groups: Some(drawn.groups),
            ..Options::default()
        };
        assert_eq!(run(seed, &spelled_out, &Checking), drawn);
    }
}

#[test]
fn full_disks_stop_their_nodes_only_and_damaged_ones_are_repaired() {
    let options = Options {
        nodes: Some(5),
        faults: FaultSet::NONE.with(Fault::FullDisk).with(Fault::Damage),
        ..Options::default()
    };
    let (mut full, mut damaged) = (0, 0);
    for seed in 1..=100 {
        let report = run(seed, &options, &Checking);
        assert_eq!(report.failure, None);
        full += report.coverage.count(Event::FullAtSync);
        damaged += report.coverage.count(Event::RepairedByLearning);
    }
    assert!(full > 0 && damaged > 0);
}

#[test]
fn commands_of_sessions_have_one_effect_and_one_answer() {
    for seed in 1..=amount() {
        let report = run(seed, &Options::default(), &Retrying);
        assert_eq!(report.failure, None);
    }
}

mod checkers {
    //! The simulator finds what is wrong with a user's state machine.

    use bytes::Bytes;
    use paxos::{
        Chosen, MachineError, SnapshotSource, StateMachine,
        sessions::Sessions,
        testing::sim::{Auditor, Ledger, Random, Script, Workload, shrink},
    };

    use super::*;

    #[derive(Clone, Copy)]
    enum Defect {
        /// Replies depend on something that is not in the log.
        Nondeterminism,
        /// A restored machine has lost a part of its state.
        Snapshot,
    }

    struct Defective(Defect);

    struct Machine {
        ledger: Ledger,
        defect: Defect,
        restored: bool,
    }

    impl StateMachine for Machine {
        fn applied(&self) -> paxos::Slot {
            self.ledger.applied()
        }

        fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
            self.ledger.apply(chosen, replies)?;
            let address = std::ptr::from_ref(self).addr() as u64;
            for reply in replies {
                match self.defect {
                    Defect::Nondeterminism => *reply = Bytes::copy_from_slice(&address.to_le_bytes()),
                    Defect::Snapshot if self.restored => *reply = Bytes::new(),
                    Defect::Snapshot => {}
                }
            }
            Ok(())
        }

        fn query(&self, query: Bytes) -> Bytes {
            self.ledger.query(query)
        }

        fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
            self.ledger.snapshot()
        }

        fn restore(&mut self, upto: paxos::Slot, from: &mut dyn std::io::Read) -> Result<(), MachineError> {
            self.restored = true;
            self.ledger.restore(upto, from)
        }
    }

    impl Workload for Defective {
        type Machine = Machine;

        fn machine(&self) -> Machine {
            Machine {
                ledger: Ledger::default(),
                defect: self.0,
                restored: false,
            }
        }

        fn command(&self, random: &mut Random, unique: u64) -> Bytes {
            Checking.command(random, unique)
        }

        fn query(&self, random: &mut Random) -> Bytes {
            Checking.query(random)
        }
    }

    fn found(defect: Defect) -> bool {
        (1..=60).any(|seed| {
            let failure = run(seed, &Options::default(), &Defective(defect)).failure;
            failure.is_some_and(|failure| failure.violation.oracle == "I8")
        })
    }

    #[test]
    fn a_machine_that_is_not_deterministic_is_found() {
        assert!(found(Defect::Nondeterminism));
    }

    #[test]
    fn a_field_that_a_snapshot_forgets_is_found() {
        assert!(found(Defect::Snapshot));
    }

    /// A service whose author has put sessions round his machine, but not into his snapshots.
    struct Forgetful(Sessions<Ledger>);

    impl StateMachine for Forgetful {
        fn applied(&self) -> paxos::Slot {
            self.0.applied()
        }

        fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
            self.0.apply(chosen, replies)
        }

        fn query(&self, query: Bytes) -> Bytes {
            self.0.query(query)
        }

        fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
            self.0.machine().snapshot()
        }

        fn restore(&mut self, upto: paxos::Slot, from: &mut dyn std::io::Read) -> Result<(), MachineError> {
            let mut ledger = Ledger::default();
            ledger.restore(upto, from)?;
            self.0 = Sessions::new(ledger);
            Ok(())
        }
    }

    struct WithoutTable;

    impl Workload for WithoutTable {
        type Machine = Forgetful;

        fn machine(&self) -> Forgetful {
            Forgetful(Retrying.machine())
        }

        fn command(&self, random: &mut Random, unique: u64) -> Bytes {
            Retrying.command(random, unique)
        }

        fn query(&self, random: &mut Random) -> Bytes {
            Retrying.query(random)
        }

        fn script(&self) -> Option<Box<dyn Script>> {
            Retrying.script()
        }

        fn auditor(&self) -> Option<Box<dyn Auditor>> {
            Retrying.auditor()
        }
    }

    /// One replica: nobody else could be compared with, so that only the auditor can notice.
    #[test]
    fn sessions_that_a_snapshot_forgets_are_found() {
        let options = Options {
            nodes: Some(1),
            ..Options::default()
        };
        let oracles: Vec<_> = (1..=200)
            .filter_map(|seed| run(seed, &options, &WithoutTable).failure)
            .map(|failure| failure.violation.oracle)
            .collect();
        assert!(oracles.contains(&"I9"), "{oracles:?}");
    }

    #[test]
    fn a_failing_run_is_shrunk_to_what_it_needs() {
        let workload = Defective(Defect::Snapshot);
        let options = Options {
            nodes: Some(3),
            groups: Some(1),
            clients: Some(2),
            storms: Some(1),
            faults: FaultSet::NONE.with(Fault::SnapshotSwap).with(Fault::Loss),
            ..Options::default()
        };
        let failing = (1..=60).find(|seed| run(*seed, &options, &workload).failure.is_some());
        let shrunk = shrink(failing.expect("a run fails"), &options, &workload, 10).expect("it fails");
        assert_eq!(shrunk.options.faults, FaultSet::NONE.with(Fault::SnapshotSwap));
        let again = run(shrunk.failure.seed, &shrunk.options, &workload);
        assert_eq!(again.failure, Some(shrunk.failure));
        assert!(shrink(1, &options, &Checking, 1).is_none(), "nothing to shrink");
    }
}
