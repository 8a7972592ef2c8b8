//! IPv4 lookups by address: root words and flat chunks that say where the next level is (`direct.rs`).
//!
//! A lookup is root word, group cell, leaf; through a flat chunk it is root word, slot, leaf. A group of 32
//! addresses goes in passes, each of which asks for what the next one reads: of one pass over a full table the
//! processor overlaps some sixteen lookups by itself, which is not enough. Whether the next hop is the leaf's or the
//! root's is chosen between registers at the end: what is stored in between is compiled to a branch or to a wait.
//!
//! Tables without words (of few routes, or where addresses do not fit) and those on their way to or from flat chunks
//! take `batch.rs`.

use core::arch::x86_64;
use core::hint::select_unpredictable;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use super::super::NextHopId;
use super::super::address::Address;
use super::super::arena::Segment;
use super::super::batch::{self, CHUNK, LANES, Slots, key_of};
use super::super::direct::RootWord;
use super::super::flat::{FLAT_WORDS, Flatness};
use super::super::node::{NARROW_CHILD, ROOT_STRIDE, cell_of, leaf_in_group};
use super::super::walk::View;
use super::{Native, ask_groups_ahead};

/// Looks up each of `addresses`.
#[inline(always)]
pub(super) fn lookup<A: Address>(
    view: &View<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    match Table::of(view) {
        Some(table) if table.flat && table.wide => {
            in_groups::<A, Flat<true>>(&table, addresses, next_hops);
        }
        Some(table) if table.flat => in_groups::<A, Flat<false>>(&table, addresses, next_hops),
        Some(table) => in_groups::<A, Chunks>(&table, addresses, next_hops),
        None => batch::lookup(Native, view, addresses, next_hops),
    }
}

/// The word of a slot of a flat chunk, which is at `place`, as a [`Few`](super::super::few::Few) has it.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "x86-64 has 64 bits")]
pub(super) fn slot_word(place: u64) -> u64 {
    cell(ptr::with_exposed_provenance(place as usize))
}

/// The leaf that a slot's `word` leads to, for addresses whose last octet is `octet`.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "x86-64 has 64 bits")]
pub(super) fn leaf_at<const WIDE: bool>(word: u64, octet: u64) -> u16 {
    // Of the word's first octet all bits are set, or none.
    let leaf = (word & octet) as usize;
    let first: *const u8 =
        ptr::with_exposed_provenance((word.cast_signed() >> 16).cast_unsigned() as usize);
    // SAFETY: `Fib::write_flat` made the word, of a slot of a flat chunk in the segments of the same snapshot or view, which
    // keeps them: it leads to 256 leaves and lets the octet through, or to one leaf and lets nothing through; those of two
    // octets are aligned to two. Blocks that a snapshot reaches are not written while the snapshot lives, so that a part of
    // a cell can be read as plain memory. x86-64 is little-endian: the first leaf comes first.
    unsafe {
        if WIDE {
            first.cast::<u16>().wrapping_add(leaf).read()
        } else {
            u16::from(first.wrapping_add(leaf).read())
        }
    }
}

/// How a group of addresses is looked up: a type, not a closure, so that it is compiled for the same processor as what
/// it is a part of.
pub(super) trait Group {
    /// How many groups before it is looked up a group is asked for, less one.
    const AHEAD: usize = 1;

    /// What there is to be looked up in.
    type Table<'a>;

    /// Looks up each of `addresses`.
    fn lookup<A: Address>(
        table: &Self::Table<'_>,
        addresses: &[A; LANES],
        next_hops: &mut [Option<NextHopId>; LANES],
    );

    /// The code for one address.
    fn one(table: &Self::Table<'_>, key: u32) -> u16;
}

/// Looks up each of `addresses`, as many as there are lanes by `G`, those that are left one by one.
#[inline(always)]
pub(super) fn in_groups<A: Address, G: Group>(
    table: &G::Table<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    // As many as the shorter holds.
    let count = addresses.len().min(next_hops.len());
    let (addresses, _) = addresses.split_at(count);
    let (next_hops, _) = next_hops.split_at_mut(count);
    let (groups, rest) = addresses.as_chunks();
    let (answers, rest_answers) = next_hops.as_chunks_mut();
    for (addresses, next_hops) in groups.iter().zip(answers) {
        group::<A, G>(table, addresses, next_hops);
    }
    for (address, next_hop) in rest.iter().zip(rest_answers) {
        *next_hop = NextHopId::from_code(G::one(table, key_of(*address)));
    }
}

/// Looks up each of a whole group of `addresses` by `G`.
#[inline(always)]
pub(super) fn group<A: Address, G: Group>(
    table: &G::Table<'_>,
    addresses: &[A; LANES],
    next_hops: &mut [Option<NextHopId>; LANES],
) {
    ask_groups_ahead(addresses, G::AHEAD);
    G::lookup(table, addresses, next_hops);
}

/// The code for one address.
#[inline(always)]
pub(super) fn lookup_one<A: Address>(view: &View<'_>, key: u128) -> u16 {
    match Table::of(view) {
        Some(table) => one(&table, (key >> 96 & 0xffff_ffff) as u32),
        None => batch::lookup_one::<A>(Native, view, key),
    }
}

/// A table with words, all of whose chunks are flat or none.
pub(super) struct Table<'a> {
    pub(super) words: &'a [RootWord; 1 << ROOT_STRIDE],
    pub(super) flat: bool,
    /// Whether leaves of flat chunks take two octets.
    pub(super) wide: bool,
    slots: &'a Slots,
    segments: &'a [Segment],
}

impl<'a> Table<'a> {
    #[inline(always)]
    pub(super) fn of(view: &View<'a>) -> Option<Self> {
        let flat = match view.flatness {
            Flatness::None => false,
            Flatness::All => true,
            Flatness::Some => return None,
        };
        Some(Self {
            words: view.direct.try_into().ok()?,
            flat,
            wide: view.wide,
            slots: view.slots.try_into().ok()?,
            segments: view.segments,
        })
    }

    #[inline(always)]
    fn root(&self, key: u32) -> Root<'a> {
        let slot = (key >> (32 - ROOT_STRIDE)) as usize % self.words.len();
        let [word, top] = self.words.get(slot).copied().unwrap_or_default();
        let segments = PhantomData;
        Root {
            word: Word { word, segments },
            top,
        }
    }
}

#[inline(always)]
pub(super) fn one(table: &Table<'_>, key: u32) -> u16 {
    let root = table.root(key);
    if table.flat {
        let (word, octet) = (root.word.slot(key), u64::from(key & 0xff));
        let code = if table.wide {
            leaf_at::<true>(word, octet)
        } else {
            leaf_at::<false>(word, octet)
        };
        return pick(code, root.word.code());
    }
    let (place, slot) = root.cell(key);
    let leaf = read(root.word.leaf(place, slot));
    if u64::from(leaf) & NARROW_CHILD != 0 {
        return batch::narrow_tail(Native, table.slots, table.segments, key, leaf);
    }
    pick(leaf, root.word.code())
}

/// A group in a table none of whose chunks is flat.
struct Chunks;

impl Group for Chunks {
    type Table<'a> = Table<'a>;

    #[inline(always)]
    fn one(table: &Table<'_>, key: u32) -> u16 {
        one(table, key)
    }

    #[inline(always)]
    fn lookup<A: Address>(
        table: &Table<'_>,
        addresses: &[A; LANES],
        next_hops: &mut [Option<NextHopId>; LANES],
    ) {
        let mut words = [Word::default(); LANES];
        let mut cells = [ptr::null(); LANES];
        let mut slots = [0; LANES];
        let asked = cells.iter_mut().zip(&mut slots);
        for (address, (word, (cell, slot))) in addresses.iter().zip(words.iter_mut().zip(asked)) {
            let key = key_of(*address);
            let root = table.root(key);
            *word = root.word;
            (*cell, *slot) = root.cell(key);
            prefetch(*cell);
        }
        let mut leaves = [ptr::null(); LANES];
        let asked = cells.iter().zip(&slots);
        for (leaf, (word, (cell, slot))) in leaves.iter_mut().zip(words.iter().zip(asked)) {
            *leaf = word.leaf(*cell, *slot);
            prefetch(*leaf);
        }
        // Array by array: the compiler makes vectors of it.
        let mut answers = [0; LANES];
        for (answer, (word, leaf)) in answers.iter_mut().zip(words.iter().zip(&leaves)) {
            *answer = pick(read(*leaf), word.code());
        }
        for (next_hop, code) in next_hops.iter_mut().zip(&answers) {
            *next_hop = NextHopId::from_code(*code);
        }
        let seen = answers.iter().fold(0, |seen, code| seen | code);
        if u64::from(seen) & NARROW_CHILD != 0 {
            // SAFETY: whoever gets here was compiled for these instructions, too: `lookup` is inlined into functions of
            // `simd/mod.rs` that are.
            unsafe { tails(table, addresses, next_hops) };
        }
    }
}

/// Takes up the answers that are the number of an entry. Apart, so that the answers need not be kept in registers for it.
#[inline(never)]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe")]
pub(super) fn tails<A: Address>(
    table: &Table<'_>,
    addresses: &[A; LANES],
    next_hops: &mut [Option<NextHopId>; LANES],
) {
    batch::tails(Native, table.slots, table.segments, addresses, next_hops);
}

/// A group in a table all of whose chunks are flat.
struct Flat<const WIDE: bool>;

impl<const WIDE: bool> Group for Flat<WIDE> {
    type Table<'a> = Table<'a>;

    #[inline(always)]
    fn one(table: &Table<'_>, key: u32) -> u16 {
        one(table, key)
    }

    #[inline(always)]
    fn lookup<A: Address>(
        table: &Table<'_>,
        addresses: &[A; LANES],
        next_hops: &mut [Option<NextHopId>; LANES],
    ) {
        for (address, next_hop) in addresses.iter().zip(next_hops) {
            let key = key_of(*address);
            let root = table.root(key).word;
            let code = leaf_at::<WIDE>(root.slot(key), u64::from(key & 0xff));
            *next_hop = NextHopId::from_code(pick(code, root.code()));
        }
    }
}

/// `code`, or what is `below` it when that is none.
#[inline(always)]
fn pick(code: u16, below: u16) -> u16 {
    select_unpredictable(code == 0, below, code)
}

/// What the root has for an address.
#[derive(Clone, Copy, Debug, Default)]
struct Root<'a> {
    word: Word<'a>,
    /// Of the chunk here, which is not flat.
    top: u64,
}

impl Root<'_> {
    /// The group cell of the chunk here that says the slot of `key`, and the slot that it is to be asked for.
    #[inline(always)]
    fn cell(self, key: u32) -> (*const AtomicU64, u32) {
        let (cell, slot) = cell_of(self.top, key >> 8);
        (self.word.first().wrapping_add(CHUNK_CELL + cell), slot)
    }
}

/// An address with a next hop code, as `direct.rs` puts them together: of a block that the segments hold.
#[derive(Clone, Copy, Debug, Default)]
struct Word<'a> {
    word: u64,
    segments: PhantomData<&'a [Segment]>,
}

impl Word<'_> {
    #[inline(always)]
    const fn code(self) -> u16 {
        (self.word & 0xffff) as u16
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "x86-64 has 64 bits")]
    fn first(self) -> *const AtomicU64 {
        ptr::with_exposed_provenance((self.word.cast_signed() >> 16).cast_unsigned() as usize)
    }

    /// The word that the flat chunk here has for the slot of `key`.
    #[inline(always)]
    fn slot(self, key: u32) -> u64 {
        let slot = (key >> 8) as usize % CHUNK.slots();
        cell(self.first().wrapping_add(FLAT_WORDS + slot))
    }

    /// Where the dense node here has the leaf of the slot that the last bits of `slot` name in the group whose cell is
    /// at `place`.
    #[inline(always)]
    fn leaf(self, place: *const AtomicU64, slot: u32) -> *const u16 {
        let index = leaf_in_group(cell(place), slot);
        self.first().cast::<u16>().wrapping_add(index)
    }
}

/// A cell of a block that a [`Word`] led to.
#[inline(always)]
fn cell(place: *const AtomicU64) -> u64 {
    // SAFETY: the writer made the words of this very view from the addresses of blocks in its segments, exposed them,
    // and the view's lifetime keeps the segments. A root word leads to a dense chunk, the empty one where there is none,
    // or, in a table all of whose chunks are flat, to a flat chunk or the empty flat chunk. `place` is a group's cell of
    // the one, of those that its top names, or one of the 2,048 words of the other. The places of a `Few` are the latter,
    // of the same words; the snapshot that has it keeps the segments.
    unsafe { (*place).load(Ordering::Relaxed) }
}

/// A leaf that [`Word::leaf`] found.
#[inline(always)]
fn read(place: *const u16) -> u16 {
    // SAFETY: group cells lead to leaves that `Draft::write` and `Splice` wrote into the same block, aligned to two
    // octets since cells are aligned to eight. A block that a snapshot reaches is not written again while the snapshot
    // lives, so that a part of a cell can be read as plain memory. x86-64 is little-endian: the first leaf comes first.
    unsafe { place.read() }
}

#[inline(always)]
pub(super) fn prefetch<T>(place: *const T) {
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe { x86_64::_mm_prefetch::<{ x86_64::_MM_HINT_T0 }>(place.cast()) };
}

/// The cell of the first group of a chunk.
pub(super) const CHUNK_CELL: usize = CHUNK.starts_at();
