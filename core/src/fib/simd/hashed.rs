//! Lookups in the hash of an IPv6 table: all tags of a line at once, all lengths of an address side by side.
//!
//! Of the lengths of an address that have an answer the longest is found in arithmetic: which one it is cannot be
//! foreseen. A batch goes in three passes, each of which asks for what the next needs: line, entry, next hop. The
//! vectors are those that every x86-64 has.
//!
//! The twin is `Hashed::lookup` in `hashed.rs`.

use core::arch::x86_64;
use core::sync::atomic::{AtomicU64, Ordering};

use super::super::NextHopId;
use super::super::address::Address;
use super::super::hashed::{ENTRY, Hashed, Length, MAX_LENGTHS, TAGS, halves, line_of, tag_of};
use super::super::walk::View;

/// The code for the address `key`; `None` when the trie must be asked.
#[inline(always)]
pub(super) fn lookup_one(hashed: &Hashed, key: u128) -> Option<u16> {
    match hashed.count {
        1 => one::<1>(hashed, key),
        2 => one::<2>(hashed, key),
        3 => one::<3>(hashed, key),
        4 => one::<4>(hashed, key),
        _ => one::<0>(hashed, key),
    }
}

/// The same for `N` lengths.
#[inline(always)]
fn one<const N: usize>(hashed: &Hashed, key: u128) -> Option<u16> {
    let (high, low) = halves(key);
    let mut lines = [hashed.default.as_ptr(); PLACES];
    let mut slots = Slots::<N>(0);
    for (number, place) in lines.iter_mut().enumerate().take(N) {
        let (line, tag) = ask(hashed, number, high, low);
        *place = line;
        slots.add(number, line, tag);
    }
    let (number, slot) = slots.first();
    let entry = read(entry_of(&lines, number, slot));
    (length(hashed, number).differs(entry, high, low) == 0).then_some(code(entry))
}

/// Looks up each of `addresses`, in the trie where the hash does not say.
pub(super) fn lookup<A: Address>(
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
        let mut undecided = match hashed.count {
            1 => group::<A, 1>(hashed, addresses, next_hops),
            2 => group::<A, 2>(hashed, addresses, next_hops),
            3 => group::<A, 3>(hashed, addresses, next_hops),
            4 => group::<A, 4>(hashed, addresses, next_hops),
            _ => group::<A, 0>(hashed, addresses, next_hops),
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

/// Looks up at most [`LANES`] addresses in `N` lengths; gives the lanes, a bit each, that the trie must be asked for.
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
        let (high, low) = halves(address.to_key());
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
            slots.add(number, *line, *tag);
        }
        let (number, slot) = slots.first();
        *entry = entry_of(lines, number, slot);
        *place = number;
        prefetch(*entry);
    }
    let mut undecided = 0;
    let found = entries.iter().zip(&numbers);
    let asked = addresses.iter().zip(next_hops);
    for (lane, ((address, next_hop), (entry, number))) in (0..).zip(asked.zip(found)) {
        let (high, low) = halves(address.to_key());
        let entry = read(*entry);
        let differs = length(hashed, *number).differs(entry, high, low);
        undecided |= u32::from(differs != 0) << lane;
        *next_hop = NextHopId::from_code(code(entry));
    }
    undecided
}

/// The slots that have an address's tag, 16 bits for each of `N` lengths, the longest lowest.
#[derive(Clone, Copy)]
struct Slots<const N: usize>(u64);

impl<const N: usize> Slots<N> {
    #[inline(always)]
    fn add(&mut self, number: usize, line: *const AtomicU64, tag: u16) {
        self.0 |= u64::from(slots_with(line, tag)) << (TAGS * number);
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
#[expect(clippy::cast_possible_truncation, reason = "at most 12 bits are left")]
fn ask(hashed: &Hashed, number: usize, high: u64, low: u64) -> (*const AtomicU64, u16) {
    let hash = length(hashed, number).hash(high, low);
    let at = (hash >> hashed.shift) as usize;
    debug_assert!(at < hashed.pages.len(), "page {at}");
    // SAFETY: there is a page for each value of the bits that a hash is shifted to.
    let page = unsafe { hashed.pages.get_unchecked(at) };
    let line = page
        .load(Ordering::Relaxed)
        .wrapping_add(line_of(hash) as usize);
    (line, tag_of(hash))
}

#[inline(always)]
fn length(hashed: &Hashed, number: usize) -> &Length {
    debug_assert!(number <= MAX_LENGTHS, "length {number}");
    // SAFETY: numbers are at most `N`, which is at most `MAX_LENGTHS`.
    unsafe { hashed.lengths.get_unchecked(number) }
}

/// Where the entry is that slot `slot` of the line of length `number` leads to.
#[inline(always)]
fn entry_of(lines: &[*const AtomicU64; PLACES], number: usize, slot: usize) -> *const AtomicU64 {
    debug_assert!(number <= MAX_LENGTHS && slot < TAGS, "{number}, {slot}");
    // SAFETY: `Slots::first` gives one of `N` lengths and a slot of its line, which is one of a page of this snapshot,
    // or `N`, at most `MAX_LENGTHS`, where the line of the default route is. A line is 16 tags and as many places, and
    // is not written while the snapshot lives.
    unsafe {
        let line = *lines.get_unchecked(number);
        line.add(usize::from(line.cast::<u16>().add(TAGS + slot).read()))
    }
}

/// The slots of `line` that have `tag`, a bit each.
#[inline(always)]
fn slots_with(line: *const AtomicU64, tag: u16) -> u16 {
    // SAFETY: the instructions are those that every x86-64 has; the 32 octets are the tags of a line of this snapshot,
    // which is not written while the snapshot lives.
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
