//! Whether a node is in step with a group, and if not, why.

use std::string::String;

use super::GroupStatus;
use crate::{
    core::{FetchStatus, Standing},
    types::{NodeId, Slot},
};

/// Whether a node is in step with a group; see [`GroupStatus::in_sync`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InSync {
    /// Nothing is in the way.
    pub in_sync: bool,
    /// What is in the way, the gravest if it is more than one thing.
    pub obstacle: Option<Obstacle>,
    /// Who leads, as far as this node knows.
    pub leader: Option<NodeId>,
    /// The highest chosen watermark that this node has heard of.
    pub known: Slot,
    /// The last slot that the state machine has applied.
    pub applied: Slot,
    /// How many slots lie between the two.
    pub lag_slots: u64,
}

/// Why a node is not in step with a group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obstacle {
    /// The group has stopped or halted on this node, for this reason.
    Halted(String),
    /// Peers have trimmed what this node lacks, and it has no place for a snapshot: as of which slot theirs is.
    Stranded(Slot),
    /// The node fetches a snapshot from a peer.
    Fetching(FetchStatus),
    /// The state machine is being restored from the snapshot as of this slot.
    Restoring(Slot),
    /// The node is no member with a part in the group: not yet, or not any more.
    Standing(Standing),
    /// The node knows no leader.
    NoLeader,
    /// So many slots are known to be chosen and not applied yet: more than the bound.
    Behind {
        /// How many.
        lag_slots: u64,
    },
}

impl GroupStatus {
    /// Whether the node follows (or is) the group's leader and has applied all that it knows to be chosen, but for
    /// `max_lag_slots` at the most. What a node that is cut off has not heard of, it cannot know: it says so by knowing no
    /// leader, up to two election timeouts later. A linearizable read is the way to be sure.
    pub fn in_sync(&self, max_lag_slots: u64) -> InSync {
        let replica = &self.replica;
        let lag_slots = replica.known.since(self.applied);
        let obstacle = self.obstacle(lag_slots, max_lag_slots);
        InSync {
            in_sync: obstacle.is_none(),
            obstacle,
            leader: replica.leader.map(|ballot| ballot.node),
            known: replica.known,
            applied: self.applied,
            lag_slots,
        }
    }

    fn obstacle(&self, lag_slots: u64, max_lag_slots: u64) -> Option<Obstacle> {
        let replica = &self.replica;
        if let Some(why) = &self.halted {
            return Some(Obstacle::Halted(why.clone()));
        }
        if let Some(slot) = replica.stranded {
            return Some(Obstacle::Stranded(slot));
        }
        if let Some(fetch) = replica.fetch {
            return Some(Obstacle::Fetching(fetch));
        }
        if let Some(upto) = self.restoring {
            return Some(Obstacle::Restoring(upto));
        }
        if !matches!(replica.standing, Standing::Voter | Standing::Learner) {
            return Some(Obstacle::Standing(replica.standing));
        }
        if replica.leader.is_none() {
            return Some(Obstacle::NoLeader);
        }
        (lag_slots > max_lag_slots).then_some(Obstacle::Behind { lag_slots })
    }
}
