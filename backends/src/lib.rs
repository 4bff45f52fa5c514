//! Storage backends for the `paxos` crate, each behind a cargo feature.
//!
//! | backend | feature | survives | for |
//! |---|---|---|---|
//! | [`Memory`] | `memory` (default) | nothing | tests, and services that may lose everything |
//! | `Wal` | `wal` | `kill -9`, power failure | the fastest one: a log of our own |
//! | `LevelDb` | `leveldb` | `kill -9`, power failure | an LSM tree in a known format |
//! | `Sqlite` | `sqlite` | `kill -9`, power failure | data that any SQLite tool can look into |
//!
//! Which of those that are built in is used is decided at run time, by [`open`]. All keep many groups in one store,
//! share one durable sync between everything in a write, check every record's checksum, and report what is damaged,
//! missing or out of date. Directories belong to one node of one cluster, and to one process at a time.
//!
//! ```
//! use paxos::{ClusterId, NodeId, storage::Owner};
//! use paxos_backends::Backend;
//!
//! let owner = Owner { cluster: ClusterId::from_name("orders"), node: NodeId(1) };
//! let backend: Backend = "memory".parse()?;
//! let storage = paxos_backends::open(backend, "data".as_ref(), owner)?;
//! # drop(storage);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod backend;
#[cfg(any(feature = "leveldb", feature = "sqlite", feature = "wal"))]
mod durable;
#[cfg(any(feature = "leveldb", feature = "sqlite", feature = "wal"))]
mod files;
#[cfg(feature = "leveldb")]
mod leveldb;
#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "wal")]
mod wal;

pub use self::backend::{Backend, UnknownBackend, open};
#[cfg(feature = "leveldb")]
pub use self::leveldb::LevelDb;
#[cfg(feature = "memory")]
pub use self::memory::{Memory, MemoryDisk};
#[cfg(feature = "sqlite")]
pub use self::sqlite::Sqlite;
#[cfg(feature = "wal")]
pub use self::wal::{Wal, WalOptions};
