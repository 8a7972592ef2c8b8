//! From the underlay to the local device.
//!
//! What arrives was written by anybody. A packet is delivered only when its outer source is a
//! configured peer, its inner source lies behind that peer by the same table that routes to it,
//! and its destination is here; one decapsulation each, never a second. Nothing is ever answered:
//! an error about a spoofed packet would go to its victim (RFC 4213 section 3.6 asks for silence).
//!
//! A frame that is dropped keeps its octets as they came, for whoever wants to look at it.

use core::net::IpAddr;

use super::flows::{DecapKey, Delivery, Flows, Shim, may_be_known};
use super::lookups::{CHUNK, Hops};
use super::trail::Trail;
use super::{Engine, Rules, check, drop_frame, undecided};
use crate::batch::{Batch, Frame, Link};
use crate::encap::ecn;
use crate::encap::shim::{self, Opened};
use crate::fragment::is_tcp_syn;
use crate::packet::Packet;
use crate::policy::Permit;
use crate::probe::is_probe;
use crate::tables::{NextHop, PeerId, Tables, Tunnel};
use crate::units::Time;
use crate::verdict::{Direction, DropReason, Verdict};

/// A frame that was read and needs its addresses looked up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Admitted {
    pub(super) peer: PeerId,
    pub(super) opened: Opened,
}

/// A packet that passes: its traffic class behind the tunnel.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) permit: Permit,
    pub(super) traffic_class: u8,
    pub(super) anomalous: bool,
}

impl Engine {
    /// Decapsulates the frames of a batch that came from the underlay: each is the payload of the
    /// [`Transport`](crate::batch::Transport) that its [`Link`] names.
    ///
    /// Every frame that is [`Verdict::Undecided`] gets a verdict; the others are left alone, so
    /// that no frame is decapsulated twice.
    pub fn decap(&mut self, batch: &mut Batch, _now: Time) {
        for start in (0..batch.len()).step_by(CHUNK) {
            self.decap_chunk(batch, start);
        }
    }

    fn decap_chunk(&mut self, batch: &mut Batch, start: usize) {
        let rules = Rules {
            tables: &self.tables,
            config: &self.config,
            policy: self.policy,
        };
        self.lookups.clear();
        let mut trail: Option<Trail> = None;
        for (index, slot) in (start..batch.len()).zip(&mut self.opened) {
            *slot = None;
            let Some(mut frame) = undecided(batch, index) else {
                continue;
            };
            self.decap.received.count(frame.bytes().len());
            if let Some(before) = &trail
                && let Some(octets) = before.goes_on(&frame)
            {
                before.deliver(&mut frame, octets);
                self.deliveries.count_hit();
                self.decap.ecn_anomalies += u64::from(before.is_anomalous());
                self.decap.forwarded.count(octets);
                if let Some(counters) = self.peers.get_mut(before.peer().index()) {
                    counters.count_received(before.kind(), octets);
                }
                continue;
            }
            if let Some(known) = rules.known(&frame, &mut self.deliveries) {
                let counters = self.peers.get_mut(known.peer.index());
                match known.arrival {
                    Ok(arrival) => {
                        self.decap.ecn_anomalies += u64::from(arrival.anomalous);
                        trail = Trail::of(&frame, known.peer, &known.opened, &arrival);
                        if let Some(flow) = self.deliveries.offered() {
                            let traffic_class = known.opened.packet.traffic_class;
                            self.offers.delivery(flow, traffic_class, frame.link());
                        }
                        deliver(&mut frame, &known.opened, arrival);
                        let octets = frame.bytes().len();
                        self.decap.forwarded.count(octets);
                        if let Some(counters) = counters {
                            counters.count_received(known.opened.kind, octets);
                        }
                    }
                    Err(reason) => {
                        drop_frame(&mut frame, reason, &mut self.decap);
                        if let Some(counters) = counters {
                            counters.refused += 1;
                        }
                    }
                }
                continue;
            }
            let peer = match rules.peer(frame.link()) {
                Ok(peer) => peer,
                Err(reason) => {
                    drop_frame(&mut frame, reason, &mut self.decap);
                    continue;
                }
            };
            match rules.open(frame.bytes(), frame.link()) {
                Ok(opened) => {
                    self.lookups.ask(&opened.packet);
                    *slot = Some(Admitted { peer, opened });
                }
                Err(reason) => {
                    drop_frame(&mut frame, reason, &mut self.decap);
                    if let Some(counters) = self.peers.get_mut(peer.index()) {
                        counters.refused += 1;
                    }
                }
            }
        }
        self.lookups.resolve();
        for (index, slot) in (start..batch.len()).zip(&self.opened) {
            let (Some(admitted), Some(mut frame)) = (slot, batch.frame_mut(index)) else {
                continue;
            };
            let hops = self.lookups.answer(admitted.opened.packet.family());
            let counters = self.peers.get_mut(admitted.peer.index());
            match rules.arrive(admitted, frame.link(), hops) {
                Ok(arrival) => {
                    self.decap.ecn_anomalies += u64::from(arrival.anomalous);
                    let packet = &admitted.opened.packet;
                    if let Some((key, delivery)) = rules.remember(admitted, &frame) {
                        self.deliveries.insert(packet.flow, key, delivery);
                    }
                    deliver(&mut frame, &admitted.opened, arrival);
                    // What the sender of a SYN is told about segments is told to whom it opens a
                    // connection: this node's side, whose segments take the way back.
                    if is_tcp_syn(frame.bytes(), packet)
                        && let Some(back) = rules.way_back(packet, hops)
                    {
                        let offload = frame.offload();
                        let clamped = rules.clamp(frame.bytes_mut(), packet, offload, back);
                        self.decap.mss_clamped += u64::from(clamped);
                    }
                    let octets = frame.bytes().len();
                    self.decap.forwarded.count(octets);
                    if let Some(counters) = counters {
                        counters.count_received(admitted.opened.kind, octets);
                    }
                }
                Err(reason) => {
                    drop_frame(&mut frame, reason, &mut self.decap);
                    if let Some(counters) = counters {
                        counters.refused += 1;
                    }
                }
            }
        }
    }
}

/// A frame of a known flow: what it is and what becomes of it.
struct Known {
    peer: PeerId,
    opened: Opened,
    arrival: Result<Arrival, DropReason>,
}

impl<'t> Rules<'t> {
    /// What is known about the flow of a frame; `None` when it has to take the whole way.
    fn known(&self, frame: &Frame<'_>, flows: &mut Flows<DecapKey, Delivery>) -> Option<Known> {
        let bytes = frame.bytes();
        let link = frame.link();
        // A guess from where the frame arrived; that the octets are those of a shim that was
        // read before is what the key says.
        let shim_octets = shim::usual_octets(bytes, link.transport, &self.tables.local().receive)?;
        let inner = bytes.get(shim_octets..)?;
        let packet = Packet::parse(inner).ok()?;
        if !may_be_known(&packet) || packet.hop_limit == 0 || is_tcp_syn(inner, &packet) {
            return None;
        }
        let key = DecapKey::of(link, Shim::read(bytes, shim_octets)?);
        let delivery = flows.find(&packet.flow, &key)?;
        check::soundness(&packet, inner).ok()?;
        let traffic_class =
            ecn::inner_traffic_class(packet.traffic_class, link.traffic_class, delivery.dscp);
        let known = Known {
            peer: delivery.peer,
            arrival: traffic_class.map(|(traffic_class, anomalous)| Arrival {
                permit: delivery.permit.again(),
                traffic_class,
                anomalous,
            }),
            opened: Opened {
                kind: delivery.kind,
                vni: None,
                shim_octets,
                packet,
            },
        };
        flows.count_hit();
        Some(known)
    }

    /// What the next packets of an admitted packet's flow need; `None` when they may have to be
    /// treated otherwise.
    fn remember(&self, admitted: &Admitted, frame: &Frame<'_>) -> Option<(DecapKey, Delivery)> {
        let opened = &admitted.opened;
        let receive = &self.tables.local().receive;
        // Whether a packet to one of the tunnels' ports is a tunnel's depends on its octets.
        if !may_be_known(&opened.packet) || shim::may_be_tunnel(&opened.packet, receive) {
            return None;
        }
        let permit = self.policy.decide(Direction::Decap, &opened.packet.flow);
        let shim = Shim::read(frame.bytes(), opened.shim_octets)?;
        Some((
            DecapKey::of(frame.link(), shim),
            Delivery {
                permit: permit.ok()?,
                peer: admitted.peer,
                kind: opened.kind,
                dscp: self.tables.peer(admitted.peer)?.dscp,
            },
        ))
    }

    /// The peer that sent a frame.
    pub(super) fn peer(&self, link: &Link) -> Result<PeerId, DropReason> {
        // A packet from this node's own address was made by somebody else.
        if self.tables.local().underlay.contains(&link.remote) {
            return Err(DropReason::UnknownPeer);
        }
        self.tables
            .peer_by_underlay(link.remote)
            .ok_or(DropReason::UnknownPeer)
    }

    /// Reads the shim and the inner packet and checks what needs no lookup.
    pub(super) fn open(&self, bytes: &[u8], link: &Link) -> Result<Opened, DropReason> {
        let local = self.tables.local();
        let opened = shim::open(bytes, link.transport, local)?;
        let inner = bytes.get(opened.shim_octets..).unwrap_or_default();
        self.inspect(&opened.packet, inner)?;
        Ok(opened)
    }

    /// Checks the inner packet at `inner`.
    pub(super) fn inspect(&self, packet: &Packet, inner: &[u8]) -> Result<(), DropReason> {
        let local = self.tables.local();
        check::soundness(packet, inner)?;
        // IP in IP to an address of this host: a tunnel device of the kernel's (Calico's tunl0, say)
        // would open it also where this node receives none.
        let opens_here = || shim::is_ip_in_ip(packet) && self.is_own(packet.flow.destination);
        if shim::is_tunnel_packet(packet, inner, &local.receive) || opens_here() {
            return Err(DropReason::NestedTunnel);
        }
        check::source(packet.flow.source)?;
        if self.is_own(packet.flow.source) {
            return Err(DropReason::SourceIsLocal);
        }
        check::destination(packet.flow.destination)?;
        // RFC 2003 section 3.1: a TTL of zero is discarded behind the tunnel; others stay.
        if packet.hop_limit == 0 {
            return Err(DropReason::TtlExpired);
        }
        Ok(())
    }

    /// The tunnel that answers to `packet` take.
    fn way_back(&self, packet: &Packet, hops: Hops) -> Option<&'t Tunnel> {
        let hop = self.tables.next_hop(hops.source?)?;
        self.tunnel(packet, hop)
    }

    fn is_own(&self, address: IpAddr) -> bool {
        let local = self.tables.local();
        local.addresses.contains(&address) || local.underlay.contains(&address)
    }

    /// Decides whether an admitted packet is delivered.
    pub(super) fn arrive(
        &self,
        admitted: &Admitted,
        link: &Link,
        hops: Hops,
    ) -> Result<Arrival, DropReason> {
        let tables = self.tables;
        let packet = &admitted.opened.packet;
        match hops.source.and_then(|id| tables.next_hop(id)) {
            Some(NextHop::Local) => return Err(DropReason::SourceIsLocal),
            source_hop => {
                if !source_hop.is_some_and(|hop| leads_to(tables, hop, admitted.peer)) {
                    return Err(DropReason::SourceNotOwnedByPeer);
                }
            }
        }
        let destination_hop = hops.destination.and_then(|id| tables.next_hop(id));
        match destination_hop {
            Some(NextHop::Local) => {}
            // Two nodes point the prefix at each other.
            Some(hop) if leads_to(tables, hop, admitted.peer) => {
                return Err(DropReason::TunnelLoop);
            }
            Some(_) | None => return Err(DropReason::DestinationNotLocal),
        }
        let permit = self.policy.decide(Direction::Decap, &packet.flow)?;
        let dscp = tables
            .peer(admitted.peer)
            .ok_or(DropReason::UnknownPeer)?
            .dscp;
        let (traffic_class, anomalous) =
            ecn::inner_traffic_class(packet.traffic_class, link.traffic_class, dscp)?;
        Ok(Arrival {
            permit,
            traffic_class,
            anomalous,
        })
    }
}

/// Whether packets to that next hop go to `peer`, so that packets from there come from it.
fn leads_to(tables: &Tables, next_hop: &NextHop, peer: PeerId) -> bool {
    match next_hop {
        NextHop::Tunnel(tunnel) => tunnel.peer == peer,
        NextHop::EqualCost(tunnels) => tunnels.iter().any(|tunnel| tunnel.peer == peer),
        // Sent to it as it is; it may answer through a tunnel all the same.
        NextHop::Direct { gateway } => {
            gateway.and_then(|gateway| tables.peer_by_underlay(gateway)) == Some(peer)
        }
        NextHop::Blackhole | NextHop::Prohibit | NextHop::Local => false,
    }
}

/// Takes the headers off and hands the packet on. Uses up the permit.
fn deliver(frame: &mut Frame<'_>, opened: &Opened, arrival: Arrival) {
    let Permit { .. } = arrival.permit;
    shim::strip(frame, opened);
    if arrival.traffic_class != opened.packet.traffic_class {
        ecn::set_traffic_class(frame.bytes_mut(), arrival.traffic_class);
    }
    let verdict = verdict_of(&opened.packet, frame.bytes());
    frame.set_verdict(verdict);
}

/// For whom an inner packet is that passes: the node or its device.
pub(super) fn verdict_of(packet: &Packet, inner: &[u8]) -> Verdict {
    if is_probe(packet, inner) {
        Verdict::Probe
    } else {
        Verdict::Deliver
    }
}
