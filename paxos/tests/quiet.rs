//! Quiet groups, played by hand on the protocol core: when a group rests, what wakes it, and that nothing is missed.
#![cfg(feature = "testing")]

use paxos::{
    Change, NodeId,
    core::{Config, Input, Message, Phase, Standing},
    testing::sim::{Ending, Letter, Rig},
};

/// So many nodes that all hear each other, led by node 1.
fn watched(nodes: u64) -> Rig {
    let mut rig = Rig::new(nodes);
    for (node, peer) in pairs(nodes) {
        rig.step(node, Input::PeerAlive(NodeId(peer)));
    }
    rig.elect(1);
    rig
}

fn resting(nodes: u64) -> Rig {
    let mut rig = watched(nodes);
    rig.pass(1_500);
    assert!(all_rest(&rig, nodes), "{}", rig.transcript());
    rig
}

fn pairs(nodes: u64) -> impl Iterator<Item = (u64, u64)> {
    let all = move |node| (1..=nodes).map(move |peer| (node, peer));
    (1..=nodes).flat_map(all).filter(|(node, peer)| node != peer)
}

fn all_rest(rig: &Rig, nodes: u64) -> bool {
    (1..=nodes).all(|node| rig.status(node).resting)
}

/// The nodes in `by` do not hear `silent` any more.
fn fall_silent(rig: &mut Rig, silent: u64, by: &[u64]) {
    for node in by {
        rig.step(*node, Input::PeerSilent(NodeId(silent)));
    }
}

fn is_rest(letter: &Letter) -> bool {
    matches!(letter.message, Message::Rest { .. })
}

#[test]
fn a_group_without_anything_to_do_falls_silent() {
    let mut rig = resting(3);
    let said = rig.transcript().len();
    rig.pass(60_000);
    assert_eq!(rig.transcript().len(), said, "nobody did anything for a minute");
    assert_eq!(rig.leader(), Some(1));
}

#[test]
fn a_group_whose_nodes_nobody_watches_never_rests() {
    let mut rig = Rig::new(3);
    rig.elect(1);
    rig.pass(5_000);
    assert!((1..=3).all(|node| !rig.status(node).resting));
}

#[test]
fn a_configuration_without_rest_is_heeded() {
    let config = Config {
        rest_after_heartbeats: 0,
        ..Config::default()
    };
    let mut rig = Rig::with(3, config);
    for (node, peer) in pairs(3) {
        rig.step(node, Input::PeerAlive(NodeId(peer)));
    }
    rig.elect(1);
    rig.pass(5_000);
    assert!((1..=3).all(|node| !rig.status(node).resting));
}

#[test]
fn a_single_node_rests_too() {
    let mut rig = resting(1);
    let write = rig.propose(1, b"a");
    assert!(matches!(rig.ending(write), Some(Ending::Applied(_))));
}

#[test]
fn a_command_or_a_read_at_any_node_wakes_the_group_which_rests_again_after() {
    for node in 1..=3 {
        let mut rig = resting(3);
        let write = rig.propose(node, b"a");
        rig.settle();
        assert!(matches!(rig.ending(write), Some(Ending::Applied(_))), "at once");
        rig.pass(1_500);
        assert!((1..=3).all(|node| rig.applied(node) == ["a"]));
        assert!(all_rest(&rig, 3), "{}", rig.transcript());
        let read = rig.read(node);
        rig.settle();
        assert!(matches!(rig.ending(read), Some(Ending::Read(_))), "at once");
        rig.pass(1_500);
        assert!(all_rest(&rig, 3), "{}", rig.transcript());
    }
}

#[test]
fn a_group_does_not_rest_while_a_peer_that_lives_lacks_something() {
    let mut rig = watched(3);
    rig.cut_one_way(1, 3);
    rig.propose(1, b"a");
    rig.pass_for(&[1, 2], 5_000);
    assert!(!rig.status(1).resting);
    rig.heal();
    rig.pass_for(&[1, 2], 1_500);
    assert_eq!(rig.applied(3), ["a"]);
    assert!(rig.status(1).resting && rig.status(3).resting);
}

#[test]
fn the_leader_waits_until_every_peer_has_said_that_it_rests() {
    let mut rig = watched(3);
    rig.pass_for_where(&[1], 5_000, |letter| !(is_rest(letter) && letter.to == 3));
    assert!(
        !rig.status(1).resting,
        "3 would miss the leader and stand for election"
    );
    rig.take(|letter| is_rest(letter) && letter.to == 3);
    rig.pass_for(&[1], 200);
    assert!(all_rest(&rig, 3));
}

#[test]
fn a_dead_peer_keeps_no_group_awake_and_is_brought_up_to_date_when_it_is_heard_again() {
    let mut rig = watched(3);
    rig.isolate(3);
    rig.propose(1, b"a");
    rig.pass_for(&[1, 2], 2_000);
    assert!(!rig.status(1).resting, "3 may come back at any moment");
    fall_silent(&mut rig, 3, &[1, 2]);
    rig.pass_for(&[1, 2], 1_500);
    assert!(rig.status(1).resting && rig.status(2).resting);
    rig.heal();
    for node in [1, 2] {
        rig.step(node, Input::PeerAlive(NodeId(3)));
    }
    rig.pass_for(&[1, 2], 1_500);
    assert_eq!(rig.applied(3), ["a"]);
    assert!(rig.status(1).resting);
}

#[test]
fn a_member_that_starts_for_the_first_time_while_the_group_rests_is_told_who_the_others_are() {
    let mut rig = watched(3);
    rig.join(4);
    rig.crash(4);
    let node = NodeId(4);
    let address = String::from("n4");
    rig.change(1, &[Change::AddLearner { node, address }], false);
    rig.pass(500);
    fall_silent(&mut rig, 4, &[1, 2, 3]);
    rig.pass(1_500);
    assert!(all_rest(&rig, 3), "{}", rig.transcript());
    rig.restart(4);
    for peer in 1..=3 {
        rig.step(peer, Input::Connected(node));
    }
    rig.pass_for_where(&[1, 2, 3], 2_000, |letter| letter.to != 4);
    assert!(
        !rig.status(1).resting,
        "4 may know nobody, and be unable to say so"
    );
    rig.take(|letter| letter.to == 4);
    rig.pass(1_000);
    assert_eq!(rig.status(4).standing, Standing::Learner);
}

/// It was back, without a disk, before anybody missed it: its node is reached, but knows nobody to answer.
#[test]
fn a_member_that_came_back_before_it_was_missed_and_cannot_answer_is_told_who_the_others_are() {
    let mut rig = watched(4);
    let (node, address) = (NodeId(2), String::from("elsewhere"));
    rig.change(1, &[Change::SetAddress { node, address }], false);
    rig.pass(500);
    rig.isolate(4);
    rig.step(1, Input::Connected(NodeId(4)));
    fall_silent(&mut rig, 4, &[1, 2, 3]);
    rig.pass_for_where(&[1, 2, 3], 3_000, |letter| letter.to != 4);
    assert!(!rig.status(1).resting, "4 may know nobody");
    rig.step(1, Input::Disconnected(NodeId(4)));
    rig.pass_for(&[1, 2, 3], 3_000);
    assert!(rig.status(1).resting, "4 is gone");
}

#[test]
fn while_a_group_rests_a_member_that_is_reached_and_falls_silent_wakes_it() {
    let mut rig = resting(3);
    rig.isolate(3);
    rig.step(1, Input::Connected(NodeId(3)));
    assert!(rig.status(1).resting, "3 is heard");
    fall_silent(&mut rig, 3, &[1, 2]);
    assert!(!rig.status(1).resting, "3 may know nobody");
}

#[test]
fn a_leader_without_a_quorum_of_living_nodes_does_not_go_on_resting() {
    let mut rig = resting(3);
    rig.isolate(1);
    fall_silent(&mut rig, 2, &[1]);
    assert!(rig.status(1).resting, "with 3 it has a quorum");
    fall_silent(&mut rig, 3, &[1]);
    rig.pass_for(&[1], 1_000);
    assert_ne!(rig.status(1).phase, Phase::Leader);
}

#[test]
fn a_quiet_group_has_a_new_leader_as_soon_as_a_busy_one() {
    let mut rig = resting(3);
    rig.crash(1);
    rig.pass_for(&[2, 3], 500);
    fall_silent(&mut rig, 1, &[2, 3]);
    rig.pass_for(&[2, 3], 600);
    let leader = rig.leader().expect("within two election timeouts of the crash");
    assert_ne!(leader, 1);
    let write = rig.propose(leader, b"goes on");
    rig.settle();
    assert!(matches!(rig.ending(write), Some(Ending::Applied(_))));
}

#[test]
fn a_leader_that_restarted_unnoticed_is_not_missed_for_ever() {
    let mut rig = resting(3);
    rig.crash(1);
    rig.restart(1);
    rig.pass(2_000);
    let leader = rig
        .leader()
        .expect("the one that restarted asks, and the others see that it leads no more");
    let write = rig.propose(leader, b"goes on");
    rig.settle();
    assert!(matches!(rig.ending(write), Some(Ending::Applied(_))));
}

#[test]
fn a_leader_that_is_gone_from_a_node_that_lives_is_replaced_when_somebody_needs_it() {
    let mut rig = resting(3);
    rig.crash(1);
    rig.pass_for(&[2, 3], 60_000);
    assert!(rig.status(2).resting, "nobody needs a leader");
    let write = rig.propose(2, b"goes on");
    rig.pass_for(&[2, 3], 4_000);
    assert!(
        matches!(rig.ending(write), Some(Ending::Applied(_))),
        "{}",
        rig.transcript()
    );
}

#[test]
fn a_fresh_replica_wakes_the_group_and_learns_who_leads() {
    let mut rig = resting(3);
    rig.crash(3);
    rig.restart(3);
    for peer in [1, 2] {
        rig.step(3, Input::PeerAlive(NodeId(peer)));
    }
    rig.pass(3_000);
    assert_eq!(rig.leader(), Some(1), "nobody is deposed for it");
    assert_eq!(rig.status(3).leader.map(|ballot| ballot.node), Some(NodeId(1)));
    assert!(all_rest(&rig, 3));
}
