//! The scrub: reads all logs of the node again and again, slowly, so that damage is found while the peers still hold what
//! was lost, and not only when somebody needs it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Environment,
    event::Event,
    router::{Route, Router},
    storage::{Load, Loaded, Range},
};
use crate::{
    metrics::NodeMetrics,
    types::{Accepted, GroupId, Slot},
};

/// How much is read at once, in bytes of entries. The store does one thing at a time: a write waits no longer than this
/// takes.
const PIECE_BYTES: usize = 64 << 10;

/// What a read costs at the least, in bytes: many small logs are not read all at once.
const MIN_COST_BYTES: usize = 4 << 10;

/// Reads all logs once in each [`scrub_interval`](super::Config::scrub_interval), until it is aborted. Nothing is read at
/// the start: the store has just verified everything.
pub(super) async fn run(environment: Arc<Environment>, router: Arc<Router>, metrics: Arc<NodeMetrics>) {
    let interval = environment.config.scrub_interval;
    let scrub = Scrub { environment, metrics };
    let mut due = Instant::now() + interval;
    loop {
        sleep_until(due).await;
        due = Instant::now() + interval;
        for (group, route) in router.groups() {
            scrub.read_log(group, &route).await;
        }
        scrub.metrics.scrubs.increment();
    }
}

struct Scrub {
    environment: Arc<Environment>,
    metrics: Arc<NodeMetrics>,
}

impl Scrub {
    /// Reads a group's log up to where it ends now, and tells the group what is damaged.
    async fn read_log(&self, group: GroupId, route: &Route) {
        let first = || Slot(route.metrics.log_first_index.get());
        let last = Slot(route.metrics.log_last_index.get());
        let mut next = first();
        while next <= last {
            let Some(read) = self.read(group, next, last).await else {
                return;
            };
            let read_upto = read.entries.last().map(|(slot, _)| *slot);
            let upto = read_upto.max(read.damaged.last().copied());
            let bytes: usize = read.entries.iter().map(size).sum();
            self.metrics.scrubbed_bytes.add(bytes as u64);
            if !read.damaged.is_empty() {
                let slots = read.damaged.len() as u64;
                self.metrics.scrub_damaged_slots.add(slots);
                route.inbox.send(Event::Damaged(read));
            }
            match upto {
                Some(upto) => next = upto.next().max(first()),
                // Trimmed meanwhile, perhaps not all of it.
                None if next < first() => next = first(),
                None => return,
            }
            self.pause(bytes).await;
        }
    }

    /// `None` if the store is closed.
    async fn read(&self, group: GroupId, first: Slot, last: Slot) -> Option<Loaded> {
        let (reply, loaded) = oneshot::channel();
        self.environment.storage.scrub(Load {
            range: Range {
                group,
                first,
                last,
                max_bytes: PIECE_BYTES,
            },
            done: std::boxed::Box::new(move |loaded| drop(reply.send(loaded))),
        });
        loaded.await.ok()
    }

    async fn pause(&self, bytes: usize) {
        let per_second = self.environment.config.scrub_bytes_per_second as f64;
        sleep(Duration::from_secs_f64(
            bytes.max(MIN_COST_BYTES) as f64 / per_second,
        ))
        .await;
    }
}

fn size((_, accepted): &(Slot, Accepted)) -> usize {
    accepted.entry.size()
}
