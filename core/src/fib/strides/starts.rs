//! In which of the 256 slots of a node runs start.

/// A bit for each slot.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Starts([u64; 4]);

impl Starts {
    /// The starts that so many 32 slots each say.
    pub(super) fn of(groups: [u32; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = groups.map(u64::from);
        Self([a | b << 32, c | d << 32, e | f << 32, g | h << 32])
    }

    /// What [`of`](Self::of) makes starts of.
    pub(super) fn groups(self) -> [u32; 8] {
        let [a, b, c, d] = self.0.map(|word| {
            let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
            [[a, b, c, d], [e, f, g, h]].map(u32::from_le_bytes)
        });
        let ([a, b], [c, d], [e, f], [g, h]) = (a, b, c, d);
        [a, b, c, d, e, f, g, h]
    }

    /// Notes that a run starts at `slot`.
    pub(super) fn start(&mut self, slot: usize) {
        if let Some(word) = self.0.get_mut(slot / 64) {
            *word |= 1 << (slot % 64);
        }
    }

    pub(super) fn has(self, slot: usize) -> bool {
        let word = self.0.get(slot / 64);
        word.is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    /// Those at slots below `slot`.
    pub(super) fn below(self, slot: usize) -> Self {
        let mut words = self.0;
        for (first, word) in (0..).step_by(64).zip(&mut words) {
            *word &= match slot.saturating_sub(first) {
                kept @ 0..64 => (1 << kept) - 1,
                _ => u64::MAX,
            };
        }
        Self(words)
    }

    /// Those at `slot` and above.
    pub(super) fn from(self, slot: usize) -> Self {
        let Self(below) = self.below(slot);
        let mut words = self.0;
        for (word, below) in words.iter_mut().zip(below) {
            *word ^= below;
        }
        Self(words)
    }

    /// Those of both.
    pub(super) fn with(self, other: Self) -> Self {
        let mut words = self.0;
        for (word, other) in words.iter_mut().zip(other.0) {
            *word |= other;
        }
        Self(words)
    }

    pub(super) fn count(self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == [0; 4]
    }
}

impl Iterator for Starts {
    type Item = usize;

    /// Takes the first slot out.
    fn next(&mut self) -> Option<usize> {
        let (first, word) = (0..)
            .step_by(64)
            .zip(&mut self.0)
            .find(|(_, word)| **word != 0)?;
        let slot = first + word.trailing_zeros() as usize;
        *word &= *word - 1;
        Some(slot)
    }
}
