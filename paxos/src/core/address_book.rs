//! Whom a node has to be able to reach, and where, whatever the number of groups it takes part in.
//!
//! Pure, like the rest of the core. A driver owns one [`AddressBook`] per node, tells it of every
//! [`Output::Membership`](super::Output::Membership) and [`Output::Peers`](super::Output::Peers) of its replicas, and
//! has its transport reach what the book says then. A replica can send to nobody else: so a node that joins is mute
//! until somebody tells it who the members are.

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use crate::types::{GroupId, Member, Membership, NodeId};

/// So many nodes that are no members any more are still reached.
const MAX_DEPARTED: usize = 16;

/// The members of a node's groups, and where they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressBook {
    in_force: BTreeMap<GroupId, Membership>,
    /// Later ones, which may come into force.
    heard_of: BTreeMap<GroupId, Membership>,
    /// Members that have left, or asked although they had, in this life of the node, the latest last, and where they were:
    /// they ask, and are told.
    departed: Vec<(NodeId, String)>,
    /// Where nodes may be, whatever the memberships say.
    hints: BTreeMap<NodeId, String>,
}

impl AddressBook {
    /// This membership of the group is in force on this node.
    pub fn put_in_force(&mut self, group: GroupId, membership: Membership) {
        // A node that catches up passes through old memberships, whose members may be anywhere now.
        let version = membership.version;
        self.heard_of
            .retain(|of, heard| *of != group || heard.version > version);
        let Some(before) = self.in_force.insert(group, membership.clone()) else {
            return;
        };
        let address = |of: &Membership, node| of.member(node).map(|member| member.address.clone());
        // What the cluster says of a node that moves is newer than what was found out.
        self.hints
            .retain(|node, _| address(&before, *node) == address(&membership, *node));
        let has_left = |member: &Member| membership.member(member.node).is_none();
        for member in before.members.into_iter().filter(has_left) {
            self.note_departed(member.node, member.address);
        }
    }

    /// This node is no member any more, and asks from there.
    pub fn note_departed(&mut self, node: NodeId, address: String) {
        let departed = (node, address);
        if self.departed.contains(&departed) {
            return;
        }
        self.departed.retain(|(known, _)| *known != node);
        self.departed.push(departed);
        let surplus = self.departed.len().saturating_sub(MAX_DEPARTED);
        self.departed.drain(..surplus);
    }

    /// These nodes may be there, whatever the memberships say; replaces earlier hints.
    pub fn set_hints(&mut self, hints: BTreeMap<NodeId, String>) {
        self.hints = hints;
    }

    /// Forgets the hints of all other nodes.
    pub fn keep_hints(&mut self, of: impl Fn(NodeId) -> bool) {
        self.hints.retain(|node, _| of(*node));
    }

    /// Whether the node `own` takes part in a group with others, or in one whose members it does not know yet.
    pub fn needs_peers(&self, own: NodeId) -> bool {
        let has_others = |membership: &Membership| {
            let mut members = membership.members.iter();
            membership.version == 0 || members.any(|member| member.node != own)
        };
        self.in_force.values().any(has_others)
    }

    /// This membership of the group may come into force, or is in force elsewhere: it is the last one heard of.
    pub fn hear_of(&mut self, group: GroupId, membership: Membership) {
        self.heard_of.insert(group, membership);
    }

    /// The node does not take part in the group any more.
    pub fn forget(&mut self, group: GroupId) {
        self.heard_of.remove(&group);
        self.in_force.remove(&group);
    }

    /// The members of all groups, this node perhaps among them, and their addresses: whom to watch.
    pub fn members(&self) -> BTreeMap<NodeId, String> {
        let all = self.in_force.values().chain(self.heard_of.values());
        let members = all.flat_map(|membership| &membership.members);
        members
            .map(|member| (member.node, member.address.clone()))
            .collect()
    }

    /// The members of all groups, the last ones that have left, which may ask or have something to learn from, and whoever
    /// hints name: whom to reach.
    pub fn reached(&self) -> BTreeMap<NodeId, String> {
        let all = self.in_force.values().chain(self.heard_of.values());
        let left = all.flat_map(|membership| &membership.left);
        let left = left.map(|member| (member.node, member.address.clone()));
        let mut reached: BTreeMap<NodeId, String> = left.chain(self.departed.iter().cloned()).collect();
        reached.extend(self.members());
        reached.extend(self.hints.clone());
        reached
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    const GROUP: GroupId = GroupId(1);

    fn membership(version: u64, members: &[(u64, &str)]) -> Membership {
        let member = |(node, address): &(u64, &str)| Member::voter(NodeId(*node), *address);
        Membership {
            version,
            ..Membership::new(members.iter().map(member))
        }
    }

    fn book(in_force: Membership) -> AddressBook {
        let mut book = AddressBook::default();
        book.put_in_force(GROUP, in_force);
        book
    }

    fn address(book: &AddressBook, node: u64) -> Option<String> {
        book.reached().remove(&NodeId(node))
    }

    #[test]
    fn what_was_heard_of_holds_until_it_or_a_later_one_is_in_force() {
        let mut book = book(membership(1, &[(1, "old")]));
        book.hear_of(GROUP, membership(3, &[(1, "new")]));
        book.put_in_force(GROUP, membership(2, &[(1, "older")]));
        assert_eq!(address(&book, 1).as_deref(), Some("new"));
        book.put_in_force(GROUP, membership(3, &[(1, "other")]));
        assert_eq!(address(&book, 1).as_deref(), Some("other"));
    }

    #[test]
    fn a_member_that_has_left_is_reached_and_not_watched() {
        let mut book = book(membership(1, &[(1, "a"), (2, "b")]));
        book.put_in_force(GROUP, membership(2, &[(1, "a")]));
        assert_eq!(address(&book, 2).as_deref(), Some("b"));
        assert_eq!(book.members().len(), 1);
        book.put_in_force(GROUP, membership(3, &[(1, "a"), (2, "c")]));
        assert_eq!(address(&book, 2).as_deref(), Some("c"), "it came back elsewhere");
    }

    #[test]
    fn nodes_that_left_before_a_node_joined_are_reached_too() {
        let mut next = membership(2, &[(2, "b")]);
        next.left = membership(1, &[(1, "a")]).members;
        let book = book(next);
        assert_eq!(address(&book, 1).as_deref(), Some("a"));
        assert_eq!(book.members().len(), 1);
    }

    #[test]
    fn few_of_those_that_have_left_are_remembered() {
        let mut book = AddressBook::default();
        for node in 1..=100 {
            let address = format!("n{node}");
            book.put_in_force(GROUP, membership(node, &[(node, &address)]));
        }
        assert_eq!(book.reached().len(), MAX_DEPARTED + 1);
        assert_eq!(address(&book, 99).as_deref(), Some("n99"));
    }
}
