//! VXLAN.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Layer, ParseError};
use crate::units::Vni;

/// VXLAN header, 8 octets. RFC 7348 section 5.
///
/// | octet | 0           | 1..4         | 4..7 | 7            |
/// |-------|-------------|--------------|------|--------------|
/// | field | flags (I=8) | reserved = 0 | VNI  | reserved = 0 |
#[derive(
    Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned,
)]
#[repr(C)]
pub struct VxlanHeader {
    flags: u8,
    reserved1: [u8; 3],
    vni: [u8; 3],
    reserved2: u8,
}

impl VxlanHeader {
    /// The flag I: the VNI is valid.
    pub const FLAG_VNI: u8 = 0x08;

    /// Makes a header; what is reserved is zero.
    #[must_use]
    pub const fn new(vni: Vni) -> Self {
        Self {
            flags: Self::FLAG_VNI,
            reserved1: [0; 3],
            vni: vni.octets(),
            reserved2: 0,
        }
    }

    /// Splits a header off the front of `bytes`.
    ///
    /// Reserved bits are ignored, as section 5 requires of a receiver.
    ///
    /// # Errors
    ///
    /// `Truncated` below 8 octets; `Invalid` when the flag I is clear.
    pub fn parse(bytes: &[u8]) -> Result<(&Self, &[u8]), ParseError> {
        let (header, rest) =
            Self::ref_from_prefix(bytes).map_err(|_| ParseError::truncated(Layer::Vxlan))?;
        if header.flags & Self::FLAG_VNI == 0 {
            return Err(ParseError::invalid(Layer::Vxlan));
        }
        Ok((header, rest))
    }

    /// Like [`parse`](Self::parse), but refuses what is reserved as the Linux device does.
    ///
    /// # Errors
    ///
    /// As `parse`, and `Invalid` when a reserved bit is set.
    pub fn parse_strict(bytes: &[u8]) -> Result<(&Self, &[u8]), ParseError> {
        let (header, rest) = Self::parse(bytes)?;
        let zero =
            header.flags == Self::FLAG_VNI && header.reserved1 == [0; 3] && header.reserved2 == 0;
        if zero {
            Ok((header, rest))
        } else {
            Err(ParseError::invalid(Layer::Vxlan))
        }
    }

    /// The network that the frame inside belongs to.
    #[must_use]
    pub const fn vni(&self) -> Vni {
        Vni::from_octets(self.vni)
    }
}

const _: () = assert!(size_of::<VxlanHeader>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_a_kernel_captured_device_writes() {
        let vni = Vni::new(1).unwrap();
        assert_eq!(
            VxlanHeader::new(vni).as_bytes(),
            [0x08, 0, 0, 0, 0, 0, 1, 0]
        );
    }

    #[test]
    fn ignores_reserved_bits_unless_strict() {
        let plain = [0x08, 0, 0, 0, 0, 0x10, 0, 0];
        for bit in 0..64 {
            let mut octets = plain;
            octets[bit / 8] ^= 0x80 >> (bit % 8);
            let is_vni = (32..56).contains(&bit);
            let is_flag = bit == 4;
            assert_eq!(VxlanHeader::parse(&octets).is_ok(), !is_flag, "bit {bit}");
            assert_eq!(
                VxlanHeader::parse_strict(&octets).is_ok(),
                is_vni,
                "bit {bit}"
            );
        }
        for length in 0..8 {
            assert_eq!(
                VxlanHeader::parse(&plain[..length]),
                Err(ParseError::truncated(Layer::Vxlan))
            );
        }
    }
}
