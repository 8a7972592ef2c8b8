//! The frame before: what was decided for one frame of a train holds for the next.
//!
//! Frames arrive in trains of one flow, one behind the other through the same tunnel. A frame that
//! came the same way, and whose octets up to the inner ports are those of the frame before, has
//! its shim, flow, traffic class and TTL, and so its decision. Neither is read again: the octets
//! that may differ are the length of the inner packet, in IPv4 its identification and the checksum
//! of its header, and whatever stands behind the ports. Of these are looked at: the length and the
//! checksum, for a packet must be sound; and SYN, which always takes the whole way.
//!
//! Only frames of flows that the cache knows make a [`Trail`], and none outlives the tables that
//! the decision was made with: it lasts for one chunk of a batch.

use zerocopy::FromBytes;

use super::decap::Arrival;
use super::flows::SHIM_OCTETS_MAX;
use crate::batch::{Frame, Link};
use crate::encap::shim::Opened;
use crate::encap::{EncapsulationKind, ecn};
use crate::fragment::is_tcp_syn;
use crate::packet::{Fragment, Packet};
use crate::policy::Permit;
use crate::probe;
use crate::tables::PeerId;
use crate::units::Family;
use crate::verdict::Verdict;
use crate::wire::{Ipv4Header, Ipv6Header, TcpHeader, UdpHeader, ip_protocol};

/// A frame that was delivered, as far as later ones are compared with it.
#[derive(Debug)]
pub(super) struct Trail {
    link: Link,
    /// The front of the frame as it came, up to and with the inner ports.
    front: [u8; FRONT_OCTETS_MAX],
    opened: Opened,
    permit: Permit,
    traffic_class: u8,
    anomalous: bool,
    peer: PeerId,
}

/// The longest shim without options, an IPv6 header, and two ports.
const FRONT_OCTETS_MAX: usize = SHIM_OCTETS_MAX + size_of::<Ipv6Header>() + PORTS_OCTETS;
const PORTS_OCTETS: usize = 4;

impl Trail {
    /// What `frame` leaves, which is about to be delivered; `None` when the next frames of its flow may have to be treated otherwise: options and extension headers
    /// are not compared, and a probe is told by its payload.
    pub(super) fn of(
        frame: &Frame<'_>,
        peer: PeerId,
        opened: &Opened,
        arrival: &Arrival,
    ) -> Option<Self> {
        let Packet {
            flow,
            transport_offset,
            fragment,
            ..
        } = &opened.packet;
        let header_octets = usize::from(opened.packet.family().header_octets());
        let may_lead = match flow.protocol {
            ip_protocol::TCP => true,
            ip_protocol::UDP => flow.destination_port != probe::PORT,
            _ => false,
        };
        if !may_lead || *fragment != Fragment::Whole || *transport_offset != header_octets {
            return None;
        }
        let mut front = [0; FRONT_OCTETS_MAX];
        let octets = opened.shim_octets + header_octets + PORTS_OCTETS;
        front
            .get_mut(..octets)?
            .copy_from_slice(frame.bytes().get(..octets)?);
        Some(Self {
            link: *frame.link(),
            front,
            opened: *opened,
            permit: arrival.permit.again(),
            traffic_class: arrival.traffic_class,
            anomalous: arrival.anomalous,
            peer,
        })
    }

    /// Octets of the inner packet of `frame`, if it is to be treated as the frame before was.
    pub(super) fn goes_on(&self, frame: &Frame<'_>) -> Option<usize> {
        if *frame.link() != self.link {
            return None;
        }
        let known = &self.opened.packet;
        let (shim, inner) = frame.bytes().split_at_checked(self.opened.shim_octets)?;
        let (front_shim, front) = self.front.split_at_checked(self.opened.shim_octets)?;
        let (is_same_flow, total_octets) = match known.family() {
            Family::V4 => {
                let [header, before] = [inner, front].map(|octets| octets.first_chunk::<24>());
                let (header, before) = (header?, before?);
                let (ip, _) = Ipv4Header::ref_from_prefix(inner).ok()?;
                (
                    is_same(header, before, &COMPARED_V4) && ip.has_valid_checksum(&[]),
                    usize::from(ip.total_octets()),
                )
            }
            Family::V6 => {
                let [header, before] = [inner, front].map(|octets| octets.first_chunk::<44>());
                let (header, before) = (header?, before?);
                let (ip, _) = Ipv6Header::ref_from_prefix(inner).ok()?;
                (
                    is_same(header, before, &COMPARED_V6),
                    size_of::<Ipv6Header>() + usize::from(ip.payload_octets()),
                )
            }
        };
        let least = known.transport_offset
            + match known.flow.protocol {
                ip_protocol::TCP => size_of::<TcpHeader>(),
                _ => size_of::<UdpHeader>(),
            };
        let is_sound = shim == front_shim && total_octets >= least && total_octets <= inner.len();
        (is_same_flow && is_sound && !is_tcp_syn(inner, known)).then_some(total_octets)
    }

    /// Delivers a frame that [`goes_on`](Self::goes_on), with an inner packet of so many octets.
    pub(super) fn deliver(&self, frame: &mut Frame<'_>, total_octets: usize) {
        let Permit { .. } = self.permit.again();
        // Both fit: the frame was long enough to be compared.
        let _ = frame.pull(self.opened.shim_octets);
        frame.truncate(total_octets);
        if self.traffic_class != self.opened.packet.traffic_class {
            ecn::set_traffic_class(frame.bytes_mut(), self.traffic_class);
        }
        frame.set_verdict(Verdict::Deliver);
    }

    /// Who sent the frame before: frames that go on count for the same.
    pub(super) const fn peer(&self) -> PeerId {
        self.peer
    }

    /// How it was wrapped.
    pub(super) const fn kind(&self) -> EncapsulationKind {
        self.opened.kind
    }

    /// Whether its ECN fields did not go together.
    pub(super) const fn is_anomalous(&self) -> bool {
        self.anomalous
    }
}

/// Whether `one` and `other` have the same bits where `compared` has ones.
fn is_same<const N: usize>(one: &[u8; N], other: &[u8; N], compared: &[u8; N]) -> bool {
    let pairs = one.iter().zip(other).zip(compared);
    pairs.fold(0, |bits, ((one, other), compared)| {
        bits | (one ^ other) & compared
    }) == 0
}

/// An IPv4 header and ports without total length, identification and header checksum.
const COMPARED_V4: [u8; 24] = {
    let mut octets = [0xff; 24];
    octets[2] = 0;
    octets[3] = 0;
    octets[4] = 0;
    octets[5] = 0;
    octets[10] = 0;
    octets[11] = 0;
    octets
};

/// An IPv6 header and ports without payload length.
const COMPARED_V6: [u8; 44] = {
    let mut octets = [0xff; 44];
    octets[4] = 0;
    octets[5] = 0;
    octets
};
