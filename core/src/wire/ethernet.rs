//! Ethernet II and the 802.1Q tag.

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Layer, ParseError, ether_type};
use crate::units::MacAddr;

/// Ethernet II header, 14 octets. IEEE 802.3 clause 3.
///
/// | octet | 0..6        | 6..12  | 12..14    |
/// |-------|-------------|--------|-----------|
/// | field | destination | source | EtherType |
#[derive(
    Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned,
)]
#[repr(C)]
pub struct EthernetHeader {
    destination: [u8; 6],
    source: [u8; 6],
    ether_type: U16,
}

impl EthernetHeader {
    /// Makes a header.
    #[must_use]
    pub const fn new(destination: MacAddr, source: MacAddr, ether_type: u16) -> Self {
        Self {
            destination: destination.octets(),
            source: source.octets(),
            ether_type: U16::new(ether_type),
        }
    }

    /// Splits a header off the front of `bytes`.
    ///
    /// # Errors
    ///
    /// `Truncated` below 14 octets.
    pub fn parse(bytes: &[u8]) -> Result<(&Self, &[u8]), ParseError> {
        Self::ref_from_prefix(bytes).map_err(|_| ParseError::truncated(Layer::Ethernet))
    }

    /// The station or group that the frame is for.
    #[must_use]
    pub const fn destination(&self) -> MacAddr {
        MacAddr::new(self.destination)
    }

    /// The station that sent the frame.
    #[must_use]
    pub const fn source(&self) -> MacAddr {
        MacAddr::new(self.source)
    }

    /// What follows: see [`ether_type`].
    #[must_use]
    pub const fn ether_type(&self) -> u16 {
        self.ether_type.get()
    }

    /// Whether a VLAN tag follows.
    #[must_use]
    pub const fn is_tagged(&self) -> bool {
        matches!(
            self.ether_type(),
            ether_type::VLAN | ether_type::SERVICE_VLAN
        )
    }
}

/// 802.1Q tag after its EtherType, 4 octets. IEEE 802.1Q clause 9.6.
///
/// | octet | 0..2                           | 2..4                |
/// |-------|--------------------------------|---------------------|
/// | field | PCP (3), DEI (1), VLAN ID (12) | EtherType of inside |
#[derive(
    Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned,
)]
#[repr(C)]
pub struct VlanTag {
    control: U16,
    ether_type: U16,
}

impl VlanTag {
    /// Makes a tag; `vlan` keeps its low 12 bits, `priority` its low 3.
    #[must_use]
    pub const fn new(vlan: u16, priority: u8, ether_type: u16) -> Self {
        let control = ((priority & 0x7) as u16) << 13 | vlan & 0x0fff;
        Self {
            control: U16::new(control),
            ether_type: U16::new(ether_type),
        }
    }

    /// Splits a tag off the front of `bytes`, which follow the EtherType 0x8100 or 0x88a8.
    ///
    /// # Errors
    ///
    /// `Truncated` below 4 octets.
    pub fn parse(bytes: &[u8]) -> Result<(&Self, &[u8]), ParseError> {
        Self::ref_from_prefix(bytes).map_err(|_| ParseError::truncated(Layer::Vlan))
    }

    /// The VLAN identifier, 12 bits.
    #[must_use]
    pub const fn vlan(&self) -> u16 {
        self.control.get() & 0x0fff
    }

    /// The priority code point, 3 bits.
    #[must_use]
    pub const fn priority(&self) -> u8 {
        self.control.to_bytes()[0] >> 5
    }

    /// What follows the tag.
    #[must_use]
    pub const fn ether_type(&self) -> u16 {
        self.ether_type.get()
    }
}

const _: () = assert!(size_of::<EthernetHeader>() == 14 && size_of::<VlanTag>() == 4);
