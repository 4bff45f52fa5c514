//! Replies as values, for our own client.

use bytes::{Buf, Bytes, BytesMut};

use super::{number::integer, parse::ProtocolError};

/// A reply of a server, of either protocol version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// "There is none."
    Null,
    /// A status line such as `OK`.
    Simple(String),
    /// An error: code and text.
    Error(String),
    /// An integer.
    Integer(i64),
    /// A string of any bytes.
    Bulk(Bytes),
    /// Several values; of a map, keys and values by turns.
    Array(Vec<Value>),
}

/// How deep a reply may be nested.
const MAX_DEPTH: usize = 16;
/// How many bytes a single string of a reply may have.
const MAX_BULK_BYTES: usize = 512 << 20;
/// How long a line of a reply may be, in bytes.
const MAX_LINE_BYTES: usize = 64 << 10;

impl Value {
    /// Takes one whole reply from the front of `buffer`; `None` if it is not whole yet.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<Self>, ProtocolError> {
        let mut position = 0;
        let Some(value) = read(buffer, &mut position, 0)? else {
            return Ok(None);
        };
        buffer.advance(position);
        Ok(Some(value))
    }

    /// The text of a string, status or error; digits for an integer; empty for anything else.
    pub fn to_text(&self) -> String {
        match self {
            Self::Simple(text) | Self::Error(text) => text.clone(),
            Self::Integer(value) => value.to_string(),
            Self::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Null | Self::Array(_) => String::new(),
        }
    }
}

/// Where a whole reply that starts at `position` ends, and what it is.
fn read(buffer: &[u8], position: &mut usize, depth: usize) -> Result<Option<Value>, ProtocolError> {
    let bad = |what: &str| ProtocolError::reply(what);
    if depth > MAX_DEPTH {
        return Err(bad("nested too deeply"));
    }
    let rest = &buffer[*position..];
    let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
        return if rest.len() > MAX_LINE_BYTES {
            Err(bad("line too long"))
        } else {
            Ok(None)
        };
    };
    let Some((&kind, text)) = rest[..end].split_first() else {
        return Err(bad("empty line"));
    };
    let number = || integer(text).ok_or_else(|| bad("not a number"));
    let line = || String::from_utf8_lossy(text).into_owned();
    let mut next = *position + end + 2;
    let value = match kind {
        b'+' => Value::Simple(line()),
        b'-' => Value::Error(line()),
        b':' => Value::Integer(number()?),
        b'_' => Value::Null,
        b'#' => Value::Integer(i64::from(text == b"t")),
        b',' => Value::Bulk(Bytes::copy_from_slice(text)),
        b'$' | b'=' => match usize::try_from(number()?) {
            Err(_) => Value::Null,
            Ok(bytes) if bytes > MAX_BULK_BYTES => return Err(bad("string too long")),
            Ok(bytes) => {
                if buffer.len() < next + bytes + 2 {
                    return Ok(None);
                }
                let value = Bytes::copy_from_slice(&buffer[next..next + bytes]);
                next += bytes + 2;
                Value::Bulk(value)
            }
        },
        b'*' | b'%' | b'~' | b'>' => match usize::try_from(number()?) {
            Err(_) => Value::Null,
            Ok(len) => {
                let len = if kind == b'%' { len.saturating_mul(2) } else { len };
                // Grows with what is there: a length alone must not make it allocate.
                let mut values = Vec::new();
                for _ in 0..len {
                    let Some(value) = read(buffer, &mut next, depth + 1)? else {
                        return Ok(None);
                    };
                    values.push(value);
                }
                Value::Array(values)
            }
        },
        _ => return Err(bad("unknown type byte")),
    };
    *position = next;
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn take(bytes: &[u8]) -> Option<Value> {
        Value::take(&mut BytesMut::from(bytes)).unwrap()
    }

    #[test]
    fn replies_of_both_versions_are_read() {
        assert_eq!(take(b"+OK\r\n"), Some(Value::Simple("OK".into())));
        assert_eq!(take(b"$-1\r\n"), Some(Value::Null));
        assert_eq!(take(b"_\r\n"), Some(Value::Null));
        assert_eq!(
            take(b"%1\r\n$1\r\na\r\n*2\r\n:1\r\n-ERR x\r\n"),
            Some(Value::Array(vec![
                Value::Bulk("a".into()),
                Value::Array(vec![Value::Integer(1), Value::Error("ERR x".into())]),
            ]))
        );
    }

    #[test]
    fn a_reply_that_is_not_whole_is_waited_for() {
        let bytes = b"*2\r\n$3\r\nabc\r\n:1\r\n";
        for cut in 0..bytes.len() {
            assert_eq!(take(&bytes[..cut]), None);
        }
        assert!(take(bytes).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in "[*$%_:+\\-0-9\r\na]{0,100}", noise: Vec<u8>) {
            let _ = Value::take(&mut BytesMut::from(bytes.as_bytes()));
            let _ = Value::take(&mut BytesMut::from(&noise[..]));
        }
    }
}
