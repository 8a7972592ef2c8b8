//! Lookups in batches: many addresses go down the table side by side, so that their memory accesses overlap.
//!
//! The first levels are the same for every address and are walked without a branch: a root slot without a child leads
//! to an empty chunk (handle 0). Addresses that go deeper are collected, again without a branch, and walked on in
//! rounds, one level a round.

use core::sync::atomic::AtomicU64;

use super::NextHopId;
use super::address::Address;
use super::arena::{Segment, block, load};
use super::node::{Entry, NARROW_CHILD, ROOT_STRIDE, Shape, WORD_SLOTS};
use super::table::octets;
use super::walk::View;

/// Looks up each of `addresses` in a table whose root is laid out slot by slot.
#[inline(always)]
pub(super) fn lookup<A: Address>(
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
            narrow(slots, view.segments, addresses, next_hops);
        } else {
            wide(slots, view.segments, addresses, next_hops);
        }
    }
}

/// A group of IPv4 addresses.
#[inline(always)]
fn narrow<A: Address>(
    slots: &Slots,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let mut deeper = [Deeper::default(); LANES];
    let mut count = 0;
    for (lane, (address, next_hop)) in addresses.iter().zip(next_hops.iter_mut()).enumerate() {
        let key = (address.to_key() >> 96) as u32;
        let root = root_entry(slots, (key >> (32 - ROOT_STRIDE)) as usize);
        let chunk = block(segments, root.handle());
        let leaf = narrow_leaf(chunk, CHUNK, key >> 8 & 0x7ff);
        let code = if leaf == 0 { root.code() } else { leaf };
        *next_hop = NextHopId::from_code(code);
        if let Some(deeper) = deeper.get_mut(count) {
            *deeper = Deeper {
                lane: lane as u32,
                handle: root.handle(),
            };
        }
        count += usize::from(u64::from(leaf) & NARROW_CHILD != 0);
    }
    for deeper in deeper.iter().take(count) {
        let lane = deeper.lane as usize;
        let (Some(address), Some(next_hop)) = (addresses.get(lane), next_hops.get_mut(lane)) else {
            continue;
        };
        let key = (address.to_key() >> 96) as u32;
        let leaf = next_hop.map_or(0, NextHopId::code);
        let chunk = block(segments, deeper.handle);
        let entry = Entry(load(
            chunk,
            CHUNK.header() + CHUNK.words() + usize::from(leaf & 0x7fff),
        ));
        let below = narrow_leaf(block(segments, entry.handle()), TAIL, key & 0xff);
        let root = root_entry(slots, (key >> (32 - ROOT_STRIDE)) as usize);
        let code = if entry.code() == 0 {
            root.code()
        } else {
            entry.code()
        };
        let code = if below == 0 { code } else { below };
        *next_hop = NextHopId::from_code(code);
    }
}

/// A group of IPv6 addresses.
#[inline(always)]
fn wide<A: Address>(
    slots: &Slots,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let mut deeper = [Walking::default(); LANES];
    let mut count = 0;
    let shape = Shape::at(ROOT_STRIDE, 128);
    for (lane, (address, next_hop)) in addresses.iter().zip(next_hops.iter_mut()).enumerate() {
        let key = address.to_key();
        let high = (key >> 64) as u64;
        let root = root_entry(slots, (high >> (64 - ROOT_STRIDE)) as usize);
        let entry = wide_entry(
            block(segments, root.handle()),
            shape,
            (high >> 40 & 0x7ff) as u32,
        );
        let code = if entry.code() == 0 {
            root.code()
        } else {
            entry.code()
        };
        *next_hop = NextHopId::from_code(code);
        if let Some(deeper) = deeper.get_mut(count) {
            *deeper = Walking {
                lane: lane as u32,
                depth: 24,
                entry,
            };
        }
        count += usize::from(entry.has_child());
    }
    while count > 0 {
        let mut left = 0;
        for at in 0..count {
            let Some(Walking { lane, depth, entry }) = deeper.get(at).copied() else {
                continue;
            };
            let (Some(address), Some(next_hop)) = (
                addresses.get(lane as usize),
                next_hops.get_mut(lane as usize),
            ) else {
                continue;
            };
            let key = address.to_key();
            let skip = entry.skip();
            let cells = block(segments, entry.handle());
            let matches = load(cells, 1) == octets(key, depth, skip) || skip == 0;
            let depth = depth + 8 * skip;
            let below = wide_entry(cells, Shape::at(24, 128), octet(key, depth));
            let below = if matches { below } else { Entry::default() };
            if below.code() != 0 {
                *next_hop = NextHopId::from_code(below.code());
            }
            if let Some(deeper) = deeper.get_mut(left) {
                *deeper = Walking {
                    lane,
                    depth: depth + 8,
                    entry: below,
                };
            }
            left += usize::from(below.has_child());
        }
        count = left;
    }
}

#[inline(always)]
fn root_entry(slots: &Slots, slot: usize) -> Entry {
    Entry(slots.get(slot).copied().unwrap_or_default())
}

#[inline(always)]
fn narrow_leaf(cells: &[AtomicU64], shape: Shape, slot: u32) -> u16 {
    let leaf = leaf_index(cells, shape, slot);
    (load(cells, leaf / 4) >> (leaf % 4 * 16) & 0xffff) as u16
}

#[inline(always)]
fn wide_entry(cells: &[AtomicU64], shape: Shape, slot: u32) -> Entry {
    Entry(load(cells, leaf_index(cells, shape, slot)))
}

#[inline(always)]
fn leaf_index(cells: &[AtomicU64], shape: Shape, slot: u32) -> usize {
    let word = slot / WORD_SLOTS as u32;
    let place = slot % WORD_SLOTS as u32;
    let word = load(cells, shape.header() + word as usize);
    let starts = word & ((2 << place) - 1);
    (word >> 48) as usize + starts.count_ones() as usize
}

/// The octet of `key` that starts at bit `depth`.
#[inline(always)]
fn octet(key: u128, depth: u8) -> u32 {
    let half = if depth < 64 {
        (key >> 64) as u64
    } else {
        (key & 0xffff_ffff_ffff_ffff) as u64
    };
    (half >> (56_u32.wrapping_sub(u32::from(depth)) & 63) & 0xff) as u32
}

/// An IPv4 address whose chunk says that longer prefixes lie below.
#[derive(Clone, Copy, Default)]
struct Deeper {
    lane: u32,
    handle: u32,
}

/// An IPv6 address on its way down.
#[derive(Clone, Copy, Default)]
struct Walking {
    lane: u32,
    depth: u8,
    entry: Entry,
}

type Slots = [u64; 1 << ROOT_STRIDE];

/// Addresses that go side by side.
const LANES: usize = 32;

const CHUNK: Shape = Shape::at(ROOT_STRIDE, 32);
const TAIL: Shape = Shape::at(24, 32);
