//! Windows: the IPv6 routes of a large table by hash, for lookups only.
//!
//! The trie goes three or four levels down for a /48, each from memory that is not near. A large table keeps its routes
//! of /25 to /48 a second time: for each /24, /32 and /40 that has longer ones, what these say about the 16 bits after
//! it, as ranges of addresses with one next hop each. Where they are a hash of the prefix tells, so that a lookup asks
//! for all three side by side and waits for a page of the hash and for a line of ranges, whatever the length:
//!
//! ```text
//!   hash of /24, /32 or /40, 64 bits: | directory, 1 to 13 | ... | line, 3 | tag, 14, and which length | ... |
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
//! [`WAIT`] changes later, when the pages that it had are freed, one a change. A table that tries whether it has few
//! enough lengths for a hash keeps its windows until it has. Pages and windows are copied on write, and lie in an arena of their own whose blocks all
//! begin a cache line.
//!
//! Only x86-64 has them: lines name windows by address. `simd/windows.rs` reads them, and `simd/longest.rs` in batches
//! with AVX-512; their twin is the trie. Where they are is `directory.rs`, what they say `line.rs`.

mod directory;
mod line;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::address::{Address, prefix_mask};
use super::arena::Segment;
use super::changes::{Changes, Noted};
use super::fresh::Fresh;
use super::hashed::halves;
use super::log::Log;
use super::strides;
use super::table::Fib;
use directory::{Hash, PAGE, SLOTS, address};
use line::{LINE, LOWER, LOWER_OF_32, Line, Part, SHORT, UPPER, WHOLE, Window, cut};

#[cfg(target_arch = "x86_64")]
pub(super) use directory::{Kind, line_of};
pub(super) use directory::{OF_24, OF_32, OF_40};
pub(super) use line::ASK;
#[cfg(target_arch = "x86_64")]
pub(super) use line::ENDS;

/// What a table has of windows.
#[derive(Debug, Default)]
pub(super) struct Windows {
    on: Option<Box<Hash>>,
    /// The directory of a hash that was given up: pages to be freed, the same one side by side. The next hash begins
    /// when none is left, so that a table that goes to and fro keeps the pages of two at the most.
    left: Vec<u32>,
    /// Changes until the next try.
    wait: usize,
    /// Routes longer than /48.
    long: usize,
    /// Cells of pages and windows in use.
    cells: usize,
}

/// Which routes are in the windows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Filled {
    Nothing,
    /// Those up to this one, in order of address, then length.
    UpTo(u128, u8),
    All,
}

/// The windows of a snapshot. Lookups read it all the time: in lines of its own, which no neighbour in memory writes.
#[repr(align(128))]
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
    /// The /9, a bit each, outside of which no root slot has a child.
    pub(super) busy: [u64; 8],
    /// The lines that this snapshot has new (`fresh.rs`).
    pub(super) fresh: Box<[u64]>,
    /// The changes up to this snapshot.
    pub(super) noted: Noted,
    /// What pages and windows are in.
    _segments: Arc<[Segment]>,
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
        directory * (size_of::<u32>() + (1 + snapshots) * size_of::<u64>())
            + self.on.as_ref().map_or(0, |hash| {
                hash.log.octets() + hash.changes.octets() + snapshots * size_of::<Windowed>()
            })
            + self.left.capacity() * size_of::<u32>()
    }

    /// Whether snapshots have them.
    pub(super) fn is_ready(&self) -> bool {
        let hash = self.on.as_ref();
        hash.is_some_and(|hash| hash.filled == Filled::All)
    }

    /// What the snapshot of publication `number` gets, made over the directory of an older one.
    pub(super) fn publish(
        &mut self,
        (old, old_number): (Option<Box<[u64]>>, u64),
        number: u64,
        lines: &Arc<[Segment]>,
        fresh: &mut Fresh,
    ) -> Option<Box<Windowed>> {
        let hash = self.on.as_mut().filter(|hash| hash.filled == Filled::All)?;
        hash.log.publish(number);
        Some(Box::new(Windowed {
            pages: hash
                .log
                .follow(old, old_number, &hash.addresses, Some(fresh)),
            shift: 64 - u32::from(hash.depth),
            busy: hash.busy,
            fresh: Box::default(),
            noted: hash.changes.noted(),
            _segments: Arc::clone(lines),
        }))
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
            } else if self.windows_wanted(0) && !self.hashes.is_on() && self.windows.left.is_empty()
            {
                self.begin_windows();
            }
            return;
        };
        if hash.changes.are_few_for(self.routes) {
            hash.changes = Arc::new(Changes::of(self.routes));
        }
        hash.note(key, len, strides::said(&self.view(), key, len));
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
        if A::BITS != 128 {
            return;
        }
        let lens = self.iter().map(|(prefix, _)| A::split(prefix).1);
        self.windows.long = lens.filter(|len| *len > 48).count();
        if !cfg!(target_arch = "x86_64") || !self.windows_wanted(0) {
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
            && !self.hashes.is_complete()
            && self.windows.long <= (self.routes + slack) / LONG_SHARE
    }

    fn begin_windows(&mut self) {
        let mut hash = Hash {
            directory: Vec::new(),
            addresses: Vec::new(),
            depth: 1,
            filled: Filled::Nothing,
            busy: self.busy(),
            log: Log::default(),
            changes: Arc::new(Changes::of(self.routes)),
        };
        for _ in 0..2 {
            let Some(page) = self.new_window_page(1) else {
                return self.give_windows_up(hash, WAIT);
            };
            hash.directory.push(page);
            hash.addresses.push(address(self.lines.block(page)));
        }
        self.windows.on = Some(Box::new(hash));
    }

    /// The /9, a bit each, in which a root slot has a child.
    fn busy(&self) -> [u64; 8] {
        let mut busy = [0; 8];
        for (word, places) in busy.iter_mut().zip(0..) {
            for slot in places << 10..(places + 1) << 10 {
                *word |= u64::from(self.root_entry(slot).has_child()) << (slot >> 4 & 63);
            }
        }
        busy
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
            let here = Filled::UpTo(*key, *len);
            hash.filled = here;
            if *len > 24 && !self.has_window(hash, *key, *len) {
                self.follow(hash, *key, *len)?;
            }
            if hash.filled != here {
                // A window was split, and routes before this one are to come again.
                return Some(());
            }
        }
        if routes.len() < FILL {
            hash.filled = Filled::All;
        }
        Some(())
    }

    /// Whether the window of a route is there: it then says everything already.
    fn has_window(&self, hash: &Hash, key: u128, len: u8) -> bool {
        if len <= 32 {
            return self.place(hash, OF_24, key).is_some();
        }
        let place = self.place(hash, OF_32, key);
        place.is_some_and(|place| {
            !place.window.split || len <= 40 || self.place(hash, OF_40, key).is_some()
        })
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
        // A longer route than the window's own changes whether the trie is asked about all of the prefix that it goes to.
        let unused = (kind.len + 16).saturating_sub(len.min(part.to));
        let first = u32::from(kind.slot(halves(key).0)) >> unused << unused;
        let last = first | ((1 << unused) - 1);
        let changed = (first, last);
        let lines = place.window.lines;
        let [first, last] = [first, last].map(|slot| (slot * lines) >> 16);
        let window = self.own_window(hash, key, place)?;
        let mut says = false;
        for line in first..=last {
            let Some(content) = self.changed_line(part, key, window, line, changed) else {
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
            return self.split_window(hash, part, key);
        };
        let mut content = Vec::new();
        let mut lines = 1;
        while !cut(part, key, lines, &ranges, &mut content) {
            lines *= 2;
            if lines > part.most {
                return self.split_window(hash, part, key);
            }
        }
        if part != UPPER && !content.iter().any(Line::says) {
            return Some(());
        }
        let cells = content.len() * LINE;
        let handle = self.allocate_lines(cells)?;
        let window = Window {
            handle,
            lines,
            split: part == UPPER,
        };
        for (line, content) in (0..).zip(content) {
            self.write_line(window, line, content);
        }
        let put = self.put_window(hash, part.kind, key, window);
        if put.is_none() {
            self.drop_lines(handle, cells);
        }
        put
    }

    /// Makes the windows of a /32 that has too many ranges for one: its own, then those of its /40. One change can ask for
    /// 256 of them with all their lines (another next hop for a /33 whose /48 all said the same); what comes after
    /// [`AT_ONCE`] is left to the filling, and until that is done the table is one without windows.
    fn split_window(&mut self, hash: &mut Hash, part: Part, key: u128) -> Option<()> {
        if part != WHOLE {
            return None;
        }
        self.make(hash, UPPER, key)?;
        let full = self.windows.cells + AT_ONCE;
        let prefix = key & prefix_mask(32);
        let mut slot = 0;
        let mut made = 0;
        while slot < 1 << 16 {
            let at = prefix | slot << 80;
            if made == MADE_AT_ONCE || self.windows.cells > full {
                hash.go_back(at);
                return Some(());
            }
            let (code, last) = self.run(at, LOWER_OF_32);
            slot = u128::from(last) + 1;
            if code != 0 {
                self.make(hash, LOWER, at)?;
                slot = slot.next_multiple_of(1 << 8);
                made += 1;
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
}

#[cfg(all(test, target_arch = "x86_64"))]
impl Windows {
    /// Whether they are complete; `None` when there are none.
    pub(super) fn state(&self) -> Option<bool> {
        self.on.as_ref().map(|hash| hash.filled == Filled::All)
    }
}

/// The number of routes from which a table has windows; half as many are the least that it keeps them for.
const LEAST: usize = 1_024;
/// At most one route in so many is longer than /48: what is below one of these is asked twice.
const LONG_SHARE: usize = 16;
/// Routes that one change makes windows of, while they are not complete.
const FILL: usize = 32;
/// Cells of windows and of pages more that one split of a /32 writes, but for the last window: more than the 50 ranges
/// need that a split finds where routes come one by one.
const AT_ONCE: usize = 8_192;
/// Windows that it makes: likewise.
const MADE_AT_ONCE: usize = 64;
/// Directory entries that one change frees, at most one page with its windows.
const FREED: usize = 128;
/// Changes between windows that were given up and the next try.
const WAIT: usize = 1_024;
