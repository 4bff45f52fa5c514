//! A load generator: many clients that each keep one burst of commands under way.

use std::{
    fmt,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    client::{Client, command},
    resp::Value,
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
    /// For how long
    #[arg(long, value_parser = crate::cli::duration, default_value = "10s")]
    pub duration: Duration,
    /// The share of reads among the commands: 0 only writes, 1 only reads
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub read_ratio: f64,
    /// How many commands each client sends at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub pipeline: u32,
    /// How many different keys
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
    /// Commands per second over all clients, sent on time whatever the answers take; without it each client sends
    /// when it has been answered
    #[arg(long, value_parser = rate)]
    pub rate: Option<f64>,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "write a number from 0 to 1, such as 0.5".into())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.001..=1e9).contains(rate));
    rate.ok_or_else(|| "write a number of commands per second from 0.001 to 1000000000".into())
}

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Commands answered well.
    pub commands: u64,
    /// Commands answered with an error, or not at all.
    pub errors: u64,
    /// The first of those errors.
    pub first_error: Option<String>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Writes answered well, per second.
    pub writes_per_second: f64,
    /// Reads answered well, per second.
    pub reads_per_second: f64,
    /// Half of all commands took at most this long, in microseconds.
    pub p50_us: u64,
    /// 99 % of all commands did.
    pub p99_us: u64,
    /// 99.9 % of all commands did.
    pub p999_us: u64,
    /// All commands did.
    pub max_us: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} writes/s, {:.0} reads/s; p50 {} us, p99 {} us, p999 {} us, max {} us; {} commands in {:.1} s, {} errors",
            self.writes_per_second,
            self.reads_per_second,
            self.p50_us,
            self.p99_us,
            self.p999_us,
            self.max_us,
            self.commands,
            self.seconds,
            self.errors
        )?;
        if let Some(error) = &self.first_error {
            write!(f, " (the first: {error})")?;
        }
        Ok(())
    }
}

/// What one client has counted.
struct Tally {
    writes: u64,
    reads: u64,
    errors: u64,
    first_error: Option<String>,
    /// In microseconds.
    latency: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        // One microsecond to ten minutes, three digits.
        let latency =
            Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are constants that fit");
        Self {
            writes: 0,
            reads: 0,
            errors: 0,
            first_error: None,
            latency,
        }
    }
}

impl Tally {
    fn error(&mut self, count: u64, why: impl FnOnce() -> String) {
        self.errors += count;
        self.first_error.get_or_insert_with(why);
    }
}

/// Puts the load on the endpoints, clients dealt out evenly.
pub async fn run(options: &BenchOptions, endpoints: &[String], timeout: Duration) -> Summary {
    let started = Instant::now();
    let mut clients = Vec::new();
    for index in 0..options.clients as usize {
        let (options, endpoints) = (options.clone(), endpoints.to_vec());
        clients.push(tokio::spawn(async move {
            one_client(index, &options, &endpoints, timeout, started).await
        }));
    }
    let mut all = Tally::default();
    for client in clients {
        let Ok(tally) = client.await else { continue };
        all.writes += tally.writes;
        all.reads += tally.reads;
        all.errors += tally.errors;
        all.first_error = all.first_error.or(tally.first_error);
        let _ = all.latency.add(&tally.latency);
    }
    let seconds = started.elapsed().as_secs_f64();
    Summary {
        commands: all.writes + all.reads,
        errors: all.errors,
        first_error: all.first_error,
        seconds,
        writes_per_second: all.writes as f64 / seconds,
        reads_per_second: all.reads as f64 / seconds,
        p50_us: all.latency.value_at_quantile(0.5),
        p99_us: all.latency.value_at_quantile(0.99),
        p999_us: all.latency.value_at_quantile(0.999),
        max_us: all.latency.max(),
    }
}

async fn one_client(
    index: usize,
    options: &BenchOptions,
    endpoints: &[String],
    timeout: Duration,
    started: Instant,
) -> Tally {
    let mut tally = Tally::default();
    let mut random = fastrand::Rng::with_seed(index as u64 + 1);
    let value: Vec<u8> = (0..options.value_size)
        .map(|_| random.alphanumeric() as u8)
        .collect();
    let pipeline = options.pipeline as usize;
    let between = options.rate.map(|rate| {
        let bursts_per_second = (rate / f64::from(options.clients) / pipeline as f64).max(1e-6);
        Duration::from_secs_f64(1.0 / bursts_per_second)
    });
    let mut due = started + between.map_or(Duration::ZERO, |between| between.mul_f64(random.f64()));
    // A server that does not answer must not make the run longer than it was to be.
    let timeout = timeout.min(options.duration.max(Duration::from_secs(1)));
    let mut endpoint = index;
    let mut connection = None;
    let mut burst = BytesMut::new();
    let mut reads = Vec::new();
    while started.elapsed() < options.duration {
        let client = if let Some(client) = &mut connection {
            client
        } else {
            endpoint += 1;
            let address = &endpoints[(endpoint - 1) % endpoints.len()];
            match Client::connect(address, timeout).await {
                Ok(client) => connection.insert(client),
                Err(error) => {
                    tally.error(1, || error.to_string());
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            }
        };
        burst.clear();
        reads.clear();
        for _ in 0..pipeline {
            let key = format!("bench:{:012}", random.u64(0..options.keys));
            let is_read = random.f64() < options.read_ratio;
            reads.push(is_read);
            if is_read {
                command(&mut burst, &[b"GET", key.as_bytes()]);
            } else {
                command(&mut burst, &[b"SET", key.as_bytes(), &value]);
            }
        }
        // With a rate the time counts from when the burst was due, so that a stall is not hidden.
        let from = if let Some(between) = between {
            if due.duration_since(started) >= options.duration {
                // Nothing more is due before the end.
                tokio::time::sleep(options.duration.saturating_sub(started.elapsed())).await;
                break;
            }
            tokio::time::sleep_until(due.into()).await;
            let from = due;
            due += between;
            from
        } else {
            Instant::now()
        };
        let mut answered = 0;
        let mut refused = false;
        let outcome = client.exchange(&burst, pipeline, |value| {
            let is_read = reads.get(answered).copied().unwrap_or(false);
            answered += 1;
            if let Value::Error(error) = value {
                refused = true;
                return tally.error(1, || error);
            }
            *(if is_read {
                &mut tally.reads
            } else {
                &mut tally.writes
            }) += 1;
            tally
                .latency
                .saturating_record(u64::try_from(from.elapsed().as_micros()).unwrap_or(u64::MAX));
        });
        if let Err(error) = outcome.await {
            tally.error((pipeline - answered) as u64, || error.to_string());
            connection = None;
        }
        if refused {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    tally
}
