//! Starting a node, and starting its groups.

use std::{
    boxed::Box,
    collections::BTreeSet,
    format,
    string::String,
    sync::{Arc, Mutex, atomic::AtomicBool},
    vec::Vec,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tracing::Instrument;

use super::{
    Clock, Environment, FRAME_HEADROOM, Group, GroupStatus, Halt, Node, NodeBuilder, NodeError,
    already_added,
    ask::Places,
    caught, discovery,
    event::{EventSender, Inbox, Room},
    group::{Queue, Shared},
    liveness::{self, Liveness},
    lock,
    machine::Machine,
    removing::{Changes, Changing, Taken},
    router::{Route, Router},
    scrub,
    snapshots::Snapshots,
    storage::{self, Loaded},
    task::{self, Parts},
};
use crate::{
    core::{Replica, Start},
    metrics::{GroupMetrics, NodeMetrics},
    snapshot::{Found, SnapshotHeader},
    state_machine::{MachineError, StateMachine},
    storage::{RecoveredGroup, Storage, StorageError},
    transport::{self, Transport},
    types::{Accepted, Ballot, ChosenMembership, GroupId, Membership, Slot},
};

/// A machine that has been brought up to the newest snapshot.
struct Restored {
    machine: Box<dyn StateMachine>,
    snapshot: Option<SnapshotHeader>,
    /// How many newer ones were damaged.
    damaged: usize,
}

impl Node {
    pub(super) async fn start<S: Storage, T: Transport>(
        builder: NodeBuilder<S, T>,
    ) -> Result<Self, NodeError> {
        let NodeBuilder {
            storage,
            transport,
            mut config,
            snapshots,
            discovery,
        } = builder;
        config.replica.snapshots = snapshots.is_some();
        config.check().map_err(NodeError::Configuration)?;
        let frame = config.replica.max_frame_bytes().saturating_add(FRAME_HEADROOM);
        if frame > transport.max_frame_bytes() {
            return Err(NodeError::Configuration(format!(
                "the transport takes frames of up to {} bytes, but the replica's max_command_bytes, max_batch_bytes, \
                 max_message_bytes and snapshot_chunk_bytes make frames of up to {frame}; lower those or raise the transport's bound",
                transport.max_frame_bytes()
            )));
        }
        let metrics = Arc::new(NodeMetrics::default());
        let halt = Halt {
            reason: watch::Sender::new(None),
            metrics: metrics.clone(),
        };
        let transport: Arc<dyn Transport> = Arc::new(transport);
        let sender = Arc::downgrade(&transport);
        let (storage, recovered) =
            storage::start(&config, storage, sender, metrics.clone(), halt.clone()).await?;
        let identity = recovered.identity;
        for finding in &recovered.findings {
            tracing::warn!(node = %identity.node, ?finding, "the store has noticed something");
        }
        let clock = Clock {
            origin: Instant::now(),
        };
        let liveness = Arc::new(Liveness::new(&config, clock, recovered.incarnation));
        let router = Arc::new(Router::new(identity, metrics.clone(), liveness.clone()));
        let inbox = transport::Inbox::new(identity, router.clone());
        if let Err(error) = transport.start(inbox).await {
            let _ = storage.close().await;
            return Err(error.into());
        }
        tracing::info!(
            node = %identity.node, cluster = %identity.cluster, storage = %identity.storage,
            incarnation = recovered.incarnation.0, "node started"
        );
        let snapshots = snapshots.map(|store| Snapshots::new(store, &config));
        let environment = Environment {
            config,
            identity,
            clock,
            transport,
            storage,
            snapshots,
            address_book: Mutex::default(),
            liveness,
        };
        let environment = Arc::new(environment);
        let watch = tokio::spawn(liveness::keep_watch(environment.clone(), router.clone()));
        let search =
            discovery.map(|discovery| tokio::spawn(discovery::search(environment.clone(), discovery)));
        let scrubs = environment.config.scrub_bytes_per_second > 0;
        let scrub =
            scrubs.then(|| tokio::spawn(scrub::run(environment.clone(), router.clone(), metrics.clone())));
        let background = core::iter::once(watch).chain(search).chain(scrub).collect();
        Ok(Self {
            environment,
            background,
            router,
            incarnation: recovered.incarnation,
            findings: recovered.findings,
            metrics,
            halt,
            recovered: Mutex::new(recovered.groups),
            groups: Mutex::default(),
            changes: Changes::default(),
            removals: Mutex::default(),
            is_down: AtomicBool::new(false),
        })
    }

    /// Begins to serve a group: restores its machine from the newest snapshot if it is behind that, then takes part. `membership` is the
    /// group's first membership, the same on every node. Groups may be added in any order and at any time; until then
    /// peers' messages for the group are dropped.
    ///
    /// The machine is given everything that it does not hold ([`StateMachine::applied`]), as the log is read: the group
    /// answers before that is done, linearizable reads wait for it.
    ///
    /// # Errors
    ///
    /// The group is not added, and nothing has changed (but that snapshots which were found damaged are set aside), if it
    /// exists already, if `membership` has no voter, or if the log no longer reaches back to the newest whole snapshot and
    /// there is nobody else, or no snapshot store, to get one. What a machine that keeps its state itself holds beyond that
    /// is no help: which commands have been applied, and who the members are, is in the snapshot and the log only. Damaged
    /// entries of the log are no hindrance, nor are snapshots that are lost while others have theirs: both are repaired from
    /// the peers while the group takes part as far as it can.
    pub async fn add_group<M: StateMachine>(
        &self,
        group: GroupId,
        membership: Membership,
        machine: M,
    ) -> Result<Group, NodeError> {
        if membership.voters().next().is_none() {
            return Err(NodeError::Configuration(format!(
                "the membership of group {group} has no voter; name at least one member with the role voter"
            )));
        }
        if membership.member(self.environment.identity.node).is_none() {
            tracing::warn!(%group, node = %self.environment.identity.node, "not a member of the group");
        }
        self.serve_group(group, membership, machine).await
    }

    /// Begins to serve a group that exists already, of which this node knows nothing: it waits until a leader that has
    /// been told to add this node tells it who the members are, learns everything, and takes part as it is admitted. Also
    /// for a node that joined so once and is started again.
    ///
    /// Unlike [`add_group`](Self::add_group) this never founds a group, whatever the node has forgotten.
    ///
    /// # Errors
    ///
    /// As [`add_group`](Self::add_group).
    pub async fn join_group<M: StateMachine>(&self, group: GroupId, machine: M) -> Result<Group, NodeError> {
        self.serve_group(group, Membership::default(), machine).await
    }

    async fn serve_group<M: StateMachine>(
        &self,
        group: GroupId,
        membership: Membership,
        machine: M,
    ) -> Result<Group, NodeError> {
        if let Some(why) = &*self.halt.reason.borrow() {
            return Err(NodeError::Stopped(why.clone()));
        }
        let changing = Changing::to_add(&self.changes, group)?;
        if lock(&self.groups).contains_key(&group) {
            return Err(already_added(group));
        }
        // Put back unless the group is started.
        let recovered = Taken::of(&self.recovered, group);
        let (restored, no_way) = self.restore_group(group, &recovered, Box::new(machine)).await?;
        let newest = restored.snapshot.as_ref();
        let mut damaged = recovered.damaged.iter().copied().collect();
        let in_force = self
            .load_membership(group, &membership, &recovered, newest, &mut damaged)
            .await?;
        if let Some(error) = no_way {
            self.may_fetch_a_snapshot(group, &in_force, error)?;
        }
        let newest = newest.map_or(Slot::ZERO, |header| header.upto);
        let tail = self
            .load_tail(
                group,
                &recovered,
                recovered.hard_state.chosen.max(newest),
                &mut damaged,
            )
            .await?;
        self.tell_damage(group, &damaged, &in_force);
        let start = Start {
            group,
            identity: self.environment.identity,
            incarnation: self.replica_incarnation(group)?,
            seed: self.seed(group),
            membership: in_force,
            hard_state: recovered.hard_state,
            trimmed: recovered.trimmed,
            tail,
            damaged: damaged.into_iter().collect(),
            snapshot: restored.snapshot.clone(),
        };
        let now = self.environment.clock.now();
        let config = self.environment.config.replica.clone();
        let replica = caught("the recovered state contradicts itself", || {
            Replica::new(config, start, now)
        })
        .map_err(|why| StorageError::Corrupt(format!("group {group}: {why}")))?;
        recovered.keep();
        let in_force = replica.status(now).membership;
        if in_force.members.is_empty() && !membership.members.is_empty() {
            self.environment.hear_of(group, membership);
        }
        self.environment.set_membership(group, in_force);
        let (handle, task) = self.start_task(group, replica, restored);
        lock(&self.groups).insert(group, (handle.clone(), task));
        drop(changing);
        Ok(handle)
    }

    fn tell_damage(&self, group: GroupId, damaged: &BTreeSet<Slot>, in_force: &ChosenMembership) {
        let node = self.environment.identity.node;
        if let (Some(first), Some(last)) = (damaged.first(), damaged.last()) {
            tracing::error!(
                %group, %node, slots = damaged.len(), %first, %last,
                "the log is damaged; the peers are asked for what it held"
            );
        }
        if in_force.at > Slot::ZERO && in_force.membership.version == 0 {
            tracing::error!(
                %group, %node, slot = %in_force.at,
                "the entry that says who the members are is damaged; the node does not vote until it has it back"
            );
        }
    }

    /// No snapshot of this node reaches the log any more: that is an error, unless others may have one.
    fn may_fetch_a_snapshot(
        &self,
        group: GroupId,
        in_force: &ChosenMembership,
        error: NodeError,
    ) -> Result<(), NodeError> {
        let node = self.environment.identity.node;
        let members = &in_force.membership.members;
        let is_alone = !members.is_empty() && members.iter().all(|member| member.node == node);
        if self.environment.snapshots.is_none() || is_alone {
            return Err(error);
        }
        tracing::error!(%group, %node, %error, "the state is lost; the other nodes are asked for a snapshot");
        Ok(())
    }

    /// Brings a machine that is behind the newest whole snapshot up to it. Also says why, if no snapshot reaches the log.
    async fn restore_group(
        &self,
        group: GroupId,
        recovered: &RecoveredGroup,
        mut machine: Box<dyn StateMachine>,
    ) -> Result<(Restored, Option<NodeError>), NodeError> {
        let node = self.environment.identity.node;
        let found = match &self.environment.snapshots {
            Some(snapshots) => snapshots.newest(group).await?,
            None => Found::default(),
        };
        for (upto, detail) in &found.damaged {
            tracing::error!(%group, %node, %upto, detail, "a snapshot is damaged and was set aside");
        }
        let newest = found.newest.as_ref().map_or(Slot::ZERO, |header| header.upto);
        let no_way = (newest < recovered.trimmed)
            .then(|| self.no_way_to_the_log(group, recovered.trimmed, newest, &found));
        if let Some(snapshots) = &self.environment.snapshots
            && machine.applied() < newest
        {
            let began = Instant::now();
            machine = snapshots.restore(group, newest, machine).await.map_err(|why| {
                NodeError::Machine(MachineError(format!(
                    "group {group} could not be restored from its snapshot as of slot {newest}: {why}"
                )))
            })?;
            tracing::info!(
                %group, %node, upto = %newest, millis = began.elapsed().as_millis() as u64,
                "the state machine is restored from a snapshot"
            );
        }
        let restored = Restored {
            machine,
            snapshot: found.newest,
            damaged: found.damaged.len(),
        };
        Ok((restored, no_way))
    }

    fn no_way_to_the_log(&self, group: GroupId, trimmed: Slot, newest: Slot, found: &Found) -> NodeError {
        let what = match (&self.environment.snapshots, &found.newest) {
            (None, _) => String::from(
                "and the node has no snapshot store; start it with the one that it had (Node::builder(..).snapshots(..))",
            ),
            (Some(_), None) => String::from(
                "and there is no whole snapshot; start the node with the snapshots that it had, or move its data \
                 directory away and let the node join anew",
            ),
            (Some(_), Some(_)) => format!(
                "but the newest whole snapshot is as of slot {newest}; move the node's data directory away and let the \
                 node join anew"
            ),
        };
        let damaged = found
            .damaged
            .iter()
            .map(|(upto, detail)| format!("; the snapshot as of slot {upto} is damaged: {detail}"));
        let damaged: String = damaged.collect();
        let why = format!("the log of group {group} begins after slot {trimmed}, {what}{damaged}");
        NodeError::Storage(StorageError::Corrupt(why))
    }

    /// Differs between the nodes and groups of one seed, or they would all stand for election at the same moment.
    fn seed(&self, group: GroupId) -> u64 {
        let seed = self.environment.config.seed.unwrap_or_else(|| fastrand::u64(..));
        let place = self.environment.identity.node.0 << 32 ^ u64::from(group.0);
        seed ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// The membership in force at the stored watermark: `first` if the log has had none, that of the snapshot if that
    /// reaches as far; an unknown one if the entry is damaged, or gone with the snapshots.
    async fn load_membership(
        &self,
        group: GroupId,
        first: &Membership,
        recovered: &RecoveredGroup,
        snapshot: Option<&SnapshotHeader>,
        damaged: &mut BTreeSet<Slot>,
    ) -> Result<ChosenMembership, NodeError> {
        let at = recovered.hard_state.membership;
        if at == Slot::ZERO {
            return Ok(ChosenMembership::first(first.clone()));
        }
        if let Some(header) = snapshot.filter(|header| at <= header.upto) {
            return Ok(header.membership.clone());
        }
        let is_lost = at <= recovered.trimmed || damaged.contains(&at);
        let loaded = if is_lost {
            Loaded::default()
        } else {
            self.load(group, at, at).await?
        };
        damaged.extend(loaded.damaged);
        if is_lost || damaged.contains(&at) {
            return Ok(ChosenMembership {
                at,
                ballot: Ballot::ZERO,
                membership: Membership::default(),
            });
        }
        let found = loaded.entries.first().filter(|(slot, _)| *slot == at);
        let chosen = found.and_then(|(_, accepted)| {
            Some(ChosenMembership {
                at,
                ballot: accepted.ballot,
                membership: Membership::from_entry(&accepted.entry)?,
            })
        });
        chosen.ok_or_else(|| {
            NodeError::Storage(StorageError::Corrupt(format!(
                "group {group}: the store does not hold the membership that it names, at slot {at}"
            )))
        })
    }

    /// Reads entries back: at least the first one of these slots, if there is any.
    async fn load(&self, group: GroupId, first: Slot, last: Slot) -> Result<Loaded, NodeError> {
        let (reply, loaded) = oneshot::channel();
        self.environment.storage.load(storage::Load {
            range: storage::Range {
                group,
                first,
                last,
                max_bytes: self.environment.config.max_write_bytes,
            },
            done: Box::new(move |loaded| drop(reply.send(loaded))),
        });
        loaded.await.map_err(|_| NodeError::Stopped(self.stop_reason()))
    }

    /// The entries above the watermark, but for damaged ones.
    async fn load_tail(
        &self,
        group: GroupId,
        recovered: &RecoveredGroup,
        chosen: Slot,
        damaged: &mut BTreeSet<Slot>,
    ) -> Result<Vec<(Slot, Accepted)>, NodeError> {
        let last = recovered.index.keys().next_back().copied().unwrap_or_default();
        let mut tail: Vec<(Slot, Accepted)> = Vec::new();
        let mut next = chosen.next();
        while let Some((from, _)) = recovered.index.range(next..).next() {
            let before = damaged.range(from..).next().map(|damaged| damaged.previous());
            let upto = before.map_or(last, |before| before.min(last));
            let loaded = self.load(group, *from, upto).await?;
            let read = loaded.entries.last().map(|(slot, _)| *slot);
            let Some(done) = read.max(loaded.damaged.last().copied()) else {
                return Err(NodeError::Storage(StorageError::Corrupt(format!(
                    "group {group}: the store's index names an entry at slot {from}, but it does not give it back"
                ))));
            };
            next = done.next();
            tail.extend(loaded.entries);
            damaged.extend(loaded.damaged);
        }
        Ok(tail)
    }

    fn start_task(&self, id: GroupId, replica: Replica, restored: Restored) -> (Group, JoinHandle<()>) {
        let config = &self.environment.config;
        let (event_sender, events) = mpsc::unbounded_channel();
        let event_sender = EventSender(event_sender);
        let (queue, requests) = Queue::new(config);
        let room = Room::new(config.max_inbox_bytes);
        let metrics = Arc::new(GroupMetrics::default());
        metrics.snapshot_failures.add(restored.damaged as u64);
        let machine = Machine::new(restored.machine);
        let replica_status = replica.status(self.environment.clock.now());
        let membership = replica_status.membership.clone();
        let status = GroupStatus {
            replica: replica_status,
            applied: machine.applied(),
            digest: None,
            restoring: None,
            snapshots_off: None,
            halted: None,
        };
        let shared = Arc::new(Shared {
            id,
            node: self.environment.identity.node,
            clock: self.environment.clock,
            queue,
            places: Places::new(),
            events: event_sender.clone(),
            leader: watch::Sender::new(None),
            membership: watch::Sender::new(membership),
            metrics: metrics.clone(),
            stopped: std::sync::OnceLock::new(),
            last_status: Mutex::new(status),
            read_timeout: config.read_timeout,
            change_timeout: config.change_timeout,
        });
        let inbox = Inbox::new(event_sender.clone(), room.clone(), config.max_inbox_wait);
        let to_task = event_sender.clone();
        self.environment.liveness.introduce(
            || self.router.add(id, Route { inbox, metrics }),
            |event| {
                to_task.send(event);
            },
        );
        let task = task::run(Parts {
            environment: self.environment.clone(),
            shared: shared.clone(),
            replica,
            machine,
            newest_snapshot: restored.snapshot.map_or(Slot::ZERO, |header| header.upto),
            event_sender,
            events,
            requests,
            room,
            halt: self.halt.reason.subscribe(),
        });
        tracing::info!(group = %id, node = %self.environment.identity.node, "group started");
        let span = tracing::info_span!("group", group = %id, node = %self.environment.identity.node);
        (Group(shared), tokio::spawn(task.instrument(span)))
    }
}
