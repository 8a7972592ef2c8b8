//! The two address families behind one trait.
//!
//! [`Address`] is what makes [`Fib`](super::Fib) one type for IPv4 and IPv6. It is sealed: the lookup tables are
//! laid out for exactly these two.
//!
//! Inside the table an address is a `u128` whose most significant bit is the first bit on the wire, in both
//! families, so that "the first n bits" means the same everywhere.

use core::fmt::{Debug, Display};
use core::hash::Hash;
use core::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// An IP address that a [`Fib`](super::Fib) is keyed by: [`Ipv4Addr`] or [`Ipv6Addr`].
///
/// Sealed: no other type can implement it.
pub trait Address:
    Copy + Debug + Display + Eq + Hash + Ord + Send + Sync + 'static + sealed::Sealed
{
    /// The prefix type of this family: [`Ipv4Net`] or [`Ipv6Net`].
    type Prefix: Copy + Debug + Display + Eq + Hash + Ord + Send + Sync + 'static;

    /// The bits in an address: 32 or 128.
    const BITS: u8;

    /// The address as a number, its first bit on the wire most significant, the right side zero-filled.
    fn to_key(self) -> u128;

    /// Undoes [`to_key`](Self::to_key); bits past the family's width are dropped.
    fn from_key(key: u128) -> Self;

    /// The network's key (host bits cleared) and the length of `prefix`.
    fn split(prefix: Self::Prefix) -> (u128, u8);

    /// Undoes [`split`](Self::split); a length past the family's width gives the default prefix.
    fn join(key: u128, len: u8) -> Self::Prefix;
}

impl Address for Ipv4Addr {
    type Prefix = Ipv4Net;
    const BITS: u8 = 32;

    fn to_key(self) -> u128 {
        u128::from(self.to_bits()) << 96
    }

    fn from_key(key: u128) -> Self {
        Self::from_bits((key >> 96) as u32)
    }

    fn split(prefix: Ipv4Net) -> (u128, u8) {
        (prefix.network().to_key(), prefix.prefix_len())
    }

    fn join(key: u128, len: u8) -> Ipv4Net {
        Ipv4Net::new(Self::from_key(key), len).unwrap_or_default()
    }
}

impl Address for Ipv6Addr {
    type Prefix = Ipv6Net;
    const BITS: u8 = 128;

    fn to_key(self) -> u128 {
        self.to_bits()
    }

    fn from_key(key: u128) -> Self {
        Self::from_bits(key)
    }

    fn split(prefix: Ipv6Net) -> (u128, u8) {
        (prefix.network().to_bits(), prefix.prefix_len())
    }

    fn join(key: u128, len: u8) -> Ipv6Net {
        Ipv6Net::new(Self::from_bits(key), len).unwrap_or_default()
    }
}

/// The first `len` bits set, the others clear.
pub(super) const fn prefix_mask(len: u8) -> u128 {
    match len {
        0 => 0,
        1..=127 => u128::MAX << (128 - len as u32),
        128.. => u128::MAX,
    }
}

mod sealed {
    use super::{Ipv4Addr, Ipv6Addr};

    #[expect(unnameable_types, reason = "that is what seals it")]
    pub trait Sealed {}

    impl Sealed for Ipv4Addr {}
    impl Sealed for Ipv6Addr {}
}
