//! Tests of the raw sockets, over loopback in fresh network namespaces, where the
//! test has `CAP_NET_RAW`.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;

use super::*;
use crate::sys::process::{Capability, has_capability};
use crate::testing::{in_netns, ip};
use crate::udp::{Datagram, SendControl, Transmit};

const FOUR_PAIRS: [(IpAddr, Inner); 4] = [
    (IpAddr::V4(Ipv4Addr::LOCALHOST), Inner::Ipv4),
    (IpAddr::V4(Ipv4Addr::LOCALHOST), Inner::Ipv6),
    (IpAddr::V6(Ipv6Addr::LOCALHOST), Inner::Ipv4),
    (IpAddr::V6(Ipv6Addr::LOCALHOST), Inner::Ipv6),
];

#[test]
fn inner_packets_cross_in_all_four_family_pairs() {
    in_raw_netns(|| {
        for (address, inner) in FOUR_PAIRS {
            let socket = RawIp::open(&RawConfig::new(address, inner)).unwrap();
            let packet = inner_packet(inner, 100);
            send(&socket, address, &packet, Some(0xb9), Some(17));
            let (datagram, octets) = take(&socket);
            let datagram = datagram.unwrap();
            assert_eq!(octets, packet, "{address} {inner:?}");
            assert_eq!(datagram.peer, SocketAddr::new(address, 0));
            assert_eq!(datagram.local, Some(address));
            assert_eq!((datagram.tos, datagram.ttl), (0xb9, Some(17)));
        }
    });
}

#[test]
fn the_outer_header_is_what_was_asked_for() {
    in_raw_netns(|| {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        for (path_mtu, df) in [(PathMtu::Probe, true), (PathMtu::Fragment, false)] {
            let mut config = RawConfig::new(address, Inner::Ipv4);
            config.path_mtu = path_mtu;
            let socket = RawIp::open(&config).unwrap();
            // A plain raw socket shows the header as it came.
            let witness = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(4))).unwrap();
            let packet = inner_packet(Inner::Ipv4, 40);
            send(&socket, address, &packet, Some(0x03), Some(63));
            let mut seen = vec![0; 2000];
            let length = sys::io::read(witness.as_fd(), &mut seen).unwrap();
            let (header, rest) = etherparse::Ipv4Header::from_slice(&seen[..length]).unwrap();
            assert_eq!(rest, packet);
            assert_eq!(header.dont_fragment, df);
            assert_eq!((header.time_to_live, header.ecn.value()), (63, 3));
            assert_eq!(header.protocol.0, 4);
        }
    });
}

#[test]
fn outer_options_are_stripped() {
    in_raw_netns(|| {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let socket = RawIp::open(&RawConfig::new(address, Inner::Ipv4)).unwrap();
        let sender = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
        sender.set_header_included_v4(true).unwrap();
        let packet = inner_packet(Inner::Ipv4, 40);
        // NOP, NOP, NOP, end of options.
        let options: etherparse::Ipv4Options = [1, 1, 1, 0].into();
        let mut header = etherparse::Ipv4Header {
            time_to_live: 9,
            protocol: 4.into(),
            source: [127, 0, 0, 1],
            destination: [127, 0, 0, 1],
            options,
            ..Default::default()
        };
        header.set_payload_len(packet.len()).unwrap();
        let mut octets = header.to_bytes().to_vec();
        octets.extend_from_slice(&packet);
        let to = SockAddr::from(SocketAddr::new(address, 0));
        sender.send_to(&octets, &to).unwrap();
        let (datagram, inner) = take(&socket);
        assert_eq!(inner, packet);
        assert_eq!(datagram.unwrap().range.start, 4);
    });
}

#[test]
fn sockets_of_the_two_protocols_do_not_mix() {
    in_raw_netns(|| {
        let address = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let four = RawIp::open(&RawConfig::new(address, Inner::Ipv4)).unwrap();
        let six = RawIp::open(&RawConfig::new(address, Inner::Ipv6)).unwrap();
        send(&four, address, &inner_packet(Inner::Ipv4, 10), None, None);
        assert_eq!(receive(&six), None);
        assert!(receive(&four).is_some());
    });
}

#[test]
fn too_big_for_the_device_is_refused_with_df() {
    in_raw_netns(|| {
        ip("link set lo mtu 1500");
        for (address, inner) in FOUR_PAIRS {
            let socket = RawIp::open(&RawConfig::new(address, inner)).unwrap();
            let packet = inner_packet(inner, 1600);
            let mut ring = SendRing::new(1, 1);
            let mut turn = socket.turn(&mut ring);
            turn.push(&to(address, None, None), [packet.as_slice()])
                .unwrap();
            let mut counters = SocketCounters::default();
            socket.send_batch(&mut turn, &mut counters, |_, _| ());
            assert_eq!(
                (counters.sent, counters.too_big),
                (0, 1),
                "{address} {inner:?}"
            );
        }
    });
}

#[test]
fn without_the_capability_the_error_names_it_and_the_way_out() {
    let outcome = std::thread::spawn(|| {
        if nix::unistd::geteuid().is_root() {
            // The system call acts on the calling thread alone.
            crate::testing::become_nobody_on_this_thread();
        }
        assert!(!has_capability(Capability::NetRaw));
        RawIp::open(&RawConfig::new(Ipv4Addr::LOCALHOST.into(), Inner::Ipv6)).unwrap_err()
    })
    .join()
    .unwrap();
    assert!(matches!(outcome, RawError::NotPermitted { protocol: 41 }));
    let sentence = outcome.to_string();
    assert!(
        sentence.contains("CAP_NET_RAW") && sentence.contains("`fou`"),
        "{sentence}"
    );
}

fn in_raw_netns(test: impl FnOnce() + Send + 'static) {
    if has_capability(Capability::NetRaw) {
        in_netns(test);
    } else {
        eprintln!("skipped: raw sockets need CAP_NET_RAW");
    }
}

fn inner_packet(inner: Inner, payload_octets: usize) -> Vec<u8> {
    let builder = match inner {
        Inner::Ipv4 => PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
        Inner::Ipv6 => PacketBuilder::ipv6([1; 16], [2; 16], 64),
    };
    let mut packet = Vec::new();
    builder
        .udp(1, 2)
        .write(&mut packet, &vec![0x5a; payload_octets])
        .unwrap();
    packet
}

fn to(address: IpAddr, tos: Option<u8>, ttl: Option<u8>) -> Transmit {
    Transmit {
        peer: Some(SocketAddr::new(address, 0)),
        control: SendControl {
            tos,
            ttl,
            ..SendControl::default()
        },
    }
}

fn send(socket: &RawIp, address: IpAddr, packet: &[u8], tos: Option<u8>, ttl: Option<u8>) {
    let mut ring = SendRing::new(1, 2);
    let mut turn = socket.turn(&mut ring);
    let (front, back) = packet.split_at(13);
    turn.push(&to(address, tos, ttl), [front, back]).unwrap();
    let mut counters = SocketCounters::default();
    socket.send_batch(&mut turn, &mut counters, |_, error| panic!("{error}"));
    assert_eq!(counters.sent, 1);
}

/// One packet, if one is queued: loopback delivers within the send.
fn receive(socket: &RawIp) -> Option<(Result<Datagram, Damage>, Vec<u8>)> {
    let mut buffer = vec![0; 65536];
    let mut ring = ReceiveRing::new(1);
    let mut counters = SocketCounters::default();
    let slices = [buffer.as_mut_slice()];
    let received = socket.recv_batch(&mut ring, slices, &mut counters).unwrap();
    let outcome = ring.received().first().cloned()?;
    assert_eq!(received, 1);
    let octets = outcome
        .as_ref()
        .map_or(Vec::new(), |d| buffer[d.range.clone()].to_vec());
    Some((outcome, octets))
}

fn take(socket: &RawIp) -> (Result<Datagram, Damage>, Vec<u8>) {
    receive(socket).expect("the packet is queued once the send returns")
}
