//! What a turn takes in: peers' messages, the store's answers, users' requests.

use std::vec::Vec;

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    super::{
        event::Event,
        group::{Read, Request},
        waiting::{ReadRequest, Reply, Waiter},
    },
    End, Intake, Task,
};
use crate::{
    core::{Input, Rejection, Token},
    types::Time,
};

impl Intake {
    /// Collects what has come in. The clock is looked at afterwards: see the contract of [`core`](crate::core).
    pub(super) fn collect_events(&mut self, max_inputs: usize) {
        while self.taken_events.len() < max_inputs
            && let Ok(event) = self.events.try_recv()
        {
            self.taken_events.push(event);
        }
    }
}

impl Task {
    pub(super) fn take_events(&mut self, now: Time, taken_events: &mut Vec<Event>) -> Result<(), End> {
        let mut room = 0;
        let mut stop = None;
        for event in taken_events.drain(..) {
            let input = match event {
                Event::Snapshot(event) => {
                    self.take_snapshot_event(now, event)?;
                    continue;
                }
                Event::Message {
                    from,
                    storage,
                    message,
                    room: held,
                } => {
                    room += held as usize;
                    Input::Message {
                        from,
                        storage,
                        message,
                    }
                }
                Event::Connected(peer) => Input::Connected(peer),
                Event::Disconnected(peer) => Input::Disconnected(peer),
                Event::Peer(change) => change.into(),
                Event::Persisted(id) => Input::Persisted(id),
                Event::Status(reply) => {
                    reply.answer(self.status(now));
                    continue;
                }
                Event::Transfer { to, reply } => {
                    let token = self.waiting.add(Waiter::Transfer(reply), None);
                    Input::TransferLeadership { token, to }
                }
                Event::SaveSnapshot(reply) => {
                    self.want_snapshot(now, reply);
                    continue;
                }
                Event::PauseTrimming(paused) => Input::PauseTrimming(paused),
                Event::ChangeMembership {
                    expected,
                    changes,
                    force,
                    reply,
                    deadline,
                } => Input::ChangeMembership {
                    token: self.waiting.add(Waiter::Change(reply), Some(deadline)),
                    expected,
                    changes,
                    force,
                },
                Event::Loaded { from, loaded } => {
                    self.note_damage(now, loaded.damaged, &loaded.why);
                    Input::Loaded {
                        from,
                        entries: loaded.entries,
                    }
                }
                Event::Damaged(found) => {
                    self.note_damage(now, found.damaged, &found.why);
                    continue;
                }
                Event::Refused(peer) => {
                    self.note_refusal();
                    Input::SendRefused(peer)
                }
                // What the store's thread has left is carried out already.
                Event::GoOn => continue,
                Event::Stop(why) => {
                    stop = Some(why);
                    continue;
                }
            };
            self.replica.step(now, input);
        }
        if room > 0 {
            self.room.give_back(room);
        }
        stop.map_or(Ok(()), |why| Err(End::Stopped(why.into())))
    }

    /// Takes in so many requests that the turn stays short: a burst counts for all of its commands.
    pub(super) fn take_requests(&mut self, now: Time, intake: &mut Intake) {
        let mut room = self.environment.config.max_turn_inputs;
        let mut next = intake.taken_request.take();
        while let Some(request) = next {
            let count = self.take_request(now, request);
            room = room.saturating_sub(count);
            if room == 0 {
                return;
            }
            next = intake.requests.try_recv().ok();
        }
    }

    /// Returns for how many it counts.
    fn take_request(&mut self, now: Time, request: Request) -> usize {
        let queued = |since: Instant| self.shared.metrics.queue_delay.record(since.elapsed());
        match request {
            Request::Propose {
                command,
                reply,
                since,
                deadline,
            } => {
                queued(since);
                self.take_proposal(now, command, reply, since, deadline);
                1
            }
            Request::ProposeAll {
                commands,
                burst,
                since,
                deadline,
            } => {
                queued(since);
                let count = commands.len();
                for (position, command) in commands.into_iter().enumerate() {
                    let burst = burst.clone();
                    self.take_proposal(now, command, Reply::Burst { burst, position }, since, deadline);
                }
                count
            }
            Request::Read(request) => {
                queued(request.since);
                let count = request.queries.weight().count;
                self.take_read(now, request);
                count
            }
        }
    }

    fn take_proposal(
        &mut self,
        now: Time,
        command: Bytes,
        reply: Reply,
        since: Instant,
        deadline: Option<Time>,
    ) {
        let waiter = Waiter::Proposal {
            reply,
            since,
            bytes: command.len(),
        };
        let token = self.waiting.add(waiter, deadline);
        self.replica.step(now, Input::Propose { token, command });
    }

    fn take_read(&mut self, now: Time, request: ReadRequest) {
        match request.read {
            Read::Linearizable => {
                let token = self.wait_for_read(request);
                self.replica.step(now, Input::Read { token });
            }
            Read::Lease => {
                let token = self.wait_for_read(request);
                self.replica.step(now, Input::ReadByLease { token });
            }
            Read::Stale { at_least } => {
                let deadline = Some(request.deadline);
                let waiter = Waiter::Read {
                    request,
                    slot: Some(at_least),
                    lease: None,
                };
                let token = self.waiting.add(waiter, deadline);
                self.parked.insert((at_least, token));
            }
        }
    }

    /// Waits until the replica says which slot the read has to see.
    fn wait_for_read(&mut self, request: ReadRequest) -> Token {
        let deadline = Some(request.deadline);
        let waiter = Waiter::Read {
            request,
            slot: None,
            lease: None,
        };
        self.waiting.add(waiter, deadline)
    }

    /// A lease ended before the query under it had run: asks a quorum after all, in the next turn.
    pub(super) fn read_without_lease(&mut self, request: ReadRequest) {
        self.shared.queue.reads.resumed(request.queries.weight());
        let token = self.wait_for_read(request);
        self.replica.step(self.shared.clock.now(), Input::Read { token });
        self.has_more = true;
    }

    pub(super) fn expire(&mut self, now: Time, token: Token) {
        if let Some(Waiter::Read { slot: Some(slot), .. }) = self.waiting.get_mut(token) {
            self.parked.remove(&(*slot, token));
            self.reject(token, Rejection::Expired);
        } else {
            self.replica.step(now, Input::Cancel { token });
        }
    }
}
