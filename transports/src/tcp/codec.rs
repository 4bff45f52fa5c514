//! From bytes to frames.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use paxos::wire::{self, WireError};
use tokio_util::codec::Decoder;

/// What a side sends that has nothing to say, so that the other one knows that it lives.
pub(super) const SIGN_OF_LIFE: &[u8] = b"Px..";

/// How large the buffer of a connection is, in bytes, unless a frame is larger.
pub(super) const BUFFER_BYTES: usize = 64 << 10;

/// What a connection carries.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    SignOfLife,
    /// A whole frame with a good checksum, and its prefix.
    Frame(wire::Prefix, Bytes),
}

/// Cuts a stream into frames without copying.
#[derive(Debug)]
pub(super) struct FrameCodec {
    pub(super) max_frame_bytes: usize,
}

/// Why nothing more can be read from a connection.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The connection broke.
    Io(io::Error),
    /// The bytes are not what they should be.
    Wire(WireError),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Decoder for FrameCodec {
    type Item = Item;
    type Error = ReadError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Item>, ReadError> {
        if buffer.len() < SIGN_OF_LIFE.len() {
            return Ok(None);
        }
        if buffer.starts_with(SIGN_OF_LIFE) {
            buffer.advance(SIGN_OF_LIFE.len());
            return Ok(Some(Item::SignOfLife));
        }
        let Some(length) = wire::frame_length(buffer, self.max_frame_bytes).map_err(ReadError::Wire)? else {
            return Ok(None);
        };
        if buffer.len() < length {
            // Room grows with what has really arrived, not with what was announced.
            buffer.reserve((length - buffer.len()).min(buffer.len().max(BUFFER_BYTES)));
            return Ok(None);
        }
        let frame = buffer.split_to(length).freeze();
        let prefix = wire::verify(&frame).map_err(ReadError::Wire)?;
        Ok(Some(Item::Frame(prefix, frame)))
    }
}

#[cfg(test)]
mod tests {
    use paxos::{ClusterId, GroupId, NodeId, StorageId, core::Message, transport::Outgoing, wire::Envelope};

    use super::*;

    fn frame(token: u64) -> Bytes {
        let envelope = Envelope {
            cluster: ClusterId(1),
            from: NodeId(2),
            storage: StorageId(3),
            group: GroupId(4),
            message: Message::ReadIndex { token },
        };
        Outgoing::encode(&envelope).unwrap().to_bytes()
    }

    fn codec() -> FrameCodec {
        FrameCodec {
            max_frame_bytes: 1 << 20,
        }
    }

    #[test]
    fn frames_and_signs_of_life_come_out_however_the_bytes_are_cut() {
        let expected = [frame(1), frame(2), frame(3)];
        let stream = [
            &expected[0],
            SIGN_OF_LIFE,
            &expected[1],
            SIGN_OF_LIFE,
            SIGN_OF_LIFE,
            &expected[2],
        ]
        .concat();
        for piece in 1..stream.len() {
            let (mut buffer, mut frames, mut signs) = (BytesMut::new(), Vec::new(), 0);
            for bytes in stream.chunks(piece) {
                buffer.extend_from_slice(bytes);
                while let Some(item) = codec().decode(&mut buffer).unwrap() {
                    match item {
                        Item::SignOfLife => signs += 1,
                        Item::Frame(prefix, frame) => {
                            assert_eq!(prefix.from, NodeId(2));
                            frames.push(frame);
                        }
                    }
                }
            }
            assert_eq!((frames.as_slice(), signs), (&expected[..], 3));
        }
    }

    #[test]
    fn an_announced_length_alone_takes_no_memory() {
        let mut buffer = BytesMut::from(&frame(1)[..]);
        buffer[4..8].copy_from_slice(&((1 << 20) as u32).to_le_bytes());
        assert!(matches!(codec().decode(&mut buffer), Ok(None)));
        assert!(buffer.capacity() <= 2 * BUFFER_BYTES, "{}", buffer.capacity());
    }

    #[test]
    fn damage_strangers_and_oversized_frames_are_errors() {
        let mut damaged = BytesMut::from(&frame(1)[..]);
        *damaged.last_mut().unwrap() ^= 1;
        let mut stranger = BytesMut::from("GET / HTTP/1.1\r\n");
        let mut oversized = BytesMut::from(&frame(1)[..]);
        oversized[4..8].copy_from_slice(&((1 << 20) as u32 + 1).to_le_bytes());
        for (buffer, expected) in [
            (&mut damaged, "damaged"),
            (&mut stranger, "not a frame"),
            (&mut oversized, "at most"),
        ] {
            match codec().decode(buffer) {
                Err(ReadError::Wire(error)) => assert!(error.to_string().contains(expected), "{error}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
