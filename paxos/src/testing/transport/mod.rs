//! The conformance suite of the [`Transport`] trait.
//!
//! A transport is right when [`conformance`] returns `Ok`. In the tests of another crate:
//!
//! ```ignore
//! #[tokio::test(flavor = "multi_thread")]
//! async fn conforms() {
//!     conformance(|node, before| my_transport(node, before)).await.unwrap();
//! }
//! ```
//!
//! The function that is passed makes the transport of a node, not started yet, and tells the address at which its peers
//! reach it. It is called anew for every life of a node; `before` is the address of the earlier life if the new one has
//! to be found at the same place. Transports should be made with queues of at most [`MAX_QUEUE_BYTES`].
//!
//! The suite uses real time but asserts none: it waits for what has to happen, at most [`PATIENCE`] each.

mod recorder;
mod scenarios;

use std::{
    boxed::Box,
    format,
    future::Future,
    pin::Pin,
    string::{String, ToString},
    sync::Arc,
    time::Duration,
    vec::Vec,
};

use self::recorder::Recorder;
use crate::{
    core::Message,
    transport::{Inbox, Lane, Outgoing, Peer, Transport},
    types::{
        Accepted, Ballot, ClusterId, Entry, EntryKind, GroupId, Identity, Incarnation, NodeId, Slot,
        StorageId,
    },
    wire::Envelope,
};
use bytes::Bytes;

/// How long the suite waits for something that has to happen before it calls the transport wrong.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A transport that takes more bytes than this for a peer that reads nothing is considered unbounded. Includes what the
/// operating system buffers.
pub const MAX_QUEUE_BYTES: usize = 64 << 20;

/// What a transport did wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("scenario '{scenario}': {detail}")]
pub struct Violation {
    /// The scenario that failed.
    pub scenario: &'static str,
    /// What was expected, and what happened.
    pub detail: String,
}

/// Runs all scenarios against the transports that `make` makes; see the [module](self). Stops at the first violation.
pub async fn conformance<T, F>(make: F) -> Result<(), Violation>
where
    T: Transport,
    F: Fn(NodeId, Option<&str>) -> (T, String) + Send + Sync,
{
    conformance_within(PATIENCE, make).await
}

/// As [`conformance`], with another patience than [`PATIENCE`].
pub async fn conformance_within<T, F>(patience: Duration, make: F) -> Result<(), Violation>
where
    T: Transport,
    F: Fn(NodeId, Option<&str>) -> (T, String) + Send + Sync,
{
    let make = |node, before: Option<&str>| {
        let (transport, address) = make(node, before);
        (Arc::new(transport) as Arc<dyn Transport>, address)
    };
    let lab = Lab {
        make: &make,
        patience,
    };
    for (scenario, run) in scenarios::ALL {
        // A transport may block its caller; the limit ends such a scenario at the next point where it can.
        let ended = tokio::time::timeout(4 * patience, run(&lab)).await;
        let ended = ended.unwrap_or_else(|_| Err("it did not end".to_string()));
        ended.map_err(|detail| Violation { scenario, detail })?;
    }
    Ok(())
}

type Make<'a> = &'a (dyn Fn(NodeId, Option<&str>) -> (Arc<dyn Transport>, String) + Send + Sync);
type Outcome = Result<(), String>;
type Running<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;
type Scenario = for<'a> fn(&'a Lab<'a>) -> Running<'a>;

/// Where scenarios get their nodes from.
struct Lab<'a> {
    make: Make<'a>,
    patience: Duration,
}

impl Lab<'_> {
    /// A node that has been started, with its recording inbox, and that knows no peers yet.
    async fn node(&self, id: u64, before: Option<&str>) -> Result<TestNode, String> {
        let (transport, address) = (self.make)(NodeId(id), before);
        let recorder = Recorder::new(self.patience);
        let node = TestNode {
            peer: Peer {
                node: NodeId(id),
                address,
            },
            transport,
            recorder,
        };
        node.start()
            .await
            .map_err(|error| format!("start failed: {error}"))?;
        Ok(node)
    }

    /// Nodes 1 to `count`, all connected to each other.
    async fn nodes(&self, count: u64) -> Result<Vec<TestNode>, String> {
        let mut nodes = Vec::new();
        for id in 1..=count {
            nodes.push(self.node(id, None).await?);
        }
        introduce(&nodes.iter().collect::<Vec<_>>());
        for node in &nodes {
            for other in nodes.iter().filter(|other| other.id() != node.id()) {
                node.recorder.connected(other.id()).await?;
            }
        }
        Ok(nodes)
    }
}

/// Tells each of these nodes of all of them.
fn introduce(nodes: &[&TestNode]) {
    let peers: Vec<Peer> = nodes.iter().map(|node| node.peer.clone()).collect();
    for node in nodes {
        node.transport.set_peers(&peers);
    }
}

/// One life of a node.
struct TestNode {
    peer: Peer,
    transport: Arc<dyn Transport>,
    recorder: Arc<Recorder>,
}

impl TestNode {
    fn id(&self) -> NodeId {
        self.peer.node
    }

    async fn start(&self) -> Result<(), crate::TransportError> {
        let identity = Identity {
            cluster: CLUSTER,
            node: self.id(),
            storage: StorageId(self.id().0),
        };
        self.transport
            .start(Inbox::new(identity, self.recorder.clone()))
            .await
    }

    /// A frame of this node; see [`frame`].
    fn frame(&self, lane: Lane, number: u64, bytes: usize) -> Outgoing {
        frame(self.id(), lane, number, bytes)
    }
}

/// The cluster of all nodes in the suite.
pub const CLUSTER: ClusterId = ClusterId(0x7472_616e_7370_6f72);

/// A frame of node `from` with a number that the recorder finds again, and about `bytes` bytes.
fn frame(from: NodeId, lane: Lane, number: u64, bytes: usize) -> Outgoing {
    // Contents that differ from place to place, so that mixed up pieces are noticed.
    let mut payload = std::vec![number as u8; bytes];
    for (at, word) in payload.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(at as u64 ^ number).to_le_bytes());
    }
    let payload = Bytes::from(payload);
    let message = match lane {
        Lane::Control => Message::Forward {
            ballot: Ballot::ZERO,
            incarnation: Incarnation(1),
            first: number,
            commands: Vec::from([payload]),
        },
        Lane::Bulk => Message::Learned {
            from: Slot(number),
            entries: Vec::from([Accepted {
                ballot: Ballot::ZERO,
                entry: Entry {
                    kind: EntryKind::Commands,
                    payload,
                },
            }]),
            chosen: Slot::ZERO,
        },
    };
    let envelope = Envelope {
        cluster: CLUSTER,
        from,
        storage: StorageId(from.0),
        group: GroupId(1),
        message,
    };
    Outgoing::encode(&envelope).expect("test frames are small")
}
