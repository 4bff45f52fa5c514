//! "Sometimes" events: what a set of runs must have met, or it has proved less than it seems.

use core::fmt::Write;
use std::{string::String, vec::Vec};

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Something rare that a good set of runs meets often.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event {
            $(#[doc = $text] $name,)*
        }

        impl Event {
            /// All events, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What happened, in words.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

events! {
    LeaderWithPendingSlots = "a new leader inherited slots that were not chosen yet",
    LeaderBehind = "a candidate was promised by a node that knew more chosen slots",
    LeaderSteppedDown = "a leader stepped down in mid-life",
    PromisesDiffer = "two promises to a candidate reported a slot at different ballots",
    LeaderCrashed = "a leader crashed",
    LeaderPaused = "a leader was paused",
    AllCrashed = "all nodes crashed at once",
    NoopFilled = "a no-op was chosen",
    TwoBallots = "a slot was accepted at two ballots",
    TwoValues = "a slot was accepted with two values",
    RefusedLeader = "a leader was refused",
    CanvassDenied = "a canvass was denied",
    PromiseInChunks = "a promise came in several chunks",
    AcceptedOverwritten = "an acceptor replaced a value that it had accepted",
    Learned = "a replica learned entries from a peer",
    Loaded = "entries were read back from the disk",
    WritesLost = "a crash lost unsynced writes",
    WritesKept = "a crash kept unsynced writes",
    WritesCut = "a crash kept some unsynced writes and lost others",
    WriteTorn = "a crash cut off the write under way, which was dropped whole",
    SharedWrite = "one write carried the changes of several groups",
    SharedWriteLost = "a crash lost a write of several groups",
    RestartedWithTail = "a replica restarted with entries above its watermark",
    SyncFailed = "a sync failed",
    FullAtSync = "a disk was full at a sync, and its node stopped",
    FullAtStart = "a node could not start because its disk was full",
    DamageAtStart = "a node found damaged records of chosen entries when it started",
    DamagedVoteAtStart = "a node found damaged records above its watermark when it started",
    DamagedMembership = "a node found the record damaged that says who the members are",
    SnapshotsLost = "a node lost the snapshots that its log began behind",
    DamageAtRead = "a read, or a scrub, found damaged records while their node lived",
    DamagePromised = "a promise told of damaged slots",
    RepairedByLearning = "a damaged slot was repaired by learning",
    RepairedByAccept = "a damaged slot was repaired by an accept",
    RepairedBySnapshot = "a damaged slot was repaired by trimming behind a snapshot",
    GroupCommit = "several writes shared a sync",
    ReplayAcrossElection = "a late message arrived after a higher ballot",
    Duplicated = "a message was delivered twice",
    Lost = "a message was lost",
    Cut = "a message ran into a cut",
    Refused = "the transport refused a message",
    UnknownPeer = "a node did not know where to reach another one",
    Disconnected = "a broken connection was noticed",
    Forwarded = "a command was forwarded to the leader",
    ForwardedAgain = "a command was forwarded again",
    CopySkipped = "a copy of a command was chosen and skipped",
    BatchOfMany = "an entry held several commands",
    WindowOfMany = "a leader had several slots in flight",
    WindowFull = "a leader's window was full",
    EmptyCommand = "an empty command was applied",
    ProposalUnknown = "a proposal ended unknown",
    ProposalExpired = "a cancelled proposal certainly did not happen",
    Overloaded = "a proposal was rejected for overload",
    TooLarge = "a command was rejected for its size",
    ProposalAtLeaving = "a proposal was rejected by a node that left its group, or was about to",
    NotLeader = "a proposal was rejected with a hint",
    ReadOnFollower = "a follower answered a read",
    ReadWaited = "a read waited for a slot to be applied",
    ReadAtNewLeader = "a leader was asked to read before its inherited slots were chosen",
    Transferred = "leadership was handed over on request",
    TransferRefused = "a transfer of leadership was refused, or another node led",
    TransferTimedOut = "a transfer of leadership was given up",
    ToldToTakeOver = "a node was told to take over",
    LateTakeOver = "a node was told to take over by a leader that it did not follow any more",
    GroupRested = "a leader rested with its group",
    WokenByRequest = "a replica that rested was woken by a proposal or a read",
    WokenByMessage = "a leader that rested was woken by a peer's request",
    WokenByCanvass = "a replica that rested was woken by a canvass",
    WokenBySilence = "a replica that rested was woken by a silent node",
    WokenByReturn = "a leader that rested was woken by a node that came back",
    RestedWithoutPeer = "a group rested while a peer was silent",
    MembershipChosen = "a membership was chosen",
    MembershipBesideDamage = "a membership was chosen while a disk was damaged",
    ChangeAcrossCut = "a membership was chosen while nodes were cut off from each other",
    MembershipAdopted = "a new leader proposed again a membership that an earlier one had proposed",
    BarrierAsked = "a leader asked new voters for promises",
    NewVoterReported = "a new voter reported entries to a leader",
    DisjointChange = "a membership had no voter in common with the one before",
    DiskPinned = "a member's disk was recorded",
    DiskLost = "a node lost its disk",
    DiskLostBesideDamage = "a node lost its disk while another disk was damaged",
    DiskLostAndJoined = "a node that had lost its disk came back without knowing any member",
    Moved = "a node moved to another address",
    DiskReadmitted = "a node was admitted with its new disk",
    DrainedBeforeRemoval = "a node that was removed had been drained before",
    DrainGivenUp = "a node that had been told to drain took commands again",
    UnknownAtRemoved = "a proposal ended unknown at a node that was removed",
    RemovedTold = "a node learned that it was removed",
    LeaderRemovedItself = "a leader stopped because it was no voter any more",
    ChangeAnswered = "a user was told that the membership was changed",
    ChangeUnknown = "the outcome of a membership change stayed unknown",
    ChangeOfOldVersion = "a change for another version of the membership was refused",
    ChangeWhileAnother = "a change was refused because another one was under way",
    ChangeAtNewLeader = "a change was refused because the leader was new",
    ChangeWithoutLeader = "a change was refused because no leader was known",
    ChangeNotReady = "a change was refused because a new voter was not reached, or lagged behind",
    ChangeInvalid = "an invalid change was refused",
    ReadByLease = "a leader answered a read by its lease",
    LeaseOver = "a lease was over when the query under it had run",
    LeaseSucceeded = "a node got a lease within a lease's duration of another one's",
    SnapshotSwapped = "a machine was replaced by a copy restored from its snapshot",
    SnapshotTaken = "a snapshot was taken",
    SnapshotFailed = "a snapshot could not be written",
    LogTrimmed = "a log was trimmed",
    TrimWaited = "a leader kept entries for a peer that was behind",
    Trimmed = "a peer had trimmed the entries that a replica asked for",
    SnapshotGone = "a peer fetched a snapshot that was not kept any more",
    SnapshotDamaged = "a damaged snapshot was received, and not installed",
    ReceiverCrashed = "a replica crashed while it received a snapshot",
    FetchResumed = "a snapshot was fetched on after its sender had crashed",
    SnapshotInstalled = "a snapshot of a peer was installed",
    InstalledAcrossElection = "the leader changed while a snapshot was fetched",
    InstallOvertaken = "a newer snapshot came while one was being installed",
    AppliesWaited = "entries waited until a snapshot was installed",
    UnknownByInstall = "a proposal ended unknown because a snapshot holds its effect",
    RestartedFromSnapshot = "a replica restarted from a snapshot and the log behind it",
    DivergedQuarantined = "a replica whose log was altered quarantined itself",
    LivesNumberedAgain = "a disk was set back under a clock that was behind",
    RolledBackQuarantined = "a replica whose disk was set back quarantined itself",
    RestartedHalfInstalled = "a replica restarted with a snapshot ahead of its log",
}

/// How often each event was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    counts: Vec<u64>,
}

impl Default for Coverage {
    fn default() -> Self {
        Self {
            counts: std::vec![0; Event::ALL.len()],
        }
    }
}

impl Coverage {
    pub(super) fn meet(&mut self, event: Event) {
        self.counts[event as usize] += 1;
    }

    pub(super) fn meet_if(&mut self, condition: bool, event: Event) {
        if condition {
            self.meet(event);
        }
    }

    /// How often this event was met.
    pub fn count(&self, event: Event) -> u64 {
        self.counts[event as usize]
    }

    /// Adds the events of another run.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// The events that were met less often than this.
    pub fn below(&self, limit: u64) -> Vec<Event> {
        Event::ALL
            .iter()
            .copied()
            .filter(|event| self.count(*event) < limit)
            .collect()
    }

    /// One line for each event.
    pub fn table(&self) -> String {
        let mut table = String::new();
        for event in Event::ALL {
            let _ = writeln!(table, "{:>12}  {}", self.count(*event), event.name());
        }
        table
    }
}
