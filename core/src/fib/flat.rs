//! Flat chunks: the second level of a small IPv4 table slot by slot, for lookups only.
//!
//! An overlay's table has its routes below few root slots, and more than half of its addresses end in a tail. There a
//! chunk's 2,048 slots are laid out one by one, beside its node, and so are its tails (`tails.rs`): a lookup finds what
//! the chunk says in one load, goes through the tail without asking whether there is one, and so never takes a branch
//! that cannot be foreseen.
//!
//! A flat chunk hangs between root slot and node: the root slot's entry has the flat bit and its handle, the flat
//! chunk's first cell the node's. Whoever is not a lookup takes it away with [`node_entry`].
//!
//! | cells | content |
//! |-------|---------|
//! | 1 | [`Entry`] without next hop: the chunk's node |
//! | 1 | epoch, as in a node's cold block |
//! | 2,048 | for each slot its next hop code (bits 0..16) and its tail's address, as in `direct.rs` |
//! | 1,024 | for each two slots the handles of their tails; an empty tail stands for none |
//!
//! While a table has nothing but flat chunks, the words of root slots without a chunk lead to an empty flat chunk, which
//! has words only.
//!
//! Which tables have them is a matter of size: [`Fib::flat_wanted`]. A change keeps the flat chunk of its root slot up
//! to date and turns at most one other, so that no update costs more than a few microseconds for them.

use super::address::Address;
use super::arena::{Segment, block, copy_cells, load, store};
use super::direct::{Direct, word};
use super::few::Noted;
use super::node::{CHUNK_STRIDE, Entry, ROOT_STRIDE, Shape};
use super::root::WriterRoot;
use super::table::Fib;

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
    /// The empty tail, 0 while there is none.
    empty_tail: u32,
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
        } else if self.count < self.chunks {
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
        let empty = if self.empty == 0 { 0 } else { FLAT_HANDLES };
        let empty_tail = if self.empty_tail == 0 { 0 } else { TAIL_CELLS };
        (self.count * FLAT_CELLS + empty + empty_tail) * 8
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
        let entry = if A::BITS != 32 {
            entry
        } else if before.is_flat() && entry.has_child() && self.flat_wanted() {
            self.refresh(before, entry, changed)
        } else {
            self.release_flat(before);
            entry
        };
        self.put_root_slot(slot, entry);
        if A::BITS == 32 {
            self.push_changed(slot, changed);
            self.turn_one();
            self.settle_absent();
        }
    }

    /// Makes all chunks flat or none, as the table's size wants it: for a table that was just built.
    pub(super) fn turn_all(&mut self) {
        while A::BITS == 32 && self.turn_one() {}
        self.settle_absent();
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
            self.let_go(self.flats.empty, FLAT_HANDLES);
            self.flats.empty = 0;
        }
        if self.flats.empty_tail != 0 {
            self.let_go(self.flats.empty_tail, TAIL_CELLS);
            self.flats.empty_tail = 0;
        }
    }

    /// Lets root words without a chunk lead where lookups of such a table can go on.
    fn settle_absent(&mut self) {
        let all = self.flats.flatness() == Flatness::All;
        if all && self.flats.empty == 0 && self.direct.octets() > 0 {
            let handle = self.arena.allocate(FLAT_HANDLES);
            let empty_tail = self.empty_tail();
            let empty = self.word(empty_tail, 0);
            let cells = self.arena.block(handle);
            store(cells, 1, self.epoch());
            for slot in 0..CHUNK.slots() {
                store(cells, FLAT_WORDS + slot, empty);
            }
            self.flats.empty = handle;
        }
        let absent = if all { self.flats.empty } else { 0 };
        if let WriterRoot::Slots { slots, .. } = &self.root {
            let segments = self.arena.segments();
            self.direct.set_absent(segments, slots, absent);
        }
    }

    /// The address of the block at `handle` and `code` in one word; when it does not fit, there are no words any more.
    fn word(&mut self, handle: u32, code: u16) -> u64 {
        let word = word(self.arena.segments(), handle, code);
        word.unwrap_or_else(|| {
            self.direct = Direct::default();
            u64::from(code)
        })
    }

    /// Turns one chunk that is not as the table's size wants it; whether there was one.
    fn turn_one(&mut self) -> bool {
        let wanted = self.flat_wanted();
        let missing = if wanted {
            self.flats.count < self.flats.chunks
        } else {
            self.flats.count > 0
        };
        let WriterRoot::Slots { slots, .. } = &self.root else {
            return false;
        };
        if !missing {
            return false;
        }
        let count = slots.len();
        let stands_out = |slot: &usize| {
            let entry = self.root_slot(*slot);
            entry.has_child() && entry.is_flat() != wanted
        };
        let next = (self.flats.cursor..count)
            .find(stands_out)
            .or_else(|| (0..count).find(stands_out));
        let Some(slot) = next else {
            return false;
        };
        self.flats.cursor = slot + 1;
        let entry = self.root_slot(slot);
        let turned = if wanted {
            self.flatten(entry)
        } else {
            let plain = node_entry(self.arena.segments(), entry);
            self.release_flat(entry);
            plain
        };
        self.put_root_slot(slot, turned);
        true
    }

    /// Whether the table is one of many routes below few root slots. What flat chunks take is then at most 128 octets a
    /// route, and at most 1 MiB. Tables that have some keep them a little longer, not to go to and fro.
    fn flat_wanted(&self) -> bool {
        let most = (self.routes / ROUTES_A_CHUNK).min(MOST_CHUNKS);
        let slack = if self.flats.count > 0 { most / 4 } else { 0 };
        self.tails.spread && self.tails.packed == 0 && self.flats.chunks <= most + slack
    }

    /// Puts a flat chunk before the node of `entry`.
    fn flatten(&mut self, entry: Entry) -> Entry {
        let handle = self.arena.allocate(FLAT_CELLS);
        store(self.arena.block(handle), 1, self.epoch());
        self.flats.count += 1;
        self.write_flat(handle, entry, (0, CHUNK.slots() - 1));
        Entry::flat(handle).with_code(entry.code())
    }

    /// Brings the flat chunk of `before` up to what the node of `entry` says in the slots that changed.
    fn refresh(&mut self, before: Entry, entry: Entry, changed: (usize, usize)) -> Entry {
        let mut handle = before.handle();
        if load(self.arena.block(handle), 1) != self.epoch() {
            let copy = self.arena.allocate(FLAT_CELLS);
            copy_cells(self.arena.block(handle), self.arena.block(copy), FLAT_CELLS);
            store(self.arena.block(copy), 1, self.epoch());
            self.retire(handle, FLAT_CELLS);
            handle = copy;
        }
        self.write_flat(handle, entry, changed);
        Entry::flat(handle).with_code(entry.code())
    }

    /// The tail that says nothing: a block like a spread tail's, of which only the leaves are read.
    fn empty_tail(&mut self) -> u32 {
        if self.flats.empty_tail == 0 {
            let handle = self.arena.allocate(TAIL_CELLS);
            let cells = self.arena.block(handle);
            store(cells, 1, self.epoch());
            for leaf in TAIL_LEAVES..TAIL_CELLS {
                store(cells, leaf, 0);
            }
            self.flats.empty_tail = handle;
        }
        self.flats.empty_tail
    }

    fn write_flat(&mut self, handle: u32, entry: Entry, (first, last): (usize, usize)) {
        store(
            self.arena.block(handle),
            0,
            Entry::child(entry.handle(), 0).0,
        );
        let empty_tail = self.empty_tail();
        for slot in first..=last {
            let entry = self.node(entry.handle(), CHUNK).entry(slot);
            let tail = if entry.has_child() {
                entry.handle()
            } else {
                empty_tail
            };
            let word = self.word(tail, entry.code());
            let cells = self.arena.block(handle);
            store(cells, FLAT_WORDS + slot, word);
            let place = slot % 2 * 32;
            let others = load(cells, FLAT_HANDLES + slot / 2) & !(0xffff_ffff << place);
            store(
                cells,
                FLAT_HANDLES + slot / 2,
                others | u64::from(tail) << place,
            );
        }
    }

    /// Lets the flat chunk of `entry` go, if it has one.
    fn release_flat(&mut self, entry: Entry) {
        if !entry.is_flat() {
            return;
        }
        self.flats.count -= 1;
        self.let_go(entry.handle(), FLAT_CELLS);
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
            self.direct.set(self.arena.segments(), slot, entry);
        }
    }
}

const CHUNK: Shape = Shape::at(ROOT_STRIDE, 32);
const TAIL: Shape = Shape::at(ROOT_STRIDE + CHUNK_STRIDE, 32);

/// The cell of the first slot's word.
pub(super) const FLAT_WORDS: usize = 2;
/// The cell of the first two slots' handles.
pub(super) const FLAT_HANDLES: usize = FLAT_WORDS + CHUNK.slots();
const FLAT_CELLS: usize = FLAT_HANDLES + CHUNK.slots() / 2;

/// The cell of a spread tail's first four leaves.
pub(super) const TAIL_LEAVES: usize = TAIL.starts_end();
const TAIL_CELLS: usize = TAIL_LEAVES + TAIL.slots() / 4;

/// The most chunks that are flat: all of a /8.
const MOST_CHUNKS: usize = 32;
/// For each so many routes one chunk may be flat.
const ROUTES_A_CHUNK: usize = 256;
