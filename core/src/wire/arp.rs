//! ARP for IPv4 over Ethernet.

use core::net::Ipv4Addr;

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Layer, ParseError, ether_type};
use crate::units::MacAddr;

/// ARP packet for IPv4 over Ethernet, 28 octets. RFC 826.
///
/// | octet | 0..2 | 2..4   | 4 | 5 | 6..8      | 8..14      | 14..18    | 18..24     | 24..28    |
/// |-------|------|--------|---|---|-----------|------------|-----------|------------|-----------|
/// | field | 1    | 0x0800 | 6 | 4 | operation | sender MAC | sender IP | target MAC | target IP |
#[derive(
    Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned,
)]
#[repr(C)]
pub struct ArpPacket {
    hardware_type: U16,
    protocol_type: U16,
    hardware_octets: u8,
    protocol_octets: u8,
    operation: U16,
    sender_mac: [u8; 6],
    sender_ip: [u8; 4],
    target_mac: [u8; 6],
    target_ip: [u8; 4],
}

impl ArpPacket {
    /// The operation "who has".
    pub const REQUEST: u16 = 1;
    /// The operation "is at".
    pub const REPLY: u16 = 2;

    /// Makes a packet.
    #[must_use]
    pub const fn new(
        operation: u16,
        sender: (MacAddr, Ipv4Addr),
        target: (MacAddr, Ipv4Addr),
    ) -> Self {
        Self {
            hardware_type: U16::new(1),
            protocol_type: U16::new(ether_type::IPV4),
            hardware_octets: 6,
            protocol_octets: 4,
            operation: U16::new(operation),
            sender_mac: sender.0.octets(),
            sender_ip: sender.1.octets(),
            target_mac: target.0.octets(),
            target_ip: target.1.octets(),
        }
    }

    /// Splits a packet off the front of `bytes`.
    ///
    /// # Errors
    ///
    /// `Truncated` below 28 octets; `Invalid` when it is not about IPv4 over Ethernet.
    pub fn parse(bytes: &[u8]) -> Result<(&Self, &[u8]), ParseError> {
        let (packet, rest) =
            Self::ref_from_prefix(bytes).map_err(|_| ParseError::truncated(Layer::Arp))?;
        let ipv4_over_ethernet = packet.hardware_type.get() == 1
            && packet.protocol_type.get() == ether_type::IPV4
            && packet.hardware_octets == 6
            && packet.protocol_octets == 4;
        if ipv4_over_ethernet {
            Ok((packet, rest))
        } else {
            Err(ParseError::invalid(Layer::Arp))
        }
    }

    /// [`REQUEST`](Self::REQUEST), [`REPLY`](Self::REPLY) or something rarer.
    #[must_use]
    pub const fn operation(&self) -> u16 {
        self.operation.get()
    }

    /// Who speaks.
    #[must_use]
    pub const fn sender(&self) -> (MacAddr, Ipv4Addr) {
        let [a, b, c, d] = self.sender_ip;
        (MacAddr::new(self.sender_mac), Ipv4Addr::new(a, b, c, d))
    }

    /// Who is asked for, or answered.
    #[must_use]
    pub const fn target(&self) -> (MacAddr, Ipv4Addr) {
        let [a, b, c, d] = self.target_ip;
        (MacAddr::new(self.target_mac), Ipv4Addr::new(a, b, c, d))
    }
}

const _: () = assert!(size_of::<ArpPacket>() == 28);
