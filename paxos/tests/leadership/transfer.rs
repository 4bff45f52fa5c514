//! Handing leadership over on request.

use super::*;

#[test]
fn leadership_goes_to_whom_the_user_names_and_needs_no_timer() {
    let mut rig = led_by_1(3);
    let token = rig.transfer(1, Some(3));
    rig.settle();
    assert_eq!(transferred(&rig, token), Some(Ok(3)));
    assert_eq!(rig.leader(), Some(3));
}

#[test]
fn any_node_may_be_asked() {
    let mut rig = led_by_1(3);
    let token = rig.transfer(2, Some(3));
    rig.settle();
    assert_eq!((transferred(&rig, token), rig.leader()), (Some(Ok(3)), Some(3)));
    let token = rig.transfer(2, Some(2));
    rig.settle();
    assert_eq!((transferred(&rig, token), rig.leader()), (Some(Ok(2)), Some(2)));
}

/// W13.
#[test]
fn a_leader_that_retires_leads_no_longer() {
    let mut rig = led_by_1(3);
    let token = rig.transfer(1, None);
    rig.settle();
    let leader = rig.leader();
    assert!(matches!(leader, Some(2 | 3)));
    assert_eq!(transferred(&rig, token).map(Result::ok), Some(leader));
    assert_eq!(rig.status(1).phase, Phase::Follower);
    rig.pass(5_000);
    assert_eq!(rig.leader(), leader, "and stays retired");
}

#[test]
fn what_is_so_already_is_answered_at_once() {
    let mut rig = led_by_1(3);
    let to_itself = rig.transfer(1, Some(1));
    let retire_a_follower = rig.transfer(2, None);
    for token in [to_itself, retire_a_follower] {
        assert_eq!(transferred(&rig, token), Some(Ok(1)));
    }
    let to_the_leader = rig.transfer(2, Some(1));
    rig.settle();
    assert_eq!(
        transferred(&rig, to_the_leader),
        Some(Ok(1)),
        "when that has heard it"
    );
}

#[test]
fn commands_in_flight_and_those_that_wait_happen_once_and_in_order() {
    let mut rig = led_by_1(3);
    let mut tokens = vec![rig.propose(1, b"a"), rig.propose(2, b"x")];
    let accepts = rig.take(is_accept);
    rig.transfer(1, Some(2));
    tokens.push(rig.propose(1, b"b"));
    for accept in accepts {
        rig.deliver(accept);
    }
    tokens.push(rig.propose(1, b"c"));
    tokens.push(rig.propose(2, b"y"));
    rig.settle();
    assert_eq!(rig.leader(), Some(2));
    assert!(
        tokens.iter().all(|token| happened(&rig, *token)),
        "{}",
        rig.transcript()
    );
    let applied = rig.applied(2);
    let of = |commands: [&str; 3]| {
        applied
            .iter()
            .filter(|command| commands.contains(command))
            .copied()
            .collect::<Vec<_>>()
    };
    assert_eq!(of(["a", "b", "c"]), ["a", "b", "c"]);
    assert_eq!(of(["x", "y", "-"]), ["x", "y"]);
    assert_eq!(applied.len(), 5);
}

#[test]
fn a_successor_is_told_only_when_it_holds_the_whole_log() {
    let mut rig = led_by_1(3);
    rig.hold_disk(2);
    rig.propose(1, b"a");
    rig.transfer(1, Some(2));
    rig.settle_where(|letter| !is_take_over(letter));
    assert!(rig.take(is_take_over).is_empty());
    rig.release_disk(2);
    rig.settle();
    assert_eq!(rig.leader(), Some(2));
}

#[test]
fn while_the_successor_catches_up_commands_go_on() {
    let mut rig = led_by_1(3);
    rig.hold_disk(2);
    rig.propose(1, b"a");
    rig.transfer(1, Some(2));
    let token = rig.propose(1, b"b");
    rig.settle();
    assert!(happened(&rig, token));
    assert_eq!(rig.leader(), Some(1));
}

#[test]
fn who_cannot_lead_is_refused_with_the_reason() {
    let mut rig = led_by_1(3);
    rig.crash(3);
    rig.pass_for(&[1, 2], 600);
    for (to, reason) in [
        (3, TransferRejection::NotAlive { node: NodeId(3) }),
        (9, TransferRejection::NotVoter { node: NodeId(9) }),
    ] {
        let (own, others) = (rig.transfer(1, Some(to)), rig.transfer(2, Some(to)));
        rig.settle();
        assert_eq!(transferred(&rig, own), Some(Err(reason)));
        assert_eq!(transferred(&rig, others), Some(Err(reason)));
    }
}

#[test]
fn nobody_retires_who_is_alone() {
    let mut rig = led_by_1(1);
    let token = rig.transfer(1, None);
    assert_eq!(transferred(&rig, token), Some(Err(TransferRejection::NobodyElse)));
    assert_eq!(rig.leader(), Some(1));
}

#[test]
fn without_a_leader_there_is_nothing_to_hand_over() {
    let mut rig = rig_with(3, Config::default());
    let token = rig.transfer(1, Some(2));
    assert_eq!(transferred(&rig, token), Some(Err(TransferRejection::NoLeader)));
}

#[test]
fn two_transfers_at_a_time_are_one_too_many() {
    let mut rig = led_by_1(3);
    let (first, same, other) = (
        rig.transfer(1, Some(2)),
        rig.transfer(1, Some(2)),
        rig.transfer(1, Some(3)),
    );
    rig.settle();
    assert_eq!(transferred(&rig, first), Some(Ok(2)));
    assert_eq!(transferred(&rig, same), Some(Ok(2)));
    let under_way = TransferRejection::UnderWay { to: NodeId(2) };
    assert_eq!(transferred(&rig, other), Some(Err(under_way)));
}

#[test]
fn a_transfer_that_comes_to_nothing_is_given_up_and_the_leader_goes_on() {
    let mut rig = led_by_1(3);
    let token = rig.transfer(1, Some(2));
    let command = rig.propose(1, b"a");
    rig.pass_for_where(&[1, 2, 3], 600, |letter| !is_take_over(letter));
    assert_eq!(transferred(&rig, token), Some(Err(TransferRejection::TimedOut)));
    assert!(happened(&rig, command));
    assert_eq!(rig.leader(), Some(1));
}

#[test]
fn a_successor_that_was_told_twice_stands_once() {
    let mut rig = led_by_1(3);
    rig.transfer(1, Some(2));
    let told = rig.take(is_take_over);
    rig.deliver(told[0].clone());
    rig.settle();
    let ballot = rig.status(2).leader;
    assert_eq!(rig.leader(), Some(2));
    rig.deliver(told[0].clone());
    rig.settle();
    assert_eq!(rig.status(2).leader, ballot);
}

#[test]
fn being_told_by_a_leader_of_the_past_changes_nothing() {
    let mut rig = led_by_1(3);
    rig.transfer(1, Some(2));
    let told = rig.take(is_take_over);
    rig.isolate(1);
    rig.elect(3);
    rig.heal();
    rig.pass(500);
    rig.deliver(told[0].clone());
    rig.settle();
    assert_eq!(rig.leader(), Some(3));
}

#[test]
fn reads_go_on_while_a_transfer_is_open() {
    let mut rig = led_by_1(3);
    rig.transfer(1, Some(2));
    let (own, others) = (rig.read(1), rig.read(3));
    rig.settle_where(|letter| !is_take_over(letter));
    assert!(rig.ending(own).is_some() && rig.ending(others).is_some());
}
