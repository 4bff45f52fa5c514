//! Requests: an incremental parser that finds every complete command in a read buffer without copying anything.
//!
//! A [`Parser`] keeps its place when a command is cut off by the end of what has arrived, so a large command that
//! comes in many pieces is looked at once. Arguments are spans of the caller's buffer.

use super::{
    args::{Args, Span},
    inline::split_line,
    number::integer,
};

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
        Args::new(buffer, &self.spans[start..self.ends[index]])
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

#[cfg(test)]
mod tests;
