//! Lookups in the hash of an IPv6 table: all tags of a line at once, all lengths of an address side by side.
//!
//! Of the lengths of an address that have an answer the longest is chosen in arithmetic: which one it is cannot be
//! foreseen. A batch goes in three passes, each of which asks for what the next needs: line, entry, next hop. The
//! vectors are those that every x86-64 has.
//!
//! The twin is `Hashed::lookup` in `hashed.rs`.

use core::arch::x86_64;
use core::hint::select_unpredictable;
use core::sync::atomic::AtomicU64;

use super::super::NextHopId;
use super::super::address::Address;
use super::super::arena::Segment;
use super::super::batch::Machine as _;
use super::super::hashed::{ENTRY, Hashed, Length, MAX_LENGTHS, TAGS, halves, line_of, tag_of};
use super::super::walk::View;
use super::Native;

/// The code for the address `key`; `None` when the trie must be asked.
#[inline(always)]
pub(super) fn lookup_one(hashed: &Hashed, segments: &[Segment], key: u128) -> Option<u16> {
    match hashed.count {
        1 => one::<1>(hashed, segments, key),
        2 => one::<2>(hashed, segments, key),
        3 => one::<3>(hashed, segments, key),
        4 => one::<4>(hashed, segments, key),
        _ => one::<0>(hashed, segments, key),
    }
}

/// The same for `N` lengths.
#[inline(always)]
fn one<const N: usize>(hashed: &Hashed, segments: &[Segment], key: u128) -> Option<u16> {
    let (high, low) = halves(key);
    let mut choice = Choice::new(hashed);
    for number in 0..N {
        let (line, tag) = ask(hashed, segments, number, high, low);
        choice.offer(number, line, tag);
    }
    let entry = read(choice.entry());
    (length(hashed, choice.number).differs(entry, high, low) == 0).then_some(code(entry))
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
        let mut undecided = group(hashed, view.segments, addresses, next_hops);
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

/// Looks up at most [`LANES`] addresses; gives the lanes, a bit each, that the trie must be asked for.
#[inline(always)]
fn group<A: Address>(
    hashed: &Hashed,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) -> u32 {
    match hashed.count {
        1 => passes::<A, 1>(hashed, segments, addresses, next_hops),
        2 => passes::<A, 2>(hashed, segments, addresses, next_hops),
        3 => passes::<A, 3>(hashed, segments, addresses, next_hops),
        4 => passes::<A, 4>(hashed, segments, addresses, next_hops),
        _ => passes::<A, 0>(hashed, segments, addresses, next_hops),
    }
}

#[inline(always)]
fn passes<A: Address, const N: usize>(
    hashed: &Hashed,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) -> u32 {
    let nothing: *const AtomicU64 = hashed.default.as_ptr();
    let mut lines = [[nothing; N]; LANES];
    let mut tags = [[0_u16; N]; LANES];
    for (address, (lines, tags)) in addresses.iter().zip(lines.iter_mut().zip(&mut tags)) {
        let (high, low) = halves(address.to_key());
        for (number, (line, tag)) in lines.iter_mut().zip(tags).enumerate() {
            (*line, *tag) = ask(hashed, segments, number, high, low);
            prefetch(*line);
        }
    }
    let mut entries = [nothing; LANES];
    let mut numbers = [0_u8; LANES];
    let chosen = entries.iter_mut().zip(&mut numbers);
    for ((lines, tags), (entry, number)) in
        lines.iter().zip(&tags).zip(chosen).take(addresses.len())
    {
        let mut choice = Choice::new(hashed);
        for (number, (line, tag)) in lines.iter().zip(tags).enumerate() {
            choice.offer(number, *line, *tag);
        }
        *entry = choice.entry();
        *number = choice.number as u8;
        prefetch(*entry);
    }
    let mut undecided = 0;
    let chosen = entries.iter().zip(&numbers);
    for (lane, ((address, next_hop), (entry, number))) in
        (0..).zip(addresses.iter().zip(next_hops).zip(chosen))
    {
        let (high, low) = halves(address.to_key());
        let entry = read(*entry);
        let differs = length(hashed, usize::from(*number)).differs(entry, high, low);
        undecided |= u32::from(differs != 0) << lane;
        *next_hop = NextHopId::from_code(code(entry));
    }
    undecided
}

/// The longest of an address's lengths so far that has its tag.
#[derive(Clone, Copy)]
struct Choice {
    line: *const AtomicU64,
    /// The slots of the line that have the tag.
    slots: u32,
    number: usize,
}

impl Choice {
    #[inline(always)]
    fn new(hashed: &Hashed) -> Self {
        Self {
            line: hashed.default.as_ptr(),
            slots: 1,
            number: MAX_LENGTHS,
        }
    }

    /// Takes `line` if it has `tag`.
    #[inline(always)]
    fn offer(&mut self, number: usize, line: *const AtomicU64, tag: u16) {
        let slots = slots_with(line, tag);
        self.line = select_unpredictable(slots != 0, line, self.line);
        self.slots = select_unpredictable(slots != 0, slots, self.slots);
        self.number = select_unpredictable(slots != 0, number, self.number);
    }

    /// The entry of the first slot that has the tag.
    #[inline(always)]
    fn entry(&self) -> *const AtomicU64 {
        let slot = self.slots.trailing_zeros() as usize;
        debug_assert!(slot < TAGS, "slot {slot}");
        // SAFETY: the line is one of a page of this view or that of the default route, 16 tags and as many places, and
        // is not written while the view lives; the slot is one of 16, since `slots` has one of its lower 16 bits set.
        let at = unsafe { self.line.cast::<u16>().add(TAGS + slot).read() };
        self.line.wrapping_add(usize::from(at))
    }
}

/// The line of the prefix of length `number` that the address begins with, and its tag.
#[inline(always)]
fn ask(
    hashed: &Hashed,
    segments: &[Segment],
    number: usize,
    high: u64,
    low: u64,
) -> (*const AtomicU64, u16) {
    let hash = length(hashed, number).hash(high, low);
    let at = (hash >> hashed.shift) as usize;
    debug_assert!(at < hashed.directory.len(), "page {at}");
    // SAFETY: the directory has a page for each value of the bits that a hash is shifted to.
    let page = unsafe { *hashed.directory.get_unchecked(at) };
    let line = Native.block(segments, page + line_of(hash)).first;
    (line, tag_of(hash))
}

#[inline(always)]
fn length(hashed: &Hashed, number: usize) -> &Length {
    debug_assert!(number <= MAX_LENGTHS, "length {number}");
    // SAFETY: numbers are below `N`, at most `MAX_LENGTHS`, or that of the default route, which is `MAX_LENGTHS`.
    unsafe { hashed.lengths.get_unchecked(number) }
}

/// The slots of `line` that have `tag`, a bit each.
#[inline(always)]
fn slots_with(line: *const AtomicU64, tag: u16) -> u32 {
    // SAFETY: the instructions are those that every x86-64 has; the 32 octets are the tags of a line of this view,
    // which is not written while the view lives.
    unsafe {
        let tag = x86_64::_mm_set1_epi16(tag.cast_signed());
        let first = x86_64::_mm_loadu_si128(line.cast());
        let second = x86_64::_mm_loadu_si128(line.cast::<x86_64::__m128i>().add(1));
        let equal = x86_64::_mm_packs_epi16(
            x86_64::_mm_cmpeq_epi16(first, tag),
            x86_64::_mm_cmpeq_epi16(second, tag),
        );
        x86_64::_mm_movemask_epi8(equal).cast_unsigned()
    }
}

#[inline(always)]
fn read(entry: *const AtomicU64) -> [u64; ENTRY] {
    // SAFETY: a slot that has a tag leads to an entry of its page, which is not written while the view lives; the
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

const _: () = assert!(MAX_LENGTHS == 4);

/// Addresses that go side by side, a bit each.
const LANES: usize = 32;
