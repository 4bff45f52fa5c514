//! Directed scenarios: what has gone wrong in other systems, played by hand on the protocol core.
//!
//! The [`Rig`] checks the safety invariants on every write and every message; a violation fails the test with the
//! transcript.
#![cfg(feature = "testing")]

use paxos::{
    Ballot, NodeId, Slot,
    core::{Config, Input, Message, Phase, Rejection, Token},
    testing::sim::{Ending, Letter, Rig},
};

fn rig(nodes: u64) -> Rig {
    rig_with(nodes, Config::default())
}

/// A bug may be planted, to see that the scenario made for it fails.
fn rig_with(nodes: u64, config: Config) -> Rig {
    #[cfg(paxos_planted)]
    if let Ok(name) = std::env::var("PAXOS_PLANT")
        && !name.is_empty()
    {
        paxos::planted::plant(&name).expect("the name of a bug");
    }
    Rig::with(nodes, config)
}

fn led_by(leader: u64, nodes: u64) -> Rig {
    let mut rig = rig(nodes);
    rig.elect(leader);
    rig
}

fn is_accept(letter: &Letter) -> bool {
    matches!(letter.message, Message::Accept { .. })
}

fn is_accepted(letter: &Letter) -> bool {
    matches!(letter.message, Message::Accepted { .. })
}

fn is_prepare(letter: &Letter) -> bool {
    matches!(letter.message, Message::Prepare { .. })
}

fn is_promise(letter: &Letter) -> bool {
    matches!(letter.message, Message::Promise { .. })
}

fn happened(rig: &Rig, token: Token) -> bool {
    matches!(rig.ending(token), Some(Ending::Applied(_)))
}

mod restoring {
    use super::*;

    #[test]
    fn a_replica_whose_machine_is_away_votes_and_applies_later() {
        let mut rig = led_by(1, 3);
        rig.isolate(3);
        rig.step(2, Input::HoldApply(true));
        let token = rig.propose(1, b"a");
        rig.settle();
        assert!(happened(&rig, token), "chosen with the vote of 2");
        rig.pass_for(&[1, 2], 500);
        assert_eq!(rig.applied(2), Vec::<&str>::new());
        rig.step(2, Input::HoldApply(false));
        rig.settle();
        assert_eq!(rig.applied(2), ["a"]);
    }

    #[test]
    fn a_replica_whose_machine_is_away_does_not_stand_for_election() {
        let mut rig = led_by(1, 3);
        rig.step(2, Input::HoldApply(true));
        rig.crash(1);
        rig.pass_for(&[2, 3], 5_000);
        assert_eq!(rig.leader(), Some(3));
    }
}

mod durability {
    use super::*;

    #[test]
    fn an_accept_is_answered_only_after_the_sync() {
        let mut rig = led_by(1, 3);
        rig.hold_disk(2);
        rig.propose(1, b"a");
        rig.settle_where(|letter| !is_accepted(letter));
        assert!(
            rig.take(|letter| letter.from == 2 && is_accepted(letter))
                .is_empty()
        );
        rig.release_disk(2);
        assert_eq!(
            rig.take(|letter| letter.from == 2 && is_accepted(letter)).len(),
            1
        );
    }

    #[test]
    fn a_promise_is_given_only_after_the_sync() {
        let mut rig = rig(3);
        rig.hold_disk(2);
        rig.hold_disk(3);
        rig.pass_for(&[1], 1_200);
        assert_eq!(rig.status(1).phase, Phase::Candidate);
        rig.release_disk(2);
        rig.settle();
        assert_eq!(rig.status(1).phase, Phase::Leader);
    }

    #[test]
    fn a_candidate_prepares_only_after_its_own_promise_is_durable() {
        let mut rig = rig(3);
        let of_its_canvass = |letter: &Letter| {
            letter.from == 1 && !is_prepare(letter) || matches!(letter.message, Message::CanvassReply { .. })
        };
        rig.hold_disk(1);
        rig.pass_for_where(&[1], 1_200, of_its_canvass);
        assert_eq!(rig.status(1).phase, Phase::Candidate);
        assert!(rig.take(is_prepare).is_empty());
        rig.release_disk(1);
        rig.settle();
        assert_eq!(rig.status(1).phase, Phase::Leader);
    }

    #[test]
    fn a_ballot_is_never_used_in_two_lives() {
        let mut rig = led_by(1, 3);
        let first = rig.status(1).leader;
        rig.crash(1);
        rig.restart(1);
        rig.elect(1);
        assert!(rig.status(1).leader > first);
    }

    #[test]
    fn what_was_chosen_outlives_a_crash_of_everybody() {
        let mut rig = led_by(1, 3);
        let tokens = [b"a", b"b", b"c"].map(|command| rig.propose(1, command));
        rig.settle();
        assert!(tokens.into_iter().all(|token| happened(&rig, token)));
        for node in 1..=3 {
            rig.crash(node);
        }
        for node in 1..=3 {
            rig.restart(node);
        }
        rig.pass(3_000);
        for node in 1..=3 {
            assert_eq!(rig.applied(node), ["a", "b", "c"], "node {node}");
        }
    }

    #[test]
    fn a_node_that_lost_unsynced_writes_catches_up() {
        let mut rig = led_by(1, 3);
        rig.hold_disk(2);
        let token = rig.propose(1, b"a");
        rig.settle();
        assert!(happened(&rig, token), "two of three are a quorum");
        rig.crash(2);
        rig.release_disk(2);
        rig.restart(2);
        rig.pass(1_000);
        assert_eq!(rig.applied(2), ["a"]);
    }

    #[test]
    fn what_a_restart_finds_on_the_disk_is_acknowledged() {
        // n2 accepts and crashes before it can say so. With n3 gone, its word is needed.
        let mut rig = led_by(1, 3);
        rig.crash(3);
        let token = rig.propose(1, b"a");
        rig.settle_where(|letter| !is_accepted(letter));
        rig.take(is_accepted);
        rig.crash(2);
        rig.restart(2);
        rig.pass_for(&[1], 300);
        assert!(happened(&rig, token));
    }

    #[test]
    fn learning_never_lowers_a_promise() {
        let mut rig = led_by(1, 3);
        rig.isolate(3);
        rig.propose(1, b"a");
        rig.settle();
        rig.heal();
        let ballot = Ballot {
            round: 77,
            node: NodeId(2),
        };
        let message = Message::Prepare {
            ballot,
            from: Slot(1),
            released: None,
        };
        rig.deliver(Letter {
            from: 2,
            to: 3,
            message,
        });
        rig.take(|_| true);
        rig.pass(3_000);
        assert_eq!(rig.applied(3), ["a"]);
        assert!(rig.disk(3).hard.promised >= ballot);
    }
}

mod choosing {
    use super::*;

    #[test]
    fn a_proposal_whose_user_gave_up_keeps_its_slot() {
        let mut rig = led_by(1, 3);
        rig.isolate(1);
        let first = rig.propose(1, b"first");
        rig.step(1, Input::Cancel { token: first });
        rig.propose(1, b"second");
        assert_eq!(rig.ending(first), Some(Ending::Unknown), "it may be chosen later");
        rig.heal();
        rig.pass(3_000);
        for node in 1..=3 {
            assert_eq!(rig.applied(node), ["first", "second"], "node {node}");
        }
    }

    #[test]
    fn late_acks_of_an_old_ballot_count_for_nothing() {
        // n2 accepts two slots of n1's first ballot; n1 itself forgets them, and the acks are late.
        let mut rig = led_by(1, 3);
        rig.hold_disk(1);
        rig.isolate(3);
        rig.propose(1, b"old 1");
        rig.propose(1, b"old 2");
        rig.settle_where(|letter| !is_accepted(letter));
        let late = rig.take(is_accepted);
        assert!(!late.is_empty());
        rig.crash(1);
        rig.release_disk(1);
        rig.restart(1);
        // The others go on without n2; n1 leads again and proposes for the second slot, but nobody hears it.
        rig.heal();
        rig.isolate(2);
        rig.elect(3);
        rig.propose(3, b"new 1");
        rig.settle();
        rig.pass_for(&[3], 200);
        rig.crash(3);
        rig.restart(3);
        rig.elect(1);
        rig.heal();
        let token = rig.propose(1, b"new 2");
        rig.take(is_accept);
        for letter in late {
            rig.deliver(letter);
        }
        assert_eq!(rig.ending(token), None, "only n1 has accepted it");
        rig.pass(3_000);
        assert!(happened(&rig, token));
    }

    #[test]
    fn being_one_slot_behind_proves_nothing() {
        // n2 holds a value for slot 1 that was never chosen; a later leader has chosen another one there.
        let mut rig = led_by(1, 5);
        for node in [3, 4, 5] {
            rig.cut(1, node);
            rig.cut(2, node);
        }
        rig.propose(1, b"never chosen");
        rig.settle();
        rig.crash(1);
        rig.elect(3);
        rig.propose(3, b"x");
        rig.propose(3, b"y");
        rig.settle();
        rig.heal();
        rig.pass(2_000);
        assert_eq!(rig.applied(2), ["x", "y"]);
    }

    #[test]
    fn a_promise_in_several_chunks_loses_no_entry() {
        for lost_chunk in [None, Some(0), Some(1), Some(3)] {
            let config = Config {
                max_message_bytes: 100,
                ..Config::default()
            };
            let mut rig = rig_with(3, config);
            rig.elect(1);
            rig.hold_disk(1);
            rig.isolate(3);
            for command in [b"a", b"b", b"c", b"d"] {
                rig.propose(1, command);
            }
            rig.settle();
            assert_eq!(rig.disk(2).entries.len(), 4);
            rig.heal();
            rig.isolate(1);
            let mut chunks = 0;
            while rig.status(3).phase != Phase::Leader {
                rig.pass_for_where(&[3], 1, |letter| !is_promise(letter));
                for letter in rig.take(is_promise) {
                    if lost_chunk != Some(chunks) {
                        rig.deliver(letter);
                    }
                    chunks += 1;
                }
            }
            assert!(chunks >= 4);
            rig.pass(1_000);
            assert_eq!(rig.applied(3), ["a", "b", "c", "d"], "lost chunk: {lost_chunk:?}");
        }
    }

    #[test]
    fn an_accept_for_a_slot_that_is_chosen_already_is_answered() {
        let mut rig = led_by(1, 3);
        rig.propose(1, b"a");
        let accepts = rig.take(is_accept);
        for letter in &accepts {
            rig.deliver(letter.clone());
        }
        rig.pass(500);
        assert_eq!(rig.status(2).chosen, Slot(1));
        rig.deliver(accepts[0].clone());
        assert_eq!(
            rig.take(is_accepted).len(),
            1,
            "else the leader would wait for ever: {}",
            rig.transcript()
        );
    }

    #[test]
    fn pipelined_slots_lost_out_of_order_are_sent_again() {
        let mut rig = led_by(1, 3);
        let tokens = [b"a", b"b", b"c", b"d", b"e"].map(|command| rig.propose(1, command));
        let lost = |letter: &Letter| {
            matches!(
                letter.message,
                Message::Accept {
                    first: Slot(2 | 4),
                    ..
                }
            )
        };
        assert_eq!(rig.take(lost).len(), 4);
        rig.pass(1_000);
        assert!(tokens.into_iter().all(|token| happened(&rig, token)));
        assert_eq!(rig.applied(3), ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn a_hole_is_filled_and_what_stands_above_it_is_kept() {
        // n2's command in slot 2 survives on n3 only; the entry of slot 1 is lost with n1.
        let mut rig = led_by(1, 3);
        rig.hold_disk(1);
        rig.propose(1, b"lost");
        rig.take(is_accept);
        let kept = rig.propose(2, b"kept");
        rig.settle_where(|letter| !is_accept(letter) || letter.to == 3);
        rig.crash(1);
        rig.take(|_| true);
        assert_eq!(rig.disk(3).entries.keys().copied().collect::<Vec<_>>(), [Slot(2)]);
        rig.elect(2);
        rig.pass(1_000);
        assert!(happened(&rig, kept));
        assert_eq!(rig.applied(3), ["kept"]);
        assert_eq!(rig.chosen(), Slot(2));
    }

    #[test]
    fn duplicates_and_seconds_late_messages_do_nothing() {
        let mut rig = led_by(1, 3);
        for command in [b"a", b"b", b"c"] {
            rig.propose(1, command);
        }
        let mut old = rig.take(|_| true);
        for letter in old.clone() {
            rig.deliver(letter);
        }
        old.extend(rig.take(|_| true));
        for letter in old.clone() {
            rig.deliver(letter);
        }
        rig.settle();
        rig.crash(1);
        rig.elect(2);
        rig.restart(1);
        rig.propose(2, b"d");
        for letter in old {
            rig.deliver(letter);
        }
        rig.pass(3_000);
        for node in 1..=3 {
            assert_eq!(rig.applied(node), ["a", "b", "c", "d"], "node {node}");
        }
    }
}

mod clients {
    use super::*;

    #[test]
    fn equal_commands_of_two_nodes_are_two_commands() {
        let mut rig = led_by(1, 3);
        let (one, other) = (rig.propose(2, b"same"), rig.propose(3, b"same"));
        rig.pass(1_000);
        assert!(happened(&rig, one) && happened(&rig, other));
        assert_eq!(rig.applied(1), ["same", "same"]);
    }

    #[test]
    fn a_proposal_that_never_left_its_node_certainly_did_not_happen() {
        let mut rig = rig(3);
        let token = rig.propose(1, b"a");
        rig.step(1, Input::Cancel { token });
        assert_eq!(rig.ending(token), Some(Ending::Rejected(Rejection::Expired)));
        rig.elect(1);
        rig.pass(1_000);
        assert!(rig.applied(1).is_empty());
    }

    #[test]
    fn a_proposal_that_left_its_node_ends_unknown_and_happens_once() {
        let mut rig = led_by(1, 3);
        let token = rig.propose(2, b"a");
        rig.step(2, Input::Cancel { token });
        assert_eq!(rig.ending(token), Some(Ending::Unknown));
        rig.pass(1_000);
        assert_eq!(rig.applied(2), ["a"]);
    }

    #[test]
    fn oversized_commands_are_refused_and_empty_ones_are_not() {
        let config = Config {
            max_command_bytes: 3,
            ..Config::default()
        };
        let mut rig = rig_with(3, config);
        rig.elect(1);
        let (large, empty) = (rig.propose(2, b"four"), rig.propose(2, b""));
        rig.pass(500);
        assert_eq!(rig.ending(large), Some(Ending::Rejected(Rejection::TooLarge)));
        assert!(happened(&rig, empty));
    }

    #[test]
    fn forwarded_proposals_keep_their_order_across_a_change_of_leader() {
        let mut rig = led_by(1, 3);
        let first = rig.propose(3, b"a");
        rig.settle();
        let rest = [b"b", b"c", b"d"].map(|command| rig.propose(3, command));
        rig.settle_where(|letter| matches!(&letter.message, Message::Forward { first: 3, .. }));
        rig.crash(1);
        rig.take(|_| true);
        rig.elect(2);
        rig.pass(2_000);
        assert!(happened(&rig, first) && rest.into_iter().all(|token| happened(&rig, token)));
        assert_eq!(rig.applied(2), ["a", "b", "c", "d"]);
    }
}

mod reads {
    use super::*;

    #[test]
    fn a_follower_reads_what_was_acknowledged_before() {
        let mut rig = led_by(1, 3);
        rig.isolate(3);
        rig.propose(1, b"a");
        rig.settle();
        rig.heal();
        let read = rig.read(3);
        rig.pass(1_000);
        assert_eq!(rig.ending(read), Some(Ending::Read(Slot(1))));
    }

    #[test]
    fn a_deposed_leader_that_does_not_know_it_answers_no_read() {
        let mut rig = led_by(1, 3);
        rig.isolate(1);
        let read = rig.read(1);
        rig.pass_for(&[2, 3], 3_000);
        let leader = rig.leader().expect("n2 or n3 leads at a higher ballot");
        let write = rig.propose(leader, b"a");
        rig.settle();
        assert!(happened(&rig, write));
        assert_eq!(rig.ending(read), None);
        rig.heal();
        rig.pass(3_000);
        assert_eq!(rig.ending(read), Some(Ending::Read(Slot(1))));
    }

    #[test]
    fn an_answer_to_an_earlier_life_answers_nothing() {
        let is_reply = |letter: &Letter| matches!(letter.message, Message::ReadIndexReply { .. });
        let mut rig = led_by(1, 3);
        rig.read(3);
        rig.settle_where(|letter| !is_reply(letter));
        let late = rig.take(is_reply);
        assert_eq!(late.len(), 1);
        rig.crash(3);
        rig.propose(1, b"a");
        rig.settle();
        rig.restart(3);
        rig.pass_for(&[1], 200);
        let read = rig.read(3);
        rig.take(|_| true);
        for letter in late {
            rig.deliver(letter);
        }
        assert_eq!(rig.ending(read), None);
        rig.pass(1_000);
        assert_eq!(rig.ending(read), Some(Ending::Read(Slot(1))));
    }
}

mod liveness {
    use super::*;

    fn writes(rig: &mut Rig, node: u64) -> bool {
        let token = rig.propose(node, b"alive");
        rig.pass(2_000);
        happened(rig, token)
    }

    #[test]
    fn quorum_loss_everybody_reaches_only_the_hub() {
        let mut rig = led_by(3, 5);
        for a in 2..=5 {
            for b in a + 1..=5 {
                rig.cut(a, b);
            }
        }
        rig.pass(10_000);
        assert_eq!(rig.leader(), Some(1), "only the hub sees a quorum");
        assert!(writes(&mut rig, 1));
    }

    #[test]
    fn constrained_election_the_hub_has_an_old_log() {
        let mut rig = led_by(3, 5);
        rig.isolate(1);
        rig.propose(3, b"a");
        rig.settle();
        rig.heal();
        rig.isolate(3);
        for (a, b) in [(2, 4), (2, 5), (4, 5)] {
            rig.cut(a, b);
        }
        rig.pass(10_000);
        assert_eq!(rig.leader(), Some(1), "only the hub sees a quorum");
        assert!(writes(&mut rig, 1));
        assert_eq!(rig.applied(1), ["a", "alive"]);
    }

    #[test]
    fn chained_the_ends_cannot_see_each_other() {
        let mut rig = led_by(1, 3);
        rig.cut(1, 3);
        rig.pass(5_000);
        assert!(writes(&mut rig, 2));
        let ballot = rig.status(2).leader;
        rig.pass(20_000);
        assert_eq!(rig.status(2).leader, ballot, "the leadership is stable");
    }

    #[test]
    fn a_leader_that_is_heard_but_hears_nobody_is_replaced() {
        let mut rig = led_by(1, 3);
        rig.cut_one_way(2, 1);
        rig.cut_one_way(3, 1);
        rig.pass(10_000);
        assert_ne!(rig.leader(), Some(1));
        assert!(writes(&mut rig, 2));
    }

    #[test]
    fn a_node_that_hears_nobody_disturbs_nobody() {
        let mut rig = led_by(1, 3);
        let ballot = rig.status(1).leader;
        rig.cut_one_way(1, 3);
        rig.cut_one_way(2, 3);
        rig.pass(10_000);
        assert_eq!(rig.status(1).leader, ballot);
        assert!(writes(&mut rig, 1));
    }

    #[test]
    fn a_node_that_was_away_for_long_catches_up() {
        let mut rig = led_by(1, 3);
        rig.crash(3);
        for _ in 0..50 {
            rig.propose(1, b"x");
        }
        rig.pass(1_000);
        rig.restart(3);
        rig.pass(2_000);
        assert_eq!(rig.applied(3).len(), 50);
    }

    #[test]
    fn one_node_is_a_cluster_and_one_of_two_is_not() {
        let mut one = rig(1);
        one.pass(2_000);
        assert!(writes(&mut one, 1));
        let mut two = rig(2);
        two.elect(1);
        two.crash(2);
        assert!(!writes(&mut two, 1));
    }
}
