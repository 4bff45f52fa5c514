//! The end of a task: everything that is open is answered, as truly as can be known.

use super::{
    super::{caught, waiting::Waiter},
    End, Intake, Task,
};
use crate::{
    core::{Input, Output},
    error::{ChangeError, ProposeError, ReadError, TransferError},
    snapshot::SnapshotError,
    types::Time,
};

impl Task {
    /// Answers everything that is open, as truly as can be known, and lets nothing in any more.
    pub(super) async fn finish(mut self, mut intake: Intake, end: End) {
        let (group, node) = (self.shared.id, self.shared.node);
        let replica_is_sane = !matches!(end, End::Broken(_));
        let why = match end {
            End::Stopped(why) => {
                tracing::info!(%group, %node, "group stopped");
                why
            }
            End::Halted(why) | End::Broken(why) => {
                tracing::error!(%group, %node, why, "group halted");
                self.shared.metrics.halted.set(1);
                why
            }
        };
        let _ = self.shared.stopped.set(why);
        intake.events.close();
        self.room.close();
        self.shared.leader.send_replace(None);
        if replica_is_sane {
            let now = self.shared.clock.now();
            let asked = caught("cancelling", || self.cancel_all(now));
            if asked.is_ok() {
                self.shared.keep_status(self.status(now));
            }
        }
        self.shared.metrics.has_leader.set(0);
        self.shared.metrics.is_leader.set(0);
        for token in self.waiting.tokens() {
            match self.waiting.remove(token, &self.shared.queue) {
                Some(Waiter::Proposal { reply, .. }) => {
                    self.shared.metrics.proposals_failed.increment();
                    reply.send(Err(ProposeError::Unknown));
                }
                Some(Waiter::Read { request, .. }) => {
                    self.shared.refuse_read(request);
                }
                Some(Waiter::Transfer(reply)) => {
                    reply.answer(Err(TransferError::Stopped(self.shared.stop_reason())));
                }
                Some(Waiter::Change(reply)) => reply.answer(Err(ChangeError::Unknown)),
                None => {}
            }
        }
        intake.requests.close();
        if let Some(request) = intake.taken_request.take() {
            self.shared.refuse_stopped(request);
        }
        while let Some(request) = intake.requests.recv().await {
            self.shared.refuse_stopped(request);
        }
        // Whoever asked something of the group itself hears that nobody answers any more.
        intake.taken_events.clear();
        while intake.events.try_recv().is_ok() {}
        self.snapshots
            .answer_wanted(&Err(SnapshotError::Stopped(self.shared.stop_reason())));
        // Everybody is answered: what is still being written or restored may take its time to notice.
        self.snapshots.end().await;
    }

    /// Asks the replica which open proposals certainly did not happen. Nothing else that it says is carried out.
    fn cancel_all(&mut self, now: Time) {
        for token in self.waiting.tokens() {
            self.replica.step(now, Input::Cancel { token });
        }
        while let Some(output) = self.outputs.pop_front().or_else(|| self.replica.poll()) {
            if let Output::Rejected { token, .. } = output
                && let Some(waiter) = self.waiting.remove(token, &self.shared.queue)
            {
                self.shared.metrics.rejected.stopped.increment();
                match waiter {
                    Waiter::Proposal { reply, .. } => {
                        reply.send(Err(ProposeError::Stopped(self.shared.stop_reason())));
                    }
                    Waiter::Change(reply) => {
                        reply.answer(Err(ChangeError::Stopped(self.shared.stop_reason())));
                    }
                    Waiter::Read { request, .. } => {
                        let error = ReadError::Stopped(self.shared.stop_reason());
                        request.queries.refuse(error);
                    }
                    // Cannot be cancelled.
                    Waiter::Transfer(_) => {}
                }
            }
        }
    }
}
