//! Notices a store that has gone back to an older state, with everything that it had acknowledged since: a disk restored
//! from a copy, a virtual machine set back. Such a node has forgotten promises and votes, so it must not count.
//!
//! The backends notice what they can by themselves; a directory that was replaced as a whole they cannot. So every
//! answer to a heartbeat tells the sender's life, what its disk held when that life began, and what it holds durably
//! now. Whatever a life has said to hold, every later life of the same disk must begin with: the leader remembers it
//! for as long as it leads, and does not count a peer any more that lacks some of it. The peer is told, looks itself,
//! and quarantines itself.
//!
//! Lives have numbers that only grow, so it does not matter in which order answers come, how often, or how late. What
//! is not noticed: a disk set back while nobody leads who has heard of what is lost, that of a leader which does not
//! come back as a peer of the same leadership (it never does), and what the node does until the leader hears of its new life.

use super::{Alarm, Message, Output, Replica, election::Role, progress::Progress};
use crate::planted;
use crate::types::{Ballot, HardState, Incarnation, NodeId, Quarantine, Slot};

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

impl Progress {
    /// Takes in what the peer says of its life, or of an earlier one. Returns what its disk has lost, if it has.
    fn note_life(&mut self, said: Life) -> Option<Holding> {
        let known = &mut self.life;
        if said.incarnation > known.incarnation {
            known.incarnation = said.incarnation;
            known.began = said.began;
            if said.began.lacks(known.holds) {
                self.lost = Some(known.holds);
            }
        } else if said.incarnation < known.incarnation && known.began.lacks(said.holds) {
            self.lost = Some(said.holds);
        }
        known.holds = known.holds.join(said.holds);
        self.lost
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

    /// A peer has answered a heartbeat. False if its disk has gone back, so that nothing that it says counts.
    pub(super) fn disk_is_sound(&mut self, peer: NodeId, life: Life) -> bool {
        let Role::Leader(leadership) = &mut self.role else {
            return false;
        };
        let ballot = leadership.ballot;
        let Some(progress) = leadership.peers.get_mut(&peer) else {
            return false;
        };
        let known_before = progress.lost.is_some();
        let Some(lost) = progress.note_life(life) else {
            return true;
        };
        let incarnation = progress.life.incarnation;
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
    use crate::types::Time;

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

    /// What is found after all of these answers, in this order.
    fn lost_after(answers: &[Life]) -> Option<Holding> {
        let mut peer = Progress::new(Slot(1), Time::default());
        let said = answers.iter().map(|life| peer.note_life(*life));
        said.last().flatten()
    }

    #[test]
    fn a_later_life_must_begin_with_all_that_an_earlier_one_held() {
        let first = life(1, holding(0, 0), holding(7, 3));
        for began in [holding(7, 3), holding(8, 3), holding(7, 4)] {
            assert_eq!(lost_after(&[first, life(2, began, began)]), None);
        }
        for began in [holding(6, 3), holding(7, 2), holding(9, 2)] {
            let second = life(2, began, began);
            assert_eq!(lost_after(&[first, second]), Some(holding(7, 3)));
            assert_eq!(
                lost_after(&[second, first]),
                Some(holding(7, 3)),
                "the other way round"
            );
        }
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
}
