//! The directory of a store: who owns it, who has it open, and what was durable last.
//!
//! ```text
//! lock         locked by the process that has the store open
//! identity     format, backend, cluster, node and storage id: text, written once
//! last-commit  the number of the last commit that was acknowledged as durable: commit u64, crc32c u32
//! ```
//!
//! Engines cannot notice that they have lost their last commits (a damaged log simply ends earlier); `last-commit` shows
//! it. It is written after every durable commit but synced rarely, so it costs next to nothing; after a power failure
//! it may be a little behind, which is harmless.

use std::{
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use paxos::{
    ClusterId, Identity, NodeId, StorageId, directory, record,
    storage::{Owner, StorageError},
};

use crate::files::write_all_at;

const LOCK: &str = "lock";
const IDENTITY: &str = "identity";
const LAST_COMMIT: &str = "last-commit";
const TITLE: &str = "paxos storage";
const MAX_IDENTITY_BYTES: u64 = 4_096;
const LAST_COMMIT_BYTES: usize = 8 + 4;

#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    identity: Identity,
    /// Held open for its lock; `None` once the store is closed.
    lock: Option<File>,
    last_commit: File,
    last_synced: u64,
}

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.path.display(), f)
    }
}

impl Directory {
    /// Creates the directory or finds it; locks it; checks whose it is.
    pub(super) fn open(path: &Path, backend: &'static str, owner: Owner) -> Result<Self, StorageError> {
        directory::create(path).map_err(|error| failed("creating the data directory", path, error))?;
        let lock = lock(path)?;
        let identity = match read_identity(path, backend)? {
            Some(identity) => identity,
            None => create(path, backend, owner)?,
        };
        check_owner(path, identity, owner)?;
        let (last_commit, last_synced) = open_last_commit(path, identity)?;
        Ok(Self {
            path: path.to_owned(),
            identity,
            lock: Some(lock),
            last_commit,
            last_synced,
        })
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// The last commit known to have been durable.
    pub(super) fn last_synced(&self) -> u64 {
        self.last_synced
    }

    /// Notes that this commit is durable.
    pub(super) fn synced(&mut self, commit: u64) -> Result<(), StorageError> {
        self.last_synced = commit;
        let bytes = encode_last_commit(self.identity, commit);
        write_all_at(&self.last_commit, &bytes, 0)
            .map_err(|error| failed("writing", &self.path.join(LAST_COMMIT), error))
    }

    /// Makes the note itself durable.
    pub(super) fn sync(&self) -> Result<(), StorageError> {
        self.last_commit
            .sync_data()
            .map_err(|error| failed("syncing", &self.path.join(LAST_COMMIT), error))
    }

    pub(super) fn unlock(&mut self) {
        self.lock = None;
    }

    pub(super) fn wrong_version(&self, found: u8) -> StorageError {
        wrong_format(&self.path, format!("{found} in a record"))
    }
}

fn failed(doing: &str, path: &Path, error: io::Error) -> StorageError {
    StorageError::io(format!("{doing} {}", path.display()), error)
}

fn wrong_format(path: &Path, found: String) -> StorageError {
    StorageError::WrongFormat {
        directory: path.display().to_string(),
        found,
        expected: record::VERSION.to_string(),
    }
}

fn lock(path: &Path) -> Result<File, StorageError> {
    let file = path.join(LOCK);
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&file)
        .map_err(|error| failed("creating", &file, error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StorageError::Locked {
            directory: path.display().to_string(),
        }),
        Err(TryLockError::Error(error)) => Err(failed("locking", &file, error)),
    }
}

/// Makes a new store. The identity comes last: without it there is no store.
fn create(path: &Path, backend: &'static str, owner: Owner) -> Result<Identity, StorageError> {
    refuse_orphans(path)?;
    let identity = Identity {
        cluster: owner.cluster,
        node: owner.node,
        storage: StorageId(fastrand::u64(1..)),
    };
    let last_commit = path.join(LAST_COMMIT);
    write_synced(&last_commit, &encode_last_commit(identity, 0))
        .map_err(|error| failed("writing", &last_commit, error))?;
    let file = path.join(IDENTITY);
    let temporary = path.join("identity.new");
    write_synced(&temporary, encode_identity(backend, identity).as_bytes())
        .and_then(|()| fs::rename(&temporary, &file))
        .and_then(|()| directory::sync(path))
        .map_err(|error| failed("writing", &file, error))?;
    Ok(identity)
}

/// Data without an identity is not overwritten.
fn refuse_orphans(path: &Path) -> Result<(), StorageError> {
    let entries = fs::read_dir(path).map_err(|error| failed("listing", path, error))?;
    for entry in entries {
        let name = entry.map_err(|error| failed("listing", path, error))?.file_name();
        let name = name.to_string_lossy();
        if crate::Backend::ALL
            .iter()
            .any(|backend| name.starts_with(backend.name()))
        {
            return Err(StorageError::Corrupt(format!(
                "{} has {name} but no file \"{IDENTITY}\": whose data it is cannot be told",
                path.display()
            )));
        }
    }
    Ok(())
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn encode_identity(backend: &str, identity: Identity) -> String {
    let fields = format!(
        "{TITLE}\nformat {}\nbackend {backend}\ncluster {:016x}\nnode {}\nstorage {:016x}\n",
        record::VERSION,
        identity.cluster.0,
        identity.node,
        identity.storage.0,
    );
    let checksum = crc32c::crc32c(fields.as_bytes());
    format!("{fields}checksum {checksum:08x}\n")
}

fn read_identity(path: &Path, backend: &'static str) -> Result<Option<Identity>, StorageError> {
    let file = path.join(IDENTITY);
    let mut bytes = Vec::new();
    let read = File::open(&file).and_then(|open| open.take(MAX_IDENTITY_BYTES).read_to_end(&mut bytes));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("reading", &file, error)),
        Ok(_) => {}
    }
    let damaged = || StorageError::Corrupt(format!("{} is damaged", file.display()));
    let text = String::from_utf8(bytes).map_err(|_| damaged())?;
    if !text.starts_with(TITLE) {
        return Err(damaged());
    }
    let (fields, checksum) = text.rsplit_once("checksum ").ok_or_else(damaged)?;
    if u32::from_str_radix(checksum.trim_end(), 16) != Ok(crc32c::crc32c(fields.as_bytes())) {
        return Err(damaged());
    }
    let field = |name: &str| {
        let mut lines = fields.lines().filter_map(|line| line.split_once(' '));
        lines
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
            .ok_or_else(damaged)
    };
    let number = |name, radix| u64::from_str_radix(field(name)?, radix).map_err(|_| damaged());
    if number("format", 10)? != u64::from(record::VERSION) {
        return Err(wrong_format(path, field("format")?.to_owned()));
    }
    if field("backend")? != backend {
        return Err(StorageError::WrongFormat {
            directory: path.display().to_string(),
            found: format!("of backend {}", field("backend")?),
            expected: format!("that of backend {backend}"),
        });
    }
    Ok(Some(Identity {
        cluster: ClusterId(number("cluster", 16)?),
        node: NodeId(number("node", 10)?),
        storage: StorageId(number("storage", 16)?),
    }))
}

fn check_owner(path: &Path, found: Identity, owner: Owner) -> Result<(), StorageError> {
    let wrong = |what, found: String, expected: String| StorageError::WrongIdentity {
        directory: path.display().to_string(),
        what,
        found,
        expected,
    };
    if found.cluster != owner.cluster {
        return Err(wrong(
            "cluster",
            found.cluster.to_string(),
            owner.cluster.to_string(),
        ));
    }
    if found.node != owner.node {
        return Err(wrong("node", found.node.to_string(), owner.node.to_string()));
    }
    Ok(())
}

fn encode_last_commit(identity: Identity, commit: u64) -> [u8; LAST_COMMIT_BYTES] {
    let number = commit.to_le_bytes();
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&identity.storage.0.to_le_bytes()), &number);
    let mut bytes = [0; LAST_COMMIT_BYTES];
    bytes[..8].copy_from_slice(&number);
    bytes[8..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn open_last_commit(path: &Path, identity: Identity) -> Result<(File, u64), StorageError> {
    let file = path.join(LAST_COMMIT);
    let mut bytes = Vec::new();
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&file)
        .map_err(|error| failed("opening", &file, error))?;
    (&open)
        .take(LAST_COMMIT_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| failed("reading", &file, error))?;
    let number = bytes.first_chunk::<8>().map(|number| u64::from_le_bytes(*number));
    match number {
        Some(commit) if bytes == encode_last_commit(identity, commit) => Ok((open, commit)),
        _ => Err(StorageError::Corrupt(format!(
            "{} is damaged: whether the store is complete cannot be told",
            file.display()
        ))),
    }
}
