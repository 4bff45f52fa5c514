//! The commands that clients may send, and their form on the log.

pub mod codec;
pub mod table;

use crate::{
    machine::operations::{Action, Operation},
    resp::Args,
    server::{Wide, local::LocalCommand},
};

/// Where the keys are among a command's arguments: the first and last position and the step from one to the next. A
/// negative last position counts from the end; all zeros say that there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// The first key's position; the command's name is at 0.
    pub first: usize,
    /// The last key's position; -1 is the last argument.
    pub last: isize,
    /// From one key to the next.
    pub step: usize,
}

impl Keys {
    /// No keys.
    pub const NONE: Self = Self {
        first: 0,
        last: 0,
        step: 0,
    };
    /// One key, the first argument.
    pub const ONE: Self = Self {
        first: 1,
        last: 1,
        step: 1,
    };
    /// All arguments are keys.
    pub const ALL: Self = Self {
        first: 1,
        last: -1,
        step: 1,
    };
    /// Keys and values by turns.
    pub const PAIRS: Self = Self {
        first: 1,
        last: -1,
        step: 2,
    };

    /// The keys among `args`.
    pub fn of(self, args: Args<'_>) -> impl Iterator<Item = &[u8]> + use<'_> {
        let len = args.len();
        let last = if self.last < 0 {
            len.saturating_sub(self.last.unsigned_abs())
        } else {
            self.last.unsigned_abs()
        };
        let end = if self.step == 0 {
            self.first
        } else {
            (last + 1).min(len)
        };
        (self.first..end)
            .step_by(self.step.max(1))
            .map(move |at| args.get(at))
    }
}

/// What carries a command out.
#[derive(Clone, Copy, Debug)]
pub enum Run {
    /// One group's state machine: proposed if it writes, else read linearizably.
    Machine(Operation),
    /// The server, asking several groups.
    Wide(Wide),
    /// The connection alone.
    Local(LocalCommand),
}

/// One command.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Its name, in lower case.
    pub name: &'static str,
    /// How many arguments it takes, the name included; negative: at least that many.
    pub arity: isize,
    /// Where the keys are.
    pub keys: Keys,
    /// What carries it out.
    pub run: Run,
    /// One line for `COMMAND DOCS`.
    pub summary: &'static str,
}

impl Command {
    /// Whether it takes this many arguments, the name included.
    pub fn takes(&self, args: usize) -> bool {
        if self.arity < 0 {
            args >= self.arity.unsigned_abs()
        } else {
            args == self.arity.unsigned_abs()
        }
    }

    /// Redis' flags of the command.
    pub fn flags(&self) -> &'static [&'static str] {
        match self.run {
            Run::Machine(Operation {
                action: Action::Write(_),
                ..
            })
            | Run::Wide(Wide::Flush) => &["write", "denyoom"],
            Run::Machine(_) | Run::Wide(Wide::DbSize | Wide::Keys | Wide::Scan) => &["readonly"],
            Run::Wide(_) => &["admin"],
            Run::Local(_) => &["loading", "stale", "fast"],
        }
    }

    /// Redis' group of the command, for its documentation.
    pub fn documentation_group(&self) -> &'static str {
        match self.run {
            Run::Machine(_) => "string",
            Run::Wide(_) => "server",
            Run::Local(_) => "connection",
        }
    }
}
