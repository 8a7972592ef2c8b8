//! ICMP for IPv6, with neighbour discovery.

use core::net::Ipv6Addr;

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Layer, ParseError};

/// ICMPv6 message types. RFC 4443, RFC 4861. Below 128 are errors.
pub mod kind {
    /// Destination unreachable; the code says why.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big; the MTU is in octets 4..8.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Time exceeded; code 0 is hop limit, code 1 is reassembly.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
}

/// Codes of [`kind::UNREACHABLE`]. RFC 4443 section 3.1.
pub mod unreachable {
    /// No route to the destination.
    pub const NO_ROUTE: u8 = 0;
    /// Filtered by an administrator.
    pub const PROHIBITED: u8 = 1;
    /// The address does not answer.
    pub const ADDRESS: u8 = 3;
    /// Nobody listens on the port.
    pub const PORT: u8 = 4;
}

/// ICMPv6 header, 8 octets. RFC 4443 section 2.1.
///
/// | octet | 0    | 1    | 2..4     | 4..8            |
/// |-------|------|------|----------|-----------------|
/// | field | type | code | checksum | depends on type |
#[derive(
    Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned,
)]
#[repr(C)]
pub struct Icmpv6Header {
    kind: u8,
    code: u8,
    checksum: U16,
    rest: U32,
}

impl Icmpv6Header {
    /// Makes a header with a zero checksum.
    #[must_use]
    pub const fn new(kind: u8, code: u8, rest: u32) -> Self {
        Self {
            kind,
            code,
            checksum: U16::ZERO,
            rest: U32::new(rest),
        }
    }

    /// Splits a header off the front of `bytes`.
    ///
    /// # Errors
    ///
    /// `Truncated` below 8 octets.
    pub fn parse(bytes: &[u8]) -> Result<(&Self, &[u8]), ParseError> {
        Self::ref_from_prefix(bytes).map_err(|_| ParseError::truncated(Layer::Icmpv6))
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

    /// The checksum over pseudo header and message.
    #[must_use]
    pub const fn checksum(&self) -> u16 {
        self.checksum.get()
    }

    /// Octets 4..8: the MTU of a "packet too big", identifier and sequence of an echo.
    #[must_use]
    pub const fn rest(&self) -> u32 {
        self.rest.get()
    }

    /// Whether the message reports an error, so that none may be sent about it. RFC 4443
    /// section 2.4 (e.1); redirects count too (e.2).
    #[must_use]
    pub const fn is_error(&self) -> bool {
        self.kind < 128 || self.kind == kind::REDIRECT
    }

    /// Sets the checksum.
    pub const fn set_checksum(&mut self, checksum: u16) {
        self.checksum = U16::new(checksum);
    }
}

/// Neighbour solicitation or advertisement after the ICMPv6 type, code and checksum: flags and
/// target, 20 octets; options follow. RFC 4861 sections 4.3 and 4.4.
///
/// | octet | 0..4                                                       | 4..20  |
/// |-------|------------------------------------------------------------|--------|
/// | field | R, S, O (top three bits of an advertisement), rest reserved | target |
#[derive(
    Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned,
)]
#[repr(C)]
pub struct NeighbourBody {
    flags: U32,
    target: [u8; 16],
}

impl NeighbourBody {
    /// The sender is a router.
    pub const ROUTER: u32 = 1 << 31;
    /// The advertisement answers a solicitation.
    pub const SOLICITED: u32 = 1 << 30;
    /// The advertisement replaces what is cached.
    pub const OVERRIDE: u32 = 1 << 29;

    /// Makes a body.
    #[must_use]
    pub const fn new(flags: u32, target: Ipv6Addr) -> Self {
        Self {
            flags: U32::new(flags),
            target: target.octets(),
        }
    }

    /// Splits a body off `bytes`, which start at octet 4 of the ICMPv6 message.
    ///
    /// # Errors
    ///
    /// `Truncated` below 20 octets.
    pub fn parse(bytes: &[u8]) -> Result<(&Self, &[u8]), ParseError> {
        Self::ref_from_prefix(bytes).map_err(|_| ParseError::truncated(Layer::Icmpv6))
    }

    /// The flags of an advertisement; reserved in a solicitation.
    #[must_use]
    pub const fn flags(&self) -> u32 {
        self.flags.get()
    }

    /// The address asked for or announced.
    #[must_use]
    pub const fn target(&self) -> Ipv6Addr {
        Ipv6Addr::from_octets(self.target)
    }
}

const _: () = assert!(size_of::<Icmpv6Header>() == 8 && size_of::<NeighbourBody>() == 20);
