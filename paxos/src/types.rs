//! The words of the protocol: identities, slots, ballots, entries, memberships.
//!
//! Everything here is plain data without IO, shared by the protocol core, the plug-in traits and the drivers.

use alloc::vec::Vec;
use core::{fmt, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use crate::membership::{
    Change, ChangeRejection, ChosenMembership, MAX_ADDRESS_BYTES, MAX_MEMBERS, Member, Membership, Role,
};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

id! {
    /// One process's membership in a cluster. Stable over restarts; its address may change. Zero is no node.
    NodeId(u64)
}
id! {
    /// One independent Paxos log, with its own members, leader and state machine. A node hosts many.
    GroupId(u32)
}

/// Names a cluster, so that nodes of two clusters never mix. Every frame and every store carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub u64);

impl ClusterId {
    /// The cluster id that belongs to a name: the 64-bit FNV-1a hash of it.
    ///
    /// ```
    /// use paxos::ClusterId;
    /// assert_eq!(ClusterId::from_name("orders"), ClusterId::from_name("orders"));
    /// assert_ne!(ClusterId::from_name("orders"), ClusterId::from_name("invoices"));
    /// ```
    pub fn from_name(name: &str) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in name.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Self(hash)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Names one store (one disk), drawn at random when the store is created: a node that comes back with an empty disk
/// has another storage id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StorageId(pub u64);

impl fmt::Display for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Which cluster, which node, which disk: recorded in every store, carried by every frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster that the store belongs to.
    pub cluster: ClusterId,
    /// The node that the store belongs to.
    pub node: NodeId,
    /// The store itself.
    pub storage: StorageId,
}

/// A position in a group's log. The first entry is at slot 1; [`Slot::ZERO`] is "before the first".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u64);

impl Slot {
    /// Before the first entry of a log.
    pub const ZERO: Self = Self(0);
    /// Beyond every entry of a log.
    pub const MAX: Self = Self(u64::MAX);

    /// The slot after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The slot before this one; [`Slot::ZERO`] stays.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The slot `count` after this one.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// How far this slot is above `other`; zero when it is not above it.
    #[must_use]
    pub const fn since(self, other: Self) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A proposal number: totally ordered, owned by one node, used in one incarnation of it only.
///
/// The default ballot is below every real one. A leader's ballot is its fencing token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// Compared first.
    pub round: u64,
    /// The owner; breaks ties.
    pub node: NodeId,
}

impl Ballot {
    /// Below every real ballot.
    pub const ZERO: Self = Self {
        round: 0,
        node: NodeId(0),
    };
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.round, self.node)
    }
}

/// A life of a node: larger each time it opens its store, and durable before the node says anything in that life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// Who proposed a command: the node, its life, and the command's number in that life (from 1, without gaps).
///
/// It rides in the entry, so a node knows its own commands by it and never by comparing values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProposalId {
    /// The node whose user proposed it.
    pub node: NodeId,
    /// The life of that node's replica: of the node, and within that counted up when the group is removed from the node
    /// and added again.
    pub incarnation: Incarnation,
    /// 1, 2, 3, ... within that life and group.
    pub sequence: u64,
}

/// What kind of thing an [`Entry`] holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum EntryKind {
    /// Nothing: fills a hole that a new leader found.
    #[default]
    Noop = 0,
    /// A batch of users' commands (see [`crate::core::batch`]).
    Commands = 1,
    /// A [`Membership`], in CBOR.
    Membership = 2,
}

impl EntryKind {
    /// The kind for a stored byte; `None` for a byte that this version does not know.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Noop),
            1 => Some(Self::Commands),
            2 => Some(Self::Membership),
            _ => None,
        }
    }
}

/// What a slot holds. Cloning is cheap: the payload is shared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Entry {
    /// How to read the payload.
    pub kind: EntryKind,
    /// The same bytes on the wire and on the disk; empty for a no-op.
    pub payload: Bytes,
}

impl Entry {
    /// An entry that holds nothing.
    pub const NOOP: Self = Self {
        kind: EntryKind::Noop,
        payload: Bytes::new(),
    };

    /// What the entry counts for in every bound that is in bytes: its payload and a fixed overhead.
    pub fn size(&self) -> usize {
        self.payload.len() + Self::OVERHEAD
    }

    /// What an entry costs beside its payload, in bytes, for every bound.
    pub const OVERHEAD: usize = 64;
}

/// An entry that an acceptor accepted, or was told to be chosen, with the ballot of its proposal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Accepted {
    /// The ballot at which the entry was proposed.
    pub ballot: Ballot,
    /// The entry itself.
    pub entry: Entry,
}

/// The part of an acceptor's state that is not an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HardState {
    /// The highest ballot ever promised. Never goes down; learning never touches it.
    pub promised: Ballot,
    /// Every slot up to this one holds its chosen entry in this store. May lag behind what the replica knows.
    pub chosen: Slot,
    /// The last slot up to `chosen` that holds a membership: the one in force after `chosen`. [`Slot::ZERO`] while the
    /// group's first membership is.
    pub membership: Slot,
    /// Set once and for good when the replica was found to hold something else than its group.
    pub quarantine: Option<Quarantine>,
}

/// Why a replica takes no part in its group any more, until its node begins anew with an empty store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Quarantine {
    /// A quorum of the voters has applied something else than this replica in the slots up to this one.
    Diverged {
        /// The first slot that is known to be affected; those before it may be, too.
        slot: Slot,
    },
    /// The store has lost what an earlier life of the node had said to be durable in it.
    RolledBack {
        /// The highest slot that the store had held.
        slot: Slot,
    },
}

impl fmt::Display for Quarantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Diverged { slot } => write!(
                f,
                "this replica is quarantined: its running hash at slot {slot} is not that of a majority, so its log or its \
                 state was altered"
            )?,
            Self::RolledBack { slot } => write!(
                f,
                "this replica is quarantined: its store once held everything up to slot {slot} and has gone back to an \
                 older state"
            )?,
        }
        write!(
            f,
            "; move the node's data directory away and start the node again, it is admitted anew when it has caught up"
        )
    }
}

/// One change to a store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WriteOp {
    /// Replaces the group's hard state. Creates the group if it is new.
    HardState {
        /// Whose.
        group: GroupId,
        /// The new state. Its `promised` is never below the stored one.
        state: HardState,
    },
    /// Sets what a slot holds, whatever it held before. Gaps between slots are legal.
    Accept {
        /// Whose log.
        group: GroupId,
        /// Where; at least 1.
        slot: Slot,
        /// The ballot of the proposal.
        ballot: Ballot,
        /// What was accepted.
        entry: Entry,
    },
    /// Drops all entries up to and including `upto`. Slots above it stay.
    Trim {
        /// Whose log.
        group: GroupId,
        /// The last slot to drop.
        upto: Slot,
    },
    /// Drops a group with all its state, as if it had never been there.
    RemoveGroup {
        /// Which.
        group: GroupId,
    },
}

impl WriteOp {
    /// The group that the change belongs to.
    pub const fn group(&self) -> GroupId {
        match self {
            Self::HardState { group, .. }
            | Self::Accept { group, .. }
            | Self::Trim { group, .. }
            | Self::RemoveGroup { group } => *group,
        }
    }
}

/// Changes that become durable together or not at all, applied in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    /// Whether the batch, and every batch before it, must be durable when `write` returns.
    pub sync: bool,
    /// The changes, of any number of groups, in order.
    pub ops: Vec<WriteOp>,
}

/// A point on a monotonic clock of the driver's choice; only differences mean anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub Duration);

impl Time {
    /// The time `after` later.
    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(after))
    }

    /// How long ago `earlier` was; zero if it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0.as_secs(), self.0.subsec_micros())
    }
}
