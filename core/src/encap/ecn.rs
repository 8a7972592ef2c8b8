//! The traffic class across a tunnel: ECN by RFC 6040, DSCP by RFC 2983.
//!
//! The two share an octet and nothing else: DSCP is copied or not as the mode says, ECN follows
//! tables of its own, and neither is ever copied along with the other. Pure functions; [`engine`]
//! applies them.
//!
//! [`engine`]: crate::engine

use crate::tables::{DscpMode, EcnMode};
use crate::verdict::DropReason;
use crate::wire::{Ipv4Header, Ipv6Header};
use zerocopy::FromBytes;

/// The two low bits of the traffic class. RFC 3168 section 5.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Ecn {
    /// The transport does not understand ECN.
    NotEct = 0b00,
    /// ECN-capable transport, code point 1.
    Ect1 = 0b01,
    /// ECN-capable transport, code point 0.
    Ect0 = 0b10,
    /// Congestion experienced.
    Ce = 0b11,
}

impl Ecn {
    /// All code points, each at the place of its bits.
    pub const ALL: [Self; 4] = [Self::NotEct, Self::Ect1, Self::Ect0, Self::Ce];

    /// The code point in a traffic class octet.
    #[must_use]
    pub const fn of(traffic_class: u8) -> Self {
        match traffic_class & ECN_MASK {
            0b00 => Self::NotEct,
            0b01 => Self::Ect1,
            0b10 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// The outer code point for an inner packet of this one. RFC 6040 section 4.1, figure 3.
    #[must_use]
    pub const fn encap(self, mode: EcnMode) -> Self {
        match mode {
            EcnMode::Normal => self,
            EcnMode::Compatibility => Self::NotEct,
        }
    }

    /// What becomes of an inner packet of this code point that arrives under `outer`. RFC 6040
    /// section 4.2, figure 4.
    #[must_use]
    pub const fn decap(self, outer: Self) -> EcnDecap {
        use EcnDecap::{Anomalous, Discard, Forward};
        match (self, outer) {
            (Self::NotEct, Self::NotEct) => Forward(Self::NotEct),
            (Self::NotEct, Self::Ect0 | Self::Ect1) => Anomalous(Self::NotEct),
            (Self::NotEct, Self::Ce) => Discard,
            (Self::Ect0, Self::NotEct | Self::Ect0) => Forward(Self::Ect0),
            (Self::Ect0, Self::Ect1) | (Self::Ect1, Self::NotEct | Self::Ect1) => {
                Forward(Self::Ect1)
            }
            (Self::Ect1, Self::Ect0) => Anomalous(Self::Ect1),
            (Self::Ce, Self::Ect1) => Anomalous(Self::Ce),
            (Self::Ect0 | Self::Ect1 | Self::Ce, Self::Ce)
            | (Self::Ce, Self::NotEct | Self::Ect0) => Forward(Self::Ce),
        }
    }
}

/// What becomes of the ECN field of an inner packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EcnDecap {
    /// The packet goes on with this code point.
    Forward(Ecn),
    /// The same, but no conforming path makes that combination: it is to be reported.
    Anomalous(Ecn),
    /// The packet must be dropped: congestion was experienced and its sender would not hear of it.
    Discard,
}

/// The traffic class octet of the outer header for an inner packet of `inner`.
#[must_use]
pub const fn outer_traffic_class(inner: u8, dscp: DscpMode, ecn: EcnMode) -> u8 {
    let dscp = match dscp {
        DscpMode::Pipe(dscp) => dscp << 2,
        DscpMode::Uniform => inner & !ECN_MASK,
        DscpMode::Map(map) => map.outer(inner >> 2) << 2,
    };
    dscp | Ecn::of(inner).encap(ecn) as u8
}

/// The traffic class octet of the inner header after decapsulation, and whether the ECN
/// combination is to be reported.
///
/// # Errors
///
/// [`DropReason::EcnCongestionNotCapable`].
pub const fn inner_traffic_class(
    inner: u8,
    outer: u8,
    dscp: DscpMode,
) -> Result<(u8, bool), DropReason> {
    let dscp = match dscp {
        DscpMode::Pipe(_) | DscpMode::Map(_) => inner & !ECN_MASK,
        DscpMode::Uniform => outer & !ECN_MASK,
    };
    match Ecn::of(inner).decap(Ecn::of(outer)) {
        EcnDecap::Forward(ecn) => Ok((dscp | ecn as u8, false)),
        EcnDecap::Anomalous(ecn) => Ok((dscp | ecn as u8, true)),
        EcnDecap::Discard => Err(DropReason::EcnCongestionNotCapable),
    }
}

/// Writes the traffic class octet of the IP packet at the front of `packet`; the IPv4 checksum is
/// mended. Octets that are no IP header are left alone.
pub fn set_traffic_class(packet: &mut [u8], traffic_class: u8) {
    match packet.first().map(|octet| octet >> 4) {
        Some(4) => {
            if let Ok((header, _)) = Ipv4Header::mut_from_prefix(packet) {
                header.set_tos(traffic_class);
            }
        }
        Some(6) => {
            if let Ok((header, _)) = Ipv6Header::mut_from_prefix(packet) {
                header.set_traffic_class(traffic_class);
            }
        }
        _ => {}
    }
}

const ECN_MASK: u8 = 0b11;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::DscpMap;

    #[test]
    fn dscp_never_travels_with_ecn() {
        for outer in 0..=u8::MAX {
            for inner in [0_u8, 0xb8 | 0b10, 0xff] {
                let Ok((pipe, _)) = inner_traffic_class(inner, outer, DscpMode::Pipe(0)) else {
                    continue;
                };
                assert_eq!(pipe >> 2, inner >> 2, "pipe leaves the inner DSCP alone");
                let (uniform, _) = inner_traffic_class(inner, outer, DscpMode::Uniform).unwrap();
                assert_eq!(uniform >> 2, outer >> 2);
                assert_eq!(uniform & ECN_MASK, pipe & ECN_MASK);
            }
        }
        assert_eq!(
            outer_traffic_class(0xbb, DscpMode::Pipe(0x0a), EcnMode::Normal),
            0x2b
        );
        assert_eq!(
            outer_traffic_class(0xbb, DscpMode::Uniform, EcnMode::Compatibility),
            0xb8
        );
    }

    #[test]
    fn a_map_names_every_class_anew_and_only_outside() {
        let mut table = [0_u8; 64];
        for (inner, outer) in (0_u8..).zip(&mut table) {
            *outer = 63 - inner;
        }
        let map = DscpMode::Map(DscpMap::new(table));
        for inner in 0..=u8::MAX {
            let outer = outer_traffic_class(inner, map, EcnMode::Normal);
            assert_eq!((outer >> 2, outer & 3), (63 - (inner >> 2), inner & 3));
            let (back, _) = inner_traffic_class(inner, outer, map).unwrap_or((inner, false));
            assert_eq!(back >> 2, inner >> 2, "the inner one stays");
        }
        // A table with more than six bits can not reach into the ECN field.
        let wild = DscpMode::Map(DscpMap::new([0xff; 64]));
        assert_eq!(outer_traffic_class(0, wild, EcnMode::Normal), 0xfc);
    }

    #[test]
    fn four_combinations_are_reported_and_one_is_dropped() {
        let mut anomalous = 0;
        let mut discarded = 0;
        for inner in Ecn::ALL {
            for outer in Ecn::ALL {
                match inner.decap(outer) {
                    EcnDecap::Forward(_) => {}
                    EcnDecap::Anomalous(_) => anomalous += 1,
                    EcnDecap::Discard => discarded += 1,
                }
            }
        }
        assert_eq!((anomalous, discarded), (4, 1));
    }
}
