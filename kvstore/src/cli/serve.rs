//! `serve`: one node of a cluster.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use paxos::ClusterId;
use paxos_backends::Backend;
use tracing_subscriber::EnvFilter;

use super::{Exit, Failure, directory, node};
use crate::{
    is_address,
    server::{Route, Shutdown},
    shards::Shards,
};

/// The flags of `serve`.
#[derive(Clone, Debug, Args)]
pub(super) struct ServeOptions {
    /// This node's id in the cluster
    #[arg(long, env = "KVSTORE_ID", value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    /// Found a cluster of these nodes: 1=host:port,2=host:port,... where they talk to each other; the same on each of
    /// them. Not needed any more once the data directory is made; never for a founder that was removed, which --join brings
    /// back
    #[arg(long, env = "KVSTORE_CLUSTER")]
    cluster: Option<String>,
    /// Join a running cluster as a new node: where some of its nodes talk to each other, host:port,... A name may stand for
    /// many nodes. Remembered: not needed any more once the data directory is made; given to a node that has joined, or
    /// founded the cluster, it tells where to look for the others if all of them have moved
    #[arg(long, env = "KVSTORE_JOIN", value_delimiter = ',', conflicts_with = "cluster")]
    join: Vec<String>,
    /// Where this node talks to the others, host:port; needed for a new node that joins, else it is what --cluster says
    #[arg(long, env = "KVSTORE_PEER")]
    peer: Option<String>,
    /// Where to serve Redis clients
    #[arg(long, env = "KVSTORE_RESP", default_value = "127.0.0.1:6379")]
    resp: String,
    /// Where to serve HTTP: /livez /readyz /metrics /status
    #[arg(long, env = "KVSTORE_HTTP", default_value = "127.0.0.1:7201")]
    http: String,
    /// Where this node keeps its data
    #[arg(long, env = "KVSTORE_DATA_DIR", default_value = "kvstore-data")]
    data_dir: PathBuf,
    /// The storage engine (wal, leveldb, sqlite, memory); the fastest durable one that is built in if not given
    #[arg(long, env = "KVSTORE_STORAGE")]
    storage: Option<String>,
    /// Among how many groups (independent logs) the keys are dealt out; the same on every node, for ever [default: 1]
    #[arg(long, env = "KVSTORE_GROUPS", value_parser = clap::value_parser!(u16).range(1..=i64::from(Shards::MAX_GROUPS)))]
    groups: Option<u16>,
    /// What to do with commands that another node must lead
    #[arg(long, env = "KVSTORE_ROUTE", value_enum, default_value_t)]
    route: Route,
    /// The cluster's name, the same on every node; without one the addresses in --cluster must never change
    #[arg(long, env = "KVSTORE_CLUSTER_ID")]
    cluster_id: Option<String>,
    /// How many clients may be connected
    #[arg(long, env = "KVSTORE_MAX_CLIENTS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_clients: u32,
    /// Whose SHUTDOWN stops this node: that of clients on this machine, anybody's, or nobody's
    #[arg(long, env = "KVSTORE_SHUTDOWN_COMMAND", value_enum, default_value_t)]
    shutdown_command: Shutdown,
    /// Without a sign of life from the leader for this long, another node is elected
    #[arg(long, env = "KVSTORE_ELECTION_TIMEOUT", value_parser = super::duration, default_value = "500ms")]
    election_timeout: Duration,
    /// How often a leader gives signs of life
    #[arg(long, env = "KVSTORE_HEARTBEAT_INTERVAL", value_parser = super::duration, default_value = "100ms")]
    heartbeat_interval: Duration,
    /// Answer reads from the leader without asking the others, while it holds a lease of --election-timeout: right as long
    /// as no node's monotonic clock runs fast or slow by more than 1 %, or stands still. The same on every node; to turn
    /// it off, stop all nodes for that long
    #[arg(long, env = "KVSTORE_LEASE_READS")]
    lease_reads: bool,
    /// Deal out the leadership of several groups evenly. A leader that was chosen by hand stays until it is gone or the
    /// voters change
    #[arg(long, env = "KVSTORE_BALANCE_LEADERS", default_value_t = true, action = clap::ArgAction::Set)]
    balance_leaders: bool,
    #[command(flatten)]
    snapshots: SnapshotOptions,
    #[command(flatten)]
    scrub: ScrubOptions,
    /// What to log: error, warn, info, debug, trace, or a filter like info,paxos=debug
    #[arg(long, env = "KVSTORE_LOG", default_value = "info")]
    log: String,
    /// Stop when standard input is closed: for programs that start nodes
    #[arg(long, hide = true)]
    exit_with_stdin: bool,
}

/// When snapshots are taken, and how much of the log is kept behind them.
#[derive(Clone, Debug, Args)]
pub(super) struct SnapshotOptions {
    /// After how many log entries a group's next snapshot is taken and its log trimmed; 0: not by their number
    #[arg(
        long = "snapshot-entries",
        env = "KVSTORE_SNAPSHOT_ENTRIES",
        default_value_t = 100_000
    )]
    pub(super) entries: u64,
    /// After how many bytes of log entries a group's next snapshot is taken; 0: not by their bytes
    #[arg(long = "snapshot-bytes", env = "KVSTORE_SNAPSHOT_BYTES", default_value_t = 256 << 20)]
    pub(super) bytes: u64,
    /// How many log entries are kept behind a snapshot, for nodes that were away for a short time
    #[arg(
        long = "snapshot-tail",
        env = "KVSTORE_SNAPSHOT_TAIL",
        default_value_t = 10_000
    )]
    pub(super) tail: u64,
    /// How many snapshots of each group are kept
    #[arg(long = "snapshot-keep", env = "KVSTORE_SNAPSHOT_KEEP", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) keep: u16,
}

/// How the logs are read in the background, in search of damage.
#[derive(Clone, Debug, Args)]
pub(super) struct ScrubOptions {
    /// How fast this node reads its logs in the background in search of damaged entries, which it then gets from the others,
    /// in bytes a second; 0: not at all
    #[arg(long = "scrub-bytes-per-second", env = "KVSTORE_SCRUB_BYTES_PER_SECOND", default_value_t = 1 << 20)]
    pub(super) bytes_per_second: u64,
    /// How often it reads all of them so
    #[arg(long = "scrub-interval", env = "KVSTORE_SCRUB_INTERVAL", value_parser = super::duration, default_value = "1h")]
    pub(super) interval: Duration,
}

/// A checked configuration with everything opened that can be taken by others.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) id: u64,
    /// The nodes of the cluster that is to be founded, and their addresses.
    pub(super) members: Option<BTreeMap<u64, String>>,
    /// Where nodes of the running cluster talk to each other.
    pub(super) join: Vec<String>,
    /// Where this node talks to the others, if that was said apart.
    pub(super) peer: Option<String>,
    /// The cluster's name, if it was given one.
    pub(super) cluster_name: Option<String>,
    pub(super) backend: Backend,
    pub(super) data_dir: PathBuf,
    pub(super) groups: Option<u16>,
    pub(super) lease_reads: bool,
    pub(super) balance_leaders: bool,
    pub(super) snapshots: SnapshotOptions,
    pub(super) scrub: ScrubOptions,
    pub(super) route: Route,
    pub(super) max_clients: usize,
    pub(super) shutdown: Shutdown,
    pub(super) election_timeout: Duration,
    pub(super) heartbeat_interval: Duration,
    pub(super) resp: TcpListener,
    pub(super) http: TcpListener,
    pub(super) exit_with_stdin: bool,
}

pub(super) fn run(options: &ServeOptions) -> Result<Exit, Failure> {
    let filter = EnvFilter::try_new(&options.log)
        .map_err(|error| Failure::usage(format!("--log {}: {error}; try --log info", options.log)))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    let plan = plan(options)?;
    super::block_on(node::run(plan))
}

fn plan(options: &ServeOptions) -> Result<Plan, Failure> {
    let members = options.cluster.as_deref().map(members).transpose()?;
    if let Some(members) = &members
        && !members.contains_key(&options.id)
    {
        let ids: Vec<u64> = members.keys().copied().collect();
        return Err(Failure::usage(format!(
            "--id {} is not in --cluster, which has {}; give this node one of those ids or add it to --cluster",
            options.id,
            directory::listed(&ids)
        )));
    }
    let peer = options.peer.iter().map(|peer| ("--peer", peer));
    let seeds = options.join.iter().map(|seed| ("--join", seed));
    for (flag, address) in peer.chain(seeds) {
        if !is_address(address) {
            return Err(Failure::usage(format!(
                "{flag} {address} is no address; write host:port, as in 127.0.0.1:7101"
            )));
        }
    }
    check_times(options.heartbeat_interval, options.election_timeout)?;
    if options.scrub.interval.is_zero() {
        return Err(Failure::usage(
            "--scrub-interval 0s is out of range; write 1h, say, or turn the scrub off with --scrub-bytes-per-second 0",
        ));
    }
    let backend = backend(options.storage.as_deref())?;
    Ok(Plan {
        id: options.id,
        cluster_name: options.cluster_id.clone(),
        members,
        join: options.join.clone(),
        peer: options.peer.clone(),
        backend,
        data_dir: options.data_dir.clone(),
        groups: options.groups,
        lease_reads: options.lease_reads,
        balance_leaders: options.balance_leaders,
        snapshots: options.snapshots.clone(),
        scrub: options.scrub.clone(),
        route: options.route,
        max_clients: options.max_clients as usize,
        shutdown: options.shutdown_command,
        election_timeout: options.election_timeout,
        heartbeat_interval: options.heartbeat_interval,
        resp: listen("--resp", &options.resp)?,
        http: listen("--http", &options.http)?,
        exit_with_stdin: options.exit_with_stdin,
    })
}

/// The longest time between a leader's signs of life.
const MAX_HEARTBEAT_INTERVAL: Duration = Duration::from_mins(1);
/// The longest time without a leader's sign of life.
const MAX_ELECTION_TIMEOUT: Duration = Duration::from_mins(10);

fn check_times(heartbeat_interval: Duration, election_timeout: Duration) -> Result<(), Failure> {
    let (flag, given, expected) = if heartbeat_interval < Duration::from_millis(1) {
        ("--heartbeat-interval", heartbeat_interval, "at least 1ms")
    } else if heartbeat_interval > MAX_HEARTBEAT_INTERVAL {
        ("--heartbeat-interval", heartbeat_interval, "at most 1m")
    } else if election_timeout > MAX_ELECTION_TIMEOUT {
        ("--election-timeout", election_timeout, "at most 10m")
    } else if election_timeout < heartbeat_interval * 2 {
        (
            "--election-timeout",
            election_timeout,
            "at least twice --heartbeat-interval, better five times",
        )
    } else {
        return Ok(());
    };
    Err(Failure::usage(format!(
        "{flag} {given:?} is out of range; it must be {expected}"
    )))
}

/// The id of a cluster: of its name, the ids of its nodes and the number of its groups, so that nodes which were told
/// different ones do not talk to each other. Without a name the nodes' addresses take its place.
pub(super) fn cluster_id(name: Option<&str>, members: &BTreeMap<u64, String>, groups: u16) -> ClusterId {
    let members: Vec<String> = members
        .iter()
        .map(|(id, address)| match name {
            Some(_) => id.to_string(),
            None => format!("{id}={address}"),
        })
        .collect();
    ClusterId::from_name(&format!("{name:?} {} {groups}", members.join(",")))
}

/// `1=host:port,2=host:port`.
fn members(cluster: &str) -> Result<BTreeMap<u64, String>, Failure> {
    let mut members = BTreeMap::new();
    for member in cluster.split(',').map(str::trim) {
        let bad = |why: &str| {
            Failure::usage(format!(
                "--cluster: '{member}' {why}; write 1=host:port,2=host:port,..."
            ))
        };
        let (id, address) = member.split_once('=').ok_or_else(|| bad("has no id"))?;
        let id: u64 = id
            .parse()
            .ok()
            .filter(|id| *id > 0)
            .ok_or_else(|| bad("has no number above 0 as id"))?;
        if !address.contains(':') {
            return Err(bad("has no port"));
        }
        if !is_address(address) {
            return Err(bad("is no address"));
        }
        if members.values().any(|other| other == address) {
            return Err(bad("has the address of another node"));
        }
        if members.insert(id, address.to_owned()).is_some() {
            return Err(bad("has the id of another node"));
        }
    }
    Ok(members)
}

fn listen(flag: &str, address: &str) -> Result<TcpListener, Failure> {
    let resolved: Vec<SocketAddr> = address
        .to_socket_addrs()
        .map_err(|error| {
            Failure::usage(format!(
                "{flag} {address} is no address ({error}); write host:port, as in 127.0.0.1:7001"
            ))
        })?
        .collect();
    let listener = TcpListener::bind(&resolved[..]).map_err(|error| {
        Failure::error(format!(
            "cannot listen on {flag} {address}: {error}; stop what uses it or choose another address"
        ))
    })?;
    listener
        .set_nonblocking(true)
        .map_err(|error| Failure::error(format!("{flag} {address}: {error}")))?;
    Ok(listener)
}

/// The engine asked for, or the fastest durable one.
pub(super) fn backend(name: Option<&str>) -> Result<Backend, Failure> {
    let Some(name) = name else {
        let durable = [Backend::Wal, Backend::LevelDb, Backend::Sqlite]
            .into_iter()
            .find(|backend| backend.is_built_in());
        return Ok(durable.unwrap_or_else(|| {
            tracing::warn!("no durable storage is built in: everything is lost when this process ends");
            Backend::Memory
        }));
    };
    let backend: Backend = name
        .parse()
        .map_err(|error| Failure::usage(format!("--storage: {error}")))?;
    if !backend.is_built_in() {
        return Err(Failure::usage(format!(
            "--storage {name} is not built into this program; build it with: cargo build -p kvstore --features {name}"
        )));
    }
    Ok(backend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_were_told_different_clusters_are_strangers() {
        let id = |name, cluster: &str, groups| cluster_id(name, &members(cluster).unwrap(), groups);
        assert_eq!(id(None, "1=a:1,2=b:2", 1), id(None, "2=b:2, 1=a:1", 1));
        assert_eq!(id(Some("x"), "1=a:1,2=b:2", 1), id(Some("x"), "1=c:1,2=d:2", 1));
        let told = [
            id(None, "1=a:1,2=b:2", 1),
            id(None, "1=a:1,2=b:3", 1),
            id(None, "1=a:1", 1),
            id(None, "1=a:1,2=b:2", 2),
            id(Some("x"), "1=a:1,2=b:2", 1),
            id(Some("y"), "1=a:1,2=b:2", 1),
            id(Some("x"), "1=a:1", 1),
            id(Some("x"), "1=a:1,2=b:2", 2),
        ];
        let different: std::collections::BTreeSet<u64> = told.iter().map(|id| id.0).collect();
        assert_eq!(different.len(), told.len());
    }

    #[test]
    fn a_cluster_is_ids_and_addresses() {
        let found = members("2=b:2, 1=[::1]:1").unwrap();
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [(1, "[::1]:1".to_owned()), (2, "b:2".to_owned())]
        );
        for (cluster, why) in [
            ("", "has no id"),
            ("host:1", "has no id"),
            ("x=host:1", "number above 0"),
            ("0=host:1", "number above 0"),
            ("1=host", "has no port"),
            ("1=host:0", "is no address"),
            ("1=:1", "is no address"),
            ("1=a:1,1=b:1", "id of another"),
            ("1=a:1,2=a:1", "address of another"),
        ] {
            let refused = members(cluster).unwrap_err();
            assert_eq!(refused.exit, Exit::Usage);
            assert!(
                refused.text.contains(why) && refused.text.contains("write 1="),
                "{cluster}: {refused}"
            );
        }
    }
}
