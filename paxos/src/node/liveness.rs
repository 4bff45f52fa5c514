//! Watches the peers' nodes for all groups at once, and tells the groups and whoever else wants to know.

use std::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    sync::{Arc, Mutex},
    time::Duration,
    vec::Vec,
};

use tokio::{
    sync::broadcast,
    time::{MissedTickBehavior, interval},
};

use super::{Clock, Config, Environment, event::Event, lock, router::Router};
use crate::{
    core::peers::{Beat, Change, Peers},
    types::{Incarnation, NodeId},
    wire::Outgoing,
};

/// How many events a slow listener may be behind before it misses some.
const MAX_WAITING_EVENTS: usize = 256;

/// What happened to the link with a peer; see [`Node::peer_events`](super::Node::peer_events).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerEvent {
    /// The transport can send to the peer.
    Connected(NodeId),
    /// The transport cannot send to the peer any more.
    Disconnected(NodeId),
    /// The peer's node is heard.
    Alive(NodeId),
    /// The peer's node has not been heard for an election timeout, or was started anew: then `Alive` follows.
    Silent(NodeId),
}

/// What a node knows of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerHealth {
    /// Who.
    pub node: NodeId,
    /// Where it can be reached.
    pub address: String,
    /// Whether the transport has said that it can send to it. The peer may reach this node although this one cannot
    /// reach it, and the other way round.
    pub connected: bool,
    /// Whether it is heard: `None` until there was time to.
    pub alive: Option<bool>,
    /// The life of the peer that was heard last.
    pub incarnation: Option<Incarnation>,
    /// How long ago it was last heard.
    pub heard_before: Option<Duration>,
    /// How long a small message and its answer take, without the time that the peer waited in between; smoothed.
    pub round_trip: Option<Duration>,
}

pub(super) struct Liveness {
    clock: Clock,
    /// Groups are told of a change, or of a connection, while this is locked, so that each hears all in their order.
    peers: Mutex<Peers>,
    addresses: Mutex<BTreeMap<NodeId, String>>,
    connected: Mutex<BTreeSet<NodeId>>,
    events: broadcast::Sender<PeerEvent>,
}

impl Liveness {
    pub(super) fn new(config: &Config, clock: Clock, incarnation: Incarnation) -> Self {
        let (interval, silence) = (config.replica.heartbeat_interval, config.replica.election_timeout);
        Self {
            clock,
            peers: Mutex::new(Peers::new(incarnation, interval, silence, clock.now())),
            addresses: Mutex::default(),
            connected: Mutex::default(),
            events: broadcast::Sender::new(MAX_WAITING_EVENTS),
        }
    }

    /// Watches these nodes from now on.
    pub(super) fn watch(&self, addresses: BTreeMap<NodeId, String>) {
        lock(&self.peers).watch(addresses.keys().copied(), self.clock.now());
        *lock(&self.addresses) = addresses;
    }

    /// A beat came in.
    pub(super) fn heard(&self, from: NodeId, beat: Beat, router: &Router) {
        let mut peers = lock(&self.peers);
        let changes = peers.heard(from, beat, self.clock.now());
        self.tell(changes, router);
    }

    /// The transport can send to a peer.
    pub(super) fn connected(&self, peer: NodeId, router: &Router) {
        let _in_order = lock(&self.peers);
        lock(&self.connected).insert(peer);
        router.tell_all(|| Event::Connected(peer));
        let _ = self.events.send(PeerEvent::Connected(peer));
    }

    /// The connection to a peer broke.
    pub(super) fn disconnected(&self, peer: NodeId, router: &Router) {
        let _in_order = lock(&self.peers);
        lock(&self.connected).remove(&peer);
        router.tell_all(|| Event::Disconnected(peer));
        let _ = self.events.send(PeerEvent::Disconnected(peer));
    }

    /// Makes a new group known to the router, and tells it what the others have been told so far.
    pub(super) fn introduce(&self, add: impl FnOnce(), tell: impl Fn(Event)) {
        let peers = lock(&self.peers);
        add();
        for peer in lock(&self.connected).iter() {
            tell(Event::Connected(*peer));
        }
        for change in peers.known() {
            tell(Event::Peer(change));
        }
    }

    fn tell(&self, changes: Vec<Change>, router: &Router) {
        for change in changes {
            tracing::debug!(?change, "peer");
            router.tell_all(|| Event::Peer(change));
            // Nobody listens: fine.
            let _ = self.events.send(match change {
                Change::Alive(peer) => PeerEvent::Alive(peer),
                Change::Silent(peer) => PeerEvent::Silent(peer),
            });
        }
    }

    /// The peers that are heard, and that the transport can send to.
    pub(super) fn who_is_there(&self) -> BTreeSet<NodeId> {
        let health = lock(&self.peers).health(self.clock.now());
        let connected = lock(&self.connected);
        let heard = health
            .into_iter()
            .filter(|(_, health)| health.alive == Some(true));
        heard
            .map(|(node, _)| node)
            .filter(|node| connected.contains(node))
            .collect()
    }

    pub(super) fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.events.subscribe()
    }

    pub(super) fn health(&self) -> Vec<PeerHealth> {
        let health = lock(&self.peers).health(self.clock.now());
        let (addresses, connected) = (lock(&self.addresses), lock(&self.connected));
        health
            .into_iter()
            .map(|(node, health)| PeerHealth {
                node,
                address: addresses.get(&node).cloned().unwrap_or_default(),
                connected: connected.contains(&node),
                alive: health.alive,
                incarnation: health.incarnation,
                heard_before: health.heard_before,
                round_trip: health.round_trip,
            })
            .collect()
    }
}

/// Sends this node's beats and notices who falls silent, until it is aborted.
pub(super) async fn keep_watch(environment: Arc<Environment>, router: Arc<Router>) {
    let liveness = &environment.liveness;
    let mut tick = interval(environment.config.replica.heartbeat_interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let beats = {
            let mut peers = lock(&liveness.peers);
            let (beats, changes) = peers.tick(environment.clock.now());
            liveness.tell(changes, &router);
            beats
        };
        for (peer, beat) in beats {
            if let Ok(frame) = Outgoing::encode_beat(environment.identity, &beat) {
                // A peer that cannot be reached hears nothing, and will say so.
                let _ = environment.transport.send(peer, &frame);
            }
        }
    }
}
