//! The outer IP and UDP headers as octets.
//!
//! Where the shell sends through sockets the kernel writes these headers; an embedder that has a
//! raw link, a test or a fuzz target uses [`push`] and [`pull`], which go from a frame's [`Link`]
//! to octets and back. Neither fragments nor reassembles: a kernel's socket does that before
//! `pull`, so a fragment that is met here is refused.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::IntoBytes;

use super::push_header;
use crate::batch::{Frame, Link, Transport};
use crate::verdict::DropReason;
use crate::wire::checksum::Sum;
use crate::wire::ipv6::UpperLayer;
use crate::wire::{
    Ipv4Header, Ipv6Header, Layer, ParseError, ParseErrorKind, UdpHeader, ip_protocol,
};

/// What [`push_with`] leaves to its caller.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct OuterOptions {
    /// The IPv4 identification. Zero is right where DF is set (RFC 6864 section 4.1); a packet that
    /// may be fragmented needs one that is unique among those under way.
    pub identification: u16,
    /// Whether UDP over IPv4 has a checksum. Without one it is sent as zero, as RFC 7348 section 5
    /// asks; over IPv6 there always is one (RFC 8200 section 8.1).
    pub udp_checksum_v4: bool,
}

/// Writes the outer headers that the frame's [`Link`] describes, with [`OuterOptions::default`].
///
/// # Errors
///
/// As [`push_with`].
pub fn push(frame: &mut Frame<'_>) -> Result<(), DropReason> {
    push_with(frame, OuterOptions::default())
}

/// Writes the outer headers that the frame's [`Link`] describes.
///
/// # Errors
///
/// [`DropReason::NoHeadroom`]; [`DropReason::TooBig`] beyond 65,535 octets;
/// [`DropReason::MalformedEncapsulation`] when the two addresses are of different families. The
/// frame is as it was.
pub fn push_with(frame: &mut Frame<'_>, options: OuterOptions) -> Result<(), DropReason> {
    let link = *frame.link();
    match (link.local, link.remote) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => push_v4(frame, &link, local, remote, options),
        (IpAddr::V6(local), IpAddr::V6(remote)) => push_v6(frame, &link, local, remote),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            Err(DropReason::MalformedEncapsulation)
        }
    }
}

/// Takes the outer headers off a packet that came from the underlay and sets the frame's [`Link`]
/// to what they say.
///
/// IPv6 destination options, among them the tunnel encapsulation limit of RFC 2473 section 4.1.1,
/// are skipped. Octets behind the packet are cut off.
///
/// # Errors
///
/// What the parsers of the headers refuse, and: `Checksum` for a wrong IPv4 header checksum or a
/// wrong non-zero UDP checksum (RFC 7348 section 5); `Invalid` for a fragment, a routing header
/// with segments left, a protocol that carries no tunnel, and a zero UDP checksum over IPv6, which
/// a receiver refuses unless told otherwise (RFC 6935 section 5, RFC 8200 section 8.1). The frame
/// is as it was.
pub fn pull(frame: &mut Frame<'_>) -> Result<(), ParseError> {
    let bytes = frame.bytes();
    let outer = match bytes.first().map(|octet| octet >> 4) {
        Some(4) => read_v4(bytes)?,
        Some(6) => read_v6(bytes)?,
        Some(_) => return Err(ParseError::invalid(Layer::Ipv4)),
        None => return Err(ParseError::truncated(Layer::Ipv4)),
    };
    frame.truncate(outer.payload_end);
    // The readers met the payload behind the headers, so the frame is at least that long.
    let _ = frame.pull(outer.payload_start);
    frame.set_link(outer.link);
    Ok(())
}

fn push_v4(
    frame: &mut Frame<'_>,
    link: &Link,
    local: Ipv4Addr,
    remote: Ipv4Addr,
    options: OuterOptions,
) -> Result<(), DropReason> {
    let (protocol, udp) = transport_header(frame, link, size_of::<Ipv4Header>())?;
    let total = size_of::<Ipv4Header>() + udp_octets(udp.as_ref()) + frame.bytes().len();
    let total = u16::try_from(total).map_err(|_| DropReason::TooBig)?;
    if let Some(mut udp) = udp {
        if options.udp_checksum_v4 {
            let sum = Sum::ZERO
                .pseudo_v4(local, remote, protocol, u32::from(udp.length_octets()))
                .octets(udp.as_bytes())
                .octets(frame.bytes());
            udp.set_checksum(sum.finish_udp());
        }
        push_header(frame, &udp)?;
    }
    let mut ip = Ipv4Header::new(local, remote, protocol, total);
    ip.set_tos(link.traffic_class);
    ip.set_ttl(link.hop_limit);
    ip.set_identification(options.identification);
    if link.dont_fragment {
        ip.set_fragment_word(Ipv4Header::DONT_FRAGMENT);
    }
    ip.fill_checksum(&[]);
    push_header(frame, &ip)
}

fn push_v6(
    frame: &mut Frame<'_>,
    link: &Link,
    local: Ipv6Addr,
    remote: Ipv6Addr,
) -> Result<(), DropReason> {
    let (protocol, udp) = transport_header(frame, link, size_of::<Ipv6Header>())?;
    let payload = udp_octets(udp.as_ref()) + frame.bytes().len();
    let payload = u16::try_from(payload).map_err(|_| DropReason::TooBig)?;
    if let Some(mut udp) = udp {
        let sum = Sum::ZERO
            .pseudo_v6(local, remote, protocol, u32::from(payload))
            .octets(udp.as_bytes())
            .octets(frame.bytes());
        udp.set_checksum(sum.finish_udp());
        push_header(frame, &udp)?;
    }
    let mut ip = Ipv6Header::new(local, remote, protocol, payload);
    ip.set_traffic_class(link.traffic_class);
    ip.set_hop_limit(link.hop_limit);
    push_header(frame, &ip)
}

/// The protocol number and the UDP header, where there is one, for the frame's octets; checks that
/// all headers fit.
fn transport_header(
    frame: &Frame<'_>,
    link: &Link,
    ip_octets: usize,
) -> Result<(u8, Option<UdpHeader>), DropReason> {
    let (protocol, udp) = match link.transport {
        Transport::Ip { protocol } => (protocol, None),
        Transport::Udp {
            local_port,
            remote_port,
        } => {
            let length = frame.bytes().len() + size_of::<UdpHeader>();
            let length = u16::try_from(length).map_err(|_| DropReason::TooBig)?;
            let header = UdpHeader::new(local_port, remote_port, length);
            (ip_protocol::UDP, Some(header))
        }
    };
    if frame.headroom() < ip_octets + udp_octets(udp.as_ref()) {
        return Err(DropReason::NoHeadroom);
    }
    Ok((protocol, udp))
}

const fn udp_octets(udp: Option<&UdpHeader>) -> usize {
    match udp {
        Some(_) => size_of::<UdpHeader>(),
        None => 0,
    }
}

/// The outer headers of a received packet: where the payload lies, and what they say.
struct Outer {
    payload_start: usize,
    payload_end: usize,
    link: Link,
}

fn read_v4(bytes: &[u8]) -> Result<Outer, ParseError> {
    let (ip, options, payload) = Ipv4Header::parse(bytes)?;
    if !ip.has_valid_checksum(options) {
        return Err(ParseError::new(Layer::Ipv4, ParseErrorKind::Checksum));
    }
    if ip.is_fragment() {
        return Err(ParseError::invalid(Layer::Ipv4));
    }
    let mut outer = Outer {
        payload_start: ip.header_octets(),
        payload_end: ip.header_octets() + payload.len(),
        link: Link {
            local: ip.destination().into(),
            remote: ip.source().into(),
            transport: Transport::Ip {
                protocol: ip.protocol(),
            },
            traffic_class: ip.tos(),
            hop_limit: ip.ttl(),
            dont_fragment: ip.dont_fragment(),
        },
    };
    match ip.protocol() {
        ip_protocol::IPV4 | ip_protocol::IPV6 => Ok(outer),
        ip_protocol::UDP => {
            let (udp, data) = UdpHeader::parse(payload)?;
            // RFC 768: a zero checksum was not computed.
            if udp.checksum() != 0 {
                let pseudo = Sum::ZERO.pseudo_v4(
                    ip.source(),
                    ip.destination(),
                    ip_protocol::UDP,
                    u32::from(udp.length_octets()),
                );
                verify_udp(pseudo, udp, data)?;
            }
            outer.enter_udp(udp, data);
            Ok(outer)
        }
        _ => Err(ParseError::invalid(Layer::Ipv4)),
    }
}

fn read_v6(bytes: &[u8]) -> Result<Outer, ParseError> {
    let (ip, payload) = Ipv6Header::parse(bytes)?;
    let upper = UpperLayer::walk(ip.next_header(), payload)?;
    let is_fragment = upper
        .fragment
        .is_some_and(|part| part.offset_octets() > 0 || part.more_fragments());
    if is_fragment || upper.source_routed {
        return Err(ParseError::invalid(Layer::Ipv6Extension));
    }
    let mut outer = Outer {
        payload_start: size_of::<Ipv6Header>() + upper.offset_octets,
        payload_end: size_of::<Ipv6Header>() + payload.len(),
        link: Link {
            local: ip.destination().into(),
            remote: ip.source().into(),
            transport: Transport::Ip {
                protocol: upper.protocol,
            },
            traffic_class: ip.traffic_class(),
            hop_limit: ip.hop_limit(),
            dont_fragment: true,
        },
    };
    match upper.protocol {
        ip_protocol::IPV4 | ip_protocol::IPV6 => Ok(outer),
        ip_protocol::UDP => {
            let (udp, data) =
                UdpHeader::parse(payload.get(upper.offset_octets..).unwrap_or_default())?;
            if udp.checksum() == 0 {
                return Err(ParseError::invalid(Layer::Udp));
            }
            let pseudo = Sum::ZERO.pseudo_v6(
                ip.source(),
                ip.destination(),
                ip_protocol::UDP,
                u32::from(udp.length_octets()),
            );
            verify_udp(pseudo, udp, data)?;
            outer.enter_udp(udp, data);
            Ok(outer)
        }
        _ => Err(ParseError::invalid(Layer::Ipv6)),
    }
}

impl Outer {
    fn enter_udp(&mut self, udp: &UdpHeader, data: &[u8]) {
        self.payload_start += size_of::<UdpHeader>();
        self.payload_end = self.payload_start + data.len();
        self.link.transport = Transport::Udp {
            local_port: udp.destination_port(),
            remote_port: udp.source_port(),
        };
    }
}

fn verify_udp(pseudo: Sum, udp: &UdpHeader, data: &[u8]) -> Result<(), ParseError> {
    if pseudo.octets(udp.as_bytes()).octets(data).is_valid() {
        Ok(())
    } else {
        Err(ParseError::new(Layer::Udp, ParseErrorKind::Checksum))
    }
}
