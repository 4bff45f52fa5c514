//! What a model checker needs beside [`Replica::step`]: timers that expire when it chooses, and one form for all
//! replicas that differ in nothing that matters.
//!
//! A checker keeps the time it steps with constant. No timer expires by itself then, and every point in time that a
//! replica remembers is the same, whatever way led there.

use super::{PersistId, Replica, Rng, election::Role};
use crate::types::Time;

/// A timer of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// Nothing was heard of a leader for long enough: the replica canvasses. A leader has no such timer.
    Election,
    /// A leader's next heartbeat. Others have no such timer.
    Heartbeat,
}

impl Replica {
    /// Lets a timer expire: it is acted on in the next round of polling. Does nothing if the replica has no such timer
    /// now.
    pub fn expire(&mut self, timer: Timer) {
        match (timer, &mut self.role) {
            (Timer::Heartbeat, Role::Leader(leadership)) => leadership.heartbeat_at = self.now,
            (Timer::Election, Role::Leader(_)) | (Timer::Heartbeat, _) => {}
            (Timer::Election, _) => {
                self.election_at = Some(self.now);
                self.heard_at = Time::default();
            }
        }
    }

    /// Forgets what makes no difference: the state of the randomness, timeouts drawn at random, and how many writes
    /// were made. Afterwards the driver counts its writes anew: the oldest one that is not reported durable is number 1.
    ///
    /// To be called when [`Self::poll`] has returned `None`, by a driver that keeps the time constant.
    pub fn normalize(&mut self) {
        self.rng = Rng::new(0);
        self.heard_at = self.now;
        if let Role::Leader(leadership) = &mut self.role {
            leadership.forget_times();
        }
        self.election_at = Some(self.now.plus(self.config.election_timeout));
        let durable = self.gate.durable;
        for id in [
            &mut self.gate.building,
            &mut self.gate.needed,
            &mut self.gate.durable,
        ] {
            *id = after(*id, durable);
        }
        for (id, _) in &mut self.gate.held {
            *id = after(*id, durable);
        }
        for (id, _) in &mut self.gate.pending {
            *id = after(*id, durable);
        }
        for (id, _) in &mut self.gate.adding {
            *id = after(*id, durable);
        }
        for held in self.window.entries.iter_mut().flatten() {
            held.persist = after(held.persist, durable);
        }
    }
}

/// The number of a write when all up to `durable` are forgotten.
const fn after(id: PersistId, durable: PersistId) -> PersistId {
    PersistId(id.0.saturating_sub(durable.0))
}
