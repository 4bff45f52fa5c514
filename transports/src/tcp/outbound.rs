//! Connections that this node dials: frames go out.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::{Buf, Bytes};
use paxos::transport::{Inbox, Incoming, Lane};
use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    TcpConfig,
    codec::SIGN_OF_LIFE,
    handshake::{self, HandshakeError},
    shared::{PeerState, Shared},
    silence::{Listening, signs_of_life},
};

/// How many pieces one system call writes at most.
const MAX_SLICES: usize = 128;

/// How many bytes one system call writes at most, so that bulk does not keep control waiting for long.
const MAX_WRITE_BYTES: usize = 256 << 10;

/// Keeps this node connected to a peer, as long as it has an address, for ever.
pub(super) async fn keep_connected(
    shared: Arc<Shared>,
    peer: Arc<PeerState>,
    inbox: Inbox,
    mut address: watch::Receiver<Option<String>>,
) {
    let mut backoff = Backoff::new(&shared.config);
    let mut last_failure = String::new();
    loop {
        let Some(target) = address.borrow_and_update().clone() else {
            if address.changed().await.is_err() {
                return;
            }
            backoff.reset();
            continue;
        };
        let dialled = tokio::select! {
            biased;
            _ = address.changed() => continue,
            dialled = dial(&shared, &peer, &inbox, &target) => dialled,
        };
        match dialled {
            Ok(streams) => {
                info!(node = %peer.node, address = %target, "connected");
                last_failure.clear();
                let since = Instant::now();
                let Some(why) = use_connection(&shared, &peer, &inbox, &mut address, streams).await else {
                    return;
                };
                info!(node = %peer.node, address = %target, "disconnected: {why}");
                if since.elapsed() > shared.config.max_backoff {
                    backoff.reset();
                }
            }
            // Said once; the same again and again would fill the log while a peer is down.
            Err(failure) if failure != last_failure => {
                warn!(node = %peer.node, address = %target, "cannot connect, trying on: {failure}");
                last_failure = failure;
            }
            Err(failure) => debug!(node = %peer.node, address = %target, "cannot connect: {failure}"),
        }
        tokio::select! {
            // Without the first wait, two nodes could call each other back in a tight circle.
            () = async { sleep(shared.config.min_backoff).await; peer.has_called.notified().await } => {}
            () = sleep(backoff.next()) => {}
            // Noticed again at the top of the loop.
            _ = address.wait_for(|now| now.as_ref() != Some(&target)) => {}
        }
    }
}

/// Waits between attempts: longer each time, up to a bound, and never in step with others.
struct Backoff {
    min: Duration,
    max: Duration,
    current: Duration,
}

impl Backoff {
    fn new(config: &TcpConfig) -> Self {
        Self {
            min: config.min_backoff,
            max: config.max_backoff,
            current: config.min_backoff,
        }
    }

    fn reset(&mut self) {
        self.current = self.min;
    }

    fn next(&mut self) -> Duration {
        let wait = self.current.mul_f64(0.5 + 0.5 * fastrand::f64());
        self.current = (self.current * 2).min(self.max);
        wait
    }
}

/// Makes both connections to a peer; fails with a text for the log.
async fn dial(
    shared: &Shared,
    peer: &PeerState,
    inbox: &Inbox,
    address: &str,
) -> Result<[TcpStream; 2], String> {
    let lane = async |lane| -> Result<TcpStream, HandshakeError> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        handshake::call(&mut stream, inbox.identity, peer.node, lane).await?;
        Ok(stream)
    };
    // One after the other, so that a node that does not want us has to say so once only.
    let both = async { Ok((lane(Lane::Control).await?, lane(Lane::Bulk).await?)) };
    match timeout(shared.config.handshake_timeout, both).await {
        Ok(Ok((control, bulk))) => Ok([control, bulk]),
        Ok(Err(HandshakeError::Refused(why))) => Err(why),
        Ok(Err(HandshakeError::Io(error))) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {:?}", shared.config.handshake_timeout)),
    }
}

/// Carries frames until one of the connections breaks or the address changes; says why. `None` when the node takes
/// nothing more.
async fn use_connection(
    shared: &Shared,
    peer: &PeerState,
    inbox: &Inbox,
    address: &mut watch::Receiver<Option<String>>,
    [mut control, mut bulk]: [TcpStream; 2],
) -> Option<String> {
    shared.count(Some(peer), |counters| &counters.connects, 1);
    for lane in Lane::ALL {
        peer.queue(lane).open();
    }
    let announced = AtomicBool::new(false);
    let closed = AtomicBool::new(false);
    let announce = async {
        // The frames go out meanwhile: a busy node must not keep its peers waiting.
        match inbox.deliver(Incoming::Connected(peer.node)).await {
            Ok(()) => announced.store(true, Ordering::Relaxed),
            Err(_) => closed.store(true, Ordering::Relaxed),
        }
        if closed.load(Ordering::Relaxed) {
            return "the node is shutting down".to_string();
        }
        std::future::pending().await
    };
    let why = tokio::select! {
        biased;
        why = carry(shared, peer, Lane::Control, &mut control) => why,
        why = carry(shared, peer, Lane::Bulk, &mut bulk) => why,
        why = announce => why,
        _ = address.changed() => "its address changed".into(),
    };
    for lane in Lane::ALL {
        peer.queue(lane).disconnect();
    }
    drop((control, bulk));
    if announced.into_inner() && inbox.deliver(Incoming::Disconnected(peer.node)).await.is_err() {
        return None;
    }
    (!closed.into_inner()).then_some(why)
}

/// Writes what is queued for a lane until the connection breaks; says why.
async fn carry(shared: &Shared, peer: &PeerState, lane: Lane, stream: &mut TcpStream) -> String {
    let (reader, writer) = stream.split();
    let listening = Listening::default();
    tokio::select! {
        biased;
        why = hear_signs(reader, &listening) => why,
        error = write_frames(shared, peer, lane, writer) => error.to_string(),
        () = listening.until_silent(shared.config.silence_timeout) => "no sign of life".into(),
    }
}

/// The other side only gives signs of life here; the end of the stream is the end of the peer.
async fn hear_signs(mut reader: ReadHalf<'_>, listening: &Listening) -> String {
    let mut signs = [0; 64];
    loop {
        match reader.read(&mut signs).await {
            Ok(0) => return "the peer closed the connection".into(),
            Ok(_) => listening.hear(),
            Err(error) => return error.to_string(),
        }
    }
}

async fn write_frames(shared: &Shared, peer: &PeerState, lane: Lane, mut writer: WriteHalf<'_>) -> io::Error {
    let queue = peer.queue(lane);
    let mut tick = signs_of_life(shared.config.silence_timeout);
    let mut quiet = false;
    let mut parts = VecDeque::new();
    loop {
        tokio::select! {
            biased;
            () = queue.take(&mut parts) => {
                match write_all(shared, peer, lane, &mut writer, &mut parts).await {
                    Ok(()) => quiet = false,
                    Err(error) => return error,
                }
            }
            // Between two frames only, and only when nothing else was written since the last tick.
            _ = tick.tick() => {
                if quiet {
                    parts.push_back(Bytes::from_static(SIGN_OF_LIFE));
                    while !parts.is_empty() {
                        if let Err(error) = write_some(&mut writer, &mut parts).await {
                            return error;
                        }
                    }
                }
                quiet = true;
            }
        }
    }
}

async fn write_all(
    shared: &Shared,
    peer: &PeerState,
    lane: Lane,
    writer: &mut WriteHalf<'_>,
    parts: &mut VecDeque<Bytes>,
) -> io::Result<()> {
    while !parts.is_empty() {
        let written = write_some(writer, parts).await?;
        peer.queue(lane).written(written);
        shared.count(Some(peer), |counters| &counters.sent_bytes, written as u64);
        if lane == Lane::Bulk {
            // Control goes first.
            yield_now().await;
        }
    }
    Ok(())
}

/// One system call that writes as much of `parts` as the socket takes.
async fn write_some(writer: &mut WriteHalf<'_>, parts: &mut VecDeque<Bytes>) -> io::Result<usize> {
    let written = poll_fn(|context| {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let (mut used, mut room) = (0, MAX_WRITE_BYTES);
        for (slice, part) in slices.iter_mut().zip(&*parts) {
            let part = &part[..part.len().min(room)];
            room -= part.len();
            *slice = IoSlice::new(part);
            used += 1;
            if room == 0 {
                break;
            }
        }
        Pin::new(&mut *writer).poll_write_vectored(context, &slices[..used])
    })
    .await?;
    if written == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut rest = written;
    while let Some(first) = parts.front_mut() {
        if first.len() > rest {
            first.advance(rest);
            break;
        }
        rest -= first.len();
        parts.pop_front();
    }
    Ok(written)
}
