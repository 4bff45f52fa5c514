//! The session layer against a model of it, under random retries, reorderings, groupings into runs and snapshots.
//!
//! `PROPTEST_CASES` sets how many cases are tried.
#![cfg(feature = "testing")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use bytes::Bytes;
use paxos::{
    ApplyCommand, Ballot, Chosen, MachineError, ProposalId, Slot, SnapshotSource, StateMachine,
    sessions::{Answer, Call, Command, Limits, SessionId, Sessions},
};
use proptest::{collection::vec, prelude::*};

/// Keeps every command; the reply is its number, and padding that the command asks for.
#[derive(Clone, Default)]
struct List {
    applied: Slot,
    commands: Vec<Bytes>,
}

impl StateMachine for List {
    fn applied(&self) -> Slot {
        self.applied
    }

    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        for command in chosen.commands {
            self.commands.push(command.payload.clone());
            let padding = usize::from(command.payload.last().copied().unwrap_or_default());
            replies.push(format!("{}{:padding$}", self.commands.len(), "").into());
        }
        self.applied = chosen.upto;
        Ok(())
    }

    fn query(&self, _: Bytes) -> Bytes {
        Bytes::new()
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Ok(Box::new(self.clone()))
    }

    fn restore(&mut self, upto: Slot, from: &mut dyn io::Read) -> Result<(), MachineError> {
        let mut bytes = Vec::new();
        let read = from.read_to_end(&mut bytes);
        read.map_err(|error| MachineError::new(error.to_string()))?;
        self.applied = upto;
        self.commands = bytes.chunks(17).map(Bytes::copy_from_slice).collect();
        Ok(())
    }

    fn digest(&self) -> Option<u64> {
        Some(self.commands.len() as u64)
    }
}

impl SnapshotSource for List {
    fn write_to(self: Box<Self>, to: &mut dyn io::Write) -> io::Result<()> {
        self.commands.iter().try_for_each(|command| to.write_all(command))
    }
}

/// What comes out of the log, as clients and failures make it.
#[derive(Clone, Debug)]
enum Event {
    Open {
        ttl: u64,
        at: u64,
    },
    Close {
        session: usize,
        at: u64,
    },
    /// `below` how much of what is below `sequence` is not acknowledged.
    Call {
        session: usize,
        sequence: u64,
        below: u64,
        at: u64,
        reply_bytes: u8,
    },
    Garbage(Vec<u8>),
}

const FIRST: u64 = 1_000_000;

fn events(sessions: usize, sequences: u64) -> impl Strategy<Value = Vec<Event>> {
    let at = 0..40_000_u64;
    let call = (0..sessions, 1..=sequences, 0..6_u64, at.clone(), any::<u8>()).prop_map(
        |(session, sequence, below, at, reply_bytes)| Event::Call {
            session,
            sequence,
            below,
            at,
            reply_bytes,
        },
    );
    let event = prop_oneof![
        30 => call,
        4 => (1_000..30_000_u64, at.clone()).prop_map(|(ttl, at)| Event::Open { ttl, at }),
        1 => (0..sessions, at).prop_map(|(session, at)| Event::Close { session, at }),
        1 => vec(any::<u8>(), 0..12).prop_map(Event::Garbage),
    ];
    vec(event, 1..150)
}

/// The bytes of an event; `opened` are the sessions so far, of which events name the latest first.
fn encode(event: &Event, opened: &[SessionId]) -> Bytes {
    let session_id = |index: &usize| opened[opened.len() - 1 - index % opened.len()];
    match event {
        Event::Open { ttl, at } => Command::Open {
            ttl_ms: *ttl,
            stamp_ms: FIRST + at,
        }
        .encode(),
        Event::Close { session, at } => Command::Close {
            session: session_id(session),
            stamp_ms: FIRST + at,
        }
        .encode(),
        Event::Call {
            session,
            sequence,
            below,
            at,
            reply_bytes,
        } => {
            let call = Call {
                session: session_id(session),
                sequence: *sequence,
                acked: sequence.saturating_sub(*below),
                stamp_ms: FIRST + at,
            };
            let mut payload = [0; 17];
            payload[..8].copy_from_slice(&session_id(session).0.to_le_bytes());
            payload[8..16].copy_from_slice(&sequence.to_le_bytes());
            payload[16] = *reply_bytes;
            call.encode(&payload)
        }
        // Never taken for a bare command, which may happen more than once.
        Event::Garbage(bytes) => Bytes::from([&[200_u8][..], bytes].concat()),
    }
}

fn apply(machine: &mut Sessions<List>, run: &[Bytes]) -> Vec<Answer> {
    let upto = Slot(machine.applied().0 + run.len() as u64);
    let first = machine.applied().0 + 1;
    let commands: Vec<ApplyCommand> = (first..)
        .zip(run)
        .map(|(slot, payload)| ApplyCommand {
            slot: Slot(slot),
            ballot: Ballot::ZERO,
            id: ProposalId::default(),
            payload: payload.clone(),
        })
        .collect();
    let mut replies = Vec::new();
    let commands = &commands;
    machine.apply(Chosen { upto, commands }, &mut replies).unwrap();
    replies
        .iter()
        .map(|reply| Answer::decode(reply).unwrap())
        .collect()
}

fn opened_by(answer: &Answer) -> Option<SessionId> {
    match answer {
        Answer::Opened(session) => Some(*session),
        _ => None,
    }
}

fn restored(machine: &Sessions<List>, limits: Limits) -> Sessions<List> {
    let mut bytes = Vec::new();
    machine.snapshot().unwrap().write_to(&mut bytes).unwrap();
    let mut copy = Sessions::with_limits(List::default(), limits);
    copy.restore(machine.applied(), &mut &bytes[..]).unwrap();
    copy
}

/// One session as the documentation has it, without bounds on bytes, time and number.
#[derive(Default)]
struct Model {
    acked: u64,
    replies: BTreeMap<u64, Bytes>,
}

proptest! {
    #[test]
    fn one_effect_and_one_answer(events in events(3, 25), cuts in vec((1..9_usize, any::<bool>()), 1..40)) {
        let limits = Limits { max_window: 8, ..Limits::default() };
        let mut machine = Sessions::with_limits(List::default(), limits);
        let opened = vec![Command::Open { ttl_ms: u64::MAX, stamp_ms: FIRST }.encode(); 3];
        let opened: Vec<SessionId> = apply(&mut machine, &opened).iter().filter_map(opened_by).collect();
        // Time stands still and nothing is closed: the rest of the contract is for the other test.
        let calls: Vec<Event> = events
            .into_iter()
            .filter(|event| matches!(event, Event::Call { .. } | Event::Garbage(_)))
            .map(|event| match event {
                Event::Call { session, sequence, below, reply_bytes, .. } => {
                    Event::Call { session, sequence, below, at: 0, reply_bytes }
                }
                other => other,
            })
            .collect();
        let mut rest = &calls[..];
        let mut answers = Vec::new();
        for (length, swap) in cuts.iter().cycle() {
            let run: Vec<Bytes> = rest.iter().take(*length).map(|event| encode(event, &opened)).collect();
            rest = &rest[run.len()..];
            answers.extend(apply(&mut machine, &run));
            if *swap {
                machine = restored(&machine, limits);
            }
            if rest.is_empty() {
                break;
            }
        }
        let mut models: BTreeMap<usize, Model> = BTreeMap::new();
        for (event, answer) in calls.iter().zip(&answers) {
            let Event::Call { session, sequence, below, .. } = event else {
                prop_assert_eq!(answer, &Answer::Malformed);
                continue;
            };
            let model = models.entry(*session).or_default();
            let acked = model.acked.max(sequence.saturating_sub(*below)).max(1);
            if *sequence < acked {
                prop_assert_eq!(answer, &Answer::Stale);
            } else if *sequence >= acked + limits.max_window {
                prop_assert_eq!(answer, &Answer::BeyondWindow { end: acked + limits.max_window });
            } else {
                model.acked = acked;
                let Answer::Reply(reply) = answer else { panic!("{event:?}: {answer:?}") };
                let first = model.replies.entry(*sequence).or_insert_with(|| reply.clone());
                prop_assert_eq!(&*first, reply, "one answer");
            }
        }
        let executed = &machine.machine().commands;
        let effects: BTreeSet<&[u8]> = executed.iter().map(|command| &command[..16]).collect();
        prop_assert_eq!(effects.len(), executed.len(), "one effect");
        let answered: usize = models.values().map(|model| model.replies.len()).sum();
        prop_assert_eq!(effects.len(), answered, "an effect for each answer, and no other");
    }

    #[test]
    fn bounds_hold_and_nothing_depends_on_runs_or_snapshots(
        events in events(6, 9),
        cuts in vec((1..20_usize, any::<bool>()), 1..40),
    ) {
        let limits = Limits {
            max_sessions: 4,
            max_window: 5,
            max_ttl_ms: 20_000,
            max_session_reply_bytes: 700,
            max_reply_bytes: 1_500,
        };
        let mut single = Sessions::with_limits(List::default(), limits);
        let mut opened = vec![SessionId(7)];
        let (mut commands, mut expected) = (Vec::new(), Vec::new());
        for event in &events {
            commands.push(encode(event, &opened));
            let answers = apply(&mut single, &commands[commands.len() - 1..]);
            opened.extend(answers.iter().filter_map(opened_by));
            expected.extend(answers);
            prop_assert!(single.sessions() <= limits.max_sessions);
            prop_assert!(single.reply_bytes() <= limits.max_reply_bytes);
        }
        let mut machine = Sessions::with_limits(List::default(), limits);
        let mut answers = Vec::new();
        let mut rest = &commands[..];
        for (length, swap) in cuts.iter().cycle() {
            let (run, later) = rest.split_at((*length).min(rest.len()));
            rest = later;
            answers.extend(apply(&mut machine, run));
            if *swap {
                machine = restored(&machine, limits);
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(answers, expected);
        prop_assert_eq!(machine.digest(), single.digest());
        // Ids are never used again, so a session and a sequence are one command.
        let executed = &machine.machine().commands;
        let effects: BTreeSet<&[u8]> = executed.iter().map(|command| &command[..16]).collect();
        prop_assert_eq!(effects.len(), executed.len(), "one effect");
    }
}
