//! `demo`: a whole cluster on this machine, as child processes that end with this one.

use std::{
    collections::BTreeMap,
    fs::File,
    net::TcpListener,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{
    Exit, Failure, serve, status,
    terminal::{print, reader_is_gone, say},
};
use crate::{
    bench::{self, BenchOptions, Target},
    server::Report,
    shards::Shards,
};

/// The flags of `demo`.
#[derive(Clone, Debug, Args)]
pub(super) struct DemoOptions {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// The storage engine (wal, leveldb, sqlite, memory); the fastest durable one that is built in if not given
    #[arg(long)]
    storage: Option<String>,
    /// Keep the data here; without it, it is thrown away at the end
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// The first port: nodes serve Redis clients from here on, talk to each other 100 and serve HTTP 200 above
    #[arg(long, default_value_t = 7001, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    base_port: u16,
    /// Among how many groups the keys are dealt out
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(Shards::MAX_GROUPS)))]
    groups: u16,
}

impl DemoOptions {
    fn resp(&self, node: u16) -> String {
        format!("127.0.0.1:{}", self.base_port + node - 1)
    }

    fn peer(&self, node: u16) -> String {
        format!("127.0.0.1:{}", self.base_port + node + 99)
    }

    fn http(&self, node: u16) -> String {
        format!("127.0.0.1:{}", self.base_port + node + 199)
    }

    fn endpoints(&self) -> Vec<String> {
        (1..=self.nodes).map(|node| self.resp(node)).collect()
    }
}

/// How often the nodes are asked how they are.
const POLL: Duration = Duration::from_millis(100);
/// How long a node may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long the first leader may take before it is said that there is none.
const PATIENCE: Duration = Duration::from_secs(10);

const KEYS: &str =
    "keys: k 2 kill node 2, s 2 start it, p 1 pause node 1 (s 1 wakes it), b bench, Enter status, q quit";

/// The cluster and what is known of it.
struct Demo {
    options: DemoOptions,
    directory: PathBuf,
    children: BTreeMap<u16, Child>,
    paused: Vec<u16>,
    started: Instant,
    /// When a leader was last seen.
    led_until: Instant,
    leader: Option<(u64, u64)>,
}

pub(super) async fn run(options: DemoOptions) -> Result<Exit, Failure> {
    // Each node would refuse it, into its log.
    serve::backend(options.storage.as_deref())?;
    check_ports(&options)?;
    let failed = |directory: &Path, error: std::io::Error| {
        Failure::error(format!(
            "cannot create {}: {error}; choose another --data-dir",
            directory.display()
        ))
    };
    let temporary = options.data_dir.is_none();
    let directory = if let Some(directory) = &options.data_dir {
        std::fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
        directory.clone()
    } else {
        fresh_directory().map_err(|error| failed(&std::env::temp_dir(), error))?
    };
    let mut demo = Demo {
        options,
        directory: directory.clone(),
        children: BTreeMap::new(),
        paused: Vec::new(),
        started: Instant::now(),
        led_until: Instant::now(),
        leader: None,
    };
    let outcome = demo.live().await;
    demo.stop_all().await;
    if temporary {
        let _ = std::fs::remove_dir_all(&directory);
    } else {
        say!("the data is kept in {}", directory.display());
    }
    outcome
}

/// A new directory for this run alone: what another run left behind is not taken up.
fn fresh_directory() -> std::io::Result<PathBuf> {
    let mut name = format!("kvstore-demo-{}", std::process::id());
    loop {
        let directory = std::env::temp_dir().join(&name);
        match std::fs::DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => return Ok(directory),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                name = format!("kvstore-demo-{}-{:08x}", std::process::id(), fastrand::u32(..));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Says which port is taken before anything is started.
fn check_ports(options: &DemoOptions) -> Result<(), Failure> {
    for node in 1..=options.nodes {
        for (address, what) in [
            (options.resp(node), "Redis clients"),
            (options.peer(node), "peers"),
            (options.http(node), "HTTP"),
        ] {
            if let Err(error) = TcpListener::bind(&address) {
                return Err(Failure::error(format!(
                    "cannot use {address} (node {node}, {what}): {error}; stop what uses it or choose another --base-port"
                )));
            }
        }
    }
    Ok(())
}

impl Demo {
    async fn live(&mut self) -> Result<Exit, Failure> {
        let failed = |error: std::io::Error| Failure::error(format!("cannot listen to signals: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
        let mut lines = read_lines();
        for node in 1..=self.options.nodes {
            self.start(node)?;
        }
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut introduced = false;
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Ok(Exit::Ok),
                _ = terminate.recv() => return Ok(Exit::Ok),
                _ = hangup.recv() => return Ok(Exit::Ok),
                Some(line) = lines.recv() => if self.obey(&line).await {
                    return Ok(Exit::Ok);
                },
                _ = poll.tick() => {
                    self.notice_exits();
                    self.notice_leader().await;
                    if reader_is_gone() {
                        return Ok(Exit::Ok);
                    }
                    if !introduced && self.leader.is_some() {
                        introduced = true;
                        self.introduce().await;
                    }
                    if !introduced && (self.children.is_empty() || self.started.elapsed() > PATIENCE) {
                        return Err(self.explain_failure());
                    }
                }
            }
        }
    }

    fn start(&mut self, node: u16) -> Result<(), Failure> {
        let failed =
            |what: &Path, error: std::io::Error| Failure::error(format!("{}: {error}", what.display()));
        let program = std::env::current_exe().map_err(|error| failed(Path::new("this program"), error))?;
        let log_path = self.log_path(node);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(|error| failed(&log_path, error))?;
        let members: Vec<String> = (1..=self.options.nodes)
            .map(|node| format!("{node}={}", self.options.peer(node)))
            .collect();
        let mut command = Command::new(&program);
        for (name, _) in std::env::vars_os() {
            // The nodes are told everything; what is meant for another cluster must not reach them.
            if name.to_string_lossy().starts_with("KVSTORE_") && name != "KVSTORE_LOG" {
                command.env_remove(name);
            }
        }
        command
            .args([
                "serve",
                "--exit-with-stdin",
                "--id",
                &node.to_string(),
                "--cluster",
                &members.join(","),
            ])
            .args([
                "--resp",
                &self.options.resp(node),
                "--http",
                &self.options.http(node),
            ])
            .args(["--groups", &self.options.groups.to_string()])
            .arg("--data-dir")
            .arg(self.directory.join(format!("node-{node}")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // Interrupts of the terminal are this process's business.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(storage) = &self.options.storage {
            command.args(["--storage", storage]);
        }
        let child = command.spawn().map_err(|error| failed(&program, error))?;
        self.children.insert(node, child);
        Ok(())
    }

    fn log_path(&self, node: u16) -> PathBuf {
        self.directory.join(format!("node-{node}.log"))
    }

    /// Carries out one line from the keyboard; true if it says to quit.
    async fn obey(&mut self, line: &str) -> bool {
        let mut words = line.split_ascii_whitespace();
        let verb = words.next().unwrap_or_default();
        let node = words
            .next()
            .and_then(|node| node.parse().ok())
            .filter(|node| (1..=self.options.nodes).contains(node));
        match (verb, node) {
            ("q", _) => return true,
            ("b", _) => self.bench().await,
            ("", _) => self.show_status().await,
            ("k", Some(node)) => match self.children.remove(&node) {
                Some(mut child) => {
                    let _ = child.kill().await;
                    self.paused.retain(|paused| *paused != node);
                    say!("node {node} is killed");
                }
                None => say!("node {node} is not running"),
            },
            ("s", Some(node)) if self.paused.contains(&node) => {
                self.signal(node, Signal::CONT);
                self.paused.retain(|paused| *paused != node);
                say!("node {node} goes on");
            }
            ("s", Some(node)) if self.children.contains_key(&node) => say!("node {node} is running"),
            ("s", Some(node)) => match self.start(node) {
                Ok(()) => {
                    let pid = self.children.get(&node).and_then(Child::id).unwrap_or_default();
                    say!("node {node} is started (pid {pid})");
                }
                Err(failure) => say!("node {node} cannot be started: {failure}"),
            },
            ("p", Some(node)) if self.children.contains_key(&node) && !self.paused.contains(&node) => {
                self.signal(node, Signal::STOP);
                self.paused.push(node);
                say!("node {node} is paused");
            }
            ("p", Some(node)) => say!("node {node} is not running"),
            _ => say!("{KEYS}"),
        }
        false
    }

    fn signal(&self, node: u16, signal: Signal) {
        let id = self
            .children
            .get(&node)
            .and_then(Child::id)
            .and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = id.and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Where the nodes that can answer do so.
    fn awake(&self) -> Vec<String> {
        let awake = self.children.keys().filter(|node| !self.paused.contains(node));
        awake.map(|node| self.options.resp(*node)).collect()
    }

    fn notice_exits(&mut self) {
        let log_paths: BTreeMap<u16, PathBuf> = self
            .children
            .keys()
            .map(|node| (*node, self.log_path(*node)))
            .collect();
        self.children.retain(|node, child| match child.try_wait() {
            Ok(Some(status)) => {
                say!(
                    "node {node} has ended by itself ({status}): {}",
                    last_line(&log_paths[node])
                );
                false
            }
            _ => true,
        });
    }

    /// One line when the first group's leader changes.
    async fn notice_leader(&mut self) {
        let answers = status::ask_all(&self.awake(), POLL * 5).await;
        let leads = |report: &Report| {
            let group = report.groups.first()?;
            group.is_leader.then_some((group.ballot.round, group.ballot.node))
        };
        let leader = answers
            .iter()
            .filter_map(|(_, answer)| leads(answer.as_ref().ok()?))
            .max();
        if leader != self.leader {
            let at = self.started.elapsed().as_secs_f64();
            match leader {
                Some((round, node)) => {
                    let without = self.led_until.elapsed().as_millis();
                    say!(
                        "{at:7.1} s  node {node} leads (ballot {round}.{node}), at most {without} ms without a leader"
                    );
                }
                None => say!("{at:7.1} s  there is no leader"),
            }
            self.leader = leader;
        }
        if leader.is_some() {
            self.led_until = Instant::now();
        }
    }

    async fn show_status(&self) {
        let answers = status::ask_all(&self.options.endpoints(), POLL * 5).await;
        print(format_args!("{}", status::table(&answers)));
    }

    async fn introduce(&self) {
        say!("");
        self.show_status().await;
        let port = |node: u16| self.options.base_port + node.min(self.options.nodes) - 1;
        say!("");
        say!(
            "status  http://{}/status    metrics  http://{}/metrics",
            self.options.http(1),
            self.options.http(1)
        );
        say!("data    {}", self.directory.display());
        let pids = self
            .children
            .iter()
            .filter_map(|(node, child)| Some((node, child.id()?)));
        let pids: Vec<String> = pids.map(|(node, pid)| format!("node {node}: {pid}")).collect();
        say!("pids    {}", pids.join(", "));
        say!("");
        say!("try     redis-cli -p {} set greeting hello", port(1));
        say!("        redis-cli -p {} get greeting", port(2));
        say!(
            "        redis-benchmark -p {} -t set,get -n 100000 -c 50 -P 16 -q",
            port(3)
        );
        say!("");
        say!("{KEYS}");
    }

    async fn bench(&self) {
        let options = BenchOptions {
            clients: 64,
            value_size: 256,
            duration: Duration::from_secs(5),
            read_ratio: 0.0,
            pipeline: 1,
            keys: 100_000,
            rate: None,
            warm_up: Duration::from_millis(500),
            max_in_flight: 64,
            threads: 1,
            cluster: false,
        };
        say!("64 clients, one write of 256 bytes at a time each, for 5 s ...");
        let targets: Vec<_> = self.awake().iter().map(|address| Target::any(address)).collect();
        match bench::run(&options, &targets, Duration::from_secs(5), |_| {}).await {
            Ok(summary) => say!("{summary}"),
            Err(error) => say!("cannot make the load: {error}"),
        }
    }

    /// Why there is no leader: what the nodes said last.
    fn explain_failure(&self) -> Failure {
        let said: Vec<String> = (1..=self.options.nodes)
            .map(|node| format!("node {node}: {}", last_line(&self.log_path(node))))
            .collect();
        Failure::error(format!("the cluster did not start ({})", said.join("; ")))
    }

    /// Asks all nodes to stop, and makes those stop that do not.
    async fn stop_all(&mut self) {
        for node in self.paused.split_off(0) {
            self.signal(node, Signal::CONT);
        }
        for node in self.children.keys() {
            self.signal(*node, Signal::TERM);
        }
        let deadline = Instant::now() + STOP_LIMIT;
        for (_, mut child) in std::mem::take(&mut self.children) {
            if tokio::time::timeout_at(deadline.into(), child.wait())
                .await
                .is_err()
            {
                let _ = child.kill().await;
            }
        }
    }
}

fn last_line(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().last().unwrap_or("said nothing").to_owned()
}

/// Lines from the keyboard; none if standard input is closed.
fn read_lines() -> mpsc::UnboundedReceiver<String> {
    let (lines, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if line.is_err() || lines.send(line.unwrap_or_default()).is_err() {
                return;
            }
        }
    });
    receiver
}
