//! A replicated key-value store that ordinary Redis clients use unchanged.
pub mod command;
pub mod machine;
pub mod resp;
pub mod server;
pub mod shards;
