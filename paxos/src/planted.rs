//! Bugs for the simulator to find. They exist in builds with `--cfg paxos_planted` only, and one of them is switched on
//! by name; in every other build [`is`] is a constant and the bugs compile to nothing.

#[cfg(paxos_planted)]
mod switch {
    use alloc::{format, string::String};
    use core::sync::atomic::{AtomicUsize, Ordering};

    /// Every bug that can be planted.
    pub const NAMES: &[&str] = &[
        "accepted_before_sync",
        "promise_before_sync",
        "accept_keeps_promise",
        "accept_below_promise",
        "own_ballot_not_durable",
        "wrong_ballot_adopted",
        "wrong_ballot_of_promises",
        "promise_entries_dropped",
        "watermark_of_any_ballot",
        "hole_not_filled",
        "read_without_quorum",
        "read_before_inherited",
        "quorum_too_small",
        "accepted_of_any_ballot",
        "old_quorum_after_change",
        "new_voters_not_asked",
        "barrier_skipped",
        "visitor_counts",
        "first_round_ignored",
        "session_table_not_in_snapshot",
        "install_moves_back",
        "install_keeps_window",
        "trim_before_snapshot",
        "origins_not_in_snapshot",
        "rests_before_its_peers_know",
        "returning_peer_wakes_nobody",
        "unheard_peer_is_excused",
        "members_told_once",
        "lease_from_arrival",
        "take_over_keeps_lease",
        "promise_during_grant",
        "hash_mismatch_ignored",
        "majority_is_quarantined",
        "rolled_back_counts",
        "damaged_slot_reported_empty",
        "damaged_slot_counts",
        "removal_without_drain",
    ];

    static PLANTED: AtomicUsize = AtomicUsize::new(usize::MAX);

    /// Switches one bug on, for the whole process.
    pub fn plant(name: &str) -> Result<(), String> {
        let place = NAMES.iter().position(|known| *known == name);
        let place = place.ok_or_else(|| format!("unknown bug {name:?}; known are {}", NAMES.join(", ")))?;
        PLANTED.store(place, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn is(name: &str) -> bool {
        NAMES
            .get(PLANTED.load(Ordering::Relaxed))
            .is_some_and(|planted| *planted == name)
    }
}

#[cfg(paxos_planted)]
pub(crate) use self::switch::is;
#[cfg(paxos_planted)]
pub use self::switch::{NAMES, plant};

/// Whether this bug is planted: never.
#[cfg(not(paxos_planted))]
pub(crate) const fn is(_name: &str) -> bool {
    false
}
