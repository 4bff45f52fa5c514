//! Proposals whose outcomes are lost, refused and unknown.

use std::sync::Arc;

use paxos::{
    ApplyCommand, Ballot, Chosen, Incarnation, NodeId, ProposalId, Slot, StateMachine as _,
    sessions::Sessions,
};

use super::*;
use crate::{
    machine::{Machine, operations as op},
    together::all,
};

/// A group whose outcomes are spoilt as a test says.
#[derive(Clone)]
struct Spoilt(Arc<Mutex<Inner>>);

struct Inner {
    machine: Sessions<Machine>,
    slot: u64,
    /// What to do with the next proposals, and then nothing more.
    plan: VecDeque<Spoil>,
    proposed: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Spoil {
    /// Applied, but its answer is lost.
    LoseAnswer,
    /// Neither applied nor answered.
    LoseAll,
    Refuse,
    /// The group has no leader: nothing is heard until the time is over.
    Stall,
    /// Nothing of this burst has places any more: the node stops.
    Stop,
    /// Others' clocks end all sessions first.
    EndSessions,
    Nothing,
}

impl Inner {
    fn apply(&mut self, payload: Bytes) -> Bytes {
        self.slot += 1;
        let slot = Slot(self.slot);
        let id = ProposalId {
            node: NodeId(1),
            incarnation: Incarnation(1),
            sequence: self.slot,
        };
        let ballot = Ballot::ZERO;
        let commands = [ApplyCommand {
            slot,
            ballot,
            id,
            payload,
        }];
        let mut replies = Vec::new();
        let chosen = Chosen {
            upto: slot,
            commands: &commands,
        };
        self.machine
            .apply(chosen, &mut replies)
            .expect("the machine follows");
        replies.pop().expect("one reply")
    }

    /// Opens a session with a stamp far ahead, often: the clock takes small steps only.
    fn end_sessions(&mut self) {
        for hour in 1..=120_u64 {
            let stamp_ms = stamp_ms() + hour * 60_000;
            let open = Command::Open {
                ttl_ms: 1_000,
                stamp_ms,
            };
            self.apply(open.encode());
        }
    }

    fn outcome(&mut self, command: Bytes) -> Outcome {
        self.proposed += 1;
        match self.plan.pop_front().unwrap_or(Spoil::Nothing) {
            Spoil::LoseAnswer => {
                self.apply(command);
                Err(ProposeError::Unknown)
            }
            Spoil::LoseAll => Err(ProposeError::Unknown),
            Spoil::Refuse => Err(ProposeError::Overloaded {
                retry_after: Duration::from_millis(7),
            }),
            Spoil::Stall => Err(ProposeError::Expired),
            Spoil::Stop => Err(ProposeError::Stopped("test".into())),
            Spoil::EndSessions => {
                self.end_sessions();
                Ok(self.apply(command))
            }
            Spoil::Nothing => Ok(self.apply(command)),
        }
    }
}

impl Proposer for Spoilt {
    async fn propose_all(&self, commands: Vec<Bytes>, timeout: Duration) -> Vec<Outcome> {
        if timeout.is_zero() {
            return vec![Err(ProposeError::Expired); commands.len()];
        }
        if self.0.lock().unwrap().plan.front() == Some(&Spoil::Stall) {
            tokio::time::sleep(timeout).await;
        }
        let mut inner = self.0.lock().unwrap();
        commands
            .into_iter()
            .map(|command| inner.outcome(command))
            .collect()
    }
}

fn group() -> (Spoilt, Writer<Spoilt>) {
    let group = Spoilt(Arc::new(Mutex::new(Inner {
        machine: Sessions::with_limits(Machine::default(), limits()),
        slot: 0,
        plan: VecDeque::new(),
        proposed: 0,
    })));
    (group.clone(), Writer::new(group))
}

fn append(text: &str) -> Draft {
    Draft::encode(op::APPEND.code, [b"key", text.as_bytes()])
}

const PATIENCE: Duration = Duration::from_millis(900);

/// Appends each of these in one burst, the proposals spoilt as `plan` says.
async fn append_all(group: &Spoilt, writer: &Writer<Spoilt>, plan: &[Spoil], texts: &[&str]) -> Vec<Written> {
    group.0.lock().unwrap().plan = plan.iter().copied().collect();
    let drafts = texts.iter().map(|text| append(text)).collect();
    writer.write(drafts, PATIENCE).await
}

fn value(group: &Spoilt) -> String {
    let inner = group.0.lock().unwrap();
    let record = inner.machine.machine().state().space.get(b"key").cloned();
    record.map_or(String::new(), |record| {
        String::from_utf8_lossy(record.value()).into_owned()
    })
}

fn lengths(written: &[Written]) -> Vec<String> {
    let text = |written: &Written| match written {
        Ok(reply) => String::from_utf8_lossy(reply).trim().to_owned(),
        Err(WriteError::Proposal(error)) => format!("{error:?}"),
        Err(other) => format!("{other:?}"),
    };
    written.iter().map(text).collect()
}

#[tokio::test]
async fn a_command_whose_answer_was_lost_has_one_effect_and_its_answer() {
    let (group, writer) = group();
    append_all(&group, &writer, &[], &["-"]).await;
    let plan = [
        Spoil::LoseAnswer,
        Spoil::LoseAnswer,
        Spoil::Nothing,
        Spoil::LoseAnswer,
    ];
    let written = append_all(&group, &writer, &plan, &["a", "b", "c"]).await;
    assert_eq!(value(&group), "-abc");
    assert_eq!(lengths(&written), [":2", ":3", ":4"]);
}

#[tokio::test]
async fn the_first_write_waits_for_a_session() {
    let (group, writer) = group();
    let plan = [Spoil::LoseAnswer, Spoil::Refuse, Spoil::Nothing, Spoil::LoseAll];
    let written = append_all(&group, &writer, &plan, &["a"]).await;
    assert_eq!(
        (value(&group).as_str(), lengths(&written)),
        ("a", vec![":1".to_owned()])
    );
}

#[tokio::test]
async fn a_group_without_a_leader_keeps_no_other_from_its_work() {
    let ((led, writer), (leaderless, stuck)) = (group(), group());
    leaderless.0.lock().unwrap().plan = [Spoil::Stall].into();
    let bursts = [(&stuck, "a"), (&writer, "b")];
    let writes = bursts.map(|(writer, text)| writer.write(vec![append(text)], PATIENCE / 3));
    let written: Vec<_> = all(writes).await.concat();
    assert_eq!(lengths(&written), ["Expired", ":1"]);
    assert_eq!(value(&led), "b");
}

#[tokio::test]
async fn a_command_alone_goes_the_way_of_a_burst() {
    let (group, writer) = group();
    let mut told = Vec::new();
    for plan in [
        &[][..],
        &[Spoil::LoseAnswer, Spoil::LoseAnswer],
        &[Spoil::Refuse],
        &[Spoil::EndSessions],
        &[Spoil::Stop],
    ] {
        group.0.lock().unwrap().plan = plan.iter().copied().collect();
        told.push(writer.write_one(append("x"), PATIENCE).await);
    }
    assert_eq!(lengths(&told)[..4], [":1", ":2", ":3", ":4"]);
    assert!(lengths(&told)[4].starts_with("Stopped"), "{told:?}");
    assert_eq!(value(&group), "xxxx");
}

#[tokio::test]
async fn the_refused_end_of_a_burst_is_tried_again_and_nothing_out_of_order() {
    let (group, writer) = group();
    append_all(&group, &writer, &[], &["-"]).await;
    let plan = [
        Spoil::Refuse,
        Spoil::Nothing,
        Spoil::Refuse,
        Spoil::Refuse,
        Spoil::Refuse,
        Spoil::Refuse,
    ];
    let written = append_all(&group, &writer, &plan, &["a", "b", "c", "d"]).await;
    assert_eq!(value(&group), "-bcd");
    assert!(lengths(&written)[0].starts_with("Overloaded"), "{written:?}");
    assert_eq!(lengths(&written)[1..], [":2", ":3", ":4"]);
}

#[tokio::test]
async fn in_a_new_session_only_what_has_certainly_not_happened_is_done() {
    let (group, writer) = group();
    append_all(&group, &writer, &[], &["-"]).await;
    let before = writer.state().session;
    let plan = [Spoil::LoseAnswer, Spoil::EndSessions, Spoil::Nothing];
    let written = append_all(&group, &writer, &plan, &["a", "b", "c"]).await;
    assert_eq!(value(&group), "-abc");
    assert_eq!(lengths(&written), ["Unknown", ":3", ":4"]);
    assert_ne!(writer.state().session, before);
}

#[tokio::test]
async fn what_cannot_be_found_out_in_time_is_unknown_and_never_happens_later() {
    let (group, writer) = group();
    append_all(&group, &writer, &[], &["-"]).await;
    let late = {
        let places = writer.take_places(1).expect("a session");
        numbered(vec![append("late")], &places).remove(0)
    };
    let written = append_all(&group, &writer, &[Spoil::LoseAll, Spoil::Stop], &["a"]).await;
    assert_eq!(lengths(&written), ["Unknown"]);
    append_all(&group, &writer, &[], &["b"]).await;
    group.0.lock().unwrap().apply(late);
    assert_eq!(value(&group), "-b");
}

#[tokio::test]
async fn a_burst_under_way_holds_the_numbers_above_it_open() {
    let (group, writer) = group();
    append_all(&group, &writer, &[], &["-"]).await;
    let places = writer.take_places(1).expect("a session");
    let slow = numbered(vec![append("slow")], &places).remove(0);
    append_all(&group, &writer, &[], &["a", "b"]).await;
    group.0.lock().unwrap().apply(slow);
    assert_eq!(value(&group), "-abslow");
    drop(places);
    let state = writer.state();
    assert_eq!(state.acked(), state.next);
}
