//! Directed scenarios of leadership: handing it over, and leases.
//!
//! The [`Rig`] checks the safety invariants on every write and every message; a violation fails the test with the
//! transcript. Its clock stands still unless a scenario moves it, and everything is delivered at once: what happens in
//! [`Rig::settle`] needs no timer.
#![cfg(feature = "testing")]

use core::time::Duration;

use paxos::{
    NodeId,
    core::{Config, Input, Lease, Message, Phase, Token, TransferRejection},
    testing::sim::{Ending, Letter, Rig},
};

fn rig_with(nodes: u64, config: Config) -> Rig {
    // A bug may be planted, to see that the scenario made for it fails.
    #[cfg(paxos_planted)]
    if let Ok(name) = std::env::var("PAXOS_PLANT")
        && !name.is_empty()
    {
        paxos::planted::plant(&name).expect("the name of a bug");
    }
    Rig::with(nodes, config)
}

/// Led by n1, who has heard from everybody.
fn led_by_1(nodes: u64) -> Rig {
    led_by_1_with(nodes, Config::default())
}

fn led_by_1_with(nodes: u64, config: Config) -> Rig {
    let mut rig = rig_with(nodes, config);
    rig.elect(1);
    rig.pass(200);
    rig
}

fn is_take_over(letter: &Letter) -> bool {
    matches!(letter.message, Message::TakeOver { .. })
}

fn is_accept(letter: &Letter) -> bool {
    matches!(letter.message, Message::Accept { .. })
}

fn happened(rig: &Rig, token: Token) -> bool {
    matches!(rig.ending(token), Some(Ending::Applied(_)))
}

fn transferred(rig: &Rig, token: Token) -> Option<Result<u64, TransferRejection>> {
    match rig.ending(token)? {
        Ending::Transferred(result) => Some(result.map(|NodeId(node)| node)),
        other => panic!("{token:?} is no transfer: {other:?}"),
    }
}

mod transfer {
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
}

mod leases {
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
}

mod preference {
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
}
