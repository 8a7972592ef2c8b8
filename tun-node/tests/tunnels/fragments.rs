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
    start(&mut row, 4, "fou");
    let listener = listen(&row);
    let before = row.total(1).decap;
    let datagram = |source: [u8; 4], mark: u8| -> Vec<u8> {
        let inner = inner(source, &[mark; 400]);
        let length = u16::try_from(inner.len() + 8).unwrap();
        let mut udp = Vec::new();
        for field in [50_000_u16, 5555, length, 0] {
            udp.extend(field.to_be_bytes());
        }
        udp.extend(inner);
        udp
    };
    let tiny = |datagram: &[u8]| -> Vec<Part> {
        let last = (datagram.len() - 1) / 8;
        let parts = datagram.chunks(8).enumerate();
        parts
            .map(|(n, part)| (n * 8, part.to_vec(), n < last))
            .collect()
    };
    let (honest, spoofed) = (datagram(HONEST, 1), datagram(SPOOFED, 2));
    let end = honest.len();
    // In order, each as a datagram of its own: eight octets at a time; the same with a spoofed
    // source; an honest header that a later fragment writes over with a spoofed one, and the other
    // way round; a fragment inside of another; the last one twice.
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
            (0, honest[..200].to_vec(), true),
            (200, honest[200..].to_vec(), false),
        ],
    ];
    row.spawn(2, move || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
        for (number, script) in (1..).zip(&scripts) {
            for (at, octets, more) in script {
                send_fragment(&socket, number, *at, octets, *more);
            }
        }
        let mut last = Vec::new();
        let inner = inner(HONEST, END);
        for field in [50_000, 5555, u16::try_from(inner.len() + 8).unwrap(), 0] {
            last.extend(field.to_be_bytes());
        }
        last.extend(inner);
        send_fragment(&socket, 99, 0, &last, false);
    })
    .join()
    .unwrap();
    assert_eq!(end, 8 + 20 + 8 + 400);
    let arrived = listener.join().unwrap();
    // Whole and honest: the tiny ones, the one with a fragment inside of another, of which a kernel
    // takes no notice or drops the whole (before 4.20), and the last pair.
    let count = arrived.len();
    assert!(matches!(count, 2 | 3), "{count} arrived");
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
    // let nothing through.
    assert_eq!(refused(&after) - refused(&before), 1, "{:?}", after.drops);
    assert_eq!(after.drops.values().sum::<u64>(), 1, "{:?}", after.drops);
}

/// Sends an outer IPv4 fragment from node 2 to node 1.
fn send_fragment(socket: &Socket, identification: u16, at: usize, octets: &[u8], more: bool) {
    let word = u16::try_from(at / 8).unwrap() | u16::from(more) << 13;
    let total = u16::try_from(20 + octets.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend(identification.to_be_bytes());
    packet.extend(word.to_be_bytes());
    // The kernel fills in the checksum.
    packet.extend([60, 17, 0, 0, 198, 51, 100, 2, 192, 0, 2, 1]);
    packet.extend(octets);
    let to = std::net::SocketAddr::from(([192, 0, 2, 1], 0));
    socket.set_header_included_v4(true).unwrap();
    socket.send_to(&packet, &SockAddr::from(to)).unwrap();
}
