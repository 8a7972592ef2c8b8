//! Whether the values of a file agree with each other, and the [`Config`] they make.
//!
//! Every check reports and goes on. A value that `format.rs` refused is absent here and no
//! check complains about its absence again. All checks together take O(n log n) of the prefixes and
//! peers: a hostile file of the largest size is judged about as fast as it is parsed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use warren_core::units::{Family, MacAddr, Mtu};

use super::build::{
    self, encap_and_family, has_v6_inside, is_received, largest_overhead, own_vtep_mac,
    peer_choices, peer_encap, peer_indices, peer_vtep_mac, received_ports, section, underlay_mtu,
    vtep_choice,
};
use super::encap::Encap;
use super::error::{At, Lines, Problems, quoted};
use super::format::{Draft, PeerDraft, RouteDraft};
use super::{Config, PeerMode, RouteAction, VtepMac};

/// Reports every disagreement in `draft`; the result is `Some` at least when there is none.
pub(super) fn validate(draft: &Draft, lines: &Lines, problems: &mut Problems) -> Option<Config> {
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
    build::build(draft, mtu)
}

#[derive(Debug)]
struct Check<'c, 'd> {
    draft: &'d Draft,
    lines: &'c Lines,
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

/// Prefixes by longest match, one hash lookup for each length that occurs.
#[derive(Debug)]
struct Nets<T> {
    nets: HashMap<IpNet, T>,
    lengths_v4: BTreeSet<u8>,
    lengths_v6: BTreeSet<u8>,
}

impl<T> Default for Nets<T> {
    fn default() -> Self {
        Self {
            nets: HashMap::new(),
            lengths_v4: BTreeSet::new(),
            lengths_v6: BTreeSet::new(),
        }
    }
}

impl<T: Copy> Nets<T> {
    /// Inserts `net`, which has no host bits.
    fn insert(&mut self, net: IpNet, value: T) {
        match net {
            IpNet::V4(net) => self.lengths_v4.insert(net.prefix_len()),
            IpNet::V6(net) => self.lengths_v6.insert(net.prefix_len()),
        };
        self.nets.insert(net, value);
    }

    /// The longest prefix that `address` is in.
    fn longest(&self, address: IpAddr) -> Option<(IpNet, T)> {
        let lengths = match address {
            IpAddr::V4(_) => &self.lengths_v4,
            IpAddr::V6(_) => &self.lengths_v6,
        };
        lengths.iter().rev().find_map(|&length| {
            let net = IpNet::new(address, length).ok()?.trunc();
            Some((net, *self.nets.get(&net)?))
        })
    }
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
        let own = self.draft.node.underlay.iter().map(|own| own.value);
        let own_families: HashSet<Family> = own.clone().map(Family::of).collect();
        let own: HashSet<IpAddr> = own.collect();
        let mut first: HashMap<IpAddr, usize> = HashMap::new();
        for (index, peer) in self.draft.peers.iter().enumerate() {
            let Some(address) = peer.address else {
                continue;
            };
            if own.contains(&address.value) {
                self.problems.push(
                    address.at,
                    format!(
                        "{} is this node's own underlay address; write the peer's",
                        address.value
                    ),
                );
            }
            let family = Family::of(address.value);
            if !own.is_empty() && !own_families.contains(&family) {
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
            for (rank, choice) in peer_choices(peer).into_iter().enumerate() {
                let encap = choice.encap;
                let enabled = section(self.draft, encap).enabled;
                if enabled.is_none_or(|enabled| enabled.value) {
                    continue;
                }
                let at = peer.encaps.get(rank).map_or(peer.at, |written| written.at);
                let sentence = format!(
                    "{} uses {encap}, but [{encap}] has enabled = false; \
                     enable it or choose another encap",
                    self.peer_label(index)
                );
                self.problems.push(at, sentence);
            }
        }
        let disabled = Encap::ALL.map(|encap| section(self.draft, encap).enabled);
        let none_left = self.draft.peers.is_empty()
            && Encap::ALL
                .iter()
                .all(|&encap| !is_received(self.draft, encap));
        if none_left && let Some(disabled) = disabled.into_iter().flatten().min_by_key(|d| d.at) {
            self.problems.push(
                disabled.at,
                "no encapsulation is left that this node receives; \
                 enable vxlan, geneve, fou, gue, ipip or vxlan-gpe",
            );
        }
    }

    fn vtep_macs(&mut self) {
        let node = &self.draft.node;
        let both_families = node.underlay.iter().any(|own| own.value.is_ipv4())
            && node.underlay.iter().any(|own| own.value.is_ipv6());
        if let Some(At {
            value: VtepMac::Calico,
            at,
        }) = node.vtep_mac
            && both_families
        {
            self.problems.push(
                at,
                "Calico gives the VTEPs over IPv4 and IPv6 different MAC addresses, but a node \
                 has one here; keep one family in underlay, or write the MAC address",
            );
        }
        let mut first: HashMap<MacAddr, usize> = HashMap::new();
        for (index, peer) in self.draft.peers.iter().enumerate() {
            let Some(choice) = vtep_choice(peer) else {
                continue;
            };
            let label = self.peer_label(index);
            let encap = choice.encap;
            let Some(written) = &peer.vtep_mac else {
                if peer.vtep_mac_absent && choice.mac.is_none() {
                    self.problems.push(
                        peer.at,
                        format!(
                            "vtep-mac is missing for {label}, which uses {encap}; write its VTEP's \
                             MAC address, or \"auto\" for a Warren node that makes it from its name"
                        ),
                    );
                }
                continue;
            };
            let Some(mac) = peer_vtep_mac(peer, &choice) else {
                continue;
            };
            if own_vtep_mac(self.draft) == Some(mac) {
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

    /// Each encapsulation has its own UDP port; only FOU and GUE are told apart by the packet.
    fn ports(&mut self) {
        let udp = [
            Encap::Vxlan,
            Encap::VxlanGpe,
            Encap::Geneve,
            Encap::Fou,
            Encap::Gue,
        ];
        let received = udp
            .into_iter()
            .filter(|&encap| is_received(self.draft, encap));
        let received: Vec<Encap> = received.collect();
        for (index, &one) in received.iter().enumerate() {
            for &other in received.iter().skip(index + 1) {
                let others = received_ports(self.draft, other);
                let shared = received_ports(self.draft, one)
                    .intersection(&others)
                    .min()
                    .copied();
                let Some(port) = shared.filter(|_| one != Encap::Fou) else {
                    continue;
                };
                if let Some(at) = self.place_of_port(port, [one, other]) {
                    self.problems.push(
                        at,
                        format!(
                            "UDP port {port} cannot serve both {one} and {other}; \
                             give them different ports (only fou and gue may share one)"
                        ),
                    );
                }
            }
        }
    }

    /// The last place that says that one of `encaps` has this port.
    fn place_of_port(&self, port: u16, encaps: [Encap; 2]) -> Option<usize> {
        let sections = encaps.map(|encap| section(self.draft, encap).port);
        let sections = sections.into_iter().flatten();
        let sections = sections
            .filter(|written| written.value == port)
            .map(|p| p.at);
        let peers = self.draft.peers.iter().flat_map(|peer| &peer.encaps);
        let named = self.draft.node.receive.iter().chain(peers);
        let named = named.filter(|choice| {
            choice.value.port == Some(port) && encaps.contains(&choice.value.encap)
        });
        sections.chain(named.map(|choice| choice.at)).max()
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
        let mut names: Vec<&str> = index_of.keys().copied().collect();
        names.sort_unstable();
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
                    let sentence = self.unknown_peer(name, &names);
                    self.problems.push(peer.at, sentence);
                } else if let Some(mode) = self.mode_of_one_of_several(route, index_of.get(name)) {
                    let prefix = route
                        .prefix
                        .map_or_else(String::new, |p| format!(" to {}", p.value));
                    self.problems.push(
                        peer.at,
                        format!(
                            "peer {name:?} has mode = \"{mode}\", but the route{prefix} has several \
                             peers, and packets are always encapsulated then; name one peer, or \
                             give each mode = \"always\""
                        ),
                    );
                }
            }
        }
    }

    /// The mode of a peer that a route names beside others, where it is not always encapsulated.
    fn mode_of_one_of_several(
        &self,
        route: &RouteDraft,
        index: Option<&usize>,
    ) -> Option<PeerMode> {
        let mode = self.peer(*index?)?.mode?.value;
        (route.via.len() > 1 && mode != PeerMode::Always).then_some(mode)
    }

    fn unknown_peer(&self, name: &str, known: &[&str]) -> String {
        let own = self.draft.node.name.as_ref();
        if own.is_some_and(|own| own.value == name) {
            return format!("via {name:?} is this node itself; name a peer");
        }
        let shown = quoted(name);
        match self.problems.did_you_mean(name, known.iter().copied()) {
            Some(meant) => format!("via {shown} is not a peer; did you mean {meant:?}?"),
            None => format!("via {shown} is not a peer; add it under [[peers]] or name one there"),
        }
    }

    /// No outer packet may enter the tunnel that made it.
    fn underlay_in_overlay(&mut self, owned: &HashMap<IpNet, Claim>) {
        let mut overlay = Nets::default();
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
        let own = self.draft.node.underlay.iter().map(|own| (own, None));
        let peers = self.draft.peers.iter().enumerate();
        let peers = peers.filter_map(|(index, peer)| Some((peer.address.as_ref()?, Some(index))));
        for (address, peer) in own.chain(peers) {
            let longest = overlay.longest(address.value);
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
            let host = IpNet::from(address.value);
            let advice = if net == host {
                "change one".to_owned()
            } else {
                format!(
                    "change one, or add a route with prefix = \"{host}\" and action = \"direct\""
                )
            };
            self.problems.push(
                address.at,
                format!(
                    "the underlay address {} {whose} {is}: outer packets would enter the tunnel; \
                     {advice}",
                    address.value
                ),
            );
        }
    }

    fn device_addresses(&mut self) {
        let node = &self.draft.node;
        let mut own = Nets::default();
        for net in &node.prefixes {
            own.insert(net.value, ());
        }
        let mut seen: HashSet<IpAddr> = HashSet::new();
        for address in &self.draft.device.addresses {
            let host = address.value.addr();
            if !seen.insert(host) {
                self.problems.push(
                    address.at,
                    format!("the device address {host} is listed twice; remove one"),
                );
            }
            if own.longest(host).is_none() && !node.prefixes_refused {
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

fn claim(net: &At<IpNet>, owner: Owner) -> Claim {
    Claim {
        net: net.value,
        owner,
        at: net.at,
    }
}
