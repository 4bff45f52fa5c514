//! What a node says of itself: `KV.STATUS`, `/status`, `/readyz`.

use paxos::{
    Member, Role,
    core::{Checkpoint, Standing, Status},
    node::{Group, GroupStatus, Obstacle},
};
use serde::{Deserialize, Serialize};

use super::Shared;
use crate::together::all;

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
    /// Whether every group is in sync.
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
    /// What this node is in the group: `voter`, `learner`, `joining`, `not admitted` or `removed`.
    #[serde(default)]
    pub standing: String,
    /// Whether this node takes part and has about everything.
    #[serde(default)]
    pub in_sync: bool,
    /// Why it is not in sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_sync: Option<String>,
    /// The chosen watermark.
    pub chosen: u64,
    /// The last slot applied.
    pub applied: u64,
    /// How many slots are known to be chosen and not applied yet.
    #[serde(default)]
    pub lag: u64,
    /// As of which slot this node's newest snapshot is; 0 if there is none.
    #[serde(default)]
    pub snapshot: u64,
    /// The snapshot that this node fetches from another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch: Option<FetchReport>,
    /// The first slot that the log still holds.
    pub first_slot: u64,
    /// The last slot that holds an entry.
    pub last_slot: u64,
    /// How many slots of the log are damaged and not repaired yet.
    #[serde(default)]
    pub damaged: u64,
    /// How many damaged slots have been repaired since this node was started.
    #[serde(default)]
    pub repaired: u64,
    /// The digest of the state as of `applied`, in hexadecimal: the same on every replica.
    pub digest: Option<String>,
    /// The running hash over all that was applied up to the slot: the same on every replica that has applied as much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashReport>,
    /// The membership's version; 0 if this node has learned of none yet.
    #[serde(default)]
    pub membership_version: u64,
    /// The members in force.
    pub members: Vec<MemberReport>,
}

/// A snapshot on its way to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchReport {
    /// Who sends it.
    pub from: u64,
    /// As of which slot it is; 0 while that is not known.
    pub upto: u64,
    /// How many bytes of it are here.
    pub done_bytes: u64,
    /// How many it has; 0 while that is not known.
    pub total_bytes: u64,
}

/// What a replica has applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashReport {
    /// Up to which slot.
    pub slot: u64,
    /// In hexadecimal.
    pub value: String,
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The disk that it was admitted with. Without one another disk of it would be taken for this one: it
    /// must not lose it yet.
    #[serde(default)]
    pub disk: Option<String>,
}

impl Shared {
    /// The status of every group, all asked at once.
    pub(super) async fn statuses(&self) -> Vec<GroupStatus> {
        all(self.groups.iter().map(Group::status)).await
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
            if let Some(why) = &status.snapshots_off {
                alarms.push(format!(
                    "group {} takes no snapshots, its log grows: {why}",
                    status.replica.group
                ));
            }
            if status.replica.lacks_snapshot {
                alarms.push(format!(
                    "group {} has lost its snapshots; it fetches one from the other nodes",
                    status.replica.group
                ));
            }
            if status.replica.damaged > 0 {
                alarms.push(format!(
                    "group {} has {} damaged entries in its log; they are being repaired from the other nodes",
                    status.replica.group, status.replica.damaged
                ));
            }
            if let Some(slot) = status.replica.undecided {
                alarms.push(format!(
                    "group {} waits: too few voters can tell what they have accepted at slot {slot}, because records are \
                     damaged; bring the other voters back with their disks",
                    status.replica.group
                ));
            }
            let report = group_report(group, &status);
            ready &= report.in_sync;
            groups.push(report);
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

/// The members in force, and what a leader knows of them.
pub(super) fn member_reports(group: &Group, replica: &Status) -> Vec<MemberReport> {
    let is_leader = group.is_leader();
    let this = group.node();
    let report = |member: &Member| {
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
            disk: member.storage.map(|storage| storage.to_string()),
        }
    };
    replica.membership.members.iter().map(report).collect()
}

fn group_report(group: &Group, status: &GroupStatus) -> GroupReport {
    let replica = &status.replica;
    let ballot = replica.leader.unwrap_or(replica.promised);
    let sync = status.in_sync(MAX_READY_LAG_SLOTS);
    GroupReport {
        group: replica.group.0,
        is_leader: group.is_leader(),
        leader: replica.leader.map(|ballot| ballot.node.0),
        ballot: BallotReport {
            round: ballot.round,
            node: ballot.node.0,
        },
        standing: standing_name(replica.standing).into(),
        in_sync: sync.in_sync,
        out_of_sync: sync.obstacle.as_ref().map(describe),
        chosen: replica.chosen.0,
        applied: status.applied.0,
        lag: sync.lag_slots,
        snapshot: replica.snapshot.0,
        fetch: replica.fetch.map(|fetch| FetchReport {
            from: fetch.peer.0,
            upto: fetch.upto.0,
            done_bytes: fetch.done_bytes,
            total_bytes: fetch.total_bytes,
        }),
        first_slot: replica.trimmed.next().0,
        last_slot: replica.last.0,
        damaged: replica.damaged as u64,
        repaired: replica.repaired,
        digest: status.digest.map(|digest| format!("{digest:016x}")),
        hash: hash_report(replica.checkpoint),
        membership_version: replica.membership.version,
        members: member_reports(group, replica),
    }
}

fn hash_report(checkpoint: Checkpoint) -> Option<HashReport> {
    (checkpoint.hash != 0).then(|| HashReport {
        slot: checkpoint.slot.0,
        value: format!("{:016x}", checkpoint.hash),
    })
}

const fn standing_name(standing: Standing) -> &'static str {
    match standing {
        Standing::Voter => "voter",
        Standing::Learner => "learner",
        Standing::Joining => "joining",
        Standing::NotAdmitted => "not admitted",
        Standing::Removed => "removed",
    }
}

/// Why this node's replica cannot be counted on now, and what to do.
fn describe(obstacle: &Obstacle) -> String {
    match obstacle {
        Obstacle::Halted(why) => format!("it has halted: {why}"),
        Obstacle::Stranded(slot) => format!(
            "it cannot catch up: the other nodes have trimmed what it lacks, up to slot {slot}, and it can take no \
             snapshot from them"
        ),
        Obstacle::Fetching(fetch) => format!(
            "it fetches a snapshot from node {}: {} of {} bytes",
            fetch.peer, fetch.done_bytes, fetch.total_bytes
        ),
        Obstacle::Restoring(upto) => format!("it restores the snapshot as of slot {upto}"),
        Obstacle::Standing(Standing::Joining) => {
            "it has not joined yet: run 'kvstore member add' for this node".into()
        }
        Obstacle::Standing(Standing::NotAdmitted) => {
            "its disk is another one than the cluster knows: it catches up, and votes again when that is done"
                .into()
        }
        Obstacle::Standing(Standing::Removed) => {
            "it was removed from the cluster and can be shut down".into()
        }
        Obstacle::NoLeader => "it knows no leader".into(),
        Obstacle::Behind { lag_slots } => format!("it has {lag_slots} slots to apply"),
        // A reason that this program does not know yet.
        other => format!("{other:?}"),
    }
}

/// Why a node is not ready, one line each; empty if it is.
pub fn obstacles(report: &Report) -> Vec<String> {
    let mut lines = report.alarms.clone();
    for group in &report.groups {
        if let Some(why) = &group.out_of_sync {
            lines.push(format!("group {}: {why}", group.group));
        }
    }
    lines
}
