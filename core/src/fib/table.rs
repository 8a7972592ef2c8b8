//! The writer: routes in, routes out, snapshots published.
//!
//! ```text
//!            root: 13 bits              one slot array (64 KiB), or a node while the table is small
//!             |
//!            chunk: 11 bits             nodes, see node.rs: run starts, leaves, routes; small IPv4 tables: flat/ too
//!             |
//!            tail: 8 bits, and again    IPv4 ends after one; IPv6 may skip up to 6 octets before each
//! ```
//!
//! IPv4 nodes are laid out by the size of the table, and turned a few a change: chunks are dense from [`DENSE_FROM`]
//! routes on, with a top that says which groups of 32 slots have a cell of their own (node.rs); the tails of large tables,
//! where they are few, are spread, with a leaf for every slot (tails.rs).
//!
//! Large IPv4 tables have their second level once more, for lookups only (pushed/).
//!
//! Beside it IPv6 tables of few prefix lengths have a hash (hashed.rs), and others of 1,024 routes or more, nearly all
//! no longer than /48, have windows (windows/, on x86-64): both for lookups only, filled from the trie a share a change
//! and given up when the table is no longer one for them.
//!
//! A change writes new copies of the nodes from the one that holds the route up to the root, in cells that no snapshot
//! reaches, and then the root's slot. [`Fib::reader`] publishes: it puts the root and the list of segments into a
//! [`Snapshot`] behind an `Arc`. From then on the nodes that it reaches are at rest; nodes younger than the last
//! snapshot are rewritten at will. A node that is replaced while snapshots may reach it waits until none of them has a
//! reader left (`published.rs` keeps the books), then its cells are used again. Readers never free anything: the
//! writer keeps a reference to each snapshot until it is the only one.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::marker::PhantomData;
use core::sync::atomic::AtomicU64;

use super::address::Address;
use super::arena::{Arena, LINE_CELLS, Segment, load, store};
use super::batch::CHUNK;
use super::direct::Direct;
use super::draft::Draft;
use super::flat::Flats;
use super::fresh::Fresh;
use super::hashed::Hashes;
use super::log::Log;
use super::moves::copy_cells;
use super::node::{Entry, Extent, Node, ROOT_STRIDE, RouteCell, RouteList, Shape};
use super::published::{Block, Blocks, Books};
use super::pushed::Pushed;
use super::reader::{FibReader, Root, Snapshot};
use super::root::{Room, WriterRoot};
use super::simd::{Level, SimdLevel, ask_for_block};
use super::splice::Splice;
use super::tails::Tails;
use super::walk::{Covering, Routes, View};
use super::windows::Windows;
use super::{FibError, FibMemory, NextHopId};

/// The writer of a forwarding table: owns the routes, changes them, publishes snapshots.
///
/// One change costs what it touches: at most one node per level is written again, the largest of about 20 KiB. A
/// change is seen by [`Fib::lookup`] at once and by readers that are made after it.
#[derive(Debug)]
pub struct Fib<A> {
    pub(super) arena: Arena,
    /// Where the nodes' cold blocks are.
    pub(super) cold: Arena,
    /// Blocks of whole cache lines, each at the beginning of one: pushed chunks of IPv4 tables, windows of IPv6 tables.
    pub(super) lines: Arena,
    pub(super) root: WriterRoot,
    pub(super) room: Room,
    pub(super) draft: Draft,
    pub(super) routes: usize,
    /// Snapshots made so far: what a node's epoch is compared with.
    epoch: u64,
    published: Books,
    /// Cells in use by the nodes that the root reaches.
    pub(super) live: Extent,
    pub(super) flats: Flats,
    /// What lookups will read of what was written since the last publication.
    fresh: Fresh,
    /// The root slots that changed, while snapshots are made over older ones.
    pub(super) log: Log,
    pub(super) pushed: Pushed,
    pub(super) tails: Tails,
    pub(super) hashes: Hashes,
    pub(super) windows: Windows,
    pub(super) direct: Direct,
    /// Whether chunks are written dense.
    pub(super) dense: bool,
    /// Chunks that are not, and the root slot from which on one is looked for.
    pub(super) sparse: usize,
    pub(super) sparse_cursor: usize,
    level: Level,
    family: PhantomData<A>,
}

impl<A: Address> Default for Fib<A> {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: Address> Fib<A> {
    /// An empty table; it takes about 11 KiB.
    #[must_use]
    pub fn new() -> Self {
        let mut fib = Self {
            arena: Arena::new(),
            cold: Arena::new(),
            lines: Arena::of_lines(),
            root: WriterRoot::Node(0),
            room: Room::default(),
            draft: Draft::new(),
            routes: 0,
            epoch: 1,
            published: Books::default(),
            live: Extent::default(),
            flats: Flats::default(),
            fresh: Fresh::default(),
            log: Log::default(),
            pushed: Pushed::default(),
            tails: Tails::default(),
            hashes: Hashes::default(),
            windows: Windows::default(),
            direct: Direct::default(),
            dense: true,
            sparse: 0,
            sparse_cursor: 0,
            level: Level::new(SimdLevel::detect()),
            family: PhantomData,
        };
        // Handle 0 means "no child". It is also the handle of an empty chunk, so that a batch can go through it
        // without asking.
        fib.draft.clear(Shape::at(ROOT_STRIDE, A::BITS), 0, 0);
        fib.write_draft();
        fib.dense = false;
        fib.draft.clear(Shape::at(0, A::BITS), 0, 0);
        fib.root = WriterRoot::Node(fib.write_draft());
        fib
    }

    /// Builds a table from `routes`; of two routes for one prefix the later wins.
    ///
    /// Takes one sort and one pass: 50 to 90 ns a route for a full IPv4 table on a Zen 3 core.
    ///
    /// # Errors
    ///
    /// [`FibError::Full`], as [`insert`](Self::insert).
    pub fn from_routes(
        routes: impl IntoIterator<Item = (A::Prefix, NextHopId)>,
    ) -> Result<Self, FibError> {
        let mut fib = Self::new();
        fib.fill_from(routes)?;
        Ok(fib)
    }

    /// Adds or replaces the route for `prefix`; gives the next hop that it had.
    ///
    /// # Errors
    ///
    /// [`FibError::Full`] when the table might outgrow its handles; the table is then unchanged.
    pub fn insert(
        &mut self,
        prefix: A::Prefix,
        next_hop: NextHopId,
    ) -> Result<Option<NextHopId>, FibError> {
        if !self.arena.has_room() || !self.cold.has_room() || !self.lines.has_room() {
            return Err(FibError::Full);
        }
        let (key, len) = A::split(prefix);
        let code = next_hop.code();
        let old = if len <= ROOT_STRIDE {
            self.insert_in_root(Shape::at(0, A::BITS).slot(key), len, code)
        } else {
            let slot = Shape::at(0, A::BITS).slot(key);
            let entry = self.root_entry(slot);
            self.ask_for_chunk(slot, entry);
            self.ask_for_windows(key, len);
            let (entry, old) = self.insert_below(entry, ROOT_STRIDE, key, len, code);
            self.set_root_entry(slot, entry, chunk_slots::<A>(key, len));
            old
        };
        if old.is_none() {
            self.routes += 1;
            self.windows.count(len, true);
        }
        if A::BITS == 32 {
            self.densify();
            self.spread_some();
            self.push_some();
        }
        if self.routes >= SLOTS_FROM && self.sparse == 0 {
            self.root_to_slots();
        }
        self.make_room_for_slots();
        self.hash_change(key, len, code);
        self.windows_change(key, len);
        Ok(old.and_then(NextHopId::from_code))
    }

    /// Removes the route for exactly `prefix`; gives the next hop that it had.
    pub fn remove(&mut self, prefix: A::Prefix) -> Option<NextHopId> {
        let (key, len) = A::split(prefix);
        let slot = Shape::at(0, A::BITS).slot(key);
        let old = if len <= ROOT_STRIDE {
            self.remove_from_root(slot, len)?
        } else {
            let entry = self.root_entry(slot);
            self.ask_for_chunk(slot, entry);
            self.ask_for_windows(key, len);
            let (entry, old) = self.remove_below(entry, ROOT_STRIDE, key, len)?;
            self.set_root_entry(slot, entry, chunk_slots::<A>(key, len));
            old
        };
        self.routes -= 1;
        self.windows.count(len, false);
        if self.routes < NODE_BELOW {
            self.dense = false;
            self.root_to_node();
        }
        if A::BITS == 32 {
            self.spread_some();
            self.push_some();
        }
        self.hash_change(key, len, 0);
        self.windows_change(key, len);
        NextHopId::from_code(old)
    }

    /// Publishes everything done so far: a snapshot for workers.
    ///
    /// Costs a copy of the root, up to 192 KiB in a large table, and of the directory of a hash or windows, at most 64,
    /// or where one of the last few snapshots has no reader any more, a walk over what has changed in its copies; call it
    /// once for a batch of changes. Also takes back the memory that no reader can reach any more.
    #[must_use]
    pub fn reader(&mut self) -> FibReader<A> {
        self.reclaim();
        self.turn_waiting();
        let old = self.published.take_spare();
        if self.pushed.is_ready() || self.windows.is_ready() {
            self.log.publish(self.epoch);
        } else {
            self.log.end();
        }
        let read = !self.pushed.is_ready();
        let root = match &self.root {
            WriterRoot::Node(handle) => Root::Node(*handle),
            WriterRoot::Slots { slots, routes } => Root::Slots {
                slots: self.log.follow(
                    old.slots,
                    old.number,
                    slots,
                    read.then_some(&mut self.fresh),
                ),
                direct: if read {
                    self.direct.words()
                } else {
                    Box::default()
                },
                routes: Arc::clone(routes),
            },
        };
        let mut pushed = self.pushed.publish(
            (old.pushed, old.number),
            self.tails,
            self.lines.segments(),
            (&self.log, &mut self.fresh),
        );
        let mut windowed = self.windows.publish(
            (old.pages, old.number),
            self.epoch,
            self.lines.segments(),
            &mut self.fresh,
        );
        let fresh = self.fresh.take();
        if let Some(pushed) = &mut pushed {
            pushed.fresh = fresh;
        } else if let Some(windowed) = &mut windowed {
            windowed.fresh = fresh;
        }
        let snapshot = Arc::new(Snapshot {
            root,
            segments: Arc::clone(self.arena.segments()),
            cold: Arc::clone(self.cold.segments()),
            routes: self.routes,
            flatness: self.flats.flatness(),
            wide: self.flats.wide,
            pushed,
            few: self.few(),
            hashed: self.hashes.publish(self.arena.segments()),
            windowed,
        });
        self.published.publish(Arc::clone(&snapshot), self.epoch);
        self.epoch += 1;
        FibReader::new(snapshot, self.level)
    }

    /// Takes back memory of replaced nodes that no reader can reach any more; [`reader`](Self::reader) does it too.
    ///
    /// One call takes back twice what was replaced since the last publication and a few hundred nodes, not all that a
    /// reader held for long may have left: the next calls take the rest.
    pub fn reclaim(&mut self) {
        self.published.look();
        for blocks in self.published.share() {
            blocks.free(&mut self.arena, &mut self.cold, &mut self.lines);
        }
    }

    /// Writes the whole table into fresh memory and lets the old go (when no reader holds it), in time proportional to
    /// the number of routes: for after a large table has become a small one.
    ///
    /// # Errors
    ///
    /// [`FibError::Full`], as [`insert`](Self::insert); the table is then unchanged.
    pub fn compact(&mut self) -> Result<(), FibError> {
        *self = Self::from_routes(self.iter())?;
        Ok(())
    }

    /// The next hop of the longest prefix that holds `address`.
    #[must_use]
    pub fn lookup(&self, address: A) -> Option<NextHopId> {
        NextHopId::from_code(self.view().lookup::<A>(address.to_key()))
    }

    /// The longest prefix that holds `address`, and its next hop.
    #[must_use]
    pub fn lookup_prefix(&self, address: A) -> Option<(A::Prefix, NextHopId)> {
        self.view().longest::<A>(address.to_key())
    }

    /// The next hop of the route for exactly `prefix`.
    #[must_use]
    pub fn exact(&self, prefix: A::Prefix) -> Option<NextHopId> {
        self.view().exact::<A>(prefix)
    }

    /// The routes whose prefix holds `prefix` (itself included), shortest first.
    #[must_use]
    pub fn covering(&self, prefix: A::Prefix) -> Covering<A> {
        self.view().covering::<A>(prefix)
    }

    /// The routes whose prefix lies in `prefix` (itself included), in order of address, then length.
    #[must_use]
    pub fn covered(&self, prefix: A::Prefix) -> Routes<'_, A> {
        self.view().covered(prefix)
    }

    /// All routes, in order of address, then length.
    #[must_use]
    pub fn iter(&self) -> Routes<'_, A> {
        self.covered(A::join(0, 0))
    }

    /// The number of routes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.routes
    }

    /// Whether there is no route.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.routes == 0
    }

    /// The octets that the table takes, those of published snapshots included.
    #[must_use]
    pub fn memory(&self) -> FibMemory {
        let list = self.arena.segments().len() * size_of::<Segment>();
        let (root, root_routes) = match &self.root {
            WriterRoot::Node(_) => (0, 0),
            WriterRoot::Slots { slots, routes } => (
                size_of_val(&**slots),
                routes.capacity() * size_of::<RouteCell>(),
            ),
        };
        let nodes = self.live.lookup * 8;
        let (unread, words) = if self.pushed.is_ready() {
            (self.unread_octets() + root, 0)
        } else {
            (0, self.direct.octets())
        };
        let snapshots = self.published.snapshots();
        FibMemory {
            lookup_octets: nodes + root - unread
                + self.flats.octets()
                + self.pushed.octets()
                + self.hashes.octets()
                + self.windows.octets()
                + words
                + list,
            route_octets: unread + self.live.routes * 8 + root_routes,
            total_octets: self.arena.octets()
                + self.cold.octets()
                + self.lines.octets()
                + (root + words + self.pushed.root_octets()) * snapshots
                + root
                + self.direct.octets()
                + self.room.octets()
                + self.pushed.root_octets()
                + self.pushed.own_octets()
                + self.log.octets()
                + root_routes
                + self.published.octets()
                + self.hashes.own_octets(snapshots)
                + self.windows.all_octets(snapshots)
                + self.draft.octets()
                + self.fresh.octets()
                + size_of::<Self>(),
        }
    }

    /// Published snapshots that are not let go yet.
    #[cfg(test)]
    pub(super) fn snapshots(&self) -> usize {
        self.published.snapshots()
    }

    pub(super) fn view(&self) -> View<'_> {
        let (slots, routes, node): (&[u64], &[RouteCell], u32) = match &self.root {
            WriterRoot::Node(handle) => (&[], &[], *handle),
            WriterRoot::Slots { slots, routes } => (slots, routes, 0),
        };
        View {
            slots,
            direct: &[],
            routes,
            node,
            flatness: self.flats.flatness(),
            wide: self.flats.wide,
            segments: self.arena.segments(),
            cold: self.cold.segments(),
        }
    }

    pub(super) fn node(&self, handle: u32, shape: Shape) -> Node<'_> {
        Node::new(self.arena.block(handle), self.cold.segments(), shape)
    }

    /// Writes the draft into blocks of its own.
    pub(super) fn write_draft(&mut self) -> u32 {
        let shape = &mut self.draft.shape;
        if shape.narrow && shape.depth == ROOT_STRIDE {
            shape.dense = self.dense;
            self.sparse += usize::from(!self.dense);
        }
        if shape.is_narrow_tail() {
            self.draft.set_spread(self.tails.spread);
        }
        self.tails.add(self.draft.shape);
        let extent = self.draft.extent();
        let (handle, cold) = self.allocate(extent);
        self.draft.write(
            self.arena.block(handle),
            cold,
            self.cold.block(cold),
            self.epoch,
        );
        handle
    }

    fn allocate(&mut self, extent: Extent) -> (u32, u32) {
        self.live.lookup += extent.lookup;
        self.live.routes += extent.routes;
        (
            self.arena.allocate(extent.lookup),
            self.cold.allocate(extent.routes),
        )
    }

    /// Lets a node's cells go: at once when no snapshot can reach them, later otherwise.
    pub(super) fn release(&mut self, handle: u32, shape: Shape) {
        let extent = self.node(handle, shape).extent();
        self.release_known(handle, shape, extent);
    }

    /// The same of a node of `extent`.
    fn release_known(&mut self, handle: u32, shape: Shape, extent: Extent) {
        let node = self.node(handle, shape);
        let (cold, epoch, shape) = (node.cold_handle(), node.epoch(), node.shape);
        self.sparse -= usize::from(shape.is_sparse());
        self.tails.subtract(shape);
        self.live.lookup -= extent.lookup;
        self.live.routes -= extent.routes;
        let [node, cold] =
            [(handle, extent.lookup), (cold, extent.routes)].map(|(handle, cells)| Block {
                handle,
                cells: u32::try_from(cells).unwrap_or_default(),
            });
        let lines = Block::default();
        let blocks = Blocks {
            node,
            cold,
            lines,
            epoch,
        };
        if let Some(blocks) = self.published.retire(blocks) {
            blocks.free(&mut self.arena, &mut self.cold, &mut self.lines);
        }
    }

    /// Lets a flat chunk of `cells` cells go, whose second cell is its epoch.
    pub(super) fn retire(&mut self, handle: u32, cells: usize) {
        let blocks = Blocks {
            node: Block {
                handle,
                cells: u32::try_from(cells).unwrap_or_default(),
            },
            cold: Block::default(),
            lines: Block::default(),
            epoch: load(self.arena.block(handle), 1),
        };
        if let Some(blocks) = self.published.retire(blocks) {
            blocks.free(&mut self.arena, &mut self.cold, &mut self.lines);
        }
    }

    /// Asks for what a change of the chunk of root slot `slot` will read and copy, all of it at once: in a large table it is
    /// in no cache, and a change would wait for one part after the other.
    fn ask_for_chunk(&self, slot: usize, entry: Entry) {
        if !self.pushed.is_ready() || !entry.has_child() {
            return;
        }
        let node = self.node(entry.handle(), CHUNK);
        ask_for_block(node.cells, CHUNK_ASKED);
        self.ask_for_pushed(slot);
        ask_for_block(node.cold_cells(), 1 + node.route_count().div_ceil(2));
    }

    /// Notes that the block of lines at `handle` is new to readers.
    pub(super) fn note_fresh(&mut self, handle: u32, cells: usize) {
        let block = self.lines.block(handle);
        self.fresh
            .note(block.as_ptr().addr(), cells * size_of::<AtomicU64>());
    }

    /// Lets a block of lines go, written in `epoch`.
    pub(super) fn retire_lines(&mut self, handle: u32, cells: usize, epoch: u64) {
        let blocks = Blocks {
            node: Block::default(),
            cold: Block::default(),
            lines: Block {
                handle,
                cells: u32::try_from(cells).unwrap_or_default(),
            },
            epoch,
        };
        if let Some(blocks) = self.published.retire(blocks) {
            blocks.free(&mut self.arena, &mut self.cold, &mut self.lines);
        }
    }

    /// The number of snapshots made so far, and 1.
    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Puts the draft where the node at `handle` was.
    pub(super) fn replace(&mut self, handle: u32, shape: Shape) -> u32 {
        self.release(handle, shape);
        self.write_draft()
    }

    /// Makes `slot` of a node, which has a child, say `entry`, which has one too. Gives the node's new handle.
    pub(super) fn replace_child(
        &mut self,
        handle: u32,
        shape: Shape,
        slot: usize,
        entry: Entry,
    ) -> u32 {
        let node = self.node(handle, shape);
        if node.entry(slot) == entry {
            return handle;
        }
        if node.epoch() == self.epoch {
            node.set_child(slot, entry);
            return handle;
        }
        if node.shape.is_sparse() {
            self.read_draft(handle, shape);
            self.draft.set(slot, entry);
            return self.replace(handle, shape);
        }
        let extent = node.extent();
        let (copy, cold) = self.allocate(extent);
        let (from, to) = (self.node(handle, shape), self.arena.block(copy));
        copy_cells(from.cells, to, extent.lookup);
        copy_cells(from.cold_cells(), self.cold.block(cold), extent.routes);
        let header = load(from.cells, 0) & 0xffff_ffff | u64::from(cold) << 32;
        store(to, 0, header);
        let to = self.node(copy, shape);
        store(to.cold_cells(), 0, self.epoch);
        to.set_child(slot, entry);
        self.release_known(handle, shape, extent);
        copy
    }

    /// Adds or replaces a route longer than `depth` below `entry`, whose node ends at `depth`.
    fn insert_below(
        &mut self,
        entry: Entry,
        depth: u8,
        key: u128,
        len: u8,
        code: u16,
    ) -> (Entry, Option<u16>) {
        if !entry.has_child() {
            return (self.insert_alone(entry, depth, key, len, code), None);
        }
        let mut handle = entry.handle();
        let mut skip = entry.skip();
        if skip > 0 {
            let shape = Shape::at(depth + 8 * skip, A::BITS);
            let common = common_octets(
                self.node(handle, shape).expected(),
                skip,
                octets(key, depth, skip),
            );
            let kept = common.min(skippable(depth, len));
            if kept < skip {
                handle = self.split(handle, depth, skip, kept);
                skip = kept;
            }
        }
        let shape = Shape::at(depth + 8 * skip, A::BITS);
        let slot = shape.slot(key);
        if len <= shape.end() {
            let node = self.node(handle, shape);
            if let Some(splice) = Splice::insert(node, slot, len - shape.depth, code) {
                handle = self.splice(handle, shape, &splice);
                let old = Some(splice.old).filter(|old| *old != 0);
                return (entry.with_child_of(Entry::child(handle, skip)), old);
            }
            self.read_draft(handle, shape);
            let old = self.draft.insert(slot, len - shape.depth, code);
            handle = self.replace(handle, shape);
            return (entry.with_child_of(Entry::child(handle, skip)), old);
        }
        let child = self.node(handle, shape).entry(slot);
        let (changed, old) = self.insert_below(child, shape.end(), key, len, code);
        handle = if child.has_child() {
            self.replace_child(handle, shape, slot, changed)
        } else {
            self.read_draft(handle, shape);
            self.draft.set(slot, changed);
            self.replace(handle, shape)
        };
        (entry.with_child_of(Entry::child(handle, skip)), old)
    }

    /// Makes the first child below `entry`, for one route.
    fn insert_alone(&mut self, entry: Entry, depth: u8, key: u128, len: u8, code: u16) -> Entry {
        let skip = skippable(depth, len);
        let shape = Shape::at(depth + 8 * skip, A::BITS);
        let slot = shape.slot(key);
        let child = if len <= shape.end() {
            self.draft.clear(shape, skip, octets(key, depth, skip));
            self.draft.insert(slot, len - shape.depth, code);
            self.write_draft()
        } else {
            let below = self.insert_alone(Entry::default(), shape.end(), key, len, code);
            self.draft.clear(shape, skip, octets(key, depth, skip));
            self.draft.set(slot, below);
            self.write_draft()
        };
        entry.with_child_of(Entry::child(child, skip))
    }

    /// Puts a node above the one at `handle` that skips only the first `kept` of its octets. Gives its handle.
    fn split(&mut self, handle: u32, depth: u8, skip: u8, kept: u8) -> u32 {
        let below = skip - kept - 1;
        let shape = Shape::at(depth + 8 * skip, A::BITS);
        self.read_draft(handle, shape);
        let expected = self.draft.expected;
        self.draft.skip = below;
        self.draft.expected = expected & octet_mask(below);
        let lower = self.replace(handle, shape);
        let slot = (expected >> (8 * below) & 0xff) as usize;
        let upper = expected
            .checked_shr(8 * (u32::from(below) + 1))
            .unwrap_or(0);
        self.draft
            .clear(Shape::at(depth + 8 * kept, A::BITS), kept, upper);
        self.draft.set(slot, Entry::child(lower, below));
        self.write_draft()
    }

    /// Removes a route longer than `depth` below `entry`; `None` when there is no such route.
    fn remove_below(
        &mut self,
        entry: Entry,
        depth: u8,
        key: u128,
        len: u8,
    ) -> Option<(Entry, u16)> {
        let skip = entry.skip();
        let shape = Shape::at(depth.checked_add(8 * skip)?, A::BITS);
        let handle = entry.handle();
        if !entry.has_child() || len <= shape.depth {
            return None;
        }
        if skip > 0 && self.node(handle, shape).expected() != octets(key, depth, skip) {
            return None;
        }
        let slot = shape.slot(key);
        let old = if len <= shape.end() {
            let node = self.node(handle, shape);
            if let Some(splice) = Splice::remove(node, slot, len - shape.depth) {
                let handle = self.splice(handle, shape, &splice);
                return Some((entry.with_child_of(Entry::child(handle, skip)), splice.old));
            }
            node.routes().find(slot, len - shape.depth)?;
            self.read_draft(handle, shape);
            self.draft.remove(slot, len - shape.depth)?
        } else {
            let child = self.node(handle, shape).entry(slot);
            let (changed, old) = self.remove_below(child, shape.end(), key, len)?;
            if changed.has_child() {
                let handle = self.replace_child(handle, shape, slot, changed);
                return Some((entry.with_child_of(Entry::child(handle, skip)), old));
            }
            self.read_draft(handle, shape);
            self.draft.set(slot, changed);
            old
        };
        if self.draft.is_empty() {
            self.release(handle, shape);
            return Some((entry.with_child_of(Entry::default()), old));
        }
        if let Some((slot, child)) = self.draft.only_child()
            && shape.stride == 8
            && skip + 1 + child.skip() <= MAX_SKIP
        {
            let upper = self.draft.expected;
            self.release(handle, shape);
            let lower = Shape::at(shape.end() + 8 * child.skip(), A::BITS);
            self.read_draft(child.handle(), lower);
            let joined = upper.checked_shl(8).unwrap_or(0) | slot as u64;
            self.draft.expected |= joined.checked_shl(8 * u32::from(child.skip())).unwrap_or(0);
            self.draft.skip += skip + 1;
            let handle = self.replace(child.handle(), lower);
            return Some((
                entry.with_child_of(Entry::child(handle, self.draft.skip)),
                old,
            ));
        }
        let handle = self.replace(handle, shape);
        Some((entry.with_child_of(Entry::child(handle, skip)), old))
    }

    /// Changes the node at `handle` as `splice` says: where it is if no snapshot reaches it and it fits, anew otherwise.
    fn splice(&mut self, handle: u32, shape: Shape, splice: &Splice) -> u32 {
        let node = self.node(handle, shape);
        let [before, extent] = splice.extents(node);
        if node.epoch() == self.epoch
            && Arena::same_size(before.lookup, extent.lookup)
            && Arena::same_size(before.routes, extent.routes)
            && splice.keeps_top()
        {
            splice.write_in_place(node);
            self.live.lookup = self.live.lookup + extent.lookup - before.lookup;
            self.live.routes = self.live.routes + extent.routes - before.routes;
            return handle;
        }
        let (copy, cold) = self.allocate(extent);
        splice.write(
            self.node(handle, shape),
            self.arena.block(copy),
            cold,
            self.cold.block(cold),
            self.epoch,
        );
        self.tails.add(self.node(copy, shape).shape);
        self.release_known(handle, shape, before);
        copy
    }

    pub(super) fn read_draft(&mut self, handle: u32, shape: Shape) {
        let cells = self.arena.block(handle);
        self.draft
            .read(Node::new(cells, self.cold.segments(), shape));
    }
}

/// The first and the last slot of its chunk that a route longer than [`ROOT_STRIDE`] can decide.
fn chunk_slots<A: Address>(key: u128, len: u8) -> (usize, usize) {
    let shape = Shape::at(ROOT_STRIDE, A::BITS);
    let slot = shape.slot(key);
    let unused = shape.end().saturating_sub(len);
    (slot, slot | ((1 << unused) - 1))
}

/// Whole octets after bit `depth` that a node for a prefix of `len` bits can skip.
///
/// Only nodes after the chunk skip, and only as many octets as one cell holds.
pub(super) fn skippable(depth: u8, len: u8) -> u8 {
    if depth <= ROOT_STRIDE {
        0
    } else {
        (len.saturating_sub(depth + 1) / 8).min(MAX_SKIP)
    }
}

/// The `count` octets of `key` after bit `depth`, right-aligned; `count` is at most 8.
pub(super) fn octets(key: u128, depth: u8, count: u8) -> u64 {
    let rest = key.checked_shl(u32::from(depth)).unwrap_or(0);
    let rest = rest.checked_shr(128 - 8 * u32::from(count)).unwrap_or(0);
    (rest & 0xffff_ffff_ffff_ffff) as u64
}

/// The number of leading octets that two runs of `count` octets share.
pub(super) fn common_octets(one: u64, count: u8, other: u64) -> u8 {
    let different = one ^ other;
    (0..count)
        .find(|at| different >> (8 * (count - 1 - at)) & 0xff != 0)
        .unwrap_or(count)
}

fn octet_mask(count: u8) -> u64 {
    u64::MAX.checked_shr(64 - 8 * u32::from(count)).unwrap_or(0)
}

/// Octets that one node may skip: with the octet that it decides on they are shifted out of a cell at once.
pub(super) const MAX_SKIP: u8 = 6;

/// The number of routes from which the root is laid out slot by slot: the 64 KiB are then below what the nodes take.
pub(super) const SLOTS_FROM: usize = 512;
/// The number of IPv4 routes from which chunks are dense. Every change makes two more of them so, and none is left when
/// the root is laid out slot by slot.
pub(super) const DENSE_FROM: usize = 256;
/// The number of routes below which the root is a node again; well below, so that a table does not go to and fro.
const NODE_BELOW: usize = 128;
/// Cells that are asked for of a chunk's node that is about to be changed: all of most.
const CHUNK_ASKED: usize = 12 * LINE_CELLS;
