//! Making packets fit: IPv4 fragmentation (RFC 791 section 3.2) and the clamp of the TCP maximum
//! segment size.
//!
//! Both act on the *inner* packet: fragmenting the outer one would leave reassembly to the other
//! end of the tunnel (RFC 4459 section 3.1 says why that is the worse choice).

use core::ops::Range;

use zerocopy::FromBytes;

use crate::packet::{Fragment, Packet};
use crate::units::{Family, Mtu};
use crate::wire::checksum;
use crate::wire::{Ipv4Header, TcpHeader, ip_protocol, tcp};

/// An IPv4 packet as a row of fragments that fit an MTU.
///
/// Fragment `n` is [`write_header`](Self::write_header)`(n, ..)` followed by the octets
/// [`payload`](Self::payload)`(n)` of the packet. A packet that is itself a fragment is cut
/// further. Options are copied to later fragments when their copied flag is set; those without it
/// stand in the first only and are replaced by "no operation" in the others, which keeps the
/// header length the same throughout.
#[derive(Clone, Debug)]
pub struct Fragmenter<'a> {
    packet: &'a [u8],
    header: Ipv4Header,
    step: usize,
}

impl<'a> Fragmenter<'a> {
    /// Reads the packet at the front of `packet`.
    ///
    /// `None` when it is no IPv4 packet, may not be fragmented, or the MTU leaves no room for 8
    /// octets of payload.
    #[must_use]
    pub fn new(packet: &'a [u8], mtu: Mtu) -> Option<Self> {
        let (header, _, payload) = Ipv4Header::parse(packet).ok()?;
        let step = usize::from(mtu.octets()).checked_sub(header.header_octets())? & !7;
        if header.dont_fragment() || step == 0 {
            return None;
        }
        let packet = packet.get(..header.header_octets() + payload.len())?;
        Some(Self {
            packet,
            header: *header,
            step,
        })
    }

    /// How many fragments there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        let payload = self.packet.len() - self.header.header_octets();
        if payload == 0 {
            1
        } else {
            payload.div_ceil(self.step)
        }
    }

    /// Octets of every fragment's header.
    #[must_use]
    pub const fn header_octets(&self) -> usize {
        self.header.header_octets()
    }

    /// Where the payload of fragment `index` lies in the packet.
    #[must_use]
    pub fn payload(&self, index: usize) -> Range<usize> {
        let start = self
            .header_octets()
            .saturating_add(index.saturating_mul(self.step))
            .min(self.packet.len());
        start..start.saturating_add(self.step).min(self.packet.len())
    }

    /// Writes the header of fragment `index` to the front of `to`; `None` when `to` is too short
    /// or there is no such fragment.
    #[must_use]
    pub fn write_header(&self, index: usize, to: &mut [u8]) -> Option<()> {
        let last = self.count().checked_sub(1)?;
        if index > last {
            return None;
        }
        let payload = self.payload(index);
        let to = to.get_mut(..self.header_octets())?;
        to.copy_from_slice(self.packet.get(..self.header_octets())?);
        let (header, options) = Ipv4Header::mut_from_prefix(to).ok()?;
        if index > 0 {
            drop_uncopied_options(options);
        }
        let offset = usize::from(self.header.fragment_offset_octets()) + index * self.step;
        let more = index < last || self.header.more_fragments();
        let word = u16::try_from(offset / 8)
            .ok()
            .filter(|units| *units < 1 << 13)?;
        header.set_fragment_word(word | if more { Ipv4Header::MORE_FRAGMENTS } else { 0 });
        header.set_total_octets(u16::try_from(self.header_octets() + payload.len()).ok()?);
        header.fill_checksum(options);
        Some(())
    }
}

/// Overwrites options without the copied flag by "no operation". RFC 791 section 3.1.
fn drop_uncopied_options(mut options: &mut [u8]) {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    while let [kind, ..] = options {
        let octets = match (*kind, options.get(1)) {
            (END, _) => return,
            (NO_OPERATION, _) => 1,
            (_, Some(length)) => usize::from(*length),
            (_, None) => return,
        };
        let Some((option, rest)) = options.split_at_mut_checked(octets.max(1)) else {
            return;
        };
        if option.first().is_some_and(|kind| kind & 0x80 == 0) {
            option.fill(NO_OPERATION);
        }
        options = rest;
    }
}

/// Whether a packet that was read as `read` opens a TCP connection (or answers one that does): a
/// cheap look, before [`clamp_mss`] is asked.
#[must_use]
pub fn is_tcp_syn(packet: &[u8], read: &Packet) -> bool {
    const FLAGS_OFFSET: usize = 13;
    read.flow.protocol == ip_protocol::TCP
        && read.fragment == Fragment::Whole
        && packet
            .get(read.transport_offset + FLAGS_OFFSET)
            .is_some_and(|flags| flags & tcp::flag::SYN != 0)
}

/// Lowers the maximum segment size that a TCP SYN announces to what fits `mtu`, and mends its
/// checksum. Returns whether it was changed.
///
/// A SYN without the option is left alone: the default of RFC 9293 section 3.7.1 (536, or 1220 for
/// IPv6) fits every path. The checksum may be partial: it covers neither the option nor the data
/// then, and `checksum_is_partial` says so.
pub fn clamp_mss(packet: &mut [u8], read: &Packet, mtu: Mtu, checksum_is_partial: bool) -> bool {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const MAXIMUM_SEGMENT_SIZE: u8 = 2;
    if read.flow.protocol != ip_protocol::TCP || read.fragment != Fragment::Whole {
        return false;
    }
    let Some(segment) = packet.get_mut(read.transport_offset..) else {
        return false;
    };
    let Ok((header, options, _)) = TcpHeader::parse(segment) else {
        return false;
    };
    if header.flags() & tcp::flag::SYN == 0 {
        return false;
    }
    let headers = read.transport_offset + size_of::<TcpHeader>();
    let Some(largest) = mtu
        .octets()
        .checked_sub(u16::try_from(headers).unwrap_or(u16::MAX))
    else {
        return false;
    };
    let mut at = 0;
    let place = loop {
        match options.get(at..) {
            Some([NO_OPERATION, ..]) => at += 1,
            Some([MAXIMUM_SEGMENT_SIZE, 4, _, _, ..]) => break at + 2,
            Some([kind, length, ..]) if *kind != END && *length >= 2 => at += usize::from(*length),
            Some(_) | None => return false,
        }
    };
    let old_checksum = header.checksum();
    let place = size_of::<TcpHeader>() + place;
    let Some(&[high, low]) = segment.get(place..).and_then(|rest| rest.first_chunk()) else {
        return false;
    };
    let old = u16::from_be_bytes([high, low]);
    if old <= largest {
        return false;
    }
    // An option may start at an odd octet: then its value lies across two words of the checksum.
    let (before, after) = if place.is_multiple_of(2) {
        (old, largest)
    } else {
        (old.swap_bytes(), largest.swap_bytes())
    };
    if let Some(value) = segment.get_mut(place..place + 2) {
        value.copy_from_slice(&largest.to_be_bytes());
    }
    if !checksum_is_partial && let Some(field) = segment.get_mut(16..18) {
        field.copy_from_slice(&checksum::update(old_checksum, before, after).to_be_bytes());
    }
    true
}

/// The largest segment that a TCP packet of `family` may announce on a path with `mtu`, without IP
/// or TCP options.
#[must_use]
pub const fn mss_of(family: Family, mtu: Mtu) -> u16 {
    mtu.octets().saturating_sub(family.header_octets() + 20)
}

#[cfg(test)]
#[path = "fragment_tests.rs"]
mod tests;
