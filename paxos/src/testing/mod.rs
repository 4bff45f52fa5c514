//! Conformance suites for the plug-in traits, and a seeded simulator of whole clusters.

pub mod sim;
pub mod state_machine;
pub mod storage;
pub mod transport;
