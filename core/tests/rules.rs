//! What the tunnels' own RFCs ask of the two ends, over the octets of the wire: TTL and hop limit,
//! the fields of the outer header, what is refused and what is answered. One test for each rule,
//! with its section; the tables of ECN are in `ecn.rs`, those of sizes in `fit.rs`, the relay of
//! ICMP errors beside the code that reads them.
#![cfg(test)]

mod common;

use common::{FAMILIES, Setup, Udp, encap, one_hop_on, receive, rewrite, send, underlay};
use warren_core::batch::Link;
use warren_core::encap::{EncapsulationKind, outer};
use warren_core::tables::EcnMode;
use warren_core::units::{Family, Mtu, Time};
use warren_core::{Batch, Direction, DropReason, Engine, EngineConfig, NextHop, Verdict};

/// IP in IP over `underlay`.
fn ipip(underlay: Family) -> Setup {
    Setup::new(EncapsulationKind::Ipip, underlay)
}

fn ttl_of(packet: &[u8]) -> u8 {
    match packet[0] >> 4 {
        4 => packet[8],
        _ => packet[7],
    }
}

fn with_ttl(packet: &[u8], ttl: u8) -> Vec<u8> {
    rewrite(packet, |v4| v4.time_to_live = ttl, |v6| v6.hop_limit = ttl)
}

#[test]
fn ttl_rules_for_every_encapsulation() {
    for setup in Setup::all() {
        for family in FAMILIES {
            let label = format!("{setup:?} {family}");
            let packet = |ttl| {
                Udp {
                    ttl,
                    ..Udp::between(family, 1, 2)
                }
                .packet(b"a hop")
            };
            for ttl in [2, 3, 64, 128, 255] {
                let (mut one, mut two) = (setup.engine(1, 2), setup.engine(2, 2));
                let wire = send(&mut one, &packet(ttl));
                // RFC 2003 section 3.1, RFC 2473 section 6.3, RFC 4213 section 3.3: the outer one is
                // the tunnel's own, whatever is inside.
                assert_eq!(ttl_of(&wire), 64, "{label}");
                // The tunnel is one hop: one less at its entry, as forwarding does, and no further
                // one at its exit, however many routers were on the way.
                for on_the_way in [64, 40, 1] {
                    let (verdict, delivered) = receive(&mut two, &with_ttl(&wire, on_the_way));
                    assert_eq!(verdict, Verdict::Deliver, "{label}");
                    assert_eq!(delivered, one_hop_on(&packet(ttl)), "{label}");
                }
            }
            // RFC 1812 section 5.3.1, RFC 2003 section 3.1: what has no hop left does not enter;
            // its sender is told.
            for ttl in [0, 1] {
                let (verdict, _, message) = encap(&mut setup.engine(1, 2), &packet(ttl));
                assert_eq!(verdict, Verdict::Reply(DropReason::TtlExpired), "{label}");
                let icmp = usize::from(family.header_octets());
                let told = if family == Family::V4 {
                    [11, 0]
                } else {
                    [3, 0]
                };
                assert_eq!(message[icmp..icmp + 2], told, "{label}");
            }
            // RFC 2003 section 3.1: a zero that comes out of a tunnel is discarded, silently.
            let wire = send(&mut setup.engine(1, 2), &packet(2));
            let at = wire.len() - packet(2).len();
            let expired = [&wire[..at], &with_ttl(&packet(2), 0)].concat();
            let (verdict, _) = receive_changed(&setup, &expired);
            assert_eq!(verdict, Verdict::Drop(DropReason::TtlExpired), "{label}");
            // A one is delivered: this host is its destination, or decides.
            let last = [&wire[..at], &with_ttl(&packet(2), 1)].concat();
            let (verdict, delivered) = receive_changed(&setup, &last);
            assert_eq!(
                (verdict, ttl_of(&delivered)),
                (Verdict::Deliver, 1),
                "{label}"
            );
        }
    }
}

/// What node 2 does with a changed outer packet: one over IPv6 has its UDP checksum made anew.
fn receive_changed(setup: &Setup, wire: &[u8]) -> (Verdict, Vec<u8>) {
    let mut wire = wire.to_vec();
    if wire[0] >> 4 == 6 && wire[6] == 17 {
        let payload = wire.split_off(48);
        let ip = etherparse::Ipv6Header::from_slice(&wire).unwrap().0;
        let udp = etherparse::UdpHeader::from_slice(&wire[40..]).unwrap().0;
        let sum = udp.calc_checksum_ipv6(&ip, &payload).unwrap();
        wire[46..48].copy_from_slice(&sum.to_be_bytes());
        wire.extend(payload);
    }
    receive(&mut setup.engine(2, 2), &wire)
}

#[test]
fn rfc_2003_section_3_1_the_fields_of_the_outer_header() {
    let setup = ipip(Family::V4);
    let inner = rewrite(
        &Udp::between(Family::V4, 1, 2).packet(&[1; 100]),
        |v4| {
            v4.identification = 0x1234;
            v4.dscp = 46.try_into().unwrap();
        },
        |_| (),
    );
    let wire = send(&mut setup.engine(1, 2), &inner);
    let (header, rest) = etherparse::Ipv4Header::from_slice(&wire).unwrap();
    assert_eq!(header.ihl(), 5, "no option is copied or made up");
    assert_eq!(usize::from(header.total_len), 20 + inner.len());
    assert_eq!(header.protocol, etherparse::IpNumber::IPV4);
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    assert_eq!(
        underlay(Family::V4, 1),
        std::net::IpAddr::from(header.source)
    );
    assert_eq!(
        underlay(Family::V4, 2),
        std::net::IpAddr::from(header.destination)
    );
    // Nothing of the inner header changes but the TTL.
    assert_eq!(rest, one_hop_on(&inner));
}

#[test]
fn rfc_2003_section_3_1_df_inside_means_df_outside() {
    for df in [false, true] {
        let inner = rewrite(
            &Udp::between(Family::V4, 1, 2).packet(b"x"),
            |v4| v4.dont_fragment = df,
            |_| (),
        );
        let wire = send(&mut ipip(Family::V4).engine(1, 2), &inner);
        let (header, _) = etherparse::Ipv4Header::from_slice(&wire).unwrap();
        assert_eq!(header.dont_fragment, df);
    }
}

#[test]
fn rfc_2003_section_3_nothing_from_or_to_the_tunnels_own_ends_enters_it() {
    for setup in Setup::all() {
        for (source, destination) in [
            (
                common::host(setup.underlay, 1, 7),
                underlay(setup.underlay, 2),
            ),
            (
                underlay(setup.underlay, 2),
                common::host(setup.underlay, 2, 9),
            ),
            (
                underlay(setup.underlay, 1),
                common::host(setup.underlay, 2, 9),
            ),
        ] {
            let packet = Udp {
                source,
                destination,
                ..Udp::between(setup.underlay, 1, 2)
            }
            .packet(b"round");
            let mut engine = setup.engine(1, 2);
            let (verdict, ..) = encap(&mut engine, &packet);
            assert!(
                matches!(
                    verdict,
                    Verdict::Drop(DropReason::TunnelLoop | DropReason::SourceNotLocal)
                ),
                "{setup:?} {source} {destination}: {verdict:?}"
            );
            assert_eq!(engine.counters(Direction::Encap).forwarded.packets, 0);
        }
    }
}

/// An engine of node 1 whose tunnel to node 2 carries `mtu` octets.
fn engine_with_mtu(setup: &Setup, mtu: u16) -> Engine {
    let mut writer = setup.writer(1, 2);
    let tables = writer.publish();
    let peer = tables
        .peer_by_underlay(underlay(setup.underlay, 2))
        .unwrap();
    let mut tunnel = setup.tunnel(1, 2, peer);
    tunnel.mtu = Mtu::new(mtu);
    let hop = writer.next_hop(NextHop::Tunnel(tunnel)).unwrap();
    for prefix in ["10.42.2.0/24", "fd42:0:0:2::/64"] {
        writer.insert(prefix.parse().unwrap(), hop).unwrap();
    }
    Engine::new(EngineConfig::default(), writer.publish())
}

/// An inner packet of so many octets.
fn sized(family: Family, octets: usize) -> Vec<u8> {
    let headers = usize::from(family.header_octets()) + 8;
    Udp::between(family, 1, 2).packet(&vec![7; octets - headers])
}

#[test]
fn rfc_4213_section_3_2_and_rfc_2473_section_7_1_ipv6_of_1280_octets_always_enters() {
    // A path that carries less than IPv6 asks for: the outer packet may be fragmented, and its
    // sender is not told of a size that it could not use.
    for setup in Setup::all() {
        let mut engine = engine_with_mtu(&setup, 1000);
        let (verdict, link, _) = encap(&mut engine, &sized(Family::V6, 1280));
        assert_eq!(verdict, Verdict::Transmit, "{setup:?}");
        assert!(!link.dont_fragment, "{setup:?}");
        let (verdict, _, message) = encap(&mut engine, &sized(Family::V6, 1281));
        assert_eq!(verdict, Verdict::Reply(DropReason::TooBig), "{setup:?}");
        assert_eq!(message[40..42], [2, 0]);
        assert_eq!(message[44..48], 1280_u32.to_be_bytes(), "{setup:?}");
        // What fits is sent as always.
        let (verdict, link, _) = encap(&mut engine, &sized(Family::V6, 1000));
        assert_eq!(verdict, Verdict::Transmit);
        let is_6in4 = setup.kind == EncapsulationKind::Ipip && setup.underlay == Family::V4;
        assert_eq!(link.dont_fragment, !is_6in4, "{setup:?}");
    }
}

#[test]
fn rfc_2473_section_7_2_ipv4_with_df_is_answered_with_what_fits() {
    for setup in Setup::all() {
        let mut engine = engine_with_mtu(&setup, 1000);
        let packet = rewrite(
            &sized(Family::V4, 1001),
            |v4| v4.dont_fragment = true,
            |_| (),
        );
        let (verdict, _, message) = encap(&mut engine, &packet);
        assert_eq!(verdict, Verdict::Reply(DropReason::TooBig), "{setup:?}");
        assert_eq!(message[20..22], [3, 4]);
        assert_eq!(message[26..28], 1000_u16.to_be_bytes(), "{setup:?}");
    }
}

#[test]
fn rfc_4213_section_3_6_sources_that_no_packet_out_of_a_tunnel_has() {
    for underlay in FAMILIES {
        let setup = ipip(underlay);
        for (source, reason) in [
            ("ff02::1", DropReason::SourceMulticast),
            ("::1", DropReason::SourceLoopback),
            ("::192.0.2.9", DropReason::SourceReserved),
            ("::ffff:192.0.2.9", DropReason::SourceReserved),
            ("::", DropReason::SourceUnspecified),
            ("fe80::2", DropReason::LinkLocal),
            // Well formed, and nobody's behind that end.
            ("2001:db8:ffff::1", DropReason::SourceNotOwnedByPeer),
        ] {
            let wire = send(
                &mut setup.engine(1, 2),
                &Udp::between(Family::V6, 1, 2).packet(b"who"),
            );
            let source: core::net::Ipv6Addr = source.parse().unwrap();
            // 40 of IPv6, 8 of UDP, 3 of data.
            let at = wire.len() - 51;
            let mut spoofed = wire;
            spoofed[at + 8..at + 24].copy_from_slice(&source.octets());
            let mut two = setup.engine(2, 2);
            let (verdict, _) = receive(&mut two, &spoofed);
            assert_eq!(verdict, Verdict::Drop(reason), "{source}");
        }
    }
}

#[test]
fn rfc_4213_section_3_6_an_inner_packet_longer_than_the_outer_one_is_refused() {
    for underlay in FAMILIES {
        for family in FAMILIES {
            let setup = ipip(underlay);
            let mut wire = send(
                &mut setup.engine(1, 2),
                &Udp::between(family, 1, 2).packet(&[1; 64]),
            );
            // The outer header says less than the inner one.
            wire.truncate(wire.len() - 8);
            let short = u16::try_from(wire.len()).unwrap();
            let wire = rewrite(
                &wire,
                |v4| v4.total_len = short,
                |v6| v6.payload_length = short - 40,
            );
            let (verdict, _) = receive(&mut setup.engine(2, 2), &wire);
            assert_eq!(verdict, Verdict::Drop(DropReason::MalformedPacket));
        }
    }
}

#[test]
fn rfc_2473_section_4_1_1_an_encapsulation_limit_in_the_outer_packet_is_skipped() {
    // Linux's ip6tnl writes one unless told otherwise: destination options in front of the inner
    // packet.
    for family in FAMILIES {
        let setup = ipip(Family::V6);
        let inner = Udp::between(family, 1, 2).packet(b"limited");
        let wire = send(&mut setup.engine(1, 2), &inner);
        let mut limited = wire[..40].to_vec();
        let protocol = limited[6];
        limited[6] = 60;
        // Next header, no further 8 octets; limit of 4; padding.
        limited.extend([protocol, 0, 4, 1, 4, 1, 1, 0]);
        limited.extend(&wire[40..]);
        let length = u16::try_from(limited.len() - 40).unwrap();
        limited[4..6].copy_from_slice(&length.to_be_bytes());
        let (verdict, delivered) = receive(&mut setup.engine(2, 2), &limited);
        assert_eq!((verdict, delivered), (Verdict::Deliver, one_hop_on(&inner)));
    }
}

#[test]
fn rfc_9601_section_5_fragments_carry_the_mark_of_their_packet_each() {
    // The inner packet is cut before it is wrapped: each fragment takes its own way through the
    // tables, and only the one that met congestion says so. The destination puts them together by
    // RFC 3168 section 5.3.
    const ECT_0: u8 = 0b10;
    const CE: u8 = 0b11;
    for setup in Setup::all() {
        for (ecn, outer_mark) in [(EcnMode::Normal, ECT_0), (EcnMode::Compatibility, 0)] {
            let setup = Setup { ecn, ..setup };
            let (mut one, mut two) = (setup.engine(1, 2), setup.engine(2, 2));
            let packet = Udp {
                traffic_class: ECT_0,
                ..Udp::between(Family::V4, 1, 2)
            }
            .packet(&[7; 4000]);
            let packet = rewrite(&packet, |v4| v4.dont_fragment = false, |_| ());
            let mut batch = Batch::new(8, 65_535);
            batch.push(&packet, Link::LOCAL).unwrap();
            one.encap(&mut batch, Time::ZERO);
            assert!(batch.len() >= 3, "{setup:?}");
            for index in 0..batch.len() {
                let mut frame = batch.frame_mut(index).unwrap();
                outer::push(&mut frame).unwrap();
                let wire = frame.bytes().to_vec();
                let class = match wire[0] >> 4 {
                    4 => wire[1],
                    _ => wire[0] << 4 | wire[1] >> 4,
                };
                assert_eq!(class & 3, outer_mark, "{setup:?}");
                let is_marked = index == 1;
                let class = if is_marked { CE } else { class };
                let (verdict, delivered) =
                    receive(&mut two, &common::with_traffic_class(&wire, class));
                assert_eq!(verdict, Verdict::Deliver, "{setup:?}");
                let expected = if is_marked { CE } else { ECT_0 };
                assert_eq!(delivered[1] & 3, expected, "{setup:?}");
            }
        }
    }
}

#[test]
fn later_fragments_take_the_path_of_the_first() {
    // Cut by the sender: only the first has ports, and it does not use them.
    for setup in Setup::all() {
        let mut engine = setup.engine(1, 2);
        let mut links = std::collections::BTreeSet::new();
        for (offset, more) in [(0_u16, true), (8, true), (16, false)] {
            let packet = rewrite(
                &Udp::between(Family::V4, 1, 2).packet(&[7; 56]),
                |v4| {
                    v4.dont_fragment = false;
                    v4.more_fragments = more;
                    v4.fragment_offset = offset.try_into().unwrap();
                },
                |_| (),
            );
            let (verdict, link, _) = encap(&mut engine, &packet);
            assert_eq!(verdict, Verdict::Transmit, "{setup:?}");
            links.insert(format!("{:?}", link.transport));

            // IPv6: the fragment header behind the fixed one, and the options that the first
            // fragment has, or may have, before its ports.
            for (next, options) in [(17, &[][..]), (60, &[17, 0, 1, 4, 0, 0, 0, 0])] {
                let whole = Udp::between(Family::V6, 1, 2).packet(&[7; 56]);
                let mut packet = whole[..40].to_vec();
                packet[6] = 44;
                packet.extend([next, 0]);
                packet.extend(((offset * 8) | u16::from(more)).to_be_bytes());
                packet.extend([0, 0, 0, 7]);
                packet.extend(options);
                packet.extend(&whole[40..]);
                let octets = u16::try_from(packet.len() - 40).unwrap();
                packet[4..6].copy_from_slice(&octets.to_be_bytes());
                let (verdict, link, _) = encap(&mut engine, &packet);
                assert_eq!(verdict, Verdict::Transmit, "{setup:?}");
                links.insert(format!("{:?}", link.transport));
            }
        }
        // One for each family.
        assert_eq!(links.len(), 2, "{setup:?} {links:?}");
    }
}
