//! Tests of the offload, each in a fresh network namespace whose loopback device is the underlay.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

use etherparse::{IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, PacketBuilder};
use warren_core::batch::Batch;
use warren_core::gso::merge::Merge;
use warren_core::gso::{ChecksumState, transport_checksum};
use warren_core::packet::Packet;

use super::*;
use crate::netlink::ipsec::outbound_ipsec_policies;
use crate::raw::{Inner, RawConfig, RawIp};
use crate::testing::{in_netns, ip, tun_is_usable};
use crate::tun::{Tun, TunConfig};
use crate::udp::{Datagram, ReceiveRing, SocketCounters};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const FOUR_PAIRS: [(IpAddr, Inner); 4] = [
    (V4, Inner::Ipv4),
    (V4, Inner::Ipv6),
    (V6, Inner::Ipv4),
    (V6, Inner::Ipv6),
];
const SEGMENT: u16 = 1000;

#[test]
fn a_super_packet_arrives_as_its_segments() {
    // The loopback device cuts no tunnel, so the kernel does before it.
    with_offload(|mut offload, _| {
        for (address, inner) in FOUR_PAIRS {
            let what = format!("{inner:?} over {address}");
            let receiver = RawIp::open(&RawConfig::new(address, inner)).unwrap();
            let packet = super_packet(inner, 40 * usize::from(SEGMENT) + 17);
            let link = Link {
                traffic_class: 0xb9,
                hop_limit: 17,
                ..link(address, inner)
            };
            let outcome = offload.send(&batch(&packet, link).frame(0).unwrap());
            assert!(matches!(outcome, Outcome::Sent), "{what}: {outcome:?}");
            let received = receive(&receiver);
            assert_eq!(received.len(), 41, "{what}");
            for ((datagram, octets), segment) in received.iter().zip(segments(&packet)) {
                assert!(*octets == segment, "{what}: other octets");
                assert_eq!((datagram.tos, datagram.ttl), (0xb9, Some(17)), "{what}");
                assert_eq!(datagram.peer.ip(), address, "{what}");
                let read = Packet::parse(octets).unwrap();
                let state = transport_checksum(octets, &read);
                assert_eq!(state, ChecksumState::Complete, "{what}");
            }
        }
    });
}

#[test]
fn datagrams_in_a_row_arrive_as_they_were() {
    with_offload(|mut offload, _| {
        for inner in [Inner::Ipv4, Inner::Ipv6] {
            let receiver = RawIp::open(&RawConfig::new(V4, inner)).unwrap();
            let mut datagrams: Vec<_> = (0..40).map(|n| datagram(inner, n, 700)).collect();
            datagrams.push(datagram(inner, 40, 3));
            let link = Link {
                traffic_class: 0xb9,
                hop_limit: 17,
                dont_fragment: inner == Inner::Ipv4,
                ..link(V4, inner)
            };
            // Not before the peer says that it takes them.
            let outcome = send_row(&mut offload, &datagrams, link);
            assert!(matches!(outcome, Outcome::Declined), "{outcome:?}");
            offload.rows.are_said(V4, true);
            offload.routes.clear();
            let outcome = send_row(&mut offload, &datagrams, link);
            assert!(matches!(outcome, Outcome::Sent), "{inner:?}: {outcome:?}");
            let received = receive(&receiver);
            assert_eq!(received.len(), datagrams.len(), "{inner:?}");
            for ((received, octets), sent) in received.iter().zip(&datagrams) {
                assert!(octets == sent, "{inner:?}: other octets");
                assert_eq!((received.tos, received.ttl), (0xb9, Some(17)));
            }
            offload.rows.are_said(V4, false);
            offload.routes.clear();
        }
    });
}

#[test]
fn rows_that_are_none_for_the_offload_are_left_to_the_socket() {
    with_offload(|mut offload, _| {
        offload.rows.are_said(V4, true);
        offload.rows.are_said(V6, true);
        let row = |octets: usize| -> Vec<_> {
            (0..2).map(|n| datagram(Inner::Ipv4, n, octets)).collect()
        };
        let usual = link(V4, Inner::Ipv4);
        let may_be_fragmented = Link {
            dont_fragment: false,
            ..usual
        };
        for (what, link, row, is_sent) in [
            ("none of these", usual, row(500), true),
            ("may be fragmented", may_be_fragmented, row(500), false),
            ("outer IPv6", link(V6, Inner::Ipv4), row(500), false),
            // Outer and inner header, and that of UDP.
            ("fits", usual, row(2000 - 48), true),
            ("too long for the route", usual, row(2001 - 48), false),
        ] {
            ip("link set lo mtu 2000");
            offload.routes.clear();
            let outcome = send_row(&mut offload, &row, link);
            assert_eq!(matches!(outcome, Outcome::Sent), is_sent, "{what}");
        }
    });
}

#[test]
fn what_is_none_for_the_offload_is_left_to_the_socket() {
    with_offload(|mut offload, _| {
        let packet = super_packet(Inner::Ipv4, 5000);
        let usual = link(V4, Inner::Ipv4);
        let declines = |offload: &mut RawOffload, batch: &Batch| {
            matches!(offload.send(&batch.frame(0).unwrap()), Outcome::Declined)
        };
        assert!(!declines(&mut offload, &batch(&packet, usual)));
        for (what, link) in [
            (
                "may be fragmented",
                Link {
                    dont_fragment: false,
                    ..usual
                },
            ),
            (
                "another protocol",
                Link {
                    transport: Transport::Ip { protocol: 47 },
                    ..usual
                },
            ),
            (
                "no route",
                Link {
                    remote: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
                    ..usual
                },
            ),
        ] {
            assert!(declines(&mut offload, &batch(&packet, link)), "{what}");
        }
        let mut plain = Batch::new(1, 65_600);
        plain.push(&packet, usual).unwrap();
        assert!(declines(&mut offload, &plain), "no super-packet");
        let mut trailing = packet.clone();
        trailing.push(0);
        assert!(declines(&mut offload, &batch(&trailing, usual)), "trailing");
        let mut reduced = packet.clone();
        reduced[20 + TCP_FLAGS] |= TCP_CWR;
        assert!(declines(&mut offload, &batch(&reduced, usual)), "CWR");
        let single = super_packet(Inner::Ipv4, usize::from(SEGMENT));
        assert!(declines(&mut offload, &batch(&single, usual)), "one");
        let long = super_packet(Inner::Ipv4, 65_535 - 40 - 19);
        assert!(declines(&mut offload, &batch(&long, usual)), "too long");
    });
}

#[test]
fn segments_that_do_not_fit_the_route_are_left_to_the_socket() {
    with_offload(|mut offload, _| {
        // Outer, inner and TCP headers of 20 octets each.
        let fits = u32::from(SEGMENT) + 60;
        for (mtu, is_sent) in [(fits, true), (fits - 1, false)] {
            ip(&format!("link set lo mtu {mtu}"));
            offload.routes.clear();
            let batch = batch(&super_packet(Inner::Ipv4, 5000), link(V4, Inner::Ipv4));
            let outcome = offload.send(&batch.frame(0).unwrap());
            assert_eq!(matches!(outcome, Outcome::Sent), is_sent, "{outcome:?}");
        }
    });
}

#[test]
fn nothing_leaves_behind_an_ipsec_policy() {
    with_offload(|mut offload, _| {
        assert_eq!(outbound_ipsec_policies(), Some(0));
        ip(
            "xfrm policy add src 127.0.0.1 dst 127.0.0.1 proto 4 dir out \
            tmpl proto esp mode transport",
        );
        assert_eq!(outbound_ipsec_policies(), Some(1));
        let batch = batch(&super_packet(Inner::Ipv4, 5000), link(V4, Inner::Ipv4));
        let outcome = offload.send(&batch.frame(0).unwrap());
        assert!(matches!(outcome, Outcome::Declined), "{outcome:?}");
    });
}

#[test]
fn packets_without_the_mark_reach_the_device_and_the_program_ends_with_its_owner() {
    with_offload(|offload, tun| {
        let sender = UdpSocket::bind("10.77.0.1:7").unwrap();
        sender.send_to(b"not ours", "10.77.0.9:7").unwrap();
        assert!(next(&tun).ends_with(b"not ours"));
        let marked = Socket::from(sender);
        let mark = i32::from_ne_bytes(MARK.to_ne_bytes());
        sockopt::set(marked.as_fd(), IntOption::MARK, mark).unwrap();
        let to = "10.77.0.9:7".parse::<std::net::SocketAddr>().unwrap();
        // Too short for what the program looks for: dropped there, or it would come before the next.
        marked.send_to(b"ours", &to.into()).unwrap();
        let other = UdpSocket::bind("10.77.0.1:8").unwrap();
        other.send_to(b"not ours either", "10.77.0.9:7").unwrap();
        assert!(next(&tun).ends_with(b"not ours either"));
        drop(offload);
        let mut last = Vec::new();
        crate::testing::eventually(|| {
            // Another test's fork may hold the program for a moment.
            marked.send_to(b"nobody's", &to.into()).unwrap();
            other.send_to(b"end", "10.77.0.9:7").unwrap();
            last = next(&tun);
            last.ends_with(b"nobody's")
        });
    });
}

#[test]
fn without_the_capabilities_the_error_names_the_step() {
    let outcome = std::thread::spawn(|| {
        if nix::unistd::geteuid().is_root() {
            crate::testing::become_nobody_on_this_thread();
        }
        RawOffload::open("lo", MARK, 1 << 16, Arc::default()).unwrap_err()
    });
    let sentence = outcome.join().unwrap().to_string();
    assert_eq!(
        sentence,
        "segmentation offload for IP-in-IP: AF_PACKET socket"
    );
}

#[test]
fn marks_are_never_zero() {
    for seed in [0, 1, u64::MAX, 1 << 40] {
        assert_ne!(mark(seed), 0);
    }
}

const MARK: u32 = 0xdead_beef;

/// Runs `test` where the kernel has what the offload needs, and asserts that the refusal is one of
/// those that are foreseen where it has not.
fn with_offload(test: fn(RawOffload, Tun)) {
    if !tun_is_usable() {
        return;
    }
    in_netns(move || {
        let name = "wraw0".parse().unwrap();
        let mut config = TunConfig::new(name);
        config.addresses = vec!["10.77.0.1/24".parse().unwrap()];
        let tun = Tun::create(&config).unwrap();
        match RawOffload::open("wraw0", MARK, 1 << 20, Arc::default()) {
            Ok(offload) => test(offload, tun),
            Err(OffloadError { what, source }) => {
                let errno = source.raw_os_error();
                let foreseen = [libc::EPERM, libc::EINVAL, libc::ENOSYS].map(Some);
                assert!(foreseen.contains(&errno), "{what}: {source}");
                eprintln!("the host has no offload for IP-in-IP: {what}: {source}");
            }
        }
    });
}

fn link(address: IpAddr, inner: Inner) -> Link {
    Link {
        local: address,
        remote: address,
        transport: Transport::Ip {
            protocol: inner.protocol(),
        },
        traffic_class: 0,
        hop_limit: 64,
        dont_fragment: true,
    }
}

fn batch(packet: &[u8], link: Link) -> Batch {
    let mut batch = Batch::new(1, 65_600);
    let mut frame = batch.push(packet, link).unwrap();
    let start = if packet[0] >> 4 == 4 { 20 } else { 40 };
    frame.set_offload(Offload {
        partial_checksum: Some(PartialChecksum { start, offset: 16 }),
        segments: Some((SegmentKind::Tcp, SEGMENT)),
    });
    batch
}

/// A TCP packet as the kernel hands it over: its checksum holds the pseudo-header sum.
fn super_packet(inner: Inner, payload_octets: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..payload_octets)
        .map(|n| (n / 3).to_le_bytes()[0])
        .collect();
    let builder = match inner {
        Inner::Ipv4 => PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9),
        Inner::Ipv6 => PacketBuilder::ipv6([1; 16], [2; 16], 9),
    };
    let mut packet = Vec::new();
    let builder = builder.tcp(1, 2, 3, 4).ack(5);
    builder.write(&mut packet, &payload).unwrap();
    let (addresses, start) = match inner {
        Inner::Ipv4 => (12..20, 20),
        Inner::Ipv6 => (8..40, 40),
    };
    let octets = u16::try_from(packet.len() - start).unwrap();
    let sum = warren_core::wire::checksum::Sum::ZERO
        .octets(&packet[addresses])
        .word(6)
        .word(octets);
    packet[start + 16..start + 18].copy_from_slice(&sum.partial().to_be_bytes());
    packet
}

/// A datagram of so many octets, with all its checksums.
fn datagram(inner: Inner, number: u16, payload_octets: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..payload_octets)
        .map(|at| (at + usize::from(number)).to_le_bytes()[0])
        .collect();
    let mut packet = Vec::new();
    match inner {
        Inner::Ipv4 => {
            let addresses = ([10, 0, 0, 1], [10, 0, 0, 2]);
            let ip = Ipv4Header::new(0, 9, IpNumber::UDP, addresses.0, addresses.1);
            let mut ip = ip.unwrap();
            ip.identification = number;
            PacketBuilder::ip(IpHeaders::Ipv4(ip, Ipv4Extensions::default()))
        }
        Inner::Ipv6 => PacketBuilder::ipv6([1; 16], [2; 16], 9),
    }
    .udp(1, 2)
    .write(&mut packet, &payload)
    .unwrap();
    packet
}

/// Sends packets of which one run is made.
fn send_row(offload: &mut RawOffload, packets: &[Vec<u8>], link: Link) -> Outcome {
    let mut batch = Batch::new(packets.len(), 2048);
    let mut merge = Merge::new();
    for packet in packets {
        batch.push(packet, link).unwrap();
        merge.offer(packet);
    }
    let run = merge.finish().unwrap();
    assert_eq!(run.count, packets.len());
    offload.send_row(&run, batch.frames())
}

fn segments(packet: &[u8]) -> Vec<Vec<u8>> {
    let splitter = Splitter::new(packet, SegmentKind::Tcp, SEGMENT).unwrap();
    (0..splitter.count())
        .map(|n| {
            let mut head = vec![0; splitter.header_octets()];
            splitter.write_header(n, &mut head).unwrap();
            [&head[..], &packet[splitter.payload(n)]].concat()
        })
        .collect()
}

/// All that is queued: loopback delivers within the send.
fn receive(socket: &RawIp) -> Vec<(Datagram, Vec<u8>)> {
    let mut packets = Vec::new();
    let mut buffer = vec![0; 65_600];
    let mut ring = ReceiveRing::new(1);
    let mut counters = SocketCounters::default();
    let mut one = |packets: &mut Vec<(Datagram, Vec<u8>)>| {
        let slices = [buffer.as_mut_slice()];
        if socket.recv_batch(&mut ring, slices, &mut counters).unwrap() == 0 {
            return false;
        }
        let datagram = ring.received()[0].clone().unwrap();
        let octets = buffer[datagram.range.clone()].to_vec();
        packets.push((datagram, octets));
        true
    };
    while one(&mut packets) {}
    packets
}

/// The next IPv4 packet of the device, without its virtio header.
fn next(tun: &Tun) -> Vec<u8> {
    let mut packet = vec![0; 65_600];
    let mut found = Vec::new();
    crate::testing::eventually(|| {
        let Ok(octets) = tun.recv(&mut packet) else {
            return false;
        };
        found = packet[tun.vnet_header_octets()..octets].to_vec();
        found.first() == Some(&0x45)
    });
    found
}
