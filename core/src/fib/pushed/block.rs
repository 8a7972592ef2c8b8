//! One block of pushed chunks: its layout, lookups in it, and how it is made of a chunk's node.
//!
//! | cells | content |
//! |-------|---------|
//! | 1 | cells of leaves (bits 0..16), whether slots without a chunk share the block (16), entries (32..48), cells of leaves added since the block was made (48..64) |
//! | 1 | epoch, as in a flat chunk |
//! | 64 | group cells |
//! | entries | next hop code of the slot itself (bits 0..16), slot (16..32), handle of the node (32..64), in order of slot |
//! | leaves / 8 or / 4 | leaves, of one octet or two, low ones first |
//!
//! A group cell: bits 0..31 say whether a run starts at the second slot of its 32, the third and so on to the last; bit
//! 31 whether some slot of the group is the escape; bits 32..48 are the code of a group in which all slots say the same,
//! or of one with an escape the cell of its first entry; bits 48..64 the octet of the block from which leaves are
//! counted back: a slot's leaf comes as many leaves before it as bits from the slot's own on are set. As bit 31 is always
//! among them, octets of groups with an escape are one leaf more. In a group that says one thing it is the octet of that
//! code.
//!
//! A slot that has a third-level node of the trie has the [`escape`] for a leaf, and an entry that is looked for by its
//! slot.
//!
//! The leaves are those of the node, in its order. A change of a few groups adds their leaves at the end, and what they
//! had before is left behind, until [`MOST_ADDED`] cells have come so; the block is then made anew.

use alloc::vec::Vec;
use core::hint::select_unpredictable;
use core::sync::atomic::{AtomicU64, Ordering};

use super::super::address::Address;
use super::super::arena::{Segment, load, store};
use super::super::batch::{Block, CHUNK, LANES, Machine, TAIL, key_of};
use super::super::moves::copy_cells;
use super::super::node::{
    DENSE_BITS, DENSE_SLOTS, LAST_OF_GROUP, NARROW_CHILD, Node, leaf_in_group,
};
use super::super::tails::TAIL_LEAVES;
use super::super::{NextHopId, batch};
use super::{PushedRoot, ROOT_SHIFT};

/// The leaf of a slot that has a third-level node.
pub(in super::super) const fn escape(wide: bool) -> u16 {
    if wide { 0xffff } else { 0xff }
}

/// The octet of the leaf of `key` in the block of which `cell` is its group cell.
#[inline(always)]
pub(in super::super) const fn leaf_octet(cell: u64, key: u32, wide: bool) -> usize {
    let starts = (cell & 0xffff_ffff) as u32;
    let before = (starts >> (key >> 8 & ((1 << DENSE_BITS) - 1))).count_ones();
    ((cell >> 48) as usize).wrapping_sub((before << wide as u32) as usize)
}

/// The cell of the group of `key`.
#[inline(always)]
pub(in super::super) const fn group_of(key: u32) -> usize {
    GROUPS_AT + (key >> (8 + DENSE_BITS)) as usize % GROUPS
}

/// The code for one address.
#[inline(always)]
pub(in super::super) fn lookup_one(
    machine: impl Machine,
    pushed: &PushedRoot,
    segments: &[Segment],
    key: u32,
) -> u16 {
    let handle = pushed.handles.get((key >> ROOT_SHIFT) as usize);
    let block = machine.block(&pushed.lines, handle.copied().unwrap_or_default());
    let at = leaf_octet(block.cell(group_of(key)), key, pushed.wide);
    let mut code = leaf(block, at, pushed.wide);
    if code == escape(pushed.wide) {
        code = beyond(machine, pushed, segments, block, key);
    }
    pushed.short.below(code, key)
}

/// Looks up each of `addresses`, in groups of passes of which each asks for what the next needs.
#[inline(always)]
pub(in super::super) fn lookup<A: Address, M: Machine>(
    machine: M,
    pushed: &PushedRoot,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    let groups = addresses.chunks(LANES).zip(next_hops.chunks_mut(LANES));
    for (addresses, next_hops) in groups {
        let mut blocks = [machine.block(&pushed.lines, 0); LANES];
        let mut leaves = [0; LANES];
        for (address, place) in addresses.iter().zip(&mut blocks) {
            let key = key_of(*address);
            let handle = pushed.handles.get((key >> ROOT_SHIFT) as usize);
            *place = machine.block(&pushed.lines, handle.copied().unwrap_or_default());
            place.prefetch_cell(group_of(key));
        }
        for (address, (block, place)) in addresses.iter().zip(blocks.iter().zip(&mut leaves)) {
            let key = key_of(*address);
            *place = leaf_octet(block.cell(group_of(key)), key, pushed.wide);
            block.prefetch_cell(*place / 8);
        }
        let found = blocks.iter().zip(&leaves);
        for ((address, next_hop), (block, at)) in addresses.iter().zip(next_hops).zip(found) {
            let key = key_of(*address);
            let mut code = leaf(*block, *at, pushed.wide);
            if code == escape(pushed.wide) {
                code = beyond(machine, pushed, segments, *block, key);
            }
            *next_hop = NextHopId::from_code(pushed.short.below(code, key));
        }
    }
}

/// What the third-level node of the slot of `key` says, whose leaf in `block` is the escape, or the slot itself; 0 when
/// only short routes can tell.
#[inline]
pub(in super::super) fn beyond<B: Block>(
    machine: impl Machine,
    pushed: &PushedRoot,
    segments: &[Segment],
    block: B,
    key: u32,
) -> u16 {
    let slot = u64::from(key >> 8) % CHUNK.slots() as u64;
    let mut at = (block.cell(group_of(key)) >> 32 & 0xffff) as usize;
    let mut entry = block.cell(at);
    // A group has 32 slots, so that there are no more entries.
    for _ in 1..DENSE_SLOTS {
        if entry_slot(entry) >= slot {
            break;
        }
        at += 1;
        entry = block.cell(at);
    }
    tail(machine, pushed, segments, entry, key)
}

/// The slot of the chunk that `entry` is of.
#[inline(always)]
pub(in super::super) const fn entry_slot(entry: u64) -> u64 {
    entry >> 16 & 0xffff
}

/// What the third-level node of `entry` says to `key`, or the slot itself; 0 when only short routes can tell.
#[inline(always)]
pub(in super::super) fn tail(
    machine: impl Machine,
    pushed: &PushedRoot,
    segments: &[Segment],
    entry: u64,
    key: u32,
) -> u16 {
    let node = machine.block(segments, (entry >> 32 & 0xffff_ffff) as u32);
    let leaf = if pushed.spread {
        4 * TAIL_LEAVES + key as usize % TAIL.slots()
    } else {
        let group = key as usize / DENSE_SLOTS % (2 * TAIL.groups());
        leaf_in_group(node.cell(TAIL.starts_at() + group), key)
    };
    batch::overlay(node.quarter(leaf), (entry & 0xffff) as u16)
}

/// The leaf of `key`.
#[cfg(test)]
pub(super) fn leaf_of(block: &[AtomicU64], key: u32, wide: bool) -> u16 {
    leaf(
        block,
        leaf_octet(block.cell(group_of(key)), key, wide),
        wide,
    )
}

/// The leaf at octet `at` of a block.
#[inline(always)]
fn leaf(block: impl Block, at: usize, wide: bool) -> u16 {
    let cell = block.cell(at / 8) >> (at % 8 * 8);
    if wide {
        (cell & 0xffff) as u16
    } else {
        (cell & 0xff) as u16
    }
}

/// The cells of a block.
pub(super) fn cells_of(block: &[AtomicU64]) -> usize {
    let header = load(block, 0);
    ENTRIES_AT + (header & 0xffff) as usize + (header >> 32 & 0xffff) as usize
}

/// The code of a block that says the same in all places, if slots without a chunk share it.
pub(super) fn blank_code(block: &[AtomicU64]) -> Option<u16> {
    let blank = load(block, 0) & BLANK != 0;
    blank.then(|| (load(block, GROUPS_AT) >> 32 & 0xffff) as u16)
}

/// A block on its way.
#[derive(Debug, Default)]
pub(super) struct PushedDraft {
    groups: Vec<u64>,
    /// What each leaf says, and that in octets.
    said: Vec<u16>,
    leaves: Vec<u8>,
    entries: Vec<u64>,
    /// The indices of the node's leaves that have a third-level node.
    children: Vec<usize>,
    blank: bool,
    /// The groups of a [`Patch`].
    pub(super) patched: Vec<Patched>,
    /// The largest code in it.
    pub(super) largest: u16,
}

impl PushedDraft {
    pub(super) fn octets(&self) -> usize {
        size_of::<Self>()
            + (self.groups.capacity() + self.entries.capacity() + self.children.capacity())
                * size_of::<u64>()
            + self.said.capacity() * size_of::<u16>()
            + self.leaves.capacity()
            + self.patched.capacity() * size_of::<Patched>()
    }

    /// The block of a chunk without routes, into which `code` is pushed.
    pub(super) fn say(&mut self, code: u16) {
        self.leaves.clear();
        self.entries.clear();
        self.groups.clear();
        self.groups.extend((0..GROUPS).map(|at| one_code(at, code)));
        self.blank = true;
    }

    /// The block of `node`, a chunk, into which `code` is pushed.
    pub(super) fn read(&mut self, node: Node<'_>, code: u16, wide: bool) {
        self.entries.clear();
        self.groups.clear();
        self.children.clear();
        self.blank = false;
        self.largest = code;
        let first = node.leaf_before(0) + 1;
        self.read_leaves(node, first, code, wide);
        if self.children.is_empty() {
            self.group_leaves(node, first, wide);
        } else {
            self.group_children(node, first, code, wide);
        }
    }

    /// Makes the groups of `node`, of whose leaves none is a child. Which groups say one thing nobody can foretell: no
    /// branch asks.
    fn group_leaves(&mut self, node: Node<'_>, first: usize, wide: bool) {
        let leaves_at = 8 * ENTRIES_AT;
        let top = node.top();
        let mut at = node.shape.starts_at() - 1;
        self.groups.resize(GROUPS, 0);
        for (half, place) in self.groups.iter_mut().enumerate() {
            let own = top >> half & 1;
            at += usize::from(own == 1);
            let cell = node.cell(at);
            let later = cell & 0x7fff_ffff & own.wrapping_neg();
            let octet = (leaf_in_group(cell, LAST_OF_GROUP) - first) << u32::from(wide);
            let low = self.leaves.get(octet).copied().unwrap_or_default();
            let high = self.leaves.get(octet + 1).copied().unwrap_or_default();
            let said = u16::from(low) | if wide { u16::from(high) << 8 } else { 0 };
            let many = later | ((leaves_at + octet) as u64) << 48;
            *place = select_unpredictable(later == 0, one_code(half, said), many);
        }
    }

    /// The same where some are.
    fn group_children(&mut self, node: Node<'_>, first: usize, code: u16, wide: bool) {
        let octets = 1 + u64::from(wide);
        let leaves_at = 8 * (ENTRIES_AT + self.children.len()) as u64;
        // The children come in order of leaf, as the groups do.
        let mut next = 0;
        for (at, (starts, last)) in node.halves().enumerate() {
            let later = starts >> 1;
            let runs = later.count_ones() as usize;
            let entry = ENTRIES_AT + self.entries.len();
            let mut escapes = false;
            while let Some(index) = self.children.get(next).copied()
                && index <= last
            {
                next += 1;
                let child = node.child(node.leaf(index));
                let own = if child.code() == 0 {
                    code
                } else {
                    child.code()
                };
                self.largest = self.largest.max(own);
                let slot = at * DENSE_SLOTS + slot_of_run(later, runs + index - last);
                self.entries
                    .push(child.with_code(own).0 | (slot as u64) << 16);
                escapes = true;
            }
            if runs == 0 && !escapes {
                self.groups
                    .push(one_code(at, said(node.leaf(last), code, wide)));
                continue;
            }
            let octet = leaves_at + (last - first) as u64 * octets;
            let own = if escapes { entry as u64 } else { 0 };
            self.groups.push(
                u64::from(later)
                    | u64::from(escapes) << 31
                    | own << 32
                    | (octet + u64::from(escapes) * octets) << 48,
            );
        }
    }

    /// Reads the leaves of `node` from that at `first` on, and notes which are children.
    fn read_leaves(&mut self, node: Node<'_>, first: usize, code: u16, wide: bool) {
        let count = node.leaf_end() - first;
        let cells = node.cells.get(first / 4..).unwrap_or_default();
        let cells = cells.iter().take(count.div_ceil(4));
        // The first leaf begins a cell.
        self.said.clear();
        self.said.extend(cells.flat_map(|cell| {
            let four = cell.load(Ordering::Relaxed);
            [0, 16, 32, 48].map(|place| (four >> place & 0xffff) as u16)
        }));
        self.said.truncate(count);
        let mut some = 0;
        let mut largest = 0;
        for leaf in &mut self.said {
            some |= *leaf;
            let code = said(*leaf, code, wide);
            let child = u64::from(*leaf) & NARROW_CHILD != 0;
            largest = largest.max(if child { 0 } else { code });
            *leaf = code;
        }
        self.largest = self.largest.max(largest);
        if u64::from(some) & NARROW_CHILD != 0 {
            let is_child = |index: &usize| u64::from(node.leaf(*index)) & NARROW_CHILD != 0;
            self.children
                .extend((first..first + count).filter(is_child));
        }
        self.leaves.clear();
        if wide {
            self.leaves
                .extend(self.said.iter().flat_map(|said| said.to_le_bytes()));
        } else {
            self.leaves
                .extend(self.said.iter().map(|said| (said & 0xff) as u8));
        }
    }

    pub(super) fn cells(&self) -> usize {
        ENTRIES_AT + self.entries.len() + self.leaves.len().div_ceil(8)
    }

    pub(super) fn write(&self, block: &[AtomicU64], epoch: u64) {
        let blank = if self.blank { BLANK } else { 0 };
        let leaves = self.leaves.len().div_ceil(8);
        store(
            block,
            0,
            leaves as u64 | blank | (self.entries.len() as u64) << 32,
        );
        store(block, EPOCH_CELL, epoch);
        for (at, group) in self.groups.iter().enumerate() {
            store(block, GROUPS_AT + at, *group);
        }
        for (at, entry) in self.entries.iter().enumerate() {
            store(block, ENTRIES_AT + at, *entry);
        }
        write_leaves(block, ENTRIES_AT + self.entries.len(), &self.leaves);
    }
}

/// What groups of a block become by a change of a few slots.
#[derive(Debug)]
pub(super) struct Patch {
    first: usize,
    /// Cells of leaves that the block gets.
    pub(super) added: usize,
}

/// A group of a [`Patch`]: its cell, and its leaves, which begin at a cell of their own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patched {
    cell: u64,
    at: usize,
    leaves: [u8; MOST_LEAVES],
    octets: usize,
}

impl Patch {
    /// What the `changed` slots of `node` make of its block's groups, the first and the last slot; `None` when the block
    /// is to be made anew. The groups go to `groups`.
    pub(super) fn new(
        node: Node<'_>,
        block: &[AtomicU64],
        changed: (usize, usize),
        (code, wide): (u16, bool),
        groups: &mut Vec<Patched>,
    ) -> Option<Self> {
        let (header, end) = (load(block, 0), cells_of(block));
        let (first, last) = (changed.0 / DENSE_SLOTS, changed.1 / DENSE_SLOTS);
        let count = last - first + 1;
        if header & BLANK != 0 || count > PATCH {
            return None;
        }
        let added_before = (header >> 48) as usize;
        let mut patch = Self { first, added: 0 };
        let octets = 1 + usize::from(wide);
        groups.clear();
        for at in 0..count {
            let mut group = Patched {
                cell: 0,
                at: 0,
                leaves: [0; MOST_LEAVES],
                octets: 0,
            };
            let before = load(block, GROUPS_AT + first + at);
            if before >> 31 & 1 == 1 {
                return None;
            }
            let (starts, last) = node.half(first + at);
            let later = starts >> 1;
            let runs = later.count_ones() as usize;
            let mut largest = 0;
            let places = group.leaves.chunks_exact_mut(octets);
            for (index, place) in (last - runs..=last).zip(places) {
                let code = said(node.leaf(index), code, wide);
                largest = code.max(largest);
                for (octet, value) in place.iter_mut().zip(code.to_le_bytes()) {
                    *octet = value;
                }
            }
            // The escape of a leaf that is a child is as large, too.
            if largest >= escape(wide) {
                return None;
            }
            if runs == 0 {
                group.cell = one_code(first + at, largest);
                groups.push(group);
                continue;
            }
            group.octets = (runs + 1) * octets;
            // What a change before has added for this group alone is written over if it is large enough.
            let (had, ends) = run_of(before, octets);
            let own = had > 0 && 8 * (end - added_before) <= ends - had;
            group.at = if own && had.div_ceil(8) >= group.octets.div_ceil(8) {
                (ends - had) / 8
            } else {
                patch.added += group.octets.div_ceil(8);
                end + patch.added - group.octets.div_ceil(8)
            };
            let octet = 8 * group.at + group.octets - octets;
            group.cell = u64::from(later) | (octet as u64) << 48;
            groups.push(group);
        }
        (added_before + patch.added <= MOST_ADDED).then_some(patch)
    }

    /// Writes the block `from`, so changed in `groups`, to `to`, which may be where it is.
    pub(super) fn write(
        &self,
        groups: &[Patched],
        from: &[AtomicU64],
        to: &[AtomicU64],
        epoch: u64,
    ) {
        let (header, end) = (load(from, 0), cells_of(from));
        if !core::ptr::eq(from, to) {
            copy_cells(from, to, end);
        }
        let added = self.added as u64;
        store(to, 0, header + added + (added << 48));
        store(to, EPOCH_CELL, epoch);
        for (at, group) in groups.iter().enumerate() {
            store(to, GROUPS_AT + self.first + at, group.cell);
            let leaves = group.leaves.get(..group.octets).unwrap_or_default();
            write_leaves(to, group.at, leaves);
        }
    }
}

/// The octets of leaves of the group whose cell is `cell`, and the octet after the last; 0 when it says one thing.
const fn run_of(cell: u64, octets: usize) -> (usize, usize) {
    let runs = ((cell & 0xffff_ffff) as u32).count_ones() as usize;
    if runs == 0 {
        return (0, 0);
    }
    ((runs + 1) * octets, (cell >> 48) as usize + octets)
}

/// Where run `number` of a group starts: the first at slot 0, later ones at the slot after each bit of `later`.
fn slot_of_run(mut later: u32, number: usize) -> usize {
    if number == 0 {
        return 0;
    }
    for _ in 1..number {
        later &= later.wrapping_sub(1);
    }
    1 + later.trailing_zeros() as usize
}

/// What a leaf of a chunk into which `code` is pushed says.
fn said(leaf: u16, code: u16, wide: bool) -> u16 {
    if u64::from(leaf) & NARROW_CHILD != 0 {
        escape(wide)
    } else if leaf == 0 {
        code
    } else {
        leaf
    }
}

fn write_leaves(block: &[AtomicU64], first: usize, leaves: &[u8]) {
    let (eights, rest) = leaves.as_chunks::<8>();
    for (at, eight) in eights.iter().enumerate() {
        store(block, first + at, u64::from_le_bytes(*eight));
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        for (place, leaf) in last.iter_mut().zip(rest) {
            *place = *leaf;
        }
        store(block, first + eights.len(), u64::from_le_bytes(last));
    }
}

/// The cell of group `at`, all of whose slots say `code`.
const fn one_code(at: usize, code: u16) -> u64 {
    (code as u64) << 32 | ((8 * (GROUPS_AT + at) + 4) as u64) << 48
}

/// Groups of a chunk.
pub(in super::super) const GROUPS: usize = CHUNK.slots() / DENSE_SLOTS;
pub(super) const EPOCH_CELL: usize = 1;
/// The cell of the first group.
pub(in super::super) const GROUPS_AT: usize = 2;
/// The cell of the first entry, or of the first leaves where there is none.
pub(in super::super) const ENTRIES_AT: usize = GROUPS_AT + GROUPS;
/// The most cells of a block: an entry and a leaf of two octets for each slot, and leaves added.
pub(in super::super) const MOST_CELLS: usize =
    ENTRIES_AT + CHUNK.slots() + CHUNK.slots() / 4 + MOST_ADDED;
/// Octets of a block are counted in 16 bits.
const _: () = assert!(8 * MOST_CELLS < 1 << 16);
/// The bit of a block's first cell that says that slots without a chunk share it.
const BLANK: u64 = 1 << 16;

/// Groups that are changed one by one; a change of more makes the block anew.
const PATCH: usize = 8;
/// Octets of leaves that one of them can have.
const MOST_LEAVES: usize = DENSE_SLOTS * 2;
/// Cells of leaves that are added before the block is made anew.
const MOST_ADDED: usize = 32;
