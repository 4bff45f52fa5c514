//! The files under LevelDB: durable when it flushes them, dead after the first error.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use paxos::StorageError;
use rusty_leveldb::{
    Result, Status, StatusCode,
    env::{Env, FileLock, Logger, RandomAccess},
};

/// Longer messages of LevelDB are cut, in bytes.
const MAX_MESSAGE_BYTES: usize = 4_096;

/// Whether the files still work. The first error is kept, and everything after it is refused: a failed sync may have
/// lost data that a later one would claim to be safe, and a failed compaction must not delete its inputs.
#[derive(Debug)]
pub(super) struct Health {
    failure: Mutex<Option<StorageError>>,
    calls: AtomicU64,
    fail_at: u64,
}

impl Health {
    /// Operation number `call` will fail (for tests).
    pub(super) fn failing_at(call: u64) -> Arc<Self> {
        Arc::new(Self {
            failure: Mutex::new(None),
            calls: AtomicU64::new(0),
            fail_at: call,
        })
    }

    /// The first error.
    pub(super) fn failure(&self) -> Option<StorageError> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn fail(&self, error: StorageError) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
    }

    /// Runs an operation unless one has failed before.
    fn run<T>(&self, doing: &str, path: &Path, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.failure().is_some() {
            return Err(io::Error::other("refused after an earlier failure"));
        }
        let result = if self.calls.fetch_add(1, Ordering::Relaxed) == self.fail_at {
            Err(io::Error::other("injected fault"))
        } else {
            operation()
        };
        result.inspect_err(|error| {
            let copy = match error.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(error.kind(), error.to_string()),
            };
            self.fail(StorageError::io(format!("{doing} {}", path.display()), copy));
        })
    }
}

pub(super) struct DurableEnv {
    health: Arc<Health>,
}

impl DurableEnv {
    pub(super) fn new(health: Arc<Health>) -> Self {
        Self { health }
    }

    fn run<T>(&self, doing: &str, path: &Path, operation: impl FnOnce() -> io::Result<T>) -> Result<T> {
        Ok(self.health.run(doing, path, operation)?)
    }

    fn create(&self, path: &Path, options: &OpenOptions) -> Result<Box<dyn Write>> {
        let file = self.run("creating", path, || {
            let file = options.open(path)?;
            sync_parent(path)?;
            Ok(file)
        })?;
        Ok(Box::new(SyncedFile {
            file,
            path: path.to_owned(),
            is_dirty: true,
            health: Arc::clone(&self.health),
        }))
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), paxos::directory::sync)
}

impl Env for DurableEnv {
    fn open_sequential_file(&self, path: &Path) -> Result<Box<dyn Read>> {
        let file = match File::open(path) {
            // LevelDB finds out in this way that a database is new.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error.into()),
            opened => self.run("opening", path, || opened)?,
        };
        Ok(Box::new(CheckedReader {
            file: BufReader::new(file),
            path: path.to_owned(),
            health: Arc::clone(&self.health),
        }))
    }

    fn open_random_access_file(&self, path: &Path) -> Result<Box<dyn RandomAccess>> {
        let file = self.run("opening", path, || File::open(path))?;
        Ok(Box::new(CheckedReader {
            file,
            path: path.to_owned(),
            health: Arc::clone(&self.health),
        }))
    }

    fn open_writable_file(&self, path: &Path) -> Result<Box<dyn Write>> {
        self.create(path, OpenOptions::new().write(true).create(true).truncate(true))
    }

    fn open_appendable_file(&self, path: &Path) -> Result<Box<dyn Write>> {
        self.create(path, OpenOptions::new().append(true).create(true))
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.run("looking for", path, || path.try_exists())
    }

    fn children(&self, path: &Path) -> Result<Vec<PathBuf>> {
        self.run("listing", path, || {
            fs::read_dir(path)?
                .map(|entry| entry.map(|entry| PathBuf::from(entry.file_name())))
                .collect()
        })
    }

    fn size_of(&self, path: &Path) -> Result<usize> {
        let bytes = self.run("measuring", path, || fs::metadata(path))?.len();
        usize::try_from(bytes).map_err(|_| Status::new(StatusCode::InvalidData, "file too large"))
    }

    fn delete(&self, path: &Path) -> Result<()> {
        self.run("deleting", path, || fs::remove_file(path))
    }

    fn mkdir(&self, path: &Path) -> Result<()> {
        self.run("creating", path, || {
            fs::create_dir_all(path)?;
            sync_parent(path)
        })
    }

    fn rmdir(&self, path: &Path) -> Result<()> {
        self.run("deleting", path, || fs::remove_dir(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.run("renaming to", to, || {
            fs::rename(from, to)?;
            sync_parent(to)
        })
    }

    /// The store's directory is locked already.
    fn lock(&self, path: &Path) -> Result<FileLock> {
        let id = path.display().to_string();
        Ok(FileLock { id })
    }

    fn unlock(&self, _: FileLock) -> Result<()> {
        Ok(())
    }

    fn new_logger(&self, _: &Path) -> Result<Logger> {
        Ok(Logger::new(Box::new(io::sink())))
    }

    fn micros(&self) -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    fn sleep_for(&self, micros: u32) {
        std::thread::sleep(Duration::from_micros(micros.into()));
    }
}

/// A file that is written. LevelDB flushes its log when a write must be durable, but lets other files go without a
/// flush: they are synced then.
struct SyncedFile {
    file: File,
    path: PathBuf,
    is_dirty: bool,
    health: Arc<Health>,
}

impl Write for SyncedFile {
    /// Writes everything: LevelDB takes no notice of short writes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.is_dirty = true;
        let Self {
            file, path, health, ..
        } = self;
        health.run("writing", path, || file.write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.is_dirty {
            self.health.run("syncing", &self.path, || self.file.sync_data())?;
            self.is_dirty = false;
        }
        Ok(())
    }
}

impl Drop for SyncedFile {
    fn drop(&mut self) {
        // An error is kept by `health`, which every caller asks.
        drop(self.flush());
    }
}

/// A file that is read.
struct CheckedReader<F> {
    file: F,
    path: PathBuf,
    health: Arc<Health>,
}

impl<F: Read> Read for CheckedReader<F> {
    /// Reads as much as there is: LevelDB takes a short read for the end of the file.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self { file, path, health } = self;
        health.run("reading", path, || {
            let mut filled = 0;
            while filled < buffer.len() {
                match file.read(&mut buffer[filled..]) {
                    Ok(0) => break,
                    Ok(bytes) => filled += bytes,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(filled)
        })
    }
}

impl RandomAccess for CheckedReader<File> {
    fn read_at(&self, offset: usize, buffer: &mut [u8]) -> Result<usize> {
        let read = self.health.run("reading", &self.path, || {
            let mut filled = 0;
            while filled < buffer.len() {
                let rest = &mut buffer[filled..];
                match RandomAccess::read_at(&self.file, offset.saturating_add(filled), rest) {
                    Ok(0) => break,
                    Ok(bytes) => filled += bytes,
                    Err(status) => return Err(io::Error::other(status.to_string())),
                }
            }
            Ok(filled)
        });
        Ok(read?)
    }
}

/// What LevelDB has to say. One message is more than that: when a compaction fails for a reason of LevelDB's own, it
/// says so and goes on to delete the inputs. It does not get that far.
pub(super) struct Messages {
    line: Vec<u8>,
    health: Arc<Health>,
}

impl Messages {
    pub(super) fn new(health: Arc<Health>) -> Self {
        Self {
            line: Vec::new(),
            health,
        }
    }
}

impl Write for Messages {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte != b'\n' {
                if self.line.len() < MAX_MESSAGE_BYTES {
                    self.line.push(*byte);
                }
                continue;
            }
            let line = String::from_utf8_lossy(&self.line);
            tracing::debug!("leveldb: {line}");
            if line.contains("Compaction work failed") {
                self.health
                    .fail(StorageError::Corrupt(format!("LevelDB: {line}")));
            }
            self.line.clear();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
