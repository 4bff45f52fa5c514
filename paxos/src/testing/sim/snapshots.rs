//! How a simulated node saves, sends, receives and installs snapshots.

use std::{format, vec::Vec};

use bytes::Bytes;

use super::{
    apply::failed,
    cluster::{Cluster, Event},
    coverage::Event as Sometimes,
    faults::{Fault, MS, SECOND},
    files::Stored,
    machine::Workload,
    node::Node,
    oracle::{Violation, ensure},
};
use crate::{
    core::{Input, Message, Output},
    snapshot::SnapshotHeader,
    state_machine::StateMachine,
    types::{NodeId, Slot},
};

/// What takes its time.
#[derive(Debug)]
pub(super) enum Work {
    /// The frozen machine is written.
    Save,
    Load {
        to: NodeId,
        upto: Slot,
        offset: u64,
        max_bytes: usize,
    },
    Store {
        upto: Slot,
        total: u64,
        offset: u64,
        data: Bytes,
    },
    Restore,
}

/// Which snapshot last came from where, to notice when it goes on after a crash.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Source {
    peer: NodeId,
    upto: Slot,
    life: u64,
    leader: Option<crate::Ballot>,
}

type Check = Result<(), Violation>;

impl<W: Workload> Cluster<'_, W> {
    /// Carries out what has to do with snapshots, and what must wait until one is installed; gives back the rest.
    pub(super) fn snapshot_output(
        &mut self,
        node: usize,
        group: usize,
        output: Output,
    ) -> Result<Option<Output>, Violation> {
        let Node { life, files, .. } = &mut self.nodes[node];
        let Some(life) = life.as_mut().map(|life| &mut life.seats[group]) else {
            return Ok(None);
        };
        let install = match &output {
            Output::InstallSnapshot { upto } => files[group].open(*upto),
            _ => None,
        };
        let ordered = install.is_some() || matches!(output, Output::Apply(_) | Output::TakeSnapshot(_));
        if ordered && life.restoring.is_some() {
            self.coverage.meet(if install.is_some() {
                Sometimes::InstallOvertaken
            } else {
                Sometimes::AppliesWaited
            });
            life.next_installs.extend(install);
            life.backlog.push_back(output);
            return Ok(None);
        }
        match output {
            Output::TakeSnapshot(header) => self.freeze(node, group, header)?,
            Output::InstallSnapshot { upto } => self.begin_restore(node, group, upto, install)?,
            Output::LoadChunk {
                to,
                upto,
                offset,
                max_bytes,
            } => {
                let work = Work::Load {
                    to,
                    upto,
                    offset,
                    max_bytes,
                };
                self.do_later(node, group, MS, work);
            }
            Output::StoreChunk {
                upto,
                total,
                offset,
                data,
            } => {
                let work = Work::Store {
                    upto,
                    total,
                    offset,
                    data,
                };
                self.do_later(node, group, self.plan.store_mean, work);
            }
            other => return Ok(Some(other)),
        }
        Ok(None)
    }

    fn do_later(&mut self, node: usize, group: usize, mean: u64, work: Work) {
        let mean = if self.network.calm {
            mean.min(20 * MS)
        } else {
            mean
        };
        let delay = (50 + self.random.exponential(mean)).min(5 * SECOND / 2);
        let life = self.nodes[node].disk.incarnation;
        self.after(
            delay,
            Event::Snapshot {
                node,
                life,
                group,
                work,
            },
        );
    }

    pub(super) fn snapshot_work(&mut self, node: usize, group: usize, work: Work) -> Check {
        match work {
            Work::Save => self.save(node, group),
            Work::Load {
                to,
                upto,
                offset,
                max_bytes,
            } => {
                let (total, mut data) = self.nodes[node].files[group].read(upto, offset, max_bytes);
                self.coverage.meet_if(total == 0, Sometimes::SnapshotGone);
                if !data.is_empty() && self.goes_wrong(self.plan.chunk_damage_permille) {
                    let mut bytes = data.to_vec();
                    let place = self.random.index(bytes.len());
                    bytes[place] ^= 0x10;
                    data = bytes.into();
                }
                let input = Input::ChunkLoaded {
                    to,
                    upto,
                    total,
                    offset,
                    data,
                };
                self.input(node, group, input);
                Ok(())
            }
            Work::Store {
                upto,
                total,
                offset,
                data,
            } => {
                let keep = self.plan.keep_snapshots;
                let input = match self.nodes[node].files[group].store(upto, total, offset, &data, keep) {
                    Stored::Upto(next_offset) => Input::ChunkStored { upto, next_offset },
                    Stored::Whole(header) => Input::SnapshotReceived(header),
                    Stored::Damaged => {
                        self.coverage.meet(Sometimes::SnapshotDamaged);
                        Input::SnapshotFailed { upto }
                    }
                };
                self.input(node, group, input);
                Ok(())
            }
            Work::Restore => self.restore(node, group),
        }
    }

    fn goes_wrong(&mut self, permille: u64) -> bool {
        !self.network.calm && self.random.chance(permille)
    }

    fn freeze(&mut self, node: usize, group: usize, header: SnapshotHeader) -> Check {
        let id = self.nodes[node].id;
        let Some(life) = self.nodes[node].seat_mut(group) else {
            return Ok(());
        };
        ensure!(
            life.applied == header.upto && life.saving.is_none(),
            "contract",
            "{id} takes a snapshot of {} when {} is applied",
            header.upto,
            life.applied
        );
        let source = life.machine.snapshot().map_err(|error| failed(id, &error))?;
        life.saving = Some((header, source));
        self.do_later(node, group, self.plan.snapshot_mean, Work::Save);
        Ok(())
    }

    fn save(&mut self, node: usize, group: usize) -> Check {
        let id = self.nodes[node].id;
        let saving = self.nodes[node]
            .seat_mut(group)
            .and_then(|life| life.saving.take());
        let Some((header, source)) = saving else {
            return Ok(());
        };
        let upto = header.upto;
        if self.goes_wrong(self.plan.snapshot_failure_permille) {
            self.coverage.meet(Sometimes::SnapshotFailed);
            self.input(node, group, Input::SnapshotFailed { upto });
            return Ok(());
        }
        let mut bytes = Vec::new();
        let written = source.write_to(&mut bytes);
        ensure!(
            written.is_ok(),
            "machine",
            "{id} cannot write its snapshot: {written:?}"
        );
        self.coverage.meet(Sometimes::SnapshotTaken);
        self.nodes[node].files[group].save(&header, &bytes, self.plan.keep_snapshots);
        self.input(node, group, Input::SnapshotTaken { upto });
        Ok(())
    }

    fn begin_restore(&mut self, node: usize, group: usize, upto: Slot, file: Option<Bytes>) -> Check {
        let id = self.nodes[node].id;
        let round = self.events;
        let Some(life) = self.nodes[node].seat_mut(group) else {
            return Ok(());
        };
        let file = life.next_installs.pop_front().or(file);
        ensure!(
            file.is_some() && upto > life.applied,
            "I7",
            "{id} installs a snapshot of {upto}; applied is {}, the snapshot is {}",
            life.applied,
            if file.is_some() { "there" } else { "not there" }
        );
        life.restoring = file.map(|file| (upto, file));
        life.installed_in = round;
        let leader = life.status.leader;
        let moved = life.source.take().is_some_and(|source| source.leader != leader);
        self.coverage.meet(Sometimes::SnapshotInstalled);
        self.coverage.meet_if(moved, Sometimes::InstalledAcrossElection);
        let mut mean = self.plan.install_mean;
        if mean >= SECOND && self.random.chance(600) {
            // It falls behind again while it installs, and the others' next snapshot may come before that is done.
            mean *= 10;
            let fault = Fault::Absence;
            self.after(1, Event::StrikeNode { node, fault });
        }
        self.do_later(node, group, mean, Work::Restore);
        Ok(())
    }

    fn restore(&mut self, node: usize, group: usize) -> Check {
        let id = self.nodes[node].id;
        let Some(life) = self.nodes[node].seat_mut(group) else {
            return Ok(());
        };
        let Some((upto, file)) = life.restoring.take() else {
            return Ok(());
        };
        life.machine
            .restore(upto, &mut &file[..])
            .map_err(|error| failed(id, &error))?;
        life.applied = upto;
        let digest = life.machine.digest();
        self.groups[group].history.restored(id, upto, digest)?;
        while let Some(life) = self.nodes[node].seat_mut(group)
            && life.restoring.is_none()
            && let Some(output) = life.backlog.pop_front()
        {
            self.carry_out(node, group, output)?;
        }
        self.answer_reads(node, group)
    }

    /// A message about snapshots reaches a replica.
    pub(super) fn observe_snapshot(&mut self, node: usize, group: usize, from: NodeId, message: &Message) {
        match message {
            Message::Trimmed { .. } => self.coverage.meet(Sometimes::Trimmed),
            Message::SnapshotChunk {
                upto, offset, total, ..
            } if *total > 0 => {
                let sender = self.nodes.iter().find(|sender| sender.id == from);
                let life = sender.map_or(0, |sender| sender.disk.incarnation);
                let Some(seat) = self.nodes[node].seat_mut(group) else {
                    return;
                };
                let leader = seat.status.leader;
                let before = seat.source.as_ref().filter(|_| *offset > 0);
                let same = before.filter(|source| source.peer == from && source.upto == *upto);
                let resumed = same.is_some_and(|source| source.life != life);
                let leader = same.map_or(leader, |source| source.leader);
                seat.source = Some(Source {
                    peer: from,
                    upto: *upto,
                    life,
                    leader,
                });
                self.coverage.meet_if(resumed, Sometimes::FetchResumed);
                self.disturb_transfer(group, [from, self.nodes[node].id]);
            }
            _ => {}
        }
    }

    /// Now and then one end of a transfer crashes in the middle of it, or the leader goes.
    fn disturb_transfer(&mut self, group: usize, ends: [NodeId; 2]) {
        if self.network.calm || !self.random.chance(100) {
            return;
        }
        let victim = self
            .random
            .pick(&[Some(ends[0]), Some(ends[0]), Some(ends[1]), None]);
        let node = self.nodes.iter().position(|node| Some(node.id) == victim);
        let delay = self.random.below(2 * MS);
        let fault = Fault::Crash;
        let event = node.map_or(Event::Strike { group }, |node| Event::StrikeNode { node, fault });
        self.after(delay, event);
    }

    /// The machine of a replica that starts, and the header of the snapshot that it was restored from.
    pub(super) fn restored_machine(
        &mut self,
        node: usize,
        group: usize,
    ) -> Result<(W::Machine, Option<SnapshotHeader>), Violation> {
        let id = self.nodes[node].id;
        let mut machine = self.workload.machine();
        let Some((header, file)) = self.nodes[node].files[group].open_newest() else {
            return Ok((machine, None));
        };
        machine
            .restore(header.upto, &mut &file[..])
            .map_err(|error| failed(id, &error))?;
        ensure!(
            machine.applied() == header.upto,
            "machine",
            "{id}: a machine restored from a snapshot of {} says that it applied {}",
            header.upto,
            machine.applied()
        );
        self.groups[group]
            .history
            .restored(id, header.upto, machine.digest())?;
        let trace = format!("{id} begins from its snapshot of {}", header.upto);
        self.say(|| trace);
        Ok((machine, Some(header)))
    }
}
