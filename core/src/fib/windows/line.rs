//! What a window says, and the trie's word for it: ranges of addresses, in lines of 64 octets.
//!
//! | octets of a line | content |
//! |------------------|---------|
//! | 24 | the last slots (16 bits after the prefix) of all ranges but the last, ascending, then 0xffff |
//! | 8 | the first 48 bits of the prefix; [`ASK`] and log2 of the window's lines |
//! | 26 | next hop codes of the ranges; 0: nothing, [`ASK`]: the trie knows |
//! | 6 | in the first line: whether the window is of a split /32 (bit 0), the epoch |
//!
//! A window of 2^n lines has the slots whose first n bits are the line's number in each. All of it is asked of the
//! trie, range by range ([`View::run`]): nothing here remembers a route. A change asks about the slots that it can have
//! changed; the line's other ranges stay.

use alloc::vec::Vec;

use super::super::address::{Address, prefix_mask};
use super::super::arena::{load, store};
use super::super::hashed::halves;
use super::super::node::{Entry, ROOT_STRIDE, Shape};
use super::super::table::{Fib, octets};
use super::super::walk::View;
use super::directory::{Kind, OF_24, OF_32, OF_40};

/// What a window holds: routes longer than `from` and no longer than `to` below a prefix of `kind`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Part {
    pub(super) kind: Kind,
    /// The bit from which on a node must begin for its routes to count, and to which all may go.
    from: u8,
    pub(super) to: u8,
    /// Its most lines, a power of two.
    pub(super) most: u32,
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
pub(super) fn cut(
    part: Part,
    key: u128,
    lines: u32,
    ranges: &[(u16, u16)],
    content: &mut Vec<Line>,
) -> bool {
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

/// A window in the arena.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) handle: u32,
    /// Its lines, a power of two.
    pub(super) lines: u32,
    pub(super) split: bool,
}

impl<A: Address> Fib<A> {
    /// All ranges of a window, each with its code and its last slot; `None` when they are too many for any.
    pub(super) fn ranges(&self, part: Part, key: u128) -> Option<Vec<(u16, u16)>> {
        let view = self.view();
        let chunk = view.chunk_entry::<A>(key);
        let most = part.most as usize * (ENDS + 1);
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        let mut slot = 0;
        for _ in 0..RUNS {
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
        None
    }

    /// What the routes of `part` say from `key` on, and the last of the window's slots that they say it about.
    pub(super) fn run(&self, key: u128, part: Part) -> (u16, u16) {
        let view = self.view();
        view.run::<A>(view.chunk_entry::<A>(key), key, part)
    }

    /// Line `line` of `window`, the one of `key`, when the slots `changed`, the first and the last, may say something else
    /// than it has; `None` when that are too many ranges. Only those the trie is asked about.
    pub(super) fn changed_line(
        &self,
        part: Part,
        key: u128,
        window: Window,
        line: u32,
        changed: (u32, u32),
    ) -> Option<Line> {
        let width = (1 << 16) / window.lines;
        let (start, end) = (line * width, line * width + width - 1);
        let (first, last) = (changed.0.max(start), changed.1.min(end));
        let cells = self.lines.block(window.handle);
        let cells = cells.get(line as usize * LINE..).unwrap_or_default();
        let quarter = |at: usize| (load(cells, at / 4) >> (at % 4 * 16) & 0xffff) as u16;
        // The last range goes on to the end.
        let end_of = |range: usize| {
            let to = if range < ENDS {
                quarter(range)
            } else {
                u16::MAX
            };
            u32::from(to).min(end)
        };
        let ranges = |range: usize| (quarter(16 + range), end_of(range));
        let mut content = Line::new(part, key, window.lines);
        let mut range = 0;
        let mut slot = start;
        while slot < first && range <= ENDS {
            let (code, to) = ranges(range);
            content.push(code, to.min(first - 1))?;
            slot = to + 1;
            range += 1;
        }
        let view = self.view();
        let chunk = view.chunk_entry::<A>(key);
        slot = first;
        for _ in 0..RUNS {
            let (code, to) = view.run::<A>(chunk, part.key_at(key, slot), part);
            let to = u32::from(to).min(last);
            content.push(code, to)?;
            slot = to + 1;
            if to == last {
                break;
            }
        }
        if slot <= last {
            return None;
        }
        range = 0;
        while slot <= end && range <= ENDS {
            let (code, to) = ranges(range);
            if to >= slot {
                content.push(code, to)?;
                slot = to + 1;
            }
            range += 1;
        }
        debug_assert!(
            changed == (0, 0xffff)
                || self.changed_line(part, key, window, line, (0, 0xffff)) == Some(content),
            "a range has changed that was not to"
        );
        Some(content)
    }

    pub(super) fn write_line(&self, window: Window, line: u32, content: Line) {
        let cells = self.lines.block(window.handle);
        for (at, cell) in (line as usize * LINE..).zip(content.cells(self.epoch())) {
            store(cells, at, cell);
        }
    }

    /// Whether no range of `window` has a next hop.
    pub(super) fn is_idle(&self, window: Window) -> bool {
        let cells = self.lines.block(window.handle);
        let codes = [u64::MAX, u64::MAX, u64::MAX, 0xffff];
        (0..window.lines as usize).all(|line| {
            (line * LINE + 4..)
                .zip(codes)
                .all(|(at, mask)| load(cells, at) & mask == 0)
        })
    }
}

/// One line of a window on its way into its cells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Line {
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

    pub(super) fn says(&self) -> bool {
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

pub(super) const SHORT: Part = Part::new(OF_24, 24, 32, 32);
pub(super) const WHOLE: Part = Part::new(OF_32, 32, 48, 4);
pub(super) const UPPER: Part = Part::new(OF_32, 32, 40, 32);
pub(super) const LOWER: Part = Part::new(OF_40, 40, 48, 32);
/// What the windows below a split /32 hold, seen from there.
pub(super) const LOWER_OF_32: Part = Part::new(OF_32, 40, 48, 0);

/// The code of a range that the trie must be asked about, and what a line says to an address of another prefix.
pub(in crate::fib) const ASK: u16 = 0x8000;

/// Questions to the trie that a window may cost, or a line that is written again. A window over 8 bits asks 256 and a
/// few, a /32 with a /48 in each /40 some 770; one that is full of /48 with longer routes would ask 65,536, with a range
/// or two to show for them.
const RUNS: usize = 1_024;

/// Cells of a line.
pub(super) const LINE: usize = 8;
/// Ends of ranges in a line: one less than ranges, and with the prefix as many as codes and epoch take.
pub(in crate::fib) const ENDS: usize = 12;
/// In the last cell of a window's first line: one code, whether it is split, the epoch.
pub(super) const SPLIT: u64 = 1 << 16;
pub(super) const EPOCH_SHIFT: u32 = 17;
