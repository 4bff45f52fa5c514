//! A group's task: owns the replica and its state machine, and does in turns what has come in since the last one.

use std::{
    collections::BTreeSet,
    mem,
    pin::Pin,
    string::{String, ToString},
    sync::{Arc, PoisonError},
    time::Duration,
    vec::Vec,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, Sleep, sleep_until},
};

use super::{
    Environment, caught,
    event::{Event, EventSender, Room},
    group::{GroupStatus, Read, Refusal, Request, Shared},
    machine::Machine,
    storage,
    waiting::{Queries, ReadRequest, Reply, Waiter, Waiting},
};
use crate::{
    core::{Alarm, Input, Message, Output, PersistId, Rejection, Replica, Token},
    error::{ProposeError, ReadError},
    types::{Ballot, NodeId, Slot, Time, WriteOp},
    wire::{Envelope, Outgoing},
};

/// For how long a turn answers reads, before it looks at everything else again.
const READS_PER_TURN: Duration = Duration::from_millis(5);

/// How often gauges and the last known status follow the replica at the most.
const REFRESH: Duration = Duration::from_millis(100);

/// When nothing is due.
const FAR: Duration = Duration::from_hours(1);

/// Why a task ends.
enum End {
    /// The node stops: nothing is wrong with the group.
    Stopped(String),
    /// The group cannot go on; its replica can still be asked what became of the open proposals.
    Halted(String),
    /// The replica itself broke an invariant; it must not be called again.
    Broken(String),
}

/// The write that this turn's outputs make together.
#[derive(Default)]
struct PendingWrite {
    id: PersistId,
    ops: Vec<WriteOp>,
    sync: bool,
    any: bool,
}

pub(super) struct Task {
    environment: Arc<Environment>,
    shared: Arc<Shared>,
    replica: Replica,
    machine: Machine,
    waiting: Waiting,
    /// Reads that wait until their slot is applied.
    parked: BTreeSet<(Slot, Token)>,
    event_sender: EventSender,
    events: mpsc::UnboundedReceiver<Event>,
    requests: mpsc::UnboundedReceiver<Request>,
    taken_events: Vec<Event>,
    taken_requests: Vec<Request>,
    room: Arc<Room>,
    halt: watch::Receiver<Option<String>>,
    write: PendingWrite,
    /// Peers to which the transport refused a message in the last turn.
    refused: BTreeSet<NodeId>,
    /// The last turn left something that is ready to be done.
    has_more: bool,
    refreshed: Option<Time>,
}

/// What a task is made of.
pub(super) struct Parts {
    pub(super) environment: Arc<Environment>,
    pub(super) shared: Arc<Shared>,
    pub(super) replica: Replica,
    pub(super) machine: Machine,
    pub(super) event_sender: EventSender,
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    pub(super) requests: mpsc::UnboundedReceiver<Request>,
    pub(super) room: Arc<Room>,
    pub(super) halt: watch::Receiver<Option<String>>,
}

impl Task {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            environment: parts.environment,
            shared: parts.shared,
            replica: parts.replica,
            machine: parts.machine,
            waiting: Waiting::default(),
            parked: BTreeSet::new(),
            event_sender: parts.event_sender,
            events: parts.events,
            requests: parts.requests,
            taken_events: Vec::new(),
            taken_requests: Vec::new(),
            room: parts.room,
            halt: parts.halt,
            write: PendingWrite::default(),
            refused: BTreeSet::new(),
            refreshed: None,
            has_more: false,
        }
    }

    /// Runs until the group ends; every open and later request has been answered then.
    pub(super) async fn run(mut self) {
        let mut timer = std::pin::pin!(sleep_until(Instant::now()));
        let mut armed = Time::default();
        let max_inputs = self.environment.config.max_turn_inputs;
        let end = loop {
            match caught("the replica broke an invariant", || self.turn()) {
                Ok(Ok(())) => {}
                Ok(Err(end)) => break end,
                Err(why) => break End::Broken(why),
            }
            self.arm(timer.as_mut(), &mut armed);
            tokio::select! {
                biased;
                () = tokio::task::yield_now(), if mem::take(&mut self.has_more) => {}
                _ = self.halt.changed() => {}
                _ = self.events.recv_many(&mut self.taken_events, max_inputs) => {}
                _ = self.requests.recv_many(&mut self.taken_requests, max_inputs) => {}
                () = timer.as_mut() => {}
            }
        };
        self.finish(end).await;
    }

    /// Sets the timer, unless it is due early enough anyway: a deadline that moves on with every message then costs
    /// one idle turn now and then, not a timer operation each time.
    fn arm(&self, timer: Pin<&mut Sleep>, armed: &mut Time) {
        let clock = self.shared.clock;
        let due = [self.replica.deadline(), self.waiting.next_deadline()];
        let due = due
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_else(|| clock.now().plus(FAR));
        if due < *armed || timer.is_elapsed() {
            timer.reset(clock.instant_of(due));
            *armed = due;
        }
    }

    fn turn(&mut self) -> Result<(), End> {
        if let Some(why) = &*self.halt.borrow_and_update() {
            return Err(End::Halted(why.clone()));
        }
        let now = self.shared.clock.now();
        for peer in mem::take(&mut self.refused) {
            self.replica.step(now, Input::SendRefused(peer));
        }
        self.take_events(now)?;
        self.take_requests(now);
        while let Some(token) = self.waiting.pop_expired(now) {
            self.expire(now, token);
        }
        if self.replica.deadline().is_some_and(|deadline| deadline <= now) {
            self.replica.step(now, Input::Tick);
        }
        while let Some(output) = self.replica.poll() {
            self.carry_out(output)?;
        }
        self.hand_over_write();
        self.apply()?;
        self.answer_reads();
        self.refresh(now);
        Ok(())
    }

    fn take_events(&mut self, now: Time) -> Result<(), End> {
        while self.taken_events.len() < self.environment.config.max_turn_inputs
            && let Ok(event) = self.events.try_recv()
        {
            self.taken_events.push(event);
        }
        let mut room = 0;
        let mut stop = false;
        for event in self.taken_events.drain(..) {
            let input = match event {
                Event::Message {
                    from,
                    storage,
                    message,
                    room: held,
                } => {
                    room += held as usize;
                    Input::Message {
                        from,
                        storage,
                        message,
                    }
                }
                Event::Disconnected(peer) => Input::Disconnected(peer),
                Event::Persisted(id) => Input::Persisted(id),
                Event::Loaded { from, entries } => Input::Loaded { from, entries },
                Event::Stop => {
                    stop = true;
                    continue;
                }
            };
            self.replica.step(now, input);
        }
        if room > 0 {
            self.room.give_back(room);
        }
        if stop {
            Err(End::Stopped("the node was shut down".into()))
        } else {
            Ok(())
        }
    }

    fn take_requests(&mut self, now: Time) {
        while self.taken_requests.len() < self.environment.config.max_turn_inputs
            && let Ok(request) = self.requests.try_recv()
        {
            self.taken_requests.push(request);
        }
        let mut taken_requests = mem::take(&mut self.taken_requests);
        for request in taken_requests.drain(..) {
            self.shared.queue.taken(request.weight());
            match request {
                Request::Propose {
                    command,
                    reply,
                    since,
                    deadline,
                } => {
                    let token = self.waiting.add(
                        Waiter::Proposal {
                            reply,
                            since,
                            bytes: command.len(),
                        },
                        deadline,
                    );
                    self.replica.step(now, Input::Propose { token, command });
                }
                Request::ProposeAll {
                    commands,
                    burst,
                    since,
                    deadline,
                } => {
                    for (position, command) in commands.into_iter().enumerate() {
                        let reply = Reply::Burst {
                            burst: burst.clone(),
                            position,
                        };
                        let token = self.waiting.add(
                            Waiter::Proposal {
                                reply,
                                since,
                                bytes: command.len(),
                            },
                            deadline,
                        );
                        self.replica.step(now, Input::Propose { token, command });
                    }
                }
                Request::Read(request) => self.take_read(now, request),
                Request::Status(reply) => drop(reply.send(self.status(now))),
            }
        }
        // The buffer is used again.
        self.taken_requests = taken_requests;
    }

    fn take_read(&mut self, now: Time, request: ReadRequest) {
        let deadline = Some(request.deadline);
        match request.read {
            Read::Linearizable => {
                let token = self.waiting.add(Waiter::Read { request, slot: None }, deadline);
                self.replica.step(now, Input::Read { token });
            }
            Read::Stale { at_least }
                if self.parked.len() < self.environment.config.replica.max_pending_reads =>
            {
                let token = self.waiting.add(
                    Waiter::Read {
                        request,
                        slot: Some(at_least),
                    },
                    deadline,
                );
                self.parked.insert((at_least, token));
            }
            Read::Stale { .. } => self.shared.refuse(Refusal::Full, Request::Read(request)),
        }
    }

    fn expire(&mut self, now: Time, token: Token) {
        if let Some(Waiter::Read { slot: Some(slot), .. }) = self.waiting.get_mut(token) {
            self.parked.remove(&(*slot, token));
            self.reject(token, Rejection::Expired);
        } else {
            self.replica.step(now, Input::Cancel { token });
        }
    }

    fn carry_out(&mut self, output: Output) -> Result<(), End> {
        match output {
            Output::Send { to, message } => self.send(&to, message),
            Output::Persist { id, ops, sync } => {
                self.write.id = id;
                self.write.ops.extend(ops);
                self.write.sync |= sync;
                self.write.any = true;
            }
            Output::Apply(entry) => {
                if !entry.commands.is_empty() {
                    self.shared
                        .metrics
                        .batch_entries
                        .record_value(entry.commands.len() as u64);
                }
                self.machine.push(entry);
            }
            Output::Load {
                from,
                upto,
                max_bytes,
            } => {
                let events = self.event_sender.clone();
                self.environment.storage.load(storage::Load {
                    group: self.shared.id,
                    first: from,
                    last: upto,
                    max_bytes,
                    done: std::boxed::Box::new(move |entries| {
                        events.send(Event::Loaded { from, entries });
                    }),
                });
            }
            Output::ReadReady { token, slot: ready } => {
                if let Some(Waiter::Read { slot, .. }) = self.waiting.get_mut(token) {
                    *slot = Some(ready);
                    self.parked.insert((ready, token));
                }
            }
            Output::Rejected { token, reason } => self.reject(token, reason),
            Output::Unknown { token } => self.fail(token),
            Output::Leader(leader) => self.note_leader(leader),
            Output::Alarm(alarm) => {
                self.note_alarm(&alarm);
                let why = match alarm {
                    Alarm::Missing { slot } => {
                        std::format!("the store no longer holds the chosen entry at slot {slot}")
                    }
                    Alarm::LifeReused { slot } => std::format!(
                        "slot {slot} holds a command of this very life that was never proposed in it: the store has \
                         forgotten its earlier lives"
                    ),
                    _ => return Ok(()),
                };
                return Err(End::Halted(why));
            }
        }
        Ok(())
    }

    fn send(&mut self, to: &[NodeId], message: Message) {
        let identity = self.environment.identity;
        let envelope = Envelope {
            cluster: identity.cluster,
            from: identity.node,
            storage: identity.storage,
            group: self.shared.id,
            message,
        };
        let frame = match Outgoing::encode(&envelope) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::error!(
                    group = %self.shared.id, node = %identity.node, %error,
                    message = envelope.message.name(), "cannot encode a message"
                );
                return;
            }
        };
        for peer in to {
            if let Err(error) = self.environment.transport.send(*peer, &frame) {
                self.shared.metrics.refused_sends.increment();
                self.refused.insert(*peer);
                tracing::debug!(
                    group = %self.shared.id, node = %identity.node, %peer, %error,
                    message = envelope.message.name(), "the transport refused a message"
                );
            }
        }
    }

    fn hand_over_write(&mut self) {
        let PendingWrite { id, ops, sync, any } = mem::take(&mut self.write);
        if any {
            let done = self.event_sender.clone();
            let group = self.shared.id;
            self.environment.storage.write(storage::Write {
                group,
                id,
                ops,
                sync,
                done,
            });
        }
    }

    fn apply(&mut self) -> Result<(), End> {
        if !self.machine.has_run() {
            return Ok(());
        }
        let metrics = &self.shared.metrics;
        let began = Instant::now();
        // Those whose commands are in the run hear "unknown" when the task ends: they were chosen.
        let answers = self
            .machine
            .apply()
            .map_err(|error| End::Halted(error.to_string()))?;
        let now = Instant::now();
        metrics.apply_duration.record(now - began);
        metrics.proposals_applied.add(answers.len() as u64);
        let mut slowest = Duration::ZERO;
        let mut committed = 0;
        for (token, answer) in answers {
            let waiter = token.and_then(|token| self.waiting.remove(token));
            if let Some(Waiter::Proposal { reply, since, .. }) = waiter {
                let took = now.saturating_duration_since(since);
                metrics.commit_duration.record(took);
                slowest = slowest.max(took);
                committed += 1;
                reply.send(Ok(answer));
            }
        }
        if committed > 0 {
            metrics.proposals_committed.add(committed);
            self.shared.queue.set_pace(slowest);
        }
        metrics.applied_index.set(self.machine.applied().0);
        Ok(())
    }

    fn answer_reads(&mut self) {
        // Reads may cost anything: a turn must not go on so long that heartbeats are late.
        let began = Instant::now();
        while let Some(&(slot, token)) = self.parked.first()
            && slot <= self.machine.applied()
        {
            if began.elapsed() > READS_PER_TURN {
                self.has_more = true;
                return;
            }
            self.parked.pop_first();
            if let Some(Waiter::Read { request, .. }) = self.waiting.remove(token) {
                self.answer_read(request);
            }
        }
    }

    fn answer_read(&self, request: ReadRequest) {
        let metrics = &self.shared.metrics;
        let failed = |why| {
            metrics.rejected.failed.increment();
            tracing::error!(group = %self.shared.id, node = %self.shared.node, %why, "a query failed");
            ReadError::Failed(why)
        };
        match request.queries {
            // Nobody waits any more.
            Queries::One(_, reply) if reply.is_closed() => {}
            Queries::Many(_, reply) if reply.is_closed() => {}
            Queries::One(query, reply) => {
                // Nobody listens any more: fine, here and below.
                let _ = reply.send(self.machine.query(query).map_err(failed));
            }
            Queries::Many(queries, reply) => {
                let answers = queries
                    .into_iter()
                    .map(|query| self.machine.query(query))
                    .collect();
                let _ = reply.send(Result::map_err(answers, failed));
            }
        }
        if request.read == Read::Linearizable {
            metrics.read_index_duration.record(request.since.elapsed());
        }
    }

    /// The proposal or read did not happen.
    fn reject(&mut self, token: Token, reason: Rejection) {
        let Some(waiter) = self.waiting.remove(token) else {
            return;
        };
        let retry_after = self.shared.queue.retry_after();
        let rejected = &self.shared.metrics.rejected;
        match waiter {
            Waiter::Proposal { reply, bytes, .. } => {
                let max = self.environment.config.replica.max_command_bytes;
                let error = match reason {
                    Rejection::NotLeader { leader } => ProposeError::NotLeader { leader },
                    Rejection::Overloaded => ProposeError::Overloaded { retry_after },
                    Rejection::TooLarge => ProposeError::TooLarge { bytes, max },
                    Rejection::Expired => ProposeError::Expired,
                };
                if let Some(counter) = rejected.of_proposal(&error) {
                    counter.increment();
                }
                reply.send(Err(error));
            }
            Waiter::Read { request, .. } => {
                let error = match reason {
                    Rejection::NotLeader { leader } => ReadError::NotLeader { leader },
                    Rejection::Overloaded => ReadError::Overloaded { retry_after },
                    Rejection::TooLarge | Rejection::Expired => ReadError::Expired,
                };
                rejected.of_read(&error).increment();
                request.queries.refuse(error);
            }
        }
    }

    /// The proposal may or may not happen later.
    fn fail(&mut self, token: Token) {
        if let Some(Waiter::Proposal { reply, .. }) = self.waiting.remove(token) {
            self.shared.metrics.proposals_failed.increment();
            reply.send(Err(ProposeError::Unknown));
        }
    }

    fn note_leader(&mut self, leader: Option<Ballot>) {
        let before = *self.shared.leader.borrow();
        if before == leader {
            return;
        }
        self.refreshed = None;
        self.shared.leader.send_replace(leader);
        let (group, node) = (self.shared.id, self.shared.node);
        if let Some(ballot) = leader {
            self.shared.metrics.leader_changes.increment();
            tracing::info!(%group, %node, leader = %ballot.node, %ballot, "leader changed");
        } else {
            tracing::info!(%group, %node, "no leader");
        }
    }

    fn note_alarm(&self, alarm: &Alarm) {
        self.shared.metrics.alarms.increment();
        tracing::error!(group = %self.shared.id, node = %self.shared.node, ?alarm, "alarm");
    }

    fn status(&self, now: Time) -> GroupStatus {
        GroupStatus {
            replica: self.replica.status(now),
            applied: self.machine.applied(),
            digest: self.machine.digest(),
            halted: self.shared.stopped.get().cloned(),
        }
    }

    fn refresh(&mut self, now: Time) {
        if self
            .refreshed
            .is_some_and(|refreshed| now.since(refreshed) < REFRESH)
        {
            return;
        }
        self.refreshed = Some(now);
        // A digest may be costly: it is for those who ask for the status.
        let status = GroupStatus {
            replica: self.replica.status(now),
            applied: self.machine.applied(),
            digest: None,
            halted: None,
        };
        set_gauges(&self.shared, &status);
        *self
            .shared
            .last_status
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// Answers everything that is open, as truly as can be known, and lets nothing in any more.
    async fn finish(mut self, end: End) {
        let (group, node) = (self.shared.id, self.shared.node);
        let replica_is_sane = !matches!(end, End::Broken(_));
        let why = match end {
            End::Stopped(why) => {
                tracing::info!(%group, %node, "group stopped");
                why
            }
            End::Halted(why) | End::Broken(why) => {
                tracing::error!(%group, %node, why, "group halted");
                self.shared.metrics.halted.set(1);
                why
            }
        };
        let _ = self.shared.stopped.set(why);
        self.events.close();
        self.room.close();
        self.shared.leader.send_replace(None);
        if replica_is_sane {
            let now = self.shared.clock.now();
            let asked = caught("cancelling", || self.cancel_all(now));
            if asked.is_ok() {
                let status = self.status(now);
                *self
                    .shared
                    .last_status
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = status;
            }
        }
        self.shared.metrics.has_leader.set(0);
        self.shared.metrics.is_leader.set(0);
        for token in self.waiting.tokens() {
            match self.waiting.remove(token) {
                Some(Waiter::Proposal { reply, .. }) => {
                    self.shared.metrics.proposals_failed.increment();
                    reply.send(Err(ProposeError::Unknown));
                }
                Some(Waiter::Read { request, .. }) => {
                    self.shared.refuse(Refusal::Stopped, Request::Read(request));
                }
                None => {}
            }
        }
        self.requests.close();
        let mut requests = mem::take(&mut self.taken_requests);
        while let Some(request) = self.requests.recv().await {
            requests.push(request);
        }
        for request in requests {
            self.shared.queue.taken(request.weight());
            self.shared.refuse(Refusal::Stopped, request);
        }
    }

    /// Asks the replica which open proposals certainly did not happen. Nothing else that it says is carried out.
    fn cancel_all(&mut self, now: Time) {
        for token in self.waiting.tokens() {
            self.replica.step(now, Input::Cancel { token });
        }
        while let Some(output) = self.replica.poll() {
            if let Output::Rejected { token, .. } = output
                && let Some(waiter) = self.waiting.remove(token)
            {
                self.shared.metrics.rejected.stopped.increment();
                match waiter {
                    Waiter::Proposal { reply, .. } => {
                        reply.send(Err(ProposeError::Stopped(self.shared.stop_reason())));
                    }
                    Waiter::Read { request, .. } => {
                        request
                            .queries
                            .refuse(ReadError::Stopped(self.shared.stop_reason()));
                    }
                }
            }
        }
    }
}

fn set_gauges(shared: &Shared, status: &GroupStatus) {
    let metrics = &shared.metrics;
    let replica = &status.replica;
    let leads = replica.leader.is_some_and(|ballot| ballot.node == shared.node);
    metrics.has_leader.set(u64::from(replica.leader.is_some()));
    metrics.is_leader.set(u64::from(leads));
    metrics.ballot_round.set(replica.promised.round);
    metrics.proposals_pending.set(replica.pending_commands as u64);
    metrics.inflight_bytes.set(replica.pending_bytes as u64);
    metrics.commit_index.set(replica.chosen.0);
    metrics.applied_index.set(status.applied.0);
    metrics.log_first_index.set(replica.trimmed.next().0);
    metrics.log_last_index.set(replica.last.0);
    metrics.set_peers(replica.peers.clone());
}
