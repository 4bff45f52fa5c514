//! Three nodes with one group each, unless a test wants it otherwise.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use paxos::{Group, GroupId, Member, Membership, Node, NodeError, NodeId, Read, node::Config};

use crate::{
    doubles::{Disk, Network, Snapshots},
    list::List,
};

pub(crate) const GROUP: GroupId = GroupId(1);

pub(crate) fn config() -> Config {
    Config {
        storage_thread: false,
        seed: Some(1),
        ..Config::default()
    }
}

pub(crate) fn members(nodes: impl IntoIterator<Item = u64>) -> Membership {
    Membership::new(
        nodes
            .into_iter()
            .map(|node| Member::voter(NodeId(node), format!("node-{node}"))),
    )
}

pub(crate) struct Cluster {
    pub(crate) network: Network,
    pub(crate) disks: BTreeMap<u64, Disk>,
    pub(crate) nodes: BTreeMap<u64, Node>,
    pub(crate) config: Config,
    /// Snapshots are taken when there are stores for them.
    pub(crate) snapshots: BTreeMap<u64, Snapshots>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_with(config()).await
    }

    pub(crate) async fn start_with(config: Config) -> Self {
        Self::start_on(config, BTreeMap::new()).await
    }

    /// With a snapshot store for each node.
    pub(crate) async fn start_with_snapshots(config: Config) -> Self {
        let snapshots = (1..=3).map(|node| (node, Snapshots::default())).collect();
        Self::start_on(config, snapshots).await
    }

    async fn start_on(config: Config, snapshots: BTreeMap<u64, Snapshots>) -> Self {
        let disks = (1..=3).map(|node| (node, Disk::new(node))).collect();
        let mut cluster = Self {
            network: Network::default(),
            disks,
            nodes: BTreeMap::new(),
            config,
            snapshots,
        };
        for node in 1..=3 {
            cluster.start_node(node).await;
        }
        cluster
    }

    pub(crate) async fn start_node(&mut self, node: u64) {
        let started = self.spawn_node(node).await.unwrap();
        started
            .add_group(GROUP, members(1..=3), List::default())
            .await
            .unwrap();
        self.nodes.insert(node, started);
    }

    pub(crate) async fn spawn_node(&self, node: u64) -> Result<Node, NodeError> {
        let builder =
            Node::builder(self.disks[&node].clone(), self.network.transport()).config(self.config.clone());
        match self.snapshots.get(&node) {
            Some(snapshots) => builder.snapshots(snapshots.clone()).spawn().await,
            None => builder.spawn().await,
        }
    }

    /// As `kill -9`: nothing is closed.
    pub(crate) async fn crash(&mut self, node: u64) {
        drop(self.nodes.remove(&node));
        // The tasks end at their next turn.
        tokio::task::yield_now().await;
    }

    pub(crate) fn group(&self, node: u64) -> Group {
        self.nodes[&node].group(GROUP).unwrap()
    }

    /// The leader that some node sees.
    pub(crate) async fn leader(&self) -> u64 {
        loop {
            for node in self.nodes.keys() {
                if self.group(*node).is_leader() {
                    return *node;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        *self.nodes.keys().find(|node| **node != leader).unwrap()
    }

    pub(crate) async fn list(&self, node: u64) -> String {
        let list = self
            .group(node)
            .query(Read::Linearizable, Bytes::new())
            .await
            .unwrap();
        String::from_utf8(list.to_vec()).unwrap()
    }
}

/// A node that is the only voter of its group.
pub(crate) async fn alone(config: Config, disk: &Disk) -> (Node, Group) {
    let network = Network::default();
    let node = Node::spawn(config, disk.clone(), network.transport())
        .await
        .unwrap();
    let group = node.add_group(GROUP, members([1]), List::default());
    let group = group.await.unwrap();
    (node, group)
}

pub(crate) fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}
