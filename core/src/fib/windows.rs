//! Windows: the IPv6 routes of a large table by hash, for lookups only.
//!
//! The trie goes three or four levels down for a /48, each from memory that is not near. A large table keeps its routes
//! of /25 to /48 a second time: for each /24, /32 and /40 that has longer ones, what these say about the 16 bits after
//! it, as ranges of addresses with one next hop each. Where they are a hash of the prefix tells, so that a lookup asks
//! for all three side by side and waits for a page of the hash and for a line of ranges, whatever the length:
//!
//! ```text
//!   hash of /24, /32 or /40, 64 bits: | directory, 1 to 12 | ... | line, 3 | tag, 14, and which length | ... |
//!                                               |                  |          |
//!   directory: a handle for each  ->  page: 8 lines: 8 tags, and the address of each one's window
//!                                                                 |
//!   window: 1 to 32 lines, chosen by the first of the 16 bits:  12 ends of ranges, prefix, 13 next hop codes, epoch
//! ```
//!
//! The longest window with a next hop is the answer. A window holds nothing but the routes that are longer than its
//! prefix, so that a change of a route writes that window and no other. What the windows do not hold the trie answers:
//! addresses without a route longer than /24, the /48 with longer routes in it (its ranges say [`ASK`]), and prefixes
//! that share line and tag with another one.
//!
//! | window | routes |
//! |--------|--------|
//! | of a /24 | /25 to /32 |
//! | of a /32 | /33 to /48 while these are at most some 50 ranges, otherwise /33 to /40 ("split") |
//! | of a /40 in a split /32 | /41 to /48 |
//!
//! Which tables have them: of [`LEAST`] routes or more, few of them longer than /48. A table that becomes one goes
//! through its routes [`FILL`] a change, and publishes windows when all are made. The directory is that of extendible
//! hashing, as in `hashed.rs`; when pages cannot be split any more the table gives its windows up and tries again
//! [`WAIT`] changes later. Pages and windows are copied on write, and lie in an arena of their own whose blocks all
//! begin a cache line.
//!
//! Only x86-64 has them: lines name windows by address. `simd/windows.rs` reads them; their twin is the trie.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

use super::address::{Address, prefix_mask};
use super::arena::{Arena, Segment, copy_cells, load, store, writes};
use super::hashed::halves;
use super::node::{Entry, ROOT_STRIDE, Shape};
use super::table::{Fib, octets};
use super::walk::View;

/// What a table has of windows.
#[derive(Debug)]
pub(super) struct Windows {
    pub(super) arena: Arena,
    on: Option<Box<Hash>>,
    /// The directory of a hash that was given up: pages to be freed, the same one side by side.
    left: Vec<u32>,
    /// Changes until the next try.
    wait: usize,
    /// Routes longer than /48.
    long: usize,
    /// Cells of pages and windows in use.
    cells: usize,
}

/// The writer's side of the hash.
#[derive(Debug)]
struct Hash {
    /// The page for each value of the first `depth` bits of a hash.
    directory: Vec<u32>,
    /// Where those pages are.
    addresses: Vec<u64>,
    depth: u8,
    filled: Filled,
}

/// Which routes are in the windows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Filled {
    Nothing,
    /// Those up to this one, in order of address, then length.
    UpTo(u128, u8),
    All,
}

/// The windows of a snapshot.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only x86-64 has windows")
)]
#[derive(Debug)]
pub(super) struct Windowed {
    /// Where the page is for each value of the first bits of a hash.
    pub(super) pages: Box<[u64]>,
    /// The bits after those.
    pub(super) shift: u32,
    /// What pages and windows are in.
    _segments: Arc<[Segment]>,
}

/// Prefixes of one length that windows are of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Kind {
    /// Length of the prefix: bits before the window's 16.
    pub(super) len: u8,
    factor: u64,
    number: u64,
}

impl Kind {
    const fn new(len: u8, number: u64) -> Self {
        Self {
            len,
            factor: FACTOR.wrapping_mul(2 * number + 1),
            number,
        }
    }

    /// The hash of the prefix that an address with the first half `high` begins with.
    #[inline(always)]
    pub(super) const fn hash(self, high: u64) -> u64 {
        (high >> (64 - self.len as u32)).wrapping_mul(self.factor)
    }

    /// The tag of a prefix with this hash; not 0, which stands for an empty slot.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "16 bits of a hash")]
    pub(super) const fn tag(self, hash: u64) -> u16 {
        (hash >> 16 & 0xfffc | self.number) as u16
    }

    /// The 16 bits of `high` after the prefix.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "16 bits")]
    pub(super) const fn slot(self, high: u64) -> u16 {
        (high >> (48 - self.len as u32)) as u16
    }
}

/// What a window holds: routes longer than `from` and no longer than `to` below a prefix of `kind`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Part {
    kind: Kind,
    /// The bit from which on a node must begin for its routes to count, and to which all may go.
    from: u8,
    to: u8,
    /// Its most lines, a power of two.
    most: u32,
}

impl Part {
    const fn new(kind: Kind, from: u8, to: u8, most: u32) -> Self {
        Self {
            kind,
            from,
            to,
            most,
        }
    }

    /// The first address of slot `slot` of the window of `key`.
    const fn key_at(self, key: u128, slot: u32) -> u128 {
        key & prefix_mask(self.kind.len) | (slot as u128) << (112 - self.kind.len as u32)
    }
}

/// Cuts the ranges of a window into `lines` lines; whether each had room.
fn cut(part: Part, key: u128, lines: u32, ranges: &[(u16, u16)], content: &mut Vec<Line>) -> bool {
    content.clear();
    let width = (1 << 16) / lines;
    let mut line = Line::new(part, key, lines);
    let mut end = width - 1;
    for (code, last) in ranges {
        let last = u32::from(*last);
        while end < last {
            if line.push(*code, end).is_none() {
                return false;
            }
            content.push(line);
            line = Line::new(part, key, lines);
            end += width;
        }
        if line.push(*code, last).is_none() {
            return false;
        }
        if end == last {
            content.push(line);
            line = Line::new(part, key, lines);
            end += width;
        }
    }
    true
}

/// Where a page has a window.
#[derive(Clone, Copy, Debug)]
struct Place {
    page: u32,
    /// The slot: eight to a line.
    slot: usize,
    window: Window,
}

/// A window in the arena.
#[derive(Clone, Copy, Debug)]
struct Window {
    handle: u32,
    /// Its lines, a power of two.
    lines: u32,
    split: bool,
}

impl Default for Windows {
    fn default() -> Self {
        Self {
            arena: Arena::of_lines(),
            on: None,
            left: Vec::new(),
            wait: 0,
            long: 0,
            cells: 0,
        }
    }
}

impl Windows {
    /// Octets of pages, windows and directory.
    pub(super) fn octets(&self) -> usize {
        let directory = self.on.as_ref().map_or(0, |hash| hash.directory.len());
        self.cells * 8 + directory * size_of::<u64>()
    }

    /// Octets of everything, `snapshots` directories with it.
    pub(super) fn all_octets(&self, snapshots: usize) -> usize {
        let directory = self.on.as_ref().map_or(0, |hash| hash.directory.capacity());
        self.arena.octets()
            + directory * (size_of::<u32>() + (1 + snapshots) * size_of::<u64>())
            + self.left.capacity() * size_of::<u32>()
    }

    /// What a snapshot gets.
    pub(super) fn publish(&self) -> Option<Windowed> {
        let hash = self.on.as_ref()?;
        if hash.filled != Filled::All {
            return None;
        }
        Some(Windowed {
            pages: hash.addresses.as_slice().into(),
            shift: 64 - u32::from(hash.depth),
            _segments: Arc::clone(self.arena.segments()),
        })
    }

    /// Counts a route of `len` bits that came or went.
    pub(super) fn count(&mut self, len: u8, comes: bool) {
        if len > 48 {
            self.long += usize::from(comes);
            self.long -= usize::from(!comes);
        }
    }
}

impl<A: Address> Fib<A> {
    /// Lets the windows follow a change of the route for `key`/`len`, which the trie has already.
    pub(super) fn windows_change(&mut self, key: u128, len: u8) {
        if A::BITS != 128 || !cfg!(target_arch = "x86_64") {
            return;
        }
        self.free_windows();
        let Some(mut hash) = self.windows.on.take() else {
            if self.windows.wait > 0 {
                self.windows.wait -= 1;
            } else if self.windows_wanted(0) {
                self.begin_windows();
            }
            return;
        };
        if !self.windows_wanted(LEAST / 2) {
            self.give_windows_up(*hash, 0);
        } else if self.follow(&mut hash, key, len).is_none()
            || self.fill_windows(&mut hash).is_none()
        {
            self.give_windows_up(*hash, WAIT);
        } else {
            self.windows.on = Some(hash);
        }
    }

    /// Makes all windows at once, if the table is one that has them: for a table that was just built.
    pub(super) fn windows_all(&mut self) {
        if A::BITS != 128 || !cfg!(target_arch = "x86_64") {
            return;
        }
        let lens = self.iter().map(|(prefix, _)| A::split(prefix).1);
        self.windows.long = lens.filter(|len| *len > 48).count();
        if !self.windows_wanted(0) {
            return;
        }
        self.begin_windows();
        while let Some(mut hash) = self.windows.on.take_if(|hash| hash.filled != Filled::All) {
            if self.fill_windows(&mut hash).is_none() {
                self.give_windows_up(*hash, WAIT);
                return;
            }
            self.windows.on = Some(hash);
        }
    }

    /// Whether the table is one for windows; one that has them keeps them with `slack` routes less.
    fn windows_wanted(&self, slack: usize) -> bool {
        self.routes + slack >= LEAST
            && !self.hashes.is_on()
            && self.windows.long <= (self.routes + slack) / LONG_SHARE
    }

    fn begin_windows(&mut self) {
        let mut hash = Hash {
            directory: Vec::new(),
            addresses: Vec::new(),
            depth: 1,
            filled: Filled::Nothing,
        };
        for _ in 0..2 {
            let Some(page) = self.new_window_page(1) else {
                return self.give_windows_up(hash, WAIT);
            };
            hash.directory.push(page);
            hash.addresses.push(address(self.windows.arena.block(page)));
        }
        self.windows.on = Some(Box::new(hash));
    }

    fn give_windows_up(&mut self, hash: Hash, wait: usize) {
        self.windows.left.extend(hash.directory);
        self.windows.wait = wait;
    }

    /// Frees a share of what windows that were given up have left.
    fn free_windows(&mut self) {
        for _ in 0..FREED {
            let Some(page) = self.windows.left.pop() else {
                return;
            };
            if self.windows.left.last() != Some(&page) {
                for slot in 0..SLOTS {
                    if let Some(window) = self.window_at(page, slot) {
                        self.drop_lines(window.handle, window.lines as usize * LINE);
                    }
                }
                return self.drop_lines(page, PAGE);
            }
        }
    }

    /// Makes the windows of the next routes; `None` when one has no place.
    fn fill_windows(&mut self, hash: &mut Hash) -> Option<()> {
        let after = match hash.filled {
            Filled::Nothing => None,
            Filled::UpTo(key, len) => Some((key, len)),
            Filled::All => return Some(()),
        };
        let routes = self.view().after::<A>(after).take(FILL);
        let routes: Vec<(u128, u8)> = routes.map(|(prefix, _)| A::split(prefix)).collect();
        for (key, len) in &routes {
            hash.filled = Filled::UpTo(*key, *len);
            // A window that is there says everything already.
            let kind = if *len > 32 { OF_32 } else { OF_24 };
            if *len > 24 && self.place(hash, kind, *key).is_none() {
                self.follow(hash, *key, *len)?;
            }
        }
        if routes.len() < FILL {
            hash.filled = Filled::All;
        }
        Some(())
    }

    /// Writes what the trie says about `key`/`len` into its window. `None` when there is no place.
    fn follow(&mut self, hash: &mut Hash, key: u128, len: u8) -> Option<()> {
        if len <= 24 {
            return Some(());
        }
        if len <= 32 {
            return self.follow_in(hash, SHORT, key, len);
        }
        let split = self
            .place(hash, OF_32, key)
            .is_some_and(|place| place.window.split);
        if !split {
            return self.follow_in(hash, WHOLE, key, len);
        }
        if len <= 40 {
            self.follow_in(hash, UPPER, key, len)
        } else {
            self.follow_in(hash, LOWER, key, len)?;
            self.drop_idle(hash, key)
        }
    }

    /// The same when it is known which.
    fn follow_in(&mut self, hash: &mut Hash, part: Part, key: u128, len: u8) -> Option<()> {
        let Some(place) = self.place(hash, part.kind, key) else {
            return self.make(hash, part, key);
        };
        let kind = part.kind;
        let first = u32::from(kind.slot(halves(key).0));
        let unused = (kind.len + 16).saturating_sub(len);
        let last = first | ((1 << unused) - 1);
        let lines = place.window.lines;
        let [first, last] = [first, last].map(|slot| (slot * lines) >> 16);
        let window = self.own_window(hash, key, place)?;
        let mut says = false;
        for line in first..=last {
            let Some(content) = self.line(part, key, lines, line) else {
                // A range more than the line holds: the window is made anew.
                self.take_window(hash, kind, key)?;
                return self.make(hash, part, key);
            };
            says |= content.says();
            self.write_line(window, line, content);
        }
        if !says && !window.split && self.is_idle(window) {
            self.take_window(hash, kind, key)?;
        } else if !says && window.split {
            self.drop_idle(hash, key)?;
        }
        Some(())
    }

    /// Makes a window with as many lines as it needs, if there is something to say; splits it when that are too many.
    fn make(&mut self, hash: &mut Hash, part: Part, key: u128) -> Option<()> {
        let Some(ranges) = self.ranges(part, key) else {
            return self.split_window(hash, key);
        };
        let mut content = Vec::new();
        let mut lines = 1;
        while !cut(part, key, lines, &ranges, &mut content) {
            lines *= 2;
            if lines > part.most {
                return self.split_window(hash, key);
            }
        }
        if part != UPPER && !content.iter().any(Line::says) {
            return Some(());
        }
        let handle = self.allocate_lines(content.len() * LINE)?;
        let window = Window {
            handle,
            lines,
            split: part == UPPER,
        };
        for (line, content) in (0..).zip(content) {
            self.write_line(window, line, content);
        }
        self.put_window(hash, part.kind, key, window)
    }

    /// Makes the windows of a /32 that has too many ranges for one.
    fn split_window(&mut self, hash: &mut Hash, key: u128) -> Option<()> {
        self.make(hash, UPPER, key)?;
        let prefix = key & prefix_mask(32);
        let mut slot = 0;
        while slot < 1 << 16 {
            let at = prefix | slot << 80;
            let (code, last) = self.run(at, LOWER_OF_32);
            slot = u128::from(last) + 1;
            if code != 0 {
                self.make(hash, LOWER, at)?;
                slot = slot.next_multiple_of(1 << 8);
            }
        }
        Some(())
    }

    /// Takes the window of a split /32 away when nothing is left in it.
    fn drop_idle(&mut self, hash: &mut Hash, key: u128) -> Option<()> {
        if self.run(key & prefix_mask(32), WHOLE) == (0, 0xffff) {
            self.take_window(hash, OF_32, key)?;
        }
        Some(())
    }

    /// All ranges of a window, each with its code and its last slot; `None` when they are too many for any.
    fn ranges(&self, part: Part, key: u128) -> Option<Vec<(u16, u16)>> {
        let view = self.view();
        let chunk = view.chunk_entry::<A>(key);
        let most = part.most as usize * (ENDS + 1);
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        let mut slot = 0;
        loop {
            let (code, last) = view.run::<A>(chunk, part.key_at(key, slot), part);
            match ranges.last_mut() {
                Some(range) if range.0 == code => range.1 = last,
                Some(_) | None => ranges.push((code, last)),
            }
            if last == u16::MAX {
                return Some(ranges);
            }
            if ranges.len() > most {
                return None;
            }
            slot = u32::from(last) + 1;
        }
    }

    /// What the routes of `part` say from `key` on, and the last of the window's slots that they say it about.
    fn run(&self, key: u128, part: Part) -> (u16, u16) {
        let view = self.view();
        view.run::<A>(view.chunk_entry::<A>(key), key, part)
    }

    /// Line `line` of `lines` of the window of `key`; `None` when it has too many ranges.
    fn line(&self, part: Part, key: u128, lines: u32, line: u32) -> Option<Line> {
        let view = self.view();
        let chunk = view.chunk_entry::<A>(key);
        let width = (1 << 16) / lines;
        let mut slot = line * width;
        let end = slot + width - 1;
        let mut content = Line::new(part, key, lines);
        loop {
            let (code, last) = view.run::<A>(chunk, part.key_at(key, slot), part);
            let last = u32::from(last).min(end);
            content.push(code, last)?;
            if last == end {
                return Some(content);
            }
            slot = last + 1;
        }
    }

    fn write_line(&self, window: Window, line: u32, content: Line) {
        let cells = self.windows.arena.block(window.handle);
        for (at, cell) in (line as usize * LINE..).zip(content.cells(self.epoch())) {
            store(cells, at, cell);
        }
    }

    /// Whether no range of `window` has a next hop.
    fn is_idle(&self, window: Window) -> bool {
        let cells = self.windows.arena.block(window.handle);
        let codes = [u64::MAX, u64::MAX, u64::MAX, 0xffff];
        (0..window.lines as usize).all(|line| {
            (line * LINE + 4..)
                .zip(codes)
                .all(|(at, mask)| load(cells, at) & mask == 0)
        })
    }

    /// The window of `kind` that `key` falls into.
    fn place(&self, hash: &Hash, kind: Kind, key: u128) -> Option<Place> {
        let (high, _) = halves(key);
        let of = kind.hash(high);
        let page = hash.page(of);
        let cells = self.windows.arena.block(page);
        let line = line_of(of);
        (0..8)
            .filter(|slot| quarter(cells, 4 * line + slot) == kind.tag(of))
            .map(|slot| line + slot)
            .find_map(|slot| {
                let window = self.window_at(page, slot)?;
                let prefix = load(self.windows.arena.block(window.handle), 3);
                let same = (prefix ^ high) >> (64 - kind.len) == 0;
                same.then_some(Place { page, slot, window })
            })
    }

    /// The window in slot `slot` of `page`.
    fn window_at(&self, page: u32, slot: usize) -> Option<Window> {
        let cells = self.windows.arena.block(page);
        if quarter(cells, tag_at(slot)) == 0 {
            return None;
        }
        let handle = (load(cells, HANDLES + slot / 2) >> (slot % 2 * 32) & 0xffff_ffff) as u32;
        let last = load(self.windows.arena.block(handle), LINE - 1);
        let first = load(self.windows.arena.block(handle), 3);
        Some(Window {
            handle,
            lines: 1 << (first & 0xf),
            split: last & SPLIT != 0,
        })
    }

    /// The window of `place` in cells that no snapshot reaches.
    fn own_window(&mut self, hash: &mut Hash, key: u128, place: Place) -> Option<Window> {
        let window = place.window;
        let last = load(self.windows.arena.block(window.handle), LINE - 1);
        if last >> EPOCH_SHIFT == self.epoch() {
            return Some(window);
        }
        let cells = window.lines as usize * LINE;
        let handle = self.allocate_lines(cells)?;
        let (from, to) = (
            self.windows.arena.block(window.handle),
            self.windows.arena.block(handle),
        );
        copy_cells(from, to, cells);
        let last = last & ((1 << EPOCH_SHIFT) - 1) | self.epoch() << EPOCH_SHIFT;
        store(to, LINE - 1, last);
        let copy = Window { handle, ..window };
        let of = self.hash_at(place.page, place.slot, key);
        let page = self.own_window_page(hash, of, place.page)?;
        self.set_slot(page, place.slot, copy);
        self.drop_lines(window.handle, cells);
        Some(copy)
    }

    /// The hash of the prefix in a slot, which `key` begins with.
    fn hash_at(&self, page: u32, slot: usize, key: u128) -> u64 {
        let tag = quarter(self.windows.arena.block(page), tag_at(slot));
        kind_of(tag).hash(halves(key).0)
    }

    /// Puts a window into the page of its prefix, which has none.
    fn put_window(&mut self, hash: &mut Hash, kind: Kind, key: u128, window: Window) -> Option<()> {
        let of = kind.hash(halves(key).0);
        for _ in 0..=SPLITS {
            let page = hash.page(of);
            let cells = self.windows.arena.block(page);
            let line = line_of(of);
            if let Some(slot) = (0..8).find(|slot| quarter(cells, 4 * line + slot) == 0) {
                let page = self.own_window_page(hash, of, page)?;
                set_quarter(
                    self.windows.arena.block(page),
                    4 * line + slot,
                    kind.tag(of),
                );
                self.set_slot(page, line + slot, window);
                return Some(());
            }
            self.split_window_page(hash, of)?;
        }
        None
    }

    /// Takes the window of `kind` that `key` falls into away, if there is one.
    fn take_window(&mut self, hash: &mut Hash, kind: Kind, key: u128) -> Option<()> {
        let Some(place) = self.place(hash, kind, key) else {
            return Some(());
        };
        let of = kind.hash(halves(key).0);
        let page = self.own_window_page(hash, of, place.page)?;
        set_quarter(self.windows.arena.block(page), tag_at(place.slot), 0);
        self.drop_lines(place.window.handle, place.window.lines as usize * LINE);
        Some(())
    }

    fn set_slot(&self, page: u32, slot: usize, window: Window) {
        let cells = self.windows.arena.block(page);
        let place = slot % 2 * 32;
        let others = load(cells, HANDLES + slot / 2) & !(0xffff_ffff << place);
        store(
            cells,
            HANDLES + slot / 2,
            others | u64::from(window.handle) << place,
        );
        let address = address(self.windows.arena.block(window.handle));
        let word = address | u64::from(16 - window.lines.ilog2());
        let at = 4 * (slot / 8 * LINE) + 8 + slot % 8 * 3;
        for (at, part) in (at..).zip([word, word >> 16, word >> 32]) {
            set_quarter(cells, at, (part & 0xffff) as u16);
        }
    }

    /// The page of `of` in cells that no snapshot reaches.
    fn own_window_page(&mut self, hash: &mut Hash, of: u64, page: u32) -> Option<u32> {
        let cells = self.windows.arena.block(page);
        if load(cells, HEAD + 1) == self.epoch() {
            return Some(page);
        }
        let copy = self.allocate_lines(PAGE)?;
        let (from, to) = (
            self.windows.arena.block(page),
            self.windows.arena.block(copy),
        );
        copy_cells(from, to, PAGE);
        store(to, HEAD + 1, self.epoch());
        hash.point(of, page_depth(from), copy, address(to));
        self.drop_lines(page, PAGE);
        Some(copy)
    }

    /// Parts the windows of the page of `of` by the next bit of their hashes.
    fn split_window_page(&mut self, hash: &mut Hash, of: u64) -> Option<()> {
        let old = hash.page(of);
        let depth = page_depth(self.windows.arena.block(old));
        if depth == hash.depth {
            if hash.depth == MAX_DEPTH {
                return None;
            }
            hash.double();
        }
        let bit = 63 - u32::from(depth);
        let zeros = self.new_window_page(depth + 1)?;
        let ones = self.new_window_page(depth + 1)?;
        for slot in 0..SLOTS {
            let Some(window) = self.window_at(old, slot) else {
                continue;
            };
            let tag = quarter(self.windows.arena.block(old), tag_at(slot));
            let high = load(self.windows.arena.block(window.handle), 3);
            let one = kind_of(tag).hash(high) >> bit & 1 == 1;
            let page = if one { ones } else { zeros };
            set_quarter(self.windows.arena.block(page), tag_at(slot), tag);
            self.set_slot(page, slot, window);
        }
        for (side, page) in [(0, zeros), (1, ones)] {
            let address = address(self.windows.arena.block(page));
            hash.point(of & !(1 << bit) | side << bit, depth + 1, page, address);
        }
        self.drop_lines(old, PAGE);
        Some(())
    }

    fn new_window_page(&mut self, depth: u8) -> Option<u32> {
        let page = self.allocate_lines(PAGE)?;
        let cells = self.windows.arena.block(page);
        for at in 0..HANDLES {
            store(cells, at, 0);
        }
        store(cells, HEAD, u64::from(depth));
        store(cells, HEAD + 1, self.epoch());
        Some(page)
    }

    fn allocate_lines(&mut self, cells: usize) -> Option<u32> {
        if !self.windows.arena.has_room() {
            return None;
        }
        let handle = self.windows.arena.allocate(cells);
        if address(self.windows.arena.block(handle)) >> 48 != 0 {
            return None;
        }
        self.windows.cells += cells;
        Some(handle)
    }

    /// Lets a page or a window go: at once when no snapshot can reach it, later otherwise.
    fn drop_lines(&mut self, handle: u32, cells: usize) {
        let block = self.windows.arena.block(handle);
        let epoch = if cells == PAGE {
            load(block, HEAD + 1)
        } else {
            load(block, LINE - 1) >> EPOCH_SHIFT
        };
        self.windows.cells -= cells;
        self.retire_lines(handle, cells, epoch);
    }
}

#[cfg(test)]
impl Windows {
    /// Whether they are complete; `None` when there are none.
    pub(super) fn state(&self) -> Option<bool> {
        self.on.as_ref().map(|hash| hash.filled == Filled::All)
    }
}

impl Hash {
    fn page(&self, of: u64) -> u32 {
        let at = (of >> (64 - u32::from(self.depth)) & 0xffff) as usize;
        self.directory.get(at).copied().unwrap_or_default()
    }

    /// Makes `page` the one for hashes whose first `depth` bits are those of `of`.
    fn point(&mut self, of: u64, depth: u8, page: u32, address: u64) {
        let below = self.depth - depth;
        let first = (of >> (64 - u32::from(depth)) << below & 0xffff) as usize;
        let count = 1 << below;
        writes(2 * count);
        let places = self.directory.iter_mut().zip(&mut self.addresses);
        for place in places.skip(first).take(count) {
            (*place.0, *place.1) = (page, address);
        }
    }

    fn double(&mut self) {
        writes(3 * self.directory.len());
        self.directory = self.directory.iter().flat_map(|page| [*page; 2]).collect();
        let addresses = self.addresses.iter();
        self.addresses = addresses.flat_map(|address| [*address; 2]).collect();
        self.depth += 1;
    }
}

/// One line of a window on its way into its cells.
#[derive(Clone, Copy, Debug)]
struct Line {
    ends: [u16; ENDS],
    codes: [u16; ENDS + 1],
    count: usize,
    prefix: u128,
    lines: u32,
    split: bool,
}

impl Line {
    fn new(part: Part, key: u128, lines: u32) -> Self {
        Self {
            ends: [0xffff; ENDS],
            codes: [0; ENDS + 1],
            count: 0,
            prefix: key & prefix_mask(part.kind.len),
            lines,
            split: part == UPPER,
        }
    }

    /// Adds what the slots up to `last` say; `None` when that is a range too many.
    fn push(&mut self, code: u16, last: u32) -> Option<()> {
        let before = self.count.checked_sub(1);
        let joins = before.is_some_and(|at| self.codes.get(at) == Some(&code));
        let at = if joins { self.count - 1 } else { self.count };
        *self.codes.get_mut(at)? = code;
        if let Some(end) = self.ends.get_mut(at) {
            *end = u16::try_from(last).unwrap_or(u16::MAX);
        }
        self.count = at + 1;
        Some(())
    }

    fn says(&self) -> bool {
        self.codes.iter().any(|code| *code != 0)
    }

    fn cells(self, epoch: u64) -> [u64; LINE] {
        let mut ends = self.ends;
        // The last range goes on to the end.
        if let Some(end) = self.count.checked_sub(1).and_then(|at| ends.get_mut(at)) {
            *end = u16::MAX;
        }
        let four = |list: &[u16]| {
            let lanes = list.iter().rev();
            lanes.fold(0, |cell, lane| cell << 16 | u64::from(*lane))
        };
        let mut cells = [0; LINE];
        let lists = ends.chunks(4).map(four);
        let prefix =
            halves(self.prefix).0 & !0xffff | u64::from(ASK) | u64::from(self.lines.ilog2());
        let codes = self.codes.chunks(4).map(four);
        for (cell, value) in cells.iter_mut().zip(lists.chain([prefix]).chain(codes)) {
            *cell = value;
        }
        if let Some(last) = cells.last_mut() {
            *last |= if self.split { SPLIT } else { 0 } | epoch << EPOCH_SHIFT;
        }
        cells
    }
}

impl View<'_> {
    /// What the routes of `part` say about `key`, below the entry `chunk` of its /24, and the last slot of its window that
    /// they say it about, at least.
    fn run<A: Address>(&self, chunk: Entry, key: u128, part: Part) -> (u16, u16) {
        let len = part.kind.len;
        let end = len + 16;
        let slot_of = |key: u128| part.kind.slot(halves(key).0);
        let mine = slot_of(key);
        // The last slot that shares its first `bits` bits, of the whole address, with `slot`.
        let last_of = |slot: u16, bits: u8| {
            let unused = u32::from(end.saturating_sub(bits)).min(16);
            slot | (((1_u32 << unused) - 1) & 0xffff) as u16
        };
        let mut entry = chunk;
        let mut depth = 24;
        let (mut code, mut last) = (0, u16::MAX);
        while entry.has_child() {
            let skip = entry.skip();
            let shape = Shape::at(depth + 8 * skip, A::BITS);
            let node = self.node(entry.handle(), shape);
            if skip > 0 {
                let seen = skip.min((part.to - depth) / 8);
                let expected = node.expected() >> (8 * (skip - seen));
                let bits = depth + 8 * seen;
                let first =
                    key & prefix_mask(depth) | u128::from(expected) << (128 - u32::from(bits));
                if expected != octets(key, depth, seen) {
                    if first & prefix_mask(len) == key & prefix_mask(len) && mine < slot_of(first) {
                        last = last.min(slot_of(first) - 1);
                    }
                    return (code, last);
                }
                last = last.min(last_of(mine, bits));
            }
            if shape.depth >= part.to {
                return (if part.to == 48 { ASK } else { code }, last);
            }
            let slot = shape.slot(key);
            entry = node.entry(slot);
            depth = shape.end();
            if shape.depth >= len {
                let run = key & prefix_mask(shape.depth) | shape.slot_key(node.last_of_run(slot));
                last = last.min(last_of(slot_of(run), depth));
                if entry.code() != 0 && shape.depth >= part.from {
                    code = entry.code();
                }
            }
            if depth >= part.to && entry.has_child() {
                return (if part.to == 48 { ASK } else { code }, last);
            }
        }
        (code, last)
    }

    /// What the chunk of `key` says.
    fn chunk_entry<A: Address>(&self, key: u128) -> Entry {
        let root = self.root_entry(key);
        if !root.has_child() {
            return Entry::default();
        }
        let shape = Shape::at(ROOT_STRIDE, A::BITS);
        self.node(root.handle(), shape).entry(shape.slot(key))
    }
}

fn kind_of(tag: u16) -> Kind {
    match tag & 3 {
        1 => OF_24,
        2 => OF_32,
        _ => OF_40,
    }
}

/// The first slot of the line of `of` in its page, which is its first cell, too: three bits, times 8.
#[inline(always)]
pub(super) const fn line_of(of: u64) -> usize {
    (of >> 29 & 0x38) as usize
}

/// The quarter of the tag of slot `slot`.
const fn tag_at(slot: usize) -> usize {
    slot / 8 * 4 * LINE + slot % 8
}

fn page_depth(cells: &[AtomicU64]) -> u8 {
    (load(cells, HEAD) & 0xff) as u8
}

fn address(cells: &[AtomicU64]) -> u64 {
    // Exposed: `simd/windows.rs` makes a pointer of it again.
    cells.as_ptr().expose_provenance() as u64
}

fn quarter(cells: &[AtomicU64], at: usize) -> u16 {
    (load(cells, at / 4) >> (at % 4 * 16) & 0xffff) as u16
}

fn set_quarter(cells: &[AtomicU64], at: usize, value: u16) {
    let shift = at % 4 * 16;
    let cell = load(cells, at / 4) & !(0xffff << shift);
    store(cells, at / 4, cell | u64::from(value) << shift);
}

pub(super) const OF_24: Kind = Kind::new(24, 1);
pub(super) const OF_32: Kind = Kind::new(32, 2);
pub(super) const OF_40: Kind = Kind::new(40, 3);

const SHORT: Part = Part::new(OF_24, 24, 32, 32);
const WHOLE: Part = Part::new(OF_32, 32, 48, 4);
const UPPER: Part = Part::new(OF_32, 32, 40, 32);
const LOWER: Part = Part::new(OF_40, 40, 48, 32);
/// What the windows below a split /32 hold, seen from there.
const LOWER_OF_32: Part = Part::new(OF_32, 40, 48, 0);

/// The code of a range that the trie must be asked about, and what a line says to an address of another prefix.
pub(super) const ASK: u16 = 0x8000;

/// The number of routes from which a table has windows; half as many are the least that it keeps them for.
const LEAST: usize = 1_024;
/// At most one route in so many is longer than /48: what is below one of these is asked twice.
const LONG_SHARE: usize = 16;
/// Routes that one change makes windows of, while they are not complete.
const FILL: usize = 32;
/// Directory entries that one change frees, at most one page with its windows.
const FREED: usize = 128;
/// Splits of pages that one change may do for a window.
const SPLITS: usize = 4;
/// Changes between windows that were given up and the next try.
const WAIT: usize = 1_024;
const MAX_DEPTH: u8 = 13;

/// Cells of a line.
const LINE: usize = 8;
/// Ends of ranges in a line: one less than ranges, and with the prefix as many as codes and epoch take.
pub(super) const ENDS: usize = 12;
/// In the last cell of a window's first line: one code, whether it is split, the epoch.
const SPLIT: u64 = 1 << 16;
const EPOCH_SHIFT: u32 = 17;

/// Windows of a page: eight lines of eight.
const SLOTS: usize = 64;
/// The cell of the first two windows' handles, after the lines.
const HANDLES: usize = SLOTS;
/// The cell of the page's depth; the epoch is next.
const HEAD: usize = HANDLES + SLOTS / 2;
/// Cells of a page; as no window has.
const PAGE: usize = 13 * LINE;

const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
