//! Directed scenarios of replicas that hold something else than their group: what one of them stores was altered behind
//! its back, with a checksum that is right. The others must find out, and it must keep out of the way from then on.
//!
//! The [`Rig`] checks the safety invariants on every write and every message of all other nodes.
#![cfg(feature = "testing")]

use paxos::{
    Ballot, Change, EntryKind, NodeId, Quarantine, Slot,
    core::{Alarm, Checkpoint, Config, Message, Phase},
    testing::sim::{Ending, Letter, Rig},
};

/// A bug may be planted, to see that the scenario made for it fails.
fn plant() {
    #[cfg(paxos_planted)]
    if let Ok(name) = std::env::var("PAXOS_PLANT")
        && !name.is_empty()
    {
        paxos::planted::plant(&name).expect("the name of a bug");
    }
}

fn led_by_1(nodes: u64) -> Rig {
    plant();
    let mut rig = Rig::tending(
        nodes,
        Config {
            readmit: true,
            ..Config::default()
        },
    );
    rig.elect(1);
    for command in ["a", "b", "c"] {
        rig.propose(1, command.as_bytes());
        rig.settle();
    }
    rig.pass(300);
    rig
}

/// The slot of the last command.
fn last(rig: &mut Rig) -> Slot {
    let mut held = rig.disk(1).entries.iter().rev();
    let last = held.find(|(_, accepted)| accepted.entry.kind == EntryKind::Commands);
    *last.expect("commands were written").0
}

fn altered_in(rig: &mut Rig, node: u64, slot: Slot) {
    rig.crash(node);
    rig.alter(node, slot);
    rig.restart(node);
}

fn is_quarantined(rig: &Rig, node: u64) -> bool {
    rig.status(node).quarantine.is_some()
}

fn quarantined(rig: &Rig, nodes: u64) -> Vec<u64> {
    (1..=nodes).filter(|node| is_quarantined(rig, *node)).collect()
}

/// Who raised that hashes differ.
fn complain(rig: &Rig) -> Vec<u64> {
    let complaints = rig.alarms().iter();
    let complaints = complaints.filter(|(_, alarm)| matches!(alarm, Alarm::HashesDiffer { .. }));
    let mut nodes: Vec<u64> = complaints.map(|(node, _)| *node).collect();
    nodes.sort_unstable();
    nodes
}

/// A fourth command is proposed at this node, and these nodes apply it.
fn goes_on(rig: &mut Rig, at: u64, nodes: &[u64]) {
    rig.propose(at, b"d");
    rig.pass(300);
    for node in nodes {
        assert_eq!(rig.applied(*node), ["a", "b", "c", "d"], "n{node}");
    }
}

#[test]
fn an_altered_follower_quarantines_itself_and_the_group_goes_on() {
    let mut rig = led_by_1(3);
    let slot = last(&mut rig);
    altered_in(&mut rig, 3, slot);
    rig.pass(500);
    assert_eq!(quarantined(&rig, 3), [3]);
    assert_eq!(complain(&rig), [1, 3]);
    let why = rig.status(3).quarantine.expect("it is quarantined");
    assert!(matches!(why, Quarantine::Diverged { slot: found } if found >= slot));
    assert!(
        rig.alarms().contains(&(3, Alarm::Quarantined(why))),
        "{:?}",
        rig.alarms()
    );
    goes_on(&mut rig, 2, &[1, 2]);
}

#[test]
fn an_altered_leader_quarantines_itself_and_another_one_is_elected() {
    let mut rig = led_by_1(3);
    let slot = last(&mut rig);
    altered_in(&mut rig, 1, slot);
    rig.elect(1);
    rig.pass(2_000);
    assert_eq!(quarantined(&rig, 3), [1]);
    let leader = rig.leader().expect("the others elect one of them");
    assert_ne!(leader, 1);
    goes_on(&mut rig, leader, &[2, 3]);
}

#[test]
fn without_a_majority_there_is_an_alarm_and_nobody_is_quarantined() {
    let mut rig = led_by_1(2);
    let slot = last(&mut rig);
    altered_in(&mut rig, 2, slot);
    rig.pass(500);
    assert_eq!(quarantined(&rig, 2), []);
    assert_eq!(complain(&rig), [1, 2]);
    rig.propose(2, b"d");
    rig.pass(3_000);
    assert_eq!(rig.applied(1), ["a", "b", "c", "d"]);
    assert!(!rig.status(1).resting, "people should notice");
    assert_eq!(complain(&rig), [1, 2], "once is enough");
}

#[test]
fn the_decision_waits_for_a_majority() {
    let mut rig = led_by_1(3);
    rig.crash(3);
    rig.propose(1, b"d");
    rig.pass(300);
    let slot = last(&mut rig);
    altered_in(&mut rig, 2, slot);
    rig.pass(500);
    assert_eq!(complain(&rig), [1, 2]);
    assert!(!is_quarantined(&rig, 1) && !is_quarantined(&rig, 2));
    rig.restart(3);
    rig.pass(500);
    assert_eq!(quarantined(&rig, 3), [2]);
}

#[test]
fn two_of_five_are_found_at_once() {
    let mut rig = led_by_1(5);
    let slot = last(&mut rig);
    altered_in(&mut rig, 4, slot);
    altered_in(&mut rig, 5, slot);
    rig.pass(500);
    assert_eq!(quarantined(&rig, 5), [4, 5]);
}

#[test]
fn a_quarantine_outlives_a_restart() {
    let mut rig = led_by_1(3);
    let slot = last(&mut rig);
    altered_in(&mut rig, 3, slot);
    rig.pass(500);
    let why = rig.status(3).quarantine.expect("it is quarantined");
    rig.crash(3);
    rig.restart(3);
    let from_the_start = rig.alarms().last().cloned();
    assert_eq!(from_the_start, Some((3, Alarm::Quarantined(why))));
    rig.crash(2);
    rig.pass(5_000);
    assert_eq!(
        rig.leader(),
        None,
        "it helps nobody to lead, and does not lead itself"
    );
    let said = rig.take(|letter| letter.from == 3);
    assert_eq!(said, []);
    assert_eq!(rig.status(3).phase, Phase::Follower);
}

#[test]
fn with_an_empty_disk_it_is_admitted_anew() {
    let mut rig = led_by_1(3);
    let slot = last(&mut rig);
    altered_in(&mut rig, 3, slot);
    rig.pass(500);
    rig.lose_disk(3);
    rig.restart(3);
    rig.pass(3_000);
    assert_eq!(quarantined(&rig, 3), []);
    assert_eq!(rig.applied(3), rig.applied(1));
    rig.crash(2);
    // It votes again.
    goes_on(&mut rig, 1, &[1, 3]);
}

#[test]
fn a_word_that_is_late_or_not_the_leaders_does_no_harm() {
    let mut rig = led_by_1(3);
    let ballot = rig.status(1).leader.expect("n1 leads");
    let own = rig.status(3).checkpoint;
    let wrong = Checkpoint {
        hash: own.hash ^ 1,
        ..own
    };
    let earlier = Ballot {
        round: ballot.round - 1,
        ..ballot
    };
    let stranger = Ballot {
        node: NodeId(2),
        ..ballot
    };
    let words = [
        (1, ballot, own),
        (1, earlier, wrong),
        (2, ballot, wrong),
        (2, stranger, wrong),
    ];
    for (from, ballot, right) in words {
        let message = Message::Diverged { ballot, right };
        rig.deliver(Letter { from, to: 3, message });
        assert!(!is_quarantined(&rig, 3));
    }
}

#[test]
fn a_group_that_rests_was_compared_first() {
    let mut rig = led_by_1(3);
    let slot = last(&mut rig);
    rig.crash(3);
    rig.alter(3, slot);
    rig.restart(3);
    // Until the leader hears of it, all look the same.
    assert_eq!(rig.status(3).applied, rig.status(1).applied);
    rig.pass(10_000);
    assert_eq!(quarantined(&rig, 3), [3]);
}

mod a_disk_that_was_set_back {
    use super::*;

    /// n3 comes back without the last of three commands.
    fn forgets_a_command() -> Rig {
        let mut rig = led_by_1(3);
        let copy = rig.copy_disk(3);
        rig.propose(1, b"d");
        rig.pass(300);
        rig.crash(3);
        rig.set_disk_back(3, &copy);
        rig
    }

    fn blamed(rig: &Rig) -> bool {
        let mut alarms = rig.alarms().iter();
        alarms.any(|(_, alarm)| matches!(alarm, Alarm::RolledBack { peer: NodeId(3), .. }))
    }

    #[test]
    fn is_noticed_and_its_node_quarantines_itself() {
        let mut rig = forgets_a_command();
        rig.restart(3);
        rig.pass(500);
        assert!(blamed(&rig));
        assert_eq!(quarantined(&rig, 3), [3]);
        let why = rig.status(3).quarantine;
        assert!(matches!(why, Some(Quarantine::RolledBack { .. })), "{why:?}");
        rig.propose(2, b"e");
        rig.pass(300);
        assert_eq!(rig.applied(2), ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn has_no_vote_even_if_its_node_is_not_told() {
        let mut rig = forgets_a_command();
        let told = |letter: &Letter| matches!(letter.message, Message::RolledBack { .. });
        rig.restart(3);
        rig.pass_for_where(&[1, 2, 3], 300, |letter| !told(letter));
        assert!(blamed(&rig) && quarantined(&rig, 3).is_empty());
        let before = rig.chosen();
        rig.crash(2);
        rig.propose(1, b"e");
        rig.pass_for_where(&[1, 3], 200, |letter| !told(letter));
        assert_eq!(rig.status(1).chosen, before);
    }

    #[test]
    fn makes_no_promise_that_counts_when_the_voters_change() {
        plant();
        let mut rig = Rig::with(3, Config::default());
        rig.isolate(3);
        rig.elect(1);
        rig.heal();
        rig.pass(300);
        rig.join(4);
        let (node, address) = (NodeId(4), String::from("n4"));
        rig.change(1, &[Change::AddLearner { node, address }], false);
        rig.pass(500);
        let copy = rig.copy_disk(3);
        rig.propose(1, b"a");
        rig.pass(300);
        rig.crash(3);
        rig.set_disk_back(3, &copy);
        rig.restart(3);
        let withheld = |letter: &Letter| match letter.message {
            Message::RolledBack { .. } => true,
            Message::Promise { .. } => letter.from == 4,
            _ => false,
        };
        rig.pass_for_where(&[1, 2, 3, 4], 300, |letter| !withheld(letter));
        assert!(blamed(&rig));
        let promoted = rig.change(1, &[Change::Promote { node }], true);
        rig.pass_for_where(&[1, 2, 3, 4], 300, |letter| !withheld(letter));
        assert_eq!(rig.membership().quorum(), 3);
        assert_eq!(rig.ending(promoted), None, "n1 and n2 are no quorum of four");
        rig.pass(500);
        assert_eq!(rig.ending(promoted), Some(Ending::Changed(3)));
    }

    #[test]
    fn is_noticed_by_a_promise_alone() {
        let mut rig = Rig::new(3);
        let copy = rig.copy_disk(3);
        rig.elect(1);
        rig.pass(300);
        rig.crash(3);
        rig.set_disk_back(3, &copy);
        rig.restart(3);
        rig.pass(500);
        assert_eq!(quarantined(&rig, 3), [3]);
    }

    #[test]
    fn is_noticed_although_its_lives_are_numbered_from_there() {
        for restarts in [0, 1, 2] {
            let mut rig = led_by_1(3);
            let copy = rig.copy_disk(3);
            for _ in 0..restarts {
                rig.crash(3);
                rig.restart(3);
                rig.pass(500);
            }
            rig.propose(1, b"d");
            rig.pass(300);
            rig.crash(3);
            rig.set_disk_and_clock_back(3, &copy);
            rig.restart(3);
            rig.pass(500);
            assert_eq!(quarantined(&rig, 3), [3], "after {restarts} more lives");
        }
    }

    #[test]
    fn is_noticed_although_the_memory_was_set_back_with_it() {
        let mut rig = led_by_1(3);
        let copy = rig.copy_node(3);
        rig.propose(1, b"d");
        rig.pass(300);
        rig.set_node_back(3, &copy);
        rig.pass(500);
        assert_eq!(quarantined(&rig, 3), [3]);
    }

    #[test]
    fn is_not_one_whose_heartbeats_overtake_each_other() {
        let mut rig = led_by_1(3);
        let is_beat = |letter: &Letter| letter.to == 3 && matches!(letter.message, Message::Heartbeat { .. });
        rig.pass_for_where(&[1], 250, |letter| !is_beat(letter));
        let mut beats = rig.take(is_beat);
        assert!(beats.len() > 1);
        // The answer to the last one leaves first and comes last.
        rig.deliver(beats.pop().expect("there is one"));
        let answer = rig.take(|letter| letter.from == 3);
        rig.propose(1, b"d");
        rig.settle_where(|letter| !is_beat(letter));
        for beat in beats {
            rig.deliver(beat);
        }
        rig.settle_where(|letter| !is_beat(letter));
        for letter in answer {
            rig.deliver(letter);
        }
        rig.pass(500);
        assert_eq!(rig.alarms(), []);
        assert_eq!(quarantined(&rig, 3), []);
    }

    #[test]
    fn is_not_that_of_a_learner_which_may_forget_all() {
        let mut rig = led_by_1(3);
        let node = NodeId(3);
        let is_answer =
            |letter: &Letter| letter.from == 3 && matches!(letter.message, Message::HeartbeatReply { .. });
        rig.pass_for_where(&[1, 2, 3], 150, |letter| !is_answer(letter));
        let late = rig.take(is_answer);
        rig.change(1, &[Change::Demote { node }], false);
        rig.pass(500);
        rig.crash(3);
        rig.remove_group(3);
        rig.restart(3);
        rig.pass(1_000);
        assert_eq!(rig.alarms(), []);
        assert_eq!(quarantined(&rig, 3), []);
        rig.change(1, &[Change::Promote { node }], false);
        rig.pass(500);
        for letter in late {
            rig.deliver(letter);
        }
        assert_eq!(rig.alarms(), [], "what it said as a voter is forgiven");
        rig.crash(2);
        // It votes again.
        goes_on(&mut rig, 1, &[1, 3]);
    }

    #[test]
    fn is_not_one_that_lost_only_what_was_never_acknowledged() {
        let mut rig = led_by_1(3);
        rig.hold_disk(3);
        for command in ["d", "e"] {
            rig.propose(1, command.as_bytes());
            rig.pass(200);
        }
        rig.crash(3);
        rig.release_disk(3);
        rig.restart(3);
        rig.pass(1_000);
        assert_eq!(quarantined(&rig, 3), []);
        assert_eq!(rig.applied(3), rig.applied(1));
        assert_eq!(rig.alarms(), []);
    }

    #[test]
    fn is_forgiven_when_it_is_replaced() {
        let mut rig = forgets_a_command();
        rig.restart(3);
        rig.pass(500);
        rig.lose_disk(3);
        rig.restart(3);
        rig.pass(3_000);
        assert_eq!(quarantined(&rig, 3), []);
        assert_eq!(rig.applied(3), rig.applied(1));
    }
}
