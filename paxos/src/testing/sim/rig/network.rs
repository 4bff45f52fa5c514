//! The network and the clock of a [`Rig`], which a scenario moves.

use core::time::Duration;
use std::{format, string::String, vec::Vec};

use super::{Letter, Rig};
use crate::{
    core::{Input, Message, Phase, Replica},
    types::NodeId,
};

impl Rig {
    /// Sends a letter, unless the sender does not know where the receiver is.
    pub(super) fn post(&mut self, from: u64, to: u64, message: Message) {
        let known = self.seats[&from].book.reached();
        let known = known.get(&NodeId(to));
        let is_there = |address: &String| {
            let place = self.seats.get(&to).and_then(|seat| seat.address.as_ref());
            place.is_none_or(|place| place == address)
        };
        if known.is_some_and(is_there) {
            self.letters.push(Letter { from, to, message });
        } else {
            self.say(&format!("n{from}   does not know where n{to} is"));
        }
    }

    /// Two nodes cannot reach each other any more.
    pub fn cut(&mut self, a: u64, b: u64) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// What one node sends does not reach the other any more.
    pub fn cut_one_way(&mut self, from: u64, to: u64) {
        self.cuts.insert((from, to));
    }

    /// Cuts a node off from all others.
    pub fn isolate(&mut self, node: u64) {
        let others: Vec<u64> = self
            .seats
            .keys()
            .copied()
            .filter(|other| *other != node)
            .collect();
        for other in others {
            self.cut(node, other);
        }
    }

    /// Undoes all cuts.
    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    /// Takes letters off the network, in the order of sending.
    pub fn take(&mut self, which: impl Fn(&Letter) -> bool) -> Vec<Letter> {
        self.letters.extract_if(.., |letter| which(letter)).collect()
    }

    /// Delivers one letter now, whether it was ever sent or not.
    pub fn deliver(&mut self, letter: Letter) {
        let Letter { from, to, message } = letter;
        if !self.cuts.contains(&(from, to)) {
            let input = Input::Message {
                from: NodeId(from),
                storage: self.acceptor(from).1,
                message,
            };
            self.step(to, input);
        }
    }

    /// Delivers everything, and everything that comes of it, until the network is silent.
    pub fn settle(&mut self) {
        self.settle_where(|_| true);
    }

    /// Delivers these letters and those of the kind that come of them; others stay on the network.
    pub fn settle_where(&mut self, which: impl Fn(&Letter) -> bool) {
        for _ in 0..100_000 {
            let Some(place) = self.letters.iter().position(&which) else {
                return;
            };
            let letter = self.letters.remove(place);
            self.deliver(letter);
        }
        panic!("the network does not fall silent\n{}", self.transcript);
    }

    /// Lets time pass for all nodes, with everything delivered.
    pub fn pass(&mut self, millis: u64) {
        let nodes: Vec<u64> = self.seats.keys().copied().collect();
        self.pass_for(&nodes, millis);
    }

    /// Lets time pass, with everything delivered; only these nodes are ticked when they are due.
    pub fn pass_for(&mut self, nodes: &[u64], millis: u64) {
        self.pass_for_where(nodes, millis, |_| true);
    }

    /// As [`Self::pass_for`], but only these letters are delivered; others stay on the network.
    pub fn pass_for_where(&mut self, nodes: &[u64], millis: u64, which: impl Fn(&Letter) -> bool) {
        self.settle_where(&which);
        for _ in 0..millis {
            self.now = self.now.plus(Duration::from_millis(1));
            for node in nodes {
                let deadline = self.seats[node].replica.as_ref().and_then(Replica::deadline);
                if deadline.is_some_and(|deadline| deadline <= self.now) {
                    self.step(*node, Input::Tick);
                }
            }
            self.settle_where(&which);
        }
    }

    /// Lets time pass until this node leads; nobody else stands for election meanwhile.
    pub fn elect(&mut self, node: u64) {
        for _ in 0..10_000 {
            if self.status(node).phase == Phase::Leader {
                return self.settle();
            }
            self.now = self.now.plus(Duration::from_millis(1));
            self.step(node, Input::Tick);
            let stands =
                |message: &Message| matches!(message, Message::Canvass { .. } | Message::Prepare { .. });
            let rival = |letter: &Letter| letter.from != node && stands(&letter.message);
            self.settle_where(|letter| !rival(letter));
            self.take(rival);
        }
        panic!("n{node} cannot be elected\n{}", self.transcript);
    }
}
