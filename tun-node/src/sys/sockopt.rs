//! Socket options that hold an integer, and programs of classic BPF: the filter that drops
//! everything, and the choice between sockets that share a port.
//!
//! [`IntOption`] can only be one of its constants, so a safe caller cannot hand
//! the kernel an option whose value is a pointer.

use std::io::Result;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::address::Family;
use super::done;

/// Sets an option (`setsockopt(2)`).
///
/// # Errors
///
/// The kernel's; `ENOPROTOOPT` where it does not know the option.
pub fn set(socket: BorrowedFd<'_>, option: IntOption, value: i32) -> Result<()> {
    // SAFETY: the option takes an `int` (every `IntOption` does), which lives
    // through the call and whose size is given.
    done(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            option.level,
            option.name,
            (&raw const value).cast(),
            INT_OCTETS,
        )
    })
}

/// Reads an option (`getsockopt(2)`).
///
/// # Errors
///
/// The kernel's; `ENOPROTOOPT` where it does not know the option.
pub fn get(socket: BorrowedFd<'_>, option: IntOption) -> Result<i32> {
    let mut value: i32 = 0;
    let mut octets = INT_OCTETS;
    // SAFETY: the kernel writes at most `octets` octets, the size of `value`.
    done(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            option.level,
            option.name,
            (&raw mut value).cast(),
            &raw mut octets,
        )
    })?;
    Ok(value)
}

/// How many datagrams the socket dropped since it was made, for want of room or for a wrong checksum, modulo 2^32
/// (`SO_MEMINFO`, Linux 4.12).
///
/// Not told with the next datagram (`SO_RXQ_OVFL`): a kernel that checks what it copies (`CONFIG_HARDENED_USERCOPY`) ends
/// the process that is to be told so about a datagram which another namespace of the same host made of a TCP segment,
/// as a VXLAN device there does (seen with Linux 6.18).
///
/// # Errors
///
/// The kernel's; `ENOPROTOOPT` where it does not know the option.
pub fn drops(socket: BorrowedFd<'_>) -> Result<u32> {
    const SO_MEMINFO: libc::c_int = 55;
    // `SK_MEMINFO_DROPS` is the last of nine.
    let mut values = [0_u32; 9];
    let mut octets = MEMINFO_OCTETS;
    // SAFETY: the kernel writes at most `octets` octets, the size of `values`.
    done(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut octets,
        )
    })?;
    let [.., drops] = values;
    Ok(drops)
}

/// Lets a raw ICMPv6 socket receive messages of these types and no others (`ICMP6_FILTER`, RFC 3542
/// section 3.2).
///
/// # Errors
///
/// The kernel's.
pub fn pass_icmpv6(socket: BorrowedFd<'_>, types: &[u8]) -> Result<()> {
    const ICMP6_FILTER: libc::c_int = 1;
    // A bit for each type, set where it is not delivered (`linux/icmpv6.h`).
    let mut blocked = [u32::MAX; 8];
    for kind in types {
        if let Some(word) = blocked.get_mut(usize::from(kind / 32)) {
            *word &= !(1 << (kind % 32));
        }
    }
    // SAFETY: the option takes eight words, which live through the call and whose size is given.
    done(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_ICMPV6,
            ICMP6_FILTER,
            blocked.as_ptr().cast(),
            ICMP6_FILTER_OCTETS,
        )
    })
}

/// Attaches a filter that drops every datagram before it is queued
/// (`SO_ATTACH_FILTER`), for sockets that only send.
///
/// Errors from the network (ICMP) still reach the error queue.
///
/// # Errors
///
/// The kernel's.
pub fn attach_drop_all(socket: BorrowedFd<'_>) -> Result<()> {
    // One classic BPF instruction: return 0, "keep no octet".
    let mut program = [libc::sock_filter {
        code: BPF_RETURN_CONSTANT,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    attach(socket, libc::SO_ATTACH_FILTER, &mut program)
}

/// Attaches the program that chooses between the sockets of a port that share it
/// (`SO_ATTACH_REUSEPORT_CBPF`, kernel 4.5): it returns the number of the socket, in the
/// order in which they were bound. For a number that no socket has, the kernel chooses.
///
/// # Errors
///
/// The kernel's: `EINVAL` for a program that it refuses.
pub fn attach_reuseport_choice(
    socket: BorrowedFd<'_>,
    program: &mut [libc::sock_filter],
) -> Result<()> {
    attach(socket, libc::SO_ATTACH_REUSEPORT_CBPF, program)
}

fn attach(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    program: &mut [libc::sock_filter],
) -> Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let filter = libc::sock_fprog {
        len,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: both options read one `sock_fprog` and the `len` instructions
    // that it points to; both live through the call and are copied by it.
    done(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const filter).cast(),
            FILTER_OCTETS,
        )
    })
}

/// A socket option whose value is an `int`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IntOption {
    level: libc::c_int,
    name: libc::c_int,
}

impl IntOption {
    /// Receive buffer, octets. The kernel doubles the value and caps it at
    /// `net.core.rmem_max`.
    pub const RECEIVE_BUFFER: Self = Self::socket(libc::SO_RCVBUF);
    /// Receive buffer without the cap; needs `CAP_NET_ADMIN`.
    pub const RECEIVE_BUFFER_FORCE: Self = Self::socket(33);
    /// Send buffer, octets. Doubled, capped at `net.core.wmem_max`.
    pub const SEND_BUFFER: Self = Self::socket(libc::SO_SNDBUF);
    /// Send buffer without the cap; needs `CAP_NET_ADMIN`.
    pub const SEND_BUFFER_FORCE: Self = Self::socket(32);
    /// Raw ICMP sockets: a bit for each type that is not delivered (`linux/icmp.h`).
    pub const ICMP_FILTER: Self = Self {
        level: 255,
        name: 1,
    };
    /// The mark of what is sent (`SO_MARK`); needs `CAP_NET_ADMIN` or `CAP_NET_RAW`.
    pub const MARK: Self = Self::socket(libc::SO_MARK);
    /// Sockets of `AF_PACKET`: a virtio-net header before each packet (`PACKET_VNET_HDR`).
    pub const PACKET_VIRTIO_HEADER: Self = Self {
        level: libc::SOL_PACKET,
        name: 15,
    };
    /// Several sockets on one port share its datagrams by flow.
    pub const REUSE_PORT: Self = Self::socket(libc::SO_REUSEPORT);
    /// IPv4: send UDP checksum zero.
    pub const NO_CHECKSUM_IPV4: Self = Self::socket(11);
    /// IPv6: send UDP checksum zero (RFC 6935).
    pub const NO_CHECKSUM_IPV6_SEND: Self = Self {
        level: libc::SOL_UDP,
        name: 101,
    };
    /// IPv6: take UDP checksum zero (RFC 6935).
    pub const NO_CHECKSUM_IPV6_RECEIVE: Self = Self {
        level: libc::SOL_UDP,
        name: 102,
    };
    /// Join arriving datagrams of one flow into trains.
    pub const UDP_GRO: Self = Self {
        level: libc::SOL_UDP,
        name: libc::UDP_GRO,
    };
    /// Cut each message into datagrams of this payload; 0 for never. Read to
    /// find out whether the kernel knows it.
    pub const UDP_SEGMENT: Self = Self {
        level: libc::SOL_UDP,
        name: libc::UDP_SEGMENT,
    };

    /// Deliver the local address and interface of each datagram.
    #[must_use]
    pub const fn receive_packet_info(family: Family) -> Self {
        Self::ip(family, libc::IP_PKTINFO, libc::IPV6_RECVPKTINFO)
    }

    /// Deliver the TOS octet or traffic class of each datagram.
    #[must_use]
    pub const fn receive_tos(family: Family) -> Self {
        Self::ip(family, libc::IP_RECVTOS, libc::IPV6_RECVTCLASS)
    }

    /// Deliver the TTL or hop limit of each datagram.
    #[must_use]
    pub const fn receive_ttl(family: Family) -> Self {
        Self::ip(family, libc::IP_RECVTTL, libc::IPV6_RECVHOPLIMIT)
    }

    /// Queue the errors that the network reports.
    #[must_use]
    pub const fn receive_errors(family: Family) -> Self {
        Self::ip(family, libc::IP_RECVERR, libc::IPV6_RECVERR)
    }

    /// Path MTU policy, one of `IP_PMTUDISC_*` (the same values for IPv6).
    #[must_use]
    pub const fn mtu_discover(family: Family) -> Self {
        Self::ip(family, libc::IP_MTU_DISCOVER, libc::IPV6_MTU_DISCOVER)
    }

    const fn socket(name: libc::c_int) -> Self {
        Self {
            level: libc::SOL_SOCKET,
            name,
        }
    }

    const fn ip(family: Family, ipv4: libc::c_int, ipv6: libc::c_int) -> Self {
        match family {
            Family::Ipv4 => Self {
                level: libc::IPPROTO_IP,
                name: ipv4,
            },
            Family::Ipv6 => Self {
                level: libc::IPPROTO_IPV6,
                name: ipv6,
            },
        }
    }
}

/// `BPF_RET | BPF_K`.
const BPF_RETURN_CONSTANT: u16 = 0x06;

/// Octets of an `int`.
const INT_OCTETS: libc::socklen_t = 4;

/// Octets of nine numbers of `SO_MEMINFO`.
const MEMINFO_OCTETS: libc::socklen_t = 36;

/// Octets of the eight words of `ICMP6_FILTER`.
const ICMP6_FILTER_OCTETS: libc::socklen_t = 32;

/// Octets of a `sock_fprog`.
const FILTER_OCTETS: libc::socklen_t = 16;

const _: () = assert!(size_of::<libc::sock_fprog>() == FILTER_OCTETS as usize);

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    #[test]
    fn options_read_back_what_was_set() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for option in [
            IntOption::receive_tos(Family::Ipv4),
            IntOption::receive_packet_info(Family::Ipv4),
            IntOption::receive_ttl(Family::Ipv4),
            IntOption::receive_errors(Family::Ipv4),
            IntOption::UDP_GRO,
        ] {
            set(socket.as_fd(), option, 1).unwrap();
            assert_eq!(get(socket.as_fd(), option).unwrap(), 1, "{option:?}");
        }
        set(
            socket.as_fd(),
            IntOption::mtu_discover(Family::Ipv4),
            libc::IP_PMTUDISC_PROBE,
        )
        .unwrap();
        let policy = get(socket.as_fd(), IntOption::mtu_discover(Family::Ipv4)).unwrap();
        assert_eq!(policy, libc::IP_PMTUDISC_PROBE);
    }

    #[test]
    fn what_found_no_room_is_told_without_another_datagram() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        set(socket.as_fd(), IntOption::RECEIVE_BUFFER, 2048).unwrap();
        assert_eq!(drops(socket.as_fd()).unwrap(), 0);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        for _ in 0..100 {
            sender.send_to(&[0; 1000], to).unwrap();
        }
        socket.set_nonblocking(true).unwrap();
        let mut received = 0;
        while socket.recv(&mut [0; 1000]).is_ok() {
            received += 1;
        }
        assert!(received < 100, "{received}");
        // Loopback drops nothing before the socket.
        assert_eq!(drops(socket.as_fd()).unwrap(), 100 - received);
    }

    #[test]
    fn a_socket_with_the_drop_filter_receives_nothing() {
        let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
        let hearing = UdpSocket::bind("127.0.0.1:0").unwrap();
        attach_drop_all(deaf.as_fd()).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"x", deaf.local_addr().unwrap()).unwrap();
        sender.send_to(b"x", hearing.local_addr().unwrap()).unwrap();
        hearing
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        // Loopback delivers in order, so once this one is here the other would be.
        assert_eq!(hearing.recv(&mut [0; 4]).unwrap(), 1);
        deaf.set_nonblocking(true).unwrap();
        assert_eq!(
            deaf.recv(&mut [0; 4]).unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock
        );
    }
}
