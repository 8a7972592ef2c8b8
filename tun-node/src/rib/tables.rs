//! From decided routes to the tables of the engines, step by step: a change costs what it changes.
//!
//! Every peer, by its underlay address, has one number and one next hop in the [`TableWriter`]; its
//! routes lead to that next hop. So another way to a peer (another encapsulation, another MTU) is
//! one next hop put in place of another, however many prefixes the peer has, and a route that comes
//! or goes is one change of the forwarding table.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use warren_core::encap::Encapsulation;
use warren_core::fib::NextHopId;
use warren_core::tables::{
    DscpMap, DscpMode, EcnMode, Local, NextHop, Peer, PeerId, TableError, TableWriter, Tunnel,
};
use warren_core::units::{Family, Mtu};

use super::book::{Book, BookPeer, Origin, Published, Row, TablesReader, Target};
use super::local::{LocalRoutes, StaticNext};
use super::recall::{Recall, RecallWay};
use super::resolve::{LiveRoute, RouteChange};
use super::update::{SourceKind, Via};
use crate::config::{self, Config, Dscp, PeerMode, RouteAction};

/// The routing information base: the one writer of the tables; see the
/// [module](crate::rib).
#[derive(Debug)]
pub struct Rib {
    writer: TableWriter,
    published: Arc<Published>,
    terms: Terms,
    /// The files' own peers by their addresses.
    local_peers: HashMap<IpAddr, Arc<config::Peer>>,
    statics: BTreeMap<IpNet, StaticNext>,
    peers: HashMap<IpAddr, PeerState>,
    /// Which peer has which name.
    names: HashMap<String, IpAddr>,
    /// What the reconciler says, behind static routes too.
    live: BTreeMap<IpNet, LiveRoute>,
    /// Next hops of routes that lead to no one peer.
    others: HashMap<IpNet, NextHopId>,
    /// Routes that are in the book and enter the table when all are there.
    entered: Vec<(IpNet, NextHopId)>,
    /// What was routed from memory and is not decided yet.
    recalled: Vec<(IpNet, NextHopId)>,
    recalled_peers: Vec<Via>,
    /// Peers of which it is another question now whether a router lies between.
    relinked: HashSet<IpAddr>,
    /// Peers that came, went or changed since the last publication, and whether one went.
    changed: BTreeMap<IpAddr, bool>,
    refused: Vec<String>,
}

/// What follows from the configuration for every peer.
#[derive(Clone, Debug)]
pub struct Terms {
    /// This node's underlay addresses, IPv4 first.
    pub underlay: [Option<IpAddr>; 2],
    /// The largest outer packet that the underlay carries whole.
    pub underlay_mtu: Mtu,
    /// Peers that the underlay's own link leads to.
    pub on_link: HashSet<IpAddr>,
}

impl Terms {
    /// Those of a configuration.
    #[must_use]
    pub fn of(config: &Config, on_link: HashSet<IpAddr>) -> Self {
        Self {
            underlay: [Family::V4, Family::V6].map(|family| config.node.underlay(family)),
            underlay_mtu: config.device.underlay_mtu,
            on_link,
        }
    }

    fn local(&self, remote: IpAddr) -> Option<IpAddr> {
        let [v4, v6] = self.underlay;
        if remote.is_ipv4() { v4 } else { v6 }
    }
}

/// How packets to a peer are wrapped at present.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Way {
    /// In what.
    pub encapsulation: Encapsulation,
    /// The largest inner packet.
    pub mtu: Mtu,
}

/// A peer, as whoever measures the way to it needs to know it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerSpec {
    /// Its name, unlike that of any other.
    pub name: String,
    /// Its underlay address, unlike that of any other.
    pub address: IpAddr,
    /// What packets to it may be wrapped in, by preference; not empty.
    pub ways: Vec<Encapsulation>,
    /// The largest inner packet as far as is known without measuring.
    pub mtu: Mtu,
    /// The largest outer packet.
    pub underlay_mtu: Mtu,
    /// An address of it that answers an echo.
    pub probe_address: Option<IpAddr>,
    /// Whether it is to be probed at all.
    pub probe: bool,
}

/// What else is to be done about a change of the tables.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Effects {
    /// Peers that came, went or changed.
    pub peers: Vec<PeerChange>,
    /// Routes that cannot be had, each a sentence.
    pub refused: Vec<String>,
}

/// What became of a peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PeerChange {
    /// It is so; these are prefixes that it can be probed in.
    Put(PeerSpec, Vec<IpNet>),
    /// There is none at that address.
    Gone(IpAddr),
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

#[derive(Debug)]
struct PeerState {
    id: PeerId,
    hop: NextHopId,
    spec: PeerSpec,
    tunnel: Tunnel,
    way: Option<Way>,
    /// Whether a file names it: it stays though nothing is routed to it.
    is_local: bool,
    /// Static routes over several peers, of which it is one.
    sets: BTreeSet<IpNet>,
}

impl Rib {
    /// Starts with nothing but this node itself.
    #[must_use]
    pub fn new(local: Local, terms: Terms) -> Self {
        let mut writer = TableWriter::new(local);
        let published = Arc::new(Published::new(writer.publish()));
        Self {
            writer,
            published,
            terms,
            local_peers: HashMap::new(),
            statics: BTreeMap::new(),
            peers: HashMap::new(),
            names: HashMap::new(),
            live: BTreeMap::new(),
            others: HashMap::new(),
            entered: Vec::new(),
            recalled: Vec::new(),
            recalled_peers: Vec::new(),
            relinked: HashSet::new(),
            changed: BTreeMap::new(),
            refused: Vec::new(),
        }
    }

    /// A reader for a worker or a reporter.
    #[must_use]
    pub fn reader(&self) -> TablesReader {
        TablesReader {
            published: Arc::clone(&self.published),
        }
    }

    /// This node is another from the next publication on.
    pub fn set_local(&mut self, local: Local) {
        self.writer.set_local(local);
    }

    /// Other terms hold: for the underlay's own addresses at once, and for the rest from the next
    /// call of [`set_local_routes`](Self::set_local_routes) on.
    pub fn set_terms(&mut self, terms: Terms) {
        let moves = self.terms.underlay != terms.underlay;
        let relinked = self.terms.on_link.symmetric_difference(&terms.on_link);
        self.relinked.extend(relinked.copied());
        self.terms = terms;
        if !moves {
            return;
        }
        let published = Arc::clone(&self.published);
        let mut book = published.book.write();
        let addresses: Vec<IpAddr> = self.peers.keys().copied().collect();
        for address in addresses {
            let local = self.terms.local(address);
            if let (Some(peer), Some(local)) = (self.peers.get_mut(&address), local) {
                peer.tunnel.local = local;
                self.refresh(address, &mut book);
            }
        }
    }

    /// Takes what the files say of peers and static routes, in place of what they said before.
    ///
    /// To be followed by [`apply`](Self::apply) of what the reconciler makes of the same files.
    pub fn set_local_routes(&mut self, routes: &LocalRoutes) {
        let published = Arc::clone(&self.published);
        let mut book = published.book.write();
        let before = std::mem::replace(&mut self.local_peers, routes.by_address());
        let touched: Vec<Arc<config::Peer>> = self
            .local_peers
            .values()
            .filter(|peer| before.get(&peer.address) != Some(*peer))
            .cloned()
            .collect();
        let mut moved = std::mem::take(&mut self.relinked);
        for peer in touched {
            self.put_local_peer(&peer, &mut book);
            moved.insert(peer.address);
        }
        let mut statics = BTreeMap::new();
        for route in &routes.statics {
            let place = statics.entry(route.prefix);
            place.or_insert_with(|| route.next.clone());
        }
        let before_statics = std::mem::replace(&mut self.statics, statics);
        let prefixes: BTreeSet<IpNet> = before_statics
            .keys()
            .chain(self.statics.keys())
            .copied()
            .collect();
        for prefix in prefixes {
            // A member may be another peer though the route is the same.
            self.route(prefix, &mut book);
        }
        let gone = before.keys();
        moved.extend(gone.filter(|address| !self.local_peers.contains_key(*address)));
        self.route_again(&moved, &mut book);
        self.enter_all(&mut book);
        for address in moved {
            if !self.local_peers.contains_key(&address)
                && let Some(peer) = self.peers.get_mut(&address)
            {
                peer.is_local = false;
            }
            self.drop_idle(address, &mut book);
        }
    }

    /// Routes what leads to these peers as it should be, where the reconciler has nothing to say of
    /// it: the entry is what it was, and the peer, its mode or its link is another.
    fn route_again(&mut self, moved: &HashSet<IpAddr>, book: &mut Book) {
        if moved.is_empty() {
            return;
        }
        let leads = self.live.iter().filter(|(_, route)| {
            // What a file said of a peer that it does not name any more goes in a moment.
            let is_of_files = matches!(route.source, SourceKind::Config | SourceKind::File);
            let via = route.via.filter(|via| moved.contains(&via.remote));
            via.is_some_and(|via| !is_of_files || self.local_peers.contains_key(&via.remote))
        });
        let prefixes: Vec<IpNet> = leads.map(|(prefix, _)| *prefix).collect();
        for prefix in prefixes {
            self.route(prefix, book);
        }
    }

    /// Applies what the reconciler decided.
    pub fn apply(&mut self, changes: &[RouteChange]) {
        if changes.is_empty() {
            return;
        }
        let published = Arc::clone(&self.published);
        let mut book = published.book.write();
        let mut left: BTreeSet<IpAddr> = BTreeSet::new();
        for change in changes {
            self.take_live(change);
            if let Some(via) = change.before.as_ref().and_then(|before| before.via) {
                left.insert(via.remote);
            }
            self.route(change.prefix, &mut book);
        }
        self.enter_all(&mut book);
        for address in left {
            self.drop_idle(address, &mut book);
        }
    }

    /// Routes what was routed before the node was started, but for what the files say, until
    /// [`confirm`](Self::confirm). The book does not show it before that.
    pub fn recall(&mut self, recall: &Recall) {
        let published = Arc::clone(&self.published);
        let mut book = published.book.write();
        let ways = recall.ways.len();
        self.peers.reserve(ways);
        self.names.reserve(ways);
        book.peers.reserve(ways);
        let mut hops = Vec::with_capacity(ways);
        for way in &recall.ways {
            hops.push(self.recalled_hop(way, &mut book));
        }
        let mut recalled = Vec::with_capacity(recall.routes.len());
        for (prefix, way) in &recall.routes {
            let way = usize::try_from(*way).ok();
            if let Some(Some(hop)) = way.and_then(|way| hops.get(way))
                && !book.rows.contains_key(prefix)
            {
                recalled.push((*prefix, *hop));
            }
        }
        self.recalled = recalled;
        self.recalled_peers = recall.ways.iter().filter_map(|way| way.via).collect();
        // Those that there is no room for are missing until it is decided which they are.
        let _ = self.writer.insert_all(self.recalled.iter().copied());
    }

    /// The next hop of a way, where it is one that needs no row of its own.
    fn recalled_hop(&mut self, way: &RecallWay, book: &mut Book) -> Option<NextHopId> {
        let Some(via) = way.via else {
            return self.writer.next_hop(NextHop::Local).ok();
        };
        if self.is_direct(&via) || self.put_live_peer(&way.node, &via, book).is_err() {
            return None;
        }
        self.peers.get(&via.remote).map(|peer| peer.hop)
    }

    /// Applies what the reconciler decided of what was [recalled](Self::recall), and returns
    /// whether a route is another one by that.
    pub fn confirm(&mut self, changes: &[RouteChange]) -> bool {
        let recalled: HashMap<IpNet, NextHopId> =
            std::mem::take(&mut self.recalled).into_iter().collect();
        let mut left = recalled.len();
        let mut differs = false;
        let published = Arc::clone(&self.published);
        let mut book = published.book.write();
        for change in changes {
            self.take_live(change);
            self.route(change.prefix, &mut book);
        }
        // What is as it was is in the table.
        self.entered.retain(|(prefix, hop)| {
            let is_there = recalled.get(prefix) == Some(hop);
            left -= usize::from(is_there);
            differs |= !is_there;
            !is_there
        });
        if left > 0 {
            differs = true;
            for prefix in recalled.keys() {
                if !book.rows.contains_key(prefix) {
                    self.writer.remove(*prefix);
                }
            }
        }
        self.enter_all(&mut book);
        for via in std::mem::take(&mut self.recalled_peers) {
            self.drop_idle(via.remote, &mut book);
        }
        differs
    }

    /// Peers are reached by these ways from the next publication on.
    pub fn set_ways(&mut self, ways: impl IntoIterator<Item = (IpAddr, Way)>) {
        let published = Arc::clone(&self.published);
        let mut book = published.book.write();
        for (address, way) in ways {
            let Some(peer) = self.peers.get_mut(&address) else {
                continue;
            };
            if !peer.spec.ways.contains(&way.encapsulation) {
                // Measured before the peer changed.
                continue;
            }
            peer.way = Some(way);
            self.refresh(address, &mut book);
        }
    }

    /// Makes what changed visible to the workers, and returns what else is to be done.
    pub fn publish(&mut self) -> Effects {
        self.publish_tables();
        self.take_effects()
    }

    /// The same, and what else is to be done is left for the next call.
    pub fn publish_tables(&mut self) {
        let tables = self.writer.publish();
        self.published.put(tables);
    }

    /// What else is to be done about all that was published.
    pub fn take_effects(&mut self) -> Effects {
        let book = self.published.book.read();
        let mut peers = Vec::with_capacity(self.changed.len());
        for (address, went) in std::mem::take(&mut self.changed) {
            if went {
                peers.push(PeerChange::Gone(address));
            }
            if let Some(peer) = self.peers.get(&address) {
                let prefixes = self.probed_prefixes(address, &book);
                peers.push(PeerChange::Put(peer.spec.clone(), prefixes));
            }
        }
        let refused = std::mem::take(&mut self.refused);
        Effects { peers, refused }
    }

    /// The numbers that peers have or had.
    #[cfg(test)]
    fn writer_peers(&self) -> usize {
        self.reader().tables().peers().len()
    }

    fn take_live(&mut self, change: &RouteChange) {
        match &change.after {
            Some(route) => self.live.insert(change.prefix, route.clone()),
            None => self.live.remove(&change.prefix),
        };
    }

    /// Routes one prefix as it should be, from the next call of [`enter_all`](Self::enter_all) on.
    fn route(&mut self, prefix: IpNet, book: &mut Book) {
        let wanted = self.wanted(prefix, book);
        if book.rows.get(&prefix) == wanted.as_ref()
            && !matches!(
                wanted,
                Some(Row {
                    target: Target::Peers(_),
                    ..
                })
            )
        {
            // Another way to the same peer.
            return;
        }
        if let Some(before) = book.rows.remove(&prefix) {
            self.forget(prefix, &before.target, book);
        }
        let vacated = self.others.remove(&prefix);
        match wanted {
            None => {
                self.writer.remove(prefix);
            }
            Some(row) => match self.enter(prefix, &row.target, book) {
                Ok(()) => {
                    book.rows.insert(prefix, row);
                }
                Err(error) => {
                    self.writer.remove(prefix);
                    self.refused.push(error.to_string());
                }
            },
        }
        if let Some(vacated) = vacated {
            self.writer.remove_next_hop(vacated);
        }
    }

    /// Brings the routes of the book into the table.
    fn enter_all(&mut self, book: &mut Book) {
        let entered = std::mem::take(&mut self.entered);
        if self.writer.insert_all(entered.iter().copied()).is_ok() {
            return;
        }
        // One by one, to say which there is no room for.
        for (prefix, hop) in entered {
            let Err(source) = self.writer.insert(prefix, hop) else {
                continue;
            };
            if let Some(row) = book.rows.remove(&prefix) {
                self.forget(prefix, &row.target, book);
            }
            let refused = RibError::Route { prefix, source };
            self.refused.push(refused.to_string());
        }
    }

    /// The row that a prefix should have; makes the peer that it leads to.
    fn wanted(&mut self, prefix: IpNet, book: &mut Book) -> Option<Row> {
        if let Some(next) = self.statics.get(&prefix) {
            let target = match next {
                StaticNext::Action(RouteAction::Blackhole) => Target::Blackhole,
                StaticNext::Action(RouteAction::Prohibit) => Target::Prohibit,
                StaticNext::Action(RouteAction::Direct) => Target::Direct(None),
                StaticNext::Peers(peers) => {
                    let known = peers.iter().filter(|peer| self.peers.contains_key(*peer));
                    let known: Vec<IpAddr> = known.copied().collect();
                    match known.as_slice() {
                        [only] if self.is_direct_peer(prefix, *only) => Target::Direct(Some(*only)),
                        [only] => Target::Peer(*only),
                        _ => Target::Peers(known),
                    }
                }
            };
            let origin = Origin::Static;
            return Some(Row { origin, target });
        }
        let route = self.live.get(&prefix)?.clone();
        let Some(via) = route.via else {
            return Some(Row {
                origin: Origin::Node,
                target: Target::Local,
            });
        };
        let origin = if route.source == SourceKind::Config {
            Origin::Peer
        } else {
            Origin::Source(route.source)
        };
        // The underlay's own routes carry no family but that of their gateway.
        let same_family = prefix.addr().is_ipv4() == via.remote.is_ipv4();
        let target = if same_family && self.is_direct(&via) {
            Target::Direct(Some(via.remote))
        } else {
            if let Err(error) = self.put_live_peer(&route.node, &via, book) {
                self.refused.push(error.to_string());
                return None;
            }
            Target::Peer(via.remote)
        };
        Some(Row { origin, target })
    }

    /// Notes a route to enter the table.
    fn enter(&mut self, prefix: IpNet, target: &Target, book: &mut Book) -> Result<(), RibError> {
        let refused = |source| RibError::Route { prefix, source };
        let hop = match target {
            Target::Peer(address) => {
                if let Some(peer) = book.peers.get_mut(address)
                    && !self.statics.contains_key(&prefix)
                {
                    peer.prefixes.insert(prefix);
                    if [peer.prefixes.first(), peer.prefixes.last()].contains(&Some(&prefix)) {
                        self.announce(*address);
                    }
                }
                self.peers.get(address).map(|peer| peer.hop)
            }
            Target::Local
            | Target::Peers(_)
            | Target::Direct(_)
            | Target::Blackhole
            | Target::Prohibit => None,
        };
        let hop = match hop {
            Some(hop) => hop,
            None => {
                let next_hop = book.next_hop(target);
                let hop = match target {
                    // One number for all of a kind; a gateway or a set has its own.
                    Target::Local | Target::Blackhole | Target::Prohibit | Target::Direct(None) => {
                        self.writer.next_hop(next_hop).map_err(refused)?
                    }
                    Target::Peer(_) | Target::Peers(_) | Target::Direct(Some(_)) => {
                        let hop = self.writer.add_next_hop(next_hop).map_err(refused)?;
                        self.others.insert(prefix, hop);
                        hop
                    }
                };
                if let Target::Peers(members) = target {
                    for member in members {
                        if let Some(peer) = self.peers.get_mut(member) {
                            peer.sets.insert(prefix);
                        }
                    }
                }
                hop
            }
        };
        self.entered.push((prefix, hop));
        Ok(())
    }

    /// Undoes what [`enter`](Self::enter) noted beside the table.
    fn forget(&mut self, prefix: IpNet, target: &Target, book: &mut Book) {
        match target {
            Target::Peer(address) => {
                let Some(peer) = book.peers.get_mut(address) else {
                    return;
                };
                let was_end =
                    [peer.prefixes.first(), peer.prefixes.last()].contains(&Some(&prefix));
                peer.prefixes.remove(&prefix);
                if was_end && !peer.prefixes.is_empty() {
                    self.announce(*address);
                }
            }
            Target::Peers(members) => {
                for member in members {
                    if let Some(peer) = self.peers.get_mut(member) {
                        peer.sets.remove(&prefix);
                    }
                }
            }
            Target::Local | Target::Direct(_) | Target::Blackhole | Target::Prohibit => {}
        }
    }

    fn is_direct(&self, via: &Via) -> bool {
        let by_file = self.is_direct_by_file(via.remote);
        by_file.unwrap_or_else(|| via.encapsulation.is_none())
    }

    /// Whether a static route through one peer leads packets to it as they are.
    fn is_direct_peer(&self, prefix: IpNet, remote: IpAddr) -> bool {
        let same_family = prefix.addr().is_ipv4() == remote.is_ipv4();
        same_family && self.is_direct_by_file(remote) == Some(true)
    }

    /// What the files say of whether a peer gets packets as they are; `None` where they do not
    /// name it.
    fn is_direct_by_file(&self, remote: IpAddr) -> Option<bool> {
        let peer = self.local_peers.get(&remote)?;
        Some(match peer.mode {
            PeerMode::Always => false,
            PeerMode::CrossSubnet => self.terms.on_link.contains(&remote),
            PeerMode::Direct => true,
        })
    }

    /// Makes or changes a peer of a file.
    fn put_local_peer(&mut self, peer: &config::Peer, book: &mut Book) {
        let ways = std::iter::once(peer.encapsulation).chain(peer.alternatives.iter().copied());
        let spec = PeerSpec {
            name: peer.name.clone(),
            address: peer.address,
            ways: ways.collect(),
            mtu: peer.mtu,
            underlay_mtu: self.terms.underlay_mtu,
            probe_address: peer.probe_address,
            probe: peer.probe,
        };
        let dscp = dscp_mode(&peer.dscp);
        if let Err(error) = self.put_peer(spec, dscp, peer.ecn, true, book) {
            self.refused.push(error.to_string());
        }
    }

    /// Makes or changes the peer that a route leads to.
    fn put_live_peer(&mut self, node: &str, via: &Via, book: &mut Book) -> Result<(), RibError> {
        if self.local_peers.contains_key(&via.remote) {
            return Ok(());
        }
        let Some(encapsulation) = via.encapsulation else {
            return Ok(());
        };
        let underlay_mtu = via.underlay_mtu.unwrap_or(self.terms.underlay_mtu);
        let mtu = encapsulation.inner_mtu(Family::of(via.remote), underlay_mtu);
        // A peer with many prefixes is described by each of them, and alike as a rule.
        let is_known = self.peers.get(&via.remote).is_some_and(|known| {
            let (spec, tunnel) = (&known.spec, &known.tunnel);
            !known.is_local
                && spec.name == node
                && spec.ways == [encapsulation]
                && (spec.mtu, spec.underlay_mtu) == (mtu, underlay_mtu)
                && (spec.probe, spec.probe_address) == (true, None)
                && (tunnel.dscp, tunnel.ecn) == (DscpMode::Pipe(0), EcnMode::Normal)
                && Some(tunnel.local) == self.terms.local(via.remote)
        });
        if is_known {
            return Ok(());
        }
        let spec = PeerSpec {
            name: self.free_name(node, via.remote),
            address: via.remote,
            ways: vec![encapsulation],
            mtu,
            underlay_mtu,
            probe_address: None,
            probe: true,
        };
        self.put_peer(spec, DscpMode::Pipe(0), EcnMode::Normal, false, book)
    }

    /// The name of a node, with its address where another peer has it.
    fn free_name(&self, node: &str, address: IpAddr) -> String {
        match self.names.get(node) {
            Some(holder) if *holder != address => format!("{node}@{address}"),
            Some(_) | None => node.to_owned(),
        }
    }

    fn put_peer(
        &mut self,
        mut spec: PeerSpec,
        dscp: DscpMode,
        ecn: EcnMode,
        is_local: bool,
        book: &mut Book,
    ) -> Result<(), RibError> {
        let address = spec.address;
        let local = self
            .terms
            .local(address)
            .ok_or_else(|| RibError::NoUnderlay {
                name: spec.name.clone(),
                address,
            })?;
        // A file's peer has the name that the file gives it.
        if let Some(holder) = self.names.get(&spec.name).copied()
            && holder != address
        {
            if is_local {
                self.rename(holder, book);
            } else {
                spec.name = format!("{}@{address}", spec.name);
            }
        }
        let known = self.peers.get(&address);
        if known.is_some_and(|known| {
            known.spec == spec
                && known.is_local == is_local
                && (known.tunnel.dscp, known.tunnel.ecn, known.tunnel.local) == (dscp, ecn, local)
        }) {
            return Ok(());
        }
        let refused = |source| RibError::Peer {
            name: spec.name.clone(),
            source,
        };
        let peer = Peer {
            name: spec.name.clone(),
            underlay: vec![address],
            dscp,
        };
        let id = match known {
            Some(known) => {
                let id = known.id;
                self.writer.set_peer(id, peer).map_err(refused)?;
                id
            }
            None => self.writer.add_peer(peer).map_err(refused)?,
        };
        let first = spec.ways.first().copied().unwrap_or(Encapsulation::Ipip);
        let tunnel = Tunnel {
            peer: id,
            local,
            remote: address,
            encapsulation: first,
            mtu: spec.mtu,
            hop_limit: OUTER_HOP_LIMIT,
            dscp,
            ecn,
        };
        let is_known = known.is_some();
        if let Some(known) = self.peers.get_mut(&address) {
            if known.spec.name != spec.name {
                self.names.remove(&known.spec.name);
            }
            known.way = known
                .way
                .filter(|way| spec.ways.contains(&way.encapsulation));
            known.is_local = is_local;
            known.spec = spec.clone();
            known.tunnel = tunnel;
        } else {
            let hop = match self.writer.add_next_hop(NextHop::Tunnel(tunnel)) {
                Ok(hop) => hop,
                Err(source) => {
                    self.writer.remove_peer(id);
                    return Err(refused(source));
                }
            };
            let state = PeerState {
                id,
                hop,
                spec: spec.clone(),
                tunnel,
                way: None,
                is_local,
                sets: BTreeSet::new(),
            };
            self.peers.insert(address, state);
        }
        self.names.insert(spec.name.clone(), address);
        let prefixes = book
            .peers
            .remove(&address)
            .map_or_else(BTreeSet::new, |known| known.prefixes);
        book.peers.insert(
            address,
            BookPeer {
                name: spec.name,
                tunnel,
                prefixes,
            },
        );
        if is_known {
            self.refresh(address, book);
        }
        self.announce(address);
        Ok(())
    }

    /// Takes its name from a peer, which is called by its address as well from here on.
    fn rename(&mut self, address: IpAddr, book: &mut Book) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        let name = format!("{}@{address}", peer.spec.name);
        self.names.remove(&peer.spec.name);
        peer.spec.name.clone_from(&name);
        let renamed = Peer {
            name: name.clone(),
            underlay: vec![address],
            dscp: peer.tunnel.dscp,
        };
        // The address was its own before; nothing can be in the way.
        let _ = self.writer.set_peer(peer.id, renamed);
        if let Some(shown) = book.peers.get_mut(&address) {
            shown.name.clone_from(&name);
        }
        self.names.insert(name, address);
        self.announce(address);
    }

    /// Puts the way that is in force into the tables.
    fn refresh(&mut self, address: IpAddr, book: &mut Book) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        let mut tunnel = peer.tunnel;
        if let Some(way) = peer.way {
            tunnel.encapsulation = way.encapsulation;
            tunnel.mtu = way.mtu.min(peer.spec.mtu);
        }
        // The number was given out for this peer.
        let _ = self.writer.set_next_hop(peer.hop, NextHop::Tunnel(tunnel));
        let sets = peer.sets.clone();
        let Some(shown) = book.peers.get_mut(&address) else {
            return;
        };
        shown.tunnel = tunnel;
        for prefix in sets {
            if let (Some(hop), Some(row)) = (self.others.get(&prefix), book.rows.get(&prefix)) {
                let _ = self.writer.set_next_hop(*hop, book.next_hop(&row.target));
            }
        }
    }

    /// Tells whoever measures ways about a peer.
    fn announce(&mut self, address: IpAddr) {
        self.changed.entry(address).or_insert(false);
    }

    /// Prefixes that a peer can be probed in: one of each family will do.
    fn probed_prefixes(&self, address: IpAddr, book: &Book) -> Vec<IpNet> {
        if let Some(local) = self.local_peers.get(&address) {
            return local.prefixes.clone();
        }
        let Some(shown) = book.peers.get(&address) else {
            return Vec::new();
        };
        // IPv4 stands before IPv6.
        let mut ends: Vec<IpNet> = shown.prefixes.first().copied().into_iter().collect();
        ends.extend(
            shown
                .prefixes
                .last()
                .filter(|last| ends.first() != Some(*last)),
        );
        ends
    }

    /// Takes a peer away that nothing leads to and no file names.
    fn drop_idle(&mut self, address: IpAddr, book: &mut Book) {
        let shown = book.peers.get(&address);
        let is_idle = shown.is_some_and(|shown| shown.prefixes.is_empty());
        let Some(peer) = self.peers.get(&address) else {
            return;
        };
        if !is_idle || peer.is_local || !peer.sets.is_empty() {
            return;
        }
        // A static route may name a peer that was only learned.
        let target = Target::Peer(address);
        let mut statics = self.statics.keys();
        if statics.any(|prefix| {
            book.rows
                .get(prefix)
                .is_some_and(|row| row.target == target)
        }) {
            return;
        }
        if let Some(peer) = self.peers.remove(&address) {
            self.names.remove(&peer.spec.name);
            self.writer.remove_next_hop(peer.hop);
            self.writer.remove_peer(peer.id);
        }
        book.peers.remove(&address);
        self.changed.insert(address, true);
    }
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
#[path = "tables_tests.rs"]
mod tests;
