//! Handles of the machines.

use bytes::Bytes;

use super::{MachineId, RouterError, Routes};
use crate::node::{self, Group};

/// A handle of one machine in a group that runs a [`Router`](super::Router).
#[derive(Clone, Debug)]
pub struct RoutedGroup {
    group: Group,
    routes: Routes,
    machine: MachineId,
}

impl RoutedGroup {
    /// The handle of `machine` in `group`; an error if the router has no such machine.
    pub fn new(group: Group, routes: Routes, machine: MachineId) -> Result<Self, RouterError> {
        if !routes.ids.contains(&machine) {
            return Err(routes.unknown(machine));
        }
        Ok(Self {
            group,
            routes,
            machine,
        })
    }

    /// The handle of the whole group.
    pub const fn group(&self) -> &Group {
        &self.group
    }

    /// As [`Group::propose`], for this machine.
    pub fn propose(&self, command: &[u8]) -> impl Future<Output = Result<Bytes, RouterError>> + Send + use<> {
        let proposal = self.routes.command(self.machine, command);
        let proposal = proposal.map(|command| self.group.propose(command));
        let routes = self.routes.clone();
        async move { routes.reply(&proposal?.await?) }
    }

    /// As [`Group::query`], to this machine.
    pub fn query(
        &self,
        read: node::Read,
        query: &[u8],
    ) -> impl Future<Output = Result<Bytes, RouterError>> + Send + use<> {
        let read = self
            .routes
            .command(self.machine, query)
            .map(|query| self.group.query(read, query));
        let routes = self.routes.clone();
        async move { routes.reply(&read?.await?) }
    }
}
