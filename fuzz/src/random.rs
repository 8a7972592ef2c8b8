//! Random numbers and random changes of octets that are the same in every run.

/// Generator of random numbers: SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts a sequence.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 when `limit` is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = limit.max(1) as u64;
        usize::try_from(self.draw() % limit).unwrap_or_default()
    }

    /// Any octet.
    pub const fn octet(&mut self) -> u8 {
        self.draw().to_be_bytes()[0]
    }

    /// One member of `pool` with one to eight changes: octets and bits set, cut, doubled, put in,
    /// spliced with another member.
    pub fn mutate(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let Some(mut bytes) = pool.get(self.below(pool.len())).cloned() else {
            return Vec::new();
        };
        for _ in 0..=self.below(8) {
            let at = self.below(bytes.len());
            match self.below(8) {
                0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                2 if !bytes.is_empty() => bytes[at] = self.octet(),
                3 if !bytes.is_empty() => bytes[at] = EDGES[self.below(EDGES.len())],
                4 => bytes.truncate(at),
                5 => {
                    let octet = self.octet();
                    bytes.insert(at, octet);
                }
                6 => {
                    let end = (at + self.below(16)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
                _ => {
                    let other = &pool[self.below(pool.len())];
                    let from = self.below(other.len());
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[from..]);
                }
            }
            bytes.truncate(MAX_OCTETS);
        }
        bytes
    }
}

/// Octets at which lengths, flags and types change their meaning.
const EDGES: &[u8] = &[
    0x00, 0x01, 0x03, 0x04, 0x06, 0x07, 0x08, 0x11, 0x29, 0x2b, 0x2c, 0x33, 0x3a, 0x3c, 0x40, 0x45,
    0x4f, 0x60, 0x7f, 0x80, 0xfe, 0xff,
];

const MAX_OCTETS: usize = 4096;
