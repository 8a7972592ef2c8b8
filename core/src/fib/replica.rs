//! A worker's own copy of what lookups read of a table, and what that is of a large IPv4 table. Of a large IPv6 table it is
//! `strides/`, of an IPv4 table of few flat chunks `expanded.rs`.
//!
//! In a snapshot a lookup goes from the root to a block of pushed chunks (`pushed/`), to its group cell, to a leaf: the
//! root is what lets a snapshot share with the one before all that did not change. Who has a copy to himself needs none:
//! here the group cells of all blocks stand in one array, by the first 19 bits of an address, and their leaves in
//! another. A lookup is group cell, leaf. The copy follows a newer snapshot in the root slots that changed.
//!
//! | bits of a group cell | content |
//! |------|---------|
//! | 0..32 | as in a block: where runs start, and whether some slot is the escape |
//! | 32..64 | the place in the leaves from which they are counted back; in a group that says one thing, of a leaf that says it |
//!
//! Where addresses come again, the answers for each /24 stand besides, one after the other, and a lookup reads once
//! (`dir24.rs`).
//!
//! The leaves begin with one for each code that fits, which groups of one code share; behind these each root slot has
//! a region of its own, and before its leaves the entries of its block, for the slots that have a third-level node.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::NextHopId;
use super::address::Address;
use super::arena::{block, load};
use super::changes::AT_ONCE;
use super::dir24::{Dir24, FILLED_AT_ONCE, Locality};
use super::expanded::Expanded;
#[cfg(target_arch = "x86_64")]
use super::node::ROOT_STRIDE;
use super::pushed::{ENTRIES_AT, GROUPS, GROUPS_AT, PushedRoot, SLOTS, Short};
#[cfg(target_arch = "x86_64")]
use super::pushed::{ROOT_SHIFT, entry_slot};
use super::reader::FibReader;
use super::simd::Level;
use super::strides::Strides;

/// What one worker has of a table: a snapshot, and of some tables a copy of what lookups read of it, in which they take
/// fewer steps or shorter ones. Large IPv4 tables have one where the processor has AVX-512; where its gathers are fast
/// besides, so do large IPv6 tables, and IPv4 tables of 1,024 routes or more below few /13, such as an overlay's.
///
/// The copy of a full table takes some 5 MiB, of IPv4 another 16 (32 with more than 254 next hops) while the addresses of
/// batches come again; an overlay's takes 512 KiB for each /13 that has routes, or twice that where next hops need two
/// octets, at most 4 MiB, of which the operating system gives what has routes. A newer snapshot is
/// [followed](Self::follow) by what changed. Answers are those of the snapshot.
#[derive(Debug)]
pub struct FibReplica<A> {
    reader: FibReader<A>,
    copied: Option<Copied>,
}

/// A copy of what lookups read of a table.
#[derive(Debug)]
enum Copied {
    /// Of a large IPv4 table.
    Pushed(Box<Replica>),
    /// Of a large IPv6 table.
    Strides(Box<Strides>),
    /// Of an IPv4 table of few flat chunks.
    Expanded(Box<Expanded>),
}

impl<A: Address> FibReplica<A> {
    /// A replica of `reader`. Takes a few milliseconds for a large table.
    #[must_use]
    pub fn new(reader: FibReader<A>) -> Self {
        let copied = Copied::of(&reader);
        Self { reader, copied }
    }

    /// Takes up `reader`, which is commonly a newer snapshot of the same table.
    ///
    /// First asks for what changed: without a copy as [`FibReader::ask_for_changes`].
    pub fn follow(&mut self, reader: FibReader<A>) {
        let followed = match &mut self.copied {
            Some(Copied::Pushed(replica)) => {
                reader.ask_for_changes();
                match (self.reader.replica_source(), reader.replica_source()) {
                    (Some(old), Some(new)) if old.wide == new.wide => {
                        replica.follow(old, new, reader.parts().0);
                        !replica.is_scattered()
                    }
                    _ => false,
                }
            }
            Some(Copied::Strides(strides)) => follow(strides, &self.reader, &reader),
            Some(Copied::Expanded(expanded)) => expanded.follow(&self.reader, &reader),
            None => {
                reader.ask_for_changes();
                false
            }
        };
        if !followed {
            self.copied = Copied::of(&reader);
        }
        self.reader = reader;
    }

    /// The snapshot.
    #[must_use]
    pub const fn reader(&self) -> &FibReader<A> {
        &self.reader
    }

    /// Octets of the copy, and what is kept free in it; 0 where there is none.
    #[must_use]
    pub fn octets(&self) -> usize {
        match &self.copied {
            Some(Copied::Pushed(replica)) => replica.octets(),
            Some(Copied::Strides(strides)) => strides.size(),
            Some(Copied::Expanded(expanded)) => expanded.size(),
            None => 0,
        }
    }

    /// Makes the copy that is for addresses which come again, and says so from here on; whether there is one.
    #[cfg(test)]
    pub(super) fn hold_near(&mut self) -> bool {
        let (level, _) = self.reader.parts();
        let Some(Copied::Pushed(replica)) = &mut self.copied else {
            return false;
        };
        replica.locality.hold(true);
        while !replica.codes.as_ref().is_some_and(Dir24::is_filled) {
            replica.sample::<A>(level, &[]);
        }
        true
    }

    /// The copy of an IPv4 table of few flat chunks.
    #[cfg(test)]
    pub(super) fn expanded(&self) -> Option<&Expanded> {
        match &self.copied {
            Some(Copied::Expanded(expanded)) => Some(expanded),
            Some(Copied::Pushed(_) | Copied::Strides(_)) | None => None,
        }
    }

    /// The next hop of the longest prefix that holds `address`. Of a large IPv4 table from the snapshot: an address by
    /// itself waits for each step, and these are nearer there than in the copy.
    #[must_use]
    pub fn lookup(&self, address: A) -> Option<NextHopId> {
        // Before all else: such a lookup is so short that each question counts.
        if let Some((hosts, hashed)) = self.reader.hosts() {
            return NextHopId::from_code(hosts.lookup(hashed, &self.reader, address));
        }
        match &self.copied {
            Some(Copied::Expanded(expanded)) => {
                let key = (address.to_key() >> 96 & 0xffff_ffff) as u32;
                NextHopId::from_code(expanded.lookup(key))
            }
            Some(Copied::Strides(strides)) => {
                let (level, _) = self.reader.parts();
                level.strides_one(strides, &self.reader, address)
            }
            Some(Copied::Pushed(_)) | None => self.reader.lookup(address),
        }
    }

    /// Looks up each of `addresses`: as [`FibReader::lookup_batch`].
    ///
    /// Now and then looks at some of them, whether they come again, and which copy is the faster one.
    #[inline]
    pub fn lookup_batch(&mut self, addresses: &[A], next_hops: &mut [Option<NextHopId>]) {
        let (level, snapshot) = self.reader.parts();
        match &mut self.copied {
            Some(Copied::Pushed(replica)) => {
                if replica.locality.is_due(addresses.len()) {
                    replica.sample(level, addresses);
                }
                level.replica(replica, snapshot, addresses, next_hops);
            }
            Some(Copied::Strides(strides)) => {
                level.strides(strides, &self.reader, addresses, next_hops);
            }
            Some(Copied::Expanded(expanded)) => {
                level.expanded(expanded, &self.reader, addresses, next_hops);
            }
            None => self.reader.lookup_batch(addresses, next_hops),
        }
    }
}

impl Copied {
    /// A copy of a table that has one.
    fn of<A: Address>(reader: &FibReader<A>) -> Option<Self> {
        if let Some(expanded) = Expanded::of(reader) {
            return Some(Self::Expanded(expanded));
        }
        if let Some(root) = reader.replica_source() {
            return Some(Self::Pushed(Replica::of(root)));
        }
        reader.strides_source()?;
        Strides::of(&reader.view(), reader.len()).map(Self::Strides)
    }
}

/// Makes `strides`, which are of `old`, those of `new`; whether that is done.
fn follow<A: Address>(strides: &mut Strides, old: &FibReader<A>, new: &FibReader<A>) -> bool {
    let (Some(before), Some(noted)) = (old.strides_source(), new.strides_source()) else {
        return false;
    };
    let view = new.view();
    let (level, _) = new.parts();
    let mut done = true;
    let all = noted.since(before, |changes| {
        // Brings the nodes that change near, side by side.
        let mut addresses = [A::from_key(0); AT_ONCE];
        for (change, address) in changes.iter().zip(&mut addresses) {
            *address = A::from_key(change.key());
        }
        let mut answers = [None; AT_ONCE];
        let addresses = addresses.get(..changes.len()).unwrap_or_default();
        level.strides(strides, new, addresses, &mut answers);
        done &= strides.follow(&view, changes).is_some();
    });
    all && done && !strides.is_scattered()
}

/// The copy of a large IPv4 table.
#[derive(Debug)]
pub(super) struct Replica {
    /// The group cells of all root slots.
    groups: Box<[u64; ALL_GROUPS]>,
    /// At least [`LEAST_PLACE`] octets, then leaves, then [`BEHIND`].
    leaves: Vec<u8>,
    /// Where each root slot has its leaves.
    regions: Vec<Region>,
    /// Regions that no slot has, by number of grains.
    free: Vec<Vec<u32>>,
    /// Grains that slots have.
    grains: usize,
    pub(super) wide: bool,
    /// What the routes say that are too short to be pushed.
    pub(super) short: Short,
    locality: Locality,
    /// Its codes are there while addresses come again.
    codes: Option<Dir24>,
}

/// What a root slot has of the leaves: the place of the first octet, how many grains, and the entries that it begins with.
#[derive(Clone, Copy, Debug, Default)]
struct Region {
    at: u32,
    grains: u16,
    entries: u16,
}

impl Replica {
    /// A copy of what `root` leads to.
    fn of(root: &PushedRoot) -> Box<Self> {
        let codes: u16 = if root.wide { 1 << 15 } else { 1 << 8 };
        let width = 1 + usize::from(root.wide);
        let mut leaves = Vec::with_capacity(ROOM);
        leaves.resize(LEAST_PLACE, 0);
        for code in 0..codes {
            leaves.extend(code.to_le_bytes().into_iter().take(width));
        }
        leaves.resize(leaves.len().next_multiple_of(GRAIN) + BEHIND, 0);
        let groups = alloc::vec![NOWHERE; ALL_GROUPS].into_boxed_slice();
        let mut replica = Box::new(Self {
            groups: groups
                .try_into()
                .unwrap_or_else(|_| Box::new([NOWHERE; ALL_GROUPS])),
            leaves,
            regions: alloc::vec![Region::default(); SLOTS],
            free: Vec::new(),
            grains: 0,
            wide: root.wide,
            short: root.short,
            locality: Locality::new(),
            codes: None,
        });
        for slot in 0..SLOTS {
            replica.fill(slot, root);
        }
        replica
    }

    /// Makes a copy of what `old` leads to one of what `new` does, which is of the same width. Both are alive, so that a
    /// block which is where it was is what it was.
    fn follow(&mut self, old: &PushedRoot, new: &PushedRoot, level: Level) {
        if self.short != new.short {
            self.short = new.short;
            // They are in all codes.
            if let Some(codes) = &mut self.codes {
                codes.empty();
            }
        }
        if let Some(changed) = &new.changed
            && Arc::ptr_eq(&old.of, &new.of)
            && old.number + 1 == new.number
        {
            for slot in changed.iter().copied().map(usize::from) {
                if old.words.get(slot) != new.words.get(slot) {
                    self.fill(slot, new);
                    self.fill_codes(slot, level);
                }
            }
            return;
        }
        let (old, _) = old.words.as_chunks::<COMPARED>();
        let (words, _) = new.words.as_chunks::<COMPARED>();
        for (at, (old, words)) in old.iter().zip(words).enumerate() {
            if old == words {
                continue;
            }
            for (slot, (old, word)) in (at * COMPARED..).zip(old.iter().zip(words)) {
                if old != word {
                    self.fill(slot, new);
                    self.fill_codes(slot, level);
                }
            }
        }
    }

    /// Looks at some of `addresses`, and makes codes, or some more, if they come again.
    #[cold]
    #[inline(never)]
    fn sample<A: Address>(&mut self, level: Level, addresses: &[A]) {
        if !self.locality.sample(addresses) {
            if let Some(codes) = &mut self.codes {
                codes.empty();
            }
            return;
        }
        let mut codes = self.codes.take().unwrap_or_else(|| Dir24::new(self.wide));
        for slot in (codes.filled()..SLOTS).take(FILLED_AT_ONCE) {
            if level.fill_codes(self, slot, codes.slot_mut(slot)) {
                codes.fill_one();
            }
        }
        self.codes = Some(codes);
    }

    /// Makes the codes of `slot` anew, if they are there.
    fn fill_codes(&mut self, slot: usize, level: Level) {
        let Some(mut codes) = self.codes.take() else {
            return;
        };
        if slot < codes.filled() {
            level.fill_codes(self, slot, codes.slot_mut(slot));
        }
        self.codes = Some(codes);
    }

    /// Copies what `root` has for `slot`.
    fn fill(&mut self, slot: usize, root: &PushedRoot) {
        let handle = root.handles.get(slot).copied().unwrap_or_default();
        let block = block(&root.lines, handle);
        let header = load(block, 0);
        let entries = header >> 32 & 0xffff;
        let cells = (header & 0xffff) as usize + entries as usize;
        let at = self.room(slot, 8 * cells, entries as u16);
        let region = self.leaves.get_mut(at..at + 8 * cells).unwrap_or_default();
        let copied = block.get(ENTRIES_AT..).unwrap_or_default();
        for (eight, cell) in region.as_chunks_mut::<8>().0.iter_mut().zip(copied) {
            *eight = cell.load(Ordering::Relaxed).to_le_bytes();
        }
        let highest = self.leaves.len().saturating_sub(2);
        let groups = self.groups.get_mut(slot * GROUPS..(slot + 1) * GROUPS);
        let cells = block.get(GROUPS_AT..).unwrap_or_default();
        for (place, cell) in groups.unwrap_or_default().iter_mut().zip(cells) {
            let cell = cell.load(Ordering::Relaxed);
            let starts = cell & 0xffff_ffff;
            let leaf = if starts == 0 {
                LEAST_PLACE + (((cell >> 32 & 0xffff) as usize) << usize::from(self.wide))
            } else {
                (at + (cell >> 48) as usize).wrapping_sub(8 * ENTRIES_AT)
            };
            // Whatever a block says: lookups read without asking.
            let leaf = leaf.clamp(LEAST_PLACE, highest);
            *place = starts | (leaf as u64) << 32;
        }
    }

    /// Where the `octets` of `slot` go, which may be where they were.
    fn room(&mut self, slot: usize, octets: usize, entries: u16) -> usize {
        // A block has no more than 2^16 cells of each.
        let grains = u16::try_from(octets.div_ceil(GRAIN)).unwrap_or(u16::MAX);
        let spare = grains / 2 + 1;
        let mut region = self.regions.get(slot).copied().unwrap_or_default();
        let fits = grains > 0 && (grains..=grains + spare).contains(&region.grains);
        if !fits {
            self.grains -= usize::from(region.grains);
            let class = usize::from(region.grains);
            if class > 0 {
                if self.free.len() <= class {
                    self.free.resize_with(class + 1, Vec::new);
                }
                if let Some(free) = self.free.get_mut(class) {
                    free.push(region.at);
                }
            }
            region = if grains == 0 {
                Region::default()
            } else {
                self.region_of(grains, spare)
            };
            self.grains += usize::from(region.grains);
        }
        region.entries = entries;
        if let Some(place) = self.regions.get_mut(slot) {
            *place = region;
        }
        region.at as usize
    }

    /// Grains that nobody has, at most `spare` more than `grains`; new ones if there are none.
    fn region_of(&mut self, grains: u16, spare: u16) -> Region {
        let classes = (grains..=grains + spare).zip(self.free.iter_mut().skip(grains.into()));
        for (grains, free) in classes {
            if let Some(at) = free.pop() {
                return Region {
                    at,
                    grains,
                    entries: 0,
                };
            }
        }
        let at = self.leaves.len() - BEHIND;
        let octets = usize::from(grains) * GRAIN;
        self.leaves.resize(at + octets + BEHIND, 0);
        Region {
            // Each root slot has a region, so that all take less than 2^32 octets.
            at: u32::try_from(at).unwrap_or_default(),
            grains,
            entries: 0,
        }
    }

    /// Whether most of the leaves are regions that no slot has.
    fn is_scattered(&self) -> bool {
        self.leaves.len() > ROOM + 4 * GRAIN * self.grains
    }

    /// The group cells, by the first 19 bits of an address.
    #[cfg(target_arch = "x86_64")]
    pub(super) const fn groups(&self) -> &[u64; ALL_GROUPS] {
        &self.groups
    }

    /// The codes of all /24, if they are there: `BEFORE` octets, then they.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn codes(&self) -> Option<&[u8]> {
        self.codes.as_ref()?.codes(self.wide)
    }

    /// The leaves. The upper half of each group cell is a place from [`LEAST_PLACE`] to the last but one.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn leaves(&self) -> &[u8] {
        &self.leaves
    }

    /// The entry of the /24 of `key`, if that has a third-level node.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn entry(&self, key: u32) -> Option<u64> {
        let region = self.regions.get((key >> ROOT_SHIFT) as usize)?;
        let octets = self.leaves.get(region.at as usize..)?;
        let (entries, _) = octets.get(..8 * usize::from(region.entries))?.as_chunks();
        let slot = u64::from(key >> 8) % (1 << (24 - ROOT_STRIDE));
        let of = |entry: &[u8; 8]| entry_slot(u64::from_le_bytes(*entry));
        let entry = entries.get(entries.partition_point(|entry| of(entry) < slot))?;
        (of(entry) == slot).then_some(u64::from_le_bytes(*entry))
    }

    fn octets(&self) -> usize {
        let free: usize = self.free.iter().map(Vec::capacity).sum();
        size_of::<Self>()
            + size_of_val(&*self.groups)
            + self.leaves.capacity()
            + self.codes.as_ref().map_or(0, Dir24::octets)
            + size_of_val(self.regions.as_slice())
            + free * size_of::<u32>()
            + self.free.capacity() * size_of::<Vec<u32>>()
    }
}

/// The group cells of all root slots.
pub(super) const ALL_GROUPS: usize = SLOTS * GROUPS;
/// The first place of leaves: what is counted back from any place, 32 leaves of two octets, and the octets that are read
/// with a leaf are there.
pub(super) const LEAST_PLACE: usize = 128;
/// A group cell that leads to the first leaf, which says that there is no route.
const NOWHERE: u64 = (LEAST_PLACE as u64) << 32;
/// Octets behind the last leaf: places are counted back from at most one leaf behind the last.
const BEHIND: usize = 8;
/// What regions are multiples of, octets: cache lines would be a tenth more in all.
const GRAIN: usize = 16;
/// Octets of leaves for which there is room from the beginning; none of it is touched before it is used.
const ROOM: usize = 4 << 20;
/// Words of a root that are compared at once.
const COMPARED: usize = 16;
