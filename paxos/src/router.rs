//! Several state machines in one group, told apart by a machine id.
//!
//! A group is one log, so its machines share one order, one leader, one snapshot and one disk write per entry: cheaper
//! than a group for each when they are small, and a reader sees them all as of one slot. A slow machine delays the
//! others; machines that should fail and scale apart belong in groups of their own.
//!
//! ```
//! # use paxos::{StateMachine, router::{MachineId, Router, RouterError}};
//! # fn of(accounts: impl StateMachine, audit: impl StateMachine) -> Result<(), RouterError> {
//! const ACCOUNTS: MachineId = MachineId(1);
//! const AUDIT: MachineId = MachineId(2);
//!
//! let router = Router::new().machine(ACCOUNTS, accounts).machine(AUDIT, audit);
//! let routes = router.routes(); // kept, while the router goes to `Node::add_group`
//! let command = routes.command(ACCOUNTS, b"pay 5 to Bob")?; // what to propose
//! assert!(routes.command(MachineId(3), b"").is_err(), "refused before it is proposed");
//! # Ok(()) }
//! ```
//!
//! # What cannot wedge a group
//!
//! A command for an id that no machine has is refused before it is proposed ([`Routes::command`]). If one is chosen all the
//! same (proposed by a node of another version, or with bytes of its own), every replica skips it, with the same answer
//! ([`RouterError::UnknownMachine`]) and an alarm ([`Routes::skipped`], and an error in the log), and goes on.
//!
//! What a machine *rejects* is a reply of its own. An *error* or a panic of one machine's `apply` says that this replica
//! cannot follow the log, as for any machine: the group halts on this node, all its machines with it. To go on with the
//! others would leave a replica that looks alive and holds a part of its state that nobody can rely on.
//!
//! # Machines come and go
//!
//! All replicas must do the same with the same command, though their nodes are upgraded one after the other:
//!
//! - *To add one*: roll out a version that has it as [`added_machine`](Router::added_machine), to all nodes; only then propose
//!   commands for it. A snapshot of an older version does not hold it, and then it begins empty, as it was. From the
//!   version after that on it is a plain [`machine`](Router::machine).
//! - *To remove one*: stop proposing for it, on all nodes; then roll out a version that has its id as
//!   [`retired`](Router::retired): its part of older snapshots is skipped. The id must never be used again, and must
//!   stay retired for as long as a snapshot that holds it may come up.
//! - A snapshot that lacks a machine, or holds one that the router does not know, is refused with the reason.

mod group;
mod snapshot;
#[cfg(all(test, feature = "testing"))]
mod tests;

use alloc::{collections::BTreeMap, sync::Arc};
use core::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use std::{boxed::Box, format, io::Read, string::String, vec::Vec};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use self::group::RoutedGroup;
use self::snapshot::Frozen;
use crate::{
    error::{ProposeError, ReadError},
    state_machine::{ApplyCommand, Chosen, MachineError, SnapshotSource, StateMachine},
    types::Slot,
    varint,
};

/// Names a machine of a [`Router`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MachineId(pub u32);

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Why a routed command or query has no reply of a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouterError {
    /// Did not happen: no machine of the group has this id.
    #[error("the group has no machine {0}; it has {1}")]
    UnknownMachine(MachineId, String),
    /// The proposal has no reply; the error says whether it happened.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The read has no answer.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The group does not run a [`Router`] of this version. Nothing happened if this one does.
    #[error("the group's reply is none of a router: does it run one?")]
    Malformed,
}

/// The ids of a router's machines, and its alarm. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Routes {
    ids: Arc<[MachineId]>,
    skipped: Arc<AtomicU64>,
}

impl Routes {
    /// The command to propose, for one of the machines; or the query to ask.
    pub fn command(&self, machine: MachineId, payload: &[u8]) -> Result<Bytes, RouterError> {
        if !self.ids.contains(&machine) {
            return Err(self.unknown(machine));
        }
        let mut command = Vec::with_capacity(varint::MAX_BYTES + payload.len());
        varint::put(machine.0.into(), &mut command);
        command.extend_from_slice(payload);
        Ok(command.into())
    }

    /// What the answer to a command or query says.
    pub fn reply(&self, answer: &Bytes) -> Result<Bytes, RouterError> {
        match answer.split_first() {
            Some((&REPLY, _)) => Ok(answer.slice(1..)),
            Some((&UNKNOWN, mut rest)) => {
                let id = varint::take(&mut rest).and_then(|id| u32::try_from(id).ok());
                Err(self.unknown(MachineId(id.ok_or(RouterError::Malformed)?)))
            }
            _ => Err(RouterError::Malformed),
        }
    }

    /// The ids of the group's machines, in order.
    pub fn ids(&self) -> &[MachineId] {
        &self.ids
    }

    /// How many commands this replica has skipped because no machine has their id: an alarm, and always zero as long
    /// as all nodes run the same machines.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Relaxed)
    }

    fn unknown(&self, machine: MachineId) -> RouterError {
        let known: Vec<String> = self.ids.iter().map(|id| format!("{id}")).collect();
        RouterError::UnknownMachine(machine, known.join(", "))
    }
}

/// A machine's reply follows.
const REPLY: u8 = 0;
/// An id follows that no machine has.
const UNKNOWN: u8 = 1;
/// These bytes name no machine.
const MALFORMED: u8 = 2;
/// The machine has kept the effect of this command on its disk, and its reply was given in an earlier life.
const BEFORE: u8 = 3;

/// A machine and its part of the run under way.
struct Routed {
    machine: Box<dyn StateMachine>,
    /// Its snapshot when it was empty, if a snapshot without it means just that.
    empty: Option<Vec<u8>>,
    commands: Vec<ApplyCommand>,
    /// Which replies of the run are its own.
    indexes: Vec<usize>,
    replies: Vec<Bytes>,
}

/// A [`StateMachine`] made of several. See the [module](self).
#[derive(Default)]
pub struct Router {
    machines: BTreeMap<MachineId, Routed>,
    retired: Vec<MachineId>,
    applied: Slot,
    skipped: Arc<AtomicU64>,
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("machines", &self.machines.keys())
            .field("retired", &self.retired)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

impl Router {
    /// A router without machines.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a machine, in memory or on disk.
    ///
    /// # Panics
    ///
    /// If the id is taken or retired.
    #[must_use]
    pub fn machine(self, id: MachineId, machine: impl StateMachine) -> Self {
        self.with(id, Box::new(machine), None)
    }

    /// Adds a machine that snapshots of an older version do not hold: it begins empty then.
    ///
    /// # Panics
    ///
    /// If the id is taken or retired.
    #[must_use]
    pub fn added_machine(self, id: MachineId, machine: impl StateMachine) -> Self {
        let mut empty = Vec::new();
        let is_empty = machine.applied() == Slot::ZERO;
        let written = machine
            .snapshot()
            .map(|source| source.write_to(&mut empty).is_ok());
        let empty = (is_empty && written == Ok(true)).then_some(empty);
        self.with(id, Box::new(machine), empty)
    }

    /// Says that an id belonged to a machine that is gone: its part of a snapshot is skipped.
    ///
    /// # Panics
    ///
    /// If a machine has the id.
    #[must_use]
    pub fn retired(mut self, id: MachineId) -> Self {
        assert!(
            !self.machines.contains_key(&id),
            "machine {id} is retired and in use"
        );
        self.retired.push(id);
        self
    }

    fn with(mut self, id: MachineId, machine: Box<dyn StateMachine>, empty: Option<Vec<u8>>) -> Self {
        assert!(!self.retired.contains(&id), "machine {id} is retired and in use");
        let routed = Routed {
            machine,
            empty,
            commands: Vec::new(),
            indexes: Vec::new(),
            replies: Vec::new(),
        };
        assert!(
            self.machines.insert(id, routed).is_none(),
            "two machines have the id {id}"
        );
        let applied = self
            .machines
            .values()
            .map(|routed| routed.machine.applied())
            .min();
        self.applied = applied.unwrap_or_default();
        self
    }

    /// What is needed to address the machines, once they are all there.
    pub fn routes(&self) -> Routes {
        Routes {
            ids: self.machines.keys().copied().collect(),
            skipped: Arc::clone(&self.skipped),
        }
    }

    fn skip(&self, command: &ApplyCommand, id: Option<MachineId>) -> Bytes {
        let count = self.skipped.fetch_add(1, Relaxed) + 1;
        // A flood of them fills no log.
        if count.is_power_of_two() {
            tracing::error!(
                slot = command.slot.0,
                proposed_by = command.id.node.0,
                machine = id.map(|id| id.0),
                skipped = count,
                "a command for a machine that this group does not have was skipped; do all nodes run the same version?"
            );
        }
        not_routed(id)
    }

    /// Gives each machine its commands of the run; the others are answered.
    fn sort(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) {
        for (index, command) in (replies.len()..).zip(chosen.commands) {
            let (id, payload) = split(&command.payload);
            let Some(routed) = id.and_then(|id| self.machines.get_mut(&id)) else {
                let reply = self.skip(command, id);
                replies.push(reply);
                continue;
            };
            if command.slot <= routed.machine.applied() {
                replies.push(Bytes::from_static(&[BEFORE]));
                continue;
            }
            replies.push(Bytes::new());
            routed.indexes.push(index);
            routed.commands.push(ApplyCommand { payload, ..*command });
        }
    }
}

impl MachineError {
    fn of(self, id: MachineId) -> Self {
        Self(format!("machine {id}: {}", self.0))
    }
}

fn not_routed(id: Option<MachineId>) -> Bytes {
    let Some(id) = id else {
        return Bytes::from_static(&[MALFORMED]);
    };
    let mut reply = Vec::with_capacity(1 + varint::MAX_BYTES);
    reply.push(UNKNOWN);
    varint::put(id.0.into(), &mut reply);
    reply.into()
}

fn routed_reply(reply: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(1 + reply.len());
    bytes.push(REPLY);
    bytes.extend_from_slice(reply);
    bytes.into()
}

/// Whose these bytes are, and what is for it.
fn split(bytes: &Bytes) -> (Option<MachineId>, Bytes) {
    let mut rest = &bytes[..];
    let id = varint::take(&mut rest).and_then(|id| u32::try_from(id).ok());
    (id.map(MachineId), bytes.slice(bytes.len() - rest.len()..))
}

impl Routed {
    fn apply(&mut self, id: MachineId, upto: Slot, replies: &mut [Bytes]) -> Result<(), MachineError> {
        let commands = &self.commands;
        if self.machine.applied() < upto {
            self.machine
                .apply(Chosen { upto, commands }, &mut self.replies)
                .map_err(|error| error.of(id))?;
        }
        if self.replies.len() != commands.len() || self.machine.applied() < upto {
            return Err(MachineError(format!(
                "machine {id} gave {} replies to {} commands and has applied {} instead of {upto}",
                self.replies.len(),
                commands.len(),
                self.machine.applied()
            )));
        }
        for (index, reply) in self.indexes.drain(..).zip(self.replies.drain(..)) {
            replies[index] = routed_reply(&reply);
        }
        self.commands.clear();
        Ok(())
    }
}

impl StateMachine for Router {
    /// What all machines have applied. Those that keep their state on disk may be further.
    fn applied(&self) -> Slot {
        self.applied
    }

    fn reaches(&self) -> Slot {
        let reached = self.machines.values().map(|routed| routed.machine.reaches());
        reached.max().unwrap_or(self.applied).max(self.applied)
    }

    fn durable(&self) -> Slot {
        let durable = self.machines.values().map(|routed| routed.machine.durable());
        durable.min().unwrap_or_default()
    }

    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        self.sort(chosen, replies);
        for (id, routed) in &mut self.machines {
            routed.apply(*id, chosen.upto, replies)?;
        }
        self.applied = chosen.upto;
        Ok(())
    }

    fn query(&self, query: Bytes) -> Bytes {
        let (id, payload) = split(&query);
        match id.and_then(|id| self.machines.get(&id)) {
            Some(routed) => routed_reply(&routed.machine.query(payload)),
            None => not_routed(id),
        }
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        let reaches = self.reaches();
        if reaches != self.applied {
            return Err(MachineError(format!(
                "a machine on disk holds the slots up to {reaches}, and others those up to {} only",
                self.applied
            )));
        }
        let frozen = self.machines.iter().map(|(id, routed)| {
            let source = routed.machine.snapshot();
            source.map(|source| (*id, source)).map_err(|error| error.of(*id))
        });
        Ok(Box::new(Frozen(frozen.collect::<Result<_, _>>()?)))
    }

    fn restore(&mut self, upto: Slot, from: &mut dyn Read) -> Result<(), MachineError> {
        self.restore_machines(upto, from)?;
        self.applied = upto;
        Ok(())
    }

    /// Of all machines; `None` if one has none, or they are not at one slot.
    fn digest(&self) -> Option<u64> {
        if self.reaches() != self.applied {
            return None;
        }
        self.machines.iter().try_fold(0, |digest: u64, (id, routed)| {
            let machine = routed.machine.digest()?.rotate_left(17) ^ u64::from(id.0);
            Some((digest.rotate_left(23) ^ machine).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        })
    }
}
