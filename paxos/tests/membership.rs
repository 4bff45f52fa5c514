//! Directed scenarios of membership changes, of lost disks and of nodes that join, played by hand on the protocol core.
//!
//! The [`Rig`] checks the safety invariants on every write and every message; a violation fails the test with the
//! transcript.
#![cfg(feature = "testing")]

use std::time::Duration;

use paxos::{
    Ballot, Change, ChangeRejection, NodeId,
    core::{Config, Lease, Message, Phase, Standing, Token},
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

fn led_by(leader: u64, nodes: u64) -> Rig {
    plant();
    let mut rig = Rig::new(nodes);
    rig.elect(leader);
    rig
}

/// Leaders record disks, and admit new ones.
fn tended(leader: u64, nodes: u64) -> Rig {
    plant();
    let mut rig = Rig::tending(nodes, Config::default());
    rig.elect(leader);
    rig.pass(1_000);
    rig
}

fn add(node: u64) -> Change {
    Change::AddLearner {
        node: NodeId(node),
        address: format!("n{node}"),
    }
}

fn promote(node: u64) -> Change {
    Change::Promote { node: NodeId(node) }
}

fn remove(node: u64) -> Change {
    Change::Remove { node: NodeId(node) }
}

fn changed(rig: &Rig, token: Token) -> bool {
    matches!(rig.ending(token), Some(Ending::Changed(_)))
}

fn refusal(rig: &Rig, token: Token) -> Option<ChangeRejection> {
    match rig.ending(token) {
        Some(Ending::Refused(why)) => Some(why),
        _ => None,
    }
}

fn happened(rig: &Rig, token: Token) -> bool {
    matches!(rig.ending(token), Some(Ending::Applied(_)))
}

fn voters(rig: &Rig) -> Vec<u64> {
    rig.membership().voters().map(|node| node.0).collect()
}

fn is_accept(letter: &Letter) -> bool {
    matches!(letter.message, Message::Accept { .. })
}

fn is_accepted(letter: &Letter) -> bool {
    matches!(letter.message, Message::Accepted { .. })
}

fn is_drain(letter: &Letter) -> bool {
    matches!(letter.message, Message::Drain { .. } | Message::Drained { .. })
}

mod changing {
    use super::*;

    #[test]
    fn a_node_joins_learns_and_becomes_a_voter() {
        let mut rig = led_by(1, 3);
        rig.propose(1, b"before");
        rig.join(4);
        assert_eq!(rig.status(4).standing, Standing::Joining);
        let added = rig.change(1, &[add(4)], false);
        rig.pass(1_000);
        assert!(changed(&rig, added));
        assert_eq!(rig.applied(4), ["before"]);
        assert_eq!(rig.status(4).standing, Standing::Learner);
        let promoted = rig.change(2, &[promote(4)], false);
        rig.pass(500);
        assert!(changed(&rig, promoted), "any node may be asked");
        assert_eq!(voters(&rig), [1, 2, 3, 4]);
        rig.crash(2);
        let token = rig.propose(1, b"after");
        rig.pass(100);
        assert!(happened(&rig, token));
        assert_eq!(rig.applied(4), ["before", "after"]);
    }

    #[test]
    fn three_nodes_are_replaced_one_after_the_other() {
        let mut rig = led_by(1, 3);
        rig.propose(1, b"kept");
        for node in 1..=3 {
            let by = node + 3;
            rig.join(by);
            let leader = rig.leader().expect("somebody leads");
            let added = rig.change(leader, &[add(by)], false);
            rig.pass(1_000);
            let replaced = Change::Replace {
                node: NodeId(node),
                by: NodeId(by),
                address: String::new(),
            };
            let replaced = rig.change(leader, &[replaced], false);
            rig.pass(3_000);
            assert!(changed(&rig, added) && changed(&rig, replaced), "node {node}");
            rig.crash(node);
        }
        rig.pass(2_000);
        assert_eq!(voters(&rig), [4, 5, 6]);
        let leader = rig.leader().expect("one of the new ones leads");
        let token = rig.propose(leader, b"new");
        rig.pass(100);
        assert!(happened(&rig, token));
        assert_eq!(rig.applied(leader), ["kept", "new"]);
    }

    #[test]
    fn a_read_that_waits_when_its_leader_is_left_alone_is_answered() {
        let mut rig = led_by(1, 2);
        let removed = rig.change(1, &[remove(2)], false);
        rig.settle_where(is_drain);
        let read = rig.read(1);
        rig.settle_where(|letter| is_accept(letter) || is_accepted(letter));
        rig.pass(100);
        assert!(changed(&rig, removed));
        assert!(
            matches!(rig.ending(read), Some(Ending::Read(_))),
            "{}",
            rig.transcript()
        );
    }

    #[test]
    fn a_leader_that_removes_itself_hands_over() {
        let mut rig = led_by(1, 3);
        let removed = rig.change(1, &[remove(1)], false);
        rig.pass(1_000);
        assert!(changed(&rig, removed));
        assert_eq!(rig.status(1).standing, Standing::Removed);
        assert_ne!(rig.status(1).phase, Phase::Leader);
        let leader = rig.leader().expect("another one leads");
        let token = rig.propose(leader, b"a");
        rig.pass(100);
        assert!(happened(&rig, token));
    }

    #[test]
    fn a_leader_that_is_no_voter_any_more_is_succeeded_at_once_also_under_a_lease() {
        for change in [remove(1), Change::Demote { node: NodeId(1) }] {
            plant();
            let lease = Lease {
                duration: Duration::from_millis(500),
                max_drift_permille: 0,
            };
            let config = Config {
                lease: Some(lease),
                ..Config::default()
            };
            let mut rig = Rig::with(3, config);
            rig.elect(1);
            rig.pass(200);
            assert!(rig.holds_lease(1));
            let left = rig.change(1, &[change], false);
            rig.pass(10);
            assert!(changed(&rig, left), "{}", rig.transcript());
            let leader = rig.leader().expect("another one leads");
            assert_ne!(leader, 1);
            let token = rig.propose(leader, b"a");
            rig.pass(10);
            assert!(happened(&rig, token));
        }
    }

    #[test]
    fn a_removed_node_is_told_and_disturbs_nobody() {
        let mut rig = led_by(1, 3);
        rig.isolate(3);
        let removed = rig.change(1, &[remove(3)], false);
        rig.pass(1_000);
        assert!(changed(&rig, removed));
        rig.heal();
        rig.pass(3_000);
        assert_eq!(rig.status(3).standing, Standing::Removed);
        let ballot = rig.status(1).leader;
        rig.pass(5_000);
        assert_eq!(rig.status(1).leader, ballot);
        assert_eq!(rig.status(3).phase, Phase::Follower);
    }

    #[test]
    fn commands_on_a_removed_node_end() {
        let mut rig = led_by(1, 3);
        rig.isolate(3);
        let forwarded = rig.propose(3, b"on its way");
        rig.settle();
        let removed = rig.change(1, &[remove(3)], false);
        rig.pass(1_000);
        assert!(changed(&rig, removed));
        let waiting = rig.propose(3, b"waiting");
        rig.heal();
        rig.take(|letter| matches!(letter.message, Message::Forward { .. }));
        rig.pass(3_000);
        assert_eq!(rig.status(3).standing, Standing::Removed);
        assert_eq!(rig.ending(forwarded), Some(Ending::Unknown));
        let late = rig.propose(3, b"late");
        rig.settle();
        for token in [waiting, late] {
            let ending = rig.ending(token);
            assert!(matches!(ending, Some(Ending::Rejected(_))), "{ending:?}");
        }
        assert_eq!(rig.status(3).pending_bytes, b"on its way".len());
    }

    #[test]
    fn a_removed_learner_is_told_although_it_never_stands() {
        let mut rig = led_by(1, 3);
        rig.join(4);
        let added = rig.change(1, &[add(4)], false);
        rig.pass(1_000);
        assert!(changed(&rig, added));
        assert_eq!(rig.status(4).standing, Standing::Learner);
        rig.isolate(4);
        let removed = rig.change(1, &[remove(4)], false);
        rig.pass(1_000);
        assert!(changed(&rig, removed));
        rig.heal();
        rig.pass(3_000);
        assert_eq!(rig.status(4).standing, Standing::Removed);
        // The members may have been started anew, and not know where it is: it says so.
        assert!(rig.transcript().contains("departed n4"), "{}", rig.transcript());
        let asked = |rig: &Rig| rig.transcript().matches("departed n4").count();
        let before = asked(&rig);
        rig.pass(60_000);
        assert_eq!(asked(&rig), before, "it asks no more");
    }

    #[test]
    fn a_removed_voter_says_where_it_was() {
        let mut rig = led_by(1, 4);
        rig.isolate(4);
        rig.change(1, &[remove(4)], false);
        rig.pass(1_000);
        rig.heal();
        for node in 1..=3 {
            rig.cut_one_way(node, 4);
        }
        rig.pass(5_000);
        assert!(rig.transcript().contains("departed n4"), "{}", rig.transcript());
    }

    #[test]
    fn nothing_is_proposed_above_a_membership_until_it_is_chosen() {
        let mut rig = led_by(1, 3);
        rig.join(4);
        rig.change(1, &[add(4)], true);
        let token = rig.propose(1, b"a");
        let proposed = rig.take(is_accept);
        let entries = proposed.iter().map(|letter| match &letter.message {
            Message::Accept { entries, .. } => entries.len(),
            _ => 0,
        });
        assert_eq!(entries.max(), Some(1), "the membership alone");
        for letter in proposed {
            rig.deliver(letter);
        }
        rig.settle();
        rig.pass(100);
        assert!(happened(&rig, token));
    }

    #[test]
    fn a_change_by_force_to_nodes_that_know_nothing_succeeds() {
        // The leader that makes it dies before any of them hears of it: the nodes that were removed tell them.
        let mut rig = led_by(1, 3);
        for node in 4..=6 {
            rig.join(node);
        }
        let all = [add(4), promote(4), add(5), promote(5), add(6), promote(6)];
        let none = [remove(1), remove(2), remove(3)];
        rig.change(1, &[&all[..], &none[..]].concat(), true);
        rig.settle_where(|letter| letter.to <= 3 && letter.from <= 3);
        rig.take(|_| true);
        rig.pass_for_where(&[1], 150, |letter| letter.to <= 3 && letter.from <= 3);
        rig.take(|_| true);
        assert_eq!(voters(&rig), [4, 5, 6]);
        rig.crash(1);
        rig.pass(5_000);
        let leader = rig.leader().expect("one of the new voters leads");
        assert!(leader >= 4);
        let token = rig.propose(leader, b"a");
        rig.pass(100);
        assert!(happened(&rig, token));
    }

    #[test]
    fn a_leader_sends_nothing_beyond_a_membership_that_it_adopts() {
        // Node 1 holds entries of its first leadership above the slot of a membership that node 2 has proposed since.
        let mut rig = led_by(1, 3);
        rig.isolate(1);
        for command in [b"a", b"b", b"c"] {
            rig.propose(1, command);
        }
        rig.take(|_| true);
        rig.elect(2);
        rig.join(4);
        rig.change(2, &[add(4)], false);
        rig.settle_where(|letter| letter.to == 3 && is_accept(letter));
        rig.take(|_| true);
        rig.crash(2);
        rig.pass_for(&[1], 1_000);
        rig.heal();
        let rival = |letter: &Letter| letter.from == 3 && matches!(letter.message, Message::Canvass { .. });
        while rig.leader() != Some(1) {
            rig.pass_for_where(&[1], 1, |letter| !is_accept(letter) && !rival(letter));
        }
        for letter in rig.take(is_accept) {
            let Message::Accept { first, entries, .. } = &letter.message else {
                unreachable!("it was asked for");
            };
            assert_eq!((first.0, entries.len()), (1, 1), "the membership alone");
            rig.deliver(letter);
        }
        rig.pass(1_000);
        assert_eq!(rig.applied(3), ["a", "b", "c"]);
    }

    #[test]
    fn of_two_changes_of_one_version_one_happens() {
        let mut rig = led_by(1, 3);
        for node in [4, 5] {
            rig.join(node);
        }
        // The first is cut off with its leader; the second is made by the next one at the same version.
        rig.isolate(1);
        let first = rig.change(1, &[add(4)], false);
        rig.settle();
        for node in [2, 3] {
            rig.cut(node, 1);
        }
        rig.elect(2);
        let second = rig.change(2, &[add(5)], false);
        rig.pass(300);
        assert!(changed(&rig, second));
        rig.heal();
        rig.pass(3_000);
        assert_eq!(rig.ending(first), Some(Ending::Unknown));
        let members: Vec<u64> = rig
            .membership()
            .members
            .iter()
            .map(|member| member.node.0)
            .collect();
        assert_eq!((rig.membership().version, members), (2, vec![1, 2, 3, 5]));
    }
}

mod joining {
    use super::*;

    /// Whether a letter brings entries to this node.
    fn teaches(letter: &Letter, node: u64) -> bool {
        letter.to == node && matches!(letter.message, Message::Learned { .. } | Message::Accept { .. })
    }

    #[test]
    fn a_node_that_has_forgotten_the_members_is_told_again() {
        let mut rig = led_by(1, 3);
        rig.propose(1, b"a");
        rig.join(4);
        let added = rig.change(1, &[add(4)], false);
        rig.pass_for_where(&[1, 2, 3, 4], 300, |letter| !teaches(letter, 4));
        assert!(changed(&rig, added));
        assert!(
            rig.status(1).peers[&NodeId(4)].alive,
            "it has been told, and answers"
        );
        rig.take(|letter| letter.to == 4);
        rig.crash(4);
        rig.restart(4);
        rig.pass(3_000);
        assert_eq!(rig.status(4).standing, Standing::Learner);
        assert_eq!(rig.applied(4), ["a"]);
    }

    #[test]
    fn a_node_that_joins_hears_that_a_member_has_moved() {
        let mut rig = led_by(1, 1);
        rig.propose(1, b"learned from the node that moves");
        rig.crash(1);
        rig.restart(1);
        rig.elect(1);
        rig.join(2);
        rig.change(1, &[add(2)], false);
        rig.pass_for_where(&[1, 2], 300, |letter| !teaches(letter, 2));
        assert_eq!(rig.status(2).standing, Standing::Joining);
        let address = String::from("elsewhere");
        let moved = Change::SetAddress {
            node: NodeId(1),
            address,
        };
        let moved = rig.change(1, &[moved], false);
        rig.relocate(1, "elsewhere");
        rig.pass_for_where(&[1, 2], 3_000, |letter| !teaches(letter, 2));
        assert!(changed(&rig, moved));
        assert_eq!(rig.status(2).standing, Standing::Joining);
        rig.take(|letter| teaches(letter, 2));
        rig.pass(1_000);
        assert_eq!(rig.status(2).standing, Standing::Learner);
    }
}

mod refusing {
    use super::*;

    #[test]
    fn a_change_that_makes_no_sense_is_refused_by_force_too() {
        let mut rig = led_by(1, 3);
        let node = |id| NodeId(id);
        let cases = [
            (vec![], ChangeRejection::NothingToChange),
            (vec![promote(4)], ChangeRejection::NoSuchMember { node: node(4) }),
            (vec![add(2)], ChangeRejection::AlreadyMember { node: node(2) }),
            (vec![remove(1), remove(2), remove(3)], ChangeRejection::LastVoter),
            (
                vec![Change::AddLearner {
                    node: node(4),
                    address: String::new(),
                }],
                ChangeRejection::BadAddress { node: node(4) },
            ),
        ];
        for (changes, why) in cases {
            let token = rig.change(1, &changes, true);
            assert_eq!(refusal(&rig, token), Some(why));
        }
    }

    #[test]
    fn a_change_whose_quorum_would_not_answer_is_refused() {
        let mut rig = led_by(1, 3);
        let token = rig.change(1, &[add(4), promote(4)], false);
        let nodes = vec![NodeId(4)];
        assert_eq!(refusal(&rig, token), Some(ChangeRejection::Unreachable { nodes }));
        rig.crash(3);
        rig.pass(1_000);
        let token = rig.change(1, &[remove(2)], false);
        let nodes = vec![NodeId(3)];
        assert_eq!(refusal(&rig, token), Some(ChangeRejection::Unreachable { nodes }));
    }

    #[test]
    fn a_learner_that_lags_behind_is_not_promoted() {
        let config = Config {
            max_window_entries: 1,
            ..Config::default()
        };
        let mut rig = Rig::with(3, config);
        rig.elect(1);
        for _ in 0..9 {
            rig.propose(1, b"a");
            rig.pass(20);
        }
        rig.join(4);
        rig.change(1, &[add(4)], false);
        let teaches = |letter: &Letter| matches!(letter.message, Message::Learned { .. });
        rig.pass_for_where(&[1, 2, 3, 4], 300, |letter| letter.to != 4 || !teaches(letter));
        let token = rig.change(1, &[promote(4)], false);
        let nodes = vec![NodeId(4)];
        assert_eq!(refusal(&rig, token), Some(ChangeRejection::Behind { nodes }));
        rig.pass(1_000);
        let token = rig.change(1, &[promote(4)], false);
        rig.pass(300);
        assert!(changed(&rig, token));
    }

    #[test]
    fn a_change_is_refused_while_another_one_is_under_way() {
        let mut rig = led_by(1, 3);
        rig.join(4);
        let first = rig.change(1, &[add(4)], false);
        let second = rig.change(1, &[remove(3)], false);
        assert_eq!(refusal(&rig, second), Some(ChangeRejection::UnderWay));
        rig.pass(500);
        assert!(changed(&rig, first));
    }
}

mod safety {
    use super::*;

    #[test]
    fn nobody_is_told_to_take_over_before_it_is_known_who_may_lead() {
        let mut rig = led_by(1, 5);
        rig.change(1, &[Change::Demote { node: NodeId(2) }], true);
        rig.transfer(1, Some(2));
        rig.settle_where(|letter| letter.to == 2 || letter.from == 2);
        let told = rig.take(|letter| matches!(letter.message, Message::TakeOver { .. }));
        assert_eq!(told, [], "{}", rig.transcript());
    }

    #[test]
    fn new_voters_promises_are_collected_after_a_change() {
        // W7. Two of the three new voters have chosen something that none of the old ones knows.
        let mut rig = led_by(1, 3);
        for node in [4, 5] {
            rig.join(node);
        }
        let high = Ballot {
            round: 8,
            node: NodeId(1),
        };
        let message = Message::Refuse {
            ballot: Ballot::ZERO,
            promised: high,
        };
        rig.deliver(Letter {
            from: 1,
            to: 3,
            message,
        });
        rig.isolate(3);
        let changes = [add(4), promote(4), add(5), promote(5), remove(1), remove(2)];
        rig.change(1, &changes, true);
        rig.settle_where(is_drain);
        rig.settle_where(|letter| {
            (letter.to == 2 && is_accept(letter)) || (letter.from == 2 && is_accepted(letter))
        });
        rig.isolate(2);
        rig.pass_for(&[1], 300);
        assert_eq!(voters(&rig), [3, 4, 5]);
        rig.crash(1);
        rig.elect(4);
        let chosen = rig.propose(4, b"chosen");
        rig.settle_where(|letter| letter.to != 5 || is_accept(letter));
        assert!(happened(&rig, chosen));
        rig.crash(4);
        rig.take(|_| true);
        // Node 3 leads by the old membership, finds the new one and goes on with that.
        rig.heal();
        rig.elect(3);
        rig.propose(3, b"next");
        rig.pass(3_000);
        assert_eq!(rig.applied(3), ["chosen", "next"]);
    }

    #[test]
    fn an_old_leaders_word_of_a_later_slot_never_wins_over_the_new_members() {
        // Node 3 proposes for two slots as if the membership had not been changed, and only learner 6 hears it. Its ballot
        // is higher than the one at which the change was first proposed, and lower than the one at which it is chosen.
        let mut rig = led_by(1, 5);
        for node in [6, 7, 8] {
            rig.join(node);
        }
        rig.change(1, &[add(6), add(7), add(8)], false);
        rig.pass(1_000);
        let new = [promote(6), promote(7), promote(8)];
        let old = [remove(1), remove(2), remove(3), remove(4), remove(5)];
        rig.change(1, &[&new[..], &old[..]].concat(), true);
        rig.settle_where(is_drain);
        rig.settle_where(|letter| letter.to == 2 && is_accept(letter));
        rig.take(|_| true);
        rig.isolate(1);
        rig.isolate(2);
        rig.elect(3);
        rig.propose(3, b"lost");
        rig.propose(3, b"lost too");
        rig.settle_where(|letter| letter.to == 6 && is_accept(letter));
        rig.take(|_| true);
        rig.crash(3);
        rig.heal();
        rig.isolate(1);
        rig.isolate(6);
        rig.pass(5_000);
        assert_eq!(voters(&rig), [6, 7, 8]);
        let leader = rig.leader().expect("one of the new voters leads");
        let token = rig.propose(leader, b"a");
        rig.pass(200);
        assert!(happened(&rig, token));
        rig.crash(leader);
        rig.heal();
        rig.pass(5_000);
        let other = 15 - leader;
        assert_eq!((rig.applied(6), rig.applied(other)), (vec!["a"], vec!["a"]));
    }

    #[test]
    fn a_lost_disk_has_no_vote_until_it_is_admitted_anew() {
        // W8.
        let mut rig = tended(1, 3);
        rig.lose_disk(3);
        rig.crash(2);
        rig.restart(3);
        let token = rig.propose(1, b"a");
        rig.pass(300);
        assert!(!happened(&rig, token), "only one of three has a vote");
        assert_eq!(rig.status(3).standing, Standing::NotAdmitted);
        rig.restart(2);
        rig.pass(5_000);
        assert!(happened(&rig, token));
        assert_eq!(rig.status(3).standing, Standing::Voter);
        assert_eq!(rig.applied(3), ["a"]);
    }

    #[test]
    fn a_node_with_a_new_disk_reuses_no_ballot_of_the_old_one() {
        let mut rig = tended(1, 3);
        rig.lose_disk(3);
        rig.restart(3);
        rig.pass(3_000);
        assert_eq!(rig.status(3).standing, Standing::Voter);
        rig.elect(3);
        let ballot = rig.status(3).leader.expect("it leads");
        assert!(ballot.round > 1 << 20, "{ballot}");
    }

    #[test]
    fn a_node_with_an_empty_disk_leads_nobody_by_the_first_membership() {
        let mut rig = tended(1, 3);
        rig.propose(1, b"a");
        rig.pass(200);
        rig.lose_disk(3);
        rig.crash(1);
        rig.restart(3);
        rig.pass(3_000);
        assert_eq!(rig.leader(), None, "two disks are gone");
        assert_eq!(rig.status(3).standing, Standing::NotAdmitted);
        rig.restart(1);
        rig.pass(5_000);
        assert_eq!(rig.applied(3), ["a"]);
        assert_eq!(rig.status(3).standing, Standing::Voter);
    }

    #[test]
    fn a_removed_id_comes_back_with_an_empty_disk() {
        let mut rig = tended(1, 3);
        rig.propose(1, b"a");
        let removed = rig.change(1, &[remove(3)], false);
        rig.pass(500);
        assert!(changed(&rig, removed));
        rig.lose_disk(3);
        rig.join(3);
        let added = rig.change(1, &[add(3)], false);
        rig.pass(2_000);
        let promoted = rig.change(1, &[promote(3)], false);
        rig.pass(2_000);
        assert!(changed(&rig, added) && changed(&rig, promoted));
        assert_eq!(rig.status(3).standing, Standing::Voter);
        assert_eq!(rig.applied(3), ["a"]);
        let member = rig.membership().member(NodeId(3)).expect("it is a member");
        assert!(member.first_round > 1 << 20);
    }
}
