//! `KV.LEADER`, `KV.SNAPSHOT`, and what they share with `KV.MEMBER`: what operators ask of a cluster's groups, at any of its nodes.
//!
//! Each acts on all groups, or on the one that `GROUP n` names, on all at once; the reply is a JSON list that says for
//! each group what came out of it.

use std::time::Duration;

use paxos::{NodeId, SnapshotError, TransferError, core::TransferRejection, node::Group};
use serde::{Deserialize, Serialize};

use super::{Shared, status::MemberReport};
use crate::{
    resp::{Args, is, number},
    together::all,
};

/// What came out for one group. The fields' names are an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The group.
    pub group: u32,
    /// Whether it is now as it was asked for.
    pub ok: bool,
    /// Whether it was this request that changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<bool>,
    /// The membership's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The members, where they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberReport>,
    /// Who leads the group, as far as the node that was asked knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<u64>,
    /// The slot as of which there is a snapshot now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<u64>,
    /// What was in the way, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// What was in the way, and what to do, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What is in the way of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// No leader is known: try again, perhaps elsewhere.
    NoLeader,
    /// Something else goes on; try again in a moment.
    Busy,
    /// The node is not what the request needs, or is not there.
    NotFound,
    /// The node that is needed does not answer.
    Unreachable,
    /// The node that is needed has not caught up.
    Behind,
    /// The node was removed: it does not come back by itself.
    Removed,
    /// It will not be done.
    Refused,
    /// It may have been done.
    Unknown,
}

impl Outcome {
    pub(super) fn refused(group: &Group, reason: Reason, error: impl Into<String>) -> Self {
        Self {
            reason: Some(reason),
            error: Some(error.into()),
            ..Self::of(group)
        }
    }

    pub(super) fn of(group: &Group) -> Self {
        Self {
            group: group.id().0,
            leader: group.leader().borrow().map(|ballot| ballot.node.0),
            ..Self::default()
        }
    }
}

pub(super) fn node_id(arg: &[u8]) -> Result<NodeId, String> {
    let id = number::integer(arg).and_then(|id| u64::try_from(id).ok());
    id.filter(|id| *id > 0)
        .map(NodeId)
        .ok_or_else(|| "ERR a node's id is a number above 0".to_owned())
}

/// What stands behind a request's own arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    group: Option<u32>,
    pub(super) force: bool,
}

impl Options {
    pub(super) fn parse(args: Args<'_>, first: usize) -> Result<Self, String> {
        let mut options = Self::default();
        let mut rest = args.from(first);
        while let Some(option) = rest.next() {
            if is(option, "GROUP") {
                let group = rest.next().and_then(number::integer);
                let group = group.and_then(|group| u32::try_from(group).ok());
                options.group = Some(group.ok_or("ERR GROUP needs a group's number, from 0")?);
            } else if is(option, "FORCE") {
                options.force = true;
            } else {
                return Err("ERR syntax error".into());
            }
        }
        Ok(options)
    }

    pub(super) fn groups(self, shared: &Shared) -> Result<Vec<&Group>, String> {
        let wanted = |group: &&Group| self.group.is_none_or(|wanted| group.id().0 == wanted);
        let groups: Vec<&Group> = shared.groups.iter().filter(wanted).collect();
        if groups.is_empty() {
            return Err(format!(
                "ERR there is no such group; the groups are 0 to {}",
                shared.groups.len().saturating_sub(1)
            ));
        }
        Ok(groups)
    }
}

/// `KV.LEADER [GROUP n]`, `KV.LEADER TRANSFER id [GROUP n]`
pub(super) async fn leader(shared: &Shared, args: Args<'_>) -> Result<Vec<Outcome>, String> {
    if !is(args.get(1), "TRANSFER") {
        let groups = Options::parse(args, 1)?.groups(shared)?;
        return Ok(groups.into_iter().map(told_leader).collect());
    }
    let to = node_id(args.get(2))?;
    let groups = Options::parse(args, 3)?.groups(shared)?;
    let patience = shared.settings.request_timeout;
    Ok(all(groups.into_iter().map(|group| transfer(group, to, patience))).await)
}

fn told_leader(group: &Group) -> Outcome {
    let outcome = Outcome::of(group);
    if outcome.leader.is_none() {
        return Outcome::refused(group, Reason::NoLeader, "no leader is known");
    }
    Outcome { ok: true, ..outcome }
}

async fn transfer(group: &Group, to: NodeId, patience: Duration) -> Outcome {
    let transferred = tokio::time::timeout(patience, group.transfer_leadership(to)).await;
    let error = match transferred {
        Ok(Ok(leader)) => {
            return Outcome {
                ok: true,
                leader: Some(leader.0),
                ..Outcome::of(group)
            };
        }
        Ok(Err(error)) => error,
        Err(_) => {
            let why = "no answer in time; leadership may have moved, look with 'kvstore leader'";
            return Outcome::refused(group, Reason::Unknown, why);
        }
    };
    let reason = match &error {
        TransferError::Rejected(rejection) => match rejection {
            TransferRejection::NoLeader => Reason::NoLeader,
            TransferRejection::NotVoter { .. } => Reason::NotFound,
            TransferRejection::NotAlive { .. } => Reason::Unreachable,
            TransferRejection::TimedOut => Reason::Unknown,
            TransferRejection::NotReady { .. }
            | TransferRejection::UnderWay { .. }
            | TransferRejection::TooMany => Reason::Busy,
            _ => Reason::Refused,
        },
        TransferError::Overloaded { .. } => Reason::Busy,
        _ => Reason::Refused,
    };
    Outcome::refused(group, reason, error.to_string())
}

/// `KV.SNAPSHOT SAVE [GROUP n]`
pub(super) async fn snapshot(shared: &Shared, args: Args<'_>) -> Result<Vec<Outcome>, String> {
    if !is(args.get(1), "SAVE") {
        return Err("ERR unknown subcommand. Try KV.SNAPSHOT SAVE.".into());
    }
    let groups = Options::parse(args, 2)?.groups(shared)?;
    Ok(all(groups.into_iter().map(save)).await)
}

async fn save(group: &Group) -> Outcome {
    let (reason, why) = match group.save_snapshot().await {
        Ok(upto) => {
            return Outcome {
                ok: true,
                snapshot: Some(upto.0),
                ..Outcome::of(group)
            };
        }
        Err(error @ (SnapshotError::Unready { .. } | SnapshotError::Overloaded { .. })) => {
            (Reason::Busy, error)
        }
        Err(error) => (Reason::Refused, error),
    };
    Outcome::refused(group, reason, why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_say_only_what_there_is_to_say() {
        let outcome = Outcome {
            group: 3,
            ok: true,
            leader: Some(2),
            ..Outcome::default()
        };
        let text = serde_json::to_string(&outcome).unwrap();
        assert_eq!(text, r#"{"group":3,"ok":true,"leader":2}"#);
        assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), outcome);
    }
}
