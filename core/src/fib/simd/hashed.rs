//! Lookups in the hash of an IPv6 table: all tags of a line at once, all lengths of an address side by side.
//!
//! Of the lengths of an address that have an answer the longest is found in arithmetic: which one it is cannot be
//! foreseen. A batch goes in three passes, each of which asks for what the next needs: line, entry, next hop. With
//! AVX-512 eight addresses are hashed at once, and the last two passes are one: their loads do not wait for each other,
//! and what a pass of its own writes down and reads again costs more than it hides. Of the usual two lengths both lines
//! are compared in one vector; those of a table that is near are not asked for ahead; and what entries say about the
//! prefix is gathered for the whole group, which is gone through again when one of them is of another prefix. Where
//! gathers are fast, the pages of eight lines come by one.
//!
//! A single lookup is bound by its instructions where it waits for nothing else. So the hash is of an address as it is in
//! memory, without its octets turned around; the two halves are spread once for all lengths that need them whole; tags
//! are the lowest bits of a hash; what is checked of an entry is checked by branches that are foreseen; and with AVX-512
//! both lines of the usual two lengths are compared in registers that need not be cleared afterwards. Lengths of 128 and
//! 64, hosts and their networks, have code of their own, without masks. Other levels use what every x86-64 has.
//!
//! The twin is `Hashed::lookup` in `hashed.rs`.

use core::arch::{asm, x86_64};
use core::hint::select_unpredictable;
use core::sync::atomic::{AtomicU64, Ordering};

use super::super::NextHopId;
use super::super::address::Address;
use super::super::hashed::{
    ENTRY, HIGH_FACTOR, HOSTS, Hashed, LINE, LINE_BITS, LINE_SHIFT, LOW_FACTOR, Length,
    MAX_LENGTHS, SPREAD, TAGS, line_of, octets, spread, tag_of,
};
use super::super::walk::View;
use super::ask_ahead;
use super::longest::List;
use super::windows::place;

/// The instructions that compare tags, and what a batch makes of them.
pub(super) trait Unit {
    /// The slots of `line` that have `tag`, a bit each.
    fn slots_with(line: *const AtomicU64, tag: u16) -> u16;

    /// Looks up at most [`LANES`] addresses in `N` lengths; gives the lanes, a bit each, that the trie must be asked
    /// for.
    fn group<A: Address, const N: usize>(
        hashed: &Hashed,
        addresses: &[A],
        next_hops: &mut [Option<NextHopId>],
    ) -> u32;
}

/// What every x86-64 has.
pub(super) struct Sse2;

/// 512-bit vectors with masks; with `GATHER` what they lead to comes by gathers.
pub(super) struct Avx512<const GATHER: bool>;

impl Unit for Sse2 {
    #[inline(always)]
    fn slots_with(line: *const AtomicU64, tag: u16) -> u16 {
        // SAFETY: the instructions are those that every x86-64 has; the 32 octets are the tags of a line of this
        // snapshot, which is not written while the snapshot lives.
        let slots = unsafe {
            let tag = x86_64::_mm_set1_epi16(tag.cast_signed());
            let first = x86_64::_mm_loadu_si128(line.cast());
            let second = x86_64::_mm_loadu_si128(line.cast::<x86_64::__m128i>().add(1));
            let equal = x86_64::_mm_packs_epi16(
                x86_64::_mm_cmpeq_epi16(first, tag),
                x86_64::_mm_cmpeq_epi16(second, tag),
            );
            x86_64::_mm_movemask_epi8(equal)
        };
        (slots & 0xffff) as u16
    }

    #[inline(always)]
    fn group<A: Address, const N: usize>(
        hashed: &Hashed,
        addresses: &[A],
        next_hops: &mut [Option<NextHopId>],
    ) -> u32 {
        let nothing: *const AtomicU64 = hashed.default.as_ptr();
        let mut lines = [[nothing; PLACES]; LANES];
        let mut tags = [[0_u16; N]; LANES];
        for (address, (lines, tags)) in addresses.iter().zip(lines.iter_mut().zip(&mut tags)) {
            let (high, low) = octets(address.to_key());
            for (number, (line, tag)) in lines.iter_mut().zip(tags).enumerate() {
                (*line, *tag) = ask(hashed, number, high, low);
                prefetch(*line);
            }
        }
        let mut entries = [nothing; LANES];
        let mut numbers = [0_usize; LANES];
        let found = entries.iter_mut().zip(&mut numbers);
        let asked = lines.iter().zip(&tags).take(addresses.len());
        for ((lines, tags), (entry, place)) in asked.zip(found) {
            let mut slots = Slots::<N>(0);
            for (number, (line, tag)) in lines.iter().zip(tags).enumerate() {
                slots.add::<Self>(number, *line, *tag);
            }
            let (number, slot) = slots.first();
            *entry = entry_of(load(lines, number), slot);
            *place = number;
            prefetch(*entry);
        }
        let mut undecided = 0;
        let found = entries.iter().zip(&numbers);
        let asked = addresses.iter().zip(next_hops);
        for (lane, ((address, next_hop), (entry, number))) in (0..).zip(asked.zip(found)) {
            let (high, low) = octets(address.to_key());
            let entry = read(*entry);
            let differs = length(hashed, *number).differs(entry, high, low);
            undecided |= u32::from(differs != 0) << lane;
            *next_hop = NextHopId::from_code(code(entry));
        }
        undecided
    }
}

impl<const GATHER: bool> Unit for Avx512<GATHER> {
    #[inline(always)]
    fn slots_with(line: *const AtomicU64, tag: u16) -> u16 {
        // SAFETY: as above; `hashed_avx512` is where this is inlined.
        unsafe {
            let tag = x86_64::_mm256_set1_epi16(tag.cast_signed());
            let tags = x86_64::_mm256_loadu_si256(line.cast());
            x86_64::_mm256_cmpeq_epi16_mask(tags, tag)
        }
    }

    #[inline(always)]
    fn group<A: Address, const N: usize>(
        hashed: &Hashed,
        addresses: &[A],
        next_hops: &mut [Option<NextHopId>],
    ) -> u32 {
        if N == 2 {
            return of_two::<A, GATHER>(hashed, addresses, next_hops);
        }
        let mut octets = [[0_u8; 16]; LANES];
        for (address, octets) in addresses.iter().zip(&mut octets) {
            *octets = address.to_key().to_be_bytes();
        }
        let mut pages = [[0_u16; LANES]; N];
        let mut cells = [[0_u16; LANES]; N];
        let mut tags = [[0_u16; LANES]; N];
        let (eights, _) = octets.as_chunks::<8>();
        for (start, octets) in (0..addresses.len()).step_by(8).zip(eights) {
            // SAFETY: the instructions are there.
            let eight = unsafe { Eight::of(octets) };
            let places = pages.iter_mut().zip(&mut cells).zip(&mut tags);
            for (number, ((pages, cells), tags)) in places.enumerate() {
                let length = length(hashed, number);
                debug_assert!(start + 8 <= LANES, "{start}");
                // SAFETY: `start` is 0, 8, 16 or 24: eight of the 32 places, 16 octets, begin there; the instructions
                // as above.
                unsafe {
                    let hash = eight.hashes(length);
                    let (page, cell) = eight_places(hashed, hash);
                    let tag = x86_64::_mm512_cvtepi64_epi16(hash);
                    x86_64::_mm_storeu_si128(pages.as_mut_ptr().add(start).cast(), page);
                    x86_64::_mm_storeu_si128(cells.as_mut_ptr().add(start).cast(), cell);
                    x86_64::_mm_storeu_si128(tags.as_mut_ptr().add(start).cast(), tag);
                }
            }
        }
        // In a loop of its own: read from the vectors one by one, the places cost more than from memory.
        let mut lines = [[hashed.default.as_ptr(); LANES]; PLACES];
        for ((lines, pages), cells) in lines.iter_mut().zip(&pages).zip(&cells) {
            let places = lines.iter_mut().zip(pages.iter().zip(cells));
            for (line, (at, cell)) in places.take(addresses.len()) {
                *line = page(hashed, usize::from(*at)).wrapping_add(usize::from(*cell));
                prefetch(*line);
            }
        }
        let mut undecided = 0;
        for (lane, (next_hop, octets)) in next_hops.iter_mut().zip(&octets).enumerate() {
            let mut slots = Slots::<N>(0);
            for (number, (lines, tags)) in lines.iter().zip(&tags).enumerate() {
                slots.add::<Self>(number, load(lines, lane), load(tags, lane));
            }
            let (number, slot) = slots.first();
            debug_assert!(number < PLACES, "length {number}");
            // SAFETY: `Slots::first` gives one of `N` lengths, or `N`, where the line of the default route is.
            let lines = unsafe { lines.get_unchecked(number) };
            let entry = entry_of(load(lines, lane), slot);
            let length = length(hashed, number);
            // SAFETY: a key is 16 octets, and so are the two masks of a length and the prefix of an entry, of which
            // see `read`; the instructions as above.
            let other = unsafe {
                let key = x86_64::_mm_loadu_si128(octets.as_ptr().cast());
                let prefix = x86_64::_mm_loadu_si128(entry.cast());
                let mask = x86_64::_mm_loadu_si128((&raw const *length).cast());
                x86_64::_mm_test_epi64_mask(x86_64::_mm_xor_si128(key, prefix), mask)
            };
            let entry = read(entry);
            let differs = u64::from(other) | (entry[2] >> 16) ^ length.len;
            undecided |= u32::from(differs != 0) << lane;
            *next_hop = NextHopId::from_code(code(entry));
        }
        undecided
    }
}

/// The code for the address `key`; `None` when the trie must be asked.
#[inline(always)]
pub(super) fn lookup_one(hashed: &Hashed, key: u128) -> Option<u16> {
    if hashed.count == 2 {
        one::<2, 3>(hashed, key)
    } else {
        other(hashed, key)
    }
}

/// The same for any number of lengths but the usual one, which so needs no more registers than are free.
#[inline(never)]
fn other(hashed: &Hashed, key: u128) -> Option<u16> {
    match hashed.count {
        1 => one::<1, 2>(hashed, key),
        3 => one::<3, 4>(hashed, key),
        4 => one::<4, 5>(hashed, key),
        _ => one::<0, 1>(hashed, key),
    }
}

/// The same for `N` lengths; `P` is one more.
#[inline(always)]
fn one<const N: usize, const P: usize>(hashed: &Hashed, key: u128) -> Option<u16> {
    const { assert!(P == N + 1 && P <= PLACES) };
    let (high, low) = octets(key);
    let mut lines = [hashed.default.as_ptr(); P];
    let mut slots = Slots::<N>(0);
    for (number, place) in lines.iter_mut().enumerate().take(N) {
        let (line, tag) = ask(hashed, number, high, low);
        *place = line;
        slots.add::<Sse2>(number, line, tag);
    }
    let (number, slot) = slots.first();
    let entry = read(entry_of(load(&lines, number), slot));
    (length(hashed, number).differs(entry, high, low) == 0).then_some(code(entry))
}

/// The same for two lengths and an address of which these are the [`octets`].
///
/// Whoever inlines this has the instructions of [`Avx512`].
#[inline(always)]
pub(super) fn lookup_of_two(hashed: &Hashed, high: u64, low: u64) -> Option<u16> {
    let [longer, shorter] = [0, 1].map(|number| length(hashed, number).hash(high, low));
    let [first, second] = [longer, shorter].map(|hash| line(hashed, hash));
    // SAFETY: the instructions are there.
    let slots = unsafe { slots_of_two(first, longer, second, shorter) };
    let (entry, length) = entry_in(hashed, first, second, slots);
    // One after the other, by branches: nearly always all of it fits, whichever of the lengths it is.
    // SAFETY: as in `read`.
    unsafe {
        let entry = entry.cast::<u64>();
        if (entry.read() ^ high) & length.high_mask != 0
            || (entry.add(1).read() ^ low) & length.low_mask != 0
        {
            return None;
        }
        let len = entry.add(2).cast::<u16>().add(1).read();
        let code = entry.add(2).cast::<u16>().read();
        (u64::from(len) == length.len).then_some(code)
    }
}

/// The same for lengths of 128 and 64, hosts and their networks: without masks where there is nothing to mask.
///
/// Whoever inlines this has the instructions of [`Avx512`].
#[inline(always)]
pub(super) fn lookup_of_hosts(hashed: &Hashed, high: u64, low: u64) -> Option<u16> {
    let [longer, shorter] = [0, 1].map(|number| length(hashed, number));
    let spread_high = spread(high, HIGH_FACTOR);
    let longer = longer.hash_of(spread_high, spread(low, LOW_FACTOR));
    let shorter = shorter.hash_of(spread_high, 0);
    let [first, second] = [longer, shorter].map(|hash| line(hashed, hash));
    // SAFETY: the instructions are there.
    let slots = unsafe { slots_of_two(first, longer, second, shorter) };
    if slots == 0 {
        // SAFETY: what stands behind the line is the entry.
        return Some(code(read(unsafe { hashed.default.as_ptr().add(LINE) })));
    }
    let at = slots.trailing_zeros() as usize;
    let is_host = at < TAGS;
    let entry = entry_of(select_unpredictable(is_host, first, second), at % TAGS);
    // SAFETY: as in `read`.
    unsafe {
        let prefix = entry.cast::<u64>();
        let low = select_unpredictable(is_host, low, 0);
        let len = 128 >> (at / TAGS);
        let meta = entry.add(2).cast::<u16>();
        let fits =
            prefix.read() == high && prefix.add(1).read() == low && meta.add(1).read() == len;
        fits.then(|| meta.read())
    }
}

/// The slots of two lines, a bit each, those of the first lowest, that have the tags of these hashes.
///
/// By instructions that are named here since the compiler would put the two lines together in one vector first, and since
/// these registers, which no code without AVX-512 knows, need not be cleared for such code.
///
/// # Safety
///
/// Both are lines of this snapshot, and the instructions of [`Avx512`] are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn slots_of_two(
    first: *const AtomicU64,
    one: u64,
    second: *const AtomicU64,
    other: u64,
) -> u32 {
    let slots: u32;
    // SAFETY: the instructions are there; the 32 octets are the tags of a line, which is not written while the snapshot
    // lives.
    unsafe {
        asm!(
            "vpbroadcastw ymm16, {one:e}",
            "vpbroadcastw ymm17, {other:e}",
            "vpcmpeqw {low}, ymm16, ymmword ptr [{first}]",
            "vpcmpeqw {high}, ymm17, ymmword ptr [{second}]",
            "kunpckwd {low}, {high}, {low}",
            "kmovd {slots:e}, {low}",
            one = in(reg) one,
            other = in(reg) other,
            first = in(reg) first,
            second = in(reg) second,
            low = out(kreg) _,
            high = out(kreg) _,
            slots = lateout(reg) slots,
            out("ymm16") _,
            out("ymm17") _,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    slots
}

/// At most [`LANES`] addresses in two lengths; gives the lanes, a bit each, that the trie must be asked for.
#[inline(always)]
fn of_two<A: Address, const GATHER: bool>(
    hashed: &Hashed,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) -> u32 {
    if let (Ok(addresses), Ok(next_hops)) = (addresses.try_into(), (&mut *next_hops).try_into()) {
        return if hashed.of_hosts {
            group_of_two::<A, true, GATHER>(hashed, addresses, next_hops)
        } else {
            group_of_two::<A, false, GATHER>(hashed, addresses, next_hops)
        };
    }
    let mut undecided = 0;
    for (lane, (address, next_hop)) in addresses.iter().zip(next_hops).enumerate() {
        let (high, low) = octets(address.to_key());
        match lookup_of_two(hashed, high, low) {
            Some(code) => *next_hop = NextHopId::from_code(code),
            None => undecided |= 1 << lane,
        }
    }
    undecided
}

/// A whole group in two lengths: what [`lookup_of_two`] is for one address.
#[inline(always)]
fn group_of_two<A: Address, const OF_HOSTS: bool, const GATHER: bool>(
    hashed: &Hashed,
    addresses: &[A; LANES],
    next_hops: &mut [Option<NextHopId>; LANES],
) -> u32 {
    // Where the lines are, by gathers; otherwise their pages, and where in these.
    let mut lines = [const { List::<u64, LANES>::new() }; 2];
    let mut pages = [[0_u16; LANES]; 2];
    let mut cells = [[0_u16; LANES]; 2];
    let mut tags = [0_u32; LANES];
    let (eights, _) = addresses.as_chunks::<8>();
    for (start, addresses) in (0..LANES).step_by(8).zip(eights) {
        let octets = addresses.map(|address| address.to_key().to_be_bytes());
        debug_assert!(start + 8 <= LANES, "{start}");
        // SAFETY: `start` is 0, 8, 16 or 24: eight of the 32 places begin there; the instructions as above.
        unsafe {
            let eight = Eight::of(&octets);
            let mut hashes = [eight.high; 2];
            let places = pages.iter_mut().zip(&mut cells).zip(&mut lines);
            for (number, (((pages, cells), lines), place)) in places.zip(&mut hashes).enumerate() {
                let hash = if OF_HOSTS {
                    eight.hashes(&load(&HOSTS, number))
                } else {
                    eight.hashes(length(hashed, number))
                };
                *place = hash;
                if GATHER {
                    lines.set_eight(start, eight_lines(hashed, hash));
                    continue;
                }
                let (page, cell) = eight_places(hashed, hash);
                x86_64::_mm_storeu_si128(pages.as_mut_ptr().add(start).cast(), page);
                x86_64::_mm_storeu_si128(cells.as_mut_ptr().add(start).cast(), cell);
            }
            let [first, second] = hashes;
            // Turned, not shifted: the compiler would make another product of that.
            let second = x86_64::_mm512_rol_epi64::<16>(second);
            let half = x86_64::_mm512_set1_epi64(0xffff);
            // The first where `half` is set, otherwise the second.
            let both = x86_64::_mm512_ternarylogic_epi64::<0xca>(half, first, second);
            let both = x86_64::_mm512_cvtepi64_epi32(both);
            x86_64::_mm256_storeu_si256(tags.as_mut_ptr().add(start).cast(), both);
        }
    }
    let [first_lines, second_lines] = &lines;
    let [first_pages, second_pages] = &pages;
    let [first_cells, second_cells] = &cells;
    let lines_of = |lane: usize| {
        if GATHER {
            return [first_lines, second_lines].map(|lines| place(lines.get(lane)).cast());
        }
        let places = [(first_pages, first_cells), (second_pages, second_cells)];
        places.map(|(pages, cells)| {
            page(hashed, load(pages, lane).into()).wrapping_add(load(cells, lane).into())
        })
    };
    if hashed.is_far {
        for lane in 0..LANES {
            let [first, second] = lines_of(lane);
            prefetch(first);
            prefetch(second);
        }
    }
    // SAFETY: the instructions are there.
    let (numbers, mut other) = unsafe {
        let numbers = x86_64::_mm256_set1_epi16(1);
        let numbers = x86_64::_mm512_inserti64x4::<1>(x86_64::_mm512_setzero_si512(), numbers);
        (numbers, x86_64::_mm_setzero_si128())
    };
    let mut others = 0;
    let asked = next_hops.iter_mut().zip(addresses).zip(&tags);
    for (lane, ((next_hop, address), tags)) in asked.enumerate() {
        let [first, second] = lines_of(lane);
        // SAFETY: the instructions are there.
        let (entry, length) = unsafe {
            let tags =
                x86_64::_mm512_castsi128_si512(x86_64::_mm_cvtsi32_si128(tags.cast_signed()));
            let tags = x86_64::_mm512_permutexvar_epi16(numbers, tags);
            longer_of_two(hashed, first, second, tags)
        };
        let octets = address.to_key().to_be_bytes();
        // SAFETY: a key is 16 octets, and so are the two masks of a length and the prefix of an entry, of which see
        // `read`; the instructions are there.
        unsafe {
            let key = x86_64::_mm_loadu_si128(octets.as_ptr().cast());
            let prefix = x86_64::_mm_loadu_si128(entry.cast());
            let mask = x86_64::_mm_loadu_si128((&raw const *length).cast());
            let differs = x86_64::_mm_xor_si128(key, prefix);
            // The first one or what the other two have in common.
            other = x86_64::_mm_ternarylogic_epi64::<0xf8>(other, differs, mask);
        }
        let entry = read(entry);
        others |= entry[2] ^ length.len << 16;
        *next_hop = NextHopId::from_code(code(entry));
    }
    // SAFETY: the instructions are there.
    let differs = unsafe { x86_64::_mm_test_epi64_mask(other, other) };
    if differs == 0 && others >> 16 == 0 {
        return 0;
    }
    undecided_of_two(hashed, addresses)
}

/// The lanes, a bit each, that the trie must be asked for.
#[inline(never)]
fn undecided_of_two<A: Address>(hashed: &Hashed, addresses: &[A; LANES]) -> u32 {
    let mut undecided = 0;
    for (lane, address) in addresses.iter().enumerate() {
        let code = one::<2, 3>(hashed, address.to_key());
        undecided |= u32::from(code.is_none()) << lane;
    }
    undecided
}

/// The entry that the lines of two lengths lead to, of the first length where both have its tag, and that length: the
/// default route's where neither has.
///
/// # Safety
///
/// The instructions of [`Avx512`] are there.
#[inline(always)]
unsafe fn longer_of_two(
    hashed: &Hashed,
    first: *const AtomicU64,
    second: *const AtomicU64,
    tags: x86_64::__m512i,
) -> (*const AtomicU64, &Length) {
    // SAFETY: the instructions are there; 32 octets are the tags of a line of this snapshot, which is not written while
    // the snapshot lives.
    let slots = unsafe {
        let both = x86_64::_mm512_castsi256_si512(x86_64::_mm256_loadu_si256(first.cast()));
        let both = x86_64::_mm512_inserti64x4::<1>(both, x86_64::_mm256_loadu_si256(second.cast()));
        x86_64::_mm512_cmpeq_epi16_mask(both, tags)
    };
    entry_in(hashed, first, second, slots)
}

/// The same for lines that have the tags in `slots`, a bit each, those of the first length lowest.
#[inline(always)]
fn entry_in(
    hashed: &Hashed,
    first: *const AtomicU64,
    second: *const AtomicU64,
    slots: u32,
) -> (*const AtomicU64, &Length) {
    let at = slots.trailing_zeros() as usize;
    let line = select_unpredictable(at < TAGS, first, second);
    let line = select_unpredictable(slots == 0, hashed.default.as_ptr(), line);
    (entry_of(line, at % TAGS), length(hashed, at / TAGS))
}

/// The [`octets`] of eight addresses, half by half.
struct Eight {
    high: x86_64::__m512i,
    low: x86_64::__m512i,
    /// The high halves, spread whole: as lengths from 64 on need them.
    spread: x86_64::__m512i,
}

impl Eight {
    /// # Safety
    ///
    /// The instructions of [`Avx512`] are there.
    #[inline(always)]
    unsafe fn of(octets: &[[u8; 16]; 8]) -> Self {
        // SAFETY: eight addresses are 128 octets; the instructions are there.
        unsafe {
            let first = x86_64::_mm512_loadu_si512(octets.as_ptr().cast());
            let second = x86_64::_mm512_loadu_si512(octets.as_ptr().add(4).cast());
            let even = x86_64::_mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
            let odd = x86_64::_mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
            let high = x86_64::_mm512_permutex2var_epi64(first, even, second);
            Self {
                high,
                low: x86_64::_mm512_permutex2var_epi64(first, odd, second),
                spread: eight_spread(high, HIGH_FACTOR),
            }
        }
    }

    /// The hashes of the prefixes of one length that the addresses begin with.
    ///
    /// # Safety
    ///
    /// The instructions of [`Avx512`] are there.
    #[inline(always)]
    unsafe fn hashes(&self, length: &Length) -> x86_64::__m512i {
        // SAFETY: the instructions are there.
        unsafe {
            let all = |value: u64| x86_64::_mm512_set1_epi64(value.cast_signed());
            let high = if length.high_mask == u64::MAX {
                self.spread
            } else {
                let high = x86_64::_mm512_and_si512(self.high, all(length.high_mask));
                eight_spread(high, HIGH_FACTOR)
            };
            let mut both = x86_64::_mm512_or_si512(high, all(1));
            if length.low_mask != 0 {
                let low = x86_64::_mm512_and_si512(self.low, all(length.low_mask));
                let low = eight_spread(low, LOW_FACTOR);
                both = x86_64::_mm512_add_epi64(both, x86_64::_mm512_slli_epi64::<1>(low));
            }
            x86_64::_mm512_mullo_epi64(both, all(length.factor))
        }
    }
}

/// What [`spread`] makes of eight halves.
///
/// # Safety
///
/// The instructions of [`Avx512`] are there.
#[inline(always)]
unsafe fn eight_spread(halves: x86_64::__m512i, factor: u64) -> x86_64::__m512i {
    // SAFETY: the instructions are there.
    unsafe {
        let factor = x86_64::_mm512_set1_epi64(factor.cast_signed());
        x86_64::_mm512_ror_epi64::<{ SPREAD.cast_signed() }>(x86_64::_mm512_mullo_epi64(
            halves, factor,
        ))
    }
}

/// The numbers of the pages for eight hashes, and the first cells of their lines there, 16 bits each.
///
/// # Safety
///
/// The instructions of [`Avx512`] are there.
#[inline(always)]
unsafe fn eight_places(
    hashed: &Hashed,
    hash: x86_64::__m512i,
) -> (x86_64::__m128i, x86_64::__m128i) {
    // SAFETY: the instructions are there.
    unsafe {
        let shift = x86_64::_mm_cvtsi32_si128(hashed.shift.cast_signed());
        let page = x86_64::_mm512_cvtepi64_epi16(x86_64::_mm512_srl_epi64(hash, shift));
        let cell = x86_64::_mm512_srli_epi64::<LINE_SHIFT>(hash);
        let cell = x86_64::_mm512_cvtepi64_epi16(cell);
        let cell = x86_64::_mm_and_si128(cell, x86_64::_mm_set1_epi16(LINE_BITS));
        (page, cell)
    }
}

/// Where the lines for eight hashes are.
///
/// # Safety
///
/// The instructions of [`Avx512`] are there.
#[inline(always)]
unsafe fn eight_lines(hashed: &Hashed, hash: x86_64::__m512i) -> x86_64::__m512i {
    // SAFETY: the instructions are there; there is a page for each value of the bits that a hash is shifted to.
    unsafe {
        let shift = x86_64::_mm_cvtsi32_si128(hashed.shift.cast_signed());
        let at = x86_64::_mm512_srl_epi64(hash, shift);
        let page = x86_64::_mm512_i64gather_epi64::<8>(at, hashed.pages.as_ptr().cast());
        // Cells are eight octets.
        let octet = x86_64::_mm512_srli_epi64::<{ LINE_SHIFT - 3 }>(hash);
        let octet =
            x86_64::_mm512_and_si512(octet, x86_64::_mm512_set1_epi64(8 * LINE_BITS as i64));
        x86_64::_mm512_add_epi64(page, octet)
    }
}

/// Looks up each of `addresses`, in the trie where the hash does not say.
#[inline(always)]
pub(super) fn lookup<A: Address, U: Unit>(
    hashed: &Hashed,
    view: &View<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let groups = addresses.chunks(LANES).zip(next_hops.chunks_mut(LANES));
    for (addresses, next_hops) in groups {
        // As many as the shorter holds.
        let addresses = addresses.get(..next_hops.len()).unwrap_or(addresses);
        let (next_hops, _) = next_hops.split_at_mut(addresses.len());
        ask_ahead(addresses);
        let mut undecided = match hashed.count {
            1 => U::group::<A, 1>(hashed, addresses, next_hops),
            2 => U::group::<A, 2>(hashed, addresses, next_hops),
            3 => U::group::<A, 3>(hashed, addresses, next_hops),
            4 => U::group::<A, 4>(hashed, addresses, next_hops),
            _ => U::group::<A, 0>(hashed, addresses, next_hops),
        };
        while undecided != 0 {
            let lane = undecided.trailing_zeros() as usize;
            if let (Some(address), Some(next_hop)) = (addresses.get(lane), next_hops.get_mut(lane))
            {
                *next_hop = NextHopId::from_code(view.lookup::<A>(address.to_key()));
            }
            undecided &= undecided - 1;
        }
    }
}

/// The slots that have an address's tag, 16 bits for each of `N` lengths, the longest lowest.
#[derive(Clone, Copy)]
struct Slots<const N: usize>(u64);

impl<const N: usize> Slots<N> {
    #[inline(always)]
    fn add<U: Unit>(&mut self, number: usize, line: *const AtomicU64, tag: u16) {
        self.0 |= u64::from(U::slots_with(line, tag)) << (TAGS * number);
    }

    /// The longest length that has a slot, and the first one that it has; `N` and 0 when none has.
    #[inline(always)]
    fn first(self) -> (usize, usize) {
        let end = if N < MAX_LENGTHS { 1 << (TAGS * N) } else { 0 };
        let at = (self.0 | end).trailing_zeros() as usize;
        (at / TAGS, at % TAGS)
    }
}

/// The line of the prefix of length `number` that the address begins with, and its tag.
#[inline(always)]
fn ask(hashed: &Hashed, number: usize, high: u64, low: u64) -> (*const AtomicU64, u16) {
    let hash = length(hashed, number).hash(high, low);
    (line(hashed, hash), tag_of(hash))
}

/// The line for `hash`.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "at most 12 bits are left")]
fn line(hashed: &Hashed, hash: u64) -> *const AtomicU64 {
    page(hashed, (hash >> hashed.shift) as usize).wrapping_add(line_of(hash) as usize)
}

/// The first line of the page for hashes whose first bits are `at`.
#[inline(always)]
fn page(hashed: &Hashed, at: usize) -> *const AtomicU64 {
    debug_assert!(at < hashed.pages.len(), "page {at}");
    // SAFETY: there is a page for each value of the bits that a hash is shifted to.
    let page = unsafe { hashed.pages.get_unchecked(at) };
    page.load(Ordering::Relaxed)
}

#[inline(always)]
fn length(hashed: &Hashed, number: usize) -> &Length {
    debug_assert!(number <= MAX_LENGTHS, "length {number}");
    // SAFETY: numbers are at most `N`, which is at most `MAX_LENGTHS`.
    unsafe { hashed.lengths.get_unchecked(number) }
}

/// Where the entry is that slot `slot` of `line` leads to.
#[inline(always)]
fn entry_of(line: *const AtomicU64, slot: usize) -> *const AtomicU64 {
    debug_assert!(slot < TAGS, "slot {slot}");
    // SAFETY: `line` is one of a page of this snapshot and `slot` one that `Slots::first` found in it, or `line` is
    // that of the default route. A line is 16 tags and as many places, and is not written while the snapshot lives.
    unsafe { line.add(usize::from(line.cast::<u16>().add(TAGS + slot).read())) }
}

#[inline(always)]
fn load<T: Copy, const M: usize>(list: &[T; M], at: usize) -> T {
    debug_assert!(at < M, "{at} of {M}");
    // SAFETY: lanes are below `LANES`, since keys are; numbers of lengths are at most `N`, below `PLACES`.
    unsafe { *list.get_unchecked(at) }
}

#[inline(always)]
fn read(entry: *const AtomicU64) -> [u64; ENTRY] {
    // SAFETY: a slot that has a tag leads to an entry of its page, which is not written while the snapshot lives; the
    // slots of the default route's line lead to its entry.
    unsafe { entry.cast::<[u64; ENTRY]>().read() }
}

#[inline(always)]
const fn code(entry: [u64; ENTRY]) -> u16 {
    (entry[2] & 0xffff) as u16
}

#[inline(always)]
fn prefetch(line: *const AtomicU64) {
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe { x86_64::_mm_prefetch::<{ x86_64::_MM_HINT_T0 }>(line.cast()) };
}

const _: () = assert!(MAX_LENGTHS == 4 && TAGS == 16);

/// Lines that an address may look at: one for each length, and that of the default route.
const PLACES: usize = MAX_LENGTHS + 1;
/// Addresses that go side by side, a bit each.
const LANES: usize = 32;
