//! Files for the segments to come: filled with zeros in the background, or taken over from segments that are done with.
//!
//! A write into blocks that the filesystem has written before changes none of its own records, so a sync is one flush
//! of the disk. That is why files are filled with zeros in advance and used again.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use paxos::storage::StorageError;

use super::{
    blocks::{BlockFile, Blocks},
    disk::{Disk, failed},
};

pub(super) const PREFIX: &str = "spare-";
/// How many files that are done with are kept.
const MAX_READY: usize = 2;
/// Files are filled in steps of this many bytes, each with a sync of its own, so that writes beside it are not held up
/// for long.
const STEP_BYTES: usize = 1 << 20;

/// A file without a segment.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

/// The files without a segment: at most [`MAX_READY`], and one that is being prepared.
#[derive(Debug)]
pub(super) struct Spares {
    directory: PathBuf,
    ready: Vec<Spare>,
    preparing: Option<JoinHandle<Result<Spare, StorageError>>>,
    is_stopped: Arc<AtomicBool>,
    /// The next file's number.
    next: u64,
}

impl Spares {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            ready: Vec::new(),
            preparing: None,
            is_stopped: Arc::default(),
            next: 1,
        }
    }

    /// Takes over a file that an earlier life prepared.
    pub(super) fn found(
        &mut self,
        disk: &mut Disk,
        number: u64,
        bytes: u64,
        wanted: u64,
    ) -> Result<(), StorageError> {
        self.next = self.next.max(number.saturating_add(1));
        let path = self.path(number);
        self.keep(disk, Spare { path, bytes }, wanted)
    }

    /// Takes over the file of a segment that is done with.
    pub(super) fn recycle(
        &mut self,
        disk: &mut Disk,
        path: &Path,
        bytes: u64,
        wanted: u64,
    ) -> Result<(), StorageError> {
        let spare = Spare {
            path: self.next_path(),
            bytes,
        };
        // Renamed in any case: a segment disappears at once, a large file in steps.
        disk.rename(path, &spare.path)?;
        self.keep(disk, spare, wanted)
    }

    /// A file of at least `min_bytes`, with `wanted` if it must be made now.
    pub(super) fn take(&mut self, min_bytes: u64, wanted: u64) -> Result<Spare, StorageError> {
        if let Some(preparing) = self.preparing.take() {
            match preparing.join() {
                Ok(Ok(spare)) => self.ready.push(spare),
                // Tried again below, if it is needed.
                Ok(Err(error)) => tracing::warn!(%error, "no file could be prepared"),
                Err(_) => tracing::error!("the thread that prepares files panicked"),
            }
        }
        if let Some(at) = self.ready.iter().position(|spare| spare.bytes >= min_bytes) {
            return Ok(self.ready.swap_remove(at));
        }
        let path = self.next_path();
        prepare(path, wanted.max(min_bytes), &self.is_stopped)
    }

    /// Has a file of this size prepared in the background, unless there is one.
    pub(super) fn prepare(&mut self, bytes: u64) {
        if self.preparing.is_some() || !self.ready.is_empty() {
            return;
        }
        let path = self.next_path();
        let is_stopped = Arc::clone(&self.is_stopped);
        let spawned = thread::Builder::new()
            .name("wal-prepare".into())
            .spawn(move || prepare(path, bytes, &is_stopped));
        match spawned {
            Ok(preparing) => self.preparing = Some(preparing),
            Err(error) => tracing::warn!(%error, "no thread to prepare files; they are made when needed"),
        }
    }

    fn keep(&mut self, disk: &mut Disk, spare: Spare, wanted: u64) -> Result<(), StorageError> {
        if spare.bytes < wanted || self.ready.len() >= MAX_READY {
            return disk.remove(&spare.path);
        }
        self.ready.push(spare);
        Ok(())
    }

    fn next_path(&mut self) -> PathBuf {
        let path = self.path(self.next);
        self.next += 1;
        path
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{PREFIX}{number:016x}"))
    }
}

impl Drop for Spares {
    /// Waits for the thread, which must not touch files that somebody else may open next.
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        if let Some(preparing) = self.preparing.take() {
            drop(preparing.join());
        }
    }
}

/// Writes a file of zeros and syncs it. One that could not be completed is deleted: it would take the space that others
/// may need.
fn prepare(path: PathBuf, bytes: u64, is_stopped: &AtomicBool) -> Result<Spare, StorageError> {
    match fill(&path, bytes, is_stopped) {
        Ok(()) => Ok(Spare { path, bytes }),
        Err(error) => {
            drop(fs::remove_file(&path));
            Err(failed("preparing", &path, error))
        }
    }
}

fn fill(path: &Path, bytes: u64, is_stopped: &AtomicBool) -> io::Result<()> {
    let mut file = BlockFile::create(path)?;
    let mut zeros = Blocks::default();
    zeros.zeroed(STEP_BYTES);
    let mut filled = 0;
    while filled < bytes {
        if is_stopped.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "the store is closed"));
        }
        zeros.truncate(usize::try_from(bytes - filled).unwrap_or(STEP_BYTES));
        file.write_all_at(zeros.as_slice(), filled)?;
        file.sync_all()?;
        filled += zeros.as_slice().len() as u64;
    }
    Ok(())
}
