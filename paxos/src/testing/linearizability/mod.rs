//! Whether what clients saw of a service could have come from one machine that does one thing at a time.
//!
//! A history is what clients noted: what they asked for, when, and what was answered when; or that no answer came,
//! and then the operation may have happened at any moment after it was asked for, or never. A history is
//! *linearizable* if every operation can be given a moment between its invocation and its answer, such that a single
//! machine doing them in that order would have answered the same (Herlihy and Wing). Independent objects, such as the
//! keys of a store, are judged one by one: that is as strict, and far cheaper.
//!
//! ```
//! use paxos::testing::linearizability::{Model, Operation, Verdict, check};
//!
//! /// A counter: adding zero reads it.
//! #[derive(Debug)]
//! struct Counter;
//!
//! impl Model for Counter {
//!     type State = i64;
//!     type Input = i64;
//!     type Output = i64;
//!     fn initial(&self) -> i64 {
//!         0
//!     }
//!     fn apply(&self, state: &i64, input: &i64) -> (i64, i64) {
//!         (state + input, state + input)
//!     }
//! }
//!
//! let history = [
//!     Operation::answered(5, 10, 30, 5),
//!     Operation::unknown(1, 20),
//!     Operation::answered(0, 40, 50, 6),
//!     Operation::answered(0, 60, 70, 5),
//! ];
//! assert!(matches!(check(&Counter, &history[..3], 1_000), Verdict::Linearizable { .. }));
//! let Verdict::Violation { operation, possible } = check(&Counter, &history, 1_000) else { panic!() };
//! assert_eq!((operation, possible), (3, vec![6]));
//! ```
//!
//! # How it searches
//!
//! The search goes through invocations and answers in the order of time (Lowe, "Testing for linearizability", section
//! on just-in-time linearization) and holds all *configurations* that explain what was answered so far: a state, those
//! operations under way that have taken effect, and those without an answer that were used. What is answered needs no
//! memory, so a configuration is small however long the history is. Three rules keep them few, none of which loses a
//! linearization:
//!
//! * An operation under way that can only leave the state alone, and would be answered as noted, does so at once.
//! * Operations without an answer that ask for the same are interchangeable: they are counted.
//! * One configuration makes another superfluous that differs only in having used more of those.

mod configurations;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    fmt::Debug,
    hash::Hash,
    vec::Vec,
};

use self::configurations::{Configuration, Configurations};

/// How many of the states that were possible a [`Verdict::Violation`] names.
const MAX_POSSIBLE: usize = 16;

/// What the service should do, one operation at a time: a small, deterministic program.
pub trait Model {
    /// All that answers depend on.
    type State: Clone + Eq + Hash + Debug;
    /// What clients ask for.
    type Input: Clone + Eq + Hash + Debug;
    /// What they are answered.
    type Output: Eq + Debug;

    /// The state before anything happened.
    fn initial(&self) -> Self::State;

    /// The state after an operation, and its answer.
    fn apply(&self, state: &Self::State, input: &Self::Input) -> (Self::State, Self::Output);

    /// Whether an operation that was answered like this changed nothing, in whatever state it happened: a read, or a
    /// condition that was not met. The search is faster for knowing; a wrong `true` makes it miss linearizations.
    fn changes_nothing(&self, input: &Self::Input, output: &Self::Output) -> bool {
        let _ = (input, output);
        false
    }
}

/// One operation of a history. The unit of its times is the caller's; all must be read from one clock that never goes
/// back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<I, O> {
    /// What the client asked for.
    pub input: I,
    /// When, before it was sent.
    pub invoked: u64,
    /// When the answer had arrived, and the answer; `None` if the outcome is unknown.
    pub answer: Option<(u64, O)>,
}

impl<I, O> Operation<I, O> {
    /// An operation that was answered.
    ///
    /// # Panics
    ///
    /// If it was answered before it was invoked: the history would mean nothing.
    pub fn answered(input: I, invoked: u64, at: u64, output: O) -> Self {
        assert!(
            invoked <= at,
            "an operation was invoked at {invoked} and answered before, at {at}; times must come from one clock"
        );
        Self {
            input,
            invoked,
            answer: Some((at, output)),
        }
    }

    /// An operation that may have happened at any time after its invocation, or never. What certainly did not happen
    /// does not belong into a history.
    pub fn unknown(input: I, invoked: u64) -> Self {
        Self {
            input,
            invoked,
            answer: None,
        }
    }
}

/// What [`check`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict<S> {
    /// There is an order that explains every answer.
    Linearizable {
        /// How many configurations the search looked at.
        visited: usize,
    },
    /// No order explains the answer of this operation together with those before it.
    Violation {
        /// The position in the history.
        operation: usize,
        /// States that the object may have had during the operation (some, if there are many).
        possible: Vec<S>,
    },
    /// The search was given up at its bound: neither a pass nor a failure.
    Undecided {
        /// The position in the history of the operation that it was working at.
        operation: usize,
    },
}

impl<S> Verdict<S> {
    /// Whether the history was found to be linearizable; an undecided one was not.
    pub fn is_linearizable(&self) -> bool {
        matches!(self, Self::Linearizable { .. })
    }
}

/// Judges the history, in any order, of one object. The search ends undecided once it has visited so many
/// configurations; histories of a few clients need a few for each operation.
///
/// # Panics
///
/// If an operation was answered before it was invoked.
pub fn check<M: Model>(
    model: &M,
    history: &[Operation<M::Input, M::Output>],
    max_visited: usize,
) -> Verdict<M::State> {
    let mut search = Search::new(model, history, max_visited);
    for (operation, event) in events(history) {
        let judged = match event {
            Event::Invoked => {
                search.invoke(operation);
                Ok(())
            }
            Event::Answered => search.answer(operation),
        };
        if let Err(verdict) = judged {
            return verdict;
        }
    }
    Verdict::Linearizable {
        visited: search.visited,
    }
}

/// At equal times invocations come first: the operations may have overlapped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Invoked,
    Answered,
}

/// Invocations and answers in the order of time.
fn events<I, O>(history: &[Operation<I, O>]) -> impl Iterator<Item = (usize, Event)> {
    let mut events = Vec::with_capacity(history.len() * 2);
    for (index, operation) in history.iter().enumerate() {
        events.push((operation.invoked, Event::Invoked, index));
        if let Some((at, _)) = operation.answer {
            assert!(
                operation.invoked <= at,
                "operation {index} was answered before it was invoked"
            );
            events.push((at, Event::Answered, index));
        }
    }
    events.sort_unstable();
    events.into_iter().map(|(_, event, index)| (index, event))
}

struct Search<'a, M: Model> {
    model: &'a M,
    history: &'a [Operation<M::Input, M::Output>],
    /// Operations under way whose answers are still to come.
    open: Vec<usize>,
    /// Inputs without an answer, and how many of each have been invoked.
    unanswered: Vec<(&'a M::Input, u32)>,
    /// Positions in `unanswered`.
    kinds: HashMap<&'a M::Input, usize>,
    configurations: Configurations<M::State>,
    visited: usize,
    max_visited: usize,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, history: &'a [Operation<M::Input, M::Output>], max_visited: usize) -> Self {
        let mut configurations = Configurations::default();
        configurations.insert(&Configuration::new(model.initial()));
        Self {
            model,
            history,
            open: Vec::new(),
            unanswered: Vec::new(),
            kinds: HashMap::new(),
            configurations,
            visited: 0,
            max_visited,
        }
    }

    fn invoke(&mut self, operation: usize) {
        let Operation { input, answer, .. } = &self.history[operation];
        if answer.is_some() {
            self.open.push(operation);
            return;
        }
        let kind = *self.kinds.entry(input).or_insert_with(|| {
            self.unanswered.push((input, 0));
            self.unanswered.len() - 1
        });
        self.unanswered[kind].1 += 1;
    }

    /// Keeps the configurations that can be reached by letting operations take effect, `operation` the last of them.
    fn answer(&mut self, operation: usize) -> Result<(), Verdict<M::State>> {
        let before = std::mem::take(&mut self.configurations);
        let mut seen = Configurations::default();
        let mut next = VecDeque::new();
        for configuration in before.into_each() {
            self.offer(configuration, &mut seen, &mut next);
        }
        while let Some(mut configuration) = next.pop_front() {
            if !seen.contains(&configuration) {
                continue;
            }
            self.visited += 1;
            if self.visited > self.max_visited {
                return Err(Verdict::Undecided { operation });
            }
            if configuration.forget(operation) {
                self.configurations.insert(&configuration);
                continue;
            }
            for successor in self.successors(&configuration) {
                self.offer(successor, &mut seen, &mut next);
            }
        }
        self.open.retain(|open| *open != operation);
        if self.configurations.is_empty() {
            let possible = seen.states(MAX_POSSIBLE);
            return Err(Verdict::Violation { operation, possible });
        }
        Ok(())
    }

    /// Lets everything take effect that can change nothing, and notes the configuration if it is a new one.
    fn offer(
        &self,
        mut configuration: Configuration<M::State>,
        seen: &mut Configurations<M::State>,
        next: &mut VecDeque<Configuration<M::State>>,
    ) {
        for &operation in &self.open {
            let Operation { input, answer, .. } = &self.history[operation];
            let changes_nothing = answer
                .as_ref()
                .is_some_and(|(_, output)| self.model.changes_nothing(input, output));
            if changes_nothing && self.done(&configuration.state, operation).is_some() {
                configuration.note_done(operation);
            }
        }
        if seen.insert(&configuration) {
            next.push_back(configuration);
        }
    }

    /// The state after an operation, if it is then answered as noted.
    fn done(&self, state: &M::State, operation: usize) -> Option<M::State> {
        let Operation { input, answer, .. } = &self.history[operation];
        let (after, output) = self.model.apply(state, input);
        answer
            .as_ref()
            .is_some_and(|(_, answered)| *answered == output)
            .then_some(after)
    }

    /// What one more operation can make of a configuration.
    fn successors(&self, configuration: &Configuration<M::State>) -> Vec<Configuration<M::State>> {
        let mut successors = Vec::new();
        for &operation in &self.open {
            if configuration.has_done(operation) {
                continue;
            }
            if let Some(state) = self.done(&configuration.state, operation) {
                let mut successor = configuration.with(state);
                successor.note_done(operation);
                successors.push(successor);
            }
        }
        for (kind, (input, invoked)) in self.unanswered.iter().enumerate() {
            if configuration.used(kind) == *invoked {
                continue;
            }
            let (state, _) = self.model.apply(&configuration.state, input);
            if state != configuration.state {
                let mut successor = configuration.with(state);
                successor.note_used(kind);
                successors.push(successor);
            }
        }
        successors
    }
}
