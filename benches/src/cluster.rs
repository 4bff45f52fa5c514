//! How many writes does a whole cluster answer in a second? Three nodes of one process, each with a thread of its own for
//! everything but its store, as in a process of its own. Generic: a plug-in author runs it on his own.
//!
//! ```no_run
//! use criterion::Criterion;
//! use paxos_benches::cluster::{Wire, answered_writes};
//! # fn open_mine(owner: paxos::storage::Owner) -> Box<dyn paxos::Storage> { unimplemented!() }
//! let mut criterion = Criterion::default();
//! answered_writes(&mut criterion, "mine", Wire::Tcp, open_mine);
//! ```

use std::{
    cell::LazyCell,
    fmt, io,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use paxos::{
    Chosen, ClusterId, GroupId, MachineError, Member, Membership, Node, NodeId, Slot, SnapshotSource,
    StateMachine, Storage, Transport,
    node::{Config, Group},
    storage::Owner,
};
use paxos_transports::{Network, Tcp, TcpConfig};
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// How many nodes the cluster has.
const NODES: u64 = 3;
const GROUP: GroupId = GroupId(1);
/// How large a command is, in bytes.
pub const COMMAND_BYTES: usize = 256;
/// How many clients write at once, each its next command when the last one has been answered.
pub const CLIENTS: [u64; 3] = [1, 64, 256];

/// What the nodes are connected by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Queues in memory.
    InProcess,
    /// TCP over loopback.
    Tcp,
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InProcess => "in process",
            Self::Tcp => "tcp",
        })
    }
}

/// Counts; whatever it costs is not the machine's.
#[derive(Default)]
struct Counter(Slot);

impl StateMachine for Counter {
    fn applied(&self) -> Slot {
        self.0
    }

    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        self.0 = chosen.upto;
        replies.extend(chosen.commands.iter().map(|_| Bytes::new()));
        Ok(())
    }

    fn query(&self, _: Bytes) -> Bytes {
        Bytes::new()
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Ok(Box::new(Self(self.0)))
    }

    fn restore(&mut self, upto: Slot, _: &mut dyn io::Read) -> Result<(), MachineError> {
        self.0 = upto;
        Ok(())
    }
}

impl SnapshotSource for Counter {
    fn write_to(self: Box<Self>, _: &mut dyn io::Write) -> io::Result<()> {
        Ok(())
    }
}

/// A node and the thread that it lives on.
struct NodeThread {
    group: Group,
    runtime: Handle,
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl NodeThread {
    fn start(storage: impl Storage, transport: impl Transport, members: Membership) -> mpsc::Receiver<Self> {
        let (ready, started) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let (itself, own) = mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be built");
            let handle = runtime.handle().clone();
            runtime.block_on(async move {
                let node = Node::spawn(Config::default(), storage, transport)
                    .await
                    .expect("the node starts");
                let group = node
                    .add_group(GROUP, members, Counter::default())
                    .await
                    .expect("the group starts");
                let thread = own.recv().expect("whoever starts the thread sends its handle");
                let _ = ready.send(Self {
                    group,
                    runtime: handle,
                    stop,
                    thread,
                });
                let _ = stopped.await;
                node.shutdown().await.expect("the node stops");
            });
        });
        let _ = itself.send(thread);
        started
    }
}

/// A cluster that serves one group.
pub struct Cluster(Vec<NodeThread>);

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cluster").field(&self.0.len()).finish()
    }
}

impl Cluster {
    /// Starts the nodes on empty stores, and waits for a leader.
    pub fn start<S: Storage>(wire: Wire, mut open: impl FnMut(Owner) -> S) -> Self {
        let ids = || (1..=NODES).map(NodeId);
        let members = |address: &dyn Fn(NodeId) -> String| {
            Membership::new(ids().map(|id| Member::voter(id, address(id))))
        };
        let mut open = |node| {
            open(Owner {
                cluster: ClusterId::from_name("cluster bench"),
                node,
            })
        };
        let starting: Vec<_> = match wire {
            Wire::InProcess => {
                let network = Network::new();
                let members = members(&|_| "in this process".into());
                let start = |id| NodeThread::start(open(id), network.transport(id), members.clone());
                ids().map(start).collect()
            }
            Wire::Tcp => {
                let bind = |_| Tcp::bind(TcpConfig::new("127.0.0.1:0")).expect("a free port");
                let transports: Vec<Tcp> = ids().map(bind).collect();
                let members = members(&|id| transports[id.0 as usize - 1].local_addr().to_string());
                let start = |(id, transport)| NodeThread::start(open(id), transport, members.clone());
                ids().zip(transports).map(start).collect()
            }
        };
        let nodes = starting
            .into_iter()
            .map(|node| node.recv().expect("the node starts"));
        let cluster = Self(nodes.collect());
        while cluster.leader().is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        cluster
    }

    fn leader(&self) -> Option<&NodeThread> {
        self.0.iter().find(|node| node.group.is_leader())
    }

    /// So many clients of the leader write so many commands each; says how long that took.
    pub fn write(&self, clients: u64, commands: u64) -> Duration {
        let leader = self.leader().unwrap_or(&self.0[0]);
        let (done, all_done) = mpsc::channel();
        let start = Instant::now();
        for _ in 0..clients {
            let (group, done) = (leader.group.clone(), done.clone());
            leader.runtime.spawn(async move {
                let command = Bytes::from(vec![b'v'; COMMAND_BYTES]);
                for _ in 0..commands {
                    group
                        .propose(command.clone())
                        .await
                        .expect("the write is answered");
                }
                drop(done);
            });
        }
        drop(done);
        // Ends when the last client does.
        let nothing: Result<(), _> = all_done.recv();
        debug_assert!(nothing.is_err());
        start.elapsed()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in self.0.drain(..) {
            let _ = node.stop.send(());
            let _ = node.thread.join();
        }
    }
}

/// Measures a backend with each number of [`CLIENTS`]; `open` opens an empty store for a node. The result counts answered
/// writes per second; one iteration is one write of each client.
pub fn answered_writes<S: Storage>(
    criterion: &mut Criterion,
    name: &str,
    wire: Wire,
    open: impl FnMut(Owner) -> S,
) {
    // Started only if any of it is to be measured.
    let cluster = LazyCell::new(|| Cluster::start(wire, open));
    let mut group = criterion.benchmark_group(format!("cluster: answered writes, {name}, {wire}"));
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    for clients in CLIENTS {
        group.throughput(Throughput::Elements(clients));
        group.bench_function(format!("{clients} clients"), |bencher| {
            // Else criterion takes the start for a part of the first write, and measures few of them.
            LazyCell::force(&cluster);
            bencher.iter_custom(|rounds| cluster.write(clients, rounds));
        });
    }
    group.finish();
}

#[cfg(test)]
mod tests {
    use paxos_backends::Memory;

    use super::*;

    #[test]
    fn every_client_is_answered_on_either_wire() {
        for wire in [Wire::InProcess, Wire::Tcp] {
            let cluster = Cluster::start(wire, Memory::volatile);
            assert!(cluster.write(7, 3) > Duration::ZERO);
            let applied = cluster.leader().map(|leader| {
                let group = leader.group.clone();
                leader
                    .runtime
                    .block_on(async move { group.status().await.applied })
            });
            assert!(
                applied.is_some_and(|applied| applied > Slot::ZERO),
                "{wire}: {applied:?}"
            );
        }
    }
}
