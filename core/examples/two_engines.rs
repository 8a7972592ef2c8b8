//! An embedder's view: two nodes of an overlay in one process, with a vector for a wire.
//!
//! The library does no input or output. This program plays both devices and the underlay: it
//! moves octets from one engine's batch to the other's and prints what became of each packet.
//!
//! ```text
//! cargo run -p warren-core --example two_engines
//! ```
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;

use etherparse::PacketBuilder;
use warren_core::encap::{Encapsulation, outer};
use warren_core::tables::{DscpMode, EcnMode, Local, Peer, Receive};
use warren_core::units::{MacAddr, Mtu, Time, Vni};
use warren_core::{
    Batch, Direction, Engine, EngineConfig, Link, NextHop, TableWriter, Tables, Tunnel, Verdict,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut one = Engine::new(EngineConfig::default(), tables(1, 2)?);
    let mut two = Engine::new(EngineConfig::default(), tables(2, 1)?);

    // What an application on node 1 gives to its device: a packet for node 2, one that is too
    // big for the tunnel, one for nobody, and one with a false source.
    let mut from_device = Batch::new(64, 2000);
    for (source, destination, octets) in [
        ([10, 42, 1, 7], [10, 42, 2, 9], 100),
        ([10, 42, 1, 7], [10, 42, 2, 9], 1500),
        ([10, 42, 1, 7], [10, 99, 0, 1], 100),
        ([10, 42, 2, 9], [10, 42, 2, 9], 100),
    ] {
        let mut packet = Vec::new();
        PacketBuilder::ipv4(source, destination, 64)
            .udp(4000, 5001)
            .write(&mut packet, &vec![0; octets])?;
        from_device.push(&packet, Link::LOCAL);
    }

    // Node 1 decides; the embedder obeys the verdicts.
    let now = Time::ZERO;
    one.encap(&mut from_device, now);
    let mut wire: Vec<Vec<u8>> = Vec::new();
    for index in 0..from_device.len() {
        let Some(mut frame) = from_device.frame_mut(index) else {
            break;
        };
        match frame.verdict() {
            Verdict::Transmit => {
                // A node with sockets gives frame.link() to its kernel; this one writes the outer
                // headers itself.
                outer::push(&mut frame).map_err(|reason| reason.name())?;
                println!("packet {index}: {} octets on the wire", frame.bytes().len());
                wire.push(frame.bytes().to_vec());
            }
            Verdict::Reply(reason) => println!(
                "packet {index}: {reason}; {} octets of ICMP go back to the device",
                frame.bytes().len()
            ),
            Verdict::Drop(reason) => println!("packet {index}: {reason}"),
            verdict
            @ (Verdict::Undecided | Verdict::Deliver | Verdict::Probe | Verdict::Direct) => {
                println!("packet {index}: {verdict:?}");
            }
        }
    }

    // Node 2 takes the outer headers off and decapsulates.
    let mut from_wire = Batch::new(64, 2000);
    for octets in &wire {
        if let Some(mut frame) = from_wire.push(octets, Link::LOCAL) {
            outer::pull(&mut frame)?;
        }
    }
    two.decap(&mut from_wire, now);
    for frame in from_wire.frames() {
        println!("node 2: {:?}, {} octets", frame.verdict, frame.bytes.len());
    }

    for (name, counters) in [
        ("node 1 encap", one.counters(Direction::Encap)),
        ("node 2 decap", two.counters(Direction::Decap)),
    ] {
        println!(
            "{name}: {} received = {} forwarded + {} dropped",
            counters.received.packets,
            counters.forwarded.packets,
            counters.dropped()
        );
        for (reason, count) in counters.drops_by_reason() {
            println!("  {reason}: {count}");
        }
    }
    Ok(())
}

/// What node `me` knows: its own prefix 10.42.<me>.0/24, and the other node's behind a tunnel.
fn tables(me: u8, other: u8) -> Result<Arc<Tables>, Box<dyn Error>> {
    let vni = Vni::new(1).ok_or("a VNI has 24 bits")?;
    let underlay = |node: u8| IpAddr::from([192, 0, 2, node]);
    let mac = |node: u8| MacAddr::new([0x02, 0, 0, 0, 0, node]);
    let mut writer = TableWriter::new(Local {
        addresses: vec![IpAddr::from([10, 42, me, 1])],
        underlay: vec![underlay(me)],
        vtep_mac: mac(me),
        receive: Receive {
            vxlan: vec![8472],
            vnis: vec![vni],
            ..Receive::default()
        },
    });
    let peer = writer.add_peer(Peer {
        name: format!("node-{other}"),
        underlay: vec![underlay(other)],
        dscp: DscpMode::Pipe(0),
    })?;
    let encapsulation = Encapsulation::Vxlan {
        vni,
        port: 8472,
        mac: mac(other),
    };
    let tunnel = writer.next_hop(NextHop::Tunnel(Tunnel {
        peer,
        local: underlay(me),
        remote: underlay(other),
        encapsulation,
        mtu: encapsulation.inner_mtu(warren_core::units::Family::V4, Mtu::ETHERNET),
        hop_limit: 64,
        dscp: DscpMode::Pipe(0),
        ecn: EcnMode::Normal,
    }))?;
    let local = writer.next_hop(NextHop::Local)?;
    writer.insert(format!("10.42.{me}.0/24").parse()?, local)?;
    writer.insert(format!("10.42.{other}.0/24").parse()?, tunnel)?;
    Ok(writer.publish())
}
