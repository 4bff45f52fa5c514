//! A disk, a network and a service that do what a test tells them to.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use paxos::{
    Accepted, ClusterId, GroupId, HardState, Identity, Incarnation, NodeId, Slot, SnapshotSource, Storage,
    StorageError, StorageId, Transport, TransportError, WriteBatch, WriteOp,
    snapshot::{Chunk, Found, MemorySnapshots, Received, SnapshotError, SnapshotHeader, SnapshotStore},
    storage::{IndexEntry, Recovered, RecoveredGroup},
    transport::{Inbox, Incoming, Outgoing, Peer, SendError},
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A disk that outlives its node. Clones are the same disk; a later life of the node ends what an earlier one still does.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Mutex<DiskState>>, Incarnation);

#[derive(Default)]
struct DiskState {
    identity: Identity,
    incarnation: Incarnation,
    groups: BTreeMap<GroupId, DiskGroup>,
    damaged: BTreeSet<(GroupId, Slot)>,
    rotten: BTreeSet<(GroupId, Slot)>,
    fault: Option<Fault>,
    write_takes: Duration,
    byte_takes: Duration,
    syncs: u64,
    closed: bool,
}

#[derive(Default)]
struct DiskGroup {
    hard_state: HardState,
    trimmed: Slot,
    entries: BTreeMap<Slot, Accepted>,
}

#[derive(Clone, Copy)]
pub(crate) enum Fault {
    Full,
    Broken,
    Panic,
}

impl Disk {
    pub(crate) fn new(node: u64) -> Self {
        Self::with_id(node, StorageId(node * 100))
    }

    /// An empty disk in the place of another one.
    pub(crate) fn another(node: u64) -> Self {
        Self::with_id(node, StorageId(node * 100 + 1))
    }

    fn with_id(node: u64, storage: StorageId) -> Self {
        let identity = Identity {
            cluster: ClusterId::from_name("test"),
            node: NodeId(node),
            storage,
        };
        Self(
            Arc::new(Mutex::new(DiskState {
                identity,
                ..DiskState::default()
            })),
            Incarnation(0),
        )
    }

    /// From now on every write fails like this.
    pub(crate) fn fail(&self, fault: Fault) {
        lock(&self.0).fault = Some(fault);
    }

    /// As a new disk with the old content.
    pub(crate) fn mend(&self) {
        lock(&self.0).fault = None;
    }

    pub(crate) fn write_takes(&self, duration: Duration) {
        lock(&self.0).write_takes = duration;
    }

    /// Each byte of an entry takes this long to write.
    pub(crate) fn byte_takes(&self, duration: Duration) {
        lock(&self.0).byte_takes = duration;
    }

    pub(crate) fn damage(&self, group: GroupId, slot: Slot) {
        let mut disk = lock(&self.0);
        disk.groups.entry(group).or_default().entries.remove(&slot);
        disk.damaged.insert((group, slot));
    }

    /// Reads of this slot find damage that nobody has noticed yet, until it is written again.
    pub(crate) fn rot(&self, group: GroupId, slot: Slot) {
        lock(&self.0).rotten.insert((group, slot));
    }

    /// Whether somewhere damage waits to be noticed.
    pub(crate) fn is_rotten(&self) -> bool {
        !lock(&self.0).rotten.is_empty()
    }

    pub(crate) fn syncs(&self) -> u64 {
        lock(&self.0).syncs
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.0).closed
    }
}

#[async_trait]
impl Storage for Disk {
    async fn recover(&mut self) -> Result<Recovered, StorageError> {
        let mut disk = lock(&self.0);
        disk.incarnation.0 += 1;
        self.1 = disk.incarnation;
        disk.closed = false;
        let mut groups: BTreeMap<_, _> = disk
            .groups
            .iter()
            .map(|(id, group)| {
                let index = group.entries.iter().map(|(slot, accepted)| {
                    let bytes = accepted.entry.payload.len() as u32;
                    (
                        *slot,
                        IndexEntry {
                            ballot: accepted.ballot,
                            bytes,
                        },
                    )
                });
                let recovered = RecoveredGroup {
                    hard_state: group.hard_state,
                    trimmed: group.trimmed,
                    index: index.collect(),
                    damaged: Vec::new(),
                };
                (*id, recovered)
            })
            .collect();
        for (group, slot) in &disk.damaged {
            groups.entry(*group).or_default().damaged.push(*slot);
        }
        Ok(Recovered {
            identity: disk.identity,
            incarnation: disk.incarnation,
            groups,
            findings: Vec::new(),
        })
    }

    async fn write(&mut self, batch: WriteBatch) -> Result<(), StorageError> {
        let (takes, fault) = {
            let disk = lock(&self.0);
            let size = |op: &WriteOp| match op {
                WriteOp::Accept { entry, .. } => entry.payload.len() as u32,
                _ => 0,
            };
            let bytes: u32 = batch.ops.iter().map(size).sum();
            (disk.write_takes + disk.byte_takes * bytes, disk.fault)
        };
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        let error = |kind| Err(StorageError::io("writing the log", std::io::Error::from(kind)));
        match fault {
            Some(Fault::Full) => return error(std::io::ErrorKind::StorageFull),
            Some(Fault::Broken) => return error(std::io::ErrorKind::Other),
            Some(Fault::Panic) => panic!("the disk is on fire"),
            None => {}
        }
        let mut disk = lock(&self.0);
        if disk.incarnation != self.1 {
            return Err(StorageError::Misuse("opened again meanwhile".into()));
        }
        disk.syncs += u64::from(batch.sync);
        for op in batch.ops {
            let id = op.group();
            match &op {
                WriteOp::Accept { slot, .. } => {
                    disk.damaged.remove(&(id, *slot));
                    disk.rotten.remove(&(id, *slot));
                }
                WriteOp::Trim { upto, .. } => disk.damaged.retain(|(of, slot)| *of != id || slot > upto),
                _ => {}
            }
            let group = disk.groups.entry(op.group()).or_default();
            match op {
                WriteOp::HardState { state, .. } => {
                    assert!(
                        state.promised >= group.hard_state.promised,
                        "a promise never goes back"
                    );
                    group.hard_state = state;
                }
                WriteOp::Accept {
                    slot, ballot, entry, ..
                } => {
                    group.entries.insert(slot, Accepted { ballot, entry });
                }
                WriteOp::Trim { upto, .. } => {
                    group.entries = group.entries.split_off(&upto.next());
                    group.trimmed = upto;
                }
                WriteOp::RemoveGroup { .. } => *group = DiskGroup::default(),
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
        let disk = lock(&self.0);
        if let Some((_, slot)) = disk
            .rotten
            .union(&disk.damaged)
            .find(|(of, slot)| *of == group && slots.contains(slot))
        {
            return Err(StorageError::Corrupt(format!(
                "the record of slot {slot} fails its checksum"
            )));
        }
        let Some(group) = disk.groups.get(&group) else {
            return Ok(Vec::new());
        };
        let mut bytes = 0;
        let entries = group.entries.range(slots).take_while(|(_, accepted)| {
            let first = bytes == 0;
            bytes += accepted.entry.size();
            first || bytes <= max_bytes
        });
        Ok(entries
            .map(|(slot, accepted)| (*slot, accepted.clone()))
            .collect())
    }

    async fn close(&mut self) -> Result<(), StorageError> {
        lock(&self.0).closed = true;
        Ok(())
    }
}

/// A network; clones are the same network.
#[derive(Clone, Default)]
pub(crate) struct Network(Arc<Mutex<NetworkState>>);

#[derive(Default)]
struct NetworkState {
    inboxes: BTreeMap<NodeId, tokio::sync::mpsc::UnboundedSender<Incoming>>,
    cut: BTreeSet<NodeId>,
    /// Who reaches whom only where that one really is.
    particular: BTreeMap<(NodeId, NodeId), String>,
    messages: u64,
    acknowledgements: Acknowledgements,
}

/// How nodes have said that they accepted something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Acknowledgements {
    pub(crate) alone: u64,
    pub(crate) in_bursts: u64,
    pub(crate) bursts: u64,
}

impl Network {
    pub(crate) fn transport(&self) -> Port {
        Port {
            network: self.clone(),
            node: Arc::default(),
            peers: Arc::default(),
        }
    }

    /// Cuts a node off, as pulling its cable would: nobody is told.
    pub(crate) fn cut_off(&self, node: u64) {
        lock(&self.0).cut.insert(NodeId(node));
    }

    pub(crate) fn reconnect(&self, node: u64) {
        lock(&self.0).cut.remove(&NodeId(node));
    }

    /// From now on this node reaches that other one only there; nobody else cares for addresses.
    pub(crate) fn is_at(&self, node: u64, other: u64, address: &str) {
        let pair = (NodeId(node), NodeId(other));
        lock(&self.0).particular.insert(pair, address.into());
    }

    /// How many messages of replicas have been sent.
    pub(crate) fn messages(&self) -> u64 {
        lock(&self.0).messages
    }

    pub(crate) fn acknowledgements(&self) -> Acknowledgements {
        lock(&self.0).acknowledgements
    }

    /// Delivers bytes to a node as if a peer had sent them.
    pub(crate) fn inject(&self, node: u64, frame: Bytes) {
        if let Some(inbox) = lock(&self.0).inboxes.get(&NodeId(node)) {
            let _ = inbox.send(Incoming::Frame(frame));
        }
    }
}

/// One node's end of the network.
pub(crate) struct Port {
    network: Network,
    node: Arc<Mutex<Option<NodeId>>>,
    peers: Arc<Mutex<Vec<Peer>>>,
}

impl Port {
    /// Whether the node would reach that one where it takes it to be.
    fn finds(&self, network: &NetworkState, from: NodeId, to: NodeId) -> bool {
        let Some(address) = network.particular.get(&(from, to)) else {
            return true;
        };
        let is_there = |peer: &Peer| peer.node == to && peer.address == *address;
        lock(&self.peers).iter().any(is_there)
    }

    fn send_one(&self, to: NodeId, message: &Outgoing) -> Result<(), SendError> {
        let mut network = lock(&self.network.0);
        network.messages += u64::from(!paxos::wire::is_beat(&message.to_bytes()));
        let from = lock(&self.node).ok_or(SendError::Closed)?;
        if network.cut.contains(&from) || network.cut.contains(&to) {
            return Ok(());
        }
        if !self.finds(&network, from, to) {
            return Err(SendError::NotConnected);
        }
        let inbox = network.inboxes.get(&to).ok_or(SendError::NotConnected)?;
        inbox
            .send(Incoming::Frame(message.to_bytes()))
            .map_err(|_| SendError::NotConnected)
    }
}

fn is_acknowledgement(frame: &Outgoing) -> bool {
    let envelope = paxos::wire::decode(frame.to_bytes());
    envelope.is_ok_and(|envelope| envelope.message.name() == "accepted")
}

#[async_trait]
impl Transport for Port {
    async fn start(&self, inbox: Inbox) -> Result<(), TransportError> {
        let node = inbox.identity.node;
        *lock(&self.node) = Some(node);
        let (sender, mut incoming) = tokio::sync::mpsc::unbounded_channel();
        lock(&self.network.0).inboxes.insert(node, sender);
        tokio::spawn(async move {
            while let Some(incoming) = incoming.recv().await {
                if inbox.deliver(incoming).await.is_err() {
                    return;
                }
            }
        });
        Ok(())
    }

    fn send(&self, to: NodeId, message: &Outgoing) -> Result<(), SendError> {
        lock(&self.network.0).acknowledgements.alone += u64::from(is_acknowledgement(message));
        self.send_one(to, message)
    }

    fn send_all(&self, frames: &[(NodeId, Outgoing)]) -> Vec<(usize, SendError)> {
        let acknowledgements = frames
            .iter()
            .filter(|(_, frame)| is_acknowledgement(frame))
            .count();
        {
            let counted = &mut lock(&self.network.0).acknowledgements;
            counted.in_bursts += acknowledgements as u64;
            counted.bursts += u64::from(acknowledgements > 0);
        }
        let refused =
            |(at, (to, frame)): (usize, &(NodeId, Outgoing))| Some((at, self.send_one(*to, frame).err()?));
        frames.iter().enumerate().filter_map(refused).collect()
    }

    fn set_peers(&self, peers: &[Peer]) {
        *lock(&self.peers) = peers.to_vec();
        let (network, Some(own)) = (lock(&self.network.0), *lock(&self.node)) else {
            return;
        };
        let Some(inbox) = network.inboxes.get(&own) else {
            return;
        };
        for Peer { node, .. } in peers {
            if network.inboxes.contains_key(node) && *node != own {
                let _ = inbox.send(if self.finds(&network, own, *node) {
                    Incoming::Connected(*node)
                } else {
                    Incoming::Disconnected(*node)
                });
            }
        }
    }

    async fn close(&self) {
        let Some(node) = *lock(&self.node) else { return };
        let mut network = lock(&self.network.0);
        network.inboxes.remove(&node);
        for inbox in network.inboxes.values() {
            let _ = inbox.send(Incoming::Disconnected(node));
        }
    }
}

/// Lets those through who wait, once it is opened.
#[derive(Default)]
pub(crate) struct Gate(Mutex<(bool, u32)>, Condvar);

impl Gate {
    pub(crate) fn pass(&self) {
        let mut state = self.0.lock().unwrap();
        state.1 += 1;
        self.1.notify_all();
        drop(self.1.wait_while(state, |(open, _)| !*open).unwrap());
    }

    pub(crate) fn open(&self) {
        self.0.lock().unwrap().0 = true;
        self.1.notify_all();
    }

    pub(crate) async fn somebody_waits(&self) {
        while self.0.lock().unwrap().1 == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A snapshot store in memory that fails when it is told to. Clones are the same store.
#[derive(Clone, Default)]
pub(crate) struct Snapshots {
    inner: MemorySnapshots,
    breakage: Arc<Mutex<Option<Breakage>>>,
    holds_saves: Arc<Mutex<Option<Arc<Gate>>>>,
    tries: Arc<AtomicU64>,
}

/// What is wrong with a snapshot store.
#[derive(Clone, Copy)]
pub(crate) enum Breakage {
    Full,
    Poisoned,
    Panics,
}

impl Snapshots {
    /// From now on nothing can be written or removed, or again.
    pub(crate) fn fail(&self, fails: bool) {
        *lock(&self.breakage) = fails.then_some(Breakage::Full);
    }

    /// From now on nothing can be written or removed.
    pub(crate) fn break_down(&self, breakage: Breakage) {
        *lock(&self.breakage) = Some(breakage);
    }

    /// From now on whatever is saved waits for this; nothing that breaks later fails it any more.
    pub(crate) fn hold_saves(&self) -> Arc<Gate> {
        lock(&self.holds_saves).get_or_insert_default().clone()
    }

    /// How often something was to be written, read for a peer or removed.
    pub(crate) fn tries(&self) -> u64 {
        self.tries.load(Relaxed)
    }

    fn check(&self) -> Result<(), SnapshotError> {
        self.tries.fetch_add(1, Relaxed);
        let breakage = *lock(&self.breakage);
        match breakage {
            None => Ok(()),
            Some(Breakage::Full) => {
                let full = std::io::ErrorKind::StorageFull.into();
                Err(SnapshotError::io("writing a snapshot", full))
            }
            Some(Breakage::Poisoned) => Err(SnapshotError::Poisoned("a failed sync".into())),
            Some(Breakage::Panics) => panic!("told to panic"),
        }
    }
}

impl SnapshotStore for Snapshots {
    fn newest(&self, group: GroupId) -> Result<Found, SnapshotError> {
        self.inner.newest(group)
    }

    fn save(&self, header: &SnapshotHeader, source: Box<dyn SnapshotSource>) -> Result<(), SnapshotError> {
        self.check()?;
        let gate = lock(&self.holds_saves).clone();
        if let Some(gate) = gate {
            gate.pass();
        }
        self.inner.save(header, source)
    }

    fn open(&self, group: GroupId, upto: Slot) -> Result<Box<dyn std::io::Read + Send>, SnapshotError> {
        self.inner.open(group, upto)
    }

    fn read_chunk(
        &self,
        group: GroupId,
        upto: Slot,
        offset: u64,
        max: usize,
    ) -> Result<Chunk, SnapshotError> {
        self.check()?;
        self.inner.read_chunk(group, upto, offset, max)
    }

    fn store_chunk(
        &self,
        group: GroupId,
        upto: Slot,
        offset: u64,
        chunk: Chunk,
    ) -> Result<Received, SnapshotError> {
        self.check()?;
        self.inner.store_chunk(group, upto, offset, chunk)
    }

    fn remove_group(&self, group: GroupId) -> Result<(), SnapshotError> {
        self.check()?;
        self.inner.remove_group(group)
    }
}
