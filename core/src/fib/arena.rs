//! The memory that every node of a table lives in: 64-bit cells in segments that never move.
//!
//! The writer allocates blocks of cells, fills them, and links them below a root. Once a snapshot that reaches a block
//! is published, the block is not written again until every such snapshot is gone (`table.rs` keeps the books), so a
//! reader's relaxed loads are of memory at rest. Cells are atomic because a cell is written again in its next life,
//! through a shared reference; no reader can tell.
//!
//! Windows (`windows/`) and pushed chunks (`pushed/`) are in an arena whose blocks are whole cache lines: no line of
//! theirs has anything beside it that the writer may write while they are read.
//!
//! A handle is a block's first cell: segment number in the upper bits, offset in the lower [`OFFSET_BITS`]. Freed
//! blocks are kept in lists by size class, the link in the block's own first cell.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

/// A run of cells that is allocated at once and freed with the last table or snapshot that knows it.
pub(super) type Segment = Arc<[AtomicU64]>;

/// The block at `handle`, from its first cell to the end of its segment; empty for a handle never given out.
#[inline(always)]
pub(super) fn block(segments: &[Segment], handle: u32) -> &[AtomicU64] {
    let segment = segments.get((handle >> OFFSET_BITS) as usize);
    segment
        .and_then(|cells| cells.get((handle & OFFSET_MASK) as usize..))
        .unwrap_or_default()
}

/// Cell `at` of the block at `handle`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn cell(segments: &[Segment], handle: u32, at: usize) -> Option<&AtomicU64> {
    let (segment, offset) = place(handle);
    segments.get(segment)?.get(offset + at)
}

/// The segment and the offset that `handle` names.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) const fn place(handle: u32) -> (usize, usize) {
    (
        (handle >> OFFSET_BITS) as usize,
        (handle & OFFSET_MASK) as usize,
    )
}

/// Cell `at` of `block`; 0 past its end.
#[inline(always)]
pub(super) fn load(block: &[AtomicU64], at: usize) -> u64 {
    #[cfg(test)]
    super::tests::hooks::reads();
    block.get(at).map_or(0, |cell| cell.load(Ordering::Relaxed))
}

/// Writes cell `at` of `block`, which no snapshot may reach.
#[inline]
pub(super) fn store(block: &[AtomicU64], at: usize, value: u64) {
    if let Some(cell) = block.get(at) {
        put(cell, value);
    }
}

/// Writes one cell, which no snapshot may reach.
#[inline(always)]
pub(super) fn put(cell: &AtomicU64, value: u64) {
    writes(1);
    cell.store(value, Ordering::Relaxed);
}

/// Tells the tests that `cells` cells are written.
#[inline(always)]
pub(super) fn writes(cells: usize) {
    #[cfg(test)]
    super::tests::hooks::writes(cells);
    #[cfg(not(test))]
    let _ = cells;
}

/// The allocator of a table's blocks.
#[derive(Debug)]
pub(super) struct Arena {
    segments: Arc<[Segment]>,
    /// The first free block of each size class, [`NIL`] when there is none.
    free: [u32; CLASSES],
    /// Which lists of `free` have something.
    filled: u128,
    /// Cells never used yet: the next one's handle, and how many there are in its segment.
    fresh: u32,
    fresh_cells: usize,
    /// Cells in all segments.
    cells: usize,
    max_segments: usize,
    /// Whether all blocks are whole cache lines.
    lines: bool,
}

impl Arena {
    pub(super) fn new() -> Self {
        Self {
            segments: Arc::new([]),
            free: [NIL; CLASSES],
            filled: 0,
            fresh: NIL,
            fresh_cells: 0,
            cells: 0,
            max_segments: MAX_SEGMENTS,
            lines: false,
        }
    }

    /// An arena whose blocks each begin a cache line of 64 octets; all sizes asked for must be multiples of that.
    pub(super) fn of_lines() -> Self {
        Self {
            lines: true,
            ..Self::new()
        }
    }

    pub(super) fn segments(&self) -> &Arc<[Segment]> {
        &self.segments
    }

    pub(super) fn block(&self, handle: u32) -> &[AtomicU64] {
        block(&self.segments, handle)
    }

    /// Whether one more change fits for certain: it rewrites at most one block per level.
    pub(super) fn has_room(&self) -> bool {
        self.segments.len() + CHANGE_SEGMENTS <= self.max_segments
    }

    /// Octets of all segments and of the list of them.
    pub(super) fn octets(&self) -> usize {
        self.cells * size_of::<AtomicU64>()
            + self.segments.len() * (size_of::<Segment>() + 2 * size_of::<usize>())
    }

    /// A block of at least `cells` cells, whose content is arbitrary.
    ///
    /// The caller has asked [`has_room`](Self::has_room).
    pub(super) fn allocate(&mut self, cells: usize) -> u32 {
        let class = class_above(cells);
        let size = class_cells(class);
        if let Some(handle) = self.pop(class) {
            return handle;
        }
        if self.fresh_cells >= size {
            return self.take_fresh(size);
        }
        let larger = self.filled & (u128::MAX << class);
        if larger != 0 {
            let from = larger.trailing_zeros() as usize;
            if let Some(handle) = self.pop(from) {
                self.push_pieces(handle + to_u32(size), class_cells(from) - size);
                return handle;
            }
        }
        self.push_pieces(self.fresh, self.fresh_cells);
        self.grow(size);
        self.take_fresh(size)
    }

    /// Takes back the block at `handle`, allocated for `cells` cells.
    pub(super) fn free(&mut self, handle: u32, cells: usize) {
        let class = class_above(cells);
        self.push(handle, class);
    }

    /// Whether blocks for `one` and for `other` cells are of one size.
    pub(super) fn same_size(one: usize, other: usize) -> bool {
        class_above(one) == class_above(other)
    }

    #[cfg(test)]
    pub(super) fn limit_segments(&mut self, max: usize) {
        self.max_segments = max;
    }

    fn take_fresh(&mut self, size: usize) -> u32 {
        let handle = self.fresh;
        self.fresh += to_u32(size);
        self.fresh_cells -= size;
        handle
    }

    fn grow(&mut self, size: usize) {
        let step = match self.cells {
            0..SMALL_TABLE_CELLS => {
                (self.cells / 4).clamp(FIRST_SEGMENT_CELLS, SMALL_SEGMENT_CELLS)
            }
            SMALL_TABLE_CELLS..MEDIUM_TABLE_CELLS => MEDIUM_SEGMENT_CELLS,
            MEDIUM_TABLE_CELLS.. => SEGMENT_CELLS,
        };
        let step = step.max(size + if self.lines { LINE_CELLS } else { 0 });
        writes(step + 2 * self.segments.len());
        let segment: Segment = (0..step).map(|_| AtomicU64::new(0)).collect();
        // The segment's first cells that begin no line; its last ones then are none either.
        let pad = if self.lines {
            let begin = segment.as_ptr().addr() / size_of::<AtomicU64>();
            let pad = begin.wrapping_neg() % LINE_CELLS;
            // No block has handle 0, which says that there is none.
            if pad == 0 && self.segments.is_empty() {
                LINE_CELLS
            } else {
                pad
            }
        } else {
            0
        };
        self.fresh = to_u32(self.segments.len()) << OFFSET_BITS | to_u32(pad);
        self.fresh_cells = (step - pad) / LINE_CELLS * LINE_CELLS;
        self.cells += step;
        self.segments = self
            .segments
            .iter()
            .cloned()
            .chain([segment])
            .collect::<Vec<_>>()
            .into();
    }

    /// Frees a stretch of cells that need not be one block's: cut into the largest blocks that fit.
    fn push_pieces(&mut self, mut handle: u32, mut cells: usize) {
        while cells > 0 {
            let class = class_below(cells);
            self.push(handle, class);
            handle += to_u32(class_cells(class));
            cells -= class_cells(class);
        }
    }

    fn push(&mut self, handle: u32, class: usize) {
        if let Some(head) = self.free.get_mut(class) {
            store(block(&self.segments, handle), 0, u64::from(*head));
            *head = handle;
            self.filled |= 1 << class;
        }
    }

    fn pop(&mut self, class: usize) -> Option<u32> {
        let head = self.free.get_mut(class).filter(|head| **head != NIL)?;
        let handle = *head;
        *head = (load(block(&self.segments, handle), 0) & 0xffff_ffff) as u32;
        if *head == NIL {
            self.filled &= !(1 << class);
        }
        Some(handle)
    }
}

/// The cells of a block of size class `class`: 1 to 16 one by one, then eight classes to each doubling.
const fn class_cells(class: usize) -> usize {
    if class < 16 {
        class + 1
    } else {
        (9 + (class & 7)) << (class / 8 - 1)
    }
}

/// The cells that a block of `cells` cells takes.
pub(super) const fn allocated(cells: usize) -> usize {
    class_cells(class_above(cells))
}

/// The smallest class that holds `cells` cells.
const fn class_above(cells: usize) -> usize {
    if cells <= 16 {
        return cells.saturating_sub(1);
    }
    // Eighths of the power of two below `cells`.
    let doubling = (cells - 1).ilog2() as usize - 3;
    (doubling << 3) + ((cells - 1) >> doubling)
}

/// The largest class that `cells` cells hold; `cells` is not 0.
const fn class_below(cells: usize) -> usize {
    let class = class_above(cells);
    if class_cells(class) > cells {
        class - 1
    } else {
        class
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "cells of a segment and segments of an arena fit 18 bits"
)]
const fn to_u32(cells: usize) -> u32 {
    cells as u32
}

/// Bits of a handle that count cells within a segment.
const OFFSET_BITS: u32 = 14;
const OFFSET_MASK: u32 = (1 << OFFSET_BITS) - 1;
const MAX_SEGMENTS: usize = 1 << (32 - OFFSET_BITS);

/// 32 KiB, set up in some 15 microseconds even where all of its pages are new to the process, which is inside the bound
/// of one update; and too little for an allocator to map it by itself, as many do from 128 KiB on. Larger blocks have
/// segments of their own.
const SEGMENT_CELLS: usize = 1 << 12;
/// Small tables grow by a quarter of what they have and by no more than 4 KiB, so that ten routes do not pay for a
/// hundred, nor a hundred for a thousand.
const SMALL_SEGMENT_CELLS: usize = 512;
/// 1 KiB: what every table has from the start is in its first segment.
const FIRST_SEGMENT_CELLS: usize = 128;
const SMALL_TABLE_CELLS: usize = 16 * SMALL_SEGMENT_CELLS;
const MEDIUM_SEGMENT_CELLS: usize = 2048;
const MEDIUM_TABLE_CELLS: usize = 64 * MEDIUM_SEGMENT_CELLS;

/// Cells of a cache line.
pub(super) const LINE_CELLS: usize = 8;

/// More segments than one change can fill: in the arena of lines a route of /8 makes 32 blocks of pushed chunks anew,
/// each of more than half a segment at the most; in the others there are 16 levels.
pub(super) const CHANGE_SEGMENTS: usize = 64;

const CLASSES: usize = 120;
const NIL: u32 = u32::MAX;

const _: () = assert!(class_above(1 << OFFSET_BITS) < CLASSES);
const _: () = {
    let mut cells = 1;
    while cells <= 1 << OFFSET_BITS {
        assert!(class_cells(class_above(cells)) >= cells);
        assert!(class_cells(class_below(cells)) <= cells);
        cells += 1;
    }
};
