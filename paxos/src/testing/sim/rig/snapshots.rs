//! The snapshots of a [`Rig`], and its state machine, which is all commands that it has applied.

use std::{format, vec::Vec};

use bytes::{Buf, Bytes};

use super::{super::files::Stored, Rig};
use crate::{
    core::{Input, Output},
    types::Slot,
};

/// How many snapshots a node keeps.
const KEPT_SNAPSHOTS: usize = 2;

/// The state of the machine, which is all commands that it has applied.
fn freeze(applied: &[Bytes]) -> Vec<u8> {
    let sized = |command: &Bytes| [&(command.len() as u32).to_le_bytes()[..], command].concat();
    applied.iter().flat_map(sized).collect()
}

pub(super) fn thaw(mut state: Bytes) -> Vec<Bytes> {
    let mut applied = Vec::new();
    while !state.is_empty() {
        let length = state.get_u32_le() as usize;
        applied.push(state.split_to(length));
    }
    applied
}

impl Rig {
    pub(super) fn carry_out_snapshot(&mut self, node: u64, output: Output) {
        let seat = self.seat(node);
        match output {
            Output::TakeSnapshot(header) => {
                assert_eq!(header.upto, seat.applied_upto, "it is the state of now");
                seat.saving = Some((header, freeze(&seat.applied)));
                self.save(node);
            }
            Output::InstallSnapshot { upto } => {
                assert!(upto > seat.applied_upto, "never backwards");
                let state = seat
                    .files
                    .open(upto)
                    .expect("a snapshot is kept from its receipt until it is installed");
                seat.applied = thaw(state);
                seat.applied_upto = upto;
                self.answer_reads(node);
            }
            Output::LoadChunk {
                to,
                upto,
                offset,
                max_bytes,
            } => {
                let (total, data) = if seat.snapshots_unreadable {
                    (0, Bytes::new())
                } else {
                    seat.files.read(upto, offset, max_bytes)
                };
                let input = Input::ChunkLoaded {
                    to,
                    upto,
                    total,
                    offset,
                    data,
                };
                seat.answers.push_back(input);
            }
            Output::StoreChunk {
                upto,
                total,
                offset,
                data,
            } => {
                let input = match seat.files.store(upto, total, offset, &data, KEPT_SNAPSHOTS) {
                    Stored::Whole(header) if seat.snapshots_held => {
                        seat.received = Some(header);
                        return;
                    }
                    Stored::Upto(next_offset) => Input::ChunkStored { upto, next_offset },
                    Stored::Whole(header) => Input::SnapshotReceived(header),
                    Stored::Damaged => Input::SnapshotFailed { upto },
                };
                seat.answers.push_back(input);
            }
            other => unreachable!("{other:?} is no output of snapshots"),
        }
    }

    /// Writes the frozen state, unless snapshots are held.
    fn save(&mut self, node: u64) {
        let seat = self.seat(node);
        if !seat.snapshots_held
            && let Some((header, state)) = seat.saving.take()
        {
            seat.files.save(&header, &state, KEPT_SNAPSHOTS);
            let upto = header.upto;
            seat.answers.push_back(Input::SnapshotTaken { upto });
        }
    }

    /// From now on no snapshot that this node takes becomes durable, and none that it receives is reported whole, until
    /// [`Self::release_snapshots`].
    pub fn hold_snapshots(&mut self, node: u64) {
        self.seat(node).snapshots_held = true;
    }

    /// The snapshot that this node has taken becomes durable, the one that it has received is whole, and all later ones
    /// are at once.
    pub fn release_snapshots(&mut self, node: u64) {
        self.seat(node).snapshots_held = false;
        self.save(node);
        let seat = self.seat(node);
        let received = seat.received.take().map(Input::SnapshotReceived);
        seat.answers.extend(received);
        self.take_answers(node);
    }

    /// From now on this node cannot read its snapshots when a peer asks for them.
    pub fn spoil_snapshots(&mut self, node: u64) {
        self.seat(node).snapshots_unreadable = true;
    }

    /// A node that is down loses its snapshots but for those as of `kept` and before.
    pub fn lose_snapshots(&mut self, node: u64, kept: Slot) {
        self.say(&format!("n{node} loses its snapshots above {kept}"));
        let acceptor = self.acceptor(node);
        let seat = self.seat(node);
        assert!(seat.replica.is_none(), "a living node has read it");
        seat.files.lose_above(kept);
        let newest = seat.files.newest();
        self.oracle.lost_snapshots(acceptor, newest);
    }

    /// As of which slot the newest snapshot on this node's disk is.
    pub fn snapshot(&self, node: u64) -> Slot {
        self.seats[&node].files.newest()
    }
}
