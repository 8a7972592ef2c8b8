//! What an inner packet must be before anything is looked up for it: sound, and from and to
//! addresses that may be seen on a wire.
//!
//! Both directions ask these questions, so that this node sends nothing that its peer would refuse
//! by them. Whether a packet is a tunnel's again only the receiver asks. Pure functions.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::{Fragment, Packet};
use crate::units::Family;
use crate::verdict::DropReason;
use crate::wire::ipv6::UpperLayer;
use crate::wire::{Ipv4Header, Ipv6Header, ip_protocol};

/// Checks the `packet` that starts at `bytes`: IPv4 header checksum, no source route, a fragment
/// that can be one.
pub(super) fn soundness(packet: &Packet, bytes: &[u8]) -> Result<(), DropReason> {
    match packet.family() {
        Family::V4 => soundness_v4(packet, bytes),
        // Without extension headers there is neither a routing header nor a fragment.
        Family::V6 if packet.transport_offset == size_of::<Ipv6Header>() => Ok(()),
        Family::V6 => soundness_v6(packet, bytes),
    }
}

fn soundness_v4(packet: &Packet, bytes: &[u8]) -> Result<(), DropReason> {
    let (header, options, _) = Ipv4Header::parse(bytes).map_err(|_| DropReason::MalformedPacket)?;
    if !header.has_valid_checksum(options) {
        return Err(DropReason::BadHeaderChecksum);
    }
    if has_source_route(options) {
        return Err(DropReason::SourceRouted);
    }
    check_fragment(
        packet,
        packet.transport_offset,
        header.fragment_offset_octets(),
        header.more_fragments(),
    )
}

fn soundness_v6(packet: &Packet, bytes: &[u8]) -> Result<(), DropReason> {
    let upper = Ipv6Header::parse(bytes)
        .and_then(|(header, payload)| UpperLayer::walk(header.next_header(), payload))
        .map_err(|_| DropReason::MalformedPacket)?;
    if upper.source_routed {
        return Err(DropReason::SourceRouted);
    }
    upper.fragment.map_or(Ok(()), |fragment| {
        check_fragment(
            packet,
            upper.offset_octets,
            fragment.offset_octets(),
            fragment.more_fragments(),
        )
    })
}

/// Refuses fragments that no sender makes and an attacker does: empty ones, ones that end behind
/// the longest datagram, parts of odd length in the middle, and the tiny or overlapping ones of
/// RFC 1858 and RFC 3128 that hide the flags of a TCP header or write over them.
///
/// `header_octets` are those in front of the data that count towards the longest datagram.
fn check_fragment(
    packet: &Packet,
    header_octets: usize,
    offset_octets: u16,
    more: bool,
) -> Result<(), DropReason> {
    let data_octets = packet.total_octets.saturating_sub(packet.transport_offset);
    let end = header_octets + usize::from(offset_octets) + data_octets;
    let is_tcp = packet.flow.protocol == ip_protocol::TCP;
    let bad = match packet.fragment {
        Fragment::Whole => false,
        Fragment::First => {
            data_octets == 0
                || !data_octets.is_multiple_of(8)
                || is_tcp && data_octets < TCP_HEADER_OCTETS
        }
        Fragment::Later => {
            data_octets == 0
                || more && !data_octets.is_multiple_of(8)
                || is_tcp && usize::from(offset_octets) < TCP_HEADER_OCTETS
        }
    };
    if bad || end > usize::from(u16::MAX) {
        Err(DropReason::MalformedPacket)
    } else {
        Ok(())
    }
}

/// Whether IPv4 options hold a loose or strict source route. RFC 791 section 3.1, RFC 7126
/// sections 4.3 and 4.4.
fn has_source_route(mut options: &[u8]) -> bool {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    loop {
        options = match options {
            [] | [END, ..] => return false,
            [NO_OPERATION, rest @ ..] => rest,
            [LOOSE | STRICT, ..] => return true,
            [_, length, ..] => match options.get(usize::from(*length).max(2)..) {
                Some(rest) => rest,
                None => return false,
            },
            [_] => return false,
        };
    }
}

/// The reason why no packet may come from `source`, wherever it was seen.
pub(super) fn source(source: IpAddr) -> Result<(), DropReason> {
    match class(source) {
        Class::Unicast => Ok(()),
        Class::Unspecified => Err(DropReason::SourceUnspecified),
        Class::Loopback => Err(DropReason::SourceLoopback),
        Class::Group => Err(DropReason::SourceMulticast),
        Class::LinkLocal => Err(DropReason::LinkLocal),
        Class::Reserved => Err(DropReason::SourceReserved),
    }
}

/// The reason why no packet is carried to `destination`.
pub(super) fn destination(destination: IpAddr) -> Result<(), DropReason> {
    match class(destination) {
        Class::Unicast => Ok(()),
        Class::Unspecified | Class::Loopback | Class::Reserved => {
            Err(DropReason::DestinationInvalid)
        }
        Class::Group => Err(DropReason::DestinationMulticast),
        Class::LinkLocal => Err(DropReason::LinkLocal),
    }
}

/// What an address is for, as far as a routed overlay cares. RFC 6890.
enum Class {
    Unicast,
    Unspecified,
    Loopback,
    /// Multicast, and the IPv4 broadcast.
    Group,
    LinkLocal,
    Reserved,
}

fn class(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(address) => class_v4(address),
        IpAddr::V6(address) => class_v6(address),
    }
}

const fn class_v4(address: Ipv4Addr) -> Class {
    match address.octets() {
        [0, 0, 0, 0] => Class::Unspecified,
        [0, ..] => Class::Reserved,
        [127, ..] => Class::Loopback,
        [169, 254, ..] => Class::LinkLocal,
        // 240.0.0.0/4 is reserved, but in use inside clusters: a prefix must own it, as any other.
        [224..=239, ..] | [255, 255, 255, 255] => Class::Group,
        _ => Class::Unicast,
    }
}

const fn class_v6(address: Ipv6Addr) -> Class {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Class::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Class::Loopback,
        // IPv4-compatible and IPv4-mapped: a socket would take them for the IPv4 address.
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _] => Class::Reserved,
        [0xff00..=0xffff, ..] => Class::Group,
        [0xfe80..=0xfebf, ..] => Class::LinkLocal,
        _ => Class::Unicast,
    }
}

const TCP_HEADER_OCTETS: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_source_route_behind_other_options() {
        assert!(!has_source_route(&[]));
        assert!(!has_source_route(&[1, 1, 1, 0]));
        assert!(has_source_route(&[1, 131, 7, 4, 10, 0, 0, 1]));
        assert!(has_source_route(&[148, 4, 0, 0, 137, 3, 4, 0]));
        // The end of the list ends it, and lengths of zero do not loop.
        assert!(!has_source_route(&[0, 131, 3, 4]));
        assert!(!has_source_route(&[68, 0, 0, 0]));
        assert!(!has_source_route(&[68, 40, 131, 3]));
    }

    #[test]
    fn classes_meet_at_their_borders() {
        let source_reason = |text: &str| source(text.parse().unwrap()).err();
        for (text, reason) in [
            ("0.0.0.0", Some(DropReason::SourceUnspecified)),
            ("0.0.0.1", Some(DropReason::SourceReserved)),
            ("1.0.0.0", None),
            ("126.255.255.255", None),
            ("127.0.0.0", Some(DropReason::SourceLoopback)),
            ("128.0.0.0", None),
            ("169.253.255.255", None),
            ("169.254.0.0", Some(DropReason::LinkLocal)),
            ("223.255.255.255", None),
            ("224.0.0.0", Some(DropReason::SourceMulticast)),
            ("240.0.0.1", None),
            ("255.255.255.255", Some(DropReason::SourceMulticast)),
            ("::", Some(DropReason::SourceUnspecified)),
            ("::1", Some(DropReason::SourceLoopback)),
            ("::2", Some(DropReason::SourceReserved)),
            ("::ffff:10.0.0.1", Some(DropReason::SourceReserved)),
            ("::ffff:0:10.0.0.1", None),
            ("fe7f::1", None),
            ("fe80::1", Some(DropReason::LinkLocal)),
            ("febf::1", Some(DropReason::LinkLocal)),
            ("fec0::1", None),
            ("fd00::1", None),
            ("ff02::1", Some(DropReason::SourceMulticast)),
        ] {
            assert_eq!(source_reason(text), reason, "{text}");
        }
    }
}
