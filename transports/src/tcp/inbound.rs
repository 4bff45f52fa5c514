//! Connections that others dialled: frames come in.

use std::{net::SocketAddr, sync::Arc};

use bytes::BytesMut;
use paxos::transport::{Inbox, Incoming};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};
use tokio_util::codec::Decoder;
use tracing::debug;

use super::{
    codec::{BUFFER_BYTES, FrameCodec, Item, ReadError, SIGN_OF_LIFE},
    handshake::{self, Caller, HandshakeError},
    shared::{PeerState, Shared},
    silence::{Listening, signs_of_life},
};

/// A buffer with less room than this, in bytes, is exchanged before the next read.
const MIN_READ_BYTES: usize = 4 << 10;

/// Accepts connections for ever.
pub(super) async fn listen(shared: Arc<Shared>, listener: TcpListener, inbox: Inbox) {
    let slots = Arc::new(Semaphore::new(shared.config.max_inbound_connections));
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => match slots.clone().try_acquire_owned() {
                Ok(slot) => {
                    let connection = serve(shared.clone(), stream, remote, inbox.clone(), slot);
                    shared.spawn(connection);
                }
                Err(_) => shared.refuse_stranger(
                    remote,
                    &format!(
                        "there are {} connections already, no more are allowed",
                        shared.config.max_inbound_connections
                    ),
                ),
            },
            Err(error) => {
                shared
                    .warnings
                    .warn(&format!("cannot accept connections now: {error}"));
                tokio::time::sleep(shared.config.min_backoff).await;
            }
        }
    }
}

/// Why a connection ends.
enum End {
    /// The other side closed it, or it broke.
    Broken(String),
    /// The other side misbehaves.
    Stranger(String),
    /// The node takes nothing more.
    InboxClosed,
}

async fn serve(
    shared: Arc<Shared>,
    mut stream: TcpStream,
    remote: SocketAddr,
    inbox: Inbox,
    _slot: OwnedSemaphorePermit,
) {
    // Both only make things faster.
    let _ = stream.set_nodelay(true);
    let greeting = handshake::answer(&mut stream, inbox.identity, &shared.config.introduction);
    let caller = match timeout(shared.config.handshake_timeout, greeting).await {
        Ok(Ok(Some(caller))) => caller,
        Ok(Ok(None)) => return,
        Ok(Err(HandshakeError::Refused(why))) => return shared.refuse_stranger(remote, &why),
        Ok(Err(HandshakeError::Io(error))) => {
            return shared.refuse_stranger(remote, &format!("it broke off the handshake: {error}"));
        }
        Err(_) => return shared.refuse_stranger(remote, "it did not finish the handshake in time"),
    };
    let peer = shared.peer(caller.node);
    if let Some(peer) = &peer {
        peer.has_called.notify_one();
    }
    let (id, superseded) = shared.register(caller.node, caller.lane);
    let end = carry(&shared, &mut stream, caller, &inbox, peer.as_deref(), superseded).await;
    shared.unregister(caller.node, caller.lane, id);
    match end {
        End::Stranger(why) => shared.refuse_stranger(remote, &format!("as node {}: {why}", caller.node)),
        End::Broken(why) => {
            debug!(node = %caller.node, lane = ?caller.lane, %remote, "inbound connection ended: {why}");
        }
        End::InboxClosed => {}
    }
}

async fn carry(
    shared: &Shared,
    stream: &mut TcpStream,
    caller: Caller,
    inbox: &Inbox,
    peer: Option<&PeerState>,
    superseded: oneshot::Receiver<()>,
) -> End {
    let (reader, writer) = stream.split();
    let listening = Listening::default();
    tokio::select! {
        biased;
        end = read_frames(shared, reader, caller, inbox, peer, &listening) => end,
        end = give_signs(shared, writer) => end,
        () = listening.until_silent(shared.config.silence_timeout) => End::Broken("no sign of life".into()),
        // The sender was dropped: a newer connection took its place.
        _ = superseded => End::Broken("the peer has made a new connection".into()),
    }
}

async fn read_frames(
    shared: &Shared,
    mut reader: ReadHalf<'_>,
    caller: Caller,
    inbox: &Inbox,
    peer: Option<&PeerState>,
    listening: &Listening,
) -> End {
    let mut codec = FrameCodec {
        max_frame_bytes: shared.config.max_frame_bytes,
    };
    let mut buffer = BytesMut::with_capacity(BUFFER_BYTES);
    loop {
        loop {
            let (prefix, frame) = match codec.decode(&mut buffer) {
                Ok(None) => break,
                Ok(Some(Item::SignOfLife)) => continue,
                Ok(Some(Item::Frame(prefix, frame))) => (prefix, frame),
                Err(ReadError::Wire(error)) => return End::Stranger(error.to_string()),
                Err(ReadError::Io(error)) => return End::Broken(error.to_string()),
            };
            if (prefix.cluster, prefix.from) != (caller.cluster, caller.node) {
                return End::Stranger(format!(
                    "it sent a frame in the name of node {} of cluster {}",
                    prefix.from, prefix.cluster
                ));
            }
            shared.count(peer, |counters| &counters.received_bytes, frame.len() as u64);
            listening.pause(true);
            if inbox.deliver(Incoming::Frame(frame)).await.is_err() {
                return End::InboxClosed;
            }
            listening.pause(false);
        }
        if buffer.capacity() - buffer.len() < MIN_READ_BYTES {
            buffer.reserve(BUFFER_BYTES);
        }
        match reader.read_buf(&mut buffer).await {
            Ok(0) => return End::Broken("the peer closed it".into()),
            Ok(_) => listening.hear(),
            Err(error) => return End::Broken(error.to_string()),
        }
    }
}

/// Sends signs of life until the connection breaks.
async fn give_signs(shared: &Shared, mut writer: WriteHalf<'_>) -> End {
    let mut tick = signs_of_life(shared.config.silence_timeout);
    loop {
        tick.tick().await;
        if let Err(error) = writer.write_all(SIGN_OF_LIFE).await {
            return End::Broken(error.to_string());
        }
    }
}
