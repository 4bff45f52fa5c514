//! Replicas compare what they have applied: the running [hash](super::hash) at equal slots. Whoever has applied something
//! else than a quorum is *quarantined*: it says nothing any more, for good.
//!
//! A leader's heartbeats name a slot that all living peers should have applied, with the leader's hash after it, and each
//! peer answers with its own. Then the voters decide, with the leader counted like any other:
//!
//! - A quorum has one hash and a peer has another: the leader tells that peer, which looks itself and quarantines itself.
//! - A quorum has one hash and the leader another: the leader quarantines itself, and another one is elected.
//! - No hash has a quorum: nobody can tell who is right, so nobody is quarantined. The leader and everybody who differs from
//!   it raise an alarm, and the group goes on; it decides as soon as enough voters answer.
//!
//! A hash that is wrong at a slot is wrong at every later one, and a quorum's hash at a slot is a fact that no later
//! event changes. So it does not matter which slot is compared, nor whether a message is old, repeated or lost. A
//! replica that does not know its hash (an old snapshot did not have it) claims nothing.
//!
//! The quarantine is kept in the hard state. It would not do to find out again after a restart: until then the replica
//! would vote, teach and perhaps lead with what it holds; and a machine that keeps its own state on a disk may be wrong
//! although the log, which the hash is made of, is whole.

use alloc::collections::VecDeque;

use super::{Alarm, Input, Message, Output, Replica, election::Role, gate::After, hash};
use crate::planted;
use crate::types::{Ballot, Entry, GroupId, Member, NodeId, Quarantine, Slot};

/// Every so many slots the hash is remembered, and so many of them.
const CHECKPOINT_SLOTS: u64 = 32;
const MAX_CHECKPOINTS: usize = 128;

/// The running hash at a slot, which tells whether replicas have applied the same up to there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Checkpoint {
    /// After which slot.
    pub slot: Slot,
    /// The hash; zero while it is not known, because the replica began with a snapshot that does not tell it.
    pub hash: u64,
}

impl Checkpoint {
    /// Whether there is anything to compare with.
    const fn is_known(self) -> bool {
        self.hash != 0
    }

    /// Whether both are hashes of the same slot, and different ones.
    const fn differs(self, other: Self) -> bool {
        self.is_known() && other.is_known() && self.slot.0 == other.slot.0 && self.hash != other.hash
    }
}

/// The running hash of a replica, now and at some slots before.
#[derive(Clone, Debug, Hash)]
pub(super) struct History {
    pub(super) latest: Checkpoint,
    /// The oldest first.
    earlier: VecDeque<Checkpoint>,
    /// The leader from whom this replica has differed already.
    differed_from: Option<Ballot>,
}

impl History {
    /// Of a replica that has everything from the first slot on.
    pub(super) const fn new(group: GroupId) -> Self {
        Self::after(Checkpoint {
            slot: Slot::ZERO,
            hash: hash::begin(group),
        })
    }

    /// Of a replica that goes on from a snapshot.
    pub(super) const fn after(latest: Checkpoint) -> Self {
        Self {
            latest,
            earlier: VecDeque::new(),
            differed_from: None,
        }
    }

    /// The next entry was handed out, with so many commands.
    pub(super) fn add(&mut self, slot: Slot, entry: &Entry, commands: usize) {
        if !self.latest.is_known() {
            self.latest.slot = slot;
            return;
        }
        if self.latest.slot.0.is_multiple_of(CHECKPOINT_SLOTS) {
            if self.earlier.len() == MAX_CHECKPOINTS {
                self.earlier.pop_front();
            }
            self.earlier.push_back(self.latest);
        }
        self.latest = Checkpoint {
            slot,
            hash: hash::extend(self.latest.hash, slot, entry, commands),
        };
    }

    /// The hash at a slot; unknown if it is not remembered.
    fn at(&self, slot: Slot) -> Checkpoint {
        let mut known = self.earlier.iter().chain([&self.latest]);
        let found = known.find(|checkpoint| checkpoint.slot == slot);
        found.copied().unwrap_or_default()
    }

    /// The newest slot that is remembered and not above this one.
    fn newest_upto(&self, slot: Slot) -> Option<Checkpoint> {
        let mut known = core::iter::once(&self.latest).chain(self.earlier.iter().rev());
        known.find(|checkpoint| checkpoint.slot <= slot).copied()
    }
}

/// Comparing.
impl Replica {
    /// What a leader's heartbeat asks to be compared: as new as may be, but such that every living peer has applied it,
    /// as far as the leader remembers so far back.
    pub(super) fn checkpoint_to_compare(&self) -> Checkpoint {
        let (latest, now) = (self.history.latest, self.now);
        let Role::Leader(leadership) = &self.role else {
            return Checkpoint::default();
        };
        let peers = leadership
            .peers
            .values()
            .filter(|peer| peer.heard && now.since(peer.contact) < self.config.election_timeout);
        let reached = peers.filter_map(|peer| self.history.newest_upto(peer.unclaimed.min(latest.slot)));
        let common = reached.min_by_key(|checkpoint| checkpoint.slot);
        common.filter(|common| common.is_known()).unwrap_or_default()
    }

    /// A leader's heartbeat names its hash at a slot: the own one there is the answer.
    pub(super) fn compare_with_leader(&mut self, leader: Ballot, theirs: Checkpoint) -> Checkpoint {
        let own = self.history.at(theirs.slot);
        if own.differs(theirs) && self.history.differed_from != Some(leader) {
            self.history.differed_from = Some(leader);
            let (slot, peer) = (own.slot, leader.node);
            self.outputs
                .push_back(Output::Alarm(Alarm::HashesDiffer { slot, peer }));
        }
        if theirs.is_known() {
            own
        } else {
            Checkpoint::default()
        }
    }

    /// A peer has answered with its hash.
    pub(super) fn compare_with_peer(&mut self, peer: NodeId, theirs: Checkpoint) {
        let own = self.history.at(theirs.slot);
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        let Some(progress) = leadership.peers.get_mut(&peer) else {
            return;
        };
        if !theirs.is_known() || theirs.slot < progress.compared.slot || planted::is("hash_mismatch_ignored")
        {
            return;
        }
        progress.compared = theirs;
        if own.differs(theirs) && !progress.differs {
            progress.differs = true;
            let slot = own.slot;
            self.outputs
                .push_back(Output::Alarm(Alarm::HashesDiffer { slot, peer }));
        }
        if leadership.peers.values().any(|peer| own.differs(peer.compared)) {
            self.decide_who_is_right(own);
        }
    }

    /// This leader and some peer have different hashes at the slot of `own`.
    fn decide_who_is_right(&mut self, own: Checkpoint) {
        let Role::Leader(leadership) = &self.role else {
            return;
        };
        let membership = self.memberships.current();
        let has_quorum = |hash: u64| {
            let wanted = Checkpoint { hash, ..own };
            let agrees = |voter: &Member| {
                leadership.of(
                    voter,
                    self.own(),
                    |peer| peer.compared == wanted,
                    || own == wanted,
                )
            };
            membership.is_quorum(agrees) != planted::is("majority_is_quarantined")
        };
        let mut hashes = core::iter::once(own)
            .chain(leadership.peers.values().map(|peer| peer.compared))
            .filter(|compared| compared.slot == own.slot);
        let Some(right) = hashes.find(|compared| has_quorum(compared.hash)) else {
            return;
        };
        if right != own {
            return self.quarantine(Quarantine::Diverged { slot: own.slot });
        }
        let wrong = leadership
            .peers
            .iter()
            .filter(|(_, peer)| peer.compared.differs(own));
        let wrong = wrong.map(|(node, _)| *node).collect();
        let ballot = leadership.ballot;
        self.send_all(wrong, Message::Diverged { ballot, right });
    }

    /// The leader says that a quorum has this hash.
    pub(super) fn on_diverged(&mut self, from: NodeId, ballot: Ballot, right: Checkpoint) {
        let own = self.history.at(right.slot);
        if ballot.node == from && self.leader == Some(ballot) && own.differs(right) {
            self.quarantine(Quarantine::Diverged { slot: own.slot });
        }
    }
}

/// Quarantine.
impl Replica {
    /// From now on this replica says and does nothing any more, but to make that durable and to say so to its driver.
    pub(super) fn quarantine(&mut self, why: Quarantine) {
        self.become_follower(None);
        self.quarantine = Some(why);
        self.gate.forget_what_waits();
        self.write_hard_state();
        let released = self.gate.after(After::Quarantined);
        self.release(released);
    }

    /// Whether a replica in quarantine still takes this in: users are answered, and the quarantine becomes durable.
    pub(super) const fn passes_quarantine(input: &Input) -> bool {
        matches!(
            input,
            Input::Persisted(_)
                | Input::Propose { .. }
                | Input::Read { .. }
                | Input::ReadByLease { .. }
                | Input::TransferLeadership { .. }
                | Input::ChangeMembership { .. }
                | Input::Cancel { .. }
        )
    }

    /// The quarantine is durable.
    pub(super) fn on_quarantined(&mut self) {
        if let Some(why) = self.quarantine {
            self.outputs.push_back(Output::Alarm(Alarm::Quarantined(why)));
        }
    }
}
