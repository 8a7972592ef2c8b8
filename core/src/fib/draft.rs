//! A node taken apart, for changing it: run starts, leaves and routes side by side.
//!
//! The writer reads a node into its one draft, changes that, and writes it into a block of its own. The layout in
//! cells is `node.rs`'s.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use super::arena::{load, put, store};
use super::node::{
    DENSE, Entry, Extent, GROUP_SLOTS, Gaps, NARROW_CHILD, Node, ROOT_GROUPS, RouteCell, RouteList,
    SPREAD, Shape, TOP_CELL, group_cell,
};

/// A node taken apart, for changing it.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) shape: Shape,
    pub(super) skip: u8,
    pub(super) expected: u64,
    pub(super) routes: Vec<RouteCell>,
    starts: [u64; ROOT_GROUPS],
    leaves: Vec<Entry>,
    /// How many of `leaves` have a child.
    children: usize,
    fresh: Vec<Entry>,
}

impl Draft {
    pub(super) fn new() -> Self {
        Self {
            shape: Shape::at(0, 128),
            skip: 0,
            expected: 0,
            routes: Vec::new(),
            starts: [0; ROOT_GROUPS],
            leaves: Vec::new(),
            children: 0,
            fresh: Vec::new(),
        }
    }

    /// Makes this a node without routes or children.
    pub(super) fn clear(&mut self, shape: Shape, skip: u8, expected: u64) {
        self.shape = shape;
        self.skip = skip;
        self.expected = expected;
        self.routes.clear();
        self.starts = [0; ROOT_GROUPS];
        if let Some(first) = self.starts.first_mut() {
            *first = 1;
        }
        self.leaves.clear();
        self.leaves.push(Entry::default());
        self.children = 0;
    }

    /// Makes this a copy of `node`.
    pub(super) fn read(&mut self, node: Node<'_>) {
        let shape = node.shape;
        self.shape = shape;
        self.skip = node.skip();
        self.expected = node.expected();
        for (group, starts) in self.starts.iter_mut().take(shape.groups()).enumerate() {
            *starts = node.starts(group);
        }
        self.leaves.clear();
        let extent = node.extent();
        let first = node.leaf_before(0) + 1;
        if shape.narrow {
            let entries = node.cells.get(node.starts_end()..).unwrap_or_default();
            let count = node.leaf_end() - first;
            let leaves = node.cells.get(first / 4..extent.lookup).unwrap_or_default();
            self.leaves.resize(leaves.len() * 4, Entry::default());
            for (cell, places) in leaves.iter().zip(self.leaves.chunks_exact_mut(4)) {
                let four = cell.load(Ordering::Relaxed);
                for (leaf, place) in [four, four >> 16, four >> 32, four >> 48]
                    .into_iter()
                    .zip(places)
                {
                    *place = Entry(leaf & 0xffff);
                }
            }
            self.leaves.truncate(count);
            self.children = first / 4 - node.starts_end();
            if self.children > 0 {
                for leaf in &mut self.leaves {
                    if leaf.0 & NARROW_CHILD != 0 {
                        *leaf = Entry(load(entries, (leaf.0 & 0x7fff) as usize));
                    }
                }
            }
        } else {
            let leaves = node.cells.get(first..extent.lookup).unwrap_or_default();
            self.leaves.extend(
                leaves
                    .iter()
                    .map(|leaf| Entry(leaf.load(Ordering::Relaxed))),
            );
            self.children = self.leaves.iter().filter(|entry| entry.has_child()).count();
        }
        let routes = node.cold_cells().get(1..extent.routes).unwrap_or_default();
        self.routes.resize(routes.len() * 2, RouteCell::default());
        for (cell, places) in routes.iter().zip(self.routes.chunks_exact_mut(2)) {
            let two = cell.load(Ordering::Relaxed);
            for (route, place) in [two, two >> 32].into_iter().zip(places) {
                *place = RouteCell((route & 0xffff_ffff) as u32);
            }
        }
        self.routes.truncate(node.route_count());
    }

    /// The cells that the draft takes.
    pub(super) fn extent(&self) -> Extent {
        let before = self.starts_end();
        let leaves = if self.shape.narrow {
            self.children + self.leaves.len().div_ceil(4)
        } else {
            self.leaves.len()
        };
        Extent {
            lookup: before + leaves,
            routes: 1 + self.routes.len().div_ceil(2),
        }
    }

    /// Writes the draft into `cells` and the cold block `cold`, which hold [`extent`](Self::extent) of them.
    pub(super) fn write(&self, cells: &[AtomicU64], handle: u32, cold: &[AtomicU64], epoch: u64) {
        let shape = self.shape;
        store(
            cells,
            0,
            u64::from(handle) << 32
                | if shape.dense { DENSE } else { 0 }
                | if shape.spread { SPREAD } else { 0 }
                | u64::from(self.skip) << 14
                | self.routes.len() as u64,
        );
        if !shape.narrow {
            let unused = 64 - 8 * u32::from(self.skip);
            store(cells, 1, self.expected.checked_shl(unused).unwrap_or(0));
        }
        let entries = self.starts_end();
        let first = if shape.narrow {
            (entries + self.children) * 4
        } else {
            entries
        };
        let mut leaf = first - 1;
        let starts = self.starts.get(..shape.groups()).unwrap_or_default();
        if shape.dense {
            let (mut at, mut top) = (shape.starts_at(), 0);
            for (half, starts) in starts.iter().flat_map(|starts| halves(*starts)).enumerate() {
                if starts == 0 && shape.has_top() {
                    continue;
                }
                leaf += starts.count_ones() as usize;
                store(cells, at, group_cell(starts, leaf));
                at += 1;
                top |= 1 << half;
            }
            if shape.has_top() {
                store(cells, TOP_CELL, top);
            }
        } else {
            for (at, four) in starts.chunks(4).enumerate() {
                let mut counts = 0;
                for (place, starts) in four.iter().enumerate() {
                    store(cells, shape.starts_at() + 4 * at + place, *starts);
                    counts |= (leaf as u64) << (16 * place);
                    leaf += starts.count_ones() as usize;
                }
                store(cells, shape.header() + at, counts);
            }
        }
        if shape.narrow {
            let mut child = 0;
            for (at, four) in (first / 4..).zip(self.leaves.chunks(4)) {
                let mut cell = 0;
                for (place, entry) in four.iter().enumerate() {
                    let leaf = if entry.has_child() {
                        store(cells, entries + child, entry.0);
                        child += 1;
                        NARROW_CHILD | (child as u64 - 1)
                    } else {
                        u64::from(entry.code())
                    };
                    cell |= leaf << (place * 16);
                }
                store(cells, at, cell);
            }
        } else {
            let places = cells.get(first..).unwrap_or_default();
            for (place, entry) in places.iter().zip(&self.leaves) {
                put(place, entry.0);
            }
        }
        store(cold, 0, epoch);
        let (twos, last) = self.routes.as_chunks::<2>();
        let places = cold.get(1..).unwrap_or_default();
        for (place, [low, high]) in places.iter().zip(twos) {
            put(place, u64::from(high.0) << 32 | u64::from(low.0));
        }
        if let [last] = last {
            store(cold, 1 + twos.len(), u64::from(last.0));
        }
    }

    /// The cell after the last run starts.
    fn starts_end(&self) -> usize {
        if !self.shape.has_top() {
            return self.shape.starts_end();
        }
        let starts = self.starts.iter().take(self.shape.groups());
        let cells = starts
            .flat_map(|starts| halves(*starts))
            .filter(|starts| *starts != 0);
        self.shape.starts_at() + cells.count()
    }

    /// Whether the node says nothing at all.
    pub(super) fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.children == 0
    }

    /// The only child of a node that has no routes.
    pub(super) fn only_child(&self) -> Option<(usize, Entry)> {
        if !self.routes.is_empty() || self.children != 1 {
            return None;
        }
        let index = self.leaves.iter().position(|entry| entry.has_child())?;
        Some((self.start_of(index)?, *self.leaves.get(index)?))
    }

    /// Adds or replaces a route and its next hop in the slots that it decides; gives the code that it had.
    pub(super) fn insert(&mut self, slot: usize, len: u8, code: u16) -> Option<u16> {
        let route = RouteCell::new(slot, len, code);
        let mut routes = core::mem::take(&mut self.routes);
        let index = routes.lower_bound(route.key());
        let old = match routes.get_mut(index) {
            Some(old) if old.key() == route.key() => Some(core::mem::replace(old, route).code()),
            Some(_) | None => {
                routes.insert(index, route);
                None
            }
        };
        let mut gaps = Gaps::new(&routes, index + 1, self.shape.stride);
        self.fill(slot, route.last_slot(self.shape.stride), |slot, entry| {
            if gaps.holds(slot) {
                entry.with_code(code)
            } else {
                entry
            }
        });
        self.routes = routes;
        old
    }

    /// Removes a route; the slots that it decided fall to the next shorter one of this node. Gives its code.
    pub(super) fn remove(&mut self, slot: usize, len: u8) -> Option<u16> {
        let mut routes = core::mem::take(&mut self.routes);
        let key = RouteCell::new(slot, len, 0).key();
        let index = routes.lower_bound(key);
        let removed = routes
            .get(index)
            .copied()
            .filter(|route| route.key() == key);
        if let Some(removed) = removed {
            routes.remove(index);
            let stride = self.shape.stride;
            let code = routes.cover(slot, stride, len).map_or(0, RouteCell::code);
            let mut gaps = Gaps::new(&routes, index, stride);
            self.fill(slot, removed.last_slot(stride), |slot, entry| {
                if gaps.holds(slot) {
                    entry.with_code(code)
                } else {
                    entry
                }
            });
        }
        self.routes = routes;
        removed.map(RouteCell::code)
    }

    /// Writes what one slot says.
    pub(super) fn set(&mut self, slot: usize, entry: Entry) {
        self.fill(slot, slot, |_, _| entry);
    }

    /// Sets all slots at once.
    pub(super) fn set_all(&mut self, entries: impl Iterator<Item = Entry>) {
        self.starts = [0; ROOT_GROUPS];
        self.leaves.clear();
        let mut last = None;
        for (slot, entry) in entries.enumerate() {
            if last != Some(entry) {
                self.set_start(slot, true);
                self.leaves.push(entry);
                last = Some(entry);
            }
        }
        self.children = self.leaves.iter().filter(|entry| entry.has_child()).count();
    }

    /// Lets a run start at every slot, or only where the answer changes.
    pub(super) fn set_spread(&mut self, spread: bool) {
        let was = core::mem::replace(&mut self.shape.spread, spread);
        if !spread && !was {
            return;
        }
        let mut slots = core::mem::take(&mut self.fresh);
        slots.clear();
        self.for_each_run(|count, entry| slots.resize(slots.len() + count, entry));
        if spread {
            let groups = self.shape.groups();
            for starts in self.starts.iter_mut().take(groups) {
                *starts = u64::MAX;
            }
            self.fresh = core::mem::replace(&mut self.leaves, slots);
        } else {
            self.set_all(slots.iter().copied());
            self.fresh = slots;
        }
    }

    /// Octets on the heap.
    pub(super) fn octets(&self) -> usize {
        let entries = self.leaves.capacity() + self.fresh.capacity();
        entries * size_of::<Entry>() + self.routes.capacity() * size_of::<RouteCell>()
    }

    /// Calls `visit` with what each run says and the slots that it has.
    pub(super) fn for_each_run(&self, mut visit: impl FnMut(usize, Entry)) {
        let mut leaves = self.leaves.iter();
        let mut run = (0, Entry::default());
        for (group, starts) in self.starts.iter().enumerate().take(self.shape.groups()) {
            let mut starts = *starts;
            while starts != 0 {
                let slot = group * GROUP_SLOTS + starts.trailing_zeros() as usize;
                starts &= starts - 1;
                if slot > run.0 {
                    visit(slot - run.0, run.1);
                }
                run = (slot, leaves.next().copied().unwrap_or_default());
            }
        }
        visit(self.shape.slots() - run.0, run.1);
    }

    /// Replaces what the slots `first..=last` say by `change` of it, and joins and splits runs to fit.
    fn fill(&mut self, first: usize, last: usize, mut change: impl FnMut(usize, Entry) -> Entry) {
        let before = self.starts_before(first);
        let mut index = before;
        let mut fresh = core::mem::take(&mut self.fresh);
        fresh.clear();
        let mut previous = before
            .checked_sub(1)
            .and_then(|index| self.leaves.get(index).copied());
        for slot in first..=last {
            index += usize::from(self.is_start(slot));
            let old = index
                .checked_sub(1)
                .and_then(|index| self.leaves.get(index).copied())
                .unwrap_or_default();
            let new = change(slot, old);
            let starts = previous != Some(new);
            self.set_start(slot, starts);
            if starts {
                fresh.push(new);
            }
            previous = Some(new);
        }
        // The run after the change begins anew, goes on with another leaf, or joins the last one changed.
        let mut suffix = index;
        if last + 1 < self.shape.slots() {
            let begins = self.is_start(last + 1);
            let after = if begins {
                Some(index)
            } else {
                index.checked_sub(1)
            };
            let after = after
                .and_then(|index| self.leaves.get(index).copied())
                .unwrap_or_default();
            let joins = previous == Some(after);
            self.set_start(last + 1, !joins);
            match (begins, joins) {
                (true, true) => suffix += 1,
                (false, false) => fresh.push(after),
                (true, false) | (false, true) => {}
            }
        }
        let children = |entries: &[Entry]| entries.iter().filter(|entry| entry.has_child()).count();
        self.children += children(&fresh);
        self.children -= children(self.leaves.get(before..suffix).unwrap_or_default());
        self.leaves.splice(before..suffix, fresh.drain(..));
        self.fresh = fresh;
    }

    fn is_start(&self, slot: usize) -> bool {
        self.starts
            .get(slot / GROUP_SLOTS)
            .is_some_and(|word| word >> (slot % GROUP_SLOTS) & 1 == 1)
    }

    fn set_start(&mut self, slot: usize, starts: bool) {
        if let Some(word) = self.starts.get_mut(slot / GROUP_SLOTS) {
            let bit = 1 << (slot % GROUP_SLOTS);
            *word = if starts { *word | bit } else { *word & !bit };
        }
    }

    /// Runs that start before `slot`.
    fn starts_before(&self, slot: usize) -> usize {
        let whole: u32 = self
            .starts
            .iter()
            .take(slot / GROUP_SLOTS)
            .map(|word| word.count_ones())
            .sum();
        let part = self
            .starts
            .get(slot / GROUP_SLOTS)
            .map_or(0, |word| word & ((1 << (slot % GROUP_SLOTS)) - 1));
        whole as usize + part.count_ones() as usize
    }

    /// The first slot of run `index`.
    fn start_of(&self, index: usize) -> Option<usize> {
        let mut left = index;
        for (at, word) in self.starts.iter().enumerate().take(self.shape.groups()) {
            let here = word.count_ones() as usize;
            if left < here {
                let mut word = *word;
                for _ in 0..left {
                    word &= word - 1;
                }
                return Some(at * GROUP_SLOTS + word.trailing_zeros() as usize);
            }
            left -= here;
        }
        None
    }
}

/// The run starts of the first 32 slots of a group, and of the others.
pub(super) const fn halves(starts: u64) -> [u32; 2] {
    [(starts & 0xffff_ffff) as u32, (starts >> 32) as u32]
}
