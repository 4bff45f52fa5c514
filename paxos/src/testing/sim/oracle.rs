//! The safety oracle: looks into every disk and every message, and knows what is chosen before any replica does.

use std::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};

use super::disk::DiskState;
use crate::{
    core::{Message, Phase, Status},
    types::{Accepted, Ballot, Entry, HardState, Incarnation, Membership, NodeId, Slot, WriteOp},
};

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which: `I1` to `I13` for safety, `L1` and `L2` for progress, or a word for other promises of the contract.
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
pub(super) use ensure;

/// Everything that was ever durably accepted at one slot and ballot.
#[derive(Debug)]
struct Votes {
    ballot: Ballot,
    entry: Entry,
    nodes: BTreeSet<NodeId>,
}

/// What is known of a ballot.
#[derive(Debug, Default)]
struct BallotFacts {
    incarnation: Option<Incarnation>,
    start: Option<Slot>,
    promised_by: BTreeSet<NodeId>,
}

/// What a node has ever asserted.
#[derive(Debug, Default)]
struct Said {
    promised: Ballot,
    accepted: BTreeMap<Slot, Ballot>,
    /// For each promise, what it must report: the slots held when it was made, each with its ballot.
    held: BTreeMap<Ballot, BTreeMap<Slot, Ballot>>,
}

/// Checks I1 to I6 on every durable write, every message and every restart.
#[derive(Debug)]
pub struct Oracle {
    membership: Membership,
    votes: BTreeMap<Slot, Vec<Votes>>,
    values: BTreeMap<(Slot, Ballot), Entry>,
    decided: Vec<Entry>,
    ballots: BTreeMap<Ballot, BallotFacts>,
    said: BTreeMap<NodeId, Said>,
}

type Check = Result<(), Violation>;

impl Oracle {
    /// For a group with this first membership.
    pub const fn new(membership: Membership) -> Self {
        Self {
            membership,
            votes: BTreeMap::new(),
            values: BTreeMap::new(),
            decided: Vec::new(),
            ballots: BTreeMap::new(),
            said: BTreeMap::new(),
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
        own.any(|(_, facts)| self.is_quorum(&facts.promised_by))
    }

    /// At how many ballots `slot` has been durably accepted somewhere, and how many different values.
    pub(super) fn contention(&self, slot: Slot) -> (usize, usize) {
        let votes = self.votes.get(&slot).map_or(&[][..], Vec::as_slice);
        let values: BTreeSet<&[u8]> = votes.iter().map(|votes| &votes.entry.payload[..]).collect();
        (votes.len(), values.len())
    }

    /// A replica hands a change to its disk, which shows `view` before it.
    pub(super) fn submitted(&mut self, node: NodeId, view: &DiskState, op: &WriteOp) -> Check {
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
                    let held = held.map(|(slot, accepted)| (*slot, accepted.ballot)).collect();
                    self.said
                        .entry(node)
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
        node: NodeId,
        op: &WriteOp,
        disk: &DiskState,
        before: HardState,
    ) -> Check {
        match op {
            WriteOp::Accept {
                slot, ballot, entry, ..
            } => self.vote(node, *slot, *ballot, entry),
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
                    .insert(node);
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

    fn vote(&mut self, node: NodeId, slot: Slot, ballot: Ballot, entry: &Entry) -> Check {
        self.one_value(slot, ballot, entry)?;
        let votes = self.votes.entry(slot).or_default();
        let place = votes
            .iter()
            .position(|votes| votes.ballot == ballot)
            .unwrap_or_else(|| {
                votes.push(Votes {
                    ballot,
                    entry: entry.clone(),
                    nodes: BTreeSet::new(),
                });
                votes.len() - 1
            });
        votes[place].nodes.insert(node);
        if slot <= self.chosen() {
            return self.still_one(slot);
        }
        while let Some(entry) = self.quorum_at(self.chosen().next()) {
            self.decided.push(entry);
            self.still_one(self.chosen())?;
        }
        Ok(())
    }

    fn is_quorum(&self, nodes: &BTreeSet<NodeId>) -> bool {
        self.membership.is_quorum(|voter| nodes.contains(&voter.node))
    }

    fn quorum_at(&self, slot: Slot) -> Option<Entry> {
        let votes = self.votes.get(&slot)?;
        let chosen = votes.iter().find(|votes| self.is_quorum(&votes.nodes))?;
        Some(chosen.entry.clone())
    }

    /// I1: no quorum ever accepts another value at a slot that is decided.
    fn still_one(&self, slot: Slot) -> Check {
        let decided = self.decided(slot);
        for votes in self.votes.get(&slot).into_iter().flatten() {
            ensure!(
                decided == Some(&votes.entry) || !self.is_quorum(&votes.nodes),
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
                slot <= disk.trimmed || held == self.decided(slot),
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

    /// I6: a ballot belongs to one node and one life of it, and is on its owner's disk before it is used.
    fn owned(&mut self, node: NodeId, life: Incarnation, ballot: Ballot, disk: &DiskState) -> Check {
        ensure!(
            ballot.node == node,
            "I6",
            "{node} uses ballot {ballot} of another node"
        );
        let facts = self.ballots.entry(ballot).or_default();
        let first = *facts.incarnation.get_or_insert(life);
        ensure!(
            first == life,
            "I6",
            "{node} uses ballot {ballot} in life {} again, which it used in life {}",
            life.0,
            first.0
        );
        ensure!(
            disk.hard.promised >= ballot,
            "I5",
            "{node} uses ballot {ballot} before it is durable"
        );
        Ok(())
    }

    /// A leader speaks: it must have a quorum of durable promises, and one start per ballot.
    fn leads(&mut self, ballot: Ballot, start: Slot) -> Check {
        let facts = self.ballots.entry(ballot).or_default();
        let promised_by = facts.promised_by.clone();
        ensure!(
            *facts.start.get_or_insert(start) == start,
            "I6",
            "ballot {ballot} starts at two slots"
        );
        ensure!(
            self.is_quorum(&promised_by),
            "I6",
            "ballot {ballot} leads without a quorum of promises"
        );
        Ok(())
    }

    /// A replica lets a message out. `disk` is what is durable on its disk now.
    pub(super) fn sent(
        &mut self,
        node: NodeId,
        life: Incarnation,
        message: &Message,
        disk: &DiskState,
    ) -> Check {
        match message {
            Message::Prepare { ballot, .. } => self.owned(node, life, *ballot, disk),
            Message::Promise {
                ballot,
                chosen,
                from,
                to,
                entries,
            } => {
                self.promised(node, *ballot, disk)?;
                self.learned(node, *chosen)?;
                for (slot, accepted) in entries {
                    self.one_value(*slot, accepted.ballot, &accepted.entry)?;
                }
                self.complete(node, *ballot, (*from).max(chosen.next()), *to, entries)
            }
            Message::Accept {
                ballot,
                start,
                first,
                entries,
                chosen,
            } => {
                self.owned(node, life, *ballot, disk)?;
                self.leads(*ballot, *start)?;
                self.learned(node, *chosen)?;
                for (slot, entry) in (first.0..).map(Slot).zip(entries) {
                    self.one_value(slot, *ballot, entry)?;
                    self.adopted(slot, *ballot, entry)?;
                }
                Ok(())
            }
            Message::Heartbeat {
                ballot,
                start,
                chosen,
                ..
            }
            | Message::TakeOver {
                ballot,
                start,
                chosen,
            }
            | Message::Rest {
                ballot,
                start,
                chosen,
                ..
            }
            | Message::Chosen {
                ballot,
                start,
                chosen,
            } => {
                self.owned(node, life, *ballot, disk)?;
                self.leads(*ballot, *start)?;
                self.learned(node, *chosen)
            }
            Message::Accepted { ballot, upto, chosen } => self.accepted(node, *ballot, *upto, *chosen, disk),
            Message::HeartbeatReply {
                ballot,
                accepted,
                chosen,
                ..
            } => self.accepted(node, *ballot, *accepted, *chosen, disk),
            Message::Learned {
                from,
                entries,
                chosen,
            } => {
                self.learned(node, *chosen)?;
                for (slot, accepted) in (from.0..).map(Slot).zip(entries) {
                    ensure!(
                        self.decided(slot) == Some(&accepted.entry),
                        "I4",
                        "{node} teaches a value for slot {slot} that is not chosen"
                    );
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn promised(&mut self, node: NodeId, ballot: Ballot, disk: &DiskState) -> Check {
        ensure!(
            disk.hard.promised >= ballot,
            "I5",
            "{node} promises {ballot} before that is durable"
        );
        let said = self.said.entry(node).or_default();
        said.promised = said.promised.max(ballot);
        Ok(())
    }

    /// A promise leaves nothing out of what its sender held, in the slots that it tells about, when it was made.
    fn complete(
        &self,
        node: NodeId,
        ballot: Ballot,
        from: Slot,
        to: Slot,
        entries: &[(Slot, Accepted)],
    ) -> Check {
        let held = self.said.get(&node).and_then(|said| said.held.get(&ballot));
        for slot in held.into_iter().flat_map(BTreeMap::keys) {
            ensure!(
                *slot < from || *slot > to || entries.iter().any(|(reported, _)| reported == slot),
                "promise",
                "{node} promises {ballot} without slot {slot}, which it has accepted"
            );
        }
        Ok(())
    }

    /// What a leader proposes is what the promises to it bind it to: for some quorum of them, the value of the highest
    /// ballot that they report for the slot, or anything if they report none.
    fn adopted(&self, slot: Slot, ballot: Ballot, entry: &Entry) -> Check {
        if self.decided(slot) == Some(entry) {
            return Ok(());
        }
        let promised_by = self.ballots.get(&ballot).map(|facts| &facts.promised_by);
        let reports: Vec<(NodeId, Option<Ballot>)> = promised_by
            .into_iter()
            .flatten()
            .map(|node| {
                let held = self.said.get(node).and_then(|said| said.held.get(&ballot));
                (*node, held.and_then(|held| held.get(&slot)).copied())
            })
            .collect();
        let bound = |highest: Option<Ballot>| {
            let quorum = reports.iter().filter(|(_, held)| *held <= highest);
            let quorum: BTreeSet<NodeId> = quorum.map(|(node, _)| *node).collect();
            let free = highest.is_none_or(|highest| self.values.get(&(slot, highest)) == Some(entry));
            free && self.is_quorum(&quorum)
        };
        ensure!(
            bound(None) || reports.iter().any(|(_, held)| held.is_some() && bound(*held)),
            "I1",
            "the leader of {ballot} proposes another value for slot {slot} than the promises to it allow"
        );
        Ok(())
    }

    fn accepted(
        &mut self,
        node: NodeId,
        ballot: Ballot,
        upto: Slot,
        chosen: Slot,
        disk: &DiskState,
    ) -> Check {
        self.learned(node, chosen)?;
        let start = self.ballots.get(&ballot).and_then(|facts| facts.start);
        let first = start.unwrap_or(Slot(1)).max(chosen.next());
        let said = self.said.entry(node).or_default();
        said.accepted = said.accepted.split_off(&chosen.next());
        ensure!(
            first > upto || disk.hard.promised >= ballot,
            "I5",
            "{node} says that it accepted at {ballot}, but its disk holds only a promise of {}",
            disk.hard.promised
        );
        for slot in (first.0..=upto.0).map(Slot) {
            let voted = self.votes.get(&slot).is_some_and(|votes| {
                votes
                    .iter()
                    .any(|votes| votes.ballot == ballot && votes.nodes.contains(&node))
            });
            ensure!(
                voted,
                "I5",
                "{node} says that it accepted slot {slot} at {ballot}, which its disk does not hold"
            );
            let highest = said.accepted.entry(slot).or_default();
            *highest = (*highest).max(ballot);
        }
        Ok(())
    }

    /// I5: a node comes back; its disk holds at least all that it ever said.
    pub(super) fn restarted(&self, node: NodeId, disk: &DiskState) -> Check {
        let Some(said) = self.said.get(&node) else {
            return Ok(());
        };
        ensure!(
            disk.hard.promised >= said.promised,
            "I5",
            "{node} came back with promise {}, it had promised {}",
            disk.hard.promised,
            said.promised
        );
        for (slot, ballot) in &said.accepted {
            let held = disk.entries.get(slot);
            let kept = held.is_some_and(|accepted| {
                accepted.ballot >= *ballot || self.decided(*slot) == Some(&accepted.entry)
            });
            ensure!(
                kept || *slot <= disk.trimmed,
                "I5",
                "{node} came back without slot {slot}, which it had accepted at {ballot}"
            );
        }
        Ok(())
    }

    /// What a replica says of itself after a round, against what it said after the round before.
    pub(super) fn status(&self, node: NodeId, now: &Status, before: Option<&Status>) -> Check {
        self.learned(node, now.chosen)?;
        ensure!(
            now.applied <= now.chosen,
            "I4",
            "{node} applied {} but knows only {} chosen",
            now.applied,
            now.chosen
        );
        if let Some(before) = before {
            let forward = now.promised >= before.promised
                && now.chosen >= before.chosen
                && now.applied >= before.applied;
            ensure!(forward, "I6", "{node} went back: {before:?} to {now:?}");
        }
        Ok(())
    }
}

/// Checks that a replica keeps its own bounds (I13). What a new leader inherits may exceed its window; it must not add
/// to that.
pub(super) fn within_bounds(
    node: NodeId,
    now: &Status,
    before: &Status,
    config: &crate::core::Config,
) -> Check {
    let inherited = before.phase != Phase::Leader || now.window_entries <= before.window_entries;
    let within = now.pending_commands <= config.max_pending_commands
        && now.pending_bytes <= config.max_pending_bytes
        && (now.window_entries <= config.max_window_entries || inherited);
    ensure!(
        within,
        "I13",
        "{node} exceeds a bound: {} commands, {} bytes pending, {} entries in flight",
        now.pending_commands,
        now.pending_bytes,
        now.window_entries
    );
    Ok(())
}

pub(super) fn alarm(node: NodeId, alarm: &crate::core::Alarm) -> Violation {
    Violation::new("alarm", format!("{node} raises {alarm:?}"))
}
