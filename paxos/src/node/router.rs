//! Takes frames from the transport, checks where they come from, and hands them to their groups.

use std::{
    boxed::Box,
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    vec::Vec,
};

use async_trait::async_trait;
use bytes::Bytes;

use super::event::{Delivery, Event, Inbox};
use crate::{
    metrics::{GroupMetrics, NodeMetrics},
    transport::{Deliver, InboxClosed, Incoming},
    types::{GroupId, Identity},
    wire,
};

/// A group as the transport sees it.
pub(super) struct Route {
    pub(super) inbox: Inbox,
    pub(super) metrics: Arc<GroupMetrics>,
}

pub(super) struct Router {
    identity: Identity,
    routes: RwLock<BTreeMap<GroupId, Arc<Route>>>,
    metrics: Arc<NodeMetrics>,
    closed: AtomicBool,
}

impl Router {
    pub(super) fn new(identity: Identity, metrics: Arc<NodeMetrics>) -> Self {
        Self {
            identity,
            routes: RwLock::default(),
            metrics,
            closed: AtomicBool::new(false),
        }
    }

    pub(super) fn add(&self, group: GroupId, route: Route) {
        self.routes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(group, Arc::new(route));
    }

    /// Takes nothing any more, and tells all groups to stop.
    pub(super) fn close(&self) {
        self.closed.store(true, Relaxed);
        self.tell_all(|| Event::Stop);
    }

    fn route(&self, group: GroupId) -> Option<Arc<Route>> {
        self.routes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&group)
            .cloned()
    }

    fn tell_all(&self, event: impl Fn() -> Event) {
        let routes: Vec<_> = self
            .routes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect();
        for route in routes {
            route.inbox.send(event());
        }
    }

    async fn frame(&self, frame: Bytes) {
        let frame_bytes = frame.len();
        let envelope = match wire::decode(frame) {
            Ok(envelope) => envelope,
            Err(error) => {
                self.metrics.malformed_frames.increment();
                tracing::debug!(node = %self.identity.node, %error, "dropped a malformed frame");
                return;
            }
        };
        if envelope.cluster != self.identity.cluster || envelope.from == self.identity.node {
            self.metrics.stranger_frames.increment();
            tracing::debug!(
                node = %self.identity.node, cluster = %envelope.cluster, from = %envelope.from,
                "dropped a frame of another cluster or of a node with this node's id"
            );
            return;
        }
        let Some(route) = self.route(envelope.group) else {
            self.metrics.unknown_group_frames.increment();
            return;
        };
        let delivery = route
            .inbox
            .deliver(envelope.from, envelope.storage, envelope.message, frame_bytes)
            .await;
        match delivery {
            Delivery::Delivered => {}
            Delivery::Dropped => route.metrics.dropped_messages.increment(),
            Delivery::Ended => self.metrics.unknown_group_frames.increment(),
        }
    }
}

#[async_trait]
impl Deliver for Router {
    async fn deliver(&self, incoming: Incoming) -> Result<(), InboxClosed> {
        if self.closed.load(Relaxed) {
            return Err(InboxClosed);
        }
        match incoming {
            Incoming::Frame(frame) => self.frame(frame).await,
            // The protocol finds out by its next heartbeat.
            Incoming::Connected(peer) => {
                tracing::debug!(node = %self.identity.node, %peer, "connected");
            }
            Incoming::Disconnected(peer) => {
                tracing::debug!(node = %self.identity.node, %peer, "disconnected");
                // One for each broken connection: few.
                self.tell_all(|| Event::Disconnected(peer));
            }
        }
        Ok(())
    }
}
