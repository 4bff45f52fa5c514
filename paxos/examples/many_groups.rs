//! Many groups on three nodes: keys are spread over the groups, each with its own log, leader and state, and all of
//! them share one store and one transport per node. Tells how many commands a second went through, in memory.
//!
//! `cargo run --release -p paxos --example many_groups [groups] [commands]`

use std::{error::Error, time::Instant};

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
    let groups: u32 = arguments.next().map_or(Ok(20), |text| text.parse())?;
    let commands: usize = arguments.next().map_or(Ok(20_000), |text| text.parse())?;

    let network = Network::new();
    let members = Membership::new([1, 2, 3].map(|id| Member::voter(NodeId(id), "in this process")));
    let mut nodes = Vec::new();
    for id in [1, 2, 3].map(NodeId) {
        let owner = Owner {
            cluster: ClusterId::from_name("many groups"),
            node: id,
        };
        let node = Node::spawn(Config::default(), Memory::volatile(owner), network.transport(id)).await?;
        for group in (1..=groups).map(GroupId) {
            node.add_group(group, members.clone(), Typed::new(Counter::default()))
                .await?;
        }
        nodes.push(node);
    }
    for group in nodes.iter().flat_map(Node::groups) {
        group.leader().wait_for(Option::is_some).await?;
    }
    for node in &nodes {
        let led = node.groups().iter().filter(|group| group.is_leader()).count();
        println!("node {} leads {led} of {groups} groups", node.identity().node);
    }

    let began = Instant::now();
    let clients: Vec<_> = (0..groups as usize)
        .map(|index| {
            let group = nodes[index % nodes.len()].groups().swap_remove(index);
            tokio::spawn(client(group, commands / groups.max(1) as usize))
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
