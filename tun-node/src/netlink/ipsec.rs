//! Whether packets of this host leave by IPsec, which what a program of BPF sends would pass by.

use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};

/// Whether the host has an IPsec policy for what leaves it, or may have: what is not known counts
/// as one (`XFRM_MSG_GETSPDINFO`).
pub(crate) fn has_ipsec_policy() -> bool {
    outbound_ipsec_policies().is_none_or(|policies| policies > 0)
}

/// The number of those policies; 0 where the kernel has no IPsec.
pub(crate) fn outbound_ipsec_policies() -> Option<u32> {
    let socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW.nonblocking(),
        Some(Protocol::from(libc::NETLINK_XFRM)),
    );
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Some(0),
        Err(_) => return None,
    };
    // The header (length, type, flags, sequence, port) and the flags of the question.
    let mut question = [0; 20];
    question[0..4].copy_from_slice(&20_u32.to_ne_bytes());
    question[4..6].copy_from_slice(&XFRM_GET_SPD_INFO.to_ne_bytes());
    question[6..8].copy_from_slice(&NETLINK_REQUEST.to_ne_bytes());
    question[16..20].copy_from_slice(&u32::MAX.to_ne_bytes());
    crate::sys::io::write(socket.as_fd(), &question).ok()?;
    let mut answer = [0; 256];
    // The kernel answers within the question's call.
    let octets = crate::sys::io::read(socket.as_fd(), &mut answer).ok()?;
    let answer = answer.get(..octets)?;
    if answer.get(4..6)? != XFRM_NEW_SPD_INFO.to_ne_bytes() {
        return None;
    }
    // Behind header and flags stands the first attribute: its length, its type, then the numbers of
    // inbound and of outbound policies.
    if answer.get(22..24)? != XFRM_ATTRIBUTE_SPD_INFO.to_ne_bytes() {
        return None;
    }
    let count = answer.get(28..32)?.try_into().ok()?;
    Some(u32::from_ne_bytes(count))
}

// `linux/xfrm.h` and `linux/netlink.h`.
const XFRM_NEW_SPD_INFO: u16 = 0x24;
const XFRM_GET_SPD_INFO: u16 = 0x25;
const XFRM_ATTRIBUTE_SPD_INFO: u16 = 1;
const NETLINK_REQUEST: u16 = 1;
