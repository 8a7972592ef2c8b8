//! VXLAN with a protocol field: VXLAN-GPE.
//!
//! Obeys draft-ietf-nvo3-vxlan-gpe-12 for version 0 with the payloads IPv4, IPv6 and Ethernet. Knowingly
//! not obeyed: payloads behind further shim headers (NSH, 0x80 and above) are refused, for none is
//! understood here.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Layer, ParseError};
use crate::units::Vni;

/// VXLAN-GPE header, 8 octets. draft-ietf-nvo3-vxlan-gpe-12 section 3.
///
/// | octet | 0                       | 1..3         | 3             | 4..7 | 7            |
/// |-------|-------------------------|--------------|---------------|------|--------------|
/// | field | R R version (2) I P B O | reserved = 0 | next protocol | VNI  | reserved = 0 |
#[derive(
    Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned,
)]
#[repr(C)]
pub struct VxlanGpeHeader {
    flags: u8,
    reserved1: [u8; 2],
    next_protocol: u8,
    vni: [u8; 3],
    reserved2: u8,
}

impl VxlanGpeHeader {
    /// The flag I: the VNI is valid.
    pub const FLAG_VNI: u8 = 0x08;
    /// The flag P: the next protocol is valid; without it the payload is Ethernet.
    pub const FLAG_NEXT_PROTOCOL: u8 = 0x04;
    /// The flag O: a packet of operations and maintenance, which is never forwarded.
    pub const FLAG_OAM: u8 = 0x01;

    /// Makes a header for a payload of `next_protocol`; what is reserved is zero.
    #[must_use]
    pub const fn new(vni: Vni, next_protocol: u8) -> Self {
        Self {
            flags: Self::FLAG_VNI | Self::FLAG_NEXT_PROTOCOL,
            reserved1: [0; 2],
            next_protocol,
            vni: vni.octets(),
            reserved2: 0,
        }
    }

    /// Splits a header off the front of `bytes`. Reserved bits are ignored.
    ///
    /// # Errors
    ///
    /// `Truncated` below 8 octets; `Invalid` when the flag I is clear, for another version than 0,
    /// for the flag O (the payload of such a packet must not be forwarded), and when a next
    /// protocol is named without the flag P.
    pub fn parse(bytes: &[u8]) -> Result<(&Self, &[u8]), ParseError> {
        const LAYER: Layer = Layer::VxlanGpe;
        let (header, rest) =
            Self::ref_from_prefix(bytes).map_err(|_| ParseError::truncated(LAYER))?;
        let unnamed = header.flags & Self::FLAG_NEXT_PROTOCOL == 0;
        let bad = header.flags & Self::FLAG_VNI == 0
            || header.flags & VERSION != 0
            || header.flags & Self::FLAG_OAM != 0
            || unnamed && header.next_protocol != 0;
        if bad {
            return Err(ParseError::invalid(LAYER));
        }
        Ok((header, rest))
    }

    /// The network that the packet inside belongs to.
    #[must_use]
    pub const fn vni(&self) -> Vni {
        Vni::from_octets(self.vni)
    }

    /// What is inside: one of [`next_protocol`].
    #[must_use]
    pub const fn next_protocol(&self) -> u8 {
        if self.flags & Self::FLAG_NEXT_PROTOCOL == 0 {
            next_protocol::ETHERNET
        } else {
            self.next_protocol
        }
    }
}

/// Values of the next-protocol field. draft-ietf-nvo3-vxlan-gpe-12 section 3.2.
pub mod next_protocol {
    /// An IPv4 packet.
    pub const IPV4: u8 = 0x01;
    /// An IPv6 packet.
    pub const IPV6: u8 = 0x02;
    /// An Ethernet frame.
    pub const ETHERNET: u8 = 0x03;
}

const VERSION: u8 = 0x30;

const _: () = assert!(size_of::<VxlanGpeHeader>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_the_octets_of_the_draft() {
        let vni = Vni::new(10).unwrap();
        assert_eq!(
            VxlanGpeHeader::new(vni, next_protocol::IPV4).as_bytes(),
            [0x0c, 0, 0, 1, 0, 0, 0x0a, 0]
        );
    }

    #[test]
    fn every_bit_is_reserved_known_or_refused() {
        let plain = [0x0c, 0, 0, 2, 0, 0x10, 0, 0];
        for bit in 0..64 {
            let mut octets = plain;
            octets[bit / 8] ^= 0x80 >> (bit % 8);
            // Version (2, 3), I (4), P (5, a protocol is named without it), O (7).
            let refused = matches!(bit, 2 | 3 | 4 | 5 | 7);
            assert_eq!(
                VxlanGpeHeader::parse(&octets).is_err(),
                refused,
                "bit {bit}"
            );
        }
        for length in 0..8 {
            assert_eq!(
                VxlanGpeHeader::parse(&plain[..length]),
                Err(ParseError::truncated(Layer::VxlanGpe))
            );
        }
        let (header, rest) = VxlanGpeHeader::parse(&[0x08, 0, 0, 0, 0, 0, 1, 0, 7]).unwrap();
        assert_eq!(
            (header.next_protocol(), rest),
            (next_protocol::ETHERNET, &[7][..])
        );
    }
}
