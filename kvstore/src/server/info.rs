//! `INFO`: facts about this node, in the form that Redis clients and tools read.

use std::fmt::Write as _;

use super::{Route, Session, Shared, metrics::process_usage};
use crate::resp::{Args, is};

/// The version of Redis whose commands' behaviour is followed.
pub(super) const REDIS_VERSION: &str = "7.4.0";

/// Host and port of a leader that has not said yet where it is reached.
pub(super) const UNKNOWN_ADDRESS: (&str, &str) = ("unknown", "0");

const SECTIONS: [&str; 8] = [
    "server",
    "clients",
    "memory",
    "persistence",
    "stats",
    "replication",
    "cluster",
    "keyspace",
];

/// The sections asked for, or all.
pub(super) async fn text(shared: &Shared, args: Args<'_>, session: &Session) -> String {
    let every = |name: &&[u8]| ["all", "default", "everything"].iter().any(|all| is(name, all));
    let all = args.len() == 1 || args.from(1).any(|name| every(&name));
    let mut text = String::new();
    for section in SECTIONS {
        if !all && !args.from(1).any(|name| is(name, section)) {
            continue;
        }
        if !text.is_empty() {
            text.push_str("\r\n");
        }
        let mut title = section.to_owned();
        title[..1].make_ascii_uppercase();
        let _ = write!(text, "# {title}\r\n");
        for (name, value) in facts(section, shared, session).await {
            let _ = write!(text, "{name}:{value}\r\n");
        }
    }
    text
}

async fn facts(section: &str, shared: &Shared, session: &Session) -> Vec<(&'static str, String)> {
    let settings = &shared.settings;
    let text = |text: &str| text.to_owned();
    match section {
        "server" => vec![
            ("redis_version", text(REDIS_VERSION)),
            ("redis_mode", text("standalone")),
            ("kvstore_version", text(env!("CARGO_PKG_VERSION"))),
            ("process_id", std::process::id().to_string()),
            (
                "tcp_port",
                text(
                    settings
                        .addresses
                        .resp
                        .rsplit_once(':')
                        .map_or("0", |(_, port)| port),
                ),
            ),
            ("uptime_in_seconds", shared.uptime().as_secs().to_string()),
            ("uptime_in_days", (shared.uptime().as_secs() / 86_400).to_string()),
            ("kvstore_node_id", settings.node.to_string()),
            ("kvstore_cluster", settings.cluster.clone()),
            ("kvstore_storage", settings.storage.clone()),
            ("kvstore_groups", shared.groups.len().to_string()),
        ],
        "clients" => vec![
            ("connected_clients", shared.clients.len().to_string()),
            ("maxclients", settings.max_clients.to_string()),
            ("kvstore_this_client", session.id.to_string()),
        ],
        "memory" => {
            let used = process_usage().map_or(0, |(_, bytes)| bytes);
            vec![
                ("used_memory", used.to_string()),
                ("used_memory_rss", used.to_string()),
                ("maxmemory", text("0")),
            ]
        }
        "persistence" => vec![("loading", text("0")), ("aof_enabled", text("1"))],
        "stats" => vec![
            ("total_connections_received", shared.clients.total().to_string()),
            ("total_commands_processed", shared.metrics.answered().to_string()),
        ],
        "replication" => replication(shared),
        "cluster" => vec![("cluster_enabled", text("1"))],
        _ => match shared
            .sizes()
            .await
            .iter()
            .flatten()
            .map(|sizes| sizes.keys)
            .sum()
        {
            0_u64 => Vec::new(),
            keys => vec![("db0", format!("keys={keys},expires=0,avg_ttl=0"))],
        },
    }
}

fn replication(shared: &Shared) -> Vec<(&'static str, String)> {
    let leader = shared.leader(0);
    let mut facts = vec![("role", shared.role().to_owned())];
    if !shared.serves_writes() {
        let addresses = leader.and_then(|leader| shared.addresses_of(leader.node));
        let link = if addresses.is_some() { "up" } else { "down" };
        let address = addresses.unwrap_or_default().resp;
        let (host, port) = address.rsplit_once(':').unwrap_or(UNKNOWN_ADDRESS);
        facts.push(("master_host", host.to_owned()));
        facts.push(("master_port", port.to_owned()));
        facts.push(("master_link_status", link.to_owned()));
    }
    let is_leader = shared.groups.first().is_some_and(paxos::node::Group::is_leader);
    facts.push(("connected_slaves", "0".to_owned()));
    facts.push((
        "kvstore_role",
        if is_leader { "leader" } else { "follower" }.to_owned(),
    ));
    facts.push((
        "kvstore_leader",
        leader.map_or_else(|| "none".to_owned(), |leader| leader.node.to_string()),
    ));
    facts
}

impl Shared {
    /// Whether clients may write through this node: always, unless they are redirected to the leader.
    pub(super) fn serves_writes(&self) -> bool {
        self.settings.route == Route::Forward
            || self.groups.first().is_some_and(paxos::node::Group::is_leader)
    }

    /// What clients take this node for: they write to what calls itself master only.
    pub(super) fn role(&self) -> &'static str {
        if self.serves_writes() { "master" } else { "slave" }
    }
}
