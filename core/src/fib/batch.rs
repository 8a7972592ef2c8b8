//! Lookups in batches: many addresses go down the table side by side, so that their memory accesses overlap.
//!
//! A group of addresses takes each step together: find the cell that each needs next and ask the processor for it,
//! then, when the last has been asked for, read the first. So the misses of a whole group are under way at once, which
//! a loop of whole lookups cannot reach (a few lookups fill the processor's window).
//!
//! The first levels are the same for every address and are walked without a branch: a root slot without a child leads
//! to an empty chunk (handle 0). Addresses that go deeper are collected, again without a branch, and walked on in
//! rounds, one level a round.
//!
//! The code is safe and portable. `simd.rs` compiles it again for the units that the machine has ([`Machine`]).

use core::sync::atomic::{AtomicU64, Ordering};

use super::NextHopId;
use super::address::Address;
use super::arena::{Segment, cell};
use super::node::{Entry, NARROW_CHILD, ROOT_STRIDE, Shape, WORD_SLOTS};
use super::walk::View;

/// What a processor can do beyond portable code.
pub(super) trait Machine: Copy {
    /// Asks for the line of `cell`, which will be read soon.
    fn prefetch(self, cell: &AtomicU64);
}

/// Portable code: nothing but the language.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

impl Machine for Portable {
    #[inline(always)]
    fn prefetch(self, _: &AtomicU64) {}
}

/// Looks up each of `addresses`.
#[inline(always)]
pub(super) fn lookup<A: Address>(
    machine: impl Machine,
    view: &View<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let groups = addresses.chunks(LANES).zip(next_hops.chunks_mut(LANES));
    let Ok(slots) = <&Slots>::try_from(view.slots) else {
        for (address, next_hop) in addresses.iter().zip(next_hops) {
            *next_hop = NextHopId::from_code(view.lookup::<A>(address.to_key()));
        }
        return;
    };
    for (addresses, next_hops) in groups {
        if A::BITS == 32 {
            narrow(machine, slots, view.segments, addresses, next_hops);
        } else {
            wide(machine, slots, view.segments, addresses, next_hops);
        }
    }
}

/// The code for one address of a table whose root is laid out slot by slot.
#[inline(always)]
pub(super) fn lookup_one<A: Address>(view: &View<'_>, key: u128) -> u16 {
    let Ok(slots) = <&Slots>::try_from(view.slots) else {
        return view.lookup::<A>(key);
    };
    let segments = view.segments;
    let mut entry = root_entry(slots, (key >> (128 - u32::from(ROOT_STRIDE))) as usize);
    let mut code = entry.code();
    if A::BITS == 32 {
        let key = (key >> 96) as u32;
        let place = narrow_place(segments, entry.handle(), CHUNK, key >> 8 & 0x7ff);
        let leaf = place.read();
        if leaf != 0 {
            code = leaf;
        }
        if u64::from(leaf) & NARROW_CHILD != 0 {
            let entry = narrow_child(segments, entry.handle(), leaf);
            let below = narrow_place(segments, entry.handle(), TAIL, key & 0xff).read();
            code = first_of([
                below,
                entry.code(),
                root_entry(slots, (key >> 19) as usize).code(),
            ]);
        }
        return code;
    }
    let mut depth = 24;
    entry = wide_entry(
        segments,
        entry.handle(),
        WIDE_CHUNK,
        (key >> 104 & 0x7ff) as u32,
    );
    loop {
        if entry.code() != 0 {
            code = entry.code();
        }
        if !entry.has_child() {
            return code;
        }
        let skip = entry.skip();
        if skip > 0 && load(segments, entry.handle(), 1) != octets(key, depth, skip) {
            return code;
        }
        depth += 8 * skip;
        entry = wide_entry(segments, entry.handle(), WIDE_TAIL, octet(key, depth));
        depth += 8;
    }
}

/// A group of IPv4 addresses.
#[inline(always)]
fn narrow<A: Address>(
    machine: impl Machine,
    slots: &Slots,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let mut lanes = [Lane {
        cell: &ZERO,
        root: Entry(0),
        slot: 0,
    }; LANES];
    for (address, lane) in addresses.iter().zip(&mut lanes) {
        let key = (address.to_key() >> 96) as u32;
        let root = root_entry(slots, (key >> (32 - ROOT_STRIDE)) as usize);
        let slot = key >> 8 & 0x7ff;
        let cell = cell(segments, root.handle(), CHUNK.header() + word_of(slot)).unwrap_or(&ZERO);
        machine.prefetch(cell);
        *lane = Lane { cell, root, slot };
    }
    for lane in lanes.iter_mut().take(addresses.len()) {
        let index = leaf_index(lane.cell.load(Ordering::Relaxed), lane.slot);
        lane.cell = cell(segments, lane.root.handle(), index / 4).unwrap_or(&ZERO);
        lane.slot = (index % 4 * 16) as u32;
        machine.prefetch(lane.cell);
    }
    let mut deeper = [0_u8; LANES];
    let mut count = 0;
    for (number, (lane, next_hop)) in (0_u8..).zip(lanes.iter().zip(next_hops.iter_mut())) {
        let leaf = (lane.cell.load(Ordering::Relaxed) >> lane.slot & 0xffff) as u16;
        *next_hop = NextHopId::from_code(first_of([leaf, lane.root.code()]));
        if let Some(deeper) = deeper.get_mut(count) {
            *deeper = number;
        }
        count += usize::from(u64::from(leaf) & NARROW_CHILD != 0);
    }
    if count > 0 {
        narrow_deeper(
            machine,
            segments,
            addresses,
            next_hops,
            &mut lanes,
            deeper.get(..count).unwrap_or_default(),
        );
    }
}

/// Those of a group of IPv4 addresses that longer prefixes lie below of; their answers so far are narrow leaves.
#[inline(always)]
fn narrow_deeper<A: Address>(
    machine: impl Machine,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
    lanes: &mut [Lane<'_>; LANES],
    deeper: &[u8],
) {
    let mut entries = [Entry(0); LANES];
    for (number, entry) in deeper.iter().zip(&mut entries) {
        let number = usize::from(*number);
        let (Some(lane), Some(next_hop)) = (lanes.get(number), next_hops.get(number)) else {
            continue;
        };
        *entry = narrow_child(
            segments,
            lane.root.handle(),
            next_hop.map_or(0, NextHopId::code),
        );
        machine.prefetch(cell(segments, entry.handle(), TAIL.header()).unwrap_or(&ZERO));
    }
    for (number, entry) in deeper.iter().zip(&entries) {
        let number = usize::from(*number);
        let (Some(lane), Some(address), Some(next_hop)) = (
            lanes.get(number),
            addresses.get(number),
            next_hops.get_mut(number),
        ) else {
            continue;
        };
        let key = (address.to_key() >> 96) as u32;
        let leaf = narrow_place(segments, entry.handle(), TAIL, key & 0xff).read();
        *next_hop = NextHopId::from_code(first_of([leaf, entry.code(), lane.root.code()]));
    }
}

/// A group of IPv6 addresses.
#[inline(always)]
fn wide<A: Address>(
    machine: impl Machine,
    slots: &Slots,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let mut walks = [Walk {
        cell: &ZERO,
        high: 0,
        low: 0,
        handle: 0,
        slot: 0,
        number: 0,
        depth: 24,
        code: 0,
    }; LANES];
    for (number, (address, walk)) in (0_u8..).zip(addresses.iter().zip(&mut walks)) {
        let key = address.to_key();
        walk.high = (key >> 64) as u64;
        walk.low = (key & 0xffff_ffff_ffff_ffff) as u64;
        let root = root_entry(slots, (walk.high >> (64 - ROOT_STRIDE)) as usize);
        walk.number = number;
        walk.code = root.code();
        walk.handle = root.handle();
        walk.slot = (walk.high >> 40 & 0x7ff) as u32;
        walk.cell = cell(
            segments,
            walk.handle,
            WIDE_CHUNK.header() + word_of(walk.slot),
        )
        .unwrap_or(&ZERO);
        machine.prefetch(walk.cell);
    }
    let mut count = addresses.len();
    while count > 0 {
        for walk in walks.iter_mut().take(count) {
            let index = leaf_index(walk.cell.load(Ordering::Relaxed), walk.slot);
            walk.cell = cell(segments, walk.handle, index).unwrap_or(&ZERO);
            machine.prefetch(walk.cell);
        }
        // Those that go on move to the front, their next node asked for; the others answer.
        let mut left = 0;
        for at in 0..count {
            let Some(mut walk) = walks.get(at).copied() else {
                continue;
            };
            let entry = Entry(walk.cell.load(Ordering::Relaxed));
            walk.code = first_of([entry.code(), walk.code]);
            if let Some(next_hop) = next_hops.get_mut(usize::from(walk.number)) {
                *next_hop = NextHopId::from_code(walk.code);
            }
            walk.handle = entry.handle();
            walk.slot = u32::from(entry.skip());
            walk.cell = cell(segments, walk.handle, 1).unwrap_or(&ZERO);
            machine.prefetch(walk.cell);
            if let Some(place) = walks.get_mut(left) {
                *place = walk;
            }
            left += usize::from(entry.has_child());
        }
        count = left;
        // Skipped octets that do not match end a walk.
        left = 0;
        for at in 0..count {
            let Some(mut walk) = walks.get(at).copied() else {
                continue;
            };
            let skip = walk.slot;
            let window = window(walk.high, walk.low, walk.depth);
            let matches =
                window.checked_shr(64 - 8 * skip).unwrap_or(0) == walk.cell.load(Ordering::Relaxed);
            walk.depth += 8 * skip;
            walk.slot = half(walk.high, walk.low, walk.depth) & 0xff;
            walk.depth += 8;
            walk.cell = cell(
                segments,
                walk.handle,
                WIDE_TAIL.header() + word_of(walk.slot),
            )
            .unwrap_or(&ZERO);
            if let Some(place) = walks.get_mut(left) {
                *place = walk;
            }
            left += usize::from(matches || skip == 0);
        }
        count = left;
    }
}

#[inline(always)]
fn root_entry(slots: &Slots, slot: usize) -> Entry {
    Entry(slots.get(slot).copied().unwrap_or_default())
}

/// Where a narrow leaf is: the cell, and the bits before it.
struct Place<'a> {
    cell: &'a AtomicU64,
    bits: u32,
}

impl Place<'_> {
    #[inline(always)]
    fn read(&self) -> u16 {
        (self.cell.load(Ordering::Relaxed) >> self.bits & 0xffff) as u16
    }
}

#[inline(always)]
fn narrow_place(segments: &[Segment], handle: u32, shape: Shape, slot: u32) -> Place<'_> {
    let index = leaf_index(load(segments, handle, shape.header() + word_of(slot)), slot);
    Place {
        cell: cell(segments, handle, index / 4).unwrap_or(&ZERO),
        bits: (index % 4 * 16) as u32,
    }
}

/// The entry that the narrow leaf `leaf` of the chunk at `handle` points to.
#[inline(always)]
fn narrow_child(segments: &[Segment], handle: u32, leaf: u16) -> Entry {
    Entry(load(
        segments,
        handle,
        CHUNK.header() + CHUNK.words() + usize::from(leaf & 0x7fff),
    ))
}

#[inline(always)]
fn wide_entry(segments: &[Segment], handle: u32, shape: Shape, slot: u32) -> Entry {
    let index = leaf_index(load(segments, handle, shape.header() + word_of(slot)), slot);
    Entry(load(segments, handle, index))
}

#[inline(always)]
fn load(segments: &[Segment], handle: u32, at: usize) -> u64 {
    cell(segments, handle, at)
        .unwrap_or(&ZERO)
        .load(Ordering::Relaxed)
}

#[inline(always)]
const fn word_of(slot: u32) -> usize {
    (slot / WORD_SLOTS_U32) as usize
}

/// The index of the leaf of `slot`, whose run starts are in `word`.
#[inline(always)]
fn leaf_index(word: u64, slot: u32) -> usize {
    let starts = word & ((2 << (slot % WORD_SLOTS_U32)) - 1);
    (word >> 48) as usize + starts.count_ones() as usize
}

/// The first code that is one.
#[inline(always)]
fn first_of<const N: usize>(codes: [u16; N]) -> u16 {
    codes
        .into_iter()
        .rev()
        .fold(0, |below, code| if code == 0 { below } else { code })
}

/// The octet of `key` that starts at bit `depth`, which is a multiple of 8.
#[inline(always)]
fn octet(key: u128, depth: u8) -> u32 {
    half(
        (key >> 64) as u64,
        (key & 0xffff_ffff_ffff_ffff) as u64,
        u32::from(depth),
    ) & 0xff
}

/// 32 bits, the lowest 8 of which are the octet at bit `depth`.
#[inline(always)]
fn half(high: u64, low: u64, depth: u32) -> u32 {
    let half = if depth < 64 { high } else { low };
    (half >> (56_u32.wrapping_sub(depth) & 63) & 0xffff_ffff) as u32
}

/// 64 bits from bit `depth` on, zeros after the last.
#[inline(always)]
fn window(high: u64, low: u64, depth: u32) -> u64 {
    let (first, second) = if depth < 64 { (high, low) } else { (low, 0) };
    first << (depth & 63) | (second >> 1) >> (!depth & 63)
}

/// The `count` octets of `key` after bit `depth`, right-aligned; `count` is 1 to 8.
#[inline(always)]
fn octets(key: u128, depth: u8, count: u8) -> u64 {
    let window = window(
        (key >> 64) as u64,
        (key & 0xffff_ffff_ffff_ffff) as u64,
        u32::from(depth),
    );
    window.checked_shr(64 - 8 * u32::from(count)).unwrap_or(0)
}

/// An IPv4 address on its way down: the cell to read next, and what to read in it (first the slot, then the bits
/// before the leaf).
#[derive(Clone, Copy)]
struct Lane<'a> {
    cell: &'a AtomicU64,
    root: Entry,
    slot: u32,
}

/// An IPv6 address on its way down.
#[derive(Clone, Copy)]
struct Walk<'a> {
    cell: &'a AtomicU64,
    high: u64,
    low: u64,
    handle: u32,
    slot: u32,
    depth: u32,
    code: u16,
    number: u8,
}

type Slots = [u64; 1 << ROOT_STRIDE];

/// Addresses that go side by side.
const LANES: usize = 32;

/// What a handle that was never given out points to.
static ZERO: AtomicU64 = AtomicU64::new(0);

const WORD_SLOTS_U32: u32 = 48;
const CHUNK: Shape = Shape::at(ROOT_STRIDE, 32);
const TAIL: Shape = Shape::at(24, 32);
const WIDE_CHUNK: Shape = Shape::at(ROOT_STRIDE, 128);
const WIDE_TAIL: Shape = Shape::at(24, 128);

const _: () = assert!(WORD_SLOTS == 48);
