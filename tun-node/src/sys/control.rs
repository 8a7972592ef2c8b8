//! Control messages (`cmsg`) in the kernel's layout, written and read as octets.
//!
//! A message is a header (length, level, type), data, and padding to the
//! alignment of a pointer. [`Control`] is an aligned buffer that lives in the
//! caller's ring; [`Control::write`] fills it for one send, [`Control::read`]
//! takes it apart after one receive. No call, no allocation, no `unsafe`: the
//! layout is asserted at compile time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use super::address::Family;

/// What a sender asks of the kernel for one message; `None` leaves the choice
/// to the socket.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SendControl {
    /// Source address (`IP_PKTINFO`, `IPV6_PKTINFO`).
    pub source: Option<IpAddr>,
    /// Interface to leave by, 0 for the routing table's choice. Read only with
    /// `source`.
    pub interface: u32,
    /// TOS octet or traffic class: DSCP and ECN (`IP_TOS`, `IPV6_TCLASS`).
    pub tos: Option<u8>,
    /// TTL or hop limit (`IP_TTL`, `IPV6_HOPLIMIT`).
    pub ttl: Option<u8>,
    /// Octets of payload per datagram when the message is a train of them
    /// (`UDP_SEGMENT`).
    pub segment_octets: Option<NonZeroU16>,
}

/// What the kernel told about one received message.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ReceiveControl {
    /// Local address the packet was sent to.
    pub local: Option<IpAddr>,
    /// Interface it came in by, 0 when unknown.
    pub interface: u32,
    /// TOS octet or traffic class: DSCP and ECN.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: Option<u8>,
    /// Octets of payload per datagram when the kernel joined several
    /// (`UDP_GRO`).
    pub segment_octets: Option<NonZeroU16>,
}

/// Room for every control message of [`SendControl`] and [`ReceiveControl`] at
/// once, with a time stamp to spare.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Control {
    octets: [u8; Self::CAPACITY],
}

impl Control {
    /// Octets of room. The largest set read is 40 + 3 times 24.
    pub const CAPACITY: usize = 192;

    /// Nothing in it.
    pub const EMPTY: Self = Self {
        octets: [0; Self::CAPACITY],
    };

    /// Writes the messages that `wanted` asks for and returns their octets.
    ///
    /// A `source` of the other family is left out: the kernel would refuse it.
    pub fn write(&mut self, family: Family, wanted: &SendControl) -> usize {
        let mut end = 0;
        match (family, wanted.source) {
            (Family::Ipv4, Some(IpAddr::V4(source))) => {
                let mut info = [0; 12];
                info[0..4].copy_from_slice(&wanted.interface.to_ne_bytes());
                info[4..8].copy_from_slice(&source.octets());
                self.push(&mut end, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            (Family::Ipv6, Some(IpAddr::V6(source))) => {
                let mut info = [0; 20];
                info[0..16].copy_from_slice(&source.octets());
                info[16..20].copy_from_slice(&wanted.interface.to_ne_bytes());
                self.push(&mut end, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            (Family::Ipv4 | Family::Ipv6, _) => {}
        }
        let (level, tos, ttl) = match family {
            Family::Ipv4 => (libc::IPPROTO_IP, libc::IP_TOS, libc::IP_TTL),
            Family::Ipv6 => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, libc::IPV6_HOPLIMIT),
        };
        if let Some(value) = wanted.tos {
            self.push(&mut end, level, tos, &i32::from(value).to_ne_bytes());
        }
        if let Some(value) = wanted.ttl {
            self.push(&mut end, level, ttl, &i32::from(value).to_ne_bytes());
        }
        if let Some(octets) = wanted.segment_octets {
            let octets = octets.get().to_ne_bytes();
            self.push(&mut end, libc::SOL_UDP, libc::UDP_SEGMENT, &octets);
        }
        end
    }

    /// Takes apart the first `length` octets, as the kernel left them.
    ///
    /// Messages that nobody asked for are passed over; one that does not fit
    /// ends the walk.
    #[must_use]
    pub fn read(&self, length: usize) -> ReceiveControl {
        let mut told = ReceiveControl::default();
        for Message { level, kind, data } in self.messages(length) {
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    // in_pktinfo: interface, local address, header destination.
                    if let Some((interface, rest)) = data.split_first_chunk() {
                        told.interface = u32::from_ne_bytes(*interface);
                        told.local = last_chunk(rest).map(|o| Ipv4Addr::from(o).into());
                    }
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    if let Some((ip, rest)) = data.split_first_chunk::<16>() {
                        told.local = Some(Ipv6Addr::from(*ip).into());
                        told.interface = rest.first_chunk().map_or(0, |i| u32::from_ne_bytes(*i));
                    }
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => told.tos = data.first().copied().unwrap_or(0),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => told.tos = low_octet(data).unwrap_or(0),
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    told.ttl = low_octet(data);
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    told.segment_octets = word(data)
                        .and_then(|octets| u16::try_from(octets).ok())
                        .and_then(NonZeroU16::new);
                }
                _ => {}
            }
        }
        told
    }

    /// Walks the messages in the first `length` octets.
    pub(super) fn messages(&self, length: usize) -> impl Iterator<Item = Message<'_>> {
        let mut rest = self.octets.get(..length).unwrap_or(&self.octets);
        std::iter::from_fn(move || {
            let (size, after) = rest.split_first_chunk::<8>()?;
            let (level, after) = after.split_first_chunk()?;
            let (kind, _) = after.split_first_chunk()?;
            let size = usize::try_from(u64::from_ne_bytes(*size)).ok()?;
            let data = rest.get(HEADER..size)?;
            rest = rest.get(size.next_multiple_of(ALIGN)..).unwrap_or(&[]);
            Some(Message {
                level: i32::from_ne_bytes(*level),
                kind: i32::from_ne_bytes(*kind),
                data,
            })
        })
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        self.octets.as_mut_ptr().cast()
    }

    /// Appends one message at `end` and moves `end` past its padding.
    fn push(&mut self, end: &mut usize, level: i32, kind: i32, data: &[u8]) {
        let size = HEADER + data.len();
        let space = size.next_multiple_of(ALIGN);
        let Some(slot) = self.octets.get_mut(*end..*end + space) else {
            debug_assert!(false, "the largest set of control messages fits");
            return;
        };
        let mut header = [0; HEADER];
        header[0..8].copy_from_slice(&(size as u64).to_ne_bytes());
        header[8..12].copy_from_slice(&level.to_ne_bytes());
        header[12..16].copy_from_slice(&kind.to_ne_bytes());
        let message = header.iter().chain(data).chain(std::iter::repeat(&0));
        for (to, from) in slot.iter_mut().zip(message) {
            *to = *from;
        }
        *end += space;
    }
}

/// One control message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) level: i32,
    pub(super) kind: i32,
    pub(super) data: &'a [u8],
}

/// The first four octets as a number in host order.
fn word(data: &[u8]) -> Option<u32> {
    data.first_chunk().map(|octets| u32::from_ne_bytes(*octets))
}

/// The value of an `int` that holds an octet.
fn low_octet(data: &[u8]) -> Option<u8> {
    word(data).and_then(|value| u8::try_from(value).ok())
}

/// The four octets at the end.
fn last_chunk(data: &[u8]) -> Option<[u8; 4]> {
    data.last_chunk().copied()
}

/// Octets of `struct cmsghdr`.
const HEADER: usize = 16;

/// Control messages start at multiples of this.
const ALIGN: usize = 8;

const _: () = assert!(size_of::<libc::cmsghdr>() == HEADER);
const _: () = assert!(size_of::<usize>() == ALIGN);
const _: () = assert!(std::mem::offset_of!(libc::cmsghdr, cmsg_level) == 8);
const _: () = assert!(std::mem::offset_of!(libc::cmsghdr, cmsg_type) == 12);
const _: () = assert!(size_of::<libc::in_pktinfo>() == 12);
const _: () = assert!(size_of::<libc::in6_pktinfo>() == 20);

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> SendControl {
        SendControl {
            source: Some("192.0.2.1".parse().unwrap()),
            interface: 7,
            tos: Some(0xb9),
            ttl: Some(64),
            segment_octets: NonZeroU16::new(1422),
        }
    }

    #[test]
    fn nothing_asked_is_nothing_written() {
        let mut control = Control::EMPTY;
        assert_eq!(control.write(Family::Ipv4, &SendControl::default()), 0);
    }

    #[test]
    fn ipv4_messages_have_the_kernels_lengths() {
        let mut control = Control::EMPTY;
        let length = control.write(Family::Ipv4, &all());
        let lengths: Vec<_> = control
            .messages(length)
            .map(|m| (m.kind, m.data.len()))
            .collect();
        assert_eq!(
            lengths,
            [
                (libc::IP_PKTINFO, 12),
                (libc::IP_TOS, 4),
                (libc::IP_TTL, 4),
                (libc::UDP_SEGMENT, 2)
            ]
        );
        assert_eq!(length, 32 + 24 + 24 + 24);
    }

    #[test]
    fn ipv6_reads_back_what_it_wrote() {
        let mut control = Control::EMPTY;
        let wanted = SendControl {
            source: Some("2001:db8::1".parse().unwrap()),
            ..all()
        };
        let length = control.write(Family::Ipv6, &wanted);
        let told = control.read(length);
        assert_eq!(told.local, wanted.source);
        assert_eq!((told.interface, told.tos, told.ttl), (7, 0xb9, Some(64)));
    }

    #[test]
    fn a_source_of_the_other_family_is_left_out() {
        let mut control = Control::EMPTY;
        let wanted = SendControl {
            source: Some("::1".parse().unwrap()),
            ..SendControl::default()
        };
        assert_eq!(control.write(Family::Ipv4, &wanted), 0);
    }

    #[test]
    fn a_message_longer_than_the_buffer_ends_the_walk() {
        let mut control = Control::EMPTY;
        let length = control.write(Family::Ipv6, &all());
        for octet in 0..length {
            for value in [0xff, 0x00, 0x0f] {
                let mut broken = control;
                broken.octets[octet] = value;
                assert!(broken.messages(length).count() <= Control::CAPACITY / HEADER);
                let _ = broken.read(length);
            }
        }
        assert_eq!(
            control
                .messages(usize::MAX)
                .filter(|m| m.level != 0)
                .count(),
            3
        );
    }

    #[test]
    fn the_most_that_is_ever_read_fits() {
        const { assert!(Control::CAPACITY >= 40 + 4 * 24 + 32) };
    }
}
