//! A workload of clients with sessions: they lose patience, repeat at other nodes what they have no answer to, repeat
//! some of it long after, and give up on some. The auditor holds the log to I9: one effect and one answer for each client
//! and sequence.

use std::{boxed::Box, collections::BTreeMap, format, string::String};

use bytes::{Buf, Bytes};

use super::{
    machine::{Auditor, Checking, Ledger, Script, Workload},
    random::Random,
};
use crate::sessions::{Answer, Call, Command, Limits, SessionId, Sessions};

/// Clients with [sessions](crate::sessions) on the machine of the [default workload](Checking), within limits so small
/// that sessions expire, make room and lose replies.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retrying;

const LIMITS: Limits = Limits {
    max_sessions: 4,
    max_window: 6,
    max_ttl_ms: 60_000,
    max_session_reply_bytes: 400,
    max_reply_bytes: 1_200,
};

impl Workload for Retrying {
    type Machine = Sessions<Ledger>;

    fn machine(&self) -> Self::Machine {
        Sessions::with_limits(Ledger::default(), LIMITS)
    }

    /// What is proposed outside of all sessions.
    fn command(&self, random: &mut Random, unique: u64) -> Bytes {
        Command::Bare(Checking.command(random, unique)).encode()
    }

    fn query(&self, random: &mut Random) -> Bytes {
        Checking.query(random)
    }

    fn script(&self) -> Option<Box<dyn Script>> {
        Some(Box::<Client>::default())
    }

    fn auditor(&self) -> Option<Box<dyn Auditor>> {
        Some(Box::<OneEffectOneAnswer>::default())
    }
}

#[derive(Debug)]
enum Asked {
    Open,
    Call(u64),
}

#[derive(Debug, Default)]
struct Client {
    session: Option<SessionId>,
    last: u64,
    /// What may have been executed and has no answer, or none that the client remembers.
    open: BTreeMap<u64, Bytes>,
    asked: Option<Asked>,
}

impl Client {
    /// A sequence to send: a new one, or one again.
    fn choose(&mut self, random: &mut Random, unique: u64) -> (u64, Bytes) {
        if random.chance(30) {
            self.open.pop_first();
        }
        let again = random.index(self.open.len() + 1);
        if let Some((sequence, payload)) = self.open.iter().nth(again)
            && random.chance(700)
        {
            return (*sequence, payload.clone());
        }
        self.last += 1;
        let payload = Checking.command(random, unique);
        self.open.insert(self.last, payload.clone());
        (self.last, payload)
    }
}

impl Script for Client {
    fn command(&mut self, random: &mut Random, unique: u64) -> Bytes {
        let stamp_ms = 1_000_000 + unique * 20 + random.below(500);
        let session = self.session.filter(|_| !random.chance(15));
        let Some(session) = session else {
            self.asked = Some(Asked::Open);
            let ttl_ms = random.pick(&[2_000, 10_000, 60_000]);
            return Command::Open { ttl_ms, stamp_ms }.encode();
        };
        let (sequence, payload) = self.choose(random, unique);
        self.asked = Some(Asked::Call(sequence));
        let call = Call {
            session,
            sequence,
            acked: self.open.first_key_value().map_or(sequence, |(first, _)| *first),
            stamp_ms,
        };
        call.encode(&payload)
    }

    fn ended(&mut self, random: &mut Random, reply: Option<&Bytes>) {
        let Some(answer) = reply.and_then(Answer::decode) else {
            return;
        };
        match (self.asked.take(), answer) {
            (Some(Asked::Open), Answer::Opened(session)) => {
                *self = Self {
                    session: Some(session),
                    ..Self::default()
                };
            }
            (_, Answer::Expired) => *self = Self::default(),
            // Some answers are lost on the way to the user, who asks again.
            (Some(Asked::Call(sequence)), _) if !random.chance(150) => {
                self.open.remove(&sequence);
            }
            _ => {}
        }
    }
}

#[derive(Debug, Default)]
struct Seen {
    acked: u64,
    answers: BTreeMap<u64, Bytes>,
}

/// Follows the log: what has been executed must be what was answered, once each.
#[derive(Debug, Default)]
struct OneEffectOneAnswer {
    /// How many commands the machine inside has executed.
    effects: u64,
    living: BTreeMap<SessionId, Seen>,
    highest: SessionId,
}

impl OneEffectOneAnswer {
    /// The ledger's replies begin with how many commands it has executed.
    fn new_effect(&mut self, reply: &Bytes) -> Result<(), String> {
        self.effects += 1;
        let count = reply.get(..8).map_or(0, |mut count| count.get_u64_le());
        if count == self.effects {
            return Ok(());
        }
        Err(format!(
            "effect {count} of the machine is answered, but {} commands were to have one",
            self.effects
        ))
    }

    fn call(&mut self, call: &Call, answer: Answer) -> Result<(), String> {
        let Call {
            session,
            sequence,
            acked,
            ..
        } = *call;
        let Some(seen) = self.living.get_mut(&session) else {
            return match answer {
                Answer::Expired => Ok(()),
                other => Err(format!("session {session} has ended, but answers {other:?}")),
            };
        };
        let acked = seen.acked.max(acked);
        match (answer, seen.answers.get(&sequence)) {
            (Answer::Expired, _) => {
                self.living.remove(&session);
                Ok(())
            }
            (Answer::Stale, _) if sequence < acked => Ok(()),
            (Answer::BeyondWindow { .. }, None) if sequence >= acked + LIMITS.max_window => Ok(()),
            (Answer::ReplyDropped, Some(_)) => {
                seen.acked = acked;
                Ok(())
            }
            (Answer::Reply(reply), Some(first)) if reply == *first && sequence >= acked => {
                seen.acked = acked;
                Ok(())
            }
            (Answer::Reply(reply), None) if sequence >= acked => {
                seen.acked = acked;
                seen.answers.insert(sequence, reply.clone());
                self.new_effect(&reply)
            }
            (answer, first) => Err(format!(
                "session {session}, sequence {sequence} is answered {answer:?} with acknowledged {acked}; its first \
                 answer was {first:?}"
            )),
        }
    }
}

impl Auditor for OneEffectOneAnswer {
    fn name(&self) -> &'static str {
        "I9"
    }

    fn applied(&mut self, command: &Bytes, reply: &Bytes) -> Result<(), String> {
        let Some(answer) = Answer::decode(reply) else {
            return Err(format!("{reply:?} is no answer"));
        };
        match (Command::decode(command), answer) {
            (Some(Command::Call(call, _)), answer) => self.call(&call, answer),
            (Some(Command::Bare(_)), Answer::Reply(reply)) => self.new_effect(&reply),
            (Some(Command::Open { .. }), Answer::Opened(session)) if session > self.highest => {
                self.highest = session;
                self.living.insert(session, Seen::default());
                Ok(())
            }
            (None, Answer::Malformed) => Ok(()),
            (command, answer) => Err(format!("{command:?} is answered {answer:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_auditor_notices_two_effects_two_answers_and_an_id_that_comes_back() {
        let reply = |count: u64| Answer::Reply(Bytes::copy_from_slice(&count.to_le_bytes())).encode();
        let opened = Answer::Opened(SessionId(5)).encode();
        let open = Command::Open {
            ttl_ms: 1,
            stamp_ms: 1,
        }
        .encode();
        let call = Call {
            session: SessionId(5),
            sequence: 1,
            acked: 1,
            stamp_ms: 1,
        }
        .encode(b"");
        let audit = |log: &[(&Bytes, Bytes)]| {
            let mut auditor = OneEffectOneAnswer::default();
            let mut log = log.iter();
            log.try_for_each(|(command, reply)| auditor.applied(command, reply))
        };
        let opening = (&open, opened.clone());
        assert!(audit(&[opening.clone(), (&call, reply(1)), (&call, reply(1))]).is_ok());
        assert!(audit(&[opening.clone(), (&call, reply(1)), (&call, reply(2))]).is_err());
        assert!(audit(&[opening.clone(), (&call, reply(2))]).is_err());
        assert!(audit(&[opening.clone(), (&open, opened)]).is_err());
        let expired = Answer::Expired.encode();
        assert!(audit(&[opening, (&call, expired), (&call, reply(1))]).is_err());
    }
}
