//! Batches in the windows of an IPv6 table by gathers: what `longest.rs` does, with all of a pass in vectors.
//!
//! For eight addresses at once the page of the directory, the word of the window and the next hop are gathered. Tags and
//! ends of ranges are loaded line by line, four or two lines to a vector, since to gather a whole line takes several
//! gathers; what they say comes out of the comparison as eight or sixteen bits an address, which are in the lane of their
//! address when they are made a vector of octets. General registers see the addresses of lines and nothing else.
//!
//! All addresses of a group go through a pass before the next one begins. No pass prefetches: its loads are as many as
//! the processor has under way in any case.
//!
//! One lane in fifty finds a window that is silent about it; [`ASKED`] of them are asked again from what the passes have
//! left, whether they are there or not. What then has no next hop is looked up one by one.
//!
//! The twin is `longest.rs`.

use core::arch::x86_64::{
    __m128i, __m512i, _mm_loadu_si128, _mm_setzero_si128, _mm256_loadu_si256, _mm512_add_epi64,
    _mm512_and_si512, _mm512_andnot_si512, _mm512_cmpeq_epi16_mask, _mm512_cvtepi64_epi16,
    _mm512_i64gather_epi64, _mm512_inserti32x4, _mm512_inserti64x4, _mm512_kunpackd,
    _mm512_loadu_si512, _mm512_mask_blend_epi64, _mm512_mask_cmpeq_epi16_mask,
    _mm512_mask_cmple_epi16_mask, _mm512_mask_cmplt_epu16_mask, _mm512_mask_i64gather_epi64,
    _mm512_mask_mov_epi64, _mm512_mask_set1_epi16, _mm512_mask_storeu_epi16, _mm512_maskz_mov_epi8,
    _mm512_movm_epi8, _mm512_or_si512, _mm512_permutex2var_epi64, _mm512_permutexvar_epi16,
    _mm512_permutexvar_epi64, _mm512_popcnt_epi64, _mm512_rorv_epi64, _mm512_sad_epu8,
    _mm512_set_epi64, _mm512_set1_epi8, _mm512_set1_epi64, _mm512_set4_epi64, _mm512_setzero_si512,
    _mm512_shrdv_epi64, _mm512_shuffle_epi8, _mm512_slli_epi64, _mm512_srli_epi64,
    _mm512_srlv_epi64, _mm512_sub_epi64, _mm512_test_epi64_mask, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi64, _mm512_xor_si512, _mm512_zextsi128_si512, _mm512_zextsi256_si512,
};
use core::hint::select_unpredictable;
use core::{mem, ptr};

use super::super::NextHopId;
use super::super::address::Address;
use super::super::batch;
use super::super::windows::{ENDS, Windowed};
use super::Native;
use super::longest::{EIGHT, KINDS, LANES, Lanes, List, Table, by_root, code, hash_of_eight, one};
use super::windows::{absent, next, place};

/// Looks up at most four times eight addresses, in the trie where the windows do not say.
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
pub(super) fn group<A: Address>(
    table: &Table<'_>,
    addresses: &[[A; EIGHT]],
    next_hops: &mut [[Option<NextHopId>; EIGHT]],
) {
    match addresses.len() {
        0 => {}
        1 => group_of::<A, 1>(table, addresses, next_hops),
        2 => group_of::<A, 2>(table, addresses, next_hops),
        3 => group_of::<A, 3>(table, addresses, next_hops),
        _ => group_of::<A, 4>(table, addresses, next_hops),
    }
}

/// Looks up `EIGHTS` times eight addresses.
#[inline(never)]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn group_of<A: Address, const EIGHTS: usize>(
    table: &Table<'_>,
    addresses: &[[A; EIGHT]],
    next_hops: &mut [[Option<NextHopId>; EIGHT]],
) {
    let (Ok(addresses), Ok(next_hops)) = (
        <&[[A; EIGHT]; EIGHTS]>::try_from(addresses),
        <&mut [[Option<NextHopId>; EIGHT]; EIGHTS]>::try_from(next_hops),
    ) else {
        return;
    };
    // SAFETY: 64 octets.
    let busy = unsafe { _mm512_loadu_si512(table.windowed.busy.as_ptr().cast()) };
    let mut highs = [busy; EIGHTS];
    let mut all = _mm512_set1_epi64(1);
    for (high, eight) in highs.iter_mut().zip(addresses) {
        *high = high_of_eight(eight);
        // Which word has the bit of a /9, and the word turned to that bit.
        let word = _mm512_permutexvar_epi64(_mm512_srli_epi64::<{ 64 - 3 }>(*high), busy);
        let turned = _mm512_rorv_epi64(word, _mm512_srli_epi64::<{ 64 - 9 }>(*high));
        all = _mm512_and_si512(all, turned);
    }
    if _mm512_test_epi64_mask(all, all) != u8::MAX {
        let mut lanes = Lanes::new();
        for (number, high) in highs.into_iter().enumerate() {
            lanes.highs.set_eight(EIGHT * number, high);
        }
        return by_root::<A, true>(table, &mut lanes, addresses, next_hops);
    }
    let (codes, open) = find(table.windowed, &highs);
    write(codes, next_hops);
    if open != 0 {
        let (addresses, next_hops) = (addresses.as_flattened(), next_hops.as_flattened_mut());
        settle(table, addresses, next_hops, open);
    }
}

/// Looks up the lanes, a bit each, that the windows have left open.
#[inline(never)]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn settle<A: Address>(
    table: &Table<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
    mut open: u32,
) {
    while open != 0 {
        let lane = next(&mut open);
        if let (Some(address), Some(next_hop)) = (addresses.get(lane), next_hops.get_mut(lane)) {
            let code = match next_hop.map_or(0, NextHopId::code) {
                0 => one(table, address),
                // A window that leaves it to the trie.
                _ => batch::lookup_one::<A>(Native, table.view, address.to_key()),
            };
            *next_hop = NextHopId::from_code(code);
        }
    }
}

/// [`longest`](super::longest::longest) by gathers.
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
pub(super) fn longest(
    windowed: &Windowed,
    highs: &List<u64, LANES>,
    answers: &mut [[Option<NextHopId>; EIGHT]],
) -> u32 {
    match answers.len() {
        1 => longest_of::<1>(windowed, highs, answers),
        2 => longest_of::<2>(windowed, highs, answers),
        3 => longest_of::<3>(windowed, highs, answers),
        _ => longest_of::<4>(windowed, highs, answers),
    }
}

#[inline(never)]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn longest_of<const EIGHTS: usize>(
    windowed: &Windowed,
    highs: &List<u64, LANES>,
    answers: &mut [[Option<NextHopId>; EIGHT]],
) -> u32 {
    let Ok(answers) = <&mut [[Option<NextHopId>; EIGHT]; EIGHTS]>::try_from(answers) else {
        return 0;
    };
    let mut all = [_mm512_setzero_si512(); EIGHTS];
    for (number, high) in all.iter_mut().enumerate() {
        *high = highs.eight(EIGHT * number);
    }
    let (codes, open) = find(windowed, &all);
    write(codes, answers);
    open
}

/// Finds what the windows say to the addresses that begin with `highs`: codes, and the lanes, a bit each, for which they
/// have none or leave it to the trie.
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn find<const EIGHTS: usize>(windowed: &Windowed, highs: &[__m512i; EIGHTS]) -> (__m512i, u32) {
    let none = _mm512_setzero_si512();
    let mut passes = Passes::new();
    let shift = _mm512_set1_epi64(i64::from(windowed.shift));
    for (first, high) in (0..).step_by(EIGHT).zip(highs) {
        passes.highs.set_eight(first, *high);
        for (of_kind, kind) in (first..).step_by(LANES).zip(KINDS) {
            let hash = hash_of_eight(kind, *high);
            // SAFETY: there is a page for each value of the bits that a hash is shifted to.
            let page = unsafe {
                let at = _mm512_srlv_epi64(hash, shift);
                _mm512_i64gather_epi64::<8>(at, windowed.pages.as_ptr().cast())
            };
            let line = _mm512_and_si512(_mm512_srli_epi64::<26>(hash), _mm512_set1_epi64(7 << 6));
            passes
                .lines
                .set_eight(of_kind, _mm512_add_epi64(page, line));
            // The tag is where it is in the hash, in the second 16 bits.
            let bits = _mm512_and_si512(hash, _mm512_set1_epi64(0xfffc << 16));
            let number = _mm512_set1_epi64((kind.number << 16).cast_signed());
            passes
                .tags
                .set_eight(of_kind, _mm512_or_si512(bits, number));
        }
    }
    for (first, high) in (0..).step_by(EIGHT).zip(highs) {
        let [long, middle, short] = [0, 1, 2].map(|kind| equal(&mut passes, LANES * kind + first));
        let [with_long, with_middle] =
            [long, middle].map(|equal| _mm512_test_epi64_mask(equal, equal));
        let longest = |[long, middle, short]: [__m512i; 3]| {
            let shorter = _mm512_mask_mov_epi64(short, with_middle, middle);
            _mm512_mask_mov_epi64(shorter, with_long, long)
        };
        let equal = longest([long, middle, short]);
        let line = longest([0, 1, 2].map(|kind| passes.lines.eight(LANES * kind + first)));
        let shift = longest([8, 16, 24].map(|bits| _mm512_set1_epi64(bits)));
        // Eight bits for each tag before the equal one; and six octets for each window.
        let less = _mm512_add_epi64(equal, _mm512_set1_epi64(-1));
        let before = _mm512_popcnt_epi64(_mm512_andnot_si512(equal, less));
        let before = _mm512_sub_epi64(before, _mm512_srli_epi64::<2>(before));
        // SAFETY: lines of pages of this snapshot, which is not written while it lives: the eight octets that end with
        // the word of one of a line's eight windows, as in `windows::word`. Where no tag is equal none are read.
        let word = unsafe {
            _mm512_mask_i64gather_epi64::<1>(
                _mm512_set1_epi64((absent() << 16).cast_signed()),
                _mm512_test_epi64_mask(equal, equal),
                _mm512_add_epi64(line, before),
                ptr::without_provenance(14),
            )
        };
        let word = _mm512_srli_epi64::<16>(word);
        let slot = _mm512_srlv_epi64(*high, shift);
        // The last six bits of the word are what it is shifted by.
        let line = _mm512_shrdv_epi64(
            _mm512_and_si512(slot, _mm512_set1_epi64(0xffff)),
            none,
            word,
        );
        let window = _mm512_and_si512(word, _mm512_set1_epi64(!63));
        let line = _mm512_add_epi64(window, _mm512_slli_epi64::<6>(line));
        passes.windows.set_eight(first, line);
        passes.slots.set_eight(first, slot);
        passes.shifts.set_eight(first, shift);
    }
    let mut codes = [_mm_setzero_si128(); LANES / EIGHT];
    for ((first, high), codes) in (0..).step_by(EIGHT).zip(highs).zip(&mut codes) {
        *codes = codes_of_eight(&passes, first, *high);
    }
    let [one, two, three, four] = codes;
    let all = _mm512_inserti32x4::<1>(_mm512_zextsi128_si512(one), two);
    let mut all = _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(all, three), four);
    let there = u32::MAX >> (LANES - EIGHT * EIGHTS);
    let mut silent = _mm512_mask_cmpeq_epi16_mask(there, all, none);
    for _ in 0..ASKED {
        let bit = silent & silent.wrapping_neg();
        silent ^= bit;
        let code = shorter(&passes, bit.trailing_zeros() as usize % (EIGHT * EIGHTS));
        all = _mm512_mask_set1_epi16(all, bit, code.cast_signed());
    }
    (all, _mm512_mask_cmple_epi16_mask(there, all, none))
}

/// Which tags of the lines from place `first` on are those of their addresses: an octet for each, all bits or none. The
/// same is left to [`shorter`].
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn equal(passes: &mut Passes, first: usize) -> __m512i {
    let tags = passes.tags.eight(first);
    let four = |first: usize, pattern: &Words| {
        let [a, b, c, d] = [0, 1, 2, 3].map(|lane| {
            // SAFETY: the tags of a line of a page are its first 16 octets.
            unsafe { _mm_loadu_si128(place(passes.lines.get(first + lane)).cast()) }
        });
        let lines = _mm512_inserti32x4::<1>(_mm512_zextsi128_si512(a), b);
        let lines = _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(lines, c), d);
        let tags = _mm512_permutexvar_epi16(pattern.vector(), tags);
        u64::from(_mm512_cmpeq_epi16_mask(lines, tags))
    };
    let (low, high) = (four(first, &TAGS_LOW), four(first + 4, &TAGS_HIGH));
    let equal = _mm512_kunpackd(high, low);
    passes.equal.set_octets(first, equal);
    _mm512_movm_epi8(equal)
}

/// What the lines of windows from lane `first` on say to addresses that begin with `high`: codes, or more than that
/// where it is a line of another prefix.
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn codes_of_eight(passes: &Passes, first: usize, high: __m512i) -> __m128i {
    // A line in each half.
    let two = |lane: usize| {
        let [one, other] = [lane, lane + 2].map(|lane| {
            // SAFETY: a line of a window of this snapshot, or the one that is not there: ends and prefix are its first
            // 32 octets.
            unsafe { _mm256_loadu_si256(place(passes.windows.get(first + lane)).cast()) }
        });
        _mm512_inserti64x4::<1>(_mm512_zextsi256_si512(one), other)
    };
    let [a, b, c, d] = [two(0), two(1), two(4), two(5)];
    let slots = passes.slots.eight(first);
    let below = |lines: __m512i, pattern: &Words| {
        let slots = _mm512_permutexvar_epi16(pattern.vector(), slots);
        u64::from(_mm512_mask_cmplt_epu16_mask(ENDS_OF_TWO, lines, slots))
    };
    // Two octets of codes for each end, added up in eights.
    let octets = |below: u64| {
        let twos = _mm512_maskz_mov_epi8(below, _mm512_set1_epi8(2));
        _mm512_sad_epu8(twos, _mm512_setzero_si512())
    };
    let evens = octets(_mm512_kunpackd(below(c, &SLOTS_4_6), below(a, &SLOTS_0_2)));
    let odds = octets(_mm512_kunpackd(below(d, &SLOTS_5_7), below(b, &SLOTS_1_3)));
    let before = _mm512_add_epi64(
        _mm512_unpacklo_epi64(evens, odds),
        _mm512_unpackhi_epi64(evens, odds),
    );
    let at = _mm512_add_epi64(passes.windows.eight(first), before);
    // SAFETY: the first of 13 codes is that many octets after a line's beginning, and the last has six after it.
    let code = unsafe { _mm512_i64gather_epi64::<1>(at, ptr::without_provenance(32)) };
    let fourth = _mm512_set_epi64(15, 7, 11, 3, 15, 7, 11, 3);
    let prefix = _mm512_mask_blend_epi64(
        0xf0,
        _mm512_permutex2var_epi64(a, fourth, b),
        _mm512_permutex2var_epi64(c, fourth, d),
    );
    // Shifted to where the slot ends: from the 17th bit on what is left is of the prefix.
    let differs = _mm512_srlv_epi64(_mm512_xor_si512(prefix, high), passes.shifts.eight(first));
    let other = _mm512_test_epi64_mask(differs, _mm512_set1_epi64(!0xffff));
    _mm512_cvtepi64_epi16(_mm512_mask_mov_epi64(code, other, prefix))
}

/// What the window of a lane says that comes after its longest: nothing when there is none.
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn shorter(passes: &Passes, lane: usize) -> u16 {
    let [long, middle, short] = [0, 1, 2].map(|kind| passes.equal.get(LANES * kind + lane));
    let is_middle = long != 0 && middle != 0;
    let (equal, kind) = (
        select_unpredictable(is_middle, middle, short),
        select_unpredictable(is_middle, 8, 16_u8),
    );
    let line = passes.lines.get(LANES / 8 * usize::from(kind) + lane);
    // SAFETY: as in `find`; when no tag is equal what is read is the first window's.
    let word = unsafe {
        let at = 14 + 6 * (equal.trailing_zeros() as usize % EIGHT);
        place(line)
            .cast::<u8>()
            .add(at)
            .cast::<u64>()
            .read_unaligned()
            >> 16
    };
    let word = select_unpredictable(equal == 0, absent(), word);
    let high = passes.highs.get(lane);
    let slot = (high >> (kind + 8) & 0xffff) as u16;
    let line = (word & !63) + 64 * (u64::from(slot) >> (word & 63));
    code(place(line), slot, kind, high)
}

/// Writes the codes of as many lanes as there are answers.
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn write<const EIGHTS: usize>(codes: __m512i, answers: &mut [[Option<NextHopId>; EIGHT]; EIGHTS]) {
    // SAFETY: no more codes of 16 bits than there are answers.
    unsafe {
        let there = u32::MAX >> (LANES - EIGHT * EIGHTS);
        _mm512_mask_storeu_epi16(answers.as_mut_ptr().cast(), there, codes);
    }
}

/// The first halves of eight addresses.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn high_of_eight<A: Address>(eight: &[A; EIGHT]) -> __m512i {
    // The compiler turns the octets round twice, that is, loads them.
    let octets = eight.map(|address| address.to_key().to_be_bytes());
    // SAFETY: both are 128 octets, and every value is one of each.
    let [first, second] = unsafe { mem::transmute::<[[u8; 16]; EIGHT], [__m512i; 2]>(octets) };
    let evens = _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0);
    let all = _mm512_permutex2var_epi64(first, evens, second);
    let (first, second) = (0x0001_0203_0405_0607, 0x0809_0a0b_0c0d_0e0f);
    _mm512_shuffle_epi8(all, _mm512_set4_epi64(second, first, second, first))
}

/// What passes leave each other, kind after kind where a lane has one for each. Nothing is set up: each reads what those
/// before it have written for the same lanes.
struct Passes {
    highs: List<u64, LANES>,
    /// Lines of the hash.
    lines: List<u64, { 3 * LANES }>,
    tags: List<u64, { 3 * LANES }>,
    /// A bit for each of a line's tags that is equal.
    equal: List<u8, { 3 * LANES }>,
    /// Lines of the longest windows.
    windows: List<u64, LANES>,
    /// Slots there, with what is before them in the address.
    slots: List<u64, LANES>,
    /// The bits that are after the slot in the first half of the address.
    shifts: List<u64, LANES>,
}

impl Passes {
    #[inline(always)]
    const fn new() -> Self {
        Self {
            highs: List::new(),
            lines: List::new(),
            tags: List::new(),
            equal: List::new(),
            windows: List::new(),
            slots: List::new(),
            shifts: List::new(),
        }
    }
}

impl List<u8, { 3 * LANES }> {
    /// Writes the eight octets from `first` on.
    #[inline(always)]
    fn set_octets(&mut self, first: usize, octets: u64) {
        debug_assert!(first + EIGHT <= 3 * LANES, "{first}");
        // SAFETY: eight octets of the list.
        unsafe {
            let place = self.0.as_mut_ptr().add(first);
            place.cast::<u64>().write_unaligned(octets);
        }
    }
}

/// A number of 16 bits for each that a vector has.
#[repr(align(64))]
struct Words([u16; 32]);

impl Words {
    /// In each quarter of a vector the number of one of four lanes' words, `word` of the four that a lane has.
    #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
    const fn of(lanes: [u16; 4], word: u16) -> Self {
        let mut words = [0; 32];
        let mut at = 0;
        while at < words.len() {
            words[at] = 4 * lanes[at / EIGHT] + word;
            at += 1;
        }
        Self(words)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn vector(&self) -> __m512i {
        // SAFETY: 64 octets.
        unsafe { _mm512_loadu_si512(self.0.as_ptr().cast()) }
    }
}

static TAGS_LOW: Words = Words::of([0, 1, 2, 3], 1);
static TAGS_HIGH: Words = Words::of([4, 5, 6, 7], 1);
static SLOTS_0_2: Words = Words::of([0, 0, 2, 2], 0);
static SLOTS_1_3: Words = Words::of([1, 1, 3, 3], 0);
static SLOTS_4_6: Words = Words::of([4, 4, 6, 6], 0);
static SLOTS_5_7: Words = Words::of([5, 5, 7, 7], 0);

/// The ends among the 16-bit numbers of the first halves of two lines.
const ENDS_OF_TWO: u32 = ((1 << ENDS) - 1) * 0x1_0001;

/// Silent lanes of a group that are asked again: in a full table's groups of 32 there are 0.8 on average. With three it
/// is no faster.
const ASKED: usize = 2;
