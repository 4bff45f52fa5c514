//! The sessions in a snapshot, ahead of the machine inside.
//!
//! ```text
//! snapshot = "PSES" version u8, length u64, tables, the machine's own snapshot up to the end
//! tables   = limits, clock, last id, hash, count x session                      (numbers are varints)
//! session  = id ttl used acked next, count x (what is executed above next), count x (sequence age length reply)
//! ```
//!
//! Sessions come with the least recently used first, sequences ascend. Whatever does not fit the limits is refused.

use std::{
    boxed::Box,
    collections::BTreeSet,
    format,
    io::{self, Read, Write},
    vec::Vec,
};

use super::{
    Limits, Sessions,
    pages::Pages,
    replies::{Kept, OfSession, Replies},
    table::{MAX_CLOCK_MS, Pace, Place, Session, Table},
    wire::{Answer, SessionId},
};
use crate::{
    planted,
    state_machine::{MachineError, SnapshotSource, StateMachine},
    varint,
};

const MAGIC: [u8; 4] = *b"PSES";
const VERSION: u8 = 2;
/// No snapshot has an id above it.
const MAX_ID: u64 = 1 << 62;

struct Frozen {
    limits: Limits,
    clock_ms: u64,
    opening: Pace,
    last_id: SessionId,
    hash: u64,
    sessions: Pages<Session>,
    replies: Pages<OfSession>,
    machine: Box<dyn SnapshotSource>,
}

pub(super) fn freeze<M: StateMachine>(
    sessions: &Sessions<M>,
) -> Result<Box<dyn SnapshotSource>, MachineError> {
    let table = if planted::is("session_table_not_in_snapshot") {
        &Table::new(sessions.limits)
    } else {
        &sessions.table
    };
    Ok(Box::new(Frozen {
        limits: sessions.limits,
        clock_ms: table.clock_ms,
        opening: table.opening,
        last_id: table.last_id,
        hash: sessions.hash,
        sessions: table.sessions.clone(),
        replies: sessions.replies.sessions.clone(),
        machine: sessions.machine.snapshot()?,
    }))
}

impl Frozen {
    fn tables(&self) -> Vec<u8> {
        let living = |(_, session): &(Place, &Session)| session.id != SessionId::default();
        let mut sessions: Vec<(Place, &Session)> = self.sessions.iter().filter(living).collect();
        sessions.sort_unstable_by_key(|(_, session)| session.used);
        let mut bytes = Vec::new();
        for word in self.limits.words() {
            varint::put(word, &mut bytes);
        }
        for number in [
            self.clock_ms,
            self.opening.lead_ms,
            self.last_id.0,
            self.hash,
            sessions.len() as u64,
        ] {
            varint::put(number, &mut bytes);
        }
        for (place, session) in sessions {
            for number in [
                session.id.0,
                session.ttl_ms,
                session.used_ms,
                session.pace.lead_ms,
                session.acked,
                session.next,
                session.ahead.len() as u64,
            ] {
                varint::put(number, &mut bytes);
            }
            for sequence in &session.ahead {
                varint::put(*sequence, &mut bytes);
            }
            let none = OfSession::default();
            let kept = &self.replies.get(place).unwrap_or(&none).kept;
            varint::put(kept.len() as u64, &mut bytes);
            for Kept { sequence, age, reply } in kept {
                // Without the mark of an answer.
                let reply = reply.get(1..).unwrap_or_default();
                for number in [*sequence, *age, reply.len() as u64] {
                    varint::put(number, &mut bytes);
                }
                bytes.extend_from_slice(reply);
            }
        }
        bytes
    }
}

impl SnapshotSource for Frozen {
    fn write_to(self: Box<Self>, to: &mut dyn Write) -> io::Result<()> {
        let tables = self.tables();
        to.write_all(&MAGIC)?;
        to.write_all(&[VERSION])?;
        to.write_all(&(tables.len() as u64).to_le_bytes())?;
        to.write_all(&tables)?;
        drop(tables);
        self.machine.write_to(to)
    }
}

/// Reads the sessions, and leaves `from` where the machine's own snapshot begins.
pub(super) fn restore<M: StateMachine>(
    sessions: &mut Sessions<M>,
    from: &mut dyn Read,
) -> Result<(), MachineError> {
    let cannot_read = |error: io::Error| MachineError(format!("cannot read the sessions' snapshot: {error}"));
    let mut header = [0; 4 + 1 + 8];
    from.read_exact(&mut header).map_err(cannot_read)?;
    let [m0, m1, m2, m3, version, length @ ..] = header;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(MachineError::new(
            "the snapshot is not one of a machine with sessions: it was taken of another service, or before sessions \
             were put round it",
        ));
    }
    if version != VERSION {
        return Err(MachineError(format!(
            "the sessions' snapshot has format {version}; this version reads format {VERSION}"
        )));
    }
    let length = u64::from_le_bytes(length);
    let mut bytes = Vec::new();
    // Memory grows with what is there, not with what the length claims.
    from.take(length).read_to_end(&mut bytes).map_err(cannot_read)?;
    if bytes.len() as u64 != length {
        return Err(MachineError::new("the sessions' snapshot is cut off"));
    }
    let tables = Tables::read(&bytes, sessions.limits)?;
    sessions.hash = tables.hash;
    sessions.table = tables.table;
    sessions.replies = tables.replies;
    sessions.steps.clear();
    sessions.commands.clear();
    Ok(())
}

struct Tables {
    hash: u64,
    table: Table,
    replies: Replies,
}

impl Tables {
    fn read(mut bytes: &[u8], limits: Limits) -> Result<Self, MachineError> {
        let from = &mut bytes;
        let taken = Limits {
            max_sessions: size(from)?,
            max_window: number(from)?,
            max_ttl_ms: number(from)?,
            max_session_reply_bytes: size(from)?,
            max_reply_bytes: size(from)?,
        };
        if taken != limits {
            return Err(MachineError(format!(
                "the snapshot was taken with {taken:?}, but this replica runs with {limits:?}; the limits must be the \
                 same on all replicas"
            )));
        }
        let mut table = Table::new(limits);
        table.clock_ms = number(from)?;
        table.opening = pace(from)?;
        table.last_id = SessionId(number(from)?);
        demand(
            table.clock_ms <= MAX_CLOCK_MS && table.last_id.0 < MAX_ID,
            "a clock or an id out of range",
        )?;
        let hash = number(from)?;
        let count = size(from)?;
        demand(count <= limits.max_sessions, "too many sessions")?;
        let mut kept = Vec::new();
        let mut used_ms = 0;
        for _ in 0..count {
            let session = read_session(from, &limits)?;
            let (low, high) = (session.acked, session.acked.saturating_add(limits.max_window));
            demand(
                session.id <= table.last_id && !table.contains(session.id),
                "a session id that was not given out, or twice",
            )?;
            demand(
                (used_ms..=table.clock_ms).contains(&session.used_ms),
                "sessions that are not in the order of their use",
            )?;
            used_ms = session.used_ms;
            let (next, ahead) = (session.next, session.ahead.clone());
            let place = table.insert(session);
            for reply in read_replies(from)? {
                let executed = reply.sequence < next || ahead.contains(&reply.sequence);
                demand(
                    executed && (low..high).contains(&reply.sequence),
                    "a reply to what was not executed",
                )?;
                kept.push((place, reply));
            }
        }
        demand(from.is_empty(), "bytes after the last session")?;
        let mut replies = Replies::new(limits);
        demand(replies.restore(kept), "replies beyond their bounds")?;
        Ok(Self { hash, table, replies })
    }
}

fn read_session(from: &mut &[u8], limits: &Limits) -> Result<Session, MachineError> {
    let mut session = Session {
        id: SessionId(number(from)?),
        ttl_ms: number(from)?,
        used_ms: number(from)?,
        pace: pace(from)?,
        acked: number(from)?,
        next: number(from)?,
        ..Session::default()
    };
    let end = session.acked.saturating_add(limits.max_window);
    demand(
        (1..=session.next).contains(&session.acked) && session.next <= end,
        "a window out of range",
    )?;
    session.ahead = ascending(from, number, |sequence| *sequence)?
        .into_iter()
        .collect::<BTreeSet<u64>>();
    let bounds = (session.ahead.first(), session.ahead.last());
    demand(
        bounds.0.is_none_or(|first| *first > session.next) && bounds.1.is_none_or(|last| *last < end),
        "a window out of range",
    )?;
    Ok(session)
}

fn pace(from: &mut &[u8]) -> Result<Pace, MachineError> {
    let lead_ms = number(from)?;
    demand(lead_ms <= 2 * MAX_CLOCK_MS, "a client's clock out of range")?;
    Ok(Pace { lead_ms })
}

fn read_replies(from: &mut &[u8]) -> Result<Vec<Kept>, MachineError> {
    let kept = |from: &mut &[u8]| {
        let (sequence, age, length) = (number(from)?, number(from)?, size(from)?);
        let reply = from.split_off(..length).ok_or_else(cut)?;
        Ok(Kept {
            sequence,
            age,
            reply: Answer::wrap(reply),
        })
    };
    ascending(from, kept, |kept| kept.sequence)
}

/// As many items as the bytes say, each with a higher key than the one before it.
fn ascending<T>(
    from: &mut &[u8],
    read: impl Fn(&mut &[u8]) -> Result<T, MachineError>,
    key: impl Fn(&T) -> u64,
) -> Result<Vec<T>, MachineError> {
    let count = number(from)?;
    let mut items: Vec<T> = Vec::new();
    for _ in 0..count {
        let item = read(from)?;
        demand(
            items.last().is_none_or(|last| key(last) < key(&item)),
            "sequences that do not ascend",
        )?;
        items.push(item);
    }
    Ok(items)
}

fn demand(condition: bool, otherwise: &str) -> Result<(), MachineError> {
    if condition {
        return Ok(());
    }
    Err(MachineError(format!("the sessions' snapshot holds {otherwise}")))
}

fn cut() -> MachineError {
    MachineError::new("the sessions' snapshot ends in the middle of a number or a reply")
}

fn number(from: &mut &[u8]) -> Result<u64, MachineError> {
    varint::take(from).ok_or_else(cut)
}

fn size(from: &mut &[u8]) -> Result<usize, MachineError> {
    usize::try_from(number(from)?).map_err(|_| cut())
}
