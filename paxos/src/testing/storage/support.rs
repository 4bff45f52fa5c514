//! Words for the checks.

use std::vec::Vec;

use bytes::Bytes;

use crate::types::{Ballot, Entry, EntryKind, GroupId, HardState, NodeId, Slot, WriteOp};

/// Fails the check with a message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::testing::storage::Failure(std::format!($($message)+)));
        }
    };
}

pub(super) const A: GroupId = GroupId(1);
pub(super) const B: GroupId = GroupId(2);
pub(super) const C: GroupId = GroupId(3);

pub(super) fn ballot(round: u64) -> Ballot {
    Ballot {
        round,
        node: NodeId(round % 3 + 1),
    }
}

pub(super) fn commands(payload: impl Into<Bytes>) -> Entry {
    Entry {
        kind: EntryKind::Commands,
        payload: payload.into(),
    }
}

pub(super) fn accept_entry(group: GroupId, slot: u64, round: u64, entry: Entry) -> WriteOp {
    WriteOp::Accept {
        group,
        slot: Slot(slot),
        ballot: ballot(round),
        entry,
    }
}

/// An entry whose payload shows where it belongs.
pub(super) fn accept(group: GroupId, slot: u64, round: u64) -> WriteOp {
    accept_entry(
        group,
        slot,
        round,
        commands(std::format!("{group}/{slot}@{round}")),
    )
}

pub(super) fn accept_run(group: GroupId, slots: core::ops::RangeInclusive<u64>) -> Vec<WriteOp> {
    slots.map(|slot| accept(group, slot, 1)).collect()
}

pub(super) fn hard_state(group: GroupId, round: u64, chosen: u64) -> WriteOp {
    WriteOp::HardState {
        group,
        state: HardState {
            promised: ballot(round),
            chosen: Slot(chosen),
            membership: Slot(chosen / 2),
            quarantine: None,
        },
    }
}

pub(super) fn trim(group: GroupId, upto: u64) -> WriteOp {
    WriteOp::Trim {
        group,
        upto: Slot(upto),
    }
}

pub(super) fn remove(group: GroupId) -> WriteOp {
    WriteOp::RemoveGroup { group }
}
