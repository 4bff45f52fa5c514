//! The `Storage` trait: where acceptors keep what they promised and accepted.
//!
//! One store serves one node and all of its groups. The driver owns it on a thread of its own and makes one call at a
//! time. The store has one job above all: what [`Storage::write`] acknowledged with `sync` set survives everything
//! short of the loss of the disk, whole and unaltered, and what it cannot give back unaltered it reports.

use alloc::{boxed::Box, collections::BTreeMap, string::String, sync::Arc, vec::Vec};
use core::ops::Range;

use async_trait::async_trait;

use crate::types::{Accepted, Ballot, ClusterId, GroupId, HardState, Identity, Incarnation, NodeId, Slot};
pub use crate::types::{WriteBatch, WriteOp};

/// What a store held when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Which cluster, node and disk this is.
    pub identity: Identity,
    /// This opening of the store, made by [`next_incarnation`]; durable already.
    pub incarnation: Incarnation,
    /// Every group that has anything stored.
    pub groups: BTreeMap<GroupId, RecoveredGroup>,
    /// What the store noticed about itself; empty when it was closed in order and is whole.
    pub findings: Vec<Finding>,
}

/// What a store held for one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredGroup {
    /// Promise and chosen watermark.
    pub hard_state: HardState,
    /// All slots up to this one have been trimmed.
    pub trimmed: Slot,
    /// Every slot that holds an entry, in order: its ballot and its payload's length in bytes.
    pub index: BTreeMap<Slot, IndexEntry>,
    /// Slots whose records are damaged. Disjoint from `index`.
    pub damaged: Vec<Slot>,
}

/// What the index tells of an entry without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexEntry {
    /// The ballot at which it was accepted.
    pub ballot: Ballot,
    /// The length of its payload in bytes.
    pub bytes: u32,
}

/// Something that a store noticed when it was opened. Nothing is ever repaired or shortened without one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// The last write was cut off by a crash and has been dropped. It was never acknowledged.
    TornTail {
        /// What was dropped, for the log.
        detail: String,
    },
    /// Records failed their checksum or are missing. If the damage belongs to entries only, the group's
    /// [`RecoveredGroup::damaged`] names them; damage of a hard state or of the store itself is a
    /// [`StorageError::Corrupt`] instead, because nothing may be voted on with it.
    Damaged {
        /// Whose.
        group: GroupId,
        /// What was found, for the log.
        detail: String,
    },
}

/// Why a store failed. After [`StorageError::Io`], [`StorageError::Full`], [`StorageError::Corrupt`] of a write, or
/// [`StorageError::Poisoned`], every later call fails with [`StorageError::Poisoned`].
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The disk is full. Nothing acknowledged is lost; nothing more will be acknowledged.
    #[error("disk full while {doing}: {cause}; free space and restart the node")]
    Full {
        /// What the store was doing.
        doing: String,
        /// What the system said.
        cause: Arc<std::io::Error>,
    },
    /// The system refused a read, write, sync, create or rename.
    #[error("storage failed while {doing}: {cause}")]
    Io {
        /// What the store was doing, with the path.
        doing: String,
        /// What the system said.
        cause: Arc<std::io::Error>,
    },
    /// Stored bytes fail their checksum, or do not make sense.
    #[error("storage is damaged: {0}")]
    Corrupt(String),
    /// The store belongs to somebody else.
    #[error(
        "{directory} belongs to {what} {found}, not to {expected}; point the node at its own data directory"
    )]
    WrongIdentity {
        /// Where.
        directory: String,
        /// "cluster" or "node".
        what: &'static str,
        /// What the store says.
        found: String,
        /// What the node said.
        expected: String,
    },
    /// The store was written by another version, or is not a store.
    #[error("{directory} has storage format {found}, this program reads {expected}")]
    WrongFormat {
        /// Where.
        directory: String,
        /// What the store says.
        found: String,
        /// What this program can read.
        expected: String,
    },
    /// Another process has the store open.
    #[error("{directory} is in use by another process; one process may open a data directory")]
    Locked {
        /// Where.
        directory: String,
    },
    /// The caller broke the contract, for instance by writing before `recover`.
    #[error("storage used wrongly: {0}")]
    Misuse(String),
    /// An earlier call failed; the first error is the last.
    #[error("storage is closed since an earlier failure: {0}")]
    Poisoned(Arc<Self>),
}

impl StorageError {
    /// An IO error, told apart from a full disk by its kind.
    pub fn io(doing: impl Into<String>, cause: std::io::Error) -> Self {
        let doing = doing.into();
        let cause = Arc::new(cause);
        match cause.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::Full { doing, cause }
            }
            _ => Self::Io { doing, cause },
        }
    }

    /// What later calls answer after this error: itself if it is already such an answer.
    #[must_use]
    pub fn poisoned(&self) -> Self {
        match self {
            Self::Poisoned(_) => self.clone(),
            first => Self::Poisoned(Arc::new(first.clone())),
        }
    }
}

/// Who opens a store: checked against what the store says, recorded in a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The cluster that the node belongs to.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

/// The incarnation for the next opening of a store that was last opened as `last` (zero for a new store): above it, and
/// at least the milliseconds since 1970, so that a store that was lost and made anew begins above every life that it
/// has forgotten.
pub fn next_incarnation(last: Incarnation) -> Incarnation {
    let since_1970 = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let milliseconds = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
    Incarnation(last.0.saturating_add(1).max(milliseconds))
}

/// Durable storage of one node, shared by its groups.
///
/// # Calls
///
/// The driver calls [`recover`](Self::recover) once and first, then the other methods one at a time from one thread
/// inside a tokio runtime, then [`close`](Self::close) unless it crashes. An implementation may block: the thread is
/// its own. Opening (paths, options, locks, identity checks) is the implementation's constructor's business.
///
/// # Batches
///
/// The changes of a batch take effect in order, all or none. Slots may be written with gaps between them, in any order,
/// and again at a higher ballot. A group's promise never goes down. Whatever is at or below the trimmed mark is gone for good: an
/// [`WriteOp::Accept`] there changes nothing, and neither does a [`WriteOp::Trim`] below the mark. A group that was
/// removed may be created anew, and then has nothing of what it had.
///
/// # What a crash may leave
///
/// Batches take effect in the order of the calls. After a crash (`kill -9`, power failure) the store holds a prefix of
/// them, every one whole, and at least all batches up to the last `write` that returned `Ok` with `sync` set.
///
/// # Errors
///
/// The first error of a write is the last: whether the data reached the disk is unknown then, so the implementation
/// must refuse every later call with [`StorageError::Poisoned`] and must never retry a sync. Reads of damaged records
/// fail with [`StorageError::Corrupt`]; damage is never returned as data, nor as absence.
#[async_trait]
pub trait Storage: Send + 'static {
    /// Tells what the store holds. Called once, before anything else; every record is verified.
    ///
    /// On return the new incarnation is durable.
    async fn recover(&mut self) -> Result<Recovered, StorageError>;

    /// Applies a batch atomically, over all groups in it; durable on return if `batch.sync`.
    ///
    /// One call is one sync at the most, whatever the number of groups and changes (now and then a store that tidies
    /// up needs more). A batch that breaks the contract (slot 0, a promise that goes down) is refused as a whole with
    /// [`StorageError::Misuse`] and changes nothing.
    async fn write(&mut self, batch: WriteBatch) -> Result<(), StorageError>;

    /// Reads the entries of `slots` that are held, in order, the first in any case and further ones as long as the
    /// sum of [`Entry::size`](crate::Entry::size) stays within `max_bytes`. Slots without an entry are left out; a
    /// damaged slot among those asked for, as far as the bound reaches, fails the call with [`StorageError::Corrupt`].
    /// That error alone does not end the store: the next read may be good, and a write to the slot repairs it.
    async fn read(
        &mut self,
        group: GroupId,
        slots: Range<Slot>,
        max_bytes: usize,
    ) -> Result<Vec<(Slot, Accepted)>, StorageError>;

    /// Makes everything durable and gives up the store. No call follows.
    async fn close(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
}

#[async_trait]
impl<S: Storage + ?Sized> Storage for Box<S> {
    async fn recover(&mut self) -> Result<Recovered, StorageError> {
        (**self).recover().await
    }

    async fn write(&mut self, batch: WriteBatch) -> Result<(), StorageError> {
        (**self).write(batch).await
    }

    async fn read(
        &mut self,
        group: GroupId,
        slots: Range<Slot>,
        max_bytes: usize,
    ) -> Result<Vec<(Slot, Accepted)>, StorageError> {
        (**self).read(group, slots, max_bytes).await
    }

    async fn close(&mut self) -> Result<(), StorageError> {
        (**self).close().await
    }
}
