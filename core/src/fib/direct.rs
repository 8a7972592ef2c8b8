//! The root of a large IPv4 table as addresses: what a lookup needs of a root slot in one word.
//!
//! Beside the slots, which name blocks by handle, the writer keeps for each of them the address of its chunk's first
//! cell and its next hop code, and the chunk's top. A lookup of `simd/narrow.rs` then goes from root to chunk without the
//! list of segments, and knows at once which cell of the chunk to load.
//! Segments never move, and who holds the words holds the segments, too: the writer, or a snapshot.
//!
//! Portable code takes the tops from here. Tables that have pushed chunks (`pushed/`) publish the addresses of those in
//! their place.
//!
//! Only x86-64 reads addresses, so elsewhere there are no words; nor where an address needs more than the 48 bits that a
//! word has for it. Lookups then go by the slots (`batch.rs`).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem;

use super::arena::{Segment, block, load, writes};
use super::node::{Entry, TOP_CELL};

/// What the root has for a slot: a word (bits 0..16 next hop code, 16..64 address, sign-extended), and the top of a
/// chunk that is not flat.
pub(super) type RootWord = [u64; 2];

/// The words of a root that is laid out slot by slot.
#[derive(Clone, Debug, Default)]
pub(super) struct Direct {
    /// One word for each slot; none when the root is a node, in IPv6, and where addresses do not fit.
    words: Vec<RootWord>,
    /// What the words of slots without a chunk lead to.
    pub(super) absent: u32,
}

impl Direct {
    /// The words of `slots`, those without a chunk leading to the block at `absent`. They are written over `words`.
    pub(super) fn new(
        mut words: Vec<RootWord>,
        segments: &[Segment],
        slots: &[u64],
        absent: u32,
    ) -> Self {
        writes(2 * slots.len());
        words.clear();
        // At once: a list that grows is copied several times over, and the change that lays the root out waits for it.
        words.reserve_exact(slots.len());
        for same in slots.chunk_by(PartialEq::eq) {
            let slot = same.first().copied().unwrap_or_default();
            let Some(word) = word_of(segments, Entry(slot), absent) else {
                return Self {
                    words: Vec::new(),
                    absent,
                };
            };
            words.resize(words.len() + same.len(), word);
        }
        Self { words, absent }
    }

    /// A copy of the words for a snapshot.
    pub(super) fn words(&self) -> Box<[RootWord]> {
        self.words.as_slice().into()
    }

    /// The word of root slot `slot`.
    pub(super) fn word(&self, slot: usize) -> Option<u64> {
        self.words.get(slot).map(|[word, _]| *word)
    }

    /// Octets of the words.
    pub(super) fn octets(&self) -> usize {
        size_of_val(self.words.as_slice())
    }

    /// Follows root slot `slot`, which says `entry`.
    pub(super) fn set(&mut self, segments: &[Segment], slot: usize, entry: Entry) {
        let Some(place) = self.words.get_mut(slot) else {
            return;
        };
        writes(2);
        match word_of(segments, entry, self.absent) {
            Some(word) => *place = word,
            None => self.words = Vec::new(),
        }
    }

    /// Follows a root slot that has another next hop.
    pub(super) fn set_code(&mut self, slot: usize, code: u16) {
        if let Some(word) = self.words.get_mut(slot) {
            writes(1);
            let [word, _] = word;
            *word = *word & !0xffff | u64::from(code);
        }
    }

    /// Lets the words of slots without a chunk lead to the block at `absent`.
    pub(super) fn set_absent(&mut self, segments: &[Segment], slots: &[u64], absent: u32) {
        if self.absent == absent || self.words.is_empty() {
            return;
        }
        *self = Self::new(mem::take(&mut self.words), segments, slots, absent);
    }

    /// Whether the words say what `slots` do.
    #[cfg(test)]
    pub(super) fn agrees(&self, segments: &[Segment], slots: &[u64]) -> bool {
        self.words.is_empty()
            || self.words == Self::new(Vec::new(), segments, slots, self.absent).words
    }

    /// Does without words from now on, as where addresses do not fit.
    #[cfg(test)]
    pub(super) fn turn_off(&mut self) {
        self.words = Vec::new();
    }
}

/// The word of `entry`, or of the block at `absent` when it has no child.
fn word_of(segments: &[Segment], entry: Entry, absent: u32) -> Option<RootWord> {
    let handle = if entry.has_child() {
        entry.handle()
    } else {
        absent
    };
    // A flat chunk has something else there, which nobody reads.
    let top = load(block(segments, handle), TOP_CELL);
    Some([word(segments, handle, entry.code())?, top])
}

/// The address of the block at `handle` and `code` in one word, if they fit.
#[cfg(target_arch = "x86_64")]
pub(super) fn word(segments: &[Segment], handle: u32, code: u16) -> Option<u64> {
    let block = block(segments, handle);
    // Exposed with what follows it: `simd/narrow.rs` makes a pointer of it again.
    let address = block.as_ptr().expose_provenance() as u64;
    let fits = !block.is_empty() && (address << 16).cast_signed() >> 16 == address.cast_signed();
    fits.then_some(address << 16 | u64::from(code))
}

/// No address: nothing here reads one.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn word(_: &[Segment], _: u32, _: u16) -> Option<u64> {
    None
}
