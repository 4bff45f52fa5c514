//! The acceptor: what it promises, what it accepts, and what it tells the leader about it.

use alloc::{collections::BTreeMap, vec, vec::Vec};
use core::mem;

use super::{Alarm, Message, Output, Replica, barrier::Reported, gate::After};
use crate::planted;
use crate::types::{Accepted, Ballot, Entry, HardState, NodeId, Slot, WriteOp};

/// About what a damaged slot takes in a message.
const DAMAGED_SLOT_BYTES: usize = 9;

/// How far this node has followed one leader.
///
/// A cursor such as `received` means: every slot from the leader's `start` (or this node's watermark, if that is
/// higher) up to the cursor has been accepted at `ballot`.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(super) struct Following {
    pub(super) ballot: Ballot,
    /// The first slot that the leader proposed for; of those below, this node may hold anything or nothing.
    pub(super) start: Slot,
    pub(super) received: Slot,
    pub(super) durable: Slot,
}

impl Replica {
    /// The highest ballot that this node will still act on: below it everything is refused.
    pub(super) fn floor(&self) -> Ballot {
        self.promised.max(self.leader.unwrap_or(Ballot::ZERO))
    }

    pub(super) fn hard_state(&self) -> HardState {
        HardState {
            promised: self.promised,
            chosen: self.chosen,
            membership: self.memberships.latest().at,
            quarantine: self.quarantine,
        }
    }

    /// Promises `ballot`, durably. The caller has checked that it is not below the present promise.
    pub(super) fn promise(&mut self, ballot: Ballot) {
        assert!(ballot >= self.promised, "a promise never goes down");
        self.promised = ballot;
        self.note_ballot(ballot);
        self.write_hard_state();
    }

    pub(super) fn write_hard_state(&mut self) {
        let state = self.hard_state();
        self.chosen_written = self.chosen;
        self.gate.write(WriteOp::HardState {
            group: self.group,
            state,
        });
    }

    /// Accepts an entry, durably. The caller has checked ballot and slot.
    pub(super) fn accept(&mut self, slot: Slot, ballot: Ballot, entry: Entry) {
        let op = WriteOp::Accept {
            group: self.group,
            slot,
            ballot,
            entry: entry.clone(),
        };
        let persist = self.gate.write(op);
        self.damage.overwrites(slot, persist);
        self.window.set(slot, Accepted { ballot, entry }, persist);
    }

    pub(super) fn on_prepare(&mut self, from: NodeId, ballot: Ballot, first: Slot, released: Option<Ballot>) {
        if ballot.node != from {
            return;
        }
        if ballot < self.floor() {
            return self.refuse(from, ballot);
        }
        if ballot > self.promised {
            // A leader asks new voters for promises at the ballot that holds the lease itself.
            let holder = if self.has_granted(ballot) {
                Some(ballot)
            } else {
                released
            };
            if self.bound_until(holder).is_some() {
                // The candidate asks again.
                return;
            }
            self.promise(ballot);
            self.become_follower(None);
        }
        self.postpone_election();
        self.report(from, ballot, first);
    }

    /// Answers a `Prepare`: all that was accepted above the watermark, or may have been, in chunks.
    fn report(&mut self, to: NodeId, ballot: Ballot, first: Slot) {
        let chosen = self.claimed_watermark(first);
        let known = first.max(chosen.next());
        let mut slots: BTreeMap<Slot, Option<&Accepted>> = BTreeMap::new();
        slots.extend(
            self.window
                .from(known)
                .map(|(slot, accepted)| (slot, Some(accepted))),
        );
        if !planted::is("damaged_slot_reported_empty") {
            let untold = (known.0..=self.chosen.0).map(Slot);
            let damaged = untold.chain(self.damage.lost_from(self.chosen.next()));
            slots.extend(damaged.map(|slot| (slot, None)));
        }
        let empty = |first| Reported {
            first,
            last: Slot::MAX,
            entries: vec![],
            damaged: vec![],
        };
        let mut chunk = empty(first);
        let mut bytes = 0;
        let mut chunks = vec![];
        for (slot, accepted) in slots {
            let size = accepted.map_or(DAMAGED_SLOT_BYTES, |accepted| accepted.entry.size());
            if bytes > 0 && bytes + size > self.config.max_message_bytes {
                chunk.last = slot.previous();
                chunks.push(mem::replace(&mut chunk, empty(slot)));
                bytes = 0;
            }
            bytes += size;
            match accepted {
                Some(accepted) => chunk.entries.push((slot, accepted.clone())),
                None => chunk.damaged.push(slot),
            }
        }
        chunks.push(chunk);
        for reported in chunks {
            let message = Message::Promise {
                ballot,
                chosen,
                reported,
            };
            if planted::is("promise_before_sync") {
                self.send(to, message);
            } else {
                self.send_when_durable(to, message);
            }
        }
    }

    pub(super) fn send_when_durable(&mut self, to: NodeId, message: Message) {
        let released = self.gate.after(After::Send {
            to: vec![to],
            message,
        });
        self.release(released);
    }

    pub(super) fn refuse(&mut self, to: NodeId, ballot: Ballot) {
        let promised = self.floor();
        self.send(to, Message::Refuse { ballot, promised });
    }

    pub(super) fn on_accept(
        &mut self,
        from: NodeId,
        ballot: Ballot,
        start: Slot,
        first: Slot,
        entries: Vec<Entry>,
        chosen: Slot,
    ) {
        if ballot.node != from {
            return;
        }
        if ballot < self.floor() && !planted::is("accept_below_promise") {
            return self.refuse(from, ballot);
        }
        if ballot > self.promised && !planted::is("accept_keeps_promise") {
            self.promise(ballot);
        }
        self.follow(ballot, start);
        let limit = self.chosen.plus(self.max_ahead());
        for (entry, slot) in entries.into_iter().zip((first.0..=u64::MAX).map(Slot)) {
            if slot > limit || self.disk_lags() {
                break;
            }
            if slot <= self.chosen {
                continue;
            }
            match self.window.get(slot) {
                Some(held) if held.ballot == ballot => {
                    if held.entry != entry {
                        self.outputs
                            .push_back(Output::Alarm(Alarm::TwoValues { slot, ballot }));
                        return;
                    }
                }
                _ => self.accept(slot, ballot, entry),
            }
        }
        self.advance_received();
        self.note_leader_watermark(from, ballot, chosen);
        self.acknowledge();
    }

    /// How many slots above its watermark a node accepts entries: memory is bounded by it.
    pub(super) const fn max_ahead(&self) -> u64 {
        2 * self.config.max_window_entries as u64
    }

    /// Whether the disk is so far behind that this node takes no more entries: memory is bounded by that, too. A quorum
    /// of faster disks goes on without it.
    pub(super) const fn disk_lags(&self) -> bool {
        self.gate.pending_bytes() >= self.config.max_window_bytes
    }

    /// `ballot` is a live leader's, and not too low.
    pub(super) fn follow(&mut self, ballot: Ballot, start: Slot) {
        self.note_ballot(ballot);
        self.become_follower(Some(ballot));
        self.heard_at = self.now;
        self.postpone_election();
        if self.following.ballot != ballot {
            let upto = start.previous().max(self.chosen);
            self.following = Following {
                ballot,
                start,
                received: upto,
                durable: upto,
            };
            self.advance_received();
        }
    }

    pub(super) fn advance_received(&mut self) {
        let Following { ballot, received, .. } = self.following;
        let mut upto = received.max(self.chosen);
        while self
            .window
            .get(upto.next())
            .is_some_and(|held| held.ballot == ballot)
        {
            upto = upto.next();
        }
        self.following.received = upto;
    }

    /// Says, once it is durable, what has been accepted of the present leader.
    pub(super) fn acknowledge(&mut self) {
        let Following {
            ballot,
            received: upto,
            ..
        } = self.following;
        if self.leader != Some(ballot) {
            return;
        }
        if planted::is("accepted_before_sync") {
            return self.on_accepted_durable(ballot, upto);
        }
        let released = self.gate.after(After::Accepted { ballot, upto });
        self.release(released);
    }

    /// What `After::Accepted` held back is durable now.
    pub(super) fn on_accepted_durable(&mut self, ballot: Ballot, upto: Slot) {
        if self.following.ballot != ballot {
            return;
        }
        self.following.durable = self.following.durable.max(upto);
        self.acknowledgement_due = true;
    }

    /// One message, or one count of the own vote, for all that became durable in this round.
    pub(super) fn flush_acknowledgement(&mut self) {
        if !mem::take(&mut self.acknowledgement_due) {
            return;
        }
        let Following {
            ballot,
            durable: upto,
            ..
        } = self.following;
        if ballot.node == self.identity.node {
            self.count_own_vote(ballot, upto);
        } else if ballot >= self.floor() {
            self.send(
                ballot.node,
                Message::Accepted {
                    ballot,
                    upto,
                    chosen: self.chosen,
                },
            );
        }
    }
}
