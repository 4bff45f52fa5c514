//! What a simulated cluster replicates: your state machine, or the default one, which is made for checking.

use std::{boxed::Box, io, string::String, vec::Vec};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::random::Random;
use crate::{
    state_machine::{Chosen, MachineError, SnapshotSource, StateMachine},
    testing::storage::Place,
    types::Slot,
};

/// A service for the simulator to run: how to make its machine and what its clients ask.
pub trait Workload: Sync {
    /// The state machine; every replica has one, and a restarted replica gets a new one.
    type Machine: StateMachine;

    /// A new, empty machine.
    fn machine(&self) -> Self::Machine;

    /// A command of a client. Put `unique` into it if you can: the checks of order are sharper for commands that
    /// occur only once.
    fn command(&self, random: &mut Random, unique: u64) -> Bytes;

    /// A query of a client.
    fn query(&self, random: &mut Random) -> Bytes;

    /// A client with a memory, whose commands depend on what became of earlier ones; called once for each client and
    /// group of a run. `None`, the default: commands come from [`command`](Self::command). So do, always, those of bursts
    /// and of the checks of progress.
    fn script(&self) -> Option<Box<dyn Script>> {
        None
    }

    /// Somebody who checks the service's own promises; called once for each group of a run. `None` by default.
    fn auditor(&self) -> Option<Box<dyn Auditor>> {
        None
    }

    /// Where a node keeps its storage, empty at first; called once for each node of a run. `None`, the default, runs on
    /// the simulator's own disks. See [`OnStorage`].
    fn place(&self) -> Option<Box<dyn Place>> {
        None
    }
}

/// What a client with a memory does. It has one command under way at a time, each at another node as a rule.
pub trait Script {
    /// Its next command, as [`Workload::command`].
    fn command(&mut self, random: &mut Random, unique: u64) -> Bytes;

    /// How its command ended: with a reply; or without one, after which it may have happened, or may happen yet.
    fn ended(&mut self, random: &mut Random, reply: Option<&Bytes>);
}

/// Follows a group's log.
pub trait Auditor {
    /// The oracle that failed, in reports: a short name.
    fn name(&self) -> &'static str;

    /// A command was applied, with this reply. Called once for each command, in the order of the log. An error is the
    /// run's failure.
    fn applied(&mut self, command: &Bytes, reply: &Bytes) -> Result<(), String>;
}

/// The [default workload](Checking) on a storage of yours: what the function returns is a new, empty
/// [place](crate::testing::storage::Place), as for the conformance suite.
#[derive(Clone, Copy, Debug)]
pub struct OnStorage<F>(pub F);

impl<P: Place + 'static, F: Fn() -> P + Sync> Workload for OnStorage<F> {
    type Machine = Ledger;

    fn machine(&self) -> Ledger {
        Checking.machine()
    }

    fn command(&self, random: &mut Random, unique: u64) -> Bytes {
        Checking.command(random, unique)
    }

    fn query(&self, random: &mut Random) -> Bytes {
        Checking.query(random)
    }

    fn place(&self) -> Option<Box<dyn Place>> {
        Some(Box::new((self.0)()))
    }
}

/// The default workload: clients that set registers and add to counters of a [`Ledger`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Checking;

impl Workload for Checking {
    type Machine = Ledger;

    fn machine(&self) -> Ledger {
        Ledger::default()
    }

    fn command(&self, random: &mut Random, unique: u64) -> Bytes {
        let mut command = BytesMut::new();
        command.put_u8(random.below(2) as u8);
        command.put_u8(random.below(KEYS as u64) as u8);
        command.put_u64_le(unique);
        if random.chance(100) {
            command.put_bytes(0xee, random.index(600));
        }
        command.freeze()
    }

    fn query(&self, random: &mut Random) -> Bytes {
        Bytes::copy_from_slice(&[random.below(KEYS as u64) as u8])
    }
}

const KEYS: usize = 8;

/// Registers and counters, and a running hash over everything that was ever applied, so that two replicas with one
/// digest have seen the same commands in the same order.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    applied: Slot,
    count: u64,
    hash: u64,
    registers: [u64; KEYS],
    counters: [u64; KEYS],
}

impl Ledger {
    fn one(&mut self, payload: &Bytes) -> Bytes {
        self.count += 1;
        for byte in payload {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.hash = self.hash.rotate_left(17) ^ self.count;
        let mut reply = BytesMut::new();
        reply.put_u64_le(self.count);
        if payload.len() >= 10 {
            let value = (&payload[2..10]).get_u64_le();
            let key = usize::from(payload[1]) % KEYS;
            let cell = match payload[0] {
                0 => &mut self.registers[key],
                _ => &mut self.counters[key],
            };
            reply.put_u64_le(*cell);
            *cell = match payload[0] {
                0 => value,
                _ => cell.wrapping_add(value),
            };
        }
        reply.freeze()
    }

    fn encode(&self) -> Bytes {
        let mut state = BytesMut::new();
        for word in [self.count, self.hash]
            .iter()
            .chain(&self.registers)
            .chain(&self.counters)
        {
            state.put_u64_le(*word);
        }
        state.freeze()
    }
}

struct Frozen(Bytes);

impl SnapshotSource for Frozen {
    fn write_to(self: Box<Self>, to: &mut dyn io::Write) -> io::Result<()> {
        to.write_all(&self.0)
    }
}

impl StateMachine for Ledger {
    fn applied(&self) -> Slot {
        self.applied
    }

    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        for command in chosen.commands {
            replies.push(self.one(&command.payload));
        }
        self.applied = chosen.upto;
        Ok(())
    }

    fn query(&self, query: Bytes) -> Bytes {
        let key = query.first().map_or(0, |key| usize::from(*key) % KEYS);
        let mut reply = BytesMut::new();
        reply.put_u64_le(self.count);
        reply.put_u64_le(self.registers[key]);
        reply.put_u64_le(self.counters[key]);
        reply.freeze()
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Ok(Box::new(Frozen(self.encode())))
    }

    fn restore(&mut self, upto: Slot, from: &mut dyn io::Read) -> Result<(), MachineError> {
        let mut state = Vec::new();
        from.read_to_end(&mut state)
            .map_err(|error| MachineError::new(std::format!("cannot read the snapshot: {error}")))?;
        if state.len() != 8 * (2 + 2 * KEYS) {
            return Err(MachineError::new("the snapshot has the wrong length"));
        }
        let mut rest = &state[..];
        self.applied = upto;
        self.count = rest.get_u64_le();
        self.hash = rest.get_u64_le();
        for cell in self.registers.iter_mut().chain(&mut self.counters) {
            *cell = rest.get_u64_le();
        }
        Ok(())
    }

    fn digest(&self) -> Option<u64> {
        let words = self.registers.iter().chain(&self.counters);
        Some(words.fold(self.hash, |hash, word| hash.rotate_left(5) ^ word))
    }
}
