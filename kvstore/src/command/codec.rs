//! Commands and queries as bytes: what is written to the log and what is asked of the state machine.
//!
//! The form is `[format] [operation code] ([length] [argument])*`, lengths as varints (LEB128). It says what to do, not
//! how the client said it: command names, their case and the protocol's framing stay outside of the log.

use std::cell::RefCell;

use bytes::{BufMut, BytesMut};

/// The first byte of every command. Another form gets another number.
pub const FORMAT: u8 = 1;
/// The last number that a form will ever get: what begins with another byte is garbage to every version.
pub const LAST_FORMAT: u8 = 15;

/// Whether the bytes have a form that only a newer program knows.
pub fn is_newer(bytes: &[u8]) -> bool {
    bytes
        .first()
        .is_some_and(|format| (FORMAT + 1..=LAST_FORMAT).contains(format))
}

/// So many bytes of commands share an allocation.
const CHUNK_BYTES: usize = 32 << 10;
/// A larger command has an allocation of its own.
const MAX_SHARED_COMMAND_BYTES: usize = CHUNK_BYTES / 8;

thread_local! {
    /// Room for the next commands: one for all connections of a thread, so that it stays in the processor's cache.
    static ROOM: RefCell<BytesMut> = RefCell::default();
}

/// An operation and its arguments, behind `front_bytes` zeros.
pub fn encoded<'a>(
    front_bytes: usize,
    code: u8,
    args: impl IntoIterator<Item = &'a [u8], IntoIter: Clone>,
) -> BytesMut {
    let args = args.into_iter();
    let args_bytes: usize = args.clone().map(|arg| arg.len() + MAX_LENGTH_BYTES).sum();
    let most = front_bytes + 2 + args_bytes;
    let write = |room: &mut BytesMut| {
        room.put_bytes(0, front_bytes);
        encode(room, code, args);
        room.split()
    };
    if most > MAX_SHARED_COMMAND_BYTES {
        return write(&mut BytesMut::with_capacity(most));
    }
    ROOM.with_borrow_mut(|room| {
        if room.capacity() < most {
            room.reserve(CHUNK_BYTES);
        }
        write(room)
    })
}

/// The longest length of an argument, in bytes.
const MAX_LENGTH_BYTES: usize = 10;

/// Appends an operation and its arguments to `out`.
pub fn encode<'a>(out: &mut BytesMut, code: u8, args: impl IntoIterator<Item = &'a [u8]>) {
    out.put_u8(FORMAT);
    out.put_u8(code);
    for arg in args {
        out.reserve(arg.len() + MAX_LENGTH_BYTES);
        let mut rest = arg.len() as u64;
        while rest >= 0x80 {
            out.put_u8(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.put_u8(rest as u8);
        out.put_slice(arg);
    }
}

/// The bytes are no command that this program knows: another version wrote them, or they are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed command")]
pub struct Malformed;

/// The operation code of a command and its arguments, checked to be whole.
pub fn decode(bytes: &[u8]) -> Result<(u8, Operands<'_>), Malformed> {
    let [FORMAT, code, rest @ ..] = bytes else {
        return Err(Malformed);
    };
    let operands = Operands { rest };
    let mut check = operands.clone();
    while !check.rest.is_empty() {
        check.next().ok_or(Malformed)?;
    }
    Ok((*code, operands))
}

/// The arguments of a command, in order.
#[derive(Clone, Debug)]
pub struct Operands<'a> {
    rest: &'a [u8],
}

impl<'a> Operands<'a> {
    /// The next argument, which the operation cannot do without.
    pub fn required(&mut self) -> Result<&'a [u8], Malformed> {
        self.next().ok_or(Malformed)
    }
}

impl<'a> Iterator for Operands<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let mut length = 0_u64;
        for (at, byte) in self.rest.iter().enumerate().take(9) {
            length |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                let rest = &self.rest[at + 1..];
                let length = usize::try_from(length)
                    .ok()
                    .filter(|length| *length <= rest.len())?;
                let (arg, rest) = rest.split_at(length);
                self.rest = rest;
                return Some(arg);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_encoded_comes_back(code: u8, args in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..5)) {
            let mut bytes = BytesMut::new();
            encode(&mut bytes, code, args.iter().map(Vec::as_slice));
            let (found, operands) = decode(&bytes).unwrap();
            prop_assert_eq!(found, code);
            prop_assert_eq!(operands.map(<[u8]>::to_vec).collect::<Vec<_>>(), args);
        }

        #[test]
        fn any_bytes_never_panic_and_cut_ones_are_malformed(bytes: Vec<u8>) {
            let _ = decode(&bytes);
            let mut whole = BytesMut::new();
            encode(&mut whole, 7, [&bytes[..], b"x"]);
            prop_assert!(decode(&whole[..whole.len() - 1]).is_err());
        }
    }

    #[test]
    fn commands_of_every_size_share_allocations_and_nothing_else() {
        let values: Vec<Vec<u8>> = (0..200).map(|index| vec![index as u8; index * 37]).collect();
        let mut all: Vec<_> = values
            .iter()
            .map(|value| encoded(7, 9, [&value[..], b"x"]))
            .collect();
        for command in &mut all {
            command[..7].fill(0xff);
        }
        for (value, command) in values.iter().zip(all) {
            let (code, mut operands) = decode(&command[7..]).unwrap();
            assert_eq!((code, operands.next()), (9, Some(&value[..])));
            assert_eq!((operands.next(), operands.next()), (Some(&b"x"[..]), None));
        }
    }

    #[test]
    fn another_format_is_malformed() {
        assert_eq!(decode(&[2, 1]).unwrap_err(), Malformed);
        assert!(is_newer(&[2, 1]) && !is_newer(&[FORMAT, 1]) && !is_newer(&[0]) && !is_newer(&[]));
        assert_eq!(decode(&[FORMAT]).unwrap_err(), Malformed);
        assert_eq!(decode(&[]).unwrap_err(), Malformed);
    }
}
