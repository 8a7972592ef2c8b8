//! RFC 2003 section 4 and its likes for IPv6, line by line, over octets: an ICMP error as a router
//! writes it, about an outer packet as this node sends it, and what the inner sender gets.

use super::*;
use crate::paths::packet::wrapped;
use etherparse::{IpNumber, PacketBuilder};
use warren_core::units::{MacAddr, Vni};
use warren_core::wire::checksum::Sum;

/// Type and code that the IPv4 and the IPv6 sender get.
type Told = Option<(u8, u8)>;

/// The line, type and code, and what the senders of IPv4 and of IPv6 get.
const OVER_IPV4: &[(&str, u8, u8, Told, Told)] = &[
    (
        "RFC 2003 4.1 network unreachable",
        3,
        0,
        Some((3, 0)),
        Some((1, 3)),
    ),
    (
        "RFC 2003 4.1 host unreachable",
        3,
        1,
        Some((3, 1)),
        Some((1, 3)),
    ),
    (
        "RFC 2003 4.1 protocol unreachable",
        3,
        2,
        Some((3, 0)),
        Some((1, 3)),
    ),
    ("RFC 2003 4.1 port unreachable", 3, 3, None, None),
    ("RFC 2003 4.1 too big: by the path MTU", 3, 4, None, None),
    ("RFC 2003 4.1 source route failed", 3, 5, None, None),
    (
        "RFC 1122 3.2.2.1 network unknown",
        3,
        6,
        Some((3, 1)),
        Some((1, 3)),
    ),
    (
        "RFC 1122 3.2.2.1 host unknown",
        3,
        7,
        Some((3, 1)),
        Some((1, 3)),
    ),
    (
        "RFC 1122 3.2.2.1 network prohibited",
        3,
        9,
        Some((3, 1)),
        Some((1, 3)),
    ),
    (
        "RFC 1122 3.2.2.1 host prohibited",
        3,
        10,
        Some((3, 1)),
        Some((1, 3)),
    ),
    (
        "RFC 1812 5.2.7.1 prohibited",
        3,
        13,
        Some((3, 1)),
        Some((1, 3)),
    ),
    ("RFC 2003 4.2 source quench", 4, 0, None, None),
    ("RFC 2003 4.3 redirect for the network", 5, 0, None, None),
    ("RFC 2003 4.3 redirect for the host", 5, 1, None, None),
    (
        "RFC 2003 4.4 time exceeded",
        11,
        0,
        Some((3, 1)),
        Some((1, 3)),
    ),
    (
        "RFC 2003 4.4 reassembly time exceeded",
        11,
        1,
        Some((3, 1)),
        Some((1, 3)),
    ),
    (
        "RFC 2003 4.5 a required option is missing",
        12,
        1,
        None,
        None,
    ),
    ("RFC 2003 4.6 time stamp", 13, 0, None, None),
    ("RFC 2003 4.6 an echo", 8, 0, None, None),
];

/// The same over IPv6.
const OVER_IPV6: &[(&str, u8, u8, Told, Told)] = &[
    ("RFC 2473 8 no route", 1, 0, Some((3, 1)), Some((1, 3))),
    ("RFC 2473 8 prohibited", 1, 1, Some((3, 1)), Some((1, 3))),
    ("RFC 2473 8 beyond scope", 1, 2, Some((3, 1)), Some((1, 3))),
    (
        "RFC 2473 8 address unreachable",
        1,
        3,
        Some((3, 1)),
        Some((1, 3)),
    ),
    ("the tunnel's own port", 1, 4, None, None),
    ("RFC 2473 8 too big: by the path MTU", 2, 0, None, None),
    (
        "RFC 2473 8 hop limit exceeded",
        3,
        0,
        Some((3, 1)),
        Some((1, 3)),
    ),
    ("RFC 4443 an echo", 128, 0, None, None),
];

/// Everything to and from the documentation's networks is sent in all ways.
struct All;

impl Sent for All {
    fn is_from(&self, underlay: IpAddr) -> bool {
        underlay == local(Family::of(underlay))
    }

    fn leads(&self, source: IpAddr, destination: IpAddr) -> bool {
        let (from, to) = inner_ends(Family::of(source));
        source == from && destination == to
    }

    fn ways(&self) -> impl Iterator<Item = Encapsulation> {
        ways().into_iter()
    }
}

fn ways() -> [Encapsulation; 6] {
    let vni = Vni::new(1).expect("24 bits");
    let mac = MacAddr::default();
    [
        Encapsulation::Vxlan {
            vni,
            port: 8472,
            mac,
        },
        Encapsulation::VxlanGpe { vni, port: 4790 },
        Encapsulation::Geneve {
            vni,
            port: 6081,
            mac,
        },
        Encapsulation::Ipip,
        // On one port, as kube-router has them.
        Encapsulation::Fou { port: 5555 },
        Encapsulation::Gue { port: 5555 },
    ]
}

fn local(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([192, 0, 2, 1]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
    }
}

fn remote(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([198, 51, 100, 2]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 2]),
    }
}

fn inner_ends(family: Family) -> (IpAddr, IpAddr) {
    match family {
        Family::V4 => ([10, 1, 0, 1].into(), [10, 2, 0, 2].into()),
        Family::V6 => ([0xfd01_u16; 8].into(), [0xfd02_u16; 8].into()),
    }
}

fn packet(ends: (IpAddr, IpAddr), payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 9),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 9),
        _ => panic!("one family"),
    };
    builder
        .udp(1000, 2000)
        .write(&mut packet, payload)
        .expect("a vector takes it");
    packet
}

/// The outer packet around `inner`.
fn outer(underlay: Family, way: Encapsulation, inner: &[u8]) -> Vec<u8> {
    let wrapped = wrapped(inner, way, MacAddr::default()).expect("room");
    let ends = (local(underlay), remote(underlay));
    let port = match way {
        Encapsulation::Ipip => {
            let mut packet = Vec::new();
            let protocol = match inner.first().map(|octet| octet >> 4) {
                Some(4) => IpNumber::IPV4,
                _ => IpNumber::IPV6,
            };
            let ip = match ends {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    PacketBuilder::ipv4(from.octets(), to.octets(), 64)
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    PacketBuilder::ipv6(from.octets(), to.octets(), 64)
                }
                _ => panic!("one family"),
            };
            ip.write(&mut packet, protocol, &wrapped)
                .expect("a vector takes it");
            return packet;
        }
        Encapsulation::Vxlan { port, .. }
        | Encapsulation::VxlanGpe { port, .. }
        | Encapsulation::Geneve { port, .. }
        | Encapsulation::Fou { port }
        | Encapsulation::Gue { port } => port,
    };
    let mut packet = packet(ends, &wrapped);
    let udp = usize::from(underlay.header_octets());
    packet[udp..udp + 2].copy_from_slice(&50_000_u16.to_be_bytes());
    packet[udp + 2..udp + 4].copy_from_slice(&port.to_be_bytes());
    packet
}

/// What the raw socket gives: over IPv4 with the router's IP header.
fn error(underlay: Family, kind: u8, code: u8, rest: [u8; 4], quoted: &[u8]) -> Vec<u8> {
    let mut message = match underlay {
        Family::V4 => {
            let mut header = vec![0x45];
            header.extend([0; 11]);
            header.extend([203, 0, 113, 9, 192, 0, 2, 1]);
            header
        }
        Family::V6 => Vec::new(),
    };
    message.extend([kind, code, 0, 0]);
    message.extend(rest);
    message.extend(quoted);
    message
}

/// Checks an ICMP message about `inner` and gives its type, code and rest.
fn read(message: &[u8], inner: &[u8]) -> (u8, u8, [u8; 4]) {
    let sliced = etherparse::SlicedPacket::from_ip(message).expect("a packet");
    let (from, to, icmp) = match sliced.net.expect("IP") {
        etherparse::NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(
                header.header_checksum(),
                header.to_header().calc_header_checksum()
            );
            assert!(Sum::ZERO.octets(&message[20..]).is_valid());
            let ends = (
                header.source_addr().into(),
                header.destination_addr().into(),
            );
            (ends.0, ends.1, &message[20..])
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let octets = u32::try_from(message.len() - 40).expect("a short one");
            let sum =
                Sum::ZERO.pseudo_v6(header.source_addr(), header.destination_addr(), 58, octets);
            assert!(sum.octets(&message[40..]).is_valid());
            let ends: (IpAddr, IpAddr) = (
                header.source_addr().into(),
                header.destination_addr().into(),
            );
            (ends.0, ends.1, &message[40..])
        }
        etherparse::NetSlice::Arp(_) => panic!("not ARP"),
    };
    let (sender, destination): (IpAddr, IpAddr) = addresses(inner).expect("a packet");
    assert_eq!((from, to), (destination, sender), "to the inner sender");
    assert!(
        icmp.len() > 8 + 28 && inner.starts_with(&icmp[8..]),
        "quoted as it was sent"
    );
    (icmp[0], icmp[1], [icmp[4], icmp[5], icmp[6], icmp[7]])
}

#[test]
fn each_line_of_the_table_in_each_encapsulation() {
    let mut cases = 0;
    for (underlay, lines) in [(Family::V4, OVER_IPV4), (Family::V6, OVER_IPV6)] {
        for way in ways() {
            for &(line, kind, code, v4, v6) in lines {
                for (family, told) in [(Family::V4, v4), (Family::V6, v6)] {
                    let inner = packet(inner_ends(family), &[7; 200]);
                    let quoted = outer(underlay, way, &inner);
                    let message = error(underlay, kind, code, [0, 0, 5, 0], &quoted);
                    let answer = parse(underlay, &message).and_then(|error| error.relay(&All));
                    let answer = answer.map(|message| read(&message, &inner));
                    let expected = told.map(|(kind, code)| (kind, code, [0; 4]));
                    assert_eq!(
                        answer, expected,
                        "{line}: {way} over {underlay}, {family} inside"
                    );
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, (19 + 8) * 6 * 2);
}

#[test]
fn a_parameter_problem_is_relayed_where_it_points_into_the_inner_packet() {
    for underlay in [Family::V4, Family::V6] {
        for way in ways() {
            for family in [Family::V4, Family::V6] {
                let inner = packet(inner_ends(family), &[7; 200]);
                let quoted = outer(underlay, way, &inner);
                let front = u8::try_from(quoted.len() - inner.len()).expect("headers are short");
                for (pointer, told) in [
                    (0, None),
                    (front - 1, None),
                    (front, Some(0)),
                    (front + 7, Some(7)),
                ] {
                    let (kind, rest) = match underlay {
                        Family::V4 => (12, [pointer, 0, 0, 0]),
                        Family::V6 => (4, [0, 0, 0, pointer]),
                    };
                    let message = error(underlay, kind, 0, rest, &quoted);
                    let answer = parse(underlay, &message).and_then(|error| error.relay(&All));
                    let answer = answer.map(|message| read(&message, &inner));
                    let expected = told.map(|at| match family {
                        Family::V4 => (12, 0, [at, 0, 0, 0]),
                        Family::V6 => (4, 0, [0, 0, 0, at]),
                    });
                    assert_eq!(
                        answer, expected,
                        "{way} over {underlay}, {family} inside, at {pointer}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_quote_that_matches_nothing_sent_is_not_believed() {
    for underlay in [Family::V4, Family::V6] {
        let at = usize::from(underlay.header_octets());
        for way in ways() {
            for family in [Family::V4, Family::V6] {
                let inner = packet(inner_ends(family), &[7; 1400]);
                let honest = outer(underlay, way, &inner);
                let front = honest.len() - inner.len();
                let too_big = |quoted: &[u8], mtu: u16| {
                    let [high, low] = mtu.to_be_bytes();
                    let kind = if underlay == Family::V4 {
                        [3, 4]
                    } else {
                        [2, 0]
                    };
                    let message = error(underlay, kind[0], kind[1], [0, 0, high, low], quoted);
                    parse(underlay, &message).is_some_and(|error| error.matches(&All))
                };
                let label = format!("{way} over {underlay}, {family} inside");
                assert!(too_big(&honest, 1300), "{label}");
                // As little as RFC 792 wants is a hint too.
                assert!(too_big(&honest[..at + 8], 1300), "{label}");
                let changed = |place: usize, octet: u8| {
                    let mut quoted = honest.clone();
                    quoted[place] ^= octet;
                    too_big(&quoted, 1300)
                };
                assert!(
                    !too_big(&honest, u16::try_from(honest.len()).expect("short")),
                    "it fits: {label}"
                );
                let (source, destination) = match underlay {
                    Family::V4 => (15, 19),
                    Family::V6 => (23, 39),
                };
                assert!(!changed(source, 1), "another's packet: {label}");
                // The destination is looked up before.
                assert!(changed(destination, 1), "{label}");
                let protocol = if underlay == Family::V4 { 9 } else { 6 };
                assert!(!changed(protocol, 0x80), "{label}");
                if way != Encapsulation::Ipip {
                    assert!(!changed(at + 3, 1), "another port: {label}");
                }
                let (source, destination) = match family {
                    Family::V4 => (front + 15, front + 19),
                    Family::V6 => (front + 23, front + 39),
                };
                assert!(!changed(source, 1), "another inner source: {label}");
                assert!(
                    !changed(destination, 1),
                    "another inner destination: {label}"
                );
                assert!(!changed(front, 0x30), "no inner packet: {label}");
            }
        }
    }
}
