//! Nodes tell each other through the log where clients reach them, so that any node can name the leader's address.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use paxos::{Slot, node::Read};

use super::{Shared, wide, writer::Draft};
use crate::{
    machine::{NodeAddresses, operations as op},
    resp::Value,
};

/// How often the directory is read when nothing happens.
const REFRESH: Duration = Duration::from_secs(5);
/// How often while this node's own entry or another member's is missing.
const RETRY: Duration = Duration::from_millis(500);

/// Keeps the directory of nodes up to date and this node's entry in it; runs as long as the server.
pub async fn announce(shared: Arc<Shared>) {
    let (Some(group), Some(mut leader)) = (shared.groups.first(), shared.leaders.first().cloned()) else {
        return;
    };
    loop {
        let known = match directory(&shared).await {
            Some(directory) => {
                let own = directory.get(&shared.settings.node.0) == Some(&shared.settings.addresses);
                let status = group.status().await;
                let mut members = status.replica.membership.members.iter();
                let complete = members.all(|member| directory.contains_key(&member.node.0));
                *shared.directory.write().unwrap_or_else(PoisonError::into_inner) = directory;
                (own || (leader.borrow().is_some() && propose(&shared).await)) && complete
            }
            None => false,
        };
        tokio::select! {
            () = tokio::time::sleep(if known { REFRESH } else { RETRY }) => {}
            changed = leader.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// The directory as this node's replica has it.
async fn directory(shared: &Shared) -> Option<BTreeMap<u64, NodeAddresses>> {
    let local = Read::Stale { at_least: Slot::ZERO };
    let reply = shared.ask(0, local, op::NODES, &[]).await.ok()?;
    let Ok(Value::Array(entries)) = wide::value(&reply) else {
        return None;
    };
    let entry = |entry: &[Value]| {
        let [Value::Integer(node), resp, http] = entry else {
            return None;
        };
        let addresses = NodeAddresses {
            resp: resp.to_text(),
            http: http.to_text(),
        };
        Some((u64::try_from(*node).ok()?, addresses))
    };
    Some(entries.chunks(3).filter_map(entry).collect())
}

/// Writes this node's entry; false if that should be tried again.
async fn propose(shared: &Shared) -> bool {
    let node = shared.settings.node.to_string();
    let NodeAddresses { resp, http } = &shared.settings.addresses;
    let draft = Draft::encode(
        op::ANNOUNCE.code,
        [node.as_bytes(), resp.as_bytes(), http.as_bytes()],
    );
    let patience = shared.settings.request_timeout;
    let outcome = shared.writers[0].write_one(draft, patience).await;
    if let Err(error) = &outcome {
        tracing::debug!(?error, "could not announce this node's addresses yet");
    }
    outcome.is_ok()
}
