//! The kernel's own VXLAN device, set up as flannel and as Calico do it, and what our node must be
//! told to meet it.

use std::net::IpAddr;
use std::process::Command;

use super::netns::{Netns, succeed};

/// How an overlay uses the kernel's device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Shape {
    /// VNI 1, UDP port 8472, the next hop is the subnet's own base address.
    Flannel,
    /// VNI 4096, UDP port 4789, the next hop is the node's tunnel address, blocks of /26 and /122,
    /// the MAC address made from the node's name.
    Calico,
}

impl Shape {
    /// The network.
    pub(crate) const fn vni(self) -> u32 {
        match self {
            Self::Flannel => 1,
            Self::Calico => 4096,
        }
    }

    /// The UDP port.
    pub(crate) const fn port(self) -> u16 {
        match self {
            Self::Flannel => 8472,
            Self::Calico => 4789,
        }
    }
}

/// One node as the others see it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its underlay address.
    pub(crate) underlay: IpAddr,
    /// Its VTEP MAC address.
    pub(crate) mac: String,
    /// The prefixes that it owns, in both families.
    pub(crate) prefixes: Vec<String>,
    /// The address that is the next hop for those of the prefixes of its family.
    pub(crate) next_hops: [String; 2],
    /// Addresses of a workload on it, in both families.
    pub(crate) workload: [IpAddr; 2],
    /// Lengths of the prefixes that the workload's addresses lie in.
    pub(crate) lengths: [u8; 2],
}

impl Node {
    /// The node numbered `index` (1 or 2) of a cluster of `shape` over an underlay of the family of
    /// `underlay`.
    pub(crate) fn new(shape: Shape, index: u8, underlay: IpAddr) -> Self {
        let name = ["node-1", "worker-a"][usize::from(index) - 1];
        let v4 = |rest: &str| format!("10.244.{index}.{rest}");
        let v6 = |rest: &str| format!("fd00:10:244:{index}::{rest}");
        let workload = [v4("1"), v6("1")].map(|text| text.parse().expect("an address"));
        match shape {
            Shape::Flannel => Self {
                name,
                underlay,
                mac: format!("02:f1:00:00:00:0{index}"),
                prefixes: vec![v4("0/24"), v6("/64")],
                next_hops: [v4("0"), v6("")],
                workload,
                lengths: [24, 64],
            },
            Shape::Calico => Self {
                name,
                underlay,
                mac: calico_mac(name, underlay.is_ipv6()),
                prefixes: vec![v4("0/26"), v4("192/26"), v6("/122"), v6("40/122")],
                next_hops: [v4("10"), v6("a")],
                workload,
                lengths: [26, 122],
            },
        }
    }

    /// A second address of a workload, in another block where the shape has several.
    pub(crate) fn far_workload(&self) -> [IpAddr; 2] {
        self.workload.map(|address| match address {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                [a, b, c, 200].into()
            }
            IpAddr::V6(address) => {
                let mut octets = address.octets();
                octets[15] = 0x48;
                octets.into()
            }
        })
    }
}

/// Sets up `here` as a node of the cluster with the kernel's device, and its way to `there`.
pub(crate) fn set_up(netns: &Netns, shape: Shape, lower: &str, here: &Node, there: &Node) {
    let device = match shape {
        Shape::Flannel => "flannel.1",
        Shape::Calico => "vxlan.calico",
    };
    let overhead = if here.underlay.is_ipv6() { 70 } else { 50 };
    let mut lines = vec![format!(
        "link add {device} address {} type vxlan id {} dstport {} local {} dev {lower} nolearning",
        here.mac,
        shape.vni(),
        shape.port(),
        here.underlay
    )];
    lines.push(format!("link set {device} mtu {} up", 1500 - overhead));
    for (family, (own, theirs)) in ["-4", "-6"]
        .into_iter()
        .zip(here.next_hops.iter().zip(&there.next_hops))
    {
        let (whole, nodad) = if family == "-4" {
            (32, "")
        } else {
            (128, "nodad")
        };
        lines.push(format!("address add {own}/{whole} dev {device} {nodad}"));
        lines.push(format!(
            "neighbour replace {theirs} lladdr {} dev {device} nud permanent",
            there.mac
        ));
        if shape == Shape::Calico {
            lines.push(format!("route replace {theirs}/{whole} dev {device}"));
        }
        for prefix in &there.prefixes {
            if prefix.contains(':') == (family == "-6") {
                lines.push(format!(
                    "route replace {prefix} via {theirs} dev {device} onlink"
                ));
            }
        }
    }
    // The loopback device stands for the bridge and the workloads behind it.
    for address in here.workload.iter().chain(&here.far_workload()) {
        let (whole, nodad) = if address.is_ipv4() {
            (32, "")
        } else {
            (128, "nodad")
        };
        lines.push(format!("address add {address}/{whole} dev lo {nodad}"));
    }
    netns.ip(&lines);
    netns.bridge(&[format!(
        "fdb replace {} dev {device} dst {} self permanent",
        there.mac, there.underlay
    )]);
}

/// The configuration of our node as `here`.
pub(crate) fn configuration(shape: Shape, here: &Node, there: &Node, socket: &str) -> String {
    let list = |items: &[String]| {
        let quoted: Vec<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
        quoted.join(", ")
    };
    // Calico's addresses are made from the names; our node is asked to do the same.
    let mac = |node: &Node| match shape {
        Shape::Flannel => node.mac.clone(),
        Shape::Calico => "calico".to_owned(),
    };
    let addresses: Vec<String> = here
        .workload
        .iter()
        .zip(here.lengths)
        .map(|(address, length)| format!("{address}/{length}"))
        .chain(
            here.far_workload()
                .iter()
                .map(|address| format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })),
        )
        .collect();
    format!(
        r#"[node]
name = "{}"
underlay = ["{}"]
prefixes = [{}]
vtep-mac = "{}"

[device]
name = "warren0"
addresses = [{}]

[vxlan]
port = {}
vni = {}
strict-reserved-bits = true

[[peers]]
name = "{}"
address = "{}"
encap = "vxlan"
vtep-mac = "{}"
prefixes = [{}]

[control]
socket = "{socket}"
"#,
        here.name,
        here.underlay,
        list(&here.prefixes),
        mac(here),
        list(&addresses),
        shape.port(),
        shape.vni(),
        there.name,
        there.underlay,
        mac(there),
        list(&there.prefixes),
    )
}

/// The MAC address that Calico gives to a node: `f` and the first five octets of the SHA-1 of its
/// name, by a program that is not ours.
fn calico_mac(name: &str, over_v6: bool) -> String {
    let name = format!("{name}{}", if over_v6 { "-v6" } else { "" });
    let output = succeed(Command::new("sh").args(["-c", "printf %s \"$0\" | sha1sum", &name]));
    let digest = String::from_utf8(output.stdout).expect("text");
    let octets: Vec<&str> = (0..5).map(|at| &digest[at * 2..at * 2 + 2]).collect();
    format!("66:{}", octets.join(":"))
}
