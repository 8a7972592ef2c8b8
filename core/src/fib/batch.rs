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

    /// Cell `at` of the block at `handle`, both as the table has them.
    fn cell(self, segments: &[Segment], handle: u32, at: usize) -> &AtomicU64;
}

/// Portable code: nothing but the language.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

impl Machine for Portable {
    #[inline(always)]
    fn prefetch(self, _: &AtomicU64) {}

    #[inline(always)]
    fn cell(self, segments: &[Segment], handle: u32, at: usize) -> &AtomicU64 {
        cell(segments, handle, at).unwrap_or(&ZERO)
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
pub(super) fn lookup_one<A: Address>(machine: impl Machine, view: &View<'_>, key: u128) -> u16 {
    let Ok(slots) = <&Slots>::try_from(view.slots) else {
        return view.lookup::<A>(key);
    };
    let segments = view.segments;
    let root = root_entry(slots, (key >> (128 - u32::from(ROOT_STRIDE))) as usize);
    if A::BITS == 32 {
        let key = (key >> 96) as u32;
        let leaf = narrow_leaf(machine, segments, root.handle(), CHUNK, key >> 8 & 0x7ff);
        if u64::from(leaf) & NARROW_CHILD == 0 {
            return first_of([leaf, root.code()]);
        }
        let entry = narrow_child(machine, segments, root.handle(), leaf);
        let below = narrow_leaf(machine, segments, entry.handle(), TAIL, key & 0xff);
        return first_of([below, entry.code(), root.code()]);
    }
    let (high, low) = ((key >> 64) as u64, (key & 0xffff_ffff_ffff_ffff) as u64);
    let mut entry = wide_entry(
        machine,
        segments,
        root.handle(),
        WIDE_CHUNK,
        (high >> 40 & 0x7ff) as u32,
    );
    let mut code = first_of([entry.code(), root.code()]);
    let mut depth = 24;
    while entry.has_child() {
        let skip = u32::from(entry.skip());
        if skip > 0 {
            let expected = machine
                .cell(segments, entry.handle(), 1)
                .load(Ordering::Relaxed);
            if expected
                != window(high, low, depth)
                    .checked_shr(64 - 8 * skip)
                    .unwrap_or(0)
            {
                return code;
            }
            depth += 8 * skip;
        }
        entry = wide_entry(
            machine,
            segments,
            entry.handle(),
            WIDE_TAIL,
            half(high, low, depth) & 0xff,
        );
        code = first_of([entry.code(), code]);
        depth += 8;
    }
    code
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
    // Array by array, not an array of structures: what is stored in one size is read in the same.
    let mut roots = [Entry(0); LANES];
    let mut cells = [&ZERO; LANES];
    let mut places = [0_u32; LANES];
    for ((address, root), cell) in addresses.iter().zip(&mut roots).zip(&mut cells) {
        let key = (address.to_key() >> 96) as u32;
        *root = root_entry(slots, (key >> (32 - ROOT_STRIDE)) as usize);
        *cell = machine.cell(
            segments,
            root.handle(),
            CHUNK.header() + word_of(key >> 8 & 0x7ff),
        );
        machine.prefetch(cell);
    }
    for (((address, root), cell), place) in addresses
        .iter()
        .zip(&roots)
        .zip(&mut cells)
        .zip(&mut places)
    {
        let key = (address.to_key() >> 96) as u32;
        let index = leaf_index(cell.load(Ordering::Relaxed), key >> 8 & 0x7ff);
        *cell = machine.cell(segments, root.handle(), index / 4);
        *place = place_of(index);
        machine.prefetch(cell);
    }
    let mut leaves = [0_u16; LANES];
    let mut deeper = [0_u8; LANES];
    let mut count = 0;
    let found = roots.iter().zip(&cells).zip(&places).zip(&mut leaves);
    for (number, ((((root, cell), place), leaf), next_hop)) in
        (0_u8..).zip(found.zip(next_hops.iter_mut()))
    {
        *leaf = (cell.load(Ordering::Relaxed) >> (place & 63) & 0xffff) as u16;
        *next_hop = NextHopId::from_code(first_of([*leaf, root.code()]));
        if let Some(deeper) = deeper.get_mut(count % LANES) {
            *deeper = number;
        }
        count += usize::from(u64::from(*leaf) & NARROW_CHILD != 0);
    }
    for number in deeper.iter().take(count) {
        let number = usize::from(*number) % LANES;
        let (Some(root), Some(leaf), Some(cell), Some(address)) = (
            roots.get_mut(number),
            leaves.get(number),
            cells.get_mut(number),
            addresses.get(number),
        ) else {
            continue;
        };
        let entry = narrow_child(machine, segments, root.handle(), *leaf);
        let slot = (address.to_key() >> 96) as u32 & 0xff;
        *cell = machine.cell(segments, entry.handle(), TAIL.header() + word_of(slot));
        machine.prefetch(cell);
        *root = entry.with_code(first_of([entry.code(), root.code()]));
    }
    for number in deeper.iter().take(count) {
        let number = usize::from(*number) % LANES;
        let (Some(root), Some(cell), Some(address), Some(next_hop)) = (
            roots.get(number),
            cells.get(number),
            addresses.get(number),
            next_hops.get_mut(number),
        ) else {
            continue;
        };
        let slot = (address.to_key() >> 96) as u32 & 0xff;
        let index = leaf_index(cell.load(Ordering::Relaxed), slot);
        let cell = machine.cell(segments, root.handle(), index / 4);
        let leaf = (cell.load(Ordering::Relaxed) >> place_of(index) & 0xffff) as u16;
        *next_hop = NextHopId::from_code(first_of([leaf, root.code()]));
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
    let mut handles = [0_u32; LANES];
    let mut cells = [&ZERO; LANES];
    let mut depths = [24_u8; LANES];
    let mut codes = [0_u16; LANES];
    let mut active = [0_u8; LANES];
    let starts = addresses
        .iter()
        .zip(&mut handles)
        .zip(&mut cells)
        .zip(&mut codes);
    for (((address, handle), cell), code) in starts {
        let high = (address.to_key() >> 64) as u64;
        let root = root_entry(slots, (high >> (64 - ROOT_STRIDE)) as usize);
        *code = root.code();
        *handle = root.handle();
        *cell = machine.cell(
            segments,
            root.handle(),
            WIDE_CHUNK.header() + word_of((high >> 40 & 0x7ff) as u32),
        );
        machine.prefetch(cell);
    }
    for (number, place) in (0_u8..).zip(&mut active) {
        *place = number;
    }
    let mut count = addresses.len().min(LANES);
    let mut chunk = true;
    while count > 0 {
        for number in active.iter().take(count) {
            let number = usize::from(*number) % LANES;
            let (Some(address), Some(handle), Some(cell), Some(depth)) = (
                addresses.get(number),
                handles.get(number),
                cells.get_mut(number),
                depths.get_mut(number),
            ) else {
                continue;
            };
            let key = address.to_key();
            let (high, low) = ((key >> 64) as u64, (key & 0xffff_ffff_ffff_ffff) as u64);
            let slot = if chunk {
                (high >> 40 & 0x7ff) as u32
            } else {
                half(high, low, u32::from(*depth)) & 0xff
            };
            *depth += if chunk { 0 } else { 8 };
            *cell = machine.cell(
                segments,
                *handle,
                leaf_index(cell.load(Ordering::Relaxed), slot),
            );
            machine.prefetch(cell);
        }
        chunk = false;
        // Those that go on move to the front of the list, their next node asked for; all note their answers.
        let mut left = 0;
        let mut skips = [0_u8; LANES];
        for at in 0..count {
            let number = active.get(at % LANES).copied().unwrap_or_default();
            let lane = usize::from(number) % LANES;
            let (Some(handle), Some(cell), Some(code), Some(skip)) = (
                handles.get_mut(lane),
                cells.get_mut(lane),
                codes.get_mut(lane),
                skips.get_mut(lane),
            ) else {
                continue;
            };
            let entry = Entry(cell.load(Ordering::Relaxed));
            *code = first_of([entry.code(), *code]);
            *handle = entry.handle();
            *skip = entry.skip();
            *cell = machine.cell(segments, *handle, 1);
            machine.prefetch(cell);
            if let Some(place) = active.get_mut(left % LANES) {
                *place = number;
            }
            left += usize::from(entry.has_child());
        }
        count = left;
        // Skipped octets that do not match end a walk.
        left = 0;
        for at in 0..count {
            let number = active.get(at % LANES).copied().unwrap_or_default();
            let lane = usize::from(number) % LANES;
            let (Some(address), Some(handle), Some(cell), Some(depth), Some(skip)) = (
                addresses.get(lane),
                handles.get(lane),
                cells.get_mut(lane),
                depths.get_mut(lane),
                skips.get(lane),
            ) else {
                continue;
            };
            let key = address.to_key();
            let (high, low) = ((key >> 64) as u64, (key & 0xffff_ffff_ffff_ffff) as u64);
            let seen = window(high, low, u32::from(*depth))
                .checked_shr(64 - 8 * u32::from(*skip))
                .unwrap_or(0);
            let matches = seen == cell.load(Ordering::Relaxed) || *skip == 0;
            *depth += 8 * skip;
            let slot = half(high, low, u32::from(*depth)) & 0xff;
            *cell = machine.cell(segments, *handle, WIDE_TAIL.header() + word_of(slot));
            if let Some(place) = active.get_mut(left % LANES) {
                *place = number;
            }
            left += usize::from(matches);
        }
        count = left;
    }
    for (code, next_hop) in codes.iter().zip(next_hops.iter_mut()) {
        *next_hop = NextHopId::from_code(*code);
    }
}

#[inline(always)]
fn root_entry(slots: &Slots, slot: usize) -> Entry {
    Entry(slots.get(slot).copied().unwrap_or_default())
}

#[inline(always)]
fn narrow_leaf(
    machine: impl Machine,
    segments: &[Segment],
    handle: u32,
    shape: Shape,
    slot: u32,
) -> u16 {
    let word = machine
        .cell(segments, handle, shape.header() + word_of(slot))
        .load(Ordering::Relaxed);
    let index = leaf_index(word, slot);
    (machine
        .cell(segments, handle, index / 4)
        .load(Ordering::Relaxed)
        >> place_of(index)
        & 0xffff) as u16
}

/// The entry that the narrow leaf `leaf` of the chunk at `handle` points to.
#[inline(always)]
fn narrow_child(machine: impl Machine, segments: &[Segment], handle: u32, leaf: u16) -> Entry {
    let at = CHUNK.header() + CHUNK.words() + usize::from(leaf & 0x7fff);
    Entry(machine.cell(segments, handle, at).load(Ordering::Relaxed))
}

#[inline(always)]
fn wide_entry(
    machine: impl Machine,
    segments: &[Segment],
    handle: u32,
    shape: Shape,
    slot: u32,
) -> Entry {
    let word = machine
        .cell(segments, handle, shape.header() + word_of(slot))
        .load(Ordering::Relaxed);
    Entry(
        machine
            .cell(segments, handle, leaf_index(word, slot))
            .load(Ordering::Relaxed),
    )
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

/// The bits before narrow leaf `index` in its cell.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "at most 48")]
const fn place_of(index: usize) -> u32 {
    (index % 4 * 16) as u32
}

/// The first code that is one.
#[inline(always)]
fn first_of<const N: usize>(codes: [u16; N]) -> u16 {
    codes
        .into_iter()
        .rev()
        .fold(0, |below, code| if code == 0 { below } else { code })
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
