//! The operations that only read.

#![allow(clippy::unnecessary_wraps, reason = "every operation has the same type")]

use bytes::BytesMut;

use super::{
    Record, Refused, State, glob,
    keyspace::PLACE_BITS,
    writes::{Outcome, not_an_integer, syntax_error},
};
use crate::{
    command::codec::Operands,
    resp::{is, number, write},
    shards::HASH_SLOTS,
};

pub(super) fn value(reply: &mut BytesMut, record: Option<&Record>) {
    match record {
        Some(record) => write::bulk(reply, record.value()),
        None => write::null(reply),
    }
}

pub(super) fn get(state: &State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    value(reply, state.space.get(operands.required()?));
    Ok(())
}

/// How many bytes of values or keys one reply may hold.
pub const MAX_REPLY_BYTES: usize = 64 << 20;

pub(super) fn mget(state: &State, operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let values = operands.clone().filter_map(|key| state.space.get(key));
    let bytes: usize = values.map(|record| record.value().len()).sum();
    if bytes > MAX_REPLY_BYTES {
        return Err(Refused::new(format!(
            "ERR the values have {bytes} bytes, one reply may have {MAX_REPLY_BYTES}; ask for fewer keys at once"
        )));
    }
    write::array(reply, operands.clone().count());
    for key in operands {
        value(reply, state.space.get(key));
    }
    Ok(())
}

pub(super) fn strlen(state: &State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let record = state.space.get(operands.required()?);
    write::count(reply, record.map_or(0, |record| record.value().len() as u64));
    Ok(())
}

pub(super) fn exists(state: &State, operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let found = operands.filter(|key| state.space.get(key).is_some()).count();
    write::count(reply, found as u64);
    Ok(())
}

pub(super) fn kind(state: &State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let found = state.space.get(operands.required()?).is_some();
    write::simple(reply, if found { "string" } else { "none" });
    Ok(())
}

pub(super) fn dbsize(state: &State, _: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    write::count(reply, state.space.len());
    Ok(())
}

pub(super) fn revision(state: &State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let record = state.space.get(operands.required()?);
    write::count(reply, record.map_or(0, Record::revision));
    Ok(())
}

pub(super) fn nodes(state: &State, _: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    write::array(reply, state.nodes.len() * 3);
    for (node, addresses) in &state.nodes {
        write::count(reply, *node);
        write::bulk(reply, addresses.resp.as_bytes());
        write::bulk(reply, addresses.http.as_bytes());
    }
    Ok(())
}

pub(super) fn sizes(state: &State, _: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    write::array(reply, 3);
    write::count(reply, state.space.len());
    write::count(reply, state.space.bytes());
    write::count(reply, state.space.revision);
    Ok(())
}

/// How many keys a page of `SCAN` looks at when the client does not say.
const DEFAULT_SCAN_COUNT: u64 = 10;
/// How many it looks at whatever the client says, so that others need not wait long.
const MAX_SCAN_COUNT: u64 = 4096;
/// A page ends when the keys that it has found have so many bytes, or a few more.
const MAX_PAGE_BYTES: usize = 1 << 20;

/// Where a walk over the keys stands: a hash slot, and a place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    slot: u16,
    place: u64,
}

impl Cursor {
    /// At the beginning of a hash slot; of [`HASH_SLOTS`], behind all of them.
    pub const fn at(slot: u16) -> Self {
        Self { slot, place: 0 }
    }

    /// As clients see it; `None` if it makes no sense.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let number = u64::try_from(number::integer(text)?).ok()?;
        let slot = u16::try_from(number >> PLACE_BITS).ok()?;
        let place = number & ((1 << PLACE_BITS) - 1);
        let cursor = Self { slot, place };
        (cursor.number() <= Self::at(HASH_SLOTS).number()).then_some(cursor)
    }

    /// The number for clients: 0 is the beginning of all.
    pub const fn number(self) -> u64 {
        ((self.slot as u64) << PLACE_BITS) | self.place
    }

    /// The hash slot in which it stands.
    pub const fn slot(self) -> u16 {
        self.slot
    }
}

/// One page: from a cursor up to an end slot, until `COUNT` keys have been looked at. Replies with the cursor of the next
/// page (that of the end slot if there is none) and the keys.
///
/// A key that is there from the first page to the last is returned exactly once, whatever is written meanwhile and
/// whichever replica answers: where it stands depends on its name only.
pub(super) fn scan(state: &State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let bad = || Refused::new("ERR invalid cursor");
    let mut next = Cursor::parse(operands.required()?).ok_or_else(bad)?;
    let end = number::integer(operands.required()?)
        .and_then(|slot| u16::try_from(slot).ok())
        .filter(|slot| *slot <= HASH_SLOTS)
        .ok_or_else(bad)?;
    let (mut pattern, mut count, mut only_strings) = (None, DEFAULT_SCAN_COUNT, true);
    while let Some(option) = operands.next() {
        let argument = operands.next().ok_or_else(syntax_error)?;
        if is(option, "MATCH") {
            pattern = Some(argument);
        } else if is(option, "COUNT") {
            let given = number::integer(argument).ok_or_else(not_an_integer)?;
            count = u64::try_from(given)
                .ok()
                .filter(|count| *count > 0)
                .ok_or_else(syntax_error)?;
        } else if is(option, "TYPE") {
            only_strings = is(argument, "string");
        } else {
            return Err(syntax_error());
        }
    }
    let count = count.min(MAX_SCAN_COUNT);
    let (mut seen, mut bytes, mut found) = (0, 0, Vec::new());
    'page: while next.slot < end && seen < count && bytes < MAX_PAGE_BYTES {
        for record in state.space.walk(next.slot, next.place) {
            // Records at one place are on one page.
            if record.place() > next.place {
                next.place = record.place();
                if seen >= count || bytes >= MAX_PAGE_BYTES {
                    break 'page;
                }
            }
            seen += 1;
            if only_strings && pattern.is_none_or(|pattern| glob::matches(pattern, record.key())) {
                bytes += record.key().len();
                found.push(record.key());
            }
        }
        next = Cursor::at(next.slot + 1);
    }
    // Empty hash slots are skipped at once, so that a walk over few keys takes few pages.
    while next.slot < end && state.space.is_empty_slot(next.slot) {
        next = Cursor::at(next.slot + 1);
    }
    if bytes > MAX_REPLY_BYTES {
        return Err(Refused::new(format!(
            "ERR the keys at one place have {bytes} bytes, one reply may have {MAX_REPLY_BYTES}"
        )));
    }
    write::array(reply, 2);
    write::count(reply, next.number());
    write::array(reply, found.len());
    for key in found {
        write::bulk(reply, key);
    }
    Ok(())
}
