//! A super-packet as a row of segments: see [`Splitter`].

use core::fmt;
use core::ops::Range;

use super::SegmentKind;
use crate::packet::{Fragment, Packet};
use crate::units::Family;
use crate::wire::checksum::Sum;
use crate::wire::{Ipv4Header, Ipv6Header, TcpHeader, UdpHeader, ip_protocol, tcp};
use zerocopy::FromBytes;

/// The longest header that a segment can have: IPv4 with options or IPv6 with extension headers,
/// and TCP with options.
pub const MAX_HEADER_OCTETS: usize = 192;

/// Why a packet can not be split.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SplitError {
    /// It could not be read.
    Malformed,
    /// It is not of the kind that was announced, or a fragment.
    WrongKind,
    /// The segment size is zero.
    ZeroSize,
    /// Its headers are longer than [`MAX_HEADER_OCTETS`].
    LongHeader,
}

impl fmt::Display for SplitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "the super-packet could not be read",
            Self::WrongKind => "the super-packet is not what its offload header says",
            Self::ZeroSize => "the segment size is zero",
            Self::LongHeader => "the headers are too long",
        })
    }
}

impl core::error::Error for SplitError {}

/// The segments of one super-packet.
///
/// Segment `n` is [`write_header`](Self::write_header)`(n, ..)` followed by the octets
/// [`payload`](Self::payload)`(n)` of the super-packet. Lengths, IPv4 identification and header
/// checksum, TCP sequence number and flags (CWR on the first segment only, FIN and PSH on the last
/// only) and the transport checksum are set as the kernel sets them.
#[derive(Clone, Debug)]
pub struct Splitter<'a> {
    packet: &'a [u8],
    family: Family,
    kind: SegmentKind,
    transport: usize,
    header_octets: usize,
    segment_octets: usize,
    /// The sum over pseudo header (without length) and transport header with the fields that
    /// differ between segments as zero.
    fixed_sum: Sum,
    sequence: u32,
    flags: u8,
    identification: u16,
}

impl<'a> Splitter<'a> {
    /// Reads the super-packet at the front of `packet`; segments carry `segment_octets` each.
    ///
    /// # Errors
    ///
    /// [`SplitError`]; nothing else is assumed about the octets, which may come from anyone.
    pub fn new(
        packet: &'a [u8],
        kind: SegmentKind,
        segment_octets: u16,
    ) -> Result<Self, SplitError> {
        let read = Packet::parse(packet).map_err(|_| SplitError::Malformed)?;
        let packet = packet
            .get(..read.total_octets)
            .ok_or(SplitError::Malformed)?;
        let transport = packet
            .get(read.transport_offset..)
            .ok_or(SplitError::Malformed)?;
        let protocol = match kind {
            SegmentKind::Tcp => ip_protocol::TCP,
            SegmentKind::Udp => ip_protocol::UDP,
        };
        if read.flow.protocol != protocol || read.fragment != Fragment::Whole {
            return Err(SplitError::WrongKind);
        }
        if segment_octets == 0 {
            return Err(SplitError::ZeroSize);
        }
        let (transport_header, sequence, flags) = match kind {
            SegmentKind::Tcp => {
                let (header, _, _) =
                    TcpHeader::parse(transport).map_err(|_| SplitError::Malformed)?;
                (header.header_octets(), header.sequence(), header.flags())
            }
            SegmentKind::Udp => (size_of::<UdpHeader>(), 0, 0),
        };
        let header_octets = read.transport_offset + transport_header;
        if header_octets > MAX_HEADER_OCTETS {
            return Err(SplitError::LongHeader);
        }
        let header = transport
            .get(..transport_header)
            .ok_or(SplitError::Malformed)?;
        let mut fixed = [0; 60];
        let fixed = fixed
            .get_mut(..transport_header)
            .ok_or(SplitError::LongHeader)?;
        fixed.copy_from_slice(header);
        let varying: &[(usize, usize)] = match kind {
            SegmentKind::Tcp => &[(4, 8), (13, 14), (16, 18)],
            SegmentKind::Udp => &[(4, 8)],
        };
        for &(start, end) in varying {
            fixed
                .get_mut(start..end)
                .ok_or(SplitError::Malformed)?
                .fill(0);
        }
        let (family, addresses, identification) = match read.family() {
            Family::V4 => {
                let (header, _, _) =
                    Ipv4Header::parse(packet).map_err(|_| SplitError::Malformed)?;
                (Family::V4, packet.get(12..20), header.identification())
            }
            Family::V6 => (Family::V6, packet.get(8..40), 0),
        };
        let addresses = addresses.ok_or(SplitError::Malformed)?;
        Ok(Self {
            packet,
            family,
            kind,
            transport: read.transport_offset,
            header_octets,
            segment_octets: usize::from(segment_octets),
            fixed_sum: Sum::ZERO
                .octets(addresses)
                .word(u16::from(protocol))
                .octets(fixed),
            sequence,
            flags,
            identification,
        })
    }

    /// How many segments there are: at least one, also when there is no payload.
    #[must_use]
    pub const fn count(&self) -> usize {
        let payload = self.packet.len().saturating_sub(self.header_octets);
        if payload == 0 {
            1
        } else {
            payload.div_ceil(self.segment_octets)
        }
    }

    /// Octets of the headers of every segment.
    #[must_use]
    pub const fn header_octets(&self) -> usize {
        self.header_octets
    }

    /// Octets of the largest segment, its headers included.
    #[must_use]
    pub fn largest_octets(&self) -> usize {
        self.packet
            .len()
            .min(self.header_octets + self.segment_octets)
    }

    /// Where the payload of segment `index` lies in the super-packet.
    #[must_use]
    pub fn payload(&self, index: usize) -> Range<usize> {
        let start = self
            .header_octets
            .saturating_add(index.saturating_mul(self.segment_octets))
            .min(self.packet.len());
        start
            ..start
                .saturating_add(self.segment_octets)
                .min(self.packet.len())
    }

    /// Writes the headers of segment `index` to the front of `to`; `None` when `to` is shorter than
    /// [`header_octets`](Self::header_octets) or there is no such segment.
    #[must_use]
    pub fn write_header(&self, index: usize, to: &mut [u8]) -> Option<()> {
        let last = self.count().checked_sub(1)?;
        let number = u32::try_from(index).ok().filter(|_| index <= last)?;
        let range = self.payload(index);
        let payload = self.packet.get(range)?;
        let transport_octets = self.header_octets - self.transport + payload.len();
        let to = to.get_mut(..self.header_octets)?;
        to.copy_from_slice(self.packet.get(..self.header_octets)?);

        let (network, transport) = to.split_at_mut_checked(self.transport)?;
        match self.family {
            Family::V4 => {
                let (header, _) = Ipv4Header::mut_from_prefix(network).ok()?;
                header.set_total_octets(u16::try_from(self.transport + transport_octets).ok()?);
                header.set_identification(
                    self.identification.wrapping_add(u16::try_from(index).ok()?),
                );
            }
            Family::V6 => {
                let (header, extensions) = Ipv6Header::mut_from_prefix(network).ok()?;
                header.set_payload_octets(u16::try_from(extensions.len() + transport_octets).ok()?);
            }
        }
        let length = u16::try_from(transport_octets).ok()?;
        // The pseudo header's length; the fields that differ are added below.
        let mut sum = self.fixed_sum.word(length);
        match self.kind {
            SegmentKind::Tcp => {
                let step = u32::try_from(self.segment_octets).ok()?;
                let sequence = self.sequence.wrapping_add(number.wrapping_mul(step));
                let mut flags = self.flags;
                if index > 0 {
                    flags &= !tcp::flag::CWR;
                }
                if index < last {
                    flags &= !(tcp::flag::FIN | tcp::flag::PSH);
                }
                transport
                    .get_mut(4..8)?
                    .copy_from_slice(&sequence.to_be_bytes());
                *transport.get_mut(13)? = flags;
                sum = sum
                    .octets(&sequence.to_be_bytes())
                    .word(u16::from(flags))
                    .octets(payload);
                transport
                    .get_mut(16..18)?
                    .copy_from_slice(&sum.finish().to_be_bytes());
            }
            SegmentKind::Udp => {
                transport
                    .get_mut(4..6)?
                    .copy_from_slice(&length.to_be_bytes());
                sum = sum.word(length).octets(payload);
                transport
                    .get_mut(6..8)?
                    .copy_from_slice(&sum.finish_udp().to_be_bytes());
            }
        }
        Some(())
    }
}

const _: () = assert!(size_of::<Ipv4Header>() == 20 && size_of::<TcpHeader>() + 40 <= 60);

#[cfg(test)]
#[path = "split_tests.rs"]
pub(super) mod tests;
