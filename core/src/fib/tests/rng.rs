//! A small seeded generator (splitmix64), so that a failure names its seed and repeats.

pub(in crate::fib) struct Rng(pub(in crate::fib) u64);

impl Rng {
    pub(in crate::fib) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(in crate::fib) fn wide(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }

    pub(in crate::fib) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}
