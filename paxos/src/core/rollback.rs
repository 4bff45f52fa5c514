//! Notices a store that has gone back to an older state, with everything that it had acknowledged since: a disk restored
//! from a copy, a virtual machine set back. Such a node has forgotten promises and votes, so it must not count.
//!
//! The backends notice what they can by themselves; a directory that was replaced as a whole they cannot. So every
//! answer to a heartbeat tells the sender's life, what its disk held when that life began, and what it holds durably
//! now. Whatever a life has said to hold, every later life of the same disk must begin with: the leader remembers it
//! for as long as it leads, and does not count a peer any more that lacks some of it. The peer is told, looks itself,
//! and quarantines itself.
//!
//! How the leader knows what came first: lives have numbers that grow, as long as nothing goes wrong. They come from the
//! disk and the clock, so those of a disk that was set back under a clock that is behind do not; and a virtual machine
//! that is set back with its memory goes on in the same life. But whatever answers a heartbeat is later than all that the
//! leader had heard when it sent that heartbeat. So it does not matter in which order answers come, how often, or how
//! late.
//!
//! Only voters are judged: others may forget what they hold, as [`Node::remove_group`](crate::Node::remove_group) does.
//!
//! What is not noticed: a disk set back while nobody leads who has heard of what is lost, that of a leader which does not
//! come back as a peer of the same leadership (it never does), a machine set back with its memory that holds as much again
//! when it answers the next heartbeat, and what the node does until the leader hears of it.

use super::{Alarm, Message, Output, Replica, election::Role, progress::Progress, proposer::Leadership};
use crate::planted;
use crate::types::{Ballot, HardState, Incarnation, Membership, NodeId, Quarantine, Slot};

/// What a disk holds durably.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Holding {
    /// The highest slot that holds an entry, or did before it was trimmed.
    pub slot: Slot,
    /// The highest ballot promised.
    pub promised: Ballot,
}

impl Holding {
    /// Whether anything of `other` is missing here.
    fn lacks(self, other: Self) -> bool {
        self.slot < other.slot || self.promised < other.promised
    }

    /// What both have together.
    pub(super) fn join(self, other: Self) -> Self {
        Self {
            slot: self.slot.max(other.slot),
            promised: self.promised.max(other.promised),
        }
    }

    /// What was found on a disk: with this hard state, and records of entries up to this slot. One that is damaged counts,
    /// too: the disk has not forgotten it.
    pub(super) fn found(hard_state: &HardState, last: Slot) -> Self {
        Self {
            slot: hard_state.chosen.max(last),
            promised: hard_state.promised,
        }
    }
}

impl Life {
    /// The same life, with this held as well.
    fn with(self, held: Holding) -> Self {
        Self {
            holds: self.holds.join(held),
            ..self
        }
    }
}

/// A life of a replica, and what its disk held and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Life {
    /// Which.
    pub incarnation: Incarnation,
    /// When it began.
    pub began: Holding,
    /// Now.
    pub holds: Holding,
}

/// What a peer of the leader has said of its lives.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Testimony {
    /// Answers to heartbeats up to this one say nothing: it was no voter then.
    since: u64,
    /// Its newest life, and all that any of its lives has said to hold.
    life: Life,
    /// The same when this heartbeat was the last one sent: whatever answers a later one is later than that.
    before: (u64, Life),
    /// What will be `before` when a later heartbeat than this one is answered.
    next: (u64, Life),
    /// What its disk has lost: it counts no more.
    pub(super) lost: Option<Holding>,
}

impl Testimony {
    /// Of a peer that has said nothing since this heartbeat was sent.
    pub(super) const fn since(round: u64) -> Self {
        const NOTHING: Holding = Holding {
            slot: Slot::ZERO,
            promised: Ballot::ZERO,
        };
        const UNKNOWN: Life = Life {
            incarnation: Incarnation(0),
            began: NOTHING,
            holds: NOTHING,
        };
        Self {
            since: round,
            life: UNKNOWN,
            before: (round, UNKNOWN),
            next: (round, UNKNOWN),
            lost: None,
        }
    }

    /// Takes in what the peer says in answer to the heartbeat of this round, when heartbeats up to `sent` have been sent.
    /// Returns what its disk has lost, if it has.
    fn take(&mut self, said: Life, round: u64, sent: u64) -> Option<Holding> {
        if round <= self.since {
            return self.lost;
        }
        let settles = round > self.next.0;
        if settles {
            self.before = self.next;
        }
        let (asked, before) = self.before;
        let is_later = round > asked;
        let is_other = (said.incarnation, said.began) != (before.incarnation, before.began);
        let newest = &mut self.life;
        if said.incarnation > newest.incarnation {
            if said.began.lacks(newest.holds) {
                self.lost = Some(newest.holds);
            }
            *newest = said.with(newest.holds);
        } else if is_later && is_other && said.incarnation <= before.incarnation {
            // The numbers went back with the disk.
            if said.began.lacks(before.holds) {
                self.lost = Some(before.holds);
            }
            *newest = said.with(newest.holds);
        } else if said.incarnation < newest.incarnation && newest.began.lacks(said.holds) {
            self.lost = Some(said.holds);
        }
        if is_later && said.holds.lacks(before.holds) {
            self.lost = Some(before.holds);
        }
        *newest = newest.with(said.holds);
        if settles {
            self.next = (sent, *newest);
        }
        self.lost
    }
}

impl Progress {
    fn may_vote(&self, node: NodeId, membership: &Membership) -> bool {
        let storage = self.storage;
        storage.is_some_and(|storage| membership.may_vote(node, storage))
    }
}

impl Leadership {
    /// Another membership is in force: what a peer said when it was no voter, or before, obliges it to nothing.
    pub(super) fn release_testimonies(&mut self, before: &Membership, now: &Membership) {
        for (node, peer) in &mut self.peers {
            if !peer.may_vote(*node, before) || !peer.may_vote(*node, now) {
                peer.testimony = Testimony::since(self.round);
            }
        }
    }
}

impl Replica {
    /// What this replica says of its own life.
    pub(super) fn life(&self) -> Life {
        Life {
            incarnation: self.incarnation,
            began: self.began,
            holds: self.began.join(self.gate.holds()),
        }
    }

    /// A peer has answered the heartbeat of this round. False if its disk has gone back, so that nothing that it says
    /// counts.
    pub(super) fn disk_is_sound(&mut self, peer: NodeId, round: u64, life: Life) -> bool {
        let membership = self.memberships.current();
        let Role::Leader(leadership) = &mut self.role else {
            return false;
        };
        let ballot = leadership.ballot;
        let Some(progress) = leadership.peers.get_mut(&peer) else {
            return false;
        };
        if !progress.may_vote(peer, membership) {
            return true;
        }
        let testimony = &mut progress.testimony;
        let known_before = testimony.lost.is_some();
        let Some(lost) = testimony.take(life, round, leadership.round) else {
            return true;
        };
        let incarnation = testimony.life.incarnation;
        if !planted::is("rolled_back_counts") {
            // Nobody knows which life has told it.
            leadership.promises.reports.remove(&peer);
        }
        if !known_before {
            let slot = lost.slot;
            self.outputs
                .push_back(Output::Alarm(Alarm::RolledBack { peer, slot }));
        }
        let message = Message::RolledBack {
            ballot,
            incarnation,
            lost,
        };
        self.send(peer, message);
        planted::is("rolled_back_counts")
    }

    /// The leader says that an earlier life of this disk held what this life began without.
    pub(super) fn on_rolled_back(
        &mut self,
        from: NodeId,
        ballot: Ballot,
        incarnation: Incarnation,
        lost: Holding,
    ) {
        let leads = ballot.node == from && self.leader == Some(ballot);
        if leads && incarnation == self.incarnation && self.began.lacks(lost) {
            self.quarantine(Quarantine::RolledBack { slot: lost.slot });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn holding(slot: u64, round: u64) -> Holding {
        Holding {
            slot: Slot(slot),
            promised: Ballot {
                round,
                node: NodeId(1),
            },
        }
    }

    const fn life(number: u64, began: Holding, holds: Holding) -> Life {
        Life {
            incarnation: Incarnation(number),
            began,
            holds,
        }
    }

    /// What is found after all of these answers, in this order, to heartbeats of one moment.
    fn lost_after(answers: &[Life]) -> Option<Holding> {
        let mut peer = Testimony::since(0);
        let said = answers.iter().map(|life| peer.take(*life, 1, 9));
        said.last().flatten()
    }

    /// What is found after all of these answers, each to a heartbeat that was sent when the one before had come.
    fn lost_in_turn(answers: &[Life]) -> Option<Holding> {
        let mut peer = Testimony::since(0);
        let said = (1..)
            .zip(answers)
            .map(|(round, life)| peer.take(*life, round, round));
        said.last().flatten()
    }

    #[test]
    fn a_later_life_must_begin_with_all_that_an_earlier_one_held() {
        let first = life(1, holding(0, 0), holding(7, 3));
        for began in [holding(7, 3), holding(8, 3), holding(7, 4)] {
            assert_eq!(lost_after(&[first, life(2, began, began)]), None);
            assert_eq!(lost_in_turn(&[first, life(2, began, began)]), None);
        }
        for began in [holding(6, 3), holding(7, 2), holding(9, 2)] {
            let second = life(2, began, holding(20, 20));
            assert_eq!(lost_after(&[first, second]), Some(holding(7, 3)));
            assert_eq!(lost_in_turn(&[first, second]), Some(holding(7, 3)));
            let the_other_way_round = lost_after(&[second, first]);
            assert_eq!(the_other_way_round, Some(holding(7, 3)));
        }
    }

    #[test]
    fn a_life_that_is_later_but_has_no_higher_number_must_do_so_too() {
        let first = life(5, holding(1, 1), holding(7, 3));
        for number in [4, 5] {
            for began in [holding(6, 3), holding(7, 2)] {
                let second = life(number, began, holding(20, 20));
                assert_eq!(lost_in_turn(&[first, second]), Some(holding(7, 3)));
                assert_eq!(lost_in_turn(&[first, first, second, second]), Some(holding(7, 3)));
            }
            let began = holding(8, 3);
            let second = life(number, began, began);
            assert_eq!(lost_in_turn(&[first, second, second, second]), None);
        }
    }

    #[test]
    fn a_life_must_not_hold_less_than_it_said() {
        let said = |slot| life(5, holding(1, 1), holding(slot, 3));
        assert_eq!(lost_in_turn(&[said(6), said(7), said(8)]), None);
        assert_eq!(lost_in_turn(&[said(6), said(7), said(6)]), Some(holding(7, 3)));
        assert_eq!(lost_after(&[said(6), said(7), said(6)]), None, "it may be late");
    }

    #[test]
    fn late_and_repeated_answers_blame_nobody() {
        let early = life(1, holding(0, 0), holding(3, 3));
        let late = life(1, holding(0, 0), holding(7, 3));
        let next = life(2, holding(7, 3), holding(7, 3));
        let grown = life(2, holding(7, 3), holding(20, 5));
        for answers in [
            [early, late, next, grown],
            [grown, next, late, early],
            [next, early, grown, late],
            [late, early, early, next],
        ] {
            assert_eq!(lost_after(&answers), None, "{answers:?}");
        }
    }

    #[test]
    fn a_life_of_before_the_peer_was_a_voter_obliges_it_to_nothing() {
        let mut peer = Testimony::since(3);
        let forgotten = life(1, holding(0, 0), holding(7, 3));
        let next = life(2, holding(0, 0), holding(1, 3));
        assert_eq!(peer.take(forgotten, 3, 4), None);
        assert_eq!(peer.take(next, 4, 4), None);
    }
}
