//! Generic UDP encapsulation, versions 0 and 1, as Linux speaks it.
//!
//! draft-ietf-intarea-gue-09; the layout and the rule that unknown flags are refused are those of
//! the Linux receiver. A datagram whose first nibble is 4 or 6 is version 1: a bare IP packet,
//! which is also what FOU sends, so one port can serve both.

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Layer, ParseError};

/// GUE version 0 header without optional fields, 4 octets.
///
/// | octet | 0                                          | 1                        | 2..4  |
/// |-------|--------------------------------------------|--------------------------|-------|
/// | field | version (2), control (1), Hlen in words (5) | protocol or control type | flags |
#[derive(
    Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned,
)]
#[repr(C)]
pub struct GueHeader {
    version_control_length: u8,
    protocol: u8,
    flags: U16,
}

impl GueHeader {
    /// Makes the header of a data message: version 0, no optional fields.
    #[must_use]
    pub const fn new(protocol: u8) -> Self {
        Self {
            version_control_length: 0,
            protocol,
            flags: U16::ZERO,
        }
    }

    /// Splits a header and its optional fields off the front of `bytes`.
    ///
    /// # Errors
    ///
    /// `Truncated` below 4 octets or when the optional fields pass the end; `Invalid` for another
    /// version, a control message, or any flag: an optional field that is not understood can not be
    /// skipped safely.
    pub fn parse(bytes: &[u8]) -> Result<(&Self, &[u8]), ParseError> {
        let (header, rest) =
            Self::ref_from_prefix(bytes).map_err(|_| ParseError::truncated(Layer::Gue))?;
        let version_and_control = header.version_control_length & 0xe0;
        if version_and_control != 0 || header.flags.get() != 0 {
            return Err(ParseError::invalid(Layer::Gue));
        }
        let optional_octets = usize::from(header.version_control_length & 0x1f) * 4;
        let rest = rest
            .get(optional_octets..)
            .ok_or(ParseError::truncated(Layer::Gue))?;
        Ok((header, rest))
    }

    /// The IP protocol inside: 4 for IPv4, 41 for IPv6.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }
}

const _: () = assert!(size_of::<GueHeader>() == 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_data_messages_and_refuses_what_it_can_not_skip() {
        assert_eq!(GueHeader::new(4).as_bytes(), [0, 4, 0, 0]);
        assert_eq!(
            GueHeader::parse(&[0x01, 41, 0, 0, 9, 9, 9, 9, 0x60])
                .map(|(h, rest)| (h.protocol(), rest)),
            Ok((41, &[0x60][..]))
        );
        for bad in [
            [0x20, 4, 0, 0],
            [0x40, 4, 0, 0],
            [0x80, 4, 0, 0],
            [0, 4, 0, 1],
        ] {
            assert_eq!(GueHeader::parse(&bad), Err(ParseError::invalid(Layer::Gue)));
        }
        assert_eq!(
            GueHeader::parse(&[0x01, 4, 0, 0, 0]),
            Err(ParseError::truncated(Layer::Gue))
        );
    }
}
