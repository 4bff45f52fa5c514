//! A node whose log was altered behind its back keeps out of the way, says so, and is healed with an empty disk.
#![cfg(feature = "wal")]

mod common;

use std::path::Path;

use common::{Cluster, eventually};
use paxos::{Accepted, ClusterId, EntryKind, GroupId, NodeId, WriteBatch, WriteOp, storage::Owner};
use paxos_backends::Backend;
use serde_json::Value;

/// Which cluster a data directory belongs to.
fn cluster_of(directory: &Path) -> ClusterId {
    let identity = std::fs::read_to_string(directory.join("identity")).expect("a store has an identity");
    let cluster = identity.lines().find_map(|line| line.strip_prefix("cluster "));
    let cluster = cluster.and_then(|id| u64::from_str_radix(id, 16).ok());
    ClusterId(cluster.expect("the identity names the cluster"))
}

/// Changes the last byte of the last commands in a group's log; the store seals the record as if it were right.
async fn alter(directory: &Path, node: u64, group: GroupId) {
    let owner = Owner {
        cluster: cluster_of(directory),
        node: NodeId(node),
    };
    let mut store = paxos_backends::open(Backend::Wal, directory, owner).expect("the store opens");
    let recovered = store.recover().await.expect("the store is whole");
    for slot in recovered.groups[&group].index.keys().rev() {
        let mut held = store
            .read(group, *slot..slot.next(), 0)
            .await
            .expect("the slot is whole");
        let Some((slot, Accepted { ballot, mut entry })) = held.pop() else {
            continue;
        };
        if entry.kind != EntryKind::Commands {
            continue;
        }
        let mut payload = entry.payload.to_vec();
        *payload.last_mut().expect("commands have bytes") ^= 1;
        entry.payload = payload.into();
        let accept = WriteOp::Accept {
            group,
            slot,
            ballot,
            entry,
        };
        let batch = WriteBatch {
            sync: true,
            ops: vec![accept],
        };
        store.write(batch).await.expect("the store takes it");
        store.close().await.expect("the store closes");
        return;
    }
    panic!("the log of group {group} holds no commands");
}

fn group_of(status: &Value, group: usize) -> &Value {
    &status["groups"][group]
}

/// Waits until a node's status is so.
fn until(cluster: &Cluster, node: usize, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || {
        let status = cluster.status(node).map_err(|error| error.to_string())?;
        if holds(&status) {
            Ok(status)
        } else {
            Err(status.to_string())
        }
    })
}

fn write(cluster: &Cluster, node: usize, round: usize) {
    let mut client = cluster.connect(node);
    for key in 0..40 {
        let set = || {
            redis::cmd("SET")
                .arg(format!("key-{key}"))
                .arg(format!("round {round}"))
                .query::<()>(&mut client)
        };
        eventually("writing", set);
    }
}

fn applied(status: &Value) -> Vec<Value> {
    let groups = status["groups"].as_array().into_iter().flatten();
    groups.map(|group| group["hash"].clone()).collect()
}

/// Waits until the first node and the third stand at the same hashes. Both may go on meanwhile: memberships change when
/// disks have become known.
fn until_both_have_applied_the_same(cluster: &Cluster) {
    until(cluster, 3, "n3 has applied what n1 has", |status| {
        let first = cluster.status(1);
        first.is_ok_and(|first| first["ready"] == true && applied(&first) == applied(status))
    });
}

#[test]
fn a_node_with_an_altered_log_is_quarantined_until_it_has_an_empty_disk() {
    let mut cluster = Cluster::start(3, &["--groups", "2", "--storage", "wal"]);
    write(&cluster, 1, 1);
    until_both_have_applied_the_same(&cluster);

    cluster.terminate(3);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(alter(&cluster.data_dir(3), 3, GroupId(0)));
    cluster.start_node(3);
    let status = until(&cluster, 3, "n3 is quarantined", |status| {
        let why = group_of(status, 0)["out_of_sync"].as_str().unwrap_or_default();
        why.contains("quarantined") && why.contains("move the node's data directory away")
    });
    assert_eq!(status["ready"], false);
    assert!(status["alarms"].to_string().contains("quarantined"), "{status}");
    until(&cluster, 3, "its other group goes on", |status| {
        group_of(status, 1)["in_sync"] == true
    });
    write(&cluster, 1, 2);

    cluster.terminate(3);
    cluster.start_node(3);
    until(&cluster, 3, "a restart does not forget it", |status| {
        let why = group_of(status, 0)["out_of_sync"].as_str().unwrap_or_default();
        why.contains("quarantined")
    });

    cluster.terminate(3);
    std::fs::remove_dir_all(cluster.data_dir(3)).expect("the data directory goes");
    cluster.start_node(3);
    until(&cluster, 3, "n3 is back", |status| status["ready"] == true);
    until_both_have_applied_the_same(&cluster);
}
