//! Memberships: who belongs to a group, in which role, with which disk.

use alloc::{
    collections::BTreeMap,
    string::{String, ToString},
    vec::Vec,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::planted;
use crate::types::{Ballot, Entry, EntryKind, NodeId, Slot, StorageId};

/// How many removed nodes a membership remembers.
const MAX_REMOVED: usize = 1_024;

/// How many members a group may have.
pub const MAX_MEMBERS: usize = 64;

/// The longest address of a member, in bytes.
pub const MAX_ADDRESS_BYTES: usize = 512;

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
    /// Voters of a higher priority lead rather than others, while they are alive and have the log: then leadership is
    /// handed to them after a while. With equal priorities it stays where it is.
    #[serde(default)]
    pub priority: u8,
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
            priority: 0,
        }
    }

    /// The member with this priority.
    #[must_use]
    pub fn with_priority(self, priority: u8) -> Self {
        Self { priority, ..self }
    }

    /// Whether this disk is the one that the member was admitted with.
    pub fn admits(&self, storage: StorageId) -> bool {
        self.storage.is_none_or(|admitted| admitted == storage) || planted::is("visitor_counts")
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
    /// Members that left with the last change, as they were: when all members are new, nobody else has anything for them to
    /// learn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<Member>,
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
            left: Vec::new(),
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

    /// The members that vote.
    pub fn voting(&self) -> impl Iterator<Item = &Member> + Clone + '_ {
        self.members.iter().filter(|member| member.role == Role::Voter)
    }

    /// The ids of all voters.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.voting().map(|member| member.node)
    }

    /// How many voters make a quorum: more than half of them.
    pub fn quorum(&self) -> usize {
        self.voting().count() / 2 + 1
    }

    /// Whether the voters of whom `has` holds are a quorum; it is asked once for each. Without voters there is none.
    pub fn is_quorum(&self, mut has: impl FnMut(&Member) -> bool) -> bool {
        self.voting().filter(|member| has(member)).count() >= self.quorum()
    }

    /// The highest value that a quorum of the voters has reached, of what `reached` says of each.
    pub(crate) fn reached_by_quorum<T: Ord>(&self, reached: impl Fn(&Member) -> T) -> Option<T> {
        let mut values: Vec<T> = self.voting().map(reached).collect();
        values.sort_unstable();
        values.into_iter().nth_back(self.quorum() - 1)
    }

    /// This membership after some changes, in order; each must be valid after those before it. The rounds of nodes that
    /// are added begin at `first_round`: they may have been members before.
    pub(crate) fn changed(&self, changes: &[Change], first_round: u64) -> Result<Self, ChangeRejection> {
        let mut next = self.clone();
        next.version += 1;
        next.left.clear();
        if changes.is_empty() {
            return Err(ChangeRejection::NothingToChange);
        }
        for change in changes {
            next.apply(change, first_round)?;
        }
        if next.voters().next().is_none() {
            return Err(ChangeRejection::LastVoter);
        }
        if next.members.len() > MAX_MEMBERS {
            return Err(ChangeRejection::TooManyMembers { max: MAX_MEMBERS });
        }
        Ok(next)
    }

    fn apply(&mut self, change: &Change, first_round: u64) -> Result<(), ChangeRejection> {
        match change {
            Change::AddLearner { node, address } => self.add(*node, address, Role::Learner, first_round),
            Change::Promote { node } => self.set_role(*node, Role::Learner, Role::Voter),
            Change::Demote { node } => self.set_role(*node, Role::Voter, Role::Learner),
            Change::Remove { node } => self.remove(*node).map(|_| ()),
            Change::Replace { node, by, address } => {
                if node == by {
                    return Err(ChangeRejection::AlreadyMember { node: *by });
                }
                let role = self.remove(*node)?.role;
                match self.member(*by).map(|member| member.role) {
                    None => return self.add(*by, address, role, first_round),
                    Some(Role::Voter) => return Err(ChangeRejection::AlreadyMember { node: *by }),
                    Some(Role::Learner) => {}
                }
                let member = self.member_mut(*by)?;
                member.role = role;
                if !address.is_empty() {
                    member.address = valid(*by, address)?;
                }
                Ok(())
            }
            Change::SetPriority { node, priority } => {
                self.member_mut(*node)?.priority = *priority;
                Ok(())
            }
            Change::SetAddress { node, address } => {
                self.member_mut(*node)?.address = valid(*node, address)?;
                Ok(())
            }
        }
    }

    pub(crate) fn member_mut(&mut self, node: NodeId) -> Result<&mut Member, ChangeRejection> {
        let mut members = self.members.iter_mut();
        members
            .find(|member| member.node == node)
            .ok_or(ChangeRejection::NoSuchMember { node })
    }

    fn add(
        &mut self,
        node: NodeId,
        address: &str,
        role: Role,
        first_round: u64,
    ) -> Result<(), ChangeRejection> {
        let Err(place) = self.members.binary_search_by_key(&node, |member| member.node) else {
            return Err(ChangeRejection::AlreadyMember { node });
        };
        let address = valid(node, address)?;
        self.removed.retain(|removed| *removed != node);
        self.left.retain(|left| left.node != node);
        let member = Member {
            node,
            storage: None,
            address,
            role,
            // Whether it was a member before is not remembered for ever.
            first_round,
            priority: 0,
        };
        self.members.insert(place, member);
        Ok(())
    }

    fn remove(&mut self, node: NodeId) -> Result<Member, ChangeRejection> {
        let place = self.members.binary_search_by_key(&node, |member| member.node);
        let place = place.map_err(|_| ChangeRejection::NoSuchMember { node })?;
        if self.removed.len() >= MAX_REMOVED {
            self.removed.remove(0);
        }
        self.removed.push(node);
        let member = self.members.remove(place);
        self.left.push(member.clone());
        Ok(member)
    }

    fn set_role(&mut self, node: NodeId, from: Role, to: Role) -> Result<(), ChangeRejection> {
        let member = self.member_mut(node)?;
        if member.role != from {
            return Err(ChangeRejection::WrongRole {
                node,
                role: member.role,
            });
        }
        member.role = to;
        Ok(())
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

fn valid(node: NodeId, address: &str) -> Result<String, ChangeRejection> {
    if address.is_empty() || address.len() > MAX_ADDRESS_BYTES {
        return Err(ChangeRejection::BadAddress { node });
    }
    Ok(address.into())
}

/// One change of a membership. Several may be made in one step.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Change {
    /// A new member, which receives everything and does not vote.
    AddLearner {
        /// Who.
        node: NodeId,
        /// Where it can be reached.
        address: String,
    },
    /// A learner becomes a voter.
    Promote {
        /// Who.
        node: NodeId,
    },
    /// A voter becomes a learner.
    Demote {
        /// Who.
        node: NodeId,
    },
    /// A member leaves the group. Its id may be added again later, with the same disk or an empty one. What its users
    /// have under way ends first; it takes nothing new meanwhile.
    Remove {
        /// Who.
        node: NodeId,
    },
    /// A member leaves and another node takes its role, in one step: best a learner that has everything already.
    Replace {
        /// Who leaves.
        node: NodeId,
        /// Who takes its role: a learner, or a node that is no member yet.
        by: NodeId,
        /// Where it can be reached; empty for a learner whose address stays.
        address: String,
    },
    /// A member is preferred as leader more than before, or less.
    SetPriority {
        /// Who.
        node: NodeId,
        /// See [`Member::priority`].
        priority: u8,
    },
    /// A member is reached elsewhere from now on.
    SetAddress {
        /// Who.
        node: NodeId,
        /// Where.
        address: String,
    },
}

/// Why a membership was certainly not changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ChangeRejection {
    /// The membership is not the one that the change was meant for.
    #[error(
        "the change is for version {expected} of the membership, the present one is {present}; look at it and try again"
    )]
    VersionMismatch {
        /// The version that the caller named.
        expected: u64,
        /// The present version.
        present: u64,
    },
    /// Another change, or a transfer of leadership, is not complete yet.
    #[error("another membership change, or a transfer of leadership, is under way; try again in a moment")]
    UnderWay,
    /// The leader still completes what its predecessors began.
    #[error("the leader is new and still completes what its predecessors began; try again in a moment")]
    NotReady,
    /// No leader is known to this node.
    #[error("no leader is known; try again when one has been elected")]
    NoLeader,
    /// The list of changes is empty.
    #[error("no change was asked for; name at least one")]
    NothingToChange,
    /// The node is no member.
    #[error("node {node} is not a member of the group; list the members and try again")]
    NoSuchMember {
        /// Who.
        node: NodeId,
    },
    /// The node is a member already.
    #[error("node {node} is a member of the group already; promote it, or choose another id")]
    AlreadyMember {
        /// Who.
        node: NodeId,
    },
    /// The member has that role already.
    #[error("node {node} is a {} already", match .role { Role::Voter => "voter", Role::Learner => "learner" })]
    WrongRole {
        /// Who.
        node: NodeId,
        /// Its role.
        role: Role,
    },
    /// No voter would be left.
    #[error("the group would be left without a voter; add and promote another node first")]
    LastVoter,
    /// The address is empty, or longer than [`MAX_ADDRESS_BYTES`].
    #[error("the address of node {node} must have 1 to {MAX_ADDRESS_BYTES} bytes")]
    BadAddress {
        /// Whose.
        node: NodeId,
    },
    /// There would be more members than are allowed.
    #[error("a group has at most {max} members; remove one first")]
    TooManyMembers {
        /// The bound.
        max: usize,
    },
    /// These voters of the new membership do not answer, so that it could choose nothing.
    #[error(
        "{} would have to vote, but the leader does not hear from there; start what is down, or force the change",
        list(nodes)
    )]
    Unreachable {
        /// Who.
        nodes: Vec<NodeId>,
    },
    /// These voters of the new membership lag behind, so that it could choose nothing until they have caught up.
    #[error(
        "{} would have to vote, but has not caught up; wait until it has, or force the change",
        list(nodes)
    )]
    Behind {
        /// Who.
        nodes: Vec<NodeId>,
    },
}

fn list(nodes: &[NodeId]) -> String {
    let mut text = String::new();
    for (place, node) in nodes.iter().enumerate() {
        let before = match place {
            0 => "node ",
            _ => ", node ",
        };
        text.push_str(before);
        text.push_str(&node.to_string());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_was_forgotten_reuses_no_ballot_either() {
        let step = |present: &Membership, change| {
            let next = present.changed(&[change], 7);
            next.expect("the change is valid")
        };
        let add = |node| Change::AddLearner {
            node: NodeId(node),
            address: "somewhere".into(),
        };
        let mut present = Membership::new([Member::voter(NodeId(1), "")]);
        let last = MAX_REMOVED as u64 + 3;
        for node in 2..=last {
            present = step(&present, add(node));
            present = step(&present, Change::Remove { node: NodeId(node) });
        }
        assert!(!present.removed.contains(&NodeId(2)), "it is forgotten");
        present = step(&present, add(last));
        present = step(&present, add(2));
        let member = present.member(NodeId(2)).expect("it was added");
        assert_eq!(member.first_round, 7);
    }
}
