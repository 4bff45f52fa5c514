//! One thread of the load: many connections, each a task, on a runtime of its own.
//!
//! In the closed loop a connection sends its next burst when the last one is answered. In the open loop a schedule says
//! when bursts are due; a dispatcher hands them to connections whatever those wait for, and time counts from when a burst
//! was due: a server that stalls cannot hide it by slowing the load (Tene: *How NOT to measure latency*). A burst is
//! sent with one write; what a tick of the dispatcher adds to one connection shares one as well.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    ops::Range,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, BytesMut};
use tokio::{
    io::Interest,
    net::TcpStream,
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use super::{
    BenchOptions, replies,
    tally::{Live, Tally},
    target::Target,
};

/// How often the dispatcher looks at its schedule.
const TICK: Duration = Duration::from_millis(1);
/// How often commands are looked for that have waited too long.
const SWEEP: Duration = Duration::from_millis(50);
/// How long a connection that cannot be made, or (in the closed loop) was answered with an error, pauses.
const PAUSE: Duration = Duration::from_millis(5);
/// A connection of which the peer does not read this many bytes takes no more, in the open loop.
const MAX_UNWRITTEN_BYTES: usize = 4 << 20;
/// How much is read at once.
const READ_BYTES: usize = 64 << 10;
/// What all keys begin with.
const PREFIX: &[u8; 6] = b"bench:";
/// The digits of a key's number.
const DIGITS: usize = 12;
/// The length of a key.
pub(super) const KEY_BYTES: usize = PREFIX.len() + DIGITS;

/// What one thread is to do.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) options: BenchOptions,
    pub(super) targets: Arc<[Target]>,
    /// For a connection and for every reply.
    pub(super) timeout: Duration,
    pub(super) start: Instant,
    pub(super) measured: Range<Instant>,
    /// The connections of this thread.
    pub(super) clients: Range<u32>,
    pub(super) commands: Arc<Commands>,
    pub(super) live: Arc<Live>,
}

/// The commands that are sent, with keys whose numbers are still to be written.
#[derive(Debug)]
pub(super) struct Commands {
    get: Vec<u8>,
    set: Vec<u8>,
}

impl Commands {
    pub(super) fn new(value_size: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        let value: Vec<u8> = (0..value_size).map(|_| random.alphanumeric() as u8).collect();
        Self {
            get: template("GET", None),
            set: template("SET", Some(&value)),
        }
    }
}

/// Carries the plan out; blocks until every command has ended.
pub(super) fn run(plan: Plan) -> io::Result<Tally> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tally = Rc::new(RefCell::new(Tally::new(plan.measured.clone())));
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, generate(plan, Rc::clone(&tally)));
    // Its tasks hold the tally.
    drop(local);
    Ok(Rc::try_unwrap(tally).map_or_else(
        |_| unreachable!("all tasks have been dropped"),
        RefCell::into_inner,
    ))
}

async fn generate(plan: Plan, tally: Rc<RefCell<Tally>>) {
    let end = plan.measured.end;
    let share = f64::from(plan.clients.end - plan.clients.start) / f64::from(plan.options.clients);
    let per_connection = (plan.options.max_in_flight / plan.options.clients).max(plan.options.pipeline);
    let plan = Rc::new(plan);
    let connections: Vec<_> = plan
        .clients
        .clone()
        .map(|index| Rc::new(Connection::new(index, Rc::clone(&plan), Rc::clone(&tally))))
        .collect();
    for connection in &connections {
        tokio::task::spawn_local(Rc::clone(connection).run());
    }
    let sweeping = tokio::task::spawn_local(sweep(connections.clone(), plan.timeout));
    match plan.options.rate {
        Some(rate) => {
            let bursts_per_second = rate * share / f64::from(plan.options.pipeline);
            let schedule = Schedule::new(plan.start, bursts_per_second, plan.clients.start);
            dispatch(schedule, &connections, &tally, end, per_connection as usize).await;
        }
        None => sleep_until(end.into()).await,
    }
    // Every command ends: answered, or too late.
    let last = Instant::now() + plan.timeout + 2 * SWEEP;
    while Instant::now() < last && connections.iter().any(|connection| connection.in_flight() > 0) {
        sleep(TICK).await;
    }
    sweeping.abort();
}

/// When bursts are due: evenly spread, at a rate that nothing changes.
struct Schedule {
    start: Instant,
    per_second: f64,
    next: u64,
}

impl Schedule {
    /// Threads begin at different moments of the first interval.
    fn new(start: Instant, per_second: f64, thread: u32) -> Self {
        let phase = fastrand::Rng::with_seed(u64::from(thread)).f64() / per_second;
        Self {
            start: start + Duration::from_secs_f64(phase),
            per_second,
            next: 0,
        }
    }

    fn next(&self) -> Instant {
        self.start + Duration::from_secs_f64(self.next as f64 / self.per_second)
    }
}

async fn dispatch(
    mut schedule: Schedule,
    connections: &[Rc<Connection>],
    tally: &RefCell<Tally>,
    end: Instant,
    per_connection: usize,
) {
    let Some(first) = connections.first() else {
        return;
    };
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut at = 0;
    let mut unwritten: Vec<Rc<Connection>> = Vec::new();
    while Instant::now() < end {
        ticks.tick().await;
        let now = Instant::now().min(end);
        let mut all_are_full = false;
        loop {
            let from = schedule.next();
            if from > now || from >= end {
                break;
            }
            schedule.next += 1;
            let mut taker = None;
            for _ in 0..if all_are_full { 0 } else { connections.len() } {
                at = (at + 1) % connections.len();
                // A remainder of their number.
                let connection = &connections[at];
                if connection.has_room(per_connection) {
                    taker = Some(connection);
                    break;
                }
            }
            let Some(connection) = taker else {
                all_are_full = true;
                let count = first.plan.options.pipeline.into();
                let mut tally = tally.borrow_mut();
                tally.due(from, count);
                tally.unsent(from, count);
                continue;
            };
            if connection.push(from) {
                unwritten.push(Rc::clone(connection));
            }
        }
        unwritten.retain(|connection| connection.write());
    }
}

/// Ends connections that have not answered for too long.
async fn sweep(connections: Vec<Rc<Connection>>, patience: Duration) {
    loop {
        sleep(SWEEP).await;
        let now = Instant::now();
        for connection in &connections {
            let oldest = connection.state.borrow().bursts.front().map(|burst| burst.sent);
            if oldest.is_some_and(|sent| now.duration_since(sent) > patience) {
                connection.is_too_late.set(true);
                connection.kick.notify_one();
            }
        }
    }
}

#[derive(Debug)]
struct Burst {
    /// When it was due.
    from: Instant,
    sent: Instant,
    /// Commands without an answer.
    open: u32,
}

#[derive(Debug, Default)]
struct State {
    out: BytesMut,
    incoming: BytesMut,
    bursts: VecDeque<Burst>,
    /// For each command without an answer, whether it reads.
    reads: VecDeque<bool>,
}

#[derive(Debug)]
struct Connection {
    plan: Rc<Plan>,
    /// The number of its target, modulo how many there are; the next one after each connection that fails.
    target: Cell<usize>,
    tally: Rc<RefCell<Tally>>,
    stream: RefCell<Option<Rc<TcpStream>>>,
    state: RefCell<State>,
    random: RefCell<fastrand::Rng>,
    kick: Notify,
    is_too_late: Cell<bool>,
}

/// A command with a key whose number is still to be written, and where.
fn template(name: &str, value: Option<&[u8]>) -> Vec<u8> {
    let args = if value.is_some() { 3 } else { 2 };
    let mut bytes = format!("*{args}\r\n$3\r\n{name}\r\n${KEY_BYTES}\r\n").into_bytes();
    bytes.extend_from_slice(&key_name(0));
    bytes.extend_from_slice(b"\r\n");
    if let Some(value) = value {
        bytes.extend_from_slice(format!("${}\r\n", value.len()).as_bytes());
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Where a key begins in a command: behind `*3`, `$3`, the name and the key's length.
const KEY_AT: usize = 4 + 4 + 5 + 5;

fn append(out: &mut BytesMut, template: &[u8], key: u64) {
    let at = out.len() + KEY_AT;
    out.put_slice(template);
    out[at..at + KEY_BYTES].copy_from_slice(&key_name(key));
}

pub(super) fn key_name(mut key: u64) -> [u8; KEY_BYTES] {
    let mut name = [0; KEY_BYTES];
    let (prefix, digits) = name.split_at_mut(PREFIX.len());
    prefix.copy_from_slice(PREFIX);
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (key % 10) as u8;
        key /= 10;
    }
    name
}

impl Connection {
    fn new(index: u32, plan: Rc<Plan>, tally: Rc<RefCell<Tally>>) -> Self {
        Self {
            target: Cell::new(index as usize),
            random: RefCell::new(fastrand::Rng::with_seed(u64::from(index) + 1)),
            plan,
            tally,
            stream: RefCell::default(),
            state: RefCell::default(),
            kick: Notify::new(),
            is_too_late: Cell::new(false),
        }
    }

    fn target(&self) -> &Target {
        // A remainder of their number.
        &self.plan.targets[self.target.get() % self.plan.targets.len()]
    }

    fn in_flight(&self) -> usize {
        self.state.borrow().reads.len()
    }

    /// Whether it takes another burst in the open loop.
    fn has_room(&self, max_in_flight: usize) -> bool {
        let state = self.state.borrow();
        self.stream.borrow().is_some()
            && state.reads.len() + self.plan.options.pipeline as usize <= max_in_flight
            && state.out.len() < MAX_UNWRITTEN_BYTES
    }

    /// Appends a burst that was due at `from` to what is to be written; true if nothing was to be written before.
    fn push(&self, from: Instant) -> bool {
        let options = &self.plan.options;
        let mut state = self.state.borrow_mut();
        let mut random = self.random.borrow_mut();
        let state = &mut *state;
        let was_empty = state.out.is_empty();
        for _ in 0..options.pipeline {
            let key = self.target().key(|| random.u64(0..options.keys));
            let is_read = options.read_ratio > 0.0 && random.f64() < options.read_ratio;
            if is_read {
                append(&mut state.out, &self.plan.commands.get, key);
            } else {
                append(&mut state.out, &self.plan.commands.set, key);
            }
            state.reads.push_back(is_read);
        }
        state.bursts.push_back(Burst {
            from,
            sent: Instant::now(),
            open: options.pipeline,
        });
        self.tally.borrow_mut().due(from, options.pipeline.into());
        was_empty
    }

    /// Writes what the connection takes now; true if something is left.
    fn write(&self) -> bool {
        let Some(stream) = self.stream.borrow().clone() else {
            return false;
        };
        let mut state = self.state.borrow_mut();
        while !state.out.is_empty() {
            match stream.try_write(&state.out) {
                Ok(written) => state.out.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                // The reader meets it as well.
                Err(_) => return false,
            }
        }
        false
    }

    async fn run(self: Rc<Self>) {
        while Instant::now() < self.plan.measured.end {
            let address = &self.target().address;
            let connected = timeout(self.plan.timeout, TcpStream::connect(address)).await;
            let why = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true);
                    let stream = Rc::new(stream);
                    *self.stream.borrow_mut() = Some(Rc::clone(&stream));
                    let ended = self.converse(&stream).await;
                    *self.stream.borrow_mut() = None;
                    match ended {
                        Ok(()) => return,
                        Err(why) => format!("{why} ({address})"),
                    }
                }
                Err(error) => format!("CONNECT cannot connect to {address}: {error}"),
            };
            self.give_up(&why);
            self.target.set(self.target.get() + 1);
            sleep(PAUSE).await;
        }
    }

    /// Everything that has no answer has failed.
    fn give_up(&self, why: &str) {
        let mut state = std::mem::take(&mut *self.state.borrow_mut());
        let mut tally = self.tally.borrow_mut();
        let now = Instant::now();
        if state.bursts.is_empty() && self.plan.options.rate.is_none() {
            // In the closed loop a client without a connection fails by itself.
            tally.due(now, 1);
            tally.failed(now, now, 1, why, &self.plan.live);
        }
        for burst in state.bursts.drain(..) {
            tally.failed(burst.from, now, burst.open.into(), why, &self.plan.live);
        }
    }

    async fn converse(&self, stream: &TcpStream) -> Result<(), String> {
        let end = self.plan.measured.end;
        let is_closed = self.plan.options.rate.is_none();
        loop {
            if is_closed && self.in_flight() == 0 {
                let now = Instant::now();
                if now >= end {
                    return Ok(());
                }
                self.push(now);
            }
            let interest = if self.write() {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            };
            tokio::select! {
                ready = stream.ready(interest) => {
                    ready.map_err(|error| format!("DISCONNECTED {error}"))?;
                }
                () = self.kick.notified() => {
                    if self.is_too_late.replace(false) {
                        return Err("TIMEOUT no reply in time".into());
                    }
                }
            }
            if self.read(stream)? && is_closed {
                sleep(PAUSE).await;
            }
        }
    }

    /// Takes in all replies that are there; true if one of them was an error.
    fn read(&self, stream: &TcpStream) -> Result<bool, String> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let mut has_failed = false;
        loop {
            state.incoming.reserve(READ_BYTES);
            match stream.try_read_buf(&mut state.incoming) {
                Ok(0) => return Err("DISCONNECTED the server closed the connection".into()),
                Ok(read) => {
                    has_failed |= self.take_replies(state)?;
                    if read < READ_BYTES {
                        return Ok(has_failed);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(has_failed),
                Err(error) => return Err(format!("DISCONNECTED {error}")),
            }
        }
    }

    fn take_replies(&self, state: &mut State) -> Result<bool, String> {
        let now = Instant::now();
        let mut tally = self.tally.borrow_mut();
        let live = &self.plan.live;
        let mut has_failed = false;
        let mut taken = 0;
        while let Some(found) = replies::first(&state.incoming[taken..])? {
            let (Some(burst), Some(is_read)) = (state.bursts.front_mut(), state.reads.pop_front()) else {
                return Err("ERR the server replied to nothing".into());
            };
            if let Some(error) = found.error {
                has_failed = true;
                tally.failed(burst.from, now, 1, &String::from_utf8_lossy(error), live);
            } else {
                tally.done(burst.from, now, is_read, live);
            }
            taken += found.bytes;
            burst.open -= 1;
            if burst.open == 0 {
                state.bursts.pop_front();
            }
        }
        state.incoming.advance(taken);
        Ok(has_failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_what_redis_reads() {
        let mut out = BytesMut::new();
        append(&mut out, &template("SET", Some(b"ab")), 42);
        append(&mut out, &template("GET", None), 123_456_789_012);
        assert_eq!(
            out,
            "*3\r\n$3\r\nSET\r\n$18\r\nbench:000000000042\r\n$2\r\nab\r\n\
             *2\r\n$3\r\nGET\r\n$18\r\nbench:123456789012\r\n"
        );
    }

    #[test]
    fn a_schedule_does_not_drift() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, 3_000.0, 0);
        let first = schedule.next();
        schedule.next += 9_000;
        let took = schedule.next().duration_since(first);
        assert!(
            took.abs_diff(Duration::from_secs(3)) < Duration::from_micros(1),
            "{took:?}"
        );
    }
}
