//! Leases: the right of a leader to answer reads alone until a time (Chandra, Griesemer, Redstone: *Paxos Made Live*,
//! section 5.2).
//!
//! Every heartbeat asks for a lease. A follower that grants it promises nothing to anybody else for
//! [`Lease::duration`] from then on, on its own clock: it neither promises a ballot, nor encourages a candidate, nor
//! stands itself. A leader whose heartbeat a quorum has granted therefore leads alone for that long *from the sending of
//! that heartbeat*, whatever became of the answers on their way, as any other leader needs the promise of one of that
//! quorum. It counts less than that, because clocks drift ([`Lease::usable`]).
//!
//! What makes it safe:
//!
//! - Only differences of monotonic clocks count, each on one node. The bound of their drift is the one assumption.
//! - A grant is not written down. A node that starts may have granted a lease in its former life, so it promises
//!   nothing for as long as a lease lasts.
//! - A leader that hands over has given its lease away *before* it says so: from then on its ballot never holds one
//!   again. Only the `Prepare` that names that ballot as released is promised during the grant.
//! - Whoever reads looks at the clock after the query has run: see [`Replica::lease`].

use core::time::Duration;

use super::{Output, Replica, Sender, Token, election::Role, proposer::Leadership};
use crate::planted;
use crate::types::{Ballot, Member, Membership, Time};

/// How leases are granted and counted. The same on all nodes of a group; to shorten or switch off what has been in use,
/// keep each node down for the old duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// How long a follower keeps its word, on its clock. At most the election timeout, so that leases make no failover
    /// slower that is found by silence; at least two heartbeat intervals, or a leader would hardly ever hold one.
    pub duration: Duration,
    /// How far any node's monotonic clock may run fast or slow against true time, in thousandths. **Reads by lease are
    /// linearizable only as long as that is true.** Quartz stays within 1; a clock that is being slewed may be off by
    /// more; a virtual machine that is stopped and moved may have a monotonic clock that stood still meanwhile, which
    /// no bound covers.
    pub max_drift_permille: u32,
}

impl Lease {
    /// For how long a leader may rely on a grant, on its own clock. In the worst case that runs slow, and the grantor's
    /// fast.
    pub fn usable(&self) -> Duration {
        let drift = self.max_drift_permille.min(1_000);
        self.duration * (1_000 - drift) / (1_000 + drift)
    }
}

/// What this node has granted.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Granted {
    to: Ballot,
    until: Time,
    /// A former life may have granted a lease to anybody until then.
    silent_until: Time,
}

impl Granted {
    /// Of a node that starts now.
    pub(super) fn new(lease: Option<Lease>, now: Time) -> Self {
        Self {
            to: Ballot::ZERO,
            until: now,
            silent_until: lease.map_or(now, |lease| now.plus(lease.duration)),
        }
    }
}

impl Leadership {
    /// From when on a quorum's grants count: the sending time of the newest heartbeat that a quorum has granted.
    fn granted_from(&self, membership: &Membership, own: Sender, now: Time) -> Option<Time> {
        let granted = |voter: &Member| {
            if voter.node == own.0 {
                return voter.admits(own.1).then_some(now);
            }
            let peer = self.peers.get(&voter.node)?;
            let admitted = peer.storage.is_some_and(|storage| voter.admits(storage));
            peer.granted.filter(|_| admitted && peer.counts())
        };
        membership.reached_by_quorum(granted).flatten()
    }
}

impl Replica {
    /// The ballot at which this node leads under a lease, and until when, on the clock that it is stepped with. `None`:
    /// it has no lease.
    ///
    /// A read that ended [`Output::ReadReady`] with a lease may be answered if, *after* the query has run, this still
    /// names the same ballot and a time that the clock has not reached: then no other node has led before that moment.
    /// To be called from the thread that steps the replica.
    pub fn lease(&self) -> Option<(Ballot, Time)> {
        let lease = self.config.lease?;
        let Role::Leader(leadership) = &self.role else {
            return None;
        };
        let given_away = leadership.released && !planted::is("take_over_keeps_lease");
        // While the membership changes, two quorums would have to grant it.
        if given_away || !leadership.has_adopted() || self.chosen < leadership.inherited {
            return None;
        }
        let from = leadership.granted_from(self.memberships.current(), self.own(), self.now)?;
        Some((leadership.ballot, from.plus(lease.usable())))
    }

    pub(super) fn on_read_by_lease(&mut self, token: Token) {
        match self.lease() {
            Some((ballot, until)) if self.now < until => self.outputs.push_back(Output::ReadReady {
                token,
                slot: self.chosen,
                lease: Some(ballot),
            }),
            _ => self.on_read(token),
        }
    }

    /// A leader asks for a lease. False if this node could not keep its word: after a restart it would be silent for
    /// its own configured duration only.
    pub(super) fn grant(&mut self, ballot: Ballot, duration: Duration) -> bool {
        let able = !duration.is_zero() && self.config.lease.is_some_and(|lease| duration <= lease.duration);
        if able {
            let until = self.now.plus(duration);
            self.granted.until = if self.granted.to == ballot {
                self.granted.until.max(until)
            } else {
                until
            };
            self.granted.to = ballot;
        }
        able
    }

    /// Whether this ballot holds the last lease that this node has granted.
    pub(super) fn has_granted(&self, ballot: Ballot) -> bool {
        self.granted.to == ballot
    }

    /// Until when this node must not help anybody to lead but the holder of the lease that it granted, unless the
    /// holder has released it.
    pub(super) fn bound_until(&self, released: Option<Ballot>) -> Option<Time> {
        if planted::is("promise_during_grant") {
            return None;
        }
        let Granted {
            to,
            until,
            silent_until,
        } = self.granted;
        let bound = if released == Some(to) {
            silent_until
        } else {
            silent_until.max(until)
        };
        (self.now < bound).then_some(bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_usable_for_less_than_it_is_granted_for() {
        let lease = |max_drift_permille| Lease {
            duration: Duration::from_millis(420),
            max_drift_permille,
        };
        assert_eq!(lease(0).usable(), Duration::from_millis(420));
        assert_eq!(lease(50).usable(), Duration::from_millis(380));
        assert_eq!(lease(1_000).usable(), Duration::ZERO);
    }
}
