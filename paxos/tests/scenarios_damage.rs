//! Directed scenarios of damaged disks: what a node does that cannot tell any more what it has accepted, and how it gets
//! it back.
//!
//! The [`Rig`] checks the safety invariants on every write and every message; a violation fails the test with the
//! transcript.
#![cfg(feature = "testing")]

use paxos::{
    Change, NodeId, Slot, StorageId,
    core::{Config, Input, Message, Phase, Standing},
    testing::sim::{Ending, Rig},
};

/// Nothing of the log is kept in memory that need not be.
fn without_cache() -> Config {
    Config {
        max_cache_bytes: 0,
        ..Config::default()
    }
}

/// Snapshots when they are asked for, with nothing of the log kept behind them.
fn with_snapshots() -> Config {
    Config {
        snapshots: true,
        snapshot_entries: 0,
        snapshot_bytes: 0,
        keep_entries: 0,
        keep_bytes: 0,
        max_laggard_entries: 0,
        ..without_cache()
    }
}

/// Three nodes, n1 leads and everybody has applied so many commands. A bug may be planted, to see that the scenario made
/// for it fails.
fn after_commands(count: usize, config: Config) -> Rig {
    #[cfg(paxos_planted)]
    if let Ok(name) = std::env::var("PAXOS_PLANT")
        && !name.is_empty()
    {
        paxos::planted::plant(&name).expect("the name of a bug");
    }
    let mut rig = Rig::with(3, config);
    rig.elect(1);
    write(&mut rig, count);
    rig.pass(300);
    for node in 1..=3 {
        rig.flush(node);
    }
    rig
}

fn write(rig: &mut Rig, count: usize) {
    for number in 0..count {
        rig.propose(1, format!("command {number}").as_bytes());
        rig.settle();
    }
}

/// The node loses its process and these records, and comes back.
fn restart_damaged(rig: &mut Rig, node: u64, slots: &[u64]) {
    rig.crash(node);
    for slot in slots {
        rig.damage(node, *slot);
    }
    rig.restart(node);
}

/// Any change of the membership will do.
fn prefer(node: u64) -> Change {
    let (node, priority) = (NodeId(node), 5);
    Change::SetPriority { node, priority }
}

fn is_whole(rig: &mut Rig, node: u64) -> bool {
    let disk = rig.disk(node).damaged.is_empty();
    disk && rig.status(node).damaged == 0
}

#[test]
fn damaged_chosen_entries_are_learned_again_before_they_are_applied() {
    let mut rig = after_commands(5, Config::default());
    restart_damaged(&mut rig, 3, &[2, 4]);
    assert_eq!(rig.status(3).damaged, 2);
    assert_eq!(rig.status(3).applied, Slot(1), "it waits");
    rig.pass(1_000);
    assert_eq!(rig.applied(3), rig.applied(1));
    assert_eq!(rig.status(3).repaired, 2);
    assert!(is_whole(&mut rig, 3));
    rig.crash(3);
    rig.restart(3);
    assert_eq!(rig.status(3).damaged, 0, "the repair is durable");
}

#[test]
fn a_damaged_node_teaches_what_stands_before_the_damage_and_sends_learners_elsewhere_for_the_rest() {
    let mut rig = after_commands(5, without_cache());
    restart_damaged(&mut rig, 2, &[3]);
    rig.take(|_| true);
    let learn = |from| {
        let (from, upto) = (Slot(from), Slot(5));
        let message = Message::Learn { from, upto };
        Input::Message {
            from: NodeId(3),
            storage: StorageId(3),
            message,
        }
    };
    for (from, taught) in [(1, 2), (3, 0), (4, 2)] {
        rig.step(2, learn(from));
        let answers = rig.take(|letter| letter.to == 3 && matches!(letter.message, Message::Learned { .. }));
        let Message::Learned { entries, .. } = &answers[0].message else {
            unreachable!("only such letters were taken");
        };
        assert_eq!(entries.len(), taught, "from slot {from}");
    }
}

/// n1 and n2 have chosen a value that n3 knows nothing of; then n1 is gone, and n2's record of it.
fn the_choosing_quorum_is_damaged() -> (Rig, Slot) {
    let mut rig = after_commands(2, Config::default());
    rig.isolate(3);
    rig.propose(1, b"chosen");
    rig.settle();
    let slot = rig.chosen();
    assert_eq!(
        slot,
        rig.status(2).chosen.next(),
        "n2 does not know that it is chosen"
    );
    rig.crash(1);
    restart_damaged(&mut rig, 2, &[slot.0]);
    rig.take(|_| true);
    rig.heal();
    (rig, slot)
}

#[test]
fn a_damaged_vote_of_the_choosing_quorum_does_not_free_its_slot() {
    let (mut rig, slot) = the_choosing_quorum_is_damaged();
    let other = rig.propose(3, b"something else");
    rig.pass(5_000);
    assert_eq!(rig.chosen(), slot, "nobody can tell what is chosen there");
    assert_eq!(rig.undecidable(), None, "n1 may still come back");
    rig.restart(1);
    rig.pass(5_000);
    assert_eq!(rig.applied(3)[2], "chosen");
    assert!(matches!(rig.ending(other), Some(Ending::Applied(at)) if at > slot));
    assert!(is_whole(&mut rig, 2));
}

#[test]
fn a_voter_that_knows_the_slot_chosen_and_comes_late_is_learned_from_and_frees_nothing() {
    let mut rig = after_commands(2, Config::default());
    rig.isolate(3);
    rig.propose(1, b"chosen");
    rig.settle();
    let slot = rig.chosen();
    // n1 knows that it is chosen, and stays so far; n2 has accepted it and loses the record.
    rig.pass_for_where(&[1], 150, |letter| letter.from != 1);
    rig.flush(1);
    rig.take(|_| true);
    restart_damaged(&mut rig, 2, &[slot.0]);
    rig.heal();
    rig.isolate(1);
    rig.take(|_| true);
    rig.pass_for(&[2, 3], 3_000);
    assert_eq!(rig.status(3).chosen, slot.previous());
    let leads = |node: &&u64| rig.status(**node).phase == Phase::Leader;
    let leader = [2, 3].iter().find(leads).copied();
    assert_eq!(leader.and_then(|leader| rig.status(leader).undecided), Some(slot));
    rig.heal();
    // Its promise comes before anything that it could teach.
    let teaches = |message: &Message| matches!(message, Message::Learned { .. });
    rig.pass_for_where(&[2, 3], 450, |letter| !teaches(&letter.message));
    assert_eq!(rig.status(3).chosen, slot.previous());
    rig.pass(5_000);
    for node in 1..=3 {
        assert_eq!(rig.applied(node)[2], "chosen");
        assert!(is_whole(&mut rig, node));
    }
}

#[test]
fn a_slot_that_no_quorum_can_tell_of_is_an_alarm_and_never_guessed() {
    let (mut rig, slot) = the_choosing_quorum_is_damaged();
    rig.damage(1, slot.0);
    rig.restart(1);
    rig.pass(9_000);
    assert_eq!(rig.chosen(), slot);
    assert!([2, 3].iter().all(|node| rig.status(*node).chosen < slot));
    assert_eq!(rig.undecidable(), Some(slot));
}

#[test]
fn a_slot_that_nobody_could_tell_of_is_decided_when_its_record_is_back() {
    let (mut rig, slot) = the_choosing_quorum_is_damaged();
    let whole = rig.copy_disk(1);
    rig.damage(1, slot.0);
    rig.restart(1);
    rig.elect(3);
    rig.pass(5_000);
    assert_eq!(rig.undecidable(), Some(slot));
    let leader = rig.status(3).leader;
    rig.crash(1);
    rig.recover(1, slot.0, &whole);
    rig.restart(1);
    rig.pass(2_000);
    assert_eq!(rig.status(3).leader, leader, "the same leader asks again");
    assert_eq!(rig.applied(3)[2], "chosen");
    assert!(is_whole(&mut rig, 2));
}

#[test]
fn a_damaged_vote_is_recovered_from_the_others_and_overwritten_by_the_new_leader() {
    let mut rig = after_commands(2, Config::default());
    rig.propose(1, b"accepted");
    rig.settle();
    let slot = rig.chosen();
    rig.crash(1);
    restart_damaged(&mut rig, 2, &[slot.0]);
    rig.take(|_| true);
    rig.pass(5_000);
    assert_eq!(
        rig.status(3).chosen,
        slot.previous(),
        "n3 alone is no quorum of undamaged voters"
    );
    rig.restart(1);
    rig.pass(5_000);
    assert_eq!(rig.applied(2)[2], "accepted");
    assert!(is_whole(&mut rig, 2));
}

#[test]
fn a_present_leader_repairs_the_votes_of_a_follower_that_comes_back() {
    let mut rig = after_commands(2, Config::default());
    rig.isolate(3);
    rig.propose(1, b"accepted by two");
    rig.settle();
    let slot = rig.chosen();
    restart_damaged(&mut rig, 2, &[slot.0]);
    rig.pass_for(&[1], 300);
    assert_eq!(rig.leader(), Some(1), "there was no election");
    assert!(is_whole(&mut rig, 2));
    assert_eq!(rig.applied(2)[2], "accepted by two");
}

#[test]
fn a_leader_that_comes_back_damaged_does_not_lead_before_it_is_whole() {
    let mut rig = after_commands(5, Config::default());
    restart_damaged(&mut rig, 1, &[1, 3]);
    rig.take(|_| true);
    rig.step(1, Input::Tick);
    rig.pass_for_where(&[1], 2_000, |_| false);
    assert_eq!(rig.status(1).phase, Phase::Follower, "it has asked in vain");
    rig.pass(3_000);
    assert_eq!(rig.applied(1), rig.applied(2));
    assert!(is_whole(&mut rig, 1));
}

#[test]
fn two_nodes_with_different_damage_repair_each_other() {
    let mut rig = after_commands(5, Config::default());
    rig.crash(1);
    restart_damaged(&mut rig, 2, &[2, 3]);
    restart_damaged(&mut rig, 3, &[4, 5]);
    rig.take(|_| true);
    rig.pass(3_000);
    assert!(is_whole(&mut rig, 2) && is_whole(&mut rig, 3));
    assert_eq!(rig.applied(2).len(), 5);
    assert_eq!(rig.applied(3).len(), 5);
    assert!(rig.leader().is_some());
}

#[test]
fn damage_that_a_read_finds_halts_nothing_and_is_repaired() {
    let mut rig = after_commands(2, without_cache());
    rig.isolate(3);
    write(&mut rig, 5);
    rig.pass(100);
    rig.damage(1, 4);
    rig.heal();
    rig.pass(2_000);
    assert_eq!(rig.applied(3), rig.applied(1), "n3 has it from n2");
    assert!(is_whole(&mut rig, 1));
    assert_eq!(rig.leader(), Some(1));
}

#[test]
fn an_entry_that_is_still_in_memory_is_written_again_from_there() {
    let mut rig = after_commands(2, Config::default());
    rig.propose(1, b"on its way");
    rig.settle_where(|letter| letter.to == 2);
    let slot = rig.status(2).last;
    assert!(slot > rig.status(2).chosen);
    rig.take(|_| true);
    rig.damage(2, slot.0);
    rig.step(2, Input::Damaged { slots: vec![slot] });
    assert!(is_whole(&mut rig, 2));
    assert!(rig.take(|letter| letter.from == 2).is_empty(), "nobody was asked");
}

#[test]
fn a_value_whose_only_witness_is_damaged_is_found_by_the_others() {
    let mut rig = after_commands(1, without_cache());
    rig.propose(1, b"known to n1 only");
    rig.settle();
    let slot = rig.chosen();
    // n1 writes down how far it knows the log to be chosen; nobody else hears of it.
    rig.pass_for_where(&[1], 150, |letter| letter.from != 1);
    rig.flush(1);
    rig.take(|_| true);
    restart_damaged(&mut rig, 1, &[slot.0]);
    assert_eq!(rig.status(1).chosen, slot);
    assert!(rig.status(2).chosen < slot && rig.status(3).chosen < slot);
    rig.pass(5_000);
    for node in 1..=3 {
        assert_eq!(rig.applied(node)[1], "known to n1 only");
        assert!(is_whole(&mut rig, node));
    }
}

#[test]
fn a_node_that_has_lost_the_membership_does_not_vote_for_itself_before_it_has_it_back() {
    let mut rig = after_commands(2, Config::default());
    let token = rig.change(1, &[prefer(2)], false);
    rig.pass(1_000);
    assert!(matches!(rig.ending(token), Some(Ending::Changed(_))));
    let at = rig.disk(3).hard.membership;
    restart_damaged(&mut rig, 3, &[at.0]);
    rig.pass_for_where(&[3], 3_000, |_| false);
    assert_eq!(
        rig.status(3).standing,
        Standing::Joining,
        "it does not know the voters"
    );
    assert_eq!(rig.status(3).phase, Phase::Follower);
    rig.pass(2_000);
    assert_eq!(rig.status(3).standing, Standing::Voter);
    assert_eq!(rig.status(3).membership, *rig.membership());
    assert_eq!(rig.applied(3), rig.applied(1));
    assert!(is_whole(&mut rig, 3));
}

#[test]
fn a_damaged_vote_for_a_membership_is_not_taken_for_none() {
    let mut rig = after_commands(2, Config::default());
    rig.isolate(3);
    rig.change(1, &[prefer(2)], true);
    rig.settle();
    let at = rig.status(1).last;
    rig.crash(1);
    restart_damaged(&mut rig, 2, &[at.0]);
    rig.take(|_| true);
    rig.heal();
    rig.pass(5_000);
    assert_eq!(rig.status(3).chosen, at.previous());
    rig.restart(1);
    rig.pass(5_000);
    assert_eq!(rig.membership().version, 2);
    assert_eq!(rig.status(2).membership, *rig.membership());
}

#[test]
fn what_the_peers_have_trimmed_is_repaired_by_a_snapshot_of_what_is_known_already() {
    let mut rig = after_commands(6, with_snapshots());
    for node in [1, 2] {
        rig.step(node, Input::TakeSnapshot);
        rig.settle();
        assert_eq!(rig.status(node).trimmed, Slot(6));
    }
    restart_damaged(&mut rig, 3, &[3]);
    assert_eq!(rig.status(3).chosen, Slot(6));
    rig.pass(3_000);
    assert_eq!(rig.applied(3), rig.applied(1));
    assert_eq!((rig.status(3).trimmed, rig.status(3).chosen), (Slot(6), Slot(6)));
    assert!(is_whole(&mut rig, 3));
}

#[test]
fn a_leader_whose_own_snapshot_will_cover_the_damage_leads_on() {
    let mut rig = after_commands(6, with_snapshots());
    for node in [2, 3] {
        rig.step(node, Input::TakeSnapshot);
        rig.settle();
        assert_eq!(rig.status(node).trimmed, Slot(6));
    }
    let ballot = rig.status(1).leader;
    rig.hold_snapshots(1);
    rig.damage(1, 3);
    let slots = vec![Slot(3)];
    rig.step(1, Input::Damaged { slots });
    rig.pass(3_000);
    assert_eq!(rig.status(1).leader, ballot, "its snapshot takes long");
    rig.release_snapshots(1);
    rig.pass(500);
    rig.flush(1);
    assert!(is_whole(&mut rig, 1));
    assert_eq!(rig.status(1).leader, ballot);
}

#[test]
fn damage_that_the_own_snapshot_covers_is_trimmed() {
    let config = Config {
        keep_entries: 100,
        keep_bytes: 1 << 20,
        ..with_snapshots()
    };
    let mut rig = after_commands(6, config);
    rig.step(3, Input::TakeSnapshot);
    rig.settle();
    assert_eq!(
        (rig.status(3).snapshot, rig.status(3).trimmed),
        (Slot(6), Slot::ZERO)
    );
    restart_damaged(&mut rig, 3, &[2, 4]);
    assert_eq!(rig.status(3).trimmed, Slot(4));
    assert_eq!((rig.status(3).damaged, rig.status(3).repaired), (0, 2));
    rig.pass(300);
    assert_eq!(rig.applied(3), rig.applied(1));
}

/// All have applied so many commands; these nodes have a snapshot of that and nothing of the log before it.
fn after_snapshots(count: usize, nodes: &[u64]) -> Rig {
    let mut rig = after_commands(count, with_snapshots());
    for node in nodes {
        rig.step(*node, Input::TakeSnapshot);
        rig.settle();
        assert_eq!(rig.status(*node).trimmed, rig.chosen());
    }
    rig
}

/// The node loses its process and its snapshots, and comes back.
fn restart_without_snapshots(rig: &mut Rig, node: u64) {
    rig.flush(node);
    rig.crash(node);
    rig.lose_snapshots(node, Slot::ZERO);
    rig.restart(node);
    assert!(rig.status(node).lacks_snapshot);
    assert_eq!(rig.applied(node), Vec::<&str>::new());
}

#[test]
fn a_node_that_has_lost_its_snapshots_gets_one_from_a_peer() {
    let mut rig = after_snapshots(6, &[1, 2, 3]);
    restart_without_snapshots(&mut rig, 3);
    write(&mut rig, 3);
    rig.pass(3_000);
    assert_eq!(rig.applied(3), rig.applied(1));
    assert!(!rig.status(3).lacks_snapshot);
    assert_eq!(rig.leader(), Some(1), "nobody was disturbed");
    rig.crash(3);
    rig.restart(3);
    assert!(!rig.status(3).lacks_snapshot, "it is durable");
}

#[test]
fn a_peer_that_has_no_snapshot_yet_takes_one_for_who_has_lost_his() {
    let mut rig = after_snapshots(6, &[3]);
    assert_eq!((rig.snapshot(1), rig.snapshot(2)), (Slot::ZERO, Slot::ZERO));
    restart_without_snapshots(&mut rig, 3);
    rig.pass(5_000);
    assert_eq!(rig.applied(3), rig.applied(1));
    assert!(!rig.status(3).lacks_snapshot);
    assert!(rig.snapshot(1).max(rig.snapshot(2)) >= Slot(6));
}

#[test]
fn an_older_snapshot_that_does_not_reach_the_log_is_of_no_use() {
    let mut rig = after_snapshots(3, &[1, 2, 3]);
    write(&mut rig, 3);
    rig.pass(300);
    rig.step(3, Input::TakeSnapshot);
    rig.settle();
    rig.flush(3);
    rig.crash(3);
    rig.lose_snapshots(3, Slot(3));
    rig.restart(3);
    assert!(rig.status(3).lacks_snapshot);
    assert_eq!(rig.applied(3).len(), 3, "it is not applied over the gap");
    rig.pass(5_000);
    assert_eq!(rig.applied(3), rig.applied(1));
    assert!(!rig.status(3).lacks_snapshot);
}

#[test]
fn a_node_that_has_lost_its_snapshots_votes_on_but_does_not_lead() {
    let mut rig = after_snapshots(6, &[1, 2, 3]);
    rig.hold_snapshots(3);
    restart_without_snapshots(&mut rig, 3);
    rig.crash(2);
    rig.propose(1, b"chosen with its vote");
    rig.pass(300);
    assert_eq!(rig.chosen(), Slot(7));
    rig.crash(1);
    rig.pass(5_000);
    assert_eq!(
        rig.status(3).phase,
        Phase::Follower,
        "others may need what it has lost"
    );
    rig.restart(2);
    rig.pass(5_000);
    assert_eq!(rig.leader(), Some(2));
    rig.release_snapshots(3);
    rig.pass(5_000);
    assert_eq!(rig.applied(3), rig.applied(2));
    assert_eq!(rig.applied(3).last(), Some(&"chosen with its vote"));
}

#[test]
fn what_went_with_the_snapshots_counts_for_no_vote() {
    let mut rig = after_commands(2, with_snapshots());
    rig.isolate(2);
    rig.propose(1, b"known to n1 and n3");
    rig.pass_for_where(&[1, 3], 300, |letter| letter.to != 2);
    rig.step(3, Input::TakeSnapshot);
    rig.settle_where(|letter| letter.to != 2);
    assert_eq!(rig.status(3).trimmed, Slot(3));
    rig.crash(1);
    restart_without_snapshots(&mut rig, 3);
    rig.take(|_| true);
    rig.heal();
    rig.pass(5_000);
    assert_eq!(
        rig.status(2).chosen,
        Slot(2),
        "nobody there can tell what slot 3 holds"
    );
    rig.restart(1);
    rig.pass(5_000);
    for node in 1..=3 {
        assert_eq!(rig.applied(node).last(), Some(&"known to n1 and n3"), "n{node}");
    }
    assert!(!rig.status(3).lacks_snapshot);
}

#[test]
fn who_the_members_are_comes_back_with_the_snapshot() {
    let mut rig = after_commands(2, with_snapshots());
    let token = rig.change(1, &[prefer(2)], false);
    rig.pass(1_000);
    assert!(matches!(rig.ending(token), Some(Ending::Changed(_))));
    for node in 1..=3 {
        rig.step(node, Input::TakeSnapshot);
        rig.settle();
    }
    restart_without_snapshots(&mut rig, 3);
    assert_eq!(
        rig.status(3).standing,
        Standing::Joining,
        "it does not know the voters"
    );
    rig.pass(5_000);
    assert_eq!(rig.status(3).standing, Standing::Voter);
    assert_eq!(rig.status(3).membership, *rig.membership());
    assert_eq!(rig.applied(3), rig.applied(1));
}

#[test]
fn a_value_whose_only_witness_has_lost_it_with_its_snapshots_is_found_by_the_others() {
    let mut rig = after_commands(1, with_snapshots());
    rig.propose(1, b"known to n1 only");
    rig.settle();
    let slot = rig.chosen();
    rig.pass_for_where(&[1], 150, |letter| letter.from != 1);
    rig.step(1, Input::TakeSnapshot);
    rig.pass_for_where(&[1], 50, |letter| letter.from != 1);
    assert_eq!(rig.status(1).trimmed, slot);
    rig.take(|_| true);
    restart_without_snapshots(&mut rig, 1);
    assert!(rig.status(2).chosen < slot && rig.status(3).chosen < slot);
    rig.pass(5_000);
    for node in 1..=3 {
        assert_eq!(rig.applied(node)[1], "known to n1 only");
        assert!(!rig.status(node).lacks_snapshot);
    }
}
