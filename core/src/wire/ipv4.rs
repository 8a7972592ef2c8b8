//! IPv4.

use core::net::Ipv4Addr;

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Layer, ParseError, checksum};

/// IPv4 header without options, 20 octets. RFC 791 section 3.1.
///
/// | octet | 0                | 1                 | 2..4         | 4..6 | 6..8                        |
/// |-------|------------------|-------------------|--------------|------|-----------------------------|
/// | field | version 4, IHL   | DSCP (6), ECN (2) | total length | id   | 0, DF, MF, offset in 8s (13) |
///
/// | octet | 8   | 9        | 10..12   | 12..16 | 16..20      |
/// |-------|-----|----------|----------|--------|-------------|
/// | field | TTL | protocol | checksum | source | destination |
#[derive(
    Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned,
)]
#[repr(C)]
pub struct Ipv4Header {
    version_ihl: u8,
    tos: u8,
    total_length: U16,
    identification: U16,
    fragment: U16,
    ttl: u8,
    protocol: u8,
    checksum: U16,
    source: [u8; 4],
    destination: [u8; 4],
}

impl Ipv4Header {
    /// Octets of the longest header: 15 words. RFC 791 section 3.1.
    pub const MAX_OCTETS: usize = 60;
    /// The flag "more fragments" in the fragment word.
    pub const MORE_FRAGMENTS: u16 = 0x2000;
    /// The flag "don't fragment" in the fragment word.
    pub const DONT_FRAGMENT: u16 = 0x4000;

    /// Makes a header without options, with TTL 64, DF clear and a zero checksum; `total_octets`
    /// counts the header too.
    #[must_use]
    pub const fn new(
        source: Ipv4Addr,
        destination: Ipv4Addr,
        protocol: u8,
        total_octets: u16,
    ) -> Self {
        Self {
            version_ihl: 0x45,
            tos: 0,
            total_length: U16::new(total_octets),
            identification: U16::ZERO,
            fragment: U16::ZERO,
            ttl: 64,
            protocol,
            checksum: U16::ZERO,
            source: source.octets(),
            destination: destination.octets(),
        }
    }

    /// Splits a packet: its header, its options, its payload as far as the total length says.
    ///
    /// The checksum is not looked at: see [`has_valid_checksum`](Self::has_valid_checksum).
    ///
    /// # Errors
    ///
    /// `Truncated` below 20 octets, or when header or total length pass the end of `bytes`;
    /// `Invalid` when the version is not 4, the header is below 5 words or longer than the packet.
    pub fn parse(bytes: &[u8]) -> Result<(&Self, &[u8], &[u8]), ParseError> {
        const LAYER: Layer = Layer::Ipv4;
        let (header, _) = Self::ref_from_prefix(bytes).map_err(|_| ParseError::truncated(LAYER))?;
        let options_octets = header.header_octets().checked_sub(size_of::<Self>());
        let (Some(options_octets), 4) = (options_octets, header.version_ihl >> 4) else {
            return Err(ParseError::invalid(LAYER));
        };
        let payload_octets = usize::from(header.total_octets()).checked_sub(header.header_octets());
        let payload_octets = payload_octets.ok_or(ParseError::invalid(LAYER))?;
        let rest = bytes.get(size_of::<Self>()..).unwrap_or_default();
        let (options, rest) = rest
            .split_at_checked(options_octets)
            .ok_or(ParseError::truncated(LAYER))?;
        let payload = rest
            .get(..payload_octets)
            .ok_or(ParseError::truncated(LAYER))?;
        Ok((header, options, payload))
    }

    /// Octets of the header with its options.
    #[must_use]
    pub const fn header_octets(&self) -> usize {
        (self.version_ihl & 0x0f) as usize * 4
    }

    /// Octets of header and payload.
    #[must_use]
    pub const fn total_octets(&self) -> u16 {
        self.total_length.get()
    }

    /// DSCP and ECN, the whole octet.
    #[must_use]
    pub const fn tos(&self) -> u8 {
        self.tos
    }

    /// The identification of the datagram that a fragment belongs to.
    #[must_use]
    pub const fn identification(&self) -> u16 {
        self.identification.get()
    }

    /// Whether the packet may not be fragmented.
    #[must_use]
    pub const fn dont_fragment(&self) -> bool {
        self.fragment.get() & Self::DONT_FRAGMENT != 0
    }

    /// Whether more fragments of the datagram follow.
    #[must_use]
    pub const fn more_fragments(&self) -> bool {
        self.fragment.get() & Self::MORE_FRAGMENTS != 0
    }

    /// Where the payload belongs in its datagram, in octets.
    #[must_use]
    pub const fn fragment_offset_octets(&self) -> u16 {
        (self.fragment.get() & 0x1fff) << 3
    }

    /// Whether the packet is part of a datagram, the first part too.
    #[must_use]
    pub const fn is_fragment(&self) -> bool {
        self.fragment.get() & !Self::DONT_FRAGMENT & 0x7fff != 0
    }

    /// The time to live, in hops.
    #[must_use]
    pub const fn ttl(&self) -> u8 {
        self.ttl
    }

    /// What the payload is: see [`ip_protocol`](super::ip_protocol).
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// The header checksum.
    #[must_use]
    pub const fn checksum(&self) -> u16 {
        self.checksum.get()
    }

    /// Who sent the packet.
    #[must_use]
    pub const fn source(&self) -> Ipv4Addr {
        Ipv4Addr::from_octets(self.source)
    }

    /// Who it is for.
    #[must_use]
    pub const fn destination(&self) -> Ipv4Addr {
        Ipv4Addr::from_octets(self.destination)
    }

    /// Whether the checksum over the header and its `options` adds up.
    #[must_use]
    pub fn has_valid_checksum(&self, options: &[u8]) -> bool {
        checksum::Sum::ZERO
            .octets(self.as_bytes())
            .octets(options)
            .is_valid()
    }

    /// Computes the checksum anew; `options` follow the header.
    pub fn fill_checksum(&mut self, options: &[u8]) {
        self.checksum = U16::ZERO;
        self.checksum = U16::new(
            checksum::Sum::ZERO
                .octets(self.as_bytes())
                .octets(options)
                .finish(),
        );
    }

    /// Sets DSCP and ECN and mends the checksum. RFC 1624.
    pub const fn set_tos(&mut self, tos: u8) {
        let old = u16::from_be_bytes([self.version_ihl, self.tos]);
        self.tos = tos;
        self.mend(old, u16::from_be_bytes([self.version_ihl, tos]));
    }

    /// Sets the TTL and mends the checksum. RFC 1141, RFC 1624.
    pub const fn set_ttl(&mut self, ttl: u8) {
        let old = u16::from_be_bytes([self.ttl, self.protocol]);
        self.ttl = ttl;
        self.mend(old, u16::from_be_bytes([ttl, self.protocol]));
    }

    /// Sets the total length in octets and mends the checksum.
    pub const fn set_total_octets(&mut self, total_octets: u16) {
        let old = self.total_length.get();
        self.total_length = U16::new(total_octets);
        self.mend(old, total_octets);
    }

    /// Sets the identification and mends the checksum.
    pub const fn set_identification(&mut self, identification: u16) {
        let old = self.identification.get();
        self.identification = U16::new(identification);
        self.mend(old, identification);
    }

    /// Sets flags and fragment offset (the whole word, offset in units of 8 octets) and mends the
    /// checksum.
    pub const fn set_fragment_word(&mut self, word: u16) {
        let old = self.fragment.get();
        self.fragment = U16::new(word);
        self.mend(old, word);
    }

    const fn mend(&mut self, old: u16, new: u16) {
        self.checksum = U16::new(checksum::update(self.checksum.get(), old, new));
    }
}

const _: () = assert!(size_of::<Ipv4Header>() == 20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setters_keep_the_checksum_right() {
        let mut header = Ipv4Header::new(
            Ipv4Addr::new(10, 0, 0, 1),
            Ipv4Addr::new(10, 0, 0, 2),
            17,
            40,
        );
        header.fill_checksum(&[]);
        for value in [0_u8, 1, 63, 64, 0xb8, 0xff] {
            header.set_tos(value);
            header.set_ttl(value);
            header.set_identification(u16::from(value) << 8 | 0xff);
            header.set_fragment_word(Ipv4Header::DONT_FRAGMENT | u16::from(value));
            header.set_total_octets(20 + u16::from(value));
            assert!(header.has_valid_checksum(&[]), "{value}");
        }
    }

    #[test]
    fn refuses_every_truncation_and_impossible_lengths() {
        let mut header = Ipv4Header::new(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, 1, 24);
        header.fill_checksum(&[]);
        let mut packet = [0; 24];
        packet[..20].copy_from_slice(header.as_bytes());
        assert!(Ipv4Header::parse(&packet).is_ok());
        for length in 0..24 {
            assert_eq!(
                Ipv4Header::parse(&packet[..length]),
                Err(ParseError::truncated(Layer::Ipv4)),
                "{length}"
            );
        }
        for (octet, value) in [(0, 0x65), (0, 0x44), (3, 19)] {
            let mut bad = packet;
            bad[octet] = value;
            assert_eq!(
                Ipv4Header::parse(&bad),
                Err(ParseError::invalid(Layer::Ipv4))
            );
        }
    }
}
