//! What TCP adds to the conformance suite: strangers, damage, vanished peers, bounds.
#![cfg(feature = "tcp")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use paxos::{
    ClusterId, GroupId, Identity, Incarnation, NodeId, StorageId, Transport, TransportError,
    core::Message,
    transport::{Deliver, Inbox, InboxClosed, Incoming, Outgoing, Peer, SendError},
    wire::{self, Envelope},
};
use paxos_transports::tcp::{self, Tcp, TcpConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::timeout,
};

const CLUSTER: ClusterId = ClusterId(7);
const PATIENCE: Duration = Duration::from_secs(20);

struct Probe {
    events: mpsc::UnboundedSender<Incoming>,
    shut: watch::Receiver<bool>,
}

#[async_trait]
impl Deliver for Probe {
    async fn deliver(&self, incoming: Incoming) -> Result<(), InboxClosed> {
        let _ = self.shut.clone().wait_for(|shut| !shut).await;
        self.events.send(incoming).map_err(|_| InboxClosed)
    }
}

struct Node {
    id: NodeId,
    tcp: Tcp,
    events: mpsc::UnboundedReceiver<Incoming>,
    shut: watch::Sender<bool>,
}

impl Node {
    async fn start(id: u64, cluster: ClusterId, change: impl FnOnce(&mut TcpConfig)) -> Self {
        let mut config = TcpConfig::new("127.0.0.1:0");
        change(&mut config);
        let tcp = Tcp::bind(config).unwrap();
        let (sender, events) = mpsc::unbounded_channel();
        let shut = watch::Sender::new(false);
        let identity = identity(id, cluster);
        let probe = Probe {
            events: sender,
            shut: shut.subscribe(),
        };
        tcp.start(Inbox::new(identity, Arc::new(probe))).await.unwrap();
        Self {
            id: NodeId(id),
            tcp,
            events,
            shut,
        }
    }

    fn address(&self) -> String {
        self.tcp.local_addr().to_string()
    }

    fn knows(&self, node: u64, address: impl Into<String>) {
        self.tcp.set_peers(&[Peer {
            node: NodeId(node),
            address: address.into(),
        }]);
    }

    async fn next(&mut self) -> Incoming {
        timeout(PATIENCE, self.events.recv())
            .await
            .expect("something happens")
            .expect("the transport lives")
    }

    /// Waits until as many strangers have been refused, and no more.
    async fn has_refused(&self, count: u64) {
        self.has_refused_at_least(count).await;
        assert_eq!(self.tcp.counters(None).refused_strangers, count);
    }

    async fn has_refused_at_least(&self, count: u64) {
        let refused = async {
            while self.tcp.counters(None).refused_strangers < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, refused).await.expect("the stranger is refused");
    }
}

fn identity(node: u64, cluster: ClusterId) -> Identity {
    Identity {
        cluster,
        node: NodeId(node),
        storage: StorageId(node + 100),
    }
}

/// Nodes 1 and 2, connected in both directions.
async fn two_nodes(change: impl Fn(&mut TcpConfig)) -> (Node, Node) {
    let mut one = Node::start(1, CLUSTER, &change).await;
    let mut two = Node::start(2, CLUSTER, &change).await;
    one.knows(2, two.address());
    two.knows(1, one.address());
    assert_eq!(one.next().await, Incoming::Connected(NodeId(2)));
    assert_eq!(two.next().await, Incoming::Connected(NodeId(1)));
    (one, two)
}

fn frame(from: u64, cluster: ClusterId, number: u64, bytes: usize) -> Outgoing {
    let envelope = Envelope {
        cluster,
        from: NodeId(from),
        storage: StorageId(from + 100),
        group: GroupId(1),
        message: Message::Forward {
            ballot: paxos::Ballot::ZERO,
            incarnation: Incarnation(1),
            first: number,
            commands: vec![Bytes::from(vec![b'x'; bytes])],
        },
    };
    Outgoing::encode(&envelope).unwrap()
}

/// The two nodes still talk, over the connections that they had, and have heard of nothing else.
async fn undisturbed(one: &mut Node, two: &mut Node) {
    static NUMBER: Mutex<u64> = Mutex::new(0);
    let number = {
        let mut number = NUMBER.lock().unwrap();
        *number += 1;
        *number
    };
    for (from, to) in [(&mut *one, &mut *two)] {
        let sent = frame(from.id.0, CLUSTER, number, 200);
        from.tcp.send(to.id, &sent).unwrap();
        assert_eq!(to.next().await, Incoming::Frame(sent.to_bytes()));
        assert!(from.events.is_empty() && to.events.is_empty());
        assert_eq!(
            (from.tcp.counters(None).connects, to.tcp.counters(None).connects),
            (1, 1)
        );
    }
}

/// The first words of a caller, as the format says.
fn hello(version: u8, lane: u8, cluster: ClusterId, from: u64, to: u64) -> Vec<u8> {
    let mut hello = b"PxHi".to_vec();
    hello.extend_from_slice(&[version, version, lane, 0]);
    for word in [cluster.0, from, from + 100, to] {
        hello.extend_from_slice(&word.to_le_bytes());
    }
    hello
}

/// Reads until the other side closes.
async fn everything_from(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    // A connection that is reset has been closed, too.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the connection is closed");
    answer
}

/// A connection of a caller that passed the handshake as node 9.
async fn caller(to: &Node) -> TcpStream {
    let mut stream = TcpStream::connect(to.tcp.local_addr()).await.unwrap();
    stream
        .write_all(&hello(wire::VERSION, 0, CLUSTER, 9, to.id.0))
        .await
        .unwrap();
    let mut welcome = [0; 24];
    stream.read_exact(&mut welcome).await.unwrap();
    assert_eq!(&welcome[..4], b"PxOk");
    stream
}

#[tokio::test]
async fn strangers_are_told_why_counted_and_disturb_nobody() {
    let (mut one, mut two) = two_nodes(|_| {}).await;
    let strangers = [
        (b"hello, who are you?\n".to_vec(), "is no node"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), "is no node"),
        (vec![0xff; 100], "is no node"),
        (
            hello(wire::VERSION, 0, ClusterId(8), 9, 2),
            "cluster 0000000000000008, this node to cluster 0000000000000007",
        ),
        (
            hello(wire::VERSION + 1, 0, CLUSTER, 9, 2),
            "protocol versions 2 to 2, this node 1",
        ),
        (
            hello(wire::VERSION, 0, CLUSTER, 9, 3),
            "looks for node 3, this is node 2",
        ),
        (hello(wire::VERSION, 0, CLUSTER, 2, 2), "says that it is node 2"),
        (hello(wire::VERSION, 9, CLUSTER, 9, 2), "wants lane 9"),
    ];
    for (count, (words, expected)) in strangers.into_iter().enumerate() {
        let mut stranger = TcpStream::connect(two.tcp.local_addr()).await.unwrap();
        stranger.write_all(&words).await.unwrap();
        let answer = everything_from(&mut stranger).await;
        // What a stranger has sent beyond the first words may reset the connection before the answer arrives.
        if words.starts_with(b"PxHi") {
            let answer = String::from_utf8_lossy(&answer);
            assert!(
                answer.starts_with("PxNo") && answer.contains(expected),
                "{answer}"
            );
        }
        two.has_refused(count as u64 + 1).await;
        undisturbed(&mut one, &mut two).await;
    }
}

#[tokio::test]
async fn garbage_damage_and_foreign_names_end_the_connection_that_brings_them_and_no_other() {
    let (mut one, mut two) = two_nodes(|config| config.max_frame_bytes = 1 << 20).await;
    let mut damaged = frame(9, CLUSTER, 1, 100).to_bytes().to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let oversized = frame(9, CLUSTER, 1, 1 << 20).to_bytes();
    let bad: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0; 64],
        &damaged,
        &oversized,
        &frame(1, CLUSTER, 1, 100).to_bytes(),
        &frame(9, ClusterId(8), 1, 100).to_bytes(),
    ];
    for (count, bytes) in bad.into_iter().enumerate() {
        let mut stream = caller(&two).await;
        let good = frame(9, CLUSTER, count as u64, 50).to_bytes();
        stream.write_all(&good).await.unwrap();
        assert_eq!(two.next().await, Incoming::Frame(good));
        // The other side may close before all is written.
        let _ = stream.write_all(bytes).await;
        everything_from(&mut stream).await;
        two.has_refused(count as u64 + 1).await;
        undisturbed(&mut one, &mut two).await;
    }
}

#[tokio::test]
async fn anybody_may_ask_who_listens() {
    let (mut one, mut two) = two_nodes(|config| config.introduction = "groups=3".into()).await;
    let told = tcp::introduction(&two.address(), PATIENCE).await.unwrap();
    let expected = tcp::Introduction {
        cluster: CLUSTER,
        node: NodeId(2),
        text: "groups=3".into(),
    };
    assert_eq!(told, expected);
    two.has_refused(0).await;
    undisturbed(&mut one, &mut two).await;

    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    let unanswered = tcp::introduction(&address, Duration::from_millis(50)).await;
    assert_eq!(unanswered.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn a_caller_that_says_nothing_is_given_up() {
    let (mut one, mut two) = two_nodes(|config| config.handshake_timeout = Duration::from_millis(300)).await;
    let mut silent = TcpStream::connect(two.tcp.local_addr()).await.unwrap();
    silent.write_all(b"PxHi").await.unwrap();
    assert_eq!(everything_from(&mut silent).await, b"");
    two.has_refused(1).await;
    undisturbed(&mut one, &mut two).await;
}

#[tokio::test]
async fn there_are_no_more_connections_than_allowed() {
    let (mut one, mut two) = two_nodes(|config| config.max_inbound_connections = 3).await;
    let third = caller(&two).await;
    let mut fourth = TcpStream::connect(two.tcp.local_addr()).await.unwrap();
    assert_eq!(everything_from(&mut fourth).await, b"");
    two.has_refused(1).await;
    drop(third);
    // A place is free again, as soon as the end of the third connection was noticed.
    let admitted = async {
        loop {
            let mut fifth = TcpStream::connect(two.tcp.local_addr()).await.unwrap();
            let _ = fifth.write_all(&hello(wire::VERSION, 0, CLUSTER, 9, 2)).await;
            let mut welcome = [0; 24];
            if fifth.read_exact(&mut welcome).await.is_ok() {
                return;
            }
        }
    };
    timeout(PATIENCE, admitted).await.unwrap();
    undisturbed(&mut one, &mut two).await;
}

#[tokio::test]
async fn nodes_of_two_clusters_never_connect() {
    let one = Node::start(1, ClusterId(1), |_| {}).await;
    let two = Node::start(2, ClusterId(2), |_| {}).await;
    one.knows(2, two.address());
    two.knows(1, one.address());
    one.has_refused_at_least(1).await;
    two.has_refused_at_least(1).await;
    for node in [&one, &two] {
        let other = NodeId(3 - node.id.0);
        assert_eq!(
            node.tcp.send(other, &frame(node.id.0, CLUSTER, 1, 1)),
            Err(SendError::NotConnected)
        );
        assert!(node.events.is_empty());
        assert_eq!(node.tcp.counters(None).connects, 0);
    }
}

#[tokio::test]
async fn a_wrong_address_is_noticed_and_the_right_one_followed() {
    let mut one = Node::start(1, CLUSTER, |_| {}).await;
    let two = Node::start(2, CLUSTER, |_| {}).await;
    let three = Node::start(3, CLUSTER, |_| {}).await;
    one.knows(2, three.address());
    three.has_refused_at_least(1).await;
    assert!(one.events.is_empty());
    one.knows(2, two.address());
    assert_eq!(one.next().await, Incoming::Connected(NodeId(2)));
}

#[tokio::test]
async fn a_peer_that_answers_in_another_name_is_not_believed() {
    let mut one = Node::start(1, CLUSTER, |_| {}).await;
    let impostor = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.knows(2, impostor.local_addr().unwrap().to_string());
    for answer in [
        &b"PxOk\x01\0\0\0\x07\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0"[..],
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ] {
        let (mut stream, _) = timeout(PATIENCE, impostor.accept()).await.unwrap().unwrap();
        stream.write_all(answer).await.unwrap();
        everything_from(&mut stream).await;
    }
    assert!(one.events.is_empty());
    // The honest answer of node 2, on both lanes, is accepted.
    let mut streams = Vec::new();
    let accept = async {
        while streams.len() < 2 || one.events.is_empty() {
            tokio::select! {
                accepted = impostor.accept() => {
                    let mut stream = accepted.unwrap().0;
                    stream.write_all(b"PxOk\x01\0\0\0\x07\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0").await.unwrap();
                    streams.push(stream);
                }
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
    };
    timeout(PATIENCE, accept).await.unwrap();
    assert_eq!(one.next().await, Incoming::Connected(NodeId(2)));
}

#[tokio::test]
async fn a_peer_that_ends_without_a_word_is_noticed_without_waiting_for_silence() {
    let (mut one, two) = two_nodes(|config| config.silence_timeout = Duration::from_hours(1)).await;
    // As with kill -9, the system closes the sockets and nothing else happens.
    drop(two);
    assert_eq!(one.next().await, Incoming::Disconnected(NodeId(2)));
    assert_eq!(
        one.tcp.send(NodeId(2), &frame(1, CLUSTER, 1, 1)),
        Err(SendError::NotConnected)
    );
}

#[tokio::test]
async fn a_peer_that_vanishes_while_its_connections_stay_is_noticed_by_its_silence() {
    let mut one = Node::start(1, CLUSTER, |config| {
        config.silence_timeout = Duration::from_millis(400);
    })
    .await;
    let vanishing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.knows(2, vanishing.local_addr().unwrap().to_string());
    let mut half_open = Vec::new();
    for _ in 0..2 {
        let (mut stream, _) = timeout(PATIENCE, vanishing.accept()).await.unwrap().unwrap();
        stream
            .write_all(b"PxOk\x01\0\0\0\x07\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0")
            .await
            .unwrap();
        half_open.push(stream);
    }
    assert_eq!(one.next().await, Incoming::Connected(NodeId(2)));
    assert_eq!(one.next().await, Incoming::Disconnected(NodeId(2)));

    // The other direction: a caller that falls silent after the handshake.
    let mut silent = caller(&one).await;
    let signs = everything_from(&mut silent).await;
    assert!(
        !signs.is_empty() && signs.chunks(4).all(|sign| sign == b"Px.."),
        "{signs:?}"
    );
}

#[tokio::test]
async fn idle_or_slow_is_not_silent() {
    let (mut one, mut two) = two_nodes(|config| config.silence_timeout = Duration::from_millis(400)).await;
    two.shut.send_replace(true);
    let stuck = frame(1, CLUSTER, 1, 100);
    one.tcp.send(NodeId(2), &stuck).unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(one.events.is_empty() && two.events.is_empty());
    two.shut.send_replace(false);
    assert_eq!(two.next().await, Incoming::Frame(stuck.to_bytes()));
    undisturbed(&mut one, &mut two).await;
}

#[tokio::test]
async fn a_new_connection_of_a_peer_takes_the_place_of_the_old_one() {
    let one = Node::start(1, CLUSTER, |_| {}).await;
    let mut first = caller(&one).await;
    let _second = caller(&one).await;
    everything_from(&mut first).await;
    assert_eq!(one.tcp.counters(None).refused_strangers, 0);
}

#[tokio::test]
async fn frames_above_the_bound_are_refused_and_counted() {
    let (one, _two) = two_nodes(|config| config.max_frame_bytes = 1_000).await;
    assert_eq!(
        one.tcp.send(NodeId(2), &frame(1, CLUSTER, 1, 2_000)),
        Err(SendError::TooLarge)
    );
    assert_eq!(one.tcp.counters(Some(NodeId(2))).refused_sends, 1);
}

#[tokio::test]
async fn a_frame_larger_than_the_queue_is_carried_alone() {
    let (one, mut two) = two_nodes(|config| config.max_control_queue_bytes = 1_000).await;
    let large = frame(1, CLUSTER, 1, 3 << 20);
    one.tcp.send(NodeId(2), &large).unwrap();
    assert_eq!(two.next().await, Incoming::Frame(large.to_bytes()));
    assert_eq!(one.tcp.counters(None).sent_bytes, large.len() as u64);
    assert_eq!(
        two.tcp.counters(Some(NodeId(1))).received_bytes,
        large.len() as u64
    );
}

#[test]
fn what_cannot_be_listened_on_is_said() {
    let first = Tcp::bind(TcpConfig::new("127.0.0.1:0")).unwrap();
    let taken = first.local_addr().to_string();
    for address in [taken.as_str(), "127.0.0.1", "no such host:1"] {
        let error = Tcp::bind(TcpConfig::new(address)).unwrap_err();
        assert!(
            matches!(error, TransportError::Listen { .. }) && error.to_string().contains(address),
            "{error}"
        );
    }
    let nonsense = TcpConfig {
        max_frame_bytes: 3,
        ..TcpConfig::new("127.0.0.1:0")
    };
    assert!(matches!(
        Tcp::bind(nonsense),
        Err(TransportError::Configuration(_))
    ));
}
