//! A hash beside the trie: IPv6 tables that know few prefix lengths, for lookups only.
//!
//! An overlay knows the /64 of its pods and the /128 of its nodes; the trie goes four levels below the chunk for them.
//! Such a table keeps its routes in a hash of (prefix, length) too. A lookup asks it once for each length, side by
//! side, and the longest that has an answer is the answer. The trie stays the truth: everything that is asked about
//! prefixes goes there, and so does a lookup that the hash cannot decide.
//!
//! ```text
//!   hash of the prefix:                    | directory, 1 to 12 | ... | line, 3 | ... | tag, 16 |
//!                                                    |                  |          |
//!   directory: a handle for each  -> page: 8 lines: 16 tags, and where each one's entry is: 64 octets, one cache line
//!                                          entries: first half of the prefix, second half, length and next hop code
//! ```
//!
//! The directory is that of extendible hashing: a page that has a full line is split in two by the next bit of its
//! routes' hashes, and the directory doubles when there is none left. A route costs about 36 octets. A lookup takes the
//! first slot of a line with its tag, for the longest length that has one, and compares the entry there: if it is
//! another prefix (one in some thousands, or more where somebody has looked for such prefixes), the trie answers.
//!
//! Which tables have it: of [`LEAST`] to [`MOST`] routes in at most [`MAX_LENGTHS`] lengths, the default route not
//! counted. A table that becomes one fills its hash [`FILL`] routes a change, in order, and publishes it when it is
//! complete; until then a change of a route that is still to come is left to the filling. A table that has a length
//! more, or prefixes that agree in so many bits of their hashes that splits do not part them, gives its hash up and
//! tries again [`WAIT`] changes later. Its pages are freed a few a change. So a change costs at most one page written
//! anew, [`SPLITS`] splits and the share of the filling.
//!
//! Pages are copied on write as nodes are: one that a snapshot may reach is not written again.

use alloc::boxed::Box;
use alloc::vec::Vec;
#[cfg(target_arch = "x86_64")]
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::AtomicU64;

use super::NextHopId;
use super::address::{Address, prefix_mask};
use super::arena::{Segment, allocated, block, load, store, writes};
use super::moves::copy_cells;
use super::table::Fib;

/// What a table has of its hash.
#[derive(Debug, Default)]
pub(super) struct Hashes {
    on: Option<Box<Hash>>,
    /// The directory of a hash that was given up: pages to be freed, the same one side by side.
    left: Vec<u32>,
    /// Changes until the next try.
    wait: usize,
}

/// The writer's side of a hash.
#[derive(Debug)]
struct Hash {
    /// The page for each value of the first `depth` bits of a hash.
    directory: Vec<u32>,
    depth: u8,
    /// Lengths but 0, and how many routes have each; none for what is not in use.
    lengths: [(u8, u32); MAX_LENGTHS],
    /// The code of the default route.
    default: u16,
    filled: Filled,
    pages: usize,
    /// Cells of all pages.
    cells: usize,
}

/// Which routes are in a hash.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Filled {
    Nothing,
    /// Those up to this one, in order of address, then length.
    UpTo(u128, u8),
    All,
}

/// The hash of a snapshot. What the default route says stands where the hash itself is, so that its address is at hand.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Hashed {
    /// A line and its entry, for addresses without a route but the default route: every slot says that this is the answer.
    pub(super) default: [AtomicU64; LINE + ENTRY],
    pub(super) directory: Box<[u32]>,
    /// Where those pages are.
    #[cfg(target_arch = "x86_64")]
    pub(super) pages: Box<[AtomicPtr<AtomicU64>]>,
    /// Bits of a hash after those that the directory is asked with.
    pub(super) shift: u32,
    /// How many of `lengths` there are.
    pub(super) count: usize,
    /// Longest first; the one after the last is that of an address without a route but the default route.
    pub(super) lengths: [Length; MAX_LENGTHS + 1],
    /// Whether the lengths are 128 and 64, and no other: hosts and their networks.
    #[cfg(target_arch = "x86_64")]
    pub(super) of_hosts: bool,
    /// Whether its pages are more than a second-level cache holds.
    #[cfg(target_arch = "x86_64")]
    pub(super) is_far: bool,
}

/// A prefix length as lookups need it: the two masks, of [`octets`], side by side, as vectors read them.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Length {
    pub(super) high_mask: u64,
    pub(super) low_mask: u64,
    pub(super) factor: u64,
    pub(super) len: u64,
}

impl Length {
    pub(super) const fn new(len: u8) -> Self {
        let (high_mask, low_mask) = octets(prefix_mask(len));
        Self {
            high_mask,
            low_mask,
            factor: FACTOR.wrapping_mul(2 * len as u64 + 1),
            len: len as u64,
        }
    }

    /// The hash of the prefix of this length that `high` and `low`, the [`octets`] of an address, begin with. It is made of
    /// what vectors have, and its lower bits are those of a tag.
    #[inline(always)]
    pub(super) fn hash(&self, high: u64, low: u64) -> u64 {
        let low = spread(low & self.low_mask, LOW_FACTOR);
        self.hash_of(spread(high & self.high_mask, HIGH_FACTOR), low)
    }

    /// The same of two halves that are spread already.
    #[inline(always)]
    pub(super) fn hash_of(&self, high: u64, low: u64) -> u64 {
        (high | 1).wrapping_add(low << 1).wrapping_mul(self.factor)
    }

    /// What of an entry (the two halves of its prefix; length and code) does not fit an address; 0 if it fits.
    #[inline(always)]
    pub(super) fn differs(&self, entry: [u64; ENTRY], high: u64, low: u64) -> u64 {
        let [entry_high, entry_low, meta] = entry;
        (entry_high ^ high) & self.high_mask
            | (entry_low ^ low) & self.low_mask
            | (meta >> 16) ^ self.len
    }
}

impl Hashed {
    /// The code for the address `key`; `None` when the trie must be asked.
    pub(super) fn lookup(&self, segments: &[Segment], key: u128) -> Option<u16> {
        let (high, low) = octets(key);
        let lengths = self.lengths.iter().take(self.count);
        for length in lengths {
            let hash = length.hash(high, low);
            let page = self.directory.get((hash >> self.shift & 0xffff) as usize)?;
            let line = block(segments, *page + line_of(hash));
            if let Some(slot) = first_slot(line, tag_of(hash)) {
                let at = usize::from(quarter(line, TAGS + slot));
                let entry = [load(line, at), load(line, at + 1), load(line, at + 2)];
                return Some((entry[2] & 0xffff) as u16)
                    .filter(|_| length.differs(entry, high, low) == 0);
            }
        }
        Some((load(&self.default, LINE + 2) & 0xffff) as u16)
    }
}

impl Hashes {
    /// Octets of the pages and of the directory.
    pub(super) fn octets(&self) -> usize {
        self.on.as_ref().map_or(0, |hash| {
            hash.cells * 8 + hash.directory.len() * size_of::<u32>()
        })
    }

    /// Octets outside of the arena, `snapshots` directories with them.
    pub(super) fn own_octets(&self, snapshots: usize) -> usize {
        let on = self.on.as_ref().map_or(0, |hash| {
            let entries = hash.directory.capacity();
            let published = entries * (size_of::<u32>() + size_of::<*const u64>());
            size_of::<Hash>()
                + entries * size_of::<u32>()
                + snapshots * (size_of::<Hashed>() + published)
        });
        on + self.left.capacity() * size_of::<u32>()
    }

    /// Whether there is one, complete or not.
    pub(super) const fn is_on(&self) -> bool {
        self.on.is_some()
    }

    /// Whether there is one that lookups ask.
    pub(super) fn is_complete(&self) -> bool {
        let filled = self.on.as_ref().map(|hash| hash.filled);
        filled == Some(Filled::All)
    }

    /// What a snapshot gets.
    pub(super) fn publish(&self, segments: &[Segment]) -> Option<Box<Hashed>> {
        let hash = self.on.as_ref()?;
        (hash.filled == Filled::All).then(|| Box::new(hash.publish(segments)))
    }
}

impl Hash {
    fn publish(&self, segments: &[Segment]) -> Hashed {
        #[cfg(not(target_arch = "x86_64"))]
        let _ = segments;
        let mut lens = self.lengths;
        lens.sort_unstable_by(|one, other| other.cmp(one));
        let used = lens.iter().filter(|(_, count)| *count > 0);
        let mut lengths = [Length::default(); MAX_LENGTHS + 1];
        let mut count = 0;
        for (place, (len, _)) in lengths.iter_mut().zip(used) {
            *place = Length::new(*len);
            count += 1;
        }
        let mut default = [const { AtomicU64::new(0) }; LINE + ENTRY];
        for slot in default.iter_mut().take(LINE).skip(LINE / 2) {
            *slot = AtomicU64::new(LINE as u64 * 0x0001_0001_0001_0001);
        }
        let [.., meta] = &mut default;
        *meta = AtomicU64::new(u64::from(self.default));
        Hashed {
            directory: self.directory.clone().into(),
            #[cfg(target_arch = "x86_64")]
            pages: {
                let pages = self.directory.iter();
                let addresses = pages.map(|page| {
                    let page = block(segments, *page).as_ptr();
                    // Gathers read them as numbers.
                    page.expose_provenance();
                    AtomicPtr::new(page.cast_mut())
                });
                addresses.collect()
            },
            shift: 64 - u32::from(self.depth),
            count,
            lengths,
            default,
            #[cfg(target_arch = "x86_64")]
            of_hosts: count == 2
                && lengths
                    .iter()
                    .zip(&HOSTS)
                    .all(|(one, other)| one.len == other.len),
            #[cfg(target_arch = "x86_64")]
            is_far: self.cells > NEAR_CELLS,
        }
    }

    fn page(&self, hash: u64) -> u32 {
        let at = (hash >> (64 - u32::from(self.depth)) & 0xffff) as usize;
        self.directory.get(at).copied().unwrap_or_default()
    }

    /// Makes `page` the one for hashes whose first `depth` bits are those of `hash`.
    fn point(&mut self, hash: u64, depth: u8, page: u32) {
        let below = self.depth - depth;
        let first = (hash >> (64 - u32::from(depth)) << below & 0xffff) as usize;
        let count = 1 << below;
        writes(count);
        for place in self.directory.iter_mut().skip(first).take(count) {
            *place = page;
        }
    }

    fn double(&mut self) {
        writes(2 * self.directory.len());
        self.directory = self.directory.iter().flat_map(|page| [*page; 2]).collect();
        self.depth += 1;
    }

    /// Counts a route more of `len` bits; `None` when that is a length too many.
    fn count(&mut self, len: u8) -> Option<()> {
        let lengths = self.lengths.iter();
        let known = lengths.clone().position(|known| known.0 == len);
        let free = lengths.clone().position(|known| known.1 == 0);
        let place = self.lengths.get_mut(known.or(free)?)?;
        *place = (len, place.1 + 1);
        Some(())
    }

    fn uncount(&mut self, len: u8) {
        if let Some(known) = self.lengths.iter_mut().find(|known| known.0 == len) {
            known.1 -= 1;
            if known.1 == 0 {
                *known = (0, 0);
            }
        }
    }

    /// Whether the pages were made for many more routes.
    const fn is_sparse(&self, routes: usize) -> bool {
        self.pages > 8 + routes / SPARSE
    }
}

impl<A: Address> Fib<A> {
    /// Does what a change asks of the hash: `code` is what the route for `key`/`len` says, 0 that it is removed.
    pub(super) fn hash_change(&mut self, key: u128, len: u8, code: u16) {
        if A::BITS != 128 {
            return;
        }
        self.free_pages();
        let Some(mut hash) = self.hashes.on.take() else {
            if self.hashes.wait > 0 {
                self.hashes.wait -= 1;
            } else if self.routes >= LEAST && self.routes <= MOST - MOST / 8 {
                self.begin();
            }
            return;
        };
        if self.routes < LEAST / 2 || self.routes > MOST || hash.is_sparse(self.routes) {
            self.give_up(*hash, 0);
        } else if self.change(&mut hash, key, len, code).is_none() || self.fill(&mut hash).is_none()
        {
            self.give_up(*hash, WAIT);
        } else {
            self.hashes.on = Some(hash);
        }
    }

    /// Makes the hash at once, if the table is one that has it: for a table that was just built.
    pub(super) fn hash_all(&mut self) {
        if A::BITS != 128 || self.routes < LEAST || self.routes > MOST {
            return;
        }
        self.begin();
        while let Some(mut hash) = self.hashes.on.take_if(|hash| hash.filled != Filled::All) {
            if self.fill(&mut hash).is_none() {
                self.give_up(*hash, WAIT);
                return;
            }
            self.hashes.on = Some(hash);
        }
    }

    fn begin(&mut self) {
        let mut hash = Hash {
            directory: Vec::new(),
            depth: 1,
            lengths: [(0, 0); MAX_LENGTHS],
            default: 0,
            filled: Filled::Nothing,
            pages: 0,
            cells: 0,
        };
        for _ in 0..2 {
            let Some(page) = self.new_page(&mut hash, 0) else {
                return self.give_up(hash, WAIT);
            };
            self.set_head(page, |head| head.depth = 1);
            hash.directory.push(page);
        }
        self.hashes.on = Some(Box::new(hash));
    }

    fn give_up(&mut self, hash: Hash, wait: usize) {
        // Pages of a hash before that are still to be freed come first: there are more of them than of this one only
        // when this one is not complete, and then it is small.
        self.hashes.left.extend(hash.directory);
        self.hashes.wait = wait;
    }

    /// Frees a share of what a hash that was given up has left.
    fn free_pages(&mut self) {
        for _ in 0..FREED {
            let Some(page) = self.hashes.left.pop() else {
                return;
            };
            if self.hashes.left.last() != Some(&page) {
                let head = self.head(page);
                self.retire(page - head.pad, head.size);
            }
        }
    }

    /// Puts the next routes into a hash that is not complete; `None` when one has no place.
    fn fill(&mut self, hash: &mut Hash) -> Option<()> {
        let after = match hash.filled {
            Filled::Nothing => None,
            Filled::UpTo(key, len) => Some((key, len)),
            Filled::All => return Some(()),
        };
        let routes = self.view().after::<A>(after).take(FILL);
        let routes: Vec<(A::Prefix, NextHopId)> = routes.collect();
        for (prefix, next_hop) in &routes {
            let (key, len) = A::split(*prefix);
            hash.filled = Filled::UpTo(key, len);
            self.change(hash, key, len, next_hop.code())?;
        }
        if routes.len() < FILL {
            hash.filled = Filled::All;
        }
        Some(())
    }

    /// Changes what `hash` says about `key`/`len`, if that is among the routes that it has; `None` when it cannot.
    fn change(&mut self, hash: &mut Hash, key: u128, len: u8, code: u16) -> Option<()> {
        match hash.filled {
            Filled::Nothing => return Some(()),
            Filled::UpTo(last, last_len) if (key, len) > (last, last_len) => return Some(()),
            Filled::UpTo(..) | Filled::All => {}
        }
        if len == 0 {
            hash.default = code;
            return Some(());
        }
        let route = Route::new(key, len, code);
        if code == 0 {
            return self.take_out(hash, &route);
        }
        for _ in 0..=SPLITS {
            let page = self.arena.block(hash.page(route.hash));
            if let Some((_, at)) = route.find(page) {
                let page = self.own(hash, route.hash, 0)?;
                store(self.arena.block(page), at + 2, route.entry[2]);
                return Some(());
            }
            if first_slot(route.line(page), 0).is_some() {
                hash.count(len)?;
                let page = self.own(hash, route.hash, 1)?;
                self.add(page, &route);
                return Some(());
            }
            self.split_page(hash, route.hash)?;
        }
        None
    }

    fn take_out(&mut self, hash: &mut Hash, route: &Route) -> Option<()> {
        route.find(self.arena.block(hash.page(route.hash)))?;
        let handle = self.own(hash, route.hash, 0)?;
        let page = self.arena.block(handle);
        let (slot, at) = route.find(page)?;
        set_quarter(route.line(page), slot, 0);
        let last = LINES + ENTRY * (self.head(handle).count - 1);
        if at != last {
            // The last entry takes the place.
            let moved = Route::of([load(page, last), load(page, last + 1), load(page, last + 2)]);
            let (slot, _) = moved.find(page)?;
            moved.write_entry(page, at);
            set_quarter(moved.line(page), TAGS + slot, moved.place_of(at));
        }
        self.set_head(handle, |head| head.count -= 1);
        hash.uncount(route.len());
        Some(())
    }

    /// Puts `route` into a page that has room.
    fn add(&self, handle: u32, route: &Route) {
        let page = self.arena.block(handle);
        let at = LINES + ENTRY * self.head(handle).count;
        if let Some(slot) = first_slot(route.line(page), 0) {
            set_quarter(route.line(page), slot, tag_of(route.hash));
            set_quarter(route.line(page), TAGS + slot, route.place_of(at));
            route.write_entry(page, at);
            self.set_head(handle, |head| head.count += 1);
        }
    }

    /// The page of `hash` in cells that no snapshot reaches, with room for `more` entries.
    fn own(&mut self, hash: &mut Hash, of: u64, more: usize) -> Option<u32> {
        let old = hash.page(of);
        let head = self.head(old);
        // What was never complete was never published.
        let ours =
            hash.filled != Filled::All || load(self.arena.block(old - head.pad), 1) == self.epoch();
        if ours && head.count + more <= head.capacity() {
            return Some(old);
        }
        let new = self.new_page(hash, head.count + more)?;
        let cells = LINES + ENTRY * head.count;
        copy_cells(self.arena.block(old), self.arena.block(new), cells);
        self.set_head(new, |new| {
            new.count = head.count;
            new.depth = head.depth;
        });
        hash.point(of, head.depth, new);
        self.drop_page(hash, old);
        Some(new)
    }

    /// Parts the routes of the page of `of` by the next bit of their hashes.
    fn split_page(&mut self, hash: &mut Hash, of: u64) -> Option<()> {
        let old = hash.page(of);
        let head = self.head(old);
        if head.depth == hash.depth {
            if hash.depth == MAX_DEPTH {
                return None;
            }
            hash.double();
        }
        let bit = 63 - u32::from(head.depth);
        let routes: Vec<Route> = self.routes_of(old).collect();
        let ones = routes.iter().filter(|route| route.hash >> bit & 1 == 1);
        let ones = ones.count();
        for (side, count) in [(0, head.count - ones), (1, ones)] {
            let page = self.new_page(hash, count)?;
            self.set_head(page, |new| new.depth = head.depth + 1);
            for route in routes.iter().filter(|route| route.hash >> bit & 1 == side) {
                self.add(page, route);
            }
            hash.point(of & !(1 << bit) | side << bit, head.depth + 1, page);
        }
        self.drop_page(hash, old);
        Some(())
    }

    fn routes_of(&self, page: u32) -> impl Iterator<Item = Route> {
        let cells = self.arena.block(page);
        (0..self.head(page).count).map(|entry| {
            let at = LINES + ENTRY * entry;
            Route::of([load(cells, at), load(cells, at + 1), load(cells, at + 2)])
        })
    }

    /// A page without routes, with room for `room` of them, its first line at the start of a cache line.
    fn new_page(&mut self, hash: &mut Hash, room: usize) -> Option<u32> {
        if !self.arena.has_room() {
            return None;
        }
        let size = allocated(PAGE_EDGE + LINES + ENTRY * room);
        let handle = self.arena.allocate(size);
        let cells = self.arena.block(handle);
        let cell = cells.as_ptr().addr() / size_of::<AtomicU64>();
        let pad = (cell + PAGE_HEADER).next_multiple_of(LINE) - cell;
        store(cells, 1, self.epoch());
        for at in pad..pad + LINES {
            store(cells, at, 0);
        }
        let pad = u32::try_from(pad).ok()?;
        let head = Head {
            pad,
            size,
            ..Head::default()
        };
        store(self.arena.block(handle + pad - 1), 0, head.cell());
        hash.pages += 1;
        hash.cells += size;
        Some(handle + pad)
    }

    fn drop_page(&mut self, hash: &mut Hash, page: u32) {
        let head = self.head(page);
        hash.pages -= 1;
        hash.cells -= head.size;
        if hash.filled == Filled::All {
            self.retire(page - head.pad, head.size);
        } else {
            self.arena.free(page - head.pad, head.size);
        }
    }

    fn head(&self, page: u32) -> Head {
        Head::of(load(self.arena.block(page - 1), 0))
    }

    fn set_head(&self, page: u32, change: impl FnOnce(&mut Head)) {
        let mut head = self.head(page);
        change(&mut head);
        store(self.arena.block(page - 1), 0, head.cell());
    }

    /// How many pages the hash has, and whether it is complete.
    #[cfg(test)]
    pub(super) fn hash_state(&self) -> Option<(usize, bool)> {
        let hash = self.hashes.on.as_ref()?;
        Some((hash.pages, hash.filled == Filled::All))
    }
}

/// A route on its way into a page or out of it.
#[derive(Clone, Copy, Debug)]
struct Route {
    /// First half of the prefix, second half, length (from bit 16 on) and next hop code.
    entry: [u64; ENTRY],
    hash: u64,
}

impl Route {
    fn new(key: u128, len: u8, code: u16) -> Self {
        let (high, low) = octets(key);
        Self::of([high, low, u64::from(len) << 16 | u64::from(code)])
    }

    fn of(entry: [u64; ENTRY]) -> Self {
        let [high, low, meta] = entry;
        let len = (meta >> 16 & 0xff) as u8;
        Self {
            entry,
            hash: Length::new(len).hash(high, low),
        }
    }

    const fn len(&self) -> u8 {
        (self.entry[2] >> 16 & 0xff) as u8
    }

    /// This route's line in its page.
    fn line<'a>(&self, page: &'a [AtomicU64]) -> &'a [AtomicU64] {
        let line = line_of(self.hash) as usize;
        page.get(line..).unwrap_or_default()
    }

    /// How far cell `at` of the page is from this route's line.
    fn place_of(&self, at: usize) -> u16 {
        u16::try_from(at - line_of(self.hash) as usize).unwrap_or_default()
    }

    /// The slot of this prefix, and the cell of its entry in the page.
    fn find(&self, page: &[AtomicU64]) -> Option<(usize, usize)> {
        let [high, low, meta] = self.entry;
        let line = self.line(page);
        (0..TAGS)
            .filter(|slot| quarter(line, *slot) == tag_of(self.hash))
            .map(|slot| {
                let at = quarter(line, TAGS + slot);
                (slot, usize::from(at) + line_of(self.hash) as usize)
            })
            .find(|(_, at)| {
                load(page, *at) == high
                    && load(page, at + 1) == low
                    && load(page, at + 2) >> 16 == meta >> 16
            })
    }

    fn write_entry(&self, page: &[AtomicU64], at: usize) {
        for (cell, value) in (at..).zip(self.entry) {
            store(page, cell, value);
        }
    }
}

/// What the cell before a page's first line says. Cell 1 of the page's block has its epoch.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    /// Cells of the block before the first line.
    pad: u32,
    /// Bits of a hash that its routes share.
    depth: u8,
    /// Entries.
    count: usize,
    /// Cells of the block.
    size: usize,
}

impl Head {
    const fn of(cell: u64) -> Self {
        Self {
            pad: (cell & 0xff) as u32,
            depth: (cell >> 8 & 0xff) as u8,
            count: (cell >> 16 & 0xffff) as usize,
            size: (cell >> 32) as usize,
        }
    }

    fn cell(self) -> u64 {
        u64::from(self.pad)
            | u64::from(self.depth) << 8
            | (self.count as u64) << 16
            | (self.size as u64) << 32
    }

    const fn capacity(self) -> usize {
        (self.size - PAGE_EDGE - LINES) / ENTRY
    }
}

/// The two halves of a key.
#[inline(always)]
pub(super) const fn halves(key: u128) -> (u64, u64) {
    ((key >> 64) as u64, (key & 0xffff_ffff_ffff_ffff) as u64)
}

/// The two halves of a key as numbers whose lowest octets are the first on the wire: as x86-64 reads an address from
/// memory.
#[inline(always)]
pub(super) const fn octets(key: u128) -> (u64, u64) {
    let (high, low) = halves(key);
    (high.swap_bytes(), low.swap_bytes())
}

/// The key of an address of which these are the [`octets`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) const fn key_of(high: u64, low: u64) -> u128 {
    (high.swap_bytes() as u128) << 64 | low.swap_bytes() as u128
}

/// Half of an address with its octets mixed: the upper bits of a product depend on all of its factor's, and become the
/// lower ones, on which all bits of the next product depend.
#[inline(always)]
pub(super) const fn spread(half: u64, factor: u64) -> u64 {
    half.wrapping_mul(factor).rotate_right(SPREAD)
}

/// The first cell of the line of `hash` in its page: three bits, times [`LINE`]. Turned, since x86-64 turns into another
/// register in one instruction, and shifts in two.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "three bits of the lowest six are left"
)]
pub(super) const fn line_of(hash: u64) -> u32 {
    (hash.rotate_right(LINE_SHIFT) & LINE_BITS as u64) as u32
}

/// The tag of `hash`; not 0, which stands for an empty slot: a hash is odd.
#[inline(always)]
pub(super) const fn tag_of(hash: u64) -> u16 {
    (hash & 0xffff) as u16
}

/// The first slot of `line` that has `tag`; with 0 for `tag` the first empty one.
fn first_slot(line: &[AtomicU64], tag: u16) -> Option<usize> {
    const ONES: u64 = 0x0001_0001_0001_0001;
    (0..TAGS / 4).find_map(|at| {
        let other = load(line, at) ^ (u64::from(tag) * ONES);
        // The lowest quarter that is 0 has its highest bit set; so may some above it.
        let equal = other.wrapping_sub(ONES) & !other & ONES << 15;
        (equal != 0).then(|| 4 * at + equal.trailing_zeros() as usize / 16)
    })
}

fn quarter(cells: &[AtomicU64], at: usize) -> u16 {
    (load(cells, at / 4) >> (at % 4 * 16) & 0xffff) as u16
}

fn set_quarter(cells: &[AtomicU64], at: usize, value: u16) {
    let shift = at % 4 * 16;
    let cell = load(cells, at / 4) & !(0xffff << shift);
    store(cells, at / 4, cell | u64::from(value) << shift);
}

/// The usual lengths: those of hosts and of their networks.
#[cfg(target_arch = "x86_64")]
pub(super) const HOSTS: [Length; 2] = [Length::new(128), Length::new(64)];
/// Lengths that a hash serves: one costs about what a level of the trie costs.
pub(super) const MAX_LENGTHS: usize = 4;
/// The number of routes from which a table has a hash; half as many are the least that it keeps it for.
const LEAST: usize = 256;
/// The most routes: 2.3 MiB of pages.
const MOST: usize = 1 << 16;
/// Routes that one change puts into a hash that is not complete.
const FILL: usize = 32;
/// Directory entries whose pages one change frees.
const FREED: usize = 128;
/// Splits that one change may do. A page is split by one bit of what 17 routes have in common by chance at most: that
/// none of four splits parts them happens once in 2^64.
const SPLITS: usize = 4;
/// Changes between a hash that was given up and the next: what a filling that fails costs is spread over them.
const WAIT: usize = 1_024;
/// A page has some 55 routes; a hash whose pages have fewer than this is made anew.
const SPARSE: usize = 12;
const MAX_DEPTH: u8 = 12;
/// Cells of pages from which on batches ask for lines ahead: 1 MiB. Measured with 12,000 routes, batches of 32 in two
/// lengths: 3.55 ns without, 4.0 with; with 60,000: 6.1 without, 5.4 with.
#[cfg(target_arch = "x86_64")]
const NEAR_CELLS: usize = 1 << 17;
const _: () = assert!(LINE == 1 << 3 && LINE_SHIFT + 6 + MAX_DEPTH as u32 <= 64);

/// Slots of a line.
pub(super) const TAGS: usize = 16;
/// Cells of a line: a quarter of a cell for each tag, and one for the cell of its entry, counted from the line.
pub(super) const LINE: usize = 8;
/// Cells of the lines of a page.
const LINES: usize = 8 * LINE;
/// Cells of an entry.
pub(super) const ENTRY: usize = 3;
/// Cells before the first line, at least: one for the arena, the epoch, the head.
const PAGE_HEADER: usize = 3;
/// The same at most.
const PAGE_EDGE: usize = PAGE_HEADER + LINE - 1;

/// Where in a hash the number of a line is, times [`LINE`].
pub(super) const LINE_SHIFT: u32 = 46;
pub(super) const LINE_BITS: i16 = 0x38;
/// How far halves are turned when they are spread.
pub(super) const SPREAD: u32 = 48;
pub(super) const HIGH_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
pub(super) const LOW_FACTOR: u64 = 0xd6e8_feb8_6659_fd93;
const FACTOR: u64 = 0xc2b2_ae3d_27d4_eb4f;
