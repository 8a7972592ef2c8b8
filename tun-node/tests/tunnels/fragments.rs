//! Outer fragments: put together by the kernel's sockets before anything is checked, so that the
//! check sees the whole packet whatever was cut, doubled or laid over it.
//!
//! Node 2 is played by raw sockets here; node 1 knows it as a peer.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread::JoinHandle;
use std::time::Duration;

use etherparse::PacketBuilder;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::row::{Plan, Row};

const HONEST: [u8; 4] = [10, 244, 2, 7];
/// Node 1's own network never speaks from the other side, nor does a prefix of nobody.
const SPOOFED: [u8; 4] = [10, 99, 9, 9];

/// An inner packet with so many octets of payload.
fn inner(source: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(source, [10, 244, 1, 1], 60)
        .udp(7000, 7000)
        .write(&mut packet, payload)
        .unwrap();
    packet
}

/// Starts node 1 alone, and whoever listens behind it.
fn start(row: &mut Row, over: u8, encap: &str) {
    let plan = Plan {
        over,
        encap: &format!("{encap:?}"),
        sections: |_| "[probing]\nenabled = false\n",
        ..Plan::default()
    };
    let config = row.config(1, &plan);
    row.spawn_node(1, &config);
    row.await_true("the node is ready", Duration::from_secs(20), || {
        row.is_ready(1)
    });
    // Every neighbour on the way is known, so that no packet waits for one.
    for (node, router) in [
        (1, ["192.0.2.254", "2001:db8:1::fe"]),
        (2, ["198.51.100.254", "2001:db8:2::fe"]),
    ] {
        row.exec(
            node,
            &format!("ping -n -c 1 -W 5 {}", router[usize::from(over == 6)]),
        );
    }
}

/// What arrives behind node 1, up to the packet whose payload is `end`, with the source of each.
fn listen(row: &Row) -> JoinHandle<Vec<(Ipv4Addr, Vec<u8>)>> {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let listener = row.spawn(1, move || {
        let socket = UdpSocket::bind("10.244.1.1:7000").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        ready.send(()).unwrap();
        let mut seen = Vec::new();
        let mut buffer = [0; 65_536];
        while let Ok((octets, from)) = socket.recv_from(&mut buffer) {
            let std::net::IpAddr::V4(from) = from.ip() else {
                continue;
            };
            if buffer[..octets] == *END {
                return seen;
            }
            seen.push((from, buffer[..octets].to_vec()));
        }
        panic!("the end does not arrive: {} packets did", seen.len());
    });
    is_ready.recv().unwrap();
    listener
}

const END: &[u8] = b"the end";

#[test]
fn outer_fragments_are_put_together_by_the_kernels_socket() {
    let Some(mut row) = Row::new() else { return };
    for (over, encap) in [(4, "fou"), (6, "fou"), (4, "ipip"), (6, "ipip")] {
        start(&mut row, over, encap);
        let listener = listen(&row);
        let is_raw = encap == "ipip";
        row.spawn(2, move || {
            let domain = if over == 4 {
                Domain::IPV4
            } else {
                Domain::IPV6
            };
            let socket = if is_raw {
                Socket::new(domain, Type::RAW, Some(Protocol::from(4))).unwrap()
            } else {
                Socket::new(domain, Type::DGRAM, None).unwrap()
            };
            let port = if is_raw { 0 } else { 5555 };
            let to = format!("{}:{port}", bracketed(Row::underlay(1, over)));
            let to: std::net::SocketAddr = to.parse().unwrap();
            for octets in [100, 1473, 3000, 9000, 60_000] {
                let payload = vec![7; octets];
                socket
                    .send_to(&inner(HONEST, &payload), &SockAddr::from(to))
                    .unwrap();
            }
            socket
                .send_to(&inner(HONEST, END), &SockAddr::from(to))
                .unwrap();
        })
        .join()
        .unwrap();
        let sizes: Vec<usize> = listener
            .join()
            .unwrap()
            .iter()
            .map(|(from, payload)| {
                assert_eq!(from.octets(), HONEST);
                payload.len()
            })
            .collect();
        assert_eq!(
            sizes,
            [100, 1473, 3000, 9000, 60_000],
            "{encap} over IPv{over}"
        );
        println!("{encap} over IPv{over}: outer packets of up to 60 kB in fragments arrive whole");
        row.stop();
    }
}

fn bracketed(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

/// A part of the outer datagram: where it begins, its octets, whether more follow.
type Part = (usize, Vec<u8>, bool);

#[test]
fn tiny_and_overlapping_fragments_do_not_get_past_the_check_of_the_source() {
    let Some(mut row) = Row::new() else { return };
    for (over, encap) in [(4, "fou"), (6, "fou"), (4, "ipip"), (6, "ipip")] {
        start(&mut row, over, encap);
        tiny_and_overlapping(&row, over, encap == "ipip");
        println!("{encap} over IPv{over}: of what is tiny or overlaps nothing gets past the check");
        row.stop();
    }
}

fn tiny_and_overlapping(row: &Row, over: u8, is_raw: bool) {
    let listener = listen(row);
    let before = row.total(1).decap;
    let datagram = move |source: [u8; 4], payload: &[u8]| -> Vec<u8> {
        let inner = inner(source, payload);
        if is_raw {
            return inner;
        }
        let udp = if over == 4 {
            let length = u16::try_from(inner.len() + 8).unwrap();
            etherparse::UdpHeader {
                source_port: 50_000,
                destination_port: 5555,
                length,
                checksum: 0,
            }
        } else {
            let ip = etherparse::Ipv6Header {
                source: ip_v6(2),
                destination: ip_v6(1),
                ..Default::default()
            };
            etherparse::UdpHeader::with_ipv6_checksum(50_000, 5555, &ip, &inner).unwrap()
        };
        [&udp.to_bytes()[..], &inner].concat()
    };
    let tiny = |datagram: &[u8]| -> Vec<Part> {
        let last = (datagram.len() - 1) / 8;
        let parts = datagram.chunks(8).enumerate();
        parts
            .map(|(n, part)| (n * 8, part.to_vec(), n < last))
            .collect()
    };
    let (honest, spoofed) = (datagram(HONEST, &[1; 400]), datagram(SPOOFED, &[2; 400]));
    // In order, each as a datagram of its own: eight octets at a time; the same with a spoofed
    // source; an honest header that a later fragment writes over with a spoofed one, and the other
    // way round; a fragment inside of another; one that ends where the next one has begun; none of
    // it twice; and one that is whole and called a fragment (RFC 6946).
    let scripts: Vec<Vec<Part>> = vec![
        tiny(&honest),
        tiny(&spoofed),
        vec![
            (0, honest[..64].to_vec(), true),
            (8, spoofed[8..].to_vec(), false),
        ],
        vec![
            (8, honest[8..].to_vec(), false),
            (0, spoofed[..64].to_vec(), true),
        ],
        vec![
            (0, honest[..200].to_vec(), true),
            (16, spoofed[16..48].to_vec(), true),
            (200, honest[200..].to_vec(), false),
        ],
        vec![
            (0, honest[..208].to_vec(), true),
            (200, honest[200..].to_vec(), false),
        ],
        vec![
            (0, honest[..200].to_vec(), true),
            (200, honest[200..].to_vec(), false),
        ],
        vec![(0, honest.clone(), false)],
    ];
    let end = datagram(HONEST, END);
    row.spawn(2, move || {
        let socket = OuterFragments::open(over, is_raw);
        for (number, script) in (1..).zip(&scripts) {
            for (at, octets, more) in script {
                socket.send(number, *at, octets, *more);
            }
        }
        socket.send(99, 0, &end, false);
    })
    .join()
    .unwrap();
    let arrived = listener.join().unwrap();
    // Whole and honest: the tiny ones, the one with a fragment inside of another, of which a kernel
    // takes no notice or drops the whole (before 4.20), and the last two.
    let count = arrived.len();
    assert!(matches!(count, 3 | 4), "{count} arrived");
    for (from, payload) in &arrived {
        assert_eq!((from.octets(), &payload[..]), (HONEST, &[1; 400][..]));
    }
    let after = row.total(1).decap;
    let refused = |report: &tun_node::counters::DirectionReport| {
        report
            .drops
            .get("source_not_owned_by_peer")
            .copied()
            .unwrap_or_default()
    };
    // The spoofed one in tiny fragments was seen whole and refused; of what overlapped the kernel
    // let nothing through (RFC 5722).
    assert_eq!(refused(&after) - refused(&before), 1, "{:?}", after.drops);
    assert_eq!(after.drops.values().sum::<u64>(), 1, "{:?}", after.drops);
}

fn ip_v6(node: u8) -> [u8; 16] {
    let address: std::net::Ipv6Addr = Row::underlay(node, 6).parse().unwrap();
    address.octets()
}

/// Sends outer fragments from node 2 to node 1, headers and all.
struct OuterFragments {
    socket: Socket,
    over: u8,
    /// What the outer packet carries: IPv4 or UDP.
    protocol: u8,
}

impl OuterFragments {
    fn open(over: u8, is_raw: bool) -> Self {
        let domain = if over == 4 {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        // IPPROTO_RAW: the header is included.
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(255))).unwrap();
        Self {
            socket,
            over,
            protocol: if is_raw { 4 } else { 17 },
        }
    }

    fn send(&self, identification: u16, at: usize, octets: &[u8], more: bool) {
        let at = u16::try_from(at).unwrap();
        let mut packet = Vec::new();
        if self.over == 4 {
            let total = u16::try_from(20 + octets.len()).unwrap();
            packet.extend([0x45, 0]);
            packet.extend(total.to_be_bytes());
            packet.extend(identification.to_be_bytes());
            packet.extend(((at / 8) | (u16::from(more) << 13)).to_be_bytes());
            // The kernel fills in the checksum.
            packet.extend([60, self.protocol, 0, 0, 198, 51, 100, 2, 192, 0, 2, 1]);
        } else {
            let length = u16::try_from(8 + octets.len()).unwrap();
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([44, 60]);
            packet.extend(ip_v6(2));
            packet.extend(ip_v6(1));
            packet.extend([self.protocol, 0]);
            packet.extend((at | u16::from(more)).to_be_bytes());
            packet.extend(u32::from(identification).to_be_bytes());
        }
        packet.extend(octets);
        let to: std::net::IpAddr = Row::underlay(1, self.over).parse().unwrap();
        let to = SockAddr::from(std::net::SocketAddr::new(to, 0));
        self.socket.send_to(&packet, &to).unwrap();
    }
}

#[test]
fn what_is_sent_to_another_address_of_the_host_is_not_taken() {
    let Some(mut row) = Row::new() else { return };
    for (over, encap) in [(4, "fou"), (6, "fou"), (4, "ipip"), (6, "ipip")] {
        // The host has more addresses than the node has been given.
        let (other, length) = if over == 4 {
            ("192.0.2.77", 24)
        } else {
            ("2001:db8:1::77", 64)
        };
        let nodad = if over == 4 { "" } else { "nodad" };
        row.ip(
            1,
            &format!("addr replace {other}/{length} dev wire {nodad}"),
        );
        start(&mut row, over, encap);
        row.exec(2, &format!("ping -n -c 1 -W 5 {other}"));
        let listener = listen(&row);
        let before = row.total(1).decap.received.packets;
        let is_raw = encap == "ipip";
        row.spawn(2, move || {
            let (domain, port) = (
                if over == 4 {
                    Domain::IPV4
                } else {
                    Domain::IPV6
                },
                if is_raw { 0 } else { 5555 },
            );
            let (kind, protocol) = match is_raw {
                true => (Type::RAW, Some(Protocol::from(4))),
                false => (Type::DGRAM, None),
            };
            let socket = Socket::new(domain, kind, protocol).unwrap();
            for (address, payload) in [
                (other, &b"not for the node"[..]),
                (other, b"nor this"),
                (Row::underlay(1, over), END),
            ] {
                let to = format!("{}:{port}", bracketed(address));
                let to: std::net::SocketAddr = to.parse().unwrap();
                let sent = socket.send_to(&inner(HONEST, payload), &SockAddr::from(to));
                sent.unwrap();
            }
        })
        .join()
        .unwrap();
        assert_eq!(listener.join().unwrap(), [], "{encap} over IPv{over}");
        let after = row.total(1).decap.received.packets;
        assert_eq!(after - before, 1, "{encap} over IPv{over}: read at all");
        println!("{encap} over IPv{over}: only what is sent to the node's own address is read");
        row.stop();
    }
}
