//! One node of the trie: its layout in cells. `draft.rs` is how it is changed.
//!
//! A node at depth d with stride s decides on bits d..d+s of an address: 2^s slots. Neighbouring slots with the same
//! answer form a run, and only runs are stored: one bit for each slot says whether a run starts there, and the leaf of
//! a slot is found by counting bits. In a dense node 32 such bits share a cell with the index that they are counted from
//! ([`group_cell`]), so that an answer costs two loads one after the other, each of one line: the cell, then the leaf.
//! In other nodes 64 of them are a cell, with an index elsewhere: a cell more to load, but 41 in place of 65 before the
//! leaves of a second-level node. Of a dense second-level node only the groups in which a run starts have a cell, in a
//! full table two of five; the top says which, a bit each, and how many bits come before says where. A slot of another
//! group is the last one of the group with a cell before it.
//!
//! Cells of a node, in order:
//!
//! | cells | content |
//! |-------|---------|
//! | 1 | routes (bits 0..14), skip in octets (14..18), whether dense (18), whether spread (19, `tails.rs`), handle of the cold block (32..64) |
//! | 1, wide nodes only | the octets that `skip` skips, left-aligned |
//! | 1, dense second-level nodes only | the top: for each group of 32 slots whether it has a cell; the first always has |
//! | groups / 4, unless dense | for each group of 64 slots the index of the leaf before its first run start, 16 bits, low bits first |
//! | groups, unless dense | for each group of 64 slots one bit a slot: whether a run starts there |
//! | 2 * groups or fewer, dense nodes only | for each 32 slots (that the top names) run starts and index |
//! | entries, narrow nodes only | one [`Entry`] for each child, in slot order |
//! | leaves | wide: one [`Entry`] a cell. Narrow: four 16-bit leaves a cell, low bits first |
//!
//! The cold block is in an arena of its own, so that what lookups read lies close together (half the pages):
//!
//! | cells | content |
//! |-------|---------|
//! | 1 | epoch: the number of snapshots made before the node was written |
//! | routes | two 32-bit [`RouteCell`]s a cell, in order of key |
//!
//! The index of a leaf counts leaves from the node's first cell (in cells when wide, in quarter cells when narrow). A
//! narrow leaf is a next hop code, or, with its top bit set, the number of an entry. IPv4 nodes below the root are
//! narrow (few of them have children), all others wide. Narrow nodes are dense, but for the second level of small tables
//! (`Fib::densify`): a hundred routes may have a chunk each, and are to stay small.
//!
//! Lookups read counts, run starts, entries and leaves. Routes are for the writer and for questions about prefixes. A route is kept
//! by the node whose bits its length ends in, so a leaf is the longest match *within its node* and a lookup keeps the
//! last one that it met: a change rewrites one node, never those below it.

use alloc::vec::Vec;
use core::hint::select_unpredictable;
use core::sync::atomic::AtomicU64;

use super::arena::{Segment, block, load, store};

/// What a slot says: the next hop of the longest route of this node (0 when none), and the child below.
///
/// Bits 0..16 next hop code, 16..24 octets that the child skips, 32..64 the child's handle (0 when none). Bit 24 of a
/// root slot's entry says that the handle is a flat chunk's (`flat/`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Entry(pub(super) u64);

impl Entry {
    pub(super) const fn child(handle: u32, skip: u8) -> Self {
        Self((handle as u64) << 32 | (skip as u64) << 16)
    }

    /// The flat chunk at `handle`.
    pub(super) const fn flat(handle: u32) -> Self {
        Self((handle as u64) << 32 | FLAT)
    }

    pub(super) const fn is_flat(self) -> bool {
        self.0 & FLAT != 0
    }

    pub(super) const fn code(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    pub(super) const fn skip(self) -> u8 {
        (self.0 >> 16 & 0xff) as u8
    }

    pub(super) const fn handle(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(super) const fn has_child(self) -> bool {
        self.handle() != 0
    }

    /// The same child under another next hop.
    pub(super) const fn with_code(self, code: u16) -> Self {
        Self(self.0 & !0xffff | code as u64)
    }

    /// The same next hop over the child of `child`.
    pub(super) const fn with_child_of(self, child: Self) -> Self {
        Self(child.0 & !0xffff | self.code() as u64)
    }
}

/// A route as its node keeps it: first slot (bits 19..32), length within the node (15..19), next hop code (0..15).
///
/// In order of cells, a route comes before those that it covers.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct RouteCell(pub(super) u32);

impl RouteCell {
    #[expect(clippy::cast_possible_truncation, reason = "the lowest 13 bits")]
    pub(super) const fn new(slot: usize, len: u8, code: u16) -> Self {
        let slot = (slot & 0x1fff) as u32;
        Self(slot << 19 | (len as u32) << 15 | code as u32)
    }

    pub(super) const fn key(self) -> u32 {
        self.0 >> 15
    }

    pub(super) const fn slot(self) -> usize {
        (self.0 >> 19) as usize
    }

    pub(super) const fn len(self) -> u8 {
        (self.0 >> 15 & 0xf) as u8
    }

    pub(super) const fn code(self) -> u16 {
        (self.0 & 0x7fff) as u16
    }

    /// The last slot that this route covers in a node of `stride` bits.
    pub(super) const fn last_slot(self, stride: u8) -> usize {
        self.slot() | ((1 << (stride - self.len())) - 1)
    }
}

/// Where a node sits and how it is laid out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Shape {
    /// Bits before those that the node decides on, skipped ones included.
    pub(super) depth: u8,
    /// Bits that it decides on.
    pub(super) stride: u8,
    pub(super) narrow: bool,
    /// Whether run starts and indices share cells. What [`Shape::at`] gives is dense when narrow; [`Node::new`] knows.
    pub(super) dense: bool,
    /// Whether a run starts at every slot of this narrow tail (`tails.rs`). Only [`Node::new`] knows, too.
    pub(super) spread: bool,
}

impl Shape {
    /// The node that starts at `depth` (0, 13, or 24 and a multiple of 8) in a family of `bits`-bit addresses.
    pub(super) const fn at(depth: u8, bits: u8) -> Self {
        let stride = match depth {
            0 => ROOT_STRIDE,
            1..=ROOT_STRIDE => CHUNK_STRIDE,
            _ => TAIL_STRIDE,
        };
        Self {
            depth,
            stride,
            narrow: bits == 32 && depth > 0,
            dense: bits == 32 && depth > 0,
            spread: false,
        }
    }

    /// The depth below the node.
    pub(super) const fn end(self) -> u8 {
        self.depth + self.stride
    }

    pub(super) const fn slots(self) -> usize {
        1 << self.stride
    }

    /// Whether this is a narrow node that is not dense.
    pub(super) const fn is_sparse(self) -> bool {
        self.narrow && !self.dense
    }

    /// Whether this is the last level of an IPv4 table.
    pub(super) const fn is_narrow_tail(self) -> bool {
        self.narrow && self.depth > ROOT_STRIDE
    }

    pub(super) const fn groups(self) -> usize {
        self.slots() / GROUP_SLOTS
    }

    /// The cell of the first group's run starts.
    pub(super) const fn starts_at(self) -> usize {
        if self.dense {
            self.header() + self.has_top() as usize
        } else {
            self.header() + self.groups() / 4
        }
    }

    /// Whether only those groups have a cell that the top names.
    pub(super) const fn has_top(self) -> bool {
        self.dense && self.depth == ROOT_STRIDE
    }

    /// The cell after the last group's run starts, when all groups have one.
    pub(super) const fn starts_end(self) -> usize {
        if self.dense {
            self.starts_at() + 2 * self.groups()
        } else {
            self.starts_at() + self.groups()
        }
    }

    /// Cells before indices and run starts.
    pub(super) const fn header(self) -> usize {
        if self.narrow { 1 } else { 2 }
    }

    /// The slot that `key` falls into.
    pub(super) const fn slot(self, key: u128) -> usize {
        let slot = (key << self.depth) >> (128 - self.stride as u32);
        (slot & 0x1fff) as usize
    }

    /// The key bits of `slot`.
    pub(super) const fn slot_key(self, slot: usize) -> u128 {
        (slot as u128) << (128 - self.end() as u32)
    }
}

/// A node in its cells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node<'a> {
    pub(super) cells: &'a [AtomicU64],
    /// Where cold blocks are.
    pub(super) cold: &'a [Segment],
    pub(super) shape: Shape,
}

/// The cells of a node, by the block that they are in.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Extent {
    /// Header, counts, run starts, entries, leaves.
    pub(super) lookup: usize,
    pub(super) routes: usize,
}

impl<'a> Node<'a> {
    /// The node in `cells`; whether it is dense is what it says itself.
    pub(super) fn new(cells: &'a [AtomicU64], cold: &'a [Segment], shape: Shape) -> Self {
        let first = load(cells, 0);
        let dense = shape.narrow && first & DENSE != 0;
        let spread = shape.narrow && first & SPREAD != 0;
        Self {
            cells,
            cold,
            shape: Shape {
                dense,
                spread,
                ..shape
            },
        }
    }

    pub(super) fn epoch(self) -> u64 {
        load(self.cold_cells(), 0)
    }

    pub(super) fn skip(self) -> u8 {
        (load(self.cells, 0) >> 14 & 0xf) as u8
    }

    pub(super) fn expected(self) -> u64 {
        if self.shape.narrow {
            0
        } else {
            load(self.cells, 1)
                .checked_shr(64 - 8 * u32::from(self.skip()))
                .unwrap_or(0)
        }
    }

    pub(super) fn route_count(self) -> usize {
        (load(self.cells, 0) & 0x3fff) as usize
    }

    pub(super) fn extent(self) -> Extent {
        let end = self.leaf_end();
        let lookup = if self.shape.narrow {
            end.div_ceil(4)
        } else {
            end
        };
        Extent {
            lookup,
            routes: 1 + self.route_count().div_ceil(2),
        }
    }

    /// What `slot` says.
    pub(super) fn entry(self, slot: usize) -> Entry {
        let (place, in_entry) = self.place(slot);
        if self.shape.narrow && !in_entry {
            return Entry::default().with_code(self.leaf(place));
        }
        Entry(load(self.cells, place))
    }

    /// Writes the entry of `slot`, which has a child before and after.
    pub(super) fn set_child(self, slot: usize, entry: Entry) {
        store(self.cells, self.place(slot).0, entry.0);
    }

    /// The first slot at or after `from` that has a child, and what it says.
    pub(super) fn next_child(self, from: usize) -> Option<(usize, Entry)> {
        // Not worth a look: in a spread one a run starts at every slot.
        if self.shape.is_narrow_tail() {
            return None;
        }
        let mut slot = from;
        while slot < self.shape.slots() {
            let entry = self.entry(slot);
            if entry.has_child() {
                return Some((slot, entry));
            }
            slot = self.next_start(slot + 1)?;
        }
        None
    }

    /// The cells of the cold block.
    pub(super) fn cold_cells(self) -> &'a [AtomicU64] {
        block(self.cold, self.cold_handle())
    }

    pub(super) fn cold_handle(self) -> u32 {
        (load(self.cells, 0) >> 32) as u32
    }

    /// The routes of the node, for asking about prefixes.
    pub(super) fn routes(self) -> impl RouteList {
        Stored {
            cells: self.cold_cells(),
            count: self.route_count(),
        }
    }

    /// Where the leaf of `slot` is: its index, or the cell of the entry that it points to.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a slot is below 2 to the 13th"
    )]
    fn place(self, slot: usize) -> (usize, bool) {
        let leaf = if self.shape.dense {
            let (cell, slot) = cell_of(self.top(), slot as u32);
            leaf_in_group(load(self.cells, self.shape.starts_at() + cell), slot)
        } else {
            let group = slot / GROUP_SLOTS;
            let starts = self.starts(group) << (GROUP_SLOTS - 1 - slot % GROUP_SLOTS);
            self.leaf_before(group) + starts.count_ones() as usize
        };
        if !self.shape.narrow {
            return (leaf, false);
        }
        let code = self.leaf(leaf);
        if u64::from(code) & NARROW_CHILD == 0 {
            return (leaf, false);
        }
        (self.starts_end() + usize::from(code & 0x7fff), true)
    }

    /// The last slot that says what `slot` does, of the same run.
    pub(super) fn last_of_run(self, slot: usize) -> usize {
        let next = self.next_start(slot + 1);
        next.unwrap_or_else(|| self.shape.slots()) - 1
    }

    fn next_start(self, from: usize) -> Option<usize> {
        let mut slot = from;
        while slot < self.shape.slots() {
            let rest = self.starts(slot / GROUP_SLOTS) >> (slot % GROUP_SLOTS);
            if rest != 0 {
                return Some(slot + rest.trailing_zeros() as usize);
            }
            slot = (slot / GROUP_SLOTS + 1) * GROUP_SLOTS;
        }
        None
    }

    /// Which groups of 32 slots of a dense node have a cell, a bit each.
    pub(super) fn top(self) -> u64 {
        if self.shape.has_top() {
            load(self.cells, TOP_CELL)
        } else {
            (1 << (2 * self.shape.groups())) - 1
        }
    }

    /// The cell after the last run starts: of a narrow node, that of the first entry.
    pub(super) fn starts_end(self) -> usize {
        if self.shape.dense {
            self.shape.starts_at() + self.top().count_ones() as usize
        } else {
            self.shape.starts_end()
        }
    }

    /// How many slots of a dense node have a child: as many as there are entries before the first leaf.
    pub(super) fn children(self) -> usize {
        (self.leaf_before(0) + 1) / 4 - self.starts_end()
    }

    /// The run starts of the `half`th 32 slots of a dense node, and the index of the leaf of the last of them.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a slot is below 2 to the 13th"
    )]
    pub(super) fn half(self, half: usize) -> (u32, usize) {
        let last = half * DENSE_SLOTS + DENSE_SLOTS - 1;
        let (at, _) = cell_of(self.top(), last as u32);
        let cell = load(self.cells, self.shape.starts_at() + at);
        let starts = if self.top() >> half & 1 == 1 {
            ((cell & 0xffff_ffff) as u32).rotate_left(1)
        } else {
            0
        };
        (starts, leaf_in_group(cell, last as u32))
    }

    /// The leaf of a narrow node at `index`: a next hop code or the number of an entry.
    pub(super) fn leaf(self, index: usize) -> u16 {
        (load(self.cells, index / 4) >> (index % 4 * 16) & 0xffff) as u16
    }

    /// Cell `at` of the node.
    pub(super) fn cell(self, at: usize) -> u64 {
        load(self.cells, at)
    }

    /// What `leaf`, a narrow node's that is the number of an entry, stands for.
    pub(super) fn child(self, leaf: u16) -> Entry {
        Entry(load(
            self.cells,
            self.starts_end() + usize::from(leaf & 0x7fff),
        ))
    }

    /// What [`half`](Self::half) says of each 32 slots of a dense node, in one walk over its group cells.
    pub(super) fn halves(self) -> impl Iterator<Item = (u32, usize)> {
        let (top, mut at, mut last) = (self.top(), self.shape.starts_at(), 0);
        (0..2 * self.shape.groups()).map(move |half| {
            if top >> half & 1 == 0 {
                return (0, last);
            }
            let cell = load(self.cells, at);
            at += 1;
            last = leaf_in_group(cell, LAST_OF_GROUP);
            (((cell & 0xffff_ffff) as u32).rotate_left(1), last)
        })
    }

    /// The index after the last leaf.
    pub(super) fn leaf_end(self) -> usize {
        if self.shape.dense {
            // The last slot's leaf, which the last cell says.
            let cell = load(self.cells, self.starts_end() - 1);
            return leaf_in_group(cell, LAST_OF_GROUP) + 1;
        }
        let last = self.shape.groups() - 1;
        self.leaf_before(last) + self.starts(last).count_ones() as usize + 1
    }

    /// The run starts of `group`, one bit for each of its 64 slots.
    pub(super) fn starts(self, group: usize) -> u64 {
        let at = self.shape.starts_at();
        if !self.shape.dense {
            return load(self.cells, at + group);
        }
        let [low, high] = [2 * group, 2 * group + 1].map(|half| u64::from(self.half(half).0));
        low | high << 32
    }

    /// The index of the leaf before the first run start of `group`.
    pub(super) fn leaf_before(self, group: usize) -> usize {
        if self.shape.dense {
            let (starts, last) = self.half(2 * group);
            return last.wrapping_sub(starts.count_ones() as usize);
        }
        let four = load(self.cells, self.shape.header() + group / 4);
        (four >> (group % 4 * 16) & 0xffff) as usize
    }
}

/// Run starts and index of 32 slots of a dense node.
///
/// Bits 0..31 say whether a run starts at the second slot, the third and so on to the last, bit 31 whether one starts at
/// the first. The bits from bit s on, shifted down, are then the runs that start after slot s, and the first slot's bit,
/// wherever it has got to: as many as slot s's leaf comes before the index, bits 48..64. `last` is the index of the last
/// slot's leaf.
pub(super) const fn group_cell(starts: u32, last: usize) -> u64 {
    let index = last as u64 + (starts & 1) as u64;
    starts.rotate_right(1) as u64 | index << 48
}

/// The index of the leaf of the slot that the last bits of `slot` name.
#[inline(always)]
pub(super) const fn leaf_in_group(cell: u64, slot: u32) -> usize {
    let starts = (cell & 0xffff_ffff) as u32;
    ((cell >> 48) as usize).wrapping_sub((starts >> (slot & 31)).count_ones() as usize)
}

/// For `slot` of a dense node with that top, the number of the cell that says it, and the slot that the cell is to be
/// asked for: the last one, in the cell of a group before.
#[inline(always)]
pub(super) const fn cell_of(top: u64, slot: u32) -> (usize, u32) {
    let upto = top << (!(slot >> DENSE_BITS) & 63);
    // All ones when the group itself has no cell.
    let before = ((upto >> 63 & 1) as u32).wrapping_sub(1);
    (
        (upto.count_ones() as usize).wrapping_sub(1),
        slot | before & ((1 << DENSE_BITS) - 1),
    )
}

/// Routes of one node in order of key, wherever they are kept.
pub(super) trait RouteList {
    fn count(&self) -> usize;
    fn at(&self, index: usize) -> RouteCell;

    /// The number of routes whose key is below `key`.
    fn lower_bound(&self, key: u32) -> usize {
        self.lower_bound_among(self.count(), key)
    }

    /// The same among the first `count` routes.
    fn lower_bound_among(&self, count: usize, key: u32) -> usize {
        // Which half nobody can foretell: no branch asks.
        let (mut low, mut count) = (0, count);
        while count > 1 {
            let half = count / 2;
            let below = self.at(low + half - 1).key() < key;
            low = select_unpredictable(below, low + half, low);
            count -= half;
        }
        low + usize::from(count == 1 && self.at(low).key() < key)
    }

    /// The route for exactly the first `len` bits of `slot`.
    fn find(&self, slot: usize, len: u8) -> Option<RouteCell> {
        let key = RouteCell::new(slot, len, 0).key();
        Some(self.at(self.lower_bound(key))).filter(|route| route.0 != 0 && route.key() == key)
    }

    /// The longest route of at most `len` bits that covers `slot` in a node of `stride` bits.
    fn cover(&self, slot: usize, stride: u8, len: u8) -> Option<RouteCell> {
        let unused = stride - len;
        let key = RouteCell::new(slot >> unused << unused, len, 0).key();
        self.cover_before(self.lower_bound(key + 1), slot, stride)
    }

    /// The longest route among the first `index` that covers `slot`; these are all that come before it, or before
    /// some prefix of it.
    ///
    /// The routes are in preorder, so whatever covers `slot` covers the last of them too: it is that one, or no
    /// longer than what that one and `slot` have in common.
    fn cover_before(&self, mut index: usize, slot: usize, stride: u8) -> Option<RouteCell> {
        loop {
            index = index.checked_sub(1)?;
            let route = self.at(index);
            let common = common_bits(route.slot(), slot, stride);
            if route.len() <= common {
                return Some(route);
            }
            let unused = stride - common;
            let key = RouteCell::new(slot >> unused << unused, common, 0).key();
            index = self.lower_bound_among(index, key + 1);
        }
    }
}

/// The number of leading bits that two slots of a node of `stride` bits share.
fn common_bits(one: usize, other: usize, stride: u8) -> u8 {
    let different = usize::BITS - (one ^ other).leading_zeros();
    stride.saturating_sub((different & 0x1f) as u8)
}

impl RouteList for Vec<RouteCell> {
    fn count(&self) -> usize {
        self.len()
    }

    fn at(&self, index: usize) -> RouteCell {
        self.get(index).copied().unwrap_or_default()
    }
}

impl RouteList for &[RouteCell] {
    fn count(&self) -> usize {
        self.len()
    }

    fn at(&self, index: usize) -> RouteCell {
        self.get(index).copied().unwrap_or_default()
    }
}

struct Stored<'a> {
    cells: &'a [AtomicU64],
    count: usize,
}

impl RouteList for Stored<'_> {
    fn count(&self) -> usize {
        self.count
    }

    fn at(&self, index: usize) -> RouteCell {
        if index >= self.count {
            return RouteCell::default();
        }
        RouteCell((load(self.cells, 1 + index / 2) >> (index % 2 * 32) & 0xffff_ffff) as u32)
    }
}

/// Walks the slots of a route in order and tells those that no longer route of the same node covers.
pub(super) struct Gaps<'a, R: RouteList> {
    routes: &'a R,
    stride: u8,
    next: usize,
    covered_to: usize,
}

impl<'a, R: RouteList> Gaps<'a, R> {
    /// `first` is the index in `routes` of the first route after the one in question.
    pub(super) fn new(routes: &'a R, first: usize, stride: u8) -> Self {
        Self {
            routes,
            stride,
            next: first,
            covered_to: 0,
        }
    }

    /// Whether `slot` is in a gap. Slots must come in ascending order.
    pub(super) fn holds(&mut self, slot: usize) -> bool {
        if slot < self.covered_to {
            return false;
        }
        while self.next < self.routes.count() {
            let route = self.routes.at(self.next);
            if route.slot() > slot {
                break;
            }
            self.next += 1;
            if route.slot() == slot {
                self.covered_to = route.last_slot(self.stride) + 1;
                return false;
            }
        }
        true
    }
}

/// The bit of an entry that says that its handle is a flat chunk's.
const FLAT: u64 = 1 << 24;
/// Bits that the root decides on: 8,192 slots, 64 KiB when they are laid out one by one.
pub(super) const ROOT_STRIDE: u8 = 13;
/// Bits that the second level decides on, so that it ends where most IPv4 routes do: at /24.
pub(super) const CHUNK_STRIDE: u8 = 11;
/// Bits that every further level decides on.
pub(super) const TAIL_STRIDE: u8 = 8;
/// Slots whose run starts share a cell in a node that is not dense.
pub(super) const GROUP_SLOTS: usize = 64;
/// Slots whose run starts and index share a cell in a dense node.
pub(super) const DENSE_SLOTS: usize = 1 << DENSE_BITS;
/// Bits of an address that name one of them.
pub(super) const DENSE_BITS: u32 = 5;
/// The last of them.
pub(super) const LAST_OF_GROUP: u32 = (1 << DENSE_BITS) - 1;
/// The cell of a dense second-level node's top.
pub(super) const TOP_CELL: usize = 1;
/// The bit of a node's first cell that says that it is dense.
pub(super) const DENSE: u64 = 1 << 18;
/// The bit of a node's first cell that says that it is spread.
pub(super) const SPREAD: u64 = 1 << 19;
/// The bit of a narrow leaf that says that the rest is the number of an entry.
pub(super) const NARROW_CHILD: u64 = 0x8000;

pub(super) const ROOT_GROUPS: usize = (1 << ROOT_STRIDE) / GROUP_SLOTS;
