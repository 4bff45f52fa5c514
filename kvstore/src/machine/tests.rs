//! The commands as a client sees them, and the machine as the engine sees it.

use bytes::Bytes;
use paxos::{Ballot, ProposalId};
use proptest::prelude::*;

use super::{
    operations::{self as op, Operation},
    *,
};

impl Machine {
    /// Applies one command in a slot of its own.
    fn apply_one(&mut self, payload: Bytes) -> String {
        self.try_apply_one(payload).unwrap()
    }

    fn try_apply_one(&mut self, payload: Bytes) -> Result<String, MachineError> {
        let slot = self.applied.next();
        let command = ApplyCommand {
            slot,
            ballot: Ballot::ZERO,
            id: ProposalId::default(),
            payload,
        };
        let mut replies = Vec::new();
        let chosen = Chosen {
            upto: slot,
            commands: &[command],
        };
        self.apply(chosen, &mut replies)?;
        assert_eq!(replies.len(), 1);
        Ok(String::from_utf8_lossy(&replies[0]).into_owned())
    }

    fn run(&mut self, operation: Operation, args: &[&str]) -> String {
        let mut payload = BytesMut::new();
        codec::encode(
            &mut payload,
            operation.code,
            args.iter().map(|arg| arg.as_bytes()),
        );
        match operation.action {
            Action::Write(_) => self.apply_one(payload.freeze()),
            Action::Read(_) => String::from_utf8_lossy(&self.query(payload.freeze())).into_owned(),
        }
    }
}

/// With so many keys their memory is fetched ahead, for the commands of a run together.
#[test]
fn among_many_keys_a_long_run_does_what_its_commands_do_one_by_one() {
    let encoded = |operation: Operation, args: &[&str]| {
        let mut payload = BytesMut::new();
        let args = args.iter().map(|arg| arg.as_bytes());
        codec::encode(&mut payload, operation.code, args);
        payload.freeze()
    };
    let mut payloads = vec![Bytes::from_static(b"garbage"), encoded(op::MSET, &[])];
    for turn in 0..200 {
        let (key, tagged) = (format!("key{}", turn * 7), format!("{{tag}}{}", turn % 30));
        payloads.push(encoded(op::SET, &[&key, &tagged]));
        payloads.push(encoded(op::APPEND, &[&tagged, &key]));
        payloads.push(encoded(op::DEL, &[&format!("key{}", turn * 3), "missing", ""]));
    }
    let (mut one_by_one, mut at_once) = (Machine::default(), Machine::default());
    for machine in [&mut one_by_one, &mut at_once] {
        for key in 0..6_000 {
            machine.run(op::SET, &[&format!("key{key}"), "value"]);
        }
    }
    let commands: Vec<_> = (one_by_one.applied.0 + 1..)
        .zip(&payloads)
        .map(|(slot, payload)| ApplyCommand {
            slot: Slot(slot),
            ballot: Ballot::ZERO,
            id: ProposalId::default(),
            payload: payload.clone(),
        })
        .collect();
    let expected: Vec<_> = payloads
        .into_iter()
        .map(|payload| one_by_one.apply_one(payload))
        .collect();
    let chosen = Chosen {
        upto: one_by_one.applied,
        commands: &commands,
    };
    let mut replies = Vec::new();
    at_once.apply(chosen, &mut replies).unwrap();
    assert_eq!(replies, expected);
    assert_eq!(at_once.digest(), one_by_one.digest());
}

#[test]
fn the_machine_keeps_the_contract_of_state_machines() {
    let encoded = |operation: Operation, args: &[&str]| {
        let mut payload = BytesMut::new();
        codec::encode(
            &mut payload,
            operation.code,
            args.iter().map(|arg| arg.as_bytes()),
        );
        payload.freeze()
    };
    let mut commands = Vec::new();
    for turn in 0..12 {
        let (key, value) = (format!("key{}", turn % 5), format!("value{turn}"));
        commands.push(encoded(op::SET, &[&key, &value]));
        commands.push(encoded(op::MSET, &["a", &value, &key, "b"]));
        commands.push(encoded(op::INCR, &["n"]));
        commands.push(encoded(op::INCR, &[&key]));
        commands.push(encoded(op::APPEND, &[&key, "suffix"]));
        commands.push(encoded(op::CAS, &["a", &value, "swapped"]));
        commands.push(encoded(op::DEL, &["key3", "a"]));
        commands.push(encoded(op::ANNOUNCE, &[&turn.to_string(), &value, "http"]));
        if turn == 6 {
            commands.push(encoded(op::FLUSH, &[]));
        }
    }
    let mut queries = vec![
        encoded(op::SCAN, &["0", "16384", "COUNT", "100"]),
        encoded(op::NODES, &[]),
        encoded(op::SIZES, &[]),
    ];
    for key in ["a", "n", "key0", "key1", "key2", "key3", "key4"] {
        queries.push(encoded(op::GET, &[key]));
        queries.push(encoded(op::REVISION, &[key]));
    }
    paxos::testing::state_machine::check(Machine::default, &commands, &queries).unwrap();
}

/// Runs a script of operations and checks each reply.
fn script(steps: &[(Operation, &[&str], &str)]) -> Machine {
    let mut machine = Machine::default();
    for (operation, args, expected) in steps {
        assert_eq!(machine.run(*operation, args), *expected, "{args:?}");
    }
    machine
}

#[test]
fn set_and_its_options() {
    script(&[
        (op::GET, &["a"], "_\r\n"),
        (op::SET, &["a", "1"], "+OK\r\n"),
        (op::GET, &["a"], "$1\r\n1\r\n"),
        (op::SET, &["a", "2", "NX"], "_\r\n"),
        (op::SET, &["b", "2", "xx"], "_\r\n"),
        (op::SET, &["a", "2", "XX"], "+OK\r\n"),
        (op::SET, &["a", "3", "GET"], "$1\r\n2\r\n"),
        (op::SET, &["a", "4", "NX", "GET"], "$1\r\n3\r\n"),
        (op::SET, &["n", "4", "GET", "NX"], "_\r\n"),
        (op::MGET, &["a", "n", "b"], "*3\r\n$1\r\n3\r\n$1\r\n4\r\n_\r\n"),
        (op::SET, &["a", "5", "NX", "XX"], "-ERR syntax error\r\n"),
        (op::SET, &["a", "5", "what"], "-ERR syntax error\r\n"),
        (
            op::SET,
            &["a", "5", "EX", "1"],
            "-ERR keys that expire are not supported by this version\r\n",
        ),
        (op::GET, &["a"], "$1\r\n3\r\n"),
        (op::SETNX, &["a", "6"], ":0\r\n"),
        (op::SETNX, &["c", "6"], ":1\r\n"),
    ]);
}

#[test]
fn counters() {
    let not_an_integer = "-ERR value is not an integer or out of range\r\n";
    let overflow = "-ERR increment or decrement would overflow\r\n";
    script(&[
        (op::INCR, &["n"], ":1\r\n"),
        (op::DECR, &["n"], ":0\r\n"),
        (op::DECR, &["n"], ":-1\r\n"),
        (op::INCRBY, &["n", "11"], ":10\r\n"),
        (op::DECRBY, &["n", "-5"], ":15\r\n"),
        (op::INCRBY, &["n", "x"], not_an_integer),
        (op::SET, &["n", "9223372036854775807"], "+OK\r\n"),
        (op::INCR, &["n"], overflow),
        (
            op::DECRBY,
            &["n", "-9223372036854775808"],
            "-ERR decrement would overflow\r\n",
        ),
        (op::SET, &["n", "-9223372036854775808"], "+OK\r\n"),
        (op::DECR, &["n"], overflow),
        (op::SET, &["n", "01"], "+OK\r\n"),
        (op::INCR, &["n"], not_an_integer),
        (op::GET, &["n"], "$2\r\n01\r\n"),
    ]);
}

#[test]
fn several_keys_at_once() {
    script(&[
        (op::MSET, &["a", "1", "b", "2", "a", "3"], "+OK\r\n"),
        (
            op::MSET,
            &["a", "9", "b"],
            "-ERR wrong number of arguments for 'mset' command\r\n",
        ),
        (op::MGET, &["a", "b"], "*2\r\n$1\r\n3\r\n$1\r\n2\r\n"),
        (op::EXISTS, &["a", "a", "c"], ":2\r\n"),
        (op::DBSIZE, &[], ":2\r\n"),
        (op::DEL, &["a", "a", "c"], ":1\r\n"),
        (op::FLUSH, &[], "+OK\r\n"),
        (op::DBSIZE, &[], ":0\r\n"),
    ]);
}

#[test]
fn append_length_and_type() {
    script(&[
        (op::APPEND, &["a", "hello "], ":6\r\n"),
        (op::APPEND, &["a", "world"], ":11\r\n"),
        (op::APPEND, &["a", ""], ":11\r\n"),
        (op::STRLEN, &["a"], ":11\r\n"),
        (op::STRLEN, &["b"], ":0\r\n"),
        (op::TYPE, &["a"], "+string\r\n"),
        (op::TYPE, &["b"], "+none\r\n"),
        (op::GET, &["a"], "$11\r\nhello world\r\n"),
    ]);
}

#[test]
fn compare_and_set() {
    script(&[
        (op::CAS, &["a", "", "1"], ":0\r\n"),
        (op::SET, &["a", "1"], "+OK\r\n"),
        (op::CAS, &["a", "2", "3"], ":0\r\n"),
        (op::CAS, &["a", "1", "3"], ":1\r\n"),
        (op::GET, &["a"], "$1\r\n3\r\n"),
    ]);
}

#[test]
fn a_revision_counts_the_commands_of_the_log() {
    script(&[
        (op::REVISION, &["a"], ":0\r\n"),
        (op::SET, &["a", "1"], "+OK\r\n"),
        (op::SET, &["b", "1"], "+OK\r\n"),
        (op::SET, &["a", "1", "NX"], "_\r\n"),
        (op::REVISION, &["a"], ":1\r\n"),
        (op::REVISION, &["b"], ":2\r\n"),
        (op::DEL, &["a"], ":1\r\n"),
        (op::REVISION, &["a"], ":0\r\n"),
        (op::SET, &["a", "1"], "+OK\r\n"),
        (op::REVISION, &["a"], ":5\r\n"),
        (op::FLUSH, &[], "+OK\r\n"),
        (op::SET, &["a", "1"], "+OK\r\n"),
        (op::REVISION, &["a"], ":7\r\n"),
    ]);
}

#[test]
fn what_a_newer_version_wrote_halts_the_machine() {
    for payload in [&[2, 1][..], &[codec::FORMAT, 250]] {
        let mut machine = Machine::default();
        let error = machine.try_apply_one(Bytes::copy_from_slice(payload));
        assert!(error.unwrap_err().to_string().contains("older version"));
        assert_eq!(machine.applied(), Slot::ZERO);
        assert_eq!(machine.state().space.revision, 0);
        assert!(
            machine
                .query(Bytes::copy_from_slice(payload))
                .starts_with(b"-ERR ")
        );
    }
}

#[test]
fn garbage_is_answered_with_an_error() {
    let mut machine = Machine::default();
    for payload in [
        &b""[..],
        &[99, 1],
        &[codec::FORMAT, 1, 5, b'a'],
        &[codec::FORMAT, 1],
    ] {
        let reply = machine.apply_one(Bytes::copy_from_slice(payload));
        assert!(reply.starts_with("-ERR "), "{reply}");
        let reply = machine.query(Bytes::copy_from_slice(payload));
        assert!(reply.starts_with(b"-ERR "));
    }
    assert_eq!(machine.applied(), Slot(4));
    let mut write = BytesMut::new();
    codec::encode(&mut write, op::SET.code, [&b"a"[..], b"1"]);
    assert!(
        machine
            .query(write.freeze())
            .starts_with(b"-ERR this operation writes")
    );
    assert_eq!(machine.run(op::GET, &["a"]), "_\r\n");
}

/// All keys that a walk with pages of `count` finds, while `between` changes the state after each page.
fn walk(machine: &mut Machine, count: &str, mut between: impl FnMut(&mut Machine)) -> Vec<String> {
    let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
    let end = Cursor::at(16384).number().to_string();
    while cursor != end {
        let reply = machine.run(op::SCAN, &[&cursor, "16384", "COUNT", count]);
        let mut lines = reply.split("\r\n").skip(1);
        cursor = lines.next().unwrap()[1..].to_owned();
        found.extend(
            lines
                .skip(2)
                .step_by(2)
                .map(str::to_owned)
                .filter(|key| !key.is_empty()),
        );
        between(machine);
    }
    found.sort();
    found
}

#[test]
fn a_scan_returns_each_key_that_stays_exactly_once() {
    let mut machine = Machine::default();
    let mut staying = Vec::new();
    for index in 0..500 {
        machine.run(op::SET, &[&format!("stay{index}"), "x"]);
        machine.run(op::SET, &[&format!("go{index}"), "x"]);
        staying.push(format!("stay{index}"));
    }
    staying.sort();
    let mut turn = 0;
    let mut found = walk(&mut machine, "7", |machine| {
        machine.run(op::DEL, &[&format!("go{turn}")]);
        machine.run(op::SET, &[&format!("come{turn}"), "x"]);
        turn += 1;
    });
    assert!(turn > 10);
    found.retain(|key| key.starts_with("stay"));
    assert_eq!(found, staying);
}

#[test]
fn a_page_of_a_scan_is_short_whatever_the_client_says() {
    let mut machine = Machine::default();
    for index in 0..5_000 {
        machine.run(op::SET, &[&format!("key{index}"), "x"]);
    }
    let mut pages = 0;
    let found = walk(&mut machine, "1000000000", |_| pages += 1);
    assert_eq!((found.len(), pages), (5_000, 2));
}

#[test]
fn a_scan_filters_and_stays_in_its_slots() {
    let mut machine = Machine::default();
    machine.run(op::SET, &["a", "x"]); // hash slot 15495
    machine.run(op::SET, &["foo", "x"]); // hash slot 12182
    for (args, next, keys) in [
        (&["0", "16384", "COUNT", "100"][..], 16384, &["foo", "a"][..]),
        (&["0", "16384", "COUNT", "1"], 15495, &["foo"]),
        (&["0", "15000"], 15000, &["foo"]),
        (&["0", "16384", "MATCH", "f*"], 16384, &["foo"]),
        (&["0", "16384", "TYPE", "list"], 16384, &[]),
    ] {
        let mut expected = BytesMut::new();
        write::array(&mut expected, 2);
        write::count(&mut expected, Cursor::at(next).number());
        write::array(&mut expected, keys.len());
        for key in keys {
            write::bulk(&mut expected, key.as_bytes());
        }
        assert_eq!(machine.run(op::SCAN, args), expected, "{args:?}");
    }
    let behind = (Cursor::at(16384).number() + 1).to_string();
    for (args, expected) in [
        (&[&behind, "16384"][..], "-ERR invalid cursor\r\n"),
        (&["-1", "16384"], "-ERR invalid cursor\r\n"),
        (&["0", "16385"], "-ERR invalid cursor\r\n"),
        (&["0", "16384", "COUNT", "0"], "-ERR syntax error\r\n"),
        (&["0", "16384", "COUNT"], "-ERR syntax error\r\n"),
    ] {
        assert_eq!(machine.run(op::SCAN, args), expected, "{args:?}");
    }
}

/// However many keys one tag keeps together: a page is as short as asked, and clients that know floating-point numbers
/// only can hold its cursor.
#[test]
fn the_keys_of_one_hash_slot_are_walked_over_in_short_pages() {
    let mut machine = Machine::default();
    let mut keys: Vec<String> = (0..300).map(|index| format!("{{tag}}{index}")).collect();
    for key in &keys {
        machine.run(op::SET, &[key, "x"]);
    }
    let mut pages = 0;
    assert_eq!(walk(&mut machine, "10", |_| pages += 1), {
        keys.sort();
        keys
    });
    assert_eq!(pages, 30);
    assert!(Cursor::at(16384).number() <= 1 << 53);
}

#[test]
fn a_page_ends_when_its_keys_have_many_bytes() {
    let mut machine = Machine::default();
    for index in 0..40 {
        let key = format!("{{tag}}{index}{}", "x".repeat(100 << 10));
        machine.run(op::SET, &[&key, "x"]);
    }
    let mut pages = 0;
    assert_eq!(walk(&mut machine, "1000", |_| pages += 1).len(), 40);
    assert_eq!(pages, 4);
}

fn saved(machine: &Machine) -> Vec<u8> {
    let mut bytes = Vec::new();
    machine.snapshot().unwrap().write_to(&mut bytes).unwrap();
    bytes
}

fn some_state() -> Machine {
    script(&[
        (op::SET, &["a", "1"], "+OK\r\n"),
        (op::MSET, &["b", "2", "c", ""], "+OK\r\n"),
        (op::DEL, &["b"], ":1\r\n"),
        (
            op::ANNOUNCE,
            &["2", "127.0.0.1:7002", "127.0.0.1:7202"],
            "+OK\r\n",
        ),
    ])
}

#[test]
fn values_and_replies_are_bounded() {
    let mut machine = Machine::default();
    let large = "x".repeat(16 << 20);
    assert_eq!(machine.run(op::SET, &["a", &large]), "+OK\r\n");
    assert_eq!(
        machine.run(op::APPEND, &["a", "x"]),
        "-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n"
    );
    assert_eq!(machine.run(op::STRLEN, &["a"]), ":16777216\r\n");
    assert!(machine.run(op::MGET, &["a"; 4]).starts_with("*4\r\n"));
    assert!(
        machine
            .run(op::MGET, &["a"; 5])
            .starts_with("-ERR the values have")
    );
}

#[test]
fn a_snapshot_is_the_state_when_it_was_taken() {
    let mut machine = some_state();
    let digest = machine.digest();
    let source = machine.snapshot().unwrap();
    machine.run(op::SET, &["a", "later"]);
    assert_ne!(machine.digest(), digest);
    let mut bytes = Vec::new();
    source.write_to(&mut bytes).unwrap();

    let mut restored = Machine::default();
    restored.run(op::SET, &["gone", "x"]);
    restored.restore(Slot(4), &mut &bytes[..]).unwrap();
    assert_eq!(restored.digest(), digest);
    assert_eq!(restored.applied(), Slot(4));
    assert_eq!(restored.run(op::REVISION, &["c"]), ":2\r\n");
    assert_eq!(restored.run(op::NODES, &[]), machine.run(op::NODES, &[]));
    restored.run(op::SET, &["a", "later"]);
    assert_eq!(restored.digest(), machine.digest());
}

#[test]
fn a_damaged_snapshot_is_refused_and_changes_nothing() {
    let bytes = saved(&some_state());
    let mut machine = script(&[(op::SET, &["x", "y"], "+OK\r\n")]);
    let digest = machine.digest();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        assert!(machine.restore(Slot(9), &mut &flipped[..]).is_err(), "byte {at}");
        assert!(
            machine.restore(Slot(9), &mut &bytes[..at]).is_err(),
            "cut at {at}"
        );
    }
    assert!(
        machine
            .restore(Slot(9), &mut &[&bytes[..], b"x"].concat()[..])
            .is_err()
    );
    assert_eq!((machine.digest(), machine.applied()), (digest, Slot(1)));
}

proptest! {
    #[test]
    fn replicas_that_apply_the_same_agree_however_the_runs_are_cut(
        commands in prop::collection::vec((0_usize..6, "[abc]", "[0-9x]{0,3}"), 1..40), cut in 0_usize..40,
    ) {
        let operations = [op::SET, op::INCR, op::APPEND, op::DEL, op::CAS, op::FLUSH];
        let commands: Vec<ApplyCommand> = commands.iter().enumerate().map(|(index, (operation, key, value))| {
            let mut payload = BytesMut::new();
            let args = [key, value, value];
            codec::encode(&mut payload, operations[*operation].code, args.iter().map(|arg| arg.as_bytes()));
            let slot = Slot(index as u64 + 1);
            ApplyCommand { slot, ballot: Ballot::ZERO, id: ProposalId::default(), payload: payload.freeze() }
        }).collect();
        let upto = Slot(commands.len() as u64);
        let (mut whole, mut pieces) = (Machine::default(), Machine::default());
        let (mut replies, mut others) = (Vec::new(), Vec::new());
        whole.apply(Chosen { upto, commands: &commands }, &mut replies).unwrap();
        let (first, second) = commands.split_at(cut.min(commands.len()));
        pieces.apply(Chosen { upto: Slot(first.len() as u64), commands: first }, &mut others).unwrap();
        let mut restored = Machine::default();
        restored.restore(pieces.applied(), &mut &saved(&pieces)[..]).unwrap();
        restored.apply(Chosen { upto, commands: second }, &mut others).unwrap();
        prop_assert_eq!(replies, others);
        prop_assert_eq!(whole.digest(), restored.digest());
    }

    #[test]
    fn any_operation_on_any_arguments_is_answered(code: u8, args in prop::collection::vec("[0-9a-zA-Z*]{0,6}", 0..5)) {
        let mut payload = BytesMut::new();
        codec::encode(&mut payload, code, args.iter().map(String::as_bytes));
        let mut machine = some_state();
        prop_assert!(!machine.query(payload.clone().freeze()).is_empty());
        let known = operations::action(code).is_some();
        prop_assert_eq!(machine.try_apply_one(payload.freeze()).is_ok_and(|reply| !reply.is_empty()), known);
    }
}
