//! The nodes: processes with directories and links of their own.

use std::{
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use kvstore::{client::Client, server::Report};

use crate::{
    common::{kvstore, signal},
    links::Links,
};

/// How long a node may take to say how it is before it counts as unable to.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);

/// Ports for the nodes' whole lives come from below the range that outgoing connections are given, so that nobody takes
/// the port of a node that is down.
const PORTS: std::ops::Range<u16> = 15_000..30_000;

fn fixed_ports(count: usize) -> Vec<u16> {
    let mut listeners = Vec::new();
    while listeners.len() < count {
        listeners.extend(TcpListener::bind(("127.0.0.1", fastrand::u16(PORTS))));
    }
    let ports = listeners
        .iter()
        .map(|listener: &TcpListener| listener.local_addr());
    ports
        .map(|address| address.expect("a local address").port())
        .collect()
}

#[derive(Debug)]
pub(crate) struct Nodes {
    directory: PathBuf,
    storage: String,
    peers: Vec<String>,
    resp: Vec<String>,
    http: Vec<String>,
    running: Vec<Option<Child>>,
    paused: Vec<bool>,
    /// Which nodes belong to the cluster.
    members: Vec<usize>,
    /// The nodes are reached through their links; if any may join, they are reached as they are.
    has_spares: bool,
    pub(crate) links: Links,
}

impl Nodes {
    /// Starts `founders` nodes in this directory, with room for some more.
    pub(crate) async fn start(founders: usize, spares: usize, directory: &Path, storage: &str) -> Self {
        let size = founders + spares;
        let ports = fixed_ports(size * 3);
        let mut addresses = ports.into_iter().map(|port| format!("127.0.0.1:{port}"));
        let mut take = || -> Vec<String> { addresses.by_ref().take(size).collect() };
        let (peers, resp, http) = (take(), take(), take());
        let mut nodes = Self {
            directory: directory.to_owned(),
            storage: storage.to_owned(),
            links: Links::between(&peers).await,
            peers,
            resp,
            http,
            running: (0..size).map(|_| None).collect(),
            paused: vec![false; size],
            members: (1..=founders).collect(),
            has_spares: spares > 0,
        };
        for node in 1..=founders {
            nodes.start_node(node);
        }
        nodes
    }

    pub(crate) fn ids(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.resp.len()
    }

    /// Those that belong to the cluster.
    pub(crate) fn members(&self) -> Vec<usize> {
        self.members.clone()
    }

    /// Where a node talks to the others.
    pub(crate) fn peer(&self, node: usize) -> &str {
        &self.peers[node - 1]
    }

    /// Starts a node that joins through the members.
    pub(crate) fn join(&mut self, node: usize) {
        let seeds: Vec<&str> = self.members.iter().map(|seed| self.peer(*seed)).collect();
        let (seeds, peer) = (seeds.join(","), self.peer(node).to_owned());
        self.spawn(node, &["--join", &seeds, "--peer", &peer]);
        self.members.push(node);
    }

    /// Stops a node that belongs to the cluster no more.
    pub(crate) fn retire(&mut self, node: usize) {
        self.members.retain(|member| *member != node);
        self.kill(node);
    }

    /// Where clients find the nodes.
    pub(crate) fn resp(&self) -> &[String] {
        &self.resp
    }

    pub(crate) fn data_dir(&self, node: usize) -> PathBuf {
        data_dir(&self.directory, node)
    }

    pub(crate) fn log(&self, node: usize) -> PathBuf {
        self.directory.join(format!("node-{node}.log"))
    }

    pub(crate) fn start_node(&mut self, node: usize) {
        let members = self.members.iter().map(|member| {
            let member = *member;
            // The others behind their links; itself where it listens.
            let address = if member == node || self.has_spares {
                self.peers[member - 1].clone()
            } else {
                self.links.address(node, member).to_string()
            };
            format!("{member}={address}")
        });
        let cluster = members.collect::<Vec<_>>().join(",");
        self.spawn(node, &["--cluster", &cluster]);
    }

    fn spawn(&mut self, node: usize, cluster: &[&str]) {
        let (id, data_dir) = (node.to_string(), self.data_dir(node).display().to_string());
        let log = File::options().create(true).append(true).open(self.log(node));
        let mut command = kvstore(&["serve", "--id", &id]);
        command
            .args(cluster)
            .args(["--cluster-id", "chaos", "--storage", &self.storage])
            .args(["--resp", &self.resp[node - 1], "--http", &self.http[node - 1]])
            .args(["--data-dir", &data_dir, "--exit-with-stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log.expect("a log file"));
        self.running[node - 1] = Some(command.spawn().expect("the node starts"));
    }

    pub(crate) fn is_running(&self, node: usize) -> bool {
        self.running[node - 1].is_some()
    }

    /// Notes whether a node has ended by itself.
    pub(crate) fn has_ended(&mut self, node: usize) -> bool {
        let Some(child) = &mut self.running[node - 1] else {
            return false;
        };
        let ended = child.try_wait().expect("the node's state is known").is_some();
        if ended {
            self.running[node - 1] = None;
        }
        ended
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.running[node - 1].take() {
            child.kill().expect("the node is killed");
            child.wait().expect("the node has ended");
        }
        self.paused[node - 1] = false;
    }

    /// `SIGSTOP`.
    pub(crate) fn pause(&mut self, node: usize) {
        if let Some(child) = &self.running[node - 1] {
            signal(child.id(), "-STOP");
            self.paused[node - 1] = true;
        }
    }

    /// Heals the links, and lets every node run that does not.
    pub(crate) fn heal(&mut self) {
        self.links.heal();
        for node in self.members() {
            if std::mem::take(&mut self.paused[node - 1])
                && let Some(child) = &self.running[node - 1]
            {
                signal(child.id(), "-CONT");
            }
            if !self.is_running(node) {
                self.start_node(node);
            }
        }
    }

    pub(crate) async fn status(&self, node: usize) -> Option<Report> {
        if !self.is_running(node) || self.paused[node - 1] {
            return None;
        }
        let asked = async {
            let mut client = Client::connect(&self.resp[node - 1], STATUS_TIMEOUT).await.ok()?;
            let reply = client.call(&[b"KV.STATUS"]).await.ok()?;
            serde_json::from_str(&reply.to_text()).ok()
        };
        tokio::time::timeout(STATUS_TIMEOUT, asked).await.ok().flatten()
    }

    /// A node that says that it leads, the one with the highest ballot if there are several.
    pub(crate) async fn leader(&self) -> Option<usize> {
        let mut leader = None;
        for node in self.ids() {
            let Some(report) = self.status(node).await else {
                continue;
            };
            let group = report.groups.first()?;
            if group.is_leader {
                leader = leader.max(Some((group.ballot.round, node)));
            }
        }
        leader.map(|(_, node)| node)
    }
}

impl Nodes {
    /// The leader, as soon as there is one.
    pub(crate) async fn leader_within(&self, deadline: Instant) -> Result<usize, String> {
        loop {
            match self.leader().await {
                Some(leader) => return Ok(leader),
                None if Instant::now() > deadline => return Err("nobody leads".to_owned()),
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in self.ids() {
            self.kill(node);
        }
    }
}

/// Where a node keeps its data.
pub(crate) fn data_dir(directory: &Path, node: usize) -> PathBuf {
    directory.join(format!("node-{node}"))
}
