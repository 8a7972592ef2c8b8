//! `subnet.env`: what the node's CNI plugin is told, and which subnet the node had before.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use warren_core::units::Mtu;

use super::lease::SubnetKey;

/// The lines of the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SubnetEnv {
    /// The network and the node's subnet, IPv4.
    pub v4: Option<(Ipv4Net, Ipv4Net)>,
    /// The network and the node's subnet, IPv6.
    pub v6: Option<(Ipv6Net, Ipv6Net)>,
    /// The largest packet that a container may send.
    pub mtu: Mtu,
    /// Whether traffic that leaves the network is masqueraded by the node.
    pub ip_masq: bool,
}

/// Why the text is not used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SubnetEnvError {
    /// It is larger than such a file can be.
    #[error("subnet.env has {0} octets")]
    TooLarge(usize),
    /// A line is missing or not what it must be.
    #[error("subnet.env: {0} is missing or unusable")]
    Line(&'static str),
}

impl SubnetEnv {
    /// The text: shell assignments, in flannel's order.
    ///
    /// The address is the first of the subnet, which the bridge gets, with the subnet's length.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        if let Some((network, subnet)) = self.v4 {
            let first = Ipv4Addr::from(u32::from(subnet.network()).saturating_add(1));
            let len = subnet.prefix_len();
            let _ = writeln!(text, "FLANNEL_NETWORK={network}");
            let _ = writeln!(text, "FLANNEL_SUBNET={first}/{len}");
        }
        if let Some((network, subnet)) = self.v6 {
            let first = Ipv6Addr::from(u128::from(subnet.network()).saturating_add(1));
            let len = subnet.prefix_len();
            let _ = writeln!(text, "FLANNEL_IPV6_NETWORK={network}");
            let _ = writeln!(text, "FLANNEL_IPV6_SUBNET={first}/{len}");
        }
        let _ = writeln!(text, "FLANNEL_MTU={}", self.mtu);
        let _ = writeln!(text, "FLANNEL_IPMASQ={}", self.ip_masq);
        text
    }

    /// Reads the text. Lines that it does not know are skipped, as the CNI plugin does.
    ///
    /// # Errors
    ///
    /// [`SubnetEnvError::TooLarge`] above 4 KiB; [`SubnetEnvError::Line`] when a subnet has no
    /// network or the MTU is missing.
    pub fn parse(text: &str) -> Result<Self, SubnetEnvError> {
        if text.len() > FILE_OCTETS_MAX {
            return Err(SubnetEnvError::TooLarge(text.len()));
        }
        let find = |name: &'static str| {
            let mut lines = text.lines().rev();
            let value = lines.find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
            value.map(|value| value.trim_matches('"'))
        };
        fn net<N: std::str::FromStr>(
            text: Option<&str>,
            name: &'static str,
        ) -> Result<Option<N>, SubnetEnvError> {
            let parsed = text.map(|text| text.parse().map_err(|_| SubnetEnvError::Line(name)));
            parsed.transpose()
        }
        let pair = |network: Option<Ipv4Net>, subnet: Option<Ipv4Net>| match (network, subnet) {
            (Some(network), Some(subnet)) => Ok(Some((network.trunc(), subnet.trunc()))),
            (None, None) => Ok(None),
            (Some(_), None) | (None, Some(_)) => Err(SubnetEnvError::Line(SUBNET)),
        };
        let pair_v6 = |network: Option<Ipv6Net>, subnet: Option<Ipv6Net>| match (network, subnet) {
            (Some(network), Some(subnet)) => Ok(Some((network.trunc(), subnet.trunc()))),
            (None, None) => Ok(None),
            (Some(_), None) | (None, Some(_)) => Err(SubnetEnvError::Line(SUBNET_V6)),
        };
        let mtu = find(MTU).and_then(|mtu| mtu.parse().ok());
        Ok(Self {
            v4: pair(net(find(NETWORK), NETWORK)?, net(find(SUBNET), SUBNET)?)?,
            v6: pair_v6(
                net(find(NETWORK_V6), NETWORK_V6)?,
                net(find(SUBNET_V6), SUBNET_V6)?,
            )?,
            mtu: Mtu::new(mtu.ok_or(SubnetEnvError::Line(MTU))?),
            ip_masq: find(IPMASQ) == Some("true"),
        })
    }

    /// The key of the node's subnets, to be asked for again.
    #[must_use]
    pub fn subnet_key(&self) -> Option<SubnetKey> {
        let (_, v4) = self.v4?;
        let v6 = self.v6.map(|(_, subnet)| subnet);
        Some(SubnetKey { v4, v6 })
    }
}

const NETWORK: &str = "FLANNEL_NETWORK";
const SUBNET: &str = "FLANNEL_SUBNET";
const NETWORK_V6: &str = "FLANNEL_IPV6_NETWORK";
const SUBNET_V6: &str = "FLANNEL_IPV6_SUBNET";
const MTU: &str = "FLANNEL_MTU";
const IPMASQ: &str = "FLANNEL_IPMASQ";
const FILE_OCTETS_MAX: usize = 4096;
