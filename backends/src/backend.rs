//! The choice of a backend at run time.

use std::{fmt, path::Path, str::FromStr};

use paxos::{
    Storage,
    storage::{Owner, StorageError},
};

/// The backends of this crate, built in or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// In memory: everything is lost when the process ends.
    Memory,
    /// A write-ahead log.
    Wal,
    /// LevelDB.
    LevelDb,
    /// SQLite.
    Sqlite,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Wal, Self::LevelDb, Self::Sqlite];

    /// Its name, which is the name of its cargo feature too.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Wal => "wal",
            Self::LevelDb => "leveldb",
            Self::Sqlite => "sqlite",
        }
    }

    /// Whether this program can use it.
    pub const fn is_built_in(self) -> bool {
        match self {
            Self::Memory => cfg!(feature = "memory"),
            Self::Wal => cfg!(feature = "wal"),
            Self::LevelDb => cfg!(feature = "leveldb"),
            Self::Sqlite => cfg!(feature = "sqlite"),
        }
    }

    /// Those that this program can use.
    pub fn built_in() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|backend| backend.is_built_in())
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = UnknownBackend;

    fn from_str(name: &str) -> Result<Self, UnknownBackend> {
        let found = Self::ALL.into_iter().find(|backend| backend.name() == name);
        found.ok_or_else(|| UnknownBackend(name.to_owned()))
    }
}

/// A name that is no backend's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownBackend(String);

impl fmt::Display for UnknownBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let built_in: Vec<_> = Backend::built_in().map(Backend::name).collect();
        write!(
            f,
            "there is no storage backend \"{}\"; this program has: {}",
            self.0,
            built_in.join(", ")
        )
    }
}

impl std::error::Error for UnknownBackend {}

/// Opens the store of this owner in a directory, which is created if it does not exist (and not looked at by
/// [`Backend::Memory`]).
pub fn open(backend: Backend, directory: &Path, owner: Owner) -> Result<Box<dyn Storage>, StorageError> {
    let _ = (directory, owner);
    match backend {
        #[cfg(feature = "memory")]
        Backend::Memory => Ok(Box::new(crate::Memory::volatile(owner))),
        #[cfg(feature = "wal")]
        Backend::Wal => Ok(Box::new(crate::Wal::open(directory, owner)?)),
        #[cfg(feature = "leveldb")]
        Backend::LevelDb => Ok(Box::new(crate::LevelDb::open(directory, owner)?)),
        #[cfg(feature = "sqlite")]
        Backend::Sqlite => Ok(Box::new(crate::Sqlite::open(directory, owner)?)),
        #[allow(unreachable_patterns, reason = "depends on the features")]
        missing => Err(StorageError::Misuse(format!(
            "this program was built without the storage backend {missing}; build it with the cargo feature \"{missing}\""
        ))),
    }
}
