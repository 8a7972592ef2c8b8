//! Flat chunks: the second level of a small IPv4 table slot by slot, for lookups only.
//!
//! An overlay's table has its routes below few root slots, and more than half of its addresses end in a tail. There a
//! chunk's 2,048 slots are laid out one by one, beside its node, and so are the leaves of its tails, into which what the
//! slot says is pushed (`leaves.rs`): a lookup finds in one load where its leaf is, whether in a tail or not, reads it,
//! and takes no branch and makes no choice on the way.
//!
//! A flat chunk hangs between root slot and node: the root slot's entry has the flat bit and its handle, the flat
//! chunk's first cell the node's. Whoever is not a lookup takes it away with [`node_entry`].
//!
//! | cells | content |
//! |-------|---------|
//! | 1 | [`Entry`] of the chunk's node; where its next hop would be, whether leaves take two octets |
//! | 1 | epoch, as in a node's cold block |
//! | 2,048 | a word for each slot |
//! | 512 | for each slot its next hop code, 16 bits |
//! | 1,024 | for each two slots the handles of their tails' leaves, 0 for none |
//! | 1 | how many slots have a tail or a next hop, and in the upper half how many have a tail |
//! | 1 | the handle of the published chunk that this one was copied from, 0 for none; how many notes there are |
//! | 1 | the epoch of that one |
//! | 62 | notes, two a cell: slots that were written since, the first and the last, 16 bits each |
//!
//! The notes are for a worker's copy that follows (`expanded.rs`). When there are more than have room, all slots may be
//! others.
//!
//! A slot's word has the address of the tail's first leaf (bits 16..64) and 255 in its first octet; what the octet and
//! the last octet of an address have in common is the number of the leaf. A slot without a tail has 0 there and the
//! address of its code: of the second octet of the word itself, or among the codes where they take two.
//!
//! Next hop codes are of one octet until a larger one comes; all flat chunks are then made anew.
//!
//! While a table has nothing but flat chunks, the words of root slots without a chunk lead to an empty flat chunk, which
//! has words only, and one code for all of them.
//!
//! Which tables have them is a matter of size: [`Fib::flat_wanted`]. A change keeps the flat chunk of its root slot up
//! to date and turns at most one other, so that no update costs more than a few microseconds for them. What has more
//! than [`TURNED`] tails to be written is left to the next publication.

pub(super) mod leaves;

use core::sync::atomic::AtomicU64;

use super::address::Address;
use super::arena::{Segment, block, load, store};
use super::direct::{Direct, word};
use super::few::Noted;
use super::moves::copy_cells;
use super::node::{CHUNK_STRIDE, Entry, ROOT_STRIDE, Shape};
use super::root::WriterRoot;
use super::table::Fib;
use leaves::LEAVES_AT;

/// The flat chunks of a table.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Flats {
    /// How many there are.
    pub(super) count: usize,
    /// Root slots that have a child, while the root is laid out slot by slot.
    pub(super) chunks: usize,
    /// The root slot from which on one that is to be turned is looked for.
    cursor: usize,
    /// Root slots that have one.
    pub(super) noted: Noted,
    /// The empty flat chunk, 0 while there is none.
    pub(super) empty: u32,
    /// Whether leaves that are written take two octets.
    pub(super) wide: bool,
    /// How many flat chunks have leaves of one octet although they are to take two.
    narrow: usize,
    /// Cells in use by leaves of tails.
    leaf_cells: usize,
    /// Whether chunks are to be turned by the next publication, not by changes before it.
    waits: bool,
}

/// How many of a table's chunks are flat.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Flatness {
    #[default]
    None,
    /// A table on its way from one to the other.
    Some,
    All,
}

impl Flats {
    pub(super) const fn flatness(self) -> Flatness {
        if self.count == 0 {
            Flatness::None
        } else if self.count < self.chunks || self.narrow > 0 {
            Flatness::Some
        } else {
            Flatness::All
        }
    }

    /// Forgets the chunks of a root that is no longer laid out slot by slot.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Octets of all of them.
    pub(super) const fn octets(self) -> usize {
        let empty = if self.empty == 0 { 0 } else { EMPTY_CELLS };
        (self.count * FLAT_CELLS + empty + self.leaf_cells) * 8
    }
}

/// What a root slot says, the flat chunk taken away.
#[inline]
pub(super) fn node_entry(segments: &[Segment], entry: Entry) -> Entry {
    if !entry.is_flat() {
        return entry;
    }
    Entry(load(block(segments, entry.handle()), 0)).with_code(entry.code())
}

impl<A: Address> Fib<A> {
    /// Writes what root slot `slot` says, when the root is laid out slot by slot. `changed` are the slots of its chunk
    /// that may say something else than before, the first and the last.
    pub(super) fn set_root_slot(&mut self, slot: usize, entry: Entry, changed: (usize, usize)) {
        let before = self.root_slot(slot);
        self.flats.chunks += usize::from(entry.has_child());
        self.flats.chunks -= usize::from(before.has_child());
        let stays = before.is_flat()
            && entry.has_child()
            && self.flat_wanted()
            && self.is_wide(before) == self.flats.wide;
        let waits = stays && self.tails_among(before, changed) > TURNED;
        self.flats.waits |= waits;
        let entry = if stays && !waits {
            self.refresh(before, entry, changed)
        } else {
            self.release_flat(before);
            entry
        };
        self.put_root_slot(slot, entry);
        if A::BITS == 32 {
            self.push_changed(slot, changed);
            self.turn_one(false);
            self.settle_absent();
        }
    }

    /// Makes all chunks flat or none, as the table's size wants it: for a table that was just built.
    pub(super) fn turn_all(&mut self) {
        while A::BITS == 32 && self.turn_one(true) {}
        self.settle_absent();
    }

    /// Turns what a change has left to the next publication, and all else with it.
    pub(super) fn turn_waiting(&mut self) {
        if self.flats.waits {
            self.turn_all();
            self.flats.waits = false;
        }
    }

    /// Takes all flat chunks away.
    pub(super) fn unflatten(&mut self) {
        let WriterRoot::Slots { slots, .. } = &self.root else {
            return;
        };
        let count = slots.len();
        for slot in 0..count {
            let entry = self.root_slot(slot);
            if entry.is_flat() {
                let plain = node_entry(self.arena.segments(), entry);
                self.release_flat(entry);
                self.put_root_slot(slot, plain);
            }
        }
        if self.flats.empty != 0 {
            self.let_go(self.flats.empty, EMPTY_CELLS);
            self.flats.empty = 0;
        }
        debug_assert_eq!((self.flats.leaf_cells, self.flats.narrow), (0, 0));
    }

    /// Lets root words without a chunk lead where lookups of such a table can go on.
    fn settle_absent(&mut self) {
        let all = self.flats.flatness() == Flatness::All;
        if all && self.flats.empty == 0 && self.direct.octets() > 0 {
            let handle = self.arena.allocate(EMPTY_CELLS);
            let empty = self.word(handle, FLAT_CODES, 0);
            let cells = self.arena.block(handle);
            store(cells, 1, self.epoch());
            for slot in 0..CHUNK.slots() {
                store(cells, FLAT_WORDS + slot, empty);
            }
            store(cells, FLAT_CODES, 0);
            self.flats.empty = handle;
        }
        let absent = if all { self.flats.empty } else { 0 };
        if let WriterRoot::Slots { slots, .. } = &self.root {
            let segments = self.arena.segments();
            self.direct.set_absent(segments, slots, absent);
        }
    }

    /// The address of cell `at` of the block at `handle` and 16 bits in one word; when it does not fit, there are no
    /// words any more.
    fn word(&mut self, handle: u32, at: usize, bits: u16) -> u64 {
        // A block lies in one segment, so that its cells have handles one after the other.
        let cell = handle + u32::try_from(at).unwrap_or_default();
        let word = word(self.arena.segments(), cell, bits);
        word.unwrap_or_else(|| {
            self.direct = Direct::default();
            u64::from(bits)
        })
    }

    /// Turns one chunk that is not as the table's size wants it, unless more than [`TURNED`] tails are to be written for it
    /// and not `any` is to be turned; whether it did.
    fn turn_one(&mut self, any: bool) -> bool {
        let wanted = self.flat_wanted();
        let missing = if wanted {
            self.flats.count < self.flats.chunks || self.flats.narrow > 0
        } else {
            self.flats.count > 0
        };
        let WriterRoot::Slots { slots, .. } = &self.root else {
            return false;
        };
        if !missing || self.flats.waits && !any {
            return false;
        }
        let count = slots.len();
        let stands_out = |slot: &usize| {
            let entry = self.root_slot(*slot);
            let odd = entry.is_flat() && self.is_wide(entry) != self.flats.wide;
            entry.has_child() && (odd || entry.is_flat() != wanted)
        };
        let next = (self.flats.cursor..count)
            .find(stands_out)
            .or_else(|| (0..count).find(stands_out));
        let Some(slot) = next else {
            return false;
        };
        let entry = self.root_slot(slot);
        let plain = node_entry(self.arena.segments(), entry);
        if wanted && !any && self.node(plain.handle(), CHUNK).children() > TURNED {
            self.flats.waits = true;
            return false;
        }
        self.flats.cursor = slot + 1;
        self.release_flat(entry);
        let turned = if wanted { self.flatten(plain) } else { plain };
        self.put_root_slot(slot, turned);
        true
    }

    /// Whether the table is one of many routes below few root slots, and of few tails. What flat chunks take is then at
    /// most 115 octets a route, and at most 1 MiB; the leaves of their tails take 136 octets a route, or 264 where each
    /// takes two octets, and at most 1.1 or 2.2 MiB. Tables that have some keep them a little longer, not to go to and
    /// fro.
    fn flat_wanted(&self) -> bool {
        let most = (self.routes / ROUTES_A_CHUNK).min(MOST_CHUNKS);
        let has = self.flats.count > 0 || self.flats.waits;
        let slack = if has { most / 4 } else { 0 };
        self.flats.chunks <= most + slack && self.tails.are_few(self.routes, has)
    }

    /// Puts a flat chunk before the node of `entry`.
    fn flatten(&mut self, entry: Entry) -> Entry {
        let handle = self.arena.allocate(FLAT_CELLS);
        let wide = u64::from(self.flats.wide);
        let cells = self.arena.block(handle);
        store(cells, 0, Entry::child(entry.handle(), 0).0 | wide);
        store(cells, 1, self.epoch());
        for at in FLAT_CODES..FLAT_NOTES {
            store(cells, at, 0);
        }
        self.flats.count += 1;
        self.write_flat(handle, entry, (0, CHUNK.slots() - 1));
        Entry::flat(handle).with_code(entry.code())
    }

    /// Brings the flat chunk of `before` up to what the node of `entry` says in the slots that changed.
    fn refresh(&mut self, before: Entry, entry: Entry, changed: (usize, usize)) -> Entry {
        let mut handle = before.handle();
        if load(self.arena.block(handle), 1) != self.epoch() {
            let copy = self.arena.allocate(FLAT_CELLS);
            let cells = self.arena.block(copy);
            copy_flat(self.arena.block(handle), cells);
            store(cells, FLAT_BEFORE, u64::from(handle));
            store(cells, FLAT_BEFORE + 1, load(cells, 1));
            store(cells, 1, self.epoch());
            self.retire(handle, FLAT_CELLS);
            handle = copy;
        }
        let wide = u64::from(self.flats.wide);
        let node = Entry::child(entry.handle(), 0).0 | wide;
        store(self.arena.block(handle), 0, node);
        note(self.arena.block(handle), changed);
        self.write_flat(handle, entry, changed);
        Entry::flat(handle).with_code(entry.code())
    }

    /// Writes the slots `first` to `last` of the flat chunk at `handle`, of the node of `entry`.
    fn write_flat(&mut self, handle: u32, entry: Entry, (first, last): (usize, usize)) {
        let wide = self.flats.wide;
        let (mut largest, mut said, mut says) = (0, 0, 0);
        for slot in first..=last {
            let below = self.node(entry.handle(), CHUNK).entry(slot);
            let (code, place) = (below.code(), slot % 2 * 32);
            let cells = self.arena.block(handle);
            let pair = load(cells, FLAT_HANDLES + slot / 2);
            let old = (pair >> place & 0xffff_ffff) as u32;
            let four = load(cells, FLAT_CODES + slot / 4);
            let old_code = (four >> (slot % 4 * 16) & 0xffff) as u16;
            let same = old_code == code;
            said += busy(old != 0, old_code);
            says += busy(below.has_child(), code);
            // Routes of more than one slot are the chunk's own: they change no tail but by what they push into it.
            let leaves = if !below.has_child() {
                self.release_leaves(old, wide);
                0
            } else if old != 0 && same && first != last {
                old
            } else {
                let (leaves, of_tail) = self.write_leaves(old, below.handle(), code);
                largest = largest.max(of_tail);
                leaves
            };
            largest = largest.max(code);
            let word = if leaves != 0 {
                self.word(leaves, LEAVES_AT, TAIL_MASK)
            } else if wide {
                self.word(handle, FLAT_CODES + slot / 4, 0) + ((slot as u64 % 4) << 17)
            } else {
                self.word(handle, FLAT_WORDS + slot, code << 8) + (1 << 16)
            };
            let cells = self.arena.block(handle);
            store(cells, FLAT_WORDS + slot, word);
            let others = load(cells, FLAT_CODES + slot / 4) & !(0xffff << (slot % 4 * 16));
            let code = u64::from(code) << (slot % 4 * 16);
            store(cells, FLAT_CODES + slot / 4, others | code);
            let others = pair & !(0xffff_ffff << place);
            let handles = others | u64::from(leaves) << place;
            store(cells, FLAT_HANDLES + slot / 2, handles);
        }
        let cells = self.arena.block(handle);
        store(cells, FLAT_BUSY, load(cells, FLAT_BUSY) + says - said);
        if !wide && leaves::is_wide(largest) {
            self.flats.wide = true;
            self.flats.narrow = self.flats.count;
        }
    }

    /// Writes the leaves of the tail at `tail`, with `code` pushed into them, in place of the `old` ones if there are
    /// any. Gives their handle and the largest code among them.
    fn write_leaves(&mut self, old: u32, tail: u32, code: u16) -> (u32, u16) {
        let wide = self.flats.wide;
        let handle = if old != 0 && load(self.arena.block(old), 1) == self.epoch() {
            old
        } else {
            self.release_leaves(old, wide);
            self.flats.leaf_cells += leaves::cells(wide);
            self.arena.allocate(leaves::cells(wide))
        };
        let (tail, block) = (self.node(tail, TAIL), self.arena.block(handle));
        let largest = leaves::write(block, tail, code, wide, self.epoch());
        (handle, largest)
    }

    /// Lets the leaves of a tail go, if there are any.
    fn release_leaves(&mut self, handle: u32, wide: bool) {
        if handle != 0 {
            self.flats.leaf_cells -= leaves::cells(wide);
            self.let_go(handle, leaves::cells(wide));
        }
    }

    /// Lets the flat chunk of `entry` go, if it has one.
    fn release_flat(&mut self, entry: Entry) {
        if !entry.is_flat() {
            return;
        }
        let wide = self.is_wide(entry);
        for at in FLAT_HANDLES..FLAT_BUSY {
            let pair = load(self.arena.block(entry.handle()), at);
            self.release_leaves((pair & 0xffff_ffff) as u32, wide);
            self.release_leaves((pair >> 32) as u32, wide);
        }
        self.flats.count -= 1;
        self.flats.narrow -= usize::from(wide != self.flats.wide);
        self.let_go(entry.handle(), FLAT_CELLS);
    }

    /// Whether the leaves of the flat chunk of `entry` take two octets.
    fn is_wide(&self, entry: Entry) -> bool {
        load(self.arena.block(entry.handle()), 0) & 1 == 1
    }

    /// The tails of the flat chunk of `entry` in the slots `first` to `last`, if there are several.
    fn tails_among(&self, entry: Entry, (first, last): (usize, usize)) -> usize {
        if first == last {
            return 1;
        }
        // Several slots begin at an even one and end before an even one.
        let cells = self.arena.block(entry.handle());
        let pairs = (first / 2..=last / 2).map(|pair| load(cells, FLAT_HANDLES + pair));
        pairs
            .map(|pair| usize::from(pair & 0xffff_ffff != 0) + usize::from(pair >> 32 != 0))
            .sum()
    }

    /// Lets a block of `cells` cells go, whose second cell is its epoch.
    pub(super) fn let_go(&mut self, handle: u32, cells: usize) {
        if load(self.arena.block(handle), 1) == self.epoch() {
            self.arena.free(handle, cells);
        } else {
            self.retire(handle, cells);
        }
    }

    /// What root slot `slot` says as it is stored.
    fn root_slot(&self, slot: usize) -> Entry {
        let WriterRoot::Slots { slots, .. } = &self.root else {
            return Entry::default();
        };
        Entry(slots.get(slot).copied().unwrap_or_default())
    }

    fn put_root_slot(&mut self, slot: usize, entry: Entry) {
        if let WriterRoot::Slots { slots, .. } = &mut self.root
            && let Some(place) = slots.get_mut(slot)
        {
            if Entry(*place).is_flat() != entry.is_flat() {
                self.flats.noted.note(slot, entry.is_flat());
            }
            *place = entry.0;
            self.log.note(slot);
            self.direct.set(self.arena.segments(), slot, entry);
        }
    }
}

const CHUNK: Shape = Shape::at(ROOT_STRIDE, 32);
const TAIL: Shape = Shape::at(ROOT_STRIDE + CHUNK_STRIDE, 32);

/// What a slot counts for in [`FLAT_BUSY`].
fn busy(tail: bool, code: u16) -> u64 {
    u64::from(tail || code != 0) | u64::from(tail) << 32
}

/// Notes in the flat chunk of `cells` that the slots `first` to `last` are written.
fn note(cells: &[AtomicU64], (first, last): (usize, usize)) {
    let before = load(cells, FLAT_BEFORE);
    let count = (before >> 32) as usize;
    if count < MOST_NOTES {
        let (at, place) = (FLAT_NOTES + count / 2, count % 2 * 32);
        let others = load(cells, at) & !(0xffff_ffff << place);
        store(cells, at, others | ((last << 16 | first) as u64) << place);
    }
    if count <= MOST_NOTES {
        store(cells, FLAT_BEFORE, before + (1 << 32));
    }
}

/// The slots, first and last, in which the flat chunk of `cells` may be another than the one of `before`, which is at
/// `handle`, if that is known. Both are published.
pub(super) fn noted<'a>(
    cells: &'a [AtomicU64],
    handle: u32,
    before: &[AtomicU64],
) -> Option<impl Iterator<Item = (usize, usize)> + use<'a>> {
    let noted = load(cells, FLAT_BEFORE);
    let count = (noted >> 32) as usize;
    let known = (noted & 0xffff_ffff) as u32 == handle
        && load(cells, FLAT_BEFORE + 1) == load(before, 1)
        && count <= MOST_NOTES;
    let note = |at: usize| load(cells, FLAT_NOTES + at / 2) >> (at % 2 * 32);
    known.then(|| {
        (0..count).map(move |at| {
            let note = note(at);
            ((note & 0xffff) as usize, (note >> 16 & 0xffff) as usize)
        })
    })
}

/// Copies a flat chunk, whose words may have addresses in it.
fn copy_flat(from: &[AtomicU64], to: &[AtomicU64]) {
    // Exposed with what follows it, as in `direct.rs`.
    let moved = to.as_ptr().expose_provenance();
    let moved = moved.wrapping_sub(from.as_ptr().addr()) as u64;
    copy_cells(from, to, FLAT_BEFORE);
    for slot in 0..CHUNK.slots() {
        let word = load(from, FLAT_WORDS + slot);
        if word & u64::from(TAIL_MASK) == 0 {
            store(to, FLAT_WORDS + slot, word.wrapping_add(moved << 16));
        }
    }
}

/// The cell of the first slot's word.
pub(super) const FLAT_WORDS: usize = 2;
/// The cell of the first four slots' codes.
pub(super) const FLAT_CODES: usize = FLAT_WORDS + CHUNK.slots();
/// The cell of the first two slots' handles.
pub(super) const FLAT_HANDLES: usize = FLAT_CODES + CHUNK.slots() / 4;
/// The cell that says how many slots have something to say, and in its upper half how many have a tail.
pub(super) const FLAT_BUSY: usize = FLAT_HANDLES + CHUNK.slots() / 2;
const FLAT_BEFORE: usize = FLAT_BUSY + 1;
const FLAT_NOTES: usize = FLAT_BEFORE + 2;
const FLAT_CELLS: usize = FLAT_NOTES + MOST_NOTES / 2;
/// A worker that follows a chunk with more notes looks at all slots; a chunk's block has room for these in any case.
const MOST_NOTES: usize = 124;
/// The empty flat chunk's.
const EMPTY_CELLS: usize = FLAT_CODES + 1;
/// What the word of a slot with a tail has in its first octet.
const TAIL_MASK: u16 = 0xff;

/// The most tails whose leaves one change writes.
const TURNED: usize = 128;
/// The most chunks that are flat: all of a /8.
const MOST_CHUNKS: usize = 32;
/// For each so many routes one chunk may be flat.
const ROUTES_A_CHUNK: usize = 256;
