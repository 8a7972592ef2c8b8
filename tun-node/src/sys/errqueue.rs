//! The error queue of a socket: what the network said about what we sent.
//!
//! With `IP_RECVERR` the kernel keeps, for each ICMP error and each local
//! failure, a `sock_extended_err`, the offender's address, the destination of
//! the packet concerned and the first octets of its payload.

use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::address::RawAddress;
use super::control::Control;

/// One entry of the error queue.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct QueuedError {
    /// The errno that a plain socket would have seen (`EMSGSIZE`,
    /// `ECONNREFUSED`, `EHOSTUNREACH`, ...).
    pub errno: i32,
    /// Who says so.
    pub origin: Origin,
    /// ICMP type, 0 for a local error.
    pub icmp_type: u8,
    /// ICMP code, 0 for a local error.
    pub icmp_code: u8,
    /// The next hop's MTU in octets for `EMSGSIZE`, 0 otherwise.
    pub info: u32,
    /// Where the packet was going.
    pub destination: Option<SocketAddr>,
    /// The router or host that sent the ICMP error.
    pub offender: Option<IpAddr>,
    /// Octets of the packet's payload at the front of the caller's slice.
    pub quoted_octets: usize,
}

/// Who reported an error (`SO_EE_ORIGIN_*`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// This host, before the packet left.
    Local,
    /// An ICMP message.
    Icmp,
    /// An ICMPv6 message.
    Icmpv6,
    /// Something this module does not know.
    Other(u8),
}

/// Takes one entry off the error queue without waiting (`recvmsg(2)` with
/// `MSG_ERRQUEUE`); `None` when it is empty. The quoted payload goes to the front
/// of `payload`, cut to its length.
///
/// # Errors
///
/// The kernel's; `InvalidData` when the entry carries no `sock_extended_err`.
pub fn receive(socket: BorrowedFd<'_>, payload: &mut [u8]) -> Result<Option<QueuedError>> {
    let mut address = RawAddress::EMPTY;
    let mut control = Control::EMPTY;
    let mut vector = libc::iovec {
        iov_base: payload.as_mut_ptr().cast(),
        iov_len: payload.len(),
    };
    // SAFETY: `msghdr` holds integers and raw pointers, for which all zeros is a
    // valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = address.as_mut_ptr();
    message.msg_namelen = RawAddress::CAPACITY;
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr();
    message.msg_controllen = Control::CAPACITY;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    let read = loop {
        // SAFETY: address, control buffer, vector and the slice behind it live
        // through the call, are exclusively ours and have the lengths given.
        let read = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
        match usize::try_from(read) {
            Ok(read) => break read,
            Err(_) => {
                let error = Error::last_os_error();
                if error.kind() == ErrorKind::WouldBlock {
                    return Ok(None);
                }
                if error.kind() != ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    };
    let destination = address.read(message.msg_namelen);
    for told in control.messages(message.msg_controllen) {
        let extended = matches!(
            (told.level, told.kind),
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        );
        // sock_extended_err: errno, origin, type, code, padding, info, data.
        let Some((head, offender)) = told.data.split_first_chunk::<16>().filter(|_| extended)
        else {
            continue;
        };
        return Ok(Some(QueuedError {
            errno: i32::from_ne_bytes([head[0], head[1], head[2], head[3]]),
            origin: match head[4] {
                1 => Origin::Local,
                2 => Origin::Icmp,
                3 => Origin::Icmpv6,
                other => Origin::Other(other),
            },
            icmp_type: head[5],
            icmp_code: head[6],
            info: u32::from_ne_bytes([head[8], head[9], head[10], head[11]]),
            destination,
            offender: RawAddress::parse(offender).map(|address| address.ip()),
            quoted_octets: read,
        }));
    }
    Err(ErrorKind::InvalidData.into())
}

const _: () = assert!(size_of::<libc::sock_extended_err>() == 16);
const _: () = assert!(std::mem::offset_of!(libc::sock_extended_err, ee_info) == 8);

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::address::Family;
    use crate::sys::sockopt::{self, IntOption};

    #[test]
    fn an_empty_queue_is_none() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(receive(socket.as_fd(), &mut [0; 64]).unwrap(), None);
    }

    #[test]
    fn a_refused_datagram_comes_back_with_its_destination_and_payload() {
        for (bind, family) in [("127.0.0.1:0", Family::Ipv4), ("[::1]:0", Family::Ipv6)] {
            let Ok(socket) = UdpSocket::bind(bind) else {
                eprintln!("skipped: no {family:?} loopback");
                continue;
            };
            sockopt::set(socket.as_fd(), IntOption::receive_errors(family), 1).unwrap();
            // A port that was ours a moment ago and that nobody holds.
            let closed = UdpSocket::bind(bind).unwrap().local_addr().unwrap();
            socket.send_to(b"payload", closed).unwrap();
            // Loopback answers within the send.
            let mut quoted = [0; 64];
            let error = receive(socket.as_fd(), &mut quoted).unwrap().unwrap();
            assert_eq!(error.errno, libc::ECONNREFUSED);
            assert_eq!(error.destination, Some(closed));
            assert_eq!(error.offender, Some(closed.ip()));
            assert_eq!(&quoted[..error.quoted_octets], b"payload");
            assert!(matches!(error.origin, Origin::Icmp | Origin::Icmpv6));
        }
    }
}
