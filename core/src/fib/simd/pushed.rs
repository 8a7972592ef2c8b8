//! Pushed chunks (`fib/pushed/`) by address, with AVX-512 eight addresses to a vector.
//!
//! A lookup is root word, group cell, leaf. The group cell's place is computed one address after the other, from the
//! address as it is in memory; the cells are put together to vectors, which find the leaves' places; and the leaves are
//! read one by one straight into the answers. Places are taken out of a vector once, then, and no answer is put into one.
//!
//! Without AVX-512 a group goes in passes, each of which asks for what the next one reads.
//!
//! The twin is portable, in `fib/pushed/block.rs`.

use core::arch::x86_64::{
    __m128i, __m512i, _bextr2_u32, _mm_cmpeq_epi16_mask, _mm_cvtepu8_epi16, _mm_insert_epi8,
    _mm_insert_epi16, _mm_max_epu16, _mm_set1_epi16, _mm_setzero_si128, _mm256_cvtepi32_epi16,
    _mm256_srli_epi32, _mm512_add_epi64, _mm512_and_si512, _mm512_i64gather_epi32,
    _mm512_i64gather_epi64, _mm512_maskz_popcnt_epi32, _mm512_set1_epi64, _mm512_setzero_si512,
    _mm512_shrdv_epi32, _mm512_slli_epi64, _mm512_srli_epi64, _mm512_sub_epi64,
    _mm512_test_epi64_mask,
};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};
use core::{hint, mem, ptr};

use super::super::NextHopId;
use super::super::address::Address;
#[cfg(debug_assertions)]
use super::super::arena;
use super::super::arena::Segment;
use super::super::batch::{LANES, key_of};
use super::super::node::{DENSE_BITS, ROOT_STRIDE};
use super::super::pushed::{
    self, GROUPS, GROUPS_AT, MOST_CELLS, PushedRoot, ROOT_SHIFT, SLOTS, Short, escape, leaf_octet,
};

use super::lanes::{EIGHT, Places, gather, keys_of_eight};
use super::narrow::{Group, in_groups, prefetch};
use super::{Native, NativeBlock};

/// What a group is looked up in.
pub(super) struct Table<'a> {
    words: &'a [u64; SLOTS],
    pushed: &'a PushedRoot,
    segments: &'a [Segment],
}

impl<'a> Table<'a> {
    #[inline(always)]
    fn of(pushed: &'a PushedRoot, segments: &'a [Segment]) -> Option<Self> {
        Some(Self {
            words: (&*pushed.words).try_into().ok()?,
            pushed,
            segments,
        })
    }
}

/// Looks up each of `addresses`, without vectors.
#[inline(always)]
pub(super) fn lookup<A: Address>(
    pushed: &PushedRoot,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let Some(table) = Table::of(pushed, segments) else {
        return;
    };
    match (pushed.wide, pushed.short.some) {
        (false, false) => in_groups::<A, Scalars<false, false>>(&table, addresses, next_hops),
        (false, true) => in_groups::<A, Scalars<false, true>>(&table, addresses, next_hops),
        (true, false) => in_groups::<A, Scalars<true, false>>(&table, addresses, next_hops),
        (true, true) => in_groups::<A, Scalars<true, true>>(&table, addresses, next_hops),
    }
}

/// Looks up each of `addresses`, eight to a vector.
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
pub(super) fn lookup_in_vectors<A: Address, const GATHER: bool>(
    pushed: &PushedRoot,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    match (pushed.wide, pushed.short.some) {
        (false, false) => {
            by_vectors::<A, false, false, GATHER>(pushed, segments, addresses, next_hops)
        }
        (false, true) => {
            by_vectors::<A, false, true, GATHER>(pushed, segments, addresses, next_hops)
        }
        (true, false) => {
            by_vectors::<A, true, false, GATHER>(pushed, segments, addresses, next_hops)
        }
        (true, true) => by_vectors::<A, true, true, GATHER>(pushed, segments, addresses, next_hops),
    }
}

/// The same for a table whose leaves are `WIDE` and which has `SHORT` routes: a function of its own for each kind, so that
/// none sets up what another needs.
#[inline(never)]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn by_vectors<A: Address, const WIDE: bool, const SHORT: bool, const GATHER: bool>(
    pushed: &PushedRoot,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    if let Some(table) = Table::of(pushed, segments) {
        in_groups::<A, Vectors<WIDE, SHORT, GATHER>>(&table, addresses, next_hops);
    }
}

/// The code for one address.
#[inline(always)]
pub(super) fn lookup_one(pushed: &PushedRoot, segments: &[Segment], key: u32) -> u16 {
    let Some(table) = Table::of(pushed, segments) else {
        return 0;
    };
    if pushed.wide {
        one::<true>(&table, key)
    } else {
        one::<false>(&table, key)
    }
}

/// A group one address after the other.
struct Scalars<const WIDE: bool, const SHORT: bool>;

impl<const WIDE: bool, const SHORT: bool> Group for Scalars<WIDE, SHORT> {
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
        let mut blocks = [ptr::null(); LANES];
        for (address, block) in addresses.iter().zip(&mut blocks) {
            let key = key_of(*address);
            *block = block_of(table.words, key);
            prefetch(group(*block, key));
        }
        let mut leaves = [ptr::null(); LANES];
        for ((address, block), leaf) in addresses.iter().zip(&blocks).zip(&mut leaves) {
            *leaf = place::<WIDE>(*block, key_of(*address));
            prefetch(*leaf);
        }
        let mut escapes = 0;
        for (at, ((address, leaf), next_hop)) in addresses
            .iter()
            .zip(&leaves)
            .zip(next_hops.iter_mut())
            .enumerate()
        {
            let code = read::<WIDE>(*leaf);
            escapes |= u32::from(code == escape(WIDE)) << at;
            *next_hop = NextHopId::from_code(said::<A, SHORT>(table, code, address));
        }
        if escapes != 0 {
            settle::<A, WIDE, false>(table, addresses, next_hops, escapes);
        }
    }
}

/// A group eight to a vector.
struct Vectors<const WIDE: bool, const SHORT: bool, const GATHER: bool>;

impl<const WIDE: bool, const SHORT: bool, const GATHER: bool> Group
    for Vectors<WIDE, SHORT, GATHER>
{
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
        // SAFETY: whoever takes this group was compiled for these instructions, too: `pushed_avx512`.
        unsafe {
            if GATHER {
                gathered::<A, WIDE, SHORT>(table, addresses, next_hops);
            } else {
                vectors::<A, WIDE, SHORT>(table, addresses, next_hops);
            }
        }
    }
}

/// The places of the leaves of eight addresses, and which of them may be an escape. Those of group cells are computed one
/// by one: to take them out of a vector would take longer. Not a function, which the compiler would call.
macro_rules! leaves_of_eight {
    ($words:expr, $eight:expr, $single:expr) => {{
        let [a, b, c, d, e, f, g, h] = $single;
        let (a, b, c, d) = (
            root_and_group($words, a),
            root_and_group($words, b),
            root_and_group($words, c),
            root_and_group($words, d),
        );
        let (e, f, g, h) = (
            root_and_group($words, e),
            root_and_group($words, f),
            root_and_group($words, g),
            root_and_group($words, h),
        );
        // SAFETY: the first of each are words of the root; the second are as in `cell`.
        let (blocks, cells) = unsafe {
            (
                gather([a.0, b.0, c.0, d.0, e.0, f.0, g.0, h.0]),
                gather([a.1, b.1, c.1, d.1, e.1, f.1, g.1, h.1]),
            )
        };
        let maybe = _mm512_test_epi64_mask(cells, _mm512_set1_epi64(1 << 31));
        let places = Places::of(leaves::<WIDE>(blocks, cells, keys_of_eight($eight)));
        (places, maybe)
    }};
}

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
    // The compiler must not know that these are the same, or it takes single addresses out of the vectors.
    let (singles, _) = hint::black_box(addresses).as_chunks::<EIGHT>();
    let ([one, two, three, four], [a, b, c, d]) = (eights, singles) else {
        return;
    };
    let (one, maybe_one) = leaves_of_eight!(table.words, one, a);
    let (two, maybe_two) = leaves_of_eight!(table.words, two, b);
    let (three, maybe_three) = leaves_of_eight!(table.words, three, c);
    let (four, maybe_four) = leaves_of_eight!(table.words, four, d);
    let places = [one, two, three, four];
    let (answers, _) = next_hops.as_chunks_mut::<EIGHT>();
    let escapes = if SHORT {
        for ((eight, places), answers) in eights.iter().zip(&places).zip(answers) {
            for ((address, place), next_hop) in eight.iter().zip(places.each()).zip(answers) {
                let code = read::<WIDE>(ptr::with_exposed_provenance(place));
                let code = table.pushed.short.below(code, key_of(*address));
                *next_hop = NextHopId::from_code(code);
            }
        }
        u32::from_le_bytes([maybe_one, maybe_two, maybe_three, maybe_four])
    } else {
        // No leaf is larger than the escape. In a full table one address in 745 finds it, but one in 174 is in a group that
        // has one: 4 batches of 32 in a hundred, and 17, for a branch that is not foreseen.
        let mut largest = _mm_setzero_si128();
        for (places, answers) in places.iter().zip(answers) {
            let codes = read_eight::<WIDE>(places);
            largest = _mm_max_epu16(largest, codes);
            // SAFETY: both are eight 16-bit numbers, and every value is one of each.
            let codes = unsafe { mem::transmute::<__m128i, [u16; EIGHT]>(codes) };
            *answers = codes.map(NextHopId::from_code);
        }
        let escape = _mm_set1_epi16(escape(WIDE).cast_signed());
        if _mm_cmpeq_epi16_mask(largest, escape) == 0 {
            0
        } else {
            u32::MAX
        }
    };
    if escapes != 0 {
        settle::<A, WIDE, SHORT>(table, addresses, next_hops, escapes);
    }
}

/// The same by gathers: all words of the root, all group cells, all leaves.
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn gathered<A: Address, const WIDE: bool, const SHORT: bool>(
    table: &Table<'_>,
    addresses: &[A; LANES],
    next_hops: &mut [Option<NextHopId>; LANES],
) {
    let (eights, _) = addresses.as_chunks::<EIGHT>();
    let [a, b, c, d] = eights else {
        return;
    };
    let keys = [
        keys_of_eight(a),
        keys_of_eight(b),
        keys_of_eight(c),
        keys_of_eight(d),
    ];
    let none = _mm512_setzero_si512();
    let (mut blocks, mut cells) = ([none; LANES / EIGHT], [none; LANES / EIGHT]);
    for (block, key) in blocks.iter_mut().zip(keys) {
        // SAFETY: a root slot is one of the words.
        *block = unsafe {
            let slot = _mm512_srli_epi64::<{ ROOT_SHIFT }>(key);
            _mm512_i64gather_epi64::<8>(slot, table.words.as_ptr().cast())
        };
    }
    for ((cell, block), key) in cells.iter_mut().zip(blocks).zip(keys) {
        let group = _mm512_srli_epi64::<{ 8 + DENSE_BITS - 3 }>(key);
        let group = _mm512_and_si512(group, _mm512_set1_epi64((GROUPS as i64 - 1) << 3));
        let place = _mm512_add_epi64(block, group);
        // SAFETY: as in `cell`.
        *cell =
            unsafe { _mm512_i64gather_epi64::<1>(place, ptr::without_provenance(8 * GROUPS_AT)) };
    }
    let (answers, _) = next_hops.as_chunks_mut::<EIGHT>();
    let mut largest = _mm_setzero_si128();
    let lanes = blocks.iter().zip(cells).zip(keys).zip(eights).zip(answers);
    for ((((block, cell), key), addresses), next_hops) in lanes {
        let places = leaves::<WIDE>(*block, cell, key);
        // SAFETY: as in `read`; group cells come before the leaves of a block.
        let codes = unsafe { gather_leaves::<WIDE>(ptr::null(), places) };
        let codes = answer::<A, SHORT>(&table.pushed.short, addresses, codes, next_hops);
        largest = _mm_max_epu16(largest, codes);
    }
    let escape = _mm_set1_epi16(escape(WIDE).cast_signed());
    // What a short route says may be larger than the escape of leaves of one octet.
    if (SHORT && !WIDE) || _mm_cmpeq_epi16_mask(largest, escape) != 0 {
        settle::<A, WIDE, SHORT>(table, addresses, next_hops, u32::MAX);
    }
}

/// The leaves at eight places, octets from `first` on. Each is the last of four octets that are read, or with `WIDE` the
/// last two.
///
/// # Safety
///
/// At each place is a leaf, after three octets or with `WIDE` two, in memory that nobody writes meanwhile.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bw")]
pub(super) unsafe fn gather_leaves<const WIDE: bool>(first: *const u8, places: __m512i) -> __m128i {
    // SAFETY: the caller says so.
    unsafe {
        _mm256_cvtepi32_epi16(if WIDE {
            let fours = _mm512_i64gather_epi32::<1>(places, first.wrapping_sub(2).cast());
            _mm256_srli_epi32::<16>(fours)
        } else {
            let fours = _mm512_i64gather_epi32::<1>(places, first.wrapping_sub(3).cast());
            _mm256_srli_epi32::<24>(fours)
        })
    }
}

/// Writes what the leaves of eight addresses say, or the short routes where they say nothing; gives the codes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn answer<A: Address, const SHORT: bool>(
    short: &Short,
    addresses: &[A; EIGHT],
    codes: __m128i,
    next_hops: &mut [Option<NextHopId>; EIGHT],
) -> __m128i {
    // SAFETY: both are eight 16-bit numbers, and every value is one of each.
    let mut each = unsafe { mem::transmute::<__m128i, [u16; EIGHT]>(codes) };
    if SHORT {
        for (code, address) in each.iter_mut().zip(addresses) {
            *code = short.below(*code, key_of(*address));
        }
    }
    *next_hops = each.map(NextHopId::from_code);
    // SAFETY: as above.
    unsafe { mem::transmute::<[u16; EIGHT], __m128i>(each) }
}

/// Takes up the answers that are the escape, among the `lanes` that may be. With `SHORT` what looks like it may be what a
/// short route says, which is in no leaf and can be any code.
#[inline(never)]
fn settle<A: Address, const WIDE: bool, const SHORT: bool>(
    table: &Table<'_>,
    addresses: &[A; LANES],
    next_hops: &mut [Option<NextHopId>; LANES],
    mut lanes: u32,
) {
    while lanes != 0 {
        let lane = lanes.trailing_zeros() as usize % LANES;
        lanes &= lanes - 1;
        let (Some(address), Some(next_hop)) = (addresses.get(lane), next_hops.get_mut(lane)) else {
            continue;
        };
        if next_hop.map_or(0, NextHopId::code) == escape(WIDE) {
            let key = key_of(*address);
            let code = if SHORT {
                one::<WIDE>(table, key)
            } else {
                beyond(table, key)
            };
            *next_hop = NextHopId::from_code(code);
        }
    }
}

/// The code for one address whose leaf is the escape.
#[inline(never)]
fn beyond(table: &Table<'_>, key: u32) -> u16 {
    let block = NativeBlock {
        first: block_of(table.words, key),
        #[cfg(debug_assertions)]
        cells: arena::block(
            &table.pushed.lines,
            table
                .pushed
                .handles
                .get((key >> ROOT_SHIFT) as usize)
                .copied()
                .unwrap_or_default(),
        )
        .len(),
        segments: PhantomData,
    };
    let code = pushed::beyond(Native, table.pushed, table.segments, block, key);
    table.pushed.short.below(code, key)
}

/// Where an address's root word and its group cell are.
#[inline(always)]
fn root_and_group<A: Address>(words: &[u64; SLOTS], address: &A) -> (*const u64, *const u64) {
    let key = key_of(*address);
    let root = ptr::from_ref(words)
        .cast::<u64>()
        .wrapping_add(root_slot(key));
    (root, group(block_of(words, key), key).cast())
}

/// The root slot of `key`.
#[inline(always)]
fn root_slot(key: u32) -> usize {
    bits::<{ ROOT_SHIFT }, { ROOT_STRIDE as u32 }>(key)
}

/// Where `block` has the group cell of `key`: `group_of` of the portable twin.
#[inline(always)]
fn group(block: *const AtomicU64, key: u32) -> *const AtomicU64 {
    block.wrapping_add(GROUPS_AT + bits::<{ 8 + DENSE_BITS }, { GROUPS.ilog2() }>(key))
}

/// `COUNT` bits of `key` from bit `FIRST` on, in one instruction where the compiler takes two or three.
#[inline(always)]
fn bits<const FIRST: u32, const COUNT: u32>(key: u32) -> usize {
    // SAFETY: what this is inlined into was compiled for these instructions, as every level but the portable one is.
    let bits = unsafe { _bextr2_u32(key, FIRST | COUNT << 8) };
    bits as usize % (1 << COUNT)
}

/// Where the leaves are of eight addresses: `leaf_octet`.
#[inline]
#[target_feature(enable = "avx512f,avx512vpopcntdq,avx512vbmi2")]
fn leaves<const WIDE: bool>(blocks: __m512i, cells: __m512i, keys: __m512i) -> __m512i {
    let octet = _mm512_sub_epi64(_mm512_srli_epi64::<48>(cells), before::<WIDE>(cells, keys));
    _mm512_add_epi64(blocks, octet)
}

/// The octets that eight addresses' leaves come before the place that their group cells say.
#[inline]
#[target_feature(enable = "avx512f,avx512vpopcntdq,avx512vbmi2")]
pub(super) fn before<const WIDE: bool>(cells: __m512i, keys: __m512i) -> __m512i {
    // The lower half of a cell says where runs start. It is shifted by the last five bits of its number, which are the
    // slot, and of both halves only its bits are counted.
    let slot = _mm512_srli_epi64::<8>(keys);
    let starts = _mm512_shrdv_epi32(cells, _mm512_setzero_si512(), slot);
    let before = _mm512_maskz_popcnt_epi32(0x5555, starts);
    if WIDE {
        _mm512_slli_epi64::<1>(before)
    } else {
        before
    }
}

/// The code for one address.
#[inline(always)]
fn one<const WIDE: bool>(table: &Table<'_>, key: u32) -> u16 {
    let code = leaf::<WIDE>(table.words, key);
    if code == escape(WIDE) {
        return beyond(table, key);
    }
    table.pushed.short.below(code, key)
}

#[inline(always)]
fn leaf<const WIDE: bool>(words: &[u64; SLOTS], key: u32) -> u16 {
    read::<WIDE>(place::<WIDE>(block_of(words, key), key))
}

/// `code`, or what short routes say in tables that have some.
#[inline(always)]
fn said<A: Address, const SHORT: bool>(table: &Table<'_>, code: u16, address: &A) -> u16 {
    if SHORT {
        table.pushed.short.below(code, key_of(*address))
    } else {
        code
    }
}

/// The block of the root slot of `key`.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "x86-64 has 64 bits")]
fn block_of(words: &[u64; SLOTS], key: u32) -> *const AtomicU64 {
    let word = words.get(root_slot(key)).copied().unwrap_or_default();
    ptr::with_exposed_provenance(word as usize)
}

/// Where `block` has the leaf of `key`.
#[inline(always)]
fn place<const WIDE: bool>(block: *const AtomicU64, key: u32) -> *const u8 {
    let octet = leaf_octet(cell(group(block, key)), key, WIDE);
    debug_assert!(octet < 8 * MOST_CELLS, "octet {octet}");
    block.cast::<u8>().wrapping_add(octet)
}

/// A group cell of a block that a word leads to.
#[inline(always)]
fn cell(place: *const AtomicU64) -> u64 {
    // SAFETY: the writer made the words of this root from the addresses of pushed blocks in the segments that the root
    // keeps, one for each slot, and exposed them. A pushed block has 64 group cells.
    unsafe { (*place).load(Ordering::Relaxed) }
}

/// The leaves at eight places. Each goes into a vector by the instruction that loads it, and one store takes all: fewer
/// instructions than a load and a store each.
#[inline]
#[target_feature(enable = "avx512f")]
fn read_eight<const WIDE: bool>(places: &Places) -> __m128i {
    let [a, b, c, d, e, f, g, h] = places
        .each()
        .map(|place| i32::from(read::<WIDE>(ptr::with_exposed_provenance(place))));
    let none = _mm_setzero_si128();
    if WIDE {
        let codes = _mm_insert_epi16::<1>(_mm_insert_epi16::<0>(none, a), b);
        let codes = _mm_insert_epi16::<3>(_mm_insert_epi16::<2>(codes, c), d);
        let codes = _mm_insert_epi16::<5>(_mm_insert_epi16::<4>(codes, e), f);
        _mm_insert_epi16::<7>(_mm_insert_epi16::<6>(codes, g), h)
    } else {
        let codes = _mm_insert_epi8::<1>(_mm_insert_epi8::<0>(none, a), b);
        let codes = _mm_insert_epi8::<3>(_mm_insert_epi8::<2>(codes, c), d);
        let codes = _mm_insert_epi8::<5>(_mm_insert_epi8::<4>(codes, e), f);
        _mm_cvtepu8_epi16(_mm_insert_epi8::<7>(_mm_insert_epi8::<6>(codes, g), h))
    }
}

/// The leaf at `place`.
#[inline(always)]
fn read<const WIDE: bool>(place: *const u8) -> u16 {
    // SAFETY: a group cell leads to the octet of its own code or to leaves that `PushedDraft::write` wrote into the same
    // block; of two octets, they are aligned to two, since cells are aligned to eight. A block that a snapshot reaches is not
    // written again while the snapshot lives, so that a part of a cell can be read as plain memory. x86-64 is
    // little-endian: the first leaf comes first.
    unsafe {
        if WIDE {
            place.cast::<u16>().read()
        } else {
            u16::from(place.read())
        }
    }
}
