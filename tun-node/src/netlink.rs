//! Links, addresses and routes of the kernel, by netlink, one call at a time.
//!
//! A thin synchronous face over `rtnetlink`, whose interface is asynchronous and
//! changes with every release: nothing of it shows. Set-up and the rib use it;
//! the packet path never does.
//!
//! A [`Netlink`] speaks to the network namespace in which the calling thread was
//! when it was opened, for as long as it lives. It runs its own single-threaded
//! runtime on the caller's thread, starts no thread, and must not be used from
//! within another tokio runtime.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the enums of rtnetlink mirror the kernel's, most of which is none of our business"
)]

mod holder;
pub(crate) mod ipsec;
pub(crate) use holder::device_of;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use futures_util::{Stream, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressProtocol,
};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

/// A route of ours: a prefix behind a device.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Route {
    /// Destinations. Host bits are cut off.
    pub prefix: IpNet,
    /// Router on the way; `None` when the device itself leads there, as a TUN
    /// does.
    pub gateway: Option<IpAddr>,
    /// Whether the gateway counts as reachable without a connected prefix.
    pub onlink: bool,
    /// Source address for packets that have none yet.
    pub source: Option<IpAddr>,
    /// MTU in octets for this prefix, where it is less than the device's.
    pub mtu: Option<u32>,
    /// Metric, the lower the better; `None` for the kernel's choice (0 for IPv4,
    /// 1024 for IPv6).
    pub metric: Option<u32>,
    /// Who made it: a number of `/etc/iproute2/rt_protos`.
    pub protocol: u8,
}

impl Route {
    /// A route through the device alone, marked as ours.
    #[must_use]
    pub const fn new(prefix: IpNet) -> Self {
        Self {
            prefix,
            gateway: None,
            onlink: false,
            source: None,
            mtu: None,
            metric: None,
            protocol: PROTOCOL,
        }
    }
}

/// A route as the kernel lists it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListedRoute {
    /// The route.
    pub route: Route,
    /// Index of the device, 0 where it has none or several.
    pub device: u32,
}

/// How the kernel would send to a destination.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PathTo {
    /// Index of the device it leaves by.
    pub device: u32,
    /// Router on the way.
    pub gateway: Option<IpAddr>,
    /// Source address that an unbound socket would use.
    pub source: Option<IpAddr>,
    /// MTU in octets that the route carries, without the device's own.
    pub mtu: Option<u32>,
}

/// A link as the kernel lists it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// Index, unique in the namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in octets.
    pub mtu: u32,
    /// Whether it is set up (`IFF_UP`).
    pub is_up: bool,
}

/// A connection to the routing tables of one network namespace.
pub struct Netlink {
    handle: Handle,
    runtime: Runtime,
}

impl Netlink {
    /// Connects, in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// The socket or the runtime cannot be made.
    pub fn open() -> Result<Self, NetlinkError> {
        let failed = |source| NetlinkError::new("netlink connection", String::new(), source);
        let runtime = Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(failed)?;
        let entered = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
        drop(entered);
        runtime.spawn(connection);
        Ok(Self { handle, runtime })
    }

    /// Finds a link by its name.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::is_not_found`] when there is none.
    pub fn link(&mut self, name: &str) -> Result<Link, NetlinkError> {
        let request = self.handle.link().get().match_name(name.to_owned());
        let found = self.first(request.execute());
        let message = named("looking for link", name, found)?;
        Ok(read_link(&message))
    }

    /// Finds a link by its index.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::is_not_found`] when there is none.
    pub fn link_at(&mut self, device: u32) -> Result<Link, NetlinkError> {
        let request = self.handle.link().get().match_index(device);
        let found = self.first(request.execute());
        let message = named("looking for link", device, found)?;
        Ok(read_link(&message))
    }

    /// Packets that each queue of a link holds, and packets that were dropped for want of room
    /// since it was made.
    ///
    /// # Errors
    ///
    /// As [`link`](Self::link).
    pub fn queue(&mut self, name: &str) -> Result<(u64, u64), NetlinkError> {
        let request = self.handle.link().get().match_name(name.to_owned());
        let found = self.first(request.execute());
        let message = named("looking for link", name, found)?;
        let (mut packets, mut drops) = (0, 0);
        for attribute in &message.attributes {
            if let LinkAttribute::TxQueueLen(length) = attribute {
                packets = u64::from(*length);
            } else if let LinkAttribute::Stats64(stats) = attribute {
                drops = stats.tx_dropped;
            }
        }
        Ok((packets, drops))
    }

    /// The index of a link.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::is_not_found`] when there is none.
    pub fn link_index(&mut self, name: &str) -> Result<u32, NetlinkError> {
        self.link(name).map(|link| link.index)
    }

    /// Every link of the namespace.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let request = self.handle.link().get();
        let found = self
            .runtime
            .block_on(request.execute().try_collect::<Vec<_>>());
        let messages = named("listing links", "", found)?;
        Ok(messages.iter().map(read_link).collect())
    }

    /// Sets the MTU, in octets.
    ///
    /// # Errors
    ///
    /// `InvalidInput` (EINVAL) for an MTU that the device cannot have.
    pub fn set_mtu(&mut self, device: u32, mtu: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(device).mtu(mtu).build();
        let request = self.handle.link().change(message);
        named(
            "setting the MTU of link",
            device,
            self.runtime.block_on(request.execute()),
        )
    }

    /// Sets the octets of the largest packet that the link is given uncut (`IFLA_GSO_MAX_SIZE`),
    /// and how many packets may wait in it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set_queue(
        &mut self,
        device: u32,
        gso_max_octets: u32,
        packets: u32,
    ) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(device)
            .txqueuelen(packets)
            .append_extra_attribute(LinkAttribute::GsoMaxSize(gso_max_octets))
            .build();
        let request = self.handle.link().change(message);
        named(
            "setting the queue of link",
            device,
            self.runtime.block_on(request.execute()),
        )
    }

    /// Sets the link up or down.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set_up(&mut self, device: u32, up: bool) -> Result<(), NetlinkError> {
        let builder = LinkUnspec::new_with_index(device);
        let message = if up { builder.up() } else { builder.down() }.build();
        let request = self.handle.link().change(message);
        named(
            "setting the state of link",
            device,
            self.runtime.block_on(request.execute()),
        )
    }

    /// Keeps the kernel from giving the link an IPv6 link-local address of its
    /// own, and so from soliciting routers on it. To be called while it is down.
    ///
    /// # Errors
    ///
    /// `Unsupported` (EAFNOSUPPORT) where the kernel has no IPv6.
    pub fn disable_link_local(&mut self, device: u32) -> Result<(), NetlinkError> {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let attribute = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
        let message = LinkUnspec::new_with_index(device)
            .append_extra_attribute(attribute)
            .build();
        let request = self.handle.link().change(message);
        named(
            "switching off link-local addresses of link",
            device,
            self.runtime.block_on(request.execute()),
        )
    }

    /// Deletes the link.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::is_not_found`] when there is none; `Unsupported`
    /// (EOPNOTSUPP) for a link that only its maker can delete.
    pub fn delete_link(&mut self, device: u32) -> Result<(), NetlinkError> {
        let request = self.handle.link().del(device);
        named(
            "deleting link",
            device,
            self.runtime.block_on(request.execute()),
        )
    }

    /// Gives a link an address, or leaves it where it has it already. For an IPv6
    /// address no duplicates are looked for: on a TUN nobody could answer. See
    /// [`Self::await_local`] for when it is usable.
    ///
    /// # Errors
    ///
    /// The kernel's; `AddrNotAvailable` or `PermissionDenied` for IPv6 where the
    /// kernel has it switched off.
    pub fn add_address(&mut self, device: u32, net: IpNet) -> Result<(), NetlinkError> {
        let address = self.handle.address();
        let mut request = address.add(device, net.addr(), net.prefix_len()).replace();
        let message = request.message_mut();
        if net.addr().is_ipv6() {
            message.header.flags |= AddressHeaderFlags::Nodad;
        }
        let ours = AddressProtocol::from(PROTOCOL);
        message.attributes.push(AddressAttribute::Protocol(ours));
        named(
            "adding address",
            net,
            self.runtime.block_on(request.execute()),
        )
    }

    /// Returns once the kernel takes packets to `address` as its own.
    ///
    /// An IPv6 address is in the list at once, but a work queue of the kernel
    /// makes its route, usually within a millisecond; until then packets that
    /// arrive are dropped. The link must be up.
    ///
    /// # Errors
    ///
    /// The kernel's; `TimedOut` after two seconds.
    pub fn await_local(&mut self, address: IpAddr) -> Result<(), NetlinkError> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let message = self.route_to(None, address)?;
            if message.is_some_and(|message| message.header.kind == RouteType::Local) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let source = io::ErrorKind::TimedOut.into();
                let object = address.to_string();
                return Err(NetlinkError::new("waiting for address", object, source));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Whether the kernel takes packets to `address` as its own.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn is_local(&mut self, address: IpAddr) -> Result<bool, NetlinkError> {
        let message = self.route_to(None, address)?;
        Ok(message.is_some_and(|message| message.header.kind == RouteType::Local))
    }

    /// Takes an address from a link.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::is_not_found`] when it does not have it.
    pub fn delete_address(&mut self, device: u32, net: IpNet) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.index = device;
        message.header.prefix_len = net.prefix_len();
        message.header.family = match net {
            IpNet::V4(_) => rtnetlink::packet_route::AddressFamily::Inet,
            IpNet::V6(_) => rtnetlink::packet_route::AddressFamily::Inet6,
        };
        message.attributes.push(AddressAttribute::Local(net.addr()));
        let request = self.handle.address().del(message);
        named(
            "deleting address",
            net,
            self.runtime.block_on(request.execute()),
        )
    }

    /// The addresses of a link.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn addresses(&mut self, device: u32) -> Result<Vec<IpNet>, NetlinkError> {
        let messages = self.address_messages(device)?;
        Ok(messages.iter().filter_map(read_address).collect())
    }

    /// Those addresses of a link that [`Self::add_address`] gave it. Kernels before 5.18 do not
    /// remember that: none, then.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn own_addresses(&mut self, device: u32) -> Result<Vec<IpNet>, NetlinkError> {
        let mut messages = self.address_messages(device)?;
        let ours = AddressAttribute::Protocol(AddressProtocol::from(PROTOCOL));
        messages.retain(|message| message.attributes.contains(&ours));
        Ok(messages.iter().filter_map(read_address).collect())
    }

    fn address_messages(&mut self, device: u32) -> Result<Vec<AddressMessage>, NetlinkError> {
        let request = self.handle.address().get().set_link_index_filter(device);
        let found = self
            .runtime
            .block_on(request.execute().try_collect::<Vec<_>>());
        named("listing addresses of link", device, found)
    }

    /// Adds a route through a device.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::is_already_there`] when a route to the prefix with that
    /// metric exists.
    pub fn add_route(&mut self, device: u32, route: &Route) -> Result<(), NetlinkError> {
        let request = self.handle.route().add(write_route(device, route));
        named(
            "adding route",
            route.prefix,
            self.runtime.block_on(request.execute()),
        )
    }

    /// Adds a route through a device, in place of one to the same prefix with
    /// that metric if there is one.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn replace_route(&mut self, device: u32, route: &Route) -> Result<(), NetlinkError> {
        let request = self
            .handle
            .route()
            .add(write_route(device, route))
            .replace();
        named(
            "replacing route",
            route.prefix,
            self.runtime.block_on(request.execute()),
        )
    }

    /// Deletes the route with this prefix, device, metric and protocol.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::is_not_found`] when there is none.
    pub fn delete_route(&mut self, device: u32, route: &Route) -> Result<(), NetlinkError> {
        let request = self.handle.route().del(write_route(device, route));
        named(
            "deleting route",
            route.prefix,
            self.runtime.block_on(request.execute()),
        )
    }

    /// The unicast routes of the main table, both families, in the kernel's
    /// order, through `device` and made by `protocol` where these are given.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn routes(
        &mut self,
        device: Option<u32>,
        protocol: Option<u8>,
    ) -> Result<Vec<ListedRoute>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let request = self.handle.route().get(family);
            let found = self
                .runtime
                .block_on(request.execute().try_collect::<Vec<_>>());
            let messages = named("listing routes", "", found)?;
            routes.extend(messages.iter().filter_map(read_route));
        }
        routes.retain(|listed| {
            device.is_none_or(|device| listed.device == device)
                && protocol.is_none_or(|protocol| listed.route.protocol == protocol)
        });
        Ok(routes)
    }

    /// How the kernel would send to `destination`; `None` where it would not.
    ///
    /// # Errors
    ///
    /// Others of the kernel's than "unreachable".
    pub fn path_to(&mut self, destination: IpAddr) -> Result<Option<PathTo>, NetlinkError> {
        self.path_between(None, destination)
    }

    /// As [`path_to`](Self::path_to), for packets from the address `source`, by which routing rules
    /// may choose.
    ///
    /// # Errors
    ///
    /// As [`path_to`](Self::path_to).
    pub fn path_between(
        &mut self,
        source: Option<IpAddr>,
        destination: IpAddr,
    ) -> Result<Option<PathTo>, NetlinkError> {
        let Some(message) = self.route_to(source, destination)? else {
            return Ok(None);
        };
        let parts = read_route_parts(&message);
        Ok(parts.device.map(|device| PathTo {
            device,
            gateway: parts.gateway,
            source: parts.source,
            mtu: parts.mtu,
        }))
    }

    /// The route that the kernel would use; `None` where there is none.
    fn route_to(
        &self,
        source: Option<IpAddr>,
        destination: IpAddr,
    ) -> Result<Option<RouteMessage>, NetlinkError> {
        let mut message = match destination {
            IpAddr::V4(_) => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            IpAddr::V6(_) => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        let attribute = RouteAttribute::Destination(destination.into());
        message.attributes.push(attribute);
        if let Some(source) = source {
            let attribute = RouteAttribute::Source(source.into());
            message.attributes.push(attribute);
            message.header.source_prefix_length = message.header.destination_prefix_length;
        }
        let request = self.handle.route().get(message);
        let found = self.first(request.execute());
        match named("asking for the route to", destination, found) {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.is_unreachable() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The first answer; not found when there is none.
    fn first<T>(
        &self,
        answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
    ) -> Result<T, rtnetlink::Error> {
        self.runtime.block_on(async {
            let mut answers = std::pin::pin!(answers);
            answers
                .try_next()
                .await?
                .ok_or(rtnetlink::Error::RequestFailed)
        })
    }
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

/// The kernel refused a request: which, on what, why.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}")]
pub struct NetlinkError {
    operation: &'static str,
    object: String,
    source: io::Error,
}

impl NetlinkError {
    const fn new(operation: &'static str, object: String, source: io::Error) -> Self {
        Self {
            operation,
            object,
            source,
        }
    }

    /// The link, address or route does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.is(&[
            libc::ENODEV,
            libc::ENXIO,
            libc::ESRCH,
            libc::ENOENT,
            libc::EADDRNOTAVAIL,
        ])
    }

    /// The address or route exists.
    #[must_use]
    pub fn is_already_there(&self) -> bool {
        self.is(&[libc::EEXIST])
    }

    /// The calling process lacks `CAP_NET_ADMIN` in the namespace.
    #[must_use]
    pub fn is_not_permitted(&self) -> bool {
        self.is(&[libc::EPERM, libc::EACCES])
    }

    /// The kernel was built or started without what was asked for.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        self.is(&[libc::EAFNOSUPPORT, libc::EOPNOTSUPP])
    }

    /// The kernel has no way to the destination, or a route that refuses it.
    fn is_unreachable(&self) -> bool {
        self.is(&[
            libc::ENETUNREACH,
            libc::EHOSTUNREACH,
            libc::EACCES,
            libc::EINVAL,
        ])
    }

    fn is(&self, errnos: &[i32]) -> bool {
        self.source
            .raw_os_error()
            .is_some_and(|errno| errnos.contains(&errno))
    }
}

/// Names operation and object of a failure and finds its errno.
fn named<T>(
    operation: &'static str,
    object: impl fmt::Display,
    outcome: Result<T, rtnetlink::Error>,
) -> Result<T, NetlinkError> {
    outcome.map_err(|error| {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        };
        NetlinkError::new(operation, object.to_string(), source)
    })
}

pub(crate) fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        is_up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name.clone_from(name);
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = *mtu;
        }
    }
    link
}

pub(crate) fn read_address(message: &AddressMessage) -> Option<IpNet> {
    let local = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    };
    let any = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    };
    // IFA_ADDRESS is the peer's on a point-to-point link that names one.
    let found = message.attributes.iter().find_map(local);
    let address = found.or_else(|| message.attributes.iter().find_map(any))?;
    IpNet::new(address, message.header.prefix_len).ok()
}

pub(crate) fn write_route(device: u32, route: &Route) -> RouteMessage {
    let prefix = route.prefix.trunc();
    let mut message = match prefix {
        IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .build(),
    };
    message.header.protocol = RouteProtocol::from(route.protocol);
    // The kernel wants "link" for a directly reached IPv4 prefix, and ignores it
    // for IPv6.
    if route.gateway.is_none() {
        message.header.scope = RouteScope::Link;
    }
    if route.onlink {
        message.header.flags |= RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Oif(device));
    attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
    attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    attributes.extend(route.metric.map(RouteAttribute::Priority));
    attributes.extend(
        route
            .mtu
            .map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])),
    );
    message
}

pub(crate) fn read_route(message: &RouteMessage) -> Option<ListedRoute> {
    let header = &message.header;
    let parts = read_route_parts(message);
    if parts.table.unwrap_or_else(|| header.table.into()) != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    let family = match header.address_family {
        rtnetlink::packet_route::AddressFamily::Inet => crate::sys::address::Family::Ipv4,
        rtnetlink::packet_route::AddressFamily::Inet6 => crate::sys::address::Family::Ipv6,
        _ => return None,
    };
    let address = parts.destination.unwrap_or_else(|| family.unspecified());
    Some(ListedRoute {
        route: Route {
            prefix: IpNet::new(address, header.destination_prefix_length).ok()?,
            gateway: parts.gateway,
            onlink: header.flags.contains(RouteFlags::Onlink),
            source: parts.source,
            mtu: parts.mtu,
            metric: parts.metric,
            protocol: header.protocol.into(),
        },
        device: parts.device.unwrap_or(0),
    })
}

/// The attributes of a route that we look at.
#[derive(Clone, Copy, Debug, Default)]
struct RouteParts {
    destination: Option<IpAddr>,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    device: Option<u32>,
    metric: Option<u32>,
    mtu: Option<u32>,
    table: Option<u32>,
}

fn read_route_parts(message: &RouteMessage) -> RouteParts {
    let mut parts = RouteParts::default();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => parts.destination = ip(address),
            RouteAttribute::Gateway(address) => parts.gateway = ip(address),
            RouteAttribute::PrefSource(address) => parts.source = ip(address),
            RouteAttribute::Oif(index) => parts.device = Some(*index),
            RouteAttribute::Priority(metric) => parts.metric = Some(*metric),
            RouteAttribute::Table(table) => parts.table = Some(*table),
            RouteAttribute::Metrics(metrics) => {
                parts.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    parts
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// The number under which the kernel lists our routes: one that no program of
/// `/etc/iproute2/rt_protos` uses.
pub const PROTOCOL: u8 = 87;

#[cfg(test)]
mod tests;
