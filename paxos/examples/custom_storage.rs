//! A storage of one's own, and the proof that it is right.
//!
//! `cargo run -p paxos --features testing --example custom_storage` runs the conformance suite on a storage that keeps
//! everything in one file, rewritten whole with every batch: slow, simple, and sound. Then it runs simulated clusters on
//! it, whose nodes crash and must find everything again that they ever said. The tests plant faults in it and see both
//! find them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    ops::Range,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use paxos::{
    Accepted, Ballot, Entry, EntryKind, GroupId, HardState, Identity, Incarnation, NodeId, Slot, Storage,
    StorageError, StorageId, WriteOp,
    storage::{IndexEntry, Owner, Recovered, RecoveredGroup, WriteBatch, next_incarnation},
    testing::{
        sim::{Failure, OnStorage, Options, run},
        storage::{Place, run_all},
    },
};

/// What the file holds, as CBOR behind a checksum.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Contents {
    identity: Identity,
    incarnation: Incarnation,
    groups: BTreeMap<GroupId, Group>,
}

#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Group {
    hard_state: HardState,
    trimmed: Slot,
    /// Round and node of the ballot, kind, payload.
    slots: BTreeMap<Slot, (u64, u64, u8, serde_bytes::ByteBuf)>,
}

/// A deliberate defect, to see whether the suite notices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(dead_code, reason = "planted by the tests")]
enum Defect {
    #[default]
    None,
    ForgetsTrims,
    ReadsDamageAsAbsence,
    DropsTheSecondGroupOfABatch,
    AcknowledgesBeforeWriting,
    KeepsTheFirstOfTwoEntries,
    GoesOnAfterAnError,
    LosesTheLastBatch,
}

/// The storage.
struct OneFile {
    path: PathBuf,
    contents: Contents,
    is_recovered: bool,
    failed: Option<StorageError>,
    defect: Defect,
    /// How many times the file will still be written before the disk fails.
    saves_left: u64,
}

impl OneFile {
    /// Opens the file, or begins a new one.
    fn open(path: &Path, owner: Owner, defect: Defect) -> Result<Self, StorageError> {
        let found = if defect == Defect::LosesTheLastBatch {
            fs::read(path.with_extension("old")).or_else(|_| fs::read(path))
        } else {
            fs::read(path)
        };
        let contents = match found {
            Ok(bytes) => decode(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Contents {
                identity: Identity {
                    cluster: owner.cluster,
                    node: owner.node,
                    storage: StorageId(fastrand::u64(1..)),
                },
                ..Contents::default()
            },
            Err(error) => return Err(StorageError::io(format!("reading {}", path.display()), error)),
        };
        let found = contents.identity;
        if found.cluster != owner.cluster || found.node != owner.node {
            return Err(StorageError::WrongIdentity {
                directory: path.display().to_string(),
                what: if found.cluster == owner.cluster {
                    "node"
                } else {
                    "cluster"
                },
                found: format!("{found:?}"),
                expected: format!("{owner:?}"),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            contents,
            is_recovered: false,
            failed: None,
            defect,
            saves_left: u64::MAX,
        })
    }

    fn ready(&self) -> Result<(), StorageError> {
        if let Some(first) = &self.failed {
            return Err(first.poisoned());
        }
        if !self.is_recovered {
            return Err(StorageError::Misuse("recover comes first".into()));
        }
        Ok(())
    }

    /// Writes everything to a new file, makes it durable, and puts it in the place of the old one.
    fn save(&mut self) -> io::Result<()> {
        self.saves_left = self
            .saves_left
            .checked_sub(1)
            .ok_or_else(|| io::Error::other("injected fault"))?;
        let temporary = self.path.with_extension("new");
        let mut file = File::create(&temporary)?;
        file.write_all(&encode(&self.contents))?;
        file.sync_all()?;
        if self.defect == Defect::LosesTheLastBatch && self.path.exists() {
            fs::copy(&self.path, self.path.with_extension("old"))?;
        }
        fs::rename(&temporary, &self.path)?;
        let directory = self.path.parent().unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()
    }

    /// A file that cannot be written is the end of this store.
    fn save_or_fail(&mut self) -> Result<(), StorageError> {
        let Err(error) = self.save() else {
            return Ok(());
        };
        let error = StorageError::io(format!("writing {}", self.path.display()), error);
        if self.defect != Defect::GoesOnAfterAnError {
            self.failed = Some(error.clone());
        }
        Err(error)
    }

    fn apply(&mut self, ops: Vec<WriteOp>) {
        let first_group = ops.first().map(WriteOp::group);
        for op in ops {
            if self.defect == Defect::DropsTheSecondGroupOfABatch && Some(op.group()) != first_group {
                continue;
            }
            let id = op.group();
            match op {
                WriteOp::HardState { state, .. } => self.group(id).hard_state = state,
                WriteOp::Accept {
                    slot, ballot, entry, ..
                } => {
                    let keep = self.defect == Defect::KeepsTheFirstOfTwoEntries;
                    let group = self.group(id);
                    if slot > group.trimmed && !(keep && group.slots.contains_key(&slot)) {
                        let payload = entry.payload.to_vec().into();
                        let record = (ballot.round, ballot.node.0, entry.kind as u8, payload);
                        group.slots.insert(slot, record);
                    }
                }
                WriteOp::Trim { upto, .. } if self.defect != Defect::ForgetsTrims => {
                    let group = self.group(id);
                    group.trimmed = group.trimmed.max(upto);
                    group.slots.retain(|slot, _| *slot > upto);
                }
                WriteOp::Trim { .. } => {}
                WriteOp::RemoveGroup { .. } => {
                    self.contents.groups.remove(&id);
                }
            }
        }
    }

    fn group(&mut self, id: GroupId) -> &mut Group {
        self.contents.groups.entry(id).or_default()
    }

    /// What the contract forbids is refused before anything is changed.
    fn check(&self, ops: &[WriteOp]) -> Result<(), StorageError> {
        let mut promises: BTreeMap<GroupId, Ballot> = BTreeMap::new();
        for op in ops {
            let id = op.group();
            match op {
                WriteOp::Accept { slot: Slot(0), .. } => {
                    return Err(StorageError::Misuse("slots begin at 1".into()));
                }
                WriteOp::HardState { state, .. } => {
                    let stored = self
                        .contents
                        .groups
                        .get(&id)
                        .map(|group| group.hard_state.promised);
                    let promised = promises.entry(id).or_insert(stored.unwrap_or_default());
                    if state.promised < *promised {
                        return Err(StorageError::Misuse("promises never go down".into()));
                    }
                    *promised = state.promised;
                }
                WriteOp::RemoveGroup { .. } => {
                    promises.insert(id, Ballot::ZERO);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn encode(contents: &Contents) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    ciborium::into_writer(contents, &mut bytes).expect("memory takes everything");
    let checksum = crc32c::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Result<Contents, StorageError> {
    let (checksum, body) = bytes
        .split_first_chunk::<4>()
        .ok_or_else(|| StorageError::Corrupt("the file is cut short".into()))?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
        return Err(StorageError::Corrupt("the file has a wrong checksum".into()));
    }
    ciborium::from_reader(body).map_err(|error| StorageError::Corrupt(error.to_string()))
}

fn accepted((round, node, kind, payload): &(u64, u64, u8, serde_bytes::ByteBuf)) -> Option<Accepted> {
    Some(Accepted {
        ballot: Ballot {
            round: *round,
            node: NodeId(*node),
        },
        entry: Entry {
            kind: EntryKind::from_byte(*kind)?,
            payload: payload.to_vec().into(),
        },
    })
}

#[async_trait]
impl Storage for OneFile {
    async fn recover(&mut self) -> Result<Recovered, StorageError> {
        if let Some(first) = &self.failed {
            return Err(first.poisoned());
        }
        if std::mem::replace(&mut self.is_recovered, true) {
            return Err(StorageError::Misuse("recover is called once".into()));
        }
        self.contents.incarnation = next_incarnation(self.contents.incarnation);
        self.save_or_fail()?;
        let mut groups = BTreeMap::new();
        for (id, group) in &self.contents.groups {
            let index = group.slots.iter().map(|(slot, (round, node, _, payload))| {
                let ballot = Ballot {
                    round: *round,
                    node: NodeId(*node),
                };
                let bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                (*slot, IndexEntry { ballot, bytes })
            });
            let recovered = RecoveredGroup {
                hard_state: group.hard_state,
                trimmed: group.trimmed,
                index: index.collect(),
                damaged: Vec::new(),
            };
            groups.insert(*id, recovered);
        }
        Ok(Recovered {
            identity: self.contents.identity,
            incarnation: self.contents.incarnation,
            groups,
            findings: Vec::new(),
        })
    }

    async fn write(&mut self, batch: WriteBatch) -> Result<(), StorageError> {
        self.ready()?;
        self.check(&batch.ops)?;
        self.apply(batch.ops);
        if !batch.sync || self.defect == Defect::AcknowledgesBeforeWriting {
            return Ok(());
        }
        self.save_or_fail()
    }

    async fn read(
        &mut self,
        group: GroupId,
        slots: Range<Slot>,
        max_bytes: usize,
    ) -> Result<Vec<(Slot, Accepted)>, StorageError> {
        self.ready()?;
        let mut bytes = 0;
        let mut read = Vec::new();
        let held = self
            .contents
            .groups
            .get(&group)
            .into_iter()
            .flat_map(|group| &group.slots);
        for (slot, record) in held.filter(|(slot, _)| slots.contains(slot)) {
            let accepted = match accepted(record) {
                // Large payloads stand for damaged ones here.
                Some(accepted)
                    if self.defect != Defect::ReadsDamageAsAbsence
                        || accepted.entry.payload.len() < 1_000 =>
                {
                    accepted
                }
                Some(_) => continue,
                None => {
                    return Err(StorageError::Corrupt(format!(
                        "group {group}, slot {slot}: unknown kind"
                    )));
                }
            };
            bytes += accepted.entry.size();
            if bytes > max_bytes && !read.is_empty() {
                break;
            }
            read.push((*slot, accepted));
        }
        Ok(read)
    }

    async fn close(&mut self) -> Result<(), StorageError> {
        if self.is_recovered {
            self.save_or_fail()
        } else {
            Ok(())
        }
    }
}

/// A place for the suite: a directory of its own, in which the file is opened again and again.
struct OwnDirectory {
    directory: tempfile::TempDir,
    defect: Defect,
}

impl OwnDirectory {
    fn new(defect: Defect) -> Self {
        Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
            defect,
        }
    }
}

impl Place for OwnDirectory {
    fn open(&mut self, owner: Owner) -> Result<Box<dyn Storage>, StorageError> {
        Ok(Box::new(OneFile::open(
            &self.directory.path().join("store"),
            owner,
            self.defect,
        )?))
    }

    /// Optional: lets the suite see what an error at every single write of the file does.
    fn open_failing(&mut self, owner: Owner, call: u64) -> Option<Result<Box<dyn Storage>, StorageError>> {
        let opened = OneFile::open(&self.directory.path().join("store"), owner, self.defect);
        Some(opened.map(|mut storage| -> Box<dyn Storage> {
            storage.saves_left = call;
            Box::new(storage)
        }))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let report = run_all(|| OwnDirectory::new(Defect::None)).await;
    println!("{report}");
    if !report.failed.is_empty() {
        std::process::exit(1);
    }
    // The simulator brings its own runtime, so it needs a thread of its own here.
    let simulated = std::thread::spawn(|| simulate(Defect::None, 5));
    match simulated
        .join()
        .expect("the simulator reports panics as failures")
    {
        None => println!("5 simulated clusters lost nothing"),
        Some(failure) => {
            println!("{failure}");
            std::process::exit(1);
        }
    }
}

/// Runs clusters on the storage: their nodes crash, open it again, and must find what they had made durable.
fn simulate(defect: Defect, seeds: u64) -> Option<Failure> {
    let options = Options {
        nodes: Some(3),
        storms: Some(1),
        ..Options::default()
    };
    (1..=seeds).find_map(|seed| run(seed, &options, &OnStorage(|| OwnDirectory::new(defect))).failure)
}

#[cfg(test)]
mod tests {
    use paxos::testing::storage::Check;

    use super::*;

    #[test]
    fn simulated_clusters_on_the_sound_storage_lose_nothing() {
        assert_eq!(simulate(Defect::None, 3), None);
    }

    #[test]
    fn simulated_clusters_catch_a_storage_that_loses_the_last_batch() {
        let failure = simulate(Defect::LosesTheLastBatch, 20).expect("the loss is seen");
        assert!(["I5", "storage"].contains(&failure.violation.oracle), "{failure}");
    }

    #[test]
    fn simulated_clusters_catch_a_storage_that_tears_batches() {
        let failure = simulate(Defect::DropsTheSecondGroupOfABatch, 20).expect("the loss is seen");
        assert_eq!(failure.violation.oracle, "I5", "{failure}");
    }

    async fn is_caught(defect: Defect, by: &str) {
        let check = Check::named(by).expect("there is a check of this name");
        assert_eq!(check.run(|| OwnDirectory::new(Defect::None)).await, Ok(()));
        let caught = check.run(|| OwnDirectory::new(defect)).await;
        assert!(caught.is_err(), "{defect:?} is not caught by {by}");
    }

    #[tokio::test]
    async fn the_sound_storage_passes() {
        let report = run_all(|| OwnDirectory::new(Defect::None)).await;
        assert_eq!(report.failed, [], "{report}");
    }

    #[tokio::test]
    async fn a_storage_that_forgets_trims_is_caught() {
        is_caught(Defect::ForgetsTrims, "trimming_drops_everything_up_to_the_mark").await;
    }

    #[tokio::test]
    async fn a_storage_that_reads_damage_as_absence_is_caught() {
        is_caught(Defect::ReadsDamageAsAbsence, "payloads_of_all_sizes_come_back").await;
    }

    #[tokio::test]
    async fn a_storage_that_tears_batches_is_caught() {
        is_caught(Defect::DropsTheSecondGroupOfABatch, "a_batch_spans_groups").await;
    }

    #[tokio::test]
    async fn a_storage_that_acknowledges_too_early_is_caught() {
        is_caught(Defect::AcknowledgesBeforeWriting, "a_hard_state_comes_back").await;
    }

    #[tokio::test]
    async fn a_storage_that_does_not_overwrite_is_caught() {
        is_caught(Defect::KeepsTheFirstOfTwoEntries, "a_higher_ballot_overwrites").await;
    }

    #[tokio::test]
    async fn a_storage_that_goes_on_after_an_error_is_caught() {
        is_caught(
            Defect::GoesOnAfterAnError,
            "a_fault_at_any_call_loses_nothing_acknowledged",
        )
        .await;
    }
}
