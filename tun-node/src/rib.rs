//! Routes from every source, merged into one table and published to the workers.
//!
//! ```text
//!  configuration ──┐                     ┌─ Published ─────────────┐   once per batch
//!                  ├─> Rib ── publish ──>│ epoch   (atomic)        │<── TablesReader ── worker 0
//!  (later sources) ┘   one thread        │ snapshot (lock, Arc)    │<── TablesReader ── worker 1
//!                                        └─────────────────────────┘<── control socket, metrics
//! ```
//!
//! The [`Rib`] belongs to the thread that runs the control plane. A publication swaps an
//! `Arc<Snapshot>` under a lock and then raises the epoch; a worker reads the epoch, which is one
//! atomic load, and takes the lock only when it moved. So a packet never waits for a route, and a
//! worker sees a snapshot whole or not at all.
//!
//! The configuration is the only source there is. A further one hands its routes to the `Rib` the
//! same way: as rows with an origin, of which the `Rib` makes [`Tables`]. Opens no socket and
//! programs no kernel route; [`crate::node`] does.

mod event;
mod journal;
mod reconcile;
mod resolve;
mod update;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;
use parking_lot::RwLock;
use warren_core::encap::Encapsulation;
use warren_core::fib::NextHopId;
use warren_core::tables::{
    DscpMap, DscpMode, NextHop, Peer, PeerId, TableError, TableWriter, Tables, Tunnel,
};
use warren_core::units::{Epoch, Family, Mtu};

pub use event::{Event, Identity, Outcome, Quarantined, Settings, SourceStatus, Why};
pub use journal::{Journal, JournalEntry, What};
pub use reconcile::Reconciler;
pub use resolve::{LiveRoute, Offer, Order, RouteChange, Verdict};
pub use update::{
    Change, Content, Continuity, Entry, Refusal, Remote, RemoteRoute, SourceKind, SourceUpdate,
    UpdateKind, Via,
};

use crate::config::{self, Config, Dscp, PeerMode, RouteAction, RouteNext};

/// The routing information base: the one writer of [`Tables`]; see the [module](self).
#[derive(Debug)]
pub struct Rib {
    published: Arc<Published>,
    config: Config,
    /// Peers that the underlay's own link leads to.
    on_link: HashSet<IpAddr>,
}

/// How packets to a peer are wrapped at present.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Way {
    /// In what.
    pub encapsulation: Encapsulation,
    /// The largest inner packet.
    pub mtu: Mtu,
}

impl Rib {
    /// Builds the tables of a configuration and publishes them.
    ///
    /// # Errors
    ///
    /// [`RibError`] when the tables refuse a peer or a route, which a valid configuration of less
    /// than 65,535 peers never brings about.
    pub fn new(config: &Config) -> Result<Self, RibError> {
        Self::with_links(config, HashSet::new())
    }

    /// Like [`new`](Self::new), for peers of which those in `on_link` are reached without a
    /// router: what [`PeerMode::CrossSubnet`] asks.
    ///
    /// # Errors
    ///
    /// As `new`.
    pub fn with_links(config: &Config, on_link: HashSet<IpAddr>) -> Result<Self, RibError> {
        let draft = Draft::of(config, &on_link, &HashMap::new(), Epoch::default())?;
        let snapshot = Arc::new(draft.finish());
        Ok(Self {
            config: config.clone(),
            on_link,
            published: Arc::new(Published {
                epoch: AtomicU64::new(snapshot.tables.epoch().0),
                snapshot: RwLock::new(snapshot),
            }),
        })
    }

    /// Publishes tables in which the peers of these names are reached by these ways.
    ///
    /// # Errors
    ///
    /// [`RibError`]; the tables stay as they were.
    pub fn set_ways(&self, ways: HashMap<String, Way>) -> Result<(), RibError> {
        let last = self.published.snapshot.read().tables.epoch();
        let draft = Draft::of(&self.config, &self.on_link, &ways, last)?;
        let snapshot = Arc::new(draft.finish());
        let epoch = snapshot.tables.epoch().0;
        *self.published.snapshot.write() = snapshot;
        self.published.epoch.store(epoch, Ordering::Release);
        Ok(())
    }

    /// A reader for a worker or a reporter.
    #[must_use]
    pub fn reader(&self) -> TablesReader {
        TablesReader {
            published: Arc::clone(&self.published),
        }
    }
}

/// A reader of what a [`Rib`] publishes, for another thread.
#[derive(Clone, Debug)]
pub struct TablesReader {
    published: Arc<Published>,
}

impl TablesReader {
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
        Arc::clone(&self.published.snapshot.read().tables)
    }

    /// The newest snapshot, with the names that people want to see.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.published.snapshot.read())
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
}

impl Origin {
    /// The name in tables and machine output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Peer => "peer",
            Self::Static => "static",
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

/// Why tables could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RibError {
    /// A peer was refused.
    #[error("peer {name}: {source}")]
    Peer {
        /// The peer.
        name: String,
        /// Why.
        source: TableError,
    },
    /// A route was refused.
    #[error("route {prefix}: {source}")]
    Route {
        /// The route.
        prefix: IpNet,
        /// Why.
        source: TableError,
    },
    /// A peer's address has no counterpart on this node.
    #[error("peer {name}: this node has no underlay address of the family of {address}")]
    NoUnderlay {
        /// The peer.
        name: String,
        /// Its address.
        address: IpAddr,
    },
}

/// What is published; one for the whole process.
#[derive(Debug)]
struct Published {
    /// The epoch of `snapshot`, stored after it.
    epoch: AtomicU64,
    snapshot: RwLock<Arc<Snapshot>>,
}

/// Tables in the making.
struct Draft {
    writer: TableWriter,
    routes: Vec<RibRoute>,
    peers: Vec<RibPeer>,
}

impl Draft {
    fn of(
        config: &Config,
        on_link: &HashSet<IpAddr>,
        ways: &HashMap<String, Way>,
        last: Epoch,
    ) -> Result<Self, RibError> {
        let mut draft = Self {
            writer: TableWriter::new(config.local()).after(last),
            routes: Vec::new(),
            peers: Vec::with_capacity(config.peers.len()),
        };
        for peer in &config.peers {
            draft.add_peer(config, peer, ways.get(&peer.name))?;
        }
        for prefix in &config.node.prefixes {
            draft.add_route(*prefix, Origin::Node, NextHop::Local)?;
        }
        for (peer, prefixes) in draft.prefixes_by_peer() {
            for prefix in prefixes {
                // The underlay's own routes carry no family but that of their gateway.
                let same_family = prefix.addr().is_ipv4() == peer.remote.is_ipv4();
                let next_hop = if same_family && is_direct(config, on_link, peer.remote) {
                    NextHop::Direct {
                        gateway: Some(peer.remote),
                    }
                } else {
                    NextHop::Tunnel(peer)
                };
                draft.add_route(prefix, Origin::Peer, next_hop)?;
            }
        }
        for route in &config.routes {
            let next_hop = draft.next_hop_of(&route.next);
            draft.add_route(route.prefix, Origin::Static, next_hop)?;
        }
        draft.routes.sort_by_key(|route| route.prefix);
        Ok(draft)
    }

    fn finish(mut self) -> Snapshot {
        Snapshot {
            tables: self.writer.publish(),
            routes: self.routes,
            peers: self.peers,
        }
    }

    fn add_peer(
        &mut self,
        config: &Config,
        peer: &config::Peer,
        way: Option<&Way>,
    ) -> Result<(), RibError> {
        let name = || peer.name.clone();
        let local = config
            .node
            .underlay(Family::of(peer.address))
            .ok_or_else(|| RibError::NoUnderlay {
                name: name(),
                address: peer.address,
            })?;
        let dscp = dscp_mode(&peer.dscp);
        let id: PeerId = self
            .writer
            .add_peer(Peer {
                name: name(),
                underlay: vec![peer.address],
                dscp,
            })
            .map_err(|source| RibError::Peer {
                name: name(),
                source,
            })?;
        self.peers.push(RibPeer {
            name: name(),
            tunnel: Tunnel {
                peer: id,
                local,
                remote: peer.address,
                encapsulation: way.map_or(peer.encapsulation, |way| way.encapsulation),
                mtu: way.map_or(peer.mtu, |way| way.mtu),
                hop_limit: OUTER_HOP_LIMIT,
                dscp,
                ecn: peer.ecn,
            },
            prefixes: peer.prefixes.clone(),
        });
        Ok(())
    }

    fn add_route(
        &mut self,
        prefix: IpNet,
        origin: Origin,
        next_hop: NextHop,
    ) -> Result<(), RibError> {
        let refused = |source| RibError::Route { prefix, source };
        let id: NextHopId = self.writer.next_hop(next_hop.clone()).map_err(refused)?;
        self.writer.insert(prefix, id).map_err(refused)?;
        self.routes.push(RibRoute {
            prefix,
            origin,
            next_hop,
        });
        Ok(())
    }

    fn prefixes_by_peer(&self) -> Vec<(Tunnel, Vec<IpNet>)> {
        let peers = self.peers.iter();
        peers
            .map(|peer| (peer.tunnel, peer.prefixes.clone()))
            .collect()
    }

    fn next_hop_of(&self, next: &RouteNext) -> NextHop {
        match next {
            RouteNext::Via(peers) => {
                let tunnels: Vec<Tunnel> = peers
                    .iter()
                    .filter_map(|&index| self.peers.get(index))
                    .map(|peer| peer.tunnel)
                    .collect();
                match tunnels.as_slice() {
                    [only] => NextHop::Tunnel(*only),
                    _ => NextHop::EqualCost(tunnels),
                }
            }
            RouteNext::Action(RouteAction::Blackhole) => NextHop::Blackhole,
            RouteNext::Action(RouteAction::Prohibit) => NextHop::Prohibit,
            RouteNext::Action(RouteAction::Direct) => NextHop::Direct { gateway: None },
        }
    }
}

/// Whether packets to the peer at `address` go without encapsulation.
fn is_direct(config: &Config, on_link: &HashSet<IpAddr>, address: IpAddr) -> bool {
    let mut peers = config.peers.iter();
    let peer = peers.find(|peer| peer.address == address);
    peer.is_some_and(|peer| match peer.mode {
        PeerMode::Always => false,
        PeerMode::CrossSubnet => on_link.contains(&address),
        PeerMode::Direct => true,
    })
}

fn dscp_mode(dscp: &Dscp) -> DscpMode {
    match dscp {
        Dscp::Pipe(value) => DscpMode::Pipe(*value),
        Dscp::Uniform => DscpMode::Uniform,
        Dscp::Map(map) => DscpMode::Map(DscpMap::new(*map.table())),
    }
}

/// TTL or hop limit of outer headers, as Linux gives its tunnels. RFC 1700's default.
const OUTER_HOP_LIMIT: u8 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::example_config;

    fn example() -> Rib {
        let config = Config::parse(example_config(), "example.toml").expect("the example is valid");
        Rib::new(&config).expect("a valid configuration makes tables")
    }

    #[test]
    fn the_example_becomes_tables_that_lead_where_it_says() {
        let snapshot = example().reader().snapshot();
        let lookup = |address: &str| {
            let address = address.parse().expect("an address");
            snapshot.tables.lookup_prefix(address)
        };
        let (prefix, next_hop) = lookup("10.244.2.7").expect("beta owns it");
        assert_eq!(prefix.to_string(), "10.244.2.0/24");
        let NextHop::Tunnel(tunnel) = next_hop else {
            panic!("{next_hop:?}");
        };
        let peer = snapshot.tables.peer(tunnel.peer).expect("it was added");
        assert_eq!(peer.name, "beta");
        assert_eq!(tunnel.local.to_string(), "192.0.2.1");
        assert_eq!(lookup("10.244.1.9").map(|r| r.1), Some(&NextHop::Local));
        assert_eq!(
            lookup("10.244.200.1").map(|r| r.1),
            Some(&NextHop::Blackhole)
        );
        let Some((_, NextHop::EqualCost(tunnels))) = lookup("198.51.100.1") else {
            panic!("two peers share this route");
        };
        assert_eq!(tunnels.len(), 2);
        assert!(lookup("203.0.113.1").is_none());
    }

    #[test]
    fn a_reader_takes_tables_only_when_they_are_new() {
        let reader = example().reader();
        let tables = reader.newer_than(Epoch::default()).expect("the first");
        assert!(reader.newer_than(tables.epoch()).is_none());
    }

    #[test]
    fn what_is_direct_stays_out_of_the_device() {
        let text = example_config().replace("action = \"blackhole\"", "action = \"direct\"");
        let config = Config::parse(&text, "example.toml").expect("valid too");
        let snapshot = Rib::new(&config).expect("tables").reader().snapshot();
        let outside: Vec<_> = snapshot
            .routes
            .iter()
            .filter(|route| !route.leads_to_device())
            .map(|route| route.prefix.to_string())
            .collect();
        assert_eq!(outside, ["10.244.0.0/16"]);
    }
}
