//! Clusters of real processes.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use std::{
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// The program under test.
pub const KVSTORE: &str = env!("CARGO_BIN_EXE_kvstore");

/// How long anything may take before a test gives up; far more than it takes.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Ports that nobody listens on now, below those that the system gives to outgoing connections: one of those could take a
/// port before the node that shall listen on it is started, or while it is down.
pub fn free_ports(count: usize) -> Vec<u16> {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Programs that run side by side begin at places of their own.
    let begin = std::process::id().wrapping_mul(2_654_435_761) % COUNT;
    let candidates = (0..COUNT).map(|_| {
        let next = begin + NEXT.fetch_add(1, Relaxed);
        u16::try_from(FIRST + next % COUNT).expect("a port")
    });
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let found: Vec<u16> = candidates.filter(is_free).take(count).collect();
    assert_eq!(found.len(), count, "all ports are taken");
    found
}

/// Tries until it works, for [`PATIENCE`] at the most.
pub fn eventually<T, E: std::fmt::Debug>(what: &str, mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if Instant::now() > deadline => panic!("{what}: {error:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A command of the program with nothing of this process's configuration.
pub fn kvstore(args: &[&str]) -> Command {
    let mut command = Command::new(KVSTORE);
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KVSTORE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the program to its end.
pub fn run(args: &[&str]) -> Output {
    kvstore(args).output().expect("the program runs")
}

/// The nodes of a cluster, each a process, killed at the end.
pub struct Cluster {
    pub directory: tempfile::TempDir,
    pub flags: Vec<String>,
    pub peers: Vec<u16>,
    pub resp: Vec<u16>,
    pub http: Vec<u16>,
    /// The nodes that founded the cluster, and their addresses then; the others have joined.
    founders: Vec<String>,
    nodes: Vec<Option<Child>>,
}

impl Cluster {
    /// Starts `size` nodes with these flags added, and waits until each answers reads.
    pub fn start(size: usize, flags: &[&str]) -> Self {
        let mut ports = free_ports(size * 3);
        let http = ports.split_off(size * 2);
        let resp = ports.split_off(size);
        let mut cluster = Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            peers: ports,
            resp,
            http,
            founders: Vec::new(),
            nodes: (0..size).map(|_| None).collect(),
        };
        let founder = |node| format!("{node}={}", cluster.peer(node));
        cluster.founders = (1..=size).map(founder).collect();
        for node in 1..=size {
            cluster.start_node(node);
        }
        for node in 1..=size {
            cluster.wait_until_it_reads(node);
        }
        cluster
    }

    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    pub fn members(&self) -> String {
        self.founders.join(",")
    }

    pub fn data_dir(&self, node: usize) -> PathBuf {
        self.directory.path().join(format!("node-{node}"))
    }

    pub fn log(&self, node: usize) -> String {
        std::fs::read_to_string(self.directory.path().join(format!("node-{node}.log"))).unwrap_or_default()
    }

    /// The arguments that start a node.
    pub fn arguments(&self, node: usize) -> Vec<String> {
        let seeds: Vec<String> = self.running().map(|seed| self.peer(seed)).collect();
        let (seeds, peer, members) = (seeds.join(","), self.peer(node), self.members());
        let cluster = if self.data_dir(node).exists() {
            vec![]
        } else if node <= self.founders.len() {
            vec!["--cluster", &members]
        } else {
            vec!["--join", &seeds, "--peer", &peer]
        };
        let mut args: Vec<String> = ["serve", "--id", &node.to_string()]
            .into_iter()
            .chain(cluster)
            .chain(["--resp", &format!("127.0.0.1:{}", self.resp[node - 1])])
            .chain(["--http", &format!("127.0.0.1:{}", self.http[node - 1])])
            .chain(["--data-dir", &self.data_dir(node).display().to_string()])
            .map(str::to_owned)
            .collect();
        args.extend(self.flags.clone());
        args
    }

    /// Starts a node that joins through the nodes that run; returns its id.
    pub fn join_node(&mut self) -> usize {
        let ports = free_ports(3);
        self.peers.push(ports[0]);
        self.resp.push(ports[1]);
        self.http.push(ports[2]);
        self.nodes.push(None);
        let node = self.size();
        self.start_node(node);
        node
    }

    /// Where a node talks to the others.
    pub fn peer(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.peers[node - 1])
    }

    fn running(&self) -> impl Iterator<Item = usize> + '_ {
        (1..=self.size()).filter(|node| self.nodes[node - 1].is_some())
    }

    pub fn start_node(&mut self, node: usize) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join(format!("node-{node}.log")))
            .expect("a log file");
        let args = self.arguments(node);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let child = kvstore(&args)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the node starts");
        self.nodes[node - 1] = Some(child);
    }

    /// `kill -9`.
    pub fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.nodes[node - 1].take() {
            child.kill().expect("the node is killed");
            child.wait().expect("the node has ended");
        }
    }

    /// Sends `SIGTERM` and waits for the end.
    pub fn terminate(&mut self, node: usize) -> std::process::ExitStatus {
        let mut child = self.nodes[node - 1].take().expect("the node is running");
        signal(child.id(), "-TERM");
        wait_for_end(&mut child)
    }

    /// Waits until a node that was told to stop has ended; whether it did so in order.
    pub fn ends_well(&mut self, node: usize) -> bool {
        let mut child = self.nodes[node - 1].take().expect("the node is running");
        wait_for_end(&mut child).success()
    }

    pub fn client(&self, node: usize) -> redis::RedisResult<redis::Connection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/", self.resp[node - 1]))?;
        let connection = client.get_connection_with_timeout(Duration::from_secs(2))?;
        connection.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(connection)
    }

    /// A connection to a node that is known to run.
    pub fn connect(&self, node: usize) -> redis::Connection {
        eventually("connecting", || self.client(node))
    }

    pub fn wait_until_it_reads(&self, node: usize) {
        let read = || {
            let mut client = self.client(node)?;
            redis::cmd("GET")
                .arg("is anybody there")
                .query::<Option<String>>(&mut client)
        };
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = read() {
            assert!(
                Instant::now() < deadline,
                "node {node} does not serve: {error}\n{}",
                self.log(node)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn status(&self, node: usize) -> redis::RedisResult<serde_json::Value> {
        let text: String = redis::cmd("KV.STATUS").query(&mut self.client(node)?)?;
        Ok(serde_json::from_str(&text).expect("a status is JSON"))
    }

    /// The node that leads the first group and is running.
    pub fn leader(&self) -> usize {
        eventually("there is a leader", || {
            let mut leaders = self.running().filter(|node| {
                self.status(*node)
                    .is_ok_and(|status| status["groups"][0]["is_leader"] == true)
            });
            leaders.next().ok_or("nobody leads")
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 1..=self.size() {
            self.kill(node);
        }
    }
}

pub fn signal(pid: u32, signal: &str) {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(sent.expect("kill runs").success());
}

pub fn wait_for_end(child: &mut Child) -> std::process::ExitStatus {
    eventually("the process ends", || match child.try_wait() {
        Ok(Some(status)) => Ok(status),
        other => Err(other),
    })
}

/// Whether the process exists and is more than the remains of one.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}
