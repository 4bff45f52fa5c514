//! Integers in as few bytes as they need: seven bits a byte, the lowest first, the high bit set on all but the last.

use bytes::BufMut;

/// The longest encoding of a number.
pub(crate) const MAX_BYTES: usize = 10;

/// Appends a number.
pub(crate) fn put(mut number: u64, to: &mut impl BufMut) {
    while number >= 0x80 {
        to.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    to.put_u8(number as u8);
}

/// Takes a number off the front; `None` if no whole number of 64 bits is there.
pub(crate) fn take(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for (index, byte) in from.iter().take(MAX_BYTES).enumerate() {
        let bits = u64::from(byte & 0x7f);
        // The tenth byte holds the 64th bit.
        if index == MAX_BYTES - 1 && bits > 1 {
            return None;
        }
        number |= bits << (7 * index);
        if byte & 0x80 == 0 {
            *from = from.get(index + 1..)?;
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn numbers_come_back_and_what_is_none_is_refused() {
        for number in [0, 1, 127, 128, 300, 1 << 35, u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put(number, &mut bytes);
            assert!(bytes.len() <= MAX_BYTES);
            for cut in 0..bytes.len() {
                assert_eq!(take(&mut &bytes[..cut]), None);
            }
            bytes.push(7);
            let mut rest = &bytes[..];
            assert_eq!(take(&mut rest), Some(number));
            assert_eq!(rest, [7]);
        }
        assert_eq!(take(&mut &[0xff; 10][..]), None, "more than 64 bits");
        assert_eq!(take(&mut &[0x80; 20][..]), None, "never ends");
    }
}
