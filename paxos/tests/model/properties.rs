//! What must hold in every state, and what an exploration must meet.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use paxos::{
    Entry, EntryKind, Membership, NodeId, Slot,
    core::{Command, Phase, batch},
};
use stateright::Property;

use super::{
    Cluster, Exploration,
    seat::{Seat, Vote, command},
};

impl Exploration {
    /// What must hold in every state.
    pub(crate) fn safety() -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is amiss at any node", |_: &Self, cluster: &Cluster| {
                cluster.fault.is_none()
            }),
            Property::always(
                "at most one value is chosen for a slot",
                |model: &Self, cluster: &Cluster| {
                    model.chosen(cluster).values().all(|values| values.len() == 1)
                },
            ),
            Property::always(
                "a slot has one value at one ballot",
                |model: &Self, cluster: &Cluster| {
                    let mut values = BTreeMap::new();
                    let same = |vote: Vote| {
                        let first = values
                            .entry((vote.slot, vote.ballot))
                            .or_insert_with(|| vote.value.clone());
                        *first == vote.value
                    };
                    model.votes(cluster).into_iter().all(same)
                },
            ),
            Property::always(
                "what is chosen was proposed",
                |model: &Self, cluster: &Cluster| {
                    let proposed = |chosen: Command| {
                        let node = chosen.id.node.0;
                        let after_change = u64::from(node == 1 && model.bounds.last_voter.is_some());
                        let proposals = model.bounds.proposals[node as usize - 1] as u64 + after_change;
                        (1..=proposals).contains(&chosen.id.sequence)
                            && chosen.payload == command(node, chosen.id.sequence)
                    };
                    let chosen = model.chosen(cluster);
                    let mut values = chosen.values().flatten();
                    values.all(|value| commands(value).is_some_and(|all| all.into_iter().all(proposed)))
                },
            ),
            Property::always("what is applied is chosen", |model: &Self, cluster: &Cluster| {
                let chosen = model.chosen(cluster);
                let is_chosen = |slot: u64, applied: &[Command]| {
                    let values = chosen.get(&Slot(slot)).into_iter().flatten();
                    let mut chosen = values.filter_map(commands);
                    chosen.any(|chosen| applied.iter().all(|command| chosen.contains(command)))
                };
                model.seats(cluster).iter().all(|seat| {
                    let mut applied = (1..).zip(&seat.applied);
                    applied.all(|(slot, (_, commands))| is_chosen(slot, commands))
                })
            }),
            Property::always(
                "all apply the same, in order",
                |model: &Self, cluster: &Cluster| {
                    let seats = model.seats(cluster);
                    let longest = seats.iter().max_by_key(|seat| seat.applied.len());
                    let longest = longest.map(|seat| seat.applied.as_slice()).unwrap_or_default();
                    seats.iter().all(|seat| longest.starts_with(&seat.applied))
                },
            ),
        ]
    }

    /// What an exploration must meet, or it proves nothing.
    pub(crate) fn reachable(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::sometimes(
                "a slot has votes at two ballots",
                |model: &Self, cluster: &Cluster| {
                    let votes = model.votes(cluster);
                    let clash = |a: &Vote, b: &Vote| a.slot == b.slot && a.ballot != b.ballot;
                    votes.iter().any(|a| votes.iter().any(|b| clash(a, b)))
                },
            ),
            Property::sometimes(
                "a leader gets another one's value chosen",
                |model: &Self, cluster: &Cluster| {
                    model.votes(cluster).iter().any(|vote| {
                        // Only node 1 proposes a membership.
                        let proposer = match membership_in(&vote.value) {
                            Some(_) => Some(NodeId(1)),
                            None => batch::decode(&vote.value).ok().map(|batch| batch.ballot.node),
                        };
                        let is_chosen = |values: &BTreeSet<Bytes>| values.contains(&vote.value);
                        proposer.is_some_and(|proposer| proposer != vote.ballot.node)
                            && model.chosen(cluster).get(&vote.slot).is_some_and(is_chosen)
                    })
                },
            ),
            Property::sometimes("two nodes lead at once", |model: &Self, cluster: &Cluster| {
                let seats = model.seats(cluster);
                seats.iter().filter(|seat| seat.phase() == Phase::Leader).count() == 2
            }),
        ];
        if self.bounds.last_voter.is_some() {
            properties.push(Property::sometimes(
                "the membership changes",
                |model: &Self, cluster: &Cluster| {
                    let chosen = model.chosen(cluster);
                    chosen
                        .values()
                        .flatten()
                        .any(|value| membership_in(value).is_some())
                },
            ));
            if self.bounds.candidacies[2] > 0 {
                properties.push(Property::sometimes(
                    "the last voter decides alone",
                    |model: &Self, cluster: &Cluster| {
                        let chosen = model.chosen(cluster);
                        let mut values = chosen.values().flatten();
                        values.any(|value| membership_in(value).is_some()) && values.next().is_some()
                    },
                ));
            }
        }
        if self.bounds.last_voter.is_none() && self.bounds.proposals.iter().sum::<usize>() > 1 {
            properties.push(Property::sometimes(
                "all nodes have applied two slots",
                |model: &Self, cluster: &Cluster| {
                    model.seats(cluster).iter().all(|seat| seat.applied.len() >= 2)
                },
            ));
        }
        if self.bounds.restarts > 0 {
            properties.push(Property::sometimes(
                "a command is applied by all after a restart",
                |model: &Self, cluster: &Cluster| {
                    let applied =
                        |seat: &Arc<Seat>| seat.applied.iter().any(|(_, commands)| !commands.is_empty());
                    cluster.restarts > 0 && model.seats(cluster).iter().all(applied)
                },
            ));
        }
        properties
    }
}

pub(crate) fn membership_in(value: &Bytes) -> Option<Membership> {
    Membership::from_entry(&Entry {
        kind: EntryKind::Membership,
        payload: value.clone(),
    })
}

fn commands(value: &Bytes) -> Option<Vec<Command>> {
    if value.is_empty() || membership_in(value).is_some() {
        return Some(Vec::new());
    }
    batch::decode(value).ok().map(|batch| batch.commands)
}
