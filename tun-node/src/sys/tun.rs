//! The ioctls of `/dev/net/tun`.
//!
//! A device comes into being in two steps: open the file, then name an
//! interface on it with [`set_iff`]. With `IFF_MULTI_QUEUE` the same two steps
//! with the same name give a further queue. All of it acts in the network
//! namespace of the calling thread and is decided by `CAP_NET_ADMIN` there, or
//! by the owner that a persistent device carries.

use std::ffi::CStr;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Result;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::str::FromStr;

use super::done;

/// The clone device from which every TUN queue is opened.
pub const DEVICE_FILE: &str = "/dev/net/tun";

/// Opens `/dev/net/tun`, read-write and close-on-exec, attached to nothing yet.
///
/// # Errors
///
/// `NotFound` where the module or the device file is missing,
/// `PermissionDenied` where the file's mode does not admit the user.
pub fn open() -> Result<OwnedFd> {
    Ok(OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE_FILE)?
        .into())
}

/// `TUNSETIFF`: attaches the descriptor to the interface `name`, making it when
/// the namespace has none of that name, and returns the name it really has
/// (`ov%d` becomes `ov0`).
///
/// # Errors
///
/// `EPERM` without `CAP_NET_ADMIN` (or ownership); `EBUSY` when another process
/// holds a single-queue device, or with [`Flags::EXCLUSIVE`] when the name is
/// taken; `EINVAL` when the existing device is of another kind or its
/// multi-queue flag differs.
pub fn set_iff(fd: BorrowedFd<'_>, name: DeviceName, flags: Flags) -> Result<DeviceName> {
    let mut request = Request::new(name, flags.0);
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `Request`
    // equals in size (asserted below) and which lives through the call.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(request.name)
}

/// `TUNGETIFF`: the interface this descriptor is attached to and its flags.
///
/// # Errors
///
/// `EBADFD` when it is attached to none.
pub fn iff(fd: BorrowedFd<'_>) -> Result<(DeviceName, Flags)> {
    let mut request = Request::new(DeviceName::UNKNOWN, 0);
    // SAFETY: TUNGETIFF writes one `struct ifreq`, which `Request` equals in
    // size and which lives through the call.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    Ok((request.name, Flags(request.flags)))
}

/// `TUNGETFEATURES`: the flags that this kernel knows.
///
/// # Errors
///
/// The kernel's.
pub fn features(fd: BorrowedFd<'_>) -> Result<Flags> {
    let mut features: libc::c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one `unsigned int`.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETFEATURES, &raw mut features) })?;
    let octets = features.to_ne_bytes();
    let low = if cfg!(target_endian = "little") {
        [octets[0], octets[1]]
    } else {
        [octets[2], octets[3]]
    };
    Ok(Flags(u16::from_ne_bytes(low)))
}

/// `TUNSETOFFLOAD`: tells the kernel which unfinished packets the reader takes.
///
/// A persistent device keeps the mask after its holder is gone.
///
/// # Errors
///
/// `EINVAL` for a bit that this kernel does not know (USO before 6.2).
pub fn set_offload(fd: BorrowedFd<'_>, offload: Offload) -> Result<()> {
    // SAFETY: TUNSETOFFLOAD takes an integer, no pointer.
    done(unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(offload.0),
        )
    })
}

/// `TUNSETVNETHDRSZ`: octets of the virtio header before each packet, 10 by
/// default, 12 with the number of merged buffers.
///
/// # Errors
///
/// `EINVAL` below 10.
pub fn set_vnet_header_octets(fd: BorrowedFd<'_>, octets: u8) -> Result<()> {
    let octets = libc::c_int::from(octets);
    // SAFETY: TUNSETVNETHDRSZ reads one `int`.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const octets) })
}

/// `TUNGETVNETHDRSZ`: octets of the virtio header before each packet.
///
/// # Errors
///
/// `EBADFD` when the descriptor is attached to no interface.
pub fn vnet_header_octets(fd: BorrowedFd<'_>) -> Result<usize> {
    let mut octets: libc::c_int = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one `int`.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut octets) })?;
    usize::try_from(octets).map_err(|_| std::io::ErrorKind::InvalidData.into())
}

/// `TUNSETPERSIST`: whether the interface outlives its last descriptor.
///
/// # Errors
///
/// The kernel's.
pub fn set_persist(fd: BorrowedFd<'_>, persist: bool) -> Result<()> {
    // SAFETY: TUNSETPERSIST takes an integer, no pointer.
    done(unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::TUNSETPERSIST,
            libc::c_ulong::from(persist),
        )
    })
}

/// `TUNSETOWNER`: the user who may attach to the persistent device without a
/// capability.
///
/// # Errors
///
/// `EINVAL` for a user id that the namespace does not map.
pub fn set_owner(fd: BorrowedFd<'_>, uid: u32) -> Result<()> {
    // SAFETY: TUNSETOWNER takes an integer, no pointer.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOWNER, libc::c_ulong::from(uid)) })
}

/// Flags of [`set_iff`], a set of `IFF_*`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Flags(u16);

impl Flags {
    /// `IFF_TUN | IFF_NO_PI`: bare IP packets, nothing before them.
    pub const TUN: Self = Self(0x0001 | 0x1000);
    /// `IFF_TAP | IFF_NO_PI`: bare Ethernet frames.
    pub const TAP: Self = Self(0x0002 | 0x1000);
    /// `IFF_MULTI_QUEUE`: several descriptors, one queue each.
    pub const MULTI_QUEUE: Self = Self(0x0100);
    /// `IFF_PERSIST`: the device outlives its descriptors. Only read back.
    pub const PERSIST: Self = Self(0x0800);
    /// `IFF_VNET_HDR`: a virtio header before each packet.
    pub const VNET_HEADER: Self = Self(0x4000);
    /// `IFF_TUN_EXCL`: refuse with `EBUSY` to attach to an existing device.
    pub const EXCLUSIVE: Self = Self(0x8000);

    /// The union of both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The union when `condition` holds, `self` otherwise.
    #[must_use]
    pub const fn with_if(self, condition: bool, other: Self) -> Self {
        if condition { self.with(other) } else { self }
    }

    /// Whether every flag of `other` is in `self`.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Mask of [`set_offload`], a set of `TUN_F_*`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offload(u32);

impl Offload {
    /// Every packet complete: checksums filled, none longer than the MTU.
    pub const NONE: Self = Self(0);
    /// Checksum and TCP segmentation, with ECN: `CSUM | TSO4 | TSO6 | TSO_ECN`.
    pub const TCP: Self = Self(0x01 | 0x02 | 0x04 | 0x08);
    /// [`Self::TCP`] and UDP segmentation `USO4 | USO6`, kernel 6.2 and later.
    pub const TCP_UDP: Self = Self(Self::TCP.0 | 0x20 | 0x40);
}

/// Name of a network interface: 1 to 15 octets, as the kernel accepts it.
///
/// Having one proves the length, which `ifreq` relies on.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct DeviceName([u8; NAME_OCTETS]);

impl DeviceName {
    /// No name, for a descriptor that has not told its own yet.
    pub(crate) const UNKNOWN: Self = Self([0; NAME_OCTETS]);

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        CStr::from_bytes_until_nul(&self.0)
            .ok()
            .and_then(|name| name.to_str().ok())
            .unwrap_or_default()
    }
}

impl FromStr for DeviceName {
    type Err = InvalidDeviceName;

    fn from_str(name: &str) -> std::result::Result<Self, InvalidDeviceName> {
        let mut octets = [0; NAME_OCTETS];
        let fits = octets[..NAME_OCTETS - 1].get_mut(..name.len());
        let Some(slot) = fits.filter(|_| !name.is_empty()) else {
            return Err(InvalidDeviceName::Length(name.len()));
        };
        let refused = |c: char| !c.is_ascii_graphic() || c == '/' || c == ':';
        if let Some(c) = name.chars().find(|&c| refused(c)) {
            return Err(InvalidDeviceName::Character(c));
        }
        if name == "." || name == ".." {
            return Err(InvalidDeviceName::Character('.'));
        }
        slot.copy_from_slice(name.as_bytes());
        Ok(Self(octets))
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// Why a text is no interface name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidDeviceName {
    /// Shorter than 1 or longer than 15 octets.
    #[error("a device name has 1 to 15 octets, this one has {0}")]
    Length(usize),
    /// A character that interface names cannot have.
    #[error("a device name cannot contain {0:?}")]
    Character(char),
}

/// `struct ifreq` with the flags member of its union.
#[repr(C, align(8))]
struct Request {
    name: DeviceName,
    flags: u16,
    padding: [u8; 22],
}

impl Request {
    const fn new(name: DeviceName, flags: u16) -> Self {
        Self {
            name,
            flags,
            padding: [0; 22],
        }
    }
}

/// `IFNAMSIZ`: octets of a name with its final zero.
const NAME_OCTETS: usize = libc::IFNAMSIZ;

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());
const _: () = assert!(NAME_OCTETS == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_1_to_15_octets_are_taken() {
        assert_eq!("ov0".parse::<DeviceName>().unwrap().as_str(), "ov0");
        assert_eq!(
            "fifteen-octets-".parse::<DeviceName>().unwrap().as_str(),
            "fifteen-octets-"
        );
        assert_eq!("".parse::<DeviceName>(), Err(InvalidDeviceName::Length(0)));
        assert_eq!(
            "sixteen-octets-x".parse::<DeviceName>(),
            Err(InvalidDeviceName::Length(16))
        );
        assert!("a".repeat(4096).parse::<DeviceName>().is_err());
    }

    #[test]
    fn names_the_kernel_refuses_are_refused() {
        for name in ["a/b", "a b", "a:b", "a\0b", "ä", ".", "..", "a\n"] {
            assert!(name.parse::<DeviceName>().is_err(), "{name:?}");
        }
    }
}
