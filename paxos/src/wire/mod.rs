//! Frames: how messages look on the wire.
//!
//! ```text
//! frame  = prefix, header, table, values
//! prefix = magic "Px", version u8, kind u8, frame length u32, crc32c u32, header length u32,
//!          cluster u64, from u64, storage u64, group u32                       (44 bytes, little-endian)
//! header = the message's fields, a CBOR map by name
//! table  = one row of fixed size for each entry or command of the message: its length and what else belongs to it
//! values = the entries' or commands' bytes, one after the other
//! ```
//!
//! The checksum covers the whole frame but itself. Everything that a transport has to check stands in the prefix
//! ([`verify`]), so only the node looks at the rest ([`decode`]). Field names let a newer node add fields that an older
//! one skips; what an older one cannot understand gets a new kind, which the older one refuses. Large values are
//! neither copied when a frame is encoded nor when it is decoded.

mod beat;
mod body;
#[cfg(test)]
mod tests;

use alloc::{string::String, sync::Arc, vec::Vec};

use bytes::{Buf, Bytes};

pub use self::beat::{decode_beat, is_beat};
use crate::{
    core::Message,
    types::{ClusterId, GroupId, NodeId, StorageId},
};

/// The version of the frame format. Nodes that speak different versions refuse each other.
pub const VERSION: u8 = 1;

/// The largest frame there is, in bytes. A transport may allow less.
pub const MAX_FRAME_BYTES: usize = 64 << 20;

/// The length of the fixed part that begins every frame, in bytes.
pub const PREFIX_BYTES: usize = 44;

/// How many bytes of a frame [`frame_length`] needs.
pub const LENGTH_BYTES: usize = 8;

const MAGIC: [u8; 2] = *b"Px";
const CHECKSUM: core::ops::Range<usize> = 8..12;

/// Values up to this length, in bytes, are copied next to their header: that costs less than one more piece in a
/// vectored write.
const INLINE_BYTES: usize = 1024;

/// A message with everything that must travel around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The sender's cluster.
    pub cluster: ClusterId,
    /// The sending node.
    pub from: NodeId,
    /// The sender's disk.
    pub storage: StorageId,
    /// The group that the message belongs to.
    pub group: GroupId,
    /// The message.
    pub message: Message,
}

/// Which of the two connections to a peer a frame uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Small, urgent and in order: overtakes bulk.
    Control,
    /// Large and patient.
    Bulk,
}

impl Lane {
    /// Both lanes, the urgent one first.
    pub const ALL: [Self; 2] = [Self::Control, Self::Bulk];
}

/// What is wrong with a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The bytes do not begin as a frame does: the sender speaks another protocol.
    #[error("not a frame: it does not begin with \"Px\"")]
    NotAFrame,
    /// The sender speaks another version of the protocol.
    #[error("frame of protocol version {found}, this node speaks version {VERSION}")]
    Version {
        /// The frame's version.
        found: u8,
    },
    /// The frame is larger than is allowed.
    #[error("frame of {bytes} bytes, at most {max} are allowed")]
    TooLarge {
        /// The frame's length.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// The frame's length is not the one that its prefix tells.
    #[error("frame of {found} bytes tells that it has {told}")]
    Length {
        /// The number of bytes at hand.
        found: usize,
        /// The number in the prefix.
        told: usize,
    },
    /// The frame was damaged on its way.
    #[error("frame is damaged: its checksum is {told:08x}, its bytes have {found:08x}")]
    Checksum {
        /// The checksum of the bytes at hand.
        found: u32,
        /// The checksum in the prefix.
        told: u32,
    },
    /// No message of this kind is known; a newer node sent it, as a rule.
    #[error("message of unknown kind {0}")]
    UnknownKind(u8),
    /// The message's contents contradict the format although the checksum holds: a defect of the sender.
    #[error("malformed {message} message: {detail}")]
    Malformed {
        /// The message's name.
        message: &'static str,
        /// What is wrong.
        detail: String,
    },
}

/// A frame on its way out, encoded once for all receivers. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Outgoing {
    lane: Lane,
    parts: Arc<[Bytes]>,
    bytes: usize,
}

impl Outgoing {
    /// Encodes a message. Fails only with [`WireError::TooLarge`].
    pub fn encode(envelope: &Envelope) -> Result<Self, WireError> {
        let mut writer = FrameWriter::new(body::size_hint(&envelope.message));
        let kind = body::encode(&envelope.message, &mut writer);
        let prefix = Prefix {
            kind,
            cluster: envelope.cluster,
            from: envelope.from,
            storage: envelope.storage,
            group: envelope.group,
            header_bytes: 0,
        };
        let lane = if envelope.message.is_bulk() {
            Lane::Bulk
        } else {
            Lane::Control
        };
        writer.finish(&prefix, lane)
    }

    /// Which connection to use.
    pub const fn lane(&self) -> Lane {
        self.lane
    }

    /// The frame in pieces, for a vectored write; their concatenation is the frame.
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// The length of the whole frame in bytes.
    pub const fn len(&self) -> usize {
        self.bytes
    }

    /// Whether the frame has no bytes; never true of an encoded message.
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The frame in one piece: what [`decode`] takes. Copies unless the frame has a single part.
    pub fn to_bytes(&self) -> Bytes {
        match &*self.parts {
            [whole] => whole.clone(),
            parts => parts.concat().into(),
        }
    }
}

/// The fixed part that begins every frame: what a transport needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The number of the message's kind.
    pub kind: u8,
    /// The sender's cluster.
    pub cluster: ClusterId,
    /// The sending node.
    pub from: NodeId,
    /// The sender's disk.
    pub storage: StorageId,
    /// The group that the message belongs to.
    pub group: GroupId,
    header_bytes: usize,
}

/// The length in bytes of the frame that begins with `bytes`, or `None` if these are fewer than [`LENGTH_BYTES`].
///
/// For codecs. Fails as early as the bytes tell that they begin no frame of at most `max_frame_bytes`.
pub fn frame_length(bytes: &[u8], max_frame_bytes: usize) -> Result<Option<usize>, WireError> {
    if !bytes
        .iter()
        .zip(MAGIC)
        .all(|(found, expected)| *found == expected)
    {
        return Err(WireError::NotAFrame);
    }
    if let Some(version) = bytes.get(2)
        && *version != VERSION
    {
        return Err(WireError::Version { found: *version });
    }
    let Some(length) = bytes.get(4..LENGTH_BYTES) else {
        return Ok(None);
    };
    let length = { length }.get_u32_le() as usize;
    let max = max_frame_bytes.min(MAX_FRAME_BYTES);
    if length > max {
        return Err(WireError::TooLarge { bytes: length, max });
    }
    if length < PREFIX_BYTES {
        return Err(WireError::Length {
            found: PREFIX_BYTES,
            told: length,
        });
    }
    Ok(Some(length))
}

/// Checks that `frame` is one whole frame whose checksum holds, and reads its prefix.
pub fn verify(frame: &[u8]) -> Result<Prefix, WireError> {
    let told = frame_length(frame, MAX_FRAME_BYTES)?.unwrap_or(PREFIX_BYTES);
    if frame.len() != told {
        return Err(WireError::Length {
            found: frame.len(),
            told,
        });
    }
    let (mut prefix, rest) = frame.split_at(PREFIX_BYTES);
    let found = checksum(prefix, [rest]);
    prefix.advance(3);
    let kind = prefix.get_u8();
    prefix.advance(4);
    let told = prefix.get_u32_le();
    if found != told {
        return Err(WireError::Checksum { found, told });
    }
    Ok(Prefix {
        kind,
        header_bytes: prefix.get_u32_le() as usize,
        cluster: ClusterId(prefix.get_u64_le()),
        from: NodeId(prefix.get_u64_le()),
        storage: StorageId(prefix.get_u64_le()),
        group: GroupId(prefix.get_u32_le()),
    })
}

/// Decodes one whole frame. The entries and commands in the result are slices of `frame`.
pub fn decode(frame: Bytes) -> Result<Envelope, WireError> {
    let prefix = verify(&frame)?;
    let mut rest = frame;
    rest.advance(PREFIX_BYTES);
    let message = body::decode(prefix.kind, prefix.header_bytes, rest)?;
    Ok(Envelope {
        cluster: prefix.cluster,
        from: prefix.from,
        storage: prefix.storage,
        group: prefix.group,
        message,
    })
}

/// The checksum of a frame that begins with `start` (at least its prefix) and goes on with `rest`.
fn checksum<'a>(start: &[u8], rest: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let before = crc32c::crc32c(&start[..CHECKSUM.start]);
    let after = crc32c::crc32c_append(before, &start[CHECKSUM.end..]);
    rest.into_iter().fold(after, crc32c::crc32c_append)
}

/// Builds a frame: small pieces side by side in one buffer, large values as they are.
struct FrameWriter {
    buffer: Vec<u8>,
    /// Large values, and after how many bytes of the buffer each belongs.
    large: Vec<(usize, Bytes)>,
    header_end: usize,
}

impl FrameWriter {
    fn new(size_hint: usize) -> Self {
        let mut buffer = Vec::with_capacity(PREFIX_BYTES + size_hint);
        buffer.resize(PREFIX_BYTES, 0);
        Self {
            buffer,
            large: Vec::new(),
            header_end: PREFIX_BYTES,
        }
    }

    fn header(&mut self, fields: &impl serde::Serialize) {
        ciborium::into_writer(fields, &mut self.buffer).expect("plain fields can be encoded into memory");
        self.header_end = self.buffer.len();
    }

    fn value(&mut self, value: &Bytes) {
        if value.len() <= INLINE_BYTES {
            self.buffer.extend_from_slice(value);
        } else {
            self.large.push((self.buffer.len(), value.clone()));
        }
    }

    /// Puts the prefix in front; its `header_bytes` are filled in here.
    fn finish(mut self, prefix: &Prefix, lane: Lane) -> Result<Outgoing, WireError> {
        let bytes = self.buffer.len() + self.large.iter().map(|(_, value)| value.len()).sum::<usize>();
        if bytes > MAX_FRAME_BYTES {
            return Err(WireError::TooLarge {
                bytes,
                max: MAX_FRAME_BYTES,
            });
        }
        let mut start = Vec::with_capacity(PREFIX_BYTES);
        start.extend_from_slice(&MAGIC);
        start.extend_from_slice(&[VERSION, prefix.kind]);
        start.extend_from_slice(&(bytes as u32).to_le_bytes());
        start.extend_from_slice(&[0; 4]);
        start.extend_from_slice(&((self.header_end - PREFIX_BYTES) as u32).to_le_bytes());
        start.extend_from_slice(&prefix.cluster.0.to_le_bytes());
        start.extend_from_slice(&prefix.from.0.to_le_bytes());
        start.extend_from_slice(&prefix.storage.0.to_le_bytes());
        start.extend_from_slice(&prefix.group.0.to_le_bytes());
        self.buffer[..PREFIX_BYTES].copy_from_slice(&start);

        let first_cut = self.large.first().map_or(self.buffer.len(), |(at, _)| *at);
        let checksum = checksum(&self.buffer[..first_cut], self.pieces_from(first_cut));
        self.buffer[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
        Ok(Outgoing {
            lane,
            parts: self.into_parts(),
            bytes,
        })
    }

    /// All pieces of the frame from the first large value on.
    fn pieces_from(&self, first_cut: usize) -> impl Iterator<Item = &[u8]> {
        let mut from = first_cut;
        let (buffer, large) = (&self.buffer, &self.large);
        let ends = large.iter().skip(1).map(|(at, _)| *at).chain([buffer.len()]);
        large.iter().zip(ends).flat_map(move |((_, value), end)| {
            let between = &buffer[from..end];
            from = end;
            [&value[..], between]
        })
    }

    fn into_parts(self) -> Arc<[Bytes]> {
        let mut buffer = Bytes::from(self.buffer);
        if self.large.is_empty() {
            return Arc::new([buffer]);
        }
        let mut parts = Vec::with_capacity(2 * self.large.len() + 1);
        let mut taken = 0;
        for (at, value) in self.large {
            if at > taken {
                parts.push(buffer.split_to(at - taken));
                taken = at;
            }
            parts.push(value);
        }
        if !buffer.is_empty() {
            parts.push(buffer);
        }
        parts.into()
    }
}
