//! The keys and values, by hash slot.

mod record;
mod slot;

use std::{hint::black_box, sync::Arc};

pub(super) use self::record::PLACE_BITS;
pub use self::record::Record;
use self::{record::Name, slot::HashSlot};
use crate::shards::{HASH_SLOTS, hash_slot};

/// How many hash slots share a page.
const PAGE_SLOTS: usize = 128;

/// Neighbouring hash slots.
type Page = [Arc<HashSlot>; PAGE_SLOTS];

/// All records. Ordered by hash slot, then by the keys' hashes, so that walking it gives the same order on every
/// replica.
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
    /// Where a record is put together; empty between two writes.
    scratch: Vec<u8>,
}

/// With fewer keys than this they lie in the processor's cache, as a rule: to fetch them would cost more than it gains.
const MIN_FETCHED_KEYS: u64 = 4_096;
/// So many keys are fetched together.
const KEYS_FETCHED_AT_ONCE: usize = 64;

/// To give back the memory of more keys than this takes a while: another thread does it.
const MAX_KEYS_DROPPED_AT_ONCE: u64 = 10_000;
/// So many bytes are kept for putting records together.
const MAX_IDLE_SCRATCH_BYTES: usize = 64 << 10;

impl Default for Keyspace {
    fn default() -> Self {
        let empty = Arc::new(HashSlot::default());
        let empty: Arc<Page> = Arc::new(std::array::from_fn(|_| Arc::clone(&empty)));
        Self {
            pages: vec![empty; usize::from(HASH_SLOTS).div_ceil(PAGE_SLOTS)],
            keys: 0,
            bytes: 0,
            digest: 0,
            revision: 0,
            scratch: Vec::new(),
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
        let name = Name::of(key);
        self.slot(hash_slot(key)).get(&name)
    }

    fn slot(&self, slot: u16) -> &HashSlot {
        let slot = usize::from(slot % HASH_SLOTS);
        &self.pages[slot / PAGE_SLOTS][slot % PAGE_SLOTS]
    }

    /// Whether a hash slot holds no keys.
    pub(super) fn is_empty_slot(&self, slot: u16) -> bool {
        self.slot(slot).is_empty()
    }

    /// The records of one hash slot that stand at this place or behind it, in order.
    pub(super) fn walk(&self, slot: u16, place: u64) -> impl Iterator<Item = &Record> {
        self.slot(slot).walk(place << (64 - PLACE_BITS))
    }

    /// The hash slot of a key, to be written to: no copy that was frozen shares it any more.
    fn slot_mut(&mut self, key: &[u8]) -> &mut HashSlot {
        let slot = usize::from(hash_slot(key));
        let page = Arc::make_mut(&mut self.pages[slot / PAGE_SLOTS]);
        Arc::make_mut(&mut page[slot % PAGE_SLOTS])
    }

    /// Brings what these keys are stored in near the processor: for all of them at once, in the time that it takes for few.
    /// One after the other, each search would wait for memory several times. Changes nothing that can be seen.
    pub(super) fn fetch<'a>(&self, keys: impl IntoIterator<Item = &'a [u8]>) {
        if self.keys < MIN_FETCHED_KEYS {
            return;
        }
        let mut keys = keys.into_iter();
        loop {
            let mut names = [(0, Name::default()); KEYS_FETCHED_AT_ONCE];
            let mut count = 0;
            for (name, key) in names.iter_mut().zip(&mut keys) {
                *name = (hash_slot(key), Name::of(key));
                count += 1;
            }
            let Some(names) = names.get(..count).filter(|names| !names.is_empty()) else {
                return;
            };
            // No step of a loop depends on the one before, so the processor waits for many of them together.
            let few = names.iter().map(|(slot, _)| self.slot(*slot).first_hashes());
            black_box(few.fold(0, u64::wrapping_add));
            let found = names.iter().filter_map(|(slot, name)| self.slot(*slot).get(name));
            black_box(found.map(Record::first_bytes).fold(0, u8::wrapping_add));
        }
    }

    /// Stores a value under a key at the current revision; returns what was there before.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Option<Record> {
        self.insert(key, value, self.revision)
    }

    /// Stores a value with the revision that it already has.
    pub fn insert(&mut self, key: &[u8], value: &[u8], revision: u64) -> Option<Record> {
        self.put(key, [value], revision)
    }

    /// Appends to the value of a key, an empty one if it is missing; returns the new value's length in bytes.
    pub fn append(&mut self, key: &[u8], suffix: &[u8]) -> usize {
        let before = self.get(key).cloned();
        let value = before.as_ref().map_or(&[][..], Record::value);
        self.put(key, [value, suffix], self.revision);
        value.len() + suffix.len()
    }

    fn put<const PARTS: usize>(
        &mut self,
        key: &[u8],
        value: [&[u8]; PARTS],
        revision: u64,
    ) -> Option<Record> {
        let record = Record::new(&mut self.scratch, key, value, revision);
        self.scratch.shrink_to(MAX_IDLE_SCRATCH_BYTES);
        self.digest = self.digest.wrapping_add(record.digest());
        self.bytes += record.size();
        let before = self.slot_mut(key).replace(record);
        match &before {
            Some(before) => {
                self.digest = self.digest.wrapping_sub(before.digest());
                self.bytes -= before.size();
            }
            None => self.keys += 1,
        }
        before
    }

    /// Removes a key; returns what was there.
    pub fn remove(&mut self, key: &[u8]) -> Option<Record> {
        // Nothing is copied for a key that is not there.
        self.get(key)?;
        let name = Name::of(key);
        let record = self.slot_mut(key).take(&name)?;
        self.keys -= 1;
        self.bytes -= record.size();
        self.digest = self.digest.wrapping_sub(record.digest());
        Some(record)
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

    /// All records, by hash slot, then by the keys' hashes.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        let slots = self.pages.iter().flat_map(|page| page.iter());
        slots.flat_map(|slot| slot.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::digest::record_digest, *};
    use proptest::prelude::*;

    #[test]
    fn a_frozen_copy_does_not_see_later_writes() {
        let mut space = Keyspace::default();
        space.set(b"a", b"1");
        let frozen = space.clone();
        space.set(b"a", b"2");
        space.remove(b"a");
        space.set(b"b", b"3");
        assert_eq!(frozen.get(b"a").unwrap().value(), b"1");
        assert_eq!(frozen.len(), 1);
        assert!(frozen.get(b"b").is_none());
    }

    /// What shares a hash tag shares a hash slot: a hundred thousand keys, or as many as a client likes.
    #[test]
    fn the_first_write_to_what_was_frozen_copies_little_of_the_largest_hash_slot() {
        let mut space = Keyspace::default();
        for key in 0..100_000 {
            space.set(format!("{{tag}}{key}").as_bytes(), b"value");
        }
        let frozen = space.clone();
        let key = b"{tag}5";
        let copied = allocation_counter::measure(|| {
            space.set(key, b"changed");
        });
        assert!(copied.bytes_total < 64 << 10, "{copied:?}");
        assert_eq!(frozen.get(key).unwrap().value(), b"value");
        let absent = allocation_counter::measure(|| {
            space.remove(key);
        });
        assert!(absent.bytes_total < 1 << 10, "{absent:?}");
        assert_eq!((space.len(), frozen.len()), (99_999, 100_000));
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
                    0 | 1 => { space.set(key.as_bytes(), value.as_bytes()); }
                    2 => { space.append(key.as_bytes(), value.as_bytes()); }
                    _ => { space.remove(key.as_bytes()); }
                }
            }
            let bytes = |record: &Record| (record.key().len() + record.value().len()) as u64;
            let digest = |record: &Record| record_digest(record.key(), record.value(), record.revision());
            prop_assert_eq!(space.len(), space.iter().count() as u64);
            prop_assert_eq!(space.bytes(), space.iter().map(bytes).sum::<u64>());
            prop_assert_eq!(space.digest(), space.iter().map(digest).fold(0, u64::wrapping_add));
        }
    }
}
