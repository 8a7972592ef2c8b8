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
/// is the loopback device or one without Ethernet headers, which our programs expect; the kernel's.
pub(crate) fn device_of(address: Ipv4Addr) -> io::Result<u32> {
    let listed: Vec<_> = getifaddrs()?.collect();
    let holder = listed.iter().find(|one| {
        let held = one.address.as_ref().and_then(|held| held.as_sockaddr_in());
        held.is_some_and(|held| held.ip() == address)
    });
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("none has {address}"));
    let holder = holder.ok_or_else(missing)?;
    // An address may have a label, which is the device's name and more behind a colon.
    let name = holder.interface_name.split(':').next().unwrap_or_default();
    let unsupported = |what: &str| {
        let why = format!("{address} is on {what}");
        io::Error::new(io::ErrorKind::Unsupported, why)
    };
    if holder.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
        return Err(unsupported("the loopback device"));
    }
    let is_ethernet = listed.iter().any(|one| {
        let link = one.address.as_ref().and_then(|held| held.as_link_addr());
        one.interface_name == name && link.is_some_and(|link| link.hatype() == libc::ARPHRD_ETHER)
    });
    if !is_ethernet {
        return Err(unsupported(&format!(
            "{name}, which has no Ethernet headers"
        )));
    }
    Ok(if_nametoindex(name)?)
}
