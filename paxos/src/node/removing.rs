//! Removing a group at run time, and what keeps adding and removing the same group apart.

use std::{
    collections::BTreeMap,
    format, mem,
    ops::Deref,
    sync::{Arc, Mutex},
    vec,
};

use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    Environment, Halt, Node, NodeError,
    event::{Event, EventSender},
    lock, storage,
    task::Done,
};
use crate::{
    core::PersistId,
    storage::RecoveredGroup,
    types::{GroupId, Incarnation, WriteOp},
};

/// Groups to which something is being done, or was done by half.
pub(super) type Changes = Arc<Mutex<BTreeMap<GroupId, Unfinished>>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfinished {
    /// It is being added or removed.
    UnderWay,
    /// Its removal failed on the way. What this node has read of it is gone, but the store may still hold it: a replica
    /// that was started now would have forgotten its promises.
    HalfRemoved,
}

/// Marks a group that is being added or removed, so that nobody else does either meanwhile.
pub(super) struct Changing {
    changes: Changes,
    group: GroupId,
    /// How the group is left if nothing more is heard of this call.
    leaves: Option<Unfinished>,
}

impl Changing {
    pub(super) fn to_add(changes: &Changes, group: GroupId) -> Result<Self, NodeError> {
        Self::begin(changes, group, None)
    }

    pub(super) fn to_remove(changes: &Changes, group: GroupId) -> Result<Self, NodeError> {
        Self::begin(changes, group, Some(Unfinished::HalfRemoved))
    }

    fn begin(changes: &Changes, group: GroupId, leaves: Option<Unfinished>) -> Result<Self, NodeError> {
        let mut all = lock(changes);
        match all.get(&group) {
            Some(Unfinished::UnderWay) => Err(NodeError::Configuration(format!(
                "group {group} is being added or removed right now; wait for that call to end"
            ))),
            Some(Unfinished::HalfRemoved) if leaves.is_none() => Err(NodeError::Configuration(format!(
                "an earlier removal of group {group} failed on the way, so the store may still hold a part of it; call \
                 Node::remove_group once more and add the group when that has succeeded"
            ))),
            _ => {
                all.insert(group, Unfinished::UnderWay);
                Ok(Self {
                    changes: changes.clone(),
                    group,
                    leaves,
                })
            }
        }
    }

    /// Nothing of the group is left.
    fn removed(mut self) {
        self.leaves = None;
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        let mut changes = lock(&self.changes);
        match self.leaves {
            Some(unfinished) => changes.insert(self.group, unfinished),
            None => changes.remove(&self.group),
        };
    }
}

/// What the store held for a group; put back where it came from unless it is [kept](Self::keep).
pub(super) struct Taken<'a> {
    from: &'a Mutex<BTreeMap<GroupId, RecoveredGroup>>,
    group: GroupId,
    recovered: Option<RecoveredGroup>,
    nothing: RecoveredGroup,
}

impl<'a> Taken<'a> {
    pub(super) fn of(from: &'a Mutex<BTreeMap<GroupId, RecoveredGroup>>, group: GroupId) -> Self {
        Self {
            from,
            group,
            recovered: lock(from).remove(&group),
            nothing: RecoveredGroup::default(),
        }
    }

    /// It is used, and not needed again.
    pub(super) fn keep(mut self) {
        self.recovered = None;
    }
}

impl Deref for Taken<'_> {
    type Target = RecoveredGroup;

    fn deref(&self) -> &RecoveredGroup {
        self.recovered.as_ref().unwrap_or(&self.nothing)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(recovered) = mem::take(&mut self.recovered) {
            lock(self.from).insert(self.group, recovered);
        }
    }
}

/// So many bits of a replica's incarnation tell how often its group was removed in that life of the node.
const REMOVAL_BITS: u32 = 16;

impl Node {
    /// The life of a replica that is started now. The log may hold commands of an earlier replica of this very node and
    /// life, which has been removed since: the numbers of the new one's commands must not be taken for those.
    pub(super) fn replica_incarnation(&self, group: GroupId) -> Result<Incarnation, NodeError> {
        let removals = lock(&self.removals).get(&group).copied().unwrap_or_default();
        if removals >> REMOVAL_BITS > 0 {
            return Err(NodeError::Configuration(format!(
                "group {group} was removed {removals} times since the node was started; restart the node to add it again"
            )));
        }
        Ok(Incarnation(self.incarnation.0 << REMOVAL_BITS | removals))
    }

    /// Ends a group on this node and deletes all that the store holds of it, whether it was added or not. Its handles
    /// answer that it was removed; open proposals end as truly as can be known; messages for it are dropped. On return
    /// the removal is durable, and the group may be added again: as a fresh one, that remembers nothing. A crash on the
    /// way leaves the group as it was, or removed, or without its snapshots: then it cannot be added before it is removed
    /// once more.
    ///
    /// The other members are not told: each node removes its own replica. While they keep the group, this node is to them
    /// a member that does not answer. If it is a voter there, make it none *first*, and do not add it again with the
    /// same membership: a voter that has forgotten its promises can break the group.
    ///
    /// Once begun it is carried through, also if the future is dropped.
    ///
    /// # Errors
    ///
    /// If the group is being added or removed by another call; if its snapshots cannot be removed, or the node has
    /// stopped: then the group may or may not be removed, is served no more, and cannot be added before it is removed once
    /// more.
    pub async fn remove_group(&self, group: GroupId) -> Result<(), NodeError> {
        if let Some(why) = &*self.halt.reason.borrow() {
            return Err(NodeError::Stopped(why.clone()));
        }
        let changing = Changing::to_remove(&self.changes, group)?;
        lock(&self.recovered).remove(&group);
        self.router.remove(group);
        let task = lock(&self.groups).remove(&group).map(|(_, task)| task);
        if task.is_some() {
            *lock(&self.removals).entry(group).or_default() += 1;
        }
        let removal = remove(self.environment.clone(), self.halt.clone(), group, task, changing);
        let removed = tokio::spawn(removal).await;
        removed.unwrap_or_else(|_| Err(NodeError::Stopped(self.stop_reason())))
    }
}

async fn remove(
    environment: Arc<Environment>,
    halt: Halt,
    group: GroupId,
    task: Option<JoinHandle<()>>,
    changing: Changing,
) -> Result<(), NodeError> {
    if let Some(task) = task {
        // A task catches its panics, and answers everybody.
        let _ = task.await;
    }
    // First: a snapshot without its log would be believed.
    if let Some(snapshots) = &environment.snapshots {
        snapshots.remove(group).await?;
    }
    let (done, mut events) = mpsc::unbounded_channel();
    // All writes of the group's task are in front of this one.
    environment.storage.write(storage::Write {
        group,
        id: PersistId(0),
        ops: vec![WriteOp::RemoveGroup { group }],
        sync: true,
        done: Done::of_nobody(EventSender(done)),
    });
    let Some(Event::Persisted(_)) = events.recv().await else {
        let why = halt.reason.borrow().clone();
        return Err(NodeError::Stopped(
            why.unwrap_or_else(|| "the store is closed".into()),
        ));
    };
    environment.forget_membership(group);
    tracing::info!(%group, node = %environment.identity.node, "group removed");
    changing.removed();
    Ok(())
}
