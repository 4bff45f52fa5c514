//! How far an exploration goes.

use paxos::core::Message;

/// How far the exploration goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// How often nodes 1, 2 and 3 stand for election.
    pub(crate) candidacies: [usize; 3],
    /// How many commands the users of nodes 1, 2 and 3 propose, before anything else happens.
    pub(crate) proposals: [usize; 3],
    /// The only voter from some time on, if the membership changes: the user of node 1 asks for that when node 1 leads, and
    /// for a command after it.
    pub(crate) last_voter: Option<u64>,
    /// How often a node restarts, all counted together.
    pub(crate) restarts: usize,
    /// How many heartbeats a leader sends beside its first; `None` when all heartbeats are lost.
    pub(crate) heartbeats: Option<usize>,
    /// Whether a message may arrive more than once.
    pub(crate) repeats: bool,
    /// Whether leaders tell what is chosen before they have something else to say.
    pub(crate) watermarks: bool,
    /// Whether refusals arrive; otherwise all are lost, and leaders hear of higher ballots from their owners only.
    pub(crate) refusals: bool,
    /// Whether nodes ask each other for chosen entries.
    pub(crate) learning: bool,
    /// At which nodes a write may take its time, and be lost in a crash; elsewhere it is durable at once. If disks lag at
    /// some nodes only, only these restart.
    pub(crate) disks_lag: [bool; 3],
}

impl Bounds {
    /// Whether the network carries such messages at all.
    pub(crate) fn carries(&self, message: &Message) -> bool {
        match message {
            Message::Prepare { .. }
            | Message::Promise { .. }
            | Message::Accept { .. }
            | Message::Accepted { .. } => true,
            Message::Chosen { .. } => self.watermarks,
            Message::Refuse { .. } => self.refusals,
            Message::Learn { .. } | Message::Learned { .. } => self.learning,
            Message::Heartbeat { .. } | Message::HeartbeatReply { .. } => self.heartbeats.is_some(),
            _ => false,
        }
    }
}

/// Two of three acceptors are proposers, each with one command and one candidacy; everything else is added to that.
pub(crate) const BASE: Bounds = Bounds {
    candidacies: [1, 1, 0],
    proposals: [1, 1, 0],
    last_voter: None,
    restarts: 0,
    heartbeats: None,
    repeats: false,
    watermarks: true,
    refusals: false,
    learning: false,
    disks_lag: [false; 3],
};

/// `PAXOS_MODEL=large` chooses the second; some minutes and gigabytes each, in release.
pub(crate) fn small_or_large(small: Bounds, large: Bounds) -> Bounds {
    match std::env::var("PAXOS_MODEL").as_deref() {
        Ok("large") => large,
        Ok("small") | Err(_) => small,
        Ok(other) => panic!("PAXOS_MODEL is {other:?}; it must be small or large"),
    }
}
