//! The node that scripts are played to: what is fixed about it, and what scripts choose from.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use warren_core::encap::{Encapsulation, EncapsulationKind};
use warren_core::tables::{DscpMode, EcnMode, Local, Peer, PeerId, Receive};
use warren_core::units::{MacAddr, Mtu, Vni};
use warren_core::{NextHop, TableWriter, Tables, Tunnel};

use super::model::Model;

pub(super) const VXLAN_PORT: u16 = 8472;
pub(super) const VXLAN_GPE_PORT: u16 = 4790;
pub(super) const GENEVE_PORT: u16 = 6081;
pub(super) const FOU_PORT: u16 = 5555;
/// The network that the node is in.
pub(super) const VNI: u32 = 1;
pub(super) const OWN_MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);

/// Addresses that packets come from and go to.
pub(super) const ADDRESSES: [[&str; 16]; 2] = [
    [
        "10.42.1.7",
        "10.42.2.9",
        "10.42.3.9",
        "10.42.4.9",
        "10.42.1.1",
        "10.42.2.200",
        "192.0.2.1",
        "192.0.2.2",
        "198.51.100.7",
        "240.0.0.1",
        "127.0.0.1",
        "224.0.0.5",
        "255.255.255.255",
        "0.0.0.0",
        "0.1.2.3",
        "169.254.1.1",
    ],
    [
        "fd42:0:0:1::7",
        "fd42:0:0:2::9",
        "fd42:0:0:3::9",
        "fd42:0:0:4::9",
        "fd42:0:0:1::1",
        "fd42:0:0:2:8000::1",
        "2001:db8::1",
        "2001:db8::2",
        "2001:db8:ffff::7",
        "fec0::1",
        "::1",
        "ff02::5",
        "::ffff:10.42.2.9",
        "::",
        "::10.42.2.9",
        "fe80::1",
    ],
];

/// Outer addresses: the node's own, three peers', a stranger's, in both families.
pub(super) const UNDERLAY: [&str; 10] = [
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.3",
    "192.0.2.4",
    "203.0.113.9",
    "2001:db8::1",
    "2001:db8::2",
    "2001:db8::3",
    "2001:db8::4",
    "2001:db8:9::9",
];

const PREFIXES: [&str; 24] = [
    "10.42.1.0/24",
    "10.42.2.0/24",
    "10.42.3.0/24",
    "10.42.4.0/24",
    "10.42.0.0/16",
    "10.42.2.128/25",
    "10.42.2.9/32",
    "10.42.1.7/32",
    "0.0.0.0/0",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "240.0.0.0/4",
    "fd42:0:0:1::/64",
    "fd42:0:0:2::/64",
    "fd42:0:0:3::/64",
    "fd42:0:0:4::/64",
    "fd42::/48",
    "fd42:0:0:2:8000::/65",
    "fd42:0:0:2::9/128",
    "fd42:0:0:1::7/128",
    "::/0",
    "2001:db8::/64",
    "2001:db8:ffff::/48",
    "fe80::/10",
];

/// The writer of the node's tables and the model of them.
#[derive(Debug)]
pub(super) struct World {
    writer: TableWriter,
    model: Model,
}

impl World {
    /// Peers 2, 3 and 4, who own the third octet of their number; routes as in a new cluster.
    pub(super) fn new() -> Self {
        let address = |text: &str| text.parse::<IpAddr>().expect("a constant");
        let local = Local {
            addresses: vec![address("10.42.1.1"), address("fd42:0:0:1::1")],
            underlay: vec![address(UNDERLAY[0]), address(UNDERLAY[5])],
            vtep_mac: OWN_MAC,
            receive: Receive {
                vxlan: vec![VXLAN_PORT],
                vxlan_gpe: vec![VXLAN_GPE_PORT],
                geneve: vec![GENEVE_PORT],
                fou_gue: vec![FOU_PORT],
                ipip: true,
                vnis: vec![Vni::new(VNI).expect("24 bits")],
                strict_vxlan: false,
            },
        };
        let mut writer = TableWriter::new(local.clone());
        let dscp = [DscpMode::Pipe(0), DscpMode::Uniform, DscpMode::Pipe(46)];
        let peers = dscp
            .into_iter()
            .enumerate()
            .map(|(index, dscp)| {
                let peer = Peer {
                    name: format!("node-{}", index + 2),
                    underlay: vec![address(UNDERLAY[index + 1]), address(UNDERLAY[index + 6])],
                    dscp,
                };
                (writer.add_peer(peer.clone()).expect("three peers"), peer)
            })
            .collect();
        let mut world = Self {
            writer,
            model: Model {
                local,
                peers,
                routes: Vec::new(),
            },
        };
        // Local for 1, a tunnel of another kind to each peer, an equal-cost set for 4.
        for (prefix, next_hop) in [
            (0, 0),
            (1, 4),
            (2, 9),
            (3, 15),
            (12, 0),
            (13, 5),
            (14, 12),
            (15, 15),
        ] {
            world.insert(prefix, next_hop);
        }
        world
    }

    pub(super) const fn model(&self) -> &Model {
        &self.model
    }

    pub(super) fn publish(&mut self) -> Arc<Tables> {
        self.writer.publish()
    }

    pub(super) fn insert(&mut self, prefix: u8, next_hop: u8) {
        let (prefix, next_hop) = (choose_prefix(prefix), self.choose_next_hop(next_hop));
        let id = self.writer.next_hop(next_hop.clone()).expect("a few");
        self.writer.insert(prefix, id).expect("a few");
        self.model.insert(prefix, next_hop);
    }

    pub(super) fn remove(&mut self, prefix: u8) {
        let prefix = choose_prefix(prefix);
        assert_eq!(self.writer.remove(prefix), self.model.remove(prefix));
    }

    fn choose_next_hop(&self, choice: u8) -> NextHop {
        match choice % 16 {
            0 => NextHop::Local,
            1 => NextHop::Blackhole,
            2 => NextHop::Prohibit,
            3 => NextHop::Direct {
                gateway: (choice >= 128).then(|| IpAddr::from([192, 0, 2, 254])),
            },
            way @ 4..=13 => NextHop::Tunnel(self.tunnel(way - 4, usize::from(choice / 16))),
            14 => NextHop::EqualCost(vec![self.tunnel(0, 0), self.tunnel(5, 0)]),
            _ => NextHop::EqualCost((0..3).map(|peer| self.tunnel(choice / 16, peer)).collect()),
        }
    }

    /// One of six encapsulations over one of two underlays to a peer.
    fn tunnel(&self, way: u8, peer: usize) -> Tunnel {
        let (id, peer): &(PeerId, Peer) = &self.model.peers[peer % self.model.peers.len()];
        let family = usize::from(way % 2);
        let kind = EncapsulationKind::ALL[usize::from(way / 2) % EncapsulationKind::ALL.len()];
        let vni = Vni::new(VNI).expect("24 bits");
        let mac = MacAddr::new([2, 0, 0, 0, 0, 9]);
        let encapsulation = match kind {
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
            EncapsulationKind::Gue => Encapsulation::Gue { port: FOU_PORT },
        };
        Tunnel {
            peer: *id,
            local: self.model.local.underlay[family],
            remote: peer.underlay[family],
            encapsulation,
            mtu: Mtu::new(600 + 100 * u16::from(way)),
            hop_limit: 64,
            dscp: peer.dscp,
            ecn: if way.is_multiple_of(3) {
                EcnMode::Compatibility
            } else {
                EcnMode::Normal
            },
        }
    }
}

fn choose_prefix(choice: u8) -> IpNet {
    PREFIXES[usize::from(choice) % PREFIXES.len()]
        .parse()
        .expect("a constant")
}
