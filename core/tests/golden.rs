//! Octets that other implementations made, or that were written by hand from the RFCs and read by
//! an outside dissector: decapsulated, and made again octet for octet.
//!
//! Node A has 10.244.1.0/24, the underlay address 10.99.0.1 and the VTEP address
//! 02:f1:00:00:00:0a; node B has 10.244.2.0/24, 10.99.0.2 and 02:f1:00:00:00:0b.
#![cfg(test)]

mod common;

use std::net::IpAddr;

use warren_core::batch::{Link, Transport};
use warren_core::encap::Encapsulation;
use warren_core::encap::outer::{self, OuterOptions};
use warren_core::tables::{DscpMode, EcnMode, Local, Peer, Receive};
use warren_core::units::{MacAddr, Mtu, Time, Vni};
use warren_core::{Batch, DropReason, Engine, EngineConfig, NextHop, TableWriter, Tunnel, Verdict};

/// UDP 10.244.1.5:4000 -> 10.244.2.5:5001, "hello", TTL 63, ECT(0).
const HELLO: &str = "45 02 00 21 12 34 40 00 3f 11 10 a5 0a f4 01 05 0a f4 02 05 \
                     0f a0 13 89 00 0d 7f e7 68 65 6c 6c 6f";
/// Node A's inner Ethernet header to node B.
const ETHERNET: &str = "02 f1 00 00 00 0b 02 f1 00 00 00 0a 08 00";

/// What a kernel device set up by flannel sent: VNI 1, port 8472, UDP checksum, CE inside and
/// ECT(0) outside.
const FLANNEL_KERNEL: &str = "45 02 00 53 25 fd 00 00 40 11 3f d3 0a 63 00 01 0a 63 00 02 \
    d9 a2 21 18 00 3f f2 00 08 00 00 00 00 00 01 00 02 f1 00 00 00 0b 02 f1 00 00 00 0a 08 00 \
    45 bb 00 21 fe 4a 40 00 40 11 22 da 0a f4 01 00 0a f4 02 05 \
    94 d7 13 89 00 0d fa b4 68 65 6c 6c 6f";

#[test]
fn vxlan_in_calicos_numbers_octet_for_octet() {
    let wire = octets(&[
        "45 02 00 53 00 00 40 00 40 11 25 d0 0a 63 00 01 0a 63 00 02",
        "c3 50 12 b5 00 3f 00 00 08 00 00 00 00 10 00 00",
        ETHERNET,
        HELLO,
    ]);
    let encapsulation = Encapsulation::Vxlan {
        vni: vni(4096),
        port: 4789,
        mac: mac(0x0b),
    };
    check_both_ways(encapsulation, &wire);
}

#[test]
fn ip_in_ip_octet_for_octet() {
    let wire = octets(&[
        "45 02 00 35 00 00 40 00 40 04 25 fb 0a 63 00 01 0a 63 00 02",
        HELLO,
    ]);
    check_both_ways(Encapsulation::Ipip, &wire);
}

#[test]
fn fou_and_gue_octet_for_octet() {
    let fou = octets(&[
        "45 02 00 3d 00 00 40 00 40 11 25 e6 0a 63 00 01 0a 63 00 02",
        "c3 50 15 b3 00 29 00 00",
        HELLO,
    ]);
    check_both_ways(Encapsulation::Fou { port: 5555 }, &fou);
    let gue = octets(&[
        "45 02 00 41 00 00 40 00 40 11 25 e2 0a 63 00 01 0a 63 00 02",
        "c3 50 17 c0 00 2d 00 00 00 04 00 00",
        HELLO,
    ]);
    check_both_ways(Encapsulation::Gue { port: 6080 }, &gue);
}

#[test]
fn what_a_kernel_sends_for_flannel_is_delivered_and_made_again() {
    let wire = octets(&[FLANNEL_KERNEL]);
    let encapsulation = Encapsulation::Vxlan {
        vni: vni(1),
        port: 8472,
        mac: mac(0x0b),
    };
    let inner = wire.get(50..).unwrap();
    assert_eq!(
        decap(&mut node_b(), &wire),
        (Verdict::Deliver, inner.to_vec())
    );

    // Made again with what the kernel chose: source port, identification, checksum, DF clear, and
    // ECT(0) for CE, where RFC 6040 has CE.
    let mut engine = node_a(encapsulation, false);
    let mut batch = Batch::new(1, 1500);
    batch.push(inner, Link::LOCAL).unwrap();
    engine.encap(&mut batch, Time::ZERO);
    let mut frame = batch.frame_mut(0).unwrap();
    assert_eq!(
        (frame.verdict(), frame.link().traffic_class),
        (Verdict::Transmit, 0b11)
    );
    frame.set_link(Link {
        transport: Transport::Udp {
            local_port: 55714,
            remote_port: 8472,
        },
        traffic_class: 0b10,
        dont_fragment: false,
        ..*frame.link()
    });
    let options = OuterOptions {
        identification: 0x25fd,
        udp_checksum_v4: true,
    };
    outer::push_with(&mut frame, options).unwrap();
    assert_eq!(frame.bytes(), wire);
}

#[test]
fn geneve_with_an_option_and_a_checksum_is_delivered() {
    let wire = octets(&[
        "45 02 00 5b 00 00 40 00 40 11 25 c8 0a 63 00 01 0a 63 00 02",
        "c3 50 17 c1 00 47 ad e1 02 00 65 58 00 00 05 00 ff ff 00 01 00 00 00 64",
        ETHERNET,
        HELLO,
    ]);
    assert_eq!(wire.len(), 91);
    assert_eq!(
        decap(&mut node_b(), &wire),
        (Verdict::Deliver, octets(&[HELLO]))
    );
    for at in [26, 30, 60, 90] {
        let mut wrong = wire.clone();
        wrong[at] ^= 1;
        let mut batch = Batch::new(1, 1500);
        let mut frame = batch.push(&wrong, Link::LOCAL).unwrap();
        assert!(
            outer::pull(&mut frame).is_err(),
            "octet {at} is covered by the checksum"
        );
    }
}

#[test]
fn group_policy_bits_are_ignored_unless_strict() {
    // The headers of a kernel device with the group-policy extension, VNI 77.
    for (header, strict) in [
        ("08 00 00 00 00 00 4d 00", Verdict::Deliver),
        (
            "88 00 00 64 00 00 4d 00",
            Verdict::Drop(DropReason::MalformedEncapsulation),
        ),
        (
            "88 48 00 64 00 00 4d 00",
            Verdict::Drop(DropReason::MalformedEncapsulation),
        ),
    ] {
        let payload = octets(&[header, ETHERNET, HELLO]);
        let link = Link {
            local: IpAddr::from([10, 99, 0, 2]),
            remote: IpAddr::from([10, 99, 0, 1]),
            transport: Transport::Udp {
                local_port: 4789,
                remote_port: 50000,
            },
            ..Link::LOCAL
        };
        for (mut engine, expected) in [
            (node_b(), Verdict::Deliver),
            (node_b_with(|receive| receive.strict_vxlan = true), strict),
        ] {
            let mut batch = Batch::new(1, 1500);
            batch.push(&payload, link).unwrap();
            engine.decap(&mut batch, Time::ZERO);
            assert_eq!(batch.frame(0).unwrap().verdict, expected, "{header}");
        }
    }
}

#[test]
fn a_tunnel_encapsulation_limit_is_skipped() {
    // IPv6 with the destination option that Linux ip6tnl adds (limit 4, PadN), then IPv4.
    let inner = octets(&[HELLO]);
    let wire = octets(&[
        "60 00 00 00 00 29 3c 40 20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 01",
        "20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 02",
        "04 00 04 01 04 01 01 00",
        HELLO,
    ]);
    assert_eq!(decap(&mut node_b(), &wire), (Verdict::Deliver, inner));
}

/// Decapsulates `wire` at node B and makes it again at node A, with the source port 50000.
fn check_both_ways(encapsulation: Encapsulation, wire: &[u8]) {
    let hello = octets(&[HELLO]);
    assert_eq!(
        decap(&mut node_b(), wire),
        (Verdict::Deliver, hello.clone())
    );

    // One hop earlier its TTL was 64.
    let sent = common::rewrite(&hello, |v4| v4.time_to_live = 64, |_| ());
    let mut engine = node_a(encapsulation, true);
    let mut batch = Batch::new(1, 1500);
    batch.push(&sent, Link::LOCAL).unwrap();
    engine.encap(&mut batch, Time::ZERO);
    let mut frame = batch.frame_mut(0).unwrap();
    assert_eq!(frame.verdict(), Verdict::Transmit);
    let transport = match frame.link().transport {
        Transport::Udp { remote_port, .. } => Transport::Udp {
            local_port: 50000,
            remote_port,
        },
        ip @ Transport::Ip { .. } => ip,
    };
    frame.set_link(Link {
        transport,
        ..*frame.link()
    });
    outer::push(&mut frame).unwrap();
    assert_eq!(frame.bytes(), wire, "{encapsulation}");
}

fn decap(engine: &mut Engine, wire: &[u8]) -> (Verdict, Vec<u8>) {
    common::receive(engine, wire)
}

fn node_a(encapsulation: Encapsulation, decrement_ttl: bool) -> Engine {
    let mut writer = TableWriter::new(Local {
        addresses: vec![IpAddr::from([10, 244, 1, 0])],
        underlay: vec![IpAddr::from([10, 99, 0, 1])],
        vtep_mac: mac(0x0a),
        receive: Receive::default(),
    });
    let peer = writer.add_peer(peer("b", 2)).unwrap();
    let tunnel = writer
        .next_hop(NextHop::Tunnel(tunnel(peer, encapsulation, 1, 2)))
        .unwrap();
    let local = writer.next_hop(NextHop::Local).unwrap();
    writer
        .insert("10.244.1.0/24".parse().unwrap(), local)
        .unwrap();
    writer
        .insert("10.244.2.0/24".parse().unwrap(), tunnel)
        .unwrap();
    let config = EngineConfig {
        decrement_ttl,
        ..EngineConfig::default()
    };
    Engine::new(config, writer.publish())
}

fn node_b() -> Engine {
    node_b_with(|_| ())
}

fn node_b_with(change: impl FnOnce(&mut Receive)) -> Engine {
    let mut receive = Receive {
        vxlan: vec![8472, 4789],
        vxlan_gpe: vec![4790],
        geneve: vec![6081],
        fou_gue: vec![5555, 6080],
        ipip: true,
        vnis: [1, 5, 77, 4096].map(vni).into(),
        strict_vxlan: false,
    };
    change(&mut receive);
    let mut writer = TableWriter::new(Local {
        addresses: vec![IpAddr::from([10, 244, 2, 0])],
        underlay: vec![IpAddr::from([10, 99, 0, 2])],
        vtep_mac: mac(0x0b),
        receive,
    });
    let peer = writer.add_peer(peer("a", 1)).unwrap();
    let tunnel = writer
        .next_hop(NextHop::Tunnel(tunnel(peer, Encapsulation::Ipip, 2, 1)))
        .unwrap();
    let local = writer.next_hop(NextHop::Local).unwrap();
    writer
        .insert("10.244.1.0/24".parse().unwrap(), tunnel)
        .unwrap();
    writer
        .insert("10.244.2.0/24".parse().unwrap(), local)
        .unwrap();
    Engine::new(EngineConfig::default(), writer.publish())
}

fn peer(name: &str, number: u8) -> Peer {
    Peer {
        name: name.into(),
        underlay: vec![
            IpAddr::from([10, 99, 0, number]),
            format!("2001:db8::{number}").parse().unwrap(),
        ],
        dscp: DscpMode::Pipe(0),
    }
}

fn tunnel(
    peer: warren_core::tables::PeerId,
    encapsulation: Encapsulation,
    from: u8,
    to: u8,
) -> Tunnel {
    Tunnel {
        peer,
        local: IpAddr::from([10, 99, 0, from]),
        remote: IpAddr::from([10, 99, 0, to]),
        encapsulation,
        mtu: Mtu::new(1450),
        hop_limit: 64,
        dscp: DscpMode::Pipe(0),
        ecn: EcnMode::Normal,
    }
}

fn vni(value: u32) -> Vni {
    Vni::new(value).unwrap()
}

fn mac(last: u8) -> MacAddr {
    MacAddr::new([0x02, 0xf1, 0, 0, 0, last])
}

fn octets(parts: &[&str]) -> Vec<u8> {
    parts
        .iter()
        .flat_map(|part| part.split_whitespace())
        .map(|octet| u8::from_str_radix(octet, 16).unwrap())
        .collect()
}
