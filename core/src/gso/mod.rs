//! Splitting super-packets into segments and merging segments into super-packets: pure arithmetic
//! over IP packets, without moving a payload.
//!
//! A kernel that offloads segmentation hands a TCP or UDP packet of up to 64 KiB to the device in
//! one read and takes such packets in one write. [`split`] describes the segments of one: a header
//! of its own each, and the range of the payload that follows it, so that the sender gathers both.
//! [`merge`] decides which packets in a row may become one again, by the rules of the kernel's own
//! receive offload: what is merged and split again gives the same octets.
//!
//! Knows `wire` and `packet`; allocates nothing.

pub mod merge;
pub mod split;

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
        let sum = crate::wire::checksum::Sum::ZERO
            .octets(covered)
            .finish_udp();
        let Some(field) = covered.get_mut(offset..offset + 2) else {
            return false;
        };
        field.copy_from_slice(&sum.to_be_bytes());
        true
    }
}
