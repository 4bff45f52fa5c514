//! A transport of one's own: what there is to write, and how to know that it is right.
//!
//! This one connects nodes of one process by tokio's channels, one per lane. It is small, not fast. Run it with
//! `cargo run -p paxos --features testing --example custom_transport`: the conformance suite says whether it keeps the
//! contract of [`Transport`]. Take a call of `state.connect()` out, and the suite says what is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use paxos::{
    NodeId, TransportError,
    testing::transport::conformance,
    transport::{Inbox, Incoming, Lane, Outgoing, Peer, SendError, Transport},
};
use tokio::{sync::mpsc, task::JoinHandle};

/// How many frames may wait for a peer, per lane. A bound in bytes would be better.
const MAX_QUEUED_FRAMES: usize = 1_000;

/// What all nodes share: who runs, and who is connected to whom.
#[derive(Clone, Default)]
struct Switchboard(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    nodes: BTreeMap<NodeId, RunningNode>,
    links: BTreeMap<(NodeId, NodeId), Link>,
}

struct RunningNode {
    inbox: Inbox,
    peers: BTreeSet<NodeId>,
    /// Tells the node who is connected. Few, so it needs no bound.
    events: mpsc::UnboundedSender<Incoming>,
    events_task: JoinHandle<()>,
}

/// A connection in one direction. Dropping it breaks it.
struct Link {
    control: mpsc::Sender<Bytes>,
    bulk: mpsc::Sender<Bytes>,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Switchboard {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Makes the links that are missing and breaks those that should not be, and tells the nodes.
    fn connect(&mut self) {
        let mut wanted = BTreeSet::new();
        for (from, node) in &self.nodes {
            let reachable = node
                .peers
                .iter()
                .filter(|to| *to != from && self.nodes.contains_key(to));
            wanted.extend(reachable.map(|to| (*from, *to)));
        }
        let Self { nodes, links } = self;
        let tell = |node: NodeId, event| {
            if let Some(node) = nodes.get(&node) {
                // Fails when the node stops at this moment.
                let _ = node.events.send(event);
            }
        };
        links.retain(|(from, to), _| {
            let keep = wanted.contains(&(*from, *to));
            if !keep {
                tell(*from, Incoming::Disconnected(*to));
            }
            keep
        });
        for (from, to) in wanted {
            links.entry((from, to)).or_insert_with(|| {
                tell(from, Incoming::Connected(to));
                Link::to(nodes[&to].inbox.clone())
            });
        }
    }
}

impl Link {
    fn to(inbox: Inbox) -> Self {
        let (control, mut next_control) = mpsc::channel::<Bytes>(MAX_QUEUED_FRAMES);
        let (bulk, mut next_bulk) = mpsc::channel::<Bytes>(MAX_QUEUED_FRAMES);
        let task = tokio::spawn(async move {
            loop {
                let frame = tokio::select! {
                    biased; // Control overtakes bulk.
                    frame = next_control.recv() => frame,
                    frame = next_bulk.recv() => frame,
                };
                // To wait here is the backpressure: meanwhile the channels fill, and `send` refuses.
                let Some(frame) = frame else { return };
                if inbox.deliver(Incoming::Frame(frame)).await.is_err() {
                    return;
                }
            }
        });
        Self { control, bulk, task }
    }
}

/// The transport of one node.
struct Channels {
    node: NodeId,
    switchboard: Switchboard,
    started: Mutex<bool>,
}

#[async_trait]
impl Transport for Channels {
    async fn start(&self, inbox: Inbox) -> Result<(), TransportError> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *started, true) {
            return Err(TransportError::Misuse(
                "started twice, or after it was closed".into(),
            ));
        }
        let (events, mut next_event) = mpsc::unbounded_channel();
        let events_inbox = inbox.clone();
        let events_task = tokio::spawn(async move {
            while let Some(event) = next_event.recv().await {
                if events_inbox.deliver(event).await.is_err() {
                    return;
                }
            }
        });
        let node = RunningNode {
            inbox,
            peers: BTreeSet::new(),
            events,
            events_task,
        };
        self.switchboard.state().nodes.insert(self.node, node);
        Ok(())
    }

    fn send(&self, to: NodeId, message: &Outgoing) -> Result<(), SendError> {
        let state = self.switchboard.state();
        let node = state.nodes.get(&self.node).ok_or(SendError::Closed)?;
        if to == self.node || !node.peers.contains(&to) {
            return Err(SendError::UnknownPeer);
        }
        let link = state.links.get(&(self.node, to)).ok_or(SendError::NotConnected)?;
        let lane = match message.lane() {
            Lane::Control => &link.control,
            Lane::Bulk => &link.bulk,
        };
        lane.try_send(message.to_bytes()).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SendError::Full,
            mpsc::error::TrySendError::Closed(_) => SendError::NotConnected,
        })
    }

    fn set_peers(&self, peers: &[Peer]) {
        let mut state = self.switchboard.state();
        if let Some(node) = state.nodes.get_mut(&self.node) {
            node.peers = peers.iter().map(|peer| peer.node).collect();
        }
        state.connect();
    }

    async fn close(&self) {
        let mut ending = Vec::new();
        {
            let mut state = self.switchboard.state();
            let Some(node) = state.nodes.remove(&self.node) else {
                return;
            };
            node.events_task.abort();
            ending.push(node.events_task);
            // What others send to this node must not be delivered any more when this function returns.
            for ((_, to), link) in &mut state.links {
                if *to == self.node {
                    link.task.abort();
                    ending.push(std::mem::replace(&mut link.task, tokio::spawn(async {})));
                }
            }
            state.connect();
        }
        for task in ending {
            // Ends with the news that it was aborted; only that it has ended matters.
            let _ = task.await;
        }
    }
}

#[tokio::main]
async fn main() {
    let switchboard = Switchboard::default();
    let make = |node, _: Option<&str>| {
        let transport = Channels {
            node,
            switchboard: switchboard.clone(),
            started: Mutex::new(false),
        };
        (transport, String::new())
    };
    match conformance(make).await {
        Ok(()) => println!("the transport conforms"),
        Err(violation) => {
            eprintln!("{violation}");
            std::process::exit(1);
        }
    }
}
