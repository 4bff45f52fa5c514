//! What goes into a replica and what comes out of it.

use alloc::{collections::BTreeMap, string::String, vec::Vec};
use core::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Checkpoint, Command, Message};
use crate::snapshot::SnapshotHeader;
use crate::types::{
    Accepted, Ballot, Change, ChangeRejection, ChosenMembership, GroupId, HardState, Identity, Incarnation,
    Membership, NodeId, Quarantine, Slot, StorageId, WriteOp,
};

/// What a replica is made from: who it is and what its store holds.
#[derive(Clone, Debug)]
pub struct Start {
    /// The group.
    pub group: GroupId,
    /// Cluster, node and disk.
    pub identity: Identity,
    /// This life of the replica; larger than every earlier one of this group on this node, across restarts too.
    pub incarnation: Incarnation,
    /// Seeds all of the replica's randomness (election timeouts).
    pub seed: u64,
    /// The membership in force after `hard_state.chosen`: the one that the store holds at `hard_state.membership` (with
    /// the ballot it is stored with), or the newest snapshot's, or the group's first one. A node that joins begins with
    /// one of version 0, without members.
    pub membership: ChosenMembership,
    /// As recovered.
    pub hard_state: HardState,
    /// As recovered: all slots up to this one are trimmed.
    pub trimmed: Slot,
    /// All entries held above `hard_state.chosen`, in order.
    pub tail: Vec<(Slot, Accepted)>,
    /// As recovered: slots whose records are damaged. What they held is asked of the peers, and nothing is promised for
    /// them meanwhile. If the entry of `hard_state.membership` is among them and no snapshot has it, `membership` is one
    /// of version 0 at that slot: the replica does not vote until it has learned who the members are.
    pub damaged: Vec<Slot>,
    /// What the newest snapshot that is whole and durable on this node says; needed when anything is trimmed. The
    /// replica begins from it, even if it is above `hard_state.chosen`: a crash came between making a peer's snapshot
    /// durable and installing it. The driver restores the machine from it, unless the machine is as far already.
    pub snapshot: Option<SnapshotHeader>,
}

/// Numbers the writes of one replica, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PersistId(pub u64);

/// Names a proposal or a read of this node's user; chosen by the driver, larger each time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// What happens to a replica.
#[derive(Clone, Debug)]
pub enum Input {
    /// Only time has passed.
    Tick,
    /// A message came in.
    Message {
        /// The node that sent it.
        from: NodeId,
        /// That node's disk.
        storage: StorageId,
        /// What it said.
        message: Message,
    },
    /// This write, and all before it, are durable. A write that did not ask for a sync may be reported once the store
    /// has taken it, or never.
    Persisted(PersistId),
    /// A user of this node proposes a command. Ends in exactly one of [`Output::Apply`] with its token,
    /// [`Output::Rejected`] or [`Output::Unknown`].
    Propose {
        /// Names the proposal in the answer.
        token: Token,
        /// The command.
        command: Bytes,
    },
    /// A user of this node wants to read linearizably. Ends in exactly one of [`Output::ReadReady`] and
    /// [`Output::Rejected`].
    Read {
        /// Names the read in the answer.
        token: Token,
    },
    /// As [`Input::Read`], but answered at once while this node leads under a lease ([`Config::lease`](super::Config)).
    ReadByLease {
        /// Names the read in the answer.
        token: Token,
    },
    /// A user of this node wants another node to lead, or this one not to. Ends in exactly one [`Output::Transferred`],
    /// within two election timeouts.
    TransferLeadership {
        /// Names the request in the answer.
        token: Token,
        /// Who shall lead; `None`: anybody else, if this node leads.
        to: Option<NodeId>,
    },
    /// A user of this node wants the membership changed. Ends in exactly one of [`Output::MembershipChanged`] and
    /// [`Output::Unknown`]. The nodes that it takes out end what their users have under way first.
    ChangeMembership {
        /// Names the request in the answer.
        token: Token,
        /// The version of the membership that the changes are for: a retry can never change anything twice.
        expected: u64,
        /// The changes: made together or not at all.
        changes: Vec<Change>,
        /// Make the change even if voters of the new membership are not reached or lag behind, so that the group may
        /// stand still. An invalid change stays invalid.
        force: bool,
    },
    /// The user waits no longer. A proposal that may already have left this queue and a change of the membership end
    /// [`Output::Unknown`]; other proposals, and reads, end [`Output::Rejected`] with [`Rejection::Expired`]. Does nothing
    /// if the token has ended already, nor to a request for another leader, which ends soon anyway.
    Cancel {
        /// The proposal, read or change.
        token: Token,
    },
    /// Answers [`Output::Load`]: what the store holds in these slots, up to the first damaged one.
    Loaded {
        /// The first slot asked for.
        from: Slot,
        /// The entries found, in order.
        entries: Vec<(Slot, Accepted)>,
    },
    /// A user wants a snapshot as of now. It is taken unless nothing was applied since the newest one
    /// ([`Status::applied`], [`Status::snapshot`]); while another one is being saved, after that.
    TakeSnapshot,
    /// Answers [`Output::TakeSnapshot`]: the snapshot is durable.
    SnapshotTaken {
        /// As of which slot it is.
        upto: Slot,
    },
    /// Answers [`Output::TakeSnapshot`], or an [`Output::StoreChunk`]: there will be no such snapshot here. The machine
    /// could not be frozen or written, or what a peer sent is not a whole snapshot. What was stored of it is gone.
    SnapshotFailed {
        /// As of which slot it would have been.
        upto: Slot,
    },
    /// The machine cannot apply for the time being, because it is being restored (true), or can again (false). Meanwhile
    /// no [`Output::Apply`] comes out, beyond those on their way already, and this replica does not stand for election.
    HoldApply(bool),
    /// The driver can keep no snapshots any more: its place for them has failed for good. From now on this replica is one
    /// without ([`Config::snapshots`](super::Config::snapshots)), but for those that it has already.
    SnapshotsOff,
    /// A user wants the log to be trimmed no more (true), or again (false).
    PauseTrimming(bool),
    /// Answers [`Output::LoadChunk`].
    ChunkLoaded {
        /// The peer that it is for.
        to: NodeId,
        /// Which snapshot.
        upto: Slot,
        /// How many bytes it has as a whole; 0 if there is no such snapshot (any more), or it cannot be read.
        total: u64,
        /// Where the piece begins.
        offset: u64,
        /// The piece: up to as many bytes as were asked for, fewer only at the snapshot's end.
        data: Bytes,
    },
    /// Answers [`Output::StoreChunk`] unless the snapshot is complete or failed.
    ChunkStored {
        /// Which snapshot.
        upto: Slot,
        /// How many bytes of it are stored, without a gap: where to go on. More than the chunk's end if they have been
        /// stored by an earlier attempt.
        next_offset: u64,
    },
    /// Answers the last [`Output::StoreChunk`] of a snapshot: the whole has been verified and is durable.
    SnapshotReceived(SnapshotHeader),
    /// The store has found records damaged, in a read or otherwise. They are repaired from memory or by the peers. Comes
    /// before the [`Input::Loaded`] of the read that found them, which has what stands before them.
    Damaged {
        /// Which: at most a few thousand at once.
        slots: Vec<Slot>,
    },
    /// The transport can send to this peer, which it could not before: perhaps to a process that has just been started.
    Connected(NodeId),
    /// The connection to a peer broke: a hint that it may be gone.
    Disconnected(NodeId),
    /// The transport refused a message to this peer (its queue is full or there is no connection).
    SendRefused(NodeId),
    /// The driver hears this peer's node: see [`peers`](super::peers). A group rests only with peers of whom this was
    /// said last.
    PeerAlive(NodeId),
    /// The driver has not heard this peer's node for an election timeout, or it was started anew.
    PeerSilent(NodeId),
}

/// What a replica wants done.
#[derive(Clone, Debug, Hash)]
pub enum Output {
    /// Send this message to each of these nodes, at once. To refuse is allowed ([`Input::SendRefused`]).
    Send {
        /// Receivers; at least one, never the replica's own node.
        to: Vec<NodeId>,
        /// What to say.
        message: Message,
    },
    /// Make these changes durable, atomically, after all earlier ones; then step [`Input::Persisted`].
    Persist {
        /// The number of this write.
        id: PersistId,
        /// The changes, in order.
        ops: Vec<WriteOp>,
        /// False when nothing waits for it: it may ride along with a later write.
        sync: bool,
    },
    /// Apply the next chosen entry. Slots come in order, without gaps, once per life, from the first one held above the
    /// snapshot that the replica began with, or has installed.
    Apply(ChosenEntry),
    /// Save the machine as it is when all earlier outputs are carried out, which is after the header's slot, together
    /// with the header: freeze it now, write it elsewhere while applying goes on. Then step [`Input::SnapshotTaken`] or
    /// [`Input::SnapshotFailed`] (also if the machine is not at that slot, because it was ahead of the log when it was
    /// started). One is open at a time.
    TakeSnapshot(SnapshotHeader),
    /// Replace the machine's state by this snapshot, the last one reported by [`Input::SnapshotReceived`], before anything
    /// that comes later is applied. It is ahead of all that was applied. It must be kept until then, even if a newer one
    /// is received before.
    InstallSnapshot {
        /// As of which slot it is.
        upto: Slot,
    },
    /// Read a piece of a snapshot for a peer and step [`Input::ChunkLoaded`]. One is open for each peer.
    LoadChunk {
        /// Who asked for it.
        to: NodeId,
        /// Which snapshot.
        upto: Slot,
        /// Where the piece begins, in bytes; may be beyond the end.
        offset: u64,
        /// How long it may be.
        max_bytes: usize,
    },
    /// Keep a piece of a peer's snapshot: append it to what is stored of that snapshot if it begins just there, else
    /// only say where to go on. A piece at offset 0 of another snapshot, or of one with another total, begins anew and
    /// drops what was stored. Then step [`Input::ChunkStored`]; or, with the last piece, verify the whole, make it durable
    /// and step [`Input::SnapshotReceived`] or [`Input::SnapshotFailed`]. Few are open at once, all of one snapshot.
    StoreChunk {
        /// Which snapshot.
        upto: Slot,
        /// How many bytes it has as a whole.
        total: u64,
        /// Where the piece begins.
        offset: u64,
        /// The piece.
        data: Bytes,
    },
    /// Read the entries of these slots from the store and step [`Input::Loaded`], after [`Input::Damaged`] if some of them
    /// are. One load is open at a time.
    Load {
        /// The first slot.
        from: Slot,
        /// The last slot.
        upto: Slot,
        /// As in [`Storage::read`](crate::Storage::read).
        max_bytes: usize,
    },
    /// The read may be answered once this slot has been applied.
    ReadReady {
        /// Which read.
        token: Token,
        /// Wait for this slot.
        slot: Slot,
        /// The ballot under whose lease the read is answered: the driver has to look again after the query has run, as
        /// [`Replica::lease`](super::Replica::lease) says, and steps [`Input::Read`] with the same token if it is over.
        lease: Option<Ballot>,
    },
    /// The proposal or read certainly did not happen.
    Rejected {
        /// Which.
        token: Token,
        /// Why.
        reason: Rejection,
    },
    /// The proposal, or the change of the membership, may or may not happen later.
    Unknown {
        /// Which.
        token: Token,
    },
    /// Who leads has changed, as far as this replica knows.
    Leader(Option<Ballot>),
    /// Another membership is in force from the slot after `at` on: the driver must be able to reach its members. The one
    /// that the replica started with does not come this way.
    Membership {
        /// The slot of its entry.
        at: Slot,
        /// Who belongs to the group now.
        membership: Membership,
    },
    /// Answers [`Input::TransferLeadership`].
    Transferred {
        /// Which request.
        token: Token,
        /// Who leads now; it may have been so already.
        result: Result<NodeId, TransferRejection>,
    },
    /// A request for another membership has ended.
    MembershipChanged {
        /// Which.
        token: Token,
        /// The new membership, which is chosen; or why it was certainly not changed.
        result: Result<Membership, ChangeRejection>,
    },
    /// These nodes belong to the group, or may do so soon: the driver should be able to reach them too.
    Peers(Membership),
    /// A node that was removed asks, from there, what has become of the group: the driver should be able to answer it.
    Departed {
        /// Who.
        node: NodeId,
        /// Where it was when it was a member.
        address: String,
    },
    /// Something that must never happen was seen; the replica has refused it and goes on.
    Alarm(Alarm),
}

/// Why a proposal or read certainly did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// This node is not leader and does not forward.
    NotLeader {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
    /// A bound on pending work is reached.
    Overloaded,
    /// The command exceeds [`Config::max_command_bytes`](super::Config::max_command_bytes).
    TooLarge,
    /// It was cancelled before it left this node.
    Expired,
    /// This node is about to be taken out of the group, or has been: its users have to go to another one.
    Leaving,
}

/// Why leadership was not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum TransferRejection {
    /// Nobody leads, as far as is known.
    #[error("no leader is known; try again when there is one")]
    NoLeader,
    /// The node that shall lead does not vote in the group.
    #[error("node {node} is no voter of the group; name one that is")]
    NotVoter {
        /// Which.
        node: NodeId,
    },
    /// The leader has not heard that node for an election timeout.
    #[error("node {node} does not answer the leader; wait until it does, or name another one")]
    NotAlive {
        /// Which.
        node: NodeId,
    },
    /// That node still reads its log.
    #[error("node {node} is still starting; try again later, or name another one")]
    NotReady {
        /// Which.
        node: NodeId,
    },
    /// No other voter is alive and ready.
    #[error("no other voter is alive and ready to lead")]
    NobodyElse,
    /// Leadership is being handed to another node.
    #[error("leadership is being handed to node {to} already; try again when that is done")]
    UnderWay {
        /// To which.
        to: NodeId,
    },
    /// That node did not take over within an election timeout. It may do so yet.
    #[error("the node did not take over in time; the leader goes on")]
    TimedOut,
    /// Leadership changed, but to another node.
    #[error("node {node} leads instead")]
    OtherLeader {
        /// Which.
        node: NodeId,
    },
    /// Too many such requests are open on this node.
    #[error("too many requests for a transfer are open; try again later")]
    TooMany,
}

/// Something that cannot happen unless a node, a disk or this library is broken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Alarm {
    /// A second value was offered for a slot at a ballot at which another was accepted.
    TwoValues {
        /// Where.
        slot: Slot,
        /// At which ballot.
        ballot: Ballot,
    },
    /// The store does not give back a slot that it was told to keep. The replica applies nothing from there on; the driver
    /// should halt it.
    Missing {
        /// Where.
        slot: Slot,
    },
    /// So many voters have damaged records of a slot that nobody can tell any more whether something was chosen there.
    /// The leader proposes nothing there, or above, until enough of them have their records back; it never guesses. It
    /// asks them again all the time, so that a voter whose disk can be read again, as a rule after a restart, ends it. Where
    /// they are lost for good, the group has to begin anew.
    Undecidable {
        /// The first such slot.
        slot: Slot,
    },
    /// A peer reported an entry that cannot be: the report was ignored.
    Implausible {
        /// Who said so.
        from: NodeId,
        /// Where it claims to have accepted something.
        slot: Slot,
    },
    /// The log holds a command of this node's present life that this life never proposed: the store has forgotten its
    /// earlier lives. The replica can no longer tell its own commands apart; the driver should halt it.
    LifeReused {
        /// Where.
        slot: Slot,
    },
    /// This replica and the other one have applied different things in the slots up to this one: what one of them stores was
    /// altered, or a state machine's host computes wrongly. Raised by a leader, and by the peer that differs from it. The
    /// odd one out quarantines itself; while no majority agrees, nobody does, and people have to find out who is right.
    HashesDiffer {
        /// Where they were compared.
        slot: Slot,
        /// The other one.
        peer: NodeId,
    },
    /// A peer's disk has lost what the peer had acknowledged: it was set back to an older state. The peer has no vote any
    /// more, and quarantines itself when it hears of it.
    RolledBack {
        /// Whose.
        peer: NodeId,
        /// The highest slot that it held.
        slot: Slot,
    },
    /// The replica has put itself under quarantine, durably, or began so: it takes part in nothing any more. The driver
    /// halts it. A restart changes nothing; the way back is an empty store.
    Quarantined(Quarantine),
    /// A peer has trimmed what this replica lacks, and this replica has no place for the peer's snapshot: unless another
    /// peer still holds the entries, it can never follow. Raised once for each watermark at which it stands still.
    Stranded {
        /// Who said so.
        peer: NodeId,
        /// As of which slot the peer's snapshot is.
        snapshot: Slot,
    },
    /// No ballot is left that is above all that were seen, so this node cannot lead any more.
    NoBallotLeft,
    /// A chosen entry cannot be decoded; it is treated as a no-op, the same on every replica.
    Malformed {
        /// Where.
        slot: Slot,
        /// What is wrong.
        detail: String,
    },
}

/// A chosen entry on its way to the state machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChosenEntry {
    /// Where.
    pub slot: Slot,
    /// The ballot of the leader that first proposed the commands: the same on every replica. Zero without commands.
    pub ballot: Ballot,
    /// The commands to apply, in order: none for a no-op or a membership, and none that an earlier slot already held.
    pub commands: Vec<ChosenCommand>,
}

/// A command on its way to the state machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChosenCommand {
    /// Who proposed it.
    pub command: Command,
    /// The proposal of this node's user that this command is, if any still waits: its reply goes there.
    pub token: Option<Token>,
}

/// What a replica is, for people and tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The group.
    pub group: GroupId,
    /// The replica's part.
    pub phase: Phase,
    /// Whether the group rests, as far as this replica knows: nothing is to be done, so nothing is said.
    pub resting: bool,
    /// The leader's ballot, as far as known.
    pub leader: Option<Ballot>,
    /// The highest ballot promised, durable or not yet.
    pub promised: Ballot,
    /// The chosen watermark.
    pub chosen: Slot,
    /// The highest watermark heard of: this replica lags behind while it is above `chosen`.
    pub known: Slot,
    /// The last entry handed out to apply.
    pub applied: Slot,
    /// The running hash over everything handed out to apply: equal on all replicas that have applied as much.
    pub checkpoint: Checkpoint,
    /// Why the replica takes no part in the group any more.
    pub quarantine: Option<Quarantine>,
    /// As of which slot the newest durable snapshot of this node is; zero if there is none.
    pub snapshot: Slot,
    /// The snapshot that is being fetched from a peer.
    pub fetch: Option<FetchStatus>,
    /// As of which slot a peer has a snapshot that this replica needs and cannot take: see [`Alarm::Stranded`].
    pub stranded: Option<Slot>,
    /// All slots up to this one are trimmed.
    pub trimmed: Slot,
    /// Whether the log is trimmed and no snapshot of this node reaches it any more, because all are damaged or gone: one is
    /// sought from the peers. Until then nothing is applied.
    pub lacks_snapshot: bool,
    /// How many slots of the log are damaged on this node's disk and not repaired yet.
    pub damaged: usize,
    /// The slot for which a leader can propose nothing yet, because too few voters can tell what they have accepted there.
    pub undecided: Option<Slot>,
    /// How many damaged slots have been repaired in this life, by writing them again or by trimming behind a snapshot.
    pub repaired: u64,
    /// The highest slot that holds an entry.
    pub last: Slot,
    /// The membership in force at the slot after the watermark.
    pub membership: Membership,
    /// What this node is in it.
    pub standing: Standing,
    /// Whether this node takes no commands, because the leader is about to take it out of the group.
    pub draining: bool,
    /// What a leader knows of its peers; empty elsewhere.
    pub peers: BTreeMap<NodeId, PeerStatus>,
    /// Commands of this node's users, waiting or in flight.
    pub pending_commands: usize,
    /// Their bytes.
    pub pending_bytes: usize,
    /// Slots in flight (leader).
    pub window_entries: usize,
}

/// A snapshot on its way from a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchStatus {
    /// Who sends it.
    pub peer: NodeId,
    /// As of which slot it is; zero while that is not known.
    pub upto: Slot,
    /// How many bytes of it are stored.
    pub done_bytes: u64,
    /// How many it has; zero while that is not known.
    pub total_bytes: u64,
}

/// What a node is in its group, as far as it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Votes.
    Voter,
    /// Receives only.
    Learner,
    /// Has not learned yet that it belongs to the group.
    #[default]
    Joining,
    /// The member with this id was admitted with another disk: this node receives, and is admitted anew by the leader
    /// when it has caught up.
    NotAdmitted,
    /// Belongs to the group no more; it can be shut down.
    Removed,
}

/// A replica's part in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Follows a leader, or waits for one.
    #[default]
    Follower,
    /// Asks whether its candidacy has a chance.
    Canvassing,
    /// Collects promises (phase 1).
    Candidate,
    /// Leads (phase 2).
    Leader,
}

/// What a leader knows of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer has durably accepted everything up to this slot, or knows it chosen.
    pub matched: Slot,
    /// Whether it answered a heartbeat within the election timeout; while the group rests, whether its node is heard.
    pub alive: bool,
    /// How long ago the last answered heartbeat was sent, at the time of the status.
    pub heard_before: Option<Duration>,
}
