//! Which nodes can be heard: one small beat per pair of nodes and interval, whatever the number of groups they share.
//!
//! Pure, like the rest of the core. A driver owns one [`Peers`] per node, calls [`Peers::tick`] when
//! [`Peers::deadline`] says so, sends what that returns, hands in the beats that arrive, and tells all of its replicas
//! of every [`Change`] ([`Input::PeerAlive`], [`Input::PeerSilent`]). A replica that is made later is told what holds
//! then ([`Peers::known`]).

use alloc::{collections::BTreeMap, vec::Vec};
use core::time::Duration;

use super::Input;
use crate::types::{Incarnation, NodeId, Time};

/// What one node says to another, now and then, as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Beat {
    /// The sender's life.
    pub incarnation: Incarnation,
    /// When it was sent, in microseconds of the sender's clock: larger for each beat of a life.
    pub sent_micros: u64,
    /// The last beat that the sender has of the receiver.
    pub echo: Option<Echo>,
}

/// What a beat says of the last one that came the other way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Echo {
    /// [`Beat::incarnation`] of that one.
    pub incarnation: Incarnation,
    /// [`Beat::sent_micros`] of that one.
    pub sent_micros: u64,
    /// How long ago it came, in microseconds.
    pub held_micros: u64,
}

/// What a node has found out about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The peer is heard.
    Alive(NodeId),
    /// The peer has not been heard for as long as the silence may last, or was started anew: then `Alive` follows.
    Silent(NodeId),
}

/// What is known of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerHealth {
    /// Whether the peer is heard; `None` before there was time to.
    pub alive: Option<bool>,
    /// The peer's life, if it was ever heard.
    pub incarnation: Option<Incarnation>,
    /// How long ago it was last heard.
    pub heard_before: Option<Duration>,
    /// How long a beat and its echo were on their way, without the time that the peer held it; smoothed over about the
    /// last eight.
    pub round_trip: Option<Duration>,
}

impl From<Change> for Input {
    fn from(change: Change) -> Self {
        match change {
            Change::Alive(peer) => Self::PeerAlive(peer),
            Change::Silent(peer) => Self::PeerSilent(peer),
        }
    }
}

#[derive(Clone, Debug)]
struct Peer {
    alive: Option<bool>,
    /// The last beat, and when it came.
    last: Option<(Beat, Time)>,
    /// When it was last heard, or when this node began to listen; later if this node was held up.
    quiet_since: Time,
    round_trip: Option<Duration>,
}

/// A node's view of its peers.
#[derive(Clone, Debug)]
pub struct Peers {
    incarnation: Incarnation,
    interval: Duration,
    max_silence: Duration,
    ticked_at: Time,
    watched: BTreeMap<NodeId, Peer>,
}

impl Peers {
    /// Nobody is known yet. A beat goes to every peer each `interval`; a peer that is not heard for `max_silence` is
    /// silent.
    pub const fn new(incarnation: Incarnation, interval: Duration, max_silence: Duration, now: Time) -> Self {
        Self {
            incarnation,
            interval,
            max_silence,
            ticked_at: now,
            watched: BTreeMap::new(),
        }
    }

    /// Watches these nodes from now on, and no others.
    pub fn watch(&mut self, nodes: impl IntoIterator<Item = NodeId>, now: Time) {
        let mut before = core::mem::take(&mut self.watched);
        self.watched = nodes
            .into_iter()
            .map(|node| {
                let new = || Peer {
                    alive: None,
                    last: None,
                    quiet_since: now,
                    round_trip: None,
                };
                (node, before.remove(&node).unwrap_or_else(new))
            })
            .collect();
    }

    /// A beat has come in. Old ones and those of nodes that are not watched say nothing.
    pub fn heard(&mut self, from: NodeId, beat: Beat, now: Time) -> Vec<Change> {
        let mut changes = Vec::new();
        let Some(peer) = self.watched.get_mut(&from) else {
            return changes;
        };
        if let Some((last, _)) = &peer.last {
            if (beat.incarnation, beat.sent_micros) <= (last.incarnation, last.sent_micros) {
                return changes;
            }
            if beat.incarnation != last.incarnation && peer.alive == Some(true) {
                peer.alive = Some(false);
                changes.push(Change::Silent(from));
            }
        }
        peer.last = Some((beat, now));
        peer.quiet_since = now;
        if let Some(echo) = beat.echo.filter(|echo| echo.incarnation == self.incarnation) {
            let away = micros(now).checked_sub(echo.sent_micros);
            if let Some(sample) = away.and_then(|away| away.checked_sub(echo.held_micros)) {
                let sample = Duration::from_micros(sample);
                peer.round_trip = Some(peer.round_trip.map_or(sample, |before| (before * 7 + sample) / 8));
            }
        }
        if peer.alive != Some(true) {
            peer.alive = Some(true);
            changes.push(Change::Alive(from));
        }
        changes
    }

    /// What to send now, and who has fallen silent. Does nothing before [`deadline`](Self::deadline).
    pub fn tick(&mut self, now: Time) -> (Vec<(NodeId, Beat)>, Vec<Change>) {
        if now < self.deadline() {
            return (Vec::new(), Vec::new());
        }
        // While this node was held up it heard nobody, and what they said may still wait.
        let held_up = now.since(self.ticked_at).saturating_sub(self.interval * 2);
        self.ticked_at = now;
        let mut beats = Vec::new();
        let mut changes = Vec::new();
        for (node, peer) in &mut self.watched {
            peer.quiet_since = peer.quiet_since.plus(held_up);
            if peer.alive != Some(false) && now.since(peer.quiet_since) >= self.max_silence {
                peer.alive = Some(false);
                changes.push(Change::Silent(*node));
            }
            let echo = peer.last.map(|(beat, came)| Echo {
                incarnation: beat.incarnation,
                sent_micros: beat.sent_micros,
                held_micros: u64::try_from(now.since(came).as_micros()).unwrap_or(u64::MAX),
            });
            let beat = Beat {
                incarnation: self.incarnation,
                sent_micros: micros(now),
                echo,
            };
            beats.push((*node, beat));
        }
        (beats, changes)
    }

    /// When [`tick`](Self::tick) is due.
    pub fn deadline(&self) -> Time {
        self.ticked_at.plus(self.interval)
    }

    /// What holds now of the peers of whom anything is known, for a replica that has missed the changes.
    pub fn known(&self) -> impl Iterator<Item = Change> {
        self.watched.iter().filter_map(|(node, peer)| {
            let change = if peer.alive? {
                Change::Alive
            } else {
                Change::Silent
            };
            Some(change(*node))
        })
    }

    /// What is known of each peer.
    pub fn health(&self, now: Time) -> BTreeMap<NodeId, PeerHealth> {
        let health = |peer: &Peer| PeerHealth {
            alive: peer.alive,
            incarnation: peer.last.map(|(beat, _)| beat.incarnation),
            heard_before: peer.last.map(|(_, came)| now.since(came)),
            round_trip: peer.round_trip,
        };
        self.watched
            .iter()
            .map(|(node, peer)| (*node, health(peer)))
            .collect()
    }
}

fn micros(time: Time) -> u64 {
    u64::try_from(time.0.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    const PEER: NodeId = NodeId(2);

    const fn at(millis: u64) -> Time {
        Time(Duration::from_millis(millis))
    }

    const fn beat(incarnation: u64, sent_millis: u64) -> Beat {
        Beat {
            incarnation: Incarnation(incarnation),
            sent_micros: sent_millis * 1_000,
            echo: None,
        }
    }

    fn watching() -> Peers {
        let interval = Duration::from_millis(100);
        let mut peers = Peers::new(Incarnation(7), interval, interval * 5, at(0));
        peers.watch([PEER], at(0));
        peers
    }

    fn changes_until(peers: &mut Peers, from: u64, to: u64) -> Vec<Change> {
        let ticks = (from..=to).step_by(100);
        ticks.flat_map(|millis| peers.tick(at(millis)).1).collect()
    }

    #[test]
    fn a_peer_is_alive_from_its_first_beat_until_it_has_been_silent_for_long_enough() {
        let mut peers = watching();
        assert_eq!(peers.heard(PEER, beat(1, 50), at(100)), [Change::Alive(PEER)]);
        assert_eq!(peers.heard(PEER, beat(1, 150), at(200)), []);
        assert_eq!(changes_until(&mut peers, 300, 600), []);
        assert_eq!(changes_until(&mut peers, 700, 1_500), [Change::Silent(PEER)]);
        assert_eq!(peers.heard(PEER, beat(1, 250), at(1_600)), [Change::Alive(PEER)]);
    }

    #[test]
    fn a_peer_that_was_never_heard_falls_silent_too() {
        assert_eq!(changes_until(&mut watching(), 100, 1_000), [Change::Silent(PEER)]);
    }

    #[test]
    fn late_and_repeated_beats_are_no_sign_of_life() {
        let mut peers = watching();
        peers.heard(PEER, beat(2, 50), at(100));
        let silent = changes_until(&mut peers, 200, 1_000);
        assert_eq!(silent, [Change::Silent(PEER)]);
        assert_eq!(peers.heard(PEER, beat(2, 50), at(1_000)), []);
        assert_eq!(
            peers.heard(PEER, beat(1, 900), at(1_000)),
            [],
            "of an earlier life"
        );
        assert_eq!(peers.health(at(1_000))[&PEER].alive, Some(false));
    }

    #[test]
    fn a_peer_that_was_started_anew_is_silent_for_a_moment() {
        let mut peers = watching();
        peers.heard(PEER, beat(1, 50), at(100));
        let expected = [Change::Silent(PEER), Change::Alive(PEER)];
        assert_eq!(peers.heard(PEER, beat(2, 10), at(200)), expected);
    }

    #[test]
    fn a_node_that_was_held_up_blames_nobody() {
        let mut peers = watching();
        peers.heard(PEER, beat(1, 50), at(100));
        peers.tick(at(100));
        assert_eq!(peers.tick(at(9_000)).1, vec![]);
        assert_eq!(changes_until(&mut peers, 9_100, 9_600), [Change::Silent(PEER)]);
    }

    #[test]
    fn the_round_trip_leaves_out_what_the_peer_waited() {
        let (mut one, mut other) = (watching(), watching());
        other.watch([NodeId(1)], at(0));
        let (sent, _) = one.tick(at(100));
        other.heard(NodeId(1), sent[0].1, at(103));
        let (answer, _) = other.tick(at(160));
        one.heard(PEER, answer[0].1, at(164));
        assert_eq!(
            one.health(at(164))[&PEER].round_trip,
            Some(Duration::from_millis(7))
        );
    }
}
