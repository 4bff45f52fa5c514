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

use super::{
    event::{Delivery, Event, Inbox},
    liveness::Liveness,
};
use crate::{
    metrics::{GroupMetrics, NodeMetrics},
    transport::{Deliver, InboxClosed, Incoming},
    types::{ClusterId, GroupId, Identity, NodeId},
    wire::{self, WireError},
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
    liveness: Arc<Liveness>,
    closed: AtomicBool,
}

impl Router {
    pub(super) fn new(identity: Identity, metrics: Arc<NodeMetrics>, liveness: Arc<Liveness>) -> Self {
        Self {
            identity,
            routes: RwLock::default(),
            metrics,
            liveness,
            closed: AtomicBool::new(false),
        }
    }

    pub(super) fn add(&self, group: GroupId, route: Route) {
        self.routes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(group, Arc::new(route));
    }

    /// Takes nothing for this group any more, and tells it to stop.
    pub(super) fn remove(&self, group: GroupId) {
        let route = self
            .routes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&group);
        if let Some(route) = route {
            route.inbox.send(Event::Stop("the group was removed"));
        }
    }

    /// Takes nothing any more, and tells all groups to stop.
    pub(super) fn close(&self) {
        self.closed.store(true, Relaxed);
        self.tell_all(|| Event::Stop("the node was shut down"));
    }

    fn route(&self, group: GroupId) -> Option<Arc<Route>> {
        self.routes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&group)
            .cloned()
    }

    /// All groups that are served now.
    pub(super) fn groups(&self) -> Vec<(GroupId, Arc<Route>)> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes
            .iter()
            .map(|(group, route)| (*group, route.clone()))
            .collect()
    }

    pub(super) fn tell_all(&self, event: impl Fn() -> Event) {
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

    fn well_formed<T>(&self, decoded: Result<T, WireError>) -> Option<T> {
        decoded
            .inspect_err(|error| {
                self.metrics.malformed_frames.increment();
                tracing::debug!(node = %self.identity.node, %error, "dropped a malformed frame");
            })
            .ok()
    }

    fn is_stranger(&self, cluster: ClusterId, from: NodeId) -> bool {
        let stranger = cluster != self.identity.cluster || from == self.identity.node;
        if stranger {
            self.metrics.stranger_frames.increment();
            tracing::debug!(
                node = %self.identity.node, %cluster, %from,
                "dropped a frame of another cluster or of a node with this node's id"
            );
        }
        stranger
    }

    fn beat(&self, frame: Bytes) {
        if let Some((prefix, beat)) = self.well_formed(wire::decode_beat(frame))
            && !self.is_stranger(prefix.cluster, prefix.from)
        {
            self.liveness.heard(prefix.from, beat, self);
        }
    }

    async fn frame(&self, frame: Bytes) {
        if wire::is_beat(&frame) {
            return self.beat(frame);
        }
        let frame_bytes = frame.len();
        let Some(envelope) = self.well_formed(wire::decode(frame)) else {
            return;
        };
        if self.is_stranger(envelope.cluster, envelope.from) {
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
            Incoming::Connected(peer) => {
                tracing::debug!(node = %self.identity.node, %peer, "connected");
                self.liveness.connected(peer, self);
            }
            Incoming::Disconnected(peer) => {
                tracing::debug!(node = %self.identity.node, %peer, "disconnected");
                self.liveness.disconnected(peer, self);
            }
        }
        Ok(())
    }
}
