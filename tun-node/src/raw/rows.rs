//! Datagrams in a row in IP, as one super-packet: who takes them, and how a raw socket is told where they
//! are to be cut.
//!
//! ```text
//! underlay's device ── ingress: program ── a super-packet of datagrams ──> its segment size in the
//!                                              │                            outer header ──> raw socket
//!                                              └─ all else: as it is
//! ```
//!
//! Where nothing between two nodes cuts packets (a veth, a bridge on one host), what one of them sends as one
//! super-packet comes to the other as one. A UDP socket is told how long its segments are (`UDP_GRO`), a raw
//! socket is not, and of datagrams, other than of a stream, nothing else says it. But the kernel knows, and a
//! program of BPF at the device may ask: it writes the number into the outer header, where the socket finds
//! it. The identification says nothing any more of a packet that is no fragment and has arrived, and the first
//! flag, which RFC 791 reserves, says that it was written; of packets that bring it along it is cleared.
//!
//! Only to a peer that has such a program datagrams leave in a row. It says so in its answers to probes
//! ([`Message::takes_rows`](warren_core::probe::Message::takes_rows)), and kernels, which would take them, too,
//! say nothing.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bincode::{Decode, Encode};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tracing::info;
use warren_core::wire::{Ipv4Header, ip_protocol};

use crate::assembler::Operation::{Add, And, ExclusiveOr, Or, ShiftRight};
use crate::assembler::Width::{Byte, Half, Word};
use crate::assembler::{Assembler, R0, R1, R2, R3, R4, R5, R6, R7, R8, R10, When};
use crate::netlink::device_of;
use crate::sys::bpf::abi::{
    LOAD_BYTES, NEXT, SKB_GSO_SIZE, SKB_PACKET_TYPE, SKB_PROTOCOL, STORE_BYTES,
};
use crate::sys::bpf::{self, Instruction};

/// Who takes datagrams in a row; for all threads of a node.
#[derive(Debug, Default)]
pub struct Rows {
    /// Whether this node does.
    takes: AtomicBool,
    /// The underlay addresses of peers that do.
    takers: RwLock<HashSet<IpAddr>>,
}

impl Rows {
    /// Whether this node takes datagrams in a row.
    #[must_use]
    pub fn are_taken(&self) -> bool {
        self.takes.load(Ordering::Relaxed)
    }

    /// Whether the peer at that underlay address does.
    #[must_use]
    pub fn are_taken_by(&self, peer: IpAddr) -> bool {
        self.takers.read().contains(&peer)
    }

    /// A peer says whether it does.
    pub(crate) fn are_said(&self, peer: IpAddr, takes: bool) {
        if self.are_taken_by(peer) == takes {
            return;
        }
        let mut takers = self.takers.write();
        if takes {
            takers.insert(peer);
        } else {
            takers.remove(&peer);
        }
    }
}

/// The program at the underlay's device, for as long as this lives.
#[derive(Debug)]
pub struct RowMarker {
    rows: Arc<Rows>,
    /// With the device that it is attached to, and the address whose packets it looks at.
    attached: Option<(OwnedFd, (u32, Ipv4Addr))>,
    /// Why it is attached to none.
    because: Option<String>,
}

impl RowMarker {
    /// Of no device yet.
    #[must_use]
    pub const fn new(rows: Arc<Rows>) -> Self {
        Self {
            rows,
            attached: None,
            because: None,
        }
    }

    /// Attaches the program to the device that has the underlay's `address`, or to none, where there is a reason
    /// for that in its place; to be called now and then, in the network namespace of the underlay.
    pub fn look(&mut self, address: Result<Ipv4Addr, &str>) {
        let followed = address.map_err(str::to_owned).and_then(|address| {
            let followed = self.follow(address);
            followed.map_err(|error| format!("{error}{}", bpf::hint(&error)))
        });
        self.rows.takes.store(followed.is_ok(), Ordering::Relaxed);
        let because = followed.err();
        if because.is_some() {
            self.attached = None;
        }
        if because != self.because {
            info!(on = because.is_none(), ?because, "datagrams in a row in IP");
            self.because = because;
        }
    }

    fn follow(&mut self, address: Ipv4Addr) -> io::Result<()> {
        let device = device_of(address)?;
        let wanted = (device, address);
        if self.attached.as_ref().is_some_and(|(_, at)| *at == wanted) {
            return Ok(());
        }
        // Never two at one device.
        self.attached = None;
        let program = bpf::load_classifier(&program(address))?;
        let attached = bpf::attach_ingress(program.as_fd(), device)?;
        self.attached = Some((attached, wanted));
        Ok(())
    }

    /// How it is.
    #[must_use]
    pub fn report(&self) -> RowsReport {
        RowsReport {
            on: self.rows.are_taken(),
            because: self.because.clone().unwrap_or_default(),
            peers: u32::try_from(self.rows.takers.read().len()).unwrap_or(u32::MAX),
        }
    }
}

/// Who takes datagrams in a row in IP.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct RowsReport {
    /// Whether this node does.
    pub on: bool,
    /// Why not; empty when it does.
    pub because: String,
    /// How many peers said that they do.
    pub peers: u32,
}

impl Drop for RowMarker {
    fn drop(&mut self) {
        self.rows.takes.store(false, Ordering::Relaxed);
    }
}

/// How long the segments are that a received packet is to be cut into, as the program has it in the outer
/// header; only where there is one.
#[must_use]
pub fn segment_octets(outer: &[u8; size_of::<Ipv4Header>()]) -> Option<NonZeroU16> {
    let [_, _, _, _, high, low, flags, ..] = *outer;
    NonZeroU16::new(u16::from_be_bytes([high, low])).filter(|_| flags & WRITTEN != 0)
}

/// The program at the ingress of the underlay's device, for packets to `address`: what goes on to somebody else
/// stays as it is.
fn program(address: Ipv4Addr) -> Vec<Instruction> {
    let mut a = Assembler::default();
    let (next, joined, write) = (a.label(), a.label(), a.label());
    a.copy(R6, R1);
    a.load(Word, R1, R6, SKB_PACKET_TYPE);
    a.jump_if(R1, When::NotEqual, 0, next);
    a.load(Word, R1, R6, SKB_PROTOCOL);
    a.jump_if(R1, When::NotEqual, network(0x0800), next);
    a.copy(R1, R6);
    a.set(R2, ETHERNET_OCTETS);
    a.copy(R3, R10);
    a.by(Add, R3, HEADERS.into());
    a.set(R4, HEADERS_OCTETS);
    a.call(LOAD_BYTES);
    a.jump_if(R0, When::NotEqual, 0, next);
    a.load(Byte, R1, R10, HEADERS);
    a.jump_if(R1, When::NotEqual, 0x45, next);
    a.load(Word, R1, R10, HEADERS + 16);
    a.set_wide(R2, u32::from_ne_bytes(address.octets()).into());
    a.jump_if_both(R1, When::NotEqual, R2, next);
    // The family inside by the outer protocol: where its header has the transport's.
    let (v6, found) = (a.label(), a.label());
    a.load(Byte, R1, R10, HEADERS + 9);
    a.load(Byte, R2, R10, HEADERS + 20 + 9);
    a.jump_if(R1, When::NotEqual, 4, v6);
    a.jump(found);
    a.place(v6);
    a.jump_if(R1, When::NotEqual, 41, next);
    a.load(Byte, R2, R10, HEADERS + 20 + 6);
    a.place(found);
    // R7 and R8: identification and flags as they are to be.
    a.load(Half, R7, R10, HEADERS + 4);
    a.load(Half, R8, R10, HEADERS + 6);
    a.load(Word, R3, R6, SKB_GSO_SIZE);
    let single = a.label();
    a.jump_if(R3, When::Equal, 0, single);
    a.jump_if(R2, When::NotEqual, ip_protocol::UDP.into(), single);
    a.copy(R1, R8);
    a.by(And, R1, network(0xbfff));
    a.jump_if(R1, When::Equal, 0, joined);
    a.place(single);
    a.copy(R1, R8);
    a.by(And, R1, network(0x8000));
    a.jump_if(R1, When::Equal, 0, next);
    a.by(And, R8, network(0x7fff));
    a.jump(write);
    a.place(joined);
    a.copy(R7, R3);
    a.network_order(R7);
    a.by(Or, R8, network(0x8000));
    a.place(write);
    // RFC 1624, equation 3: by what changes. The order of octets does not matter to a sum.
    a.load(Half, R1, R10, HEADERS + 10);
    a.by(ExclusiveOr, R1, 0xffff);
    for (at, now) in [(4, R7), (6, R8)] {
        a.load(Half, R2, R10, HEADERS + at);
        a.by(ExclusiveOr, R2, 0xffff);
        a.with(Add, R1, R2);
        a.with(Add, R1, now);
        a.store(Half, R10, HEADERS + at, now);
    }
    for _ in 0..2 {
        a.copy(R2, R1);
        a.by(ShiftRight, R2, 16);
        a.by(And, R1, 0xffff);
        a.with(Add, R1, R2);
    }
    a.by(ExclusiveOr, R1, 0xffff);
    a.store(Half, R10, HEADERS + 10, R1);
    a.copy(R1, R6);
    a.set(R2, ETHERNET_OCTETS + 4);
    a.copy(R3, R10);
    a.by(Add, R3, i32::from(HEADERS) + 4);
    a.set(R4, 8);
    a.set(R5, 0);
    a.call(STORE_BYTES);
    a.place(next);
    a.set(R0, NEXT);
    a.exit();
    a.finish()
}

/// What is loaded of a half word of the wire that has this value.
const fn network(value: u16) -> i32 {
    value.to_be() as i32
}

/// The first flag of an IPv4 header.
const WRITTEN: u8 = 0x80;

/// Where the stack has the outer header, and what of the inner one says its transport.
const HEADERS: i16 = -32;
const HEADERS_OCTETS: i32 = 30;
const ETHERNET_OCTETS: i32 = 14;
