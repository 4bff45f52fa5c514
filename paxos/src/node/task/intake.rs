//! What a turn takes in: peers' messages, the store's answers, users' requests.

use std::mem;

use super::{
    super::{
        event::Event,
        group::{Read, Refusal, Request},
        waiting::{ReadRequest, Reply, Waiter},
    },
    End, Task,
};
use crate::{
    core::{Input, Rejection, Token},
    types::Time,
};

impl Task {
    pub(super) fn take_events(&mut self, now: Time) -> Result<(), End> {
        while self.taken_events.len() < self.environment.config.max_turn_inputs
            && let Ok(event) = self.events.try_recv()
        {
            self.taken_events.push(event);
        }
        let mut room = 0;
        let mut stop = false;
        for event in self.taken_events.drain(..) {
            let input = match event {
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
                Event::Disconnected(peer) => Input::Disconnected(peer),
                Event::Persisted(id) => Input::Persisted(id),
                Event::Loaded { from, entries } => Input::Loaded { from, entries },
                Event::Stop => {
                    stop = true;
                    continue;
                }
            };
            self.replica.step(now, input);
        }
        if room > 0 {
            self.room.give_back(room);
        }
        if stop {
            Err(End::Stopped("the node was shut down".into()))
        } else {
            Ok(())
        }
    }

    pub(super) fn take_requests(&mut self, now: Time) {
        while self.taken_requests.len() < self.environment.config.max_turn_inputs
            && let Ok(request) = self.requests.try_recv()
        {
            self.taken_requests.push(request);
        }
        let mut taken_requests = mem::take(&mut self.taken_requests);
        for request in taken_requests.drain(..) {
            self.shared.queue.taken(request.weight());
            match request {
                Request::Propose {
                    command,
                    reply,
                    since,
                    deadline,
                } => {
                    let token = self.waiting.add(
                        Waiter::Proposal {
                            reply,
                            since,
                            bytes: command.len(),
                        },
                        deadline,
                    );
                    self.replica.step(now, Input::Propose { token, command });
                }
                Request::ProposeAll {
                    commands,
                    burst,
                    since,
                    deadline,
                } => {
                    for (position, command) in commands.into_iter().enumerate() {
                        let reply = Reply::Burst {
                            burst: burst.clone(),
                            position,
                        };
                        let token = self.waiting.add(
                            Waiter::Proposal {
                                reply,
                                since,
                                bytes: command.len(),
                            },
                            deadline,
                        );
                        self.replica.step(now, Input::Propose { token, command });
                    }
                }
                Request::Read(request) => self.take_read(now, request),
                Request::Transfer { to, reply } => {
                    let token = self.waiting.add(Waiter::Transfer(reply), None);
                    self.replica.step(now, Input::TransferLeadership { token, to });
                }
                Request::Status(reply) => drop(reply.send(self.status(now))),
            }
        }
        // The buffer is used again.
        self.taken_requests = taken_requests;
    }

    fn take_read(&mut self, now: Time, request: ReadRequest) {
        let deadline = Some(request.deadline);
        match request.read {
            Read::Linearizable => {
                let token = self.waiting.add(Waiter::Read { request, slot: None }, deadline);
                self.replica.step(now, Input::Read { token });
            }
            Read::Stale { at_least }
                if self.parked.len() < self.environment.config.replica.max_pending_reads =>
            {
                let token = self.waiting.add(
                    Waiter::Read {
                        request,
                        slot: Some(at_least),
                    },
                    deadline,
                );
                self.parked.insert((at_least, token));
            }
            Read::Stale { .. } => self.shared.refuse(Refusal::Full, Request::Read(request)),
        }
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
