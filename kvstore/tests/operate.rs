//! What operators do to a running cluster, with the command line.

mod common;

use common::{Cluster, eventually, run};

/// Runs a verb at one node; its exit code and what it printed on both outputs.
fn verb(cluster: &Cluster, node: usize, words: &[&str]) -> (i32, String) {
    let endpoint = format!("127.0.0.1:{}", cluster.resp[node - 1]);
    let output = run(&[words, &["--endpoints", &endpoint]].concat());
    let told = [&output.stdout[..], &output.stderr].concat();
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&told).into_owned(),
    )
}

/// A verb that must do well; its JSON.
fn json(cluster: &Cluster, node: usize, words: &[&str]) -> serde_json::Value {
    let (code, told) = verb(cluster, node, &[words, &["-o", "json"]].concat());
    assert_eq!(code, 0, "{words:?}: {told}");
    serde_json::from_str(&told).expect("the output is JSON")
}

#[test]
fn any_node_is_asked_to_make_another_one_lead() {
    let cluster = Cluster::start(3, &["--groups", "2"]);
    let leader = cluster.leader();
    let next = leader % 3 + 1;
    let last = next % 3 + 1;
    let moved = json(&cluster, last, &["leader", "transfer", &next.to_string()]);
    for (group, outcome) in moved.as_array().expect("a list").iter().enumerate() {
        assert_eq!(outcome["group"], group);
        assert_eq!(
            (&outcome["ok"], &outcome["leader"]),
            (&true.into(), &next.into()),
            "{moved}"
        );
    }
    assert_eq!(cluster.leader(), next);
    eventually("every node knows the leader", || {
        let (code, told) = verb(&cluster, leader, &["leader", "--group", "1"]);
        let expected = format!("GROUP  LEADER\n1      {next}\n");
        if (code, told.as_str()) == (0, expected.as_str()) {
            Ok(())
        } else {
            Err(told)
        }
    });
}

#[test]
fn a_transfer_that_cannot_be_says_why() {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader();
    let down = leader % 3 + 1;
    cluster.kill(down);
    let (code, told) = verb(&cluster, leader, &["leader", "transfer", "9", "--timeout", "1s"]);
    assert_eq!(code, 3, "{told}");
    assert!(told.contains("node 9 is no voter of the group"), "{told}");
    eventually("the leader misses the node", || {
        let to = down.to_string();
        let (code, told) = verb(&cluster, leader, &["leader", "transfer", &to, "--timeout", "3s"]);
        if code == 1 && told.contains("does not answer the leader") {
            Ok(())
        } else {
            Err(told)
        }
    });
    let (code, told) = verb(&cluster, leader, &["leader", "--group", "7"]);
    assert_eq!(code, 1, "{told}");
    assert!(told.contains("no such group"), "{told}");
    let (code, told) = verb(&cluster, leader, &["leader", "transfer", "nobody"]);
    assert_eq!(code, 2, "{told}");
}
