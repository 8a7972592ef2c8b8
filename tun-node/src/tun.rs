//! The TUN device: one type, one descriptor, whole IP packets.
//!
//! A [`Tun`] comes from one of four places:
//!
//! - [`Tun::create`]: a new device in this network namespace (`CAP_NET_ADMIN`),
//!   with its MTU, addresses and state set;
//! - [`Tun::attach`]: an existing persistent device that this user owns, without
//!   any capability, left as its owner configured it;
//! - [`Tun::adopt`]: a descriptor that a child in another namespace opened and
//!   passed over ([`crate::rootless`]);
//! - [`Tun::queue`]: a further queue of a multi-queue device.
//!
//! The descriptor is nonblocking and fits the event loop as
//! `mio::unix::SourceFd(&tun.as_raw_fd())`. The event loop is edge triggered:
//! read until `WouldBlock`, and deregister before the `Tun` is dropped. A worker
//! owns its `Tun`; nothing here locks, allocates or logs per packet.
//!
//! The device file is opened here rather than by the `tun` crate because the
//! crate knows neither several queues nor offloads; the crate then configures
//! the interface behind the descriptor. IPv6 addresses and further IPv4 ones go
//! by netlink, for which the crate's ioctls are too old.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use ipnet::IpNet;
use tun::AbstractDevice;
use warren_core::wire::VirtioNetHeader;

use crate::netlink::{Netlink, NetlinkError};
use crate::sys;
use crate::sys::tun::Flags;
pub use crate::sys::tun::{DeviceName, InvalidDeviceName, Offload};

/// What a device is to be like.
#[derive(Clone, Debug)]
pub struct TunConfig {
    /// Its name; `%d` in it is the kernel's to fill.
    pub name: DeviceName,
    /// MTU in octets, at least 68, and 1280 for IPv6; `None` keeps the kernel's
    /// 1500.
    pub mtu: Option<u16>,
    /// Its addresses, with the length of the connected prefix.
    pub addresses: Vec<IpNet>,
    /// Whether a virtio header of [`Tun::vnet_header_octets`] octets comes before
    /// every packet both ways.
    pub vnet_header: bool,
    /// Unfinished packets that the reader takes. Needs `vnet_header`.
    pub offload: Offload,
    /// Whether [`Tun::queue`] may be called.
    pub multi_queue: bool,
}

impl TunConfig {
    /// A device of this name with one queue, no address, bare packets.
    #[must_use]
    pub const fn new(name: DeviceName) -> Self {
        Self {
            name,
            mtu: None,
            addresses: Vec::new(),
            vnet_header: false,
            offload: Offload::NONE,
            multi_queue: false,
        }
    }

    /// The flags of `TUNSETIFF` for it.
    const fn flags(&self) -> Flags {
        Flags::TUN
            .with_if(self.vnet_header, Flags::VNET_HEADER)
            .with_if(self.multi_queue, Flags::MULTI_QUEUE)
    }
}

/// One queue of a TUN device.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: DeviceName,
    flags: Flags,
    offload: Offload,
    vnet_header_octets: usize,
}

impl Tun {
    /// Makes a device, gives it its MTU and addresses and sets it up.
    ///
    /// The device is gone when its last queue is dropped. Every address is usable
    /// when this returns, IPv6 ones too (no duplicate address detection).
    ///
    /// # Errors
    ///
    /// [`TunError`]: the device file cannot be opened, the name is taken, the
    /// capability is missing, or the interface refuses a setting. Nothing is
    /// left behind.
    pub fn create(config: &TunConfig) -> Result<Self, TunError> {
        let device = Self::open_unconfigured(config)?;
        device.configure(config)?;
        Ok(device)
    }

    /// Makes a device and leaves the interface down and without address, for
    /// who configures it by other means.
    ///
    /// # Errors
    ///
    /// As [`Self::create`].
    pub fn open_unconfigured(config: &TunConfig) -> Result<Self, TunError> {
        let fd = open()?;
        let flags = config.flags();
        let name = sys::tun::set_iff(fd.as_fd(), config.name, flags.with(Flags::EXCLUSIVE))
            .map_err(|error| TunError::create(config.name, error))?;
        Self::finish(fd, name, flags, config.offload)
    }

    /// Attaches to an existing persistent device, in this network namespace,
    /// that belongs to this user (or any, with `CAP_NET_ADMIN`).
    ///
    /// The interface keeps its addresses, MTU and state. Whether it has one queue
    /// or several is found out by trying.
    ///
    /// # Errors
    ///
    /// [`TunError`]: no such device, not ours, held by another process, or not
    /// persistent (it would vanish with us).
    pub fn attach(name: DeviceName, vnet_header: bool, offload: Offload) -> Result<Self, TunError> {
        if nix::net::if_::if_nametoindex(name.as_str()).is_err() {
            return Err(TunError::NoSuchDevice { name });
        }
        let mut fd = open()?;
        let mut flags = Flags::TUN.with_if(vnet_header, Flags::VNET_HEADER);
        let mut outcome = sys::tun::set_iff(fd.as_fd(), name, flags);
        if is_errno(&outcome, libc::EINVAL) {
            // A multi-queue device refuses an attachment that does not say so.
            fd = open()?;
            flags = flags.with(Flags::MULTI_QUEUE);
            outcome = sys::tun::set_iff(fd.as_fd(), name, flags);
        }
        let name = outcome.map_err(|error| TunError::attach(name, error))?;
        let (_, found) = sys::tun::iff(fd.as_fd())
            .map_err(|error| TunError::setting(name, "TUNGETIFF", error))?;
        if !found.contains(Flags::PERSIST) {
            return Err(TunError::NotPersistent { name });
        }
        Self::finish(fd, name, flags, offload)
    }

    /// Takes over a descriptor that is attached to a device, whatever namespace
    /// that is in, and learns name and flags from it.
    ///
    /// # Errors
    ///
    /// [`TunError::Setting`] when the descriptor is no TUN queue.
    pub fn adopt(fd: OwnedFd, offload: Offload) -> Result<Self, TunError> {
        let unnamed = DeviceName::UNKNOWN;
        let (name, flags) = sys::tun::iff(fd.as_fd())
            .map_err(|error| TunError::setting(unnamed, "TUNGETIFF", error))?;
        Self::finish(fd, name, flags, offload)
    }

    /// Opens a further queue of this device, for another worker.
    ///
    /// # Errors
    ///
    /// [`TunError`] when the device was not made with several queues, has as
    /// many as the kernel allows (256), or lives in another namespace.
    pub fn queue(&self) -> Result<Self, TunError> {
        let fd = open()?;
        let name = sys::tun::set_iff(fd.as_fd(), self.name, self.flags)
            .map_err(|error| TunError::attach(self.name, error))?;
        Self::finish(fd, name, self.flags, self.offload)
    }

    /// The same queue for a second worker, which carries the other direction: what one reads the
    /// other does not. Whether reading waits is a matter of the queue, not of who reads.
    ///
    /// # Errors
    ///
    /// [`TunError`] when the process has no descriptor left.
    pub fn share(&self) -> Result<Self, TunError> {
        let fd = self.fd.try_clone();
        let fd = fd.map_err(|error| TunError::setting(self.name, "second descriptor", error))?;
        Ok(Self { fd, ..*self })
    }

    /// Reads one packet, with its virtio header before it where the device has
    /// one, and returns its octets.
    ///
    /// A packet longer than `packet` is cut without a sign: give room for the
    /// MTU, or for 64 KiB and the header with offloads.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when the queue is empty; `EBADFD` when the device is gone.
    pub fn recv(&self, packet: &mut [u8]) -> io::Result<usize> {
        sys::io::read(self.fd.as_fd(), packet)
    }

    /// Reads one packet scattered over several slices, the virtio header apart
    /// from the packet for example.
    ///
    /// # Errors
    ///
    /// As [`Self::recv`].
    pub fn recv_vectored(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        sys::io::readv(self.fd.as_fd(), slices)
    }

    /// As [`Self::recv_vectored`], without waiting even after
    /// [`Self::set_nonblocking`]`(false)`: the drain after a first read that
    /// slept.
    ///
    /// # Errors
    ///
    /// As [`Self::recv`].
    pub fn recv_vectored_nowait(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        sys::io::preadv2_nowait(self.fd.as_fd(), slices)
    }

    /// Hands one packet to the kernel as received on the device.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what is no IP packet or has a bad virtio header; `EIO` when
    /// the interface is down; `WouldBlock` when the kernel has no room. The packet
    /// is then lost, which the caller counts.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        whole(sys::io::write(self.fd.as_fd(), packet)?, packet.len())
    }

    /// As [`Self::send`], for a packet of one's own without a virtio header: one that needs nothing
    /// done is put before it where the device has one.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub fn send_plain(&self, packet: &[u8]) -> io::Result<()> {
        let nothing = [0; VirtioNetHeader::OCTETS];
        let header = nothing.get(..self.vnet_header_octets).unwrap_or(&nothing);
        self.send_vectored(&[IoSlice::new(header), IoSlice::new(packet)])
    }

    /// Hands one packet gathered from several slices to the kernel.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub fn send_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        whole(sys::io::writev(self.fd.as_fd(), slices)?, length)
    }

    /// Chooses whether [`Self::recv`] sleeps on an empty queue. It does not, at
    /// first.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        sys::io::set_nonblocking(self.fd.as_fd(), nonblocking)
    }

    /// The interface's name, in the namespace where it was made.
    #[must_use]
    pub const fn name(&self) -> DeviceName {
        self.name
    }

    /// Octets of the virtio header before each packet, 10, or 0 without one.
    #[must_use]
    pub const fn vnet_header_octets(&self) -> usize {
        self.vnet_header_octets
    }

    /// The offloads that the kernel granted.
    #[must_use]
    pub const fn offload(&self) -> Offload {
        self.offload
    }

    /// Whether [`Self::queue`] may be called.
    #[must_use]
    pub const fn is_multi_queue(&self) -> bool {
        self.flags.contains(Flags::MULTI_QUEUE)
    }

    /// Makes a queue of an attached descriptor: offloads, header size, mode.
    fn finish(
        fd: OwnedFd,
        name: DeviceName,
        flags: Flags,
        wanted: Offload,
    ) -> Result<Self, TunError> {
        let has_header = flags.contains(Flags::VNET_HEADER);
        let wanted = if has_header { wanted } else { Offload::NONE };
        // Also when nothing is wanted: a persistent device keeps the mask of
        // whoever held it last.
        let offload = grant(fd.as_fd(), wanted)
            .map_err(|error| TunError::setting(name, "TUNSETOFFLOAD", error))?;
        let vnet_header_octets = if has_header {
            let found = sys::tun::vnet_header_octets(fd.as_fd())
                .map_err(|error| TunError::setting(name, "TUNGETVNETHDRSZ", error))?;
            // A persistent device keeps the size, too: 12 octets behind a virtual machine, say.
            if found != VirtioNetHeader::OCTETS {
                sys::tun::set_vnet_header_octets(fd.as_fd(), VNET_HEADER_OCTETS)
                    .map_err(|error| TunError::setting(name, "TUNSETVNETHDRSZ", error))?;
            }
            VirtioNetHeader::OCTETS
        } else {
            0
        };
        sys::io::set_nonblocking(fd.as_fd(), true)
            .map_err(|error| TunError::setting(name, "nonblocking mode", error))?;
        Ok(Self {
            fd,
            name,
            flags,
            offload,
            vnet_header_octets,
        })
    }

    /// Gives the device a longer queue than its own 500 packets, which are 1 ms of small ones: the
    /// worker may have to wait longer than that for a core. And keeps packets that come uncut to what leaves in one
    /// message (see [`gso_max_octets`]). Where the kernel does not let us, the device works as well.
    pub(crate) fn set_queue(&self, netlink: &mut Netlink, index: u32, mtu: u16) {
        if let Err(error) = netlink.set_queue(index, gso_max_octets(mtu), QUEUE_PACKETS) {
            tracing::debug!(device = %self.name, "{error}");
        }
    }

    /// Sets MTU, addresses and state of the interface.
    fn configure(&self, config: &TunConfig) -> Result<(), TunError> {
        let name = self.name;
        let mut settings = tun::Configuration::default();
        settings
            .raw_fd(self.fd.as_raw_fd())
            .close_fd_on_drop(false)
            .tun_name(name.as_str());
        let mut device = tun::create(&settings)
            .map_err(|error| TunError::setting(name, "settings", error.into()))?;
        if let Some(mtu) = config.mtu {
            device
                .set_mtu(mtu)
                .map_err(|error| TunError::setting(name, "MTU", error.into()))?;
        }
        // Address and netmask before the interface is up: the address alone has
        // the netmask of its historical class, and a connected route with it.
        let first_ipv4 = config.addresses.iter().position(|net| net.addr().is_ipv4());
        if let Some(net) = first_ipv4.and_then(|first| config.addresses.get(first)) {
            let netmask: IpAddr = net.netmask();
            device
                .set_address(net.addr())
                .and_then(|()| device.set_netmask(netmask))
                .map_err(|error| TunError::setting(name, "IPv4 address", error.into()))?;
        }
        let mut netlink = Netlink::open()?;
        let index = netlink.link_index(name.as_str())?;
        if let Some(mtu) = config.mtu {
            self.set_queue(&mut netlink, index, mtu);
        }
        // Nobody on the overlay answers router solicitations. A kernel without
        // IPv6 sends none.
        match netlink.disable_link_local(index) {
            Err(error) if !error.is_unsupported() => return Err(error.into()),
            _ => {}
        }
        device
            .enabled(true)
            .map_err(|error| TunError::setting(name, "state", error.into()))?;
        for (i, net) in config.addresses.iter().enumerate() {
            if Some(i) != first_ipv4 {
                netlink.add_address(index, *net)?;
            }
        }
        for net in &config.addresses {
            netlink.await_local(net.addr())?;
        }
        Ok(())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Why there is no TUN device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// `/dev/net/tun` is not there.
    #[error(
        "/dev/net/tun does not exist: load the kernel's tun module (`modprobe tun`) or give the \
         container the device"
    )]
    NoDeviceFile,
    /// `/dev/net/tun` may not be opened by this user.
    #[error(
        "/dev/net/tun is not accessible to this user: its mode must be 0666, as it is by default, \
         or the container's device rules must allow it"
    )]
    DeviceFileDenied,
    /// Opening `/dev/net/tun` failed otherwise.
    #[error("/dev/net/tun cannot be opened")]
    DeviceFile(#[source] io::Error),
    /// A device cannot be made without `CAP_NET_ADMIN`.
    #[error(
        "making the device {name} needs CAP_NET_ADMIN in this network namespace: use --rootless, \
         which needs no capability, or a persistent device that this user owns"
    )]
    NotPermitted {
        /// The device.
        name: DeviceName,
    },
    /// The name is taken.
    #[error("a device {name} exists already: choose another name or delete it")]
    Exists {
        /// The device.
        name: DeviceName,
    },
    /// No device of that name to attach to.
    #[error("there is no device {name} in this network namespace to attach to")]
    NoSuchDevice {
        /// The device.
        name: DeviceName,
    },
    /// The device belongs to another user.
    #[error("the device {name} does not belong to this user (`ip tuntap add ... user`)")]
    NotOwner {
        /// The device.
        name: DeviceName,
    },
    /// Another process holds the device's only queue.
    #[error("the device {name} is in use by another process")]
    Busy {
        /// The device.
        name: DeviceName,
    },
    /// The device is of another kind (not TUN).
    #[error("the device {name} is not a TUN device")]
    NotTun {
        /// The device.
        name: DeviceName,
    },
    /// The device would vanish with us: another program's.
    #[error("the device {name} is not persistent and so belongs to a running program")]
    NotPersistent {
        /// The device.
        name: DeviceName,
    },
    /// The kernel refused a setting.
    #[error("device {name}: {what} refused")]
    Setting {
        /// The device.
        name: DeviceName,
        /// The setting.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Netlink refused an address.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl TunError {
    fn create(name: DeviceName, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { name },
            Some(libc::EBUSY | libc::EEXIST) => Self::Exists { name },
            _ => Self::setting(name, "TUNSETIFF", error),
        }
    }

    fn attach(name: DeviceName, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotOwner { name },
            Some(libc::EBUSY) => Self::Busy { name },
            Some(libc::EINVAL) => Self::NotTun { name },
            _ => Self::setting(name, "TUNSETIFF", error),
        }
    }

    const fn setting(name: DeviceName, what: &'static str, source: io::Error) -> Self {
        Self::Setting { name, what, source }
    }
}

/// Opens the device file.
fn open() -> Result<OwnedFd, TunError> {
    sys::tun::open().map_err(|error| match error.raw_os_error() {
        // ENODEV, ENXIO: the file is there, the driver is not.
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoDeviceFile,
        Some(libc::EACCES | libc::EPERM) => TunError::DeviceFileDenied,
        _ => TunError::DeviceFile(error),
    })
}

/// Packets that may wait in the device for the worker: 10 ms of 400,000 a second.
const QUEUE_PACKETS: u32 = 4000;

/// Octets of a virtio header without a count of merged buffers.
const VNET_HEADER_OCTETS: u8 = 10;
const _: () = assert!(VNET_HEADER_OCTETS as usize == VirtioNetHeader::OCTETS);

/// The value of `gso_max_size` with which a TCP packet, cut into segments for a device of that MTU
/// and each wrapped, fits one UDP message of 65,507 octets.
///
/// At an MTU of 1450 a message holds 44 segments; the kernel's own 65,536 gives 46, of which two
/// would travel apart, through the whole stack a second time.
fn gso_max_octets(mtu: u16) -> u32 {
    /// Payload of the largest IPv4 UDP datagram.
    const MESSAGE: u32 = 65_507;
    /// VXLAN and an Ethernet header, the longest shim.
    const SHIM: u32 = 22;
    /// IPv6 and TCP with timestamps: the smallest usual segment decides how many there may be.
    const HEADERS: u32 = 40 + 20 + 12;
    /// What the kernel's TCP takes off the limit for its headers, and one more.
    const TCP_RESERVE: u32 = 321;
    let mtu = u32::from(mtu);
    let segments = (MESSAGE / (mtu + SHIM)).max(1);
    let payload = (segments + 1) * mtu.saturating_sub(HEADERS).max(1);
    (payload - 1 + TCP_RESERVE).min(65_536)
}

/// Asks for `wanted`, then for less: UDP segmentation is as young as kernel 6.2.
fn grant(fd: BorrowedFd<'_>, wanted: Offload) -> io::Result<Offload> {
    match sys::tun::set_offload(fd, wanted) {
        Err(error) if wanted == Offload::TCP_UDP && error.kind() == ErrorKind::InvalidInput => {
            sys::tun::set_offload(fd, Offload::TCP).map(|()| Offload::TCP)
        }
        outcome => outcome.map(|()| wanted),
    }
}

fn is_errno<T>(outcome: &io::Result<T>, errno: i32) -> bool {
    matches!(outcome, Err(error) if error.raw_os_error() == Some(errno))
}

/// A packet is taken whole or not at all.
fn whole(written: usize, length: usize) -> io::Result<()> {
    if written == length {
        return Ok(());
    }
    Err(ErrorKind::WriteZero.into())
}

#[cfg(test)]
mod tests;
