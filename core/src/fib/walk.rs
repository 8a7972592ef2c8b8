//! Ways through a table: one lookup, and the questions about prefixes.
//!
//! A [`View`] is what the writer and a snapshot have in common, so that both answer by the same code. Batches are in
//! `batch.rs`.

use alloc::vec::{self, Vec};
use core::iter::FusedIterator;
use core::marker::PhantomData;

use super::NextHopId;
use super::address::Address;
use super::arena::{Segment, block};
use super::direct::RootWord;
use super::flat::{Flatness, node_entry};
use super::node::{Entry, Node, ROOT_STRIDE, RouteCell, RouteList, Shape};
use super::table::octets;

/// A table to read: of a writer or of a snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    /// The root slot by slot; empty when the root is a node.
    pub(super) slots: &'a [u64],
    /// The same with addresses in place of handles (`direct.rs`); empty where there are none.
    pub(super) direct: &'a [RootWord],
    /// The routes that end in the root, when it is laid out slot by slot.
    pub(super) routes: &'a [RouteCell],
    /// The root's handle otherwise.
    pub(super) node: u32,
    /// How many of the chunks below the slots are flat.
    pub(super) flatness: Flatness,
    /// Whether their leaves take two octets.
    pub(super) wide: bool,
    pub(super) segments: &'a [Segment],
    /// The segments of cold blocks.
    pub(super) cold: &'a [Segment],
}

/// A table with a hash or windows beside its trie, as single lookups ask for it: a [`View`] of all that it has would be
/// set up for each of them, and hardly one needs it.
pub(super) trait Trie {
    /// The code of the next hop that the trie has for the address `key`; 0 when there is none. Apart from who asks, so
    /// that what it needs is not set up where it is not called.
    fn walk(&self, key: u128) -> u16;

    /// As [`View::slots`].
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "only x86-64 has windows")
    )]
    fn slots(&self) -> &[u64];

    /// What the pages of a hash are in.
    fn segments(&self) -> &[Segment];
}

impl<'a> View<'a> {
    /// The code of the next hop for the address `key`; 0 when there is none.
    #[inline]
    pub(super) fn lookup<A: Address>(&self, key: u128) -> u16 {
        let mut entry = self.root_entry(key);
        let mut code = entry.code();
        let mut depth = ROOT_STRIDE;
        while entry.has_child() {
            let shape = Shape::at(depth + 8 * entry.skip(), A::BITS);
            let node = self.node(entry.handle(), shape);
            if entry.skip() > 0 && node.expected() != octets(key, depth, entry.skip()) {
                return code;
            }
            entry = node.entry(shape.slot(key));
            if entry.code() != 0 {
                code = entry.code();
            }
            depth = shape.end();
        }
        code
    }

    pub(super) fn longest<A: Address>(&self, key: u128) -> Option<(A::Prefix, NextHopId)> {
        let mut longest = None;
        self.descend::<A>(key, A::BITS, |routes, shape| {
            if let Some(route) = routes.cover(shape.slot(key), shape.stride, shape.stride) {
                longest = Some((shape.depth + route.len(), route.code()));
            }
        });
        let (len, code) = longest?;
        Some((
            A::join(key & super::address::prefix_mask(len), len),
            NextHopId::from_code(code)?,
        ))
    }

    pub(super) fn exact<A: Address>(&self, prefix: A::Prefix) -> Option<NextHopId> {
        let (key, len) = A::split(prefix);
        let mut found = None;
        self.descend::<A>(key, len, |routes, shape| {
            if len <= shape.end() {
                found = routes.find(shape.slot(key), len - shape.depth);
            }
        });
        NextHopId::from_code(found?.code())
    }

    pub(super) fn covering<A: Address>(&self, prefix: A::Prefix) -> Covering<A> {
        let (key, len) = A::split(prefix);
        let mut routes_found = Vec::new();
        self.descend::<A>(key, len, |routes, shape| {
            let slot = shape.slot(key);
            for bits in 0..=shape.stride.min(len - shape.depth) {
                let unused = shape.stride - bits;
                let Some(route) = routes.find(slot >> unused << unused, bits) else {
                    continue;
                };
                let len = shape.depth + bits;
                let prefix = A::join(key & super::address::prefix_mask(len), len);
                routes_found
                    .extend(NextHopId::from_code(route.code()).map(|next_hop| (prefix, next_hop)));
            }
        });
        Covering {
            routes: routes_found.into_iter(),
        }
    }

    pub(super) fn covered<A: Address>(&self, prefix: A::Prefix) -> Routes<'a, A> {
        let (key, len) = A::split(prefix);
        let mut routes = Routes {
            view: *self,
            stack: Vec::new(),
            family: PhantomData,
        };
        let mut shape = Shape::at(0, A::BITS);
        let mut handle = self.node;
        loop {
            let slot = shape.slot(key);
            if len <= shape.end() {
                let last = slot | ((1 << (shape.end() - len)) - 1);
                let first_route = RouteCell::new(slot, len - shape.depth, 0).key();
                routes.push(
                    handle,
                    shape,
                    key & super::address::prefix_mask(shape.depth),
                    (slot, last),
                    first_route,
                );
                return routes;
            }
            let entry = if shape.depth == 0 {
                self.root_entry(key)
            } else {
                self.node(handle, shape).entry(slot)
            };
            if !entry.has_child() {
                return routes;
            }
            let end = shape.end();
            handle = entry.handle();
            shape = Shape::at(end + 8 * entry.skip(), A::BITS);
            let expected = self.node(handle, shape).expected();
            let unasked = shape.depth.saturating_sub(len);
            if (expected ^ octets(key, end, entry.skip()))
                .checked_shr(u32::from(unasked))
                .unwrap_or(0)
                != 0
            {
                return routes;
            }
            if len <= shape.depth {
                let prefix =
                    key & super::address::prefix_mask(end) | skipped_key(expected, shape.depth);
                routes.push(handle, shape, prefix, (0, shape.slots() - 1), 0);
                return routes;
            }
        }
    }

    /// The routes that come after `last`, which may be gone, in order of address, then length; all for `None`.
    pub(super) fn after<A: Address>(&self, last: Option<(u128, u8)>) -> Routes<'a, A> {
        let Some((key, len)) = last else {
            return self.covered(A::join(0, 0));
        };
        let mut routes = Routes {
            view: *self,
            stack: Vec::new(),
            family: PhantomData,
        };
        let mut shape = Shape::at(0, A::BITS);
        let mut handle = self.node;
        loop {
            let slot = shape.slot(key);
            let here = len <= shape.end();
            // Routes of a slot come before its child, and longer ones of the node after shorter ones.
            let bits = if here { len - shape.depth } else { 15 };
            routes.push(
                handle,
                shape,
                key & super::address::prefix_mask(shape.depth),
                (slot + usize::from(!here), shape.slots() - 1),
                RouteCell::new(slot, bits, 0).key() + 1,
            );
            let entry = if shape.depth == 0 {
                self.root_entry(key)
            } else {
                self.node(handle, shape).entry(slot)
            };
            if here || !entry.has_child() {
                return routes;
            }
            let end = shape.end();
            handle = entry.handle();
            shape = Shape::at(end + 8 * entry.skip(), A::BITS);
            let skipped = octets(key, end, entry.skip());
            let expected = if entry.skip() > 0 {
                self.node(handle, shape).expected()
            } else {
                0
            };
            if expected != skipped || len <= shape.depth {
                if expected >= skipped {
                    let prefix =
                        key & super::address::prefix_mask(end) | skipped_key(expected, shape.depth);
                    routes.push(handle, shape, prefix, (0, shape.slots() - 1), 0);
                }
                return routes;
            }
        }
    }

    /// Shows `visit` the routes of each node on the way to the prefix `key`/`len`, from the root on.
    fn descend<A: Address>(
        &self,
        key: u128,
        len: u8,
        mut visit: impl FnMut(&dyn RouteList, Shape),
    ) {
        let mut shape = Shape::at(0, A::BITS);
        let mut entry = self.root_entry(key);
        if self.slots.is_empty() {
            visit(&self.node(self.node, shape).routes(), shape);
        } else {
            visit(&self.routes, shape);
        }
        while entry.has_child() {
            let end = shape.end();
            shape = Shape::at(end + 8 * entry.skip(), A::BITS);
            let node = self.node(entry.handle(), shape);
            if len <= shape.depth
                || (entry.skip() > 0 && node.expected() != octets(key, end, entry.skip()))
            {
                return;
            }
            visit(&node.routes(), shape);
            entry = node.entry(shape.slot(key));
        }
    }

    pub(super) fn root_entry(&self, key: u128) -> Entry {
        let slot = (key >> (128 - u32::from(ROOT_STRIDE))) as usize;
        if self.slots.is_empty() {
            return self.node(self.node, Shape::at(0, 128)).entry(slot);
        }
        let entry = Entry(self.slots.get(slot).copied().unwrap_or_default());
        node_entry(self.segments, entry)
    }

    pub(super) fn node(&self, handle: u32, shape: Shape) -> Node<'a> {
        Node::new(block(self.segments, handle), self.cold, shape)
    }
}

/// The key bits of octets that end at `depth`.
fn skipped_key(expected: u64, depth: u8) -> u128 {
    u128::from(expected)
        .checked_shl(128 - u32::from(depth))
        .unwrap_or(0)
}

/// The routes whose prefix holds a given one, shortest first. Made by [`Fib::covering`](super::Fib::covering).
#[derive(Clone, Debug)]
pub struct Covering<A: Address> {
    routes: vec::IntoIter<(A::Prefix, NextHopId)>,
}

impl<A: Address> Iterator for Covering<A> {
    type Item = (A::Prefix, NextHopId);

    fn next(&mut self) -> Option<Self::Item> {
        self.routes.next()
    }
}

impl<A: Address> DoubleEndedIterator for Covering<A> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.routes.next_back()
    }
}

impl<A: Address> FusedIterator for Covering<A> {}

/// Routes in order of address, then length. Made by [`Fib::iter`](super::Fib::iter) and
/// [`Fib::covered`](super::Fib::covered).
#[derive(Clone, Debug)]
pub struct Routes<'a, A> {
    view: View<'a>,
    stack: Vec<Frame>,
    family: PhantomData<A>,
}

/// A node being walked: its routes and its children merge by slot.
#[derive(Clone, Copy, Debug)]
struct Frame {
    handle: u32,
    shape: Shape,
    /// The key bits before the node's own.
    prefix: u128,
    next_route: usize,
    next_child: Option<(usize, Entry)>,
    last_slot: usize,
}

impl<A: Address> Routes<'_, A> {
    fn push(
        &mut self,
        handle: u32,
        shape: Shape,
        prefix: u128,
        slots: (usize, usize),
        first_route: u32,
    ) {
        let (first_slot, last_slot) = slots;
        let mut frame = Frame {
            handle,
            shape,
            prefix,
            next_route: 0,
            next_child: None,
            last_slot,
        };
        frame.next_child = self.child_from(&frame, first_slot);
        frame.next_route = self.with_routes(&frame, |routes| routes.lower_bound(first_route));
        self.stack.push(frame);
    }

    fn at_root_slots(&self, frame: &Frame) -> bool {
        frame.shape.depth == 0 && !self.view.slots.is_empty()
    }

    fn with_routes<T>(&self, frame: &Frame, ask: impl FnOnce(&dyn RouteList) -> T) -> T {
        if self.at_root_slots(frame) {
            return ask(&self.view.routes);
        }
        ask(&self.view.node(frame.handle, frame.shape).routes())
    }

    fn child_from(&self, frame: &Frame, slot: usize) -> Option<(usize, Entry)> {
        let child = if self.at_root_slots(frame) {
            let slots = self.view.slots.iter().enumerate().skip(slot);
            slots
                .map(|(slot, entry)| (slot, node_entry(self.view.segments, Entry(*entry))))
                .find(|(_, entry)| entry.has_child())
        } else {
            self.view.node(frame.handle, frame.shape).next_child(slot)
        };
        child.filter(|(slot, _)| *slot <= frame.last_slot)
    }
}

impl<A: Address> Iterator for Routes<'_, A> {
    type Item = (A::Prefix, NextHopId);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut frame = *self.stack.last()?;
            let route = self.with_routes(&frame, |routes| routes.at(frame.next_route));
            let route = Some(route).filter(|route| route.0 != 0 && route.slot() <= frame.last_slot);
            match (route, frame.next_child) {
                (Some(route), child) if child.is_none_or(|(slot, _)| route.slot() <= slot) => {
                    frame.next_route += 1;
                    *self.stack.last_mut()? = frame;
                    let key = frame.prefix | frame.shape.slot_key(route.slot());
                    let next_hop = NextHopId::from_code(route.code())?;
                    return Some((A::join(key, frame.shape.depth + route.len()), next_hop));
                }
                (_, Some((slot, entry))) => {
                    let end = frame.shape.end();
                    let shape = Shape::at(end + 8 * entry.skip(), A::BITS);
                    let expected = self.view.node(entry.handle(), shape).expected();
                    let skipped = if entry.skip() > 0 {
                        skipped_key(expected, shape.depth)
                    } else {
                        0
                    };
                    let prefix = frame.prefix | frame.shape.slot_key(slot) | skipped;
                    frame.next_child = self.child_from(&frame, slot + 1);
                    *self.stack.last_mut()? = frame;
                    self.push(entry.handle(), shape, prefix, (0, shape.slots() - 1), 0);
                }
                (_, None) => {
                    self.stack.pop();
                }
            }
        }
    }
}

impl<A: Address> FusedIterator for Routes<'_, A> {}
