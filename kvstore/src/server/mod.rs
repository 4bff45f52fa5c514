//! The server: speaks the Redis protocol with clients and takes their commands to the groups.

mod admin;
mod announce;
mod clients;
pub(crate) mod cluster;
mod connection;
mod info;
pub mod local;
mod members;
mod metrics;
mod pipeline;
mod routing;
mod status;
mod turns;
mod unwritten;
mod wide;
mod writer;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use paxos::{
    Ballot, ClusterId, NodeId,
    node::{Group, Read},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore, watch},
    task::JoinSet,
};

pub use self::{
    admin::{Outcome, Reason},
    announce::announce,
    clients::Session,
    metrics::{Metrics, Sizes},
    routing::Route,
    status::{GroupReport, Report, obstacles},
    wide::Wide,
    writer::limits as session_limits,
};
use crate::{machine::NodeAddresses, resp::Limits, shards::Shards};

/// What a server must be told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub node: NodeId,
    /// The cluster's name, for people.
    pub cluster: String,
    /// The cluster's id: nodes of another one are strangers.
    pub cluster_id: ClusterId,
    /// The storage engine's name.
    pub storage: String,
    /// Where clients reach this node.
    pub addresses: NodeAddresses,
    /// What is done with commands for a group that another node leads.
    pub route: Route,
    /// How many clients may be connected.
    pub max_clients: usize,
    /// How long a command may wait for a leader and its outcome.
    pub request_timeout: Duration,
    /// Who may stop this node.
    pub shutdown: Shutdown,
    /// How clients' reads are answered: linearizably, in one of the ways to do so.
    pub read: Read,
    /// What a client may send.
    pub limits: Limits,
}

/// Whose `SHUTDOWN` is heeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Shutdown {
    /// That of clients on this machine.
    #[default]
    Local,
    /// Anybody's.
    Yes,
    /// Nobody's.
    No,
}

impl Shutdown {
    const fn allows(self, is_local: bool) -> bool {
        match self {
            Self::Local => is_local,
            Self::Yes => true,
            Self::No => false,
        }
    }
}

/// What all connections of a server share.
#[derive(Debug)]
pub struct Shared {
    /// As started.
    pub settings: Settings,
    /// Which key belongs to which group.
    pub shards: Shards,
    /// The groups, by index.
    pub groups: Vec<Group>,
    /// What writes to each of them.
    writers: Vec<writer::Writer>,
    /// What the server has counted.
    pub metrics: Metrics,
    /// The connected clients.
    pub clients: clients::Clients,
    leaders: Vec<watch::Receiver<Option<Ballot>>>,
    directory: RwLock<BTreeMap<u64, NodeAddresses>>,
    /// Of the connections, and of everything else on their thread.
    turns: turns::Turns,
    /// A client wants this node to stop.
    shutdown_wanted: Notify,
    started: Instant,
}

impl Shared {
    /// What the connections of one server share; `groups` by index.
    pub fn new(settings: Settings, groups: Vec<Group>) -> Arc<Self> {
        Arc::new(Self {
            shards: Shards::new(u16::try_from(groups.len()).unwrap_or(Shards::MAX_GROUPS)),
            leaders: groups.iter().map(Group::leader).collect(),
            writers: groups.iter().cloned().map(writer::Writer::new).collect(),
            groups,
            metrics: Metrics::default(),
            clients: clients::Clients::default(),
            directory: RwLock::default(),
            turns: turns::Turns::new(),
            shutdown_wanted: Notify::new(),
            started: Instant::now(),
            settings,
        })
    }

    /// The leader of a group, as far as this node knows.
    pub fn leader(&self, group: usize) -> Option<Ballot> {
        *self.leaders.get(group)?.borrow()
    }

    /// Where a node is reached, if it has said so.
    pub fn addresses_of(&self, node: NodeId) -> Option<NodeAddresses> {
        let directory = self.directory.read().unwrap_or_else(PoisonError::into_inner);
        directory.get(&node.0).cloned()
    }

    /// Ends when a client that may do so has asked this node to stop.
    pub async fn shutdown_wanted(&self) {
        self.shutdown_wanted.notified().await;
    }

    /// How long the server has run.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Serves clients that connect to `listener` until `stop` becomes true or its sender is gone.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    tokio::select! {
        () = accept(listener, &shared) => {}
        () = shared.turns.renew() => {}
        _ = stop.changed() => {}
    }
}

/// Accepts clients. When this is dropped their connections end: none of them has to look out for that, at each command.
async fn accept(listener: TcpListener, shared: &Arc<Shared>) {
    let places = Arc::new(Semaphore::new(shared.settings.max_clients));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, as a rule: some client will leave.
                tracing::warn!(%error, "cannot accept a client");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        keep_alive(&stream);
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            let _ = stream.try_write(b"-ERR max number of clients reached\r\n");
            continue;
        };
        let shared = Arc::clone(shared);
        connections.spawn(async move {
            connection::serve(stream, peer, shared).await;
            drop(place);
        });
    }
}

/// Has the kernel find out that a silent client's machine is gone, within some minutes: its place becomes free.
fn keep_alive(stream: &TcpStream) {
    use rustix::net::sockopt;
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, Duration::from_mins(5));
    let _ = sockopt::set_tcp_keepintvl(stream, Duration::from_mins(1));
    let _ = sockopt::set_tcp_keepcnt(stream, 3);
}
