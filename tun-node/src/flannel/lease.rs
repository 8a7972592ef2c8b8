//! A lease: which subnet a node has, and how the node is reached.
//!
//! The key names the subnet, `<prefix>/subnets/10.5.52.0-24` or, in a dual-stack network,
//! `<prefix>/subnets/10.5.52.0-24&fc00:5:52::-64`. The value is the JSON of the node's attributes.
//! A key with an etcd lease lives as long as that; one without is a reservation and is never
//! taken away.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_core::units::{MacAddr, Vni};

use super::KEY_OCTETS_MAX;
use super::fault::{Fault, Refused, printable};
use super::json::Object;
use super::net_conf::{Backend, NetConf};

/// The subnet that a key names.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SubnetKey {
    /// The IPv4 subnet, without host bits; there is no key without one.
    pub v4: Ipv4Net,
    /// The IPv6 subnet of a dual-stack network, without host bits.
    pub v6: Option<Ipv6Net>,
}

impl SubnetKey {
    /// Reads the last part of a key, what stands behind `<prefix>/subnets/`.
    ///
    /// Only as [`fmt::Display`] writes it, which is as flannel does: a key has one name, so that
    /// what is known of a subnet is known of one key.
    ///
    /// # Errors
    ///
    /// [`Fault::KeySyntax`], [`Fault::HostBits`]; [`Fault::SubnetLength`] beyond 32 or 128 bits.
    pub fn parse(octets: &[u8]) -> Result<Self, Refused> {
        let syntax = || Fault::KeySyntax.with(printable(octets));
        if octets.len() > KEY_OCTETS_MAX {
            return Err(syntax());
        }
        let text = std::str::from_utf8(octets).map_err(|_| syntax())?;
        let (v4, v6) = match text.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (text, None),
        };
        let (address, len) = split::<Ipv4Addr>(v4).ok_or_else(syntax)?;
        let v4 = subnet(IpAddr::V4(address), len)?;
        let v6 = match v6 {
            Some(v6) => {
                let (address, len) = split::<Ipv6Addr>(v6).ok_or_else(syntax)?;
                Some(subnet(IpAddr::V6(address), len)?)
            }
            None => None,
        };
        let key = match (v4, v6) {
            (IpNet::V4(v4), None) => Self { v4, v6: None },
            (IpNet::V4(v4), Some(IpNet::V6(v6))) => Self { v4, v6: Some(v6) },
            (IpNet::V4(_) | IpNet::V6(_), _) => return Err(syntax()),
        };
        if key.to_string() == text {
            Ok(key)
        } else {
            Err(syntax())
        }
    }

    /// The whole key below `prefix`, which ends without a slash.
    #[must_use]
    pub fn under(&self, prefix: &str) -> String {
        format!("{prefix}/subnets/{self}")
    }

    /// The subnets, IPv4 first.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> + use<> {
        let v6 = self.v6.map(IpNet::V6);
        std::iter::once(IpNet::V4(self.v4)).chain(v6)
    }

    /// Whether any address is in both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let v4 = self.v4.contains(&other.v4) || other.v4.contains(&self.v4);
        let v6 = match (self.v6, other.v6) {
            (Some(own), Some(other)) => own.contains(&other) || other.contains(&own),
            (None, _) | (_, None) => false,
        };
        v4 || v6
    }

    /// Checks that the subnet can be one of `network`.
    ///
    /// Its length need not be the configured one, which may have been changed since, but one that
    /// some configuration of the network allows.
    ///
    /// # Errors
    ///
    /// [`Fault::OtherFamily`], [`Fault::OutsideNetwork`], [`Fault::SubnetLength`].
    pub fn fits(&self, network: &NetConf) -> Result<(), Refused> {
        let Some(v4) = &network.v4 else {
            return Err(Fault::OtherFamily.with("the network has no IPv4"));
        };
        fits(IpNet::V4(self.v4), IpNet::V4(v4.network), 30)?;
        match (self.v6, &network.v6) {
            (Some(v6), Some(stack)) => fits(IpNet::V6(v6), IpNet::V6(stack.network), 126),
            (None, None) => Ok(()),
            (Some(v6), None) => {
                Err(Fault::OtherFamily.with(format!("the network has no IPv6 for {v6}")))
            }
            (None, Some(_)) => Err(Fault::OtherFamily.with("the network has IPv6, the key not")),
        }
    }

    /// Whether the configuration of `network` would hand out exactly this subnet.
    #[must_use]
    pub fn conforms(&self, network: &NetConf) -> bool {
        let v4 = network.v4.as_ref().is_some_and(|stack| {
            self.v4.prefix_len() == stack.subnet_len
                && (stack.subnet_min..=stack.subnet_max).contains(&self.v4.addr())
        });
        let v6 = match (self.v6, &network.v6) {
            (Some(v6), Some(stack)) => {
                v6.prefix_len() == stack.subnet_len
                    && (stack.subnet_min..=stack.subnet_max).contains(&v6.addr())
            }
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        v4 && v6
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.v4.addr(), self.v4.prefix_len())?;
        match self.v6 {
            Some(v6) => write!(f, "&{}-{}", v6.addr(), v6.prefix_len()),
            None => Ok(()),
        }
    }
}

/// How a node is reached: the value of a lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LeaseAttrs {
    /// The outer IPv4 address.
    pub public_ip: Ipv4Addr,
    /// The outer IPv6 address, which carries the IPv6 subnet.
    pub public_ipv6: Option<Ipv6Addr>,
    /// How packets to it are wrapped.
    pub backend: LeaseBackend,
}

/// How packets to a node are wrapped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LeaseBackend {
    /// VXLAN, one device for each family.
    Vxlan {
        /// Over IPv4.
        v4: Option<VxlanAttrs>,
        /// Over IPv6.
        v6: Option<VxlanAttrs>,
    },
    /// IP in IP.
    Ipip,
    /// Nothing: the node is a router on the link.
    HostGw,
    /// The IPv4 packet in UDP.
    Udp,
}

impl LeaseBackend {
    /// The `BackendType`; `udp` has none.
    #[must_use]
    pub const fn name(&self) -> Option<&'static str> {
        match self {
            Self::Vxlan { .. } => Some("vxlan"),
            Self::Ipip => Some("ipip"),
            Self::HostGw => Some("host-gw"),
            Self::Udp => None,
        }
    }
}

/// A node's VXLAN device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VxlanAttrs {
    /// The network.
    pub vni: Vni,
    /// The inner Ethernet address that it receives.
    pub mac: MacAddr,
}

impl VxlanAttrs {
    /// The JSON, as Go writes it.
    #[must_use]
    pub fn to_json(&self) -> String {
        format!(r#"{{"VNI":{},"VtepMAC":"{}"}}"#, self.vni, self.mac)
    }

    pub(super) fn read(object: &Object, rules: &LeaseRules) -> Result<Self, Refused> {
        let vni = match object.number("VNI")? {
            // Written by releases that had one VNI only.
            None => rules.vni,
            Some(value) => u32::try_from(value)
                .ok()
                .and_then(Vni::new)
                .ok_or_else(|| Fault::BadVni.with(value.to_string()))?,
        };
        if vni != rules.vni {
            return Err(Fault::OtherVni.with(format!("{vni}, the network has {}", rules.vni)));
        }
        let text = object
            .text("VtepMAC")?
            .ok_or_else(|| Fault::MissingMember.with("VtepMAC"))?;
        let mac: MacAddr = text.parse().map_err(|_| Fault::BadMac.with(text))?;
        if !mac.is_unicast() {
            return Err(Fault::UnusableMac.with(text));
        }
        Ok(Self { vni, mac })
    }
}

/// What is expected of other nodes' attributes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LeaseRules {
    /// The network's backend.
    pub backend: Backend,
    /// The network's VNI; without meaning but for VXLAN.
    pub vni: Vni,
    /// Whether nodes may be reached at loopback addresses, as in a demonstration on one host.
    pub allow_loopback: bool,
}

impl LeaseRules {
    /// The rules of a network.
    #[must_use]
    pub const fn of(network: &NetConf, allow_loopback: bool) -> Self {
        let vni = match network.backend {
            Backend::Vxlan(vxlan) => vxlan.vni,
            Backend::Ipip { .. } | Backend::HostGw | Backend::Udp { .. } => {
                Vni::from_octets([0; 3])
            }
        };
        Self {
            backend: network.backend,
            vni,
            allow_loopback,
        }
    }
}

impl LeaseAttrs {
    /// Reads the value of a key.
    ///
    /// # Errors
    ///
    /// Any [`Fault`] but those of keys.
    pub fn parse(octets: &[u8], rules: &LeaseRules) -> Result<Self, Refused> {
        let object = Object::read(octets)?;
        let public_ip = address(&object, "PublicIP", rules)?
            .ok_or_else(|| Fault::MissingMember.with("PublicIP"))?;
        let public_ipv6 = address(&object, "PublicIPv6", rules)?;
        let name = object.text("BackendType")?.unwrap_or("");
        let backend = backend(name, rules, |member| object.object(member))?;
        Ok(Self {
            public_ip,
            public_ipv6,
            backend,
        })
    }

    /// The JSON, as Go writes it: this order, no spaces, `PublicIPv6` always.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut json = format!(r#"{{"PublicIP":"{}","PublicIPv6":"#, self.public_ip);
        match self.public_ipv6 {
            Some(address) => json.push_str(&format!(r#""{address}""#)),
            None => json.push_str("null"),
        }
        if let Some(name) = self.backend.name() {
            json.push_str(&format!(r#","BackendType":"{name}""#));
        }
        if let LeaseBackend::Vxlan { v4, v6 } = &self.backend {
            for (member, vxlan) in [("BackendData", v4), ("BackendV6Data", v6)] {
                if let Some(vxlan) = vxlan {
                    json.push_str(&format!(r#","{member}":{}"#, vxlan.to_json()));
                }
            }
        }
        json.push('}');
        json
    }
}

/// The backend called `name`, whose data `read` finds by the name of the member.
pub(super) fn backend(
    name: &str,
    rules: &LeaseRules,
    read: impl Fn(&'static str) -> Result<Option<Object>, Refused>,
) -> Result<LeaseBackend, Refused> {
    let (backend, same) = match name {
        "vxlan" => {
            let vxlan = |member| -> Result<Option<VxlanAttrs>, Refused> {
                let object = read(member)?;
                object
                    .map(|object| VxlanAttrs::read(&object, rules))
                    .transpose()
            };
            let same = matches!(rules.backend, Backend::Vxlan(_));
            // The data says nothing where the backend is another, so it is not looked at.
            let (v4, v6) = if same {
                (vxlan("BackendData")?, vxlan("BackendV6Data")?)
            } else {
                (None, None)
            };
            (LeaseBackend::Vxlan { v4, v6 }, same)
        }
        "ipip" => {
            let same = matches!(rules.backend, Backend::Ipip { .. });
            (LeaseBackend::Ipip, same)
        }
        "host-gw" => (
            LeaseBackend::HostGw,
            matches!(rules.backend, Backend::HostGw),
        ),
        "" | "udp" => {
            let same = matches!(rules.backend, Backend::Udp { .. });
            (LeaseBackend::Udp, same)
        }
        _ => return Err(Fault::UnknownBackend.with(name)),
    };
    if same {
        Ok(backend)
    } else {
        let detail = format!("{name}, the network has {}", rules.backend.name());
        Err(Fault::OtherBackend.with(detail))
    }
}

/// The address that the member `name` of a lease is.
fn address<A>(object: &Object, name: &str, rules: &LeaseRules) -> Result<Option<A>, Refused>
where
    A: FromStr + Copy + Into<IpAddr>,
{
    match object.text(name)? {
        Some(text) => underlay_address(text, name, rules).map(Some),
        None => Ok(None),
    }
}

/// Reads an address that a node says it is reached at.
pub(crate) fn underlay_address<A>(text: &str, name: &str, rules: &LeaseRules) -> Result<A, Refused>
where
    A: FromStr + Copy + Into<IpAddr>,
{
    let bad = |_| Fault::BadAddress.with(format!("{name} {text}"));
    let address: A = text.parse().map_err(bad)?;
    let usable = match address.into() {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            (rules.allow_loopback && v4.is_loopback())
                || !(first == 0 || first >= 224 || v4.is_loopback() || v4.is_link_local())
        }
        IpAddr::V6(v6) => {
            (rules.allow_loopback && v6.is_loopback())
                || !(v6.is_unspecified()
                    || v6.is_loopback()
                    || v6.is_multicast()
                    || v6.is_unicast_link_local()
                    || v6.to_ipv4().is_some())
        }
    };
    if usable {
        Ok(address)
    } else {
        Err(Fault::UnusableAddress.with(format!("{name} {text}")))
    }
}

/// `ADDRESS-LEN`, with a length of one to three digits.
fn split<A: FromStr>(text: &str) -> Option<(A, u8)> {
    let (address, len) = text.rsplit_once('-')?;
    let digits = matches!(len.len(), 1..=3) && len.bytes().all(|octet| octet.is_ascii_digit());
    let len: u16 = len.parse().ok().filter(|_| digits)?;
    // 256 and more is as much too long as 255 is.
    Some((address.parse().ok()?, u8::try_from(len).unwrap_or(u8::MAX)))
}

fn subnet(address: IpAddr, len: u8) -> Result<IpNet, Refused> {
    let net = IpNet::new(address, len)
        .map_err(|_| Fault::SubnetLength.with(format!("{address}/{len}")))?;
    if net.trunc() == net {
        Ok(net)
    } else {
        Err(Fault::HostBits.with(format!("{net}")))
    }
}

fn fits(subnet: IpNet, network: IpNet, len_max: u8) -> Result<(), Refused> {
    if !network.contains(&subnet) {
        return Err(Fault::OutsideNetwork.with(format!("{subnet} is not in {network}")));
    }
    // flannel's own limits for SubnetLen.
    let lengths = network.prefix_len().saturating_add(2)..=len_max;
    if !lengths.contains(&subnet.prefix_len()) {
        let (least, most) = (lengths.start(), lengths.end());
        let detail = format!("{subnet}, {network} has subnets of /{least} to /{most}");
        return Err(Fault::SubnetLength.with(detail));
    }
    Ok(())
}
