//! The tokio driver: runs replicas on real storage, a real network and a real clock.

mod config;
mod group;

use std::{string::String, sync::Arc, vec::Vec};

pub use self::{
    config::Config,
    group::{Group, GroupStatus, Read},
};
use crate::{
    metrics::NodeMetrics,
    state_machine::{MachineError, StateMachine},
    storage::{Finding, Storage, StorageError},
    transport::{Transport, TransportError},
    types::{GroupId, Identity, Incarnation, Membership},
};

/// A running node. Dropping it stops it without waiting; [`Node::shutdown`] waits.
#[derive(Debug)]
pub struct Node {}

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

#[allow(unused_variables, reason = "to be filled in")]
impl Node {
    /// Opens the store, starts the transport, and serves groups from then on. Called inside a tokio runtime, which the
    /// node's tasks then use.
    pub async fn spawn<S: Storage, T: Transport>(
        config: Config,
        storage: S,
        transport: T,
    ) -> Result<Self, NodeError> {
        todo!()
    }

    /// Begins to serve a group: brings its machine up to date from the store, then takes part. `membership` is the
    /// group's first membership, the same on every node. Groups may be added in any order and at any time; until then
    /// peers' messages for the group are dropped.
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

    /// The handles of all groups that were added, by id.
    pub fn groups(&self) -> Vec<Group> {
        todo!()
    }

    /// Cluster, node and disk, as the store says.
    pub fn identity(&self) -> Identity {
        todo!()
    }

    /// Which life of the node this is.
    pub fn incarnation(&self) -> Incarnation {
        todo!()
    }

    /// What the store noticed about itself when it was opened.
    pub fn findings(&self) -> &[Finding] {
        todo!()
    }

    /// What the node has counted over all groups.
    pub fn metrics(&self) -> &Arc<NodeMetrics> {
        todo!()
    }

    /// Everything that the node, its groups and its transport have counted, in Prometheus' text format.
    pub fn prometheus(&self) -> String {
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
