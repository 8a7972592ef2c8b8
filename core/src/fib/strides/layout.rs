//! How nodes and leaves of a copy are laid out, which `mod.rs` tells.

/// How wide leaves are: with codes of one octet, or of two.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Layout {
    pub(super) wide: bool,
}

impl Layout {
    /// Octets of a leaf of a node at `depth`.
    pub(super) const fn width(self, depth: u8) -> usize {
        match (depth, self.wide) {
            (LAST, _) => CODE,
            (_, true) => WIDE,
            (_, false) => NARROW,
        }
    }

    /// Leaves after the eight octets from which those of a node with many runs are counted, up to the first: the cells
    /// end there.
    pub(super) const fn many_leaves(self, depth: u8) -> usize {
        (CELL * GROUPS - (FEW - 1)).div_ceil(self.width(depth))
    }

    /// How many octets after a node's first its leaves are.
    pub(super) const fn leaves_at(self, runs: usize, depth: u8) -> usize {
        let leaves = if runs > FEW {
            self.many_leaves(depth)
        } else {
            0
        };
        FEW - 1 + leaves * self.width(depth)
    }

    /// How many grains a node of so many runs takes.
    pub(super) const fn grains(self, runs: usize, depth: u8) -> usize {
        (self.leaves_at(runs, depth) + self.width(depth) * runs).div_ceil(GRAIN)
    }

    /// The octets of a leaf that is not of the last nodes, of which there are [`width`](Self::width); `None` when its code
    /// is too large.
    pub(super) fn pack(self, leaf: u64) -> Option<[u8; 8]> {
        if self.wide {
            return Some(leaf.to_le_bytes());
        }
        (leaf >> 8 & 0xff == 0).then(|| (leaf & 0xff | leaf >> 16 << 8).to_le_bytes())
    }

    /// The leaf that five octets begin with.
    pub(super) const fn unpack(self, octets: u64) -> u64 {
        if self.wide {
            return octets;
        }
        octets & 0xff | (octets & 0xffff_ffff) >> 8 << 16
    }
}

/// The octet that a node begins with.
pub(super) const fn first_of(node: u64) -> usize {
    (node >> 1) as usize * GRAIN
}

pub(super) const fn is_many(node: u64) -> bool {
    node & 1 == 1
}

/// The most runs of a node that says where each of them ends.
pub(super) const FEW: usize = 9;
/// Cells of a node with more, and octets of each.
pub(super) const GROUPS: usize = 8;
pub(super) const CELL: usize = 5;
/// Octets of leaves.
pub(in crate::fib) const WIDE: usize = 5;
pub(in crate::fib) const NARROW: usize = 4;
/// Octets of those of the last nodes.
pub(in crate::fib) const CODE: usize = 2;
/// The depth of the last nodes.
pub(super) const LAST: u8 = 40;
/// What places of nodes are multiples of, octets.
pub(super) const GRAIN: usize = 16;
