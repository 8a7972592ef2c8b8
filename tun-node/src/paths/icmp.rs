//! ICMP errors about outer packets, from a raw socket or an error queue: what they say, about what.

use std::fmt;
use std::net::IpAddr;

use warren_core::packet::FlowKey;
use warren_core::relay::{self, Relay};
use warren_core::tables::NextHop;
use warren_core::units::{Family, Mtu};

use super::peer::PeerPaths;
use crate::rib::TablesReader;
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
    /// The outer protocol and, for UDP, the destination port; known from a raw socket only.
    protocol: u8,
    /// Whether it comes from the socket that sees all errors. Others repeat it.
    pub(super) is_whole_view: bool,
}

impl IcmpError {
    /// The message to the sender of the inner packet that the error quotes, if it gets one.
    ///
    /// The quoted packet must be one that this node would send to that peer.
    pub(super) fn relay(&self, peer: &PeerPaths, reader: &TablesReader) -> Option<Vec<u8>> {
        let action = relay::relay(self.family, self.kind, self.code);
        if matches!(action, Relay::Silent | Relay::TooBig) {
            return None;
        }
        let shim = match self.protocol {
            4 | 41 => 0,
            17 => 8 + usize::from(peer.in_use().encapsulation.shim_octets()),
            _ => return None,
        };
        let inner = self.quoted.get(shim..)?;
        let flow = addresses(inner)?;
        let tables = reader.tables();
        let own = matches!(tables.lookup(flow.source), Some(NextHop::Local));
        let leads = match tables.lookup(flow.destination) {
            Some(NextHop::Tunnel(tunnel)) => tunnel.remote == peer.remote,
            Some(NextHop::EqualCost(tunnels)) => {
                tunnels.iter().any(|tunnel| tunnel.remote == peer.remote)
            }
            _ => false,
        };
        if !own || !leads {
            return None;
        }
        // A node that speaks for itself in the overlay has an address there.
        tables.local().icmp_source(Family::of(flow.source))?;
        // This host takes no packet from its own address: as the engine does.
        relay::message(action, flow.destination, inner, Mtu::ETHERNET, None)
    }
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
    let (destination, protocol, behind): (IpAddr, u8, &[u8]) = match family {
        Family::V4 => {
            let header = usize::from(quoted.first()? & 15) * 4;
            let destination: [u8; 4] = quoted.get(16..20)?.try_into().ok()?;
            (destination.into(), *quoted.get(9)?, quoted.get(header..)?)
        }
        Family::V6 => {
            let destination: [u8; 16] = quoted.get(24..40)?.try_into().ok()?;
            (destination.into(), *quoted.get(6)?, quoted.get(40..)?)
        }
    };
    // Errors about what is no tunnel of ours: a ping of this host, say.
    if !matches!(protocol, 4 | 17 | 41) {
        return None;
    }
    let mtu = match (family, kind, code) {
        (Family::V4, 3, 4) => Some(u16::from_be_bytes([c, d])),
        (Family::V6, 2, _) => {
            Some(u16::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(u16::MAX))
        }
        (Family::V6, 128.., _) => return None,
        _ => None,
    };
    Some(IcmpError {
        family,
        kind,
        code,
        offender,
        destination,
        mtu,
        quoted: behind.to_vec(),
        protocol,
        is_whole_view: true,
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
        protocol: 0,
        is_whole_view: false,
    })
}

/// The addresses at the front of an inner packet of which only the front is there.
fn addresses(inner: &[u8]) -> Option<FlowKey> {
    let (source, destination): (IpAddr, IpAddr) = match inner.first()? >> 4 {
        4 => {
            let source: [u8; 4] = inner.get(12..16)?.try_into().ok()?;
            let destination: [u8; 4] = inner.get(16..20)?.try_into().ok()?;
            (source.into(), destination.into())
        }
        6 => {
            let source: [u8; 16] = inner.get(8..24)?.try_into().ok()?;
            let destination: [u8; 16] = inner.get(24..40)?.try_into().ok()?;
            (source.into(), destination.into())
        }
        _ => return None,
    };
    Some(FlowKey {
        source,
        destination,
        protocol: 0,
        source_port: 0,
        destination_port: 0,
    })
}
