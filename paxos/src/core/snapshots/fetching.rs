//! Fetching a peer's snapshot, and installing it.

use alloc::collections::BTreeMap;

use bytes::Bytes;

use super::super::{
    Alarm, Checkpoint, FetchStatus, Message, Output, Replica, audit::History, election::Role,
};
use crate::planted;
use crate::snapshot::SnapshotHeader;
use crate::types::{NodeId, Slot, Time, WriteOp};

/// How many chunks may be on their way to the disk while the next one is on its way here.
const MAX_UNSTORED_CHUNKS: u8 = 2;

/// After so many questions without an answer the rest of a snapshot is sought elsewhere.
const MAX_UNANSWERED: u8 = 4;

/// The pause after a failed fetch, an election timeout, doubles so many times at the most.
const MAX_DOUBLINGS: u32 = 7;

/// What the driver may hold of which snapshot, and who was asked for more of it last: a fetch that is begun again goes on
/// there, and a chunk that comes when its receiver has given up is taken all the same.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Partial {
    peer: NodeId,
    upto: Slot,
    bytes: u64,
}

/// A snapshot on its way here.
#[derive(Clone, Debug, Hash)]
pub(super) struct Fetch {
    peer: NodeId,
    /// [`Slot::ZERO`]: whichever is the peer's newest.
    pub(super) upto: Slot,
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

impl Replica {
    /// A peer has trimmed what this node asked it for.
    pub(in crate::core) fn on_trimmed(&mut self, from: NodeId, snapshot: Slot) {
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
    pub(in crate::core) fn stranded(&self) -> Option<Slot> {
        Some(self.snapshots.stranded).filter(|snapshot| *snapshot > self.chosen)
    }

    pub(in crate::core) fn on_snapshots_off(&mut self) {
        self.config.snapshots = false;
        self.snapshots.fetch = None;
        self.snapshots.offers.clear();
        self.learner.ask_anew();
    }

    /// All peers that were asked for entries have trimmed them or are silent: fetches one's snapshot. False if none was
    /// offered.
    pub(in crate::core) fn begin_fetch(&mut self) -> bool {
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
    pub(in crate::core) fn fetch_one_of(&mut self, offers: BTreeMap<NodeId, Slot>) -> bool {
        if self.now < self.snapshots.fetch_after {
            return false;
        }
        self.snapshots.offers.extend(offers);
        self.begin_fetch()
    }

    /// Asks the peers, one after the other, for a snapshot that reaches the log, if none of the own ones does any more.
    pub(in crate::core) fn seek_lost_snapshot(&mut self) {
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
    pub(in crate::core) fn go_on_fetching(&mut self) {
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

    pub(in crate::core) fn on_snapshot_chunk(
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
    pub(super) fn fail_fetch(&mut self) {
        let snapshots = &mut self.snapshots;
        snapshots.failed = snapshots.fetch.take().map(|fetch| fetch.peer);
        snapshots.partial = Partial::default();
        // A full disk stays full for long, and each try may move a whole snapshot.
        let pause = self.config.election_timeout * (1 << snapshots.failures.min(MAX_DOUBLINGS));
        snapshots.fetch_after = self.now.plus(pause);
        snapshots.failures += 1;
        self.learner.ask_anew();
    }

    pub(in crate::core) fn on_chunk_stored(&mut self, upto: Slot, next_offset: u64) {
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

    pub(in crate::core) fn fetch_deadline(&self) -> Option<Time> {
        let snapshots = &self.snapshots;
        if let Some(fetch) = &snapshots.fetch {
            return fetch.asked.then_some(fetch.again_at);
        }
        let wanted = !snapshots.offers.is_empty() || self.lacks_snapshot();
        Some(snapshots.fetch_after).filter(|at| wanted && *at > self.now)
    }

    pub(in crate::core) fn fetch_status(&self) -> Option<FetchStatus> {
        self.snapshots.fetch.as_ref().map(|fetch| FetchStatus {
            peer: fetch.peer,
            upto: fetch.upto,
            done_bytes: fetch.done,
            total_bytes: fetch.total,
        })
    }

    /// A snapshot of a peer is durable here. It is installed if it is ahead of what this node knows chosen: never
    /// backwards, and never when the log has it all anyway.
    pub(in crate::core) fn on_snapshot_received(&mut self, header: SnapshotHeader) {
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
