//! Carries out what the replica wants.

use std::{boxed::Box, format, mem, string::ToString};

use super::{
    super::{event::Event, storage, waiting::Waiter},
    End, PendingWrite, Task,
};
use crate::{
    core::{Alarm, Message, Output},
    error::TransferError,
    types::NodeId,
    wire::{Envelope, Outgoing},
};

impl Task {
    pub(super) fn carry_out(&mut self, output: Output) -> Result<(), End> {
        match output {
            Output::Send { to, message } => self.send(&to, message),
            Output::Persist { id, ops, sync } => {
                self.write.id = id;
                self.write.ops.extend(ops);
                self.write.sync |= sync;
                self.write.any = true;
            }
            Output::Apply(entry) => {
                if !entry.commands.is_empty() {
                    self.shared
                        .metrics
                        .batch_entries
                        .record_value(entry.commands.len() as u64);
                }
                self.machine.push(entry);
            }
            Output::Load {
                from,
                upto,
                max_bytes,
            } => {
                let events = self.event_sender.clone();
                self.environment.storage.load(storage::Load {
                    range: storage::Range {
                        group: self.shared.id,
                        first: from,
                        last: upto,
                        max_bytes,
                    },
                    done: Box::new(move |loaded| {
                        events.send(Event::Loaded { from, loaded });
                    }),
                });
            }
            Output::TakeSnapshot(header) => self.take_snapshot(header)?,
            Output::InstallSnapshot { upto } => self.install_snapshot(upto)?,
            Output::LoadChunk {
                to,
                upto,
                offset,
                max_bytes,
            } => self.load_chunk(to, upto, offset, max_bytes),
            Output::StoreChunk {
                upto,
                total,
                offset,
                data,
            } => self.store_chunk(upto, total, offset, data),
            Output::ReadReady {
                token,
                slot: ready,
                lease: by,
            } => {
                if let Some(Waiter::Read { slot, lease, .. }) = self.waiting.get_mut(token) {
                    *slot = Some(ready);
                    *lease = by;
                    self.parked.insert((ready, token));
                }
            }
            Output::Rejected { token, reason } => self.reject(token, reason),
            Output::Unknown { token } => self.fail(token),
            Output::Leader(leader) => self.note_leader(leader),
            Output::Transferred { token, result } => {
                if let Some(Waiter::Transfer(reply)) = self.waiting.remove(token, &self.shared.queue) {
                    reply.answer(result.map_err(TransferError::Rejected));
                }
            }
            Output::Membership { membership, .. } => self.note_membership(membership),
            Output::Departed { node, address } => self.environment.answer_departed(node, address),
            Output::Peers(membership) => self.environment.hear_of(self.shared.id, membership),
            Output::MembershipChanged { token, result } => self.membership_changed(token, result),
            Output::Alarm(alarm) => {
                self.note_alarm(&alarm);
                let why = match alarm {
                    Alarm::Missing { slot } => {
                        format!("the store does not give back the chosen entry at slot {slot}")
                    }
                    Alarm::LifeReused { slot } => format!(
                        "slot {slot} holds a command of this very life that was never proposed in it: the store has \
                         forgotten its earlier lives"
                    ),
                    Alarm::Quarantined(why) => why.to_string(),
                    _ => return Ok(()),
                };
                return Err(End::Halted(why));
            }
        }
        Ok(())
    }

    fn send(&mut self, to: &[NodeId], message: Message) {
        let Some(frame) = self.encode(message) else {
            return;
        };
        self.has_sent = true;
        for peer in to {
            if let Err(error) = self.environment.transport.send(*peer, &frame) {
                self.note_refusal();
                self.refused.insert(*peer);
                tracing::debug!(
                    group = %self.shared.id, node = %self.shared.node, %peer, %error,
                    "the transport refused a message"
                );
            }
        }
    }

    pub(super) fn note_refusal(&self) {
        self.shared.metrics.refused_sends.increment();
    }

    pub(super) fn encode(&self, message: Message) -> Option<Outgoing> {
        let identity = self.environment.identity;
        let envelope = Envelope {
            cluster: identity.cluster,
            from: identity.node,
            storage: identity.storage,
            group: self.shared.id,
            message,
        };
        Outgoing::encode(&envelope)
            .inspect_err(|error| {
                tracing::error!(
                    group = %self.shared.id, node = %identity.node, %error,
                    message = envelope.message.name(), "cannot encode a message"
                );
            })
            .ok()
    }

    pub(super) fn hand_over_write(&mut self) {
        let PendingWrite { id, ops, sync, any } = mem::take(&mut self.write);
        if any {
            let done = self.done.clone();
            let group = self.shared.id;
            self.environment.storage.write(storage::Write {
                group,
                id,
                ops,
                sync,
                done,
            });
        }
    }
}
