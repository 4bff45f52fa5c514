//! The leader: adoption of what phase 1 found, assignment of slots, counting of votes, the watermark. What its heartbeats
//! tell it: see [`heartbeat`](super::heartbeat).

use alloc::{
    boxed::Box,
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};

use bytes::Bytes;

use super::{
    Command, Message, Replica, Sender,
    acceptor::Following,
    barrier::{Barrier, Promises},
    batch,
    changes::ChangeAsker,
    drain::Drain,
    election::{Candidacy, Role},
    progress::Progress,
    quiet::Quiet,
    reads::LeaderReads,
    transfer::Transfer,
};
use crate::planted;
use crate::snapshot::Origins;
use crate::types::{Ballot, Entry, Incarnation, Member, Membership, NodeId, ProposalId, Slot, Time};

/// Phase 2: what a leader holds beside what every replica holds.
#[derive(Clone, Debug, Hash)]
pub(super) struct Leadership {
    pub(super) ballot: Ballot,
    /// All below was chosen when this leadership began.
    pub(super) start: Slot,
    /// The next slot to propose for.
    pub(super) next: Slot,
    /// The last slot that was adopted from earlier leaders: reads wait until it is chosen.
    pub(super) inherited: Slot,
    pub(super) peers: BTreeMap<NodeId, Progress>,
    /// This node's own vote: as [`Progress::matched`].
    own_matched: Slot,
    /// Bytes of entries above the watermark.
    in_flight_bytes: usize,
    /// Counts heartbeats.
    pub(super) round: u64,
    pub(super) heartbeat_at: Time,
    /// Which command of each other node comes next, behind all that is in the log or waits in `forwarded`; `None` until
    /// everything inherited is known.
    origins: Option<Origins>,
    /// Commands that other nodes forwarded.
    forwarded: VecDeque<Command>,
    forwarded_bytes: usize,
    /// Whether own commands or forwarded ones go first in the next batch: takes turns.
    own_first: bool,
    /// When peers that have not been told the watermark are told, if nothing carries it before.
    pub(super) tell_at: Option<Time>,
    pub(super) reads: LeaderReads,
    pub(super) transfer: Option<Transfer>,
    pub(super) quiet: Quiet,
    /// When this leadership began.
    pub(super) since: Time,
    /// Nothing is proposed while there is one.
    pub(super) barrier: Option<Barrier>,
    /// What has been promised at this ballot; `found` has what is still to be adopted.
    pub(super) promises: Promises,
    pub(super) change_asker: Option<ChangeAsker>,
    /// Nodes that a change takes out are being drained, or were and it is proposed.
    pub(super) drain: Option<Drain>,
    /// How often this leadership has drained nodes.
    pub(super) drains: u64,
    /// A user wants this node to lead, and the voters and their priorities were these.
    pub(super) kept_among: Option<Vec<(NodeId, u8)>>,
    /// Another node was told to take over: this ballot holds no lease any more.
    pub(super) released: bool,
    /// When the latest heartbeats were sent, oldest first.
    pub(super) sent: VecDeque<(u64, Time)>,
}

impl Leadership {
    /// Whether a quorum has answered this heartbeat or a later one.
    pub(super) fn is_confirmed(&self, round: u64, membership: &Membership, own: Sender) -> bool {
        membership.is_quorum(|voter| self.of(voter, own, |peer| peer.answered >= round, || true))
    }

    /// Whether something holds of a voter, which takes part with the disk that it was admitted with and has lost nothing
    /// of what was on it: asked of what is known of it as a peer, or of this node itself.
    pub(super) fn of(
        &self,
        voter: &Member,
        own: Sender,
        of_peer: impl Fn(&Progress) -> bool,
        of_self: impl Fn() -> bool,
    ) -> bool {
        if voter.node == own.0 {
            return voter.admits(own.1) && of_self();
        }
        let admitted = |peer: &&Progress| peer.storage.is_some_and(|storage| voter.admits(storage));
        let peer = self.peers.get(&voter.node).filter(admitted);
        peer.is_some_and(|peer| peer.counts() && of_peer(peer))
    }

    /// Sends nothing but heartbeats to this peer until it answers one.
    pub(super) fn pause(&mut self, peer: NodeId) {
        if let Some(progress) = self.peers.get_mut(&peer) {
            progress.pause(self.round);
        }
    }

    /// Whether everything that was proposed is chosen, and nobody waits for anything.
    pub(super) fn is_idle(&self, chosen: Slot) -> bool {
        self.next.previous() == chosen
            && self.forwarded.is_empty()
            && self.tell_at.is_none()
            && self.reads.is_idle()
            && self.transfer.is_none()
            && self.barrier.is_none()
            && self.drain.is_none()
    }

    fn is_chosen(&self, slot: Slot, membership: &Membership, own: Sender) -> bool {
        let mut votes = 0;
        membership.is_quorum(|voter| {
            let voted = self.of(voter, own, |peer| peer.voted(slot), || slot <= self.own_matched);
            votes += usize::from(voted);
            voted
        }) || (planted::is("quorum_too_small") && votes + 1 == membership.quorum())
    }
}

impl Replica {
    /// Phase 1 is complete: adopts what it found, fills the holes with no-ops, and leads.
    pub(super) fn lead(&mut self, candidacy: Candidacy) {
        let Candidacy {
            ballot,
            mut promises,
            by_hand,
            ..
        } = candidacy;
        let found = &mut promises.found;
        for (slot, accepted) in self.window.from(self.chosen.next()) {
            if found
                .get(&slot)
                .is_none_or(|other| (other.ballot < accepted.ballot) != planted::is("wrong_ballot_adopted"))
            {
                found.insert(slot, accepted.clone());
            }
        }
        let start = self.chosen.next();
        // Damaged slots are proposed for too: that repairs them.
        let inherited = promises.last().max(self.chosen);
        let peers = self
            .other_members()
            .into_iter()
            .map(|peer| (peer, Progress::new(start, self.now)))
            .collect();
        let leadership = Leadership {
            ballot,
            start,
            next: start,
            inherited,
            peers,
            own_matched: self.chosen,
            in_flight_bytes: 0,
            round: 0,
            heartbeat_at: self.now,
            origins: None,
            forwarded: VecDeque::new(),
            forwarded_bytes: 0,
            own_first: false,
            tell_at: None,
            reads: LeaderReads::default(),
            transfer: None,
            quiet: Quiet::default(),
            since: self.now,
            barrier: None,
            promises,
            change_asker: None,
            drain: None,
            drains: 0,
            kept_among: None,
            released: false,
            sent: VecDeque::new(),
        };
        self.following = Following {
            ballot,
            start,
            received: self.chosen,
            durable: self.chosen,
        };
        self.role = Role::Leader(Box::new(leadership));
        self.preference.begin();
        if by_hand {
            self.keep_leading();
        }
        self.set_leader(Some(ballot));
        self.adopt();
        self.heartbeat();
    }

    /// Gives an entry the next slot.
    pub(super) fn assign(&mut self, leadership: &mut Leadership, entry: Entry) {
        leadership.in_flight_bytes += entry.size();
        self.accept(leadership.next, leadership.ballot, entry);
        leadership.next = leadership.next.next();
    }

    /// Runs `with` on the leadership, beside the rest of the replica; nothing if this node does not lead.
    pub(super) fn with_leadership<R>(
        &mut self,
        with: impl FnOnce(&mut Self, &mut Leadership) -> R,
    ) -> Option<R> {
        let Role::Leader(mut leadership) = core::mem::replace(&mut self.role, Role::Follower) else {
            return None;
        };
        let result = with(self, &mut leadership);
        self.role = Role::Leader(leadership);
        Some(result)
    }

    /// Turns everything that waits into entries, as far as the window allows.
    pub(super) fn propose_waiting(&mut self) {
        let Role::Leader(leadership) = &self.role else {
            return;
        };
        if leadership.transfer.as_ref().is_some_and(Transfer::commands_wait) || !leadership.has_adopted() {
            return;
        }
        let nothing_waits = leadership.forwarded.is_empty() && !self.proposals.has_unproposed();
        if nothing_waits && leadership.origins.is_some() {
            return;
        }
        self.with_leadership(|replica, leadership| {
            if leadership.origins.is_none() {
                leadership.origins = replica.origins_upto(leadership.next.previous());
                let Some(origins) = &leadership.origins else {
                    return;
                };
                let next = origins.next(replica.identity.node, replica.incarnation);
                replica.proposals.propose_from(next);
            }
            let before = leadership.next;
            while leadership.next.since(replica.chosen) <= replica.config.max_window_entries as u64
                && leadership.in_flight_bytes < replica.config.max_window_bytes
                && !replica.disk_lags()
            {
                let commands = replica.next_batch(leadership);
                if commands.is_empty() {
                    break;
                }
                replica.assign(leadership, batch::encode(leadership.ballot, &commands));
            }
            if leadership.next > before {
                replica.advance_received();
                replica.acknowledge();
            }
        });
    }

    /// The commands of the next entry: forwarded ones and own ones take turns to go first.
    fn next_batch(&mut self, leadership: &mut Leadership) -> Vec<Command> {
        let mut room = BatchRoom {
            commands: self.config.max_batch_commands,
            bytes: self.config.max_batch_bytes,
            taken: Vec::new(),
        };
        leadership.own_first = !leadership.own_first;
        for own in [leadership.own_first, !leadership.own_first] {
            if own {
                let (node, incarnation) = (self.identity.node, self.incarnation);
                while let Some(command) = self.proposals.peek_unproposed(node, incarnation) {
                    if !room.take(command) {
                        break;
                    }
                    self.proposals.proposed();
                }
            } else {
                while let Some(command) = leadership.forwarded.front() {
                    if !room.take(command.clone()) {
                        break;
                    }
                    leadership.forwarded_bytes -= command.payload.len();
                    leadership.forwarded.pop_front();
                }
            }
        }
        room.taken
    }

    /// A follower forwards commands of its users.
    pub(super) fn on_forward(
        &mut self,
        from: NodeId,
        ballot: Ballot,
        incarnation: Incarnation,
        first: u64,
        commands: Vec<Bytes>,
    ) {
        let max_bytes = self.config.max_pending_bytes;
        let max_commands = self.config.max_pending_commands;
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        let Some(origins) = leadership
            .origins
            .as_mut()
            .filter(|_| leadership.ballot == ballot)
        else {
            return;
        };
        for (payload, sequence) in commands.into_iter().zip(first..=u64::MAX) {
            if leadership.forwarded.len() >= max_commands || leadership.forwarded_bytes >= max_bytes {
                break;
            }
            let id = ProposalId {
                node: from,
                incarnation,
                sequence,
            };
            if origins.admit(id) {
                leadership.forwarded_bytes += payload.len();
                leadership.forwarded.push_back(Command { id, payload });
            }
        }
        let expected = origins.next(from, incarnation);
        self.send(
            from,
            Message::Forwarded {
                ballot,
                incarnation,
                expected,
            },
        );
    }

    /// Sends every peer what it lacks and may be sent. Peers that are in step share one message.
    pub(super) fn replicate(&mut self) {
        let (chosen, max_ahead) = (self.chosen, self.max_ahead());
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        let (ballot, start, end) = (leadership.ballot, leadership.start, leadership.next);
        let max_in_flight = self.config.max_peer_inflight_bytes;
        let oldest = self.window.first();
        loop {
            let mut in_step: BTreeMap<Slot, Vec<NodeId>> = BTreeMap::new();
            for (node, peer) in &leadership.peers {
                // Further above its watermark a peer accepts nothing: it must learn first.
                let acceptable = !peer.heard || peer.next <= peer.unclaimed.plus(max_ahead);
                let sendable = peer.next < end && peer.next >= oldest.max(start);
                if sendable && acceptable && peer.may_send(max_in_flight) {
                    in_step.entry(peer.next).or_default().push(*node);
                }
            }
            if in_step.is_empty() {
                return;
            }
            for (first, to) in in_step {
                let mut entries = Vec::new();
                let mut bytes = 0;
                // What lies above is of earlier leaders, and waits for a membership to be chosen.
                let proposed = self.window.from(first).take_while(|(slot, _)| *slot < end);
                for (_, accepted) in proposed {
                    let size = accepted.entry.size();
                    if !entries.is_empty() && bytes + size > self.config.max_message_bytes {
                        break;
                    }
                    bytes += size;
                    entries.push(accepted.entry.clone());
                }
                let upto = first.plus(entries.len() as u64).previous();
                for node in &to {
                    if let Some(peer) = leadership.peers.get_mut(node) {
                        peer.sent(upto, bytes);
                        peer.told = chosen;
                    }
                }
                let message = Message::Accept {
                    ballot,
                    start,
                    first,
                    entries,
                    chosen,
                };
                self.outputs.push_back(super::Output::Send { to, message });
            }
        }
    }

    pub(super) fn on_accepted(&mut self, (from, storage): Sender, ballot: Ballot, upto: Slot, chosen: Slot) {
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        if leadership.ballot != ballot && !planted::is("accepted_of_any_ballot") {
            return;
        }
        let Some(peer) = leadership.peers.get_mut(&from) else {
            return;
        };
        if *peer.storage.get_or_insert(storage) != storage || !peer.counts() {
            return;
        }
        peer.acknowledged(upto, chosen);
        peer.heard_at(self.now);
        self.count_votes();
        self.note_watermark(from, chosen);
    }

    /// This node's own accepts up to `upto` are durable.
    pub(super) fn count_own_vote(&mut self, ballot: Ballot, upto: Slot) {
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        if leadership.ballot == ballot {
            leadership.own_matched = leadership.own_matched.max(upto);
            self.count_votes();
        }
    }

    /// Moves the watermark over every next slot that a quorum of the voters in force there has accepted.
    pub(super) fn count_votes(&mut self) {
        let own = self.own();
        loop {
            let Role::Leader(leadership) = &self.role else {
                return;
            };
            let slot = self.chosen.next();
            if slot >= leadership.next || !leadership.is_chosen(slot, self.electorate(), own) {
                break;
            }
            self.advance_chosen(slot);
        }
    }

    /// Who votes for the slot after the watermark.
    fn electorate(&self) -> &Membership {
        if planted::is("old_quorum_after_change") {
            return self.memberships.previous();
        }
        self.memberships.current()
    }

    /// The watermark moved while this node leads: peers must hear of it.
    pub(super) fn on_leader_chosen(&mut self, slot: Slot) {
        let size = self.window.get(slot).map_or(0, |accepted| accepted.entry.size());
        let tell_at = self.now.plus(self.config.max_watermark_delay);
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        if slot >= leadership.next {
            leadership.next = slot.next();
        } else {
            leadership.in_flight_bytes = leadership.in_flight_bytes.saturating_sub(size);
        }
        leadership.tell_at.get_or_insert(tell_at);
    }

    /// Tells the watermark to the peers whose users wait for it, and to all when it has waited long enough.
    pub(super) fn tell_watermark(&mut self) {
        let (now, chosen) = (self.now, self.chosen);
        let Role::Leader(leadership) = &mut self.role else {
            return;
        };
        let Some(tell_at) = leadership.tell_at else {
            self.told_now.clear();
            return;
        };
        let due = now >= tell_at;
        let waiting = core::mem::take(&mut self.told_now);
        let mut to = Vec::new();
        let mut all_told = true;
        for (node, peer) in &mut leadership.peers {
            if peer.told >= chosen {
                continue;
            }
            if due || waiting.contains(node) {
                peer.told = chosen;
                to.push(*node);
            } else {
                all_told = false;
            }
        }
        if all_told {
            leadership.tell_at = None;
        }
        let message = Message::Chosen {
            ballot: leadership.ballot,
            start: leadership.start,
            chosen,
        };
        self.send_all(to, message);
    }
}

/// Collects the commands of one batch within its bounds.
struct BatchRoom {
    commands: usize,
    bytes: usize,
    taken: Vec<Command>,
}

impl BatchRoom {
    /// Takes the command if it fits; the first one always fits.
    fn take(&mut self, command: Command) -> bool {
        let size = command.payload.len();
        if !self.taken.is_empty() && (self.taken.len() >= self.commands || size > self.bytes) {
            return false;
        }
        self.bytes = self.bytes.saturating_sub(size);
        self.taken.push(command);
        true
    }
}
