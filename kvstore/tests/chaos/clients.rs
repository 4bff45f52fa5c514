//! Clients that note what they asked for and what they were answered.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use fastrand::Rng;
use kvstore::{
    client::{Client, ClientError},
    resp::Value as Reply,
};
use paxos::testing::linearizability::Operation;
use tokio::{task::JoinHandle, time::sleep};

use crate::register::{Input, Output, Value};

/// Most keys are used for so long only: operations of unknown outcome add up, and with them the work of judging.
const KEY_LIFE: Duration = Duration::from_secs(4);
const KEYS_AT_ONCE: usize = 4;
/// These are used all the time, by so many of a hundred operations.
const STEADY_KEYS: usize = 2;
const STEADY_PERCENT: u8 = 10;
/// How long a client waits for a reply: sometimes longer than the server does, sometimes not.
const PATIENCE_MILLIS: std::ops::Range<u64> = 300..3_000;
/// The longest pause of a client between two operations.
const MAX_PAUSE_MILLIS: u64 = 4;
/// After a refusal.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);

/// One operation of one client.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    pub(crate) key: String,
    pub(crate) client: usize,
    pub(crate) node: usize,
    /// Its times are nanoseconds since the start.
    pub(crate) operation: Operation<Input, Output>,
}

impl std::fmt::Display for Note {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = |nanos: u64| nanos as f64 / 1e9;
        let Operation {
            input,
            invoked,
            answer,
        } = &self.operation;
        let mut end = "       ?".to_owned();
        let mut outcome = "unknown".to_owned();
        if let Some((at, output)) = answer {
            end = format!("{:8.4}", seconds(*at));
            outcome.clear();
            write!(outcome, "{output:?}")?;
        }
        let (client, node) = (self.client, self.node);
        let command = input.arguments(&self.key).join(" ");
        write!(
            formatter,
            "{:8.4} - {end}  client {client} at node {node}: {command} -> {outcome}",
            seconds(*invoked)
        )
    }
}

/// What became of an operation.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Answered(Output),
    /// Certainly not done.
    Refused,
    Unknown,
    /// What no server should say.
    Nonsense(String),
}

fn outcome(reply: Result<Reply, ClientError>) -> Outcome {
    let reply = match reply {
        Ok(reply) => reply,
        Err(ClientError::Connect { .. }) => return Outcome::Refused,
        Err(ClientError::NoReply { .. }) => return Outcome::Unknown,
    };
    if let Some(output) = Output::parse(&reply) {
        return Outcome::Answered(output);
    }
    let text = reply.to_text();
    match text.split(' ').next().unwrap_or_default() {
        "LOADING" | "BUSY" if matches!(reply, Reply::Error(_)) => Outcome::Refused,
        "UNKNOWN" if matches!(reply, Reply::Error(_)) => Outcome::Unknown,
        _ => Outcome::Nonsense(format!("{reply:?}")),
    }
}

/// What the clients of a run have in common.
#[derive(Debug)]
pub(crate) struct Common {
    nodes: Vec<String>,
    start: Instant,
    stop: AtomicBool,
}

impl Common {
    pub(crate) fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// A linearizable read of the key at a node, tried until it is answered or the time is over.
    pub(crate) async fn read(&self, key: &str, node: usize, limit: Duration) -> Result<Note, String> {
        let deadline = Instant::now() + limit;
        loop {
            let mut client = Caller::new(usize::MAX, self, 0);
            client.node = node;
            let failure = match client.call(key, Input::Get).await {
                (Outcome::Answered(_), Some(note)) => return Ok(Note { client: 0, ..note }),
                (outcome, _) => format!("{outcome:?}"),
            };
            if Instant::now() > deadline {
                return Err(format!(
                    "key {key} cannot be read at node {node} at the end: {failure}"
                ));
            }
            sleep(REFUSED_PAUSE).await;
        }
    }
}

/// All clients of a run.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) common: Arc<Common>,
    tasks: Vec<JoinHandle<Noted>>,
}

/// What clients have noted.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    pub(crate) notes: Vec<Note>,
    pub(crate) refused: usize,
    pub(crate) nonsense: Vec<String>,
}

impl Noted {
    pub(crate) fn by_key(&self) -> BTreeMap<&str, Vec<&Note>> {
        let mut keys: BTreeMap<&str, Vec<&Note>> = BTreeMap::new();
        for note in &self.notes {
            keys.entry(&note.key).or_default().push(note);
        }
        keys
    }
}

impl Clients {
    pub(crate) fn start(count: usize, nodes: &[String], seed: u64) -> Self {
        let common = Arc::new(Common {
            nodes: nodes.to_vec(),
            start: Instant::now(),
            stop: AtomicBool::new(false),
        });
        let tasks = (1..=count)
            .map(|client| {
                let common = Arc::clone(&common);
                tokio::spawn(async move { work(client, &common, seed).await })
            })
            .collect();
        Self { common, tasks }
    }

    /// Lets every client finish what it is at.
    pub(crate) async fn stop(self) -> Noted {
        self.common.stop.store(true, Relaxed);
        let mut all = Noted::default();
        for task in self.tasks {
            let noted = task.await.expect("clients do not panic");
            all.notes.extend(noted.notes);
            all.refused += noted.refused;
            all.nonsense.extend(noted.nonsense);
        }
        all
    }
}

async fn work(client: usize, common: &Common, seed: u64) -> Noted {
    let mut noted = Noted::default();
    let mut caller = Caller::new(client, common, seed);
    while !common.stop.load(Relaxed) {
        if caller.random.u8(..100) < 3 {
            caller.move_on();
        }
        let key = caller.any_key();
        let input = caller.any_input(&key);
        let (outcome, note) = caller.call(&key, input).await;
        noted.notes.extend(note);
        match outcome {
            Outcome::Answered(_) => {
                let pause = caller.random.u64(..=MAX_PAUSE_MILLIS);
                sleep(Duration::from_millis(pause)).await;
            }
            Outcome::Unknown => caller.move_on(),
            Outcome::Refused => {
                noted.refused += 1;
                if caller.random.bool() {
                    caller.move_on();
                }
                sleep(REFUSED_PAUSE).await;
            }
            Outcome::Nonsense(what) => {
                noted.nonsense.push(what);
                sleep(REFUSED_PAUSE).await;
            }
        }
    }
    noted
}

/// One client: a connection at a time, at a node after its fancy.
struct Caller<'a> {
    client: usize,
    common: &'a Common,
    random: Rng,
    node: usize,
    connection: Option<Client>,
    /// What this client last knew of keys, for comparisons.
    known: HashMap<String, Value>,
    written: u64,
}

impl<'a> Caller<'a> {
    fn new(client: usize, common: &'a Common, seed: u64) -> Self {
        let mut random = Rng::with_seed(seed ^ (client as u64) << 32);
        Self {
            client,
            common,
            node: random.usize(1..=common.nodes.len()),
            random,
            connection: None,
            known: HashMap::new(),
            written: 0,
        }
    }

    fn move_on(&mut self) {
        self.node = self.random.usize(1..=self.common.nodes.len());
        self.connection = None;
    }

    fn any_key(&mut self) -> String {
        if self.random.u8(..100) < STEADY_PERCENT {
            return format!("steady-{}", self.random.usize(..STEADY_KEYS));
        }
        let life = self.common.start.elapsed().as_secs() / KEY_LIFE.as_secs();
        format!("key-{life}-{}", self.random.usize(..KEYS_AT_ONCE))
    }

    fn any_input(&mut self, key: &str) -> Input {
        match self.random.u8(..100) {
            0..40 => Input::Get,
            40..58 => Input::Set(self.new_value()),
            58..66 => Input::Del,
            66..82 => Input::Incr,
            _ => {
                let new = self.new_value();
                Input::Cas(self.known.get(key).copied().unwrap_or(Value::Number(1)), new)
            }
        }
    }

    /// One that nobody else writes, with room for increments.
    fn new_value(&mut self) -> Value {
        self.written += 1;
        let number = (self.client as u64 * 100_000 + self.written) * 1_000;
        if self.random.u8(..100) < 20 {
            Value::Text(number)
        } else {
            Value::Number(number.cast_signed())
        }
    }

    async fn call(&mut self, key: &str, input: Input) -> (Outcome, Option<Note>) {
        let address = &self.common.nodes[self.node - 1];
        let connection = if let Some(connection) = self.connection.take() {
            Ok(connection)
        } else {
            let patience = Duration::from_millis(self.random.u64(PATIENCE_MILLIS));
            Client::connect(address, patience).await
        };
        let mut connection = match connection {
            Ok(connection) => connection,
            Err(error) => return (outcome(Err(error)), None),
        };
        let arguments = input.arguments(key);
        let arguments: Vec<&[u8]> = arguments.iter().map(String::as_bytes).collect();
        let invoked = self.common.now();
        let outcome = outcome(connection.call(&arguments).await);
        let at = self.common.now();
        let operation = match outcome {
            Outcome::Answered(output) => {
                self.learn(key, input, output);
                self.connection = Some(connection);
                Operation::answered(input, invoked, at, output)
            }
            // What a read would have answered is no matter.
            Outcome::Unknown if input != Input::Get => Operation::unknown(input, invoked),
            _ => return (outcome, None),
        };
        let note = Note {
            key: key.to_owned(),
            client: self.client,
            node: self.node,
            operation,
        };
        (outcome, Some(note))
    }

    fn learn(&mut self, key: &str, input: Input, output: Output) {
        let value = match (input, output) {
            (Input::Get, Output::Value(value)) => value,
            (Input::Set(value), _) | (Input::Cas(_, value), Output::Integer(1)) => Some(value),
            (Input::Incr, Output::Integer(sum)) => Some(Value::Number(sum)),
            _ => None,
        };
        match value {
            Some(value) => self.known.insert(key.to_owned(), value),
            None => self.known.remove(key),
        };
    }
}

#[test]
fn replies_are_told_apart() {
    let error = |text: &str| outcome(Ok(Reply::Error(text.to_owned())));
    assert_eq!(error("LOADING no leader answered"), Outcome::Refused);
    assert_eq!(error("BUSY overloaded"), Outcome::Refused);
    assert_eq!(error("UNKNOWN the outcome"), Outcome::Unknown);
    assert_eq!(
        error("ERR value is not an integer or out of range"),
        Outcome::Answered(Output::NotANumber)
    );
    assert!(matches!(error("ERR unknown command"), Outcome::Nonsense(_)));
    let reply = |text: &'static str| outcome(Ok(Reply::Bulk(text.into())));
    assert_eq!(
        reply("v7"),
        Outcome::Answered(Output::Value(Some(Value::Text(7))))
    );
    assert!(matches!(reply("LOADING"), Outcome::Nonsense(_)));
    let cause = || std::io::ErrorKind::ConnectionReset.into();
    let address = String::new();
    assert_eq!(
        outcome(Err(ClientError::Connect {
            address: address.clone(),
            cause: cause()
        })),
        Outcome::Refused
    );
    assert_eq!(
        outcome(Err(ClientError::NoReply {
            address,
            cause: cause()
        })),
        Outcome::Unknown
    );
}
