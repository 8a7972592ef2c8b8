//! A worker's own copy of an IPv4 table of few flat chunks (`flat/`, `few.rs`), expanded to a leaf for every address.
//!
//! In a snapshot a lookup finds its root slot in registers, then reads the slot's word and a leaf. What the words are for
//! is that snapshots share what did not change. Here each root slot that has a chunk has one leaf for each of its 2^19
//! addresses, all in one array: a lookup reads that leaf and nothing else.
//!
//! A leaf is a next hop code, of one octet, or of two where the table's leaves take two. 0 says that no route below the
//! root holds the address: then the default one does, if there is one. So most leaves of a table of few routes are 0, and
//! what is 0 from the beginning is not written: memory that nobody has touched the operating system need not give.
//!
//! A newer snapshot of the same table is followed chunk by chunk. A chunk that is where it was is what it was, and so are
//! the leaves of a tail, since the older snapshot is still there. One that was copied from the chunk of the older snapshot
//! has notes of the slots that were written since; of any other one all slots are compared. When another root slot comes
//! or goes the copy is made anew.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use super::address::Address;
use super::arena::{block, load};
use super::batch::overlay;
use super::few::{Few, place_of};
use super::flat::leaves::{LEAVES_AT, SLOTS as TAIL_SLOTS};
use super::flat::{FLAT_BUSY, FLAT_CODES, FLAT_HANDLES, noted};
use super::node::{CHUNK_STRIDE, Entry, ROOT_STRIDE};
use super::reader::FibReader;
use super::walk::View;

/// The copy.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Expanded {
    /// For each place, as in [`Few`], its root slot; no slot where there is none. All twice, as wide registers have it.
    pub(super) tags: [u32; 2 * PLACES],
    /// For each place the number of the first leaf of its root slot: a multiple of [`LEAVES`], less than the number of all
    /// leaves. Twice.
    pub(super) firsts: [u32; 2 * PLACES],
    /// As in [`Few`].
    pub(super) factor: u32,
    /// The next hop code of the default route.
    pub(super) code: u16,
    /// Whether leaves take two octets.
    pub(super) wide: bool,
    /// The leaves of [`Self::slots`], one after the other, from octet `begin` on, and nothing before that.
    octets: Vec<u8>,
    /// Where the leaves begin: with a cache line, and at least [`BEFORE`] octets behind the first one.
    begin: usize,
    /// The root slots that there are leaves of.
    slots: Vec<u16>,
}

impl Expanded {
    /// A copy of the table of `reader`, if it is one for that.
    pub(super) fn of<A: Address>(reader: &FibReader<A>) -> Option<Box<Self>> {
        let few = reader.expanded_source()?;
        let view = reader.view();
        if !pays(&view, few, reader.len(), false) {
            return None;
        }
        let slots: Vec<u16> = slots(few).collect();
        let width = 1 + usize::from(few.wide);
        // Memory that the operating system gives is 0 already, and is not touched here.
        let octets = alloc::vec![0; LINE + (LEAVES * width) * slots.len()];
        let begin = LINE - octets.as_ptr().addr() % LINE;
        let mut copy = Box::new(Self {
            tags: [u32::MAX; 2 * PLACES],
            firsts: [0; 2 * PLACES],
            factor: few.factor,
            code: few.code,
            wide: few.wide,
            octets,
            begin: begin.clamp(BEFORE, LINE),
            slots,
        });
        copy.set_places();
        for at in 0..copy.slots.len() {
            copy.fill(at, &view)?;
        }
        Some(copy)
    }

    /// Makes a copy of the table of `old` one of that of `new`; whether that is done.
    pub(super) fn follow<A: Address>(&mut self, old: &FibReader<A>, new: &FibReader<A>) -> bool {
        let (Some(few), Some(_)) = (new.expanded_source(), old.expanded_source()) else {
            return false;
        };
        let routes = new.len();
        let (old, new) = (old.view(), new.view());
        let same = match (old.segments, new.segments) {
            // The first one stays with its table.
            ([old, ..], [new, ..]) => Arc::ptr_eq(old, new),
            _ => false,
        };
        let same_slots = few.wide == self.wide
            && slots(few).count() == self.slots.len()
            && slots(few).all(|slot| self.slots.contains(&slot));
        if !same || !same_slots || !pays(&new, few, routes, true) {
            return false;
        }
        (self.factor, self.code) = (few.factor, few.code);
        self.set_places();
        (0..self.slots.len()).all(|at| self.refresh(at, &old, &new).is_some())
    }

    /// The code for the address `key`.
    #[inline(always)]
    pub(super) fn lookup(&self, key: u32) -> u16 {
        let slot = key >> (32 - ROOT_STRIDE);
        let at = place_of(slot, self.factor, PLACES);
        if self.tags.get(at) != Some(&slot) {
            return self.code;
        }
        let first = self.firsts.get(at).copied().unwrap_or_default() as usize;
        let leaf = first | (key as usize % LEAVES);
        let at = self.begin + (leaf << usize::from(self.wide));
        let octet = |at: usize| self.octets.get(at).copied().unwrap_or_default();
        let code = if self.wide {
            u16::from_le_bytes([octet(at), octet(at + 1)])
        } else {
            u16::from(octet(at))
        };
        overlay(code, self.code)
    }

    /// Where the first leaf is: there are [`LEAVES`] for each root slot from here on, and [`BEFORE`] octets before.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) const fn leaves(&self) -> *const u8 {
        self.octets.as_ptr().wrapping_add(self.begin)
    }

    /// The root slots, and the leaves of each.
    #[cfg(test)]
    pub(super) fn content(&self) -> impl Iterator<Item = (u16, &[u8])> {
        let leaves = self.octets.get(self.begin..).unwrap_or_default();
        let each = leaves.chunks(LEAVES << usize::from(self.wide));
        self.slots.iter().copied().zip(each)
    }

    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.octets.capacity() + self.slots.capacity() * size_of::<u16>()
    }

    /// Writes for each place which root slot is there, and where its leaves are.
    fn set_places(&mut self) {
        self.tags = [u32::MAX; 2 * PLACES];
        self.firsts = [0; 2 * PLACES];
        for (slot, first) in self.slots.iter().zip((0..).step_by(LEAVES)) {
            let at = place_of((*slot).into(), self.factor, PLACES);
            for at in [at, at + PLACES] {
                if let (Some(tag), Some(place)) = (self.tags.get_mut(at), self.firsts.get_mut(at)) {
                    (*tag, *place) = (u32::from(*slot), first);
                }
            }
        }
    }

    /// Writes all leaves of root slot number `at`, which are 0.
    fn fill(&mut self, at: usize, view: &View<'_>) -> Option<()> {
        let chunk = Chunk::of(view, *self.slots.get(at)?)?;
        for slot in 0..CHUNK_SLOTS {
            let says = chunk.says(slot);
            if says != Says::default() {
                self.put(view, (at, slot), says)?;
            }
        }
        Some(())
    }

    /// Makes the leaves of root slot number `at`, which are those of `old`, what they are in `new`.
    fn refresh(&mut self, at: usize, old: &View<'_>, new: &View<'_>) -> Option<()> {
        let slot = *self.slots.get(at)?;
        let (before, now) = (Chunk::of(old, slot)?, Chunk::of(new, slot)?);
        if before.handle == now.handle {
            return Some(());
        }
        let mut refresh = |slot: usize| {
            let says = now.says(slot);
            if says == before.says(slot) {
                return Some(());
            }
            self.put(new, (at, slot), says)
        };
        if let Some(mut noted) = noted(now.cells, before.handle, before.cells) {
            return noted.try_for_each(|(first, last)| (first..=last).try_for_each(&mut refresh));
        }
        let fours = before.fours().zip(now.fours()).enumerate();
        for (four, (before, now)) in fours {
            if before != now {
                (4 * four..4 * four + 4).try_for_each(&mut refresh)?;
            }
        }
        Some(())
    }

    /// Writes the leaves of a slot of the chunk of root slot number `at`.
    fn put(&mut self, view: &View<'_>, (at, slot): (usize, usize), says: Says) -> Option<()> {
        let width = 1 + usize::from(self.wide);
        let begin = self.begin + (at * LEAVES + slot * TAIL_SLOTS) * width;
        let leaves = self.octets.get_mut(begin..begin + TAIL_SLOTS * width)?;
        if says.leaves != 0 {
            let cells = block(view.segments, says.leaves).get(LEAVES_AT..)?;
            for (eight, cell) in leaves.as_chunks_mut::<8>().0.iter_mut().zip(cells) {
                *eight = cell.load(Ordering::Relaxed).to_le_bytes();
            }
        } else if self.wide {
            leaves.as_chunks_mut().0.fill(says.code.to_le_bytes());
        } else {
            leaves.fill((says.code & 0xff) as u8);
        }
        Some(())
    }
}

/// What a flat chunk says of one of its slots.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Says {
    /// The handle of its tail's leaves, 0 for none.
    leaves: u32,
    code: u16,
}

/// A flat chunk.
struct Chunk<'a> {
    handle: u32,
    cells: &'a [AtomicU64],
}

impl<'a> Chunk<'a> {
    /// That of a root slot.
    fn of(view: &View<'a>, slot: u16) -> Option<Self> {
        let entry = Entry(view.slots.get(usize::from(slot)).copied()?);
        let handle = entry.handle();
        entry.is_flat().then(|| Self {
            handle,
            cells: block(view.segments, handle),
        })
    }

    fn says(&self, slot: usize) -> Says {
        let pair = load(self.cells, FLAT_HANDLES + slot / 2);
        let four = load(self.cells, FLAT_CODES + slot / 4);
        Says {
            leaves: (pair >> (slot % 2 * 32) & 0xffff_ffff) as u32,
            code: (four >> (slot % 4 * 16) & 0xffff) as u16,
        }
    }

    /// What it says of each four slots, to be compared.
    fn fours(&self) -> impl Iterator<Item = [u64; 3]> {
        let cells = |from: usize, upto: usize| self.cells.get(from..upto).unwrap_or_default();
        let codes = cells(FLAT_CODES, FLAT_HANDLES);
        let (handles, _) = cells(FLAT_HANDLES, FLAT_BUSY).as_chunks::<2>();
        let fours = codes.iter().zip(handles);
        fours
            .map(|(codes, [low, high])| [codes, low, high].map(|cell| cell.load(Ordering::Relaxed)))
    }

    /// How many slots have something to say, and how many have a tail.
    fn busy(&self) -> [usize; 2] {
        let busy = load(self.cells, FLAT_BUSY);
        [busy, busy >> 32].map(|slots| usize::from((slots & 0xffff) as u16))
    }
}

/// Whether the table of `few`, of so many routes, is faster in a copy; one that has a copy keeps it a little longer, not to
/// go to and fro.
///
/// What a copy takes of a second-level cache of 2 MiB is the leaves of the /24 that have something to say, where a flat
/// chunk takes only those of its tails. Of random addresses of 4,000 /24 a lookup takes the same in both, of 8,000 it takes
/// a fifth more in the copy; of 5,000 /24 of which a third has a tail a quarter less.
fn pays(view: &View<'_>, few: &Few, routes: usize, has: bool) -> bool {
    let (mut leaves, mut busy, mut tails) = (0, 0, 0);
    for slot in slots(few) {
        let [here, of_tails] = Chunk::of(view, slot).map_or([CHUNK_SLOTS; 2], |chunk| chunk.busy());
        leaves += LEAVES;
        busy += here * TAIL_SLOTS;
        tails += of_tails * TAIL_SLOTS;
    }
    let [leaves, busy, tails] = [leaves, busy, tails].map(|leaves| leaves << usize::from(few.wide));
    let most = MOST_BUSY + 2 * tails;
    let (least, most) = if has {
        (LEAST / 2, most + most / 8)
    } else {
        (LEAST, most)
    };
    routes >= least && leaves <= MOST_OCTETS && busy <= most
}

/// The root slots that have a chunk.
fn slots(few: &Few) -> impl Iterator<Item = u16> {
    let tags = few.tags.iter().filter(|tag| **tag != u32::MAX);
    tags.map(|tag| (tag & 0x1fff) as u16)
}

/// The number of routes from which on tables have a copy.
pub(super) const LEAST: usize = 1_024;
/// Octets of leaves of /24 that have something to say, at most, where none has a tail.
const MOST_BUSY: usize = 1 << 20;
/// Octets of all leaves, at most.
const MOST_OCTETS: usize = 4 << 20;
/// The most root slots that there are leaves of, and the places that they are at.
pub(super) const PLACES: usize = 8;
/// Leaves of a root slot: one for each address.
pub(super) const LEAVES: usize = 1 << (32 - ROOT_STRIDE);
/// Octets before the first leaf: one is read as the last of four octets.
pub(super) const BEFORE: usize = 4;
/// Octets of a cache line.
const LINE: usize = 64;
const CHUNK_SLOTS: usize = 1 << CHUNK_STRIDE;
