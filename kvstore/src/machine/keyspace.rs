//! The keys and values, by hash slot.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::digest::record_digest;
use crate::shards::{HASH_SLOTS, hash_slot};

/// What is stored under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The value.
    pub value: Bytes,
    /// The revision of the command that wrote it last.
    pub revision: u64,
    /// This record's part of the digest.
    digest: u64,
}

/// The records of one hash slot, in the order of their keys.
pub(super) type HashSlot = BTreeMap<Bytes, Record>;

/// Neighbouring hash slots.
type Page = Vec<Arc<HashSlot>>;

/// How many hash slots share a page.
const PAGE_SLOTS: usize = 128;

/// All records. Ordered by hash slot, then key, so that walking it gives the same order on every replica.
///
/// Cloning freezes it, in microseconds: pages, and the hash slots in them, are shared until one side writes to them.
#[derive(Clone, Debug)]
pub struct Keyspace {
    pages: Vec<Arc<Page>>,
    keys: u64,
    bytes: u64,
    digest: u64,
    /// The revision of the last command applied: the number of commands ever applied, the same on every replica.
    pub revision: u64,
}

/// To give back the memory of more keys than this takes a while: another thread does it.
const MAX_KEYS_DROPPED_AT_ONCE: u64 = 10_000;

impl Default for Keyspace {
    fn default() -> Self {
        let empty = Arc::new(HashSlot::new());
        let empty = Arc::new(vec![empty; PAGE_SLOTS]);
        Self {
            pages: vec![empty; usize::from(HASH_SLOTS).div_ceil(PAGE_SLOTS)],
            keys: 0,
            bytes: 0,
            digest: 0,
            revision: 0,
        }
    }
}

impl Keyspace {
    /// How many keys there are.
    pub fn len(&self) -> u64 {
        self.keys
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.keys == 0
    }

    /// The bytes of all keys and values.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The sum of all records' digests: it does not depend on the order in which they were written.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The record of a key.
    pub fn get(&self, key: &[u8]) -> Option<&Record> {
        self.slot(hash_slot(key)).get(key)
    }

    /// The records of one hash slot.
    pub fn slot(&self, slot: u16) -> &HashSlot {
        let slot = usize::from(slot % HASH_SLOTS);
        &self.pages[slot / PAGE_SLOTS][slot % PAGE_SLOTS]
    }

    /// The hash slot of a key, to be written to: no copy that was frozen shares it any more.
    fn slot_mut(&mut self, key: &[u8]) -> &mut HashSlot {
        let slot = usize::from(hash_slot(key));
        let page = Arc::make_mut(&mut self.pages[slot / PAGE_SLOTS]);
        Arc::make_mut(&mut page[slot % PAGE_SLOTS])
    }

    /// Stores a value under a key at the current revision; returns what was there before.
    pub fn set(&mut self, key: &[u8], value: Bytes) -> Option<Bytes> {
        self.insert(key, value, self.revision)
    }

    /// Stores a value with the revision that it already has.
    pub fn insert(&mut self, key: &[u8], value: Bytes, revision: u64) -> Option<Bytes> {
        let record = Record {
            digest: record_digest(key, &value, revision),
            value,
            revision,
        };
        self.digest = self.digest.wrapping_add(record.digest);
        self.bytes += record.value.len() as u64;
        let slot = self.slot_mut(key);
        if let Some(present) = slot.get_mut(key) {
            let before = std::mem::replace(present, record);
            self.digest = self.digest.wrapping_sub(before.digest);
            self.bytes -= before.value.len() as u64;
            return Some(before.value);
        }
        slot.insert(Bytes::copy_from_slice(key), record);
        self.keys += 1;
        self.bytes += key.len() as u64;
        None
    }

    /// Replaces the value of a key (an empty one if it is missing) by what `change` makes of it, without copying it;
    /// returns the new value's length.
    pub fn update(&mut self, key: &[u8], change: impl FnOnce(Bytes) -> Bytes) -> usize {
        let before = self
            .slot_mut(key)
            .get_mut(key)
            .map(|record| std::mem::take(&mut record.value));
        // The record's value is away: what it counted for is taken back here, not in `insert`.
        self.bytes -= before.as_ref().map_or(0, |value| value.len() as u64);
        let value = change(before.unwrap_or_default());
        let len = value.len();
        self.insert(key, value, self.revision);
        len
    }

    /// Removes a key; returns what was there.
    pub fn remove(&mut self, key: &[u8]) -> Option<Bytes> {
        // Nothing is copied for a key that is not there.
        self.get(key)?;
        let record = self.slot_mut(key).remove(key)?;
        self.keys -= 1;
        self.bytes -= (key.len() + record.value.len()) as u64;
        self.digest = self.digest.wrapping_sub(record.digest);
        Some(record.value)
    }

    /// Removes everything. The revision stays.
    pub fn clear(&mut self) {
        let empty = Self {
            revision: self.revision,
            ..Self::default()
        };
        let old = std::mem::replace(self, empty);
        if old.keys > MAX_KEYS_DROPPED_AT_ONCE {
            // Without a thread the closure, and with it what it holds, is dropped here.
            let _ = std::thread::Builder::new()
                .name("flushed".into())
                .spawn(move || drop(old));
        }
    }

    /// All records, by hash slot, then key.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &Record)> {
        let slots = self.pages.iter().flat_map(|page| page.iter());
        slots.flat_map(|slot| slot.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frozen_copy_does_not_see_later_writes() {
        let mut space = Keyspace::default();
        space.set(b"a", Bytes::from_static(b"1"));
        let frozen = space.clone();
        space.set(b"a", Bytes::from_static(b"2"));
        space.remove(b"a");
        space.set(b"b", Bytes::from_static(b"3"));
        assert_eq!(frozen.get(b"a").unwrap().value, "1");
        assert_eq!(frozen.len(), 1);
        assert_eq!(frozen.get(b"b"), None);
    }

    proptest! {
        /// Counts, bytes and digest, kept up as writes come, equal what a fresh count over all records gives.
        #[test]
        fn what_is_counted_on_the_way_is_what_is_there(
            steps in prop::collection::vec((0_u8..4, "[a-e]", "[a-z]{0,3}"), 0..60)
        ) {
            let mut space = Keyspace::default();
            for (step, key, value) in steps {
                space.revision += 1;
                match step {
                    0 | 1 => { space.set(key.as_bytes(), Bytes::from(value)); }
                    2 => { space.update(key.as_bytes(), |before| [&before[..], value.as_bytes()].concat().into()); }
                    _ => { space.remove(key.as_bytes()); }
                }
            }
            let bytes = |(key, record): (&Bytes, &Record)| (key.len() + record.value.len()) as u64;
            let digest = |(key, record): (&Bytes, &Record)| record_digest(key, &record.value, record.revision);
            prop_assert_eq!(space.len(), space.iter().count() as u64);
            prop_assert_eq!(space.bytes(), space.iter().map(bytes).sum::<u64>());
            prop_assert_eq!(space.digest(), space.iter().map(digest).fold(0, u64::wrapping_add));
        }
    }
}
