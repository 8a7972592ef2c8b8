//! Pushed chunks: the second level of a large IPv4 table once more, for lookups only, with what the root says pushed
//! into its leaves.
//!
//! A lookup in the trie asks root, top, group cell and leaf, and chooses between what the leaf and what the root says.
//! Here each root slot has a block whose group cells stand in place, 64 of them, and whose leaves say all there is to
//! say: root slot, group cell, leaf, and no choice. A leaf takes one octet while next hop codes fit it, two otherwise. In
//! three of four groups of a full table every slot says the same; that stands in the group cell itself, and the leaf is
//! read from the line that has just come. The trie's second level is then for the writer and for questions about
//! prefixes.
//!
//! What is pushed are the root's routes of [`PUSHED_FROM`] bits or more: one of these changes at most 32 blocks. Shorter
//! ones, of which a change would change thousands, stand beside, one code for each value of an address's first seven
//! bits ([`Short`]); a leaf that says 0 leaves the word to them.
//!
//! `block.rs` has the layout of a block, and how one is looked up.
//!
//! Root slots without a chunk share a block for each code.
//!
//! A publication copies the root over an older copy of it, slot by slot as the writer has noted them (`log.rs`), and says
//! which lines are new (`fresh.rs`).
//!
//! Which tables have pushed chunks is a matter of size ([`Fib::pushed_wanted`]). They are filled a share a change, follow
//! every change from then on, and are given up a share a change; a snapshot has them when all are there.

mod block;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use super::address::Address;
#[cfg(target_arch = "x86_64")]
use super::arena::block as block_at;
use super::arena::{Arena, LINE_CELLS, Segment, load, writes};
use super::batch::{self, CHUNK};
use super::fresh::Fresh;
use super::log::Log;
use super::node::{Gaps, ROOT_STRIDE, RouteCell, RouteList};
use super::root::WriterRoot;
use super::simd::ask_for_block;
use super::table::Fib;
use super::tails::Tails;
pub(super) use block::{ENTRIES_AT, GROUPS, GROUPS_AT, escape, lookup, lookup_one};
use block::{EPOCH_CELL, Patch, Patched, PushedDraft, blank_code, cells_of};
#[cfg(target_arch = "x86_64")]
pub(super) use block::{MOST_CELLS, beyond, entry_slot, leaf_octet, tail};

/// The writer's side.
#[derive(Debug, Default)]
pub(super) struct Pushed {
    state: State,
    /// What snapshots get, while the state is not [`State::Off`].
    root: Option<Box<PushedRoot>>,
    /// The codes that are pushed into each root slot.
    codes: Vec<u16>,
    /// The blocks of slots without a chunk, in order of code.
    blank: Vec<Blank>,
    /// Cells in use by the blocks.
    cells: usize,
    /// Whether some code was too large for one octet since the root was laid out: leaves that are written take two.
    wide: bool,
    /// Where blocks are made; there from the first one on.
    draft: Option<Box<PushedDraft>>,
    limits: Limits,
}

/// Which tables have pushed chunks, and how fast they come and go.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// The number of routes from which on a table has them.
    least: usize,
    /// The least number of routes for each chunk.
    a_chunk: usize,
    /// Root slots that are filled or given up a change.
    share: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            least: LEAST_ROUTES,
            a_chunk: ROUTES_A_CHUNK,
            share: SHARE,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    #[default]
    Off,
    /// The root slots below have a block.
    Filling(usize),
    Ready,
    /// The root slots below have none any more.
    Leaving(usize),
}

/// A block that is shared by `count` root slots without a chunk.
#[derive(Clone, Copy, Debug)]
struct Blank {
    code: u16,
    handle: u32,
    count: usize,
}

/// The root of pushed chunks, slot by slot: what a snapshot has. In lines of its own, as the snapshot is.
#[derive(Clone, Debug)]
#[repr(align(128))]
pub(super) struct PushedRoot {
    /// Where each slot's block is in memory, as `direct.rs` has it; none where nothing reads addresses.
    pub(super) words: Box<[u64]>,
    /// The blocks' handles.
    pub(super) handles: Box<[u32]>,
    /// Whether leaves take two octets.
    pub(super) wide: bool,
    /// Whether all third-level nodes are spread (`tails.rs`).
    spread: bool,
    pub(super) short: Short,
    /// The number of the publication; of a snapshot only, as what follows.
    pub(super) number: u64,
    /// Whose numbers these are: one for each time that a table comes to have pushed chunks.
    pub(super) of: Arc<()>,
    /// The slots that changed since the publication before, if that is known.
    pub(super) changed: Option<Box<[u16]>>,
    /// What the blocks are in; the writer has its arena.
    pub(super) lines: Arc<[Segment]>,
    /// The lines that this snapshot has new (`fresh.rs`).
    pub(super) fresh: Box<[u64]>,
}

/// What the routes say that are too short to be pushed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Short {
    /// Whether there are such routes.
    pub(super) some: bool,
    /// For each value of an address's first bits.
    codes: [u16; SHORT],
}

impl Short {
    /// `code`, or what the short routes say to `key` where that is none.
    #[inline(always)]
    pub(super) fn below(&self, code: u16, key: u32) -> u16 {
        let short = self.codes.get((key >> SHORT_SHIFT) as usize);
        batch::overlay(code, short.copied().unwrap_or_default())
    }
}

impl PushedRoot {
    /// Makes this, that of publication `number`, the same as `root`, which differs in the slots that `log` says.
    fn follow(&mut self, root: &Self, number: u64, log: &Log, fresh: &mut Fresh) {
        let Self {
            words,
            handles,
            wide,
            spread,
            short,
            // Each snapshot's own.
            number: _,
            of: _,
            changed: _,
            lines: _,
            fresh: _,
        } = root;
        self.words = log.follow(Some(mem::take(&mut self.words)), number, words, Some(fresh));
        self.handles = log.follow(Some(mem::take(&mut self.handles)), number, handles, None);
        self.wide = *wide;
        self.spread = *spread;
        self.short = *short;
    }

    /// Octets of it and its lists.
    pub(super) fn octets(&self) -> usize {
        size_of::<Self>()
            + size_of_val(&*self.words)
            + size_of_val(&*self.handles)
            + size_of_val(&*self.fresh)
            + self.changed.as_deref().map_or(0, size_of_val)
    }
}

impl Pushed {
    /// What a snapshot gets, made over that of an older one, of publication `number`.
    pub(super) fn publish(
        &self,
        (old, number): (Option<Box<PushedRoot>>, u64),
        tails: Tails,
        lines: &Arc<[Segment]>,
        (log, fresh): (&Log, &mut Fresh),
    ) -> Option<Box<PushedRoot>> {
        if !self.is_ready() {
            return None;
        }
        let root = self.root.as_ref()?;
        let mut copy = match old {
            Some(mut old) => {
                old.follow(root, number, log, fresh);
                old
            }
            None => root.clone(),
        };
        copy.number = log.number();
        copy.of = Arc::clone(&root.of);
        copy.changed = log.latest().map(Box::from);
        copy.lines = Arc::clone(lines);
        copy.spread = tails.packed == 0;
        Some(copy)
    }

    /// Whether there are any, or will be, or were.
    pub(super) fn is_on(&self) -> bool {
        self.state != State::Off
    }

    /// Whether lookups go by pushed chunks.
    pub(super) fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Whether leaves take two octets.
    #[cfg(test)]
    pub(super) fn is_wide(&self) -> bool {
        self.wide
    }

    /// Octets of the blocks and their root.
    pub(super) fn octets(&self) -> usize {
        self.cells * 8 + self.root_octets()
    }

    /// Octets of what every snapshot has a copy of.
    pub(super) fn root_octets(&self) -> usize {
        self.root.as_deref().map_or(0, PushedRoot::octets)
    }

    /// Octets of what only the writer has.
    pub(super) fn own_octets(&self) -> usize {
        self.codes.capacity() * size_of::<u16>()
            + self.blank.capacity() * size_of::<Blank>()
            + self.draft.as_deref().map_or(0, PushedDraft::octets)
    }

    /// Whether root slot `slot` has a block that is to be kept up to date.
    fn follows(&self, slot: usize) -> bool {
        match self.state {
            State::Off | State::Leaving(_) => false,
            State::Filling(next) => slot < next,
            State::Ready => true,
        }
    }

    /// The root slot after the last of the share that begins at `next`.
    fn share_end(&self, next: usize) -> usize {
        (next + self.limits.share).min(SLOTS)
    }

    fn handle(&self, slot: usize) -> u32 {
        let handle = self.root.as_ref().and_then(|root| root.handles.get(slot));
        handle.copied().unwrap_or_default()
    }

    fn set_handle(&mut self, segments: &[Segment], slot: usize, handle: u32) {
        let Some(root) = &mut self.root else {
            return;
        };
        writes(2);
        if let Some(place) = root.handles.get_mut(slot) {
            *place = handle;
        }
        if let Some(place) = root.words.get_mut(slot) {
            *place = address_of(segments, handle);
        }
    }

    fn blank_at(&self, code: u16) -> Result<usize, usize> {
        self.blank.binary_search_by_key(&code, |blank| blank.code)
    }
}

impl<A: Address> Fib<A> {
    /// Lets an IPv4 table have pushed chunks from `least` routes on, however thinly spread, and fills or gives up
    /// `share` of its 8,192 root slots a change: for the tests and the fuzz target, which could not afford 65,536 routes
    /// and 2,048 changes.
    ///
    /// Takes effect with the changes that follow; [`compact`](Self::compact) forgets it. What lookups answer does not
    /// depend on it, only what they read.
    #[doc(hidden)]
    pub fn set_pushed_limits(&mut self, least: usize, share: usize) {
        self.pushed.limits = Limits {
            least,
            a_chunk: 1,
            share: share.clamp(1, SLOTS),
        };
    }

    /// Brings pushed chunks on by a share: filled or given up, as the table's size wants it. Called after each change.
    pub(super) fn push_some(&mut self) {
        match self.pushed.state {
            State::Off if self.pushed_wanted(1) => self.begin_pushed(),
            State::Off => {}
            State::Filling(next) if self.pushed_wanted(2) => {
                let end = self.pushed.share_end(next);
                self.pushed.state = State::Filling(end);
                for slot in next..end {
                    self.push_chunk(slot);
                }
                if self.pushed.state == State::Filling(SLOTS) {
                    self.pushed.state = State::Ready;
                }
            }
            State::Ready if self.pushed_wanted(2) => {}
            State::Filling(_) | State::Ready => self.pushed.state = State::Leaving(0),
            State::Leaving(next) => {
                let end = self.pushed.share_end(next);
                for slot in next..end {
                    self.drop_pushed(slot);
                }
                self.pushed.state = State::Leaving(end);
                if end == SLOTS {
                    self.end_pushed();
                }
            }
        }
    }

    /// Fills pushed chunks at once, if the table is to have them: for one that was just built.
    pub(super) fn push_all(&mut self) {
        if A::BITS != 32 {
            return;
        }
        loop {
            let before = self.pushed.state;
            self.push_some();
            if self.pushed.state == before {
                return;
            }
        }
    }

    /// Gives pushed chunks up at once.
    pub(super) fn unpush(&mut self) {
        if self.pushed.state == State::Off {
            return;
        }
        for slot in 0..SLOTS {
            self.drop_pushed(slot);
        }
        self.end_pushed();
        self.pushed.wide = false;
    }

    /// Follows a change of the chunk of root slot `slot` in the slots `changed`, the first and the last.
    pub(super) fn push_changed(&mut self, slot: usize, changed: (usize, usize)) {
        if !self.pushed.follows(slot) {
            return;
        }
        let (entry, old) = (self.root_entry(slot), self.pushed.handle(slot));
        if !entry.has_child() || old == 0 {
            self.push_chunk(slot);
            return;
        }
        let mut draft = self.pushed.draft.take().unwrap_or_default();
        let patched = self.patch(slot, entry.handle(), changed, &mut draft.patched);
        self.pushed.draft = Some(draft);
        if patched.is_none() {
            self.push_chunk(slot);
        }
    }

    /// Changes the groups with the slots `changed` in the block of root slot `slot`, whose chunk is at `chunk`; `None`
    /// where the block is to be made anew.
    fn patch(
        &mut self,
        slot: usize,
        chunk: u32,
        changed: (usize, usize),
        groups: &mut Vec<Patched>,
    ) -> Option<()> {
        let old = self.pushed.handle(slot);
        let code = self.pushed.codes.get(slot).copied().unwrap_or_default();
        let from = self.lines.block(old);
        let says = (code, self.pushed.wide);
        let patch = Patch::new(self.node(chunk, CHUNK), from, changed, says, groups)?;
        let (before, epoch) = (cells_of(from), self.epoch());
        let cells = before + patch.added;
        self.pushed.cells += patch.added;
        if load(from, EPOCH_CELL) == epoch && same_lines(before, cells) {
            patch.write(groups, from, from, epoch);
            return Some(());
        }
        let copy = self.allocate_pushed(cells);
        patch.write(groups, self.lines.block(old), self.lines.block(copy), epoch);
        self.set_pushed(slot, copy);
        self.let_pushed_go(old, before);
        Some(())
    }

    /// Makes the block of root slot `slot` anew, of its chunk and what the root pushes into it.
    pub(super) fn push_chunk(&mut self, slot: usize) {
        if !self.pushed.follows(slot) {
            return;
        }
        let entry = self.root_entry(slot);
        let code = self.pushed.codes.get(slot).copied().unwrap_or_default();
        if !entry.has_child() {
            self.push_blank(slot, code);
            return;
        }
        let wide = self.pushed.wide;
        let mut draft = self.pushed.draft.take().unwrap_or_default();
        draft.read(self.node(entry.handle(), CHUNK), code, wide);
        if draft.largest >= escape(wide) {
            self.pushed.draft = Some(draft);
            self.widen();
            return;
        }
        let (cells, epoch) = (draft.cells(), self.epoch());
        let old = self.pushed.handle(slot);
        let before = self.lines.block(old);
        let kept = old != 0
            && load(before, EPOCH_CELL) == epoch
            && blank_code(before).is_none()
            && same_lines(cells_of(before), cells);
        let handle = if kept {
            self.pushed.cells -= cells_of(before);
            old
        } else {
            self.drop_pushed(slot);
            self.allocate_pushed(cells)
        };
        self.pushed.cells += cells;
        draft.write(self.lines.block(handle), epoch);
        self.pushed.draft = Some(draft);
        if !kept {
            self.set_pushed(slot, handle);
        }
    }

    /// Follows `route`, which came to the root, went, or has another next hop, in the slots that it decides.
    pub(super) fn push_root(&mut self, route: RouteCell) {
        if self.pushed.state == State::Off {
            return;
        }
        let WriterRoot::Slots { routes, .. } = &self.root else {
            return;
        };
        let routes = Arc::clone(routes);
        if route.len() < PUSHED_FROM {
            if let Some(root) = &mut self.pushed.root {
                writes(SHORT);
                root.short = short_of(&routes);
            }
            return;
        }
        let key = route.key();
        let after = routes.lower_bound(key + 1);
        let cover = routes
            .as_slice()
            .cover(route.slot(), ROOT_STRIDE, route.len());
        let pushed = cover.filter(|cover| cover.len() >= PUSHED_FROM);
        let code = pushed.map_or(0, RouteCell::code);
        let mut gaps = Gaps::new(&*routes, after, ROOT_STRIDE);
        for slot in route.slot()..=route.last_slot(ROOT_STRIDE) {
            if gaps.holds(slot) {
                writes(1);
                if let Some(place) = self.pushed.codes.get_mut(slot) {
                    *place = code;
                }
                self.push_chunk(slot);
            }
        }
    }

    /// Octets of the trie's second-level nodes, which no lookup reads while there are pushed chunks.
    pub(super) fn unread_octets(&self) -> usize {
        let WriterRoot::Slots { slots, .. } = &self.root else {
            return 0;
        };
        let chunks = (0..slots.len()).map(|slot| self.root_entry(slot));
        let chunks = chunks.filter(|entry| entry.has_child());
        let nodes = chunks.map(|entry| self.node(entry.handle(), CHUNK));
        nodes.map(|node| node.extent().lookup * 8).sum()
    }

    /// Whether the table is one of many routes, and not thinly spread: a chunk takes 528 octets here and what its
    /// leaves take. Tables that have pushed chunks keep them with `slack` times fewer routes, not to go to and fro.
    fn pushed_wanted(&self, slack: usize) -> bool {
        let Limits { least, a_chunk, .. } = self.pushed.limits;
        let chunks = self.flats.chunks * a_chunk;
        A::BITS == 32
            && matches!(self.root, WriterRoot::Slots { .. })
            && self.flats.count == 0
            && self.routes * slack >= least.max(chunks)
    }

    fn begin_pushed(&mut self) {
        let WriterRoot::Slots { routes, .. } = &self.root else {
            return;
        };
        let routes = Arc::clone(routes);
        // In order of cells a route comes before those that it covers.
        let mut codes = alloc::vec![0; SLOTS];
        for route in routes.iter().filter(|route| route.len() >= PUSHED_FROM) {
            if let Some(slots) = codes.get_mut(route.slot()..=route.last_slot(ROOT_STRIDE)) {
                slots.fill(route.code());
            }
        }
        writes(2 * SLOTS);
        let words = if cfg!(target_arch = "x86_64") {
            SLOTS
        } else {
            0
        };
        self.pushed.codes = codes;
        self.pushed.root = Some(Box::new(PushedRoot {
            words: alloc::vec![0; words].into(),
            handles: alloc::vec![0; SLOTS].into(),
            wide: self.pushed.wide,
            spread: false,
            short: short_of(&routes),
            number: 0,
            of: Arc::new(()),
            changed: None,
            lines: Arc::default(),
            fresh: Box::default(),
        }));
        self.pushed.state = State::Filling(0);
    }

    fn end_pushed(&mut self) {
        self.pushed.state = State::Off;
        self.pushed.root = None;
        self.pushed.codes = Vec::new();
        self.pushed.blank = Vec::new();
        self.pushed.draft = None;
    }

    /// A code needs two octets: all over again.
    fn widen(&mut self) {
        self.pushed.wide = true;
        self.pushed.state = State::Leaving(0);
    }

    /// Lets root slot `slot` have the block that says `code` in all places.
    fn push_blank(&mut self, slot: usize, code: u16) {
        if code >= escape(self.pushed.wide) {
            self.widen();
            return;
        }
        let at = match self.pushed.blank_at(code) {
            Ok(at) => at,
            Err(at) => {
                let mut draft = self.pushed.draft.take().unwrap_or_default();
                draft.say(code);
                let handle = self.allocate_pushed(draft.cells());
                draft.write(self.lines.block(handle), self.epoch());
                self.pushed.cells += draft.cells();
                self.pushed.draft = Some(draft);
                let blank = Blank {
                    code,
                    handle,
                    count: 0,
                };
                writes(self.pushed.blank.len() - at);
                self.pushed.blank.insert(at, blank);
                at
            }
        };
        let Some(blank) = self.pushed.blank.get_mut(at) else {
            return;
        };
        // First its own, so that it is not let go between.
        blank.count += 1;
        let handle = blank.handle;
        self.drop_pushed(slot);
        self.set_pushed(slot, handle);
    }

    /// Lets the block of root slot `slot` go, if it has one that no other slot has.
    fn drop_pushed(&mut self, slot: usize) {
        let handle = self.pushed.handle(slot);
        if handle == 0 {
            return;
        }
        self.set_pushed(slot, 0);
        let known = self.lines.block(handle);
        let cells = cells_of(known);
        if let Some(code) = blank_code(known) {
            let Ok(at) = self.pushed.blank_at(code) else {
                return;
            };
            let Some(blank) = self.pushed.blank.get_mut(at) else {
                return;
            };
            blank.count -= 1;
            if blank.count > 0 {
                return;
            }
            writes(self.pushed.blank.len() - at);
            self.pushed.blank.remove(at);
        }
        self.pushed.cells -= cells;
        self.let_pushed_go(handle, cells);
    }

    /// Asks for the block of root slot `slot`, which will be copied soon.
    pub(super) fn ask_for_pushed(&self, slot: usize) {
        ask_for_block(self.lines.block(self.pushed.handle(slot)), ASKED_CELLS);
    }

    fn set_pushed(&mut self, slot: usize, handle: u32) {
        self.pushed.set_handle(self.lines.segments(), slot, handle);
        self.log.note(slot);
    }

    fn allocate_pushed(&mut self, cells: usize) -> u32 {
        let handle = self.lines.allocate(in_lines(cells));
        self.note_fresh(handle, cells);
        handle
    }

    /// Lets a block of `cells` cells go.
    fn let_pushed_go(&mut self, handle: u32, cells: usize) {
        let written = load(self.lines.block(handle), EPOCH_CELL);
        if written == self.epoch() {
            self.lines.free(handle, in_lines(cells));
        } else {
            self.retire_lines(handle, in_lines(cells), written);
        }
    }

    /// Whether `root`, a snapshot's, is what the writer has now.
    #[cfg(test)]
    pub(super) fn pushed_is(&self, root: &PushedRoot) -> bool {
        self.pushed
            .root
            .as_ref()
            .is_some_and(|own| own.words == root.words && own.handles == root.handles)
    }

    /// Whether pushed chunks are what the trie says, every 31st slot from `first` on.
    #[cfg(test)]
    pub(super) fn pushed_agree(&self, first: u32) -> bool {
        let Some(root) = self.pushed.root.as_ref().filter(|_| self.pushed.is_ready()) else {
            return true;
        };
        let root = &PushedRoot {
            lines: Arc::clone(self.lines.segments()),
            ..(**root).clone()
        };
        (first..1 << 24).step_by(31).all(|slot| {
            let key = slot << 8;
            let handle = root.handles[(key >> ROOT_SHIFT) as usize];
            let block = self.lines.block(handle);
            let code = block::leaf_of(block, key, root.wide);
            let trie = self.root_entry((key >> ROOT_SHIFT) as usize);
            let child = trie.has_child() && {
                let node = self.node(trie.handle(), CHUNK);
                node.entry(CHUNK.slot(u128::from(key) << 96)).has_child()
            };
            let said = lookup_one(batch::Portable, root, self.arena.segments(), key);
            child == (code == escape(root.wide))
                && super::NextHopId::from_code(said)
                    == self.lookup(A::from_key(u128::from(key) << 96))
        })
    }
}

/// What those of `routes` say that are too short to be pushed.
fn short_of(routes: &[RouteCell]) -> Short {
    let mut short = Short {
        some: false,
        codes: [0; SHORT],
    };
    for route in routes.iter().filter(|route| route.len() < PUSHED_FROM) {
        let of = |slot| slot >> (ROOT_STRIDE - PUSHED_FROM + 1);
        short.some = true;
        let places = of(route.slot())..=of(route.last_slot(ROOT_STRIDE));
        if let Some(places) = short.codes.get_mut(places) {
            places.fill(route.code());
        }
    }
    short
}

/// `cells`, filled up to whole cache lines.
const fn in_lines(cells: usize) -> usize {
    cells.next_multiple_of(LINE_CELLS)
}

/// Whether blocks for `one` and for `other` cells are of one size.
fn same_lines(one: usize, other: usize) -> bool {
    Arena::same_size(in_lines(one), in_lines(other))
}

/// Where the block at `handle` is in memory; 0 for none.
#[cfg(target_arch = "x86_64")]
fn address_of(segments: &[Segment], handle: u32) -> u64 {
    if handle == 0 {
        return 0;
    }
    // Exposed with what follows it: `simd/pushed.rs` makes a pointer of it again.
    block_at(segments, handle).as_ptr().expose_provenance() as u64
}

/// No address: nothing here reads one.
#[cfg(not(target_arch = "x86_64"))]
fn address_of(_: &[Segment], _: u32) -> u64 {
    0
}

/// The number of bits from which on routes of the root are pushed: one of so many bits holds 32 root slots.
const PUSHED_FROM: u8 = 8;
/// Values of the bits before.
const SHORT: usize = 1 << (PUSHED_FROM - 1);
const SHORT_SHIFT: u32 = 33 - PUSHED_FROM as u32;

/// Root slots.
pub(super) const SLOTS: usize = 1 << ROOT_STRIDE;
pub(super) const ROOT_SHIFT: u32 = 32 - ROOT_STRIDE as u32;

/// Cells that are asked for of a block that is about to be copied: the group cells and the leaves of most.
const ASKED_CELLS: usize = 13 * LINE_CELLS;
/// Root slots that are filled or given up a change.
pub(super) const SHARE: usize = 4;
/// The number of routes from which on a table has pushed chunks, as long as it has [`ROUTES_A_CHUNK`].
pub(super) const LEAST_ROUTES: usize = 65_536;
const ROUTES_A_CHUNK: usize = 24;
