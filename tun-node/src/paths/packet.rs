//! Probes as octets: the inner packet, wrapped for one way.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use warren_core::batch::{Batch, Link};
use warren_core::encap::{Encapsulation, shim};
use warren_core::packet::Packet;
use warren_core::policy::Policy;
use warren_core::probe::{ECHO_IDENTIFIER, Kind, Message, PORT};
use warren_core::units::{Family, MacAddr};
use warren_core::verdict::Direction;

/// What carries a question.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Carrier {
    /// A message of our own: a peer that runs this program answers.
    Message,
    /// An ICMP echo: the host behind the address answers.
    Echo,
}

impl Carrier {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::Message => Self::Echo,
            Self::Echo => Self::Message,
        }
    }
}

/// An inner packet with `message`, filled up to `octets`; `None` when the addresses are of two
/// families.
pub(super) fn inner(
    source: IpAddr,
    destination: IpAddr,
    carrier: Carrier,
    message: Message,
    octets: usize,
) -> Option<Vec<u8>> {
    let headers = usize::from(Family::of(source).header_octets()) + 8;
    let mut payload = message.to_octets().to_vec();
    payload.resize(octets.saturating_sub(headers).max(Message::OCTETS), 0);
    let mut packet = Vec::with_capacity(octets);
    let is_echo = carrier == Carrier::Echo && message.kind == Kind::Question;
    let written = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let ip = PacketBuilder::ipv4(source.octets(), destination.octets(), 64);
            if is_echo {
                ip.icmpv4_echo_request(ECHO_IDENTIFIER, 0)
                    .write(&mut packet, &payload)
            } else {
                ip.udp(PORT, PORT).write(&mut packet, &payload)
            }
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let ip = PacketBuilder::ipv6(source.octets(), destination.octets(), 64);
            if is_echo {
                ip.icmpv6_echo_request(ECHO_IDENTIFIER, 0)
                    .write(&mut packet, &payload)
            } else {
                ip.udp(PORT, PORT).write(&mut packet, &payload)
            }
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    written.ok().map(|()| packet)
}

/// What goes into a socket: the inner packet behind the shim of `encapsulation`.
pub(super) fn wrapped(
    inner: &[u8],
    encapsulation: Encapsulation,
    vtep_mac: MacAddr,
) -> Option<Vec<u8>> {
    let packet = Packet::parse(inner).ok()?;
    let permit = Policy::AllowAll
        .decide(Direction::Encap, &packet.flow)
        .ok()?;
    let mut batch = Batch::new(1, inner.len());
    let mut frame = batch.push(inner, Link::LOCAL)?;
    shim::push(&mut frame, packet.family(), encapsulation, vtep_mac, permit).ok()?;
    Some(frame.bytes().to_vec())
}

/// The message in an inner packet, and the addresses that it came from and to.
pub(super) fn read(inner: &[u8]) -> Option<(Message, IpAddr, IpAddr)> {
    let (source, destination, payload) = match inner.first()? >> 4 {
        4 => {
            let header = usize::from(inner.first()? & 15) * 4;
            let source: [u8; 4] = inner.get(12..16)?.try_into().ok()?;
            let destination: [u8; 4] = inner.get(16..20)?.try_into().ok()?;
            (source.into(), destination.into(), inner.get(header + 8..)?)
        }
        6 => {
            let source: [u8; 16] = inner.get(8..24)?.try_into().ok()?;
            let destination: [u8; 16] = inner.get(24..40)?.try_into().ok()?;
            (source.into(), destination.into(), inner.get(48..)?)
        }
        _ => return None,
    };
    Some((Message::parse(payload)?, source, destination))
}

/// The token of a probe somewhere in the octets that an ICMP error quotes.
pub(super) fn token_in(quoted: &[u8]) -> Option<u64> {
    quoted
        .windows(Message::LEAST_OCTETS)
        .find_map(Message::parse)
        .map(|message| message.token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_core::probe::is_probe;
    use warren_core::units::Vni;

    #[test]
    fn what_is_sent_is_read_again_and_recognised() {
        let addresses: [(IpAddr, IpAddr); 2] = [
            ([10, 1, 0, 1].into(), [10, 2, 0, 2].into()),
            ([1_u16; 8].into(), [2_u16; 8].into()),
        ];
        for (source, destination) in addresses {
            for kind in [Kind::Question, Kind::Answer] {
                let message = Message {
                    kind,
                    encapsulation: 1,
                    octets: 1400,
                    token: 77,
                    takes_rows: kind == Kind::Answer,
                };
                let made = inner(source, destination, Carrier::Message, message, 1000)
                    .expect("one family");
                assert_eq!(made.len(), 1000);
                let packet = Packet::parse(&made).expect("a packet");
                assert!(packet.dont_fragment && is_probe(&packet, &made));
                assert_eq!(read(&made), Some((message, source, destination)));
                let vni = Vni::new(1).expect("24 bits");
                let way = Encapsulation::Vxlan {
                    vni,
                    port: 1,
                    mac: MacAddr::default(),
                };
                let sent = wrapped(&made, way, MacAddr::default()).expect("room");
                assert_eq!(sent.len(), 1022);
                assert_eq!(token_in(&sent[..100]), Some(77));
            }
        }
    }
}
