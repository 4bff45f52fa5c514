//! Conformance suites for the plug-in traits, a seeded simulator of whole clusters, and a judge of what clients saw.

pub mod linearizability;
pub mod sim;
pub mod snapshots;
pub mod state_machine;
pub mod storage;
pub mod transport;
