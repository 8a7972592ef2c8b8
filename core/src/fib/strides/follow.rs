//! How a copy follows: what the writer notes of a change, and what is made of that.
//!
//! Nearly every change makes the same of all slots that it has in a node of a copy, and then the writer notes what that
//! is: whoever follows has no need to look into the trie, whose new nodes are in the writer's caches and in none of his.
//! Changes are gone through in their order, so that each slot has at the end what the last of its changes made of it.
//! Where that is not the same for all, or there is no node yet, the trie is asked, which is the table after all changes:
//! what it says of slots that changes to come are about they only say again.

use super::super::address::prefix_mask;
use super::super::changes::Change;
use super::super::hashed::halves;
use super::super::node::{CHUNK_STRIDE, Entry, ROOT_STRIDE, Shape};
use super::super::table::octets;
use super::super::walk::View;
use super::super::windows::ASK;
use super::layout::{FEW, LAST, first_of};
use super::{Below, MIDDLE, NO_TOP, SLOTS, Strides};

impl Strides {
    /// Makes the routes of `changes` what they are in `view`. `None` when there is no place: the copy is then of no use
    /// any more.
    pub(in crate::fib) fn follow(&mut self, view: &View<'_>, changes: &[Change]) -> Option<()> {
        for change in changes {
            self.refresh(view, *change)?;
        }
        // A node for the octet after /32 comes, moves or goes by longer routes only.
        for change in changes.iter().filter(|change| change.len() > MIDDLE) {
            let (first, _) = halves(change.key());
            let node = self.middle(change.key())?;
            self.middles.set(u32::try_from(first >> 32).ok()?, node)?;
        }
        if self.middles.is_full() {
            self.fill_middles()?;
        }
        Some(())
    }

    /// Makes the root slot what it is in `view`, all below it with it where it comes or goes.
    pub(super) fn refresh_root(&mut self, view: &View<'_>, slot: usize) -> Option<()> {
        let entry = Entry(view.slots.get(slot).copied()?);
        let mut top = self.top(slot)?;
        if entry.has_child() && top == NO_TOP {
            top = self.new_top()?;
            self.fill_top(view, entry, top)?;
        } else if !entry.has_child() && top != NO_TOP {
            self.drop_top(top)?;
            top = NO_TOP;
        }
        *self.roots.get_mut(slot)? = (top as u64) << 32 | u64::from(entry.code());
        Some(())
    }

    /// Makes what `change` is about what it is in `view`.
    fn refresh(&mut self, view: &View<'_>, change: Change) -> Option<()> {
        let (key, len) = (change.key(), change.len());
        let root = Shape::at(0, 128);
        let slot = root.slot(key);
        if len <= ROOT_STRIDE {
            let last = root.slot(key | !prefix_mask(len));
            return (slot..=last).try_for_each(|slot| self.refresh_root(view, slot));
        }
        let had = self.top(slot)? != NO_TOP;
        self.refresh_root(view, slot)?;
        let entry = Entry(view.slots.get(slot).copied()?);
        if !had || !entry.has_child() {
            return Some(());
        }
        let top = self.top(slot)?;
        let shape = Shape::at(ROOT_STRIDE, 128);
        let slot = shape.slot(key);
        if let Some(says) = change.says()
            && self.put((key, len), says, top + self.layout.width(0) * slot)?
        {
            return Some(());
        }
        let node = view.node(entry.handle(), shape);
        if len <= shape.end() {
            for slot in slot..=shape.slot(key | !prefix_mask(len)) {
                let at = top + self.layout.width(0) * slot;
                let leaf = self.leaf(at)? & !0xffff | u64::from(node.entry(slot).code());
                self.set_leaf(at, leaf)?;
            }
            return Some(());
        }
        let below = Below::of(node.entry(slot), shape.end());
        self.refresh_below(view, (key, len), top + self.layout.width(0) * slot, below)
    }

    /// The same from the leaf at `at` on, which leads to a node for the octet at /24 or to none, as `below` does.
    fn refresh_below(
        &mut self,
        view: &View<'_>,
        (key, len): (u128, u8),
        mut at: usize,
        mut below: Option<Below>,
    ) -> Option<()> {
        let mut depth = ROOT_STRIDE + CHUNK_STRIDE;
        loop {
            let leaf = self.leaf(at)?;
            let node = leaf >> 16;
            let Some(here) = below else {
                self.drop_node(node, depth)?;
                return self.set_leaf(at, leaf & 0xffff);
            };
            if node == 0 {
                let node = self.build(view, here, depth)?;
                return self.set_leaf(at, leaf | node << 16);
            }
            let shape = Shape::at(depth, 128);
            let slot = shape.slot(key);
            if depth == LAST || len <= depth + 8 {
                let last = shape.slot(key | !prefix_mask(len.min(depth + 8)));
                return self.patch(view, (here, depth), at, (slot, last));
            }
            let next = here.says(view, depth, slot).below;
            let next_at = self.leaf_of(node, depth, slot)?;
            if (self.leaf(next_at)? >> 16 != 0) != next.is_some() {
                return self.patch(view, (here, depth), at, (slot, slot));
            }
            if next.is_none() {
                return Some(());
            }
            (at, below, depth) = (next_at, next, depth + 8);
        }
    }

    /// Puts `says`, what its change made of the slots of `key`/`len`, from the leaf at `at` on, which is for its first 24
    /// bits; whether that was all: not where there is no node yet for something.
    fn put(&mut self, (key, len): (u128, u8), says: u16, at: usize) -> Option<bool> {
        // The leaves that lead to the node, those of its uppers before.
        let mut ways = [at; 3];
        let mut depth = ROOT_STRIDE + CHUNK_STRIDE;
        let mut level = 0;
        loop {
            let at = *ways.get(level)?;
            let node = self.leaf(at)? >> 16;
            if node == 0 {
                return Some(says == 0);
            }
            if depth == LAST || len <= depth + 8 {
                break;
            }
            level += 1;
            *ways.get_mut(level)? = self.leaf_of(node, depth, Shape::at(depth, 128).slot(key))?;
            depth += 8;
        }
        let shape = Shape::at(depth, 128);
        let first = shape.slot(key);
        let upto = shape.slot(key | !prefix_mask(len.min(depth + 8))) + 1;
        // What is below a slot stays, but for a change from there.
        let kept = match (depth == LAST, len > 48) {
            (false, _) => !0xffff,
            (true, false) => u64::from(ASK),
            (true, true) => 0,
        };
        let at = *ways.get(level)?;
        let node = self.leaf(at)? >> 16;
        let old = self.starts(node)?;
        let begin = self.runs.len();
        let mut changed = false;
        for slot in core::iter::once(first).chain(old.from(first + 1).below(upto)) {
            let had = self.leaf_in(node, depth, slot)?;
            let has = had & kept | u64::from(says);
            changed |= had != has;
            self.push(begin, slot, has)?;
        }
        if changed {
            self.splice(at, depth, (first, upto), begin)?;
        }
        self.runs.truncate(begin);
        if says == 0 {
            self.drop_empty(key, depth, ways.get(..=level)?)?;
        }
        Some(true)
    }

    /// Frees the node at `depth` that the last of `ways` leads to if there is nothing in it, and so its uppers.
    fn drop_empty(&mut self, key: u128, mut depth: u8, mut ways: &[usize]) -> Option<()> {
        while let Some((at, uppers)) = ways.split_last() {
            let leaf = self.leaf(*at)?;
            let node = leaf >> 16;
            let count = self.starts(node)?.count();
            if count > 1 || self.leaf_in(node, depth, 0)? != 0 {
                return Some(());
            }
            self.free_node(node, count, depth)?;
            let Some(upper) = uppers.last() else {
                return self.set_leaf(*at, leaf & 0xffff);
            };
            depth -= 8;
            let slot = Shape::at(depth, 128).slot(key);
            let begin = self.runs.len();
            self.push(begin, slot, leaf & 0xffff)?;
            self.splice(*upper, depth, (slot, slot + 1), begin)?;
            self.runs.truncate(begin);
            ways = uppers;
        }
        Some(())
    }

    /// Makes the slots from `first` to `last` of a node, to which the leaf at `at` leads, what is `below` at `depth`. Nodes
    /// below it stay where they are, but for those that come or go.
    fn patch(
        &mut self,
        view: &View<'_>,
        (below, depth): (Below, u8),
        at: usize,
        (first, last): (usize, usize),
    ) -> Option<()> {
        let node = self.leaf(at)? >> 16;
        let old = self.starts(node)?;
        let upto = last + 1;
        let only = below.says(view, depth, first);
        // A change that came and went, or of a route that a longer one hides.
        if only.last >= last && old.from(first + 1).below(upto).is_empty() {
            let had = self.leaf_in(node, depth, first)?;
            let has_child = only.below.is_some() && depth < LAST;
            let child = if has_child { had >> 16 } else { 0 };
            if only.leaf(depth, child) == had && has_child == (child != 0) {
                return Some(());
            }
        }
        let begin = self.runs.len();
        let mut slot = first;
        while slot <= last {
            let says = below.says(view, depth, slot);
            let had = self.leaf_in(node, depth, slot)?;
            let child = match says.below {
                Some(below) if depth < LAST => match had >> 16 {
                    0 => self.build(view, below, depth + 8)?,
                    kept => kept,
                },
                _ => {
                    // Each child has a run of its own.
                    for gone in old.from(slot).below(upto.min(says.last + 1)) {
                        let leaf = self.leaf_in(node, depth, gone)?;
                        self.drop_node(leaf >> 16, depth + 8)?;
                    }
                    0
                }
            };
            self.push(begin, slot, says.leaf(depth, child))?;
            slot = says.last + 1;
        }
        self.splice(at, depth, (first, upto), begin)?;
        self.runs.truncate(begin);
        Some(())
    }

    /// Puts the runs from `begin` on in place of what the node to which the leaf at `at` leads says of the slots from
    /// `first` up to `upto`, without that one.
    fn splice(
        &mut self,
        at: usize,
        depth: u8,
        (first, upto): (usize, usize),
        begin: usize,
    ) -> Option<()> {
        let upper = self.leaf(at)?;
        let node = upper >> 16;
        let old = self.starts(node)?;
        let width = self.layout.width(depth);
        // What is before and behind may say the same as the first and the last run; a run of that is not to be two.
        let before = match first.checked_sub(1) {
            Some(slot) => Some(self.leaf_in(node, depth, slot)?),
            None => None,
        };
        let behind = if upto < SLOTS {
            Some(self.leaf_in(node, depth, upto)?)
        } else {
            None
        };
        let (head, count) = (old.below(first), old.count());
        let mut starts = head.with(old.from(upto + 1));
        let (head, ended) = (head.count(), old.below(upto).count());
        let same_before = before == Some(self.runs.get(begin)?.leaf);
        let begin = begin + usize::from(same_before);
        for run in self.runs.get(begin..)? {
            starts.start(run.first.into());
        }
        // Where all is the same as before, the last run may be there no more.
        let at_last = self
            .runs
            .get(begin..)?
            .last()
            .map_or(before, |run| Some(run.leaf));
        // The run behind: its leaf is the last of those before, or the next one.
        let mut tail = ended - usize::from(!old.has(upto));
        if behind.is_some() {
            if behind == at_last {
                tail += 1;
            } else {
                starts.start(upto);
            }
        } else {
            tail = count;
        }
        let added = self.runs.len() - begin;
        let now = head + added + (count - tail);
        let fits = self.layout.grains(now, depth) == self.layout.grains(count, depth)
            && (now > FEW) == (count > FEW);
        let to = if fits { node } else { self.room(now, depth)? };
        let from_leaves = first_of(node) + self.layout.leaves_at(count, depth);
        let to_leaves = first_of(to) + self.layout.leaves_at(now, depth);
        let tail = from_leaves + width * tail..from_leaves + width * count;
        if tail.end > self.octets.len() || to_leaves + width * now > self.octets.len() {
            return None;
        }
        self.octets
            .copy_within(tail, to_leaves + width * (head + added));
        if !fits {
            let head = from_leaves..from_leaves + width * head;
            self.octets.copy_within(head, to_leaves);
        }
        self.write_leaves(to_leaves + width * head, depth, begin)?;
        self.write_starts(to, depth, starts)?;
        if fits {
            return Some(());
        }
        self.free_node(node, count, depth)?;
        self.set_leaf(at, upper & 0xffff | to << 16)
    }
}

/// What a change of the route for `key`/`len` makes of the slots that are its in a node of a copy, if that is the same
/// for all of them: a code, and [`ASK`] when it is about what is below one. The table has changed already.
pub(in crate::fib) fn said(view: &View<'_>, key: u128, len: u8) -> Option<u16> {
    let ends = ROOT_STRIDE + CHUNK_STRIDE;
    // The depth of that node.
    let wanted = match len.checked_sub(ends)? {
        0 => return None,
        1..=8 => ends,
        9..=16 => ends + 8,
        _ => LAST,
    };
    let mut entry = view.root_entry(key);
    let mut depth = ROOT_STRIDE;
    while entry.has_child() {
        let shape = Shape::at(depth + 8 * entry.skip(), 128);
        if shape.depth > wanted {
            // Nothing in that node but a way further down: past the slots of a route, or through the one in question.
            return (len <= 48).then_some(0);
        }
        let node = view.node(entry.handle(), shape);
        if entry.skip() > 0 && node.expected() != octets(key, depth, entry.skip()) {
            break;
        }
        if shape.depth == wanted {
            let last = shape.slot(key | !prefix_mask(len.min(shape.end())));
            let mut slot = shape.slot(key);
            let first = node.entry(slot);
            while slot <= last {
                if node.entry(slot).code() != first.code() {
                    return None;
                }
                slot = node.last_of_run(slot) + 1;
            }
            let asks = len > 48 && first.has_child();
            return Some(first.code() | if asks { ASK } else { 0 });
        }
        entry = node.entry(shape.slot(key));
        depth = shape.end();
    }
    Some(0)
}
