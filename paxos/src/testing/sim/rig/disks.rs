//! What happens to the disks of a [`Rig`].

use std::{format, vec::Vec};

use bytes::Bytes;

use super::{
    super::{
        disk::{Contents, DiskState},
        files::Files,
    },
    GROUP, Rig,
};
use crate::{
    core::{Input, Replica},
    types::{Slot, WriteOp},
};

/// What a node's disk held once.
#[derive(Clone, Debug)]
pub struct DiskCopy {
    contents: Contents,
    files: Files,
    incarnation: u64,
}

/// What a living node's memory and disk held once.
#[derive(Clone, Debug)]
pub struct NodeCopy {
    disk: DiskCopy,
    replica: Replica,
    applied_upto: Slot,
    applied: Vec<Bytes>,
}

impl Rig {
    /// Kills a node and gives it an empty disk.
    pub fn lose_disk(&mut self, node: u64) {
        self.crash(node);
        let seat = self.seat(node);
        seat.disks_lost += 1;
        seat.altered = false;
        seat.disk.replace();
        seat.files = Files::default();
    }

    /// A node that is down: the last byte of what its disk holds in this slot changes, with a checksum to match. From now
    /// on the oracles do not look at it, and alarms are [noted](Self::alarms).
    pub fn alter(&mut self, node: u64, slot: Slot) {
        let seat = self.seat(node);
        assert!(seat.replica.is_none(), "a living node does not read it again");
        seat.altered = true;
        let altered = seat.disk.alter(GROUP, slot);
        assert!(altered, "the slot holds bytes");
    }

    /// What is durable on a node's disk.
    pub fn copy_disk(&mut self, node: u64) -> DiskCopy {
        let seat = self.seat(node);
        DiskCopy {
            contents: seat.disk.durable.clone(),
            files: seat.files.clone(),
            incarnation: seat.disk.incarnation,
        }
    }

    /// What a living node holds in memory and on its disk.
    pub fn copy_node(&mut self, node: u64) -> NodeCopy {
        let disk = self.copy_disk(node);
        let seat = self.seat(node);
        NodeCopy {
            disk,
            replica: seat.replica.clone().expect("only a living node is copied"),
            applied_upto: seat.applied_upto,
            applied: seat.applied.clone(),
        }
    }

    /// A node that is down: its disk goes back to what it held once, but for the number of its lives, which follows the
    /// clock. From now on as after [`Self::alter`].
    pub fn set_disk_back(&mut self, node: u64, to: &DiskCopy) {
        let seat = self.seat(node);
        assert!(seat.replica.is_none(), "a living node does not read it again");
        seat.altered = true;
        seat.disk.set_back(&to.contents);
        seat.files = to.files.clone();
    }

    /// As [`Self::set_disk_back`] with a clock that stands behind the number of its lives, so that this goes back, too.
    pub fn set_disk_and_clock_back(&mut self, node: u64, to: &DiskCopy) {
        self.set_disk_back(node, to);
        self.seat(node).disk.incarnation = to.incarnation;
    }

    /// A node goes back to what its memory and its disk held once, and lives on from there: a virtual machine that is
    /// set back. From now on as after [`Self::alter`].
    pub fn set_node_back(&mut self, node: u64, to: &NodeCopy) {
        self.crash(node);
        self.set_disk_and_clock_back(node, &to.disk);
        let seat = self.seat(node);
        seat.replica = Some(to.replica.clone());
        seat.applied_upto = to.applied_upto;
        seat.applied.clone_from(&to.applied);
    }

    /// A node that is down has its group removed: its disk forgets it, and it begins anew as one that joins. From now on
    /// as after [`Self::alter`].
    pub fn remove_group(&mut self, node: u64) {
        let seat = self.seat(node);
        assert!(seat.replica.is_none(), "a living node does not read it again");
        seat.altered = true;
        seat.joins = true;
        seat.disk.replace();
        seat.files = Files::default();
    }

    /// The record of a slot on a node's disk goes bad.
    pub fn damage(&mut self, node: u64, slot: u64) {
        self.say(&format!("the disk of n{node} is damaged at slot {slot}"));
        let seat = self.seat(node);
        assert!(
            seat.durable().entries.contains_key(&Slot(slot)),
            "there is a record"
        );
        seat.disk.damage(GROUP, Slot(slot));
    }

    /// The record of a slot that went bad on a node's disk can be read again, as it was once.
    pub fn recover(&mut self, node: u64, slot: u64, from: &DiskCopy) {
        self.say(&format!("the disk of n{node} gives slot {slot} back"));
        self.seat(node).disk.recover(GROUP, Slot(slot), &from.contents);
    }

    /// From now on nothing that this node writes becomes durable, until [`Self::release_disk`].
    pub fn hold_disk(&mut self, node: u64) {
        self.seat(node).disk_held = true;
    }

    /// What this node has written so far becomes durable, whether anything waits for it or not.
    pub fn flush(&mut self, node: u64) {
        self.seat(node).disk.want_sync();
        self.sync(node);
    }

    /// Everything that this node has written becomes durable, at once and from now on.
    pub fn release_disk(&mut self, node: u64) {
        self.seat(node).disk_held = false;
        self.sync(node);
    }

    /// What is durable on a node's disk.
    pub fn disk(&mut self, node: u64) -> &DiskState {
        self.seat(node).durable()
    }

    pub(super) fn sync(&mut self, node: u64) {
        if self.seat(node).disk_held || !self.seat(node).disk.begin_sync() {
            return;
        }
        let mut before = self.seat(node).durable().hard;
        let writes = self.seat(node).disk.finish_sync();
        let disk = self.seat(node).durable().clone();
        for op in writes.iter().flat_map(|write| &write.ops) {
            let check = self.oracle.durable(self.acceptor(node), op, &disk, before);
            self.demand_of(node, check);
            if let WriteOp::HardState { state, .. } = op {
                before = *state;
            }
        }
        if let Some(last) = writes.last() {
            self.step(node, Input::Persisted(last.ids[0].1));
        }
    }
}
