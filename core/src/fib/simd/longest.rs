//! Batches in the windows of an IPv6 table with AVX-512: for each address the longest window that it has, and no other.
//!
//! The lines of the hash say which windows there are. Their tags, those for the /40 first, are compared as one vector,
//! and the first equal one is the window that is read. Of a real table's addresses it has the answer for 98 of 100; the
//! others have to ask a shorter one, which is done for two addresses of a group in any case, so that no branch depends
//! on whether there are any.
//!
//! A group goes in four passes without a branch in them: hashes, eight addresses to a vector; lines of the hash; line of
//! the window; next hop. Whether all addresses are where there are windows at all is seen by a bit for each /9. If not, as
//! for most of the address space, the root is asked, and those that it does not answer are looked up one by one when they
//! are few, otherwise put together.
//!
//! What a pass computes in vectors it stores, and the next one reads number by number. The other way round, numbers that
//! were stored one by one and are read as a vector have to be in the cache first.
//!
//! The twins are the trie and, address by address, `windows.rs`.

use core::arch::asm;
use core::arch::x86_64::{
    __m128i, __m512i, _mm_cvtsi64_si128, _mm_loadu_si128, _mm_storeu_si128, _mm_unpacklo_epi64,
    _mm512_and_si512, _mm512_cmpeq_epi16_mask, _mm512_cvtepi64_epi16, _mm512_i64gather_epi64,
    _mm512_inserti32x4, _mm512_loadu_si512, _mm512_mask_cmple_epi16_mask,
    _mm512_maskz_compress_epi64, _mm512_maskz_loadu_epi16, _mm512_mullo_epi64, _mm512_or_si512,
    _mm512_permutexvar_epi64, _mm512_rorv_epi64, _mm512_set_epi64, _mm512_set1_epi64,
    _mm512_set4_epi64, _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_sll_epi64,
    _mm512_srl_epi64, _mm512_srli_epi64, _mm512_storeu_si512, _mm512_test_epi64_mask,
    _mm512_zextsi128_si512,
};
use core::hint::select_unpredictable;
use core::mem::{self, MaybeUninit};
use core::slice;

use super::super::NextHopId;
use super::super::address::Address;
use super::super::batch;
use super::super::node::ROOT_STRIDE;
use super::super::walk::View;
use super::super::windows::{ASK, Kind, OF_24, OF_32, OF_40, Windowed};
use super::gathered;
use super::windows::{self, Avx512, Slots, Unit as _, load, next, place, prefetch};
use super::{Native, ask_ahead};

/// Looks up each of `addresses`, in the trie where the windows do not say.
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
pub(super) fn lookup<A: Address, const GATHER: bool>(
    windowed: &Windowed,
    view: &View<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let Ok(slots) = <&Slots>::try_from(view.slots) else {
        return batch::lookup(Native, view, addresses, next_hops);
    };
    let table = Table {
        windowed,
        view,
        slots,
    };
    let nowhere = windows::nowhere();
    let mut lanes = Lanes::with(nowhere.0.as_ptr());
    let groups = addresses.chunks(LANES).zip(next_hops.chunks_mut(LANES));
    for (addresses, next_hops) in groups {
        // As many as the shorter holds.
        let addresses = addresses.get(..next_hops.len()).unwrap_or(addresses);
        let (next_hops, _) = next_hops.split_at_mut(addresses.len());
        ask_ahead(addresses);
        let (eights, left) = addresses.as_chunks::<EIGHT>();
        let (places, left_places) = next_hops.as_chunks_mut::<EIGHT>();
        if !eights.is_empty() {
            if GATHER {
                gathered::group(&table, eights, places);
            } else {
                group(&table, &mut lanes, eights, places);
            }
        }
        if left.len() < EIGHT / 2 {
            for (address, next_hop) in left.iter().zip(left_places) {
                *next_hop = NextHopId::from_code(one(&table, address));
            }
        } else if let Some(first) = left.first() {
            let mut eight = [*first; EIGHT];
            let mut answers = [None; EIGHT];
            for (address, lane) in left.iter().zip(&mut eight) {
                *lane = *address;
            }
            let places = slice::from_mut(&mut answers);
            if GATHER {
                gathered::group(&table, &[eight], places);
            } else {
                group(&table, &mut lanes, &[eight], places);
            }
            for (answer, next_hop) in answers.iter().zip(left_places) {
                *next_hop = *answer;
            }
        }
    }
}

/// What a group is looked up in.
pub(super) struct Table<'a> {
    pub(super) windowed: &'a Windowed,
    pub(super) view: &'a View<'a>,
    pub(super) slots: &'a Slots,
}

/// Looks up at most four times eight addresses.
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn group<A: Address>(
    table: &Table<'_>,
    lanes: &mut Lanes,
    addresses: &[[A; EIGHT]],
    next_hops: &mut [[Option<NextHopId>; EIGHT]],
) {
    // SAFETY: 64 octets.
    let busy = unsafe { _mm512_loadu_si512(table.windowed.busy.as_ptr().cast()) };
    let mut all = u8::MAX;
    for (number, eight) in addresses.iter().enumerate() {
        let high = high_of_eight(eight);
        lanes.highs.set_eight(EIGHT * number, high);
        // Which word has the bit of a /9, and the word turned to that bit.
        let word = _mm512_permutexvar_epi64(_mm512_srli_epi64::<{ 64 - 3 }>(high), busy);
        let turned = _mm512_rorv_epi64(word, _mm512_srli_epi64::<{ 64 - 9 }>(high));
        all &= _mm512_test_epi64_mask(turned, _mm512_set1_epi64(1));
    }
    if all != u8::MAX {
        return by_root::<A, false>(table, lanes, addresses, next_hops);
    }
    let mut open = longest(table.windowed, lanes, next_hops);
    while open != 0 {
        let lane = next(&mut open);
        let (addresses, next_hops) = (addresses.as_flattened(), next_hops.as_flattened_mut());
        if let (Some(address), Some(next_hop)) = (addresses.get(lane), next_hops.get_mut(lane)) {
            *next_hop = NextHopId::from_code(one(table, address));
        }
    }
}

/// The same for addresses some of which are where there are no windows.
#[inline(never)]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
pub(super) fn by_root<A: Address, const GATHER: bool>(
    table: &Table<'_>,
    lanes: &mut Lanes,
    addresses: &[[A; EIGHT]],
    next_hops: &mut [[Option<NextHopId>; EIGHT]],
) {
    let mut deeper = 0;
    for (number, next_hops) in next_hops.iter_mut().enumerate().take(addresses.len()) {
        let first = EIGHT * number;
        let slots = _mm512_srli_epi64::<{ 64 - ROOT_STRIDE as u32 }>(lanes.highs.eight(first));
        lanes.places.set_eight(first, slots);
        if GATHER {
            // SAFETY: a root slot is one of the slots.
            let roots = unsafe { _mm512_i64gather_epi64::<8>(slots, table.slots.as_ptr().cast()) };
            // SAFETY: eight codes are 16 octets.
            unsafe {
                _mm_storeu_si128(next_hops.as_mut_ptr().cast(), _mm512_cvtepi64_epi16(roots))
            };
            let children = _mm512_test_epi64_mask(roots, _mm512_set1_epi64(-1 << 32));
            deeper |= u32::from(children) << first;
            continue;
        }
        let root = |at: usize| {
            let slot = lanes.places.get(first + at) & (table.slots.len() - 1) as u64;
            load(table.slots, (slot & 0xffff) as usize).cast_signed()
        };
        let roots = _mm512_set_epi64(
            root(7),
            root(6),
            root(5),
            root(4),
            root(3),
            root(2),
            root(1),
            root(0),
        );
        // SAFETY: eight codes are 16 octets.
        unsafe { _mm_storeu_si128(next_hops.as_mut_ptr().cast(), _mm512_cvtepi64_epi16(roots)) };
        let children = _mm512_test_epi64_mask(roots, _mm512_set1_epi64(-1 << 32));
        deeper |= u32::from(children) << first;
    }
    let (addresses, next_hops) = (addresses.as_flattened(), next_hops.as_flattened_mut());
    let lookup = |lane: usize, next_hops: &mut [Option<NextHopId>]| {
        if let (Some(address), Some(next_hop)) = (addresses.get(lane), next_hops.get_mut(lane)) {
            *next_hop = NextHopId::from_code(one(table, address));
        }
    };
    if deeper.count_ones() < FEW {
        while deeper != 0 {
            lookup(next(&mut deeper), next_hops);
        }
        return;
    }
    // Put together from the first place on: each eight is written over what the one before had in excess.
    let mut count = 0;
    for number in 0..addresses.len() / EIGHT {
        let mask = (deeper >> (EIGHT * number) & 0xff) as u8;
        let eight = _mm512_maskz_compress_epi64(mask, lanes.highs.eight(EIGHT * number));
        lanes.highs.set_eight(count, eight);
        count += mask.count_ones() as usize;
    }
    let mut answers = [[None; EIGHT]; LANES / EIGHT];
    let (answers, _) = answers.split_at_mut(count.div_ceil(EIGHT).min(LANES / EIGHT));
    let mut open = found::<GATHER>(table.windowed, lanes, answers);
    let mut numbers = [0; LANES];
    let answers = answers.as_flattened().iter().take(count);
    for (answer, number) in answers.zip(&mut numbers) {
        let lane = next(&mut deeper);
        *number = lane;
        if let Some(next_hop) = next_hops.get_mut(lane) {
            *next_hop = *answer;
        }
    }
    while open != 0 {
        let item = next(&mut open);
        if item < count {
            lookup(load(&numbers, item), next_hops);
        }
    }
}

/// [`longest`], or the same by gathers.
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn found<const GATHER: bool>(
    windowed: &Windowed,
    lanes: &mut Lanes,
    answers: &mut [[Option<NextHopId>; EIGHT]],
) -> u32 {
    if GATHER {
        gathered::longest(windowed, &lanes.highs, answers)
    } else {
        longest(windowed, lanes, answers)
    }
}

/// Finds what the windows say to the addresses in `lanes.highs`, as many as there are `answers`. Gives for which of them
/// the windows have no answer, or none that is found here, a bit each.
#[inline(never)]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
#[expect(clippy::cast_possible_truncation, reason = "at most 13 bits are left")]
fn longest(
    windowed: &Windowed,
    lanes: &mut Lanes,
    answers: &mut [[Option<NextHopId>; EIGHT]],
) -> u32 {
    let eights = answers.len();
    debug_assert!(
        (1..=LANES / EIGHT).contains(&eights),
        "{eights} times eight"
    );
    let shift = _mm_cvtsi64_si128(i64::from(windowed.shift));
    for first in (0..EIGHT * eights).step_by(EIGHT) {
        let high = lanes.highs.eight(first);
        let mut tags = _mm512_set1_epi64(0);
        for (number, kind) in KINDS.into_iter().enumerate() {
            let hash = hash_of_eight(kind, high);
            let tag = _mm512_and_si512(_mm512_srli_epi64::<16>(hash), _mm512_set1_epi64(0xfffc));
            let tag = _mm512_or_si512(tag, _mm512_set1_epi64(kind.number.cast_signed()));
            let quarter = _mm_cvtsi64_si128(16 * number as i64);
            tags = _mm512_or_si512(tags, _mm512_sll_epi64(tag, quarter));
            let line = _mm512_and_si512(_mm512_srli_epi64::<26>(hash), _mm512_set1_epi64(7 << 6));
            lanes
                .places
                .set_eight(LANES * number + first, _mm512_srl_epi64(hash, shift));
            lanes.offsets.set_eight(LANES * number + first, line);
        }
        lanes.tags.set_eight(first, tags);
        lanes.slots.set_eight(first, _mm512_srli_epi64::<8>(high));
    }
    for first in (0..EIGHT * eights).step_by(EIGHT) {
        for lane in first..first + EIGHT {
            for number in 0..KINDS.len() {
                let at = lanes.places.get(LANES * number + lane) as usize;
                debug_assert!(at < windowed.pages.len(), "page {at}");
                // SAFETY: there is a page for each value of the bits that a hash is shifted to.
                let page = unsafe { *windowed.pages.get_unchecked(at) };
                let line = page + lanes.offsets.get(LANES * number + lane);
                // Otherwise the compiler adds twice, for the prefetch and for the list.
                let line = place(unknown(line));
                prefetch(line);
                lanes.lines.set(4 * lane + number, line);
            }
        }
    }
    for first in (0..EIGHT * eights).step_by(EIGHT) {
        for four in (first..first + EIGHT).step_by(4) {
            choose(lanes, four);
            choose(lanes, four + 1);
            choose(lanes, four + 2);
            choose(lanes, four + 3);
        }
    }
    for (number, answers) in answers.iter_mut().enumerate() {
        for (lane, answer) in (EIGHT * number..).zip(answers) {
            let code = code(
                lanes.windows.get(lane),
                lanes.of_window.get(lane),
                lanes.kinds.get(lane),
                lanes.highs.get(lane),
            );
            *answer = NextHopId::from_code(code);
        }
    }
    let answers = answers.as_flattened_mut();
    // SAFETY: as many codes of 16 bits as there are answers.
    let mut open = unsafe {
        let there = u32::MAX >> (LANES - EIGHT * eights);
        let codes = _mm512_maskz_loadu_epi16(there, answers.as_ptr().cast());
        _mm512_mask_cmple_epi16_mask(there, codes, _mm512_setzero_si512())
    };
    // One lane in fifty: these two are asked whether they are open or not.
    let mut asked = open;
    for _ in 0..2 {
        let bit = asked & asked.wrapping_neg();
        asked ^= bit;
        let lane = bit.trailing_zeros() as usize % LANES;
        let longer = u32::from(lanes.kinds.get(lane)) + 8;
        let (line, slot, kind) =
            window(lanes, lane, u32::MAX.checked_shl(longer).unwrap_or(NOWHERE));
        let shorter = code(line, slot, kind, lanes.highs.get(lane));
        if let Some(answer) = answers.get_mut(lane) {
            let before = answer.map_or(0, NextHopId::code);
            let code = select_unpredictable(before == 0, shorter, before);
            *answer = NextHopId::from_code(code);
            open ^= select_unpredictable(is_open(code), 0, bit);
        }
    }
    open
}

/// Finds the longest window of a lane.
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn choose(lanes: &mut Lanes, lane: usize) {
    let (line, slot, kind) = window(lanes, lane, u32::MAX);
    prefetch(line);
    lanes.windows.set(lane, line);
    lanes.of_window.set(lane, slot);
    lanes.kinds.set(lane, kind);
}

/// The first of a lane's windows among those whose slots are in `wanted`, eight bits a kind and all of [`NOWHERE`]: the
/// line that has the slot of its address, this slot, and eight times the number of its kind.
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn window(lanes: &Lanes, lane: usize, wanted: u32) -> (*const u64, u16, u8) {
    // SAFETY: lines of pages of this snapshot, or the one that leads nowhere, 64 octets each that are not written while
    // the snapshot lives: eight tags, and for each the six octets after 16 + 6 * its number. Eight are read, of which
    // two belong to the next window or to what follows the line in its page.
    unsafe {
        let line = |number| lanes.lines.get(4 * lane + number);
        let [long, middle, short] = [0, 1, 2].map(|number| _mm_loadu_si128(line(number).cast()));
        let both = _mm512_inserti32x4::<1>(_mm512_zextsi128_si512(long), middle);
        let lines = _mm512_inserti32x4::<2>(both, short);
        // Each of the four tags eight times; the fourth is 0 and so is the fourth line, so that these are equal.
        let pattern = _mm512_set_epi64(
            0x0706_0706_0706_0706,
            0x0706_0706_0706_0706,
            0x0504_0504_0504_0504,
            0x0504_0504_0504_0504,
            0x0302_0302_0302_0302,
            0x0302_0302_0302_0302,
            0x0100_0100_0100_0100,
            0x0100_0100_0100_0100,
        );
        let tags = _mm512_set1_epi64(lanes.tags.get(lane).cast_signed());
        let equal = _mm512_cmpeq_epi16_mask(lines, _mm512_shuffle_epi8(tags, pattern));
        let at = (equal & wanted).trailing_zeros();
        let kind = at & 0x18;
        let word = line(kind as usize / 8)
            .cast::<u8>()
            .add(16 + 6 * (at as usize & 7));
        let word = word.cast::<u64>().read_unaligned();
        let slot = (lanes.slots.get(lane) >> kind & 0xffff) as u16;
        let line = (word & 0xffff_ffff_ffc0) + 64 * (u64::from(slot) >> (word & 63));
        (place(line), slot, (kind & 0xff) as u8)
    }
}

/// What the line of a window says to the address that begins with `high`; [`ASK`], and more bits, when it is one of
/// another prefix.
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
pub(super) fn code(line: *const u64, slot: u16, kind: u8, high: u64) -> u16 {
    // SAFETY: as in `windows::code`; a kind is one of four multiples of 8.
    unsafe {
        let below = Avx512::below(line, slot);
        let code = line.cast::<u16>().add(16 + below.count_ones() as usize);
        let prefix = line.add(3).read();
        let mask = PREFIXES
            .as_ptr()
            .cast::<u8>()
            .add(usize::from(kind))
            .cast::<u64>();
        let same = (prefix ^ high) & mask.read() == 0;
        select_unpredictable(same, code.read(), (prefix & 0xffff) as u16)
    }
}

/// `value`, of which the compiler does not know that it is.
#[inline(always)]
fn unknown(value: u64) -> u64 {
    let mut same = value;
    // SAFETY: there is no instruction in it.
    unsafe {
        asm!("/* {0} */", inout(reg) same, options(pure, nomem, nostack, preserves_flags));
    }
    same
}

/// Whether a window that says this leaves the answer open.
#[inline(always)]
pub(super) fn is_open(code: u16) -> bool {
    code.wrapping_sub(1) >= ASK - 1
}

/// What the table says to one address.
#[inline(never)]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
pub(super) fn one<A: Address>(table: &Table<'_>, address: &A) -> u16 {
    let key = address.to_key();
    match windows::lookup_one::<Avx512>(table.windowed, table.slots, key) {
        Some(code) => code,
        None => batch::lookup_one::<A>(Native, table.view, key),
    }
}

/// The first halves of eight addresses.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn high_of_eight<A: Address>(eight: &[A; EIGHT]) -> __m512i {
    let pair = |first: usize| {
        let [a, b] = [first, first + 1].map(|at| {
            // The compiler turns the octets round twice, that is, loads them.
            let octets = eight
                .get(at)
                .map_or([0; 16], |address| address.to_key().to_be_bytes());
            // SAFETY: both are 16 octets, and every value is one of each.
            unsafe { mem::transmute::<[u8; 16], __m128i>(octets) }
        });
        _mm_unpacklo_epi64(a, b)
    };
    let all = _mm512_inserti32x4::<1>(_mm512_zextsi128_si512(pair(0)), pair(2));
    let all = _mm512_inserti32x4::<2>(all, pair(4));
    let all = _mm512_inserti32x4::<3>(all, pair(6));
    let (first, second) = (0x0001_0203_0405_0607, 0x0809_0a0b_0c0d_0e0f);
    _mm512_shuffle_epi8(all, _mm512_set4_epi64(second, first, second, first))
}

/// [`Kind::hash`] for eight addresses.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn hash_of_eight(kind: Kind, high: __m512i) -> __m512i {
    let unused = _mm_cvtsi64_si128(64 - i64::from(kind.len));
    let factor = _mm512_set1_epi64(kind.factor.cast_signed());
    _mm512_mullo_epi64(_mm512_srl_epi64(high, unused), factor)
}

/// What passes leave each other. Nothing is set up: each reads what those before it have written for the same lanes.
pub(super) struct Lanes {
    /// The first halves of addresses.
    pub(super) highs: List<u64, LANES>,
    /// The same without the last 8 bits: shifted right by 0, 8 or 16 more they end with the slot in a window.
    slots: List<u64, LANES>,
    /// Places in the directory, kind after kind.
    places: List<u64, { 3 * LANES }>,
    /// Where the line is in its page, in octets, kind after kind.
    offsets: List<u64, { 3 * LANES }>,
    /// Three tags and 0.
    tags: List<u64, LANES>,
    /// Lines of the hash, lane after lane, the fourth always the one that leads nowhere.
    lines: List<*const u64, { 4 * LANES }>,
    /// Lines of windows.
    windows: List<*const u64, LANES>,
    of_window: List<u16, LANES>,
    /// Eight times the number of the window's kind.
    kinds: List<u8, LANES>,
}

impl Lanes {
    #[inline(always)]
    pub(super) const fn new() -> Self {
        Self {
            highs: List::new(),
            slots: List::new(),
            places: List::new(),
            offsets: List::new(),
            tags: List::new(),
            lines: List::new(),
            windows: List::new(),
            of_window: List::new(),
            kinds: List::new(),
        }
    }

    #[inline(always)]
    fn with(nowhere: *const u64) -> Self {
        let mut lanes = Self::new();
        for lane in 0..LANES {
            lanes.lines.set(4 * lane + 3, nowhere);
        }
        lanes
    }
}

/// A list of plain values, each of which is written before it is read.
#[repr(align(64))]
pub(super) struct List<T, const N: usize>(pub(super) [MaybeUninit<T>; N]);

impl<T: Copy, const N: usize> List<T, N> {
    #[inline(always)]
    pub(super) const fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; N])
    }

    #[inline(always)]
    pub(super) fn get(&self, at: usize) -> T {
        debug_assert!(at < N, "{at} of {N}");
        // SAFETY: lanes are below `LANES` and each list has as many places as are made of them; passes write before
        // they read, as `Lanes` says.
        unsafe { self.0.get_unchecked(at).assume_init() }
    }

    #[inline(always)]
    pub(super) fn set(&mut self, at: usize, value: T) {
        debug_assert!(at < N, "{at} of {N}");
        // SAFETY: in bounds as above.
        unsafe { self.0.get_unchecked_mut(at) }.write(value);
    }
}

impl<const N: usize> List<u64, N> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn eight(&self, first: usize) -> __m512i {
        debug_assert!(first + EIGHT <= N, "{first} of {N}");
        // SAFETY: eight numbers of the list, written as above.
        unsafe { _mm512_loadu_si512(self.0.as_ptr().add(first).cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn set_eight(&mut self, first: usize, eight: __m512i) {
        debug_assert!(first + EIGHT <= N, "{first} of {N}");
        // SAFETY: eight numbers of the list.
        unsafe { _mm512_storeu_si512(self.0.as_mut_ptr().add(first).cast(), eight) };
    }
}

/// Longest first: the order in which windows are chosen.
pub(super) const KINDS: [Kind; 3] = [OF_40, OF_32, OF_24];
/// The slots of the window that is not there, whose tag is always found.
const NOWHERE: u32 = 0xff << 24;
/// The bits of their prefixes; none for that window.
static PREFIXES: [u64; 4] = [!0 << 24, !0 << 32, !0 << 40, 0];

/// Addresses below the root of which there are as few as that are looked up one by one.
const FEW: u32 = 9;
/// Addresses that go side by side.
pub(super) const LANES: usize = 32;
/// Numbers of a vector.
pub(super) const EIGHT: usize = 8;
