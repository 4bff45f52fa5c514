//! Storage in a write-ahead log of our own: one write and one sync per commit, for all groups.
//!
//! The log is a row of segments, files that were filled with zeros in advance. A commit is one [frame], written
//! only when the frame before it is durable; so a crash can spoil the last frame alone, and every earlier one that is
//! not as it was written has been damaged. The first frame of a segment repeats the records of the store and of all
//! groups, so older segments are needed for the entries in them only. Segments go from the oldest on, and their files
//! are used again; what idle groups still hold in the oldest one is written again at the end, bit by bit, together with
//! other commits. So the log always is a complete history since its first frame.
//!
//! Whether everything is there that must be, whole and up to date, is checked above the engines, for all of them alike.
//! There, too, the number of the last durable commit is noted: it tells a last frame that was torn from one that was
//! acknowledged and has been damaged since; the note itself is synced when the store is closed.
//!
//! ```text
//! wal/segment-0000000000000001    the number is in every frame, too
//! wal/spare-0000000000000001      zeros, or the contents of an old segment
//! ```

mod blocks;
mod disk;
mod frame;
mod log;
mod replay;
mod spares;
#[cfg(test)]
mod tests;

use std::path::Path;

use paxos::storage::{Owner, StorageError};

use self::{blocks::BLOCK_BYTES, disk::Disk, log::Log};
use crate::durable::{Store, storage_by_store};

/// Storage in a write-ahead log: one write and one sync of a file prepared in advance per write. Writes go past the page
/// cache (`O_DIRECT`) where the filesystem has that.
///
/// Survives `kill -9` and power failures. The index (about 100 bytes per entry) is kept in memory, payloads are not.
/// Batches that need not be durable yet are held back, up to a mebibyte, and written with the next one.
#[derive(Debug)]
pub struct Wal(Store<Log>);

storage_by_store!(Wal);

/// How a [`Wal`] is laid out. May change from one opening to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WalOptions {
    /// How large segments become, in bytes: at least 16 KiB. A log begins with small ones, and a commit that is larger
    /// gets a segment of its own size. The disk holds the segments that are needed, and up to three more.
    pub segment_bytes: u64,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
        }
    }
}

impl WalOptions {
    /// Segments of this many bytes.
    #[must_use]
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }
}

impl Wal {
    /// Claims the directory, which is created if it does not exist, for this owner; the files are opened by
    /// [`recover`](paxos::Storage::recover).
    pub fn open(directory: impl AsRef<Path>, owner: Owner) -> Result<Self, StorageError> {
        Self::open_with(directory, owner, WalOptions::default())
    }

    /// As [`open`](Self::open), laid out as the options say.
    pub fn open_with(
        directory: impl AsRef<Path>,
        owner: Owner,
        options: WalOptions,
    ) -> Result<Self, StorageError> {
        Self::open_with_fault(directory, owner, options, u64::MAX)
    }

    /// For tests: as [`open_with`](Self::open_with), but the `call`-th operation on the files of the log, counted from
    /// 0, and all later ones fail as if the disk did; a write does half its work.
    #[doc(hidden)]
    pub fn open_with_fault(
        directory: impl AsRef<Path>,
        owner: Owner,
        options: WalOptions,
        call: u64,
    ) -> Result<Self, StorageError> {
        const MIN_SEGMENT_BYTES: u64 = 4 * BLOCK_BYTES as u64;
        if options.segment_bytes < MIN_SEGMENT_BYTES {
            return Err(StorageError::Misuse(format!(
                "segments of {} bytes; at least {MIN_SEGMENT_BYTES} are needed",
                options.segment_bytes
            )));
        }
        let directory = directory.as_ref();
        let log = Log::new(
            directory.join("wal"),
            options.segment_bytes,
            Disk::failing_at(call),
        );
        Store::open(directory, "wal", owner, log).map(Self)
    }
}
