//! Snapshots: what stands beside the machine's state in them, and where they are kept.

#[cfg(feature = "std")]
mod files;
#[cfg(feature = "std")]
mod format;
#[cfg(feature = "std")]
mod memory;
#[cfg(feature = "std")]
mod progress;
#[cfg(feature = "std")]
mod store;

use alloc::{collections::BTreeMap, vec::Vec};

use serde::{Deserialize, Serialize};

#[cfg(feature = "std")]
pub use self::{
    files::FileSnapshots,
    memory::MemorySnapshots,
    store::{Chunk, Found, Received, SnapshotError, SnapshotStore},
};
use crate::types::{ChosenMembership, GroupId, Incarnation, NodeId, ProposalId, Slot};

/// Everything beside the machine's state that a replica needs in order to go on from a snapshot: the state as of a slot,
/// in place of all entries up to it.
///
/// The replica makes it ([`Output::TakeSnapshot`](crate::core::Output::TakeSnapshot)); whoever keeps the snapshot keeps
/// it together with the machine's bytes, and gives it back unaltered
/// ([`Start::snapshot`](crate::core::Start::snapshot),
/// [`Input::SnapshotReceived`](crate::core::Input::SnapshotReceived)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SnapshotHeader {
    /// Whose state it is.
    pub group: GroupId,
    /// The state is that after this slot: it holds the effects of all slots up to it, and of no other.
    pub upto: Slot,
    /// The last membership chosen at or below `upto`: the one in force after it.
    pub membership: ChosenMembership,
    /// Which commands the state has seen: the same command in a later slot is a copy.
    pub origins: Origins,
    /// The running hash over everything applied up to `upto` ([`Checkpoint`](crate::core::Checkpoint)); zero if it is not
    /// known.
    pub hash: u64,
}

/// A snapshot's header cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed snapshot header: {0}")]
pub struct MalformedHeader(alloc::string::String);

impl SnapshotHeader {
    /// The header as bytes: a CBOR map by name, so that a later version can add to it.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        ciborium::into_writer(self, &mut bytes).expect("plain fields can be encoded into memory");
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote. All bytes have to be used.
    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedHeader> {
        let mut rest = bytes;
        let header =
            ciborium::from_reader(&mut rest).map_err(|error| MalformedHeader(alloc::format!("{error}")))?;
        if rest.is_empty() {
            Ok(header)
        } else {
            Err(MalformedHeader("bytes follow its fields".into()))
        }
    }
}

/// Which command of each node comes next: the duplicate filter.
///
/// A node numbers its commands 1, 2, 3, ... in each of its lives, and sends them again, in order, until they are
/// applied. A command counts only if it is the next one of its origin's latest life. Every replica filters the same log,
/// so all skip the same commands, and each command takes effect at most once and in its origin's order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Origins(BTreeMap<NodeId, (Incarnation, u64)>);

impl Origins {
    /// Counts the command; false if it must be skipped.
    pub(crate) fn admit(&mut self, id: ProposalId) -> bool {
        let next = id.sequence != 0 && self.next(id.node, id.incarnation) == id.sequence;
        if next {
            self.0.insert(id.node, (id.incarnation, id.sequence));
        }
        next
    }

    /// The next sequence number of a node's life; zero if a later life has been seen.
    pub(crate) fn next(&self, node: NodeId, incarnation: Incarnation) -> u64 {
        match self.0.get(&node) {
            Some((latest, _)) if *latest > incarnation => 0,
            Some((latest, last)) if *latest == incarnation => last.saturating_add(1),
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Member, Membership};

    const fn id(incarnation: u64, sequence: u64) -> ProposalId {
        ProposalId {
            node: NodeId(1),
            incarnation: Incarnation(incarnation),
            sequence,
        }
    }

    #[test]
    fn a_command_counts_once_in_order_and_in_its_origins_latest_life() {
        let mut origins = Origins::default();
        assert!(!origins.admit(id(1, 2)), "the first one is missing");
        assert!(origins.admit(id(1, 1)) && origins.admit(id(1, 2)));
        assert!(!origins.admit(id(1, 2)), "seen already");
        assert!(!origins.admit(id(1, 4)), "3 is missing");
        assert!(origins.admit(id(3, 1)), "a later life begins anew");
        assert!(!origins.admit(id(1, 3)), "an earlier life is over");
        assert_eq!(
            (
                origins.next(NodeId(1), Incarnation(3)),
                origins.next(NodeId(1), Incarnation(1))
            ),
            (2, 0)
        );
    }

    #[test]
    fn a_header_comes_back_as_it_was_and_a_damaged_one_is_refused() {
        let mut origins = Origins::default();
        assert!(origins.admit(id(7, 1)));
        let header = SnapshotHeader {
            group: GroupId(3),
            upto: Slot(1_000),
            membership: ChosenMembership::first(Membership::new([Member::voter(NodeId(1), "here")])),
            origins,
            hash: u64::MAX,
        };
        let bytes = header.encode();
        assert_eq!(SnapshotHeader::decode(&bytes), Ok(header));
        for cut in 0..bytes.len() {
            assert!(SnapshotHeader::decode(&bytes[..cut]).is_err(), "cut after {cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(SnapshotHeader::decode(&longer).is_err());
    }
}
