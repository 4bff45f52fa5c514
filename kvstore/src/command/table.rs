//! The table of all commands: a new command is a row here and a function that runs it.

use std::sync::LazyLock;

use super::{Command, Keys, Run};
use crate::{
    machine::operations::{self as op, Operation},
    server::{
        Wide,
        cluster::cluster,
        local::{self, LocalCommand},
    },
};

const fn keyed(
    name: &'static str,
    arity: isize,
    keys: Keys,
    operation: Operation,
    summary: &'static str,
) -> Command {
    Command {
        name,
        arity,
        keys,
        run: Run::Machine(operation),
        summary,
    }
}

const fn wide(name: &'static str, arity: isize, wide: Wide, summary: &'static str) -> Command {
    Command {
        name,
        arity,
        keys: Keys::NONE,
        run: Run::Wide(wide),
        summary,
    }
}

const fn here(name: &'static str, arity: isize, run: LocalCommand, summary: &'static str) -> Command {
    Command {
        name,
        arity,
        keys: Keys::NONE,
        run: Run::Local(run),
        summary,
    }
}

/// All commands.
pub const COMMANDS: &[Command] = &[
    keyed(
        "append",
        3,
        Keys::ONE,
        op::APPEND,
        "Appends to the value of a key",
    ),
    keyed(
        "cas",
        4,
        Keys::ONE,
        op::CAS,
        "Sets a key if it has an expected value: 1, else 0",
    ),
    keyed("decr", 2, Keys::ONE, op::DECR, "Subtracts one from an integer"),
    keyed("decrby", 3, Keys::ONE, op::DECRBY, "Subtracts from an integer"),
    keyed("del", -2, Keys::ALL, op::DEL, "Removes keys"),
    keyed("exists", -2, Keys::ALL, op::EXISTS, "Counts the keys that exist"),
    keyed("get", 2, Keys::ONE, op::GET, "Returns the value of a key"),
    keyed("incr", 2, Keys::ONE, op::INCR, "Adds one to an integer"),
    keyed("incrby", 3, Keys::ONE, op::INCRBY, "Adds to an integer"),
    keyed(
        "kv.rev",
        2,
        Keys::ONE,
        op::REVISION,
        "Returns the revision of a key, 0 if it is missing",
    ),
    keyed("mget", -2, Keys::ALL, op::MGET, "Returns the values of keys"),
    keyed("mset", -3, Keys::PAIRS, op::MSET, "Sets several keys at once"),
    keyed(
        "set",
        -3,
        Keys::ONE,
        op::SET,
        "Sets a key: NX if it is missing, XX if it exists, GET the old value",
    ),
    keyed(
        "setnx",
        3,
        Keys::ONE,
        op::SETNX,
        "Sets a key if it is missing: 1, else 0",
    ),
    keyed(
        "strlen",
        2,
        Keys::ONE,
        op::STRLEN,
        "Returns the length of a value",
    ),
    keyed("type", 2, Keys::ONE, op::TYPE, "Returns the type of a value"),
    keyed("unlink", -2, Keys::ALL, op::DEL, "Removes keys"),
    wide("dbsize", 1, Wide::DbSize, "Returns the number of keys"),
    wide("flushall", -1, Wide::Flush, "Removes all keys"),
    wide("flushdb", -1, Wide::Flush, "Removes all keys"),
    wide("info", -1, Wide::Info, "Returns facts about this node"),
    wide("keys", 2, Wide::Keys, "Returns the keys that match a pattern"),
    wide(
        "kv.leader",
        -1,
        Wide::Leader,
        "Tells who leads each group; TRANSFER makes another node lead",
    ),
    wide(
        "kv.member",
        -2,
        Wide::Member,
        "Lists and changes the members: LIST, ADD, PROMOTE, DEMOTE, REMOVE, REPLACE, UPDATE",
    ),
    wide(
        "kv.snapshot",
        -2,
        Wide::Snapshot,
        "Takes snapshots on this node: SAVE",
    ),
    wide(
        "kv.status",
        1,
        Wide::Status,
        "Returns the status of this node as JSON",
    ),
    wide("scan", -2, Wide::Scan, "Returns keys page by page"),
    here("auth", -2, local::auth, "Authenticates; no password is set"),
    here("client", -2, local::client, "Names and lists connections"),
    here("cluster", -2, cluster, "Tells which node leads which hash slots"),
    here("command", -1, local::command, "Describes commands"),
    here("config", -2, local::config, "Returns settings"),
    here("echo", 2, local::echo, "Returns its argument"),
    here("hello", -1, local::hello, "Chooses the protocol's version"),
    here("ping", -1, local::ping, "Answers"),
    here("quit", -1, local::quit, "Closes the connection"),
    here(
        "readonly",
        1,
        local::read_only,
        "Has this node answer reads, whoever leads; they are linearizable all the same",
    ),
    here("readwrite", 1, local::read_write, "Ends READONLY"),
    here("reset", 1, local::reset, "Resets the connection"),
    here("role", 1, local::role, "Returns the part of this node"),
    here("select", 2, local::select, "Selects database 0, the only one"),
    here(
        "shutdown",
        -1,
        local::shutdown,
        "Hands the groups over that the node leads, and stops it",
    ),
    here("time", 1, local::time, "Returns the time of this node"),
];

/// The longest name of a command, in bytes.
const MAX_NAME_BYTES: usize = 16;

/// Positions in [`COMMANDS`], sorted by the name as a number.
static BY_NAME: LazyLock<Vec<(u128, usize)>> = LazyLock::new(|| {
    let mut names: Vec<(u128, usize)> = COMMANDS
        .iter()
        .enumerate()
        .filter_map(|(index, command)| Some((as_number(command.name.as_bytes())?, index)))
        .collect();
    names.sort_unstable();
    names
});

/// A name in lower case as one number; `None` if it is longer than any command's.
fn as_number(name: &[u8]) -> Option<u128> {
    let mut padded = [0; MAX_NAME_BYTES];
    padded.get_mut(..name.len())?.copy_from_slice(name);
    padded.make_ascii_lowercase();
    Some(u128::from_be_bytes(padded))
}

/// The position in [`COMMANDS`] of the command with this name, in any case.
pub fn find(name: &[u8]) -> Option<usize> {
    let number = as_number(name)?;
    let at = BY_NAME.binary_search_by_key(&number, |(name, _)| *name).ok()?;
    Some(BY_NAME[at].1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_command_is_found_by_its_name_in_any_case() {
        for (index, command) in COMMANDS.iter().enumerate() {
            assert_eq!(find(command.name.as_bytes()), Some(index));
            assert_eq!(find(command.name.to_uppercase().as_bytes()), Some(index));
        }
        let names: BTreeSet<_> = COMMANDS.iter().map(|command| command.name).collect();
        assert_eq!(names.len(), COMMANDS.len());
        for name in ["", "ge", "gett", "a name that is much too long"] {
            assert_eq!(find(name.as_bytes()), None);
        }
    }
}
