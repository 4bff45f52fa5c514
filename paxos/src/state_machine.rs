//! The `StateMachine` trait: the service that is replicated.

use alloc::{boxed::Box, string::String, vec::Vec};

use bytes::Bytes;

use crate::types::{Ballot, ProposalId, Slot};

/// A command that is chosen and must be applied now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyCommand {
    /// The slot of the entry that holds it.
    pub slot: Slot,
    /// The ballot of the leader that first proposed it, the same on every replica: a fencing token. A machine that
    /// fences keeps the highest it has seen, since entries of a deposed leader may still be chosen later.
    pub ballot: Ballot,
    /// Who proposed it.
    pub id: ProposalId,
    /// The command itself.
    pub payload: Bytes,
}

/// A run of chosen commands, in order.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'a> {
    /// After this run the machine has applied all slots up to this one, whether or not they held commands.
    pub upto: Slot,
    /// The commands; may be empty.
    pub commands: &'a [ApplyCommand],
}

/// A replica cannot follow the log any more: it halts, says why, and never applies again. Not for a command that the
/// service rejects: that is a *reply*, the same on every replica.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("state machine failed: {0}")]
pub struct MachineError(pub String);

impl MachineError {
    /// An error with this text.
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// A frozen state, to be written somewhere while the machine goes on applying.
pub trait SnapshotSource: Send {
    /// Writes the whole state. Called once, from a thread where it may block.
    fn write_to(self: Box<Self>, to: &mut dyn std::io::Write) -> std::io::Result<()>;
}

/// A service. Deterministic: the same commands in the same order give the same state and the same replies on every
/// replica, however they are grouped into runs. So `apply` must not look at clocks, randomness, addresses, the order of
/// a hash map, or where a run begins. `paxos::testing::state_machine` puts a machine through this contract.
///
/// # Calls
///
/// One call at a time, by the group's task. `apply` and `query` should not block; what they do delays the whole group
/// (and, on a runtime with a single thread, the whole node).
///
/// # Errors
///
/// A command that the service rejects, or cannot even read, is a *reply*: every replica gives the same, and goes on. An
/// error or a panic of `apply` says that this replica cannot follow any more: the group halts on this node, the reason
/// is in its status, and the machine is not called again. A panic of `query` is that read's failure only.
///
/// # What a crash leaves
///
/// A machine in memory starts empty, with [`applied`](Self::applied) and [`durable`](Self::durable) at
/// [`Slot::ZERO`], and is brought up to date from a snapshot and the log. A machine that keeps its state on disk
/// starts where it made it durable, and is given everything above it. It must make the state and the slot durable
/// together: a slot that is behind its state would have commands applied twice, one that is ahead would lose them.
pub trait StateMachine: Send + 'static {
    /// The last slot whose effects the state holds.
    fn applied(&self) -> Slot;

    /// The last slot of which any effect shows in the state: [`applied`](Self::applied), as a rule. A machine that is
    /// made of several is ahead of itself while some of them, on disk, hold more than the others. Until the others have
    /// caught up its state is that of no slot, so no snapshot is taken of it and it has no digest.
    fn reaches(&self) -> Slot {
        self.applied()
    }

    /// The last slot whose effects survive a crash of the process. Machines in memory keep the default.
    fn durable(&self) -> Slot {
        Slot::ZERO
    }

    /// Applies a run of commands and pushes exactly one reply for each, in order. Afterwards
    /// [`applied`](Self::applied) is `chosen.upto`. Slots never come twice in one life and never go back.
    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError>;

    /// Answers a read from the state as it is. Must not change it.
    fn query(&self, query: Bytes) -> Bytes;

    /// Freezes the state as of [`applied`](Self::applied), which is also what it [`reaches`](Self::reaches); should take microseconds, the writing comes later, while
    /// [`apply`](Self::apply) goes on. Changes nothing. What is applied later must not show in it.
    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError>;

    /// Replaces the whole state, whatever it was, by a snapshot as of `upto`; [`applied`](Self::applied) is `upto` then.
    /// From the same commands on it gives the same replies as the machine that the snapshot was taken of. After an error
    /// the machine is not used any more.
    fn restore(&mut self, upto: Slot, from: &mut dyn std::io::Read) -> Result<(), MachineError>;

    /// A digest of the state, for comparing replicas at the same slot; `None` if the machine has none.
    fn digest(&self) -> Option<u64> {
        None
    }
}

impl<M: StateMachine + ?Sized> StateMachine for Box<M> {
    fn applied(&self) -> Slot {
        (**self).applied()
    }

    fn reaches(&self) -> Slot {
        (**self).reaches()
    }

    fn durable(&self) -> Slot {
        (**self).durable()
    }

    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        (**self).apply(chosen, replies)
    }

    fn query(&self, query: Bytes) -> Bytes {
        (**self).query(query)
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        (**self).snapshot()
    }

    fn restore(&mut self, upto: Slot, from: &mut dyn std::io::Read) -> Result<(), MachineError> {
        (**self).restore(upto, from)
    }

    fn digest(&self) -> Option<u64> {
        (**self).digest()
    }
}
