//! Lookups in the windows of an IPv6 table: all tags of a line of the hash at once, all ends of a line of ranges at
//! once, and the windows of an address side by side.
//!
//! Single addresses ask for the three lines of the hash, compare their tags, and read the longest window that there is;
//! a shorter one only when that has no next hop for the address, which is so for two addresses of a hundred. One that waits
//! for the lookup before waits for one step after the other, so the steps are short: what depends on which window it is
//! does not wait for its place in the line, and with AVX-512 a line's answer is moved out of the vector that has it.
//!
//! A group of addresses goes in passes, each of which asks for what the next needs: line of the hash, line of the
//! window, next hop. All go through the windows of their /32 and /40, with a line that says nothing where there is
//! none; those that have no next hop then go through that of their /24. Addresses whose root slot has no child, as
//! most of the address space, are done there. What is left, few addresses of a hundred, goes through the trie one by
//! one. With AVX-512 groups have a way of their own (`longest.rs`).
//!
//! The twin is the trie.

use core::arch::{asm, x86_64};
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
use super::{Native, ask_ahead};

/// The instructions that compare the ends of a line.
pub(super) trait Unit {
    /// A bit for each end of the line at `line` that is below `slot`.
    ///
    /// # Safety
    ///
    /// `line` is a line of a window; the instructions are there.
    unsafe fn below(line: *const u64, slot: u16) -> u32;

    /// The code that the line at `line` has for `slot`.
    ///
    /// # Safety
    ///
    /// As of [`below`](Self::below).
    #[inline(always)]
    unsafe fn said(line: *const u64, slot: u16) -> u16 {
        // SAFETY: from the 32nd octet on a line has one code more than ends.
        unsafe {
            let below = Self::below(line, slot).count_ones();
            line.cast::<u16>().add(16 + below as usize).read()
        }
    }

    /// The next hop codes of root slots, and the lanes, a bit each, that have a child.
    #[inline(always)]
    fn roots(roots: &[u64; LANES]) -> ([u16; LANES], u32) {
        let mut codes = [0; LANES];
        let mut deeper = 0;
        for (lane, (root, code)) in roots.iter().zip(&mut codes).enumerate() {
            *code = Entry(*root).code();
            deeper |= u32::from(Entry(*root).has_child()) << lane;
        }
        (codes, deeper)
    }

    /// The lanes, a bit each, that have no code, and those whose code has the bit of [`ASK`].
    #[inline(always)]
    fn open(codes: &[u16; LANES]) -> (u32, u32) {
        let (mut silent, mut asking) = (0, 0);
        for (lane, code) in codes.iter().enumerate() {
            silent |= u32::from(*code == 0) << lane;
            asking |= u32::from(code & ASK != 0) << lane;
        }
        (silent, asking)
    }
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
            !x86_64::_mm_movemask_epi8(reached).cast_unsigned() & ((1 << ENDS) - 1)
        }
    }
}

impl Unit for Avx512 {
    #[inline(always)]
    unsafe fn below(line: *const u64, slot: u16) -> u32 {
        // SAFETY: as above; `windowed_one_avx512` and the functions of `longest.rs` are where this is inlined.
        unsafe {
            let slot = x86_64::_mm256_set1_epi16(slot.cast_signed());
            let ends = x86_64::_mm256_loadu_si256(line.cast());
            x86_64::_mm256_mask_cmplt_epu16_mask((1 << ENDS) - 1, ends, slot).into()
        }
    }

    #[inline(always)]
    unsafe fn said(line: *const u64, slot: u16) -> u16 {
        // SAFETY: as above. Ends are in order: the first that is not below the slot is that of its range. What stands
        // behind the ends is compared with 0, and never below.
        unsafe {
            let slot = x86_64::_mm256_set1_epi16(slot.cast_signed());
            let slot = x86_64::_mm256_and_si256(
                slot,
                x86_64::_mm256_setr_epi16(
                    -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0,
                ),
            );
            let ends = x86_64::_mm256_loadu_si256(line.cast());
            let reached = x86_64::_mm256_cmpge_epu16_mask(ends, slot);
            let codes = x86_64::_mm256_loadu_si256(line.add(4).cast());
            let codes = x86_64::_mm256_maskz_compress_epi16(reached, codes);
            (x86_64::_mm256_cvtsi256_si32(codes) & 0xffff) as u16
        }
    }
}

/// The code for the address `key`; `None` when the trie must be asked.
#[inline(always)]
pub(super) fn lookup_one<U: Unit>(windowed: &Windowed, slots: &[u64], key: u128) -> Option<u16> {
    let (high, _) = halves(key);
    let slots = <&Slots>::try_from(slots).ok()?;
    let root = Entry(load(slots, (high >> (64 - ROOT_STRIDE)) as usize));
    if !root.has_child() {
        return Some(root.code());
    }
    let [long, middle, short] = [OF_40, OF_32, OF_24].map(|kind| ask(windowed, kind, high));
    let [longer, shorter] = equal([long, middle, short]);
    let mut equal = longer | shorter << 16;
    if equal == 0 {
        return None;
    }
    // A slot is counted from the first of all three lines.
    let lines = [
        long.0,
        middle.0.wrapping_byte_sub(8 * 6),
        short.0.wrapping_byte_sub(16 * 6),
    ];
    // Which line it is, is known before which slot: all that depends only on that does not wait for the slot.
    let (is_long, is_longer) = (longer & 0xff != 0, longer != 0);
    let found = in_window::<U>(lines, [is_long, is_longer], equal.trailing_zeros(), high);
    if found != 0 {
        return (found & ASK == 0).then_some(found);
    }
    // Two times in a hundred another round: the longest window has no route for the address.
    loop {
        equal &= u32::MAX << (equal.trailing_zeros() | 7) << 1;
        if equal == 0 {
            return None;
        }
        let at = equal.trailing_zeros();
        let found = in_window::<U>(lines, [false, at < 16], at, high);
        if found != 0 {
            return (found & ASK == 0).then_some(found);
        }
    }
}

/// What the window in slot `at` of these lines says to an address: of the first if the first of `which` is true, otherwise
/// of the second if the second is. [`ASK`] when it is one of another prefix.
#[inline(always)]
fn in_window<U: Unit>(lines: [*const u64; 3], which: [bool; 2], at: u32, high: u64) -> u16 {
    let [long, middle, short] = lines;
    let [is_long, is_longer] = which;
    let line = select_unpredictable(is_longer, middle, short);
    let line = select_unpredictable(is_long, long, line);
    let slot = select_unpredictable(is_longer, OF_32.slot(high), OF_24.slot(high));
    let slot = select_unpredictable(is_long, OF_40.slot(high), slot);
    let unused = select_unpredictable(is_longer, 64 - OF_32.len, 64 - OF_24.len);
    let unused = select_unpredictable(is_long, 64 - OF_40.len, unused);
    // SAFETY: as in `window`: a slot whose tag is equal. The lowest octet is read by itself, since the compiler would
    // else take it out of the shifted word, a step later.
    let (word, bits) = unsafe {
        let word = line.cast::<u8>().wrapping_add(14 + 6 * at as usize);
        (
            word.cast::<u64>().read_unaligned() >> 16,
            word.add(2).read_volatile(),
        )
    };
    let line = place((word & !63) + 64 * (u64::from(slot) >> (bits & 63)));
    // SAFETY: as in `code`.
    let (code, prefix) = unsafe { (U::said(line, slot), line.add(3).read()) };
    if (prefix ^ high) >> unused == 0 {
        code
    } else {
        ASK
    }
}

/// A bit for each slot of three lines of the hash, eight a line, that has the tag beside the line: of the first two lines
/// and of the third.
#[inline(always)]
fn equal(lines: [(*const u64, u16); 3]) -> [u32; 2] {
    // SAFETY: the tags of a line are its first 16 octets.
    unsafe {
        let [long, middle, short] = lines.map(|(line, tag)| {
            let tags = x86_64::_mm_loadu_si128(line.cast());
            x86_64::_mm_cmpeq_epi16(tags, x86_64::_mm_set1_epi16(tag.cast_signed()))
        });
        let mut longer = x86_64::_mm_movemask_epi8(x86_64::_mm_packs_epi16(long, middle));
        let zero = x86_64::_mm_setzero_si128();
        let shorter = x86_64::_mm_movemask_epi8(x86_64::_mm_packs_epi16(short, zero));
        // The compiler would put them together as vectors first, which takes three cycles more.
        asm!("/* {0:e} */", inout(reg) longer, options(pure, nomem, nostack, preserves_flags));
        [longer, shorter].map(i32::cast_unsigned)
    }
}

/// Looks up each of `addresses`, in the trie where the windows do not say.
#[inline(always)]
pub(super) fn lookup<A: Address, U: Unit>(
    windowed: &Windowed,
    view: &View<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let Ok(slots) = <&Slots>::try_from(view.slots) else {
        return batch::lookup(Native, view, addresses, next_hops);
    };
    let groups = addresses.chunks(LANES).zip(next_hops.chunks_mut(LANES));
    for (addresses, next_hops) in groups {
        // As many as the shorter holds.
        let addresses = addresses.get(..next_hops.len()).unwrap_or(addresses);
        let (next_hops, _) = next_hops.split_at_mut(addresses.len());
        ask_ahead(addresses);
        let mut rest = group::<A, U>(windowed, slots, addresses, next_hops);
        while rest != 0 {
            let lane = next(&mut rest);
            if let (Some(address), Some(next_hop)) = (addresses.get(lane), next_hops.get_mut(lane))
            {
                let code = batch::lookup_one::<A>(Native, view, address.to_key());
                *next_hop = NextHopId::from_code(code);
            }
        }
    }
}

/// Looks up at most [`LANES`] addresses; gives the lanes, a bit each, that the trie must be asked for.
#[inline(always)]
fn group<A: Address, U: Unit>(
    windowed: &Windowed,
    slots: &Slots,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) -> u32 {
    let mut highs = [0; LANES];
    let mut roots = [0; LANES];
    for (address, (high, root)) in addresses.iter().zip(highs.iter_mut().zip(&mut roots)) {
        *high = halves(address.to_key()).0;
        *root = load(slots, (*high >> (64 - ROOT_STRIDE)) as usize);
    }
    // Sets of lanes: which ones they are cannot be foreseen.
    let (mut codes, deeper) = U::roots(&roots);
    let mut lines = [[ptr::null(); 2]; LANES];
    let mut tags = [[0; 2]; LANES];
    let mut lanes = deeper;
    while lanes != 0 {
        let lane = next(&mut lanes);
        let high = load(&highs, lane);
        let (middle, middle_tag) = ask(windowed, OF_32, high);
        let (long, long_tag) = ask(windowed, OF_40, high);
        prefetch(middle);
        prefetch(long);
        save(&mut lines, lane, [middle, long]);
        save(&mut tags, lane, [middle_tag, long_tag]);
    }
    lanes = deeper;
    while lanes != 0 {
        let lane = next(&mut lanes);
        let high = load(&highs, lane);
        let ([middle, long], [middle_tag, long_tag]) = (load(&lines, lane), load(&tags, lane));
        let middle = line_in(window(middle, middle_tag), OF_32, high);
        let long = line_in(window(long, long_tag), OF_40, high);
        prefetch(middle);
        prefetch(long);
        save(&mut lines, lane, [middle, long]);
    }
    lanes = deeper;
    while lanes != 0 {
        let lane = next(&mut lanes);
        let high = load(&highs, lane);
        let [middle, long] = load(&lines, lane);
        let middle = code::<U>(middle, OF_32, high);
        let found = pick(code::<U>(long, OF_40, high), middle);
        save(&mut codes, lane, found);
    }
    let (silent, mut rest) = U::open(&codes);
    let silent = silent & deeper;
    lanes = silent;
    while lanes != 0 {
        let lane = next(&mut lanes);
        let (line, tag) = ask(windowed, OF_24, load(&highs, lane));
        prefetch(line);
        save(&mut lines, lane, [line; 2]);
        save(&mut tags, lane, [tag; 2]);
    }
    lanes = silent;
    while lanes != 0 {
        let lane = next(&mut lanes);
        let ([line, _], [tag, _]) = (load(&lines, lane), load(&tags, lane));
        let line = line_in(window(line, tag), OF_24, load(&highs, lane));
        prefetch(line);
        save(&mut lines, lane, [line; 2]);
    }
    lanes = silent;
    while lanes != 0 {
        let lane = next(&mut lanes);
        let [line, _] = load(&lines, lane);
        let found = code::<U>(line, OF_24, load(&highs, lane));
        save(&mut codes, lane, found);
        rest |= u32::from(found == 0 || found & ASK != 0) << lane;
    }
    for (next_hop, code) in next_hops.iter_mut().zip(&codes) {
        *next_hop = NextHopId::from_code(*code);
    }
    rest
}

/// Takes the lowest lane out of `lanes`, which has one.
#[inline(always)]
pub(super) fn next(lanes: &mut u32) -> usize {
    let lane = lanes.trailing_zeros() as usize;
    *lanes &= lanes.wrapping_sub(1);
    lane
}

/// The line of the hash that has the window of `kind` of an address, and its tag.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "at most 13 bits are left")]
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
    // eight tags, and for each the six octets after 16 + 6 * its number, three for each of the two bits that a tag has
    // here. When no tag is equal what is read is further on in the page.
    let (equal, word) = unsafe {
        let tags = x86_64::_mm_loadu_si128(line.cast());
        let equal = x86_64::_mm_cmpeq_epi16(tags, x86_64::_mm_set1_epi16(tag.cast_signed()));
        let equal = x86_64::_mm_movemask_epi8(equal);
        (equal, word(line, 3 * equal.trailing_zeros() as usize))
    };
    select_unpredictable(equal == 0, absent(), word)
}

/// What a line of the hash has of a window `at` octets after the first one: the eight octets that end with it.
///
/// # Safety
///
/// `line` is a line of a page, and `at` at most 96.
#[inline(always)]
unsafe fn word(line: *const u64, at: usize) -> u64 {
    // SAFETY: at most 118 octets after the first, which are in the page.
    unsafe {
        line.cast::<u8>()
            .add(14 + at)
            .cast::<u64>()
            .read_unaligned()
            >> 16
    }
}

/// The window that is not there.
#[inline(always)]
pub(super) fn absent() -> u64 {
    ABSENT.0.as_ptr().expose_provenance() as u64 | 16
}

/// A line of the hash whose first window is not there, with any tag.
#[inline(always)]
pub(super) fn nowhere() -> Nowhere {
    Nowhere([0, 0, absent(), 0, 0, 0, 0, 0])
}

#[repr(align(64))]
pub(super) struct Nowhere(pub(super) [u64; 8]);

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
        let below = U::below(line, kind.slot(high));
        let code = line.cast::<u16>().add(16 + below.count_ones() as usize);
        (code.read(), line.add(3).read())
    };
    let same = (prefix ^ high) >> (64 - kind.len) == 0;
    select_unpredictable(same, code, (prefix & 0xffff) as u16)
}

/// `code`, or what is `below` it when that is none.
#[inline(always)]
pub(super) fn pick(code: u16, below: u16) -> u16 {
    select_unpredictable(code == 0, below, code)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "x86-64 has 64 bits")]
pub(super) fn place(address: u64) -> *const u64 {
    ptr::with_exposed_provenance(address as usize)
}

#[inline(always)]
pub(super) fn prefetch(line: *const u64) {
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe { x86_64::_mm_prefetch::<{ x86_64::_MM_HINT_T0 }>(line.cast()) };
}

#[inline(always)]
pub(super) fn load<T: Copy, const N: usize>(list: &[T; N], at: usize) -> T {
    debug_assert!(at < N, "{at} of {N}");
    // SAFETY: root slots are asked for by 13 bits; lanes are bits of 32.
    unsafe { *list.get_unchecked(at) }
}

#[inline(always)]
pub(super) fn save<T: Copy, const N: usize>(list: &mut [T; N], at: usize, value: T) {
    debug_assert!(at < N, "{at} of {N}");
    // SAFETY: as in `load`.
    unsafe { *list.get_unchecked_mut(at) = value }
}

/// The line of a window that is not there: one range without a next hop, whatever the prefix.
static ABSENT: Absent = Absent([const { AtomicU64::new(0) }; 8]);

#[repr(align(64))]
struct Absent([AtomicU64; 8]);

pub(super) type Slots = [u64; 1 << ROOT_STRIDE];

/// Addresses that go side by side.
const LANES: usize = 32;
