//! Leadership on request: transfers, as users ask for them in storms and in calm.

use std::{format, vec::Vec};

use super::{
    cluster::{Cluster, Event},
    coverage::Event as Sometimes,
    faults::MS,
    machine::Workload,
    oracle::{Violation, ensure},
};
use crate::{
    core::{Input, Token, TransferRejection},
    types::NodeId,
};

type Check = Result<(), Violation>;
type Ended = Result<NodeId, TransferRejection>;

/// A request for a transfer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    node: usize,
    life: u64,
    /// How it ended.
    result: Option<Ended>,
}

impl<W: Workload> Cluster<'_, W> {
    /// A user of a node asks for a transfer to somebody, whoever that is, or that the node leads no longer.
    pub(super) fn ask_for_transfer(&mut self, victim: usize) {
        let group = self.random.index(self.groups.len());
        let leader = (0..self.nodes.len()).find(|node| self.nodes[*node].leads(group));
        let node = leader.filter(|_| self.random.chance(700)).unwrap_or(victim);
        let to = self.random.index(self.nodes.len());
        let to = (!self.random.chance(300)).then(|| self.nodes[to].id);
        self.transfer(node, group, to);
        if self.random.chance(200) {
            let delay = self.random.exponential(5 * MS);
            self.after(delay, Event::Strike { group });
        }
    }

    /// `None` if that node is down.
    fn transfer(&mut self, node: usize, group: usize, to: Option<NodeId>) -> Option<Token> {
        let life = self.nodes[node].life.as_ref()?.number;
        self.last_token += 1;
        let token = Token(self.last_token);
        let asked = Asked {
            node,
            life,
            result: None,
        };
        self.transfers.insert(token, asked);
        self.input(node, group, Input::TransferLeadership { token, to });
        Some(token)
    }

    pub(super) fn transferred(&mut self, node: usize, group: usize, token: Token, result: Ended) -> Check {
        let id = self.nodes[node].id;
        let asked = self.transfers.get_mut(&token);
        let open = asked.filter(|asked| asked.node == node && asked.result.is_none());
        let Some(asked) = open else {
            let detail = format!("{id} ends the transfer {token:?}, which is not open there");
            return Err(Violation::new("exactly once", detail));
        };
        asked.result = Some(result);
        match result {
            Ok(leader) => {
                self.coverage.meet(Sometimes::Transferred);
                ensure!(
                    self.groups[group].oracle.was_elected(leader),
                    "transfer",
                    "{id} says that {leader} leads, which never did"
                );
            }
            Err(TransferRejection::TimedOut) => self.coverage.meet(Sometimes::TransferTimedOut),
            Err(_) => self.coverage.meet(Sometimes::TransferRefused),
        }
        Ok(())
    }

    /// A node died, with the requests that were open there.
    pub(super) fn forget_transfers(&mut self, node: usize) {
        self.transfers
            .retain(|_, asked| asked.node != node || asked.result.is_some());
    }

    /// In a calm everybody can be made leader.
    pub(super) fn probe_transfer(&mut self, oracle: &'static str) -> Check {
        let group = self.random.index(self.groups.len());
        let voters: Vec<NodeId> = self.groups[group].oracle.membership().voters().collect();
        let living = (0..self.nodes.len())
            .filter(|node| self.nodes[*node].life.is_some() && voters.contains(&self.nodes[*node].id));
        let living: Vec<usize> = living.collect();
        let (node, to) = (self.random.pick(&living), self.random.pick(&living));
        self.say(|| format!("-- n{} asks n{} to lead", node + 1, to + 1));
        let to = self.nodes[to].id;
        let Some(token) = self.transfer(node, group, Some(to)) else {
            return Ok(());
        };
        let patience = self.plan.config.election_timeout.as_micros() as u64 * 4;
        self.run_for(patience)?;
        let result = self.transfers.get(&token).and_then(|asked| asked.result);
        if result == Some(Ok(to)) {
            return Ok(());
        }
        let detail = format!("no fault for a while, but the transfer {token:?} to {to} ends {result:?}");
        Err(Violation { oracle, detail })
    }

    /// At the end every request of a living node has ended.
    pub(super) fn all_transfers_ended(&self) -> Check {
        let mut open = self.transfers.iter().filter(|(_, asked)| {
            let life = self.nodes[asked.node].life.as_ref();
            asked.result.is_none() && life.is_some_and(|life| life.number == asked.life)
        });
        let first = open.next();
        ensure!(
            first.is_none(),
            "exactly once",
            "the transfer {first:?} has not ended"
        );
        Ok(())
    }
}
