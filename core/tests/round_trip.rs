//! Every encapsulation, both inner families, both underlays: what comes out is what went in, and
//! an outside parser reads what is on the wire.
#![cfg(test)]

mod common;

use common::{FAMILIES, Setup, Udp, host, one_hop_on, receive, send, underlay};
use etherparse::{IpNumber, NetSlice, SlicedPacket, TransportSlice};
use warren_core::encap::EncapsulationKind;
use warren_core::units::Family;
use warren_core::{Direction, DropReason, Verdict};

#[test]
fn every_encapsulation_carries_both_families_over_both_underlays() {
    let mut combinations = 0;
    for setup in Setup::all() {
        for family in FAMILIES {
            let (mut one, mut two) = (setup.engine(1, 2), setup.engine(2, 2));
            for octets in [0, 1, 2, 17, 500, 1232] {
                let packet = Udp::between(family, 1, 2).packet(&vec![0xa5; octets]);
                let wire = send(&mut one, &packet);
                let overhead = setup.encapsulation(2).overhead_octets(setup.underlay);
                assert_eq!(
                    wire.len(),
                    packet.len() + usize::from(overhead),
                    "{setup:?}"
                );
                check_outer(&setup, family, &wire);
                let delivered = receive(&mut two, &wire);
                assert_eq!(
                    delivered,
                    (Verdict::Deliver, one_hop_on(&packet)),
                    "{setup:?} {family}"
                );
            }
            let sent = one.peer_counters()[0];
            let received = two.peer_counters()[0];
            assert_eq!(sent.sent_by(setup.kind).packets, 6);
            assert_eq!(received.received_by(setup.kind).packets, 6);
            assert_eq!(sent.sent(), sent.sent_by(setup.kind));
            combinations += 1;
        }
    }
    assert_eq!(combinations, 6 * 2 * 2);
}

/// Reads the outer headers with etherparse, checksums included.
fn check_outer(setup: &Setup, family: Family, wire: &[u8]) {
    let sliced = SlicedPacket::from_ip(wire).unwrap();
    let (source, destination, protocol) = match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(
                header.header_checksum(),
                header.to_header().calc_header_checksum()
            );
            assert_eq!(
                (header.ttl(), usize::from(header.total_len())),
                (64, wire.len())
            );
            // RFC 4213 section 3.2.1: no DF over IPv6 in IPv4 with a static MTU; RFC 2003: as
            // inside, and the packets of this test have it set.
            let df = !(setup.kind == EncapsulationKind::Ipip && family == Family::V6);
            assert_eq!(header.dont_fragment(), df);
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                header.protocol(),
            )
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            assert_eq!(header.hop_limit(), 64);
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                header.next_header(),
            )
        }
        NetSlice::Arp(_) => panic!("not ARP"),
    };
    assert_eq!(
        (source, destination),
        (underlay(setup.underlay, 1), underlay(setup.underlay, 2))
    );
    if setup.kind == EncapsulationKind::Ipip {
        let expected = match family {
            Family::V4 => IpNumber::IPV4,
            Family::V6 => IpNumber::IPV6,
        };
        assert_eq!(protocol, expected);
        return;
    }
    assert_eq!(protocol, IpNumber::UDP);
    let Some(TransportSlice::Udp(udp)) = sliced.transport else {
        panic!("no UDP in {setup:?}");
    };
    assert!(udp.source_port() >= 49152);
    match setup.underlay {
        // RFC 7348 section 5: zero over IPv4.
        Family::V4 => assert_eq!(udp.checksum(), 0),
        Family::V6 => {
            let NetSlice::Ipv6(ip) = sliced.net.as_ref().unwrap() else {
                panic!("IPv6 underlay");
            };
            let expected = udp
                .to_header()
                .calc_checksum_ipv6(&ip.header().to_header(), udp.payload())
                .unwrap();
            assert_eq!(udp.checksum(), expected);
        }
    }
}

#[test]
fn overhead_and_mtu_are_those_of_the_table() {
    // Overhead over IPv4 and IPv6, MTU of a link with 1500 octets.
    let table = [
        (EncapsulationKind::Ipip, 20, 40),
        (EncapsulationKind::Fou, 28, 48),
        (EncapsulationKind::Gue, 32, 52),
        (EncapsulationKind::Vxlan, 50, 70),
        (EncapsulationKind::Geneve, 50, 70),
        (EncapsulationKind::VxlanGpe, 36, 56),
    ];
    for (kind, over_v4, over_v6) in table {
        for (underlay, overhead) in [(Family::V4, over_v4), (Family::V6, over_v6)] {
            let setup = Setup::new(kind, underlay);
            assert_eq!(setup.mtu().octets(), 1500 - overhead);
            for family in FAMILIES {
                let mut one = setup.engine(1, 2);
                let headers = usize::from(family.header_octets()) + 8;
                let largest = usize::from(setup.mtu().octets()) - headers;
                let flow = Udp::between(family, 1, 2);
                let wire = send(&mut one, &flow.packet(&vec![0; largest]));
                assert_eq!(wire.len(), 1500, "the largest packet fills the link");
                let (verdict, _, _) = common::encap(&mut one, &flow.packet(&vec![0; largest + 1]));
                assert_eq!(verdict, Verdict::Reply(DropReason::TooBig));
            }
        }
    }
}

#[test]
fn every_encapsulation_is_received_at_once() {
    let mut two = Setup::new(EncapsulationKind::Vxlan, Family::V4).engine(2, 2);
    for setup in Setup::all() {
        let mut one = setup.engine(1, 2);
        for family in FAMILIES {
            let wire = send(&mut one, &Udp::between(family, 1, 2).packet(b"hello"));
            assert_eq!(receive(&mut two, &wire).0, Verdict::Deliver, "{setup:?}");
        }
    }
    let counters = two.counters(Direction::Decap);
    assert_eq!((counters.forwarded.packets, counters.dropped()), (24, 0));
    for kind in EncapsulationKind::ALL {
        assert_eq!(two.peer_counters()[0].received_by(kind).packets, 4);
    }
}

#[test]
fn one_flow_keeps_one_port_and_many_flows_use_many() {
    let setup = Setup::new(EncapsulationKind::Vxlan, Family::V4);
    let mut one = setup.engine(1, 2);
    let mut ports = std::collections::BTreeSet::new();
    for port in 0..1000 {
        let flow = Udp {
            ports: (port, 53),
            ..Udp::between(Family::V4, 1, 2)
        };
        let port_of = |wire: Vec<u8>| u16::from_be_bytes([wire[20], wire[21]]);
        let first = port_of(send(&mut one, &flow.packet(b"a")));
        let again = port_of(send(&mut one, &flow.packet(b"another")));
        assert_eq!(first, again);
        ports.insert(first);
    }
    assert!(ports.len() > 900, "{}", ports.len());
}

#[test]
fn a_frame_that_has_a_verdict_is_left_alone() {
    use warren_core::batch::{Batch, Link};
    use warren_core::units::Time;
    let setup = Setup::new(EncapsulationKind::Fou, Family::V4);
    let (mut one, mut two) = (setup.engine(1, 2), setup.engine(2, 2));
    let mut batch = Batch::new(2, 1500);
    batch
        .push(&Udp::between(Family::V4, 1, 2).packet(b"x"), Link::LOCAL)
        .unwrap();
    one.encap(&mut batch, Time::ZERO);
    let sent = *batch.frame(0).unwrap().link;
    one.encap(&mut batch, Time::ZERO);
    two.decap(&mut batch, Time::ZERO);
    assert_eq!(batch.frame(0).unwrap().verdict, Verdict::Transmit);
    assert_eq!(one.counters(Direction::Encap).received.packets, 1);
    assert_eq!(two.counters(Direction::Decap).received.packets, 0);
    assert_eq!(sent.remote, underlay(Family::V4, 2));
    assert_ne!(host(Family::V4, 2, 1), sent.remote);
}
