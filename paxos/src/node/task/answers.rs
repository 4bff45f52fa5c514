//! Applies what is chosen, and answers whoever waits.

use std::{string::ToString, time::Duration};

use tokio::time::Instant;

use super::{
    super::{
        group::{Answers, Read},
        machine::Answer,
        waiting::{Queries, ReadRequest, Waiter},
    },
    APPLIES_PER_TURN, End, READS_PER_TURN, Task,
};
use crate::{
    core::{Rejection, Token},
    error::{ChangeError, ProposeError, ReadError},
    types::{Ballot, ChangeRejection, Membership},
};

impl Task {
    /// Applies for a while. What is left is applied in the next turns, unless it is too much to be kept.
    pub(super) fn apply(&mut self) -> Result<(), End> {
        let max_unapplied_bytes = self.environment.config.max_unapplied_bytes;
        let mut began = None;
        while self.machine.has_run() {
            let now = Instant::now();
            let since = *began.get_or_insert(now);
            if now - since > APPLIES_PER_TURN && self.machine.waiting_bytes() <= max_unapplied_bytes {
                self.has_more = true;
                break;
            }
            self.apply_run(now)?;
        }
        Ok(())
    }

    /// Applies everything that is chosen.
    pub(super) fn apply_all(&mut self) -> Result<(), End> {
        while self.machine.has_run() {
            self.apply_run(Instant::now())?;
        }
        Ok(())
    }

    fn apply_run(&mut self, began: Instant) -> Result<(), End> {
        let metrics = &self.shared.metrics;
        // Those whose commands are in the run hear "unknown" when the task ends: they were chosen.
        let answers = self
            .machine
            .apply()
            .map_err(|error| End::Halted(error.to_string()))?;
        let now = Instant::now();
        let took = now - began;
        metrics.apply_duration.record(took);
        if let Some(unsaid) = self.slow.applies.note(took, now) {
            tracing::warn!(
                group = %self.shared.id, node = %self.shared.node, commands = answers.len(),
                millis = took.as_millis() as u64, unsaid, "slow apply"
            );
        }
        metrics.proposals_applied.add(answers.len() as u64);
        let mut fastest = Duration::MAX;
        let mut committed = 0;
        for Answer {
            token,
            id,
            reply: answer,
        } in answers
        {
            let waiter = token.and_then(|token| self.waiting.remove(token, &self.shared.queue));
            if let Some(Waiter::Proposal { reply, since, .. }) = waiter {
                let took = now.saturating_duration_since(since);
                metrics.commit_duration.record(took);
                fastest = fastest.min(took);
                if let Some(unsaid) = self.slow.proposals.note(took, now) {
                    tracing::warn!(
                        group = %self.shared.id, node = %self.shared.node, proposal = ?id,
                        millis = took.as_millis() as u64, unsaid, "slow proposal"
                    );
                }
                committed += 1;
                reply.send(Ok(answer));
            }
        }
        if committed > 0 {
            metrics.proposals_committed.add(committed as u64);
            let lane = &self.shared.queue.commands;
            let open = lane.open().count;
            let time = self.shared.clock.now();
            if let Some(pace) = self.command_limiter.completed(time, committed, fastest, open) {
                lane.follow(pace);
                metrics.proposals_limit.set(pace.limit as u64);
            }
        }
        metrics.applied_index.set(self.machine.applied().0);
        Ok(())
    }

    pub(super) fn answer_reads(&mut self) {
        // Reads may cost anything: a turn must not go on so long that heartbeats are late.
        let began = Instant::now();
        let mut answered = 0;
        let mut fastest = Duration::MAX;
        while let Some(&(slot, token)) = self.parked.first()
            && slot <= self.machine.applied()
            && !self.machine.is_away()
        {
            if began.elapsed() > READS_PER_TURN {
                self.has_more = true;
                break;
            }
            self.parked.pop_first();
            let waiter = self.waiting.remove(token, &self.shared.queue);
            if let Some(Waiter::Read { request, lease, .. }) = waiter {
                let by_quorum = lease.is_none() && !matches!(request.read, Read::Stale { .. });
                let (count, took) = (request.queries.weight().count, request.since.elapsed());
                if let Err(request) = self.answer_read(request, lease) {
                    self.read_without_lease(request);
                } else if by_quorum {
                    answered += count;
                    fastest = fastest.min(took);
                }
            }
        }
        if answered > 0 {
            let lane = &self.shared.queue.reads;
            let open = lane.open().count;
            let time = self.shared.clock.now();
            if let Some(pace) = self.read_limiter.completed(time, answered, fastest, open) {
                lane.follow(pace);
            }
        }
    }

    /// Gives the request back if it was to be answered under a lease and that is over.
    fn answer_read(&mut self, request: ReadRequest, lease: Option<Ballot>) -> Result<(), ReadRequest> {
        let metrics = &self.shared.metrics;
        let failed = |why| {
            metrics.rejected.failed.increment();
            tracing::error!(group = %self.shared.id, node = %self.shared.node, %why, "a query failed");
            ReadError::Failed(why)
        };
        match request.queries {
            // Nobody waits any more.
            Queries::One(_, reply) if reply.is_closed() => {}
            Queries::Many { reply, .. } if reply.is_closed() => {}
            Queries::One(query, reply) => {
                let answer = self.machine.query(query.clone());
                if !self.still_holds(lease) {
                    let queries = Queries::One(query, reply);
                    return Err(ReadRequest { queries, ..request });
                }
                // Nobody listens any more: fine, here and below.
                let _ = reply.send(answer.map_err(failed));
            }
            Queries::Many {
                mut queries,
                max_answer_bytes,
                reply,
            } => {
                let answers = self.machine.query_all(&queries, max_answer_bytes);
                if !self.still_holds(lease) {
                    let queries = Queries::Many {
                        queries,
                        max_answer_bytes,
                        reply,
                    };
                    return Err(ReadRequest { queries, ..request });
                }
                let answers = answers.map(|answers| Answers {
                    unanswered: queries.split_off(answers.len()),
                    answers,
                });
                let _ = reply.send(answers.map_err(failed));
            }
        }
        match request.read {
            Read::Lease if lease.is_some() => metrics.lease_reads.increment(),
            Read::Lease => metrics.lease_fallbacks.increment(),
            Read::Linearizable => self.note_read(request.since),
            Read::Stale { .. } => {}
        }
        Ok(())
    }

    /// A linearizable read was answered.
    fn note_read(&mut self, since: Instant) {
        let now = Instant::now();
        let took = now.saturating_duration_since(since);
        self.shared.metrics.read_index_duration.record(took);
        if let Some(unsaid) = self.slow.reads.note(took, now) {
            tracing::warn!(
                group = %self.shared.id, node = %self.shared.node,
                millis = took.as_millis() as u64, unsaid, "slow read"
            );
        }
    }

    /// Whether a lease of this ballot, if one is needed, holds at this moment.
    fn still_holds(&self, lease: Option<Ballot>) -> bool {
        lease.is_none_or(|ballot| {
            let held = self.replica.lease();
            held.is_some_and(|(held, until)| held == ballot && self.shared.clock.now() < until)
        })
    }

    /// The proposal or read did not happen.
    pub(super) fn reject(&mut self, token: Token, reason: Rejection) {
        let Some(waiter) = self.waiting.remove(token, &self.shared.queue) else {
            return;
        };
        let queue = &self.shared.queue;
        let rejected = &self.shared.metrics.rejected;
        match waiter {
            Waiter::Proposal { reply, bytes, .. } => {
                let max = self.environment.config.replica.max_command_bytes;
                let error = match reason {
                    Rejection::NotLeader { leader } => ProposeError::NotLeader { leader },
                    Rejection::Overloaded => ProposeError::Overloaded {
                        retry_after: queue.commands.retry_after(),
                    },
                    Rejection::TooLarge => ProposeError::TooLarge { bytes, max },
                    Rejection::Expired => ProposeError::Expired,
                    Rejection::Leaving => ProposeError::Leaving,
                };
                if let Some(counter) = rejected.of_proposal(&error) {
                    counter.increment();
                }
                reply.send(Err(error));
            }
            Waiter::Change(reply) => reply.answer(Err(ChangeError::Unknown)),
            Waiter::Read { request, .. } => {
                let error = match reason {
                    Rejection::NotLeader { leader } => ReadError::NotLeader { leader },
                    Rejection::Overloaded => ReadError::Overloaded {
                        retry_after: queue.reads.retry_after(),
                    },
                    Rejection::TooLarge | Rejection::Expired | Rejection::Leaving => ReadError::Expired,
                };
                rejected.of_read(&error).increment();
                request.queries.refuse(error);
            }
            // Neither expires nor is it cancelled: the replica ends it by itself.
            Waiter::Transfer(_) => {}
        }
    }

    /// The proposal may or may not happen later.
    pub(super) fn fail(&mut self, token: Token) {
        match self.waiting.remove(token, &self.shared.queue) {
            Some(Waiter::Proposal { reply, .. }) => {
                self.shared.metrics.proposals_failed.increment();
                reply.send(Err(ProposeError::Unknown));
            }
            Some(Waiter::Change(reply)) => reply.answer(Err(ChangeError::Unknown)),
            Some(Waiter::Read { .. } | Waiter::Transfer(_)) | None => {}
        }
    }

    /// A membership change has ended.
    pub(super) fn membership_changed(&mut self, token: Token, result: Result<Membership, ChangeRejection>) {
        if let Some(Waiter::Change(reply)) = self.waiting.remove(token, &self.shared.queue) {
            reply.answer(result.map_err(ChangeError::Refused));
        }
    }

    /// Another membership is in force.
    pub(super) fn note_membership(&self, membership: Membership) {
        tracing::info!(
            group = %self.shared.id, node = %self.shared.node, version = membership.version,
            members = ?membership.members, "the membership changed"
        );
        self.shared.membership.send_replace(membership.clone());
        self.environment.set_membership(self.shared.id, membership);
    }
}
