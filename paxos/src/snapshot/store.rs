//! The `SnapshotStore` trait: where snapshots are kept.

use alloc::{boxed::Box, string::String, sync::Arc, vec::Vec};
use core::time::Duration;
use std::io;

use bytes::Bytes;

use super::SnapshotHeader;
use crate::{
    state_machine::SnapshotSource,
    types::{GroupId, Slot},
};

/// Keeps the snapshots of a node's groups: a few of each, the newest ones, and what has come so far of one that is being
/// fetched from a peer.
///
/// A snapshot here is a run of bytes: the [`SnapshotHeader`], the machine's state, and checksums over both, in a format
/// that all stores share (see [`FileSnapshots`](super::FileSnapshots)). Peers get just these bytes, so that every
/// receiver checks what the first writer wrote.
///
/// # Calls
///
/// From several threads at once, on which the calls may block. For one group there is at any time at most one call of
/// [`save`](Self::save) and one of [`store_chunk`](Self::store_chunk), and any number of the others.
///
/// # What a crash leaves
///
/// A crash (`kill -9`, power failure) leaves every snapshot whose [`save`](Self::save), or last
/// [`store_chunk`](Self::store_chunk), had returned, and of any other one either all or nothing that is ever given out.
///
/// # Errors
///
/// An error of [`save`](Self::save) or [`store_chunk`](Self::store_chunk) leaves the older snapshots as they were. The
/// caller may try again later, with another snapshot: space may have been freed.
pub trait SnapshotStore: Send + Sync + 'static {
    /// The newest snapshot of the group that is whole, and the damaged ones that are newer. Every byte of it is verified,
    /// so it takes its time; called when a group is started. A newer one in the format of another version of the program
    /// is no damage: [`SnapshotError::WrongFormat`].
    fn newest(&self, group: GroupId) -> Result<Found, SnapshotError>;

    /// Writes a snapshot; on return it is durable. Then drops all but the newest few; one that a peer still fetches
    /// ([`read_chunk`](Self::read_chunk)) or that is being [read](Self::open) is not dropped under it.
    fn save(&self, header: &SnapshotHeader, source: Box<dyn SnapshotSource>) -> Result<(), SnapshotError>;

    /// The machine's state in a snapshot, for [`StateMachine::restore`](crate::StateMachine::restore). Damage is an error
    /// of the reader, never data and never an early end.
    fn open(&self, group: GroupId, upto: Slot) -> Result<Box<dyn io::Read + Send>, SnapshotError>;

    /// A piece of a snapshot, for a peer: up to `max_bytes` from `offset` on, empty at and beyond the end.
    fn read_chunk(
        &self,
        group: GroupId,
        upto: Slot,
        offset: u64,
        max_bytes: usize,
    ) -> Result<Chunk, SnapshotError>;

    /// Takes in a piece of a peer's snapshot. It is appended if it begins just where what is stored of that snapshot
    /// ends, else it changes nothing. A piece at offset 0 of a snapshot with another slot or another length begins anew
    /// and drops what was stored before: there is one at a time.
    ///
    /// What is stored survives a restart as far as it can be verified. When the last piece is there, the whole is
    /// verified, made durable, and counts as a snapshot of this node; on any error then, the pieces are dropped.
    fn store_chunk(
        &self,
        group: GroupId,
        upto: Slot,
        offset: u64,
        chunk: Chunk,
    ) -> Result<Received, SnapshotError>;

    /// Drops everything that is kept for the group; on return that is durable. After an error anything of it may be left,
    /// or come back after a crash.
    fn remove_group(&self, group: GroupId) -> Result<(), SnapshotError>;
}

/// What a store holds for a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The newest whole snapshot.
    pub newest: Option<SnapshotHeader>,
    /// Newer ones that cannot be used: as of which slot, and why. They are set aside and never looked at again.
    pub damaged: Vec<(Slot, String)>,
}

/// A piece of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// How many bytes the whole snapshot has.
    pub total: u64,
    /// The piece.
    pub data: Bytes,
}

/// How far a transfer has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes are stored, without a gap.
    UpTo(u64),
    /// The snapshot is whole and durable.
    Whole(Box<SnapshotHeader>),
}

/// Why a snapshot could not be kept or given.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The disk is full.
    #[error("disk full while {doing}: {cause}; free space, and the next snapshot is saved again")]
    Full {
        /// What the store was doing.
        doing: String,
        /// What the system said.
        cause: Arc<io::Error>,
    },
    /// The system refused something.
    #[error("the snapshot store failed while {doing}: {cause}")]
    Io {
        /// What the store was doing, with the path.
        doing: String,
        /// What the system said.
        cause: Arc<io::Error>,
    },
    /// There is no such snapshot, or none any more.
    #[error("there is no snapshot of group {group} as of slot {upto}")]
    Missing {
        /// Whose.
        group: GroupId,
        /// As of which slot.
        upto: Slot,
    },
    /// The snapshot's bytes are not what was written.
    #[error("the snapshot of group {group} as of slot {upto} is damaged: {detail}")]
    Damaged {
        /// Whose.
        group: GroupId,
        /// As of which slot.
        upto: Slot,
        /// What is wrong.
        detail: String,
    },
    /// The state machine did not write its state.
    #[error("the state machine could not write its state: {0}")]
    Source(String),
    /// Another process has the store open.
    #[error("{directory} is in use by another process; one process may open a snapshot directory")]
    Locked {
        /// Where.
        directory: String,
    },
    /// Whether an earlier snapshot, or its removal, survives a crash is unknown: its directory could not be synced.
    /// Nothing is saved or removed any more until the store is opened again.
    #[error(
        "since an earlier failure the snapshot store neither takes nor removes anything before it is opened again: {0}"
    )]
    Poisoned(String),
    /// The group takes no snapshots: there is no store, the state machine has none to give, or the store has failed for
    /// good ([`Poisoned`](Self::Poisoned)).
    #[error("the group takes no snapshots: {0}")]
    Off(String),
    /// The state machine cannot be frozen at that slot now: it is being restored, or was ahead of the log when it was
    /// started.
    #[error(
        "the state machine is not at slot {upto}: it is being restored, or still ahead of the log; try again later"
    )]
    Unready {
        /// As of which slot the snapshot would have been.
        upto: Slot,
    },
    /// So many wait for the group to answer a question about itself already: nothing was done.
    #[error("too many questions about the group are open; ask again in {retry_after:?}")]
    Overloaded {
        /// When another try makes sense.
        retry_after: Duration,
    },
    /// The store panicked, or the state machine while it wrote its state.
    #[error("{0}")]
    Panicked(String),
    /// The snapshot is in a format of another version of this program. It is left as it is.
    #[error(
        "the snapshot of group {group} as of slot {upto} is in format {found}, this program reads {expected}; run the \
         version that wrote it"
    )]
    WrongFormat {
        /// Whose.
        group: GroupId,
        /// As of which slot.
        upto: Slot,
        /// The version found.
        found: u8,
        /// The version that this program reads.
        expected: u8,
    },
    /// The group has stopped.
    #[error("the group has stopped: {0}")]
    Stopped(String),
}

impl SnapshotError {
    /// An IO error, told apart from a full disk by its kind.
    pub fn io(doing: impl Into<String>, cause: io::Error) -> Self {
        let doing = doing.into();
        let cause = Arc::new(cause);
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { doing, cause },
            _ => Self::Io { doing, cause },
        }
    }
}

impl<S: SnapshotStore + ?Sized> SnapshotStore for Box<S> {
    fn newest(&self, group: GroupId) -> Result<Found, SnapshotError> {
        (**self).newest(group)
    }

    fn save(&self, header: &SnapshotHeader, source: Box<dyn SnapshotSource>) -> Result<(), SnapshotError> {
        (**self).save(header, source)
    }

    fn open(&self, group: GroupId, upto: Slot) -> Result<Box<dyn io::Read + Send>, SnapshotError> {
        (**self).open(group, upto)
    }

    fn read_chunk(
        &self,
        group: GroupId,
        upto: Slot,
        offset: u64,
        max_bytes: usize,
    ) -> Result<Chunk, SnapshotError> {
        (**self).read_chunk(group, upto, offset, max_bytes)
    }

    fn store_chunk(
        &self,
        group: GroupId,
        upto: Slot,
        offset: u64,
        chunk: Chunk,
    ) -> Result<Received, SnapshotError> {
        (**self).store_chunk(group, upto, offset, chunk)
    }

    fn remove_group(&self, group: GroupId) -> Result<(), SnapshotError> {
        (**self).remove_group(group)
    }
}
