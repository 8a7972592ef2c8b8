//! A worker's copy of a large IPv4 table (`fib/replica.rs`) with AVX-512: sixteen group cells by two gathers, the leaves
//! by two.
//!
//! An escape, which one address in several hundred finds, is looked up in the snapshot.

use core::arch::x86_64::{
    __m128i, __m512i, _mm_cmpeq_epi16_mask, _mm_max_epu16, _mm_set1_epi16, _mm512_cmpeq_epi16_mask,
    _mm512_i64gather_epi64, _mm512_set1_epi16, _mm512_srli_epi64, _mm512_sub_epi64,
};
use core::mem;

use super::super::NextHopId;
use super::super::address::Address;
use super::super::batch::{LANES, key_of};
use super::super::node::DENSE_BITS;
use super::super::pushed::{GROUPS, ROOT_SHIFT, escape, tail};
use super::super::reader::Snapshot;
use super::super::replica::Replica;

use super::Native;
use super::dir24::{self, Codes};
use super::lanes::{EIGHT, keys_of_eight};
use super::narrow::{Group, in_groups};
use super::pushed::{self, answer, before, gather_leaves};

/// What a group is looked up in.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    replica: &'a Replica,
    snapshot: &'a Snapshot,
}

/// Looks up each of `addresses`, eight to a vector.
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
pub(super) fn lookup<A: Address, const GATHER: bool>(
    replica: &Replica,
    snapshot: &Snapshot,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let table = Table { replica, snapshot };
    if let Some(octets) = replica.codes() {
        let codes = Codes { octets, table };
        if replica.wide {
            dir24::lookup::<A, true, GATHER>(codes, addresses, next_hops);
        } else {
            dir24::lookup::<A, false, GATHER>(codes, addresses, next_hops);
        }
        return;
    }
    match (replica.wide, replica.short.some) {
        (false, false) => by_vectors::<A, false, false>(table, addresses, next_hops),
        (false, true) => by_vectors::<A, false, true>(table, addresses, next_hops),
        (true, false) => by_vectors::<A, true, false>(table, addresses, next_hops),
        (true, true) => by_vectors::<A, true, true>(table, addresses, next_hops),
    }
}

/// Makes the codes of all /24 of a root slot (`fib/dir24.rs`).
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
#[expect(clippy::cast_possible_truncation, reason = "a root slot has 13 bits")]
pub(super) fn fill_codes(replica: &Replica, slot: usize, codes: &mut [u8]) {
    let (slots, _) = replica.groups().as_chunks::<GROUPS>();
    let Some(cells) = slots.get(slot) else {
        return;
    };
    // Short routes hold whole root slots.
    let below = replica.short.below(0, (slot << ROOT_SHIFT) as u32);
    if replica.wide {
        dir24::fill::<true>(cells, replica.leaves(), below, codes);
    } else {
        dir24::fill::<false>(cells, replica.leaves(), below, codes);
    }
}

#[inline(never)]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn by_vectors<A: Address, const WIDE: bool, const SHORT: bool>(
    table: Table<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    in_groups::<A, Vectors<WIDE, SHORT>>(&table, addresses, next_hops);
}

/// A group eight to a vector.
struct Vectors<const WIDE: bool, const SHORT: bool>;

impl<const WIDE: bool, const SHORT: bool> Group for Vectors<WIDE, SHORT> {
    type Table<'a> = Table<'a>;

    #[inline(always)]
    fn one(table: &Table<'_>, key: u32) -> u16 {
        one::<WIDE>(table, key)
    }

    #[inline(always)]
    fn lookup<A: Address>(
        table: &Table<'_>,
        addresses: &[A; LANES],
        next_hops: &mut [Option<NextHopId>; LANES],
    ) {
        // SAFETY: whoever takes this group was compiled for these instructions, too: `replica_avx512`.
        unsafe { vectors::<A, WIDE, SHORT>(table, addresses, next_hops) };
    }
}

/// The group cells of all, then the leaves of all.
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn vectors<A: Address, const WIDE: bool, const SHORT: bool>(
    table: &Table<'_>,
    addresses: &[A; LANES],
    next_hops: &mut [Option<NextHopId>; LANES],
) {
    let (eights, _) = addresses.as_chunks::<EIGHT>();
    let (answers, _) = next_hops.as_chunks_mut::<EIGHT>();
    let ([a, b, c, d], [to_a, to_b, to_c, to_d]) = (eights, answers) else {
        return;
    };
    let (keys_a, keys_b) = (keys_of_eight(a), keys_of_eight(b));
    let (keys_c, keys_d) = (keys_of_eight(c), keys_of_eight(d));
    let (cells_a, cells_b) = (cells(table, keys_a), cells(table, keys_b));
    let (cells_c, cells_d) = (cells(table, keys_c), cells(table, keys_d));
    let codes_a = answer::<A, SHORT>(
        &table.replica.short,
        a,
        leaves::<WIDE>(table, cells_a, keys_a),
        to_a,
    );
    let codes_b = answer::<A, SHORT>(
        &table.replica.short,
        b,
        leaves::<WIDE>(table, cells_b, keys_b),
        to_b,
    );
    let codes_c = answer::<A, SHORT>(
        &table.replica.short,
        c,
        leaves::<WIDE>(table, cells_c, keys_c),
        to_c,
    );
    let codes_d = answer::<A, SHORT>(
        &table.replica.short,
        d,
        leaves::<WIDE>(table, cells_d, keys_d),
        to_d,
    );
    let largest = _mm_max_epu16(
        _mm_max_epu16(codes_a, codes_b),
        _mm_max_epu16(codes_c, codes_d),
    );
    let most = _mm_set1_epi16(escape(WIDE).cast_signed());
    // What a short route says may be larger than the escape of leaves of one octet.
    if (SHORT && !WIDE) || _mm_cmpeq_epi16_mask(largest, most) != 0 {
        settle::<A, WIDE>(table, addresses, next_hops);
    }
}

/// The group cells of eight addresses.
#[inline]
#[target_feature(enable = "avx512f")]
fn cells(table: &Table<'_>, keys: __m512i) -> __m512i {
    let group = _mm512_srli_epi64::<{ GROUP_SHIFT }>(keys);
    // SAFETY: the first 19 bits of an address number the group cells.
    unsafe { _mm512_i64gather_epi64::<8>(group, table.replica.groups().as_ptr().cast()) }
}

/// What the leaves of eight addresses say.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2")]
fn leaves<const WIDE: bool>(table: &Table<'_>, cells: __m512i, keys: __m512i) -> __m128i {
    let places = _mm512_sub_epi64(_mm512_srli_epi64::<32>(cells), before::<WIDE>(cells, keys));
    // SAFETY: the upper half of a cell is a place from `LEAST_PLACE` to the last but one, and at most 32 leaves come off it.
    unsafe { gather_leaves::<WIDE>(table.replica.leaves().as_ptr(), places) }
}

/// Takes up the answers that are the escape, or look like it.
#[inline(never)]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
pub(super) fn settle<A: Address, const WIDE: bool>(
    table: &Table<'_>,
    addresses: &[A; LANES],
    next_hops: &mut [Option<NextHopId>; LANES],
) {
    let codes = next_hops.map(|next_hop| next_hop.map_or(0, NextHopId::code));
    // SAFETY: both are 32 16-bit numbers, and every value is one of each.
    let codes = unsafe { mem::transmute::<[u16; LANES], __m512i>(codes) };
    let most = _mm512_set1_epi16(escape(WIDE).cast_signed());
    let mut lanes = _mm512_cmpeq_epi16_mask(codes, most);
    while lanes != 0 {
        let lane = lanes.trailing_zeros() as usize % LANES;
        lanes &= lanes - 1;
        if let (Some(address), Some(next_hop)) = (addresses.get(lane), next_hops.get_mut(lane)) {
            *next_hop = NextHopId::from_code(beyond(table, key_of(*address)));
        }
    }
}

/// The code for one address.
#[inline(always)]
pub(super) fn one<const WIDE: bool>(table: &Table<'_>, key: u32) -> u16 {
    let cell = table
        .replica
        .groups()
        .get((key >> GROUP_SHIFT) as usize)
        .copied()
        .unwrap_or_default();
    let starts = (cell & 0xffff_ffff) as u32;
    let before = (starts >> (key >> 8 & ((1 << DENSE_BITS) - 1))).count_ones() as usize;
    let place = ((cell >> 32) as usize).wrapping_sub(before << usize::from(WIDE));
    let octet = |at: usize| table.replica.leaves().get(at).copied().unwrap_or_default();
    let code = if WIDE {
        u16::from_le_bytes([octet(place), octet(place + 1)])
    } else {
        u16::from(octet(place))
    };
    if code == escape(WIDE) {
        return beyond(table, key);
    }
    table.replica.short.below(code, key)
}

/// The code for one address whose leaf is the escape, or which a short route says to look like it.
#[inline(always)]
fn beyond(table: &Table<'_>, key: u32) -> u16 {
    let Some(root) = &table.snapshot.pushed else {
        return 0;
    };
    let segments = &table.snapshot.segments;
    match table.replica.entry(key) {
        Some(entry) => table
            .replica
            .short
            .below(tail(Native, root, segments, entry, key), key),
        None => pushed::lookup_one(root, segments, key),
    }
}

/// Bits of an address below those that number its group cell.
const GROUP_SHIFT: u32 = 8 + DENSE_BITS;
