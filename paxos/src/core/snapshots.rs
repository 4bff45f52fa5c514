//! Snapshots: when one is taken, what of the log is dropped behind it, and how a replica that needs entries which nobody
//! holds any more is given one.
//!
//! The core decides and the driver carries bytes. A snapshot is fetched by *pull*: the replica that needs it asks for
//! one chunk after the other, so it is never sent more than it can store, and a lost chunk is asked for again. What has
//! arrived is never installed before the driver has verified the whole and made it durable.

use alloc::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::{Alarm, Checkpoint, FetchStatus, Message, Output, Replica, audit::History, election::Role};
use crate::planted;
use crate::snapshot::{Origins, SnapshotHeader};
use crate::types::{ChosenMembership, NodeId, Slot, Time, WriteOp};

/// How many peers may catch up from this node at once; further ones ask elsewhere, or later.
const MAX_READERS: usize = 64;

/// How many chunks may be on their way to the disk while the next one is on its way here.
const MAX_UNSTORED_CHUNKS: u8 = 2;

/// After so many questions without an answer the rest of a snapshot is sought elsewhere.
const MAX_UNANSWERED: u8 = 4;

/// The pause after a failed fetch, an election timeout, doubles so many times at the most.
const MAX_DOUBLINGS: u32 = 7;

/// How many points of the log are remembered for keeping a tail of so many bytes; the tail is that exact.
const TAIL_POINTS: usize = 32;

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

/// What the driver may hold of which snapshot, and who was asked for more of it last: a fetch that is begun again goes on
/// there, and a chunk that comes when its receiver has given up is taken all the same.
#[derive(Clone, Debug, Default, Hash)]
struct Partial {
    peer: NodeId,
    upto: Slot,
    bytes: u64,
}

/// A snapshot on its way here.
#[derive(Clone, Debug, Hash)]
struct Fetch {
    peer: NodeId,
    /// [`Slot::ZERO`]: whichever is the peer's newest.
    upto: Slot,
    /// Unknown, zero, before the first chunk.
    total: u64,
    /// Where the chunk begins that is asked for next, or has been asked for.
    next: u64,
    asked: bool,
    unstored: u8,
    done: u64,
    unanswered: u8,
    again_at: Time,
    /// A snapshot that the peer has not, as it said in this fetch.
    gone: Slot,
}

impl Fetch {
    const fn new(peer: NodeId, upto: Slot, from: u64) -> Self {
        Self {
            peer,
            upto,
            total: 0,
            next: from,
            asked: false,
            unstored: 0,
            done: from,
            unanswered: 0,
            again_at: Time(core::time::Duration::ZERO),
            gone: Slot::ZERO,
        }
    }

    const fn may_ask(&self) -> bool {
        let more = self.total == 0 && self.unstored == 0 || self.next < self.total;
        more && !self.asked && self.unstored < MAX_UNSTORED_CHUNKS
    }
}

/// How many bytes of entries were applied up to which slot, at some points of the log.
#[derive(Clone, Debug, Default, Hash)]
struct AppliedBytes {
    total: u64,
    points: VecDeque<(Slot, u64)>,
}

impl AppliedBytes {
    fn add(&mut self, slot: Slot, bytes: usize, tail_bytes: u64) {
        self.total += bytes as u64;
        let last = self.points.back().map_or(0, |(_, total)| *total);
        if self.total - last > tail_bytes / TAIL_POINTS as u64 {
            self.points.push_back((slot, self.total));
        }
        if self.points.len() > 4 * TAIL_POINTS {
            self.points.pop_front();
        }
    }

    /// A slot with at least so many bytes between it and `upto`; [`Slot::ZERO`] if none is known.
    fn behind(&self, upto: Slot, bytes: u64) -> Slot {
        let at = |limit: &dyn Fn(&(Slot, u64)) -> bool| {
            self.points.iter().rev().find(|point| limit(point)).copied()
        };
        let Some((_, total)) = at(&|(slot, _)| *slot <= upto) else {
            return Slot::ZERO;
        };
        at(&|(_, before)| before + bytes <= total).map_or(Slot::ZERO, |(slot, _)| slot)
    }
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

/// Taking.
impl Replica {
    /// An entry of this size was applied.
    pub(super) fn count_applied(&mut self, slot: Slot, bytes: usize) {
        self.snapshots.applied.add(slot, bytes, self.config.keep_bytes);
        self.take_snapshot_if_due();
    }

    pub(super) fn on_take_snapshot(&mut self) {
        self.snapshots.wanted = true;
        self.take_snapshot_if_due();
    }

    fn take_snapshot_if_due(&mut self) {
        let applied = self.learner.applied;
        let snapshots = &mut self.snapshots;
        if !self.config.snapshots || snapshots.saving.is_some() {
            return;
        }
        if applied <= snapshots.newest {
            snapshots.wanted = false;
            return;
        }
        let entries = applied.since(snapshots.begun);
        let bytes = snapshots.applied.total - snapshots.begun_bytes;
        let reached = |count: u64, limit: u64| limit > 0 && count >= limit;
        let due =
            reached(entries, self.config.snapshot_entries) || reached(bytes, self.config.snapshot_bytes);
        if !snapshots.wanted && (!due || self.is_newest_fetched()) {
            return;
        }
        let known = |chosen: &&ChosenMembership| chosen.membership.version > 0;
        let Some(membership) = self.memberships.as_of(applied).filter(known).cloned() else {
            // Not known while the log is replayed up to it, or on a node that joins.
            return;
        };
        let header = SnapshotHeader {
            group: self.group,
            upto: applied,
            membership,
            origins: if planted::is("origins_not_in_snapshot") {
                Origins::default()
            } else {
                self.learner.origins.clone()
            },
            hash: self.history.latest.hash,
        };
        let snapshots = &mut self.snapshots;
        snapshots.wanted = false;
        snapshots.saving = Some(applied);
        snapshots.begun = applied;
        snapshots.begun_bytes = snapshots.applied.total;
        self.outputs.push_back(Output::TakeSnapshot(header));
        if planted::is("trim_before_snapshot") {
            self.snapshots.newest = applied;
            self.snapshots.trim_due = true;
        }
    }

    /// Whether a snapshot that has everything up to `slot` is about to be taken here.
    pub(super) fn is_about_to_cover(&self, slot: Slot) -> bool {
        let snapshots = &self.snapshots;
        let wanted = snapshots.wanted && slot <= self.learner.applied;
        let saving = snapshots.saving.is_some_and(|saving| slot <= saving);
        self.config.snapshots && (wanted || saving)
    }

    /// Whether a peer is about to have the newest snapshot. Then another one waits, for a bounded stretch of the log: the
    /// peer would find that it fetches an old one, and that the entries behind that are gone, again and again.
    fn is_newest_fetched(&self) -> bool {
        let newest = self.snapshots.newest;
        let bounded = self.learner.applied.since(newest) <= self.config.max_laggard_entries;
        let mut readers = self.snapshots.readers.values();
        bounded && readers.any(|reader| reader.fetches && reader.has == newest && self.is_recent(reader))
    }

    pub(super) fn on_snapshot_taken(&mut self, upto: Slot) {
        if self.snapshots.saving == Some(upto) {
            self.snapshots.saving = None;
        }
        if upto <= self.learner.applied {
            self.snapshots.newest = self.snapshots.newest.max(upto);
            self.snapshots.trim_due = true;
        }
        self.take_snapshot_if_due();
    }

    pub(super) fn on_snapshot_failed(&mut self, upto: Slot) {
        if self.snapshots.saving == Some(upto) {
            self.snapshots.saving = None;
        }
        let fetched = self.snapshots.fetch.as_ref();
        if fetched.is_some_and(|fetch| fetch.upto == upto) {
            self.fail_fetch();
        }
        self.take_snapshot_if_due();
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

/// Fetching and installing.
impl Replica {
    /// A peer has trimmed what this node asked it for.
    pub(super) fn on_trimmed(&mut self, from: NodeId, snapshot: Slot) {
        if self.config.snapshots {
            self.note_repair_trimmed(from, snapshot);
        }
        if snapshot <= self.chosen {
            return;
        }
        if self.config.snapshots {
            self.snapshots.offers.insert(from, snapshot);
            self.learner.ask_another_than(from);
        } else {
            let known = self.stranded().is_some();
            self.snapshots.stranded = snapshot;
            if !known {
                let peer = from;
                self.outputs
                    .push_back(Output::Alarm(Alarm::Stranded { peer, snapshot }));
            }
        }
    }

    /// As of which slot a snapshot would have to be taken from a peer, by a replica without a place for it.
    pub(super) fn stranded(&self) -> Option<Slot> {
        Some(self.snapshots.stranded).filter(|snapshot| *snapshot > self.chosen)
    }

    pub(super) fn on_snapshots_off(&mut self) {
        self.config.snapshots = false;
        self.snapshots.fetch = None;
        self.snapshots.offers.clear();
        self.learner.ask_anew();
    }

    /// All peers that were asked for entries have trimmed them or are silent: fetches one's snapshot. False if none was
    /// offered.
    pub(super) fn begin_fetch(&mut self) -> bool {
        if self.now < self.snapshots.fetch_after {
            return !self.snapshots.offers.is_empty();
        }
        let leader = self.leader.map(|ballot| ballot.node);
        let snapshots = &mut self.snapshots;
        // To go on with what was begun is best, the newest is next best; the leader has enough to do.
        let best = snapshots.offers.iter().max_by_key(|(peer, upto)| {
            let sound = snapshots.failed != Some(**peer);
            (
                sound,
                **upto == snapshots.partial.upto,
                **upto,
                Some(**peer) != leader,
            )
        });
        let Some((peer, upto)) = best.map(|(peer, upto)| (*peer, *upto)) else {
            return false;
        };
        snapshots.offers.clear();
        // Not from the start: what the peer was asked for before may still come, and fits.
        let partial = &snapshots.partial;
        let bytes = if partial.upto == upto { partial.bytes } else { 0 };
        snapshots.partial = Partial { peer, upto, bytes };
        snapshots.fetch = Some(Fetch::new(peer, upto, bytes));
        self.ask_for_chunk();
        true
    }

    /// As [`begin_fetch`](Self::begin_fetch), of these offers.
    pub(super) fn fetch_one_of(&mut self, offers: BTreeMap<NodeId, Slot>) -> bool {
        if self.now < self.snapshots.fetch_after {
            return false;
        }
        self.snapshots.offers.extend(offers);
        self.begin_fetch()
    }

    /// Asks the peers, one after the other, for a snapshot that reaches the log, if none of the own ones does any more.
    pub(super) fn seek_lost_snapshot(&mut self) {
        if !self.lacks_snapshot() || self.snapshots.is_fetching() || self.now < self.snapshots.fetch_after {
            return;
        }
        let teachers = self.teachers(None);
        let later = teachers.iter().find(|peer| Some(**peer) > self.snapshots.sought);
        let Some(peer) = later.or(teachers.first()).copied() else {
            return;
        };
        self.snapshots.sought = Some(peer);
        self.snapshots.offers.clear();
        // A peer with a newer one answers that it does not have this one, and is then asked for its newest.
        self.snapshots.fetch = Some(Fetch::new(peer, self.trimmed, 0));
        self.ask_for_chunk();
    }

    /// Whether a peer's snapshot brings this replica on.
    fn is_wanted(&self, upto: Slot) -> bool {
        let in_place_of_lost = self.lacks_snapshot() && upto >= self.trimmed;
        upto > self.chosen || in_place_of_lost || self.is_repaired_by(upto)
    }

    fn ask_for_chunk(&mut self) {
        let again_at = self.now.plus(self.config.election_timeout);
        let Some(fetch) = self.snapshots.fetch.as_mut().filter(|fetch| fetch.may_ask()) else {
            return;
        };
        fetch.asked = true;
        fetch.again_at = again_at;
        let (peer, upto, offset) = (fetch.peer, fetch.upto, fetch.next);
        self.send(peer, Message::FetchSnapshot { upto, offset });
    }

    /// Asks again for a chunk that does not come; seeks another snapshot when its owner is silent for long, and forgets it
    /// when it is of no use any more.
    pub(super) fn go_on_fetching(&mut self) {
        let now = self.now;
        let upto = self
            .snapshots
            .fetch
            .as_ref()
            .map_or(Slot::ZERO, |fetch| fetch.upto);
        let wanted = upto == Slot::ZERO || self.is_wanted(upto);
        let Some(fetch) = &mut self.snapshots.fetch else {
            return;
        };
        if !wanted {
            self.snapshots.fetch = None;
        } else if fetch.asked && now >= fetch.again_at {
            fetch.asked = false;
            fetch.unanswered += 1;
            if fetch.unanswered > MAX_UNANSWERED {
                self.snapshots.fetch = None;
                self.learner.ask_anew();
            } else {
                self.ask_for_chunk();
            }
        }
    }

    pub(super) fn on_snapshot_chunk(
        &mut self,
        from: NodeId,
        upto: Slot,
        total: u64,
        offset: u64,
        data: Bytes,
    ) {
        let wanted = self.is_wanted(upto);
        let Partial {
            peer,
            upto: begun,
            bytes,
        } = self.snapshots.partial;
        if self.snapshots.fetch.is_none() && (from, upto, offset) == (peer, begun, bytes) && wanted {
            // It was asked for, and given up too early.
            self.snapshots.offers.clear();
            self.snapshots.fetch = Some(Fetch {
                asked: true,
                ..Fetch::new(peer, upto, offset)
            });
        }
        let Some(fetch) = self.snapshots.fetch.as_mut().filter(|fetch| fetch.peer == from) else {
            return;
        };
        if total == 0 && (upto == fetch.upto || fetch.upto == Slot::ZERO) {
            if upto == fetch.gone {
                // Nothing newer has taken its place: it cannot be read there.
                return self.fail_fetch();
            }
            *fetch = Fetch {
                gone: upto,
                ..Fetch::new(from, Slot::ZERO, 0)
            };
            return self.ask_for_chunk();
        }
        if data.is_empty() && upto == fetch.upto && offset == fetch.next && offset > 0 {
            // It is shorter than the one that was begun, so it is another one.
            *fetch = Fetch::new(from, upto, 0);
            return self.ask_for_chunk();
        }
        if fetch.upto == Slot::ZERO && wanted {
            fetch.upto = upto;
        }
        let end = offset.saturating_add(data.len() as u64);
        let expected = fetch.asked && fetch.upto == upto && fetch.next == offset;
        if !expected || data.is_empty() || end > total || (fetch.total != 0 && fetch.total != total) {
            return;
        }
        fetch.asked = false;
        fetch.unanswered = 0;
        fetch.total = total;
        fetch.next = end;
        fetch.unstored += 1;
        if self.snapshots.partial.upto != upto {
            let (peer, bytes) = (from, 0);
            self.snapshots.partial = Partial { peer, upto, bytes };
        }
        self.outputs.push_back(Output::StoreChunk {
            upto,
            total,
            offset,
            data,
        });
        self.ask_for_chunk();
    }

    /// Nothing comes of the fetch: another peer's snapshot is tried next, after a pause.
    fn fail_fetch(&mut self) {
        let snapshots = &mut self.snapshots;
        snapshots.failed = snapshots.fetch.take().map(|fetch| fetch.peer);
        snapshots.partial = Partial::default();
        // A full disk stays full for long, and each try may move a whole snapshot.
        let pause = self.config.election_timeout * (1 << snapshots.failures.min(MAX_DOUBLINGS));
        snapshots.fetch_after = self.now.plus(pause);
        snapshots.failures += 1;
        self.learner.ask_anew();
    }

    pub(super) fn on_chunk_stored(&mut self, upto: Slot, next_offset: u64) {
        let Some(fetch) = self.snapshots.fetch.as_mut().filter(|fetch| fetch.upto == upto) else {
            return;
        };
        fetch.unstored = fetch.unstored.saturating_sub(1);
        fetch.done = next_offset;
        self.snapshots.partial = Partial {
            peer: fetch.peer,
            upto,
            bytes: next_offset,
        };
        if fetch.unstored == 0 && fetch.next != next_offset {
            // The driver holds more of it, from an earlier attempt, or less.
            fetch.next = next_offset;
            fetch.asked = false;
        }
        self.ask_for_chunk();
    }

    pub(super) fn fetch_deadline(&self) -> Option<Time> {
        let snapshots = &self.snapshots;
        if let Some(fetch) = &snapshots.fetch {
            return fetch.asked.then_some(fetch.again_at);
        }
        let wanted = !snapshots.offers.is_empty() || self.lacks_snapshot();
        Some(snapshots.fetch_after).filter(|at| wanted && *at > self.now)
    }

    pub(super) fn fetch_status(&self) -> Option<FetchStatus> {
        self.snapshots.fetch.as_ref().map(|fetch| FetchStatus {
            peer: fetch.peer,
            upto: fetch.upto,
            done_bytes: fetch.done,
            total_bytes: fetch.total,
        })
    }

    /// A snapshot of a peer is durable here. It is installed if it is ahead of what this node knows chosen: never
    /// backwards, and never when the log has it all anyway.
    pub(super) fn on_snapshot_received(&mut self, header: SnapshotHeader) {
        let upto = header.upto;
        if self.snapshots.fetch.take_if(|fetch| fetch.upto == upto).is_some() {
            self.snapshots.partial = Partial::default();
            self.snapshots.failed = None;
            self.snapshots.failures = 0;
            self.learner.ask_anew();
        }
        if header.group != self.group {
            return;
        }
        if self.is_wanted(upto) || planted::is("install_moves_back") {
            self.install(header);
        } else {
            self.on_snapshot_taken(upto);
        }
    }

    fn install(&mut self, header: SnapshotHeader) {
        let SnapshotHeader {
            upto,
            membership,
            origins,
            hash,
            ..
        } = header;
        // Where damage held the state machine up, more may be known chosen than the snapshot has.
        let ahead = upto > self.chosen;
        self.chosen = self.chosen.max(upto);
        self.history = History::after(Checkpoint { slot: upto, hash });
        self.trimmed = upto;
        self.damage.trimmed(upto);
        if ahead && !planted::is("install_keeps_window") {
            self.window.skip_to(upto);
        }
        self.install_membership(membership);
        self.learner.install(upto, origins);
        self.snapshots.newest = upto;
        self.snapshots.begun = upto;
        self.snapshots.begun_bytes = self.snapshots.applied.total;
        self.snapshots.wanted = false;
        self.outputs.push_back(Output::InstallSnapshot { upto });
        self.end_covered_proposals(upto);
        self.write_hard_state();
        self.gate.write(WriteOp::Trim {
            group: self.group,
            upto,
        });
        self.advance_received();
        self.acknowledge();
        match &self.role {
            // Others have chosen what this leader did not: it is leader no more, or its state is of no use to anyone yet.
            Role::Leader(_) if ahead => self.step_down(),
            Role::Candidate(_) => {
                self.postpone_election();
                self.finish_candidacy();
            }
            Role::Leader(_) | Role::Follower | Role::Canvassing(_) => {}
        }
    }

    /// Own commands that the snapshot holds the effects of: they have happened, but their replies are not known here.
    fn end_covered_proposals(&mut self, slot: Slot) {
        let next = self.learner.origins.next(self.identity.node, self.incarnation);
        if next == 0 || next > self.proposals.end() {
            self.learner.stuck = true;
            self.outputs.push_back(Output::Alarm(Alarm::LifeReused { slot }));
            return;
        }
        for token in self.proposals.covered(next) {
            self.outputs.push_back(Output::Unknown { token });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_of_bytes_is_kept_to_within_a_part_of_it() {
        let mut applied = AppliedBytes::default();
        for slot in 1..=1_000 {
            applied.add(Slot(slot), 10, 3_200);
        }
        let kept = |upto, bytes| Slot(upto).since(applied.behind(Slot(upto), bytes)) * 10;
        assert!(
            (3_200..=3_500).contains(&kept(1_000, 3_200)),
            "{}",
            kept(1_000, 3_200)
        );
        assert!(
            (3_200..=3_500).contains(&kept(800, 3_200)),
            "{}",
            kept(800, 3_200)
        );
        assert_eq!(
            applied.behind(Slot(1_000), 1_000_000),
            Slot::ZERO,
            "unknown: keep all"
        );
        assert!(applied.points.len() <= 4 * TAIL_POINTS);
    }
}
