//! Transports for the `paxos` crate, each behind a cargo feature.
