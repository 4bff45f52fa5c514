//! One client's connection: reads what is there, carries all of it out, writes all replies at once.

use std::{net::SocketAddr, sync::Arc};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

use super::{Session, Shared, pipeline::Pipeline};
use crate::resp::{Parser, write};

/// What a connection reads at once at first, and at the most, in bytes.
const READ_BYTES: std::ops::RangeInclusive<usize> = (8 << 10)..=(64 << 10);
/// Replies are written before there are more of them than this, in bytes.
const MAX_UNWRITTEN_BYTES: usize = 1 << 20;
/// So many commands of one connection are read before the other connections have a turn.
const COMMANDS_PER_TURN: usize = 64;
/// A connection that has nothing to do keeps buffers of this many bytes at the most.
const MAX_IDLE_BUFFER_BYTES: usize = 256 << 10;

/// Serves one client until it leaves, breaks the protocol, or the server stops.
pub(super) async fn serve(
    mut stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) {
    let mut session = shared.clients.connect(peer);
    tracing::debug!(client = session.id, %peer, "connected");
    tokio::select! {
        outcome = converse(&mut stream, &shared, &mut session) => match outcome {
            Ok(()) => tracing::debug!(client = session.id, "disconnected"),
            Err(error) => tracing::debug!(client = session.id, %error, "connection lost"),
        },
        _ = stop.wait_for(|stop| *stop) => {}
    }
    shared.clients.disconnect(&session);
}

async fn converse(stream: &mut TcpStream, shared: &Shared, session: &mut Session) -> std::io::Result<()> {
    let mut parser = Parser::new(shared.settings.limits);
    let mut pipeline = Pipeline::new(shared.groups.len());
    let mut buffer = BytesMut::new();
    let mut out = BytesMut::new();
    let mut read_bytes = *READ_BYTES.start();
    loop {
        buffer.reserve(parser.wanted_bytes(buffer.len()).max(read_bytes));
        let read = stream.read_buf(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if read >= read_bytes {
            read_bytes = (read_bytes * 4).min(*READ_BYTES.end());
        }
        let parsed = parser.parse(&mut buffer);
        pipeline.begin();
        for index in 0..parser.len() {
            if index.is_multiple_of(COMMANDS_PER_TURN) {
                let rest = parser.len() - index;
                shared.turns.take(rest.min(COMMANDS_PER_TURN)).await;
            }
            pipeline
                .take(parser.command(index, &buffer), shared, session, &mut out)
                .await;
            if out.len() > MAX_UNWRITTEN_BYTES {
                stream.write_all(&out).await?;
                out = BytesMut::new();
            }
            if session.close {
                break;
            }
        }
        pipeline.finish(shared, session, &mut out).await;
        let held = buffer.capacity();
        buffer.advance(parser.consumed());
        parser.clear();
        if buffer.is_empty() && held > MAX_IDLE_BUFFER_BYTES {
            buffer = BytesMut::new();
        }
        if let Err(error) = parsed
            && !session.close
        {
            write::error(&mut out, &format!("ERR {error}"));
            session.close = true;
        }
        if !out.is_empty() {
            stream.write_all(&out).await?;
            if out.capacity() > MAX_IDLE_BUFFER_BYTES {
                out = BytesMut::new();
            }
            out.clear();
        }
        if session.close {
            return stream.shutdown().await;
        }
    }
}
