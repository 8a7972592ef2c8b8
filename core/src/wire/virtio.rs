//! The header that a TUN or TAP device puts before each packet when offloads are on.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Layer, ParseError};
use crate::gso::{Offload, PartialChecksum, SegmentKind};
use crate::units::Family;

/// Virtio-net header, 10 octets. Virtio 1.2 section 5.1.6, in the byte order of the machine as
/// `IFF_VNET_HDR` has it.
///
/// | octet | 0     | 1        | 2..4       | 4..6     | 6..8       | 8..10       |
/// |-------|-------|----------|------------|----------|------------|-------------|
/// | field | flags | gso type | header len | gso size | csum start | csum offset |
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Eq,
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    PartialEq,
    Unaligned,
)]
#[repr(C)]
pub struct VirtioNetHeader {
    flags: u8,
    gso_type: u8,
    header_octets: [u8; 2],
    gso_size: [u8; 2],
    checksum_start: [u8; 2],
    checksum_offset: [u8; 2],
}

const FLAG_NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Set beside a TCP type when the first segment carries CWR.
const GSO_ECN: u8 = 0x80;

impl VirtioNetHeader {
    /// Octets of the header.
    pub const OCTETS: usize = size_of::<Self>();

    /// Makes the header of a packet of `family` whose headers up to the payload take
    /// `header_octets`.
    #[must_use]
    pub fn new(offload: &Offload, family: Family, header_octets: u16) -> Self {
        let mut header = Self::default();
        if let Some(PartialChecksum { start, offset }) = offload.partial_checksum {
            header.flags = FLAG_NEEDS_CHECKSUM;
            header.checksum_start = start.to_ne_bytes();
            header.checksum_offset = offset.to_ne_bytes();
        }
        if let Some((kind, size)) = offload.segments {
            header.gso_type = match (kind, family) {
                (SegmentKind::Tcp, Family::V4) => GSO_TCP_V4,
                (SegmentKind::Tcp, Family::V6) => GSO_TCP_V6,
                (SegmentKind::Udp, _) => GSO_UDP_L4,
            };
            header.gso_size = size.to_ne_bytes();
            header.header_octets = header_octets.to_ne_bytes();
        }
        header
    }

    /// Splits a header off the front of `bytes`: what it says, and the packet behind it.
    ///
    /// The header length field is not used: some kernels leave it wrong.
    ///
    /// # Errors
    ///
    /// `Truncated` below 10 octets; `Invalid` for a GSO type that was not asked for, a zero GSO
    /// size, segments without a partial checksum, or a checksum outside the packet.
    pub fn parse(bytes: &[u8]) -> Result<(Offload, &[u8]), ParseError> {
        const INVALID: ParseError = ParseError::invalid(Layer::Virtio);
        let (header, packet) =
            Self::ref_from_prefix(bytes).map_err(|_| ParseError::truncated(Layer::Virtio))?;
        let size = u16::from_ne_bytes(header.gso_size);
        let segments = match header.gso_type & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCP_V4 | GSO_TCP_V6 => Some((SegmentKind::Tcp, size)),
            GSO_UDP_L4 => Some((SegmentKind::Udp, size)),
            _ => return Err(INVALID),
        };
        let partial_checksum = if header.flags & FLAG_NEEDS_CHECKSUM == 0 {
            None
        } else {
            let start = u16::from_ne_bytes(header.checksum_start);
            let offset = u16::from_ne_bytes(header.checksum_offset);
            if usize::from(start) + usize::from(offset) + 2 > packet.len() {
                return Err(INVALID);
            }
            Some(PartialChecksum { start, offset })
        };
        if segments.is_some_and(|(_, size)| size == 0 || partial_checksum.is_none()) {
            return Err(INVALID);
        }
        Ok((
            Offload {
                partial_checksum,
                segments,
            },
            packet,
        ))
    }
}

const _: () = assert!(VirtioNetHeader::OCTETS == 10);

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn says_what_the_kernel_says() {
        let offload = Offload {
            partial_checksum: Some(PartialChecksum {
                start: 20,
                offset: 16,
            }),
            segments: Some((SegmentKind::Tcp, 1400)),
        };
        let header = VirtioNetHeader::new(&offload, Family::V4, 52);
        let mut bytes = header.as_bytes().to_vec();
        assert_eq!(bytes[..2], [1, 1]);
        assert_eq!(
            bytes[2..10],
            *[52_u16, 1400, 20, 16].map(u16::to_ne_bytes).as_flattened()
        );
        bytes.extend([0; 40]);
        assert_eq!(VirtioNetHeader::parse(&bytes), Ok((offload, &[0; 40][..])));
        assert_eq!(
            VirtioNetHeader::parse(&[0; 10]),
            Ok((Offload::NONE, &[][..]))
        );
    }

    #[test]
    fn refuses_what_would_reach_outside_the_packet() {
        let good = [1, 1, 0, 0, 100, 0, 20, 0, 16, 0];
        let parse = |change: fn(&mut [u8]), packet: usize| {
            let mut bytes = vec![0; 10 + packet];
            bytes[..10].copy_from_slice(&good);
            change(&mut bytes);
            VirtioNetHeader::parse(&bytes).map(|(offload, _)| offload.segments.is_some())
        };
        assert_eq!(parse(|_| (), 38), Ok(true));
        let invalid = Err(ParseError::invalid(Layer::Virtio));
        assert_eq!(parse(|_| (), 37), invalid);
        assert_eq!(parse(|b| b[0] = 0, 38), invalid);
        assert_eq!(parse(|b| b[4] = 0, 38), invalid);
        assert_eq!(parse(|b| b[1] = 3, 38), invalid);
        assert_eq!(
            VirtioNetHeader::parse(&good[..9]),
            Err(ParseError::truncated(Layer::Virtio))
        );
    }

    proptest! {
        #[test]
        fn what_is_accepted_lies_within_the_packet(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok((offload, packet)) = VirtioNetHeader::parse(&bytes) {
                prop_assert_eq!(packet.len() + 10, bytes.len());
                if let Some(partial) = offload.partial_checksum {
                    let mut packet = packet.to_vec();
                    prop_assert!(partial.complete(&mut packet));
                }
            }
        }
    }
}
