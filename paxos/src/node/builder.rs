//! Puts a node together.

use super::{Config, Node, NodeError};
use crate::{storage::Storage, transport::Transport};

/// A node that is being put together; made by [`Node::builder`], ends in [`spawn`](Self::spawn).
#[must_use = "a builder does nothing before `spawn`"]
#[derive(Debug)]
pub struct NodeBuilder<S, T> {
    pub(super) storage: S,
    pub(super) transport: T,
    pub(super) config: Config,
}

impl<S: Storage, T: Transport> NodeBuilder<S, T> {
    pub(super) fn new(storage: S, transport: T) -> Self {
        Self {
            storage,
            transport,
            config: Config::default(),
        }
    }

    /// How the node runs; without this, [`Config::default`].
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
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
