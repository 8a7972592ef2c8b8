//! Batches of IPv6 addresses, level by level, in few instructions and without waiting for memory.
//!
//! The octets of the addresses lie in one array, a row each, so that what comes next of an address is read where its
//! way has got to: nothing is shifted from level to level. Of the addresses that have a next level, node, way and what
//! the node skips are kept in lists without gaps. A level goes over the list twice: once up to the place of the leaf,
//! which is asked for, and once for what it says, where the node below is asked for. In nodes with many leaves the
//! leaf is far from the node's first lines, and what the processor overlaps by itself does not reach from one such
//! miss to the next but one.
//!
//! The twin is `wide` in `batch.rs`. Gathers, four addresses to a vector, were slower (`benches/lookup.md`).

use core::arch::x86_64;
use core::hint::select_unpredictable;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU64, Ordering};

use super::super::NextHopId;
use super::super::address::Address;
use super::super::arena::Segment;
use super::super::batch::{Block as _, Machine as _};
use super::super::node::{Entry, ROOT_STRIDE, Shape};
use super::super::walk::View;
use super::{Native, NativeBlock, ask_ahead};

/// Looks up each of `addresses`.
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe")]
pub(super) fn lookup<A: Address>(
    view: &View<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let Ok(slots) = <&Slots>::try_from(view.slots) else {
        for (address, next_hop) in addresses.iter().zip(next_hops) {
            *next_hop = NextHopId::from_code(view.lookup::<A>(address.to_key()));
        }
        return;
    };
    let groups = addresses.chunks(LANES).zip(next_hops.chunks_mut(LANES));
    for (addresses, next_hops) in groups {
        // As many as the shorter holds.
        let addresses = addresses.get(..next_hops.len()).unwrap_or(addresses);
        let (next_hops, _) = next_hops.split_at_mut(addresses.len());
        ask_ahead(addresses);
        group(slots, view.segments, addresses, next_hops);
    }
}

/// Looks up at most [`LANES`] addresses.
#[inline(always)]
fn group<A: Address>(
    slots: &Slots,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let mut rows = Rows([const { MaybeUninit::uninit() }; LANES]);
    let mut codes = [0_u16; LANES];
    let mut lists = Lists {
        blocks: [Native.block(segments, 0); LANES],
        leaves: [&raw const NOTHING; LANES],
        ways: [0; LANES],
        skips: [0; LANES],
    };
    for (lane, address) in addresses.iter().enumerate().take(LANES) {
        let key = address.to_key();
        rows.fill(lane, key);
        let high = (key >> 64) as u64;
        let root = Entry(load(slots, (high >> (64 - ROOT_STRIDE)) as usize));
        save(&mut codes, lane, root.code());
        let block = Native.block(segments, root.handle());
        let group = (high >> 46) as usize % CHUNK.groups();
        block.prefetch_cell(CHUNK.starts_at() + group);
        block.prefetch_cell(CHUNK.header() + group / 4);
        save(&mut lists.blocks, lane, block);
    }
    let lanes = addresses.len().min(LANES);
    let mut row = 0;
    for lane in 0..lanes {
        let block = load(&lists.blocks, lane);
        let slot = (rows.octets(row) >> 40) as u32;
        let leaf = block.place(leaf_index(block, CHUNK, slot));
        prefetch(leaf);
        save(&mut lists.leaves, lane, leaf);
        save(&mut lists.ways, lane, row + 3);
        row += ROW;
    }
    let mut count = answers(segments, &mut lists, &mut codes, lanes);
    while count > 0 {
        for item in 0..count {
            let way = load(&lists.ways, item);
            let skip = u32::from(load(&lists.skips, item));
            let block = load(&lists.blocks, item);
            let octets = rows.octets(way);
            let skipped = 8 * skip;
            let same = (octets ^ block.cell(1)).leading_zeros() >= skipped;
            let octet = octets << (skipped & 63) >> 56;
            let leaf = block.place(leaf_index(block, TAIL, octet as u32));
            prefetch(leaf);
            let leaf = select_unpredictable(same, leaf, &raw const NOTHING);
            save(&mut lists.leaves, item, leaf);
            save(&mut lists.ways, item, way + skip + 1);
        }
        count = answers(segments, &mut lists, &mut codes, count);
    }
    for (code, next_hop) in codes.iter().zip(next_hops.iter_mut()) {
        *next_hop = NextHopId::from_code(*code);
    }
}

/// Takes what the leaves of the first `count` items of the lists say; those that go on become the first, as many as it
/// gives.
#[inline(always)]
fn answers<'a>(
    segments: &'a [Segment],
    lists: &mut Lists<'a>,
    codes: &mut [u16; LANES],
    count: usize,
) -> usize {
    let mut left = 0;
    for item in 0..count {
        let way = load(&lists.ways, item);
        // SAFETY: the list holds the places of leaves of this view's blocks (`NativeBlock::place`), which live as long
        // as the view, and `NOTHING`.
        let leaf = unsafe { &*load(&lists.leaves, item) };
        let entry = Entry(leaf.load(Ordering::Relaxed));
        let lane = ((way - 1) / ROW) as usize;
        let code = select_unpredictable(entry.code() == 0, load(codes, lane), entry.code());
        save(codes, lane, code);
        let block = Native.block(segments, entry.handle());
        block.prefetch();
        save(&mut lists.blocks, left, block);
        save(&mut lists.ways, left, way);
        save(&mut lists.skips, left, entry.skip());
        left += usize::from(entry.has_child());
    }
    left
}

/// The index of the leaf of the slot that the last bits of `slot` name.
#[inline(always)]
fn leaf_index(block: NativeBlock<'_>, shape: Shape, slot: u32) -> usize {
    let group = (slot >> 6) as usize % shape.groups();
    let starts = block.cell(shape.starts_at() + group) << (!slot & 63);
    let before = block.quarter(4 * shape.header() + group);
    usize::from(before) + starts.count_ones() as usize
}

#[inline(always)]
fn prefetch(leaf: *const AtomicU64) {
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe { x86_64::_mm_prefetch::<{ x86_64::_MM_HINT_T0 }>(leaf.cast()) };
}

/// The addresses that have a next level, array by array: what is stored in one size is read in the same.
struct Lists<'a> {
    /// The node.
    blocks: [NativeBlock<'a>; LANES],
    /// Where its leaf is, or [`NOTHING`] when the octets that it skips are others.
    leaves: [*const AtomicU64; LANES],
    /// The octets that are decided on, counted from the start of the first row: at least 1, at most 16, into a row.
    ways: [u32; LANES],
    /// Octets that the node skips.
    skips: [u8; LANES],
}

/// The octets of the addresses, first on the wire first, and 8 zeros after each.
struct Rows([MaybeUninit<[u8; ROW as usize]>; LANES]);

impl Rows {
    #[inline(always)]
    fn fill(&mut self, lane: usize, key: u128) {
        debug_assert!(lane < LANES, "row {lane}");
        // SAFETY: `lane` is below `LANES` wherever this is called, and a row holds 16 octets and 8 more.
        unsafe {
            let row = self.0.as_mut_ptr().add(lane).cast::<[u8; 16]>();
            row.write(key.to_be_bytes());
            row.add(1).cast::<[u8; 8]>().write([0; 8]);
        }
    }

    /// The 8 octets from `way` on, the first of them leftmost.
    #[inline(always)]
    fn octets(&self, way: u32) -> u64 {
        debug_assert!(
            ((way / ROW) as usize) < LANES && way % ROW <= 16,
            "octets {way}"
        );
        let way = way as usize;
        // SAFETY: the way of a lane that was filled is in its row, and at most 16 octets into it, since no node is
        // deeper than an address; 24 octets of the row are filled.
        let octets = unsafe {
            self.0
                .as_ptr()
                .cast::<u8>()
                .add(way)
                .cast::<[u8; 8]>()
                .read()
        };
        u64::from_be_bytes(octets)
    }
}

#[inline(always)]
fn load<T: Copy, const N: usize>(list: &[T; N], at: usize) -> T {
    debug_assert!(at < N, "{at} of {N}");
    // SAFETY: root slots are asked for by 13 bits; lanes and items of a list are below the number of addresses in the
    // group, which is at most `LANES`; the lane of a way is that of its row.
    unsafe { *list.get_unchecked(at) }
}

#[inline(always)]
fn save<T: Copy, const N: usize>(list: &mut [T; N], at: usize, value: T) {
    debug_assert!(at < N, "{at} of {N}");
    // SAFETY: as in `load`; an item is saved no further on than the one that was loaded.
    unsafe { *list.get_unchecked_mut(at) = value }
}

/// What a node says to an address that has other octets than it skips.
static NOTHING: AtomicU64 = AtomicU64::new(0);

type Slots = [u64; 1 << ROOT_STRIDE];

/// Octets from one address to the next; a power of two above the 24 that are used.
const ROW: u32 = 32;
/// Addresses that go side by side.
const LANES: usize = 32;

const CHUNK: Shape = Shape::at(ROOT_STRIDE, 128);
const TAIL: Shape = Shape::at(24, 128);
