//! The kinds of encapsulation by the names that a file uses, and the MTU each leaves.
//!
//! What an encapsulation costs is known to the library alone
//! ([`Encapsulation::overhead_octets`]); this adds only the names, the sections and their defaults.

use std::fmt;

use warren_core::encap::Encapsulation;
use warren_core::units::{Family, MacAddr, Mtu, Vni};

use super::VtepMac;

/// A kind of encapsulation: [`Encapsulation`] without the numbers of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Encap {
    Vxlan,
    Geneve,
    Ipip,
    Fou,
    Gue,
    VxlanGpe,
}

impl Encap {
    pub(super) const ALL: [Self; 6] = [
        Self::Vxlan,
        Self::Geneve,
        Self::Ipip,
        Self::Fou,
        Self::Gue,
        Self::VxlanGpe,
    ];

    /// With the numbers of one peer; those that this kind has no use for are left out.
    pub(super) const fn with(self, vni: Vni, port: u16, mac: MacAddr) -> Encapsulation {
        match self {
            Self::Vxlan => Encapsulation::Vxlan { vni, port, mac },
            Self::Geneve => Encapsulation::Geneve { vni, port, mac },
            Self::Ipip => Encapsulation::Ipip,
            Self::Fou => Encapsulation::Fou { port },
            Self::Gue => Encapsulation::Gue { port },
            Self::VxlanGpe => Encapsulation::VxlanGpe { vni, port },
        }
    }

    /// The name of its section.
    pub(super) fn name(self) -> &'static str {
        self.without_numbers().name()
    }

    fn without_numbers(self) -> Encapsulation {
        self.with(Vni::default(), 0, MacAddr::default())
    }

    /// Whether it names a network.
    pub(super) const fn has_vni(self) -> bool {
        match self {
            Self::Vxlan | Self::Geneve | Self::VxlanGpe => true,
            Self::Ipip | Self::Fou | Self::Gue => false,
        }
    }

    /// Whether inner packets have an Ethernet header, and so a VTEP MAC address.
    pub(super) const fn has_vtep(self) -> bool {
        match self {
            Self::Vxlan | Self::Geneve => true,
            Self::Ipip | Self::Fou | Self::Gue | Self::VxlanGpe => false,
        }
    }

    /// The UDP port where none is written; `None` for IP in IP, which has no ports.
    pub(super) const fn default_port(self) -> Option<u16> {
        match self {
            // flannel's and Linux's; the port that RFC 7348 registers is 4789.
            Self::Vxlan => Some(8472),
            Self::Geneve => Some(6081),
            Self::Fou => Some(5555),
            Self::Gue => Some(6080),
            Self::VxlanGpe => Some(4790),
            Self::Ipip => None,
        }
    }

    /// Octets in front of an inner packet over an underlay of `family`: see
    /// [`Encapsulation::overhead_octets`].
    pub(super) fn overhead_octets(self, family: Family) -> u16 {
        self.without_numbers().overhead_octets(family)
    }

    /// The largest inner packet that fits an underlay of `underlay_mtu` without outer fragments.
    pub(super) fn inner_mtu(self, family: Family, underlay_mtu: Mtu) -> Mtu {
        underlay_mtu.less(self.overhead_octets(family))
    }
}

impl fmt::Display for Encap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a file may name for a peer: an encapsulation with the numbers of its section, or a profile
/// with the numbers that another project gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    /// As written.
    pub(super) name: &'static str,
    pub(super) encap: Encap,
    /// The UDP port of the profile, at both ends.
    pub(super) port: Option<u16>,
    /// The network of the profile.
    pub(super) vni: Option<u32>,
    /// The rule by which its nodes make their VTEP MAC addresses.
    pub(super) mac: Option<VtepMac>,
}

impl Choice {
    /// Encapsulations first.
    pub(super) const ALL: [Self; 11] = [
        Self::plain("vxlan", Encap::Vxlan),
        Self::plain("geneve", Encap::Geneve),
        Self::plain("ipip", Encap::Ipip),
        Self::plain("fou", Encap::Fou),
        Self::plain("gue", Encap::Gue),
        Self::plain("vxlan-gpe", Encap::VxlanGpe),
        Self {
            port: Some(8472),
            vni: Some(1),
            ..Self::plain("flannel-vxlan", Encap::Vxlan)
        },
        Self {
            port: Some(4789),
            vni: Some(4096),
            mac: Some(VtepMac::Calico),
            ..Self::plain("calico-vxlan", Encap::Vxlan)
        },
        Self::plain("calico-ipip", Encap::Ipip),
        // Bare IPv4 in UDP, which is what FOU is.
        Self {
            port: Some(8285),
            ..Self::plain("flannel-udp", Encap::Fou)
        },
        // It says FOU and speaks GUE.
        Self {
            port: Some(5555),
            ..Self::plain("kube-router-fou", Encap::Gue)
        },
    ];

    const fn plain(name: &'static str, encap: Encap) -> Self {
        Self {
            name,
            encap,
            port: None,
            vni: None,
            mac: None,
        }
    }

    /// Whether its port is that of the section.
    pub(super) const fn has_section_port(self) -> bool {
        self.port.is_none() && self.encap.default_port().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7348, RFC 8926, RFC 2003, RFC 2473 and the FOU and GUE formats, on a 1500-octet link.
    #[test]
    fn inner_mtu_equals_the_overhead_table_for_every_encapsulation_and_family() {
        let table = [
            (Encap::Ipip, 20, 40, 1480, 1460),
            (Encap::Fou, 28, 48, 1472, 1452),
            (Encap::Gue, 32, 52, 1468, 1448),
            (Encap::Vxlan, 50, 70, 1450, 1430),
            (Encap::Geneve, 50, 70, 1450, 1430),
            (Encap::VxlanGpe, 36, 56, 1464, 1444),
        ];
        assert_eq!(table.len(), Encap::ALL.len());
        for (encap, over_v4, over_v6, mtu_v4, mtu_v6) in table {
            assert_eq!(encap.overhead_octets(Family::V4), over_v4, "{encap}");
            assert_eq!(encap.overhead_octets(Family::V6), over_v6, "{encap}");
            let inner = |family| encap.inner_mtu(family, Mtu::ETHERNET).octets();
            assert_eq!(inner(Family::V4), mtu_v4, "{encap}");
            assert_eq!(inner(Family::V6), mtu_v6, "{encap}");
        }
    }

    #[test]
    fn the_names_of_the_file_are_those_of_the_library() {
        for encap in Encap::ALL {
            let plain = Choice::ALL.iter().find(|choice| choice.encap == encap);
            assert_eq!(plain.map(|choice| choice.name), Some(encap.name()));
        }
    }
}
