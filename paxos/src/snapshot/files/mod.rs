//! Snapshots in files.

mod disk;
mod names;
#[cfg(test)]
mod tests;

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    format,
    string::ToString,
    sync::Arc,
    vec::Vec,
};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    string::String,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use self::{
    disk::Disk,
    names::{Kind, Name},
};
use super::{
    Chunk, Found, Received, SnapshotError, SnapshotHeader, SnapshotStore,
    format::{self as encoding, Decoder},
    progress::Progress,
};
use crate::{
    state_machine::SnapshotSource,
    types::{GroupId, Slot},
};

const LOCK: &str = "lock";

/// How many snapshots of a group are kept unless [`FileSnapshots::keep`] says otherwise.
pub(super) const KEEP: usize = 2;

/// Snapshots in files, a directory for each group.
///
/// ```text
/// lock                                  locked by the process that has the store open
/// group-<id>/<slot>.snapshot            whole and durable
/// group-<id>/<slot>.saving              being written; removed when the store is opened
/// group-<id>/<slot>-<bytes>.partial     what has come so far of a peer's; goes on after a restart
/// group-<id>/<slot>.damaged             was found damaged, and set aside
/// ```
///
/// A snapshot is written under another name, synced, renamed, and the directory is synced: under its own name it is
/// whole. All names are made from numbers. The format of a file: the header and then the state in blocks of up to 64
/// KiB, each with a crc32c over everything up to there, the last one over the whole file.
///
/// Like the log, the directory belongs to one node, so it is best kept inside of the node's data directory.
#[derive(Debug)]
pub struct FileSnapshots {
    directory: PathBuf,
    keep: usize,
    disk: Disk,
    /// Held open for its lock.
    _lock: File,
    shelves: Mutex<BTreeMap<GroupId, Arc<Shelf>>>,
    poisoned: OnceLock<String>,
}

/// What one group has.
#[derive(Debug)]
struct Shelf {
    group: GroupId,
    directory: PathBuf,
    /// Whether the directory is there, durably.
    made: Mutex<bool>,
    /// Snapshots of which a piece was read since snapshots were last dropped.
    read: Mutex<BTreeSet<Slot>>,
    /// Held while a piece is stored.
    partial: Mutex<Option<Partial>>,
}

/// A snapshot on its way from a peer.
#[derive(Debug)]
struct Partial {
    progress: Progress,
    file: File,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let doing = format!("{doing} {}", path.display());
    move |error| SnapshotError::io(doing, error)
}

impl FileSnapshots {
    /// Opens the directory, or creates it; removes what an earlier life did not finish.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, SnapshotError> {
        Self::open_on(Disk::default(), directory.into())
    }

    fn open_on(disk: Disk, directory: PathBuf) -> Result<Self, SnapshotError> {
        disk.create_directory(&directory)
            .map_err(failed("creating the snapshot directory", &directory))?;
        let lock = lock_directory(&directory)?;
        let store = Self {
            directory,
            keep: KEEP,
            disk,
            _lock: lock,
            shelves: Mutex::default(),
            poisoned: OnceLock::new(),
        };
        store.tidy_up()?;
        Ok(store)
    }

    /// Keeps so many snapshots of each group (at least 1; 2 unless told otherwise). The older ones are for peers that are
    /// just fetching them. One can stand in for a newest one that turns out to be damaged only as long as the log reaches
    /// back to it, which is trimmed up to [`keep_entries`](crate::core::Config::keep_entries) behind the newest.
    #[must_use]
    pub fn keep(mut self, count: usize) -> Self {
        self.keep = count.max(1);
        self
    }

    /// Removes snapshots that were being written, and pieces that are of no use any more. A rename that an earlier life
    /// did not live to sync is made durable before anybody believes the name.
    fn tidy_up(&self) -> Result<(), SnapshotError> {
        self.disk
            .sync_directory(&self.directory)
            .map_err(failed("syncing", &self.directory))?;
        let entries = fs::read_dir(&self.directory).map_err(failed("listing", &self.directory))?;
        for entry in entries {
            let entry = entry.map_err(failed("listing", &self.directory))?;
            let Some(group) = names::group_of(&entry.file_name().to_string_lossy()) else {
                continue;
            };
            let shelf = self.shelf(group);
            self.disk
                .sync_directory(&shelf.directory)
                .map_err(failed("syncing", &shelf.directory))?;
            *lock(&shelf.made) = true;
            let names = shelf.names()?;
            let newest = names
                .iter()
                .filter(|name| name.kind == Kind::Whole)
                .map(|name| name.upto)
                .max();
            for name in names {
                let useless = match name.kind {
                    Kind::Saving => true,
                    Kind::Partial { .. } => Some(name.upto) <= newest,
                    Kind::Whole | Kind::Damaged => false,
                };
                if useless {
                    let path = shelf.path(name);
                    self.disk.remove(&path).map_err(failed("removing", &path))?;
                }
            }
        }
        Ok(())
    }

    fn shelf(&self, group: GroupId) -> Arc<Shelf> {
        let mut shelves = lock(&self.shelves);
        let shelf = shelves.entry(group).or_insert_with(|| {
            Arc::new(Shelf {
                group,
                directory: self.directory.join(names::directory_of(group)),
                made: Mutex::default(),
                read: Mutex::default(),
                partial: Mutex::default(),
            })
        });
        shelf.clone()
    }

    fn check_poison(&self) -> Result<(), SnapshotError> {
        match self.poisoned.get() {
            Some(why) => Err(SnapshotError::Poisoned(why.clone())),
            None => Ok(()),
        }
    }

    /// Gives a file that is synced its own name, durably, and drops old ones.
    fn publish(&self, shelf: &Shelf, from: &Path, upto: Slot) -> Result<(), SnapshotError> {
        let path = shelf.path(Name::whole(upto));
        self.disk.rename(from, &path).map_err(failed("renaming", from))?;
        self.sync_or_poison(&shelf.directory)?;
        self.drop_old(shelf);
        Ok(())
    }

    /// Never tried again if it fails: it may then succeed without having done anything.
    fn sync_or_poison(&self, directory: &Path) -> Result<(), SnapshotError> {
        self.disk.sync_directory(directory).map_err(|error| {
            let error = failed("syncing", directory)(error);
            let _ = self.poisoned.set(error.to_string());
            error
        })
    }

    /// Makes the group's directory, once.
    fn make(&self, shelf: &Shelf) -> Result<(), SnapshotError> {
        let mut made = lock(&shelf.made);
        if !*made {
            self.disk
                .make_directory(&shelf.directory)
                .map_err(failed("creating", &shelf.directory))?;
            self.sync_or_poison(&self.directory)?;
            *made = true;
        }
        Ok(())
    }

    /// Drops all but the newest few, unless they were read since the last time: a peer may be fetching them. What cannot
    /// be removed now is removed next time.
    fn drop_old(&self, shelf: &Shelf) {
        let Ok(names) = shelf.names() else { return };
        let mut whole: Vec<Slot> = names
            .iter()
            .filter(|name| name.kind == Kind::Whole)
            .map(|name| name.upto)
            .collect();
        whole.sort_unstable();
        whole.truncate(whole.len().saturating_sub(self.keep));
        let read = core::mem::take(&mut *lock(&shelf.read));
        for upto in whole {
            if !read.contains(&upto) {
                let _ = self.disk.remove(&shelf.path(Name::whole(upto)));
            }
        }
        for name in names.into_iter().filter(|name| name.kind == Kind::Damaged) {
            let _ = self.disk.remove(&shelf.path(name));
        }
    }

    /// Drops the pieces of a snapshot that is no newer than the one that has just been saved. What cannot be removed is
    /// replaced by the next one, or removed when the store is opened.
    fn drop_overtaken(&self, shelf: &Shelf, saved: Slot) {
        // Not under somebody who stores a piece, or completes the whole.
        let mut partial = lock(&shelf.partial);
        // The space is free when the file is closed, too.
        partial.take_if(|partial| partial.progress.upto <= saved);
        let Ok(names) = shelf.names() else { return };
        for name in names {
            if matches!(name.kind, Kind::Partial { .. }) && name.upto <= saved {
                let _ = self.disk.remove(&shelf.path(name));
            }
        }
    }

    fn write_file(
        &self,
        path: &Path,
        header: &SnapshotHeader,
        source: Box<dyn SnapshotSource>,
    ) -> Result<(), SnapshotError> {
        let mut file = self.disk.create(path).map_err(failed("creating", path))?;
        let mut writer = Writer {
            disk: &self.disk,
            file: &mut file,
        };
        encoding::encode(header, source, &mut writer)
            .map_err(|error| error.when(|| format!("writing {}", path.display())))?;
        self.disk.sync(&file).map_err(failed("syncing", path))
    }

    /// All pieces are there.
    fn complete(&self, shelf: &Shelf, partial: &Partial) -> Result<SnapshotHeader, SnapshotError> {
        let (path, upto) = (shelf.path(partial.name()), partial.progress.upto);
        self.disk.sync(&partial.file).map_err(failed("syncing", &path))?;
        let header = shelf.verify(&path, upto)?;
        self.publish(shelf, &path, upto)?;
        Ok(header)
    }

    fn begin_partial(&self, shelf: &Shelf, upto: Slot, total: u64) -> Result<Partial, SnapshotError> {
        self.make(shelf)?;
        self.drop_partials(shelf)?;
        let path = shelf.path(Name::partial(upto, total));
        let file = self.disk.create(&path).map_err(failed("creating", &path))?;
        let bytes = 0;
        Ok(Partial {
            progress: Progress { upto, total, bytes },
            file,
        })
    }

    fn drop_partials(&self, shelf: &Shelf) -> Result<(), SnapshotError> {
        for name in shelf.names()? {
            if matches!(name.kind, Kind::Partial { .. }) {
                let path = shelf.path(name);
                self.disk.remove(&path).map_err(failed("removing", &path))?;
            }
        }
        Ok(())
    }

    fn store(
        &self,
        shelf: &Shelf,
        stored: &mut Option<Partial>,
        upto: Slot,
        offset: u64,
        chunk: &Chunk,
    ) -> Result<Received, SnapshotError> {
        let is_of = |partial: &Partial| partial.progress.is_of(upto, chunk);
        if !stored.as_ref().is_some_and(is_of) {
            match shelf.find_partial(upto, chunk.total)? {
                Some(partial) => *stored = Some(partial),
                None if offset == 0 => *stored = Some(self.begin_partial(shelf, upto, chunk.total)?),
                None => return Ok(Received::UpTo(0)),
            }
        }
        let Some(partial) = stored.as_mut() else {
            return Ok(Received::UpTo(0));
        };
        if partial.progress.continues(shelf.group, offset, chunk)? {
            let written = self.disk.write(&mut partial.file, &chunk.data);
            written.map_err(failed("writing", &shelf.path(partial.name())))?;
            partial.progress.bytes += chunk.data.len() as u64;
        }
        if let Some(unfinished) = partial.progress.unfinished() {
            return Ok(unfinished);
        }
        let header = self.complete(shelf, partial)?;
        *stored = None;
        Ok(Received::Whole(Box::new(header)))
    }
}

impl SnapshotStore for FileSnapshots {
    fn newest(&self, group: GroupId) -> Result<Found, SnapshotError> {
        let shelf = self.shelf(group);
        let mut whole = shelf.names()?;
        whole.retain(|name| name.kind == Kind::Whole);
        whole.sort_unstable_by_key(|name| name.upto);
        let mut found = Found::default();
        for name in whole.into_iter().rev() {
            match shelf.verify(&shelf.path(name), name.upto) {
                Ok(header) => {
                    found.newest = Some(header);
                    break;
                }
                Err(SnapshotError::Damaged { upto, detail, .. }) => {
                    // If it cannot be set aside it is found again: no harm.
                    let aside = shelf.path(Name::damaged(upto));
                    let _ = self.disk.rename(&shelf.path(name), &aside);
                    found.damaged.push((upto, detail));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn save(&self, header: &SnapshotHeader, source: Box<dyn SnapshotSource>) -> Result<(), SnapshotError> {
        self.check_poison()?;
        let shelf = self.shelf(header.group);
        self.make(&shelf)?;
        let path = shelf.path(Name::saving(header.upto));
        let saved = self
            .write_file(&path, header, source)
            .and_then(|()| self.publish(&shelf, &path, header.upto));
        match &saved {
            Ok(()) => self.drop_overtaken(&shelf, header.upto),
            // What is left is removed when the store is opened.
            Err(_) => {
                let _ = self.disk.remove(&path);
            }
        }
        saved
    }

    fn open(&self, group: GroupId, upto: Slot) -> Result<Box<dyn Read + Send>, SnapshotError> {
        let shelf = self.shelf(group);
        let path = shelf.path(Name::whole(upto));
        let file = shelf.open_whole(upto)?;
        let (decoder, _) = Decoder::open(BufReader::new(file), group, upto)
            .map_err(|error| shelf.unreadable(&path, upto, error))?;
        Ok(Box::new(decoder))
    }

    fn read_chunk(
        &self,
        group: GroupId,
        upto: Slot,
        offset: u64,
        max_bytes: usize,
    ) -> Result<Chunk, SnapshotError> {
        let shelf = self.shelf(group);
        let mut file = shelf.open_whole(upto)?;
        lock(&shelf.read).insert(upto);
        let mut read = || {
            let total = file.metadata()?.len();
            file.seek(SeekFrom::Start(offset.min(total)))?;
            encoding::read_piece(&file, total, offset, max_bytes)
        };
        read().map_err(failed("reading", &shelf.path(Name::whole(upto))))
    }

    fn store_chunk(
        &self,
        group: GroupId,
        upto: Slot,
        offset: u64,
        chunk: Chunk,
    ) -> Result<Received, SnapshotError> {
        self.check_poison()?;
        let shelf = self.shelf(group);
        let mut partial = lock(&shelf.partial);
        let stored = self.store(&shelf, &mut partial, upto, offset, &chunk);
        if stored.is_err() {
            *partial = None;
            // A full disk gets its space back; what cannot be removed is replaced by the next one.
            let _ = self.drop_partials(&shelf);
        }
        stored
    }

    fn remove_group(&self, group: GroupId) -> Result<(), SnapshotError> {
        self.check_poison()?;
        let shelf = self.shelf(group);
        let mut partial = lock(&shelf.partial);
        *partial = None;
        lock(&self.shelves).remove(&group);
        self.disk
            .remove_directory(&shelf.directory)
            .map_err(failed("removing", &shelf.directory))?;
        self.sync_or_poison(&self.directory)
    }
}

impl Shelf {
    fn path(&self, name: Name) -> PathBuf {
        self.directory.join(name.to_string())
    }

    /// Everything of the group that has a name of ours.
    fn names(&self) -> Result<Vec<Name>, SnapshotError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("listing", &self.directory)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("listing", &self.directory))?;
            names.extend(Name::parse(&entry.file_name().to_string_lossy()));
        }
        Ok(names)
    }

    fn open_whole(&self, upto: Slot) -> Result<File, SnapshotError> {
        let path = self.path(Name::whole(upto));
        File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SnapshotError::Missing {
                group: self.group,
                upto,
            },
            _ => failed("opening", &path)(error),
        })
    }

    fn verify(&self, path: &Path, upto: Slot) -> Result<SnapshotHeader, SnapshotError> {
        let file = File::open(path).map_err(failed("opening", path))?;
        encoding::verify(BufReader::new(file), self.group, upto)
            .map_err(|error| self.unreadable(path, upto, error))
    }

    /// What is stored of this snapshot, also by an earlier life.
    fn find_partial(&self, upto: Slot, total: u64) -> Result<Option<Partial>, SnapshotError> {
        let name = Name::partial(upto, total);
        if !self.names()?.contains(&name) {
            return Ok(None);
        }
        let path = self.path(name);
        let reading = failed("reading", &path);
        let open = || {
            let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
            // After a power failure anything may be in it; what is good is kept.
            let bytes = encoding::verified_bytes(BufReader::new(&file)).min(total);
            file.set_len(bytes)?;
            file.seek(SeekFrom::Start(bytes))?;
            Ok((file, bytes))
        };
        let (file, bytes) = open().map_err(reading)?;
        Ok(Some(Partial {
            progress: Progress { upto, total, bytes },
            file,
        }))
    }

    /// Damage, another format, or the system's refusal.
    fn unreadable(&self, path: &Path, upto: Slot, error: io::Error) -> SnapshotError {
        encoding::finding(self.group, upto, &error).unwrap_or_else(|| failed("reading", path)(error))
    }
}

impl Partial {
    fn name(&self) -> Name {
        Name::partial(self.progress.upto, self.progress.total)
    }
}

struct Writer<'a> {
    disk: &'a Disk,
    file: &'a mut File,
}

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.write(self.file, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lock_directory(directory: &Path) -> Result<File, SnapshotError> {
    let path = directory.join(LOCK);
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed("creating", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(SnapshotError::Locked {
            directory: directory.display().to_string(),
        }),
        Err(TryLockError::Error(error)) => Err(failed("locking", &path)(error)),
    }
}
