//! How many commands does a cluster of three `kvstore` processes answer to clients of the Redis protocol in a second?
//! Durable `SET`s over each backend, one client, 64, and 64 that send 16 commands at once; and linearizable `GET`s. All of
//! it, the clients too, on this machine. Set `PAXOS_BENCH_DIR` to measure another disk than that of the temporary
//! directory.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::{cell::LazyCell, process::ExitCode, time::Duration};

use criterion::{Criterion, Throughput};
use paxos_backends::Backend;
use paxos_benches::kv::{Load, Servers, serve_if_asked};

fn commands(criterion: &mut Criterion, backend: Backend) {
    // Started only if any of it is to be measured.
    let servers = LazyCell::new(|| Servers::start(backend.name()));
    let mut group = criterion.benchmark_group(format!("kv: commands, {backend}"));
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    for (load, clients, pipeline) in [
        (Load::Set, 1, 1),
        (Load::Set, 64, 1),
        (Load::Set, 64, 16),
        (Load::Get, 64, 1),
    ] {
        group.throughput(Throughput::Elements(clients * pipeline));
        group.bench_function(
            format!("{load}, clients: {clients}, at once: {pipeline}"),
            |bencher| {
                // Else criterion takes the start for a part of the first command, and measures few of them.
                LazyCell::force(&servers);
                bencher.iter_custom(|bursts| servers.load(load, clients, pipeline, bursts));
            },
        );
    }
    group.finish();
}

fn main() -> ExitCode {
    if let Some(code) = serve_if_asked() {
        return code;
    }
    let mut criterion = Criterion::default().configure_from_args();
    for backend in Backend::built_in() {
        commands(&mut criterion, backend);
    }
    criterion.final_summary();
    ExitCode::SUCCESS
}
