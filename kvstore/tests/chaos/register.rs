//! What one key should do, one command at a time.

use kvstore::resp::Value as Reply;
use paxos::testing::linearizability::Model;

/// The values that clients write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Value {
    /// Decimal digits: can be incremented.
    Number(i64),
    /// `v` and a number: cannot.
    Text(u64),
}

impl Value {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix('v') {
            Some(digits) => digits.parse().ok().map(Self::Text),
            None => text.parse().ok().map(Self::Number),
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(formatter, "{number}"),
            Self::Text(number) => write!(formatter, "v{number}"),
        }
    }
}

/// What clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    Get,
    Set(Value),
    Del,
    Incr,
    Cas(Value, Value),
}

impl Input {
    pub(crate) fn arguments(self, key: &str) -> Vec<String> {
        let with = |command: &str, values: &[Value]| {
            let values = values.iter().map(Value::to_string);
            [command.to_owned(), key.to_owned()]
                .into_iter()
                .chain(values)
                .collect()
        };
        match self {
            Self::Get => with("GET", &[]),
            Self::Set(value) => with("SET", &[value]),
            Self::Del => with("DEL", &[]),
            Self::Incr => with("INCR", &[]),
            Self::Cas(old, new) => with("CAS", &[old, new]),
        }
    }
}

/// What they are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Value(Option<Value>),
    Integer(i64),
    Done,
    NotANumber,
}

impl Output {
    /// The reply as an answer; `None` for what is none, such as an error of the cluster.
    pub(crate) fn parse(reply: &Reply) -> Option<Self> {
        match reply {
            Reply::Null => Some(Self::Value(None)),
            Reply::Bulk(bytes) => {
                let value = Value::parse(std::str::from_utf8(bytes).ok()?)?;
                Some(Self::Value(Some(value)))
            }
            Reply::Integer(number) => Some(Self::Integer(*number)),
            Reply::Simple(text) if text == "OK" => Some(Self::Done),
            Reply::Error(text) if text == "ERR value is not an integer or out of range" => {
                Some(Self::NotANumber)
            }
            _ => None,
        }
    }
}

/// One key of the store.
#[derive(Debug)]
pub(crate) struct Register;

impl Model for Register {
    type State = Option<Value>;
    type Input = Input;
    type Output = Output;

    fn initial(&self) -> Option<Value> {
        None
    }

    fn apply(&self, state: &Option<Value>, input: &Input) -> (Option<Value>, Output) {
        match *input {
            Input::Get => (*state, Output::Value(*state)),
            Input::Set(value) => (Some(value), Output::Done),
            Input::Del => (None, Output::Integer(i64::from(state.is_some()))),
            Input::Incr => match state.unwrap_or(Value::Number(0)) {
                Value::Number(number) => {
                    let sum = number + 1;
                    (Some(Value::Number(sum)), Output::Integer(sum))
                }
                Value::Text(_) => (*state, Output::NotANumber),
            },
            Input::Cas(old, new) if *state == Some(old) => (Some(new), Output::Integer(1)),
            Input::Cas(..) => (*state, Output::Integer(0)),
        }
    }

    fn changes_nothing(&self, input: &Input, output: &Output) -> bool {
        match input {
            Input::Get => true,
            Input::Del | Input::Cas(..) => *output == Output::Integer(0),
            Input::Incr => *output == Output::NotANumber,
            Input::Set(_) => false,
        }
    }
}
