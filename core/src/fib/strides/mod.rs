//! A worker's own copy of what lookups read of a large IPv6 table.
//!
//! In a snapshot a batch asks a hash for three windows of each address, since the trie, which shares all that did not
//! change with the snapshot before, goes too far down from node to node. Who has a copy to himself can have its nodes so
//! small and so near to each other that the way down is the faster one: an octet of the address a step, and of each
//! node one cache line, or of a node with many runs two. Single lookups begin halfway down (`middles.rs`). The copy
//! follows a newer snapshot in the routes that changed.
//!
//! ```text
//!   root, by 13 bits -> top, by the next 11 -> node for 8 bits -> node for 8 bits -> node for 8 bits, up to /48
//!                          \ next hop            \ next hop         \ next hop         \ next hop, or ASK
//! ```
//!
//! The next hop of the longest prefix is that of the last step that has one. Below /48 the trie is asked: such slots
//! say [`ASK`].
//!
//! | octets of a node, few runs | content |
//! |------|---------|
//! | 0..8 | the last slots of all runs but the last one, in order; behind them 255 |
//! | 8.. | a leaf for each run, at most nine |
//!
//! | octets of a node, many runs | content |
//! |------|---------|
//! | 0..40 | for each 32 slots a cell of five octets: 32 bits that say where runs start, and how many start before, more by what is between the eighth octet and the first leaf, in leaves, less one |
//! | 40 or some more.. | a leaf for each run |
//!
//! | bits of a leaf | of a wide one | content |
//! |------|------|---------|
//! | 0..8 | 0..16 | next hop code, 0 for none |
//! | 8 | 16 | whether the node below has many runs |
//! | 9..32 | 17..40 | where it is, in grains of 16 octets; 0 for none |
//!
//! Leaves are wide where some code takes two octets. The code below reads and writes them as wide ones.
//!
//! Nodes that end at /48 have nothing below; their leaves are the first two octets. A root entry is a next hop code, and
//! from bit 32 on the octet that the top begins with, which has a leaf for each of its slots.

mod follow;
mod layout;
mod middles;
mod starts;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cmp::Ordering;

use super::node::{CHUNK_STRIDE, Entry, ROOT_STRIDE, Shape};
use super::walk::View;
use super::windows::ASK;
pub(super) use follow::said;
pub(super) use layout::WIDE;
use layout::{CELL, FEW, GRAIN, GROUPS, LAST, Layout, first_of, is_many};
#[cfg(target_arch = "x86_64")]
pub(super) use layout::{CODE, NARROW};
use middles::Middles;
#[cfg(target_arch = "x86_64")]
pub(super) use middles::{NODES, line_of};
use starts::Starts;

/// The copy.
#[derive(Debug)]
pub(super) struct Strides {
    roots: Box<[u64; ROOTS]>,
    layout: Layout,
    /// Tops and nodes, and [`BEHIND`] octets.
    octets: Vec<u8>,
    /// Tops that are not in use.
    free_tops: Vec<u32>,
    tops: usize,
    /// Nodes that are not in use, by [`grains`].
    free: [Vec<u32>; SIZES],
    /// Octets of nodes in use.
    used: usize,
    /// Runs of nodes that are being made, those of a node above before those of one below.
    runs: Vec<Run>,
    /// The nodes for the octet after /32.
    middles: Middles,
}

/// A run of a node: its first slot, and what it says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Run {
    first: u8,
    leaf: u64,
}

/// A node of the trie that is under a place of this depth: at that place, or octets further down, with nothing between.
#[derive(Clone, Copy, Debug)]
struct Below {
    handle: u32,
    depth: u8,
}

/// What a node of the trie says about the slots up to `last`.
#[derive(Clone, Copy, Debug)]
struct Says {
    last: usize,
    code: u16,
    below: Option<Below>,
}

impl Strides {
    /// A copy of the table of `view`; `None` where that is too large, or too scattered, for one.
    pub(super) fn of(view: &View<'_>, routes: usize) -> Option<Box<Self>> {
        if routes > MOST_ROUTES || view.slots.len() != ROOTS {
            return None;
        }
        let tops = view.slots.iter().filter(|slot| Entry(**slot).has_child());
        if tops.count() > MOST_TOPS {
            return None;
        }
        [false, true]
            .into_iter()
            .find_map(|wide| Self::laid_out(view, routes, Layout { wide }))
    }

    /// A copy with that layout, if it is one for all codes.
    fn laid_out(view: &View<'_>, routes: usize, layout: Layout) -> Option<Box<Self>> {
        let mut octets = Vec::with_capacity(ROOM + routes * OCTETS_A_ROUTE);
        octets.resize(FIRST + BEHIND, 0);
        // The node that is nowhere: one run without anything.
        octets.get_mut(..8)?.fill(255);
        let roots = alloc::vec![(NO_TOP as u64) << 32; ROOTS].into_boxed_slice();
        let mut strides = Box::new(Self {
            roots: roots.try_into().ok()?,
            layout,
            octets,
            free_tops: Vec::new(),
            tops: 0,
            free: [const { Vec::new() }; SIZES],
            used: 0,
            runs: Vec::new(),
            middles: Middles::default(),
        });
        for slot in 0..ROOTS {
            strides.refresh_root(view, slot)?;
        }
        strides.fill_middles()?;
        Some(strides)
    }

    /// Makes the hash of all nodes for the octet after /32 anew.
    fn fill_middles(&mut self) -> Option<()> {
        let mut nodes = Vec::new();
        self.each_middle(|key, node| {
            nodes.push((key, node));
            Some(())
        })?;
        self.middles = Middles::of(&nodes)?;
        Some(())
    }

    /// Gives `to` all nodes for the octet after /32, each with the 32 bits before it.
    fn each_middle(&self, mut to: impl FnMut(u32, u64) -> Option<()>) -> Option<()> {
        for root in 0..ROOTS {
            let top = self.top(root)?;
            for slot in 0..if top == NO_TOP { 0 } else { 1 << CHUNK_STRIDE } {
                let node = self.leaf(top + self.layout.width(0) * slot)? >> 16;
                if node == 0 {
                    continue;
                }
                // Each has a run of its own in the node above it.
                for octet in self.starts(node)? {
                    let below = self.leaf_in(node, MIDDLE - 8, octet)? >> 16;
                    if below != 0 {
                        let key = (root << CHUNK_STRIDE | slot) << 8 | octet;
                        to(u32::try_from(key).ok()?, below)?;
                    }
                }
            }
        }
        Some(())
    }

    /// The node for the octet after /32 of `key`; 0 for none.
    fn middle(&self, key: u128) -> Option<u64> {
        let top = self.top(Shape::at(0, 128).slot(key))?;
        let slot = Shape::at(ROOT_STRIDE, 128).slot(key);
        let node = self.leaf(top + self.layout.width(0) * slot)? >> 16;
        if node == 0 {
            return Some(0);
        }
        let octet = Shape::at(MIDDLE - 8, 128).slot(key);
        Some(self.leaf_in(node, MIDDLE - 8, octet)? >> 16)
    }

    /// Whether most of what there is is in no use.
    pub(super) fn is_scattered(&self) -> bool {
        self.octets.len() > ROOM + 2 * self.used + self.tops * TOP
    }

    pub(super) fn size(&self) -> usize {
        let free: usize = self.free.iter().map(Vec::capacity).sum();
        size_of::<Self>()
            + size_of_val(&*self.roots)
            + self.octets.capacity()
            + (free + self.free_tops.capacity()) * size_of::<u32>()
            + self.runs.capacity() * size_of::<Run>()
            + self.middles.size()
    }

    /// Whether leaves have codes of two octets.
    #[cfg(target_arch = "x86_64")]
    pub(super) const fn is_wide(&self) -> bool {
        self.layout.wide
    }

    /// Root entries: the upper half of each is a place with [`TOP`] octets and [`BEHIND`] octets more.
    #[cfg(target_arch = "x86_64")]
    pub(super) const fn roots(&self) -> &[u64; ROOTS] {
        &self.roots
    }

    /// Whether a root entry has a top.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) const fn has_top(root: u64) -> bool {
        root >> 32 != NO_TOP as u64
    }

    /// The nodes for the octet after /32: each is one of the copy.
    #[cfg(target_arch = "x86_64")]
    pub(super) const fn middles(&self) -> &Middles {
        &self.middles
    }

    /// Tops and nodes. Behind each place that a leaf names there are [`BEHIND`] octets.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn octets(&self) -> &[u8] {
        &self.octets
    }

    /// The first octet of the top of a root slot.
    fn top(&self, slot: usize) -> Option<usize> {
        usize::try_from(self.roots.get(slot)? >> 32).ok()
    }

    /// Makes a node of what is `below` at `depth`, and all nodes below it. What leaves say of it.
    fn build(&mut self, view: &View<'_>, below: Below, depth: u8) -> Option<u64> {
        let begin = self.runs.len();
        let mut slot = 0;
        while slot < SLOTS {
            let says = below.says(view, depth, slot);
            let child = match says.below {
                Some(below) if depth < LAST => self.build(view, below, depth + 8)?,
                _ => 0,
            };
            self.push(begin, slot, says.leaf(depth, child))?;
            slot = says.last + 1;
        }
        let mut starts = Starts::default();
        for run in self.runs.get(begin..)? {
            starts.start(run.first.into());
        }
        let count = self.runs.len() - begin;
        let node = self.room(count, depth)?;
        self.write_starts(node, depth, starts)?;
        self.write_leaves(
            first_of(node) + self.layout.leaves_at(count, depth),
            depth,
            begin,
        )?;
        self.runs.truncate(begin);
        Some(node)
    }

    /// Adds a run from `slot` on to those from `begin` on, unless the last of them says the same.
    fn push(&mut self, begin: usize, slot: usize, leaf: u64) -> Option<()> {
        let before = self.runs.get(begin..)?.last();
        if before.is_none_or(|run| run.leaf != leaf) {
            let first = u8::try_from(slot).ok()?;
            self.runs.push(Run { first, leaf });
        }
        Some(())
    }

    /// Frees a node and all below it.
    fn drop_node(&mut self, node: u64, depth: u8) -> Option<()> {
        if node == 0 {
            return Some(());
        }
        let count = self.starts(node)?.count();
        if depth < LAST {
            let leaves = first_of(node) + self.layout.leaves_at(count, depth);
            for run in 0..count {
                self.drop_node(
                    self.leaf(leaves + self.layout.width(depth) * run)? >> 16,
                    depth + 8,
                )?;
            }
        }
        self.free_node(node, count, depth)
    }

    /// Writes the top at `top`, which is of the chunk of `entry`.
    fn fill_top(&mut self, view: &View<'_>, entry: Entry, top: usize) -> Option<()> {
        let shape = Shape::at(ROOT_STRIDE, 128);
        let node = view.node(entry.handle(), shape);
        let mut slot = 0;
        while slot < shape.slots() {
            let (says, last) = (node.entry(slot), node.last_of_run(slot));
            let below = match Below::of(says, shape.end()) {
                Some(below) => self.build(view, below, shape.end())?,
                None => 0,
            };
            let leaf = u64::from(says.code()) | below << 16;
            for slot in slot..=last {
                self.set_leaf(top + self.layout.width(0) * slot, leaf)?;
            }
            slot = last + 1;
        }
        Some(())
    }

    fn new_top(&mut self) -> Option<usize> {
        if self.tops == MOST_TOPS {
            return None;
        }
        self.tops += 1;
        match self.free_tops.pop() {
            Some(top) => usize::try_from(top).ok(),
            None => self.grow(TOP),
        }
    }

    fn drop_top(&mut self, top: usize) -> Option<()> {
        for slot in 0..1 << CHUNK_STRIDE {
            let at = top + self.layout.width(0) * slot;
            self.drop_node(self.leaf(at)? >> 16, ROOT_STRIDE + CHUNK_STRIDE)?;
            self.set_leaf(at, 0)?;
        }
        self.tops -= 1;
        self.free_tops.push(u32::try_from(top).ok()?);
        Some(())
    }

    /// Room for a node of so many runs: what leaves are to say of it.
    fn room(&mut self, runs: usize, depth: u8) -> Option<u64> {
        let grains = self.layout.grains(runs, depth);
        self.used += grains * GRAIN;
        let place = self.place(grains)?;
        Some(u64::from(place) << 1 | u64::from(runs > FEW))
    }

    /// A place of so many grains: of up to four within a line, of more from the beginning of a line.
    fn place(&mut self, grains: usize) -> Option<u32> {
        if let Some(place) = self.free.get_mut(grains)?.pop() {
            return Some(place);
        }
        if grains == 1 {
            let place = self.place(2)?;
            self.free.get_mut(1)?.push(place + 1);
            return Some(place);
        }
        // What is left of the last line is for smaller nodes.
        let lines = (grains * GRAIN).next_multiple_of(LINE);
        let place = u32::try_from(self.grow(lines)? / GRAIN).ok()?;
        let left = lines / GRAIN - grains;
        if left > 0 {
            let behind = place + u32::try_from(grains).ok()?;
            self.free.get_mut(left)?.push(behind);
        }
        Some(place)
    }

    /// New octets, a multiple of a line, that are 0.
    fn grow(&mut self, octets: usize) -> Option<usize> {
        let place = self.octets.len().checked_sub(BEHIND)?;
        if place + octets > MOST_OCTETS {
            return None;
        }
        self.octets.resize(place + octets + BEHIND, 0);
        Some(place)
    }

    fn free_node(&mut self, node: u64, runs: usize, depth: u8) -> Option<()> {
        let grains = self.layout.grains(runs, depth);
        self.used -= grains * GRAIN;
        let place = u32::try_from(node >> 1).ok()?;
        self.free.get_mut(grains)?.push(place);
        Some(())
    }

    /// Where the runs of a node start.
    fn starts(&self, node: u64) -> Option<Starts> {
        let first = first_of(node);
        if is_many(node) {
            let mut groups = [0; GROUPS];
            for (number, group) in groups.iter_mut().enumerate() {
                let [a, b, c, d, ..] = self.five(first + CELL * number)?.to_le_bytes();
                *group = u32::from_le_bytes([a, b, c, d]);
            }
            return Some(Starts::of(groups));
        }
        let mut starts = Starts::default();
        starts.start(0);
        for end in self.octets.get(first..first + FEW - 1)? {
            // That of the last slot is no start.
            starts.start(usize::from(*end) + 1);
        }
        Some(starts)
    }

    /// Writes where the runs of a node start, which has room for so many.
    fn write_starts(&mut self, node: u64, depth: u8, starts: Starts) -> Option<()> {
        let first = first_of(node);
        if is_many(node) {
            let mut before = self.layout.many_leaves(depth) - 1;
            for (number, group) in starts.groups().into_iter().enumerate() {
                let cell = u64::from(group) | (before as u64 & 0xff) << 32;
                self.set_five(first + CELL * number, cell)?;
                before += group.count_ones() as usize;
            }
            return Some(());
        }
        let mut ends = [255; FEW - 1];
        for (end, slot) in ends.iter_mut().zip(starts.from(1)) {
            *end = u8::try_from(slot - 1).ok()?;
        }
        *self.octets.get_mut(first..)?.first_chunk_mut()? = ends;
        Some(())
    }

    /// Writes the leaves of the runs from `begin` on, the first at `at`.
    fn write_leaves(&mut self, at: usize, depth: u8, begin: usize) -> Option<()> {
        let Self { octets, runs, .. } = self;
        let octets = octets.get_mut(at..)?;
        let runs = runs.get(begin..)?;
        for (place, run) in octets.chunks_exact_mut(self.layout.width(depth)).zip(runs) {
            let leaf = if depth == LAST {
                run.leaf.to_le_bytes()
            } else {
                self.layout.pack(run.leaf)?
            };
            for (octet, new) in place.iter_mut().zip(leaf) {
                *octet = new;
            }
        }
        Some(())
    }

    /// Where the leaf of `slot` of a node is.
    fn leaf_of(&self, node: u64, depth: u8, slot: usize) -> Option<usize> {
        let first = first_of(node);
        let run = if is_many(node) {
            let cell = self.five(first + CELL * (slot / 32))?;
            let starts = (cell & 0xffff_ffff) << (31 - slot % 32) & 0xffff_ffff;
            (cell >> 32) as usize + starts.count_ones() as usize
        } else {
            let ends = self.octets.get(first..first + FEW - 1)?;
            ends.iter().filter(|end| usize::from(**end) < slot).count()
        };
        Some(first + FEW - 1 + self.layout.width(depth) * run)
    }

    /// The leaf of `slot` of a node at `depth`.
    fn leaf_in(&self, node: u64, depth: u8, slot: usize) -> Option<u64> {
        let at = self.leaf_of(node, depth, slot)?;
        if depth == LAST {
            return Some(self.five(at)? & 0xffff);
        }
        self.leaf(at)
    }

    /// The leaf at `at`, which is not of the last nodes.
    fn leaf(&self, at: usize) -> Option<u64> {
        self.five(at).map(|octets| self.layout.unpack(octets))
    }

    fn set_leaf(&mut self, at: usize, leaf: u64) -> Option<()> {
        let leaf = self.layout.pack(leaf)?;
        let place = self.octets.get_mut(at..at + self.layout.width(0))?;
        for (octet, new) in place.iter_mut().zip(leaf) {
            *octet = new;
        }
        Some(())
    }

    /// The five octets at `at`.
    fn five(&self, at: usize) -> Option<u64> {
        let [a, b, c, d, e] = *self.octets.get(at..)?.first_chunk()?;
        Some(u64::from_le_bytes([a, b, c, d, e, 0, 0, 0]))
    }

    fn set_five(&mut self, at: usize, octets: u64) -> Option<()> {
        let [a, b, c, d, e, ..] = octets.to_le_bytes();
        *self.octets.get_mut(at..)?.first_chunk_mut()? = [a, b, c, d, e];
        Some(())
    }
}

#[cfg(test)]
impl Strides {
    /// All that is said, in order, without where it is; and that nothing is in use twice or lost.
    pub(super) fn content(&self) -> Vec<u64> {
        let (mut content, mut used) = (Vec::new(), 0);
        for slot in 0..ROOTS {
            content.push(self.roots[slot] & 0xffff);
            let top = self.top(slot).unwrap();
            for slot in 0..1 << CHUNK_STRIDE {
                let leaf = self.leaf(top + self.layout.width(0) * slot).unwrap();
                if top != NO_TOP {
                    self.content_of(leaf, ROOT_STRIDE + CHUNK_STRIDE, &mut content, &mut used);
                } else {
                    assert_eq!(leaf, 0);
                }
            }
        }
        assert_eq!(used, self.used);
        let sizes = (0..).step_by(GRAIN);
        let free: usize = self
            .free
            .iter()
            .zip(sizes)
            .map(|(free, size)| free.len() * size)
            .sum();
        let tops = (self.tops + self.free_tops.len()) * TOP;
        assert_eq!(FIRST + used + free + tops + BEHIND, self.octets.len());
        self.check_middles();
        content
    }

    /// That the hash has the nodes for the octet after /32 where they are, and nothing else. Gives how many it has, and
    /// for how many there was no place.
    pub(super) fn check_middles(&self) -> (usize, usize) {
        let (mut had, mut lost) = (0, 0);
        self.each_middle(|key, node| {
            match self.middles.node(key) {
                Some(place) => {
                    let many = usize::from(is_many(node));
                    assert_eq!(place as usize, first_of(node) | many, "{key:x}");
                    had += 1;
                }
                None => lost += 1,
            }
            Some(())
        })
        .unwrap();
        assert_eq!(self.middles.count(), had);
        (had, lost)
    }

    fn content_of(&self, leaf: u64, depth: u8, content: &mut Vec<u64>, used: &mut usize) {
        content.push(leaf & 0xffff);
        let node = leaf >> 16;
        if node == 0 {
            return;
        }
        let starts = self.starts(node).unwrap();
        let count = starts.count();
        assert_eq!(is_many(node), count > FEW);
        *used += GRAIN * self.layout.grains(count, depth);
        for slot in starts {
            content.push(1 << 16 | slot as u64);
            let leaf = self.leaf_in(node, depth, slot).unwrap();
            self.content_of(leaf, depth + 8, content, used);
        }
    }
}

impl Below {
    /// What is below a slot that ends at `depth`.
    fn of(entry: Entry, depth: u8) -> Option<Self> {
        entry.has_child().then(|| Self {
            handle: entry.handle(),
            depth: depth + 8 * entry.skip(),
        })
    }

    /// What it says about `slot`, an octet at `depth`, and those after it that are the same.
    fn says(self, view: &View<'_>, depth: u8, slot: usize) -> Says {
        let node = view.node(self.handle, Shape::at(self.depth, 128));
        if self.depth == depth {
            let entry = node.entry(slot);
            return Says {
                last: node.last_of_run(slot),
                code: entry.code(),
                below: Self::of(entry, depth + 8),
            };
        }
        // The one octet that leads further down.
        let behind = u32::from(self.depth).saturating_sub(8 + u32::from(depth));
        let [only, ..] = node
            .expected()
            .checked_shr(behind)
            .unwrap_or(0)
            .to_le_bytes();
        let only = usize::from(only);
        let (last, below) = match slot.cmp(&only) {
            Ordering::Less => (only - 1, None),
            Ordering::Equal => (only, Some(self)),
            Ordering::Greater => (SLOTS - 1, None),
        };
        Says {
            last,
            code: 0,
            below,
        }
    }
}

impl Says {
    /// The leaf for it, with a node below it that is `child`.
    fn leaf(self, depth: u8, child: u64) -> u64 {
        let asks = depth == LAST && self.below.is_some();
        u64::from(self.code | if asks { ASK } else { 0 }) | child << 16
    }
}

/// The depth of the nodes that single lookups begin at.
const MIDDLE: u8 = 32;
/// Root slots.
pub(super) const ROOTS: usize = 1 << ROOT_STRIDE;
/// Slots of a node.
const SLOTS: usize = 256;
const LINE: usize = 64;
/// The most grains of a node, and 1: that of 256 runs.
const SIZES: usize = Layout { wide: true }.grains(SLOTS, 0) + 1;
/// Octets of a top.
const TOP: usize = WIDE << CHUNK_STRIDE;
/// The top of root slots that have none: nothing but zeros, behind the node that is nowhere.
const NO_TOP: usize = LINE;
/// The first octet of what is somewhere.
const FIRST: usize = LINE + TOP;
/// Octets behind all others, so that those of any place and any count of runs are there: leaves are at most 255 and 32
/// after the eighth octet of a node, and eight octets are read.
pub(super) const BEHIND: usize = 1536;
/// What leaves can name.
const MOST_OCTETS: usize = GRAIN << 23;
/// So many routes take less than that: each of at most 32 octets in two nodes and 16 in a third, however they lie.
const MOST_ROUTES: usize = 1 << 19;
/// A top is ten thousand octets, so that a table of few routes in many /13 has no copy.
const MOST_TOPS: usize = 64;
/// Octets for which there is room from the beginning; none of it is touched before it is used.
const ROOM: usize = 1 << 20;
const OCTETS_A_ROUTE: usize = 20;

const _: () = assert!(BEHIND >= FEW - 1 + WIDE * (255 + 32) + 8, "see there");
const _: () = assert!(
    TOP.is_multiple_of(LINE) && FIRST.is_multiple_of(LINE),
    "nodes begin with a line"
);
