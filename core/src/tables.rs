//! What the engine knows: peers, next hops, routes and this node's own addresses, as one immutable
//! snapshot.
//!
//! A [`TableWriter`] is the one way to change it. It belongs to the control plane; each
//! [`publish`](TableWriter::publish) makes a new [`Tables`] of a later [`Epoch`], which engines
//! take between batches. Everything a packet needs is resolved when the tables are built: a next
//! hop holds the addresses, the encapsulation and the MTU, so that the packet path follows no
//! further reference.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use ipnet::IpNet;

use crate::encap::Encapsulation;
use crate::fib::{Address, Fib, FibError, FibReader, NextHopId, SimdLevel};
use crate::units::{Epoch, Family, MacAddr, Mtu, Vni};

/// The number of a [`Peer`] in its [`Tables`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PeerId(u16);

impl PeerId {
    /// The number itself.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Another node of the overlay.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Peer {
    /// Its name, for people.
    pub name: String,
    /// The outer source addresses that it may send from.
    pub underlay: Vec<IpAddr>,
    /// What decapsulation does with the DSCP of the outer header.
    pub dscp: DscpMode,
}

impl Peer {
    /// Whether it only stands for a number that no peer has.
    #[must_use]
    pub const fn is_vacant(&self) -> bool {
        self.name.is_empty() && self.underlay.is_empty()
    }

    const fn vacant() -> Self {
        Self {
            name: String::new(),
            underlay: Vec::new(),
            dscp: DscpMode::Pipe(0),
        }
    }
}

/// Where a packet goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NextHop {
    /// On the underlay's own link, without encapsulation; `gateway` is the destination itself when
    /// absent.
    Direct {
        /// The router on the link.
        gateway: Option<IpAddr>,
    },
    /// Through a tunnel.
    Tunnel(Tunnel),
    /// Through one of several tunnels of equal cost; a flow stays on one. Never empty.
    EqualCost(Vec<Tunnel>),
    /// Nowhere, silently.
    Blackhole,
    /// Nowhere, and the sender is told.
    Prohibit,
    /// To this node's own device.
    Local,
}

/// One way to a peer: everything that encapsulation needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tunnel {
    /// The peer at the other end.
    pub peer: PeerId,
    /// This node's underlay address: the outer source.
    pub local: IpAddr,
    /// The peer's underlay address: the outer destination; of the same family.
    pub remote: IpAddr,
    /// How packets are wrapped.
    pub encapsulation: Encapsulation,
    /// The largest inner packet that the way carries.
    pub mtu: Mtu,
    /// TTL or hop limit of the outer header.
    pub hop_limit: u8,
    /// What the DSCP of the outer header is.
    pub dscp: DscpMode,
    /// What the ECN bits of the outer header are.
    pub ecn: EcnMode,
}

impl Tunnel {
    /// The family of the underlay.
    #[must_use]
    pub const fn underlay_family(&self) -> Family {
        Family::of(self.remote)
    }
}

/// How DSCP crosses the tunnel. RFC 2983.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum DscpMode {
    /// The outer header has this DSCP (6 bits), whatever is inside; the inner one is left alone.
    Pipe(u8),
    /// The inner DSCP is copied out and, at the other end, back in.
    Uniform,
    /// The outer DSCP follows from the inner one by a table; the inner one is left alone.
    Map(DscpMap),
}

/// Outer DSCP by inner DSCP: what the domain of the underlay calls the class that the overlay calls
/// otherwise. RFC 2983 section 4.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct DscpMap([u8; 64]);

impl DscpMap {
    /// Makes a map; of each value the low six bits count.
    #[must_use]
    pub const fn new(outer_by_inner: [u8; 64]) -> Self {
        Self(outer_by_inner)
    }

    /// The outer DSCP for an inner packet whose DSCP is `inner` (six bits).
    #[must_use]
    pub const fn outer(&self, inner: u8) -> u8 {
        // `as_slice` and a mask: the index is below 64.
        match self.0.as_slice().split_at_checked((inner & 0x3f) as usize) {
            Some((_, [outer, ..])) => *outer & 0x3f,
            Some((_, [])) | None => 0,
        }
    }
}

/// How ECN is written when encapsulating. RFC 6040 section 4.1.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum EcnMode {
    /// The inner bits are copied: the other end is known to follow RFC 6040.
    Normal,
    /// The outer header says "not capable".
    Compatibility,
}

/// What this node is: its own addresses and what it receives.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Local {
    /// Its addresses inside the overlay; the first of each family is the source of ICMP errors.
    pub addresses: Vec<IpAddr>,
    /// Its addresses on the underlay.
    pub underlay: Vec<IpAddr>,
    /// Its VTEP address: the inner Ethernet source.
    pub vtep_mac: MacAddr,
    /// What it decapsulates.
    pub receive: Receive,
}

impl Local {
    /// The address that ICMP errors of `family` come from.
    #[must_use]
    pub fn icmp_source(&self, family: Family) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| Family::of(*address) == family)
    }
}

/// Which encapsulations this node decapsulates, on which UDP ports.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Receive {
    /// VXLAN ports.
    pub vxlan: Vec<u16>,
    /// VXLAN-GPE ports.
    pub vxlan_gpe: Vec<u16>,
    /// Geneve ports.
    pub geneve: Vec<u16>,
    /// FOU and GUE ports: the first nibble of the payload tells which it is.
    pub fou_gue: Vec<u16>,
    /// Protocols 4 and 41.
    pub ipip: bool,
    /// The networks that exist here.
    pub vnis: Vec<Vni>,
    /// Whether VXLAN headers with reserved bits set are refused, as the Linux device does.
    pub strict_vxlan: bool,
}

/// An immutable snapshot of everything the engine looks up; see the [module](self).
#[derive(Debug)]
pub struct Tables {
    epoch: Epoch,
    local: Local,
    peers: Vec<Arc<Peer>>,
    peer_by_underlay: HashMap<IpAddr, PeerId, FixedState>,
    next_hops: Vec<NextHop>,
    fib_v4: FibReader<Ipv4Addr>,
    fib_v6: FibReader<Ipv6Addr>,
}

impl Tables {
    /// The generation of the snapshot.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// This node.
    #[must_use]
    pub const fn local(&self) -> &Local {
        &self.local
    }

    /// All peers, in the order of their numbers. One that was removed leaves a vacant number, whose
    /// peer has neither name nor address ([`Peer::is_vacant`]).
    #[must_use]
    pub fn peers(&self) -> &[Arc<Peer>] {
        &self.peers
    }

    /// One peer.
    #[must_use]
    pub fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id.index()).map(Arc::as_ref)
    }

    /// The peer that sends from the outer address `source`.
    #[must_use]
    pub fn peer_by_underlay(&self, source: IpAddr) -> Option<PeerId> {
        self.peer_by_underlay.get(&source).copied()
    }

    /// One next hop.
    #[must_use]
    pub fn next_hop(&self, id: NextHopId) -> Option<&NextHop> {
        self.next_hops.get(id.index())
    }

    /// The IPv4 routes.
    #[must_use]
    pub const fn fib_v4(&self) -> &FibReader<Ipv4Addr> {
        &self.fib_v4
    }

    /// The IPv6 routes.
    #[must_use]
    pub const fn fib_v6(&self) -> &FibReader<Ipv6Addr> {
        &self.fib_v6
    }

    /// The same tables, looked up with no more than `level` of the machine's instructions: for tests and comparisons.
    #[must_use]
    pub fn with_simd_level(&self, level: SimdLevel) -> Self {
        Self {
            epoch: self.epoch,
            local: self.local.clone(),
            peers: self.peers.clone(),
            peer_by_underlay: self.peer_by_underlay.clone(),
            next_hops: self.next_hops.clone(),
            fib_v4: self.fib_v4.clone().with_simd_level(level),
            fib_v6: self.fib_v6.clone().with_simd_level(level),
        }
    }

    /// Every route, IPv4 first, in order of address, then length.
    pub fn routes(&self) -> impl Iterator<Item = (IpNet, &NextHop)> {
        let v4 = self.fib_v4.iter().map(|(prefix, id)| (prefix.into(), id));
        let v6 = self.fib_v6.iter().map(|(prefix, id)| (prefix.into(), id));
        v4.chain(v6)
            .filter_map(|(prefix, id)| Some((prefix, self.next_hop(id)?)))
    }

    /// The next hop of the route for exactly `prefix`.
    #[must_use]
    pub fn route(&self, prefix: IpNet) -> Option<&NextHop> {
        let id = match prefix {
            IpNet::V4(prefix) => self.fib_v4.exact(prefix),
            IpNet::V6(prefix) => self.fib_v6.exact(prefix),
        };
        self.next_hop(id?)
    }

    /// The next hop of the longest prefix that holds `address`.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<&NextHop> {
        let id = match address {
            IpAddr::V4(address) => self.fib_v4.lookup(address),
            IpAddr::V6(address) => self.fib_v6.lookup(address),
        };
        self.next_hop(id?)
    }

    /// Like [`lookup`](Self::lookup), with the prefix that matched.
    #[must_use]
    pub fn lookup_prefix(&self, address: IpAddr) -> Option<(IpNet, &NextHop)> {
        let (prefix, id) = match address {
            IpAddr::V4(address) => self
                .fib_v4
                .lookup_prefix(address)
                .map(|(prefix, id)| (prefix.into(), id))?,
            IpAddr::V6(address) => self
                .fib_v6
                .lookup_prefix(address)
                .map(|(prefix, id)| (prefix.into(), id))?,
        };
        Some((prefix, self.next_hop(id)?))
    }
}

/// What a [`TableWriter`] refuses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TableError {
    /// There are as many peers, next hops or routes as the numbers can name.
    Full,
    /// Another peer sends from that address already.
    UnderlayTaken(IpAddr),
    /// The next hop or peer number is not of this writer.
    UnknownNumber,
    /// An equal-cost set is empty.
    EmptySet,
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the table is full"),
            Self::UnderlayTaken(address) => {
                write!(f, "another peer has the underlay address {address}")
            }
            Self::UnknownNumber => f.write_str("no next hop or peer has that number"),
            Self::EmptySet => f.write_str("an equal-cost set needs at least one tunnel"),
        }
    }
}

impl core::error::Error for TableError {}

/// Enters routes one by one, or with the table built anew where that is less work.
fn fill<A: Address>(fib: &mut Fib<A>, routes: &[(A::Prefix, NextHopId)]) -> Result<(), FibError> {
    if routes.len() >= FILL_LEAST && routes.len() >= fib.len() {
        // Of two routes for one prefix the later wins.
        let all = fib.iter().chain(routes.iter().copied());
        *fib = Fib::from_routes(all)?;
        return Ok(());
    }
    for (prefix, next_hop) in routes {
        fib.insert(*prefix, *next_hop)?;
    }
    Ok(())
}

/// Fewer routes than this are entered one by one.
const FILL_LEAST: usize = 256;

/// The one way to make and change [`Tables`].
#[derive(Debug)]
pub struct TableWriter {
    epoch: Epoch,
    local: Local,
    peers: Vec<Arc<Peer>>,
    vacant_peers: Vec<PeerId>,
    peer_by_underlay: HashMap<IpAddr, PeerId, FixedState>,
    next_hops: Vec<NextHop>,
    vacant_next_hops: Vec<NextHopId>,
    fib_v4: Fib<Ipv4Addr>,
    fib_v6: Fib<Ipv6Addr>,
}

impl TableWriter {
    /// Starts with no peers and no routes.
    #[must_use]
    pub fn new(local: Local) -> Self {
        Self {
            epoch: Epoch::default(),
            local,
            peers: Vec::new(),
            vacant_peers: Vec::new(),
            peer_by_underlay: HashMap::default(),
            next_hops: Vec::new(),
            vacant_next_hops: Vec::new(),
            fib_v4: Fib::new(),
            fib_v6: Fib::new(),
        }
    }

    /// Goes on behind the generation `last` of another writer, whose tables these replace.
    #[must_use]
    pub const fn after(mut self, last: Epoch) -> Self {
        self.epoch = last;
        self
    }

    /// Adds a peer.
    ///
    /// # Errors
    ///
    /// [`TableError::UnderlayTaken`] when another peer has one of its addresses;
    /// [`TableError::Full`] beyond 65,535 peers.
    pub fn add_peer(&mut self, peer: Peer) -> Result<PeerId, TableError> {
        let id = match self.vacant_peers.last() {
            Some(id) => *id,
            None => PeerId(u16::try_from(self.peers.len()).map_err(|_| TableError::Full)?),
        };
        self.claim_underlay(id, &peer)?;
        if self.vacant_peers.pop().is_some() {
            self.put_peer(id, peer);
        } else {
            self.peers.push(Arc::new(peer));
        }
        Ok(id)
    }

    /// Puts `peer` in place of the one of that number, which keeps its counters if the name is the
    /// same.
    ///
    /// # Errors
    ///
    /// [`TableError::UnderlayTaken`] when another peer has one of its addresses;
    /// [`TableError::UnknownNumber`]. Nothing is changed then.
    pub fn set_peer(&mut self, id: PeerId, peer: Peer) -> Result<(), TableError> {
        let Some(before) = self.peers.get(id.index()).cloned() else {
            return Err(TableError::UnknownNumber);
        };
        self.claim_underlay(id, &peer)?;
        for address in &before.underlay {
            if !peer.underlay.contains(address) {
                self.peer_by_underlay.remove(address);
            }
        }
        self.put_peer(id, peer);
        Ok(())
    }

    /// Takes a peer away; its number is given to the next one that is added. No next hop that is
    /// in use may name it any more.
    pub fn remove_peer(&mut self, id: PeerId) {
        let Some(before) = self.peers.get(id.index()).cloned() else {
            return;
        };
        if before.is_vacant() {
            return;
        }
        for address in &before.underlay {
            self.peer_by_underlay.remove(address);
        }
        self.put_peer(id, Peer::vacant());
        self.vacant_peers.push(id);
    }

    /// This node is another from here on: other addresses, other things that it receives.
    pub fn set_local(&mut self, local: Local) {
        self.local = local;
    }

    fn put_peer(&mut self, id: PeerId, peer: Peer) {
        if let Some(place) = self.peers.get_mut(id.index()) {
            *place = Arc::new(peer);
        }
    }

    /// Enters a peer's addresses as those of `id`.
    fn claim_underlay(&mut self, id: PeerId, peer: &Peer) -> Result<(), TableError> {
        let taken = |address: &&IpAddr| {
            let holder = self.peer_by_underlay.get(*address);
            holder.is_some_and(|holder| *holder != id)
        };
        if let Some(taken) = peer.underlay.iter().find(taken) {
            return Err(TableError::UnderlayTaken(*taken));
        }
        for address in &peer.underlay {
            self.peer_by_underlay.insert(*address, id);
        }
        Ok(())
    }

    /// The number of `next_hop`, which is added if no equal one is there.
    ///
    /// # Errors
    ///
    /// [`TableError::Full`] beyond 32,767 next hops; [`TableError::EmptySet`];
    /// [`TableError::UnknownNumber`] when it names a peer that was not added.
    pub fn next_hop(&mut self, next_hop: NextHop) -> Result<NextHopId, TableError> {
        self.check(&next_hop)?;
        let known = self.next_hops.iter().position(|known| *known == next_hop);
        let known = known
            .and_then(|index| u16::try_from(index).ok())
            .and_then(NextHopId::new)
            .filter(|id| !self.vacant_next_hops.contains(id));
        match known {
            Some(id) => Ok(id),
            None => self.add_next_hop(next_hop),
        }
    }

    /// Adds a next hop under a number of its own, to be changed by
    /// [`set_next_hop`](Self::set_next_hop).
    ///
    /// # Errors
    ///
    /// As [`next_hop`](Self::next_hop).
    pub fn add_next_hop(&mut self, next_hop: NextHop) -> Result<NextHopId, TableError> {
        self.check(&next_hop)?;
        if let Some(id) = self.vacant_next_hops.pop() {
            self.put_next_hop(id, next_hop);
            return Ok(id);
        }
        let id = u16::try_from(self.next_hops.len())
            .ok()
            .and_then(NextHopId::new)
            .ok_or(TableError::Full)?;
        self.next_hops.push(next_hop);
        Ok(id)
    }

    /// Puts `next_hop` in place of the one of that number, for every route that leads to it.
    ///
    /// # Errors
    ///
    /// [`TableError::EmptySet`]; [`TableError::UnknownNumber`], of the next hop or of a peer.
    pub fn set_next_hop(&mut self, id: NextHopId, next_hop: NextHop) -> Result<(), TableError> {
        self.check(&next_hop)?;
        if id.index() >= self.next_hops.len() {
            return Err(TableError::UnknownNumber);
        }
        self.put_next_hop(id, next_hop);
        Ok(())
    }

    /// Takes a next hop away that no route leads to any more; its number is used again.
    pub fn remove_next_hop(&mut self, id: NextHopId) {
        if id.index() < self.next_hops.len() && !self.vacant_next_hops.contains(&id) {
            self.put_next_hop(id, NextHop::Blackhole);
            self.vacant_next_hops.push(id);
        }
    }

    fn put_next_hop(&mut self, id: NextHopId, next_hop: NextHop) {
        if let Some(place) = self.next_hops.get_mut(id.index()) {
            *place = next_hop;
        }
    }

    fn check(&self, next_hop: &NextHop) -> Result<(), TableError> {
        let tunnels = match next_hop {
            NextHop::EqualCost(tunnels) if tunnels.is_empty() => return Err(TableError::EmptySet),
            NextHop::EqualCost(tunnels) => tunnels.as_slice(),
            NextHop::Tunnel(tunnel) => core::slice::from_ref(tunnel),
            NextHop::Direct { .. } | NextHop::Blackhole | NextHop::Prohibit | NextHop::Local => &[],
        };
        let mut unknown = tunnels
            .iter()
            .filter(|tunnel| tunnel.peer.index() >= self.peers.len());
        match unknown.next() {
            Some(_) => Err(TableError::UnknownNumber),
            None => Ok(()),
        }
    }

    /// Routes `prefix` (host bits are cut off) to a next hop, in place of what was there.
    ///
    /// # Errors
    ///
    /// [`TableError::UnknownNumber`]; [`TableError::Full`].
    pub fn insert(&mut self, prefix: IpNet, next_hop: NextHopId) -> Result<(), TableError> {
        if next_hop.index() >= self.next_hops.len() {
            return Err(TableError::UnknownNumber);
        }
        match prefix {
            IpNet::V4(prefix) => self.fib_v4.insert(prefix, next_hop),
            IpNet::V6(prefix) => self.fib_v6.insert(prefix, next_hop),
        }
        .map(drop)
        .map_err(|_| TableError::Full)
    }

    /// Routes many prefixes, as [`insert`](Self::insert) does one after the other. As many as there
    /// are already, or more, cost one pass over all, a tenth of what they cost one by one.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert); a part of them may be routed then.
    pub fn insert_all(
        &mut self,
        routes: impl IntoIterator<Item = (IpNet, NextHopId)>,
    ) -> Result<(), TableError> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (prefix, next_hop) in routes {
            if next_hop.index() >= self.next_hops.len() {
                return Err(TableError::UnknownNumber);
            }
            match prefix {
                IpNet::V4(prefix) => v4.push((prefix, next_hop)),
                IpNet::V6(prefix) => v6.push((prefix, next_hop)),
            }
        }
        let done = fill(&mut self.fib_v4, &v4).and_then(|()| fill(&mut self.fib_v6, &v6));
        done.map_err(|_| TableError::Full)
    }

    /// Removes the route of exactly `prefix` and returns whether there was one.
    pub fn remove(&mut self, prefix: IpNet) -> bool {
        match prefix {
            IpNet::V4(prefix) => self.fib_v4.remove(prefix),
            IpNet::V6(prefix) => self.fib_v6.remove(prefix),
        }
        .is_some()
    }

    /// Makes a snapshot of the next generation.
    pub fn publish(&mut self) -> Arc<Tables> {
        self.epoch.0 += 1;
        Arc::new(Tables {
            epoch: self.epoch,
            local: self.local.clone(),
            peers: self.peers.clone(),
            peer_by_underlay: self.peer_by_underlay.clone(),
            next_hops: self.next_hops.clone(),
            fib_v4: self.fib_v4.reader(),
            fib_v6: self.fib_v6.reader(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Routes of both families, some inside others, some twice.
    fn routes(from: u32, count: u32) -> Vec<(IpNet, NextHopId)> {
        let one = |number: u32| {
            let spread = number.wrapping_mul(0x9e37_79b1);
            let prefix = if number.is_multiple_of(3) {
                let address = Ipv6Addr::from(u128::from(spread) << 90);
                IpNet::new(address.into(), 40 + (number % 5) as u8)
            } else {
                let length = 12 + (number % 20) as u8;
                IpNet::new(Ipv4Addr::from(spread).into(), length)
            };
            let hop = NextHopId::new((number % 2) as u16).expect("a small number");
            (prefix.expect("a length").trunc(), hop)
        };
        (from..from + count)
            .chain(from..from + 5)
            .map(one)
            .collect()
    }

    fn writer() -> TableWriter {
        let mut writer = TableWriter::new(Local::default());
        for next_hop in [NextHop::Local, NextHop::Blackhole] {
            writer.next_hop(next_hop).expect("there is room");
        }
        writer
    }

    #[test]
    fn many_routes_at_once_are_the_same_as_one_after_the_other() {
        let (mut at_once, mut one_by_one) = (writer(), writer());
        // A table is built, added to, and built anew over what is there.
        for (from, count) in [(0, 1000), (1000, 20), (500, 5000)] {
            let routes = routes(from, count);
            at_once.insert_all(routes.clone()).expect("there is room");
            for (prefix, hop) in routes {
                one_by_one.insert(prefix, hop).expect("there is room");
            }
            let (ours, theirs) = (at_once.publish(), one_by_one.publish());
            assert!(ours.fib_v4().iter().eq(theirs.fib_v4().iter()));
            assert!(ours.fib_v6().iter().eq(theirs.fib_v6().iter()));
            assert!(ours.fib_v4().len() > 10 && ours.fib_v6().len() > 10);
            let listed: Vec<IpNet> = ours.routes().map(|(prefix, _)| prefix).collect();
            assert_eq!(listed.len(), ours.fib_v4().len() + ours.fib_v6().len());
            let exact = |prefix: &IpNet| ours.route(*prefix).is_some();
            assert!(listed.is_sorted() && listed.iter().all(exact));
        }
        let unknown = NextHopId::new(2).expect("a small number");
        let routes = [("10.0.0.0/8".parse().expect("a prefix"), unknown)];
        let refused = at_once.insert_all(routes);
        assert_eq!(refused, Err(TableError::UnknownNumber));
    }
}
