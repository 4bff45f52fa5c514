//! A group's task: owns the replica and its state machine, and does in turns what has come in since the last one.

mod answers;
mod ending;
mod intake;
mod outputs;
mod snapshots;
mod status;

use std::{
    collections::BTreeSet, future::poll_fn, mem, pin::Pin, string::String, sync::Arc, task::Poll,
    time::Duration, vec::Vec,
};

use self::snapshots::Work;

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, Sleep, sleep_until},
};

use super::{
    Environment,
    admission::Limiter,
    caught,
    event::{Event, EventSender, Room},
    group::{Request, Shared},
    machine::Machine,
    slow::SlowLogs,
    waiting::Waiting,
};
use crate::{
    core::{Input, PersistId, Replica, Token},
    types::{NodeId, Slot, Time, WriteOp},
};

/// For how long a turn answers reads, before it looks at everything else again.
const READS_PER_TURN: Duration = Duration::from_millis(5);

/// For how long a turn applies what is chosen, before it looks at everything else again: heartbeats must not be late
/// because much was chosen at once.
const APPLIES_PER_TURN: Duration = Duration::from_millis(5);

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
    command_limiter: Limiter,
    read_limiter: Limiter,
    snapshots: Work,
    /// Reads that wait until their slot is applied.
    parked: BTreeSet<(Slot, Token)>,
    event_sender: EventSender,
    events: mpsc::UnboundedReceiver<Event>,
    requests: mpsc::UnboundedReceiver<Request>,
    taken_events: Vec<Event>,
    taken_request: Option<Request>,
    room: Arc<Room>,
    halt: watch::Receiver<Option<String>>,
    write: PendingWrite,
    /// Peers to which the transport refused a message in the last turn.
    refused: BTreeSet<NodeId>,
    /// This turn has handed messages to the transport.
    has_sent: bool,
    /// The last turn left something that is ready to be done.
    has_more: bool,
    slow: SlowLogs,
    /// When gauges and status followed the replica last, and whether it rested then.
    refreshed: Option<(Time, bool)>,
}

/// What a task is made of.
pub(super) struct Parts {
    pub(super) environment: Arc<Environment>,
    pub(super) shared: Arc<Shared>,
    pub(super) replica: Replica,
    pub(super) machine: Machine,
    /// As of which slot the newest snapshot is.
    pub(super) newest_snapshot: Slot,
    pub(super) event_sender: EventSender,
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    pub(super) requests: mpsc::UnboundedReceiver<Request>,
    pub(super) room: Arc<Room>,
    pub(super) halt: watch::Receiver<Option<String>>,
}

impl Task {
    pub(super) fn new(parts: Parts) -> Self {
        let config = &parts.environment.config;
        let now = parts.shared.clock.now();
        let limiter = |max| Limiter::new(config.target_delay, max, now);
        Self {
            command_limiter: limiter(config.replica.max_pending_commands),
            read_limiter: limiter(config.replica.max_pending_reads),
            slow: SlowLogs::new(&parts.environment.config),
            environment: parts.environment,
            shared: parts.shared,
            replica: parts.replica,
            machine: parts.machine,
            waiting: Waiting::default(),
            snapshots: Work::new(parts.newest_snapshot),
            parked: BTreeSet::new(),
            event_sender: parts.event_sender,
            events: parts.events,
            requests: parts.requests,
            taken_events: Vec::new(),
            taken_request: None,
            room: parts.room,
            halt: parts.halt,
            write: PendingWrite::default(),
            refused: BTreeSet::new(),
            refreshed: None,
            has_sent: false,
            has_more: false,
        }
    }

    /// Runs until the group ends; every open and later request has been answered then.
    pub(super) async fn run(mut self) {
        let mut timer = std::pin::pin!(sleep_until(Instant::now()));
        let mut armed = Time::default();
        let max_inputs = self.environment.config.max_turn_inputs;
        let end = loop {
            if let Err(end) = guarded(|| self.begin_turn()) {
                break end;
            }
            if mem::take(&mut self.has_sent) && self.write.any {
                give_way().await;
            }
            if let Err(end) = guarded(|| self.end_turn()) {
                break end;
            }
            self.arm(timer.as_mut(), &mut armed);
            tokio::select! {
                biased;
                () = tokio::task::yield_now(), if mem::take(&mut self.has_more) => {}
                _ = self.halt.changed() => {}
                _ = self.events.recv_many(&mut self.taken_events, max_inputs) => {}
                request = self.requests.recv() => self.taken_request = request,
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

    /// Takes in what has come, and lets messages leave.
    fn begin_turn(&mut self) -> Result<(), End> {
        if let Some(why) = &*self.halt.borrow_and_update() {
            return Err(End::Halted(why.clone()));
        }
        self.collect_events();
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
        Ok(())
    }

    /// Does what others wait for less urgently than peers for messages.
    fn end_turn(&mut self) -> Result<(), End> {
        self.hand_over_write();
        self.apply()?;
        self.answer_reads();
        self.refresh(self.shared.clock.now());
        Ok(())
    }
}

/// Runs a part of a turn; a panic ends the group.
fn guarded(part: impl FnOnce() -> Result<(), End>) -> Result<(), End> {
    caught("the replica broke an invariant", part).unwrap_or_else(|why| Err(End::Broken(why)))
}

/// Lets what was woken run, which is the transport as a rule: messages are on their way before the store's thread is
/// woken, which may take as long as sending them all. What is not ready is not waited for.
async fn give_way() {
    let mut has_given_way = false;
    poll_fn(|context| {
        if mem::replace(&mut has_given_way, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
