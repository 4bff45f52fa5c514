//! A node's life: open the store, join the cluster, serve clients, stop in order.

use std::{
    io::Read as _,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use paxos::{
    FileSnapshots, GroupId, Member, Membership, MemorySnapshots, Node, NodeId, Read, core::Lease,
    sessions::Sessions, storage::Owner,
};
use paxos_backends::Backend;
use paxos_transports::tcp::{Tcp, TcpConfig};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
};

use super::{
    Exit, Failure,
    directory::{self, Facts},
    join::{self, Introduction},
    serve::Plan,
};
use crate::{
    http,
    machine::{Machine, NodeAddresses},
    resp::Limits,
    server::{self, Settings, Shared},
};

/// How far a node's monotonic clock may run fast or slow, in thousandths, if reads rely on it.
const MAX_DRIFT_PERMILLE: u32 = 10;
/// How long clients' last replies and the store's closing may take.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn run(plan: Plan) -> Result<Exit, Failure> {
    let mut stopping = Stopping::new(plan.exit_with_stdin)?;
    allow_open_files(plan.max_clients);
    // The address first: a node that is running already should be the reason given, and not its locked directory.
    let (facts, is_new) = directory::settle(&plan).await?;
    let failed = |error: std::io::Error| Failure::error(format!("cannot serve: {error}"));
    let address =
        |listener: &std::net::TcpListener| listener.local_addr().map(|bound| reachable(bound, &facts.peer));
    let addresses = NodeAddresses {
        resp: address(&plan.resp).map_err(failed)?,
        http: address(&plan.http).map_err(failed)?,
    };
    let introduction = Introduction {
        groups: facts.groups,
        name: facts.name.clone(),
        clients: addresses.resp.clone(),
    };
    let config = TcpConfig {
        introduction: introduction.encode()?,
        ..TcpConfig::new(facts.peer.clone())
    };
    let transport = Tcp::bind(config).map_err(|error| {
        let advice =
            "stop what uses the address that --cluster or --peer gives this node, or change it there";
        Failure::error(format!("{error}; {advice}"))
    })?;
    let request_timeout = 2 * plan.election_timeout + Duration::from_secs(1);
    let node = Arc::new(open(&plan, &facts, transport, request_timeout).await?);
    if is_new {
        directory::write(&plan, &facts)?;
    }
    let groups = add_groups(&facts, &node).await?;

    let (resp, http) = (TcpListener::from_std(plan.resp), TcpListener::from_std(plan.http));
    let (resp, http) = (resp.map_err(failed)?, http.map_err(failed)?);
    tracing::info!(
        node = plan.id,
        resp = addresses.resp,
        http = addresses.http,
        storage = plan.backend.name(),
        groups = facts.groups,
        "serving"
    );
    let settings = Settings {
        node: NodeId(plan.id),
        cluster: facts
            .name
            .clone()
            .unwrap_or_else(|| node.identity().cluster.to_string()),
        cluster_id: node.identity().cluster,
        storage: plan.backend.name().to_owned(),
        addresses,
        route: plan.route,
        max_clients: plan.max_clients,
        shutdown: plan.shutdown,
        request_timeout,
        read: if plan.lease_reads {
            Read::Lease
        } else {
            Read::Linearizable
        },
        limits: Limits::default(),
    };
    let shared = Shared::new(settings, groups);
    let stop = watch::Sender::new(false);
    let mut clients = tokio::spawn(server::serve(resp, Arc::clone(&shared), stop.subscribe()));
    let mut http = tokio::spawn(http::serve(
        http,
        Arc::clone(&shared),
        Arc::downgrade(&node),
        stop.subscribe(),
    ));
    let announce = tokio::spawn(server::announce(Arc::clone(&shared)));
    if !facts.join.is_empty() {
        tokio::spawn(join::enrol(
            Arc::clone(&shared),
            facts.join.clone(),
            facts.peer.clone(),
        ));
    }
    let leaders = tokio::spawn(log_leaders(Arc::clone(&shared), Arc::downgrade(&node)));

    let failed = tokio::select! {
        why = stopping.requested() => {
            tracing::info!(why, "stopping");
            None
        }
        () = shared.shutdown_wanted() => {
            tracing::info!("a client stops this node");
            None
        }
        why = node.halted() => Some(format!("has halted: {why}")),
        ended = &mut clients => Some(format!("serves no clients any more: {}", why_ended(ended))),
        ended = &mut http => Some(format!("serves no HTTP any more: {}", why_ended(ended))),
    };
    announce.abort();
    leaders.abort();
    let _ = stop.send(true);
    let ended = async {
        while !(clients.is_finished() && http.is_finished()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), ended).await;
    close(node).await;
    match failed {
        None => Ok(Exit::Ok),
        Some(why) => Err(Failure::error(format!("node {} {why}", plan.id))),
    }
}

/// Where others reach what listens on `bound`: a node that listens on all its addresses is known by the host of its
/// peer address.
fn reachable(bound: SocketAddr, peer_address: &str) -> String {
    match peer_address.rsplit_once(':') {
        Some((host, _)) if bound.ip().is_unspecified() => format!("{host}:{}", bound.port()),
        _ => bound.to_string(),
    }
}

/// Why a task that runs until it is told to stop has ended by itself.
fn why_ended(ended: Result<(), tokio::task::JoinError>) -> String {
    ended.map_or_else(|error| error.to_string(), |()| "its listener has failed".into())
}

/// Raises this process's own limit of open files as far as it may, so that all clients find room.
fn allow_open_files(max_clients: usize) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    /// What the store, the peers and HTTP need.
    const OTHERS: u64 = 512;
    let wanted = max_clients as u64 + OTHERS;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
    let raised = setrlimit(Resource::Nofile, limit).is_ok();
    if !raised || limit.current.is_some_and(|current| current < wanted) {
        tracing::warn!(
            max_clients,
            open_files = limit.current,
            "there may be too few file descriptors for --max-clients; raise the limit (ulimit -n)"
        );
    }
}

/// Opens the stores and starts the node on them.
async fn open(
    plan: &Plan,
    facts: &Facts,
    transport: Tcp,
    request_timeout: Duration,
) -> Result<Node, Failure> {
    let owner = Owner {
        cluster: facts.cluster()?,
        node: NodeId(plan.id),
    };
    if plan.backend == Backend::Memory {
        tracing::warn!("storage is memory: everything on this node is lost when it stops");
    }
    let failed = |error: &dyn std::fmt::Display| Failure::error(error.to_string());
    // It makes the directory, all above it too, so that a power failure cannot take it away.
    let storage = paxos_backends::open(plan.backend, &plan.data_dir, owner);
    let storage = storage.map_err(|error| directory::not_opened(&error))?;
    let mut config = paxos::node::Config::default();
    config.replica.election_timeout = plan.election_timeout;
    config.replica.heartbeat_interval = plan.heartbeat_interval;
    config.replica.balance_leaders = plan.balance_leaders && facts.groups > 1;
    config.replica.lease = plan.lease_reads.then_some(Lease {
        duration: plan.election_timeout,
        max_drift_permille: MAX_DRIFT_PERMILLE,
    });
    config.replica.snapshot_entries = plan.snapshots.entries;
    config.replica.snapshot_bytes = plan.snapshots.bytes;
    config.replica.keep_entries = plan.snapshots.tail;
    config.scrub_bytes_per_second = plan.scrub.bytes_per_second;
    config.scrub_interval = plan.scrub.interval;
    config.read_timeout = request_timeout;
    config.change_timeout = request_timeout;
    let keep = usize::from(plan.snapshots.keep);
    let seeds = Arc::new(facts.seeds());
    let node = Node::builder(storage, transport)
        .config(config)
        .discovery(move || {
            let seeds = Arc::clone(&seeds);
            async move { join::find(&seeds, owner).await }
        });
    let node = if plan.backend == Backend::Memory {
        node.snapshots(MemorySnapshots::new().keep(keep))
    } else {
        let snapshots =
            FileSnapshots::open(plan.data_dir.join("snapshots")).map_err(|error| failed(&error))?;
        node.snapshots(snapshots.keep(keep))
    };
    node.spawn().await.map_err(|error| failed(&error))
}

async fn add_groups(facts: &Facts, node: &Node) -> Result<Vec<paxos::node::Group>, Failure> {
    let members = facts
        .members
        .iter()
        .map(|(id, address)| Member::voter(NodeId(*id), address.clone()));
    let membership = Membership::new(members);
    let mut groups = Vec::with_capacity(usize::from(facts.groups));
    for group in 0..u32::from(facts.groups) {
        // One process's writes are told apart by its session.
        let machine = Sessions::with_limits(Machine::default(), server::session_limits());
        let added = if facts.members.is_empty() {
            node.join_group(GroupId(group), machine).await
        } else {
            node.add_group(GroupId(group), membership.clone(), machine).await
        };
        groups.push(added.map_err(|error| Failure::error(format!("group {group} cannot start: {error}")))?);
    }
    Ok(groups)
}

/// One line for each change of the first group's leader: what an operator wants to see, and nothing more.
async fn log_leaders(shared: Arc<Shared>, node: Weak<Node>) {
    let Some(mut leader) = shared.groups.first().map(paxos::node::Group::leader) else {
        return;
    };
    while node.strong_count() > 0 {
        if let Some(ballot) = *leader.borrow_and_update() {
            tracing::info!(leader = %ballot.node, %ballot, "the leader is known");
        } else {
            tracing::info!("there is no leader");
        }
        if leader.changed().await.is_err() {
            return;
        }
    }
}

async fn close(node: Arc<Node>) {
    let Some(node) = Arc::into_inner(node) else {
        // A request for metrics is under way; what is acknowledged is durable without this.
        return tracing::debug!("the node is still in use, not closed in order");
    };
    match tokio::time::timeout(SHUTDOWN_LIMIT, node.shutdown()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the node did not close in order"),
        Err(_) => tracing::error!("the node took too long to close"),
    }
}

/// The reasons to stop that come from outside.
struct Stopping {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    orphaned: Option<oneshot::Receiver<()>>,
}

impl Stopping {
    fn new(exit_with_stdin: bool) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::error(format!("cannot listen to signals: {error}"));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            orphaned: exit_with_stdin.then(watch_stdin),
        })
    }

    async fn requested(&mut self) -> &'static str {
        let orphaned = async {
            match &mut self.orphaned {
                Some(orphaned) => {
                    let _ = orphaned.await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "terminated",
            () = orphaned => "standard input was closed",
        }
    }
}

/// Reads standard input, on a thread of its own, until it is closed. The process that started this one holds the other
/// end: it is closed when that process ends, however it ends.
fn watch_stdin() -> oneshot::Receiver<()> {
    // A stopped process reads nothing; only the kernel can end it together with its parent.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let (closed, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let mut sink = [0; 64];
        while std::io::stdin().read(&mut sink).is_ok_and(|read| read > 0) {}
        let _ = closed.send(());
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_listens_everywhere_is_reached_at_its_peer_address() {
        for (bound, expected) in [
            ("0.0.0.0:7001", "db1.example:7001"),
            ("[::]:7001", "db1.example:7001"),
            ("10.0.0.1:7001", "10.0.0.1:7001"),
        ] {
            assert_eq!(reachable(bound.parse().unwrap(), "db1.example:7101"), expected);
        }
        assert_eq!(reachable("0.0.0.0:1".parse().unwrap(), "[::1]:2"), "[::1]:1");
    }
}
