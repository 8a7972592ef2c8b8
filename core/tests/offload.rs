//! A million random virtio headers before packets that are sound, damaged or cut short: no panic,
//! and whatever is accepted lies within the packet and is split without a loss.
//!
//! `WARREN_OFFLOAD_HEADERS` changes their number, `WARREN_OFFLOAD_SEED` the seed.
#![cfg(test)]

mod common;

use common::{FAMILIES, Random, Setup, Udp, host};
use etherparse::{PacketBuilder, TcpOptionElement};
use std::net::IpAddr;
use warren_core::batch::{Batch, Link};
use warren_core::encap::EncapsulationKind;
use warren_core::gso::{MAX_HEADER_OCTETS, Merge, Splitter};
use warren_core::units::{Family, Time};
use warren_core::wire::VirtioNetHeader;
use warren_core::{Direction, Verdict};

const HEADERS: u64 = 1_000_000;

#[test]
fn a_million_virtio_headers_reach_nothing_outside_their_packet() {
    let mut random = Random(number("WARREN_OFFLOAD_SEED", 0x0ff1));
    let headers = number("WARREN_OFFLOAD_HEADERS", HEADERS);
    let packets = packets();
    let setup = Setup::new(EncapsulationKind::Vxlan, Family::V4);
    let mut engine = setup.engine(1, 2);
    let mut batch = Batch::new(64, 4096);
    let (mut accepted, mut split, mut segments, mut entered) = (0_u64, 0_u64, 0_u64, 0_u64);
    for _ in 0..headers {
        let mut octets = header(&mut random).to_vec();
        octets.extend_from_slice(&packets[random.below(packets.len())]);
        for _ in 0..random.below(3) {
            let place = random.below(octets.len().min(90));
            octets[place] ^= 1 << random.below(8);
        }
        if random.once_in(8) {
            octets.truncate(random.below(octets.len() + 1));
        }
        let Ok((offload, packet)) = VirtioNetHeader::parse(&octets) else {
            continue;
        };
        accepted += 1;
        if let Some(partial) = offload.partial_checksum {
            assert!(partial.complete(&mut packet.to_vec()));
        }
        if let Some((kind, size)) = offload.segments
            && let Ok(splitter) = Splitter::new(packet, kind, size)
        {
            split += 1;
            segments += check(&splitter, packet, usize::from(size));
        }
        if packet.len() <= 4096 {
            if batch.is_full() {
                entered += flush(&mut engine, &mut batch);
            }
            if let Some(mut frame) = batch.push(packet, Link::LOCAL) {
                frame.set_offload(offload);
            }
        }
    }
    entered += flush(&mut engine, &mut batch);
    let counters = engine.counters(Direction::Encap);
    assert_eq!(counters.received.packets, entered);
    eprintln!("{accepted} of {headers} accepted, {split} split into {segments}");
    assert!(accepted > headers / 20 && split > headers / 100);
}

/// Checks that the segments hold the payload, all of it and nothing else; returns how many.
fn check(splitter: &Splitter<'_>, packet: &[u8], size: usize) -> u64 {
    let mut next = splitter.header_octets();
    let mut head = [0; MAX_HEADER_OCTETS];
    let count = splitter.count();
    let mut merge = Merge::new();
    for index in 0..count {
        let payload = splitter.payload(index);
        assert_eq!(payload.start, next);
        assert!(payload.len() <= size && payload.end <= packet.len());
        next = payload.end;
        // The ends show all that differs; the middle of a long row is more of the same.
        if index < 4 || index + 4 > count {
            splitter
                .write_header(index, &mut head)
                .expect("a segment that exists");
            let mut segment = head[..splitter.header_octets()].to_vec();
            segment.extend_from_slice(&packet[payload]);
            merge.offer(&segment);
        }
    }
    assert!(splitter.write_header(count, &mut head).is_none());
    count as u64
}

fn flush(engine: &mut warren_core::Engine, batch: &mut Batch) -> u64 {
    engine.encap(batch, Time::ZERO);
    assert!(
        batch
            .frames()
            .all(|frame| frame.verdict != Verdict::Undecided)
    );
    // Fragments that followed their packets did not enter.
    let entered = batch.len().min(64) as u64;
    batch.clear();
    entered
}

/// A header that is at times right, often almost, and else anything.
fn header(random: &mut Random) -> [u8; 10] {
    let mut header = [0; 10];
    if random.once_in(4) {
        header.fill_with(|| random.octet());
        return header;
    }
    header[0] = [1, 1, 1, 0, 2][random.below(5)];
    header[1] = [0, 1, 4, 5, 0x81, 3][random.below(6)];
    let size = [1, 100, 536, 1398, random.word()][random.below(5)];
    let start = [20, 20, 40, 24, random.word()][random.below(5)];
    let offset = [16, 6, random.word()][random.below(3)];
    for (place, word) in [(2, random.word()), (4, size), (6, start), (8, offset)] {
        header[place..place + 2].copy_from_slice(&word.to_ne_bytes());
    }
    header
}

fn packets() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for family in FAMILIES {
        for size in [0, 1, 700, 3000] {
            let payload = vec![0x5a; size];
            packets.push(Udp::between(family, 1, 2).packet(&payload));
            let (source, destination) = (host(family, 1, 7), host(family, 2, 9));
            let builder = match (source, destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
                }
                _ => panic!("one family"),
            };
            let mut octets = Vec::new();
            builder
                .tcp(4000, 80, 1, 1000)
                .ack(7)
                .psh()
                .options(&[
                    TcpOptionElement::Noop,
                    TcpOptionElement::Noop,
                    TcpOptionElement::Timestamp(1, 2),
                ])
                .unwrap()
                .write(&mut octets, &payload)
                .unwrap();
            packets.push(octets);
        }
    }
    packets
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}
