//! `bench`: one run, a sweep over several loads, and the comparison of two results.

use std::{
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use super::{
    ClientOptions, Exit, Failure, Output,
    terminal::{Table, say},
    verbs,
};
use crate::bench::{self, BenchOptions, Comparison, Progress, Results, Summary, Target};

#[derive(Debug, Args)]
pub(super) struct BenchCommand {
    #[command(subcommand)]
    verb: Option<BenchVerb>,
    #[command(flatten)]
    bench: BenchOptions,
    #[command(flatten)]
    client: ClientOptions,
}

#[derive(Debug, Subcommand)]
enum BenchVerb {
    /// Measure under one load after another
    #[command(group(clap::ArgGroup::new("loads").required(true).args(["rates", "client_counts"])))]
    Sweep {
        /// Open loop: the rates, in commands per second
        #[arg(long, value_delimiter = ',', value_parser = bench::rate, conflicts_with = "rate")]
        rates: Vec<f64>,
        /// How many clients
        #[arg(long, value_delimiter = ',', conflicts_with = "clients",
              value_parser = clap::value_parser!(u32).range(1..=10_000))]
        client_counts: Vec<u32>,
        /// Draw latency over throughput into this SVG file
        #[arg(long)]
        plot: Option<PathBuf>,
        #[command(flatten)]
        bench: Box<BenchOptions>,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Compare two results that were written with -o json
    Compare {
        /// The earlier result
        before: PathBuf,
        /// The later result
        after: PathBuf,
        /// How to print the comparison
        #[arg(short, long, env = "KVSTORE_OUTPUT", value_enum, default_value_t)]
        output: Output,
    },
}

pub(super) async fn run(command: BenchCommand) -> Result<Exit, Failure> {
    match command.verb {
        None => one(&command.bench, &command.client).await,
        Some(BenchVerb::Sweep {
            rates,
            client_counts,
            plot,
            bench,
            client,
        }) => {
            let with_rate = |rate| BenchOptions {
                rate: Some(rate),
                ..(*bench).clone()
            };
            let with_clients = |clients| BenchOptions {
                clients,
                ..(*bench).clone()
            };
            let rates = rates.into_iter().map(with_rate);
            let loads: Vec<_> = rates.chain(client_counts.into_iter().map(with_clients)).collect();
            sweep(&loads, plot.as_deref(), &client).await
        }
        Some(BenchVerb::Compare {
            before,
            after,
            output,
        }) => compare(&before, &after, output),
    }
}

async fn one(options: &BenchOptions, client: &ClientOptions) -> Result<Exit, Failure> {
    greet(client).await?;
    let summary = measure(options, client).await?;
    match client.output {
        Output::Table => say!("{summary}"),
        Output::Json => say!("{}", json(&summary)?),
    }
    Ok(exit(&[summary]))
}

async fn sweep(loads: &[BenchOptions], plot: Option<&Path>, client: &ClientOptions) -> Result<Exit, Failure> {
    greet(client).await?;
    let mut runs = Vec::new();
    for load in loads {
        let summary = measure(load, client).await?;
        if client.output == Output::Table {
            let rate = load.rate.map(|rate| format!(", {rate} due per second"));
            say!("{} clients{}: {summary}", load.clients, rate.unwrap_or_default());
        }
        runs.push(summary);
    }
    if let Some(path) = plot {
        let picture = bench::svg("kvstore bench", &runs);
        std::fs::write(path, picture)
            .map_err(|error| Failure::error(format!("cannot write {}: {error}", path.display())))?;
    }
    let exit = exit(&runs);
    if client.output == Output::Json {
        say!("{}", json(&Results::Many { runs })?);
    }
    Ok(exit)
}

/// One command first: a cluster that cannot be reached should say so at once.
async fn greet(client: &ClientOptions) -> Result<(), Failure> {
    verbs::call(client, &[b"PING"]).await.map(drop)
}

async fn measure(options: &BenchOptions, client: &ClientOptions) -> Result<Summary, Failure> {
    let targets = if options.cluster {
        let slots = verbs::call(client, &[b"CLUSTER", b"SLOTS"]).await?;
        Target::masters(&slots).map_err(Failure::error)?
    } else {
        client
            .endpoints
            .iter()
            .map(|address| Target::any(address))
            .collect()
    };
    let is_watched = std::io::stderr().is_terminal();
    let total = options.warm_up + options.duration;
    let progress = |progress: Progress| {
        if is_watched {
            let Progress {
                elapsed,
                commands,
                errors,
            } = progress;
            eprint!(
                "\r{:3.0} s of {:.0} s: {commands} commands/s, {errors} errors/s        ",
                elapsed.as_secs_f64(),
                total.as_secs_f64()
            );
            let _ = std::io::stderr().flush();
        }
    };
    let summary = bench::run(options, &targets, client.timeout, progress).await;
    if is_watched {
        eprint!("\r\x1b[K");
    }
    summary.map_err(|error| Failure::error(format!("cannot make the load: {error}")))
}

fn exit(runs: &[Summary]) -> Exit {
    if runs.iter().any(|run| run.commands == 0) {
        Exit::Error
    } else {
        Exit::Ok
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::error(error.to_string()))
}

fn compare(before: &Path, after: &Path, output: Output) -> Result<Exit, Failure> {
    let rows = Comparison::of(&results(before)?, &results(after)?).map_err(Failure::error)?;
    match output {
        Output::Json => say!("{}", json(&rows)?),
        Output::Table => {
            let mut table = Table::new(&["run", "measure", "before", "after", "after/before"]);
            for row in rows {
                table.row(vec![
                    row.run.to_string(),
                    row.measure.to_owned(),
                    format!("{:.0}", row.before),
                    format!("{:.0}", row.after),
                    row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
                ]);
            }
            say!("{}", table.render().trim_end());
        }
    }
    Ok(Exit::Ok)
}

fn results(path: &Path) -> Result<Results, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::error(format!("cannot read {}: {error}", path.display())))?;
    serde_json::from_str(&text).map_err(|_| {
        Failure::error(format!(
            "{} holds no result; write one with 'kvstore bench -o json > FILE'",
            path.display()
        ))
    })
}
