//! What the programs and the node share: keys and values of the maps, and the numbers that both see
//! at once.
//!
//! The programs find a field by [`offset_of!`](std::mem::offset_of), so that a layout is written down
//! once. Fields that a header has are in the order that it has them in.

use std::net::IpAddr;

use warren_core::packet::FlowKey;
use zerocopy::{Immutable, IntoBytes};

/// What a flow is found by: inner addresses and ports, in network order.
#[derive(Clone, Copy, Debug, Eq, Hash, Immutable, IntoBytes, PartialEq)]
#[repr(C)]
pub(super) struct Key {
    /// An IPv4 address stands in the first four octets.
    pub(super) source: [u8; 16],
    pub(super) destination: [u8; 16],
    pub(super) ports: [u8; 4],
    pub(super) protocol: u8,
    /// 4 or 6.
    pub(super) version: u8,
    pub(super) zero: [u8; 2],
}

impl Key {
    pub(super) fn of(flow: &FlowKey) -> Self {
        let octets = |address: IpAddr| {
            let mut octets = [0; 16];
            match address {
                IpAddr::V4(address) => octets[..4].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => octets = address.octets(),
            }
            octets
        };
        let [[a, b], [c, d]] = [flow.source_port, flow.destination_port].map(u16::to_be_bytes);
        Self {
            source: octets(flow.source),
            destination: octets(flow.destination),
            ports: [a, b, c, d],
            protocol: flow.protocol,
            version: if flow.source.is_ipv4() { 4 } else { 6 },
            zero: [0; 2],
        }
    }
}

/// How the packets of a flow leave.
#[derive(Clone, Copy, Debug, Eq, Immutable, IntoBytes, PartialEq)]
#[repr(C)]
pub(super) struct Departure {
    /// The epoch of the tables that it follows from.
    pub(super) generation: u64,
    /// The device to leave by.
    pub(super) device: u32,
    /// Where it is counted.
    pub(super) slot: u32,
    /// The largest packet, or segment of a super-packet.
    pub(super) largest_octets: u16,
    /// Of the inner header, in place.
    pub(super) dscp: u8,
    /// The DF flag of the inner header, in place; zero for IPv6.
    pub(super) dont_fragment: u8,
    /// The outer traffic class by the inner ECN field.
    pub(super) traffic_classes: [u8; 4],
    /// Octets of what stands in front, by which a program knows the [`Carrier`].
    pub(super) outer_octets: u8,
    /// Whether datagrams that come thick and fast take the long way, where they are joined.
    pub(super) joins: u8,
    pub(super) padding: [u8; 2],
    /// The sum of the outer header's words without its first two, not folded.
    pub(super) sum: u32,
    /// What goes into the outer UDP checksum whatever the packet, not folded.
    pub(super) sum_of_udp: u32,
    pub(super) rest: [u8; 4],
    pub(super) front: Front,
}

/// The outer headers, with lengths, traffic class and checksum left out: they end where the inner packet
/// begins, at [`FRONT_OCTETS`].
#[derive(Clone, Copy, Debug, Eq, Immutable, IntoBytes, PartialEq)]
#[repr(C, align(8))]
pub(super) struct Front {
    pub(super) octets: [u8; FRONT_OCTETS],
    pub(super) rest: [u8; 4],
}

/// How the packets of a flow are delivered.
#[derive(Clone, Copy, Debug, Eq, Immutable, IntoBytes, PartialEq)]
#[repr(C)]
pub(super) struct Arrival {
    /// The epoch of the tables that it follows from.
    pub(super) generation: u64,
    /// Where it is counted.
    pub(super) slot: u32,
    /// Outer source and destination.
    pub(super) remote: [u8; 4],
    pub(super) local: [u8; 4],
    /// Of the inner header and the outer one, in place.
    pub(super) dscp: u8,
    pub(super) outer_dscp: u8,
    /// The pairs of ECN fields that pass; see
    /// [`DeliveryOffer::passes`](warren_core::engine::DeliveryOffer::passes).
    pub(super) passes: u16,
    /// The outer destination port; zero where there is none.
    pub(super) port: [u8; 2],
    /// Whether super-packets are delivered this way, too.
    pub(super) takes_super: u8,
    /// As in a [`Departure`].
    pub(super) outer_octets: u8,
    pub(super) shim: [u8; SHIM_OCTETS_MAX],
    pub(super) rest: [u8; 6],
}

/// Octets of the longest shim that the programs know: VXLAN or Geneve, and Ethernet.
pub(super) const SHIM_OCTETS_MAX: usize = 8 + 14;
/// Octets before the inner packet in a [`Front`]: the most that is put in front of one, and what makes it
/// a multiple of four.
pub(super) const FRONT_OCTETS: usize = 20 + 8 + SHIM_OCTETS_MAX + 2;

/// What a packet is carried in, over IPv4.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Carrier {
    /// VXLAN or Geneve, with an Ethernet header.
    Ethernet,
    /// VXLAN-GPE.
    Gpe,
    Gue,
    Fou,
    /// An outer IPv4 header and nothing else.
    Ip,
}

impl Carrier {
    pub(super) const ALL: [Self; 5] = [Self::Ethernet, Self::Gpe, Self::Gue, Self::Fou, Self::Ip];

    /// Octets between the UDP header, or else the outer header, and the packet: what a socket would be given with
    /// it.
    pub(super) const fn shim_octets(self) -> u8 {
        match self {
            Self::Ethernet => 22,
            Self::Gpe => 8,
            Self::Gue => 4,
            Self::Fou | Self::Ip => 0,
        }
    }

    /// Octets that are put in front of a packet: another number for each.
    pub(super) const fn outer_octets(self) -> u8 {
        match self {
            Self::Ip => 20,
            Self::Ethernet | Self::Gpe | Self::Gue | Self::Fou => 28 + self.shim_octets(),
        }
    }

    /// Whether there is a UDP header.
    pub(super) const fn is_udp(self) -> bool {
        !matches!(self, Self::Ip)
    }
}

/// Numbers of 64 bits in a place of the shared ones: a line of the caches.
pub(super) const PLACE: usize = 8;

/// Numbers of the first place, which is none of a flow's.
pub(super) mod global {
    /// The epoch of the tables that hold; 0 while nothing is to take the short way.
    pub(in crate::shortcut) const GENERATION: usize = 0;

    /// Packets in UDP that were dropped halfway, at the device, and their octets with shims.
    pub(in crate::shortcut) const ENCAP_FAILED_UDP: usize = 1;
    /// Those in IP; behind them their octets, as above.
    pub(in crate::shortcut) const ENCAP_FAILED_IP: usize = 3;
}

/// Numbers of a flow's place.
pub(super) mod of_flow {
    pub(in crate::shortcut) const PACKETS: usize = 0;
    /// Of the inner packets.
    pub(in crate::shortcut) const OCTETS: usize = 1;
    /// When a packet last took the long way because of what it is, in nanoseconds of the kernel's
    /// monotonic clock.
    pub(in crate::shortcut) const LONG_WAY: usize = 2;
    /// The moment of the last datagram, in some four milliseconds, how many came in it so far, and how
    /// many in the one before.
    pub(in crate::shortcut) const MOMENT: usize = 3;
    pub(in crate::shortcut) const OF_MOMENT: usize = 4;
    pub(in crate::shortcut) const BEFORE: usize = 5;
    /// When a super-packet last left that the receiver's kernel joins again, in nanoseconds as above.
    pub(in crate::shortcut) const JOINED: usize = 6;
}

const _: () = assert!(size_of::<Key>() == 40);
const _: () = assert!(Carrier::Ethernet.shim_octets() as usize == SHIM_OCTETS_MAX);
const _: () = assert!(FRONT_OCTETS.is_multiple_of(4));
const _: () = assert!(std::mem::offset_of!(Departure, front) % 8 == 0);
const _: () = assert!(size_of::<Front>() == 56);
const _: () = assert!(std::mem::offset_of!(Arrival, shim) % 4 == 0);
