//! Frames that wait for a connection.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use paxos::transport::{Outgoing, SendError};
use tokio::sync::Notify;

/// The frames of one lane to one peer, in order, bounded in bytes.
#[derive(Debug)]
pub(super) struct LaneQueue {
    state: Mutex<State>,
    filled: Notify,
    max_bytes: usize,
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
            filled: Notify::new(),
            max_bytes,
        }
    }

    /// Takes a frame if there is room. An empty queue takes any.
    pub(super) fn push(&self, frame: &Outgoing) -> Result<(), SendError> {
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
        drop(state);
        if idle {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Waits until something is queued and takes all of it; `taken` is empty before.
    pub(super) async fn take(&self, taken: &mut VecDeque<Bytes>) {
        loop {
            {
                let mut state = self.lock();
                if !state.parts.is_empty() {
                    std::mem::swap(taken, &mut state.parts);
                    return;
                }
            }
            self.filled.notified().await;
        }
    }

    /// Makes room for as many bytes: they have been written.
    pub(super) fn written(&self, bytes: usize) {
        let mut state = self.lock();
        state.bytes = state.bytes.saturating_sub(bytes);
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
}

impl State {
    fn reset(&mut self, refusal: SendError) {
        self.refusal = Some(refusal);
        self.parts = VecDeque::new();
        self.bytes = 0;
    }
}
