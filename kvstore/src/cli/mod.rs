//! The command line.

mod admin;
mod bench;
mod demo;
mod directory;
mod join;
mod member;
mod node;
mod serve;
mod status;
mod terminal;
mod verbs;

use std::{io::Write as _, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All is well.
    Ok,
    /// Something failed.
    Error,
    /// The command line makes no sense.
    Usage,
    /// The key does not exist, or does not have the expected value.
    NotFound,
    /// No quorum answered; nothing happened.
    NoQuorum,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Ok => 0_u8,
            Exit::Error => 1,
            Exit::Usage => 2,
            Exit::NotFound => 3,
            Exit::NoQuorum => 4,
        })
    }
}

/// A failure that ends the program: one line for people, and how it ends.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    exit: Exit,
    text: String,
}

impl Failure {
    fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self {
            exit,
            text: text.into(),
        }
    }

    fn error(text: impl Into<String>) -> Self {
        Self::new(Exit::Error, text)
    }

    fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text)
    }
}

/// A replicated key-value store that ordinary Redis clients use unchanged.
#[derive(Debug, Parser)]
#[command(name = "kvstore", version, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run one node of a cluster
    Serve(Box<serve::ServeOptions>),
    /// Run a whole cluster on this machine, to play with
    Demo(demo::DemoOptions),
    /// Print the value of a key
    Get {
        /// The key
        key: String,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Set a key to a value
    Put {
        /// The key
        key: String,
        /// The value
        #[arg(allow_hyphen_values = true)]
        value: String,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Remove keys
    Del {
        /// The keys
        #[arg(required = true)]
        keys: Vec<String>,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Add to an integer
    Incr {
        /// The key
        key: String,
        /// How much
        #[arg(default_value_t = 1, allow_hyphen_values = true)]
        by: i64,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Set a key to a new value if it has the expected one
    Cas {
        /// The key
        key: String,
        /// The expected value
        #[arg(allow_hyphen_values = true)]
        old: String,
        /// The new value
        #[arg(allow_hyphen_values = true)]
        new: String,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Show what each node of a cluster says of itself
    Status {
        /// Show it again every second until interrupted
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Show or change who belongs to the cluster
    #[command(subcommand)]
    Member(Box<member::MemberVerb>),
    /// Take snapshots
    #[command(subcommand)]
    Snapshot(admin::SnapshotVerb),
    /// Show who leads, or make another node lead
    Leader(admin::LeaderOptions),
    /// Measure a running cluster, or a plain Redis
    #[command(args_conflicts_with_subcommands = true)]
    Bench(Box<bench::BenchCommand>),
    /// Print the version and what is built in
    Version,
}

/// What all verbs that talk to a cluster take.
#[derive(Clone, Debug, Args)]
pub struct ClientOptions {
    /// Where nodes serve Redis clients; any of them will do
    #[arg(
        long,
        env = "KVSTORE_ENDPOINTS",
        value_delimiter = ',',
        default_value = "127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003"
    )]
    pub endpoints: Vec<String>,
    /// How to print the result
    #[arg(short, long, env = "KVSTORE_OUTPUT", value_enum, default_value_t)]
    pub output: Output,
    /// How long to wait for a connection or a reply (500ms, 5s, 1m)
    #[arg(long, env = "KVSTORE_TIMEOUT", value_parser = duration, default_value = "5s")]
    pub timeout: Duration,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// `250ms`, `5s`, `1.5s`, `2m`, `1h`; a number alone is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unknown unit '{unit}': write 250ms, 5s, 2m or 1h")),
    };
    let seconds = number
        .parse::<f64>()
        .map_err(|_| "write 250ms, 5s, 2m or 1h".to_owned())?
        * scale;
    Duration::try_from_secs_f64(seconds).map_err(|_| "the time is out of range".to_owned())
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => return refuse(&error),
    };
    match run(command_line.verb) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            complain(format_args!("kvstore: {failure}"));
            failure.exit.into()
        }
    }
}

fn run(verb: Verb) -> Result<Exit, Failure> {
    match verb {
        Verb::Serve(options) => serve::run(&options),
        Verb::Demo(options) => block_on(demo::run(options)),
        Verb::Get { key, client } => block_on(verbs::get(&client, &key)),
        Verb::Put { key, value, client } => block_on(verbs::put(&client, &key, &value)),
        Verb::Del { keys, client } => block_on(verbs::del(&client, &keys)),
        Verb::Incr { key, by, client } => block_on(verbs::incr(&client, &key, by)),
        Verb::Cas {
            key,
            old,
            new,
            client,
        } => block_on(verbs::cas(&client, &key, &old, &new)),
        Verb::Status { watch, client } => block_on(status::run(&client, watch)),
        Verb::Member(verb) => block_on(member::run(&verb)),
        Verb::Snapshot(verb) => block_on(admin::snapshot(&verb)),
        Verb::Leader(options) => block_on(admin::leader(&options)),
        Verb::Bench(command) => block_on(bench::run(*command)),
        Verb::Version => {
            let built_in: Vec<_> = paxos_backends::Backend::built_in()
                .map(paxos_backends::Backend::name)
                .collect();
            terminal::say!(
                "kvstore {} (storage: {})",
                env!("CARGO_PKG_VERSION"),
                built_in.join(", ")
            );
            Ok(Exit::Ok)
        }
    }
}

/// A runtime of one thread: on few cores hand-offs between threads cost more than they gain.
fn block_on(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::error(format!("cannot start the runtime: {error}")))?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}

/// One line on standard error, if somebody reads it.
fn complain(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Help goes out as it is; a mistake becomes one line that says what is wrong and where to look.
fn refuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return Exit::Ok.into();
    }
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return Exit::Usage.into();
    }
    let told = in_one_line(error);
    complain(format_args!("kvstore: {told} (see 'kvstore --help')"));
    Exit::Usage.into()
}

/// What is wrong, and the tips: what clap says but for the usage.
fn in_one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:"))
        .filter(|line| !line.is_empty() && !line.starts_with("For more"));
    let mut told = String::new();
    for line in lines {
        if line.starts_with("tip:") {
            told.push_str("; ");
        } else if !told.is_empty() {
            told.push(' ');
        }
        told.push_str(line.strip_prefix("error: ").unwrap_or(line));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_mistake_is_told_in_one_line() {
        let told = |line: &str| {
            let parsed = CommandLine::command().try_get_matches_from(line.split(' '));
            in_one_line(&parsed.expect_err("a mistake"))
        };
        assert_eq!(
            told("kvstore serve --idd 1"),
            "unexpected argument '--idd' found; tip: a similar argument exists: '--id'"
        );
        assert_eq!(
            told("kvstore serv"),
            "unrecognized subcommand 'serv'; tip: a similar subcommand exists: 'serve'"
        );
        assert_eq!(
            told("kvstore serve --nothing-like-this"),
            "unexpected argument '--nothing-like-this' found"
        );
        assert_eq!(
            told("kvstore serve --id x"),
            "invalid value 'x' for '--id <ID>': invalid digit found in string"
        );
        assert_eq!(
            told("kvstore serve --id"),
            "a value is required for '--id <ID>' but none was supplied"
        );
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert!(duration("2 weeks").unwrap_err().contains("unknown unit"));
        assert!(duration("x").is_err());
        assert!(duration("").is_err());
        assert!(duration("1e999s").is_err());
    }
}
