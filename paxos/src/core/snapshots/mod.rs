//! Snapshots: when one is taken, what of the log is dropped behind it, and how a replica that needs entries which nobody
//! holds any more is given one.
//!
//! The core decides and the driver carries bytes. A snapshot is fetched by *pull*: the replica that needs it asks for
//! one chunk after the other, so it is never sent more than it can store, and a lost chunk is asked for again. What has
//! arrived is never installed before the driver has verified the whole and made it durable.

mod fetching;
mod taking;

use alloc::collections::BTreeMap;

use bytes::Bytes;

use self::{
    fetching::{Fetch, Partial},
    taking::AppliedBytes,
};
use super::{Message, Output, Replica, election::Role};
use crate::types::{NodeId, Slot, Time, WriteOp};

/// How many peers may catch up from this node at once; further ones ask elsewhere, or later.
const MAX_READERS: usize = 64;

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Snapshots {
    /// As of which slot the newest durable one of this node is.
    pub(super) newest: Slot,
    /// The one that the driver is saving.
    saving: Option<Slot>,
    /// As of which slot the last one was begun, well or not, and how many bytes had been applied then.
    begun: Slot,
    begun_bytes: u64,
    /// A user asked for one.
    wanted: bool,
    applied: AppliedBytes,

    trim_paused: bool,
    /// Something has happened after which there may be more to trim.
    pub(super) trim_due: bool,
    readers: BTreeMap<NodeId, Reader>,

    /// Peers that have trimmed what is missing here, and as of which slot they have a snapshot.
    offers: BTreeMap<NodeId, Slot>,
    fetch: Option<Fetch>,
    /// Who was asked last for a snapshot in the place of the own ones that are lost.
    sought: Option<NodeId>,
    /// Whose snapshot failed last.
    failed: Option<NodeId>,
    partial: Partial,
    /// After a failure: no sooner than this.
    fetch_after: Time,
    /// How many in a row.
    failures: u32,
    /// What the last peer has that could not serve this replica, which has no place for snapshots.
    stranded: Slot,
}

/// A peer that catches up from this node.
#[derive(Clone, Debug, Default, Hash)]
struct Reader {
    /// It has everything up to here, or will have when it has installed what it fetches.
    has: Slot,
    heard_at: Time,
    fetches: bool,
    /// A chunk for it is being read.
    loading: bool,
}

impl Snapshots {
    pub(super) fn new(newest: Slot) -> Self {
        Self {
            newest,
            begun: newest,
            ..Self::default()
        }
    }

    pub(super) const fn is_fetching(&self) -> bool {
        self.fetch.is_some()
    }

    pub(super) fn has_offer_of(&self, peer: NodeId) -> bool {
        self.offers.contains_key(&peer)
    }

    pub(super) fn forget_offers(&mut self) {
        self.offers.clear();
    }
}

/// Trimming.
impl Replica {
    pub(super) fn on_pause_trimming(&mut self, paused: bool) {
        self.snapshots.trim_paused = paused;
        self.snapshots.trim_due = true;
    }

    /// Drops what no longer needs to be held of the log, if something has happened that may have made it so.
    pub(super) fn trim(&mut self) {
        if !core::mem::take(&mut self.snapshots.trim_due) || self.snapshots.trim_paused {
            return;
        }
        let upto = self.trim_limit().max(self.last_lost_in_snapshot());
        if upto <= self.trimmed {
            return;
        }
        self.trimmed = upto;
        self.damage.trimmed(upto);
        // Both ride along with the next write. A restart must find trimmed slots chosen.
        if self.chosen_written < upto {
            self.chosen_written = self.chosen;
            let state = self.hard_state();
            self.gate.write_lazily(WriteOp::HardState {
                group: self.group,
                state,
            });
        }
        self.gate.write_lazily(WriteOp::Trim {
            group: self.group,
            upto,
        });
    }

    /// Up to where the log may be dropped: never above the newest snapshot, less the tail, less what live peers lack that
    /// are not too far behind.
    fn trim_limit(&self) -> Slot {
        let newest = self.snapshots.newest;
        let by_entries = Slot(newest.0.saturating_sub(self.config.keep_entries));
        let by_bytes = self.snapshots.applied.behind(newest, self.config.keep_bytes);
        let limit = by_entries.max(by_bytes).min(newest);
        let mut needed = limit;
        if let Role::Leader(leadership) = &self.role {
            for peer in leadership.peers.values() {
                let alive = self.now.since(peer.contact) < self.config.election_timeout;
                if alive && !peer.heard {
                    // A new leader does not know yet what it has.
                    return self.trimmed;
                }
                if alive && self.is_waited_for(peer.unclaimed, limit) {
                    needed = needed.min(peer.unclaimed);
                }
            }
        }
        for (node, reader) in &self.snapshots.readers {
            let watermark = match &self.role {
                Role::Leader(leadership) => leadership.peers.get(node).map(|peer| peer.unclaimed),
                _ => None,
            };
            let has = reader.has.max(watermark.unwrap_or_default());
            if self.is_recent(reader) && self.is_waited_for(has, limit) {
                needed = needed.min(has);
            }
        }
        needed
    }

    fn is_waited_for(&self, has: Slot, limit: Slot) -> bool {
        has >= self.trimmed && limit.since(has) <= self.config.max_laggard_entries
    }
}

/// Helping peers.
impl Replica {
    fn is_recent(&self, reader: &Reader) -> bool {
        self.now.since(reader.heard_at) < self.config.election_timeout * 4
    }

    /// A peer that has everything up to `has` catches up from here.
    pub(super) fn note_reader(&mut self, peer: NodeId, has: Slot, fetches: bool) {
        let now = self.now;
        let forgotten_after = self.config.election_timeout * 4;
        let readers = &mut self.snapshots.readers;
        if readers.len() >= MAX_READERS && !readers.contains_key(&peer) {
            readers.retain(|_, reader| reader.loading || now.since(reader.heard_at) < forgotten_after);
            if readers.len() >= MAX_READERS {
                return;
            }
        }
        let reader = readers.entry(peer).or_default();
        reader.has = has;
        reader.heard_at = now;
        reader.fetches = fetches;
    }

    /// A peer asks for entries from `first` on, which are trimmed here.
    pub(super) fn offer_snapshot(&mut self, to: NodeId, first: Slot) {
        if self.lacks_snapshot() {
            return self.teach_nothing(to, first);
        }
        let snapshot = self.snapshots.newest;
        self.send(to, Message::Trimmed { snapshot });
    }

    pub(super) fn on_fetch_snapshot(&mut self, from: NodeId, upto: Slot, offset: u64) {
        let newest = self.snapshots.newest;
        if newest < upto && upto <= self.learner.applied && self.snapshots.saving.is_none() {
            // The peer has lost all that would do. It asks again, and then there is one.
            return self.on_take_snapshot();
        }
        if newest == Slot::ZERO {
            return;
        }
        let upto = if upto == Slot::ZERO { newest } else { upto };
        self.note_reader(from, upto, true);
        let max_bytes = self.config.snapshot_chunk_bytes;
        if let Some(reader) = self.snapshots.readers.get_mut(&from)
            && !reader.loading
        {
            reader.loading = true;
            self.outputs.push_back(Output::LoadChunk {
                to: from,
                upto,
                offset,
                max_bytes,
            });
        }
    }

    pub(super) fn on_chunk_loaded(&mut self, to: NodeId, upto: Slot, total: u64, offset: u64, data: Bytes) {
        if let Some(reader) = self.snapshots.readers.get_mut(&to) {
            reader.loading = false;
        }
        self.send(
            to,
            Message::SnapshotChunk {
                upto,
                total,
                offset,
                data,
            },
        );
    }
}
