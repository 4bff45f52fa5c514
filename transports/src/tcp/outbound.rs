//! Connections that this node dials: frames go out.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use paxos::transport::{Inbox, Incoming, Lane};
use tokio::{
    net::TcpStream,
    sync::watch,
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    TcpConfig,
    handshake::{self, HandshakeError},
    queue::Written,
    shared::{PeerState, Shared},
    silence::{Listening, signs_of_life},
};

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
    [control, bulk]: [TcpStream; 2],
) -> Option<String> {
    shared.count(Some(peer), |counters| &counters.connects, 1);
    let [control, bulk] = [control, bulk].map(Arc::new);
    for (lane, stream) in [(Lane::Control, &control), (Lane::Bulk, &bulk)] {
        peer.queue(lane).attach(stream.clone());
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
        why = carry(shared, peer, Lane::Control, &control) => why,
        why = carry(shared, peer, Lane::Bulk, &bulk) => why,
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
async fn carry(shared: &Shared, peer: &PeerState, lane: Lane, stream: &TcpStream) -> String {
    let listening = Listening::default();
    tokio::select! {
        biased;
        why = hear_signs(stream, &listening) => why,
        error = write_frames(shared, peer, lane, stream) => error.to_string(),
        () = listening.until_silent(shared.config.silence_timeout) => "no sign of life".into(),
    }
}

/// The other side only gives signs of life here; the end of the stream is the end of the peer.
async fn hear_signs(stream: &TcpStream, listening: &Listening) -> String {
    let mut signs = [0; 64];
    loop {
        let heard = match stream.readable().await {
            Ok(()) => stream.try_read(&mut signs),
            Err(error) => Err(error),
        };
        match heard {
            Ok(0) => return "the peer closed the connection".into(),
            Ok(_) => listening.hear(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return error.to_string(),
        }
    }
}

async fn write_frames(shared: &Shared, peer: &PeerState, lane: Lane, stream: &TcpStream) -> io::Error {
    let queue = peer.queue(lane);
    let mut tick = signs_of_life(shared.config.silence_timeout);
    loop {
        if let Err(error) = write_all(shared, peer, lane, stream).await {
            return error;
        }
        tokio::select! {
            biased;
            () = queue.filled() => {}
            _ = tick.tick() => queue.tick(),
        }
    }
}

async fn write_all(shared: &Shared, peer: &PeerState, lane: Lane, stream: &TcpStream) -> io::Result<()> {
    loop {
        match peer.queue(lane).write()? {
            Written::Nothing => return Ok(()),
            Written::Blocked => stream.writable().await?,
            Written::Some(bytes) => {
                shared.count_sent(peer, bytes);
                if lane == Lane::Bulk {
                    // Control goes first.
                    yield_now().await;
                }
            }
        }
    }
}
