//! Packets straight to a device: sending by a socket of `AF_PACKET`.

use std::io::{IoSlice, Result};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::count;

/// Hands one packet, gathered from `slices`, to the device with that index (`sendmsg(2)`),
/// without waiting.
///
/// # Errors
///
/// The kernel's; `WouldBlock` when the send buffer is full, `ENOBUFS` when the packet was dropped.
pub fn send(
    socket: BorrowedFd<'_>,
    device: u32,
    ether_type: u16,
    slices: &[IoSlice<'_>],
) -> Result<usize> {
    let mut address = libc::sockaddr_ll {
        sll_family: FAMILY,
        sll_protocol: ether_type.to_be(),
        sll_ifindex: i32::try_from(device).map_err(|_| std::io::ErrorKind::InvalidInput)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let message = libc::msghdr {
        msg_name: (&raw mut address).cast(),
        msg_namelen: ADDRESS_OCTETS,
        msg_iov: slices.as_ptr().cast_mut().cast(),
        msg_iovlen: slices.len() as _,
        msg_control: ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    };
    loop {
        // SAFETY: the message's address and vectors live through the call and are only read by it;
        // `IoSlice` is documented to have the layout of `iovec`; there is no control buffer.
        let sent = count(unsafe {
            libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT)
        });
        match sent {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// `AF_PACKET`, as an address has it.
const FAMILY: libc::sa_family_t = 17;

const _: () = assert!(FAMILY as libc::c_int == libc::AF_PACKET);

/// Octets of a `sockaddr_ll`.
const ADDRESS_OCTETS: libc::socklen_t = 20;

const _: () = assert!(size_of::<libc::sockaddr_ll>() == ADDRESS_OCTETS as usize);
