//! The system calls of the node, one per function, each behind a safe interface.
//!
//! Every `unsafe` line of the workspace lives in this folder, and nothing else
//! does: no policy, no retry beyond `EINTR`, no logging. The modules above
//! ([`crate::tun`], [`crate::udp`], [`crate::raw`], [`crate::rootless`]) decide
//! what to call and when; this folder only proves that a call cannot harm
//! memory.
//!
//! | module       | calls                                                         |
//! |--------------|---------------------------------------------------------------|
//! | [`tun`]      | `ioctl` on `/dev/net/tun`                                     |
//! | [`io`]       | `read` `write` `readv` `writev` `preadv2` `fcntl`             |
//! | [`sockopt`]  | `getsockopt` `setsockopt`                                     |
//! | [`mmsg`]     | `recvmmsg` `sendmmsg` over caller-owned rings                 |
//! | [`errqueue`] | `recvmsg` with `MSG_ERRQUEUE`                                 |
//! | [`packet`]   | `sendmsg` to a device                                          |
//! | [`bpf`]      | `bpf`, and `mmap` `munmap` of memory that programs see        |
//! | [`ring`]     | packets in memory that a program of BPF writes (no call)      |
//! | [`ethtool`]  | `ioctl` with `SIOCETHTOOL`                                    |
//! | [`fdpass`]   | one descriptor over a Unix socket (`SCM_RIGHTS`)              |
//! | [`process`]  | `prctl`, `pidfd_open`, capabilities, descriptor inheritance   |
//! | [`schedule`] | `sched_getattr` `sched_setattr` `sched_setaffinity`           |
//! | [`huge`]     | `mmap` `mremap` `munmap` `madvise`: the program's allocator   |
//! | [`address`]  | socket addresses as the kernel lays them out (no call)        |
//! | [`control`]  | control messages as the kernel lays them out (no call)        |
//!
//! Structures that the kernel fills are read back as octets with safe code
//! ([`address`], [`control`]); `unsafe` is left with the calls themselves.

use std::io::{Error, Result};

pub mod address;
#[cfg(test)]
pub(crate) mod allocations;
pub mod bpf;
pub mod control;
pub mod errqueue;
pub mod ethtool;
pub mod fdpass;
pub mod huge;
pub mod io;
pub mod mmsg;
pub mod packet;
pub mod process;
pub mod ring;
pub mod schedule;
pub mod sockopt;
pub mod tun;

/// Turns the kernel's "-1 and errno" into a `Result`, a count otherwise.
fn count(returned: isize) -> Result<usize> {
    usize::try_from(returned).map_err(|_| Error::last_os_error())
}

/// Turns the kernel's "-1 and errno" of a call without a result into a `Result`.
fn done(returned: libc::c_int) -> Result<()> {
    if returned < 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}
