//! What `tun-node check` says about a file in which nothing is wrong.

use std::fmt::Write as _;

use ipnet::IpNet;
use warren_core::units::{Family, Vni};

use super::{
    Config, Directions, Dscp, Guard, KubernetesNetwork, Peer, PeerMode, RouteNext, Sources,
    StateFile, WorkerCount,
};

impl Peer {
    /// The peer in a line for people.
    #[must_use]
    pub fn line(&self) -> String {
        peer_line(self)
    }
}

impl Config {
    /// The configuration in a few lines for people, with every default filled in.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let underlay: Vec<String> = [Family::V4, Family::V6]
            .into_iter()
            .filter_map(|family| self.node.underlay(family))
            .map(|address| address.to_string())
            .collect();
        let mtu = if self.device.mtu_computed {
            format!(
                "{} (computed from underlay-mtu {})",
                self.device.mtu, self.device.underlay_mtu
            )
        } else {
            self.device.mtu.to_string()
        };
        let mut rows = vec![
            ("node", self.node.name.clone()),
            ("underlay", underlay.join(", ")),
            ("vtep mac", self.node.vtep_mac.to_string()),
            ("prefixes", nets(&self.node.prefixes)),
            (
                "device",
                format!("{} ({})", self.device.name, self.device.mode),
            ),
            ("addresses", nets(&self.device.addresses)),
            ("mtu", mtu),
            ("receives", self.receives()),
        ];
        for peer in &self.peers {
            rows.push(("peer", peer_line(peer)));
        }
        for route in &self.routes {
            let next = match &route.next {
                RouteNext::Action(action) => action.to_string(),
                RouteNext::Via(peers) => {
                    let names = peers.iter().filter_map(|&index| self.peers.get(index));
                    let names: Vec<&str> = names.map(|peer| peer.name.as_str()).collect();
                    format!("via {}", names.join(", "))
                }
            };
            rows.push(("route", format!("{} {next}", route.prefix)));
        }
        if let Some(path) = &self.control_socket {
            rows.push(("control", path.display().to_string()));
        }
        if let Some(listen) = self.metrics_listen {
            rows.push(("metrics", listen.to_string()));
        }
        rows.push(("log", self.log_level.to_string()));
        rows.push(("workers", self.workers()));
        rows.push(("probing", self.probed()));
        rows.extend(self.sources.rows());
        match &self.state_file {
            StateFile::None => rows.push(("state", "nowhere".to_owned())),
            StateFile::At(path) => rows.push(("state", path.display().to_string())),
            // Only what such a source says is remembered.
            StateFile::Usual if self.sources.may_claim() => {
                rows.push((
                    "state",
                    "in the usual place of the user that runs it".to_owned(),
                ));
            }
            StateFile::Usual => {}
        }
        for (name, content) in rows {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:<10}{content}");
        }
        text
    }

    fn workers(&self) -> String {
        let count = match self.worker.count {
            WorkerCount::Fixed(count) => count.to_string(),
            WorkerCount::Auto => "auto".to_owned(),
        };
        let directions = match self.worker.directions {
            Directions::Auto => "auto",
            Directions::Together => "together",
            Directions::Apart => "apart",
        };
        let pin = if self.worker.pin { ", pinned" } else { "" };
        format!("{count}, directions {directions}{pin}")
    }

    fn probed(&self) -> String {
        let probing = &self.probing;
        if !probing.enabled {
            return "off".to_owned();
        }
        format!(
            "every {} ms, down after {}, up after {}",
            probing.interval.as_millis(),
            probing.down_after,
            probing.up_after
        )
    }

    fn receives(&self) -> String {
        let mut received = self.received();
        let vnis: Vec<String> = self.receive.vnis.iter().map(Vni::to_string).collect();
        if !vnis.is_empty() {
            received.push(format!("VNI {}", vnis.join(", ")));
        }
        received.join("; ")
    }

    /// At which ports what is received, and IP in IP.
    pub(crate) fn received(&self) -> Vec<String> {
        let receive = &self.receive;
        let ports = [
            ("vxlan", &receive.vxlan),
            ("vxlan-gpe", &receive.vxlan_gpe),
            ("geneve", &receive.geneve),
            ("fou and gue", &receive.fou_gue),
        ];
        let mut received = Vec::new();
        for (name, ports) in ports {
            received.extend(ports.iter().map(|port| format!("{name} on UDP {port}")));
        }
        if receive.ipip {
            received.push("ipip".to_owned());
        }
        received
    }
}

impl Sources {
    /// What further routes come from, and when they are held.
    fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = Vec::new();
        if let Some(etcd) = &self.etcd {
            let (members, prefix) = (etcd.endpoints.join(", "), &etcd.prefix);
            rows.push(("etcd", format!("{members}, keys below {prefix}")));
        }
        if let Some(kubernetes) = &self.kubernetes {
            let access = match &kubernetes.kubeconfig {
                Some(path) => path.display().to_string(),
                None => "service account".to_owned(),
            };
            let network = match &kubernetes.network {
                KubernetesNetwork::File(path) => path.display().to_string(),
                KubernetesNetwork::Keys(network) => {
                    let v4 = network.v4.iter().map(|stack| stack.network.to_string());
                    let v6 = network.v6.iter().map(|stack| stack.network.to_string());
                    let networks: Vec<String> = v4.chain(v6).collect();
                    format!("{} by {}", networks.join(", "), network.backend.name())
                }
            };
            rows.push(("kube", format!("by {access}, network {network}")));
        }
        if let Some(files) = &self.files {
            rows.push(("files", files.directory.display().to_string()));
        }
        if !rows.is_empty() {
            let Guard { percent, hold_s } = self.guard;
            rows.push(("guard", format!("above {percent} %, for {hold_s} s")));
        }
        rows
    }
}

fn peer_line(peer: &Peer) -> String {
    let dscp = match &peer.dscp {
        Dscp::Pipe(0) => String::new(),
        Dscp::Pipe(value) => format!(", dscp {value}"),
        Dscp::Uniform => ", dscp uniform".to_owned(),
        Dscp::Map(_) => ", dscp map".to_owned(),
    };
    let (name, address, encapsulation) = (&peer.name, peer.address, peer.encapsulation);
    let (mtu, prefixes) = (peer.mtu, nets(&peer.prefixes));
    let or: String = peer
        .alternatives
        .iter()
        .map(|way| format!(" or {way}"))
        .collect();
    let mode = match peer.mode {
        PeerMode::Always => String::new(),
        PeerMode::CrossSubnet | PeerMode::Direct => format!(" ({})", peer.mode),
    };
    format!("{name} {address} by {encapsulation}{or}{mode}, mtu {mtu}{dscp}: {prefixes}")
}

fn nets(nets: &[IpNet]) -> String {
    if nets.is_empty() {
        return "none".to_owned();
    }
    let nets: Vec<String> = nets.iter().map(IpNet::to_string).collect();
    nets.join(", ")
}
