//! Outer headers: which encapsulations there are, what they cost, how they are pushed and pulled.
//!
//! An encapsulation has two parts. The *shim* ([`shim`]) lies between the transport and the inner
//! packet: VXLAN or Geneve with an inner Ethernet header, GUE, or nothing (FOU and IP in IP). The
//! *outer* headers ([`outer`]) are IP and UDP; where the shell sends through sockets the kernel
//! writes them from the frame's [`Link`](crate::batch::Link), and an embedder without sockets
//! writes them with [`outer::push`]. [`ecn`] has the rules for the traffic class.
//!
//! Knows `wire` and `batch`; not the routes, not the peers.

pub mod ecn;
pub mod outer;
pub mod shim;

use core::fmt;

use zerocopy::{Immutable, IntoBytes};

use crate::batch::{Frame, HEADROOM};
use crate::units::{Family, MacAddr, Mtu, Vni};
use crate::verdict::DropReason;

/// How packets are wrapped for a peer.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Encapsulation {
    /// VXLAN with a synthesised inner Ethernet header, as flannel and Calico use it. RFC 7348.
    Vxlan {
        /// The network.
        vni: Vni,
        /// The peer's UDP port.
        port: u16,
        /// The peer's VTEP address: the inner Ethernet destination.
        mac: MacAddr,
    },
    /// VXLAN-GPE with the IP packet directly inside. draft-ietf-nvo3-vxlan-gpe-12.
    VxlanGpe {
        /// The network.
        vni: Vni,
        /// The peer's UDP port.
        port: u16,
    },
    /// Geneve with a synthesised inner Ethernet header. RFC 8926.
    Geneve {
        /// The network.
        vni: Vni,
        /// The peer's UDP port.
        port: u16,
        /// The peer's tunnel end: the inner Ethernet destination.
        mac: MacAddr,
    },
    /// IP directly in IP: protocol 4 or 41. RFC 2003, RFC 4213, RFC 2473.
    Ipip,
    /// The IP packet directly in UDP.
    Fou {
        /// The peer's UDP port.
        port: u16,
    },
    /// Generic UDP encapsulation version 0.
    Gue {
        /// The peer's UDP port.
        port: u16,
    },
}

impl Encapsulation {
    /// Octets of the shim: what stands between the transport and the inner IP packet.
    #[must_use]
    pub const fn shim_octets(self) -> u16 {
        match self {
            Self::Vxlan { .. } | Self::Geneve { .. } => 8 + 14,
            Self::VxlanGpe { .. } => 8,
            Self::Ipip | Self::Fou { .. } => 0,
            Self::Gue { .. } => 4,
        }
    }

    /// Octets that the encapsulation adds to an inner packet over an underlay of `family`, the
    /// outer IP header included and the outer Ethernet header not.
    #[must_use]
    pub const fn overhead_octets(self, family: Family) -> u16 {
        let udp = match self {
            Self::Ipip => 0,
            Self::Vxlan { .. }
            | Self::VxlanGpe { .. }
            | Self::Geneve { .. }
            | Self::Fou { .. }
            | Self::Gue { .. } => 8,
        };
        family.header_octets() + udp + self.shim_octets()
    }

    /// The largest inner packet over an underlay of `family` whose packets may have `underlay`
    /// octets.
    #[must_use]
    pub const fn inner_mtu(self, family: Family, underlay: Mtu) -> Mtu {
        underlay.less(self.overhead_octets(family))
    }

    /// Which encapsulation it is, without its numbers.
    #[must_use]
    pub const fn kind(self) -> EncapsulationKind {
        match self {
            Self::Vxlan { .. } => EncapsulationKind::Vxlan,
            Self::VxlanGpe { .. } => EncapsulationKind::VxlanGpe,
            Self::Geneve { .. } => EncapsulationKind::Geneve,
            Self::Ipip => EncapsulationKind::Ipip,
            Self::Fou { .. } => EncapsulationKind::Fou,
            Self::Gue { .. } => EncapsulationKind::Gue,
        }
    }

    /// The name that configuration and tables use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.kind().name()
    }
}

/// An [`Encapsulation`] without its numbers: what is counted, and what a received packet shows.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum EncapsulationKind {
    /// VXLAN.
    Vxlan,
    /// Geneve.
    Geneve,
    /// IP directly in IP.
    Ipip,
    /// IP directly in UDP.
    Fou,
    /// Generic UDP encapsulation.
    Gue,
    /// VXLAN-GPE.
    VxlanGpe,
}

impl EncapsulationKind {
    /// All kinds, each at the place of its number.
    pub const ALL: [Self; 6] = [
        Self::Vxlan,
        Self::Geneve,
        Self::Ipip,
        Self::Fou,
        Self::Gue,
        Self::VxlanGpe,
    ];

    /// The name that configuration and tables use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
            Self::Ipip => "ipip",
            Self::Fou => "fou",
            Self::Gue => "gue",
            Self::VxlanGpe => "vxlan-gpe",
        }
    }
}

impl fmt::Display for EncapsulationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Encapsulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vxlan { vni, port, mac } | Self::Geneve { vni, port, mac } => {
                write!(f, "{} vni {vni} port {port} to {mac}", self.name())
            }
            Self::VxlanGpe { vni, port } => write!(f, "{} vni {vni} port {port}", self.name()),
            Self::Ipip => f.write_str("ipip"),
            Self::Fou { port } | Self::Gue { port } => write!(f, "{} port {port}", self.name()),
        }
    }
}

/// Writes `header` in front of the frame.
pub(crate) fn push_header<H>(frame: &mut Frame<'_>, header: &H) -> Result<(), DropReason>
where
    H: IntoBytes + Immutable,
{
    let gained = frame.push(size_of::<H>()).ok_or(DropReason::NoHeadroom)?;
    header.write_to(gained).map_err(|_| DropReason::NoHeadroom)
}

/// The largest stack of outer headers: IPv6, UDP, VXLAN or Geneve, Ethernet.
pub const MAX_ENCAP: usize = 40 + 8 + 8 + 14;

const _: () = assert!(MAX_ENCAP <= HEADROOM);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_and_mtu_are_those_of_the_published_tables() {
        let vni = Vni::new(1).unwrap();
        let mac = MacAddr::new([2, 0, 0, 0, 0, 1]);
        let table = [
            (Encapsulation::Ipip, 20, 40),
            (Encapsulation::Fou { port: 5555 }, 28, 48),
            (Encapsulation::Gue { port: 6080 }, 32, 52),
            (Encapsulation::VxlanGpe { vni, port: 4790 }, 36, 56),
            (
                Encapsulation::Vxlan {
                    vni,
                    port: 8472,
                    mac,
                },
                50,
                70,
            ),
            (
                Encapsulation::Geneve {
                    vni,
                    port: 6081,
                    mac,
                },
                50,
                70,
            ),
        ];
        for (encapsulation, over_v4, over_v6) in table {
            assert_eq!(
                encapsulation.overhead_octets(Family::V4),
                over_v4,
                "{encapsulation}"
            );
            assert_eq!(
                encapsulation.overhead_octets(Family::V6),
                over_v6,
                "{encapsulation}"
            );
            assert_eq!(
                encapsulation.inner_mtu(Family::V4, Mtu::ETHERNET).octets(),
                1500 - over_v4
            );
            assert_eq!(
                encapsulation.inner_mtu(Family::V6, Mtu::ETHERNET).octets(),
                1500 - over_v6
            );
            assert!(usize::from(over_v6) <= MAX_ENCAP);
        }
    }
}
