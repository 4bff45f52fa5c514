//! A replicated key-value store that ordinary Redis clients use unchanged.
//!
//! | module | what it holds |
//! |---|---|
//! | [`cli`] | the command line: `serve`, `demo`, the verbs that talk to a cluster |
//! | [`server`] | connections, pipelines, routing to groups, commands that the server answers |
//! | [`command`] | the table of commands, and their form on the log |
//! | [`machine`] | the replicated state and the operations on it |
//! | [`resp`] | the Redis protocol |
//! | [`shards`] | which group serves which key |
//! | [`performance`] | where the time of one command goes; no code |
//! | [`http`], [`client`], [`bench`](mod@bench) | the operators' HTTP, a client, a load generator |

#![forbid(unsafe_code)]
#![allow(clippy::cast_possible_wrap, reason = "lengths and counts are far below 2^63")]

pub mod bench;
pub mod cli;
pub mod client;
pub mod command;
pub mod http;
pub mod machine;
#[doc = include_str!("performance.md")]
pub mod performance {}
pub mod resp;
pub mod server;
pub mod shards;
mod together;

/// Whether this is `host:port`.
pub(crate) fn is_address(text: &str) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && is_port(port))
}
