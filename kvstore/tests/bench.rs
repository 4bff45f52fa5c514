//! The load generator against a real node.

mod common;

use common::{Cluster, KVSTORE, run};
use serde_json::Value;

/// Runs `kvstore bench` against the cluster's nodes; the result is JSON.
fn bench(cluster: &Cluster, args: &[&str]) -> Value {
    let endpoints: Vec<_> = cluster
        .resp
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    let mut all = vec!["bench"];
    all.extend(args);
    let endpoints = endpoints.join(",");
    all.extend(["--endpoints", &endpoints, "-o", "json"]);
    let output = run(&all);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{KVSTORE} {all:?}: {errors}");
    serde_json::from_slice(&output.stdout).expect("the result is JSON")
}

const SHORT: [&str; 6] = ["--duration", "500ms", "--warm-up", "200ms", "--value-size", "100"];

fn with<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&SHORT, args].concat()
}

#[test]
fn loads_are_measured_compared_and_drawn() {
    let cluster = Cluster::start(1, &["--storage", "memory"]);

    let closed = bench(
        &cluster,
        &with(&["--clients", "8", "--pipeline", "4", "--read-ratio", "0.5"]),
    );
    assert!(closed["commands"].as_u64() > Some(8), "{closed}");
    assert!(
        closed["reads_per_second"].as_f64() > Some(0.0) && closed["writes_per_second"].as_f64() > Some(0.0)
    );
    assert_eq!(
        (&closed["errors"], &closed["load"]["rate"]),
        (&0.into(), &Value::Null)
    );
    let latency = |name: &str| closed["latency_us"][name].as_u64().expect("a number");
    assert!(latency("min") <= latency("p50") && latency("p50") <= latency("p99"));
    assert!(latency("p99") <= latency("max"));

    let open = bench(
        &cluster,
        &with(&["--clients", "8", "--rate", "200", "--threads", "2"]),
    );
    let due = open["due"].as_u64().expect("a number");
    assert!(
        (98..=102).contains(&due),
        "200 per second for half a second: {open}"
    );
    assert_eq!(open["errors_by_kind"], serde_json::json!({}));

    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str| directory.path().join(name).display().to_string();
    let sweep = bench(
        &cluster,
        &[
            &["sweep", "--client-counts", "1,4", "--plot", &file("plot.svg")],
            &SHORT[..],
        ]
        .concat(),
    );
    assert_eq!(sweep["runs"].as_array().map(Vec::len), Some(2));
    let plot = std::fs::read_to_string(file("plot.svg")).expect("a plot");
    assert!(
        plot.starts_with("<svg") && plot.matches("<circle").count() == 6,
        "{plot}"
    );

    std::fs::write(file("a.json"), closed.to_string()).expect("a file");
    std::fs::write(file("b.json"), open.to_string()).expect("a file");
    let compared = run(&["bench", "compare", &file("a.json"), &file("a.json")]);
    let table = String::from_utf8_lossy(&compared.stdout).into_owned();
    assert!(table.contains("writes/s") && table.contains("1.00"), "{table}");
    let refused = run(&["bench", "compare", &file("a.json"), &file("b.json")]);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && error.contains("another load"),
        "{error}"
    );
}

#[test]
fn commands_go_to_the_leaders_of_their_slots_if_that_is_asked_for() {
    // A node that does not lead a key's group answers with an error.
    let cluster = Cluster::start(
        3,
        &["--storage", "memory", "--groups", "6", "--route", "redirect"],
    );
    let load = with(&["--clients", "6", "--pipeline", "2", "--cluster"]);
    let result = common::eventually("the leaders are dealt out and known everywhere", || {
        let result = bench(&cluster, &load);
        if result["errors"] == 0 {
            Ok(result)
        } else {
            Err(result)
        }
    });
    assert!(result["commands"].as_u64() > Some(6), "{result}");
    assert_eq!(result["load"]["cluster"], true);
    let errors = &bench(&cluster, &with(&["--clients", "6"]))["errors"];
    assert!(
        errors.as_u64() > Some(0),
        "without it some commands are redirected"
    );
}

#[test]
fn what_fails_is_counted_by_kind() {
    // Two of three nodes are gone: nothing is carried out.
    let mut cluster = Cluster::start(3, &["--storage", "memory"]);
    cluster.kill(2);
    cluster.kill(3);
    let endpoint = format!("127.0.0.1:{}", cluster.resp[0]);
    let args = with(&[
        "--clients",
        "4",
        "--rate",
        "100",
        "--timeout",
        "10s",
        "--endpoints",
        &endpoint,
        "-o",
        "json",
    ]);
    let output = run(&[&["bench"], &args[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    let result: Value = serde_json::from_slice(&output.stdout).expect("the result is JSON");
    assert_eq!(result["commands"], 0);
    assert_eq!(result["errors"], result["due"], "every command ended: {result}");
    let kinds: Vec<_> = result["errors_by_kind"]
        .as_object()
        .expect("kinds")
        .keys()
        .collect();
    assert!(
        kinds
            .iter()
            .all(|kind| ["LOADING", "UNKNOWN"].contains(&kind.as_str())),
        "{result}"
    );
    assert!(
        result["error_latency_us"]["p50"].as_u64() > Some(1_000_000),
        "they waited for a leader: {result}"
    );
}
