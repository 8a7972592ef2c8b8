//! Flows that somebody else may carry: told to the shell, which may have the kernel do it.
//!
//! An engine that is [asked to](super::EngineConfig::offer_after) says of a flow what it knows, once
//! so many of its packets were decided alike, and again at every doubling, for an offer need not be
//! taken. What an [`Offer`] says holds for the tables that the engine works by when it makes it, and
//! for packets that are as it says; all others are to come to the engine as before:
//!
//! - whole ones (no fragments) without IPv4 options or IPv6 extension headers,
//! - TCP without SYN, and UDP,
//! - for a departure: of the DSCP and the DF flag that are told, no larger than is told, with a TTL
//!   that lets them be forwarded, which is then one less,
//! - for a delivery: of the DSCP inside and outside that are told, with ECN fields that
//!   [pass](DeliveryOffer::passes), and a TTL that is not zero.
//!
//! The list is bounded and emptied by whoever asked; what does not fit is told at the next doubling.

use alloc::vec::Vec;
use core::net::IpAddr;

use super::flows::{DecapKey, Delivery, Departure, EncapKey};
use crate::batch::Link;
use crate::encap::{EncapsulationKind, ecn};
use crate::packet::FlowKey;
use crate::probe;
use crate::tables::PeerId;
use crate::wire::ip_protocol;

/// A flow that somebody else may carry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Offer {
    /// From the local device to a peer.
    Departure(DepartureOffer),
    /// From a peer to the local device.
    Delivery(DeliveryOffer),
}

/// How the packets of a flow leave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DepartureOffer {
    /// The flow.
    pub flow: FlowKey,
    /// The DSCP of its packets, in the upper six bits.
    pub dscp: u8,
    /// Whether its packets have the DF flag. Always so for IPv6.
    pub dont_fragment: bool,
    /// Octets of the largest packet for which this holds.
    pub largest_octets: usize,
    /// The outer header, but for the traffic class.
    pub link: Link,
    /// The outer traffic class by the inner ECN field.
    pub traffic_classes: [u8; 4],
    /// What stands between the outer header and the packet.
    pub shim: ShimOctets,
    /// To whom it goes.
    pub peer: PeerId,
    /// In what.
    pub kind: EncapsulationKind,
}

/// How the packets of a flow are delivered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DeliveryOffer {
    /// The flow.
    pub flow: FlowKey,
    /// How the packets come: from where, to where, by which port of this node.
    pub link: Link,
    /// What stands between the outer header and the packet.
    pub shim: ShimOctets,
    /// The DSCP of its packets, in the upper six bits.
    pub dscp: u8,
    /// The DSCP of the outer header, in the upper six bits.
    pub outer_dscp: u8,
    /// A bit for each pair of ECN fields with which a packet is delivered as it came: bit
    /// `4 * inner + outer`.
    pub passes: u16,
    /// From whom it comes.
    pub peer: PeerId,
    /// In what.
    pub kind: EncapsulationKind,
}

/// The octets of a shim.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ShimOctets(pub(super) super::flows::Shim);

impl ShimOctets {
    /// The octets.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        self.0.octets()
    }
}

/// The offers that nobody has fetched.
#[derive(Debug)]
pub(super) struct Offers {
    list: Vec<Offer>,
    most: usize,
}

impl Offers {
    /// Room for some offers if there are to be any.
    pub(super) fn new(offer_after: u32) -> Self {
        let most = if offer_after == 0 { 0 } else { OFFERS_MAX };
        Self {
            list: Vec::with_capacity(most),
            most,
        }
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Offer> + '_ {
        self.list.drain(..)
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
    }

    /// Offers a flow of which a packet with that link was just sent.
    pub(super) fn departure(
        &mut self,
        (flow, key, departure): (&FlowKey, &EncapKey, &Departure),
        link: &Link,
    ) {
        if !has_ports(flow) {
            return;
        }
        self.push(Offer::Departure(DepartureOffer {
            flow: *flow,
            dscp: key.traffic_class & DSCP,
            dont_fragment: key.dont_fragment,
            largest_octets: departure.largest_octets,
            link: *link,
            traffic_classes: departure.traffic_classes,
            shim: ShimOctets(departure.shim),
            peer: departure.peer,
            kind: departure.kind,
        }));
    }

    /// Offers a flow of which a packet of that traffic class was just delivered, from that link.
    pub(super) fn delivery(
        &mut self,
        (flow, key, delivery): (&FlowKey, &DecapKey, &Delivery),
        traffic_class: u8,
        link: &Link,
    ) {
        // A probe is told by its payload, and is not for the device.
        if !has_ports(flow)
            || flow.protocol == ip_protocol::UDP && flow.destination_port == probe::PORT
        {
            return;
        }
        let (dscp, outer_dscp) = (traffic_class & DSCP, link.traffic_class & DSCP);
        let passes = (0..16_u8).filter(|pair| {
            let (inner, outer) = (dscp | pair >> 2, outer_dscp | pair & 3);
            ecn::inner_traffic_class(inner, outer, delivery.dscp) == Ok((inner, false))
        });
        let passes = passes.fold(0, |bits, pair| bits | 1 << pair);
        self.push(Offer::Delivery(DeliveryOffer {
            flow: *flow,
            link: *link,
            shim: ShimOctets(key.shim()),
            dscp,
            outer_dscp,
            passes,
            peer: delivery.peer,
            kind: delivery.kind,
        }));
    }

    fn push(&mut self, offer: Offer) {
        if self.list.len() < self.most {
            self.list.push(offer);
        }
    }
}

/// Whether a flow is one of TCP or UDP.
const fn has_ports(flow: &FlowKey) -> bool {
    matches!(flow.protocol, ip_protocol::TCP | ip_protocol::UDP)
}

/// The outer traffic class by the inner ECN field, for packets of the DSCP of `traffic_class`.
pub(super) fn traffic_classes(traffic_class: u8, of: impl Fn(u8) -> u8) -> [u8; 4] {
    [0, 1, 2, 3].map(|ecn| of(traffic_class & DSCP | ecn))
}

impl DeliveryOffer {
    /// Where the packets come from.
    #[must_use]
    pub const fn remote(&self) -> IpAddr {
        self.link.remote
    }
}

/// The bits of the traffic class that are no ECN field.
const DSCP: u8 = 0xfc;

/// Offers that are kept until they are fetched.
const OFFERS_MAX: usize = 64;
