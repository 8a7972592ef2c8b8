//! One descriptor over a Unix socket (`SCM_RIGHTS`).

use std::io::{ErrorKind, IoSlice, IoSliceMut, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Sends one octet and, with it, a duplicate of `fd` (`sendmsg(2)`).
///
/// # Errors
///
/// The kernel's; `EPIPE` when the peer is gone (no signal is raised).
pub fn send(socket: BorrowedFd<'_>, octet: u8, fd: BorrowedFd<'_>) -> Result<()> {
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let octets = [octet];
    let data = [IoSlice::new(&octets)];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &data,
        &rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives one octet and the descriptor that came with it, if one did
/// (`recvmsg(2)`); `None` when the peer has closed. The descriptor is
/// close-on-exec.
///
/// # Errors
///
/// The kernel's; `InvalidData` when more than one descriptor came, all of which
/// are closed.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Option<(u8, Option<OwnedFd>)>> {
    let mut octets = [0];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 2]);
    let mut data = [IoSliceMut::new(&mut octets)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), flags) {
            Err(nix::errno::Errno::EINTR) => {}
            outcome => break outcome?,
        }
    };
    let read = message.bytes;
    let mut owned = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just installed this descriptor in our
                // table for this message, and nobody else knows its number.
                owned.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    if read == 0 {
        return Ok(None);
    }
    if owned.len() > 1 {
        return Err(ErrorKind::InvalidData.into());
    }
    Ok(Some((octets[0], owned.pop())))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_descriptor_crosses_and_is_the_same_file() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        send(a.as_fd(), b'T', far.as_fd()).unwrap();
        drop(far);
        let (octet, fd) = receive(b.as_fd()).unwrap().unwrap();
        assert_eq!(octet, b'T');
        let mut far = File::from(fd.unwrap());
        near.write_all(b"hello").unwrap();
        let mut read = [0; 5];
        far.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"hello");
    }

    #[test]
    fn an_octet_without_descriptor_and_the_end_are_told_apart() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"x").unwrap();
        drop(a);
        let (octet, fd) = receive(b.as_fd()).unwrap().unwrap();
        assert!(octet == b'x' && fd.is_none());
        assert!(receive(b.as_fd()).unwrap().is_none());
    }
}
