//! The network's configuration: `<prefix>/config` in etcd, or flannel's `net-conf.json`.
//!
//! Every check of flannel's is made, whichever source the text is from; flannel makes them for
//! etcd only. Two of ours come on top: a network that is loopback or multicast, and a `SubnetMin`
//! behind `SubnetMax`, are refused.
//!
//! Where `Backend` is absent flannel's documentation and its code differ; this follows the code
//! (`udp`), since that is what the other nodes run.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use warren_core::units::Vni;

use super::fault::Refused;
use super::json::Object;
use super::{LeaseBackend, VXLAN_PORT};

/// The configuration of a network, checked and with its defaults filled in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetConf {
    /// The IPv4 part; absent when disabled.
    pub v4: Option<Stack<Ipv4Net>>,
    /// The IPv6 part; absent when disabled. At least one is there.
    pub v6: Option<Stack<Ipv6Net>>,
    /// Whether nodes are to use nftables instead of iptables.
    pub nftables: bool,
    /// How packets travel.
    pub backend: Backend,
}

/// One family of a network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stack<N: Prefix> {
    /// What the network holds, without host bits.
    pub network: N,
    /// The length of each node's subnet.
    pub subnet_len: u8,
    /// The first subnet that is handed out.
    pub subnet_min: N::Address,
    /// The last one.
    pub subnet_max: N::Address,
}

/// How packets of the network travel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Backend {
    /// In VXLAN.
    Vxlan(VxlanBackend),
    /// In IP, protocol 4.
    Ipip {
        /// Whether nodes on one link do without. Not here: [`NetConf::without_effect`].
        direct_routing: bool,
    },
    /// As they are, over a common link.
    HostGw,
    /// In UDP.
    Udp {
        /// The port at both ends.
        port: u16,
    },
}

/// The options of VXLAN.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VxlanBackend {
    /// The network.
    pub vni: Vni,
    /// The UDP port; what the kernel takes by default when none is written.
    pub port: u16,
    /// Whether the group policy extension is on. Not here: [`NetConf::without_effect`].
    pub gbp: bool,
    /// Whether devices learn.
    pub learning: bool,
    /// Whether nodes on one link do without. Not here: [`NetConf::without_effect`].
    pub direct_routing: bool,
    /// The underlay's MTU, where it is not that of the interface.
    pub mtu: Option<u16>,
}

/// Why a configuration is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NetConfError {
    /// It is not JSON of the right shape.
    #[error("the network configuration is unusable: {0}")]
    Json(#[from] Refused),
    /// A member is missing or makes no sense.
    #[error("the network configuration is unusable: {member}: {problem}")]
    Member {
        /// The member's name.
        member: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl NetConf {
    /// Reads and checks the JSON.
    ///
    /// # Errors
    ///
    /// [`NetConfError`], naming the member.
    pub fn parse(octets: &[u8]) -> Result<Self, NetConfError> {
        let object = Object::read(octets)?;
        let v4 = if object.boolean("EnableIPv4")?.unwrap_or(true) {
            Some(stack::<Ipv4Net>(&object)?)
        } else {
            None
        };
        let v6 = if object.boolean("EnableIPv6")?.unwrap_or(false) {
            Some(stack::<Ipv6Net>(&object)?)
        } else {
            None
        };
        if v4.is_none() && v6.is_none() {
            return Err(wrong("EnableIPv4", "neither IPv4 nor IPv6 is enabled"));
        }
        let nftables = object.boolean("EnableNFTables")?.unwrap_or(false);
        Ok(Self {
            v4,
            v6,
            nftables,
            backend: Backend::read(object.object("Backend")?)?,
        })
    }

    /// What it asks for and this node does not do: each member with what that comes to.
    pub fn without_effect(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let (direct_routing, gbp) = match self.backend {
            Backend::Vxlan(vxlan) => (vxlan.direct_routing, vxlan.gbp),
            Backend::Ipip { direct_routing } => (direct_routing, false),
            Backend::HostGw | Backend::Udp { .. } => (false, false),
        };
        [
            (direct_routing, ("DirectRouting", NO_DIRECT_ROUTING)),
            (gbp, ("GBP", NO_GBP)),
        ]
        .into_iter()
        .filter_map(|(is_asked_for, what)| is_asked_for.then_some(what))
    }
}

const NO_DIRECT_ROUTING: &str = "packets to nodes on the same link are encapsulated, too, and where \
     the host has strict reverse path filtering, what these send as it is does not arrive";
const NO_GBP: &str = "no group policy is sent or looked at";

impl Backend {
    /// The name of the type.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::Ipip { .. } => "ipip",
            Self::HostGw => "host-gw",
            Self::Udp { .. } => "udp",
        }
    }

    /// Whether nodes of this network write leases of `backend`.
    #[must_use]
    pub const fn writes(self, backend: &LeaseBackend) -> bool {
        matches!(
            (self, backend),
            (Self::Vxlan(_), LeaseBackend::Vxlan { .. })
                | (Self::Ipip { .. }, LeaseBackend::Ipip)
                | (Self::HostGw, LeaseBackend::HostGw)
                | (Self::Udp { .. }, LeaseBackend::Udp)
        )
    }

    fn read(object: Option<Object>) -> Result<Self, NetConfError> {
        let Some(object) = object else {
            return Ok(Self::Udp { port: UDP_PORT });
        };
        let kind = match object.text("Type")? {
            Some(kind) => kind.to_ascii_lowercase(),
            None => return Err(wrong("Backend", "Type is missing")),
        };
        let flag = |name| -> Result<bool, Refused> { Ok(object.boolean(name)?.unwrap_or(false)) };
        match kind.as_str() {
            "vxlan" => {
                let vni = object.number("VNI")?.unwrap_or(1);
                let vni = u32::try_from(vni).ok().and_then(Vni::new);
                let vni = vni.ok_or_else(|| wrong("VNI", "more than 24 bits"))?;
                let port = port(&object)?;
                let mtu = match object.number("MTU")?.unwrap_or(0) {
                    0 => None,
                    mtu => match u16::try_from(mtu) {
                        Ok(mtu @ MTU_MIN..) => Some(mtu),
                        Ok(_) | Err(_) => return Err(wrong("MTU", format!("{mtu}"))),
                    },
                };
                Ok(Self::Vxlan(VxlanBackend {
                    vni,
                    port: port.unwrap_or(VXLAN_PORT),
                    gbp: flag("GBP")?,
                    learning: flag("Learning")?,
                    direct_routing: flag("DirectRouting")?,
                    mtu,
                }))
            }
            "ipip" => Ok(Self::Ipip {
                direct_routing: flag("DirectRouting")?,
            }),
            "host-gw" => Ok(Self::HostGw),
            "udp" => Ok(Self::Udp {
                port: port(&object)?.unwrap_or(UDP_PORT),
            }),
            "wireguard" | "ipsec" | "alloc" | "extension" => {
                Err(wrong("Backend", format!("{kind} is not available here")))
            }
            _ => {
                let shown = super::printable(kind.as_bytes());
                Err(wrong("Backend", format!("there is no type {shown}")))
            }
        }
    }
}

/// A port; `None` when absent or 0.
fn port(object: &Object) -> Result<Option<u16>, NetConfError> {
    let port = object.number("Port")?.unwrap_or(0);
    let port = u16::try_from(port).map_err(|_| wrong("Port", format!("{port}")))?;
    Ok((port != 0).then_some(port))
}

/// What the two families have in common and what they call it.
pub trait Prefix: Copy + Ord + std::fmt::Debug + std::fmt::Display + std::str::FromStr {
    /// An address of the family.
    type Address: Copy + Eq + Ord + std::fmt::Debug + std::fmt::Display + std::str::FromStr;
    /// The member with the network.
    const NETWORK: &'static str;
    /// The member with the subnets' length.
    const SUBNET_LEN: &'static str;
    /// The member with the first subnet.
    const SUBNET_MIN: &'static str;
    /// The member with the last subnet.
    const SUBNET_MAX: &'static str;
    /// The length of subnets where none is written and the network has room.
    const DEFAULT_LEN: u8;
    /// The longest subnet.
    const LEN_MAX: u8;
    /// The longest network.
    const NETWORK_LEN_MAX: u8;
    /// The bits of an address.
    const BITS: u8;

    /// The length.
    fn prefix_len(self) -> u8;
    /// Without host bits.
    fn cut(self) -> Self;
    /// Whether an address is inside.
    fn holds(self, address: Self::Address) -> bool;
    /// Whether packets of a node can have such addresses.
    fn is_usable(self) -> bool;
    /// The prefix of `len` bits at `address`, with host bits; `None` beyond the family's bits.
    fn at(address: Self::Address, len: u8) -> Option<Self>;
    /// The first address.
    fn first(self) -> Self::Address;
    /// The address `steps` prefixes of `len` bits behind `address`; saturates.
    fn step(address: Self::Address, steps: u64, len: u8) -> Self::Address;
    /// The first address of the last prefix of `len` bits inside.
    fn last(self, len: u8) -> Self::Address;
    /// How many prefixes of `len` bits lie from `first` to `last`, both included; saturates.
    fn count(first: Self::Address, last: Self::Address, len: u8) -> u64;
}

macro_rules! prefix {
    ($net:ty, $address:ty, $number:ty, $names:expr, $default:expr, $len_max:expr, $network_max:expr) => {
        impl Prefix for $net {
            type Address = $address;
            const NETWORK: &'static str = $names[0];
            const SUBNET_LEN: &'static str = $names[1];
            const SUBNET_MIN: &'static str = $names[2];
            const SUBNET_MAX: &'static str = $names[3];
            const DEFAULT_LEN: u8 = $default;
            const LEN_MAX: u8 = $len_max;
            const NETWORK_LEN_MAX: u8 = $network_max;
            const BITS: u8 = (size_of::<$number>() * 8) as u8;

            fn prefix_len(self) -> u8 {
                <$net>::prefix_len(&self)
            }
            fn cut(self) -> Self {
                self.trunc()
            }
            fn holds(self, address: $address) -> bool {
                self.contains(&address)
            }
            fn is_usable(self) -> bool {
                let address = self.addr();
                !address.is_loopback() && !address.is_multicast()
            }
            fn at(address: $address, len: u8) -> Option<Self> {
                Self::new(address, len).ok()
            }
            fn first(self) -> $address {
                self.network()
            }
            fn step(address: $address, steps: u64, len: u8) -> $address {
                let steps = <$number>::try_from(steps).unwrap_or(<$number>::MAX);
                let size = size_of_prefix(len, Self::BITS);
                let size = <$number>::try_from(size).unwrap_or(<$number>::MAX);
                let offset = steps.saturating_mul(size);
                <$address>::from(<$number>::from(address).saturating_add(offset))
            }
            fn last(self, len: u8) -> $address {
                Self::at(self.broadcast_address(), len)
                    .map_or_else(|| self.network(), |last| last.network())
            }
            fn count(first: $address, last: $address, len: u8) -> u64 {
                let (first, last) = (<$number>::from(first), <$number>::from(last));
                let Some(span) = last.checked_sub(first) else {
                    return 0;
                };
                let subnets = u128::from(span) / size_of_prefix(len, Self::BITS);
                u64::try_from(subnets).unwrap_or(u64::MAX).saturating_add(1)
            }
        }
    };
}

trait LastAddress {
    type Address;
    fn broadcast_address(&self) -> Self::Address;
}

impl LastAddress for Ipv4Net {
    type Address = Ipv4Addr;
    fn broadcast_address(&self) -> Ipv4Addr {
        self.broadcast()
    }
}

impl LastAddress for Ipv6Net {
    type Address = Ipv6Addr;
    fn broadcast_address(&self) -> Ipv6Addr {
        self.broadcast()
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "32 and 128 bits fit an octet"
)]
mod families {
    use super::*;
    prefix!(
        Ipv4Net,
        Ipv4Addr,
        u32,
        ["Network", "SubnetLen", "SubnetMin", "SubnetMax"],
        24,
        30,
        28
    );
    prefix!(
        Ipv6Net,
        Ipv6Addr,
        u128,
        [
            "IPv6Network",
            "IPv6SubnetLen",
            "IPv6SubnetMin",
            "IPv6SubnetMax"
        ],
        64,
        126,
        124
    );
}

/// The addresses of a prefix of `len` bits.
const fn size_of_prefix(len: u8, bits: u8) -> u128 {
    let shift = bits.saturating_sub(len);
    if shift >= 128 { u128::MAX } else { 1 << shift }
}

fn stack<N: Prefix>(object: &Object) -> Result<Stack<N>, NetConfError> {
    let text = object
        .text(N::NETWORK)?
        .ok_or_else(|| wrong(N::NETWORK, "missing"))?;
    let network: N = text
        .parse()
        .map_err(|_| wrong(N::NETWORK, "not a network of this family"))?;
    let network = network.cut();
    if !network.is_usable() {
        return Err(wrong(
            N::NETWORK,
            format!("{network} is no network of nodes"),
        ));
    }
    if network.prefix_len() > N::NETWORK_LEN_MAX {
        let problem = format!("{network} is longer than /{}", N::NETWORK_LEN_MAX);
        return Err(wrong(N::NETWORK, problem));
    }
    let subnet_len = match object.number(N::SUBNET_LEN)?.unwrap_or(0) {
        0 if network.prefix_len() > N::DEFAULT_LEN - 2 => network.prefix_len() + 2,
        0 => N::DEFAULT_LEN,
        len => u8::try_from(len).unwrap_or(u8::MAX),
    };
    if !(network.prefix_len() + 2..=N::LEN_MAX).contains(&subnet_len) {
        let problem = format!(
            "{subnet_len} is not from {} to {}",
            network.prefix_len() + 2,
            N::LEN_MAX
        );
        return Err(wrong(N::SUBNET_LEN, problem));
    }
    let bound = |member, default| -> Result<N::Address, NetConfError> {
        let Some(text) = object.text(member)? else {
            return Ok(default);
        };
        let address = text
            .parse()
            .map_err(|_| wrong(member, "not an address of this family"))?;
        if !network.holds(address) {
            return Err(wrong(member, format!("{address} is not in {network}")));
        }
        let aligned = N::at(address, subnet_len).is_some_and(|net| net.cut().first() == address);
        if !aligned {
            let problem = format!("{address} does not begin a subnet of /{subnet_len}");
            return Err(wrong(member, problem));
        }
        Ok(address)
    };
    let stack = Stack {
        network,
        subnet_len,
        subnet_min: bound(N::SUBNET_MIN, N::step(network.first(), 1, subnet_len))?,
        subnet_max: bound(N::SUBNET_MAX, network.last(subnet_len))?,
    };
    if stack.subnet_min > stack.subnet_max {
        return Err(wrong(N::SUBNET_MIN, "behind the last subnet"));
    }
    Ok(stack)
}

fn wrong(member: &'static str, problem: impl Into<String>) -> NetConfError {
    NetConfError::Member {
        member,
        problem: problem.into(),
    }
}

/// flannel's port for the `udp` backend.
const UDP_PORT: u16 = 8285;
/// The least MTU of an IPv4 underlay. RFC 1122 section 3.3.2.
const MTU_MIN: u16 = 576;
