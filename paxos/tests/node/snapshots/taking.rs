//! Snapshots are taken, the log is trimmed behind them, and a node starts from them.

use std::time::Duration;

use bytes::Bytes;
use paxos::{FileSnapshots, MemorySnapshots, Node, NodeError, Read, Slot, SnapshotError, node::Config};

use super::{eager, local_list, write};
use crate::{
    cluster::{Cluster, GROUP, members, text},
    doubles::{Disk, Network},
    list::List,
};

#[tokio::test(start_paused = true)]
async fn a_snapshot_can_be_asked_for() {
    let mut config = eager();
    config.replica.snapshot_entries = 0;
    config.replica.snapshot_bytes = 0;
    let cluster = Cluster::start_with_snapshots(config).await;
    let group = cluster.group(cluster.leader().await);
    write(&group, 0..50).await;
    assert_eq!(
        group.status().await.replica.snapshot,
        Slot::ZERO,
        "none by themselves"
    );
    let applied = group.status().await.applied;
    let (one, other) = tokio::join!(group.save_snapshot(), group.save_snapshot());
    assert_eq!((one.unwrap(), other.unwrap()), (applied, applied));
    assert_eq!(
        group.save_snapshot().await.unwrap(),
        applied,
        "it is there already"
    );
    assert_eq!(group.metrics().snapshot_save_duration.snapshot().count, 1);
    write(&group, 50..60).await;
    assert!(group.save_snapshot().await.unwrap() > applied);

    let without = Cluster::start().await;
    let refused = without.group(1).save_snapshot().await.unwrap_err();
    assert!(
        refused.to_string().contains("Node::builder(..).snapshots(..)"),
        "{refused}"
    );
}

#[tokio::test(start_paused = true)]
async fn trimming_can_be_paused() {
    let cluster = Cluster::start_with_snapshots(eager()).await;
    for node in 1..=3 {
        cluster.group(node).pause_trimming(true);
    }
    let group = cluster.group(cluster.leader().await);
    write(&group, 0..100).await;
    let status = group.status().await;
    assert!(status.replica.snapshot > Slot(50), "snapshots go on");
    assert_eq!(status.replica.trimmed, Slot::ZERO);
    group.pause_trimming(false);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(group.status().await.replica.trimmed > Slot(50));
}

/// One node with its snapshots in files.
async fn node_with_files(disk: &Disk, directory: &std::path::Path, config: &Config) -> Node {
    Node::builder(disk.clone(), Network::default().transport())
        .config(config.clone())
        .snapshots(FileSnapshots::open(directory).unwrap())
        .spawn()
        .await
        .unwrap()
}

/// The files, newest first.
fn snapshot_files(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(directory.join("group-1")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.reverse();
    files
}

#[tokio::test(start_paused = true)]
async fn a_damaged_snapshot_falls_back_to_the_older_one_and_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::new(1);
    let mut config = eager();
    config.replica.keep_entries = 30;
    let node = node_with_files(&disk, directory.path(), &config).await;
    let group = node
        .add_group(GROUP, members([1]), List::default())
        .await
        .unwrap();
    write(&group, 0..100).await;
    let before = local_list(&group).await;
    node.shutdown().await.unwrap();

    let files = snapshot_files(directory.path());
    let mut bytes = std::fs::read(&files[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&files[0], bytes).unwrap();
    let node = node_with_files(&disk, directory.path(), &config).await;
    let group = node
        .add_group(GROUP, members([1]), List::default())
        .await
        .unwrap();
    let after = group.query(Read::Linearizable, Bytes::new()).await.unwrap();
    assert_eq!(after, before.as_bytes());
    assert_eq!(group.metrics().snapshot_failures.get(), 1);
    node.shutdown().await.unwrap();

    for file in snapshot_files(directory.path()) {
        std::fs::write(file, "damaged").unwrap();
    }
    let node = node_with_files(&disk, directory.path(), &config).await;
    let refused = node
        .add_group(GROUP, members([1]), List::default())
        .await
        .unwrap_err();
    let refused = refused.to_string();
    assert!(
        refused.contains("there is no whole snapshot") && refused.contains("is damaged: "),
        "{refused}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_trimmed_log_is_not_opened_without_its_snapshots() {
    let mut cluster = Cluster::start_with_snapshots(eager()).await;
    write(&cluster.group(1), 0..100).await;
    cluster.crash(1).await;
    cluster.snapshots.clear();
    let node = cluster.spawn_node(1).await.unwrap();
    let refused = node
        .add_group(GROUP, members(1..=3), List::default())
        .await
        .unwrap_err();
    assert!(matches!(refused, NodeError::Storage(_)), "{refused}");
    assert!(refused.to_string().contains("has no snapshot store"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_removed_group_leaves_no_snapshot_behind() {
    let node = Node::builder(Disk::new(1), Network::default().transport())
        .config(eager())
        .snapshots(MemorySnapshots::new())
        .spawn()
        .await
        .unwrap();
    let group = node
        .add_group(GROUP, members([1]), List::default())
        .await
        .unwrap();
    write(&group, 0..100).await;
    group.save_snapshot().await.unwrap();
    node.remove_group(GROUP).await.unwrap();
    assert!(matches!(
        group.save_snapshot().await,
        Err(SnapshotError::Stopped(_))
    ));
    let group = node
        .add_group(GROUP, members([1]), List::default())
        .await
        .unwrap();
    assert_eq!(group.propose(text("first")).await.unwrap(), "1");
    assert_eq!(group.status().await.replica.snapshot, Slot::ZERO);
}
