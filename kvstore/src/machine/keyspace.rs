//! The keys and values, by hash slot.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    collections::BTreeSet,
    fmt,
    hint::black_box,
    ops::Bound::{Included, Unbounded},
    sync::Arc,
};

use super::digest::{key_hash, record_digest};
use crate::shards::{HASH_SLOTS, hash_slot};

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
    hash: u64,
    bytes: Arc<[u8]>,
}

impl Record {
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
    fn digest(&self) -> u64 {
        self.number(DIGEST)
    }

    /// Something of each of the first cache lines: all of them are needed, since what takes a record's place takes its
    /// memory too, as a rule.
    fn first_bytes(&self) -> u8 {
        let lines = self.bytes.iter().step_by(CACHE_LINE_BYTES);
        lines
            .take(LINES_FETCHED_OF_A_RECORD)
            .fold(0, |sum, byte| sum ^ byte)
    }

    /// Bytes of key and value.
    fn size(&self) -> u64 {
        (self.bytes.len() - HEADER_BYTES) as u64
    }

    /// Where it stands in a walk over its hash slot; few records, if any, stand at the same place.
    pub(super) const fn place(&self) -> u64 {
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
trait Named {
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
#[derive(Clone, Copy)]
struct Name<'a> {
    hash: u64,
    key: &'a [u8],
}

impl Named for Name<'_> {
    fn hash(&self) -> u64 {
        self.hash
    }

    fn key(&self) -> &[u8] {
        self.key
    }
}

fn compare(one: &(impl Named + ?Sized), other: &(impl Named + ?Sized)) -> Ordering {
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

/// So many records lie in their hash slot itself.
const FEW: usize = 12;

/// The records of one hash slot, in order. Few lie in place, with one memory access less for each search; more, in a tree.
#[derive(Clone, Debug, Default)]
struct HashSlot {
    /// Without gaps from the front; empty while there are `many`.
    few: [Option<Record>; FEW],
    many: Many,
}

impl HashSlot {
    fn is_empty(&self) -> bool {
        self.few[0].is_none() && self.many.is_empty()
    }

    /// Where it is among the few, or would be.
    fn find(&self, name: &impl Named) -> Result<usize, usize> {
        for (at, record) in self.few.iter().enumerate() {
            let Some(record) = record else {
                return Err(at);
            };
            match compare(record, name) {
                Ordering::Less => {}
                Ordering::Equal => return Ok(at),
                Ordering::Greater => return Err(at),
            }
        }
        Err(FEW)
    }

    fn get(&self, name: &Name<'_>) -> Option<&Record> {
        if self.many.is_empty() {
            return self.few.get(self.find(name).ok()?)?.as_ref();
        }
        self.many.get(name)
    }

    fn replace(&mut self, record: Record) -> Option<Record> {
        if self.many.is_empty() {
            match self.find(&record) {
                Ok(at) => return self.few[at].replace(record),
                Err(at) if self.few[FEW - 1].is_none() => {
                    self.few[at..].rotate_right(1);
                    return self.few[at].replace(record);
                }
                Err(_) => self.many = Many::of(self.few.iter_mut().filter_map(Option::take).collect()),
            }
        }
        self.many.replace(record)
    }

    fn take(&mut self, name: &Name<'_>) -> Option<Record> {
        if !self.many.is_empty() {
            return self.many.take(name);
        }
        let at = self.find(name).ok()?;
        let record = self.few[at].take();
        self.few[at..].rotate_left(1);
        record
    }

    /// Something of each cache line of the first records.
    fn first_hashes(&self) -> u64 {
        let hash = |at: usize| self.few[at].as_ref().map_or(0, |record| record.hash);
        hash(0).wrapping_add(hash(3)).wrapping_add(hash(6))
    }

    fn iter(&self) -> impl Iterator<Item = &Record> {
        self.few.iter().flatten().chain(self.many.walk(0))
    }

    /// From this hash on.
    fn walk(&self, hash: u64) -> impl Iterator<Item = &Record> {
        let few = self
            .few
            .iter()
            .flatten()
            .skip_while(move |record| record.hash < hash);
        few.chain(self.many.walk(hash))
    }
}

/// More records of one hash slot than this are divided.
const MAX_UNDIVIDED: usize = 4096;
/// By so many bits of their hashes.
const PART_BITS: u32 = 8;

/// Many records, in order: in one tree, or, if there are very many, in one for each beginning of a hash. A write copies
/// one tree that a frozen copy shares, and a hash slot can have any number of keys: all those with one hash tag.
#[derive(Clone, Debug, Default)]
struct Many {
    /// None, one, or one for each beginning of a hash.
    trees: Vec<Arc<BTreeSet<Record>>>,
    records: usize,
}

impl Many {
    fn of(records: BTreeSet<Record>) -> Self {
        Self {
            records: records.len(),
            trees: vec![Arc::new(records)],
        }
    }

    const fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Where records with this hash are.
    fn part(&self, hash: u64) -> usize {
        match self.trees.len() {
            0 | 1 => 0,
            _ => (hash >> (64 - PART_BITS)) as usize,
        }
    }

    fn get(&self, name: &Name<'_>) -> Option<&Record> {
        self.trees.get(self.part(name.hash))?.get(name as &dyn Named)
    }

    fn replace(&mut self, record: Record) -> Option<Record> {
        if self.trees.len() == 1 && self.records >= MAX_UNDIVIDED {
            self.divide();
        }
        let part = self.part(record.hash);
        let tree = self.trees.get_mut(part);
        let tree = tree.expect("many records have a tree for each beginning of a hash, or one for all");
        let before = Arc::make_mut(tree).replace(record);
        self.records += usize::from(before.is_none());
        before
    }

    fn take(&mut self, name: &Name<'_>) -> Option<Record> {
        let part = self.part(name.hash);
        let record = Arc::make_mut(self.trees.get_mut(part)?).take(name as &dyn Named)?;
        self.records -= 1;
        Some(record)
    }

    fn divide(&mut self) {
        let records = std::mem::take(&mut self.trees);
        let mut parts = vec![BTreeSet::new(); 1 << PART_BITS];
        for record in records.into_iter().flat_map(Arc::unwrap_or_clone) {
            parts[(record.hash >> (64 - PART_BITS)) as usize].insert(record);
        }
        self.trees = parts.into_iter().map(Arc::new).collect();
    }

    /// From this hash on.
    fn walk(&self, hash: u64) -> impl Iterator<Item = &Record> {
        let first = Name { hash, key: &[] };
        let mut trees = self.trees.get(self.part(hash)..).unwrap_or_default().iter();
        let begun = trees
            .next()
            .map(|tree| tree.range::<dyn Named, _>((Included(&first as &dyn Named), Unbounded)));
        let rest = trees.flat_map(|tree| tree.iter());
        begun.into_iter().flatten().chain(rest)
    }
}

/// How many hash slots share a page.
const PAGE_SLOTS: usize = 128;

/// Neighbouring hash slots.
type Page = [Arc<HashSlot>; PAGE_SLOTS];

/// How many bits of a key's hash say where it stands in a walk. With the hash slot that makes 53 bits: what clients
/// that know floating-point numbers only can hold.
pub(super) const PLACE_BITS: u32 = 39;

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
/// Of longer records the processor fetches the rest by itself.
const LINES_FETCHED_OF_A_RECORD: usize = 8;
const CACHE_LINE_BYTES: usize = 64;
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
        let name = Name {
            hash: key_hash(key),
            key,
        };
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
            let mut names = [(0, Name { hash: 0, key: &[] }); KEYS_FETCHED_AT_ONCE];
            let mut count = 0;
            for (name, key) in names.iter_mut().zip(&mut keys) {
                *name = (
                    hash_slot(key),
                    Name {
                        hash: key_hash(key),
                        key,
                    },
                );
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
        let record = self.record(key, value, revision);
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

    fn record<const PARTS: usize>(&mut self, key: &[u8], value: [&[u8]; PARTS], revision: u64) -> Record {
        let bytes = &mut self.scratch;
        bytes.extend_from_slice(&[0; HEADER_BYTES]);
        bytes.extend_from_slice(key);
        for part in value {
            bytes.extend_from_slice(part);
        }
        let (header, rest) = bytes.split_at_mut(HEADER_BYTES);
        let (key, value) = rest.split_at(key.len());
        header[REVISION..DIGEST].copy_from_slice(&revision.to_le_bytes());
        header[DIGEST..KEY_BYTES].copy_from_slice(&record_digest(key, value, revision).to_le_bytes());
        // A command is far smaller than 4 GiB.
        header[KEY_BYTES..].copy_from_slice(&(key.len() as u32).to_le_bytes());
        let record = Record {
            hash: key_hash(key),
            bytes: Arc::from(&bytes[..]),
        };
        bytes.clear();
        bytes.shrink_to(MAX_IDLE_SCRATCH_BYTES);
        record
    }

    /// Removes a key; returns what was there.
    pub fn remove(&mut self, key: &[u8]) -> Option<Record> {
        // Nothing is copied for a key that is not there.
        self.get(key)?;
        let name = Name {
            hash: key_hash(key),
            key,
        };
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
    use std::collections::BTreeMap;

    use super::*;
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

    #[test]
    fn very_many_records_of_a_hash_slot_are_in_order_while_they_come_and_go() {
        let mut slot = HashSlot::default();
        let hash = |key: u64| key_hash(&key.to_le_bytes());
        let named = |key: u64| record(hash(key), &key.to_string(), key);
        let mut model: BTreeMap<u64, u64> = BTreeMap::new();
        let keys = 2 * MAX_UNDIVIDED as u64;
        for key in 0..keys {
            assert!(slot.replace(named(key)).is_none());
            model.insert(hash(key), key);
            if key % 1024 == 0 || key + 1 == keys {
                assert!(slot.iter().map(|record| record.hash).eq(model.keys().copied()));
            }
        }
        let from = hash(7);
        let behind = model.range(from..).map(|(hash, _)| *hash);
        assert!(slot.walk(from).map(|record| record.hash).eq(behind));
        for key in 0..keys {
            let text = key.to_string();
            let name = Name {
                hash: hash(key),
                key: text.as_bytes(),
            };
            assert_eq!(slot.get(&name).unwrap().key(), text.as_bytes());
            assert!(slot.take(&name).is_some() && slot.take(&name).is_none());
        }
        assert!(slot.is_empty() && slot.iter().next().is_none());
        assert!(slot.replace(named(1)).is_none());
        assert_eq!(slot.iter().count(), 1);
    }

    fn record(hash: u64, key: &str, value: u64) -> Record {
        let record = Keyspace::default().record(key.as_bytes(), [&value.to_le_bytes()], 1);
        Record { hash, ..record }
    }

    proptest! {
        /// However many keys there are, and however many of them have one hash.
        #[test]
        fn a_hash_slot_is_a_map_in_order(
            steps in prop::collection::vec((0..4_u8, 0..6_u64, "[a-c]{0,2}"), 0..150),
            from in 0..7_u64,
        ) {
            let (mut slot, mut model) = (HashSlot::default(), BTreeMap::new());
            for ((step, hash, key), value) in steps.into_iter().zip(0..) {
                let name = Name { hash, key: key.as_bytes() };
                let value_of = |record: &Record| u64::from_le_bytes(record.value().try_into().unwrap());
                let found = slot.get(&name).map(value_of);
                prop_assert_eq!(found, model.get(&(hash, key.clone())).copied());
                if step == 0 {
                    prop_assert_eq!(slot.take(&name).as_ref().map(value_of), found);
                    model.remove(&(hash, key));
                } else {
                    let before = slot.replace(record(hash, &key, value));
                    prop_assert_eq!(before.as_ref().map(value_of), found);
                    model.insert((hash, key), value);
                }
                prop_assert_eq!(slot.is_empty(), model.is_empty());
            }
            let name = |record: &Record| (record.hash, String::from_utf8(record.key().to_vec()).unwrap());
            prop_assert!(slot.iter().map(name).eq(model.keys().cloned()));
            let rest = model.keys().filter(|(hash, _)| *hash >= from).cloned();
            prop_assert!(slot.walk(from).map(name).eq(rest));
        }
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
