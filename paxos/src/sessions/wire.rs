//! How session commands and their answers look in bytes.
//!
//! ```text
//! command = 0 session sequence (sequence - acked) stamp payload    a call
//!         | 1 time-to-live stamp                                   opens a session
//!         | 2 session stamp                                        closes it
//!         | 3 payload                                              outside of all sessions
//! answer  = 0 reply | 1 session | 2 | 3 | 4 | 5 | 6 | 7            see `Answer`
//! ```
//!
//! A kind is one byte, numbers are varints, payloads and replies run to the end. A call costs some sixteen bytes.

use alloc::vec::Vec;
use core::fmt;

use bytes::{BufMut, Bytes};
use serde::{Deserialize, Serialize};

use crate::varint;

/// Names a session of one group: unique for ever there, and never given out again when the session has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What a client writes before a command's own bytes, so that however often it is proposed it has one effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The client's session.
    pub session: SessionId,
    /// The command's number in the session: 1, 2, 3, ... It stays with the command in every retry, and is never used
    /// for another one.
    pub sequence: u64,
    /// The client has the answers to everything below this, or has given up on it: nothing below it is executed or
    /// answered any more. At most `sequence`.
    pub acked: u64,
    /// The client's wall clock, in milliseconds since 1970. Moves the group's clock, by which sessions expire.
    pub stamp_ms: u64,
}

impl Call {
    /// No header is longer, in bytes.
    pub const MAX_BYTES: usize = 1 + 4 * varint::MAX_BYTES;

    /// Writes the header; the command's own bytes follow it.
    pub fn put(&self, to: &mut impl BufMut) {
        to.put_u8(CALL);
        varint::put(self.session.0, to);
        varint::put(self.sequence, to);
        varint::put(self.sequence.saturating_sub(self.acked), to);
        varint::put(self.stamp_ms, to);
    }

    /// The whole command.
    pub fn encode(&self, payload: &[u8]) -> Bytes {
        let mut command = Vec::with_capacity(Self::MAX_BYTES + payload.len());
        self.put(&mut command);
        command.extend_from_slice(payload);
        command.into()
    }
}

/// What the log holds for a [`Sessions`](super::Sessions) machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A command of a session, and the machine's part of it.
    Call(Call, Bytes),
    /// Opens a session; answered with [`Answer::Opened`]. Repeated after a failure it may open two; the one that nobody
    /// uses expires.
    Open {
        /// For how long the session lives without a command, in milliseconds of the group's clock.
        ttl_ms: u64,
        /// As in [`Call`].
        stamp_ms: u64,
    },
    /// Ends a session; answered with [`Answer::Closed`], also if there is none.
    Close {
        /// Which.
        session: SessionId,
        /// As in [`Call`].
        stamp_ms: u64,
    },
    /// A command outside of all sessions: handed on each time that it comes.
    Bare(Bytes),
}

const CALL: u8 = 0;
const OPEN: u8 = 1;
const CLOSE: u8 = 2;
const BARE: u8 = 3;

impl Command {
    /// The bytes to propose.
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::new();
        match self {
            Self::Call(call, payload) => return call.encode(payload),
            Self::Open { ttl_ms, stamp_ms } => {
                bytes.push(OPEN);
                varint::put(*ttl_ms, &mut bytes);
                varint::put(*stamp_ms, &mut bytes);
            }
            Self::Close { session, stamp_ms } => {
                bytes.push(CLOSE);
                varint::put(session.0, &mut bytes);
                varint::put(*stamp_ms, &mut bytes);
            }
            Self::Bare(payload) => {
                bytes.push(BARE);
                bytes.extend_from_slice(payload);
            }
        }
        bytes.into()
    }

    /// Reads a command; what is inside of it is a slice of the bytes. `None` if it is none.
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let (kind, mut rest) = bytes.split_first()?;
        let command = match *kind {
            CALL => {
                let session = SessionId(varint::take(&mut rest)?);
                let sequence = varint::take(&mut rest)?;
                let acked = sequence.checked_sub(varint::take(&mut rest)?)?;
                let stamp_ms = varint::take(&mut rest)?;
                let call = Call {
                    session,
                    sequence,
                    acked,
                    stamp_ms,
                };
                return Some(Self::Call(call, bytes.slice(bytes.len() - rest.len()..)));
            }
            BARE => return Some(Self::Bare(bytes.slice(1..))),
            OPEN => Self::Open {
                ttl_ms: varint::take(&mut rest)?,
                stamp_ms: varint::take(&mut rest)?,
            },
            CLOSE => Self::Close {
                session: SessionId(varint::take(&mut rest)?),
                stamp_ms: varint::take(&mut rest)?,
            },
            _ => return None,
        };
        rest.is_empty().then_some(command)
    }
}

/// What a [`Sessions`](super::Sessions) machine answers. All but the first three say that this copy of the command was
/// not executed and never will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The machine's own reply: of the one execution, however often it is asked for.
    Reply(Bytes),
    /// The session is open.
    Opened(SessionId),
    /// The session is closed.
    Closed,
    /// The session has expired, was closed, or never was. Earlier copies of the command may have been executed.
    Expired,
    /// The command was executed, by another copy, but its reply is not kept any more: a bound on bytes was reached.
    ReplyDropped,
    /// Below `acked`: the client has said that it has the answer, or has given up.
    Stale,
    /// The sequence is too far above `acked`.
    BeyondWindow {
        /// The first sequence that is too high at present.
        end: u64,
    },
    /// These bytes are no session command.
    Malformed,
}

impl Answer {
    /// What the bytes of [`Answer::Reply`] begin with.
    pub(super) const REPLY: u8 = 0;

    /// The bytes of [`Answer::Reply`], in an allocation of their own.
    pub(super) fn wrap(reply: &[u8]) -> Bytes {
        let mut bytes = Vec::with_capacity(1 + reply.len());
        bytes.push(Self::REPLY);
        bytes.extend_from_slice(reply);
        bytes.into()
    }

    /// The reply's bytes.
    pub fn encode(&self) -> Bytes {
        let number = |kind: u8, number| {
            let mut bytes = Vec::with_capacity(1 + varint::MAX_BYTES);
            bytes.push(kind);
            varint::put(number, &mut bytes);
            bytes.into()
        };
        match self {
            Self::Reply(reply) => Self::wrap(reply),
            Self::Opened(session) => number(1, session.0),
            Self::Closed => Bytes::from_static(&[2]),
            Self::Expired => Bytes::from_static(&[3]),
            Self::ReplyDropped => Bytes::from_static(&[4]),
            Self::Stale => Bytes::from_static(&[5]),
            Self::BeyondWindow { end } => number(6, *end),
            Self::Malformed => Bytes::from_static(&[7]),
        }
    }

    /// Reads an answer; a machine's reply is a slice of the bytes. `None` if it is none: the group does not run a
    /// [`Sessions`](super::Sessions) machine of this version.
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let (kind, mut rest) = bytes.split_first()?;
        let answer = match *kind {
            Self::REPLY => return Some(Self::Reply(bytes.slice(1..))),
            1 => Self::Opened(SessionId(varint::take(&mut rest)?)),
            2 => Self::Closed,
            3 => Self::Expired,
            4 => Self::ReplyDropped,
            5 => Self::Stale,
            6 => Self::BeyondWindow {
                end: varint::take(&mut rest)?,
            },
            7 => Self::Malformed,
            _ => return None,
        };
        rest.is_empty().then_some(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    #[test]
    fn commands_and_answers_come_back_and_cut_ones_are_refused() {
        let call = Call {
            session: SessionId(1_700_000_000_000),
            sequence: 300,
            acked: 298,
            stamp_ms: 1_700_000_000_123,
        };
        let payload = Bytes::from_static(b"payload");
        for command in [
            Command::Call(call, payload.clone()),
            Command::Call(call, Bytes::new()),
            Command::Open {
                ttl_ms: 60_000,
                stamp_ms: u64::MAX,
            },
            Command::Close {
                session: SessionId(7),
                stamp_ms: 0,
            },
            Command::Bare(payload.clone()),
        ] {
            let bytes = command.encode();
            assert_eq!(Command::decode(&bytes), Some(command));
        }
        let opened = Answer::Opened(SessionId(u64::MAX));
        for answer in [
            Answer::Reply(payload.clone()),
            opened,
            Answer::Closed,
            Answer::Expired,
            Answer::ReplyDropped,
            Answer::Stale,
            Answer::BeyondWindow { end: 1_000 },
            Answer::Malformed,
        ] {
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
        let header = call.encode(b"");
        assert!(header.len() <= 18, "{} bytes", header.len());
        for cut in 0..header.len() {
            assert_eq!(Command::decode(&header.slice(..cut)), None);
        }
        for garbage in [vec![], vec![9], vec![1, 1, 1, 1], vec![0, 1, 1, 2, 0]] {
            assert_eq!(Command::decode(&garbage.into()), None);
        }
    }
}
