//! What reaches a group's task beside its users' requests: peers' messages and the store's answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
    vec::Vec,
};

use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::{GroupStatus, ask::Ask, snapshots::SnapshotEvent, storage::Loaded};
use crate::{
    core::{Message, PersistId, peers::Change},
    error::{ChangeError, TransferError},
    snapshot::SnapshotError,
    types::{self, Membership, NodeId, Slot, StorageId, Time},
};

pub(super) enum Event {
    /// A peer said something.
    Message {
        from: NodeId,
        storage: StorageId,
        message: Message,
        /// What it holds of the inbox's room.
        room: u32,
    },
    /// The transport can send to this peer.
    Connected(NodeId),
    /// The last connection to this peer broke.
    Disconnected(NodeId),
    /// What the node has found out about a peer.
    Peer(Change),
    /// This write of the group and all before it are durable.
    Persisted(PersistId),
    /// Answers the open load.
    Loaded { from: Slot, loaded: Loaded },
    /// The store was found damaged there.
    Damaged(Loaded),
    /// Somebody asks for the status.
    Status(Ask<GroupStatus>),
    /// Somebody asks for another leader; `None` for any.
    Transfer {
        to: Option<NodeId>,
        reply: Ask<Result<NodeId, TransferError>>,
    },
    /// Somebody wants a snapshot of what is applied now.
    SaveSnapshot(Ask<Result<Slot, SnapshotError>>),
    /// Somebody wants the log to be trimmed no more, or again.
    PauseTrimming(bool),
    /// Work on snapshots has come to something.
    Snapshot(SnapshotEvent),
    /// Somebody asks for another membership, and waits until this time.
    ChangeMembership {
        expected: u64,
        changes: Vec<types::Change>,
        force: bool,
        reply: Ask<Result<Membership, ChangeError>>,
        deadline: Time,
    },
    /// The transport refused a message to this peer that the store's thread had for it.
    Refused(NodeId),
    /// The store's thread has left something to be done.
    GoOn,
    /// The group is to end, for this reason.
    Stop(&'static str),
}

/// Sends events to a group's task. Never waits: what bounds the channel is said at each use.
#[derive(Clone)]
pub(super) struct EventSender(pub(super) mpsc::UnboundedSender<Event>);

impl EventSender {
    /// False if the task has ended.
    pub(super) fn send(&self, event: Event) -> bool {
        self.0.send(event).is_ok()
    }
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    Delivered,
    /// The group does not keep up; the protocol will send again.
    Dropped,
    /// The group's task has ended.
    Ended,
}

/// Where peers' messages for one group go; bounded in bytes.
///
/// A transport waits for a busy group, so that the remote feels it, but only for a moment: the connection is shared
/// with other groups, and a group that is stuck must not stop those. While a group is stuck its messages are dropped.
pub(super) struct Inbox {
    events: EventSender,
    room: Arc<Room>,
    max_wait: Duration,
}

/// The bytes that may still wait in an inbox.
pub(super) struct Room {
    free_bytes: Semaphore,
    max_bytes: u32,
    stuck: AtomicBool,
}

impl Room {
    pub(super) fn new(max_bytes: usize) -> Arc<Self> {
        let max_bytes = u32::try_from(max_bytes.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        Arc::new(Self {
            free_bytes: Semaphore::new(max_bytes as usize),
            max_bytes,
            stuck: AtomicBool::new(false),
        })
    }

    /// The task has taken messages of this many bytes out.
    pub(super) fn give_back(&self, bytes: usize) {
        self.free_bytes.add_permits(bytes);
        self.stuck.store(false, Relaxed);
    }

    /// The task has ended: nobody waits any longer.
    pub(super) fn close(&self) {
        self.free_bytes.close();
    }
}

impl Inbox {
    pub(super) const fn new(events: EventSender, room: Arc<Room>, max_wait: Duration) -> Self {
        Self {
            events,
            room,
            max_wait,
        }
    }

    /// For events that need no room because they are few.
    pub(super) fn send(&self, event: Event) -> bool {
        self.events.send(event)
    }

    /// Hands over a message that came in a frame of this many bytes.
    pub(super) async fn deliver(
        &self,
        from: NodeId,
        storage: StorageId,
        message: Message,
        frame_bytes: usize,
    ) -> Delivery {
        // A frame larger than the whole room waits until all of it is free.
        let room = u32::try_from(frame_bytes)
            .unwrap_or(u32::MAX)
            .min(self.room.max_bytes);
        let permit = match self.room.free_bytes.try_acquire_many(room) {
            Ok(permit) => permit,
            Err(_) if self.room.stuck.load(Relaxed) => return Delivery::Dropped,
            Err(_) => match timeout(self.max_wait, self.room.free_bytes.acquire_many(room)).await {
                Ok(Ok(permit)) => permit,
                Ok(Err(_)) => return Delivery::Ended,
                Err(_) => {
                    self.room.stuck.store(true, Relaxed);
                    return Delivery::Dropped;
                }
            },
        };
        // Given back by the task, when it takes the message out.
        permit.forget();
        let message = Event::Message {
            from,
            storage,
            message,
            room,
        };
        if self.events.send(message) {
            Delivery::Delivered
        } else {
            Delivery::Ended
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Ballot;

    const CANVASS: Message = Message::Canvass {
        ballot: Ballot::ZERO,
        chosen: Slot::ZERO,
    };

    async fn deliver(inbox: &Inbox, bytes: usize) -> Delivery {
        inbox.deliver(NodeId(2), StorageId(2), CANVASS, bytes).await
    }

    fn inbox(max_bytes: usize) -> (Inbox, Arc<Room>, mpsc::UnboundedReceiver<Event>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let room = Room::new(max_bytes);
        let inbox = Inbox::new(EventSender(sender), room.clone(), Duration::from_millis(50));
        (inbox, room, receiver)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_group_keeps_a_transport_waiting_once_only() {
        let (inbox, room, mut events) = inbox(100);
        assert_eq!(deliver(&inbox, 60).await, Delivery::Delivered);
        let began = tokio::time::Instant::now();
        assert_eq!(deliver(&inbox, 60).await, Delivery::Dropped);
        assert_eq!(began.elapsed(), Duration::from_millis(50));
        assert_eq!(deliver(&inbox, 60).await, Delivery::Dropped);
        assert_eq!(began.elapsed(), Duration::from_millis(50), "dropped at once");
        assert!(events.try_recv().is_ok());
        room.give_back(60);
        assert_eq!(deliver(&inbox, 60).await, Delivery::Delivered);
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_larger_than_the_room_goes_alone() {
        let (inbox, room, _events) = inbox(100);
        assert_eq!(deliver(&inbox, 1_000).await, Delivery::Delivered);
        assert_eq!(deliver(&inbox, 1).await, Delivery::Dropped);
        room.give_back(100);
        assert_eq!(deliver(&inbox, 1).await, Delivery::Delivered);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_task_that_has_ended() {
        let (inbox, room, events) = inbox(100);
        assert_eq!(deliver(&inbox, 100).await, Delivery::Delivered);
        drop(events);
        room.close();
        assert_eq!(deliver(&inbox, 100).await, Delivery::Ended);
    }
}
