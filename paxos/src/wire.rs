//! Frames: how messages look on the wire.

use alloc::sync::Arc;

use bytes::Bytes;

use crate::{
    core::Message,
    types::{ClusterId, GroupId, NodeId, StorageId},
};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Small, urgent and in order: overtakes bulk.
    Control,
    /// Large and patient.
    Bulk,
}

/// A frame on its way out, encoded once for all receivers. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Outgoing {
    lane: Lane,
    parts: Arc<[Bytes]>,
    bytes: usize,
}

impl Outgoing {
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
}
