//! A router in a cluster: nothing that names an unknown machine wedges a group (W6).

use std::io;

use bytes::Bytes;
use paxos::{
    Chosen, ClusterId, Group, GroupId, MachineError, Member, Membership, Node, NodeId, Read, Slot,
    SnapshotSource, StateMachine,
    node::Config,
    router::{MachineId, RoutedGroup, Router, RouterError},
    storage::Owner,
};
use paxos_backends::Memory;
use paxos_transports::Network;

/// Counts its commands, and rejects those that say so.
#[derive(Default)]
struct Counter(Slot, u64);

impl StateMachine for Counter {
    fn applied(&self) -> Slot {
        self.0
    }

    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        for command in chosen.commands {
            if &command.payload[..] == b"no" {
                replies.push(Bytes::from_static(b"rejected"));
                continue;
            }
            self.1 += 1;
            replies.push(self.1.to_string().into());
        }
        self.0 = chosen.upto;
        Ok(())
    }

    fn query(&self, _: Bytes) -> Bytes {
        self.1.to_string().into()
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Err(MachineError::new("none"))
    }

    fn restore(&mut self, _: Slot, _: &mut dyn io::Read) -> Result<(), MachineError> {
        Err(MachineError::new("none"))
    }
}

const FIRST: MachineId = MachineId(1);
const SECOND: MachineId = MachineId(2);

fn machines() -> Router {
    Router::new()
        .machine(FIRST, Counter::default())
        .machine(SECOND, Counter::default())
}

#[tokio::test(start_paused = true)]
async fn commands_for_unknown_machines_and_rejected_ones_never_wedge_the_group() {
    let network = Network::new();
    let members = Membership::new([1, 2, 3].map(|id| Member::voter(NodeId(id), "")));
    let (mut nodes, mut groups, mut routes) = (Vec::new(), Vec::<Group>::new(), Vec::new());
    for id in [1, 2, 3].map(NodeId) {
        let cluster = ClusterId::from_name("router");
        let storage = Memory::volatile(Owner { cluster, node: id });
        let config = Config {
            storage_thread: false,
            seed: Some(1),
            ..Config::default()
        };
        let node = Node::spawn(config, storage, network.transport(id)).await.unwrap();
        let router = machines();
        routes.push(router.routes());
        groups.push(node.add_group(GroupId(1), members.clone(), router).await.unwrap());
        nodes.push(node);
    }
    for (group, routes) in groups.iter().zip(&routes) {
        // Not asked for by a handle, but as a node of another version would propose it.
        for bytes in [&[9_u8, 1][..], &[0xff; 12], &[]] {
            let answer = group.propose(Bytes::copy_from_slice(bytes)).await.unwrap();
            assert!(routes.reply(&answer).is_err());
        }
        let first = RoutedGroup::new(group.clone(), routes.clone(), FIRST).unwrap();
        assert_eq!(first.propose(b"no").await.unwrap(), "rejected");
    }
    for (place, (group, routes)) in groups.iter().zip(&routes).enumerate() {
        let second = RoutedGroup::new(group.clone(), routes.clone(), SECOND).unwrap();
        assert_eq!(second.propose(b"yes").await.unwrap(), (place + 1).to_string());
        assert_eq!(
            second.query(Read::Linearizable, b"").await.unwrap(),
            (place + 1).to_string()
        );
        assert_eq!(routes.skipped(), 9, "each replica has skipped them all");
        assert_eq!(group.halted(), None);
        let unknown = RoutedGroup::new(group.clone(), routes.clone(), MachineId(9));
        assert!(matches!(
            unknown,
            Err(RouterError::UnknownMachine(MachineId(9), _))
        ));
    }
}
