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
///
/// Whatever is told to it, it says whether that has changed who is to be reached or watched, or where. A node may have
/// very many groups with the same few members: adding one of those costs no more than looking at its members.
#[derive(Clone, Debug, Default)]
pub struct AddressBook {
    in_force: BTreeMap<GroupId, Membership>,
    /// Later ones, which may come into force.
    heard_of: BTreeMap<GroupId, Membership>,
    /// Members that have left, or asked although they had, in this life of the node, the latest last, and where they were:
    /// they ask, and are told.
    departed: Vec<(NodeId, String)>,
    /// Where nodes may be, whatever the memberships say.
    hints: BTreeMap<NodeId, String>,
    /// What follows from all of this.
    members: BTreeMap<NodeId, String>,
    reached: BTreeMap<NodeId, String>,
}

impl AddressBook {
    /// This membership of the group is in force on this node.
    pub fn put_in_force(&mut self, group: GroupId, membership: Membership) -> bool {
        // A node that catches up passes through old memberships, whose members may be anywhere now.
        let is_over = |heard: &Membership| heard.version <= membership.version;
        if self.heard_of.get(&group).is_some_and(is_over) {
            self.heard_of.remove(&group);
        } else if !self.in_force.contains_key(&group) && self.has_all_of(&membership) {
            self.in_force.insert(group, membership);
            return false;
        }
        if let Some(before) = self.in_force.insert(group, membership.clone()) {
            self.replace(before, &membership);
        }
        self.refresh()
    }

    fn replace(&mut self, before: Membership, membership: &Membership) {
        let address = |of: &Membership, node| of.member(node).map(|member| member.address.clone());
        // What the cluster says of a node that moves is newer than what was found out.
        self.hints
            .retain(|node, _| address(&before, *node) == address(membership, *node));
        let has_left = |member: &Member| membership.member(member.node).is_none();
        for member in before.members.into_iter().filter(has_left) {
            self.depart(member.node, member.address);
        }
    }

    /// This node is no member any more, and asks from there.
    pub fn note_departed(&mut self, node: NodeId, address: String) -> bool {
        self.depart(node, address);
        self.refresh()
    }

    fn depart(&mut self, node: NodeId, address: String) {
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
    pub fn set_hints(&mut self, hints: BTreeMap<NodeId, String>) -> bool {
        self.hints = hints;
        self.refresh()
    }

    /// Forgets the hints of all other nodes.
    pub fn keep_hints(&mut self, of: impl Fn(NodeId) -> bool) -> bool {
        self.hints.retain(|node, _| of(*node));
        self.refresh()
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
    pub fn hear_of(&mut self, group: GroupId, membership: Membership) -> bool {
        self.heard_of.insert(group, membership);
        self.refresh()
    }

    /// The node does not take part in the group any more.
    pub fn forget(&mut self, group: GroupId) -> bool {
        self.heard_of.remove(&group);
        self.in_force.remove(&group);
        self.refresh()
    }

    /// The members of all groups, this node perhaps among them, and their addresses: whom to watch.
    pub const fn members(&self) -> &BTreeMap<NodeId, String> {
        &self.members
    }

    /// The members of all groups, the last ones that have left, which may ask or have something to learn from, and whoever
    /// hints name: whom to reach.
    pub const fn reached(&self) -> &BTreeMap<NodeId, String> {
        &self.reached
    }

    /// Whether everybody in it is a member already, or reached if he has left, and just there: then it changes nothing,
    /// whichever of the groups has the last word on where a node is.
    fn has_all_of(&self, membership: &Membership) -> bool {
        let is_in = |all: &BTreeMap<NodeId, String>, member: &Member| {
            all.get(&member.node)
                .is_some_and(|address| *address == member.address)
        };
        let mut members = membership.members.iter();
        let mut left = membership.left.iter();
        members.all(|member| is_in(&self.members, member)) && left.all(|member| is_in(&self.reached, member))
    }

    /// Draws the conclusions; says whether they are other ones now.
    fn refresh(&mut self) -> bool {
        let all = || self.in_force.values().chain(self.heard_of.values());
        let places = |member: &Member| (member.node, member.address.clone());
        let members: BTreeMap<NodeId, String> = all().flat_map(|of| &of.members).map(places).collect();
        let left = all().flat_map(|of| &of.left).map(places);
        let mut reached: BTreeMap<NodeId, String> = left.chain(self.departed.iter().cloned()).collect();
        reached.extend(members.clone());
        reached.extend(self.hints.clone());
        let is_changed = members != self.members || reached != self.reached;
        self.members = members;
        self.reached = reached;
        is_changed
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
        book.reached().get(&NodeId(node)).cloned()
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

    #[test]
    fn a_group_of_known_members_changes_nothing_and_another_address_does() {
        let mut book = book(membership(1, &[(1, "a"), (2, "b")]));
        assert!(!book.put_in_force(GroupId(2), membership(1, &[(1, "a"), (2, "b")])));
        assert!(!book.put_in_force(GroupId(2), membership(2, &[(1, "a"), (2, "b")])));
        assert!(book.put_in_force(GroupId(3), membership(1, &[(1, "a"), (2, "moved")])));
        assert!(!book.forget(GroupId(2)));
        assert!(book.forget(GroupId(3)));
        assert!(!book.set_hints(BTreeMap::from([(NodeId(1), "a".into())])));
        assert!(book.set_hints(BTreeMap::from([(NodeId(1), "found".into())])));
        assert!(book.keep_hints(|_| false));
    }

    #[test]
    fn whatever_happens_in_whatever_order_the_conclusions_are_those_of_all_that_holds() {
        let other = GroupId(2);
        let mut departing = membership(3, &[(1, "a")]);
        departing.left = membership(1, &[(2, "c")]).members;
        let acts: [&dyn Fn(&mut AddressBook) -> bool; 8] = [
            &|book| book.put_in_force(GROUP, membership(1, &[(1, "a"), (2, "b")])),
            &|book| book.put_in_force(GROUP, departing.clone()),
            &|book| book.put_in_force(other, membership(2, &[(1, "a"), (2, "c")])),
            &|book| book.put_in_force(other, departing.clone()),
            &|book| book.hear_of(GROUP, membership(2, &[(2, "c")])),
            &|book| book.set_hints(BTreeMap::from([(NodeId(2), "hint".into())])),
            &|book| book.note_departed(NodeId(2), "c".into()),
            &|book| book.forget(GROUP),
        ];
        for sequence in 0..acts.len().pow(4) {
            let mut book = AddressBook::default();
            for at in 0..4 {
                let before = (book.members.clone(), book.reached.clone());
                let said = acts[sequence / acts.len().pow(at) % acts.len()](&mut book);
                let after = (book.members.clone(), book.reached.clone());
                assert_eq!(said, before != after, "act {at} of {sequence}");
                assert!(!book.refresh(), "act {at} of {sequence} left something out");
            }
        }
    }
}
