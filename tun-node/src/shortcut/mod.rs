//! A short way through the kernel for flows that the node knows: their packets pass between the device
//! and the underlay without coming to user space.
//!
//! ```text
//!              worker: engine ── offers ──> thread "shortcut" ──┐ entries    plane: publication
//!                ▲       │                                      ▼              │ generation
//!  usual way     │       ▼                               ┌─ maps of BPF ───────▼──┐
//!  TUN ──────────┘       └────────> UDP socket           │ departures   arrivals  │
//!   │  egress of the TUN ── outer headers on, redirect ──┴──────> the underlay's device
//!   └─ <──────────────── redirect, outer headers off ── ingress of the underlay's device
//! ```
//!
//! Two programs, each attached to a device (tcx, kernel 6.6) for as long as this process lives. The one
//! at the egress of our TUN does what [`Engine::encap`](warren_core::engine::Engine::encap) does for a
//! known flow, the one at the ingress of the underlay's device what `decap` does. Both know only what
//! an engine decided for packets of the same flow ([`offers`](warren_core::engine::Offer)); a packet
//! that differs in anything that a decision depends on takes the usual way, and so do SYN, FIN and RST, fragments, options, and what is neither TCP nor UDP.
//!
//! An entry says with which generation of the tables it was decided, and holds only as long as that is
//! the published one: whoever publishes changes one number that the programs see ([`Generation`]), so
//! that no packet takes an old way, whatever the workers do. Every packet is counted in memory that the
//! kernel and this process share (`layout.rs`), and so is accounted for as those of the workers.
//!
//! Every encapsulation, with IPv4 outside. Super-packets leave whole, and who cuts them, the underlay's device or
//! the kernel in front of it, leaves the outer UDP checksum as it is. It is zero, which RFC 6935 leaves to the
//! receiver where the outer header is IPv6, but where all segments are of one length: then one checksum is right
//! for each (`sum_of_udp` in `programs/steps.rs`), and a receiver in user space gets them joined to trains, which
//! its worker opens. What has none comes to it one by one. Datagrams that come thick and fast leave by the worker,
//! which joins them to trains; in IP-in-IP, only to a peer that takes datagrams in a row ([`crate::raw::rows`]).
//! Datagrams that arrive as one super-packet take the usual way, too: a program cannot take the kernel's mark of
//! the tunnel off it, and who cuts them for a socket would take them for a tunnel's.
//!
//! The devices' own counters (`ip -s link`) do not see packets at the TUN that take the short way.
//! What takes it passes the host's netfilter output and input rules for the outer packets
//! by, and IPsec; so it is off unless `flow-offload = true`, and while the host has an outbound IPsec
//! policy.

mod entries;
mod layout;
mod paths;
mod programs;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bincode::{Decode, Encode};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::{debug, info};
use warren_core::engine::Offer;
use warren_core::units::{Epoch, Family};

use crate::config::Config;
use crate::counters::{TallyReport, WorkerReport};
use crate::netlink::ipsec::has_ipsec_policy;
use crate::netlink::{Netlink, device_of};
use crate::raw::rows::Rows;
use crate::rib::TablesReader;
use crate::sys::bpf::{self, Instruction, SharedNumbers};
use entries::{Entries, PLACES};
use layout::{PLACE, global};
use paths::Paths;
use programs::Ports;

/// The generation of the tables, as the programs see it.
#[derive(Clone, Debug)]
pub struct Generation(Arc<Mutex<Shown>>);

#[derive(Debug)]
struct Shown {
    numbers: Arc<SharedNumbers>,
    epoch: Epoch,
    is_on: bool,
}

impl Generation {
    fn new(numbers: Arc<SharedNumbers>, epoch: Epoch) -> Self {
        Self(Arc::new(Mutex::new(Shown {
            numbers,
            epoch,
            is_on: false,
        })))
    }

    /// Ends all entries that were made of other tables than those of `epoch`. What a program has
    /// begun on another CPU, it ends.
    pub(crate) fn publish(&self, epoch: Epoch) {
        let mut shown = self.0.lock();
        shown.epoch = epoch;
        shown.show();
    }

    /// Ends all entries, or lets those of the published tables hold again.
    fn turn(&self, is_on: bool) {
        let mut shown = self.0.lock();
        shown.is_on = is_on;
        shown.show();
    }
}

impl Shown {
    fn show(&self) {
        let value = if self.is_on { number(self.epoch) } else { 0 };
        if let Some(shown) = self.numbers.numbers().get(global::GENERATION) {
            shown.store(value, Ordering::SeqCst);
        }
    }
}

/// The generation of an entry that was made of the tables of `epoch`: never zero.
const fn number(epoch: Epoch) -> u64 {
    epoch.0.wrapping_add(1)
}

/// Gives what an engine offers to who makes entries of it.
#[derive(Clone, Debug)]
pub struct OfferSender(Sender<Order>);

impl OfferSender {
    /// Never waits: what does not fit is offered again.
    pub(crate) fn offer(&self, offer: Offer, epoch: Epoch, source_port: Option<u16>) {
        let _ = self.0.try_send(Order::Offer {
            offer,
            epoch,
            source_port,
        });
    }
}

/// Packets of a flow before it is offered: a connection of fewer packets is not worth an entry.
pub(crate) const OFFER_AFTER: u32 = 8;

enum Order {
    Offer {
        offer: Offer,
        epoch: Epoch,
        /// Of the socket that the packets of a departure leave by.
        source_port: Option<u16>,
    },
    /// The node's address or its ports are others.
    Follow(Box<Wanted>),
    Stop,
}

/// The short way; it ends with this value.
#[derive(Debug)]
pub struct Shortcut {
    shared: Arc<Shared>,
    generation: Generation,
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    entries: Mutex<Entries>,
    /// Why nothing takes the short way at present; none when it is open.
    closed: Mutex<Option<String>>,
}

/// Why there is no short way here.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}{}", bpf::hint(source))]
pub struct ShortcutError {
    what: &'static str,
    source: io::Error,
}

impl ShortcutError {
    /// Whether it is about what the host has at present, and not about what the kernel can do.
    fn is_passing(&self) -> bool {
        let kind = self.source.kind();
        matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::Unsupported)
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> ShortcutError {
    move |source| ShortcutError { what, source }
}

impl Shortcut {
    /// Attaches the programs to the device of that name, and to the one that has the underlay's
    /// address, in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// [`ShortcutError`]; all packets take the usual way then.
    pub fn open(
        device: &str,
        config: &Config,
        tables: TablesReader,
        rows: Arc<Rows>,
    ) -> Result<Self, ShortcutError> {
        let other = |what| move |e| failed(what)(io::Error::other(e));
        let mut netlink = Netlink::open().map_err(other("netlink"))?;
        let device = netlink.link_index(device).map_err(other("device"))?;
        let count = NonZeroUsize::MIN.saturating_add(PLACE * (PLACES as usize + 1) - 1);
        let numbers = Arc::new(SharedNumbers::new(count).map_err(failed("map of numbers"))?);
        let entries = Entries::new(Arc::clone(&numbers)).map_err(failed("map of flows"))?;
        let generation = Generation::new(Arc::clone(&numbers), tables.tables().epoch());
        let programs = Programs {
            device,
            numbers: Arc::clone(&numbers),
            egress: attach_egress(&entries, &numbers, device)?,
            ingress: None,
        };
        let (orders, taken) = crossbeam_channel::bounded(ORDERS_MAX);
        let shared = Arc::new(Shared {
            entries: Mutex::new(entries),
            closed: Mutex::new(None),
        });
        let mut keeper = Keeper {
            shared: Arc::clone(&shared),
            generation: generation.clone(),
            programs,
            tables,
            paths: Paths::new(netlink, rows),
            wanted: Wanted::of(config),
            is_on: None,
        };
        match keeper.attach() {
            Ok(()) => {}
            // What is not there yet is looked for again.
            Err(error) if error.is_passing() => {}
            Err(error) => return Err(error),
        }
        // The thread opens a connection of its own: one belongs to the thread that made it.
        let thread = std::thread::Builder::new().name("shortcut".to_owned());
        let thread = thread
            .spawn(move || keeper.run(&taken))
            .map_err(failed("thread"))?;
        Ok(Self {
            shared,
            generation,
            orders,
            thread: Some(thread),
        })
    }

    /// For the workers.
    #[must_use]
    pub fn sender(&self) -> OfferSender {
        OfferSender(self.orders.clone())
    }

    /// For who publishes the tables.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation.clone()
    }

    /// The node is another one, or receives something else.
    pub fn follow(&self, config: &Config) {
        let _ = self
            .orders
            .send(Order::Follow(Box::new(Wanted::of(config))));
    }

    /// What took the short way, in the words of a worker.
    #[must_use]
    pub fn counted(&self) -> WorkerReport {
        self.shared.entries.lock().report()
    }

    /// How it is.
    #[must_use]
    pub fn report(&self) -> ShortcutReport {
        let closed = self.shared.closed.lock().clone();
        let mut entries = self.shared.entries.lock();
        let counted = entries.report();
        ShortcutReport {
            on: closed.is_none(),
            because: closed.unwrap_or_default(),
            flows: u32::try_from(entries.flows()).unwrap_or(u32::MAX),
            encap: counted.encap.forwarded,
            decap: counted.decap.forwarded,
            failed: counted.balance().dropped,
        }
    }
}

impl Drop for Shortcut {
    fn drop(&mut self) {
        self.generation.turn(false);
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How the short way is.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct ShortcutReport {
    /// Whether packets may take it.
    pub on: bool,
    /// Why not; empty when it is on.
    pub because: String,
    /// Flows that take it, one for each direction.
    pub flows: u32,
    /// Packets that left by it, with their octets as sent.
    pub encap: TallyReport,
    /// Packets that were delivered by it, with their octets as delivered.
    pub decap: TallyReport,
    /// Packets that were dropped on it.
    pub failed: u64,
}

/// Where tunnels' packets come to.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Wanted {
    address: Option<Ipv4Addr>,
    ports: Ports,
    /// Whether IP-in-IP is received, too.
    ip: bool,
}

impl Wanted {
    fn of(config: &Config) -> Self {
        let address = match config.node.underlay(Family::V4) {
            Some(IpAddr::V4(address)) => Some(address),
            Some(IpAddr::V6(_)) | None => None,
        };
        let receive = &config.receive;
        Self {
            address,
            ports: Ports {
                ethernet: [receive.vxlan.as_slice(), &receive.geneve].concat(),
                gpe: receive.vxlan_gpe.clone(),
                fou_gue: receive.fou_gue.clone(),
            },
            ip: config.uses_ipip(),
        }
    }
}

/// What is attached.
#[derive(Debug)]
struct Programs {
    device: u32,
    numbers: Arc<SharedNumbers>,
    #[allow(dead_code, reason = "while it is open the program is attached")]
    egress: OwnedFd,
    /// With the device that it is attached to.
    ingress: Option<(OwnedFd, u32)>,
}

impl Programs {
    /// Attaches the program for what is `wanted`, in the place of the one before.
    fn follow(&mut self, shared: &Shared, wanted: &Wanted) -> Result<(), ShortcutError> {
        let none = |why: &str| io::Error::new(io::ErrorKind::Unsupported, why.to_owned());
        let Some(address) = wanted.address else {
            return Err(failed("underlay")(none("it has no IPv4 address")));
        };
        if wanted.ports.are_none() && !wanted.ip {
            return Err(failed("receive")(none("nothing")));
        }
        let device = device_of(address).map_err(failed("the underlay's device"))?;
        if let Some((_, attached)) = &self.ingress
            && *attached == device
        {
            return Ok(());
        }
        let entries = shared.entries.lock();
        let maps = programs::Maps {
            flows: entries.arrivals(),
            numbers: self.numbers.as_fd(),
            places: PLACES,
        };
        let program = programs::ingress(maps, self.device, &wanted.ports);
        let program = load(&program).map_err(failed("BPF program of the ingress"))?;
        drop(entries);
        let attached = bpf::attach_ingress(program.as_fd(), device)
            .map_err(failed("tcx attachment at the ingress"))?;
        self.ingress = Some((attached, device));
        Ok(())
    }
}

fn attach_egress(
    entries: &Entries,
    numbers: &SharedNumbers,
    device: u32,
) -> Result<OwnedFd, ShortcutError> {
    let maps = programs::Maps {
        flows: entries.departures(),
        numbers: numbers.as_fd(),
        places: PLACES,
    };
    let program = load(&programs::egress(maps)).map_err(failed("BPF program of the egress"))?;
    bpf::attach_egress(program.as_fd(), device).map_err(failed("tcx attachment at the egress"))
}

/// Loads a program; what the verifier says of one that it refuses is logged.
fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    bpf::load_classifier(program).inspect_err(|error| {
        if error.raw_os_error() == Some(libc::EPERM) {
            return;
        }
        let mut log = vec![0; 1 << 20];
        let _ = bpf::load_classifier_logged(program, &mut log);
        let end = log.iter().position(|octet| *octet == 0).unwrap_or(0);
        let said = String::from_utf8_lossy(log.get(..end).unwrap_or_default());
        debug!(%said, "the verifier refuses a program");
    })
}

/// The thread that makes entries and looks after them.
#[derive(Debug)]
struct Keeper {
    shared: Arc<Shared>,
    generation: Generation,
    programs: Programs,
    tables: TablesReader,
    paths: Paths,
    wanted: Wanted,
    is_on: Option<bool>,
}

impl Keeper {
    fn run(mut self, orders: &Receiver<Order>) {
        self.look();
        let mut next = Instant::now() + TICK;
        loop {
            match orders.recv_deadline(next) {
                Ok(Order::Offer {
                    offer,
                    epoch,
                    source_port,
                }) => self.take(&offer, epoch, source_port),
                Ok(Order::Follow(to)) => {
                    if *to != self.wanted {
                        self.wanted = *to;
                        self.programs.ingress = None;
                        self.look();
                    }
                }
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            // However many orders there are.
            if Instant::now() >= next {
                self.look();
                next = Instant::now() + TICK;
            }
        }
    }

    fn take(&mut self, offer: &Offer, epoch: Epoch, source_port: Option<u16>) {
        let tables = self.tables.tables();
        // Decided by tables that were replaced: it would not hold.
        if self.is_on != Some(true) || tables.epoch() != epoch {
            return;
        }
        let mut entries = self.shared.entries.lock();
        match offer {
            Offer::Departure(offer) => {
                let Some(path) = self.paths.path(offer.link.local, offer.link.remote) else {
                    return;
                };
                entries.depart(offer, &tables, source_port, path);
            }
            Offer::Delivery(offer) => entries.arrive(offer, &tables),
        }
    }

    /// What is looked after once a second.
    fn look(&mut self) {
        // The address may have come to another device.
        let attached = self.attach();
        let closed = if let Err(error) = attached {
            self.programs.ingress = None;
            Some(error.to_string())
        } else if has_ipsec_policy() {
            Some("the host has an outbound IPsec policy, which it would pass by".to_owned())
        } else {
            None
        };
        let is_on = closed.is_none();
        if self.is_on != Some(is_on) {
            self.is_on = Some(is_on);
            self.generation.turn(is_on);
            info!(on = is_on, because = ?closed, "the short way through the kernel");
        }
        *self.shared.closed.lock() = closed;
        let mut entries = self.shared.entries.lock();
        entries.sweep();
        let used = entries.ends();
        // To ask takes a while, in which others may want to know what was counted.
        drop(entries);
        let changed = self.paths.refresh(&used);
        if !changed.is_empty() {
            self.shared.entries.lock().leave(&changed);
        }
    }

    fn attach(&mut self) -> Result<(), ShortcutError> {
        self.programs.follow(&self.shared, &self.wanted)
    }
}

const TICK: Duration = Duration::from_secs(1);

/// Offers that may wait.
const ORDERS_MAX: usize = 256;

#[cfg(test)]
mod tests;
