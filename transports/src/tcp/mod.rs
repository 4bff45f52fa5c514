//! TCP on tokio.
//!
//! Each node dials its peers; a connection carries frames from the node that dialled it only. There are two to each
//! peer: *control* for small and urgent frames, *bulk* for large and patient ones. So there is nothing to negotiate
//! about who dials whom, a node that its peers do not know yet can be heard, and each direction fails by itself.
//!
//! * A connection begins with a handshake: both sides tell and check cluster, node and protocol version. A stranger is
//!   told why it is refused, counted, and logged (not more than one line a second).
//! * Frames wait in a queue per peer and lane, bounded in bytes. One task per peer takes all that is waiting and writes
//!   it with one system call. [`Transport::send`] only queues and wakes: to write from there would cost a system call
//!   for each frame of a burst. [`Transport::send_all`] knows the whole burst, and writes what the socket takes.
//! * A connection reads into a large buffer, and frames are slices of it. The next read waits until the node has taken
//!   the frames of the last one, so a slow node slows its peers, whose queues then refuse.
//! * Both sides send a sign of life when they have been silent for a while. A side that hears nothing for
//!   [`TcpConfig::silence_timeout`] gives the connection up, which ends connections whose other end has vanished. A
//!   peer's process that ends is noticed at once.
//! * A broken connection is dialled again with exponential backoff and jitter, sooner when the peer itself calls.

mod codec;
mod handshake;
mod inbound;
mod outbound;
mod queue;
mod shared;
mod silence;

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use paxos::{
    NodeId,
    transport::{Inbox, Outgoing, Peer, SendError, Transport, TransportCounters, TransportError},
    wire,
};

pub use self::handshake::Introduction;
use self::shared::Shared;

/// How a [`Tcp`] transport behaves. Start from [`TcpConfig::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpConfig {
    /// Where to listen, `host:port`. Port 0 takes a free one, see [`Tcp::local_addr`].
    pub listen: String,
    /// The largest frame that is sent or accepted, in bytes; at most [`wire::MAX_FRAME_BYTES`].
    pub max_frame_bytes: usize,
    /// How many bytes of control frames may wait for one peer. An empty queue takes a single larger frame.
    pub max_control_queue_bytes: usize,
    /// How many bytes of bulk frames may wait for one peer. An empty queue takes a single larger frame.
    pub max_bulk_queue_bytes: usize,
    /// How many connections of others there may be at once. Each peer needs two.
    pub max_inbound_connections: usize,
    /// How long connecting and the handshake may take.
    pub handshake_timeout: Duration,
    /// How long the other end may say nothing before the connection is given up; signs of life are four times as
    /// frequent. Must be about the same on all nodes.
    pub silence_timeout: Duration,
    /// How long to wait before a broken connection is dialled again, the first time; doubles with every failure.
    pub min_backoff: Duration,
    /// The longest wait between two attempts.
    pub max_backoff: Duration,
    /// What anybody who [asks](introduction) is told beside the cluster and the node, in a form of yours: what a node
    /// that wants to join must know. At most 4 096 bytes. Nothing secret.
    pub introduction: String,
}

impl TcpConfig {
    /// The default configuration of a node that listens at `listen`.
    pub fn new(listen: impl Into<String>) -> Self {
        Self {
            listen: listen.into(),
            max_frame_bytes: wire::MAX_FRAME_BYTES,
            max_control_queue_bytes: 32 << 20,
            max_bulk_queue_bytes: 16 << 20,
            max_inbound_connections: 256,
            handshake_timeout: Duration::from_secs(3),
            silence_timeout: Duration::from_secs(4),
            min_backoff: Duration::from_millis(20),
            max_backoff: Duration::from_secs(1),
            introduction: String::new(),
        }
    }

    fn check(&self) -> Result<(), String> {
        let too_small = "max_frame_bytes must hold at least the fixed part of a frame, 44 bytes";
        let zero_time = "handshake_timeout, silence_timeout, min_backoff and max_backoff must not be zero";
        let times = [
            self.handshake_timeout,
            self.silence_timeout,
            self.min_backoff,
            self.max_backoff,
        ];
        if self.max_frame_bytes < wire::PREFIX_BYTES {
            Err(too_small.into())
        } else if self.max_frame_bytes > wire::MAX_FRAME_BYTES {
            Err(format!(
                "max_frame_bytes is {}, at most {} are possible",
                self.max_frame_bytes,
                wire::MAX_FRAME_BYTES
            ))
        } else if times.contains(&Duration::ZERO) {
            Err(zero_time.into())
        } else if self.max_inbound_connections < 2 {
            Err("max_inbound_connections must be at least 2: each peer needs two".into())
        } else if self.introduction.len() > handshake::MAX_INTRODUCTION_BYTES {
            Err(format!(
                "introduction has {} bytes, at most {} are possible",
                self.introduction.len(),
                handshake::MAX_INTRODUCTION_BYTES
            ))
        } else {
            Ok(())
        }
    }
}

/// Asks the node that listens at `address` who it is, and to which cluster it belongs; `timeout` is for all of it. For
/// nodes that want to join a cluster and know no more of it than one address.
///
/// # Errors
///
/// Nothing listens there, or it does not answer in time, or it is no node.
pub async fn introduction(address: &str, timeout: Duration) -> std::io::Result<Introduction> {
    let asked = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        handshake::ask(&mut stream).await
    };
    let answered = tokio::time::timeout(timeout, asked).await;
    answered.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// The TCP transport of one node. Dropping it ends all its connections, without waiting.
#[derive(Debug)]
pub struct Tcp {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
}

impl Tcp {
    /// Listens, so that peers can connect; nothing is answered before [`Transport::start`]. Needs no runtime.
    pub fn bind(config: TcpConfig) -> Result<Self, TransportError> {
        config.check().map_err(TransportError::Configuration)?;
        let listen = || {
            let listener = TcpListener::bind(&config.listen)?;
            listener.set_nonblocking(true)?;
            let local_addr = listener.local_addr()?;
            Ok((listener, local_addr))
        };
        let (listener, local_addr) = listen().map_err(|cause| TransportError::Listen {
            address: config.listen.clone(),
            cause: Arc::new(cause),
        })?;
        Ok(Self {
            shared: Arc::new(Shared::new(config, listener)),
            local_addr,
        })
    }

    /// Where this node listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }
}

#[async_trait]
impl Transport for Tcp {
    async fn start(&self, inbox: Inbox) -> Result<(), TransportError> {
        Shared::start(&self.shared, inbox)
    }

    fn send(&self, to: NodeId, message: &Outgoing) -> Result<(), SendError> {
        self.shared.send(to, message)
    }

    fn send_all(&self, frames: &[(NodeId, Outgoing)]) -> Vec<(usize, SendError)> {
        self.shared.send_all(frames)
    }

    fn set_peers(&self, peers: &[Peer]) {
        Shared::set_peers(&self.shared, peers);
    }

    fn counters(&self, peer: Option<NodeId>) -> TransportCounters {
        match peer {
            None => self.shared.totals.read(),
            Some(node) => self
                .shared
                .peer(node)
                .map(|peer| peer.counters.read())
                .unwrap_or_default(),
        }
    }

    async fn close(&self) {
        if let Some(mut tasks) = self.shared.stop() {
            tasks.shutdown().await;
        }
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        // Dropping the set of tasks ends them.
        self.shared.running.store(false, Ordering::Release);
        drop(self.shared.stop());
    }
}
