//! One walk over the headers of an IP packet: what it is, where its parts are, which flow it
//! belongs to.
//!
//! [`Packet::parse`] is the proof that later steps rely on: the header is whole, its lengths fit
//! the octets, the transport ports (where there are any) were read. Nobody parses again.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::units::Family;
use crate::wire::ipv6::UpperLayer;
use crate::wire::{Ipv4Header, Ipv6Header, Layer, ParseError, ip_protocol};

/// An IP packet that was read; all offsets count from its first octet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Packet {
    /// The flow it belongs to.
    pub flow: FlowKey,
    /// Octets of the whole packet as its header says; octets behind it are link padding.
    pub total_octets: usize,
    /// Where the transport header starts (or, in a later fragment, the rest of the data).
    pub transport_offset: usize,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// DSCP and ECN, the whole octet.
    pub traffic_class: u8,
    /// Whether it may not be fragmented on the way. Always so for IPv6.
    pub dont_fragment: bool,
    /// Whether it is part of a larger datagram.
    pub fragment: Fragment,
}

/// Whether a packet is part of a larger datagram.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Fragment {
    /// A whole datagram.
    Whole,
    /// The first part: it has the transport header.
    First,
    /// A later part: it has no transport header.
    Later,
}

impl Packet {
    /// Reads the IP packet at the front of `bytes`.
    ///
    /// Octets behind the total length are allowed: short Ethernet frames are padded.
    ///
    /// # Errors
    ///
    /// What [`Ipv4Header::parse`], [`Ipv6Header::parse`] and [`UpperLayer::walk`] refuse, and an
    /// unfragmented TCP or UDP packet too short for its ports (`Truncated`).
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        match bytes.first().map(|octet| octet >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            Some(_) => Err(ParseError::invalid(Layer::Ipv4)),
            None => Err(ParseError::truncated(Layer::Ipv4)),
        }
    }

    /// The family of the packet.
    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of(self.flow.source)
    }

    /// The flow that chooses the path of the packet, where there are several.
    ///
    /// It differs from [`flow`](Self::flow) in fragments of IPv6, which have one path all of them:
    /// only the first tells which protocol stands behind further extension headers.
    #[must_use]
    pub const fn path_flow(&self) -> FlowKey {
        match (self.fragment, self.family()) {
            (Fragment::Whole, _) | (Fragment::First | Fragment::Later, Family::V4) => self.flow,
            (Fragment::First | Fragment::Later, Family::V6) => FlowKey {
                protocol: ip_protocol::FRAGMENT,
                ..self.flow
            },
        }
    }

    fn parse_v4(bytes: &[u8]) -> Result<Self, ParseError> {
        let (header, _, payload) = Ipv4Header::parse(bytes)?;
        let fragment = match (header.fragment_offset_octets(), header.more_fragments()) {
            (0, false) => Fragment::Whole,
            (0, true) => Fragment::First,
            (_, _) => Fragment::Later,
        };
        let (source, destination) = (header.source().into(), header.destination().into());
        Ok(Self {
            flow: FlowKey::read(source, destination, header.protocol(), fragment, payload)?,
            total_octets: usize::from(header.total_octets()),
            transport_offset: header.header_octets(),
            hop_limit: header.ttl(),
            traffic_class: header.tos(),
            dont_fragment: header.dont_fragment(),
            fragment,
        })
    }

    fn parse_v6(bytes: &[u8]) -> Result<Self, ParseError> {
        let (header, payload) = Ipv6Header::parse(bytes)?;
        let upper = UpperLayer::walk(header.next_header(), payload)?;
        let fragment = match upper.fragment {
            None => Fragment::Whole,
            Some(part) if part.offset_octets() > 0 => Fragment::Later,
            Some(part) if part.more_fragments() => Fragment::First,
            Some(_) => Fragment::Whole,
        };
        let transport = payload.get(upper.offset_octets..).unwrap_or_default();
        let (source, destination) = (header.source().into(), header.destination().into());
        Ok(Self {
            flow: FlowKey::read(source, destination, upper.protocol, fragment, transport)?,
            total_octets: size_of::<Ipv6Header>() + payload.len(),
            transport_offset: size_of::<Ipv6Header>() + upper.offset_octets,
            hop_limit: header.hop_limit(),
            traffic_class: header.traffic_class(),
            dont_fragment: true,
            fragment,
        })
    }
}

/// The five values that name a flow.
///
/// Ports are those of TCP, UDP and SCTP, the identifier of an ICMP echo (in `source_port`), and zero
/// otherwise. All fragments of a datagram have zero ports, the first too, so that they share one
/// path: the one of [`Packet::path_flow`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct FlowKey {
    /// Source address.
    pub source: IpAddr,
    /// Destination address; of the same family.
    pub destination: IpAddr,
    /// Transport protocol: see [`ip_protocol`].
    pub protocol: u8,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

impl FlowKey {
    /// A hash that is the same for both directions of a flow and depends on `seed`.
    ///
    /// Every bit of the result depends on every bit of the key; it is meant for choosing ports,
    /// paths and workers, not for tables that an attacker may fill.
    #[must_use]
    pub fn symmetric_hash(&self, seed: u64) -> u64 {
        let a = endpoint(self.source, self.source_port, seed);
        let b = endpoint(self.destination, self.destination_port, seed);
        // Sum and xor of the ends do not change when the ends are swapped.
        mix(
            a.wrapping_add(b) ^ u64::from(self.protocol),
            a ^ b ^ MULTIPLIER,
        )
    }

    /// The outer UDP source port for the flow: 49152..=65535. RFC 7348 section 5.
    #[must_use]
    pub fn entropy_port(&self, seed: u64) -> u16 {
        let hash = self.symmetric_hash(seed).to_be_bytes();
        0xc000 | u16::from_be_bytes([hash[0], hash[1]])
    }

    fn read(
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        fragment: Fragment,
        transport: &[u8],
    ) -> Result<Self, ParseError> {
        let mut flow = Self {
            source,
            destination,
            protocol,
            source_port: 0,
            destination_port: 0,
        };
        if fragment != Fragment::Whole {
            return Ok(flow);
        }
        match protocol {
            ip_protocol::TCP | ip_protocol::UDP | ip_protocol::SCTP => {
                let [a, b, c, d, ..] = transport else {
                    let layer = if protocol == ip_protocol::TCP {
                        Layer::Tcp
                    } else {
                        Layer::Udp
                    };
                    return Err(ParseError::truncated(layer));
                };
                flow.source_port = u16::from_be_bytes([*a, *b]);
                flow.destination_port = u16::from_be_bytes([*c, *d]);
            }
            ip_protocol::ICMP => {
                if let [0 | 8, _, _, _, a, b, ..] = transport {
                    flow.source_port = u16::from_be_bytes([*a, *b]);
                }
            }
            ip_protocol::ICMPV6 => {
                if let [128 | 129, _, _, _, a, b, ..] = transport {
                    flow.source_port = u16::from_be_bytes([*a, *b]);
                }
            }
            _ => {}
        }
        Ok(flow)
    }
}

/// An odd constant with its ones spread evenly (the golden ratio's fraction).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

fn endpoint(address: IpAddr, port: u16, seed: u64) -> u64 {
    let (high, low) = match address {
        IpAddr::V4(address) => (0, u64::from(Ipv4Addr::to_bits(address))),
        IpAddr::V6(address) => {
            let bits = Ipv6Addr::to_bits(address).to_be_bytes();
            let [a, b, c, d, e, f, g, h, rest @ ..] = bits;
            (
                u64::from_be_bytes([a, b, c, d, e, f, g, h]),
                u64::from_be_bytes(rest),
            )
        }
    };
    mix(
        mix(low ^ seed, high ^ MULTIPLIER) ^ u64::from(port),
        seed ^ MULTIPLIER.rotate_left(32),
    )
}

/// The two halves of a 128-bit product, folded: one multiplication mixes 64 bits well.
#[allow(
    clippy::cast_possible_truncation,
    reason = "the halves of the product are wanted"
)]
const fn mix(a: u64, b: u64) -> u64 {
    let product = (a ^ MULTIPLIER.rotate_right(17)) as u128 * (b | 1) as u128;
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ipv6::FragmentHeader;
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn udp_v4(source: [u8; 4], destination: [u8; 4], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4(source, destination, 9)
            .udp(ports.0, ports.1)
            .write(&mut packet, payload)
            .unwrap();
        packet
    }

    #[test]
    fn reads_what_etherparse_builds() {
        let bytes = udp_v4([10, 0, 0, 1], [10, 0, 0, 2], (1000, 2000), b"hello");
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.total_octets, bytes.len());
        assert_eq!(
            (packet.transport_offset, packet.hop_limit, packet.fragment),
            (20, 9, Fragment::Whole)
        );
        assert_eq!(packet.flow.source, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(
            (
                packet.flow.protocol,
                packet.flow.source_port,
                packet.flow.destination_port
            ),
            (17, 1000, 2000)
        );

        let mut bytes = Vec::new();
        PacketBuilder::ipv6([1; 16], [2; 16], 5)
            .tcp(1, 2, 3, 4)
            .write(&mut bytes, &[0; 77])
            .unwrap();
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(
            (
                packet.total_octets,
                packet.transport_offset,
                packet.family()
            ),
            (bytes.len(), 40, Family::V6)
        );
        assert_eq!(
            (packet.flow.source_port, packet.flow.destination_port),
            (1, 2)
        );
    }

    #[test]
    fn all_fragments_of_a_datagram_share_a_flow() {
        let mut first = udp_v4([10, 0, 0, 1], [10, 0, 0, 2], (1000, 2000), &[0; 64]);
        first[6] = 0x20;
        let mut later = first.clone();
        later[6..8].copy_from_slice(&[0, 9]);
        let (first, later) = (
            Packet::parse(&first).unwrap(),
            Packet::parse(&later).unwrap(),
        );
        assert_eq!(
            (first.fragment, later.fragment),
            (Fragment::First, Fragment::Later)
        );
        assert_eq!(first.flow, later.flow);
        assert_eq!(first.flow.destination_port, 0);
    }

    #[test]
    fn all_fragments_of_an_ipv6_datagram_share_a_path_whatever_stands_before_its_transport() {
        let packet = |offset, more, data: &[u8]| {
            let part = FragmentHeader::new(ip_protocol::DESTINATION_OPTIONS, offset, more, 7);
            let payload = [part.as_bytes(), data].concat();
            let octets = u16::try_from(payload.len()).unwrap();
            let (source, destination) = ([1_u16; 8].into(), [2_u16; 8].into());
            let ip = Ipv6Header::new(source, destination, ip_protocol::FRAGMENT, octets);
            Packet::parse(&[ip.as_bytes(), &payload].concat()).unwrap()
        };
        let options = [ip_protocol::UDP, 0, 1, 4, 0, 0, 0, 0];
        let first = packet(0, true, &[options, [0x11; 8]].concat());
        let later = packet(16, false, &[0x22; 8]);
        assert_eq!(
            (first.fragment, later.fragment),
            (Fragment::First, Fragment::Later)
        );
        assert_eq!(first.flow.protocol, ip_protocol::UDP);
        assert_ne!(first.flow, later.flow);
        assert_eq!(first.path_flow(), later.path_flow());
        // What is no fragment keeps its own: a fragment header alone makes none (RFC 6946).
        let atomic = packet(0, false, &[options, [0x11; 8]].concat());
        assert_eq!(atomic.path_flow(), atomic.flow);
        assert_eq!(atomic.flow.source_port, 0x1111);
    }

    #[test]
    fn the_hash_spreads_flows_over_the_dynamic_ports() {
        let ports: BTreeSet<u16> = (0..3000_u16)
            .map(|port| udp_v4([10, 0, 0, 1], [10, 0, 0, 2], (port, 53), &[]))
            .map(|bytes| Packet::parse(&bytes).unwrap().flow.entropy_port(7))
            .collect();
        assert!(ports.iter().all(|&port| port >= 49152));
        // 3000 draws of 16384 ports leave 2740 distinct on average.
        assert!((2650..2830).contains(&ports.len()), "{}", ports.len());
    }

    proptest! {
        #[test]
        fn the_hash_is_symmetric(a: [u8; 16], b: [u8; 16], ports: (u16, u16), protocol: u8, seed: u64) {
            let there = FlowKey { source: a.into(), destination: b.into(), protocol, source_port: ports.0, destination_port: ports.1 };
            let back = FlowKey { source: b.into(), destination: a.into(), protocol, source_port: ports.1, destination_port: ports.0 };
            prop_assert_eq!(there.symmetric_hash(seed), back.symmetric_hash(seed));
        }

        #[test]
        fn never_reads_past_what_the_header_says(bytes in proptest::collection::vec(any::<u8>(), 0..120), version in prop::sample::select(alloc::vec![0x45_u8, 0x4f, 0x60])) {
            let mut bytes = bytes;
            if let Some(octet) = bytes.first_mut() { *octet = version; }
            if let Ok(packet) = Packet::parse(&bytes) {
                prop_assert!(packet.total_octets <= bytes.len());
                prop_assert!(packet.transport_offset <= packet.total_octets);
            }
        }
    }
}
