//! The table and its readers: a first form, a sorted map behind an `Arc`, right and slow.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::marker::PhantomData;

use super::address::{Address, prefix_mask};
use super::{FibError, FibMemory, NextHopId};

type Routes = BTreeMap<(u128, u8), NextHopId>;

/// The writer of a forwarding table: owns the routes, changes them, publishes snapshots.
#[derive(Clone, Debug)]
pub struct Fib<A> {
    routes: Arc<Routes>,
    family: PhantomData<A>,
}

/// An immutable snapshot of a [`Fib`], for workers: lookups never wait and never see a half-made change.
#[derive(Clone, Debug)]
pub struct FibReader<A> {
    routes: Arc<Routes>,
    family: PhantomData<A>,
}

impl<A: Address> Default for Fib<A> {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: Address> Fib<A> {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self {
            routes: Arc::default(),
            family: PhantomData,
        }
    }

    /// Builds a table from `routes`; of two routes for one prefix the later wins.
    ///
    /// # Errors
    ///
    /// [`FibError::Full`], as [`insert`](Self::insert).
    pub fn from_routes(
        routes: impl IntoIterator<Item = (A::Prefix, NextHopId)>,
    ) -> Result<Self, FibError> {
        let mut fib = Self::new();
        for (prefix, next_hop) in routes {
            fib.insert(prefix, next_hop)?;
        }
        Ok(fib)
    }

    /// Adds or replaces the route for `prefix`; gives the next hop that it had.
    ///
    /// # Errors
    ///
    /// [`FibError::Full`] when the table would outgrow its handles; the table is then unchanged.
    pub fn insert(
        &mut self,
        prefix: A::Prefix,
        next_hop: NextHopId,
    ) -> Result<Option<NextHopId>, FibError> {
        Ok(Arc::make_mut(&mut self.routes).insert(A::split(prefix), next_hop))
    }

    /// Removes the route for exactly `prefix`; gives the next hop that it had.
    pub fn remove(&mut self, prefix: A::Prefix) -> Option<NextHopId> {
        Arc::make_mut(&mut self.routes).remove(&A::split(prefix))
    }

    /// Publishes everything done so far: a snapshot for workers.
    #[must_use]
    pub fn reader(&mut self) -> FibReader<A> {
        FibReader {
            routes: Arc::clone(&self.routes),
            family: PhantomData,
        }
    }

    /// The next hop of the longest prefix that holds `address`.
    #[must_use]
    pub fn lookup(&self, address: A) -> Option<NextHopId> {
        longest(&self.routes, address).map(|(_, next_hop)| next_hop)
    }

    /// The longest prefix that holds `address`, and its next hop.
    #[must_use]
    pub fn lookup_prefix(&self, address: A) -> Option<(A::Prefix, NextHopId)> {
        longest(&self.routes, address)
    }

    /// The next hop of the route for exactly `prefix`.
    #[must_use]
    pub fn exact(&self, prefix: A::Prefix) -> Option<NextHopId> {
        self.routes.get(&A::split(prefix)).copied()
    }

    /// The routes whose prefix holds `prefix` (itself included), shortest first.
    pub fn covering(&self, prefix: A::Prefix) -> impl Iterator<Item = (A::Prefix, NextHopId)> {
        let (bits, len) = A::split(prefix);
        (0..=len).filter_map(move |l| {
            let key = (bits & prefix_mask(l), l);
            Some((A::join(key.0, l), *self.routes.get(&key)?))
        })
    }

    /// The routes whose prefix lies in `prefix` (itself included), in order of address, then length.
    pub fn covered(&self, prefix: A::Prefix) -> impl Iterator<Item = (A::Prefix, NextHopId)> {
        let (bits, len) = A::split(prefix);
        self.routes
            .range((bits, len)..=(bits | !prefix_mask(len), A::BITS))
            .filter(move |((_, l), _)| *l >= len)
            .map(|((bits, len), next_hop)| (A::join(*bits, *len), *next_hop))
    }

    /// All routes, in order of address, then length.
    pub fn iter(&self) -> impl Iterator<Item = (A::Prefix, NextHopId)> {
        self.routes
            .iter()
            .map(|((bits, len), next_hop)| (A::join(*bits, *len), *next_hop))
    }

    /// The number of routes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether there is no route.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// The octets that the table takes.
    #[must_use]
    pub fn memory(&self) -> FibMemory {
        FibMemory::default()
    }
}

impl<A: Address> FibReader<A> {
    /// The next hop of the longest prefix that holds `address`.
    #[must_use]
    pub fn lookup(&self, address: A) -> Option<NextHopId> {
        longest(&self.routes, address).map(|(_, next_hop)| next_hop)
    }

    /// Looks up each of `addresses` and writes the answer to the same place in `next_hops`.
    ///
    /// When the two differ in length, only as many as the shorter holds are done.
    pub fn lookup_batch(&self, addresses: &[A], next_hops: &mut [Option<NextHopId>]) {
        for (address, next_hop) in addresses.iter().zip(next_hops) {
            *next_hop = self.lookup(*address);
        }
    }

    /// The longest prefix that holds `address`, and its next hop.
    #[must_use]
    pub fn lookup_prefix(&self, address: A) -> Option<(A::Prefix, NextHopId)> {
        longest(&self.routes, address)
    }
}

fn longest<A: Address>(routes: &Routes, address: A) -> Option<(A::Prefix, NextHopId)> {
    let bits = address.to_key();
    (0..=A::BITS).rev().find_map(|len| {
        let key = (bits & prefix_mask(len), len);
        Some((A::join(key.0, len), *routes.get(&key)?))
    })
}
