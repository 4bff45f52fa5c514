//! A client that repeats its commands at other nodes while one after the other is killed, and is never counted twice.
//!
//! `cargo run -p paxos --example exactly_once`

use std::{error::Error, time::Duration};

use paxos::{
    ClusterId, GroupId, Member, Membership, Node, NodeId, Read,
    node::Config,
    sessions::{ClientOptions, Sessions, TypedSessionClient},
    storage::Owner,
    typed::{Typed, TypedGroup, TypedStateMachine},
};
use paxos_backends::Memory;
use paxos_transports::Network;

/// An account. What is paid in twice is wrong, and so is what is not paid in.
#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
struct Account {
    balance: u64,
}

impl TypedStateMachine for Account {
    type Command = u64;
    type Reply = u64;
    type Query = ();
    type Answer = u64;

    fn apply(&mut self, pay_in: u64) -> u64 {
        self.balance += pay_in;
        self.balance
    }

    fn query(&self, (): ()) -> u64 {
        self.balance
    }
}

const GROUP: GroupId = GroupId(1);
const PAYMENTS: u64 = 2_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let network = Network::new();
    let members = Membership::new([1, 2, 3].map(|id| Member::voter(NodeId(id), "in this process")));
    let (mut nodes, mut groups) = (Vec::new(), Vec::new());
    for id in [1, 2, 3].map(NodeId) {
        let owner = Owner {
            cluster: ClusterId::from_name("exactly once"),
            node: id,
        };
        let node = Node::spawn(Config::default(), Memory::volatile(owner), network.transport(id)).await?;
        // The account knows nothing of sessions.
        let machine = Sessions::new(Typed::new(Account::default()));
        groups.push(node.add_group(GROUP, members.clone(), machine).await?);
        nodes.push(node);
    }
    let mut leader = groups[0].leader();
    leader.wait_for(Option::is_some).await?;

    let options = ClientOptions {
        attempt: Duration::from_millis(500),
        ..ClientOptions::default()
    };
    let client = TypedSessionClient::<Account, _>::new(groups.clone(), options);
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                for _ in 0..PAYMENTS / 20 {
                    client.call(&1).await?;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok::<_, paxos::sessions::SessionError>(())
            })
        })
        .collect();

    // The node that the client uses dies, with everything that it has not answered yet.
    tokio::time::sleep(Duration::from_millis(200)).await;
    println!("node 1 is killed in the middle of it");
    drop(nodes.remove(0));
    network.isolate(NodeId(1));
    for client in clients {
        client.await??;
    }
    let group = TypedGroup::<Account>::new(groups.remove(1));
    let balance = group.query(Read::Linearizable, &()).await?;
    println!("{PAYMENTS} payments of 1 were answered; the balance is {balance}");
    assert_eq!(balance, PAYMENTS);
    for node in nodes {
        node.shutdown().await?;
    }
    Ok(())
}
