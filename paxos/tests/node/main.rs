//! The tokio driver with real replicas, on disks and a network that do what the test tells them to.
//!
//! All tests but those that need several threads run with a paused clock: timeouts take no time, and nothing depends on
//! the speed of the machine.

mod cluster;
mod discovery;
mod doubles;
mod failures;
mod groups;
mod leadership;
#[path = "../common/list.rs"]
mod list;
mod membership;
mod overload;
mod proposals;
mod running;
mod snapshots;
mod storm;
