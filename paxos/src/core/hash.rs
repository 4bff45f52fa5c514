//! The running hash over everything that a replica hands out to apply: two replicas that have applied the same, in the
//! same order, have the same hash, and two that have not have different ones, but for one case in 2^64. It guards
//! against accidents (a broken disk, memory or program), not against somebody who looks for a collision.
//!
//! Ballots are left out, because they differ between replicas. All arithmetic is modulo 2^64, all words are
//! little-endian:
//!
//! ```text
//! mix(h, w)       = x ^ (x >> 32) where x = (h ^ w) * 0x9e3779b97f4a7c15
//! begin(group)    = mix(0x5061786f73486173, group)
//! extend(h, slot, kind, payload, commands):
//!   h             = mix(mix(mix(h, slot), kind << 56 | commands), length of the payload)
//!   lane[i]       = mix(h, i), for i = 0 to 3
//!   for each 32 bytes of the payload, the last ones filled up with zeros:
//!     lane[i]     = mix(lane[i], word i of the four)
//!   h             = mix(mix(mix(lane[0], lane[1]), lane[2]), lane[3]), and 1 if that is 0
//! ```
//!
//! `commands` is how many commands of the entry were handed out: those that an earlier slot already held are not, and
//! the replicas must agree on that too. Zero is no hash: it stands for one that is not known.
//!
//! Why not the checksum of the frame or record that the entry came in: those cover more than the payload, and the core
//! sees neither. Each step of `mix` is a bijection, so a change within one word of a payload always gives another hash,
//! but that 0 is taken for 1; the four lanes are there because they are computed side by side.

use crate::types::{Entry, GroupId, Slot};

const SEED: u64 = 0x5061_786f_7348_6173;
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
const LANES: usize = 4;
const WORD_BYTES: usize = 8;
const BLOCK_BYTES: usize = LANES * WORD_BYTES;

const fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(FACTOR);
    mixed ^ (mixed >> 32)
}

/// The hash before the first slot.
pub(super) const fn begin(group: GroupId) -> u64 {
    mix(SEED, group.0 as u64)
}

/// The hash after `slot`, from the one before it. `commands` of the entry were handed out.
pub(super) fn extend(before: u64, slot: Slot, entry: &Entry, commands: usize) -> u64 {
    let kind = u64::from(entry.kind as u8) << 56;
    let hash = mix(mix(before, slot.0), kind | commands as u64);
    let hash = mix(hash, entry.payload.len() as u64);
    let mut lanes = [mix(hash, 0), mix(hash, 1), mix(hash, 2), mix(hash, 3)];
    let (blocks, rest) = entry.payload.as_chunks::<BLOCK_BYTES>();
    for block in blocks {
        absorb(&mut lanes, block);
    }
    if !rest.is_empty() {
        let mut block = [0; BLOCK_BYTES];
        block[..rest.len()].copy_from_slice(rest);
        absorb(&mut lanes, &block);
    }
    let [first, others @ ..] = lanes;
    others.into_iter().fold(first, mix).max(1)
}

fn absorb(lanes: &mut [u64; LANES], block: &[u8; BLOCK_BYTES]) {
    let (words, _) = block.as_chunks::<WORD_BYTES>();
    for (lane, word) in lanes.iter_mut().zip(words) {
        *lane = mix(*lane, u64::from_le_bytes(*word));
    }
}

#[cfg(test)]
mod tests {
    use alloc::{collections::BTreeSet, vec, vec::Vec};

    use super::*;
    use crate::types::EntryKind;

    fn entry(payload: Vec<u8>) -> Entry {
        Entry {
            kind: EntryKind::Commands,
            payload: payload.into(),
        }
    }

    #[test]
    fn the_hash_is_the_same_for_ever() {
        let payload: Vec<u8> = (0..100).collect();
        let first = extend(begin(GroupId(7)), Slot(1), &entry(payload), 3);
        let second = extend(first, Slot(2), &Entry::NOOP, 0);
        assert_eq!(begin(GroupId(7)), 0xf607_5914_cdab_7790);
        assert_eq!(first, 0x3a52_0915_9765_3dd9);
        assert_eq!(second, 0xbd77_5dc5_4d74_22aa);
    }

    #[test]
    fn every_bit_and_everything_beside_the_payload_counts() {
        let (group, slot, payload) = (GroupId(1), Slot(9), vec![0; 75]);
        let mut seen = BTreeSet::new();
        let mut is_new = |hash| seen.insert(hash);
        assert!(is_new(extend(begin(group), slot, &entry(payload.clone()), 1)));
        for bit in 0..8 * payload.len() {
            let mut altered = payload.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(
                is_new(extend(begin(group), slot, &entry(altered), 1)),
                "bit {bit}"
            );
        }
        for length in 0..75 {
            assert!(is_new(extend(begin(group), slot, &entry(vec![0; length]), 1)));
        }
        let noop = Entry {
            kind: EntryKind::Noop,
            ..entry(payload.clone())
        };
        assert!(is_new(extend(begin(group), slot, &noop, 1)));
        assert!(is_new(extend(begin(group), slot, &entry(payload.clone()), 2)));
        assert!(is_new(extend(begin(group), Slot(10), &entry(payload.clone()), 1)));
        assert!(is_new(extend(begin(GroupId(2)), slot, &entry(payload), 1)));
    }

    #[test]
    fn the_order_of_the_entries_counts() {
        let after = |payloads: [u8; 2]| {
            let mut slots = (1..).map(Slot);
            payloads.into_iter().fold(begin(GroupId(1)), |hash, byte| {
                let slot = slots.next().unwrap_or_default();
                extend(hash, slot, &entry(vec![byte]), 1)
            })
        };
        assert_ne!(after([1, 2]), after([2, 1]));
    }
}
