//! Whether the values of a file agree with each other, and the [`Config`] they make.
//!
//! Every check reports and goes on. A value that `format.rs` refused is absent here and no
//! check complains about its absence again. All checks together take O(n log n) of the prefixes and
//! peers, so that a file of the largest size is judged in well under a second.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::error::{At, Lines, Problems, did_you_mean, quoted};
use super::format::{Draft, EncapDraft, PeerDraft};
use super::{
    Config, Device, Encap, Family, MacAddr, Mtu, Node, Peer, Receive, Route, RouteAction,
    RouteNext, Vni, VtepMac, VxlanReceive, Worker,
};

/// Reports every disagreement in `draft`; the result is `Some` at least when there is none.
pub(super) fn validate(
    draft: &Draft,
    lines: &Lines<'_>,
    problems: &mut Problems,
) -> Option<Config> {
    let mut check = Check {
        draft,
        lines,
        problems,
    };
    check.own_underlay();
    check.peer_names();
    check.peer_addresses();
    check.peer_encaps();
    check.vtep_macs();
    check.ports();
    let owned = check.owners();
    check.routes(&owned);
    check.underlay_in_overlay(&owned);
    check.device_addresses();
    let mtu = check.mtus();
    build(draft, mtu)
}

#[derive(Debug)]
struct Check<'c, 'd> {
    draft: &'d Draft,
    lines: &'c Lines<'c>,
    problems: &'c mut Problems,
}

/// Who owns a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Node,
    /// Index into the draft's peers.
    Peer(usize),
}

/// A prefix, its owner and where it was written.
#[derive(Clone, Copy, Debug)]
struct Claim {
    net: IpNet,
    owner: Owner,
    at: usize,
}

/// What the overlay does with a prefix, for the question whether an outer packet would enter it.
#[derive(Clone, Copy, Debug)]
enum Overlay {
    Prefix(usize),
    DeviceNetwork(usize),
    Direct,
}

impl<'d> Check<'_, 'd> {
    /// One underlay address a family; loopback only where it is asked for, and not beside others.
    fn own_underlay(&mut self) {
        let node = &self.draft.node;
        let mut first: HashMap<Family, &At<IpAddr>> = HashMap::new();
        for own in &node.underlay {
            let family = Family::of(own.value);
            if let Some(before) = first.get(&family) {
                self.problems.push(
                    own.at,
                    format!(
                        "a second {family} underlay address beside {}; keep one of each family",
                        before.value
                    ),
                );
            } else {
                first.insert(family, own);
            }
        }
        let peers = self.draft.peers.iter().filter_map(|p| p.address.as_ref());
        let allowed = node
            .allow_loopback_underlay
            .is_some_and(|allow| allow.value);
        for address in node.underlay.iter().chain(peers.clone()) {
            if address.value.is_loopback() && !allowed {
                self.problems.push(
                    address.at,
                    format!(
                        "{} is a loopback address and reaches no other host; change it, or set \
                         allow-loopback-underlay = true under [node] for nodes on one host",
                        address.value
                    ),
                );
            }
        }
        for peer in peers.filter(|_| allowed) {
            let Some(own) = first.get(&Family::of(peer.value)) else {
                continue;
            };
            if own.value.is_loopback() != peer.value.is_loopback() {
                self.problems.push(
                    peer.at,
                    format!(
                        "{} cannot be reached from {}: one is a loopback address and the other \
                         is not; change one of them",
                        peer.value, own.value
                    ),
                );
            }
        }
    }

    fn peer_names(&mut self) {
        let mut first: HashMap<&str, usize> = HashMap::new();
        for peer in &self.draft.peers {
            let Some(name) = &peer.name else { continue };
            if Some(&name.value) == self.draft.node.name.as_ref().map(|own| &own.value) {
                self.problems.push(
                    name.at,
                    format!(
                        "peer {:?} has the name of this node; give each node its own, \
                         and do not list this one among its peers",
                        name.value
                    ),
                );
            }
            if let Some(&before) = first.get(name.value.as_str()) {
                let line = self.lines.line(before);
                self.problems.push(
                    name.at,
                    format!(
                        "a second peer is called {:?} (the first in line {line}); rename one",
                        name.value
                    ),
                );
            } else {
                first.insert(&name.value, name.at);
            }
        }
    }

    fn peer_addresses(&mut self) {
        let own = &self.draft.node.underlay;
        let mut first: HashMap<IpAddr, usize> = HashMap::new();
        for (index, peer) in self.draft.peers.iter().enumerate() {
            let Some(address) = peer.address else {
                continue;
            };
            if own.iter().any(|own| own.value == address.value) {
                self.problems.push(
                    address.at,
                    format!(
                        "{} is this node's own underlay address; write the peer's",
                        address.value
                    ),
                );
            }
            let family = Family::of(address.value);
            if !own.is_empty() && !own.iter().any(|own| Family::of(own.value) == family) {
                let sentence = format!(
                    "{} is reached over {family}, but this node has no {family} underlay address; \
                     add one to underlay under [node]",
                    self.peer_label(index)
                );
                self.problems.push(address.at, sentence);
            }
            if let Some(&before) = first.get(&address.value) {
                let line = self.lines.line(before);
                self.problems.push(
                    address.at,
                    format!(
                        "a second peer has the address {} (the first in line {line}); \
                         packets from it could not be told apart, change one",
                        address.value
                    ),
                );
            } else {
                first.insert(address.value, address.at);
            }
        }
    }

    /// What peers are sent must be enabled here, and have the ports it is given.
    fn peer_encaps(&mut self) {
        for (index, peer) in self.draft.peers.iter().enumerate() {
            let Some(encap) = peer_encap(peer) else {
                continue;
            };
            if let (Encap::Ipip, Some(port)) = (encap, &peer.port) {
                self.problems.push(
                    port.at,
                    "IP in IP has no ports; remove port or change encap".to_owned(),
                );
            }
            let disabled = section(self.draft, encap)
                .enabled
                .is_some_and(|enabled| !enabled.value);
            if disabled {
                let at = peer.encap.map_or(peer.at, |written| written.at);
                let sentence = format!(
                    "{} uses {encap}, but [{encap}] has enabled = false; \
                     enable it or choose another encap",
                    self.peer_label(index)
                );
                self.problems.push(at, sentence);
            }
        }
        let none_left = self.draft.peers.is_empty()
            && Encap::ALL
                .iter()
                .all(|&encap| !is_received(self.draft, encap));
        if none_left && let Some(disabled) = &self.draft.vxlan.enabled {
            self.problems.push(
                disabled.at,
                "no encapsulation is left that this node receives; \
                 enable vxlan, fou, gue or ipip",
            );
        }
    }

    fn vtep_macs(&mut self) {
        let mut first: HashMap<MacAddr, usize> = HashMap::new();
        for (index, peer) in self.draft.peers.iter().enumerate() {
            if peer_encap(peer) != Some(Encap::Vxlan) {
                continue;
            }
            let label = self.peer_label(index);
            let Some(written) = &peer.vtep_mac else {
                if peer.vtep_mac_absent {
                    self.problems.push(
                        peer.at,
                        format!(
                            "vtep-mac is missing for {label}, which uses vxlan; write its VTEP's \
                             MAC address, or \"auto\" if the peer is a Warren node without its own"
                        ),
                    );
                }
                continue;
            };
            let Some(mac) = peer_vtep_mac(peer) else {
                continue;
            };
            let family = peer.address.map(|address| Family::of(address.value));
            if family.is_some_and(|family| own_vtep_mac(self.draft, family) == Some(mac)) {
                self.problems.push(
                    written.at,
                    format!("{mac} is this node's own VTEP MAC address; write that of {label}"),
                );
            }
            let Some(&before) = first.get(&mac) else {
                first.insert(mac, index);
                continue;
            };
            let name = |index| self.peer(index).and_then(|peer| peer.name.as_ref());
            // Two peers of one name are reported as such; one rule then gives both one address.
            if name(before).map(|name| &name.value) != peer.name.as_ref().map(|name| &name.value) {
                let sentence = format!(
                    "{mac} is also the VTEP MAC address of {}; each VTEP has its own, change one",
                    self.peer_label(before)
                );
                self.problems.push(written.at, sentence);
            }
        }
    }

    /// VXLAN shares its port with nothing; FOU and GUE are told apart by their first nibble.
    fn ports(&mut self) {
        if !is_received(self.draft, Encap::Vxlan) {
            return;
        }
        let vxlan = received_port(self.draft, Encap::Vxlan);
        for other in [Encap::Fou, Encap::Gue] {
            if !is_received(self.draft, other) || received_port(self.draft, other) != vxlan {
                continue;
            }
            let written = [Encap::Vxlan, other]
                .map(|encap| section(self.draft, encap).port.map(|port| port.at));
            if let Some(at) = written.into_iter().flatten().max() {
                let port = vxlan.unwrap_or_default();
                self.problems.push(
                    at,
                    format!(
                        "UDP port {port} cannot serve both vxlan and {other}; \
                         give them different ports (only fou and gue may share one)"
                    ),
                );
            }
        }
    }

    /// Reports prefixes with two owners and overlaps between owners; gives the owner of each.
    fn owners(&mut self) -> HashMap<IpNet, Claim> {
        let own = self.draft.node.prefixes.iter();
        let mut claims: Vec<Claim> = own.map(|net| claim(net, Owner::Node)).collect();
        for (index, peer) in self.draft.peers.iter().enumerate() {
            claims.extend(peer.prefixes.iter().map(|p| claim(p, Owner::Peer(index))));
        }
        claims.sort_by_key(|claim| claim.at);
        let mut owned: HashMap<IpNet, Claim> = HashMap::with_capacity(claims.len());
        for claim in claims {
            let Some(&before) = owned.get(&claim.net) else {
                owned.insert(claim.net, claim);
                continue;
            };
            let line = self.lines.line(before.at);
            let sentence = if before.owner == claim.owner {
                format!(
                    "{} is listed twice for {} (first in line {line}); remove one",
                    claim.net,
                    self.owner_label(claim.owner)
                )
            } else {
                format!(
                    "{} already belongs to {} (line {line}); a prefix has one owner, \
                     remove one of the two",
                    claim.net,
                    self.owner_label(before.owner)
                )
            };
            self.problems.push(claim.at, sentence);
        }
        let allowed = self
            .draft
            .node
            .allow_overlap
            .is_some_and(|allow| allow.value);
        if !allowed {
            self.overlaps(&owned);
        }
        owned
    }

    /// Walks the prefixes in address order, where those that contain the present one are a stack.
    fn overlaps(&mut self, owned: &HashMap<IpNet, Claim>) {
        let mut claims: Vec<Claim> = owned
            .values()
            .filter(|claim| claim.net.prefix_len() > 0)
            .copied()
            .collect();
        claims.sort_by_key(|claim| (claim.net.network(), claim.net.prefix_len()));
        let mut around: Vec<Claim> = Vec::new();
        for claim in claims {
            while around
                .last()
                .is_some_and(|wider| !wider.net.contains(&claim.net))
            {
                around.pop();
            }
            let other = around.iter().rfind(|wider| wider.owner != claim.owner);
            if let Some(&wider) = other {
                self.overlap(wider, claim);
            }
            around.push(claim);
        }
    }

    fn overlap(&mut self, wider: Claim, narrower: Claim) {
        let (here, relation, there) = if wider.at > narrower.at {
            (wider, "contains", narrower)
        } else {
            (narrower, "lies in", wider)
        };
        let sentence = format!(
            "{} of {} {relation} {} of {} (line {}); make them disjoint, or set \
             allow-overlap = true under [node] to let the longest prefix win",
            here.net,
            self.owner_label(here.owner),
            there.net,
            self.owner_label(there.owner),
            self.lines.line(there.at)
        );
        self.problems.push(here.at, sentence);
    }

    fn routes(&mut self, owned: &HashMap<IpNet, Claim>) {
        let mut first: HashMap<IpNet, usize> = HashMap::new();
        let index_of = peer_indices(self.draft);
        let names_refused = self.draft.peers.iter().any(|peer| peer.name.is_none());
        for route in &self.draft.routes {
            if let Some(prefix) = &route.prefix {
                if let Some(claim) = owned.get(&prefix.value) {
                    let sentence = format!(
                        "the route to {} has the prefix of {} (line {}); \
                         remove the route or that prefix",
                        prefix.value,
                        self.owner_label(claim.owner),
                        self.lines.line(claim.at)
                    );
                    self.problems.push(prefix.at, sentence);
                } else if let Some(&before) = first.get(&prefix.value) {
                    let line = self.lines.line(before);
                    self.problems.push(
                        prefix.at,
                        format!(
                            "a second route to {} (the first in line {line}); merge them: \
                             via takes a list of peers",
                            prefix.value
                        ),
                    );
                } else {
                    first.insert(prefix.value, prefix.at);
                }
            }
            let mut named: HashSet<&str> = HashSet::new();
            for peer in &route.via {
                let name = peer.value.as_str();
                if !named.insert(name) {
                    self.problems.push(
                        peer.at,
                        format!("via names {} twice; remove one", quoted(name)),
                    );
                } else if !index_of.contains_key(name) && !names_refused {
                    let sentence = self.unknown_peer(name, &index_of);
                    self.problems.push(peer.at, sentence);
                }
            }
        }
    }

    fn unknown_peer(&self, name: &str, known: &HashMap<&str, usize>) -> String {
        let own = self.draft.node.name.as_ref();
        if own.is_some_and(|own| own.value == name) {
            return format!("via {name:?} is this node itself; name a peer");
        }
        let shown = quoted(name);
        // Sorted, so that the same file gives the same suggestion; few, so that it costs nothing.
        let names: BTreeSet<&str> = known.keys().copied().collect();
        let names = names.into_iter().take(NAMES_COMPARED);
        match did_you_mean(name, names) {
            Some(meant) => format!("via {shown} is not a peer; did you mean {meant:?}?"),
            None => format!("via {shown} is not a peer; add it under [[peers]] or name one there"),
        }
    }

    /// No outer packet may enter the tunnel that made it.
    fn underlay_in_overlay(&mut self, owned: &HashMap<IpNet, Claim>) {
        let mut overlay: HashMap<IpNet, Overlay> = HashMap::new();
        for address in &self.draft.device.addresses {
            overlay.insert(address.value.trunc(), Overlay::DeviceNetwork(address.at));
        }
        for (net, claim) in owned {
            overlay.insert(*net, Overlay::Prefix(claim.at));
        }
        for route in &self.draft.routes {
            let Some(prefix) = route.prefix else { continue };
            let direct = route
                .action
                .is_some_and(|action| action.value == RouteAction::Direct);
            let what = if direct {
                Overlay::Direct
            } else {
                Overlay::Prefix(prefix.at)
            };
            overlay.insert(prefix.value, what);
        }
        let mut lengths: [BTreeSet<u8>; 2] = [BTreeSet::new(), BTreeSet::new()];
        let [lengths_v4, lengths_v6] = &mut lengths;
        for net in overlay.keys() {
            match net {
                IpNet::V4(net) => lengths_v4.insert(net.prefix_len()),
                IpNet::V6(net) => lengths_v6.insert(net.prefix_len()),
            };
        }
        let own = self.draft.node.underlay.iter().map(|own| (own, None));
        let peers = self.draft.peers.iter().enumerate();
        let peers = peers.filter_map(|(index, peer)| Some((peer.address.as_ref()?, Some(index))));
        for (address, peer) in own.chain(peers) {
            let lengths = match address.value {
                IpAddr::V4(_) => &*lengths_v4,
                IpAddr::V6(_) => &*lengths_v6,
            };
            let longest = lengths.iter().rev().find_map(|&length| {
                let net = IpNet::new(address.value, length).ok()?.trunc();
                Some((net, *overlay.get(&net)?))
            });
            let Some((net, what)) = longest else { continue };
            let whose = match peer {
                Some(index) => format!("of {}", self.peer_label(index)),
                None => "of this node".to_owned(),
            };
            let is = match what {
                Overlay::Direct => continue,
                Overlay::Prefix(at) if net.prefix_len() == 0 => format!(
                    "is swallowed by the default route {net} (line {})",
                    self.lines.line(at)
                ),
                Overlay::Prefix(at) => format!(
                    "lies in the overlay prefix {net} (line {})",
                    self.lines.line(at)
                ),
                Overlay::DeviceNetwork(at) => format!(
                    "lies in the device's network {net} (line {})",
                    self.lines.line(at)
                ),
            };
            self.problems.push(
                address.at,
                format!(
                    "the underlay address {} {whose} {is}: outer packets would enter the tunnel; \
                     change one, or add a route with prefix = \"{}\" and action = \"direct\"",
                    address.value,
                    IpNet::from(address.value)
                ),
            );
        }
    }

    fn device_addresses(&mut self) {
        let node = &self.draft.node;
        let mut seen: HashSet<IpAddr> = HashSet::new();
        for address in &self.draft.device.addresses {
            let host = address.value.addr();
            if !seen.insert(host) {
                self.problems.push(
                    address.at,
                    format!("the device address {host} is listed twice; remove one"),
                );
            }
            let owned = node.prefixes.iter().any(|net| net.value.contains(&host));
            if !owned && !node.prefixes_refused {
                self.problems.push(
                    address.at,
                    format!(
                        "the device address {host} lies in none of this node's prefixes, so no \
                         answer would come back; add {} to prefixes under [node] or change it",
                        IpNet::from(host)
                    ),
                );
            }
        }
    }

    /// The device's MTU: as written, or what the underlay leaves under the largest overhead in use.
    fn mtus(&mut self) -> Option<Mtu> {
        let device = &self.draft.device;
        let underlay_mtu = underlay_mtu(self.draft);
        let v6_underlay = self.draft.node.underlay.iter().find(|a| a.value.is_ipv6());
        if let (Some(written), Some(_)) = (device.underlay_mtu, v6_underlay)
            && underlay_mtu < Mtu::MIN_V6
        {
            self.problems.push(
                written.at,
                format!(
                    "underlay-mtu {underlay_mtu} is below {}, which every IPv6 link carries; \
                     raise it, or leave the IPv6 address out of underlay",
                    Mtu::MIN_V6
                ),
            );
        }
        let inside_v6 = has_v6_inside(self.draft);
        let (least, family) = if inside_v6 {
            (Mtu::MIN_V6, Family::V6)
        } else {
            (Mtu::MIN_V4, Family::V4)
        };
        for (index, peer) in self.draft.peers.iter().enumerate() {
            let (Some(mtu), Some((encap, over))) = (peer.mtu, encap_and_family(peer)) else {
                continue;
            };
            let most = encap.inner_mtu(over, underlay_mtu);
            let label = self.peer_label(index);
            self.mtu_within(
                mtu,
                &format!(" of {label}"),
                (least, family),
                most,
                (encap, over),
            );
        }
        let (encap, over) = largest_overhead(self.draft)?;
        let most = encap.inner_mtu(over, underlay_mtu);
        if let Some(mtu) = device.mtu {
            self.mtu_within(mtu, "", (least, family), most, (encap, over));
            return Some(Mtu::new(mtu.value));
        }
        if most < least {
            let at = device.underlay_mtu.map_or(0, |written| written.at);
            self.problems.push(
                at,
                format!(
                    "underlay-mtu {underlay_mtu} less {} for {encap} over {over} leaves {most}, \
                     but {family} inside needs {least}; raise underlay-mtu or choose an encap \
                     with less overhead",
                    encap.overhead_octets(over)
                ),
            );
        }
        Some(most)
    }

    fn mtu_within(
        &mut self,
        mtu: At<u16>,
        whose: &str,
        (least, family): (Mtu, Family),
        most: Mtu,
        (encap, over): (Encap, Family),
    ) {
        let At { value, at } = mtu;
        if value < least.octets() {
            self.problems.push(
                at,
                format!(
                    "mtu {value}{whose} is below {least}, the least for {family} inside; raise it"
                ),
            );
        }
        if value > most.octets() {
            self.problems.push(
                at,
                format!(
                    "mtu {value}{whose} does not fit: underlay-mtu {} less {} for {encap} over \
                     {over} leaves {most}; lower it or leave it out",
                    underlay_mtu(self.draft),
                    encap.overhead_octets(over)
                ),
            );
        }
    }

    fn peer(&self, index: usize) -> Option<&'d PeerDraft> {
        self.draft.peers.get(index)
    }

    fn peer_label(&self, index: usize) -> String {
        let Some(peer) = self.peer(index) else {
            return "a peer".to_owned();
        };
        match &peer.name {
            Some(name) => format!("peer {:?}", name.value),
            None => format!("the peer in line {}", self.lines.line(peer.at)),
        }
    }

    fn owner_label(&self, owner: Owner) -> String {
        match owner {
            Owner::Node => "this node".to_owned(),
            Owner::Peer(index) => self.peer_label(index),
        }
    }
}

/// Makes the values of a draft in which nothing was found wrong; `None` if something is missing.
fn build(draft: &Draft, device_mtu: Option<Mtu>) -> Option<Config> {
    let index_of = peer_indices(draft);
    let node = build_node(draft)?;
    let peers: Option<Vec<Peer>> = draft.peers.iter().map(|p| build_peer(draft, p)).collect();
    let routes = draft.routes.iter().map(|route| {
        let next = match route.action {
            Some(action) => RouteNext::Action(action.value),
            None => {
                let via = route.via.iter();
                let via = via.map(|peer| index_of.get(peer.value.as_str()).copied());
                RouteNext::Via(via.collect::<Option<Vec<usize>>>()?)
            }
        };
        let prefix = route.prefix?.value;
        Some(Route { prefix, next })
    });
    let device = &draft.device;
    let worker = &draft.worker;
    let vxlan_port = received_port(draft, Encap::Vxlan)?;
    Some(Config {
        node,
        device: Device {
            name: device
                .name
                .as_ref()
                .map_or_else(|| DEVICE_NAME.to_owned(), |name| name.value.clone()),
            addresses: device.addresses.iter().map(|a| a.value).collect(),
            mtu: device_mtu?,
            mtu_computed: device.mtu.is_none(),
            underlay_mtu: underlay_mtu(draft),
            mode: device.mode.map(|mode| mode.value).unwrap_or_default(),
        },
        receive: Receive {
            vxlan: is_received(draft, Encap::Vxlan).then_some(VxlanReceive {
                port: vxlan_port,
                vni: own_vni(draft)?,
                strict_reserved_bits: draft
                    .vxlan
                    .strict_reserved_bits
                    .is_some_and(|strict| strict.value),
            }),
            fou_port: received_port(draft, Encap::Fou).filter(|_| is_received(draft, Encap::Fou)),
            gue_port: received_port(draft, Encap::Gue).filter(|_| is_received(draft, Encap::Gue)),
            ipip: is_received(draft, Encap::Ipip),
        },
        peers: peers?,
        routes: routes.collect::<Option<Vec<Route>>>()?,
        control_socket: draft.control_socket.as_ref().map(|path| path.value.clone()),
        metrics_listen: draft.metrics_listen.map(|listen| listen.value),
        log_level: draft.log_level.map(|level| level.value).unwrap_or_default(),
        worker: Worker {
            source_ports: worker.source_ports.map_or(SOURCE_PORTS, |n| n.value),
            batch: worker.batch.map_or(BATCH_FRAMES, |n| n.value),
            receive_buffer_octets: worker.receive_buffer_octets.map(|n| n.value),
            send_buffer_octets: worker.send_buffer_octets.map(|n| n.value),
        },
    })
}

fn build_node(draft: &Draft) -> Option<Node> {
    let node = &draft.node;
    let mut underlay_v4 = None;
    let mut underlay_v6 = None;
    for address in &node.underlay {
        match address.value {
            IpAddr::V4(v4) => underlay_v4 = Some(v4),
            IpAddr::V6(v6) => underlay_v6 = Some(v6),
        }
    }
    Some(Node {
        name: node.name.as_ref()?.value.clone(),
        underlay_v4,
        underlay_v6,
        vtep_mac_v4: own_vtep_mac(draft, Family::V4)?,
        vtep_mac_v6: own_vtep_mac(draft, Family::V6)?,
        prefixes: node.prefixes.iter().map(|net| net.value).collect(),
    })
}

fn build_peer(draft: &Draft, peer: &PeerDraft) -> Option<Peer> {
    let (encap, over) = encap_and_family(peer)?;
    let vni = match peer.vni {
        Some(vni) => Vni::new(vni.value)?,
        None => own_vni(draft)?,
    };
    let port = peer.port.map(|port| port.value);
    Some(Peer {
        name: peer.name.as_ref()?.value.clone(),
        address: peer.address?.value,
        encap,
        vtep_mac: peer_vtep_mac(peer),
        vni,
        port: port.or_else(|| received_port(draft, encap)),
        prefixes: peer.prefixes.iter().map(|net| net.value).collect(),
        mtu: peer.mtu.map_or_else(
            || encap.inner_mtu(over, underlay_mtu(draft)),
            |mtu| Mtu::new(mtu.value),
        ),
        dscp: peer.dscp.clone(),
        ecn: peer.ecn.map(|ecn| ecn.value).unwrap_or_default(),
    })
}

fn claim(net: &At<IpNet>, owner: Owner) -> Claim {
    Claim {
        net: net.value,
        owner,
        at: net.at,
    }
}

fn peer_indices(draft: &Draft) -> HashMap<&str, usize> {
    let peers = draft.peers.iter().enumerate();
    peers
        .filter_map(|(index, peer)| Some((peer.name.as_ref()?.value.as_str(), index)))
        .collect()
}

/// What the peer is sent; VXLAN if nothing was written.
fn peer_encap(peer: &PeerDraft) -> Option<Encap> {
    match peer.encap {
        Some(encap) => Some(encap.value),
        None => peer.encap_absent.then_some(Encap::Vxlan),
    }
}

fn encap_and_family(peer: &PeerDraft) -> Option<(Encap, Family)> {
    Some((peer_encap(peer)?, Family::of(peer.address?.value)))
}

fn peer_vtep_mac(peer: &PeerDraft) -> Option<MacAddr> {
    let name = &peer.name.as_ref()?.value;
    let family = Family::of(peer.address?.value);
    Some(peer.vtep_mac?.value.of(name, family))
}

fn own_vtep_mac(draft: &Draft, family: Family) -> Option<MacAddr> {
    let name = &draft.node.name.as_ref()?.value;
    let rule = draft.node.vtep_mac.map_or(VtepMac::Warren, |mac| mac.value);
    Some(rule.of(name, family))
}

fn own_vni(draft: &Draft) -> Option<Vni> {
    Vni::new(draft.vxlan.vni.map_or(VNI, |vni| vni.value))
}

fn section(draft: &Draft, encap: Encap) -> &EncapDraft {
    match encap {
        Encap::Vxlan => &draft.vxlan,
        Encap::Ipip => &draft.ipip,
        Encap::Fou => &draft.fou,
        Encap::Gue => &draft.gue,
    }
}

/// Whether the node takes packets in this encapsulation: it has a section without
/// `enabled = false`, or a peer uses it, or, for VXLAN, nothing else was asked for.
fn is_received(draft: &Draft, encap: Encap) -> bool {
    if let Some(enabled) = section(draft, encap).enabled {
        return enabled.value;
    }
    let nothing_else = draft.peers.is_empty()
        && Encap::ALL
            .iter()
            .all(|&other| !section(draft, other).present);
    section(draft, encap).present
        || draft.peers.iter().any(|p| peer_encap(p) == Some(encap))
        || (encap == Encap::Vxlan && nothing_else)
}

fn received_port(draft: &Draft, encap: Encap) -> Option<u16> {
    let default = match encap {
        Encap::Vxlan => VXLAN_PORT,
        Encap::Fou => FOU_PORT,
        Encap::Gue => GUE_PORT,
        Encap::Ipip => return None,
    };
    Some(
        section(draft, encap)
            .port
            .map_or(default, |port| port.value),
    )
}

fn underlay_mtu(draft: &Draft) -> Mtu {
    let written = draft.device.underlay_mtu;
    written.map_or(Mtu::ETHERNET, |mtu| Mtu::new(mtu.value))
}

/// The encapsulation and underlay family with the largest overhead that a peer is reached by;
/// without peers, of those received over the node's own families.
fn largest_overhead(draft: &Draft) -> Option<(Encap, Family)> {
    let by_peers = draft.peers.iter().filter_map(encap_and_family);
    let overhead = |&(encap, over): &(Encap, Family)| encap.overhead_octets(over);
    if !draft.peers.is_empty() {
        return by_peers.max_by_key(overhead);
    }
    let received = Encap::ALL
        .into_iter()
        .filter(|&encap| is_received(draft, encap));
    let families = draft.node.underlay.iter().map(|own| Family::of(own.value));
    received
        .flat_map(|encap| families.clone().map(move |over| (encap, over)))
        .max_by_key(overhead)
}

/// Whether any prefix, route or device address is IPv6.
fn has_v6_inside(draft: &Draft) -> bool {
    let is_v6 = |net: &At<IpNet>| matches!(net.value, IpNet::V6(_));
    draft.node.prefixes.iter().any(is_v6)
        || draft.device.addresses.iter().any(is_v6)
        || draft.peers.iter().any(|p| p.prefixes.iter().any(is_v6))
        || draft
            .routes
            .iter()
            .any(|r| r.prefix.as_ref().is_some_and(is_v6))
}

const DEVICE_NAME: &str = "warren0";
/// flannel's port and VNI; the port that RFC 7348 registers is 4789.
const VXLAN_PORT: u16 = 8472;
const VNI: u32 = 1;
const FOU_PORT: u16 = 5555;
const GUE_PORT: u16 = 6080;
const SOURCE_PORTS: u16 = 64;
const BATCH_FRAMES: u16 = 64;
const NAMES_COMPARED: usize = 1000;
