//! Warren's core: a routed overlay as pure functions over octets.
//!
//! An overlay carries the packets of one network inside those of another. This library does that
//! for IPv4 and IPv6 over VXLAN, Geneve, IP in IP, FOU and GUE, over either IP version, and does
//! nothing else: no socket, no device, no clock, no thread, no operating system (`no_std` with
//! `alloc`; what unsafe code there is, is in one audited module, `fib::simd`). Whoever embeds it
//! moves octets in and out and says what time it is.
//!
//! # The story of a packet
//!
//! A packet leaves an application and reaches a node's local device. The shell that owns the device
//! reads it into a slot of a [`Batch`], behind [`HEADROOM`](batch::HEADROOM) free octets, and hands
//! the batch to [`Engine::encap`]:
//!
//! 1. [`Packet::parse`](packet::Packet::parse) walks over its headers once. What it proves, later
//!    steps rely on.
//! 2. It is *checked*: a whole header, a right checksum, addresses that may be seen on a wire, no
//!    source route, no impossible fragment.
//! 3. Both its addresses are *looked up* in the [`Tables`], together with those of its neighbours
//!    in the batch. The source must be this node's own; the destination's longest prefix names a
//!    [`NextHop`].
//! 4. [`policy`] is asked and gives a permit, without which nothing is encapsulated.
//! 5. The [`Tunnel`] of the next hop is entered, if that would not be a loop and the packet fits:
//!    its TTL sinks by one, [`encap::shim`] pushes the tunnel's header into the headroom, and the
//!    frame's [`Link`] says to which address, from which port, with which TTL, DF and traffic class
//!    it is to be sent.
//!
//! The frame's [`Verdict`] is then [`Transmit`](Verdict::Transmit): the shell sends it. Its kernel
//! writes the outer headers, or [`encap::outer`] does. Had it not passed, the verdict would say
//! [`Drop`](Verdict::Drop) and why, or [`Reply`](Verdict::Reply): then the frame holds an ICMP error
//! that goes back to the sender.
//!
//! At the other node the shell hands what its socket received to [`Engine::decap`]. The outer
//! source must be a configured peer, the shim one that this node receives, the inner source an
//! address that this very peer owns, the destination one of this node's own; what is inside must
//! not be a tunnel again that would be opened here. The shim is pulled off, the congestion mark of the way is merged in
//! ([`encap::ecn`]), and the verdict is [`Deliver`](Verdict::Deliver).
//!
//! Every frame is counted, and every drop under its reason: received = forwarded + dropped, in each
//! direction, at any time ([`Counters`](verdict::Counters)). Per packet nothing is allocated or
//! locked, and no payload is copied but that of a packet that has to be cut to fit.
//!
//! # Example
//!
//! Two nodes, one packet:
//!
//! ```
//! use std::net::IpAddr;
//! use std::sync::Arc;
//! use warren_core::encap::Encapsulation;
//! use warren_core::tables::{DscpMode, EcnMode, Local, Peer, Receive};
//! use warren_core::units::{MacAddr, Mtu, Time, Vni};
//! use warren_core::{Batch, Engine, EngineConfig, Link, NextHop, TableWriter, Tables, Tunnel, Verdict};
//!
//! /// Node `me` of two: it has 10.42.<me>.0/24, its underlay address is 192.0.2.<me>.
//! fn tables(me: u8, other: u8) -> Result<Arc<Tables>, Box<dyn std::error::Error>> {
//!     let vni = Vni::new(1).ok_or("24 bits")?;
//!     let underlay = |node: u8| IpAddr::from([192, 0, 2, node]);
//!     let mac = |node: u8| MacAddr::new([0x02, 0, 0, 0, 0, node]);
//!     let mut writer = TableWriter::new(Local {
//!         addresses: vec![IpAddr::from([10, 42, me, 1])],
//!         underlay: vec![underlay(me)],
//!         vtep_mac: mac(me),
//!         receive: Receive { vxlan: vec![8472], vnis: vec![vni], ..Receive::default() },
//!     });
//!     let peer = writer.add_peer(Peer {
//!         name: format!("node-{other}"),
//!         underlay: vec![underlay(other)],
//!         dscp: DscpMode::Pipe(0),
//!     })?;
//!     let tunnel = writer.next_hop(NextHop::Tunnel(Tunnel {
//!         peer,
//!         local: underlay(me),
//!         remote: underlay(other),
//!         encapsulation: Encapsulation::Vxlan { vni, port: 8472, mac: mac(other) },
//!         mtu: Mtu::new(1450),
//!         hop_limit: 64,
//!         dscp: DscpMode::Pipe(0),
//!         ecn: EcnMode::Normal,
//!     }))?;
//!     let local = writer.next_hop(NextHop::Local)?;
//!     writer.insert(format!("10.42.{me}.0/24").parse()?, local)?;
//!     writer.insert(format!("10.42.{other}.0/24").parse()?, tunnel)?;
//!     Ok(writer.publish())
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut one = Engine::new(EngineConfig::default(), tables(1, 2)?);
//! let mut two = Engine::new(EngineConfig::default(), tables(2, 1)?);
//!
//! // An application at 10.42.1.7 sends "hello" to port 5001 of 10.42.2.9.
//! let mut packet = Vec::new();
//! etherparse::PacketBuilder::ipv4([10, 42, 1, 7], [10, 42, 2, 9], 64)
//!     .udp(4000, 5001)
//!     .write(&mut packet, b"hello")?;
//!
//! // Where does it go?
//! let next_hop = one.tables().lookup(IpAddr::from([10, 42, 2, 9]));
//! assert!(matches!(next_hop, Some(NextHop::Tunnel(_))));
//!
//! // Node 1 encapsulates it: 8 octets of VXLAN and 14 of Ethernet stand in front.
//! let mut batch = Batch::new(64, 1500);
//! batch.push(&packet, Link::LOCAL).ok_or("no room")?;
//! one.encap(&mut batch, Time::ZERO);
//! let sent = batch.frame(0).ok_or("no frame")?;
//! assert_eq!(sent.verdict, Verdict::Transmit);
//! assert_eq!(sent.link.remote, IpAddr::from([192, 0, 2, 2]));
//! assert_eq!(sent.bytes.len(), 22 + packet.len());
//!
//! // The underlay carries it; node 2 sees the link from the other side and decapsulates.
//! let mut arrived = Batch::new(64, 1500);
//! arrived.push(sent.bytes, sent.link.reversed()).ok_or("no room")?;
//! two.decap(&mut arrived, Time::ZERO);
//! let delivered = arrived.frame(0).ok_or("no frame")?;
//! assert_eq!(delivered.verdict, Verdict::Deliver);
//! assert_eq!(delivered.bytes.get(28..), packet.get(28..)); // one hop older, else the same
//! # Ok(())
//! # }
//! ```
//!
//! # The rooms
//!
//! | module | holds |
//! |---|---|
//! | [`wire`] | headers and octets; knows no other room |
//! | [`batch`] | frames with room in front; knows no protocol |
//! | [`packet`] | one walk over an IP packet: offsets and flow |
//! | [`fib`] | longest-prefix match |
//! | [`tables`] | peers, next hops, routes: an immutable snapshot, and the one way to change it |
//! | [`policy`] | what may pass |
//! | [`encap`] | tunnel headers, and the traffic class across a tunnel |
//! | [`engine`] | the only one that knows the others |
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

pub mod batch;
pub mod encap;
pub mod engine;
pub mod fib;
pub mod fragment;
pub mod gso;
pub mod packet;
pub mod pmtu;
pub mod policy;
pub mod probe;
pub mod relay;
pub mod tables;
pub mod units;
pub mod verdict;
pub mod wire;

pub use batch::{Batch, Link};
pub use engine::{Engine, EngineConfig};
pub use tables::{NextHop, TableWriter, Tables, Tunnel};
pub use verdict::{Direction, DropReason, Verdict};

/// The README's library example, compiled and run with the documentation's own.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
