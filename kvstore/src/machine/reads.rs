//! The operations that only read.

#![allow(clippy::unnecessary_wraps, reason = "every operation has the same type")]

use bytes::{Bytes, BytesMut};

use super::{
    Record, Refused, State, glob,
    writes::{Outcome, not_an_integer, syntax_error},
};
use crate::{
    command::codec::Operands,
    resp::{parse, write},
    shards::HASH_SLOTS,
};

fn value(reply: &mut BytesMut, record: Option<&Record>) {
    match record {
        Some(record) => write::bulk(reply, &record.value),
        None => write::null(reply),
    }
}

pub(super) fn get(state: &State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    value(reply, state.space.get(operands.required()?));
    Ok(())
}

/// How many bytes of values one reply may hold.
const MAX_REPLY_BYTES: usize = 64 << 20;

pub(super) fn mget(state: &State, operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let values = operands.clone().filter_map(|key| state.space.get(key));
    let bytes: usize = values.map(|record| record.value.len()).sum();
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
    write::count(reply, record.map_or(0, |record| record.value.len() as u64));
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

pub(super) fn keys(state: &State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let pattern = operands.required()?;
    let found: Vec<&Bytes> = state
        .space
        .iter()
        .map(|(key, _)| key)
        .filter(|key| glob::matches(pattern, key))
        .collect();
    write::array(reply, found.len());
    for key in found {
        write::bulk(reply, key);
    }
    Ok(())
}

pub(super) fn dbsize(state: &State, _: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    write::count(reply, state.space.len());
    Ok(())
}

pub(super) fn revision(state: &State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let record = state.space.get(operands.required()?);
    write::count(reply, record.map_or(0, |record| record.revision));
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

/// One page: whole hash slots, from the first on, until `COUNT` keys have been looked at. Replies with the first hash
/// slot of the next page (the end slot if there is none) and the keys.
///
/// A key that is there from the first page to the last is returned exactly once, whatever is written meanwhile and
/// whichever replica answers: its hash slot is visited once.
pub(super) fn scan(state: &State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let mut slot = || {
        parse::integer(operands.required()?)
            .and_then(|slot| u16::try_from(slot).ok())
            .filter(|slot| *slot <= HASH_SLOTS)
            .ok_or_else(|| Refused::new("ERR invalid cursor"))
    };
    let (first, end) = (slot()?, slot()?);
    let (mut pattern, mut count, mut only_strings) = (None, DEFAULT_SCAN_COUNT, true);
    while let Some(option) = operands.next() {
        let argument = operands.next().ok_or_else(syntax_error)?;
        if option.eq_ignore_ascii_case(b"MATCH") {
            pattern = Some(argument);
        } else if option.eq_ignore_ascii_case(b"COUNT") {
            let given = parse::integer(argument).ok_or_else(not_an_integer)?;
            count = u64::try_from(given)
                .ok()
                .filter(|count| *count > 0)
                .ok_or_else(syntax_error)?;
        } else if option.eq_ignore_ascii_case(b"TYPE") {
            only_strings = argument.eq_ignore_ascii_case(b"string");
        } else {
            return Err(syntax_error());
        }
    }
    let (mut next, mut seen, mut found) = (first, 0, Vec::new());
    let count = count.min(MAX_SCAN_COUNT);
    while next < end && seen < count {
        let records = state.space.slot(next);
        seen += records.len() as u64;
        let wanted = |key: &&Bytes| only_strings && pattern.is_none_or(|pattern| glob::matches(pattern, key));
        found.extend(records.keys().filter(wanted));
        next += 1;
    }
    // Empty hash slots are skipped at once, so that a walk over few keys takes few pages.
    while next < end && state.space.slot(next).is_empty() {
        next += 1;
    }
    write::array(reply, 2);
    write::integer(reply, i64::from(next));
    write::array(reply, found.len());
    for key in found {
        write::bulk(reply, key);
    }
    Ok(())
}
