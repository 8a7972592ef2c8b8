//! The writer's root: a node while the table is small, then all slots laid out one by one.
//!
//! A change of a root that is laid out writes the slot that leads to the chunk, or, for a route that ends in the root,
//! the slots that no longer route of the root covers. What lookups read of the root besides follows at once: the words
//! of `direct.rs`, the flat chunks of `flat/`, the pushed chunks of `pushed/`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use super::address::Address;
use super::arena::writes;
use super::direct::{Direct, RootWord};
use super::flat::node_entry;
use super::log::Log;
use super::node::{Entry, Gaps, ROOT_STRIDE, RouteCell, RouteList, Shape};
use super::table::{DENSE_FROM, Fib, SLOTS_FROM};

/// The root as the writer has it.
#[derive(Debug)]
pub(super) enum WriterRoot {
    /// A node in the arena, for small tables.
    Node(u32),
    /// All slots one by one, and the routes that end in the root.
    Slots {
        slots: Box<[u64]>,
        routes: Arc<Vec<RouteCell>>,
    },
}

/// Room for a root that will soon be laid out, made a share a change: memory that the operating system has just given costs
/// more to write for the first time than all else that laying the root out takes.
#[derive(Debug, Default)]
pub(super) struct Room {
    slots: Vec<u64>,
    words: Vec<RootWord>,
}

impl Room {
    /// Makes a share of what a table of `bits` needs.
    fn make_some(&mut self, bits: u8) {
        let slots = Shape::at(0, bits).slots();
        add(&mut self.slots, slots);
        if bits == 32 {
            add(&mut self.words, slots);
        }
    }

    pub(super) fn octets(&self) -> usize {
        self.slots.capacity() * size_of::<u64>() + self.words.capacity() * size_of::<RootWord>()
    }
}

/// Adds a share to `list`, until it has `len` elements.
fn add<T: Clone + Default>(list: &mut Vec<T>, len: usize) {
    let share = (len / ROOM_CHANGES).min(len - list.len());
    list.reserve_exact(len - list.len());
    writes(share * size_of::<T>() / 8);
    list.resize(list.len() + share, T::default());
}

impl<A: Address> Fib<A> {
    pub(super) fn root_entry(&self, slot: usize) -> Entry {
        match &self.root {
            WriterRoot::Node(handle) => self.node(*handle, Shape::at(0, A::BITS)).entry(slot),
            WriterRoot::Slots { slots, .. } => {
                let entry = Entry(slots.get(slot).copied().unwrap_or_default());
                node_entry(self.arena.segments(), entry)
            }
        }
    }

    /// `changed` are the slots of the chunk that may say something else than before, the first and the last.
    pub(super) fn set_root_entry(&mut self, slot: usize, entry: Entry, changed: (usize, usize)) {
        let shape = Shape::at(0, A::BITS);
        match &mut self.root {
            WriterRoot::Node(handle) => {
                let handle = *handle;
                let before = self.node(handle, shape).entry(slot);
                let handle = if before.has_child() && entry.has_child() {
                    self.replace_child(handle, shape, slot, entry)
                } else {
                    self.read_draft(handle, shape);
                    self.draft.set(slot, entry);
                    self.replace(handle, shape)
                };
                self.root = WriterRoot::Node(handle);
            }
            WriterRoot::Slots { .. } => self.set_root_slot(slot, entry, changed),
        }
    }

    pub(super) fn insert_in_root(&mut self, slot: usize, len: u8, code: u16) -> Option<u16> {
        match &mut self.root {
            WriterRoot::Node(handle) => {
                let handle = *handle;
                self.read_draft(handle, Shape::at(0, A::BITS));
                let old = self.draft.insert(slot, len, code);
                self.root = WriterRoot::Node(self.replace(handle, Shape::at(0, A::BITS)));
                old
            }
            WriterRoot::Slots { slots, routes } => {
                let route = RouteCell::new(slot, len, code);
                let routes = Arc::make_mut(routes);
                writes(routes.len());
                let index = routes.lower_bound(route.key());
                let old = match routes.get_mut(index) {
                    Some(old) if old.key() == route.key() => Some(mem::replace(old, route).code()),
                    Some(_) | None => {
                        routes.insert(index, route);
                        None
                    }
                };
                recode(
                    slots,
                    (&mut self.direct, &mut self.log),
                    route,
                    Gaps::new(routes, index + 1, ROOT_STRIDE),
                    code,
                );
                self.push_root(route);
                old
            }
        }
    }

    pub(super) fn remove_from_root(&mut self, slot: usize, len: u8) -> Option<u16> {
        match &mut self.root {
            WriterRoot::Node(handle) => {
                let handle = *handle;
                self.read_draft(handle, Shape::at(0, A::BITS));
                let old = self.draft.remove(slot, len)?;
                self.root = WriterRoot::Node(self.replace(handle, Shape::at(0, A::BITS)));
                Some(old)
            }
            WriterRoot::Slots { slots, routes } => {
                let removed = routes.find(slot, len)?;
                let routes = Arc::make_mut(routes);
                writes(routes.len());
                let index = routes.lower_bound(removed.key());
                routes.remove(index);
                let code = routes
                    .as_slice()
                    .cover(slot, ROOT_STRIDE, len)
                    .map_or(0, RouteCell::code);
                let gaps = Gaps::new(routes, index, ROOT_STRIDE);
                let noted = (&mut self.direct, &mut self.log);
                recode(slots, noted, removed, gaps, code);
                self.push_root(removed);
                Some(removed.code())
            }
        }
    }

    /// Makes two chunks dense that are not, in a table of so many routes that all are to be.
    pub(super) fn densify(&mut self) {
        self.dense |= self.routes >= DENSE_FROM;
        let root = Shape::at(0, A::BITS);
        let chunk = Shape::at(ROOT_STRIDE, A::BITS);
        for _ in 0..2 {
            let WriterRoot::Node(handle) = self.root else {
                return;
            };
            if !self.dense || self.sparse == 0 {
                return;
            }
            let node = self.node(handle, root);
            let next = |from| {
                let mut child = node.next_child(from);
                while let Some((slot, entry)) = child {
                    if self.node(entry.handle(), chunk).shape.is_sparse() {
                        return child;
                    }
                    child = node.next_child(slot + 1);
                }
                None
            };
            let Some((slot, entry)) = next(self.sparse_cursor).or_else(|| next(0)) else {
                return;
            };
            self.sparse_cursor = slot + 1;
            self.read_draft(entry.handle(), chunk);
            let dense = self.replace(entry.handle(), chunk);
            let dense = entry.with_child_of(Entry::child(dense, 0));
            self.root = WriterRoot::Node(self.replace_child(handle, root, slot, dense));
        }
    }

    /// Makes a share of the room for a root that is laid out, where one more of [`ROOM_CHANGES`] routes will have it so.
    pub(super) fn make_room_for_slots(&mut self) {
        if self.routes + ROOM_CHANGES >= SLOTS_FROM && matches!(self.root, WriterRoot::Node(_)) {
            self.room.make_some(A::BITS);
        }
    }

    /// Lays the root out slot by slot.
    pub(super) fn root_to_slots(&mut self) {
        let WriterRoot::Node(handle) = self.root else {
            return;
        };
        let shape = Shape::at(0, A::BITS);
        self.read_draft(handle, shape);
        let Room { mut slots, words } = mem::take(&mut self.room);
        slots.clear();
        slots.reserve_exact(shape.slots());
        writes(shape.slots());
        let mut chunks = 0;
        self.draft.for_each_run(|count, entry| {
            slots.resize(slots.len() + count, entry.0);
            chunks += usize::from(entry.has_child());
        });
        self.release(handle, shape);
        self.flats.chunks = chunks;
        if A::BITS == 32 {
            self.direct = Direct::new(words, self.arena.segments(), &slots, 0);
        }
        self.root = WriterRoot::Slots {
            slots: slots.into(),
            routes: Arc::new(self.draft.routes.clone()),
        };
    }

    pub(super) fn root_to_node(&mut self) {
        self.room = Room::default();
        self.unpush();
        self.unflatten();
        self.flats.clear();
        self.direct = Direct::default();
        let WriterRoot::Slots { slots, routes } = &self.root else {
            return;
        };
        self.draft.clear(Shape::at(0, A::BITS), 0, 0);
        self.draft.set_all(slots.iter().map(|slot| Entry(*slot)));
        self.draft.routes.extend_from_slice(routes);
        self.root = WriterRoot::Node(self.write_draft());
    }
}

/// Gives the slots that `route` decides another next hop.
fn recode(
    slots: &mut [u64],
    (direct, log): (&mut Direct, &mut Log),
    route: RouteCell,
    mut gaps: Gaps<'_, Vec<RouteCell>>,
    code: u16,
) {
    let last = route.last_slot(ROOT_STRIDE);
    for (slot, entry) in slots
        .iter_mut()
        .enumerate()
        .take(last + 1)
        .skip(route.slot())
    {
        if gaps.holds(slot) {
            writes(1);
            *entry = Entry(*entry).with_code(code).0;
            direct.set_code(slot, code);
            log.note(slot);
        }
    }
}

/// Changes over which the room for a root is made.
const ROOM_CHANGES: usize = 64;
