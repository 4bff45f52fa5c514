//! A group's task: owns the replica and its state machine, and does in turns what has come in since the last one.

mod answers;
mod durable;
mod ending;
mod intake;
mod outputs;
mod snapshots;
mod status;

use std::{
    collections::{BTreeSet, VecDeque},
    future::poll_fn,
    mem,
    pin::Pin,
    string::String,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
    vec::Vec,
};

pub(super) use self::durable::Done;
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
    lock,
    machine::Machine,
    slow::SlowLogs,
    waiting::Waiting,
};
use crate::{
    core::{Input, Output, PersistId, Replica, Token},
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

/// A task where the store's thread finds it too; `None` once it has ended.
type Seat = Mutex<Option<Task>>;

/// What a task has not taken in yet.
struct Intake {
    events: mpsc::UnboundedReceiver<Event>,
    requests: mpsc::UnboundedReceiver<Request>,
    taken_events: Vec<Event>,
    taken_request: Option<Request>,
    halt: watch::Receiver<Option<String>>,
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
    room: Arc<Room>,
    done: Done,
    write: PendingWrite,
    /// What the replica wants and the store's thread has left to the next turn.
    outputs: VecDeque<Output>,
    /// What the replica's invariant was that broke in the hands of the store's thread.
    broken: Option<String>,
    /// When the next turn begins at the latest.
    armed: Time,
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

/// Runs a group until it ends; every open and later request has been answered then.
pub(super) async fn run(parts: Parts) {
    let (seat, mut intake) = Task::new(parts);
    let mut timer = std::pin::pin!(sleep_until(Instant::now()));
    let end = loop {
        let begun = on_turn(&seat, |task| task.begin_turn(&mut intake));
        match begun {
            Ok(true) => give_way().await,
            Ok(false) => {}
            Err(end) => break end,
        }
        let ended = on_turn(&seat, |task| {
            task.end_turn()?;
            task.arm(timer.as_mut());
            Ok((
                mem::take(&mut task.has_more),
                task.environment.config.max_turn_inputs,
            ))
        });
        let (has_more, max_inputs) = match ended {
            Ok(next) => next,
            Err(end) => break end,
        };
        tokio::select! {
            biased;
            () = tokio::task::yield_now(), if has_more => {}
            _ = intake.halt.changed() => {}
            _ = intake.events.recv_many(&mut intake.taken_events, max_inputs) => {}
            request = intake.requests.recv() => intake.taken_request = request,
            () = timer.as_mut() => {}
        }
    };
    let task = lock(&seat).take();
    if let Some(task) = task {
        task.finish(intake, end).await;
    }
}

/// Does a part of a turn; a panic ends the group.
fn on_turn<T>(seat: &Seat, part: impl FnOnce(&mut Task) -> Result<T, End>) -> Result<T, End> {
    let mut seat = lock(seat);
    let task = seat.as_mut().expect("a task is in its seat until it ends");
    caught("the replica broke an invariant", || part(task)).unwrap_or_else(|why| Err(End::Broken(why)))
}

impl Task {
    fn new(parts: Parts) -> (Arc<Seat>, Intake) {
        let config = &parts.environment.config;
        let now = parts.shared.clock.now();
        let limiter = |max| Limiter::new(config.target_delay, max, now);
        let command_limiter = limiter(config.replica.max_pending_commands);
        let read_limiter = limiter(config.replica.max_pending_reads);
        let slow = SlowLogs::new(config);
        let intake = Intake {
            events: parts.events,
            requests: parts.requests,
            taken_events: Vec::new(),
            taken_request: None,
            halt: parts.halt,
        };
        let seat = Arc::new_cyclic(|seat| {
            Mutex::new(Some(Self {
                command_limiter,
                read_limiter,
                slow,
                environment: parts.environment,
                shared: parts.shared,
                replica: parts.replica,
                machine: parts.machine,
                waiting: Waiting::default(),
                snapshots: Work::new(parts.newest_snapshot),
                parked: BTreeSet::new(),
                done: Done::new(parts.event_sender.clone(), seat.clone()),
                event_sender: parts.event_sender,
                room: parts.room,
                write: PendingWrite::default(),
                outputs: VecDeque::new(),
                broken: None,
                armed: Time::default(),
                refused: BTreeSet::new(),
                refreshed: None,
                has_sent: false,
                has_more: false,
            }))
        });
        (seat, intake)
    }

    /// Sets the timer, unless it is due early enough anyway: a deadline that moves on with every message then costs
    /// one idle turn now and then, not a timer operation each time.
    fn arm(&mut self, timer: Pin<&mut Sleep>) {
        let clock = self.shared.clock;
        let due = [self.replica.deadline(), self.waiting.next_deadline()];
        let due = due
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_else(|| clock.now().plus(FAR));
        if due < self.armed || timer.is_elapsed() {
            timer.reset(clock.instant_of(due));
            self.armed = due;
        }
    }

    /// Takes in what has come, and lets messages leave. True if they should be on their way before the turn goes on.
    fn begin_turn(&mut self, intake: &mut Intake) -> Result<bool, End> {
        if let Some(why) = &*intake.halt.borrow_and_update() {
            return Err(End::Halted(why.clone()));
        }
        if let Some(why) = self.broken.take() {
            return Err(End::Broken(why));
        }
        while let Some(output) = self.outputs.pop_front() {
            self.carry_out(output)?;
        }
        intake.collect_events(self.environment.config.max_turn_inputs);
        let now = self.shared.clock.now();
        for peer in mem::take(&mut self.refused) {
            self.replica.step(now, Input::SendRefused(peer));
        }
        self.take_events(now, &mut intake.taken_events)?;
        self.take_requests(now, intake);
        while let Some(token) = self.waiting.pop_expired(now) {
            self.expire(now, token);
        }
        if self.replica.deadline().is_some_and(|deadline| deadline <= now) {
            self.replica.step(now, Input::Tick);
        }
        while let Some(output) = self.replica.poll() {
            self.carry_out(output)?;
        }
        Ok(mem::take(&mut self.has_sent) && self.write.any)
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
