//! The first words on a connection.
//!
//! ```text
//! hello   = "PxHi", lowest version u8, highest version u8, lane u8, 0, cluster u64, from u64, storage u64, to u64
//! welcome = "PxOk", version u8, 0, 0, 0, cluster u64, node u64
//! refusal = "PxNo", length u16, text
//!
//! question = "PxWh"
//! answer   = "PxMe", cluster u64, node u64, length u16, text
//! ```
//!
//! Integers are little-endian. `to` is the node that the caller wants, so that a wrong address is noticed. The question
//! is asked in place of a hello, by somebody who does not know the cluster yet, and nothing follows the answer.

use std::io;

use bytes::{Buf, BufMut};
use paxos::{ClusterId, Identity, NodeId, StorageId, transport::Lane, wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HELLO: &[u8; 4] = b"PxHi";
const WELCOME: &[u8; 4] = b"PxOk";
const REFUSAL: &[u8; 4] = b"PxNo";
const QUESTION: &[u8; 4] = b"PxWh";
const ANSWER: &[u8; 4] = b"PxMe";
const MAX_REFUSAL_BYTES: usize = 512;
/// How long the text may be that a node tells anybody of itself, in bytes.
pub(super) const MAX_INTRODUCTION_BYTES: usize = 4 << 10;

/// What a node tells anybody who asks; see [`introduction`](super::introduction).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// The node's cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Its [`TcpConfig::introduction`](super::TcpConfig::introduction).
    pub text: String,
}

/// Who has called, once it is known to be no stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    pub(super) storage: StorageId,
    pub(super) lane: Lane,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum HandshakeError {
    /// The connection broke before the handshake was over.
    Io(io::Error),
    /// One of the two sides does not want the other.
    Refused(String),
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn refused<T>(why: impl Into<String>) -> Result<T, HandshakeError> {
    Err(HandshakeError::Refused(why.into()))
}

/// The calling side.
pub(super) async fn call(
    stream: &mut TcpStream,
    me: Identity,
    to: NodeId,
    lane: Lane,
) -> Result<(), HandshakeError> {
    let mut hello = Vec::with_capacity(40);
    hello.put_slice(HELLO);
    hello.put_slice(&[wire::VERSION, wire::VERSION, lane as u8, 0]);
    hello.put_u64_le(me.cluster.0);
    hello.put_u64_le(me.node.0);
    hello.put_u64_le(me.storage.0);
    hello.put_u64_le(to.0);
    stream.write_all(&hello).await?;

    let mut magic = [0; 4];
    stream.read_exact(&mut magic).await?;
    match &magic {
        WELCOME => {}
        REFUSAL => {
            let length = usize::from(stream.read_u16_le().await?);
            let mut why = vec![0; length.min(MAX_REFUSAL_BYTES)];
            stream.read_exact(&mut why).await?;
            return refused(format!("node {to} refused: {}", printable(&why)));
        }
        _ => {
            return refused(format!(
                "no node answered, but something that says {:?}",
                printable(&magic)
            ));
        }
    }
    let mut welcome = [0; 20];
    stream.read_exact(&mut welcome).await?;
    let mut welcome = &welcome[..];
    let version = welcome.get_u8();
    welcome.advance(3);
    let cluster = ClusterId(welcome.get_u64_le());
    let node = NodeId(welcome.get_u64_le());
    if version != wire::VERSION {
        return refused(format!(
            "it speaks protocol version {version}, this node {}",
            wire::VERSION
        ));
    }
    if cluster != me.cluster {
        return refused(format!(
            "it belongs to cluster {cluster}, this node to cluster {}",
            me.cluster
        ));
    }
    if node != to {
        return refused(format!(
            "node {node} answered where node {to} was expected: check the addresses"
        ));
    }
    Ok(())
}

/// Asks who listens at the other end.
pub(super) async fn ask(stream: &mut TcpStream) -> io::Result<Introduction> {
    stream.write_all(QUESTION).await?;
    let mut magic = [0; 4];
    stream.read_exact(&mut magic).await?;
    if magic != *ANSWER {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "no node answered, but something that says {:?}",
                printable(&magic)
            ),
        ));
    }
    let cluster = ClusterId(stream.read_u64_le().await?);
    let node = NodeId(stream.read_u64_le().await?);
    let length = usize::from(stream.read_u16_le().await?);
    let mut text = vec![0; length.min(MAX_INTRODUCTION_BYTES)];
    stream.read_exact(&mut text).await?;
    Ok(Introduction {
        cluster,
        node,
        text: String::from_utf8_lossy(&text).into_owned(),
    })
}

async fn introduce(stream: &mut TcpStream, me: Identity, text: &str) -> io::Result<()> {
    let text = text.as_bytes();
    let text = &text[..text.len().min(MAX_INTRODUCTION_BYTES)];
    let mut answer = Vec::with_capacity(22 + text.len());
    answer.put_slice(ANSWER);
    answer.put_u64_le(me.cluster.0);
    answer.put_u64_le(me.node.0);
    answer.put_u16_le(text.len() as u16);
    answer.put_slice(text);
    stream.write_all(&answer).await?;
    stream.shutdown().await
}

/// The called side. A caller that is refused is told why; one that asks is told who this is, and that is all: `None`.
pub(super) async fn answer(
    stream: &mut TcpStream,
    me: Identity,
    introduction: &str,
) -> Result<Option<Caller>, HandshakeError> {
    match hear(stream, me).await {
        Ok(None) => {
            introduce(stream, me, introduction).await?;
            Ok(None)
        }
        Ok(Some(caller)) => {
            let mut welcome = Vec::with_capacity(24);
            welcome.put_slice(WELCOME);
            welcome.put_slice(&[wire::VERSION, 0, 0, 0]);
            welcome.put_u64_le(me.cluster.0);
            welcome.put_u64_le(me.node.0);
            stream.write_all(&welcome).await?;
            Ok(Some(caller))
        }
        Err(HandshakeError::Refused(why)) => {
            let mut refusal = Vec::new();
            refusal.put_slice(REFUSAL);
            let text = &why.as_bytes()[..why.len().min(MAX_REFUSAL_BYTES)];
            refusal.put_u16_le(text.len() as u16);
            refusal.put_slice(text);
            // The caller may be gone already; that it is refused is what counts.
            let _ = stream.write_all(&refusal).await;
            let _ = stream.shutdown().await;
            Err(HandshakeError::Refused(why))
        }
        Err(error) => Err(error),
    }
}

async fn hear(stream: &mut TcpStream, me: Identity) -> Result<Option<Caller>, HandshakeError> {
    let mut magic = [0; 4];
    stream.read_exact(&mut magic).await?;
    if magic == *QUESTION {
        return Ok(None);
    }
    if magic != *HELLO {
        return refused(format!("the caller is no node, it says {:?}", printable(&magic)));
    }
    let mut hello = [0; 36];
    stream.read_exact(&mut hello).await?;
    let mut hello = &hello[..];
    let (lowest, highest) = (hello.get_u8(), hello.get_u8());
    let lane = hello.get_u8();
    hello.advance(1);
    let cluster = ClusterId(hello.get_u64_le());
    let node = NodeId(hello.get_u64_le());
    let storage = StorageId(hello.get_u64_le());
    let to = NodeId(hello.get_u64_le());
    if !(lowest..=highest).contains(&wire::VERSION) {
        return refused(format!(
            "the caller speaks protocol versions {lowest} to {highest}, this node {}",
            wire::VERSION
        ));
    }
    if cluster != me.cluster {
        return refused(format!(
            "the caller belongs to cluster {cluster}, this node to cluster {}",
            me.cluster
        ));
    }
    if to != me.node {
        return refused(format!(
            "the caller looks for node {to}, this is node {}: check the addresses",
            me.node
        ));
    }
    if node == me.node {
        return refused(format!(
            "the caller says that it is node {node}, which is this node"
        ));
    }
    let Some(lane) = Lane::ALL.into_iter().find(|known| *known as u8 == lane) else {
        return refused(format!(
            "the caller wants lane {lane}, which this node does not know"
        ));
    };
    Ok(Some(Caller {
        cluster,
        node,
        storage,
        lane,
    }))
}

/// What somebody else sent, fit for a log.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .filter(|char| !char.is_control())
        .collect()
}
