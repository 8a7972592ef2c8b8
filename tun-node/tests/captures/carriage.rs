//! What carries the packets over the underlay, and how it is taken off again to compare them.

use crate::common::Underlay;
use crate::cut::{Segment, UDP, datagrams};
use crate::tap::Captured;
use crate::{MTU, Wire};

/// The encapsulation between the nodes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Carriage {
    /// VXLAN, in datagrams that may be a super-packet of the underlay.
    Vxlan,
    /// IP-in-IP: a super-packet is the inner one, behind an outer header.
    Ip,
}

impl Carriage {
    /// Its name in a configuration.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Ip => "ipip",
        }
    }

    /// Octets between the outer IP header and the inner packet.
    pub(crate) const fn header_octets(self) -> usize {
        match self {
            // UDP, VXLAN, Ethernet.
            Self::Vxlan => 8 + 8 + 14,
            Self::Ip => 0,
        }
    }

    /// The inner packets of a frame on the underlay, whose every header is looked at.
    pub(crate) fn inner(self, frame: &Captured, wire: Wire, underlay: Underlay) -> Vec<Segment> {
        let kind = u16::from_be_bytes([frame.octets[12], frame.octets[13]]);
        let of_the_underlay = match underlay {
            Underlay::V4 => 0x0800,
            Underlay::V6 => 0x86dd,
        };
        // Neighbours ask each other in ARP or ICMPv6.
        if kind != of_the_underlay {
            return Vec::new();
        }
        let protocol = Segment(frame.octets[MAC_OCTETS..].to_vec()).flow().protocol;
        if wire == Wire::Cut {
            assert!(frame.octets.len() <= MAC_OCTETS + MTU, "{frame:x?}");
            assert_eq!(frame.offload[0] & 1, 0, "complete as it is: {frame:x?}");
        }
        match self {
            Self::Vxlan if protocol == UDP => behind_vxlan(frame, wire),
            Self::Ip if [IPV4, IPV6].contains(&protocol) => behind_ip(frame, underlay, protocol),
            Self::Vxlan | Self::Ip => Vec::new(),
        }
    }
}

fn behind_vxlan(frame: &Captured, wire: Wire) -> Vec<Segment> {
    let outer = frame.segments(MAC_OCTETS);
    if wire == Wire::Cut {
        let whole = Segment(frame.octets[MAC_OCTETS..].to_vec());
        assert_eq!(outer, [whole], "complete as it is");
    }
    let mut inner = Vec::new();
    for (outer, (ports, octets)) in outer.iter().zip(datagrams(&outer)) {
        assert!(outer.0.len() <= MTU, "the MTU");
        // RFC 7348 section 5: the source port is of the dynamic range.
        assert!(ports[0] >= 49152 && ports[1] == 8472, "{ports:?}");
        let (vxlan, ethernet) = octets.split_at(8);
        assert_eq!(vxlan, [8, 0, 0, 0, 0, 0, 1, 0], "VNI 1");
        let (ethernet, packet) = ethernet.split_at(14);
        let kind = match packet[0] >> 4 {
            4 => [0x08, 0x00],
            _ => [0x86, 0xdd],
        };
        assert_eq!(ethernet[12..], kind, "the family of the packet");
        // Its length is that of the datagram, and its checksums are filled in.
        let packet = Segment(packet.to_vec()).checked();
        // RFC 6040 section 4.1, normal mode.
        assert_eq!(packet.ecn(), outer.ecn(), "ECN");
        inner.push(packet);
    }
    inner
}

fn behind_ip(frame: &Captured, underlay: Underlay, protocol: u8) -> Vec<Segment> {
    let header_octets = usize::try_from(underlay.header_octets()).expect("small");
    // Of a super-packet, too, the outer header is right: length and checksum.
    let outer = Segment(frame.octets[MAC_OCTETS..].to_vec()).checked();
    let inner = frame.segments(MAC_OCTETS + header_octets);
    for packet in &inner {
        assert!(header_octets + packet.0.len() <= MTU, "the MTU");
        let family = if packet.0[0] >> 4 == 4 { IPV4 } else { IPV6 };
        assert_eq!(protocol, family, "the family of the packet");
        assert_eq!(packet.ecn(), outer.ecn(), "ECN");
    }
    inner
}

const MAC_OCTETS: usize = 14;
const IPV4: u8 = 4;
const IPV6: u8 = 41;
