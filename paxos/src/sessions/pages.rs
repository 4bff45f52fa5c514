//! What sessions have, by place, in pages that a frozen copy shares.

use alloc::{sync::Arc, vec::Vec};
use core::array;

use super::table::Place;

/// How many places share a page.
const PAGE_PLACES: usize = 64;

/// One item for each place. Cloning freezes all of them, in microseconds: a page is copied when one side writes to it.
#[derive(Clone, Debug)]
pub(super) struct Pages<T>(Vec<Arc<[T; PAGE_PLACES]>>);

impl<T: Clone + Default> Pages<T> {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// `None` if nothing was ever written to the place's page.
    pub(super) fn get(&self, place: Place) -> Option<&T> {
        let place = place as usize;
        self.0.get(place / PAGE_PLACES)?.get(place % PAGE_PLACES)
    }

    pub(super) fn get_mut(&mut self, place: Place) -> &mut T {
        let place = place as usize;
        let page = place / PAGE_PLACES;
        while self.0.len() <= page {
            self.0.push(Arc::new(array::from_fn(|_| T::default())));
        }
        // There are as many pages now.
        &mut Arc::make_mut(&mut self.0[page])[place % PAGE_PLACES]
    }

    /// The items of all pages, by place.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Place, &T)> {
        (0..).zip(self.0.iter().flat_map(|page| page.iter()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_copy_keeps_what_was_there() {
        let mut pages = Pages::new();
        *pages.get_mut(70) = 7;
        let frozen = pages.clone();
        *pages.get_mut(70) = 8;
        *pages.get_mut(200) = 9;
        assert_eq!((frozen.get(70), frozen.get(200)), (Some(&7), None));
        assert_eq!((pages.get(70), pages.get(200)), (Some(&8), Some(&9)));
        let written: Vec<_> = pages.iter().filter(|(_, item)| **item != 0).collect();
        assert_eq!(written, [(70, &8), (200, &9)]);
    }
}
