//! Which directories are opened, by whom, and what is said about those that are not.

mod support;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use paxos::{ClusterId, NodeId, StorageError, record, storage::Owner};
use paxos_backends::Backend;
use support::{DURABLE, OWNER, block_on, hard_state, open, recover, write};

const DIRECTORY: &str = "PAXOS_TEST_HOLD";

fn used(backend: Backend) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    block_on(async {
        let (mut storage, _) = recover(backend, directory.path()).await.expect("a new store");
        write(&mut *storage, vec![hard_state(0, 1, 0)])
            .await
            .expect("a sound write");
        storage.close().await.expect("the store closes");
    });
    directory
}

fn refusal(backend: Backend, directory: &Path, owner: Owner) -> StorageError {
    let opened = paxos_backends::open(backend, directory, owner);
    opened.map(drop).expect_err("it must be refused")
}

#[test]
fn directories_are_created_with_their_parents() {
    for backend in DURABLE {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let nested = directory.path().join("a/b/c");
        let (_, recovered) = block_on(recover(backend, &nested)).expect("a new store");
        assert_eq!(recovered.groups.len(), 0);
    }
}

#[test]
fn other_clusters_and_nodes_are_told_whose_directory_it_is() {
    for backend in DURABLE {
        let directory = used(backend);
        let stranger = Owner {
            cluster: ClusterId(0xBAD),
            ..OWNER
        };
        let error = refusal(backend, directory.path(), stranger).to_string();
        assert!(
            error.contains("cluster 000000000000beef") && error.contains("0000000000000bad"),
            "{error}"
        );
        let other = Owner {
            node: NodeId(3),
            ..OWNER
        };
        let error = refusal(backend, directory.path(), other).to_string();
        assert!(error.contains("belongs to node 2, not to 3"), "{error}");
        assert!(error.contains(&directory.path().display().to_string()), "{error}");
    }
}

#[test]
fn a_newer_format_is_refused() {
    for backend in DURABLE {
        let directory = used(backend);
        let file = directory.path().join("identity");
        let text = fs::read_to_string(&file).expect("a text");
        let (fields, _) = text.rsplit_once("checksum ").expect("a checksum");
        let (current, next) = (record::VERSION, record::VERSION + 1);
        let newer = fields.replace(&format!("format {current}"), &format!("format {next}"));
        assert_ne!(newer, fields);
        let checksum = crc32c::crc32c(newer.as_bytes());
        fs::write(&file, format!("{newer}checksum {checksum:08x}\n")).expect("a writable file");
        let error = refusal(backend, directory.path(), OWNER);
        assert!(matches!(error, StorageError::WrongFormat { .. }), "{error:?}");
        let expected = format!("format {next}, this program reads {current}");
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

#[test]
fn data_without_an_identity_is_not_overwritten() {
    for backend in DURABLE {
        let directory = used(backend);
        fs::remove_file(directory.path().join("identity")).expect("a file");
        let error = refusal(backend, directory.path(), OWNER);
        assert!(matches!(error, StorageError::Corrupt(_)), "{error:?}");
    }
}

#[test]
fn a_missing_database_is_not_taken_for_an_empty_one() {
    for (backend, data) in [
        (Backend::Wal, "wal"),
        (Backend::LevelDb, "leveldb"),
        (Backend::Sqlite, "sqlite.db"),
    ] {
        let directory = used(backend);
        let data = directory.path().join(data);
        if data.is_dir() {
            fs::remove_dir_all(data).expect("a directory");
        } else {
            fs::remove_file(data).expect("a file");
        }
        let opened = block_on(recover(backend, directory.path())).map(drop);
        assert!(
            matches!(opened, Err(StorageError::Corrupt(_))),
            "{backend}: {opened:?}"
        );
    }
}

#[test]
fn a_store_opens_once_at_a_time() {
    for backend in DURABLE {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let first = open(backend, directory.path()).expect("a new store");
        let error = refusal(backend, directory.path(), OWNER);
        assert!(matches!(error, StorageError::Locked { .. }), "{error:?}");
        drop(first);
        open(backend, directory.path())
            .map(drop)
            .expect("nobody has it open any more");
    }
}

/// Not a test: the process that holds the store until it is killed.
#[test]
fn holder_process() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let held = open(Backend::LevelDb, directory.as_ref()).expect("a new store");
    println!("\nholding");
    std::thread::sleep(std::time::Duration::from_mins(1));
    drop(held);
}

#[test]
fn a_second_process_is_refused_until_the_first_is_gone() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut holder = Command::new(std::env::current_exe().expect("this program has a path"))
        .args(["holder_process", "--exact", "--nocapture"])
        .env(DIRECTORY, directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a second process");
    let lines = BufReader::new(holder.stdout.take().expect("piped")).lines();
    let is_holding = lines.map_while(Result::ok).any(|line| line == "holding");
    let error = is_holding.then(|| refusal(Backend::LevelDb, directory.path(), OWNER));
    holder.kill().expect("it can be killed");
    holder.wait().expect("it ends");
    let error = error.expect("the second process opened the store");
    assert!(matches!(error, StorageError::Locked { .. }), "{error:?}");
    assert!(error.to_string().contains("in use by another process"), "{error}");
    open(Backend::LevelDb, directory.path())
        .map(drop)
        .expect("a dead process holds no lock");
}

#[test]
fn a_path_that_cannot_be_a_directory_is_said_to_be_so() {
    for backend in DURABLE {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        for path in [file.path().to_owned(), file.path().join("below")] {
            let error = refusal(backend, &path, OWNER);
            assert!(matches!(error, StorageError::Io { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("creating the data directory"), "{text}");
            assert!(text.contains(&path.display().to_string()), "{text}");
        }
    }
}

#[test]
fn backends_have_names() {
    for backend in Backend::ALL {
        assert_eq!(backend.to_string().parse(), Ok(backend));
        assert!(backend.is_built_in(), "the tests are built with all of them");
    }
    let unknown = "rocksdb"
        .parse::<Backend>()
        .expect_err("there is none of that name");
    assert_eq!(
        unknown.to_string(),
        "there is no storage backend \"rocksdb\"; this program has: memory, wal, leveldb, sqlite"
    );
}
