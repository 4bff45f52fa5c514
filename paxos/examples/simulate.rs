//! Runs seeds of the cluster simulator: see `--help`.

use std::{
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use paxos::testing::sim::{
    Checking, Coverage, Fault, FaultSet, Options, Report, Retrying, Shrunk, run, shrink,
};

const HELP: &str = "\
Runs whole simulated clusters under faults and checks the protocol's invariants.

    simulate [--seeds N] [--from S]    run N seeds (default 100) from seed S (default 1) on
    simulate --seed S [--trace]        run one seed, with a line for everything that happens
    simulate --seed S --shrink         find a smaller run than that of seed S which fails in the same way

    --nodes N        always N nodes instead of 1 to 5
    --groups N       always N groups on the nodes' disks instead of 1 to 3
    --clients N      always N clients instead of 1 to 6
    --storms N       always N storms of faults, each with a calm after it, instead of 1 or 2
    --faults A,B,..  only these classes of faults (none: no faults); without, all of them
    --sessions       clients have sessions and repeat their commands at other nodes, instead of the default workload
    --threads N      default: one per core
    --first          stop at the first failure
    --coverage       print what the runs have met; exit code 1 if something was met fewer than 10 times
    --plant NAME     plant a bug (builds with --cfg paxos_planted only)
    --help           this text

The last line is `N passed, M failed`; the exit code is 1 if a seed failed.";

/// How many seeds must pass without a class of faults before that is taken to be needed.
const SHRINK_TRIES: u64 = 300;

struct Arguments {
    seeds: u64,
    from: u64,
    threads: usize,
    first: bool,
    coverage: bool,
    shrink: bool,
    sessions: bool,
    plant: Option<String>,
    options: Options,
}

impl Arguments {
    /// What to type to see a run again.
    fn command(&self, seed: u64, options: &Options) -> String {
        let mut flags = options.flags();
        if self.sessions {
            flags.push_str(" --sessions");
        }
        if let Some(name) = &self.plant {
            flags.push_str(" --plant ");
            flags.push_str(name);
        }
        format!("cargo run --release -p paxos --features testing --example simulate -- --seed {seed}{flags}")
    }

    fn run(&self, seed: u64) -> Report {
        if self.sessions {
            run(seed, &self.options, &Retrying)
        } else {
            run(seed, &self.options, &Checking)
        }
    }

    fn shrink(&self) -> Option<Shrunk> {
        if self.sessions {
            shrink(self.from, &self.options, &Retrying, SHRINK_TRIES)
        } else {
            shrink(self.from, &self.options, &Checking, SHRINK_TRIES)
        }
    }
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(Some(arguments)) if arguments.shrink => smaller(&arguments),
        Ok(Some(arguments)) => simulate(&arguments),
        Ok(None) => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("simulate: {problem}; --help shows what can be said");
            ExitCode::from(2)
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Arguments>, String> {
    let mut arguments = Arguments {
        seeds: 100,
        from: 1,
        threads: thread::available_parallelism().map_or(1, usize::from),
        first: false,
        coverage: false,
        shrink: false,
        sessions: false,
        plant: None,
        options: Options::default(),
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--help" | "-h" => return Ok(None),
            "--seeds" => arguments.seeds = number(&word, &value()?)?,
            "--from" => arguments.from = number(&word, &value()?)?,
            "--seed" => {
                arguments.from = number(&word, &value()?)?;
                arguments.seeds = 1;
            }
            "--threads" => arguments.threads = number(&word, &value()?)?.clamp(1, 256) as usize,
            "--nodes" => arguments.options.nodes = Some(within(&word, &value()?, 9)?),
            "--groups" => arguments.options.groups = Some(within(&word, &value()?, 9)?),
            "--clients" => arguments.options.clients = Some(within(&word, &value()?, 99)?),
            "--storms" => arguments.options.storms = Some(within(&word, &value()?, 99)? as u32),
            "--sessions" => arguments.sessions = true,
            "--shrink" => arguments.shrink = true,
            "--faults" => arguments.options.faults = fault_set(&value()?)?,
            "--trace" => arguments.options.trace = Some(|line| println!("{line}")),
            "--first" => arguments.first = true,
            "--coverage" => arguments.coverage = true,
            "--plant" => {
                let name = value()?;
                plant(&name)?;
                arguments.plant = Some(name);
            }
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    if (arguments.options.trace.is_some() || arguments.shrink) && arguments.seeds != 1 {
        return Err("--trace and --shrink need one --seed".into());
    }
    Ok(Some(arguments))
}

fn number(option: &str, text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("{option} needs a whole number, not {text:?}"))
}

fn within(option: &str, text: &str, most: u64) -> Result<usize, String> {
    let number = number(option, text)?;
    if (1..=most).contains(&number) {
        Ok(number as usize)
    } else {
        Err(format!("{option} is from 1 to {most}, not {number}"))
    }
}

fn fault_set(text: &str) -> Result<FaultSet, String> {
    let mut set = FaultSet::NONE;
    for name in text.split(',').filter(|name| *name != "none") {
        let fault = Fault::ALL
            .iter()
            .find(|fault| fault.name().eq_ignore_ascii_case(name));
        let names: Vec<&str> = Fault::ALL.iter().map(|fault| fault.name()).collect();
        let fault =
            fault.ok_or_else(|| format!("unknown fault {name:?}; known are none, {}", names.join(", ")))?;
        set = set.with(*fault);
    }
    Ok(set)
}

#[cfg(paxos_planted)]
fn plant(name: &str) -> Result<(), String> {
    paxos::planted::plant(name)
}

#[cfg(not(paxos_planted))]
fn plant(_: &str) -> Result<(), String> {
    Err("--plant needs a build with RUSTFLAGS=\"--cfg paxos_planted\"".into())
}

fn smaller(arguments: &Arguments) -> ExitCode {
    let Some(shrunk) = arguments.shrink() else {
        println!("seed {} passes: there is nothing to shrink", arguments.from);
        return ExitCode::FAILURE;
    };
    println!("{}", shrunk.failure);
    println!(
        "    replay: {} --trace",
        arguments.command(shrunk.failure.seed, &shrunk.options)
    );
    println!("found in {} runs", shrunk.runs);
    ExitCode::SUCCESS
}

#[derive(Default)]
struct Totals {
    passed: u64,
    failed: Vec<Report>,
    coverage: Coverage,
    messages: u64,
    answered: u64,
    virtual_seconds: u64,
    hash: u64,
}

fn simulate(arguments: &Arguments) -> ExitCode {
    let begin = Instant::now();
    let next = AtomicU64::new(arguments.from);
    let end = arguments.from.saturating_add(arguments.seeds);
    let stop = AtomicBool::new(false);
    let totals = Mutex::new(Totals::default());
    thread::scope(|scope| {
        for _ in 0..arguments.threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let report = arguments.run(seed);
                    let failed = report.failure.is_some();
                    count(
                        arguments,
                        &mut totals.lock().expect("no thread panics while it counts"),
                        report,
                    );
                    if failed && arguments.first {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let totals = totals.into_inner().expect("no thread panics while it counts");
    summary(arguments, totals, begin)
}

fn count(arguments: &Arguments, totals: &mut Totals, report: Report) {
    totals.coverage.add(&report.coverage);
    totals.hash ^= report.hash;
    totals.messages += report.messages;
    totals.answered += report.answered;
    totals.virtual_seconds += report.virtual_micros / 1_000_000;
    if let Some(failure) = &report.failure {
        let seed = failure.seed;
        println!("{failure}");
        println!(
            "    replay: {} --trace",
            arguments.command(seed, &arguments.options)
        );
        totals.failed.push(report);
    } else {
        totals.passed += 1;
    }
}

fn summary(arguments: &Arguments, mut totals: Totals, begin: Instant) -> ExitCode {
    let seconds = begin.elapsed().as_secs_f64().max(0.001);
    let runs = totals.passed + totals.failed.len() as u64;
    println!(
        "{runs} runs in {seconds:.1} s ({:.0} a minute): {} messages, {} commands, {} s of virtual time, fingerprint {:016x}",
        60.0 * runs as f64 / seconds,
        totals.messages,
        totals.answered,
        totals.virtual_seconds,
        totals.hash,
    );
    let mut good = totals.failed.is_empty();
    if arguments.coverage {
        print!("{}", totals.coverage.table());
        for event in totals.coverage.below(10) {
            good = false;
            println!("met fewer than 10 times: {}", event.name());
        }
    }
    totals
        .failed
        .sort_by_key(|report| report.failure.as_ref().map(|failure| failure.seed));
    if let Some(failure) = totals.failed.first().and_then(|report| report.failure.as_ref()) {
        println!("first failing seed: {}", failure.seed);
    }
    println!("{} passed, {} failed", totals.passed, totals.failed.len());
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
