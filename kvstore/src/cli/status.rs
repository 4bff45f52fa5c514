//! `status`: what each node of a cluster says of itself.

use std::{fmt::Write as _, io::IsTerminal, time::Duration};

use serde_json::json;

use super::{
    ClientOptions, Exit, Failure, Output,
    terminal::{Table, print, reader_is_gone},
};
use crate::{
    client::Client,
    resp::Value,
    server::{GroupReport, Report},
    together::all,
};

/// What one endpoint answered.
pub(super) type Answer = (String, Result<Report, String>);

/// Asks one node.
async fn ask(endpoint: String, timeout: Duration) -> Answer {
    let answer = async {
        let mut client = Client::connect(&endpoint, timeout)
            .await
            .map_err(|error| error.to_string())?;
        match client
            .call(&[b"KV.STATUS"])
            .await
            .map_err(|error| error.to_string())?
        {
            Value::Bulk(text) => serde_json::from_slice(&text).map_err(|error| error.to_string()),
            other => Err(other.to_text()),
        }
    };
    let answer = answer.await;
    (endpoint, answer)
}

/// Asks all nodes at once.
pub(super) async fn ask_all(endpoints: &[String], timeout: Duration) -> Vec<Answer> {
    all(endpoints.iter().map(|endpoint| ask(endpoint.clone(), timeout))).await
}

/// One row for each group of each node.
pub(super) fn table(answers: &[Answer]) -> String {
    let mut table = Table::new(&[
        "NODE", "ENDPOINT", "GROUP", "ROLE", "LEADER", "BALLOT", "CHOSEN", "APPLIED", "LAG", "LOG",
        "SNAPSHOT", "HASH", "DIGEST", "STORAGE", "UPTIME", "IN SYNC",
    ]);
    for (endpoint, answer) in answers {
        let Ok(report) = answer else {
            table.row(["-", endpoint, "-", "unreachable"].map(str::to_owned).to_vec());
            continue;
        };
        for group in &report.groups {
            table.row(vec![
                report.node_id.to_string(),
                endpoint.clone(),
                group.group.to_string(),
                role(group),
                group
                    .leader
                    .map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
                format!("{}.{}", group.ballot.round, group.ballot.node),
                group.chosen.to_string(),
                group.applied.to_string(),
                group.lag.to_string(),
                format!("{}-{}", group.first_slot, group.last_slot),
                snapshot(group),
                hash(group),
                group.digest.clone().unwrap_or_else(|| "-".to_owned()),
                report.storage.clone(),
                format!("{} s", report.uptime_seconds),
                if group.in_sync { "yes" } else { "no" }.to_owned(),
            ]);
        }
    }
    let mut text = table.render();
    for report in answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()) {
        for group in &report.groups {
            if let Some(why) = &group.out_of_sync {
                let _ = writeln!(text, "node {}, group {}: {why}", report.node_id, group.group);
            }
        }
    }
    for (_, answer) in answers {
        for alarm in answer.iter().flat_map(|report| &report.alarms) {
            let _ = writeln!(text, "alarm: {alarm}");
        }
    }
    text
}

fn role(group: &GroupReport) -> String {
    match group.standing.as_str() {
        "voter" if group.is_leader => "leader".to_owned(),
        "voter" => "follower".to_owned(),
        other => other.to_owned(),
    }
}

/// As of which slot, or how far it has come from another node.
fn snapshot(group: &GroupReport) -> String {
    match group.fetch {
        Some(fetch) if fetch.total_bytes > 0 => {
            format!(
                "{} % of {}",
                fetch.done_bytes * 100 / fetch.total_bytes,
                fetch.upto
            )
        }
        Some(_) => "fetching".to_owned(),
        None if group.snapshot == 0 => "-".to_owned(),
        None => group.snapshot.to_string(),
    }
}

/// Up to which slot, and over all that was applied up to there.
fn hash(group: &GroupReport) -> String {
    let told = group.hash.as_ref();
    told.map_or_else(|| "-".to_owned(), |hash| format!("{}:{}", hash.slot, hash.value))
}

fn json_of(answers: &[Answer]) -> serde_json::Value {
    let nodes = answers.iter().map(|(endpoint, answer)| match answer {
        Ok(report) => json!({"endpoint": endpoint, "status": report}),
        Err(error) => json!({"endpoint": endpoint, "error": error}),
    });
    nodes.collect()
}

pub(super) async fn run(options: &ClientOptions, watch: bool) -> Result<Exit, Failure> {
    loop {
        let answers = ask_all(&options.endpoints, options.timeout).await;
        let text = match options.output {
            Output::Table => table(&answers),
            Output::Json => json_of(&answers).to_string() + "\n",
        };
        let clear = if watch && std::io::stdout().is_terminal() {
            "\x1b[H\x1b[2J"
        } else {
            ""
        };
        print(format_args!("{clear}{text}"));
        if watch && reader_is_gone() {
            return Ok(Exit::Ok);
        }
        let mut reports = answers
            .iter()
            .filter_map(|(_, answer)| answer.as_ref().ok())
            .peekable();
        if !watch {
            if reports.peek().is_none() {
                let why = answers
                    .into_iter()
                    .find_map(|(_, answer)| answer.err())
                    .unwrap_or_default();
                return Err(Failure::error(format!(
                    "no node can be reached ({why}); see --endpoints"
                )));
            }
            let has_leader = reports.any(|report| report.groups.iter().all(|group| group.leader.is_some()));
            return Ok(if has_leader { Exit::Ok } else { Exit::NoQuorum });
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Ok),
        }
    }
}
