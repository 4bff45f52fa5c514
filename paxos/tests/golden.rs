//! Golden traces: short runs, written down line by line. A change of the protocol shows here as a difference that a
//! person can read. `PAXOS_BLESS=1` writes the files anew.
#![cfg(feature = "testing")]

use std::{fs, path::Path};

use paxos::testing::sim::{Ending, Rig};

fn compare(name: &str, transcript: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("PAXOS_BLESS").is_some() {
        fs::write(&path, transcript).expect("the golden file can be written");
    }
    let expected = fs::read_to_string(&path).expect("the golden file exists; PAXOS_BLESS=1 writes it");
    for (line, (want, have)) in (1..).zip(expected.lines().zip(transcript.lines())) {
        assert_eq!(
            have, want,
            "{name}, line {line}; PAXOS_BLESS=1 accepts the new trace"
        );
    }
    assert_eq!(
        transcript.lines().count(),
        expected.lines().count(),
        "{name} has another length"
    );
}

#[test]
fn an_election_two_proposals_a_read_and_a_heartbeat() {
    let mut rig = Rig::new(3);
    rig.elect(1);
    let own = rig.propose(1, b"own");
    rig.settle();
    let forwarded = rig.propose(2, b"forwarded");
    rig.settle();
    let read = rig.read(3);
    rig.settle();
    rig.pass(150);
    let ends = [own, forwarded, read].map(|token| rig.ending(token).is_some());
    assert_eq!(ends, [true; 3], "{:?}", rig.ending(read));
    assert!(matches!(rig.ending(read), Some(Ending::Read(_))));
    compare("normal.txt", rig.transcript());
}

#[test]
fn a_leader_crashes_and_its_successor_adopts_what_it_left() {
    let mut rig = Rig::new(3);
    rig.elect(1);
    rig.propose(1, b"left behind");
    rig.settle_where(|letter| letter.to == 2);
    rig.crash(1);
    rig.take(|_| true);
    rig.elect(3);
    assert_eq!(rig.applied(3), ["left behind"]);
    compare("successor.txt", rig.transcript());
}
