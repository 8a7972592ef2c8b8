//! One route of an IPv4 node added or removed without taking the node apart.
//!
//! `draft.rs` can make any change to any node, and unpacks and packs all of it. Most changes of an IPv4 table are of a
//! route that covers few slots and none with a child: a handful of leaves become others, everything before and behind
//! them is copied as it is, four leaves or two routes at a time. A node that no snapshot reaches yet is changed where
//! it is, as long as its blocks are large enough: only what lies behind the change moves. [`Splice`] says what changes;
//! where it cannot, there is none and the caller goes by the draft.

use core::sync::atomic::{AtomicU64, Ordering};

use super::arena::{load, put, store};
use super::draft::halves;
use super::moves::{lane, move_lanes, set_lane};
use super::node::{
    Extent, GROUP_SLOTS, Gaps, NARROW_CHILD, Node, RouteCell, RouteList, TOP_CELL, group_cell,
};

/// What one route's coming or going changes in a dense node that is not spread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Splice {
    /// The group that the route's slots are in.
    group: usize,
    /// Run starts of that group and of the one after it.
    starts: [u64; 2],
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

    /// The cells that the node takes after the change.
    pub(super) fn extent(&self, node: Node<'_>) -> Extent {
        let leaves = self.moved(node, node.leaf_end() + self.fresh_count - self.removed);
        Extent {
            lookup: leaves.div_ceil(4),
            routes: 1 + self.route_count(node).div_ceil(2),
        }
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
        let shape = node.shape;
        store(cells, 0, u64::from(handle) << 32 | self.header(node));
        let from = node.leaf_before(0) + 1;
        let first = self.moved(node, from);
        // Entries are before the leaves.
        let [entries, moved] = [
            4 * node.starts_end(),
            4 * (shape.starts_at() + self.top(node).count_ones() as usize),
        ];
        let kept = from + self.before - entries;
        move_lanes::<16>(node.cells, entries, cells, moved, kept);
        self.write_starts(node, cells);
        let [at, behind] = [first + self.before, from + self.before + self.removed];
        self.write_fresh(cells, at);
        let rest = node.leaf_end() - behind;
        move_lanes::<16>(node.cells, behind, cells, at + self.fresh_count, rest);
        // Routes are two a cell; the first cell of the block is the epoch.
        let from = node.cold_cells();
        store(cold, 0, epoch);
        move_lanes::<32>(from, 2, cold, 2, self.index);
        let (source, target) = self.routes_behind();
        let rest = node.route_count() + 2 - source;
        self.write_route(cold);
        move_lanes::<32>(from, source, cold, target, rest);
    }

    /// Whether the same groups have cells after the change.
    pub(super) fn keeps_top(&self, node: Node<'_>) -> bool {
        self.top(node) == node.top()
    }

    /// Changes the node where it is: no snapshot reaches it, its top stays, and its blocks hold
    /// [`extent`](Self::extent) of it.
    pub(super) fn write_in_place(&self, node: Node<'_>) {
        let cold = node.cold_cells();
        let (source, target) = self.routes_behind();
        let rest = node.route_count() + 2 - source;
        move_lanes::<32>(cold, source, cold, target, rest);
        self.write_route(cold);
        let first = node.leaf_before(0) + 1;
        let [at, behind] = [first + self.before, first + self.before + self.removed];
        let rest = node.leaf_end() - behind;
        move_lanes::<16>(node.cells, behind, node.cells, at + self.fresh_count, rest);
        self.write_fresh(node.cells, at);
        self.write_starts(node, node.cells);
        let cold = u64::from(node.cold_handle());
        store(node.cells, 0, cold << 32 | self.header(node));
    }

    /// The lower half of the node's first cell after the change.
    fn header(&self, node: Node<'_>) -> u64 {
        load(node.cells, 0) & 0xffff_ffff & !0x3fff | self.route_count(node) as u64
    }

    /// The lanes of the cold block from which the routes behind the change come, and to which they go.
    fn routes_behind(&self) -> (usize, usize) {
        (
            2 + self.index + usize::from(self.was),
            2 + self.index + usize::from(self.route.is_some()),
        )
    }

    fn write_route(&self, cold: &[AtomicU64]) {
        if let Some(route) = self.route {
            set_lane::<32>(cold, 2 + self.index, u64::from(route.0));
        }
    }

    fn write_fresh(&self, cells: &[AtomicU64], at: usize) {
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
        let has_next = group + 1 < node.shape.groups();
        let mut splice = Self {
            group,
            starts: [
                node.starts(group),
                if has_next { node.starts(group + 1) } else { 0 },
            ],
            before: 0,
            removed: 0,
            fresh: [0; GROUP_SLOTS + 2],
            fresh_count: 0,
            index: 0,
            was: false,
            route: None,
            old: 0,
        };
        let first_leaf = node.leaf_before(0) + 1;
        let leaf = |index: usize| (lane::<16>(node.cells, first_leaf + index) & 0xffff) as u16;
        let starts_before = splice.starts.first()? & ((1 << (first % GROUP_SLOTS)) - 1);
        splice.before =
            node.leaf_before(group) + 1 - first_leaf + starts_before.count_ones() as usize;
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
        finish(&mut splice);
        Some(splice)
    }

    fn route_count(&self, node: Node<'_>) -> usize {
        node.route_count() + usize::from(self.route.is_some()) - usize::from(self.was)
    }

    /// Which groups of 32 slots have a cell after the change.
    fn top(&self, node: Node<'_>) -> u64 {
        let mut top = node.top();
        if node.shape.has_top() {
            for (half, starts) in self.halves(node) {
                top = top & !(1 << half) | u64::from(starts != 0) << half;
            }
        }
        top
    }

    /// The 32 slots whose run starts may change, and those.
    fn halves(&self, node: Node<'_>) -> impl Iterator<Item = (usize, u32)> {
        let all = self.starts.into_iter().flat_map(halves);
        (2 * self.group..2 * node.shape.groups()).zip(all)
    }

    /// Where a leaf is after the change that was at `index`, for the cells before it: every cell is four leaves.
    fn moved(&self, node: Node<'_>, index: usize) -> usize {
        let [before, after] = [node.top(), self.top(node)].map(|top| top.count_ones() as usize);
        index + 4 * after - 4 * before
    }

    /// Run starts and indices: those of the two groups in question, and every index that moves.
    fn write_starts(&self, node: Node<'_>, cells: &[AtomicU64]) {
        let shape = node.shape;
        let (before, after) = (node.top(), self.top(node));
        if shape.has_top() {
            store(cells, TOP_CELL, after);
        }
        let moved = (self.moved(node, 0x4000) as u64).wrapping_sub(0x4000);
        let upto = |top: u64, half: usize| {
            let below = if half < 64 {
                top & ((1 << half) - 1)
            } else {
                top
            };
            shape.starts_at() + below.count_ones() as usize
        };
        // None of the indices passes 16 bits or zero.
        let shift = |from: usize, to: usize, count: usize, step: u64| {
            if let (Some(from), Some(to)) = (
                node.cells.get(from..from + count),
                cells.get(to..to + count),
            ) {
                for (from, to) in from.iter().zip(to) {
                    put(to, from.load(Ordering::Relaxed).wrapping_add(step << 48));
                }
            }
        };
        let is_copy = !core::ptr::eq(node.cells, cells);
        let first = 2 * self.group;
        let mut at = upto(after, first);
        if is_copy {
            shift(
                shape.starts_at(),
                shape.starts_at(),
                at - shape.starts_at(),
                moved,
            );
        }
        let mut index = self.moved(node, node.leaf_before(self.group));
        let mut last = first;
        for (half, starts) in self.halves(node) {
            index += starts.count_ones() as usize;
            last = half + 1;
            if after >> half & 1 == 1 {
                store(cells, at, group_cell(starts, index));
                at += 1;
            }
        }
        let step = moved
            .wrapping_add(self.fresh_count as u64)
            .wrapping_sub(self.removed as u64);
        if is_copy || step != 0 {
            let from = upto(before, last);
            shift(from, at, node.starts_end() - from, step);
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
