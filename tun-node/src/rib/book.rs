//! What is published: the tables for the workers, and the book of routes and peers for people.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use parking_lot::RwLock;
use warren_core::tables::{NextHop, Tables, Tunnel};
use warren_core::units::Epoch;

use super::update::SourceKind;
use crate::shortcut::Generation;

/// What a [`Rib`](super::Rib) publishes; one for the whole process.
#[derive(Debug)]
pub struct Published {
    /// The epoch of `tables`, stored after them.
    pub(super) epoch: AtomicU64,
    pub(super) tables: RwLock<Arc<Tables>>,
    pub(super) book: RwLock<Book>,
    /// What else is told the epoch, where there is something.
    generation: OnceLock<Generation>,
}

impl Published {
    pub(super) fn new(tables: Arc<Tables>) -> Self {
        Self {
            epoch: AtomicU64::new(tables.epoch().0),
            tables: RwLock::new(tables),
            book: RwLock::default(),
            generation: OnceLock::new(),
        }
    }

    /// Makes `tables` those that workers take next.
    pub(super) fn put(&self, tables: Arc<Tables>) {
        let epoch = tables.epoch().0;
        *self.tables.write() = tables;
        self.epoch.store(epoch, Ordering::Release);
        if let Some(generation) = self.generation.get() {
            generation.publish(Epoch(epoch));
        }
    }
}

/// Routes and peers with what people want to know of them.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) rows: BTreeMap<IpNet, Row>,
    pub(super) peers: HashMap<IpAddr, BookPeer>,
}

/// A route of the book.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Row {
    pub(super) origin: Origin,
    pub(super) target: Target,
}

/// Where a route leads, by names that stay when the way changes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Target {
    Local,
    Peer(IpAddr),
    Peers(Vec<IpAddr>),
    Direct(Option<IpAddr>),
    Blackhole,
    Prohibit,
}

/// A peer of the book.
#[derive(Debug)]
pub(super) struct BookPeer {
    pub(super) name: String,
    pub(super) tunnel: Tunnel,
    pub(super) prefixes: BTreeSet<IpNet>,
}

impl Book {
    pub(super) fn next_hop(&self, target: &Target) -> NextHop {
        let tunnel = |address: &IpAddr| self.peers.get(address).map(|peer| peer.tunnel);
        match target {
            Target::Local => NextHop::Local,
            Target::Blackhole => NextHop::Blackhole,
            Target::Prohibit => NextHop::Prohibit,
            Target::Direct(gateway) => NextHop::Direct { gateway: *gateway },
            Target::Peer(address) => tunnel(address).map_or(NextHop::Blackhole, NextHop::Tunnel),
            Target::Peers(addresses) => {
                let tunnels: Vec<Tunnel> = addresses.iter().filter_map(tunnel).collect();
                match tunnels.as_slice() {
                    [] => NextHop::Blackhole,
                    [only] => NextHop::Tunnel(*only),
                    _ => NextHop::EqualCost(tunnels),
                }
            }
        }
    }

    fn route(&self, prefix: IpNet, row: &Row) -> RibRoute {
        RibRoute {
            prefix,
            origin: row.origin,
            next_hop: self.next_hop(&row.target),
        }
    }
}

/// A reader of what a [`Rib`](super::Rib) publishes, for another thread.
#[derive(Clone, Debug)]
pub struct TablesReader {
    pub(super) published: Arc<Published>,
}

impl TablesReader {
    /// From here on the programs of the short way are told the epoch, too, whenever tables are
    /// published. To be called once.
    pub fn tell(&self, generation: Generation) {
        let told = self.published.generation.get_or_init(|| generation);
        // What was published before it was there.
        told.publish(self.tables().epoch());
    }

    /// The newest tables, if they are newer than those of `seen`. One atomic load where they are
    /// not.
    #[must_use]
    pub fn newer_than(&self, seen: Epoch) -> Option<Arc<Tables>> {
        if self.published.epoch.load(Ordering::Acquire) == seen.0 {
            return None;
        }
        Some(self.tables())
    }

    /// The newest tables.
    #[must_use]
    pub fn tables(&self) -> Arc<Tables> {
        Arc::clone(&self.published.tables.read())
    }

    /// Everything, with the names that people want to see. Takes time in proportion.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let book = self.published.book.read();
        let rows = book.rows.iter();
        let routes = rows.map(|(prefix, row)| book.route(*prefix, row)).collect();
        let mut peers: Vec<RibPeer> = book.peers.values().map(RibPeer::of).collect();
        peers.sort_by_key(|peer| peer.tunnel.peer);
        Snapshot {
            tables: self.tables(),
            routes,
            peers,
        }
    }

    /// The epoch, the number of routes, and `count` of them from number `first` on.
    #[must_use]
    pub fn routes(&self, first: usize, count: usize) -> (Arc<Tables>, usize, Vec<RibRoute>) {
        let book = self.published.book.read();
        let rows = book.rows.iter().skip(first).take(count);
        let routes = rows.map(|(prefix, row)| book.route(*prefix, row)).collect();
        (self.tables(), book.rows.len(), routes)
    }

    /// The route of exactly `prefix`.
    #[must_use]
    pub fn route(&self, prefix: IpNet) -> Option<RibRoute> {
        let book = self.published.book.read();
        let row = book.rows.get(&prefix)?;
        Some(book.route(prefix, row))
    }

    /// How many routes and peers there are.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let book = self.published.book.read();
        (book.rows.len(), book.peers.len())
    }
}

/// One generation: the tables and what they were made of.
#[derive(Debug)]
pub struct Snapshot {
    /// What the engines look up.
    pub tables: Arc<Tables>,
    /// Every route, in order of its prefix.
    pub routes: Vec<RibRoute>,
    /// Every peer, in the order of the tables.
    pub peers: Vec<RibPeer>,
}

/// A route and where it comes from.
#[derive(Clone, Debug)]
pub struct RibRoute {
    /// Where it leads, without host bits.
    pub prefix: IpNet,
    /// Who says so.
    pub origin: Origin,
    /// What happens to a packet.
    pub next_hop: NextHop,
}

impl RibRoute {
    /// The ways that a packet may take; none but for tunnels.
    #[must_use]
    pub fn tunnels(&self) -> &[Tunnel] {
        match &self.next_hop {
            NextHop::Tunnel(tunnel) => std::slice::from_ref(tunnel),
            NextHop::EqualCost(tunnels) => tunnels,
            NextHop::Direct { .. } | NextHop::Blackhole | NextHop::Prohibit | NextHop::Local => &[],
        }
    }

    /// Whether the host is to send such packets to the device: everything but what stays outside
    /// the overlay. A blackhole too, so that it is the engine that drops and counts.
    #[must_use]
    pub const fn leads_to_device(&self) -> bool {
        match self.next_hop {
            NextHop::Tunnel(_)
            | NextHop::EqualCost(_)
            | NextHop::Blackhole
            | NextHop::Prohibit
            | NextHop::Local => true,
            NextHop::Direct { .. } => false,
        }
    }
}

/// Who says that there is a route.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// The node owns the prefix.
    Node,
    /// A configured peer owns the prefix.
    Peer,
    /// A static route.
    Static,
    /// A source says so.
    Source(SourceKind),
}

impl Origin {
    /// The name in tables and machine output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Peer | Self::Source(SourceKind::Config) => "peer",
            Self::Static => "static",
            Self::Source(source) => source.name(),
        }
    }
}

/// A peer with what belongs to it.
#[derive(Clone, Debug)]
pub struct RibPeer {
    /// Its name.
    pub name: String,
    /// The way to it.
    pub tunnel: Tunnel,
    /// What it owns.
    pub prefixes: Vec<IpNet>,
}

impl RibPeer {
    fn of(peer: &BookPeer) -> Self {
        Self {
            name: peer.name.clone(),
            tunnel: peer.tunnel,
            prefixes: peer.prefixes.iter().copied().collect(),
        }
    }
}
