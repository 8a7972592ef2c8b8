//! Writes the committed seeds: `cargo run -p warren-fuzz --example seeds` from the top of the
//! checkout. A finding is added to its folder by hand, under a name that says what it found.

#![allow(
    clippy::indexing_slicing,
    reason = "run by hand on packets that are built here; a mistake may stop it"
)]

use std::fs;
use std::path::Path;

use etherparse::{IpNumber, Ipv4Header, PacketBuilder};
use tun_node::config::example_config;
use tun_node::ctl::frame::{self, REQUEST_OCTETS_MAX, RESPONSE_OCTETS_MAX};
use tun_node::ctl::message::{Fault, Flow, Request, Response};
use warren_core::units::{MacAddr, Vni};
use warren_core::wire::{
    ArpPacket, EthernetHeader, GeneveHeader, GueHeader, VlanTag, VxlanHeader, ether_type,
};
use zerocopy::IntoBytes;

const A: [u8; 4] = [10, 244, 1, 1];
const B: [u8; 4] = [10, 244, 2, 1];
const A6: [u8; 16] = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const B6: [u8; 16] = [0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn main() {
    let packets = packets();
    let mac = MacAddr::new([2, 0, 0, 0, 0, 1]);
    let vni = Vni::new(1).expect("below 2^24");
    let ethernet = |ether_type, behind: &[u8]| {
        joined(&[EthernetHeader::new(mac, mac, ether_type).as_bytes(), behind])
    };
    let udp4 = &packets[0].1;
    let framed = ethernet(ether_type::IPV4, udp4);

    let arp = ArpPacket::new(ArpPacket::REQUEST, (mac, A.into()), (mac, B.into()));
    let tag = VlanTag::new(42, 3, ether_type::VLAN);
    let inner_tag = VlanTag::new(7, 0, ether_type::ARP);
    write("ethernet", "ipv4", &framed);
    write(
        "ethernet",
        "arp",
        &ethernet(ether_type::ARP, arp.as_bytes()),
    );
    write(
        "ethernet",
        "two-tags-arp",
        &ethernet(
            ether_type::SERVICE_VLAN,
            &joined(&[tag.as_bytes(), inner_tag.as_bytes(), arp.as_bytes()]),
        ),
    );

    for (name, packet) in &packets {
        write("packet", name, packet);
        let v4 = packet[0] >> 4 == 4;
        write(if v4 { "ipv4" } else { "ipv6" }, name, packet);
        let transport = &packet[if v4 { 20 } else { 40 }..];
        let target = name.split('-').next().unwrap_or_default();
        if ["udp", "tcp", "icmp", "icmpv6"].contains(&target) {
            write(target, name, transport);
        }
    }
    write("icmpv6", "neighbour-solicitation", &neighbour(135));
    write("icmpv6", "neighbour-advertisement", &neighbour(136));

    let vxlan = joined(&[VxlanHeader::new(vni).as_bytes(), &framed]);
    write("vxlan", "flannel", &vxlan);
    let mut reserved = vxlan;
    reserved[7] = 1;
    write("vxlan", "reserved-bit", &reserved);

    scripts();
    forwarding();
    configurations();
    questions();
    write(
        "gue",
        "ipv4",
        &joined(&[GueHeader::new(4).as_bytes(), udp4]),
    );
    write("gue", "optional-field", &[0x01, 41, 0, 0, 9, 9, 9, 9, 0x60]);
    write(
        "geneve",
        "ethernet",
        &joined(&[
            GeneveHeader::new(vni, ether_type::ETHERNET).as_bytes(),
            &framed,
        ]),
    );
    write(
        "geneve",
        "options",
        &[
            0x03, 0, 0x65, 0x58, 0, 0, 5, 0, 0xff, 0xff, 0, 1, 0, 0, 0, 0x64, 0, 1, 2, 0, 0xaa,
        ],
    );
}

/// Scripts for the engine target; see `src/engine/script.rs` for what the octets mean.
fn scripts() {
    // family, source, destination, TTL, class; payload: protocol, octets, value, ports; no damage.
    let packet = |family: u8, source: u8, destination: u8| {
        vec![family, source, destination, 0, 0x02, 0, 20, 0xaa, 0, 1]
    };
    let encap = |packets: &[Vec<u8>]| {
        let mut step = vec![6, u8::try_from(packets.len() - 1).expect("up to four")];
        for packet in packets {
            step.extend(packet);
            step.push(0);
        }
        step
    };
    // outer source, packet, shim, outer class; no damage.
    let decap = |remote: u8, packet: Vec<u8>, shim: &[u8]| {
        joined(&[&[11, 0, remote], &packet, shim, &[0x02, 0]])
    };
    let to_every_peer: Vec<Vec<u8>> = (0..4).map(|to| packet(0, 0, to)).collect();
    write("engine", "encap-v4", &encap(&to_every_peer));
    write(
        "engine",
        "encap-v6",
        &encap(&[packet(1, 0, 1), packet(1, 0, 3)]),
    );
    write(
        "engine",
        "ttl-expires",
        &encap(&[vec![0, 0, 1, 3, 0, 0, 20, 0, 0, 1]]),
    );
    write(
        "engine",
        "too-big",
        &encap(&[vec![1, 0, 1, 0, 0, 0, 255, 7, 0x60, 0xaa, 0, 1]]),
    );
    for (name, shim) in [
        ("vxlan", &[0, 0x80][..]),
        ("geneve", &[3, 0]),
        ("fou", &[4]),
        ("gue", &[5]),
        ("ipip", &[6]),
    ] {
        write(
            "engine",
            &format!("decap-{name}"),
            &decap(1, packet(0, 1, 0), shim),
        );
        write(
            "engine",
            &format!("decap-{name}-v6"),
            &decap(6, packet(1, 1, 0), shim),
        );
    }
    write("engine", "spoofed", &decap(2, packet(0, 1, 0), &[4]));
    // A tunnel prefix over the underlay: the peer sends as this node; and this node's own prefix
    // over it: a packet from the far end of the tunnel that it enters.
    write(
        "engine",
        "own-underlay-source",
        &joined(&[&[0, 9, 4, 3], &decap(1, packet(0, 6, 0), &[4])]),
    );
    write(
        "engine",
        "source-is-tunnel-end",
        &joined(&[&[0, 9, 0, 3], &encap(&[packet(0, 7, 1)])]),
    );
    for (name, protocol) in [("ipv4", 0), ("ipv6", 1)] {
        let nested = vec![0, 1, 0, 0, 0x02, 7, 20, 0xaa, protocol];
        write("engine", &format!("nested-{name}"), &decap(1, nested, &[4]));
    }
    let nested = vec![0, 1, 0, 0, 0x02, 0, 20, 0x48, 0, 2];
    write("engine", "nested-vxlan", &decap(1, nested, &[4]));
    let at_the_mtu = |word: u8| vec![0, 0, 1, 0, 0, 0, 254, 0, word, 0xaa, 0, 1];
    write(
        "engine",
        "at-the-mtu",
        &encap(&[at_the_mtu(0), at_the_mtu(1), at_the_mtu(2)]),
    );
    write(
        "engine",
        "routes-change",
        &joined(&[
            &encap(&[packet(0, 0, 1)]),
            &[0, 6, 1, 3],
            &encap(&[packet(0, 0, 1)]),
            &[2, 6, 3, 5, 4, 0],
            &encap(&[packet(0, 0, 1)]),
        ]),
    );
}

/// Scripts for IPv4 forwarding tables that begin with pushed or flat chunks; see `src/fib.rs` for what the octets mean.
fn forwarding() {
    const INSERT: u8 = 0;
    const REMOVE: u8 = 4;
    const PUBLISH: u8 = 7;
    const INSERT_MANY: u8 = 0xf8;
    const REMOVE_MANY: u8 = 0xfc;
    let step = |operation, address: [u8; 4], len, hop| {
        let [a, b, c, d] = address;
        [operation, len, hop, a, b, c, d]
    };
    let publish = step(PUBLISH, [0; 4], 0, 0);
    let give_up = step(PUBLISH, [0; 4], 0, 1);
    let take_up = step(PUBLISH, [0; 4], 0, 2);
    let insert = |address, len, hop| step(INSERT, address, len, hop);
    let remove = |address, len| step(REMOVE, address, len, 0);
    let insert_many = |address, len| step(INSERT_MANY, address, len, 0);
    let remove_many = |address, len| step(REMOVE_MANY, address, len, 0);
    let write = |name, flags: u8, steps: &[[u8; 7]]| {
        write("fib", name, &joined(&[&[flags], steps.as_flattened()]));
    };

    // 253 is the last next hop that fits an octet; the default route's is the first that does not.
    write(
        "v4-crowded-two-octets",
        0xf4,
        &[
            insert([10, 8, 3, 0], 24, 3),
            insert([10, 8, 3, 9], 32, 2),
            publish,
            insert([0, 0, 0, 0], 0, 4),
            publish,
            insert([10, 8, 3, 9], 32, 7),
            insert([10, 8, 3, 0], 24, 6),
            insert_many([10, 8, 1, 0], 27),
            publish,
            insert([10, 8, 0, 0], 13, 5),
            remove([0, 0, 0, 0], 0),
            remove([10, 8, 3, 0], 24),
        ],
    );
    // So many routes that a worker has a copy, which follows once.
    write(
        "v4-copied",
        0xf8,
        &[
            insert([10, 8, 3, 0], 24, 3),
            insert([10, 8, 3, 9], 32, 2),
            publish,
            insert([10, 8, 3, 9], 32, 1),
            insert([10, 8, 4, 128], 25, 2),
            insert([0, 0, 0, 0], 0, 3),
            insert_many([10, 9, 0, 64], 27),
            remove_many([10, 8, 64, 0], 24),
            insert([10, 8, 0, 0], 15, 1),
            remove([10, 8, 3, 0], 24),
        ],
    );
    // In groups with and without tails, in the root, too short to be pushed, and in chunks that come and go.
    write(
        "v4-pushed",
        0xf2,
        &[
            insert([10, 7, 3, 0], 24, 3),
            insert([10, 7, 3, 0], 22, 1),
            insert([10, 7, 127, 77], 32, 2),
            insert([10, 7, 5, 64], 27, 3),
            publish,
            insert([0, 0, 0, 0], 0, 1),
            insert([10, 0, 0, 0], 7, 2),
            insert([64, 0, 0, 0], 2, 3),
            insert([10, 0, 0, 0], 9, 2),
            insert([10, 0, 0, 0], 13, 0),
            insert([172, 16, 127, 0], 24, 0),
            publish,
            remove([10, 7, 3, 0], 22),
            remove([10, 7, 5, 64], 27),
            remove([10, 7, 127, 64], 26),
            remove([192, 168, 0, 0], 13),
            remove([0, 0, 0, 0], 0),
            insert([200, 1, 2, 3], 32, 1),
            publish,
            insert([200, 1, 3, 0], 24, 2),
            remove([200, 1, 2, 3], 32),
            remove([200, 1, 3, 0], 24),
            insert([200, 0, 0, 0], 8, 3),
            publish,
            remove([10, 0, 0, 0], 7),
            remove([64, 0, 0, 0], 2),
        ],
    );
    // Given up and taken up again: half-way, with changes on both sides of what is filled, and by the number of routes.
    write(
        "v4-pushed-to-and-fro",
        0xf2,
        &[
            give_up,
            insert([10, 7, 1, 0], 24, 3),
            insert([192, 168, 1, 0], 24, 3),
            publish,
            insert([172, 16, 1, 128], 25, 3),
            remove([10, 7, 2, 0], 24),
            insert([10, 7, 2, 0], 23, 1),
            take_up,
            insert([74, 0, 1, 0], 24, 3),
            insert([10, 7, 4, 0], 24, 3),
            insert([10, 7, 4, 4], 30, 2),
            insert([192, 168, 4, 0], 24, 3),
            insert([74, 0, 0, 0], 10, 3),
            insert([128, 0, 0, 0], 1, 2),
            publish,
            remove_many([10, 7, 0, 0], 24),
            remove_many([74, 0, 0, 0], 24),
            remove_many([172, 16, 0, 0], 24),
            remove_many([192, 168, 0, 0], 24),
            publish,
            remove_many([10, 7, 64, 0], 24),
            publish,
            insert_many([172, 16, 0, 0], 25),
        ],
    );
    // 253 and 254 in turn, and then all of them.
    write(
        "v4-pushed-two-octets",
        0xf6,
        &[
            insert([10, 7, 3, 0], 24, 3),
            insert([192, 168, 3, 0], 24, 2),
            publish,
            insert([10, 7, 3, 0], 24, 4),
            publish,
            insert_many([10, 7, 32, 0], 24),
            publish,
            insert([74, 0, 2, 0], 24, 7),
            insert([74, 0, 2, 9], 32, 6),
            insert([172, 16, 127, 0], 24, 5),
            insert([192, 0, 0, 0], 10, 7),
            insert([0, 0, 0, 0], 0, 6),
            publish,
            remove([74, 0, 2, 0], 24),
            insert_many([172, 16, 96, 32], 27),
            insert([10, 0, 0, 0], 12, 5),
            remove([0, 0, 0, 0], 0),
            publish,
            insert([96, 0, 0, 0], 3, 4),
        ],
    );
    // So many tails that few fewer routes beside them are too few, and for a while not all of them spread.
    write(
        "v4-pushed-tails",
        0xfa,
        &[
            publish,
            insert([10, 7, 100, 64], 26, 3),
            publish,
            remove_many([10, 7, 0, 0], 24),
            remove_many([74, 0, 0, 0], 24),
            insert([74, 0, 100, 8], 29, 1),
            insert([10, 7, 66, 16], 28, 2),
            insert([10, 7, 66, 16], 28, 3),
            publish,
            remove_many([172, 16, 0, 0], 24),
            remove_many([192, 168, 0, 0], 24),
            insert([192, 168, 90, 9], 32, 2),
            insert([192, 168, 90, 64], 28, 2),
            publish,
        ],
    );
    // So many routes that four chunks are few enough for flat ones, until there are more chunks.
    write(
        "v4-pushed-or-flat",
        0xf2,
        &[
            insert_many([10, 7, 128, 0], 24),
            insert_many([10, 7, 192, 0], 24),
            insert_many([74, 0, 128, 0], 24),
            insert_many([74, 0, 192, 0], 24),
            insert_many([172, 16, 128, 0], 24),
            insert_many([172, 16, 192, 0], 24),
            publish,
            insert_many([192, 168, 128, 0], 24),
            insert_many([192, 168, 192, 0], 24),
            publish,
            insert([74, 0, 200, 4], 30, 2),
            insert([20, 0, 0, 0], 14, 1),
            insert([30, 0, 0, 0], 14, 2),
            insert([40, 0, 0, 0], 14, 3),
            publish,
            remove_many([192, 168, 128, 0], 24),
        ],
    );
}

/// Configuration files, whole and damaged.
fn configurations() {
    let small = "[node]\nname = \"alpha\"\nunderlay = [\"192.0.2.1\"]\n\
        prefixes = [\"10.244.1.0/24\"]\n\n[device]\naddresses = [\"10.244.1.1/24\"]\n\n\
        [[peers]]\nname = \"beta\"\naddress = \"192.0.2.2\"\nvtep-mac = \"auto\"\n\
        prefixes = [\"10.244.2.0/24\"]\n";
    let with = |more: &str| format!("{small}\n{more}\n");
    for (name, text) in [
        ("example", example_config().to_owned()),
        ("small", small.to_owned()),
        ("crlf", small.replace('\n', "\r\n")),
        (
            "routes",
            with(
                "[[routes]]\nprefix = \"10.245.0.0/16\"\naction = \"blackhole\"\n\
                 [[routes]]\nprefix = \"10.246.0.0/16\"\nvia = [\"beta\"]",
            ),
        ),
        (
            "sections",
            with(
                "[vxlan]\nport = 4789\nvni = 4096\n[geneve]\n[ipip]\nenabled = true\n\
                 [worker]\nbatch = 64\n[metrics]\nlisten = \"127.0.0.1:9472\"\n\
                 [log]\nlevel = \"debug\"",
            ),
        ),
        ("overlap", small.replace("10.244.2.0/24", "10.244.0.0/16")),
        ("host-bits", small.replace("10.244.2.0/24", "10.244.2.7/24")),
        ("unknown-key", small.replace("address =", "adress =")),
        ("wrong-type", small.replace("\"alpha\"", "1979-05-27")),
        ("no-toml", small.replace("[device]", "[device")),
        (
            "control-characters",
            small.replace("beta", "\\u001b[31m\u{e4}"),
        ),
        ("loop", small.replace("192.0.2.2", "10.244.2.2")),
    ] {
        write("config", name, text.as_bytes());
    }
}

/// What clients of the control socket send, and messages without their frames.
fn questions() {
    let flow = |source: &str, destination: &str| Flow {
        source: source.parse().expect("an address"),
        destination: destination.parse().expect("an address"),
        protocol: 6,
        source_port: 40000,
        destination_port: 443,
        octets: 1500,
    };
    let requests = [
        Request::Status,
        Request::Routes { first: 1 },
        Request::Peers,
        Request::Counters,
        Request::Explain(flow("10.244.1.1", "10.244.2.1")),
        Request::Explain(flow("fd00:10:244:2::1", "fd00:10:244:1::1")),
        Request::Prefer {
            peer: Some("beta".to_owned()),
            encapsulation: None,
        },
        Request::Fault(Fault::Hang),
        Request::Sources,
        Request::Why {
            prefix: "10.244.2.0/24".to_owned(),
        },
        Request::Events { after: 7 },
        Request::Confirm {
            source: Some("etcd".to_owned()),
        },
        Request::Reload { dry_run: true },
    ];
    let frames = requests.map(|request| {
        let mut framed = Vec::new();
        frame::write::<_, REQUEST_OCTETS_MAX>(&mut framed, &request).expect("it is short");
        framed
    });
    write("ctl", "every-question", &frames.concat());
    write("ctl", "cut-off", &frames[4][..20]);
    write("ctl", "too-long", &[0, 0, 4, 1, 0, 1]);
    write("ctl", "other-version", &[0, 0, 0, 3, 0xff, 0xff, 0]);
    for (name, frame) in [
        ("message-status", &frames[0]),
        ("message-routes", &frames[1]),
        ("message-explain-v4", &frames[4]),
        ("message-explain-v6", &frames[5]),
        ("message-prefer", &frames[6]),
    ] {
        write("ctl", name, &frame[6..]);
    }
    let answers = [
        ("answer-error", Response::Error("no".to_owned())),
        ("answer-counters", Response::Counters(Box::default())),
    ];
    for (name, answer) in answers {
        let mut framed = Vec::new();
        frame::write::<_, RESPONSE_OCTETS_MAX>(&mut framed, &answer).expect("it is short");
        write("ctl", name, &framed[6..]);
    }
}

/// IP packets of every kind that the engine looks into.
fn packets() -> Vec<(&'static str, Vec<u8>)> {
    let v4 = || PacketBuilder::ipv4(A, B, 64);
    let v6 = || PacketBuilder::ipv6(A6, B6, 64);
    let written = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Vec::new();
        write(&mut bytes);
        bytes
    };
    let udp4 = written(&|to| v4().udp(5000, 53).write(to, b"question").expect("fits"));
    let mut options = Ipv4Header::new(8, 64, IpNumber::UDP, A, B).expect("fits");
    options.options = [0x94, 4, 0, 0].into(); // router alert
    let options = written(&|to| {
        PacketBuilder::ip(etherparse::IpHeaders::Ipv4(
            options.clone(),
            Default::default(),
        ))
        .udp(5000, 53)
        .write(to, b"question")
        .expect("fits");
    });
    let udp6 = written(&|to| v6().udp(5000, 53).write(to, b"question").expect("fits"));
    let mut first = udp4.clone();
    first[6] = 0x20;
    let mut later = udp4.clone();
    later[7] = 9;
    vec![
        ("udp-v4", udp4),
        ("udp-v6", udp6.clone()),
        (
            "tcp-v4",
            written(&|to| {
                v4().tcp(40000, 443, 1, 1024)
                    .syn()
                    .options_raw(&[2, 4, 5, 180, 1, 1, 1, 0])
                    .expect("at most 40 octets")
                    .write(to, b"")
                    .expect("fits");
            }),
        ),
        (
            "tcp-v6",
            written(&|to| {
                v6().tcp(40000, 443, 1, 1024)
                    .ack(7)
                    .write(to, b"data")
                    .expect("fits");
            }),
        ),
        (
            "icmp-echo",
            written(&|to| {
                v4().icmpv4_echo_request(7, 1)
                    .write(to, b"ping")
                    .expect("fits");
            }),
        ),
        (
            "icmpv6-echo",
            written(&|to| {
                v6().icmpv6_echo_request(7, 1)
                    .write(to, b"ping")
                    .expect("fits");
            }),
        ),
        ("options-v4", options),
        ("first-fragment-v4", first),
        ("later-fragment-v4", later),
        (
            "hop-by-hop-routing-v6",
            extended(&udp6, &[(0, &[0; 8]), (43, &[0; 16])]),
        ),
        (
            "first-fragment-v6",
            extended(&udp6, &[(44, &[0, 0, 0, 1, 0, 0, 0, 5])]),
        ),
        (
            "later-fragment-v6",
            extended(&udp6, &[(60, &[0; 8]), (44, &[0, 0, 0, 9, 0, 0, 0, 5])]),
        ),
        (
            "authentication-v6",
            extended(
                &udp6,
                &[(
                    51,
                    &[
                        0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                    ],
                )],
            ),
        ),
    ]
}

/// The IPv6 packet with extension headers of these protocols put in; their first two octets are
/// filled in, except the second of a fragment or authentication header.
fn extended(packet: &[u8], extensions: &[(u8, &[u8])]) -> Vec<u8> {
    let (header, payload) = packet.split_at(40);
    let (mut header, last) = (header.to_vec(), header[6]);
    let mut chain = Vec::new();
    for (position, (protocol, octets)) in extensions.iter().enumerate() {
        let mut octets = octets.to_vec();
        octets[0] = extensions.get(position + 1).map_or(last, |next| next.0);
        if ![44, 51].contains(protocol) {
            octets[1] = u8::try_from(octets.len() / 8 - 1).expect("short");
        }
        chain.extend(octets);
    }
    header[6] = extensions.first().map_or(last, |first| first.0);
    let length = u16::try_from(chain.len() + payload.len()).expect("short");
    header[4..6].copy_from_slice(&length.to_be_bytes());
    joined(&[&header, &chain, payload])
}

fn neighbour(kind: u8) -> Vec<u8> {
    joined(&[
        &[kind, 0, 0, 0, 0x60, 0, 0, 0],
        &B6,
        &[1, 1, 2, 0, 0, 0, 0, 1],
    ])
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new("fuzz/seeds").join(target);
    fs::create_dir_all(&folder).expect("run it from the top of the checkout");
    fs::write(folder.join(name), bytes).expect("a writable checkout");
}
