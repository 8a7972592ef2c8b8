//! The flow cache and its slow twin: an engine that remembers flows and one that remembers none
//! see the same packets and the same changes of tables, and do the same, octet for octet.
//!
//! `WARREN_FLOWS_ROUNDS` changes the number of rounds, `WARREN_FLOWS_SEED` the seed.
#![cfg(test)]

mod common;

use std::net::IpAddr;
use std::sync::Arc;

use common::{FAMILIES, Random, Setup, Udp, host, underlay};
use etherparse::{PacketBuilder, TcpOptionElement};
use warren_core::batch::{Batch, FrameRef, Link};
use warren_core::encap::EncapsulationKind;
use warren_core::gso::{Offload, SegmentKind};
use warren_core::tables::{DscpMode, EcnMode, Tables};
use warren_core::units::{Family, Time};
use warren_core::{Direction, Engine, EngineConfig, Verdict};

const ROUNDS: usize = 4000;
const BATCH: usize = 64;
const LARGEST: usize = 4000;

#[test]
fn an_engine_that_remembers_flows_does_what_one_that_does_not_does() {
    let mut random = Random(number("WARREN_FLOWS_SEED", 0xf10e));
    let rounds = usize::try_from(number("WARREN_FLOWS_ROUNDS", ROUNDS as u64)).unwrap();
    let config = |flows| EngineConfig {
        seed: 11,
        flows,
        ..EngineConfig::default()
    };
    // Few entries, so that flows take each other's places.
    let (first, second) = (tables(1, &mut random), tables(2, &mut random));
    let mut senders = [64, 0].map(|flows| Engine::new(config(flows), Arc::clone(&first)));
    let mut receivers = [64, 0].map(|flows| Engine::new(config(flows), Arc::clone(&second)));
    let mut batches = [(), ()].map(|()| Batch::with_largest(BATCH, LARGEST, BATCH * 2));
    let (mut sent, mut delivered) = (0_u64, 0_u64);
    for round in 0..rounds {
        let now = Time::from_nanos(round as u64 * 1_000_000);
        if random.once_in(40) {
            let new = tables(1, &mut random);
            senders
                .iter_mut()
                .for_each(|e| e.set_tables(Arc::clone(&new)));
        }
        if random.once_in(40) {
            let new = tables(2, &mut random);
            receivers
                .iter_mut()
                .for_each(|e| e.set_tables(Arc::clone(&new)));
        }
        let wanted = 1 + random.below(BATCH);
        let mut packets = Vec::new();
        while packets.len() < wanted {
            let (octets, offload) = packet(&mut random);
            for _ in 0..[0, 0, 1, 5][random.below(4)].min(wanted - packets.len() - 1) {
                packets.push((sibling(&octets, &mut random), offload));
            }
            packets.push((octets, offload));
        }
        for (engine, batch) in senders.iter_mut().zip(&mut batches) {
            batch.clear();
            for (octets, offload) in &packets {
                batch
                    .push(octets, Link::LOCAL)
                    .unwrap()
                    .set_offload(*offload);
            }
            engine.encap(batch, now);
        }
        assert_same(&batches);

        // On the way: marks, damage, strangers, frames that came by another port.
        let outer: Vec<(Vec<u8>, Link)> = batches[0]
            .frames()
            .filter(|frame| frame.verdict == Verdict::Transmit)
            .take(BATCH)
            .map(|frame| {
                let (mut octets, mut link) = (frame.bytes.to_vec(), frame.link.reversed());
                if random.once_in(3) {
                    link.traffic_class ^= random.octet() & 3;
                }
                if random.once_in(20) {
                    link.remote = underlay(Family::of(link.remote), random.octet() & 3);
                }
                if random.once_in(5) {
                    let place = random.below(octets.len().min(80));
                    octets[place] ^= 1 << random.below(8);
                }
                (octets, link)
            })
            .collect();
        sent += outer.len() as u64;
        for (engine, batch) in receivers.iter_mut().zip(&mut batches) {
            batch.clear();
            for (octets, link) in &outer {
                batch.push(octets, *link).unwrap();
            }
            engine.decap(batch, now);
        }
        assert_same(&batches);
        delivered += batches[0]
            .frames()
            .filter(|frame| frame.verdict == Verdict::Deliver)
            .count() as u64;
    }
    for [cached, plain] in [&senders, &receivers] {
        for direction in [Direction::Encap, Direction::Decap] {
            assert_eq!(
                format!("{:?}", cached.counters(direction)),
                format!("{:?}", plain.counters(direction))
            );
        }
        assert_eq!(cached.peer_counters(), plain.peer_counters());
        assert_eq!(plain.flow_hits(), 0);
    }
    let hits = [&senders, &receivers].map(|[cached, _]| cached.flow_hits());
    eprintln!("{sent} sent, {delivered} delivered, known flows: {hits:?}");
    assert!(
        hits.iter().all(|hits| *hits > sent / 10),
        "{hits:?} of {sent}"
    );
    assert!(delivered > sent / 4);
}

#[test]
fn only_packets_that_needed_no_lookup_count_as_known() {
    let setup = Setup::new(EncapsulationKind::Vxlan, Family::V4);
    let mut engine = setup.engine(1, 2);
    for family in FAMILIES {
        let flow = Udp::between(family, 1, 2);
        let before = engine.flow_hits();
        let mut hits = Vec::new();
        // Too large for the path: of a known flow, but it has to take the whole way.
        for octets in [100, 100, 2000, 100] {
            common::encap(&mut engine, &flow.packet(&vec![0; octets]));
            hits.push(engine.flow_hits() - before);
        }
        assert_eq!(hits, [0, 1, 1, 2]);
    }
}

fn assert_same([cached, plain]: &[Batch; 2]) {
    assert_eq!(cached.len(), plain.len());
    let all = |frame: FrameRef<'_>| {
        (
            frame.verdict,
            *frame.link,
            frame.offload,
            frame.pushed,
            frame.bytes.to_vec(),
        )
    };
    for (cached, plain) in cached.frames().zip(plain.frames()) {
        assert_eq!(all(cached), all(plain));
    }
}

/// Some tables of node `me`, a little different each time.
fn tables(me: u8, random: &mut Random) -> Arc<Tables> {
    let kind = EncapsulationKind::ALL[random.below(EncapsulationKind::ALL.len())];
    let setup = Setup {
        underlay_mtu: [1300, 1400, 1500][random.below(3)],
        dscp: [DscpMode::Pipe(0), DscpMode::Uniform][random.below(2)],
        ecn: [EcnMode::Normal, EcnMode::Compatibility][random.below(2)],
        ..Setup::new(kind, FAMILIES[random.below(2)])
    };
    setup.tables(me, 2 + u8::from(random.once_in(2)))
}

/// A packet of one of some dozens of flows, with something unusual about it at times.
fn packet(random: &mut Random) -> (Vec<u8>, Offload) {
    let family = FAMILIES[random.below(2)];
    let (from, to) = (
        1 + u8::from(random.once_in(30)),
        2 + u8::from(random.once_in(4)),
    );
    let mut size = [0, 8, 512, 1200][random.below(4)];
    if random.once_in(10) {
        size = 1150 + random.below(400);
    }
    let payload = vec![0x5a; size];
    let mut octets = if random.once_in(3) {
        tcp(family, from, to, &payload, random)
    } else {
        let mut udp = Udp::between(family, from, to);
        udp.ports = (
            4000 + random.word() % 6,
            [5001, 53, 8472, 6080][random.below(4)],
        );
        udp.packet(&payload)
    };
    if random.once_in(8) {
        octets = common::with_traffic_class(&octets, random.octet());
    }
    if random.once_in(6) {
        let ttl = random.octet() % 3;
        octets = common::rewrite(&octets, |v4| v4.time_to_live = ttl, |v6| v6.hop_limit = ttl);
    }
    if random.once_in(4) {
        octets = common::rewrite(&octets, |v4| v4.dont_fragment ^= true, |_| ());
    }
    if random.once_in(15) {
        octets = common::rewrite(&octets, |v4| v4.more_fragments = true, |_| ());
    }
    if random.once_in(10) {
        let place = random.below(octets.len().min(60));
        octets[place] ^= 1 << random.below(8);
    }
    let mut offload = Offload::NONE;
    if random.once_in(5) {
        let kind = [SegmentKind::Tcp, SegmentKind::Udp][random.below(2)];
        offload.segments = Some((kind, 100 + random.word() % 1500));
    }
    (octets, offload)
}

/// A packet that may be taken for the next one of the same train, and at times is.
fn sibling(octets: &[u8], random: &mut Random) -> Vec<u8> {
    let mut octets = octets.to_vec();
    let header = octets.len().min(48);
    let identification = if octets[0] >> 4 == 6 { 3 } else { 4 };
    match random.below(4) {
        // The identification of IPv4, or the flow label.
        0 => octets[identification] ^= random.octet() & 0xf,
        1 | 2 => octets[random.below(header)] ^= 1 << random.below(8),
        _ => return octets,
    }
    if octets[0] == 0x45 && !random.once_in(8) {
        octets[10..12].fill(0);
        let sum = warren_core::wire::checksum::of(&octets[..20]);
        octets[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    octets
}

fn tcp(family: Family, from: u8, to: u8, payload: &[u8], random: &mut Random) -> Vec<u8> {
    let (source, destination) = (host(family, from, 7), host(family, to, 9));
    let builder = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
        }
        _ => panic!("one family"),
    };
    let mut tcp = builder.tcp(4000 + random.word() % 4, 80, 1, 1000).ack(7);
    if random.once_in(4) {
        tcp = tcp
            .syn()
            .options(&[TcpOptionElement::MaximumSegmentSize(1460)])
            .unwrap();
    }
    let mut octets = Vec::new();
    tcp.write(&mut octets, payload).unwrap();
    octets
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}
