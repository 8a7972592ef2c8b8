//! What the network says about outer packets, line by line, from a router on the way; and what
//! forgers say.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::{IpNumber, PacketBuilder};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::row::{Plan, Row};

/// Type and code that an inner sender gets.
type Told = Option<(u8, u8)>;

/// The line of RFC 2003 section 4 (RFC 2473 section 8), type and code, and what inner senders of
/// IPv4 and IPv6 get.
const OVER_IPV4: &[(&str, u8, u8, Told, Told)] = &[
    ("4.1 network unreachable", 3, 0, Some((3, 0)), Some((1, 3))),
    ("4.1 host unreachable", 3, 1, Some((3, 1)), Some((1, 3))),
    ("4.1 protocol unreachable", 3, 2, Some((3, 0)), Some((1, 3))),
    ("4.1 port unreachable", 3, 3, None, None),
    ("4.1 source route failed", 3, 5, None, None),
    ("4.2 source quench", 4, 0, None, None),
    ("4.3 redirect", 5, 1, None, None),
    ("4.4 time exceeded", 11, 0, Some((3, 1)), Some((1, 3))),
    ("4.5 parameter problem outside", 12, 0, None, None),
];
const OVER_IPV6: &[(&str, u8, u8, Told, Told)] = &[
    ("8 no route", 1, 0, Some((3, 1)), Some((1, 3))),
    ("8 prohibited", 1, 1, Some((3, 1)), Some((1, 3))),
    ("8 address unreachable", 1, 3, Some((3, 1)), Some((1, 3))),
    ("the tunnel's port", 1, 4, None, None),
    ("8 hop limit exceeded", 3, 0, Some((3, 1)), Some((1, 3))),
    ("8 parameter problem outside", 4, 0, None, None),
];

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The addresses inside: of node 1 and of node 2.
fn inside(family: u8) -> (IpAddr, IpAddr) {
    if family == 4 {
        (address("10.244.1.1"), address("10.244.2.1"))
    } else {
        (address("fd00:10:244:1::1"), address("fd00:10:244:2::1"))
    }
}

fn packet((from, to): (IpAddr, IpAddr), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 60),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 60),
        _ => panic!("one family"),
    };
    let builder = builder.udp(ports.0, ports.1);
    builder.write(&mut packet, payload).unwrap();
    packet
}

/// An outer packet of node 1 to node 2 by IP in IP or FOU.
fn outer(over: u8, is_raw: bool, inner: &[u8]) -> Vec<u8> {
    let ends = (
        address(Row::underlay(1, over)),
        address(Row::underlay(2, over)),
    );
    if !is_raw {
        return packet(ends, (50_000, 5555), inner);
    }
    let mut packet = Vec::new();
    let builder = match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 60),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 60),
        _ => panic!("one family"),
    };
    let protocol = match inner[0] >> 4 {
        4 => IpNumber::IPV4,
        _ => IpNumber::IPV6,
    };
    builder.write(&mut packet, protocol, inner).unwrap();
    packet
}

/// Speaks to node 1 as a router does; to be made in the router's namespace.
struct Router {
    socket: Socket,
    over: u8,
}

impl Router {
    fn new(over: u8) -> Self {
        let (domain, protocol) = if over == 4 {
            (Domain::IPV4, Protocol::ICMPV4)
        } else {
            (Domain::IPV6, Protocol::ICMPV6)
        };
        Self {
            socket: Socket::new(domain, Type::RAW, Some(protocol)).unwrap(),
            over,
        }
    }

    fn say(&self, kind: u8, code: u8, rest: u32, quoted: &[u8]) {
        let mut message = vec![kind, code, 0, 0];
        message.extend(rest.to_be_bytes());
        message.extend(&quoted[..quoted.len().min(500)]);
        if self.over == 4 {
            // For ICMPv6 the kernel does it.
            let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&message);
            // In the order of memory, not of the network.
            message[2..4].copy_from_slice(&sum.ones_complement().to_ne_bytes());
        }
        let to = SocketAddr::new(address(Row::underlay(1, self.over)), 0);
        self.socket.send_to(&message, &SockAddr::from(to)).unwrap();
    }
}

/// Hears the ICMP errors that arrive at node 1 from inside.
struct Sender(Socket);

impl Sender {
    fn new(family: u8) -> Self {
        let (domain, protocol) = if family == 4 {
            (Domain::IPV4, Protocol::ICMPV4)
        } else {
            (Domain::IPV6, Protocol::ICMPV6)
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
        let own = SocketAddr::new(inside(family).0, 0);
        socket.bind(&SockAddr::from(own)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self(socket)
    }

    /// Type, code and the source port of the UDP packet that the next error quotes.
    fn next(&mut self) -> (u8, u8, u16) {
        let mut buffer = [0; 2048];
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            assert!(Instant::now() < limit, "no ICMP message");
            let octets = match self.0.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                octets => octets.expect("an ICMP message"),
            };
            let message = &buffer[..octets];
            let is_v4 = self.0.domain().unwrap() == Domain::IPV4;
            let (icmp, is_error, port) = if is_v4 {
                (&message[20..], matches!(message[20], 3 | 11 | 12), 8 + 20)
            } else {
                (message, message[0] < 128, 8 + 40)
            };
            if is_error {
                let port = u16::from_be_bytes([icmp[port], icmp[port + 1]]);
                return (icmp[0], icmp[1], port);
            }
        }
    }
}

#[test]
fn what_a_router_says_reaches_the_inner_sender_by_the_table() {
    let Some(mut row) = Row::new() else { return };
    for (over, encap) in [(4, "ipip"), (6, "ipip"), (4, "fou"), (6, "fou")] {
        row.start_plan(&Plan {
            over,
            encap: &format!("{encap:?}"),
            ..Plan::default()
        });
        let is_raw = encap == "ipip";
        for family in [4, 6] {
            let mut sender = row.spawn(1, move || Sender::new(family)).join().unwrap();
            let router = row.spawn(3, move || Router::new(over)).join().unwrap();
            let (lines, unreachable) = if over == 4 {
                (OVER_IPV4, (3, 1))
            } else {
                (OVER_IPV6, (1, 3))
            };
            let marker = if family == 4 { (3, 1) } else { (1, 3) };
            for (number, (line, kind, code, v4, v6)) in (0..).zip(lines) {
                let quote = |port| {
                    let inner = packet(inside(family), (port, 9), &[7; 64]);
                    outer(over, is_raw, &inner)
                };
                router.say(*kind, *code, 0, &quote(1000 + number));
                // What is relayed in any case: all before it has been seen then.
                router.say(unreachable.0, unreachable.1, 0, &quote(2000 + number));
                let told = match sender.next() {
                    (kind, code, port) if port == 2000 + number => {
                        assert_eq!((kind, code), marker);
                        None
                    }
                    (kind, code, port) => {
                        assert_eq!(port, 1000 + number, "{line}");
                        assert_eq!(sender.next(), (marker.0, marker.1, 2000 + number));
                        Some((kind, code))
                    }
                };
                let expected = if family == 4 { *v4 } else { *v6 };
                assert_eq!(
                    told, expected,
                    "{encap} over IPv{over}, IPv{family}: {line}"
                );
            }
            println!(
                "{encap} over IPv{over}, IPv{family} inside: {} lines of the table",
                lines.len()
            );
        }
        row.stop();
    }
}

#[test]
fn forged_words_about_size_change_nothing_and_are_counted() {
    let Some(mut row) = Row::new() else { return };
    for (over, encap) in [(4, "fou"), (6, "fou"), (4, "ipip"), (6, "ipip")] {
        row.start_plan(&Plan {
            over,
            encap: &format!("{encap:?}"),
            ..Plan::default()
        });
        for node in [1, 2] {
            row.await_true("the path is measured", Duration::from_secs(30), || {
                row.path(node).path_mtu == 1500
            });
        }
        let is_raw = encap == "ipip";
        let router = row.spawn(3, move || Router::new(over)).join().unwrap();
        let (kind, code) = if over == 4 { (3, 4) } else { (2, 0) };
        let ours = outer(over, is_raw, &packet(inside(4), (1, 9), &[7; 1400]));
        let strange = outer(
            over,
            is_raw,
            &packet(
                (address("10.9.9.9"), address("10.244.2.1")),
                (1, 9),
                &[7; 1400],
            ),
        );
        let mut other_port = ours.clone();
        let at = if over == 4 { 20 } else { 40 };
        other_port[at + 3] ^= 1;
        let mut other_source = ours.clone();
        other_source[if over == 4 { 15 } else { 23 }] ^= 8;
        let mut of_no_length = ours.clone();
        let length = if over == 4 { 2 } else { 4 };
        of_no_length[length..length + 2].copy_from_slice(&100_u16.to_be_bytes());
        // What is quoted, the size, and what is wrong with it.
        let mut forged = vec![
            (&ours, 0, "the router does not know"),
            (&ours, 68, "less than any link has"),
            (&ours, 575, "less than IPv4 promises"),
            (&ours, 1300, "it passes: a probe shows it"),
            (&strange, 1300, "nobody here sent that"),
            (&other_source, 1300, "another host sent that"),
            (&of_no_length, 1300, "it was short enough"),
        ];
        if over == 6 {
            forged.push((&ours, 1279, "less than IPv6 promises"));
        }
        if !is_raw {
            forged.push((&other_port, 1300, "no tunnel's port"));
        }
        let count = forged.len();
        let before = row.path(1).forged;
        for (number, (quoted, mtu, what)) in (1..).zip(forged) {
            router.say(kind, code, mtu, quoted);
            row.await_true(what, Duration::from_secs(20), || {
                row.path(1).forged == before + number
            });
            assert_eq!(row.path(1).path_mtu, 1500, "{what}");
        }
        // About a packet to nobody known.
        let mut nobody = ours.clone();
        nobody[if over == 4 { 19 } else { 39 }] ^= 8;
        let before = row.path(1).forged;
        router.say(kind, code, 1300, &nobody);
        router.say(kind, code, 68, &ours);
        row.await_true("the next one", Duration::from_secs(20), || {
            row.path(1).forged > before
        });
        let path = row.path(1);
        assert_eq!((path.path_mtu, path.forged), (1500, before + 1), "nobody's");
        let said = row.command(1, "peers");
        let words = format!("{} ICMP errors not believed", path.forged);
        assert!(said.contains(&words), "{said}");
        println!("{encap} over IPv{over}: {count} kinds of forged \"too big\", path MTU 1500");
        row.stop();
    }
}
