//! ICMP errors, made in place: the frame that could not pass becomes the message about it.
//!
//! Obeys RFC 792, RFC 1122 section 3.2.2, RFC 1812 section 4.3.2 and RFC 4443 section 2.4: no error
//! about an error, about a later fragment, to a group or from a bogus source (the callers check
//! addresses before they ask); the quoted packet is as it came, its TTL included.
//!
//! An error about a packet of this node's own is sent as from the packet's destination: a host
//! takes no packet from its own address, and the message is matched by what it quotes. All errors
//! are, where [`EngineConfig::icmp_from_destination`](super::EngineConfig::icmp_from_destination)
//! says so; only without it a node needs an address of the packet's family to speak. Knowingly not
//! RFC 4443 section 2.2 there.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::IntoBytes;

use crate::batch::Frame;
use crate::encap::push_header;
use crate::gso::Offload;
use crate::packet::{Fragment, Packet};
use crate::tables::Local;
use crate::units::Mtu;
use crate::verdict::DropReason;
use crate::wire::checksum::Sum;
use crate::wire::{IcmpHeader, Icmpv6Header, Ipv4Header, Ipv6Header, icmp, icmpv6, ip_protocol};

/// What the sender of a dropped packet is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// The TTL or hop limit ran out: ICMP 11/0, ICMPv6 3/0.
    TimeExceeded,
    /// No route: ICMP 3/0, ICMPv6 1/0.
    NoRoute,
    /// The destination should be here and is not: ICMP 3/1, ICMPv6 1/3.
    HostUnreachable,
    /// An administrator forbids it: ICMP 3/13, ICMPv6 1/1.
    Prohibited,
    /// The packet does not fit; this would: ICMP 3/4, ICMPv6 2/0.
    TooBig {
        /// The largest packet that does.
        mtu: Mtu,
    },
}

impl Answer {
    const fn v4(self) -> IcmpHeader {
        use icmp::{kind, unreachable};
        let (kind, code, mtu) = match self {
            Self::TimeExceeded => (kind::TIME_EXCEEDED, 0, 0),
            Self::NoRoute => (kind::UNREACHABLE, unreachable::NET, 0),
            Self::HostUnreachable => (kind::UNREACHABLE, unreachable::HOST, 0),
            Self::Prohibited => (kind::UNREACHABLE, unreachable::PROHIBITED, 0),
            Self::TooBig { mtu } => (
                kind::UNREACHABLE,
                unreachable::FRAGMENTATION_NEEDED,
                mtu.octets(),
            ),
        };
        let [high, low] = mtu.to_be_bytes();
        IcmpHeader::new(kind, code, [0, 0, high, low])
    }

    fn v6(self) -> Icmpv6Header {
        use icmpv6::{kind, unreachable};
        let (kind, code, mtu) = match self {
            Self::TimeExceeded => (kind::TIME_EXCEEDED, 0, 0),
            Self::NoRoute => (kind::UNREACHABLE, unreachable::NO_ROUTE, 0),
            Self::HostUnreachable => (kind::UNREACHABLE, unreachable::ADDRESS, 0),
            Self::Prohibited => (kind::UNREACHABLE, unreachable::PROHIBITED, 0),
            Self::TooBig { mtu } => (kind::PACKET_TOO_BIG, 0, mtu.octets()),
        };
        Icmpv6Header::new(kind, code, u32::from(mtu))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimeExceeded => f.write_str("time exceeded"),
            Self::NoRoute => f.write_str("network unreachable"),
            Self::HostUnreachable => f.write_str("host unreachable"),
            Self::Prohibited => f.write_str("prohibited"),
            Self::TooBig { mtu } => write!(f, "too big, {mtu} octets fit"),
        }
    }
}

/// Whether an error about the `packet` at `bytes` may be sent at all, and from which address.
pub(super) fn source_of_error(
    packet: &Packet,
    bytes: &[u8],
    local: &Local,
    from_destination: bool,
) -> Option<IpAddr> {
    if packet.fragment == Fragment::Later || is_error_or_unreadable(packet, bytes) {
        return None;
    }
    let from = if from_destination {
        packet.flow.destination
    } else {
        match local.icmp_source(packet.family())? {
            own if own == packet.flow.source => packet.flow.destination,
            own => own,
        }
    };
    // A packet from this node's address to itself leaves nobody to speak.
    (from != packet.flow.source).then_some(from)
}

/// RFC 1122 section 3.2.2: never about an error; nor about an ICMP message too short to tell.
fn is_error_or_unreadable(packet: &Packet, bytes: &[u8]) -> bool {
    let message = bytes
        .get(packet.transport_offset..packet.total_octets)
        .unwrap_or_default();
    match packet.flow.protocol {
        ip_protocol::ICMP => IcmpHeader::parse(message).map_or(true, |(icmp, _)| icmp.is_error()),
        ip_protocol::ICMPV6 => {
            Icmpv6Header::parse(message).map_or(true, |(icmp, _)| icmp.is_error())
        }
        _ => false,
    }
}

/// Makes the frame, which holds `packet`, the error about it, from `source` to the packet's own
/// source.
///
/// # Errors
///
/// [`DropReason::NoHeadroom`].
pub(super) fn write(
    frame: &mut Frame<'_>,
    packet: &Packet,
    source: IpAddr,
    answer: Answer,
) -> Result<(), DropReason> {
    frame.truncate(packet.total_octets);
    // Whatever the device left to be done about the packet is not to be done about the message.
    frame.set_offload(Offload::NONE);
    match (source, packet.flow.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => write_v4(frame, from, to, answer.v4()),
        (IpAddr::V6(from), IpAddr::V6(to)) => write_v6(frame, from, to, answer.v6()),
        // The source of an error is of the packet's family.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            Err(DropReason::MalformedPacket)
        }
    }
}

fn write_v4(
    frame: &mut Frame<'_>,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    mut icmp: IcmpHeader,
) -> Result<(), DropReason> {
    const HEADERS: usize = size_of::<Ipv4Header>() + size_of::<IcmpHeader>();
    if frame.headroom() < HEADERS {
        return Err(DropReason::NoHeadroom);
    }
    frame.truncate(ERROR_OCTETS_V4 - HEADERS);
    let quoted = frame.bytes();
    // `truncate` leaves so few octets that this can not fail.
    let total = u16::try_from(HEADERS + quoted.len()).map_err(|_| DropReason::TooBig)?;
    let sum = Sum::ZERO.octets(icmp.as_bytes()).octets(quoted);
    icmp.set_checksum(sum.finish());
    push_header(frame, &icmp)?;
    let mut ip = Ipv4Header::new(source, destination, ip_protocol::ICMP, total);
    ip.set_tos(INTERNETWORK_CONTROL);
    // Never fragmented, so that the identification need not be unique: RFC 6864 section 4.1.
    ip.set_fragment_word(Ipv4Header::DONT_FRAGMENT);
    ip.fill_checksum(&[]);
    push_header(frame, &ip)
}

fn write_v6(
    frame: &mut Frame<'_>,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    mut icmp: Icmpv6Header,
) -> Result<(), DropReason> {
    const HEADERS: usize = size_of::<Ipv6Header>() + size_of::<Icmpv6Header>();
    if frame.headroom() < HEADERS {
        return Err(DropReason::NoHeadroom);
    }
    frame.truncate(ERROR_OCTETS_V6 - HEADERS);
    let quoted = frame.bytes();
    let payload = size_of::<Icmpv6Header>() + quoted.len();
    // `truncate` leaves so few octets that this can not fail.
    let payload = u16::try_from(payload).map_err(|_| DropReason::TooBig)?;
    let sum = Sum::ZERO
        .pseudo_v6(source, destination, ip_protocol::ICMPV6, u32::from(payload))
        .octets(icmp.as_bytes())
        .octets(quoted);
    icmp.set_checksum(sum.finish());
    push_header(frame, &icmp)?;
    let ip = Ipv6Header::new(source, destination, ip_protocol::ICMPV6, payload);
    push_header(frame, &ip)
}

/// The longest ICMP error. RFC 1812 section 4.3.2.3.
const ERROR_OCTETS_V4: usize = 576;
/// The longest ICMPv6 error: the minimum MTU. RFC 4443 section 2.4 (c).
const ERROR_OCTETS_V6: usize = 1280;
/// The precedence of ICMP errors. RFC 1812 section 4.3.2.5.
const INTERNETWORK_CONTROL: u8 = 0xc0;
