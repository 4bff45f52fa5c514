//! What replicas of one group say to each other.

use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;

use super::{Checkpoint, Holding, Pulse, Reported, TransferRejection};
use crate::types::{Accepted, Ballot, Change, ChangeRejection, Entry, Incarnation, Membership, NodeId, Slot};

/// A message of the protocol. The sender (node and disk) and the group travel around it, in
/// [`Envelope`](crate::wire::Envelope).
///
/// A reply names the ballot, or the question, that it answers and counts for that only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// "Would you promise to me?" Asked before a ballot is raised, so that a node that cannot win disturbs nobody.
    Canvass {
        /// The ballot that the candidate would use. Promises nothing.
        ballot: Ballot,
        /// The candidate's chosen watermark.
        chosen: Slot,
    },
    /// Answers [`Message::Canvass`].
    CanvassReply {
        /// The ballot of the question.
        ballot: Ballot,
        /// False when the answering node hears a live leader, has promised as high a ballot, or has trimmed what the
        /// candidate lacks.
        granted: bool,
        /// The highest ballot that the answering node has seen, so that the next question is high enough.
        highest: Ballot,
        /// The answering node's chosen watermark, so that a candidate that is behind catches up.
        chosen: Slot,
    },
    /// Phase 1 for all slots from `from` on ("1a", range prepare).
    Prepare {
        /// The candidate's ballot; durable on its own disk before this message exists.
        ballot: Ballot,
        /// The first slot that the candidate still needs a report of.
        from: Slot,
        /// The leader that has asked the candidate to take over: leases granted to it bind nobody any more.
        released: Option<Ballot>,
    },
    /// Answers [`Message::Prepare`] ("1b"), in chunks: reports every entry above both `from` and the sender's
    /// watermark. The sender's promise is durable before this message exists.
    Promise {
        /// The ballot promised.
        ballot: Ballot,
        /// The sender's chosen watermark: the candidate must learn up to it before it proposes.
        chosen: Slot,
        /// What this chunk reports.
        reported: Reported,
    },
    /// "I promised a higher ballot": answers a `Prepare`, `Accept` or `Heartbeat` with a ballot that is too low.
    Refuse {
        /// The ballot that is refused.
        ballot: Ballot,
        /// The higher one that the sender has promised or follows.
        promised: Ballot,
    },
    /// Phase 2 for a run of slots ("2a").
    Accept {
        /// The leader's ballot.
        ballot: Ballot,
        /// The first slot that this leader proposed for at this ballot: all below it were chosen when it began.
        start: Slot,
        /// The slot of the first entry; the others follow without a gap.
        first: Slot,
        /// What is proposed.
        entries: Vec<Entry>,
        /// The leader's chosen watermark.
        chosen: Slot,
    },
    /// Answers [`Message::Accept`] ("2b"). What it asserts is durable before this message exists.
    Accepted {
        /// The ballot at which the entries were accepted.
        ballot: Ballot,
        /// Every slot from the leader's `start` (or the sender's watermark, if that is higher) up to this one has been
        /// accepted at `ballot`.
        upto: Slot,
        /// The sender's chosen watermark. Slots up to it are *not* claimed to be accepted at `ballot`.
        chosen: Slot,
    },
    /// The leader lives; carries the watermark and asks for a sign of life.
    Heartbeat {
        /// The leader's ballot.
        ballot: Ballot,
        /// As in [`Message::Accept`].
        start: Slot,
        /// The leader's chosen watermark.
        chosen: Slot,
        /// Counts the leader's heartbeats; a quorum that answers this one or a later one proves that the leader was
        /// still leader when it sent this one.
        round: u64,
        /// The lease that the leader asks for; zero: none.
        lease: Duration,
        /// What the leader has applied up to a slot that the receiver should know too, for comparison.
        checkpoint: Checkpoint,
    },
    /// Answers [`Message::Heartbeat`].
    HeartbeatReply {
        /// The leader's ballot.
        ballot: Ballot,
        /// What the sender says of itself.
        pulse: Pulse,
    },
    /// The watermark has advanced and no `Accept` is there to carry it. Not answered.
    Chosen {
        /// The leader's ballot.
        ballot: Ballot,
        /// As in [`Message::Accept`].
        start: Slot,
        /// The leader's chosen watermark.
        chosen: Slot,
    },
    /// "Send me the chosen entries from here on."
    Learn {
        /// The first slot wanted.
        from: Slot,
        /// The last slot wanted; the sender of the answer may stop earlier.
        upto: Slot,
    },
    /// Answers [`Message::Learn`] with a run of *chosen* entries.
    Learned {
        /// The first slot asked for: the slot of the first entry.
        from: Slot,
        /// The entries, without gaps, all chosen; empty when the sender has none of them.
        entries: Vec<Accepted>,
        /// The sender's chosen watermark.
        chosen: Slot,
    },
    /// Answers a [`Message::Learn`] for entries that the sender has trimmed: it has a snapshot instead.
    Trimmed {
        /// The slot that the sender's newest snapshot is of.
        snapshot: Slot,
    },
    /// "Send me a piece of your snapshot."
    FetchSnapshot {
        /// Which one; [`Slot::ZERO`] for the newest.
        upto: Slot,
        /// Where the piece begins, in bytes.
        offset: u64,
    },
    /// Answers [`Message::FetchSnapshot`].
    SnapshotChunk {
        /// Which one.
        upto: Slot,
        /// How many bytes the whole snapshot has; zero when the sender does not have that one any more.
        total: u64,
        /// Where the piece begins, in bytes.
        offset: u64,
        /// The piece; shorter than wanted only at the end.
        data: Bytes,
    },
    /// Commands of a node that is not leader, in order.
    Forward {
        /// The leader's ballot: it takes commands in this leadership only.
        ballot: Ballot,
        /// The sender's life.
        incarnation: Incarnation,
        /// The sequence number of the first command; the others follow without a gap.
        first: u64,
        /// The commands.
        commands: Vec<Bytes>,
    },
    /// Answers [`Message::Forward`]: which command the leader takes next.
    Forwarded {
        /// The leader's ballot.
        ballot: Ballot,
        /// The life that the answer is for.
        incarnation: Incarnation,
        /// The leader has all commands below this sequence number.
        expected: u64,
    },
    /// "From which slot on may I read linearizably?"
    ReadIndex {
        /// Chosen by the asking node, larger for each new question of all its lives. The same question may be asked
        /// again; any answer that was given after it was first asked is right.
        token: u64,
    },
    /// Answers [`Message::ReadIndex`].
    ReadIndexReply {
        /// The question.
        token: u64,
        /// A read that waits until this slot is applied sees every write acknowledged before the question was asked;
        /// `None` when the answering node is not leader.
        slot: Option<Slot>,
    },
    /// The leader wants to be succeeded by the receiver, which has all that it needs: it shall stand at once. Not
    /// answered, but by its candidacy.
    TakeOver {
        /// The leader's ballot; who does not follow it does nothing.
        ballot: Ballot,
        /// As in [`Message::Accept`].
        start: Slot,
        /// The leader's chosen watermark.
        chosen: Slot,
        /// A user has named the receiver: it leads on, whoever else is preferred.
        by_hand: bool,
    },
    /// "Let that node lead." Asked of the leader by a node whose user wants it, also if it is the leader
    /// that shall lead on. Success shows in the change of leader, or in [`Message::LeadsOn`].
    TransferLeadership {
        /// The sender's name for the request.
        request: u64,
        /// Who shall lead.
        to: NodeId,
    },
    /// Answers [`Message::TransferLeadership`] when nothing comes of it.
    TransferRefused {
        /// The request.
        request: u64,
        /// Why.
        reason: TransferRejection,
    },
    /// Answers [`Message::TransferLeadership`] when it was the leader itself that was named: it knows that it shall lead
    /// on.
    LeadsOn {
        /// The request.
        request: u64,
    },
    /// A heartbeat of a leader that has nothing to do: "if you have not either, rest". Answered with a
    /// [`Message::HeartbeatReply`], and with [`Message::Rests`] by those who do.
    Rest {
        /// As in [`Message::Heartbeat`].
        ballot: Ballot,
        /// As in [`Message::Heartbeat`].
        start: Slot,
        /// As in [`Message::Heartbeat`].
        chosen: Slot,
        /// As in [`Message::Heartbeat`].
        round: u64,
        /// As in [`Message::Heartbeat`].
        checkpoint: Checkpoint,
    },
    /// Answers [`Message::Rest`]: the sender has everything, and waits for no sign of life any more.
    Rests {
        /// The leader's ballot.
        ballot: Ballot,
        /// The round of the question.
        round: u64,
    },
    /// A user of a node that is not leader wants the membership changed.
    ChangeMembership {
        /// Chosen by the asking node, another one for each request of all its lives. A request is sent once.
        token: u64,
        /// The version of the membership that the changes are for.
        expected: u64,
        /// The changes.
        changes: Vec<Change>,
        /// Whether voters that are not reached, or lag behind, are accepted.
        force: bool,
    },
    /// Answers [`Message::ChangeMembership`], when the change is complete or refused.
    MembershipChanged {
        /// The request.
        token: u64,
        /// The new membership, or why it was certainly not changed.
        result: Result<Membership, ChangeRejection>,
    },
    /// "You are about to be taken out of the group: take no more commands, and tell me when none is open." Said by the
    /// leader before it proposes the membership, and again with its heartbeats until that is chosen.
    Drain {
        /// The leader's ballot; who does not follow it does nothing.
        ballot: Ballot,
        /// Counts the leader's drains.
        number: u64,
    },
    /// Answers [`Message::Drain`]: no command of the sender's users is open.
    Drained {
        /// The leader's ballot.
        ballot: Ballot,
        /// Which drain.
        number: u64,
    },
    /// "You do not belong to the group, or not with this disk": answers whoever would lead it and may not.
    NotAdmitted {
        /// The slot of the membership's entry, which is chosen.
        at: Slot,
        /// The membership that says so.
        membership: Membership,
    },
    /// Who belongs to the group: for a node that joins and must find its peers, and for one that may not know yet that it
    /// is a voter. An address book and a hint to learn; never a right to vote.
    Members {
        /// The slot of the membership's entry, which is chosen.
        at: Slot,
        /// The members.
        membership: Membership,
    },
    /// "You have applied something else than a quorum": the receiver, if that is so, quarantines itself.
    Diverged {
        /// The leader's ballot; who does not follow it does nothing.
        ballot: Ballot,
        /// What a quorum has applied.
        right: Checkpoint,
    },
    /// "Your disk once held more than you began with": the receiver, if that is so, quarantines itself.
    RolledBack {
        /// The leader's ballot; who does not follow it does nothing.
        ballot: Ballot,
        /// The receiver's life that began with too little.
        incarnation: Incarnation,
        /// What an earlier life has said to be on its disk.
        lost: Holding,
    },
}

impl Message {
    /// What whoever speaks as leader knows to be chosen.
    pub(super) const fn watermark_of_leader(&self) -> Option<Slot> {
        match self {
            Self::Accept { chosen, .. }
            | Self::Heartbeat { chosen, .. }
            | Self::Rest { chosen, .. }
            | Self::Chosen { chosen, .. } => Some(*chosen),
            _ => None,
        }
    }

    /// A short name for logs and counters.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Canvass { .. } => "canvass",
            Self::CanvassReply { .. } => "canvass_reply",
            Self::Prepare { .. } => "prepare",
            Self::Promise { .. } => "promise",
            Self::Refuse { .. } => "refuse",
            Self::Accept { .. } => "accept",
            Self::Accepted { .. } => "accepted",
            Self::Heartbeat { .. } => "heartbeat",
            Self::HeartbeatReply { .. } => "heartbeat_reply",
            Self::Chosen { .. } => "chosen",
            Self::Learn { .. } => "learn",
            Self::Learned { .. } => "learned",
            Self::Trimmed { .. } => "trimmed",
            Self::FetchSnapshot { .. } => "fetch_snapshot",
            Self::SnapshotChunk { .. } => "snapshot_chunk",
            Self::Forward { .. } => "forward",
            Self::Forwarded { .. } => "forwarded",
            Self::ReadIndex { .. } => "read_index",
            Self::ReadIndexReply { .. } => "read_index_reply",
            Self::TakeOver { .. } => "take_over",
            Self::TransferLeadership { .. } => "transfer_leadership",
            Self::TransferRefused { .. } => "transfer_refused",
            Self::LeadsOn { .. } => "leads_on",
            Self::Rest { .. } => "rest",
            Self::Rests { .. } => "rests",
            Self::ChangeMembership { .. } => "change_membership",
            Self::MembershipChanged { .. } => "membership_changed",
            Self::Drain { .. } => "drain",
            Self::Drained { .. } => "drained",
            Self::NotAdmitted { .. } => "not_admitted",
            Self::Members { .. } => "members",
            Self::Diverged { .. } => "diverged",
            Self::RolledBack { .. } => "rolled_back",
        }
    }

    /// Whether the message may be large and can wait, so that it travels on the bulk lane and control messages
    /// overtake it.
    ///
    /// `Accept` is control: it is bounded by the window, and a heartbeat that overtook it would announce entries that
    /// have not arrived yet.
    pub const fn is_bulk(&self) -> bool {
        matches!(
            self,
            Self::Promise { .. } | Self::Learned { .. } | Self::SnapshotChunk { .. }
        )
    }
}
