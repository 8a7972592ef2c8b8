//! What other implementations put on a wire, read again and wrapped again.
//!
//! The captures in `golden/` were made by Linux 6.1 as user-mode Linux (`uml-*`) and as Debian's
//! cloud kernel under QEMU (`cloud-*`), each with its own tunnel devices, while a node exchanged
//! echoes and TCP with them (`tun-node/tests/kernels.rs`, `WARREN_GOLDEN`). The node was 192.0.2.1
//! with the VTEP address 02:00:00:00:00:01, the kernel 192.0.2.2 with 02:00:00:00:00:02; VNI 1.
//!
//! Each packet is delivered, and what was inside, wrapped by this library, gives the octets behind
//! the transport header that the kernel sent.
#![cfg(test)]

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use warren_core::batch::{Batch, Link};
use warren_core::encap::{Encapsulation, EncapsulationKind, outer, shim};
use warren_core::policy::Policy;
use warren_core::tables::{DscpMode, EcnMode, Local, Peer, Receive};
use warren_core::units::{Family, MacAddr, Mtu, Time, Vni};
use warren_core::verdict::{Direction, DropReason};
use warren_core::{Engine, EngineConfig, NextHop, TableWriter, Tables, Tunnel, Verdict};

const NODE: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);
const KERNEL: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 2]);

fn vni() -> Vni {
    Vni::new(1).unwrap()
}

fn tables() -> Arc<Tables> {
    let mut writer = TableWriter::new(Local {
        addresses: vec!["10.244.1.1".parse().unwrap()],
        underlay: vec![IpAddr::from([192, 0, 2, 1])],
        vtep_mac: NODE,
        receive: Receive {
            vxlan: vec![8472],
            geneve: vec![6081],
            fou_gue: vec![5555, 6080],
            ipip: true,
            vnis: vec![vni()],
            strict_vxlan: true,
            ..Receive::default()
        },
    });
    let peer = writer
        .add_peer(Peer {
            name: "kernel".to_owned(),
            underlay: vec![IpAddr::from([192, 0, 2, 2])],
            dscp: DscpMode::Pipe(0),
        })
        .unwrap();
    let tunnel = NextHop::Tunnel(Tunnel {
        peer,
        local: IpAddr::from([192, 0, 2, 1]),
        remote: IpAddr::from([192, 0, 2, 2]),
        encapsulation: Encapsulation::Ipip,
        mtu: Mtu::new(1480),
        hop_limit: 64,
        dscp: DscpMode::Pipe(0),
        ecn: EcnMode::Normal,
    });
    let tunnel = writer.next_hop(tunnel).unwrap();
    let local = writer.next_hop(NextHop::Local).unwrap();
    for (prefix, next_hop) in [
        ("10.244.1.0/24", local),
        ("fd00:10:244:1::/64", local),
        ("10.244.2.0/24", tunnel),
        ("fd00:10:244:2::/64", tunnel),
    ] {
        writer.insert(prefix.parse().unwrap(), next_hop).unwrap();
    }
    writer.publish()
}

/// The IPv4 packets of a capture file of Ethernet frames.
fn packets(file: &[u8]) -> Vec<&[u8]> {
    assert_eq!(file[..4], 0xa1b2_c3d4_u32.to_le_bytes());
    let mut packets = Vec::new();
    let mut rest = &file[24..];
    while let Some((header, behind)) = rest.split_first_chunk::<16>() {
        let length = u32::from_le_bytes(header[8..12].try_into().unwrap());
        let (frame, behind) = behind.split_at(usize::try_from(length).unwrap());
        rest = behind;
        if frame[12..14] == [8, 0] {
            packets.push(&frame[14..]);
        }
    }
    packets
}

#[test]
fn what_kernels_sent_is_delivered_and_wrapped_again_octet_for_octet() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut captures = 0;
    for file in fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let octets = fs::read(&path).unwrap();
        let mut engine = Engine::new(EngineConfig::default(), tables());
        let (mut same, mut announced, mut families) = (0, 0, std::collections::BTreeSet::new());
        for packet in packets(&octets) {
            let mut batch = Batch::new(1, 2000);
            let mut packet = packet.to_vec();
            // A guest leaves checksums to its virtual device, and the capture is taken before that:
            // the outer UDP one is unfinished. Zero is none. RFC 768.
            if packet[0] == 0x45 && packet[9] == 17 {
                packet[26..28].fill(0);
            }
            let mut frame = batch.push(&packet, Link::LOCAL).unwrap();
            outer::pull(&mut frame).unwrap();
            let payload = frame.bytes().to_vec();
            let local = tables().local().clone();
            let opened = shim::open(&payload, frame.link().transport, &local);
            engine.decap(&mut batch, Time::ZERO);
            let frame = batch.frame(0).unwrap();
            if frame.verdict == Verdict::Drop(DropReason::WrongVtepMac) {
                // A router solicitation or such, to a group.
                announced += 1;
                continue;
            }
            assert!(
                matches!(frame.verdict, Verdict::Deliver | Verdict::Probe),
                "{name}: {:?}",
                frame.verdict
            );
            let opened = opened.unwrap();
            let encapsulation = match opened.kind {
                EncapsulationKind::Vxlan => Encapsulation::Vxlan {
                    vni: vni(),
                    port: 8472,
                    mac: NODE,
                },
                EncapsulationKind::Geneve => Encapsulation::Geneve {
                    vni: vni(),
                    port: 6081,
                    mac: NODE,
                },
                EncapsulationKind::Ipip => Encapsulation::Ipip,
                EncapsulationKind::Fou => Encapsulation::Fou { port: 5555 },
                EncapsulationKind::Gue => Encapsulation::Gue { port: 6080 },
                EncapsulationKind::VxlanGpe => panic!("no kernel here sends it"),
            };
            let family = opened.packet.family();
            families.insert(family == Family::V6);
            let mut again = Batch::new(1, 2000);
            let mut wrapped = again.push(frame.bytes, Link::LOCAL).unwrap();
            let permit = Policy::AllowAll
                .decide(Direction::Encap, &opened.packet.flow)
                .unwrap();
            shim::push(&mut wrapped, family, encapsulation, KERNEL, permit).unwrap();
            assert_eq!(wrapped.bytes(), payload, "{name}");
            same += 1;
        }
        eprintln!("{name}: {same} packets the same, {announced} to groups");
        assert!(same >= 10, "{name}: {same}");
        captures += 1;
    }
    assert_eq!(captures, 9);
}
