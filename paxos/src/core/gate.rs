//! The durability gate: what asserts a durable fact waits here until its write is durable.

use alloc::{collections::VecDeque, vec::Vec};

use super::{Holding, Message, PersistId};
use crate::types::{Ballot, NodeId, Slot, WriteOp};

/// What becomes true, or may be said, once a write is durable.
#[derive(Clone, Debug, Hash)]
pub(super) enum After {
    /// This message may be sent.
    Send { to: Vec<NodeId>, message: Message },
    /// This node has accepted at `ballot` all slots up to `upto` (as [`Message::Accepted`] words it).
    Accepted { ballot: Ballot, upto: Slot },
    /// This node has promised itself as candidate.
    OwnPromise { ballot: Ballot },
    /// This node has put itself under quarantine.
    Quarantined,
}

/// Collects the changes of one round into one write, and holds back what depends on writes.
#[derive(Clone, Debug, Hash)]
pub(super) struct Gate {
    ops: Vec<WriteOp>,
    sync: bool,
    /// The number that the collected changes will get.
    pub(super) building: PersistId,
    /// The last write on which something may depend.
    pub(super) needed: PersistId,
    pub(super) durable: PersistId,
    /// The bytes of entries in each write that is not durable yet, and their sum.
    pub(super) pending: VecDeque<(PersistId, usize)>,
    pending_bytes: usize,
    /// What each write that is not durable yet adds to what the disk holds, and what it holds of this life's.
    pub(super) adding: VecDeque<(PersistId, Holding)>,
    holds: Holding,
    pub(super) held: VecDeque<(PersistId, After)>,
}

impl Gate {
    pub(super) const fn new() -> Self {
        Self {
            ops: Vec::new(),
            sync: false,
            building: PersistId(1),
            needed: PersistId(0),
            durable: PersistId(0),
            pending: VecDeque::new(),
            pending_bytes: 0,
            adding: VecDeque::new(),
            holds: Holding {
                slot: Slot::ZERO,
                promised: Ballot::ZERO,
            },
            held: VecDeque::new(),
        }
    }

    /// Adds a change to the write of this round; returns the number of that write.
    pub(super) fn write(&mut self, op: WriteOp) -> PersistId {
        self.sync = true;
        self.needed = self.building;
        let added = match &op {
            WriteOp::Accept { slot, .. } => Holding {
                slot: *slot,
                ..Holding::default()
            },
            WriteOp::HardState { state, .. } => Holding {
                promised: state.promised,
                ..Holding::default()
            },
            WriteOp::Trim { .. } | WriteOp::RemoveGroup { .. } => Holding::default(),
        };
        match self.adding.back_mut() {
            Some((id, sum)) if *id == self.building => *sum = sum.join(added),
            _ => self.adding.push_back((self.building, added)),
        }
        if let WriteOp::Accept { entry, .. } = &op {
            let bytes = entry.size();
            self.pending_bytes += bytes;
            match self.pending.back_mut() {
                Some((id, sum)) if *id == self.building => *sum += bytes,
                _ => self.pending.push_back((self.building, bytes)),
            }
        }
        self.ops.push(op);
        self.building
    }

    /// Adds a change that nothing waits for: it rides along with the next write, or goes unsynced.
    pub(super) fn write_lazily(&mut self, op: WriteOp) {
        self.ops.push(op);
    }

    /// Holds `what` back until everything written so far, lazy changes aside, is durable. Returns it if that is so
    /// already.
    pub(super) fn after(&mut self, what: After) -> Option<After> {
        if self.needed <= self.durable {
            return Some(what);
        }
        self.held.push_back((self.needed, what));
        None
    }

    /// Nothing that waits for a write happens any more.
    pub(super) fn forget_what_waits(&mut self) {
        self.held.clear();
    }

    /// What has been written in this life and is durable.
    pub(super) const fn holds(&self) -> Holding {
        self.holds
    }

    pub(super) const fn durable(&self) -> PersistId {
        self.durable
    }

    /// Whether nothing that matters is collected or on its way to the disk.
    pub(super) const fn is_idle(&self) -> bool {
        self.needed.0 <= self.durable.0
    }

    /// Bytes of entries that are not durable yet.
    pub(super) const fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    pub(super) const fn has_ops(&self) -> bool {
        !self.ops.is_empty()
    }

    /// The write of this round, if there is anything to write.
    pub(super) fn take(&mut self) -> Option<(PersistId, Vec<WriteOp>, bool)> {
        if self.ops.is_empty() {
            return None;
        }
        let id = self.building;
        self.building = PersistId(id.0 + 1);
        Some((
            id,
            core::mem::take(&mut self.ops),
            core::mem::take(&mut self.sync),
        ))
    }

    /// This write and all before it are durable.
    pub(super) fn persisted(&mut self, id: PersistId) {
        assert!(
            id < self.building,
            "only writes that were handed out can be durable"
        );
        self.durable = self.durable.max(id);
        while let Some((id, bytes)) = self.pending.front().copied()
            && id <= self.durable
        {
            self.pending.pop_front();
            self.pending_bytes -= bytes;
        }
        while let Some((id, added)) = self.adding.front().copied()
            && id <= self.durable
        {
            self.adding.pop_front();
            self.holds = self.holds.join(added);
        }
    }

    /// The next thing that waits no longer.
    pub(super) fn released(&mut self) -> Option<After> {
        let (id, _) = self.held.front()?;
        if *id > self.durable {
            return None;
        }
        self.held.pop_front().map(|(_, what)| what)
    }
}
