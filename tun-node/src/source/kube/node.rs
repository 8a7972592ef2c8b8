//! A Node object, and what it says about the way to its pods.
//!
//! Two dialects are read. flannel's annotations say everything: the backend, the address and, for
//! VXLAN, the VNI and the MAC address; a node without them is left alone, as flannel leaves it.
//! Calico's say where the node is and which tunnel it has, but not which blocks of addresses it
//! owns: those are elsewhere. Only where the tunnel's own address lies inside the node's podCIDR
//! does Calico hand out addresses by podCIDR, and only then are Calico's annotations enough; a
//! Calico node of the other sort goes to the quarantine with that reason.
//!
//! Each address family stands for itself: a node with a podCIDR of both and the way of one gets
//! the route of that one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use warren_core::encap::Encapsulation;
use warren_core::units::{MacAddr, Mtu, Vni};

use crate::config::calico_vtep_mac;
use crate::flannel::{
    Annotations, Backend, Fault, LeaseBackend, LeaseRules, NetConf, Refused, underlay_address,
};
use crate::rib::{Content, Entry, Refusal, Remote, RemoteRoute, Via};

/// What is kept of a Node object.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `metadata.creationTimestamp`, as written; empty when absent.
    pub created: String,
    /// `spec.podCIDRs`, or `spec.podCIDR` where that is all there is.
    pub pod_cidrs: Vec<String>,
    /// `status.addresses` of the type `InternalIP`, in their order.
    pub internal: Vec<IpAddr>,
    /// The annotations of flannel and of Calico.
    pub annotations: BTreeMap<String, String>,
    /// The condition `NetworkUnavailable`: whether its status is `False`; `None` when absent.
    pub network_available: Option<bool>,
}

/// How Nodes are read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Reading<'a> {
    pub(super) network: &'a NetConf,
    /// What flannel's annotations begin with.
    pub(super) prefix: &'a str,
    pub(super) allow_loopback: bool,
}

impl Node {
    /// The subnets of this node that the network has a family for, at most one of each, IPv4
    /// first.
    ///
    /// # Errors
    ///
    /// [`Fault::KeySyntax`], [`Fault::HostBits`], [`Fault::OutsideNetwork`]. No podCIDR at all is
    /// an empty list.
    pub(super) fn subnets(&self, network: &NetConf) -> Result<Vec<IpNet>, Refused> {
        let mut found: Vec<IpNet> = Vec::new();
        for text in &self.pod_cidrs {
            let subnet: IpNet = text
                .parse()
                .map_err(|_| Fault::KeySyntax.with(format!("podCIDR {text}")))?;
            let whole = match subnet {
                IpNet::V4(_) => network.v4.map(|stack| IpNet::V4(stack.network)),
                IpNet::V6(_) => network.v6.map(|stack| IpNet::V6(stack.network)),
            };
            let same = |other: &IpNet| other.addr().is_ipv4() == subnet.addr().is_ipv4();
            let Some(whole) = whole.filter(|_| !found.iter().any(same)) else {
                continue;
            };
            if subnet.trunc() != subnet {
                return Err(Fault::HostBits.with(format!("podCIDR {subnet}")));
            }
            if !whole.contains(&subnet) {
                let detail = format!("podCIDR {subnet} is not in {whole}");
                return Err(Fault::OutsideNetwork.with(detail));
            }
            found.push(subnet);
        }
        found.sort_by_key(|subnet| subnet.addr().is_ipv6());
        Ok(found)
    }

    /// What the RIB is to be told of this node; `None` when it is nobody that is reached from here.
    pub(super) fn entry(&self, reading: &Reading<'_>) -> Option<Entry> {
        let content = match self.remote(reading) {
            Ok(None) => return None,
            Ok(Some(remote)) => Content::Remote(Arc::new(remote)),
            Err(refusal) => Content::Refused(refusal),
        };
        Some(Entry {
            key: Arc::from(self.name.as_str()),
            rank: self.rank(),
            content,
        })
    }

    /// The older Node wins. The seconds of its creation as digits: `20261123114007`.
    pub(super) fn rank(&self) -> u64 {
        let digits: String = self
            .created
            .chars()
            .filter(char::is_ascii_digit)
            .take(14)
            .collect();
        digits.parse().unwrap_or(RANK_LAST)
    }

    fn remote(&self, reading: &Reading<'_>) -> Result<Option<Remote>, Refusal> {
        let rules = LeaseRules::of(reading.network, reading.allow_loopback);
        let said = Annotations::parse(&self.annotations, reading.prefix, &rules)?;
        let subnets = |this: &Self| this.subnets(reading.network).map_err(Refusal::from);
        if let Some(said) = said {
            let subnets = subnets(self)?;
            if subnets.is_empty() {
                // The controller manager has not come to it yet.
                return Ok(None);
            }
            let remote = flannel_remote(&self.name, &subnets, &said, reading.network)?;
            return Ok(Some(remote));
        }
        if !self.annotations.keys().any(|key| is_calico(key)) {
            return Ok(None);
        }
        let subnets = subnets(self)?;
        self.calico_remote(&subnets, &rules)
    }

    /// The way that Calico's annotations describe.
    fn calico_remote(
        &self,
        subnets: &[IpNet],
        rules: &LeaseRules,
    ) -> Result<Option<Remote>, Refusal> {
        let find = |name: &str| {
            let value = self.annotations.get(&format!("{CALICO}{name}"));
            value.map(String::as_str).filter(|text| !text.is_empty())
        };
        let mut routes = Vec::with_capacity(2);
        let mut tunnels = 0;
        for &prefix in subnets {
            let v6 = prefix.addr().is_ipv6();
            let (address, vxlan, mac, ipip) = if v6 {
                (
                    "IPv6Address",
                    "IPv6VXLANTunnelAddr",
                    "VXLANTunnelMACAddrV6",
                    None,
                )
            } else {
                (
                    "IPv4Address",
                    "IPv4VXLANTunnelAddr",
                    "VXLANTunnelMACAddr",
                    find("IPv4IPIPTunnelAddr"),
                )
            };
            let (tunnel, encapsulation) = match (find(vxlan), ipip) {
                (Some(tunnel), _) => {
                    let mac = match find(mac) {
                        Some(text) => vtep_mac(text)?,
                        None => calico_vtep_mac(&self.name, v6),
                    };
                    (tunnel, calico_vxlan(mac))
                }
                (None, Some(tunnel)) => (tunnel, Encapsulation::Ipip),
                (None, None) => continue,
            };
            tunnels += 1;
            let tunnel: IpAddr = tunnel
                .parse()
                .map_err(|_| Fault::BadAddress.with(format!("tunnel {tunnel}")))?;
            if !prefix.contains(&tunnel) {
                continue;
            }
            let remote = match find(address) {
                Some(text) => {
                    let host = text.split_once('/').map_or(text, |(host, _)| host);
                    underlay_address(host, address, rules)?
                }
                None => {
                    let mut internal = self.internal.iter();
                    let found = internal.find(|one| one.is_ipv6() == v6);
                    let found = found.ok_or_else(|| Fault::MissingMember.with(address))?;
                    underlay_address(&found.to_string(), "InternalIP", rules)?
                }
            };
            routes.push(RemoteRoute {
                prefix,
                via: Via {
                    remote,
                    encapsulation: Some(encapsulation),
                    underlay_mtu: None,
                },
            });
        }
        if routes.is_empty() && tunnels > 0 {
            return Err(Refusal {
                name: CALICO_BLOCKS,
                detail: "Calico gives this node blocks that its Node does not name".to_owned(),
            });
        }
        // Without a tunnel the fabric routes by itself.
        Ok((!routes.is_empty()).then(|| Remote {
            node: Arc::from(self.name.as_str()),
            routes,
        }))
    }
}

/// The way that flannel's annotations describe.
pub(super) fn flannel_remote(
    name: &str,
    subnets: &[IpNet],
    said: &Annotations,
    network: &NetConf,
) -> Result<Remote, Refused> {
    let (vxlan_v4, vxlan_v6) = match said.backend {
        LeaseBackend::Vxlan { v4, v6 } => (v4, v6),
        LeaseBackend::Ipip | LeaseBackend::HostGw | LeaseBackend::Udp => (None, None),
    };
    let underlay_mtu = match network.backend {
        Backend::Vxlan(vxlan) => vxlan.mtu.map(Mtu::new),
        Backend::Ipip { .. } | Backend::HostGw | Backend::Udp { .. } => None,
    };
    let mut routes = Vec::with_capacity(2);
    let mut missing = None;
    for &prefix in subnets {
        let (remote, vxlan, names) = match prefix {
            IpNet::V4(_) => (
                said.public_ip.map(IpAddr::V4),
                vxlan_v4,
                ["public-ip", "backend-data"],
            ),
            IpNet::V6(_) => (
                said.public_ipv6.map(IpAddr::V6),
                vxlan_v6,
                ["public-ipv6", "backend-v6-data"],
            ),
        };
        let [address_name, data_name] = names;
        let Some(remote) = remote else {
            missing = missing.or(Some(address_name));
            continue;
        };
        let encapsulation = match (network.backend, vxlan) {
            (Backend::Vxlan(backend), Some(vxlan)) => Some(Encapsulation::Vxlan {
                vni: vxlan.vni,
                port: backend.port,
                mac: vxlan.mac,
            }),
            (Backend::Vxlan(_), None) => {
                missing = missing.or(Some(data_name));
                continue;
            }
            (Backend::Ipip { .. }, _) => Some(Encapsulation::Ipip),
            (Backend::Udp { port }, _) => Some(Encapsulation::Fou { port }),
            (Backend::HostGw, _) => None,
        };
        routes.push(RemoteRoute {
            prefix,
            via: Via {
                remote,
                encapsulation,
                underlay_mtu,
            },
        });
    }
    match missing {
        Some(name) if routes.is_empty() => Err(Fault::MissingMember.with(name)),
        Some(_) | None => Ok(Remote {
            node: Arc::from(name),
            routes,
        }),
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self {
            name: refused.fault.name(),
            detail: refused.detail,
        }
    }
}

/// Whether an annotation is one of Calico's.
pub(super) fn is_calico(key: &str) -> bool {
    key.starts_with(CALICO)
}

/// Reads the MAC address of a VTEP, which is not that of a group.
fn vtep_mac(text: &str) -> Result<MacAddr, Refused> {
    let mac: Option<MacAddr> = text.parse().ok();
    mac.filter(|mac| mac.is_unicast())
        .ok_or_else(|| Fault::BadMac.with(text))
}

fn calico_vxlan(mac: MacAddr) -> Encapsulation {
    Encapsulation::Vxlan {
        // 4096
        vni: Vni::from_octets([0, 0x10, 0]),
        port: 4789,
        mac,
    }
}

/// What Calico's annotations begin with.
const CALICO: &str = "projectcalico.org/";
/// The refusal of a Calico node whose addresses do not come from its podCIDR.
const CALICO_BLOCKS: &str = "calico-blocks";
/// The rank of a Node that does not say how old it is.
pub(super) const RANK_LAST: u64 = u64::MAX - 1;
