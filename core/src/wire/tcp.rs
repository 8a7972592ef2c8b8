//! TCP.

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Layer, ParseError};

/// TCP flag bits, in octet 13.
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// ECN echo. RFC 3168.
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced. RFC 3168.
    pub const CWR: u8 = 0x80;
}

/// TCP header without options, 20 octets. RFC 9293 section 3.1.
///
/// | octet | 0..2        | 2..4             | 4..8     | 8..12 | 12                | 13    | 14..16 | 16..18   | 18..20 |
/// |-------|-------------|------------------|----------|-------|-------------------|-------|--------|----------|--------|
/// | field | source port | destination port | sequence | ack   | offset (4) rsvd(4) | flags | window | checksum | urgent |
#[derive(
    Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned,
)]
#[repr(C)]
pub struct TcpHeader {
    source_port: U16,
    destination_port: U16,
    sequence: U32,
    acknowledgement: U32,
    data_offset: u8,
    flags: u8,
    window: U16,
    checksum: U16,
    urgent: U16,
}

impl TcpHeader {
    /// Splits a segment: its header, its options, its data.
    ///
    /// # Errors
    ///
    /// `Truncated` below 20 octets or when the data offset passes the end; `Invalid` when the
    /// data offset is below 5 words.
    pub fn parse(bytes: &[u8]) -> Result<(&Self, &[u8], &[u8]), ParseError> {
        let (header, rest) =
            Self::ref_from_prefix(bytes).map_err(|_| ParseError::truncated(Layer::Tcp))?;
        let options_octets = header.header_octets().checked_sub(size_of::<Self>());
        let options_octets = options_octets.ok_or(ParseError::invalid(Layer::Tcp))?;
        let (options, data) = rest
            .split_at_checked(options_octets)
            .ok_or(ParseError::truncated(Layer::Tcp))?;
        Ok((header, options, data))
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

    /// The sequence number of the first octet of data.
    #[must_use]
    pub const fn sequence(&self) -> u32 {
        self.sequence.get()
    }

    /// The next sequence number that the sender expects.
    #[must_use]
    pub const fn acknowledgement(&self) -> u32 {
        self.acknowledgement.get()
    }

    /// Octets of the header with its options, as the data offset says.
    #[must_use]
    pub const fn header_octets(&self) -> usize {
        (self.data_offset >> 4) as usize * 4
    }

    /// The flags: see [`flag`].
    #[must_use]
    pub const fn flags(&self) -> u8 {
        self.flags
    }

    /// The receive window, unscaled.
    #[must_use]
    pub const fn window(&self) -> u16 {
        self.window.get()
    }

    /// The checksum.
    #[must_use]
    pub const fn checksum(&self) -> u16 {
        self.checksum.get()
    }

    /// The urgent pointer.
    #[must_use]
    pub const fn urgent(&self) -> u16 {
        self.urgent.get()
    }
}

const _: () = assert!(size_of::<TcpHeader>() == 20);
