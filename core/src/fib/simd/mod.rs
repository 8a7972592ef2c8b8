//! What the machine has beyond portable code, found at run time: the one module of the crate with `unsafe`.
//!
//! Portable code is that of `batch.rs`, which on x86-64 has its prefetch, and is compiled a second time for processors
//! that count bits in one instruction. What it is too slow for has a walk of its own: IPv4 tables by address
//! (`narrow.rs`), large ones by pushed chunks (`pushed.rs`), both with AVX-512 eight addresses to a vector (`lanes.rs`),
//! small ones by gathers where these are fast (`few.rs`), in a worker's replica large ones (`replica.rs`, `dir24.rs`) and
//! small ones (`expanded.rs`); batches of IPv6 (`wide.rs`), IPv6 tables with a hash (`hashed.rs`) and those with windows
//! (`windows.rs`), the last two with AVX-512, too (batches in windows: `longest.rs`, by gathers `gathered.rs`), and large
//! ones in a worker's replica (`strides.rs`).
//!
//! `unsafe` is for six things: calling a function that was compiled for such a processor, after it was found to be one; the
//! prefetch, which is unsafe to call only because it takes a raw pointer; reading cells, lines and lists, one by one or by
//! gathers, without asking whether the place is in bounds, which the portable twin asks each time; numbers that change
//! from array to vector and back; an `asm!` without instructions that keeps the compiler from another order, and one that
//! compares two lines in registers of its choice (`hashed.rs`); and, for the writer, octets moved from cells to cells
//! (`moves.rs`).
//!
//! The twins are compared by the tests at every level, and in builds with debug assertions the unchecked reads are
//! checked.

#[cfg(target_arch = "x86_64")]
mod dir24;
#[cfg(target_arch = "x86_64")]
mod expanded;
#[cfg(target_arch = "x86_64")]
mod few;
#[cfg(target_arch = "x86_64")]
mod gathered;
#[cfg(target_arch = "x86_64")]
mod hashed;
#[cfg(target_arch = "x86_64")]
mod lanes;
mod level;
#[cfg(target_arch = "x86_64")]
mod longest;
#[cfg(target_arch = "x86_64")]
mod moves;
#[cfg(target_arch = "x86_64")]
mod narrow;
#[cfg(target_arch = "x86_64")]
mod pushed;
#[cfg(target_arch = "x86_64")]
mod replica;
#[cfg(target_arch = "x86_64")]
mod strides;
#[cfg(target_arch = "x86_64")]
mod wide;
#[cfg(target_arch = "x86_64")]
mod windows;

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64;

#[cfg(target_arch = "x86_64")]
use core::marker::PhantomData;
use core::sync::atomic::AtomicU64;
#[cfg(target_arch = "x86_64")]
use core::sync::atomic::Ordering;

use super::NextHopId;
use super::address::Address;
#[cfg(target_arch = "x86_64")]
use super::arena;
#[cfg(target_arch = "x86_64")]
use super::arena::LINE_CELLS;
use super::arena::Segment;
use super::batch::{self, Portable};
use super::expanded::Expanded;
use super::few::Few;
#[cfg(target_arch = "x86_64")]
use super::fresh;
use super::hashed::Hashed;
#[cfg(target_arch = "x86_64")]
use super::hashed::{key_of, octets};
use super::pushed::{self as portable, PushedRoot};
use super::reader::{FibReader, Snapshot};
use super::replica::Replica;
use super::strides::Strides;
use super::walk::{Trie, View};
use super::windows::Windowed;

pub use level::SimdLevel;
#[cfg(target_arch = "x86_64")]
pub(super) use moves::move_octets;

/// A level that the machine has; only [`Level::new`] makes one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Level(SimdLevel);

/// That single addresses go through a hash of hosts and their networks by AVX-512; only [`Level::hosts`] makes one, where
/// the machine has it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Hosts(());

impl Hosts {
    /// The code that the table of `trie` has for an address: what `hashed`, its hash, says, or the trie.
    #[inline(always)]
    pub(super) fn lookup<A: Address>(self, hashed: &Hashed, trie: &impl Trie, address: A) -> u16 {
        #[cfg(target_arch = "x86_64")]
        {
            let (high, low) = octets(address.to_key());
            // SAFETY: there is one only where the instructions were found.
            unsafe { hosts_one_avx512(hashed, trie, high, low) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = hashed;
            trie.walk(address.to_key())
        }
    }
}

/// Asks for the lines of the first `cells` cells of `block`, which will be read soon.
#[inline]
pub(super) fn ask_for_block(block: &[AtomicU64], cells: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..cells.min(block.len()).div_ceil(LINE_CELLS) {
        let line = block.as_ptr().wrapping_add(line * LINE_CELLS);
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe { x86_64::_mm_prefetch::<{ x86_64::_MM_HINT_T0 }>(line.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (block, cells);
}

/// Asks for the lines of `fresh`, a snapshot's list.
pub(super) fn ask_for_lines(fresh: &[u64]) {
    // A processor that has as many lines under way as it can drops what is asked for beyond; the second time it is not.
    #[cfg(target_arch = "x86_64")]
    for (line, count) in fresh::runs(fresh).chain(fresh::runs(fresh)) {
        for at in 0..count {
            let line = core::ptr::without_provenance::<i8>(line.wrapping_add(at * fresh::LINE));
            // SAFETY: a prefetch never faults, whatever the address.
            unsafe { x86_64::_mm_prefetch::<{ x86_64::_MM_HINT_T0 }>(line) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = fresh;
}

impl Level {
    /// `wanted`, or the highest level that the machine has when that is lower.
    pub(super) fn new(wanted: SimdLevel) -> Self {
        let fastest = SimdLevel::detect();
        let most = if fastest == SimdLevel::Avx512 {
            SimdLevel::Avx512Gather
        } else {
            fastest
        };
        Self(wanted.min(most))
    }

    pub(super) fn get(self) -> SimdLevel {
        self.0
    }

    #[inline]
    pub(super) fn lookup<A: Address>(
        self,
        view: &View<'_>,
        addresses: &[A],
        next_hops: &mut [Option<NextHopId>],
    ) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Portable => batch::lookup(Asking, view, addresses, next_hops),
            #[cfg(not(target_arch = "x86_64"))]
            SimdLevel::Portable => batch::lookup(Portable, view, addresses, next_hops),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` of `Bmi2` exists only where these instructions were found.
            SimdLevel::Bmi2 => unsafe { lookup_bmi2(view, addresses, next_hops) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` of `Avx2` exists only where these instructions were found.
            SimdLevel::Avx2 => unsafe { lookup_avx2(view, addresses, next_hops) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` of these exists only where the instructions were found.
            SimdLevel::Avx512 | SimdLevel::Avx512Gather => unsafe {
                lookup_avx512(view, addresses, next_hops);
            },
            #[cfg(not(target_arch = "x86_64"))]
            _ => batch::lookup(Portable, view, addresses, next_hops),
        }
    }

    /// Looks up each of `addresses` in pushed chunks.
    #[inline]
    pub(super) fn pushed<A: Address>(
        self,
        pushed: &PushedRoot,
        segments: &[Segment],
        addresses: &[A],
        next_hops: &mut [Option<NextHopId>],
    ) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Portable => portable::lookup(Asking, pushed, segments, addresses, next_hops),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` of `Bmi2` exists only where these instructions were found.
            SimdLevel::Bmi2 => unsafe { pushed_bmi2(pushed, segments, addresses, next_hops) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` of `Avx2` exists only where these instructions were found.
            SimdLevel::Avx2 => unsafe { pushed_avx2(pushed, segments, addresses, next_hops) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` of `Avx512` exists only where these instructions were found.
            SimdLevel::Avx512 => unsafe {
                pushed_avx512::<A, false>(pushed, segments, addresses, next_hops);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` of `Avx512Gather` exists only where these instructions were found.
            SimdLevel::Avx512Gather => unsafe {
                pushed_avx512::<A, true>(pushed, segments, addresses, next_hops);
            },
            #[cfg(not(target_arch = "x86_64"))]
            _ => portable::lookup(Portable, pushed, segments, addresses, next_hops),
        }
    }

    /// The code that pushed chunks have for an address.
    #[inline(always)]
    pub(super) fn pushed_one(self, pushed: &PushedRoot, segments: &[Segment], key: u128) -> u16 {
        let key = (key >> 96 & 0xffff_ffff) as u32;
        match self.0 {
            SimdLevel::Portable => portable::lookup_one(Portable, pushed, segments, key),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` of these exists only where the instructions were found.
            _ => unsafe { pushed_one_bmi2(pushed, segments, key) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => portable::lookup_one(Portable, pushed, segments, key),
        }
    }

    /// Whether lookups are faster in a worker's copy of pushed chunks (`replica.rs`).
    #[inline(always)]
    pub(super) fn has_replica(self) -> bool {
        cfg!(target_arch = "x86_64") && self.0 >= SimdLevel::Avx512
    }

    /// Looks up each of `addresses` in `replica`, a worker's copy of what is pushed in `snapshot`.
    #[inline]
    pub(super) fn replica<A: Address>(
        self,
        replica: &Replica,
        snapshot: &Snapshot,
        addresses: &[A],
        next_hops: &mut [Option<NextHopId>],
    ) {
        #[cfg(target_arch = "x86_64")]
        if self.has_replica() {
            // SAFETY: a `Level` of these exists only where the instructions were found.
            unsafe {
                if self.0 == SimdLevel::Avx512Gather {
                    replica_avx512::<A, true>(replica, snapshot, addresses, next_hops);
                } else {
                    replica_avx512::<A, false>(replica, snapshot, addresses, next_hops);
                }
            };
            return;
        }
        let _ = replica;
        if let Some(root) = &snapshot.pushed {
            self.pushed(root, &snapshot.segments, addresses, next_hops);
        }
    }

    /// Makes the codes of all /24 of a root slot of `replica`, if lookups are faster in such a copy; whether they are.
    pub(super) fn fill_codes(self, replica: &Replica, slot: usize, codes: &mut [u8]) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.has_replica() {
            // SAFETY: a `Level` of these exists only where the instructions were found.
            unsafe { fill_codes_avx512(replica, slot, codes) };
            return true;
        }
        let _ = (replica, slot, codes);
        false
    }

    /// Whether batches are faster in a worker's copy of a large IPv6 table (`fib/strides/`).
    #[inline(always)]
    pub(super) fn has_strides(self) -> bool {
        cfg!(target_arch = "x86_64") && self.0 == SimdLevel::Avx512Gather
    }

    /// Looks up each of `addresses` in `strides`, a worker's copy of the table of `reader`.
    #[inline]
    pub(super) fn strides<A: Address>(
        self,
        strides: &Strides,
        reader: &FibReader<A>,
        addresses: &[A],
        next_hops: &mut [Option<NextHopId>],
    ) {
        #[cfg(target_arch = "x86_64")]
        if self.has_strides() {
            // SAFETY: a `Level` of `Avx512Gather` exists only where these instructions were found.
            unsafe { strides_avx512(strides, reader, addresses, next_hops) };
            return;
        }
        let _ = strides;
        reader.lookup_batch(addresses, next_hops);
    }

    /// The next hop of one address in `strides`, as above.
    #[inline(always)]
    pub(super) fn strides_one<A: Address>(
        self,
        strides: &Strides,
        reader: &FibReader<A>,
        address: A,
    ) -> Option<NextHopId> {
        #[cfg(target_arch = "x86_64")]
        if self.has_strides() {
            // SAFETY: as above.
            return unsafe { strides_one_avx2(strides, reader, address) };
        }
        let _ = strides;
        reader.lookup(address)
    }

    /// Looks up each of `addresses` of a table whose root fits registers, if the machine has these; whether it has.
    #[inline(always)]
    pub(super) fn few<A: Address>(
        self,
        few: &Few,
        addresses: &[A],
        next_hops: &mut [Option<NextHopId>],
    ) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self.0 {
            SimdLevel::Portable | SimdLevel::Bmi2 | SimdLevel::Avx2 => {}
            // SAFETY: a `Level` of `Avx512` exists only where these instructions were found.
            SimdLevel::Avx512 => unsafe {
                few_avx512(few, addresses, next_hops);
                return true;
            },
            // SAFETY: a `Level` of `Avx512Gather` exists only where these instructions were found.
            SimdLevel::Avx512Gather => unsafe {
                few_gathered(few, addresses, next_hops);
                return true;
            },
        }
        let _ = (few, addresses, next_hops);
        false
    }

    /// Whether batches are faster in a worker's copy of such a table (`fib/expanded.rs`).
    #[inline(always)]
    pub(super) fn has_expanded(self) -> bool {
        cfg!(target_arch = "x86_64") && self.0 == SimdLevel::Avx512Gather
    }

    /// Looks up each of `addresses` in `expanded`, a worker's copy of the table of `reader`.
    #[inline(always)]
    pub(super) fn expanded<A: Address>(
        self,
        expanded: &Expanded,
        reader: &FibReader<A>,
        addresses: &[A],
        next_hops: &mut [Option<NextHopId>],
    ) {
        #[cfg(target_arch = "x86_64")]
        if A::BITS == 32 && self.has_expanded() {
            // SAFETY: a `Level` of `Avx512Gather` exists only where these instructions were found.
            unsafe { expanded_avx512(expanded, addresses, next_hops) };
            return;
        }
        let _ = expanded;
        reader.lookup_batch(addresses, next_hops);
    }

    /// Whether single addresses have a way of their own in `hashed`: one of hosts and their networks.
    pub(super) fn hosts(self, hashed: &Hashed) -> Option<Hosts> {
        #[cfg(target_arch = "x86_64")]
        if hashed.of_hosts && self.0 >= SimdLevel::Avx512 {
            return Some(Hosts(()));
        }
        let _ = hashed;
        None
    }

    /// The code that the table of `trie` has for an address: what its hash says, or the trie.
    #[inline(never)]
    pub(super) fn hashed_one(self, hashed: &Hashed, trie: &impl Trie, key: u128) -> u16 {
        #[cfg(target_arch = "x86_64")]
        if self.0 >= SimdLevel::Avx512 && hashed.count == 2 {
            let (high, low) = octets(key);
            // SAFETY: a `Level` of these exists only where the instructions were found.
            return unsafe { hashed_one_avx512(hashed, trie, high, low) };
        }
        let code = match self.0 {
            SimdLevel::Portable => hashed.lookup(trie.segments(), key),
            #[cfg(target_arch = "x86_64")]
            _ => hashed::lookup_one(hashed, key),
            #[cfg(not(target_arch = "x86_64"))]
            _ => hashed.lookup(trie.segments(), key),
        };
        code.unwrap_or_else(|| trie.walk(key))
    }

    /// Looks up each of `addresses` in the hash, and in the trie where the hash does not say.
    pub(super) fn hashed<A: Address>(
        self,
        hashed: &Hashed,
        view: &View<'_>,
        addresses: &[A],
        next_hops: &mut [Option<NextHopId>],
    ) {
        #[cfg(target_arch = "x86_64")]
        match self.0 {
            SimdLevel::Portable => {}
            SimdLevel::Bmi2 | SimdLevel::Avx2 => {
                return hashed::lookup::<A, hashed::Sse2>(hashed, view, addresses, next_hops);
            }
            // SAFETY: a `Level` of these exists only where the instructions were found.
            SimdLevel::Avx512 => unsafe {
                return hashed_avx512::<A, false>(hashed, view, addresses, next_hops);
            },
            // SAFETY: as above.
            SimdLevel::Avx512Gather => unsafe {
                return hashed_avx512::<A, true>(hashed, view, addresses, next_hops);
            },
        }
        for (address, next_hop) in addresses.iter().zip(next_hops) {
            let key = address.to_key();
            let code = hashed.lookup(view.segments, key);
            *next_hop = NextHopId::from_code(code.unwrap_or_else(|| view.lookup::<A>(key)));
        }
    }

    /// The code that the table of `trie` has for an IPv6 address: what its windows say, or the trie.
    #[inline(always)]
    pub(super) fn windowed_one(self, windowed: &Windowed, trie: &impl Trie, key: u128) -> u16 {
        match self.0 {
            SimdLevel::Portable => trie.walk(key),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` of these exists only where the instructions were found.
            SimdLevel::Bmi2 | SimdLevel::Avx2 => unsafe { windowed_one_bmi2(windowed, trie, key) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` of these exists only where the instructions were found.
            SimdLevel::Avx512 | SimdLevel::Avx512Gather => unsafe {
                windowed_one_avx512(windowed, trie, key)
            },
            #[cfg(not(target_arch = "x86_64"))]
            _ => {
                let _ = windowed;
                trie.walk(key)
            }
        }
    }

    /// Looks up each of `addresses` in the windows, and in the trie where they do not say.
    pub(super) fn windowed<A: Address>(
        self,
        windowed: &Windowed,
        view: &View<'_>,
        addresses: &[A],
        next_hops: &mut [Option<NextHopId>],
    ) {
        match self.0 {
            SimdLevel::Portable => self.lookup(view, addresses, next_hops),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` of these exists only where the instructions were found.
            SimdLevel::Bmi2 | SimdLevel::Avx2 => unsafe {
                windowed_bmi2(windowed, view, addresses, next_hops);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` of `Avx512` exists only where these instructions were found.
            SimdLevel::Avx512 => unsafe {
                windowed_avx512::<A, false>(windowed, view, addresses, next_hops);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` of `Avx512Gather` exists only where these instructions were found.
            SimdLevel::Avx512Gather => unsafe {
                windowed_avx512::<A, true>(windowed, view, addresses, next_hops);
            },
            #[cfg(not(target_arch = "x86_64"))]
            _ => {
                let _ = windowed;
                self.lookup(view, addresses, next_hops);
            }
        }
    }

    #[inline]
    pub(super) fn lookup_one<A: Address>(self, view: &View<'_>, key: u128) -> u16 {
        match self.0 {
            SimdLevel::Portable => batch::lookup_one::<A>(Portable, view, key),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` of these exists only where the instructions were found.
            _ => unsafe { lookup_one_bmi2::<A>(view, key) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => batch::lookup_one::<A>(Portable, view, key),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe")]
fn lookup_bmi2<A: Address>(view: &View<'_>, addresses: &[A], next_hops: &mut [Option<NextHopId>]) {
    if A::BITS == 32 {
        narrow::lookup(view, addresses, next_hops);
    } else {
        wide::lookup(view, addresses, next_hops);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe")]
fn lookup_one_bmi2<A: Address>(view: &View<'_>, key: u128) -> u16 {
    if A::BITS == 32 {
        narrow::lookup_one::<A>(view, key)
    } else {
        batch::lookup_one::<A>(Native, view, key)
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2")]
fn lookup_avx2<A: Address>(view: &View<'_>, addresses: &[A], next_hops: &mut [Option<NextHopId>]) {
    if A::BITS == 32 {
        narrow::lookup(view, addresses, next_hops);
    } else {
        wide::lookup(view, addresses, next_hops);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn lookup_avx512<A: Address>(
    view: &View<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    if A::BITS != 32 {
        return wide::lookup(view, addresses, next_hops);
    }
    match narrow::Table::of(view) {
        Some(table) if table.flat => {
            if table.wide {
                narrow::in_groups::<A, lanes::Flat<true>>(&table, addresses, next_hops);
            } else {
                narrow::in_groups::<A, lanes::Flat<false>>(&table, addresses, next_hops);
            }
        }
        Some(table) => {
            narrow::in_groups::<A, lanes::Chunks>(&table, addresses, next_hops);
        }
        None => batch::lookup(Native, view, addresses, next_hops),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe")]
fn pushed_bmi2<A: Address>(
    pushed: &PushedRoot,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    pushed::lookup(pushed, segments, addresses, next_hops);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2")]
fn pushed_avx2<A: Address>(
    pushed: &PushedRoot,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    pushed::lookup(pushed, segments, addresses, next_hops);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn pushed_avx512<A: Address, const GATHER: bool>(
    pushed: &PushedRoot,
    segments: &[Segment],
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    pushed::lookup_in_vectors::<A, GATHER>(pushed, segments, addresses, next_hops);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn replica_avx512<A: Address, const GATHER: bool>(
    replica: &Replica,
    snapshot: &Snapshot,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    replica::lookup::<A, GATHER>(replica, snapshot, addresses, next_hops);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
fn fill_codes_avx512(replica: &Replica, slot: usize, codes: &mut [u8]) {
    replica::fill_codes(replica, slot, codes);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn strides_avx512<A: Address>(
    copy: &Strides,
    reader: &FibReader<A>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    strides::lookup(copy, reader, addresses, next_hops);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2")]
fn strides_one_avx2<A: Address>(
    copy: &Strides,
    reader: &FibReader<A>,
    address: A,
) -> Option<NextHopId> {
    strides::lookup_one(copy, reader, address)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe")]
fn pushed_one_bmi2(pushed: &PushedRoot, segments: &[Segment], key: u32) -> u16 {
    pushed::lookup_one(pushed, segments, key)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn few_avx512<A: Address>(few: &Few, addresses: &[A], next_hops: &mut [Option<NextHopId>]) {
    if few.wide {
        few_wide_or_not::<A, true>(few, addresses, next_hops);
    } else {
        few_wide_or_not::<A, false>(few, addresses, next_hops);
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn few_wide_or_not<A: Address, const WIDE: bool>(
    few: &Few,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    use lanes::Few as Lanes;
    match (few.places, few.code) {
        (8, 0) => narrow::in_groups::<A, Lanes<1, false, WIDE>>(few, addresses, next_hops),
        (8, _) => narrow::in_groups::<A, Lanes<1, true, WIDE>>(few, addresses, next_hops),
        (16, _) => narrow::in_groups::<A, Lanes<2, true, WIDE>>(few, addresses, next_hops),
        (_, _) => narrow::in_groups::<A, Lanes<4, true, WIDE>>(few, addresses, next_hops),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn few_gathered<A: Address>(few: &Few, addresses: &[A], next_hops: &mut [Option<NextHopId>]) {
    few::lookup(few, addresses, next_hops);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn expanded_avx512<A: Address>(
    table: &Expanded,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    expanded::lookup(table, addresses, next_hops);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn hashed_avx512<A: Address, const GATHER: bool>(
    hashed: &Hashed,
    view: &View<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    hashed::lookup::<A, hashed::Avx512<GATHER>>(hashed, view, addresses, next_hops);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn hashed_one_avx512(hashed: &Hashed, trie: &impl Trie, high: u64, low: u64) -> u16 {
    match hashed::lookup_of_two(hashed, high, low) {
        Some(code) => code,
        None => trie.walk(key_of(high, low)),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn hosts_one_avx512(hashed: &Hashed, trie: &impl Trie, high: u64, low: u64) -> u16 {
    match hashed::lookup_of_hosts(hashed, high, low) {
        Some(code) => code,
        None => trie.walk(key_of(high, low)),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe")]
fn windowed_one_bmi2(windowed: &Windowed, trie: &impl Trie, key: u128) -> u16 {
    match windows::lookup_one::<windows::Sse2>(windowed, trie.slots(), key) {
        Some(code) => code,
        None => trie.walk(key),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn windowed_one_avx512(windowed: &Windowed, trie: &impl Trie, key: u128) -> u16 {
    match windows::lookup_one::<windows::Avx512>(windowed, trie.slots(), key) {
        Some(code) => code,
        None => trie.walk(key),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe")]
fn windowed_bmi2<A: Address>(
    windowed: &Windowed,
    view: &View<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    windows::lookup::<A, windows::Sse2>(windowed, view, addresses, next_hops);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi2"
)]
fn windowed_avx512<A: Address, const GATHER: bool>(
    windowed: &Windowed,
    view: &View<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    longest::lookup::<A, GATHER>(windowed, view, addresses, next_hops);
}

/// Asks for the addresses of the group after the next: callers that walk an array go on there with their next batch.
/// Memory that is nobody's is asked for in vain.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn ask_ahead<A>(addresses: &[A]) {
    ask_groups_ahead(addresses, 1);
}

/// Asks for the addresses of a group that has `between` others before it.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn ask_groups_ahead<A>(addresses: &[A], between: usize) {
    let octets = size_of_val(addresses);
    let end = addresses.as_ptr_range().end.cast::<i8>();
    let ahead = end.wrapping_add(between * octets);
    for line in 0..octets.div_ceil(64) {
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe { x86_64::_mm_prefetch::<{ x86_64::_MM_HINT_T0 }>(ahead.wrapping_add(64 * line)) };
    }
}

/// Portable code with the prefetch that every x86-64 has. Portable code by itself can only ask by reading, and of such
/// reads the processor has few under way, since it keeps everything that comes after the oldest of them.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
struct Asking;

#[cfg(target_arch = "x86_64")]
impl batch::Machine for Asking {
    type Block<'a> = AskingBlock<'a>;

    #[inline(always)]
    fn block(self, segments: &[Segment], handle: u32) -> AskingBlock<'_> {
        AskingBlock(arena::block(segments, handle))
    }
}

/// The cells of a block.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
struct AskingBlock<'a>(&'a [AtomicU64]);

#[cfg(target_arch = "x86_64")]
impl batch::Block for AskingBlock<'_> {
    #[inline(always)]
    fn cell(self, at: usize) -> u64 {
        self.0.cell(at)
    }

    #[inline(always)]
    fn quarter(self, at: usize) -> u16 {
        self.0.quarter(at)
    }

    #[inline(always)]
    fn prefetch(self) {
        self.prefetch_cell(0);
        self.prefetch_cell(8);
    }

    #[inline(always)]
    fn prefetch_cell(self, at: usize) {
        let line = self.0.as_ptr().wrapping_add(at).cast::<i8>();
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe { x86_64::_mm_prefetch::<{ x86_64::_MM_HINT_T0 }>(line) };
    }
}

/// Takes handles and places at their word, and prefetches by instruction, which every x86-64 has.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
struct Native;

#[cfg(target_arch = "x86_64")]
impl batch::Machine for Native {
    type Block<'a> = NativeBlock<'a>;

    #[inline(always)]
    fn block(self, segments: &[Segment], handle: u32) -> NativeBlock<'_> {
        debug_assert!(
            arena::cell(segments, handle, 0).is_some(),
            "{handle:#x} is a block"
        );
        let (segment, offset) = arena::place(handle);
        // SAFETY: `lookup` and `lookup_one` follow handles that the writer put into the blocks of this very view, each
        // block whole within one segment of it: a root slot or an entry holds 0, the handle of the empty chunk in
        // segment 0, or a block that `Arena::allocate` gave out: a node, a flat or a pushed chunk, or a tail's leaves beside a
        // flat chunk.
        let first = unsafe { segments.get_unchecked(segment).as_ptr().add(offset) };
        NativeBlock {
            first,
            #[cfg(debug_assertions)]
            cells: arena::block(segments, handle).len(),
            segments: PhantomData,
        }
    }
}

/// A block, by its first cell; builds with debug assertions know its end.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
struct NativeBlock<'a> {
    first: *const AtomicU64,
    #[cfg(debug_assertions)]
    cells: usize,
    segments: PhantomData<&'a [Segment]>,
}

#[cfg(target_arch = "x86_64")]
impl NativeBlock<'_> {
    /// Where cell `at` is, which the block has.
    #[inline(always)]
    fn place(self, at: usize) -> *const AtomicU64 {
        #[cfg(debug_assertions)]
        assert!(at < self.cells, "cell {at} of {}", self.cells);
        self.first.wrapping_add(at)
    }
}

#[cfg(target_arch = "x86_64")]
impl batch::Block for NativeBlock<'_> {
    #[inline(always)]
    fn cell(self, at: usize) -> u64 {
        #[cfg(debug_assertions)]
        assert!(at < self.cells, "cell {at} of {}", self.cells);
        // SAFETY: `at` is in the node's counts or run starts, whose number its shape tells, or is a leaf that
        // `Draft::write` wrote into the same block and that counts and run starts lead to, or a slot of a flat chunk,
        // which has all 2,048 of them; what is not a flat chunk is asked as one for cell 0 only, which all blocks have.
        unsafe { (*self.first.add(at)).load(Ordering::Relaxed) }
    }

    #[inline(always)]
    fn quarter(self, at: usize) -> u16 {
        #[cfg(debug_assertions)]
        assert!(at / 4 < self.cells, "quarter {at} of {} cells", self.cells);
        // SAFETY: in bounds as in `cell`; aligned, since cells are. A block that a snapshot reaches is not written
        // again while the snapshot lives, so that a part of a cell can be read as plain memory. x86-64 is
        // little-endian: quarter 0 comes first.
        unsafe { self.first.cast::<u16>().add(at).read() }
    }

    #[inline(always)]
    fn prefetch(self) {
        let line = self.first.cast::<i8>();
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe {
            x86_64::_mm_prefetch::<{ x86_64::_MM_HINT_T0 }>(line);
            x86_64::_mm_prefetch::<{ x86_64::_MM_HINT_T0 }>(line.wrapping_add(64));
        }
    }

    #[inline(always)]
    fn prefetch_cell(self, at: usize) {
        let line = self.first.wrapping_add(at).cast::<i8>();
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe { x86_64::_mm_prefetch::<{ x86_64::_MM_HINT_T0 }>(line) };
    }
}
