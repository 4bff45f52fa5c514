//! An inbox that remembers what it was given and can be held shut.

use std::{
    boxed::Box,
    format,
    string::String,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
    vec::Vec,
};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{
    core::Message,
    transport::{Deliver, InboxClosed, Incoming, Lane},
    types::NodeId,
    wire::{self, Envelope},
};

/// A frame that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arrived {
    pub(super) from: NodeId,
    pub(super) lane: Lane,
    pub(super) number: u64,
    pub(super) bytes: usize,
}

#[derive(Debug, Default)]
struct Log {
    frames: Vec<Arrived>,
    /// Connections made (true) and broken (false), in order.
    events: Vec<(NodeId, bool)>,
    /// What was delivered and is no frame of the suite.
    rubbish: Option<String>,
}

/// Records everything in order of arrival.
#[derive(Debug)]
pub(super) struct Recorder {
    log: Mutex<Log>,
    changed: watch::Sender<()>,
    shut: watch::Sender<bool>,
    patience: Duration,
}

impl Recorder {
    pub(super) fn new(patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            log: Mutex::default(),
            changed: watch::Sender::new(()),
            shut: watch::Sender::new(false),
            patience,
        })
    }

    /// From now on `deliver` waits until [`Self::open`].
    pub(super) fn shut(&self) {
        self.shut.send_replace(true);
    }

    pub(super) fn open(&self) {
        self.shut.send_replace(false);
    }

    pub(super) fn frames(&self) -> Vec<Arrived> {
        self.log().frames.clone()
    }

    /// The numbers of the frames that arrived from a node on a lane, in order.
    pub(super) fn numbers(&self, from: NodeId, lane: Lane) -> Vec<u64> {
        let log = self.log();
        let frames = log
            .frames
            .iter()
            .filter(|frame| frame.from == from && frame.lane == lane);
        frames.map(|frame| frame.number).collect()
    }

    /// How often a connection to this node was made and how often one broke.
    pub(super) fn connections(&self, to: NodeId) -> (usize, usize) {
        let log = self.log();
        let of = |made| log.events.iter().filter(|event| **event == (to, made)).count();
        (of(true), of(false))
    }

    /// Waits until a connection to this node exists.
    pub(super) async fn connected(&self, to: NodeId) -> Result<(), String> {
        self.until(&format!("Connected({to}) to be delivered"), |recorder| {
            recorder.last_event(to) == Some(true)
        })
        .await
    }

    /// Waits until the connection to this node has broken.
    pub(super) async fn disconnected(&self, from: NodeId) -> Result<(), String> {
        self.until(&format!("Disconnected({from}) to be delivered"), |recorder| {
            recorder.last_event(from) == Some(false)
        })
        .await
    }

    /// Waits until as many frames have arrived on a lane, and checks that their numbers are 1, 2, 3 ...
    pub(super) async fn all_in_order(&self, from: NodeId, lane: Lane, count: u64) -> Result<(), String> {
        let expected: Vec<u64> = (1..=count).collect();
        let waited = self
            .until(&format!("{count} {lane:?} frames of node {from}"), |recorder| {
                recorder.numbers(from, lane).len() as u64 >= count
            })
            .await;
        let found = self.numbers(from, lane);
        if let Some(at) = (0..found.len()).find(|at| expected.get(*at) != found.get(*at)) {
            return Err(format!(
                "{lane:?} frame {} of node {from} arrived as number {} of that lane",
                found[at],
                at + 1
            ));
        }
        waited
    }

    /// Waits until something holds.
    pub(super) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<(), String> {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !holds(self) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        let waited = tokio::time::timeout(self.patience, wait).await;
        if let Some(rubbish) = self.log().rubbish.clone() {
            return Err(rubbish);
        }
        waited.map_err(|_| format!("waited {} s in vain for {what}", self.patience.as_secs()))
    }

    fn last_event(&self, node: NodeId) -> Option<bool> {
        let log = self.log();
        log.events
            .iter()
            .rev()
            .find(|(of, _)| *of == node)
            .map(|(_, made)| *made)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Deliver for Recorder {
    async fn deliver(&self, incoming: Incoming) -> Result<(), InboxClosed> {
        // Never fails: the sender lives as long as the recorder.
        let _ = self.shut.subscribe().wait_for(|shut| !shut).await;
        {
            let mut log = self.log();
            match incoming {
                Incoming::Connected(node) => log.events.push((node, true)),
                Incoming::Disconnected(node) => log.events.push((node, false)),
                Incoming::Frame(frame) => {
                    let bytes = frame.len();
                    match wire::decode(frame) {
                        Ok(envelope) => log.frames.push(arrived(&envelope, bytes)),
                        Err(error) => log.rubbish = Some(format!("a damaged frame was delivered: {error}")),
                    }
                }
            }
        }
        self.changed.send_replace(());
        Ok(())
    }
}

fn arrived(envelope: &Envelope, bytes: usize) -> Arrived {
    let (lane, number) = match &envelope.message {
        Message::Forward { first, .. } => (Lane::Control, *first),
        Message::Learned { from, .. } => (Lane::Bulk, from.0),
        other => unreachable!("the suite sends no {} message", other.name()),
    };
    Arrived {
        from: envelope.from,
        lane,
        number,
        bytes,
    }
}
