//! UDP.

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Layer, ParseError};

/// UDP header, 8 octets. RFC 768.
///
/// | octet | 0..2        | 2..4             | 4..6                 | 6..8     |
/// |-------|-------------|------------------|----------------------|----------|
/// | field | source port | destination port | length, header + data | checksum |
#[derive(
    Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned,
)]
#[repr(C)]
pub struct UdpHeader {
    source_port: U16,
    destination_port: U16,
    length: U16,
    checksum: U16,
}

impl UdpHeader {
    /// Makes a header; `length_octets` counts the header and the data. The checksum is zero.
    #[must_use]
    pub const fn new(source_port: u16, destination_port: u16, length_octets: u16) -> Self {
        Self {
            source_port: U16::new(source_port),
            destination_port: U16::new(destination_port),
            length: U16::new(length_octets),
            checksum: U16::ZERO,
        }
    }

    /// Splits a datagram: its header, and its data as far as the length field says.
    ///
    /// # Errors
    ///
    /// `Truncated` below 8 octets or when the length field passes the end of `bytes`; `Invalid`
    /// when the length field is below 8.
    pub fn parse(bytes: &[u8]) -> Result<(&Self, &[u8]), ParseError> {
        let (header, rest) =
            Self::ref_from_prefix(bytes).map_err(|_| ParseError::truncated(Layer::Udp))?;
        let data_octets = usize::from(header.length.get()).checked_sub(size_of::<Self>());
        let data_octets = data_octets.ok_or(ParseError::invalid(Layer::Udp))?;
        let data = rest
            .get(..data_octets)
            .ok_or(ParseError::truncated(Layer::Udp))?;
        Ok((header, data))
    }

    /// The sender's port.
    #[must_use]
    pub const fn source_port(&self) -> u16 {
        self.source_port.get()
    }

    /// The receiver's port.
    #[must_use]
    pub const fn destination_port(&self) -> u16 {
        self.destination_port.get()
    }

    /// Octets of header and data.
    #[must_use]
    pub const fn length_octets(&self) -> u16 {
        self.length.get()
    }

    /// The checksum; zero when the sender made none.
    #[must_use]
    pub const fn checksum(&self) -> u16 {
        self.checksum.get()
    }

    /// Sets the checksum; see [`Sum::finish_udp`](super::checksum::Sum::finish_udp).
    pub const fn set_checksum(&mut self, checksum: u16) {
        self.checksum = U16::new(checksum);
    }
}

const _: () = assert!(size_of::<UdpHeader>() == 8);
