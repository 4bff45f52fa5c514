//! Replicated, strongly consistent, highly available services by Multi-Paxos.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

pub mod core;
mod error;
#[cfg(paxos_planted)]
pub mod planted;
#[cfg(not(paxos_planted))]
mod planted;
mod types;

#[cfg(feature = "runtime")]
pub mod metrics;
#[cfg(feature = "runtime")]
pub mod node;
#[cfg(feature = "std")]
pub mod record;
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
pub mod wire;

#[cfg(feature = "runtime")]
pub use self::node::{Group, Node, NodeError, Read};
pub use self::{error::*, types::*};
#[cfg(feature = "std")]
pub use self::{
    state_machine::*,
    storage::{Storage, StorageError},
    transport::{Transport, TransportError},
};
