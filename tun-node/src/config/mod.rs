//! The configuration of `tun-node run --config FILE`.
//!
//! A file is TOML. It becomes a [`Config`] of plain typed values in three steps, each of which
//! knows only the one before it:
//!
//! 1. `format.rs` reads the TOML tree: sections, keys, types; `value.rs` judges each value alone.
//! 2. `validate.rs` judges the values together: owners, overlaps, MTUs, loops.
//!    `build.rs` fills in the defaults and makes the [`Config`].
//! 3. What is wrong, all of it and not only the first, comes back as a [`ConfigError`]:
//!    `file:line:column: sentence` for each, sorted by line (`error.rs`).
//!
//! Only the file's own text is judged. Nothing here opens a socket, asks the kernel or reads the clock,
//! so the same text gives the same answer on every host, which is what `tun-node check` needs.
//!
//! Choices that a reader will look for:
//!
//! - A syntax error is reported alone: after it, keys and values cannot be trusted.
//! - Loopback underlay addresses (the demo, tests) need `allow-loopback-underlay = true`.
//! - No underlay address, own or a peer's, may fall into the overlay: the longest prefix that
//!   covers it must be a route with `action = "direct"`, or there must be none. A default route into the overlay
//!   therefore needs such exceptions.
//! - Prefixes of two owners may not overlap unless `allow-overlap = true` lets the longest one
//!   win (Calico's borrowed addresses). A default route is exempt: every prefix is inside it.
//! - A route through a peer leads packets to it; it does not make the peer an owner. Only
//!   what stands under the peer's `prefixes` is accepted as a source from it.

mod build;
mod encap;
mod error;
mod example;
mod files;
mod format;
mod mac;
mod sources;
mod summary;
mod underlay;
mod validate;
mod value;

use std::fmt;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use toml::de::DeTable;
use warren_core::encap::Encapsulation;
use warren_core::tables::{EcnMode, Local, Receive};
use warren_core::units::{Family, MacAddr, Mtu};

pub use error::{ConfigError, Problem};
pub use example::example_config;
pub use files::{ConfigErrors, Loaded, RouteFile, route_files};
pub use mac::{calico_vtep_mac, warren_vtep_mac};
pub use sources::{Etcd, Files, Guard, Kubernetes, KubernetesNetwork, Sources};
pub(crate) use underlay::ip;
pub use underlay::underlay_of;

/// Everything a node is told by its file; consistent, or it would not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node.
    pub node: Node,
    /// Its overlay device.
    pub device: Device,
    /// The encapsulations it receives, at least one; FOU and GUE may share a port.
    pub receive: Receive,
    /// Those it sends to, in the order of the file.
    pub peers: Vec<Peer>,
    /// Static routes besides the peers' own prefixes.
    pub routes: Vec<Route>,
    /// The control socket's path; `None` leaves the choice to whoever opens it.
    pub control_socket: Option<PathBuf>,
    /// The address and TCP port of the metrics page, if wanted.
    pub metrics_listen: Option<SocketAddr>,
    /// How much is logged.
    pub log_level: LogLevel,
    /// Sizes of the data path.
    pub worker: Worker,
    /// How the paths to the peers are watched.
    pub probing: Probing,
    /// Where further routes come from.
    pub sources: Sources,
    /// Where the node keeps what it remembers across a restart.
    pub state_file: StateFile,
}

impl Config {
    /// Reads and validates the file at `path`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is larger than 4 MiB or not UTF-8, and whatever
    /// [`Config::parse`] finds.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_text(path)?, &path.display().to_string())
    }

    /// Validates `text`; `file` is the name that problems are reported under.
    ///
    /// # Errors
    ///
    /// Every problem found, sorted by line.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        if text.len() > FILE_OCTETS_MAX {
            return Err(ConfigError::whole_file(file, TOO_LARGE.to_owned()));
        }
        let mut problems = error::Problems::default();
        match judge(text, &mut problems) {
            Some((config, _)) if problems.is_empty() => Ok(config),
            Some(_) | None => {
                debug_assert!(!problems.is_empty(), "refused without a reason");
                Err(problems.into_error(file, text))
            }
        }
    }
}

/// Where the peers and routes of a text begin, in their order.
#[derive(Debug)]
struct Starts {
    peers: Vec<usize>,
    routes: Vec<usize>,
}

/// Judges a whole text; the result counts only when no problem was found.
fn judge(text: &str, problems: &mut error::Problems) -> Option<(Config, Starts)> {
    let tree = match DeTable::parse(text) {
        Ok(tree) => tree,
        Err(first) => {
            // The parser keeps every error it recovers from, as many as there are octets.
            let all = if text.len() <= RECOVERED_OCTETS_MAX {
                DeTable::parse_recoverable(text).1
            } else {
                vec![first]
            };
            format::syntax_errors(&all, text, problems);
            return None;
        }
    };
    let draft = format::read(tree.get_ref(), problems);
    let lines = error::Lines::new(text);
    let config = validate::validate(&draft, &lines, problems)?;
    let starts = Starts {
        peers: draft.peers.iter().map(|peer| peer.at).collect(),
        routes: draft.routes.iter().map(|route| route.at).collect(),
    };
    Some((config, starts))
}

/// Reads a file of at most 4 MiB of UTF-8.
fn read_text(path: &Path) -> Result<String, ConfigError> {
    let file = path.display().to_string();
    let whole = |sentence| ConfigError::whole_file(&file, sentence);
    let cannot_read = |error: std::io::Error| {
        whole(format!(
            "cannot be read: {error}; check the path and its permissions"
        ))
    };
    let source = std::fs::File::open(path).map_err(cannot_read)?;
    let mut octets = Vec::new();
    // One octet more than is taken, so that a larger file shows itself without being read.
    source
        .take(FILE_OCTETS_MAX as u64 + 1)
        .read_to_end(&mut octets)
        .map_err(cannot_read)?;
    if octets.len() > FILE_OCTETS_MAX {
        return Err(whole(TOO_LARGE.to_owned()));
    }
    String::from_utf8(octets).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let octets = error.as_bytes().get(..at).unwrap_or_default();
        let mut problems = error::Problems::default();
        problems.push(at, "this is not UTF-8; save the file as UTF-8 text");
        problems.into_error(&file, &String::from_utf8_lossy(octets))
    })
}

impl Peer {
    /// Whether what is sent to it first is IP-in-IP.
    #[must_use]
    pub const fn is_in_ip(&self) -> bool {
        matches!(self.encapsulation, Encapsulation::Ipip)
    }
}

impl Config {
    /// Whether IP-in-IP is received, or sent first to any peer of the file.
    #[must_use]
    pub fn uses_ipip(&self) -> bool {
        self.receive.ipip || self.peers.iter().any(Peer::is_in_ip)
    }

    /// This node as the library's tables want it.
    #[must_use]
    pub fn local(&self) -> Local {
        let underlay = [Family::V4, Family::V6].map(|family| self.node.underlay(family));
        Local {
            addresses: self.device.addresses.iter().map(IpNet::addr).collect(),
            underlay: underlay.into_iter().flatten().collect(),
            vtep_mac: self.node.vtep_mac,
            receive: self.receive.clone(),
        }
    }
}

/// Where the state is kept that a restart begins with; see [`crate::snapshot`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StateFile {
    /// In the usual place, where there is something to remember.
    #[default]
    Usual,
    /// Nowhere.
    None,
    /// In this file.
    At(PathBuf),
}

/// Who this node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name; letters, digits, `.`, `_`, `-`, at most 63.
    pub name: String,
    /// The outer IPv4 source address; at least one of the two families is there.
    pub underlay_v4: Option<Ipv4Addr>,
    /// The outer IPv6 source address.
    pub underlay_v6: Option<Ipv6Addr>,
    /// The names that the two addresses follow: interfaces, or `auto`. Empty where the addresses
    /// are written.
    pub follows: Vec<String>,
    /// The members of `[etcd]` as `host:port`: the ways to them tell what `auto` means where there
    /// is no default route.
    pub servers: Vec<String>,
    /// The inner Ethernet address of its VTEP.
    pub vtep_mac: MacAddr,
    /// The overlay prefixes it owns, without host bits.
    pub prefixes: Vec<IpNet>,
}

impl Node {
    /// Whether it is called by its address because nobody gave it a name.
    pub(crate) fn is_named_by_address(&self) -> bool {
        let own = [self.underlay(Family::V4), self.underlay(Family::V6)];
        let mut own = own.into_iter().flatten();
        own.any(|address| value::name_by_address(address) == self.name)
    }

    /// The outer source address of `family`.
    #[must_use]
    pub fn underlay(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.underlay_v4.map(IpAddr::V4),
            Family::V6 => self.underlay_v6.map(IpAddr::V6),
        }
    }
}

/// The overlay device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// At most 15 octets.
    pub name: String,
    /// Its addresses with the length of the network they are in; host bits are the host's.
    pub addresses: Vec<IpNet>,
    /// The largest inner packet.
    pub mtu: Mtu,
    /// Whether `mtu` follows from `underlay_mtu` and was not written.
    pub mtu_computed: bool,
    /// The largest outer packet that the underlay carries whole.
    pub underlay_mtu: Mtu,
    /// Whether the segment size that TCP connections announce is lowered to what fits the path.
    pub clamp_mss: bool,
    /// Who makes it and who removes it.
    pub mode: DeviceMode,
    /// Whether the host's own routes to the overlay are made and kept.
    pub routes: bool,
}

/// Who makes the overlay device and who removes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceMode {
    /// The node makes it at start and removes it at its end.
    #[default]
    Create,
    /// The node makes it if it is not there, and leaves it.
    Persistent,
    /// It must be there (a persistent TUN device that the user owns); it is left.
    Attach,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name, unlike that of any other and of this node.
    pub name: String,
    /// Its outer address; this node has an underlay address of the same family.
    pub address: IpAddr,
    /// What packets to it are sent in, with its port, VNI and VTEP MAC address.
    pub encapsulation: Encapsulation,
    /// What else packets to it may be sent in, by preference, when the first does not pass.
    pub alternatives: Vec<Encapsulation>,
    /// When packets to it are encapsulated at all.
    pub mode: PeerMode,
    /// An overlay address of it that answers an ICMP echo; for probes through peers that do not
    /// know ours. The first address of its first prefix where none is given.
    pub probe_address: Option<IpAddr>,
    /// Whether it is probed, where [`Probing::enabled`] says so in general.
    pub probe: bool,
    /// The overlay prefixes it owns, without host bits; never empty.
    pub prefixes: Vec<IpNet>,
    /// The largest inner packet sent to it.
    pub mtu: Mtu,
    /// What happens to the DSCP.
    pub dscp: Dscp,
    /// What happens to the ECN field.
    pub ecn: EcnMode,
}

/// When packets to a peer are encapsulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PeerMode {
    /// Always.
    #[default]
    Always,
    /// Only where a router lies between: a peer on the underlay's own link gets them as they are.
    CrossSubnet,
    /// Never: the underlay knows the way. Encapsulated packets of the peer are still taken.
    Direct,
}

/// What the outer DSCP is made of, RFC 2983.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dscp {
    /// The outer DSCP is this value, 0..=63; the inner one is left alone at both ends.
    Pipe(u8),
    /// Copied out by encap and back by decap.
    Uniform,
    /// The outer DSCP follows from the inner one by a table; decap leaves the inner one alone.
    Map(DscpMap),
}

/// Outer DSCP by inner DSCP; what was not written maps to 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DscpMap([u8; 64]);

impl DscpMap {
    /// The outer DSCP, 0..=63, for each inner DSCP from 0 to 63.
    #[must_use]
    pub const fn table(&self) -> &[u8; 64] {
        &self.0
    }

    fn set(&mut self, inner: u8, outer: u8) {
        if let Some(entry) = self.0.get_mut(usize::from(inner)) {
            *entry = outer;
        }
    }
}

impl Default for DscpMap {
    fn default() -> Self {
        Self([0; 64])
    }
}

/// A static route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads, without host bits; no owner has the same prefix.
    pub prefix: IpNet,
    /// How.
    pub next: RouteNext,
}

/// What a static route does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteNext {
    /// Sends it to one of these peers, chosen by flow hash: indices into [`Config::peers`],
    /// never empty, none twice.
    Via(Vec<usize>),
    /// Does as the action says.
    Action(RouteAction),
}

/// A route that leads to no peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteAction {
    /// Drops silently.
    Blackhole,
    /// Drops and answers "administratively prohibited".
    Prohibit,
    /// Keeps the prefix out of the overlay: the host's own routes carry it.
    Direct,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What ends or harms the node.
    Error,
    /// And what someone should look at.
    #[default]
    Warn,
    /// And what changed.
    Info,
    /// And addresses.
    Debug,
    /// And packets.
    Trace,
}

/// Sizes of the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worker {
    /// How many workers there are, each a thread with a queue of the device and sockets of its own;
    /// twice as many threads where the directions are apart.
    pub count: WorkerCount,
    /// Whether a worker carries both directions.
    pub directions: Directions,
    /// Whether each thread keeps to one CPU: the first one to the first that the process may use,
    /// and so on, round and round.
    pub pin: bool,
    /// Distinct outer UDP source ports, 1..=1024; each flow keeps to one.
    pub source_ports: u16,
    /// Frames handled in one turn, 1..=1024.
    pub batch: u16,
    /// Receive buffer of each underlay socket in octets; `None` is 16 MiB. The kernel may allow less.
    pub receive_buffer_octets: Option<u32>,
    /// Send buffer of each underlay socket in octets; `None` is 4 MiB. The kernel may allow less.
    pub send_buffer_octets: Option<u32>,
    /// Whether the kernel cuts trains of datagrams for us (`UDP_SEGMENT`), where it can.
    pub gso: bool,
    /// Whether super-packets and datagrams in a row may leave in IP whole, behind the host's netfilter
    /// output rules.
    pub ipip_offload: bool,
    /// Whether packets of known flows may pass through the kernel, behind the host's netfilter rules
    /// for the outer packets.
    pub flow_offload: bool,
    /// Whether datagrams may come from the device by shared memory, past its counters and its queueing
    /// discipline.
    pub packet_ring: bool,
    /// Whether the kernel joins datagrams for us (`UDP_GRO`), where it can, and peers may send some in a row in IP.
    pub gro: bool,
    /// Whether the device hands over uncut UDP packets too, where the kernel can.
    pub uso: bool,
    /// Whether the device hands over and takes uncut and unfinished packets, with a virtio header.
    pub vnet_header: bool,
    /// Microseconds that a worker goes on looking for packets before it sleeps; 0 for none.
    pub busy_poll_us: u32,
}

/// How the two directions are spread over threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Directions {
    /// Apart where the underlay's device has frames cut to the MTU and there are two CPUs for each
    /// worker, and then on CPUs of their own while they are busy; together elsewhere, on every second
    /// CPU while they carry bulk.
    #[default]
    Auto,
    /// Each worker carries both.
    Together,
    /// Twice as many workers, of each two one for the way out and one for the way in.
    Apart,
}

/// How many workers a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerCount {
    /// So many, 1 to [`MAX`](Self::MAX).
    Fixed(u16),
    /// One for every two CPUs that the process may use, at least one and at most eight: whoever
    /// sends and receives the packets needs CPUs too.
    Auto,
}

impl Worker {
    /// Whether the kernel may cut what leaves in IP: known flows pass it whole anyhow.
    #[must_use]
    pub const fn offloads_ipip(&self) -> bool {
        self.ipip_offload || self.flow_offload
    }
}

impl WorkerCount {
    /// The most workers: the queues of a device are 256, the counters of each are kept for ever.
    pub const MAX: u16 = 64;

    /// The number on a machine where the process may use `cpus`.
    #[must_use]
    pub fn on(self, cpus: usize) -> u16 {
        match self {
            Self::Fixed(count) => count.clamp(1, Self::MAX),
            Self::Auto => u16::try_from(cpus / 2)
                .unwrap_or(AUTO_MAX)
                .clamp(1, AUTO_MAX),
        }
    }
}

impl Default for WorkerCount {
    fn default() -> Self {
        Self::Fixed(1)
    }
}

/// The most that "auto" makes; who wants more has measured that it helps.
const AUTO_MAX: u16 = 8;

/// How the paths to the peers are watched: how often a probe is sent in every encapsulation of a
/// peer, and what follows from its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probing {
    /// Whether peers are probed at all. Without, the first encapsulation is used and the path MTU
    /// is what the configuration says.
    pub enabled: bool,
    /// Between two probes, and how long one of the path MTU is waited for; 50 ms to a minute.
    pub interval: Duration,
    /// An encapsulation is down when nothing was heard for so many intervals; 2..=100.
    pub down_after: u32,
    /// One that was down is used again after so many answers in a row; 1..=100.
    pub up_after: u32,
    /// Between two confirmations that the path MTU still passes.
    pub confirm_interval: Duration,
    /// After so long a larger path MTU is tried again.
    pub raise_interval: Duration,
}

impl Default for Probing {
    /// Down within 1.6 s, back after 2 s; a black hole found within 2.2 s, a raised path within 32 s.
    fn default() -> Self {
        Self {
            enabled: true,
            interval: Duration::from_millis(400),
            down_after: 4,
            up_after: 5,
            confirm_interval: Duration::from_secs(1),
            raise_interval: Duration::from_secs(30),
        }
    }
}

/// A VTEP MAC address as the file gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum VtepMac {
    Given(MacAddr),
    Warren,
    Calico,
}

impl VtepMac {
    /// The address of the node called `name` over an underlay of `family`.
    fn of(self, name: &str, family: Family) -> MacAddr {
        match self {
            Self::Given(mac) => mac,
            Self::Warren => warren_vtep_mac(name),
            Self::Calico => calico_vtep_mac(name, family == Family::V6),
        }
    }
}

impl DeviceMode {
    const NAMES: [(&'static str, Self); 3] = [
        ("create", Self::Create),
        ("persistent", Self::Persistent),
        ("attach", Self::Attach),
    ];
}

impl PeerMode {
    const NAMES: [(&'static str, Self); 3] = [
        ("always", Self::Always),
        ("cross-subnet", Self::CrossSubnet),
        ("direct", Self::Direct),
    ];
}

impl RouteAction {
    const NAMES: [(&'static str, Self); 3] = [
        ("blackhole", Self::Blackhole),
        ("prohibit", Self::Prohibit),
        ("direct", Self::Direct),
    ];
}

impl LogLevel {
    const NAMES: [(&'static str, Self); 6] = [
        ("off", Self::Off),
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];
}

/// Writes a word as the file spells it.
macro_rules! displays_its_name {
    ($($word:ty),*) => {$(
        impl fmt::Display for $word {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let name = Self::NAMES.iter().find(|(_, value)| value == self);
                f.write_str(name.map_or("", |(name, _)| name))
            }
        }
    )*};
}
displays_its_name!(DeviceMode, PeerMode, RouteAction, LogLevel);

const FILE_OCTETS_MAX: usize = 4 << 20;
/// Up to this size every syntax error of a file is reported, above it the first.
const RECOVERED_OCTETS_MAX: usize = 256 << 10;
const TOO_LARGE: &str = "is larger than 4 MiB; a configuration is smaller, check the path";
