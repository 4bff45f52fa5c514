//! The node's snapshots: where they are kept, who works on them, and how fast they are sent.

use std::{
    boxed::Box,
    format, io,
    string::{String, ToString},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};

use super::{Config, caught, lock};
use crate::{
    snapshot::{Chunk, Found, Received, SnapshotError, SnapshotHeader, SnapshotStore},
    state_machine::{SnapshotSource, StateMachine},
    types::{GroupId, NodeId, Slot, Time},
};

/// A node's snapshot store.
#[derive(Clone)]
pub(super) struct Snapshots {
    pub(super) store: Arc<dyn SnapshotStore>,
    pub(super) pace: Arc<Pace>,
    workers: Workers,
}

impl Snapshots {
    pub(super) fn new(store: Arc<dyn SnapshotStore>, config: &Config) -> Self {
        Self {
            store,
            pace: Arc::new(Pace::new(config.max_snapshot_bytes_per_second)),
            workers: Workers::new(config),
        }
    }

    pub(super) const fn workers(&self) -> Workers {
        self.workers
    }

    /// The newest whole snapshot of a group.
    pub(super) async fn newest(&self, group: GroupId) -> Result<Found, SnapshotError> {
        let store = self.store.clone();
        let found = self
            .workers
            .run(move || caught("the snapshot store panicked", || store.newest(group)));
        found
            .await
            .unwrap_or_else(|| Err("its thread is gone".into()))
            .map_err(SnapshotError::Stopped)?
    }

    /// Removes all of a group's snapshots.
    pub(super) async fn remove(&self, group: GroupId) -> Result<(), SnapshotError> {
        let store = self.store.clone();
        let removed = self
            .workers
            .run(move || caught("the snapshot store panicked", || store.remove_group(group)));
        removed
            .await
            .unwrap_or_else(|| Err("its thread is gone".into()))
            .map_err(SnapshotError::Stopped)?
    }

    /// Restores a machine before its group starts.
    pub(super) async fn restore(
        &self,
        group: GroupId,
        upto: Slot,
        machine: Box<dyn StateMachine>,
    ) -> Result<Box<dyn StateMachine>, String> {
        let store = self.store.clone();
        let restored = self
            .workers
            .run(move || restore(&*store, group, upto, machine, &Cancel::default()));
        restored.await.unwrap_or_else(|| Err("its thread is gone".into()))
    }
}

/// What work on a group's snapshots has come to.
pub(super) enum SnapshotEvent {
    /// A snapshot of the group is durable, or not.
    Saved {
        upto: Slot,
        began: Instant,
        result: Result<(), SnapshotError>,
    },
    /// A piece of a snapshot has waited for its turn.
    ChunkDue(ChunkRequest),
    /// A piece of a snapshot for a peer.
    ChunkLoaded {
        request: ChunkRequest,
        chunk: Result<Chunk, SnapshotError>,
    },
    /// What became of a peer's piece.
    ChunkStored {
        upto: Slot,
        stored: Result<Received, SnapshotError>,
    },
    /// The machine is back from being restored, or why not.
    Restored {
        upto: Slot,
        machine: Result<Box<dyn StateMachine>, String>,
    },
}

/// A piece that a peer waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkRequest {
    pub(super) to: NodeId,
    pub(super) upto: Slot,
    pub(super) offset: u64,
    pub(super) max_bytes: usize,
}

/// Where work on snapshots is done: on threads where it may block, or in tests whose clock is paused as tasks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workers {
    threads: bool,
}

impl Workers {
    pub(super) const fn new(config: &Config) -> Self {
        Self {
            threads: config.storage_thread,
        }
    }

    pub(super) fn spawn(self, jobs: &mut JoinSet<()>, job: impl FnOnce() + Send + 'static) {
        if self.threads {
            jobs.spawn_blocking(job);
        } else {
            jobs.spawn(async move { job() });
        }
    }

    /// `None` if the runtime ends meanwhile.
    async fn run<T: Send + 'static>(self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        if self.threads {
            tokio::task::spawn_blocking(job).await.ok()
        } else {
            Some(job())
        }
    }
}

/// Tells work that nobody wants its result any more.
#[derive(Clone, Debug, Default)]
pub(super) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub(super) fn cancel(&self) {
        self.0.store(true, Relaxed);
    }

    fn check(&self) -> io::Result<()> {
        if self.0.load(Relaxed) {
            return Err(io::Error::other("the node stops"));
        }
        Ok(())
    }
}

struct Cancellable<T> {
    inner: T,
    cancel: Cancel,
}

impl<T: io::Read> io::Read for Cancellable<T> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.cancel.check()?;
        self.inner.read(to)
    }
}

impl<T: io::Write> io::Write for Cancellable<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.cancel.check()?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl SnapshotSource for Cancellable<Box<dyn SnapshotSource>> {
    fn write_to(self: Box<Self>, to: &mut dyn io::Write) -> io::Result<()> {
        self.inner.write_to(&mut Cancellable {
            inner: to,
            cancel: self.cancel,
        })
    }
}

/// Writes a frozen state.
pub(super) fn save(
    store: &dyn SnapshotStore,
    header: &SnapshotHeader,
    source: Box<dyn SnapshotSource>,
    cancel: Cancel,
) -> Result<(), SnapshotError> {
    let source = Box::new(Cancellable {
        inner: source,
        cancel,
    });
    caught("saving panicked", || store.save(header, source)).map_err(SnapshotError::Source)?
}

/// Replaces a machine's state by a snapshot. After an error the machine is gone: its state is nobody's.
pub(super) fn restore(
    store: &dyn SnapshotStore,
    group: GroupId,
    upto: Slot,
    mut machine: Box<dyn StateMachine>,
    cancel: &Cancel,
) -> Result<Box<dyn StateMachine>, String> {
    let inner = store.open(group, upto).map_err(|error| error.to_string())?;
    let mut from = Cancellable {
        inner,
        cancel: cancel.clone(),
    };
    caught("restore panicked", || machine.restore(upto, &mut from))?.map_err(|error| error.to_string())?;
    let applied = machine.applied();
    if applied != upto {
        return Err(format!(
            "applied() is {applied} after restoring slot {upto}; it must be that slot"
        ));
    }
    Ok(machine)
}

/// Spreads the bytes of all transfers of a node over time.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    free_at: Mutex<Time>,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            free_at: Mutex::default(),
        }
    }

    /// When the next so many bytes may go.
    pub(super) fn reserve(&self, now: Time, bytes: usize) -> Time {
        if self.bytes_per_second == 0 {
            return now;
        }
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut free_at = lock(&self.free_at);
        let begins = now.max(*free_at);
        *free_at = begins.plus(takes);
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Time {
        Time(Duration::from_millis(millis))
    }

    #[test]
    fn transfers_share_the_pace_and_an_idle_time_is_not_saved_up() {
        let pace = Pace::new(1_000);
        assert_eq!(pace.reserve(at(0), 100), at(0));
        assert_eq!(pace.reserve(at(10), 500), at(100));
        assert_eq!(pace.reserve(at(10), 100), at(600));
        assert_eq!(pace.reserve(at(5_000), 100), at(5_000));
        assert_eq!(pace.reserve(at(5_000), 100), at(5_100));
        assert_eq!(Pace::new(0).reserve(at(7), usize::MAX), at(7), "0 is unlimited");
    }
}
