//! Lanes of 16, 32 or 64 bits copied between blocks of cells, and moved within one, from any place to any other.
//!
//! What is written no snapshot may reach. On x86-64 the octets are moved (`simd/moves.rs`); elsewhere, and beside that in
//! the tests, the cells are put together one by one.

use core::sync::atomic::AtomicU64;
#[cfg(any(test, not(target_arch = "x86_64")))]
use core::sync::atomic::Ordering;

#[cfg(any(test, not(target_arch = "x86_64")))]
use super::arena::put;
#[cfg(target_arch = "x86_64")]
use super::arena::writes;
use super::arena::{load, store};
#[cfg(target_arch = "x86_64")]
use super::simd::move_octets;

/// Copies the first `count` cells of a block to another.
pub(super) fn copy_cells(from: &[AtomicU64], to: &[AtomicU64], count: usize) {
    move_lanes::<64>(from, 0, to, 0, count);
}

/// Moves `count` lanes of `BITS` bits each, low bits first, from lane `source` of a block to lane `target` of another or
/// the same.
#[inline]
pub(super) fn move_lanes<const BITS: u32>(
    from: &[AtomicU64],
    source: usize,
    to: &[AtomicU64],
    target: usize,
    count: usize,
) {
    #[cfg(target_arch = "x86_64")]
    {
        let octets = (BITS / 8) as usize;
        writes((count * octets).div_ceil(8));
        move_octets(from, source * octets, to, target * octets, count * octets);
    }
    #[cfg(not(target_arch = "x86_64"))]
    move_by_cells::<BITS>(from, source, to, target, count);
}

/// The same cell by cell.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn move_by_cells<const BITS: u32>(
    from: &[AtomicU64],
    source: usize,
    to: &[AtomicU64],
    target: usize,
    count: usize,
) {
    let lanes = (64 / BITS) as usize;
    let head = (target.wrapping_neg() % lanes).min(count);
    let whole = (count - head) / lanes;
    let first = source + head;
    let shift = shift_of::<BITS>(first);
    let one = |at: usize| set_lane::<BITS>(to, target + at, lane::<BITS>(from, source + at));
    let (heads, tail) = (0..head, head + whole * lanes..count);
    let targets = to.get((target + head) / lanes..).unwrap_or_default();
    let sources = from.get(first / lanes..).unwrap_or_default();
    let cell = |at: usize| {
        sources
            .get(at)
            .map_or(0, |cell| cell.load(Ordering::Relaxed))
    };
    // In either direction a lane is written only after it was read.
    if target <= source {
        heads.for_each(one);
        for (at, to) in targets.iter().enumerate().take(whole) {
            put(to, across(cell(at), cell(at + 1), shift));
        }
        tail.for_each(one);
    } else {
        let mut high = cell(whole);
        tail.rev().for_each(one);
        for (at, to) in targets.iter().enumerate().take(whole).rev() {
            let low = cell(at);
            put(to, across(low, high, shift));
            high = low;
        }
        heads.rev().for_each(one);
    }
}

/// The cell that begins `shift` bits within `low` and ends within `high`.
#[cfg(any(test, not(target_arch = "x86_64")))]
const fn across(low: u64, high: u64, shift: u32) -> u64 {
    // Twice, since a shift by 64 is none.
    low >> shift | (high << 1) << (63 - shift)
}

/// Bits before `lane` in its cell.
#[expect(
    clippy::cast_possible_truncation,
    reason = "lanes of a block fit 18 bits"
)]
#[cfg(any(test, not(target_arch = "x86_64")))]
const fn shift_of<const BITS: u32>(lane: usize) -> u32 {
    (lane as u32 % (64 / BITS)) * BITS
}

/// Lane `lane` of a block.
pub(super) fn lane<const BITS: u32>(cells: &[AtomicU64], lane: usize) -> u64 {
    let lanes = (64 / BITS) as usize;
    load(cells, lane / lanes) >> (lane % lanes * BITS as usize) & (u64::MAX >> (64 - BITS))
}

/// Writes lane `lane` of a block.
pub(super) fn set_lane<const BITS: u32>(cells: &[AtomicU64], lane: usize, value: u64) {
    let lanes = (64 / BITS) as usize;
    let place = lane % lanes * BITS as usize;
    let mask = (u64::MAX >> (64 - BITS)) << place;
    store(
        cells,
        lane / lanes,
        load(cells, lane / lanes) & !mask | value << place,
    );
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn block(first: u64) -> Vec<AtomicU64> {
        let cell = |at: u64| (first + at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..12).map(|at| AtomicU64::new(cell(at))).collect()
    }

    fn cells(block: &[AtomicU64]) -> Vec<u64> {
        block
            .iter()
            .map(|cell| load(core::slice::from_ref(cell), 0))
            .collect()
    }

    /// Every stretch of up to `most` lanes, to every place: within a block and to another, by either twin.
    fn agree<const BITS: u32>(most: usize) {
        for (source, target) in (0..most).flat_map(|from| (0..most).map(move |to| (from, to))) {
            for count in 0..=most {
                let [one, other] = [block(1), block(1)];
                move_lanes::<BITS>(&one, source, &one, target, count);
                move_by_cells::<BITS>(&other, source, &other, target, count);
                assert_eq!(cells(&one), cells(&other), "{source} {target} {count}");
                let [from, one, other] = [block(1), block(20), block(20)];
                move_lanes::<BITS>(&from, source, &one, target, count);
                move_by_cells::<BITS>(&from, source, &other, target, count);
                assert_eq!(cells(&one), cells(&other), "{source} {target} {count}");
            }
        }
    }

    #[test]
    fn lanes_go_where_they_are_to_go_whatever_moves_them() {
        agree::<16>(17);
        agree::<32>(11);
        agree::<64>(6);
    }

    #[test]
    fn what_is_not_in_its_block_is_not_moved() {
        let [one, other] = [block(1), block(1)];
        move_lanes::<64>(&one, 11, &one, 0, 2);
        move_lanes::<16>(&one, 0, &one, 47, 2);
        assert_eq!(cells(&one), cells(&other));
    }
}
