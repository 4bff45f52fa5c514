//! One key and what is stored under it.

use std::{borrow::Borrow, cmp::Ordering, fmt, sync::Arc};

use super::super::digest::{key_hash, record_digest};

/// How many bits of a key's hash say where it stands in a walk. With the hash slot that makes 53 bits: what clients
/// that know floating-point numbers only can hold.
pub(in crate::machine) const PLACE_BITS: u32 = 39;

/// Of longer records the processor fetches the rest by itself.
const LINES_FETCHED_OF_A_RECORD: usize = 8;
const CACHE_LINE_BYTES: usize = 64;

/// Revision, digest and the key's length lie before the key, and the value behind it.
const REVISION: usize = 0;
const DIGEST: usize = 8;
const KEY_BYTES: usize = 16;
const HEADER_BYTES: usize = 20;

/// A key and what is stored under it. All of it is one allocation, which a frozen copy shares: a write to a key that
/// exists touches little memory, and most of its time goes into waiting for that.
#[derive(Clone)]
pub struct Record {
    /// Records are in the order of the keys' hashes, so that a search looks at one record's bytes only: the right one's.
    pub(super) hash: u64,
    bytes: Arc<[u8]>,
}

impl Record {
    /// Puts a record together in `scratch`, which is empty before and after.
    pub(super) fn new<const PARTS: usize>(
        scratch: &mut Vec<u8>,
        key: &[u8],
        value: [&[u8]; PARTS],
        revision: u64,
    ) -> Self {
        scratch.extend_from_slice(&[0; HEADER_BYTES]);
        scratch.extend_from_slice(key);
        for part in value {
            scratch.extend_from_slice(part);
        }
        let (header, rest) = scratch.split_at_mut(HEADER_BYTES);
        let (key, value) = rest.split_at(key.len());
        header[REVISION..DIGEST].copy_from_slice(&revision.to_le_bytes());
        header[DIGEST..KEY_BYTES].copy_from_slice(&record_digest(key, value, revision).to_le_bytes());
        // A command is far smaller than 4 GiB.
        header[KEY_BYTES..].copy_from_slice(&(key.len() as u32).to_le_bytes());
        let record = Self {
            hash: key_hash(key),
            bytes: Arc::from(&scratch[..]),
        };
        scratch.clear();
        record
    }

    fn number(&self, at: usize) -> u64 {
        let bytes = self.bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    }

    fn key_and_value(&self) -> (&[u8], &[u8]) {
        let bytes = self.bytes.get(KEY_BYTES..HEADER_BYTES);
        let key_bytes = bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u32::from_le_bytes);
        let rest = self.bytes.get(HEADER_BYTES..).unwrap_or_default();
        rest.split_at_checked(key_bytes as usize).unwrap_or_default()
    }

    /// The key.
    pub fn key(&self) -> &[u8] {
        self.key_and_value().0
    }

    /// The value.
    pub fn value(&self) -> &[u8] {
        self.key_and_value().1
    }

    /// The revision of the command that wrote it last.
    pub fn revision(&self) -> u64 {
        self.number(REVISION)
    }

    /// This record's part of the digest.
    pub(super) fn digest(&self) -> u64 {
        self.number(DIGEST)
    }

    /// Something of each of the first cache lines: all of them are needed, since what takes a record's place takes its
    /// memory too, as a rule.
    pub(super) fn first_bytes(&self) -> u8 {
        let lines = self.bytes.iter().step_by(CACHE_LINE_BYTES);
        lines
            .take(LINES_FETCHED_OF_A_RECORD)
            .fold(0, |sum, byte| sum ^ byte)
    }

    /// Bytes of key and value.
    pub(super) fn size(&self) -> u64 {
        (self.bytes.len() - HEADER_BYTES) as u64
    }

    /// Where it stands in a walk over its hash slot; few records, if any, stand at the same place.
    pub(in crate::machine) const fn place(&self) -> u64 {
        self.hash >> (64 - PLACE_BITS)
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("key", &self.key().escape_ascii().to_string())
            .field("value", &self.value().escape_ascii().to_string())
            .field("revision", &self.revision())
            .finish()
    }
}

/// What records are ordered by.
pub(super) trait Named {
    fn hash(&self) -> u64;
    fn key(&self) -> &[u8];
}

impl Named for Record {
    fn hash(&self) -> u64 {
        self.hash
    }

    fn key(&self) -> &[u8] {
        self.key()
    }
}

/// A key that is looked for.
#[derive(Clone, Copy, Default)]
pub(super) struct Name<'a> {
    pub(super) hash: u64,
    pub(super) key: &'a [u8],
}

impl<'a> Name<'a> {
    pub(super) fn of(key: &'a [u8]) -> Self {
        Self {
            hash: key_hash(key),
            key,
        }
    }
}

impl Named for Name<'_> {
    fn hash(&self) -> u64 {
        self.hash
    }

    fn key(&self) -> &[u8] {
        self.key
    }
}

pub(super) fn compare(one: &(impl Named + ?Sized), other: &(impl Named + ?Sized)) -> Ordering {
    one.hash()
        .cmp(&other.hash())
        .then_with(|| one.key().cmp(other.key()))
}

impl<'a> Borrow<dyn Named + 'a> for Record {
    fn borrow(&self) -> &(dyn Named + 'a) {
        self
    }
}

impl Ord for dyn Named + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self, other)
    }
}

impl PartialOrd for dyn Named + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Named + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for dyn Named + '_ {}

impl Ord for Record {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self, other)
    }
}

impl PartialOrd for Record {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Record {}
