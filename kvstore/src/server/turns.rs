//! Lets connections work in turns, so that everything else on their thread has one too.
//!
//! Connections and groups share a thread. Hundreds of connections that always have something to do would keep the groups
//! waiting: heartbeats would be late, and under the heaviest load leaders would change. So there is a budget of commands;
//! when it is used up, connections wait until whatever else is ready has run and the sockets have been looked at, and
//! then go on in the order in which they came.

use tokio::{
    sync::{Notify, Semaphore},
    task::yield_now,
};

/// How many commands all connections together read before everything else has its turn: some milliseconds of work.
const BUDGET_COMMANDS: usize = 512;

/// The budget of all connections of a server.
#[derive(Debug)]
pub(super) struct Turns {
    commands: Semaphore,
    used_up: Notify,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self {
            commands: Semaphore::new(BUDGET_COMMANDS),
            used_up: Notify::new(),
        }
    }

    /// Returns when these commands, at most a budget's worth, may be carried out.
    pub(super) async fn take(&self, commands: usize) {
        let wanted = commands.min(BUDGET_COMMANDS) as u32;
        if let Ok(permits) = self.commands.try_acquire_many(wanted) {
            return permits.forget();
        }
        self.used_up.notify_one();
        // It is never closed.
        if let Ok(permits) = self.commands.acquire_many(wanted).await {
            permits.forget();
        }
    }

    /// Renews the budget whenever it is used up, for ever. Without it connections would wait for ever.
    pub(super) async fn renew(&self) {
        loop {
            // With something left nobody waits: permits go to those who wait first.
            if self.commands.available_permits() > 0 {
                self.used_up.notified().await;
            }
            yield_now().await;
            let left = self.commands.available_permits();
            self.commands.add_permits(BUDGET_COMMANDS.saturating_sub(left));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        rc::Rc,
    };

    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    #[tokio::test]
    async fn what_else_is_ready_has_a_turn_between_those_of_busy_connections() {
        let tasks = LocalSet::new();
        let turns = Rc::new(Turns::new());
        let done = Rc::new(Cell::new(0));
        // How many commands had been carried out at each turn of the other task.
        let seen = Rc::new(RefCell::new(Vec::new()));
        for _ in 0..100 {
            let (turns, done) = (turns.clone(), done.clone());
            tasks.spawn_local(async move {
                for _ in 0..10 {
                    turns.take(64).await;
                    done.set(done.get() + 64);
                }
            });
        }
        tasks
            .run_until(async {
                let renewing = turns.clone();
                spawn_local(async move { renewing.renew().await });
                while done.get() < 100 * 10 * 64 {
                    seen.borrow_mut().push(done.get());
                    yield_now().await;
                }
            })
            .await;
        let seen = seen.borrow();
        let most = seen.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(
            seen.len() > 100 && most <= 2 * BUDGET_COMMANDS,
            "{most}: {seen:?}"
        );
    }
}
