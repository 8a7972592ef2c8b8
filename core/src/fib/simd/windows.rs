//! Lookups in the windows of an IPv6 table: all tags of a line of the hash at once, all ends of a line of ranges at
//! once, and the windows of an address side by side.
//!
//! A group of addresses goes in passes, each of which asks for what the next needs: line of the hash, line of the
//! window, next hop. All go through the windows of their /32 and /40, with a line that says nothing where there is
//! none; those that have no next hop then go through that of their /24. Addresses whose root slot has no child, as
//! most of the address space, are done there. What is left, few addresses of a hundred, goes through the trie one by
//! one.
//!
//! The twin is the trie.

use core::arch::x86_64;
use core::hint::select_unpredictable;
use core::ptr;
use core::sync::atomic::AtomicU64;

use super::super::NextHopId;
use super::super::address::Address;
use super::super::batch;
use super::super::hashed::halves;
use super::super::node::{Entry, ROOT_STRIDE};
use super::super::walk::View;
use super::super::windows::{ASK, ENDS, Kind, OF_24, OF_32, OF_40, Windowed, line_of};
use super::Native;

/// The instructions that compare the ends of a line.
pub(super) trait Unit {
    /// A bit for each end of the line at `line` that is below `slot`, and more bits above these.
    ///
    /// # Safety
    ///
    /// `line` is a line of a window; the instructions are there.
    unsafe fn below(line: *const u64, slot: u16) -> u32;
}

/// What every x86-64 has.
pub(super) struct Sse2;

/// 256-bit vectors with masks.
pub(super) struct Avx512;

impl Unit for Sse2 {
    #[inline(always)]
    unsafe fn below(line: *const u64, slot: u16) -> u32 {
        // SAFETY: the first 32 octets of a line, which is not written while the snapshot lives.
        unsafe {
            let slot = x86_64::_mm_set1_epi16(slot.cast_signed());
            let zero = x86_64::_mm_setzero_si128();
            let first = x86_64::_mm_loadu_si128(line.cast());
            let second = x86_64::_mm_loadu_si128(line.cast::<x86_64::__m128i>().add(1));
            // What is left of the slot above an end is 0 where the end is not below the slot.
            let first = x86_64::_mm_cmpeq_epi16(x86_64::_mm_subs_epu16(slot, first), zero);
            let second = x86_64::_mm_cmpeq_epi16(x86_64::_mm_subs_epu16(slot, second), zero);
            let reached = x86_64::_mm_packs_epi16(first, second);
            !x86_64::_mm_movemask_epi8(reached).cast_unsigned()
        }
    }
}

impl Unit for Avx512 {
    #[inline(always)]
    unsafe fn below(line: *const u64, slot: u16) -> u32 {
        // SAFETY: as above; `windowed_avx512` and `windowed_one_avx512` are where this is inlined.
        unsafe {
            let slot = x86_64::_mm256_set1_epi16(slot.cast_signed());
            let ends = x86_64::_mm256_loadu_si256(line.cast());
            x86_64::_mm256_cmplt_epu16_mask(ends, slot).into()
        }
    }
}

/// The code for the address `key`; `None` when the trie must be asked.
#[inline(always)]
pub(super) fn lookup_one<U: Unit>(windowed: &Windowed, view: &View<'_>, key: u128) -> Option<u16> {
    let (high, _) = halves(key);
    let root = root(view, high)?;
    if !root.has_child() {
        return Some(root.code());
    }
    let short = one::<U>(windowed, OF_24, high);
    let middle = one::<U>(windowed, OF_32, high);
    let long = one::<U>(windowed, OF_40, high);
    let found = pick(long, pick(middle, short));
    (found != 0 && found & ASK == 0).then_some(found)
}

/// What the window of `kind` says to an address.
#[inline(always)]
fn one<U: Unit>(windowed: &Windowed, kind: Kind, high: u64) -> u16 {
    let (line, tag) = ask(windowed, kind, high);
    code::<U>(line_in(window(line, tag), kind, high), kind, high)
}

/// Looks up each of `addresses`, in the trie where the windows do not say.
#[inline(always)]
pub(super) fn lookup<A: Address, U: Unit>(
    windowed: &Windowed,
    view: &View<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let groups = addresses.chunks(LANES).zip(next_hops.chunks_mut(LANES));
    for (addresses, next_hops) in groups {
        // As many as the shorter holds.
        let addresses = addresses.get(..next_hops.len()).unwrap_or(addresses);
        let (next_hops, _) = next_hops.split_at_mut(addresses.len());
        group::<A, U>(windowed, view, addresses, next_hops);
    }
}

/// Looks up at most [`LANES`] addresses.
#[inline(always)]
fn group<A: Address, U: Unit>(
    windowed: &Windowed,
    view: &View<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let mut list = List {
        lanes: [0; LANES],
        highs: [0; LANES],
        codes: [0; LANES],
        count: 0,
    };
    for (lane, (address, next_hop)) in (0..).zip(addresses.iter().zip(next_hops.iter_mut())) {
        let (high, _) = halves(address.to_key());
        let root = root(view, high).unwrap_or_default();
        *next_hop = NextHopId::from_code(root.code());
        list.push(lane, high, 0, root.has_child());
    }
    walk::<U, 2>(windowed, [OF_32, OF_40], &mut list);
    list.settle(next_hops);
    if list.count == 0 {
        return;
    }
    walk::<U, 1>(windowed, [OF_24], &mut list);
    list.settle(next_hops);
    for item in 0..list.count {
        let lane = usize::from(load(&list.lanes, item));
        if let (Some(address), Some(next_hop)) = (addresses.get(lane), next_hops.get_mut(lane)) {
            let code = batch::lookup_one::<A>(Native, view, address.to_key());
            *next_hop = NextHopId::from_code(code);
        }
    }
}

/// Asks the windows of `kinds`, shortest first, about the addresses of `list` that have no code.
#[inline(always)]
fn walk<U: Unit, const N: usize>(
    windowed: &Windowed,
    kinds: [Kind; N],
    list: &mut List,
) {
    let mut lines = [[ptr::null::<u64>(); N]; LANES];
    let mut tags = [[0; N]; LANES];
    let count = list.count.min(LANES);
    // No closures: they would be compiled without the instructions.
    for item in 0..count {
        let high = load(&list.highs, item);
        let (mut found, mut asked) = ([ptr::null(); N], [0; N]);
        for (kind, (line, tag)) in kinds.iter().zip(found.iter_mut().zip(&mut asked)) {
            (*line, *tag) = ask(windowed, *kind, high);
            prefetch(*line);
        }
        save(&mut lines, item, found);
        save(&mut tags, item, asked);
    }
    for item in 0..count {
        let high = load(&list.highs, item);
        let (mut found, asked) = (load(&lines, item), load(&tags, item));
        for (kind, (line, tag)) in kinds.iter().zip(found.iter_mut().zip(&asked)) {
            *line = line_in(window(*line, *tag), *kind, high);
            prefetch(*line);
        }
        save(&mut lines, item, found);
    }
    for item in 0..count {
        let high = load(&list.highs, item);
        let mut found = 0;
        for (line, kind) in load(&lines, item).iter().zip(&kinds) {
            found = pick(code::<U>(*line, *kind, high), found);
        }
        let found = pick(load(&list.codes, item), found);
        save(&mut list.codes, item, found);
    }
}

/// Addresses that are not done, by lane.
struct List {
    lanes: [u8; LANES],
    highs: [u64; LANES],
    /// What is known so far, 0 or [`ASK`].
    codes: [u16; LANES],
    count: usize,
}

impl List {
    /// Puts an address to the end; it stays there if it `counts`.
    #[inline(always)]
    fn push(&mut self, lane: u8, high: u64, code: u16, counts: bool) {
        save(&mut self.lanes, self.count, lane);
        save(&mut self.highs, self.count, high);
        save(&mut self.codes, self.count, code);
        self.count += usize::from(counts);
    }

    /// Gives what is known of the addresses; those of which nothing is known stay.
    #[inline(always)]
    fn settle(&mut self, next_hops: &mut [Option<NextHopId>]) {
        let count = self.count.min(LANES);
        self.count = 0;
        for item in 0..count {
            let (lane, high) = (load(&self.lanes, item), load(&self.highs, item));
            let code = load(&self.codes, item);
            if let Some(next_hop) = next_hops.get_mut(usize::from(lane)) {
                *next_hop = NextHopId::from_code(code);
            }
            self.push(lane, high, code, code == 0 || code & ASK != 0);
        }
    }
}

/// What the root says; `None` when it is not laid out slot by slot.
#[inline(always)]
fn root(view: &View<'_>, high: u64) -> Option<Entry> {
    let slots: &[u64; 1 << ROOT_STRIDE] = view.slots.try_into().ok()?;
    slots
        .get((high >> (64 - ROOT_STRIDE)) as usize)
        .copied()
        .map(Entry)
}

/// The line of the hash that has the window of `kind` of an address, and its tag.
#[inline(always)]
fn ask(windowed: &Windowed, kind: Kind, high: u64) -> (*const u64, u16) {
    let hash = kind.hash(high);
    let at = (hash >> windowed.shift) as usize;
    debug_assert!(at < windowed.pages.len(), "page {at}");
    // SAFETY: there is a page for each value of the bits that a hash is shifted to.
    let page = unsafe { *windowed.pages.get_unchecked(at) };
    (place(page).wrapping_add(line_of(hash)), kind.tag(hash))
}

/// The window that `line` has for `tag`: its address and the bits of a slot that do not say which line.
#[inline(always)]
fn window(line: *const u64, tag: u16) -> u64 {
    // SAFETY: `line` is a line of a page of this snapshot, 64 octets that are not written while the snapshot lives:
    // eight tags, and for each the six octets after 16 + 6 * its number. The eight octets that are read end with
    // these, at most 64 after the first.
    let (equal, word) = unsafe {
        let tags = x86_64::_mm_loadu_si128(line.cast());
        let equal = x86_64::_mm_cmpeq_epi16(tags, x86_64::_mm_set1_epi16(tag.cast_signed()));
        let equal = x86_64::_mm_movemask_epi8(equal);
        // Two bits for each slot, three octets for each bit.
        let at = 14 + 3 * (equal | 1 << 14).trailing_zeros() as usize;
        let word = line.cast::<u8>().add(at).cast::<u64>().read_unaligned();
        (equal, word >> 16)
    };
    let absent = ABSENT.0.as_ptr().expose_provenance() as u64 | 16;
    select_unpredictable(equal == 0, absent, word)
}

/// The line of a window that has the slot of an address.
#[inline(always)]
fn line_in(window: u64, kind: Kind, high: u64) -> *const u64 {
    let line = u64::from(kind.slot(high)) >> (window & 63);
    place((window & !63) + 64 * line)
}

/// What `line` says to an address; [`ASK`] when it is a line of another prefix.
#[inline(always)]
fn code<U: Unit>(line: *const u64, kind: Kind, high: u64) -> u16 {
    // SAFETY: `line` is a line of a window of this snapshot or `ABSENT`, 64 octets that are not written while the
    // snapshot lives: ends, the prefix in the fourth eight octets, from the 32nd octet on one code more than ends.
    let (code, prefix) = unsafe {
        let below = U::below(line, kind.slot(high)) & ((1 << ENDS) - 1);
        let code = line.cast::<u16>().add(16 + below.count_ones() as usize);
        (code.read(), line.add(3).read())
    };
    let same = (prefix ^ high) >> (64 - kind.len) == 0;
    select_unpredictable(same, code, (prefix & 0xffff) as u16)
}

/// `code`, or what is `below` it when that is none.
#[inline(always)]
fn pick(code: u16, below: u16) -> u16 {
    select_unpredictable(code == 0, below, code)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "x86-64 has 64 bits")]
fn place(address: u64) -> *const u64 {
    ptr::with_exposed_provenance(address as usize)
}

#[inline(always)]
fn prefetch(line: *const u64) {
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe { x86_64::_mm_prefetch::<{ x86_64::_MM_HINT_T0 }>(line.cast()) };
}

#[inline(always)]
fn load<T: Copy, const N: usize>(list: &[T; N], at: usize) -> T {
    debug_assert!(at < N, "{at} of {N}");
    // SAFETY: items of a list are below the number of addresses in the group, which is at most `LANES`.
    unsafe { *list.get_unchecked(at) }
}

#[inline(always)]
fn save<T: Copy, const N: usize>(list: &mut [T; N], at: usize, value: T) {
    debug_assert!(at < N, "{at} of {N}");
    // SAFETY: as in `load`; an item is saved no further on than the one that was loaded, or than its lane.
    unsafe { *list.get_unchecked_mut(at) = value }
}

/// The line of a window that is not there: one range without a next hop, whatever the prefix.
static ABSENT: Absent = Absent([const { AtomicU64::new(0) }; 8]);

#[repr(align(64))]
struct Absent([AtomicU64; 8]);

/// Addresses that go side by side.
const LANES: usize = 32;
