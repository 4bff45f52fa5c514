//! Storage in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use paxos::{
    Accepted, Ballot, Entry, GroupId, HardState, Identity, Incarnation, Slot, StorageId, WriteOp,
    storage::{
        Finding, IndexEntry, Owner, Recovered, RecoveredGroup, Storage, StorageError, WriteBatch,
        next_incarnation,
    },
};

/// Storage in memory: lost with the process.
///
/// For tests, and for services that may lose everything. A node whose process ended comes back with an empty store: it
/// has forgotten what it promised and accepted, and a first membership admits any disk, so it must not come back as a
/// voter under its old id while the rest of the cluster lives.
#[derive(Debug)]
pub struct Memory {
    disk: MemoryDisk,
    /// A later opening of the same disk ends this one.
    opening: u64,
    is_recovered: bool,
}

/// What a [`Memory`] store keeps its data on. Clones are the same disk, so a test can crash a node and start it again on
/// what it had written.
///
/// ```
/// use paxos::{ClusterId, NodeId, storage::Owner};
/// use paxos_backends::{Memory, MemoryDisk};
///
/// let owner = Owner { cluster: ClusterId::from_name("test"), node: NodeId(1) };
/// let disk = MemoryDisk::default();
/// let first_life = Memory::open(&disk, owner)?;
/// // ... write, then:
/// disk.crash(0); // a power failure: what was not synced is gone
/// let second_life = Memory::open(&disk, owner)?;
/// # drop((first_life, second_life));
/// # Ok::<(), paxos::StorageError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    identity: Option<Identity>,
    incarnation: Incarnation,
    openings: u64,
    /// What reads see.
    groups: Groups,
    /// What a power failure leaves.
    synced: Groups,
    /// What lies between the two, in order.
    unsynced: Vec<Vec<WriteOp>>,
}

type Groups = BTreeMap<GroupId, Group>;

#[derive(Clone, Debug, Default)]
struct Group {
    hard_state: HardState,
    trimmed: Slot,
    slots: BTreeMap<Slot, Accepted>,
    /// Slots that hold an entry no more, but damage.
    damaged: BTreeSet<Slot>,
}

impl MemoryDisk {
    /// A power failure: of the batches that were not synced, the first `kept` survive. Ends the store that has the
    /// disk open.
    pub fn crash(&self, kept: usize) {
        let mut disk = self.lock();
        let disk = &mut *disk;
        disk.openings += 1;
        for ops in disk.unsynced.drain(..).take(kept) {
            apply(&mut disk.synced, &ops);
        }
        disk.groups.clone_from(&disk.synced);
    }

    /// Damages the record of a slot: what it held is gone, until it is written again. False if nothing durable is there.
    pub fn damage(&self, group: GroupId, slot: Slot) -> bool {
        let mut disk = self.lock();
        let Disk { groups, synced, .. } = &mut *disk;
        let held = synced.get_mut(&group).is_some_and(|group| group.damage(slot));
        if held && let Some(group) = groups.get_mut(&group) {
            group.damage(slot);
        }
        held
    }

    /// How many batches have been written but not synced.
    pub fn unsynced_batches(&self) -> usize {
        self.lock().unsynced.len()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    fn damage(&mut self, slot: Slot) -> bool {
        let held = self.slots.remove(&slot).is_some();
        if held {
            self.damaged.insert(slot);
        }
        held
    }
}

impl Memory {
    /// A store on a disk of its own.
    pub fn volatile(owner: Owner) -> Self {
        Self::open(&MemoryDisk::default(), owner).expect("a new disk belongs to nobody")
    }

    /// Opens the disk. A store that has it open is ended: in memory, the process that held it is this one.
    pub fn open(disk: &MemoryDisk, owner: Owner) -> Result<Self, StorageError> {
        let mut opened = disk.lock();
        let identity = *opened.identity.get_or_insert_with(|| Identity {
            cluster: owner.cluster,
            node: owner.node,
            storage: StorageId(fastrand::u64(1..)),
        });
        check_owner(identity, owner)?;
        opened.openings += 1;
        let opening = opened.openings;
        drop(opened);
        Ok(Self {
            disk: disk.clone(),
            opening,
            is_recovered: false,
        })
    }

    fn disk(&self) -> Result<MutexGuard<'_, Disk>, StorageError> {
        let disk = self.disk.lock();
        if disk.openings != self.opening {
            let error = std::io::Error::other("the disk crashed, or was opened again");
            return Err(StorageError::io("using a store in memory", error).poisoned());
        }
        if !self.is_recovered {
            return Err(StorageError::Misuse(
                "a store is used between recover and close only".into(),
            ));
        }
        Ok(disk)
    }
}

fn check_owner(identity: Identity, owner: Owner) -> Result<(), StorageError> {
    let (what, found, expected) = if identity.cluster != owner.cluster {
        ("cluster", identity.cluster.to_string(), owner.cluster.to_string())
    } else if identity.node != owner.node {
        ("node", identity.node.to_string(), owner.node.to_string())
    } else {
        return Ok(());
    };
    Err(StorageError::WrongIdentity {
        directory: "the disk in memory".into(),
        what,
        found,
        expected,
    })
}

fn check(groups: &Groups, batch: &WriteBatch) -> Result<(), StorageError> {
    let mut promises: BTreeMap<GroupId, Ballot> = BTreeMap::new();
    for op in &batch.ops {
        match op {
            WriteOp::HardState { group, state } => {
                let stored = || {
                    groups
                        .get(group)
                        .map_or(Ballot::ZERO, |group| group.hard_state.promised)
                };
                let promised = promises.entry(*group).or_insert_with(stored);
                if state.promised < *promised {
                    let error = format!("group {group}: a promise of {promised} cannot go down");
                    return Err(StorageError::Misuse(error));
                }
                *promised = state.promised;
            }
            WriteOp::Accept { slot, entry, .. } => {
                if *slot == Slot::ZERO || u32::try_from(entry.payload.len()).is_err() {
                    let error = "entries are at slot 1 or above and shorter than 4 GiB";
                    return Err(StorageError::Misuse(error.into()));
                }
            }
            WriteOp::Trim { .. } => {}
            WriteOp::RemoveGroup { group } => {
                promises.insert(*group, Ballot::ZERO);
            }
        }
    }
    Ok(())
}

fn apply(groups: &mut Groups, ops: &[WriteOp]) {
    for op in ops {
        match op {
            WriteOp::HardState { group, state } => groups.entry(*group).or_default().hard_state = *state,
            WriteOp::Accept {
                group,
                slot,
                ballot,
                entry,
            } => {
                let group = groups.entry(*group).or_default();
                if *slot > group.trimmed {
                    let accepted = Accepted {
                        ballot: *ballot,
                        entry: entry.clone(),
                    };
                    group.slots.insert(*slot, accepted);
                    group.damaged.remove(slot);
                }
            }
            WriteOp::Trim { group, upto } => {
                let group = groups.entry(*group).or_default();
                group.trimmed = group.trimmed.max(*upto);
                while let Some(first) = group.slots.first_entry()
                    && first.key() <= upto
                {
                    first.remove();
                }
                group.damaged.retain(|slot| slot > upto);
            }
            WriteOp::RemoveGroup { group } => {
                groups.remove(group);
            }
        }
    }
}

fn recovered(group: &Group) -> RecoveredGroup {
    let index = |(slot, accepted): (&Slot, &Accepted)| {
        let bytes = u32::try_from(accepted.entry.payload.len()).expect("checked when it was written");
        let ballot = accepted.ballot;
        (*slot, IndexEntry { ballot, bytes })
    };
    RecoveredGroup {
        hard_state: group.hard_state,
        trimmed: group.trimmed,
        index: group.slots.iter().map(index).collect(),
        damaged: group.damaged.iter().copied().collect(),
    }
}

fn finding((id, group): (&GroupId, &Group)) -> Option<Finding> {
    let detail = format!("{} slots are lost", group.damaged.len());
    (!group.damaged.is_empty()).then_some(Finding::Damaged { group: *id, detail })
}

#[async_trait]
impl Storage for Memory {
    async fn recover(&mut self) -> Result<Recovered, StorageError> {
        if std::mem::replace(&mut self.is_recovered, true) {
            return Err(StorageError::Misuse("recover is called once, first".into()));
        }
        let mut disk = self.disk()?;
        disk.incarnation = next_incarnation(disk.incarnation);
        Ok(Recovered {
            identity: disk.identity.expect("given when the disk was opened"),
            incarnation: disk.incarnation,
            groups: disk
                .groups
                .iter()
                .map(|(id, group)| (*id, recovered(group)))
                .collect(),
            findings: disk.groups.iter().filter_map(finding).collect(),
        })
    }

    async fn write(&mut self, batch: WriteBatch) -> Result<(), StorageError> {
        let mut disk = self.disk()?;
        let disk = &mut *disk;
        check(&disk.groups, &batch)?;
        apply(&mut disk.groups, &batch.ops);
        disk.unsynced.push(batch.ops);
        if batch.sync {
            for ops in disk.unsynced.drain(..) {
                apply(&mut disk.synced, &ops);
            }
        }
        Ok(())
    }

    async fn read(
        &mut self,
        group: GroupId,
        slots: Range<Slot>,
        max_bytes: usize,
    ) -> Result<Vec<(Slot, Accepted)>, StorageError> {
        let disk = self.disk()?;
        let mut entries = Vec::new();
        let Some(group) = disk.groups.get(&group).filter(|_| !slots.is_empty()) else {
            return Ok(entries);
        };
        let damaged = group.damaged.range(slots.clone()).next();
        let mut bytes = 0_usize;
        for (slot, accepted) in group.slots.range(slots) {
            if damaged.is_some_and(|damaged| damaged < slot) {
                break;
            }
            bytes = bytes.saturating_add(Entry::size(&accepted.entry));
            if bytes > max_bytes && !entries.is_empty() {
                return Ok(entries);
            }
            entries.push((*slot, accepted.clone()));
        }
        if let Some(slot) = damaged {
            return Err(StorageError::Corrupt(format!("slot {slot} is damaged")));
        }
        Ok(entries)
    }

    async fn close(&mut self) -> Result<(), StorageError> {
        if self.is_recovered {
            let mut disk = self.disk()?;
            let disk = &mut *disk;
            for ops in disk.unsynced.drain(..) {
                apply(&mut disk.synced, &ops);
            }
        }
        self.is_recovered = false;
        Ok(())
    }
}
