//! The handle of a group: what users of a replicated service call.

use std::{boxed::Box, string::String, sync::Arc, time::Duration, vec::Vec};

use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    core::Status,
    error::{ProposeError, ReadError},
    metrics::GroupMetrics,
    types::{Ballot, GroupId, NodeId, Slot},
};

/// A handle to one group of a node. Cloned freely; used from any task or thread.
///
/// Every call after the group or its node has stopped is answered with the reason.
#[derive(Clone, Debug)]
pub struct Group {}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Read {
    /// Sees every write acknowledged before the read began, on any node.
    #[default]
    Linearizable,
    /// Answered locally once this slot has been applied here: sees at least that.
    Stale {
        /// Wait for this slot; [`Slot::ZERO`] waits for nothing.
        at_least: Slot,
    },
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
    /// Why the group stopped or halted, if it did; then the rest tells of the last moment before.
    pub halted: Option<String>,
}

#[allow(unused_variables, reason = "to be filled in")]
impl Group {
    /// Which group.
    pub fn id(&self) -> GroupId {
        todo!()
    }

    /// The node that this handle belongs to.
    pub fn node(&self) -> NodeId {
        todo!()
    }

    /// Replicates a command and returns the state machine's reply.
    ///
    /// The command takes its place in the order at the *call*, not at the first poll: what one node proposes to one
    /// group is applied in the order of the calls. Dropping the future does not take the command back. Without a leader
    /// it waits; see [`propose_within`](Self::propose_within).
    pub fn propose(
        &self,
        command: Bytes,
    ) -> impl Future<Output = Result<Bytes, ProposeError>> + Send + use<> {
        async { todo!() }
    }

    /// As [`propose`](Self::propose), for at most `timeout`: then it ends [`Expired`](ProposeError::Expired) (it did not
    /// happen) or [`Unknown`](ProposeError::Unknown).
    pub fn propose_within(
        &self,
        command: Bytes,
        timeout: Duration,
    ) -> impl Future<Output = Result<Bytes, ProposeError>> + Send + use<> {
        async { todo!() }
    }

    /// As [`propose`](Self::propose), with a callback that is called exactly once, as a rule from the group's task: it
    /// must not block.
    pub fn propose_with(
        &self,
        command: Bytes,
        timeout: Option<Duration>,
        done: Box<dyn FnOnce(Result<Bytes, ProposeError>) + Send>,
    ) {
        todo!()
    }

    /// Proposes a burst of commands, in order, at the cost of little more than one; `timeout` counts for all of them.
    /// Each has its own outcome; the outcomes come in the order of the commands, when all are there.
    pub fn propose_all(
        &self,
        commands: Vec<Bytes>,
        timeout: Option<Duration>,
    ) -> impl Future<Output = Vec<Result<Bytes, ProposeError>>> + Send + use<> {
        async { todo!() }
    }

    /// Answers a read from the state machine of this node. Ends [`Expired`](ReadError::Expired) after
    /// [`Config::read_timeout`](super::Config::read_timeout).
    pub fn query(
        &self,
        read: Read,
        query: Bytes,
    ) -> impl Future<Output = Result<Bytes, ReadError>> + Send + use<> {
        async { todo!() }
    }

    /// Answers a burst of reads, all from the same state, at the cost of little more than one.
    pub fn query_all(
        &self,
        read: Read,
        queries: Vec<Bytes>,
    ) -> impl Future<Output = Result<Vec<Bytes>, ReadError>> + Send + use<> {
        async { todo!() }
    }

    /// What the group is now. Always answers: with the last known state if the group has stopped or halted.
    pub async fn status(&self) -> GroupStatus {
        todo!()
    }

    /// The leader's ballot as this node knows it; changes only when it changes. `ballot.node` leads, and the ballot is
    /// the fencing token of its leadership.
    pub fn leader(&self) -> watch::Receiver<Option<Ballot>> {
        todo!()
    }

    /// Whether this node leads the group, as far as it knows.
    pub fn is_leader(&self) -> bool {
        todo!()
    }

    /// Why the group stopped or halted, if it did.
    pub fn halted(&self) -> Option<String> {
        todo!()
    }

    /// What the group has counted on this node.
    pub fn metrics(&self) -> &Arc<GroupMetrics> {
        todo!()
    }
}
