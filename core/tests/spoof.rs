//! What an attacker sends to a node: nothing of it is delivered, and each kind is counted under its
//! own reason.
#![cfg(test)]

mod common;

use std::net::IpAddr;

use common::{FAMILIES, Setup, Udp, VXLAN_PORT, host, mac, receive, rewrite, underlay, vni};
use warren_core::batch::{Batch, Link, Transport};
use warren_core::encap::{EncapsulationKind, outer, shim};
use warren_core::packet::Packet;
use warren_core::policy::Policy;
use warren_core::units::Family;
use warren_core::wire::{EthernetHeader, VxlanHeader, ether_type, ip_protocol};
use warren_core::{Direction, DropReason, Engine, EngineConfig, Verdict};
use zerocopy::IntoBytes;

/// The victim is node 1; node 2 is the peer that lies, node 3 another one.
const NODES: u8 = 3;

#[test]
fn unknown_outer_sources_are_refused() {
    for setup in Setup::all() {
        for family in FAMILIES {
            let inner = honest(family).packet(b"x");
            let stranger = wrap(&setup, underlay(setup.underlay, 99), &inner);
            refused(&setup, &stranger, DropReason::UnknownPeer);
            let own = wrap(&setup, underlay(setup.underlay, 1), &inner);
            refused(&setup, &own, DropReason::UnknownPeer);
        }
    }
}

#[test]
fn an_ipv4_peer_is_not_spelled_as_an_ipv6_address() {
    let setup = Setup::new(EncapsulationKind::Vxlan, Family::V6);
    let wire = wrap(
        &setup,
        "::ffff:192.0.2.2".parse().unwrap(),
        &honest(Family::V4).packet(b"x"),
    );
    refused(&setup, &wire, DropReason::UnknownPeer);
}

#[test]
fn foreign_and_bogus_inner_sources_are_refused_each_under_its_reason() {
    let v4 = [
        ("10.42.3.7", DropReason::SourceNotOwnedByPeer),
        ("8.8.8.8", DropReason::SourceNotOwnedByPeer),
        ("192.0.2.2", DropReason::SourceNotOwnedByPeer),
        ("10.42.1.1", DropReason::SourceIsLocal),
        ("10.42.1.77", DropReason::SourceIsLocal),
        ("192.0.2.1", DropReason::SourceIsLocal),
        ("127.0.0.1", DropReason::SourceLoopback),
        ("127.255.0.1", DropReason::SourceLoopback),
        ("224.0.0.1", DropReason::SourceMulticast),
        ("255.255.255.255", DropReason::SourceMulticast),
        ("0.0.0.0", DropReason::SourceUnspecified),
        ("0.1.2.3", DropReason::SourceReserved),
        ("169.254.1.1", DropReason::LinkLocal),
    ];
    let v6 = [
        ("fd42:0:0:3::7", DropReason::SourceNotOwnedByPeer),
        ("2600::1", DropReason::SourceNotOwnedByPeer),
        ("2001:db8::2", DropReason::SourceNotOwnedByPeer),
        ("fd42:0:0:1::1", DropReason::SourceIsLocal),
        ("fd42:0:0:1::77", DropReason::SourceIsLocal),
        ("2001:db8::1", DropReason::SourceIsLocal),
        ("::1", DropReason::SourceLoopback),
        ("ff02::1", DropReason::SourceMulticast),
        ("::", DropReason::SourceUnspecified),
        ("::ffff:10.42.2.7", DropReason::SourceReserved),
        ("::10.42.2.7", DropReason::SourceReserved),
        ("fe80::1", DropReason::LinkLocal),
    ];
    for setup in Setup::all() {
        for (family, cases) in [(Family::V4, &v4[..]), (Family::V6, &v6[..])] {
            for (source, reason) in cases {
                let packet = Udp {
                    source: source.parse().unwrap(),
                    ..honest(family)
                }
                .packet(b"x");
                refused(&setup, &from_peer(&setup, &packet), *reason);
            }
        }
    }
}

#[test]
fn only_own_destinations_are_reached() {
    let setup = Setup::new(EncapsulationKind::Vxlan, Family::V4);
    for (destination, reason) in [
        ("10.42.3.9", DropReason::DestinationNotLocal),
        ("8.8.8.8", DropReason::DestinationNotLocal),
        ("10.42.2.9", DropReason::TunnelLoop),
        ("224.0.0.251", DropReason::DestinationMulticast),
        ("255.255.255.255", DropReason::DestinationMulticast),
        ("127.0.0.1", DropReason::DestinationInvalid),
        ("0.0.0.0", DropReason::DestinationInvalid),
        ("169.254.169.254", DropReason::LinkLocal),
        ("fd42:0:0:3::9", DropReason::DestinationNotLocal),
        ("ff02::1", DropReason::DestinationMulticast),
        ("::1", DropReason::DestinationInvalid),
        ("::ffff:10.42.1.9", DropReason::DestinationInvalid),
        ("fe80::1", DropReason::LinkLocal),
    ] {
        let destination: IpAddr = destination.parse().unwrap();
        let packet = Udp {
            destination,
            ..honest(Family::of(destination))
        }
        .packet(b"x");
        refused(&setup, &from_peer(&setup, &packet), reason);
    }
}

#[test]
fn nested_vxlan_of_every_depth_is_refused() {
    for family in FAMILIES {
        for setup in Setup::all() {
            let mut packet = honest(family).packet(b"core");
            for depth in 2..=16 {
                let mut payload = vxlan_shim(Family::of(honest(family).source));
                payload.extend_from_slice(&packet);
                packet = Udp {
                    ports: (50000, VXLAN_PORT),
                    ..honest(family)
                }
                .packet(&payload);
                let wire = from_peer(&setup, &packet);
                assert!(wire.len() > depth * 50);
                refused(&setup, &wire, DropReason::NestedTunnel);
            }
        }
    }
}

#[test]
fn nested_tunnels_of_every_kind_are_refused() {
    for carrier in Setup::all() {
        for kind in EncapsulationKind::ALL {
            for family in FAMILIES {
                // The packet in the middle goes between overlay addresses, so that only its
                // content is wrong with it.
                let inside = honest(Family::V4).packet(b"core");
                let nested = Setup::new(kind, family);
                let (source, destination) = (host(family, 2, 7), host(family, 1, 9));
                let middle = wrap_between(&nested, source, destination, &inside);
                let wire = from_peer(&carrier, &middle);
                refused(&carrier, &wire, DropReason::NestedTunnel);
            }
        }
    }
}

#[test]
fn ip_in_ip_to_this_host_is_refused_also_where_the_node_receives_none() {
    for setup in Setup::all().filter(|setup| setup.kind != EncapsulationKind::Ipip) {
        let mut local = common::local(1);
        local.receive.ipip = false;
        let mut writer = setup.writer(1, NODES);
        writer.set_local(local);
        let mut victim = Engine::new(EngineConfig::default(), writer.publish());
        for family in FAMILIES {
            for inside in FAMILIES {
                let nested = Setup::new(EncapsulationKind::Ipip, family);
                let inside = honest(inside).packet(b"core");
                // The address of the device, where a tunnel of the kernel's would be; and one
                // behind it, who may have a tunnel of its own.
                for (to, verdict) in [
                    (1, Verdict::Drop(DropReason::NestedTunnel)),
                    (9, Verdict::Deliver),
                ] {
                    let (source, destination) = (host(family, 2, 7), host(family, 1, to));
                    let middle = wrap_between(&nested, source, destination, &inside);
                    let wire = from_peer(&setup, &middle);
                    assert_eq!(receive(&mut victim, &wire).0, verdict, "{setup:?}");
                }
            }
        }
    }
}

#[test]
fn a_nested_tunnel_does_not_hide_in_fragments() {
    let setup = Setup::new(EncapsulationKind::Fou, Family::V4);
    let mut payload = vxlan_shim(Family::V4);
    payload.extend_from_slice(&honest(Family::V4).packet(&[0; 64]));
    let whole = Udp {
        ports: (50000, VXLAN_PORT),
        ..honest(Family::V4)
    }
    .packet(&payload);
    // The first fragment holds the UDP header alone.
    let first = fragment(&whole, 0, 8, true);
    refused(&setup, &from_peer(&setup, &first), DropReason::NestedTunnel);
    let ipip = rewrite(&first, |v4| v4.protocol = 4.into(), |_| ());
    refused(&setup, &from_peer(&setup, &ipip), DropReason::NestedTunnel);
}

#[test]
fn what_only_looks_like_a_tunnel_is_delivered() {
    let setup = Setup::new(EncapsulationKind::Vxlan, Family::V4);
    let mut victim = setup.engine(1, NODES);
    // To the tunnel's port, but no VXLAN header; and from that port.
    for (ports, payload) in [
        ((4000, VXLAN_PORT), &b"\0hello world, long enough"[..]),
        ((VXLAN_PORT, 4000), &vxlan_shim(Family::V4)),
        ((4000, 4789), &vxlan_shim(Family::V4)),
    ] {
        let packet = Udp {
            ports,
            ..honest(Family::V4)
        }
        .packet(payload);
        let (verdict, _) = receive(&mut victim, &from_peer(&setup, &packet));
        assert_eq!(verdict, Verdict::Deliver, "{ports:?}");
    }
}

#[test]
fn fragments_that_no_sender_makes_are_refused() {
    let setup = Setup::new(EncapsulationKind::Ipip, Family::V4);
    let mut tcp = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 42, 2, 7], [10, 42, 1, 9], 64)
        .tcp(1, 2, 3, 4)
        .write(&mut tcp, &[0; 100])
        .unwrap();
    let udp = honest(Family::V4).packet(&[0; 100]);
    for (label, packet, good) in [
        ("first", fragment(&tcp, 0, 24, true), true),
        ("later", fragment(&tcp, 24, 24, true), true),
        ("last", fragment(&tcp, 96, 7, false), true),
        ("UDP header alone", fragment(&udp, 0, 8, true), true),
        (
            "RFC 1858 tiny: ports alone",
            fragment(&tcp, 0, 8, true),
            false,
        ),
        ("no flags", fragment(&tcp, 0, 16, true), false),
        ("RFC 1858 overlapping", fragment(&tcp, 8, 24, true), false),
        ("over the flags", fragment(&tcp, 16, 24, false), false),
        (
            "odd length in the middle",
            fragment(&udp, 24, 13, true),
            false,
        ),
        ("odd first", fragment(&udp, 0, 21, true), false),
        ("empty", fragment(&udp, 24, 0, false), false),
        (
            "behind the longest datagram",
            fragment(&udp, 65_512, 8, false),
            false,
        ),
    ] {
        let wire = from_peer(&setup, &packet);
        if good {
            let mut victim = setup.engine(1, NODES);
            assert_eq!(
                receive(&mut victim, &wire),
                (Verdict::Deliver, packet),
                "{label}"
            );
        } else {
            refused(&setup, &wire, DropReason::MalformedPacket);
        }
    }
}

#[test]
fn source_routes_are_refused() {
    let setup = Setup::new(EncapsulationKind::Gue, Family::V6);
    for option in [131_u8, 137] {
        let packet = rewrite(
            &honest(Family::V4).packet(b"x"),
            |v4| {
                v4.options = [option, 7, 4, 127, 0, 0, 1, 0].into();
                v4.set_payload_len(9).unwrap();
            },
            |_| (),
        );
        refused(
            &setup,
            &from_peer(&setup, &packet),
            DropReason::SourceRouted,
        );
    }
    for kind in [0_u8, 3, 4] {
        let plain = honest(Family::V6).packet(b"x");
        let mut packet = rewrite(
            &plain,
            |_| (),
            |v6| {
                v6.next_header = ip_protocol::ROUTING.into();
                v6.payload_length += 24;
            },
        );
        let mut routing = vec![ip_protocol::UDP, 2, kind, 1, 0, 0, 0, 0];
        routing.extend([0xfd; 16]);
        packet.splice(40..40, routing);
        refused(
            &setup,
            &from_peer(&setup, &packet),
            DropReason::SourceRouted,
        );
        // Without segments left the packet is where it should be. RFC 5095 section 3.
        packet[43] = 0;
        let mut victim = setup.engine(1, NODES);
        let (verdict, _) = receive(&mut victim, &from_peer(&setup, &packet));
        assert_eq!(verdict, Verdict::Deliver);
    }
}

#[test]
fn inner_ethernet_is_checked() {
    let setup = Setup::new(EncapsulationKind::Vxlan, Family::V4);
    let ip = honest(Family::V4).packet(b"x");
    let broadcast = warren_core::units::MacAddr::BROADCAST;
    let (own, peer, other) = (mac(1), mac(2), mac(9));
    for (destination, source, kind, expected) in [
        (own, peer, ether_type::IPV4, None),
        (broadcast, peer, ether_type::IPV4, None),
        (own, other, ether_type::IPV4, None),
        (
            other,
            peer,
            ether_type::IPV4,
            Some(DropReason::WrongVtepMac),
        ),
        (own, own, ether_type::IPV4, Some(DropReason::OwnVtepMac)),
        (own, peer, ether_type::VLAN, Some(DropReason::VlanTagged)),
        (
            own,
            peer,
            ether_type::SERVICE_VLAN,
            Some(DropReason::VlanTagged),
        ),
        (broadcast, peer, ether_type::ARP, Some(DropReason::NotIp)),
        (own, peer, 0x88cc, Some(DropReason::NotIp)),
        (
            own,
            peer,
            ether_type::IPV6,
            Some(DropReason::MalformedPacket),
        ),
    ] {
        let mut payload = VxlanHeader::new(vni()).as_bytes().to_vec();
        payload.extend(EthernetHeader::new(destination, source, kind).as_bytes());
        payload.extend_from_slice(&ip);
        // Short Ethernet frames are padded.
        payload.resize(payload.len() + 17, 0xee);
        let (verdict, octets) = decap(&mut setup.engine(1, NODES), VXLAN_PORT, &payload);
        match expected {
            None => assert_eq!((verdict, octets), (Verdict::Deliver, ip.clone())),
            Some(reason) => assert_eq!(verdict, Verdict::Drop(reason)),
        }
    }
    let mut payload = VxlanHeader::new(warren_core::units::Vni::new(2).unwrap())
        .as_bytes()
        .to_vec();
    payload.extend(EthernetHeader::new(own, peer, ether_type::IPV4).as_bytes());
    payload.extend_from_slice(&ip);
    let (verdict, _) = decap(&mut setup.engine(1, NODES), VXLAN_PORT, &payload);
    assert_eq!(verdict, Verdict::Drop(DropReason::UnknownVni));
    let (verdict, _) = decap(&mut setup.engine(1, NODES), 4789, &payload);
    assert_eq!(verdict, Verdict::Drop(DropReason::EncapsulationNotEnabled));
}

#[test]
fn no_truncation_is_delivered() {
    for setup in Setup::all() {
        for family in FAMILIES {
            let wire = from_peer(&setup, &honest(family).packet(b"payload"));
            let mut victim = setup.engine(1, NODES);
            let mut batch = Batch::new(1, 2000);
            batch.push(&wire, Link::LOCAL).unwrap();
            let mut frame = batch.frame_mut(0).unwrap();
            outer::pull(&mut frame).unwrap();
            let (link, payload) = (*frame.link(), frame.bytes().to_vec());
            for octets in 0..payload.len() {
                batch.clear();
                batch.push(&payload[..octets], link).unwrap();
                victim.decap(&mut batch, warren_core::units::Time::ZERO);
                let verdict = batch.frame(0).unwrap().verdict;
                assert!(
                    matches!(
                        verdict,
                        Verdict::Drop(
                            DropReason::MalformedPacket | DropReason::MalformedEncapsulation
                        )
                    ),
                    "{setup:?} {octets}: {verdict:?}"
                );
                // And no truncated outer packet is taken off.
                batch.clear();
                let mut frame = batch.push(&wire[..octets], Link::LOCAL).unwrap();
                assert!(outer::pull(&mut frame).is_err());
                assert_eq!(frame.bytes(), &wire[..octets], "an error changes nothing");
            }
        }
    }
}

#[test]
fn wrong_inner_checksums_and_a_ttl_of_zero_are_refused() {
    let setup = Setup::new(EncapsulationKind::Geneve, Family::V6);
    let mut wrong = honest(Family::V4).packet(b"x");
    wrong[10] ^= 0x55;
    refused(
        &setup,
        &from_peer(&setup, &wrong),
        DropReason::BadHeaderChecksum,
    );
    for family in FAMILIES {
        let expired = Udp {
            ttl: 0,
            ..honest(family)
        }
        .packet(b"x");
        refused(&setup, &from_peer(&setup, &expired), DropReason::TtlExpired);
    }
}

/// From node 2, which owns the source, to node 1, which has the destination.
fn honest(family: Family) -> Udp {
    Udp::between(family, 2, 1)
}

/// Asserts that node 1 drops `wire` for `reason`, and counts it so.
fn refused(setup: &Setup, wire: &[u8], reason: DropReason) {
    let mut victim = setup.engine(1, NODES);
    let (verdict, octets) = receive(&mut victim, wire);
    let packet = Packet::parse(&octets);
    assert_eq!(verdict, Verdict::Drop(reason), "{setup:?} {packet:?}");
    let counters = victim.counters(Direction::Decap);
    assert_eq!((counters.drops(reason), counters.dropped()), (1, 1));
    assert_eq!(counters.forwarded.packets, 0);
    let refused: u64 = victim.peer_counters().iter().map(|peer| peer.refused).sum();
    assert_eq!(refused, u64::from(reason != DropReason::UnknownPeer));
}

fn from_peer(setup: &Setup, inner: &[u8]) -> Vec<u8> {
    wrap(setup, underlay(setup.underlay, 2), inner)
}

fn wrap(setup: &Setup, outer_source: IpAddr, inner: &[u8]) -> Vec<u8> {
    wrap_between(setup, outer_source, underlay(setup.underlay, 1), inner)
}

/// Wraps whatever `inner` is as node 2 would for node 1.
fn wrap_between(setup: &Setup, source: IpAddr, destination: IpAddr, inner: &[u8]) -> Vec<u8> {
    let mut batch = Batch::new(1, 4000);
    let mut frame = batch.push(inner, Link::LOCAL).unwrap();
    let v6 = inner.first().is_some_and(|octet| octet >> 4 == 6);
    let family = if v6 { Family::V6 } else { Family::V4 };
    let flow = Packet::parse(&honest(family).packet(b"")).unwrap().flow;
    let permit = Policy::AllowAll.decide(Direction::Encap, &flow).unwrap();
    shim::push(&mut frame, family, setup.encapsulation(1), mac(2), permit).unwrap();
    let remote_port = match setup.kind {
        EncapsulationKind::Vxlan => VXLAN_PORT,
        EncapsulationKind::Geneve => common::GENEVE_PORT,
        EncapsulationKind::Fou => common::FOU_PORT,
        EncapsulationKind::Gue => common::GUE_PORT,
        EncapsulationKind::Ipip => 0,
        EncapsulationKind::VxlanGpe => common::VXLAN_GPE_PORT,
    };
    let transport = match (setup.kind, family) {
        (EncapsulationKind::Ipip, Family::V4) => Transport::Ip { protocol: 4 },
        (EncapsulationKind::Ipip, Family::V6) => Transport::Ip { protocol: 41 },
        _ => Transport::Udp {
            local_port: 50000,
            remote_port,
        },
    };
    frame.set_link(Link {
        local: source,
        remote: destination,
        transport,
        traffic_class: 0,
        hop_limit: 64,
        dont_fragment: true,
    });
    outer::push(&mut frame).unwrap();
    frame.bytes().to_vec()
}

fn vxlan_shim(family: Family) -> Vec<u8> {
    let kind = match family {
        Family::V4 => ether_type::IPV4,
        Family::V6 => ether_type::IPV6,
    };
    let mut shim = VxlanHeader::new(vni()).as_bytes().to_vec();
    shim.extend(EthernetHeader::new(mac(1), mac(2), kind).as_bytes());
    shim
}

fn decap(engine: &mut Engine, port: u16, payload: &[u8]) -> (Verdict, Vec<u8>) {
    let link = Link {
        local: underlay(Family::V4, 1),
        remote: underlay(Family::V4, 2),
        transport: Transport::Udp {
            local_port: port,
            remote_port: 50000,
        },
        ..Link::LOCAL
    };
    let mut batch = Batch::new(1, 2000);
    batch.push(payload, link).unwrap();
    engine.decap(&mut batch, warren_core::units::Time::ZERO);
    let frame = batch.frame(0).unwrap();
    (frame.verdict, frame.bytes.to_vec())
}

/// A fragment of an IPv4 packet: `octets` of its payload, said to lie at `offset`.
fn fragment(packet: &[u8], offset: u16, octets: usize, more: bool) -> Vec<u8> {
    let start = 20 + usize::from(offset).min(packet.len() - 20 - octets);
    let mut part = packet[..20].to_vec();
    part.extend_from_slice(&packet[start..start + octets]);
    rewrite(
        &part,
        |v4| {
            v4.dont_fragment = false;
            v4.more_fragments = more;
            v4.fragment_offset = (offset / 8).try_into().unwrap();
            v4.total_len = 20 + u16::try_from(octets).unwrap();
        },
        |_| (),
    )
}
