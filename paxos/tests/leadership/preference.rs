//! Which node should lead: the one that a user has named, else one of the highest priority.

use super::*;

fn with_priorities(priorities: &[u8]) -> Rig {
    let members = (1..).zip(priorities);
    let members =
        members.map(|(node, priority)| paxos::Member::voter(NodeId(node), "").with_priority(*priority));
    let config = Config {
        pin_storages: false,
        ..Config::default()
    };
    Rig::of(paxos::Membership::new(members), config)
}

#[test]
fn the_member_of_the_highest_priority_leads_after_a_while() {
    let mut rig = with_priorities(&[0, 0, 1]);
    rig.elect(1);
    rig.pass(1_000);
    assert_eq!(rig.leader(), Some(1), "not at once");
    rig.pass(2_000);
    assert_eq!(rig.leader(), Some(3));
}

#[test]
fn hand_overs_that_come_to_nothing_become_rare() {
    // With leases every one of them costs a new ballot.
    let members = [(1, 0), (2, 0), (3, 1)];
    let members = members.map(|(node, priority)| {
        let member = paxos::Member::voter(NodeId(node), "");
        member.with_priority(priority)
    });
    let lease = Lease {
        duration: Duration::from_millis(500),
        max_drift_permille: 0,
    };
    let config = Config {
        pin_storages: false,
        lease: Some(lease),
        ..Config::default()
    };
    let mut rig = Rig::of(paxos::Membership::new(members), config);
    rig.elect(1);
    let is_take_over = |letter: &Letter| matches!(letter.message, Message::TakeOver { .. });
    rig.pass_for_where(&[1, 2, 3], 60_000, |letter| !is_take_over(letter));
    let ballot = rig.status(1).leader.expect("it leads");
    assert_eq!(ballot.node, NodeId(1));
    assert!((2..10).contains(&ballot.round), "{ballot}");
}

#[test]
fn while_it_is_away_the_next_one_leads_and_it_comes_back() {
    let mut rig = with_priorities(&[0, 1, 2]);
    rig.elect(1);
    rig.crash(3);
    rig.pass_for(&[1, 2], 3_000);
    assert_eq!(rig.leader(), Some(2));
    rig.restart(3);
    rig.pass(3_000);
    assert_eq!(rig.leader(), Some(3));
}

#[test]
fn among_equals_leadership_stays_where_it_is() {
    let mut rig = with_priorities(&[1, 1, 0]);
    rig.elect(2);
    let ballot = rig.status(2).leader;
    rig.pass(10_000);
    assert_eq!(rig.status(2).leader, ballot);
}

#[test]
fn a_retiring_leader_hands_over_to_the_highest_priority() {
    let mut rig = with_priorities(&[9, 1, 2, 1]);
    rig.elect(1);
    rig.pass(200);
    rig.transfer(1, None);
    rig.settle();
    assert_eq!(rig.leader(), Some(3));
}

#[test]
fn who_a_user_has_named_leads_on() {
    for asked in 1..=3 {
        let mut rig = with_priorities(&[1, 1, 0]);
        rig.elect(1);
        rig.pass(200);
        rig.transfer(asked, Some(3));
        rig.pass(60_000);
        assert_eq!(rig.leader(), Some(3), "asked at {asked}");
    }
}

#[test]
fn a_leader_that_a_user_names_stays() {
    for asked in 1..=3 {
        let mut rig = with_priorities(&[0, 1, 1]);
        rig.elect(1);
        rig.pass(200);
        rig.transfer(asked, Some(1));
        rig.pass(60_000);
        assert_eq!(rig.leader(), Some(1), "asked at {asked}");
    }
}

#[test]
fn a_leader_that_a_user_names_stays_although_it_is_told_late() {
    let is_told = |letter: &Letter| matches!(letter.message, Message::TransferLeadership { .. });
    let mut rig = with_priorities(&[0, 1, 1]);
    rig.elect(1);
    rig.pass(200);
    let token = rig.transfer(2, Some(1));
    rig.pass_for_where(&[1, 2, 3], 100, |letter| !is_told(letter));
    assert_eq!(rig.take(is_told).len(), 1);
    assert_eq!(rig.ending(token), None, "nobody knows whether it was told");
    rig.pass(60_000);
    assert_eq!(rig.ending(token), Some(Ending::Transferred(Ok(NodeId(1)))));
    assert_eq!(rig.leader(), Some(1));
}

#[test]
fn whoever_names_the_leader_hears_when_it_is_not_told() {
    let is_told = |letter: &Letter| matches!(letter.message, Message::TransferLeadership { .. });
    let mut rig = led_by_1(3);
    let token = rig.transfer(2, Some(1));
    rig.pass_for_where(&[1, 2, 3], 5_000, |letter| !is_told(letter));
    assert_eq!(
        rig.ending(token),
        Some(Ending::Transferred(Err(TransferRejection::TimedOut)))
    );
}

#[test]
fn what_a_user_has_said_ends_with_that_leadership() {
    let mut rig = with_priorities(&[2, 1, 0]);
    rig.elect(1);
    rig.pass(200);
    rig.transfer(1, Some(3));
    rig.pass(10_000);
    rig.crash(3);
    rig.pass_for(&[1, 2], 5_000);
    rig.restart(3);
    rig.pass(10_000);
    assert_eq!(rig.leader(), Some(1));
}

#[test]
fn what_a_user_has_said_ends_with_new_priorities() {
    let mut rig = with_priorities(&[2, 1, 0]);
    rig.elect(1);
    rig.pass(200);
    rig.transfer(1, Some(3));
    rig.pass(10_000);
    let priority = paxos::Change::SetPriority {
        node: NodeId(2),
        priority: 3,
    };
    rig.change(3, &[priority], false);
    rig.pass(10_000);
    assert_eq!(rig.leader(), Some(2));
}

#[test]
fn a_better_node_that_cannot_take_over_is_tried_less_and_less_often() {
    let mut rig = with_priorities(&[0, 0, 1]);
    rig.elect(1);
    let mut tries = Vec::new();
    for second in 0..60 {
        rig.pass_for_where(&[1, 2, 3], 1_000, |letter| !is_take_over(letter));
        if !rig.take(is_take_over).is_empty() {
            tries.push(second);
        }
    }
    assert_eq!(rig.leader(), Some(1));
    assert!((3..8).contains(&tries.len()), "{tries:?}");
}
