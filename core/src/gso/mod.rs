//! Splitting super-packets into segments and merging segments into super-packets: pure arithmetic
//! over IP packets, without moving a payload.
//!
//! A kernel that offloads segmentation hands a TCP or UDP packet of up to 64 KiB to the device in
//! one read and takes such packets in one write. [`split`] describes the segments of one: a header
//! of its own each, and the range of the payload that follows it, so that the sender gathers both.
//! [`merge`] decides which packets in a row may become one again, by the rules of the kernel's own
//! receive offload: what is merged and split again gives the same octets, but for identifications
//! of IPv4 that nobody reads (see [`Merge`]).
//!
//! Knows `wire` and `packet`; allocates nothing.

pub mod merge;
pub mod split;

use crate::packet::{Fragment, Packet};
use crate::units::Family;
use crate::wire::checksum::Sum;
use crate::wire::ip_protocol;

pub use merge::{Merge, MergeRun, Offer};
pub use split::{MAX_HEADER_OCTETS, SplitError, Splitter};

/// What a super-packet is a row of.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum SegmentKind {
    /// TCP segments.
    Tcp,
    /// UDP datagrams of equal size.
    Udp,
}

/// What the device leaves to be done, or says is done, about a packet: the meaning of a virtio-net
/// header (virtio 1.2 section 5.1.6) without its encoding.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Offload {
    /// The transport checksum holds the folded pseudo-header sum only; the rest is to be added.
    pub partial_checksum: Option<PartialChecksum>,
    /// The packet is a row of segments, each with this many octets of payload (the last one up to
    /// as many).
    pub segments: Option<(SegmentKind, u16)>,
}

impl Offload {
    /// Nothing: one packet with a complete checksum.
    pub const NONE: Self = Self {
        partial_checksum: None,
        segments: None,
    };
}

/// The state of a transport checksum, as [`transport_checksum`] finds it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChecksumState {
    /// It is right, or absent where it may be.
    Complete,
    /// It holds the pseudo-header sum only: the sender left the rest to a device that did not do it
    /// (packets between two interfaces of one host).
    Partial(PartialChecksum),
    /// It is neither.
    Wrong,
    /// There is none to look at: another protocol, or a fragment.
    Unknown,
}

/// Adds up the TCP or UDP checksum of the IP packet `packet`, which was read as `read`.
#[must_use]
pub fn transport_checksum(packet: &[u8], read: &Packet) -> ChecksumState {
    let Some(found) = Found::of(packet, read) else {
        return ChecksumState::Unknown;
    };
    if found.is_absent {
        return ChecksumState::Complete;
    }
    if found.pseudo.octets(found.transport).is_valid() {
        ChecksumState::Complete
    } else if found.field == found.pseudo.partial() {
        ChecksumState::Partial(found.place)
    } else {
        ChecksumState::Wrong
    }
}

/// Where the TCP or UDP checksum of the IP packet `packet`, which was read as `read`, is to be
/// completed, if it looks as if it were: it is the sum of the pseudo-header. The packet is not added up.
///
/// Of 65,536 complete checksums one looks like that, too; to complete it gives the same again, since
/// what it adds to is the same.
#[must_use]
pub fn pending_checksum(packet: &[u8], read: &Packet) -> Option<PartialChecksum> {
    let found = Found::of(packet, read)?;
    (!found.is_absent && found.field == found.pseudo.partial()).then_some(found.place)
}

/// A transport checksum and what it covers.
struct Found<'p> {
    place: PartialChecksum,
    field: u16,
    /// Whether the zero that is there says that there is none (RFC 768).
    is_absent: bool,
    pseudo: Sum,
    transport: &'p [u8],
}

impl<'p> Found<'p> {
    fn of(packet: &'p [u8], read: &Packet) -> Option<Self> {
        const TCP_OFFSET: u16 = 16;
        const UDP_OFFSET: u16 = 6;
        let offset = match read.flow.protocol {
            ip_protocol::TCP => TCP_OFFSET,
            ip_protocol::UDP => UDP_OFFSET,
            _ => return None,
        };
        if read.fragment != Fragment::Whole {
            return None;
        }
        let transport = packet.get(read.transport_offset..read.total_octets)?;
        let field = transport.get(usize::from(offset)..)?.first_chunk()?;
        let field = u16::from_be_bytes(*field);
        let addresses = match read.family() {
            Family::V4 => packet.get(12..20)?,
            Family::V6 => packet.get(8..40)?,
        };
        let is_udp = read.flow.protocol == ip_protocol::UDP;
        Some(Self {
            place: PartialChecksum {
                start: u16::try_from(read.transport_offset).ok()?,
                offset,
            },
            field,
            is_absent: field == 0 && is_udp && read.family() == Family::V4,
            pseudo: Sum::ZERO
                .octets(addresses)
                .word(u16::from(read.flow.protocol))
                .word(u16::try_from(transport.len()).ok()?),
            transport,
        })
    }
}

/// Where a checksum is still to be completed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PartialChecksum {
    /// The first octet that it covers, from the start of the IP packet.
    pub start: u16,
    /// Its own place, from `start`.
    pub offset: u16,
}

impl PartialChecksum {
    /// Completes the checksum within `packet`; `false`, and no change, when it lies outside.
    pub fn complete(self, packet: &mut [u8]) -> bool {
        let (start, offset) = (usize::from(self.start), usize::from(self.offset));
        let Some(covered) = packet.get_mut(start..) else {
            return false;
        };
        let sum = Sum::ZERO.octets(covered).finish_udp();
        let Some(field) = covered.get_mut(offset..offset + 2) else {
            return false;
        };
        field.copy_from_slice(&sum.to_be_bytes());
        true
    }
}
