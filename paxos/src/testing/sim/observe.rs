//! What a run meets, as seen from outside the nodes: for the coverage counters and the trace.

use std::{collections::BTreeMap, format};

use super::{
    cluster::{Cluster, Event},
    coverage::Event as Sometimes,
    faults::MS,
    machine::Workload,
    trace,
};
use crate::core::{Input, Message, Phase, Standing, Status};

impl<W: Workload> Cluster<'_, W> {
    pub(super) fn observe_input(&mut self, node: usize, group: usize, input: &Input) {
        self.note(self.now << 5 | (group << 3 | node) as u64);
        if let Input::Message { from, message, .. } = input {
            self.observe_snapshot(node, group, *from, message);
        }
        let Some(life) = self.nodes[node].seat(group) else {
            return;
        };
        let phase = life.status.phase;
        match input {
            Input::Message { message, .. } => {
                let candidate = matches!(phase, Phase::Canvassing | Phase::Candidate);
                match message {
                    Message::Refuse { .. } => {
                        self.coverage
                            .meet_if(phase == Phase::Leader, Sometimes::RefusedLeader);
                    }
                    Message::Promise {
                        chosen,
                        ballot,
                        reported,
                    } => {
                        let entries = &reported.entries;
                        let (chosen_here, reports) = (life.status.chosen, &mut self.groups[group].reported);
                        if reports.0 != *ballot {
                            *reports = (*ballot, BTreeMap::new());
                        }
                        let differ =
                            entries
                                .iter()
                                .filter(|(slot, _)| *slot > chosen_here)
                                .any(|(slot, accepted)| {
                                    let first = reports.1.entry(*slot).or_insert(accepted.ballot);
                                    *first != accepted.ballot
                                });
                        let late = phase == Phase::Leader && !entries.is_empty();
                        self.coverage.meet_if(late, Sometimes::NewVoterReported);
                        self.coverage
                            .meet_if(candidate && differ, Sometimes::PromisesDiffer);
                        let behind = candidate && *chosen > life.status.chosen;
                        self.coverage.meet_if(behind, Sometimes::LeaderBehind);
                    }
                    Message::TakeOver { ballot, .. } => {
                        let stale = life.status.leader != Some(*ballot);
                        self.coverage.meet(Sometimes::ToldToTakeOver);
                        self.coverage.meet_if(stale, Sometimes::LateTakeOver);
                    }
                    Message::Learned { entries, .. } => {
                        self.coverage.meet_if(!entries.is_empty(), Sometimes::Learned);
                    }
                    _ => {}
                }
            }
            Input::Read { .. } if phase == Phase::Leader => {
                let inherited = life.status.chosen < life.status.last && life.status.window_entries > 0;
                self.coverage.meet_if(inherited, Sometimes::ReadAtNewLeader);
            }
            Input::Disconnected(_) => self.coverage.meet(Sometimes::Disconnected),
            _ => {}
        }
        if self.is_traced() {
            self.say(|| format!("n{}{} {}", node + 1, self.tag(group), trace::input(input)));
        }
    }

    pub(super) fn observe_status(&mut self, node: usize, group: usize, before: &Status) {
        let Some(life) = self.nodes[node].seat_mut(group) else {
            return;
        };
        let now = life.status.clone();
        let has_left = now.standing == Standing::Removed && now.leader.is_none();
        life.is_drained &= now.draining || has_left;
        self.observe_standing(before, &now);
        let fingerprint = now.chosen.0 << 32 ^ now.promised.round << 8 ^ now.phase as u64;
        let leads = now.phase == Phase::Leader;
        let led = before.phase == Phase::Leader;
        let inherits = leads && !led && now.last > now.chosen;
        if inherits && self.reconfigures && self.random.chance(200) {
            // A user who asks the new leader before it knows what it leads.
            let delay = self.random.below(2 * MS);
            self.after(delay, Event::Reconfigure { node, group });
        }
        let coverage = &mut self.coverage;
        coverage.meet_if(inherits, Sometimes::LeaderWithPendingSlots);
        coverage.meet_if(led && !leads, Sometimes::LeaderSteppedDown);
        let rests = leads && now.resting && !before.resting;
        coverage.meet_if(rests, Sometimes::GroupRested);
        let alone = now.peers.values().any(|peer| !peer.alive);
        coverage.meet_if(rests && alone, Sometimes::RestedWithoutPeer);
        coverage.meet_if(leads && now.window_entries > 1, Sometimes::WindowOfMany);
        let kept = now.snapshot.0.saturating_sub(self.plan.config.keep_entries);
        let waits = leads && now.snapshot > before.snapshot && now.trimmed.0 < kept;
        coverage.meet_if(waits, Sometimes::TrimWaited);
        coverage.meet_if(now.trimmed > before.trimmed, Sometimes::LogTrimmed);
        let full = now.window_entries == self.plan.config.max_window_entries;
        coverage.meet_if(leads && full, Sometimes::WindowFull);
        self.note(fingerprint);
    }
}

/// What it shows of a replica that rests if this input wakes it.
pub(super) const fn waker(input: &Input) -> Option<Sometimes> {
    match input {
        Input::Propose { .. } | Input::Read { .. } => Some(Sometimes::WokenByRequest),
        Input::Message {
            message: Message::Canvass { .. },
            ..
        } => Some(Sometimes::WokenByCanvass),
        Input::Message {
            message: Message::Forward { .. } | Message::ReadIndex { .. } | Message::Learn { .. },
            ..
        } => Some(Sometimes::WokenByMessage),
        Input::PeerSilent(_) => Some(Sometimes::WokenBySilence),
        Input::PeerAlive(_) => Some(Sometimes::WokenByReturn),
        _ => None,
    }
}
