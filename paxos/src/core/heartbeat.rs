//! Heartbeats: how a leader shows that it lives and hears who follows it, with all that an answer tells.

use alloc::vec::Vec;
use core::time::Duration;

use super::{
    Checkpoint, Life, Message, Replica, Sender, election::Role, progress::Progress, proposer::Leadership,
};
use crate::planted;
use crate::types::{Ballot, Member, Membership, NodeId, Slot, Time};

/// How many heartbeats are remembered by their time.
const MAX_SENT_HEARTBEATS: usize = 64;

/// What a replica says of itself when it answers a heartbeat: see [`Message::HeartbeatReply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pulse {
    /// The heartbeat answered.
    pub round: u64,
    /// As [`Message::Accepted::upto`], but of what has been received, durable or not: tells the leader what was
    /// lost on the way. Votes for nothing.
    pub received: Slot,
    /// As [`Message::Accepted::upto`], durable.
    pub accepted: Slot,
    /// The sender's chosen watermark.
    pub chosen: Slot,
    /// Whether the sender could lead: it votes, and has handed all of its log to its state machine.
    pub ready: bool,
    /// Whether the lease is granted: the sender helps nobody else to lead for so long, from when it says so.
    pub leased: bool,
    /// What the sender has applied up to the leader's slot; unknown if it does not remember, or the leader asked for
    /// nothing.
    pub checkpoint: Checkpoint,
    /// What the sender's disk holds, and held when this life of the sender began.
    pub life: Life,
}

impl Leadership {
    /// The latest time of which it is known that a quorum still followed this leader.
    pub(super) fn quorum_contact(&self, membership: &Membership, own: Sender, now: Time) -> Time {
        let contact = |voter: &Member| {
            if voter.node == own.0 {
                return if voter.admits(own.1) { now } else { Time::default() };
            }
            // A peer that has not been heard has the time until then.
            let may_count =
                |peer: &&Progress| peer.storage.is_none_or(|storage| voter.admits(storage)) && peer.counts();
            let peer = self.peers.get(&voter.node).filter(may_count);
            peer.map_or(Time::default(), |peer| peer.contact)
        };
        membership.reached_by_quorum(contact).unwrap_or_default()
    }

    /// Forgets when heartbeats were sent: a model checker's clock stands still.
    #[cfg(feature = "testing")]
    pub(super) fn forget_times(&mut self) {
        self.sent.clear();
    }
}

impl Replica {
    /// Says to every peer that this node leads.
    pub(super) fn heartbeat(&mut self) {
        self.heartbeat_to(|_| true);
        self.beat_later();
    }

    /// As [`heartbeat`](Self::heartbeat), to some only: it takes no regular one's place.
    pub(super) fn heartbeat_to(&mut self, to: impl Fn(NodeId) -> bool) {
        let lease = self.config.lease.map_or(Duration::ZERO, |lease| lease.duration);
        let checkpoint = self.checkpoint_to_compare();
        self.beat(to, |ballot, start, chosen, round| Message::Heartbeat {
            ballot,
            start,
            chosen,
            round,
            lease,
            checkpoint,
        });
    }

    /// A heartbeat that asks the peers to rest.
    pub(super) fn ask_to_rest(&mut self) {
        let checkpoint = self.checkpoint_to_compare();
        self.beat(
            |_| true,
            |ballot, start, chosen, round| Message::Rest {
                ballot,
                start,
                chosen,
                round,
                checkpoint,
            },
        );
        self.beat_later();
    }

    /// Every peer has been told just now.
    fn beat_later(&mut self) {
        if let Role::Leader(leadership) = &mut self.role {
            leadership.heartbeat_at = self.now.plus(self.config.heartbeat_interval);
        }
    }

    fn beat(
        &mut self,
        to: impl Fn(NodeId) -> bool,
        message: impl FnOnce(Ballot, Slot, Slot, u64) -> Message,
    ) {
        let (now, chosen) = (self.now, self.chosen);
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        self.snapshots.trim_due = true;
        leadership.round += 1;
        if leadership.sent.len() == MAX_SENT_HEARTBEATS {
            leadership.sent.pop_front();
        }
        leadership.sent.push_back((leadership.round, now));
        let mut receivers = Vec::new();
        let mut silent = Vec::new();
        let timeout = self.config.election_timeout;
        let once = planted::is("members_told_once");
        for (node, peer) in leadership.peers.iter_mut().filter(|(node, _)| to(**node)) {
            peer.probe(leadership.round, now);
            peer.told = chosen;
            receivers.push(*node);
            if !peer.heard || (now.since(peer.contact) >= timeout && !once) {
                silent.push(*node);
            }
        }
        let message = message(leadership.ballot, leadership.start, chosen, leadership.round);
        let drain = leadership.drain.as_ref();
        if let Some((to, drain)) = drain.map(|drain| drain.message(leadership.ballot, &receivers)) {
            self.send_all(to, drain);
        }
        self.send_all(receivers, message);
        // They may not know yet who the members are, or have forgotten it with their disk, or where they are now.
        let latest = self.memberships.latest();
        if latest.at > Slot::ZERO {
            let (at, membership) = (latest.at, latest.membership.clone());
            self.send_all(silent, Message::Members { at, membership });
        }
    }

    pub(super) fn on_heartbeat(&mut self, from: NodeId, ballot: Ballot, start: Slot, chosen: Slot) {
        if ballot.node != from {
            return;
        }
        if ballot < self.floor() {
            return self.refuse(from, ballot);
        }
        self.follow(ballot, start);
        self.note_leader_watermark(from, ballot, chosen);
        if self.following.received > self.following.durable {
            // Entries of this ballot that a restart found on the disk, or that were learned, are nowhere else
            // acknowledged.
            self.acknowledge();
        }
    }

    /// Says to the leader, if this node follows it, what it wants to hear.
    pub(super) fn answer_heartbeat(
        &mut self,
        from: NodeId,
        ballot: Ballot,
        round: u64,
        lease: Duration,
        checkpoint: Checkpoint,
    ) {
        if ballot.node != from {
            return;
        }
        if self.leader != Some(ballot) {
            if !self.memberships.current().voters().any(|voter| voter == from) {
                // It leads until it hears that the voters know that it is none.
                self.tell_membership(from);
            }
            return;
        }
        self.count_untold_heartbeat();
        let checkpoint = self.compare_with_leader(ballot, checkpoint);
        let leased = self.grant(ballot, lease);
        let pulse = Pulse {
            round,
            received: self.following.received,
            accepted: self.following.durable,
            chosen: self.chosen,
            ready: self.could_lead(),
            leased,
            checkpoint,
            life: self.life(),
        };
        self.send(from, Message::HeartbeatReply { ballot, pulse });
    }

    pub(super) fn on_heartbeat_reply(&mut self, (from, storage): Sender, ballot: Ballot, pulse: Pulse) {
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        if leadership.ballot != ballot {
            return;
        }
        let start = leadership.start;
        // A heartbeat that is not remembered was sent too long ago to grant anything.
        let sent = leadership
            .sent
            .iter()
            .find(|(round, _)| pulse.leased && *round == pulse.round);
        let granted = sent.map(|(_, at)| *at);
        let Some(peer) = leadership.peers.get_mut(&from) else {
            return;
        };
        // Only answers to new heartbeats tell which disk a node has now: others may be late.
        if *peer.storage.get_or_insert(storage) != storage {
            if pulse.round <= peer.answered {
                return;
            }
            *peer = Progress::of_disk(storage, start, self.now);
        }
        if !self.disk_is_sound(from, pulse.round, pulse.life) {
            return;
        }
        let now = self.now;
        let Some(peer) = self.progress_of(from) else {
            return;
        };
        if pulse.leased && planted::is("lease_from_arrival") {
            peer.granted = Some(now);
        }
        peer.granted = peer.granted.max(granted);
        peer.acknowledged(pulse.accepted, pulse.chosen);
        peer.heartbeat_answered(pulse.round, pulse.received, now);
        peer.heard_at(now);
        if pulse.round >= peer.answered {
            peer.answered = pulse.round;
            peer.ready = pulse.ready;
        }
        self.count_votes();
        self.note_watermark(from, pulse.chosen);
        self.confirm_reads();
        self.compare_with_peer(from, pulse.checkpoint);
    }

    fn progress_of(&mut self, peer: NodeId) -> Option<&mut Progress> {
        let Role::Leader(leadership) = &mut self.role else {
            return None;
        };
        leadership.peers.get_mut(&peer)
    }
}
