//! Datagrams in a row by IP-in-IP (`ipip-offload`): as one super-packet between two nodes, whole where nothing
//! cuts it, and apart and in order where they arrive. Needs root and Linux 6.6.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "clippy spares test functions, not their helpers"
)]

mod common;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::opposite::{FAMILIES, cut_frames, settle};
use common::{Lab, Node, Underlay, wait_until};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tun_node::counters::{SocketReport, WorkerReport};
use tun_node::raw::rows::RowsReport;

#[test]
fn datagrams_in_a_row_cross_whole_where_nothing_cuts_them_and_come_apart_in_order() {
    let Some((lab, node, opposite)) = open(OFFLOAD, OFFLOAD) else {
        return;
    };
    for is_wire in [false, true] {
        if is_wire {
            cut_frames(&lab);
        }
        for addresses in FAMILIES {
            for octets in [18, 1000] {
                let what = format!("wire {is_wire}, {octets} octets to {}", addresses.1);
                let before = [&node, &opposite].map(raw);
                stream(&lab, addresses, |_| octets);
                settle(&node);
                settle(&opposite);
                let [out, there] = [
                    between(&before[0], &raw(&node)),
                    between(&before[1], &raw(&opposite)),
                ];
                let what = format!("{what}: {out:?}, {there:?}");
                assert!(out.sent >= DATAGRAMS.into(), "{what}");
                assert!(out.messages < out.sent / 4, "{what}");
                let is_whole = there.received < out.sent / 4;
                assert_eq!(is_whole, !is_wire, "{what}");
            }
        }
    }
    // Rows of many lengths, most of two or three; the last one is shorter.
    for addresses in FAMILIES {
        stream(&lab, addresses, |number| {
            400 - usize::from(number % 3 == 2) * (number as usize % 380)
        });
    }
    assert_balanced(&node);
    assert_balanced(&opposite);
    node.stop();
    opposite.stop();
}

#[test]
fn known_flows_leave_in_a_row_too_where_they_come_thick_and_fast() {
    for options in [SHORT, SHORT_AND_RING] {
        let Some((lab, node, opposite)) = open(options, options) else {
            return;
        };
        for is_wire in [false, true] {
            if is_wire {
                cut_frames(&lab);
            }
            for addresses in FAMILIES {
                let before = raw(&node);
                once_each(&lab, addresses, |_| 100);
                let out = between(&before, &raw(&node));
                let what = format!("{options}, wire {is_wire}, to {}: {out:?}", addresses.1);
                assert!(out.sent > u64::from(DATAGRAMS / 4), "{what}");
                assert!(out.messages < out.sent / 4, "{what}");
            }
        }
        settle(&node);
        settle(&opposite);
        assert_balanced(&node);
        assert_balanced(&opposite);
        node.stop();
        opposite.stop();
    }
}

#[test]
fn to_a_peer_that_would_not_know_where_to_cut_datagrams_leave_one_by_one() {
    let Some((lab, node, opposite)) = open(OFFLOAD, APART) else {
        return;
    };
    for addresses in FAMILIES {
        let before = raw(&node);
        stream(&lab, addresses, |_| 100);
        let out = between(&before, &raw(&node));
        assert!(out.sent >= DATAGRAMS.into(), "{out:?}");
        assert_eq!(out.messages, out.sent);
    }
    node.stop();
    opposite.stop();
}

#[test]
fn nobody_on_the_way_says_where_a_packet_is_to_be_cut() {
    let Some((lab, node, opposite)) = open(OFFLOAD, OFFLOAD) else {
        return;
    };
    opposite.stop();
    let (ours, theirs) = FAMILIES[0];
    let sink = lab.within(1, || UdpSocket::bind((ours, 9000)).unwrap());
    sink.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let raw = lab.within(2, || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
        socket.set_header_included_v4(true).unwrap();
        socket
    });
    let (IpAddr::V4(ours), IpAddr::V4(theirs)) = (ours, theirs) else {
        unreachable!("the first family is IPv4")
    };
    let mut inner = Vec::new();
    etherparse::PacketBuilder::ipv4(theirs.octets(), ours.octets(), 64)
        .udp(9001, 9000)
        .write(&mut inner, &[7; 200])
        .unwrap();
    // The kernel writes length and checksum of the outer header.
    for (identification, flags) in [(10_u16, 0xc0), (10, 0x80), (0, 0xc0), (0xffff, 0xc0)] {
        let mut packet = vec![0x45, 0, 0, 0];
        packet.extend(identification.to_be_bytes());
        packet.extend([flags, 0, 64, 4, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1]);
        packet.extend(&inner);
        let to = SocketAddr::from(([192, 0, 2, 1], 0));
        raw.send_to(&packet, &to.into()).unwrap();
        let mut room = [0; 2048];
        let octets = sink.recv(&mut room).unwrap();
        assert_eq!(octets, 200, "{identification} {flags:x}");
    }
    sink.set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    assert!(sink.recv(&mut [0; 2048]).is_err(), "more than was sent");
    // What is for somebody else at the same device stays as it is.
    lab.ip(1, "addr add 192.0.2.77/24 dev wire");
    let other = lab.within(1, || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(4))).unwrap();
        let address = SocketAddr::from(([192, 0, 2, 77], 0));
        socket.bind(&address.into()).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        UdpSocket::from(socket)
    });
    let mut packet = vec![0x45, 0, 0, 0, 0, 10, 0xc0, 0, 64, 4, 0, 0];
    packet.extend([192, 0, 2, 2, 192, 0, 2, 77]);
    packet.extend(&inner);
    let to = SocketAddr::from(([192, 0, 2, 77], 0));
    raw.send_to(&packet, &to.into()).unwrap();
    let mut room = [0; 2048];
    other.recv(&mut room).unwrap();
    assert_eq!(room[4..8], [0, 10, 0xc0, 0]);
    assert_balanced(&node);
    node.stop();
}

const OFFLOAD: &str = "[worker]\nipip-offload = true";
/// What comes is not joined.
const APART: &str = "[worker]\ngro = false";
const SHORT: &str = "[worker]\nflow-offload = true";
const SHORT_AND_RING: &str = "[worker]\nflow-offload = true\npacket-ring = true";

/// Datagrams of a [`stream`], and of a part that is sent without a pause.
const DATAGRAMS: u32 = 40_000;
const AT_ONCE: u32 = 500;

/// Two nodes by IP-in-IP with those sections in their configurations, once each knows what the other takes;
/// `None`, after saying why, where rows cannot be.
fn open(ours: &str, theirs: &str) -> Option<(Lab, Node, Node)> {
    let lab = Lab::new()?;
    let node = lab.start(1, "ipip", Underlay::V4, ours);
    let opposite = lab.start(2, "ipip", Underlay::V4, theirs);
    (has_rows(&node) && know_each_other(&node, theirs)).then_some((lab, node, opposite))
}

fn rows(node: &Node) -> Option<RowsReport> {
    node.status()?.ipip_rows
}

/// Whether a node takes rows; says why, where it does not.
fn has_rows(node: &Node) -> bool {
    let rows = rows(node).unwrap();
    if !rows.on {
        let foreseen = ["CAP_BPF", "6.6"];
        let is_foreseen = foreseen.iter().any(|why| rows.because.contains(why));
        assert!(is_foreseen, "{rows:?}: {}", node.log());
        eprintln!("skipped: the host has no rows: {}", rows.because);
    }
    rows.on
}

/// Waits until a node knows whether a peer with that section takes rows.
fn know_each_other(node: &Node, theirs: &str) -> bool {
    let takes = theirs != APART;
    if takes {
        let known = || rows(node).filter(|rows| rows.peers == 1);
        wait_until("the peer has answered", known).unwrap();
    }
    // Who sends asks once a second.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(rows(node).unwrap().peers, u32::from(takes));
    true
}

/// Sends numbered datagrams from node 1 to node 2, and checks that all arrive, in their order and as long as
/// `octets` says.
fn stream(lab: &Lab, addresses: (IpAddr, IpAddr), octets: impl Fn(u32) -> usize + Sync) {
    let arrived = once_each(lab, addresses, octets);
    assert!(arrived.is_sorted(), "they came in another order");
}

/// As [`stream`], whatever their order, in which it returns their numbers: a flow may change its way meanwhile.
fn once_each(
    lab: &Lab,
    (ours, theirs): (IpAddr, IpAddr),
    octets: impl Fn(u32) -> usize + Sync,
) -> Vec<u32> {
    let sink = lab.within(2, || UdpSocket::bind((theirs, 9000)).unwrap());
    setsockopt(&sink, sockopt::RcvBufForce, &(16 << 20)).unwrap();
    sink.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let source = lab.within(1, || UdpSocket::bind((ours, 0)).unwrap());
    source.connect((theirs, 9000)).unwrap();
    let arrived = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let mut room = [0; 2048];
            let mut numbers = Vec::new();
            let mut seen = HashSet::new();
            while numbers.len() < DATAGRAMS as usize {
                let length = sink
                    .recv(&mut room)
                    .unwrap_or_else(|error| panic!("{error} behind {}", numbers.len()));
                let number = u32::from_be_bytes(room[..4].try_into().unwrap());
                assert_eq!(length, octets(number), "{number}");
                assert!(room[4..length].iter().all(|octet| *octet == room[3]));
                assert!(seen.insert(number), "{number} twice");
                numbers.push(number);
                arrived.fetch_add(1, Ordering::Release);
            }
            numbers
        });
        let started = Instant::now();
        for number in 0..DATAGRAMS {
            let mut payload = vec![number.to_be_bytes()[3]; octets(number)];
            payload[..4].copy_from_slice(&number.to_be_bytes());
            source.send(&payload).unwrap();
            while number % AT_ONCE == 0 && arrived.load(Ordering::Acquire) + AT_ONCE < number {
                assert!(started.elapsed() < Duration::from_secs(60), "too slow");
                std::thread::yield_now();
            }
        }
        receiving.join().unwrap()
    })
}

/// What a node's raw sockets sent and received.
fn raw(node: &Node) -> SocketReport {
    // Those of what took the short way are apart.
    let workers = WorkerReport::total(&node.counters().workers);
    let mut sockets = workers.sockets.into_iter();
    sockets.find(|one| one.socket == "ip4").unwrap()
}

#[derive(Debug)]
struct Between {
    sent: u64,
    messages: u64,
    received: u64,
}

/// What came to the counts of [`raw`].
fn between(before: &SocketReport, after: &SocketReport) -> Between {
    Between {
        sent: after.sent.packets - before.sent.packets,
        messages: after.send_messages - before.send_messages,
        received: after.received.packets - before.received.packets,
    }
}

fn assert_balanced(node: &Node) {
    let balance = node.counters().total.balance();
    assert_eq!(balance.received, balance.left + balance.dropped);
}
