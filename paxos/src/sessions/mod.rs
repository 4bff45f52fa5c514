//! Exactly-once commands round any [`StateMachine`]: a client may repeat a command at any node, after any failure, and it
//! has one effect and one answer.
//!
//! [`Sessions`] is a state machine that wraps another one. A client opens a session and numbers its commands in it;
//! the wrapper executes each number once, keeps the reply for as long as the client may ask for it again, and has all of
//! that in its snapshots. [`SessionClient`] is the client's side: it numbers, repeats at other nodes, and ends with the
//! reply or with an error that says truthfully whether the command may have happened. This is what section 6.3 of
//! Ongaro's *Consensus: Bridging Theory and Practice* describes, with several commands at a time in each session.
//!
//! # What is executed
//!
//! A command is executed if its session lives and its sequence is in the window `acked .. acked + max_window` and was not
//! executed before; every later copy is answered from the kept reply. `acked` is the highest that the session's client
//! has sent: it has the answers to everything below, or has given up on it, and nothing below is executed any more. So
//! giving up is final: once a later command of the session with a higher `acked` is answered, no late copy of the command
//! can have an effect.
//!
//! Commands that are on their way *at the same time* are executed in the order in which they come, which after a
//! failure may be another one than that of their sequences: a copy of 7 may overtake the retry of 6. Nothing is held
//! back or refused because something below it is missing. A client that needs an order waits for the answer to the first
//! before it sends the second; or it sends both in one burst
//! ([`SessionClient::call_all`]), which is always repeated in order.
//!
//! # When a session ends
//!
//! Only the log decides, so all replicas agree: commands carry a stamp (the client's wall clock), and the group's clock
//! moves on with the fastest of its clients' clocks, by the time that passes between their stamps. A session expires when
//! the group's clock has moved on by more than its time to live since its last command. What time a client's clock shows
//! does not matter, and a minute or more without any command is not counted: so a clock that is wrong by years, or is set
//! to another year, ends no session, and one that is set ahead by less ends only sessions that were about to expire. If
//! there are [`Limits::max_sessions`] already, opening one ends the least recently used one. A command of a session that is gone, or never was, is answered
//! [`Expired`](Answer::Expired): that copy is not executed, and never will be, since ids are not used again.
//!
//! When kept replies reach a bound the oldest go first. Their commands are still not executed again: whoever repeats one is
//! told that it was executed and that its reply is gone ([`ReplyDropped`](Answer::ReplyDropped)).
//!
//! # The machine inside
//!
//! It is given its own bytes of each command, with the slot, ballot (the fencing token) and proposer as they were, and a
//! run of commands as one run. It must keep its state in memory: a state on disk would survive a crash that the
//! sessions do not survive, so [`apply`](StateMachine::apply) refuses to work for a machine that says it has
//! [durable](StateMachine::durable) state. Queries go to it unchanged. The limits must be the same on all replicas;
//! a snapshot that was taken under others is refused.

mod answers;
#[cfg(feature = "runtime")]
mod client;
mod pages;
mod replies;
mod snapshot;
mod table;
#[cfg(all(test, feature = "testing"))]
mod tests;
mod wire;

use std::{boxed::Box, format, io, vec::Vec};

use bytes::Bytes;

#[cfg(feature = "runtime")]
pub use self::client::{ClientOptions, Proposer, SessionClient, SessionError, TypedSessionClient};
pub use self::wire::{Answer, Call, Command, SessionId};
use self::{
    answers::Answers,
    replies::Replies,
    table::{Step, Table},
};
use crate::{
    state_machine::{ApplyCommand, Chosen, MachineError, SnapshotSource, StateMachine},
    types::Slot,
};

/// The bounds of a [`Sessions`] machine. They decide what is executed: the same on all replicas, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// How many sessions live at a time; at least 1. Default 16 384.
    pub max_sessions: usize,
    /// How far above the lowest unanswered sequence of a session another one may be; at least 1. Default 16 384.
    pub max_window: u64,
    /// The longest time to live that a session can ask for, in milliseconds. Default one day.
    pub max_ttl_ms: u64,
    /// How many bytes of replies are kept for one session, each counted with 64 more. Default 4 MiB.
    pub max_session_reply_bytes: usize,
    /// How many bytes of replies are kept for all sessions. Default 64 MiB.
    pub max_reply_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_sessions: 16_384,
            max_window: 16_384,
            max_ttl_ms: 24 * 60 * 60 * 1_000,
            max_session_reply_bytes: 4 << 20,
            max_reply_bytes: 64 << 20,
        }
    }
}

/// A [`StateMachine`] with exactly-once sessions round it. See the [module](self).
#[derive(Clone, Debug)]
pub struct Sessions<M> {
    machine: M,
    limits: Limits,
    applied: Slot,
    table: Table,
    replies: Replies,
    /// A hash over everything that has been decided, for [`digest`](StateMachine::digest).
    hash: u64,
    /// Of the run under way; empty between runs.
    steps: Vec<Step>,
    commands: Vec<ApplyCommand>,
    inner_replies: Vec<Bytes>,
    answers: Answers,
}

impl<M: StateMachine> Sessions<M> {
    /// Sessions with the default limits round this machine.
    pub fn new(machine: M) -> Self {
        Self::with_limits(machine, Limits::default())
    }

    /// Sessions with these limits round this machine.
    pub fn with_limits(machine: M, limits: Limits) -> Self {
        let limits = Limits {
            max_sessions: limits.max_sessions.max(1),
            max_window: limits.max_window.max(1),
            ..limits
        };
        Self {
            applied: machine.applied(),
            machine,
            limits,
            table: Table::new(limits),
            replies: Replies::new(limits),
            hash: limits.fingerprint(),
            steps: Vec::new(),
            commands: Vec::new(),
            inner_replies: Vec::new(),
            answers: Answers::default(),
        }
    }

    /// The machine inside.
    pub const fn machine(&self) -> &M {
        &self.machine
    }

    /// How many sessions live; those whose time is over count until something notices.
    pub fn sessions(&self) -> usize {
        self.table.len()
    }

    /// How many bytes of replies are kept for clients that may ask again.
    pub const fn reply_bytes(&self) -> usize {
        self.replies.bytes()
    }

    /// Decides what to do for a command, and what the machine is given of it.
    fn decide(&mut self, command: &ApplyCommand) {
        let payload = match Command::decode(&command.payload) {
            Some(Command::Call(call, payload)) => {
                self.table.call(&call, &mut self.steps);
                self.mix(call.session.0.rotate_left(32) ^ call.sequence);
                matches!(self.steps.last(), Some(Step::Execute { .. })).then_some(payload)
            }
            Some(Command::Bare(payload)) => {
                self.steps.push(Step::Bare);
                Some(payload)
            }
            Some(Command::Open { ttl_ms, stamp_ms }) => {
                self.table.open(ttl_ms, stamp_ms, &mut self.steps);
                None
            }
            Some(Command::Close { session, stamp_ms }) => {
                self.table.close(session, stamp_ms, &mut self.steps);
                None
            }
            None => {
                self.steps.push(Step::Answer(Answer::Malformed));
                None
            }
        };
        self.mix(self.table.clock_ms << 8 ^ self.table.len() as u64 ^ u64::from(payload.is_some()) << 63);
        self.commands
            .extend(payload.map(|payload| ApplyCommand { payload, ..*command }));
    }

    const fn mix(&mut self, what: u64) {
        self.hash = (self.hash.rotate_left(23) ^ what).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn run_machine(&mut self, upto: Slot) -> Result<(), MachineError> {
        if self.machine.durable() > Slot::ZERO {
            return Err(MachineError::new(
                "the machine inside of Sessions keeps its state on disk, but sessions live in memory: after a crash, retries \
                 would be executed twice. Use a machine that keeps its state in memory",
            ));
        }
        self.inner_replies.clear();
        let commands = &self.commands;
        self.machine
            .apply(Chosen { upto, commands }, &mut self.inner_replies)?;
        if self.inner_replies.len() != commands.len() || self.machine.applied() != upto {
            return Err(MachineError(format!(
                "the machine inside of Sessions gave {} replies to {} commands and has applied {} instead of {upto}",
                self.inner_replies.len(),
                commands.len(),
                self.machine.applied()
            )));
        }
        Ok(())
    }

    /// Answers the commands of the run, in order, and keeps and releases replies on the way.
    fn answer(&mut self, replies: &mut Vec<Bytes>) {
        // There is one inner reply for each step that takes one: `run_machine` has counted them.
        let mut inner = self.inner_replies.drain(..);
        let mut next = || inner.next().unwrap_or_default();
        for step in self.steps.drain(..) {
            replies.push(match step {
                Step::Execute {
                    place,
                    sequence,
                    acked,
                } => {
                    let reply = self.answers.wrap(&next());
                    self.replies.release(place, acked);
                    self.replies.keep(place, sequence, reply.clone());
                    reply
                }
                Step::Repeat {
                    place,
                    sequence,
                    acked,
                } => {
                    self.replies.release(place, acked);
                    let kept = self.replies.get(place, sequence).cloned();
                    kept.unwrap_or_else(|| Answer::ReplyDropped.encode())
                }
                Step::Bare => self.answers.wrap(&next()),
                Step::Answer(answer) => answer.encode(),
                Step::Forget(place) => {
                    self.replies.forget(place);
                    continue;
                }
            });
        }
    }
}

impl<M: StateMachine> StateMachine for Sessions<M> {
    fn applied(&self) -> Slot {
        self.applied
    }

    fn reaches(&self) -> Slot {
        self.machine.reaches().max(self.applied)
    }

    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        self.steps.clear();
        self.commands.clear();
        for command in chosen.commands {
            self.decide(command);
        }
        self.run_machine(chosen.upto)?;
        self.answer(replies);
        self.commands.clear();
        self.applied = chosen.upto;
        Ok(())
    }

    fn query(&self, query: Bytes) -> Bytes {
        self.machine.query(query)
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        snapshot::freeze(self)
    }

    fn restore(&mut self, upto: Slot, from: &mut dyn io::Read) -> Result<(), MachineError> {
        snapshot::restore(self, from)?;
        self.machine.restore(upto, from)?;
        self.applied = upto;
        Ok(())
    }

    /// The sessions and the machine inside, if that has a digest.
    fn digest(&self) -> Option<u64> {
        let inner = self.machine.digest()?;
        Some(inner.rotate_left(17) ^ self.hash)
    }
}

impl Limits {
    fn words(&self) -> [u64; 5] {
        [
            self.max_sessions as u64,
            self.max_window,
            self.max_ttl_ms,
            self.max_session_reply_bytes as u64,
            self.max_reply_bytes as u64,
        ]
    }

    fn fingerprint(&self) -> u64 {
        self.words().iter().fold(0, |hash: u64, word| {
            (hash.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        })
    }
}
