//! The durable record format that all backends share: every value carries a checksum over itself and its key.
//!
//! A backend stores three types of record: one per entry, one per group (hard state, trimmed mark and a summary of
//! the entries that must be there), and one for the whole store (its life and a summary of the groups). The checksum
//! covers the identity of the store and the record's key too, which are not stored with it, so a record that was read
//! from the wrong place, or copied from another store, is found out.
//!
//! All integers are little-endian:
//!
//! ```text
//! record   = version u8, type u8, kind u8, zero u8, checksum u32, body
//! checksum = crc32c(cluster u64, node u64, storage u64, group u32, slot u64, version, type, kind, zero, body)
//! entry    = ballot round u64, ballot node u64, length u32, payload
//! damaged  = nothing: the slot held an entry that was lost to damage
//! group    = promised round u64, promised node u64, chosen u64, membership u64, quarantined at u64, trimmed u64,
//!            last u64, overwritten u64, entries u64, digest u64
//! store    = incarnation u64, commit u64, groups u64, digest u64
//! ```
//!
//! `kind` is the [`EntryKind`] of an entry; in a group's record why it is quarantined: 1 because it has diverged, 2 because
//! the store was rolled back, 0 if it is not; and zero in the other types. A group's record has slot 0; the store's
//! record has group 0 and slot 0. Checksums show what was altered; the two summaries show what is missing or out of
//! date, which no checksum can.

use std::vec::Vec;

use bytes::{Buf, BufMut, Bytes};

use crate::types::{
    Accepted, Ballot, Entry, EntryKind, GroupId, HardState, Identity, Incarnation, NodeId, Quarantine, Slot,
};

/// The version of the format that this library writes, and the only one that it reads.
pub const VERSION: u8 = 3;

/// What a record has before its body, in bytes.
pub const HEADER_BYTES: usize = 8;

/// What the record of an entry has before its payload, in bytes.
pub const ENTRY_HEADER_BYTES: usize = HEADER_BYTES + 8 + 8 + 4;

const GROUP_BODY_BYTES: usize = 10 * 8;
const STORE_BODY_BYTES: usize = 4 * 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum RecordType {
    Entry = 1,
    Group = 2,
    Store = 3,
    Damaged = 4,
}

/// Why bytes are not the record that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Shorter than a header.
    #[error("a record of {bytes} bytes is too short")]
    Short {
        /// How long it is.
        bytes: usize,
    },
    /// The bytes, or the key that they were found under, are not those that were written.
    #[error("wrong checksum")]
    Checksum,
    /// Whole, but written by a version of this library that this one does not know.
    #[error("record format {found}, this program reads {VERSION}")]
    Version {
        /// The record's version.
        found: u8,
    },
    /// Whole, but it does not make sense: a defect of the program that wrote it.
    #[error("malformed record")]
    Malformed,
}

/// What the record of a slot says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotRecord {
    /// The entry that was accepted.
    Entry(Accepted),
    /// An entry was here and has been lost to damage; it is not known which.
    Damaged,
}

/// The record of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupRecord {
    /// Promise and chosen watermark.
    pub hard_state: HardState,
    /// All slots up to this one are trimmed.
    pub trimmed: Slot,
    /// What must be stored for the group beside this record.
    pub contents: Contents,
}

/// A summary of a group's slots above its trimmed mark, by which missing and outdated records are noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The highest slot that was ever written.
    pub last: Slot,
    /// The highest slot that was ever written twice: only slots up to it can be out of date.
    pub overwritten: Slot,
    /// How many slots hold a record.
    pub entries: u64,
    /// Over the checksums of their records.
    pub digest: Digest,
}

/// The record of a store: it changes with every batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreRecord {
    /// The present opening of the store, or the last one, as [`next_incarnation`](crate::storage::next_incarnation)
    /// numbers them: larger than every earlier one, and at least the milliseconds since 1970 when it was opened.
    pub incarnation: Incarnation,
    /// How many batches have been written, in all lives.
    pub commit: u64,
    /// How many groups there are.
    pub groups: u64,
    /// Over the checksums of their records.
    pub digest: Digest,
}

/// A checksum of a set of records that is cheap to keep up to date: the sum of one hash per record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(pub u64);

impl Digest {
    /// Puts a record into the set: its key (a slot or a group) and its checksum.
    pub const fn add(&mut self, key: u64, checksum: u32) {
        self.0 = self.0.wrapping_add(mix(key, checksum));
    }

    /// Takes a record out of the set again.
    pub const fn remove(&mut self, key: u64, checksum: u32) {
        self.0 = self.0.wrapping_sub(mix(key, checksum));
    }
}

/// Spreads key and checksum over 64 bits, so that sums of different sets differ (the finaliser of SplitMix64, twice).
const fn mix(key: u64, checksum: u32) -> u64 {
    const fn scramble(mut bits: u64) -> u64 {
        bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
    scramble(scramble(key) ^ checksum as u64)
}

/// The checksum that a record carries; `None` if it is too short to carry one. Says nothing about its being right.
pub fn checksum(record: &[u8]) -> Option<u32> {
    record
        .get(4..HEADER_BYTES)
        .map(|mut checksum| checksum.get_u32_le())
}

/// Writes and reads the records of one store.
#[derive(Clone, Copy, Debug)]
pub struct Records {
    /// The checksum so far: over the store's identity.
    identity: u32,
}

impl Records {
    /// The records of the store with this identity.
    pub fn new(identity: Identity) -> Self {
        let mut key = [0; 24];
        let mut rest = &mut key[..];
        rest.put_u64_le(identity.cluster.0);
        rest.put_u64_le(identity.node.0);
        rest.put_u64_le(identity.storage.0);
        Self {
            identity: crc32c::crc32c(&key),
        }
    }

    /// The record of an entry. Its payload is shorter than 4 GiB.
    pub fn encode_entry(self, group: GroupId, slot: Slot, accepted: &Accepted) -> Vec<u8> {
        let payload = &accepted.entry.payload;
        let length = u32::try_from(payload.len())
            .expect("a payload has travelled in a frame, or fits one: MAX_FRAME_BYTES is far below 4 GiB");
        let mut record = begin(
            RecordType::Entry,
            accepted.entry.kind as u8,
            ENTRY_HEADER_BYTES - HEADER_BYTES + payload.len(),
        );
        put_ballot(&mut record, accepted.ballot);
        record.put_u32_le(length);
        record.put_slice(payload);
        self.seal(group, slot, record)
    }

    /// The record of a slot whose entry has been lost to damage.
    pub fn encode_damaged(self, group: GroupId, slot: Slot) -> Vec<u8> {
        self.seal(group, slot, begin(RecordType::Damaged, 0, 0))
    }

    /// What the record found at this place says. The payload is a slice of the record.
    pub fn decode_slot(self, group: GroupId, slot: Slot, record: &Bytes) -> Result<SlotRecord, RecordError> {
        self.verify(group, slot, record)?;
        let mut body = record.slice(HEADER_BYTES..);
        if record[1] == RecordType::Damaged as u8 && body.is_empty() {
            return Ok(SlotRecord::Damaged);
        }
        if record[1] != RecordType::Entry as u8 || record.len() < ENTRY_HEADER_BYTES {
            return Err(RecordError::Malformed);
        }
        let kind = EntryKind::from_byte(record[2]).ok_or(RecordError::Malformed)?;
        let ballot = get_ballot(&mut body);
        if body.get_u32_le() as usize != body.len() {
            return Err(RecordError::Malformed);
        }
        Ok(SlotRecord::Entry(Accepted {
            ballot,
            entry: Entry { kind, payload: body },
        }))
    }

    /// The record of a group.
    pub fn encode_group(self, group: GroupId, state: &GroupRecord) -> Vec<u8> {
        let (why, at) = quarantine_to_parts(state.hard_state.quarantine);
        let mut record = begin(RecordType::Group, why, GROUP_BODY_BYTES);
        put_ballot(&mut record, state.hard_state.promised);
        record.put_u64_le(state.hard_state.chosen.0);
        record.put_u64_le(state.hard_state.membership.0);
        record.put_u64_le(at.0);
        record.put_u64_le(state.trimmed.0);
        record.put_u64_le(state.contents.last.0);
        record.put_u64_le(state.contents.overwritten.0);
        record.put_u64_le(state.contents.entries);
        record.put_u64_le(state.contents.digest.0);
        self.seal(group, Slot::ZERO, record)
    }

    /// What the record found in the place of this group's record says.
    pub fn decode_group(self, group: GroupId, record: &[u8]) -> Result<GroupRecord, RecordError> {
        let mut body = self.fixed_body(group, record, RecordType::Group, GROUP_BODY_BYTES)?;
        Ok(GroupRecord {
            hard_state: HardState {
                promised: get_ballot(&mut body),
                chosen: Slot(body.get_u64_le()),
                membership: Slot(body.get_u64_le()),
                quarantine: quarantine_from_parts(record[2], Slot(body.get_u64_le()))?,
            },
            trimmed: Slot(body.get_u64_le()),
            contents: Contents {
                last: Slot(body.get_u64_le()),
                overwritten: Slot(body.get_u64_le()),
                entries: body.get_u64_le(),
                digest: Digest(body.get_u64_le()),
            },
        })
    }

    /// The record of the store.
    pub fn encode_store(self, state: &StoreRecord) -> Vec<u8> {
        let mut record = begin(RecordType::Store, 0, STORE_BODY_BYTES);
        record.put_u64_le(state.incarnation.0);
        record.put_u64_le(state.commit);
        record.put_u64_le(state.groups);
        record.put_u64_le(state.digest.0);
        self.seal(GroupId(0), Slot::ZERO, record)
    }

    /// What the record found in the place of the store's record says.
    pub fn decode_store(self, record: &[u8]) -> Result<StoreRecord, RecordError> {
        let mut body = self.fixed_body(GroupId(0), record, RecordType::Store, STORE_BODY_BYTES)?;
        Ok(StoreRecord {
            incarnation: Incarnation(body.get_u64_le()),
            commit: body.get_u64_le(),
            groups: body.get_u64_le(),
            digest: Digest(body.get_u64_le()),
        })
    }

    fn seal(self, group: GroupId, slot: Slot, mut record: Vec<u8>) -> Vec<u8> {
        let checksum = self.checksum(group, slot, &record);
        record[4..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        record
    }

    fn verify(self, group: GroupId, slot: Slot, record: &[u8]) -> Result<(), RecordError> {
        let found = checksum(record).ok_or(RecordError::Short { bytes: record.len() })?;
        if self.checksum(group, slot, record) != found {
            return Err(RecordError::Checksum);
        }
        if record[0] != VERSION {
            return Err(RecordError::Version { found: record[0] });
        }
        Ok(())
    }

    fn fixed_body(
        self,
        group: GroupId,
        record: &[u8],
        expected: RecordType,
        bytes: usize,
    ) -> Result<&[u8], RecordError> {
        self.verify(group, Slot::ZERO, record)?;
        let body = &record[HEADER_BYTES..];
        if record[1] != expected as u8 || body.len() != bytes {
            return Err(RecordError::Malformed);
        }
        Ok(body)
    }

    /// Of a record that has at least a header; the place of the checksum itself is left out.
    fn checksum(self, group: GroupId, slot: Slot, record: &[u8]) -> u32 {
        let mut key = [0; 16];
        let mut rest = &mut key[..];
        rest.put_u32_le(group.0);
        rest.put_u64_le(slot.0);
        rest.put_slice(&record[..4]);
        let so_far = crc32c::crc32c_append(self.identity, &key);
        crc32c::crc32c_append(so_far, &record[HEADER_BYTES..])
    }
}

fn begin(record_type: RecordType, kind: u8, body_bytes: usize) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER_BYTES + body_bytes);
    record.put_slice(&[VERSION, record_type as u8, kind, 0]);
    record.put_u32_le(0);
    record
}

fn put_ballot(record: &mut Vec<u8>, ballot: Ballot) {
    record.put_u64_le(ballot.round);
    record.put_u64_le(ballot.node.0);
}

const fn quarantine_to_parts(quarantine: Option<Quarantine>) -> (u8, Slot) {
    match quarantine {
        None => (0, Slot::ZERO),
        Some(Quarantine::Diverged { slot }) => (1, slot),
        Some(Quarantine::RolledBack { slot }) => (2, slot),
    }
}

const fn quarantine_from_parts(why: u8, slot: Slot) -> Result<Option<Quarantine>, RecordError> {
    match why {
        0 => Ok(None),
        1 => Ok(Some(Quarantine::Diverged { slot })),
        2 => Ok(Some(Quarantine::RolledBack { slot })),
        _ => Err(RecordError::Malformed),
    }
}

/// The caller has checked that there are 16 bytes.
fn get_ballot(body: &mut impl Buf) -> Ballot {
    Ballot {
        round: body.get_u64_le(),
        node: NodeId(body.get_u64_le()),
    }
}
