//! The replicated state: keys, values, revisions, and the operations on them.
//!
//! Everything here is deterministic: an operation sees its arguments and the state, nothing else, and what it cannot
//! do is an error *reply*, the same on every replica. Operations are found by their code in [`operations`].

mod digest;
mod glob;
mod keyspace;
pub mod operations;
mod reads;
mod snapshot;
mod writes;

use std::{cell::RefCell, collections::BTreeMap};

use bytes::{Bytes, BytesMut};
use paxos::{ApplyCommand, Chosen, MachineError, Slot, SnapshotSource, StateMachine};

use self::operations::Action;
pub use self::{
    glob::matches,
    keyspace::{Keyspace, Record},
    reads::{Cursor, MAX_REPLY_BYTES},
};
use crate::{
    command::codec::{self, Malformed, Operands},
    resp::write,
};

/// Where clients and operators reach a node, as the node announced it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// The address that speaks the Redis protocol.
    pub resp: String,
    /// The HTTP address.
    pub http: String,
}

/// What a replica holds.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Keys and values.
    pub space: Keyspace,
    /// Where the nodes of the cluster are reached, by node id.
    pub nodes: BTreeMap<u64, NodeAddresses>,
}

/// Why an operation was refused; becomes the reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub String);

impl Refused {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl From<Malformed> for Refused {
    fn from(_: Malformed) -> Self {
        Self::new("ERR malformed command")
    }
}

/// A command that changes the state; writes its reply.
pub type Write = fn(&mut State, Operands<'_>, &mut BytesMut) -> Result<(), Refused>;

/// A command that only reads; writes its reply.
pub type Read = fn(&State, Operands<'_>, &mut BytesMut) -> Result<(), Refused>;

/// Replies of one run share allocations of this many bytes.
const REPLY_CHUNK_BYTES: usize = 16 << 10;

/// The key-value store as a state machine. Replies are in version 3 of the Redis protocol.
#[derive(Debug, Default)]
pub struct Machine {
    state: State,
    applied: Slot,
    /// Where replies are written before they are split off.
    scratch: RefCell<BytesMut>,
}

impl Machine {
    /// The state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Runs one command of the log.
    ///
    /// What a newer program wrote (another format, another operation) must not be passed over: replicas that know it
    /// would hold another state from then on. Garbage is garbage to every version: a reply.
    fn execute(state: &mut State, command: &[u8], reply: &mut BytesMut) -> Result<(), MachineError> {
        if codec::is_newer(command) {
            let format = command.first().copied().unwrap_or_default();
            return Err(MachineError::new(format!(
                "a command of the log has format {format}; this node runs an older version: upgrade it"
            )));
        }
        let outcome = match codec::decode(command) {
            Ok((code, operands)) => {
                let action = operations::action(code).ok_or_else(|| MachineError::new(unknown(code)))?;
                state.space.revision += 1;
                match action {
                    Action::Write(run) => run(state, operands, reply),
                    Action::Read(run) => run(state, operands, reply),
                }
            }
            Err(malformed) => {
                state.space.revision += 1;
                Err(malformed.into())
            }
        };
        settle(outcome, reply);
        Ok(())
    }

    /// The empty end of `scratch`, with room for some replies.
    fn reply_buffer(&self) -> BytesMut {
        let mut buffer = self.scratch.take();
        if buffer.capacity() < 256 {
            buffer = BytesMut::with_capacity(REPLY_CHUNK_BYTES);
        }
        buffer
    }
}

fn unknown(code: u8) -> String {
    format!("unknown operation {code}; this node runs an older version: upgrade it")
}

/// A refused operation's reply is the reason, and nothing else: `reply` holds that of one operation only.
fn settle(outcome: Result<(), Refused>, reply: &mut BytesMut) {
    if let Err(Refused(why)) = outcome {
        reply.clear();
        write::error(reply, &why);
    }
}

impl StateMachine for Machine {
    fn applied(&self) -> Slot {
        self.applied
    }

    fn apply<'a>(&mut self, chosen: Chosen<'a>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        let mut buffer = self.reply_buffer();
        if chosen.commands.len() > 1 {
            // The first operand is a key, as a rule.
            let first = |command: &'a ApplyCommand| codec::decode(&command.payload).ok()?.1.next();
            self.state.space.fetch(chosen.commands.iter().filter_map(first));
        }
        for command in chosen.commands {
            Self::execute(&mut self.state, &command.payload, &mut buffer)?;
            replies.push(buffer.split().freeze());
        }
        self.scratch.replace(buffer);
        self.applied = chosen.upto;
        Ok(())
    }

    fn query(&self, query: Bytes) -> Bytes {
        let mut reply = self.reply_buffer();
        let outcome = match codec::decode(&query) {
            Ok((code, operands)) => match operations::action(code) {
                Some(Action::Read(run)) => run(&self.state, operands, &mut reply),
                Some(Action::Write(_)) => Err(Refused::new("ERR this operation writes; it must be proposed")),
                None => Err(Refused(format!("ERR {}", unknown(code)))),
            },
            Err(malformed) => Err(malformed.into()),
        };
        settle(outcome, &mut reply);
        let answer = reply.split().freeze();
        self.scratch.replace(reply);
        answer
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Ok(Box::new(snapshot::Frozen(self.state.clone())))
    }

    fn restore(&mut self, upto: Slot, from: &mut dyn std::io::Read) -> Result<(), MachineError> {
        self.state = snapshot::read(from).map_err(|error| MachineError::new(error.to_string()))?;
        self.applied = upto;
        Ok(())
    }

    fn digest(&self) -> Option<u64> {
        let space = &self.state.space;
        let nodes = self.state.nodes.iter().fold(0, |sum: u64, (id, addresses)| {
            sum.wrapping_add(digest::record_digest(
                addresses.resp.as_bytes(),
                addresses.http.as_bytes(),
                *id,
            ))
        });
        Some(digest::mix(
            space.digest().wrapping_add(nodes) ^ digest::mix(space.revision),
        ))
    }
}

#[cfg(test)]
mod tests;
