//! Packets in a row as one super-packet: see [`Merge`].

use core::ops::Range;

use super::{ChecksumState, Offload, PartialChecksum, SegmentKind};
use crate::packet::{Fragment, Packet};
use crate::units::Family;
use crate::wire::checksum::Sum;
use crate::wire::{Ipv4Header, Ipv6Header, TcpHeader, UdpHeader, ip_protocol, tcp};
use zerocopy::FromBytes;

/// Decides, packet by packet, what joins the run in progress.
///
/// Two packets are merged when splitting the result gives back both, octet for octet: the rules of
/// the kernel's generic receive offload. For TCP: same addresses, ports, traffic class, hop limit,
/// DF, acknowledgement, window, options and flags (but PSH and FIN, which end a run, and CWR, which
/// stands alone); sequence numbers in a row; equal lengths but for a shorter last one; IPv4
/// identifications that count up, or stay where DF is set. SYN, RST and URG are never merged. For
/// UDP: same addresses, ports, traffic class, hop limit and DF, equal lengths but for a shorter
/// last one, a checksum each. Options in IPv4 and extension headers in IPv6 are never merged, nor
/// is a packet whose transport checksum is wrong.
#[derive(Clone, Debug, Default)]
pub struct Merge {
    run: Option<Run>,
}

/// A finished run: what [`Merge`] found to be one super-packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MergeRun {
    /// Packets in the run, at least one.
    pub count: usize,
    /// Octets of the headers in front of each packet's payload.
    pub header_octets: usize,
    /// Octets of the super-packet.
    pub total_octets: usize,
    /// What is in it.
    pub kind: SegmentKind,
    /// Payload octets of each packet but perhaps the last.
    pub segment_octets: u16,
    last_flags: u8,
    family: Family,
}

#[derive(Clone, Debug)]
struct Run {
    merged: MergeRun,
    head: Head,
    next_sequence: u32,
    last_identification: u16,
    fixed_identification: bool,
    closed: bool,
}

/// The part of the headers that must be equal throughout a run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Head {
    family: Family,
    addresses: [u8; 32],
    kind: SegmentKind,
    ports: [u8; 4],
    traffic_class: u8,
    hop_limit: u8,
    dont_fragment: bool,
    flow_label: u32,
    /// TCP: acknowledgement, data offset, flags without PSH and FIN, window.
    acknowledgement: [u8; 4],
    flags: u8,
    window: [u8; 2],
    urgent: [u8; 2],
    options: [u8; 40],
    options_octets: usize,
}

/// One packet as a candidate.
struct Candidate {
    head: Head,
    header_octets: usize,
    payload_octets: usize,
    sequence: u32,
    identification: u16,
    ends: bool,
    last_flags: u8,
}

/// The largest super-packet: the IPv4 total length.
const MAX_TOTAL_OCTETS: usize = 65_535;

impl Merge {
    /// Starts without a run.
    #[must_use]
    pub const fn new() -> Self {
        Self { run: None }
    }

    /// Offers the next packet, which starts at the first octet of `packet`; octets behind its
    /// total length make it unmergeable.
    pub fn offer(&mut self, packet: &[u8]) -> Offer {
        let Some(candidate) = Candidate::read(packet) else {
            return Offer::Unmergeable(self.finish());
        };
        if self.run.as_mut().is_some_and(|run| run.append(&candidate)) {
            return Offer::Joined;
        }
        Offer::Began(
            self.run
                .replace(Run::start(&candidate))
                .map(|run| run.merged),
        )
    }

    /// Ends the run in progress.
    pub fn finish(&mut self) -> Option<MergeRun> {
        self.run.take().map(|run| run.merged)
    }
}

/// What became of an offered packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Offer {
    /// It joined the run in progress.
    Joined,
    /// It began a new run; the one before it, if any, is finished.
    Began(Option<MergeRun>),
    /// It stands alone and belongs to no run; the one before it, if any, is finished.
    Unmergeable(Option<MergeRun>),
}

impl MergeRun {
    /// Turns the first packet's headers into the super-packet's, in place, and says what the device
    /// is to be told. `packet` is the first packet of the run.
    ///
    /// A run of one packet is left as it is, with its complete checksum.
    #[must_use]
    pub fn write_header(&self, packet: &mut [u8]) -> Option<Offload> {
        if self.count == 1 {
            return Some(Offload::NONE);
        }
        let (transport, addresses): (usize, Range<usize>) = match self.family {
            Family::V4 => (size_of::<Ipv4Header>(), 12..20),
            Family::V6 => (size_of::<Ipv6Header>(), 8..40),
        };
        let transport_octets = u16::try_from(self.total_octets - transport).ok()?;
        match self.family {
            Family::V4 => {
                let (header, _) = Ipv4Header::mut_from_prefix(packet).ok()?;
                header.set_total_octets(u16::try_from(self.total_octets).ok()?);
            }
            Family::V6 => {
                let (header, _) = Ipv6Header::mut_from_prefix(packet).ok()?;
                header.set_payload_octets(transport_octets);
            }
        }
        let pseudo = Sum::ZERO
            .octets(packet.get(addresses)?)
            .word(transport_octets);
        let offset = match self.kind {
            SegmentKind::Tcp => {
                *packet.get_mut(transport + 13)? |= self.last_flags;
                let partial = pseudo.word(u16::from(ip_protocol::TCP)).partial();
                packet
                    .get_mut(transport + 16..transport + 18)?
                    .copy_from_slice(&partial.to_be_bytes());
                16
            }
            SegmentKind::Udp => {
                packet
                    .get_mut(transport + 4..transport + 6)?
                    .copy_from_slice(&transport_octets.to_be_bytes());
                let partial = pseudo.word(u16::from(ip_protocol::UDP)).partial();
                packet
                    .get_mut(transport + 6..transport + 8)?
                    .copy_from_slice(&partial.to_be_bytes());
                6
            }
        };
        Some(Offload {
            partial_checksum: Some(PartialChecksum {
                start: u16::try_from(transport).ok()?,
                offset,
            }),
            segments: Some((self.kind, self.segment_octets)),
        })
    }
}

impl Run {
    fn start(first: &Candidate) -> Self {
        Self {
            merged: MergeRun {
                count: 1,
                header_octets: first.header_octets,
                total_octets: first.header_octets + first.payload_octets,
                kind: first.head.kind,
                segment_octets: u16::try_from(first.payload_octets).unwrap_or(u16::MAX),
                last_flags: first.last_flags,
                family: first.head.family,
            },
            head: first.head,
            next_sequence: first.next_sequence(),
            last_identification: first.identification,
            fixed_identification: false,
            closed: first.ends || first.payload_octets == 0,
        }
    }

    fn append(&mut self, next: &Candidate) -> bool {
        let merged = &mut self.merged;
        let segment_octets = usize::from(merged.segment_octets);
        if self.closed
            || self.head != next.head
            || next.payload_octets == 0
            || next.payload_octets > segment_octets
            || merged.total_octets + next.payload_octets > MAX_TOTAL_OCTETS
            || (next.head.kind == SegmentKind::Tcp && next.sequence != self.next_sequence)
        {
            return false;
        }
        if next.head.family == Family::V4 {
            let counts = next.identification == self.last_identification.wrapping_add(1);
            // With DF set nobody reassembles, and the sender may keep the field fixed (RFC 6864
            // section 4.1); the kernel merges those too.
            let fixed = next.head.dont_fragment && next.identification == self.last_identification;
            let allowed = if merged.count == 1 {
                counts || fixed
            } else {
                fixed == self.fixed_identification && (counts || fixed)
            };
            if !allowed {
                return false;
            }
            self.fixed_identification = fixed;
        }
        merged.count += 1;
        merged.total_octets += next.payload_octets;
        merged.last_flags |= next.last_flags;
        self.next_sequence = next.next_sequence();
        self.last_identification = next.identification;
        self.closed = next.ends || next.payload_octets < segment_octets;
        true
    }
}

impl Candidate {
    fn read(packet: &[u8]) -> Option<Self> {
        let read = Packet::parse(packet).ok()?;
        if read.fragment != Fragment::Whole || read.total_octets != packet.len() {
            return None;
        }
        let family = read.family();
        // A longer network header has options or extensions.
        if read.transport_offset != usize::from(family.header_octets()) {
            return None;
        }
        let transport = packet.get(read.transport_offset..)?;
        let mut head = Head {
            family,
            addresses: [0; 32],
            kind: SegmentKind::Tcp,
            ports: *transport.first_chunk()?,
            traffic_class: read.traffic_class,
            hop_limit: read.hop_limit,
            dont_fragment: read.dont_fragment,
            flow_label: 0,
            acknowledgement: [0; 4],
            flags: 0,
            window: [0; 2],
            urgent: [0; 2],
            options: [0; 40],
            options_octets: 0,
        };
        let identification = match family {
            Family::V4 => {
                let (header, _) = Ipv4Header::ref_from_prefix(packet).ok()?;
                head.addresses
                    .get_mut(..8)?
                    .copy_from_slice(packet.get(12..20)?);
                header.identification()
            }
            Family::V6 => {
                let (header, _) = Ipv6Header::ref_from_prefix(packet).ok()?;
                head.addresses.copy_from_slice(packet.get(8..40)?);
                head.flow_label = header.flow_label();
                0
            }
        };
        let (transport_header, sequence, ends, last_flags) = match read.flow.protocol {
            ip_protocol::TCP => {
                let (header, options, _) = TcpHeader::parse(transport).ok()?;
                const NEVER: u8 = tcp::flag::SYN | tcp::flag::RST | tcp::flag::URG | tcp::flag::CWR;
                const LAST: u8 = tcp::flag::PSH | tcp::flag::FIN;
                if header.flags() & NEVER != 0 || header.flags() & tcp::flag::ACK == 0 {
                    return None;
                }
                head.acknowledgement = header.acknowledgement().to_be_bytes();
                head.flags = header.flags() & !LAST;
                head.window = header.window().to_be_bytes();
                head.urgent = header.urgent().to_be_bytes();
                head.options
                    .get_mut(..options.len())?
                    .copy_from_slice(options);
                head.options_octets = options.len();
                let last_flags = header.flags() & LAST;
                (
                    header.header_octets(),
                    header.sequence(),
                    last_flags != 0,
                    last_flags,
                )
            }
            ip_protocol::UDP => {
                let (header, data) = UdpHeader::parse(transport).ok()?;
                if header.checksum() == 0 || data.len() + size_of::<UdpHeader>() != transport.len()
                {
                    return None;
                }
                head.kind = SegmentKind::Udp;
                (size_of::<UdpHeader>(), 0, false, 0)
            }
            _ => return None,
        };
        // A merged packet gets a fresh checksum, which would hide that this one is wrong.
        if super::transport_checksum(packet, &read) != ChecksumState::Complete {
            return None;
        }
        Some(Self {
            head,
            header_octets: read.transport_offset + transport_header,
            payload_octets: transport.len().checked_sub(transport_header)?,
            sequence,
            identification,
            ends,
            last_flags,
        })
    }

    fn next_sequence(&self) -> u32 {
        let payload = u32::try_from(self.payload_octets).unwrap_or(u32::MAX);
        self.sequence.wrapping_add(payload)
    }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
