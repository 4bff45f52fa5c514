//! What the store's thread does for a group itself, when a write is durable.
//!
//! What waited for the write is a message as a rule, which says that an entry is accepted. It leaves from the store's
//! thread: a round through the node's runtime would cost two more switches of threads in the path of every command, and
//! a whole turn of the group. Everything else that follows is left to the next turn.

use std::{sync::Weak, vec::Vec};

use super::{
    super::{
        caught,
        event::{Event, EventSender},
    },
    Seat, Task,
};
use crate::{
    core::{Input, Output, PersistId},
    transport::Outgoing,
    types::NodeId,
};

/// Whom to tell that a write is durable.
#[derive(Clone)]
pub(in super::super) struct Done {
    events: EventSender,
    task: Weak<Seat>,
}

impl Done {
    pub(super) const fn new(events: EventSender, task: Weak<Seat>) -> Self {
        Self { events, task }
    }

    /// The write belongs to no group's task: an event tells of it.
    pub(in super::super) const fn of_nobody(events: EventSender) -> Self {
        Self {
            events,
            task: Weak::new(),
        }
    }

    /// This write of the group and all before it are durable: adds the frames that may leave now to `frames`. Returns
    /// what the group's task must be told beside; nothing, mostly.
    pub(in super::super) fn persisted(
        &self,
        id: PersistId,
        frames: &mut Vec<(NodeId, Outgoing)>,
    ) -> Option<Event> {
        let task = self.task.upgrade();
        // Otherwise it is in the middle of a turn.
        let Some(mut task) = task.as_ref().and_then(|task| task.try_lock().ok()) else {
            return Some(Event::Persisted(id));
        };
        task.as_mut()?.persisted(id, frames).then_some(Event::GoOn)
    }

    pub(in super::super) const fn events(&self) -> &EventSender {
        &self.events
    }
}

impl Task {
    /// True if something is left for the next turn.
    fn persisted(&mut self, id: PersistId, frames: &mut Vec<(NodeId, Outgoing)>) -> bool {
        if self.broken.is_some() {
            return true;
        }
        let stepped = caught("the replica broke an invariant", || {
            let now = self.shared.clock.now();
            self.replica.step(now, Input::Persisted(id));
            while let Some(output) = self.replica.poll() {
                match output {
                    // The order is kept.
                    Output::Send { to, message } if self.outputs.is_empty() => {
                        if let Some(frame) = self.encode(message) {
                            frames.extend(to.into_iter().map(|peer| (peer, frame.clone())));
                        }
                    }
                    output => self.outputs.push_back(output),
                }
            }
        });
        self.broken = stepped.err();
        let is_due_earlier = self.replica.deadline().is_some_and(|due| due < self.armed);
        !self.outputs.is_empty() || self.broken.is_some() || is_due_earlier
    }
}
