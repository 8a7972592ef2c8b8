//! One route of an IPv4 node added or removed without taking the node apart.
//!
//! `draft.rs` can make any change to any node, and unpacks and packs all of it. Most changes of an IPv4 table are of a
//! route that covers few slots and none with a child: a handful of leaves become others, everything before and behind
//! them is copied as it is. A node that no snapshot reaches yet is changed where
//! it is, as long as its blocks are large enough: only what lies behind the change moves. [`Splice`] says what changes;
//! where it cannot, there is none and the caller goes by the draft.

use core::sync::atomic::{AtomicU64, Ordering};

use super::arena::{load, put, store};
use super::draft::halves;
use super::moves::{lane, move_lanes, set_lane};
use super::node::{
    Extent, GROUP_SLOTS, Gaps, LAST_OF_GROUP, NARROW_CHILD, Node, RouteCell, RouteList, TOP_CELL,
    group_cell, leaf_in_group,
};

/// What one route's coming or going changes in a dense node that is not spread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Splice {
    /// The group that the route's slots are in.
    group: usize,
    /// Run starts of that group and of the one after it.
    starts: [u64; 2],
    /// The first cell of these, and which of their four halves have one, a bit each, before and after the change.
    cell: usize,
    had_cell: u64,
    has_cell: u64,
    /// How many that are.
    had: usize,
    cells: usize,
    /// The node's first leaf, that before the group, and that after the last.
    first: usize,
    leaf: usize,
    end: usize,
    /// The leaves before those that change.
    before: usize,
    /// Leaves that go, and those that take their place.
    removed: usize,
    fresh: [u16; GROUP_SLOTS + 2],
    fresh_count: usize,
    /// Where the route is or comes in the list, whether it is there, and whether it will be.
    index: usize,
    was: bool,
    route: Option<RouteCell>,
    /// The next hop code that the route had, 0 when there was none.
    pub(super) old: u16,
}

impl Splice {
    /// Adds or replaces the route for the first `len` bits of `slot`.
    pub(super) fn insert(node: Node<'_>, slot: usize, len: u8, code: u16) -> Option<Self> {
        let route = RouteCell::new(slot, len, code);
        let routes = node.routes();
        let index = routes.lower_bound(route.key());
        let there = Some(routes.at(index))
            .filter(|there| index < routes.count() && there.key() == route.key());
        let gaps = Gaps::new(
            &routes,
            index + usize::from(there.is_some()),
            node.shape.stride,
        );
        Self::new(node, route, gaps, code, |splice| {
            splice.index = index;
            splice.was = there.is_some();
            splice.old = there.map_or(0, RouteCell::code);
            splice.route = Some(route);
        })
    }

    /// Removes the route for the first `len` bits of `slot`, which is not the node's only one.
    pub(super) fn remove(node: Node<'_>, slot: usize, len: u8) -> Option<Self> {
        let routes = node.routes();
        if routes.count() < 2 {
            return None;
        }
        let key = RouteCell::new(slot, len, 0).key();
        let index = routes.lower_bound(key);
        let route = Some(routes.at(index)).filter(|route| route.0 != 0 && route.key() == key)?;
        let below = routes
            .cover_before(index, slot, node.shape.stride)
            .map_or(0, RouteCell::code);
        let gaps = Gaps::new(&routes, index + 1, node.shape.stride);
        Self::new(node, route, gaps, below, |splice| {
            splice.index = index;
            splice.was = true;
            splice.old = route.code();
        })
    }

    /// The cells that the node takes, and those that it takes after the change.
    pub(super) fn extents(&self, node: Node<'_>) -> [Extent; 2] {
        let routes = node.route_count();
        let after = self.moved(self.end + self.fresh_count - self.removed);
        [(self.end, routes), (after, self.route_count(routes))].map(|(leaves, routes)| Extent {
            lookup: leaves.div_ceil(4),
            routes: 1 + routes.div_ceil(2),
        })
    }

    /// Writes the changed node into `cells` and the cold block `cold`, which no snapshot reaches.
    pub(super) fn write(
        &self,
        node: Node<'_>,
        cells: &[AtomicU64],
        handle: u32,
        cold: &[AtomicU64],
        epoch: u64,
    ) {
        store(cells, 0, u64::from(handle) << 32 | self.header(node));
        // What is before the cells that change stays where it is, what is behind goes by whole cells, up to the leaves.
        move_lanes::<64>(node.cells, 1, cells, 1, self.cell - 1);
        let [from, to] = [self.cell + self.had, self.cell + self.cells];
        let kept = self.first + self.before - 4 * from;
        move_lanes::<16>(node.cells, 4 * from, cells, 4 * to, kept);
        self.write_starts(node, cells);
        self.write_leaves(node, cells);
        // Routes are two a cell; the first cell of the block is the epoch.
        let from = node.cold_cells();
        store(cold, 0, epoch);
        move_lanes::<32>(from, 2, cold, 2, self.index);
        self.write_routes(node, cold);
    }

    /// Whether the same groups have cells after the change.
    pub(super) const fn keeps_top(&self) -> bool {
        self.has_cell == self.had_cell
    }

    /// Changes the node where it is: no snapshot reaches it, its top stays, and its blocks hold what it takes then.
    pub(super) fn write_in_place(&self, node: Node<'_>) {
        self.write_routes(node, node.cold_cells());
        self.write_leaves(node, node.cells);
        self.write_starts(node, node.cells);
        let cold = u64::from(node.cold_handle());
        store(node.cells, 0, cold << 32 | self.header(node));
    }

    /// The lower half of the node's first cell after the change.
    fn header(&self, node: Node<'_>) -> u64 {
        load(node.cells, 0) & 0xffff_ffff & !0x3fff | self.route_count(node.route_count()) as u64
    }

    /// Writes the route, and those behind it.
    fn write_routes(&self, node: Node<'_>, cold: &[AtomicU64]) {
        let source = 2 + self.index + usize::from(self.was);
        let target = 2 + self.index + usize::from(self.route.is_some());
        let rest = node.route_count() + 2 - source;
        let from = node.cold_cells();
        if source != target || !core::ptr::eq(from, cold) {
            move_lanes::<32>(from, source, cold, target, rest);
        }
        if let Some(route) = self.route {
            set_lane::<32>(cold, 2 + self.index, u64::from(route.0));
        }
    }

    /// Writes the leaves that change, and those behind them.
    fn write_leaves(&self, node: Node<'_>, cells: &[AtomicU64]) {
        let at = self.moved(self.first + self.before);
        let source = self.first + self.before + self.removed;
        let target = at + self.fresh_count;
        if source != target || !core::ptr::eq(node.cells, cells) {
            move_lanes::<16>(node.cells, source, cells, target, self.end - source);
        }
        for (place, leaf) in self.fresh.iter().take(self.fresh_count).enumerate() {
            set_lane::<16>(cells, at + place, u64::from(*leaf));
        }
    }

    fn new(
        node: Node<'_>,
        route: RouteCell,
        mut gaps: Gaps<'_, impl RouteList>,
        code: u16,
        finish: impl FnOnce(&mut Self),
    ) -> Option<Self> {
        let (first, last) = (route.slot(), route.last_slot(node.shape.stride));
        let group = first / GROUP_SLOTS;
        if !node.shape.dense || node.shape.spread || last / GROUP_SLOTS != group {
            return None;
        }
        let starts_at = node.shape.starts_at();
        let top = node.top();
        let before = (top & ((1 << (2 * group)) - 1)).count_ones() as usize;
        let own = top >> (2 * group) & 0xf;
        let cell = starts_at + before;
        let mut starts = [0; 2];
        let mut had = 0;
        for (half, place) in HALVES {
            if own >> half & 1 == 1 {
                let here = node.cell(cell + had) & 0xffff_ffff;
                let here = u64::from((here as u32).rotate_left(1));
                if let Some(starts) = starts.get_mut(half / 2) {
                    *starts |= here << place;
                }
                had += 1;
            }
        }
        let first_leaf = leaf_in_group(node.cell(starts_at), 0);
        let leaf_before = if before == 0 {
            first_leaf - 1
        } else {
            leaf_in_group(node.cell(cell - 1), LAST_OF_GROUP)
        };
        let mut splice = Self {
            group,
            starts,
            cell,
            had_cell: own,
            has_cell: own,
            had,
            cells: had,
            first: first_leaf,
            leaf: leaf_before,
            end: node.leaf_end(),
            before: 0,
            removed: 0,
            fresh: [0; GROUP_SLOTS + 2],
            fresh_count: 0,
            index: 0,
            was: false,
            route: None,
            old: 0,
        };
        let leaf = |index: usize| (lane::<16>(node.cells, first_leaf + index) & 0xffff) as u16;
        let starts_before = splice.starts.first()? & ((1 << (first % GROUP_SLOTS)) - 1);
        splice.before = leaf_before + 1 - first_leaf + starts_before.count_ones() as usize;
        let mut index = splice.before;
        let mut previous = splice.before.checked_sub(1).map(leaf);
        for slot in first..=last {
            index += usize::from(splice.is_start(slot));
            let old = leaf(index.checked_sub(1)?);
            if u64::from(old) & NARROW_CHILD != 0 {
                return None;
            }
            let new = if gaps.holds(slot) { code } else { old };
            splice.set_start(slot, previous != Some(new));
            if previous != Some(new) {
                splice.push(new)?;
            }
            previous = Some(new);
        }
        // The run after the change begins anew, goes on with another leaf, or joins the last one changed.
        let mut suffix = index;
        if last + 1 < node.shape.slots() {
            let begins = splice.is_start(last + 1);
            let after = leaf(if begins { index } else { index.checked_sub(1)? });
            let joins = previous == Some(after);
            splice.set_start(last + 1, !joins);
            match (begins, joins) {
                (true, true) => suffix += 1,
                (false, false) => splice.push(after)?,
                (true, false) | (false, true) => {}
            }
        }
        splice.removed = suffix - splice.before;
        if node.shape.has_top() {
            splice.has_cell = 0;
            splice.cells = 0;
            for (half, starts) in (0..).zip(splice.starts.into_iter().flat_map(halves)) {
                splice.has_cell |= u64::from(starts != 0) << half;
                splice.cells += usize::from(starts != 0);
            }
        }
        finish(&mut splice);
        Some(splice)
    }

    fn route_count(&self, before: usize) -> usize {
        before + usize::from(self.route.is_some()) - usize::from(self.was)
    }

    /// Where a leaf is after the change that was at `index`, for the cells before it: every cell is four leaves.
    const fn moved(&self, index: usize) -> usize {
        index + 4 * self.cells - 4 * self.had
    }

    /// Run starts and indices: those of the two groups in question, and every index that moves. In a copy the others are
    /// there already.
    fn write_starts(&self, node: Node<'_>, cells: &[AtomicU64]) {
        let shape = node.shape;
        let moved = self.moved(0x4000).wrapping_sub(0x4000);
        let mut at = self.cell;
        let mut index = self.moved(self.leaf);
        for (half, starts) in self.starts.into_iter().flat_map(halves).enumerate() {
            if self.has_cell >> half & 1 == 1 {
                index += starts.count_ones() as usize;
                store(cells, at, group_cell(starts, index));
                at += 1;
            }
        }
        // None of the indices passes 16 bits or zero.
        let shift = |from: usize, to: usize, step: usize| {
            for cell in cells.get(from..to).unwrap_or_default() {
                let before = cell.load(Ordering::Relaxed);
                put(cell, before.wrapping_add((step as u64) << 48));
            }
        };
        if moved != 0 {
            shift(shape.starts_at(), self.cell, moved);
        }
        let step = moved
            .wrapping_add(self.fresh_count)
            .wrapping_sub(self.removed);
        if step != 0 {
            shift(at, node.starts_end() + self.cells - self.had, step);
        }
        if !self.keeps_top() {
            let own = 0xf << (2 * self.group);
            let top = node.top() & !own | self.has_cell << (2 * self.group);
            store(cells, TOP_CELL, top);
        }
    }

    fn push(&mut self, leaf: u16) -> Option<()> {
        *self.fresh.get_mut(self.fresh_count)? = leaf;
        self.fresh_count += 1;
        Some(())
    }

    fn is_start(&self, slot: usize) -> bool {
        let starts = self.starts.get(slot / GROUP_SLOTS - self.group);
        starts.is_some_and(|starts| starts >> (slot % GROUP_SLOTS) & 1 == 1)
    }

    fn set_start(&mut self, slot: usize, starts: bool) {
        if let Some(group) = self.starts.get_mut(slot / GROUP_SLOTS - self.group) {
            let bit = 1 << (slot % GROUP_SLOTS);
            *group = if starts { *group | bit } else { *group & !bit };
        }
    }
}

/// The 32 slots of two groups by number, and the first bit of each in its group.
const HALVES: [(usize, u32); 4] = [(0, 0), (1, 32), (2, 0), (3, 32)];
