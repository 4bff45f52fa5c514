//! A replicated counter in one process: three nodes, a crash, and a count that survives it.
//!
//! `cargo run -p paxos --example counter`

use std::{error::Error, io};

use bytes::Bytes;
use paxos::{
    Chosen, ClusterId, GroupId, MachineError, Member, Membership, Node, NodeId, Read, Slot, SnapshotSource,
    StateMachine, node::Config, storage::Owner,
};
use paxos_backends::Memory;
use paxos_transports::Network;

/// The whole service: every command adds its bytes' number, every reply is the sum.
#[derive(Clone, Default)]
struct Counter {
    applied: Slot,
    sum: u64,
}

impl StateMachine for Counter {
    fn applied(&self) -> Slot {
        self.applied
    }

    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        for command in chosen.commands {
            // What cannot be read is rejected, by a reply: on every replica the same.
            let number = std::str::from_utf8(&command.payload)
                .ok()
                .and_then(|text| text.parse::<u64>().ok());
            replies.push(match number {
                Some(number) => {
                    self.sum = self.sum.wrapping_add(number);
                    self.sum.to_string().into()
                }
                None => Bytes::from_static(b"not a number"),
            });
        }
        self.applied = chosen.upto;
        Ok(())
    }

    fn query(&self, _: Bytes) -> Bytes {
        self.sum.to_string().into()
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Ok(Box::new(self.clone()))
    }

    fn restore(&mut self, upto: Slot, from: &mut dyn io::Read) -> Result<(), MachineError> {
        let mut sum = [0; 8];
        from.read_exact(&mut sum)
            .map_err(|error| MachineError::new(error.to_string()))?;
        *self = Self {
            applied: upto,
            sum: u64::from_le_bytes(sum),
        };
        Ok(())
    }
}

impl SnapshotSource for Counter {
    fn write_to(self: Box<Self>, to: &mut dyn io::Write) -> io::Result<()> {
        to.write_all(&self.sum.to_le_bytes())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let network = Network::new();
    let members = Membership::new([1, 2, 3].map(|id| Member::voter(NodeId(id), "in this process")));
    let mut nodes = Vec::new();
    for id in [1, 2, 3].map(NodeId) {
        let owner = Owner {
            cluster: ClusterId::from_name("counter"),
            node: id,
        };
        let node = Node::spawn(Config::default(), Memory::volatile(owner), network.transport(id)).await?;
        node.add_group(GroupId(1), members.clone(), Counter::default())
            .await?;
        nodes.push(node);
    }
    let groups: Vec<_> = nodes.iter().filter_map(|node| node.group(GroupId(1))).collect();

    for (group, number) in groups.iter().zip(1..) {
        let reply = group.propose(Bytes::from(number.to_string())).await?;
        println!(
            "node {} added {number}: the sum is {}",
            group.node(),
            String::from_utf8_lossy(&reply)
        );
    }

    let mut leader = groups[0].leader();
    let ballot = leader.wait_for(Option::is_some).await?.unwrap_or_default();
    println!(
        "node {} leads with ballot {ballot}; its cable is pulled",
        ballot.node
    );
    network.isolate(ballot.node);
    for group in groups.iter().filter(|group| group.node() != ballot.node) {
        let reply = group.propose(Bytes::from_static(b"10")).await?;
        println!(
            "node {} added 10: the sum is {}",
            group.node(),
            String::from_utf8_lossy(&reply)
        );
    }

    network.heal();
    for group in &groups {
        let sum = group.query(Read::Linearizable, Bytes::new()).await?;
        println!("node {} reads {}", group.node(), String::from_utf8_lossy(&sum));
    }
    for node in nodes {
        node.shutdown().await?;
    }
    Ok(())
}
