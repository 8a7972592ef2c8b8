//! Spread tails: the third level of large IPv4 tables with a leaf for every slot.
//!
//! Where the second level is in pushed chunks (`pushed/`), the few addresses that end in a tail go there one by one, and
//! what they read is far away. A spread tail is a node like any other, in which a run begins at every slot, so that its
//! leaves are 256 in a row: a lookup reads its leaf, without run starts before it. Such a tail takes 584 octets where
//! most would take a hundred; so only tables have them that have two routes a tail, and at most [`MOST`] of them.
//!
//! Which they are is settled after each change, and turned a few tails a change ([`TURNED`]).
//!
//! Flat chunks (`flat/`) have leaves of their own for each tail, by the same measure.

use super::address::Address;
use super::node::{CHUNK_STRIDE, Entry, ROOT_STRIDE, Shape};
use super::root::WriterRoot;
use super::table::Fib;

/// The tails of an IPv4 table.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Tails {
    pub(super) count: usize,
    /// Those that are not spread.
    pub(super) packed: usize,
    /// Whether those that are written are.
    pub(super) spread: bool,
    /// The root slot from which on packed ones are looked for.
    cursor: usize,
}

impl Tails {
    /// Whether a table of `routes` may have a leaf for every slot of so many tails. One that `has` them keeps them a little
    /// longer.
    pub(super) const fn are_few(self, routes: usize, has: bool) -> bool {
        let least = if has {
            routes / 2 + routes / 4
        } else {
            routes / 2
        };
        self.count <= least && self.count <= MOST
    }

    /// Counts a node that was written.
    pub(super) fn add(&mut self, shape: Shape) {
        self.count += usize::from(shape.is_narrow_tail());
        self.packed += usize::from(shape.is_narrow_tail() && !shape.spread);
    }

    /// Counts a node that is let go.
    pub(super) fn subtract(&mut self, shape: Shape) {
        self.count -= usize::from(shape.is_narrow_tail());
        self.packed -= usize::from(shape.is_narrow_tail() && !shape.spread);
    }
}

impl<A: Address> Fib<A> {
    /// Settles whether tails are spread, and spreads some that are not.
    pub(super) fn spread_some(&mut self) {
        self.tails.spread =
            self.pushed.is_on() && self.tails.are_few(self.routes, self.tails.spread);
        if !self.tails.spread || self.tails.packed == 0 {
            return;
        }
        // One chunk a change: to look through it takes as long as to change it.
        let root = Shape::at(0, A::BITS);
        let Some((slot, entry)) = self
            .chunk_from(self.tails.cursor)
            .or_else(|| self.chunk_from(0))
        else {
            return;
        };
        let chunk = Shape::at(ROOT_STRIDE, A::BITS);
        let mut handle = entry.handle();
        let mut from = Some(0);
        let mut turned = 0;
        while let Some((tail, below)) =
            from.and_then(|from| self.node(handle, chunk).next_child(from))
        {
            from = Some(tail + 1);
            let shape = Shape::at(chunk.end(), A::BITS);
            if self.node(below.handle(), shape).shape.spread {
                continue;
            }
            if turned == TURNED {
                // The rest of this chunk comes with the next changes.
                from = None;
                continue;
            }
            turned += 1;
            self.read_draft(below.handle(), shape);
            let spread = self.replace(below.handle(), shape);
            let below = below.with_child_of(Entry::child(spread, 0));
            handle = self.replace_child(handle, chunk, tail, below);
        }
        self.tails.cursor = if turned < TURNED { slot + 1 } else { slot };
        self.tails.cursor %= root.slots();
        let changed = entry.with_child_of(Entry::child(handle, 0));
        if changed != entry {
            self.set_root_entry(slot, changed, (0, chunk.slots() - 1));
        } else if turned > 0 {
            self.push_chunk(slot);
        }
    }

    /// The first root slot at or after `from` that has a chunk, and what it says.
    fn chunk_from(&self, from: usize) -> Option<(usize, Entry)> {
        let root = Shape::at(0, A::BITS);
        match &self.root {
            WriterRoot::Node(handle) => self.node(*handle, root).next_child(from),
            WriterRoot::Slots { slots, .. } => (from..slots.len())
                .map(|slot| (slot, self.root_entry(slot)))
                .find(|(_, entry)| entry.has_child()),
        }
    }
}

/// The most tails that are spread: 2.3 MiB of them.
const MOST: usize = 4096;
/// Tails that are spread a change.
const TURNED: usize = 4;

/// The cell of a spread tail's first four leaves.
pub(super) const TAIL_LEAVES: usize = Shape::at(ROOT_STRIDE + CHUNK_STRIDE, 32).starts_end();
