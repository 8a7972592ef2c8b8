//! The control plane of a node: the source and the table, without a data path.

use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use ipnet::IpNet;
use serde_json::{Value, json};
use tun_node::flannel::NetConf;
use tun_node::rib::{
    Event, Identity, Outcome, Reconciler, RouteChange, Settings, SourceStatus, SourceUpdate,
    UpdateKind,
};
use tun_node::source::kube::access::{Access, Origin, Token};
use tun_node::source::kube::agent::AgentSettings;
use tun_node::source::kube::{KubeSettings, KubeSource};
use tun_node::source::{Outlet, Own, Source as _, SourceCommand, SourceNotice};
use warren_core::units::{MacAddr, Time};

use super::server::{Server, TOKEN};

pub(crate) const NETWORK: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
pub(crate) const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,
    "IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}"#;

/// A node that runs the source.
pub(crate) struct Node {
    pub(crate) table: Reconciler,
    source: KubeSource,
    updates: Receiver<SourceUpdate>,
    notices: Receiver<SourceNotice>,
    pub(crate) notes: Vec<SourceNotice>,
    pub(crate) changes: Vec<RouteChange>,
    /// How many times everything was delivered.
    pub(crate) fulls: usize,
    start: Instant,
}

pub(crate) fn own(number: u8) -> Own {
    Own {
        v4: Some([192, 0, 2, number].into()),
        v6: Some(format!("2001:db8::{number:x}").parse().unwrap()),
        vtep_mac: MacAddr::new([2, 0, 0, 0, 1, number]),
    }
}

/// A Node object as the kubelet and the controller manager make it.
pub(crate) fn object(number: u16, dual: bool) -> Value {
    let [high, low] = number.to_be_bytes();
    let cidr = format!("10.244.{low}.0/24");
    let mut cidrs = vec![json!(cidr)];
    let mut addresses = vec![
        json!({ "type": "InternalIP", "address": format!("192.0.{}.{low}", 2 + high) }),
        json!({ "type": "Hostname", "address": format!("n{number}") }),
    ];
    if dual {
        cidrs.push(json!(format!("fd00:10:244:{number:x}::/64")));
        let v6 = format!("2001:db8::{number:x}");
        addresses.push(json!({ "type": "InternalIP", "address": v6 }));
    }
    json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": { "name": format!("n{number}"), "labels": { "a": "b" },
            "annotations": { "node.alpha.kubernetes.io/ttl": "0" } },
        "spec": { "podCIDR": cidr, "podCIDRs": cidrs },
        "status": { "addresses": addresses,
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }] },
    })
}

/// The same with what a flannel node writes.
pub(crate) fn flannel(number: u16) -> Value {
    let mut node = object(number, false);
    let [high, low] = number.to_be_bytes();
    let mac = format!("02:ff:00:00:{high:02x}:{low:02x}");
    let said = &mut node["metadata"]["annotations"];
    for (name, value) in [
        ("backend-data", format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)),
        ("backend-type", "vxlan".to_owned()),
        ("kube-subnet-manager", "true".to_owned()),
        ("public-ip", format!("192.0.{}.{low}", 2 + high)),
    ] {
        said[format!("flannel.alpha.coreos.com/{name}")] = json!(value);
    }
    node
}

impl Node {
    pub(crate) fn start(access: Access, number: u8, network: &str) -> Self {
        let network = NetConf::parse(network.as_bytes()).unwrap();
        let own = own(number);
        let agent = AgentSettings::new(format!("n{number}"), network);
        let (to_table, updates) = unbounded();
        let (to_node, notices) = unbounded();
        let outlet = Outlet {
            updates: to_table,
            notices: to_node,
        };
        let settings = KubeSettings { access, agent, own };
        let source = KubeSource::start(settings, outlet).unwrap();
        let identity = Identity {
            underlay: vec![own.v4.unwrap().into(), own.v6.unwrap().into()],
            vteps: vec![own.vtep_mac],
        };
        Self {
            table: Reconciler::new(Settings::default(), identity),
            source,
            updates,
            notices,
            notes: Vec::new(),
            changes: Vec::new(),
            fulls: 0,
            start: Instant::now(),
        }
    }

    /// One at a server of ours.
    pub(crate) fn of(server: &Server, number: u8, network: &str) -> Self {
        Self::start(access(server), number, network)
    }

    /// One with a token that is in a file.
    pub(crate) fn with_token_file(server: &Server, number: u8, token: &Path) -> Self {
        let access = Access {
            token: Some(Token::File(token.to_owned())),
            ..access(server)
        };
        Self::start(access, number, NETWORK)
    }

    pub(crate) fn tell(&self, command: SourceCommand) {
        self.source.tell(command);
    }

    pub(crate) fn handle(&mut self, event: Event) -> Outcome {
        let now = Time::ZERO.after(self.start.elapsed());
        let outcome = self.table.handle(event, now);
        self.changes.extend(outcome.routes.clone());
        outcome
    }

    /// Lets things happen for a while.
    pub(crate) fn run(&mut self, time: Duration) {
        self.wait_for(time, |_| false);
    }

    /// Lets things happen until `done`; how long that took, or `None` when not in time.
    pub(crate) fn wait_for(
        &mut self,
        most: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Option<Duration> {
        let start = Instant::now();
        loop {
            self.notes.extend(self.notices.try_iter());
            if done(self) {
                return Some(start.elapsed());
            }
            let left = most.checked_sub(start.elapsed())?;
            let left = left.min(Duration::from_millis(20));
            if let Ok(update) = self.updates.recv_timeout(left) {
                self.fulls += usize::from(matches!(update.kind, UpdateKind::Full { .. }));
                self.handle(Event::Update(update));
            }
        }
    }

    pub(crate) fn remote(&self) -> usize {
        let routes = self.table.routes();
        routes.filter(|route| route.via.is_some()).count()
    }

    pub(crate) fn status(&self) -> SourceStatus {
        let mut sources = self.table.sources();
        let first = sources.next();
        first.map(|(_, status)| status.clone()).unwrap_or_default()
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.status().lost.is_some()
    }

    pub(crate) fn withdrawn(&self) -> usize {
        let changes = self.changes.iter();
        changes.filter(|change| change.after.is_none()).count()
    }

    /// The subnets that the node was told it has.
    pub(crate) fn subnets(&self) -> Vec<IpNet> {
        let claimed = |note: &SourceNotice| match note {
            SourceNotice::Claimed { subnets, .. } => Some(subnets.clone()),
            SourceNotice::Alarm { .. } | SourceNotice::Left { .. } => None,
        };
        let last = self.notes.iter().rev().find_map(claimed);
        last.unwrap_or_default()
    }

    pub(crate) fn alarms(&self) -> Vec<&str> {
        let notes = self.notes.iter();
        notes
            .filter_map(|note| match note {
                SourceNotice::Alarm { text, .. } => Some(text.as_str()),
                SourceNotice::Claimed { .. } | SourceNotice::Left { .. } => None,
            })
            .collect()
    }
}

pub(crate) fn access(server: &Server) -> Access {
    Access {
        server: server.url(),
        ca: None,
        certificate: None,
        token: Some(Token::Fixed(TOKEN.to_owned())),
        origin: Origin::Given,
    }
}
