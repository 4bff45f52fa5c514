//! What a data directory knows of its node and cluster: written when it is made, checked at every start.

use std::{
    collections::BTreeMap,
    fmt::Display,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use paxos::{ClusterId, StorageError};
use paxos_backends::Backend;
use serde::{Deserialize, Serialize};

use super::{
    Failure, join,
    serve::{Plan, cluster_id},
};

const FILE: &str = "kvstore.json";
const FORMAT: u32 = 2;

/// Who a node is, and which cluster it belongs to. Never changes, but for the addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Facts {
    format: u32,
    storage: String,
    /// The cluster's id, in hexadecimal: nodes of another one are strangers.
    cluster: String,
    /// The cluster's name, if it was given one.
    pub(super) name: Option<String>,
    pub(super) node: u64,
    pub(super) groups: u16,
    /// The nodes that founded the cluster, with the addresses of that time; none on a node that joined later.
    pub(super) members: BTreeMap<u64, String>,
    /// Where this node talks to the others.
    pub(super) peer: String,
    /// Where nodes of the cluster talk to each other, as `--join` last said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) join: Vec<String>,
}

impl Facts {
    /// As a founder of a cluster.
    fn founder(plan: &Plan, members: &BTreeMap<u64, String>) -> Self {
        let groups = plan.groups.unwrap_or(1);
        let own = members.get(&plan.id).cloned().unwrap_or_default();
        Self {
            format: FORMAT,
            storage: plan.backend.name().to_owned(),
            cluster: cluster_id(plan.cluster_name.as_deref(), members, groups).to_string(),
            name: plan.cluster_name.clone(),
            node: plan.id,
            groups,
            members: members.clone(),
            peer: plan.peer.clone().unwrap_or(own),
            join: Vec::new(),
        }
    }

    /// As a node that joins a running cluster.
    async fn joiner(plan: &Plan) -> Result<Self, Failure> {
        let peer = plan.peer.clone().ok_or_else(|| {
            Failure::usage("--join needs --peer host:port, where this node talks to the others")
        })?;
        let (cluster, told) = join::learn(&plan.join, plan.id).await?;
        let differs = |what: &str, theirs: &dyn Display, given: &dyn Display| {
            Err(Failure::usage(format!(
                "{what} {given} is not that of the cluster, which has {theirs}; leave it away"
            )))
        };
        if let Some(groups) = plan.groups
            && groups != told.groups
        {
            return differs("--groups", &told.groups, &groups);
        }
        if let Some(name) = &plan.cluster_name
            && told.name.as_ref() != Some(name)
        {
            return differs("--cluster-id", &told.name.as_deref().unwrap_or("none"), name);
        }
        Ok(Self {
            format: FORMAT,
            storage: plan.backend.name().to_owned(),
            cluster: cluster.to_string(),
            name: told.name,
            node: plan.id,
            groups: told.groups,
            members: BTreeMap::new(),
            peer,
            join: plan.join.clone(),
        })
    }

    /// Where to ask for nodes of the cluster while none that is known answers.
    pub(super) fn seeds(&self) -> Vec<String> {
        self.join.iter().chain(self.members.values()).cloned().collect()
    }

    pub(super) fn cluster(&self) -> Result<ClusterId, Failure> {
        let id = u64::from_str_radix(&self.cluster, 16);
        id.map(ClusterId).map_err(|_| {
            Failure::error(format!(
                "the cluster id '{}' in {FILE} is no number",
                self.cluster
            ))
        })
    }
}

/// What the data directory says, checked against the flags; or what the flags say, for a new one. The flag
/// tells to [`write`] it.
pub(super) async fn settle(plan: &Plan) -> Result<(Facts, bool), Failure> {
    if let Some(found) = read(plan)? {
        check(plan, &found)?;
        let peer = moved_to(plan, &found).unwrap_or_else(|| found.peer.clone());
        let has_moved = peer != found.peer;
        if has_moved {
            let (id, from) = (plan.id, &found.peer);
            tracing::warn!(
                from,
                "this node has moved; tell the cluster: kvstore member update {id}={peer}"
            );
        }
        let join = if plan.join.is_empty() {
            found.join.clone()
        } else {
            plan.join.clone()
        };
        let is_news = has_moved || join != found.join;
        return Ok((Facts { peer, join, ..found }, is_news));
    }
    match &plan.members {
        Some(members) => Ok((Facts::founder(plan, members), true)),
        None if !plan.join.is_empty() => Ok((Facts::joiner(plan).await?, true)),
        None => Err(Failure::usage(format!(
            "the data directory {} is new: give --cluster 1=host:port,... to found a cluster, or --join host:port to \
             join a running one",
            plan.data_dir.display()
        ))),
    }
}

/// Where the flags say that this node talks to the others. The addresses of a cluster without a name are its name.
fn moved_to(plan: &Plan, found: &Facts) -> Option<String> {
    let members = plan.members.as_ref().filter(|_| found.name.is_some());
    let own = members.and_then(|members| members.get(&plan.id));
    plan.peer.as_ref().or(own).cloned()
}

fn file(plan: &Plan) -> PathBuf {
    plan.data_dir.join(FILE)
}

fn read(plan: &Plan) -> Result<Option<Facts>, Failure> {
    if plan.backend == Backend::Memory {
        return Ok(None);
    }
    let file = file(plan);
    match std::fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| {
            Failure::error(format!(
                "{} cannot be read: {error}; was it written by another version?",
                file.display()
            ))
        }),
        // A place where there can be no directory is named when it is made.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(failed("read", plan, &error)),
    }
}

fn failed(doing: &str, plan: &Plan, error: &std::io::Error) -> Failure {
    let directory = plan.data_dir.display();
    Failure::error(format!(
        "cannot {doing} the data directory {directory}: {error}; choose a --data-dir that this user may write to"
    ))
}

fn check(plan: &Plan, found: &Facts) -> Result<(), Failure> {
    let directory = plan.data_dir.display();
    let differs = |what: &str, flag: &str, found: &dyn Display, given: &dyn Display| {
        Err(Failure::error(format!(
            "the data directory {directory} was made with {what} {found}, not {given}; start with {flag} {found} or \
             choose another --data-dir"
        )))
    };
    if found.format != FORMAT {
        return differs("format", "a program of format", &found.format, &FORMAT);
    }
    if let Err(why) = join::check_groups(found.groups) {
        return Err(Failure::error(format!(
            "the data directory {directory} is damaged: its cluster {why}; restore {FILE} from a copy, or let the node join \
             anew with another --data-dir"
        )));
    }
    if found.storage != plan.backend.name() {
        return differs("storage", "--storage", &found.storage, &plan.backend.name());
    }
    if found.node != plan.id {
        return differs("id", "--id", &found.node, &plan.id);
    }
    if let Some(groups) = plan.groups
        && groups != found.groups
    {
        return differs("groups", "--groups", &found.groups, &groups);
    }
    if let Some(name) = &plan.cluster_name
        && found.name.as_ref() != Some(name)
    {
        let found = found.name.as_deref().unwrap_or("(none)");
        return differs("the cluster id", "--cluster-id", &found, name);
    }
    let Some(members) = &plan.members else {
        return Ok(());
    };
    if found.members.is_empty() {
        return Err(Failure::error(format!(
            "the data directory {directory} is that of a node that joined a running cluster; it knows its cluster: leave \
             --cluster away, or choose another --data-dir"
        )));
    }
    if !members.keys().eq(found.members.keys()) {
        return Err(Failure::error(format!(
            "the data directory {directory} was made for a cluster of the nodes {}, not {}; it knows its cluster: leave \
             --cluster away, or choose another --data-dir",
            listed(found.members.keys()),
            listed(members.keys())
        )));
    }
    if cluster_id(found.name.as_deref(), members, found.groups) != found.cluster()? {
        return Err(Failure::error(format!(
            "the data directory {directory} belongs to cluster {}, which was founded with other addresses than --cluster \
             names; it knows its cluster: leave --cluster away (and give --peer, if this node has moved), or choose \
             another --data-dir",
            found.cluster
        )));
    }
    Ok(())
}

/// What the store says of a directory that it cannot use, and what to do.
pub(super) fn not_opened(error: &StorageError) -> Failure {
    let advice = match error {
        StorageError::Io { .. } => "; choose a --data-dir that this user may write to",
        _ => "",
    };
    Failure::error(format!("{error}{advice}"))
}

/// Writes the facts; only for who holds the store, so that nobody else is disturbed.
pub(super) fn write(plan: &Plan, facts: &Facts) -> Result<(), Failure> {
    if plan.backend == Backend::Memory {
        return Ok(());
    }
    replace(&plan.data_dir, &file(plan), facts).map_err(|error| failed("write to", plan, &error))
}

fn replace(directory: &Path, file: &Path, facts: &Facts) -> std::io::Result<()> {
    let temporary = file.with_extension("tmp");
    let mut text = serde_json::to_vec_pretty(facts)?;
    text.push(b'\n');
    std::fs::write(&temporary, text)?;
    std::fs::File::open(&temporary)?.sync_all()?;
    std::fs::rename(&temporary, file)?;
    std::fs::File::open(directory)?.sync_all()
}

pub(super) fn listed<'a>(ids: impl IntoIterator<Item = &'a u64>) -> String {
    let ids: Vec<String> = ids.into_iter().map(u64::to_string).collect();
    ids.join(", ")
}
