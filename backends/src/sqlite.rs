//! Storage in SQLite (through `sqlx`).
//!
//! One table: `records(grp, slot, record)`, the primary key being `(grp, slot)`. The record of a group is at slot 0, that of the
//! store in group -1. So a commit is one multi-row statement in a transaction of its own, whatever it holds: a
//! statement costs two hand-offs between threads, which is more than SQLite's own work.
//!
//! WAL mode with full syncs makes a commit durable with one sync. Checkpoints are run by us: SQLite would ignore their
//! errors, and a failed sync of the database file must not be followed by a successful one.

use std::{collections::BTreeMap, io, path::Path, path::PathBuf};

use bytes::Bytes;
use paxos::{
    GroupId, Slot,
    storage::{Finding, Owner, StorageError},
};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqliteSynchronous},
};

use crate::durable::{Changes, Engine, Key, Opening, Store, Visit, storage_by_store};

/// The group of the store's own record.
const STORE: i64 = -1;
/// How many rows one statement writes at the most.
const MAX_ROWS: usize = 512;
/// How many rows one statement reads when the store is opened.
const PAGE_ROWS: usize = 64;
/// How much is committed between two checkpoints, in bytes of records.
const CHECKPOINT_BYTES: usize = 4 << 20;
/// What a row costs beside its record, as a guess, in bytes.
const ROW_OVERHEAD_BYTES: usize = 32;
const STATEMENT_CACHE: usize = 128;

/// Storage in SQLite, in WAL mode with full syncs: one sync per write.
///
/// Survives `kill -9` and power failures. Must be used inside a tokio runtime.
#[derive(Debug)]
pub struct Sqlite(Store<SqliteEngine>);

storage_by_store!(Sqlite);

impl Sqlite {
    /// Claims the directory, which is created if it does not exist, for this owner; the database is opened by
    /// [`recover`](paxos::Storage::recover).
    pub fn open(directory: impl AsRef<Path>, owner: Owner) -> Result<Self, StorageError> {
        let directory = directory.as_ref();
        let engine = SqliteEngine {
            path: directory.join("sqlite.db"),
            connection: None,
            unchecked_bytes: 0,
        };
        Store::open(directory, "sqlite", owner, engine).map(Self)
    }
}

pub(crate) struct SqliteEngine {
    path: PathBuf,
    connection: Option<SqliteConnection>,
    /// Committed since the last checkpoint.
    unchecked_bytes: usize,
}

impl SqliteEngine {
    async fn connect(&mut self, is_new: bool) -> Result<(), StorageError> {
        if !is_new && !self.path.exists() {
            let error = format!("{}: the database is missing", self.path.display());
            return Err(StorageError::Corrupt(error));
        }
        let options = SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(is_new)
            .page_size(4_096)
            .locking_mode(SqliteLockingMode::Exclusive)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(false)
            .pragma("wal_autocheckpoint", "0")
            .pragma("temp_store", "memory")
            .statement_cache_capacity(STATEMENT_CACHE)
            .disable_statement_logging();
        let connected = options.connect().await;
        let connected = connected.map_err(|error| storage_error("opening", &self.path, error))?;
        let connection = self.connection.insert(connected);
        let settings =
            sqlx::query("SELECT journal_mode, synchronous FROM pragma_journal_mode, pragma_synchronous")
                .fetch_one(&mut *connection)
                .await
                .and_then(|row| Ok((row.try_get::<String, _>(0)?, row.try_get::<i64, _>(1)?)))
                .map_err(|error| storage_error("reading the settings of", &self.path, error))?;
        if settings != ("wal".to_owned(), 2) {
            return Err(StorageError::io(
                format!("opening {}", self.path.display()),
                io::Error::other(format!(
                    "SQLite refuses to be durable: its settings are {settings:?}"
                )),
            ));
        }
        if is_new {
            self.execute(
                "CREATE TABLE IF NOT EXISTS records (grp INTEGER NOT NULL, slot INTEGER NOT NULL, \
                 record BLOB NOT NULL, PRIMARY KEY (grp, slot)) WITHOUT ROWID",
            )
            .await?;
            if let Some(directory) = self.path.parent() {
                paxos::directory::sync(directory)
                    .map_err(|error| StorageError::io(format!("syncing {}", directory.display()), error))?;
            }
        }
        Ok(())
    }

    fn connection(&mut self) -> Result<&mut SqliteConnection, StorageError> {
        let closed = || StorageError::Misuse("the database is closed".into());
        self.connection.as_mut().ok_or_else(closed)
    }

    async fn execute(&mut self, statement: &'static str) -> Result<(), StorageError> {
        let done = sqlx::query(statement).execute(self.connection()?).await;
        done.map_err(|error| storage_error("writing to", &self.path, error))?;
        Ok(())
    }

    async fn put(&mut self, rows: &[(Key, &Bytes)]) -> Result<(), StorageError> {
        let Some(last) = rows.last().copied() else {
            return Ok(());
        };
        let count = bucket(rows.len());
        let statement = put_statement(count);
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for (key, record) in rows.iter().copied().chain(std::iter::repeat(last)).take(count) {
            let (group, slot) = columns(key);
            query = query.bind(group).bind(slot).bind(&record[..]);
        }
        let done = query.execute(self.connection()?).await;
        done.map_err(|error| storage_error("writing to", &self.path, error))?;
        Ok(())
    }

    async fn delete(&mut self, first: Key, last: Key) -> Result<(), StorageError> {
        let (group, first) = columns(first);
        let (_, last) = columns(last);
        let done = sqlx::query("DELETE FROM records WHERE grp = ? AND slot BETWEEN ? AND ?")
            .bind(group)
            .bind(first)
            .bind(last)
            .execute(self.connection()?)
            .await;
        done.map_err(|error| storage_error("writing to", &self.path, error))?;
        Ok(())
    }

    /// Damage of records is dealt with above; writing into damaged trees would make it worse.
    async fn check_structure(&mut self) -> Result<(), StorageError> {
        let row = sqlx::query("PRAGMA quick_check(1)")
            .fetch_one(self.connection()?)
            .await;
        let verdict: Result<String, _> = row.and_then(|row| row.try_get(0));
        match verdict {
            Ok(verdict) if verdict == "ok" => Ok(()),
            Ok(verdict) => Err(StorageError::Corrupt(format!(
                "{}: {verdict}",
                self.path.display()
            ))),
            Err(error) => Err(storage_error("checking", &self.path, error)),
        }
    }

    async fn checkpoint(&mut self) -> Result<(), StorageError> {
        self.unchecked_bytes = 0;
        // One row: whether it was blocked, pages in the WAL, pages moved out of it.
        let row = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
            .fetch_one(self.connection()?)
            .await;
        let is_blocked = row.and_then(|row| row.try_get::<i64, _>(0));
        match is_blocked {
            Ok(0) => Ok(()),
            Ok(_) => Err(StorageError::io(
                format!("checkpointing {}", self.path.display()),
                io::Error::other("another connection blocks it"),
            )),
            Err(error) => Err(storage_error("checkpointing", &self.path, error)),
        }
    }
}

impl Engine for SqliteEngine {
    async fn load(&mut self, opening: Opening, visit: &mut Visit<'_>) -> Result<Vec<Finding>, StorageError> {
        self.connect(opening.is_new()).await?;
        let statement = format!(
            "SELECT grp, slot, record FROM records WHERE (grp, slot) > (?, ?) ORDER BY grp, slot LIMIT {PAGE_ROWS}"
        );
        let statement = AssertSqlSafe(std::sync::Arc::<str>::from(statement));
        let mut after = (i64::MIN, i64::MIN);
        loop {
            let query = sqlx::query(AssertSqlSafe(std::sync::Arc::clone(&statement.0)));
            let rows = query
                .bind(after.0)
                .bind(after.1)
                .fetch_all(self.connection()?)
                .await;
            let rows = rows.map_err(|error| storage_error("scanning", &self.path, error))?;
            for row in &rows {
                let columns = row.try_get(0).and_then(|group| Ok((group, row.try_get(1)?)));
                let columns = columns.map_err(|error| storage_error("scanning", &self.path, error))?;
                if columns <= after {
                    let at = self.path.display();
                    return Err(StorageError::Corrupt(format!("{at}: rows are out of order")));
                }
                after = columns;
                if let Some(key) = key(columns) {
                    // Damage may have changed the type, too; nothing is no valid record.
                    let record: Vec<u8> = row.try_get(2).unwrap_or_default();
                    visit(key, Some(record.into()));
                }
            }
            if rows.len() < PAGE_ROWS {
                self.check_structure().await?;
                // What a failed sync left in the page cache is no proof: all of the WAL must reach the database,
                // synced, before anything is written behind it.
                self.checkpoint().await?;
                return Ok(Vec::new());
            }
        }
    }

    async fn commit(&mut self, changes: Changes, _number: u64, _sync: bool) -> Result<(), StorageError> {
        let mut rows = Vec::with_capacity(changes.len());
        let mut deletes: Vec<(Key, Key)> = Vec::new();
        for (key, record) in &changes {
            match record {
                Some(record) => {
                    self.unchecked_bytes += record.len() + ROW_OVERHEAD_BYTES;
                    rows.push((*key, record));
                }
                None => match deletes.last_mut() {
                    Some((_, last)) if follows(*last, *key) => *last = *key,
                    _ => deletes.push((*key, *key)),
                },
            }
        }
        if deletes.is_empty() && rows.len() <= MAX_ROWS {
            self.put(&rows).await?;
        } else {
            self.execute("BEGIN IMMEDIATE").await?;
            for (first, last) in deletes {
                self.delete(first, last).await?;
            }
            for rows in rows.chunks(MAX_ROWS) {
                self.put(rows).await?;
            }
            self.execute("COMMIT").await?;
        }
        if self.unchecked_bytes >= CHECKPOINT_BYTES {
            self.checkpoint().await?;
        }
        Ok(())
    }

    async fn read(&mut self, group: GroupId, slots: &[Slot]) -> Result<Vec<Option<Bytes>>, StorageError> {
        let mut found = BTreeMap::new();
        // Slots beyond i64::MAX are negative in SQLite, so no statement crosses that border.
        for run in slots.chunk_by(|one, next| one.0.cast_signed() < next.0.cast_signed()) {
            let (first, last) = (run[0].0.cast_signed(), run[run.len() - 1].0.cast_signed());
            let statement = "SELECT slot, record FROM records WHERE grp = ? AND slot BETWEEN ? AND ?";
            let rows = sqlx::query(statement)
                .bind(i64::from(group.0))
                .bind(first)
                .bind(last)
                .fetch_all(self.connection()?)
                .await
                .map_err(|error| storage_error("reading", &self.path, error))?;
            for row in rows {
                if let (Ok(slot), Ok(record)) = (row.try_get::<i64, _>(0), row.try_get::<Vec<u8>, _>(1)) {
                    found.insert(Slot(slot.cast_unsigned()), Bytes::from(record));
                }
            }
        }
        Ok(slots.iter().map(|slot| found.remove(slot)).collect())
    }

    async fn close(&mut self) -> Result<(), StorageError> {
        self.checkpoint().await?;
        match self.connection.take() {
            Some(connection) => connection
                .close()
                .await
                .map_err(|error| storage_error("closing", &self.path, error)),
            None => Ok(()),
        }
    }
}

/// How many rows a statement for this many has. The last row is repeated to fill it up, which changes nothing; so there
/// are few different statements, and all of them stay prepared.
fn bucket(rows: usize) -> usize {
    if rows <= 8 {
        rows
    } else {
        rows.next_multiple_of((rows.next_power_of_two() / 8).max(1))
    }
}

fn put_statement(rows: usize) -> String {
    let mut statement = String::from("INSERT OR REPLACE INTO records (grp, slot, record) VALUES (?,?,?)");
    statement.extend(std::iter::repeat_n(",(?,?,?)", rows - 1));
    statement
}

fn columns(key: Key) -> (i64, i64) {
    match key {
        Key::Store => (STORE, 0),
        Key::Group(group) => (group.0.into(), 0),
        Key::Slot(group, slot) => (group.0.into(), slot.0.cast_signed()),
    }
}

/// A key that is none of ours is passed over: if it was one once, the summaries miss it.
fn key((group, slot): (i64, i64)) -> Option<Key> {
    if (group, slot) == (STORE, 0) {
        return Some(Key::Store);
    }
    let group = GroupId(group.try_into().ok()?);
    Some(match slot {
        0 => Key::Group(group),
        slot => Key::Slot(group, Slot(slot.cast_unsigned())),
    })
}

fn follows(last: Key, next: Key) -> bool {
    let (group, slot) = columns(last);
    slot.checked_add(1).map(|slot| (group, slot)) == Some(columns(next))
}

fn storage_error(doing: &str, path: &Path, error: sqlx::Error) -> StorageError {
    const ERROR: i32 = 1;
    const CORRUPT: i32 = 11;
    const FULL: i32 = 13;
    const NOT_A_DATABASE: i32 = 26;
    let doing = format!("{doing} {}", path.display());
    let code = error
        .as_database_error()
        .and_then(|error| error.code()?.parse::<i32>().ok());
    match code.map(|code| code & 0xff) {
        Some(FULL) => StorageError::io(doing, io::Error::new(io::ErrorKind::StorageFull, error)),
        // The statements are right: if SQLite cannot make sense of one, the schema is damaged.
        Some(ERROR | CORRUPT | NOT_A_DATABASE) => StorageError::Corrupt(format!("{doing}: {error}")),
        _ if matches!(error, sqlx::Error::ColumnDecode { .. }) => {
            StorageError::Corrupt(format!("{doing}: {error}"))
        }
        _ => StorageError::io(doing, io::Error::other(error)),
    }
}
