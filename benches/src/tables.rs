//! Longest-prefix-match tables side by side: ours and its peers, behind one trait.
//!
//! Every table is asked in three ways. *Dependent*: each address is known only when the answer before is. *Single*:
//! one independent lookup a call. *Batches*: the table's own bulk call where it has one, a loop otherwise. Next hops
//! are numbers from 0; answers are one more, 0 where there is no route.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "fixtures of known sizes"
)]

use std::cell::RefCell;
use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use warren_core::fib::{Fib, FibReader, FibReplica, NextHopId, SimdLevel};

use crate::routes::Family;

/// A table of next hop numbers.
pub trait Table<A: Family> {
    /// What the result is printed under.
    fn name(&self) -> &'static str;

    /// The answer for one address.
    fn single(&self, address: A) -> u16;

    /// Looks the trace up, each address changed by the answer before (by nothing, but the processor cannot know).
    fn dependents(&self, trace: &[A]) -> u64 {
        let mut before = 0;
        let mut sum = 0;
        for address in trace {
            before = self.single(address.mixed(before >> 15));
            sum += u64::from(before);
        }
        sum
    }

    /// Looks the trace up, one independent address a call.
    fn singles(&self, trace: &[A]) -> u64 {
        trace
            .iter()
            .map(|address| u64::from(self.single(*address)))
            .sum()
    }

    /// Looks the trace up in batches of `size`.
    fn batches(&self, trace: &[A], size: usize) -> u64 {
        let mut answers = vec![0_u16; size];
        let mut sum = 0;
        for batch in trace.chunks(size) {
            for (address, answer) in batch.iter().zip(&mut answers) {
                *answer = self.single(*address);
            }
            sum += u64::from(black_box(&answers)[0]);
        }
        sum
    }
}

/// Warren's table, as a worker has it.
#[derive(Debug)]
pub struct Warren<A: Family> {
    reader: FibReader<A>,
    /// Replicas take note of how they are asked.
    replica: RefCell<FibReplica<A>>,
}

impl<A: Family> Warren<A> {
    /// Builds the table.
    #[must_use]
    pub fn new(routes: &[(A::Prefix, u16)]) -> (Self, Fib<A>) {
        let routes = routes
            .iter()
            .map(|(prefix, next_hop)| (*prefix, id(*next_hop)));
        let mut fib = Fib::from_routes(routes).expect("far below the limit");
        (Self::of(fib.reader()), fib)
    }

    /// The table of a snapshot.
    #[must_use]
    pub fn of(reader: FibReader<A>) -> Self {
        Self {
            replica: RefCell::new(FibReplica::new(reader.clone())),
            reader,
        }
    }

    /// The snapshot.
    #[must_use]
    pub const fn reader(&self) -> &FibReader<A> {
        &self.reader
    }

    /// The same table, looked up with no more than `level` of the machine's instructions.
    #[must_use]
    pub fn at(&self, level: SimdLevel) -> Self {
        Self::of(self.reader.clone().with_simd_level(level))
    }
}

/// The next hop of number `n`.
#[must_use]
pub fn id(n: u16) -> NextHopId {
    NextHopId::new(n).expect("fixtures use small numbers")
}

fn number(next_hop: Option<NextHopId>) -> u16 {
    next_hop.map_or(0, |next_hop| next_hop.index() as u16 + 1)
}

impl<A: Family> Table<A> for Warren<A> {
    fn name(&self) -> &'static str {
        match self.reader.simd_level() {
            SimdLevel::Portable => "warren portable",
            SimdLevel::Bmi2 => "warren bmi2",
            SimdLevel::Avx2 => "warren avx2",
            SimdLevel::Avx512 => "warren avx512",
            SimdLevel::Avx512Gather => "warren gather",
        }
    }

    #[inline]
    fn single(&self, address: A) -> u16 {
        number(self.replica.borrow().lookup(address))
    }

    fn dependents(&self, trace: &[A]) -> u64 {
        let replica = self.replica.borrow();
        let mut before = 0;
        let mut sum = 0;
        for address in trace {
            before = number(replica.lookup(address.mixed(before >> 15)));
            sum += u64::from(before);
        }
        sum
    }

    fn singles(&self, trace: &[A]) -> u64 {
        let replica = self.replica.borrow();
        let each = trace
            .iter()
            .map(|address| u64::from(number(replica.lookup(*address))));
        each.sum()
    }

    fn batches(&self, trace: &[A], size: usize) -> u64 {
        let mut answers = vec![None; size];
        let mut sum = 0;
        let mut replica = self.replica.borrow_mut();
        for batch in trace.chunks(size) {
            replica.lookup_batch(batch, &mut answers);
            sum += u64::from(number(black_box(&answers)[0]));
        }
        sum
    }
}

/// The `prefix-trie` crate.
#[derive(Debug)]
pub struct PrefixTrie<P: prefix_trie::Prefix>(prefix_trie::PrefixMap<P, u16>);

impl<P: prefix_trie::Prefix + Copy> PrefixTrie<P> {
    /// Builds the table.
    #[must_use]
    pub fn new(routes: &[(P, u16)]) -> Self {
        Self(routes.iter().copied().collect())
    }
}

impl Table<Ipv4Addr> for PrefixTrie<Ipv4Net> {
    fn name(&self) -> &'static str {
        "prefix-trie"
    }

    #[inline]
    fn single(&self, address: Ipv4Addr) -> u16 {
        self.0
            .get_lpm(&Ipv4Net::from(address))
            .map_or(0, |(_, next_hop)| next_hop + 1)
    }
}

impl Table<Ipv6Addr> for PrefixTrie<Ipv6Net> {
    fn name(&self) -> &'static str {
        "prefix-trie"
    }

    #[inline]
    fn single(&self, address: Ipv6Addr) -> u16 {
        self.0
            .get_lpm(&Ipv6Net::from(address))
            .map_or(0, |(_, next_hop)| next_hop + 1)
    }
}

/// The `ip_network_table-deps-treebitmap` crate.
#[allow(missing_debug_implementations, reason = "the crate's table has none")]
pub struct TreeBitmap<A>(ip_network_table_deps_treebitmap::IpLookupTable<A, u16>);

impl<A: Family + ip_network_table_deps_treebitmap::address::Address> TreeBitmap<A> {
    /// Builds the table.
    #[must_use]
    pub fn new(routes: &[(A::Prefix, u16)]) -> Self {
        let mut table = ip_network_table_deps_treebitmap::IpLookupTable::new();
        for (prefix, next_hop) in routes {
            let (key, len) = A::split(*prefix);
            table.insert(A::from_key(key), u32::from(len), *next_hop);
        }
        Self(table)
    }
}

impl<A: Family + ip_network_table_deps_treebitmap::address::Address> Table<A> for TreeBitmap<A> {
    fn name(&self) -> &'static str {
        "treebitmap"
    }

    #[inline]
    fn single(&self, address: A) -> u16 {
        self.0
            .longest_match(address)
            .map_or(0, |(_, _, next_hop)| next_hop + 1)
    }
}

/// The `poptrie` crate.
#[allow(missing_debug_implementations, reason = "the crate's table has none")]
pub struct Poptrie<P: poptrie::Prefix>(poptrie::Poptrie<P, u16>);

impl<P: poptrie::Prefix> Poptrie<P> {
    /// Builds the table.
    #[must_use]
    pub fn new(routes: &[(P, u16)]) -> Self {
        Self(routes.iter().copied().collect())
    }
}

impl Table<Ipv4Addr> for Poptrie<Ipv4Net> {
    fn name(&self) -> &'static str {
        "poptrie"
    }

    #[inline]
    fn single(&self, address: Ipv4Addr) -> u16 {
        self.0.lookup(address).map_or(0, |next_hop| next_hop + 1)
    }
}

impl Table<Ipv6Addr> for Poptrie<Ipv6Net> {
    fn name(&self) -> &'static str {
        "poptrie"
    }

    #[inline]
    fn single(&self, address: Ipv6Addr) -> u16 {
        self.0.lookup(address).map_or(0, |next_hop| next_hop + 1)
    }
}
