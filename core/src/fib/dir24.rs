//! What a large IPv4 table says to each /24, one after the other: the first level of DIR-24-8, and which of a worker's
//! copies it takes.
//!
//! In the cells and leaves of a replica (`replica.rs`) a lookup reads twice, in 5 MiB. Here it reads once, in 16 MiB, or 32
//! when codes take two octets. Where addresses come again, as they do on every real link, what is read again is near, and
//! one read takes half as long as two; where each is another, as in a scan, the 16 MiB are not near, and it takes twice as
//! long. So a replica has both, and looks now and then at some addresses: in how many cache lines of codes those of late
//! are ([`Locality`]). Up to what a second-level cache holds, one read is faster by far. Up to some 5 MiB it is, too, but
//! what is made anew after changes then costs as much as it saves.
//!
//! These codes are made when addresses first come again, a part at a time, and made anew after a while in which they did
//! not.
//!
//! A code is what the lookup says. Where that depends on the last octet, and where it is no code that fits, there is the
//! escape, and the cells are asked.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::address::Address;
use super::batch::key_of;
use super::node::ROOT_STRIDE;
use super::pushed::SLOTS;

/// A code for each /24.
#[derive(Debug)]
pub(super) struct Dir24 {
    /// [`BEFORE`] octets, then the codes.
    octets: Vec<u8>,
    wide: bool,
    /// Root slots whose codes are there, from the first on.
    filled: usize,
}

impl Dir24 {
    /// Room for codes, of two octets if they are `wide`.
    pub(super) fn new(wide: bool) -> Self {
        Self {
            octets: alloc::vec![0; BEFORE + (CODES << usize::from(wide))],
            wide,
            filled: 0,
        }
    }

    /// Root slots whose codes are there, from the first on.
    pub(super) const fn filled(&self) -> usize {
        self.filled
    }

    /// Whether all are there.
    #[cfg(any(test, target_arch = "x86_64"))]
    #[inline(always)]
    pub(super) const fn is_filled(&self) -> bool {
        self.filled == SLOTS
    }

    /// Says that the codes of one more root slot are there.
    pub(super) const fn fill_one(&mut self) {
        if self.filled < SLOTS {
            self.filled += 1;
        }
    }

    /// Says that none are.
    pub(super) const fn empty(&mut self) {
        self.filled = 0;
    }

    /// The codes of a root slot, to be written.
    pub(super) fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        let octets = SLOT_CODES << usize::from(self.wide);
        let at = BEFORE + (slot % SLOTS) * octets;
        self.octets.get_mut(at..at + octets).unwrap_or_default()
    }

    /// [`BEFORE`] octets, then a code for each /24, of two octets if they are `wide`; when all are there.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn codes(&self, wide: bool) -> Option<&[u8]> {
        (self.is_filled() && self.wide == wide).then_some(&self.octets)
    }

    /// Octets of those that were written.
    pub(super) fn octets(&self) -> usize {
        self.filled * (SLOT_CODES << usize::from(self.wide))
    }
}

/// Whether the addresses of late are near each other: by samples, so that it costs next to nothing.
#[derive(Debug)]
pub(super) struct Locality {
    /// Addresses until the next sample.
    left: usize,
    /// For the last bits of a line's number the last such line, counted from 1.
    lines: Box<[u32; LINES]>,
    asked: usize,
    again: usize,
    near: bool,
    /// What is said whatever addresses come.
    #[cfg(test)]
    held: Option<bool>,
}

impl Locality {
    /// Nothing is known.
    pub(super) fn new() -> Self {
        Self {
            left: EVERY,
            lines: Box::new([0; LINES]),
            asked: 0,
            again: 0,
            near: false,
            #[cfg(test)]
            held: None,
        }
    }

    /// Says from here on that addresses are near each other, or are not.
    #[cfg(test)]
    pub(super) const fn hold(&mut self, near: bool) {
        self.held = Some(near);
        self.left = 0;
    }

    /// Counts `count` addresses; whether it is time for a sample.
    #[inline(always)]
    pub(super) const fn is_due(&mut self, count: usize) -> bool {
        self.left = self.left.saturating_sub(count);
        self.left == 0
    }

    /// Looks at some of `addresses`; whether those of late are near each other.
    pub(super) fn sample<A: Address>(&mut self, addresses: &[A]) -> bool {
        self.left = EVERY;
        for address in addresses.iter().take(SAMPLE) {
            // A line of codes of one octet.
            let line = key_of(*address) >> LINE_SHIFT;
            if let Some(last) = self.lines.get_mut(line as usize % LINES) {
                self.again += usize::from(*last == line + 1);
                *last = line + 1;
            }
            self.asked += 1;
        }
        if self.asked >= JUDGED {
            // Of so many lines in use that many addresses find theirs among the ones that are remembered.
            let most = if self.near { FAR } else { NEAR };
            self.near = self.again * most >= self.asked * LINES;
            self.asked = 0;
            self.again = 0;
        }
        #[cfg(test)]
        if let Some(near) = self.held {
            return near;
        }
        self.near
    }
}

/// Codes of a root slot.
pub(super) const SLOT_CODES: usize = 1 << (24 - ROOT_STRIDE);
/// Codes of all.
const CODES: usize = 1 << 24;
/// Octets before the first code, so that the four that end with a code can be read; a line, so that codes begin with one
/// where the room does.
pub(super) const BEFORE: usize = 64;
/// Bits of an address below those that number a line of 64 codes.
const LINE_SHIFT: u32 = 8 + 6;
/// Lines that are remembered.
const LINES: usize = 4096;
/// Addresses from one sample to the next.
const EVERY: usize = 4000;
/// Addresses of a sample.
const SAMPLE: usize = 32;
/// Addresses that are judged together.
const JUDGED: usize = 32 * SAMPLE;
/// Lines in use up to which addresses become near each other: 1 MiB.
const NEAR: usize = 16_000;
/// Lines in use up to which they stay so: 1.5 MiB.
const FAR: usize = 24_000;
/// Root slots that are filled at a sample, so that no batch waits long: 20 us.
pub(super) const FILLED_AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;

    #[test]
    fn addresses_that_come_again_are_near_and_others_are_not() {
        let mut locality = Locality::new();
        let mut number = 1_u32;
        let mut any = || {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            number
        };
        // Anywhere, in 8,000 lines, in 65,000, in 4,000, in 131,000, half of them in a thousand.
        let lines = [18, 13, 16, 12, 17, 10].map(|bits| u32::MAX << bits);
        let near = lines.map(|most| {
            let mut near = false;
            for _ in 0..512 {
                let addresses: [Ipv4Addr; SAMPLE] = core::array::from_fn(|at| {
                    let line = if most.count_zeros() == 10 && at % 2 == 0 {
                        any() >> 14
                    } else {
                        (any() >> 14 & !most).wrapping_mul(0x9e37_79b9) >> 14
                    };
                    Ipv4Addr::from(line << 14)
                });
                near = locality.sample(&addresses);
            }
            near
        });
        assert_eq!(near, [false, true, false, true, false, true]);
    }

    #[test]
    fn samples_are_taken_every_so_many_addresses() {
        let mut locality = Locality::new();
        let due = (0..256).filter(|_| {
            let due = locality.is_due(32);
            if due {
                locality.sample(&[Ipv4Addr::LOCALHOST; 32]);
            }
            due
        });
        assert_eq!(due.count(), 256 * 32 / EVERY);
    }
}
