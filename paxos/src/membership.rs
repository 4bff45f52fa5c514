//! Memberships: who belongs to a group, in which role, with which disk.

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::types::{Ballot, Entry, EntryKind, NodeId, Slot, StorageId};

/// What a member may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Votes and receives.
    #[default]
    Voter,
    /// Receives only.
    Learner,
}

/// One member of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub node: NodeId,
    /// The disk that the member was admitted with; `None` admits any, until the leader has heard the member and
    /// records its disk.
    pub storage: Option<StorageId>,
    /// Where its transport listens; what it means is the transport's business.
    pub address: String,
    /// Voter or learner.
    pub role: Role,
    /// The member's own ballots are of this round or above: an earlier disk of the same node may have used lower ones
    /// that nobody remembers.
    #[serde(default)]
    pub first_round: u64,
}

impl Member {
    /// A voter of a cluster's first membership: any disk is admitted.
    pub fn voter(node: NodeId, address: impl Into<String>) -> Self {
        Self {
            node,
            storage: None,
            address: address.into(),
            role: Role::Voter,
            first_round: 0,
        }
    }

    /// Whether this disk is the one that the member was admitted with.
    pub fn admits(&self, storage: StorageId) -> bool {
        self.storage.is_none_or(|admitted| admitted == storage)
    }
}

/// The members of a group from some slot on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Membership {
    /// Counts the changes; the first membership has version 1. Version 0 has no members: nothing is known yet.
    pub version: u64,
    /// Sorted by node, without duplicates (see [`Membership::new`]).
    pub members: Vec<Member>,
    /// Nodes that were members once, the latest last; only so many are remembered.
    #[serde(default)]
    pub removed: Vec<NodeId>,
}

impl Membership {
    /// A first membership (version 1) of these members, sorted by node; of two with one id the later one counts.
    pub fn new(members: impl IntoIterator<Item = Member>) -> Self {
        let by_node: BTreeMap<NodeId, Member> =
            members.into_iter().map(|member| (member.node, member)).collect();
        Self {
            version: 1,
            members: by_node.into_values().collect(),
            removed: Vec::new(),
        }
    }

    /// The member with this id.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.iter().find(|member| member.node == node)
    }

    /// Whether `node`, with the disk `storage`, may vote.
    pub fn may_vote(&self, node: NodeId, storage: StorageId) -> bool {
        self.member(node)
            .is_some_and(|member| member.role == Role::Voter && member.admits(storage))
    }

    /// The ids of all voters.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.members
            .iter()
            .filter(|member| member.role == Role::Voter)
            .map(|member| member.node)
    }

    /// How many voters make a quorum: more than half of them.
    pub fn quorum(&self) -> usize {
        self.voters().count() / 2 + 1
    }

    /// Whether the voters of whom `has` holds are a quorum; it is asked once for each. Without voters there is none.
    pub fn is_quorum(&self, mut has: impl FnMut(&Member) -> bool) -> bool {
        let voters = self.members.iter().filter(|member| member.role == Role::Voter);
        voters.filter(|member| has(member)).count() >= self.quorum()
    }

    /// The entry that makes this the group's membership.
    pub fn to_entry(&self) -> Entry {
        let mut payload = Vec::new();
        ciborium::into_writer(self, &mut payload).expect("plain fields can be encoded into memory");
        Entry {
            kind: EntryKind::Membership,
            payload: Bytes::from(payload),
        }
    }

    /// The membership that an entry holds; `None` if it is no such entry, cannot be read, or leaves no voter.
    pub fn from_entry(entry: &Entry) -> Option<Self> {
        if entry.kind != EntryKind::Membership {
            return None;
        }
        let mut rest = &entry.payload[..];
        let membership: Self = ciborium::from_reader(&mut rest).ok()?;
        let sorted = membership
            .members
            .windows(2)
            .all(|pair| pair[0].node < pair[1].node);
        (rest.is_empty() && sorted && membership.voters().next().is_some()).then_some(membership)
    }
}

/// A membership that is chosen, with its place in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChosenMembership {
    /// The slot of its entry: it is in force from the next one on. [`Slot::ZERO`] for a group's first membership.
    pub at: Slot,
    /// A ballot at or above the one at which the entry was chosen. Nobody leads under this membership with a lower one:
    /// what was proposed for the slots above `at` with lower ballots may have been proposed for another membership, and
    /// must never win over what is proposed under this one.
    pub ballot: Ballot,
    /// The membership.
    pub membership: Membership,
}

impl ChosenMembership {
    /// A group's first membership.
    pub const fn first(membership: Membership) -> Self {
        Self {
            at: Slot::ZERO,
            ballot: Ballot::ZERO,
            membership,
        }
    }
}
