//! Where the windows are: an extendible hash of their prefixes, in pages of 64.
//!
//! A page has eight lines of eight windows, and is split in two by the next bit of their hashes when a window finds its
//! line full; the directory doubles when there is no such bit left. It is asked for and written by `mod.rs` alone, and
//! knows of a window only where it is, how many lines it has, and the prefix that its first line begins with.
//!
//! | cells of a page | content |
//! |-----------------|---------|
//! | 8 * 8 | lines: eight 16-bit tags (0: none), then for each six octets: address and 16 - log2(lines) in its low bits |
//! | 32 | the same windows' handles, two a cell |
//! | 2 | depth: leading bits of a hash that its windows share; epoch |
//!
//! Pages are copied on write, as windows are. Prefixes that agree in all bits of a directory and in the line have no
//! place beyond the eighth: what wants one is told so ([`None`]), after a bounded number of splits.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

use super::super::address::Address;
use super::super::arena::{load, store, writes};
use super::super::changes::{Change, Changes};
use super::super::hashed::halves;
use super::super::log::Log;
use super::super::moves::copy_cells;
use super::super::node::ROOT_STRIDE;
use super::super::simd::ask_for_block;
use super::super::table::Fib;
use super::Filled;
use super::line::{EPOCH_SHIFT, LINE, SPLIT, Window};

/// The writer's side of the hash.
#[derive(Debug)]
pub(super) struct Hash {
    /// The page for each value of the first `depth` bits of a hash.
    pub(super) directory: Vec<u32>,
    /// Where those pages are.
    pub(super) addresses: Vec<u64>,
    pub(super) depth: u8,
    pub(super) filled: Filled,
    /// The /9, a bit each, in which there is, or has been, a root slot with a child.
    pub(super) busy: [u64; 8],
    /// The places of `addresses` that changed.
    pub(super) log: Log,
    /// What changed, for copies that follow.
    pub(super) changes: Arc<Changes>,
}

/// Prefixes of one length that windows are of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::fib) struct Kind {
    /// Length of the prefix: bits before the window's 16.
    pub(in crate::fib) len: u8,
    pub(in crate::fib) factor: u64,
    /// What the last two bits of its tags are.
    pub(in crate::fib) number: u64,
}

impl Kind {
    const fn new(len: u8, number: u64) -> Self {
        Self {
            len,
            factor: FACTOR.wrapping_mul(2 * number + 1),
            number,
        }
    }

    /// The hash of the prefix that an address with the first half `high` begins with.
    #[inline(always)]
    pub(in crate::fib) const fn hash(self, high: u64) -> u64 {
        (high >> (64 - self.len as u32)).wrapping_mul(self.factor)
    }

    /// The tag of a prefix with this hash; not 0, which stands for an empty slot.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "16 bits of a hash")]
    pub(in crate::fib) const fn tag(self, hash: u64) -> u16 {
        (hash >> 16 & 0xfffc | self.number) as u16
    }

    /// The 16 bits of `high` after the prefix.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "16 bits")]
    pub(in crate::fib) const fn slot(self, high: u64) -> u16 {
        (high >> (48 - self.len as u32)) as u16
    }
}

/// Where a page has a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    page: u32,
    /// The slot: eight to a line.
    slot: usize,
    pub(super) window: Window,
}

impl<A: Address> Fib<A> {
    /// Asks for what a change of the route for `key`/`len` will read of the hash, while the trie is changed: in a large
    /// table it is in no near cache.
    pub(in crate::fib) fn ask_for_windows(&self, key: u128, len: u8) {
        let Some(hash) = self.windows.on.as_ref().filter(|_| len > 24) else {
            return;
        };
        let (high, _) = halves(key);
        let kinds: &[Kind] = match len {
            ..=32 => &[OF_24],
            33..=40 => &[OF_32],
            _ => &[OF_32, OF_40],
        };
        for kind in kinds {
            let of = kind.hash(high);
            let cells = self.lines.block(hash.page(of));
            let line = line_of(of);
            ask_for_block(cells.get(line..).unwrap_or_default(), 8);
            ask_for_block(cells.get(HANDLES + line / 2..).unwrap_or_default(), 1);
        }
    }

    /// The window of `kind` that `key` falls into.
    pub(super) fn place(&self, hash: &Hash, kind: Kind, key: u128) -> Option<Place> {
        let (high, _) = halves(key);
        let of = kind.hash(high);
        let page = hash.page(of);
        let cells = self.lines.block(page);
        let line = line_of(of);
        (0..8)
            .filter(|slot| quarter(cells, 4 * line + slot) == kind.tag(of))
            .map(|slot| line + slot)
            .find_map(|slot| {
                let window = self.window_at(page, slot)?;
                let prefix = load(self.lines.block(window.handle), 3);
                let same = (prefix ^ high) >> (64 - kind.len) == 0;
                same.then_some(Place { page, slot, window })
            })
    }

    /// The window in slot `slot` of `page`.
    pub(super) fn window_at(&self, page: u32, slot: usize) -> Option<Window> {
        let cells = self.lines.block(page);
        if quarter(cells, tag_at(slot)) == 0 {
            return None;
        }
        let handle = (load(cells, HANDLES + slot / 2) >> (slot % 2 * 32) & 0xffff_ffff) as u32;
        let last = load(self.lines.block(handle), LINE - 1);
        let first = load(self.lines.block(handle), 3);
        Some(Window {
            handle,
            lines: 1 << (first & 0xf),
            split: last & SPLIT != 0,
        })
    }

    /// The window of `place` in cells that no snapshot reaches.
    pub(super) fn own_window(
        &mut self,
        hash: &mut Hash,
        key: u128,
        place: Place,
    ) -> Option<Window> {
        let window = place.window;
        let last = load(self.lines.block(window.handle), LINE - 1);
        if last >> EPOCH_SHIFT == self.epoch() {
            return Some(window);
        }
        let cells = window.lines as usize * LINE;
        let handle = self.allocate_lines(cells)?;
        let (from, to) = (self.lines.block(window.handle), self.lines.block(handle));
        copy_cells(from, to, cells);
        let last = last & ((1 << EPOCH_SHIFT) - 1) | self.epoch() << EPOCH_SHIFT;
        store(to, LINE - 1, last);
        let copy = Window { handle, ..window };
        let of = self.hash_at(place.page, place.slot, key);
        let Some(page) = self.own_window_page(hash, of, place.page) else {
            self.drop_lines(handle, cells);
            return None;
        };
        self.set_slot(page, place.slot, copy);
        self.drop_lines(window.handle, cells);
        Some(copy)
    }

    /// The hash of the prefix in a slot, which `key` begins with.
    pub(super) fn hash_at(&self, page: u32, slot: usize, key: u128) -> u64 {
        let tag = quarter(self.lines.block(page), tag_at(slot));
        kind_of(tag).hash(halves(key).0)
    }

    /// Puts a window into the page of its prefix, which has none.
    pub(super) fn put_window(
        &mut self,
        hash: &mut Hash,
        kind: Kind,
        key: u128,
        window: Window,
    ) -> Option<()> {
        let of = kind.hash(halves(key).0);
        for _ in 0..=SPLITS {
            let page = hash.page(of);
            let cells = self.lines.block(page);
            let line = line_of(of);
            if let Some(slot) = (0..8).find(|slot| quarter(cells, 4 * line + slot) == 0) {
                let page = self.own_window_page(hash, of, page)?;
                set_quarter(self.lines.block(page), 4 * line + slot, kind.tag(of));
                self.set_slot(page, line + slot, window);
                return Some(());
            }
            self.split_window_page(hash, of)?;
        }
        None
    }

    /// Takes the window of `kind` that `key` falls into away, if there is one.
    pub(super) fn take_window(&mut self, hash: &mut Hash, kind: Kind, key: u128) -> Option<()> {
        let Some(place) = self.place(hash, kind, key) else {
            return Some(());
        };
        let of = kind.hash(halves(key).0);
        let page = self.own_window_page(hash, of, place.page)?;
        set_quarter(self.lines.block(page), tag_at(place.slot), 0);
        self.drop_lines(place.window.handle, place.window.lines as usize * LINE);
        Some(())
    }

    pub(super) fn set_slot(&self, page: u32, slot: usize, window: Window) {
        let cells = self.lines.block(page);
        let place = slot % 2 * 32;
        let others = load(cells, HANDLES + slot / 2) & !(0xffff_ffff << place);
        store(
            cells,
            HANDLES + slot / 2,
            others | u64::from(window.handle) << place,
        );
        let address = address(self.lines.block(window.handle));
        let word = address | u64::from(16 - window.lines.ilog2());
        let at = 4 * (slot / 8 * LINE) + 8 + slot % 8 * 3;
        for (at, part) in (at..).zip([word, word >> 16, word >> 32]) {
            set_quarter(cells, at, (part & 0xffff) as u16);
        }
    }

    /// The page of `of` in cells that no snapshot reaches.
    pub(super) fn own_window_page(&mut self, hash: &mut Hash, of: u64, page: u32) -> Option<u32> {
        let cells = self.lines.block(page);
        if load(cells, HEAD + 1) == self.epoch() {
            return Some(page);
        }
        let copy = self.allocate_lines(PAGE)?;
        let (from, to) = (self.lines.block(page), self.lines.block(copy));
        copy_cells(from, to, PAGE);
        store(to, HEAD + 1, self.epoch());
        hash.point(of, page_depth(from), copy, address(to));
        self.drop_lines(page, PAGE);
        Some(copy)
    }

    /// Parts the windows of the page of `of` by the next bit of their hashes.
    pub(super) fn split_window_page(&mut self, hash: &mut Hash, of: u64) -> Option<()> {
        let old = hash.page(of);
        let depth = page_depth(self.lines.block(old));
        if depth == hash.depth {
            if hash.depth == MAX_DEPTH {
                return None;
            }
            hash.double();
        }
        let bit = 63 - u32::from(depth);
        let zeros = self.new_window_page(depth + 1)?;
        let Some(ones) = self.new_window_page(depth + 1) else {
            self.drop_lines(zeros, PAGE);
            return None;
        };
        for slot in 0..SLOTS {
            let Some(window) = self.window_at(old, slot) else {
                continue;
            };
            let tag = quarter(self.lines.block(old), tag_at(slot));
            let high = load(self.lines.block(window.handle), 3);
            let one = kind_of(tag).hash(high) >> bit & 1 == 1;
            let page = if one { ones } else { zeros };
            set_quarter(self.lines.block(page), tag_at(slot), tag);
            self.set_slot(page, slot, window);
        }
        for (side, page) in [(0, zeros), (1, ones)] {
            let address = address(self.lines.block(page));
            hash.point(of & !(1 << bit) | side << bit, depth + 1, page, address);
        }
        self.drop_lines(old, PAGE);
        Some(())
    }

    pub(super) fn new_window_page(&mut self, depth: u8) -> Option<u32> {
        let page = self.allocate_lines(PAGE)?;
        let cells = self.lines.block(page);
        for at in 0..HANDLES {
            store(cells, at, 0);
        }
        store(cells, HEAD, u64::from(depth));
        store(cells, HEAD + 1, self.epoch());
        Some(page)
    }

    pub(super) fn allocate_lines(&mut self, cells: usize) -> Option<u32> {
        if !self.lines.has_room() {
            return None;
        }
        let handle = self.lines.allocate(cells);
        if address(self.lines.block(handle)) >> 48 != 0 {
            self.lines.free(handle, cells);
            return None;
        }
        self.windows.cells += cells;
        self.note_fresh(handle, cells);
        Some(handle)
    }

    /// Lets a page or a window go: at once when no snapshot can reach it, later otherwise.
    pub(super) fn drop_lines(&mut self, handle: u32, cells: usize) {
        let block = self.lines.block(handle);
        let epoch = if cells == PAGE {
            load(block, HEAD + 1)
        } else {
            load(block, LINE - 1) >> EPOCH_SHIFT
        };
        self.windows.cells -= cells;
        self.retire_lines(handle, cells, epoch);
    }
}

impl Hash {
    fn page(&self, of: u64) -> u32 {
        let at = (of >> (64 - u32::from(self.depth)) & 0xffff) as usize;
        self.directory.get(at).copied().unwrap_or_default()
    }

    /// Makes `page` the one for hashes whose first `depth` bits are those of `of`.
    fn point(&mut self, of: u64, depth: u8, page: u32, address: u64) {
        let below = self.depth - depth;
        let first = (of >> (64 - u32::from(depth)) << below & 0xffff) as usize;
        let count = 1 << below;
        writes(2 * count);
        let places = self.directory.iter_mut().zip(&mut self.addresses);
        for place in places.skip(first).take(count) {
            (*place.0, *place.1) = (page, address);
        }
        (first..first + count).for_each(|place| self.log.note(place));
    }

    /// Notes that the route for `key`/`len` has changed, and what that makes of its slots.
    pub(super) fn note(&mut self, key: u128, len: u8, said: Option<u16>) {
        let place = (key >> (128 - 9) & 0x1ff) as usize;
        if let Some(word) = self.busy.get_mut(place / 64) {
            *word |= u64::from(len > ROOT_STRIDE) << (place % 64);
        }
        self.changes.note(Change::new(key, len, said));
    }

    /// Lets the filling come by all routes from `key` on again.
    pub(super) fn go_back(&mut self, key: u128) {
        let behind = match self.filled {
            Filled::Nothing => true,
            Filled::UpTo(last, _) => last < key,
            Filled::All => false,
        };
        if !behind {
            self.filled = match key.checked_sub(1) {
                Some(before) => Filled::UpTo(before, 128),
                None => Filled::Nothing,
            };
        }
    }

    fn double(&mut self) {
        writes(3 * self.directory.len());
        self.directory = self.directory.iter().flat_map(|page| [*page; 2]).collect();
        let addresses = self.addresses.iter();
        self.addresses = addresses.flat_map(|address| [*address; 2]).collect();
        self.depth += 1;
    }
}

fn kind_of(tag: u16) -> Kind {
    match tag & 3 {
        1 => OF_24,
        2 => OF_32,
        _ => OF_40,
    }
}

/// The first slot of the line of `of` in its page, which is its first cell, too: three bits, times 8.
#[inline(always)]
pub(in crate::fib) const fn line_of(of: u64) -> usize {
    (of >> 29 & 0x38) as usize
}

/// The quarter of the tag of slot `slot`.
const fn tag_at(slot: usize) -> usize {
    slot / 8 * 4 * LINE + slot % 8
}

fn page_depth(cells: &[AtomicU64]) -> u8 {
    (load(cells, HEAD) & 0xff) as u8
}

pub(super) fn address(cells: &[AtomicU64]) -> u64 {
    // Exposed: `simd/windows.rs` makes a pointer of it again.
    cells.as_ptr().expose_provenance() as u64
}

fn quarter(cells: &[AtomicU64], at: usize) -> u16 {
    (load(cells, at / 4) >> (at % 4 * 16) & 0xffff) as u16
}

fn set_quarter(cells: &[AtomicU64], at: usize, value: u16) {
    let shift = at % 4 * 16;
    let cell = load(cells, at / 4) & !(0xffff << shift);
    store(cells, at / 4, cell | u64::from(value) << shift);
}

pub(in crate::fib) const OF_24: Kind = Kind::new(24, 1);
pub(in crate::fib) const OF_32: Kind = Kind::new(32, 2);
pub(in crate::fib) const OF_40: Kind = Kind::new(40, 3);

/// Splits of pages that one change may do for a window.
const SPLITS: usize = 4;
const MAX_DEPTH: u8 = 13;

/// Windows of a page: eight lines of eight.
pub(super) const SLOTS: usize = 64;
/// The cell of the first two windows' handles, after the lines.
const HANDLES: usize = SLOTS;
/// The cell of the page's depth; the epoch is next.
const HEAD: usize = HANDLES + SLOTS / 2;
/// Cells of a page; as no window has.
pub(super) const PAGE: usize = 13 * LINE;

const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
