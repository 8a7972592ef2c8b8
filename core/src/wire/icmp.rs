//! ICMP for IPv4.

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Layer, ParseError};

/// ICMP message types. RFC 792.
pub mod kind {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable; the code says why.
    pub const UNREACHABLE: u8 = 3;
    /// Source quench; deprecated by RFC 6633.
    pub const SOURCE_QUENCH: u8 = 4;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// Time exceeded; code 0 is TTL, code 1 is reassembly.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// Codes of [`kind::UNREACHABLE`]. RFC 792, RFC 1122 section 3.2.2.1, RFC 1812 section 5.2.7.1.
pub mod unreachable {
    /// No route to the network.
    pub const NET: u8 = 0;
    /// No way to the host.
    pub const HOST: u8 = 1;
    /// The host does not speak the protocol.
    pub const PROTOCOL: u8 = 2;
    /// Nobody listens on the port.
    pub const PORT: u8 = 3;
    /// Too big and may not be fragmented; the next-hop MTU is in octets 6..8. RFC 1191.
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// The source route failed.
    pub const SOURCE_ROUTE_FAILED: u8 = 5;
    /// Filtered by an administrator.
    pub const PROHIBITED: u8 = 13;
}

/// ICMP header, 8 octets. RFC 792.
///
/// | octet | 0    | 1    | 2..4     | 4..8                        |
/// |-------|------|------|----------|-----------------------------|
/// | field | type | code | checksum | depends on type (identifier and sequence; or unused and MTU) |
#[derive(
    Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned,
)]
#[repr(C)]
pub struct IcmpHeader {
    kind: u8,
    code: u8,
    checksum: U16,
    rest: [u8; 4],
}

impl IcmpHeader {
    /// Makes a header with a zero checksum.
    #[must_use]
    pub const fn new(kind: u8, code: u8, rest: [u8; 4]) -> Self {
        Self {
            kind,
            code,
            checksum: U16::ZERO,
            rest,
        }
    }

    /// Splits a header off the front of `bytes`.
    ///
    /// # Errors
    ///
    /// `Truncated` below 8 octets.
    pub fn parse(bytes: &[u8]) -> Result<(&Self, &[u8]), ParseError> {
        Self::ref_from_prefix(bytes).map_err(|_| ParseError::truncated(Layer::Icmp))
    }

    /// The message type: see [`kind`](mod@kind).
    #[must_use]
    pub const fn kind(&self) -> u8 {
        self.kind
    }

    /// The code within the type.
    #[must_use]
    pub const fn code(&self) -> u8 {
        self.code
    }

    /// The checksum over the whole message.
    #[must_use]
    pub const fn checksum(&self) -> u16 {
        self.checksum.get()
    }

    /// Octets 4..8.
    #[must_use]
    pub const fn rest(&self) -> [u8; 4] {
        self.rest
    }

    /// The next-hop MTU of a "fragmentation needed" message. RFC 1191 section 4.
    #[must_use]
    pub const fn mtu(&self) -> u16 {
        let [_, _, high, low] = self.rest;
        u16::from_be_bytes([high, low])
    }

    /// Whether the message reports an error, so that none may be sent about it. RFC 1122
    /// section 3.2.2.
    #[must_use]
    pub const fn is_error(&self) -> bool {
        matches!(
            self.kind,
            kind::UNREACHABLE
                | kind::SOURCE_QUENCH
                | kind::REDIRECT
                | kind::TIME_EXCEEDED
                | kind::PARAMETER_PROBLEM
        )
    }

    /// Sets the checksum.
    pub const fn set_checksum(&mut self, checksum: u16) {
        self.checksum = U16::new(checksum);
    }
}

const _: () = assert!(size_of::<IcmpHeader>() == 8);
