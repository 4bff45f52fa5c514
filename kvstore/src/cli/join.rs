//! How a new node comes into a running cluster: it asks one of the nodes which cluster that is, and has itself added.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use paxos::ClusterId;
use paxos_transports::tcp;
use serde::{Deserialize, Serialize};

use super::Failure;
use crate::{
    client::Client,
    resp::Value,
    server::{Outcome, Shared},
};

/// How long a node that wants to join looks for one that answers.
const LEARN_WITHIN: Duration = Duration::from_secs(30);
/// How long one node may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// What a node tells those who want to join, beside the cluster's id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Introduction {
    pub(super) groups: u16,
    /// The cluster's name, if it was given one.
    pub(super) name: Option<String>,
    /// Where this node serves clients.
    pub(super) clients: String,
}

impl Introduction {
    pub(super) fn encode(&self) -> Result<String, Failure> {
        serde_json::to_string(self).map_err(|error| Failure::error(error.to_string()))
    }
}

/// Asks each of these nodes in turn, given by the addresses where they talk to the others.
async fn ask(seeds: &[String], own_id: u64) -> Result<(ClusterId, Introduction), String> {
    let mut failures = Vec::new();
    for seed in seeds {
        let failure = match tcp::introduction(seed, ANSWER_WITHIN).await {
            Ok(told) if told.node.0 == own_id => format!("it is node {own_id} itself"),
            Ok(told) => match serde_json::from_str(&told.text) {
                Ok(introduction) => return Ok((told.cluster, introduction)),
                Err(_) => "it runs another program, or another version of it".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        failures.push(format!("{seed}: {failure}"));
    }
    Err(failures.join("; "))
}

/// Which cluster these nodes belong to. Waits for them for a while: clusters are started in any order.
pub(super) async fn learn(seeds: &[String], own_id: u64) -> Result<(ClusterId, Introduction), Failure> {
    let deadline = Instant::now() + LEARN_WITHIN;
    loop {
        match ask(seeds, own_id).await {
            Ok(told) => return Ok(told),
            Err(why) if Instant::now() + PAUSE < deadline => {
                tracing::warn!(why, "no node of the cluster answers yet");
                tokio::time::sleep(PAUSE).await;
            }
            Err(why) => {
                return Err(Failure::error(format!(
                    "--join: no node of the cluster answers ({why}); give the address where one of them talks to the \
                     others, as in 127.0.0.1:7101"
                )));
            }
        }
    }
}

/// Has this node added to every group, as a learner, unless it has been a member of it before. Runs until that is so.
pub(super) async fn enrol(shared: Arc<Shared>, seeds: Vec<String>, peer: String) {
    let id = shared.settings.node.0;
    let mut told = String::new();
    loop {
        // A node that was removed must not come back by itself: it has learned of a membership once.
        let is_new = |group: &paxos::node::Group| group.membership().borrow().version == 0;
        if !shared.groups.iter().any(is_new) {
            return;
        }
        match have_added(&seeds, id, &peer).await {
            Ok(()) => told.clear(),
            Err(why) if why == told => {}
            Err(why) => {
                tracing::warn!(why, "this node is not added to the cluster yet");
                told = why;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn have_added(seeds: &[String], id: u64, peer: &str) -> Result<(), String> {
    let (_, introduction) = ask(seeds, id).await?;
    let mut client = Client::connect(&introduction.clients, ANSWER_WITHIN)
        .await
        .map_err(|error| error.to_string())?;
    let id = id.to_string();
    let words: [&[u8]; 4] = [b"KV.MEMBER", b"ADD", id.as_bytes(), peer.as_bytes()];
    let reply = client.call(&words).await.map_err(|error| error.to_string())?;
    let outcomes: Vec<Outcome> = match reply {
        Value::Bulk(text) => serde_json::from_slice(&text).map_err(|error| error.to_string())?,
        other => return Err(other.to_text()),
    };
    let failed = outcomes.into_iter().find(|outcome| !outcome.ok);
    match failed {
        None => {
            tracing::info!(
                "this node is a learner of the cluster now; to let it vote: kvstore member promote {id} --wait"
            );
            Ok(())
        }
        Some(outcome) => Err(format!(
            "group {}: {}",
            outcome.group,
            outcome.error.unwrap_or_default()
        )),
    }
}
