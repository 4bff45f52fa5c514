use std::{
    io::{self, Write},
    string::ToString,
    vec,
};

use super::{snapshot::CHUNK_BYTES, *};
use crate::{
    testing::state_machine::check,
    types::{Ballot, ProposalId},
};

/// Joins what it is told. On a disk, if it is told so: then it survives with what it has.
#[derive(Clone, Debug, Default)]
struct Text {
    applied: Slot,
    on_disk: bool,
    said: String,
    runs: usize,
}

impl Text {
    fn on_disk(applied: u64, text: &str) -> Self {
        Self {
            applied: Slot(applied),
            on_disk: true,
            said: text.into(),
            runs: 0,
        }
    }
}

impl StateMachine for Text {
    fn applied(&self) -> Slot {
        self.applied
    }

    fn durable(&self) -> Slot {
        if self.on_disk { self.applied } else { Slot::ZERO }
    }

    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        self.runs += usize::from(!chosen.commands.is_empty());
        for command in chosen.commands {
            if &command.payload[..] == b"fail" {
                return Err(MachineError::new("asked to"));
            }
            self.said.push_str(&String::from_utf8_lossy(&command.payload));
            replies.push(self.said.clone().into());
        }
        self.applied = chosen.upto;
        Ok(())
    }

    fn query(&self, _: Bytes) -> Bytes {
        format!("{} in {} runs", self.said, self.runs).into()
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Ok(Box::new(self.clone()))
    }

    fn restore(&mut self, upto: Slot, from: &mut dyn Read) -> Result<(), MachineError> {
        self.said.clear();
        // Leaves the last line to others.
        let mut text = String::new();
        from.read_to_string(&mut text)
            .map_err(|error| MachineError(error.to_string()))?;
        self.said = text.trim_end().into();
        self.applied = upto;
        Ok(())
    }
}

impl SnapshotSource for Text {
    fn write_to(self: Box<Self>, to: &mut dyn Write) -> io::Result<()> {
        writeln!(to, "{}", self.said)
    }
}

const A: MachineId = MachineId(1);
const B: MachineId = MachineId(300);
const GONE: MachineId = MachineId(7);

fn router() -> Router {
    Router::new()
        .machine(A, Text::default())
        .machine(B, Text::default())
}

fn command(machine: MachineId, payload: &str) -> Bytes {
    let mut command = Vec::new();
    varint::put(machine.0.into(), &mut command);
    command.extend_from_slice(payload.as_bytes());
    command.into()
}

/// Each command in a slot of its own, all in one run.
fn run(router: &mut Router, commands: &[(MachineId, &str)]) -> Result<Vec<Bytes>, MachineError> {
    let first = router.applied.next();
    let commands: Vec<ApplyCommand> = (first.0..)
        .zip(commands)
        .map(|(slot, (machine, payload))| ApplyCommand {
            slot: Slot(slot),
            ballot: Ballot::ZERO,
            id: ProposalId::default(),
            payload: command(*machine, payload),
        })
        .collect();
    let mut replies = vec![Bytes::new()];
    let chosen = Chosen {
        upto: commands.last().map_or(first, |last| last.slot),
        commands: &commands,
    };
    router.apply(chosen, &mut replies)?;
    replies.remove(0);
    Ok(replies)
}

fn ask(router: &Router, machine: MachineId) -> String {
    let routes = router.routes();
    let answer = routes.reply(&router.query(command(machine, ""))).unwrap();
    String::from_utf8_lossy(&answer).into()
}

fn snapshot(router: &Router) -> Vec<u8> {
    let mut bytes = Vec::new();
    router.snapshot().unwrap().write_to(&mut bytes).unwrap();
    bytes
}

#[test]
fn each_machine_gets_its_commands_as_one_run_and_each_command_its_reply() {
    let mut router = router();
    let routes = router.routes();
    let replies = run(&mut router, &[(A, "a"), (B, "x"), (A, "b"), (B, "y")]).unwrap();
    let replies: Vec<_> = replies.iter().map(|reply| routes.reply(reply).unwrap()).collect();
    assert_eq!(replies, ["a", "x", "ab", "xy"]);
    assert_eq!(ask(&router, A), "ab in 1 runs");
    assert_eq!(ask(&router, B), "xy in 1 runs");
}

#[test]
fn a_command_for_an_unknown_machine_is_skipped_with_an_answer_and_an_alarm() {
    let mut router = router();
    let routes = router.routes();
    assert!(matches!(
        routes.command(GONE, b"a"),
        Err(RouterError::UnknownMachine(GONE, known)) if known == "1, 300"
    ));
    let replies = run(&mut router, &[(A, "a"), (GONE, "b"), (A, "c")]).unwrap();
    assert_eq!(routes.reply(&replies[2]).unwrap(), "ac");
    assert!(matches!(
        routes.reply(&replies[1]),
        Err(RouterError::UnknownMachine(GONE, _))
    ));
    assert_eq!(routes.skipped(), 1);
    let answer = router.query(command(GONE, ""));
    assert!(matches!(
        routes.reply(&answer),
        Err(RouterError::UnknownMachine(GONE, _))
    ));
}

#[test]
fn an_error_of_one_machine_is_one_of_all_and_says_whose() {
    let error = run(&mut router(), &[(A, "a"), (B, "fail")]).unwrap_err();
    assert_eq!(error.0, "machine 300: asked to");
}

#[test]
fn a_router_conforms() {
    let commands: Vec<Bytes> = (0..60)
        .map(|number| command([A, B, GONE][number % 3], &number.to_string()))
        .collect();
    // Runs differ, so the query must not tell of them.
    let new = || {
        let typed = crate::typed::Typed::new(Sum::default());
        router().machine(GONE, typed)
    };
    let queries = [command(GONE, "\u{0}")];
    check(new, &commands, &queries).unwrap();
    check(Router::new, &commands, &queries).unwrap();
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Sum(u64);

impl crate::typed::TypedStateMachine for Sum {
    type Command = u8;
    type Reply = u64;
    type Query = u8;
    type Answer = u64;

    fn apply(&mut self, add: u8) -> u64 {
        self.0 += u64::from(add);
        self.0
    }

    fn query(&self, _: u8) -> u64 {
        self.0
    }
}

#[test]
fn a_snapshot_of_other_machines_is_refused_unless_they_were_added_or_retired() {
    let mut origin = router();
    run(&mut origin, &[(A, "a"), (B, "x")]).unwrap();
    let bytes = snapshot(&origin);
    let a = || Router::new().machine(A, Text::default());

    let refused = |mut router: Router, bytes: &[u8]| router.restore(Slot(2), &mut &bytes[..]).unwrap_err().0;
    assert!(refused(a(), &bytes).contains("holds machine 300"));
    assert!(refused(router().machine(GONE, Text::default()), &bytes).contains("lacks machine 7"));
    assert!(refused(router(), b"another snapshot").contains("not one of a router"));
    for cut in 0..bytes.len() {
        refused(router(), &bytes[..cut]);
    }

    let mut upgraded = router().added_machine(GONE, Text::default());
    run(&mut upgraded, &[(GONE, "skipped elsewhere")]).unwrap();
    upgraded.restore(Slot(2), &mut &bytes[..]).unwrap();
    assert_eq!(ask(&upgraded, B), "x in 0 runs");
    assert_eq!(
        ask(&upgraded, GONE),
        " in 1 runs",
        "as if it had never been told anything"
    );
    assert_eq!(run(&mut upgraded, &[(GONE, "new")]).unwrap()[0], "\0new");

    let mut without = a().retired(B);
    without.restore(Slot(2), &mut &bytes[..]).unwrap();
    assert_eq!(run(&mut without, &[(A, "b")]).unwrap()[0], "\0ab");
}

#[test]
fn parts_larger_than_a_chunk_come_back() {
    let mut origin = router();
    let long = "long ".repeat(CHUNK_BYTES);
    run(&mut origin, &[(A, &long), (B, "x")]).unwrap();
    let mut copy = router();
    copy.restore(Slot(2), &mut &snapshot(&origin)[..]).unwrap();
    assert_eq!(ask(&copy, A), format!("{} in 0 runs", long.trim_end()));
    assert_eq!(ask(&copy, B), "x in 0 runs");
}

#[test]
fn a_machine_on_disk_is_not_given_again_what_it_holds() {
    let mut router = Router::new()
        .machine(A, Text::on_disk(2, "ab"))
        .machine(B, Text::default());
    assert_eq!((router.applied(), router.durable()), (Slot::ZERO, Slot::ZERO));
    run(&mut router, &[(A, "a"), (A, "b"), (A, "c"), (B, "x")]).unwrap();
    assert_eq!(ask(&router, A), "abc in 1 runs");
    assert_eq!(ask(&router, B), "x in 1 runs");
}

#[test]
fn there_is_no_snapshot_while_a_machine_on_disk_is_ahead_of_the_others() {
    let mut router = Router::new()
        .machine(A, Text::on_disk(3, "abc"))
        .machine(B, Text::default());
    run(&mut router, &[(A, "a"), (B, "x")]).unwrap();
    assert_eq!((router.applied(), router.reaches()), (Slot(2), Slot(3)));
    let refused = router.snapshot().map(drop).unwrap_err().0;
    assert!(refused.contains("up to 3"), "{refused}");

    run(&mut router, &[(A, "c")]).unwrap();
    assert_eq!(router.reaches(), router.applied());
    let mut copy = Router::new()
        .machine(A, Text::on_disk(0, ""))
        .machine(B, Text::default());
    copy.restore(Slot(3), &mut &snapshot(&router)[..]).unwrap();
    assert_eq!(run(&mut copy, &[(A, "d")]).unwrap()[0], "\0abcd");
}

#[test]
#[should_panic(expected = "two machines have the id 1")]
fn an_id_belongs_to_one_machine() {
    let _ = router().machine(A, Text::default());
}
