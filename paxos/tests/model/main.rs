//! Every run of a small cluster: the real [`Replica`](paxos::core::Replica), explored by a model checker.
//!
//! Three acceptors, two of them proposers with a command each: two leaders, two slots; or a leader that makes another
//! node the only voter, and another one after it. The bounds of each exploration
//! are its [`Bounds`]; within them it is exhaustive. Messages arrive in any order, at any later time or never, and more
//! than once where the bounds say so. Disks may lag behind: a restart then loses any suffix of the writes.
//!
//! What is left out: time (a candidacy begins whenever it may), canvassing (it always succeeds, which is the worst
//! case), forwarded commands, reads, and the watermark's own write to the disk (a restart finds the one that was
//! written beside a promise).
//!
//! `PAXOS_MODEL=large` explores larger bounds, in release:
//!
//! ```text
//! PAXOS_MODEL=large cargo test --release -p paxos --features testing --test model -- --nocapture --test-threads=1
//! ```
#![cfg(feature = "testing")]

mod bounds;
mod properties;
mod seat;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use paxos::{
    Ballot, NodeId, Slot,
    core::{Message, Phase},
};
use stateright::{Checker, Model, Property};

use bounds::{BASE, Bounds, small_or_large};
use properties::membership_in;
use seat::{Effects, Event, Letter, Seat, Vote, fingerprint};

/// The ballot that a message is about.
fn ballot(message: &Message) -> Option<Ballot> {
    match message {
        Message::Prepare { ballot, .. }
        | Message::Promise { ballot, .. }
        | Message::Accept { ballot, .. }
        | Message::Accepted { ballot, .. }
        | Message::Heartbeat { ballot, .. }
        | Message::HeartbeatReply { ballot, .. }
        | Message::Chosen { ballot, .. } => Some(*ballot),
        _ => None,
    }
}

/// The cluster. Nodes, letters and values are named by their fingerprints; [`Tables`] holds them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Cluster {
    seats: [u64; 3],
    /// All that was ever said, sorted.
    letters: Vec<u64>,
    /// All durable accepts that ever were, sorted.
    votes: Vec<u64>,
    restarts: usize,
    fault: Option<String>,
}

/// One event at one node, which is counted from 0.
#[derive(Clone, Debug, PartialEq)]
struct Action {
    node: usize,
    event: Event,
}

/// What one event makes of one node.
#[derive(Debug)]
struct Transition {
    seat: u64,
    letters: Vec<u64>,
    votes: Vec<u64>,
    fault: Option<String>,
}

/// Everything met so far. What an event makes of a node depends on nothing but the two, and is computed once.
#[derive(Debug, Default)]
struct Tables {
    seats: HashMap<u64, Arc<Seat>>,
    letters: HashMap<u64, Arc<Letter>>,
    votes: HashMap<u64, Vote>,
    transitions: HashMap<(u64, u64), Arc<Transition>>,
}

impl Tables {
    fn add_seat(&mut self, seat: Seat) -> u64 {
        let name = fingerprint(&seat);
        self.seats.entry(name).or_insert_with(|| Arc::new(seat));
        name
    }

    fn add_effects(&mut self, seat: Seat, effects: Effects) -> Transition {
        let mut letters = Vec::new();
        for letter in effects.sent {
            let name = fingerprint(&letter);
            self.letters.entry(name).or_insert_with(|| Arc::new(letter));
            letters.push(name);
        }
        let mut votes = Vec::new();
        for vote in effects.votes {
            let name = fingerprint(&vote);
            self.votes.insert(name, vote);
            votes.push(name);
        }
        Transition {
            seat: self.add_seat(seat),
            letters,
            votes,
            fault: effects.fault,
        }
    }
}

struct Exploration {
    bounds: Bounds,
    tables: Mutex<Tables>,
}

fn add(sorted: &mut Vec<u64>, names: &[u64]) {
    for name in names {
        if let Err(place) = sorted.binary_search(name) {
            sorted.insert(place, *name);
        }
    }
}

impl Exploration {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seats(&self, cluster: &Cluster) -> [Arc<Seat>; 3] {
        let tables = self.tables();
        cluster.seats.map(|seat| Arc::clone(&tables.seats[&seat]))
    }

    fn transition(&self, seat_name: u64, event: &Event) -> Arc<Transition> {
        let key = (seat_name, event.name());
        let seat = {
            let tables = self.tables();
            if let Some(known) = tables.transitions.get(&key) {
                return Arc::clone(known);
            }
            Arc::clone(&tables.seats[&seat_name])
        };
        let (after, effects) = seat.after(event, &self.bounds);
        let mut tables = self.tables();
        let transition = Arc::new(tables.add_effects(after, effects));
        tables.transitions.insert(key, Arc::clone(&transition));
        transition
    }

    /// Drops letters that can have no effect any more: of a ballot that their receiver has left behind for good, and
    /// ignored by it now. Clusters that differ in nothing but such letters are the same.
    fn drop_stale(&self, cluster: &mut Cluster) {
        let seats = self.seats(cluster);
        let named: Vec<Arc<Letter>> = {
            let tables = self.tables();
            cluster
                .letters
                .iter()
                .map(|name| Arc::clone(&tables.letters[name]))
                .collect()
        };
        let mut letters = named.into_iter();
        cluster.letters.retain(|_| {
            letters.next().is_none_or(|letter| {
                let at = letter.to as usize - 1;
                let is_old =
                    ballot(&letter.message).is_some_and(|ballot| ballot < seats[at].durable.promised);
                !is_old || {
                    let after = self.transition(cluster.seats[at], &Event::Deliver(letter));
                    after.seat != cluster.seats[at] || !after.letters.is_empty() || after.fault.is_some()
                }
            })
        });
    }

    fn votes(&self, cluster: &Cluster) -> Vec<Vote> {
        let tables = self.tables();
        cluster
            .votes
            .iter()
            .map(|name| tables.votes[name].clone())
            .collect()
    }

    /// What a quorum of the voters in force has durably accepted at one ballot, at any time: for each slot the values. Who
    /// the voters are is known only where everything below is chosen.
    fn chosen(&self, cluster: &Cluster) -> BTreeMap<Slot, BTreeSet<Bytes>> {
        let mut accepted: BTreeMap<Slot, BTreeMap<(Ballot, Bytes), BTreeSet<u64>>> = BTreeMap::new();
        for vote in self.votes(cluster) {
            let Vote {
                slot,
                ballot,
                value,
                voter,
            } = vote;
            let at = accepted.entry(slot).or_default();
            at.entry((ballot, value)).or_default().insert(voter);
        }
        let mut membership = seat::founders();
        let mut chosen: BTreeMap<Slot, BTreeSet<Bytes>> = BTreeMap::new();
        for (slot, accepted) in accepted {
            let by_quorum = accepted.into_iter().filter(|(_, voters)| {
                let voted = |node: &NodeId| voters.contains(&node.0);
                membership.voters().filter(voted).count() >= membership.quorum()
            });
            let values: BTreeSet<Bytes> = by_quorum.map(|((_, value), _)| value).collect();
            match values.first().map(membership_in) {
                None if self.bounds.last_voter.is_some() => break,
                Some(Some(next)) if next.version == membership.version + 1 => membership = next,
                _ => {}
            }
            if !values.is_empty() {
                chosen.insert(slot, values);
            }
        }
        chosen
    }
}

impl Event {
    /// Tells events at one node apart.
    fn name(&self) -> u64 {
        match self {
            Self::Deliver(letter) => fingerprint(letter),
            Self::Stand => 1,
            Self::Heartbeat => 2,
            Self::Sync => 3,
            Self::Restart => 4,
            Self::Change => 5,
        }
    }
}

impl Model for Exploration {
    type State = Cluster;
    type Action = Action;

    fn init_states(&self) -> Vec<Cluster> {
        let mut tables = self.tables();
        vec![Cluster {
            seats: [1, 2, 3]
                .map(|node| tables.add_seat(Seat::new(node, self.bounds.proposals[node as usize - 1]))),
            letters: Vec::new(),
            votes: Vec::new(),
            restarts: 0,
            fault: None,
        }]
    }

    fn actions(&self, cluster: &Cluster, actions: &mut Vec<Action>) {
        if cluster.fault.is_some() {
            return;
        }
        {
            let tables = self.tables();
            actions.extend(cluster.letters.iter().map(|name| {
                let letter = Arc::clone(&tables.letters[name]);
                Action {
                    node: letter.to as usize - 1,
                    event: Event::Deliver(letter),
                }
            }));
        }
        let bounds = &self.bounds;
        for (node, seat) in self.seats(cluster).into_iter().enumerate() {
            let leads = seat.phase() == Phase::Leader;
            let restarts = bounds.disks_lag[node] || !bounds.disks_lag.contains(&true);
            let more_heartbeats = bounds.heartbeats.is_some_and(|most| seat.heartbeats < most);
            let possible = [
                (
                    !leads && seat.candidacies < bounds.candidacies[node],
                    Event::Stand,
                ),
                (leads && more_heartbeats, Event::Heartbeat),
                (seat.is_writing(), Event::Sync),
                (
                    leads && node == 0 && bounds.last_voter.is_some() && !seat.has_changed,
                    Event::Change,
                ),
                (restarts && cluster.restarts < bounds.restarts, Event::Restart),
            ];
            let possible = possible.into_iter().filter(|(is_possible, _)| *is_possible);
            actions.extend(possible.map(|(_, event)| Action { node, event }));
        }
    }

    fn next_state(&self, cluster: &Cluster, action: Action) -> Option<Cluster> {
        let Action { node, event } = action;
        let before = cluster.seats[node];
        let transition = self.transition(before, &event);
        let mut next = cluster.clone();
        if let Event::Deliver(letter) = &event
            && !self.bounds.repeats
        {
            let name = fingerprint(letter);
            next.letters.retain(|other| *other != name);
        }
        next.seats[node] = transition.seat;
        add(&mut next.letters, &transition.letters);
        add(&mut next.votes, &transition.votes);
        next.restarts += usize::from(matches!(event, Event::Restart));
        next.fault.clone_from(&transition.fault);
        self.drop_stale(&mut next);
        (next != *cluster).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = Self::safety();
        properties.extend(self.reachable());
        properties
    }
}

fn explore(bounds: Bounds) {
    #[cfg(paxos_planted)]
    if let Ok(name) = std::env::var("PAXOS_PLANT")
        && !name.is_empty()
    {
        paxos::planted::plant(&name).expect("the name of a bug");
    }
    let model = Exploration {
        bounds,
        tables: Mutex::default(),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let began = std::time::Instant::now();
    let checker = model.checker().threads(threads).spawn_bfs().join();
    println!(
        "{bounds:?}: {} states, {} transitions, depth {}, {} states of a node, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        checker.model().tables().seats.len(),
        began.elapsed().as_secs_f64(),
    );
    checker.assert_properties();
}

#[test]
fn two_leaders_two_slots_and_a_restart_that_loses_writes() {
    let small = Bounds {
        restarts: 1,
        disks_lag: [true; 3],
        ..BASE
    };
    let large = Bounds {
        candidacies: [2, 1, 0],
        ..small
    };
    explore(small_or_large(small, large));
}

#[test]
fn a_node_leads_again() {
    let small = Bounds {
        candidacies: [2, 1, 0],
        ..BASE
    };
    let large = Bounds { restarts: 1, ..small };
    explore(small_or_large(small, large));
}

#[test]
fn messages_arrive_again_and_again() {
    let small = Bounds {
        repeats: true,
        ..BASE
    };
    let large = Bounds { restarts: 1, ..small };
    explore(small_or_large(small, large));
}

#[test]
fn nodes_learn_from_each_other() {
    let small = Bounds {
        learning: true,
        ..BASE
    };
    let large = Bounds { restarts: 1, ..small };
    explore(small_or_large(small, large));
}

#[test]
fn heartbeats_carry_votes() {
    let small = Bounds {
        proposals: [1, 0, 0],
        heartbeats: Some(0),
        ..BASE
    };
    let large = Bounds {
        proposals: BASE.proposals,
        ..small
    };
    explore(small_or_large(small, large));
}

#[test]
fn refusals_depose_leaders() {
    let small = Bounds {
        refusals: true,
        ..BASE
    };
    let large = Bounds { restarts: 1, ..small };
    explore(small_or_large(small, large));
}

/// The old voters' quorums and the last voter have nothing in common: whoever leads after the change must have asked it.
#[test]
fn the_voters_change_to_one_that_the_others_quorums_do_not_hold() {
    let small = Bounds {
        proposals: [0, 1, 0],
        last_voter: Some(3),
        restarts: 1,
        watermarks: false,
        disks_lag: [true, false, false],
        ..BASE
    };
    let large = Bounds {
        watermarks: true,
        ..small
    };
    explore(small_or_large(small, large));
}

#[test]
fn the_last_voter_leads() {
    let small = Bounds {
        candidacies: [1, 0, 1],
        proposals: [0, 0, 1],
        last_voter: Some(3),
        watermarks: false,
        ..BASE
    };
    let large = Bounds {
        candidacies: [1, 1, 1],
        ..small
    };
    explore(small_or_large(small, large));
}
