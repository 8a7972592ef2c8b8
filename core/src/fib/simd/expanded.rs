//! A worker's copy of an IPv4 table of few flat chunks (`fib/expanded.rs`) by gathers (AVX-512): a lookup is one leaf.
//!
//! Which root slot an address has, and where its leaves are, is in registers, as in `few.rs`. A lane whose root slot is
//! not that of its place takes no part in the gather: what it has is 0 then, as where no route below the root holds the
//! address, and both are the default route's.

use core::arch::x86_64::{
    __m512i, _mm512_cmpeq_epi32_mask, _mm512_madd_epi16, _mm512_mask_i32gather_epi32,
    _mm512_mask_mov_epi16, _mm512_packus_epi32, _mm512_permutexvar_epi32, _mm512_permutexvar_epi64,
    _mm512_set1_epi16, _mm512_set1_epi32, _mm512_setr_epi64, _mm512_setzero_si512,
    _mm512_srli_epi32, _mm512_ternarylogic_epi32, _mm512_test_epi16_mask,
};
use core::mem;

use super::super::NextHopId;
use super::super::address::Address;
use super::super::batch::LANES;
use super::super::expanded::Expanded;
use super::super::few::PLACE_SHIFT;
use super::super::node::ROOT_STRIDE;
use super::lanes::keys_of_sixteen;
use super::narrow::{Group, group, in_groups};

/// Looks up each of `addresses`. One group, which is the usual batch, takes no loop, as in `few.rs`.
#[inline]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn lookup<A: Address>(
    table: &Expanded,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    if let (Ok(addresses), Some(next_hops)) = (addresses.try_into(), next_hops.first_chunk_mut()) {
        if table.wide {
            group::<A, Gathered<true>>(table, addresses, next_hops);
        } else {
            group::<A, Gathered<false>>(table, addresses, next_hops);
        }
    } else {
        any_number(table, addresses, next_hops);
    }
}

#[inline(never)]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl")]
fn any_number<A: Address>(table: &Expanded, addresses: &[A], next_hops: &mut [Option<NextHopId>]) {
    if table.wide {
        in_groups::<A, Gathered<true>>(table, addresses, next_hops);
    } else {
        in_groups::<A, Gathered<false>>(table, addresses, next_hops);
    }
}

/// A group in a table whose leaves take one octet or two.
struct Gathered<const WIDE: bool>;

impl<const WIDE: bool> Group for Gathered<WIDE> {
    /// As in `few.rs`.
    const AHEAD: usize = 15;

    type Table<'a> = Expanded;

    #[inline(always)]
    fn one(table: &Expanded, key: u32) -> u16 {
        table.lookup(key)
    }

    #[inline(always)]
    fn lookup<A: Address>(
        table: &Expanded,
        addresses: &[A; LANES],
        next_hops: &mut [Option<NextHopId>; LANES],
    ) {
        // SAFETY: whoever takes this group was compiled for these instructions, too: `expanded_avx512`.
        unsafe { gathered::<A, WIDE>(table, addresses, next_hops) };
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn gathered<A: Address, const WIDE: bool>(
    table: &Expanded,
    addresses: &[A; LANES],
    next_hops: &mut [Option<NextHopId>; LANES],
) {
    let ([first, second], _) = addresses.as_chunks() else {
        return;
    };
    let [first, second] = [first, second].map(|sixteen| keys_of_sixteen(sixteen));
    let (first, second) = (leaves::<WIDE>(table, first), leaves::<WIDE>(table, second));
    // Of each four lanes of both, four after four.
    let codes = _mm512_packus_epi32(first, second);
    let order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    let codes = _mm512_permutexvar_epi64(order, codes);
    let said = _mm512_test_epi16_mask(codes, codes);
    let default = _mm512_set1_epi16(table.code.cast_signed());
    let codes = _mm512_mask_mov_epi16(default, said, codes);
    // SAFETY: both are 32 16-bit numbers, and every value is one of each.
    let codes = unsafe { mem::transmute::<__m512i, [u16; LANES]>(codes) };
    *next_hops = codes.map(NextHopId::from_code);
}

/// The leaves of sixteen addresses; 0 for those that have none.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn leaves<const WIDE: bool>(table: &Expanded, key: __m512i) -> __m512i {
    // SAFETY: both are sixteen 32-bit numbers, and every value is one of each.
    let [tags, firsts] = [table.tags, table.firsts]
        .map(|list| unsafe { mem::transmute::<[u32; 16], __m512i>(list) });
    let root = _mm512_srli_epi32::<{ 32 - ROOT_STRIDE as u32 }>(key);
    // Both have 15 bits at most, of 16 that are multiplied, and nothing above them.
    let factor = _mm512_set1_epi32(table.factor.cast_signed());
    let at = _mm512_srli_epi32::<PLACE_SHIFT>(_mm512_madd_epi16(root, factor));
    // Places are chosen by their last bits, whatever is above them.
    let own = _mm512_cmpeq_epi32_mask(root, _mm512_permutexvar_epi32(at, tags));
    let first = _mm512_permutexvar_epi32(at, firsts);
    // The first one's number and the address's last bits, none of which both have.
    let low = _mm512_set1_epi32((1 << (32 - ROOT_STRIDE)) - 1);
    let number = _mm512_ternarylogic_epi32::<0xf8>(first, key, low);
    let none = _mm512_setzero_si512();
    let begin = table.leaves();
    // SAFETY: in the lanes of `own`, the only ones that are read, `number` is that of a leaf: where `Expanded::set_places`
    // writes a root slot it writes as `firsts` the number of the first of its 2^19 leaves, which there are. The leaf is the
    // last of the four octets that are read, or the last two, and there are four octets before the first leaf
    // (`expanded::BEFORE`). Nobody writes leaves while they are borrowed.
    unsafe {
        if WIDE {
            let begin = begin.wrapping_sub(2);
            let read = _mm512_mask_i32gather_epi32::<2>(none, own, number, begin.cast());
            _mm512_srli_epi32::<16>(read)
        } else {
            let begin = begin.wrapping_sub(3);
            let read = _mm512_mask_i32gather_epi32::<1>(none, own, number, begin.cast());
            _mm512_srli_epi32::<24>(read)
        }
    }
}
