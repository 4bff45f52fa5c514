//! The arguments of a command, where they lie in the read buffer.

use std::ops::Range;

/// Where an argument lies in the buffer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    pub(super) start: u32,
    bytes: u32,
}

impl Span {
    pub(super) fn new(range: Range<usize>) -> Self {
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
    /// The arguments that lie at these places of the buffer.
    pub(super) const fn new(buffer: &'a [u8], spans: &'a [Span]) -> Self {
        Self { buffer, spans }
    }

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

/// Whether an argument is this word, in upper or lower case.
pub fn is(argument: &[u8], word: &str) -> bool {
    argument.eq_ignore_ascii_case(word.as_bytes())
}
