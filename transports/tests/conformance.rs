//! Our transports pass the conformance suite, and transports with planted faults do not.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use paxos::{
    NodeId, Transport, TransportError,
    testing::transport::{conformance, conformance_within},
    transport::{Deliver, Inbox, InboxClosed, Incoming, Outgoing, Peer, SendError},
};
use paxos_transports::in_process::{InProcess, Network};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_process_conforms() {
    let network = Network::new();
    conformance(|node, _| (network.transport(node), String::new()))
        .await
        .unwrap();
}

#[tokio::test]
async fn in_process_conforms_on_one_thread() {
    let network = Network::new();
    conformance(|node, _| (network.transport(node), String::new()))
        .await
        .unwrap();
}

#[cfg(feature = "tcp")]
mod tcp {
    use paxos_transports::tcp::{Tcp, TcpConfig};

    use super::*;

    fn tcp(_: NodeId, before: Option<&str>) -> (Tcp, String) {
        let listen = before.unwrap_or("127.0.0.1:0");
        let transport = Tcp::bind(TcpConfig {
            max_control_queue_bytes: 4 << 20,
            max_bulk_queue_bytes: 4 << 20,
            ..TcpConfig::new(listen)
        });
        let transport = transport.unwrap();
        let address = transport.local_addr().to_string();
        (transport, address)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn tcp_conforms() {
        conformance(tcp).await.unwrap();
    }

    #[tokio::test]
    async fn tcp_conforms_on_one_thread() {
        conformance(tcp).await.unwrap();
    }
}

/// What can be wrong with a transport.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    SwapsFrames,
    LosesFrames,
    RepeatsFrames,
    CutsFrames,
    SwallowsRefusals,
    WaitsWhenFull,
    NeverFull,
    DelaysControl,
    HidesDisconnections,
    HidesConnections,
    DeliversAfterClose,
    KeepsFormerPeers,
    AcceptsSecondStart,
    LosesEndsOfBursts,
    TurnsBurstsRound,
    SwallowsRefusalsOfBursts,
}

/// A transport that is right but for one fault.
struct Faulty {
    inner: InProcess,
    fault: Fault,
    refused: AtomicUsize,
    started: AtomicBool,
    peers: Mutex<Vec<Peer>>,
    inbox: Mutex<Option<Arc<FaultyInbox>>>,
}

struct FaultyInbox {
    inner: Inbox,
    fault: Fault,
    held: Mutex<Option<Incoming>>,
    bulk_seen: AtomicBool,
    frames: AtomicUsize,
}

impl Faulty {
    fn new(inner: InProcess, fault: Fault) -> Self {
        Self {
            inner,
            fault,
            refused: AtomicUsize::new(0),
            started: AtomicBool::new(false),
            peers: Mutex::default(),
            inbox: Mutex::default(),
        }
    }
}

#[async_trait]
impl Deliver for FaultyInbox {
    async fn deliver(&self, incoming: Incoming) -> Result<(), InboxClosed> {
        let Incoming::Frame(frame) = &incoming else {
            let hidden = match self.fault {
                Fault::HidesDisconnections => matches!(incoming, Incoming::Disconnected(_)),
                Fault::HidesConnections => matches!(incoming, Incoming::Connected(_)),
                _ => false,
            };
            return if hidden {
                Ok(())
            } else {
                self.inner.deliver(incoming).await
            };
        };
        let count = self.frames.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Fault::SwapsFrames => {
                let held = self.held.lock().unwrap().take();
                match held {
                    Some(held) => {
                        self.inner.deliver(incoming).await?;
                        self.inner.deliver(held).await
                    }
                    None if count % 10 == 5 => {
                        *self.held.lock().unwrap() = Some(incoming);
                        Ok(())
                    }
                    None => self.inner.deliver(incoming).await,
                }
            }
            Fault::DelaysControl => {
                let is_bulk = paxos::wire::decode(frame.clone()).unwrap().message.is_bulk();
                if is_bulk {
                    self.bulk_seen.store(true, Ordering::SeqCst);
                } else if self.bulk_seen.load(Ordering::SeqCst) {
                    let inner = self.inner.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        inner.deliver(incoming).await
                    });
                    return Ok(());
                }
                self.inner.deliver(incoming).await
            }
            Fault::LosesFrames if count % 50 == 20 => Ok(()),
            Fault::RepeatsFrames if count % 50 == 20 => {
                self.inner.deliver(incoming.clone()).await?;
                self.inner.deliver(incoming).await
            }
            Fault::CutsFrames if count % 50 == 20 => {
                self.inner
                    .deliver(Incoming::Frame(frame.slice(..frame.len() / 2)))
                    .await
            }
            _ => self.inner.deliver(incoming).await,
        }
    }
}

#[async_trait]
impl Transport for Faulty {
    async fn start(&self, inbox: Inbox) -> Result<(), TransportError> {
        if self.fault == Fault::AcceptsSecondStart && self.started.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let identity = inbox.identity;
        let inbox = Arc::new(FaultyInbox {
            inner: inbox,
            fault: self.fault,
            held: Mutex::default(),
            bulk_seen: AtomicBool::new(false),
            frames: AtomicUsize::new(0),
        });
        *self.inbox.lock().unwrap() = Some(inbox.clone());
        self.inner.start(Inbox::new(identity, inbox)).await
    }

    fn send(&self, to: NodeId, message: &Outgoing) -> Result<(), SendError> {
        let result = self.inner.send(to, message);
        if result == Err(SendError::Full) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            match self.fault {
                Fault::SwallowsRefusals if self.refused.load(Ordering::SeqCst) == 3 => return Ok(()),
                Fault::NeverFull => return Ok(()),
                Fault::WaitsWhenFull => loop {
                    std::thread::sleep(Duration::from_millis(5));
                    match self.inner.send(to, message) {
                        Err(SendError::Full) => {}
                        other => return other,
                    }
                },
                _ => {}
            }
        }
        result
    }

    fn send_all(&self, frames: &[(NodeId, Outgoing)]) -> Vec<(usize, SendError)> {
        let mut frames = frames.to_vec();
        match self.fault {
            Fault::LosesEndsOfBursts => _ = frames.pop(),
            Fault::TurnsBurstsRound => frames.reverse(),
            _ => {}
        }
        let refused = self.inner.send_all(&frames);
        if self.fault == Fault::SwallowsRefusalsOfBursts {
            return Vec::new();
        }
        refused
    }

    fn set_peers(&self, peers: &[Peer]) {
        let mut known = self.peers.lock().unwrap();
        if self.fault == Fault::KeepsFormerPeers {
            known.extend_from_slice(peers);
        } else {
            *known = peers.to_vec();
        }
        self.inner.set_peers(&known);
    }

    async fn close(&self) {
        self.inner.close().await;
        let inbox = self.inbox.lock().unwrap().clone();
        if let Some(inbox) = inbox
            && self.fault == Fault::DeliversAfterClose
        {
            tokio::spawn(async move {
                for number in 0..5 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let _ = inbox.inner.deliver(Incoming::Frame(rubbish(number))).await;
                }
            });
        }
    }
}

/// A frame as the suite sends them.
fn rubbish(number: u64) -> bytes::Bytes {
    let message = paxos::core::Message::Forward {
        ballot: paxos::Ballot::ZERO,
        incarnation: paxos::Incarnation(1),
        first: number,
        commands: Vec::new(),
    };
    let envelope = paxos::wire::Envelope {
        cluster: paxos::ClusterId(1),
        from: NodeId(1),
        storage: paxos::StorageId(1),
        group: paxos::GroupId(1),
        message,
    };
    Outgoing::encode(&envelope).unwrap().to_bytes()
}

/// Runs the suite on a transport with a fault and returns the scenario that noticed it.
async fn noticed_by(fault: Fault) -> &'static str {
    let network = Network::new();
    // Small, so that the faults that wait for something in vain end soon.
    network.set_queue_bytes(2 << 20);
    let violation = conformance_within(Duration::from_secs(3), |node, _| {
        (Faulty::new(network.transport(node), fault), String::new())
    })
    .await
    .expect_err(&format!("{fault:?} was not noticed"));
    println!("{fault:?}: {violation}");
    violation.scenario
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_faults_are_noticed() {
    let whole = "frames_arrive_whole_and_in_order";
    let full = "a_peer_that_reads_nothing_fills_its_queue_and_nothing_waits";
    let burst = "bursts_arrive_among_single_frames_in_order";
    let expected = [
        (Fault::LosesEndsOfBursts, burst),
        (Fault::TurnsBurstsRound, burst),
        (
            Fault::SwallowsRefusalsOfBursts,
            "of_a_burst_only_what_has_no_room_is_refused",
        ),
        (Fault::SwapsFrames, whole),
        (Fault::LosesFrames, whole),
        (Fault::RepeatsFrames, whole),
        (Fault::CutsFrames, whole),
        (Fault::HidesConnections, whole),
        (
            Fault::SwallowsRefusals,
            "what_was_accepted_arrives_when_the_peer_reads_again",
        ),
        (Fault::WaitsWhenFull, full),
        (Fault::NeverFull, full),
        (Fault::DelaysControl, "control_overtakes_bulk"),
        (
            Fault::HidesDisconnections,
            "a_peer_that_closes_is_disconnected_and_one_that_returns_is_connected",
        ),
        (Fault::KeepsFormerPeers, "peers_come_and_go"),
        (Fault::DeliversAfterClose, "close_stops_deliveries"),
        (Fault::AcceptsSecondStart, "misuse_is_an_error"),
    ];
    let running = expected.map(|(fault, scenario)| (fault, scenario, tokio::spawn(noticed_by(fault))));
    for (fault, scenario, noticed) in running {
        assert_eq!(noticed.await.unwrap(), scenario, "{fault:?}");
    }
}
