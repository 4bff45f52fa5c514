//! The only source of chance in a simulation.

/// A small seeded generator (SplitMix64). The same seed gives the same numbers in every build and on every machine:
/// it uses integers only.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator for this seed; neighbouring seeds give unrelated numbers.
    pub const fn new(seed: u64) -> Self {
        Self(seed ^ 0x5ee5_0fac_1e5a_10ca)
    }

    /// The next 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; zero for a bound of zero.
    pub const fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        ((self.bits() as u128 * bound as u128) >> 64) as u64
    }

    /// A number from `low` up to and including `high`.
    pub const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// An index into a collection of this length.
    pub const fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// True in so many of a thousand cases.
    pub const fn chance(&mut self, permille: u64) -> bool {
        self.below(1_000) < permille
    }

    /// One of the choices, which must not be empty.
    pub const fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }

    /// A number with about an exponential distribution and about this mean: uniform within each halving, so that it
    /// needs no floating point.
    pub const fn exponential(&mut self, mean: u64) -> u64 {
        let bits = self.bits();
        let halvings = (bits | 1 << 40).trailing_zeros() as u64;
        let fraction = bits >> 48;
        (mean * ((halvings << 16) + fraction) / 3 * 2) >> 16
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn draws_have_the_promised_range_and_mean() {
        let mut random = Random::new(7);
        let mut sum = 0;
        for _ in 0..10_000 {
            assert!(random.below(3) < 3);
            assert!((5..=6).contains(&random.between(5, 6)));
            sum += random.exponential(1_000);
        }
        assert!((900..1_100).contains(&(sum / 10_000)), "mean {}", sum / 10_000);
    }
}
