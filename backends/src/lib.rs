//! Storage backends for the `paxos` crate, each behind a cargo feature.
