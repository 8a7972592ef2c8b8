//! From the local device to the underlay.
//!
//! [`Engine::encap`] walks over a batch in two passes around one gathered lookup; `Rules` decides
//! and never changes a frame, `send` writes what was decided and never decides. The quoted packet
//! of an ICMP error is as it came, because nothing is written before everything is decided.
//!
//! Obeys RFC 1812 section 5 where it forwards, RFC 2003, RFC 2473 and RFC 4213 for what enters a
//! tunnel, RFC 6040, RFC 9601 and RFC 2983 for the traffic class. What becomes of a packet that does
//! not fit is told in `fit`. Knowingly not RFC 2473 section 4.1.1: no tunnel encapsulation limit is
//! read or written on the way in, because no tunnel lies inside another one here: the engine at the
//! other end refuses a packet that is itself one of a tunnel.

use core::net::IpAddr;

use super::fit::Cut;
use super::flows::{Departure, EncapKey, Flows, Shim, may_be_known};
use super::lookups::{CHUNK, Hops};
use super::offers::traffic_classes;
use super::{Answer, Engine, Refusal, Rules, check, drop_frame, reply, set_hop_limit, undecided};
use crate::batch::{Batch, Frame, Link, Transport};
use crate::encap::shim::ip_in_ip;
use crate::encap::{Encapsulation, EncapsulationKind, ecn, shim};
use crate::fragment::is_tcp_syn;
use crate::gso::{Offload, SegmentKind};
use crate::packet::Packet;
use crate::policy::Permit;
use crate::tables::{NextHop, PeerId, Tunnel};
use crate::units::{Family, Mtu, Time};
use crate::verdict::{Counters, Direction, DropReason, Verdict};
use crate::wire::{TcpHeader, UdpHeader};

/// What becomes of a packet that passes.
#[derive(Debug)]
pub(super) enum Way<'t> {
    /// Into the tunnel.
    Tunnel {
        tunnel: &'t Tunnel,
        link: Link,
        permit: Permit,
        /// The segment size that a TCP super-packet is to be cut to in place of its own.
        segment_octets: Option<u16>,
    },
    /// Into the tunnel in several fragments.
    Cut(Cut<'t>),
    /// Onto the underlay's own link.
    Direct { link: Link, permit: Permit },
}

impl Engine {
    /// Encapsulates the IP packets of a batch that came from the local device.
    ///
    /// Every frame that is [`Verdict::Undecided`] gets a verdict; the others are left alone.
    pub fn encap(&mut self, batch: &mut Batch, now: Time) {
        for start in (0..batch.len()).step_by(CHUNK) {
            self.encap_chunk(batch, start, now);
        }
    }

    fn encap_chunk(&mut self, batch: &mut Batch, start: usize, now: Time) {
        let rules = Rules {
            tables: &self.tables,
            config: &self.config,
            policy: self.policy,
        };
        self.lookups.clear();
        for (index, slot) in (start..batch.len()).zip(&mut self.admitted) {
            *slot = None;
            let Some(mut frame) = undecided(batch, index) else {
                continue;
            };
            self.encap.received.count(frame.bytes().len());
            let parsed = Rules::read(frame.bytes());
            if let Ok(packet) = &parsed
                && rules
                    .depart(&mut frame, packet, &mut self.departures)
                    .map(|(peer, kind)| {
                        let octets = frame.bytes().len();
                        self.encap.forwarded.count(octets);
                        if let Some(peer) = self.peers.get_mut(peer.index()) {
                            peer.count_sent(kind, octets);
                        }
                        if let Some(known) = self.departures.offered() {
                            self.offers.departure(known, frame.link());
                        }
                    })
                    .is_some()
            {
                continue;
            }
            match parsed.and_then(Rules::admit) {
                Ok(packet) => {
                    self.lookups.ask(&packet);
                    *slot = Some(packet);
                }
                Err(reason) => drop_frame(&mut frame, reason, &mut self.encap),
            }
        }
        self.lookups.resolve();
        for (index, slot) in (start..batch.len()).zip(&self.admitted) {
            let (Some(packet), Some(frame)) = (slot, batch.frame_mut(index)) else {
                continue;
            };
            let hops = self.lookups.answer(packet.family());
            let size = Size::of(packet, frame.bytes(), frame.offload());
            let way = match rules.way(packet, size, hops) {
                Ok(Way::Cut(cut)) => {
                    if Rules::has_room_for_pieces(batch, packet, &cut) {
                        let sent = rules.send_pieces(batch, index, packet, &cut);
                        match sent {
                            Ok((frames, octets)) => {
                                self.encap.forwarded.count(octets);
                                self.encap.fragmented += 1;
                                self.encap.fragments += frames.saturating_sub(1);
                                let tunnel = cut.tunnel;
                                if let Some(peer) = self.peers.get_mut(tunnel.peer.index()) {
                                    let kind = tunnel.encapsulation.kind();
                                    peer.count_sent_many(kind, frames, octets);
                                }
                            }
                            Err(reason) => {
                                if let Some(mut frame) = batch.frame_mut(index) {
                                    drop_frame(&mut frame, reason, &mut self.encap);
                                }
                            }
                        }
                        continue;
                    }
                    Err(Refusal::answered(
                        DropReason::TooBig,
                        Answer::TooBig { mtu: cut.mtu },
                    ))
                }
                other => other,
            };
            let Some(mut frame) = batch.frame_mut(index) else {
                continue;
            };
            let way = match way {
                Ok(way) => way,
                Err(refusal) => {
                    drop_frame(&mut frame, refusal.reason, &mut self.encap);
                    if let Some(answer) = rules.answer_to(&refusal, packet, frame.bytes()) {
                        reply(
                            &mut frame,
                            packet,
                            answer,
                            refusal.reason,
                            &mut self.encap,
                            &mut self.limiters,
                            now,
                        );
                    }
                    continue;
                }
            };
            match rules.send(&mut frame, packet, way, &mut self.encap) {
                Ok(tunnel) => {
                    if let Some(tunnel) = tunnel
                        && let Some(departure) = Departure::of(packet, &frame, tunnel, &rules)
                    {
                        self.departures
                            .insert(packet.flow, EncapKey::of(packet), departure);
                    }
                    let octets = frame.bytes().len();
                    self.encap.forwarded.count(octets);
                    if let Some(tunnel) = tunnel
                        && let Some(peer) = self.peers.get_mut(tunnel.peer.index())
                    {
                        peer.count_sent(tunnel.encapsulation.kind(), octets);
                    }
                }
                Err(reason) => drop_frame(&mut frame, reason, &mut self.encap),
            }
        }
    }
}

impl<'t> Rules<'t> {
    /// Reads a packet and checks what its octets say.
    pub(super) fn read(bytes: &[u8]) -> Result<Packet, DropReason> {
        let packet = Packet::parse(bytes).map_err(|_| DropReason::MalformedPacket)?;
        check::soundness(&packet, bytes)?;
        Ok(packet)
    }

    /// Checks what a packet's addresses say and needs no lookup.
    pub(super) fn admit(packet: Packet) -> Result<Packet, DropReason> {
        check::source(packet.flow.source)?;
        check::destination(packet.flow.destination)?;
        Ok(packet)
    }

    /// Sends a packet the way that its flow is known to go; says to whom and how, or `None` when
    /// the packet has to take the whole way.
    fn depart(
        &self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        flows: &mut Flows<EncapKey, Departure>,
    ) -> Option<(PeerId, EncapsulationKind)> {
        if !may_be_known(packet)
            || packet.hop_limit <= u8::from(self.config.decrement_ttl)
            || is_tcp_syn(frame.bytes(), packet)
        {
            return None;
        }
        let ready = flows.find(&packet.flow, &EncapKey::of(packet))?;
        let shim = ready.shim.octets();
        if Size::of(packet, frame.bytes(), frame.offload()).largest > ready.largest_octets
            || frame.headroom() < shim.len()
        {
            return None;
        }
        let Permit { .. } = ready.permit.again();
        frame.truncate(packet.total_octets);
        if self.config.decrement_ttl {
            set_hop_limit(frame.bytes_mut(), packet.hop_limit.saturating_sub(1));
        }
        frame.push(shim.len())?.copy_from_slice(shim);
        frame.set_link(ready.link);
        frame.set_verdict(Verdict::Transmit);
        let way = (ready.peer, ready.kind);
        flows.count_hit();
        Some(way)
    }

    /// Decides where an admitted packet of that size goes, or why it does not.
    pub(super) fn way(&self, packet: &Packet, size: Size, hops: Hops) -> Result<Way<'t>, Refusal> {
        let tables = self.tables;
        // RFC 2003 section 3: what goes to a tunnel's end does not go through a tunnel, else its
        // outer packet comes back for another round. Asked first: it is this node's own outer packet
        // when the host's routes send a peer's address to the device.
        if self.is_underlay(packet.flow.destination) {
            return Err(DropReason::TunnelLoop.into());
        }
        let source_hop = hops.source.and_then(|id| tables.next_hop(id));
        if !matches!(source_hop, Some(NextHop::Local)) {
            return Err(DropReason::SourceNotLocal.into());
        }
        // RFC 1812 section 5.3.1; RFC 2003 section 3.1: a TTL of zero never enters a tunnel.
        if packet.hop_limit <= u8::from(self.config.decrement_ttl) {
            return Err(Refusal::answered(
                DropReason::TtlExpired,
                Answer::TimeExceeded,
            ));
        }
        let permit = self
            .policy
            .decide(Direction::Encap, &packet.flow)
            .map_err(|reason| Refusal::answered(reason, Answer::Prohibited))?;
        let no_route = Refusal::answered(DropReason::NoRoute, Answer::NoRoute);
        match hops.destination.and_then(|id| tables.next_hop(id)) {
            None => Err(no_route),
            Some(NextHop::Blackhole) => Err(DropReason::Blackhole.into()),
            Some(NextHop::Prohibit) => Err(Refusal::answered(
                DropReason::Prohibited,
                Answer::Prohibited,
            )),
            Some(NextHop::Local) => Err(Refusal::answered(
                DropReason::DestinationUnassigned,
                Answer::HostUnreachable,
            )),
            Some(NextHop::Direct { gateway }) => Ok(Way::Direct {
                link: Link {
                    remote: gateway.unwrap_or(packet.flow.destination),
                    traffic_class: packet.traffic_class,
                    dont_fragment: packet.dont_fragment,
                    ..Link::LOCAL
                },
                permit,
            }),
            Some(next_hop @ (NextHop::Tunnel(_) | NextHop::EqualCost(_))) => {
                let tunnel = self.tunnel(packet, next_hop).ok_or(no_route)?;
                self.enter(packet, size, tunnel, permit)
            }
        }
    }

    /// The tunnel that the packet takes to a next hop, where there is one.
    pub(super) fn tunnel(&self, packet: &Packet, next_hop: &'t NextHop) -> Option<&'t Tunnel> {
        match next_hop {
            NextHop::Tunnel(tunnel) => Some(tunnel),
            NextHop::EqualCost(tunnels) => self.choose(packet, tunnels),
            NextHop::Direct { .. } | NextHop::Blackhole | NextHop::Prohibit | NextHop::Local => {
                None
            }
        }
    }

    /// The member of an equal-cost set that the packet's flow takes: always the same.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the low half of the hash is wanted; the entropy port is made of the high one"
    )]
    fn choose(&self, packet: &Packet, tunnels: &'t [Tunnel]) -> Option<&'t Tunnel> {
        let hash = packet.path_flow().symmetric_hash(self.config.seed) as u32;
        // The hash as a fraction of the set: no division, and no bias that could be seen.
        let index = (u64::from(hash) * tunnels.len() as u64) >> 32;
        tunnels.get(index as usize)
    }

    fn enter(
        &self,
        packet: &Packet,
        size: Size,
        tunnel: &'t Tunnel,
        permit: Permit,
    ) -> Result<Way<'t>, Refusal> {
        // RFC 2003 section 3.
        if packet.flow.destination == tunnel.remote || packet.flow.source == tunnel.remote {
            return Err(DropReason::TunnelLoop.into());
        }
        let mtu = path_mtu(tunnel, packet.family());
        let mtu_octets = usize::from(mtu.octets());
        if size.largest <= mtu_octets {
            return Ok(Way::Tunnel {
                tunnel,
                link: self.link(packet, size.largest, tunnel),
                permit,
                segment_octets: None,
            });
        }
        let may_cut = !packet.dont_fragment && packet.family() == Family::V4;
        if may_cut && (size.is_one_packet(packet) || size.datagram_octets().is_some()) {
            return Ok(Way::Cut(Cut {
                tunnel,
                link: self.link(packet, mtu_octets, tunnel),
                mtu,
                permit,
                datagram_octets: size.datagram_octets(),
            }));
        }
        if may_cut && let Some(segment_octets) = size.segment_that_fits(mtu) {
            return Ok(Way::Tunnel {
                tunnel,
                link: self.link(packet, mtu_octets, tunnel),
                permit,
                segment_octets: Some(segment_octets),
            });
        }
        Err(Refusal::answered(
            DropReason::TooBig,
            Answer::TooBig { mtu },
        ))
    }

    fn is_underlay(&self, address: IpAddr) -> bool {
        self.tables.local().underlay.contains(&address)
            || self.tables.peer_by_underlay(address).is_some()
    }

    fn link(&self, packet: &Packet, largest: usize, tunnel: &Tunnel) -> Link {
        let transport = match tunnel.encapsulation {
            Encapsulation::Ipip => Transport::Ip {
                protocol: ip_in_ip(packet.family()),
            },
            Encapsulation::Vxlan { port, .. }
            | Encapsulation::VxlanGpe { port, .. }
            | Encapsulation::Geneve { port, .. }
            | Encapsulation::Fou { port }
            | Encapsulation::Gue { port } => Transport::Udp {
                local_port: packet.path_flow().entropy_port(self.config.seed),
                remote_port: port,
            },
        };
        Link {
            local: tunnel.local,
            remote: tunnel.remote,
            transport,
            traffic_class: ecn::outer_traffic_class(packet.traffic_class, tunnel.dscp, tunnel.ecn),
            hop_limit: tunnel.hop_limit,
            dont_fragment: dont_fragment(packet, largest, tunnel),
        }
    }

    /// Writes what was decided: the TTL, the shim, the link, the verdict. Returns the tunnel.
    fn send(
        &self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        way: Way<'t>,
        counters: &mut Counters,
    ) -> Result<Option<&'t Tunnel>, DropReason> {
        frame.truncate(packet.total_octets);
        if self.config.decrement_ttl {
            set_hop_limit(frame.bytes_mut(), packet.hop_limit.saturating_sub(1));
        }
        match way {
            // `send_pieces` sends these.
            Way::Cut(_) => Err(DropReason::TooBig),
            Way::Direct { link, permit } => {
                let Permit { .. } = permit;
                frame.set_link(link);
                frame.set_verdict(Verdict::Direct);
                Ok(None)
            }
            Way::Tunnel {
                tunnel,
                link,
                permit,
                segment_octets,
            } => {
                let mut offload = frame.offload();
                if let Some(octets) = segment_octets {
                    offload.segments = Some((SegmentKind::Tcp, octets));
                    frame.set_offload(offload);
                }
                let clamped = self.clamp(frame.bytes_mut(), packet, offload, tunnel);
                counters.mss_clamped += u64::from(clamped);
                let vtep_mac = self.tables.local().vtep_mac;
                shim::push(
                    frame,
                    packet.family(),
                    tunnel.encapsulation,
                    vtep_mac,
                    permit,
                )?;
                frame.set_link(link);
                frame.set_verdict(Verdict::Transmit);
                Ok(Some(tunnel))
            }
        }
    }
}

impl Departure {
    /// What `frame`, into which `packet` was just wrapped, says about its flow; `None` when the
    /// next packet may have to be treated otherwise.
    fn of(packet: &Packet, frame: &Frame<'_>, tunnel: &Tunnel, rules: &Rules<'_>) -> Option<Self> {
        if !may_be_known(packet) {
            return None;
        }
        let permit = rules.policy.decide(Direction::Encap, &packet.flow).ok()?;
        let shim_octets = usize::from(tunnel.encapsulation.shim_octets());
        // Larger packets, where they pass at all, leave with other marks.
        let largest = tunnel.mtu.min(path_mtu(tunnel, packet.family()));
        Some(Self {
            permit,
            link: Link {
                // What a packet that is not too large has, whatever this one is.
                dont_fragment: dont_fragment(packet, 0, tunnel),
                ..*frame.link()
            },
            shim: Shim::read(frame.bytes(), shim_octets)?,
            largest_octets: usize::from(largest.octets()),
            peer: tunnel.peer,
            kind: tunnel.encapsulation.kind(),
            traffic_classes: traffic_classes(packet.traffic_class, |inner| {
                ecn::outer_traffic_class(inner, tunnel.dscp, tunnel.ecn)
            }),
        })
    }
}

/// How large a frame's packets are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Octets of the largest packet that it is split into: itself, unless it is a super-packet.
    largest: usize,
    /// Where it is a super-packet of more than one segment: of what, the octets of data in each,
    /// and those of the headers in front.
    segments: Option<(SegmentKind, u16, usize)>,
}

impl Size {
    /// The size of a packet that is no super-packet.
    pub(super) const fn of_one(packet: &Packet) -> Self {
        Self {
            largest: packet.total_octets,
            segments: None,
        }
    }

    fn of(packet: &Packet, bytes: &[u8], offload: Offload) -> Self {
        let Some((kind, segment_octets)) = offload.segments else {
            return Self::of_one(packet);
        };
        let transport_octets = match kind {
            SegmentKind::Udp => size_of::<UdpHeader>(),
            SegmentKind::Tcp => bytes
                .get(packet.transport_offset..)
                .and_then(|segment| TcpHeader::parse(segment).ok())
                .map_or(size_of::<TcpHeader>(), |(tcp, ..)| tcp.header_octets()),
        };
        let headers = packet.transport_offset + transport_octets;
        let largest = headers + usize::from(segment_octets);
        Self {
            largest: packet.total_octets.min(largest),
            segments: (kind == SegmentKind::Tcp || largest < packet.total_octets).then_some((
                kind,
                segment_octets,
                headers,
            )),
        }
    }

    const fn is_one_packet(self, packet: &Packet) -> bool {
        self.largest == packet.total_octets
    }

    /// The largest TCP segment within `mtu`; `None` where it would be too small for any sender to
    /// mean.
    fn segment_that_fits(self, mtu: Mtu) -> Option<u16> {
        let (SegmentKind::Tcp, _, headers) = self.segments? else {
            return None;
        };
        let fits = usize::from(mtu.octets()).checked_sub(headers)?;
        u16::try_from(fits)
            .ok()
            .filter(|octets| *octets >= SEGMENT_OCTETS_MIN)
    }

    /// Octets of data in each datagram, where it is a row of UDP datagrams.
    const fn datagram_octets(self) -> Option<u16> {
        match self.segments {
            Some((SegmentKind::Udp, octets, _)) => Some(octets),
            Some((SegmentKind::Tcp, ..)) | None => None,
        }
    }
}

/// The least that Linux announces in a SYN or believes (TCP_MIN_MSS less its options).
const SEGMENT_OCTETS_MIN: u16 = 48;

/// The largest inner packet of `family` that enters the tunnel.
///
/// IPv6 packets of up to 1280 octets always do: where the path carries less, their outer packet
/// is fragmented (RFC 2473 section 7.1, RFC 4213 section 3.2). No packet enters that would make an
/// outer packet beyond 65,535 octets.
pub(super) fn path_mtu(tunnel: &Tunnel, family: Family) -> Mtu {
    let mtu = match family {
        Family::V4 => tunnel.mtu,
        Family::V6 => tunnel.mtu.max(Mtu::MIN_V6),
    };
    let overhead = tunnel
        .encapsulation
        .overhead_octets(tunnel.underlay_family());
    mtu.min(Mtu::new(u16::MAX).less(overhead))
}

/// Whether the outer packet may not be fragmented.
fn dont_fragment(packet: &Packet, largest: usize, tunnel: &Tunnel) -> bool {
    if largest > usize::from(tunnel.mtu.octets()) {
        return false;
    }
    match (tunnel.encapsulation, packet.family()) {
        // RFC 7348 section 4.3: a VTEP does not fragment; the others are treated alike.
        (
            Encapsulation::Vxlan { .. }
            | Encapsulation::VxlanGpe { .. }
            | Encapsulation::Geneve { .. }
            | Encapsulation::Fou { .. }
            | Encapsulation::Gue { .. },
            _,
        ) => true,
        // RFC 2003 section 3.1: DF inside means DF outside.
        (Encapsulation::Ipip, Family::V4) => packet.dont_fragment,
        // RFC 4213 section 3.2.1: with a static tunnel MTU, DF is not set.
        (Encapsulation::Ipip, Family::V6) => tunnel.underlay_family() == Family::V6,
    }
}
