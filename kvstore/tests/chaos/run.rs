//! One run: a cluster, its clients, and the judgement at the end.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use paxos::testing::linearizability::{Operation, Verdict, check};
use tokio::time::sleep;

use crate::{
    clients::{Clients, Note, Noted},
    full_disk::SmallDisk,
    nemesis::{Nemesis, none_has_ended},
    nodes::Nodes,
    register::{Input, Output, Register},
};

pub(crate) const NODES: usize = 3;
const CLIENTS: usize = 8;
/// How long the healed cluster may take for each of: answering a read, agreeing. Far more than it takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long clients go on after the last fault.
const CALM: Duration = Duration::from_millis(500);
/// Bounds the search for one key; a run needs a small part of it.
const MAX_VISITED: usize = 20_000_000;
/// How many operations before a violation are shown.
const SHOWN_OPERATIONS: usize = 40;

/// Dropped in this order, so that nothing is in use when it goes.
pub(crate) struct Run {
    seed: u64,
    storage: String,
    pub(crate) nodes: Nodes,
    clients: Clients,
    /// What the nodes' directories are mounted on, if on anything.
    pub(crate) disks: Vec<SmallDisk>,
    /// Kept if the run fails.
    directory: tempfile::TempDir,
    pub(crate) nemesis: Nemesis,
    started: Instant,
}

impl Run {
    /// Starts a cluster and its clients in a directory of their own.
    pub(crate) async fn start(storage: &str, seed: u64, directory: tempfile::TempDir) -> Self {
        Self::start_with_spares(storage, seed, directory, 0).await
    }

    /// As [`start`](Self::start), with room for nodes that join later; clients try them from the start.
    pub(crate) async fn start_with_spares(
        storage: &str,
        seed: u64,
        directory: tempfile::TempDir,
        spares: usize,
    ) -> Self {
        let nodes = Nodes::start(NODES, spares, directory.path(), storage).await;
        let clients = Clients::start(CLIENTS, nodes.resp(), seed);
        Self {
            seed,
            storage: storage.to_owned(),
            nodes,
            clients,
            disks: Vec::new(),
            directory,
            nemesis: Nemesis::new(seed),
            started: Instant::now(),
        }
    }

    pub(crate) async fn torment(&mut self, length: Duration) -> Result<(), String> {
        self.nemesis.torment(&mut self.nodes, length).await
    }

    /// Waits until clients have been answered by this node, so that the cluster is known to work.
    pub(crate) async fn until_it_works(&self) -> Result<(), String> {
        for node in self.nodes.members() {
            self.read_at(node).await?;
        }
        Ok(())
    }

    pub(crate) async fn read_at(&self, node: usize) -> Result<(), String> {
        let read = self.clients.common.read("is anybody there", node, PATIENCE);
        read.await.map(drop)
    }

    /// Ends the run and judges it, together with what went wrong before; panics with all that is needed to find out
    /// why.
    pub(crate) async fn finish(self, outcome: Result<(), String>) {
        let Self {
            seed,
            storage,
            mut nodes,
            clients,
            disks,
            directory,
            nemesis,
            started,
        } = self;
        let (noted, settled) = settle(&mut nodes, clients).await;
        drop((nodes, disks));
        let lasted = started.elapsed();
        let mut history = diary_and_history(&nemesis, &noted);
        let mut failures: Vec<String> = [outcome, settled].into_iter().filter_map(Result::err).collect();
        match judge(&noted) {
            Ok(visited) if failures.is_empty() => {
                println!("{}", summary(&storage, seed, &nemesis, &noted, lasted, visited));
                return;
            }
            Ok(_) => failures.push("What clients were answered is linearizable.".to_owned()),
            Err(text) => failures.push(text),
        }
        let text = failures.join("\n");
        let directory = directory.keep();
        let file = directory.join("history.txt");
        write!(history, "\n{text}\n").expect("text can be appended");
        let written = std::fs::write(&file, history);
        panic!(
            "{storage}, seed {seed}: {text}\nkept: {} ({written:?})\nagain: KVSTORE_CHAOS_SEED={seed} \
             KVSTORE_CHAOS_SECONDS={} cargo test -p kvstore --all-features --test chaos {storage}",
            file.display(),
            lasted.as_secs(),
        );
    }
}

/// Heals everything, stops the clients, reads every key at every node, and waits until the nodes agree.
async fn settle(nodes: &mut Nodes, clients: Clients) -> (Noted, Result<(), String>) {
    nodes.heal();
    sleep(CALM).await;
    let common = std::sync::Arc::clone(&clients.common);
    let mut noted = clients.stop().await;
    let keys: Vec<String> = noted.by_key().into_keys().map(str::to_owned).collect();
    for key in keys {
        for node in nodes.members() {
            match common.read(&key, node, PATIENCE).await {
                Ok(note) => noted.notes.push(note),
                Err(text) => return (noted, none_has_ended(nodes).and(Err(text))),
            }
        }
    }
    let settled = match agree(nodes).await {
        Ok(()) => none_has_ended(nodes),
        Err(text) => Err(text),
    };
    (noted, settled)
}

/// Waits until all nodes have applied the same and have the same state.
async fn agree(nodes: &Nodes) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut states = Vec::new();
        for node in nodes.members() {
            let report = nodes.status(node).await;
            states.push(report.and_then(|report| {
                let group = report.groups.first()?;
                Some((group.applied, group.digest.clone()?))
            }));
        }
        if states.iter().all(|state| state.is_some() && *state == states[0]) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!(
                "the nodes do not agree at the end (applied, digest): {states:?}"
            ));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Judges every key; returns how much the search visited.
fn judge(noted: &Noted) -> Result<usize, String> {
    if let Some(nonsense) = noted.nonsense.first() {
        return Err(format!("a client was answered {nonsense}"));
    }
    let mut all = 0;
    for (key, notes) in noted.by_key() {
        let history: Vec<Operation<Input, Output>> =
            notes.iter().map(|note| note.operation.clone()).collect();
        match check(&Register, &history, MAX_VISITED) {
            Verdict::Linearizable { visited } => all += visited,
            Verdict::Violation { operation, possible } => {
                let mut text = format!(
                    "key {key} is not linearizable: no order explains\n  {}\nThe key may then have been any of \
                     {possible:?}. Before it:\n",
                    notes[operation]
                );
                let end = history[operation].answer.map_or(0, |(at, _)| at);
                let mut before: Vec<&&Note> = notes
                    .iter()
                    .filter(|note| note.operation.invoked <= end)
                    .collect();
                before.sort_by_key(|note| note.operation.invoked);
                for note in before.iter().rev().take(SHOWN_OPERATIONS).rev() {
                    let _ = writeln!(text, "  {note}");
                }
                return Err(text);
            }
            Verdict::Undecided { operation } => {
                return Err(format!(
                    "key {key}: undecided after {MAX_VISITED} configurations at\n  {}",
                    notes[operation]
                ));
            }
        }
    }
    if all == 0 {
        return Err("nothing was answered".to_owned());
    }
    Ok(all)
}

fn diary_and_history(nemesis: &Nemesis, noted: &Noted) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}", nemesis.diary.join("\n"));
    for (key, mut notes) in noted.by_key() {
        notes.sort_by_key(|note| note.operation.invoked);
        let _ = writeln!(text, "\n{key}");
        for note in notes {
            let _ = writeln!(text, "  {note}");
        }
    }
    text
}

fn summary(
    storage: &str,
    seed: u64,
    nemesis: &Nemesis,
    noted: &Noted,
    lasted: Duration,
    visited: usize,
) -> String {
    let answered = noted.notes.iter().filter(|note| note.operation.answer.is_some());
    let answered = answered.count();
    let keys = noted.by_key();
    format!(
        "{storage}, seed {seed}: linearizable. {:.0} s, {answered} operations answered, {} of unknown outcome, {} \
         refused, {} keys (longest history {}), {visited} configurations visited, {} faults: {:?}",
        lasted.as_secs_f64(),
        noted.notes.len() - answered,
        noted.refused,
        keys.len(),
        keys.values().map(Vec::len).max().unwrap_or(0),
        nemesis.counts.values().sum::<usize>(),
        nemesis.counts,
    )
}

/// A new directory for a run.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("kvstore-chaos-")
        .tempdir()
        .expect("a temporary directory")
}

#[test]
fn the_judgement_names_the_key_and_the_operation() {
    use crate::register::Value;
    let note = |key: &str, operation| Note {
        key: key.to_owned(),
        client: 1,
        node: 1,
        operation,
    };
    let set = |value, at| Operation::answered(Input::Set(Value::Number(value)), at, at + 5, Output::Done);
    let get = |value, at| {
        let output = Output::Value(Some(Value::Number(value)));
        Operation::answered(Input::Get, at, at + 5, output)
    };
    let mut noted = Noted {
        notes: vec![
            note("a", set(1, 0)),
            note("b", set(2, 10)),
            note("a", get(1, 20)),
            note("b", Operation::unknown(Input::Incr, 30)),
            note("b", get(3, 40)),
        ],
        ..Noted::default()
    };
    assert_eq!(judge(&noted).map(|visited| visited > 0), Ok(true));
    noted.notes.push(note("b", get(2, 50)));
    let text = judge(&noted).expect_err("the increment is taken back");
    assert!(text.contains("key b is not linearizable"), "{text}");
    assert!(text.contains("GET b -> Value(Some(Number(2)))"), "{text}");
    noted.notes.clear();
    assert!(judge(&noted).is_err(), "nothing was tested");
    noted.nonsense.push("what?".to_owned());
    assert!(judge(&noted).is_err_and(|text| text.contains("what?")));
}
