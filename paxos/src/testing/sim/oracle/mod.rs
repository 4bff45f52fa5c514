//! The safety oracle: looks into every disk and every message, and knows what is chosen before any replica does.

mod messages;
mod replica;

use std::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec,
    vec::Vec,
};

use super::disk::DiskState;
use crate::types::{
    Ballot, Entry, HardState, Incarnation, Member, Membership, NodeId, Slot, StorageId, WriteOp,
};

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which: `I1` to `I14` for safety, `L1` and `L2` for progress, or a word for other promises of the contract.
    pub oracle: &'static str,
    /// What was seen.
    pub detail: String,
}

impl Violation {
    pub(super) fn new(oracle: &'static str, detail: impl Into<String>) -> Self {
        Self {
            oracle,
            detail: detail.into(),
        }
    }
}

/// Returns a violation of `$oracle` unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $oracle:literal, $($detail:tt)+) => {
        if !$condition {
            return Err($crate::testing::sim::Violation::new($oracle, std::format!($($detail)+)));
        }
    };
}
pub(super) use self::replica::{alarm, within_bounds};
pub(super) use ensure;

/// Everything that was ever durably accepted at one slot and ballot.
#[derive(Debug)]
struct Votes {
    ballot: Ballot,
    entry: Entry,
    acceptors: BTreeSet<Acceptor>,
}

/// A node with one disk: with another disk it is another acceptor.
pub(super) type Acceptor = (NodeId, StorageId);

/// A membership that is truly in force from the slot after `at` on.
#[derive(Debug)]
struct InForce {
    at: Slot,
    /// The lowest ballot at which it was chosen. Proposals for later slots at lower ballots were made for another
    /// membership, whatever acceptors they have found.
    floor: Ballot,
    membership: Membership,
}

/// What is known of a ballot.
#[derive(Debug, Default)]
struct BallotFacts {
    incarnation: Option<Incarnation>,
    start: Option<Slot>,
    promised_by: BTreeSet<Acceptor>,
    /// The last membership proposed at this ballot.
    membership: Slot,
}

/// What a node has ever asserted.
#[derive(Debug, Default)]
struct Said {
    promised: Ballot,
    accepted: BTreeMap<Slot, Ballot>,
    /// For each promise, what it must report: the slots held when it was made, each with its ballot; `None` if the
    /// record is damaged.
    held: BTreeMap<Ballot, BTreeMap<Slot, Option<Ballot>>>,
    /// The newest snapshot that it said to have.
    snapshot: Slot,
    /// It has lost its newest snapshots, and said of none since that reaches its log.
    lost_snapshots: bool,
}

/// Checks I1 to I6 on every durable write, every message and every restart.
#[derive(Debug)]
pub struct Oracle {
    memberships: Vec<InForce>,
    votes: BTreeMap<Slot, Vec<Votes>>,
    values: BTreeMap<(Slot, Ballot), Entry>,
    decided: Vec<Entry>,
    ballots: BTreeMap<Ballot, BallotFacts>,
    said: BTreeMap<Acceptor, Said>,
    /// The running hash at each slot where a replica has told it.
    hashes: BTreeMap<Slot, u64>,
}

type Check = Result<(), Violation>;

impl Oracle {
    /// For a group with this first membership.
    pub fn new(membership: Membership) -> Self {
        let first = InForce {
            at: Slot::ZERO,
            floor: Ballot::ZERO,
            membership,
        };
        Self {
            memberships: vec![first],
            votes: BTreeMap::new(),
            values: BTreeMap::new(),
            decided: Vec::new(),
            ballots: BTreeMap::new(),
            said: BTreeMap::new(),
            hashes: BTreeMap::new(),
        }
    }

    /// The last slot that is truly chosen: durably accepted by a quorum at one ballot, like all slots below it.
    pub const fn chosen(&self) -> Slot {
        Slot(self.decided.len() as u64)
    }

    /// The entry that is truly chosen at `slot`.
    pub fn decided(&self, slot: Slot) -> Option<&Entry> {
        let index = usize::try_from(slot.0.checked_sub(1)?).ok()?;
        self.decided.get(index)
    }

    /// The highest ballot that any node has promised or used.
    pub fn highest_ballot(&self) -> Ballot {
        self.ballots.keys().next_back().copied().unwrap_or_default()
    }

    /// Whether this node has ever been promised a ballot by a quorum.
    pub(super) fn was_elected(&self, node: NodeId) -> bool {
        let mut own = self
            .ballots
            .iter()
            .rev()
            .filter(|(ballot, _)| ballot.node == node);
        own.any(|(_, facts)| {
            let mut memberships = self.memberships.iter();
            memberships.any(|in_force| self.is_quorum(in_force.at.next(), &facts.promised_by))
        })
    }

    /// At how many ballots `slot` has been durably accepted somewhere, and how many different values.
    pub(super) fn contention(&self, slot: Slot) -> (usize, usize) {
        let votes = self.votes.get(&slot).map_or(&[][..], Vec::as_slice);
        let values: BTreeSet<&[u8]> = votes.iter().map(|votes| &votes.entry.payload[..]).collect();
        (votes.len(), values.len())
    }

    /// A replica hands a change to its disk, which shows `view` before it.
    pub(super) fn submitted(&mut self, acceptor: Acceptor, view: &DiskState, op: &WriteOp) -> Check {
        let node = acceptor.0;
        match op {
            WriteOp::HardState { state, .. } => {
                ensure!(
                    state.promised >= view.hard.promised,
                    "I6",
                    "{node} lowers its promise from {} to {}",
                    view.hard.promised,
                    state.promised
                );
                ensure!(
                    state.chosen >= view.hard.chosen,
                    "I4",
                    "{node} lowers its watermark from {} to {}",
                    view.hard.chosen,
                    state.chosen
                );
                if state.promised > view.hard.promised {
                    let held = view.entries.range(view.hard.chosen.next()..);
                    let held = held.map(|(slot, accepted)| (*slot, Some(accepted.ballot)));
                    let damaged = view.damaged.range(view.hard.chosen.next()..);
                    let held = held.chain(damaged.map(|slot| (*slot, None))).collect();
                    self.said
                        .entry(acceptor)
                        .or_default()
                        .held
                        .insert(state.promised, held);
                }
            }
            WriteOp::Accept {
                slot, ballot, entry, ..
            } => {
                self.one_value(*slot, *ballot, entry)?;
                ensure!(
                    *ballot >= view.hard.promised || self.decided(*slot) == Some(entry),
                    "promise",
                    "{node} accepts slot {slot} at {ballot}, but has promised {}",
                    view.hard.promised
                );
                ensure!(
                    *slot > view.trimmed,
                    "I7",
                    "{node} writes slot {slot}, which it has trimmed"
                );
                ensure!(
                    *slot > view.hard.chosen || self.decided(*slot) == Some(entry),
                    "I1",
                    "{node} overwrites slot {slot}, which it holds as chosen, with another value"
                );
            }
            WriteOp::Trim { .. } | WriteOp::RemoveGroup { .. } => {}
        }
        Ok(())
    }

    /// A change has become durable; `disk` shows the disk after it.
    pub(super) fn durable(
        &mut self,
        acceptor: Acceptor,
        op: &WriteOp,
        disk: &DiskState,
        before: HardState,
    ) -> Check {
        let node = acceptor.0;
        match op {
            WriteOp::Accept {
                slot, ballot, entry, ..
            } => self.vote(acceptor, *slot, *ballot, entry),
            WriteOp::HardState { state, .. } => {
                ensure!(
                    state.promised >= before.promised,
                    "I6",
                    "the promise of {node} went back from {} to {}",
                    before.promised,
                    state.promised
                );
                self.ballots
                    .entry(state.promised)
                    .or_default()
                    .promised_by
                    .insert(acceptor);
                self.holds_chosen(node, disk, before.chosen, state.chosen)
            }
            WriteOp::Trim { .. } | WriteOp::RemoveGroup { .. } => Ok(()),
        }
    }

    /// I2: at most one value per slot and ballot, wherever it is seen.
    fn one_value(&mut self, slot: Slot, ballot: Ballot, entry: &Entry) -> Check {
        let known = self.values.entry((slot, ballot)).or_insert_with(|| entry.clone());
        ensure!(
            known == entry,
            "I2",
            "two values for slot {slot} at ballot {ballot}"
        );
        Ok(())
    }

    fn vote(&mut self, acceptor: Acceptor, slot: Slot, ballot: Ballot, entry: &Entry) -> Check {
        self.one_value(slot, ballot, entry)?;
        let votes = self.votes.entry(slot).or_default();
        let place = votes
            .iter()
            .position(|votes| votes.ballot == ballot)
            .unwrap_or_else(|| {
                votes.push(Votes {
                    ballot,
                    entry: entry.clone(),
                    acceptors: BTreeSet::new(),
                });
                votes.len() - 1
            });
        votes[place].acceptors.insert(acceptor);
        if slot <= self.chosen() {
            self.still_one(slot)?;
            self.lower_floor(slot);
        }
        while let Some((ballot, entry)) = self.quorum_at(self.chosen().next()) {
            let (at, entry) = (self.chosen().next(), entry.clone());
            let next = Membership::from_entry(&entry);
            self.decided.push(entry);
            self.still_one(at)?;
            if let Some(membership) = next.filter(|next| next.version == self.membership().version + 1) {
                let floor = ballot;
                self.memberships.push(InForce {
                    at,
                    floor,
                    membership,
                });
            }
        }
        Ok(())
    }

    /// A slot that was decided already may turn out to have been chosen at a lower ballot too.
    fn lower_floor(&mut self, slot: Slot) {
        let chosen = self.quorum_at(slot).map(|(ballot, _)| ballot);
        let mut memberships = self.memberships.iter_mut();
        if let Some(in_force) = memberships.find(|in_force| in_force.at == slot && slot > Slot::ZERO) {
            in_force.floor = in_force.floor.min(chosen.unwrap_or(in_force.floor));
        }
    }

    fn in_force(&self, slot: Slot) -> &InForce {
        let mut memberships = self.memberships.iter().rev();
        let found = memberships.find(|in_force| in_force.at < slot);
        found.unwrap_or(&self.memberships[0])
    }

    /// The membership in force after everything that is truly chosen.
    pub fn membership(&self) -> &Membership {
        &self.in_force(Slot::MAX).membership
    }

    /// Memberships that have been proposed and may still become the next one.
    pub(super) fn proposed_memberships(&self) -> impl Iterator<Item = Membership> {
        let next = self.membership().version + 1;
        let open = self.values.range((self.chosen().next(), Ballot::ZERO)..);
        let proposed = open.filter_map(|(_, entry)| Membership::from_entry(entry));
        proposed.filter(move |membership| membership.version == next)
    }

    /// Whether an earlier leader has proposed this entry for this slot.
    pub(super) fn proposed_before(&self, slot: Slot, ballot: Ballot, entry: &Entry) -> bool {
        let mut earlier = self.values.range((slot, Ballot::ZERO)..(slot, ballot));
        earlier.any(|(_, proposed)| proposed == entry)
    }

    /// All memberships so far, each with the slot of its entry.
    pub(super) fn memberships(&self) -> impl Iterator<Item = (Slot, &Membership)> {
        self.memberships
            .iter()
            .map(|in_force| (in_force.at, &in_force.membership))
    }

    /// I11: only voters of the slot's membership count, each with the disk that it was admitted with.
    fn is_quorum(&self, slot: Slot, acceptors: &BTreeSet<Acceptor>) -> bool {
        let membership = &self.in_force(slot).membership;
        let voted = |member: &&Member| {
            let admitted = |(node, storage): &Acceptor| {
                *node == member.node && member.storage.is_none_or(|admitted| admitted == *storage)
            };
            acceptors.iter().any(admitted)
        };
        2 * membership.voting().filter(voted).count() > membership.voting().count()
    }

    /// The lowest ballot at which `slot` is chosen, if it is and all below are, and its entry.
    fn quorum_at(&self, slot: Slot) -> Option<(Ballot, &Entry)> {
        let votes = self.votes.get(&slot)?.iter();
        let floor = self.in_force(slot).floor;
        let chosen = votes.filter(|votes| votes.ballot >= floor && self.is_quorum(slot, &votes.acceptors));
        chosen
            .min_by_key(|votes| votes.ballot)
            .map(|votes| (votes.ballot, &votes.entry))
    }

    /// I1: no quorum ever accepts another value at a slot that is decided.
    fn still_one(&self, slot: Slot) -> Check {
        let decided = self.decided(slot);
        let floor = self.in_force(slot).floor;
        for votes in self.votes.get(&slot).into_iter().flatten() {
            ensure!(
                decided == Some(&votes.entry)
                    || votes.ballot < floor
                    || !self.is_quorum(slot, &votes.acceptors),
                "I1",
                "two values chosen at slot {slot}, the second at ballot {}",
                votes.ballot
            );
        }
        Ok(())
    }

    /// I4: a disk that says "chosen up to here" holds just what was chosen.
    fn holds_chosen(&self, node: NodeId, disk: &DiskState, from: Slot, upto: Slot) -> Check {
        for slot in (from.0 + 1..=upto.0).map(Slot) {
            ensure!(
                slot <= self.chosen(),
                "I4",
                "{node} holds slot {slot} for chosen, which no quorum has accepted"
            );
            let held = disk.entries.get(&slot).map(|accepted| &accepted.entry);
            ensure!(
                slot <= disk.trimmed || disk.damaged.contains(&slot) || held == self.decided(slot),
                "I4",
                "{node} holds slot {slot} for chosen, but not its chosen value"
            );
        }
        Ok(())
    }

    fn learned(&self, node: NodeId, chosen: Slot) -> Check {
        ensure!(
            chosen <= self.chosen(),
            "I4",
            "{node} says that {chosen} is chosen; truly chosen is {}",
            self.chosen()
        );
        Ok(())
    }
}
