//! Leases: what a leader may answer alone, and for how long.

use super::*;

/// Granted for 400 ms, and usable for 361 ms of them.
const LEASE: Lease = Lease {
    duration: Duration::from_millis(400),
    max_drift_permille: 50,
};

/// n1 leads under a lease.
fn leased(nodes: u64) -> Rig {
    let config = Config {
        lease: Some(LEASE),
        ..Config::default()
    };
    let rig = led_by_1_with(nodes, config);
    assert!(rig.holds_lease(1));
    rig
}

fn is_heartbeat(letter: &Letter) -> bool {
    matches!(letter.message, Message::Heartbeat { .. })
}

fn is_heartbeat_reply(letter: &Letter) -> bool {
    matches!(letter.message, Message::HeartbeatReply { .. })
}

#[test]
fn a_leader_with_a_lease_reads_without_a_word_to_anybody() {
    let mut rig = leased(3);
    rig.take(|_| true);
    let token = rig.read_by_lease(1);
    assert!(matches!(rig.ending(token), Some(Ending::Read(_))));
    assert!(rig.was_by_lease(token));
    assert!(rig.take(|_| true).is_empty());
}

#[test]
fn without_a_lease_the_read_asks_a_quorum() {
    let mut rig = led_by_1(3);
    let token = rig.read_by_lease(1);
    rig.settle();
    assert!(matches!(rig.ending(token), Some(Ending::Read(_))));
    assert!(!rig.was_by_lease(token));
    let mut rig = leased(3);
    let token = rig.read_by_lease(2);
    rig.settle();
    assert!(matches!(rig.ending(token), Some(Ending::Read(_))));
    assert!(!rig.was_by_lease(token), "a follower has none");
}

#[test]
fn a_lease_without_answers_runs_out_before_the_grants_do() {
    let mut rig = leased(3);
    rig.pass_for(&[1], 100);
    rig.isolate(1);
    rig.pass_for(&[], 250);
    assert!(rig.holds_lease(1));
    rig.pass_for(&[], 120);
    assert!(!rig.holds_lease(1), "362 ms have passed");
}

/// Planted bug 15.
#[test]
fn a_lease_counts_from_the_sending_of_the_heartbeat() {
    let mut rig = leased(3);
    rig.pass_for_where(&[1], 100, |letter| !is_heartbeat_reply(letter));
    let replies = rig.take(is_heartbeat_reply);
    rig.isolate(1);
    rig.pass_for(&[], 370);
    assert!(!rig.holds_lease(1));
    rig.heal();
    for reply in replies {
        rig.deliver(reply);
    }
    assert!(!rig.holds_lease(1), "the answers were long on their way");
}

/// W9.
#[test]
fn a_reply_of_the_past_grants_nothing_however_often_it_comes() {
    let mut rig = leased(3);
    rig.pass_for_where(&[1], 100, |letter| !is_heartbeat_reply(letter));
    let replies = rig.take(is_heartbeat_reply);
    for reply in &replies {
        rig.deliver(reply.clone());
    }
    rig.isolate(1);
    rig.pass_for(&[], 370);
    rig.heal();
    for reply in replies {
        rig.deliver(reply);
    }
    assert!(!rig.holds_lease(1));
}

/// As `leased`, in a group that rests.
fn resting() -> Rig {
    let mut rig = leased(3);
    for (node, peer) in [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)] {
        rig.step(node, Input::PeerAlive(NodeId(peer)));
    }
    rig.pass(1_500);
    assert!((1..=3).all(|node| rig.status(node).resting));
    rig
}

#[test]
fn a_lease_runs_out_while_the_group_rests_and_the_first_read_gets_a_new_one() {
    let mut rig = resting();
    rig.pass(400);
    assert!(!rig.holds_lease(1));
    let first = rig.read_by_lease(1);
    rig.settle();
    assert!(matches!(rig.ending(first), Some(Ending::Read(_))), "at once");
    assert!(!rig.was_by_lease(first));
    assert!(rig.holds_lease(1));
    let second = rig.read_by_lease(1);
    assert!(rig.was_by_lease(second));
    rig.pass(2_000);
    assert!((1..=3).all(|node| rig.status(node).resting), "and it rests again");
}

#[test]
fn a_leader_that_rests_and_was_replaced_answers_no_read() {
    let mut rig = resting();
    rig.isolate(1);
    for node in [2, 3] {
        rig.step(node, Input::PeerSilent(NodeId(1)));
    }
    rig.pass_for(&[2, 3], 1_500);
    let leader = rig.leader().expect("the others have a new one");
    assert!(leader != 1 && rig.status(1).phase == Phase::Leader && rig.status(1).resting);
    let write = rig.propose(leader, b"newer");
    rig.pass_for(&[2, 3], 100);
    assert!(happened(&rig, write));
    let read = rig.read_by_lease(1);
    rig.pass(2_000);
    assert!(
        !matches!(rig.ending(read), Some(Ending::Read(_))),
        "{}",
        rig.transcript()
    );
}

#[test]
fn a_follower_that_rests_keeps_its_word() {
    let mut rig = leased(3);
    for (node, peer) in [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)] {
        rig.step(node, Input::PeerAlive(NodeId(peer)));
    }
    // The leader is missed as soon as it rests.
    while !rig.status(2).resting {
        rig.pass(1);
    }
    for node in [2, 3] {
        rig.step(node, Input::PeerSilent(NodeId(1)));
        rig.step(node, Input::Disconnected(NodeId(1)));
    }
    while rig.holds_lease(1) {
        assert_eq!(rig.leader(), Some(1));
        rig.pass_for(&[2, 3], 1);
    }
    rig.isolate(1);
    rig.pass_for(&[2, 3], 1_500);
    assert_ne!(rig.leader(), Some(1));
}

#[test]
fn who_has_granted_a_lease_helps_nobody_else_to_lead_while_it_lasts() {
    let mut rig = leased(3);
    rig.isolate(1);
    for node in [2, 3] {
        rig.step(node, Input::Disconnected(NodeId(1)));
    }
    while rig.holds_lease(1) {
        assert_eq!(rig.leader(), Some(1));
        rig.pass_for(&[2, 3], 1);
    }
    rig.pass_for(&[2, 3], 400);
    assert!(matches!(rig.leader(), Some(2 | 3)), "soon after it is over");
}

#[test]
fn a_grantor_that_was_restarted_keeps_its_word() {
    let mut rig = leased(3);
    rig.isolate(1);
    for node in [2, 3] {
        rig.crash(node);
        rig.restart(node);
        rig.step(node, Input::Disconnected(NodeId(1)));
    }
    let ballot = paxos::Ballot {
        round: 77,
        node: NodeId(2),
    };
    rig.deliver(Letter {
        from: 2,
        to: 3,
        message: Message::Prepare {
            ballot,
            from: paxos::Slot(1),
            released: None,
        },
    });
    assert!(rig.holds_lease(1));
    assert!(rig.status(3).promised < ballot);
}

#[test]
fn a_leader_that_hands_over_has_no_lease_from_then_on() {
    let mut rig = leased(3);
    rig.transfer(1, Some(2));
    assert!(!rig.take(is_take_over).is_empty());
    assert!(!rig.holds_lease(1));
    rig.pass_for_where(&[1, 2, 3], 300, |letter| !is_take_over(letter));
    assert!(!rig.holds_lease(1), "however many heartbeats are answered");
}

#[test]
fn a_transfer_does_not_wait_for_the_lease() {
    let mut rig = leased(3);
    let token = rig.transfer(1, Some(2));
    rig.settle();
    assert_eq!(transferred(&rig, token), Some(Ok(2)));
    assert!(rig.holds_lease(2) && !rig.holds_lease(1));
}

#[test]
fn a_leader_whose_transfer_came_to_nothing_gets_a_lease_again() {
    let mut rig = leased(3);
    let before = rig.status(1).leader;
    rig.transfer(1, Some(2));
    rig.pass_for_where(&[1, 2, 3], 700, |letter| !is_take_over(letter));
    assert!(rig.leader() == Some(1) && rig.holds_lease(1));
    assert!(
        rig.status(1).leader > before,
        "at a ballot that it has not given away"
    );
    let late = rig.take(is_take_over);
    assert!(!late.is_empty());
    for letter in late {
        rig.deliver(letter);
    }
    rig.settle();
    assert_eq!(
        rig.leader(),
        Some(1),
        "and what it said at the old one moves nobody"
    );
}

#[test]
fn while_the_membership_changes_nobody_holds_a_lease() {
    let mut rig = leased(3);
    let changes = vec![paxos::Change::SetPriority {
        node: NodeId(2),
        priority: 1,
    }];
    rig.step(
        1,
        Input::ChangeMembership {
            token: Token(1_000),
            expected: 1,
            changes,
            force: false,
        },
    );
    assert!(!rig.holds_lease(1));
    rig.pass(200);
    assert!(rig.holds_lease(1), "it is done");
}

#[test]
fn a_new_leader_answers_no_read_before_what_it_inherited_is_chosen() {
    let mut rig = leased(3);
    rig.propose(1, b"a");
    rig.settle_where(|letter| letter.to != 1);
    rig.take(|_| true);
    rig.isolate(1);
    rig.crash(1);
    for _ in 0..3_000 {
        rig.pass_for_where(&[2, 3], 1, |letter| !is_accept(letter));
        if rig.leader().is_some_and(|leader| leader != 1) {
            break;
        }
    }
    rig.pass_for_where(&[2, 3], 200, |letter| !is_accept(letter));
    let leader = rig.leader().expect("somebody leads");
    assert!(!rig.holds_lease(leader));
    rig.pass_for(&[2, 3], 500);
    assert!(rig.holds_lease(rig.leader().expect("somebody leads")));
}

#[test]
fn heartbeats_ask_for_nothing_where_leases_are_off() {
    let mut rig = led_by_1(3);
    rig.pass_for_where(&[1], 100, |_| false);
    let asked = rig.take(is_heartbeat);
    assert!(!asked.is_empty());
    for letter in asked {
        assert!(matches!(
            letter.message,
            Message::Heartbeat {
                lease: Duration::ZERO,
                ..
            }
        ));
    }
}
