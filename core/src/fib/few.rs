//! The root of a table of few flat chunks, small enough for vector registers.
//!
//! An overlay's routes lie below few root slots. What the root has for these fits registers: a factor is looked for that
//! sends them to different places among 8, 16 or 32, and a lookup multiplies, takes what is at its place, and sees by
//! the slot that is noted there whether it is its own. All slots have the same next hop when no route but the default
//! one ends in the root: it stands beside. Tables with other routes there do without.
//!
//! The writer notes which slots have a flat chunk, and looks for a factor at the first publication after that has
//! changed; a snapshot has the places. `simd/lanes.rs` and `simd/few.rs` read them, and a worker's copy (`expanded.rs`) has
//! them, too; all others go by the root as it is.

use alloc::boxed::Box;

use super::address::Address;
use super::direct::word;
use super::flat::{FLAT_WORDS, Flatness};
use super::node::Entry;
use super::root::WriterRoot;
use super::table::Fib;

/// The root slots that have a flat chunk, as the writer notes them, in no order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Noted {
    slots: [u16; NOTED],
    /// How many there are; more than [`NOTED`] are not noted, which a table never has.
    count: usize,
    /// What sends them to different places, and how many places these are, when that was looked for since.
    found: Option<Option<(u32, usize)>>,
}

impl Default for Noted {
    fn default() -> Self {
        Self {
            slots: [0; NOTED],
            count: 0,
            found: None,
        }
    }
}

impl Noted {
    /// Notes that root slot `slot` has a flat chunk, or none any more.
    #[expect(clippy::cast_possible_truncation, reason = "a root slot has 13 bits")]
    pub(super) fn note(&mut self, slot: usize, flat: bool) {
        let slot = (slot & 0x1fff) as u16;
        self.found = None;
        if flat {
            if let Some(place) = self.slots.get_mut(self.count) {
                *place = slot;
            }
            self.count += 1;
            return;
        }
        let kept = self.slots.get_mut(..self.count).unwrap_or_default();
        if let Some(at) = kept.iter().position(|other| *other == slot) {
            let last = kept.last().copied().unwrap_or_default();
            if let Some(place) = kept.get_mut(at) {
                *place = last;
            }
        }
        self.count = self.count.saturating_sub(1);
    }

    /// The slots, if they are few enough.
    fn slots(&self) -> Option<&[u16]> {
        let slots = self.slots.get(..self.count)?;
        (slots.len() <= PLACES).then_some(slots)
    }

    /// A factor for the slots and the number of places that it sends them to.
    fn factor(&mut self) -> Option<(u32, usize)> {
        if self.found.is_none() {
            let slots = self.slots()?;
            self.found = Some([8, 16, 32].into_iter().find_map(|places| {
                let factor = candidates().find(|factor| parts(slots, *factor, places))?;
                Some((factor, places))
            }));
        }
        self.found.flatten()
    }
}

/// Factors to try: first one that counts neighbours off, then random ones. They have 15 bits, so that a vector can multiply
/// them as signed numbers of 16, which takes half as long as of 32.
fn candidates() -> impl Iterator<Item = u32> {
    let random = (0..TRIES).scan(1_u32, |state, _| {
        *state = state.wrapping_mul(0x2545_f491).wrapping_add(0x9e37_79b9);
        Some(*state >> 17 | 1)
    });
    core::iter::once(1 << PLACE_SHIFT).chain(random)
}

/// Whether `factor` sends the slots to different ones of the places.
fn parts(slots: &[u16], factor: u32, places: usize) -> bool {
    let mut taken = 0_u32;
    slots.iter().all(|slot| {
        let bit = 1 << place_of((*slot).into(), factor, places);
        let free = taken & bit == 0;
        taken |= bit;
        free
    })
}

/// The place of a root slot among at most [`PLACES`], a power of two: the lowest bits of a part of the product.
#[inline(always)]
pub(super) const fn place_of(slot: u32, factor: u32, places: usize) -> usize {
    (slot.wrapping_mul(factor) >> PLACE_SHIFT) as usize % places
}

/// What the root of a snapshot has for its few chunks.
#[derive(Debug)]
#[repr(align(64))]
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only x86-64 has such registers")
)]
pub(super) struct Few {
    /// For each place the address of the first slot of its flat chunk, of the empty one where there is none.
    pub(super) firsts: [u64; PLACES],
    /// For each place its root slot; no slot where there is none.
    pub(super) tags: [u32; PLACES],
    /// What slots are multiplied with; the place is what is left of the product without its [`PLACE_SHIFT`] lowest bits.
    pub(super) factor: u32,
    /// How many places are used: 8, 16 or 32.
    pub(super) places: usize,
    /// The address of the first slot of the empty flat chunk, which says nothing, for all root slots without a chunk.
    pub(super) nothing: u64,
    /// The next hop code of the default route.
    pub(super) code: u16,
    /// Whether leaves take two octets.
    pub(super) wide: bool,
}

impl<A: Address> Fib<A> {
    /// The root for a snapshot, if all chunks are flat and few, and have words.
    pub(super) fn few(&mut self) -> Option<Box<Few>> {
        let WriterRoot::Slots { slots, routes } = &self.root else {
            return None;
        };
        if self.flats.flatness() != Flatness::All || self.direct.octets() == 0 {
            return None;
        }
        let (factor, places) = self.flats.noted.factor()?;
        let code = match routes.as_slice() {
            [] => 0,
            [route] if route.len() == 0 => route.code(),
            [..] => return None,
        };
        let first = |slot: usize| {
            let word = self.direct.word(slot)?.cast_signed() >> 16;
            Some(word.cast_unsigned() + 8 * FLAT_WORDS as u64)
        };
        let absent = word(self.arena.segments(), self.direct.absent, 0)?.cast_signed() >> 16;
        let nothing = absent.cast_unsigned() + 8 * FLAT_WORDS as u64;
        let mut few = Few {
            firsts: [nothing; PLACES],
            tags: [u32::MAX; PLACES],
            factor,
            places,
            nothing,
            code,
            wide: self.flats.wide,
        };
        for slot in self.flats.noted.slots()? {
            debug_assert!(Entry(slots.get(usize::from(*slot)).copied()?).is_flat());
            let place = place_of((*slot).into(), factor, places);
            *few.firsts.get_mut(place)? = first(usize::from(*slot))?;
            *few.tags.get_mut(place)? = u32::from(*slot);
        }
        Some(Box::new(few))
    }
}

/// Bits of a product that do not say the place.
pub(super) const PLACE_SHIFT: u32 = 11;
/// Room for the flat chunks of any table: 32, and a quarter more while it keeps those that it has (`flat/`).
const NOTED: usize = 64;
/// The most chunks and places.
pub(super) const PLACES: usize = 32;
/// Random factors that are tried for each number of places: they find places for 8 slots among 16, and for 16 among 32.
const TRIES: usize = 256;
