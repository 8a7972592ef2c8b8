//! The octets that a transfer moves, and the digest that both ends compare.
//!
//! Nothing here touches a socket: [`SeededOctets`] makes the same octets from the same seed on
//! every machine, [`Digest`] is XXH64 (seed 0) over any sequence of slices. Both run at several
//! octets a cycle, so that the transfer measures the overlay and not its own ends. XXH64 finds
//! lost, doubled, swapped and changed octets; it is no protection against someone who wants a
//! collision, and the demo has nobody like that between its ends.

/// A pseudo-random sequence of octets: SplitMix64, each value as eight little-endian octets.
#[derive(Clone, Debug)]
pub(super) struct SeededOctets {
    state: u64,
}

impl SeededOctets {
    /// Starts the sequence that belongs to `seed`.
    pub(super) const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Writes the next octets into the whole of `buffer`.
    ///
    /// Each call starts on a fresh value: a buffer whose length is no multiple of eight discards
    /// the rest of its last one.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            for (octet, value) in chunk.iter_mut().zip(self.next().to_le_bytes()) {
                *octet = value;
            }
        }
    }

    const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = self.state;
        let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }
}

/// XXH64 with seed 0, fed in slices of any length.
#[derive(Clone, Debug)]
pub(super) struct Digest {
    lanes: [u64; 4],
    /// What does not fill a stripe yet.
    pending: [u8; STRIPE],
    pending_octets: usize,
    octets: u64,
}

impl Digest {
    /// The digest of nothing so far.
    pub(super) const fn new() -> Self {
        Self {
            lanes: [
                PRIME_1.wrapping_add(PRIME_2),
                PRIME_2,
                0,
                0_u64.wrapping_sub(PRIME_1),
            ],
            pending: [0; STRIPE],
            pending_octets: 0,
            octets: 0,
        }
    }

    /// Takes the next octets.
    pub(super) fn update(&mut self, mut octets: &[u8]) {
        self.octets = self.octets.wrapping_add(octets.len() as u64);
        if self.pending_octets > 0 {
            let take = octets.len().min(STRIPE - self.pending_octets);
            let (head, rest) = octets.split_at(take);
            for (to, from) in self.pending.iter_mut().skip(self.pending_octets).zip(head) {
                *to = *from;
            }
            self.pending_octets += take;
            octets = rest;
            if self.pending_octets < STRIPE {
                return;
            }
            let stripe = self.pending;
            self.stripe(&stripe);
            self.pending_octets = 0;
        }
        let (stripes, rest) = octets.as_chunks::<STRIPE>();
        for stripe in stripes {
            self.stripe(stripe);
        }
        for (to, from) in self.pending.iter_mut().zip(rest) {
            *to = *from;
        }
        self.pending_octets = rest.len();
    }

    /// The digest of everything taken so far.
    pub(super) fn finish(&self) -> u64 {
        let [a, b, c, d] = self.lanes;
        let mut hash = if self.octets >= STRIPE as u64 {
            let mut hash = a
                .rotate_left(1)
                .wrapping_add(b.rotate_left(7))
                .wrapping_add(c.rotate_left(12))
                .wrapping_add(d.rotate_left(18));
            for lane in self.lanes {
                hash = (hash ^ round(0, lane))
                    .wrapping_mul(PRIME_1)
                    .wrapping_add(PRIME_4);
            }
            hash
        } else {
            PRIME_5
        };
        hash = hash.wrapping_add(self.octets);
        let pending = self.pending.get(..self.pending_octets).unwrap_or_default();
        let (words, rest) = pending.as_chunks::<8>();
        for word in words {
            hash = (hash ^ round(0, u64::from_le_bytes(*word)))
                .rotate_left(27)
                .wrapping_mul(PRIME_1)
                .wrapping_add(PRIME_4);
        }
        let (halves, rest) = rest.as_chunks::<4>();
        for half in halves {
            hash = (hash ^ u64::from(u32::from_le_bytes(*half)).wrapping_mul(PRIME_1))
                .rotate_left(23)
                .wrapping_mul(PRIME_2)
                .wrapping_add(PRIME_3);
        }
        for octet in rest {
            hash = (hash ^ u64::from(*octet).wrapping_mul(PRIME_5))
                .rotate_left(11)
                .wrapping_mul(PRIME_1);
        }
        hash = (hash ^ (hash >> 33)).wrapping_mul(PRIME_2);
        hash = (hash ^ (hash >> 29)).wrapping_mul(PRIME_3);
        hash ^ (hash >> 32)
    }

    /// How many octets it has taken.
    pub(super) const fn octets(&self) -> u64 {
        self.octets
    }

    fn stripe(&mut self, stripe: &[u8; STRIPE]) {
        let (words, _) = stripe.as_chunks::<8>();
        for (lane, word) in self.lanes.iter_mut().zip(words) {
            *lane = round(*lane, u64::from_le_bytes(*word));
        }
    }
}

const fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(PRIME_2))
        .rotate_left(31)
        .wrapping_mul(PRIME_1)
}

const STRIPE: usize = 32;
const PRIME_1: u64 = 0x9e37_79b1_85eb_ca87;
const PRIME_2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const PRIME_3: u64 = 0x1656_67b1_9e37_79f9;
const PRIME_4: u64 = 0x85eb_ca77_c2b2_ae63;
const PRIME_5: u64 = 0x27d4_eb2f_1656_67c5;

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(octets: &[u8]) -> u64 {
        let mut digest = Digest::new();
        digest.update(octets);
        digest.finish()
    }

    #[test]
    fn digest_equals_the_published_values_of_xxh64() {
        assert_eq!(digest(b""), 0xef46_db37_51d8_e999);
        assert_eq!(digest(b"a"), 0xd24e_c4f1_a98c_6e5b);
        assert_eq!(digest(b"abc"), 0x44bc_2cf5_ad77_0999);
        assert_eq!(
            digest(b"Nobody inspects the spammish repetition"),
            0xfbce_a83c_8a37_8bf1
        );
    }

    #[test]
    fn digest_does_not_depend_on_how_the_octets_are_cut() {
        let mut octets = [0; 1000];
        SeededOctets::new(7).fill(&mut octets);
        let whole = digest(&octets);
        for step in 1..100 {
            let mut cut = Digest::new();
            for slice in octets.chunks(step) {
                cut.update(slice);
            }
            assert_eq!(cut.finish(), whole, "in slices of {step}");
            assert_eq!(cut.octets(), 1000);
        }
    }

    #[test]
    fn digest_notices_a_changed_a_lost_and_a_swapped_octet() {
        let mut octets = [0; 777];
        SeededOctets::new(1).fill(&mut octets);
        let whole = digest(&octets);
        assert_ne!(digest(&octets[1..]), whole);
        assert_ne!(digest(&octets[..776]), whole);
        octets.swap(100, 500);
        assert_ne!(digest(&octets), whole);
    }

    #[test]
    fn seeded_octets_are_those_of_splitmix64() {
        let mut octets = [0; 16];
        SeededOctets::new(1_234_567).fill(&mut octets);
        assert_eq!(octets[..8], 6_457_827_717_110_365_317_u64.to_le_bytes());
        assert_eq!(octets[8..], 3_203_168_211_198_807_973_u64.to_le_bytes());
    }
}
