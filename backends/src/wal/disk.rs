//! The files' operations, in one place: what failed is named, and a test can make any of them fail.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use paxos::storage::StorageError;

use super::blocks::BlockFile;

/// A file and where it is, for what is said about it.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) path: PathBuf,
    file: BlockFile,
}

/// The disk, as it is or failing from some operation on.
#[derive(Debug)]
pub(super) struct Disk {
    /// How many operations succeed before the first fails.
    sound_calls: u64,
}

impl Disk {
    pub(super) fn failing_at(call: u64) -> Self {
        Self { sound_calls: call }
    }

    pub(super) fn create_directory(&mut self, path: &Path) -> Result<(), StorageError> {
        self.run("creating", path, || match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            created => created,
        })?;
        self.sync_directory(path.parent().unwrap_or(path))
    }

    pub(super) fn sync_directory(&mut self, path: &Path) -> Result<(), StorageError> {
        self.run("syncing the directory", path, || paxos::directory::sync(path))
    }

    /// The names and lengths of the files in a directory.
    pub(super) fn list(&mut self, path: &Path) -> Result<Vec<(String, u64)>, StorageError> {
        self.run("listing", path, || {
            let mut found = Vec::new();
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                if let Ok(name) = entry.file_name().into_string() {
                    found.push((name, entry.metadata()?.len()));
                }
            }
            Ok(found)
        })
    }

    pub(super) fn open(&mut self, path: PathBuf) -> Result<OpenFile, StorageError> {
        let file = self.run("opening", &path, || BlockFile::open(&path))?;
        Ok(OpenFile { path, file })
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> Result<(), StorageError> {
        self.run("renaming", from, || fs::rename(from, to))
    }

    pub(super) fn remove(&mut self, path: &Path) -> Result<(), StorageError> {
        self.run("deleting", path, || fs::remove_file(path))
    }

    pub(super) fn read_all(&mut self, file: &OpenFile) -> Result<Bytes, StorageError> {
        self.run("reading", &file.path, || fs::read(&file.path))
            .map(Bytes::from)
    }

    pub(super) fn read(&mut self, file: &OpenFile, at: u64, bytes: usize) -> Result<Bytes, StorageError> {
        let mut buffer = vec![0; bytes];
        self.run("reading", &file.path, || file.file.read_exact_at(&mut buffer, at))?;
        Ok(buffer.into())
    }

    pub(super) fn write(&mut self, file: &mut OpenFile, bytes: &[u8], at: u64) -> Result<(), StorageError> {
        if self.sound_calls == 0 {
            // A disk that fails in the middle of a write leaves a part of it.
            let torn = file.file.write_all_at(&bytes[..bytes.len() / 2], at);
            torn.map_err(|error| failed("writing", &file.path, error))?;
        }
        self.run("writing", &file.path, || file.file.write_all_at(bytes, at))
    }

    pub(super) fn sync(&mut self, file: &OpenFile) -> Result<(), StorageError> {
        self.run("syncing", &file.path, || file.file.sync_data())
    }

    fn run<T>(
        &mut self,
        doing: &str,
        path: &Path,
        operation: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, StorageError> {
        let result = match self.sound_calls.checked_sub(1) {
            Some(left) => {
                self.sound_calls = left;
                operation()
            }
            None => Err(io::Error::other("injected fault")),
        };
        result.map_err(|error| failed(doing, path, error))
    }
}

pub(super) fn failed(doing: &str, path: &Path, error: io::Error) -> StorageError {
    StorageError::io(format!("{doing} {}", path.display()), error)
}
