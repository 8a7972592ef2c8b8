//! Longest-prefix match (placeholder with the final names; the real tables replace it).
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::fmt::Debug;
use core::hash::Hash;
use core::net::{Ipv4Addr, Ipv6Addr};
use ipnet::{Ipv4Net, Ipv6Net};

/// The number of a next hop in the [`Tables`](crate::tables::Tables).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NextHopId(pub u16);

/// An address family that can be looked up.
pub trait Address: Copy + Debug + Eq + Hash + Ord + Sized {
    /// Its prefixes.
    type Prefix: Copy + Debug + Eq + Hash + Ord;
    /// Bits of the address.
    const BITS: u8;
    /// Its bits, left-aligned.
    fn prefix(self, len: u8) -> Self::Prefix;
    /// The prefix without host bits.
    fn trunc(prefix: Self::Prefix) -> Self::Prefix;
}
impl Address for Ipv4Addr {
    type Prefix = Ipv4Net;
    const BITS: u8 = 32;
    fn prefix(self, len: u8) -> Ipv4Net {
        Ipv4Net::new_assert(self, len).trunc()
    }
    fn trunc(prefix: Ipv4Net) -> Ipv4Net {
        prefix.trunc()
    }
}
impl Address for Ipv6Addr {
    type Prefix = Ipv6Net;
    const BITS: u8 = 128;
    fn prefix(self, len: u8) -> Ipv6Net {
        Ipv6Net::new_assert(self, len).trunc()
    }
    fn trunc(prefix: Ipv6Net) -> Ipv6Net {
        prefix.trunc()
    }
}

/// The table is full.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FibError;

/// Routes of one family.
#[derive(Clone, Debug, Default)]
pub struct Fib<A: Address> {
    routes: BTreeMap<A::Prefix, NextHopId>,
}

impl<A: Address> Fib<A> {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self {
            routes: BTreeMap::new(),
        }
    }
    /// Inserts a route and returns what it replaces.
    ///
    /// # Errors
    ///
    /// When the table is full.
    pub fn insert(
        &mut self,
        prefix: A::Prefix,
        next_hop: NextHopId,
    ) -> Result<Option<NextHopId>, FibError> {
        Ok(self.routes.insert(A::trunc(prefix), next_hop))
    }
    /// Removes a route.
    pub fn remove(&mut self, prefix: A::Prefix) -> Option<NextHopId> {
        self.routes.remove(&A::trunc(prefix))
    }
    /// A reader.
    #[must_use]
    pub fn reader(&self) -> FibReader<A> {
        FibReader {
            routes: Arc::new(self.routes.clone()),
        }
    }
}

/// A handle for lookups.
#[derive(Clone, Debug)]
pub struct FibReader<A: Address> {
    routes: Arc<BTreeMap<A::Prefix, NextHopId>>,
}

impl<A: Address> FibReader<A> {
    /// The next hop of the longest prefix that holds `address`.
    #[must_use]
    pub fn lookup(&self, address: A) -> Option<NextHopId> {
        self.lookup_prefix(address).map(|(_, next_hop)| next_hop)
    }
    /// The longest prefix too.
    #[must_use]
    pub fn lookup_prefix(&self, address: A) -> Option<(A::Prefix, NextHopId)> {
        (0..=A::BITS).rev().find_map(|len| {
            self.routes
                .get_key_value(&address.prefix(len))
                .map(|(prefix, id)| (*prefix, *id))
        })
    }
}
