//! What follows the prefix of a frame: the message's fields, and its entries or commands.

use alloc::{borrow::ToOwned, format, string::ToString, vec::Vec};
use core::time::Duration;

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{FrameWriter, INLINE_BYTES, WireError};
use crate::{
    core::{Checkpoint, Holding, Life, Message, Pulse, Reported, TransferRejection},
    types::{
        Accepted as AcceptedEntry, Ballot, Change, ChangeRejection, Entry, EntryKind, Incarnation,
        Membership, NodeId, Slot,
    },
};

/// A ballot in a header: `[round, node]`.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Pair(u64, NodeId);

impl From<Ballot> for Pair {
    fn from(ballot: Ballot) -> Self {
        Self(ballot.round, ballot.node)
    }
}

impl From<Pair> for Ballot {
    fn from(pair: Pair) -> Self {
        Self {
            round: pair.0,
            node: pair.1,
        }
    }
}

/// A ballot that may be missing.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(transparent)]
struct MaybePair(Option<Pair>);

impl From<Option<Ballot>> for MaybePair {
    fn from(ballot: Option<Ballot>) -> Self {
        Self(ballot.map(Pair::from))
    }
}

impl From<MaybePair> for Option<Ballot> {
    fn from(pair: MaybePair) -> Self {
        pair.0.map(Ballot::from)
    }
}

/// A checkpoint: `[slot, hash]`.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct SlotAndHash(Slot, u64);

impl From<Checkpoint> for SlotAndHash {
    fn from(Checkpoint { slot, hash }: Checkpoint) -> Self {
        Self(slot, hash)
    }
}

impl From<SlotAndHash> for Checkpoint {
    fn from(SlotAndHash(slot, hash): SlotAndHash) -> Self {
        Self { slot, hash }
    }
}

/// What a disk holds: `[slot, round, node]`.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Held(Slot, u64, NodeId);

impl From<Holding> for Held {
    fn from(Holding { slot, promised }: Holding) -> Self {
        Self(slot, promised.round, promised.node)
    }
}

impl From<Held> for Holding {
    fn from(Held(slot, round, node): Held) -> Self {
        let promised = Ballot { round, node };
        Self { slot, promised }
    }
}

/// A life: `[incarnation, what it began with, what it holds]`.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct LifeAndHeld(Incarnation, Held, Held);

impl From<Life> for LifeAndHeld {
    fn from(life: Life) -> Self {
        Self(life.incarnation, life.began.into(), life.holds.into())
    }
}

impl From<LifeAndHeld> for Life {
    fn from(LifeAndHeld(incarnation, began, holds): LifeAndHeld) -> Self {
        Self {
            incarnation,
            began: began.into(),
            holds: holds.into(),
        }
    }
}

/// What a replica says of itself: a map by name, like the header that it is in.
#[derive(Serialize, Deserialize)]
struct PulseFields {
    round: u64,
    received: Slot,
    accepted: Slot,
    chosen: Slot,
    ready: bool,
    leased: bool,
    checkpoint: SlotAndHash,
    life: LifeAndHeld,
}

impl From<Pulse> for PulseFields {
    fn from(pulse: Pulse) -> Self {
        Self {
            round: pulse.round,
            received: pulse.received,
            accepted: pulse.accepted,
            chosen: pulse.chosen,
            ready: pulse.ready,
            leased: pulse.leased,
            checkpoint: pulse.checkpoint.into(),
            life: pulse.life.into(),
        }
    }
}

impl From<PulseFields> for Pulse {
    fn from(fields: PulseFields) -> Self {
        Self {
            round: fields.round,
            received: fields.received,
            accepted: fields.accepted,
            chosen: fields.chosen,
            ready: fields.ready,
            leased: fields.leased,
            checkpoint: fields.checkpoint.into(),
            life: fields.life.into(),
        }
    }
}

/// A time in nanoseconds; what does not fit lasts for centuries anyway.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(transparent)]
struct Nanos(u64);

impl From<Duration> for Nanos {
    fn from(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl From<Nanos> for Duration {
    fn from(nanos: Nanos) -> Self {
        Self::from_nanos(nanos.0)
    }
}

/// The numbers of the kinds. A number is never given to another message.
mod kind {
    pub(super) const PROMISE: u8 = 4;
    pub(super) const ACCEPT: u8 = 6;
    pub(super) const LEARNED: u8 = 11;
    pub(super) const FORWARD: u8 = 12;
    pub(super) const SNAPSHOT_CHUNK: u8 = 19;
}

/// Messages without entries: their fields are the whole header, and nothing follows it.
macro_rules! plain_messages {
    ($($kind:literal $name:ident { $($field:ident: $wire:ty),* })*) => {
        $(#[derive(Serialize, Deserialize)]
        #[allow(clippy::struct_field_names, reason = "the names are those of the message")]
        struct $name { $($field: $wire),* })*

        /// Encodes a message without entries; `None` for the others.
        fn encode_plain(message: &Message, to: &mut FrameWriter) -> Option<u8> {
            match message {
                $(Message::$name { $($field),* } => {
                    to.header(&$name { $($field: $field.to_owned().into()),* });
                    Some($kind)
                })*
                Message::Promise { .. }
                | Message::Accept { .. }
                | Message::Learned { .. }
                | Message::Forward { .. }
                | Message::SnapshotChunk { .. } => None,
            }
        }

        /// Decodes a message without entries; `None` for the other kinds.
        fn decode_plain(kind: u8, header: &[u8], tail: &Bytes) -> Option<Result<Message, WireError>> {
            match kind {
                $($kind => Some(fields(stringify!($name), header).and_then(|$name { $($field),* }| {
                    nothing_left(stringify!($name), tail)?;
                    Ok(Message::$name { $($field: $field.into()),* })
                })),)*
                _ => None,
            }
        }
    };
}

plain_messages! {
    1 Canvass { ballot: Pair, chosen: Slot }
    2 CanvassReply { ballot: Pair, granted: bool, highest: Pair, chosen: Slot }
    3 Prepare { ballot: Pair, from: Slot, released: MaybePair }
    5 Refuse { ballot: Pair, promised: Pair }
    7 Accepted { ballot: Pair, upto: Slot, chosen: Slot }
    8 Heartbeat { ballot: Pair, start: Slot, chosen: Slot, round: u64, lease: Nanos, checkpoint: SlotAndHash }
    9 HeartbeatReply { ballot: Pair, pulse: PulseFields }
    10 Learn { from: Slot, upto: Slot }
    13 Forwarded { ballot: Pair, incarnation: Incarnation, expected: u64 }
    14 ReadIndex { token: u64 }
    15 ReadIndexReply { token: u64, slot: Option<Slot> }
    16 Chosen { ballot: Pair, start: Slot, chosen: Slot }
    17 Trimmed { snapshot: Slot }
    18 FetchSnapshot { upto: Slot, offset: u64 }
    30 TakeOver { ballot: Pair, start: Slot, chosen: Slot, by_hand: bool }
    31 TransferLeadership { request: u64, to: NodeId }
    32 TransferRefused { request: u64, reason: TransferRejection }
    33 LeadsOn { request: u64 }
    40 Rest { ballot: Pair, start: Slot, chosen: Slot, round: u64, checkpoint: SlotAndHash }
    41 Rests { ballot: Pair, round: u64 }
    50 ChangeMembership { token: u64, expected: u64, changes: Vec<Change>, force: bool }
    51 MembershipChanged { token: u64, result: Result<Membership, ChangeRejection> }
    52 NotAdmitted { at: Slot, membership: Membership }
    53 Members { at: Slot, membership: Membership }
    54 Drain { ballot: Pair, number: u64 }
    55 Drained { ballot: Pair, number: u64 }
    60 Diverged { ballot: Pair, right: SlotAndHash }
    61 RolledBack { ballot: Pair, incarnation: Incarnation, lost: Held }
}

/// What a message with entries or commands says beside them. `count` is the number of rows in the table.
#[derive(Serialize, Deserialize)]
struct Promise {
    ballot: Pair,
    chosen: Slot,
    first: Slot,
    last: Slot,
    count: u32,
    damaged: Vec<Slot>,
}

#[derive(Serialize, Deserialize)]
struct Accept {
    ballot: Pair,
    start: Slot,
    first: Slot,
    chosen: Slot,
    count: u32,
}

#[derive(Serialize, Deserialize)]
struct Learned {
    from: Slot,
    chosen: Slot,
    count: u32,
}

#[derive(Serialize, Deserialize)]
struct Forward {
    ballot: Pair,
    incarnation: Incarnation,
    first: u64,
    count: u32,
}

/// Its one value, the data, follows without a table.
#[derive(Serialize, Deserialize)]
struct SnapshotChunk {
    upto: Slot,
    total: u64,
    offset: u64,
}

/// The rows of the tables, in bytes: `[slot u64] [round u64, node u64] [kind u8] length u32`.
const COMMAND_ROW: usize = 4;
const ENTRY_ROW: usize = 1 + COMMAND_ROW;
const ACCEPTED_ROW: usize = 8 + 8 + ENTRY_ROW;
const SLOT_ROW: usize = 8 + ACCEPTED_ROW;

/// About how many bytes of a frame will lie side by side in one buffer.
pub(super) fn size_hint(message: &Message) -> usize {
    const HEADER: usize = 96;
    let inline = |value: &Bytes| {
        if value.len() <= INLINE_BYTES {
            value.len()
        } else {
            0
        }
    };
    HEADER
        + match message {
            Message::Promise {
                reported: Reported { entries, damaged, .. },
                ..
            } => {
                let values = entries.iter().map(|(_, accepted)| &accepted.entry.payload);
                damaged.len() * 9 + entries.len() * SLOT_ROW + values.map(inline).sum::<usize>()
            }
            Message::Learned { entries, .. } => {
                let values = entries.iter().map(|accepted| &accepted.entry.payload);
                entries.len() * ACCEPTED_ROW + values.map(inline).sum::<usize>()
            }
            Message::Accept { entries, .. } => {
                let values = entries.iter().map(|entry| &entry.payload);
                entries.len() * ENTRY_ROW + values.map(inline).sum::<usize>()
            }
            Message::Forward { commands, .. } => {
                commands.len() * COMMAND_ROW + commands.iter().map(inline).sum::<usize>()
            }
            Message::SnapshotChunk { data, .. } => inline(data),
            _ => 0,
        }
}

/// Writes header, table and values, and returns the number of the kind.
pub(super) fn encode(message: &Message, to: &mut FrameWriter) -> u8 {
    match message {
        Message::Promise {
            ballot,
            chosen,
            reported,
        } => {
            to.header(&Promise {
                ballot: (*ballot).into(),
                chosen: *chosen,
                first: reported.first,
                last: reported.last,
                count: reported.entries.len() as u32,
                damaged: reported.damaged.clone(),
            });
            for (slot, accepted) in &reported.entries {
                to.buffer.extend_from_slice(&slot.0.to_le_bytes());
                put_accepted(accepted, to);
            }
            for (_, accepted) in &reported.entries {
                to.value(&accepted.entry.payload);
            }
            kind::PROMISE
        }
        Message::Accept {
            ballot,
            start,
            first,
            entries,
            chosen,
        } => {
            to.header(&Accept {
                ballot: (*ballot).into(),
                start: *start,
                first: *first,
                chosen: *chosen,
                count: entries.len() as u32,
            });
            for entry in entries {
                put_entry(entry, to);
            }
            for entry in entries {
                to.value(&entry.payload);
            }
            kind::ACCEPT
        }
        Message::Learned {
            from,
            entries,
            chosen,
        } => {
            to.header(&Learned {
                from: *from,
                chosen: *chosen,
                count: entries.len() as u32,
            });
            for accepted in entries {
                put_accepted(accepted, to);
            }
            for accepted in entries {
                to.value(&accepted.entry.payload);
            }
            kind::LEARNED
        }
        Message::Forward {
            ballot,
            incarnation,
            first,
            commands,
        } => {
            to.header(&Forward {
                ballot: (*ballot).into(),
                incarnation: *incarnation,
                first: *first,
                count: commands.len() as u32,
            });
            for command in commands {
                put_length(command, to);
            }
            for command in commands {
                to.value(command);
            }
            kind::FORWARD
        }
        Message::SnapshotChunk {
            upto,
            total,
            offset,
            data,
        } => {
            to.header(&SnapshotChunk {
                upto: *upto,
                total: *total,
                offset: *offset,
            });
            to.value(data);
            kind::SNAPSHOT_CHUNK
        }
        plain => encode_plain(plain, to).expect("all messages with entries are listed above"),
    }
}

fn put_accepted(accepted: &AcceptedEntry, to: &mut FrameWriter) {
    to.buffer.extend_from_slice(&accepted.ballot.round.to_le_bytes());
    to.buffer.extend_from_slice(&accepted.ballot.node.0.to_le_bytes());
    put_entry(&accepted.entry, to);
}

fn put_entry(entry: &Entry, to: &mut FrameWriter) {
    to.buffer.push(entry.kind as u8);
    put_length(&entry.payload, to);
}

/// A length that does not fit makes the frame too large anyway.
fn put_length(value: &Bytes, to: &mut FrameWriter) {
    to.buffer.extend_from_slice(&(value.len() as u32).to_le_bytes());
}

/// Decodes what follows the prefix. The whole of `rest` has to be used.
pub(super) fn decode(kind: u8, header_bytes: usize, rest: Bytes) -> Result<Message, WireError> {
    let mut tail = rest;
    if header_bytes > tail.len() {
        return Err(malformed("unread", "the header ends behind the frame"));
    }
    let header = tail.split_to(header_bytes);
    if let Some(plain) = decode_plain(kind, &header, &tail) {
        return plain;
    }
    match kind {
        kind::PROMISE => {
            let header: Promise = fields("Promise", &header)?;
            let entries = rows("Promise", header.count, SLOT_ROW, tail, |row, values| {
                Ok((Slot(row.get_u64_le()), take_accepted(row, values)?))
            })?;
            Ok(Message::Promise {
                ballot: header.ballot.into(),
                chosen: header.chosen,
                reported: Reported {
                    first: header.first,
                    last: header.last,
                    entries,
                    damaged: header.damaged,
                },
            })
        }
        kind::ACCEPT => {
            let header: Accept = fields("Accept", &header)?;
            run_of_slots("Accept", header.first, header.count)?;
            Ok(Message::Accept {
                ballot: header.ballot.into(),
                start: header.start,
                first: header.first,
                entries: rows("Accept", header.count, ENTRY_ROW, tail, take_entry)?,
                chosen: header.chosen,
            })
        }
        kind::LEARNED => {
            let header: Learned = fields("Learned", &header)?;
            run_of_slots("Learned", header.from, header.count)?;
            Ok(Message::Learned {
                from: header.from,
                entries: rows("Learned", header.count, ACCEPTED_ROW, tail, take_accepted)?,
                chosen: header.chosen,
            })
        }
        kind::FORWARD => {
            let header: Forward = fields("Forward", &header)?;
            if header.first.checked_add(u64::from(header.count)).is_none() {
                return Err(malformed("Forward", "its sequence numbers overflow"));
            }
            Ok(Message::Forward {
                ballot: header.ballot.into(),
                incarnation: header.incarnation,
                first: header.first,
                commands: rows("Forward", header.count, COMMAND_ROW, tail, take_value)?,
            })
        }
        kind::SNAPSHOT_CHUNK => {
            let header: SnapshotChunk = fields("SnapshotChunk", &header)?;
            if header.offset.checked_add(tail.len() as u64).is_none() {
                return Err(malformed("SnapshotChunk", "its offsets overflow"));
            }
            Ok(Message::SnapshotChunk {
                upto: header.upto,
                total: header.total,
                offset: header.offset,
                data: tail,
            })
        }
        unknown => Err(WireError::UnknownKind(unknown)),
    }
}

/// The fields of a header; all of it has to be used.
pub(super) fn fields<T: DeserializeOwned>(message: &'static str, header: &[u8]) -> Result<T, WireError> {
    // Holds one field name at a time.
    let mut scratch = [0; 128];
    let mut rest = header;
    let fields = ciborium::de::from_reader_with_buffer(&mut rest, &mut scratch)
        .map_err(|error| malformed(message, &format!("its header cannot be read: {error}")))?;
    if !rest.is_empty() {
        return Err(malformed(message, "bytes follow the header's fields"));
    }
    Ok(fields)
}

fn nothing_left(message: &'static str, tail: &Bytes) -> Result<(), WireError> {
    if tail.is_empty() {
        return Ok(());
    }
    Err(malformed(message, "bytes follow the message"))
}

fn run_of_slots(message: &'static str, first: Slot, count: u32) -> Result<(), WireError> {
    match first.0.checked_add(u64::from(count)) {
        Some(_) => Ok(()),
        None => Err(malformed(message, "its slots overflow")),
    }
}

/// Reads a table of `count` rows and the values after it; all of `tail` has to be used.
fn rows<T>(
    message: &'static str,
    count: u32,
    row_bytes: usize,
    mut tail: Bytes,
    mut take: impl FnMut(&mut &[u8], &mut Bytes) -> Result<T, &'static str>,
) -> Result<Vec<T>, WireError> {
    let table_bytes = (count as usize)
        .checked_mul(row_bytes)
        .filter(|bytes| *bytes <= tail.len())
        .ok_or_else(|| malformed(message, &format!("a table of {count} rows exceeds the frame")))?;
    let table = tail.split_to(table_bytes);
    // The rows are in the frame, so their number is no more than its length.
    let mut items = Vec::with_capacity(count as usize);
    for mut row in table.chunks_exact(row_bytes) {
        items.push(take(&mut row, &mut tail).map_err(|detail| malformed(message, detail))?);
    }
    nothing_left(message, &tail)?;
    Ok(items)
}

fn take_accepted(row: &mut &[u8], values: &mut Bytes) -> Result<AcceptedEntry, &'static str> {
    let ballot = Ballot {
        round: row.get_u64_le(),
        node: NodeId(row.get_u64_le()),
    };
    let entry = take_entry(row, values)?;
    Ok(AcceptedEntry { ballot, entry })
}

fn take_entry(row: &mut &[u8], values: &mut Bytes) -> Result<Entry, &'static str> {
    let kind = EntryKind::from_byte(row.get_u8()).ok_or("an entry is of unknown kind")?;
    let payload = take_value(row, values)?;
    Ok(Entry { kind, payload })
}

fn take_value(row: &mut &[u8], values: &mut Bytes) -> Result<Bytes, &'static str> {
    let length = row.get_u32_le() as usize;
    if length > values.len() {
        return Err("a value exceeds the frame");
    }
    Ok(values.split_to(length))
}

fn malformed(message: &'static str, detail: &str) -> WireError {
    WireError::Malformed {
        message,
        detail: detail.to_string(),
    }
}
