//! Requests: an incremental parser that finds every complete command in a read buffer without copying anything.
//!
//! A [`Parser`] keeps its place when a command is cut off by the end of what has arrived, so a large command that
//! comes in many pieces is looked at once. Arguments are spans of the caller's buffer.

use std::ops::Range;

/// What a client may send at the most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Arguments of one command, its name included.
    pub max_args: usize,
    /// Bytes of one command as sent, framing included.
    pub max_command_bytes: usize,
    /// Bytes of one command sent as a plain line.
    pub max_inline_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_args: 1 << 20,
            // Less than the engine's bound on a command, with room for framing.
            max_command_bytes: (16 << 20) - (64 << 10),
            max_inline_bytes: 64 << 10,
        }
    }
}

/// The client does not speak the protocol, or sends more than it may: it is told why and disconnected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Protocol error: {0}")]
pub struct ProtocolError(String);

impl ProtocolError {
    fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }

    /// A server's reply that makes no sense.
    pub(super) fn reply(why: &str) -> Self {
        Self(format!("malformed reply: {why}"))
    }
}

/// Where an argument lies in the buffer.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    start: u32,
    bytes: u32,
}

impl Span {
    fn new(range: Range<usize>) -> Self {
        // Buffers are bounded far below 4 GiB by `Limits::max_command_bytes`.
        Self {
            start: range.start as u32,
            bytes: range.len() as u32,
        }
    }
}

/// The arguments of one command, the name first; slices of the read buffer.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    buffer: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    /// How many, the name included.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are none; never for a command that the parser found.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The argument at `index`; 0 is the name. Empty if there are fewer.
    pub fn get(&self, index: usize) -> &'a [u8] {
        self.spans
            .get(index)
            .and_then(|span| {
                let start = span.start as usize;
                self.buffer.get(start..start + span.bytes as usize)
            })
            .unwrap_or_default()
    }

    /// The same without the first `count` arguments.
    #[must_use]
    pub fn skip(&self, count: usize) -> Self {
        Self {
            buffer: self.buffer,
            spans: self.spans.get(count..).unwrap_or_default(),
        }
    }

    /// The arguments from `index` on.
    pub fn from(&self, index: usize) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        let this = *self;
        (index..self.len()).map(move |at| this.get(at))
    }
}

/// Room for this many arguments is kept from one read to the next.
const MAX_IDLE_ARGS: usize = 16 << 10;

/// Finds complete commands in a growing buffer.
///
/// The caller appends what it reads, calls [`parse`](Self::parse), uses [`command`](Self::command) for each command
/// found, removes [`consumed`](Self::consumed) bytes from the front of the buffer and calls [`clear`](Self::clear).
#[derive(Debug, Default)]
pub struct Parser {
    limits: Limits,
    /// Everything before this has been looked at.
    position: usize,
    /// Everything before this belongs to complete commands.
    consumed: usize,
    /// The open command's arguments that are still to come; 0 if none is open.
    missing_args: usize,
    /// The length of the argument that comes next, once its header is read.
    bulk_bytes: Option<usize>,
    /// All arguments found, of complete commands first, then of the open one.
    spans: Vec<Span>,
    /// For each complete command, the end of its arguments in `spans`.
    ends: Vec<usize>,
}

impl Parser {
    /// A parser with these limits.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// How many complete commands have been found.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether no complete command has been found.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The arguments of the complete command at `index`, in the buffer given to [`parse`](Self::parse).
    ///
    /// # Panics
    ///
    /// If there are not so many: `index` must be below [`len`](Self::len).
    pub fn command<'a>(&'a self, index: usize, buffer: &'a [u8]) -> Args<'a> {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Args {
            buffer,
            spans: &self.spans[start..self.ends[index]],
        }
    }

    /// How many bytes at the front of the buffer belong to complete commands.
    pub fn consumed(&self) -> usize {
        self.consumed
    }

    /// How many bytes the argument that is being received still lacks: room worth reserving.
    pub fn wanted_bytes(&self, buffer_bytes: usize) -> usize {
        self.bulk_bytes.map_or(0, |bytes| {
            (self.position + bytes + 2).saturating_sub(buffer_bytes)
        })
    }

    /// Forgets the complete commands, whose bytes the caller has removed from the front of the buffer.
    pub fn clear(&mut self) {
        // The spans behind the complete commands, and the position, are at `consumed` or behind it.
        let complete = self.ends.last().copied().unwrap_or(0);
        self.spans.drain(..complete);
        self.spans.shrink_to(MAX_IDLE_ARGS);
        for span in &mut self.spans {
            span.start -= self.consumed as u32;
        }
        self.ends.clear();
        self.position -= self.consumed;
        self.consumed = 0;
    }

    /// Finds all complete commands in `buffer`. Plain lines with quotes are unescaped in place.
    ///
    /// After an error the commands found before it are still there; nothing more can be parsed.
    pub fn parse(&mut self, buffer: &mut [u8]) -> Result<(), ProtocolError> {
        loop {
            let complete = if self.missing_args > 0 {
                self.arguments(buffer)?
            } else {
                match buffer.get(self.position) {
                    None => return Ok(()),
                    Some(b'*') => self.header(buffer)? && self.arguments(buffer)?,
                    Some(_) => self.inline(buffer)?,
                }
            };
            if !complete {
                let open = buffer.len() - self.consumed;
                if open > self.limits.max_command_bytes {
                    return Err(ProtocolError::new("command too large"));
                }
                return Ok(());
            }
            let found = self.ends.last().copied().unwrap_or(0);
            if self.spans.len() > found {
                self.ends.push(self.spans.len());
            }
            self.consumed = self.position;
        }
    }

    /// `*3\r\n`; true once it is whole.
    fn header(&mut self, buffer: &[u8]) -> Result<bool, ProtocolError> {
        let Some((line, next)) = line(buffer, self.position, "too big mbulk count string")? else {
            return Ok(false);
        };
        // The caller has seen the `*` that the line begins with.
        let count = integer(&line[1..])
            .filter(|count| *count <= self.limits.max_args as i64)
            .ok_or_else(|| ProtocolError::new("invalid multibulk length"))?;
        self.position = next;
        // Zero and negative counts are empty commands: skipped, as Redis does.
        self.missing_args = usize::try_from(count).unwrap_or(0);
        Ok(true)
    }

    /// `$3\r\nSET\r\n` as often as arguments are missing; true once all are there.
    fn arguments(&mut self, buffer: &[u8]) -> Result<bool, ProtocolError> {
        while self.missing_args > 0 {
            let bytes = if let Some(bytes) = self.bulk_bytes {
                bytes
            } else {
                let Some((line, next)) = line(buffer, self.position, "too big bulk count string")? else {
                    return Ok(false);
                };
                if line.first() != Some(&b'$') {
                    let got = char::from(line.first().copied().unwrap_or(b'\r')).escape_default();
                    return Err(ProtocolError::new(format!("expected '$', got '{got}'")));
                }
                let bytes = integer(&line[1..])
                    .and_then(|bytes| usize::try_from(bytes).ok())
                    .filter(|bytes| *bytes <= self.limits.max_command_bytes)
                    .ok_or_else(|| ProtocolError::new("invalid bulk length"))?;
                self.position = next;
                self.bulk_bytes = Some(bytes);
                bytes
            };
            let end = self.position + bytes;
            if end - self.consumed > self.limits.max_command_bytes {
                return Err(ProtocolError::new("command too large"));
            }
            if buffer.len() < end + 2 {
                return Ok(false);
            }
            self.spans.push(Span::new(self.position..end));
            self.position = end + 2;
            self.bulk_bytes = None;
            self.missing_args -= 1;
        }
        Ok(true)
    }

    /// A command typed as a line (`SET a "b c"`); true once the line is whole.
    fn inline(&mut self, buffer: &mut [u8]) -> Result<bool, ProtocolError> {
        let rest = &buffer[self.position..];
        let window = &rest[..rest.len().min(self.limits.max_inline_bytes)];
        let Some(length) = window.iter().position(|byte| *byte == b'\n') else {
            if rest.len() >= self.limits.max_inline_bytes {
                return Err(ProtocolError::new("too big inline request"));
            }
            return Ok(false);
        };
        let start = self.position;
        let line = &mut buffer[start..start + length];
        let spans = &mut self.spans;
        let split = split_line(line, |range| {
            spans.push(Span::new(start + range.start..start + range.end));
        });
        if split.is_none() {
            let found = self.ends.last().copied().unwrap_or(0);
            self.spans.truncate(found);
            return Err(ProtocolError::new("unbalanced quotes in request"));
        }
        self.position = start + length + 1;
        Ok(true)
    }
}

/// The longest header line: a type byte, a 64-bit number, and the line's end.
const MAX_HEADER_BYTES: usize = 32;

/// The line at `position` without its `\r\n`, and where the next one starts.
#[allow(clippy::type_complexity)]
fn line<'a>(
    buffer: &'a [u8],
    position: usize,
    too_long: &str,
) -> Result<Option<(&'a [u8], usize)>, ProtocolError> {
    let rest = buffer.get(position..).unwrap_or_default();
    let window = &rest[..rest.len().min(MAX_HEADER_BYTES)];
    match window.iter().position(|byte| *byte == b'\r') {
        Some(end) if rest.len() > end + 1 => {
            if rest[end + 1] == b'\n' && end > 0 {
                Ok(Some((&rest[..end], position + end + 2)))
            } else {
                Err(ProtocolError::new("expected a line that ends with \\r\\n"))
            }
        }
        None if rest.len() >= MAX_HEADER_BYTES => Err(ProtocolError::new(too_long)),
        _ => Ok(None),
    }
}

/// Whether an argument is this word, in upper or lower case.
pub fn is(argument: &[u8], word: &str) -> bool {
    argument.eq_ignore_ascii_case(word.as_bytes())
}

/// A decimal integer that fills `text`: what Redis accepts as one, so no sign `+`, no leading zeros, no blanks.
pub fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 19 || (digits[0] == b'0' && (digits.len() > 1 || negative)) {
        return None;
    }
    let mut magnitude = 0_u64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        // Nineteen digits fit into 64 bits.
        magnitude = magnitude * 10 + u64::from(digit - b'0');
    }
    if negative {
        0_i64.checked_sub_unsigned(magnitude)
    } else {
        i64::try_from(magnitude).ok()
    }
}

/// Splits a line into arguments, unescaping quoted ones in place, and reports the range of each. `None`: a quote is
/// not closed, or something follows a closing quote directly.
fn split_line(line: &mut [u8], mut found: impl FnMut(Range<usize>)) -> Option<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn small() -> Limits {
        Limits {
            max_args: 8,
            max_command_bytes: 256,
            max_inline_bytes: 64,
        }
    }

    /// Feeds `pieces` one after the other, as reads from a socket would come, and collects all commands.
    fn feed(limits: Limits, pieces: &[&[u8]]) -> (Vec<Vec<Vec<u8>>>, Option<String>) {
        let mut parser = Parser::new(limits);
        let mut buffer = Vec::new();
        let mut commands = Vec::new();
        for piece in pieces {
            buffer.extend_from_slice(piece);
            let outcome = parser.parse(&mut buffer);
            for index in 0..parser.len() {
                commands.push(
                    parser
                        .command(index, &buffer)
                        .from(0)
                        .map(<[u8]>::to_vec)
                        .collect(),
                );
            }
            if let Err(error) = outcome {
                return (commands, Some(error.to_string()));
            }
            buffer.drain(..parser.consumed());
            parser.clear();
        }
        (commands, None)
    }

    fn texts(commands: &[Vec<Vec<u8>>]) -> Vec<Vec<&str>> {
        commands
            .iter()
            .map(|args| args.iter().map(|arg| std::str::from_utf8(arg).unwrap()).collect())
            .collect()
    }

    #[test]
    fn a_pipeline_is_found_whole() {
        let (commands, error) = feed(
            Limits::default(),
            &[b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$0\r\n\r\n*2\r\n$3\r\nget\r\n$1\r\na\r\nPING\r\n"],
        );
        assert_eq!(
            texts(&commands),
            [vec!["SET", "a", ""], vec!["get", "a"], vec!["PING"]]
        );
        assert_eq!(error, None);
    }

    #[test]
    fn a_command_cut_anywhere_is_found_when_its_rest_comes() {
        let bytes = b"*3\r\n$3\r\nSET\r\n$3\r\nk\r\n\r\n$2\r\nvv\r\n*1\r\n$4\r\nPING\r\n";
        for cut in 0..bytes.len() {
            for second in cut..bytes.len() {
                let (commands, error) =
                    feed(small(), &[&bytes[..cut], &bytes[cut..second], &bytes[second..]]);
                assert_eq!(texts(&commands), [vec!["SET", "k\r\n", "vv"], vec!["PING"]]);
                assert_eq!(error, None);
            }
        }
    }

    #[test]
    fn empty_commands_are_skipped() {
        let (commands, error) = feed(small(), &[b"*0\r\n*-1\r\n\r\n  \r\n*1\r\n$4\r\nPING\r\n"]);
        assert_eq!(texts(&commands), [vec!["PING"]]);
        assert_eq!(error, None);
    }

    #[test]
    fn lines_are_split_and_unescaped_as_redis_does() {
        for (line, expected) in [
            ("set a b\r\n", Some(vec!["set", "a", "b"])),
            (
                "  set\t'a b' \"c\\x41\\n\\\"\"\n",
                Some(vec!["set", "a b", "cA\n\""]),
            ),
            ("set 'it\\'s' \"\"\n", Some(vec!["set", "it's", ""])),
            ("set \"open\r\n", None),
            ("set \"a\"b\r\n", None),
        ] {
            let (commands, error) = feed(small(), &[line.as_bytes()]);
            match expected {
                Some(expected) => assert_eq!(texts(&commands), [expected], "{line:?}"),
                None => assert!(error.unwrap().contains("unbalanced quotes"), "{line:?}"),
            }
        }
    }

    #[test]
    fn what_breaks_the_protocol_or_a_bound_is_named() {
        for (bytes, expected) in [
            (&b"*9\r\n"[..], "invalid multibulk length"),
            (b"*x\r\n", "invalid multibulk length"),
            (b"*1\r\n:1\r\n", "expected '$', got ':'"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"),
            (b"*1\r\n$999\r\n", "invalid bulk length"),
            (b"*2\r\n$200\r\n", ""),
            (b"*1\rx", "ends with"),
            (&[b'*'; 64], "too big mbulk count string"),
            (&[b'a'; 65], "too big inline request"),
        ] {
            let (commands, error) = feed(small(), &[bytes]);
            assert!(commands.is_empty());
            if expected.is_empty() {
                assert_eq!(error, None);
            } else {
                let error = error.unwrap();
                assert!(error.contains(expected), "{error} for {bytes:?}");
            }
        }
    }

    #[test]
    fn the_sum_of_arguments_is_bounded() {
        let mut bytes = b"*3\r\n".to_vec();
        for _ in 0..3 {
            bytes.extend_from_slice(b"$100\r\n");
            bytes.extend_from_slice(&[b'x'; 100]);
            bytes.extend_from_slice(b"\r\n");
        }
        assert!(feed(small(), &[&bytes]).1.unwrap().contains("too large"));
    }

    #[test]
    fn commands_before_an_error_are_kept() {
        let (commands, error) = feed(small(), &[b"PING\r\n*1\r\n$4\r\nPING\r\n*1\r\n!"]);
        assert_eq!(commands.len(), 2);
        assert_eq!(error, None);
        let (commands, error) = feed(small(), &[b"PING\r\n*1\r\n$4\r\nPING\r\n*1\r\n!\r\n"]);
        assert_eq!(commands.len(), 2);
        assert!(error.is_some());
    }

    #[test]
    fn integers_are_those_that_redis_accepts() {
        for (text, expected) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("-9223372036854775809", None),
            ("99999999999999999999", None),
            ("", None),
            ("-", None),
            ("-0", None),
            ("01", None),
            ("+1", None),
            (" 1", None),
        ] {
            assert_eq!(integer(text.as_bytes()), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_never_panic(pieces: Vec<Vec<u8>>) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            feed(small(), &pieces);
        }

        #[test]
        fn bytes_that_look_like_the_protocol_never_panic(
            bytes in "[*$0-9\\-\r\n a\"'\\\\x]{0,200}", cut in 0_usize..200,
        ) {
            let cut = cut.min(bytes.len());
            let whole = feed(small(), &[bytes.as_bytes()]);
            let pieces = feed(small(), &[&bytes.as_bytes()[..cut], &bytes.as_bytes()[cut..]]);
            prop_assert_eq!(whole.0, pieces.0);
        }

        #[test]
        fn every_command_comes_back(
            commands in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..6), 0..6),
            cut in 0_usize..2000,
        ) {
            let mut bytes = Vec::new();
            for command in &commands {
                bytes.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
                for arg in command {
                    bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
                    bytes.extend_from_slice(arg);
                    bytes.extend_from_slice(b"\r\n");
                }
            }
            let cut = cut.min(bytes.len());
            let (found, error) = feed(Limits::default(), &[&bytes[..cut], &bytes[cut..]]);
            prop_assert_eq!(error, None);
            prop_assert_eq!(found, commands);
        }
    }
}
