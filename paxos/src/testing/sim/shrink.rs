//! From a failing run to a small one that fails in the same way.

use super::{
    Failure, Options,
    faults::{Fault, Plan},
    machine::Workload,
    random::Random,
    run,
};

/// A small run that fails.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// How it fails, and its seed: not always the one that was begun with.
    pub failure: Failure,
    /// What it still needs: as few fault classes, nodes, groups, clients and storms as were found to do.
    pub options: Options,
    /// How many runs the search took.
    pub runs: u64,
}

/// Looks for the smallest set of faults, nodes, groups, clients and storms with which the oracle that `seed` breaks is
/// still broken, by this seed or one soon after it. `None` if the seed passes.
///
/// With other faults every draw differs, so that one seed says little: `tries` of them must pass before something is
/// taken to be needed. A few hundred are good for a bug that many seeds find; a rare one wants more.
pub fn shrink<W: Workload>(seed: u64, options: &Options, workload: &W, tries: u64) -> Option<Shrunk> {
    let options = Options {
        trace: None,
        ..*options
    };
    let failure = run(seed, &options, workload).failure?;
    let mut search = Search {
        workload,
        tries,
        oracle: failure.violation.oracle,
        best: Shrunk {
            failure,
            options: drawn(seed, &options),
            runs: 1,
        },
    };
    search.fewer_faults();
    search.smaller(|options| &mut options.groups, 1);
    search.smaller(|options| &mut options.nodes, 1);
    search.smaller(|options| &mut options.clients, 1);
    if search.best.options.storms > Some(1) {
        let mut options = search.best.options;
        options.storms = Some(1);
        search.attempt(options);
    }
    // What was needed with many nodes and clients may not be with few.
    search.fewer_faults();
    search.sooner();
    Some(search.best)
}

/// All that the seed draws, spelled out: the same run.
fn drawn(seed: u64, options: &Options) -> Options {
    let plan = Plan::draw(&mut Random::new(seed), options);
    Options {
        nodes: Some(plan.nodes),
        groups: Some(plan.groups),
        clients: Some(plan.clients),
        storms: Some(plan.storms),
        faults: plan.faults,
        trace: None,
    }
}

struct Search<'a, W> {
    workload: &'a W,
    tries: u64,
    oracle: &'static str,
    best: Shrunk,
}

impl<W: Workload> Search<'_, W> {
    fn fails(&mut self, seed: u64, options: &Options) -> Option<Failure> {
        self.best.runs += 1;
        let failure = run(seed, options, self.workload).failure?;
        // A panic is the same only if it says the same.
        let same = failure.violation.oracle == self.oracle
            && (self.oracle != "panic" || failure.violation.detail == self.best.failure.violation.detail);
        same.then_some(failure)
    }

    /// Takes these options if some seed still fails with them.
    fn attempt(&mut self, options: Options) -> bool {
        let first = self.best.failure.seed;
        let failure = (first..first.saturating_add(self.tries)).find_map(|seed| self.fails(seed, &options));
        let found = failure.is_some();
        if let Some(failure) = failure {
            self.best.failure = failure;
            self.best.options = options;
        }
        found
    }

    /// Leaves out halves of the faults, then quarters, and so on down to single ones.
    fn fewer_faults(&mut self) {
        let mut size = Fault::ALL.len().div_ceil(2);
        loop {
            for part in Fault::ALL.chunks(size) {
                let faults = self.best.options.faults;
                let fewer = part.iter().fold(faults, |set, fault| set.without(*fault));
                if fewer.count() < faults.count() {
                    let mut options = self.best.options;
                    options.faults = fewer;
                    self.attempt(options);
                }
            }
            if size == 1 {
                return;
            }
            size = size.div_ceil(2);
        }
    }

    /// The smallest number that still does, from `least` on.
    fn smaller(&mut self, field: fn(&mut Options) -> &mut Option<usize>, least: usize) {
        let now = field(&mut self.best.options).unwrap_or(least);
        for number in least..now {
            let mut options = self.best.options;
            *field(&mut options) = Some(number);
            if self.attempt(options) {
                return;
            }
        }
    }

    /// The seed that fails after the shortest time, which is the shortest trace to read.
    fn sooner(&mut self) {
        let options = self.best.options;
        let first = self.best.failure.seed;
        for seed in first..first.saturating_add(self.tries) {
            if let Some(failure) = self.fails(seed, &options)
                && failure
                    .at
                    .is_some_and(|at| self.best.failure.at.is_none_or(|best| at < best))
            {
                self.best.failure = failure;
            }
        }
    }
}
