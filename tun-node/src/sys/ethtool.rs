//! The features of network interfaces, by the `SIOCETHTOOL` ioctl.
//!
//! A feature is known by its name, such as `tx-udp-segmentation`: the numbers differ from kernel to
//! kernel. So there are three questions: how many features this kernel knows, what they are called,
//! and which of them an interface has turned on. They need no privilege, and act in the network
//! namespace that the socket was made in.

use std::ffi::c_void;
use std::io::{ErrorKind, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::done;
use super::tun::DeviceName;

/// How many features this kernel knows: `ETHTOOL_GSSET_INFO`.
///
/// # Errors
///
/// `ENODEV` without such an interface, `EOPNOTSUPP` where the kernel does not know the question.
pub fn feature_count(socket: BorrowedFd<'_>, device: DeviceName) -> Result<usize> {
    let mut question = StringSets {
        command: ETHTOOL_GSSET_INFO,
        reserved: 0,
        sets: 1 << ETH_SS_FEATURES,
        count: 0,
        padding: 0,
    };
    let mut request = Request::new(device, (&raw mut question).cast());
    // SAFETY: SIOCETHTOOL reads one `struct ifreq`, which `Request` equals in size. Its pointer is to
    // a live `struct ethtool_sset_info` with room for the one number that one set is answered by.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    let count = usize::try_from(question.count).unwrap_or(usize::MAX);
    // No set in the answer: a kernel without features. More than can be: no answer.
    if question.sets == 0 || count > FEATURES_MAX {
        return Err(ErrorKind::Unsupported.into());
    }
    Ok(count)
}

/// The number of the feature `name` among the `count` that this kernel knows: `ETHTOOL_GSTRINGS`.
///
/// `count` is to be what [`feature_count`] said.
///
/// # Errors
///
/// `Unsupported` when none is called so, and the kernel's.
pub fn feature_number(
    socket: BorrowedFd<'_>,
    device: DeviceName,
    count: usize,
    name: &str,
) -> Result<usize> {
    // The kernel does not look at how much room there is, so there is room for the most that any has.
    let mut answer = Box::new(Strings {
        command: ETHTOOL_GSTRINGS,
        set: ETH_SS_FEATURES,
        count: 0,
        names: [[0; NAME_OCTETS]; FEATURES_MAX],
    });
    let mut request = Request::new(device, (&raw mut *answer).cast());
    // SAFETY: as in `feature_count`; the pointer is to a live `struct ethtool_gstrings` with room for
    // `FEATURES_MAX` names. The kernel writes as many as it knows features, which is fixed when it is
    // built, and which `feature_count` has found to be no more than that.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    let is_it = |octets: &[u8; NAME_OCTETS]| {
        let end = octets.iter().position(|&octet| octet == 0);
        octets.get(..end.unwrap_or(NAME_OCTETS)) == Some(name.as_bytes())
    };
    let found = answer.names.iter().take(count).position(is_it);
    found.ok_or_else(|| ErrorKind::Unsupported.into())
}

/// Whether the interface has the feature of that number turned on: `ETHTOOL_GFEATURES`.
///
/// # Errors
///
/// `Unsupported` for a number beyond what the kernel answers, and the kernel's.
pub fn has_feature(socket: BorrowedFd<'_>, device: DeviceName, number: usize) -> Result<bool> {
    let mut answer = Features {
        command: ETHTOOL_GFEATURES,
        blocks: u32::try_from(BLOCKS).unwrap_or(0),
        block: [Block::default(); BLOCKS],
    };
    let mut request = Request::new(device, (&raw mut answer).cast());
    // SAFETY: as in `feature_count`; the pointer is to a live `struct ethtool_gfeatures` with as many
    // blocks as it says, beyond which the kernel does not write.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    let answered = usize::try_from(answer.blocks).unwrap_or(0);
    let block = answer.block.iter().take(answered).nth(number / 32);
    let block = block.ok_or(ErrorKind::Unsupported)?;
    Ok(block.active & 1 << (number % 32) != 0)
}

/// `struct ifreq` with the pointer of its union.
#[repr(C, align(8))]
struct Request {
    name: DeviceName,
    data: *mut c_void,
    padding: [u8; size_of::<libc::ifreq>() - libc::IFNAMSIZ - size_of::<*mut c_void>()],
}

impl Request {
    const fn new(name: DeviceName, data: *mut c_void) -> Self {
        Self {
            name,
            data,
            padding: [0; _],
        }
    }
}

/// `struct ethtool_sset_info` with one number.
#[repr(C)]
struct StringSets {
    command: u32,
    reserved: u32,
    sets: u64,
    count: u32,
    padding: u32,
}

/// `struct ethtool_gstrings`.
#[repr(C)]
struct Strings {
    command: u32,
    set: u32,
    count: u32,
    names: [[u8; NAME_OCTETS]; FEATURES_MAX],
}

/// `struct ethtool_gfeatures`.
#[repr(C)]
struct Features {
    command: u32,
    blocks: u32,
    block: [Block; BLOCKS],
}

/// `struct ethtool_get_features_block`: 32 features.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Block {
    available: u32,
    requested: u32,
    active: u32,
    never_changed: u32,
}

/// Of the type that `ioctl` takes, which libc's is not everywhere.
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETH_SS_FEATURES: u32 = 4;

/// `ETH_GSTRING_LEN`: octets of a name, filled up with zeros.
const NAME_OCTETS: usize = 32;
/// Some 60 are known to kernel 6.18.
const FEATURES_MAX: usize = 1024;
const BLOCKS: usize = FEATURES_MAX / 32;

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());
const _: () = assert!(std::mem::offset_of!(StringSets, count) == 16);
const _: () = assert!(std::mem::offset_of!(Strings, names) == 12);
const _: () = assert!(size_of::<Block>() == 16);

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn ask(device: &str, feature: &str) -> Result<bool> {
        let socket = UnixDatagram::unbound()?;
        let device = device.parse().map_err(std::io::Error::other)?;
        let count = feature_count(socket.as_fd(), device)?;
        let number = feature_number(socket.as_fd(), device, count, feature)?;
        has_feature(socket.as_fd(), device, number)
    }

    #[test]
    fn what_the_loopback_device_always_has_and_has_not_is_told() {
        assert!(ask("lo", "loopback").unwrap());
        assert!(!ask("lo", "rx-vlan-filter").unwrap());
    }

    #[test]
    fn unknown_features_and_devices_are_errors() {
        let error = ask("lo", "tx-thought-reading").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let error = ask("no-such-link", "loopback").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
