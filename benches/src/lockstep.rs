//! Three replicas of one group in one thread: messages arrive at once, writes are durable at once, nothing is lost.
//! What is left is the cost of the protocol itself.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use paxos::{
    ChosenMembership, ClusterId, GroupId, HardState, Identity, Incarnation, Member, Membership, NodeId, Slot,
    StorageId, Time,
    core::{Config, Input, Message, Output, PersistId, Phase, Replica, Start, Token},
};

/// Replicas, and what is on the way between them.
#[derive(Debug)]
pub struct Lockstep {
    replicas: BTreeMap<NodeId, Replica>,
    messages: VecDeque<(NodeId, NodeId, Message)>,
    writes: VecDeque<(NodeId, PersistId)>,
    now: Time,
    last_token: u64,
    /// Commands applied by the node that proposed them.
    pub answered: u64,
    /// Commands applied, over all nodes.
    pub applied: u64,
}

impl Lockstep {
    /// `nodes` replicas, one of which leads already.
    pub fn new(nodes: u64, config: &Config) -> Self {
        let membership = Membership::new((1..=nodes).map(|node| Member::voter(NodeId(node), "")));
        let replica = |node| {
            let start = Start {
                group: GroupId(1),
                identity: Identity {
                    cluster: ClusterId(1),
                    node: NodeId(node),
                    storage: StorageId(node),
                },
                incarnation: Incarnation(1),
                seed: node,
                membership: ChosenMembership::first(membership.clone()),
                hard_state: HardState::default(),
                trimmed: Slot::ZERO,
                tail: Vec::new(),
                damaged: Vec::new(),
                snapshot: None,
            };
            (NodeId(node), Replica::new(config.clone(), start, Time::default()))
        };
        let mut cluster = Self {
            replicas: (1..=nodes).map(replica).collect(),
            messages: VecDeque::new(),
            writes: VecDeque::new(),
            now: Time::default(),
            last_token: 0,
            answered: 0,
            applied: 0,
        };
        while cluster.leader().is_none() {
            cluster.pass(Duration::from_millis(10));
        }
        cluster
    }

    /// The node that leads.
    pub fn leader(&self) -> Option<NodeId> {
        let leads = |replica: &Replica| replica.status(self.now).phase == Phase::Leader;
        self.replicas
            .iter()
            .find(|(_, replica)| leads(replica))
            .map(|(node, _)| *node)
    }

    /// Lets time pass and everything happen.
    pub fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        let nodes: Vec<NodeId> = self.replicas.keys().copied().collect();
        for node in nodes {
            self.step(node, Input::Tick);
            self.poll(node);
        }
        self.settle();
    }

    /// Proposes a burst of commands at a node; they happen when the cluster [settles](Self::settle).
    pub fn propose(&mut self, node: NodeId, commands: usize, command: &Bytes) {
        for _ in 0..commands {
            self.last_token += 1;
            self.step(
                node,
                Input::Propose {
                    token: Token(self.last_token),
                    command: command.clone(),
                },
            );
        }
        self.poll(node);
    }

    fn step(&mut self, node: NodeId, input: Input) {
        if let Some(replica) = self.replicas.get_mut(&node) {
            replica.step(self.now, input);
        }
    }

    fn poll(&mut self, node: NodeId) {
        let Some(replica) = self.replicas.get_mut(&node) else {
            return;
        };
        while let Some(output) = replica.poll() {
            match output {
                Output::Send { to, message } => {
                    self.messages
                        .extend(to.into_iter().map(|to| (node, to, message.clone())));
                }
                Output::Persist { id, .. } => self.writes.push_back((node, id)),
                Output::Apply(entry) => {
                    self.applied += entry.commands.len() as u64;
                    self.answered += entry
                        .commands
                        .iter()
                        .filter(|command| command.token.is_some())
                        .count() as u64;
                }
                Output::Alarm(alarm) => panic!("{alarm:?}"),
                _ => {}
            }
        }
    }

    /// Delivers messages and finishes writes until there are none. Everything that waits for one node is stepped
    /// before it is polled.
    pub fn settle(&mut self) {
        // A little time passes, so that timers run as they would.
        self.now = self.now.plus(Duration::from_micros(10));
        while !self.messages.is_empty() || !self.writes.is_empty() {
            let mut touched = std::collections::BTreeSet::new();
            for (node, id) in std::mem::take(&mut self.writes) {
                touched.insert(node);
                self.step(node, Input::Persisted(id));
            }
            for (from, to, message) in std::mem::take(&mut self.messages) {
                touched.insert(to);
                self.step(
                    to,
                    Input::Message {
                        from,
                        storage: StorageId(from.0),
                        message,
                    },
                );
            }
            for node in touched {
                self.poll(node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_every_node_are_applied_everywhere() {
        let mut cluster = Lockstep::new(3, &Config::default());
        let command = Bytes::from_static(b"command");
        for node in 1..=3 {
            cluster.propose(NodeId(node), 10, &command);
        }
        cluster.settle();
        for _ in 0..20 {
            cluster.pass(Duration::from_millis(10));
        }
        assert_eq!((cluster.answered, cluster.applied), (30, 90));
    }
}
