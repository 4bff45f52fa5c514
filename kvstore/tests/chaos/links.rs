//! The network between the nodes: a proxy for each direction of each pair, which can hold back, delay, throttle or cut.
//!
//! Frames from one node to another go over connections that the sender dials, so a fault of one link is a fault of one
//! direction.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

/// How many pieces of [`PIECE_BYTES`] may be under way on a connection.
const MAX_PIECES: usize = 64;
const PIECE_BYTES: usize = 16 << 10;

/// How a link behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Fine,
    /// Connections break and none can be made.
    Cut,
    /// Nothing arrives, and nobody is told; what was sent arrives once the link is better, if anyone still waits.
    Held,
    /// Everything arrives later.
    Delayed(Duration),
    /// So many bytes in a second.
    Throttled(u32),
}

/// The directed links, by the ids of sender and receiver.
#[derive(Debug)]
pub(crate) struct Links {
    links: BTreeMap<(usize, usize), (SocketAddr, watch::Sender<Condition>)>,
}

impl Links {
    /// Proxies to the nodes that listen at these addresses, node 1 first.
    pub(crate) async fn between(nodes: &[String]) -> Self {
        let mut links = BTreeMap::new();
        for from in 1..=nodes.len() {
            for to in (1..=nodes.len()).filter(|to| *to != from) {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                let address = listener.local_addr().expect("a local address");
                let (condition, watched) = watch::channel(Condition::Fine);
                tokio::spawn(accept(listener, nodes[to - 1].clone(), watched));
                links.insert((from, to), (address, condition));
            }
        }
        Self { links }
    }

    /// Where `from` finds `to`.
    pub(crate) fn address(&self, from: usize, to: usize) -> SocketAddr {
        self.links[&(from, to)].0
    }

    pub(crate) fn set(&self, from: usize, to: usize, condition: Condition) {
        self.links[&(from, to)].1.send_replace(condition);
    }

    pub(crate) fn set_both(&self, one: usize, other: usize, condition: Condition) {
        self.set(one, other, condition);
        self.set(other, one, condition);
    }

    pub(crate) fn heal(&self) {
        for (_, condition) in self.links.values() {
            condition.send_replace(Condition::Fine);
        }
    }
}

async fn accept(listener: TcpListener, target: String, condition: watch::Receiver<Condition>) {
    while let Ok((from, _)) = listener.accept().await {
        tokio::spawn(carry(from, target.clone(), condition.clone()));
    }
}

/// Carries one connection until either side closes it or the link is cut.
async fn carry(from: TcpStream, target: String, mut condition: watch::Receiver<Condition>) {
    if *condition.borrow() == Condition::Cut {
        return;
    }
    let Ok(to) = TcpStream::connect(target).await else {
        return;
    };
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
    tokio::select! {
        () = pump(from_read, to_write, condition.clone()) => {}
        () = pump(to_read, from_write, condition.clone()) => {}
        _ = condition.wait_for(|now| *now == Condition::Cut) => {}
    }
}

/// Carries bytes one way.
async fn pump(mut from: OwnedReadHalf, to: OwnedWriteHalf, condition: watch::Receiver<Condition>) {
    let (pieces, waiting) = mpsc::channel::<(Instant, Bytes)>(MAX_PIECES);
    let read = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE_BYTES);
            let read = from.read_buf(&mut buffer).await;
            if !read.is_ok_and(|bytes| bytes > 0) {
                return;
            }
            if pieces
                .send((Instant::now(), buffer.split().freeze()))
                .await
                .is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write(waiting, to, condition) => {}
    }
}

async fn write(
    mut waiting: mpsc::Receiver<(Instant, Bytes)>,
    mut to: OwnedWriteHalf,
    mut condition: watch::Receiver<Condition>,
) {
    while let Some((arrived, piece)) = waiting.recv().await {
        let Ok(now) = condition
            .wait_for(|now| *now != Condition::Held)
            .await
            .map(|now| *now)
        else {
            return;
        };
        match now {
            Condition::Delayed(delay) => sleep_until(arrived + delay).await,
            Condition::Throttled(bytes_per_second) => {
                sleep(Duration::from_secs(1) * piece.len() as u32 / bytes_per_second).await;
            }
            Condition::Fine | Condition::Cut | Condition::Held => {}
        }
        if to.write_all(&piece).await.is_err() {
            return;
        }
    }
}
