//! What users ask of a group itself: its status, another leader, other members, a snapshot. It goes ahead of all commands
//! and reads, as an event.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// How many may wait for an answer at once.
const MAX_OPEN: usize = 1_024;

/// The places of those who wait for an answer of one group.
pub(super) struct Places(Arc<Semaphore>);

/// Somebody who waits for an answer. If he gets none, because the group's task has ended, he hears that too.
pub(super) struct Ask<T> {
    // Before the reply, which wakes him who may ask again at once.
    place: OwnedSemaphorePermit,
    reply: oneshot::Sender<T>,
}

impl Places {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_OPEN)))
    }

    /// `None` if too many wait already.
    pub(super) fn take<T>(&self) -> Option<(Ask<T>, oneshot::Receiver<T>)> {
        let place = self.0.clone().try_acquire_owned().ok()?;
        let (reply, answer) = oneshot::channel();
        Some((Ask { place, reply }, answer))
    }
}

impl<T> Ask<T> {
    pub(super) fn answer(self, answer: T) {
        drop(self.place);
        // Nobody listens any more: fine.
        let _ = self.reply.send(answer);
    }
}
