//! By which device of the underlay packets to a peer leave, asked again once a second.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};

use crate::netlink::Netlink;

/// How packets leave for a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Path {
    pub(super) device: u32,
    /// The largest outer packet.
    pub(super) mtu: u32,
}

/// The paths that are known.
pub(super) struct Paths {
    netlink: Netlink,
    known: HashMap<(IpAddr, IpAddr), Option<Path>>,
}

impl std::fmt::Debug for Paths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paths")
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

impl Paths {
    pub(super) fn new(netlink: Netlink) -> Self {
        Self {
            netlink,
            known: HashMap::new(),
        }
    }

    /// The path from `local` to `remote`; `None` where there is none for the short way.
    pub(super) fn path(&mut self, local: IpAddr, remote: IpAddr) -> Option<Path> {
        if let Some(known) = self.known.get(&(local, remote)) {
            return *known;
        }
        let path = self.ask(local, remote);
        self.known.insert((local, remote), path);
        path
    }

    /// Asks again about the paths that are used, and forgets the others. Says which are others than
    /// before.
    pub(super) fn refresh(
        &mut self,
        used: &HashSet<(IpAddr, IpAddr)>,
    ) -> HashSet<(IpAddr, IpAddr)> {
        let mut changed = HashSet::new();
        for ((local, remote), path) in std::mem::take(&mut self.known) {
            if !used.contains(&(local, remote)) {
                continue;
            }
            let now = self.ask(local, remote);
            if now != path {
                changed.insert((local, remote));
            }
            self.known.insert((local, remote), now);
        }
        changed
    }

    fn ask(&mut self, local: IpAddr, remote: IpAddr) -> Option<Path> {
        let path = self.netlink.path_between(Some(local), remote).ok()??;
        let device = self.netlink.link_at(path.device).ok()?;
        Some(Path {
            device: path.device,
            mtu: path.mtu.map_or(device.mtu, |mtu| mtu.min(device.mtu)),
        })
    }
}

/// The device that has an address.
pub(super) fn device_of(address: Ipv4Addr) -> io::Result<u32> {
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
