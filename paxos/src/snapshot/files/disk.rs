//! What is done to files and directories, step by step, so that tests can make any step fail.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use crate::directory;

/// Everything that changes the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    CreateDirectory,
    Create,
    Write,
    Sync,
    Rename,
    SyncDirectory,
    Remove,
}

type Faults = dyn Fn(Step) -> io::Result<()> + Send + Sync;

#[derive(Default)]
pub(super) struct Disk {
    /// Asked before each step; none in production.
    pub(super) faults: Option<std::boxed::Box<Faults>>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

impl Disk {
    fn before(&self, step: Step) -> io::Result<()> {
        self.faults.as_ref().map_or(Ok(()), |fails| fails(step))
    }

    /// Creates the directory, and all above it that are missing, durably.
    pub(super) fn create_directory(&self, path: &Path) -> io::Result<()> {
        let make = |path: &Path| self.make_directory(path);
        directory::create_by(path, &make, &|path| self.sync_directory(path))
    }

    /// Not durable yet. One that is there is fine.
    pub(super) fn make_directory(&self, path: &Path) -> io::Result<()> {
        self.before(Step::CreateDirectory)?;
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// An empty file, whatever was there.
    pub(super) fn create(&self, path: &Path) -> io::Result<File> {
        self.before(Step::Create)?;
        File::create(path)
    }

    pub(super) fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.before(Step::Write) {
            // As a full disk or a crash would: some of it is there.
            file.write_all(bytes.get(..bytes.len() / 2).unwrap_or_default())?;
            return Err(error);
        }
        file.write_all(bytes)
    }

    pub(super) fn sync(&self, file: &File) -> io::Result<()> {
        self.before(Step::Sync)?;
        file.sync_all()
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Step::Rename)?;
        fs::rename(from, to)
    }

    pub(super) fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.before(Step::SyncDirectory)?;
        directory::sync(path)
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        self.before(Step::Remove)?;
        fs::remove_file(path)
    }

    /// With all that is in it. One that is not there is fine.
    pub(super) fn remove_directory(&self, path: &Path) -> io::Result<()> {
        self.before(Step::Remove)?;
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
