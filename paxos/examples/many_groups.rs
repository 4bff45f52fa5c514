//! Many groups on three nodes of one process: keys are spread over the groups, each with its own log, leader and state,
//! and all of them share one store and one transport per node. Tells how many commands a second go through, in memory;
//! or what groups cost that have nothing to do, and how fast all of them have leaders again when a node dies.
//!
//! `cargo run --release -p paxos --example many_groups [load|idle] [groups] [commands|seconds]`

use std::{
    error::Error,
    fs,
    time::{Duration, Instant},
};

use bytes::Bytes;
use paxos::{
    ClusterId, Group, GroupId, Member, Membership, Node, NodeId,
    node::Config,
    storage::Owner,
    typed::{Typed, TypedStateMachine},
};
use paxos_backends::Memory;
use paxos_transports::Network;

/// Commands that each client sends at once.
const BURST: usize = 100;

#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
struct Counter(u64);

impl TypedStateMachine for Counter {
    type Command = u64;
    type Reply = u64;
    type Query = ();
    type Answer = u64;

    fn apply(&mut self, add: u64) -> u64 {
        self.0 += add;
        self.0
    }

    fn query(&self, (): ()) -> u64 {
        self.0
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_else(|| "load".into());
    let groups = arguments.next().map(|text| text.parse()).transpose()?;
    let amount = arguments.next().map(|text| text.parse()).transpose()?;
    match &*what {
        "load" => load(groups.unwrap_or(20), amount.unwrap_or(20_000)).await,
        "idle" => idle(groups.unwrap_or(1_000), Duration::from_secs(amount.unwrap_or(10))).await,
        other => Err(format!("'{other}' is neither load nor idle").into()),
    }
}

/// Three nodes with all groups; each group has a leader.
async fn start(network: &Network, groups: u32) -> Result<Vec<Node>, Box<dyn Error>> {
    let members = Membership::new([1, 2, 3].map(|id| Member::voter(NodeId(id), "in this process")));
    let mut nodes = Vec::new();
    for id in [1, 2, 3].map(NodeId) {
        let owner = Owner {
            cluster: ClusterId::from_name("many groups"),
            node: id,
        };
        let node = Node::spawn(Config::default(), Memory::volatile(owner), network.transport(id)).await?;
        nodes.push(node);
    }
    for group in (1..=groups).map(GroupId) {
        for node in &nodes {
            node.add_group(group, members.clone(), Typed::new(Counter::default()))
                .await?;
        }
    }
    let began = Instant::now();
    all_led(&nodes, None).await?;
    println!("{groups} groups: all have a leader after {:?}", began.elapsed());
    for node in &nodes {
        let led = node.groups().iter().filter(|group| group.is_leader()).count();
        println!("node {} leads {led}", node.identity().node);
    }
    Ok(nodes)
}

/// Waits until every group of these nodes has a leader other than `dead`.
async fn all_led(nodes: &[Node], dead: Option<NodeId>) -> Result<(), Box<dyn Error>> {
    for group in nodes.iter().flat_map(Node::groups) {
        let mut leader = group.leader();
        leader
            .wait_for(|leader| leader.is_some_and(|ballot| Some(ballot.node) != dead))
            .await?;
    }
    Ok(())
}

async fn load(groups: u32, commands: u64) -> Result<(), Box<dyn Error>> {
    let nodes = start(&Network::new(), groups).await?;
    let began = Instant::now();
    let each = commands / u64::from(groups.max(1));
    let clients: Vec<_> = (0..groups as usize)
        .map(|index| {
            let group = nodes[index % nodes.len()].groups().swap_remove(index);
            tokio::spawn(client(group, each as usize))
        })
        .collect();
    let mut done = 0;
    for client in clients {
        done += client.await?;
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{done} commands in {seconds:.2} s: {:.0} a second",
        done as f64 / seconds
    );
    for node in nodes {
        node.shutdown().await?;
    }
    Ok(())
}

/// Sends bursts, each when the one before is answered; returns how many commands were applied.
async fn client(group: Group, commands: usize) -> usize {
    // The number 1 in CBOR.
    let one = Bytes::from_static(&[1]);
    let mut applied = 0;
    for _ in 0..commands.div_ceil(BURST) {
        let replies = group.propose_all(vec![one.clone(); BURST], None).await;
        applied += replies.iter().filter(|reply| reply.is_ok()).count();
    }
    applied
}

async fn idle(groups: u32, time: Duration) -> Result<(), Box<dyn Error>> {
    let network = Network::new();
    let before = memory_kib();
    let mut nodes = start(&network, groups).await?;
    // Whatever is done once after an election is over.
    tokio::time::sleep(Duration::from_secs(3)).await;

    let (cpu, began) = (cpu_ticks(), Instant::now());
    tokio::time::sleep(time).await;
    if let (Some(before), Some(after)) = (cpu, cpu_ticks()) {
        // The kernel counts in hundredths of a second.
        let share = (after - before) as f64 / began.elapsed().as_secs_f64() / 3.0;
        println!("idle: {share:.1} % of a core per node");
    }
    if let (Some(before), Some(after)) = (before, memory_kib()) {
        let per_group = (after.saturating_sub(before)) as f64 / 3.0 / f64::from(groups);
        println!("idle: {per_group:.1} KiB per group and node");
    }

    let dead = nodes.remove(0);
    let led = dead.groups().iter().filter(|group| group.is_leader()).count();
    let began = Instant::now();
    network.isolate(NodeId(1));
    drop(dead);
    all_led(&nodes, Some(NodeId(1))).await?;
    println!(
        "a node dies: its {led} groups all have a new leader after {:?}",
        began.elapsed()
    );
    for node in nodes {
        node.shutdown().await?;
    }
    Ok(())
}

/// The processor time that this process has used, in hundredths of a second; known on Linux only.
fn cpu_ticks() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name may hold spaces; the fields after it do not.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// The memory that this process holds; known on Linux only.
fn memory_kib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
