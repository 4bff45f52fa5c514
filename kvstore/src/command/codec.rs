//! Commands and queries as bytes: what is written to the log and what is asked of the state machine.
//!
//! The form is `[format] [operation code] ([length] [argument])*`, lengths as varints (LEB128). It says what to do, not
//! how the client said it: command names, their case and the protocol's framing stay outside of the log.

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

/// Appends an operation and its arguments to `out`.
pub fn encode<'a>(out: &mut BytesMut, code: u8, args: impl IntoIterator<Item = &'a [u8]>) {
    out.put_u8(FORMAT);
    out.put_u8(code);
    for arg in args {
        out.reserve(arg.len() + 10);
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
    fn another_format_is_malformed() {
        assert_eq!(decode(&[2, 1]).unwrap_err(), Malformed);
        assert!(is_newer(&[2, 1]) && !is_newer(&[FORMAT, 1]) && !is_newer(&[0]) && !is_newer(&[]));
        assert_eq!(decode(&[FORMAT]).unwrap_err(), Malformed);
        assert_eq!(decode(&[]).unwrap_err(), Malformed);
    }
}
