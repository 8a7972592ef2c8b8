//! Members of a real etcd cluster on loopback, and nodes that use it.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crossbeam_channel::{Receiver, unbounded};
use ipnet::IpNet;
use serde_json::{Value, json};
use tun_node::rib::{
    Event, Identity, Outcome, Reconciler, RouteChange, Settings, SourceStatus, SourceUpdate,
};
use tun_node::source::etcd::agent::AgentSettings;
use tun_node::source::etcd::gateway::Cluster;
use tun_node::source::etcd::{EtcdSettings, EtcdSource, OwnNode};
use tun_node::source::{Outlet, SourceNotice};
use warren_core::units::{MacAddr, Time};

pub(crate) const PREFIX: &str = "/coreos.com/network";
pub(crate) const CONFIG: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;

/// Members of one cluster; killed and removed when dropped.
pub(crate) struct Etcd {
    folder: tempfile::TempDir,
    members: Vec<Member>,
    extra: Vec<String>,
    /// The address that members listen at.
    host: String,
}

struct Member {
    client: u16,
    peer: u16,
    child: Option<Child>,
}

impl Etcd {
    /// Starts as many members; `None`, with the reason printed, when etcd is not installed.
    pub(crate) fn start(members: usize, extra: &[&str]) -> Option<Self> {
        Self::start_at("127.0.0.1", members, extra)
    }

    /// The same at another address than loopback.
    pub(crate) fn start_at(host: &str, members: usize, extra: &[&str]) -> Option<Self> {
        if Command::new("etcd").arg("--version").output().is_err() {
            eprintln!("skipped: no etcd here (Debian: etcd-server)");
            return None;
        }
        // All ports are taken at once, so that no two are the same.
        let taken: Vec<TcpListener> = (0..members * 2)
            .map(|_| TcpListener::bind((host, 0)).unwrap())
            .collect();
        let ports: Vec<u16> = taken
            .iter()
            .map(|l| l.local_addr().unwrap().port())
            .collect();
        drop(taken);
        let members = ports.chunks(2).map(|ports| Member {
            client: ports[0],
            peer: ports[1],
            child: None,
        });
        let mut etcd = Self {
            folder: tempfile::tempdir().unwrap(),
            members: members.collect(),
            extra: extra.iter().map(|&e| e.to_owned()).collect(),
            host: host.to_owned(),
        };
        for at in 0..etcd.members.len() {
            etcd.start_member(at);
        }
        etcd.wait_until_writable();
        Some(etcd)
    }

    fn data(&self, at: usize) -> PathBuf {
        self.folder.path().join(format!("m{at}"))
    }

    pub(crate) fn start_member(&mut self, at: usize) {
        let url = |port: u16| format!("http://{}:{port}", self.host);
        let all: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(at, member)| format!("m{at}={}", url(member.peer)))
            .collect();
        let log = std::fs::File::create(self.folder.path().join(format!("m{at}.log"))).unwrap();
        let member = &self.members[at];
        let child = Command::new("etcd")
            .args(["--name", &format!("m{at}"), "--data-dir"])
            .arg(self.data(at))
            .args(["--listen-client-urls", &url(member.client)])
            .args(["--advertise-client-urls", &url(member.client)])
            .args(["--listen-peer-urls", &url(member.peer)])
            .args(["--initial-advertise-peer-urls", &url(member.peer)])
            .args(["--initial-cluster", &all.join(",")])
            .args(["--initial-cluster-state", "new"])
            // Nothing here outlives a machine, and the machine's disk may be slow.
            .arg("--unsafe-no-fsync")
            .args(&self.extra)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.members[at].child = Some(child.unwrap());
    }

    pub(crate) fn kill(&mut self, at: usize) {
        if let Some(mut child) = self.members[at].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn signal(&self, at: usize, signal: nix::sys::signal::Signal) {
        let child = self.members[at].child.as_ref().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    pub(crate) fn wipe(&mut self, at: usize) {
        self.kill(at);
        std::fs::remove_dir_all(self.data(at)).unwrap();
    }

    pub(crate) fn wait_until_writable(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        while self
            .ask(
                "kv/put",
                &json!({ "key": STANDARD.encode("/up"), "value": "" }),
            )
            .is_none()
        {
            assert!(Instant::now() < end, "etcd does not become writable");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        let members = self.members.iter();
        members
            .map(|member| format!("http://{}:{}", self.host, member.client))
            .collect()
    }

    /// Which member leads.
    pub(crate) fn leader(&self) -> usize {
        let status = |at: usize| {
            self.ask_member(at, "maintenance/status", &json!({}))
                .unwrap()
        };
        let at = 0..self.members.len();
        at.into_iter()
            .find(|at| {
                let status = status(*at);
                status["leader"] == status["header"]["member_id"]
            })
            .unwrap()
    }

    /// Asks the first member that answers.
    pub(crate) fn ask(&self, method: &str, body: &Value) -> Option<Value> {
        (0..self.members.len()).find_map(|at| self.ask_member(at, method, body))
    }

    fn ask_member(&self, at: usize, method: &str, body: &Value) -> Option<Value> {
        self.members[at].child.as_ref()?;
        let url = format!(
            "http://{}:{}/v3/{method}",
            self.host, self.members[at].client
        );
        let question = body.to_string();
        // A value of 10 MiB takes a busy machine a while.
        let limit = Duration::from_secs(5 + question.len() as u64 / 200_000);
        let http = ureq::Agent::config_builder()
            .timeout_global(Some(limit))
            .build()
            .new_agent();
        let sent = http.post(url).send(question.as_bytes());
        let body = sent
            .ok()?
            .body_mut()
            .with_config()
            .limit(64 << 20)
            .read_to_vec()
            .ok()?;
        serde_json::from_slice(&body).ok()
    }

    pub(crate) fn put(&self, key: &[u8], value: &[u8]) {
        self.put_all(&[(key.to_vec(), value.to_vec())]);
    }

    /// Writes keys, a hundred in each transaction.
    pub(crate) fn put_all(&self, kvs: &[(Vec<u8>, Vec<u8>)]) {
        for some in kvs.chunks(100) {
            let puts: Vec<Value> = some
                .iter()
                .map(|(key, value)| {
                    let (key, value) = (STANDARD.encode(key), STANDARD.encode(value));
                    json!({ "request_put": { "key": key, "value": value } })
                })
                .collect();
            self.ask("kv/txn", &json!({ "success": puts }))
                .expect("etcd takes it");
        }
    }

    pub(crate) fn put_config(&self, config: &str) {
        self.put(format!("{PREFIX}/config").as_bytes(), config.as_bytes());
    }

    /// Deletes the keys of a range in one transaction.
    pub(crate) fn delete(&self, from: &str, to: &str) {
        let body = json!({ "key": STANDARD.encode(from), "range_end": STANDARD.encode(to) });
        self.ask("kv/deleterange", &body).expect("etcd takes it");
    }

    pub(crate) fn values(&self) -> Vec<(String, String)> {
        let (from, to) = (format!("{PREFIX}/subnets/"), format!("{PREFIX}/subnets0"));
        let body = json!({ "key": STANDARD.encode(from), "range_end": STANDARD.encode(to) });
        let answer = self.ask("kv/range", &body).expect("etcd answers");
        let text = |value: &Value| {
            let octets = STANDARD.decode(value.as_str().unwrap_or_default()).unwrap();
            String::from_utf8_lossy(&octets).into_owned()
        };
        let kvs = answer["kvs"].as_array().cloned().unwrap_or_default();
        kvs.iter()
            .map(|kv| (text(&kv["key"]), text(&kv["value"])))
            .collect()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for at in 0..self.members.len() {
            self.kill(at);
        }
    }
}

/// The control plane of a node: the source and the table.
pub(crate) struct Node {
    pub(crate) own: OwnNode,
    pub(crate) table: Reconciler,
    pub(crate) source: Option<EtcdSource>,
    updates: Receiver<SourceUpdate>,
    notices: Receiver<SourceNotice>,
    pub(crate) seen: Vec<SourceNotice>,
    pub(crate) alarms: Vec<String>,
    pub(crate) changes: Vec<RouteChange>,
    start: Instant,
}

pub(crate) fn own(number: u8) -> OwnNode {
    OwnNode {
        public_ip: [192, 0, 2, number].into(),
        public_ipv6: Some(format!("fd99::{number:x}").parse().unwrap()),
        vtep_mac_v4: MacAddr::new([2, 0, 0, 0, 4, number]),
        vtep_mac_v6: MacAddr::new([2, 0, 0, 0, 6, number]),
    }
}

/// The last part of the key of these subnets.
fn key_of(subnets: &[IpNet]) -> String {
    let parts = subnets
        .iter()
        .map(|net| format!("{}-{}", net.addr(), net.prefix_len()));
    parts.collect::<Vec<_>>().join("&")
}

impl Node {
    pub(crate) fn start(cluster: Cluster, number: u8) -> Self {
        let own = own(number);
        let agent = AgentSettings {
            seed: u64::from(number),
            ..AgentSettings::default()
        };
        let (to_table, updates) = unbounded();
        let (to_node, notices) = unbounded();
        let settings = EtcdSettings {
            cluster,
            agent,
            own,
        };
        let source = EtcdSource::start(
            settings,
            Outlet {
                updates: to_table,
                notices: to_node,
            },
        )
        .unwrap();
        let identity = Identity {
            underlay: vec![own.public_ip.into(), own.public_ipv6.unwrap().into()],
            vteps: vec![own.vtep_mac_v4, own.vtep_mac_v6],
        };
        Self {
            own,
            table: Reconciler::new(Settings::default(), identity),
            source: Some(source),
            updates,
            notices,
            seen: Vec::new(),
            alarms: Vec::new(),
            changes: Vec::new(),
            start: Instant::now(),
        }
    }

    pub(crate) fn of(etcd: &Etcd, number: u8) -> Self {
        let cluster = Cluster {
            endpoints: etcd.endpoints(),
            ..Cluster::default()
        };
        Self::start(cluster, number)
    }

    pub(crate) fn handle(&mut self, event: Event) -> Outcome {
        let now = Time::ZERO.after(self.start.elapsed());
        let outcome = self.table.handle(event, now);
        self.alarms.extend(outcome.alarms.clone());
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
            self.seen.extend(self.notices.try_iter());
            if done(self) {
                return Some(start.elapsed());
            }
            let left = most.checked_sub(start.elapsed())?;
            if let Ok(update) = self
                .updates
                .recv_timeout(left.min(Duration::from_millis(20)))
            {
                self.handle(Event::Update(update));
            }
        }
    }

    pub(crate) fn remote(&self) -> usize {
        self.table
            .routes()
            .filter(|route| route.via.is_some())
            .count()
    }

    pub(crate) fn subnet(&self) -> Option<String> {
        self.seen.iter().rev().find_map(|notice| match notice {
            SourceNotice::Claimed { subnets, .. } => Some(key_of(subnets)),
            SourceNotice::Alarm { .. } | SourceNotice::Left { .. } => None,
        })
    }

    pub(crate) fn status(&self) -> SourceStatus {
        let mut sources = self.table.sources();
        sources
            .next()
            .map(|(_, status)| status.clone())
            .unwrap_or_default()
    }

    pub(crate) fn withdrawn(&self) -> usize {
        self.changes
            .iter()
            .filter(|change| change.after.is_none())
            .count()
    }
}
