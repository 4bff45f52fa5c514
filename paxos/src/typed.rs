//! Typed commands, replies and queries over the engine's bytes, in CBOR.
//!
//! The state of a service is a plain serializable value, so its snapshot writes itself. Services with large states or
//! a wire format of their own implement [`StateMachine`] directly.
//!
//! ```
//! use paxos::typed::{Typed, TypedStateMachine};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Clone, Default, Serialize, Deserialize)]
//! struct Counter {
//!     value: i64,
//! }
//!
//! impl TypedStateMachine for Counter {
//!     type Command = i64;
//!     type Reply = i64;
//!     type Query = ();
//!     type Answer = i64;
//!
//!     fn apply(&mut self, add: i64) -> i64 {
//!         self.value += add;
//!         self.value
//!     }
//!
//!     fn query(&self, _: ()) -> i64 {
//!         self.value
//!     }
//! }
//!
//! // What `Node::add_group` takes.
//! let machine = Typed::new(Counter::default());
//! # let _: &dyn paxos::StateMachine = &machine;
//! ```

use std::{
    boxed::Box,
    format, io,
    marker::PhantomData,
    string::{String, ToString},
    vec::Vec,
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::{ProposeError, ReadError},
    node::{Group, Read},
    state_machine::{Chosen, MachineError, SnapshotSource, StateMachine},
    types::Slot,
};

/// A service with typed commands. The value itself is the whole state: what `serde` skips is lost in a snapshot.
///
/// As deterministic as [`StateMachine`] demands.
pub trait TypedStateMachine: Clone + Serialize + DeserializeOwned + Send + 'static {
    /// What is replicated.
    type Command: Serialize + DeserializeOwned;
    /// What a command is answered with.
    type Reply: Serialize + DeserializeOwned;
    /// What is asked without a change.
    type Query: Serialize + DeserializeOwned;
    /// What a query is answered with.
    type Answer: Serialize + DeserializeOwned;

    /// Applies one command. What the service rejects is a reply too.
    fn apply(&mut self, command: Self::Command) -> Self::Reply;

    /// Answers from the state as it is.
    fn query(&self, query: Self::Query) -> Self::Answer;
}

/// Makes a [`StateMachine`] of a [`TypedStateMachine`].
#[derive(Clone, Debug, Default)]
pub struct Typed<M> {
    state: M,
    applied: Slot,
}

impl<M: TypedStateMachine> Typed<M> {
    /// A machine in memory that begins with this state, the same on every node.
    pub const fn new(state: M) -> Self {
        Self {
            state,
            applied: Slot::ZERO,
        }
    }
}

impl<M: TypedStateMachine> StateMachine for Typed<M> {
    fn applied(&self) -> Slot {
        self.applied
    }

    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        for command in chosen.commands {
            // Bytes that are no command (of a newer version, say) change nothing, on every replica the same.
            let reply = decode(&command.payload).map(|command| self.state.apply(command));
            replies.push(encode(&reply).map_err(MachineError)?);
        }
        self.applied = chosen.upto;
        Ok(())
    }

    fn query(&self, query: Bytes) -> Bytes {
        let answer = decode(&query).map(|query| self.state.query(query));
        encode(&answer).unwrap_or_default()
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Ok(Box::new(Frozen(self.state.clone())))
    }

    fn restore(&mut self, upto: Slot, from: &mut dyn io::Read) -> Result<(), MachineError> {
        self.state = ciborium::from_reader(from)
            .map_err(|error| MachineError(format!("the snapshot is not a state of this service: {error}")))?;
        self.applied = upto;
        Ok(())
    }
}

struct Frozen<M>(M);

impl<M: TypedStateMachine> SnapshotSource for Frozen<M> {
    fn write_to(self: Box<Self>, to: &mut dyn io::Write) -> io::Result<()> {
        ciborium::into_writer(&self.0, to).map_err(|error| io::Error::other(error.to_string()))
    }
}

/// Why a typed call has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TypedError {
    /// The proposal has no reply; the error says whether it happened.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The read has no answer.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// One side does not understand the other's bytes: the nodes run different versions of the service, or the group
    /// belongs to another one. A command that was not understood changed nothing.
    #[error("the service and its caller do not understand each other: {0}")]
    Malformed(String),
}

/// A typed handle of a group that runs a [`Typed<M>`].
#[derive(Debug)]
pub struct TypedGroup<M> {
    group: Group,
    machine: PhantomData<fn(M)>,
}

impl<M> Clone for TypedGroup<M> {
    fn clone(&self) -> Self {
        Self {
            group: self.group.clone(),
            machine: PhantomData,
        }
    }
}

impl<M: TypedStateMachine> TypedGroup<M> {
    /// The typed handle of `group`, which must run a [`Typed<M>`].
    pub const fn new(group: Group) -> Self {
        Self {
            group,
            machine: PhantomData,
        }
    }

    /// The untyped handle.
    pub const fn group(&self) -> &Group {
        &self.group
    }

    /// As [`Group::propose`].
    pub fn propose(
        &self,
        command: &M::Command,
    ) -> impl Future<Output = Result<M::Reply, TypedError>> + Send + use<M> {
        let proposal = encode(command).map(|command| self.group.propose(command));
        async move { understand(&proposal.map_err(TypedError::Malformed)?.await?) }
    }

    /// As [`Group::query`].
    pub fn query(
        &self,
        read: Read,
        query: &M::Query,
    ) -> impl Future<Output = Result<M::Answer, TypedError>> + Send + use<M> {
        let read = encode(query).map(|query| self.group.query(read, query));
        async move { understand(&read.map_err(TypedError::Malformed)?.await?) }
    }
}

pub(crate) fn understand<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, TypedError> {
    let reply: Result<Result<T, String>, String> = decode(bytes);
    reply.and_then(|reply| reply).map_err(TypedError::Malformed)
}

pub(crate) fn encode(value: &impl Serialize) -> Result<Bytes, String> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes.into())
}

fn decode<T: DeserializeOwned>(mut bytes: &[u8]) -> Result<T, String> {
    let value = ciborium::from_reader(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.is_empty() {
        Ok(value)
    } else {
        Err("bytes follow the value".into())
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::testing::state_machine::check;

    #[derive(Clone, Default, Serialize, serde::Deserialize)]
    struct Sum(i64);

    impl TypedStateMachine for Sum {
        type Command = i64;
        type Reply = i64;
        type Query = ();
        type Answer = i64;

        fn apply(&mut self, add: i64) -> i64 {
            self.0 = self.0.wrapping_add(add);
            self.0
        }

        fn query(&self, (): ()) -> i64 {
            self.0
        }
    }

    #[test]
    fn a_typed_machine_conforms() {
        let commands: Vec<_> = (0..50_i64).map(|add| encode(&add).unwrap()).collect();
        check(|| Typed::new(Sum::default()), &commands, &[encode(&()).unwrap()]).unwrap();
    }

    #[test]
    fn bytes_that_are_no_command_change_nothing_and_say_so() {
        let reply: Result<i64, String> = decode::<i64>(b"\xff\xff").map(|add| add + 1);
        let told = understand::<i64>(&encode(&reply).unwrap());
        assert!(matches!(told, Err(TypedError::Malformed(_))), "{told:?}");
        assert_eq!(
            understand::<i64>(&encode(&Ok::<_, String>(7_i64)).unwrap()),
            Ok(7)
        );
    }
}
