//! The alert rules and the dashboard that come with the program name metrics that it has.

mod common;

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    net::TcpStream,
    path::Path,
};

use common::{Cluster, eventually};

/// The beginnings of the program's own metrics' names.
const OURS: [&str; 3] = ["paxos_", "kvstore_", "process_"];

fn shipped(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("monitoring")
        .join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every metric of the program's own that a text names.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| OURS.iter().any(|prefix| word.starts_with(prefix)))
        .collect()
}

/// Those of `names` that a page of metrics does not have.
fn missing<'a>(names: &BTreeSet<&'a str>, page: &str) -> Vec<&'a str> {
    let samples: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .flat_map(|line| line.split(' ').take(1))
        .collect();
    let exists = |name: &&&str| {
        let parts = ["_bucket", "_sum", "_count"];
        let family = parts.iter().find_map(|part| name.strip_suffix(part));
        samples.contains(**name) || family.is_some_and(|family| samples.contains(family))
    };
    names.iter().filter(|name| !exists(name)).copied().collect()
}

fn metrics(port: u16) -> io::Result<String> {
    let mut connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    connection.read_to_string(&mut page)?;
    Ok(page)
}

#[test]
fn every_metric_that_the_rules_and_the_dashboard_name_exists() {
    let cluster = Cluster::start(1, &[]);
    let page = eventually("the page of metrics", || metrics(cluster.http[0]));
    let dashboard = shipped("dashboard.json");
    serde_json::from_str::<serde_json::Value>(&dashboard).expect("the dashboard is JSON");
    for text in [shipped("alerts.yml"), dashboard] {
        let names = names(&text);
        assert!(names.len() > 10, "{names:?}");
        assert_eq!(missing(&names, &page), Vec::<&str>::new(), "{page}");
    }
    let misspelt = names("rate(paxos_peer_rtt_second[1m]) > paxos_apply_lag");
    assert_eq!(missing(&misspelt, &page), ["paxos_peer_rtt_second"]);
}
