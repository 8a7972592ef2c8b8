//! Reading and writing descriptors, gathered and scattered.
//!
//! A TUN descriptor keeps packet boundaries: one `read` is one packet, one
//! `write` is one packet, and a vector of slices is still one packet. The `tun`
//! crate's vectored calls use the first slice only, which is why these exist.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{count, done};

/// `read(2)` into one slice.
///
/// # Errors
///
/// The kernel's; `WouldBlock` when the descriptor is nonblocking and empty.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    retry(|| {
        // SAFETY: the pointer and length are those of a live exclusive slice, so
        // the kernel writes only into memory that this call may write to.
        count(unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) })
    })
}

/// `write(2)` of one slice.
///
/// # Errors
///
/// The kernel's; `WouldBlock` when the descriptor is nonblocking and full.
pub fn write(fd: BorrowedFd<'_>, packet: &[u8]) -> Result<usize> {
    retry(|| {
        // SAFETY: the pointer and length are those of a live slice, read only.
        count(unsafe { libc::write(fd.as_raw_fd(), packet.as_ptr().cast(), packet.len()) })
    })
}

/// `readv(2)`: one packet scattered over `slices`, at most 1024 of them.
///
/// # Errors
///
/// The kernel's; `InvalidInput` (EINVAL) above 1024 slices.
pub fn readv(fd: BorrowedFd<'_>, slices: &mut [IoSliceMut<'_>]) -> Result<usize> {
    let length = vector_length(slices.len())?;
    retry(|| {
        // SAFETY: `IoSliceMut` is documented to have the layout of `iovec`, the
        // slices are live and exclusive for the length of the call.
        count(unsafe { libc::readv(fd.as_raw_fd(), slices.as_mut_ptr().cast(), length) })
    })
}

/// `writev(2)`: one packet gathered from `slices`, at most 1024 of them.
///
/// # Errors
///
/// The kernel's; `InvalidInput` (EINVAL) above 1024 slices.
pub fn writev(fd: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> Result<usize> {
    let length = vector_length(slices.len())?;
    retry(|| {
        // SAFETY: `IoSlice` is documented to have the layout of `iovec`; the
        // slices are live for the length of the call and only read.
        count(unsafe { libc::writev(fd.as_raw_fd(), slices.as_ptr().cast(), length) })
    })
}

/// `preadv2(2)` with `RWF_NOWAIT`: like [`readv`], but never sleeps, also on a
/// descriptor that is blocking.
///
/// A worker may so sleep in its first read and drain the rest without switching
/// modes.
///
/// # Errors
///
/// `WouldBlock` when nothing is queued; `Unsupported` (EOPNOTSUPP) where the
/// file does not know the flag.
pub fn preadv2_nowait(fd: BorrowedFd<'_>, slices: &mut [IoSliceMut<'_>]) -> Result<usize> {
    let length = vector_length(slices.len())?;
    retry(|| {
        // SAFETY: as for `readv`; offset -1 means "the current position" and is
        // the only one a character device takes.
        count(unsafe {
            libc::preadv2(
                fd.as_raw_fd(),
                slices.as_mut_ptr().cast(),
                length,
                -1,
                libc::RWF_NOWAIT,
            )
        })
    })
}

/// Sets or clears `O_NONBLOCK` (`fcntl(2)`, `F_GETFL` and `F_SETFL`).
///
/// The flag belongs to the open file, so every duplicate of the descriptor
/// shares it.
///
/// # Errors
///
/// The kernel's.
pub fn set_nonblocking(fd: BorrowedFd<'_>, nonblocking: bool) -> Result<()> {
    // SAFETY: F_GETFL takes no pointer.
    let before = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    done(before)?;
    let after = if nonblocking {
        before | libc::O_NONBLOCK
    } else {
        before & !libc::O_NONBLOCK
    };
    // SAFETY: F_SETFL takes an integer.
    done(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, after) })
}

/// Repeats a call that a signal interrupted.
fn retry(mut call: impl FnMut() -> Result<usize>) -> Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// The number of slices as the kernel takes it.
fn vector_length(slices: usize) -> Result<libc::c_int> {
    libc::c_int::try_from(slices).map_err(|_| ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_vector_of_slices_is_one_packet() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let sent = writev(
            a.as_fd(),
            &[IoSlice::new(b"head"), IoSlice::new(b"payload")],
        )
        .unwrap();
        assert_eq!(sent, 11);
        let (mut head, mut rest) = ([0; 4], [0; 32]);
        let read = readv(
            b.as_fd(),
            &mut [IoSliceMut::new(&mut head), IoSliceMut::new(&mut rest)],
        )
        .unwrap();
        assert_eq!(
            (read, &head, &rest[..7]),
            (11, b"head", b"payload".as_slice())
        );
    }

    #[test]
    fn nonblocking_read_of_nothing_would_block() {
        let (_a, b) = UnixDatagram::pair().unwrap();
        set_nonblocking(b.as_fd(), true).unwrap();
        let error = read(b.as_fd(), &mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn write_then_read_keeps_the_octets() {
        let (a, b) = UnixDatagram::pair().unwrap();
        assert_eq!(write(a.as_fd(), b"abc").unwrap(), 3);
        let mut buffer = [0; 8];
        assert_eq!(read(b.as_fd(), &mut buffer).unwrap(), 3);
        assert_eq!(&buffer[..3], b"abc");
    }

    #[test]
    fn too_many_slices_are_refused_by_the_kernel() {
        let (a, _b) = UnixDatagram::pair().unwrap();
        let many = vec![IoSlice::new(b""); 1025];
        let error = writev(a.as_fd(), &many).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
