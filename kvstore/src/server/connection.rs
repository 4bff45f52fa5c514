//! One client's connection: reads what is there, carries all of it out, writes all replies at once.

use std::{net::SocketAddr, sync::Arc};

use bytes::{Buf, BytesMut};
use tokio::{io::AsyncReadExt, net::TcpStream};

use super::{
    Session, Shared,
    clients::Clients,
    pipeline::Pipeline,
    unwritten::{MAX_IDLE_BUFFER_BYTES, Unwritten},
};
use crate::resp::{Parser, write};

/// What a connection reads at once at first, and at the most, in bytes.
const READ_BYTES: std::ops::RangeInclusive<usize> = (8 << 10)..=(64 << 10);
/// So many commands of one connection are read before the other connections have a turn.
const COMMANDS_PER_TAKE: usize = 64;

/// Serves one client until it leaves or breaks the protocol, or this is dropped.
pub(super) async fn serve(mut stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>) {
    let mut connected = Connected {
        clients: &shared.clients,
        session: shared.clients.connect(peer, stream.local_addr().ok()),
    };
    let session = &mut connected.session;
    tracing::debug!(client = session.id, %peer, "connected");
    match converse(&mut stream, &shared, session).await {
        Ok(()) => tracing::debug!(client = session.id, "disconnected"),
        Err(error) => tracing::debug!(client = session.id, %error, "connection lost"),
    }
}

/// A client that counts as connected until this is dropped.
struct Connected<'a> {
    clients: &'a Clients,
    session: Session,
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.clients.disconnect(&self.session);
    }
}

async fn converse(stream: &mut TcpStream, shared: &Shared, session: &mut Session) -> std::io::Result<()> {
    let mut parser = Parser::new(shared.settings.limits);
    let mut pipeline = Pipeline::new(shared.groups.len());
    let mut buffer = BytesMut::new();
    let (mut incoming, outgoing) = stream.split();
    let mut out = Unwritten::new(outgoing);
    let mut read_bytes = *READ_BYTES.start();
    loop {
        buffer.reserve(parser.wanted_bytes(buffer.len()).max(read_bytes));
        let read = incoming.read_buf(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if read >= read_bytes {
            read_bytes = (read_bytes * 4).min(*READ_BYTES.end());
        }
        let parsed = parser.parse(&mut buffer);
        pipeline.begin();
        for index in 0..parser.len() {
            if index.is_multiple_of(COMMANDS_PER_TAKE) {
                let rest = parser.len() - index;
                shared.turns.take(rest.min(COMMANDS_PER_TAKE)).await;
            }
            pipeline
                .take(parser.command(index, &buffer), shared, session, &mut out)
                .await?;
            if session.close {
                break;
            }
        }
        pipeline.finish(shared, session, &mut out).await?;
        let held = buffer.capacity();
        buffer.advance(parser.consumed());
        parser.clear();
        if buffer.is_empty() && held > MAX_IDLE_BUFFER_BYTES {
            buffer = BytesMut::new();
        }
        if let Err(error) = parsed
            && !session.close
        {
            write::error(&mut out.bytes, &format!("ERR {error}"));
            session.close = true;
        }
        out.write().await?;
        if session.close {
            return out.shutdown().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use paxos::{ClusterId, NodeId, node::Read};
    use tokio::{io::AsyncWriteExt, net::TcpListener, sync::watch};

    use super::*;
    use crate::{
        machine::NodeAddresses,
        resp::Limits,
        server::{self, Route, Settings},
    };

    #[tokio::test]
    async fn a_server_that_stops_ends_the_connections() {
        let settings = Settings {
            node: NodeId(1),
            cluster: "test".into(),
            cluster_id: ClusterId(1),
            storage: "none".into(),
            addresses: NodeAddresses::default(),
            route: Route::Forward,
            max_clients: 10,
            shutdown: server::Shutdown::No,
            request_timeout: Duration::from_secs(1),
            read: Read::Linearizable,
            limits: Limits::default(),
        };
        let shared = Shared::new(settings, Vec::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = watch::Sender::new(false);
        let server = tokio::spawn(server::serve(listener, shared.clone(), stop.subscribe()));
        let (mut left, mut stays) = (
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
        );
        for client in [&mut left, &mut stays] {
            client.write_all(b"PING\r\n").await.unwrap();
            let mut reply = [0; 7];
            client.read_exact(&mut reply).await.unwrap();
            assert_eq!(&reply, b"+PONG\r\n");
        }
        assert_eq!(shared.clients.len(), 2);
        left.shutdown().await.unwrap();
        assert_eq!(left.read(&mut [0]).await.unwrap(), 0);
        stop.send_replace(true);
        server.await.unwrap();
        assert_eq!(stays.read(&mut [0]).await.unwrap_or(0), 0);
        while !shared.clients.is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
