//! What a source gave this node, and what becomes of the node by it.
//!
//! As a flannel node: the device gets the first address of the subnet as a host address
//! (10.244.1.0/32), and packets of the subnet are this node's. Beyond that the node receives what
//! the network's backend sends, whatever the configuration says, and writes `subnet.env` for the
//! CNI plugin.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tracing::info;
use warren_core::encap::Encapsulation;
use warren_core::units::{Family, MacAddr, Mtu, Time};

use super::Core;
use crate::config::Config;
use crate::ctl::sources::ClaimReport;
use crate::flannel::{Backend, NetConf, SubnetEnv};
use crate::rib::SourceKind;
use crate::snapshot::SavedLease;
use crate::source::kubernetes_network;

/// Subnets that are this node's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Claim {
    pub(super) source: SourceKind,
    pub(super) subnets: Vec<IpNet>,
    pub(super) network: NetConf,
}

impl Claim {
    /// The device's addresses.
    fn addresses(&self) -> impl Iterator<Item = IpNet> {
        self.subnets.iter().map(|subnet| IpNet::from(subnet.addr()))
    }

    /// What packets of the network come in.
    fn encapsulation(&self) -> Option<Encapsulation> {
        match self.network.backend {
            Backend::Vxlan(vxlan) => Some(Encapsulation::Vxlan {
                vni: vxlan.vni,
                port: vxlan.port,
                mac: MacAddr::default(),
            }),
            Backend::Ipip { .. } => Some(Encapsulation::Ipip),
            Backend::Udp { port } => Some(Encapsulation::Fou { port }),
            Backend::HostGw => None,
        }
    }

    /// The largest inner packet. Each family of the subnet travels over the same family.
    fn mtu(&self, underlay_mtu: Mtu) -> Mtu {
        let underlay_mtu = match self.network.backend {
            Backend::Vxlan(vxlan) => vxlan.mtu.map_or(underlay_mtu, Mtu::new),
            Backend::Ipip { .. } | Backend::HostGw | Backend::Udp { .. } => underlay_mtu,
        };
        let families = self.subnets.iter().map(family);
        let least = families
            .filter_map(|family| Some(self.encapsulation()?.inner_mtu(family, underlay_mtu)))
            .min();
        least.unwrap_or(underlay_mtu)
    }

    pub(super) fn report(&self, mtu: Mtu) -> ClaimReport {
        let v4 = self
            .network
            .v4
            .iter()
            .map(|stack| stack.network.to_string());
        let v6 = self
            .network
            .v6
            .iter()
            .map(|stack| stack.network.to_string());
        ClaimReport {
            source: self.source.name().to_owned(),
            subnets: self.subnets.iter().map(ToString::to_string).collect(),
            networks: v4.chain(v6).collect(),
            backend: self.network.backend.name().to_owned(),
            mtu: mtu.octets(),
        }
    }
}

/// The network as flannel's configuration says it, to be remembered.
fn network_json(network: &NetConf) -> String {
    let mut object = serde_json::Map::new();
    let mut enter = |name: &str, value: serde_json::Value| object.insert(name.to_owned(), value);
    enter("EnableIPv4", network.v4.is_some().into());
    enter("EnableIPv6", network.v6.is_some().into());
    enter("EnableNFTables", network.nftables.into());
    if let Some(stack) = &network.v4 {
        enter("Network", stack.network.to_string().into());
        enter("SubnetLen", stack.subnet_len.into());
        enter("SubnetMin", stack.subnet_min.to_string().into());
        enter("SubnetMax", stack.subnet_max.to_string().into());
    }
    if let Some(stack) = &network.v6 {
        enter("IPv6Network", stack.network.to_string().into());
        enter("IPv6SubnetLen", stack.subnet_len.into());
        enter("IPv6SubnetMin", stack.subnet_min.to_string().into());
        enter("IPv6SubnetMax", stack.subnet_max.to_string().into());
    }
    let name = network.backend.name();
    let backend = match network.backend {
        Backend::Vxlan(vxlan) => serde_json::json!({
            "Type": name,
            "VNI": vxlan.vni.value(),
            "Port": vxlan.port,
            "GBP": vxlan.gbp,
            "Learning": vxlan.learning,
            "DirectRouting": vxlan.direct_routing,
            "MTU": vxlan.mtu.unwrap_or(0),
        }),
        Backend::Ipip { direct_routing } => {
            serde_json::json!({ "Type": name, "DirectRouting": direct_routing })
        }
        Backend::Udp { port } => serde_json::json!({ "Type": name, "Port": port }),
        Backend::HostGw => serde_json::json!({ "Type": name }),
    };
    enter("Backend", backend);
    serde_json::Value::Object(object).to_string()
}

const fn family(net: &IpNet) -> Family {
    match net {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    }
}

impl Core {
    /// A source gave this node subnets.
    pub(super) fn claimed(&mut self, claim: Claim) {
        self.tell_without_effect(&claim);
        if self.claim.as_ref() == Some(&claim) {
            return;
        }
        let shown: Vec<String> = claim.subnets.iter().map(ToString::to_string).collect();
        info!(source = %claim.source, "this node's subnet is {}", shown.join(", "));
        self.claim = Some(claim);
        self.shape();
    }

    /// Says once for each network what of its configuration has no effect here.
    fn tell_without_effect(&mut self, claim: &Claim) {
        if self.told_network.as_ref() == Some(&claim.network) {
            return;
        }
        let (now, source) = (self.now(), claim.source);
        for (member, consequence) in claim.network.without_effect() {
            let text = format!(
                "{source}: {member} of the network's configuration has no effect on this node: \
                 {consequence}"
            );
            self.alarms.say(now, &text);
        }
        self.told_network = Some(claim.network.clone());
    }

    /// What this node had before it was started.
    pub(super) fn recall(&mut self, leases: &[SavedLease]) {
        let kubernetes = self.loaded.config.sources.kubernetes.as_ref();
        let configured = kubernetes.and_then(|kubernetes| kubernetes_network(kubernetes).ok());
        // As it would be remembered.
        let configured =
            configured.and_then(|network| NetConf::parse(network_json(&network).as_bytes()).ok());
        let recalled = leases.iter().find_map(|lease| {
            let network = NetConf::parse(lease.network.as_bytes()).ok()?;
            // Kubernetes' network is this host's to say, and of another one's port nothing is known
            // any more: a node that cannot receive there does not start.
            let is_kube = lease.source == SourceKind::Kube;
            if is_kube && configured.as_ref().is_some_and(|now| *now != network) {
                info!("the network is configured otherwise: its subnet is asked for anew");
                return None;
            }
            Some(Claim {
                source: lease.source,
                subnets: lease.prefixes.clone(),
                network,
            })
        });
        if let Some(claim) = recalled {
            self.claim = Some(claim);
            let config = self.effective();
            self.rib.set_local(config.local());
            self.is_dirty = true;
        }
    }

    /// What this node has, to be remembered.
    pub(super) fn leases(&self) -> Vec<SavedLease> {
        let lease = self.claim.as_ref().and_then(|claim| {
            let mac = self.loaded.config.node.vtep_mac;
            let scope = self.memory.as_ref()?.scope(claim.source)?;
            Some(SavedLease {
                source: claim.source,
                scope: scope.to_owned(),
                prefixes: claim.subnets.clone(),
                vteps: vec![(Family::V4, mac), (Family::V6, mac)],
                network: network_json(&claim.network),
            })
        });
        lease.into_iter().collect()
    }

    /// The configuration with what was claimed.
    pub(super) fn effective(&self) -> Config {
        let mut config = self.loaded.config.clone();
        let Some(claim) = &self.claim else {
            return config;
        };
        let mut addresses: Vec<IpNet> = claim.addresses().collect();
        addresses.retain(|address| {
            let mut configured = config.device.addresses.iter();
            !configured.any(|configured| configured.addr() == address.addr())
        });
        config.device.addresses.extend(addresses);
        if config.device.mtu_computed {
            let claimed = claim.mtu(config.device.underlay_mtu);
            config.device.mtu = if config.peers.is_empty() {
                claimed
            } else {
                claimed.min(config.device.mtu)
            };
        }
        let receive = &mut config.receive;
        match claim.encapsulation() {
            Some(Encapsulation::Vxlan { vni, port, .. }) => {
                enter(&mut receive.vxlan, port);
                enter(&mut receive.vnis, vni);
            }
            Some(Encapsulation::Fou { port }) => enter(&mut receive.fou_gue, port),
            Some(Encapsulation::Ipip) => receive.ipip = true,
            Some(
                Encapsulation::Geneve { .. }
                | Encapsulation::Gue { .. }
                | Encapsulation::VxlanGpe { .. },
            )
            | None => {}
        }
        config
    }

    /// Makes the node what configuration and claim say: device, receiving sockets, `subnet.env`.
    /// What cannot be received is shown, and tried again.
    pub(super) fn shape(&mut self) {
        let config = Arc::new(self.effective());
        let now = self.now();
        self.rib.set_local(config.local());
        self.is_dirty = true;
        self.receive(Arc::clone(&config));
        if let Some(parts) = &self.parts {
            if self.probes_ipip != config.receive.ipip {
                self.probes_ipip = config.receive.ipip;
                parts.paths.underlay(&config);
            }
            let device = &config.device;
            match &parts.host {
                Some(host) => host.set_device(device.addresses.clone(), device.mtu),
                None if self.claim.is_some() => self.alarms.say(
                    now,
                    "the device is in a namespace of its own and does not get the addresses of \
                     the subnet: without root, list them in the configuration",
                ),
                None => {}
            }
            parts.paths.own(self.own_addresses(&config));
        }
        if let (Some(claim), Some(path)) = (&self.claim, &config.sources.subnet_env)
            && let Err(error) = write_subnet_env(
                path,
                &claim.subnets,
                &claim.network,
                config.device.mtu,
                config.sources.ip_masq,
            )
        {
            let text = format!("{} cannot be written: {error}", path.display());
            self.alarms.say(now, &text);
        }
    }

    /// Has the workers receive what `config` says.
    fn receive(&mut self, config: Arc<Config>) {
        let now = self.now();
        let Some(parts) = &self.parts else {
            return;
        };
        let before = self.unreceived.take();
        if let Err(why) = (parts.receives)(config) {
            let unreceived = Unreceived {
                why,
                again: now.after(RECEIVE_AGAIN),
            };
            if before.is_none_or(|before| before.why != unreceived.why) {
                self.alarms.say(now, &unreceived.sentence());
            }
            self.unreceived = Some(unreceived);
        } else if before.is_some() {
            info!("all that is asked for is received");
        }
    }

    /// Tries again to receive what could not be received, if it is time: whoever has the port may
    /// have left it.
    pub(super) fn receive_what_is_due(&mut self) {
        let now = self.now();
        if self.unreceived.as_ref().is_some_and(|it| it.again <= now) {
            self.receive_again();
        }
    }

    /// Tries again to receive what could not be received.
    pub(super) fn receive_again(&mut self) {
        if self.unreceived.is_some() {
            self.receive(Arc::new(self.effective()));
        }
    }

    /// Inner addresses of this node, for probes: the device's, or else the first of its prefixes.
    pub(super) fn own_addresses(&self, config: &Config) -> Vec<std::net::IpAddr> {
        let device = config.device.addresses.iter().map(IpNet::addr);
        let own = config.node.prefixes.iter().map(IpNet::network);
        device.chain(own).collect()
    }
}

/// What the workers were told to receive and do not.
#[derive(Debug)]
pub(super) struct Unreceived {
    /// What is in the way.
    pub(super) why: String,
    /// When it is tried again.
    pub(super) again: Time,
}

impl Unreceived {
    pub(super) fn sentence(&self) -> String {
        let (why, again) = (&self.why, RECEIVE_AGAIN.as_secs());
        format!("not everything is received, and tried again every {again} s: {why}")
    }
}

/// How often receiving is tried again: flannel and others give their ports back when they end.
pub(super) const RECEIVE_AGAIN: Duration = Duration::from_secs(5);

fn enter<T: Ord + Copy>(list: &mut Vec<T>, value: T) {
    if !list.contains(&value) {
        list.push(value);
        list.sort_unstable();
    }
}

/// Writes `subnet.env` so that a reader sees the old file or the new one.
///
/// # Errors
///
/// Those of the file system.
fn write_subnet_env(
    path: &Path,
    subnets: &[IpNet],
    network: &NetConf,
    mtu: Mtu,
    ip_masq: bool,
) -> std::io::Result<()> {
    let v4 = subnets.iter().find_map(|subnet| match subnet {
        IpNet::V4(subnet) => Some(*subnet),
        IpNet::V6(_) => None,
    });
    let v6 = subnets.iter().find_map(|subnet| match subnet {
        IpNet::V6(subnet) => Some(*subnet),
        IpNet::V4(_) => None,
    });
    let env = SubnetEnv {
        v4: network.v4.map(|stack| stack.network).zip(v4),
        v6: network.v6.map(|stack| stack.network).zip(v6),
        mtu,
        ip_masq,
    };
    let text = env.to_text();
    if std::fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = PathBuf::from(name);
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::config::Loaded;
    use crate::paths::PathsInlet;
    use crate::plane::PlaneParts;

    #[test]
    fn a_subnet_of_kubernetes_is_remembered_while_the_network_is_the_configured_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("net-conf.json");
        let write = |port: u16| {
            let text = format!(
                r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"vxlan","Port":{port}}}}}"#
            );
            std::fs::write(&file, &text).expect("a directory of ours");
            NetConf::parse(text.as_bytes()).expect("valid")
        };
        let lease = |source| SavedLease {
            source,
            scope: String::new(),
            prefixes: vec!["10.5.1.0/24".parse().expect("a prefix")],
            vteps: Vec::new(),
            network: network_json(&write(8472)),
        };
        let leases = [SourceKind::Kube, SourceKind::Etcd].map(lease);
        let text = format!(
            "[node]\nname = \"alpha\"\nunderlay = [\"192.0.2.1\"]\n\
             [kubernetes]\nnet-conf = \"{}\"\n[state]\nfile = \"\"\n",
            file.display()
        );
        // etcd says itself what its network is, which the file has nothing to do with.
        for (port, known) in [(8472, [true, true]), (4789, [false, true])] {
            write(port);
            let recalled = leases.each_ref().map(|lease| {
                let loaded = Loaded {
                    config: Config::parse(&text, "node.toml").expect("valid"),
                    files: Vec::new(),
                };
                let mut core = Core::new(loaded, PathBuf::from("node.toml"), true);
                core.recall(std::slice::from_ref(lease));
                core.claim.is_some()
            });
            assert_eq!(recalled, known, "{port}");
        }
    }

    #[test]
    fn what_could_not_be_received_is_shown_and_tried_again_until_it_is() {
        let text = "[node]\nname = \"alpha\"\nunderlay = [\"192.0.2.1\"]\n";
        let loaded = Loaded {
            config: Config::parse(text, "node.toml").expect("valid"),
            files: Vec::new(),
        };
        let mut core = Core::new(loaded, PathBuf::from("node.toml"), true);
        let in_the_way = Arc::new(Mutex::new(Some("UDP port 8472 is in use".to_owned())));
        let says = Arc::clone(&in_the_way);
        core.parts = Some(PlaneParts {
            paths: PathsInlet::new().expect("a few descriptors").sender(),
            host: None,
            receives: Box::new(move |_| says.lock().clone().map_or(Ok(()), Err)),
        });
        let shown = core.alarms.shown();
        core.shape();
        core.publish();
        let is_shown = || {
            shown
                .read()
                .iter()
                .any(|alarm| alarm.contains("UDP port 8472"))
        };
        assert!(is_shown());
        let due = core.poll_timeout().expect("it is tried again");
        assert!(due <= core.now().after(RECEIVE_AGAIN));
        // Before it is time, nobody is asked.
        *in_the_way.lock() = None;
        core.receive_what_is_due();
        core.publish();
        assert!(is_shown());
        if let Some(unreceived) = &mut core.unreceived {
            unreceived.again = Time::ZERO;
        }
        core.receive_what_is_due();
        core.publish();
        assert!(!is_shown());
        assert_eq!(core.poll_timeout(), None);
    }
}
