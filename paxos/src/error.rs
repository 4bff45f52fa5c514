//! How a proposal or a read can end other than well.

use alloc::string::String;
use core::time::Duration;

use crate::{
    core::TransferRejection,
    types::{ChangeRejection, NodeId},
};

/// Why a proposal did not end with a reply.
///
/// Every proposal ends exactly once: with its reply, with an error that says that it certainly did not happen, or with
/// [`ProposeError::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// Did not happen: this node is not leader and does not forward.
    #[error("this node is not the leader{}", hint(*leader))]
    NotLeader {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
    /// Did not happen: a bound on pending work is reached.
    #[error("overloaded, retry after {} ms", retry_after.as_millis())]
    Overloaded {
        /// How long to wait before the next try.
        retry_after: Duration,
    },
    /// Did not happen: the command is larger than the configuration allows.
    #[error("the command has {bytes} bytes, {max} are allowed")]
    TooLarge {
        /// The command's size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// Did not happen: it was still waiting (for a leader, as a rule) when its deadline passed.
    #[error("no leader took the command before its deadline; it did not happen")]
    Expired,
    /// Did not happen: this node is about to be taken out of the group, or has been. Another member takes the command.
    #[error("this node leaves the group, or has left it; use another one")]
    Leaving,
    /// Did not happen: the node is stopping or has halted.
    #[error("the node has stopped: {0}")]
    Stopped(String),
    /// May have happened, or may happen later.
    #[error("the outcome is unknown: the command may have happened, or may happen later")]
    Unknown,
}

impl ProposeError {
    /// Whether the command certainly did not happen, so that it may be proposed again.
    pub const fn is_definite(&self) -> bool {
        !matches!(self, Self::Unknown)
    }
}

/// Why a read was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// This node is not leader and does not forward.
    #[error("this node is not the leader{}", hint(*leader))]
    NotLeader {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
    /// Too many reads wait.
    #[error("overloaded, retry after {} ms", retry_after.as_millis())]
    Overloaded {
        /// How long to wait before the next try.
        retry_after: Duration,
    },
    /// No quorum confirmed a leader before the deadline, or the slot to wait for was not applied here by then.
    #[error("the read was not confirmed before its deadline")]
    Expired,
    /// The state machine panicked while it answered; its state is as it was.
    #[error("the state machine could not answer: {0}")]
    Failed(String),
    /// The node is stopping or has halted.
    #[error("the node has stopped: {0}")]
    Stopped(String),
}

/// Why leadership was not handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The leader refused, gave up, or is not known.
    #[error(transparent)]
    Rejected(#[from] TransferRejection),
    /// Too many requests wait.
    #[error("overloaded, retry after {} ms", retry_after.as_millis())]
    Overloaded {
        /// How long to wait before the next try.
        retry_after: Duration,
    },
    /// The node is stopping or has halted.
    #[error("the node has stopped: {0}")]
    Stopped(String),
}

/// Why a membership change did not end well.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// The membership was certainly not changed by this call.
    #[error(transparent)]
    Refused(#[from] ChangeRejection),
    /// Did not happen: too many requests wait.
    #[error("overloaded, retry after {} ms", retry_after.as_millis())]
    Overloaded {
        /// How long to wait before the next try.
        retry_after: Duration,
    },
    /// Did not happen: the node is stopping or has halted.
    #[error("the node has stopped: {0}")]
    Stopped(String),
    /// The change may have happened, or may happen later. The membership's version tells; trying again with the same one
    /// cannot change anything twice.
    #[error("the outcome is unknown; look at the membership, and try again with its version")]
    Unknown,
}

fn hint(leader: Option<NodeId>) -> String {
    leader.map_or_else(String::new, |node| alloc::format!("; node {node} is"))
}
