//! Processes: capabilities, death signals, watching a child, handing it a
//! descriptor.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::Signal;

use super::done;

/// Asks the kernel to send `signal` to this process when the thread that
/// started it ends (`prctl(PR_SET_PDEATHSIG)`).
///
/// # Errors
///
/// The kernel's.
pub fn set_parent_death_signal(signal: Signal) -> Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(signal)?)
}

/// Has the kernel send `signal` to the program that `command` starts when the
/// thread that starts it ends.
///
/// The program is not started at all when that thread's process is gone before
/// the kernel knows of the wish.
pub fn die_with_parent(command: &mut Command, signal: Signal) {
    let parent = nix::unistd::getpid();
    let tie = move || {
        set_parent_death_signal(signal)?;
        if nix::unistd::getppid() == parent {
            Ok(())
        } else {
            Err(Error::from_raw_os_error(libc::ESRCH))
        }
    };
    // SAFETY: the closure runs between fork and exec and makes two
    // async-signal-safe calls (prctl, getppid) on integers; an error with an
    // errno allocates nothing.
    unsafe {
        command.pre_exec(tie);
    }
}

/// A descriptor that becomes readable when the process `pid` ends
/// (`pidfd_open(2)`), for the event loop.
///
/// # Errors
///
/// `ESRCH` when there is no such process; `ENOSYS` before kernel 5.3.
pub fn pidfd_open(pid: u32) -> Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_ulong::from(pid), 0) };
    let fd = libc::c_int::try_from(fd).map_err(|_| Error::from(ErrorKind::InvalidData))?;
    done(fd)?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets the program that `command` starts keep the descriptor `fd` under the
/// same number.
///
/// The descriptor stays close-on-exec in this process, so no other child that a
/// thread starts meanwhile inherits it. `fd` must be open when the command is
/// started.
pub fn inherit(command: &mut Command, fd: BorrowedFd<'_>) {
    let fd = fd.as_raw_fd();
    // SAFETY: the closure runs between fork and exec and makes one
    // async-signal-safe call (fcntl) on an integer; a stale number gives EBADF.
    unsafe {
        command.pre_exec(move || done(libc::fcntl(fd, libc::F_SETFD, 0)));
    }
}

/// Takes over a descriptor number that the parent process left for us, and makes
/// it close-on-exec.
///
/// # Errors
///
/// `InvalidInput` for 0, 1 and 2, or where the number is not an open descriptor.
pub(crate) fn adopt(fd: i32) -> Result<OwnedFd> {
    if fd <= 2 {
        return Err(ErrorKind::InvalidInput.into());
    }
    // SAFETY: F_SETFD takes an integer; on a number that is not open it fails.
    done(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })
        .map_err(|_| Error::from(ErrorKind::InvalidInput))?;
    // SAFETY: the descriptor is open (the call above succeeded). It was left by
    // the parent for this purpose: called once, before anything else is opened.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the calling thread alone the user `id` with the group `id`, without
/// further groups and so without any capability (`setgroups`, `setresgid`,
/// `setresuid`).
///
/// The C library's functions of these names change every thread of the process.
/// Threads of one process share its memory, so this is no barrier against hostile
/// code; tests act as an ordinary user with it.
///
/// # Errors
///
/// `EPERM` when the thread is not root.
pub fn become_user_on_this_thread(id: u32) -> Result<()> {
    let id = libc::c_ulong::from(id);
    // SAFETY: setgroups with no group reads no pointer.
    done_long(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })?;
    // SAFETY: setresgid takes three integers.
    done_long(unsafe { libc::syscall(libc::SYS_setresgid, id, id, id) })?;
    // SAFETY: setresuid takes three integers.
    done_long(unsafe { libc::syscall(libc::SYS_setresuid, id, id, id) })
}

/// As [`done`] for the calls that have no function in the C library.
fn done_long(returned: libc::c_long) -> Result<()> {
    done(libc::c_int::from(returned < 0).wrapping_neg())
}

/// A capability of capabilities(7).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Capability {
    /// `CAP_NET_BIND_SERVICE`.
    NetBindService = 10,
    /// `CAP_NET_ADMIN`.
    NetAdmin = 12,
    /// `CAP_NET_RAW`.
    NetRaw = 13,
    /// `CAP_SYS_ADMIN`.
    SysAdmin = 21,
}

/// The effective capabilities of the calling thread, as a mask (`CapEff` in
/// `/proc/thread-self/status`).
///
/// # Errors
///
/// `/proc` is not mounted or has another shape.
pub fn effective_capabilities() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .ok_or_else(|| ErrorKind::InvalidData.into())
}

/// Whether the calling thread has `capability`, in its own user namespace;
/// `false` when that cannot be found out.
#[must_use]
pub fn has_capability(capability: Capability) -> bool {
    effective_capabilities().is_ok_and(|mask| mask >> (capability as u32) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn root_has_net_admin_and_nobody_has_nothing() {
        if nix::unistd::geteuid().is_root() {
            assert!(has_capability(Capability::NetAdmin));
        } else {
            assert_eq!(effective_capabilities().unwrap(), 0);
        }
    }

    #[test]
    fn a_child_inherits_only_what_it_is_handed() {
        let (kept, _a) = UnixStream::pair().unwrap();
        let (other, _b) = UnixStream::pair().unwrap();
        let list = |handed: bool| {
            let mut command = Command::new("/bin/sh");
            command
                .args(["-c", "ls -l /proc/self/fd"])
                .stdout(Stdio::piped());
            if handed {
                inherit(&mut command, kept.as_fd());
            }
            String::from_utf8(command.output().unwrap().stdout).unwrap()
        };
        let inode = |fd: BorrowedFd<'_>| {
            let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
            link.to_str().unwrap().to_owned()
        };
        let (kept_inode, other_inode) = (inode(kept.as_fd()), inode(other.as_fd()));
        assert!(list(true).contains(&kept_inode));
        assert!(!list(true).contains(&other_inode));
        assert!(!list(false).contains(&kept_inode));
    }

    #[test]
    fn a_pidfd_is_readable_once_the_child_is_gone() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "read x"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        assert!(!readable(&pidfd, 0));
        drop(child.stdin.take());
        assert!(readable(&pidfd, 10_000));
        child.wait().unwrap();
    }

    fn readable(fd: &OwnedFd, timeout_ms: i32) -> bool {
        let mut poll = mio::Poll::new().unwrap();
        let raw = fd.as_raw_fd();
        poll.registry()
            .register(
                &mut mio::unix::SourceFd(&raw),
                mio::Token(0),
                mio::Interest::READABLE,
            )
            .unwrap();
        let mut events = mio::Events::with_capacity(1);
        let timeout = std::time::Duration::from_millis(u64::from(timeout_ms.unsigned_abs()));
        poll.poll(&mut events, Some(timeout)).unwrap();
        !events.is_empty()
    }

    #[test]
    fn the_standard_descriptors_are_never_adopted() {
        for fd in [-1, 0, 1, 2, 100_000] {
            assert_eq!(adopt(fd).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}
