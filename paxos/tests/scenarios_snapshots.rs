//! Directed scenarios of snapshots: taking them, trimming behind them, and catching up by them.
//!
//! The [`Rig`] checks the safety invariants on every write and every message, and that what is trimmed is in a durable
//! snapshot; a violation fails the test with the transcript.
#![cfg(feature = "testing")]

use bytes::Bytes;
use paxos::{
    Slot,
    core::{Config, Input, Message, Phase, Token},
    testing::sim::{Ending, Letter, Rig},
};

/// Snapshots when they are asked for, in small pieces, with nothing of the log kept behind them, nor in memory.
fn by_hand() -> Config {
    Config {
        snapshots: true,
        snapshot_entries: 0,
        snapshot_bytes: 0,
        keep_entries: 0,
        keep_bytes: 0,
        max_cache_bytes: 0,
        max_laggard_entries: 0,
        snapshot_chunk_bytes: 64,
        ..Config::default()
    }
}

/// A bug may be planted, to see that the scenario made for it fails.
fn led_by(leader: u64, nodes: u64, config: Config) -> Rig {
    #[cfg(paxos_planted)]
    if let Ok(name) = std::env::var("PAXOS_PLANT")
        && !name.is_empty()
    {
        paxos::planted::plant(&name).expect("the name of a bug");
    }
    let mut rig = Rig::with(nodes, config);
    rig.elect(leader);
    rig
}

/// `count` more commands, each an entry.
fn write(rig: &mut Rig, node: u64, count: usize) -> Vec<Token> {
    let write_one = |number| {
        let token = rig.propose(node, format!("command {number}").as_bytes());
        rig.settle();
        token
    };
    (0..count).map(write_one).collect()
}

fn take_snapshot(rig: &mut Rig, node: u64) -> Slot {
    rig.step(node, Input::TakeSnapshot);
    rig.settle();
    rig.snapshot(node)
}

/// n3 is away while n1 and n2 write, and trim it all.
fn behind_the_trim_point(config: Config) -> Rig {
    let mut rig = led_by(1, 3, config);
    write(&mut rig, 1, 2);
    rig.isolate(3);
    write(&mut rig, 1, 10);
    rig.pass(200);
    for node in [1, 2] {
        assert_eq!(take_snapshot(&mut rig, node), Slot(12));
        assert_eq!(rig.status(node).trimmed, Slot(12));
    }
    rig.take(|_| true);
    rig.heal();
    rig
}

fn in_step(rig: &Rig, node: u64, other: u64) -> bool {
    rig.applied(node) == rig.applied(other)
}

fn is_chunk(letter: &Letter) -> bool {
    matches!(letter.message, Message::SnapshotChunk { .. })
}

fn is_fetch_from_the_start(letter: &Letter) -> bool {
    matches!(letter.message, Message::FetchSnapshot { offset: 0, .. })
}

mod taking {
    use super::*;

    #[test]
    fn a_log_is_trimmed_only_behind_a_durable_snapshot() {
        let mut rig = led_by(1, 3, by_hand());
        write(&mut rig, 1, 10);
        rig.hold_snapshots(1);
        take_snapshot(&mut rig, 1);
        write(&mut rig, 1, 2);
        rig.pass(500);
        assert_eq!(rig.status(1).trimmed, Slot::ZERO, "it is not written yet");
        rig.release_snapshots(1);
        write(&mut rig, 1, 1);
        assert_eq!(rig.disk(1).trimmed, Slot(10), "the snapshot is of slot 10");
        assert_eq!(rig.disk(1).entries.keys().next(), Some(&Slot(11)));
    }

    #[test]
    fn snapshots_are_taken_by_count_and_by_bytes() {
        let by_count = Config {
            snapshot_entries: 5,
            ..by_hand()
        };
        let by_bytes = Config {
            snapshot_bytes: 900,
            ..by_hand()
        };
        for (config, expected) in [(by_count, 10), (by_bytes, 8)] {
            let mut rig = led_by(1, 1, config);
            write(&mut rig, 1, 11);
            assert_eq!(rig.snapshot(1), Slot(expected));
        }
    }

    #[test]
    fn a_snapshot_that_fails_is_taken_again_later() {
        let config = Config {
            snapshot_entries: 5,
            ..by_hand()
        };
        let mut rig = led_by(1, 1, config);
        rig.hold_snapshots(1);
        write(&mut rig, 1, 6);
        rig.step(1, Input::SnapshotFailed { upto: Slot(5) });
        write(&mut rig, 1, 3);
        rig.release_snapshots(1);
        write(&mut rig, 1, 1);
        assert_eq!(rig.snapshot(1), Slot(10));
    }

    #[test]
    fn a_tail_of_entries_or_of_bytes_is_kept() {
        for (keep_entries, keep_bytes, kept) in [(4, 1 << 20, 4), (1_000, 500, 4)] {
            let config = Config {
                keep_entries,
                keep_bytes,
                ..by_hand()
            };
            let mut rig = led_by(1, 1, config);
            write(&mut rig, 1, 20);
            take_snapshot(&mut rig, 1);
            let trimmed = rig.status(1).trimmed.0;
            assert!(
                (20 - kept - 2..=20 - kept).contains(&trimmed),
                "trimmed {trimmed}"
            );
        }
    }

    #[test]
    fn trimming_waits_for_a_peer_that_is_behind_but_not_for_one_that_is_far_behind_or_gone() {
        let from_log = |letter: &Letter| {
            let log = matches!(letter.message, Message::Accept { .. } | Message::Learned { .. });
            !log || letter.to != 3
        };
        for (max_laggard_entries, alive, trimmed) in [(100, true, 2), (5, true, 12), (100, false, 12)] {
            let config = Config {
                max_laggard_entries,
                ..by_hand()
            };
            let mut rig = led_by(1, 3, config);
            write(&mut rig, 1, 2);
            rig.pass(200);
            if !alive {
                rig.crash(3);
            }
            for _ in 0..10 {
                rig.propose(1, b"x");
                rig.settle_where(from_log);
            }
            rig.pass_for_where(&[1, 2, 3], 2_500, from_log);
            rig.step(1, Input::TakeSnapshot);
            assert_eq!(
                rig.status(1).trimmed,
                Slot(trimmed),
                "{max_laggard_entries} {alive}"
            );
            rig.pass(1_000);
            assert_eq!(
                rig.status(1).trimmed,
                Slot(12),
                "it has caught up, or is not waited for"
            );
        }
    }

    #[test]
    fn trimming_can_be_paused_and_resumed() {
        let mut rig = led_by(1, 1, by_hand());
        rig.step(1, Input::PauseTrimming(true));
        write(&mut rig, 1, 5);
        assert_eq!(take_snapshot(&mut rig, 1), Slot(5));
        rig.pass(500);
        assert_eq!(rig.status(1).trimmed, Slot::ZERO);
        rig.step(1, Input::PauseTrimming(false));
        assert_eq!(rig.status(1).trimmed, Slot(5));
    }

    #[test]
    fn a_restart_from_snapshot_and_tail_equals_the_run_without() {
        let mut rig = led_by(1, 3, by_hand());
        rig.propose(2, b"forwarded");
        let forwards = rig.take(|letter| matches!(letter.message, Message::Forward { .. }));
        for letter in &forwards {
            rig.deliver(letter.clone());
        }
        write(&mut rig, 1, 5);
        take_snapshot(&mut rig, 1);
        write(&mut rig, 1, 3);
        rig.pass(300);
        let before: Vec<String> = rig.applied(2).into_iter().map(String::from).collect();
        for node in 1..=3 {
            rig.crash(node);
        }
        for node in 1..=3 {
            rig.restart(node);
        }
        rig.elect(1);
        // The duplicate filter came back with the snapshot.
        for letter in forwards {
            rig.deliver(letter);
        }
        rig.pass(2_000);
        assert_eq!(rig.applied(1), before);
        assert!(in_step(&rig, 1, 2), "n2 has replayed the whole log");
    }

    #[test]
    fn without_a_place_for_snapshots_none_is_taken_and_nothing_is_trimmed() {
        let config = Config {
            snapshots: false,
            snapshot_entries: 1,
            ..by_hand()
        };
        let mut rig = led_by(1, 1, config);
        write(&mut rig, 1, 5);
        assert_eq!(
            (take_snapshot(&mut rig, 1), rig.status(1).trimmed),
            (Slot::ZERO, Slot::ZERO)
        );
    }
}

mod catching_up {
    use super::*;

    #[test]
    fn a_laggard_behind_the_trim_point_gets_a_snapshot_and_votes_again() {
        let mut rig = behind_the_trim_point(by_hand());
        rig.pass(2_000);
        assert!(in_step(&rig, 3, 1), "{}", rig.transcript());
        assert_eq!(
            (rig.status(3).snapshot, rig.status(3).trimmed),
            (Slot(12), Slot(12))
        );
        rig.crash(2);
        let token = rig.propose(1, b"needs n3");
        rig.pass(500);
        assert!(matches!(rig.ending(token), Some(Ending::Applied(_))));
    }

    #[test]
    fn entries_are_preferred_to_a_snapshot() {
        let mut rig = led_by(1, 3, by_hand());
        rig.isolate(3);
        write(&mut rig, 1, 10);
        rig.pass(200);
        assert_eq!(take_snapshot(&mut rig, 1), Slot(10));
        rig.heal();
        rig.pass(2_000);
        assert!(in_step(&rig, 3, 1));
        assert_eq!(rig.snapshot(3), Slot::ZERO, "n2 still had the entries");
    }

    #[test]
    fn chunks_may_be_lost_and_repeated() {
        for lost in 0..4 {
            let mut rig = behind_the_trim_point(by_hand());
            let mut chunks = 0;
            for _ in 0..8_000 {
                rig.pass_for_where(&[1, 2, 3], 1, |letter| !is_chunk(letter));
                for letter in rig.take(is_chunk) {
                    if chunks % 4 != lost {
                        rig.deliver(letter.clone());
                        rig.deliver(letter);
                    }
                    chunks += 1;
                }
            }
            assert!(in_step(&rig, 3, 1), "{}", rig.transcript());
            assert!(chunks > 4);
        }
    }

    #[test]
    fn a_peer_that_cannot_read_its_snapshot_holds_nobody_up() {
        let mut rig = behind_the_trim_point(by_hand());
        rig.spoil_snapshots(2);
        rig.pass(5_000);
        assert!(in_step(&rig, 3, 1), "n1 has a snapshot too");
    }

    #[test]
    fn a_peer_whose_only_snapshot_cannot_be_read_is_asked_less_and_less() {
        let mut rig = behind_the_trim_point(by_hand());
        rig.spoil_snapshots(1);
        rig.spoil_snapshots(2);
        let mut fetches = [0, 0];
        for count in &mut fetches {
            for _ in 0..10_000 {
                let asks = |letter: &Letter| matches!(letter.message, Message::FetchSnapshot { .. });
                rig.pass_for_where(&[1, 2, 3], 1, |letter| !asks(letter));
                for letter in rig.take(asks) {
                    *count += 1;
                    rig.deliver(letter);
                }
            }
        }
        assert!(fetches[0] > 2 && fetches[1] < fetches[0], "{fetches:?}");
        assert!(!in_step(&rig, 3, 1));
    }

    /// Lets n3 fetch so many chunks, and returns who sends them.
    fn fetch_chunks(rig: &mut Rig, count: usize) -> u64 {
        let mut sender = None;
        for _ in 0..count {
            let mut letters = Vec::new();
            for _ in 0..5_000 {
                rig.pass_for_where(&[1, 2, 3], 1, |letter| !is_chunk(letter));
                letters = rig.take(is_chunk);
                if !letters.is_empty() {
                    break;
                }
            }
            for letter in letters {
                sender = Some(letter.from);
                rig.deliver(letter);
            }
        }
        sender.expect("n3 fetches")
    }

    #[test]
    fn a_sender_that_crashes_and_comes_back_goes_on_where_it_was() {
        let mut rig = behind_the_trim_point(by_hand());
        let sender = fetch_chunks(&mut rig, 2);
        rig.crash(sender);
        rig.take(|_| true);
        rig.restart(sender);
        let mut begun_anew = 0;
        for _ in 0..5_000 {
            rig.pass_for_where(&[1, 2, 3], 1, |letter| !is_fetch_from_the_start(letter));
            let letters = rig.take(is_fetch_from_the_start);
            begun_anew += letters.len();
            for letter in letters {
                rig.deliver(letter);
            }
        }
        assert!(in_step(&rig, 3, 1), "{}", rig.transcript());
        assert_eq!(begun_anew, 0);
    }

    #[test]
    fn chunks_that_come_later_than_the_receiver_waits_are_taken_all_the_same() {
        // As when many transfers share the sender's pace.
        let mut rig = behind_the_trim_point(by_hand());
        fetch_chunks(&mut rig, 2);
        for _ in 0..20 {
            rig.pass_for_where(&[1, 2, 3], 4_000, |letter| !is_chunk(letter));
            let oldest = rig.take(is_chunk).into_iter().next();
            if let Some(letter) = oldest {
                rig.deliver(letter);
            }
        }
        assert!(in_step(&rig, 3, 1), "{}", rig.transcript());
    }

    #[test]
    fn a_fetch_that_goes_on_with_a_peer_whose_snapshot_is_shorter_begins_anew() {
        let mut rig = behind_the_trim_point(by_hand());
        let sender = fetch_chunks(&mut rig, 2);
        rig.crash(sender);
        let mut chunk = None;
        while chunk.is_none() {
            rig.pass_for_where(&[1, 2, 3], 100, |letter| !is_chunk(letter));
            chunk = rig.take(|letter| is_chunk(letter) && letter.from != sender).pop();
        }
        let mut chunk = chunk.expect("the other peer sends");
        if let Message::SnapshotChunk {
            data, total, offset, ..
        } = &mut chunk.message
        {
            assert_eq!(*offset, 128, "it goes on where the first one was");
            // What is answered beyond the end.
            (*data, *total) = (Bytes::new(), 100);
        }
        rig.take(|_| true);
        rig.deliver(chunk);
        assert_eq!(rig.take(is_fetch_from_the_start).len(), 1);
    }

    #[test]
    fn a_sender_that_stays_away_is_replaced() {
        let mut rig = behind_the_trim_point(by_hand());
        let sender = fetch_chunks(&mut rig, 2);
        rig.crash(sender);
        rig.pass(8_000);
        assert!(in_step(&rig, 3, 3 - sender), "{}", rig.transcript());
    }

    #[test]
    fn a_receiver_that_crashes_begins_anew() {
        let mut rig = behind_the_trim_point(by_hand());
        fetch_chunks(&mut rig, 2);
        rig.crash(3);
        rig.take(|_| true);
        rig.restart(3);
        rig.pass(3_000);
        assert!(in_step(&rig, 3, 1), "{}", rig.transcript());
    }

    #[test]
    fn a_damaged_snapshot_is_never_installed() {
        let mut rig = behind_the_trim_point(by_hand());
        let mut damaged = 0;
        for _ in 0..5_000 {
            rig.pass_for_where(&[1, 2, 3], 1, |letter| !is_chunk(letter));
            for mut letter in rig.take(is_chunk) {
                if let Message::SnapshotChunk { data, offset: 64, .. } = &mut letter.message
                    && damaged < 2
                {
                    damaged += 1;
                    *data = data.iter().map(|byte| byte ^ 1).collect::<Bytes>();
                }
                rig.deliver(letter);
            }
        }
        assert_eq!(damaged, 2);
        assert!(in_step(&rig, 3, 1), "{}", rig.transcript());
    }

    #[test]
    fn a_crash_between_receiving_and_installing_begins_from_the_snapshot() {
        let mut rig = behind_the_trim_point(by_hand());
        rig.hold_disk(3);
        rig.pass(2_000);
        assert_eq!(rig.snapshot(3), Slot(12), "the snapshot is whole");
        rig.crash(3);
        assert!(rig.disk(3).hard.chosen < Slot(12), "the log does not know of it");
        rig.release_disk(3);
        rig.restart(3);
        assert_eq!((rig.status(3).chosen, rig.applied(3).len()), (Slot(12), 12));
        rig.pass(500);
        assert_eq!(rig.disk(3).trimmed, Slot(12));
        write(&mut rig, 1, 2);
        rig.pass(500);
        assert!(in_step(&rig, 3, 1));
    }

    #[test]
    fn a_snapshot_that_the_log_has_overtaken_is_not_installed() {
        // n1 offers a snapshot and n2 is silent; then n2's entries arrive all the same, while n3 still verifies.
        let mut rig = led_by(1, 3, by_hand());
        rig.isolate(3);
        write(&mut rig, 1, 10);
        rig.pass(200);
        take_snapshot(&mut rig, 1);
        rig.take(|_| true);
        rig.heal();
        rig.cut(2, 3);
        rig.hold_snapshots(3);
        rig.pass(3_000);
        assert_eq!(rig.status(3).fetch.map(|fetch| fetch.upto), Some(Slot(10)));
        rig.heal();
        write(&mut rig, 1, 2);
        let message = Message::Learn {
            from: Slot(1),
            upto: Slot(12),
        };
        rig.deliver(Letter {
            from: 3,
            to: 2,
            message,
        });
        rig.pass(500);
        assert_eq!(rig.status(3).chosen, Slot(12));
        rig.release_snapshots(3);
        rig.pass(500);
        assert_eq!((rig.status(3).chosen, rig.status(3).fetch), (Slot(12), None));
        assert!(in_step(&rig, 3, 1));
    }

    #[test]
    fn a_laggard_catches_up_under_full_load_however_often_snapshots_are_taken() {
        let config = Config {
            snapshot_entries: 10,
            keep_entries: 5,
            keep_bytes: 1 << 20,
            max_laggard_entries: 5_000,
            max_window_entries: 64,
            ..by_hand()
        };
        let mut rig = led_by(1, 3, config);
        rig.isolate(3);
        for _ in 0..100 {
            rig.propose(1, b"x");
            rig.pass(1);
        }
        rig.pass_for(&[1, 2, 3], 600);
        rig.heal();
        // Every message of a snapshot takes long enough for several further snapshots.
        let of_snapshots = |letter: &Letter| {
            is_chunk(letter)
                || matches!(
                    letter.message,
                    Message::FetchSnapshot { .. } | Message::Trimmed { .. }
                )
        };
        for round in 0..2_000 {
            rig.propose(1, b"x");
            rig.pass_for_where(&[1, 2, 3], 1, |letter| !of_snapshots(letter));
            if round % 25 == 0 {
                for letter in rig.take(of_snapshots) {
                    rig.deliver(letter);
                }
            }
        }
        let (chosen, laggard) = (rig.status(1).chosen, rig.status(3).chosen);
        assert!(
            chosen.since(laggard) < 100,
            "{laggard} of {chosen}: {:?}",
            rig.status(3)
        );
    }

    #[test]
    fn own_proposals_that_a_snapshot_covers_end_unknown_and_happen_once() {
        let mut rig = led_by(1, 3, by_hand());
        let token = rig.propose(3, b"from n3");
        rig.settle_where(|letter| matches!(letter.message, Message::Forward { .. }));
        rig.isolate(3);
        rig.settle();
        rig.pass(200);
        assert!(rig.applied(1).contains(&"from n3"));
        take_snapshot(&mut rig, 1);
        take_snapshot(&mut rig, 2);
        assert_eq!(rig.ending(token), None);
        rig.heal();
        rig.pass(3_000);
        assert_eq!(rig.ending(token), Some(Ending::Unknown), "{}", rig.transcript());
        let next = rig.propose(3, b"next");
        rig.pass(500);
        assert!(matches!(rig.ending(next), Some(Ending::Applied(_))));
        assert_eq!(rig.applied(3), ["from n3", "next"]);
    }
}

mod elections {
    use super::*;

    #[test]
    fn an_accept_for_a_slot_that_is_trimmed_already_is_answered() {
        let mut rig = led_by(1, 3, by_hand());
        rig.propose(1, b"a");
        let accepts = rig.take(|letter| matches!(letter.message, Message::Accept { .. }));
        for letter in &accepts {
            rig.deliver(letter.clone());
        }
        rig.pass(500);
        take_snapshot(&mut rig, 2);
        assert_eq!(rig.status(2).trimmed, Slot(1));
        rig.deliver(accepts[0].clone());
        let answers = rig.take(|letter| matches!(letter.message, Message::Accepted { .. }));
        assert_eq!(answers.len(), 1, "else the leader would wait for ever");
    }

    #[test]
    fn whoever_has_trimmed_what_a_candidate_lacks_does_not_want_it() {
        let mut rig = behind_the_trim_point(by_hand());
        rig.crash(1);
        // n3 canvasses first, and is told how far behind it is.
        rig.pass_for(&[3], 2_000);
        assert_ne!(rig.status(3).phase, Phase::Leader);
        rig.pass(4_000);
        let leader = rig.leader().expect("n2, or n3 once it has caught up");
        write(&mut rig, leader, 1);
        rig.pass(500);
        assert!(in_step(&rig, 2, 3), "{}", rig.transcript());
    }

    #[test]
    fn a_candidate_fetches_what_its_promises_have_trimmed_before_it_leads() {
        // n2 says yes to the canvass, and trims before it promises.
        let mut rig = led_by(1, 3, by_hand());
        rig.isolate(3);
        write(&mut rig, 1, 10);
        rig.pass(200);
        rig.crash(1);
        rig.take(|_| true);
        rig.heal();
        let is_prepare = |letter: &Letter| matches!(letter.message, Message::Prepare { .. });
        while rig.status(3).phase != Phase::Candidate {
            rig.pass_for_where(&[3], 1, |letter| {
                matches!(
                    letter.message,
                    Message::Canvass { .. } | Message::CanvassReply { .. }
                )
            });
        }
        take_snapshot_alone(&mut rig, 2);
        assert_eq!(rig.status(2).trimmed, Slot(10));
        let prepares = rig.take(is_prepare);
        assert!(prepares.iter().any(|letter| letter.to == 2));
        for letter in prepares {
            rig.deliver(letter);
        }
        rig.pass_for(&[3], 400);
        assert_eq!(rig.status(3).phase, Phase::Leader, "{}", rig.transcript());
        assert_eq!(rig.snapshot(3), Slot(10));
        let token = rig.propose(3, b"after it all");
        rig.pass_for(&[3], 200);
        assert_eq!(rig.ending(token), Some(Ending::Applied(Slot(11))));
    }

    /// Without delivering anything.
    fn take_snapshot_alone(rig: &mut Rig, node: u64) {
        rig.step(node, Input::TakeSnapshot);
    }
}
