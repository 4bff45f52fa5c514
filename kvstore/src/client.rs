//! A client of the Redis protocol, for the command line and the benchmark.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::resp::Value;

/// Why a command has no reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection: the command was not sent.
    #[error("cannot connect to {address}: {cause}")]
    Connect {
        /// Where to.
        address: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The connection broke, or no reply came in time: whether the command was carried out is unknown.
    #[error("no reply from {address}: {cause}")]
    NoReply {
        /// From where.
        address: String,
        /// What the system said.
        cause: std::io::Error,
    },
}

/// Appends a command in the form that servers read.
pub fn command(out: &mut BytesMut, args: &[&[u8]]) {
    out.put_slice(format!("*{}\r\n", args.len()).as_bytes());
    for arg in args {
        out.put_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.put_slice(arg);
        out.put_slice(b"\r\n");
    }
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    address: String,
    timeout: Duration,
    stream: TcpStream,
    buffer: BytesMut,
}

impl Client {
    /// Connects; `timeout` is for connecting and then for every reply.
    pub async fn connect(address: &str, timeout: Duration) -> Result<Self, ClientError> {
        let connected = within(timeout, TcpStream::connect(address)).await;
        let stream = connected.map_err(|cause| ClientError::Connect {
            address: address.to_owned(),
            cause,
        })?;
        let _ = stream.set_nodelay(true);
        Ok(Self {
            address: address.to_owned(),
            timeout,
            stream,
            buffer: BytesMut::new(),
        })
    }

    /// Where the connection leads.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// From now on every reply may take this long.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Sends one command and waits for its reply.
    pub async fn call(&mut self, args: &[&[u8]]) -> Result<Value, ClientError> {
        let mut bytes = BytesMut::new();
        command(&mut bytes, args);
        let mut reply = Value::Null;
        self.exchange(&bytes, 1, |value| reply = value).await?;
        Ok(reply)
    }

    /// Sends `bytes`, which hold `count` commands, and hands each reply to `take`.
    pub async fn exchange(
        &mut self,
        bytes: &[u8],
        count: usize,
        mut take: impl FnMut(Value),
    ) -> Result<(), ClientError> {
        let exchange = async {
            self.stream.write_all(bytes).await?;
            for _ in 0..count {
                let value = loop {
                    let taken = Value::take(&mut self.buffer);
                    if let Some(value) = taken.map_err(std::io::Error::other)? {
                        break value;
                    }
                    self.buffer.reserve(16 << 10);
                    if self.stream.read_buf(&mut self.buffer).await? == 0 {
                        return Err(std::io::ErrorKind::UnexpectedEof.into());
                    }
                };
                take(value);
            }
            Ok(())
        };
        let outcome = within(self.timeout, exchange).await;
        outcome.map_err(|cause| ClientError::NoReply {
            address: self.address.clone(),
            cause,
        })
    }
}

async fn within<T>(limit: Duration, io: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    timeout(limit, io)
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}
