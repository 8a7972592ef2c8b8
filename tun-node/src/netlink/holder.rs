//! Which device has an address.

use std::io;
use std::net::Ipv4Addr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};

/// The device that has an address, in the network namespace of the calling thread.
///
/// # Errors
///
/// [`NotFound`](io::ErrorKind::NotFound) where none has it, [`Unsupported`](io::ErrorKind::Unsupported) where it
/// is the loopback device; the kernel's.
pub(crate) fn device_of(address: Ipv4Addr) -> io::Result<u32> {
    let holder = getifaddrs()?.find(|one| {
        let held = one.address.as_ref().and_then(|held| held.as_sockaddr_in());
        held.is_some_and(|held| held.ip() == address)
    });
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("none has {address}"));
    let holder = holder.ok_or_else(missing)?;
    if holder.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
        let why = format!("{address} is on the loopback device");
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    // An address may have a label, which is the device's name and more behind a colon.
    let name = holder.interface_name.split(':').next().unwrap_or_default();
    Ok(if_nametoindex(name)?)
}
