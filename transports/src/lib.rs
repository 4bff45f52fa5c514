//! Transports for the `paxos` crate, each behind a cargo feature.
//!
//! | feature | type | for |
//! |---|---|---|
//! | `in-process` (default) | [`in_process::Network`] | tests and embedding: all nodes in one process, with partitions, loss and delay on request |
//! | `tcp` | [`tcp::Tcp`] | nodes on different machines |
//!
//! Both pass `paxos::testing::transport`, the conformance suite of the `Transport` trait.

#![forbid(unsafe_code)]

#[cfg(feature = "in-process")]
pub mod in_process;
#[cfg(feature = "tcp")]
pub mod tcp;

#[cfg(feature = "in-process")]
pub use self::in_process::{InProcess, Network};
#[cfg(feature = "tcp")]
pub use self::tcp::{Tcp, TcpConfig};
