//! Geneve.

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Layer, ParseError};
use crate::units::Vni;

/// Geneve header without options, 8 octets. RFC 8926 section 3.4.
///
/// | octet | 0                                     | 1                                      | 2..4          | 4..7 | 7            |
/// |-------|---------------------------------------|----------------------------------------|---------------|------|--------------|
/// | field | version (2), option length in words (6) | O control (1), C critical (1), reserved | protocol type | VNI  | reserved = 0 |
#[derive(
    Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned,
)]
#[repr(C)]
pub struct GeneveHeader {
    version_length: u8,
    flags: u8,
    protocol_type: U16,
    vni: [u8; 3],
    reserved: u8,
}

impl GeneveHeader {
    /// The flag O: a control packet, which is never forwarded.
    pub const FLAG_CONTROL: u8 = 0x80;
    /// The flag C: critical options are present.
    pub const FLAG_CRITICAL: u8 = 0x40;

    /// Makes a header without options; `protocol_type` is an [`ether_type`](super::ether_type).
    #[must_use]
    pub const fn new(vni: Vni, protocol_type: u16) -> Self {
        Self {
            version_length: 0,
            flags: 0,
            protocol_type: U16::new(protocol_type),
            vni: vni.octets(),
            reserved: 0,
        }
    }

    /// Splits a header and its options off the front of `bytes`.
    ///
    /// Options are checked and skipped: none is understood.
    ///
    /// # Errors
    ///
    /// `Truncated` below 8 octets or when the options pass the end; `Invalid` for another version
    /// (section 3.4), the flag C or a critical option (section 3.5: a receiver that does not
    /// understand it must drop), option lengths that do not add up, and the flag O (the payload of
    /// a control packet must not be forwarded).
    pub fn parse(bytes: &[u8]) -> Result<(&Self, &[u8]), ParseError> {
        const LAYER: Layer = Layer::Geneve;
        let (header, rest) =
            Self::ref_from_prefix(bytes).map_err(|_| ParseError::truncated(LAYER))?;
        if header.version_length >> 6 != 0
            || header.flags & (Self::FLAG_CONTROL | Self::FLAG_CRITICAL) != 0
        {
            return Err(ParseError::invalid(LAYER));
        }
        let options_octets = usize::from(header.version_length & 0x3f) * 4;
        let (mut options, payload) = rest
            .split_at_checked(options_octets)
            .ok_or(ParseError::truncated(LAYER))?;
        while let [_, _, kind, length, data @ ..] = options {
            let data_octets = usize::from(length & 0x1f) * 4;
            let critical = kind & 0x80 != 0;
            let Some(next) = data.get(data_octets..).filter(|_| !critical) else {
                return Err(ParseError::invalid(LAYER));
            };
            options = next;
        }
        Ok((header, payload))
    }

    /// The network that the payload belongs to.
    #[must_use]
    pub const fn vni(&self) -> Vni {
        Vni::from_octets(self.vni)
    }

    /// What the payload is: see [`ether_type`](super::ether_type).
    #[must_use]
    pub const fn protocol_type(&self) -> u16 {
        self.protocol_type.get()
    }
}

const _: () = assert!(size_of::<GeneveHeader>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_known_good_options_and_refuses_the_rest() {
        let good = [
            0x02, 0, 0x65, 0x58, 0, 0, 5, 0, 0xff, 0xff, 0, 1, 0, 0, 0, 0x64, 0xaa,
        ];
        let (header, payload) = GeneveHeader::parse(&good).unwrap();
        assert_eq!(
            (header.vni().value(), header.protocol_type(), payload),
            (5, 0x6558, &[0xaa][..])
        );
        for (octet, value) in [(0, 0x42), (1, 0x80), (1, 0x40), (10, 0x80), (11, 2)] {
            let mut bad = good;
            bad[octet] = value;
            assert_eq!(
                GeneveHeader::parse(&bad),
                Err(ParseError::invalid(Layer::Geneve)),
                "octet {octet}"
            );
        }
        for length in 0..16 {
            assert!(GeneveHeader::parse(&good[..length]).is_err());
        }
    }
}
