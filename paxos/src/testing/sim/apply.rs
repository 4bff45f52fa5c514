//! The state machines of simulated nodes: what is applied, and what they answer.

use std::{format, vec::Vec};

use bytes::Bytes;

use super::{
    cluster::{Cluster, Group},
    coverage::Event as Sometimes,
    faults::Fault,
    history::reply_hash,
    machine::Workload,
    oracle::{Violation, ensure},
};
use crate::{
    core::{ChosenEntry, Rejection, Token},
    state_machine::{ApplyCommand, Chosen, MachineError, StateMachine},
    types::{Ballot, NodeId, Slot},
};

type Check = Result<(), Violation>;

impl<W: Workload> Cluster<'_, W> {
    pub(super) fn apply(&mut self, node: usize, group: usize, chosen: &ChosenEntry) -> Check {
        let (id, incarnation) = (self.nodes[node].id, self.life_of(node));
        let Some(life) = self.nodes[node].seat_mut(group) else {
            return Ok(());
        };
        ensure!(
            chosen.slot == life.applied.next(),
            "I4",
            "{id} applies slot {} after {}",
            chosen.slot,
            life.applied
        );
        let commands: Vec<ApplyCommand> = chosen
            .commands
            .iter()
            .map(|chosen_command| ApplyCommand {
                slot: chosen.slot,
                ballot: chosen.ballot,
                id: chosen_command.command.id,
                payload: chosen_command.command.payload.clone(),
            })
            .collect();
        let mut replies = Vec::with_capacity(commands.len());
        let run = Chosen {
            upto: chosen.slot,
            commands: &commands,
        };
        life.machine
            .apply(run, &mut replies)
            .map_err(|error| failed(id, &error))?;
        life.applied = chosen.slot;
        ensure!(
            replies.len() == commands.len() && life.machine.applied() == chosen.slot,
            "machine",
            "{id}: {} replies to {} commands, applied {} instead of {}",
            replies.len(),
            commands.len(),
            life.machine.applied(),
            chosen.slot
        );
        let digest = life.machine.digest();
        if self.nodes[node].altered {
            return Ok(());
        }
        self.groups[group]
            .history
            .applied(id, chosen, reply_hash(&replies), digest)?;
        self.audit(group, chosen, &replies)?;
        for (offset, command) in chosen.commands.iter().enumerate() {
            self.coverage
                .meet_if(command.command.payload.is_empty(), Sometimes::EmptyCommand);
            if let Some(token) = command.token {
                self.groups[group]
                    .history
                    .write_answered(id, incarnation, token, chosen.slot, offset)?;
                self.script_hears(token, Some(&replies[offset]));
                self.client_hears(token, None);
            }
        }
        self.swap_snapshot(node, group)?;
        self.answer_reads(node, group)
    }

    /// The first replica that applies a slot shows it to the group's auditor: all others do the same.
    fn audit(&mut self, group: usize, chosen: &ChosenEntry, replies: &[Bytes]) -> Check {
        let Group { auditor, audited, .. } = &mut self.groups[group];
        let Some(auditor) = auditor.as_mut().filter(|_| chosen.slot > *audited) else {
            return Ok(());
        };
        *audited = chosen.slot;
        for (command, reply) in chosen.commands.iter().zip(replies) {
            auditor
                .applied(&command.command.payload, reply)
                .map_err(|detail| {
                    Violation::new(auditor.name(), format!("slot {}: {detail}", chosen.slot))
                })?;
        }
        Ok(())
    }

    /// Replaces a machine by a copy restored from its snapshot: nothing may differ afterwards.
    fn swap_snapshot(&mut self, node: usize, group: usize) -> Check {
        if !self.plan.faults.has(Fault::SnapshotSwap) || !self.random.chance(5) {
            return Ok(());
        }
        self.coverage.meet(Sometimes::SnapshotSwapped);
        let id = self.nodes[node].id;
        let mut copy = self.workload.machine();
        let Some(life) = self.nodes[node].seat_mut(group) else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        let source = life.machine.snapshot().map_err(|error| failed(id, &error))?;
        let written = source.write_to(&mut bytes);
        ensure!(
            written.is_ok(),
            "machine",
            "{id} cannot write its snapshot: {written:?}"
        );
        copy.restore(life.applied, &mut &bytes[..])
            .map_err(|error| failed(id, &error))?;
        ensure!(
            copy.applied() == life.applied && copy.digest() == life.machine.digest(),
            "I8",
            "{id}: a machine restored from the snapshot at {} differs",
            life.applied
        );
        life.machine = copy;
        Ok(())
    }

    pub(super) fn read_ready(
        &mut self,
        node: usize,
        group: usize,
        token: Token,
        slot: Slot,
        lease: Option<Ballot>,
    ) -> Check {
        let Some(life) = self.nodes[node].seat_mut(group) else {
            return Ok(());
        };
        self.coverage.meet_if(slot > life.applied, Sometimes::ReadWaited);
        life.reads.push((slot, token, lease));
        self.answer_reads(node, group)
    }

    pub(super) fn answer_reads(&mut self, node: usize, group: usize) -> Check {
        let id = self.nodes[node].id;
        let leads = self.nodes[node].leads(group);
        let Some(life) = self.nodes[node].seat_mut(group) else {
            return Ok(());
        };
        if life.reads.is_empty() {
            return Ok(());
        }
        let applied = life.applied;
        let ready = |(slot, ..): &mut (Slot, Token, Option<Ballot>)| *slot <= applied;
        let ready: Vec<(Slot, Token, Option<Ballot>)> = life.reads.extract_if(.., ready).collect();
        for (_, token, lease) in ready {
            let query = self.workload.query(&mut self.random);
            let Some(life) = self.nodes[node].seat(group) else {
                return Ok(());
            };
            let _answer = life.machine.query(query);
            if let Some(ballot) = lease {
                self.queried_by_lease(node, group, token, (applied, ballot))?;
                continue;
            }
            self.groups[group].history.read_answered(id, token, applied)?;
            self.coverage.meet_if(!leads, Sometimes::ReadOnFollower);
            self.client_hears(token, None);
        }
        Ok(())
    }

    /// The user of a read that is ready, but waits for its slot, waits no longer.
    pub(super) fn give_up_parked(&mut self, node: usize, group: usize, token: Token) -> Check {
        let reads = self.nodes[node].seat_mut(group).map(|life| &mut life.reads);
        let place = reads
            .as_ref()
            .and_then(|reads| reads.iter().position(|(_, read, _)| *read == token));
        if let (Some(reads), Some(place)) = (reads, place) {
            reads.remove(place);
            self.reject(node, group, token, Rejection::Expired)?;
        }
        Ok(())
    }
}

pub(super) fn failed(node: NodeId, error: &MachineError) -> Violation {
    Violation::new("machine", format!("{node}: {error}"))
}
