//! The in-memory tail of the log: every entry above the chosen watermark, and a bounded number of bytes below it.

use alloc::collections::VecDeque;

use super::PersistId;
use crate::types::{Accepted, Slot};

#[derive(Clone, Debug, Hash)]
pub(super) struct Held {
    accepted: Accepted,
    /// The write that makes it durable.
    pub(super) persist: PersistId,
}

/// Entries by slot, gaps allowed, from `first` on.
#[derive(Clone, Debug, Hash)]
pub(super) struct Window {
    first: Slot,
    pub(super) entries: VecDeque<Option<Held>>,
    /// Entries up to this slot are chosen, and count for the bound on what is kept.
    chosen: Slot,
    chosen_bytes: usize,
}

impl Window {
    /// An empty window for the slots from `first` on.
    pub(super) const fn new(first: Slot) -> Self {
        Self {
            first,
            entries: VecDeque::new(),
            chosen: first.previous(),
            chosen_bytes: 0,
        }
    }

    /// The first slot that the window can hold; below it the store must be asked.
    pub(super) const fn first(&self) -> Slot {
        self.first
    }

    /// The last slot that is held, or the one before `first`.
    pub(super) fn last(&self) -> Slot {
        Slot(self.first.0 + self.entries.len() as u64).previous()
    }

    fn index(&self, slot: Slot) -> Option<usize> {
        slot.0
            .checked_sub(self.first.0)
            .and_then(|index| usize::try_from(index).ok())
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Accepted> {
        self.entries
            .get(self.index(slot)?)?
            .as_ref()
            .map(|held| &held.accepted)
    }

    /// Sets what `slot` holds. The caller bounds how far `slot` may be above the rest.
    pub(super) fn set(&mut self, slot: Slot, accepted: Accepted, persist: PersistId) {
        let Some(index) = self.index(slot) else { return };
        while self.entries.len() <= index {
            self.entries.push_back(None);
        }
        debug_assert!(slot > self.chosen, "a chosen entry never changes");
        self.entries[index] = Some(Held { accepted, persist });
    }

    /// The entry at `slot`, the next one, is chosen.
    pub(super) fn mark_chosen(&mut self, slot: Slot) {
        self.chosen_bytes += self.get(slot).map_or(0, |accepted| accepted.entry.size());
        self.chosen = slot;
    }

    /// Everything up to `upto` is chosen and of no use any more; what is held above stays.
    pub(super) fn skip_to(&mut self, upto: Slot) {
        let count = usize::try_from(upto.next().since(self.first)).unwrap_or(usize::MAX);
        self.entries.drain(..count.min(self.entries.len()));
        self.first = upto.next();
        self.chosen = upto;
        self.chosen_bytes = 0;
    }

    /// Everything held from `slot` on, in order.
    pub(super) fn from(&self, slot: Slot) -> impl Iterator<Item = (Slot, &Accepted)> {
        let skip = self.index(slot).unwrap_or(0);
        let first = self.first;
        self.entries
            .iter()
            .enumerate()
            .skip(skip)
            .filter_map(move |(index, held)| Some((first.plus(index as u64), &held.as_ref()?.accepted)))
    }

    /// Forgets the oldest chosen entries while they have more than `max_bytes`. Entries whose write is not durable stay:
    /// the store could not give them back.
    pub(super) fn evict(&mut self, durable: PersistId, max_bytes: usize) {
        while self.chosen_bytes > max_bytes && self.first <= self.chosen {
            match self.entries.front() {
                Some(Some(held)) if held.persist <= durable => {
                    self.chosen_bytes -= held.accepted.entry.size();
                }
                _ => return,
            }
            self.entries.pop_front();
            self.first = self.first.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::{Ballot, Entry, EntryKind};

    fn entry(payload: &'static [u8]) -> Accepted {
        Accepted {
            ballot: Ballot::ZERO,
            entry: Entry {
                kind: EntryKind::Commands,
                payload: Bytes::from_static(payload),
            },
        }
    }

    #[test]
    fn gaps_are_kept_and_skipped() {
        let mut window = Window::new(Slot(5));
        assert_eq!(window.last(), Slot(4));
        window.set(Slot(8), entry(b"h"), PersistId(1));
        window.set(Slot(6), entry(b"f"), PersistId(1));
        window.set(Slot(4), entry(b"too old"), PersistId(1));
        assert_eq!(window.last(), Slot(8));
        assert!(window.get(Slot(7)).is_none() && window.get(Slot(4)).is_none());
        let slots: alloc::vec::Vec<Slot> = window.from(Slot(1)).map(|(slot, _)| slot).collect();
        assert_eq!(slots, [Slot(6), Slot(8)]);
    }

    #[test]
    fn only_chosen_and_durable_entries_are_evicted() {
        let mut window = Window::new(Slot(1));
        for slot in 1..=4 {
            window.set(Slot(slot), entry(b"x"), PersistId(slot));
        }
        window.evict(PersistId(9), 0);
        assert_eq!(window.first(), Slot(1), "nothing is chosen");
        for slot in 1..=3 {
            window.mark_chosen(Slot(slot));
        }
        window.evict(PersistId(2), 0);
        assert_eq!(window.first(), Slot(3), "3 is not durable");
        window.evict(PersistId(9), 0);
        assert_eq!(window.first(), Slot(4), "4 is not chosen");
    }

    #[test]
    fn what_stands_above_a_skipped_part_stays() {
        for (upto, left) in [
            (2, alloc::vec![Slot(3), Slot(7)]),
            (5, alloc::vec![Slot(7)]),
            (9, alloc::vec![]),
        ] {
            let mut window = Window::new(Slot(1));
            for slot in [1, 3, 7] {
                window.set(Slot(slot), entry(b"x"), PersistId(1));
            }
            window.mark_chosen(Slot(1));
            window.skip_to(Slot(upto));
            let slots: alloc::vec::Vec<Slot> = window.from(Slot(1)).map(|(slot, _)| slot).collect();
            assert_eq!((window.first(), slots), (Slot(upto + 1), left));
            window.set(Slot(upto + 1), entry(b"y"), PersistId(2));
            assert!(window.get(Slot(upto + 1)).is_some());
        }
    }
}
