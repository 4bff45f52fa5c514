//! What operators do to a running cluster, with the command line.

mod common;

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

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
    let cluster = Cluster::start(3, &["--groups", "2", "--balance-leaders", "false"]);
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
fn the_leaders_of_several_groups_are_dealt_out() {
    let cluster = Cluster::start(3, &["--groups", "6", "--lease-reads"]);
    eventually("each node leads two groups", || {
        let (code, told) = verb(&cluster, 1, &["leader", "-o", "json"]);
        let outcomes: Vec<serde_json::Value> = serde_json::from_str(&told).unwrap_or_default();
        let led = |node: u64| {
            outcomes
                .iter()
                .filter(|outcome| outcome["leader"] == node)
                .count()
        };
        if code == 0 && (1..=3).all(|node| led(node) == 2) {
            Ok(())
        } else {
            Err(told)
        }
    });
    let load = Load::at(&cluster, 1);
    for node in [2, 3] {
        let mut client = cluster.connect(node);
        redis::cmd("SET")
            .arg("seen")
            .arg(node)
            .exec(&mut client)
            .expect("a write");
        let seen: usize = redis::cmd("GET")
            .arg("seen")
            .query(&mut cluster.connect(1))
            .expect("a read");
        assert_eq!(seen, node);
    }
    load.finish(&cluster, 3);
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

/// The status of a node's only group.
fn group(cluster: &Cluster, node: usize) -> serde_json::Value {
    let status = cluster.status(node);
    status.map_or(serde_json::Value::Null, |status| status["groups"][0].clone())
}

/// Waits until a node has this standing, is in step, and holds the same as the leader.
fn in_step(cluster: &Cluster, node: usize, standing: &str) -> serde_json::Value {
    eventually(&format!("node {node} is in step as {standing}"), || {
        let (own, leaders) = (group(cluster, node), group(cluster, cluster.leader()));
        let same = ["applied", "digest"]
            .iter()
            .all(|field| own[field] == leaders[field]);
        let well = own["in_sync"] == true && own["standing"] == standing;
        if same && well {
            Ok(own)
        } else {
            Err((own, leaders))
        }
    })
}

/// Waits until a node has this standing, is in step, and has applied what the leader had a moment before: under load no
/// two nodes are asked at the same slot.
fn keeps_up(cluster: &Cluster, node: usize, standing: &str) {
    eventually(&format!("node {node} keeps up as {standing}"), || {
        let leaders = group(cluster, cluster.leader())["applied"].as_u64();
        let own = group(cluster, node);
        let well = own["in_sync"] == true && own["standing"] == standing;
        if well && leaders.is_some() && own["applied"].as_u64() >= leaders {
            Ok(())
        } else {
            Err((own, leaders))
        }
    });
}

/// The voters, as any node tells.
fn voters(cluster: &Cluster, node: usize) -> Vec<u64> {
    let listed = json(cluster, node, &["member", "list"]);
    let members = listed[0]["members"].as_array().expect("members").clone();
    let voters = members.iter().filter(|member| member["role"] == "voter");
    voters
        .map(|member| member["id"].as_u64().expect("an id"))
        .collect()
}

/// A client that writes one key after the other, and notes what it is told.
struct Load {
    stop: Arc<AtomicBool>,
    writer: JoinHandle<(u64, Vec<String>)>,
}

impl Load {
    /// Writes at a node.
    fn at(cluster: &Cluster, node: usize) -> Self {
        let mut client = cluster.connect(node);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let writer = std::thread::spawn(move || {
            let (mut written, mut errors) = (0, Vec::new());
            while !stopped.load(Relaxed) {
                let set = redis::cmd("SET")
                    .arg(format!("key-{written}"))
                    .arg(written)
                    .exec(&mut client);
                match set {
                    Ok(()) => written += 1,
                    Err(error) => {
                        errors.push(format!("{} {error}", error.code().unwrap_or_default()));
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            }
            (written, errors)
        });
        Self { stop, writer }
    }

    /// Every key is there at this node, and nothing failed but what certainly did not happen.
    fn finish(self, cluster: &Cluster, node: usize) {
        self.stop.store(true, Relaxed);
        let (written, errors) = self.writer.join().expect("the writer does not panic");
        assert!(written > 0);
        for error in &errors {
            assert!(
                error.starts_with("LOADING") || error.starts_with("BUSY"),
                "{error}"
            );
        }
        let mut client = cluster.connect(node);
        for key in 0..written {
            let value: Option<u64> = redis::cmd("GET")
                .arg(format!("key-{key}"))
                .query(&mut client)
                .expect("a value");
            assert_eq!(value, Some(key));
        }
        println!("{written} writes, {} refused", errors.len());
    }
}

#[test]
fn a_node_joins_votes_and_leaves_under_load() {
    let mut cluster = Cluster::start(3, &[]);
    let load = Load::at(&cluster, 1);
    let four = cluster.join_node();
    keeps_up(&cluster, four, "learner");
    assert_eq!(voters(&cluster, 2), [1, 2, 3]);

    let (code, told) = verb(&cluster, 3, &["member", "promote", "4", "--wait"]);
    assert_eq!(code, 0, "{told}");
    assert_eq!(voters(&cluster, four), [1, 2, 3, 4]);
    let again = json(&cluster, 2, &["member", "promote", "4"]);
    assert_eq!(
        (&again[0]["ok"], &again[0]["changed"]),
        (&true.into(), &false.into())
    );
    let (code, told) = verb(&cluster, 1, &["leader", "transfer", "4"]);
    assert_eq!(code, 0, "{told}");
    let (code, told) = verb(&cluster, 2, &["member", "demote", "4"]);
    assert_eq!(code, 0, "{told}");
    assert_eq!(voters(&cluster, 1), [1, 2, 3]);
    let (code, told) = verb(&cluster, 2, &["member", "promote", "4", "--wait"]);
    assert_eq!(code, 0, "{told}");
    let (code, told) = verb(&cluster, 3, &["member", "remove", "4"]);
    assert_eq!(code, 0, "{told}");
    assert_eq!(voters(&cluster, 1), [1, 2, 3]);
    eventually("the node knows that it was removed", || {
        let group = group(&cluster, four);
        if group["standing"] == "removed" {
            Ok(())
        } else {
            Err(group)
        }
    });
    load.finish(&cluster, 2);

    let (code, told) = verb(&cluster, 1, &["member", "promote", "9"]);
    assert_eq!(code, 3, "{told}");
    assert!(told.contains("node 9 is not a member"), "{told}");
}

/// The clients go on at the nodes that leave, until those are shut down.
#[test]
fn no_client_is_left_in_doubt_while_three_nodes_are_replaced() {
    let mut cluster = Cluster::start(3, &["--groups", "3"]);
    let mut loads: VecDeque<[Load; 2]> = (1..=3)
        .map(|node| [Load::at(&cluster, node), Load::at(&cluster, node)])
        .collect();
    for old in 1..=3 {
        let new = cluster.join_node();
        let member = format!("{new}={}", cluster.peer(new));
        let (code, told) = verb(
            &cluster,
            old + 1,
            &["member", "replace", &old.to_string(), &member],
        );
        assert_eq!(code, 0, "{told}");
        for load in loads.pop_front().expect("two clients at each node") {
            load.finish(&cluster, new);
        }
        assert!(cluster.terminate(old).success());
        // There must be time for a write.
        if old < 3 {
            loads.push_back([Load::at(&cluster, new), Load::at(&cluster, new)]);
        }
    }
    assert_eq!(voters(&cluster, 4), [4, 5, 6]);
    for load in loads.iter().flatten() {
        load.stop.store(true, Relaxed);
    }
    for load in loads.into_iter().flatten() {
        load.finish(&cluster, 4);
    }
}

#[test]
fn a_node_goes_on_joining_when_it_is_started_again() {
    let mut cluster = Cluster::start(3, &[]);
    // One node says which cluster it is, and nobody can add another one.
    cluster.kill(2);
    cluster.kill(3);
    let four = cluster.join_node();
    eventually("the node waits to be added", || {
        let log = cluster.log(four);
        if log.contains("not added to the cluster yet") {
            Ok(())
        } else {
            Err(log)
        }
    });
    cluster.kill(four);
    cluster.start_node(2);
    cluster.start_node(four);
    in_step(&cluster, four, "learner");
}

#[test]
fn a_node_that_joins_adds_itself_to_no_other_cluster() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.kill(2);
    cluster.kill(3);
    let four = cluster.join_node();
    eventually("the node waits to be added", || {
        let log = cluster.log(four);
        if log.contains("not added to the cluster yet") {
            Ok(())
        } else {
            Err(log)
        }
    });
    cluster.kill(four);
    let other = Cluster::start(1, &["--cluster-id", "other"]);
    cluster.flags = vec!["--join".into(), other.peer(1)];
    cluster.start_node(four);
    eventually("the node finds strangers", || {
        let log = cluster.log(four);
        if log.contains("belongs to cluster") {
            Ok(())
        } else {
            Err(log)
        }
    });
    let listed = json(&other, 1, &["member", "list"]);
    let members = listed[0]["members"].as_array().expect("members");
    assert_eq!(members.len(), 1, "{listed}");

    // A node that speaks for itself is told the same.
    let mut client = other.connect(1);
    let enrol = redis::cmd("KV.MEMBER")
        .arg(&["ENROL", "4", &cluster.peer(four), "1"])
        .exec(&mut client);
    assert!(
        enrol
            .unwrap_err()
            .to_string()
            .contains("this node belongs to cluster")
    );
}

#[test]
fn a_node_that_was_removed_does_not_add_itself_again() {
    let mut cluster = Cluster::start(3, &[]);
    let four = cluster.join_node();
    in_step(&cluster, four, "learner");
    let (code, told) = verb(&cluster, 1, &["member", "remove", "4"]);
    assert_eq!(code, 0, "{told}");
    cluster.kill(four);
    std::fs::remove_dir_all(cluster.data_dir(four)).expect("the directory is removed");
    cluster.start_node(four);
    eventually("the node is told", || {
        let log = cluster.log(four);
        if log.contains("node 4 was removed") {
            Ok(())
        } else {
            Err(log)
        }
    });
    let listed = json(&cluster, 1, &["member", "list"]);
    let members = listed[0]["members"].as_array().expect("members");
    assert_eq!(members.len(), 3, "{listed}");

    let member = format!("4={}", cluster.peer(four));
    let (code, told) = verb(&cluster, 2, &["member", "add", &member]);
    assert_eq!(code, 0, "{told}");
    in_step(&cluster, four, "learner");
}

#[test]
fn a_change_that_would_stop_the_cluster_is_refused_unless_forced() {
    let mut cluster = Cluster::start(3, &[]);
    let down = cluster.leader() % 3 + 1;
    let (here, other) = (cluster.leader(), 6 - down - cluster.leader());
    cluster.kill(down);
    // The voters that would be left are one that lives and one that does not.
    eventually("the leader misses the node", || {
        let listed = json(&cluster, here, &["member", "list"]);
        let members = listed[0]["members"].as_array().expect("members");
        let missed = members
            .iter()
            .any(|member| member["id"] == down && member["alive"] == false);
        if missed { Ok(()) } else { Err(listed) }
    });
    let (code, refused) = verb(&cluster, here, &["member", "remove", &other.to_string()]);
    assert_eq!(code, 1, "{refused}");
    assert!(
        refused.contains(&format!("node {down}")) && refused.contains("force"),
        "{refused}"
    );
    assert_eq!(voters(&cluster, other), [1, 2, 3]);
    let (code, told) = verb(&cluster, other, &["member", "remove", &down.to_string()]);
    assert_eq!(code, 0, "{told}");
    assert!(!voters(&cluster, here).contains(&(down as u64)));
}

#[test]
fn a_node_that_lost_its_disk_comes_back_by_itself() {
    let mut cluster = Cluster::start(3, &[]);
    let load = Load::at(&cluster, cluster.leader());
    let lost = cluster.leader() % 3 + 1;
    keeps_up(&cluster, lost, "voter");
    cluster.kill(lost);
    std::fs::remove_dir_all(cluster.data_dir(lost)).expect("the directory is removed");
    cluster.start_node(lost);
    eventually("the node is admitted again", || {
        let group = group(&cluster, lost);
        if group["standing"] == "voter" && group["in_sync"] == true {
            Ok(())
        } else {
            Err(group)
        }
    });
    load.finish(&cluster, lost);
    in_step(&cluster, lost, "voter");
}

#[test]
fn a_node_that_missed_more_than_the_log_holds_comes_back_by_a_snapshot() {
    let flags = ["--snapshot-entries", "200", "--snapshot-tail", "20"];
    let mut cluster = Cluster::start(3, &flags);
    let away = cluster.leader() % 3 + 1;
    let missed = group(&cluster, away)["chosen"].as_u64().expect("a slot");
    cluster.kill(away);
    let load = Load::at(&cluster, cluster.leader());
    eventually("the log is trimmed beyond what the node has", || {
        let group = group(&cluster, cluster.leader());
        if group["first_slot"].as_u64() > Some(missed + 100) {
            Ok(())
        } else {
            Err(group)
        }
    });
    cluster.start_node(away);
    eventually("the node has a snapshot", || {
        let group = group(&cluster, away);
        if group["applied"].as_u64() > Some(missed + 100) {
            Ok(())
        } else {
            Err(group)
        }
    });
    load.finish(&cluster, away);
    in_step(&cluster, away, "voter");

    let saved = json(&cluster, away, &["snapshot", "save"]);
    let upto = saved[0]["groups"][0]["snapshot"].as_u64();
    assert!(
        upto.is_some() && upto == group(&cluster, away)["snapshot"].as_u64(),
        "{saved}"
    );
}

#[test]
fn a_node_that_has_moved_is_found_again() {
    let mut cluster = Cluster::start(3, &[]);
    let moved = cluster.leader() % 3 + 1;
    cluster.terminate(moved);
    cluster.peers[moved - 1] = common::free_ports(1)[0];
    let address = cluster.peer(moved);
    cluster.flags = vec!["--peer".into(), address.clone()];
    cluster.start_node(moved);
    let member = format!("{moved}={address}");
    let (code, told) = verb(&cluster, cluster.leader(), &["member", "update", &member]);
    assert_eq!(code, 0, "{told}");
    in_step(&cluster, moved, "voter");
}

#[test]
fn a_removed_node_is_told_by_members_that_know_it_no_more() {
    let mut cluster = Cluster::start(3, &[]);
    let four = cluster.join_node();
    in_step(&cluster, four, "learner");
    cluster.kill(four);
    let (code, told) = verb(&cluster, 1, &["member", "remove", "4"]);
    assert_eq!(code, 0, "{told}");
    for node in 1..=3 {
        cluster.terminate(node);
        cluster.start_node(node);
    }
    cluster.leader();
    cluster.start_node(four);
    eventually("the node knows that it was removed", || {
        let group = group(&cluster, four);
        if group["standing"] == "removed" {
            Ok(())
        } else {
            Err(group)
        }
    });
}

#[test]
fn a_node_finds_the_others_that_have_all_moved() {
    let mut cluster = Cluster::start(3, &["--cluster-id", "moving"]);
    cluster.kill(3);
    for node in [1, 2] {
        cluster.terminate(node);
    }
    // The two come back elsewhere, and one of them tells the cluster.
    let ports = common::free_ports(2);
    for (node, port) in [(1, ports[0]), (2, ports[1])] {
        cluster.peers[node - 1] = port;
    }
    let flags = cluster.flags.clone();
    for (node, other) in [(1, 2), (2, 1)] {
        cluster.flags = flags.clone();
        cluster.flags.extend(["--peer".into(), cluster.peer(node)]);
        cluster.flags.extend(["--join".into(), cluster.peer(other)]);
        cluster.start_node(node);
    }
    cluster.flags = flags;
    for node in [1, 2] {
        let member = format!("{node}={}", cluster.peer(node));
        let (code, told) = verb(&cluster, cluster.leader(), &["member", "update", &member]);
        assert_eq!(code, 0, "{told}");
    }
    cluster.flags.extend(["--join".into(), cluster.peer(1)]);
    cluster.start_node(3);
    in_step(&cluster, 3, "voter");
}

#[test]
fn a_client_stops_the_leader_and_writes_go_on() {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader();
    let other = leader % 3 + 1;
    let mut client = cluster.connect(leader);
    for (words, refusal) in [
        (["ABORT"], "No shutdown in progress"),
        (["LATER"], "syntax error"),
    ] {
        let refused = redis::cmd("SHUTDOWN").arg(&words).exec(&mut client);
        assert!(refused.unwrap_err().to_string().contains(refusal));
    }
    let stopped = redis::cmd("SHUTDOWN").arg("NOSAVE").exec(&mut client);
    assert!(stopped.is_err(), "the connection is closed without an answer");
    assert!(cluster.ends_well(leader));
    assert!(cluster.log(leader).contains("a client stops this node"));
    let mut client = cluster.connect(other);
    redis::cmd("SET")
        .arg("a")
        .arg(1)
        .exec(&mut client)
        .expect("a write");
    // Who was handed over to does not wait for an election timeout: nobody had to notice anything.
    assert!(cluster.log(leader).contains("node stopped"));
}

#[test]
fn who_may_not_stop_a_node_is_told_so() {
    let cluster = Cluster::start(1, &["--shutdown-command", "no"]);
    let refused = redis::cmd("SHUTDOWN").exec(&mut cluster.connect(1)).unwrap_err();
    assert!(refused.to_string().contains("--shutdown-command"), "{refused}");
    cluster.wait_until_it_reads(1);
}
