//! The whole overlay without a file descriptor: two engines on a simulated wire, in virtual time,
//! that loses, reorders and duplicates packets and has an MTU.
#![cfg(test)]

mod common;

use std::collections::BTreeMap;

use common::{FAMILIES, Random, Setup, Udp, host, one_hop_on};
use warren_core::batch::{Batch, Link};
use warren_core::encap::{EncapsulationKind, outer};
use warren_core::packet::Packet;
use warren_core::units::{Family, Time};
use warren_core::{Direction, DropReason, Engine, EngineConfig, Verdict};

const MILLISECOND: u64 = 1_000_000;

#[test]
fn a_perfect_wire_loses_nothing_and_keeps_the_order() {
    for setup in Setup::all() {
        let mut pair = Pair::new(&setup, Wire::perfect());
        let sent = pair.talk(400);
        for side in 0..2 {
            assert_eq!(pair.heard[side], sent[1 - side], "{setup:?}");
        }
        pair.check_books();
    }
}

#[test]
fn a_bad_wire_is_passed_on_as_it_is() {
    for (seed, setup) in (1..).zip(Setup::all()) {
        let wire = Wire {
            random: Random(seed),
            loss_permille: 30,
            duplicate_permille: 30,
            jitter_millis: 20,
            ..Wire::perfect()
        };
        let mut pair = Pair::new(&setup, wire);
        let sent = pair.talk(1000);
        for side in 0..2 {
            let heard = count(&pair.heard[side]);
            // What was heard was sent, octet for octet; what is missing or double, the wire made so.
            let sent = count(&sent[1 - side]);
            assert!(heard.keys().all(|packet| sent.contains_key(packet)));
            assert_ne!(pair.heard[side].len(), 0);
        }
        let heard: usize = pair.heard.iter().map(Vec::len).sum();
        assert_eq!(heard, 2000 - pair.wire.lost + pair.wire.duplicated);
        assert!(pair.wire.lost > 20 && pair.wire.duplicated > 20);
        pair.check_books();
    }
}

#[test]
fn an_underlay_with_a_smaller_mtu_loses_until_the_tables_know() {
    for underlay in FAMILIES {
        let setup = Setup::new(EncapsulationKind::Vxlan, underlay);
        let wire = Wire {
            mtu: 1400,
            ..Wire::perfect()
        };
        let mut pair = Pair::new(&setup, wire);
        let full = usize::from(setup.mtu().octets());
        let packet = |family: Family, octets: usize| {
            let headers = usize::from(family.header_octets()) + 8;
            Udp::between(family, 1, 2).packet(&vec![1; octets - headers])
        };
        for family in FAMILIES {
            pair.send(0, &[packet(family, full)]);
        }
        pair.run();
        assert_eq!((pair.wire.too_big, pair.heard[1].len()), (2, 0));

        // The control plane learns it; the sender is told and obeys.
        let lowered = Setup {
            underlay_mtu: 1400,
            ..setup
        };
        for (engine, me) in pair.engines.iter_mut().zip(1..) {
            engine.set_tables(lowered.tables(me, 2));
        }
        for family in FAMILIES {
            let replies = pair.send(0, &[packet(family, full)]);
            assert_eq!(replies.len(), 1);
            let told = match family {
                Family::V4 => usize::from(u16::from_be_bytes([replies[0][26], replies[0][27]])),
                Family::V6 => usize::from(u16::from_be_bytes([replies[0][46], replies[0][47]])),
            };
            assert_eq!(told, usize::from(lowered.mtu().octets()));
            pair.send(0, &[packet(family, told)]);
        }
        pair.run();
        assert_eq!((pair.wire.too_big, pair.heard[1].len()), (2, 2));
        pair.check_books();
    }
}

#[test]
fn the_encapsulation_changes_under_traffic_without_a_loss() {
    let kinds = [
        EncapsulationKind::Vxlan,
        EncapsulationKind::Ipip,
        EncapsulationKind::Fou,
        EncapsulationKind::Geneve,
        EncapsulationKind::Gue,
        EncapsulationKind::VxlanGpe,
        EncapsulationKind::Vxlan,
    ];
    let setup = Setup::new(kinds[0], Family::V4);
    let wire = Wire {
        jitter_millis: 5,
        ..Wire::perfect()
    };
    let mut pair = Pair::new(&setup, wire);
    let mut sent = [Vec::new(), Vec::new()];
    for kind in kinds {
        // One node after the other, with packets under way.
        for me in [1, 2] {
            let tables = Setup { kind, ..setup }.tables(me, 2);
            pair.engines[usize::from(me - 1)].set_tables(tables);
            for (all, new) in sent.iter_mut().zip(pair.talk_on(100)) {
                all.extend(new);
            }
        }
    }
    pair.run();
    for side in 0..2 {
        assert_eq!(count(&pair.heard[side]), count(&sent[1 - side]));
    }
    let received = pair.engines[1].peer_counters()[0];
    for kind in EncapsulationKind::ALL {
        assert!(received.received_by(kind).packets > 0, "{kind}");
    }
    pair.check_books();
}

#[test]
fn two_nodes_that_point_a_prefix_at_each_other_do_not_circle() {
    let setup = Setup::new(EncapsulationKind::Vxlan, Family::V4);
    let mut pair = Pair::new(&setup, Wire::perfect());
    for (me, other) in [(1, 2), (2, 1)] {
        let mut writer = setup.writer(me, 2);
        let peer = writer
            .publish()
            .peer_by_underlay(common::underlay(Family::V4, other))
            .unwrap();
        let tunnel = writer
            .next_hop(warren_core::NextHop::Tunnel(setup.tunnel(me, other, peer)))
            .unwrap();
        writer
            .insert("10.42.77.0/24".parse().unwrap(), tunnel)
            .unwrap();
        pair.engines[usize::from(me - 1)].set_tables(writer.publish());
    }
    let packet = Udp {
        destination: host(Family::V4, 77, 1),
        ..Udp::between(Family::V4, 1, 2)
    };
    pair.send(0, &[packet.packet(b"round and round")]);
    pair.run();
    assert_eq!(
        pair.wire.carried, 1,
        "a node is no transit: one packet, one way"
    );
    let dropped = pair.engines[1].counters(Direction::Decap);
    assert_eq!(dropped.drops(DropReason::TunnelLoop), 1);
}

/// Two engines and what each was heard to deliver.
struct Pair {
    engines: [Engine; 2],
    wire: Wire,
    now: u64,
    heard: [Vec<Vec<u8>>; 2],
    number: u32,
}

impl Pair {
    fn new(setup: &Setup, wire: Wire) -> Self {
        let config = EngineConfig {
            seed: 7,
            ..EngineConfig::default()
        };
        Self {
            engines: [1, 2].map(|me| Engine::new(config, setup.tables(me, 2))),
            wire,
            now: 0,
            heard: Default::default(),
            number: 0,
        }
    }

    /// Sends `packets` numbered packets each way, and lets all arrive; gives what each side is to
    /// be heard saying.
    fn talk(&mut self, packets: usize) -> [Vec<Vec<u8>>; 2] {
        let said = self.talk_on(packets);
        self.run();
        said
    }

    /// The same with packets left under way.
    fn talk_on(&mut self, packets: usize) -> [Vec<Vec<u8>>; 2] {
        let mut said = [Vec::new(), Vec::new()];
        while said[0].len() < packets {
            for (side, (from, to)) in [(1, 2), (2, 1)].into_iter().enumerate() {
                let burst: Vec<_> = (0..(packets - said[side].len()).min(70))
                    .map(|_| self.numbered(from, to))
                    .collect();
                assert!(self.send(side, &burst).is_empty());
                said[side].extend(burst.iter().map(|packet| one_hop_on(packet)));
            }
            self.now += MILLISECOND;
            self.arrive();
        }
        said
    }

    fn numbered(&mut self, from: u8, to: u8) -> Vec<u8> {
        self.number += 1;
        let number = self.number.to_be_bytes();
        let family = FAMILIES[usize::from(number[3] & 1)];
        let payload = number.repeat(1 + usize::from(number[3]));
        let flow = Udp {
            ports: (u16::from(number[3] % 16), 53),
            ..Udp::between(family, from, to)
        };
        flow.packet(&payload)
    }

    /// Gives packets to a side's engine and puts on the wire what it transmits; gives its replies.
    fn send(&mut self, side: usize, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut batch = Batch::new(packets.len(), 2000);
        for packet in packets {
            batch.push(packet, Link::LOCAL).unwrap();
        }
        self.engines[side].encap(&mut batch, Time::from_nanos(self.now));
        let mut replies = Vec::new();
        for index in 0..batch.len() {
            let mut frame = batch.frame_mut(index).unwrap();
            match frame.verdict() {
                Verdict::Transmit => {
                    outer::push(&mut frame).unwrap();
                    self.wire.carry(self.now, 1 - side, frame.bytes());
                }
                Verdict::Reply(_) => replies.push(frame.bytes().to_vec()),
                verdict @ (Verdict::Undecided
                | Verdict::Deliver
                | Verdict::Probe
                | Verdict::Direct
                | Verdict::Drop(_)) => {
                    panic!("{verdict:?} {:?}", Packet::parse(frame.bytes()));
                }
            }
        }
        replies
    }

    /// Lets everything arrive that is under way.
    fn run(&mut self) {
        while let Some((&(time, _), _)) = self.wire.under_way.first_key_value() {
            self.now = time;
            self.arrive();
        }
    }

    fn arrive(&mut self) {
        let later = self.wire.under_way.split_off(&(self.now + 1, 0));
        let arrived = std::mem::replace(&mut self.wire.under_way, later);
        let mut batches = [(); 2].map(|()| Batch::new(arrived.len(), 2000));
        for (to, octets) in arrived.values() {
            let mut frame = batches[*to].push(octets, Link::LOCAL).unwrap();
            outer::pull(&mut frame).unwrap();
        }
        for (side, batch) in batches.iter_mut().enumerate() {
            self.engines[side].decap(batch, Time::from_nanos(self.now));
            let delivered = batch
                .frames()
                .filter(|frame| frame.verdict == Verdict::Deliver);
            self.heard[side].extend(delivered.map(|frame| frame.bytes.to_vec()));
        }
    }

    /// What one sent, the wire lost or doubled, the other received.
    fn check_books(&self) {
        let [one, two] = &self.engines;
        let mut sent = 0;
        let mut received = 0;
        for (from, to) in [(one, two), (two, one)] {
            let (encap, decap) = (
                from.counters(Direction::Encap),
                to.counters(Direction::Decap),
            );
            for counters in [encap, decap] {
                assert_eq!(
                    counters.received.packets,
                    counters.forwarded.packets + counters.dropped()
                );
            }
            assert_eq!(decap.dropped(), 0);
            assert_eq!(from.peer_counters()[0].sent(), encap.forwarded);
            assert_eq!(to.peer_counters()[0].received(), decap.forwarded);
            sent += encap.forwarded.packets;
            received += decap.received.packets;
        }
        let wire = &self.wire;
        let expected = sent + wire.duplicated as u64 - wire.lost as u64 - wire.too_big as u64;
        assert_eq!(received, expected);
    }
}

/// A wire of outer packets as octets.
struct Wire {
    random: Random,
    mtu: usize,
    loss_permille: usize,
    duplicate_permille: usize,
    /// Each packet takes one millisecond and up to so many more.
    jitter_millis: usize,
    /// By arrival time and number: to whom, and what.
    under_way: BTreeMap<(u64, usize), (usize, Vec<u8>)>,
    carried: usize,
    lost: usize,
    duplicated: usize,
    too_big: usize,
}

impl Wire {
    fn perfect() -> Self {
        Self {
            random: Random(1),
            mtu: 1500,
            loss_permille: 0,
            duplicate_permille: 0,
            jitter_millis: 0,
            under_way: BTreeMap::new(),
            carried: 0,
            lost: 0,
            duplicated: 0,
            too_big: 0,
        }
    }

    fn carry(&mut self, now: u64, to: usize, octets: &[u8]) {
        if octets.len() > self.mtu {
            self.too_big += 1;
            return;
        }
        if self.random.below(1000) < self.loss_permille {
            self.lost += 1;
            return;
        }
        let twice = self.random.below(1000) < self.duplicate_permille;
        self.duplicated += usize::from(twice);
        for _ in 0..=usize::from(twice) {
            self.carried += 1;
            let jitter = self.random.below(self.jitter_millis + 1) as u64;
            let arrival = now + (1 + jitter) * MILLISECOND;
            self.under_way
                .insert((arrival, self.carried), (to, octets.to_vec()));
        }
    }
}

fn count(packets: &[Vec<u8>]) -> BTreeMap<&[u8], usize> {
    let mut counts = BTreeMap::new();
    for packet in packets {
        *counts.entry(&packet[..]).or_insert(0) += 1;
    }
    counts
}
