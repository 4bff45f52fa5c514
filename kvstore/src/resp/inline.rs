//! Commands typed as a line: `SET a "b c"`.

use std::ops::Range;

/// Splits a line into arguments, unescaping quoted ones in place, and reports the range of each. `None`: a quote is
/// not closed, or something follows a closing quote directly.
pub(super) fn split_line(line: &mut [u8], mut found: impl FnMut(Range<usize>)) -> Option<()> {
    let mut read = 0;
    loop {
        while line.get(read).is_some_and(u8::is_ascii_whitespace) {
            read += 1;
        }
        if read >= line.len() {
            return Some(());
        }
        let start = read;
        // Unescaping only ever shortens, so what is written never overtakes what is read.
        let mut written = read;
        let mut quote = None;
        loop {
            let Some(&byte) = line.get(read) else {
                if quote.is_some() {
                    return None;
                }
                break;
            };
            read += 1;
            let kept = match (quote, byte) {
                (None, b'"' | b'\'') => {
                    quote = Some(byte);
                    continue;
                }
                (None, byte) if byte.is_ascii_whitespace() => break,
                (Some(open), byte) if byte == open => {
                    if line.get(read).is_some_and(|next| !next.is_ascii_whitespace()) {
                        return None;
                    }
                    quote = None;
                    continue;
                }
                (Some(b'"'), b'\\') => {
                    let (byte, used) = unescape(line.get(read..)?)?;
                    read += used;
                    byte
                }
                (Some(b'\''), b'\\') if line.get(read) == Some(&b'\'') => {
                    read += 1;
                    b'\''
                }
                (_, byte) => byte,
            };
            line[written] = kept;
            written += 1;
        }
        found(start..written);
    }
}

/// What follows a backslash inside double quotes: the byte it means and how many bytes it took.
fn unescape(rest: &[u8]) -> Option<(u8, usize)> {
    let hex = |digit: &u8| char::from(*digit).to_digit(16);
    Some(match rest {
        [b'x', high, low, ..] if hex(high).is_some() && hex(low).is_some() => {
            ((hex(high)? * 16 + hex(low)?) as u8, 3)
        }
        [b'n', ..] => (b'\n', 1),
        [b'r', ..] => (b'\r', 1),
        [b't', ..] => (b'\t', 1),
        [b'b', ..] => (8, 1),
        [b'a', ..] => (7, 1),
        [other, ..] => (*other, 1),
        [] => return None,
    })
}
