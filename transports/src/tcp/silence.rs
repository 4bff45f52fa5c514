//! Silence ends a connection: both sides give signs of life, and notice when there are none.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Interval, MissedTickBehavior, interval};

/// How many signs of life fit into the time after which silence ends a connection.
const SIGNS_PER_TIMEOUT: u32 = 4;

/// When a sign of life is due, if silence ends the connection after so long.
pub(super) fn signs_of_life(silence_timeout: Duration) -> Interval {
    let mut tick = interval(silence_timeout / SIGNS_PER_TIMEOUT);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// What the reader of a connection tells the one who watches for silence.
#[derive(Debug, Default)]
pub(super) struct Listening {
    heard: AtomicBool,
    /// Nothing is read: silence means nothing.
    paused: AtomicBool,
}

impl Listening {
    /// Something came.
    pub(super) fn hear(&self) {
        self.heard.store(true, Relaxed);
    }

    /// Whether nothing is read from now on, or again.
    pub(super) fn pause(&self, paused: bool) {
        self.paused.store(paused, Relaxed);
    }

    /// Ends when the other side has been silent for so long.
    pub(super) async fn until_silent(&self, silence_timeout: Duration) {
        let mut tick = signs_of_life(silence_timeout);
        let mut silent_ticks = 0;
        while silent_ticks <= SIGNS_PER_TIMEOUT {
            tick.tick().await;
            let heard = self.heard.swap(false, Relaxed) || self.paused.load(Relaxed);
            silent_ticks = if heard { 0 } else { silent_ticks + 1 };
        }
    }
}
