//! ICMP errors about outer packets, from a raw socket or an error queue: what they say, about what.

use std::fmt;
use std::net::IpAddr;

use warren_core::encap::Encapsulation;
use warren_core::relay::{self, Relay};
use warren_core::units::{Family, Mtu};

use crate::udp::{Origin, QueuedError};

/// An error about an outer packet of this node.
#[derive(Debug)]
pub(super) struct IcmpError {
    family: Family,
    kind: u8,
    code: u8,
    /// Who reported it.
    offender: Option<IpAddr>,
    /// The outer destination that it is about.
    pub(super) destination: IpAddr,
    /// The next link's MTU, where the error is about size.
    pub(super) mtu: Option<u16>,
    /// What it quotes of the outer packet behind the IP header.
    pub(super) quoted: Vec<u8>,
    /// What the quoted IP header says; known from a raw socket only. Errors from elsewhere repeat
    /// what that one sees.
    whole: Option<Whole>,
}

/// What is read of a quoted outer IP header.
#[derive(Clone, Copy, Debug)]
struct Whole {
    source: IpAddr,
    protocol: u8,
    /// Octets of the IP header.
    header_octets: usize,
    /// Octets of the packet that was too big, say.
    total_octets: usize,
    /// Where a problem lies, from the start of the IP header.
    pointer: Option<u32>,
}

/// What this node sends to the peer that an error is about.
pub(super) trait Sent {
    /// Whether outer packets leave from that address.
    fn is_from(&self, underlay: IpAddr) -> bool;

    /// Whether inner packets of these addresses go to the peer.
    fn leads(&self, source: IpAddr, destination: IpAddr) -> bool;

    /// The encapsulations that it is sent.
    fn ways(&self) -> impl Iterator<Item = Encapsulation>;
}

impl IcmpError {
    /// Whether the error queue of a socket says it, where one that sees all errors says it too.
    pub(super) const fn is_repeated(&self, all_are_heard: bool) -> bool {
        all_are_heard && self.whole.is_none()
    }

    /// Whether the packet that it quotes may have been sent by this node to the peer: from one of
    /// its addresses, in one of the peer's encapsulations, longer than what is said to fit, and, as
    /// far as the quote reaches, with an inner packet that goes there.
    pub(super) fn matches(&self, sent: &impl Sent) -> bool {
        let Some(whole) = &self.whole else {
            // The kernel has found the socket that it is about.
            return true;
        };
        let is_too_long = |mtu: u16| whole.total_octets > usize::from(mtu);
        sent.is_from(whole.source)
            && self.mtu.is_none_or(is_too_long)
            && shims(whole, &self.quoted, sent).any(|shim| {
                let inner = self.quoted.get(shim..).unwrap_or_default();
                match addresses(inner) {
                    Some((source, destination)) => sent.leads(source, destination),
                    None => inner.len() < FRONT_OCTETS,
                }
            })
    }

    /// The message to the sender of the inner packet that the error quotes, if it gets one.
    ///
    /// The quoted packet must be one that this node would send to that peer.
    pub(super) fn relay(&self, sent: &impl Sent) -> Option<Vec<u8>> {
        let whole = self.whole.as_ref()?;
        let action = relay::relay(self.family, self.kind, self.code);
        // A path MTU answers the next packet that is too big.
        if matches!(action, Relay::Silent | Relay::TooBig) || !sent.is_from(whole.source) {
            return None;
        }
        shims(whole, &self.quoted, sent).find_map(|shim| {
            let inner = self.quoted.get(shim..)?;
            let (source, destination) = addresses(inner)?;
            if !sent.leads(source, destination) {
                return None;
            }
            let outer_octets = u32::try_from(whole.header_octets + shim).ok()?;
            let pointer = whole.pointer.and_then(|at| at.checked_sub(outer_octets));
            let pointer = pointer.and_then(|at| u8::try_from(at).ok());
            // This host takes no packet from its own address: as the engine does. So it needs none.
            relay::message(action, destination, inner, Mtu::ETHERNET, pointer)
        })
    }
}

/// How far behind the outer IP header the inner packet may begin: what the quoted transport allows.
fn shims(whole: &Whole, quoted: &[u8], sent: &impl Sent) -> impl Iterator<Item = usize> {
    let protocol = whole.protocol;
    let to = quoted.get(2..).and_then(|rest| rest.first_chunk());
    let to = to.copied().map(u16::from_be_bytes);
    sent.ways().filter_map(move |way| match way {
        Encapsulation::Ipip => matches!(protocol, 4 | 41).then_some(0),
        Encapsulation::Vxlan { port, .. }
        | Encapsulation::VxlanGpe { port, .. }
        | Encapsulation::Geneve { port, .. }
        | Encapsulation::Fou { port }
        | Encapsulation::Gue { port } => {
            (protocol == 17 && to == Some(port)).then_some(8 + usize::from(way.shim_octets()))
        }
    })
}

impl fmt::Display for IcmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.family, self.kind, self.code) {
            (Family::V4, 3, 0) | (Family::V6, 1, 0) => f.write_str("network unreachable")?,
            (Family::V4, 3, 1) | (Family::V6, 1, 3) => f.write_str("host unreachable")?,
            (Family::V4, 3, 2) => f.write_str("protocol unreachable")?,
            (Family::V4, 3, 3) | (Family::V6, 1, 4) => f.write_str("port unreachable")?,
            (Family::V4, 3, 4) | (Family::V6, 2, _) => f.write_str("too big")?,
            (Family::V4, 3, 9 | 10 | 13) | (Family::V6, 1, 1) => f.write_str("prohibited")?,
            (Family::V4, 11, _) | (Family::V6, 3, _) => f.write_str("time exceeded")?,
            (_, kind, code) => write!(f, "ICMP {kind}/{code}")?,
        }
        if let Some(mtu) = self.mtu {
            write!(f, " ({mtu} octets fit)")?;
        }
        if let Some(offender) = self.offender {
            write!(f, ", says {offender}")?;
        }
        Ok(())
    }
}

/// Reads what a raw ICMP socket received: over IPv4 with the IP header.
pub(super) fn parse(family: Family, message: &[u8]) -> Option<IcmpError> {
    let (offender, icmp) = match family {
        Family::V4 => {
            let header = usize::from(message.first()? & 15) * 4;
            let offender: [u8; 4] = message.get(12..16)?.try_into().ok()?;
            (Some(offender.into()), message.get(header..)?)
        }
        // The kernel keeps the IPv6 header to itself.
        Family::V6 => (None, message),
    };
    let [kind, code, _, _, a, b, c, d, ref quoted @ ..] = *icmp else {
        return None;
    };
    let word = |at: usize| -> Option<u16> {
        let octets: [u8; 2] = quoted.get(at..at + 2)?.try_into().ok()?;
        Some(u16::from_be_bytes(octets))
    };
    let (source, destination, protocol, header_octets, total): (IpAddr, IpAddr, _, _, _) =
        match family {
            Family::V4 => {
                let source: [u8; 4] = quoted.get(12..16)?.try_into().ok()?;
                let destination: [u8; 4] = quoted.get(16..20)?.try_into().ok()?;
                let header = usize::from(quoted.first()? & 15) * 4;
                let protocol = *quoted.get(9)?;
                (
                    source.into(),
                    destination.into(),
                    protocol,
                    header,
                    word(2)?,
                )
            }
            Family::V6 => {
                let source: [u8; 16] = quoted.get(8..24)?.try_into().ok()?;
                let destination: [u8; 16] = quoted.get(24..40)?.try_into().ok()?;
                let total = word(4)?.saturating_add(40);
                (
                    source.into(),
                    destination.into(),
                    *quoted.get(6)?,
                    40,
                    total,
                )
            }
        };
    // Errors about what is no tunnel of ours: a ping of this host, say.
    if !matches!(protocol, 4 | 17 | 41) {
        return None;
    }
    let rest = u32::from_be_bytes([a, b, c, d]);
    let mtu = match (family, kind, code) {
        (Family::V4, 3, 4) => Some(u16::from_be_bytes([c, d])),
        (Family::V6, 2, _) => Some(u16::try_from(rest).unwrap_or(u16::MAX)),
        (Family::V6, 128.., _) => return None,
        _ => None,
    };
    let pointer = match (family, kind) {
        (Family::V4, 12) => Some(u32::from(a)),
        (Family::V6, 4) => Some(rest),
        _ => None,
    };
    Some(IcmpError {
        family,
        kind,
        code,
        offender,
        destination,
        mtu,
        quoted: quoted.get(header_octets..)?.to_vec(),
        whole: Some(Whole {
            source,
            protocol,
            header_octets,
            total_octets: total.into(),
            pointer,
        }),
    })
}

/// Reads an entry of an error queue; `None` for what no network said.
pub(super) fn queued(error: &QueuedError, payload: &[u8]) -> Option<IcmpError> {
    let family = match error.origin {
        Origin::Icmp => Family::V4,
        Origin::Icmpv6 => Family::V6,
        Origin::Local | Origin::Other(_) => return None,
    };
    let (kind, code) = (error.icmp_type, error.icmp_code);
    let is_size = matches!(
        (family, kind, code),
        (Family::V4, 3, 4) | (Family::V6, 2, _)
    );
    Some(IcmpError {
        family,
        kind,
        code,
        offender: error.offender,
        destination: error.destination?.ip(),
        mtu: is_size.then(|| u16::try_from(error.info).unwrap_or(u16::MAX)),
        quoted: payload.get(..error.quoted_octets)?.to_vec(),
        whole: None,
    })
}

/// The addresses at the front of an inner packet of which only the front is there.
fn addresses(inner: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match inner.first()? >> 4 {
        4 => {
            let source: [u8; 4] = inner.get(12..16)?.try_into().ok()?;
            let destination: [u8; 4] = inner.get(16..20)?.try_into().ok()?;
            Some((source.into(), destination.into()))
        }
        6 => {
            let source: [u8; 16] = inner.get(8..24)?.try_into().ok()?;
            let destination: [u8; 16] = inner.get(24..40)?.try_into().ok()?;
            Some((source.into(), destination.into()))
        }
        _ => None,
    }
}

/// Octets of an inner packet up to the end of its addresses, at most.
const FRONT_OCTETS: usize = 40;

#[cfg(test)]
#[path = "icmp_tests.rs"]
mod tests;
