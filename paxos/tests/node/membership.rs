//! Changing who belongs to a group: what users see of it.

use std::time::Duration;

use paxos::{Change, ChangeError, ChangeRejection, Membership, NodeId, Role, core::Standing};

use crate::{
    cluster::{Cluster, GROUP, text},
    doubles::Disk,
    list::List,
};

impl Cluster {
    /// Starts a node that joins.
    async fn join(&mut self, node: u64) {
        self.disks.insert(node, Disk::new(node));
        let joined = self.spawn_node(node).await.unwrap();
        joined.join_group(GROUP, List::default()).await.unwrap();
        self.nodes.insert(node, joined);
    }

    /// Makes a change at this node, as an operator would: looks at the membership and tries again while that is advised.
    async fn change(&self, node: u64, change: Change) -> Membership {
        let group = self.group(node);
        let mut may_have_happened = false;
        for _ in 0..1_000 {
            let version = group.membership().borrow().version;
            match group
                .change_membership(version, vec![change.clone()], false)
                .await
            {
                Ok(membership) => return membership,
                // The leader left with the answer; the member that was to go is gone.
                Err(ChangeError::Refused(ChangeRejection::NoSuchMember { .. })) if may_have_happened => {
                    return group.membership().borrow().clone();
                }
                Err(ChangeError::Unknown) => {
                    may_have_happened = true;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(ChangeError::Refused(
                    ChangeRejection::VersionMismatch { .. }
                    | ChangeRejection::UnderWay
                    | ChangeRejection::NotReady
                    | ChangeRejection::NoLeader
                    | ChangeRejection::Unreachable { .. }
                    | ChangeRejection::Behind { .. },
                )) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{change:?}: {error}"),
            }
        }
        panic!("{change:?} is refused for ever");
    }

    async fn standing(&self, node: u64) -> Standing {
        self.group(node).status().await.replica.standing
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_and_comes_back_in_one_life_numbers_its_commands_anew() {
    let mut cluster = Cluster::start().await;
    for _ in 0..5 {
        cluster.group(3).propose(text("before")).await.unwrap();
    }
    for _ in 0..2 {
        cluster.change(1, Change::Remove { node: NodeId(3) }).await;
        let node = cluster.nodes.remove(&3).unwrap();
        node.remove_group(GROUP).await.unwrap();
        let added = Change::AddLearner {
            node: NodeId(3),
            address: "node-3".into(),
        };
        let joined = node.join_group(GROUP, List::default()).await.unwrap();
        cluster.nodes.insert(3, node);
        cluster.change(1, added).await;
        for _ in 0..3 {
            joined.propose(text("after")).await.unwrap();
        }
        assert_eq!(joined.halted(), None);
    }
    let expected = [["before"; 5].as_slice(), &["after"; 6]].concat().join(" ");
    assert_eq!(cluster.list(1).await, expected);
}

#[tokio::test(start_paused = true)]
async fn all_nodes_are_replaced_one_after_the_other_and_nothing_is_lost() {
    let mut cluster = Cluster::start().await;
    cluster.leader().await;
    for node in 1..=3 {
        cluster.group(node).propose(text("x")).await.unwrap();
        let by = node + 3;
        cluster.join(by).await;
        let address = format!("node-{by}");
        let added = Change::AddLearner {
            node: NodeId(by),
            address: address.clone(),
        };
        cluster.change(node, added).await;
        let replaced = Change::Replace {
            node: NodeId(node),
            by: NodeId(by),
            address,
        };
        let via = if node == 3 { 4 } else { 3 };
        let membership = cluster.change(via, replaced).await;
        assert!(membership.member(NodeId(node)).is_none());
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(
            cluster.standing(node).await,
            Standing::Removed,
            "node {node} is told"
        );
        cluster.crash(node).await;
    }
    for node in 4..=6 {
        assert_eq!(cluster.standing(node).await, Standing::Voter);
        assert_eq!(cluster.list(node).await, "x x x", "node {node}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_watch_tells_the_members_and_a_restart_remembers_them() {
    let mut cluster = Cluster::start().await;
    cluster.leader().await;
    cluster.join(4).await;
    let mut watch = cluster.group(4).membership();
    assert_eq!(watch.borrow().version, 0, "nothing is known yet");
    let added = Change::AddLearner {
        node: NodeId(4),
        address: "node-4".into(),
    };
    let membership = cluster.change(2, added).await;
    watch
        .wait_for(|known| known.version >= membership.version)
        .await
        .unwrap();
    assert_eq!(
        watch.borrow().member(NodeId(4)).map(|member| member.role),
        Some(Role::Learner)
    );
    cluster.crash(4).await;
    let again = cluster.spawn_node(4).await.unwrap();
    again.join_group(GROUP, List::default()).await.unwrap();
    cluster.nodes.insert(4, again);
    assert_eq!(cluster.standing(4).await, Standing::Learner);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_cannot_be_says_why_and_what_to_do() {
    let cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let group = cluster.group(leader);
    let version = group.membership().borrow().version;
    let remove = vec![Change::Remove { node: NodeId(9) }];
    let error = group
        .change_membership(version, remove.clone(), true)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "node 9 is not a member of the group; list the members and try again"
    );
    let error = group
        .change_membership(version + 1, remove, true)
        .await
        .unwrap_err();
    let present = version;
    let expected = version + 1;
    assert_eq!(
        error,
        ChangeError::Refused(ChangeRejection::VersionMismatch { expected, present })
    );
}
