//! `CLUSTER`: which node leads which hash slots, for clients that take each command to its leader themselves.
//!
//! A node that leads a slot's group is what Redis Cluster calls its master; the group's other members are its replicas.
//! So a node may be a master of some slots and a replica of others, which Redis has no word for: wherever it asks for
//! one, a node that leads anything is called a master.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use bytes::BytesMut;
use paxos::NodeId;

use super::{Session, Shared, info::UNKNOWN_ADDRESS, local::no_subcommand};
use crate::{
    machine::NodeAddresses,
    resp::{Args, is, write},
    shards::{HASH_SLOTS, hash_slot},
};

/// The subcommands there are.
const KNOWN: [&str; 6] = ["info", "keyslot", "myid", "nodes", "shards", "slots"];

/// Hash slots that follow each other and belong to the same nodes.
#[derive(Debug, PartialEq, Eq)]
struct SlotRange {
    first: u16,
    last: u16,
    /// Whom clients are sent to with commands.
    master: NodeId,
    replicas: Vec<NodeId>,
}

/// What this node knows of where the slots are.
#[derive(Debug, Default)]
struct Topology {
    ranges: Vec<SlotRange>,
    addresses: BTreeMap<NodeId, NodeAddresses>,
    /// How many slots' groups have a leader.
    led_slots: u16,
}

pub(crate) fn cluster(shared: &Shared, _: &mut Session, args: Args<'_>, reply: &mut BytesMut) {
    let sub = args.get(1);
    match args.len() {
        2 if is(sub, "INFO") => write::bulk(reply, info(shared).as_bytes()),
        2 if is(sub, "MYID") => write::bulk(reply, name(shared.settings.node).as_bytes()),
        2 if is(sub, "NODES") => write::bulk(reply, nodes(shared).as_bytes()),
        2 if is(sub, "SHARDS") => shards(shared, reply),
        2 if is(sub, "SLOTS") => slots(shared, reply),
        3 if is(sub, "KEYSLOT") => write::integer(reply, i64::from(hash_slot(args.get(2)))),
        _ => no_subcommand("cluster", args, &KNOWN, reply),
    }
}

/// A node's name: as long as Redis Cluster's.
fn name(node: NodeId) -> String {
    format!("{:040x}", node.0)
}

/// Host and port of a node's address; a host of IPv6 without its brackets.
fn host_and_port(addresses: &NodeAddresses) -> (&str, &str) {
    let (host, port) = addresses.resp.rsplit_once(':').unwrap_or(UNKNOWN_ADDRESS);
    (host.trim_start_matches('[').trim_end_matches(']'), port)
}

impl Shared {
    fn topology(&self) -> Topology {
        let own = self.settings.node;
        let mut topology = Topology::default();
        topology.addresses.insert(own, self.settings.addresses.clone());
        for (index, group) in self.groups.iter().enumerate() {
            let members: Vec<NodeId> = group
                .membership()
                .borrow()
                .members
                .iter()
                .map(|member| member.node)
                .collect();
            for node in &members {
                if !topology.addresses.contains_key(node)
                    && let Some(addresses) = self.addresses_of(*node)
                {
                    topology.addresses.insert(*node, addresses);
                }
            }
            let leader = self.leader(index).map(|ballot| ballot.node);
            // While nobody is known to lead, this node takes the commands and waits for a leader.
            let master = leader
                .filter(|leader| topology.addresses.contains_key(leader))
                .unwrap_or(own);
            let replicas = members
                .into_iter()
                .filter(|node| *node != master && topology.addresses.contains_key(node))
                .collect();
            let slots = self.shards.slots(index);
            if leader.is_some() {
                topology.led_slots += slots.end - slots.start;
            }
            topology.add(SlotRange {
                first: slots.start,
                last: slots.end - 1,
                master,
                replicas,
            });
        }
        topology
    }
}

impl Topology {
    /// Adds the next slots, to the range before them if they belong to the same nodes.
    fn add(&mut self, range: SlotRange) {
        match self.ranges.last_mut() {
            Some(last) if last.master == range.master && last.replicas == range.replicas => {
                last.last = range.last;
            }
            _ => self.ranges.push(range),
        }
    }

    fn masters(&self) -> BTreeSet<NodeId> {
        self.ranges.iter().map(|range| range.master).collect()
    }

    fn led_by(&self, node: NodeId) -> impl Iterator<Item = &SlotRange> {
        self.ranges.iter().filter(move |range| range.master == node)
    }

    /// The master whom a node that leads nothing is said to follow.
    fn followed_by(&self, node: NodeId) -> Option<NodeId> {
        let range = self.ranges.iter().find(|range| range.replicas.contains(&node));
        range.map(|range| range.master)
    }
}

fn info(shared: &Shared) -> String {
    let topology = shared.topology();
    let state = if topology.led_slots == HASH_SLOTS {
        "ok"
    } else {
        "fail"
    };
    let mut text = String::new();
    for (fact, value) in [
        ("cluster_state", state.to_owned()),
        ("cluster_slots_assigned", HASH_SLOTS.to_string()),
        ("cluster_slots_ok", topology.led_slots.to_string()),
        ("cluster_slots_pfail", "0".to_owned()),
        (
            "cluster_slots_fail",
            (HASH_SLOTS - topology.led_slots).to_string(),
        ),
        ("cluster_known_nodes", topology.addresses.len().to_string()),
        ("cluster_size", topology.masters().len().to_string()),
    ] {
        let _ = write!(text, "{fact}:{value}\r\n");
    }
    text
}

/// A line for each node: name, address, flags, whom it follows, pings, epoch, link, slots.
fn nodes(shared: &Shared) -> String {
    let topology = shared.topology();
    let masters = topology.masters();
    let mut text = String::new();
    for (node, addresses) in &topology.addresses {
        let myself = if *node == shared.settings.node {
            "myself,"
        } else {
            ""
        };
        let (kind, follows) = match topology.followed_by(*node) {
            Some(master) if !masters.contains(node) => ("slave", name(master)),
            _ => ("master", "-".to_owned()),
        };
        let (host, port) = host_and_port(addresses);
        let _ = write!(
            text,
            "{} {host}:{port}@0 {myself}{kind} {follows} 0 0 0 connected",
            name(*node)
        );
        for SlotRange { first, last, .. } in topology.led_by(*node) {
            let _ = if first == last {
                write!(text, " {first}")
            } else {
                write!(text, " {first}-{last}")
            };
        }
        text.push('\n');
    }
    text
}

/// For each range of slots: first, last, and the nodes that have it, the master first.
fn slots(shared: &Shared, reply: &mut BytesMut) {
    let Topology {
        ranges, addresses, ..
    } = shared.topology();
    write::array(reply, ranges.len());
    for range in &ranges {
        write::array(reply, 3 + range.replicas.len());
        write::integer(reply, i64::from(range.first));
        write::integer(reply, i64::from(range.last));
        for node in [&range.master].into_iter().chain(&range.replicas) {
            let (host, port) = addresses.get(node).map_or(UNKNOWN_ADDRESS, host_and_port);
            write::array(reply, 4);
            write::bulk(reply, host.as_bytes());
            write::integer(reply, port.parse().unwrap_or(0));
            write::bulk(reply, name(*node).as_bytes());
            write::array(reply, 0);
        }
    }
}

/// For each master: its slots, itself and whoever has any of them too.
fn shards(shared: &Shared, reply: &mut BytesMut) {
    let topology = shared.topology();
    let masters = topology.masters();
    write::array(reply, masters.len());
    for master in masters {
        let ranges: Vec<&SlotRange> = topology.led_by(master).collect();
        let replicas: BTreeSet<NodeId> = ranges.iter().flat_map(|range| range.replicas.clone()).collect();
        write::map(reply, 2);
        write::bulk(reply, b"slots");
        write::array(reply, 2 * ranges.len());
        for range in ranges {
            write::integer(reply, i64::from(range.first));
            write::integer(reply, i64::from(range.last));
        }
        write::bulk(reply, b"nodes");
        write::array(reply, 1 + replicas.len());
        for (node, role) in [(master, "master")]
            .into_iter()
            .chain(replicas.into_iter().map(|node| (node, "replica")))
        {
            let addresses = topology.addresses.get(&node);
            let (host, port) = addresses.map_or(UNKNOWN_ADDRESS, host_and_port);
            write::map(reply, 7);
            write::bulk(reply, b"id");
            write::bulk(reply, name(node).as_bytes());
            write::bulk(reply, b"port");
            write::integer(reply, port.parse().unwrap_or(0));
            for (fact, value) in [("ip", host), ("endpoint", host), ("role", role)] {
                write::bulk(reply, fact.as_bytes());
                write::bulk(reply, value.as_bytes());
            }
            write::bulk(reply, b"replication-offset");
            write::integer(reply, 0);
            write::bulk(reply, b"health");
            write::bulk(reply, b"online");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_without_brackets() {
        for (resp, host) in [
            ("[::1]:7001", "::1"),
            ("10.0.0.1:7001", "10.0.0.1"),
            ("a.b:7001", "a.b"),
        ] {
            let addresses = NodeAddresses {
                resp: resp.into(),
                http: String::new(),
            };
            assert_eq!(host_and_port(&addresses), (host, "7001"));
        }
    }

    #[test]
    fn neighbours_that_belong_to_the_same_nodes_are_one_range() {
        let mut topology = Topology::default();
        let range = |first, last, master| SlotRange {
            first,
            last,
            master: NodeId(master),
            replicas: vec![NodeId(3 - master)],
        };
        for next in [
            range(0, 9, 1),
            range(10, 19, 1),
            range(20, 29, 2),
            range(30, 39, 1),
        ] {
            topology.add(next);
        }
        assert_eq!(
            topology.ranges,
            [range(0, 19, 1), range(20, 29, 2), range(30, 39, 1)]
        );
        assert_eq!(topology.followed_by(NodeId(2)), Some(NodeId(1)));
    }
}
