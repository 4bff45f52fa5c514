//! Which group serves which key: Redis' CRC16 slots, dealt out to the groups in contiguous ranges.

use std::ops::Range;

/// How many hash slots there are.
pub const HASH_SLOTS: u16 = 16_384;

const CRC16: [u16; 256] = crc16_table();

/// The table of CRC-16/XMODEM: polynomial 0x1021, not reflected, initial value 0.
const fn crc16_table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)]
    })
}

/// The hash slot of a key, as Redis Cluster defines it: if the key has a non-empty part in braces, only the first such
/// part counts, so that keys can be kept together.
pub fn hash_slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    crc16(tag.unwrap_or(key)) % HASH_SLOTS
}

/// The division of the hash slots among groups; the same on every node of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    groups: u16,
}

impl Shards {
    /// The most groups that a cluster may have.
    pub const MAX_GROUPS: u16 = 1024;

    /// A division among this many groups, 1 to [`Self::MAX_GROUPS`]; values outside are clamped.
    pub fn new(groups: u16) -> Self {
        Self {
            groups: groups.clamp(1, Self::MAX_GROUPS),
        }
    }

    /// How many groups there are.
    pub fn groups(self) -> usize {
        usize::from(self.groups)
    }

    /// The index of the group that serves a hash slot.
    pub fn group_of_slot(self, slot: u16) -> usize {
        usize::from(slot % HASH_SLOTS) * self.groups() / usize::from(HASH_SLOTS)
    }

    /// The index of the group that serves a key.
    pub fn group_of(self, key: &[u8]) -> usize {
        if self.groups == 1 {
            0
        } else {
            self.group_of_slot(hash_slot(key))
        }
    }

    /// The hash slots that a group serves.
    pub fn slots(self, group: usize) -> Range<u16> {
        let first = |group: usize| (group * usize::from(HASH_SLOTS)).div_ceil(self.groups()) as u16;
        first(group)..first(group + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_slots_are_those_of_redis_cluster() {
        // The check value of CRC-16/XMODEM, and what `redis-cli cluster keyslot` says.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        for (key, slot) in [
            ("", 0),
            ("a", 15_495),
            ("foo", 12_182),
            ("somekey", 11_058),
            ("foo{hash_tag}", 2_515),
        ] {
            assert_eq!(hash_slot(key.as_bytes()), slot, "{key}");
        }
    }

    #[test]
    fn only_the_first_full_tag_counts() {
        assert_eq!(hash_slot(b"{user}.a"), hash_slot(b"user"));
        assert_eq!(hash_slot(b"x{user}{b}"), hash_slot(b"user"));
        assert_eq!(hash_slot(b"{}{user}"), crc16(b"{}{user}") % HASH_SLOTS);
        assert_eq!(hash_slot(b"{open"), crc16(b"{open") % HASH_SLOTS);
    }

    #[test]
    fn every_slot_belongs_to_exactly_the_group_that_says_so() {
        for groups in [1, 2, 3, 7, 16, 1000, 1024] {
            let shards = Shards::new(groups);
            let mut next = 0;
            for group in 0..shards.groups() {
                let slots = shards.slots(group);
                assert_eq!(slots.start, next);
                assert!(slots.clone().all(|slot| shards.group_of_slot(slot) == group));
                next = slots.end;
            }
            assert_eq!(next, HASH_SLOTS);
        }
    }
}
