//! Batches in a worker's copy of a large IPv6 table (`fib/strides/`) by gathers: an octet of eight addresses a step.
//!
//! A step is two gathers, of what a node says about its runs and of the leaf; the second mostly reads the line that the
//! first has brought. All addresses of a group take a step before any takes the next, whether it leads them anywhere or
//! not: an address that has got to its end goes on through the node that is nowhere. So no branch depends on addresses, but
//! for one after the tops, where most of the address space ends.
//!
//! A single address begins halfway down where the hash says so (`strides/middles.rs`). Whether it does, and whether it
//! goes on from there, are branches: what is guessed right is not waited for. Whether a node has few runs or many is none,
//! since that cannot be guessed; both ways are short.
//!
//! Below /48, which one address in hundreds is, the trie is asked.

use core::arch::x86_64::{
    __m128i, __m512i, _MM_HINT_NTA, _mm_cmpeq_epi8, _mm_cmpgt_epi16_mask, _mm_loadl_epi64,
    _mm_max_epu8, _mm_move_epi64, _mm_movemask_epi8, _mm_or_si128, _mm_prefetch, _mm_set1_epi8,
    _mm_setzero_si128, _mm_storeu_si128, _mm256_castsi256_ps, _mm256_cmpeq_epi32,
    _mm256_load_si256, _mm256_movemask_ps, _mm256_set1_epi32, _mm512_add_epi64, _mm512_and_si512,
    _mm512_cmplt_epu8_mask, _mm512_cvtepi64_epi16, _mm512_i64gather_epi64, _mm512_mask_and_epi64,
    _mm512_mask_sllv_epi64, _mm512_maskz_and_epi64, _mm512_maskz_mov_epi8, _mm512_or_si512,
    _mm512_popcnt_epi64, _mm512_set1_epi8, _mm512_set1_epi64, _mm512_set4_epi64,
    _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_slli_epi64, _mm512_srli_epi64,
    _mm512_ternarylogic_epi64, _mm512_test_epi64_mask,
};
use core::hint::select_unpredictable;
use core::slice;

use super::super::NextHopId;
use super::super::address::Address;
use super::super::batch;
use super::super::hashed::halves;
use super::super::node::{CHUNK_STRIDE, ROOT_STRIDE};
use super::super::reader::FibReader;
use super::super::strides::{CODE, NARROW, NODES, Strides, WIDE, line_of};
use super::super::windows::ASK;
use super::Native;
use super::gathered::high_of_eight;
use super::longest::{EIGHT, LANES};
use super::windows::{next, pick};

/// Looks up each of `addresses`, in the trie what is below /48.
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
pub(super) fn lookup<A: Address>(
    strides: &Strides,
    reader: &FibReader<A>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    // As many as the shorter holds.
    let count = addresses.len().min(next_hops.len());
    let (addresses, _) = addresses.split_at(count);
    let (next_hops, _) = next_hops.split_at_mut(count);
    let (groups, rest) = addresses.as_chunks::<LANES>();
    let (answers, rest_answers) = next_hops.as_chunks_mut::<LANES>();
    for (addresses, next_hops) in groups.iter().zip(answers) {
        ask_ahead(addresses);
        let (eights, places) = (addresses.as_chunks().0, next_hops.as_chunks_mut().0);
        let open = if strides.is_wide() {
            group::<A, { LANES / EIGHT }, WIDE>(strides, eights, places)
        } else {
            group::<A, { LANES / EIGHT }, NARROW>(strides, eights, places)
        };
        if open != 0 {
            settle(reader, addresses, next_hops, open);
        }
    }
    if !rest.is_empty() {
        less_than_a_group(strides, reader, rest, rest_answers);
    }
}

/// Looks up as many addresses as there are answers, fewer than a group.
#[inline(never)]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn less_than_a_group<A: Address>(
    strides: &Strides,
    reader: &FibReader<A>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    for (addresses, next_hops) in addresses.chunks(EIGHT).zip(next_hops.chunks_mut(EIGHT)) {
        let Some(first) = addresses.first() else {
            return;
        };
        if addresses.len() < EIGHT / 2 {
            for (address, next_hop) in addresses.iter().zip(next_hops) {
                *next_hop = reader.lookup(*address);
            }
            return;
        }
        let mut eight = [*first; EIGHT];
        for (address, lane) in addresses.iter().zip(&mut eight) {
            *lane = *address;
        }
        let mut answers = [None; EIGHT];
        let (places, eights) = (slice::from_mut(&mut answers), slice::from_ref(&eight));
        let open = if strides.is_wide() {
            group::<A, 1, WIDE>(strides, eights, places)
        } else {
            group::<A, 1, NARROW>(strides, eights, places)
        };
        settle(reader, &eight, &mut answers, open);
        for (answer, next_hop) in answers.iter().zip(next_hops) {
            *next_hop = *answer;
        }
    }
}

/// Looks up in the trie the lanes, a bit each, that the copy has left open.
#[inline(never)]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe")]
fn settle<A: Address>(
    reader: &FibReader<A>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
    mut open: u32,
) {
    let view = reader.view();
    while open != 0 {
        let lane = next(&mut open);
        if let (Some(address), Some(next_hop)) = (addresses.get(lane), next_hops.get_mut(lane)) {
            let code = batch::lookup_one::<A>(Native, &view, address.to_key());
            *next_hop = NextHopId::from_code(code);
        }
    }
}

/// Looks up `EIGHTS` times eight addresses; gives the lanes, a bit each, that the trie must be asked for.
#[inline(never)]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn group<A: Address, const EIGHTS: usize, const WIDTH: usize>(
    strides: &Strides,
    addresses: &[[A; EIGHT]],
    next_hops: &mut [[Option<NextHopId>; EIGHT]],
) -> u32 {
    let (Ok(addresses), Ok(next_hops)) = (
        <&[[A; EIGHT]; EIGHTS]>::try_from(addresses),
        <&mut [[Option<NextHopId>; EIGHT]; EIGHTS]>::try_from(next_hops),
    ) else {
        return 0;
    };
    let octets = strides.octets().as_ptr();
    let none = _mm512_setzero_si512();
    let mut highs = [none; EIGHTS];
    let mut codes = [none; EIGHTS];
    let mut leaves = [none; EIGHTS];
    for (high, eight) in highs.iter_mut().zip(addresses) {
        *high = high_of_eight(eight);
    }
    for (high, code) in highs.iter().zip(&mut codes) {
        let slot = _mm512_srli_epi64::<{ 64 - ROOT_STRIDE as u32 }>(*high);
        // SAFETY: the first 13 bits of an address number the root entries.
        *code = unsafe { _mm512_i64gather_epi64::<8>(slot, strides.roots().as_ptr().cast()) };
    }
    let mut any = none;
    for ((high, code), leaf) in highs.iter().zip(&codes).zip(&mut leaves) {
        let slot = _mm512_srli_epi64::<{ 64 - ROOT_STRIDE as u32 - CHUNK_STRIDE as u32 }>(*high);
        let slot = _mm512_and_si512(slot, _mm512_set1_epi64((1 << CHUNK_STRIDE) - 1));
        let at = _mm512_add_epi64(_mm512_srli_epi64::<32>(*code), times::<WIDTH>(slot));
        // SAFETY: a root entry names a top, which has a leaf for each slot, and eight octets from each one's first on.
        *leaf = unsafe { _mm512_i64gather_epi64::<1>(at, octets.cast()) };
        any = _mm512_or_si512(any, *leaf);
    }
    if _mm512_test_epi64_mask(any, _mm512_set1_epi64(((1 << 24) - 1) << code_bits(WIDTH))) != 0 {
        for ((high, code), leaf) in highs.iter().zip(&mut codes).zip(&mut leaves) {
            *code = over::<WIDTH>(*code, *leaf);
            *leaf = step::<32, WIDTH, WIDTH>(octets, *leaf, *high);
        }
        for ((high, code), leaf) in highs.iter().zip(&mut codes).zip(&mut leaves) {
            *code = over::<WIDTH>(*code, *leaf);
            *leaf = step::<24, WIDTH, WIDTH>(octets, *leaf, *high);
        }
        for ((high, code), leaf) in highs.iter().zip(&mut codes).zip(&mut leaves) {
            *code = over::<WIDTH>(*code, *leaf);
            *leaf = step::<16, WIDTH, CODE>(octets, *leaf, *high);
        }
    }
    let mut some = _mm_setzero_si128();
    for ((code, leaf), next_hops) in codes.iter().zip(&leaves).zip(next_hops.iter_mut()) {
        let codes = _mm512_cvtepi64_epi16(over::<CODE>(*code, *leaf));
        some = _mm_or_si128(some, codes);
        write(codes, next_hops);
    }
    if _mm_cmpgt_epi16_mask(_mm_setzero_si128(), some) == 0 {
        return 0;
    }
    let mut open = 0;
    for (lane, next_hop) in (0..).zip(next_hops.as_flattened()) {
        let code = next_hop.map_or(0, NextHopId::code);
        open |= u32::from(code & ASK != 0) << lane;
    }
    open
}

/// Looks up one address, in the trie below /48.
#[inline(always)]
pub(super) fn lookup_one<A: Address>(
    strides: &Strides,
    reader: &FibReader<A>,
    address: A,
) -> Option<NextHopId> {
    let (high, _) = halves(address.to_key());
    // SAFETY: the first 13 bits of an address number the root entries.
    let root = unsafe {
        *strides
            .roots()
            .get_unchecked((high >> (64 - ROOT_STRIDE)) as usize)
    };
    let code = if !Strides::has_top(root) {
        (root & 0xffff) as u16
    } else if strides.is_wide() {
        one::<WIDE>(strides, root, high)
    } else {
        one::<NARROW>(strides, root, high)
    };
    if code & ASK == 0 {
        NextHopId::from_code(code)
    } else {
        reader.lookup(address)
    }
}

/// The code for an address that begins with `high`, whose root entry is one with a top, by leaves of `WIDTH` octets;
/// [`ASK`], and more bits, when the trie must be asked.
#[inline(always)]
fn one<const WIDTH: usize>(strides: &Strides, root: u64, high: u64) -> u16 {
    let octets = strides.octets();
    let middle = middle(strides, (high >> 32) as u32);
    if middle != 0 {
        // SAFETY: the hash has nodes of the copy.
        let code = unsafe { from_middle::<WIDTH>(octets, middle, high) };
        if code != 0 {
            return code;
        }
    }
    let slot = (high >> (64 - ROOT_STRIDE - CHUNK_STRIDE)) as usize & ((1 << CHUNK_STRIDE) - 1);
    // SAFETY: a root entry names a top, which has a leaf for each slot, and eight octets from each one's first on; a leaf
    // of a top names a node of the copy, and so does one of that.
    unsafe {
        let top = leaf::<WIDTH>(octets, place(root >> 32) + WIDTH * slot);
        let mut code = pick(code_of::<WIDTH>(top), (root & 0xffff) as u16);
        if leads_on::<WIDTH>(top) {
            let leaf = step_one::<WIDTH>(octets, node_of::<WIDTH>(top), octet::<32>(high));
            code = pick(code_of::<WIDTH>(leaf), code);
            if leads_on::<WIDTH>(leaf) {
                code = pick(
                    from_middle::<WIDTH>(octets, node_of::<WIDTH>(leaf), high),
                    code,
                );
            }
        }
        code
    }
}

/// What the hash has for the first 32 bits of an address, 0 for nothing.
#[inline(always)]
fn middle(strides: &Strides, key: u32) -> u64 {
    let middles = strides.middles();
    let at = place(line_of(key) & middles.mask());
    debug_assert!(at < size_of_val(middles.lines()), "octet {at}");
    // SAFETY: of a place that is masked so a line begins there: as many keys as nodes.
    unsafe {
        let line = middles.lines().as_ptr().byte_add(at);
        let keys = _mm256_load_si256(line.cast());
        let equal = _mm256_cmpeq_epi32(keys, _mm256_set1_epi32(key.cast_signed()));
        let equal = _mm256_movemask_ps(_mm256_castsi256_ps(equal)).cast_unsigned();
        if equal == 0 {
            return 0;
        }
        let node = line
            .cast::<u32>()
            .add(NODES + equal.trailing_zeros() as usize);
        node.read().into()
    }
}

/// What a node for the octet after /32, and the one below it, say.
///
/// # Safety
///
/// `node` is one of the copy, as of [`step_one`].
#[inline(always)]
unsafe fn from_middle<const WIDTH: usize>(octets: &[u8], node: u64, high: u64) -> u16 {
    // SAFETY: so it is, and what its leaf names is one, too.
    unsafe {
        let leaf = step_one::<WIDTH>(octets, node, octet::<24>(high));
        if leads_on::<WIDTH>(leaf) {
            let last = step_one::<CODE>(octets, node_of::<WIDTH>(leaf), octet::<16>(high));
            if last != 0 {
                return code_of::<WIDE>(last);
            }
        }
        code_of::<WIDTH>(leaf)
    }
}

/// The leaf of `WIDTH` octets that a node has for `slot`. `node`: the octet that it begins with, and in bit 0 whether it
/// has many runs.
///
/// # Safety
///
/// There is such a node in the copy, whose octets these are.
#[inline(always)]
unsafe fn step_one<const WIDTH: usize>(octets: &[u8], node: u64, slot: u8) -> u64 {
    let first = place(node & !1);
    debug_assert!(first > 0 && first + 64 <= octets.len(), "node at {first}");
    // SAFETY: behind the first octet of any node are so many others, and more; before it is the node that is nowhere.
    unsafe {
        let at = octets.as_ptr().add(place(node));
        // Of few runs: the first that does not end before the slot. What is behind the ends is none that does.
        let slots = _mm_move_epi64(_mm_set1_epi8(slot.cast_signed()));
        let ends = _mm_loadl_epi64(at.cast());
        let reached = _mm_cmpeq_epi8(_mm_max_epu8(ends, slots), ends);
        let few = _mm_movemask_epi8(reached).trailing_zeros() as usize;
        // Of many: those that start in the 32 slots up to this one. The bit of many runs is set then, and no part of the
        // place.
        let cell = at.add(5 * usize::from(slot >> 5)).sub(1);
        let cell = cell.cast::<u64>().read_unaligned();
        let starts = (cell & 0xffff_ffff) << (31 - (slot & 31)) & 0xffff_ffff;
        let many = place(cell >> 32 & 0xff) + starts.count_ones() as usize;
        let run = select_unpredictable(node & 1 == 0, few, many);
        leaf::<WIDTH>(octets, first + 8 + WIDTH * run)
    }
}

/// The leaf of `WIDTH` octets at `at`.
///
/// # Safety
///
/// There are eight octets from there on.
#[inline(always)]
unsafe fn leaf<const WIDTH: usize>(octets: &[u8], at: usize) -> u64 {
    debug_assert!(at + 8 <= octets.len(), "leaf at {at}");
    // SAFETY: so there are.
    unsafe {
        let at = octets.as_ptr().add(at);
        match WIDTH {
            CODE => at.cast::<u16>().read_unaligned().into(),
            NARROW => at.cast::<u32>().read_unaligned().into(),
            _ => at.cast::<u64>().read_unaligned() & ((1 << 40) - 1),
        }
    }
}

/// The octet of an address that ends `SHIFT` bits before the end of its first half.
#[inline(always)]
const fn octet<const SHIFT: u32>(high: u64) -> u8 {
    let [octet, ..] = (high >> SHIFT).to_le_bytes();
    octet
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "x86-64 has 64 bits")]
const fn place(number: u64) -> usize {
    number as usize
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "at most 16 bits are left")]
const fn code_of<const WIDTH: usize>(leaf: u64) -> u16 {
    (leaf & ((1 << code_bits(WIDTH)) - 1)) as u16
}

/// Whether there is a node below.
#[inline(always)]
const fn leads_on<const WIDTH: usize>(leaf: u64) -> bool {
    leaf >> code_bits(WIDTH) != 0
}

/// That node, as [`step_one`] takes it.
#[inline(always)]
const fn node_of<const WIDTH: usize>(leaf: u64) -> u64 {
    let node = leaf >> code_bits(WIDTH);
    node >> 1 << 4 | node & 1
}

/// What the nodes that eight `leaves`, of `WIDTH` octets, lead to say about the octets of `highs` from bit `SHIFT` on:
/// leaves of `NEXT` octets; what is beyond these in the answer is something else.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
fn step<const SHIFT: u32, const WIDTH: usize, const NEXT: usize>(
    octets: *const u8,
    leaves: __m512i,
    highs: __m512i,
) -> __m512i {
    // That octet of each address, eight times.
    let first = 0x0101_0101_0101_0101 * i64::from(SHIFT / 8);
    let second = first + 0x0808_0808_0808_0808;
    let slots = _mm512_shuffle_epi8(highs, _mm512_set4_epi64(second, first, second, first));
    let many = _mm512_test_epi64_mask(leaves, _mm512_set1_epi64(1 << code_bits(WIDTH)));
    let nodes = match WIDTH {
        NARROW => _mm512_srli_epi64::<{ 8 + 1 - 4 }>(leaves),
        _ => _mm512_srli_epi64::<{ 16 + 1 - 4 }>(leaves),
    };
    let nodes = _mm512_and_si512(nodes, _mm512_set1_epi64(((1 << 23) - 1) << 4));
    let slot = match SHIFT {
        32 => _mm512_srli_epi64::<32>(highs),
        24 => _mm512_srli_epi64::<24>(highs),
        _ => _mm512_srli_epi64::<16>(highs),
    };
    let group = _mm512_maskz_and_epi64(many, _mm512_srli_epi64::<5>(slot), _mm512_set1_epi64(7));
    // Five times the number of the group.
    let cell = _mm512_shuffle_epi8(_mm512_set1_epi64(0x231e_1914_0f0a_0500), group);
    // SAFETY: a leaf names a node of the copy, or the one that is nowhere: behind each are so many octets and more.
    let runs = unsafe { _mm512_i64gather_epi64::<1>(_mm512_add_epi64(nodes, cell), octets.cast()) };
    // Of few runs, an octet with one bit for each that ends before the slot. Of many, the bits of those that start in the
    // 32 slots up to this one, moved so far that nothing else is left.
    let ended = _mm512_maskz_mov_epi8(_mm512_cmplt_epu8_mask(runs, slots), _mm512_set1_epi8(1));
    let by = _mm512_ternarylogic_epi64::<NOT_A_AND_B_OR_C>(
        slot,
        _mm512_set1_epi64(31),
        _mm512_set1_epi64(32),
    );
    let counted = _mm512_popcnt_epi64(_mm512_mask_sllv_epi64(ended, many, runs, by));
    let before =
        _mm512_maskz_and_epi64(many, _mm512_srli_epi64::<32>(runs), _mm512_set1_epi64(255));
    let leaf = times::<NEXT>(_mm512_add_epi64(counted, before));
    // SAFETY: at most 287 leaves after the eighth octet, which are there behind any node.
    unsafe { _mm512_i64gather_epi64::<1>(_mm512_add_epi64(nodes, leaf), octets.add(8).cast()) }
}

/// The codes of `leaves`, of `WIDTH` octets, or those that were there before where they have none. What is beyond 16 bits
/// is of no meaning.
#[inline]
#[target_feature(enable = "avx512f")]
fn over<const WIDTH: usize>(codes: __m512i, leaves: __m512i) -> __m512i {
    let code = _mm512_set1_epi64((1 << code_bits(WIDTH)) - 1);
    let some = _mm512_test_epi64_mask(leaves, code);
    _mm512_mask_and_epi64(codes, some, leaves, code)
}

/// How many bits of a leaf of so many octets are a next hop code.
const fn code_bits(width: usize) -> i64 {
    if width == NARROW { 8 } else { 16 }
}

/// `WIDTH` times each number.
#[inline]
#[target_feature(enable = "avx512f")]
fn times<const WIDTH: usize>(numbers: __m512i) -> __m512i {
    match WIDTH {
        CODE => _mm512_slli_epi64::<1>(numbers),
        NARROW => _mm512_slli_epi64::<2>(numbers),
        _ => _mm512_add_epi64(numbers, _mm512_slli_epi64::<2>(numbers)),
    }
}

/// Writes eight codes as answers.
#[inline]
#[target_feature(enable = "avx512f")]
fn write(codes: __m128i, next_hops: &mut [Option<NextHopId>; EIGHT]) {
    // SAFETY: eight codes are 16 octets, and every 16-bit number is an answer.
    unsafe { _mm_storeu_si128(next_hops.as_mut_ptr().cast(), codes) };
}

/// Asks for addresses that are likely to come, past the caches that the copy is in: nothing reads them again.
#[inline(always)]
fn ask_ahead<A: Address>(addresses: &[A; LANES]) {
    let first: *const i8 = addresses.as_ptr().cast();
    for line in 0..size_of_val(addresses).div_ceil(64) {
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_NTA>(first.wrapping_add(AHEAD + 64 * line)) };
    }
}

/// How many octets before they are looked up addresses are asked for.
const AHEAD: usize = 1536;
/// The truth table of "not a and b, or c".
const NOT_A_AND_B_OR_C: i32 = 0xae;
