//! Two services in one group: accounts, and an audit that counts what is paid, both as of one order.
//!
//! `cargo run -p paxos --example router`

use std::error::Error;

use paxos::{
    ClusterId, Group, GroupId, Member, Membership, Node, NodeId, Read,
    node::Config,
    router::{MachineId, RoutedGroup, Router},
    storage::Owner,
    typed::{Typed, TypedStateMachine},
};
use paxos_backends::Memory;
use paxos_transports::Network;

/// Adds up what it is told.
#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
struct Sum(u64);

impl TypedStateMachine for Sum {
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

const ACCOUNT: MachineId = MachineId(1);
const AUDIT: MachineId = MachineId(2);

fn machines() -> Router {
    Router::new()
        .machine(ACCOUNT, Typed::new(Sum::default()))
        .machine(AUDIT, Typed::new(Sum::default()))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let network = Network::new();
    let members = Membership::new([1, 2, 3].map(|id| Member::voter(NodeId(id), "in this process")));
    let routes = machines().routes();
    let (mut nodes, mut groups) = (Vec::new(), Vec::<Group>::new());
    for id in [1, 2, 3].map(NodeId) {
        let owner = Owner {
            cluster: ClusterId::from_name("router"),
            node: id,
        };
        let node = Node::spawn(Config::default(), Memory::volatile(owner), network.transport(id)).await?;
        groups.push(node.add_group(GroupId(1), members.clone(), machines()).await?);
        nodes.push(node);
    }

    let account = RoutedGroup::new(groups[0].clone(), routes.clone(), ACCOUNT)?;
    let audit = RoutedGroup::new(groups[1].clone(), routes.clone(), AUDIT)?;
    for amount in [5_u8, 7, 9] {
        // Small numbers are one byte in CBOR.
        account.propose(&[amount]).await?;
        audit.propose(&[1]).await?;
    }
    for (name, handle) in [("account", &account), ("audit", &audit)] {
        let answer = handle.query(Read::Linearizable, &[0xf6]).await?;
        println!("{name}: {answer:?}");
    }

    let unknown = RoutedGroup::new(groups[2].clone(), routes.clone(), MachineId(3));
    println!("refused at once: {}", unknown.map(drop).unwrap_err());
    // Past the handle: as a node of another version would propose it.
    let answer = groups[2].propose(vec![3, 1].into()).await?;
    println!("skipped by all: {}", routes.reply(&answer).unwrap_err());
    println!("and the group goes on: {:?}", account.propose(&[1]).await?);
    for node in nodes {
        node.shutdown().await?;
    }
    Ok(())
}
