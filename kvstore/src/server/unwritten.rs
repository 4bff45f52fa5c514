//! The replies to a client that have not been written to it.

use std::io;

use bytes::BytesMut;
use tokio::{io::AsyncWriteExt, net::tcp::WriteHalf};

/// Replies are written before there are more of them than this and one more reply, in bytes.
const MAX_UNWRITTEN_BYTES: usize = 1 << 20;
/// A connection that has nothing to do keeps a buffer of this many bytes at the most.
pub(super) const MAX_IDLE_BUFFER_BYTES: usize = 256 << 10;

/// Where replies are put together, and written from.
#[derive(Debug)]
pub(super) struct Unwritten<'a> {
    pub(super) bytes: BytesMut,
    stream: WriteHalf<'a>,
}

impl<'a> Unwritten<'a> {
    pub(super) fn new(stream: WriteHalf<'a>) -> Self {
        Self {
            bytes: BytesMut::new(),
            stream,
        }
    }

    /// Writes what there is, if it is much.
    pub(super) async fn relieve(&mut self) -> io::Result<()> {
        if self.bytes.len() > MAX_UNWRITTEN_BYTES {
            self.write().await?;
        }
        Ok(())
    }

    /// Writes what there is.
    pub(super) async fn write(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        self.stream.write_all(&self.bytes).await?;
        if self.bytes.capacity() > MAX_IDLE_BUFFER_BYTES {
            self.bytes = BytesMut::new();
        }
        self.bytes.clear();
        Ok(())
    }

    /// Tells the client that nothing more comes.
    pub(super) async fn shutdown(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}
