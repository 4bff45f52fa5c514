//! Where a leader stops and waits for more promises: at a membership, and at a slot that too few voters can tell of.
//!
//! At a membership it waits until the entry and all before it are chosen, because only then is it
//! known who may vote for what follows; then it collects promises for the slots that follow from a quorum of the new
//! voters, and goes on with what they report. (Lamport: *Paxos Made Simple*, section 3, lets a membership decide about a
//! fixed number of slots later instead; here it decides about the next one, and the leader stops there.)
//!
//! At a slot that earlier leaders may have got something chosen at, and whose records are damaged at so many voters that
//! no quorum is left to tell, it waits for the promises of others, or for a voter that has its record back: see
//! [`damage`](super::damage).

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use super::{
    Message, Output, Replica, Sender,
    changes::ChangeAsker,
    drain::Drain,
    election::{Report, Role, is_quorum},
    progress::Progress,
    proposer::Leadership,
    rollback::Testimony,
};
use crate::planted;
use crate::types::{Accepted, Ballot, ChosenMembership, Entry, Member, Membership, NodeId, Slot, Time};

/// Why a leader proposes nothing at present.
#[derive(Clone, Debug, Hash)]
pub(super) enum Barrier {
    /// The last slot that it proposed for holds a membership, which is not chosen yet.
    Proposed(Membership),
    /// The membership is chosen; promises of its voters are being collected, and asked for again at this time. The
    /// membership before it counts too until then.
    Chosen { before: Membership, ask_at: Time },
    /// The next slot may hold something that earlier leaders got chosen, and too few voters can tell, because records are
    /// damaged: promises of others are asked for at this time. It has been so since then.
    Undecided { since: Time, ask_at: Time },
    /// By the membership, which is chosen, this node is no voter: it leads until a quorum of the voters know that.
    Leaving { before: Membership },
}

/// What a leader at `ballot` has been promised, and what was reported with it.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Promises {
    /// By whom.
    pub(super) reports: BTreeMap<NodeId, Report>,
    /// For each slot the entry of the highest ballot reported.
    pub(super) found: BTreeMap<Slot, Accepted>,
}

/// What one chunk of a promise reports of a run of slots: see [`Message::Promise`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reported {
    /// The first slot that it tells about.
    pub first: Slot,
    /// The last slot that it tells about; [`Slot::MAX`] in the last chunk.
    pub last: Slot,
    /// All that the sender has accepted in these slots.
    pub entries: Vec<(Slot, Accepted)>,
    /// Those of these slots of which the sender cannot tell what it has accepted, because its record of that is
    /// damaged: for them, the promise does not count.
    pub damaged: Vec<Slot>,
}

impl Reported {
    /// The slots that something was accepted at, or may have been.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        let held = self.entries.iter().map(|(slot, _)| *slot);
        held.chain(self.damaged.iter().copied())
    }
}

impl Promises {
    /// Takes in a part of what somebody reports; `known` is where reports begin. Whether it told anything new.
    pub(super) fn take(
        &mut self,
        (from, storage): Sender,
        chosen: Slot,
        known: Slot,
        reported: Reported,
    ) -> bool {
        let Reported {
            first,
            last,
            entries,
            damaged,
        } = reported;
        let new = || Report {
            storage,
            covered: known,
            chosen,
            damaged: BTreeSet::new(),
        };
        let report = self.reports.entry(from).or_insert_with(new);
        if report.storage != storage {
            *report = new();
        }
        report.chosen = report.chosen.max(chosen);
        if first > report.covered.next() {
            return false;
        }
        let within = |slot: &Slot| (first..=last).contains(slot);
        let told = report.covered;
        let more = last > told;
        report.covered = told.max(last);
        // Nothing changes any more in what has been told once: who has a record back tells of it, too.
        report
            .damaged
            .retain(|slot| !within(slot) || damaged.contains(slot));
        let untold = damaged.into_iter().filter(|slot| within(slot) && *slot > told);
        report.damaged.extend(untold);
        for (slot, accepted) in entries {
            if slot < first || slot > last || planted::is("promise_entries_dropped") {
                continue;
            }
            let wrong = planted::is("wrong_ballot_adopted") || planted::is("wrong_ballot_of_promises");
            match self.found.get(&slot) {
                Some(known) if (known.ballot >= accepted.ballot) != wrong => {}
                _ => {
                    self.found.insert(slot, accepted);
                }
            }
        }
        more
    }

    /// Whether a quorum of these voters has reported everything, and everything that any of them knows to be chosen is
    /// known here.
    pub(super) fn are_complete(&self, membership: &Membership, chosen: Slot) -> bool {
        let done = |report: &&Report| report.covered == Slot::MAX;
        let with = |node| self.reports.get(&node).filter(done).map(|report| report.storage);
        let inherited = self.reports.values().filter(done).map(|report| report.chosen);
        is_quorum(membership, with) && inherited.max().is_none_or(|inherited| inherited <= chosen)
    }

    /// Whether anybody has reported damage.
    fn has_damage(&self) -> bool {
        self.reports.values().any(|report| !report.damaged.is_empty())
    }

    /// The last slot that anybody has accepted something at, or may have.
    pub(super) fn last(&self) -> Slot {
        let damaged = self
            .reports
            .values()
            .filter_map(|report| report.damaged.last().copied());
        let found = self.found.keys().next_back().copied();
        damaged.chain(found).max().unwrap_or_default()
    }

    /// Whether a quorum of these voters has told what it has accepted at `slot`: where its record is damaged, a voter
    /// tells nothing.
    fn tell_of(&self, slot: Slot, membership: &Membership) -> bool {
        if !self.has_damage() || planted::is("damaged_slot_counts") {
            return true;
        }
        let tells = |report: &&Report| {
            report.covered == Slot::MAX && report.chosen < slot && !report.damaged.contains(&slot)
        };
        is_quorum(membership, |node| {
            self.reports.get(&node).filter(tells).map(|report| report.storage)
        })
    }

    /// What is still to be asked of the voters: from which slot on. `known` is where reports begin.
    pub(super) fn missing(&self, membership: &Membership, known: Slot) -> Vec<(NodeId, Slot)> {
        let ask = |voter: &Member| {
            let report = self.reports.get(&voter.node);
            match report.filter(|report| voter.admits(report.storage)) {
                None => Some((voter.node, known.next())),
                Some(report) if report.covered < Slot::MAX => Some((voter.node, report.covered.next())),
                Some(_) => None,
            }
        };
        membership.voting().filter_map(ask).collect()
    }

    /// Whose records of `slot` are damaged, as they have told: they may have them back.
    fn damaged_at(&self, slot: Slot) -> impl Iterator<Item = NodeId> + '_ {
        let damaged = self
            .reports
            .iter()
            .filter(move |(_, report)| report.damaged.contains(&slot));
        damaged.map(|(node, _)| *node)
    }
}

impl Leadership {
    /// The memberships of which this leader needs a quorum each in order to know that it leads.
    pub(super) fn electorates<'a>(&'a self, current: &'a Membership) -> impl Iterator<Item = &'a Membership> {
        let other = match &self.barrier {
            None | Some(Barrier::Undecided { .. }) => None,
            Some(Barrier::Proposed(next)) => Some(next),
            Some(Barrier::Chosen { before, .. } | Barrier::Leaving { before }) => Some(before),
        };
        core::iter::once(current).chain(other)
    }

    /// Whether the last membership is chosen, and this leader has not gone on from there.
    pub(super) const fn awaits_promises(&self) -> bool {
        matches!(
            self.barrier,
            Some(Barrier::Chosen { .. } | Barrier::Leaving { .. })
        )
    }

    /// Whether a quorum of the voters knows everything up to `at` to be chosen.
    fn is_known(&self, at: Slot, membership: &Membership, own: Sender) -> bool {
        membership.is_quorum(|voter| self.of(voter, own, |peer| peer.unclaimed >= at, || true))
    }

    /// Whether everything that earlier leaders may have got chosen has been proposed again.
    pub(super) fn has_adopted(&self) -> bool {
        self.barrier.is_none() && self.next > self.inherited
    }
}

impl Replica {
    /// Proposes what earlier leaders may have got chosen, and no-ops in the holes, up to the next membership.
    pub(super) fn adopt(&mut self) {
        self.with_leadership(|replica, leadership| {
            while leadership.barrier.is_none() && leadership.next <= leadership.inherited {
                let current = replica.memberships.current();
                if !leadership.promises.tell_of(leadership.next, current) {
                    let now = replica.now;
                    leadership.barrier = Some(Barrier::Undecided {
                        since: now,
                        ask_at: now,
                    });
                    break;
                }
                let found = leadership.promises.found.remove(&leadership.next);
                if planted::is("hole_not_filled") && found.is_none() {
                    leadership.next = leadership.next.next();
                    continue;
                }
                let entry = found.map_or(Entry::NOOP, |accepted| accepted.entry);
                replica.assign_at_barrier(leadership, entry);
            }
        });
        self.advance_received();
        self.acknowledge();
    }

    /// Gives an entry the next slot, and stops there if it is a membership.
    pub(super) fn assign_at_barrier(&mut self, leadership: &mut Leadership, entry: Entry) {
        let membership = Membership::from_entry(&entry);
        self.assign(leadership, entry);
        let counts = |next: &Membership| self.takes_effect(next) && !planted::is("barrier_skipped");
        let Some(next) = membership.filter(counts) else {
            return;
        };
        self.add_peers(leadership, &next);
        // Whoever will have to vote is sent the entry, too.
        self.outputs.push_back(Output::Peers(next.clone()));
        leadership.barrier = Some(Barrier::Proposed(next));
    }

    fn add_peers(&self, leadership: &mut Leadership, membership: &Membership) {
        let (own, now, next) = (self.identity.node, self.now, self.chosen.next());
        let round = leadership.round;
        for member in &membership.members {
            if member.node != own {
                leadership.peers.entry(member.node).or_insert_with(|| {
                    let mut peer = Progress::new(next, now);
                    // It may have been a member before, and have forgotten that.
                    peer.testimony = Testimony::since(round);
                    peer
                });
            }
        }
    }

    /// A membership has been chosen, at the watermark.
    pub(super) fn change_chosen(&mut self, slot: Slot) {
        let own = self.own();
        let current = self.memberships.current().clone();
        let may_lead = |(node, storage)| current.may_vote(node, storage);
        let told = Message::NotAdmitted {
            at: slot,
            membership: current.clone(),
        };
        let now = self.now;
        let mut gone = Vec::new();
        let mut unknown = None;
        if let Role::Leader(leadership) = &mut self.role {
            let before = self.memberships.previous().clone();
            let has_to_come = leadership.drain.as_ref().is_some_and(Drain::has_to_come);
            if !matches!(&leadership.barrier, Some(Barrier::Proposed(next)) if *next == current)
                && !has_to_come
            {
                // Another leader's: what becomes of the own one, nobody knows.
                unknown = leadership.change_asker.take();
            }
            leadership.drain.take_if(|_| !has_to_come);
            leadership.barrier = Some(if may_lead(own) {
                Barrier::Chosen { before, ask_at: now }
            } else {
                Barrier::Leaving { before }
            });
            leadership.release_testimonies(self.memberships.previous(), &current);
            if planted::is("new_voters_not_asked") || planted::is("barrier_skipped") {
                leadership.barrier = None;
            }
            let is_member = |node: &NodeId| current.member(*node).is_some();
            gone.extend(leadership.peers.keys().copied().filter(|node| !is_member(node)));
            leadership.peers.retain(|node, _| is_member(node));
            // It may have been learned, not proposed.
            leadership.promises.found.retain(|found, _| *found > slot);
        } else if let Some(leader) = self.leader
            && !current.voters().any(|voter| voter == leader.node)
        {
            // It will lead no longer than it must.
            self.become_follower(None);
            self.hasten_election();
        }
        self.with_leadership(|replica, leadership| replica.add_peers(leadership, &current));
        self.send_all(gone, told);
        if let Some(ChangeAsker::Own(token)) = unknown {
            self.outputs.push_back(Output::Unknown { token });
        }
        if !may_lead(own) {
            // The sooner the others know, the sooner one of them leads.
            self.hand_over_and_leave();
            self.heartbeat();
        }
    }

    /// A leader that waits for promises asks for what it still lacks, and goes on once it has that.
    pub(super) fn tend_barrier(&mut self) {
        let current = self.memberships.current();
        let own = self.own();
        let chosen = self.chosen;
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        let complete = match &leadership.barrier {
            Some(Barrier::Chosen { .. }) => leadership.promises.are_complete(current, chosen),
            Some(Barrier::Leaving { .. }) => {
                let at = self.memberships.latest().at;
                if leadership.is_known(at, current, own) {
                    return self.leave();
                }
                return;
            }
            Some(Barrier::Undecided { .. }) => {
                // Who came late may know more to be chosen, of which it reports nothing: that must be learned.
                let promises = &leadership.promises;
                promises.are_complete(current, chosen) && promises.tell_of(leadership.next, current)
            }
            None | Some(Barrier::Proposed(_)) => return,
        };
        if !complete {
            return self.ask_voters();
        }
        let changed = leadership.awaits_promises();
        leadership.barrier = None;
        leadership.inherited = leadership.inherited.max(leadership.promises.last());
        if changed {
            self.finish_change();
            // Whoever leads alone from now on hears no answer any more that would do it.
            self.confirm_reads();
        }
        self.adopt();
    }

    fn ask_voters(&mut self) {
        let (now, chosen) = (self.now, self.chosen);
        let again_at = now.plus(self.config.heartbeat_interval * 2);
        let patience = self.config.election_timeout * 4;
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        let Some(Barrier::Chosen { ask_at, .. } | Barrier::Undecided { ask_at, .. }) =
            &mut leadership.barrier
        else {
            return;
        };
        if now < *ask_at {
            return;
        }
        *ask_at = again_at;
        let (ballot, next) = (leadership.ballot, leadership.next);
        let mut asked = leadership.promises.missing(self.memberships.current(), chosen);
        if let Some(Barrier::Undecided { since, .. }) = leadership.barrier {
            let undecidable = asked.is_empty() && now.since(since) >= patience;
            asked.extend(leadership.promises.damaged_at(next).map(|voter| (voter, next)));
            if undecidable {
                self.alarm_undecidable(next);
            }
        }
        self.ask_promises_of(ballot, asked, None);
    }

    /// When a leader that waits for promises asks again.
    pub(super) fn change_deadline(&self) -> Option<Time> {
        match &self.role {
            Role::Leader(leadership) => match &leadership.barrier {
                Some(Barrier::Chosen { ask_at, .. } | Barrier::Undecided { ask_at, .. }) => Some(*ask_at),
                _ => None,
            },
            _ => None,
        }
    }

    /// The slot that a leader waits at because too few voters can tell what they have accepted there.
    pub(super) fn undecided(&self) -> Option<Slot> {
        match &self.role {
            Role::Leader(leadership) => match leadership.barrier {
                Some(Barrier::Undecided { .. }) => Some(leadership.next),
                _ => None,
            },
            _ => None,
        }
    }

    /// A promise to a leader that waits for more of them.
    pub(super) fn on_promise_to_leader(
        &mut self,
        from: Sender,
        ballot: Ballot,
        chosen: Slot,
        mut reported: Reported,
    ) {
        let known = self.chosen;
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        let collects = matches!(
            leadership.barrier,
            Some(Barrier::Chosen { .. } | Barrier::Undecided { .. })
        );
        // Whoever has forgotten something may have forgotten what it should report.
        let counts = |peer: &Progress| peer.counts() || peer.storage != Some(from.1);
        let counts = leadership.peers.get(&from.0).is_none_or(counts);
        if leadership.ballot == ballot && collects && counts {
            reported.entries.retain(|(slot, _)| *slot > known);
            leadership.promises.take(from, chosen, known, reported);
            self.note_watermark(from.0, chosen);
        }
    }

    /// A voter knows the present membership, by which this node may not lead.
    pub(super) fn note_farewell(&mut self, (from, storage): Sender) {
        let at = self.memberships.latest().at;
        if let Role::Leader(leadership) = &mut self.role
            && matches!(leadership.barrier, Some(Barrier::Leaving { .. }))
            && let Some(peer) = leadership.peers.get_mut(&from)
            && *peer.storage.get_or_insert(storage) == storage
        {
            peer.unclaimed = peer.unclaimed.max(at);
        }
    }

    /// This node leads no longer, because it is no voter any more and the voters know that.
    fn leave(&mut self) {
        let told = Message::Chosen {
            ballot: self.leader.unwrap_or_default(),
            start: self.following.start,
            chosen: self.chosen,
        };
        let peers = self.other_members();
        self.send_all(peers, told);
        self.finish_change();
        self.become_follower(None);
        self.postpone_election();
    }

    /// A leader learned a membership that it did not get chosen itself: somebody leads at a higher ballot.
    pub(super) fn has_learned_membership(&self, before: &ChosenMembership) -> bool {
        self.memberships.latest().at > before.at
    }
}
