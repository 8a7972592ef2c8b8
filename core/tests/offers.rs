//! What an engine offers is what it does: a flow is told when so many of its packets were seen, and
//! packets that are as it says leave and arrive as it says.
#![cfg(test)]

mod common;

use std::sync::Arc;

use common::{FAMILIES, Setup, Udp, encap, host};
use warren_core::batch::{Batch, Link};
use warren_core::encap::EncapsulationKind;
use warren_core::engine::{DeliveryOffer, DepartureOffer, Offer};
use warren_core::tables::{DscpMode, EcnMode};
use warren_core::units::{Family, Time};
use warren_core::{Engine, EngineConfig, Verdict};

const AFTER: u32 = 4;

#[test]
fn a_flow_is_offered_after_so_many_packets_and_at_every_doubling() {
    let (mut engine, _) = engines(&setup(DscpMode::Uniform, EcnMode::Normal), AFTER);
    let packet = Udp::between(Family::V4, 1, 2).packet(b"payload");
    let offered: Vec<usize> = (0..40)
        .filter(|_| {
            encap(&mut engine, &packet);
            engine.offers().count() == 1
        })
        .collect();
    // The first packet took the whole way, and is none of those.
    assert_eq!(offered, [4, 8, 16, 32]);
    let (mut engine, _) = engines(&setup(DscpMode::Uniform, EcnMode::Normal), 0);
    (0..40).for_each(|_| drop(encap(&mut engine, &packet)));
    assert_eq!(engine.offers().count(), 0);
}

#[test]
fn new_tables_take_back_what_was_offered_and_flows_are_offered_again() {
    let setup = setup(DscpMode::Uniform, EcnMode::Normal);
    let (mut engine, _) = engines(&setup, AFTER);
    let packet = Udp::between(Family::V4, 1, 2).packet(b"payload");
    (0..6).for_each(|_| drop(encap(&mut engine, &packet)));
    engine.set_tables(setup.tables(1, 2));
    assert_eq!(engine.offers().count(), 0);
    (0..6).for_each(|_| drop(encap(&mut engine, &packet)));
    assert_eq!(engine.offers().count(), 1);
}

#[test]
fn packets_of_an_offered_flow_leave_and_arrive_as_it_says_whatever_their_ecn_fields() {
    for (dscp, ecn) in [
        (DscpMode::Uniform, EcnMode::Normal),
        (DscpMode::Pipe(0x0a), EcnMode::Normal),
        (DscpMode::Uniform, EcnMode::Compatibility),
    ] {
        for family in FAMILIES {
            let (mut one, mut two) = engines(&setup(dscp, ecn), AFTER);
            let mut udp = Udp::between(family, 1, 2);
            udp.traffic_class = 0x48;
            for _ in 0..6 {
                let (_, link, octets) = encap(&mut one, &udp.packet(b"payload"));
                decap(&mut two, &octets, link.reversed());
            }
            let departure = departure(&mut one);
            let delivery = delivery(&mut two);
            assert_eq!(departure.flow, delivery.flow);
            assert_eq!((departure.dscp, delivery.dscp), (0x48, 0x48));
            assert_eq!(delivery.remote(), departure.link.local);
            for inner in 0..4_u8 {
                udp.traffic_class = 0x48 | inner;
                let packet = udp.packet(b"other octets");
                let (verdict, mut link, octets) = encap(&mut one, &packet);
                assert_eq!(verdict, Verdict::Transmit);
                let outer = departure.traffic_classes[usize::from(inner)];
                assert_eq!(link.traffic_class, outer, "{dscp:?} {ecn:?} {inner}");
                let told = Link {
                    traffic_class: outer,
                    ..departure.link
                };
                assert_eq!(link, told);
                let shim = departure.shim.octets();
                assert_eq!(octets[..shim.len()], *shim);
                assert_eq!(delivery.shim.octets(), shim);
                for marked in 0..4_u8 {
                    link.traffic_class = delivery.outer_dscp | marked;
                    let (verdict, delivered) = decap(&mut two, &octets, link.reversed());
                    let passes = delivery.passes >> (4 * inner + marked) & 1 == 1;
                    let is_as_it_came =
                        verdict == Verdict::Deliver && delivered == octets[shim.len()..];
                    // What does not pass may be told as an anomaly, and arrive the same.
                    assert!(!passes || is_as_it_came, "{dscp:?} {inner} {marked}");
                    let usual = inner == marked || marked == 0;
                    assert!(passes || !usual, "{dscp:?} {inner} {marked}");
                }
            }
        }
    }
}

#[test]
fn probes_of_paths_and_what_has_no_ports_are_not_offered() {
    let (mut one, mut two) = engines(&setup(DscpMode::Uniform, EcnMode::Normal), AFTER);
    let mut udp = Udp::between(Family::V4, 1, 2);
    udp.ports.1 = warren_core::probe::PORT;
    let mut echo = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 42, 1, 7], [10, 42, 2, 9], 64)
        .icmpv4_echo_request(1, 2)
        .write(&mut echo, b"payload")
        .unwrap();
    assert_eq!(host(Family::V4, 1, 7).to_string(), "10.42.1.7");
    for _ in 0..6 {
        for packet in [udp.packet(b"payload"), echo.clone()] {
            let (_, link, octets) = encap(&mut one, &packet);
            let (verdict, _) = decap(&mut two, &octets, link.reversed());
            assert_eq!(verdict, Verdict::Deliver);
        }
    }
    assert_eq!(two.offers().count(), 0);
    assert_eq!(one.offers().count(), 1, "a probe may leave as anything");
}

/// Runs one frame through `engine` from the underlay: verdict, octets.
fn decap(engine: &mut Engine, octets: &[u8], link: Link) -> (Verdict, Vec<u8>) {
    let mut batch = Batch::new(1, 65_535);
    batch.push(octets, link).unwrap();
    engine.decap(&mut batch, Time::ZERO);
    let frame = batch.frame(0).unwrap();
    (frame.verdict, frame.bytes.to_vec())
}

fn setup(dscp: DscpMode, ecn: EcnMode) -> Setup {
    Setup {
        dscp,
        ecn,
        ..Setup::new(EncapsulationKind::Vxlan, Family::V4)
    }
}

fn engines(setup: &Setup, offer_after: u32) -> (Engine, Engine) {
    let config = EngineConfig {
        offer_after,
        ..EngineConfig::default()
    };
    let engine = |me| Engine::new(config, Arc::clone(&setup.tables(me, 2)));
    (engine(1), engine(2))
}

fn departure(engine: &mut Engine) -> DepartureOffer {
    let mut offers = engine.offers();
    let Some(Offer::Departure(offer)) = offers.next() else {
        panic!("no departure was offered");
    };
    offer
}

fn delivery(engine: &mut Engine) -> DeliveryOffer {
    let mut offers = engine.offers();
    let Some(Offer::Delivery(offer)) = offers.next() else {
        panic!("no delivery was offered");
    };
    offer
}
