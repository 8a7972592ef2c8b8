//! IPv4 lookups by gathers (AVX-512) of tables whose root is in registers (`fib/few.rs`).
//!
//! All 32 addresses of a group go step by step: where their slots are, the words there, where their leaves are, the
//! leaves. No place is taken out of a vector, and no answer put into one: with the places of `lanes.rs` taken out and read
//! one by one a group takes twice as long. What is left are eight gathers and some thirty other instructions for sixteen
//! addresses.
//!
//! Of two addresses that are side by side, one is the lower and one the upper half of 64 bits. Each half is made a
//! vector of its own by one shift or mask, and the answers, of which one half is shifted less, are side by side again.
//! Vectors of neighbours would be taken apart and put together by instructions that do half as many a cycle.
//!
//! Whether a root slot is that of its place is not asked before the end: an address whose it is not goes the way of
//! another's, or through the empty flat chunk, and what is found there is left out of the answers.

use core::arch::x86_64::{
    __m256i, __m512i, _mm256_mask_mov_epi16, _mm256_mask_test_epi16_mask, _mm256_maskz_mov_epi16,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_srli_epi32, _mm256_ternarylogic_epi32,
    _mm512_add_epi64, _mm512_and_si512, _mm512_cmpeq_epi32_mask, _mm512_i64gather_epi32,
    _mm512_i64gather_epi64, _mm512_madd_epi16, _mm512_set1_epi32, _mm512_set1_epi64,
    _mm512_setzero_si512, _mm512_slli_epi64, _mm512_srai_epi64, _mm512_srli_epi32,
    _mm512_srli_epi64, _mm512_ternarylogic_epi64,
};
use core::{mem, ptr};

use super::super::NextHopId;
use super::super::address::Address;
use super::super::batch::LANES;
use super::super::few::{Few as FewRoot, PLACE_SHIFT};
use super::super::node::{CHUNK_STRIDE, ROOT_STRIDE};
use super::lanes::{Few, keys_of_sixteen, registers, select, select_tags, tags};
use super::narrow::{Group, group, in_groups};

/// Looks up each of `addresses`.
///
/// One group, which is the usual batch, takes no loop and nothing that is there for what is left of one: that would be a
/// tenth of it.
#[inline]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn lookup<A: Address>(
    few: &FewRoot,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    if addresses.len() == LANES && next_hops.len() >= LANES {
        of_kind::<A, true>(few, addresses, next_hops);
    } else {
        any_number(few, addresses, next_hops);
    }
}

#[inline(never)]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl")]
fn any_number<A: Address>(few: &FewRoot, addresses: &[A], next_hops: &mut [Option<NextHopId>]) {
    of_kind::<A, false>(few, addresses, next_hops);
}

/// Looks up each of `addresses`, which are `ONE` group or any number, in a table of its kind.
#[inline]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl")]
fn of_kind<A: Address, const ONE: bool>(
    few: &FewRoot,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    match (few.wide, few.places, few.code) {
        (false, 8, 0) => by::<A, Gathered<1, false, false>, ONE>(few, addresses, next_hops),
        (false, 8, _) => by::<A, Gathered<1, true, false>, ONE>(few, addresses, next_hops),
        (false, 16, _) => by::<A, Gathered<2, true, false>, ONE>(few, addresses, next_hops),
        (false, _, _) => by::<A, Gathered<4, true, false>, ONE>(few, addresses, next_hops),
        (true, 8, 0) => by::<A, Gathered<1, false, true>, ONE>(few, addresses, next_hops),
        (true, 8, _) => by::<A, Gathered<1, true, true>, ONE>(few, addresses, next_hops),
        (true, 16, _) => by::<A, Gathered<2, true, true>, ONE>(few, addresses, next_hops),
        (true, _, _) => by::<A, Gathered<4, true, true>, ONE>(few, addresses, next_hops),
    }
}

#[inline(always)]
fn by<A: Address, G: for<'a> Group<Table<'a> = FewRoot>, const ONE: bool>(
    few: &FewRoot,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    if ONE
        && let (Ok(addresses), Some(next_hops)) =
            (addresses.try_into(), next_hops.first_chunk_mut())
    {
        group::<A, G>(few, addresses, next_hops);
    } else {
        in_groups::<A, G>(few, addresses, next_hops);
    }
}

/// A group in a table whose root is in `N` registers, with a default route or without, as [`Few`] is one.
pub(super) struct Gathered<const N: usize, const DEFAULT: bool, const WIDE: bool>;

impl<const N: usize, const DEFAULT: bool, const WIDE: bool> Group for Gathered<N, DEFAULT, WIDE> {
    /// A group takes so little that what it is to read must be asked for earlier: 2 KiB before it is read.
    const AHEAD: usize = 15;

    type Table<'a> = FewRoot;

    #[inline(always)]
    fn one(root: &FewRoot, key: u32) -> u16 {
        Few::<N, DEFAULT, WIDE>::one(root, key)
    }

    #[inline(always)]
    fn lookup<A: Address>(
        root: &FewRoot,
        addresses: &[A; LANES],
        next_hops: &mut [Option<NextHopId>; LANES],
    ) {
        // SAFETY: whoever takes this group was compiled for these instructions, too: `few_gathered`.
        unsafe { gathered::<A, N, DEFAULT, WIDE>(root, addresses, next_hops) };
    }
}

/// Slot, leaf.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn gathered<A: Address, const N: usize, const DEFAULT: bool, const WIDE: bool>(
    few: &FewRoot,
    addresses: &[A; LANES],
    next_hops: &mut [Option<NextHopId>; LANES],
) {
    let (firsts, tags) = (registers::<N>(&few.firsts), tags::<N>(&few.tags));
    let factor = _mm512_set1_epi32(few.factor.cast_signed());
    let mut keys = [_mm512_setzero_si512(); SIXTEENS];
    let mut words = [[_mm512_setzero_si512(); 2]; SIXTEENS];
    let mut own = [0; SIXTEENS];
    let (sixteens, _) = addresses.as_chunks();
    let results = keys.iter_mut().zip(&mut words).zip(&mut own);
    for (sixteen, ((key, words), own)) in sixteens.iter().zip(results) {
        *key = keys_of_sixteen(sixteen);
        let root = _mm512_srli_epi32::<{ 32 - ROOT_STRIDE as u32 }>(*key);
        // Both have 15 bits at most, of 16 that are multiplied, and nothing above them.
        let at = _mm512_srli_epi32::<PLACE_SHIFT>(_mm512_madd_epi16(root, factor));
        *own = _mm512_cmpeq_epi32_mask(root, select_tags(&tags, at));
        // Places are chosen by their last bits, whatever is above them.
        let first = [at, _mm512_srli_epi64::<32>(at)].map(|at| select(&firsts, at));
        // Eight times the slot.
        let slot = [_mm512_srli_epi64::<5>(*key), _mm512_srli_epi64::<37>(*key)]
            .map(|slot| _mm512_and_si512(slot, _mm512_set1_epi64(8 * ((1 << CHUNK_STRIDE) - 1))));
        for ((word, first), slot) in words.iter_mut().zip(first).zip(slot) {
            let place = _mm512_add_epi64(first, slot);
            // SAFETY: as `slot_word` in `narrow.rs`: `fib/few.rs` has the first slot of a flat chunk for each place, or of
            // the empty one, and the slot is one of the 2,048 from there on.
            *word = unsafe { _mm512_i64gather_epi64::<1>(place, ptr::null()) };
        }
    }
    // One by one, since a loop would be kept as one.
    let ([a, b], [first, second], [own, other]) = (words, keys, own);
    let default = few.code;
    let answers = [
        answers::<DEFAULT, WIDE>(a, first, own, default),
        answers::<DEFAULT, WIDE>(b, second, other, default),
    ];
    let (sixteens, _) = next_hops.as_chunks_mut();
    for (next_hops, answers) in sixteens.iter_mut().zip(answers) {
        // SAFETY: both are sixteen 16-bit numbers, and every value is one of each.
        let codes = unsafe { mem::transmute::<__m256i, [u16; SIXTEEN]>(answers) };
        *next_hops = codes.map(NextHopId::from_code);
    }
}

/// What the slots with these words say to sixteen addresses, half by half: to those that are their `own`; to others what
/// the root does.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn answers<const DEFAULT: bool, const WIDE: bool>(
    words: [__m512i; 2],
    key: __m512i,
    own: u16,
    default: u16,
) -> __m256i {
    let [low, high] = words;
    let low = leaves::<WIDE>(low, key);
    let high = leaves::<WIDE>(high, _mm512_srli_epi64::<32>(key));
    // A leaf is in the last of four octets, or in the last two.
    let (low, high, mask) = if WIDE {
        (_mm256_srli_epi32::<16>(low), high, 0xffff << 16)
    } else {
        let high = _mm256_srli_epi32::<8>(high);
        (_mm256_srli_epi32::<24>(low), high, 0x00ff << 16)
    };
    // The first one or what the other two have in common.
    let codes = _mm256_ternarylogic_epi32::<0xf8>(low, high, _mm256_set1_epi32(mask));
    if DEFAULT {
        let said = _mm256_mask_test_epi16_mask(own, codes, codes);
        _mm256_mask_mov_epi16(_mm256_set1_epi16(default.cast_signed()), said, codes)
    } else {
        _mm256_maskz_mov_epi16(own, codes)
    }
}

/// The leaves that eight slots' words lead to, for addresses whose last octets are those of `key`: the upper ones of 32
/// bits each.
#[inline]
#[target_feature(enable = "avx512f")]
fn leaves<const WIDE: bool>(words: __m512i, key: __m512i) -> __m256i {
    // Of a word's first octet all bits are set, or none.
    let leaf = _mm512_ternarylogic_epi64::<0x80>(words, key, _mm512_set1_epi64(0xff));
    let first = _mm512_srai_epi64::<16>(words);
    // SAFETY: as `leaf_at` in `narrow.rs`. The leaf is the last of the four octets that are read, or the last two: those
    // before it are in the same block, in which leaves, codes and words have at least two cells before them, and which is
    // not written while the snapshot lives.
    unsafe {
        if WIDE {
            let places = _mm512_add_epi64(first, _mm512_slli_epi64::<1>(leaf));
            _mm512_i64gather_epi32::<1>(places, ptr::without_provenance(2_usize.wrapping_neg()))
        } else {
            let places = _mm512_add_epi64(first, leaf);
            _mm512_i64gather_epi32::<1>(places, ptr::without_provenance(3_usize.wrapping_neg()))
        }
    }
}

/// Addresses that are hashed side by side.
const SIXTEEN: usize = 16;
const SIXTEENS: usize = LANES / SIXTEEN;
