//! Packets that are too big once they are wrapped: every encapsulation, both underlays, against
//! the published tables of overhead; fragments reassembled by the textbook; the segment size that
//! TCP announces.
#![cfg(test)]

mod common;

use common::{FAMILIES, Random, Setup, Udp, encap, host, receive, rewrite, underlay};
use etherparse::{PacketBuilder, TcpHeader, TcpOptionElement};
use warren_core::batch::Link;
use warren_core::encap::{EncapsulationKind, outer};
use warren_core::engine::Answer;
use warren_core::gso::{ChecksumState, Offload, PartialChecksum, SegmentKind, transport_checksum};
use warren_core::packet::Packet;
use warren_core::units::{Family, Mtu, Time};
use warren_core::wire::Ipv4Header;
use warren_core::{Batch, Direction, DropReason, Engine, EngineConfig, Verdict};

/// The MTU that a link of 1500 octets leaves, over IPv4 and IPv6: written down, not computed.
const MTUS: [(EncapsulationKind, u16, u16); 6] = [
    (EncapsulationKind::Ipip, 1480, 1460),
    (EncapsulationKind::Fou, 1472, 1452),
    (EncapsulationKind::Gue, 1468, 1448),
    (EncapsulationKind::VxlanGpe, 1464, 1444),
    (EncapsulationKind::Vxlan, 1450, 1430),
    (EncapsulationKind::Geneve, 1450, 1430),
];

fn setups() -> impl Iterator<Item = (Setup, u16)> {
    MTUS.into_iter().flat_map(|(kind, over_v4, over_v6)| {
        [
            (Setup::new(kind, Family::V4), over_v4),
            (Setup::new(kind, Family::V6), over_v6),
        ]
    })
}

fn udp_of(family: Family, octets: u16, dont_fragment: bool) -> Vec<u8> {
    let headers = usize::from(family.header_octets()) + 8;
    let payload: Vec<u8> = (0..usize::from(octets) - headers)
        .map(|n| (n * 7 + n / 251).to_le_bytes()[0])
        .collect();
    let packet = Udp::between(family, 1, 2).packet(&payload);
    rewrite(
        &packet,
        |v4| {
            v4.dont_fragment = dont_fragment;
            v4.identification = 0x1234;
        },
        |_| (),
    )
}

#[test]
fn the_sender_of_an_oversize_packet_is_told_the_mtu_of_the_table() {
    let mut combinations = 0;
    for (setup, mtu) in setups() {
        for family in FAMILIES {
            let mut engine = setup.engine(1, 2);
            let (verdict, ..) = encap(&mut engine, &udp_of(family, mtu, true));
            assert_eq!(verdict, Verdict::Transmit, "{setup:?} {family} {mtu}");
            let packet = udp_of(family, mtu + 1, true);
            let (verdict, _, message) = encap(&mut engine, &packet);
            assert_eq!(verdict, Verdict::Reply(DropReason::TooBig));
            // The MTU stands in the last two octets of the eight of either ICMP header.
            let icmp = usize::from(family.header_octets());
            let kind = if family == Family::V4 { [3, 4] } else { [2, 0] };
            assert_eq!(message[icmp..icmp + 2], kind);
            assert_eq!(message[icmp + 6..icmp + 8], mtu.to_be_bytes());
            assert!(packet.starts_with(&message[icmp + 8..message.len().min(icmp + 8 + 500)]));

            let flow = Packet::parse(&packet).unwrap().flow;
            let told = engine.explain_flow(Direction::Encap, &flow, mtu + 1);
            let answer = Answer::TooBig { mtu: Mtu::new(mtu) };
            assert_eq!(told.answer.map(|(answer, _)| answer), Some(answer));
            assert_eq!(told.mtu, Some(Mtu::new(mtu)));
            combinations += 1;
        }
    }
    assert_eq!(combinations, 24);
}

/// Runs a packet through `engine` and gives every frame that leaves as an outer packet.
fn send_all(engine: &mut Engine, packet: &[u8], offload: Offload) -> Vec<Vec<u8>> {
    let mut batch = Batch::new(4, 65_535);
    let mut frame = batch.push(packet, Link::LOCAL).unwrap();
    frame.set_offload(offload);
    engine.encap(&mut batch, Time::ZERO);
    (0..batch.len())
        .map(|index| {
            let mut frame = batch.frame_mut(index).unwrap();
            assert_eq!(frame.verdict(), Verdict::Transmit);
            outer::push(&mut frame).unwrap();
            frame.bytes().to_vec()
        })
        .collect()
}

/// Puts fragments together in any order: RFC 791 section 3.2.
fn reassemble(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut whole = Vec::new();
    let mut end = None;
    let mut filled = 0;
    for part in parts {
        let (header, options, data) = Ipv4Header::parse(part).unwrap();
        assert!(header.has_valid_checksum(options));
        let at = usize::from(header.fragment_offset_octets());
        if whole.len() < at + data.len() {
            whole.resize(at + data.len(), 0);
        }
        whole[at..at + data.len()].copy_from_slice(data);
        filled += data.len();
        if !header.more_fragments() {
            end = Some(at + data.len());
        }
    }
    assert_eq!(
        (Some(whole.len()), filled),
        (end, whole.len()),
        "a hole or an overlap"
    );
    whole
}

#[test]
fn a_packet_that_allows_it_is_cut_inside_and_fits() {
    for (setup, mtu) in setups() {
        let (mut one, mut two) = (setup.engine(1, 2), setup.engine(2, 2));
        let overhead = usize::from(1500 - mtu);
        let mut cut = 0;
        for octets in [mtu, mtu + 1, 2 * mtu, 9000, 65_535 - 22] {
            let packet = udp_of(Family::V4, octets, false);
            let wires = send_all(&mut one, &packet, Offload::NONE);
            let step = usize::from(mtu - 20) & !7;
            let parts = usize::from(octets > mtu) * ((usize::from(octets) - 20).div_ceil(step));
            assert_eq!(wires.len(), parts.max(1), "{setup:?} {octets}");
            cut += u64::from(wires.len() > 1);
            let mut received = Vec::new();
            let mut outer_ports = Vec::new();
            for wire in &wires {
                assert!(wire.len() <= 1500, "{setup:?}: {} octets", wire.len());
                let transport = usize::from(setup.underlay.header_octets());
                outer_ports.push(wire[transport..transport + 2].to_vec());
                let (verdict, inner) = receive(&mut two, wire);
                assert_eq!(verdict, Verdict::Deliver);
                assert!(inner.len() + overhead == wire.len());
                received.push(inner);
            }
            if setup.kind != EncapsulationKind::Ipip {
                outer_ports.dedup();
                assert_eq!(outer_ports.len(), 1, "all fragments take one path");
            }
            assert_eq!(reassemble(&received), packet[20..]);
            for part in &received {
                let (header, ..) = Ipv4Header::parse(part).unwrap();
                assert_eq!((header.identification(), header.ttl()), (0x1234, 63));
            }
        }
        let counters = one.counters(Direction::Encap);
        assert_eq!(
            (counters.received.packets, counters.forwarded.packets),
            (5, 5)
        );
        assert_eq!((counters.fragmented, counters.dropped()), (cut, 0));
        let frames = counters.forwarded.packets + counters.fragments;
        assert_eq!(one.peer_counters()[0].sent().packets, frames);
        assert_eq!(
            one.peer_counters()[0].sent().octets,
            counters.forwarded.octets
        );
        assert_eq!(two.counters(Direction::Decap).received.packets, frames);
    }
}

#[test]
fn fragments_of_random_packets_in_full_batches_are_counted_exactly() {
    let mut random = Random(7);
    let setup = Setup::new(EncapsulationKind::Vxlan, Family::V4);
    let mut one = setup.engine(1, 2);
    let mut frames = 0;
    for _ in 0..300 {
        // A small arena: some packets find no room for their fragments.
        let mut batch = Batch::new(1 + random.below(80), 3000);
        while let Some(room) = batch.vacancy() {
            let octets = 28 + u16::try_from(random.below(2900)).unwrap();
            let packet = udp_of(Family::V4, octets, random.once_in(4));
            room[..packet.len()].copy_from_slice(&packet);
            batch.commit(packet.len(), Link::LOCAL).unwrap();
        }
        one.encap(&mut batch, Time::ZERO);
        for frame in batch.frames() {
            assert_ne!(frame.verdict, Verdict::Undecided);
            frames += u64::from(frame.verdict == Verdict::Transmit);
        }
        let counters = one.counters(Direction::Encap);
        assert_eq!(
            counters.received.packets,
            counters.forwarded.packets + counters.dropped()
        );
        assert_eq!(frames, counters.forwarded.packets + counters.fragments);
    }
    let counters = one.counters(Direction::Encap);
    assert!(counters.fragmented > 1000 && counters.drops(DropReason::TooBig) > 1000);
    assert_eq!(counters.dropped(), counters.drops(DropReason::TooBig));
}

#[test]
fn without_room_for_fragments_the_sender_is_told() {
    let setup = Setup::new(EncapsulationKind::Ipip, Family::V4);
    let mut engine = setup.engine(1, 2);
    let packet = udp_of(Family::V4, 3000, false);
    let mut batch = Batch::new(1, 3000);
    batch.push(&packet, Link::LOCAL).unwrap();
    engine.encap(&mut batch, Time::ZERO);
    let frame = batch.frame(0).unwrap();
    assert_eq!(frame.verdict, Verdict::Reply(DropReason::TooBig));
    assert_eq!(frame.bytes[26..28], 1480_u16.to_be_bytes());
    assert_eq!(engine.counters(Direction::Encap).fragmented, 0);
}

#[test]
fn an_unfinished_checksum_is_finished_before_the_cut() {
    let setup = Setup::new(EncapsulationKind::Fou, Family::V4);
    let (mut one, mut two) = (setup.engine(1, 2), setup.engine(2, 2));
    let whole = udp_of(Family::V4, 4000, false);
    let mut packet = whole.clone();
    // What the kernel leaves: the sum of the pseudo-header.
    let read = Packet::parse(&packet).unwrap();
    let pseudo = warren_core::wire::checksum::Sum::ZERO
        .octets(&packet[12..20])
        .word(17)
        .word(4000 - 20)
        .partial();
    packet[26..28].copy_from_slice(&pseudo.to_be_bytes());
    let ChecksumState::Partial(partial) = transport_checksum(&packet, &read) else {
        panic!("not partial");
    };
    let offload = Offload {
        partial_checksum: Some(partial),
        segments: None,
    };
    let parts: Vec<_> = send_all(&mut one, &packet, offload)
        .iter()
        .map(|wire| receive(&mut two, wire).1)
        .collect();
    assert_eq!(reassemble(&parts), whole[20..]);
}

/// A row of UDP datagrams as a device hands it over, and the datagrams alone.
fn row_of_datagrams(family: Family, data: &[u8], each: u16, df: bool) -> (Vec<u8>, Vec<Vec<u8>>) {
    let packet = |data: &[u8], number: u16| {
        let packet = Udp::between(family, 1, 2).packet(data);
        rewrite(
            &packet,
            |v4| {
                v4.dont_fragment = df;
                v4.identification = 0xfff0_u16.wrapping_add(number);
            },
            |_| (),
        )
    };
    let alone = (0..).zip(data.chunks(each.into()));
    (
        packet(data, 0),
        alone.map(|(number, data)| packet(data, number)).collect(),
    )
}

/// The offload of a row of datagrams that its device left without checksums.
fn row_offload(family: Family, each: u16) -> Offload {
    Offload {
        partial_checksum: Some(PartialChecksum {
            start: family.header_octets(),
            offset: 6,
        }),
        segments: Some((SegmentKind::Udp, each)),
    }
}

#[test]
fn a_row_of_datagrams_is_cut_as_if_each_had_come_alone() {
    let mut random = Random(11);
    for (setup, mtu) in setups() {
        for turn in 0..40 {
            let (mut one, mut twin) = (setup.engine(1, 2), setup.engine(1, 2));
            // Just too big, far too big, and last ones of any length, that of a header too.
            let each = match turn % 3 {
                0 => mtu - 27 + u16::try_from(random.below(8)).unwrap(),
                1 => 1472,
                _ => 2000 + u16::try_from(random.below(7000)).unwrap(),
            };
            let octets = usize::from(each) + 1 + random.below(65_507 - 2 * usize::from(each));
            let data: Vec<u8> = (0..octets).map(|_| random.octet()).collect();
            let (row, alone) = row_of_datagrams(Family::V4, &data, each, false);
            let mut wires = send_all(&mut one, &row, row_offload(Family::V4, each));
            let first: Vec<Vec<u8>> = wires[..1].to_vec();
            let mut expected: Vec<Vec<u8>> = alone
                .iter()
                .flat_map(|packet| send_all(&mut twin, packet, Offload::NONE))
                .collect();
            assert_eq!(first[0], expected[0], "{setup:?} {octets} by {each}");
            let outer_ports = |wires: &[Vec<u8>]| {
                let at = usize::from(setup.underlay.header_octets());
                let ports = wires.iter().map(|wire| wire[at..at + 2].to_vec());
                ports.collect::<std::collections::BTreeSet<_>>().len()
            };
            assert!(setup.kind == EncapsulationKind::Ipip || outer_ports(&wires) == 1);
            wires.sort();
            expected.sort();
            assert!(wires == expected, "{setup:?} {octets} by {each}");
            assert!(wires.iter().all(|wire| wire.len() <= 1500));
            let (books, twins) = (
                one.counters(Direction::Encap),
                twin.counters(Direction::Encap),
            );
            assert_eq!((books.received.packets, books.forwarded.packets), (1, 1));
            assert_eq!(books.forwarded.octets, twins.forwarded.octets);
            assert_eq!((books.fragmented, books.dropped()), (1, 0));
            assert_eq!(books.fragments + 1, wires.len() as u64);
            assert_eq!(
                one.peer_counters()[0].sent(),
                twin.peer_counters()[0].sent()
            );
        }
    }
}

#[test]
fn a_row_of_datagrams_that_may_not_be_cut_is_answered() {
    for (setup, _) in setups() {
        for (family, df, frames) in [
            (Family::V4, true, 4),
            (Family::V6, true, 4),
            // No room for the pieces.
            (Family::V4, false, 1),
        ] {
            let mut engine = setup.engine(1, 2);
            let (row, _) = row_of_datagrams(family, &[7; 60_000], 1600, df);
            let mut batch = Batch::new(frames, 65_535);
            let mut frame = batch.push(&row, Link::LOCAL).unwrap();
            frame.set_offload(row_offload(family, 1600));
            engine.encap(&mut batch, Time::ZERO);
            let verdict = batch.frame(0).unwrap().verdict;
            assert_eq!(verdict, Verdict::Reply(DropReason::TooBig), "{setup:?}");
            assert_eq!(batch.len(), 1);
        }
    }
}

#[test]
fn a_tcp_super_packet_without_df_is_cut_into_segments_that_fit() {
    for (setup, mtu) in setups() {
        let mut tcp = Vec::new();
        PacketBuilder::ipv4([10, 42, 1, 7], [10, 42, 2, 9], 64)
            .tcp(1, 2, 3, 4)
            .write(&mut tcp, &[7; 20_000])
            .unwrap();
        for (dont_fragment, verdict) in [
            (false, Verdict::Transmit),
            (true, Verdict::Reply(DropReason::TooBig)),
        ] {
            let packet = rewrite(&tcp, |v4| v4.dont_fragment = dont_fragment, |_| ());
            let mut engine = setup.engine(1, 2);
            let mut batch = Batch::new(1, 65_535);
            let mut frame = batch.push(&packet, Link::LOCAL).unwrap();
            frame.set_offload(Offload {
                partial_checksum: None,
                segments: Some((SegmentKind::Tcp, 1460)),
            });
            engine.encap(&mut batch, Time::ZERO);
            let frame = batch.frame(0).unwrap();
            assert_eq!(frame.verdict, verdict, "{setup:?}");
            if verdict == Verdict::Transmit {
                // What is left of the path for the data behind an IPv4 and a TCP header.
                let segments = Some((SegmentKind::Tcp, mtu - 40));
                assert_eq!(frame.offload.segments, segments, "{setup:?}");
                let books = engine.counters(Direction::Encap);
                assert_eq!((books.forwarded.packets, books.fragmented), (1, 0));
            }
        }
    }
}

/// A SYN with the maximum segment size `mss`, its option behind `padding` of one octet each.
fn syn(family: Family, from: u8, to: u8, mss: u16, padding: usize) -> Vec<u8> {
    let mut tcp = TcpHeader::new(40_000, 80, 1, 65_535);
    tcp.syn = true;
    let mut options = vec![TcpOptionElement::Noop; padding];
    options.push(TcpOptionElement::MaximumSegmentSize(mss));
    options.push(TcpOptionElement::SelectiveAcknowledgementPermitted);
    tcp.set_options(&options).unwrap();
    let mut packet = Vec::new();
    let builder = match (host(family, from, 7), host(family, to, 9)) {
        (std::net::IpAddr::V4(a), std::net::IpAddr::V4(b)) => {
            PacketBuilder::ipv4(a.octets(), b.octets(), 64)
        }
        (std::net::IpAddr::V6(a), std::net::IpAddr::V6(b)) => {
            PacketBuilder::ipv6(a.octets(), b.octets(), 64)
        }
        _ => panic!("one family"),
    };
    builder.tcp_header(tcp).write(&mut packet, &[]).unwrap();
    packet
}

fn mss_of(packet: &[u8]) -> u16 {
    let read = Packet::parse(packet).unwrap();
    assert_eq!(transport_checksum(packet, &read), ChecksumState::Complete);
    let (tcp, _) = TcpHeader::from_slice(&packet[read.transport_offset..]).unwrap();
    tcp.options_iterator()
        .find_map(|option| match option {
            Ok(TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
            _ => None,
        })
        .unwrap()
}

#[test]
fn the_segment_size_of_a_syn_is_clamped_in_both_directions() {
    for (setup, mtu) in setups() {
        for family in FAMILIES {
            let fits = mtu - family.header_octets() - 20;
            for padding in 0..4 {
                for (mss, expected) in [(8960, fits), (fits + 1, fits), (fits, fits), (536, 536)] {
                    let (mut one, mut two) = (setup.engine(1, 2), setup.engine(2, 2));
                    let sent = syn(family, 1, 2, mss, padding);
                    let [wire] = &send_all(&mut one, &sent, Offload::NONE)[..] else {
                        panic!("one frame");
                    };
                    let (_, delivered) = receive(&mut two, wire);
                    assert_eq!(mss_of(&delivered), expected, "{setup:?} {family}");
                    let clamped = one.counters(Direction::Encap).mss_clamped;
                    assert_eq!(clamped, u64::from(mss > fits));

                    // A sender that does not clamp: what it announces binds this node's side.
                    let config = EngineConfig {
                        clamp_mss: false,
                        ..EngineConfig::default()
                    };
                    let mut plain = Engine::new(config, setup.tables(1, 2));
                    let [wire] = &send_all(&mut plain, &sent, Offload::NONE)[..] else {
                        panic!("one frame");
                    };
                    assert_eq!(plain.counters(Direction::Encap).mss_clamped, 0);
                    let (_, delivered) = receive(&mut two, wire);
                    assert_eq!(mss_of(&delivered), expected, "{setup:?} {family} decap");
                }
            }
        }
    }
}

#[test]
fn two_nodes_that_point_a_prefix_at_each_other_carry_a_packet_once() {
    for setup in Setup::all() {
        for family in FAMILIES {
            let node = |me: u8, other: u8| {
                let mut writer = setup.writer(me, 2);
                let tables = writer.publish();
                let peer = tables
                    .peer_by_underlay(underlay(Family::V4, other))
                    .unwrap();
                let hop = warren_core::NextHop::Tunnel(setup.tunnel(me, other, peer));
                let hop = writer.next_hop(hop).unwrap();
                for prefix in ["10.42.99.0/24", "fd42:0:0:63::/64"] {
                    writer.insert(prefix.parse().unwrap(), hop).unwrap();
                }
                Engine::new(EngineConfig::default(), writer.publish())
            };
            let (mut one, mut two) = (node(1, 2), node(2, 1));
            let packet = Udp::between(family, 1, 99).packet(b"round and round");
            let wire = common::send(&mut one, &packet);
            let (verdict, _) = receive(&mut two, &wire);
            assert_eq!(verdict, Verdict::Drop(DropReason::TunnelLoop));
            assert_eq!(two.counters(Direction::Encap).received.packets, 0);
        }
    }
}
