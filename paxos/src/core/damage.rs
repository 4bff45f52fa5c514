//! Repair of damaged log entries, after protocol-aware recovery (Alagappan et al., *Protocol-Aware Recovery for
//! Consensus-Based Storage*, FAST 2018).
//!
//! A slot whose record is damaged is neither accepted nor empty: nobody knows what this node has said about it.
//!
//! - **Above the watermark** the node may have helped to get a value chosen there. Its promises name the slot as damaged,
//!   and do not count for phase 1 of that slot: a new leader proposes nothing there before a quorum of voters whose slot
//!   is whole has promised, so that every value that may have been chosen is still found. Until then it waits and asks; it
//!   never guesses.
//! - **At or below the watermark** the chosen value is known elsewhere: it is asked of the peers like everything that is
//!   missing, and comes as a snapshot if they have trimmed it. Until then the node tells learners that it has nothing
//!   there, and its state machine waits.
//! - **Below the newest own snapshot** nobody needs the slot: the log is trimmed there.
//! - **Where the log is trimmed and no snapshot reaches it** any more, because all of them are damaged or gone, the state is
//!   fetched from a peer as a snapshot that does. Until then the node votes for what its log holds, tells nobody anything
//!   of what it has lost, and its state machine waits.
//!
//! A slot is whole again when something has been written over it durably: an `Accept` at a ballot no lower than the
//! promise, a learned entry, or, where the entry is still in memory, that.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use super::{Alarm, Message, Output, PersistId, Replica, learner::Asked};
use crate::types::{Accepted, ChosenMembership, EntryKind, Membership, NodeId, Slot, Time, WriteOp};

/// How many chosen slots a promise may leave untold; a candidate that is further behind learns of others.
const MAX_UNTOLD_SLOTS: u64 = 1 << 16;

/// The damaged slots above the trimmed mark; at most as many as the log has.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Damage {
    /// Each with the write that repairs it, once that is under way.
    slots: BTreeMap<Slot, Option<PersistId>>,
    /// The open request to a peer for a chosen entry.
    asked: Option<Asked>,
    /// Who has been asked since something was repaired last.
    tried: BTreeSet<NodeId>,
    /// Peers that have trimmed what is asked for, and as of which slot they have a snapshot.
    offers: BTreeMap<NodeId, Slot>,
    /// How many slots have been repaired in this life.
    pub(super) repaired: u64,
    /// The slot of the last alarm.
    told: Option<Slot>,
}

impl Damage {
    pub(super) fn new(slots: impl Iterator<Item = Slot>) -> Self {
        Self {
            slots: slots.map(|slot| (slot, None)).collect(),
            ..Self::default()
        }
    }

    pub(super) fn count(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn last(&self) -> Slot {
        self.slots
            .last_key_value()
            .map(|(slot, _)| *slot)
            .unwrap_or_default()
    }

    /// Whether the disk does not hold the slot as yet.
    pub(super) fn has(&self, slot: Slot) -> bool {
        self.slots.contains_key(&slot)
    }

    /// Whether the slot is damaged and nothing is under way to its place.
    fn is_lost(&self, slot: Slot) -> bool {
        self.slots.get(&slot) == Some(&None)
    }

    /// The slots from `first` on that nothing is under way to.
    pub(super) fn lost_from(&self, first: Slot) -> impl DoubleEndedIterator<Item = Slot> + '_ {
        let lost = self.slots.range(first..).filter(|(_, persist)| persist.is_none());
        lost.map(|(slot, _)| *slot)
    }

    /// The first slot from `first` on that the disk does not hold as yet.
    pub(super) fn first_from(&self, first: Slot) -> Option<Slot> {
        self.slots.range(first..).next().map(|(slot, _)| *slot)
    }

    /// Whether something up to `slot` is damaged.
    pub(super) fn reaches(&self, slot: Slot) -> bool {
        self.slots
            .first_key_value()
            .is_some_and(|(first, _)| *first <= slot)
    }

    /// This write puts an entry into the slot.
    pub(super) fn overwrites(&mut self, slot: Slot, persist: PersistId) {
        if let Some(state) = self.slots.get_mut(&slot) {
            *state = Some(persist);
        }
    }

    /// This write and all before it are durable.
    pub(super) fn persisted(&mut self, durable: PersistId) {
        let before = self.slots.len();
        self.slots
            .retain(|_, persist| persist.is_none_or(|persist| persist > durable));
        self.repaired += (before - self.slots.len()) as u64;
    }

    /// The log is trimmed up to here.
    pub(super) fn trimmed(&mut self, upto: Slot) {
        let kept = self.slots.split_off(&upto.next());
        self.repaired += self.slots.len() as u64;
        self.slots = kept;
    }

    /// The first run of lost slots from `first` to `last`.
    fn first_run(&self, first: Slot, last: Slot) -> Option<(Slot, Slot)> {
        let mut lost = self.lost_from(first).take_while(|slot| *slot <= last);
        let from = lost.next()?;
        let run = lost
            .zip(from.next().0..)
            .take_while(|(slot, next)| slot.0 == *next);
        let upto = run.last().map_or(from, |(slot, _)| slot);
        Some((from, upto))
    }

    /// Asks all peers again.
    pub(super) fn ask_anew(&mut self) {
        self.asked = None;
        self.tried.clear();
        self.offers.clear();
    }
}

/// Finding.
impl Replica {
    /// The store cannot give these slots back.
    pub(super) fn on_damaged(&mut self, slots: Vec<Slot>) {
        for slot in slots.into_iter().filter(|slot| *slot > self.trimmed) {
            if self.damage.has(slot) {
                continue;
            }
            self.damage.slots.insert(slot, None);
            if let Some(Accepted { ballot, entry }) = self.window.get(slot).cloned() {
                let persist = self.gate.write(WriteOp::Accept {
                    group: self.group,
                    slot,
                    ballot,
                    entry,
                });
                self.damage.overwrites(slot, persist);
            }
        }
        self.snapshots.trim_due = true;
    }

    /// The last slot that is lost and that the newest snapshot covers: the log is of no use up to there.
    pub(super) fn last_lost_in_snapshot(&self) -> Slot {
        let newest = self.snapshots.newest;
        let lost = self.damage.lost_from(Slot::ZERO);
        lost.take_while(|slot| *slot <= newest).last().unwrap_or_default()
    }

    /// Whether the next entry for the state machine is damaged or gone with a snapshot, so that it waits for the peers'
    /// help.
    pub(super) fn waits_for_repair(&self) -> bool {
        let next = self.learner.applied.next();
        self.lacks_snapshot() || (next <= self.chosen && next < self.window.first() && self.damage.has(next))
    }

    /// Whether the log is trimmed and no snapshot of this node reaches it: the state below it is lost here.
    pub(super) fn lacks_snapshot(&self) -> bool {
        self.snapshots.newest < self.trimmed
    }

    /// Whether the membership in force is not known, because its entry is damaged. Until it is repaired nothing more is
    /// taken for chosen here: which later membership takes effect depends on it.
    pub(super) fn lacks_membership(&self) -> bool {
        let latest = self.memberships.latest();
        latest.at > Slot::ZERO && latest.membership.version == 0
    }
}

/// Phase 1.
impl Replica {
    /// Whether this node has lost chosen entries, or the state that they led to, that others may have to learn from it before they can go on: then one of
    /// them shall lead. Nobody else has use for the entries of a node that is alone.
    pub(super) fn lacks_what_others_may_need(&self) -> bool {
        (self.damage.reaches(self.chosen) || self.lacks_snapshot()) && !self.other_members().is_empty()
    }

    /// The watermark that a promise to a candidate claims, which needs everything from `first` on. What this node knows
    /// chosen but could not teach, it claims to know nothing of, lest the candidate wait for it in vain: the other voters
    /// may hold it as accepted, and not know that it is chosen.
    pub(super) fn claimed_watermark(&self, first: Slot) -> Slot {
        let gone = Some(first).filter(|first| self.lacks_snapshot() && *first <= self.trimmed);
        match gone.or_else(|| self.damage.first_from(first)) {
            Some(lost) if lost <= self.chosen && self.chosen.since(lost) < MAX_UNTOLD_SLOTS => {
                lost.previous()
            }
            _ => self.chosen,
        }
    }

    /// All voters have said for long what they have, and it is not enough: somebody has to know.
    pub(super) fn alarm_undecidable(&mut self, slot: Slot) {
        if self.damage.told != Some(slot) {
            self.damage.told = Some(slot);
            self.outputs.push_back(Output::Alarm(Alarm::Undecidable { slot }));
        }
    }
}

/// Repair of chosen entries.
impl Replica {
    /// Asks the peers, one after the other, for chosen entries that are damaged here.
    pub(super) fn ask_for_repairs(&mut self) {
        let Some((from, upto)) = self.damage.first_run(Slot(1), self.chosen) else {
            return self.damage.ask_anew();
        };
        let waits = self.damage.asked.is_some_and(|asked| self.now < asked.again_at);
        if waits || self.disk_lags() || self.snapshots.is_fetching() {
            return;
        }
        let again_at = self.now.plus(self.config.heartbeat_interval * 2);
        let teachers = self.teachers(None);
        let untried = |peer: &NodeId| !self.damage.tried.contains(peer);
        let peer = teachers.iter().copied().find(untried);
        let Some(peer) = peer.or_else(|| teachers.first().copied()) else {
            self.damage.asked = None;
            return;
        };
        self.damage.asked = Some(Asked { peer, again_at });
        if self.damage.tried.contains(&peer) {
            self.damage.tried.clear();
            let offers = core::mem::take(&mut self.damage.offers);
            if !offers.is_empty() && self.fetch_one_of(offers) {
                return;
            }
            if self.is_leader() && !self.is_about_to_cover(from) {
                // They may hold it as accepted, and learn from the next leader that it is chosen.
                self.step_down();
            }
        }
        self.damage.tried.insert(peer);
        self.send(peer, Message::Learn { from, upto });
    }

    /// A peer teaches the chosen entry of a slot at or below the watermark. Whether that was wanted.
    pub(super) fn repair(&mut self, slot: Slot, accepted: Accepted) -> bool {
        if !self.damage.is_lost(slot) {
            return false;
        }
        let Accepted { ballot, entry } = accepted;
        let persist = self.gate.write(WriteOp::Accept {
            group: self.group,
            slot,
            ballot,
            entry: entry.clone(),
        });
        self.damage.overwrites(slot, persist);
        let latest = self.memberships.latest();
        if self.lacks_membership()
            && latest.at == slot
            && entry.kind == EntryKind::Membership
            && let Some(membership) = Membership::from_entry(&entry)
        {
            self.note_ballot(ballot);
            self.install_membership(ChosenMembership {
                at: slot,
                ballot,
                membership,
            });
        }
        true
    }

    /// A peer has answered a question for entries; whether it has repaired something.
    pub(super) fn note_repair(&mut self, from: NodeId, repaired: bool) {
        if repaired {
            return self.damage.ask_anew();
        }
        self.ask_repairs_of_another_than(from);
    }

    /// This peer cannot help: the next one is asked without waiting, if there is one.
    fn ask_repairs_of_another_than(&mut self, peer: NodeId) {
        let teachers = self.teachers(None);
        let all_tried = teachers.iter().all(|peer| self.damage.tried.contains(peer));
        if !all_tried || !self.damage.offers.is_empty() {
            self.damage.asked = self.damage.asked.filter(|asked| asked.peer != peer);
        }
    }

    /// A peer has trimmed what it was asked for.
    pub(super) fn note_repair_trimmed(&mut self, from: NodeId, snapshot: Slot) {
        let Some((lost, _)) = self.damage.first_run(Slot(1), self.chosen) else {
            return;
        };
        if self.is_repaired_by(snapshot) {
            self.damage.offers.insert(from, snapshot);
        } else if lost <= self.learner.applied {
            // Only peers have use for the entry: a snapshot of the own state serves them as well.
            self.on_take_snapshot();
        }
        self.ask_repairs_of_another_than(from);
    }

    /// Whether a peer's snapshot, which may be no newer than what is known chosen here, brings the state machine over a
    /// damaged entry.
    pub(super) fn is_repaired_by(&self, snapshot: Slot) -> bool {
        let lost = self.damage.lost_from(self.learner.applied.next()).next();
        lost.is_some_and(|lost| lost <= snapshot && lost <= self.chosen)
    }

    /// What may be read of the store from `from` on, up to `upto`: it ends before the next damaged slot.
    pub(super) fn readable(&self, from: Slot, upto: Slot) -> Slot {
        let damaged = self.damage.first_from(from);
        damaged.map_or(upto, |damaged| upto.min(damaged.previous()))
    }

    pub(super) fn repair_deadline(&self) -> Option<Time> {
        let asked = self.damage.asked;
        asked
            .filter(|_| !self.snapshots.is_fetching() && !self.disk_lags())
            .map(|asked| asked.again_at)
    }
}
