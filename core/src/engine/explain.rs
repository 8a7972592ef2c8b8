//! What would happen to a packet, and why: the answers of the live path, written down.
//!
//! Nothing is counted, limited or changed. Allocates; for people and tests, not for the path.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use ipnet::IpNet;
use zerocopy::IntoBytes;

use super::decap::{Admitted, verdict_of};
use super::encap::{Size, Way, path_mtu};
use super::lookups::Hops;
use super::{Answer, Engine, Refusal, Rules};
use crate::batch::{Link, Transport};
use crate::encap::EncapsulationKind;
use crate::encap::shim::Opened;
use crate::fib::NextHopId;
use crate::packet::{FlowKey, Packet};
use crate::tables::{NextHop, PeerId, Tables, Tunnel};
use crate::units::Mtu;
use crate::verdict::{Direction, DropReason, Verdict};
use crate::wire::{Ipv4Header, Ipv6Header};

/// What [`Engine::explain`] found: everything that was known when the verdict fell.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// Which way the packet was taken to go.
    pub direction: Direction,
    /// What would be done. A [`Verdict::Reply`] is subject to the rate limit.
    pub verdict: Verdict,
    /// The inner packet, if it could be read.
    pub packet: Option<Packet>,
    /// The route that holds its source.
    pub source_route: Option<Route>,
    /// The route that holds its destination.
    pub route: Option<Route>,
    /// The peer at the other end of the tunnel, and its name.
    pub peer: Option<(PeerId, String)>,
    /// The tunnel that it would take; encapsulation only.
    pub tunnel: Option<Tunnel>,
    /// How it is or would be wrapped.
    pub encapsulation: Option<EncapsulationKind>,
    /// The largest packet that the way carries; encapsulation only.
    pub mtu: Option<Mtu>,
    /// The outer addresses, ports, TTL, DF and traffic class.
    pub link: Option<Link>,
    /// What the sender would be told, and by which address.
    pub answer: Option<(Answer, IpAddr)>,
    /// What the sender of a packet above [`mtu`](Self::mtu) would be told, and by which address.
    pub too_big: Option<(Answer, IpAddr)>,
}

/// A route that holds an address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Route {
    /// The longest prefix that holds it.
    pub prefix: IpNet,
    /// Where it leads.
    pub next_hop: NextHop,
}

impl Engine {
    /// Says what would happen to `packet`.
    ///
    /// For [`Direction::Encap`] it is an IP packet of the local device, and `link` is ignored; for
    /// [`Direction::Decap`] it is what `link` brought, the shim first.
    #[must_use]
    pub fn explain(&self, direction: Direction, packet: &[u8], link: &Link) -> Explanation {
        let mut found = Explanation::new(direction);
        let verdict = match direction {
            Direction::Encap => self.rules().explain_encap(packet, &mut found),
            Direction::Decap => self.rules().explain_decap(packet, link, &mut found),
        };
        found.verdict = verdict.unwrap_or_else(Verdict::Drop);
        found
    }

    /// Says what would happen to a packet of `flow` that has `octets` in all, DF set and a TTL of
    /// 64.
    ///
    /// For [`Direction::Decap`] it is taken to come out of the tunnel that leads to its source.
    #[must_use]
    pub fn explain_flow(&self, direction: Direction, flow: &FlowKey, octets: u16) -> Explanation {
        let mut found = Explanation::new(direction);
        let verdict = match sample(flow, octets) {
            None => Err(DropReason::MalformedPacket),
            Some(packet) => match direction {
                Direction::Encap => self.rules().explain_encap(&packet, &mut found),
                Direction::Decap => self.rules().explain_arrival(&packet, &mut found),
            },
        };
        found.verdict = verdict.unwrap_or_else(Verdict::Drop);
        found
    }
}

impl Rules<'_> {
    fn explain_encap(&self, bytes: &[u8], found: &mut Explanation) -> Result<Verdict, DropReason> {
        found.packet = Packet::parse(bytes).ok();
        let packet = Rules::read(bytes).and_then(Rules::admit)?;
        let hops = self.explain_routes(&packet, found);
        let next_hop = hops.destination.and_then(|id| self.tables.next_hop(id));
        if let Some(tunnel) = next_hop.and_then(|hop| self.tunnel(&packet, hop)) {
            found.tunnel = Some(*tunnel);
            found.encapsulation = Some(tunnel.encapsulation.kind());
            let mtu = path_mtu(tunnel, packet.family());
            found.mtu = Some(mtu);
            let refusal = Refusal::answered(DropReason::TooBig, Answer::TooBig { mtu });
            found.too_big = self.answer_to(&refusal, &packet, bytes);
            found.peer = named(self.tables, tunnel.peer);
        }
        match self.way(&packet, Size::of_one(&packet), hops) {
            Ok(Way::Tunnel { link, .. }) => {
                found.link = Some(link);
                Ok(Verdict::Transmit)
            }
            Ok(Way::Cut(cut)) => {
                found.link = Some(cut.link);
                Ok(Verdict::Transmit)
            }
            Ok(Way::Direct { link, .. }) => {
                found.link = Some(link);
                Ok(Verdict::Direct)
            }
            Err(refusal) => {
                found.answer = self.answer_to(&refusal, &packet, bytes);
                Ok(match found.answer {
                    Some(_) => Verdict::Reply(refusal.reason),
                    None => Verdict::Drop(refusal.reason),
                })
            }
        }
    }

    fn explain_decap(
        &self,
        bytes: &[u8],
        link: &Link,
        found: &mut Explanation,
    ) -> Result<Verdict, DropReason> {
        found.link = Some(*link);
        let peer = self.peer(link)?;
        found.peer = named(self.tables, peer);
        let opened = self.open(bytes, link)?;
        found.encapsulation = Some(opened.kind);
        let inner = bytes.get(opened.shim_octets..).unwrap_or_default();
        self.explain_admitted(&Admitted { peer, opened }, inner, link, found)
    }

    /// As if the IP packet `inner` came out of the tunnel that leads to its source.
    fn explain_arrival(
        &self,
        inner: &[u8],
        found: &mut Explanation,
    ) -> Result<Verdict, DropReason> {
        let packet = Packet::parse(inner).map_err(|_| DropReason::MalformedPacket)?;
        found.packet = Some(packet);
        let hops = self.explain_routes(&packet, found);
        self.inspect(&packet, inner)?;
        let back = hops.source.and_then(|id| self.tables.next_hop(id));
        let Some(tunnel) = back.and_then(|hop| self.tunnel(&packet, hop)) else {
            return Err(match back {
                Some(NextHop::Local) => DropReason::SourceIsLocal,
                _ => DropReason::SourceNotOwnedByPeer,
            });
        };
        let link = Link {
            local: tunnel.local,
            remote: tunnel.remote,
            ..Link::LOCAL
        };
        let opened = Opened {
            kind: tunnel.encapsulation.kind(),
            vni: None,
            shim_octets: 0,
            packet,
        };
        found.encapsulation = Some(opened.kind);
        found.peer = named(self.tables, tunnel.peer);
        let peer = tunnel.peer;
        self.explain_admitted(&Admitted { peer, opened }, inner, &link, found)
    }

    fn explain_admitted(
        &self,
        admitted: &Admitted,
        inner: &[u8],
        link: &Link,
        found: &mut Explanation,
    ) -> Result<Verdict, DropReason> {
        let packet = &admitted.opened.packet;
        found.packet = Some(*packet);
        let hops = self.explain_routes(packet, found);
        self.arrive(admitted, link, hops)
            .map(|_| verdict_of(packet, inner))
    }

    fn explain_routes(&self, packet: &Packet, found: &mut Explanation) -> Hops {
        let (source, source_route) = route(self.tables, packet.flow.source);
        let (destination, route) = route(self.tables, packet.flow.destination);
        found.source_route = source_route;
        found.route = route;
        Hops {
            source,
            destination,
        }
    }
}

impl Explanation {
    const fn new(direction: Direction) -> Self {
        Self {
            direction,
            verdict: Verdict::Undecided,
            packet: None,
            source_route: None,
            route: None,
            peer: None,
            tunnel: None,
            encapsulation: None,
            mtu: None,
            link: None,
            answer: None,
            too_big: None,
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(packet) = &self.packet {
            let flow = &packet.flow;
            writeln!(
                f,
                "packet         {} -> {}, protocol {}, ports {} -> {}, {} octets, ttl {}",
                flow.source,
                flow.destination,
                flow.protocol,
                flow.source_port,
                flow.destination_port,
                packet.total_octets,
                packet.hop_limit
            )?;
        }
        for (label, route) in [("source route", &self.source_route), ("route", &self.route)] {
            if let Some(Route { prefix, next_hop }) = route {
                writeln!(f, "{label:<14} {prefix} {}", kind_of(next_hop))?;
            }
        }
        if let Some((_, name)) = &self.peer {
            writeln!(f, "peer           {name}")?;
        }
        match (&self.tunnel, self.encapsulation) {
            (Some(tunnel), _) => writeln!(f, "encapsulation  {}", tunnel.encapsulation)?,
            (None, Some(kind)) => writeln!(f, "encapsulation  {kind}")?,
            (None, None) => {}
        }
        if let Some(mtu) = self.mtu {
            writeln!(f, "mtu            {mtu}")?;
        }
        if let Some(link) = &self.link {
            write_link(f, link)?;
        }
        if let Some((answer, source)) = &self.answer {
            writeln!(f, "answer         {answer} from {source}")?;
        }
        match self.verdict {
            Verdict::Undecided => f.write_str("verdict        undecided"),
            Verdict::Transmit => f.write_str("verdict        transmit"),
            Verdict::Deliver => f.write_str("verdict        deliver"),
            Verdict::Probe => f.write_str("verdict        probe"),
            Verdict::Direct => f.write_str("verdict        send without encapsulation"),
            Verdict::Reply(reason) => write!(f, "verdict        drop and answer: {reason}"),
            Verdict::Drop(reason) => write!(f, "verdict        drop: {reason}"),
        }
    }
}

fn write_link(f: &mut fmt::Formatter<'_>, link: &Link) -> fmt::Result {
    match link.transport {
        Transport::Udp {
            local_port,
            remote_port,
        } => writeln!(
            f,
            "underlay       {} port {local_port}, peer {} port {remote_port}",
            link.local, link.remote
        ),
        Transport::Ip { protocol: 0 } => writeln!(f, "underlay       to {}", link.remote),
        Transport::Ip { protocol } => writeln!(
            f,
            "underlay       {}, peer {}, protocol {protocol}",
            link.local, link.remote
        ),
    }
}

const fn kind_of(next_hop: &NextHop) -> &'static str {
    match next_hop {
        NextHop::Direct { .. } => "direct",
        NextHop::Tunnel(_) => "tunnel",
        NextHop::EqualCost(_) => "equal cost",
        NextHop::Blackhole => "blackhole",
        NextHop::Prohibit => "prohibit",
        NextHop::Local => "local",
    }
}

fn named(tables: &Tables, id: PeerId) -> Option<(PeerId, String)> {
    tables.peer(id).map(|peer| (id, peer.name.clone()))
}

fn route(tables: &Tables, address: IpAddr) -> (Option<NextHopId>, Option<Route>) {
    let id = match address {
        IpAddr::V4(address) => tables.fib_v4().lookup(address),
        IpAddr::V6(address) => tables.fib_v6().lookup(address),
    };
    let route = tables
        .lookup_prefix(address)
        .map(|(prefix, next_hop)| Route {
            prefix,
            next_hop: next_hop.clone(),
        });
    (id, route)
}

/// A packet of `flow` with `octets` in all, as many as its headers need at least; `None` when the
/// addresses are of different families.
fn sample(flow: &FlowKey, octets: u16) -> Option<Vec<u8>> {
    // Ports, or the type, code, checksum and identifier of an echo.
    const TRANSPORT: u16 = 8;
    let mut packet = Vec::new();
    match (flow.source, flow.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let octets = octets.max(20 + TRANSPORT);
            let mut header = Ipv4Header::new(source, destination, flow.protocol, octets);
            header.set_fragment_word(Ipv4Header::DONT_FRAGMENT);
            header.fill_checksum(&[]);
            packet.extend_from_slice(header.as_bytes());
            packet.resize(usize::from(octets), 0);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let payload = octets.saturating_sub(40).max(TRANSPORT);
            let header = Ipv6Header::new(source, destination, flow.protocol, payload);
            packet.extend_from_slice(header.as_bytes());
            packet.resize(40 + usize::from(payload), 0);
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    }
    write_ports(&mut packet, flow);
    Some(packet)
}

fn write_ports(packet: &mut [u8], flow: &FlowKey) {
    use crate::wire::ip_protocol;
    let transport = match flow.source {
        IpAddr::V4(_) => packet.get_mut(20..),
        IpAddr::V6(_) => packet.get_mut(40..),
    };
    let [a, b] = flow.source_port.to_be_bytes();
    let [c, d] = flow.destination_port.to_be_bytes();
    let octets: [u8; 8] = match flow.protocol {
        ip_protocol::ICMP => [8, 0, 0, 0, a, b, 0, 0],
        ip_protocol::ICMPV6 => [128, 0, 0, 0, a, b, 0, 0],
        _ => [a, b, c, d, 0, 0, 0, 0],
    };
    for (to, from) in transport.into_iter().flatten().zip(octets) {
        *to = from;
    }
}
