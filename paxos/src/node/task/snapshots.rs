//! A group's snapshots: freezing the machine, moving pieces, and installing what a peer has sent.
//!
//! Everything that may block is done elsewhere, and comes back as an event. While the machine is being restored it is
//! *away*: the replica votes and answers heartbeats all the while, only applying and reading wait.

use std::{boxed::Box, collections::VecDeque, format, string::String, vec::Vec};

use bytes::Bytes;
use tokio::{task::JoinSet, time::Instant};

use super::{
    super::{
        ask::Ask,
        event::Event,
        snapshots::{self, Cancel, ChunkRequest, SnapshotEvent, Snapshots},
    },
    End, Task,
};
use crate::{
    core::Input,
    snapshot::{Chunk, Received, SnapshotError, SnapshotHeader},
    state_machine::{SnapshotSource, StateMachine},
    types::{NodeId, Slot, Time},
};

type SaveReply = Ask<Result<Slot, SnapshotError>>;

/// What a task is doing about snapshots.
pub(super) struct Work {
    /// Why the group takes none.
    pub(super) off: Option<String>,
    /// As of which slot the newest durable one is.
    newest: Slot,
    /// Users who wait for one as of this slot or later.
    wanted: Vec<(Slot, SaveReply)>,
    /// The one that the machine is being restored from, and since when.
    pub(super) restoring: Option<(Slot, Instant)>,
    /// A newer one came meanwhile.
    install_next: Option<Slot>,
    /// Pieces are stored one after the other.
    to_store: VecDeque<Piece>,
    storing: bool,
    jobs: JoinSet<()>,
    cancel: Cancel,
}

struct Piece {
    upto: Slot,
    offset: u64,
    chunk: Chunk,
}

impl Work {
    pub(super) fn new(newest: Slot) -> Self {
        Self {
            off: None,
            newest,
            wanted: Vec::new(),
            restoring: None,
            install_next: None,
            to_store: VecDeque::new(),
            storing: false,
            jobs: JoinSet::new(),
            cancel: Cancel::default(),
        }
    }

    /// Nobody wants the results any more; waits until nothing is under way.
    pub(super) async fn end(&mut self) {
        self.cancel.cancel();
        while self.jobs.join_next().await.is_some() {}
    }

    pub(super) fn answer_wanted(&mut self, result: &Result<Slot, SnapshotError>) {
        for (_, reply) in self.wanted.drain(..) {
            reply.answer(result.clone());
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Task {
    pub(super) fn take_snapshot_event(&mut self, now: Time, event: SnapshotEvent) -> Result<(), End> {
        // Forgets those that are done.
        while self.snapshots.jobs.try_join_next().is_some() {}
        match event {
            SnapshotEvent::Saved { upto, began, result } => self.snapshot_saved(now, upto, began, result),
            SnapshotEvent::ChunkLoaded { request, chunk } => self.chunk_loaded(now, request, chunk),
            SnapshotEvent::ChunkStored { upto, stored } => self.chunk_stored(now, upto, stored),
            SnapshotEvent::Restored { upto, machine } => self.restored(now, upto, machine)?,
        }
        Ok(())
    }
}

/// Taking.
impl Task {
    /// A user wants a snapshot of at least what is applied now.
    pub(super) fn want_snapshot(&mut self, now: Time, reply: SaveReply) {
        let off = match &self.environment.snapshots {
            None => Some(
                "the node has no snapshot store; give it one with Node::builder(..).snapshots(..)".into(),
            ),
            Some(_) => self.snapshots.off.clone(),
        };
        if let Some(why) = off {
            return reply.answer(Err(SnapshotError::Off(why)));
        }
        let upto = self.machine.applied();
        if !self.machine.is_away() && self.replica.status(now).applied < upto {
            // It keeps its state itself, and the log is still being read up to there.
            return reply.answer(Err(SnapshotError::Unready { upto }));
        }
        self.snapshots.wanted.push((upto, reply));
        self.answer_wanted(now);
    }

    /// Answers whoever wanted a snapshot that is there now, and asks for another one if somebody still waits.
    fn answer_wanted(&mut self, now: Time) {
        let newest = self.snapshots.newest;
        for (at_least, reply) in std::mem::take(&mut self.snapshots.wanted) {
            if at_least <= newest {
                reply.answer(Ok(newest));
            } else {
                self.snapshots.wanted.push((at_least, reply));
            }
        }
        if !self.snapshots.wanted.is_empty() {
            self.replica.step(now, Input::TakeSnapshot);
        }
    }

    pub(super) fn take_snapshot(&mut self, header: SnapshotHeader) -> Result<(), End> {
        // The machine must be where the header says.
        self.apply_all()?;
        let upto = header.upto;
        match (self.environment.snapshots.clone(), self.freeze(upto)) {
            (Some(snapshots), Ok(source)) => self.save(&snapshots, header, source),
            (_, Err(error)) => self.snapshot_failed(upto, &error),
            (None, _) => self.snapshot_failed(upto, &SnapshotError::Off("there is no store".into())),
        }
        Ok(())
    }

    fn freeze(&mut self, upto: Slot) -> Result<Box<dyn SnapshotSource>, SnapshotError> {
        if let Some(why) = &self.snapshots.off {
            return Err(SnapshotError::Off(why.clone()));
        }
        if !self.machine.is_at(upto) {
            // It, or a part of it, was ahead of the log when it was started, or it is being restored.
            return Err(SnapshotError::Unready { upto });
        }
        self.machine.snapshot().map_err(|why| {
            tracing::warn!(
                group = %self.shared.id, node = %self.shared.node, why,
                "the state machine gives no snapshot: the group takes none any more, and its log grows"
            );
            self.shared.metrics.snapshot_failures.increment();
            self.snapshots.off = Some(why.clone());
            SnapshotError::Off(why)
        })
    }

    fn save(&mut self, snapshots: &Snapshots, header: SnapshotHeader, source: Box<dyn SnapshotSource>) {
        let (store, events) = (snapshots.store.clone(), self.event_sender.clone());
        let (cancel, began) = (self.snapshots.cancel.clone(), Instant::now());
        snapshots.workers().spawn(&mut self.snapshots.jobs, move || {
            let upto = header.upto;
            let result = snapshots::save(&*store, &header, source, cancel);
            events.send(Event::Snapshot(SnapshotEvent::Saved { upto, began, result }));
        });
    }

    fn snapshot_saved(&mut self, now: Time, upto: Slot, began: Instant, result: Result<(), SnapshotError>) {
        match result {
            Ok(()) => {
                let took = began.elapsed();
                self.shared.metrics.snapshot_save_duration.record(took);
                tracing::info!(
                    group = %self.shared.id, node = %self.shared.node, %upto,
                    millis = took.as_millis() as u64, "snapshot saved"
                );
                self.snapshots.newest = self.snapshots.newest.max(upto);
                self.replica.step(now, Input::SnapshotTaken { upto });
                self.answer_wanted(now);
            }
            Err(error) => {
                self.note_snapshot_failure(now, upto, &error, "a snapshot could not be saved");
                self.snapshot_failed(upto, &error);
            }
        }
    }

    fn snapshot_failed(&mut self, upto: Slot, error: &SnapshotError) {
        self.replica
            .step(self.shared.clock.now(), Input::SnapshotFailed { upto });
        self.snapshots.answer_wanted(&Err(error.clone()));
    }

    fn note_snapshot_failure(&mut self, now: Time, upto: Slot, error: &SnapshotError, what: &str) {
        self.shared.metrics.snapshot_failures.increment();
        tracing::warn!(group = %self.shared.id, node = %self.shared.node, %upto, %error, "{what}");
        if matches!(error, SnapshotError::Poisoned(_)) && self.snapshots.off.is_none() {
            // It would refuse every further one.
            let why = format!("{error}; restart the node");
            self.snapshots.off = Some(why.clone());
            self.replica.step(now, Input::SnapshotsOff);
            self.snapshots.answer_wanted(&Err(SnapshotError::Off(why)));
        }
    }
}

/// Sending and receiving.
impl Task {
    pub(super) fn load_chunk(&mut self, to: NodeId, upto: Slot, offset: u64, max_bytes: usize) {
        let Some(snapshots) = self.environment.snapshots.clone() else {
            return;
        };
        let request = ChunkRequest {
            to,
            upto,
            offset,
            max_bytes,
        };
        let (clock, group) = (self.shared.clock, self.shared.id);
        let (events, cancel) = (self.event_sender.clone(), self.snapshots.cancel.clone());
        self.snapshots.jobs.spawn(async move {
            if let Some(chunk) = snapshots.read_chunk(clock, group, request, cancel).await {
                events.send(Event::Snapshot(SnapshotEvent::ChunkLoaded { request, chunk }));
            }
        });
    }

    fn chunk_loaded(&mut self, now: Time, request: ChunkRequest, chunk: Result<Chunk, SnapshotError>) {
        let ChunkRequest { to, upto, offset, .. } = request;
        let Chunk { total, data } = chunk.unwrap_or_else(|error| {
            // A newer one may have taken its place: the peer asks for that.
            if !matches!(error, SnapshotError::Missing { .. }) {
                self.note_snapshot_failure(now, upto, &error, "a snapshot cannot be read for a peer");
            }
            Chunk::default()
        });
        self.shared.metrics.snapshot_sent_bytes.add(data.len() as u64);
        let input = Input::ChunkLoaded {
            to,
            upto,
            total,
            offset,
            data,
        };
        self.replica.step(now, input);
    }

    pub(super) fn store_chunk(&mut self, upto: Slot, total: u64, offset: u64, data: Bytes) {
        self.shared.metrics.snapshot_received_bytes.add(data.len() as u64);
        let chunk = Chunk { total, data };
        self.snapshots.to_store.push_back(Piece { upto, offset, chunk });
        self.store_next_chunk();
    }

    fn store_next_chunk(&mut self) {
        let Some(snapshots) = &self.environment.snapshots else {
            return;
        };
        if self.snapshots.storing {
            return;
        }
        let Some(Piece { upto, offset, chunk }) = self.snapshots.to_store.pop_front() else {
            return;
        };
        self.snapshots.storing = true;
        let (store, events, group) = (snapshots.store.clone(), self.event_sender.clone(), self.shared.id);
        snapshots.workers().spawn(&mut self.snapshots.jobs, move || {
            let stored = snapshots::call(|| store.store_chunk(group, upto, offset, chunk));
            events.send(Event::Snapshot(SnapshotEvent::ChunkStored { upto, stored }));
        });
    }

    fn chunk_stored(&mut self, now: Time, upto: Slot, stored: Result<Received, SnapshotError>) {
        self.snapshots.storing = false;
        if !matches!(stored, Ok(Received::UpTo(_))) {
            // What is still to be stored of it is of no use.
            self.snapshots.to_store.retain(|piece| piece.upto != upto);
        }
        let input = match stored {
            Ok(Received::UpTo(next_offset)) => Input::ChunkStored { upto, next_offset },
            Ok(Received::Whole(header)) => {
                tracing::info!(
                    group = %self.shared.id, node = %self.shared.node, %upto, "a peer's snapshot is complete"
                );
                self.snapshots.newest = self.snapshots.newest.max(upto);
                Input::SnapshotReceived(*header)
            }
            Err(error) => {
                self.note_snapshot_failure(now, upto, &error, "a peer's snapshot could not be stored");
                Input::SnapshotFailed { upto }
            }
        };
        self.replica.step(now, input);
        self.answer_wanted(now);
        self.store_next_chunk();
    }
}

/// Installing.
impl Task {
    pub(super) fn install_snapshot(&mut self, upto: Slot) -> Result<(), End> {
        // Whoever waits for what was handed out before gets a reply.
        self.apply_all()?;
        if self.machine.is_away() {
            self.snapshots.install_next = Some(upto);
        } else if self.machine.applied() < upto {
            self.restore_machine(upto);
        }
        Ok(())
    }

    fn restore_machine(&mut self, upto: Slot) {
        let Some((snapshots, machine)) = self.environment.snapshots.as_ref().zip(self.machine.send_away())
        else {
            return;
        };
        tracing::info!(
            group = %self.shared.id, node = %self.shared.node, %upto, "restoring the state machine from a snapshot"
        );
        self.snapshots.restoring = Some((upto, Instant::now()));
        self.replica.step(self.shared.clock.now(), Input::HoldApply(true));
        let (store, events, group) = (snapshots.store.clone(), self.event_sender.clone(), self.shared.id);
        let cancel = self.snapshots.cancel.clone();
        snapshots.workers().spawn(&mut self.snapshots.jobs, move || {
            let machine = snapshots::restore(&*store, group, upto, machine, &cancel);
            events.send(Event::Snapshot(SnapshotEvent::Restored { upto, machine }));
        });
    }

    /// The machine is back.
    fn restored(
        &mut self,
        now: Time,
        upto: Slot,
        machine: Result<Box<dyn StateMachine>, String>,
    ) -> Result<(), End> {
        let machine = machine.map_err(|why| {
            End::Halted(format!(
                "the state machine could not be restored from the snapshot as of slot {upto}: {why}"
            ))
        })?;
        self.machine.come_back(machine);
        if let Some((_, began)) = self.snapshots.restoring.take() {
            let took = began.elapsed();
            self.shared.metrics.snapshot_install_duration.record(took);
            tracing::info!(
                group = %self.shared.id, node = %self.shared.node, %upto,
                millis = took.as_millis() as u64, "the state machine is restored"
            );
        }
        self.shared.metrics.applied_index.set(self.machine.applied().0);
        match self.snapshots.install_next.take() {
            Some(newer) if newer > upto => self.restore_machine(newer),
            _ => self.replica.step(now, Input::HoldApply(false)),
        }
        self.answer_wanted(now);
        Ok(())
    }
}
