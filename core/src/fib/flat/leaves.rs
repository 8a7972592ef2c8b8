//! The leaves of a tail below a flat chunk: one for each of its 256 slots, with what the chunk's slot says pushed into
//! those for which the tail has nothing.
//!
//! | cells | content |
//! |-------|---------|
//! | 1 | nothing |
//! | 1 | epoch, as in a flat chunk |
//! | 32 or 64 | next hop codes, of one octet or of two, low ones first |

use core::sync::atomic::AtomicU64;

use super::super::arena::store;
use super::super::node::Node;

/// The cells of a tail's leaves.
pub(super) const fn cells(wide: bool) -> usize {
    LEAVES_AT + if wide { SLOTS / 4 } else { SLOTS / 8 }
}

/// Whether `code` needs a leaf of two octets.
pub(super) const fn is_wide(code: u16) -> bool {
    code > 0xff
}

/// Writes what `tail` says, or `code` where that is nothing, into `block`. Gives the largest code among them.
pub(super) fn write(block: &[AtomicU64], tail: Node<'_>, code: u16, wide: bool, epoch: u64) -> u16 {
    let mut codes = [code; SLOTS];
    let (mut from, mut said, mut largest) = (0, code, code);
    for (half, (mut starts, last)) in tail.halves().enumerate() {
        let mut leaf = last.wrapping_sub(starts.count_ones() as usize);
        while starts != 0 {
            let slot = half * HALF + starts.trailing_zeros() as usize;
            starts &= starts - 1;
            leaf = leaf.wrapping_add(1);
            fill(&mut codes, from, slot, said);
            let own = tail.leaf(leaf);
            (from, said) = (slot, if own == 0 { code } else { own });
            largest = largest.max(said);
        }
    }
    fill(&mut codes, from, SLOTS, said);
    store(block, 1, epoch);
    if wide {
        for (at, four) in codes.as_chunks::<4>().0.iter().enumerate() {
            let cell = four
                .iter()
                .rev()
                .fold(0, |cell, code| cell << 16 | u64::from(*code));
            store(block, LEAVES_AT + at, cell);
        }
    } else {
        for (at, eight) in codes.as_chunks::<8>().0.iter().enumerate() {
            let octets = eight.map(|code| (code & 0xff) as u8);
            store(block, LEAVES_AT + at, u64::from_le_bytes(octets));
        }
    }
    largest
}

fn fill(codes: &mut [u16; SLOTS], from: usize, to: usize, code: u16) {
    if let Some(codes) = codes.get_mut(from..to) {
        codes.fill(code);
    }
}

/// The cell of the first leaves.
pub(in super::super) const LEAVES_AT: usize = 2;
/// Slots of a tail.
pub(in super::super) const SLOTS: usize = 256;
/// Slots that share a group cell.
const HALF: usize = 32;
