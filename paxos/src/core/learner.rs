//! The learner: the chosen watermark, catching up, and handing chosen entries to the state machine in order.

use alloc::{
    collections::{BTreeMap, VecDeque},
    string::ToString,
    vec::Vec,
};

use super::{Alarm, ChosenCommand, ChosenEntry, Message, Output, Replica, batch, election::Role};
use crate::planted;
use crate::types::{Accepted, EntryKind, Incarnation, NodeId, ProposalId, Slot, Time, WriteOp};

/// How many peers' requests for old entries wait for the store at once; one per peer, further ones are dropped and
/// asked again.
const MAX_SERVED_PEERS: usize = 64;

/// Which command of each node comes next: the duplicate filter.
///
/// A node numbers its commands 1, 2, 3, ... in each of its lives, and sends them again, in order, until they are
/// applied. A command counts only if it is the next one of its origin's latest life. Every replica filters the same log,
/// so all skip the same commands, and each command takes effect at most once and in its origin's order.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Origins(BTreeMap<NodeId, (Incarnation, u64)>);

impl Origins {
    /// Counts the command; false if it must be skipped.
    pub(super) fn admit(&mut self, id: ProposalId) -> bool {
        let next = id.sequence != 0 && self.next(id.node, id.incarnation) == id.sequence;
        if next {
            self.0.insert(id.node, (id.incarnation, id.sequence));
        }
        next
    }

    /// The next sequence number of a node's life; zero if a later life has been seen.
    pub(super) fn next(&self, node: NodeId, incarnation: Incarnation) -> u64 {
        match self.0.get(&node) {
            Some((latest, _)) if *latest > incarnation => 0,
            Some((latest, last)) if *latest == incarnation => last.saturating_add(1),
            _ => 1,
        }
    }
}

/// What a read of the store is for.
#[derive(Clone, Copy, Debug, Hash)]
enum Purpose {
    Apply,
    Serve(NodeId),
}

/// An open request to a peer for chosen entries.
#[derive(Clone, Copy, Debug, Hash)]
struct Asked {
    peer: NodeId,
    again_at: Time,
}

#[derive(Clone, Debug, Hash)]
pub(super) struct Learner {
    /// The last entry handed to the state machine.
    pub(super) applied: Slot,
    origins: Origins,
    /// The highest watermark heard of, and from whom.
    known: Slot,
    source: Option<NodeId>,
    asked: Option<Asked>,
    load: Option<(Slot, Purpose)>,
    serving: VecDeque<(NodeId, Slot, Slot)>,
    /// The store does not give back what it must hold; nothing more is applied.
    stuck: bool,
}

impl Learner {
    pub(super) fn new(trimmed: Slot, known: Slot) -> Self {
        Self {
            applied: trimmed,
            origins: Origins::default(),
            known,
            source: None,
            asked: None,
            load: None,
            serving: VecDeque::new(),
            stuck: false,
        }
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
            while self.chosen < upto {
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
        if first < self.window.first() {
            let known = self.learner.serving.iter().any(|(peer, ..)| *peer == from);
            if first > self.trimmed && !known && self.learner.serving.len() < MAX_SERVED_PEERS {
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
        let mut changed = false;
        for (accepted, slot) in entries.into_iter().zip((first.0..=u64::MAX).map(Slot)) {
            if slot <= self.chosen {
                continue;
            }
            if slot > self.chosen.next() || slot > chosen {
                break;
            }
            let same = self
                .window
                .get(slot)
                .is_some_and(|held| held.entry == accepted.entry);
            changed |= !same;
            if !same {
                let Accepted { ballot, entry } = accepted.clone();
                let persist = self.gate.write(WriteOp::Accept {
                    group: self.group,
                    slot,
                    ballot,
                    entry,
                });
                self.window.set(slot, accepted, persist);
            }
            self.advance_chosen(slot);
        }
        self.note_watermark(from, chosen);
        if self.chosen > before {
            // In the same write as the entries: what was learned must never look like an accept of this node's own.
            if changed {
                self.write_hard_state();
            }
            self.learner.asked = None;
            self.learner.source = Some(from);
            self.advance_received();
            self.acknowledge();
        }
        match &self.role {
            Role::Leader(_) if changed => self.become_follower(None),
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
        self.load_from_store();
    }

    fn apply_chosen(&mut self) {
        while self.learner.applied < self.chosen && !self.learner.stuck {
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
            EntryKind::Membership => self.apply_membership(slot, accepted),
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
        self.outputs.push_back(Output::Apply(chosen));
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

    /// Whether old entries are still on their way from the store to the state machine, or will never come.
    pub(super) const fn is_replaying(&self) -> bool {
        self.learner.stuck || matches!(self.learner.load, Some((_, Purpose::Apply)))
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
        if self.learner.known <= self.chosen {
            self.learner.asked = None;
            return;
        }
        if self.disk_lags() {
            return;
        }
        let peers = self.other_members();
        let peer = match self.learner.asked {
            Some(asked) if self.now < asked.again_at => return,
            Some(asked) => peers
                .iter()
                .find(|peer| **peer > asked.peer)
                .or(peers.first())
                .copied(),
            None => self.learner.source.or(peers.first().copied()),
        };
        let Some(peer) = peer else { return };
        let again_at = self.now.plus(self.config.heartbeat_interval * 2);
        self.learner.asked = Some(Asked { peer, again_at });
        let message = Message::Learn {
            from: self.chosen.next(),
            upto: self.learner.known,
        };
        self.send(peer, message);
    }

    pub(super) fn learner_deadline(&self) -> Option<Time> {
        self.learner
            .asked
            .filter(|_| !self.disk_lags())
            .map(|asked| asked.again_at)
    }

    /// Reads old entries back, one request at a time; the state machine's come first.
    fn load_from_store(&mut self) {
        if self.learner.load.is_some() {
            return;
        }
        let max_bytes = self.config.max_message_bytes;
        let below_window = self.window.first().previous();
        let next = self.learner.applied.next();
        if self.learner.applied < self.chosen && next < self.window.first() && !self.learner.stuck {
            self.learner.load = Some((next, Purpose::Apply));
            let upto = self.chosen.min(below_window);
            self.outputs.push_back(Output::Load {
                from: next,
                upto,
                max_bytes,
            });
        } else if let Some((peer, from, upto)) = self.learner.serving.pop_front() {
            self.learner.load = Some((from, Purpose::Serve(peer)));
            self.outputs.push_back(Output::Load {
                from,
                upto: upto.min(below_window),
                max_bytes,
            });
        }
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
            Purpose::Apply if run.is_empty() => {
                self.learner.stuck = true;
                self.outputs
                    .push_back(Output::Alarm(Alarm::Missing { slot: first }));
            }
            Purpose::Apply => {
                for (slot, accepted) in run {
                    if slot == self.learner.applied.next() && slot <= self.chosen {
                        self.apply(slot, &accepted);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_counts_once_in_order_and_in_its_origins_latest_life() {
        let id = |incarnation, sequence| ProposalId {
            node: NodeId(1),
            incarnation: Incarnation(incarnation),
            sequence,
        };
        let mut origins = Origins::default();
        assert!(!origins.admit(id(1, 2)), "the first one is missing");
        assert!(origins.admit(id(1, 1)) && origins.admit(id(1, 2)));
        assert!(!origins.admit(id(1, 2)), "seen already");
        assert!(!origins.admit(id(1, 4)), "3 is missing");
        assert!(origins.admit(id(3, 1)), "a later life begins anew");
        assert!(!origins.admit(id(1, 3)), "an earlier life is over");
        assert_eq!(
            (
                origins.next(NodeId(1), Incarnation(3)),
                origins.next(NodeId(1), Incarnation(1))
            ),
            (2, 0)
        );
    }
}
