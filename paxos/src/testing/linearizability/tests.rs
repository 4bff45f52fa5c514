//! Good and bad histories of a register, and comparison with a search that tries every order.

use std::{vec, vec::Vec};

use super::{Model, Operation, Verdict, check};
use crate::testing::sim::random::Random;

const MAX_VISITED: usize = 1_000_000;

#[derive(Debug)]
struct Register;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Input {
    Get,
    Set(i64),
    Del,
    Incr,
    Cas(i64, i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Value(Option<i64>),
    Count(i64),
    Ok,
}

use Input::{Cas, Del, Get, Incr, Set};
use Output::{Count, Ok as Done, Value};

impl Model for Register {
    type State = Option<i64>;
    type Input = Input;
    type Output = Output;

    fn initial(&self) -> Option<i64> {
        None
    }

    fn apply(&self, state: &Option<i64>, input: &Input) -> (Option<i64>, Output) {
        match *input {
            Get => (*state, Value(*state)),
            Set(value) => (Some(value), Done),
            Del => (None, Count(i64::from(state.is_some()))),
            Incr => {
                let sum = state.unwrap_or(0) + 1;
                (Some(sum), Count(sum))
            }
            Cas(old, new) if *state == Some(old) => (Some(new), Count(1)),
            Cas(..) => (*state, Count(0)),
        }
    }

    fn changes_nothing(&self, input: &Input, output: &Output) -> bool {
        matches!((input, output), (Get, _) | (Cas(..) | Del, Count(0)))
    }
}

type History = Vec<Operation<Input, Output>>;

/// Inputs and outputs that follow on each other without overlap.
fn in_turn(operations: &[(Input, Option<Output>)]) -> History {
    let timed = operations.iter().zip((0..).step_by(10));
    timed
        .map(|((input, output), at)| match output {
            Some(output) => Operation::answered(*input, at, at + 5, *output),
            None => Operation::unknown(*input, at),
        })
        .collect()
}

fn passes(history: &History) {
    let verdict = check(&Register, history, MAX_VISITED);
    assert!(verdict.is_linearizable(), "{verdict:?}: {history:#?}");
}

/// The operation that cannot be explained.
fn fails(history: &History) -> usize {
    match check(&Register, history, MAX_VISITED) {
        Verdict::Violation { operation, .. } => operation,
        verdict => panic!("{verdict:?}: {history:#?}"),
    }
}

#[test]
fn an_empty_history_is_linearizable() {
    passes(&vec![]);
}

#[test]
fn operations_in_turn_do_what_the_register_does() {
    passes(&in_turn(&[
        (Get, Some(Value(None))),
        (Set(4), Some(Done)),
        (Incr, Some(Count(5))),
        (Cas(4, 9), Some(Count(0))),
        (Cas(5, 9), Some(Count(1))),
        (Get, Some(Value(Some(9)))),
        (Del, Some(Count(1))),
        (Del, Some(Count(0))),
    ]));
}

#[test]
fn a_stale_read_is_caught() {
    let history = in_turn(&[
        (Set(1), Some(Done)),
        (Set(2), Some(Done)),
        (Get, Some(Value(Some(1)))),
    ]);
    let verdict = check(&Register, &history, MAX_VISITED);
    let possible = vec![Some(2)];
    assert_eq!(
        verdict,
        Verdict::Violation {
            operation: 2,
            possible
        }
    );
}

#[test]
fn a_read_may_see_either_side_of_a_write_under_way_but_not_go_back() {
    let overlapping = |first, second| {
        vec![
            Operation::answered(Set(1), 0, 100, Done),
            Operation::answered(Get, 10, 20, Value(first)),
            Operation::answered(Get, 30, 40, Value(second)),
        ]
    };
    passes(&overlapping(None, None));
    passes(&overlapping(None, Some(1)));
    passes(&overlapping(Some(1), Some(1)));
    assert_eq!(fails(&overlapping(Some(1), None)), 2);
}

#[test]
fn a_lost_update_is_caught() {
    assert_eq!(
        fails(&in_turn(&[
            (Incr, Some(Count(1))),
            (Incr, Some(Count(2))),
            (Get, Some(Value(Some(1)))),
        ])),
        2
    );
    // Two that overlap may come in either order, but not both first.
    let both = |second| {
        vec![
            Operation::answered(Incr, 0, 20, Count(1)),
            Operation::answered(Incr, 10, 30, Count(second)),
        ]
    };
    passes(&both(2));
    assert_eq!(fails(&both(1)), 1);
}

#[test]
fn an_increment_that_happened_twice_is_caught() {
    assert_eq!(
        fails(&in_turn(&[(Incr, Some(Count(1))), (Get, Some(Value(Some(2))))])),
        1
    );
    // Of unknown outcome: once at the most.
    assert_eq!(fails(&in_turn(&[(Incr, None), (Get, Some(Value(Some(2))))])), 1);
}

#[test]
fn a_write_of_unknown_outcome_may_be_seen_at_once_late_or_never() {
    let read = |values: [Option<i64>; 3]| {
        in_turn(&[
            (Set(7), None),
            (Get, Some(Value(values[0]))),
            (Set(8), Some(Done)),
            (Get, Some(Value(values[1]))),
            (Get, Some(Value(values[2]))),
        ])
    };
    passes(&read([Some(7), Some(8), Some(8)]));
    passes(&read([None, Some(8), Some(7)]));
    passes(&read([None, Some(8), Some(8)]));
    // Not twice, not before its invocation.
    assert_eq!(fails(&read([Some(7), Some(8), Some(7)])), 4);
    let too_early = in_turn(&[(Get, Some(Value(Some(7)))), (Set(7), None)]);
    assert_eq!(fails(&too_early), 0);
}

#[test]
fn increments_of_unknown_outcome_are_counted() {
    let seen = |count| {
        let mut operations = vec![(Incr, None); 40];
        operations.push((Get, Some(Value(Some(count)))));
        operations.push((Incr, Some(Count(41))));
        in_turn(&operations)
    };
    for count in [1, 20, 40] {
        passes(&seen(count));
    }
    assert_eq!(fails(&seen(41)), 40);
}

#[test]
fn a_comparison_with_an_old_value_is_caught() {
    assert_eq!(
        fails(&in_turn(&[
            (Set(1), Some(Done)),
            (Set(2), Some(Done)),
            (Cas(1, 3), Some(Count(1))),
        ])),
        2
    );
    assert_eq!(
        fails(&in_turn(&[(Set(1), Some(Done)), (Cas(1, 3), Some(Count(0)))])),
        1
    );
    // The failure of one of unknown outcome is no reason for anything.
    passes(&in_turn(&[
        (Set(1), Some(Done)),
        (Cas(2, 3), None),
        (Get, Some(Value(Some(1)))),
    ]));
}

#[test]
fn reads_that_disagree_on_the_order_of_two_writes_are_caught() {
    let history = |first: [i64; 2], second: [i64; 2]| {
        let read = |value, at| Operation::answered(Get, at, at + 1, Value(Some(value)));
        vec![
            Operation::answered(Set(1), 0, 100, Done),
            Operation::answered(Set(2), 0, 100, Done),
            read(first[0], 10),
            read(first[1], 20),
            read(second[0], 30),
            read(second[1], 40),
        ]
    };
    passes(&history([1, 1], [1, 2]));
    passes(&history([1, 2], [2, 2]));
    assert_eq!(fails(&history([1, 2], [2, 1])), 5);
}

#[test]
fn the_order_of_real_time_counts() {
    // The set was answered before the delete began.
    let history = vec![
        Operation::answered(Set(1), 0, 10, Done),
        Operation::answered(Del, 11, 20, Count(0)),
    ];
    assert_eq!(fails(&history), 1);
    // At the same moment they may have overlapped.
    let history = vec![
        Operation::answered(Set(1), 0, 10, Done),
        Operation::answered(Del, 10, 20, Count(0)),
    ];
    passes(&history);
}

#[test]
fn a_search_that_ends_at_its_bound_says_so() {
    let history = in_turn(&[(Set(1), Some(Done)), (Set(2), Some(Done))]);
    let verdict = check(&Register, &history, 1);
    assert_eq!(verdict, Verdict::Undecided { operation: 0 });
    assert!(!verdict.is_linearizable());
}

#[test]
#[should_panic(expected = "answered before")]
fn a_clock_that_goes_back_is_refused() {
    let _ = Operation::answered(Get, 2, 1, Value(None));
}

fn any_input(random: &mut Random, values: u64) -> Input {
    let mut value = || random.below(values).cast_signed();
    let (old, new) = (value(), value());
    match random.below(8) {
        0..=2 => Get,
        3 | 4 => Set(new),
        5 => Del,
        6 => Incr,
        _ => Cas(old, new),
    }
}

/// What clients note of a register that does one thing at a time. Each operation takes effect at its place, and its
/// invocation and its answer are spread round that, without going over those of its own client.
fn execution(
    random: &mut Random,
    length: u64,
    clients: usize,
    values: u64,
    unknown_permille: u64,
) -> History {
    let mut state = Register.initial();
    let mut free_at = vec![0; clients];
    let mut history = Vec::new();
    let mut late = Vec::new();
    let spread = 10 * clients as u64;
    let mut now = spread;
    for _ in 0..length {
        now += 10;
        if !late.is_empty() && random.chance(50) {
            let input = late.swap_remove(random.index(late.len()));
            state = Register.apply(&state, &input).0;
        }
        let Some(client) = (0..clients).find(|client| free_at[*client] < now) else {
            continue;
        };
        let input = any_input(random, values);
        let invoked = (now - random.below(spread)).max(free_at[client]);
        if random.chance(unknown_permille) {
            // Takes effect now, or later, or never; the client goes on elsewhere.
            match random.below(3) {
                0 => state = Register.apply(&state, &input).0,
                1 => late.push(input),
                _ => {}
            }
            history.push(Operation::unknown(input, invoked));
            continue;
        }
        let (after, output) = Register.apply(&state, &input);
        state = after;
        let at = now + random.below(spread);
        free_at[client] = at + 1;
        history.push(Operation::answered(input, invoked, at, output));
    }
    history
}

#[test]
fn histories_of_a_real_execution_pass() {
    for seed in 0..300 {
        let random = &mut Random::new(seed);
        let clients = random.between(1, 8) as usize;
        let unknown_permille = random.pick(&[0, 10, 100]);
        let values = random.pick(&[3, 1_000]);
        passes(&execution(random, 100, clients, values, unknown_permille));
    }
}

#[test]
fn a_long_history_takes_few_steps() {
    let history = execution(&mut Random::new(1), 20_000, 8, 1_000_000, 1);
    assert!(history.len() > 10_000);
    passes(&history);
}

/// A number that nobody wrote is put into one read.
#[test]
fn histories_with_a_planted_read_fail() {
    for seed in 0..200 {
        let random = &mut Random::new(seed);
        let mut history = execution(random, 100, 4, 100, 20);
        let reads = history
            .iter_mut()
            .filter(|operation| operation.input == Get && operation.answer.is_some());
        let mut reads: Vec<_> = reads.collect();
        let read = random.index(reads.len());
        reads[read].answer.as_mut().unwrap().1 = Value(Some(-5));
        fails(&history);
    }
}

/// The count goes back by one, or forward by one too many, at some place.
#[test]
fn histories_with_a_lost_or_doubled_increment_fail() {
    for seed in 0..200 {
        let random = &mut Random::new(seed);
        let (faulty_at, doubled) = (random.below(30).cast_signed(), random.chance(500));
        let mut count = 0;
        let mut history = Vec::new();
        for (number, at) in (0..40_i64).zip((0_u64..).step_by(10)) {
            count += 1;
            // Neighbours overlap.
            history.push(Operation::answered(Incr, at, at + random.below(25), Count(count)));
            if number == faulty_at {
                count += if doubled { 1 } else { -1 };
            }
        }
        fails(&history);
    }
}

/// Whether some order explains the rest, trying every one.
fn any_order(rest: &[Operation<Input, Output>], state: Option<i64>) -> bool {
    if rest.iter().all(|operation| operation.answer.is_none()) {
        return true;
    }
    (0..rest.len()).any(|first| {
        let operation = &rest[first];
        let after_another = rest
            .iter()
            .any(|other| other.answer.is_some_and(|(at, _)| at < operation.invoked));
        let (after, output) = Register.apply(&state, &operation.input);
        let fits = operation.answer.is_none_or(|(_, answered)| answered == output);
        let mut without = rest.to_vec();
        without.remove(first);
        fits && !after_another && any_order(&without, after)
    })
}

#[test]
fn the_verdict_is_that_of_trying_every_order() {
    let mut good = 0;
    let mut bad = 0;
    for seed in 0..6_000 {
        let random = &mut Random::new(seed);
        let clients = random.between(2, 4) as usize;
        let mut history = execution(random, 6, clients, 3, 300);
        if random.chance(700) {
            // Any answer that the operation could have had.
            let changed = random.index(history.len());
            let operation = &mut history[changed];
            let state = random.chance(700).then(|| random.below(4).cast_signed());
            if let Some((_, output)) = &mut operation.answer {
                *output = Register.apply(&state, &operation.input).1;
            }
        }
        let expected = any_order(&history, Register.initial());
        let verdict = check(&Register, &history, MAX_VISITED);
        assert_eq!(
            verdict.is_linearizable(),
            expected,
            "seed {seed}: {verdict:?} {history:#?}"
        );
        if expected {
            good += 1;
        } else {
            bad += 1;
        }
    }
    assert!(good > 1_000 && bad > 1_000, "{good} good, {bad} bad");
}
