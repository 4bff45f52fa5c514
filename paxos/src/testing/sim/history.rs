//! The clients' side of the oracles: what was asked, what was answered, and whether one order of all commands explains
//! every answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use bytes::Bytes;

use super::oracle::{Violation, ensure};
use crate::{
    core::{ChosenEntry, Command, Token, batch},
    types::{Entry, EntryKind, Incarnation, NodeId, ProposalId, Slot},
};

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Write(Bytes),
    Read,
}

/// How far an operation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Open,
    Answered,
    /// It certainly did not happen.
    Rejected,
    /// It may have happened, or may happen yet.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Operation {
    pub(super) node: NodeId,
    pub(super) life: Incarnation,
    pub(super) request: Request,
    pub(super) outcome: Outcome,
    /// The highest position that had been answered to anybody when it began.
    floor: u64,
}

/// All proposals with one payload.
#[derive(Debug, Default)]
struct Proposals {
    tokens: Vec<Token>,
    rejected: usize,
    chosen: usize,
}

/// What a decided slot means to a state machine, the same on every replica.
#[derive(Debug)]
struct Reference {
    commands: Vec<Command>,
    /// How many commands have been applied up to this slot, it included.
    position: u64,
    first_seen: Option<(ChosenEntry, u64, Option<u64>)>,
}

/// Checks I3, I8, I10 and that everything happens, and ends, exactly once.
#[derive(Debug, Default)]
pub(super) struct History {
    operations: BTreeMap<Token, Operation>,
    open: BTreeSet<Token>,
    proposals: BTreeMap<Bytes, Proposals>,
    slots: Vec<Reference>,
    /// Each node's latest life in the log, and its last command there.
    origins: BTreeMap<NodeId, (Incarnation, u64)>,
    last_of_origin: BTreeMap<(NodeId, Incarnation), (u64, Token)>,
    answered: u64,
    duplicates: u64,
}

type Check = Result<(), Violation>;

impl History {
    pub(super) fn begin(&mut self, token: Token, node: NodeId, life: Incarnation, request: Request) {
        if let Request::Write(command) = &request {
            self.proposals
                .entry(command.clone())
                .or_default()
                .tokens
                .push(token);
        }
        let operation = Operation {
            node,
            life,
            request,
            outcome: Outcome::Open,
            floor: self.answered,
        };
        self.operations.insert(token, operation);
        self.open.insert(token);
    }

    pub(super) fn operation(&self, token: Token) -> Option<&Operation> {
        self.operations.get(&token)
    }

    pub(super) fn is_open(&self, token: Token) -> bool {
        self.open.contains(&token)
    }

    /// An operation that has not ended.
    pub(super) fn any_open(&self) -> Option<Token> {
        self.open.first().copied()
    }

    /// The operations at a node that have not ended.
    pub(super) fn open_at(&self, node: NodeId) -> Vec<Token> {
        let at = |token: &&Token| {
            self.operation(**token)
                .is_some_and(|operation| operation.node == node)
        };
        self.open.iter().filter(at).copied().collect()
    }

    /// How many copies of commands were skipped so far.
    pub(super) const fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Up to which slot [`Self::decided`] was called.
    pub(super) const fn upto(&self) -> Slot {
        Slot(self.slots.len() as u64)
    }

    /// The highest position that was answered so far.
    pub(super) const fn answered(&self) -> u64 {
        self.answered
    }

    fn end(&mut self, token: Token, node: NodeId, outcome: Outcome) -> Result<&Operation, Violation> {
        let Some(operation) = self.operations.get_mut(&token) else {
            return Err(Violation::new(
                "exactly once",
                std::format!("{node} ends {token:?}, which nobody began"),
            ));
        };
        ensure!(
            operation.outcome == Outcome::Open && operation.node == node,
            "exactly once",
            "{node} ends {token:?} as {outcome:?}; it is {operation:?}"
        );
        operation.outcome = outcome;
        self.open.remove(&token);
        Ok(operation)
    }

    /// Everything that was open on this node is unknown now: it crashed.
    pub(super) fn crashed(&mut self, node: NodeId) {
        let operations = &mut self.operations;
        self.open.retain(|token| match operations.get_mut(token) {
            Some(operation) if operation.node == node => {
                operation.outcome = Outcome::Unknown;
                false
            }
            _ => true,
        });
    }

    pub(super) fn unknown(&mut self, node: NodeId, token: Token) -> Check {
        let operation = self.end(token, node, Outcome::Unknown)?;
        ensure!(
            operation.request != Request::Read,
            "exactly once",
            "the read {token:?} ends unknown"
        );
        Ok(())
    }

    pub(super) fn rejected(&mut self, node: NodeId, token: Token) -> Check {
        let Request::Write(command) = self.end(token, node, Outcome::Rejected)?.request.clone() else {
            return Ok(());
        };
        let proposals = self.proposals.entry(command).or_default();
        proposals.rejected += 1;
        at_most_once(proposals, "rejected")
    }

    /// The next slot is decided: works out what every machine must apply there.
    pub(super) fn decided(&mut self, entry: &Entry) -> Check {
        let slot = self.upto().next();
        let commands = match entry.kind {
            EntryKind::Commands => {
                let decoded = batch::decode(&entry.payload);
                ensure!(decoded.is_ok(), "I3", "slot {slot} holds a malformed batch");
                decoded.map(|batch| batch.commands).unwrap_or_default()
            }
            EntryKind::Noop | EntryKind::Membership => Vec::new(),
        };
        let mut position = self.slots.last().map_or(0, |last| last.position);
        let mut fresh = Vec::new();
        for command in commands {
            if self.is_next(command.id) {
                position += 1;
                self.new_command(slot, position, &command)?;
                fresh.push(command);
            } else {
                self.duplicates += 1;
            }
        }
        self.slots.push(Reference {
            commands: fresh,
            position,
            first_seen: None,
        });
        Ok(())
    }

    /// A command takes effect if it is the next one of its origin's latest life; every other copy is skipped.
    fn is_next(&mut self, id: ProposalId) -> bool {
        let (life, last) = self.origins.get(&id.node).copied().unwrap_or_default();
        let expected = if id.incarnation > life { 1 } else { last + 1 };
        let next = id.incarnation >= life && id.sequence == expected;
        if next {
            self.origins.insert(id.node, (id.incarnation, id.sequence));
        }
        next
    }

    fn new_command(&mut self, slot: Slot, position: u64, command: &Command) -> Check {
        let id = command.id;
        let Some(proposals) = self.proposals.get_mut(&command.payload) else {
            return Err(Violation::new(
                "I3",
                std::format!("slot {slot} holds a command that nobody proposed"),
            ));
        };
        proposals.chosen += 1;
        at_most_once(proposals, "chosen")?;
        let operations = &self.operations;
        let of_origin = |token: &&Token| {
            operations
                .get(token)
                .is_some_and(|operation| operation.node == id.node && operation.life == id.incarnation)
        };
        let Some(token) = proposals.tokens.iter().find(of_origin).copied() else {
            return Err(Violation::new(
                "I3",
                std::format!("slot {slot} holds {id:?}, proposed elsewhere"),
            ));
        };
        if proposals.tokens.len() > 1 {
            return Ok(());
        }
        let floor = operations.get(&token).map_or(0, |operation| operation.floor);
        ensure!(
            position > floor,
            "I10",
            "{token:?} is command {position}, but began after {floor} was answered"
        );
        let origin = (id.node, id.incarnation);
        let last = self.last_of_origin.insert(origin, (id.sequence, token));
        ensure!(
            last.is_none_or(|(sequence, before)| sequence < id.sequence && before < token),
            "order",
            "{token:?} ({id:?}) is applied after {last:?} of the same node"
        );
        Ok(())
    }

    /// What is to be applied at a slot that is decided.
    pub(super) fn commands(&self, slot: Slot) -> &[Command] {
        self.slot(slot).map_or(&[], |reference| &reference.commands)
    }

    fn slot(&self, slot: Slot) -> Option<&Reference> {
        let index = usize::try_from(slot.0.checked_sub(1)?).ok()?;
        self.slots.get(index)
    }

    /// How many commands have been applied up to this slot, it included.
    pub(super) fn position(&self, slot: Slot) -> u64 {
        self.slot(slot).map_or(0, |reference| reference.position)
    }

    /// A replica applied a slot; its machine gave replies with this hash and now has this digest (I4, I8).
    pub(super) fn applied(
        &mut self,
        node: NodeId,
        chosen: &ChosenEntry,
        replies: u64,
        digest: Option<u64>,
    ) -> Check {
        let slot = chosen.slot;
        let index = slot
            .0
            .checked_sub(1)
            .and_then(|index| usize::try_from(index).ok());
        let Some(reference) = index.and_then(|index| self.slots.get_mut(index)) else {
            return Err(Violation::new(
                "I4",
                std::format!("{node} applies slot {slot}, which is not chosen"),
            ));
        };
        let same = chosen
            .commands
            .iter()
            .map(|command| &command.command)
            .eq(&reference.commands);
        ensure!(
            same,
            "I4",
            "{node} applies something else at slot {slot} than what was chosen"
        );
        let mut seen = chosen.clone();
        for command in &mut seen.commands {
            command.token = None;
        }
        let (first, first_replies, first_digest) = reference
            .first_seen
            .get_or_insert_with(|| (seen.clone(), replies, digest));
        ensure!(
            *first == seen,
            "I8",
            "{node} applies {seen:?}, another node {first:?}"
        );
        ensure!(
            *first_replies == replies,
            "I8",
            "{node} replies differently at slot {slot}"
        );
        ensure!(
            *first_digest == digest,
            "I8",
            "{node} has another state after slot {slot}"
        );
        Ok(())
    }

    /// A replica goes on from a snapshot with this digest (I4, I8).
    pub(super) fn restored(&self, node: NodeId, upto: Slot, digest: Option<u64>) -> Check {
        let Some(reference) = self.slot(upto) else {
            return Err(Violation::new(
                "I4",
                std::format!("{node} goes on from a snapshot of slot {upto}, which is not chosen"),
            ));
        };
        let same = reference
            .first_seen
            .as_ref()
            .is_none_or(|(_, _, first)| *first == digest);
        ensure!(
            same,
            "I8",
            "{node} has another state from its snapshot of slot {upto} than those who applied it"
        );
        Ok(())
    }

    /// A command's reply reaches its client. `offset` counts the commands of the slot before it.
    pub(super) fn write_answered(
        &mut self,
        node: NodeId,
        life: Incarnation,
        token: Token,
        slot: Slot,
        offset: usize,
    ) -> Check {
        let command = self.commands(slot)[offset].clone();
        let before = slot.previous();
        let position = self.position(before) + offset as u64 + 1;
        let operation = self.end(token, node, Outcome::Answered)?;
        ensure!(
            operation.request == Request::Write(command.payload),
            "exactly once",
            "{token:?} gets the reply of another command"
        );
        ensure!(
            command.id.node == node && command.id.incarnation == life && operation.life == life,
            "exactly once",
            "{token:?} gets the reply of a command of another life"
        );
        self.answered = self.answered.max(position);
        Ok(())
    }

    /// A read is answered by a node that has applied everything up to `applied`.
    pub(super) fn read_answered(&mut self, node: NodeId, token: Token, applied: Slot) -> Check {
        let position = self.position(applied);
        let operation = self.end(token, node, Outcome::Answered)?;
        ensure!(
            position >= operation.floor,
            "I10",
            "{node} answers {token:?} from position {position}, but it began after {} was answered",
            operation.floor
        );
        self.answered = self.answered.max(position);
        Ok(())
    }
}

/// Every proposal is chosen once at the most, and never after it was rejected.
fn at_most_once(proposals: &Proposals, what: &str) -> Check {
    ensure!(
        proposals.chosen + proposals.rejected <= proposals.tokens.len(),
        "exactly once",
        "a command is {what}, but of {} proposals {} were rejected and {} chosen: {:?}",
        proposals.tokens.len(),
        proposals.rejected,
        proposals.chosen,
        proposals.tokens
    );
    Ok(())
}

/// A hash over all replies of a slot.
pub(super) fn reply_hash(replies: &[Bytes]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    for byte in replies.iter().flat_map(|reply| reply.iter().chain(&[0xff])) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}
