//! Frames that wait for a connection, and the one that takes them.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Buf, Bytes};
use paxos::transport::{Outgoing, SendError};
use tokio::{net::TcpStream, sync::Notify};

use super::codec::SIGN_OF_LIFE;

/// How many pieces one system call writes at most.
const MAX_SLICES: usize = 128;

/// How many bytes one system call writes at most, so that bulk does not keep control waiting for long.
const MAX_WRITE_BYTES: usize = 256 << 10;

/// The frames of one lane to one peer, in order, bounded in bytes.
#[derive(Debug)]
pub(super) struct LaneQueue {
    state: Mutex<State>,
    /// Locked by whoever writes, for one system call at a time.
    writer: Mutex<Option<Writer>>,
    filled: Notify,
    max_bytes: usize,
}

/// The writing end of a connection.
#[derive(Debug)]
struct Writer {
    stream: Arc<TcpStream>,
    /// Taken from the queue and not written yet.
    parts: VecDeque<Bytes>,
    /// So many bytes at the beginning of `parts` are no frame but a sign of life.
    sign_bytes: usize,
    /// Nothing was written since the last tick.
    is_quiet: bool,
}

/// What came of an attempt to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// So many bytes of frames have been written; there may be more.
    Some(usize),
    /// Nothing waits.
    Nothing,
    /// The socket takes nothing now.
    Blocked,
}

#[derive(Debug)]
struct State {
    /// Why nothing can be queued now; `None` while there is a connection.
    refusal: Option<SendError>,
    parts: VecDeque<Bytes>,
    /// Bytes that were queued and not written yet, including those that the writer has taken.
    bytes: usize,
}

impl LaneQueue {
    pub(super) fn new(max_bytes: usize) -> Self {
        let state = State {
            refusal: Some(SendError::UnknownPeer),
            parts: VecDeque::new(),
            bytes: 0,
        };
        Self {
            state: Mutex::new(state),
            writer: Mutex::new(None),
            filled: Notify::new(),
            max_bytes,
        }
    }

    /// Takes a frame if there is room. An empty queue takes any. Nobody is told yet: true if somebody must be, or what
    /// waits must be written.
    pub(super) fn put(&self, frame: &Outgoing) -> Result<bool, SendError> {
        let mut state = self.lock();
        if let Some(refusal) = state.refusal {
            return Err(refusal);
        }
        if state.bytes > 0 && state.bytes + frame.len() > self.max_bytes {
            return Err(SendError::Full);
        }
        let idle = state.parts.is_empty();
        state.bytes += frame.len();
        state.parts.extend(frame.parts().iter().cloned());
        Ok(idle)
    }

    /// Something waits that the connection's task must write.
    pub(super) fn tell(&self) {
        self.filled.notify_one();
    }

    /// Waits until something is put into the queue. May end early.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// What is queued goes to this connection.
    pub(super) fn attach(&self, stream: Arc<TcpStream>) {
        *self.writer() = Some(Writer {
            stream,
            parts: VecDeque::new(),
            sign_bytes: 0,
            is_quiet: false,
        });
    }

    /// One system call that writes as much of what waits as the socket takes. Never waits; called from any thread.
    pub(super) fn write(&self) -> io::Result<Written> {
        let mut writer = self.writer();
        let Some(writer) = &mut *writer else {
            return Ok(Written::Nothing);
        };
        if writer.parts.is_empty() {
            std::mem::swap(&mut writer.parts, &mut self.lock().parts);
        }
        let written = writer.write()?;
        if let Written::Some(bytes) = written {
            // That makes room.
            let mut state = self.lock();
            state.bytes = state.bytes.saturating_sub(bytes);
        }
        Ok(written)
    }

    /// The next thing that is written is a sign of life, if nothing was written since the last tick. Never within a
    /// frame.
    pub(super) fn tick(&self) {
        if let Some(writer) = &mut *self.writer() {
            if writer.is_quiet && writer.parts.is_empty() {
                writer.parts.push_back(Bytes::from_static(SIGN_OF_LIFE));
                writer.sign_bytes = SIGN_OF_LIFE.len();
            }
            writer.is_quiet = true;
        }
    }

    /// Begins to take frames, unless the peer was forgotten meanwhile.
    pub(super) fn open(&self) {
        let mut state = self.lock();
        if state.refusal == Some(SendError::NotConnected) {
            state.refusal = None;
        }
    }

    /// The connection broke: drops what waits and refuses from now on, unless there is another reason to.
    pub(super) fn disconnect(&self) {
        *self.writer() = None;
        let mut state = self.lock();
        let refusal = state.refusal.unwrap_or(SendError::NotConnected);
        state.reset(refusal);
    }

    /// Drops what waits and refuses everything for this reason.
    pub(super) fn refuse(&self, refusal: SendError) {
        self.lock().reset(refusal);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Option<Writer>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    fn write(&mut self) -> io::Result<Written> {
        if self.parts.is_empty() {
            return Ok(Written::Nothing);
        }
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let (mut used, mut room) = (0, MAX_WRITE_BYTES);
        for (slice, part) in slices.iter_mut().zip(&self.parts) {
            let part = &part[..part.len().min(room)];
            room -= part.len();
            *slice = IoSlice::new(part);
            used += 1;
            if room == 0 {
                break;
            }
        }
        let written = match self.stream.try_write_vectored(&slices[..used]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Written::Blocked),
            Err(error) => return Err(error),
        };
        let mut rest = written;
        while let Some(first) = self.parts.front_mut() {
            if first.len() > rest {
                first.advance(rest);
                break;
            }
            rest -= first.len();
            self.parts.pop_front();
        }
        let sign = self.sign_bytes.min(written);
        self.sign_bytes -= sign;
        self.is_quiet &= sign == written;
        Ok(Written::Some(written - sign))
    }
}

impl State {
    fn reset(&mut self, refusal: SendError) {
        self.refusal = Some(refusal);
        self.parts = VecDeque::new();
        self.bytes = 0;
    }
}
