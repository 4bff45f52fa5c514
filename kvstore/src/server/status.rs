//! What a node says of itself: `KV.STATUS`, `/status`, `/readyz`.

use paxos::{
    Role,
    node::{Group, GroupStatus},
};
use serde::{Deserialize, Serialize};

use super::Shared;

/// How many slots a replica may lag behind in applying and still be called ready.
const MAX_READY_LAG_SLOTS: u64 = 1024;

/// The status of a node. The fields' names are an interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The node.
    pub node_id: u64,
    /// The cluster, as text.
    pub cluster_id: String,
    /// The program's version.
    pub version: String,
    /// The storage engine.
    pub storage: String,
    /// Since the server was started.
    pub uptime_seconds: u64,
    /// Each group's status.
    pub groups: Vec<GroupReport>,
    /// Whether every group knows a leader and keeps up with it.
    pub ready: bool,
    /// What an operator should look at; empty as a rule.
    pub alarms: Vec<String>,
}

/// The status of one group on a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupReport {
    /// The group.
    pub group: u32,
    /// Whether this node leads it.
    pub is_leader: bool,
    /// The leader's node id.
    pub leader: Option<u64>,
    /// The leader's ballot, or the highest promised one without a leader.
    pub ballot: BallotReport,
    /// The chosen watermark.
    pub chosen: u64,
    /// The last slot applied.
    pub applied: u64,
    /// The first slot that the log still holds.
    pub first_slot: u64,
    /// The last slot that holds an entry.
    pub last_slot: u64,
    /// The digest of the state as of `applied`, in hexadecimal: the same on every replica.
    pub digest: Option<String>,
    /// The members in force.
    pub members: Vec<MemberReport>,
}

/// A ballot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BallotReport {
    /// Compared first.
    pub round: u64,
    /// Its owner.
    pub node: u64,
}

/// A member of a group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemberReport {
    /// The node.
    pub id: u64,
    /// Where the other nodes reach it.
    pub address: String,
    /// `voter` or `learner`.
    pub role: String,
    /// The last slot up to which it is known to hold everything; known to the leader.
    pub matched: Option<u64>,
    /// Whether it answers; known to the leader.
    pub alive: Option<bool>,
}

impl Shared {
    /// The status of every group, all asked at once.
    pub(super) async fn statuses(&self) -> Vec<GroupStatus> {
        let asked: Vec<_> = self
            .groups
            .iter()
            .map(|group| {
                let group = group.clone();
                tokio::spawn(async move { group.status().await })
            })
            .collect();
        let mut statuses = Vec::with_capacity(asked.len());
        for (status, group) in asked.into_iter().zip(&self.groups) {
            statuses.push(match status.await {
                Ok(status) => status,
                Err(_) => group.status().await,
            });
        }
        statuses
    }

    /// The status of this node now.
    pub async fn report(&self) -> Report {
        let mut groups = Vec::with_capacity(self.groups.len());
        let mut alarms = Vec::new();
        let mut ready = true;
        for (group, status) in self.groups.iter().zip(self.statuses().await) {
            if let Some(why) = &status.halted {
                alarms.push(format!("group {} has halted: {why}", status.replica.group));
            }
            let lag = status.replica.chosen.since(status.applied);
            ready &= status.replica.leader.is_some() && status.halted.is_none() && lag <= MAX_READY_LAG_SLOTS;
            groups.push(group_report(group, &status));
        }
        Report {
            node_id: self.settings.node.0,
            cluster_id: self.settings.cluster.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            storage: self.settings.storage.clone(),
            uptime_seconds: self.uptime().as_secs(),
            groups,
            ready,
            alarms,
        }
    }
}

fn group_report(group: &Group, status: &GroupStatus) -> GroupReport {
    let replica = &status.replica;
    let is_leader = group.is_leader();
    let this = group.node();
    let ballot = replica.leader.unwrap_or(replica.promised);
    let members = replica.membership.members.iter().map(|member| {
        let peer = replica.peers.get(&member.node);
        let itself = is_leader && member.node == this;
        MemberReport {
            id: member.node.0,
            address: member.address.clone(),
            role: match member.role {
                Role::Voter => "voter".into(),
                Role::Learner => "learner".into(),
            },
            matched: if itself {
                Some(replica.last.0)
            } else {
                peer.map(|peer| peer.matched.0)
            },
            alive: if itself {
                Some(true)
            } else {
                peer.map(|peer| peer.alive)
            },
        }
    });
    GroupReport {
        group: replica.group.0,
        is_leader,
        leader: replica.leader.map(|ballot| ballot.node.0),
        ballot: BallotReport {
            round: ballot.round,
            node: ballot.node.0,
        },
        chosen: replica.chosen.0,
        applied: status.applied.0,
        first_slot: replica.trimmed.next().0,
        last_slot: replica.last.0,
        digest: status.digest.map(|digest| format!("{digest:016x}")),
        members: members.collect(),
    }
}

/// Why a node is not ready, one line each; empty if it is.
pub fn obstacles(report: &Report) -> Vec<String> {
    let mut lines = report.alarms.clone();
    for group in &report.groups {
        if group.leader.is_none() {
            lines.push(format!("group {} has no leader", group.group));
        }
        let lag = group.chosen.saturating_sub(group.applied);
        if lag > MAX_READY_LAG_SLOTS {
            lines.push(format!(
                "group {} lags {lag} slots behind in applying",
                group.group
            ));
        }
    }
    lines
}
