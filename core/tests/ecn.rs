//! ECN across a tunnel, over the octets of the wire: the 16 cases of RFC 6040 section 4.2 and the
//! 4 of section 4.1 in both modes, for every encapsulation, underlay and inner family; and DSCP by
//! RFC 2983.
#![cfg(test)]

mod common;

use common::{FAMILIES, Setup, Udp, one_hop_on, receive, send, with_traffic_class};
use warren_core::encap::EncapsulationKind;
use warren_core::tables::{DscpMode, EcnMode};
use warren_core::units::Family;
use warren_core::{Direction, DropReason, Verdict};

const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

/// Inner, outer, what comes out (`None`: dropped), whether it is to be reported: figure 4, row by
/// row.
const DECAP: [(u8, u8, Option<u8>, bool); 16] = [
    (NOT_ECT, NOT_ECT, Some(NOT_ECT), false),
    (NOT_ECT, ECT_0, Some(NOT_ECT), true),
    (NOT_ECT, ECT_1, Some(NOT_ECT), true),
    (NOT_ECT, CE, None, false),
    (ECT_0, NOT_ECT, Some(ECT_0), false),
    (ECT_0, ECT_0, Some(ECT_0), false),
    (ECT_0, ECT_1, Some(ECT_1), false),
    (ECT_0, CE, Some(CE), false),
    (ECT_1, NOT_ECT, Some(ECT_1), false),
    (ECT_1, ECT_0, Some(ECT_1), true),
    (ECT_1, ECT_1, Some(ECT_1), false),
    (ECT_1, CE, Some(CE), false),
    (CE, NOT_ECT, Some(CE), false),
    (CE, ECT_0, Some(CE), false),
    (CE, ECT_1, Some(CE), true),
    (CE, CE, Some(CE), false),
];

/// Inner, outer in normal mode, outer in compatibility mode: figure 3.
const ENCAP: [(u8, u8, u8); 4] = [
    (NOT_ECT, NOT_ECT, NOT_ECT),
    (ECT_0, ECT_0, NOT_ECT),
    (ECT_1, ECT_1, NOT_ECT),
    (CE, CE, NOT_ECT),
];

#[test]
fn sixteen_of_sixteen_decapsulation_cases_for_every_encapsulation() {
    let mut cases = 0;
    for setup in Setup::all() {
        for family in FAMILIES {
            for (inner, outer, result, reported) in DECAP {
                let (mut one, mut two) = (setup.engine(1, 2), setup.engine(2, 2));
                let inner_class = 0xb8 | inner;
                let packet = packet(family, inner_class);
                let wire = with_traffic_class(&send(&mut one, &packet), outer);
                let (verdict, delivered) = receive(&mut two, &wire);
                let label = format!("{setup:?} {family} inner {inner:02b} outer {outer:02b}");
                match result {
                    Some(result) => {
                        assert_eq!(verdict, Verdict::Deliver, "{label}");
                        // Written by etherparse: every octet, the IPv4 checksum too.
                        let expected = with_traffic_class(&one_hop_on(&packet), 0xb8 | result);
                        assert_eq!(delivered, expected, "{label}");
                        check_checksums(&delivered);
                    }
                    None => assert_eq!(
                        verdict,
                        Verdict::Drop(DropReason::EcnCongestionNotCapable),
                        "{label}"
                    ),
                }
                let anomalies = two.counters(Direction::Decap).ecn_anomalies;
                assert_eq!(anomalies, u64::from(reported), "{label}");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 16 * 6 * 2 * 2);
}

#[test]
fn four_of_four_encapsulation_cases_in_both_modes_for_every_encapsulation() {
    let mut cases = 0;
    for setup in Setup::all() {
        for family in FAMILIES {
            for (inner, normal, compatibility) in ENCAP {
                for (ecn, outer) in [
                    (EcnMode::Normal, normal),
                    (EcnMode::Compatibility, compatibility),
                ] {
                    let mut one = Setup { ecn, ..setup }.engine(1, 2);
                    let packet = packet(family, 0xb8 | inner);
                    let wire = send(&mut one, &packet);
                    assert_eq!(traffic_class(&wire), outer, "{setup:?} {family} {ecn:?}");
                    assert!(
                        wire.ends_with(&one_hop_on(&packet)),
                        "the inner packet keeps its bits"
                    );
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 4 * 2 * 6 * 2 * 2);
}

#[test]
fn dscp_stays_inside_in_pipe_mode_and_crosses_in_uniform_mode() {
    for family in FAMILIES {
        let base = Setup::new(EncapsulationKind::Vxlan, Family::V4);
        let packet = packet(family, 0xb8 | ECT_0);
        for (dscp, outer) in [
            (DscpMode::Pipe(0), ECT_0),
            (DscpMode::Pipe(0x0a), 0x28 | ECT_0),
            (DscpMode::Uniform, 0xb8 | ECT_0),
        ] {
            let setup = Setup { dscp, ..base };
            let (mut one, mut two) = (setup.engine(1, 2), setup.engine(2, 2));
            let wire = send(&mut one, &packet);
            assert_eq!(traffic_class(&wire), outer, "{dscp:?}");
            // A router on the way re-marks the outer header and experiences congestion.
            let (verdict, delivered) = receive(&mut two, &with_traffic_class(&wire, 0x48 | CE));
            let expected = match dscp {
                DscpMode::Pipe(_) | DscpMode::Map(_) => 0xb8 | CE,
                DscpMode::Uniform => 0x48 | CE,
            };
            assert_eq!(verdict, Verdict::Deliver);
            assert_eq!(
                delivered,
                with_traffic_class(&one_hop_on(&packet), expected),
                "{dscp:?}"
            );
        }
    }
}

fn packet(family: Family, traffic_class: u8) -> Vec<u8> {
    Udp {
        traffic_class,
        ..Udp::between(family, 1, 2)
    }
    .packet(b"congestion")
}

fn traffic_class(packet: &[u8]) -> u8 {
    match packet[0] >> 4 {
        4 => packet[1],
        _ => packet[0] << 4 | packet[1] >> 4,
    }
}

/// Sums IPv4 header and UDP again with etherparse.
fn check_checksums(packet: &[u8]) {
    let headers = etherparse::PacketHeaders::from_ip_slice(packet).unwrap();
    let Some(etherparse::TransportHeader::Udp(udp)) = &headers.transport else {
        panic!("a UDP packet");
    };
    let expected = match headers.net.as_ref().unwrap() {
        etherparse::NetHeaders::Ipv4(header, _) => {
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            udp.calc_checksum_ipv4(header, headers.payload.slice())
        }
        etherparse::NetHeaders::Ipv6(header, _) => {
            udp.calc_checksum_ipv6(header, headers.payload.slice())
        }
        etherparse::NetHeaders::Arp(_) => panic!("not ARP"),
    };
    assert_eq!(udp.checksum, expected.unwrap());
}
