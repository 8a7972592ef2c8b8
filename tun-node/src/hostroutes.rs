//! The host's side of the overlay, kept as it should be: the kernel's routes to the device, the
//! device itself, and an eye on the underlay.
//!
//! ```text
//!  tables (epoch) ──> desired routes ─┐
//!                                     ├─> Plan (pure) ──> changes ─┐
//!  kernel: routes, links, addresses ──┘                            ├─ one netlink socket ─> kernel
//!          (events, listings)       ──> device: up? MTU? addresses?┘
//! ```
//!
//! One thread, "host"; no packet waits for it.
//!
//! - *Routes.* Every prefix that the tables lead into a tunnel has a route to the device, with the
//!   path MTU where that is smaller than the device's; every prefix of a peer that is reached
//!   without encapsulation has one over the underlay. They carry Warren's own protocol number,
//!   [`crate::netlink::PROTOCOL`]. What somebody else deletes is put back; what a dead predecessor
//!   left is kept where it is right and deleted where it is not; what belongs to somebody else is
//!   never touched (`plan.rs`).
//! - *Device.* Set down, given another MTU, robbed of an address: set right at once. Deleted, or
//!   moved to another namespace: the node ends with one line.
//! - *Underlay.* Routes over it follow a link that is renamed, made again or down for a while. An
//!   underlay address that is on no interface is an alarm until it returns; the sockets are bound
//!   to the address and go on by themselves. Where the configuration names an interface, another
//!   address there is told to the control plane, which takes it up.
//!
//! Many changes of the kernel's tables go without an event: a link that goes down takes its IPv4
//! routes along in silence. So an event of a link or an address that matters leads to a look at
//! the whole, and an overrun does too.

mod plan;
mod wire;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use ipnet::IpNet;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use parking_lot::RwLock;
use tracing::{debug, warn};
use warren_core::tables::{NextHop, Tables};
use warren_core::units::{Epoch, Mtu};

use crate::config::{Config, underlay_of};
use crate::netlink::{ListedRoute, Netlink, NetlinkError, Route};
use crate::plane::PlaneSender;
use crate::rib::TablesReader;
use plan::Plan;
use wire::{Heard, Wire};

/// What the thread is made of.
#[derive(Debug)]
pub struct HostParts {
    /// The node's configuration.
    pub config: Config,
    /// Which routes there are.
    pub tables: TablesReader,
    /// The index of the device.
    pub device: u32,
    /// Whether this process may configure the device and is to.
    pub configures: bool,
    /// Whether the device stays when the node ends, and its routes with it.
    pub stays: bool,
    /// Takes the sentence that ends the node.
    pub failed: Sender<String>,
    /// Who reads the configuration again when an interface that it names has another address.
    pub plane: PlaneSender,
}

/// What the thread tells.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HostReport {
    /// What somebody should look at.
    pub alarms: Vec<String>,
    /// Routes of this node in the kernel.
    pub routes: u64,
    /// How often something was set right that somebody else had changed.
    pub repairs: u64,
}

/// Why the host's side could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The netlink socket or the event loop.
    #[error("watching the kernel's routes")]
    Socket(#[from] io::Error),
    /// The kernel refused to tell.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The host sends an overlay prefix elsewhere.
    #[error(
        "this host has a route to {prefix} already ({by}): remove it, or take the prefix out of \
         the configuration"
    )]
    RouteTaken {
        /// The prefix.
        prefix: IpNet,
        /// The route, as `ip route` writes it.
        by: String,
    },
}

/// The running thread. Dropping it ends it and deletes the node's routes.
#[derive(Debug)]
pub struct Host {
    sender: HostSender,
    thread: Option<JoinHandle<()>>,
}

/// What other threads tell the thread.
#[derive(Clone, Debug)]
pub struct HostSender {
    waker: Arc<Waker>,
    orders: Sender<Order>,
}

impl HostSender {
    /// There are new tables. Without being told the thread notices a tenth of a second later.
    pub fn published(&self) {
        // A thread that has ended needs no waking.
        let _ = self.waker.wake();
    }

    /// The node has these addresses on the underlay.
    pub fn set_underlay(&self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        let _ = self.orders.send(Order::Underlay { v4, v6 });
        self.published();
    }

    /// The device should have these addresses and this MTU.
    pub fn set_device(&self, addresses: Vec<IpNet>, mtu: Mtu) {
        let _ = self.orders.send(Order::Device { addresses, mtu });
        self.published();
    }
}

#[derive(Debug)]
enum Order {
    Device {
        addresses: Vec<IpNet>,
        mtu: Mtu,
    },
    Underlay {
        v4: Option<Ipv4Addr>,
        v6: Option<Ipv6Addr>,
    },
    Stop,
}

impl Host {
    /// Makes the routes of the configuration, then starts the thread, which makes those that
    /// sources told and keeps them all. `published` shows how it goes.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub fn start(parts: HostParts, published: Arc<RwLock<HostReport>>) -> Result<Self, HostError> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (orders, given) = crossbeam_channel::unbounded();
        let mut core = Core::new(parts, published)?;
        let socket = core.wire.as_fd().as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&socket), SOCKET, Interest::READABLE)?;
        core.begin()?;
        let thread = std::thread::Builder::new().name("host".to_owned());
        let thread = thread.spawn(move || core.run(poll, &given))?;
        Ok(Self {
            sender: HostSender { waker, orders },
            thread: Some(thread),
        })
    }

    /// For those who publish tables or change the device.
    #[must_use]
    pub fn sender(&self) -> HostSender {
        self.sender.clone()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.sender.orders.send(Order::Stop);
        self.sender.published();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The kernel routes that lead the overlay's prefixes to the device. What this node owns itself
/// is not among them: its addresses bring their routes along, and the rest lies behind other
/// devices.
#[must_use]
pub fn device_routes(mtu: Mtu, tables: &Tables) -> Vec<Route> {
    let routes = tables.routes();
    routes
        .filter_map(|(prefix, next_hop)| device_route(mtu, prefix, next_hop))
        .collect()
}

fn device_route(device_mtu: Mtu, prefix: IpNet, next_hop: &NextHop) -> Option<Route> {
    let tunnels = match next_hop {
        NextHop::Tunnel(tunnel) => std::slice::from_ref(tunnel),
        NextHop::EqualCost(tunnels) => tunnels,
        // It is the engine that drops and counts these.
        NextHop::Blackhole | NextHop::Prohibit => &[],
        NextHop::Direct { .. } | NextHop::Local => return None,
    };
    let least = tunnels.iter().map(|tunnel| tunnel.mtu).min();
    let least = least.filter(|mtu| *mtu < device_mtu);
    Some(Route {
        mtu: least.map(|mtu| u32::from(mtu.octets())),
        ..Route::new(prefix)
    })
}

/// The way over the underlay to a peer that is reached without encapsulation: device and router.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Direct {
    device: u32,
    gateway: IpAddr,
}

struct Core {
    config: Config,
    tables: TablesReader,
    seen: Option<Epoch>,
    device: u32,
    addresses: Vec<IpNet>,
    mtu: Mtu,
    configures: bool,
    stays: bool,
    failed: Sender<String>,
    plane: PlaneSender,
    wire: Wire,
    netlink: Netlink,
    plan: Plan,
    /// Ways over the underlay, as far as they were asked for.
    directs: HashMap<IpAddr, Option<Direct>>,
    /// Underlay addresses that are on no interface.
    missing: BTreeSet<IpAddr>,
    /// What is to be looked at.
    look: Look,
    looked_at: Option<Instant>,
    /// When the underlay is looked at once more.
    again_at: Option<Instant>,
    retried_at: Instant,
    listed_at: Instant,
    /// Whether the last turn changed a route.
    has_changed: bool,
    last_error: Option<String>,
    is_gone: bool,
    /// Whether the device is to be changed because somebody said so.
    is_told: bool,
    report: HostReport,
    published: Arc<RwLock<HostReport>>,
}

/// Which parts of the kernel's state may have changed.
#[derive(Clone, Copy, Debug, Default)]
struct Look {
    device: bool,
    underlay: bool,
    /// How the underlay leads to peers.
    ways: bool,
}

impl Core {
    fn new(parts: HostParts, published: Arc<RwLock<HostReport>>) -> Result<Self, HostError> {
        Ok(Self {
            // Before the first listing, so that nothing between the two is missed.
            wire: Wire::open()?,
            netlink: Netlink::open()?,
            addresses: parts.config.device.addresses.clone(),
            mtu: parts.config.device.mtu,
            config: parts.config,
            tables: parts.tables,
            seen: None,
            device: parts.device,
            configures: parts.configures,
            stays: parts.stays,
            failed: parts.failed,
            plane: parts.plane,
            plan: Plan::default(),
            directs: HashMap::new(),
            missing: BTreeSet::new(),
            look: Look {
                underlay: true,
                ..Look::default()
            },
            looked_at: None,
            again_at: None,
            retried_at: Instant::now(),
            listed_at: Instant::now(),
            has_changed: false,
            last_error: None,
            is_gone: false,
            is_told: false,
            report: HostReport::default(),
            published,
        })
    }

    /// Lists what is there and makes the routes of the configuration, of which none may be taken.
    fn begin(&mut self) -> Result<(), HostError> {
        let configured: BTreeSet<IpNet> = configured_prefixes(&self.config).collect();
        let tables = self.tables.tables();
        if self.stays {
            // Those of a predecessor that are right are many and stay.
            self.desire(tables.routes());
        } else {
            let found = configured.iter();
            self.desire(found.filter_map(|prefix| Some((*prefix, tables.route(*prefix)?))));
        }
        self.list()?;
        self.change()?;
        if self.plan.is_listing_wanted() {
            self.list()?;
            self.change()?;
        }
        let mut all = self.plan.taken();
        let taken = all.find(|(prefix, _)| configured.contains(prefix));
        let taken = taken.map(|(prefix, by)| (prefix, in_words(by)));
        drop(all);
        if let Some((prefix, by)) = taken {
            self.clean();
            return Err(HostError::RouteTaken { prefix, by });
        }
        self.publish();
        Ok(())
    }

    fn run(mut self, mut poll: Poll, orders: &Receiver<Order>) {
        let mut events = Events::with_capacity(8);
        let mut heard = Vec::new();
        loop {
            let mut patience = match self.turn(&mut heard) {
                Ok(()) => {
                    self.last_error = None;
                    self.patience()
                }
                Err(error) => {
                    self.plan.want_listing();
                    self.failing(&error.to_string());
                    RETRY
                }
            };
            self.publish();
            if self.has_changed {
                // Somebody who undoes every change at once gets an answer a hundred times a
                // second, and what he does in between is one answer.
                std::thread::sleep(CHANGE_LEAST);
                patience = CHANGE_LEAST;
            }
            if let Err(error) = poll.poll(&mut events, Some(patience))
                && error.kind() != io::ErrorKind::Interrupted
            {
                return warn!("the kernel's routes are watched no more: {error}");
            }
            for order in orders.try_iter() {
                match order {
                    Order::Device { addresses, mtu } => self.set_device(addresses, mtu),
                    Order::Underlay { v4, v6 } => self.set_underlay(v4, v6),
                    Order::Stop => return self.clean(),
                }
            }
        }
    }

    /// Hears what there is, looks at what may have changed, and sets it right.
    fn turn(&mut self, heard: &mut Vec<Heard>) -> Result<(), HostError> {
        self.has_changed = false;
        self.wire.hear(heard)?;
        for one in heard.drain(..) {
            self.handle(one);
        }
        if self.again_at.is_some_and(|at| at <= Instant::now()) {
            self.again_at = None;
            self.look.underlay = true;
        }
        let may_look = self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_LEAST);
        if may_look && self.look.device {
            self.look.device = false;
            self.looked_at = Some(Instant::now());
            self.look_at_device()?;
        }
        if may_look && self.look.underlay {
            self.look.underlay = false;
            self.looked_at = Some(Instant::now());
            self.look_at_underlay()?;
        }
        if may_look && self.look.ways {
            self.look.ways = false;
            self.looked_at = Some(Instant::now());
            self.directs.clear();
            self.seen = None;
        }
        let newest = self.tables.newer_than(self.seen.unwrap_or_default());
        if self.seen.is_none() || newest.is_some() {
            let tables = self.tables.tables();
            self.seen = Some(tables.epoch());
            self.desire(tables.routes());
        }
        if self.retried_at.elapsed() >= RETRY {
            self.retried_at = Instant::now();
            self.plan.retry();
        }
        if self.look.device {
            // What goes by a device that may be down would only be refused.
            return Ok(());
        }
        let may_list = self.listed_at.elapsed() >= LISTING_LEAST;
        if self.plan.is_listing_wanted() {
            if !may_list {
                return Ok(());
            }
            self.list()?;
        }
        self.change()
    }

    /// Says an error, and says it again only after another one or none.
    fn failing(&mut self, error: &str) {
        if self.last_error.as_deref() != Some(error) {
            warn!("the kernel's routes: {error}; it is tried again");
            self.last_error = Some(error.to_owned());
        }
    }

    /// How long nothing needs to be done.
    fn patience(&self) -> Duration {
        if self.look.device || self.look.underlay || self.look.ways || self.plan.is_listing_wanted()
        {
            return LOOK_LEAST;
        }
        TABLES_LOOK
    }

    fn handle(&mut self, heard: Heard) {
        match heard {
            Heard::Link(link) if link.index == self.device => self.look.device = true,
            Heard::LinkGone(index) if index == self.device => self.look.device = true,
            // A link of that name or index may carry the underlay.
            Heard::Link(_) | Heard::LinkGone(_) => self.look_twice_at_underlay(),
            Heard::Address { device, .. } if device == self.device => self.look.device = true,
            Heard::Address { .. } => self.look_twice_at_underlay(),
            Heard::Route(event) => {
                let is_ours = self.plan.handle_event(event);
                if is_ours {
                    self.report.repairs += 1;
                } else {
                    // It may lead to a peer, or out of this host.
                    self.look.ways |= !self.directs.is_empty();
                    self.look.underlay |= !self.config.node.follows.is_empty();
                }
            }
            Heard::Overrun => {
                self.plan.want_listing();
                self.look = Look {
                    device: true,
                    underlay: true,
                    ways: true,
                };
            }
        }
    }

    /// Has the underlay looked at now and a little later: the kernel tells of an address before
    /// it adds or removes the local route, which is what is asked for.
    fn look_twice_at_underlay(&mut self) {
        self.look.underlay = true;
        self.again_at = Some(Instant::now() + LOOK_AGAIN);
    }

    fn set_underlay(&mut self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        let node = &mut self.config.node;
        (node.underlay_v4, node.underlay_v6) = (v4, v6);
        self.missing.clear();
        self.look.underlay = true;
    }

    fn set_device(&mut self, addresses: Vec<IpNet>, mtu: Mtu) {
        let before = std::mem::replace(&mut self.addresses, addresses);
        let gone = before.iter().filter(|old| !self.addresses.contains(old));
        for address in gone.filter(|_| self.configures) {
            if let Err(error) = self.netlink.delete_address(self.device, *address)
                && !error.is_not_found()
            {
                warn!("an address of the device stays behind: {error}");
            }
        }
        self.mtu = mtu;
        self.look.device = true;
        // The MTU of routes is told by what it is less than.
        self.seen = None;
        // Its own changes are not repairs.
        self.is_told = true;
    }

    /// Sets the device right.
    fn look_at_device(&mut self) -> Result<(), HostError> {
        let name = &self.config.device.name;
        let link = match self.netlink.link_at(self.device) {
            Ok(link) => link,
            Err(error) if error.is_not_found() => {
                if !self.is_gone {
                    self.is_gone = true;
                    let sentence = format!(
                        "the device {name} is gone: somebody deleted it or moved it away; the \
                         node ends"
                    );
                    let _ = self.failed.try_send(sentence);
                }
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if !self.configures {
            return Ok(());
        }
        let mut repaired = Vec::new();
        let wanted = u32::from(self.mtu.octets());
        let mut is_up = link.is_up;
        if link.mtu != wanted {
            if link.mtu < u32::from(Mtu::MIN_V6.octets()) && is_up {
                // The kernel took IPv6 from the link. It comes back with settings of its own,
                // which only a link that is down takes otherwise.
                self.netlink.set_up(self.device, false)?;
                is_up = false;
            }
            self.netlink.set_mtu(self.device, wanted)?;
            repaired.push("its MTU was changed");
        }
        if !is_up {
            match self.netlink.disable_link_local(self.device) {
                Err(error) if !error.is_unsupported() => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
            self.netlink.set_up(self.device, true)?;
            repaired.extend((!link.is_up).then_some("it was set down"));
        }
        let present = self.netlink.addresses(self.device)?;
        let addresses = self.addresses.iter();
        for address in addresses.filter(|address| !present.contains(address)) {
            self.netlink.add_address(self.device, *address)?;
            repaired.push("an address was removed");
        }
        let was_told = std::mem::take(&mut self.is_told);
        if let Some(first) = repaired.first() {
            if !was_told {
                self.report.repairs += 1;
                warn!(device = %name, "set right: {first}");
            }
            // Its routes may have gone in silence.
            self.plan.want_listing();
        }
        Ok(())
    }

    /// Looks where the underlay is.
    fn look_at_underlay(&mut self) -> Result<(), HostError> {
        let node = &self.config.node;
        let addresses = [
            node.underlay_v4.map(IpAddr::V4),
            node.underlay_v6.map(IpAddr::V6),
        ];
        for address in addresses.into_iter().flatten() {
            if self.netlink.is_local(address)? {
                if self.missing.remove(&address) {
                    self.report.repairs += 1;
                    warn!("the underlay has its address again");
                }
            } else if self.missing.insert(address) {
                warn!("the underlay has lost its address; the node goes on when it returns");
            }
        }
        let (node, own) = (&self.config.node, addresses);
        if let Ok(found) = underlay_of(&node.follows, &node.servers)
            && found.iter().any(|found| !own.contains(&Some(*found)))
        {
            self.plane.reload_soon();
        }
        if !self.directs.is_empty() {
            // Routes over a link that was down are gone, and its index may be another one.
            self.look.ways = true;
            self.plan.want_listing();
        }
        Ok(())
    }

    /// Tells the plan which routes there should be.
    fn desire<'t>(&mut self, routes: impl Iterator<Item = (IpNet, &'t NextHop)>) {
        if !self.configures || !self.config.device.routes {
            return;
        }
        let mut desired = Vec::new();
        for (prefix, next_hop) in routes {
            if let Some(route) = device_route(self.mtu, prefix, next_hop) {
                let device = self.device;
                desired.push(ListedRoute { route, device });
            } else if let NextHop::Direct {
                gateway: Some(peer),
            } = next_hop
                && let Some(direct) = self.direct(*peer)
            {
                let route = Route {
                    gateway: Some(direct.gateway),
                    ..Route::new(prefix)
                };
                let device = direct.device;
                desired.push(ListedRoute { route, device });
            }
        }
        self.plan.set_desired(desired);
    }

    /// How the underlay reaches a peer; `None` where it does not, or would by the overlay.
    fn direct(&mut self, peer: IpAddr) -> Option<Direct> {
        if let Some(known) = self.directs.get(&peer) {
            return *known;
        }
        let path = self.netlink.path_to(peer).ok().flatten();
        let path = path.filter(|path| path.device != self.device);
        let direct = path.map(|path| Direct {
            device: path.device,
            gateway: path.gateway.unwrap_or(peer),
        });
        self.directs.insert(peer, direct);
        direct
    }

    fn list(&mut self) -> Result<(), HostError> {
        self.listed_at = Instant::now();
        let table = self.netlink.routes(None, None)?;
        let device = self.device;
        // A route of our number without a router through another device is that of another node
        // on this host, to its own device.
        let is_ours =
            |listed: &ListedRoute| listed.device == device || listed.route.gateway.is_some();
        self.plan.handle_listed(table, is_ours);
        Ok(())
    }

    fn change(&mut self) -> Result<(), HostError> {
        let mut heard = Vec::new();
        loop {
            let actions = self.plan.poll(CHANGES_AT_ONCE);
            if actions.is_empty() || !self.configures {
                break;
            }
            self.has_changed = true;
            for (action, why) in self.wire.change(&actions, &mut heard)? {
                debug!(?action, ?why, "refused");
                self.plan.handle_refused(&action, why);
            }
        }
        // What came among the answers is handled in the next turn at the latest.
        for one in heard {
            self.handle(one);
        }
        Ok(())
    }

    /// Deletes what would stay behind.
    fn clean(&mut self) {
        // What goes with the device needs no deleting.
        let kept = self
            .plan
            .ours()
            .filter(|own| !self.stays && own.device == self.device);
        let kept: Vec<ListedRoute> = kept.cloned().collect();
        self.plan.set_desired(kept);
        if let Err(error) = self.change() {
            warn!("the node's routes stay behind: {error}");
        }
        if self.stays && self.configures {
            // Those that a source gave it; the others are taken back by who gave them.
            let configured = &self.config.device.addresses;
            let learned = self
                .addresses
                .iter()
                .filter(|one| !configured.contains(one));
            for address in learned {
                let _ = self.netlink.delete_address(self.device, *address);
            }
        }
    }

    fn publish(&mut self) {
        let mut alarms: Vec<String> = self
            .missing
            .iter()
            .map(|address| {
                format!(
                    "underlay address {address} is on no interface: peers are not reached until \
                     it returns or the configuration names another one"
                )
            })
            .collect();
        let mut taken = self.plan.taken();
        if let Some((first, by)) = taken.next() {
            let more = taken.count();
            let of_others = match more {
                0 => String::new(),
                _ => format!(" and {more} more"),
            };
            alarms.push(format!(
                "somebody else's route leads {first}{of_others} elsewhere ({}): this host reaches \
                 the overlay there only when it is gone",
                in_words(by)
            ));
        }
        if self.plan.has_failed() {
            alarms.push("the kernel refuses some routes; they are tried again".to_owned());
        }
        let routes = u64::try_from(self.plan.ours().count()).unwrap_or(u64::MAX);
        if (routes, &alarms) != (self.report.routes, &self.report.alarms)
            || self.report.repairs != self.published.read().repairs
        {
            if alarms.len() > self.report.alarms.len() {
                warn!("something is to be looked at: `tun-node status` says what");
            }
            (self.report.routes, self.report.alarms) = (routes, alarms);
            *self.published.write() = self.report.clone();
        }
    }
}

/// Where a route leads, as `ip route` writes it.
fn in_words(route: Option<&ListedRoute>) -> String {
    let Some(ListedRoute { route, device }) = route else {
        return "through another device".to_owned();
    };
    let link = Netlink::open().and_then(|mut netlink| netlink.link_at(*device));
    let mut words = match link {
        Ok(link) => format!("dev {}", link.name),
        Err(_) => "through no device or several".to_owned(),
    };
    if let Some(gateway) = route.gateway {
        words.push_str(&format!(" via {gateway}"));
    }
    words
}

/// What the configuration itself routes: peers' prefixes and static routes.
fn configured_prefixes(config: &Config) -> impl Iterator<Item = IpNet> {
    let peers = config.peers.iter().flat_map(|peer| &peer.prefixes);
    let routes = config.routes.iter().map(|route| &route.prefix);
    peers.chain(routes).copied()
}

const WAKER: Token = Token(0);
const SOCKET: Token = Token(1);

/// Between two looks at the kernel's state, so that a fight with somebody else costs little.
const LOOK_LEAST: Duration = Duration::from_millis(50);

/// From an event of the underlay to the second look at it.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// Between two listings of the whole table, which may be long.
const LISTING_LEAST: Duration = Duration::from_millis(200);

/// Between two rounds of changes.
const CHANGE_LEAST: Duration = Duration::from_millis(10);

/// How often the tables are looked at without being told to: one atomic load.
const TABLES_LOOK: Duration = Duration::from_millis(100);

/// When the kernel is asked again for what it refused.
const RETRY: Duration = Duration::from_secs(1);

/// Changes before events are looked at again.
const CHANGES_AT_ONCE: usize = 4096;
