//! The short way through the kernel (`flow-offload`), between a node and the kernel's own VXLAN device; of
//! IP-in-IP, of which not every kernel has a device, between a node and one without a short way (and in
//! `kernels.rs` between a node and kernels in machines of their own).
//!
//! ```text
//!  namespace 1: tun-node, 192.0.2.1 ── wire ══ wire, 192.0.2.2: VXLAN device, no node
//!               10.244.1.1, fd00:10:244:1::1      10.244.2.1, fd00:10:244:2::1
//! ```
//!
//! Everything here is told apart by who carried it: the node's counters say how much took the short
//! way, and what did not is read from its workers. Needs root and Linux 6.6.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "clippy spares test functions, not their helpers"
)]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use common::opposite::{self, FAMILIES, settle};
use common::{Lab, Node, Underlay, wait_until};
use etherparse::{Ipv4Header, UdpHeader};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tun_node::counters::{DeviceReport, TallyReport, WorkerReport};
use tun_node::ctl::message::{CountersReport, Request, Response};
use warren_core::verdict::DropReason;

#[test]
fn tcp_and_udp_of_both_families_take_the_short_way_both_ways_unchanged() {
    let Some((lab, node)) = open("") else { return };
    for (ours, theirs) in FAMILIES {
        for (from, to, source, destination) in [(1, 2, ours, theirs), (2, 1, theirs, ours)] {
            let before = offloaded(&node);
            transfer(&lab, (from, source), (to, destination), 8 << 20, PIECES);
            let what = format!("TCP from {source}");
            let carried = offloaded(&node);
            let encap = carried.device.read.packets - before.device.read.packets;
            let decap = carried.device.written.packets - before.device.written.packets;
            assert!(encap > 20 && decap > 20, "{what}: {encap} out, {decap} in");
        }
        let before = offloaded(&node);
        let echoed = echo(&lab, ours, theirs, 200, 300);
        assert_eq!(echoed, 200);
        let carried = offloaded(&node);
        let encap = carried.device.read.packets - before.device.read.packets;
        let decap = carried.device.written.packets - before.device.written.packets;
        assert!(
            encap > 100 && decap > 100,
            "UDP from {ours}: {encap} out, {decap} in"
        );
    }
    settle(&node);
    let report = node.counters();
    assert_balanced(&report);
    node.stop();
}

#[test]
fn on_a_wire_the_kernel_cuts_super_packets_with_an_outer_checksum_that_is_right() {
    let Some((lab, node)) = open("") else { return };
    cut_frames(&lab);
    for (ours, theirs) in FAMILIES {
        assert_cut(&lab, &node, (ours, theirs), "vxlan");
        transfer(&lab, (2, theirs), (1, ours), 8 << 20, PIECES);
        assert_eq!(echo(&lab, ours, theirs, 100, 1200), 100);
    }
    settle(&node);
    assert_balanced(&node.counters());
    node.stop();
}

#[test]
fn every_encapsulation_in_udp_takes_the_short_way_both_ways() {
    // A node that has none sends trains of datagrams, which a worker opens.
    for (encap, shim_octets) in [
        ("fou", 0),
        ("gue", 4),
        ("vxlan-gpe", 8),
        ("vxlan", 22),
        ("geneve", 22),
    ] {
        let Some((lab, node, opposite)) = open_between_nodes(encap, SHORT) else {
            return;
        };
        assert_short_and_whole(&lab, &node, encap);
        cut_frames(&lab);
        for (ours, theirs) in FAMILIES {
            assert_cut(&lab, &node, (ours, theirs), encap);
            transfer(&lab, (2, theirs), (1, ours), 8 << 20, PIECES);
        }
        assert_carried(&node, encap, "udp4", shim_octets);
        node.stop();
        opposite.stop();
    }
}

#[test]
fn ip_in_ip_takes_the_short_way_whole_in_small_packets_and_in_dense_ones() {
    // To one that takes datagrams in a row dense ones leave so (`rows.rs`).
    let Some((lab, node, opposite)) = open_between_nodes("ipip", "[worker]\ngro = false") else {
        return;
    };
    for is_wire in [false, true] {
        if is_wire {
            cut_frames(&lab);
        }
        assert_short_and_whole(&lab, &node, &format!("wire {is_wire}"));
    }
    let (ours, theirs) = FAMILIES[0];
    let _sink = lab.within(2, || UdpSocket::bind((theirs, 9000)).unwrap());
    let source = lab.within(1, || UdpSocket::bind((ours, 9001)).unwrap());
    source.connect((theirs, 9000)).unwrap();
    for _ in 0..30 {
        source.send(b"learn").unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let before = offloaded(&node).device;
    for _ in 0..50_000 {
        source.send(b"dense").unwrap();
    }
    let [out, _] = carried([before, offloaded(&node).device]);
    assert!(out.packets > 49_000, "{out:?}");
    // An outer IP header is no part of what a raw socket is given.
    assert_carried(&node, "ipip", "ip4", 0);
    node.stop();
    opposite.stop();
}

#[test]
fn ip_in_ip_of_a_known_flow_from_another_outer_source_takes_the_usual_way() {
    let Some((lab, node, opposite)) = open_between_nodes("ipip", "") else {
        return;
    };
    let (ours, theirs) = FAMILIES[0];
    assert_eq!(echo(&lab, ours, theirs, 50, 64), 50);
    opposite.stop();
    lab.ip(2, "addr add 192.0.2.77/24 dev wire");
    let inner = inner_udp(
        [10, 244, 2, 1],
        [10, 244, 1, 1],
        (ECHO, SOURCE),
        b"spoofed!",
    );
    let to = SocketAddr::from(([192, 0, 2, 1], 0));
    for (source, is_passed) in [([192, 0, 2, 77], false), ([192, 0, 2, 2], true)] {
        let before = node.counters();
        let socket = lab.within(2, || {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(4))).unwrap();
            socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
            socket
        });
        for _ in 0..20 {
            socket.send_to(&inner, &to.into()).unwrap();
        }
        std::thread::sleep(Duration::from_millis(100));
        let after = node.counters();
        let count =
            |report: &CountersReport| report.offloaded.as_ref().unwrap().device.written.packets;
        let short = count(&after) - count(&before);
        let dropped = after.total.decap.dropped - before.total.decap.dropped;
        let expected = if is_passed { (20, 0) } else { (0, 20) };
        assert_eq!((short, dropped), expected, "{source:?}");
    }
    node.stop();
}

#[test]
fn once_a_route_is_withdrawn_no_packet_takes_the_old_way() {
    let Some((lab, node)) = open("") else { return };
    let (ours, theirs) = FAMILIES[0];
    let sink = lab.within(2, || UdpSocket::bind((theirs, 9000)).unwrap());
    sink.set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let source = lab.within(1, || UdpSocket::bind((ours, 9001)).unwrap());
    source.connect((theirs, 9000)).unwrap();
    for number in 0..100_u32 {
        source.send(&number.to_be_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(
        offloaded(&node).device.read.packets > 50,
        "{:?}",
        offloaded(&node).device
    );
    // The host goes on to give such packets to the device.
    lab.ip(1, "route add 10.244.2.0/24 dev warren0 metric 500");
    let path = lab.directory().join("1.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let before = "prefixes = [\"10.244.2.0/24\"";
    assert!(text.contains(before));
    std::fs::write(
        &path,
        text.replace(before, "prefixes = [\"10.244.99.0/24\""),
    )
    .unwrap();
    let carried = offloaded(&node).device.read.packets;
    // Packets are sent all the time, from before the publication to after it.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut drain = [0; 64];
    while sink.recv(&mut drain).is_ok() {}
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = source.send(b"before");
                std::thread::sleep(PAUSE);
            }
        });
        let answer = node.ask(&Request::Reload { dry_run: false });
        assert!(matches!(answer, Some(Response::Reload(_))), "{answer:?}");
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        sending.join().unwrap();
        for _ in 0..1000 {
            // What the node says of the packet before is an error of the next.
            let _ = source.send(b"after");
            std::thread::sleep(PAUSE);
        }
    });
    assert!(
        offloaded(&node).device.read.packets > carried,
        "it took no short way"
    );
    while let Ok(octets) = sink.recv(&mut drain) {
        assert_ne!(&drain[..octets], b"after", "it left by the old way");
    }
    settle(&node);
    let report = node.counters();
    assert_balanced(&report);
    let refused = report.total.encap.drops.get(DropReason::NoRoute.name());
    assert!(refused.is_some_and(|packets| *packets > 300), "{refused:?}");
    node.stop();
}

#[test]
fn a_frame_of_a_known_flow_from_another_outer_source_takes_the_usual_way() {
    let Some((lab, node)) = open("") else { return };
    let (ours, theirs) = FAMILIES[0];
    assert_eq!(echo(&lab, ours, theirs, 50, 64), 50);
    let before = node.counters();
    // The same inner packet, which the engine refuses from there.
    lab.ip(2, "addr add 192.0.2.77/24 dev wire");
    let inner = inner_udp(
        [10, 244, 2, 1],
        [10, 244, 1, 1],
        (ECHO, SOURCE),
        b"spoofed!",
    );
    let frame = frame(&inner);
    for (source, is_passed) in [("192.0.2.77:5000", false), ("192.0.2.2:5000", true)] {
        let socket = lab.within(2, || UdpSocket::bind(source).unwrap());
        for _ in 0..20 {
            socket.send_to(&frame, "192.0.2.1:8472").unwrap();
        }
        std::thread::sleep(Duration::from_millis(100));
        let after = node.counters();
        let count =
            |report: &CountersReport| report.offloaded.as_ref().unwrap().device.written.packets;
        let carried = count(&after) - count(&before);
        let dropped = after.total.decap.dropped - before.total.decap.dropped;
        assert_eq!(
            (carried, dropped),
            (if is_passed { 20 } else { 0 }, 20),
            "{source}"
        );
    }
    node.stop();
}

#[test]
fn what_is_not_as_the_flow_was_takes_the_usual_way() {
    let Some((lab, node)) = open("") else { return };
    let (ours, theirs) = FAMILIES[0];
    let sink = lab.within(2, || UdpSocket::bind((theirs, 9000)).unwrap());
    sink.set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let socket = lab.within(1, || {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
        socket.bind(&SocketAddr::new(ours, 9001).into()).unwrap();
        socket
            .connect(&SocketAddr::new(theirs, 9000).into())
            .unwrap();
        socket
    });
    let mut octets = [0; 64];
    let mut arrives = |what: &str, octets_sent: &[u8], is_short: bool| {
        let before = offloaded(&node).device.read.packets;
        socket.send(octets_sent).unwrap();
        sink.recv(&mut octets)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let carried = offloaded(&node).device.read.packets - before;
        assert_eq!(carried, u64::from(is_short), "{what}");
    };
    for _ in 0..30 {
        socket.send(b"learn").unwrap();
        std::thread::sleep(Duration::from_millis(2));
        let mut octets = [0; 64];
        sink.recv(&mut octets).unwrap();
    }
    arrives("as it was", b"1", true);
    socket.set_tos_v4(0xb8).unwrap();
    arrives("another DSCP", b"2", false);
    socket.set_tos_v4(0x02).unwrap();
    arrives("ECN", b"3", true);
    socket.set_tos_v4(0).unwrap();
    socket.set_ttl_v4(2).unwrap();
    arrives("a TTL that lasts", b"4", true);
    socket.set_ttl_v4(64).unwrap();
    arrives("as it was, again", b"5", true);
    // A TTL of one ends at the node, which says so.
    socket.set_ttl_v4(1).unwrap();
    let before = node.counters();
    socket.send(b"6").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let after = node.counters();
    let expired = after.total.encap.drops.get(DropReason::TtlExpired.name());
    assert_eq!(expired, Some(&1));
    assert_eq!(
        after.offloaded.unwrap().device.read,
        before.offloaded.unwrap().device.read
    );
    node.stop();
}

/// What the kernel's device sends as one, nothing cuts on the way.
#[test]
fn datagrams_that_the_kernel_sends_as_one_arrive_apart() {
    let Some((lab, node)) = open("") else { return };
    for (ours, theirs) in FAMILIES {
        assert_eq!(echo(&lab, ours, theirs, 50, 64), 50);
        let sink = lab.within(1, || UdpSocket::bind((ours, SOURCE)).unwrap());
        sink.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let source = lab.within(2, || UdpSocket::bind((theirs, ECHO)).unwrap());
        source.connect((ours, SOURCE)).unwrap();
        let before = offloaded(&node).device.written.packets;
        source.send(b"one").unwrap();
        let mut room = [0; 65_536];
        assert_eq!(sink.recv(&mut room).unwrap(), 3);
        let after = offloaded(&node).device.written.packets;
        assert_eq!(after - before, 1, "the flow is not known");
        setsockopt(&source, sockopt::UdpGsoSegment, &500).unwrap();
        let row: Vec<u8> = (0..20 * 500 + 7_u32)
            .map(|at| (at / 500).to_le_bytes()[0])
            .collect();
        for _ in 0..10 {
            source.send(&row).unwrap();
            for datagram in row.chunks(500) {
                let octets = sink.recv(&mut room).unwrap();
                assert!(room[..octets] == *datagram, "{octets} octets");
            }
        }
    }
    settle(&node);
    assert_balanced(&node.counters());
    node.stop();
}

#[test]
fn the_programs_end_with_a_process_that_is_killed() {
    let Some((lab, mut node)) = open("") else {
        return;
    };
    let (ours, theirs) = FAMILIES[0];
    assert_eq!(echo(&lab, ours, theirs, 50, 64), 50);
    node.signal(Signal::SIGKILL);
    node.wait();
    // What the program at the underlay's device took comes to a socket again.
    let frame = frame(&inner_udp(
        [10, 244, 2, 1],
        [10, 244, 1, 1],
        (ECHO, SOURCE),
        b"anyone?",
    ));
    let socket = lab.within(1, || UdpSocket::bind("192.0.2.1:8472").unwrap());
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let sender = lab.within(2, || UdpSocket::bind("192.0.2.2:5000").unwrap());
    sender.send_to(&frame, "192.0.2.1:8472").unwrap();
    assert_eq!(socket.recv(&mut [0; 2000]).unwrap(), frame.len());
    drop(socket);
    // A second node attaches its own, and nothing of the first takes its packets: the sum is whole.
    let config = lab.directory().join("1.toml");
    let node = lab.spawn(1, &config);
    node.wait_ready();
    assert_eq!(echo(&lab, ours, theirs, 50, 64), 50);
    settle(&node);
    let report = node.counters();
    assert_balanced(&report);
    let carried = report.total.device.read.packets;
    assert!(carried >= 50, "{carried}");
    node.stop();
    let links = lab.exec(1, &["ip", "-d", "link", "show"]);
    assert!(!String::from_utf8_lossy(&links.stdout).contains("warren0"));
}

#[test]
fn nothing_takes_the_short_way_unless_it_is_asked_for_or_beside_an_ipsec_policy() {
    let Some((lab, node)) = open("") else { return };
    let (ours, theirs) = FAMILIES[0];
    lab.ip(
        1,
        "xfrm policy add src 192.0.2.1 dst 192.0.2.9 proto 50 dir out tmpl proto esp mode transport",
    );
    wait_until("it is off", || {
        node.status()?.flow_offload.filter(|offload| !offload.on)
    })
    .unwrap();
    let status = node.status().unwrap().flow_offload.unwrap();
    assert!(status.because.contains("IPsec"), "{status:?}");
    let before = offloaded(&node).device.read;
    assert_eq!(echo(&lab, ours, theirs, 50, 64), 50);
    assert_eq!(offloaded(&node).device.read, before);
    node.stop();
    let config = lab.directory().join("1.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("flow-offload = true", "")).unwrap();
    let node = lab.spawn(1, &config);
    node.wait_ready();
    assert_eq!(echo(&lab, ours, theirs, 50, 64), 50);
    assert_eq!(node.status().unwrap().flow_offload, None);
    assert_eq!(node.counters().offloaded, None);
    node.stop();
}

/// Between datagrams: those that come thick and fast take the usual way.
const PAUSE: Duration = Duration::from_micros(100);

/// Ports of [`echo`].
const ECHO: u16 = 9100;
const SOURCE: u16 = 9101;

/// A node with the short way, and the kernel's device for its peer; `None`, after saying why, where
/// there can be none.
fn open(worker: &str) -> Option<(Lab, Node)> {
    let lab = Lab::new()?;
    let path = opposite::open(&lab, &format!("flow-offload = true\n{worker}"));
    let node = lab.spawn(1, &path);
    node.wait_ready();
    has_short_way(&node).then_some((lab, node))
}

/// Whether it has; says why, where it has none.
fn has_short_way(node: &Node) -> bool {
    let status = node
        .status()
        .and_then(|status| status.flow_offload)
        .unwrap();
    if !status.on {
        let foreseen = ["CAP_BPF", "6.6"];
        let is_foreseen = foreseen.iter().any(|why| status.because.contains(why));
        assert!(is_foreseen, "{status:?}: {}", node.log());
        eprintln!("skipped: the host has no short way: {}", status.because);
    }
    status.on
}

/// What has a node take the short way.
const SHORT: &str = "[worker]\nflow-offload = true";

/// A node with the short way, and another that has `opposite` in its configuration.
fn open_between_nodes(encap: &str, opposite: &str) -> Option<(Lab, Node, Node)> {
    let lab = Lab::new()?;
    let node = lab.start(1, encap, Underlay::V4, SHORT);
    let opposite = lab.start(2, encap, Underlay::V4, opposite);
    has_short_way(&node).then_some((lab, node, opposite))
}

/// TCP and UDP of both families take the short way, both ways, and super-packets do.
fn assert_short_and_whole(lab: &Lab, node: &Node, what: &str) {
    for (ours, theirs) in FAMILIES {
        for (from, to, source, destination) in [(1, 2, ours, theirs), (2, 1, theirs, ours)] {
            let before = offloaded(node).device;
            transfer(lab, (from, source), (to, destination), 8 << 20, PIECES);
            let [out, back] = carried([before, offloaded(node).device]);
            let what = format!("{what}, TCP from {source}: {out:?}, {back:?}");
            assert!(out.packets > 0 && back.packets > 0, "{what}");
            let (data, answers) = if from == 1 { (out, back) } else { (back, out) };
            assert!(data.octets > 4 << 20 && answers.octets < 1 << 20, "{what}");
        }
        let before = offloaded(node).device;
        assert_eq!(echo(lab, ours, theirs, 200, 300), 200, "{what}");
        let [out, back] = carried([before, offloaded(node).device]);
        let what = format!("{what}, UDP from {ours}: {out:?}, {back:?}");
        assert!(out.packets > 100 && back.packets > 100, "{what}");
    }
}

/// What took the short way is counted exactly, as sent in `encap` by sockets of that name with a shim of so many
/// octets.
fn assert_carried(node: &Node, encap: &str, sockets: &str, shim_octets: u64) {
    settle(node);
    let report = node.counters();
    assert_balanced(&report);
    let offloaded = report.offloaded.unwrap();
    let peer = &offloaded.peers[0];
    assert_eq!(peer.by_encapsulation[encap].encap, peer.encap, "{encap}");
    let (read, left) = (offloaded.encap.received, offloaded.encap.forwarded);
    let shims = left.octets - read.octets;
    assert_eq!(shims, shim_octets * read.packets, "{encap}");
    let of_name = offloaded.sockets.iter().filter(|one| one.socket == sockets);
    let sent: Vec<_> = of_name.map(|one| (one.sent, one.received)).collect();
    assert_eq!(sent, [(left, offloaded.decap.received)], "{encap}");
}

/// Has frames cut to the MTU, as a wire has them.
fn cut_frames(lab: &Lab) {
    opposite::cut_frames(lab);
    // The features are asked for once a second.
    std::thread::sleep(Duration::from_millis(1500));
}

/// What was read from the device and written to it since.
fn carried([before, after]: [DeviceReport; 2]) -> [TallyReport; 2] {
    let since = |before: TallyReport, after: TallyReport| TallyReport {
        packets: after.packets - before.packets,
        octets: after.octets - before.octets,
    };
    [
        since(before.read, after.read),
        since(before.written, after.written),
    ]
}

fn offloaded(node: &Node) -> WorkerReport {
    node.counters().offloaded.unwrap()
}

/// Everything that came in went out or was dropped, in all, and for the peer.
fn assert_balanced(report: &CountersReport) {
    let balance = report.total.balance();
    assert_eq!(
        balance.received,
        balance.left + balance.dropped,
        "{balance:?}"
    );
    let offloaded = report.offloaded.as_ref().unwrap();
    let balance = offloaded.balance();
    assert_eq!(
        balance.received,
        balance.left + balance.dropped,
        "{balance:?}"
    );
    let peer = report
        .total
        .peers
        .iter()
        .find(|peer| peer.peer == "n2")
        .unwrap();
    assert_eq!(peer.encap, report.total.encap.forwarded);
    assert_eq!(peer.decap, report.total.decap.forwarded);
}

/// Octets of TCP that are written at once, so that a connection lasts longer than its first packets.
const PIECES: usize = 256 << 10;

/// Super-packets leave by the short way and are cut, with all their outer checksums right: where segments are of one
/// length they have one, and where the last is shorter they have none.
fn assert_cut(lab: &Lab, node: &Node, (ours, theirs): (IpAddr, IpAddr), what: &str) {
    for (piece, octets, has_sums) in [(PIECES, 8 << 20, true), (ODD_PIECES, 2 << 20, false)] {
        let what = format!("{what}, TCP from {ours} in pieces of {piece}");
        let capture = lab.within(1, || {
            let every = Protocol::from(i32::from(3_u16.to_be()));
            Socket::new(Domain::PACKET, Type::DGRAM, Some(every)).unwrap()
        });
        setsockopt(&capture, sockopt::RcvBufForce, &(64 << 20)).unwrap();
        let before = offloaded(node).device;
        transfer(lab, (1, ours), (2, theirs), octets, piece);
        let [out, _] = carried([before, offloaded(node).device]);
        assert!(out.octets > octets as u64 / 2, "{what}: {out:?}");
        let (with, without) = checksums(&capture, &what);
        let (rare, usual) = if has_sums {
            (without, with)
        } else {
            (with, without)
        };
        assert!(
            usual > octets / 1500 / 2,
            "{what}: {with} with, {without} without"
        );
        // What leaves by a worker, as the first packets do, has one.
        assert!(
            has_sums || rare < usual / 4,
            "{what}: {with} with, {without} without"
        );
        let errors = ["nstat", "-asz", "UdpInCsumErrors", "TcpInCsumErrors"];
        let errors = String::from_utf8(lab.exec(2, &errors).stdout).unwrap();
        let counts = errors
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1));
        assert_eq!(counts.collect::<Vec<_>>(), ["0", "0"], "{what}: {errors}");
    }
}

/// Such pieces of TCP are no multiple of any segment that the tests have.
const ODD_PIECES: usize = 10_007;

/// How many long datagrams of node 1's a capture saw with a checksum, which is right, and without.
fn checksums(capture: &Socket, what: &str) -> (usize, usize) {
    // All that was to leave has left.
    capture.set_nonblocking(true).unwrap();
    let (mut with, mut without) = (0, 0);
    let (mut capture, mut room) = (capture, vec![0; 65_536]);
    while let Ok(octets) = capture.read(&mut room) {
        let octets = &room[..octets];
        let Ok((outer, datagram)) = Ipv4Header::from_slice(octets) else {
            continue;
        };
        if outer.source != [192, 0, 2, 1] || octets.len() < 1000 {
            continue;
        }
        assert!(octets.len() <= 1500, "{what}: {} octets", octets.len());
        let (header, payload) = UdpHeader::from_slice(datagram).unwrap();
        if header.checksum == 0 {
            without += 1;
            continue;
        }
        let right = header.calc_checksum_ipv4(&outer, payload).unwrap();
        assert_eq!(header.checksum, right, "{what}");
        with += 1;
    }
    (with, without)
}

/// Sends octets over TCP, which arrive as they were.
fn transfer(
    lab: &Lab,
    (from, source): (u8, IpAddr),
    (to, destination): (u8, IpAddr),
    octets: usize,
    piece: usize,
) {
    let listener = lab.within(to, || TcpListener::bind((destination, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let sent: Vec<u8> = (0..octets)
        .map(|at| (at * 7 / 3).to_le_bytes()[0])
        .collect();
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            received
        });
        let mut stream = lab.within(from, || {
            let domain = Domain::for_address(address);
            let socket = Socket::new(domain, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
            socket
                .connect_timeout(&address.into(), Duration::from_secs(10))
                .unwrap();
            TcpStream::from(socket)
        });
        // Each piece at once, however short its end is.
        stream.set_nodelay(true).unwrap();
        for piece in sent.chunks(piece) {
            stream.write_all(piece).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        drop(stream);
        assert!(receiving.join().unwrap() == sent, "other octets");
    });
}

/// Sends datagrams one by one, and says how many came back.
fn echo(lab: &Lab, ours: IpAddr, theirs: IpAddr, count: usize, octets: usize) -> usize {
    let there = lab.within(2, || UdpSocket::bind((theirs, ECHO)).unwrap());
    let here = lab.within(1, || UdpSocket::bind((ours, SOURCE)).unwrap());
    here.connect((theirs, ECHO)).unwrap();
    for socket in [&here, &there] {
        socket
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
    }
    let mut buffer = vec![0; 65_536];
    let started = Instant::now();
    (0..count)
        .filter(|number| {
            let sent: Vec<u8> = (0..octets)
                .map(|at| (at + number).to_le_bytes()[0])
                .collect();
            here.send(&sent).unwrap();
            let Ok((length, from)) = there.recv_from(&mut buffer) else {
                return false;
            };
            there.send_to(&buffer[..length], from).unwrap();
            // The node's thread makes entries beside the packets.
            if *number < 40 {
                std::thread::sleep(Duration::from_millis(2));
            }
            assert!(started.elapsed() < Duration::from_secs(30), "too slow");
            here.recv(&mut buffer)
                .is_ok_and(|length| buffer[..length] == sent)
        })
        .count()
}

/// The payload of a VXLAN datagram of node 2's.
fn frame(inner: &[u8]) -> Vec<u8> {
    let mut frame = vec![8, 0, 0, 0, 0, 0, 1, 0];
    frame.extend([0x02, 0xf1, 0, 0, 0, 1, 0x02, 0xf1, 0, 0, 0, 2, 8, 0]);
    frame.extend(inner);
    frame
}

/// An IPv4 packet of UDP with all its checksums.
fn inner_udp(source: [u8; 4], destination: [u8; 4], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ipv4(source, destination, 64)
        .udp(ports.0, ports.1)
        .write(&mut packet, payload)
        .unwrap();
    packet
}
