//! The bytes of a snapshot, the same in every store and on the wire.
//!
//! ```text
//! magic     8 bytes, the last one is the format's version
//! header    length u32, CBOR, checksum u32
//! blocks    length u32 (not 0), bytes, checksum u32          any number of them: the machine's state
//! end       0 u32, length of the state u64, checksum u32     nothing follows
//! ```
//!
//! Numbers are little-endian. Every checksum is the crc32c over all bytes of the file before it, other checksums left
//! out: so each piece is checked by itself, blocks that are lost, repeated or exchanged are noticed, and the last
//! checksum is one over the whole.

use alloc::{boxed::Box, format, string::String, vec, vec::Vec};
use std::io::{self, Read, Write};

use super::{Chunk, SnapshotError, SnapshotHeader};
use crate::{
    state_machine::SnapshotSource,
    types::{GroupId, Slot},
};

const MAGIC: [u8; 8] = *b"paxsnap\x01";

/// How much of the state one checksum is for.
const BLOCK_BYTES: usize = 64 << 10;

/// The most that is believed of a length on a disk or from a peer.
const MAX_HEADER_BYTES: usize = 64 << 20;
const MAX_BLOCK_BYTES: usize = 16 << 20;

/// Writes a snapshot.
pub(super) fn encode(
    header: &SnapshotHeader,
    source: Box<dyn SnapshotSource>,
    to: &mut dyn Write,
) -> Result<(), EncodeError> {
    let mut blocks = Blocks {
        to,
        checksum: 0,
        block: Vec::with_capacity(BLOCK_BYTES),
        state_bytes: 0,
        failed: None,
    };
    let header = header.encode();
    blocks.begin(&header).map_err(EncodeError::Store)?;
    let written = source.write_to(&mut blocks);
    // A source may swallow an error of the store.
    if let Some(error) = blocks.failed.take() {
        return Err(EncodeError::Store(error));
    }
    written.map_err(EncodeError::Source)?;
    blocks.end().map_err(EncodeError::Store)
}

/// Who failed.
#[derive(Debug)]
pub(super) enum EncodeError {
    Store(io::Error),
    Source(io::Error),
}

impl EncodeError {
    pub(super) fn when(self, doing: impl FnOnce() -> String) -> SnapshotError {
        match self {
            Self::Store(error) => SnapshotError::io(doing(), error),
            Self::Source(error) => SnapshotError::Source(format!("{error}")),
        }
    }
}

struct Blocks<'a> {
    to: &'a mut dyn Write,
    checksum: u32,
    block: Vec<u8>,
    state_bytes: u64,
    failed: Option<io::Error>,
}

impl Blocks<'_> {
    fn begin(&mut self, header: &[u8]) -> io::Result<()> {
        let length = u32::try_from(header.len())
            .ok()
            .filter(|length| *length as usize <= MAX_HEADER_BYTES);
        let length = length.ok_or_else(|| io::Error::other("the snapshot's header is too large"))?;
        self.put(&[&MAGIC, &length.to_le_bytes(), header])
    }

    fn flush_block(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        self.state_bytes += self.block.len() as u64;
        let block = core::mem::take(&mut self.block);
        // A block has at most `BLOCK_BYTES`.
        let written = self.put(&[&(block.len() as u32).to_le_bytes(), &block]);
        self.block = block;
        self.block.clear();
        written
    }

    fn end(mut self) -> io::Result<()> {
        self.flush_block()?;
        let state_bytes = self.state_bytes;
        self.put(&[&0_u32.to_le_bytes(), &state_bytes.to_le_bytes()])
    }

    /// These bytes and a checksum, in one write.
    fn put(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let mut bytes = parts.concat();
        self.checksum = crc32c::crc32c_append(self.checksum, &bytes);
        bytes.extend(self.checksum.to_le_bytes());
        self.to.write_all(&bytes)
    }
}

impl Write for Blocks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed.is_some() {
            return Err(io::Error::other("an earlier write failed"));
        }
        let room = BLOCK_BYTES - self.block.len();
        let taken = bytes.len().min(room);
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK_BYTES
            && let Err(error) = self.flush_block()
        {
            let kind = error.kind();
            self.failed = Some(error);
            return Err(kind.into());
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a snapshot, checking all that it reads.
#[derive(Debug)]
pub(super) struct Decoder<R> {
    from: R,
    checksum: u32,
    /// The bytes up to here are good.
    verified_bytes: u64,
    state_bytes: u64,
    block: Vec<u8>,
    given: usize,
    ended: bool,
}

/// Another version of this program wrote it: no damage.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("it has format {found}, this program reads {}", MAGIC[7])]
struct OtherFormat {
    found: u8,
}

/// What an error of reading says about the snapshot itself; `None` if it is the system that refused something.
pub(super) fn finding(group: GroupId, upto: Slot, error: &io::Error) -> Option<SnapshotError> {
    let other = error.get_ref().and_then(|inner| inner.downcast_ref());
    if let Some(OtherFormat { found }) = other {
        return Some(SnapshotError::WrongFormat {
            group,
            upto,
            found: *found,
            expected: MAGIC[7],
        });
    }
    let detail = match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early".into(),
        io::ErrorKind::InvalidData => format!("{error}"),
        _ => return None,
    };
    Some(SnapshotError::Damaged { group, upto, detail })
}

fn damaged(detail: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail.into())
}

impl<R: Read> Decoder<R> {
    fn new(from: R) -> Self {
        Self {
            from,
            checksum: 0,
            verified_bytes: 0,
            state_bytes: 0,
            block: Vec::new(),
            given: 0,
            ended: false,
        }
    }

    /// At the beginning: reads the header, which must be that of this snapshot.
    pub(super) fn open(from: R, group: GroupId, upto: Slot) -> io::Result<(Self, SnapshotHeader)> {
        let mut decoder = Self::new(from);
        let header = decoder.header()?;
        if (header.group, header.upto) != (group, upto) {
            return Err(damaged(format!(
                "its header is that of group {} as of slot {}",
                header.group, header.upto
            )));
        }
        Ok((decoder, header))
    }

    fn header(&mut self) -> io::Result<SnapshotHeader> {
        let magic: [u8; 8] = self.number()?;
        if magic[..7] != MAGIC[..7] {
            return Err(damaged("it is not a snapshot"));
        }
        if magic == MAGIC {
            return self.rest_of_header();
        }
        // If all but the version is as this version writes it, it is the version that is damaged.
        self.checksum = crc32c::crc32c(&MAGIC);
        Err(match self.rest_of_header() {
            Ok(_) => damaged("its version is damaged"),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                io::Error::new(io::ErrorKind::Unsupported, OtherFormat { found: magic[7] })
            }
            Err(error) => error,
        })
    }

    fn rest_of_header(&mut self) -> io::Result<SnapshotHeader> {
        let length = u32::from_le_bytes(self.number()?) as usize;
        if length > MAX_HEADER_BYTES {
            return Err(damaged(format!("its header claims {length} bytes")));
        }
        let bytes = self.bytes(length)?;
        self.check(12 + length)?;
        SnapshotHeader::decode(&bytes).map_err(|error| damaged(format!("{error}")))
    }

    fn next_block(&mut self) -> io::Result<()> {
        self.given = 0;
        self.block.clear();
        let length = u32::from_le_bytes(self.number()?) as usize;
        if length > MAX_BLOCK_BYTES {
            return Err(damaged(format!("a block claims {length} bytes")));
        }
        if length == 0 {
            return self.end();
        }
        let block = self.bytes(length)?;
        self.check(4 + length)?;
        self.state_bytes += length as u64;
        self.block = block;
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        let state_bytes = u64::from_le_bytes(self.number()?);
        self.check(12)?;
        if state_bytes != self.state_bytes {
            return Err(damaged("its length is not what its end says"));
        }
        if self.from.read(&mut [0])? != 0 {
            return Err(damaged("bytes follow its end"));
        }
        self.ended = true;
        Ok(())
    }

    fn number<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes)?;
        self.checksum = crc32c::crc32c_append(self.checksum, &bytes);
        Ok(bytes)
    }

    /// Asks for no more memory than there are bytes.
    fn bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length.min(BLOCK_BYTES));
        if (&mut self.from).take(length as u64).read_to_end(&mut bytes)? < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.checksum = crc32c::crc32c_append(self.checksum, &bytes);
        Ok(bytes)
    }

    /// The checksum after a piece of this length.
    fn check(&mut self, length: usize) -> io::Result<()> {
        let expected = self.checksum;
        let mut bytes = [0; 4];
        self.from.read_exact(&mut bytes)?;
        if u32::from_le_bytes(bytes) != expected {
            return Err(damaged(format!(
                "a checksum does not match after byte {}",
                self.verified_bytes
            )));
        }
        self.verified_bytes += length as u64 + 4;
        Ok(())
    }

    fn drain(&mut self) -> io::Result<()> {
        while !self.ended {
            self.next_block()?;
        }
        Ok(())
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if to.is_empty() {
            return Ok(0);
        }
        while self.given == self.block.len() && !self.ended {
            self.next_block()?;
        }
        let rest = self.block.get(self.given..).unwrap_or_default();
        let taken = rest.len().min(to.len());
        to[..taken].copy_from_slice(&rest[..taken]);
        self.given += taken;
        Ok(taken)
    }
}

/// Reads a whole snapshot, which must be this one.
pub(super) fn verify(from: impl Read, group: GroupId, upto: Slot) -> io::Result<SnapshotHeader> {
    let (mut decoder, header) = Decoder::open(from, group, upto)?;
    decoder.drain()?;
    Ok(header)
}

/// How many bytes from the beginning on are good, of a snapshot that need not be complete.
pub(super) fn verified_bytes(from: impl Read) -> u64 {
    let mut decoder = Decoder::new(from);
    if decoder.header().is_ok() {
        // Where it fails is what is asked for.
        let _ = decoder.drain();
    }
    decoder.verified_bytes
}

/// Up to `max_bytes` of `total`, from `offset` on; what the reader at that offset gives.
pub(super) fn read_piece(
    mut from: impl Read,
    total: u64,
    offset: u64,
    max_bytes: usize,
) -> io::Result<Chunk> {
    let length = usize::try_from(total.saturating_sub(offset))
        .unwrap_or(usize::MAX)
        .min(max_bytes);
    let mut data = vec![0; length];
    from.read_exact(&mut data)?;
    Ok(Chunk {
        total,
        data: data.into(),
    })
}
