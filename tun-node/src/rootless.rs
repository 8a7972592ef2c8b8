//! An overlay for an ordinary user: the TUN device in a child's own user and
//! network namespace, the underlay sockets in the namespace we started in.
//!
//! ```text
//!   parent (the daemon)                        child (same program, one thread)
//!   -------------------                        --------------------------------
//!   start: /proc/self/exe rootless-child FD -> unshare(user, network), maps
//!   ChildSpec ------------------------------>  lo up; TUN, addresses, MTU, routes
//!   <------------------------- descriptors --  one per queue (SCM_RIGHTS)
//!   <------------------------------- ready --
//!   (sets up sockets and workers)
//!   go ------------------------------------->  exec COMMAND, or hold the namespace
//!   <----- end of file, or what went wrong --
//! ```
//!
//! The parent keeps its namespaces and gains no capability; the child is root
//! only inside its own namespaces, where its user is mapped to 0 so that COMMAND
//! may use `ip` and `ping`. A program is executed anew, rather than forked,
//! because only a process with a single thread may enter a user namespace.
//!
//! Nothing stays behind: the child dies with the thread that started it
//! (`PR_SET_PDEATHSIG`), the namespace with its last process, the device with
//! its namespace or its last descriptor, whichever comes first.
//!
//! `main` must call [`child_if_asked`] before anything else.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::ctl::path::SOCKET_VARIABLE;
use crate::netlink::{Netlink, Route};
use crate::sys::{fdpass, process};
use crate::tun::{DeviceName, Offload, Tun, TunConfig, TunError};

/// What the child is to make in its namespace.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ChildSpec {
    /// Name of the device, 1 to 15 octets.
    pub device: String,
    /// MTU in octets.
    pub mtu: u16,
    /// The device's addresses, with the length of the connected prefix.
    pub addresses: Vec<IpNet>,
    /// Routes through the device: the overlay's prefixes.
    pub routes: Vec<Route>,
    /// Queues of the device, at least 1.
    pub queues: u16,
    /// Whether a virtio header comes before every packet.
    pub vnet_header: bool,
}

/// How to start the child.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The program whose `main` calls [`child_if_asked`].
    pub program: PathBuf,
    /// Arguments before ours, for a program that starts another one.
    pub arguments: Vec<OsString>,
    /// COMMAND and its arguments; empty to hold the namespace until the parent
    /// ends.
    pub command: Vec<OsString>,
    /// The node's control socket, for the environment of COMMAND.
    pub socket: Option<PathBuf>,
}

impl Launch {
    /// This very program, to run `command` in the overlay.
    #[must_use]
    pub fn this_program(command: Vec<OsString>, socket: Option<PathBuf>) -> Self {
        Self {
            program: PathBuf::from("/proc/self/exe"),
            arguments: Vec::new(),
            command,
            socket,
        }
    }
}

/// A child with its namespace and what it made there.
#[derive(Debug)]
pub struct Rootless {
    child: Child,
    socket: UnixStream,
    tuns: Vec<Tun>,
    pidfd: OwnedFd,
    ended: Option<ExitStatus>,
}

impl Rootless {
    /// Starts the child, and returns when its device is ready: up, with its
    /// addresses and routes.
    ///
    /// The child is killed when the calling thread ends, so call this from one
    /// that lasts, best the main thread.
    ///
    /// # Errors
    ///
    /// [`RootlessError`] in one sentence; no process is left behind.
    pub fn start(
        spec: &ChildSpec,
        offload: Offload,
        launch: &Launch,
    ) -> Result<Self, RootlessError> {
        let (socket, theirs) = UnixStream::pair().map_err(failed("making a socket pair"))?;
        let mut command = Command::new(&launch.program);
        command
            .args(&launch.arguments)
            .arg(CHILD_ARGUMENT)
            .arg(theirs.as_raw_fd().to_string())
            .arg(std::process::id().to_string())
            .args(&launch.command);
        if let Some(socket) = &launch.socket {
            command.env(SOCKET_VARIABLE, socket);
        }
        if launch.command.is_empty() {
            // A holder has no business with the terminal or its signals.
            command.stdin(Stdio::null()).process_group(0);
        }
        process::inherit(&mut command, theirs.as_fd());
        let mut child = command.spawn().map_err(failed("starting the child"))?;
        drop(theirs);
        let outcome = receive_device(&socket, spec, offload).and_then(|tuns| {
            Ok((
                tuns,
                process::pidfd_open(child.id()).map_err(failed("pidfd_open"))?,
            ))
        });
        match outcome {
            Ok((tuns, pidfd)) => Ok(Self {
                child,
                socket,
                tuns,
                pidfd,
                ended: None,
            }),
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }

    /// Takes the queues of the device, in order.
    #[must_use]
    pub fn take_tuns(&mut self) -> Vec<Tun> {
        std::mem::take(&mut self.tuns)
    }

    /// Lets the child execute COMMAND, or hold the namespace, and returns when it
    /// does.
    ///
    /// # Errors
    ///
    /// [`RootlessError::Command`] when COMMAND cannot be executed.
    pub fn go(&mut self) -> Result<(), RootlessError> {
        self.socket
            .write_all(&[GO])
            .map_err(failed("telling the child to go"))?;
        match receive_octet(&self.socket)? {
            // COMMAND took the child's place, and the socket closed on exec.
            None | Some((HOLDING, _)) => Ok(()),
            Some((ERROR, _)) => Err(receive_error(&self.socket)),
            Some((octet, _)) => Err(RootlessError::Protocol { octet }),
        }
    }

    /// The process id of the child, which is COMMAND's once it runs.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the child.
    ///
    /// # Errors
    ///
    /// The kernel's. Nothing is sent, and that is no error, once the child has
    /// been waited for.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.ended.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.child.id()).map_err(|_| ErrorKind::InvalidInput)?;
        Ok(kill(Pid::from_raw(pid), signal)?)
    }

    /// How the child ended, if it has. To be asked when the descriptor of
    /// [`AsFd`] becomes readable.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Waits until the child ends.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        let status = self.child.wait()?;
        self.ended = Some(status);
        Ok(status)
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        if self.ended.is_none() {
            end(&mut self.child);
        }
    }
}

/// A descriptor for the event loop, readable when the child has ended.
impl AsFd for Rootless {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl AsRawFd for Rootless {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

/// The code to exit with on COMMAND's behalf: its own, or 128 and the number of
/// the signal that ended it, as shells have it.
#[must_use]
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Why there is no rootless overlay. Each is a sentence for a person; the child's
/// come over the socket as they are.
#[derive(Debug, Deserialize, Serialize, thiserror::Error)]
pub enum RootlessError {
    /// The kernel does not let this user make a user namespace.
    #[error("this user may not make user namespaces ({reason}): {advice}")]
    UserNamespace {
        /// The kernel's words.
        reason: String,
        /// The switch that is in the way, and what to do.
        advice: String,
    },
    /// The device could not be made.
    #[error("{reason}")]
    Device {
        /// What was refused and why.
        reason: String,
    },
    /// The namespace could not be set up.
    #[error("setting up the overlay's namespace failed: {reason}")]
    Network {
        /// What was refused and why.
        reason: String,
    },
    /// COMMAND could not be executed.
    #[error("{command} cannot be executed: {reason}")]
    Command {
        /// The program.
        command: String,
        /// Why.
        reason: String,
        /// What a shell would exit with: 127 not found, 126 not executable.
        exit_code: u8,
    },
    /// A step of ours failed.
    #[error("{step} failed: {reason}")]
    Step {
        /// The step.
        step: String,
        /// Why.
        reason: String,
    },
    /// The child ended before its device was ready.
    #[error("the child that holds the overlay's namespace ended before it was ready")]
    ChildEnded,
    /// The child sent what it should not.
    #[error("the child that holds the overlay's namespace sent octet {octet:#04x} unexpectedly")]
    Protocol {
        /// What came.
        octet: u8,
    },
}

/// Acts as the child and returns the code to exit with, if the arguments of this
/// process say so; `None` otherwise. `main` calls it first, before any thread is
/// started or any descriptor opened.
///
/// It returns only when COMMAND could not be executed, when there is none and the
/// parent has ended, or when something failed, which the parent then reports.
#[must_use]
pub fn child_if_asked() -> Option<u8> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != CHILD_ARGUMENT {
        return None;
    }
    let mut number = || arguments.next()?.to_str()?.parse::<u32>().ok();
    let (Some(fd), Some(parent)) = (number(), number()) else {
        return Some(USAGE);
    };
    let Some(socket) = i32::try_from(fd)
        .ok()
        .and_then(|fd| process::adopt(fd).ok())
    else {
        return Some(USAGE);
    };
    let command: Vec<OsString> = arguments.collect();
    Some(child(UnixStream::from(socket), parent, &command))
}

/// The child: namespace, device, COMMAND.
fn child(mut socket: UnixStream, parent: u32, command: &[OsString]) -> u8 {
    let outcome = enter_namespaces(parent).and_then(|()| make_device(&socket));
    if let Err(error) = outcome {
        return report(&mut socket, &error, 1);
    }
    let mut octet = [0];
    let read = socket
        .write_all(&[READY])
        .and_then(|()| socket.read_exact(&mut octet));
    if read.is_err() || octet != [GO] {
        // The parent is gone or has changed its mind.
        return 0;
    }
    let Some((program, arguments)) = command.split_first() else {
        return hold(&mut socket);
    };
    let error = Command::new(program).args(arguments).exec();
    let exit_code = if error.kind() == ErrorKind::NotFound {
        127
    } else {
        126
    };
    let error = RootlessError::Command {
        command: program.to_string_lossy().into_owned(),
        reason: error.to_string(),
        exit_code,
    };
    report(&mut socket, &error, exit_code)
}

/// Keeps the namespace until the parent closes its end.
fn hold(socket: &mut UnixStream) -> u8 {
    if socket.write_all(&[HOLDING]).is_ok() {
        // Nothing more is ever sent, so this returns at the end of the parent.
        let _ = socket.read(&mut [0]);
    }
    0
}

/// Tells the parent what went wrong. Where it is gone there is nobody to tell.
fn report(socket: &mut UnixStream, error: &RootlessError, exit_code: u8) -> u8 {
    let _ = socket
        .write_all(&[ERROR])
        .and_then(|()| write_frame(socket, error));
    exit_code
}

/// Enters a user and a network namespace in which this user is root.
fn enter_namespaces(parent: u32) -> Result<(), RootlessError> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
        .map_err(|errno| not_permitted(&errno.into()))?;
    let write = |file: &str, text: &str| std::fs::write(format!("/proc/self/{file}"), text);
    // An unprivileged user may map its group only once nobody in the namespace
    // can drop groups that deny access.
    match write("setgroups", "deny") {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(not_permitted(&error)),
        _ => {}
    }
    write("uid_map", &format!("0 {uid} 1")).map_err(|error| not_permitted(&error))?;
    write("gid_map", &format!("0 {gid} 1")).map_err(|error| not_permitted(&error))?;
    // After the change of credentials, which would clear it.
    process::set_parent_death_signal(Signal::SIGKILL).map_err(failed("PR_SET_PDEATHSIG"))?;
    if u32::try_from(nix::unistd::getppid().as_raw()) != Ok(parent) {
        return Err(RootlessError::ChildEnded);
    }
    Ok(())
}

/// Makes the device the parent asks for and sends it its descriptors.
fn make_device(socket: &UnixStream) -> Result<(), RootlessError> {
    let spec: ChildSpec = read_frame(socket).map_err(failed("reading the specification"))?;
    let name: DeviceName = spec.device.parse().map_err(|error| RootlessError::Device {
        reason: format!("device name {:?}: {error}", spec.device),
    })?;
    let network = |error: crate::netlink::NetlinkError| RootlessError::Network {
        reason: sentence(&error),
    };
    let mut netlink = Netlink::open().map_err(network)?;
    let lo = netlink.link_index("lo").map_err(network)?;
    netlink.set_up(lo, true).map_err(network)?;
    let mut config = TunConfig::new(name);
    config.mtu = Some(spec.mtu);
    config.addresses.clone_from(&spec.addresses);
    config.vnet_header = spec.vnet_header;
    config.multi_queue = spec.queues > 1;
    let device = |error: TunError| RootlessError::Device {
        reason: sentence(&error),
    };
    let first = Tun::create(&config).map_err(device)?;
    let index = netlink.link_index(first.name().as_str()).map_err(network)?;
    for route in &spec.routes {
        // An address brings the route to its own prefix along.
        match netlink.add_route(index, route) {
            Err(error) if !error.is_already_there() => return Err(network(error)),
            _ => {}
        }
    }
    let send = |tun: &Tun| {
        fdpass::send(socket.as_fd(), DESCRIPTOR, tun.as_fd()).map_err(failed("sending the device"))
    };
    send(&first)?;
    for _ in 1..spec.queues {
        send(&first.queue().map_err(device)?)?;
    }
    Ok(())
}

/// Sends the child its orders and receives its descriptors.
fn receive_device(
    mut socket: &UnixStream,
    spec: &ChildSpec,
    offload: Offload,
) -> Result<Vec<Tun>, RootlessError> {
    // A child that failed at once no longer reads; what it says is still there.
    let sent = write_frame(&mut socket, spec);
    let mut tuns = Vec::new();
    loop {
        match receive_octet(socket)? {
            Some((DESCRIPTOR, Some(fd))) => {
                let tun = Tun::adopt(fd, offload).map_err(|error| RootlessError::Device {
                    reason: sentence(&error),
                })?;
                tuns.push(tun);
            }
            Some((READY, None)) => {
                sent.map_err(failed("sending the specification"))?;
                return Ok(tuns);
            }
            Some((ERROR, None)) => return Err(receive_error(socket)),
            Some((octet, _)) => return Err(RootlessError::Protocol { octet }),
            None => return Err(RootlessError::ChildEnded),
        }
    }
}

fn receive_octet(socket: &UnixStream) -> Result<Option<(u8, Option<OwnedFd>)>, RootlessError> {
    match fdpass::receive(socket.as_fd()) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
        outcome => outcome.map_err(failed("hearing the child")),
    }
}

fn receive_error(socket: &UnixStream) -> RootlessError {
    read_frame(socket).unwrap_or(RootlessError::ChildEnded)
}

/// A length of 4 octets, least significant first, and JSON.
fn write_frame<T: Serialize>(socket: &mut impl Write, value: &T) -> io::Result<()> {
    let json = serde_json::to_vec(value)?;
    let length = u32::try_from(json.len()).map_err(|_| ErrorKind::InvalidInput)?;
    socket.write_all(&length.to_le_bytes())?;
    socket.write_all(&json)
}

fn read_frame<T: for<'de> Deserialize<'de>>(mut socket: &UnixStream) -> io::Result<T> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > FRAME_OCTETS_MAX {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut json = Vec::new();
    socket.take(length.into()).read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

/// Kills and collects a child. One that is gone already is as good.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// What stands in the way of a user namespace, in words.
fn not_permitted(error: &io::Error) -> RootlessError {
    let read = |switch: &str| {
        let path = format!("/proc/sys/{}", switch.replace('.', "/"));
        Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
    };
    RootlessError::UserNamespace {
        reason: error.to_string(),
        advice: advice(read),
    }
}

/// Names the first switch that is in the way, or all of them where none is to be
/// seen (a container's seccomp filter answers the same).
fn advice(read: impl Fn(&str) -> Option<String>) -> String {
    for (switch, closed, open) in SWITCHES {
        if read(switch).as_deref() == Some(closed) {
            return format!(
                "{switch} is {closed}, an administrator can run `sysctl -w {switch}={open}`"
            );
        }
    }
    let mut all = String::from("a container's policy, or one of the sysctls");
    for (switch, ..) in SWITCHES {
        let _ = write!(all, " {switch},");
    }
    all.push_str(" forbids it; a persistent TUN device that this user owns needs no namespace");
    all
}

/// The message of an error and of everything behind it.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut behind = error.source();
    while let Some(error) = behind {
        let _ = write!(text, ": {error}");
        behind = error.source();
    }
    text
}

fn failed(step: &'static str) -> impl FnOnce(io::Error) -> RootlessError {
    move |error| RootlessError::Step {
        step: step.to_owned(),
        reason: error.to_string(),
    }
}

/// The switches of kernels and distributions, with the value that forbids user
/// namespaces and one that allows them.
const SWITCHES: [(&str, &str, &str); 3] = [
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("user.max_user_namespaces", "0", "15000"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
];

/// The hidden subcommand. Its arguments: descriptor, the parent's process id,
/// COMMAND.
const CHILD_ARGUMENT: &str = "rootless-child";

/// A descriptor comes with this octet.
const DESCRIPTOR: u8 = b'T';
/// The device is ready.
const READY: u8 = b'R';
/// The parent lets the child go on.
const GO: u8 = b'G';
/// The child holds the namespace.
const HOLDING: u8 = b'H';
/// A [`RootlessError`] follows.
const ERROR: u8 = b'E';

/// The most octets of a frame: about 100,000 routes.
const FRAME_OCTETS_MAX: u32 = 16 << 20;

/// Exit code for arguments that make no sense.
const USAGE: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_in_the_way_is_named_with_its_cure() {
        for (switch, closed, open) in SWITCHES {
            let text = advice(|asked| (asked == switch).then(|| closed.to_owned()));
            assert!(text.contains(&format!("{switch}={open}")), "{text}");
        }
        let text = advice(|_| None);
        assert!(
            SWITCHES.iter().all(|(switch, ..)| text.contains(switch)),
            "{text}"
        );
    }

    #[test]
    fn exit_codes_are_a_shells() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(15)), 143);
        assert_eq!(exit_code(ExitStatus::from_raw(0)), 0);
    }

    #[test]
    fn frames_cross_and_absurd_lengths_do_not() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let spec = ChildSpec {
            device: "ov0".into(),
            mtu: 1450,
            addresses: vec!["10.77.0.1/24".parse().unwrap()],
            routes: vec![Route::new("10.77.0.0/16".parse().unwrap())],
            queues: 1,
            vnet_header: false,
        };
        write_frame(&mut a, &spec).unwrap();
        assert_eq!(read_frame::<ChildSpec>(&b).unwrap(), spec);
        a.write_all(&u32::MAX.to_le_bytes()).unwrap();
        let error = read_frame::<ChildSpec>(&b).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}
