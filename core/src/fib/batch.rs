//! Lookups in batches: many addresses go down the table side by side, so that their memory accesses overlap.
//!
//! IPv4 is two levels without a branch: root slot, top and run starts, leaf; an empty root slot leads to an empty chunk
//! (handle 0). A group goes through them in three passes, each of which asks for what the next needs: a quarter faster than
//! one address after the other, of which the processor overlaps about eight by itself. The top comes from the root's words
//! where there are any (`direct.rs`). Leaves that name a child are
//! left in the answers and are taken up after the group.
//!
//! Small IPv4 tables have flat chunks (`flat/`): levels slot by slot, without a branch, and what they read lies in near
//! caches. There one address after the other is as fast as passes.
//!
//! IPv6 goes down in rounds, one level a round, with the addresses that have a next level in a list. At the end of a
//! round each asks for the node that it needs in the next: a walk of eight accesses one after another is too long for
//! the processor to overlap by itself, and its end is a branch that cannot be foreseen.
//!
//! The code is safe and portable. `simd/mod.rs` compiles it again for what the machine has ([`Machine`]), and
//! says which tables have another walk there.

use core::sync::atomic::{AtomicU64, Ordering};

use super::NextHopId;
use super::address::Address;
use super::arena::{self, Segment};
use super::direct::RootWord;
use super::flat::leaves::{self, LEAVES_AT};
use super::flat::{FLAT_CODES, FLAT_HANDLES, Flatness};
use super::node::{
    DENSE_SLOTS, Entry, NARROW_CHILD, ROOT_STRIDE, Shape, TOP_CELL, cell_of, leaf_in_group,
};
use super::walk::View;

/// How a processor reads blocks.
pub(super) trait Machine: Copy {
    /// A block of cells.
    type Block<'a>: Block;

    /// The block at `handle`, which the table has.
    fn block(self, segments: &[Segment], handle: u32) -> Self::Block<'_>;
}

/// A block of cells as a [`Machine`] reads it. Whoever asks has the place from the block itself.
pub(super) trait Block: Copy {
    /// Cell `at`.
    fn cell(self, at: usize) -> u64;

    /// Bits 16 * (`at` % 4) and the 15 after, of cell `at` / 4.
    fn quarter(self, at: usize) -> u16;

    /// Asks for the first two lines of the block, which will be read soon.
    fn prefetch(self);

    /// Asks for the line of cell `at`.
    fn prefetch_cell(self, at: usize);
}

/// Portable code: nothing but the language.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

impl Machine for Portable {
    type Block<'a> = &'a [AtomicU64];

    #[inline(always)]
    fn block(self, segments: &[Segment], handle: u32) -> &[AtomicU64] {
        arena::block(segments, handle)
    }
}

impl Block for &[AtomicU64] {
    #[inline(always)]
    fn cell(self, at: usize) -> u64 {
        arena::load(self, at)
    }

    #[inline(always)]
    fn quarter(self, at: usize) -> u16 {
        (arena::load(self, at / 4) >> (at % 4 * 16) & 0xffff) as u16
    }

    #[inline(always)]
    fn prefetch(self) {
        // Portable code asks by reading: the processor does not wait for what nobody needs yet.
        core::hint::black_box(self.first().map(|cell| cell.load(Ordering::Relaxed)));
    }

    #[inline(always)]
    fn prefetch_cell(self, at: usize) {
        core::hint::black_box(arena::load(self, at));
    }
}

/// Looks up each of `addresses`.
#[inline(always)]
pub(super) fn lookup<A: Address>(
    machine: impl Machine,
    view: &View<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let slots = <&Slots>::try_from(view.slots).ok();
    let (Some(slots), Flatness::None | Flatness::All) = (slots, view.flatness) else {
        for (address, next_hop) in addresses.iter().zip(next_hops) {
            *next_hop = NextHopId::from_code(view.lookup::<A>(address.to_key()));
        }
        return;
    };
    let segments = view.segments;
    if view.flatness == Flatness::All {
        for (address, next_hop) in addresses.iter().zip(next_hops) {
            let key = (address.to_key() >> 96) as u32;
            *next_hop = NextHopId::from_code(flat(machine, view, slots, key));
        }
        return;
    }
    let groups = addresses.chunks(LANES).zip(next_hops.chunks_mut(LANES));
    for (addresses, next_hops) in groups {
        // As many as the shorter holds.
        let addresses = addresses.get(..next_hops.len()).unwrap_or(addresses);
        let (next_hops, _) = next_hops.split_at_mut(addresses.len());
        if A::BITS == 32 {
            narrow(machine, view, slots, addresses, next_hops);
        } else {
            wide(machine, slots, segments, addresses, next_hops);
        }
    }
}

/// The code for one address of a table whose root is laid out slot by slot.
#[inline(always)]
pub(super) fn lookup_one<A: Address>(machine: impl Machine, view: &View<'_>, key: u128) -> u16 {
    let slots = <&Slots>::try_from(view.slots).ok();
    let (Some(slots), Flatness::None | Flatness::All) = (slots, view.flatness) else {
        return view.lookup::<A>(key);
    };
    let segments = view.segments;
    if A::BITS == 32 {
        let key = (key >> 96) as u32;
        if view.flatness == Flatness::All {
            return flat(machine, view, slots, key);
        }
        let code = narrow_chunk(machine, view, slots, key);
        if u64::from(code) & NARROW_CHILD == 0 {
            return code;
        }
        return narrow_tail(machine, slots, segments, key, code);
    }
    let mut key = Key::new(key);
    let (mut code, mut entry) = wide_chunk(machine, slots, segments, &mut key);
    while entry.has_child() {
        let block = machine.block(segments, entry.handle());
        entry = wide_tail(block, entry.skip(), &mut key);
        code = first_of(entry.code(), code);
    }
    code
}

/// A group of IPv4 addresses, in passes: all that are asked for in one pass are on their way together.
#[inline(always)]
fn narrow<A: Address, M: Machine>(
    machine: M,
    view: &View<'_>,
    slots: &Slots,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let (segments, tops) = (view.segments, tops(view));
    let mut blocks = [machine.block(segments, 0); LANES];
    let mut codes = [0_u16; LANES];
    let mut cells = [(0, 0); LANES];
    let mut leaves = [0; LANES];
    let found = blocks.iter_mut().zip(&mut codes).zip(&mut cells);
    for (address, ((block, code), place)) in addresses.iter().zip(found) {
        let key = (address.to_key() >> 96) as u32;
        let slot = (key >> (32 - ROOT_STRIDE)) as usize;
        let root = root_entry(slots, slot);
        *code = root.code();
        *block = machine.block(segments, root.handle());
        let (cell, slot) = cell_of(top(tops, *block, slot), key >> 8);
        *place = (CHUNK.starts_at() + cell, slot);
        block.prefetch_cell(CHUNK.starts_at() + cell);
    }
    for (block, ((cell, slot), leaf)) in blocks.iter().zip(cells.iter().zip(&mut leaves)) {
        let at = leaf_in_group(block.cell(*cell), *slot);
        block.prefetch_cell(at / 4);
        *leaf = at;
    }
    let mut seen = 0;
    for ((block, leaf), (code, next_hop)) in blocks
        .iter()
        .zip(&leaves)
        .zip(codes.iter().zip(next_hops.iter_mut()))
    {
        let code = overlay(block.quarter(*leaf), *code);
        seen |= code;
        *next_hop = NextHopId::from_code(code);
    }
    if u64::from(seen) & NARROW_CHILD != 0 {
        tails(machine, slots, segments, addresses, next_hops);
    }
}

/// Takes up the answers of a group that are the number of an entry of their chunk.
#[inline(always)]
pub(super) fn tails<A: Address>(
    machine: impl Machine,
    slots: &Slots,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    // Answers that are the number of an entry are collected without a branch: which ones they are cannot be foreseen.
    let mut deeper = [0_u8; LANES];
    let mut count = 0;
    for (number, next_hop) in (0_u8..).zip(next_hops.iter()) {
        if let Some(place) = deeper.get_mut(count % LANES) {
            *place = number;
        }
        let code = next_hop.map_or(0, NextHopId::code);
        count += usize::from(u64::from(code) & NARROW_CHILD != 0);
    }
    for number in deeper.iter().take(count) {
        let number = usize::from(*number) % LANES;
        if let (Some(address), Some(next_hop)) = (addresses.get(number), next_hops.get_mut(number))
        {
            let key = (address.to_key() >> 96) as u32;
            let code = next_hop.map_or(0, NextHopId::code);
            *next_hop = NextHopId::from_code(narrow_tail(machine, slots, segments, key, code));
        }
    }
}

/// What a table says all of whose chunks are flat.
#[inline(always)]
fn flat(machine: impl Machine, view: &View<'_>, slots: &Slots, key: u32) -> u16 {
    let root = root_entry(slots, (key >> (32 - ROOT_STRIDE)) as usize);
    let slot = (key >> 8) as usize % CHUNK.slots();
    // A root slot without a chunk has the handle of the block at 0: it is asked for its first cell, in vain. So are slots
    // without a tail.
    let flat = root.is_flat();
    let there = u64::from(flat).wrapping_neg();
    let asked = usize::from(flat).wrapping_neg();
    let block = machine.block(view.segments, root.handle());
    let code = block.quarter((4 * FLAT_CODES + slot) & asked) & u16::from(flat).wrapping_neg();
    let pair = block.cell((FLAT_HANDLES + slot / 2) & asked) & there;
    let handle = (pair >> (slot % 2 * 32) & 0xffff_ffff) as u32;
    let tail = machine.block(view.segments, handle);
    let octet = (key as usize % leaves::SLOTS) << usize::from(view.wide);
    // Arithmetic, as in `overlay`: all ones without a tail.
    let none = u64::from(handle).wrapping_sub(1) >> 32;
    let asked = (LEAVES_AT + octet / 8) & !(none as usize);
    let cell = tail.cell(asked) >> (octet % 8 * 8);
    let mask = if view.wide { 0xffff } else { 0xff };
    let leaf = cell & mask;
    let code = leaf & !none | u64::from(code) & none;
    first_of((code & 0xffff) as u16, root.code())
}

/// What root and chunk say: a next hop code, or the number of an entry of the chunk and [`NARROW_CHILD`].
#[inline(always)]
fn narrow_chunk(machine: impl Machine, view: &View<'_>, slots: &Slots, key: u32) -> u16 {
    let slot = (key >> (32 - ROOT_STRIDE)) as usize;
    let root = root_entry(slots, slot);
    let block = machine.block(view.segments, root.handle());
    let (cell, slot) = cell_of(top(tops(view), block, slot), key >> 8);
    let leaf = leaf_in_group(block.cell(CHUNK.starts_at() + cell), slot);
    first_of(block.quarter(leaf), root.code())
}

/// The words of the root, for their tops.
#[inline(always)]
fn tops<'a>(view: &View<'a>) -> Option<&'a [RootWord; 1 << ROOT_STRIDE]> {
    view.direct.try_into().ok()
}

/// The top of the chunk at `block`, which root slot `slot` leads to: from beside the root where there are words, so that
/// nobody waits for the chunk's first line.
#[inline(always)]
fn top(tops: Option<&[RootWord; 1 << ROOT_STRIDE]>, block: impl Block, slot: usize) -> u64 {
    match tops {
        Some(words) => words.get(slot % words.len()).map_or(0, |[_, top]| *top),
        None => block.cell(TOP_CELL),
    }
}

/// What the tail says that is entry `leaf` of the chunk of `key`, or those above it.
#[inline(always)]
pub(super) fn narrow_tail(
    machine: impl Machine,
    slots: &Slots,
    segments: &[Segment],
    key: u32,
    leaf: u16,
) -> u16 {
    let root = root_entry(slots, (key >> (32 - ROOT_STRIDE)) as usize);
    let chunk = machine.block(segments, root.handle());
    let entries = CHUNK.starts_at() + chunk.cell(TOP_CELL).count_ones() as usize;
    let entry = Entry(chunk.cell(entries + usize::from(leaf & 0x7fff)));
    let block = machine.block(segments, entry.handle());
    let group = key as usize / DENSE_SLOTS % (2 * TAIL.groups());
    let leaf = block.quarter(leaf_in_group(block.cell(TAIL.starts_at() + group), key));
    first_of(leaf, first_of(entry.code(), root.code()))
}

/// A group of IPv6 addresses.
#[inline(always)]
fn wide<A: Address, M: Machine>(
    machine: M,
    slots: &Slots,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    // Array by array, not an array of structures: what is stored in one size is read in the same.
    let mut keys = [Key::default(); LANES];
    let mut codes = [0_u16; LANES];
    let mut blocks = [machine.block(segments, 0); LANES];
    let mut skips = [0_u8; LANES];
    let mut active = [0_u8; LANES];
    for ((address, key), (code, block)) in addresses
        .iter()
        .zip(&mut keys)
        .zip(codes.iter_mut().zip(&mut blocks))
    {
        *key = Key::new(address.to_key());
        let root = root_entry(slots, (key.high >> (64 - ROOT_STRIDE)) as usize);
        *code = root.code();
        *block = machine.block(segments, root.handle());
    }
    let mut count = 0;
    for (number, ((key, code), (block, skip))) in (0_u8..).zip(
        keys.iter_mut()
            .zip(&mut codes)
            .zip(blocks.iter_mut().zip(&mut skips))
            .take(addresses.len()),
    ) {
        let entry = Entry(block.cell(leaf_index(*block, WIDE_CHUNK, (key.high >> 40) as u32)));
        key.advance(24);
        *code = overlay(entry.code(), *code);
        *block = machine.block(segments, entry.handle());
        block.prefetch();
        *skip = entry.skip();
        if let Some(place) = active.get_mut(count % LANES) {
            *place = number;
        }
        count += usize::from(entry.has_child());
    }
    while count > 0 {
        let mut left = 0;
        for at in 0..count {
            let number = active.get(at % LANES).copied().unwrap_or_default();
            let lane = usize::from(number) % LANES;
            let (Some(key), Some(code), Some(block), Some(skip)) = (
                keys.get_mut(lane),
                codes.get_mut(lane),
                blocks.get_mut(lane),
                skips.get_mut(lane),
            ) else {
                continue;
            };
            let entry = wide_tail(*block, *skip, key);
            *code = overlay(entry.code(), *code);
            *block = machine.block(segments, entry.handle());
            block.prefetch();
            *skip = entry.skip();
            if let Some(place) = active.get_mut(left % LANES) {
                *place = number;
            }
            left += usize::from(entry.has_child());
        }
        count = left;
    }
    for (code, next_hop) in codes.iter().zip(next_hops.iter_mut()) {
        *next_hop = NextHopId::from_code(*code);
    }
}

/// What root and chunk say; leaves the bits after them in `key`.
#[inline(always)]
fn wide_chunk(
    machine: impl Machine,
    slots: &Slots,
    segments: &[Segment],
    key: &mut Key,
) -> (u16, Entry) {
    let root = root_entry(slots, (key.high >> (64 - ROOT_STRIDE)) as usize);
    let block = machine.block(segments, root.handle());
    let entry = Entry(block.cell(leaf_index(block, WIDE_CHUNK, (key.high >> 40) as u32)));
    key.advance(24);
    (first_of(entry.code(), root.code()), entry)
}

/// What a node of one octet says to `key`, or nothing when the octets that it skips are others.
#[inline(always)]
fn wide_tail(block: impl Block, skip: u8, key: &mut Key) -> Entry {
    let skipped = 8 * u32::from(skip);
    let same = (key.high ^ block.cell(1)).leading_zeros() >= skipped;
    let octet = key.high << (skipped & 63) >> 56;
    let entry = block.cell(leaf_index(block, WIDE_TAIL, octet as u32));
    key.advance(skipped + 8);
    // A product, not a choice: which it is cannot be foreseen.
    Entry(entry & u64::from(same).wrapping_neg())
}

/// The bits of an address that are not yet decided on, left-aligned.
#[derive(Clone, Copy, Debug, Default)]
struct Key {
    high: u64,
    low: u64,
}

impl Key {
    #[inline(always)]
    fn new(key: u128) -> Self {
        Self {
            high: (key >> 64) as u64,
            low: (key & 0xffff_ffff_ffff_ffff) as u64,
        }
    }

    /// Drops the first `bits`, 1 to 63 of them.
    #[inline(always)]
    fn advance(&mut self, bits: u32) {
        self.high = self.high << (bits & 63) | self.low >> (bits.wrapping_neg() & 63);
        self.low <<= bits & 63;
    }
}

/// An IPv4 address as a number.
#[inline(always)]
pub(super) fn key_of<A: Address>(address: A) -> u32 {
    (address.to_key() >> 96 & 0xffff_ffff) as u32
}

#[inline(always)]
fn root_entry(slots: &Slots, slot: usize) -> Entry {
    Entry(slots.get(slot % slots.len()).copied().unwrap_or_default())
}

/// The index of the leaf of the slot that the last bits of `slot` name, in a node that is not dense.
#[inline(always)]
fn leaf_index(block: impl Block, shape: Shape, slot: u32) -> usize {
    let group = (slot >> 6) as usize % shape.groups();
    let starts = block.cell(shape.starts_at() + group) << (!slot & 63);
    let before = block.quarter(4 * shape.header() + group);
    usize::from(before) + starts.count_ones() as usize
}

/// `code`, or `below` it when that is none.
#[inline(always)]
const fn first_of(code: u16, below: u16) -> u16 {
    if code == 0 { below } else { code }
}

/// The same in arithmetic: a choice between a register and memory would be compiled to a branch, and whether a node
/// has a route of its own for an address cannot be foreseen.
#[inline(always)]
pub(super) const fn overlay(code: u16, below: u16) -> u16 {
    let none = ((code as u32).wrapping_sub(1) >> 16) as u16;
    code | below & none
}

pub(super) type Slots = [u64; 1 << ROOT_STRIDE];

/// Addresses that go side by side.
pub(super) const LANES: usize = 32;

pub(super) const CHUNK: Shape = Shape::at(ROOT_STRIDE, 32);
pub(super) const TAIL: Shape = Shape::at(24, 32);
const WIDE_CHUNK: Shape = Shape::at(ROOT_STRIDE, 128);
const WIDE_TAIL: Shape = Shape::at(24, 128);
