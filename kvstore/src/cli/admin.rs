//! `leader`, `snapshot`: what operators ask of a running cluster.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    ClientOptions, Exit, Failure, Output,
    terminal::{Table, print, say},
    verbs,
};
use crate::{
    resp::Value,
    server::{Outcome, Reason},
};

/// The pause before a request is made again that came at a bad moment.
const PAUSE: Duration = Duration::from_millis(200);

/// What all verbs that act on groups take.
#[derive(Clone, Debug, Args)]
pub(super) struct GroupOptions {
    /// Only this group; all groups if not given
    #[arg(long)]
    group: Option<u32>,
    #[command(flatten)]
    client: ClientOptions,
}

impl GroupOptions {
    /// Carries a command out at the first endpoint that can, and again while its moment is a bad one, within the timeout.
    pub(super) async fn ask(&self, words: &[&str]) -> Result<Vec<Outcome>, Failure> {
        let group = self.group.map(|group| group.to_string());
        let mut args: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        if let Some(group) = &group {
            args.extend([&b"GROUP"[..], group.as_bytes()]);
        }
        let mut client = self.client.clone();
        let deadline = Instant::now() + client.timeout;
        loop {
            let reply = verbs::call(&client, &args).await?;
            let Value::Bulk(text) = &reply else {
                return Err(Failure::error(format!("unexpected reply: {reply:?}")));
            };
            let outcomes: Vec<Outcome> = serde_json::from_slice(text)
                .map_err(|error| Failure::error(format!("the reply is of another version: {error}")))?;
            let is_early =
                |outcome: &Outcome| matches!(outcome.reason, Some(Reason::NoLeader | Reason::Busy));
            client.timeout = deadline.saturating_duration_since(Instant::now());
            if !outcomes.iter().any(is_early) || client.timeout <= PAUSE {
                return Ok(outcomes);
            }
            tokio::time::sleep(PAUSE).await;
            client.timeout -= PAUSE;
            // The node may be cut off from the others.
            client.endpoints.rotate_left(1);
        }
    }

    pub(super) fn show(&self, outcomes: &[Outcome], table: fn(&[Outcome]) -> Table) -> Result<Exit, Failure> {
        match self.client.output {
            Output::Table => print(format_args!("{}", table(outcomes).render())),
            Output::Json => {
                let text =
                    serde_json::to_string(outcomes).map_err(|error| Failure::error(error.to_string()))?;
                say!("{text}");
            }
        }
        end(outcomes)
    }
}

/// How the verb ends; what went wrong is told on standard error.
pub(super) fn end(outcomes: &[Outcome]) -> Result<Exit, Failure> {
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.ok).collect();
    if failed.is_empty() {
        return Ok(Exit::Ok);
    }
    let all = |reason| failed.iter().all(|outcome| outcome.reason == Some(reason));
    let exit = if all(Reason::NoLeader) {
        Exit::NoQuorum
    } else if all(Reason::NotFound) {
        Exit::NotFound
    } else {
        Exit::Error
    };
    let told: Vec<String> = failed
        .iter()
        .map(|outcome| {
            let why = outcome.error.as_deref().unwrap_or("it failed");
            format!("group {}: {why}", outcome.group)
        })
        .collect();
    Err(Failure::new(exit, told.join("; ")))
}

pub(super) fn or_dash(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// `leader`, and what is behind it.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct LeaderOptions {
    #[command(subcommand)]
    verb: Option<LeaderVerb>,
    #[command(flatten)]
    options: GroupOptions,
}

#[derive(Clone, Debug, Subcommand)]
enum LeaderVerb {
    /// Make another node lead
    Transfer {
        /// The id of the node that shall lead
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        id: u64,
        #[command(flatten)]
        options: GroupOptions,
    },
}

pub(super) async fn leader(leader: &LeaderOptions) -> Result<Exit, Failure> {
    let (options, outcomes) = match &leader.verb {
        None => (&leader.options, leader.options.ask(&["KV.LEADER"]).await?),
        Some(LeaderVerb::Transfer { id, options }) => {
            let words = ["KV.LEADER", "TRANSFER", &id.to_string()];
            (options, options.ask(&words).await?)
        }
    };
    options.show(&outcomes, |outcomes| {
        let mut table = Table::new(&["GROUP", "LEADER"]);
        for outcome in outcomes {
            table.row(vec![outcome.group.to_string(), or_dash(outcome.leader)]);
        }
        table
    })
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum SnapshotVerb {
    /// Take a snapshot on every node of --endpoints now, and trim the logs behind them
    #[command(mut_arg("timeout", |timeout| timeout.default_value("1h")))]
    Save {
        #[command(flatten)]
        options: GroupOptions,
    },
}

pub(super) async fn snapshot(verb: &SnapshotVerb) -> Result<Exit, Failure> {
    let SnapshotVerb::Save { options } = verb;
    let mut table = Table::new(&["ENDPOINT", "GROUP", "SNAPSHOT"]);
    let mut list = Vec::new();
    let mut exit = Ok(Exit::Ok);
    for endpoint in &options.client.endpoints {
        let mut here = options.clone();
        here.client.endpoints = vec![endpoint.clone()];
        let saved = here.ask(&["KV.SNAPSHOT", "SAVE"]).await;
        let failed = |text: String| Failure::error(format!("{endpoint}: {text}"));
        match saved {
            Ok(outcomes) => {
                for outcome in &outcomes {
                    let cells = [
                        endpoint.clone(),
                        outcome.group.to_string(),
                        or_dash(outcome.snapshot),
                    ];
                    table.row(cells.to_vec());
                }
                exit = exit.and_then(|_| end(&outcomes).map_err(|failure| failed(failure.text)));
                list.push(json!({"endpoint": endpoint, "groups": outcomes}));
            }
            Err(failure) => {
                list.push(json!({"endpoint": endpoint, "error": failure.text}));
                exit = exit.and(Err(failed(failure.text)));
            }
        }
    }
    match options.client.output {
        Output::Table => print(format_args!("{}", table.render())),
        Output::Json => say!("{}", serde_json::Value::Array(list)),
    }
    exit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(group: u32, reason: Reason) -> Outcome {
        Outcome {
            group,
            reason: Some(reason),
            error: Some("why".into()),
            ..Outcome::default()
        }
    }

    #[test]
    fn the_exit_code_says_what_all_failures_have_in_common() {
        let done = Outcome {
            ok: true,
            ..Outcome::default()
        };
        let exit = |outcomes: &[Outcome]| end(outcomes).unwrap_or_else(|failure| failure.exit);
        assert_eq!(exit(std::slice::from_ref(&done)), Exit::Ok);
        assert_eq!(exit(&[done, failed(1, Reason::NoLeader)]), Exit::NoQuorum);
        assert_eq!(
            exit(&[failed(0, Reason::NotFound), failed(1, Reason::NotFound)]),
            Exit::NotFound
        );
        assert_eq!(
            exit(&[failed(0, Reason::NotFound), failed(1, Reason::NoLeader)]),
            Exit::Error
        );
        assert_eq!(exit(&[failed(0, Reason::Refused)]), Exit::Error);
    }

    #[test]
    fn every_group_that_failed_is_named() {
        let failure = end(&[failed(0, Reason::Busy), failed(7, Reason::Busy)]).unwrap_err();
        assert_eq!(failure.text, "group 0: why; group 7: why");
    }
}
