//! Which group a command goes to, and how its failure is told to the client.

use std::time::Duration;

use paxos::{ProposeError, ReadError};

use super::{Shared, writer::WriteError};
use crate::{command::Keys, resp::Args, shards::hash_slot};

/// What is done with commands for a group that another node leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Route {
    /// This node serves them all the same, with the leader's help.
    #[default]
    Forward,
    /// The client is told the leader's address (`-MOVED`), as in Redis Cluster.
    Redirect,
}

impl Shared {
    /// The index of the group that all keys of a command belong to, or the error for the client, such as a redirection
    /// unless the command `stays` here.
    pub(super) fn group_for(&self, keys: Keys, args: Args<'_>, stays: bool) -> Result<usize, String> {
        let mut keys = keys.of(args);
        let first = keys.next().unwrap_or_default();
        let group = self.shards.group_of(first);
        if self.groups.len() > 1 && keys.any(|key| self.shards.group_of(key) != group) {
            return Err("CROSSSLOT Keys in request don't hash to the same group".into());
        }
        if self.settings.route == Route::Redirect
            && !stays
            // The shards deal the keys out to the groups that there are.
            && !self.groups[group].is_leader()
            && let Some(leader) = self.leader(group)
            && let Some(addresses) = self.addresses_of(leader.node)
        {
            return Err(format!("MOVED {} {}", hash_slot(first), addresses.resp));
        }
        Ok(group)
    }

    /// What the client is told of a write that has no reply.
    pub(super) fn write_error(&self, error: &WriteError) -> String {
        match error {
            WriteError::Proposal(error) => self.propose_error(error),
            WriteError::ReplyLost => {
                "UNKNOWN the command was carried out, but its reply is not kept any more".into()
            }
            WriteError::Misfit => {
                "ERR the group does not take this node's commands: the nodes run different versions; the command did \
                 not happen"
                    .into()
            }
        }
    }

    /// What the client is told of a command that was not carried out, or may not have been.
    fn propose_error(&self, error: &ProposeError) -> String {
        match error {
            ProposeError::Overloaded { retry_after } => busy(*retry_after),
            ProposeError::Unknown => {
                "UNKNOWN the outcome is unknown: the command may have happened, or may happen later".into()
            }
            ProposeError::TooLarge { .. } => format!("ERR {error}"),
            ProposeError::Stopped(_) => format!("LOADING {error}; the command did not happen"),
            ProposeError::NotLeader { .. } | ProposeError::Leaving => {
                format!("{} {error}; the command did not happen", self.unavailable())
            }
            _ => self.no_leader("; the command did not happen"),
        }
    }

    /// What the client is told of a read that was not answered.
    pub(super) fn read_error(&self, error: &ReadError) -> String {
        match error {
            ReadError::Overloaded { retry_after } => busy(*retry_after),
            ReadError::Stopped(_) => format!("LOADING {error}"),
            ReadError::Failed(_) => format!("ERR {error}"),
            ReadError::NotLeader { .. } => format!("{} {error}", self.unavailable()),
            _ => self.no_leader(""),
        }
    }

    fn no_leader(&self, consequence: &str) -> String {
        let waited = self.settings.request_timeout.as_millis();
        format!(
            "{} no leader answered within {waited} ms{consequence}",
            self.unavailable()
        )
    }

    /// The code of the error that tells a client to try again soon.
    fn unavailable(&self) -> &'static str {
        match self.settings.route {
            Route::Forward => "LOADING",
            Route::Redirect => "CLUSTERDOWN",
        }
    }
}

fn busy(retry_after: Duration) -> String {
    format!(
        "BUSY overloaded, retry after {} ms",
        retry_after.as_millis().max(1)
    )
}
