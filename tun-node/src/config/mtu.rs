//! How many octets an encapsulation costs, and the MTU that is left for the packets inside.

use super::{Encap, Family, Mtu};

impl Encap {
    /// Octets that this encapsulation puts in front of an inner IP packet over an underlay of
    /// family `underlay`.
    ///
    /// Outer IP header without options (20 or 40), then by encapsulation UDP (8), the tunnel's
    /// own header (GUE 4, VXLAN 8) and the inner Ethernet header (14). The outer Ethernet header
    /// is not counted: an MTU never counts it.
    #[must_use]
    pub const fn overhead_octets(self, underlay: Family) -> u16 {
        underlay.header_octets()
            + match self {
                Self::Ipip => 0,
                Self::Fou => UDP_OCTETS,
                Self::Gue => UDP_OCTETS + 4,
                Self::Vxlan => UDP_OCTETS + 8 + 14,
            }
    }

    /// The largest inner packet that fits an underlay of `underlay_mtu` without outer fragments.
    #[must_use]
    pub const fn inner_mtu(self, underlay: Family, underlay_mtu: Mtu) -> Mtu {
        underlay_mtu.less(self.overhead_octets(underlay))
    }
}

const UDP_OCTETS: u16 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7348, RFC 2003, RFC 2473 and the FOU and GUE formats, on a 1500-octet link.
    #[test]
    fn inner_mtu_equals_the_overhead_table_for_every_encapsulation_and_family() {
        let table = [
            (Encap::Ipip, 20, 40, 1480, 1460),
            (Encap::Fou, 28, 48, 1472, 1452),
            (Encap::Gue, 32, 52, 1468, 1448),
            (Encap::Vxlan, 50, 70, 1450, 1430),
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
}
