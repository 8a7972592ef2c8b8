//! Nodes for the tests of the engine: numbered, each with a prefix of both families, on a wire of
//! outer packets as octets.
//!
//! Node `n` has 10.42.n.0/24 and fd42:0:0:n::/64, the underlay addresses 192.0.2.n and
//! 2001:db8::n, and the VTEP address 02:00:00:00:00:n. All nodes receive everything.
#![cfg(test)]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary has a copy and uses a part of it"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use etherparse::PacketBuilder;
use warren_core::batch::Link;
use warren_core::encap::{Encapsulation, EncapsulationKind, outer};
use warren_core::tables::{DscpMode, EcnMode, Local, Peer, Receive};
use warren_core::units::{Family, MacAddr, Mtu, Time, Vni};
use warren_core::{Batch, Engine, EngineConfig, NextHop, TableWriter, Tables, Tunnel, Verdict};

pub const VXLAN_PORT: u16 = 8472;
pub const VXLAN_GPE_PORT: u16 = 4790;
pub const GENEVE_PORT: u16 = 6081;
pub const FOU_PORT: u16 = 5555;
pub const GUE_PORT: u16 = 6080;
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// How the nodes of a test are connected.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub kind: EncapsulationKind,
    pub underlay: Family,
    pub underlay_mtu: u16,
    pub dscp: DscpMode,
    pub ecn: EcnMode,
}

impl Setup {
    pub fn new(kind: EncapsulationKind, underlay: Family) -> Self {
        Self {
            kind,
            underlay,
            underlay_mtu: 1500,
            dscp: DscpMode::Pipe(0),
            ecn: EcnMode::Normal,
        }
    }

    /// Every encapsulation over both underlays.
    pub fn all() -> impl Iterator<Item = Self> {
        EncapsulationKind::ALL
            .into_iter()
            .flat_map(|kind| FAMILIES.map(|underlay| Self::new(kind, underlay)))
    }

    pub fn encapsulation(&self, to: u8) -> Encapsulation {
        let (vni, mac) = (vni(), mac(to));
        match self.kind {
            EncapsulationKind::Vxlan => Encapsulation::Vxlan {
                vni,
                port: VXLAN_PORT,
                mac,
            },
            EncapsulationKind::Geneve => Encapsulation::Geneve {
                vni,
                port: GENEVE_PORT,
                mac,
            },
            EncapsulationKind::VxlanGpe => Encapsulation::VxlanGpe {
                vni,
                port: VXLAN_GPE_PORT,
            },
            EncapsulationKind::Ipip => Encapsulation::Ipip,
            EncapsulationKind::Fou => Encapsulation::Fou { port: FOU_PORT },
            EncapsulationKind::Gue => Encapsulation::Gue { port: GUE_PORT },
        }
    }

    /// What is left for the inner packet.
    pub fn mtu(&self) -> Mtu {
        self.encapsulation(1)
            .inner_mtu(self.underlay, Mtu::new(self.underlay_mtu))
    }

    pub fn tunnel(&self, from: u8, to: u8, peer: warren_core::tables::PeerId) -> Tunnel {
        Tunnel {
            peer,
            local: underlay(self.underlay, from),
            remote: underlay(self.underlay, to),
            encapsulation: self.encapsulation(to),
            mtu: self.mtu(),
            hop_limit: 64,
            dscp: self.dscp,
            ecn: self.ecn,
        }
    }

    /// The tables of node `me` among nodes 1..=`nodes`, not yet published.
    pub fn writer(&self, me: u8, nodes: u8) -> TableWriter {
        let mut writer = TableWriter::new(local(me));
        let own = writer.next_hop(NextHop::Local).unwrap();
        for node in 1..=nodes {
            let next_hop = if node == me {
                own
            } else {
                let peer = writer
                    .add_peer(Peer {
                        name: format!("node-{node}"),
                        underlay: FAMILIES.map(|family| underlay(family, node)).into(),
                        dscp: self.dscp,
                    })
                    .unwrap();
                writer
                    .next_hop(NextHop::Tunnel(self.tunnel(me, node, peer)))
                    .unwrap()
            };
            for prefix in [
                format!("10.42.{node}.0/24"),
                format!("fd42:0:0:{node:x}::/64"),
            ] {
                writer.insert(prefix.parse().unwrap(), next_hop).unwrap();
            }
        }
        writer
    }

    pub fn tables(&self, me: u8, nodes: u8) -> Arc<Tables> {
        self.writer(me, nodes).publish()
    }

    pub fn engine(&self, me: u8, nodes: u8) -> Engine {
        Engine::new(EngineConfig::default(), self.tables(me, nodes))
    }
}

pub fn local(me: u8) -> Local {
    Local {
        addresses: FAMILIES.map(|family| host(family, me, 1)).into(),
        underlay: FAMILIES.map(|family| underlay(family, me)).into(),
        vtep_mac: mac(me),
        receive: Receive {
            vxlan: vec![VXLAN_PORT],
            vxlan_gpe: vec![VXLAN_GPE_PORT],
            geneve: vec![GENEVE_PORT],
            fou_gue: vec![FOU_PORT, GUE_PORT],
            ipip: true,
            vnis: vec![vni()],
            strict_vxlan: false,
        },
    }
}

pub fn vni() -> Vni {
    Vni::new(1).unwrap()
}

pub fn mac(node: u8) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 0, node])
}

/// An address inside the overlay.
pub fn host(family: Family, node: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 42, node, host).into(),
        Family::V6 => Ipv6Addr::new(0xfd42, 0, 0, node.into(), 0, 0, 0, host.into()).into(),
    }
}

pub fn underlay(family: Family, node: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, node).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, node.into()).into(),
    }
}

/// What a UDP packet of a test is.
#[derive(Clone, Copy, Debug)]
pub struct Udp {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ports: (u16, u16),
    pub ttl: u8,
    pub traffic_class: u8,
}

impl Udp {
    pub fn between(family: Family, from: u8, to: u8) -> Self {
        Self {
            source: host(family, from, 7),
            destination: host(family, to, 9),
            ports: (4000, 5001),
            ttl: 64,
            traffic_class: 0,
        }
    }

    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = etherparse::Ipv4Header::new(
                    0,
                    self.ttl,
                    etherparse::IpNumber::UDP,
                    source.octets(),
                    destination.octets(),
                )
                .unwrap();
                header.dscp = (self.traffic_class >> 2).try_into().unwrap();
                header.ecn = (self.traffic_class & 3).try_into().unwrap();
                PacketBuilder::ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                PacketBuilder::ip(etherparse::IpHeaders::Ipv6(
                    etherparse::Ipv6Header {
                        traffic_class: self.traffic_class,
                        hop_limit: self.ttl,
                        source: source.octets(),
                        destination: destination.octets(),
                        ..Default::default()
                    },
                    Default::default(),
                ))
            }
            _ => panic!("one family"),
        };
        builder
            .udp(self.ports.0, self.ports.1)
            .write(&mut packet, payload)
            .unwrap();
        packet
    }
}

/// Runs one frame through `engine` towards the underlay: verdict, link, octets.
pub fn encap(engine: &mut Engine, packet: &[u8]) -> (Verdict, Link, Vec<u8>) {
    let mut batch = Batch::new(1, 65_535);
    batch.push(packet, Link::LOCAL).unwrap();
    engine.encap(&mut batch, Time::ZERO);
    let frame = batch.frame(0).unwrap();
    (frame.verdict, *frame.link, frame.bytes.to_vec())
}

/// Encapsulates one packet and gives the whole outer packet.
pub fn send(engine: &mut Engine, packet: &[u8]) -> Vec<u8> {
    let mut batch = Batch::new(1, 65_535);
    batch.push(packet, Link::LOCAL).unwrap();
    engine.encap(&mut batch, Time::ZERO);
    let mut frame = batch.frame_mut(0).unwrap();
    assert_eq!(frame.verdict(), Verdict::Transmit);
    outer::push(&mut frame).unwrap();
    frame.bytes().to_vec()
}

/// Decapsulates one whole outer packet: verdict and octets.
pub fn receive(engine: &mut Engine, wire: &[u8]) -> (Verdict, Vec<u8>) {
    let mut batch = Batch::new(1, 65_535);
    let mut frame = batch.push(wire, Link::LOCAL).unwrap();
    outer::pull(&mut frame).unwrap();
    engine.decap(&mut batch, Time::ZERO);
    let frame = batch.frame(0).unwrap();
    (frame.verdict, frame.bytes.to_vec())
}

/// The packet behind one hop: its TTL is one less and its IPv4 checksum right.
pub fn one_hop_on(packet: &[u8]) -> Vec<u8> {
    rewrite(packet, |v4| v4.time_to_live -= 1, |v6| v6.hop_limit -= 1)
}

/// The packet with another traffic class.
pub fn with_traffic_class(packet: &[u8], traffic_class: u8) -> Vec<u8> {
    rewrite(
        packet,
        |v4| {
            v4.dscp = (traffic_class >> 2).try_into().unwrap();
            v4.ecn = (traffic_class & 3).try_into().unwrap();
        },
        |v6| v6.traffic_class = traffic_class,
    )
}

/// The packet with its IP header read, changed and written again by etherparse.
pub fn rewrite(
    packet: &[u8],
    change_v4: impl FnOnce(&mut etherparse::Ipv4Header),
    change_v6: impl FnOnce(&mut etherparse::Ipv6Header),
) -> Vec<u8> {
    let mut octets = Vec::new();
    if packet[0] >> 4 == 4 {
        let (mut header, rest) = etherparse::Ipv4Header::from_slice(packet).unwrap();
        change_v4(&mut header);
        header.header_checksum = header.calc_header_checksum();
        header.write(&mut octets).unwrap();
        octets.extend_from_slice(rest);
    } else {
        let (mut header, rest) = etherparse::Ipv6Header::from_slice(packet).unwrap();
        change_v6(&mut header);
        header.write(&mut octets).unwrap();
        octets.extend_from_slice(rest);
    }
    octets
}

/// A small generator of numbers that look random: splitmix64.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    pub fn octet(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    pub fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.octet(), self.octet()])
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}
