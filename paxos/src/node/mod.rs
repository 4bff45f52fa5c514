//! The tokio driver: runs replicas on real storage, a real network and a real clock.

use std::time::Duration;
use std::{boxed::Box, string::String, sync::Arc};

use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    core::{self, Status},
    error::{ProposeError, ReadError},
    state_machine::{MachineError, StateMachine},
    storage::{Storage, StorageError},
    transport::{Transport, TransportError},
    types::{Ballot, GroupId, Membership, Slot},
};

/// A running node. Dropping it stops it without waiting; [`Node::shutdown`] waits.
#[derive(Debug)]
pub struct Node {}

/// A handle to one group of a node. Cloned freely; used from any task.
#[derive(Clone, Debug)]
pub struct Group {}

/// How a node runs.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Bounds and times of every replica.
    pub replica: core::Config,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Read {
    /// Sees every write acknowledged before the read began, on any node.
    #[default]
    Linearizable,
    /// Answered locally once this slot has been applied here: sees at least that.
    Stale {
        /// Wait for this slot.
        at_least: Slot,
    },
}

/// Why a node did not start, or a group could not be added.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The store could not be opened.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The transport could not be started.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The state machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The configuration, or the call, makes no sense.
    #[error("{0}")]
    Configuration(String),
    /// The node has stopped.
    #[error("the node has stopped: {0}")]
    Stopped(String),
}

/// What a group's state is now.
#[derive(Clone, Debug)]
pub struct GroupStatus {
    /// The replica's view.
    pub replica: Status,
    /// The last slot that the state machine has applied.
    pub applied: Slot,
    /// The state machine's digest at `applied`, if it has one.
    pub digest: Option<u64>,
    /// Why the group halted, if it did.
    pub halted: Option<String>,
}

#[allow(unused_variables, reason = "to be filled in")]
impl Node {
    /// Opens the store, starts the transport, and serves groups from then on.
    pub async fn spawn<S: Storage, T: Transport>(
        config: Config,
        storage: S,
        transport: T,
    ) -> Result<Self, NodeError> {
        todo!()
    }

    /// Begins to serve a group: brings its machine up to date from the store, then takes part. `membership` is the
    /// group's first membership, the same on every node.
    pub async fn add_group<M: StateMachine>(
        &self,
        group: GroupId,
        membership: Membership,
        machine: M,
    ) -> Result<Group, NodeError> {
        todo!()
    }

    /// The handle of a group that was added.
    pub fn group(&self, group: GroupId) -> Option<Group> {
        todo!()
    }

    /// Waits until the node halts by itself (a failed disk, as a rule), and says why.
    pub async fn halted(&self) -> String {
        todo!()
    }

    /// Stops: answers what is waiting, closes the transport and the store in order.
    pub async fn shutdown(self) -> Result<(), NodeError> {
        todo!()
    }
}

#[allow(unused_variables, reason = "to be filled in")]
impl Group {
    /// Replicates a command and returns the state machine's reply. The command keeps its place in the order of the
    /// *calls* (not of the first polls): proposals of one node to one group are applied in that order.
    pub fn propose(
        &self,
        command: Bytes,
    ) -> impl Future<Output = Result<Bytes, ProposeError>> + Send + use<> {
        async { todo!() }
    }

    /// As [`propose`](Self::propose), for at most `timeout`; then the outcome is `Expired` or `Unknown`.
    pub fn propose_within(
        &self,
        command: Bytes,
        timeout: Duration,
    ) -> impl Future<Output = Result<Bytes, ProposeError>> + Send + use<> {
        async { todo!() }
    }

    /// As [`propose`](Self::propose), with a callback that is called exactly once, from the group's task.
    pub fn propose_with(&self, command: Bytes, done: Box<dyn FnOnce(Result<Bytes, ProposeError>) + Send>) {
        todo!()
    }

    /// Answers a read from the state machine of this node.
    pub async fn query(&self, read: Read, query: Bytes) -> Result<Bytes, ReadError> {
        todo!()
    }

    /// What the group is now.
    pub async fn status(&self) -> Result<GroupStatus, ReadError> {
        todo!()
    }

    /// The leader's ballot as this node knows it; changes only when it changes. The ballot is the fencing token.
    pub fn leader(&self) -> watch::Receiver<Option<Ballot>> {
        todo!()
    }

    /// Whether this node leads the group, as far as it knows.
    pub fn is_leader(&self) -> bool {
        todo!()
    }
}

const _: fn(Arc<()>) = drop;
