//! Clients: they propose and read at any node, lose patience, and try again elsewhere.

use bytes::Bytes;

use super::{
    cluster::{Cluster, Event},
    faults::{Fault, MS},
    history::Request,
    machine::Workload,
};
use crate::{
    core::{Input, Token},
    types::{Incarnation, NodeId},
};

/// A client with one operation at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct Client {
    waits_for: Option<Token>,
    /// Where to go next, if somebody gave a hint.
    hint: Option<usize>,
    /// The group whose script waits for the operation.
    scripted: Option<usize>,
}

impl<W: Workload> Cluster<'_, W> {
    pub(super) fn clients_begin(&mut self) {
        self.clients_active = true;
        for client in 0..self.clients.len() {
            self.clients[client] = Client::default();
            let delay = self.random.exponential(self.plan.think_mean);
            self.after(delay, Event::Client(client));
        }
    }

    pub(super) fn client_acts(&mut self, client: usize) {
        if !self.clients_active || self.clients[client].waits_for.is_some() {
            return;
        }
        if self.is_lulled(client) {
            return;
        }
        let hint = self.clients[client].hint.take();
        let node = hint.unwrap_or_else(|| self.random.index(self.nodes.len()));
        if self.nodes[node].life.is_none() {
            let delay = self.random.exponential(self.plan.think_mean);
            self.after(delay, Event::Client(client));
            return;
        }
        let group = self.random.index(self.groups.len());
        if self.plan.faults.has(Fault::Overload) && self.random.chance(50) {
            if self.random.chance(600) {
                let delay = self.random.exponential(20 * MS);
                self.after(delay, Event::Strike { group });
            }
            for _ in 0..self.random.between(10, 100) {
                let command = self.command();
                let group = self.random.index(self.groups.len());
                self.request(node, group, Request::Write(command));
            }
        }
        let request = if self.random.chance(self.plan.reads_permille) {
            Request::Read
        } else {
            Request::Write(self.client_command(client, group))
        };
        let scripted = (!self.scripts.is_empty() && request != Request::Read).then_some(group);
        if let Some(token) = self.request(node, group, request) {
            self.clients[client].waits_for = Some(token);
            self.clients[client].scripted = scripted;
            self.after(self.plan.patience, Event::Impatient(token));
        }
    }

    fn client_command(&mut self, client: usize, group: usize) -> Bytes {
        let place = client * self.groups.len() + group;
        let unique = self.last_token + 1;
        match self.scripts.get_mut(place) {
            Some(script) => script.command(&mut self.random, unique),
            None => self.command(),
        }
    }

    /// Tells the script that waits for this operation, if one does and was not told yet.
    pub(super) fn script_hears(&mut self, token: Token, reply: Option<&Bytes>) {
        let mut clients = self.clients.iter_mut().enumerate();
        let waiting = clients.find(|(_, client)| client.waits_for == Some(token));
        let Some((number, client)) = waiting else { return };
        let place = client
            .scripted
            .take()
            .map(|group| number * self.groups.len() + group);
        if let Some(script) = place.and_then(|place| self.scripts.get_mut(place)) {
            script.ended(&mut self.random, reply);
        }
    }

    /// Now and then all clients fall silent for a while, but for a request here and there.
    fn is_lulled(&mut self, client: usize) -> bool {
        if !self.plan.faults.has(Fault::Lull) {
            return false;
        }
        if self.now >= self.lull_until && self.random.chance(6) {
            let election = self.plan.config.election_timeout.as_micros() as u64;
            self.lull_until = self.now + self.random.between(1, 6) * election;
        }
        if self.now >= self.lull_until || self.random.chance(100) {
            return false;
        }
        let delay = self.random.below(2 * (self.lull_until - self.now))
            + self.random.exponential(self.plan.think_mean);
        self.after(delay, Event::Client(client));
        true
    }

    pub(super) fn command(&mut self) -> Bytes {
        if self.plan.faults.has(Fault::Oddities) {
            match self.random.below(60) {
                0 => return Bytes::new(),
                1 => return Bytes::from(std::vec![0; self.plan.config.max_command_bytes + 1]),
                _ => {}
            }
        }
        let unique = self.last_token + 1;
        self.workload.command(&mut self.random, unique)
    }

    /// A new operation at a node, if that lives.
    pub(super) fn request(&mut self, node: usize, group: usize, request: Request) -> Option<Token> {
        let life = self.nodes[node].life.as_ref()?.number;
        self.last_token += 1;
        let token = Token(self.last_token);
        let input = match &request {
            Request::Write(command) => Input::Propose {
                token,
                command: command.clone(),
            },
            Request::Read if self.plan.config.lease.is_some() && self.random.chance(600) => {
                Input::ReadByLease { token }
            }
            Request::Read => Input::Read { token },
        };
        let id = self.nodes[node].id;
        self.groups[group]
            .history
            .begin(token, id, Incarnation(life), request);
        self.input(node, group, input);
        if self.plan.faults.has(Fault::Oddities) && self.random.chance(30) {
            let delay = self.random.exponential(20 * MS);
            let input = Input::Cancel { token };
            self.after(delay, Event::Hint { node, group, input });
        }
        Some(token)
    }

    /// An operation has ended; whoever waits for it goes on.
    pub(super) fn client_hears(&mut self, token: Token, hint: Option<NodeId>) {
        self.script_hears(token, None);
        let waiting = |client: &Client| client.waits_for == Some(token);
        let Some(client) = self.clients.iter().position(waiting) else {
            return;
        };
        self.clients[client].waits_for = None;
        self.clients[client].hint = hint.and_then(|node| usize::try_from(node.0 - 1).ok());
        let delay = self.random.exponential(self.plan.think_mean);
        self.after(delay, Event::Client(client));
    }

    /// A client waits no longer for this operation, and says so to the node.
    pub(super) fn client_gives_up(&mut self, token: Token) {
        if self.is_open(token) && !self.random.chance(100) {
            let node = self.operation(token).map(|operation| operation.node);
            let node = node.and_then(|node| usize::try_from(node.0 - 1).ok());
            if let (Some(node), Some(group)) = (node, self.group_of(token)) {
                self.input(node, group, Input::Cancel { token });
            }
        }
        self.client_hears(token, None);
    }
}
