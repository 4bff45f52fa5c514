//! What the in-process network can do to its nodes.
#![cfg(feature = "in-process")]

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use paxos::{
    ClusterId, GroupId, Identity, NodeId, StorageId, Transport,
    core::Message,
    transport::{Deliver, Inbox, InboxClosed, Incoming, Outgoing, Peer, SendError},
    wire::{self, Envelope},
};
use paxos_transports::in_process::{Faults, InProcess, Network};
use tokio::{sync::mpsc, time::Instant};

struct Probe(mpsc::UnboundedSender<Incoming>);

#[async_trait]
impl Deliver for Probe {
    async fn deliver(&self, incoming: Incoming) -> Result<(), InboxClosed> {
        self.0.send(incoming).map_err(|_| InboxClosed)
    }
}

struct Node {
    id: NodeId,
    transport: InProcess,
    events: mpsc::UnboundedReceiver<Incoming>,
}

impl Node {
    async fn start(network: &Network, id: u64, cluster: ClusterId) -> Self {
        let transport = network.transport(NodeId(id));
        let (sender, events) = mpsc::unbounded_channel();
        let identity = Identity {
            cluster,
            node: NodeId(id),
            storage: StorageId(id),
        };
        let peers = [1, 2, 3].map(|node| Peer {
            node: NodeId(node),
            address: String::new(),
        });
        transport.set_peers(&peers);
        transport
            .start(Inbox::new(identity, Arc::new(Probe(sender))))
            .await
            .unwrap();
        Self {
            id: NodeId(id),
            transport,
            events,
        }
    }

    fn send(&self, to: u64, token: u64) -> Result<(), SendError> {
        let envelope = Envelope {
            cluster: ClusterId(1),
            from: self.id,
            storage: StorageId(self.id.0),
            group: GroupId(1),
            message: Message::ReadIndex { token },
        };
        self.transport
            .send(NodeId(to), &Outgoing::encode(&envelope).unwrap())
    }

    /// Everything that has been delivered by now, frames as their tokens.
    async fn events(&mut self) -> Vec<Event> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut events = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            events.push(match event {
                Incoming::Connected(node) => Connected(node.0),
                Incoming::Disconnected(node) => Disconnected(node.0),
                Incoming::Frame(frame) => match wire::decode(frame).unwrap().message {
                    Message::ReadIndex { token } => Token(token),
                    other => panic!("nobody sends {other:?}"),
                },
            });
        }
        events
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Connected(u64),
    Disconnected(u64),
    Token(u64),
}
use Event::{Connected, Disconnected, Token};

async fn three(network: &Network) -> [Node; 3] {
    let mut nodes = [
        Node::start(network, 1, ClusterId(1)).await,
        Node::start(network, 2, ClusterId(1)).await,
        Node::start(network, 3, ClusterId(1)).await,
    ];
    assert_eq!(nodes[0].events().await, [Connected(2), Connected(3)]);
    assert_eq!(nodes[1].events().await, [Connected(1), Connected(3)]);
    assert_eq!(nodes[2].events().await, [Connected(1), Connected(2)]);
    nodes
}

#[tokio::test(start_paused = true)]
async fn a_cut_disconnects_both_sides_and_heals() {
    let network = Network::new();
    let [mut one, mut two, mut three] = three(&network).await;
    network.cut(NodeId(2), NodeId(1));
    assert_eq!(one.events().await, [Disconnected(2)]);
    assert_eq!(two.events().await, [Disconnected(1)]);
    assert_eq!(three.events().await, []);
    assert_eq!(one.send(2, 1), Err(SendError::NotConnected));
    assert_eq!(one.send(3, 2), Ok(()));
    network.heal();
    assert_eq!(one.events().await, [Connected(2)]);
    assert_eq!(one.send(2, 3), Ok(()));
    assert_eq!(two.events().await, [Connected(1), Token(3)]);
    assert_eq!(three.events().await, [Token(2)]);
}

#[tokio::test(start_paused = true)]
async fn a_one_way_cut_is_silent_and_one_way() {
    let network = Network::new();
    let [mut one, mut two, _three] = three(&network).await;
    network.cut_one_way(NodeId(1), NodeId(2));
    assert_eq!((one.send(2, 1), two.send(1, 2)), (Ok(()), Ok(())));
    assert_eq!(one.events().await, [Token(2)]);
    assert_eq!(two.events().await, []);
    network.heal();
    assert_eq!(one.send(2, 3), Ok(()));
    assert_eq!(two.events().await, [Token(3)]);
}

#[tokio::test(start_paused = true)]
async fn isolation_and_partitions_separate_whom_they_say() {
    let network = Network::new();
    let [mut one, mut two, mut three] = three(&network).await;
    network.isolate(NodeId(3));
    assert_eq!(three.events().await, [Disconnected(1), Disconnected(2)]);
    assert_eq!(one.events().await, [Disconnected(3)]);
    assert_eq!(two.events().await, [Disconnected(3)]);
    network.partition(&[&[NodeId(1)], &[NodeId(2), NodeId(3)]]);
    assert_eq!(one.events().await, [Disconnected(2)]);
    assert_eq!(two.events().await, [Disconnected(1), Connected(3)]);
    assert_eq!(three.events().await, [Connected(2)]);
}

#[tokio::test(start_paused = true)]
async fn frames_under_way_are_lost_when_the_connection_breaks() {
    let network = Network::new();
    let [one, mut two, _three] = three(&network).await;
    network.set_faults(Faults {
        delay: Duration::from_millis(50)..Duration::from_millis(50),
        ..Faults::default()
    });
    one.send(2, 1).unwrap();
    network.cut(NodeId(1), NodeId(2));
    network.heal();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(two.events().await, [Disconnected(1), Connected(1)]);
}

#[tokio::test(start_paused = true)]
async fn delays_follow_the_paused_clock_and_keep_the_order() {
    let network = Network::with_seed(7);
    let [one, mut two, _three] = three(&network).await;
    network.set_faults(Faults {
        delay: Duration::from_secs(10)..Duration::from_secs(90),
        ..Faults::default()
    });
    let sent = Instant::now();
    for token in 0..20 {
        one.send(2, token).unwrap();
    }
    let mut arrived = Vec::new();
    while arrived.len() < 20 {
        arrived.extend(two.events().await);
        assert!(arrived.is_empty() || sent.elapsed() >= Duration::from_secs(10));
    }
    assert!(sent.elapsed() < Duration::from_secs(91));
    assert_eq!(arrived, (0..20).map(Token).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn loss_and_repetition_follow_from_the_seed() {
    let mut outcomes = Vec::new();
    for seed in [1, 1, 2] {
        let network = Network::with_seed(seed);
        let [one, mut two, _three] = three(&network).await;
        network.set_faults(Faults {
            drop_rate: 0.3,
            duplicate_rate: 0.3,
            ..Faults::default()
        });
        for token in 0..200 {
            one.send(2, token).unwrap();
        }
        outcomes.push(two.events().await);
    }
    assert_eq!(outcomes[0], outcomes[1]);
    assert_ne!(outcomes[0], outcomes[2]);
    for outcome in outcomes {
        let mut tokens = outcome.clone();
        tokens.dedup();
        assert!(tokens.len() < 180, "some frames are lost");
        assert!(outcome.len() > tokens.len() + 20, "some arrive twice");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_transport_is_a_crash_that_its_peers_notice() {
    let network = Network::new();
    let [mut one, two, _three] = three(&network).await;
    drop(two);
    assert_eq!(one.events().await, [Disconnected(2)]);
    let _two = Node::start(&network, 2, ClusterId(1)).await;
    assert_eq!(one.events().await, [Connected(2)]);
}

#[tokio::test(start_paused = true)]
async fn nodes_of_two_clusters_never_connect() {
    let network = Network::new();
    let mut one = Node::start(&network, 1, ClusterId(1)).await;
    let mut two = Node::start(&network, 2, ClusterId(2)).await;
    assert_eq!(one.events().await, []);
    assert_eq!(two.events().await, []);
}
