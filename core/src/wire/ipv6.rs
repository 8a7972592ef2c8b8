//! IPv6 and the walk over its extension headers.

use core::net::Ipv6Addr;

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Layer, ParseError, ip_protocol};

/// IPv6 header, 40 octets. RFC 8200 section 3.
///
/// | octet | 0..4                                            | 4..6           | 6           | 7         | 8..24  | 24..40      |
/// |-------|-------------------------------------------------|----------------|-------------|-----------|--------|-------------|
/// | field | version 6 (4), traffic class (8), flow label (20) | payload length | next header | hop limit | source | destination |
#[derive(
    Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned,
)]
#[repr(C)]
pub struct Ipv6Header {
    version_class_label: U32,
    payload_length: U16,
    next_header: u8,
    hop_limit: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

impl Ipv6Header {
    /// Makes a header with hop limit 64, traffic class 0 and flow label 0; `payload_octets` counts
    /// what follows the header.
    #[must_use]
    pub const fn new(
        source: Ipv6Addr,
        destination: Ipv6Addr,
        next_header: u8,
        payload_octets: u16,
    ) -> Self {
        Self {
            version_class_label: U32::new(6 << 28),
            payload_length: U16::new(payload_octets),
            next_header,
            hop_limit: 64,
            source: source.octets(),
            destination: destination.octets(),
        }
    }

    /// Splits a packet: its header, and what follows as far as the payload length says.
    ///
    /// # Errors
    ///
    /// `Truncated` below 40 octets or when the payload length passes the end of `bytes`; `Invalid`
    /// when the version is not 6. Jumbograms (RFC 2675) are not read: a zero length is no payload.
    pub fn parse(bytes: &[u8]) -> Result<(&Self, &[u8]), ParseError> {
        let (header, rest) =
            Self::ref_from_prefix(bytes).map_err(|_| ParseError::truncated(Layer::Ipv6))?;
        if header.version_class_label.get() >> 28 != 6 {
            return Err(ParseError::invalid(Layer::Ipv6));
        }
        let payload = rest
            .get(..usize::from(header.payload_octets()))
            .ok_or(ParseError::truncated(Layer::Ipv6))?;
        Ok((header, payload))
    }

    /// Octets after this header.
    #[must_use]
    pub const fn payload_octets(&self) -> u16 {
        self.payload_length.get()
    }

    /// DSCP and ECN, the whole octet.
    #[must_use]
    pub const fn traffic_class(&self) -> u8 {
        let [a, b, _, _] = self.version_class_label.to_bytes();
        a << 4 | b >> 4
    }

    /// The flow label, 20 bits. RFC 6437.
    #[must_use]
    pub const fn flow_label(&self) -> u32 {
        self.version_class_label.get() & 0x000f_ffff
    }

    /// The protocol of what follows: see [`ip_protocol`].
    #[must_use]
    pub const fn next_header(&self) -> u8 {
        self.next_header
    }

    /// The hops left.
    #[must_use]
    pub const fn hop_limit(&self) -> u8 {
        self.hop_limit
    }

    /// Who sent the packet.
    #[must_use]
    pub const fn source(&self) -> Ipv6Addr {
        Ipv6Addr::from_octets(self.source)
    }

    /// Who it is for.
    #[must_use]
    pub const fn destination(&self) -> Ipv6Addr {
        Ipv6Addr::from_octets(self.destination)
    }

    /// Sets DSCP and ECN.
    pub const fn set_traffic_class(&mut self, traffic_class: u8) {
        let others = self.version_class_label.get() & 0xf00f_ffff;
        self.version_class_label = U32::new(others | (traffic_class as u32) << 20);
    }

    /// Sets the flow label; the low 20 bits count.
    pub const fn set_flow_label(&mut self, flow_label: u32) {
        let others = self.version_class_label.get() & 0xfff0_0000;
        self.version_class_label = U32::new(others | flow_label & 0x000f_ffff);
    }

    /// Sets the hop limit.
    pub const fn set_hop_limit(&mut self, hop_limit: u8) {
        self.hop_limit = hop_limit;
    }

    /// Sets the payload length in octets.
    pub const fn set_payload_octets(&mut self, payload_octets: u16) {
        self.payload_length = U16::new(payload_octets);
    }
}

/// IPv6 fragment header, 8 octets. RFC 8200 section 4.5.
///
/// | octet | 0           | 1        | 2..4                              | 4..8           |
/// |-------|-------------|----------|-----------------------------------|----------------|
/// | field | next header | reserved | offset in 8s (13), reserved (2), M | identification |
#[derive(
    Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned,
)]
#[repr(C)]
pub struct FragmentHeader {
    next_header: u8,
    reserved: u8,
    offset_more: U16,
    identification: U32,
}

impl FragmentHeader {
    /// Makes a header; `offset_octets` is a multiple of 8.
    #[must_use]
    pub const fn new(next_header: u8, offset_octets: u16, more: bool, identification: u32) -> Self {
        Self {
            next_header,
            reserved: 0,
            offset_more: U16::new(offset_octets & 0xfff8 | more as u16),
            identification: U32::new(identification),
        }
    }

    /// Where the payload belongs in its packet, in octets.
    #[must_use]
    pub const fn offset_octets(&self) -> u16 {
        self.offset_more.get() & 0xfff8
    }

    /// Whether more fragments of the packet follow.
    #[must_use]
    pub const fn more_fragments(&self) -> bool {
        self.offset_more.get() & 1 != 0
    }

    /// The identification of the packet that the fragment belongs to.
    #[must_use]
    pub const fn identification(&self) -> u32 {
        self.identification.get()
    }
}

/// Where the walk over the extension headers ended. RFC 8200 section 4.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UpperLayer {
    /// The protocol after the last extension header that could be skipped.
    pub protocol: u8,
    /// Where that protocol starts, in octets after the fixed IPv6 header.
    pub offset_octets: usize,
    /// The fragment header, if one was met; an unfragmented "atomic fragment" (RFC 6946) has
    /// offset 0 and no more fragments.
    pub fragment: Option<FragmentHeader>,
    /// Whether a routing header with segments left was met: the destination of the IPv6 header is
    /// a stop on the way. RFC 8200 section 4.4, RFC 5095.
    pub source_routed: bool,
}

impl UpperLayer {
    /// How many extension headers are walked; real packets have at most three or four.
    pub const MAX_EXTENSIONS: usize = 8;

    /// Walks over `payload`, whose first header is of type `next_header`.
    ///
    /// Stops at the first header that is no extension, at ESP and "no next header", and behind the
    /// fragment header of a fragment that is not the first (what follows is not a header there).
    ///
    /// # Errors
    ///
    /// `Truncated` when a header passes the end; `Invalid` when a hop-by-hop header is not the
    /// first (RFC 8200 section 4.1), a second fragment header follows, or more than
    /// [`MAX_EXTENSIONS`](Self::MAX_EXTENSIONS) headers stand in a row.
    pub fn walk(next_header: u8, payload: &[u8]) -> Result<Self, ParseError> {
        const LAYER: Layer = Layer::Ipv6Extension;
        let mut upper = Self {
            protocol: next_header,
            offset_octets: 0,
            fragment: None,
            source_routed: false,
        };
        for position in 0..=Self::MAX_EXTENSIONS {
            let rest = payload
                .get(upper.offset_octets..)
                .ok_or(ParseError::truncated(LAYER))?;
            let octets = match upper.protocol {
                ip_protocol::HOP_BY_HOP if position > 0 => return Err(ParseError::invalid(LAYER)),
                ip_protocol::HOP_BY_HOP
                | ip_protocol::ROUTING
                | ip_protocol::DESTINATION_OPTIONS => (extension_length(rest)? + 1) * 8,
                ip_protocol::AUTHENTICATION => (extension_length(rest)? + 2) * 4,
                ip_protocol::FRAGMENT => {
                    let (fragment, _) = FragmentHeader::read_from_prefix(rest)
                        .map_err(|_| ParseError::truncated(LAYER))?;
                    if upper.fragment.replace(fragment).is_some() {
                        return Err(ParseError::invalid(LAYER));
                    }
                    size_of::<FragmentHeader>()
                }
                _ => return Ok(upper),
            };
            if rest.len() < octets {
                return Err(ParseError::truncated(LAYER));
            }
            if upper.protocol == ip_protocol::ROUTING {
                upper.source_routed |= rest.get(3).is_some_and(|segments_left| *segments_left > 0);
            }
            upper.protocol = rest.first().copied().unwrap_or(ip_protocol::NO_NEXT);
            upper.offset_octets += octets;
            if upper
                .fragment
                .is_some_and(|fragment| fragment.offset_octets() > 0)
            {
                return Ok(upper);
            }
        }
        Err(ParseError::invalid(LAYER))
    }
}

fn extension_length(header: &[u8]) -> Result<usize, ParseError> {
    header
        .get(1)
        .copied()
        .map(usize::from)
        .ok_or(ParseError::truncated(Layer::Ipv6Extension))
}

const _: () = assert!(size_of::<Ipv6Header>() == 40 && size_of::<FragmentHeader>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_class_and_flow_label_leave_each_other_alone() {
        let mut header = Ipv6Header::new(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST, 17, 8);
        header.set_flow_label(0xf_ffff);
        header.set_traffic_class(0xa5);
        assert_eq!(
            (header.traffic_class(), header.flow_label()),
            (0xa5, 0xf_ffff)
        );
        header.set_flow_label(0);
        assert_eq!(header.as_bytes()[..4], [0x6a, 0x50, 0, 0]);
    }

    #[test]
    fn walks_over_options_and_stops_at_the_transport() {
        let mut payload = [0_u8; 40];
        payload[0] = ip_protocol::DESTINATION_OPTIONS; // hop-by-hop, 8 octets
        payload[8] = ip_protocol::UDP; // destination options, 16 octets
        payload[9] = 1;
        let upper = UpperLayer::walk(ip_protocol::HOP_BY_HOP, &payload).unwrap();
        assert_eq!(
            upper,
            UpperLayer {
                protocol: ip_protocol::UDP,
                offset_octets: 24,
                fragment: None,
                source_routed: false,
            }
        );
        assert_eq!(
            UpperLayer::walk(ip_protocol::HOP_BY_HOP, &payload[..20]),
            Err(ParseError::truncated(Layer::Ipv6Extension))
        );
    }

    #[test]
    fn refuses_a_late_hop_by_hop_header_and_an_endless_chain() {
        let mut late = [0_u8; 16];
        late[0] = ip_protocol::HOP_BY_HOP;
        assert!(UpperLayer::walk(ip_protocol::DESTINATION_OPTIONS, &late).is_err());
        let chain = [[ip_protocol::DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0]; 32];
        assert_eq!(
            UpperLayer::walk(ip_protocol::DESTINATION_OPTIONS, chain.as_flattened()),
            Err(ParseError::invalid(Layer::Ipv6Extension))
        );
    }

    #[test]
    fn tells_a_routing_header_with_segments_left() {
        for segments_left in 0..3 {
            let routing = [ip_protocol::UDP, 0, 0, segments_left, 0, 0, 0, 0];
            let upper = UpperLayer::walk(ip_protocol::ROUTING, &routing).unwrap();
            assert_eq!(
                (upper.source_routed, upper.offset_octets),
                (segments_left > 0, 8)
            );
        }
    }

    #[test]
    fn a_later_fragment_has_no_header_behind_it() {
        let fragment = FragmentHeader::new(ip_protocol::HOP_BY_HOP, 1232, false, 7);
        let mut payload = [0xff_u8; 16];
        payload[..8].copy_from_slice(fragment.as_bytes());
        let upper = UpperLayer::walk(ip_protocol::FRAGMENT, &payload).unwrap();
        assert_eq!((upper.offset_octets, upper.fragment), (8, Some(fragment)));
    }
}
