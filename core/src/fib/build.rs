//! Building a table at once: sort, then one pass that makes every node from the bottom up.

use alloc::vec::Vec;

use super::address::Address;
use super::node::{Entry, ROOT_STRIDE, RouteCell, Shape};
use super::pushed::LEAST_ROUTES;
use super::root::WriterRoot;
use super::table::{Fib, MAX_SKIP, common_octets, octets, skippable};
use super::{FibError, NextHopId};

/// A route on its way into the table.
#[derive(Clone, Copy, Debug)]
struct Sorted<K> {
    key: K,
    len: u8,
    code: u16,
}

/// The key bits of an address as it is sorted: IPv4 sorts 8 octets a route, IPv6 32.
trait Key: Copy + Ord {
    fn narrow(key: u128) -> Self;
    fn widen(self) -> u128;
}

impl Key for u32 {
    fn narrow(key: u128) -> Self {
        (key >> 96) as Self
    }

    fn widen(self) -> u128 {
        u128::from(self) << 96
    }
}

impl Key for u128 {
    fn narrow(key: u128) -> Self {
        key
    }

    fn widen(self) -> u128 {
        self
    }
}

impl<A: Address> Fib<A> {
    /// Fills this table, which is empty.
    pub(super) fn fill_from(
        &mut self,
        routes: impl IntoIterator<Item = (A::Prefix, NextHopId)>,
    ) -> Result<(), FibError> {
        if A::BITS == 32 {
            self.fill_by::<u32>(routes)
        } else {
            self.fill_by::<u128>(routes)
        }
    }

    fn fill_by<K: Key>(
        &mut self,
        routes: impl IntoIterator<Item = (A::Prefix, NextHopId)>,
    ) -> Result<(), FibError> {
        let mut sorted: Vec<Sorted<K>> = routes
            .into_iter()
            .map(|(prefix, next_hop)| {
                let (key, len) = A::split(prefix);
                Sorted {
                    key: K::narrow(key),
                    len,
                    code: next_hop.code(),
                }
            })
            .collect();
        // Stable, so that the last of several routes for one prefix stays the last.
        sorted.sort_by_key(|route| (route.key, route.len));
        sorted.dedup_by(|later, earlier| {
            let same = later.key == earlier.key && later.len == earlier.len;
            if same {
                earlier.code = later.code;
            }
            same
        });
        self.dense = sorted.len() >= super::table::DENSE_FROM;
        if A::BITS == 32 {
            // As many as there will be.
            let long = sorted.iter().filter(|route| route.len > 24);
            let mut tails: Vec<u128> = long.map(|route| route.key.widen() >> 104).collect();
            tails.dedup();
            self.tails.count = tails.len();
            self.tails.spread =
                sorted.len() >= LEAST_ROUTES && self.tails.are_few(sorted.len(), false);
            self.tails.count = 0;
        }
        let mut slots = Vec::new();
        let root = self.build_node(&sorted, Shape::at(0, A::BITS), &mut slots)?;
        let shape = Shape::at(0, A::BITS);
        if let WriterRoot::Node(empty) = self.root {
            self.release(empty, shape);
        }
        self.draft.clear(shape, 0, 0);
        self.draft.set_all(slots.iter().copied());
        self.draft.routes = root;
        self.root = WriterRoot::Node(self.write_draft());
        self.routes = sorted.len();
        self.settle_root();
        Ok(())
    }

    /// Works out what each slot of a node says, its children made; gives the node's own routes.
    fn build_node<K: Key>(
        &mut self,
        sorted: &[Sorted<K>],
        shape: Shape,
        slots: &mut Vec<Entry>,
    ) -> Result<Vec<RouteCell>, FibError> {
        let mut own = Vec::new();
        slots.clear();
        slots.resize(shape.slots(), Entry::default());
        let mut rest = sorted;
        while let Some((first, after)) = rest.split_first() {
            let slot = shape.slot(first.key.widen());
            if first.len <= shape.end() {
                let route = RouteCell::new(slot, first.len - shape.depth, first.code);
                own.push(route);
                if let Some(range) = slots.get_mut(slot..=route.last_slot(shape.stride)) {
                    range.fill(Entry::default().with_code(first.code));
                }
                rest = after;
                continue;
            }
            let count = rest.partition_point(|route| shape.slot(route.key.widen()) == slot);
            let (below, after) = rest.split_at(count);
            let child = self.build_below(below, shape.end())?;
            if let Some(entry) = slots.get_mut(slot) {
                *entry = entry.with_child_of(child);
            }
            rest = after;
        }
        Ok(own)
    }

    /// Makes the node for `sorted`, all of which are longer than `depth` and agree up to there.
    fn build_below<K: Key>(&mut self, sorted: &[Sorted<K>], depth: u8) -> Result<Entry, FibError> {
        if !self.arena.has_room() {
            return Err(FibError::Full);
        }
        let (Some(first), Some(last)) = (sorted.first(), sorted.last()) else {
            return Ok(Entry::default());
        };
        let (first, last) = (first.key.widen(), last.key.widen());
        let shortest = sorted
            .iter()
            .map(|route| route.len)
            .min()
            .unwrap_or(A::BITS);
        let most = skippable(depth, shortest).min(MAX_SKIP);
        let skip = common_octets(octets(first, depth, most), most, octets(last, depth, most));
        let shape = Shape::at(depth + 8 * skip, A::BITS);
        let mut slots = Vec::new();
        let own = self.build_node(sorted, shape, &mut slots)?;
        self.draft.clear(shape, skip, octets(first, depth, skip));
        self.draft.set_all(slots.iter().copied());
        self.draft.routes = own;
        Ok(Entry::child(self.write_draft(), skip))
    }

    fn settle_root(&mut self) {
        if self.routes >= super::table::SLOTS_FROM {
            self.root_to_slots();
            self.turn_all();
            self.push_all();
        }
        self.hash_all();
        self.windows_all();
    }
}

const _: () = assert!(ROOT_STRIDE == 13);
