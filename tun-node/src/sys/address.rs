//! Socket addresses in the kernel's layout, written and read as octets.
//!
//! [`RawAddress`] holds a `sockaddr_in` or `sockaddr_in6` without a union and
//! without `unsafe`: the layouts are fixed by the ABI and asserted below.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Address family of a socket.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Family {
    /// `AF_INET`.
    Ipv4,
    /// `AF_INET6`, always with `IPV6_V6ONLY`.
    Ipv6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }

    /// The unspecified address of the family.
    #[must_use]
    pub const fn unspecified(self) -> IpAddr {
        match self {
            Self::Ipv4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::Ipv6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

/// Room for a `sockaddr_in` (16 octets) or `sockaddr_in6` (28 octets).
///
/// | octet        | 0..2   | 2..4 | 4..8     | 8..24   | 24..28   |
/// |--------------|--------|------|----------|---------|----------|
/// | sockaddr_in  | family | port | address  | zero    |          |
/// | sockaddr_in6 | family | port | flowinfo | address | scope id |
///
/// Family and scope id in host order, the rest in network order.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct RawAddress {
    octets: [u8; 28],
}

impl RawAddress {
    /// No address.
    pub const EMPTY: Self = Self { octets: [0; 28] };

    /// Octets of room, what a receiving call is told.
    pub const CAPACITY: libc::socklen_t = 28;

    /// Writes `address` and returns the octets that the kernel is to read.
    pub fn write(&mut self, address: SocketAddr) -> libc::socklen_t {
        let o = &mut self.octets;
        o[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                o[0..2].copy_from_slice(&AF_INET.to_ne_bytes());
                o[4..8].copy_from_slice(&v4.ip().octets());
                o[8..16].fill(0);
                16
            }
            SocketAddr::V6(v6) => {
                o[0..2].copy_from_slice(&AF_INET6.to_ne_bytes());
                o[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                o[8..24].copy_from_slice(&v6.ip().octets());
                o[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                28
            }
        }
    }

    /// Reads the address that the kernel wrote with this length, `None` when it
    /// is of neither family.
    #[must_use]
    pub fn read(&self, length: libc::socklen_t) -> Option<SocketAddr> {
        let o = &self.octets;
        let port = u16::from_be_bytes([o[2], o[3]]);
        let quad = [o[4], o[5], o[6], o[7]];
        match u16::from_ne_bytes([o[0], o[1]]) {
            AF_INET if length >= 16 => Some(SocketAddrV4::new(Ipv4Addr::from(quad), port).into()),
            AF_INET6 if length >= 28 => {
                let mut ip = [0; 16];
                ip.copy_from_slice(&o[8..24]);
                let scope_id = u32::from_ne_bytes([o[24], o[25], o[26], o[27]]);
                let flowinfo = u32::from_be_bytes(quad);
                Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, flowinfo, scope_id).into())
            }
            _ => None,
        }
    }

    /// Reads an address out of octets that carry one in the kernel's layout
    /// (the offender behind an error-queue message).
    #[must_use]
    pub fn parse(octets: &[u8]) -> Option<SocketAddr> {
        let mut raw = Self::EMPTY;
        for (to, from) in raw.octets.iter_mut().zip(octets) {
            *to = *from;
        }
        let length = octets.len().min(raw.octets.len());
        raw.read(libc::socklen_t::try_from(length).ok()?)
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        self.octets.as_mut_ptr().cast()
    }
}

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

const _: () = assert!(AF_INET as i32 == libc::AF_INET && AF_INET6 as i32 == libc::AF_INET6);
const _: () = assert!(size_of::<libc::sockaddr_in>() == 16);
const _: () = assert!(size_of::<libc::sockaddr_in6>() == 28);
const _: () = assert!(std::mem::offset_of!(libc::sockaddr_in, sin_port) == 2);
const _: () = assert!(std::mem::offset_of!(libc::sockaddr_in, sin_addr) == 4);
const _: () = assert!(std::mem::offset_of!(libc::sockaddr_in6, sin6_flowinfo) == 4);
const _: () = assert!(std::mem::offset_of!(libc::sockaddr_in6, sin6_addr) == 8);
const _: () = assert!(std::mem::offset_of!(libc::sockaddr_in6, sin6_scope_id) == 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in [
            "192.0.2.7:4789",
            "0.0.0.0:0",
            "[2001:db8::7]:65535",
            "[fe80::1%3]:1",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            let mut raw = RawAddress::EMPTY;
            let length = raw.write(address);
            assert_eq!(raw.read(length), Some(address), "{text}");
        }
    }

    #[test]
    fn a_short_or_foreign_address_is_none() {
        let mut raw = RawAddress::EMPTY;
        let length = raw.write("192.0.2.7:1".parse().unwrap());
        assert_eq!(raw.read(length - 1), None);
        assert_eq!(RawAddress::EMPTY.read(28), None);
        assert_eq!(RawAddress::parse(&[]), None);
    }

    #[test]
    fn socket2_writes_the_same_octets() {
        for text in ["192.0.2.7:4789", "[2001:db8::7%9]:4789"] {
            let address: SocketAddr = text.parse().unwrap();
            let mut raw = RawAddress::EMPTY;
            let length = raw.write(address);
            assert_eq!(socket2::SockAddr::from(address).len(), length);
            assert_eq!(
                RawAddress::parse(&raw.octets[..length as usize]),
                Some(address)
            );
        }
    }
}
