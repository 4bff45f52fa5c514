//! The store's own thread: merges the writes of all groups that wait into one, so that they share one sync.
//!
//! Nothing here ever waits for a group: requests come through an unbounded channel, whose content is bounded by what
//! the replicas may have in flight (windows, one open load each), and answers go back as events of the group's
//! unbounded channel, at most one for each request. So a full channel cannot lock anything up.

use std::{
    boxed::Box,
    collections::BTreeMap,
    format,
    string::{String, ToString},
    sync::{Arc, Mutex, Weak},
    thread,
    time::Duration,
    vec::Vec,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{Halt, event::EventSender, lock, task::Done};
use crate::{
    core::PersistId,
    metrics::NodeMetrics,
    node::{Config, event::Event},
    storage::{Recovered, Storage, StorageError},
    transport::Transport,
    types::{Accepted, GroupId, Slot, WriteBatch, WriteOp},
};

/// How long writes that nobody waits for may wait for a synced write to ride along with.
const LINGER: Duration = Duration::from_millis(20);

/// How many requests are taken from the channel at once.
const MAX_REQUESTS_AT_ONCE: usize = 1_024;

/// One group's write.
pub(super) struct Write {
    pub(super) group: GroupId,
    pub(super) id: PersistId,
    pub(super) ops: Vec<WriteOp>,
    pub(super) sync: bool,
    /// Is told once the write is durable.
    pub(super) done: Done,
}

/// After so many slots the search for the damaged ones among them goes on in the next read.
const MAX_SEARCHED_SLOTS: usize = 1_024;

/// What a read has found.
#[derive(Default)]
pub(super) struct Loaded {
    /// The entries, up to the first damaged slot.
    pub(super) entries: Vec<(Slot, Accepted)>,
    /// The run of damaged slots behind them.
    pub(super) damaged: Vec<Slot>,
    /// What the store said of it.
    pub(super) why: String,
}

type LoadDone = Box<dyn FnOnce(Loaded) + Send>;

/// What to read: at least the first entry of these slots, further ones within the bytes.
#[derive(Clone, Copy)]
pub(super) struct Range {
    pub(super) group: GroupId,
    pub(super) first: Slot,
    pub(super) last: Slot,
    pub(super) max_bytes: usize,
}

/// A read, answered by a call; not at all if the store has failed.
pub(super) struct Load {
    pub(super) range: Range,
    pub(super) done: LoadDone,
}

enum Request {
    Write(Write),
    Load(Load),
    Scrub(Load),
    Close(oneshot::Sender<Result<(), StorageError>>),
}

/// The node's end of the storage thread.
#[derive(Clone)]
pub(super) struct Handle {
    requests: mpsc::UnboundedSender<Request>,
    thread: Arc<Mutex<Option<thread::JoinHandle<()>>>>,
}

impl Handle {
    /// Never waits. After a failure of the store it does nothing: the node halts.
    pub(super) fn write(&self, write: Write) {
        let _ = self.requests.send(Request::Write(write));
    }

    /// As [`write`](Self::write).
    pub(super) fn load(&self, load: Load) {
        let _ = self.requests.send(Request::Load(load));
    }

    /// As [`load`](Self::load), of the store as it is, behind everything else that waits; one at a time.
    pub(super) fn scrub(&self, load: Load) {
        let _ = self.requests.send(Request::Scrub(load));
    }

    /// Writes what is left, closes the store and ends the thread. On return the store may be opened again.
    pub(super) async fn close(&self) -> Result<(), StorageError> {
        let (reply, closed) = oneshot::channel();
        let _ = self.requests.send(Request::Close(reply));
        let result = closed.await;
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            let _ = tokio::task::spawn_blocking(|| thread.join()).await;
        }
        result.unwrap_or(Ok(()))
    }
}

/// Opens the store on its own thread (or as a task, see [`Config::storage_thread`]).
pub(super) async fn start<S: Storage>(
    config: &Config,
    storage: S,
    transport: Weak<dyn Transport>,
    metrics: Arc<NodeMetrics>,
    halt: Halt,
) -> Result<(Handle, Recovered), StorageError> {
    let (requests, receiver) = mpsc::unbounded_channel();
    let (opened, recovered) = oneshot::channel();
    let (answers, answered) = mpsc::unbounded_channel();
    tokio::spawn(hand_out(answered));
    let server = Server {
        storage,
        transport,
        answers,
        requests: receiver,
        max_write_bytes: config.max_write_bytes,
        slow_sync: config.slow_sync,
        metrics,
        halt,
    };
    let thread = if config.storage_thread {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|cause| StorageError::io("starting the storage thread's runtime", cause))?;
        let thread = thread::Builder::new()
            .name("paxos-storage".into())
            .spawn(move || runtime.block_on(server.run(opened)))
            .map_err(|cause| StorageError::io("starting the storage thread", cause))?;
        Some(thread)
    } else {
        tokio::spawn(server.run(opened));
        None
    };
    let handle = Handle {
        requests,
        thread: Arc::new(Mutex::new(thread)),
    };
    match recovered.await {
        Ok(recovered) => Ok((handle, recovered?)),
        Err(_) => Err(StorageError::Corrupt(
            "the storage panicked while it was opened".into(),
        )),
    }
}

/// The writes of several groups on their way to one write of the store.
#[derive(Default)]
struct Merged {
    batch: WriteBatch,
    bytes: usize,
    writes: u64,
    done: BTreeMap<GroupId, (PersistId, Done)>,
}

impl Merged {
    fn add(&mut self, write: Write) {
        self.bytes += write.ops.iter().map(size).sum::<usize>();
        self.writes += 1;
        self.batch.sync |= write.sync;
        self.batch.ops.extend(write.ops);
        self.done.insert(write.group, (write.id, write.done));
    }
}

fn size(op: &WriteOp) -> usize {
    match op {
        WriteOp::Accept { entry, .. } => entry.size(),
        WriteOp::HardState { .. } | WriteOp::Trim { .. } | WriteOp::RemoveGroup { .. } => 0,
    }
}

/// What follows from a write, for its groups.
type Answers = Vec<(EventSender, Event)>;

/// Tells the groups on the node's own runtime: from the storage thread each of them would have to be woken by a system
/// call, and would have gone on before the next one is told, so that their messages could not leave together.
async fn hand_out(mut answered: mpsc::UnboundedReceiver<Answers>) {
    while let Some(answers) = answered.recv().await {
        for (group, event) in answers {
            group.send(event);
        }
    }
}

struct Server<S> {
    storage: S,
    transport: Weak<dyn Transport>,
    answers: mpsc::UnboundedSender<Answers>,
    requests: mpsc::UnboundedReceiver<Request>,
    max_write_bytes: usize,
    slow_sync: Duration,
    metrics: Arc<NodeMetrics>,
    halt: Halt,
}

impl<S: Storage> Server<S> {
    async fn run(mut self, opened: oneshot::Sender<Result<Recovered, StorageError>>) {
        let _watch = HaltOnPanic(self.halt.clone());
        match self.storage.recover().await {
            Ok(recovered) => {
                let _ = opened.send(Ok(recovered));
            }
            Err(error) => {
                drop(self.storage);
                let _ = opened.send(Err(error));
                return;
            }
        }
        match self.serve().await {
            Ok(None) => {}
            Ok(Some(reply)) => {
                let result = self.storage.close().await;
                // Whoever hears that the store is closed may open it again.
                drop(self.storage);
                let _ = reply.send(result);
            }
            Err(error) => self.halt.halt(&describe(&error)),
        }
    }

    /// Until the store fails, is to be closed (then: whom to tell), or nobody can ask any more.
    async fn serve(&mut self) -> Result<Option<oneshot::Sender<Result<(), StorageError>>>, StorageError> {
        let mut waiting = Vec::new();
        let mut merged = Merged::default();
        loop {
            if merged.writes == 0 {
                self.requests.recv_many(&mut waiting, MAX_REQUESTS_AT_ONCE).await;
            } else if timeout(
                LINGER,
                self.requests.recv_many(&mut waiting, MAX_REQUESTS_AT_ONCE),
            )
            .await
            .is_err()
            {
                self.write(&mut merged).await?;
                continue;
            }
            if waiting.is_empty() {
                return Ok(None);
            }
            let mut scrub = None;
            for request in waiting.drain(..) {
                match request {
                    Request::Write(write) => {
                        merged.add(write);
                        if merged.bytes >= self.max_write_bytes {
                            self.write(&mut merged).await?;
                        }
                    }
                    Request::Load(load) => {
                        self.write(&mut merged).await?;
                        let loaded = self.load(load.range).await?;
                        (load.done)(loaded);
                    }
                    Request::Scrub(load) => scrub = Some(load),
                    Request::Close(reply) => {
                        self.write(&mut merged).await?;
                        return Ok(Some(reply));
                    }
                }
            }
            if merged.batch.sync {
                self.write(&mut merged).await?;
            }
            if let Some(Load { range, done }) = scrub {
                done(self.load(range).await?);
            }
        }
    }

    async fn load(&mut self, range: Range) -> Result<Loaded, StorageError> {
        let slots = range.first..range.last.next();
        match self.storage.read(range.group, slots, range.max_bytes).await {
            Ok(entries) => Ok(Loaded {
                entries,
                ..Loaded::default()
            }),
            // Damage of what one group holds; the store goes on.
            Err(StorageError::Corrupt(why)) => self.search(range, why).await,
            Err(error) => Err(error),
        }
    }

    /// Finds the first run of damaged slots, and reads what stands before it.
    async fn search(&mut self, range: Range, why: String) -> Result<Loaded, StorageError> {
        let mut found = Loaded {
            why,
            ..Loaded::default()
        };
        let mut bytes = 0;
        let slots = (range.first.0..=range.last.0).map(Slot).take(MAX_SEARCHED_SLOTS);
        for slot in slots {
            match self.storage.read(range.group, slot..slot.next(), 0).await {
                Ok(_) if !found.damaged.is_empty() => break,
                Ok(entries) => {
                    bytes += entries
                        .iter()
                        .map(|(_, accepted)| accepted.entry.size())
                        .sum::<usize>();
                    found.entries.extend(entries);
                }
                Err(StorageError::Corrupt(why)) => {
                    found.why = why;
                    found.damaged.push(slot);
                }
                Err(error) => return Err(error),
            }
            if bytes > range.max_bytes {
                break;
            }
        }
        Ok(found)
    }

    async fn write(&mut self, merged: &mut Merged) -> Result<(), StorageError> {
        let Merged {
            batch,
            bytes,
            writes,
            done,
        } = std::mem::take(merged);
        if writes == 0 {
            return Ok(());
        }
        let sync = batch.sync;
        let began = Instant::now();
        self.storage.write(batch).await?;
        let took = began.elapsed();
        if sync {
            self.metrics.log_sync_duration.record(took);
            self.metrics.log_sync_writes.record_value(writes);
        }
        self.metrics.log_written_bytes.add(bytes as u64);
        if took > self.slow_sync {
            tracing::warn!(
                millis = took.as_millis() as u64,
                bytes,
                sync,
                "slow write of the store"
            );
        }
        self.tell(done.into_values());
        Ok(())
    }
}

impl<S> Server<S> {
    /// Tells the groups that their writes are durable, and lets the messages leave that waited for that.
    fn tell(&self, done: impl Iterator<Item = (PersistId, Done)>) {
        let mut frames = Vec::new();
        let mut senders = Vec::new();
        let mut answers = Vec::new();
        for (id, done) in done {
            if let Some(event) = done.persisted(id, &mut frames) {
                answers.push((done.events().clone(), event));
            }
            senders.push((frames.len(), done));
        }
        if let Some(transport) = self.transport.upgrade()
            && !frames.is_empty()
        {
            for (at, error) in transport.send_all(&frames) {
                let sender = senders.partition_point(|(end, _)| *end <= at);
                if let (Some((_, done)), Some((peer, _))) = (senders.get(sender), frames.get(at)) {
                    tracing::debug!(%peer, %error, "the transport refused a message");
                    answers.push((done.events().clone(), Event::Refused(*peer)));
                }
            }
        }
        if !answers.is_empty() {
            // Nobody listens any more when the runtime of the node is gone.
            let _ = self.answers.send(answers);
        }
    }
}

fn describe(error: &StorageError) -> String {
    match error {
        // Already begins with "disk full".
        StorageError::Full { .. } => error.to_string(),
        _ => format!("the store failed: {error}"),
    }
}

/// A store that panics must not leave its node waiting, let alone voting.
struct HaltOnPanic(Halt);

impl Drop for HaltOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.halt("the storage panicked");
        }
    }
}
