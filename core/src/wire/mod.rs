//! Headers as octets: one file a protocol, each a `#[repr(C)]` struct of octet arrays that is
//! layout, reader and writer in one.
//!
//! `parse` borrows the header from the front of a slice and hands back the rest; `new` makes one
//! that can be written with [`zerocopy::IntoBytes`]. Nothing here allocates, copies a payload or
//! knows what a packet is for. Checksums are in [`checksum`].

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod geneve;
pub mod gue;
pub mod icmp;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
pub mod udp;
pub mod virtio;
pub mod vxlan;
pub mod vxlan_gpe;

use core::fmt;

pub use arp::ArpPacket;
pub use ethernet::{EthernetHeader, VlanTag};
pub use geneve::GeneveHeader;
pub use gue::GueHeader;
pub use icmp::IcmpHeader;
pub use icmpv6::Icmpv6Header;
pub use ipv4::Ipv4Header;
pub use ipv6::Ipv6Header;
pub use tcp::TcpHeader;
pub use udp::UdpHeader;
pub use virtio::VirtioNetHeader;
pub use vxlan::VxlanHeader;
pub use vxlan_gpe::VxlanGpeHeader;

/// EtherTypes. IEEE 802 numbers, as IANA lists them.
pub mod ether_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// 802.1Q customer tag.
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// 802.1ad service tag.
    pub const SERVICE_VLAN: u16 = 0x88a8;
    /// Transparent Ethernet bridging: an Ethernet frame inside. RFC 8926 section 3.4.
    pub const ETHERNET: u16 = 0x6558;
}

/// Internet protocol numbers, for the IPv4 protocol and the IPv6 next-header field.
pub mod ip_protocol {
    /// IPv6 hop-by-hop options. RFC 8200 section 4.3.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP. RFC 792.
    pub const ICMP: u8 = 1;
    /// IPv4 inside: IP in IP. RFC 2003.
    pub const IPV4: u8 = 4;
    /// TCP. RFC 9293.
    pub const TCP: u8 = 6;
    /// UDP. RFC 768.
    pub const UDP: u8 = 17;
    /// IPv6 inside. RFC 4213.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header. RFC 8200 section 4.4.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header. RFC 8200 section 4.5.
    pub const FRAGMENT: u8 = 44;
    /// GRE. RFC 2784.
    pub const GRE: u8 = 47;
    /// Authentication header. RFC 4302.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6. RFC 4443.
    pub const ICMPV6: u8 = 58;
    /// No next header. RFC 8200 section 4.7.
    pub const NO_NEXT: u8 = 59;
    /// IPv6 destination options. RFC 8200 section 4.6.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP. RFC 9260.
    pub const SCTP: u8 = 132;
}

/// Which header could not be read.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Layer {
    /// Ethernet II.
    Ethernet,
    /// An 802.1Q or 802.1ad tag.
    Vlan,
    /// ARP.
    Arp,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// An IPv6 extension header.
    Ipv6Extension,
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
    /// ICMP for IPv4.
    Icmp,
    /// ICMP for IPv6.
    Icmpv6,
    /// VXLAN.
    Vxlan,
    /// VXLAN with a protocol field.
    VxlanGpe,
    /// Generic UDP encapsulation.
    Gue,
    /// Geneve.
    Geneve,
    /// The virtio-net header of a TUN or TAP device.
    Virtio,
}

/// What was wrong with it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum ParseErrorKind {
    /// The octets end before the header or what it announces.
    Truncated,
    /// A field has a value that the protocol does not allow, or one that is not understood and
    /// may not be skipped.
    Invalid,
    /// A checksum does not match.
    Checksum,
}

/// A header that could not be read: which, and why. Two octets.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ParseError {
    /// Which header.
    pub layer: Layer,
    /// What was wrong.
    pub kind: ParseErrorKind,
}

impl ParseError {
    /// Makes the error.
    #[must_use]
    pub const fn new(layer: Layer, kind: ParseErrorKind) -> Self {
        Self { layer, kind }
    }

    pub(crate) const fn truncated(layer: Layer) -> Self {
        Self::new(layer, ParseErrorKind::Truncated)
    }

    pub(crate) const fn invalid(layer: Layer) -> Self {
        Self::new(layer, ParseErrorKind::Invalid)
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ParseErrorKind::Truncated => "ends too early",
            ParseErrorKind::Invalid => "has an invalid field",
            ParseErrorKind::Checksum => "has a wrong checksum",
        };
        write!(f, "{:?} header {kind}", self.layer)
    }
}

impl core::error::Error for ParseError {}

const _: () = assert!(size_of::<ParseError>() == 2);
