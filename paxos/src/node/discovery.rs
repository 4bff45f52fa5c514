//! Looks for peers while this node can talk to none that lives: all of them may have moved while it was away.

use std::{boxed::Box, sync::Arc, time::Duration, vec::Vec};

use async_trait::async_trait;
use tokio::task::JoinSet;

use super::{Environment, lock};
use crate::{transport::Peer, types::NodeId};

/// How long one search may take.
const SEARCH_WITHIN: Duration = Duration::from_secs(10);
/// The longest pause between two searches.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// So many of the peers found are tried.
const MAX_HINTS: usize = 64;

/// Finds nodes for a node that can talk to nobody; see [`NodeBuilder::discovery`](super::NodeBuilder::discovery). Any
/// `async` closure without arguments that returns the peers is one.
#[async_trait]
pub trait Discovery: Send + Sync + 'static {
    /// Who may be where, as far as can be found out now. Called by one task at a time; given up after ten seconds. Of the
    /// answer 64 peers count; a panic is logged, and counts as none.
    async fn discover(&self) -> Vec<Peer>;
}

#[async_trait]
impl<F, A> Discovery for F
where
    F: Fn() -> A + Send + Sync + 'static,
    A: Future<Output = Vec<Peer>> + Send,
{
    async fn discover(&self) -> Vec<Peer> {
        self().await
    }
}

/// Looks every two election timeouts whether somebody is there; searches if nobody is, and ever less often while that is
/// in vain. Runs until it is aborted.
pub(super) async fn search(environment: Arc<Environment>, discovery: Arc<dyn Discovery>) {
    let node = environment.identity.node;
    let first = environment.config.replica.election_timeout * 2;
    let mut pause = first;
    loop {
        tokio::time::sleep(pause).await;
        if !environment.is_lonely() {
            pause = first;
            continue;
        }
        let found = discover(discovery.clone(), node).await;
        tracing::info!(%node, ?found, "no peer answers; these may be some");
        environment.set_hints(found);
        tokio::time::sleep(pause).await;
        // Where nobody was found, what the memberships say is tried again.
        let found = environment.liveness.who_is_there();
        environment.reach(|book| book.keep_hints(|node| found.contains(&node)));
        pause = (pause * 2).min(MAX_PAUSE.max(first));
    }
}

/// One search. If it panics nothing was found: this is not what the node's peers are to be lost by.
async fn discover(discovery: Arc<dyn Discovery>, node: NodeId) -> Vec<Peer> {
    // Ends with this future.
    let mut search = JoinSet::new();
    search.spawn(async move { discovery.discover().await });
    let mut found = match tokio::time::timeout(SEARCH_WITHIN, search.join_next()).await {
        Ok(Some(Ok(found))) => found,
        Ok(Some(Err(error))) => {
            tracing::error!(%node, %error, "the search for peers panicked; it is tried again");
            Vec::new()
        }
        Ok(None) => Vec::new(),
        Err(_) => {
            tracing::warn!(%node, limit = ?SEARCH_WITHIN, "the search for peers takes too long");
            Vec::new()
        }
    };
    found.truncate(MAX_HINTS);
    found
}

impl Environment {
    /// Whether there should be peers, and this node can talk to none.
    fn is_lonely(&self) -> bool {
        let needs_peers = lock(&self.address_book).needs_peers(self.identity.node);
        needs_peers && self.liveness.who_is_there().is_empty()
    }

    fn set_hints(&self, found: Vec<Peer>) {
        let hints = found.into_iter().map(|peer| (peer.node, peer.address));
        self.reach(|book| book.set_hints(hints.collect()));
    }
}
