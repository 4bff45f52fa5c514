//! One readable line for everything that happens.

use core::fmt::Write;
use std::{format, string::String, vec::Vec};

use crate::{
    core::{Input, Message, Output},
    types::{Accepted, ChangeRejection, Entry, EntryKind, Membership, NodeId, Role, Slot, WriteOp},
};

fn span(first: Slot, count: usize) -> String {
    match count {
        0 => format!("{first} (none)"),
        1 => format!("{first}"),
        _ => format!("{first}..{}", first.plus(count as u64 - 1)),
    }
}

fn slots(entries: &[(Slot, Accepted)]) -> String {
    let list: Vec<String> = entries
        .iter()
        .map(|(slot, accepted)| format!("{slot}@{}", accepted.ballot))
        .collect();
    format!("[{}]", list.join(" "))
}

fn kind(entry: &Entry) -> String {
    match entry.kind {
        EntryKind::Noop => String::from("no-op"),
        EntryKind::Membership => String::from("membership"),
        EntryKind::Commands => match crate::core::batch::decode(&entry.payload) {
            Ok(batch) => format!("{} commands", batch.commands.len()),
            Err(_) => String::from("malformed"),
        },
    }
}

/// A message in one line.
pub fn message(message: &Message) -> String {
    let name = message.name();
    match message {
        Message::Canvass { ballot, chosen } => format!("{name} {ballot} chosen {chosen}"),
        Message::CanvassReply {
            ballot,
            granted,
            highest,
            chosen,
        } => {
            let answer = if *granted { "yes" } else { "no" };
            format!("{name} {ballot} {answer}, highest {highest} chosen {chosen}")
        }
        Message::Prepare {
            ballot,
            from,
            released,
        } => {
            let released = released.map_or(String::new(), |ballot| format!(", released by {ballot}"));
            format!("{name} {ballot} from slot {from}{released}")
        }
        Message::Promise {
            ballot,
            chosen,
            reported,
        } => {
            let first = reported.first;
            let last = if reported.last == Slot::MAX {
                String::from("end")
            } else {
                format!("{}", reported.last)
            };
            let damaged = if reported.damaged.is_empty() {
                String::new()
            } else {
                format!(" damaged {}", numbers(&reported.damaged))
            };
            let entries = slots(&reported.entries);
            format!("{name} {ballot} slots {first}..{last} {entries}{damaged} chosen {chosen}")
        }
        Message::Refuse { ballot, promised } => format!("{name} {ballot}, promised {promised}"),
        Message::Accept {
            ballot,
            start,
            first,
            entries,
            chosen,
        } => format!(
            "{name} {ballot} slots {} (start {start}) chosen {chosen}",
            span(*first, entries.len())
        ),
        Message::Accepted { ballot, upto, chosen } => format!("{name} {ballot} up to {upto} chosen {chosen}"),
        Message::Heartbeat {
            ballot,
            start,
            chosen,
            round,
            lease: _,
            checkpoint: _,
        }
        | Message::Rest {
            ballot,
            start,
            chosen,
            round,
            checkpoint: _,
        } => format!("{name} {ballot} round {round} (start {start}) chosen {chosen}"),
        Message::RolledBack { ballot, lost, .. } => format!("{name} {ballot}, it held slot {}", lost.slot),
        Message::Diverged { ballot, right } => format!("{name} {ballot} at slot {}", right.slot),
        Message::HeartbeatReply { ballot, pulse } => {
            let ready = if pulse.ready { "" } else { ", not ready" };
            let leased = if pulse.leased { ", leased" } else { "" };
            let held = format!("received {} accepted {}", pulse.received, pulse.accepted);
            let (round, chosen) = (pulse.round, pulse.chosen);
            format!("{name} {ballot} round {round} {held} chosen {chosen}{ready}{leased}")
        }
        Message::Chosen {
            ballot,
            start,
            chosen,
        }
        | Message::TakeOver {
            ballot,
            start,
            chosen,
            ..
        } => format!("{name} {ballot} (start {start}) chosen {chosen}"),
        Message::Learn { from, upto } => format!("{name} {from}..{upto}"),
        Message::Learned {
            from,
            entries,
            chosen,
        } => format!("{name} {} chosen {chosen}", span(*from, entries.len())),
        Message::Forward {
            ballot: _,
            incarnation,
            first,
            commands,
        } => format!(
            "{name} life {} commands {first}+{}",
            incarnation.0,
            commands.len()
        ),
        Message::Trimmed { snapshot } => format!("{name}, snapshot {snapshot}"),
        Message::FetchSnapshot { upto, offset } => format!("{name} {upto} from {offset}"),
        Message::SnapshotChunk {
            upto,
            total,
            offset,
            data,
        } => format!("{name} {}", piece(*upto, *total, *offset, data.len())),
        Message::Forwarded {
            ballot: _,
            incarnation,
            expected,
        } => format!("{name} life {} expects {expected}", incarnation.0),
        Message::ReadIndex { token } => format!("{name} #{token}"),
        Message::ReadIndexReply { token, slot } => match slot {
            Some(slot) => format!("{name} #{token} slot {slot}"),
            None => format!("{name} #{token} not leader"),
        },
        Message::TransferLeadership { request, to } => format!("{name} #{request} to n{to}"),
        Message::TransferRefused { request, reason } => format!("{name} #{request}: {reason}"),
        Message::LeadsOn { request } => format!("{name} #{request}"),
        Message::Drain { ballot, number } | Message::Drained { ballot, number } => {
            format!("{name} {ballot} #{number}")
        }
        Message::Rests { ballot, round } => format!("{name} {ballot} round {round}"),
        Message::ChangeMembership {
            token,
            expected,
            changes,
            force,
        } => format!("{name} #{token} from v{expected}{} {changes:?}", forced(*force)),
        Message::MembershipChanged { token, result } => format!("{name} #{token} {}", changed(result)),
        Message::NotAdmitted { at, membership } | Message::Members { at, membership } => {
            format!("{name} slot {at}: {}", members(membership))
        }
    }
}

/// An input in one line.
pub fn input(input: &Input) -> String {
    match input {
        Input::Tick => String::from("tick"),
        Input::Message {
            from, message: said, ..
        } => format!("<- n{from} {}", message(said)),
        Input::Persisted(id) => format!("persisted #{}", id.0),
        Input::Propose { token, command } => format!("propose t{} ({} bytes)", token.0, command.len()),
        Input::Read { token } => format!("read t{}", token.0),
        Input::ReadByLease { token } => format!("read t{} by lease", token.0),
        Input::TransferLeadership { token, to: Some(to) } => format!("transfer t{} to n{to}", token.0),
        Input::TransferLeadership { token, to: None } => format!("retire t{}", token.0),
        Input::ChangeMembership {
            token,
            expected,
            changes,
            force,
        } => format!(
            "change t{} from v{expected}{} {changes:?}",
            token.0,
            forced(*force)
        ),
        Input::Cancel { token } => format!("cancel t{}", token.0),
        Input::Loaded { from, entries } => format!("loaded from {from} {}", slots(entries)),
        Input::TakeSnapshot => String::from("take a snapshot"),
        Input::SnapshotTaken { upto } => format!("snapshot {upto} is durable"),
        Input::SnapshotFailed { upto } => format!("snapshot {upto} failed"),
        Input::HoldApply(held) => format!("hold apply: {held}"),
        Input::PauseTrimming(paused) => format!("pause trimming: {paused}"),
        Input::SnapshotsOff => "no snapshots any more".into(),
        Input::ChunkLoaded {
            to,
            upto,
            total,
            offset,
            data,
        } => format!("loaded for n{to} {}", piece(*upto, *total, *offset, data.len())),
        Input::ChunkStored { upto, next_offset } => format!("stored of {upto} up to byte {next_offset}"),
        Input::SnapshotReceived(header) => format!("snapshot {} is received", header.upto),
        Input::Damaged { slots } => format!("damaged {}", numbers(slots)),
        Input::Connected(peer) => format!("connected to n{peer}"),
        Input::Disconnected(peer) => format!("disconnected from n{peer}"),
        Input::SendRefused(peer) => format!("send refused to n{peer}"),
        Input::PeerAlive(peer) => format!("n{peer} is alive"),
        Input::PeerSilent(peer) => format!("n{peer} is silent"),
    }
}

fn numbers(slots: &[Slot]) -> String {
    let numbers = slots.iter().map(|slot| format!("{slot}"));
    numbers.collect::<Vec<_>>().join(",")
}

fn piece(upto: Slot, total: u64, offset: u64, bytes: usize) -> String {
    format!("{upto} bytes {offset}+{bytes} of {total}")
}

fn op(op: &WriteOp) -> String {
    match op {
        WriteOp::HardState { state, .. } => format!("promise {} chosen {}", state.promised, state.chosen),
        WriteOp::Accept {
            slot, ballot, entry, ..
        } => format!("slot {slot}@{ballot} {}", kind(entry)),
        WriteOp::Trim { upto, .. } => format!("trim {upto}"),
        WriteOp::RemoveGroup { .. } => String::from("remove group"),
    }
}

/// An output in one line.
pub fn output(output: &Output) -> String {
    match output {
        Output::Send { to, message: said } => {
            let to: Vec<String> = to.iter().map(|NodeId(node)| format!("n{node}")).collect();
            format!("-> {} {}", to.join(","), message(said))
        }
        Output::Persist { id, ops, sync } => {
            let ops: Vec<String> = ops.iter().map(op).collect();
            let how = if *sync { "" } else { " (lazily)" };
            format!("persist #{}{how}: {}", id.0, ops.join("; "))
        }
        Output::Apply(chosen) => {
            let tokens: Vec<String> = chosen
                .commands
                .iter()
                .filter_map(|command| command.token)
                .map(|token| format!(" t{}", token.0))
                .collect();
            format!(
                "apply slot {}: {} commands{}",
                chosen.slot,
                chosen.commands.len(),
                tokens.concat()
            )
        }
        Output::Load { from, upto, .. } => format!("load {from}..{upto}"),
        Output::TakeSnapshot(header) => format!("take snapshot {}", header.upto),
        Output::InstallSnapshot { upto } => format!("install snapshot {upto}"),
        Output::LoadChunk {
            to,
            upto,
            offset,
            max_bytes,
        } => format!("load for n{to} {upto} bytes {offset}+{max_bytes}"),
        Output::StoreChunk {
            upto,
            total,
            offset,
            data,
        } => format!("store {}", piece(*upto, *total, *offset, data.len())),
        Output::ReadReady { token, slot, lease } => {
            let lease = if lease.is_some() { " by lease" } else { "" };
            format!("read t{} ready at slot {slot}{lease}", token.0)
        }
        Output::Rejected { token, reason } => format!("rejected t{}: {reason:?}", token.0),
        Output::Unknown { token } => format!("unknown t{}", token.0),
        Output::Leader(Some(ballot)) => format!("leader is n{} ({ballot})", ballot.node),
        Output::Membership { at, membership } => format!("slot {at}: {}", members(membership)),
        Output::Departed { node, address } => format!("departed n{node} at {address:?}"),
        Output::Peers(membership) => format!("peers {}", members(membership)),
        Output::MembershipChanged { token, result } => format!("change t{} {}", token.0, changed(result)),
        Output::Leader(None) => String::from("leader is unknown"),
        Output::Transferred { token, result } => match result {
            Ok(leader) => format!("transferred t{} to n{leader}", token.0),
            Err(reason) => format!("transfer t{} failed: {reason}", token.0),
        },
        Output::Alarm(alarm) => format!("ALARM {alarm:?}"),
    }
}

const fn forced(force: bool) -> &'static str {
    if force { " by force" } else { "" }
}

fn changed(result: &Result<Membership, ChangeRejection>) -> String {
    match result {
        Ok(membership) => format!("done: {}", members(membership)),
        Err(refusal) => format!("refused: {refusal}"),
    }
}

/// Version and members: learners in brackets, disks after a slash.
fn members(membership: &Membership) -> String {
    let mut text = format!("members v{}:", membership.version);
    for member in &membership.members {
        let disk = member
            .storage
            .map_or_else(String::new, |storage| format!("/{:x}", storage.0));
        let _ = match member.role {
            Role::Voter => write!(text, " n{}{disk}", member.node),
            Role::Learner => write!(text, " (n{}{disk})", member.node),
        };
    }
    text
}
