//! `kvstore demo`: a cluster within seconds, and nothing left behind.

mod common;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Stdio},
    time::Duration,
};

use common::{eventually, free_ports, is_alive, kvstore, signal, wait_for_end};

/// A port from which on the demo's ports are free.
fn base_port() -> u16 {
    let others_are_free = |base: &u16| {
        [100, 101, 102, 200, 201, 202]
            .iter()
            .all(|offset| std::net::TcpListener::bind(("127.0.0.1", base + offset)).is_ok())
    };
    // Three at a time: those of another test begin behind them.
    (0..100)
        .map(|_| free_ports(3))
        .filter(|ports| ports[2] == ports[0] + 2)
        .map(|ports| ports[0])
        .find(others_are_free)
        .expect("free ports")
}

/// A demo that has a leader.
fn start(base: u16) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut demo = kvstore(&["demo", "--base-port", &base.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the demo starts");
    let mut lines = BufReader::new(demo.stdout.take().expect("its output"));
    wait_for_line(&mut lines, "keys: k 2 kill");
    (demo, lines)
}

fn wait_for_line(lines: &mut impl BufRead, wanted: &str) -> String {
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        let read = lines.read_line(&mut line).expect("a line");
        assert!(read > 0, "the output ended without '{wanted}': {seen}");
        if line.contains(wanted) {
            return line;
        }
        seen += &line;
    }
}

/// The processes that the demo started.
fn children(demo: &Child) -> Vec<u32> {
    let path = format!("/proc/{0}/task/{0}/children", demo.id());
    let text = std::fs::read_to_string(path).expect("its children");
    text.split_ascii_whitespace()
        .map(|pid| pid.parse().expect("a process id"))
        .collect()
}

fn all_end(pids: &[u32]) {
    eventually("the nodes end", || {
        let left: Vec<_> = pids.iter().filter(|pid| is_alive(**pid)).collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?} are left"))
        }
    });
}

fn get(port: u16) -> redis::RedisResult<String> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/"))?;
    let mut connection = client.get_connection_with_timeout(Duration::from_secs(1))?;
    redis::cmd("GET").arg("a").query(&mut connection)
}

#[test]
fn keys_kill_and_start_nodes_and_quit() {
    let base = base_port();
    let (mut demo, mut lines) = start(base);
    let pids = children(&demo);
    assert_eq!(pids.len(), 3);
    let output = common::run(&["put", "a", "1", "--endpoints", &format!("127.0.0.1:{base}")]);
    assert!(output.status.success());
    let mut keyboard = demo.stdin.take().expect("its input");
    for (line, answer) in [
        ("k 2", "node 2 is killed"),
        ("k 2", "node 2 is not running"),
        ("s 2", "node 2 is started"),
        ("p 1", "node 1 is paused"),
        ("s 1", "node 1 goes on"),
        ("x", "keys: k 2 kill"),
    ] {
        writeln!(keyboard, "{line}").unwrap();
        wait_for_line(&mut lines, answer);
    }
    for node in 0..3 {
        assert_eq!(eventually("a read", || get(base + node)), "1");
    }
    let pids = [pids, children(&demo)].concat();
    writeln!(keyboard, "q").unwrap();
    assert!(wait_for_end(&mut demo).success());
    all_end(&pids);
}

#[test]
fn no_node_outlives_the_demo_however_it_ends() {
    for (how, pause) in [
        ("-INT", false),
        ("-TERM", false),
        ("-KILL", false),
        ("-KILL", true),
    ] {
        let (mut demo, mut lines) = start(base_port());
        let pids = children(&demo);
        // With standard input closed the demo just runs.
        let mut keyboard = demo.stdin.take().expect("its input");
        if pause {
            writeln!(keyboard, "p 1").unwrap();
            wait_for_line(&mut lines, "node 1 is paused");
        }
        drop(keyboard);
        std::thread::sleep(Duration::from_millis(100));
        assert!(demo.try_wait().expect("its state").is_none());
        signal(demo.id(), how);
        wait_for_end(&mut demo);
        all_end(&pids);
        let _ = std::fs::remove_dir_all(std::env::temp_dir().join(format!("kvstore-demo-{}", demo.id())));
    }
}

#[test]
fn a_taken_port_is_named() {
    let base = base_port();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", base + 101)).unwrap();
    let output = common::run(&["demo", "--base-port", &base.to_string()]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        (output.status.code(), text.lines().count()),
        (Some(1), 1),
        "{text}"
    );
    assert!(
        text.contains(&format!("127.0.0.1:{}", base + 101)) && text.contains("--base-port"),
        "{text}"
    );
}

#[test]
fn a_storage_engine_that_does_not_exist_is_refused_once() {
    let output = common::run(&["demo", "--storage", "floppy"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        (output.status.code(), text.lines().count()),
        (Some(2), 1),
        "{text}"
    );
    assert!(text.contains("--storage"), "{text}");
}
