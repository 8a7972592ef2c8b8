//! The codes of all /24 of a large IPv4 table (`fib/dir24.rs`) with AVX-512: made 32 at a time from a replica's cells and
//! leaves, and looked up.
//!
//! By gathers sixteen addresses go together; where gathers are slow each address reads its code. An escape, which one
//! address in several hundred finds, is looked up in the replica.

use core::arch::x86_64::{
    __m256i, __m512i, _mm256_cmpeq_epi16_mask, _mm256_set1_epi16, _mm512_add_epi32,
    _mm512_castsi256_si512, _mm512_cmpeq_epi16_mask, _mm512_cvtepi16_epi8, _mm512_cvtepi32_epi16,
    _mm512_cvtepu8_epi16, _mm512_i32gather_epi32, _mm512_inserti64x4, _mm512_mask_mov_epi16,
    _mm512_min_epu16, _mm512_permutex2var_epi16, _mm512_popcnt_epi32, _mm512_set1_epi16,
    _mm512_set1_epi32, _mm512_setr_epi32, _mm512_setzero_si512, _mm512_srli_epi32,
    _mm512_srlv_epi32, _mm512_sub_epi16,
};
use core::mem;

use super::super::NextHopId;
use super::super::address::Address;
use super::super::batch::{LANES, key_of};
use super::super::dir24::BEFORE;
use super::super::pushed::{GROUPS, escape};
use super::lanes::keys_of_sixteen;
use super::narrow::{Group, group, in_groups};
use super::replica::{Table, one, settle};

/// Makes the codes of the groups whose cells are `cells`, from the leaves that these lead to; `below` is what is said where
/// no leaf says anything.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
#[expect(
    clippy::cast_possible_truncation,
    reason = "a half of a cell, and a group's 32 slots"
)]
pub(super) fn fill<const WIDE: bool>(
    cells: &[u64; GROUPS],
    leaves: &[u8],
    below: u16,
    codes: &mut [u8],
) {
    let width = 1 + usize::from(WIDE);
    let below = _mm512_set1_epi16(below.cast_signed());
    let most = _mm512_set1_epi16(escape(WIDE).cast_signed());
    for (cell, codes) in cells.iter().zip(codes.chunks_exact_mut(LANES * width)) {
        let place = (cell >> 32) as usize;
        // The 32 leaves before the place, and the one that is there: it begins where no run does.
        let Some(all) = place
            .checked_sub(LANES * width)
            .and_then(|first| leaves.get(first..place + width))
        else {
            continue;
        };
        let places = _mm512_sub_epi16(_mm512_set1_epi16(LANES as i16), starts(*cell as u32));
        let (before, at) = if WIDE {
            let (Some(before), Some(at)) = (all.first_chunk(), all.last_chunk()) else {
                continue;
            };
            // SAFETY: both are 32 16-bit numbers, and every value is one of each.
            let before = unsafe { mem::transmute::<[u8; 2 * LANES], __m512i>(*before) };
            (before, i16::from_le_bytes(*at))
        } else {
            let (Some(before), Some(at)) = (all.first_chunk(), all.last()) else {
                continue;
            };
            // SAFETY: both are 32 octets, and every value is one of each.
            let before = unsafe { mem::transmute::<[u8; LANES], __m256i>(*before) };
            (_mm512_cvtepu8_epi16(before), i16::from(*at))
        };
        let said = _mm512_permutex2var_epi16(before, places, _mm512_set1_epi16(at));
        let none = _mm512_cmpeq_epi16_mask(said, _mm512_setzero_si512());
        let said = _mm512_mask_mov_epi16(said, none, below);
        // What a short route says may be no code that fits.
        let said = _mm512_min_epu16(said, most);
        if WIDE {
            if let Some(codes) = codes.first_chunk_mut() {
                // SAFETY: as above.
                *codes = unsafe { mem::transmute::<__m512i, [u8; 2 * LANES]>(said) };
            }
        } else if let Some(codes) = codes.first_chunk_mut() {
            // SAFETY: as above.
            *codes = unsafe { mem::transmute::<__m256i, [u8; LANES]>(_mm512_cvtepi16_epi8(said)) };
        }
    }
}

/// How many runs start at or behind each of 32 slots, by the bits of `starts`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
fn starts(starts: u32) -> __m512i {
    let starts = _mm512_set1_epi32(starts.cast_signed());
    let first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let second = _mm512_add_epi32(first, _mm512_set1_epi32(16));
    let [first, second] = [first, second]
        .map(|slots| _mm512_cvtepi32_epi16(_mm512_popcnt_epi32(_mm512_srlv_epi32(starts, slots))));
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)
}

/// Looks up each of `addresses` in the codes of `table`, which are all there.
///
/// One group, which is the usual batch, takes no loop and nothing that is there for what is left of one.
#[inline]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn lookup<A: Address, const WIDE: bool, const GATHER: bool>(
    table: Codes<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    if let (Ok(addresses), Some(next_hops)) = (addresses.try_into(), next_hops.first_chunk_mut()) {
        group::<A, ByCode<WIDE, GATHER>>(&table, addresses, next_hops);
    } else {
        any_number::<A, WIDE, GATHER>(table, addresses, next_hops);
    }
}

#[inline(never)]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl")]
fn any_number<A: Address, const WIDE: bool, const GATHER: bool>(
    table: Codes<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    in_groups::<A, ByCode<WIDE, GATHER>>(&table, addresses, next_hops);
}

/// The codes of all /24, and what escapes are looked up in.
#[derive(Clone, Copy)]
pub(super) struct Codes<'a> {
    pub(super) octets: &'a [u8],
    pub(super) table: Table<'a>,
}

/// A group of addresses that each read a code.
struct ByCode<const WIDE: bool, const GATHER: bool>;

impl<const WIDE: bool, const GATHER: bool> Group for ByCode<WIDE, GATHER> {
    /// As few flat chunks, and for their reason.
    const AHEAD: usize = 15;

    type Table<'a> = Codes<'a>;

    #[inline(always)]
    fn one(codes: &Codes<'_>, key: u32) -> u16 {
        one::<WIDE>(&codes.table, key)
    }

    #[inline(always)]
    fn lookup<A: Address>(
        codes: &Codes<'_>,
        addresses: &[A; LANES],
        next_hops: &mut [Option<NextHopId>; LANES],
    ) {
        // SAFETY: whoever takes this group was compiled for these instructions, too: `replica_avx512`.
        unsafe {
            let escapes = if GATHER {
                gathered::<A, WIDE>(codes.octets, addresses, next_hops)
            } else {
                each::<A, WIDE>(codes.octets, addresses, next_hops)
            };
            if escapes {
                settle::<A, WIDE>(&codes.table, addresses, next_hops);
            }
        }
    }
}

/// Sixteen codes by a gather; whether there is an escape.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
fn gathered<A: Address, const WIDE: bool>(
    octets: &[u8],
    addresses: &[A; LANES],
    next_hops: &mut [Option<NextHopId>; LANES],
) -> bool {
    let most = _mm256_set1_epi16(escape(WIDE).cast_signed());
    let (sixteens, _) = addresses.as_chunks();
    let (answers, _) = next_hops.as_chunks_mut::<{ LANES / 2 }>();
    let mut escapes = 0;
    for (sixteen, next_hops) in sixteens.iter().zip(answers) {
        let place = _mm512_srli_epi32::<8>(keys_of_sixteen(sixteen));
        // SAFETY: there is a code for each 24 bits, behind `BEFORE` octets; what is read are four that end with it.
        let codes = unsafe {
            if WIDE {
                let fours = octets.as_ptr().wrapping_add(BEFORE - 2).cast();
                _mm512_srli_epi32::<16>(_mm512_i32gather_epi32::<2>(place, fours))
            } else {
                let fours = octets.as_ptr().wrapping_add(BEFORE - 3).cast();
                _mm512_srli_epi32::<24>(_mm512_i32gather_epi32::<1>(place, fours))
            }
        };
        let codes = _mm512_cvtepi32_epi16(codes);
        escapes |= _mm256_cmpeq_epi16_mask(codes, most);
        // SAFETY: both are sixteen 16-bit numbers, and every value is one of each.
        let codes = unsafe { mem::transmute::<__m256i, [u16; LANES / 2]>(codes) };
        *next_hops = codes.map(NextHopId::from_code);
    }
    escapes != 0
}

/// One code after the other; whether there is an escape.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,movbe")]
fn each<A: Address, const WIDE: bool>(
    octets: &[u8],
    addresses: &[A; LANES],
    next_hops: &mut [Option<NextHopId>; LANES],
) -> bool {
    let first = octets.as_ptr().wrapping_add(BEFORE);
    let mut escapes = false;
    for (address, next_hop) in addresses.iter().zip(next_hops) {
        let place = (key_of(*address) >> 8) as usize;
        // SAFETY: there is a code for each 24 bits, behind `BEFORE` octets.
        let code = unsafe {
            if WIDE {
                u16::from_le(first.add(2 * place).cast::<u16>().read_unaligned())
            } else {
                u16::from(first.add(place).read())
            }
        };
        escapes |= code == escape(WIDE);
        *next_hop = NextHopId::from_code(code);
    }
    escapes
}
