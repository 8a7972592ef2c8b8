//! What the sender of an inner packet is told about an ICMP error that its outer packet met.
//!
//! The router that drops an outer packet tells the tunnel's entry, which knows who sent what was
//! inside. [`relay`] is the table of RFC 2003 section 4 (for IPv6 that of RFC 2473 section 8),
//! [`message`] makes the ICMP message out of what the error quotes: at least 8 octets behind the
//! outer header (RFC 792), mostly more (RFC 1812 section 4.3.2.3). Where that does not reach the
//! inner header nothing can be relayed; a path MTU is kept and answers the next packet.
//!
//! | underlay | the IPv4 sender gets | the IPv6 sender gets | because |
//! |----------|----------------------|----------------------|---------|
//! | 3/0 network unreachable | 3/0 | 1/3 | RFC 2003 section 4.1; RFC 4213 section 3.4 |
//! | 3/1 host unreachable; 3/6, 7, 8, 11, 12, which say it more exactly | 3/1 | 1/3 | the same |
//! | 3/2 protocol unreachable | 3/0 | 1/3 | the sender used no such protocol |
//! | 3/3 port unreachable | nothing | nothing | MUST NOT |
//! | 3/4 too big | 3/4 | 2/0 | MUST: by the path MTU, with the next packet that is too big |
//! | 3/5 source route failed | nothing | nothing | MUST NOT |
//! | 3/9, 10, 13 prohibited | 3/1 | 1/3 | not in the table: the sender's own rights are not in question |
//! | 4 source quench | nothing | nothing | section 4.2: SHOULD NOT |
//! | 5 redirect | nothing | nothing | section 4.3: MUST NOT |
//! | 11 time exceeded | 3/1 | 1/3 | section 4.4: MUST |
//! | 12/0 parameter problem | 12/0 where it points into the inner packet | 4/0 | section 4.5: MAY |
//! | ICMPv6 1, but port unreachable | 3/1 | 1/3 | RFC 2473 sections 8.2 and 8.3 |
//! | ICMPv6 2 too big | 3/4 | 2/0 | the same |
//! | ICMPv6 3 time exceeded | 3/1 | 1/3 | the same |
//! | ICMPv6 4 parameter problem | 12/0 where it points into the inner packet | 4/0 | otherwise the tunnel's own |
//! | all others | nothing | nothing | section 4.6 |

use alloc::vec::Vec;
use core::net::IpAddr;

use zerocopy::{FromBytes, IntoBytes};

use crate::units::{Family, Mtu};
use crate::wire::checksum::Sum;
use crate::wire::ipv6::UpperLayer;
use crate::wire::{IcmpHeader, Icmpv6Header, Ipv4Header, Ipv6Header, icmp, icmpv6, ip_protocol};

/// What becomes of an ICMP error about an outer packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Relay {
    /// The sender is told that the network cannot be reached: 3/0. ICMPv6 has only 1/3 for what lies
    /// behind a tunnel (RFC 4213 section 3.4).
    NetUnreachable,
    /// The sender is told that the host cannot be reached: 3/1, ICMPv6 1/3.
    HostUnreachable,
    /// The path MTU is lowered, which tells the sender of each packet that is too big: 3/4, ICMPv6
    /// 2/0.
    TooBig,
    /// The sender is told of the problem if the pointer lies in its own packet.
    ParameterProblem,
    /// Nobody is told.
    Silent,
}

/// The action for an error of this type and code about an outer packet of `underlay`. RFC 2003
/// section 4, RFC 2473 section 8.
#[must_use]
pub const fn relay(underlay: Family, kind: u8, code: u8) -> Relay {
    match (underlay, kind, code) {
        // 4.1: the network: relayed.
        (Family::V4, 3, 0) => Relay::NetUnreachable,
        // 4.1: the host, the tunnel's end: relayed; no host or network of the sender's is meant, but it
        // cannot be reached. 6, 7, 11, 12: the same, said more exactly (RFC 1122 section 3.2.2.1).
        (Family::V4, 3, 1 | 6 | 7 | 8 | 11 | 12) => Relay::HostUnreachable,
        // 4.1: protocol: the tunnel's end does not speak the encapsulation: the sender's network is
        // unreachable.
        (Family::V4, 3, 2) => Relay::NetUnreachable,
        // 4.1: port, which was not the sender's: MUST NOT.
        (Family::V4, 3, 3) => Relay::Silent,
        // 4.1: too big: MUST.
        (Family::V4, 3, 4) => Relay::TooBig,
        // 4.1: the source route was not the sender's: MUST NOT.
        (Family::V4, 3, 5) => Relay::Silent,
        // Prohibited on the way: as unreachable; the sender's rights are not in question.
        (Family::V4, 3, 9 | 10 | 13) => Relay::HostUnreachable,
        // 4.2 source quench and 4.3 redirect: not, MUST NOT.
        (Family::V4, 4 | 5, _) => Relay::Silent,
        // 4.4: time exceeded in the tunnel: as host unreachable.
        (Family::V4, 11, _) => Relay::HostUnreachable,
        // 4.5: parameter problem: if it points into the inner packet. Other codes do not point.
        (Family::V4, 12, 0) => Relay::ParameterProblem,
        // RFC 2473 section 8: unreachable, by whatever code, and time exceeded are reported as
        // address unreachable, but a port was the tunnel's.
        (Family::V6, 1, 4) => Relay::Silent,
        (Family::V6, 1, _) => Relay::HostUnreachable,
        (Family::V6, 2, _) => Relay::TooBig,
        (Family::V6, 3, _) => Relay::HostUnreachable,
        (Family::V6, 4, _) => Relay::ParameterProblem,
        (Family::V4 | Family::V6, _, _) => Relay::Silent,
    }
}

/// Makes the message about `quoted`, the front of an inner packet, from `source` to its sender.
///
/// `pointer` is where a parameter problem lies in the inner packet; `mtu` what a packet that is
/// too big may have. `None` where nobody is told: nothing to relay, an error about an error, a later
/// fragment, or less than a header and 8 octets quoted.
#[must_use]
pub fn message(
    action: Relay,
    source: IpAddr,
    quoted: &[u8],
    mtu: Mtu,
    pointer: Option<u8>,
) -> Option<Vec<u8>> {
    match (quoted.first()? >> 4, source) {
        (4, IpAddr::V4(source)) => {
            let (inner, rest) = Ipv4Header::ref_from_prefix(quoted).ok()?;
            let header = inner.header_octets();
            let behind = quoted.get(header..).filter(|rest| rest.len() >= 8)?;
            let is_error = inner.protocol() == ip_protocol::ICMP
                && behind.first().is_none_or(|kind| !matches!(kind, 0 | 8));
            if inner.fragment_offset_octets() > 0 || is_error || rest.is_empty() {
                return None;
            }
            let [mtu_high, mtu_low] = mtu.octets().to_be_bytes();
            let (kind, code, rest) = match action {
                Relay::NetUnreachable => (icmp::kind::UNREACHABLE, icmp::unreachable::NET, [0; 4]),
                Relay::HostUnreachable => {
                    (icmp::kind::UNREACHABLE, icmp::unreachable::HOST, [0; 4])
                }
                Relay::TooBig => (
                    icmp::kind::UNREACHABLE,
                    icmp::unreachable::FRAGMENTATION_NEEDED,
                    [0, 0, mtu_high, mtu_low],
                ),
                Relay::ParameterProblem => (PARAMETER_PROBLEM_V4, 0, [pointer?, 0, 0, 0]),
                Relay::Silent => return None,
            };
            let quoted = quoted.get(..quoted.len().min(QUOTED_V4))?;
            let mut icmp = IcmpHeader::new(kind, code, rest);
            let sum = Sum::ZERO.octets(icmp.as_bytes()).octets(quoted);
            icmp.set_checksum(sum.finish());
            let octets = u16::try_from(20 + 8 + quoted.len()).ok()?;
            let mut ip = Ipv4Header::new(source, inner.source(), ip_protocol::ICMP, octets);
            ip.fill_checksum(&[]);
            Some([ip.as_bytes(), icmp.as_bytes(), quoted].concat())
        }
        (6, IpAddr::V6(source)) => {
            let (inner, rest) = Ipv6Header::ref_from_prefix(quoted).ok()?;
            // RFC 4443 section 2.4 (e): never about an error or a redirect, nor where the quote is
            // too short to tell, whatever stands before it.
            let upper = UpperLayer::walk(inner.next_header(), rest).ok()?;
            let is_later = upper.fragment.is_some_and(|part| part.offset_octets() > 0);
            let kind = rest.get(upper.offset_octets);
            let is_error = upper.protocol == ip_protocol::ICMPV6
                && kind.is_none_or(|kind| kind & 0x80 == 0 || *kind == icmpv6::kind::REDIRECT);
            if is_later || is_error || rest.len() < 8 {
                return None;
            }
            let (kind, code, rest) = match action {
                Relay::NetUnreachable | Relay::HostUnreachable => {
                    (icmpv6::kind::UNREACHABLE, icmpv6::unreachable::ADDRESS, 0)
                }
                Relay::TooBig => (icmpv6::kind::PACKET_TOO_BIG, 0, u32::from(mtu.octets())),
                Relay::ParameterProblem => (PARAMETER_PROBLEM_V6, 0, u32::from(pointer?)),
                Relay::Silent => return None,
            };
            let quoted = quoted.get(..quoted.len().min(QUOTED_V6))?;
            let mut icmp = Icmpv6Header::new(kind, code, rest);
            let octets = u16::try_from(8 + quoted.len()).ok()?;
            let sum = Sum::ZERO
                .pseudo_v6(
                    source,
                    inner.source(),
                    ip_protocol::ICMPV6,
                    u32::from(octets),
                )
                .octets(icmp.as_bytes())
                .octets(quoted);
            icmp.set_checksum(sum.finish());
            let ip = Ipv6Header::new(source, inner.source(), ip_protocol::ICMPV6, octets);
            Some([ip.as_bytes(), icmp.as_bytes(), quoted].concat())
        }
        _ => None,
    }
}

const PARAMETER_PROBLEM_V4: u8 = 12;
const PARAMETER_PROBLEM_V6: u8 = 4;
/// RFC 1812 section 4.3.2.3: the message has at most 576 octets.
const QUOTED_V4: usize = 576 - 28;
/// RFC 4443 section 2.4 (c): at most 1280.
const QUOTED_V6: usize = 1280 - 48;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ipv6::FragmentHeader;
    use etherparse::{IcmpEchoHeader, Icmpv4Type, PacketBuilder, SlicedPacket, icmpv4};

    #[test]
    fn the_table_of_rfc_2003_section_4_line_by_line() {
        for (kind, code, action) in [
            (3, 0, Relay::NetUnreachable),
            (3, 1, Relay::HostUnreachable),
            (3, 2, Relay::NetUnreachable),
            (3, 3, Relay::Silent),
            (3, 4, Relay::TooBig),
            (3, 5, Relay::Silent),
            (4, 0, Relay::Silent),
            (5, 0, Relay::Silent),
            (5, 1, Relay::Silent),
            (5, 2, Relay::Silent),
            (5, 3, Relay::Silent),
            (11, 0, Relay::HostUnreachable),
            (11, 1, Relay::HostUnreachable),
            (12, 0, Relay::ParameterProblem),
            (12, 1, Relay::Silent),
            // What is no error is not relayed.
            (0, 0, Relay::Silent),
            (8, 0, Relay::Silent),
            (13, 0, Relay::Silent),
        ] {
            assert_eq!(relay(Family::V4, kind, code), action, "{kind}/{code}");
        }
        for (kind, code, action) in [
            (1, 0, Relay::HostUnreachable),
            (1, 3, Relay::HostUnreachable),
            (1, 4, Relay::Silent),
            (2, 0, Relay::TooBig),
            (3, 0, Relay::HostUnreachable),
            (4, 0, Relay::ParameterProblem),
            (128, 0, Relay::Silent),
        ] {
            assert_eq!(relay(Family::V6, kind, code), action, "{kind}/{code}");
        }
    }

    fn udp_v4() -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 1, 0, 1], [10, 2, 0, 2], 9)
            .udp(1000, 2000)
            .write(&mut packet, &[7; 1000])
            .unwrap();
        packet
    }

    #[test]
    fn the_inner_sender_gets_a_message_that_an_outside_parser_reads() {
        let router = IpAddr::from([10, 1, 0, 254]);
        for (action, expected) in [
            (Relay::HostUnreachable, icmpv4::DestUnreachableHeader::Host),
            (
                Relay::NetUnreachable,
                icmpv4::DestUnreachableHeader::Network,
            ),
            (
                Relay::TooBig,
                icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 },
            ),
        ] {
            // A router that quotes 8 octets behind the header, and one that quotes all.
            for octets in [28, 1028] {
                let quoted = &udp_v4()[..octets];
                let made = message(action, router, quoted, Mtu::new(1400), None).unwrap();
                let sliced = SlicedPacket::from_ip(&made).unwrap();
                let Some(etherparse::TransportSlice::Icmpv4(icmp)) = &sliced.transport else {
                    panic!("no ICMP");
                };
                assert_eq!(
                    icmp.icmp_type(),
                    Icmpv4Type::DestinationUnreachable(expected.clone())
                );
                assert_eq!(icmp.payload(), &quoted[..octets.min(QUOTED_V4)]);
                assert!(Sum::ZERO.octets(icmp.slice()).is_valid());
                assert_eq!(made[16..20], [10, 1, 0, 1]);
            }
        }
        assert_eq!(
            message(
                Relay::HostUnreachable,
                router,
                &udp_v4()[..27],
                Mtu::ETHERNET,
                None
            ),
            None,
            "too little is quoted"
        );
        let mut fragment = udp_v4();
        fragment[7] = 9;
        assert_eq!(
            message(
                Relay::HostUnreachable,
                router,
                &fragment,
                Mtu::ETHERNET,
                None
            ),
            None
        );
        assert_eq!(
            message(
                Relay::ParameterProblem,
                router,
                &udp_v4(),
                Mtu::ETHERNET,
                None
            ),
            None,
            "it points into the outer header"
        );
    }

    #[test]
    fn never_about_an_error_and_always_about_an_echo() {
        let router = IpAddr::from([10, 1, 0, 254]);
        let icmp = |kind: Icmpv4Type| {
            let mut packet = Vec::new();
            PacketBuilder::ipv4([10, 1, 0, 1], [10, 2, 0, 2], 9)
                .icmpv4(kind)
                .write(&mut packet, &[0; 40])
                .unwrap();
            message(Relay::HostUnreachable, router, &packet, Mtu::ETHERNET, None)
        };
        let echo = IcmpEchoHeader { id: 1, seq: 1 };
        assert!(icmp(Icmpv4Type::EchoRequest(echo)).is_some());
        let error = icmpv4::DestUnreachableHeader::Host;
        assert!(icmp(Icmpv4Type::DestinationUnreachable(error)).is_none());

        let router: IpAddr = "fd00::1".parse().unwrap();
        let options = |next| [next, 0, 1, 4, 0, 0, 0, 0].to_vec();
        let fragment = |next, offset: u16, more| {
            FragmentHeader::new(next, offset, more, 7)
                .as_bytes()
                .to_vec()
        };
        let icmp = ip_protocol::ICMPV6;
        for (first, headers, kind, is_told) in [
            (icmp, Vec::new(), 128, true),
            (icmp, Vec::new(), 1, false),
            // A redirect is none by its number, but must not be answered either.
            (icmp, Vec::new(), 137, false),
            (ip_protocol::DESTINATION_OPTIONS, options(icmp), 128, true),
            (ip_protocol::DESTINATION_OPTIONS, options(icmp), 3, false),
            (ip_protocol::HOP_BY_HOP, options(icmp), 137, false),
            (ip_protocol::FRAGMENT, fragment(icmp, 0, true), 128, true),
            (ip_protocol::FRAGMENT, fragment(icmp, 0, true), 2, false),
            // Of a later fragment nobody knows what it is about.
            (ip_protocol::FRAGMENT, fragment(icmp, 8, false), 128, false),
            (ip_protocol::FRAGMENT, fragment(17, 8, false), 0, false),
            // The quote ends before the headers do.
            (
                ip_protocol::DESTINATION_OPTIONS,
                [icmp, 200].to_vec(),
                128,
                false,
            ),
        ] {
            let payload = [headers, [kind, 0, 0, 0, 0, 1, 0, 1].to_vec()].concat();
            let octets = u16::try_from(payload.len()).unwrap();
            let ip = Ipv6Header::new([1_u16; 8].into(), [2_u16; 8].into(), first, octets);
            let quoted = [ip.as_bytes(), &payload].concat();
            let made = message(Relay::HostUnreachable, router, &quoted, Mtu::ETHERNET, None);
            assert_eq!(made.is_some(), is_told, "{quoted:?}");
        }

        let mut packet = Vec::new();
        PacketBuilder::ipv6([1; 16], [2; 16], 5)
            .udp(1, 2)
            .write(&mut packet, &[0; 40])
            .unwrap();
        let made = message(Relay::TooBig, router, &packet, Mtu::new(1300), None).unwrap();
        let sliced = SlicedPacket::from_ip(&made).unwrap();
        let Some(etherparse::TransportSlice::Icmpv6(icmp)) = &sliced.transport else {
            panic!("no ICMPv6");
        };
        assert!(icmp.is_checksum_valid(
            made[8..24].try_into().unwrap(),
            made[24..40].try_into().unwrap()
        ));
    }
}
