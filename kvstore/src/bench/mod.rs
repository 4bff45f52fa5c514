//! A load generator for servers of the Redis protocol: this one, or a plain Redis to compare with.
//!
//! Closed loop: each client sends when it has been answered, so the load adapts to the server. Open loop (a rate): commands
//! are sent when they are due, whatever the answers take, and times count from then.

mod load;
mod plot;
mod replies;
mod report;
mod tally;
mod target;

use std::{
    io,
    ops::Range,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use clap::Args;

use self::{
    load::{Commands, Plan},
    tally::{Live, Tally},
};
pub use self::{
    plot::svg,
    report::{Comparison, Load, Percentiles, Results, Summary},
    target::Target,
};

/// What the load looks like.
#[derive(Clone, Debug, Args)]
pub struct BenchOptions {
    /// How many clients, each with a connection of its own
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub clients: u32,
    /// The length of values, in bytes
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=8_388_608))]
    pub value_size: u32,
    /// For how long to measure
    #[arg(long, value_parser = crate::cli::duration, default_value = "10s")]
    pub duration: Duration,
    /// For how long the load runs before it is measured
    #[arg(long, value_parser = crate::cli::duration, default_value = "1s")]
    pub warm_up: Duration,
    /// The share of reads among the commands: 0 only writes, 1 only reads
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub read_ratio: f64,
    /// How many commands each client sends at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub pipeline: u32,
    /// How many different keys
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=999_999_999_999))]
    pub keys: u64,
    /// Open loop: commands per second over all clients, sent on time whatever the answers take, times counted from when
    /// they were due; without it each client sends when it has been answered
    #[arg(long, value_parser = rate)]
    pub rate: Option<f64>,
    /// Open loop: how many commands may be without an answer, over all clients; what is due beyond that is counted as
    /// not sent
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_in_flight: u32,
    /// How many threads make the load
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// Send each command to the node that leads its key's hash slot, as cluster clients do: an endpoint is asked for
    /// CLUSTER SLOTS before the load begins
    #[arg(long)]
    pub cluster: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "write a number from 0 to 1, such as 0.5".into())
}

/// Commands per second.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.001..=1e9).contains(rate));
    rate.ok_or_else(|| "write a number of commands per second from 0.001 to 1000000000".into())
}

/// How far a run has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Since the start, warm-up included.
    pub elapsed: Duration,
    /// Commands answered well in the last second.
    pub commands: u64,
    /// Commands that ended otherwise in the last second.
    pub errors: u64,
}

/// Puts the load on the targets, clients dealt out evenly, and calls `progress` every second. `timeout` is for
/// connections and for every reply.
///
/// # Errors
///
/// A thread could not be started.
pub async fn run(
    options: &BenchOptions,
    targets: &[Target],
    timeout: Duration,
    mut progress: impl FnMut(Progress),
) -> io::Result<Summary> {
    let start = Instant::now();
    let measured = start + options.warm_up..start + options.warm_up + options.duration;
    let live = Arc::new(Live::default());
    let targets: Arc<[Target]> = targets.into();
    let mut threads = Vec::new();
    for clients in shares(options.clients, options.threads) {
        let plan = Plan {
            options: options.clone(),
            targets: Arc::clone(&targets),
            timeout,
            start,
            measured: measured.clone(),
            clients,
            commands: Arc::new(Commands::new(options.value_size as usize)),
            live: Arc::clone(&live),
        };
        let thread = std::thread::Builder::new().name("bench".into());
        threads.push(thread.spawn(move || load::run(plan))?);
    }
    let mut before = (0, 0);
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.tick().await;
    while threads.iter().any(|thread| !thread.is_finished()) {
        tokio::select! {
            _ = second.tick() => {
                let now = (live.commands.load(Relaxed), live.errors.load(Relaxed));
                progress(Progress {
                    elapsed: start.elapsed(),
                    commands: now.0 - before.0,
                    errors: now.1 - before.1,
                });
                before = now;
            }
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    let mut all = Tally::new(measured);
    for thread in threads {
        let tally = thread
            .join()
            .map_err(|_| io::Error::other("a thread of the load panicked"))?;
        all.add(&tally?);
    }
    Ok(Summary::new(options, &all))
}

/// The clients of each thread.
fn shares(clients: u32, threads: u32) -> impl Iterator<Item = Range<u32>> {
    let bound = move |thread| (u64::from(clients) * u64::from(thread) / u64::from(threads)) as u32;
    (0..threads)
        .map(move |thread| bound(thread)..bound(thread + 1))
        .filter(|clients| !clients.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_has_one_thread() {
        assert_eq!(shares(10, 3).collect::<Vec<_>>(), [0..3, 3..6, 6..10]);
        assert_eq!(shares(2, 4).map(|clients| clients.len()).sum::<usize>(), 2);
    }
}
