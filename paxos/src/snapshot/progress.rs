//! How far a snapshot has come that is fetched from a peer, the same in every store.

use alloc::format;

use super::{Chunk, Received, SnapshotError};
use crate::types::{GroupId, Slot};

/// What is stored of a snapshot: so many bytes from its beginning on, without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) upto: Slot,
    pub(super) total: u64,
    pub(super) bytes: u64,
}

impl Progress {
    /// Whether the piece belongs to this very snapshot.
    pub(super) fn is_of(&self, upto: Slot, chunk: &Chunk) -> bool {
        (self.upto, self.total) == (upto, chunk.total)
    }

    /// Whether the piece begins just where the stored ones end: then it is to be appended. Else it changes nothing.
    pub(super) fn continues(
        &self,
        group: GroupId,
        offset: u64,
        chunk: &Chunk,
    ) -> Result<bool, SnapshotError> {
        let room = self.total.saturating_sub(self.bytes);
        if offset == self.bytes && chunk.data.len() as u64 > room {
            return Err(SnapshotError::Damaged {
                group,
                upto: self.upto,
                detail: format!("a peer sent more than its {} bytes", self.total),
            });
        }
        Ok(offset == self.bytes)
    }

    /// What to say of it, as long as there is more to come.
    pub(super) fn unfinished(&self) -> Option<Received> {
        (self.bytes < self.total).then_some(Received::UpTo(self.bytes))
    }
}
