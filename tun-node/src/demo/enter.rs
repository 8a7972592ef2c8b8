//! Running a command in the namespaces of a node: what `nsenter --preserve-credentials -U -n`
//! does, for hosts without it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sched::{CloneFlags, setns};

/// Replaces this process by `command`, or a shell, in the user and network namespace of `pid`.
///
/// To be called while this process has one thread: the kernel lets no other enter a user
/// namespace.
///
/// # Errors
///
/// There is no such process, or it belongs to another user; the command could not be run.
pub(super) fn run(pid: u32, command: &[OsString]) -> io::Result<()> {
    let open = |kind| File::open(format!("/proc/{pid}/ns/{kind}"));
    let (user, net) = (open("user")?, open("net")?);
    // The user namespace first: it gives the right to enter the other.
    setns(user, CloneFlags::CLONE_NEWUSER)?;
    setns(net, CloneFlags::CLONE_NEWNET)?;
    let shell = || std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    let mut command = command.iter();
    let program = command.next().cloned().unwrap_or_else(shell);
    Err(Command::new(program).args(command).exec())
}
