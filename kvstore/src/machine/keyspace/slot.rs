//! The records of one hash slot.

use std::{
    cmp::Ordering,
    collections::BTreeSet,
    ops::Bound::{Included, Unbounded},
    sync::Arc,
};

use super::record::{Name, Named, Record, compare};

/// So many records lie in their hash slot itself.
const FEW: usize = 12;

/// The records of one hash slot, in order. Few lie in place, with one memory access less for each search; more, in a tree.
#[derive(Clone, Debug, Default)]
pub(super) struct HashSlot {
    /// Without gaps from the front; empty while there are `many`.
    few: [Option<Record>; FEW],
    many: Many,
}

impl HashSlot {
    pub(super) fn is_empty(&self) -> bool {
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

    pub(super) fn get(&self, name: &Name<'_>) -> Option<&Record> {
        if self.many.is_empty() {
            return self.few.get(self.find(name).ok()?)?.as_ref();
        }
        self.many.get(name)
    }

    pub(super) fn replace(&mut self, record: Record) -> Option<Record> {
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

    pub(super) fn take(&mut self, name: &Name<'_>) -> Option<Record> {
        if !self.many.is_empty() {
            return self.many.take(name);
        }
        let at = self.find(name).ok()?;
        let record = self.few[at].take();
        self.few[at..].rotate_left(1);
        record
    }

    /// Something of each cache line of the first records.
    pub(super) fn first_hashes(&self) -> u64 {
        let hash = |at: usize| self.few[at].as_ref().map_or(0, |record| record.hash);
        hash(0).wrapping_add(hash(3)).wrapping_add(hash(6))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.few.iter().flatten().chain(self.many.walk(0))
    }

    /// From this hash on.
    pub(super) fn walk(&self, hash: u64) -> impl Iterator<Item = &Record> {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{super::super::digest::key_hash, *};
    use proptest::prelude::*;

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
        let mut record = Record::new(&mut Vec::new(), key.as_bytes(), [&value.to_le_bytes()], 1);
        record.hash = hash;
        record
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
}
