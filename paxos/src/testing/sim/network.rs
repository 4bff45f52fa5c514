//! A network that loses, repeats, delays, reorders and cuts.

use std::{vec, vec::Vec};

use super::{
    faults::{Fault, MS, Plan, SECOND},
    random::Random,
};

/// When a message arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Once, or as a second copy.
    At(u64),
    /// Again, long after.
    Replay(u64),
}

/// What becomes of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Delivered(Vec<Arrival>),
    Lost,
    Cut,
    Refused,
}

/// One direction between two nodes.
#[derive(Clone, Debug, Default)]
struct Link {
    /// How many faults cut it now.
    cuts: u32,
    /// Nothing arrives before this time.
    clogged_until: u64,
    /// When the last message arrives, for links that keep the order.
    last: u64,
}

#[derive(Debug)]
pub(super) struct Network {
    nodes: usize,
    links: Vec<Link>,
    /// During calm the network delivers everything in order, once and soon.
    pub(super) calm: bool,
}

impl Network {
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            nodes,
            links: vec![Link::default(); nodes * nodes],
            calm: false,
        }
    }

    fn link(&mut self, from: usize, to: usize) -> &mut Link {
        &mut self.links[from * self.nodes + to]
    }

    pub(super) fn cut(&mut self, from: usize, to: usize) {
        self.link(from, to).cuts += 1;
    }

    pub(super) fn mend(&mut self, from: usize, to: usize) {
        let link = self.link(from, to);
        link.cuts = link.cuts.saturating_sub(1);
    }

    pub(super) fn clog(&mut self, from: usize, to: usize, until: u64) {
        self.link(from, to).clogged_until = until;
    }

    pub(super) fn mend_all(&mut self) {
        for link in &mut self.links {
            *link = Link::default();
        }
    }

    pub(super) fn has_cuts(&self) -> bool {
        self.links.iter().any(|link| link.cuts > 0)
    }

    pub(super) fn is_cut(&mut self, from: usize, to: usize) -> bool {
        self.link(from, to).cuts > 0
    }

    /// Decides when, and how often, a message sent now arrives.
    pub(super) fn fate(
        &mut self,
        plan: &Plan,
        random: &mut Random,
        now: u64,
        from: usize,
        to: usize,
    ) -> Fate {
        let calm = self.calm;
        let refuses = plan.faults.has(Fault::Refusal);
        let link = self.link(from, to);
        if link.cuts > 0 {
            return if refuses && random.chance(300) {
                Fate::Refused
            } else {
                Fate::Cut
            };
        }
        if refuses && link.clogged_until > now && random.chance(200) {
            return Fate::Refused;
        }
        if calm {
            let at = (now + 100 + random.below(MS)).max(link.last);
            link.last = at;
            return Fate::Delivered(vec![Arrival::At(at)]);
        }
        if random.chance(plan.loss_permille) {
            return Fate::Lost;
        }
        let delay = 50 + random.exponential(plan.delay_mean);
        let mut at = (now + delay).max(link.clogged_until);
        if !plan.faults.has(Fault::Reordering) {
            at = at.max(link.last);
            link.last = at;
        }
        let mut arrivals = vec![Arrival::At(at)];
        if random.chance(plan.duplication_permille) {
            arrivals.push(Arrival::At(at + random.exponential(plan.delay_mean)));
        }
        if random.chance(plan.replay_permille) {
            arrivals.push(Arrival::Replay(at + random.between(SECOND / 2, 5 * SECOND)));
        }
        Fate::Delivered(arrivals)
    }
}
