//! Batches of IPv4 addresses by AVX2.
//!
//! A group of 32 addresses goes down the table in passes, as in `batch.rs`, but what can be told from the addresses
//! alone, and what becomes of the leaves, is worked out for all of them before and after, array by array: that is code
//! which the compiler makes vectors of, eight addresses or sixteen leaves to each. The passes between only load. They
//! load one lane at a time: on Zen 3 a gather of four cells takes twice as long as four loads.

use super::super::NextHopId;
use super::super::address::Address;
use super::super::arena::Segment;
use super::super::batch::{self, Block, CHUNK, LANES, Machine, Slots, TAIL};
use super::super::flat::{FLAT_HEADER, Flatness};
use super::super::node::{NARROW_CHILD, ROOT_STRIDE};
use super::super::walk::View;
use super::Native;

/// Looks up each of `addresses`.
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2")]
pub(super) fn lookup<A: Address>(
    view: &View<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let slots = <&Slots>::try_from(view.slots).ok();
    let (Some(slots), Flatness::None | Flatness::All) = (slots, view.flatness) else {
        return batch::lookup(Native, view, addresses, next_hops);
    };
    // As many as the shorter holds.
    let count = addresses.len().min(next_hops.len());
    let (addresses, _) = addresses.split_at(count);
    let (next_hops, _) = next_hops.split_at_mut(count);
    let (groups, rest) = addresses.as_chunks();
    let (answers, rest_answers) = next_hops.as_chunks_mut();
    let groups = groups.iter().zip(answers);
    if view.flatness == Flatness::All {
        for (addresses, next_hops) in groups {
            flat(slots, view.segments, addresses, next_hops);
        }
    } else {
        for (addresses, next_hops) in groups {
            chunks(slots, view.segments, addresses, next_hops);
        }
    }
    if !rest.is_empty() {
        batch::lookup(Native, view, rest, rest_answers);
    }
}

/// A group in a table none of whose chunks is flat.
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2")]
fn chunks<A: Address>(
    slots: &Slots,
    segments: &[Segment],
    addresses: &[A; LANES],
    next_hops: &mut [Option<NextHopId>; LANES],
) {
    let keys = keys(addresses);
    let tops = each(&keys, |key| key >> (32 - ROOT_STRIDE));
    let groups = each(&keys, |key| key >> 14 & 31);
    // Bits of the group's run starts that are behind the slot.
    let behind = each(&keys, |key| !(key >> 8) & 63);
    let mut codes = [0_u16; LANES];
    let mut blocks = [Native.block(segments, 0); LANES];
    for ((top, group), (code, block)) in tops
        .iter()
        .zip(&groups)
        .zip(codes.iter_mut().zip(&mut blocks))
    {
        let root = batch::root_entry(slots, *top as usize);
        *code = root.code();
        *block = Native.block(segments, root.handle());
        block.prefetch_cell(CHUNK.starts_at() + *group as usize);
        block.prefetch_quarter(4 * CHUNK.header() + *group as usize);
    }
    let mut indices = [0_usize; LANES];
    for ((group, behind), (block, index)) in groups
        .iter()
        .zip(&behind)
        .zip(blocks.iter().zip(&mut indices))
    {
        let group = *group as usize;
        let starts = block.cell(CHUNK.starts_at() + group) << (behind & 63);
        let before = block.quarter(4 * CHUNK.header() + group);
        *index = usize::from(before) + starts.count_ones() as usize;
        block.prefetch_quarter(*index);
    }
    let mut leaves = [0_u16; LANES];
    for (leaf, (block, index)) in leaves.iter_mut().zip(blocks.iter().zip(&indices)) {
        *leaf = block.quarter(*index);
    }
    let answers = over(&leaves, &codes);
    put(&answers, next_hops);
    let seen = answers.iter().fold(0, |seen, answer| seen | answer);
    if u64::from(seen) & NARROW_CHILD != 0 {
        batch::tails(Native, slots, segments, addresses, next_hops);
    }
}

/// A group in a table all of whose chunks are flat: always through a tail, which may be the empty one.
///
/// What such a table's lookups read lies in the nearest caches, so that two passes do and nothing is asked for ahead.
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2")]
fn flat<A: Address>(
    slots: &Slots,
    segments: &[Segment],
    addresses: &[A; LANES],
    next_hops: &mut [Option<NextHopId>; LANES],
) {
    let keys = keys(addresses);
    let tops = each(&keys, |key| key >> (32 - ROOT_STRIDE));
    let places = each(&keys, |key| key >> 8 & 0x7ff);
    let groups = each(&keys, |key| key >> 6 & 3);
    let behind = each(&keys, |key| !key & 63);
    let mut roots = [0_u16; LANES];
    let mut codes = [0_u16; LANES];
    let mut tails = [0_u32; LANES];
    for ((top, place), ((root_code, code), tail)) in tops
        .iter()
        .zip(&places)
        .zip(roots.iter_mut().zip(&mut codes).zip(&mut tails))
    {
        let root = batch::root_entry(slots, *top as usize);
        *root_code = root.code();
        let entry = batch::flat_entry(Native, segments, root, FLAT_HEADER + *place as usize);
        *code = entry.code();
        *tail = entry.handle();
    }
    let mut leaves = [0_u16; LANES];
    for ((group, behind), (tail, leaf)) in groups
        .iter()
        .zip(&behind)
        .zip(tails.iter().zip(&mut leaves))
    {
        let group = *group as usize;
        let tail = Native.block(segments, *tail);
        let starts = tail.cell(TAIL.starts_at() + group) << (behind & 63);
        let before = tail.quarter(4 * TAIL.header() + group);
        *leaf = tail.quarter(usize::from(before) + starts.count_ones() as usize);
    }
    put(&over(&leaves, &over(&codes, &roots)), next_hops);
}

#[inline(always)]
fn keys<A: Address>(addresses: &[A; LANES]) -> [u32; LANES] {
    let mut keys = [0; LANES];
    for (key, address) in keys.iter_mut().zip(addresses) {
        *key = (address.to_key() >> 96 & 0xffff_ffff) as u32;
    }
    keys
}

#[inline(always)]
fn each(keys: &[u32; LANES], part: impl Fn(u32) -> u32) -> [u32; LANES] {
    let mut parts = [0; LANES];
    for (place, key) in parts.iter_mut().zip(keys) {
        *place = part(*key);
    }
    parts
}

/// Each of `codes`, or what is `below` it when that is none.
#[inline(always)]
fn over(codes: &[u16; LANES], below: &[u16; LANES]) -> [u16; LANES] {
    let mut answers = [0; LANES];
    for (answer, (code, below)) in answers.iter_mut().zip(codes.iter().zip(below)) {
        *answer = if *code == 0 { *below } else { *code };
    }
    answers
}

#[inline(always)]
fn put(codes: &[u16; LANES], next_hops: &mut [Option<NextHopId>; LANES]) {
    for (next_hop, code) in next_hops.iter_mut().zip(codes) {
        *next_hop = NextHopId::from_code(*code);
    }
}
