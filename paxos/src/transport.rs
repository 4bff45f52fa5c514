//! The `Transport` trait: how nodes reach each other.
//!
//! A transport moves opaque frames between nodes, as well as it can and never by waiting: the protocol expects loss,
//! repetition and reordering, and feeds refusals into its flow control.

use alloc::{boxed::Box, string::String, sync::Arc, vec::Vec};

use async_trait::async_trait;
use bytes::Bytes;

use crate::types::{Identity, NodeId};
pub use crate::wire::{Lane, Outgoing};

/// Where a node can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub node: NodeId,
    /// What that means is the transport's business (for TCP: `host:port`).
    pub address: String,
}

/// Why a message was refused. The node tells the protocol, which sends again when it makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The queue to this peer holds as many bytes as it may.
    #[error("the queue to this peer is full")]
    Full,
    /// There is no connection to this peer now.
    #[error("this peer is not connected")]
    NotConnected,
    /// The frame is larger than this transport carries; it will never be accepted.
    #[error("the frame is larger than this transport carries")]
    TooLarge,
    /// This node is not among the peers.
    #[error("no such peer")]
    UnknownPeer,
    /// The transport is closed or not started.
    #[error("the transport is closed")]
    Closed,
}

/// Why a transport could not start.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        cause: Arc<std::io::Error>,
    },
    /// An address or option makes no sense.
    #[error("{0}")]
    Configuration(String),
    /// `start` was called twice, or after `close`.
    #[error("transport used wrongly: {0}")]
    Misuse(String),
}

/// What a transport hands to its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// One whole frame, exactly the bytes of an [`Outgoing`] (all parts), from a peer of the same cluster.
    Frame(Bytes),
    /// A connection to this peer has been made, and frames can be sent to it. Frames *of* that peer may arrive earlier.
    Connected(NodeId),
    /// The connection to this peer broke, or it is no peer any more: frames to it are refused, and what waited for it
    /// is lost. Delivered at once when a peer's process ends; the protocol takes it as a hint that it did. Follows a
    /// `Connected` of the same peer.
    Disconnected(NodeId),
}

/// The node closed its inbox: the transport should stop delivering and will soon be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node is shutting down")]
pub struct InboxClosed;

/// Takes what a transport received. Implemented by the node (and by test harnesses).
#[async_trait]
pub trait Deliver: Send + Sync + 'static {
    /// Hands over one event. Waits while the node is busy: that is the backpressure on the remote, so a transport must
    /// not read further from that connection meanwhile.
    async fn deliver(&self, incoming: Incoming) -> Result<(), InboxClosed>;
}

/// The node's end of a transport; cloned freely.
#[derive(Clone)]
pub struct Inbox {
    /// Who this node is; what a handshake tells the other side.
    pub identity: Identity,
    target: Arc<dyn Deliver>,
}

impl Inbox {
    /// An inbox of the node `identity` that hands everything to `target`.
    pub fn new(identity: Identity, target: Arc<dyn Deliver>) -> Self {
        Self { identity, target }
    }

    /// Hands one event to the node; see [`Deliver::deliver`].
    pub async fn deliver(&self, incoming: Incoming) -> Result<(), InboxClosed> {
        self.target.deliver(incoming).await
    }
}

impl core::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Inbox")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// What a transport has counted since it started, per peer or over all (see [`Transport::counters`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransportCounters {
    /// Bytes of frames handed to the system.
    pub sent_bytes: u64,
    /// Bytes of frames received whole.
    pub received_bytes: u64,
    /// Frames that [`Transport::send`] refused.
    pub refused_sends: u64,
    /// Connections or frames of strangers, and damaged or oversized frames.
    pub refused_strangers: u64,
    /// Connections made, over all peers.
    pub connects: u64,
}

/// Moves frames between the nodes of a cluster.
///
/// # Calls
///
/// The node calls [`start`](Self::start) once, then [`set_peers`](Self::set_peers), [`send`](Self::send) and
/// [`send_all`](Self::send_all) from any thread inside a tokio runtime, not always the one of `start`, any number at once,
/// and [`close`](Self::close) last.
///
/// # Promises
///
/// As long as a connection lasts, accepted frames of one lane arrive whole, once and in order; control frames overtake
/// bulk frames that wait. What waits for one peer is bounded in bytes, and a peer that reads nothing disturbs no other.
/// When a connection breaks, what was under way is lost. The protocol needs less: it is safe whatever is lost, repeated
/// or reordered, but slow.
///
/// `paxos::testing::transport` (feature `testing`) checks all of it.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Begins to listen and to deliver. On return this node can be reached.
    async fn start(&self, inbox: Inbox) -> Result<(), TransportError>;

    /// Queues a frame for a peer. Never waits: a full queue, a missing connection or an unknown peer refuses. `Ok` does
    /// not mean that it arrives.
    fn send(&self, to: NodeId, message: &Outgoing) -> Result<(), SendError>;

    /// Sends several frames as [`send`](Self::send) does, in order; returns which of them were refused, by their places in
    /// ascending order.
    ///
    /// The node calls this on its storage thread, once for all messages that waited for a write. A transport whose own
    /// tasks would have to be woken first should hand the frames to the system right here, as far as that is possible
    /// without waiting.
    fn send_all(&self, frames: &[(NodeId, Outgoing)]) -> Vec<(usize, SendError)> {
        let refused =
            |(at, (to, frame)): (usize, &(NodeId, Outgoing))| Some((at, self.send(*to, frame).err()?));
        frames.iter().enumerate().filter_map(refused).collect()
    }

    /// The largest frame that [`send`](Self::send) takes, in bytes. A node refuses to start when its own bounds allow
    /// larger ones, because a frame that never gets through would block its group for good.
    fn max_frame_bytes(&self) -> usize {
        crate::wire::MAX_FRAME_BYTES
    }

    /// Replaces the set of peers: connects to new ones, forgets those that are gone, follows changed addresses. The
    /// node's own id may be in it and is ignored.
    fn set_peers(&self, peers: &[Peer]);

    /// What has been counted so far with this peer, or over all for `None`.
    fn counters(&self, peer: Option<NodeId>) -> TransportCounters {
        let _ = peer;
        TransportCounters::default()
    }

    /// Stops everything that `start` began and waits for it. Queued frames may be lost. Nothing is delivered after.
    async fn close(&self) {}
}

#[async_trait]
impl<T: Transport + ?Sized> Transport for Box<T> {
    async fn start(&self, inbox: Inbox) -> Result<(), TransportError> {
        (**self).start(inbox).await
    }

    fn send(&self, to: NodeId, message: &Outgoing) -> Result<(), SendError> {
        (**self).send(to, message)
    }

    fn send_all(&self, frames: &[(NodeId, Outgoing)]) -> Vec<(usize, SendError)> {
        (**self).send_all(frames)
    }

    fn max_frame_bytes(&self) -> usize {
        (**self).max_frame_bytes()
    }

    fn set_peers(&self, peers: &[Peer]) {
        (**self).set_peers(peers);
    }

    fn counters(&self, peer: Option<NodeId>) -> TransportCounters {
        (**self).counters(peer)
    }

    async fn close(&self) {
        (**self).close().await;
    }
}
