//! Conformance suite for [`StateMachine`]: whether a service keeps the contract that replication relies on.
//!
//! ```
//! # use bytes::Bytes;
//! # use paxos::{typed::{Typed, TypedStateMachine}, testing::state_machine::check};
//! # #[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
//! # struct Service(u64);
//! # impl TypedStateMachine for Service {
//! #     type Command = u64; type Reply = u64; type Query = (); type Answer = u64;
//! #     fn apply(&mut self, add: u64) -> u64 { self.0 = self.0.wrapping_add(add); self.0 }
//! #     fn query(&self, _: ()) -> u64 { self.0 }
//! # }
//! let commands: Vec<Bytes> = (0..100_u8).map(|n| Bytes::from(vec![n % 24])).collect();
//! let queries = [Bytes::from_static(b"\xf6")];
//! check(|| Typed::new(Service::default()), &commands, &queries).unwrap();
//! ```

use std::{
    boxed::Box,
    format,
    panic::{AssertUnwindSafe, catch_unwind},
    string::{String, ToString},
    vec::Vec,
};

use bytes::Bytes;

use crate::{
    state_machine::{ApplyCommand, Chosen, SnapshotSource, StateMachine},
    types::{Ballot, Incarnation, NodeId, ProposalId, Slot},
};

/// Bytes that no service can expect, and any peer of a careless client may get chosen.
const GARBAGE: [&[u8]; 4] = [
    b"",
    b"\xff",
    b"\x00\x00\x00\x00\x00\x00\x00\x00",
    b"\x9f\x9f\x9f\xf8 not a command",
];

/// Puts machines made by `new` (each with an empty state of its own) through the contract with these commands and some
/// garbage; `queries` should between them show the whole state. Some fifty varied commands are a good start.
///
/// # Errors
///
/// The first rule that was broken: what was expected and what happened.
pub fn check<M: StateMachine>(
    new: impl Fn() -> M,
    commands: &[Bytes],
    queries: &[Bytes],
) -> Result<(), String> {
    let log = Log::new(commands);
    let check = Check {
        new: &new,
        log: &log,
        queries,
    };
    check.a_new_machine_is_empty()?;
    let reference = check.runs_of_any_length_give_the_same()?;
    check.queries_change_nothing(&reference)?;
    for cut in [0, 1, log.entries.len() / 2, log.entries.len()] {
        check.a_snapshot_equals_the_log_up_to_it(&reference, cut)?;
    }
    check.a_cut_snapshot_is_an_error_at_worst()
}

struct Entry {
    slot: Slot,
    commands: Vec<ApplyCommand>,
}

/// The commands spread over entries of different lengths, with empty ones between them.
struct Log {
    entries: Vec<Entry>,
}

impl Log {
    fn new(commands: &[Bytes]) -> Self {
        let garbage = GARBAGE.map(Bytes::from_static);
        let mut rest = commands.iter().chain(&garbage).zip(1..).peekable();
        let mut entries = Vec::new();
        while rest.peek().is_some() {
            let slot = Slot(entries.len() as u64 + 1);
            let ballot = Ballot {
                round: 1 + slot.0 / 10,
                node: NodeId(1 + slot.0 % 3),
            };
            let count = [1, 0, 3, 7][entries.len() % 4];
            let commands = rest.by_ref().take(count).map(|(payload, sequence)| {
                let id = ProposalId {
                    node: NodeId(1),
                    incarnation: Incarnation(1),
                    sequence,
                };
                ApplyCommand {
                    slot,
                    ballot,
                    id,
                    payload: payload.clone(),
                }
            });
            entries.push(Entry {
                slot,
                commands: commands.collect(),
            });
        }
        Self { entries }
    }
}

/// All that can be seen of a machine.
#[derive(Debug, PartialEq, Eq)]
struct View {
    applied: Slot,
    digest: Option<u64>,
    answers: Vec<Bytes>,
}

/// What the whole log gives.
struct Reference {
    /// Replies to each entry.
    replies: Vec<Vec<Bytes>>,
    view: View,
}

struct Check<'a, M> {
    new: &'a dyn Fn() -> M,
    log: &'a Log,
    queries: &'a [Bytes],
}

impl<M: StateMachine> Check<'_, M> {
    fn view(&self, machine: &M) -> Result<View, String> {
        let answers = self
            .queries
            .iter()
            .map(|query| caught("query", || machine.query(query.clone())));
        Ok(View {
            applied: machine.applied(),
            digest: machine.digest(),
            answers: answers.collect::<Result<_, _>>()?,
        })
    }

    /// Applies entries as one run, and returns the replies to each of them.
    fn run(machine: &mut M, entries: &[Entry]) -> Result<Vec<Vec<Bytes>>, String> {
        let Some(last) = entries.last() else {
            return Ok(Vec::new());
        };
        let commands: Vec<_> = entries
            .iter()
            .flat_map(|entry| entry.commands.iter().cloned())
            .collect();
        let chosen = Chosen {
            upto: last.slot,
            commands: &commands,
        };
        let earlier = Bytes::from_static(b"replies of an earlier run");
        let mut replies = std::vec![earlier.clone()];
        caught("apply", || machine.apply(chosen, &mut replies))?.map_err(|error| {
            format!(
                "apply failed in the run up to slot {}: {error}; a command that the service rejects, garbage too, is a \
                 reply, the same on every replica: an error halts the replica for good",
                last.slot
            )
        })?;
        expect("applied() after a run", &last.slot, &machine.applied())?;
        if machine.durable() > machine.applied() {
            return Err(format!(
                "durable() is {}, above applied(), {}",
                machine.durable(),
                machine.applied()
            ));
        }
        expect(
            "the replies that were there before apply",
            &Some(&earlier),
            &replies.first(),
        )?;
        expect(
            "the number of replies of a run",
            &commands.len(),
            &(replies.len() - 1),
        )?;
        let mut replies = replies.into_iter().skip(1);
        Ok(entries
            .iter()
            .map(|entry| replies.by_ref().take(entry.commands.len()).collect())
            .collect())
    }

    fn run_all(machine: &mut M, entries: &[Entry], length: usize) -> Result<Vec<Vec<Bytes>>, String> {
        let mut replies = Vec::new();
        for run in entries.chunks(length.max(1)) {
            replies.extend(Self::run(machine, run)?);
        }
        Ok(replies)
    }

    fn a_new_machine_is_empty(&self) -> Result<(), String> {
        let machine = (self.new)();
        expect("applied() of a new machine", &Slot::ZERO, &machine.applied())?;
        expect("durable() of a new machine", &Slot::ZERO, &machine.durable())
    }

    fn runs_of_any_length_give_the_same(&self) -> Result<Reference, String> {
        let mut machine = (self.new)();
        let replies = Self::run_all(&mut machine, &self.log.entries, 1)?;
        let reference = Reference {
            replies,
            view: self.view(&machine)?,
        };
        for length in [1, 2, 5, self.log.entries.len()] {
            let mut machine = (self.new)();
            let replies = Self::run_all(&mut machine, &self.log.entries, length)?;
            let what = format!("with the same commands in runs of {length} entries, ");
            self.same_tail(&what, &reference, 0, &replies, &machine)?;
        }
        Ok(reference)
    }

    fn queries_change_nothing(&self, reference: &Reference) -> Result<(), String> {
        let mut machine = (self.new)();
        let mut replies = Vec::new();
        for run in self.log.entries.chunks(3) {
            replies.extend(Self::run(&mut machine, run)?);
            let first = self.view(&machine)?;
            expect(
                "what the same queries answer the second time",
                &first,
                &self.view(&machine)?,
            )?;
        }
        self.same_tail(
            "with queries between the commands, ",
            reference,
            0,
            &replies,
            &machine,
        )
    }

    fn a_snapshot_equals_the_log_up_to_it(&self, reference: &Reference, cut: usize) -> Result<(), String> {
        let (head, tail) = self.log.entries.split_at(cut);
        let upto = head.last().map_or(Slot::ZERO, |entry| entry.slot);
        let mut origin = (self.new)();
        Self::run_all(&mut origin, head, 4)?;
        let at_cut = self.view(&origin)?;
        let frozen = Self::freeze(&origin)?;
        let late = Self::freeze(&origin)?;
        expect(
            "what a machine shows after snapshot()",
            &at_cut,
            &self.view(&origin)?,
        )?;
        let bytes = write(frozen)?;
        let replies = Self::run_all(&mut origin, tail, 4)?;
        let what = format!("after a snapshot at slot {upto}, ");
        self.same_tail(&what, reference, cut, &replies, &origin)?;
        let late = write(late)?;

        let mut used = (self.new)();
        Self::run_all(&mut used, &self.log.entries, 4)?;
        for (how, mut machine, bytes) in [
            ("restored into a new machine", (self.new)(), &bytes),
            ("restored into a machine with another state", used, &bytes),
            ("written after more had been applied", (self.new)(), &late),
        ] {
            let what = format!("from a snapshot at slot {upto}, {how}, ");
            caught("restore", || machine.restore(upto, &mut &bytes[..]))?
                .map_err(|error| format!("{what}restore failed: {error}"))?;
            expect(
                &format!("{what}what the machine shows"),
                &at_cut,
                &self.view(&machine)?,
            )?;
            let replies = Self::run_all(&mut machine, tail, 4)?;
            self.same_tail(&what, reference, cut, &replies, &machine)?;
        }
        Ok(())
    }

    fn a_cut_snapshot_is_an_error_at_worst(&self) -> Result<(), String> {
        let mut machine = (self.new)();
        Self::run_all(&mut machine, &self.log.entries, 4)?;
        let bytes = write(Self::freeze(&machine)?)?;
        for length in [0, bytes.len() / 2, bytes.len().saturating_sub(1)] {
            let mut machine = (self.new)();
            // Whether it is noticed is the service's business: the engine checks its snapshots itself.
            let _ = caught("restore of a cut snapshot", || {
                machine.restore(Slot(1), &mut &bytes[..length])
            })?;
        }
        Ok(())
    }

    fn freeze(machine: &M) -> Result<Box<dyn SnapshotSource>, String> {
        caught("snapshot", || machine.snapshot())?.map_err(|error| format!("snapshot failed: {error}"))
    }

    /// A machine that has applied the entries from `first` on has given the same replies, and shows the same.
    fn same_tail(
        &self,
        what: &str,
        reference: &Reference,
        first: usize,
        replies: &[Vec<Bytes>],
        machine: &M,
    ) -> Result<(), String> {
        let expected = reference.replies.iter().zip(&self.log.entries).skip(first);
        for ((expected, entry), reply) in expected.zip(replies) {
            expect(
                &format!("{what}the replies at slot {}", entry.slot),
                expected,
                reply,
            )?;
        }
        expect(
            &format!("{what}what the machine shows at the end"),
            &reference.view,
            &self.view(machine)?,
        )
    }
}

fn write(source: Box<dyn SnapshotSource>) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    caught("write_to", || source.write_to(&mut bytes))?
        .map_err(|error| format!("write_to failed: {error}"))?;
    Ok(bytes)
}

fn caught<T>(what: &str, call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        format!("{what} panicked: {text}")
    })
}

fn expect<T: PartialEq + std::fmt::Debug + ?Sized>(
    what: &str,
    expected: &T,
    found: &T,
) -> Result<(), String> {
    if expected == found {
        return Ok(());
    }
    Err(format!("{what}: expected {expected:?}, found {found:?}"))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io, sync::Mutex, vec};

    use super::*;
    use crate::state_machine::MachineError;

    #[derive(Clone, Copy, Default, PartialEq)]
    enum Fault {
        #[default]
        None,
        Random,
        ForgottenField,
        ThawedSnapshot,
        RestoreAdds,
        QueryChanges,
        AppliedStays,
        ReplyMissing,
        RepliesCleared,
        FailsOnGarbage,
        PanicsOnGarbage,
        DependsOnRun,
    }

    /// Counts how often each first byte of a command was seen, and all commands.
    #[derive(Default)]
    struct Tally {
        fault: Fault,
        applied: Slot,
        state: std::sync::Arc<Mutex<(BTreeMap<u8, u8>, u8)>>,
    }

    impl Tally {
        fn with(fault: Fault) -> impl Fn() -> Self {
            move || Self {
                fault,
                ..Self::default()
            }
        }
    }

    struct Frozen(Fault, std::sync::Arc<Mutex<(BTreeMap<u8, u8>, u8)>>);

    impl SnapshotSource for Frozen {
        fn write_to(self: Box<Self>, to: &mut dyn io::Write) -> io::Result<()> {
            let (counts, all) = &*self.1.lock().unwrap();
            let all = if self.0 == Fault::ForgottenField { 0 } else { *all };
            to.write_all(&[all])?;
            counts
                .iter()
                .try_for_each(|(byte, count)| to.write_all(&[*byte, *count]))
        }
    }

    impl StateMachine for Tally {
        fn applied(&self) -> Slot {
            self.applied
        }

        fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
            if self.fault == Fault::RepliesCleared {
                replies.clear();
            }
            for (index, command) in chosen.commands.iter().enumerate() {
                let (counts, all) = &mut *self.state.lock().unwrap();
                *all = all.wrapping_add(1);
                let Some(byte) = command.payload.first() else {
                    match self.fault {
                        Fault::FailsOnGarbage => return Err(MachineError::new("empty")),
                        Fault::PanicsOnGarbage => panic!("empty"),
                        Fault::ReplyMissing => continue,
                        _ => {}
                    }
                    replies.push(Bytes::from_static(b"empty"));
                    continue;
                };
                let count = counts.entry(*byte).or_default();
                *count += 1;
                let mut reply = vec![*count, *all];
                match self.fault {
                    Fault::Random => reply.push(fastrand::u8(..)),
                    Fault::DependsOnRun => reply.push(index as u8),
                    _ => {}
                }
                replies.push(reply.into());
            }
            if self.fault != Fault::AppliedStays || !chosen.commands.is_empty() {
                self.applied = chosen.upto;
            }
            Ok(())
        }

        fn query(&self, _: Bytes) -> Bytes {
            let mut state = self.state.lock().unwrap();
            if self.fault == Fault::QueryChanges {
                state.1 = state.1.wrapping_add(1);
            }
            // The number of all commands is seen in replies only.
            Bytes::from(format!("{:?}", state.0))
        }

        fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
            let state = if self.fault == Fault::ThawedSnapshot {
                self.state.clone()
            } else {
                std::sync::Arc::new(Mutex::new(self.state.lock().unwrap().clone()))
            };
            Ok(Box::new(Frozen(self.fault, state)))
        }

        fn restore(&mut self, upto: Slot, from: &mut dyn io::Read) -> Result<(), MachineError> {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes)
                .map_err(|error| MachineError::new(error.to_string()))?;
            let [all, counts @ ..] = &*bytes else {
                return Err(MachineError::new("empty snapshot"));
            };
            let mut state = self.state.lock().unwrap();
            if self.fault != Fault::RestoreAdds {
                state.0.clear();
            }
            state
                .0
                .extend(counts.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            state.1 = *all;
            self.applied = upto;
            Ok(())
        }
    }

    fn findings(fault: Fault) -> Result<(), String> {
        let commands: Vec<_> = (0..40_u8).map(|index| Bytes::from(vec![index])).collect();
        check(Tally::with(fault), &commands, &[Bytes::new()])
    }

    #[test]
    fn a_good_machine_passes() {
        assert_eq!(findings(Fault::None), Ok(()));
    }

    #[test]
    fn every_planted_fault_is_found() {
        for (fault, expected) in [
            (Fault::Random, "runs of 1 entries, the replies at slot 1"),
            (Fault::DependsOnRun, "runs of 2 entries, the replies"),
            (Fault::ForgottenField, "from a snapshot at slot 1"),
            (Fault::ThawedSnapshot, "written after more had been applied"),
            (Fault::RestoreAdds, "restored into a machine with another state"),
            (Fault::QueryChanges, "with queries between the commands"),
            (Fault::AppliedStays, "applied() after a run"),
            (Fault::ReplyMissing, "the number of replies"),
            (Fault::RepliesCleared, "the replies that were there before"),
            (Fault::FailsOnGarbage, "apply failed in the run"),
            (Fault::PanicsOnGarbage, "apply panicked: empty"),
        ] {
            let found = findings(fault).unwrap_err();
            assert!(found.contains(expected), "expected {expected:?} in {found:?}");
        }
    }
}
