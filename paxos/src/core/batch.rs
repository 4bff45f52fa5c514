//! How many users' commands become one entry's payload.
//!
//! A payload is the ballot of the leader that first proposed it and a sequence of *runs*; a run is consecutive commands
//! of one origin. All integers are little-endian:
//!
//! ```text
//! payload = round u64, node u64, runs
//! run     = node u64, incarnation u64, first sequence u64, count u32, count x (length u32), the commands' bytes
//! ```
//!
//! That ballot stays when a later leader proposes the entry again at its own, so it is the same on every replica.
//!
//! The payload is encoded once, by the leader, and is the same on the wire, on every disk and in every state machine;
//! a decoded command is a slice of it.

use alloc::vec::Vec;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::types::{Ballot, Entry, EntryKind, Incarnation, NodeId, ProposalId};

/// No more room than for so many commands is reserved because a payload claims to have them.
const MAX_RESERVED: usize = 4_096;
const BALLOT: usize = 8 + 8;
const RUN_HEADER: usize = 8 + 8 + 8 + 4;

/// A user's command and who proposed it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Command {
    /// Who proposed it.
    pub id: ProposalId,
    /// The command itself, opaque.
    pub payload: Bytes,
}

/// A decoded payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The ballot of the leader that first proposed it.
    pub ballot: Ballot,
    /// The commands, in order.
    pub commands: Vec<Command>,
}

/// The payload of a batch does not follow the format: a defect of the proposing node, not of the network or the disk,
/// whose checksums held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed batch of commands")]
pub struct MalformedBatch;

/// Encodes commands, in order, as an entry of the leader that owns `ballot`.
pub fn encode(ballot: Ballot, commands: &[Command]) -> Entry {
    let bytes: usize = commands
        .iter()
        .map(|command| command.payload.len() + 4 + RUN_HEADER)
        .sum();
    let mut payload = BytesMut::with_capacity(BALLOT + bytes);
    payload.put_u64_le(ballot.round);
    payload.put_u64_le(ballot.node.0);
    let mut rest = commands;
    while let Some(head) = rest.first() {
        let run = rest
            .iter()
            .zip(head.id.sequence..=u64::MAX)
            .take_while(|(command, sequence)| {
                command.id
                    == ProposalId {
                        sequence: *sequence,
                        ..head.id
                    }
            })
            .count();
        let (commands, tail) = rest.split_at(run);
        payload.put_u64_le(head.id.node.0);
        payload.put_u64_le(head.id.incarnation.0);
        payload.put_u64_le(head.id.sequence);
        payload.put_u32_le(run as u32);
        for command in commands {
            payload.put_u32_le(command.payload.len() as u32);
        }
        for command in commands {
            payload.put_slice(&command.payload);
        }
        rest = tail;
    }
    Entry {
        kind: EntryKind::Commands,
        payload: payload.freeze(),
    }
}

/// Decodes the payload of an entry of kind [`EntryKind::Commands`]; nothing is copied.
pub fn decode(payload: &Bytes) -> Result<Batch, MalformedBatch> {
    let mut rest = payload.clone();
    if rest.len() < BALLOT {
        return Err(MalformedBatch);
    }
    let ballot = Ballot {
        round: rest.get_u64_le(),
        node: NodeId(rest.get_u64_le()),
    };
    let mut commands = Vec::new();
    while !rest.is_empty() {
        if rest.len() < RUN_HEADER {
            return Err(MalformedBatch);
        }
        let node = NodeId(rest.get_u64_le());
        let incarnation = Incarnation(rest.get_u64_le());
        let first = rest.get_u64_le();
        let count = rest.get_u32_le() as usize;
        let lengths_bytes = count
            .checked_mul(4)
            .filter(|bytes| *bytes <= rest.len())
            .ok_or(MalformedBatch)?;
        let mut lengths = rest.split_to(lengths_bytes);
        commands.reserve(count.min(MAX_RESERVED));
        for index in 0..count as u64 {
            let length = lengths.get_u32_le() as usize;
            if length > rest.len() {
                return Err(MalformedBatch);
            }
            let sequence = first.checked_add(index).ok_or(MalformedBatch)?;
            let id = ProposalId {
                node,
                incarnation,
                sequence,
            };
            commands.push(Command {
                id,
                payload: rest.split_to(length),
            });
        }
    }
    Ok(Batch { ballot, commands })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(node: u64, incarnation: u64, sequence: u64, payload: &'static [u8]) -> Command {
        let id = ProposalId {
            node: NodeId(node),
            incarnation: Incarnation(incarnation),
            sequence,
        };
        Command {
            id,
            payload: Bytes::from_static(payload),
        }
    }

    const BALLOT_7: Ballot = Ballot {
        round: 7,
        node: NodeId(3),
    };

    #[test]
    fn runs_of_several_origins_come_back_in_order() {
        let commands = [
            command(1, 1, 7, b"a"),
            command(1, 1, 8, b""),
            command(2, 9, 1, b"bb"),
            command(1, 1, 10, b"gap"),
            command(1, 2, 11, b"next life"),
        ];
        let entry = encode(BALLOT_7, &commands);
        assert_eq!(entry.kind, EntryKind::Commands);
        assert_eq!(
            decode(&entry.payload),
            Ok(Batch {
                ballot: BALLOT_7,
                commands: commands.to_vec()
            })
        );
    }

    #[test]
    fn a_batch_cut_anywhere_is_malformed_or_shorter_but_never_panics() {
        let payload = encode(BALLOT_7, &[command(1, 1, 1, b"abc"), command(2, 1, 1, b"def")]).payload;
        for cut in 0..payload.len() {
            if let Ok(batch) = decode(&payload.slice(..cut)) {
                assert!(batch.commands.len() < 2, "only a cut between two runs is a batch");
            }
        }
    }

    #[test]
    fn a_huge_count_allocates_nothing() {
        let mut payload = BytesMut::new();
        payload.put_bytes(0xff, BALLOT + RUN_HEADER);
        assert_eq!(decode(&payload.freeze()), Err(MalformedBatch));
    }

    #[test]
    fn the_last_sequence_number_there_is_comes_back() {
        let commands = [command(1, 1, u64::MAX - 1, b"a"), command(1, 1, u64::MAX, b"b")];
        let entry = encode(BALLOT_7, &commands);
        assert_eq!(
            decode(&entry.payload).map(|batch| batch.commands),
            Ok(commands.to_vec())
        );
    }
}
