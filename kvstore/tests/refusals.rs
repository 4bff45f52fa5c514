//! Starts that cannot go well end at once, with one line that says what to do.

mod common;

use std::net::TcpListener;

use common::{free_ports, kvstore, wait_for_end};

/// The end of a start that is refused: its exit code and the lines it left on standard error.
fn refused(args: &[&str]) -> (i32, Vec<String>) {
    let mut child = kvstore(args)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program runs");
    let status = wait_for_end(&mut child);
    let output = child.wait_with_output().expect("its output");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    // Log lines are not what tells the reason.
    let lines = text
        .lines()
        .filter(|line| line.starts_with("kvstore: "))
        .map(str::to_owned)
        .collect();
    (status.code().unwrap_or(-1), lines)
}

/// The flags of a node that would start, alone in its cluster.
struct Flags {
    values: Vec<(&'static str, String)>,
    _directory: tempfile::TempDir,
}

impl Flags {
    fn new() -> Self {
        let ports = free_ports(3);
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self {
            values: vec![
                ("--id", "1".into()),
                ("--cluster", format!("1=127.0.0.1:{}", ports[0])),
                ("--resp", format!("127.0.0.1:{}", ports[1])),
                ("--http", format!("127.0.0.1:{}", ports[2])),
                ("--data-dir", directory.path().join("data").display().to_string()),
            ],
            _directory: directory,
        }
    }

    fn with(mut self, flag: &'static str, value: impl Into<String>) -> Self {
        self.values.retain(|(present, _)| *present != flag);
        self.values.push((flag, value.into()));
        self
    }

    fn args(&self) -> Vec<&str> {
        let flags = self
            .values
            .iter()
            .flat_map(|(flag, value)| [*flag, value.as_str()]);
        std::iter::once("serve").chain(flags).collect()
    }

    fn refused(&self, code: i32, parts: &[&str]) {
        let (found, lines) = refused(&self.args());
        assert_eq!((found, lines.len()), (code, 1), "{:?}: {lines:?}", self.args());
        for part in parts {
            assert!(lines[0].contains(part), "'{part}' is missing in: {}", lines[0]);
        }
    }
}

#[test]
fn bad_flags_are_named() {
    for (flag, value, code, parts) in [
        (
            "--frobnicate",
            "1",
            2,
            &["unexpected argument '--frobnicate'", "--help"][..],
        ),
        ("--id", "7", 2, &["--id 7 is not in --cluster, which has 1"]),
        ("--id", "none", 2, &["'none'", "--id"]),
        (
            "--cluster",
            "1=nowhere",
            2,
            &["--cluster: '1=nowhere' has no port", "write 1=host:port"],
        ),
        (
            "--resp",
            "nowhere",
            2,
            &["--resp nowhere is no address", "127.0.0.1:7001"],
        ),
        (
            "--http",
            "127.0.0.1:99999",
            2,
            &["--http 127.0.0.1:99999 is no address"],
        ),
        ("--storage", "floppy", 2, &["--storage", "floppy", "memory"]),
        ("--groups", "0", 2, &["--groups", "1.."]),
        ("--route", "sideways", 2, &["sideways", "forward", "redirect"]),
        ("--election-timeout", "soon", 2, &["--election-timeout", "250ms"]),
        (
            "--election-timeout",
            "150ms",
            2,
            &["--election-timeout 150ms", "twice --heartbeat-interval"],
        ),
        (
            "--election-timeout",
            "11m",
            2,
            &["--election-timeout", "at most 10m"],
        ),
        (
            "--heartbeat-interval",
            "0ms",
            2,
            &["--heartbeat-interval", "at least 1ms"],
        ),
        (
            "--heartbeat-interval",
            "2m",
            2,
            &["--heartbeat-interval", "at most 1m"],
        ),
        ("--max-clients", "0", 2, &["--max-clients", "1..=1000000"]),
        ("--max-clients", "18446744073709551615", 2, &["--max-clients"]),
        ("--log", "in[valid", 2, &["--log in[valid"]),
    ] {
        Flags::new().with(flag, value).refused(code, parts);
    }
    for args in [
        &["bench", "--rate", "0"][..],
        &["bench", "--rate", "-1"],
        &["bench", "--rate", "inf"],
        &["bench", "--read-ratio", "1.5"],
        &["bench", "--read-ratio", "NaN"],
        &["demo", "--groups", "0"],
    ] {
        let (code, lines) = refused(args);
        assert_eq!((code, lines.len()), (2, 1), "{args:?}: {lines:?}");
    }
    let (code, lines) = refused(&["serve", "--id", "1"]);
    assert_eq!((code, lines.len()), (2, 1), "{lines:?}");
    assert!(lines[0].contains("--cluster"), "{lines:?}");
}

#[cfg(not(feature = "sqlite"))]
#[test]
fn a_storage_engine_that_is_not_built_in_names_its_feature() {
    Flags::new()
        .with("--storage", "sqlite")
        .refused(2, &["sqlite is not built into this program", "--features sqlite"]);
}

#[test]
fn taken_ports_are_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (flag, value) in [
        ("--resp", address.clone()),
        ("--http", address.clone()),
        ("--cluster", format!("1={address}")),
    ] {
        Flags::new()
            .with(flag, value)
            .refused(1, &["cannot listen on", &address, "in use", "stop what uses"]);
    }
}

#[cfg(feature = "wal")]
mod directories {
    use super::*;
    use common::Cluster;

    #[test]
    fn an_unwritable_directory_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let below = file.path().join("data").display().to_string();
        Flags::new()
            .with("--data-dir", &below)
            .refused(1, &["creating the data directory", &below, "--data-dir"]);
    }

    /// Runs a node on a directory and stops it in order.
    fn used(cluster: &mut Cluster) -> String {
        assert!(cluster.terminate(1).success(), "{}", cluster.log(1));
        cluster.data_dir(1).display().to_string()
    }

    #[test]
    fn a_directory_of_another_cluster_node_or_configuration_is_refused() {
        let mut cluster = Cluster::start(1, &["--storage", "wal", "--groups", "2"]);
        let directory = used(&mut cluster);
        let here = || {
            Flags::new()
                .with("--data-dir", &directory)
                .with("--groups", "2")
                .with("--cluster", cluster.members())
        };
        here()
            .with("--cluster", format!("1=127.0.0.1:{}", free_ports(1)[0]))
            .refused(1, &["belongs to cluster", "data directory", "--peer"]);
        here()
            .with("--cluster-id", "another")
            .refused(1, &["cluster id (none), not another", "data directory"]);
        here()
            .with(
                "--cluster",
                format!("{},2=127.0.0.1:{}", cluster.members(), free_ports(1)[0]),
            )
            .refused(
                1,
                &["was made for a cluster of the nodes 1, not 1, 2", "--cluster"],
            );
        here()
            .with("--id", "2")
            .with(
                "--cluster",
                format!("1=127.0.0.1:1,2=127.0.0.1:{}", free_ports(1)[0]),
            )
            .refused(1, &["was made with id 1, not 2", "--id 1"]);
        here()
            .with("--groups", "3")
            .refused(1, &["was made with groups 2, not 3", "--groups 2"]);
        if cfg!(feature = "sqlite") {
            here()
                .with("--storage", "sqlite")
                .refused(1, &["was made with storage wal, not sqlite"]);
        }
        cluster.start_node(1);
        cluster.wait_until_it_reads(1);
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let cluster = Cluster::start(1, &["--storage", "wal", "--cluster-id", "one"]);
        let directory = cluster.data_dir(1).display().to_string();
        let flags = Flags::new()
            .with("--data-dir", &directory)
            .with("--cluster-id", "one");
        flags.refused(1, &["in use by another process"]);
    }
}
