//! The learner: the chosen watermark, catching up, and handing chosen entries to the state machine in order.

use alloc::{
    collections::{BTreeSet, VecDeque},
    string::ToString,
    vec::Vec,
};

use super::{Alarm, ChosenCommand, ChosenEntry, Message, Output, Replica, batch, election::Role};
use crate::planted;
use crate::snapshot::Origins;
use crate::types::{Accepted, EntryKind, NodeId, ProposalId, Slot, Time, WriteOp};

/// How many peers' requests for old entries wait for the store at once; one per peer, further ones are dropped and
/// asked again.
const MAX_SERVED_PEERS: usize = 64;

/// What a read of the store is for.
#[derive(Clone, Copy, Debug, Hash)]
enum Purpose {
    Apply,
    Serve(NodeId),
    /// A snapshot was installed meanwhile.
    Nothing,
}

/// An open request to a peer for chosen entries.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Asked {
    pub(super) peer: NodeId,
    pub(super) again_at: Time,
}

#[derive(Clone, Debug, Hash)]
pub(super) struct Learner {
    /// The last entry handed to the state machine.
    pub(super) applied: Slot,
    pub(super) origins: Origins,
    /// The highest watermark heard of, and from whom.
    known: Slot,
    source: Option<NodeId>,
    asked: Option<Asked>,
    /// Who has been asked since the watermark moved last.
    tried: BTreeSet<NodeId>,
    load: Option<(Slot, Purpose)>,
    serving: VecDeque<(NodeId, Slot, Slot)>,
    /// The store does not give back what it must hold; nothing more is applied.
    pub(super) stuck: bool,
    /// The machine is away.
    pub(super) held: bool,
}

impl Learner {
    /// For a replica that goes on from a state as of `applied`.
    pub(super) const fn new(applied: Slot, origins: Origins, known: Slot) -> Self {
        Self {
            applied,
            origins,
            known,
            source: None,
            asked: None,
            tried: BTreeSet::new(),
            load: None,
            serving: VecDeque::new(),
            stuck: false,
            held: false,
        }
    }

    const fn may_apply(&self) -> bool {
        !self.stuck && !self.held
    }

    /// Goes on from a snapshot.
    pub(super) fn install(&mut self, upto: Slot, origins: Origins) {
        self.applied = upto;
        self.origins = origins;
        self.known = self.known.max(upto);
        if let Some((_, purpose)) = &mut self.load {
            *purpose = Purpose::Nothing;
        }
    }

    /// Asks all peers again for what is missing.
    pub(super) fn ask_anew(&mut self) {
        self.asked = None;
        self.tried.clear();
    }

    /// This peer cannot help: asks the next one without waiting.
    pub(super) fn ask_another_than(&mut self, peer: NodeId) {
        self.asked = self.asked.filter(|asked| asked.peer != peer);
    }

    /// The highest watermark heard of.
    pub(super) const fn known(&self) -> Slot {
        self.known
    }

    /// Whether everything up to `chosen`, and nothing more, is known and applied, and nobody asks for anything.
    pub(super) fn is_idle(&self, chosen: Slot) -> bool {
        self.applied == chosen && self.known <= chosen && self.load.is_none() && self.serving.is_empty()
    }
}

impl Replica {
    /// A leader announced its watermark: what was accepted at its ballot up to there is chosen.
    pub(super) fn note_leader_watermark(&mut self, from: NodeId, ballot: crate::types::Ballot, chosen: Slot) {
        // What is missing below the leader's start must be learned: the cursor says nothing of it.
        if planted::is("watermark_of_any_ballot") {
            while self.chosen < chosen && self.window.get(self.chosen.next()).is_some() {
                self.advance_chosen(self.chosen.next());
            }
        }
        if self.following.ballot == ballot && self.chosen.next() >= self.following.start {
            let upto = chosen.min(self.following.received);
            while self.chosen < upto && !self.lacks_membership() {
                self.advance_chosen(self.chosen.next());
            }
        }
        self.note_watermark(from, chosen);
    }

    /// A peer says that everything up to `chosen` is chosen.
    pub(super) fn note_watermark(&mut self, from: NodeId, chosen: Slot) {
        if chosen > self.learner.known {
            self.learner.known = chosen;
            self.learner.source = Some(from);
        }
    }

    /// The entry that the window holds at the next slot is chosen.
    pub(super) fn advance_chosen(&mut self, slot: Slot) {
        assert!(slot == self.chosen.next(), "the watermark moves without holes");
        assert!(
            self.window.get(slot).is_some(),
            "a slot is marked chosen only where its entry is held"
        );
        self.window.mark_chosen(slot);
        self.chosen = slot;
        self.learner.known = self.learner.known.max(slot);
        self.following.received = self.following.received.max(slot);
        self.on_leader_chosen(slot);
        self.note_membership(slot);
    }

    pub(super) fn on_learn(&mut self, from: NodeId, first: Slot, upto: Slot) {
        let upto = upto.min(self.chosen);
        if first > upto || first == Slot::ZERO {
            return;
        }
        self.note_reader(from, first.previous(), false);
        if first < self.window.first() && first > self.trimmed && self.damage.has(first) {
            self.teach_nothing(from, first);
            return;
        }
        if first < self.window.first() {
            let known = self.learner.serving.iter().any(|(peer, ..)| *peer == from);
            if first <= self.trimmed {
                self.offer_snapshot(from, first);
            } else if !known && self.learner.serving.len() < MAX_SERVED_PEERS {
                self.learner.serving.push_back((from, first, upto));
            }
            return;
        }
        let mut bytes = 0;
        let max = self.config.max_message_bytes;
        let entries = self
            .window
            .from(first)
            .take_while(|(slot, accepted)| {
                let fits = bytes == 0 || bytes + accepted.entry.size() <= max;
                bytes += accepted.entry.size();
                *slot <= upto && fits
            })
            .map(|(_, accepted)| accepted.clone())
            .collect();
        self.send(
            from,
            Message::Learned {
                from: first,
                entries,
                chosen: self.chosen,
            },
        );
    }

    pub(super) fn on_learned(&mut self, from: NodeId, first: Slot, entries: Vec<Accepted>, chosen: Slot) {
        let before = self.chosen;
        let membership = self.memberships.latest().clone();
        let mut changed = false;
        let mut repaired = false;
        let answers_nothing = entries.is_empty();
        for (accepted, slot) in entries.into_iter().zip((first.0..=u64::MAX).map(Slot)) {
            if slot > chosen {
                break;
            }
            if slot <= self.chosen {
                repaired |= self.repair(slot, accepted);
                continue;
            }
            if slot > self.chosen.next() || self.lacks_membership() {
                break;
            }
            let same = self
                .window
                .get(slot)
                .is_some_and(|held| held.entry == accepted.entry && !is_older_membership(held, &accepted));
            changed |= !same;
            if !same {
                let Accepted { ballot, entry } = accepted.clone();
                let persist = self.gate.write(WriteOp::Accept {
                    group: self.group,
                    slot,
                    ballot,
                    entry,
                });
                self.damage.overwrites(slot, persist);
                self.window.set(slot, accepted, persist);
            }
            self.advance_chosen(slot);
        }
        self.note_watermark(from, chosen);
        self.note_informed(from, chosen);
        // In the same write as the entries: what was learned must never look like an accept of this node's own.
        if changed || repaired {
            self.write_hard_state();
        }
        if repaired || answers_nothing {
            self.note_repair(from, repaired);
        }
        if self.chosen > before {
            self.learner.ask_anew();
            self.snapshots.forget_offers();
            self.learner.source = Some(from);
            self.advance_received();
            self.acknowledge();
        }
        match &self.role {
            // Somebody leads at a higher ballot, and may be far ahead.
            Role::Leader(_) if changed || self.has_learned_membership(&membership) => {
                self.become_follower(None);
            }
            Role::Candidate(_) if self.chosen > before => {
                self.postpone_election();
                self.finish_candidacy();
            }
            _ => {}
        }
    }

    /// Applies what is chosen, and asks peers or the store for what is missing.
    pub(super) fn learn_and_apply(&mut self) {
        self.apply_chosen();
        self.window
            .evict(self.gate.durable(), self.config.max_cache_bytes);
        self.ask_peers();
        self.seek_lost_snapshot();
        self.ask_for_repairs();
        self.load_from_store();
    }

    fn apply_chosen(&mut self) {
        while self.learner.applied < self.chosen && self.learner.may_apply() {
            let slot = self.learner.applied.next();
            let Some(accepted) = self.window.get(slot).cloned() else {
                return;
            };
            self.apply(slot, &accepted);
        }
    }

    fn apply(&mut self, slot: Slot, accepted: &Accepted) {
        let mut chosen = ChosenEntry {
            slot,
            ballot: crate::types::Ballot::ZERO,
            commands: Vec::new(),
        };
        match accepted.entry.kind {
            EntryKind::Noop => {}
            EntryKind::Membership => self.forget_memberships_below(slot),
            EntryKind::Commands => match batch::decode(&accepted.entry.payload) {
                Ok(batch) => {
                    chosen.ballot = batch.ballot;
                    for command in batch.commands {
                        if self.learner.origins.admit(command.id) {
                            if self.is_forged(command.id) {
                                self.learner.stuck = true;
                                self.outputs.push_back(Output::Alarm(Alarm::LifeReused { slot }));
                                return;
                            }
                            let token = self.answer(command.id);
                            chosen.commands.push(ChosenCommand { command, token });
                        }
                    }
                }
                Err(error) => {
                    let detail = error.to_string();
                    self.outputs
                        .push_back(Output::Alarm(Alarm::Malformed { slot, detail }));
                }
            },
        }
        self.learner.applied = slot;
        self.history.add(slot, &accepted.entry, chosen.commands.len());
        self.outputs.push_back(Output::Apply(chosen));
        self.count_applied(slot, accepted.entry.size());
    }

    /// Whether this is a command of this node's present life that it never proposed.
    fn is_forged(&self, id: ProposalId) -> bool {
        let own = id.node == self.identity.node && id.incarnation == self.incarnation;
        own && id.sequence >= self.proposals.end()
    }

    /// The user of this node who waits for this command, if any.
    fn answer(&mut self, id: ProposalId) -> Option<super::Token> {
        if id.node != self.identity.node {
            if self.is_leader() {
                self.told_now.insert(id.node);
            }
            return None;
        }
        if id.incarnation == self.incarnation {
            self.proposals.applied(id.sequence)
        } else {
            None
        }
    }

    /// Whether the state machine is away, or old entries are still on their way to it from the store, or will never come.
    pub(super) const fn is_replaying(&self) -> bool {
        !self.learner.may_apply() || matches!(self.learner.load, Some((_, Purpose::Apply)))
    }

    /// The duplicate filter as it will be when everything up to `upto` is applied; `None` while part of that is not in
    /// memory.
    pub(super) fn origins_upto(&self, upto: Slot) -> Option<Origins> {
        let from = self.learner.applied.next();
        if from < self.window.first() {
            return None;
        }
        let mut origins = self.learner.origins.clone();
        for (_, accepted) in self.window.from(from).take_while(|(slot, _)| *slot <= upto) {
            if accepted.entry.kind == EntryKind::Commands
                && let Ok(batch) = batch::decode(&accepted.entry.payload)
            {
                for command in batch.commands {
                    origins.admit(command.id);
                }
            }
        }
        Some(origins)
    }

    /// Asks for chosen entries that are missing here: first whoever announced them, on silence the next member.
    fn ask_peers(&mut self) {
        self.go_on_fetching();
        if self.learner.known <= self.chosen {
            self.learner.ask_anew();
            self.snapshots.forget_offers();
            return;
        }
        let waits = self.learner.asked.is_some_and(|asked| self.now < asked.again_at);
        if waits || self.disk_lags() || self.snapshots.is_fetching() {
            return;
        }
        let mut peer = self.next_to_ask();
        if peer.is_none() {
            self.learner.ask_anew();
            if self.begin_fetch() {
                return;
            }
            peer = self.next_to_ask();
        }
        let Some(peer) = peer else { return };
        self.learner.tried.insert(peer);
        let again_at = self.now.plus(self.config.heartbeat_interval * 2);
        self.learner.asked = Some(Asked { peer, again_at });
        let message = Message::Learn {
            from: self.chosen.next(),
            upto: self.learner.known,
        };
        self.send(peer, message);
    }

    /// The next peer that may hold what is missing: whoever announced it, the leader, then all others in turn.
    fn next_to_ask(&self) -> Option<NodeId> {
        let members = self.teachers(self.learner.source);
        let leader = self.leader.map(|ballot| ballot.node);
        let first = [self.learner.source, leader].into_iter().flatten();
        let untried = |peer: &NodeId| {
            members.contains(peer)
                && !self.learner.tried.contains(peer)
                && !self.snapshots.has_offer_of(*peer)
        };
        first.chain(members.iter().copied()).find(untried)
    }

    pub(super) fn learner_deadline(&self) -> Option<Time> {
        let asked = self
            .learner
            .asked
            .filter(|_| !self.snapshots.is_fetching() && !self.disk_lags());
        let asked = asked.map(|asked| asked.again_at);
        asked
            .into_iter()
            .chain(self.repair_deadline())
            .min()
            .or_else(|| self.fetch_deadline())
    }

    /// Reads old entries back, one request at a time; the state machine's come first.
    fn load_from_store(&mut self) {
        if self.learner.load.is_some() {
            return;
        }
        let max_bytes = self.config.max_message_bytes;
        let below_window = self.window.first().previous();
        let next = self.learner.applied.next();
        let applies = self.learner.applied < self.chosen && self.learner.may_apply();
        if applies && next < self.window.first() && !self.waits_for_repair() {
            self.learner.load = Some((next, Purpose::Apply));
            let upto = self.readable(next, self.chosen.min(below_window));
            self.outputs.push_back(Output::Load {
                from: next,
                upto,
                max_bytes,
            });
            return;
        }
        while let Some((peer, from, upto)) = self.learner.serving.pop_front() {
            if from <= self.trimmed {
                self.offer_snapshot(peer, from);
                continue;
            }
            if self.damage.has(from) {
                self.teach_nothing(peer, from);
                continue;
            }
            self.learner.load = Some((from, Purpose::Serve(peer)));
            self.outputs.push_back(Output::Load {
                from,
                upto: self.readable(from, upto.min(below_window)),
                max_bytes,
            });
            return;
        }
    }

    /// Tells a peer that asks for entries that it has to ask another one.
    pub(super) fn teach_nothing(&mut self, to: NodeId, from: Slot) {
        let message = Message::Learned {
            from,
            entries: Vec::new(),
            chosen: self.chosen,
        };
        self.send(to, message);
    }

    pub(super) fn on_loaded(&mut self, from: Slot, entries: Vec<(Slot, Accepted)>) {
        let Some((first, purpose)) = self.learner.load.filter(|(first, _)| *first == from) else {
            return;
        };
        self.learner.load = None;
        let run = (first.0..)
            .zip(entries)
            .take_while(|(expected, (slot, _))| *expected == slot.0);
        let run: Vec<(Slot, Accepted)> = run.map(|(_, entry)| entry).collect();
        match purpose {
            Purpose::Nothing => {}
            Purpose::Serve(peer) if first <= self.trimmed => self.offer_snapshot(peer, first),
            Purpose::Serve(peer) => {
                let entries = run.into_iter().map(|(_, accepted)| accepted).collect();
                self.send(
                    peer,
                    Message::Learned {
                        from: first,
                        entries,
                        chosen: self.chosen,
                    },
                );
            }
            Purpose::Apply if run.is_empty() && self.waits_for_repair() => {}
            Purpose::Apply if run.is_empty() => {
                self.learner.stuck = true;
                self.outputs
                    .push_back(Output::Alarm(Alarm::Missing { slot: first }));
            }
            Purpose::Apply => {
                for (slot, accepted) in run {
                    let is_next = slot == self.learner.applied.next() && slot <= self.chosen;
                    if is_next && self.learner.may_apply() {
                        self.apply(slot, &accepted);
                    }
                }
            }
        }
    }
}

/// Whether both are the same membership, which the teacher holds at a higher ballot: it counts from which ballot on it is
/// known to be chosen.
fn is_older_membership(held: &Accepted, taught: &Accepted) -> bool {
    held.entry.kind == EntryKind::Membership && held.ballot < taught.ballot
}
