//! The shim: what stands between the transport and the inner packet.
//!
//! [`push`] writes it in front of an IP packet; [`open`] reads it, with the inner packet, and
//! changes nothing; [`pull`] takes it off. Which shim a received frame has follows from the port
//! (or protocol) that it came to, and on a FOU and GUE port from the first nibble. The Ethernet
//! header inside VXLAN and Geneve is synthesised when sending and checked when receiving: this
//! overlay is routed, so a station is a node.

use zerocopy::FromBytes;

use super::{Encapsulation, EncapsulationKind, push_header};
use crate::batch::{Frame, Transport};
use crate::packet::{Fragment, Packet};
use crate::policy::Permit;
use crate::tables::{Local, Receive};
use crate::units::{Family, MacAddr, Vni};
use crate::verdict::DropReason;
use crate::wire::vxlan_gpe::next_protocol;
use crate::wire::{
    EthernetHeader, GeneveHeader, GueHeader, UdpHeader, VxlanGpeHeader, VxlanHeader, ether_type,
    ip_protocol,
};

/// A received frame with its shim read: what it is and where the inner packet lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Opened {
    /// How the packet was wrapped.
    pub kind: EncapsulationKind,
    /// The network, where the shim names one.
    pub vni: Option<Vni>,
    /// Octets in front of the inner packet.
    pub shim_octets: usize,
    /// The inner packet; its offsets count from its own first octet.
    pub packet: Packet,
}

/// Writes the shim of `encapsulation` in front of the IP packet of `family` that `frame` holds.
///
/// `vtep_mac` is this node's. Uses up the permit: what is not permitted is not sent.
///
/// # Errors
///
/// [`DropReason::NoHeadroom`]; the frame is as it was.
pub fn push(
    frame: &mut Frame<'_>,
    family: Family,
    encapsulation: Encapsulation,
    vtep_mac: MacAddr,
    permit: Permit,
) -> Result<(), DropReason> {
    let Permit { .. } = permit;
    if frame.headroom() < usize::from(encapsulation.shim_octets()) {
        return Err(DropReason::NoHeadroom);
    }
    let ether_type = match family {
        Family::V4 => ether_type::IPV4,
        Family::V6 => ether_type::IPV6,
    };
    match encapsulation {
        Encapsulation::Vxlan { vni, mac, .. } => {
            push_header(frame, &EthernetHeader::new(mac, vtep_mac, ether_type))?;
            push_header(frame, &VxlanHeader::new(vni))
        }
        Encapsulation::Geneve { vni, mac, .. } => {
            push_header(frame, &EthernetHeader::new(mac, vtep_mac, ether_type))?;
            push_header(frame, &GeneveHeader::new(vni, ether_type::ETHERNET))
        }
        Encapsulation::VxlanGpe { vni, .. } => {
            let protocol = match family {
                Family::V4 => next_protocol::IPV4,
                Family::V6 => next_protocol::IPV6,
            };
            push_header(frame, &VxlanGpeHeader::new(vni, protocol))
        }
        Encapsulation::Gue { .. } => push_header(frame, &GueHeader::new(ip_in_ip(family))),
        Encapsulation::Ipip | Encapsulation::Fou { .. } => Ok(()),
    }
}

/// Takes the shim off, and what lies behind the total length of the inner packet: short Ethernet
/// frames are padded.
///
/// # Errors
///
/// As [`open`]; the frame is as it was.
pub fn pull(frame: &mut Frame<'_>, local: &Local) -> Result<Opened, DropReason> {
    let opened = open(frame.bytes(), frame.link().transport, local)?;
    strip(frame, &opened);
    Ok(opened)
}

/// Takes off what [`open`] read.
pub(crate) fn strip(frame: &mut Frame<'_>, opened: &Opened) {
    // `open` read the packet behind the shim, so the frame is at least that long.
    let _ = frame.pull(opened.shim_octets);
    frame.truncate(opened.packet.total_octets);
}

/// Reads the shim and the inner packet of `bytes`, which came over `transport`.
///
/// # Errors
///
/// [`EncapsulationNotEnabled`](DropReason::EncapsulationNotEnabled) when nothing is received there;
/// [`MalformedEncapsulation`](DropReason::MalformedEncapsulation);
/// [`UnknownVni`](DropReason::UnknownVni); [`VlanTagged`](DropReason::VlanTagged),
/// [`OwnVtepMac`](DropReason::OwnVtepMac), [`WrongVtepMac`](DropReason::WrongVtepMac) and
/// [`NotIp`](DropReason::NotIp) for the inner Ethernet header;
/// [`MalformedPacket`](DropReason::MalformedPacket) when the inner packet can not be read or is
/// not of the family that the shim names.
pub fn open(bytes: &[u8], transport: Transport, local: &Local) -> Result<Opened, DropReason> {
    let receive = &local.receive;
    let listener = Listener::of(transport, receive).ok_or(DropReason::EncapsulationNotEnabled)?;
    let (kind, vni, family, inner) = match listener {
        Listener::Vxlan => {
            let parsed = if receive.strict_vxlan {
                VxlanHeader::parse_strict(bytes)
            } else {
                VxlanHeader::parse(bytes)
            };
            let (header, rest) = parsed.map_err(|_| DropReason::MalformedEncapsulation)?;
            let vni = known_vni(header.vni(), receive)?;
            let (family, inner) = open_ethernet(rest, local.vtep_mac)?;
            (EncapsulationKind::Vxlan, Some(vni), Some(family), inner)
        }
        Listener::Geneve => {
            let (header, rest) =
                GeneveHeader::parse(bytes).map_err(|_| DropReason::MalformedEncapsulation)?;
            let vni = known_vni(header.vni(), receive)?;
            let (family, inner) = match header.protocol_type() {
                ether_type::ETHERNET => open_ethernet(rest, local.vtep_mac)?,
                ether_type::IPV4 => (Family::V4, rest),
                ether_type::IPV6 => (Family::V6, rest),
                _ => return Err(DropReason::NotIp),
            };
            (EncapsulationKind::Geneve, Some(vni), Some(family), inner)
        }
        Listener::VxlanGpe => {
            let (header, rest) =
                VxlanGpeHeader::parse(bytes).map_err(|_| DropReason::MalformedEncapsulation)?;
            let vni = known_vni(header.vni(), receive)?;
            let (family, inner) = match header.next_protocol() {
                next_protocol::ETHERNET => open_ethernet(rest, local.vtep_mac)?,
                next_protocol::IPV4 => (Family::V4, rest),
                next_protocol::IPV6 => (Family::V6, rest),
                _ => return Err(DropReason::NotIp),
            };
            (EncapsulationKind::VxlanGpe, Some(vni), Some(family), inner)
        }
        Listener::FouGue => match bytes.first().map(|octet| octet >> 4) {
            // GUE version 1 is the same as FOU: a bare packet.
            Some(4 | 6) => (EncapsulationKind::Fou, None, None, bytes),
            _ => {
                let (header, rest) =
                    GueHeader::parse(bytes).map_err(|_| DropReason::MalformedEncapsulation)?;
                let family = family_of(header.protocol())?;
                (EncapsulationKind::Gue, None, Some(family), rest)
            }
        },
        Listener::Ipip(protocol) => {
            let family = family_of(protocol)?;
            (EncapsulationKind::Ipip, None, Some(family), bytes)
        }
    };
    let packet = Packet::parse(inner).map_err(|_| DropReason::MalformedPacket)?;
    if family.is_some_and(|family| family != packet.family()) {
        return Err(DropReason::MalformedPacket);
    }
    Ok(Opened {
        kind,
        vni,
        shim_octets: bytes.len() - inner.len(),
        packet,
    })
}

/// Whether the `packet` that starts at `bytes` would be decapsulated again if it arrived here: it
/// goes to one of the ports of `receive` with a header that can be read, or is IP in IP where that is
/// received.
///
/// A first fragment to such a port counts whatever it carries: the shim may lie in the next one.
#[must_use]
pub fn is_tunnel_packet(packet: &Packet, bytes: &[u8], receive: &Receive) -> bool {
    match packet.flow.protocol {
        _ if is_ip_in_ip(packet) => receive.ipip,
        ip_protocol::UDP if packet.fragment != Fragment::Later => {
            let transport = bytes.get(packet.transport_offset..).unwrap_or_default();
            let Ok((udp, payload)) = UdpHeader::ref_from_prefix(transport) else {
                return false;
            };
            let listener = Listener::of_port(udp.destination_port(), receive);
            listener.is_some_and(|listener| {
                packet.fragment == Fragment::First || listener.can_read(payload)
            })
        }
        _ => false,
    }
}

/// Whether the inner packet is IP in IP, of either family.
pub(crate) const fn is_ip_in_ip(packet: &Packet) -> bool {
    matches!(packet.flow.protocol, ip_protocol::IPV4 | ip_protocol::IPV6)
}

/// Octets of the shim that frames over `transport` usually have: a guess, good enough to find out
/// whether the same shim was read before.
pub(crate) fn usual_octets(bytes: &[u8], transport: Transport, receive: &Receive) -> Option<usize> {
    Some(match Listener::of(transport, receive)? {
        Listener::Vxlan | Listener::Geneve => 8 + 14,
        Listener::VxlanGpe => 8,
        Listener::FouGue => match bytes.first()? >> 4 {
            4 | 6 => 0,
            _ => size_of::<GueHeader>(),
        },
        Listener::Ipip(_) => 0,
    })
}

/// Whether packets of this flow may be such as [`is_tunnel_packet`] finds.
pub(crate) fn may_be_tunnel(packet: &Packet, receive: &Receive) -> bool {
    match packet.flow.protocol {
        _ if is_ip_in_ip(packet) => true,
        ip_protocol::UDP => Listener::of_port(packet.flow.destination_port, receive).is_some(),
        _ => false,
    }
}

/// What receives a frame.
#[derive(Clone, Copy)]
enum Listener {
    Vxlan,
    VxlanGpe,
    Geneve,
    FouGue,
    /// The protocol number.
    Ipip(u8),
}

impl Listener {
    fn of(transport: Transport, receive: &Receive) -> Option<Self> {
        match transport {
            Transport::Udp { local_port, .. } => Self::of_port(local_port, receive),
            Transport::Ip { protocol } => receive.ipip.then_some(Self::Ipip(protocol)),
        }
    }

    fn of_port(port: u16, receive: &Receive) -> Option<Self> {
        if receive.vxlan.contains(&port) {
            Some(Self::Vxlan)
        } else if receive.vxlan_gpe.contains(&port) {
            Some(Self::VxlanGpe)
        } else if receive.geneve.contains(&port) {
            Some(Self::Geneve)
        } else if receive.fou_gue.contains(&port) {
            Some(Self::FouGue)
        } else {
            None
        }
    }

    fn can_read(self, payload: &[u8]) -> bool {
        match self {
            Self::Vxlan => VxlanHeader::parse(payload).is_ok(),
            Self::VxlanGpe => VxlanGpeHeader::parse(payload).is_ok(),
            Self::Geneve => GeneveHeader::parse(payload).is_ok(),
            Self::FouGue => match payload.first().map(|octet| octet >> 4) {
                Some(4 | 6) => true,
                _ => GueHeader::parse(payload).is_ok(),
            },
            Self::Ipip(_) => true,
        }
    }
}

fn known_vni(vni: Vni, receive: &Receive) -> Result<Vni, DropReason> {
    if receive.vnis.contains(&vni) {
        Ok(vni)
    } else {
        Err(DropReason::UnknownVni)
    }
}

/// Checks the inner Ethernet header as the Linux device does in a routed overlay: broadcast or own
/// destination, any source but the own one, no tag.
fn open_ethernet(bytes: &[u8], vtep_mac: MacAddr) -> Result<(Family, &[u8]), DropReason> {
    let (header, rest) =
        EthernetHeader::parse(bytes).map_err(|_| DropReason::MalformedEncapsulation)?;
    if header.is_tagged() {
        return Err(DropReason::VlanTagged);
    }
    if header.source() == vtep_mac {
        return Err(DropReason::OwnVtepMac);
    }
    if header.destination() != vtep_mac && header.destination() != MacAddr::BROADCAST {
        return Err(DropReason::WrongVtepMac);
    }
    match header.ether_type() {
        ether_type::IPV4 => Ok((Family::V4, rest)),
        ether_type::IPV6 => Ok((Family::V6, rest)),
        _ => Err(DropReason::NotIp),
    }
}

/// The protocol number of an inner packet of `family`.
pub(crate) const fn ip_in_ip(family: Family) -> u8 {
    match family {
        Family::V4 => ip_protocol::IPV4,
        Family::V6 => ip_protocol::IPV6,
    }
}

const fn family_of(protocol: u8) -> Result<Family, DropReason> {
    match protocol {
        ip_protocol::IPV4 => Ok(Family::V4),
        ip_protocol::IPV6 => Ok(Family::V6),
        _ => Err(DropReason::MalformedEncapsulation),
    }
}
