use std::{
    boxed::Box,
    format, io,
    string::{String, ToString},
    vec,
    vec::Vec,
};

use bytes::Bytes;

use super::*;
use crate::{
    testing::state_machine::check,
    types::{Ballot, Incarnation, NodeId, ProposalId},
};

/// Counts; each reply is how many commands there were, and the command itself. Remembers how it was called.
#[derive(Clone, Debug, Default)]
struct Counter {
    applied: Slot,
    durable: Slot,
    count: u64,
    runs: Vec<Vec<ApplyCommand>>,
}

impl StateMachine for Counter {
    fn applied(&self) -> Slot {
        self.applied
    }

    fn durable(&self) -> Slot {
        self.durable
    }

    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        self.runs.push(chosen.commands.to_vec());
        for command in chosen.commands {
            self.count += 1;
            let text = format!("{} {}", self.count, String::from_utf8_lossy(&command.payload));
            replies.push(text.into());
        }
        self.applied = chosen.upto;
        Ok(())
    }

    fn query(&self, _: Bytes) -> Bytes {
        self.count.to_string().into()
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Ok(Box::new(self.clone()))
    }

    fn restore(&mut self, upto: Slot, from: &mut dyn io::Read) -> Result<(), MachineError> {
        let mut count = [0; 8];
        from.read_exact(&mut count)
            .map_err(|error| MachineError::new(error.to_string()))?;
        (self.applied, self.count) = (upto, u64::from_le_bytes(count));
        Ok(())
    }

    fn digest(&self) -> Option<u64> {
        Some(self.count)
    }
}

impl SnapshotSource for Counter {
    fn write_to(self: Box<Self>, to: &mut dyn io::Write) -> io::Result<()> {
        to.write_all(&self.count.to_le_bytes())
    }
}

type Machine = Sessions<Counter>;

const LIMITS: Limits = Limits {
    max_sessions: 3,
    max_window: 4,
    max_ttl_ms: 100_000,
    max_session_reply_bytes: 240,
    max_reply_bytes: 400,
};

fn machine() -> Machine {
    Sessions::with_limits(Counter::default(), LIMITS)
}

fn apply_commands(machine: &mut Machine, commands: &[Bytes]) -> Vec<Answer> {
    let slot = machine.applied().next();
    let commands: Vec<ApplyCommand> = commands
        .iter()
        .map(|payload| ApplyCommand {
            slot,
            ballot: Ballot {
                round: 9,
                node: NodeId(2),
            },
            id: ProposalId {
                node: NodeId(1),
                incarnation: Incarnation(1),
                sequence: slot.0,
            },
            payload: payload.clone(),
        })
        .collect();
    let mut replies = Vec::new();
    let chosen = Chosen {
        upto: slot,
        commands: &commands,
    };
    machine.apply(chosen, &mut replies).unwrap();
    replies
        .iter()
        .map(|reply| Answer::decode(reply).unwrap())
        .collect()
}

fn apply(machine: &mut Machine, command: Bytes) -> Answer {
    apply_commands(machine, &[command]).remove(0)
}

fn open_at(machine: &mut Machine, ttl_ms: u64, stamp_ms: u64) -> SessionId {
    match apply(machine, Command::Open { ttl_ms, stamp_ms }.encode()) {
        Answer::Opened(session) => session,
        other => panic!("{other:?}"),
    }
}

fn open(machine: &mut Machine) -> SessionId {
    open_at(machine, 50_000, 1_000)
}

fn call_at(session: SessionId, sequence: u64, acked: u64, stamp_ms: u64) -> Bytes {
    let call = Call {
        session,
        sequence,
        acked,
        stamp_ms,
    };
    call.encode(format!("c{sequence}").as_bytes())
}

fn call(session: SessionId, sequence: u64, acked: u64) -> Bytes {
    call_at(session, sequence, acked, 1_000)
}

fn reply(text: &'static str) -> Answer {
    Answer::Reply(Bytes::from_static(text.as_bytes()))
}

fn snapshot(machine: &Machine) -> Vec<u8> {
    let mut bytes = Vec::new();
    machine.snapshot().unwrap().write_to(&mut bytes).unwrap();
    bytes
}

fn swap(machine: &mut Machine) {
    let bytes = snapshot(machine);
    let mut copy = Sessions::with_limits(Counter::default(), machine.limits);
    copy.restore(machine.applied(), &mut &bytes[..]).unwrap();
    assert_eq!(copy.digest(), machine.digest());
    assert_eq!(snapshot(&copy), bytes);
    *machine = copy;
}

#[test]
fn a_command_has_one_effect_and_one_answer_however_often_it_comes() {
    let mut machine = machine();
    let session = open(&mut machine);
    let command = call(session, 1, 1);
    let run = vec![command.clone(), command.clone()];
    assert_eq!(
        apply_commands(&mut machine, &run),
        [reply("1 c1"), reply("1 c1")],
        "in one run"
    );
    assert_eq!(
        apply(&mut machine, command.clone()),
        reply("1 c1"),
        "in a later one"
    );
    swap(&mut machine);
    assert_eq!(apply(&mut machine, command), reply("1 c1"), "after a snapshot");
    assert_eq!(machine.query(Bytes::new()), "1");
}

#[test]
fn the_machine_gets_a_run_as_one_run_with_everything_but_the_header_unchanged() {
    let mut machine = machine();
    let session = open(&mut machine);
    let bare = Command::Bare(Bytes::from_static(b"bare")).encode();
    let run = [
        call(session, 1, 1),
        call(session, 1, 1),
        bare,
        call(session, 2, 1),
    ];
    let answers = apply_commands(&mut machine, &run);
    assert_eq!(
        answers,
        [reply("1 c1"), reply("1 c1"), reply("2 bare"), reply("3 c2")]
    );
    let [_, run] = &machine.machine().runs[..] else {
        panic!("{:?}", machine.machine().runs);
    };
    let payloads: Vec<_> = run.iter().map(|command| &command.payload[..]).collect();
    assert_eq!(payloads, [&b"c1"[..], b"bare", b"c2"]);
    assert_eq!(
        (run[0].slot, run[0].ballot.round, run[0].id.sequence),
        (Slot(2), 9, 2)
    );
}

#[test]
fn what_overtakes_is_executed_once_and_so_is_what_it_overtook() {
    let mut machine = machine();
    let session = open(&mut machine);
    assert_eq!(apply(&mut machine, call(session, 3, 1)), reply("1 c3"));
    assert_eq!(apply(&mut machine, call(session, 1, 1)), reply("2 c1"));
    swap(&mut machine);
    assert_eq!(apply(&mut machine, call(session, 2, 1)), reply("3 c2"));
    assert_eq!(apply(&mut machine, call(session, 3, 1)), reply("1 c3"));
    assert_eq!(apply(&mut machine, call(session, 1, 1)), reply("2 c1"));
    let end = Answer::BeyondWindow { end: 5 };
    assert_eq!(apply(&mut machine, call(session, 5, 1)), end);
    assert_eq!(
        apply(&mut machine, call(session, 5, 2)),
        reply("4 c5"),
        "it was not executed"
    );
}

#[test]
fn what_a_client_has_given_up_is_never_executed_later() {
    let mut machine = machine();
    let session = open(&mut machine);
    apply(&mut machine, call(session, 1, 1));
    assert_eq!(apply(&mut machine, call(session, 4, 4)), reply("2 c4"));
    for late in 1..=3 {
        assert_eq!(apply(&mut machine, call(session, late, 1)), Answer::Stale);
    }
    assert_eq!(machine.query(Bytes::new()), "2");
    assert_eq!(machine.reply_bytes(), 1 + 4 + 64, "released when acked");
}

#[test]
fn sessions_expire_by_the_stamps_in_the_log() {
    let mut machine = machine();
    let idle = open_at(&mut machine, 5_000, 1_000);
    let busy = open_at(&mut machine, 5_000, 1_000);
    assert_eq!(
        apply(&mut machine, call_at(busy, 1, 1, 6_000)),
        reply("1 c1"),
        "just in time"
    );
    assert_eq!(apply(&mut machine, call_at(busy, 2, 2, 6_001)), reply("2 c2"));
    swap(&mut machine);
    assert_eq!(
        apply(&mut machine, call_at(idle, 1, 1, 0)),
        Answer::Expired,
        "whatever its own clock says"
    );
    assert_eq!(
        apply(&mut machine, call(SessionId(u64::MAX), 1, 1)),
        Answer::Expired
    );
    assert_eq!(machine.sessions(), 1);
}

#[test]
fn a_clock_that_is_wrong_by_years_ends_no_session() {
    const YEAR_MS: u64 = 365 * 24 * 3_600_000;
    let mut machine = machine();
    let session = open_at(&mut machine, 90_000, 1_000);
    let ahead = open_at(&mut machine, 90_000, YEAR_MS);
    let at_its_end = open_at(&mut machine, 90_000, u64::MAX);
    assert!(session < ahead && ahead < at_its_end);
    for sequence in 1..=100 {
        apply(
            &mut machine,
            call_at(ahead, sequence, sequence, YEAR_MS + sequence),
        );
        let closed = Command::Close {
            session: at_its_end,
            stamp_ms: u64::MAX,
        };
        apply(&mut machine, closed.encode());
    }
    // It is set right, and wrong again.
    for (sequence, stamp_ms) in (101..).zip([1_100, 2 * YEAR_MS, 1_200, 3 * YEAR_MS]) {
        swap(&mut machine);
        apply(&mut machine, call_at(ahead, sequence, sequence, stamp_ms));
    }
    assert_eq!(
        apply(&mut machine, call_at(session, 1, 1, 2_000)),
        reply("105 c1")
    );
}

#[test]
fn a_clock_that_is_wrong_by_years_passes_time() {
    let mut machine = machine();
    let idle = open_at(&mut machine, 90_000, 1_000);
    let ahead = open_at(&mut machine, 90_000, 1 << 40);
    for sequence in 1..=91 {
        apply(
            &mut machine,
            call_at(ahead, sequence, sequence, (1 << 40) + 1_000 * sequence),
        );
    }
    assert_eq!(apply(&mut machine, call_at(idle, 1, 1, 1_000)), Answer::Expired);
}

#[test]
fn time_that_nobody_uses_a_session_in_is_not_counted() {
    let mut machine = machine();
    let session = open_at(&mut machine, 90_000, 1_000);
    assert_eq!(
        apply(&mut machine, call_at(session, 1, 1, 10_000_000)),
        reply("1 c1")
    );
    let other = open_at(&mut machine, 5_000, 20_000_000);
    assert_eq!(
        apply(&mut machine, call_at(session, 2, 2, 10_005_000)),
        reply("2 c2")
    );
    assert_eq!(apply(&mut machine, call_at(other, 1, 1, 0)), reply("3 c1"));
    assert_eq!(
        apply(&mut machine, call_at(session, 3, 3, 10_010_001)),
        reply("4 c3")
    );
    assert_eq!(apply(&mut machine, call_at(other, 2, 2, 0)), Answer::Expired);
}

#[test]
fn the_least_recently_used_session_makes_room_and_its_id_never_comes_back() {
    let mut machine = machine();
    let sessions = [(); 3].map(|()| open(&mut machine));
    apply(&mut machine, call(sessions[0], 1, 1));
    let fourth = open(&mut machine);
    assert_eq!(machine.sessions(), 3);
    assert_eq!(apply(&mut machine, call(sessions[1], 1, 1)), Answer::Expired);
    assert_eq!(apply(&mut machine, call(sessions[0], 1, 1)), reply("1 c1"));
    let close = Command::Close {
        session: fourth,
        stamp_ms: 1_000,
    };
    assert_eq!(apply(&mut machine, close.encode()), Answer::Closed);
    assert_eq!(apply(&mut machine, call(fourth, 1, 1)), Answer::Expired);
    let fifth = open(&mut machine);
    assert!(!sessions.contains(&fifth) && fifth != fourth);
}

#[test]
fn kept_replies_are_bounded_and_what_lost_its_reply_is_not_executed_again() {
    let mut machine = machine();
    let first = open(&mut machine);
    for sequence in 1..=4 {
        apply(&mut machine, call(first, sequence, 1));
    }
    assert_eq!(
        apply(&mut machine, call(first, 1, 1)),
        Answer::ReplyDropped,
        "the session's bound"
    );
    assert_eq!(apply(&mut machine, call(first, 2, 1)), reply("2 c2"));
    let second = open(&mut machine);
    for sequence in 1..=3 {
        apply(&mut machine, call(second, sequence, 1));
    }
    assert!(machine.reply_bytes() <= LIMITS.max_reply_bytes);
    swap(&mut machine);
    assert_eq!(
        apply(&mut machine, call(first, 2, 1)),
        Answer::ReplyDropped,
        "the bound of all"
    );
    assert_eq!(apply(&mut machine, call(first, 4, 1)), reply("4 c4"));
    assert_eq!(machine.query(Bytes::new()), "7");
}

#[test]
fn sessions_round_a_machine_conform() {
    let ids = 1_000..1_006;
    let opened = ids.clone().map(|_| {
        Command::Open {
            ttl_ms: 5_000,
            stamp_ms: 1_000,
        }
        .encode()
    });
    let calls = (0..120_u64).map(|number| {
        let session = SessionId(ids.start + number % 6);
        let sequence = 1 + number / 9;
        call_at(
            session,
            sequence,
            sequence.saturating_sub(number % 4).max(1),
            1_000 + number * 50,
        )
    });
    let commands: Vec<Bytes> = opened.chain(calls).collect();
    check(machine, &commands, &[Bytes::new()]).unwrap();
    check(
        || Sessions::new(Box::new(Counter::default()) as Box<dyn StateMachine>),
        &commands,
        &[Bytes::new()],
    )
    .unwrap();
}

#[test]
fn a_machine_that_keeps_its_state_on_disk_is_refused() {
    let mut machine = Sessions::new(Counter {
        durable: Slot(1),
        ..Counter::default()
    });
    let chosen = Chosen {
        upto: Slot(1),
        commands: &[],
    };
    let error = machine.apply(chosen, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("on disk"), "{error}");
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused_with_the_reason() {
    let mut origin = machine();
    let session = open(&mut origin);
    apply(&mut origin, call(session, 1, 1));
    apply(&mut origin, call(session, 3, 1));
    let bytes = snapshot(&origin);
    let refused = |limits, bytes: &[u8]| {
        let mut copy = Sessions::with_limits(Counter::default(), limits);
        let error = copy.restore(Slot(3), &mut &bytes[..]).unwrap_err();
        error.to_string()
    };
    let other = Limits {
        max_window: 5,
        ..LIMITS
    };
    assert!(refused(other, &bytes).contains("limits must be the same"));
    assert!(refused(LIMITS, b"the counter's own snapshot").contains("not one of a machine with sessions"));
    let mut newer = bytes.clone();
    newer[4] = 3;
    assert!(refused(LIMITS, &newer).contains("format 3"));
    for cut in 0..bytes.len() {
        refused(LIMITS, &bytes[..cut]);
    }
    // Whatever is damaged: an error or another state, never a panic, and never beyond the bounds.
    for index in 13..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1 << bit;
            let mut copy = machine();
            if copy.restore(Slot(3), &mut &damaged[..]).is_ok() {
                assert!(copy.reply_bytes() <= LIMITS.max_reply_bytes);
                for sequence in 1..=5 {
                    apply(&mut copy, call(session, sequence, 1));
                }
            }
        }
    }
}
