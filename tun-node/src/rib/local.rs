//! What this host's own files say: peers, their prefixes, static routes.
//!
//! Peers and prefixes go through the [`Reconciler`](super::Reconciler) like those of every other
//! source, as [`SourceKind::Config`] and [`SourceKind::File`]. What that cannot say (several
//! encapsulations by preference, DSCP, routes over several peers) goes to the [`Rib`](super::Rib)
//! directly.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use warren_core::units::{Family, Time};

use super::event::{Event, Identity, Settings};
use super::reconcile::Reconciler;
use super::tables::{Rib, Terms};
use super::update::{
    Content, Continuity, Entry, Remote, RemoteRoute, SourceKind, SourceUpdate, UpdateKind, Via,
};
use crate::config::{Config, Peer, PeerMode, Route, RouteAction, RouteNext};

/// Peers and static routes of the configuration and of route files.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LocalRoutes {
    /// Each with the source and the key that it has there; of two at one address the first counts.
    pub peers: Vec<(SourceKind, Arc<str>, Arc<Peer>)>,
    /// Static routes; of two with one prefix the first counts.
    pub statics: Vec<StaticRoute>,
}

/// A static route.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StaticRoute {
    /// Where it leads, without host bits.
    pub prefix: IpNet,
    /// How.
    pub next: StaticNext,
}

/// Where a static route leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StaticNext {
    /// To one of these peers, by their underlay addresses.
    Peers(Vec<IpAddr>),
    /// Nowhere.
    Action(RouteAction),
}

impl LocalRoutes {
    /// Those of a configuration without route files.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let mut routes = Self::default();
        let of_config = |_| (SourceKind::Config, String::new());
        routes.add(&config.peers, &config.routes, of_config);
        routes
    }

    /// Adds peers and routes. `origin` gives for each peer, by its index, the source and what its
    /// key begins with.
    pub fn add(
        &mut self,
        peers: &[Peer],
        routes: &[Route],
        origin: impl Fn(usize) -> (SourceKind, String),
    ) {
        for route in routes {
            let next = match &route.next {
                RouteNext::Via(indices) => {
                    let peers = indices.iter().filter_map(|index| peers.get(*index));
                    StaticNext::Peers(peers.map(|peer| peer.address).collect())
                }
                RouteNext::Action(action) => StaticNext::Action(*action),
            };
            self.statics.push(StaticRoute {
                prefix: route.prefix,
                next,
            });
        }
        for (index, peer) in peers.iter().enumerate() {
            let (source, prefix) = origin(index);
            let key = Arc::from(format!("{prefix}{}", peer.name));
            self.peers.push((source, key, Arc::new(peer.clone())));
        }
    }

    /// The peers by their addresses.
    pub(super) fn by_address(&self) -> HashMap<IpAddr, Arc<Peer>> {
        let mut peers = HashMap::with_capacity(self.peers.len());
        for (_, _, peer) in &self.peers {
            let place = peers.entry(peer.address);
            place.or_insert_with(|| Arc::clone(peer));
        }
        peers
    }
}

impl Rib {
    /// The published table of a configuration alone, as it is before any other source speaks; for
    /// tests and fuzzing.
    ///
    /// # Errors
    ///
    /// Sentences about what the tables refuse, which a valid configuration of less than 32,767
    /// peers never brings about.
    pub fn of_config(config: &Config) -> Result<Self, Vec<String>> {
        let mut rib = Self::new(config.local(), Terms::of(config, HashSet::new()));
        let routes = LocalRoutes::of(config);
        rib.set_local_routes(&routes);
        let mut reconciler = Reconciler::new(Settings::default(), Identity::default());
        let update = config_update(SourceKind::Config, config, &routes, 1);
        let outcome = reconciler.handle(Event::Update(update), Time::ZERO);
        rib.apply(&outcome.routes);
        let effects = rib.publish();
        let refused: Vec<String> = outcome.alarms.into_iter().chain(effects.refused).collect();
        if refused.is_empty() {
            Ok(rib)
        } else {
            Err(refused)
        }
    }
}

/// What the files say, as the update of one of their sources.
#[must_use]
pub fn config_update(
    source: SourceKind,
    config: &Config,
    routes: &LocalRoutes,
    position: u64,
) -> SourceUpdate {
    let mut entries = Vec::new();
    if source == SourceKind::Config && !config.node.prefixes.is_empty() {
        entries.push(own_entry(config));
    }
    for (rank, (_, key, peer)) in
        (1..).zip(routes.peers.iter().filter(|(kind, ..)| *kind == source))
    {
        let via = Via {
            remote: peer.address,
            encapsulation: match peer.mode {
                PeerMode::Direct => None,
                PeerMode::Always | PeerMode::CrossSubnet => Some(peer.encapsulation),
            },
            underlay_mtu: None,
        };
        let prefixes = peer.prefixes.iter();
        entries.push(Entry {
            key: Arc::clone(key),
            rank,
            content: Content::Remote(Arc::new(Remote {
                node: Arc::from(peer.name.as_str()),
                routes: prefixes
                    .map(|prefix| RemoteRoute {
                        prefix: *prefix,
                        via,
                    })
                    .collect(),
            })),
        });
    }
    SourceUpdate {
        source,
        kind: UpdateKind::Full {
            entries,
            position,
            continuity: Continuity::Same,
        },
    }
}

/// The node's own prefixes.
fn own_entry(config: &Config) -> Entry {
    let node = &config.node;
    let underlay = |prefix: &IpNet| {
        let family = match prefix {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        };
        let own = node.underlay(family);
        own.or_else(|| node.underlay(Family::V4))
            .or_else(|| node.underlay(Family::V6))
    };
    let prefixes = node.prefixes.iter();
    let routes = prefixes.filter_map(|prefix| {
        let via = Via {
            remote: underlay(prefix)?,
            encapsulation: None,
            underlay_mtu: None,
        };
        Some(RemoteRoute {
            prefix: *prefix,
            via,
        })
    });
    Entry {
        key: Arc::from("node"),
        rank: 0,
        content: Content::Own(Arc::new(Remote {
            node: Arc::from(node.name.as_str()),
            routes: routes.collect(),
        })),
    }
}
