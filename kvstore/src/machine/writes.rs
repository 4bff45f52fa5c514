//! The operations that change the state. Each checks everything before it changes anything.

#![allow(clippy::unnecessary_wraps, reason = "every operation has the same type")]

use bytes::{BufMut, BytesMut};

use super::{NodeAddresses, Refused, State, reads};
use crate::{
    command::codec::Operands,
    resp::{is, number, write},
};

/// The largest value, in bytes; a single command carries a little less, with all its arguments. It bounds the cost of every operation on one key, the
/// digest of an appended value too.
pub(super) const MAX_VALUE_BYTES: usize = 16 << 20;

/// The operations' answer, or why they were refused.
pub(super) type Outcome = Result<(), Refused>;

pub(super) fn syntax_error() -> Refused {
    Refused::new("ERR syntax error")
}

pub(super) fn not_an_integer() -> Refused {
    Refused::new("ERR value is not an integer or out of range")
}

fn ok(reply: &mut BytesMut) -> Outcome {
    reply.put_slice(write::OK);
    Ok(())
}

#[derive(Clone, Copy, Default)]
struct SetOptions {
    /// Some(true): only if the key exists; Some(false): only if it does not.
    if_exists: Option<bool>,
    get: bool,
}

impl SetOptions {
    fn parse(operands: Operands<'_>) -> Result<Self, Refused> {
        let mut options = Self::default();
        for option in operands {
            let is = |name: &str| is(option, name);
            if is("NX") && options.if_exists != Some(true) {
                options.if_exists = Some(false);
            } else if is("XX") && options.if_exists != Some(false) {
                options.if_exists = Some(true);
            } else if is("GET") {
                options.get = true;
            } else if ["EX", "PX", "EXAT", "PXAT", "KEEPTTL"]
                .iter()
                .any(|name| is(name))
            {
                return Err(Refused::new(
                    "ERR keys that expire are not supported by this version",
                ));
            } else {
                return Err(syntax_error());
            }
        }
        Ok(options)
    }
}

pub(super) fn set(state: &mut State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let (key, value) = (operands.required()?, operands.required()?);
    let options = SetOptions::parse(operands)?;
    let allowed = options
        .if_exists
        .is_none_or(|wanted| state.space.get(key).is_some() == wanted);
    if !allowed {
        let present = options.get.then(|| state.space.get(key)).flatten();
        reads::value(reply, present);
        return Ok(());
    }
    let before = state.space.set(key, value);
    if options.get {
        reads::value(reply, before.as_ref());
        return Ok(());
    }
    ok(reply)
}

pub(super) fn setnx(state: &mut State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let (key, value) = (operands.required()?, operands.required()?);
    let free = state.space.get(key).is_none();
    if free {
        state.space.set(key, value);
    }
    write::integer(reply, i64::from(free));
    Ok(())
}

pub(super) fn mset(state: &mut State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    if operands.clone().count() % 2 == 1 {
        return Err(Refused::new("ERR wrong number of arguments for 'mset' command"));
    }
    while let (Some(key), Some(value)) = (operands.next(), operands.next()) {
        state.space.set(key, value);
    }
    ok(reply)
}

pub(super) fn append(state: &mut State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let (key, suffix) = (operands.required()?, operands.required()?);
    let present = state.space.get(key).map_or(0, |record| record.value().len());
    if present + suffix.len() > MAX_VALUE_BYTES {
        return Err(Refused::new(
            "ERR string exceeds maximum allowed size (proto-max-bulk-len)",
        ));
    }
    let len = state.space.append(key, suffix);
    write::count(reply, len as u64);
    Ok(())
}

pub(super) fn incr(state: &mut State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    add(state, operands.required()?, 1, reply)
}

pub(super) fn decr(state: &mut State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    add(state, operands.required()?, -1, reply)
}

pub(super) fn incrby(state: &mut State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let key = operands.required()?;
    let amount = number::integer(operands.required()?).ok_or_else(not_an_integer)?;
    add(state, key, amount, reply)
}

pub(super) fn decrby(state: &mut State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let key = operands.required()?;
    let amount = number::integer(operands.required()?).ok_or_else(not_an_integer)?;
    let amount = amount
        .checked_neg()
        .ok_or_else(|| Refused::new("ERR decrement would overflow"))?;
    add(state, key, amount, reply)
}

fn add(state: &mut State, key: &[u8], amount: i64, reply: &mut BytesMut) -> Outcome {
    let present = match state.space.get(key) {
        Some(record) => number::integer(record.value()).ok_or_else(not_an_integer)?,
        None => 0,
    };
    let sum = present
        .checked_add(amount)
        .ok_or_else(|| Refused::new("ERR increment or decrement would overflow"))?;
    number::digits(sum, |text| state.space.set(key, text));
    write::integer(reply, sum);
    Ok(())
}

pub(super) fn del(state: &mut State, operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let removed = operands.filter(|key| state.space.remove(key).is_some()).count();
    write::count(reply, removed as u64);
    Ok(())
}

pub(super) fn cas(state: &mut State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let (key, old, new) = (operands.required()?, operands.required()?, operands.required()?);
    let equal = state.space.get(key).is_some_and(|record| record.value() == old);
    if equal {
        state.space.set(key, new);
    }
    write::integer(reply, i64::from(equal));
    Ok(())
}

pub(super) fn flush(state: &mut State, _: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    state.space.clear();
    ok(reply)
}

pub(super) fn announce(state: &mut State, mut operands: Operands<'_>, reply: &mut BytesMut) -> Outcome {
    let node = number::integer(operands.required()?)
        .and_then(|node| u64::try_from(node).ok())
        .ok_or_else(not_an_integer)?;
    let mut text = || {
        let text = operands.required()?;
        String::from_utf8(text.to_vec()).map_err(|_| Refused::new("ERR an address must be UTF-8"))
    };
    let addresses = NodeAddresses {
        resp: text()?,
        http: text()?,
    };
    state.nodes.insert(node, addresses);
    ok(reply)
}
