//! How a new node comes into a running cluster: it asks one of the nodes which cluster that is, and has itself added. And
//! how a node finds the others again that have moved.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use paxos::{ClusterId, storage::Owner, transport::Peer};
use paxos_transports::tcp;
use serde::{Deserialize, Serialize};

use super::Failure;
use crate::{
    client::Client,
    resp::Value,
    server::{Outcome, Reason, Shared},
    shards::Shards,
    together::all,
};

/// How long a node that wants to join looks for one that answers.
const LEARN_WITHIN: Duration = Duration::from_secs(30);
/// How long one node may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How many places are asked at once.
const MAX_PLACES: usize = 64;
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

    /// What a node has told, whatever answers there.
    fn decode(text: &str) -> Result<Self, String> {
        let introduction: Self = serde_json::from_str(text)
            .map_err(|_| "it runs another program, or another version of it".to_owned())?;
        check_groups(introduction.groups).map_err(|why| format!("it says that the cluster {why}"))?;
        Ok(introduction)
    }
}

/// A number of groups that somebody else has told, or a file.
pub(super) fn check_groups(groups: u16) -> Result<(), String> {
    let possible = 1..=Shards::MAX_GROUPS;
    if possible.contains(&groups) {
        return Ok(());
    }
    Err(format!(
        "has {groups} groups, but {} to {} are possible",
        possible.start(),
        possible.end()
    ))
}

/// Asks each of these nodes in turn, given by the addresses where they talk to the others, until one `serves` the purpose.
async fn ask(
    seeds: &[String],
    own_id: u64,
    serves: impl Fn(&str, ClusterId, &Introduction) -> Result<(), String>,
) -> Result<(ClusterId, Introduction), String> {
    let mut failures = Vec::new();
    for seed in seeds {
        let asked = tcp::introduction(seed, ANSWER_WITHIN).await;
        let told = asked.map_err(|error| error.to_string()).and_then(|told| {
            if told.node.0 == own_id {
                return Err(format!("it is node {own_id} itself"));
            }
            let introduction = Introduction::decode(&told.text)?;
            serves(seed, told.cluster, &introduction)?;
            Ok((told.cluster, introduction))
        });
        let failure = match told {
            Ok(told) => return Ok(told),
            Err(why) => why,
        };
        failures.push(format!("{seed}: {failure}"));
    }
    Err(failures.join("; "))
}

/// Where nodes of this cluster are: asks all that are found behind these addresses. A name may stand for many, and for
/// others each time.
pub(super) async fn find(seeds: &[String], own: Owner) -> Vec<Peer> {
    let resolve = |seed| async move {
        let resolved = tokio::net::lookup_host(seed).await;
        let resolved = resolved.inspect_err(|error| tracing::debug!(seed, %error, "cannot be resolved"));
        resolved.map(|found| found.map(|place| place.to_string()).collect::<Vec<_>>())
    };
    let resolved = all(seeds.iter().map(resolve)).await;
    let places: BTreeSet<String> = resolved.into_iter().flatten().flatten().collect();
    let ask = |address: String| async move {
        let told = tcp::introduction(&address, ANSWER_WITHIN).await.ok()?;
        let is_peer = told.cluster == own.cluster && told.node != own.node;
        is_peer.then_some(Peer {
            node: told.node,
            address,
        })
    };
    let asked = all(places.into_iter().take(MAX_PLACES).map(ask)).await;
    asked.into_iter().flatten().collect()
}

/// Which cluster these nodes belong to. Waits for them for a while: clusters are started in any order.
pub(super) async fn learn(seeds: &[String], own_id: u64) -> Result<(ClusterId, Introduction), Failure> {
    let deadline = Instant::now() + LEARN_WITHIN;
    loop {
        match ask(seeds, own_id, |_, _, _| Ok(())).await {
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

/// Has this node added to every group that it knows nothing of, as a learner. Ends when it knows them all, or has been
/// told that it was removed: a node that was removed does not come back by itself.
pub(super) async fn enrol(shared: Arc<Shared>, seeds: Vec<String>, peer: String) {
    let own = Owner {
        cluster: shared.settings.cluster_id,
        node: shared.settings.node,
    };
    let mut removed_from = BTreeSet::new();
    let mut told = String::new();
    loop {
        let groups = shared.groups.iter();
        let unknown = groups.filter(|group| group.membership().borrow().version == 0);
        let unknown: BTreeSet<u32> = unknown.map(|group| group.id().0).collect();
        let wanted: Vec<u32> = unknown.difference(&removed_from).copied().collect();
        if wanted.is_empty() {
            return;
        }
        let failure = match have_added(&seeds, own, &peer, &wanted, &mut removed_from).await {
            Ok(failure) => failure,
            Err(why) => Some(why),
        };
        match failure {
            None => told.clear(),
            Some(why) if why == told => {}
            Some(why) => {
                tracing::warn!(why, "this node is not added to the cluster yet");
                told = why;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether a node that was found at the address `seed` can add nodes to this cluster.
fn can_add(cluster: ClusterId, seed: &str, of: ClusterId, told: &Introduction) -> Result<(), String> {
    if of != cluster {
        return Err(format!(
            "it belongs to cluster {of}, and this node to {cluster}; give --join an address of that one"
        ));
    }
    if is_loopback(&told.clients) && !is_loopback(seed) {
        return Err(format!(
            "it serves clients on its own machine only, at {}; start it with --resp host:port that other machines reach, or \
             give --join another node",
            told.clients
        ));
    }
    Ok(())
}

/// Whether an address, as far as it shows, is reached from its own machine only.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let ip = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    ip.map_or(host == "localhost", |ip| ip.to_canonical().is_loopback())
}

/// Asks for each of these groups. Says what is in the way in one of them, if it may pass.
async fn have_added(
    seeds: &[String],
    own: Owner,
    peer: &str,
    groups: &[u32],
    removed_from: &mut BTreeSet<u32>,
) -> Result<Option<String>, String> {
    let Owner { cluster, node } = own;
    let serves = |seed: &str, of, told: &Introduction| can_add(cluster, seed, of, told);
    let (_, introduction) = ask(seeds, node.0, serves).await?;
    let mut client = Client::connect(&introduction.clients, ANSWER_WITHIN)
        .await
        .map_err(|error| error.to_string())?;
    let mut failure = None;
    for group in groups {
        let words = format!("KV.MEMBER ENROL {node} {peer} {cluster} GROUP {group}");
        let words: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
        let reply = client.call(&words).await.map_err(|error| error.to_string())?;
        let outcomes: Vec<Outcome> = match reply {
            Value::Bulk(text) => serde_json::from_slice(&text).map_err(|error| error.to_string())?,
            other => return Err(other.to_text()),
        };
        for outcome in outcomes {
            let why = outcome.error.unwrap_or_default();
            if outcome.ok {
                tracing::info!(
                    group,
                    "this node is a learner of the group now; to let it vote: kvstore member promote {node} --wait"
                );
            } else if outcome.reason == Some(Reason::Removed) {
                tracing::error!(group, why, "this node is not added to the group");
                removed_from.insert(*group);
            } else {
                failure = Some(format!("group {group}: {why}"));
            }
        }
    }
    Ok(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_introduction_that_cannot_be_is_refused() {
        let told = |groups: u32| format!(r#"{{"groups":{groups},"name":null,"clients":"127.0.0.1:7001"}}"#);
        assert_eq!(Introduction::decode(&told(3)).unwrap().groups, 3);
        for groups in [0, u32::from(Shards::MAX_GROUPS) + 1] {
            let refused = Introduction::decode(&told(groups)).unwrap_err();
            assert!(refused.contains(&format!("has {groups} groups")), "{refused}");
        }
        assert!(
            Introduction::decode("hello")
                .unwrap_err()
                .contains("another program")
        );
    }

    #[test]
    fn a_node_asks_to_be_added_where_that_can_be() {
        let own = ClusterId(1);
        let told = |clients: &str| Introduction {
            groups: 1,
            name: None,
            clients: clients.into(),
        };
        for (seed, clients) in [
            ("10.0.0.1:7101", "10.0.0.1:6379"),
            ("127.0.0.1:7101", "127.0.0.1:6379"),
            ("localhost:7101", "[::1]:6379"),
            ("db1.example:7101", "db1.example:6379"),
        ] {
            assert_eq!(
                can_add(own, seed, own, &told(clients)),
                Ok(()),
                "{seed} {clients}"
            );
        }
        for (seed, clients) in [
            ("10.0.0.1:7101", "127.0.0.1:6379"),
            ("db1.example:7101", "[::1]:6379"),
            ("[fd00::1]:7101", "localhost:6379"),
        ] {
            let refused = can_add(own, seed, own, &told(clients)).unwrap_err();
            assert!(
                refused.contains(clients) && refused.contains("--resp"),
                "{refused}"
            );
        }
        let elsewhere = can_add(own, "127.0.0.1:1", ClusterId(2), &told("127.0.0.1:2"));
        assert!(elsewhere.unwrap_err().contains("belongs to cluster"));
    }
}
