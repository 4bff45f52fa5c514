//! Quiet groups: a leader that has had nothing to do for a while, and whose living peers all have everything, asks them
//! to rest. A replica that rests sends nothing and has no timer, so an idle group costs nothing.
//!
//! Nobody in a resting group notices that the leader is gone, so the nodes watch each other instead, once per pair of
//! nodes whatever the number of groups: see [`peers`](super::peers). The driver tells its replicas what it finds, by
//! [`Input::PeerAlive`] and [`Input::PeerSilent`]. A replica that has been told nothing of a peer takes no rest with it,
//! so a driver that watches nobody has groups that never rest.
//!
//! The leader falls silent only when every peer that is alive has confirmed that it rests: by then it knows all that is
//! chosen. Peers whose nodes are silent do not keep a group awake, unless the driver can reach them: then they may not
//! know the members yet, and are told by whoever leads. When a node is heard again, its leaders wake and bring it up to
//! date. A command, a read or any other request wakes the leader; at a follower also the timer that
//! replaces a leader which says nothing, because the leader's node may live without the leader.

use alloc::collections::BTreeSet;
use core::time::Duration;

use super::{Checkpoint, Input, Message, Replica, election::Role, proposer::Leadership};
use crate::planted;
use crate::types::{Ballot, Member, NodeId, Slot, Time};

/// What the driver has said of the peers' nodes; nothing of those in neither set.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Nodes {
    alive: BTreeSet<NodeId>,
    silent: BTreeSet<NodeId>,
    /// Those that can be reached, but were not heard since: they may not know yet where this node is, or that it is.
    pub(super) unheard: BTreeSet<NodeId>,
}

impl Nodes {
    /// Whether a group may rest without this node: it is gone.
    fn is_excused(&self, node: NodeId) -> bool {
        self.silent.contains(&node) && !self.unheard.contains(&node)
    }
}

/// A leader on its way to rest.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(super) struct Quiet {
    /// Heartbeats since there was something to do.
    heartbeats: u32,
    /// The round in which the peers were first asked to rest; none of the later ones was a plain heartbeat.
    asked_in: Option<u64>,
    resting: bool,
}

impl Leadership {
    /// Whether every peer whose node is alive has confirmed that it rests.
    fn all_rest(&self, nodes: &Nodes) -> bool {
        let rests = |round: u64| self.quiet.asked_in.is_some_and(|asked_in| round >= asked_in);
        self.peers
            .iter()
            .all(|(node, peer)| nodes.is_excused(*node) || rests(peer.rests_in))
    }

    /// Whether every peer has everything that is chosen and knows it, but for those whose nodes are silent.
    fn all_in_step(&self, nodes: &Nodes, chosen: Slot) -> bool {
        self.peers.iter().all(|(node, peer)| {
            let in_step = nodes.alive.contains(node) && peer.is_in_step(chosen);
            nodes.is_excused(*node) || in_step
        })
    }
}

impl Replica {
    /// Whether the replica rests: it sends nothing and has no timer, until something wakes it.
    pub const fn is_resting(&self) -> bool {
        match &self.role {
            Role::Leader(leadership) => leadership.quiet.resting,
            _ => self.election_at.is_none(),
        }
    }

    /// Whether the leader believes that this peer lives: while the group rests, only the peer's node is heard.
    pub(super) fn is_alive(&self, peer: NodeId, contact: Time, now: Time) -> bool {
        if self.is_resting() {
            self.nodes.alive.contains(&peer)
        } else {
            now.since(contact) < self.config.election_timeout
        }
    }

    /// Whoever brings something to do wakes the replica.
    pub(super) fn wake_for(&mut self, input: &Input) {
        let wakes = match input {
            Input::Tick
            | Input::Persisted(_)
            | Input::Loaded { .. }
            | Input::TakeSnapshot
            | Input::SnapshotTaken { .. }
            | Input::SnapshotFailed { .. }
            | Input::PauseTrimming(_)
            | Input::SnapshotsOff
            | Input::ChunkLoaded { .. }
            | Input::ChunkStored { .. }
            | Input::SnapshotReceived(_)
            | Input::Cancel { .. }
            | Input::Connected(_)
            | Input::Disconnected(_)
            | Input::SendRefused(_)
            | Input::PeerAlive(_)
            | Input::PeerSilent(_) => false,
            Input::Message { message, .. } => self.is_leader() && !is_answer(message),
            _ => true,
        };
        if wakes {
            self.wake();
        }
    }

    /// The group has something to do.
    pub(super) fn wake(&mut self) {
        let resting = self.is_resting();
        if let Role::Leader(leadership) = &mut self.role {
            leadership.quiet = Quiet::default();
            if resting {
                leadership.heartbeat_at = self.now;
                for (node, peer) in &mut leadership.peers {
                    if self.nodes.alive.contains(node) {
                        peer.contact = self.now;
                    }
                }
            }
        } else if resting {
            // The leader is woken too, and has the usual time to say something.
            self.heard_at = self.now;
            self.postpone_election();
        }
    }

    /// This node can reach the peer. If it does not hear it, that may be because the peer does not know of this node: a
    /// leader has to tell it.
    pub(super) fn on_connected(&mut self, peer: NodeId) {
        if planted::is("unheard_peer_is_excused") {
            return;
        }
        // Also of a peer that counts as alive: perhaps it was back before it was missed, and falls silent yet.
        self.nodes.unheard.insert(peer);
        if self.is_leader() && !self.nodes.alive.contains(&peer) {
            self.wake();
        }
    }

    pub(super) fn on_peer_alive(&mut self, peer: NodeId) {
        self.nodes.silent.remove(&peer);
        self.nodes.unheard.remove(&peer);
        if self.nodes.alive.insert(peer) && self.is_leader() && !planted::is("returning_peer_wakes_nobody") {
            self.wake();
        }
    }

    pub(super) fn on_peer_silent(&mut self, peer: NodeId) {
        self.nodes.alive.remove(&peer);
        self.nodes.silent.insert(peer);
        if !self.is_resting() {
            return;
        }
        if self.is_leader() {
            if !self.hears_quorum() || self.nodes.unheard.contains(&peer) {
                self.wake();
            }
        } else if self.leader.is_some_and(|ballot| ballot.node == peer) {
            // The silence has lasted an election timeout: what is left is the random part.
            let soon = self.rng.up_to(self.config.election_timeout);
            self.election_at = Some(self.now.plus(soon));
        }
    }

    /// Whether the nodes that are alive are enough to lead on.
    fn hears_quorum(&self) -> bool {
        let Role::Leader(leadership) = &self.role else {
            return false;
        };
        let alive = |voter: &Member| {
            leadership.of(
                voter,
                self.own(),
                |_| self.nodes.alive.contains(&voter.node),
                || true,
            )
        };
        self.memberships.current().is_quorum(alive)
    }

    /// Whether this replica has applied all that it knows of, and nobody waits for anything.
    fn has_nothing_to_do(&self) -> bool {
        self.window.last() <= self.chosen
            && self.chosen_written == self.chosen
            && self.gate.is_idle()
            && !self.gate.has_ops()
            && self.proposals.count() == 0
            && self.draining.is_none()
            && self.reads.is_idle()
            && self.learner.is_idle(self.chosen)
            && !self.damage.reaches(self.chosen)
    }

    /// The leader's heartbeat is due.
    pub(super) fn heartbeat_or_rest(&mut self) {
        let idle = self.has_nothing_to_do() && self.hears_quorum() && self.is_preferred();
        let chosen = self.chosen;
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        let in_step =
            leadership.all_in_step(&self.nodes, chosen) || planted::is("rests_before_its_peers_know");
        let idle = idle && leadership.is_idle(chosen) && in_step;
        let enough = self.config.rest_after_heartbeats;
        if !idle || enough == 0 {
            leadership.quiet = Quiet::default();
            return self.heartbeat();
        }
        if leadership.quiet.heartbeats < enough {
            leadership.quiet.heartbeats += 1;
            return self.heartbeat();
        }
        let next_round = leadership.round + 1;
        leadership.quiet.asked_in.get_or_insert(next_round);
        self.ask_to_rest();
        self.rest_if_all_do();
    }

    fn rest_if_all_do(&mut self) {
        let idle = self.has_nothing_to_do();
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        let all_rest = leadership.all_rest(&self.nodes) || planted::is("rests_before_its_peers_know");
        if idle && leadership.quiet.asked_in.is_some() && leadership.is_idle(self.chosen) && all_rest {
            leadership.quiet.resting = true;
        }
    }

    /// The leader has nothing to do: neither has this node, it seems.
    pub(super) fn on_rest(
        &mut self,
        from: NodeId,
        ballot: Ballot,
        start: Slot,
        chosen: Slot,
        round: u64,
        checkpoint: Checkpoint,
    ) {
        self.on_heartbeat(from, ballot, start, chosen);
        self.answer_heartbeat(from, ballot, round, Duration::ZERO, checkpoint);
        let in_step = self.chosen >= chosen && self.has_nothing_to_do();
        if self.leader == Some(ballot) && in_step && self.nodes.alive.contains(&from) {
            self.election_at = None;
            self.send(from, Message::Rests { ballot, round });
        }
    }

    /// A peer rests.
    pub(super) fn on_rests(&mut self, from: NodeId, ballot: Ballot, round: u64) {
        if let Role::Leader(leadership) = &mut self.role
            && leadership.ballot == ballot
            && let Some(peer) = leadership.peers.get_mut(&from)
        {
            peer.rests_in = peer.rests_in.max(round);
            self.rest_if_all_do();
        }
    }

    /// Another node asks for votes while this one rests: either the leader itself, which then leads no more, or somebody
    /// who misses the leader, which then has to say something.
    pub(super) fn on_canvass_at_rest(&mut self, from: NodeId, ballot: Ballot) {
        if self
            .leader
            .is_some_and(|leader| leader.node == from && leader < ballot)
        {
            self.become_follower(None);
            self.postpone_election();
        } else {
            self.wake();
        }
    }
}

/// Messages that ask for nothing. Some of them may come late to a leader that rests.
const fn is_answer(message: &Message) -> bool {
    matches!(
        message,
        Message::CanvassReply { .. }
            | Message::Promise { .. }
            | Message::Accepted { .. }
            | Message::HeartbeatReply { .. }
            | Message::Rests { .. }
            | Message::Learned { .. }
            | Message::Trimmed { .. }
            | Message::SnapshotChunk { .. }
            | Message::Forwarded { .. }
            | Message::ReadIndexReply { .. }
            | Message::LeadsOn { .. }
            | Message::MembershipChanged { .. }
            | Message::Drained { .. }
    )
}
