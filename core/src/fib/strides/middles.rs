//! Where single lookups begin: the nodes for the octet after /32 by a hash of the 32 bits before it.
//!
//! An address by itself waits for each step from the root down. Most of a real table's addresses have longer routes than
//! a /32 in their /32, and the hash leads them past three of these steps in one. Those that it does not know, be it that
//! their line was full, begin at the root.
//!
//! | octets of a line | content |
//! |------|---------|
//! | 0..32 | the first 32 bits of the addresses of eight nodes |
//! | 32..64 | these nodes: the octet that each begins with, and in bit 0 whether it has many runs; 0 for none |

use alloc::vec::Vec;

use super::layout::{first_of, is_many};

/// The hash.
#[derive(Debug, Default)]
pub(in crate::fib) struct Middles {
    /// A power of two of them, or none.
    lines: Vec<Line>,
    /// Nodes that are in them.
    count: usize,
}

/// Of one hash.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(in crate::fib) struct Line {
    keys: [u32; NODES],
    nodes: [u32; NODES],
}

impl Line {
    /// Where the node for `key` is.
    fn place_of(&self, key: u32) -> Option<usize> {
        let mut places = self.keys.iter().zip(&self.nodes);
        places.position(|(had, node)| *had == key && *node != 0)
    }
}

impl Middles {
    /// A hash of these nodes, each with the first 32 bits of its addresses.
    pub(super) fn of(nodes: &[(u32, u64)]) -> Option<Self> {
        let lines = nodes.len().div_ceil(FULL).next_power_of_two();
        let mut middles = Self {
            lines: alloc::vec![Line::default(); lines],
            count: 0,
        };
        for (key, node) in nodes {
            middles.set(*key, *node)?;
        }
        Some(middles)
    }

    /// Makes the node for `key` this one, or none where that is 0. A line that is full has no place for one more.
    pub(super) fn set(&mut self, key: u32, node: u64) -> Option<()> {
        let node = u32::try_from(first_of(node)).ok()? | u32::from(is_many(node));
        let number = self.number(key)?;
        let line = self.lines.get_mut(number)?;
        let had = line.place_of(key);
        let free = || line.nodes.iter().position(|node| *node == 0);
        let Some(place) = had.or_else(free) else {
            return Some(());
        };
        *line.keys.get_mut(place)? = if node == 0 { 0 } else { key };
        *line.nodes.get_mut(place)? = node;
        self.count -= usize::from(had.is_some());
        self.count += usize::from(node != 0);
        Some(())
    }

    /// The number of the line for `key`.
    fn number(&self, key: u32) -> Option<usize> {
        let octet = usize::try_from(line_of(key) & self.mask()).ok()?;
        Some(octet / size_of::<Line>())
    }

    /// Whether there are too many nodes for so many lines.
    pub(super) const fn is_full(&self) -> bool {
        self.count > FULLEST * self.lines.len()
    }

    pub(super) const fn size(&self) -> usize {
        self.lines.capacity() * size_of::<Line>()
    }

    #[cfg(target_arch = "x86_64")]
    pub(in crate::fib) const fn lines(&self) -> &[Line] {
        self.lines.as_slice()
    }

    /// What is left of [`line_of`]: the octet that the line begins with.
    #[inline(always)]
    pub(in crate::fib) const fn mask(&self) -> u64 {
        (self.lines.len() as u64).wrapping_sub(1) * size_of::<Line>() as u64
    }
}

/// Where the line for `key` is: more bits than there are lines, and some below them.
#[inline(always)]
pub(in crate::fib) const fn line_of(key: u32) -> u64 {
    (key as u64).wrapping_mul(FACTOR) >> 32
}

#[cfg(test)]
impl Middles {
    /// What the hash has for `key`.
    pub(super) fn node(&self, key: u32) -> Option<u32> {
        let line = self.lines.get(self.number(key)?)?;
        line.nodes.get(line.place_of(key)?).copied()
    }

    pub(super) const fn count(&self) -> usize {
        self.count
    }
}

/// Nodes of a line.
pub(in crate::fib) const NODES: usize = 8;
/// Nodes for which a new hash has a line: with six to a line one in twenty finds its line full, with three one in
/// a thousand.
const FULL: usize = 6;
/// The most that lines have, on average, before the hash is made anew; one in sixteen is not among them then.
const FULLEST: usize = 6;
/// Odd, as many ones as zeros: 2^64 by the golden ratio.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
