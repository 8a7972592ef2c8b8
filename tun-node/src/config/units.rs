//! Stand-ins for the number types of `warren-core`, with the same names and methods.
//!
//! To be replaced by a re-export as soon as the library's own are there.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A VXLAN or Geneve network identifier, 24 bits. RFC 7348 section 4.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Vni(u32);

impl Vni {
    /// The largest identifier that 24 bits can hold.
    pub const MAX: Self = Self((1 << 24) - 1);

    /// Makes an identifier; `None` when `value` needs more than 24 bits.
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        if value <= Self::MAX.0 {
            Some(Self(value))
        } else {
            None
        }
    }

    /// Reads the three octets of the wire, most significant first.
    #[must_use]
    pub const fn from_octets(octets: [u8; 3]) -> Self {
        let [a, b, c] = octets;
        Self(u32::from_be_bytes([0, a, b, c]))
    }

    /// The three octets of the wire, most significant first.
    #[must_use]
    pub const fn octets(self) -> [u8; 3] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [a, b, c]
    }

    /// The identifier as a number below 2^24.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An EUI-48 address, six octets in transmission order.
#[derive(Clone, Copy, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// The all-ones address.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Makes an address of its octets in transmission order.
    #[must_use]
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// The octets in transmission order.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether the group bit is set: multicast and broadcast.
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 0x01 != 0
    }

    /// Whether one station can own it: neither a group nor all zeros.
    #[must_use]
    pub const fn is_unicast(self) -> bool {
        !self.is_multicast() && !matches!(self.0, [0, 0, 0, 0, 0, 0])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text was not six pairs of hexadecimal digits with colons between.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MacAddrParseError;

impl fmt::Display for MacAddrParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a MAC address is six pairs of hexadecimal digits, as in 02:00:5e:10:00:01")
    }
}

impl std::error::Error for MacAddrParseError {}

impl FromStr for MacAddr {
    type Err = MacAddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or(MacAddrParseError)?;
            let hex = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !hex {
                return Err(MacAddrParseError);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| MacAddrParseError)?;
        }
        if parts.next().is_some() {
            Err(MacAddrParseError)
        } else {
            Ok(Self(octets))
        }
    }
}

/// The largest IP packet that a link or tunnel carries, in octets of the IP packet.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Mtu(u16);

impl Mtu {
    /// The least that an IPv4 path is asked to carry here: the smallest reassembly buffer of
    /// RFC 1122 section 3.3.2.
    pub const MIN_V4: Self = Self(576);
    /// The least that every IPv6 link carries. RFC 8200 section 5.
    pub const MIN_V6: Self = Self(1280);
    /// An Ethernet link.
    pub const ETHERNET: Self = Self(1500);

    /// Makes an MTU of `octets`.
    #[must_use]
    pub const fn new(octets: u16) -> Self {
        Self(octets)
    }

    /// The octets of the largest IP packet.
    #[must_use]
    pub const fn octets(self) -> u16 {
        self.0
    }

    /// What is left for the inner packet under `overhead` octets of outer headers.
    #[must_use]
    pub const fn less(self, overhead: u16) -> Self {
        Self(self.0.saturating_sub(overhead))
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An IP family.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Family {
    /// IPv4, RFC 791.
    V4,
    /// IPv6, RFC 8200.
    V6,
}

impl Family {
    /// The family of `address`.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The octets of an IP header of this family without options or extensions.
    #[must_use]
    pub const fn header_octets(self) -> u16 {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}
