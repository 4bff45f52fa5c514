//! Hashes for comparing replicas: they tell different states apart unless somebody tries hard. Not cryptographic.

const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads every bit of `value` over all bits of the result.
pub(super) fn mix(value: u64) -> u64 {
    let product = u128::from(value ^ PRIME) * u128::from(0xd6e8_feb8_6659_fd93_u64);
    (product as u64) ^ (product >> 64) as u64
}

fn absorb(state: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let state = words
        .iter()
        .fold(state, |state, word| mix(state ^ u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(state ^ u64::from_le_bytes(last)).wrapping_add(bytes.len() as u64)
}

/// The hash of a key, the same on every node: it says where a walk over the keys stands.
pub(super) fn key_hash(key: &[u8]) -> u64 {
    absorb(PRIME, key)
}

/// The digest of one record.
pub(super) fn record_digest(key: &[u8], value: &[u8], revision: u64) -> u64 {
    mix(absorb(absorb(mix(revision), key), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn records_that_differ_have_different_digests() {
        let digests: BTreeSet<u64> = [
            ("a", "b", 1),
            ("a", "b", 2),
            ("ab", "", 1),
            ("", "ab", 1),
            ("b", "a", 1),
            ("a", "b\0", 1),
            ("a", "12345678", 1),
            ("a", "12345678\0", 1),
            ("a", "1234567812345678", 1),
        ]
        .iter()
        .map(|(key, value, revision)| record_digest(key.as_bytes(), value.as_bytes(), *revision))
        .collect();
        assert_eq!(digests.len(), 9);
    }
}
