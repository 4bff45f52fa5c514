//! Replicated, strongly consistent, highly available services by Multi-Paxos.
//!
//! Write a service as a deterministic [`StateMachine`]: commands in, replies out. This crate runs copies of it on
//! several nodes, agrees on the order of the commands, makes each one durable on a majority before it is answered, and
//! goes on while a minority of the nodes is gone. A single-machine service becomes one that survives machines.
//!
//! Storage, network and service are plug-ins: the traits [`Storage`], [`Transport`] and [`StateMachine`]. Several of the
//! first two come with the project (`paxos-backends`: memory, a log, LevelDB, SQLite; `paxos-transports`: in-process, TCP);
//! your own are told by a conformance suite ([`testing`]) whether they are right.
//!
//! # Three nodes
//!
//! ```
//! use paxos::{ClusterId, GroupId, Member, Membership, Node, NodeId, Read, node, storage::Owner};
//! use paxos::typed::{Typed, TypedGroup, TypedStateMachine};
//! use paxos_backends::Memory;
//! use paxos_transports::Network;
//!
//! #[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
//! struct Counter(i64);
//!
//! impl TypedStateMachine for Counter {
//!     type Command = i64;
//!     type Reply = i64;
//!     type Query = ();
//!     type Answer = i64;
//!
//!     fn apply(&mut self, add: i64) -> i64 {
//!         self.0 += add;
//!         self.0
//!     }
//!
//!     fn query(&self, (): ()) -> i64 {
//!         self.0
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster = ClusterId::from_name("example");
//! let members = Membership::new([1, 2, 3].map(|id| Member::voter(NodeId(id), "in this process")));
//! let network = Network::new();
//! let (mut nodes, mut counters) = (Vec::new(), Vec::new());
//! for id in [1, 2, 3].map(NodeId) {
//!     let storage = Memory::volatile(Owner { cluster, node: id });
//!     let node = Node::spawn(node::Config::default(), storage, network.transport(id)).await?;
//!     let group = node.add_group(GroupId(1), members.clone(), Typed::new(Counter::default())).await?;
//!     counters.push(TypedGroup::<Counter>::new(group));
//!     nodes.push(node);
//! }
//! assert_eq!(counters[0].propose(&5).await?, 5); // on any node: it finds the leader
//! assert_eq!(counters[1].propose(&2).await?, 7);
//! network.isolate(NodeId(1)); // one node of three may go
//! assert_eq!(counters[2].propose(&1).await?, 8);
//! assert_eq!(counters[1].query(Read::Linearizable, &()).await?, 8); // sees every acknowledged write
//! for node in nodes {
//!     node.shutdown().await?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Map
//!
//! | module | what |
//! |---|---|
//! | [`node`] | the tokio driver: [`Node`], its [`Group`]s, proposals, reads, status (feature `runtime`, default) |
//! | [`typed`] | typed commands and replies over bytes |
//! | [`sessions`] | exactly-once commands round any machine: clients may repeat them at any node, after any failure |
//! | [`router`] | several state machines in one group, by machine id |
//! | [`metrics`] | what is counted and timed, and Prometheus' text |
//! | [`storage`], [`transport`], [`StateMachine`] | the plug-in traits, with their contracts |
//! | [`snapshot`] | states of machines, on disks and between nodes |
//! | [`wire`], [`record`] | frames between nodes, and records on disks |
//! | [`core`](mod@core) | the protocol, pure: no IO, clock, thread or randomness of its own; `no_std` |
//! | [`testing`] | conformance suites for the traits, and a seeded simulator of whole clusters (feature `testing`) |
//!
//! # What is promised
//!
//! An acknowledged command is durable on a majority of the voters' disks, is applied on every replica exactly once and
//! in one order, and is seen by every [`Read::Linearizable`] that begins afterwards. Every proposal ends exactly once:
//! with its reply, with an error that says that it certainly did not happen, or with [`ProposeError::Unknown`]. Any
//! minority of the voters may crash, hang, or be cut off, at any moment; messages may be lost, repeated and reordered.
//! Nodes are not expected to lie.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

pub mod core;
#[cfg(feature = "std")]
#[doc(hidden)]
pub mod directory;
mod error;
mod membership;
#[cfg(paxos_planted)]
pub mod planted;
#[cfg(not(paxos_planted))]
mod planted;
pub mod snapshot;
mod types;

#[cfg(feature = "runtime")]
pub mod metrics;
#[cfg(feature = "runtime")]
pub mod node;
#[cfg(feature = "std")]
pub mod record;
#[cfg(feature = "runtime")]
pub mod router;
#[cfg(feature = "std")]
pub mod sessions;
#[cfg(feature = "std")]
mod state_machine;
#[cfg(feature = "std")]
pub mod storage;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "std")]
pub mod transport;
#[cfg(feature = "runtime")]
pub mod typed;
#[cfg(feature = "std")]
mod varint;
#[cfg(feature = "std")]
pub mod wire;

#[cfg(feature = "runtime")]
pub use self::node::{Group, Node, NodeError, Read};
pub use self::{
    error::*,
    snapshot::{MalformedHeader, Origins, SnapshotHeader},
    types::*,
};
#[cfg(feature = "std")]
pub use self::{
    snapshot::{FileSnapshots, MemorySnapshots, SnapshotError, SnapshotStore},
    state_machine::*,
    storage::{Storage, StorageError},
    transport::{Transport, TransportError},
};

/// The examples of the project's front page compile and run.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
