//! Sets of configurations without superfluous ones.

use std::{
    collections::HashMap,
    hash::Hash,
    vec::{self, Vec},
};

/// One way to explain all answers so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Configuration<S> {
    pub(super) state: S,
    /// Operations under way that have taken effect, sorted.
    done: Vec<usize>,
    used: Used,
}

/// How many operations of each kind without an answer have taken effect: kinds with at least one, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Used(Vec<(usize, u32)>);

impl Used {
    fn of(&self, kind: usize) -> u32 {
        self.0
            .binary_search_by_key(&kind, |(kind, _)| *kind)
            .map_or(0, |at| self.0[at].1)
    }

    /// Whether whatever can follow on `other` can follow on this.
    fn covers(&self, other: &Self) -> bool {
        self.0.len() <= other.0.len() && self.0.iter().all(|(kind, count)| *count <= other.of(*kind))
    }
}

impl<S> Configuration<S> {
    pub(super) fn new(state: S) -> Self {
        Self {
            state,
            done: Vec::new(),
            used: Used::default(),
        }
    }

    /// The same with another state.
    pub(super) fn with(&self, state: S) -> Self {
        Self {
            state,
            done: self.done.clone(),
            used: self.used.clone(),
        }
    }

    pub(super) fn has_done(&self, operation: usize) -> bool {
        self.done.binary_search(&operation).is_ok()
    }

    pub(super) fn note_done(&mut self, operation: usize) {
        if let Err(at) = self.done.binary_search(&operation) {
            self.done.insert(at, operation);
        }
    }

    /// Whether the operation, which is answered now, has taken effect.
    pub(super) fn forget(&mut self, operation: usize) -> bool {
        let at = self.done.binary_search(&operation);
        if let Ok(at) = at {
            self.done.remove(at);
        }
        at.is_ok()
    }

    pub(super) fn used(&self, kind: usize) -> u32 {
        self.used.of(kind)
    }

    pub(super) fn note_used(&mut self, kind: usize) {
        match self.used.0.binary_search_by_key(&kind, |(kind, _)| *kind) {
            Ok(at) => self.used.0[at].1 += 1,
            Err(at) => self.used.0.insert(at, (kind, 1)),
        }
    }
}

/// Configurations none of which makes another superfluous.
#[derive(Debug)]
pub(super) struct Configurations<S>(HashMap<(S, Vec<usize>), Vec<Used>>);

impl<S> Default for Configurations<S> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<S: Clone + Eq + Hash> Configurations<S> {
    /// False if it is superfluous.
    pub(super) fn insert(&mut self, new: &Configuration<S>) -> bool {
        let same = self.0.entry((new.state.clone(), new.done.clone())).or_default();
        if same.iter().any(|used| used.covers(&new.used)) {
            return false;
        }
        same.retain(|used| !new.used.covers(used));
        same.push(new.used.clone());
        true
    }

    pub(super) fn contains(&self, wanted: &Configuration<S>) -> bool {
        let same = self.0.get(&(wanted.state.clone(), wanted.done.clone()));
        same.is_some_and(|same| same.contains(&wanted.used))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn into_each(self) -> vec::IntoIter<Configuration<S>> {
        let mut each = Vec::new();
        for ((state, done), all) in self.0 {
            for used in all {
                each.push(Configuration {
                    state: state.clone(),
                    done: done.clone(),
                    used,
                });
            }
        }
        each.into_iter()
    }

    /// Some of the states, each once.
    pub(super) fn states(&self, limit: usize) -> Vec<S> {
        let mut states = Vec::new();
        for (state, _) in self.0.keys() {
            if states.len() < limit && !states.contains(state) {
                states.push(state.clone());
            }
        }
        states
    }
}
