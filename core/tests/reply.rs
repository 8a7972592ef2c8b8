//! What the sender of a packet that does not pass is told, where packets go, and that
//! explanations say what happens.
#![cfg(test)]

mod common;

use std::net::IpAddr;

use common::{FAMILIES, Setup, Udp, encap, host, rewrite, underlay};
use etherparse::{Icmpv4Type, Icmpv6Type, icmpv4, icmpv6};
use warren_core::batch::{Batch, Link, Transport};
use warren_core::encap::EncapsulationKind;
use warren_core::engine::Answer;
use warren_core::gso::{Offload, PartialChecksum, SegmentKind};
use warren_core::packet::Packet;
use warren_core::probe::{Kind, Message, PORT};
use warren_core::tables::Local;
use warren_core::units::{Family, Mtu, Time};
use warren_core::{Direction, DropReason, Engine, EngineConfig, NextHop, TableWriter, Verdict};

#[test]
fn each_reason_has_its_message() {
    use icmpv4::DestUnreachableHeader as V4;
    use icmpv6::DestUnreachableCode as V6;
    let mut engine = routes();
    for (to, ttl, reason, v4, v6) in [
        (
            2,
            1,
            DropReason::TtlExpired,
            Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit),
            Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
        ),
        (
            99,
            64,
            DropReason::NoRoute,
            Icmpv4Type::DestinationUnreachable(V4::Network),
            Icmpv6Type::DestinationUnreachable(V6::NoRoute),
        ),
        (
            1,
            64,
            DropReason::DestinationUnassigned,
            Icmpv4Type::DestinationUnreachable(V4::Host),
            Icmpv6Type::DestinationUnreachable(V6::Address),
        ),
        (
            21,
            64,
            DropReason::Prohibited,
            Icmpv4Type::DestinationUnreachable(V4::FilterProhibited),
            Icmpv6Type::DestinationUnreachable(V6::Prohibited),
        ),
    ] {
        for family in FAMILIES {
            let packet = Udp {
                ttl,
                ..Udp::between(family, 1, to)
            }
            .packet(b"a packet that does not pass");
            let message = answered(&mut engine, &packet, reason);
            check_message(family, &message, &packet, &v4, &v6);
        }
    }
}

#[test]
fn too_big_says_what_fits() {
    for setup in Setup::all() {
        for family in FAMILIES {
            let mut engine = setup.engine(1, 2);
            let packet = Udp::between(family, 1, 2).packet(&[7; 1500]);
            let message = answered(&mut engine, &packet, DropReason::TooBig);
            let mtu = setup.mtu().octets();
            check_message(
                family,
                &message,
                &packet,
                &Icmpv4Type::DestinationUnreachable(
                    icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu },
                ),
                &Icmpv6Type::PacketTooBig { mtu: mtu.into() },
            );
        }
    }
}

#[test]
fn ipv6_is_never_told_less_than_1280() {
    let setup = Setup {
        underlay_mtu: 1000,
        ..Setup::new(EncapsulationKind::Vxlan, Family::V4)
    };
    let mut engine = setup.engine(1, 2);
    // RFC 2473 section 7.1: 1280 octets go, and the outer packet may be fragmented.
    let fits = Udp::between(Family::V6, 1, 2).packet(&[0; 1280 - 48]);
    let (verdict, link, _) = encap(&mut engine, &fits);
    assert_eq!((verdict, link.dont_fragment), (Verdict::Transmit, false));
    let small = Udp::between(Family::V6, 1, 2).packet(&[0; 800]);
    assert!(encap(&mut engine, &small).1.dont_fragment);
    let packet = Udp::between(Family::V6, 1, 2).packet(&[0; 1281 - 48]);
    let message = answered(&mut engine, &packet, DropReason::TooBig);
    let (icmp, _) = etherparse::Icmpv6Header::from_slice(&message[40..]).unwrap();
    assert_eq!(icmp.icmp_type, Icmpv6Type::PacketTooBig { mtu: 1280 });
}

#[test]
fn silence_where_rfc_1122_and_rfc_4443_ask_for_it() {
    let silent = |packet: &[u8], reason: DropReason| {
        let mut engine = routes();
        let (verdict, _, octets) = encap(&mut engine, packet);
        assert_eq!((verdict, &octets[..]), (Verdict::Drop(reason), packet));
        assert_eq!(engine.counters(Direction::Encap).replies, 0);
    };
    for family in FAMILIES {
        // An error about what went nowhere, itself on its way nowhere.
        let mut engine = routes();
        let packet = Udp::between(family, 1, 99).packet(b"x");
        let error = answered(&mut engine, &packet, DropReason::NoRoute);
        let to_nowhere = |v: u8| host(family, v, 9);
        let error = rewrite(
            &error,
            |v4| {
                v4.source = octets_v4(to_nowhere(1));
                v4.destination = octets_v4(to_nowhere(99));
            },
            |v6| {
                v6.source = octets_v6(to_nowhere(1));
                v6.destination = octets_v6(to_nowhere(99));
            },
        );
        silent(&error, DropReason::NoRoute);
        // A blackhole is silent by its name, a bogus source has nobody to be told.
        silent(
            &Udp::between(family, 1, 22).packet(b"x"),
            DropReason::Blackhole,
        );
        let foreign = Udp {
            ttl: 1,
            ..Udp::between(family, 2, 99)
        };
        silent(&foreign.packet(b"x"), DropReason::SourceNotLocal);
    }
    // A later fragment.
    let later = rewrite(
        &Udp::between(Family::V4, 1, 99).packet(&[0; 16]),
        |v4| {
            v4.dont_fragment = false;
            v4.fragment_offset = 3.try_into().unwrap();
        },
        |_| (),
    );
    silent(&later, DropReason::NoRoute);
    // To a group, from a group, and what an IPv6 host says when it wakes up.
    for (source, destination, reason) in [
        ("10.42.1.7", "224.0.0.1", DropReason::DestinationMulticast),
        (
            "10.42.1.7",
            "255.255.255.255",
            DropReason::DestinationMulticast,
        ),
        ("10.42.1.7", "127.0.0.1", DropReason::DestinationInvalid),
        ("224.0.0.1", "10.42.2.9", DropReason::SourceMulticast),
        ("0.0.0.0", "255.255.255.255", DropReason::SourceUnspecified),
        ("169.254.3.4", "10.42.2.9", DropReason::LinkLocal),
        ("fe80::1", "ff02::2", DropReason::LinkLocal),
        ("::", "ff02::16", DropReason::SourceUnspecified),
        ("fd42:0:0:1::7", "fe80::1", DropReason::LinkLocal),
        (
            "fd42:0:0:1::7",
            "::ffff:10.42.2.9",
            DropReason::DestinationInvalid,
        ),
    ] {
        let source: IpAddr = source.parse().unwrap();
        let packet = Udp {
            source,
            destination: destination.parse().unwrap(),
            ..Udp::between(Family::of(source), 1, 2)
        };
        silent(&packet.packet(b"x"), reason);
    }
}

#[test]
fn a_node_without_an_overlay_address_speaks_only_as_the_destination() {
    let setup = Setup::new(EncapsulationKind::Vxlan, Family::V4);
    let mut writer = TableWriter::new(Local {
        addresses: vec![host(Family::V6, 1, 1)],
        ..common::local(1)
    });
    let local = writer.next_hop(NextHop::Local).unwrap();
    for prefix in ["10.42.1.0/24", "fd42:0:0:1::/64"] {
        writer.insert(prefix.parse().unwrap(), local).unwrap();
    }
    let tables = writer.publish();
    let mut engine = Engine::new(EngineConfig::default(), tables.clone());
    for (family, verdict) in [
        (Family::V4, Verdict::Drop(DropReason::NoRoute)),
        (Family::V6, Verdict::Reply(DropReason::NoRoute)),
    ] {
        let packet = Udp::between(family, 1, 2).packet(b"x");
        assert_eq!(encap(&mut engine, &packet).0, verdict, "{setup:?}");
    }
    // Where errors come from the packet's destination it needs none.
    let config = EngineConfig {
        icmp_from_destination: true,
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(config, tables);
    for family in FAMILIES {
        let packet = Udp::between(family, 1, 2).packet(b"x");
        let message = answered(&mut engine, &packet, DropReason::NoRoute);
        let flow = Packet::parse(&message).unwrap().flow;
        assert_eq!(
            (flow.source, flow.destination),
            (host(family, 2, 9), host(family, 1, 7))
        );
    }
}

#[test]
fn an_error_about_the_nodes_own_packet_comes_from_its_destination() {
    for family in FAMILIES {
        let packet = Udp {
            source: host(family, 1, 1),
            ..Udp::between(family, 1, 99)
        }
        .packet(b"x");
        let message = answered(&mut routes(), &packet, DropReason::NoRoute);
        let flow = Packet::parse(&message).unwrap().flow;
        assert_eq!(
            (flow.source, flow.destination),
            (host(family, 99, 9), host(family, 1, 1))
        );
    }
}

#[test]
fn all_errors_come_from_the_destination_where_the_host_takes_no_others() {
    let setup = Setup::new(EncapsulationKind::Vxlan, Family::V4);
    for family in FAMILIES {
        let config = EngineConfig {
            icmp_from_destination: true,
            ..EngineConfig::default()
        };
        let mut engine = Engine::new(config, setup.tables(1, 2));
        let packet = Udp::between(family, 1, 99).packet(b"x");
        let message = answered(&mut engine, &packet, DropReason::NoRoute);
        let (sent, told) = [&packet, &message]
            .map(|packet| Packet::parse(packet).unwrap().flow)
            .into();
        assert_eq!(
            (told.source, told.destination),
            (sent.destination, sent.source)
        );
    }
}

#[test]
fn errors_are_limited_and_counted() {
    let setup = Setup::new(EncapsulationKind::Vxlan, Family::V4);
    let config = EngineConfig {
        // One sender gets half.
        icmp_per_second: 20,
        icmp_burst: 10,
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(config, setup.tables(1, 2));
    let packet = Udp::between(Family::V4, 1, 99).packet(b"x");
    let mut replies = 0;
    for millis in 0..2000 {
        let mut batch = Batch::new(1, 2000);
        batch.push(&packet, Link::LOCAL).unwrap();
        engine.encap(&mut batch, Time::from_nanos(millis * 1_000_000));
        let verdict = batch.frame(0).unwrap().verdict;
        if verdict == Verdict::Reply(DropReason::NoRoute) {
            replies += 1;
        } else {
            assert_eq!(verdict, Verdict::Drop(DropReason::NoRoute));
        }
    }
    let counters = engine.counters(Direction::Encap);
    assert_eq!(replies, 5 + 19);
    assert_eq!(
        (counters.replies, counters.replies_suppressed),
        (24, 2000 - 24)
    );
    assert_eq!(counters.drops(DropReason::NoRoute), 2000);
    assert_eq!(counters.received.packets, counters.dropped());
}

#[test]
fn packets_go_where_their_longest_prefix_leads() {
    let mut engine = routes();
    for family in FAMILIES {
        let verdict_to = |engine: &mut Engine, node: u8| {
            let (verdict, link, octets) =
                encap(engine, &Udp::between(family, 1, node).packet(b"x"));
            (verdict, link.remote, octets)
        };
        let (verdict, remote, _) = verdict_to(&mut engine, 2);
        assert_eq!(
            (verdict, remote),
            (Verdict::Transmit, underlay(Family::V4, 2))
        );
        // On the link: as it is, one hop older; the gateway is the destination itself.
        let (verdict, remote, octets) = verdict_to(&mut engine, 23);
        let sent = Udp::between(family, 1, 23).packet(b"x");
        assert_eq!((verdict, remote), (Verdict::Direct, host(family, 23, 9)));
        assert_eq!(octets, common::one_hop_on(&sent));
        // A flow stays on one of two equal ways, and both are used.
        let mut used = std::collections::BTreeMap::new();
        for port in 0..200 {
            let flow = Udp {
                ports: (port, 80),
                ..Udp::between(family, 1, 24)
            };
            let (verdict, first, _) = encap(&mut engine, &flow.packet(b"x"));
            assert_eq!(verdict, Verdict::Transmit);
            assert_eq!(encap(&mut engine, &flow.packet(b"y")).1, first);
            *used.entry(first.remote).or_insert(0) += 1;
        }
        assert_eq!(used.len(), 2);
        assert!(
            used.values().all(|flows| (70..=130).contains(flows)),
            "{used:?}"
        );
    }
}

#[test]
fn a_packet_never_enters_the_tunnel_that_carries_it() {
    let setup = Setup::new(EncapsulationKind::Vxlan, Family::V4);
    let mut writer = setup.writer(1, 3);
    // Somebody routes the underlay into the tunnel to node 2.
    let peer = writer
        .publish()
        .peer_by_underlay(underlay(Family::V4, 2))
        .unwrap();
    let tunnel = writer
        .next_hop(NextHop::Tunnel(setup.tunnel(1, 2, peer)))
        .unwrap();
    for prefix in ["0.0.0.0/0", "::/0"] {
        writer.insert(prefix.parse().unwrap(), tunnel).unwrap();
    }
    let mut engine = Engine::new(EngineConfig::default(), writer.publish());
    for family in FAMILIES {
        for node in [1, 2, 3] {
            let packet = Udp {
                destination: underlay(family, node),
                ..Udp::between(family, 1, 2)
            }
            .packet(b"x");
            let (verdict, ..) = encap(&mut engine, &packet);
            assert_eq!(verdict, Verdict::Drop(DropReason::TunnelLoop));
        }
    }
}

#[test]
fn a_super_packet_passes_when_its_segments_fit() {
    let setup = Setup::new(EncapsulationKind::Vxlan, Family::V4);
    let mut engine = setup.engine(1, 2);
    let mut tcp = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 42, 1, 7], [10, 42, 2, 9], 64)
        .tcp(1, 2, 3, 4)
        .write(&mut tcp, &vec![0; 20_000])
        .unwrap();
    for (segment, verdict) in [
        (1410, Verdict::Transmit),
        (1411, Verdict::Reply(DropReason::TooBig)),
    ] {
        let mut batch = Batch::new(1, 65_535);
        let mut frame = batch.push(&tcp, Link::LOCAL).unwrap();
        let offload = Offload {
            partial_checksum: Some(PartialChecksum {
                start: 20,
                offset: 16,
            }),
            segments: Some((SegmentKind::Tcp, segment)),
        };
        frame.set_offload(offload);
        engine.encap(&mut batch, Time::ZERO);
        let frame = batch.frame(0).unwrap();
        assert_eq!(frame.verdict, verdict);
        if verdict == Verdict::Transmit {
            assert_eq!((frame.offload, frame.pushed), (offload, 22));
        } else {
            assert_eq!(frame.offload, Offload::NONE, "the message is complete");
        }
    }
}

#[test]
fn ttl_is_decremented_only_where_the_node_routes() {
    let setup = Setup::new(EncapsulationKind::Fou, Family::V4);
    let config = EngineConfig {
        decrement_ttl: false,
        ..EngineConfig::default()
    };
    for family in FAMILIES {
        let mut engine = Engine::new(config, setup.tables(1, 2));
        let flow = |ttl| Udp {
            ttl,
            ..Udp::between(family, 1, 2)
        };
        let packet = flow(1).packet(b"x");
        assert_eq!(encap(&mut engine, &packet).2, packet);
        let (verdict, ..) = encap(&mut engine, &flow(0).packet(b"x"));
        assert_eq!(verdict, Verdict::Reply(DropReason::TtlExpired));
    }
}

#[test]
fn peers_keep_their_counters_when_tables_change() {
    let setup = Setup::new(EncapsulationKind::Vxlan, Family::V4);
    let mut engine = setup.engine(1, 3);
    encap(&mut engine, &Udp::between(Family::V4, 1, 3).packet(b"x"));
    assert_eq!(engine.peer_counters()[1].sent().packets, 1);
    // Node 2 leaves: node 3 gets its number.
    let mut writer = TableWriter::new(common::local(1));
    let peer = engine.tables().peers()[1].as_ref().clone();
    writer.add_peer(peer).unwrap();
    engine.set_tables(writer.publish());
    assert_eq!(engine.peer_counters().len(), 1);
    assert_eq!(engine.peer_counters()[0].sent().packets, 1);
}

#[test]
fn an_explanation_is_what_happens() {
    for family in FAMILIES {
        for node in [1, 2, 3, 21, 22, 23, 24, 99] {
            for octets in [64, 1450, 1451] {
                let mut engine = routes();
                let flow = Udp::between(family, 1, node);
                let header = usize::from(family.header_octets()) + 8;
                let packet = flow.packet(&vec![0; octets - header]);
                let explained = engine.explain(Direction::Encap, &packet, &Link::LOCAL);
                let by_flow = engine.explain_flow(
                    Direction::Encap,
                    &Packet::parse(&packet).unwrap().flow,
                    u16::try_from(octets).unwrap(),
                );
                let (verdict, link, _) = encap(&mut engine, &packet);
                assert_eq!((explained.verdict, by_flow.verdict), (verdict, verdict));
                assert_eq!(explained.link, by_flow.link);
                if matches!(verdict, Verdict::Transmit | Verdict::Direct) {
                    assert_eq!(explained.link, Some(link));
                }
                assert_eq!(
                    explained.answer.is_some(),
                    matches!(verdict, Verdict::Reply(_))
                );
            }
        }
    }
}

#[test]
fn an_explanation_knows_what_is_for_the_node_itself() {
    let message = Message {
        kind: Kind::Question,
        encapsulation: 0,
        octets: 100,
        token: 1,
        takes_rows: false,
    };
    let link = Link {
        local: underlay(Family::V4, 1),
        remote: underlay(Family::V4, 2),
        transport: Transport::Udp {
            local_port: common::FOU_PORT,
            remote_port: 50000,
        },
        ..Link::LOCAL
    };
    let probe: &[u8] = &message.to_octets();
    for family in FAMILIES {
        for (port, payload, verdict) in [
            (PORT, probe, Verdict::Probe),
            (PORT, b"somebody else's", Verdict::Deliver),
            (5001, probe, Verdict::Deliver),
        ] {
            let mut engine = routes();
            let mut flow = Udp::between(family, 2, 1);
            flow.ports.1 = port;
            let packet = flow.packet(payload);
            let explained = engine.explain(Direction::Decap, &packet, &link);
            let mut batch = Batch::new(1, 1500);
            batch.push(&packet, link).unwrap();
            engine.decap(&mut batch, Time::ZERO);
            let happened = batch.frame(0).unwrap().verdict;
            assert_eq!((explained.verdict, happened), (verdict, verdict));
        }
    }
}

#[test]
fn an_explanation_names_all_that_mattered() {
    let engine = routes();
    let packet = Udp::between(Family::V4, 1, 2).packet(&[0; 1500]);
    let explained = engine.explain(Direction::Encap, &packet, &Link::LOCAL);
    assert_eq!(
        explained.peer.as_ref().map(|(_, name)| &name[..]),
        Some("node-2")
    );
    assert_eq!(
        explained
            .route
            .as_ref()
            .map(|route| route.prefix.to_string()),
        Some("10.42.2.0/24".into())
    );
    assert_eq!(explained.mtu, Some(Mtu::new(1450)));
    let answer = Answer::TooBig {
        mtu: Mtu::new(1450),
    };
    assert_eq!(explained.answer, Some((answer, host(Family::V4, 1, 1))));
    let text = explained.to_string();
    for part in [
        "10.42.1.7 -> 10.42.2.9",
        "10.42.1.0/24 local",
        "10.42.2.0/24 tunnel",
        "node-2",
        "vxlan vni 1 port 8472",
        "too big, 1450 octets fit from 10.42.1.1",
        "drop and answer: too_big",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }

    // The other way: what node 2 sends, and what it may not.
    let flow = Packet::parse(&Udp::between(Family::V4, 2, 1).packet(b"x"))
        .unwrap()
        .flow;
    let explained = engine.explain_flow(Direction::Decap, &flow, 100);
    assert_eq!(explained.verdict, Verdict::Deliver);
    assert_eq!(explained.encapsulation, Some(EncapsulationKind::Vxlan));
    let link = Link {
        local: underlay(Family::V4, 1),
        remote: underlay(Family::V4, 3),
        transport: Transport::Udp {
            local_port: common::FOU_PORT,
            remote_port: 50000,
        },
        ..Link::LOCAL
    };
    let packet = Udp::between(Family::V4, 2, 1).packet(b"x");
    let explained = engine.explain(Direction::Decap, &packet, &link);
    assert_eq!(
        explained.verdict,
        Verdict::Drop(DropReason::SourceNotOwnedByPeer)
    );
    assert_eq!(explained.peer.map(|(_, name)| name), Some("node-3".into()));
}

/// Node 1 of three, VXLAN over IPv4; node prefixes 21 to 24 are prohibited, a blackhole, on the
/// link, and behind both other nodes.
fn routes() -> Engine {
    let setup = Setup::new(EncapsulationKind::Vxlan, Family::V4);
    let mut writer = setup.writer(1, 3);
    let tables = writer.publish();
    let tunnels = [2, 3]
        .map(|node| {
            let peer = tables.peer_by_underlay(underlay(Family::V4, node)).unwrap();
            setup.tunnel(1, node, peer)
        })
        .to_vec();
    for (node, next_hop) in [
        (21, NextHop::Prohibit),
        (22, NextHop::Blackhole),
        (23, NextHop::Direct { gateway: None }),
        (24, NextHop::EqualCost(tunnels)),
    ] {
        let id = writer.next_hop(next_hop).unwrap();
        for prefix in [
            format!("10.42.{node}.0/24"),
            format!("fd42:0:0:{node:x}::/64"),
        ] {
            writer.insert(prefix.parse().unwrap(), id).unwrap();
        }
    }
    Engine::new(EngineConfig::default(), writer.publish())
}

/// Asserts that the packet is dropped for `reason` with an answer, and gives the answer.
fn answered(engine: &mut Engine, packet: &[u8], reason: DropReason) -> Vec<u8> {
    let (verdict, _, message) = encap(engine, packet);
    assert_eq!(verdict, Verdict::Reply(reason));
    let counters = engine.counters(Direction::Encap);
    assert_eq!(
        counters.received.packets,
        counters.dropped() + counters.forwarded.packets
    );
    message
}

/// Reads the message with etherparse: addresses, length, type, checksums, and what it quotes.
fn check_message(family: Family, message: &[u8], packet: &[u8], v4: &Icmpv4Type, v6: &Icmpv6Type) {
    let flow = Packet::parse(message).unwrap().flow;
    assert_eq!(
        (flow.source, flow.destination),
        (host(family, 1, 1), host(family, 1, 7))
    );
    match family {
        Family::V4 => {
            let (ip, rest) = etherparse::Ipv4Header::from_slice(message).unwrap();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(
                (usize::from(ip.total_len), ip.time_to_live),
                (message.len(), 64)
            );
            let (icmp, quoted) = etherparse::Icmpv4Header::from_slice(rest).unwrap();
            assert_eq!(&icmp.icmp_type, v4);
            assert_eq!(icmp.checksum, icmp.icmp_type.calc_checksum(quoted));
            assert_eq!(quoted, &packet[..packet.len().min(576 - 28)]);
        }
        Family::V6 => {
            let (ip, rest) = etherparse::Ipv6Header::from_slice(message).unwrap();
            assert_eq!(usize::from(ip.payload_length), message.len() - 40);
            let (icmp, quoted) = etherparse::Icmpv6Header::from_slice(rest).unwrap();
            assert_eq!(&icmp.icmp_type, v6);
            let sum = icmp
                .icmp_type
                .calc_checksum(ip.source, ip.destination, quoted);
            assert_eq!(Ok(icmp.checksum), sum);
            assert_eq!(quoted, &packet[..packet.len().min(1280 - 48)]);
        }
    }
}

fn octets_v4(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => [0; 4],
    }
}

fn octets_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(_) => [0; 16],
        IpAddr::V6(address) => address.octets(),
    }
}
