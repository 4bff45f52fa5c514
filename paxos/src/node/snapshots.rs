//! The node's snapshots: where they are kept, who works on them, and how fast they are sent.

use std::{
    boxed::Box,
    format, io,
    string::{String, ToString},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Mutex, OwnedMutexGuard, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{Clock, Config, caught};
use crate::{
    snapshot::{Chunk, Found, Received, SnapshotError, SnapshotHeader, SnapshotStore},
    state_machine::{SnapshotSource, StateMachine},
    types::{GroupId, NodeId, Slot, Time},
};

/// A node's snapshot store.
#[derive(Clone)]
pub(super) struct Snapshots {
    pub(super) store: Arc<dyn SnapshotStore>,
    pace: Arc<Pace>,
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
        let found = self.workers.run(move || call(|| store.newest(group)));
        found.await.unwrap_or_else(|| Err(runtime_ended()))
    }

    /// Reads a piece for a peer when its turn has come; `None` if nobody wants it any more by then.
    pub(super) async fn read_chunk(
        &self,
        clock: Clock,
        group: GroupId,
        request: ChunkRequest,
        cancel: Cancel,
    ) -> Option<Result<Chunk, SnapshotError>> {
        let turn = tokio::select! {
            biased;
            () = cancel.cancelled() => return None,
            turn = self.pace.turn(clock) => turn,
        };
        let store = self.store.clone();
        let ChunkRequest {
            upto,
            offset,
            max_bytes,
            ..
        } = request;
        let read = move || call(|| store.read_chunk(group, upto, offset, max_bytes));
        let chunk = self.workers.run(read).await?;
        turn.used(clock, chunk.as_ref().map_or(0, |chunk| chunk.data.len()));
        Some(chunk)
    }

    /// Removes all of a group's snapshots.
    pub(super) async fn remove(&self, group: GroupId) -> Result<(), SnapshotError> {
        let store = self.store.clone();
        let removed = self.workers.run(move || call(|| store.remove_group(group)));
        removed.await.unwrap_or_else(|| Err(runtime_ended()))
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
pub(super) struct Cancel(watch::Sender<bool>);

impl Cancel {
    pub(super) fn cancel(&self) {
        self.0.send_replace(true);
    }

    async fn cancelled(&self) {
        // Its sender is here.
        let _ = self.0.subscribe().wait_for(|cancelled| *cancelled).await;
    }

    fn check(&self) -> io::Result<()> {
        if *self.0.borrow() {
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

/// What a call of the store has come to; a panic is an error of its own.
pub(super) fn call<T>(call: impl FnOnce() -> Result<T, SnapshotError>) -> Result<T, SnapshotError> {
    caught("the snapshot store, or what it called, panicked", call)
        .unwrap_or_else(|why| Err(SnapshotError::Panicked(why)))
}

fn runtime_ended() -> SnapshotError {
    SnapshotError::Stopped("the node's runtime has ended".into())
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
    call(|| store.save(header, source))
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

/// Spreads the bytes of all transfers of a node over time: one piece is read after the other, in the order in which they
/// were asked for, and the next one when the bytes of the last one have had their time.
#[derive(Debug)]
struct Pace {
    /// 0 for no bound: then nothing waits.
    bytes_per_second: u64,
    free_at: Arc<Mutex<Time>>,
}

/// The right to read a piece.
struct Turn {
    bytes_per_second: u64,
    free_at: Option<OwnedMutexGuard<Time>>,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            free_at: Arc::default(),
        }
    }

    async fn turn(&self, clock: Clock) -> Turn {
        let mut free_at = None;
        if self.bytes_per_second > 0 {
            let locked = self.free_at.clone().lock_owned().await;
            sleep_until(clock.instant_of(*locked)).await;
            free_at = Some(locked);
        }
        Turn {
            bytes_per_second: self.bytes_per_second,
            free_at,
        }
    }
}

impl Turn {
    /// So many bytes are on their way now.
    fn used(self, clock: Clock, bytes: usize) {
        if let Some(mut free_at) = self.free_at {
            // A piece is not larger than what goes in a second: `Config::check` sees to it.
            let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            *free_at = clock.now().plus(takes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn transfers_share_the_pace_and_an_idle_time_is_not_saved_up() {
        let began = Instant::now();
        let clock = Clock { origin: began };
        let pace = Pace::new(1_000);
        for (bytes, begins_at) in [(100, 0), (500, 100), (0, 600), (100, 600), (1, 700)] {
            let turn = pace.turn(clock).await;
            assert_eq!(began.elapsed(), Duration::from_millis(begins_at));
            turn.used(clock, bytes);
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let idle = began.elapsed();
        pace.turn(clock).await.used(clock, 100);
        assert_eq!(began.elapsed(), idle);
        pace.turn(clock).await.used(clock, 100);
        assert_eq!(began.elapsed(), idle + Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_bound_nobody_waits_for_anybody() {
        let clock = Clock {
            origin: Instant::now(),
        };
        let pace = Pace::new(0);
        let one = pace.turn(clock).await;
        let other = pace.turn(clock).await;
        one.used(clock, usize::MAX);
        other.used(clock, usize::MAX);
        assert_eq!(clock.now(), Time::default());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_cancelled_while_he_waits_gives_his_place_up() {
        let clock = Clock {
            origin: Instant::now(),
        };
        let config = Config {
            max_snapshot_bytes_per_second: 1,
            ..Config::default()
        };
        let snapshots = Snapshots::new(Arc::new(crate::MemorySnapshots::new()), &config);
        snapshots.pace.turn(clock).await.used(clock, 1_000);
        let request = ChunkRequest {
            to: NodeId(2),
            upto: Slot(1),
            offset: 0,
            max_bytes: 1,
        };
        let cancel = Cancel::default();
        let waits = snapshots.read_chunk(clock, GroupId(1), request, cancel.clone());
        let (chunk, ()) = tokio::join!(waits, async { cancel.cancel() });
        assert!(chunk.is_none());
        assert!(snapshots.pace.free_at.try_lock().is_ok());
    }
}
