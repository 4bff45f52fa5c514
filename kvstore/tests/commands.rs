//! What a Redis client sees of a cluster, whichever node it talks to.

#![allow(clippy::cast_possible_wrap, reason = "counts are far below 2^63")]

mod common;

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
};

use common::{Cluster, PATIENCE};
use redis::{Connection, RedisResult, cmd, pipe};

fn error_of<T: redis::FromRedisValue + std::fmt::Debug>(outcome: RedisResult<T>) -> String {
    outcome.expect_err("an error is expected").to_string()
}

/// Sends raw bytes and reads until the server closes the connection or `until` has come.
fn raw(port: u16, bytes: &[u8], until: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut text = String::new();
    let mut chunk = [0; 4096];
    while until.is_empty() || !text.contains(until) {
        match stream.read(&mut chunk).unwrap() {
            0 => break,
            read => text.push_str(&String::from_utf8_lossy(&chunk[..read])),
        }
    }
    text
}

#[test]
fn any_node_serves_any_client() {
    let cluster = Cluster::start(3, &["--storage", "memory"]);
    for writer in 1..=3 {
        let key = format!("key{writer}");
        let _: () = cmd("SET")
            .arg(&key)
            .arg(writer)
            .query(&mut cluster.connect(writer))
            .unwrap();
        for reader in 1..=3 {
            let found: usize = cmd("GET").arg(&key).query(&mut cluster.connect(reader)).unwrap();
            assert_eq!(found, writer, "written through {writer}, read through {reader}");
        }
    }
    let mut clients: Vec<Connection> = (1..=3).map(|node| cluster.connect(node)).collect();
    for turn in 1..=30 {
        let count: i64 = cmd("INCR").arg("n").query(&mut clients[turn % 3]).unwrap();
        assert_eq!(count, turn as i64);
    }

    a_pipeline_is_done_in_order(&mut clients[1]);
    errors_are_those_of_redis(&mut clients[2]);
    versions_2_and_3_are_spoken(&cluster);
    broken_clients_disturb_nobody(&cluster, &mut clients[0]);
    http_tells_of_the_node(&cluster);
}

fn a_pipeline_is_done_in_order(client: &mut Connection) {
    let (before, set, between, count, after, missing): (Option<i64>, String, i64, i64, i64, Option<i64>) =
        pipe()
            .cmd("GET")
            .arg("p")
            .cmd("SET")
            .arg("p")
            .arg(5)
            .cmd("GET")
            .arg("p")
            .cmd("INCR")
            .arg("p")
            .cmd("GET")
            .arg("p")
            .cmd("GET")
            .arg("q")
            .query(client)
            .unwrap();
    assert_eq!(
        (before, set.as_str(), between, count, after, missing),
        (None, "OK", 5, 6, 6, None)
    );

    let mut burst = pipe();
    for index in 0..3_000 {
        burst.cmd("SET").arg(format!("burst{index}")).arg(index).ignore();
        burst.cmd("GET").arg(format!("burst{index}"));
    }
    let found: Vec<i64> = burst.query(client).unwrap();
    assert!(found.into_iter().eq(0..3_000));
    let all: i64 = cmd("DBSIZE").query(client).unwrap();
    assert!(all >= 3_000);
    let _: () = cmd("FLUSHALL").query(client).unwrap();
    let all: i64 = cmd("DBSIZE").query(client).unwrap();
    assert_eq!(all, 0);
}

fn errors_are_those_of_redis(client: &mut Connection) {
    let _: () = cmd("SET").arg("text").arg("abc").query(client).unwrap();
    for (args, expected) in [
        (
            &["nosuch", "a", "b"][..],
            "unknown command 'nosuch', with args beginning with: 'a' 'b' ",
        ),
        (&["get"], "wrong number of arguments for 'get' command"),
        (&["SET", "a"], "wrong number of arguments for 'set' command"),
        (
            &["mset", "a", "1", "b"],
            "wrong number of arguments for 'mset' command",
        ),
        (&["INCR", "text"], "value is not an integer or out of range"),
        (&["SELECT", "1"], "DB index is out of range"),
        (
            &["CLIENT", "nosuch"],
            "unknown subcommand 'nosuch'. Try CLIENT HELP.",
        ),
        (
            &["CLIENT", "setname"],
            "wrong number of arguments for 'client|setname' command",
        ),
        (&["SCAN", "x"], "invalid cursor"),
        (&["HELLO", "4"], "unsupported protocol version"),
    ] {
        let error = error_of(cmd(args[0]).arg(&args[1..]).query::<redis::Value>(client));
        assert!(error.contains(expected.trim_end()), "{args:?}: {error}");
    }
}

fn versions_2_and_3_are_spoken(cluster: &Cluster) {
    let asked = b"GET none\r\nHELLO 3\r\nGET none\r\nCONFIG GET save\r\nHELLO 2\r\nGET none\r\nQUIT\r\n";
    let text = raw(cluster.resp[0], asked, "");
    assert!(text.starts_with("$-1\r\n%7\r\n$6\r\nserver\r\n"), "{text}");
    assert!(
        text.contains("\r\n_\r\n%1\r\n$4\r\nsave\r\n$0\r\n\r\n*14\r\n$6\r\nserver"),
        "{text}"
    );
    assert!(text.ends_with("$-1\r\n+OK\r\n"), "{text}");
}

fn broken_clients_disturb_nobody(cluster: &Cluster, other: &mut Connection) {
    let port = cluster.resp[0];
    assert_eq!(
        raw(port, b"PING\r\n*1\r\n:1\r\n", ""),
        "+PONG\r\n-ERR Protocol error: expected '$', got ':'\r\n"
    );
    assert_eq!(
        raw(port, b"*99999999\r\n", ""),
        "-ERR Protocol error: invalid multibulk length\r\n"
    );
    let too_large = raw(port, b"*2\r\n$3\r\nGET\r\n$999999999\r\n", "");
    assert_eq!(too_large, "-ERR Protocol error: invalid bulk length\r\n");
    // What a web page makes a browser send.
    for request in [
        "POST / HTTP/1.1\r\nHost: x\r\n\r\nSET stolen 1\r\n",
        "host: x\r\n\r\nSET stolen 1\r\n",
    ] {
        assert_eq!(raw(port, request.as_bytes(), ""), "");
    }
    assert_eq!(
        cmd("GET").arg("stolen").query::<Option<i64>>(other).unwrap(),
        None
    );
    assert_eq!(
        raw(port, b"AUTH default x\r\nAUTH x y\r\nQUIT\r\n", ""),
        "+OK\r\n-WRONGPASS invalid username-password pair or user is disabled.\r\n+OK\r\n"
    );
    drop(TcpStream::connect(("127.0.0.1", port)).unwrap());
    assert_eq!(cmd("PING").query::<String>(other).unwrap(), "PONG");
}

fn http_tells_of_the_node(cluster: &Cluster) {
    let get = |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        raw(cluster.http[1], request.as_bytes(), "")
    };
    assert!(get("/livez").starts_with("HTTP/1.1 200"));
    let ready = get("/readyz?verbose");
    assert!(
        ready.starts_with("HTTP/1.1 200") && ready.contains("group 0: leader node"),
        "{ready}"
    );
    let metrics = get("/metrics");
    for name in [
        "paxos_has_leader{group=\"0\"} 1",
        "paxos_commit_index{group=\"0\"}",
        "kvstore_commands_total{cmd=\"get\",result=\"ok\"}",
        "kvstore_connected_clients",
        "kvstore_keys{group=\"0\"}",
        "kvstore_data_bytes{group=\"0\"}",
        "kvstore_expires 0",
        "build_info{version=",
    ] {
        assert!(metrics.contains(name), "{name} is missing in {metrics}");
    }
    let leader = cluster.leader();
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let metrics = raw(cluster.http[leader - 1], request, "");
    for name in ["paxos_peer_active", "paxos_peer_match_index"] {
        let peers = metrics
            .lines()
            .filter(|line| line.starts_with(&format!("{name}{{group=\"0\",peer=")));
        assert_eq!(peers.count(), 2, "{name}: {metrics}");
    }
    let status = get("/status");
    let status: serde_json::Value = serde_json::from_str(status.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let fields = |value: &serde_json::Value| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<BTreeSet<_>>()
    };
    let expected = |names: &str| names.split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(
        fields(&status),
        expected("node_id cluster_id version storage uptime_seconds groups ready alarms")
    );
    assert_eq!(
        fields(&status["groups"][0]),
        expected(
            "group is_leader leader ballot standing in_sync chosen applied lag snapshot first_slot last_slot damaged \
             repaired digest hash membership_version members"
        )
    );
    assert_eq!(
        fields(&status["groups"][0]["members"][0]),
        expected("id address role matched alive disk")
    );
    assert_eq!(status["node_id"], 2);
    assert_eq!(status["ready"], true);
}

/// All keys of a cluster, by a walk that goes to another node for each page.
fn scan(cluster: &Cluster, count: usize) -> Vec<String> {
    let mut clients: Vec<Connection> = (1..=3).map(|node| cluster.connect(node)).collect();
    let (mut cursor, mut found, mut turn) = (0_u64, Vec::new(), 0);
    loop {
        let page: (u64, Vec<String>) = cmd("SCAN")
            .arg(cursor)
            .arg("COUNT")
            .arg(count)
            .query(&mut clients[turn % 3])
            .unwrap();
        turn += 1;
        found.extend(page.1);
        cursor = page.0;
        if cursor == 0 {
            found.sort();
            return found;
        }
    }
}

#[test]
fn several_groups_share_the_keys() {
    let cluster = Cluster::start(3, &["--storage", "memory", "--groups", "4"]);
    let mut client = cluster.connect(2);
    let mut keys: Vec<String> = (0..200).map(|index| format!("key{index}")).collect();
    let mut burst = pipe();
    for key in &keys {
        burst.cmd("SET").arg(key).arg(key).ignore();
    }
    let _: () = burst.query(&mut client).unwrap();
    keys.sort();
    assert_eq!(scan(&cluster, 20), keys);
    let mut found: Vec<String> = cmd("KEYS").arg("key*").query(&mut client).unwrap();
    found.sort();
    assert_eq!(found, keys);
    assert_eq!(cmd("DBSIZE").query::<usize>(&mut client).unwrap(), 200);

    let mut burst = pipe();
    for key in &keys {
        burst.cmd("GET").arg(key);
    }
    assert_eq!(burst.query::<Vec<String>>(&mut client).unwrap(), keys);

    // These hash slots lie in different quarters; tags keep keys together.
    let apart = error_of(cmd("MSET").arg(&["a", "1", "foo", "2"]).query::<()>(&mut client));
    assert!(apart.to_uppercase().contains("CROSSSLOT"), "{apart}");
    let _: () = cmd("MSET")
        .arg(&["{t}a", "1", "{t}b", "2"])
        .query(&mut client)
        .unwrap();
    let found: Vec<i64> = cmd("MGET").arg(&["{t}a", "{t}b"]).query(&mut client).unwrap();
    assert_eq!(found, [1, 2]);
    let _: () = cmd("FLUSHALL").query(&mut client).unwrap();
    assert!(scan(&cluster, 20).is_empty());
}

/// First slot, last slot and the master's port of each range, as a node tells it.
fn masters(client: &mut Connection) -> Vec<(u16, u16, u16)> {
    type Node = (String, u16, String, Vec<String>);
    let ranges: Vec<(u16, u16, Node, Node, Node)> = cmd("CLUSTER").arg("SLOTS").query(client).unwrap();
    ranges
        .into_iter()
        .map(|(first, last, (host, port, ..), one, other)| {
            let ports = BTreeSet::from([port, one.1, other.1]);
            assert_eq!(
                (host.as_str(), ports.len()),
                ("127.0.0.1", 3),
                "every node has every slot"
            );
            (first, last, port)
        })
        .collect()
}

#[test]
fn cluster_clients_find_the_leader_of_each_slot() {
    let cluster = Cluster::start(
        3,
        &["--storage", "memory", "--groups", "4", "--route", "redirect"],
    );
    let mut client = cluster.connect(1);
    // One leads two of the four groups, once all have their leaders and the nodes each other's addresses.
    let ranges = common::eventually("the leaders are dealt out", || {
        let info: String = cmd("CLUSTER").arg("INFO").query(&mut client).unwrap();
        let slots: redis::Value = cmd("CLUSTER").arg("SLOTS").query(&mut client).unwrap();
        let is_known = format!("{slots:?}").matches("127.0.0.1").count() >= 9;
        if !is_known || !info.contains("cluster_state:ok") || !info.contains("cluster_size:3") {
            return Err(info);
        }
        Ok(masters(&mut client))
    });
    let mut next = 0;
    for (first, last, port) in ranges {
        assert_eq!(first, next, "the ranges leave nothing out");
        next = last + 1;
        // Whoever does not lead the slot's group redirects.
        let key = (0..100_000)
            .map(|number| format!("key{number}"))
            .find(|key| (first..=last).contains(&kvstore::shards::hash_slot(key.as_bytes())))
            .unwrap();
        let asked = format!("SET {key} 1\r\nQUIT\r\n");
        assert_eq!(
            raw(port, asked.as_bytes(), ""),
            "+OK\r\n+OK\r\n",
            "{key} at {port}"
        );
    }
    assert_eq!(next, 16_384);

    let id: String = cmd("CLUSTER").arg("MYID").query(&mut client).unwrap();
    let nodes: String = cmd("CLUSTER").arg("NODES").query(&mut client).unwrap();
    assert_eq!(nodes.lines().count(), 3, "{nodes}");
    let own = format!(
        "{id} 127.0.0.1:{}@0 myself,master - 0 0 0 connected ",
        cluster.resp[0]
    );
    assert!(nodes.lines().any(|line| line.starts_with(&own)), "{nodes}");
    let told = nodes.lines().flat_map(|line| line.split(' ').skip(8));
    let ranges = told.map(|range| range.split_once('-').expect("more than one slot"));
    let slot = |text: &str| text.parse::<u32>().unwrap();
    let led: u32 = ranges.map(|(first, last)| slot(last) + 1 - slot(first)).sum();
    assert_eq!(led, 16_384, "{nodes}");
    let facts: String = cmd("INFO").arg("cluster").query(&mut client).unwrap();
    assert!(facts.contains("cluster_enabled:1"), "{facts}");
    let shards: Vec<redis::Value> = cmd("CLUSTER").arg("SHARDS").query(&mut client).unwrap();
    assert_eq!(shards.len(), 3);
    let unknown = error_of(cmd("CLUSTER").arg("MEET").query::<()>(&mut client));
    assert!(unknown.contains("unknown subcommand 'MEET'"), "{unknown}");
}

#[test]
fn redirected_clients_are_told_the_leaders_address() {
    let cluster = Cluster::start(3, &["--storage", "memory", "--route", "redirect"]);
    let leader = cluster.leader();
    let follower = leader % 3 + 1;
    let asked = b"SET foo 1\r\nQUIT\r\n";
    let expected = format!("-MOVED 12182 127.0.0.1:{}\r\n+OK\r\n", cluster.resp[leader - 1]);
    // The nodes tell each other their addresses soon after the start.
    common::eventually("the leader's address is known", || {
        let told = raw(cluster.resp[follower - 1], asked, "");
        if told == expected { Ok(()) } else { Err(told) }
    });
    assert_eq!(raw(cluster.resp[leader - 1], asked, ""), "+OK\r\n+OK\r\n");
    // A client that says so reads from any node; it writes through the leader all the same.
    let asked = b"READONLY\r\nGET foo\r\nSET foo 2\r\nREADWRITE\r\nGET foo\r\nQUIT\r\n";
    let moved = expected.trim_end_matches("+OK\r\n");
    let told = format!("+OK\r\n$1\r\n1\r\n{moved}+OK\r\n{moved}+OK\r\n");
    assert_eq!(raw(cluster.resp[follower - 1], asked, ""), told);
    let endpoints = format!("127.0.0.1:{}", cluster.resp[follower - 1]);
    let output = common::run(&["get", "foo", "--endpoints", &endpoints]);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"1\n"[..]));
}

#[test]
fn verbs_work_against_any_node_and_end_as_documented() {
    let mut cluster = Cluster::start(3, &["--storage", "memory"]);
    let endpoints = format!("127.0.0.1:1,127.0.0.1:{}", cluster.resp[2]);
    let verb = |args: &[&str]| {
        let output = common::run(&[args, &["--endpoints", &endpoints, "--timeout", "5s"]].concat());
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.code().unwrap(), text)
    };
    let told = |code: i32, text: &str| (code, text.to_owned());
    assert_eq!(verb(&["get", "a"]), told(3, "(not found)"));
    assert_eq!(verb(&["put", "a", "1"]), told(0, "OK"));
    assert_eq!(
        verb(&["get", "a", "-o", "json"]),
        told(0, r#"{"key":"a","value":"1"}"#)
    );
    assert_eq!(verb(&["incr", "a"]), told(0, "2"));
    assert_eq!(verb(&["incr", "a", "-5"]), told(0, "-3"));
    assert_eq!(verb(&["cas", "a", "-3", "x"]), told(0, "swapped"));
    assert_eq!(verb(&["cas", "a", "-3", "y"]).0, 3);
    assert_eq!(verb(&["incr", "a"]).0, 1);
    assert_eq!(verb(&["del", "a", "b"]), told(0, "1"));
    assert_eq!(verb(&["del", "a"]), told(3, "0"));
    let (code, json) = verb(&["status", "-o", "json"]);
    let nodes: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &nodes[1]["status"]["node_id"]), (0, &3.into()));
    let (code, json) = verb(&[
        "bench",
        "--duration",
        "200ms",
        "--clients",
        "4",
        "--pipeline",
        "4",
        "--read-ratio",
        "0.5",
        "-o",
        "json",
    ]);
    let summary: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(code, 0);
    assert!(summary["commands"].as_u64().unwrap() > 0, "{summary}");
    assert_eq!(verb(&["get"]).0, 2);
    assert_eq!(verb(&["frobnicate"]).0, 2);

    // An endpoint that takes connections and never answers: a read goes on to the next one, a write may have happened.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("{},127.0.0.1:{}", listener.local_addr().unwrap(), cluster.resp[2]);
    let asked = |args: &[&str]| common::run(&[args, &["--endpoints", &silent, "--timeout", "2s"]].concat());
    assert_eq!(asked(&["get", "n"]).status.code(), Some(3));
    let output = asked(&["put", "n", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("may have happened"));

    cluster.kill(1);
    cluster.kill(2);
    let (code, _) = verb(&["put", "a", "1"]);
    assert!(
        code == 4 || code == 1,
        "without a quorum nothing is acknowledged: {code}"
    );
    assert_eq!(verb(&["get", "a"]).0, 4);
    assert!(cluster.terminate(3).success(), "{}", cluster.log(3));
    assert_eq!(verb(&["get", "a"]).0, 1);
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let mut child = common::kvstore(&["status", "--watch", "--endpoints", "127.0.0.1:1"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(common::wait_for_end(&mut child).success());
    let mut complaints = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut complaints)
        .unwrap();
    assert_eq!(complaints, "");
}
