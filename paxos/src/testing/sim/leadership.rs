//! Leadership on request: transfers, as users ask for them in storms and in calm; and leases.

use std::{format, vec::Vec};

use super::{
    cluster::{Cluster, Event},
    coverage::Event as Sometimes,
    faults::{Fault, MS},
    machine::Workload,
    oracle::{Violation, ensure},
};
use crate::{
    core::{Input, Phase, Status, Token, TransferRejection},
    types::{Ballot, NodeId, Slot},
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
        let patience = self.plan.config.election_timeout.as_micros() as u64 * 4;
        let mut result = None;
        for _ in 0..3 {
            let Some(token) = self.transfer(node, group, Some(to)) else {
                return Ok(());
            };
            self.run_for(patience)?;
            result = self.transfers.get(&token).and_then(|asked| asked.result);
            match result {
                Some(Ok(leader)) if leader == to => return Ok(()),
                // The leader has just begun to hand over to the node that it prefers.
                Some(Err(TransferRejection::UnderWay { .. } | TransferRejection::OtherLeader { .. })) => {}
                _ => break,
            }
        }
        let detail = format!("no fault for a while, but the transfer to {to} ends {result:?}");
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

    /// A query has run under a lease. Sometimes the node stands still just then, for longer than the lease at times;
    /// sometimes other things happen first.
    pub(super) fn queried_by_lease(
        &mut self,
        node: usize,
        group: usize,
        token: Token,
        queried: (Slot, Ballot),
    ) -> Check {
        let Some(lease) = self.plan.config.lease else {
            return Ok(());
        };
        if self.network.calm || !self.random.chance(300) {
            return self.answer_by_lease(node, group, token, queried);
        }
        self.nodes[node].paused |= self.plan.faults.has(Fault::Pause) && self.random.chance(500);
        let delay = self.random.exponential(lease.duration.as_micros() as u64);
        let Some(life) = &self.nodes[node].life else {
            return Ok(());
        };
        let life = life.number;
        let answer = Event::Answer {
            node,
            life,
            group,
            token,
            queried,
        };
        self.after(delay, answer);
        Ok(())
    }

    /// Looks at the clock once more, and answers, or asks a quorum after all.
    pub(super) fn answer_by_lease(
        &mut self,
        node: usize,
        group: usize,
        token: Token,
        (applied, ballot): (Slot, Ballot),
    ) -> Check {
        if !self.is_open(token) {
            return Ok(());
        }
        let holds = self.held_lease(node, group).is_some_and(|held| held == ballot);
        if holds {
            self.coverage.meet(Sometimes::ReadByLease);
            let id = self.nodes[node].id;
            self.groups[group].history.read_answered(id, token, applied)?;
            self.client_hears(token, None);
        } else {
            self.coverage.meet(Sometimes::LeaseOver);
            self.input(node, group, Input::Read { token });
        }
        Ok(())
    }

    /// The ballot under whose lease a node would answer reads at this very moment.
    fn held_lease(&self, node: usize, group: usize) -> Option<Ballot> {
        let (ballot, until) = self.nodes[node].seat(group)?.replica.lease()?;
        (self.nodes[node].clock(self.now) < until).then_some(ballot)
    }

    /// I12: who begins to lead, or gets a lease, is alone in that.
    pub(super) fn one_lease_at_a_time(&mut self, node: usize, group: usize, before: &Status) -> Check {
        let Some(lease) = self.plan.config.lease else {
            return Ok(());
        };
        let Some(seat) = self.nodes[node].seat(group) else {
            return Ok(());
        };
        let elected = seat.status.phase == Phase::Leader
            && (before.phase != Phase::Leader || before.leader != seat.status.leader);
        let own = seat.status.leader;
        let held = self.held_lease(node, group);
        if !elected && held.is_none() {
            return Ok(());
        }
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let rival = self.held_lease(other, group);
            let id = self.nodes[node].id;
            ensure!(
                rival.is_none() || held.is_none(),
                "I12",
                "{id} and {} hold leases at one moment: {held:?} and {rival:?}",
                self.nodes[other].id
            );
            // Who was elected by an earlier membership's voters has nothing to say before it knows the latest one.
            let version = |node: usize| {
                self.nodes[node]
                    .seat(group)
                    .map(|seat| seat.status.membership.version)
            };
            let elected = elected && version(node) == version(other);
            ensure!(
                !elected || rival.is_none_or(|rival| Some(rival) > own),
                "I12",
                "{id} begins to lead at {own:?} while {} holds a lease: {rival:?}",
                self.nodes[other].id
            );
        }
        if held.is_some() {
            let duration = lease.duration.as_micros() as u64;
            let last = self.last_lease.insert(group, (node, self.now));
            let soon = last.is_some_and(|(last, at)| last != node && self.now < at + duration);
            self.coverage.meet_if(soon, Sometimes::LeaseSucceeded);
        }
        Ok(())
    }
}
