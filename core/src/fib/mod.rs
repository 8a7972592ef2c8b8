//! Longest-prefix match for IPv4 and IPv6.
//!
//! [`Fib`] is the writer: it owns the routes and changes them. [`FibReader`] is what workers hold: an immutable
//! snapshot of the table, cheap to clone, `Send` and `Sync`. A reader never waits and never sees half of a batch of
//! updates, because what it holds never changes; the next [`Fib::reader`] call publishes everything since the last.
//! [`FibReplica`] is for a worker that looks many batches up in one table: a copy of his own, which follows the
//! snapshots.
//!
//! A route maps a prefix to a [`NextHopId`], an index into a list that the caller owns (the tables' next hops, where
//! equal-cost sets live). This room knows addresses; it never sees packets or time.
//!
//! A prefix with host bits set stands for its network: the host bits are cleared.
//!
//! Inside, one structure is the truth: a trie of nodes (`node.rs`; `table.rs` tells how it is changed), which everything
//! can be asked. IPv4 nodes are laid out by the size of the table: second-level ones dense from 256 routes on, with a top
//! that says which of their groups have a cell (`node.rs`), third-level ones of large tables, where they are few, spread,
//! with a leaf for every slot (`tails.rs`). Beside the trie some tables have a shorter way for lookups, which leaves to
//! the trie what it cannot say, and which the caller sees in time and memory only:
//!
//! | table | way |
//! |-------|-----|
//! | IPv4, many routes | the second level once more, leaves of one octet that say all there is to say: pushed chunks (`pushed/`) |
//! | the same, of a worker that has a replica | all group cells of these in one array, their leaves in another (`replica.rs`; AVX-512, batches) |
//! | the same, while addresses come again | a code for each /24 besides (`dir24.rs`; AVX-512, batches) |
//! | IPv4, few second-level nodes | these slot by slot: flat chunks (`flat/`) |
//! | the same, and no route but the default one ends in the root | the root in vector registers besides (`few.rs`; x86-64, batches) |
//! | the same, of a worker that has a replica | a leaf for every address below these nodes (`expanded.rs`; AVX-512 with fast gathers) |
//! | IPv6, few prefix lengths | a hash of the routes (`hashed.rs`) |
//! | IPv6, many routes, nearly all up to /48 | windows: ranges of addresses below each /24, /32 and /40 (`windows/`; x86-64) |
//! | the same, of a worker that has a replica | a trie of its own, an octet a step, most nodes one cache line (`strides/`; AVX-512 with fast gathers, batches) |
//!
//! ```
//! use core::net::Ipv4Addr;
//! use ipnet::Ipv4Net;
//! use warren_core::fib::{Fib, NextHopId};
//!
//! let peer = NextHopId::new(7).ok_or("too large")?;
//! let mut fib = Fib::<Ipv4Addr>::new();
//! fib.insert("10.0.0.0/8".parse::<Ipv4Net>()?, peer)?;
//! let reader = fib.reader();
//! assert_eq!(reader.lookup(Ipv4Addr::new(10, 1, 2, 3)), Some(peer));
//! assert_eq!(reader.lookup(Ipv4Addr::new(11, 1, 2, 3)), None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod address;
mod arena;
mod batch;
mod build;
mod changes;
mod dir24;
mod direct;
mod draft;
mod expanded;
mod few;
mod flat;
mod fresh;
mod hashed;
mod log;
mod moves;
mod node;
mod published;
mod pushed;
mod reader;
mod replica;
mod root;
#[allow(
    unsafe_code,
    reason = "calls code compiled for the processor that was found"
)]
mod simd;
mod spare;
mod splice;
mod strides;
mod table;
mod tails;
mod walk;
mod windows;

#[cfg(test)]
mod tests;

pub use address::Address;
pub use reader::FibReader;
pub use replica::FibReplica;
pub use simd::SimdLevel;
pub use table::Fib;
pub use walk::{Covering, Routes};

use core::fmt;
use core::num::NonZeroU16;

/// The index of a next hop, 0 to [`NextHopId::MAX_INDEX`], in a list that the caller owns.
///
/// `Option<NextHopId>` takes 2 octets, as a leaf of the table does.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct NextHopId(NonZeroU16);

impl NextHopId {
    /// The largest index: one bit of a 2-octet leaf says whether longer prefixes lie below, one value says "none".
    pub const MAX_INDEX: u16 = 0x7ffe;

    /// The identifier of the next hop at `index`; `None` above [`MAX_INDEX`](Self::MAX_INDEX).
    #[must_use]
    pub const fn new(index: u16) -> Option<Self> {
        if index > Self::MAX_INDEX {
            return None;
        }
        match NonZeroU16::new(index + 1) {
            Some(code) => Some(Self(code)),
            None => None,
        }
    }

    /// The index that this identifier was made from.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0.get() as usize - 1
    }

    /// What leaves hold: the index and 1; 0 means no route.
    const fn code(self) -> u16 {
        self.0.get()
    }

    const fn from_code(code: u16) -> Option<Self> {
        match NonZeroU16::new(code) {
            Some(code) => Some(Self(code)),
            None => None,
        }
    }
}

/// Why a route could not be inserted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FibError {
    /// The table would outgrow its 32-bit handles (about 32 GiB).
    Full,
}

impl fmt::Display for FibError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the forwarding table is full: 32 GiB of routes"),
        }
    }
}

impl core::error::Error for FibError {}

/// The octets that a table takes, as [`Fib::memory`] reports them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FibMemory {
    /// What lookups read: octets in use by the lookup structure of the routes as they are.
    pub lookup_octets: usize,
    /// The routes themselves, as the writer and questions about prefixes need them: octets in use.
    pub route_octets: usize,
    /// Everything that was allocated: lookup part, route lists, free and retired memory.
    pub total_octets: usize,
}
