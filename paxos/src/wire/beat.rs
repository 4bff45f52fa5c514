//! Beats: what nodes, not replicas, say to each other. They have frames of their own kind and belong to no group.

use alloc::string::ToString;

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};

use super::{FrameWriter, Lane, Outgoing, PREFIX_BYTES, Prefix, WireError, body, verify};
use crate::{
    core::peers::{Beat, Echo},
    types::{GroupId, Identity, Incarnation},
};

/// The number of the kind, far from those of the messages.
const KIND: u8 = 64;

#[derive(Serialize, Deserialize)]
struct Fields {
    incarnation: Incarnation,
    sent: u64,
    echo: Option<EchoFields>,
}

#[derive(Serialize, Deserialize)]
struct EchoFields {
    incarnation: Incarnation,
    sent: u64,
    held: u64,
}

impl Outgoing {
    /// Encodes a beat of this node. Never fails: a beat is small.
    pub fn encode_beat(sender: Identity, beat: &Beat) -> Result<Self, WireError> {
        let mut writer = FrameWriter::new(0);
        writer.header(&Fields {
            incarnation: beat.incarnation,
            sent: beat.sent_micros,
            echo: beat.echo.map(|echo| EchoFields {
                incarnation: echo.incarnation,
                sent: echo.sent_micros,
                held: echo.held_micros,
            }),
        });
        let prefix = Prefix {
            kind: KIND,
            cluster: sender.cluster,
            from: sender.node,
            storage: sender.storage,
            group: GroupId(0),
            header_bytes: 0,
        };
        writer.finish(&prefix, Lane::Control)
    }
}

/// Whether a frame holds a beat, and goes to [`decode_beat`] instead of [`decode`](super::decode).
pub fn is_beat(frame: &[u8]) -> bool {
    frame.get(3) == Some(&KIND)
}

/// Decodes one whole frame that holds a beat.
pub fn decode_beat(frame: Bytes) -> Result<(Prefix, Beat), WireError> {
    let prefix = verify(&frame)?;
    if prefix.kind != KIND {
        return Err(WireError::UnknownKind(prefix.kind));
    }
    let mut rest = frame;
    rest.advance(PREFIX_BYTES);
    if prefix.header_bytes != rest.len() {
        let detail = "bytes follow the header's fields".to_string();
        return Err(WireError::Malformed {
            message: "Beat",
            detail,
        });
    }
    let fields: Fields = body::fields("Beat", &rest)?;
    let beat = Beat {
        incarnation: fields.incarnation,
        sent_micros: fields.sent,
        echo: fields.echo.map(|echo| Echo {
            incarnation: echo.incarnation,
            sent_micros: echo.sent,
            held_micros: echo.held,
        }),
    };
    Ok((prefix, beat))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ClusterId, NodeId, StorageId};

    #[test]
    fn a_beat_comes_back_as_it_was_and_is_no_message() {
        let sender = Identity {
            cluster: ClusterId(1),
            node: NodeId(2),
            storage: StorageId(3),
        };
        let echo = Echo {
            incarnation: Incarnation(4),
            sent_micros: 5,
            held_micros: 6,
        };
        for echo in [None, Some(echo)] {
            let beat = Beat {
                incarnation: Incarnation(7),
                sent_micros: 8,
                echo,
            };
            let frame = Outgoing::encode_beat(sender, &beat).unwrap().to_bytes();
            assert!(is_beat(&frame) && frame.len() < 128, "{}", frame.len());
            let (prefix, decoded) = decode_beat(frame.clone()).unwrap();
            assert_eq!((prefix.from, decoded), (NodeId(2), beat));
            assert_eq!(
                super::super::decode(frame.clone()),
                Err(WireError::UnknownKind(KIND))
            );
            for end in 0..frame.len() {
                assert!(decode_beat(frame.slice(..end)).is_err());
            }
        }
    }
}
