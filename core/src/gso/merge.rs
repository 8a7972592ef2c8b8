//! Packets in a row as one super-packet: see [`Merge`].

use core::ops::Range;

use super::{Offload, PartialChecksum, SegmentKind};
use crate::packet::{Fragment, Packet};
use crate::units::Family;
use crate::wire::checksum::Sum;
use crate::wire::{Ipv4Header, Ipv6Header, TcpHeader, UdpHeader, ip_protocol, tcp};
use zerocopy::FromBytes;

/// Decides, packet by packet, what joins the run in progress.
///
/// Two packets are merged when splitting the result gives back both, octet for octet but for an IPv4
/// identification that stayed the same where DF is set: there it means nothing (RFC 6864 section
/// 4.1), and it counts up in what is split. These are the rules of the kernel's generic receive
/// offload. For TCP: same addresses, ports, traffic class, hop limit,
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
    /// The headers of the first packet, which those of the others are compared with.
    head: [u8; HEAD_OCTETS_MAX],
    /// Where the transport header begins in it.
    transport: usize,
    /// The sum over the part of the pseudo header that is the same throughout the run.
    addresses: Sum,
    next_sequence: u32,
    last_identification: u16,
    fixed_identification: bool,
    closed: bool,
}

/// What differs between the packets of a run.
#[derive(Clone, Copy, Debug)]
struct Part {
    payload_octets: usize,
    sequence: u32,
    identification: u16,
    ends: bool,
    last_flags: u8,
}

/// The longest headers of a packet that is merged: IPv6, and TCP with 40 octets of options.
const HEAD_OCTETS_MAX: usize = 40 + 60;

/// Octets of the two ports.
const PORTS: usize = 4;

/// Flags that end a run.
const LAST: u8 = tcp::flag::PSH | tcp::flag::FIN;

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
        if self.run.as_mut().is_some_and(|run| run.append(packet)) {
            return Offer::Joined;
        }
        match Run::start(packet) {
            Some(run) => Offer::Began(self.run.replace(run).map(|run| run.merged)),
            None => Offer::Unmergeable(self.finish()),
        }
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
    /// A run of this packet; `None` when it is none that may be merged.
    fn start(packet: &[u8]) -> Option<Self> {
        let read = Packet::parse(packet).ok()?;
        if read.fragment != Fragment::Whole || read.total_octets != packet.len() {
            return None;
        }
        let family = read.family();
        // A longer network header has options or extensions.
        if read.transport_offset != usize::from(family.header_octets()) {
            return None;
        }
        let (network, transport) = packet.split_at_checked(read.transport_offset)?;
        let (kind, transport_header) = match read.flow.protocol {
            ip_protocol::TCP => {
                let (header, _, _) = TcpHeader::parse(transport).ok()?;
                const NEVER: u8 = tcp::flag::SYN | tcp::flag::RST | tcp::flag::URG | tcp::flag::CWR;
                if header.flags() & NEVER != 0 || header.flags() & tcp::flag::ACK == 0 {
                    return None;
                }
                (SegmentKind::Tcp, header.header_octets())
            }
            ip_protocol::UDP => {
                UdpHeader::parse(transport).ok()?;
                (SegmentKind::Udp, size_of::<UdpHeader>())
            }
            _ => return None,
        };
        let addresses = match family {
            Family::V4 => network.get(12..20)?,
            Family::V6 => network.get(8..40)?,
        };
        let header_octets = read.transport_offset + transport_header;
        let mut head = [0; HEAD_OCTETS_MAX];
        head.get_mut(..header_octets)?
            .copy_from_slice(packet.get(..header_octets)?);
        let mut run = Self {
            merged: MergeRun {
                count: 1,
                header_octets,
                total_octets: packet.len(),
                kind,
                segment_octets: 0,
                last_flags: 0,
                family,
            },
            head,
            transport: read.transport_offset,
            addresses: Sum::ZERO
                .octets(addresses)
                .word(u16::from(read.flow.protocol)),
            next_sequence: 0,
            last_identification: 0,
            fixed_identification: false,
            closed: false,
        };
        let first = run.part(packet)?;
        run.merged.segment_octets = u16::try_from(first.payload_octets).unwrap_or(u16::MAX);
        run.merged.last_flags = first.last_flags;
        run.next_sequence = first.next_sequence();
        run.last_identification = first.identification;
        run.closed = first.ends || first.payload_octets == 0;
        Some(run)
    }

    /// Takes the packet into the run; `false`, and no change, when it does not belong there.
    fn append(&mut self, packet: &[u8]) -> bool {
        if self.closed || !self.has_same_head(packet) {
            return false;
        }
        let Some(next) = self.part(packet) else {
            return false;
        };
        let merged = &mut self.merged;
        let segment_octets = usize::from(merged.segment_octets);
        if next.payload_octets == 0
            || next.payload_octets > segment_octets
            || merged.total_octets + next.payload_octets > MAX_TOTAL_OCTETS
            || (merged.kind == SegmentKind::Tcp && next.sequence != self.next_sequence)
        {
            return false;
        }
        if merged.family == Family::V4 {
            const DONT_FRAGMENT: u8 = 0x40;
            let [_, _, _, _, _, _, flags, ..] = self.head;
            let counts = next.identification == self.last_identification.wrapping_add(1);
            // With DF set nobody reassembles, and the sender may keep the field fixed (RFC 6864
            // section 4.1); the kernel merges those too.
            let fixed =
                flags & DONT_FRAGMENT != 0 && next.identification == self.last_identification;
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

    /// Whether the headers of `packet` are those of the first one, but for what [`part`](Self::part)
    /// reads.
    fn has_same_head(&self, packet: &[u8]) -> bool {
        let head = self.head.get(..self.merged.header_octets);
        let (Some(head), Some(other)) = (head, packet.get(..self.merged.header_octets)) else {
            return false;
        };
        let (Some((network, transport)), Some((other_network, other_transport))) = (
            head.split_at_checked(self.transport),
            other.split_at_checked(self.transport),
        ) else {
            return false;
        };
        let network = match self.merged.family {
            // But the lengths, the identification and the header's checksum.
            Family::V4 => is_same(network, other_network, [0..2, 6..10, 12..20]),
            Family::V6 => is_same(network, other_network, [0..4, 6..40]),
        };
        network
            && match self.merged.kind {
                // But the sequence number, the flags that end a run, and the checksum.
                SegmentKind::Tcp => {
                    let end = transport.len();
                    let flags = transport.get(13).zip(other_transport.get(13));
                    is_same(transport, other_transport, [0..4, 8..13, 14..16, 18..end])
                        && flags.is_some_and(|(one, other)| (one ^ other) & !LAST == 0)
                }
                SegmentKind::Udp => {
                    transport.first_chunk::<PORTS>() == other_transport.first_chunk::<PORTS>()
                }
            }
    }

    /// Reads what differs between the packets of a run from `packet`, whose headers are as long as
    /// the first one's. `None` when its lengths do not go together or its checksum is wrong.
    fn part(&self, packet: &[u8]) -> Option<Part> {
        let (network, transport) = packet.split_at_checked(self.transport)?;
        let (total_octets, identification) = match self.merged.family {
            Family::V4 => {
                let (header, _) = Ipv4Header::ref_from_prefix(network).ok()?;
                (usize::from(header.total_octets()), header.identification())
            }
            Family::V6 => {
                let (header, rest) = Ipv6Header::ref_from_prefix(network).ok()?;
                let before = network.len() - rest.len();
                (before + usize::from(header.payload_octets()), 0)
            }
        };
        let payload_octets = packet.len().checked_sub(self.merged.header_octets)?;
        let transport_octets = u16::try_from(transport.len()).ok()?;
        if total_octets != packet.len() {
            return None;
        }
        let (sequence, last_flags) = match self.merged.kind {
            SegmentKind::Tcp => {
                let (header, _) = TcpHeader::ref_from_prefix(transport).ok()?;
                (header.sequence(), header.flags() & LAST)
            }
            SegmentKind::Udp => {
                let (header, data) = UdpHeader::parse(transport).ok()?;
                if header.checksum() == 0 || data.len() != payload_octets {
                    return None;
                }
                (0, 0)
            }
        };
        let sum = self.addresses.word(transport_octets).octets(transport);
        sum.is_valid().then_some(Part {
            payload_octets,
            sequence,
            identification,
            ends: last_flags != 0,
            last_flags,
        })
    }
}

impl Part {
    fn next_sequence(&self) -> u32 {
        let payload = u32::try_from(self.payload_octets).unwrap_or(u32::MAX);
        self.sequence.wrapping_add(payload)
    }
}

/// Whether two headers have the same octets in all of `ranges`, which lie within both.
fn is_same<const N: usize>(one: &[u8], other: &[u8], ranges: [Range<usize>; N]) -> bool {
    ranges.into_iter().all(|range| {
        let (one, other) = (one.get(range.clone()), other.get(range));
        one.is_some() && one == other
    })
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
