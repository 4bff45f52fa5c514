//! Holes that were found in other systems, each with the test that keeps it closed here.
//!
//! | | hole | closed by |
//! |---|---|---|
//! | W1 | the next value goes out at the ballot and slot of one that timed out | `scenarios`: `a_proposal_whose_user_gave_up_keeps_its_slot` |
//! | W2 | replies count for another ballot | `scenarios`: `late_acks_of_an_old_ballot_count_for_nothing` |
//! | W3 | "the peer is one slot ahead" is taken for "mine is chosen" | `scenarios`: `being_one_slot_behind_proves_nothing` |
//! | W4 | votes before the sync, or after a failed write | `scenarios`: `an_accept_is_answered_only_after_the_sync`, `a_promise_is_given_only_after_the_sync`; `node`: `a_failed_disk_halts_its_node_and_no_other` |
//! | W5 | learning lowers a promise | `scenarios`: `learning_never_lowers_a_promise` |
//! | W6 | a command that the machine refuses wedges the group | `node`: `a_machine_that_fails_halts_its_group_only`; kvstore: `what_the_machine_does_not_know_is_a_reply`; `router`: `commands_for_unknown_machines_and_rejected_ones_never_wedge_the_group` |
//! | W7 | phase 1 is skipped across a change of membership | `membership`: `new_voters_promises_are_collected_after_a_change`, `nothing_is_proposed_above_a_membership_until_it_is_chosen` |
//! | W8 | votes of strangers count | here: `strangers_have_no_vote`; transports: `nodes_of_two_clusters_never_connect`; backends: `other_clusters_and_nodes_are_told_whose_directory_it_is`; `membership`: `a_lost_disk_has_no_vote_until_it_is_admitted_anew`, `of_two_changes_of_one_version_one_happens` |
//! | W9 | a late record grants a lease | `leadership`: `a_reply_of_the_past_grants_nothing_however_often_it_comes`, `a_lease_counts_from_the_sending_of_the_heartbeat`; of reads, `scenarios`: `an_answer_to_an_earlier_life_answers_nothing` |
//! | W10 | timers on the wall clock; no fencing token | the core takes time as an argument (lints forbid clocks); `scenarios`: `a_ballot_is_never_used_in_two_lives` |
//! | W11 | units are mixed up | all times are of type `Duration` or `Time`; here: `what_is_lost_is_sent_again_within_three_heartbeats` |
//! | W12 | equal commands are taken for one another | `scenarios`: `equal_commands_of_two_nodes_are_two_commands` |
//! | W13 | retiring the leader has no effect | `leadership`: `a_leader_that_retires_leads_no_longer` |
//! | W14 | half a snapshot, or a wrong one, is installed | `scenarios_snapshots`: `a_damaged_snapshot_is_never_installed`, `a_crash_between_receiving_and_installing_begins_from_the_snapshot`, `a_snapshot_that_the_log_has_overtaken_is_not_installed` |
//! | W15 | any "chosen" message is believed | here: `an_announced_watermark_proves_nothing_of_what_is_missing`, `strangers_have_no_vote` |
//! | W16 | a timeout is ambiguous | `scenarios`: `a_proposal_that_left_its_node_ends_unknown_and_happens_once`, `a_proposal_that_never_left_its_node_certainly_did_not_happen` |
#![cfg(feature = "testing")]

use paxos::{
    Slot,
    core::Message,
    testing::sim::{Ending, Letter, Rig},
};

fn led_by(leader: u64, nodes: u64) -> Rig {
    let mut rig = Rig::new(nodes);
    rig.elect(leader);
    rig
}

fn is_accept(letter: &Letter) -> bool {
    matches!(letter.message, Message::Accept { .. })
}

fn is_accepted(letter: &Letter) -> bool {
    matches!(letter.message, Message::Accepted { .. })
}

#[test]
fn strangers_have_no_vote() {
    // n2's answer comes from n9, which is no member; n3 hears nothing.
    let mut rig = led_by(1, 3);
    rig.isolate(3);
    let token = rig.propose(1, b"a");
    rig.settle_where(|letter| !is_accepted(letter));
    let answers = rig.take(is_accepted);
    assert!(!answers.is_empty());
    for answer in &answers {
        rig.deliver(Letter {
            from: 9,
            ..answer.clone()
        });
    }
    assert_eq!(rig.ending(token), None, "one of three is no quorum");
    assert_eq!(rig.chosen(), Slot(1), "though n2 has accepted it");
    for answer in answers {
        rig.deliver(answer);
    }
    assert_eq!(rig.ending(token), Some(Ending::Applied(Slot(1))));
}

#[test]
fn an_announced_watermark_proves_nothing_of_what_is_missing() {
    let mut rig = led_by(1, 3);
    rig.propose(1, b"a");
    rig.settle_where(|letter| letter.to != 3);
    let lost = rig.take(is_accept);
    assert_eq!(lost.len(), 1);
    let of_learning =
        |letter: &Letter| matches!(letter.message, Message::Learn { .. } | Message::Learned { .. });
    rig.settle_where(|letter| !of_learning(letter));
    rig.pass_for_where(&[1], 150, |letter| !of_learning(letter) && !is_accept(letter));
    assert_eq!(rig.status(3).chosen, Slot::ZERO, "{}", rig.transcript());
    rig.pass(1_000);
    assert_eq!(rig.applied(3), ["a"]);
}

#[test]
fn what_is_lost_is_sent_again_within_three_heartbeats() {
    let mut rig = led_by(1, 3);
    let token = rig.propose(1, b"a");
    assert_eq!(rig.take(is_accept).len(), 2);
    rig.pass(3 * 100);
    assert_eq!(rig.ending(token), Some(Ending::Applied(Slot(1))));
}
