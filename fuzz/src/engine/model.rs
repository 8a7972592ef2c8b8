//! What the engine must do, written down a second time: slowly, and from the rules, not from the
//! engine's code. A route list that is searched from end to end, addresses classed by the standard
//! library, the sixteen ECN cases as the RFC's table.
//!
//! A question is answered with every reason against the packet; the engine may name any of them,
//! and may only pass a packet that has none.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use warren_core::batch::{Link, Transport};
use warren_core::encap::Encapsulation;
use warren_core::tables::{DscpMode, EcnMode, Local, NextHop, Peer, PeerId, Tunnel};
use warren_core::units::{MacAddr, Vni};
use warren_core::verdict::DropReason;
use warren_core::wire::GeneveHeader;

/// Reasons against a packet.
pub(super) type Reasons = BTreeSet<DropReason>;

/// The tables of one node as plain lists.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) local: Local,
    pub(super) peers: Vec<(PeerId, Peer)>,
    pub(super) routes: Vec<(IpNet, NextHop)>,
}

/// What an inner IP header says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inner {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) hop_limit: u8,
    pub(super) traffic_class: u8,
    pub(super) octets: usize,
}

impl Inner {
    /// Reads the fixed offsets of RFC 791 and RFC 8200; `None` when there is no whole packet.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => {
                let header = bytes.first_chunk::<20>()?;
                let octets = usize::from(u16::from_be_bytes([header[2], header[3]]));
                (octets >= 20 && octets <= bytes.len()).then(|| Self {
                    source: IpAddr::from([header[12], header[13], header[14], header[15]]),
                    destination: IpAddr::from([header[16], header[17], header[18], header[19]]),
                    hop_limit: header[8],
                    traffic_class: header[1],
                    octets,
                })
            }
            6 => {
                let header = bytes.first_chunk::<40>()?;
                let address = |at: usize| {
                    let mut octets = [0; 16];
                    octets.copy_from_slice(&header[at..at + 16]);
                    IpAddr::from(octets)
                };
                let octets = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
                (octets <= bytes.len()).then(|| Self {
                    source: address(8),
                    destination: address(24),
                    hop_limit: header[7],
                    traffic_class: header[0] << 4 | header[1] >> 4,
                    octets,
                })
            }
            _ => None,
        }
    }
}

/// Where a packet from the device may go, each with the reasons against it.
#[derive(Debug)]
pub(super) enum Expected {
    /// Nowhere.
    Dropped(Reasons),
    /// Onto the link, to this address, if there are no reasons.
    Direct(IpAddr, Reasons),
    /// Through one of these.
    Tunnels(Vec<(Tunnel, Reasons)>),
}

impl Model {
    /// The next hop of the longest prefix, by looking at all of them.
    pub(super) fn lookup(&self, address: IpAddr) -> Option<&NextHop> {
        self.routes
            .iter()
            .filter(|(prefix, _)| prefix.contains(&address))
            .max_by_key(|(prefix, _)| prefix.prefix_len())
            .map(|(_, next_hop)| next_hop)
    }

    /// Puts a route in place of the one for the same prefix.
    pub(super) fn insert(&mut self, prefix: IpNet, next_hop: NextHop) {
        self.remove(prefix);
        self.routes.push((prefix.trunc(), next_hop));
    }

    /// Removes the route for a prefix and returns whether there was one.
    pub(super) fn remove(&mut self, prefix: IpNet) -> bool {
        let before = self.routes.len();
        self.routes.retain(|(known, _)| *known != prefix.trunc());
        before != self.routes.len()
    }

    /// What becomes of a packet from the device.
    pub(super) fn encap(&self, inner: &Inner) -> Expected {
        let mut reasons = address_reasons(inner);
        if !matches!(self.lookup(inner.source), Some(NextHop::Local)) {
            reasons.insert(DropReason::SourceNotLocal);
        }
        let is_underlay = self.local.underlay.contains(&inner.destination)
            || self.peer_of(inner.destination).is_some();
        if is_underlay {
            reasons.insert(DropReason::TunnelLoop);
        }
        if inner.hop_limit <= 1 {
            reasons.insert(DropReason::TtlExpired);
        }
        let mut dropped = |reason| {
            reasons.insert(reason);
            Expected::Dropped(reasons.clone())
        };
        match self.lookup(inner.destination) {
            None => dropped(DropReason::NoRoute),
            Some(NextHop::Blackhole) => dropped(DropReason::Blackhole),
            Some(NextHop::Prohibit) => dropped(DropReason::Prohibited),
            Some(NextHop::Local) => dropped(DropReason::DestinationUnassigned),
            Some(NextHop::Direct { gateway }) => {
                Expected::Direct(gateway.unwrap_or(inner.destination), reasons)
            }
            Some(NextHop::Tunnel(tunnel)) => {
                Expected::Tunnels(vec![self.enter(inner, tunnel, reasons)])
            }
            Some(NextHop::EqualCost(tunnels)) => Expected::Tunnels(
                tunnels
                    .iter()
                    .map(|tunnel| self.enter(inner, tunnel, reasons.clone()))
                    .collect(),
            ),
        }
    }

    fn enter(&self, inner: &Inner, tunnel: &Tunnel, mut reasons: Reasons) -> (Tunnel, Reasons) {
        if [inner.source, inner.destination].contains(&tunnel.remote) {
            reasons.insert(DropReason::TunnelLoop);
        }
        // Every IPv6 link carries 1280 octets. RFC 8200 section 5.
        let least = if inner.source.is_ipv6() { 1280 } else { 0 };
        if inner.octets > usize::from(tunnel.mtu.octets().max(least)) {
            reasons.insert(DropReason::TooBig);
        }
        (*tunnel, reasons)
    }

    /// The reasons against a frame from the underlay, and its inner packet where it can be found.
    pub(super) fn decap<'b>(&self, link: &Link, bytes: &'b [u8]) -> (Reasons, Option<&'b [u8]>) {
        let mut reasons = Reasons::new();
        let peer = self.peer_of(link.remote);
        if peer.is_none() || self.local.underlay.contains(&link.remote) {
            reasons.insert(DropReason::UnknownPeer);
        }
        let packet = match self.open(link.transport, bytes) {
            Ok(packet) => packet,
            Err(reason) => {
                reasons.insert(reason);
                return (reasons, None);
            }
        };
        let Some(inner) = Inner::read(packet) else {
            reasons.insert(DropReason::MalformedPacket);
            return (reasons, None);
        };
        reasons.extend(address_reasons(&inner));
        let own = self.local.addresses.contains(&inner.source)
            || self.local.underlay.contains(&inner.source);
        let source_hop = self.lookup(inner.source);
        if own || matches!(source_hop, Some(NextHop::Local)) {
            reasons.insert(DropReason::SourceIsLocal);
        }
        let owners: Vec<PeerId> = match source_hop {
            Some(NextHop::Tunnel(tunnel)) => vec![tunnel.peer],
            Some(NextHop::EqualCost(tunnels)) => tunnels.iter().map(|t| t.peer).collect(),
            // A peer that gets its packets as they are may still send through a tunnel.
            Some(NextHop::Direct { gateway }) => {
                let peer = gateway.and_then(|gateway| self.peer_of(gateway));
                peer.map(|(id, _)| *id).into_iter().collect()
            }
            Some(NextHop::Blackhole | NextHop::Prohibit | NextHop::Local) | None => Vec::new(),
        };
        if !peer.is_some_and(|(id, _)| owners.contains(id)) {
            reasons.insert(DropReason::SourceNotOwnedByPeer);
        }
        if !matches!(self.lookup(inner.destination), Some(NextHop::Local)) {
            // And worse where it would go back.
            reasons.insert(DropReason::DestinationNotLocal);
            reasons.insert(DropReason::TunnelLoop);
        }
        if inner.hop_limit == 0 {
            reasons.insert(DropReason::TtlExpired);
        }
        if ecn_after(inner.traffic_class, link.traffic_class).is_none() {
            reasons.insert(DropReason::EcnCongestionNotCapable);
        }
        if self.is_nested(packet) {
            reasons.insert(DropReason::NestedTunnel);
        }
        (reasons, Some(&packet[..inner.octets]))
    }

    /// The traffic class that a delivered packet has.
    pub(super) fn delivered_class(&self, link: &Link, inner: u8) -> Option<u8> {
        let (_, peer) = self.peer_of(link.remote)?;
        let dscp = match peer.dscp {
            DscpMode::Pipe(_) | DscpMode::Map(_) => inner,
            DscpMode::Uniform => link.traffic_class,
        };
        Some(dscp & !0b11 | ecn_after(inner, link.traffic_class)?)
    }

    fn peer_of(&self, address: IpAddr) -> Option<&(PeerId, Peer)> {
        self.peers
            .iter()
            .find(|(_, peer)| peer.underlay.contains(&address))
    }

    /// The inner packet behind the shim.
    fn open<'b>(&self, transport: Transport, bytes: &'b [u8]) -> Result<&'b [u8], DropReason> {
        let receive = &self.local.receive;
        match transport {
            Transport::Ip { protocol } => match protocol {
                _ if !receive.ipip => Err(DropReason::EncapsulationNotEnabled),
                4 | 41 => of_version(bytes, protocol),
                _ => Err(DropReason::MalformedEncapsulation),
            },
            Transport::Udp { local_port, .. } => {
                if receive.vxlan.contains(&local_port) {
                    let (header, rest) = bytes
                        .split_at_checked(8)
                        .ok_or(DropReason::MalformedEncapsulation)?;
                    if header[0] & 8 == 0 || receive.strict_vxlan && !is_plain_vxlan(header) {
                        return Err(DropReason::MalformedEncapsulation);
                    }
                    self.knows_vni([header[4], header[5], header[6]])?;
                    self.open_ethernet(rest)
                } else if receive.vxlan_gpe.contains(&local_port) {
                    let (header, rest) = bytes
                        .split_at_checked(8)
                        .ok_or(DropReason::MalformedEncapsulation)?;
                    let protocol = match (header[0] & 0x3d, header[3]) {
                        (0x0c, protocol) => protocol,
                        // Without the flag P it is Ethernet, and the field zero.
                        (0x08, 0) => 3,
                        _ => return Err(DropReason::MalformedEncapsulation),
                    };
                    self.knows_vni([header[4], header[5], header[6]])?;
                    match protocol {
                        1 => of_version(rest, 4),
                        2 => of_version(rest, 41),
                        3 => self.open_ethernet(rest),
                        _ => Err(DropReason::NotIp),
                    }
                } else if receive.geneve.contains(&local_port) {
                    let (header, rest) = bytes
                        .split_at_checked(8)
                        .ok_or(DropReason::MalformedEncapsulation)?;
                    if header[0] >> 6 != 0 || header[1] & 0xc0 != 0 {
                        return Err(DropReason::MalformedEncapsulation);
                    }
                    self.knows_vni([header[4], header[5], header[6]])?;
                    let rest = rest
                        .get(usize::from(header[0] & 0x3f) * 4..)
                        .ok_or(DropReason::MalformedEncapsulation)?;
                    match [header[2], header[3]] {
                        [0x65, 0x58] => self.open_ethernet(rest),
                        [0x08, 0x00] => of_version(rest, 4),
                        [0x86, 0xdd] => of_version(rest, 41),
                        _ => Err(DropReason::NotIp),
                    }
                } else if receive.fou_gue.contains(&local_port) {
                    match bytes {
                        [first, ..] if matches!(first >> 4, 4 | 6) => Ok(bytes),
                        [first, protocol @ (4 | 41), 0, 0, rest @ ..] if first & 0xe0 == 0 => {
                            let rest = rest.get(usize::from(*first) * 4..);
                            of_version(rest.ok_or(DropReason::MalformedEncapsulation)?, *protocol)
                        }
                        _ => Err(DropReason::MalformedEncapsulation),
                    }
                } else {
                    Err(DropReason::EncapsulationNotEnabled)
                }
            }
        }
    }

    fn knows_vni(&self, octets: [u8; 3]) -> Result<(), DropReason> {
        if self.local.receive.vnis.contains(&Vni::from_octets(octets)) {
            Ok(())
        } else {
            Err(DropReason::UnknownVni)
        }
    }

    fn open_ethernet<'b>(&self, bytes: &'b [u8]) -> Result<&'b [u8], DropReason> {
        let (header, rest) = bytes
            .split_at_checked(14)
            .ok_or(DropReason::MalformedEncapsulation)?;
        let own = self.local.vtep_mac.octets();
        match (&header[..6], &header[6..12], [header[12], header[13]]) {
            (_, _, [0x81, 0x00] | [0x88, 0xa8]) => Err(DropReason::VlanTagged),
            (_, from, _) if from == own => Err(DropReason::OwnVtepMac),
            (to, _, _) if to != own && to != MacAddr::BROADCAST.octets() => {
                Err(DropReason::WrongVtepMac)
            }
            (_, _, [0x08, 0x00]) => of_version(rest, 4),
            (_, _, [0x86, 0xdd]) => of_version(rest, 41),
            _ => Err(DropReason::NotIp),
        }
    }

    fn is_to_host(&self, packet: &[u8]) -> bool {
        let is_it = |own: &IpAddr| match own {
            IpAddr::V4(own) => packet[0] >> 4 == 4 && packet[16..20] == own.octets(),
            IpAddr::V6(own) => packet[0] >> 4 == 6 && packet[24..40] == own.octets(),
        };
        self.local
            .addresses
            .iter()
            .chain(&self.local.underlay)
            .any(is_it)
    }

    /// Whether a packet without options, extensions and fragments is a tunnel packet again.
    fn is_nested(&self, packet: &[u8]) -> bool {
        let receive = &self.local.receive;
        let (protocol, behind) = if packet[0] >> 4 == 4 {
            (packet[9], &packet[20..])
        } else {
            (packet[6], &packet[40..])
        };
        match protocol {
            4 | 41 => receive.ipip || self.is_to_host(packet),
            17 => {
                let [_, _, high, low, _, _, _, _, payload @ ..] = behind else {
                    return false;
                };
                let port = u16::from_be_bytes([*high, *low]);
                if receive.vxlan.contains(&port) {
                    matches!(payload, [flags, _, _, _, _, _, _, _, ..] if flags & 8 != 0)
                } else if receive.vxlan_gpe.contains(&port) {
                    matches!(payload, [flags, _, _, protocol, _, _, _, _, ..]
                        if flags & 0x3d == 0x0c || flags & 0x3d == 0x08 && *protocol == 0)
                } else if receive.geneve.contains(&port) {
                    GeneveHeader::parse(payload).is_ok()
                } else if receive.fou_gue.contains(&port) {
                    match payload {
                        [first, ..] if matches!(first >> 4, 4 | 6) => true,
                        [first, _, 0, 0, rest @ ..] => {
                            first & 0xe0 == 0 && rest.len() >= usize::from(*first) * 4
                        }
                        _ => false,
                    }
                } else {
                    false
                }
            }
            _ => false,
        }
    }
}

/// The shim that stands in front of an inner packet.
pub(super) fn shim(encapsulation: Encapsulation, vtep_mac: MacAddr, v6: bool) -> Vec<u8> {
    let ethernet = |mac: MacAddr| {
        let ether_type = if v6 { [0x86, 0xdd] } else { [0x08, 0x00] };
        [&mac.octets()[..], &vtep_mac.octets(), &ether_type].concat()
    };
    match encapsulation {
        Encapsulation::Vxlan { vni, mac, .. } => {
            let [a, b, c] = vni.octets();
            [vec![8, 0, 0, 0, a, b, c, 0], ethernet(mac)].concat()
        }
        Encapsulation::Geneve { vni, mac, .. } => {
            let [a, b, c] = vni.octets();
            [vec![0, 0, 0x65, 0x58, a, b, c, 0], ethernet(mac)].concat()
        }
        Encapsulation::VxlanGpe { vni, .. } => {
            let [a, b, c] = vni.octets();
            vec![0x0c, 0, 0, if v6 { 2 } else { 1 }, a, b, c, 0]
        }
        Encapsulation::Gue { .. } => vec![0, if v6 { 41 } else { 4 }, 0, 0],
        Encapsulation::Ipip | Encapsulation::Fou { .. } => Vec::new(),
    }
}

/// The traffic class of the outer header.
pub(super) const fn outer_class(inner: u8, tunnel: &Tunnel) -> u8 {
    let dscp = match tunnel.dscp {
        DscpMode::Pipe(dscp) => dscp << 2,
        DscpMode::Uniform => inner & !0b11,
        DscpMode::Map(map) => map.outer(inner >> 2) << 2,
    };
    match tunnel.ecn {
        EcnMode::Normal => dscp | inner & 0b11,
        EcnMode::Compatibility => dscp,
    }
}

/// RFC 6040 figure 4: rows are the inner field, columns the outer one, both in the order Not-ECT,
/// ECT(1), ECT(0), CE of their bits; `None` is a drop.
fn ecn_after(inner: u8, outer: u8) -> Option<u8> {
    const NOT: u8 = 0b00;
    const ECT1: u8 = 0b01;
    const ECT0: u8 = 0b10;
    const CE: u8 = 0b11;
    const FIGURE_4: [[Option<u8>; 4]; 4] = [
        [Some(NOT), Some(NOT), Some(NOT), None],
        [Some(ECT1), Some(ECT1), Some(ECT1), Some(CE)],
        [Some(ECT0), Some(ECT1), Some(ECT0), Some(CE)],
        [Some(CE), Some(CE), Some(CE), Some(CE)],
    ];
    FIGURE_4[usize::from(inner & 0b11)][usize::from(outer & 0b11)]
}

fn address_reasons(inner: &Inner) -> Reasons {
    let mut reasons = Reasons::new();
    let (source, destination) = (inner.source, inner.destination);
    if source.is_unspecified() {
        reasons.insert(DropReason::SourceUnspecified);
    } else if is_reserved(source) {
        reasons.insert(DropReason::SourceReserved);
    }
    if source.is_loopback() {
        reasons.insert(DropReason::SourceLoopback);
    }
    if is_group(source) {
        reasons.insert(DropReason::SourceMulticast);
    }
    if is_link_local(source) || is_link_local(destination) {
        reasons.insert(DropReason::LinkLocal);
    }
    if is_group(destination) {
        reasons.insert(DropReason::DestinationMulticast);
    }
    if destination.is_unspecified() || destination.is_loopback() || is_reserved(destination) {
        reasons.insert(DropReason::DestinationInvalid);
    }
    reasons
}

/// Addresses that stand for something else: "this network" and IPv4 in IPv6.
fn is_reserved(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[0] == 0,
        IpAddr::V6(address) => {
            let mapped = address.to_ipv4_mapped().is_some();
            let compatible = address.octets()[..12] == [0; 12];
            (mapped || compatible) && !address.is_loopback()
        }
    }
}

fn is_group(address: IpAddr) -> bool {
    address.is_multicast() || matches!(address, IpAddr::V4(address) if address.is_broadcast())
}

const fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn is_plain_vxlan(header: &[u8]) -> bool {
    header[0] == 8 && header[1..4] == [0; 3] && header[7] == 0
}

fn of_version(bytes: &[u8], protocol: u8) -> Result<&[u8], DropReason> {
    let version = if protocol == 4 { 4 } else { 6 };
    match bytes.first() {
        Some(first) if first >> 4 == version => Ok(bytes),
        _ => Err(DropReason::MalformedPacket),
    }
}
