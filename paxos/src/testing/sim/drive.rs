//! How a simulated node carries out what its replica wants: the part that the tokio driver plays in production.

use std::{collections::BTreeMap, format, vec::Vec};

use super::{
    cluster::{Cluster, Event, Group},
    coverage::Event as Sometimes,
    disk::Write,
    faults::{Fault, MS},
    machine::Workload,
    network::{Arrival, Fate},
    node::{Node, group_id},
    oracle::{Violation, alarm, ensure},
    trace,
};
use crate::{
    core::{Input, Message, Output, PersistId, Rejection, Standing, Token},
    types::{EntryKind, GroupId, HardState, Incarnation, NodeId, Slot, WriteOp},
};

type Check = Result<(), Violation>;
type HardStates = BTreeMap<GroupId, HardState>;

impl<W: Workload> Cluster<'_, W> {
    pub(super) fn carry_out(&mut self, node: usize, group: usize, output: Output) -> Check {
        if self.is_traced() {
            self.say(|| format!("n{}{}   {}", node + 1, self.tag(group), trace::output(&output)));
        }
        let Some(output) = self.snapshot_output(node, group, output)? else {
            return Ok(());
        };
        match output {
            Output::Send { to, message } => self.send(node, group, &to, &message),
            Output::Persist { id, ops, sync } => self.persist(node, group, id, ops, sync),
            Output::Apply(chosen) => self.apply(node, group, &chosen),
            Output::Load {
                from,
                upto,
                max_bytes,
            } => {
                self.coverage.meet(Sometimes::Loaded);
                let delay = 10 + self.random.below(2 * MS);
                let life = self.life_of(node).0;
                let loaded = Event::Loaded {
                    node,
                    life,
                    group,
                    from,
                    upto,
                    max_bytes,
                };
                self.after(delay, loaded);
                Ok(())
            }
            Output::ReadReady { token, slot, lease } => self.read_ready(node, group, token, slot, lease),
            Output::Rejected { token, reason } => self.reject(node, group, token, reason),
            Output::Unknown { token } => {
                if self.groups[group].changes.remove(&token).is_some() {
                    self.coverage.meet(Sometimes::ChangeUnknown);
                    return Ok(());
                }
                self.coverage.meet(Sometimes::ProposalUnknown);
                let removed = self.nodes[node]
                    .seat(group)
                    .is_some_and(|seat| seat.status.standing == Standing::Removed);
                self.coverage.meet_if(removed, Sometimes::UnknownAtRemoved);
                let seat = self.nodes[node].seat(group);
                let installed = seat.is_some_and(|seat| seat.installed_in == self.events);
                self.coverage.meet_if(installed, Sometimes::UnknownByInstall);
                let id = self.nodes[node].id;
                ensure!(
                    !seat.is_some_and(|seat| seat.is_drained),
                    "drain",
                    "{id} leaves the user of {token:?} in doubt, although it was drained"
                );
                self.groups[group].history.unknown(id, token)?;
                self.client_hears(token, None);
                Ok(())
            }
            Output::Membership { membership, .. } => {
                self.update_book(node, |book| book.put_in_force(group_id(group), membership));
                Ok(())
            }
            Output::Peers(membership) => {
                self.update_book(node, |book| book.hear_of(group_id(group), membership));
                Ok(())
            }
            Output::Departed { node: left, address } => {
                self.update_book(node, |book| book.note_departed(left, address));
                Ok(())
            }
            Output::Leader(_)
            | Output::TakeSnapshot(_)
            | Output::InstallSnapshot { .. }
            | Output::LoadChunk { .. }
            | Output::StoreChunk { .. } => Ok(()),
            Output::Transferred { token, result } => self.transferred(node, group, token, result),
            Output::MembershipChanged { token, result } => {
                self.membership_changed(node, group, token, &result)
            }
            Output::Alarm(what) if self.is_expected(node, &what) => Ok(()),
            Output::Alarm(what) => Err(alarm(self.nodes[node].id, &what)),
        }
    }

    pub(super) fn life_of(&self, node: usize) -> Incarnation {
        Incarnation(self.nodes[node].disk.incarnation)
    }

    fn send(&mut self, node: usize, group: usize, to: &[NodeId], message: &Message) -> Check {
        let (id, life) = (self.nodes[node].id, self.life_of(node));
        ensure!(
            !to.is_empty() && !to.contains(&id),
            "contract",
            "{id} sends {} to nobody or to itself",
            message.name()
        );
        let disk = self.nodes[node].disk.durable.group(group_id(group));
        let acceptor = self.nodes[node].acceptor();
        let sent = self.groups[group].oracle.sent(acceptor, life, message, disk);
        self.demand_of(node, sent)?;
        self.observe_send(node, group, message)?;
        for receiver in to {
            let index = usize::try_from(receiver.0)
                .ok()
                .and_then(|id| id.checked_sub(1))
                .filter(|index| *index < self.nodes.len());
            let Some(index) = index else {
                return Err(Violation::new(
                    "contract",
                    format!("{id} sends to {receiver}, which is no member"),
                ));
            };
            self.transmit(node, index, group, message);
        }
        Ok(())
    }

    fn transmit(&mut self, from: usize, to: usize, group: usize, message: &Message) {
        self.messages += 1;
        let down = self.nodes[to].life.is_none();
        let refuses = down && self.plan.faults.has(Fault::Refusal) && self.random.chance(500);
        let unknown = !self.knows(from, to);
        self.coverage.meet_if(unknown, Sometimes::UnknownPeer);
        let fate = if refuses || unknown {
            Fate::Refused
        } else {
            self.network
                .fate(&self.plan, &mut self.random, self.now, from, to)
        };
        match fate {
            Fate::Lost => self.coverage.meet(Sometimes::Lost),
            Fate::Cut => self.coverage.meet(Sometimes::Cut),
            Fate::Refused => {
                self.coverage.meet(Sometimes::Refused);
                let refused = Input::SendRefused(self.nodes[to].id);
                self.after(
                    1,
                    Event::Hint {
                        node: from,
                        group,
                        input: refused,
                    },
                );
            }
            Fate::Delivered(arrivals) => {
                self.coverage.meet_if(arrivals.len() > 1, Sometimes::Duplicated);
                for arrival in arrivals {
                    let (at, sent_under) = match arrival {
                        Arrival::At(at) => (at, None),
                        Arrival::Replay(at) => (at, Some(self.groups[group].oracle.highest_ballot())),
                    };
                    let (message, storage) = (message.clone(), self.nodes[from].storage);
                    self.at(
                        at,
                        Event::Deliver {
                            to,
                            from,
                            group,
                            message,
                            storage,
                            sent_under,
                        },
                    );
                }
            }
        }
    }

    fn observe_send(&mut self, index: usize, group: usize, message: &Message) -> Check {
        let node = self.nodes[index].id;
        match message {
            Message::Prepare { .. } => {
                let leads = self.nodes[index].leads(group);
                self.coverage.meet_if(leads, Sometimes::BarrierAsked);
            }
            Message::Accept {
                ballot,
                first,
                entries,
                ..
            } => {
                let mut entries = (first.0..).map(Slot).zip(entries);
                let oracle = &self.groups[group].oracle;
                let adopted = entries.any(|(slot, entry)| {
                    entry.kind == EntryKind::Membership && oracle.proposed_before(slot, *ballot, entry)
                });
                self.coverage.meet_if(adopted, Sometimes::MembershipAdopted);
            }
            Message::Drained { .. } => {
                let now = self.nodes[index].clock(self.now);
                let seat = self.nodes[index].seat(group);
                let pending = seat.map_or(0, |seat| seat.replica.status(now).pending_commands);
                ensure!(
                    pending == 0,
                    "drain",
                    "{node} says that it is drained, but {pending} commands are open there"
                );
                if let Some(seat) = self.nodes[index].seat_mut(group) {
                    seat.is_drained = true;
                }
            }
            Message::CanvassReply { granted: false, .. } => self.coverage.meet(Sometimes::CanvassDenied),
            Message::Promise { reported, .. } => {
                self.coverage
                    .meet_if(!reported.damaged.is_empty(), Sometimes::DamagePromised);
                self.coverage
                    .meet_if(reported.last != Slot::MAX, Sometimes::PromiseInChunks);
            }
            Message::Forward {
                incarnation, first, ..
            } => {
                let new = self.groups[group].forwarded.insert((node, *incarnation, *first));
                let event = if new {
                    Sometimes::Forwarded
                } else {
                    Sometimes::ForwardedAgain
                };
                self.coverage.meet(event);
            }
            _ => {}
        }
        Ok(())
    }

    fn persist(&mut self, node: usize, group: usize, id: PersistId, ops: Vec<WriteOp>, sync: bool) -> Check {
        let acceptor = self.nodes[node].acceptor();
        let node_id = acceptor.0;
        let mut overwritten = false;
        let newest = self.nodes[node].files[group].newest();
        let now = self.nodes[node].clock(self.now);
        let seat = self.nodes[node].seat(group);
        let chosen = seat.map_or(Slot::ZERO, |seat| seat.replica.status(now).chosen);
        let view = self.nodes[node].disk.view.group(group_id(group));
        let mut after = view.hard;
        for op in &ops {
            let submitted = self.groups[group].oracle.submitted(acceptor, view, op);
            self.demand_of(node, submitted)?;
            match op {
                WriteOp::HardState { state, .. } => {
                    ensure!(
                        state.promised >= after.promised,
                        "I6",
                        "{node_id} lowers its promise in one write"
                    );
                    after = *state;
                }
                WriteOp::Accept { slot, entry, .. } => {
                    if view.damaged.contains(slot) {
                        let repaired = if *slot <= chosen {
                            Sometimes::RepairedByLearning
                        } else {
                            Sometimes::RepairedByAccept
                        };
                        self.coverage.meet(repaired);
                    }
                    overwritten |= view.entries.get(slot).is_some_and(|held| held.entry != *entry);
                }
                WriteOp::Trim { upto, .. } => {
                    let repaired = view.damaged.first().is_some_and(|first| first <= upto);
                    self.coverage.meet_if(repaired, Sometimes::RepairedBySnapshot);
                    ensure!(
                        *upto <= newest && *upto <= after.chosen,
                        "I7",
                        "{node_id} trims up to {upto}; its newest snapshot is of {newest}, its watermark {}",
                        after.chosen
                    );
                }
                WriteOp::RemoveGroup { .. } => {}
            }
        }
        self.coverage.meet_if(overwritten, Sometimes::AcceptedOverwritten);
        let round = self.events;
        self.nodes[node]
            .disk
            .submit(group_id(group), id, ops, sync, round);
        Ok(())
    }

    pub(super) fn sync(&mut self, node: usize) {
        if !self.nodes[node].disk.begin_sync() {
            return;
        }
        self.coverage
            .meet_if(self.nodes[node].disk.unsynced().len() > 1, Sometimes::GroupCommit);
        let under_way = self.nodes[node].disk.under_way();
        let shared = under_way.filter(|write| write.ids.len() > 1).count() > 0;
        self.coverage.meet_if(shared, Sometimes::SharedWrite);
        let usual = if self.network.calm {
            MS.min(self.plan.sync_mean)
        } else {
            self.plan.sync_mean
        };
        let mean = usual * if self.nodes[node].slow_disk { 20 } else { 1 };
        let delay = (50 + self.random.exponential(mean)).min(500 * MS);
        let life = self.life_of(node).0;
        self.after(delay, Event::Synced { node, life });
    }

    /// A sync ends, well or not. After a failed one the node stops: what reached the disk, nobody knows.
    pub(super) fn synced(&mut self, node: usize) -> Check {
        let fails = !self.network.calm && self.random.chance(self.plan.sync_failure_permille);
        let full = self.nodes[node].full_disk;
        if fails || full {
            let event = if full {
                Sometimes::FullAtSync
            } else {
                Sometimes::SyncFailed
            };
            self.coverage.meet(event);
            let id = self.nodes[node].id;
            self.say(|| format!("n{id} sync fails"));
            return self.crash_for_a_while(node);
        }
        let Node { disk, store, .. } = &mut self.nodes[node];
        if let Some(store) = store {
            store.write(disk.under_way(), true)?;
        }
        let before = disk.durable.hard_states();
        let writes = disk.finish_sync();
        self.now_durable(node, &writes, &before)?;
        let ids = writes.iter().flat_map(|write| write.ids.iter().copied());
        let last: BTreeMap<GroupId, PersistId> = ids.collect();
        for group in 0..self.groups.len() {
            if let Some(id) = last.get(&group_id(group)) {
                self.input(node, group, Input::Persisted(*id));
            }
        }
        self.sync(node);
        Ok(())
    }

    /// The disk answers a read.
    pub(super) fn loaded(
        &mut self,
        node: usize,
        group: usize,
        (from, upto): (Slot, Slot),
        max_bytes: usize,
    ) -> Check {
        let id = group_id(group);
        let Node { disk, store, .. } = &mut self.nodes[node];
        if let Some(store) = store {
            let expected = disk.durable.group(id).read(from, upto, max_bytes);
            store.read(id, (from, upto), max_bytes, &expected)?;
        }
        let view = disk.view.group(id);
        let entries = view.read(from, upto, max_bytes);
        let slots = view.damaged_run(from, upto);
        if !slots.is_empty() {
            self.coverage.meet(Sometimes::DamageAtRead);
            self.input(node, group, Input::Damaged { slots });
        }
        self.input(node, group, Input::Loaded { from, entries });
        Ok(())
    }

    /// Tells the oracles of writes that have just become durable, on a disk whose hard states were `before`.
    pub(super) fn now_durable(&mut self, node: usize, writes: &[Write], before: &HardStates) -> Check {
        let acceptor = self.nodes[node].acceptor();
        for group in 0..self.groups.len() {
            let mut hard = before.get(&group_id(group)).copied().unwrap_or_default();
            let ops = writes.iter().flat_map(|write| &write.ops);
            for op in ops.filter(|op| op.group() == group_id(group)) {
                let disk = self.nodes[node].disk.durable.group(group_id(group));
                let durable = self.groups[group].oracle.durable(acceptor, op, disk, hard);
                self.demand_of(node, durable)?;
                if let WriteOp::HardState { state, .. } = op {
                    hard = *state;
                }
                if let WriteOp::Accept { slot, .. } = op {
                    let (ballots, values) = self.groups[group].oracle.contention(*slot);
                    self.coverage.meet_if(ballots > 1, Sometimes::TwoBallots);
                    self.coverage.meet_if(values > 1, Sometimes::TwoValues);
                }
            }
            self.now_decided(group)?;
        }
        Ok(())
    }

    fn now_decided(&mut self, group: usize) -> Check {
        let Group { oracle, history, .. } = &mut self.groups[group];
        let mut lines = Vec::new();
        while let Some(entry) = oracle.decided(history.upto().next()) {
            let duplicates = history.duplicates();
            history.decided(entry)?;
            let slot = history.upto();
            let commands = history.commands(slot).len();
            lines.push((slot, commands));
            self.coverage
                .meet_if(history.duplicates() > duplicates, Sometimes::CopySkipped);
            self.coverage
                .meet_if(entry.kind == EntryKind::Noop, Sometimes::NoopFilled);
            self.coverage.meet_if(commands > 1, Sometimes::BatchOfMany);
        }
        self.observe_memberships(group);
        for (slot, commands) in lines {
            let tag = self.tag(group);
            self.say(|| format!("--{tag} slot {slot} is chosen ({commands} new commands)"));
        }
        Ok(())
    }

    pub(super) fn reject(&mut self, node: usize, group: usize, token: Token, reason: Rejection) -> Check {
        let id = self.nodes[node].id;
        self.groups[group].history.rejected(id, token)?;
        let hint = match reason {
            Rejection::NotLeader { leader } => {
                self.coverage.meet(Sometimes::NotLeader);
                leader
            }
            Rejection::Overloaded => {
                self.coverage.meet(Sometimes::Overloaded);
                None
            }
            Rejection::TooLarge => {
                self.coverage.meet(Sometimes::TooLarge);
                None
            }
            Rejection::Expired => {
                self.coverage.meet(Sometimes::ProposalExpired);
                None
            }
            Rejection::Leaving => {
                self.coverage.meet(Sometimes::ProposalAtLeaving);
                None
            }
        };
        self.client_hears(token, hint);
        Ok(())
    }
}
