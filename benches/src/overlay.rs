//! Two nodes of an overlay as engines, and the packets that go from one to the other.
//!
//! The first node owns 10.0.0.0/16 and fd00::/48. The second owns everything in 10.1.0.0/16 and
//! above, and fd00:0:1::/48 and above, cut into as many prefixes as the table is to have routes: a
//! /24 or /64 each. Packets are UDP, each with a source, a destination and ports of its own.
#![allow(clippy::cast_possible_truncation, reason = "fixtures of known sizes")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use etherparse::PacketBuilder;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_core::encap::Encapsulation;
use warren_core::tables::{DscpMode, EcnMode, Local, Peer, Receive};
use warren_core::units::{Family, MacAddr, Mtu, Time, Vni};
use warren_core::{
    Batch, Engine, EngineConfig, Link, NextHop, TableWriter, Tables, Tunnel, Verdict,
};

use crate::routes::Rng;

/// Packets in a batch.
pub const BATCH: usize = 64;

/// Two engines and a batch of packets from the first to the second.
#[derive(Debug)]
pub struct Overlay {
    /// The node that the packets leave.
    pub sender: Engine,
    /// The node that they come to.
    pub receiver: Engine,
    /// The inner packets.
    pub packets: Vec<Vec<u8>>,
    /// What the sender makes of them: links as the receiver sees them, and octets behind the outer
    /// UDP or IP header.
    pub carried: Vec<(Link, Vec<u8>)>,
}

impl Overlay {
    /// Engines with `routes` routes of `family` through `encapsulation` over IPv4, and packets of
    /// `packet_octets`.
    ///
    /// # Panics
    ///
    /// When an engine does not let the packets through, which would make the measurement another.
    #[must_use]
    pub fn new(
        encapsulation: Encapsulation,
        family: Family,
        packet_octets: usize,
        routes: usize,
    ) -> Self {
        let flows = EngineConfig::default().flows;
        Self::with_flows(encapsulation, family, packet_octets, routes, flows)
    }

    /// As [`new`](Self::new), with engines that remember `flows` flows.
    ///
    /// # Panics
    ///
    /// As [`new`](Self::new).
    #[must_use]
    pub fn with_flows(
        encapsulation: Encapsulation,
        family: Family,
        packet_octets: usize,
        routes: usize,
        flows: usize,
    ) -> Self {
        let config = EngineConfig {
            flows,
            ..EngineConfig::default()
        };
        let engine = |me| Engine::new(config, tables(me, encapsulation, family, routes));
        let (mut sender, mut receiver) = (engine(0), engine(1));
        let mut rng = Rng(1);
        let packets: Vec<Vec<u8>> = (0..BATCH)
            .map(|number| packet(family, packet_octets, number, rng.below(routes)))
            .collect();
        let mut batch = Batch::new(BATCH, SLOT_OCTETS);
        fill(&mut batch, &packets);
        sender.encap(&mut batch, Time::ZERO);
        let carried: Vec<(Link, Vec<u8>)> = batch
            .frames()
            .map(|frame| {
                assert_eq!(frame.verdict, Verdict::Transmit);
                (frame.link.reversed(), frame.bytes.to_vec())
            })
            .collect();
        fill_carried(&mut batch, &carried);
        receiver.decap(&mut batch, Time::ZERO);
        for frame in batch.frames() {
            assert_eq!(frame.verdict, Verdict::Deliver);
        }
        Self {
            sender,
            receiver,
            packets,
            carried,
        }
    }
}

/// Fills a batch with inner packets.
pub fn fill(batch: &mut Batch, packets: &[Vec<u8>]) {
    batch.clear();
    for packet in packets {
        batch.push(packet, Link::LOCAL);
    }
}

/// Fills a batch with what came over the underlay.
pub fn fill_carried(batch: &mut Batch, carried: &[(Link, Vec<u8>)]) {
    batch.clear();
    for (link, octets) in carried {
        batch.push(octets, *link);
    }
}

/// VXLAN as flannel has it, and FOU.
///
/// # Panics
///
/// Never: 1 is a VNI.
#[must_use]
pub fn encapsulations() -> [Encapsulation; 2] {
    let vxlan = Encapsulation::Vxlan {
        vni: Vni::new(1).expect("it has 24 bits"),
        port: VXLAN_PORT,
        mac: mac(1),
    };
    [vxlan, Encapsulation::Fou { port: FOU_PORT }]
}

/// Of node 0 or 1, which has a tunnel to the other one.
fn tables(me: u8, encapsulation: Encapsulation, family: Family, routes: usize) -> Arc<Tables> {
    let other = 1 - me;
    let mut writer = TableWriter::new(Local {
        addresses: Vec::new(),
        underlay: vec![underlay(me)],
        vtep_mac: mac(me),
        receive: Receive {
            vxlan: vec![VXLAN_PORT],
            fou_gue: vec![FOU_PORT],
            vnis: Vni::new(1).into_iter().collect(),
            ..Receive::default()
        },
    });
    let peer = writer
        .add_peer(Peer {
            name: "other".to_owned(),
            underlay: vec![underlay(other)],
            dscp: DscpMode::Pipe(0),
        })
        .expect("one peer");
    let mut encapsulation = encapsulation;
    if let Encapsulation::Vxlan { mac: vtep, .. } = &mut encapsulation {
        *vtep = mac(other);
    }
    let tunnel = writer
        .next_hop(NextHop::Tunnel(Tunnel {
            peer,
            local: underlay(me),
            remote: underlay(other),
            encapsulation,
            mtu: encapsulation.inner_mtu(Family::V4, Mtu::ETHERNET),
            hop_limit: 64,
            dscp: DscpMode::Pipe(0),
            ecn: EcnMode::Normal,
        }))
        .expect("two next hops");
    let local = writer.next_hop(NextHop::Local).expect("two next hops");
    let (first, rest) = if me == 0 {
        (local, tunnel)
    } else {
        (tunnel, local)
    };
    let sending = match family {
        Family::V4 => Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 16).map(IpNet::V4),
        Family::V6 => Ipv6Net::new(sending_v6(0), 48).map(IpNet::V6),
    };
    let sending = sending.expect("a length of the family");
    writer.insert(sending, first).expect("far below the limit");
    for route in 0..routes {
        let prefix = match owned(family, route, 0) {
            IpAddr::V4(address) => Ipv4Net::new(address, 24).map(IpNet::V4),
            IpAddr::V6(address) => Ipv6Net::new(address, 64).map(IpNet::V6),
        };
        let prefix = prefix.expect("a length of the family");
        writer.insert(prefix, rest).expect("far below the limit");
    }
    writer.publish()
}

/// A UDP packet of so many octets in all.
fn packet(family: Family, octets: usize, number: usize, route: usize) -> Vec<u8> {
    let source_port = 1024 + number as u16;
    let mut packet = Vec::new();
    let (builder, headers) = match owned(family, route, 9) {
        IpAddr::V4(to) => {
            let from = [10, 0, 1, number as u8];
            (PacketBuilder::ipv4(from, to.octets(), 64), 28)
        }
        IpAddr::V6(to) => {
            let from = sending_v6(number as u16).octets();
            (PacketBuilder::ipv6(from, to.octets(), 64), 48)
        }
    };
    builder
        .udp(source_port, 5001)
        .write(&mut packet, &vec![0; octets - headers])
        .expect("it fits");
    packet
}

/// An address in the receiver's prefix of this number.
fn owned(family: Family, route: usize, host: u8) -> IpAddr {
    match family {
        Family::V4 => {
            let network = 0x0a01_0000 + ((route as u32) << 8);
            IpAddr::V4(Ipv4Addr::from_bits(network | u32::from(host)))
        }
        Family::V6 => {
            let high = 0xfd00_0000_0001_0000_u64 + route as u64;
            let address = u128::from(high) << 64 | u128::from(host);
            IpAddr::V6(Ipv6Addr::from_bits(address))
        }
    }
}

fn sending_v6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host)
}

fn underlay(node: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, 1 + node])
}

const fn mac(node: u8) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 0, 1 + node])
}

/// The largest frame of these fixtures.
pub const SLOT_OCTETS: usize = 2048;

const VXLAN_PORT: u16 = 8472;
const FOU_PORT: u16 = 5555;
