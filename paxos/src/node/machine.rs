//! Runs a group's state machine: hands it chosen entries in runs, and holds it to its contract.

use std::{boxed::Box, collections::VecDeque, format, mem, string::String, vec::Vec};

use bytes::Bytes;

use super::caught;
use crate::{
    core::{ChosenEntry, Token},
    state_machine::{ApplyCommand, Chosen, MachineError, SnapshotSource, StateMachine},
    types::{ProposalId, Slot},
};

/// So many commands make a run; the last entry is taken in whole. What has to be applied may be much more, and other work
/// is looked after between two runs.
const RUN_COMMANDS: usize = 256;

pub(super) struct Machine {
    /// `None` while it is away to be restored.
    inner: Option<Box<dyn StateMachine>>,
    applied: Slot,
    /// What is to be applied, oldest first.
    runs: VecDeque<Run>,
    /// What they hold.
    waiting_bytes: usize,
    /// An empty one, kept for its allocations.
    spare: Run,
    replies: Vec<Bytes>,
}

/// What a command that waits takes beside its payload.
const COMMAND_BYTES: usize = size_of::<ApplyCommand>() + size_of::<Option<Token>>();

/// Chosen entries that are applied together.
#[derive(Default)]
struct Run {
    upto: Slot,
    commands: Vec<ApplyCommand>,
    tokens: Vec<Option<Token>>,
    bytes: usize,
}

/// Whose proposal a command of a run was, and the reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) token: Option<Token>,
    pub(super) id: ProposalId,
    pub(super) reply: Bytes,
}

impl Machine {
    pub(super) fn new(machine: Box<dyn StateMachine>) -> Self {
        let applied = machine.applied();
        Self {
            inner: Some(machine),
            applied,
            runs: VecDeque::new(),
            waiting_bytes: 0,
            spare: Run::default(),
            replies: Vec::new(),
        }
    }

    /// The last slot that the machine has applied.
    pub(super) const fn applied(&self) -> Slot {
        self.applied
    }

    /// Whether the whole machine is at this slot: it is not away, and no part of it is ahead of the log.
    pub(super) fn is_at(&self, slot: Slot) -> bool {
        let inner = self.inner.as_ref();
        self.applied == slot && inner.is_some_and(|machine| machine.reaches() == slot)
    }

    /// Adds a chosen entry to what is to be applied, unless the machine already holds its effects.
    pub(super) fn push(&mut self, entry: ChosenEntry) {
        if entry.slot <= self.applied {
            return;
        }
        let is_open = |run: &Run| run.commands.len() < RUN_COMMANDS;
        if !self.runs.back().is_some_and(is_open) {
            self.runs.push_back(mem::take(&mut self.spare));
        }
        let run = self
            .runs
            .back_mut()
            .expect("a run was pushed unless the last one is open");
        run.upto = entry.slot;
        for chosen in entry.commands {
            let bytes = COMMAND_BYTES + chosen.command.payload.len();
            run.bytes += bytes;
            self.waiting_bytes += bytes;
            run.tokens.push(chosen.token);
            run.commands.push(ApplyCommand {
                slot: entry.slot,
                ballot: entry.ballot,
                id: chosen.command.id,
                payload: chosen.command.payload,
            });
        }
    }

    /// Whether there is anything to apply.
    pub(super) fn has_run(&self) -> bool {
        !self.runs.is_empty() && !self.is_away()
    }

    /// What the commands that are to be applied take, in bytes.
    pub(super) const fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    pub(super) const fn is_away(&self) -> bool {
        self.inner.is_none()
    }

    /// Gives the machine away to be restored; what is pushed meanwhile waits.
    pub(super) fn send_away(&mut self) -> Option<Box<dyn StateMachine>> {
        self.inner.take()
    }

    /// Takes the machine back, at the slot where it is now.
    pub(super) fn come_back(&mut self, machine: Box<dyn StateMachine>) {
        self.applied = machine.applied();
        self.inner = Some(machine);
    }

    /// Freezes the state; an error or a panic says that the machine has no snapshots to give.
    pub(super) fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, String> {
        let machine = self.inner.as_ref().ok_or("it is being restored")?;
        caught("snapshot panicked", || machine.snapshot())?.map_err(|error| error.0)
    }

    /// Applies the next run. After an error the machine must not be used any more.
    pub(super) fn apply(&mut self) -> Result<impl ExactSizeIterator<Item = Answer>, MachineError> {
        let Some(machine) = &mut self.inner else {
            return Err(MachineError::new("it was to apply while it is being restored"));
        };
        let run = self.runs.pop_front().unwrap_or_default();
        self.waiting_bytes -= run.bytes;
        let chosen = Chosen {
            upto: run.upto,
            commands: &run.commands,
        };
        let replies = &mut self.replies;
        replies.reserve(chosen.commands.len());
        caught("apply panicked", || machine.apply(chosen, replies)).map_err(MachineError)??;
        if replies.len() != run.commands.len() {
            return Err(MachineError(format!(
                "apply pushed {} replies for {} commands; it must push exactly one for each",
                replies.len(),
                run.commands.len()
            )));
        }
        let applied = machine.applied();
        if applied != run.upto {
            return Err(MachineError(format!(
                "applied() is {applied} after a run up to slot {}; it must be that slot",
                run.upto
            )));
        }
        self.applied = applied;
        // Its allocations are used again.
        self.spare = Run { bytes: 0, ..run };
        let ids = self.spare.commands.drain(..).map(|command| command.id);
        let answered = self.spare.tokens.drain(..).zip(ids).zip(self.replies.drain(..));
        Ok(answered.map(|((token, id), reply)| Answer { token, id, reply }))
    }

    /// Answers a read. A panic is the answer to that read only: a query cannot change the state.
    pub(super) fn query(&self, query: Bytes) -> Result<Bytes, String> {
        let machine = self.inner.as_ref().ok_or("it is being restored")?;
        caught("query panicked", || machine.query(query))
    }

    /// Answers reads in order, at least the first, until the answers have so many bytes together.
    pub(super) fn query_all(&self, queries: &[Bytes], max_answer_bytes: usize) -> Result<Vec<Bytes>, String> {
        let mut answers = Vec::with_capacity(queries.len());
        let mut bytes = 0;
        for query in queries {
            let answer = self.query(query.clone())?;
            bytes += answer.len();
            answers.push(answer);
            if bytes >= max_answer_bytes {
                break;
            }
        }
        Ok(answers)
    }

    /// `None` also while it is away, or a run is unfinished: after a failed one the state is nobody's.
    pub(super) fn digest(&self) -> Option<u64> {
        if self.has_run() {
            return None;
        }
        let machine = self.inner.as_ref()?;
        caught("digest panicked", || machine.digest()).ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::{string::ToString, vec};

    use super::*;
    use crate::{
        core::{ChosenCommand, Command},
        router::{MachineId, Router},
        types::Ballot,
    };

    /// Echoes, unless it is told to misbehave.
    struct Echo {
        applied: Slot,
        runs: Vec<usize>,
    }

    impl StateMachine for Echo {
        fn applied(&self) -> Slot {
            self.applied
        }

        fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
            self.runs.push(chosen.commands.len());
            self.applied = chosen.upto;
            for command in chosen.commands {
                match &*command.payload {
                    b"panic" => panic!("asked to"),
                    b"fail" => return Err(MachineError::new("asked to")),
                    b"stall" => self.applied = command.slot.previous(),
                    _ => {}
                }
                if &*command.payload != b"mute" {
                    replies.push(command.payload.clone());
                }
            }
            Ok(())
        }

        fn query(&self, query: Bytes) -> Bytes {
            assert_ne!(&*query, b"panic");
            Bytes::from(format!("{:?}", self.runs))
        }

        fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
            Err(MachineError::new("none"))
        }

        fn restore(&mut self, _: Slot, _: &mut dyn std::io::Read) -> Result<(), MachineError> {
            Err(MachineError::new("none"))
        }
    }

    fn machine(applied: u64) -> Machine {
        Machine::new(Box::new(Echo {
            applied: Slot(applied),
            runs: Vec::new(),
        }))
    }

    fn entry(slot: u64, payload: &'static str) -> ChosenEntry {
        let command = Command {
            id: ProposalId::default(),
            payload: Bytes::from_static(payload.as_bytes()),
        };
        ChosenEntry {
            slot: Slot(slot),
            ballot: Ballot::ZERO,
            commands: vec![ChosenCommand {
                command,
                token: Some(Token(slot)),
            }],
        }
    }

    #[test]
    fn entries_of_one_round_are_one_run_and_each_is_answered() {
        let mut machine = machine(0);
        machine.push(entry(1, "a"));
        machine.push(ChosenEntry {
            commands: Vec::new(),
            ..entry(2, "")
        });
        machine.push(entry(3, "b"));
        let answers: Vec<_> = machine
            .apply()
            .unwrap()
            .map(|answer| (answer.token, answer.reply))
            .collect();
        assert_eq!(
            answers,
            [
                (Some(Token(1)), Bytes::from("a")),
                (Some(Token(3)), Bytes::from("b"))
            ]
        );
        assert_eq!((machine.applied(), machine.has_run()), (Slot(3), false));
        assert_eq!(machine.query(Bytes::new()).unwrap(), "[2]");
    }

    #[test]
    fn much_to_apply_is_applied_in_several_runs() {
        let mut machine = machine(0);
        for slot in 1..=600 {
            machine.push(entry(slot, "12345"));
        }
        assert_eq!(machine.waiting_bytes(), 600 * (5 + COMMAND_BYTES));
        let mut runs = Vec::new();
        while machine.has_run() {
            runs.push(machine.apply().unwrap().len());
        }
        assert_eq!(runs, [256, 256, 88]);
        assert_eq!((machine.applied(), machine.waiting_bytes()), (Slot(600), 0));
    }

    #[test]
    fn commands_without_a_payload_take_their_place_among_what_waits_too() {
        let mut machine = machine(0);
        for slot in 1..=600 {
            machine.push(entry(slot, ""));
        }
        assert_eq!(machine.waiting_bytes(), 600 * COMMAND_BYTES);
        while machine.has_run() {
            machine.apply().map(drop).unwrap();
        }
        assert_eq!(machine.waiting_bytes(), 0);
    }

    #[test]
    fn a_machine_is_never_given_what_it_already_holds() {
        let mut machine = machine(2);
        machine.push(entry(1, "a"));
        machine.push(entry(2, "b"));
        assert!(!machine.has_run());
        machine.push(entry(3, "c"));
        let answers: Vec<_> = machine
            .apply()
            .unwrap()
            .map(|answer| (answer.token, answer.reply))
            .collect();
        assert_eq!(answers, [(Some(Token(3)), Bytes::from("c"))]);
    }

    #[test]
    fn a_machine_is_at_a_slot_when_all_of_its_parts_are() {
        let part = |applied| Echo {
            applied: Slot(applied),
            runs: Vec::new(),
        };
        let router = Router::new()
            .machine(MachineId(1), part(2))
            .machine(MachineId(2), part(0));
        let mut machine = Machine::new(Box::new(router));
        assert!(!machine.is_at(Slot(0)) && !machine.is_at(Slot(2)));
        machine.push(entry(2, ""));
        machine.apply().map(drop).unwrap();
        assert!(machine.is_at(Slot(2)));
    }

    #[test]
    fn a_machine_that_breaks_its_contract_is_found_out() {
        for (command, finding) in [
            ("panic", "apply panicked: asked to"),
            ("fail", "asked to"),
            ("mute", "pushed 0 replies for 1 commands"),
            ("stall", "applied() is 0 after a run up to slot 1"),
        ] {
            let mut machine = machine(0);
            machine.push(entry(1, command));
            let error = machine.apply().map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(finding), "{command}: {error}");
        }
    }

    #[test]
    fn a_query_that_panics_spoils_nothing() {
        let machine = machine(0);
        assert!(
            machine
                .query(Bytes::from_static(b"panic"))
                .unwrap_err()
                .contains("query panicked")
        );
        assert_eq!(machine.query(Bytes::new()).unwrap(), "[]");
    }
}
