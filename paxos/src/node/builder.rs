//! Puts a node together.

use std::{fmt, sync::Arc};

use super::{Config, Discovery, Node, NodeError};
use crate::{snapshot::SnapshotStore, storage::Storage, transport::Transport};

/// A node that is being put together; made by [`Node::builder`], ends in [`spawn`](Self::spawn).
#[must_use = "a builder does nothing before `spawn`"]
pub struct NodeBuilder<S, T> {
    pub(super) storage: S,
    pub(super) transport: T,
    pub(super) config: Config,
    pub(super) snapshots: Option<Arc<dyn SnapshotStore>>,
    pub(super) discovery: Option<Arc<dyn Discovery>>,
}

impl<S: Storage, T: Transport> NodeBuilder<S, T> {
    pub(super) fn new(storage: S, transport: T) -> Self {
        Self {
            storage,
            transport,
            config: Config::default(),
            snapshots: None,
            discovery: None,
        }
    }

    /// How the node runs; without this, [`Config::default`].
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Where the groups' snapshots are kept. They are taken as [`Config::replica`](Config::replica) says
    /// ([`snapshot_entries`](crate::core::Config::snapshot_entries) and what follows it), the log is trimmed behind them,
    /// and whoever lacks what is trimmed is sent one. Without a store none are taken, and the log keeps everything.
    pub fn snapshots(mut self, store: impl SnapshotStore) -> Self {
        self.snapshots = Some(Arc::new(store));
        self
    }

    /// How to find nodes while this one can talk to no living peer: all of them may have moved while it was down. Asked
    /// when there is none at one of the looks, which are two election timeouts apart, and then ever less often, at least
    /// every 30 seconds or two election timeouts. What it answers tells the transport where to try, in turn with the
    /// addresses in the memberships; as soon as somebody is there, it holds for the nodes that were found by it, until
    /// their memberships give other addresses. It makes nobody a member: who votes is in the log.
    ///
    /// ```
    /// # use paxos::{Node, NodeId, transport::Peer};
    /// # fn with<S: paxos::Storage, T: paxos::Transport>(builder: paxos::node::NodeBuilder<S, T>) {
    /// builder.discovery(async || vec![Peer { node: NodeId(2), address: "10.0.0.2:7101".into() }]);
    /// # }
    /// ```
    pub fn discovery(mut self, discovery: impl Discovery) -> Self {
        self.discovery = Some(Arc::new(discovery));
        self
    }

    /// Opens the store, starts the transport and waits for groups to be added. Must be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// Nothing runs then, and nothing has changed but the store's incarnation.
    pub async fn spawn(self) -> Result<Node, NodeError> {
        Node::start(self).await
    }
}

impl<S, T> fmt::Debug for NodeBuilder<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeBuilder")
            .field("config", &self.config)
            .field("snapshots", &self.snapshots.is_some())
            .finish_non_exhaustive()
    }
}
