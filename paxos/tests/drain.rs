//! Directed scenarios of nodes that are taken out of their group while their users have commands under way: nobody is
//! left in doubt. Played by hand on the protocol core.
#![cfg(feature = "testing")]

use std::cell::Cell;

use paxos::{
    Change, ChangeRejection, NodeId,
    core::{Message, Rejection, Standing, Token},
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

fn remove(node: u64) -> Change {
    Change::Remove { node: NodeId(node) }
}

fn changed(rig: &Rig, token: Token) -> bool {
    matches!(rig.ending(token), Some(Ending::Changed(_)))
}

fn happened(rig: &Rig, token: Token) -> bool {
    matches!(rig.ending(token), Some(Ending::Applied(_)))
}

fn sent_away(rig: &Rig, token: Token) -> bool {
    rig.ending(token) == Some(Ending::Rejected(Rejection::Leaving))
}

fn is_drain(letter: &Letter) -> bool {
    matches!(letter.message, Message::Drain { .. })
}

fn is_drained(letter: &Letter) -> bool {
    matches!(letter.message, Message::Drained { .. })
}

fn is_forward(letter: &Letter) -> bool {
    matches!(letter.message, Message::Forward { .. })
}

fn is_take_over(letter: &Letter) -> bool {
    matches!(letter.message, Message::TakeOver { .. })
}

fn is_membership(rig: &Rig, version: u64) -> bool {
    rig.membership().version == version
}

mod answering {
    use super::*;

    #[test]
    fn the_users_of_a_node_that_is_removed_hear_what_became_of_their_commands() {
        let mut rig = led_by(1, 3);
        let on_its_way = rig.propose(3, b"on its way");
        let removed = rig.change(1, &[remove(3)], false);
        rig.settle_where(|letter| is_drain(letter) || is_drained(letter));
        let late = rig.propose(3, b"late");
        assert!(sent_away(&rig, late));
        assert_eq!(rig.ending(on_its_way), None);
        assert!(is_membership(&rig, 1), "the change waits");
        rig.pass(100);
        assert!(happened(&rig, on_its_way), "{}", rig.transcript());
        assert!(changed(&rig, removed));
        assert_eq!(rig.status(3).standing, Standing::Removed);
        let too_late = rig.propose(3, b"too late");
        assert!(sent_away(&rig, too_late));
    }

    #[test]
    fn a_leader_that_removes_itself_ends_what_its_users_have_under_way() {
        let mut rig = led_by(1, 3);
        let under_way = rig.propose(1, b"under way");
        rig.change(2, &[remove(1)], false);
        rig.settle_where(|letter| matches!(letter.message, Message::ChangeMembership { .. }));
        let late = rig.propose(1, b"late");
        let elsewhere = rig.propose(2, b"elsewhere");
        assert!(sent_away(&rig, late));
        rig.pass(1_000);
        assert!(is_membership(&rig, 2));
        assert!(happened(&rig, under_way) && happened(&rig, elsewhere));
        let too_late = rig.propose(1, b"too late");
        assert!(sent_away(&rig, too_late));
    }

    #[test]
    fn a_node_that_hears_late_that_it_is_out_takes_no_commands_meanwhile() {
        let mut rig = led_by(1, 3);
        let removed = rig.change(1, &[remove(3)], false);
        rig.settle_where(|letter| !matches!(letter.message, Message::NotAdmitted { .. }));
        rig.take(|letter| matches!(letter.message, Message::NotAdmitted { .. }));
        assert!(changed(&rig, removed));
        let mut tokens = Vec::new();
        for _ in 0..100 {
            tokens.push(rig.propose(3, b"late"));
            rig.pass(20);
        }
        assert_eq!(rig.status(3).standing, Standing::Removed);
        for token in tokens {
            assert!(sent_away(&rig, token), "{}", rig.transcript());
        }
    }

    #[test]
    fn several_nodes_leave_together() {
        let mut rig = led_by(1, 5);
        let tokens: Vec<Token> = (1..=5).map(|node| rig.propose(node, b"under way")).collect();
        let removed = rig.change(2, &[remove(1), remove(4), remove(5)], false);
        rig.pass(1_000);
        assert!(changed(&rig, removed));
        for token in tokens {
            assert!(happened(&rig, token), "{}", rig.transcript());
        }
    }

    #[test]
    fn a_node_that_is_drained_reads_on() {
        let mut rig = led_by(1, 3);
        rig.take(|_| true);
        rig.propose(3, b"on its way");
        let forwarded = rig.take(is_forward);
        rig.change(1, &[remove(3)], false);
        rig.settle();
        assert!(rig.status(3).draining);
        let read = rig.read(3);
        rig.settle();
        assert!(matches!(rig.ending(read), Some(Ending::Read(_))));
        for letter in forwarded {
            rig.deliver(letter);
        }
        rig.pass(1_000);
        assert!(is_membership(&rig, 2));
    }
}

mod waiting {
    use super::*;

    #[test]
    fn a_silent_node_does_not_hold_a_change_up() {
        let mut rig = led_by(1, 3);
        rig.crash(3);
        rig.pass(1_000);
        let removed = rig.change(1, &[remove(3)], false);
        rig.pass(1);
        assert!(changed(&rig, removed), "{}", rig.transcript());
    }

    #[test]
    fn a_node_that_falls_silent_holds_a_change_up_for_an_election_timeout() {
        let mut rig = led_by(1, 3);
        rig.pass(200);
        rig.crash(3);
        let removed = rig.change(1, &[remove(3)], false);
        rig.pass(200);
        assert_eq!(rig.ending(removed), None);
        rig.pass(1_000);
        assert!(changed(&rig, removed));
    }

    #[test]
    fn a_node_is_told_again_when_the_word_is_lost() {
        for lost in [is_drain, is_drained] {
            let mut rig = led_by(1, 3);
            let under_way = rig.propose(3, b"under way");
            let removed = rig.change(1, &[remove(3)], false);
            rig.settle_where(|letter| !lost(letter));
            assert_eq!(rig.take(lost).len(), 1);
            rig.pass(250);
            assert!(changed(&rig, removed), "{}", rig.transcript());
            assert!(happened(&rig, under_way));
        }
    }

    #[test]
    fn another_change_has_to_wait() {
        let mut rig = led_by(1, 3);
        let removed = rig.change(1, &[remove(3)], false);
        let other = rig.change(2, &[remove(2)], false);
        rig.settle_where(|letter| matches!(letter.message, Message::ChangeMembership { .. }));
        rig.pass(100);
        assert!(changed(&rig, removed));
        assert_eq!(
            rig.ending(other),
            Some(Ending::Refused(ChangeRejection::UnderWay))
        );
    }

    #[test]
    fn an_answer_to_an_earlier_drain_counts_for_nothing() {
        let mut rig = led_by(1, 3);
        let first = rig.change(1, &[remove(3)], false);
        rig.settle_where(is_drain);
        let late = rig.take(is_drained);
        // A transfer that comes to nothing, and the change with it.
        rig.transfer(1, Some(2));
        rig.pass_for_where(&[1], 600, |letter| !is_take_over(letter));
        rig.take(is_take_over);
        assert_eq!(
            rig.ending(first),
            Some(Ending::Refused(ChangeRejection::UnderWay))
        );
        rig.pass(1_000);
        let held_up = rig.propose(3, b"held up");
        let second = rig.change(1, &[remove(3)], false);
        for letter in late {
            rig.deliver(letter);
        }
        rig.pass_for_where(&[1], 100, |letter| !is_forward(letter));
        assert!(
            rig.status(3).draining && is_membership(&rig, 1),
            "{}",
            rig.transcript()
        );
        rig.pass(100);
        assert!(happened(&rig, held_up) && changed(&rig, second));
    }
}

mod ending {
    use super::*;

    #[test]
    fn the_nodes_take_commands_again_when_the_change_is_refused_after_all() {
        let mut rig = led_by(1, 4);
        rig.pass(200);
        let held_up = rig.propose(3, b"held up");
        let removed = rig.change(1, &[remove(3), remove(2)], false);
        // Node 4, which has to vote, is not heard any more when the time is over.
        rig.isolate(4);
        rig.pass_for_where(&[1, 2, 3], 600, |letter| !is_forward(letter));
        let refused = Ending::Refused(ChangeRejection::Unreachable {
            nodes: vec![NodeId(4)],
        });
        assert_eq!(rig.ending(removed), Some(refused), "{}", rig.transcript());
        rig.pass(1_000);
        assert!(happened(&rig, held_up));
        let again = rig.propose(3, b"again");
        rig.pass(100);
        assert!(happened(&rig, again), "{}", rig.transcript());
    }

    #[test]
    fn the_nodes_take_commands_again_when_the_leader_dies() {
        let mut rig = led_by(1, 3);
        let removed = rig.change(2, &[remove(3)], false);
        rig.settle_where(|letter| is_drain(letter) || letter.to == 1 && !is_drained(letter));
        assert!(rig.status(3).draining);
        rig.crash(1);
        rig.take(|_| true);
        rig.pass(5_000);
        assert_eq!(rig.ending(removed), Some(Ending::Unknown), "its leader is gone");
        assert!(is_membership(&rig, 1));
        let token = rig.propose(3, b"again");
        rig.pass(100);
        assert!(happened(&rig, token));
    }

    #[test]
    fn who_asked_is_told_that_nothing_was_changed_when_the_leader_steps_down() {
        let mut rig = led_by(1, 3);
        rig.pass(150);
        rig.propose(3, b"held up");
        let removed = rig.change(1, &[remove(3)], false);
        rig.isolate(1);
        rig.pass_for(&[1], 480);
        let refused = Ending::Refused(ChangeRejection::NoLeader);
        assert_eq!(rig.ending(removed), Some(refused), "{}", rig.transcript());
    }

    #[test]
    fn the_nodes_take_commands_again_when_leadership_is_handed_over() {
        let mut rig = led_by(1, 3);
        let removed = rig.change(1, &[remove(3)], false);
        rig.settle_where(is_drain);
        rig.take(is_drained);
        rig.transfer(1, Some(2));
        rig.pass(50);
        assert_eq!(rig.leader(), Some(2));
        let refused = Ending::Refused(ChangeRejection::NoLeader);
        assert_eq!(rig.ending(removed), Some(refused), "{}", rig.transcript());
        let token = rig.propose(3, b"again");
        rig.pass(100);
        assert!(happened(&rig, token));
    }

    #[test]
    fn a_node_takes_commands_again_when_it_is_told_nothing_any_more() {
        let mut rig = led_by(1, 3);
        let ballot = rig.status(1).leader.expect("node 1 leads");
        let message = Message::Drain { ballot, number: 1 };
        let (from, to) = (1, 3);
        rig.deliver(Letter { from, to, message });
        let refused = rig.propose(3, b"refused");
        assert!(sent_away(&rig, refused));
        rig.pass(500);
        let token = rig.propose(3, b"again");
        rig.pass(100);
        assert!(happened(&rig, token), "{}", rig.transcript());
    }
}

/// Draws numbers that a seed decides (Marsaglia: *Xorshift RNGs*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Delivers one of the letters that are on their way, not always the oldest.
fn deliver_any(rig: &mut Rig, random: &mut Random) {
    let place = Cell::new(random.below(6));
    let is_there = |_: &Letter| place.replace(place.get().wrapping_sub(1)) == 0;
    for letter in rig.take(is_there) {
        rig.deliver(letter);
    }
}

#[test]
fn nobody_is_left_in_doubt_however_messages_overtake_each_other() {
    for seed in 1..=100 {
        let mut random = Random(seed * 0x9e37_79b9);
        let nodes = 2 + random.below(4);
        let mut rig = led_by(1 + random.below(nodes), nodes);
        let leaves = 1 + random.below(nodes);
        let mut tokens = Vec::new();
        for step in 0..400 {
            let node = 1 + random.below(nodes);
            if step == 100 {
                rig.change(node, &[remove(leaves)], false);
            }
            match random.below(20) {
                0..4 => tokens.push(rig.propose(node, b"command")),
                4 => rig.pass_for_where(&[1, 2, 3, 4, 5][..nodes as usize], 1, |_| false),
                _ => deliver_any(&mut rig, &mut random),
            }
        }
        rig.pass(3_000);
        assert_eq!(rig.status(leaves).standing, Standing::Removed, "seed {seed}");
        for token in tokens {
            let is_definite = happened(&rig, token) || sent_away(&rig, token);
            assert!(
                is_definite,
                "seed {seed}: {:?}\n{}",
                rig.ending(token),
                rig.transcript()
            );
        }
    }
}
