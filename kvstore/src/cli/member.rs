//! `member`: who belongs to the cluster.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use super::{
    Exit, Failure,
    admin::{GroupOptions, end, or_dash},
    complain,
    terminal::Table,
};
use crate::{
    is_address,
    server::{Outcome, Reason},
};

/// How often a node is looked after that catches up.
const POLL: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, Subcommand)]
pub(super) enum MemberVerb {
    /// Show the members of each group
    List {
        #[command(flatten)]
        options: GroupOptions,
    },
    /// Add a node, which receives everything and does not vote yet
    Add {
        /// The node's id, and where it talks to the others: 4=host:port
        #[arg(value_parser = member)]
        member: Member,
        /// Wait until it has caught up, then let it vote
        #[arg(long)]
        promote: bool,
        #[command(flatten)]
        patience: Patience,
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Let a node vote that only receives
    Promote {
        /// The node's id
        id: u64,
        /// Wait until the node has caught up
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        patience: Patience,
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Let a node vote no more; it goes on receiving
    Demote {
        /// The node's id
        id: u64,
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Remove a node; it can be shut down then
    Remove {
        /// The node's id
        id: u64,
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Replace a node by another: add that one, wait until it has caught up, exchange the two. Interrupted, it goes on
    /// when it is given again
    Replace {
        /// The id of the node that leaves
        old: u64,
        /// The new node's id, and where it talks to the others: 4=host:port
        #[arg(value_parser = member)]
        new: Member,
        #[command(flatten)]
        patience: Patience,
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Tell the cluster that a node talks to the others at another address
    Update {
        /// The node's id and its address from now on: 4=host:port
        #[arg(value_parser = member)]
        member: Member,
        #[command(flatten)]
        options: ChangeOptions,
    },
}

/// A node's id and where it talks to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    id: String,
    address: String,
}

fn member(text: &str) -> Result<Member, String> {
    let parts = text.split_once('=');
    parts
        .filter(|(id, address)| id.parse::<u64>().is_ok_and(|id| id > 0) && is_address(address))
        .map(|(id, address)| Member {
            id: id.to_owned(),
            address: address.to_owned(),
        })
        .ok_or_else(|| "write the node's id and where it talks to the others, as in 4=127.0.0.1:7104".into())
}

#[derive(Clone, Debug, Args)]
pub(super) struct Patience {
    /// How long a node may take to catch up (30s, 10m, 2h)
    #[arg(long, value_parser = super::duration, default_value = "10m")]
    within: Duration,
}

#[derive(Clone, Debug, Args)]
pub(super) struct ChangeOptions {
    /// Do it even if the cluster could accept no writes then, until other nodes are up or have caught up
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    groups: GroupOptions,
}

impl ChangeOptions {
    async fn ask(&self, words: &[&str]) -> Result<Vec<Outcome>, Failure> {
        let force: &[&str] = if self.force { &["FORCE"] } else { &[] };
        let words = [&["KV.MEMBER"][..], words, force].concat();
        self.groups.ask(&words).await
    }

    /// Asks again while a node has not caught up.
    async fn ask_until_caught_up(
        &self,
        words: &[&str],
        patience: &Patience,
    ) -> Result<Vec<Outcome>, Failure> {
        let deadline = Instant::now() + patience.within;
        let mut told = String::new();
        loop {
            let outcomes = self.ask(words).await;
            let waits = match &outcomes {
                Ok(outcomes) => waits_for(outcomes),
                // No endpoint answers for a moment, perhaps.
                Err(failure) if failure.exit == Exit::NoQuorum => Some(failure.text.clone()),
                Err(_) => None,
            };
            let Some(why) = waits.filter(|_| Instant::now() + POLL < deadline) else {
                return outcomes;
            };
            if why != told {
                complain(format_args!("waiting: {why}"));
                told = why;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// What has to be waited for, if waiting may help in every group that has not done it.
fn waits_for(outcomes: &[Outcome]) -> Option<String> {
    let open: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.ok).collect();
    let may_pass = |outcome: &&Outcome| {
        use Reason::{Behind, Busy, NoLeader, Unknown, Unreachable};
        matches!(
            outcome.reason,
            Some(Behind | Busy | NoLeader | Unknown | Unreachable)
        )
    };
    let first = open.first()?;
    open.iter().all(may_pass).then(|| {
        let why = first.error.as_deref().unwrap_or("not yet");
        format!("group {}: {why}", first.group)
    })
}

pub(super) async fn run(verb: &MemberVerb) -> Result<Exit, Failure> {
    let id = |id: &u64| id.to_string();
    let (options, outcomes) = match verb {
        MemberVerb::List { options } => {
            let outcomes = options.ask(&["KV.MEMBER", "LIST"]).await?;
            return options.show(&outcomes, members);
        }
        MemberVerb::Add {
            member,
            promote,
            patience,
            options,
        } => {
            let words = ["ADD", &member.id, &member.address];
            let mut outcomes = options.ask(&words).await?;
            if *promote && end(&outcomes).is_ok() {
                outcomes = options
                    .ask_until_caught_up(&["PROMOTE", &member.id], patience)
                    .await?;
            }
            (options, outcomes)
        }
        MemberVerb::Promote {
            id: node,
            wait,
            patience,
            options,
        } => {
            let words = ["PROMOTE", &id(node)];
            let outcomes = if *wait {
                options.ask_until_caught_up(&words, patience).await?
            } else {
                options.ask(&words).await?
            };
            (options, outcomes)
        }
        MemberVerb::Demote { id: node, options } => (options, options.ask(&["DEMOTE", &id(node)]).await?),
        MemberVerb::Remove { id: node, options } => (options, options.ask(&["REMOVE", &id(node)]).await?),
        MemberVerb::Update { member, options } => {
            let words = ["UPDATE", &member.id, &member.address];
            (options, options.ask(&words).await?)
        }
        MemberVerb::Replace {
            old,
            new,
            patience,
            options,
        } => (options, replace(&id(old), new, patience, options).await?),
    };
    options.groups.show(&outcomes, changes)
}

/// Each step does only what is not done yet. The last one exchanges both nodes at once: at no time does the cluster need
/// more nodes, or the new one before it has everything.
async fn replace(
    old: &str,
    new: &Member,
    patience: &Patience,
    options: &ChangeOptions,
) -> Result<Vec<Outcome>, Failure> {
    let listed = options.groups.ask(&["KV.MEMBER", "LIST"]).await?;
    end(&listed)?;
    for group in &listed {
        let has = |id: &str| group.members.iter().any(|member| member.id.to_string() == id);
        if !has(old) && !has(&new.id) {
            let why = format!(
                "group {}: node {old} is not a member; see 'kvstore member list'",
                group.group
            );
            return Err(Failure::new(Exit::NotFound, why));
        }
    }
    let added = options.ask(&["ADD", &new.id, &new.address]).await?;
    end(&added)?;
    let words = ["REPLACE", old, &new.id, &new.address];
    if options.force {
        return options.ask(&words).await;
    }
    options.ask_until_caught_up(&words, patience).await
}

fn members(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new(&[
        "GROUP",
        "NODE",
        "ADDRESS",
        "ROLE",
        "LEADER",
        "HOLDS UPTO",
        "ALIVE",
        "DISK",
    ]);
    for outcome in outcomes {
        for member in &outcome.members {
            let alive = member.alive.map(|alive| if alive { "yes" } else { "no" });
            table.row(vec![
                outcome.group.to_string(),
                member.id.to_string(),
                member.address.clone(),
                member.role.clone(),
                if outcome.leader == Some(member.id) {
                    "*"
                } else {
                    ""
                }
                .to_owned(),
                or_dash(member.matched),
                alive.unwrap_or("-").to_owned(),
                member.disk.clone().unwrap_or_else(|| "-".into()),
            ]);
        }
    }
    table
}

fn changes(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new(&["GROUP", "RESULT", "VERSION"]);
    for outcome in outcomes {
        let result = match (outcome.ok, outcome.changed) {
            (false, _) => "not done",
            (true, Some(true)) => "done",
            (true, _) => "was so already",
        };
        table.row(vec![
            outcome.group.to_string(),
            result.to_owned(),
            or_dash(outcome.version),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_given_as_id_and_address() {
        let found = member("4=host:7104").unwrap();
        assert_eq!((found.id.as_str(), found.address.as_str()), ("4", "host:7104"));
        for text in ["", "4", "4=", "host:7104", "0=host:7104", "4=host", "x=host:1"] {
            assert!(member(text).unwrap_err().contains("4=127.0.0.1:7104"), "{text}");
        }
    }

    #[test]
    fn only_what_may_pass_is_waited_for() {
        let failed = |reason| Outcome {
            reason: Some(reason),
            error: Some("why".into()),
            ..Outcome::default()
        };
        let done = Outcome {
            ok: true,
            ..Outcome::default()
        };
        assert_eq!(waits_for(std::slice::from_ref(&done)), None);
        let waiting = Some("group 0: why".to_owned());
        assert_eq!(waits_for(&[done, failed(Reason::Behind)]), waiting);
        assert_eq!(
            waits_for(&[failed(Reason::Behind), failed(Reason::NotFound)]),
            None
        );
    }
}
