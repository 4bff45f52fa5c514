//! Replies. Everything in this crate writes version 3 of the protocol; a connection that speaks version 2 gets it
//! translated by [`downgrade`].

use bytes::{BufMut, BytesMut};

use super::number;

/// `+OK`.
pub const OK: &[u8] = b"+OK\r\n";

/// A one-line text without line breaks.
pub fn simple(out: &mut BytesMut, text: &str) {
    out.put_u8(b'+');
    out.put_slice(text.as_bytes());
    out.put_slice(b"\r\n");
}

/// An error: its code (`ERR`, ...) and text. Line breaks become blanks.
pub fn error(out: &mut BytesMut, text: &str) {
    out.put_u8(b'-');
    out.extend(
        text.bytes()
            .map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }),
    );
    out.put_slice(b"\r\n");
}

/// An integer.
pub fn integer(out: &mut BytesMut, value: i64) {
    header(out, b':', value);
}

/// An integer from a count.
pub fn count(out: &mut BytesMut, value: u64) {
    integer(out, i64::try_from(value).unwrap_or(i64::MAX));
}

/// A string of any bytes.
pub fn bulk(out: &mut BytesMut, bytes: &[u8]) {
    out.reserve(bytes.len() + 24);
    header(out, b'$', bytes.len() as i64);
    out.put_slice(bytes);
    out.put_slice(b"\r\n");
}

/// "There is none."
pub fn null(out: &mut BytesMut) {
    out.put_slice(b"_\r\n");
}

/// The header of an array; `len` values follow.
pub fn array(out: &mut BytesMut, len: usize) {
    header(out, b'*', len as i64);
}

/// The header of a map; `len` pairs of values follow.
pub fn map(out: &mut BytesMut, len: usize) {
    header(out, b'%', len as i64);
}

fn header(out: &mut BytesMut, kind: u8, value: i64) {
    out.put_u8(kind);
    number::digits(value, |text| out.put_slice(text));
    out.put_slice(b"\r\n");
}

/// Appends the version 3 reply (or replies) `from` to `out` in version 2: a null becomes the null string, maps, sets
/// and pushes become arrays, booleans integers, doubles and verbatim texts strings.
///
/// `from` is written by this crate and well-formed; anything else is copied as it is.
pub fn downgrade(out: &mut BytesMut, from: &[u8]) {
    // The common replies are the same in both versions.
    match from.first() {
        Some(b'+' | b'-' | b':') => return out.put_slice(from),
        Some(b'_') if from.len() == 3 => return out.put_slice(b"$-1\r\n"),
        _ => {}
    }
    let mut rest = from;
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let (line, after) = rest.split_at(end + 2);
        rest = after;
        let text = &line[1..end.max(1)];
        match line[0] {
            b'_' => out.put_slice(b"$-1\r\n"),
            b'%' => {
                let pairs = number::integer(text).unwrap_or(0);
                header(out, b'*', pairs.saturating_mul(2));
            }
            b'~' | b'>' => {
                out.put_u8(b'*');
                out.put_slice(&line[1..]);
            }
            b'#' => integer(out, i64::from(text == b"t")),
            b',' => bulk(out, text),
            b'$' => {
                let bytes = number::integer(text).and_then(|bytes| usize::try_from(bytes).ok());
                let (value, after) = rest.split_at(bytes.map_or(0, |bytes| bytes + 2).min(rest.len()));
                out.put_slice(line);
                out.put_slice(value);
                rest = after;
            }
            _ => out.put_slice(line),
        }
    }
    out.put_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut BytesMut)) -> String {
        let mut out = BytesMut::new();
        write(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn replies_have_the_protocols_form() {
        assert_eq!(written(|out| simple(out, "PONG")), "+PONG\r\n");
        assert_eq!(written(|out| error(out, "ERR a\r\nb")), "-ERR a  b\r\n");
        assert_eq!(written(|out| integer(out, i64::MIN)), ":-9223372036854775808\r\n");
        assert_eq!(written(|out| count(out, u64::MAX)), ":9223372036854775807\r\n");
        assert_eq!(written(|out| bulk(out, b"a\r\nb")), "$4\r\na\r\nb\r\n");
        assert_eq!(written(|out| bulk(out, b"")), "$0\r\n\r\n");
    }

    #[test]
    fn version_2_gets_what_it_understands() {
        for (three, two) in [
            ("+OK\r\n", "+OK\r\n"),
            (":7\r\n", ":7\r\n"),
            ("_\r\n", "$-1\r\n"),
            ("$3\r\n_\r\n\r\n", "$3\r\n_\r\n\r\n"),
            ("*3\r\n$1\r\na\r\n_\r\n:1\r\n", "*3\r\n$1\r\na\r\n$-1\r\n:1\r\n"),
            ("%1\r\n+a\r\n%1\r\n+b\r\n_\r\n", "*2\r\n+a\r\n*2\r\n+b\r\n$-1\r\n"),
            ("~1\r\n#t\r\n", "*1\r\n:1\r\n"),
            (",1.5\r\n", "$3\r\n1.5\r\n"),
        ] {
            assert_eq!(written(|out| downgrade(out, three.as_bytes())), two, "{three:?}");
        }
    }
}
