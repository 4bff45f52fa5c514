//! What the oracle demands of every message.

use std::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use super::{super::disk::DiskState, Acceptor, Check, Oracle, ensure};
use crate::{
    core::{Message, Reported},
    types::{Ballot, Entry, Incarnation, Membership, NodeId, Slot},
};

impl Oracle {
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
            self.is_quorum(start, &promised_by) && ballot >= self.in_force(start).floor,
            "I6",
            "ballot {ballot} leads without a quorum of promises"
        );
        Ok(())
    }

    /// A replica lets a message out. `disk` is what is durable on its disk now.
    pub(in super::super) fn sent(
        &mut self,
        acceptor: Acceptor,
        life: Incarnation,
        message: &Message,
        disk: &DiskState,
    ) -> Check {
        let node = acceptor.0;
        match message {
            Message::Prepare { ballot, .. } | Message::Drain { ballot, .. } => {
                self.owned(node, life, *ballot, disk)
            }
            Message::Promise {
                ballot,
                chosen,
                reported,
            } => {
                self.promised(acceptor, *ballot, disk)?;
                self.learned(node, *chosen)?;
                for (slot, accepted) in &reported.entries {
                    self.one_value(*slot, accepted.ballot, &accepted.entry)?;
                }
                self.complete(acceptor, *ballot, *chosen, reported)
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
                    self.after_memberships(slot, *ballot, entry)?;
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
                ..
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
            Message::Accepted { ballot, upto, chosen } => {
                self.accepted(acceptor, *ballot, *upto, *chosen, disk)
            }
            Message::HeartbeatReply { ballot, pulse } => {
                self.accepted(acceptor, *ballot, pulse.accepted, pulse.chosen, disk)
            }
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

    fn promised(&mut self, acceptor: Acceptor, ballot: Ballot, disk: &DiskState) -> Check {
        ensure!(
            disk.hard.promised >= ballot,
            "I5",
            "{} promises {ballot} before that is durable",
            acceptor.0
        );
        let said = self.said.entry(acceptor).or_default();
        said.promised = said.promised.max(ballot);
        Ok(())
    }

    /// A promise leaves nothing out of what its sender held, in the slots that it tells about, when it was made.
    fn complete(&self, acceptor: Acceptor, ballot: Ballot, chosen: Slot, reported: &Reported) -> Check {
        let told: BTreeSet<Slot> = reported.slots().collect();
        let asked = reported.first.max(chosen.next())..=reported.last;
        let held = self.said.get(&acceptor).and_then(|said| said.held.get(&ballot));
        for slot in held.into_iter().flat_map(BTreeMap::keys) {
            ensure!(
                !asked.contains(slot) || told.contains(slot),
                "promise",
                "{} promises {ballot} without slot {slot}, which it has accepted",
                acceptor.0
            );
        }
        Ok(())
    }

    /// A leader proposes nothing above a membership until that is chosen.
    fn after_memberships(&mut self, slot: Slot, ballot: Ballot, entry: &Entry) -> Check {
        let chosen = self.chosen();
        let facts = self.ballots.entry(ballot).or_default();
        ensure!(
            slot <= facts.membership || facts.membership <= chosen,
            "membership",
            "the leader of {ballot} proposes for slot {slot}, but the membership at {} is not chosen yet",
            facts.membership
        );
        let next = Membership::from_entry(entry).filter(|_| slot > facts.membership);
        if next.is_some_and(|next| next.version == self.in_force(slot).membership.version + 1) {
            self.ballots.entry(ballot).or_default().membership = slot;
        }
        Ok(())
    }

    /// What a leader proposes is what the promises to it bind it to: for some quorum of them, the value of the highest
    /// ballot that they report for the slot, or anything if they report none.
    fn adopted(&self, slot: Slot, ballot: Ballot, entry: &Entry) -> Check {
        if self.decided(slot) == Some(entry) || ballot < self.in_force(slot).floor {
            return Ok(());
        }
        let promised_by = self.ballots.get(&ballot).map(|facts| &facts.promised_by);
        let reports: Vec<(Acceptor, Option<Ballot>)> = promised_by
            .into_iter()
            .flatten()
            .filter_map(|node| {
                let held = self.said.get(node).and_then(|said| said.held.get(&ballot));
                match held.and_then(|held| held.get(&slot)) {
                    None => Some((*node, None)),
                    Some(Some(held)) => Some((*node, Some(*held))),
                    // Who cannot tell what it has accepted binds nobody, and frees nobody.
                    Some(None) => None,
                }
            })
            .collect();
        let bound = |highest: Option<Ballot>| {
            let quorum = reports.iter().filter(|(_, held)| *held <= highest);
            let quorum: BTreeSet<Acceptor> = quorum.map(|(node, _)| *node).collect();
            let free = highest.is_none_or(|highest| self.values.get(&(slot, highest)) == Some(entry));
            free && self.is_quorum(slot, &quorum)
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
        acceptor: Acceptor,
        ballot: Ballot,
        upto: Slot,
        chosen: Slot,
        disk: &DiskState,
    ) -> Check {
        let node = acceptor.0;
        self.learned(node, chosen)?;
        let start = self.ballots.get(&ballot).and_then(|facts| facts.start);
        let first = start.unwrap_or(Slot(1)).max(chosen.next());
        let said = self.said.entry(acceptor).or_default();
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
                    .any(|votes| votes.ballot == ballot && votes.acceptors.contains(&acceptor))
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
}
