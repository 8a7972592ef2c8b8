//! The overlay device of a running node: opening it, and taking back at the end what would stay.
//!
//! A device that the node made goes with its last descriptor, and its addresses and routes with
//! it, even after `kill -9`. On a device that stays (`persistent`, `attach`) the node's addresses
//! carry its own protocol number; at its end it removes what it added, and at its start what a dead
//! predecessor left and the configuration does not have. The device keeps its MTU and stays up.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::AsFd;

use ipnet::IpNet;
use tracing::{info, warn};
use warren_core::tables::Tables;

use crate::config::{Config, DeviceMode, PeerMode};
use crate::hostroutes::device_routes;
use crate::netlink::{Netlink, NetlinkError};
use crate::rootless::{ChildSpec, Launch, Rootless, RootlessError};
use crate::sys;
use crate::tun::{DeviceName, InvalidDeviceName, Offload, Tun, TunConfig, TunError};

/// An open device and what is to be undone when it is closed.
#[derive(Debug)]
pub(super) struct Device {
    /// Its queues, one for each worker.
    pub(super) queues: Vec<Tun>,
    pub(super) undo: Undo,
}

/// Why the device could not be opened or routed to.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The configured name is none.
    #[error(transparent)]
    Name(#[from] InvalidDeviceName),
    /// The device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The kernel refused an address or a route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The overlay in a namespace of an ordinary user.
    #[error(transparent)]
    Rootless(#[from] RootlessError),
    /// A persistent device could not be made so.
    #[error("device {name}: making it persistent")]
    Persist {
        /// The device.
        name: DeviceName,
        /// Why.
        source: std::io::Error,
    },
    /// Rootless mode makes a device of its own.
    #[error("--rootless makes a device of its own: remove `device.mode = \"{mode}\"`")]
    RootlessMode {
        /// The configured mode.
        mode: DeviceMode,
    },
}

/// Opens the device in this namespace with `count` queues and configures it;
/// [`crate::hostroutes`] routes to it. A device that was made with one queue, and stays, has one.
pub(super) fn open(config: &Config, count: u16) -> Result<Device, DeviceError> {
    let name: DeviceName = config.device.name.parse()?;
    let mut wanted = TunConfig::new(name);
    wanted.mtu = Some(config.device.mtu.octets());
    wanted.addresses.clone_from(&config.device.addresses);
    (wanted.vnet_header, wanted.offload) = offloads(config);
    wanted.multi_queue = count > 1;
    let mut undo = Undo::default();
    let tun = match config.device.mode {
        DeviceMode::Create => Tun::create(&wanted)?,
        DeviceMode::Attach => {
            let tun = Tun::attach(name, wanted.vnet_header, wanted.offload)?;
            undo.stays = true;
            tun
        }
        DeviceMode::Persistent => {
            undo.stays = true;
            match Tun::attach(name, wanted.vnet_header, wanted.offload) {
                Ok(tun) => tun,
                Err(TunError::NoSuchDevice { .. }) => {
                    let tun = Tun::open_unconfigured(&wanted)?;
                    sys::tun::set_persist(tun.as_fd(), true)
                        .map_err(|source| DeviceError::Persist { name, source })?;
                    tun
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    let mut netlink = Netlink::open()?;
    undo.index = netlink.link_index(tun.name().as_str())?;
    let configured = if undo.stays {
        tun.set_queue(&mut netlink, undo.index, config.device.mtu.octets());
        undo.adopt(&mut netlink, config)
    } else {
        Ok(())
    };
    match configured {
        Ok(()) => undo.configures = true,
        // The device's owner, who may configure it, has done so.
        Err(DeviceError::Netlink(error))
            if config.device.mode == DeviceMode::Attach && error.is_not_permitted() =>
        {
            info!(device = %name, "left as it is configured: {error}");
        }
        Err(error) => return Err(error),
    }
    let queues = open_queues(tun, count)?;
    Ok(Device { queues, undo })
}

/// Opens what `first` lacks of `count` queues.
fn open_queues(first: Tun, count: u16) -> Result<Vec<Tun>, TunError> {
    if count > 1 && !first.is_multi_queue() {
        warn!(
            device = %first.name(),
            "it was made with one queue: one worker, instead of {count}, carries its packets"
        );
        return Ok(vec![first]);
    }
    let others: Result<Vec<Tun>, TunError> = (1..count).map(|_| first.queue()).collect();
    Ok(std::iter::once(first).chain(others?).collect())
}

/// Opens the device with `count` queues in a namespace of its own, where COMMAND will run.
pub(super) fn open_rootless(
    config: &Config,
    count: u16,
    tables: &Tables,
    launch: &Launch,
) -> Result<(Rootless, Vec<Tun>), DeviceError> {
    if config.device.mode != DeviceMode::Create {
        return Err(DeviceError::RootlessMode {
            mode: config.device.mode,
        });
    }
    let (vnet_header, offload) = offloads(config);
    let spec = ChildSpec {
        device: config.device.name.clone(),
        mtu: config.device.mtu.octets(),
        addresses: config.device.addresses.clone(),
        routes: device_routes(config.device.mtu, tables),
        queues: count,
        vnet_header,
    };
    let mut rootless = Rootless::start(&spec, offload, launch)?;
    let queues = rootless.take_tuns();
    if queues.is_empty() {
        return Err(RootlessError::ChildEnded.into());
    }
    Ok((rootless, queues))
}

/// The peers that the underlay's own link leads to; asked only where the configuration does.
pub(crate) fn on_link(config: &Config, is_rootless: bool) -> HashSet<IpAddr> {
    let peers = &config.peers;
    let asking = peers
        .iter()
        .filter(|peer| peer.mode == PeerMode::CrossSubnet);
    let mut asking = asking.peekable();
    if asking.peek().is_none() || is_rootless {
        return HashSet::new();
    }
    let Ok(mut netlink) = Netlink::open() else {
        return HashSet::new();
    };
    let mut has_link = |address: &IpAddr| {
        let path = netlink.path_to(*address).ok().flatten();
        path.is_some_and(|path| path.gateway.is_none())
    };
    asking
        .map(|peer| peer.address)
        .filter(|address| has_link(address))
        .collect()
}

/// Whether the device is to have a virtio header, and what it may leave undone.
const fn offloads(config: &Config) -> (bool, Offload) {
    match (config.worker.vnet_header, config.worker.uso) {
        (false, _) => (false, Offload::NONE),
        (true, false) => (true, Offload::TCP),
        (true, true) => (true, Offload::TCP_UDP),
    }
}

/// What the node added to a device that outlives it. Dropping it takes that away again.
#[derive(Debug, Default)]
pub(super) struct Undo {
    stays: bool,
    configures: bool,
    index: u32,
    addresses: Vec<IpNet>,
}

impl Undo {
    /// The device's index.
    pub(super) const fn index(&self) -> u32 {
        self.index
    }

    /// Whether the device is there after the node.
    pub(super) const fn stays(&self) -> bool {
        self.stays
    }

    /// Whether this process may configure the device.
    pub(super) const fn configures(&self) -> bool {
        self.configures
    }

    /// Gives a device that was there before the configured addresses and MTU. What a dead
    /// predecessor gave it is kept where it is configured, and else removed.
    fn adopt(&mut self, netlink: &mut Netlink, config: &Config) -> Result<(), DeviceError> {
        for address in netlink.own_addresses(self.index)? {
            if config.device.addresses.contains(&address) {
                self.addresses.push(address);
            } else {
                netlink.delete_address(self.index, address)?;
            }
        }
        netlink.set_mtu(self.index, u32::from(config.device.mtu.octets()))?;
        let present = netlink.addresses(self.index)?;
        for address in &config.device.addresses {
            if !present.contains(address) {
                netlink.add_address(self.index, *address)?;
                self.addresses.push(*address);
            }
        }
        netlink.set_up(self.index, true)?;
        Ok(())
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if !self.stays || self.addresses.is_empty() {
            return;
        }
        let mut netlink = match Netlink::open() {
            Ok(netlink) => netlink,
            Err(error) => return warn!("the node's addresses stay behind: {error}"),
        };
        for address in &self.addresses {
            if let Err(error) = netlink.delete_address(self.index, *address)
                && !error.is_not_found()
            {
                warn!("left behind: {error}");
            }
        }
    }
}
