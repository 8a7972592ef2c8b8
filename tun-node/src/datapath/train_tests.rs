//! Messages against the datagrams that must arrive, over the loopback device.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use etherparse::PacketBuilder;
use warren_core::gso::{Offload, PartialChecksum, SegmentKind};

use super::*;
use crate::udp::{SocketCounters, Udp, UdpConfig};

fn link(remote: SocketAddr, traffic_class: u8) -> Link {
    Link {
        local: IpAddr::V4(Ipv4Addr::LOCALHOST),
        remote: remote.ip(),
        transport: Transport::Udp {
            local_port: 0,
            remote_port: remote.port(),
        },
        traffic_class,
        hop_limit: 64,
        dont_fragment: true,
    }
}

/// Sends the frames of `batch` and gives back what a plain socket received, and how many messages
/// there were.
fn over_loopback(build: impl Fn(SocketAddr) -> Batch, segmentation: bool) -> (Vec<Vec<u8>>, usize) {
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    // The least that any user may ask for holds a few hundred small datagrams.
    socket2::SockRef::from(&receiver)
        .set_recv_buffer_size(212_992)
        .unwrap();
    let batch = build(receiver.local_addr().unwrap());
    let order: Vec<usize> = (0..batch.len()).collect();
    let socket = Udp::bind(&UdpConfig::new("127.0.0.1:0".parse().unwrap())).unwrap();
    let mut trains = Trains::new(segmentation && socket.has_segmentation());
    let mut counters = SocketCounters::default();
    let mut messages = 0;
    let malformed = trains.send(Family::Ipv4, true, &batch, &order, |mut turn| {
        messages += turn.turn.pending();
        socket.send_batch(&mut turn.turn, &mut counters, |index, error| {
            panic!("message {index}: {error}")
        });
    });
    assert_eq!(malformed, 0);
    let mut received = Vec::new();
    let mut octets = [0; 70_000];
    while let Ok(length) = receiver.recv(&mut octets) {
        received.push(octets[..length].to_vec());
    }
    (received, messages)
}

fn super_packet(payload: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..payload).map(|n| (n / 3).to_le_bytes()[0]).collect();
    let mut packet = Vec::new();
    PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
        .tcp(1, 2, 3, 4)
        .ack(5)
        .write(&mut packet, &payload)
        .unwrap();
    packet
}

fn push_super(batch: &mut Batch, packet: &[u8], size: u16, link: Link) {
    let mut frame = batch.push(packet, link).unwrap();
    frame.push(8).unwrap().copy_from_slice(b"ENCAPSUL");
    frame.set_offload(Offload {
        partial_checksum: Some(PartialChecksum {
            start: 20,
            offset: 16,
        }),
        segments: Some((SegmentKind::Tcp, size)),
    });
}

fn segments(packet: &[u8], size: u16) -> Vec<Vec<u8>> {
    let splitter = Splitter::new(packet, SegmentKind::Tcp, size).unwrap();
    (0..splitter.count())
        .map(|n| {
            let mut head = vec![0; splitter.header_octets()];
            splitter.write_header(n, &mut head).unwrap();
            [b"ENCAPSUL", &head[..], &packet[splitter.payload(n)]].concat()
        })
        .collect()
}

#[test]
fn a_super_packet_arrives_as_its_segments() {
    let packet = super_packet(60_000);
    let build = |to| {
        let mut batch = Batch::new(2, 65_535);
        push_super(&mut batch, &packet, 1400, link(to, 0));
        batch
    };
    let (received, messages) = over_loopback(build, true);
    assert_eq!(received, segments(&packet, 1400));
    assert_eq!(messages, 1);
    let (received, messages) = over_loopback(build, false);
    assert_eq!(received, segments(&packet, 1400));
    assert_eq!(messages, 43);
}

#[test]
fn a_super_packet_of_tiny_segments_takes_several_turns_and_loses_none() {
    let packet = super_packet(900);
    let build = |to| {
        let mut batch = Batch::new(4, 65_535);
        batch.push(b"before", link(to, 0)).unwrap();
        push_super(&mut batch, &packet, 3, link(to, 0));
        batch.push(b"behind", link(to, 0)).unwrap();
        batch
    };
    let mut expected = segments(&packet, 3);
    expected.insert(0, b"before".to_vec());
    expected.push(b"behind".to_vec());
    for segmentation in [true, false] {
        let received = over_loopback(build, segmentation).0;
        assert_eq!(received.len(), expected.len());
        assert!(received == expected, "all there, in order");
    }
}

#[test]
fn runs_of_equal_size_share_a_message_and_differences_do_not() {
    let frames: [(&[u8], u8); 8] = [
        (b"aaaa", 0),
        (b"bbbb", 0),
        (b"cc", 0), // a shorter one ends a run
        (b"dd", 0),
        (b"eeee", 0), // a longer one begins one
        (b"ffff", 3),
        (b"gggg", 3), // another traffic class
        (b"", 0),
    ];
    let build = |to| {
        let mut batch = Batch::new(16, 100);
        for (octets, class) in frames {
            batch.push(octets, link(to, class)).unwrap();
        }
        batch
    };
    let expected: Vec<Vec<u8>> = frames.iter().map(|(octets, _)| octets.to_vec()).collect();
    let (received, messages) = over_loopback(build, true);
    assert_eq!((received, messages), (expected.clone(), 5));
    assert_eq!(over_loopback(build, false), (expected, 8));
}

#[test]
fn what_is_no_super_packet_is_counted_and_the_rest_leaves() {
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = receiver.local_addr().unwrap();
    let mut batch = Batch::new(4, 100);
    push_super(&mut batch, &[0x45; 60], 10, link(to, 0));
    batch.push(b"good", link(to, 0)).unwrap();
    let mut sent = Vec::new();
    let malformed = Trains::new(true).send(Family::Ipv4, true, &batch, &[0, 1], |turn| {
        sent.extend_from_slice(turn.carried)
    });
    let good = Carried {
        frames: 1,
        octets: 4,
    };
    assert_eq!((malformed, sent), (1, vec![good]));
}
